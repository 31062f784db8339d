//! The shadow MMU. The guest's page tables are in its own memory and hold its own frame numbers; no CPU ever walks them. For each
//! that is in use there is a *shadow*, with the host's frame numbers, which CPUs walk.
//!
//! Isolation rests on one rule: what an entry of a shadow leads to is looked up, in the table of the guest's frames or in that of the
//! shadows, and never taken from the guest. So whatever a guest does to its tables, its addresses lead to its own memory or nowhere.
//!
//! Everything else serves the guest. Shadows tell what its tables tell, because it cannot change a table behind the monitor's back: a
//! frame either has a shadow or can be written to by the guest, never both ([`crate::frame::Uses`] counts). Tables are changed by
//! hypercalls, and by stores that fault and are carried out by the monitor. Shadows are made by page faults (`fault`), kept up to date
//! with each change (`update`), and given up when the guest wants to write to the table, or when there is no room (`reclaim`).
//!
//! There is one vCPU, and CR4.PGE and CR4.PCIDE are 0: loading CR3 makes the CPU forget everything.

mod check;
pub mod entry;
mod error;
mod fault;
mod lists;
mod reclaim;
mod roots;
mod space;
mod tables;
mod update;
mod walk;

#[cfg(test)]
mod check_tests;
#[cfg(test)]
mod property_tests;
#[cfg(test)]
mod test_machine;
#[cfg(test)]
mod tests;

pub use error::MmuError;
pub use fault::Fault;
pub use roots::FEWEST_TABLES;
pub use space::Space;
pub use space::Table;

use crate::frame::Link;
use crate::layout::PAGE;
use lists::Lists;
use space::SHARED_INFO;
use walk::Walk;

/// What the MMU needs of the CPU that it runs on.
pub trait Cpu {
    /// Loads CR3 with the root that the monitor runs on from now on. The CPU forgets all translations.
    fn load_cr3(&mut self, cr3: u64);
    /// INVLPG: the CPU forgets the translations of an address.
    fn invlpg(&mut self, address: u64);
}

/// The MMU of a guest. All zeros, as memory is before [`Mmu::start`], are a right value.
#[derive(Debug, Default, zerocopy::FromZeros)]
pub struct Mmu {
    /// The root that the guest's kernel runs on, and the monitor.
    kernel: Link,
    /// The root that the guest's programs run on.
    user: Link,
    /// Guest frame of the kernel's root.
    guest_root: u64,
    kernel_cr3: u64,
    user_cr3: u64,
    lists: Lists,
    /// A CPU may remember to be allowed to write where it no longer is.
    weakened: bool,
    /// Before the guest goes on, CR3 is to be loaded.
    flush_needed: bool,
}

impl Mmu {
    /// An MMU that has not started.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            kernel: Link::NONE,
            user: Link::NONE,
            guest_root: 0,
            kernel_cr3: 0,
            user_cr3: 0,
            lists: Lists::new(),
            weakened: false,
            flush_needed: false,
        }
    }

    /// CR3 for the guest's kernel, and for the monitor.
    #[must_use]
    pub const fn kernel_cr3(&self) -> u64 {
        self.kernel_cr3
    }

    /// CR3 for the guest's programs; 0 for none.
    #[must_use]
    pub const fn user_cr3(&self) -> u64 {
        self.user_cr3
    }

    /// What the guest takes for its CR3: guest-physical address of its kernel's L4.
    #[must_use]
    pub const fn guest_cr3(&self) -> u64 {
        self.guest_root * PAGE
    }

    /// Guest-physical address behind an address of the guest's kernel, in its memory or in `shared_info`, if its tables allow the
    /// access: the monitor is to do it for the guest. Nothing where page tables in use would be written to.
    #[must_use]
    pub fn translate(&self, space: &Space<'_>, address: u64, write: bool) -> Option<u64> {
        let walk = Walk::new(space, self.guest_root, address).ok()?;
        let target = walk.leaf().frame();
        let is_table = match space.frame(target) {
            Some(frame) => !frame.shadow.is_none(),
            None if target == SHARED_INFO => false,
            None => return None,
        };
        if write && (is_table || !walk.is_writable()) {
            return None;
        }
        walk.mark_used(space, write);
        Some(walk.gpa())
    }

    /// Makes the CPU forget what it knows of an address.
    pub fn invalidate(&mut self, cpu: &mut impl Cpu, address: u64) {
        cpu.invlpg(address);
    }

    /// Makes the CPU forget what it knows of all addresses.
    pub fn flush(&mut self, cpu: &mut impl Cpu) {
        cpu.load_cr3(self.kernel_cr3);
        self.lists.flushed();
        self.weakened = false;
        self.flush_needed = false;
    }

    /// Whether [`Mmu::flush`] is to be called before the guest goes on. Says so once.
    pub const fn pending_flush(&mut self) -> bool {
        core::mem::replace(&mut self.flush_needed, false)
    }
}
