//! Output by `console_io`.

use super::abi::call;
use super::hypercall::at;
use super::hypercall::hypercall;

/// `CONSOLEIO_write`.
pub const WRITE: u64 = 0;
/// `CONSOLEIO_read`.
pub const READ: u64 = 1;

/// Writes a text.
pub fn write(text: &[u8]) {
    hypercall(call::CONSOLE_IO, [WRITE, text.len() as u64, at(text.as_ptr())]);
}
