//! The roots in use: the guest's kernel's, and its user mode's.

use super::Cpu;
use super::Mmu;
use super::entry::Entry;
use super::entry::Flags;
use super::error::MmuError;
use super::space::Space;
use super::update::declare;
use super::walk::ROOT_LEVEL;
use crate::frame::ENTRIES;
use crate::frame::Kind;
use crate::frame::Link;
use crate::layout::PAGE;

/// Fewest tables that a guest can run with: two roots, and the three tables below them for four addresses that have none in common,
/// which is more than the instructions of any kernel use. One that used still more would fault forever.
pub const FEWEST_TABLES: u32 = 16;

/// Which of the two roots, and which L5 page.
const KERNEL: usize = 0;
const USER: usize = 1;

impl Mmu {
    /// Begins: `first_root` is the guest-physical address of the L4 that the guest's kernel starts with. The caller loads
    /// [`Mmu::kernel_cr3`].
    ///
    /// # Errors
    /// [`MmuError`]: no guest can run like this.
    pub fn start(&mut self, space: &mut Space<'_>, first_root: u64) -> Result<(), MmuError> {
        if space.table_count() < FEWEST_TABLES {
            return Err(MmuError::PoolEmpty);
        }
        for place in (0..space.table_count()).rev() {
            self.lists.free(space, place);
        }
        // No CPU has seen any of them.
        self.lists.flushed();
        let frame = first_root / PAGE;
        let root = self.make(space, frame, Kind::KernelRoot)?;
        self.use_kernel_root(space, root);
        declare(space, frame, ROOT_LEVEL);
        Ok(())
    }

    /// MMUEXT_NEW_BASEPTR: the kernel's root is the L4 in this frame from now on. Loads CR3.
    ///
    /// # Errors
    /// [`MmuError`]: the root is what it was.
    pub fn set_kernel_root(&mut self, space: &mut Space<'_>, cpu: &mut impl Cpu, frame: u64) -> Result<(), MmuError> {
        self.prepare(space, cpu, &[(frame, Kind::KernelRoot)])?;
        let root = self.make(space, frame, Kind::KernelRoot)?;
        self.use_kernel_root(space, root);
        // At once: the monitor itself runs on the root, and the old one may be given up.
        self.flush(cpu);
        Ok(())
    }

    /// MMUEXT_NEW_USER_BASEPTR: the user mode's root is the L4 in this frame from now on; none for 0. The caller loads
    /// [`Mmu::user_cr3`] when it goes to user mode.
    ///
    /// # Errors
    /// [`MmuError`]: the root is what it was.
    pub fn set_user_root(&mut self, space: &mut Space<'_>, cpu: &mut impl Cpu, frame: u64) -> Result<(), MmuError> {
        let new = if frame == 0 {
            Link::NONE
        } else {
            self.prepare(space, cpu, &[(frame, Kind::UserRoot)])?;
            Link::to(self.make(space, frame, Kind::UserRoot)?)
        };
        let old = core::mem::replace(&mut self.user, new);
        self.user_cr3 = self.exchange(space, USER, old, new);
        Ok(())
    }

    fn use_kernel_root(&mut self, space: &mut Space<'_>, root: u32) {
        let old = core::mem::replace(&mut self.kernel, Link::to(root));
        self.guest_root = space.shadow(root).guest.into();
        self.kernel_cr3 = self.exchange(space, KERNEL, old, Link::to(root));
    }

    /// Counts a new root as used and the old one not, and tells CR3 for it.
    fn exchange(&mut self, space: &mut Space<'_>, which: usize, old: Link, new: Link) -> u64 {
        if let Some(new) = new.place() {
            self.refer(space, new);
        }
        if let Some(old) = old.place() {
            self.release(space, old);
        }
        let host = new.place().map(|new| space.shadow(new).host);
        if let Some(top) = space.top_table(which) {
            let entry = host.map_or(Entry::NONE, top_entry);
            top[0].store(entry.0, core::sync::atomic::Ordering::Relaxed);
            top[ENTRIES - 1].store(entry.0, core::sync::atomic::Ordering::Relaxed);
        }
        cr3(space, which, new)
    }
}

/// CR3 for a root; 0 for none.
pub(super) fn cr3(space: &Space<'_>, which: usize, root: Link) -> u64 {
    let top = space.config().top_tables[which];
    root.place().map_or(0, |root| if top == 0 { space.shadow(root).host * PAGE } else { top * PAGE })
}

/// Entry of an L5 page that leads to a root. Both halves of the guest's addresses are in the same L4.
pub(super) const fn top_entry(host: u64) -> Entry {
    Entry::shadow(host, 0, Flags::PRESENT.union(Flags::WRITABLE).union(Flags::USER).union(Flags::ACCESSED))
}
