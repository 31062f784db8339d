//! What lies where in guest memory: the kernel, then what its first instructions find mapped behind it, then the rest.

use covisor_abi::PAGE_SIZE;

use crate::kernel::KernelError;

/// Entries of a page table.
pub(super) const ENTRIES: u64 = PAGE_SIZE / size_of::<u64>() as u64;
/// What one table of the last level maps.
pub(super) const TABLE_REACH: u64 = ENTRIES * PAGE_SIZE;
/// The most that is mapped at the start: what one table of the level above does.
pub(super) const WINDOW_MAX: u64 = ENTRIES * TABLE_REACH;
/// The end of what is mapped is a multiple of this, and so much at least is free before it: a kernel may count on both
/// (Xen `xen.h`, at `struct start_info`).
const WINDOW_UNIT: u64 = 4 << 20;
const WINDOW_SLACK: u64 = 512 << 10;
/// Page tables above those of the last level, for one window: levels 4, 3 and 2.
pub(super) const UPPER_TABLES: u64 = 3;
/// The same for the list of frames, whose level 4 is the window's.
pub(super) const FRAME_LIST_UPPER_TABLES: u64 = 2;

/// Guest-physical addresses, all of pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    /// Pages of RAM.
    pub(super) pages: u64,
    /// `start_info`.
    pub(super) start_info: u64,
    /// The console's ring.
    pub(super) console_ring: u64,
    /// Page tables of the window: levels 4, 3 and 2, then those of the last level.
    pub(super) page_tables: u64,
    /// The first stack, of one page.
    pub(super) stack: u64,
    /// End of the window, which begins at 0 and is mapped.
    pub(super) window_end: u64,
    /// Start and size of the initial RAM disk, which is not mapped.
    pub(super) initrd: Option<(u64, u64)>,
    /// The list that has the machine's frame for each of the guest's.
    pub(super) frame_list: u64,
    /// Page tables of that list: levels 3 and 2, then those of the last level.
    pub(super) frame_list_tables: u64,
    /// End of all.
    pub(super) end: u64,
}

impl Layout {
    /// Places everything behind a kernel that ends at `kernel_end`, in so much RAM.
    pub(super) fn new(kernel_end: u64, ram_size: u64, initrd_size: u64) -> Result<Self, KernelError> {
        // Far below what could overflow, with all that follows.
        if kernel_end >= WINDOW_MAX {
            return Err(KernelError::ParavirtualForm("it is larger than what can be mapped for its start"));
        }
        let start_info = kernel_end.next_multiple_of(PAGE_SIZE);
        let console_ring = start_info + PAGE_SIZE;
        let page_tables = console_ring + PAGE_SIZE;
        // The window has in it the tables that map it, so look for the size at which they do.
        let mut last_level = 0;
        let (stack, window_end) = loop {
            let stack = page_tables + (UPPER_TABLES + last_level) * PAGE_SIZE;
            let window_end = (stack + PAGE_SIZE + WINDOW_SLACK).next_multiple_of(WINDOW_UNIT);
            if window_end <= last_level * TABLE_REACH {
                break (stack, window_end);
            }
            last_level = window_end / TABLE_REACH;
        };
        if window_end > WINDOW_MAX {
            return Err(KernelError::ParavirtualForm("it is larger than what can be mapped for its start"));
        }
        if window_end > ram_size {
            return Err(KernelError::DoesNotFit { start: kernel_end, end: window_end, ram_end: ram_size });
        }

        let pages = ram_size / PAGE_SIZE;
        let list_pages = pages.div_ceil(ENTRIES);
        let list_tables = FRAME_LIST_UPPER_TABLES + list_pages.div_ceil(ENTRIES);
        let list_size = (list_pages + list_tables) * PAGE_SIZE;
        let limit = pages * PAGE_SIZE;
        let Some(initrd_limit) = limit.checked_sub(list_size).filter(|&limit| limit >= window_end) else {
            return Err(KernelError::DoesNotFit { start: window_end, end: window_end + list_size, ram_end: ram_size });
        };
        if initrd_size > initrd_limit - window_end {
            return Err(KernelError::InitrdTooLarge { size: initrd_size, kernel_end: window_end, limit: initrd_limit });
        }
        let frame_list = (window_end + initrd_size).next_multiple_of(PAGE_SIZE);
        let frame_list_tables = frame_list + list_pages * PAGE_SIZE;
        Ok(Self {
            pages,
            start_info,
            console_ring,
            page_tables,
            stack,
            window_end,
            initrd: (initrd_size != 0).then_some((window_end, initrd_size)),
            frame_list,
            frame_list_tables,
            end: frame_list + list_size,
        })
    }

    /// Pages of the window's page tables.
    pub(super) fn page_table_pages(&self) -> u64 {
        (self.stack - self.page_tables) / PAGE_SIZE
    }

    /// Pages of the list of frames.
    pub(super) fn frame_list_pages(&self) -> u64 {
        (self.frame_list_tables - self.frame_list) / PAGE_SIZE
    }
}
