//! The hypercall `multicall`: a list of calls.

use super::abi::call;
use super::hypercall::at;
use super::hypercall::hypercall;

/// `multicall_entry`: number, result, six arguments.
pub type Entry = [u64; 8];

/// An entry whose result was never written.
#[must_use]
pub const fn entry(number: u64, arguments: [u64; 3]) -> Entry {
    [number, 0x5555, arguments[0], arguments[1], arguments[2], 0, 0, 0]
}

/// Makes the calls.
pub fn multicall(entries: &mut [Entry]) -> i64 {
    hypercall(call::MULTICALL, [at(entries.as_mut_ptr()), entries.len() as u64])
}
