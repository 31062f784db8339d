//! Rust's heap is the kernel's.

use core::alloc::GlobalAlloc;
use core::alloc::Layout;

use crate::ffi;

/// `kvmalloc`: small blocks from the slabs, large ones mapped page by page. Thread context only.
#[derive(Clone, Copy, Debug)]
pub struct KernelHeap;

/// What kvmalloc aligns every block to (`ARCH_KMALLOC_MINALIGN` on x86-64).
const SMALLEST_ALIGNMENT: usize = 8;
/// No block has a larger alignment than a page.
const LARGEST_ALIGNMENT: usize = 4096;

/// The size to ask kvmalloc for, so that the block is aligned: it aligns sizes that are powers of two to themselves
/// (Linux `memory-allocation.rst`), up to a page. `None` where it cannot.
pub(crate) fn size_to_ask(layout: Layout) -> Option<usize> {
    match layout.align() {
        ..=SMALLEST_ALIGNMENT => Some(layout.size()),
        align @ ..=LARGEST_ALIGNMENT => layout.size().max(align).checked_next_power_of_two(),
        _ => None,
    }
}

fn allocate(layout: Layout, zeroed: bool) -> *mut u8 {
    match size_to_ask(layout) {
        Some(size) => ffi::covisor_host_allocate(size, zeroed).cast(),
        None => core::ptr::null_mut(),
    }
}

// SAFETY: kvmalloc gives blocks of at least the size asked for that nobody else has, aligned as `size_to_ask` explains,
// or null.
unsafe impl GlobalAlloc for KernelHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        allocate(layout, false)
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        allocate(layout, true)
    }

    unsafe fn dealloc(&self, pointer: *mut u8, _layout: Layout) {
        // SAFETY: the caller promises that it came from alloc() and is not used any more.
        unsafe { ffi::covisor_host_deallocate(pointer.cast()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(size: usize, align: usize) -> Option<usize> {
        size_to_ask(Layout::from_size_align(size, align).unwrap())
    }

    #[test]
    fn test_common_alignments_cost_nothing() {
        assert_eq!(asked(24, 8), Some(24));
        assert_eq!(asked(3, 1), Some(3));
    }

    #[test]
    fn test_a_larger_alignment_takes_a_power_of_two() {
        assert_eq!(asked(24, 16), Some(32));
        assert_eq!(asked(10, 64), Some(64));
        assert_eq!(asked(5000, 4096), Some(8192));
    }

    #[test]
    fn test_more_than_a_page_cannot_be_had() {
        assert_eq!(asked(8192, 8192), None);
    }
}
