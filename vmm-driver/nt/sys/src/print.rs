//! Rust's `log` goes to the kernel's debugger, and to tools that listen to it.

use log::LevelFilter;
use log::Log;
use log::Metadata;
use log::Record;

struct DebugPrint;

impl Log for DebugPrint {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            wdk::println!("covisor: {}: {}", record.level(), record.args());
        }
    }

    fn flush(&self) {}
}

/// From now on messages are seen.
pub(crate) fn start() {
    // An error means that it was done before, which changes nothing.
    let _ = log::set_logger(&DebugPrint);
    log::set_max_level(LevelFilter::Info);
}
