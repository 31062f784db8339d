//! Memory of a paravirtual guest: frames of its own, and what the machine calls them. Linear addresses of memory up to the end of
//! [`layout::FRAMES`] are the guest's physical ones; the machine's may be others (covisor's are the same, Xen's are not).

use core::sync::atomic::AtomicU64;
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering::Relaxed;

use super::abi::uvmf;
use super::hypercall;
use super::tables;
use crate::layout;

/// Page size.
pub const PAGE: u64 = 4096;
/// Words of a page.
pub const WORDS: usize = 512;

/// Where the list of machine frames is.
static LIST: AtomicUsize = AtomicUsize::new(0);
/// How many the guest has.
static COUNT: AtomicU64 = AtomicU64::new(0);
/// The next frame that is free, and behind the last one: what is taken for good is taken from the end.
static NEXT: AtomicU64 = AtomicU64::new(layout::FRAMES);
static END: AtomicU64 = AtomicU64::new(layout::FRAMES + layout::FRAMES_SIZE);

/// Says where the list of machine frames is, and how long.
pub(super) fn set_list(address: u64, count: u64) {
    LIST.store(usize::try_from(address).unwrap_or(0), Relaxed);
    COUNT.store(count, Relaxed);
}

/// Frames that the guest has.
#[must_use]
pub fn count() -> u64 {
    COUNT.load(Relaxed)
}

/// The machine address of memory of the guest's; that of the frame behind the last one where it has none.
#[must_use]
pub fn machine(address: u64) -> u64 {
    let index = usize::try_from((address / PAGE).min(count())).unwrap_or(0);
    if address / PAGE >= count() {
        return count() * PAGE;
    }
    // SAFETY: the list has an entry for each frame.
    let frame = unsafe { core::ptr::with_exposed_provenance::<u64>(LIST.load(Relaxed)).add(index).read_volatile() };
    frame * PAGE + address % PAGE
}

/// The guest's address of machine memory that is its own.
#[must_use]
pub fn physical(machine: u64) -> Option<u64> {
    let [start, end, last] = hypercall::machphys_mapping().ok()?;
    let frame = machine / PAGE;
    let entry = start + frame * 8;
    if frame > last || entry >= end {
        return None;
    }
    let entry = core::ptr::with_exposed_provenance::<u64>(usize::try_from(entry).ok()?);
    // SAFETY: the hypervisor's table, which guests may read; one that has no such frame faults, which the caller's check reports.
    let found = unsafe { entry.read_volatile() };
    (found < count()).then_some(found * PAGE + machine % PAGE)
}

/// A frame of zeros: for good, or until the [`Loan`] of the time ends.
///
/// # Panics
/// When there is none left.
#[must_use]
pub fn take() -> u64 {
    let frame = NEXT.fetch_add(PAGE, Relaxed);
    assert!(frame < END.load(Relaxed), "the probe has no frame left");
    clear(frame);
    frame
}

/// A frame of zeros for good, whatever loan there is.
///
/// # Panics
/// When there is none left.
#[must_use]
pub fn take_for_good() -> u64 {
    let frame = END.fetch_sub(PAGE, Relaxed) - PAGE;
    assert!(frame >= NEXT.load(Relaxed), "the probe has no frame left");
    clear(frame);
    frame
}

/// Frames for a while: what is taken while it lives is free again afterwards.
#[derive(Debug)]
pub struct Loan(u64);

impl Loan {
    /// Begins here.
    #[must_use]
    pub fn new() -> Self {
        Self(NEXT.load(Relaxed))
    }

    /// A frame of zeros.
    ///
    /// # Panics
    /// When there is none left.
    #[must_use]
    pub fn take(&self) -> u64 {
        take()
    }
}

impl Default for Loan {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        for page in (self.0..NEXT.load(Relaxed)).step_by(4096) {
            // What is still a table somewhere stays read-only, which shows when the page is taken again.
            hypercall::update_va_mapping(page, machine(page) | tables::RW, uvmf::INVLPG);
        }
        NEXT.store(self.0, Relaxed);
    }
}

/// The words of a page.
#[must_use]
pub fn words(page: u64) -> *mut u64 {
    core::ptr::with_exposed_provenance_mut(usize::try_from(page).unwrap_or(0))
}

/// A word in memory.
#[must_use]
pub fn read(address: u64) -> u64 {
    // SAFETY: memory of the guest's that is mapped, or a fault that the caller waits for.
    unsafe { words(address).read_volatile() }
}

/// Writes a word.
pub fn write(address: u64, value: u64) {
    // SAFETY: as in `read`.
    unsafe { words(address).write_volatile(value) }
}

/// Fills a page with zeros.
pub fn clear(page: u64) {
    for index in 0..WORDS as u64 {
        write(page + index * 8, 0);
    }
}
