//! Rust's heap is the kernel's nonpaged pool.

use core::alloc::GlobalAlloc;
use core::alloc::Layout;
use core::sync::atomic::AtomicI32;
use core::sync::atomic::Ordering::Relaxed;

use crate::imports::ExAllocatePoolWithTag;
use crate::imports::ExFreePoolWithTag;

/// `ExAllocatePoolWithTag`, which every NT has; `wdk-alloc` imports its successor, without which it cannot be loaded. At most
/// DISPATCH_LEVEL.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pool;

/// Shows whose memory it is; tools print it as "Cvsr".
pub(crate) const TAG: u32 = u32::from_le_bytes(*b"Cvsr");

/// `NonPagedPool`.
const EXECUTABLE_POOL: i32 = 0;
/// `NonPagedPoolNx`, since NT 6.2.
const NONEXECUTABLE_POOL: i32 = 512;

/// What the pool aligns every block to (x64).
const SMALLEST_ALIGNMENT: usize = 16;
/// Blocks of at least a page begin at one.
const PAGE: usize = 4096;

static POOL_TYPE: AtomicI32 = AtomicI32::new(EXECUTABLE_POOL);

/// Memory is not executable from now on, which this NT can do if it is 6.2 or later.
pub(crate) fn forbid_execution() {
    POOL_TYPE.store(NONEXECUTABLE_POOL, Relaxed);
}

/// The size to ask for, so that the block is aligned. `None` where that cannot be had.
const fn size_to_ask(layout: Layout) -> Option<usize> {
    let (size, align) = (layout.size(), layout.align());
    if align > PAGE {
        None
    } else if align > SMALLEST_ALIGNMENT && size < PAGE {
        Some(PAGE)
    } else {
        Some(size)
    }
}

// SAFETY: the pool gives blocks of at least the size asked for that nobody else has, aligned as `size_to_ask` explains, or null.
unsafe impl GlobalAlloc for Pool {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match size_to_ask(layout) {
            // SAFETY: drivers allocate at DISPATCH_LEVEL at most.
            Some(size) => unsafe { ExAllocatePoolWithTag(POOL_TYPE.load(Relaxed), size, TAG) }.cast(),
            None => core::ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, _layout: Layout) {
        // SAFETY: the caller promises that it came from alloc() and is not used any more.
        unsafe { ExFreePoolWithTag(pointer.cast(), TAG) };
    }
}
