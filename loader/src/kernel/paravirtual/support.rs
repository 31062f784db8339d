//! Whether a kernel can be started so, and how it wants to be.

use covisor_abi::PAGE_SIZE;

use crate::kernel::ElfImage;
use crate::kernel::KernelError;
use crate::kernel::paravirtual::layout::WINDOW_MAX;

/// What our side can do of what a kernel may say that it must have (`features.h`).
const FEATURES: [&str; 2] = ["writable_page_tables", "pae_pgdir_above_4gb"];
/// End of the virtual addresses that are the monitor's, `HYPERVISOR_VIRT_END` (`arch-x86/xen-x86_64.h`). They begin with the
/// upper half.
const MONITOR_END: u64 = 0xffff_8800_0000_0000;
/// End of the lower half of virtual memory (SDM vol. 1, 3.3.7.1).
const LOWER_END: u64 = 0x0000_8000_0000_0000;
/// What one table of the top level maps.
const TOP_ENTRY: u64 = 1 << 39;

/// A kernel's wishes, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Support {
    /// Virtual address of the first instruction.
    pub(super) entry: u64,
    /// Virtual address of guest-physical address 0.
    base: u64,
    /// Virtual address of the list of frames.
    pub(super) frame_list: u64,
    /// Guest-physical address of the page to fill with calls.
    pub(super) hypercall_page: Option<u64>,
}

impl Support {
    /// The wishes of a kernel that can be started so.
    pub(super) fn of(image: &ElfImage) -> Result<Self, KernelError> {
        let notes = &image.notes;
        let is = |note: &Option<String>, wanted| note.as_deref() == Some(wanted);
        let entry = match notes.entry {
            Some(entry) if is(&notes.guest_os, "linux") && is(&notes.loader, "generic") => entry,
            _ => return Err(KernelError::NotParavirtual),
        };
        let unsupported = |what| Err(KernelError::ParavirtualForm(what));
        let features = notes.features.as_deref().unwrap_or("").split('|');
        if features.filter_map(|word| word.strip_prefix('!')).any(|word| !FEATURES.contains(&word)) {
            return unsupported("it must have features of Xen that covisor does not give");
        }
        let (Some(base), Some(frame_list), 1..) = (notes.virt_base, notes.init_p2m, notes.mod_start_pfn.unwrap_or(0))
        else {
            return unsupported("it is too old to place its frame list and its initial RAM disk freely");
        };
        if notes.paddr_offset.unwrap_or(0) != 0 {
            return unsupported("its physical addresses do not begin at 0");
        }
        if !is_range(base, WINDOW_MAX)
            || !is_range(frame_list, WINDOW_MAX)
            || base / TOP_ENTRY == frame_list / TOP_ENTRY
        {
            return unsupported("it asks for virtual addresses that it cannot have");
        }
        let support = Self { entry, base, frame_list, hypercall_page: None };
        if support.in_image(image, entry, 1).is_none() {
            return Err(KernelError::EntryOutside(entry));
        }
        let hypercall_page = match notes.hypercall_page {
            Some(page) => {
                match support.in_image(image, page, PAGE_SIZE).filter(|page| page.is_multiple_of(PAGE_SIZE)) {
                    Some(page) => Some(page),
                    None => return unsupported("its page for calls of Xen is no page of its own"),
                }
            }
            None => None,
        };
        Ok(Self { hypercall_page, ..support })
    }

    /// The virtual address that a guest-physical one has at the start.
    pub(super) fn virtual_address(&self, address: u64) -> u64 {
        debug_assert!(address <= WINDOW_MAX);
        self.base + address
    }

    /// The guest-physical address of `size` bytes at a virtual one, if they lie in the kernel.
    fn in_image(&self, image: &ElfImage, address: u64, size: u64) -> Option<u64> {
        let start = address.checked_sub(self.base)?;
        let end = start.checked_add(size)?;
        image.segments.iter().any(|segment| segment.address <= start && end <= segment.end()).then_some(start)
    }
}

/// Whether the `size` bytes at `start`, which is a multiple of it, are addresses that a guest can have.
fn is_range(start: u64, size: u64) -> bool {
    let Some(last) = start.checked_add(size - 1) else { return false };
    start.is_multiple_of(size) && (last < LOWER_END || start >= MONITOR_END)
}
