//! Output by the first serial port (16550, data register at 0x3f8). The virtual one is always ready, so nothing waits for
//! its status.

use core::fmt;

use crate::port;

/// Transmit register of COM1.
pub const COM1_DATA: u16 = 0x3f8;

/// Scratch register of COM1: keeps what was written, means nothing.
pub const COM1_SCRATCH: u16 = 0x3ff;

/// The serial port as a text sink.
#[derive(Debug)]
pub struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
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
