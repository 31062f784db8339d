//! Segments of a paravirtual guest: the probe's own, in a table that the hypervisor takes over, and those that every guest has.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use super::abi::call;
use super::frames;
use super::hypercall;
use super::hypercall::at;
use super::tables;
use crate::exception::GDT;
use crate::exception::selector;

/// Descriptors of the probe's table.
const COUNT: u64 = 13;

/// The table's page.
static TABLE: AtomicU64 = AtomicU64::new(0);

/// Hands the probe's segments over: all but the task state segment, which is none of a paravirtual guest's.
///
/// # Panics
/// When the hypervisor refuses.
pub fn install() {
    let page = frames::take_for_good();
    for index in (0..COUNT).filter(|index| !(7..=8).contains(index)) {
        frames::write(page + index * 8, GDT.get(usize::try_from(index).unwrap_or(0)));
    }
    tables::make(page);
    TABLE.store(page, Relaxed);
    let result = load();
    assert!(result == 0, "no descriptor table: {result}");
}

/// `set_gdt` with the probe's table.
pub fn load() -> i64 {
    set_gdt(&[tables::frame(TABLE.load(Relaxed))], COUNT)
}

/// `set_gdt`.
pub fn set_gdt(frames: &[u64], entries: u64) -> i64 {
    hypercall::hypercall(call::SET_GDT, [at(frames.as_ptr()), entries])
}

/// Sets the descriptor of [`selector::SPARE`].
pub fn set_spare(descriptor: u64) -> i64 {
    let entry = TABLE.load(Relaxed) + u64::from(selector::SPARE);
    hypercall::update_descriptor(frames::machine(entry), descriptor)
}

/// `set_segment_base`.
pub fn set_base(which: u64, base: u64) -> i64 {
    hypercall::hypercall(call::SET_SEGMENT_BASE, [which, base])
}
