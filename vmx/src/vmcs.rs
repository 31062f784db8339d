//! The region of a VMCS, and which are active on a CPU (SDM vol. 3, 25.1 and 25.11).

use covisor_core::host::Block;
use covisor_core::host::Host;
use covisor_core::host::OutOfMemory;

use crate::instructions as insn;

/// A VMCS region or VMXON region: a page that begins with the CPU's revision. The rest is the CPU's own.
#[derive(Debug)]
pub(crate) struct Region(Block);

impl Region {
    /// A region with the revision in it.
    pub(crate) fn new<H: Host>(revision: u32) -> Result<Self, OutOfMemory> {
        let block = H::alloc_block(0).ok_or(OutOfMemory)?;
        // SAFETY: a page of ours alone, aligned.
        unsafe { block.virt.cast::<u32>().write(revision) };
        Ok(Self(block))
    }

    /// Gives it back.
    ///
    /// # Safety
    /// It is active on no CPU.
    pub(crate) unsafe fn free<H: Host>(self) {
        // SAFETY: by the caller.
        unsafe { H::free_block(self.0) };
    }

    /// Its physical address.
    #[inline]
    pub(crate) fn phys(&self) -> u64 {
        self.0.phys
    }
}

/// How many VMCSs stay active on one CPU.
const ACTIVE: usize = 16;

/// The VMCSs that are active on one CPU: what the CPU holds of them is in no memory, so they are cleared here before another
/// CPU or the allocator gets them.
#[derive(Debug)]
pub(crate) struct ActiveSet {
    /// Physical addresses; 0 where there is none.
    slots: [u64; ACTIVE],
    /// The slot to clear next when all are in use.
    next: usize,
    /// The one that is current; 0 for none.
    current: u64,
}

impl ActiveSet {
    pub(crate) const fn new() -> Self {
        Self { slots: [0; ACTIVE], next: 0, current: 0 }
    }

    /// Whether it is current.
    #[inline]
    pub(crate) fn is_current(&self, region: u64) -> bool {
        self.current == region
    }

    /// Makes it the current one. True where it was active already: then it is launched, if it was.
    ///
    /// # Safety
    /// In VMX operation on the CPU of this set, interrupts off; `region` is a region with the CPU's revision, active on no
    /// other CPU.
    pub(crate) unsafe fn make_current(&mut self, region: u64) -> Result<bool, insn::Failed> {
        let was_active = self.slots.contains(&region);
        // SAFETY: by the caller; those in the slots are active here and nowhere else.
        unsafe {
            if !was_active {
                let evicted = core::mem::replace(&mut self.slots[self.next], 0);
                if evicted != 0 {
                    insn::vmclear(evicted)?;
                }
                insn::vmclear(region)?;
                self.slots[self.next] = region;
                self.next = (self.next + 1) % ACTIVE;
            }
            insn::vmptrld(region)?;
        }
        self.current = region;
        Ok(was_active)
    }

    /// Writes it back and forgets it, if it is active here.
    ///
    /// # Safety
    /// As [`ActiveSet::make_current`].
    pub(crate) unsafe fn clear(&mut self, region: u64) {
        let Some(slot) = self.slots.iter_mut().find(|slot| **slot == region) else { return };
        *slot = 0;
        if self.current == region {
            self.current = 0;
        }
        // SAFETY: by the caller.
        let cleared = unsafe { insn::vmclear(region) };
        debug_assert!(cleared.is_ok(), "VMCLEAR refuses only what is no region");
    }

    /// Writes all back.
    ///
    /// # Safety
    /// As [`ActiveSet::make_current`].
    pub(crate) unsafe fn clear_all(&mut self) {
        for region in self.slots {
            if region != 0 {
                // SAFETY: by the caller.
                unsafe { self.clear(region) };
            }
        }
    }
}
