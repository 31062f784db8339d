//! Pages: parts of one section, which is mapped in Wine's process for drivers, and whose parts are mapped into programs. The
//! number of a page is that of its address here.

use core::alloc::Layout;
use core::ffi::c_void;
use core::ptr;
use core::ptr::NonNull;
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering;

use covisor_core::host::OutOfMemory;
use covisor_nt::Kapi;
use covisor_nt::NtStatus;
use covisor_nt::kapi::Mdl;
use wdk_sys::_SECTION_INHERIT::ViewUnmap;
use wdk_sys::HANDLE;
use wdk_sys::LARGE_INTEGER;
use wdk_sys::MDL;
use wdk_sys::ntddk;

use crate::kernel;
use crate::status;
use crate::wine::client;

const PAGE: usize = 4096;
/// What is allocated at a time: the port asks for no other size.
const UNIT: usize = 2 << 20;
/// Units that there are: 64 MiB.
const UNITS: usize = u32::BITS as usize;
/// One unit more than that, since the view may begin in the middle of one.
const SECTION_BYTES: usize = (UNITS + 1) * UNIT;
/// Views begin at multiples of this, here and in the section.
const GRANULARITY: usize = 0x1_0000;

/// `SECTION_ALL_ACCESS`, `PAGE_READWRITE`, `SEC_COMMIT`.
const ALL_ACCESS: u32 = 0x000f_001f;
/// As above.
const READ_WRITE: u32 = 4;
/// As above.
const COMMIT: u32 = 0x0800_0000;
/// `MDL_MAPPED_TO_SYSTEM_VA`: marks the lists of pages that were allocated here.
const MAPPED_TO_SYSTEM: i16 = 1;

/// The section's handle.
static SECTION: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
/// Where it is mapped.
static VIEW: AtomicUsize = AtomicUsize::new(0);
/// A bit for each unit that somebody has.
static TAKEN: AtomicU32 = AtomicU32::new(0);

/// A size as the kernel passes it.
fn large(bytes: usize) -> LARGE_INTEGER {
    LARGE_INTEGER { QuadPart: i64::try_from(bytes).unwrap_or(i64::MAX) }
}

/// Maps a part of the section into a process: at `address`, or anywhere where that is 0. Returns where it is.
fn map(section: HANDLE, process: HANDLE, address: usize, offset: usize, bytes: usize) -> Result<usize, NtStatus> {
    let mut base = ptr::without_provenance_mut::<c_void>(address);
    let mut offset = large(offset);
    let mut size = bytes as u64;
    // SAFETY: both handles are open. It goes where nobody has anything.
    status(unsafe {
        ntddk::ZwMapViewOfSection(
            section,
            process,
            &raw mut base,
            0,
            0,
            &raw mut offset,
            &raw mut size,
            ViewUnmap,
            0,
            READ_WRITE,
        )
    })?;
    Ok(base.addr())
}

/// Undoes it.
///
/// # Safety
/// Nobody uses that any more.
unsafe fn unmap_view(process: HANDLE, address: usize) {
    // SAFETY: by the caller. It fails where the process has ended, and its views with it.
    let _ = unsafe { ntddk::ZwUnmapViewOfSection(process, ptr::with_exposed_provenance_mut(address)) };
}

/// Makes the section.
pub(super) fn start() -> Result<(), OutOfMemory> {
    let mut section = ptr::null_mut();
    let mut size = large(SECTION_BYTES);
    // SAFETY: it has no name and no file.
    let made = status(unsafe {
        ntddk::ZwCreateSection(
            &raw mut section,
            ALL_ACCESS,
            ptr::null_mut(),
            &raw mut size,
            READ_WRITE,
            COMMIT,
            ptr::null_mut(),
        )
    });
    let section = made.map(|()| client::Handle(section)).map_err(|_| OutOfMemory)?;
    let view = map(section.0, client::OURSELVES, 0, 0, SECTION_BYTES).map_err(|_| OutOfMemory)?;
    VIEW.store(view, Ordering::Relaxed);
    SECTION.store(section.0, Ordering::Relaxed);
    core::mem::forget(section);
    Ok(())
}

/// Gives it back. Nobody has a page any more.
pub(super) fn stop() {
    // SAFETY: by the caller.
    unsafe { unmap_view(client::OURSELVES, VIEW.load(Ordering::Relaxed)) };
    drop(client::Handle(SECTION.swap(ptr::null_mut(), Ordering::Relaxed)));
}

/// Where the first unit is.
fn first_unit() -> usize {
    VIEW.load(Ordering::Relaxed).next_multiple_of(UNIT)
}

/// Pages that nobody has.
pub(super) fn available_pages() -> u64 {
    u64::from(TAKEN.load(Ordering::Relaxed).count_zeros()) * (UNIT / PAGE) as u64
}

fn list(mdl: Mdl) -> *mut MDL {
    mdl.0.as_ptr().cast()
}

/// Room for a list.
fn list_layout(pages: usize) -> Option<Layout> {
    let (layout, _) = Layout::new::<MDL>().extend(Layout::array::<usize>(pages).ok()?).ok()?;
    Some(layout)
}

/// [`Kapi::allocate_mdl`]. What Wine allocates has room for numbers of 32 bits.
pub(super) fn allocate_mdl(pages: usize) -> Option<Mdl> {
    let bytes = u32::try_from(pages.checked_mul(PAGE)?).ok()?;
    let layout = list_layout(pages)?;
    // SAFETY: it has a size.
    let list = NonNull::new(unsafe { alloc::alloc::alloc_zeroed(layout) }.cast::<MDL>())?;
    // SAFETY: it is new.
    unsafe { (*list.as_ptr()).ByteCount = bytes };
    Some(Mdl(list.cast()))
}

/// [`Kapi::free_mdl`].
///
/// # Safety
/// As there.
pub(super) unsafe fn free_mdl(mdl: Mdl) {
    // SAFETY: by the caller; allocate_mdl() made it, with this layout.
    unsafe {
        let pages = (*list(mdl)).ByteCount as usize / PAGE;
        if let Some(layout) = list_layout(pages) {
            alloc::alloc::dealloc(mdl.0.as_ptr().cast(), layout);
        }
    }
}

/// [`Kapi::allocate_pages`]; they are in a row.
pub(super) fn allocate_pages(bytes: usize) -> Option<Mdl> {
    if bytes != UNIT {
        return None;
    }
    let mdl = allocate_mdl(UNIT / PAGE)?;
    let mut unit = 0;
    let taken = TAKEN.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
        unit = taken.trailing_ones();
        taken.checked_add(1).map(|_| taken | 1 << unit)
    });
    if taken.is_err() {
        // SAFETY: just made.
        unsafe { free_mdl(mdl) };
        return None;
    }
    let address = first_unit() + unit as usize * UNIT;
    // SAFETY: the list is ours alone yet.
    unsafe {
        for (frame, page) in kernel::Kernel::mdl_frames(mdl).as_mut().iter_mut().zip(address / PAGE..) {
            *frame = page;
        }
        (*list(mdl)).MdlFlags |= MAPPED_TO_SYSTEM;
    }
    Some(mdl)
}

/// [`Kapi::free_pages`].
///
/// # Safety
/// As there.
pub(super) unsafe fn free_pages(mdl: Mdl) {
    // SAFETY: by the caller.
    unsafe {
        let unit = (first_address(mdl) - first_unit()) / UNIT;
        TAKEN.fetch_and(!(1 << unit), Ordering::Relaxed);
        free_mdl(mdl);
    }
}

/// Where the first page of a list is here.
///
/// # Safety
/// It is alive, and has pages.
unsafe fn first_address(mdl: Mdl) -> usize {
    // SAFETY: by the caller.
    unsafe { kernel::Kernel::mdl_frames(mdl).as_ref()[0] * PAGE }
}

/// [`Kapi::map_to_kernel`]: it is mapped.
///
/// # Safety
/// As there.
pub(super) unsafe fn map_to_kernel(mdl: Mdl) -> Option<NonNull<u8>> {
    // SAFETY: by the caller.
    NonNull::new(ptr::with_exposed_provenance_mut(unsafe { first_address(mdl) }))
}

/// [`Kapi::map_to_user`].
///
/// # Safety
/// As there.
pub(super) unsafe fn map_to_user(mdl: Mdl, address: usize) -> Option<usize> {
    let process = client::open().ok()?;
    // SAFETY: by the caller.
    let frames = unsafe { kernel::Kernel::mdl_frames(mdl).as_ref() };
    let mut mapped = 0;
    for run in runs(frames) {
        let (offset, bytes) = (run[0] * PAGE - VIEW.load(Ordering::Relaxed), run.len() * PAGE);
        let there = address + mapped;
        let is_whole = offset.is_multiple_of(GRANULARITY) && there.is_multiple_of(GRANULARITY);
        if !is_whole || map(SECTION.load(Ordering::Relaxed), process.0, there, offset, bytes).is_err() {
            // SAFETY: these were mapped, and nobody knows of them.
            unsafe { unmap_runs(process.0, address, &frames[..mapped / PAGE]) };
            return None;
        }
        mapped += bytes;
    }
    Some(address)
}

/// [`Kapi::unmap`].
///
/// # Safety
/// As there.
pub(super) unsafe fn unmap(address: usize, mdl: Mdl) {
    // SAFETY: by the caller.
    unsafe {
        if (*list(mdl)).MdlFlags & MAPPED_TO_SYSTEM != 0 {
            return;
        }
        if let Ok(process) = client::open() {
            unmap_runs(process.0, address, kernel::Kernel::mdl_frames(mdl).as_ref());
        }
    }
}

/// Unmaps what [`map_to_user`] mapped of these pages.
///
/// # Safety
/// Nobody uses that any more.
unsafe fn unmap_runs(process: HANDLE, address: usize, frames: &[usize]) {
    let mut address = address;
    for run in runs(frames) {
        // SAFETY: by the caller.
        unsafe { unmap_view(process, address) };
        address += run.len() * PAGE;
    }
}

/// Pages that follow each other in the section as they do in the list.
fn runs(frames: &[usize]) -> impl Iterator<Item = &[usize]> {
    frames.chunk_by(|page, next| page + 1 == *next)
}
