//! Output by the first serial port (16550, data register at 0x3f8), or by a hypercall. The virtual port is always ready, so nothing
//! waits for its status.

use core::fmt;

use crate::port;
use crate::xen;

/// Transmit register of COM1.
pub const COM1_DATA: u16 = 0x3f8;

/// The serial port as a text sink.
#[derive(Debug)]
pub struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if xen::active() {
            xen::console::write(text.as_bytes());
            return Ok(());
        }
        for byte in text.bytes() {
            port::out8(COM1_DATA, byte);
        }
        Ok(())
    }
}

/// Prints a line.
#[macro_export]
macro_rules! println {
    ($($argument:tt)*) => {{
        use ::core::fmt::Write as _;
        // The serial port takes everything: there is no failure to report.
        let _ = ::core::writeln!($crate::serial::Serial, $($argument)*);
    }};
}
