//! Rust's `log` goes to the kernel's.

use log::LevelFilter;
use log::Log;
use log::Metadata;
use log::Record;

use crate::ffi;
use crate::text::Text;

struct KernelLog;

impl Log for KernelLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = Text::new(*record.args());
        let bytes = text.as_bytes();
        // SAFETY: the bytes are there, and the shim only reads them.
        unsafe { ffi::covisor_host_print(record.level() as u32, bytes.as_ptr(), bytes.len()) };
    }

    fn flush(&self) {}
}

/// From now on messages are seen.
pub(crate) fn start() {
    // An error means that it was done before, which changes nothing.
    let _ = log::set_logger(&KernelLog);
    log::set_max_level(LevelFilter::Info);
}
