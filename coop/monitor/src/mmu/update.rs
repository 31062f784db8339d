//! Changes of the guest's page tables: by hypercalls (Xen public headers, `xen.h`: `mmu_update`, `update_va_mapping`, `mmuext_op`), and
//! by stores that were carried out for it.

use core::sync::atomic::Ordering::Relaxed;

use bitflags::bitflags;

use super::Cpu;
use super::Mmu;
use super::entry::ENTRY_SIZE;
use super::entry::Entry;
use super::entry::Flags;
use super::error::MmuError;
use super::space::Space;
use super::tables::is_slot;
use super::walk::ROOT_LEVEL;
use super::walk::Walk;
use crate::frame::ENTRIES;
use crate::layout::PAGE;

bitflags! {
    /// Flags of `update_va_mapping`. Which CPUs they are for does not matter with one.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct UpdateFlags: u64 {
        /// UVMF_TLB_FLUSH.
        const FLUSH = 1 << 0;
        /// UVMF_INVLPG.
        const INVALIDATE = 1 << 1;
    }
}

/// What an update is, in the lowest bits of its pointer.
const COMMAND: u64 = 3;
/// MMU_NORMAL_PT_UPDATE.
const NORMAL: u64 = 0;
/// MMU_MACHPHYS_UPDATE.
const MACHINE_TO_PHYSICAL: u64 = 1;
/// MMU_PT_UPDATE_PRESERVE_AD.
const PRESERVE: u64 = 2;

/// What an entry has by which the guest can write to a page without a fault.
const WRITES: Flags = Flags::PRESENT.union(Flags::ACCESSED).union(Flags::WRITABLE).union(Flags::DIRTY);

/// How many higher tables a declaration looks through for tables that it declares as well. A process has far fewer.
const MOST_DECLARED: u32 = 64;

impl Mmu {
    /// One entry of a `mmu_update`.
    ///
    /// # Errors
    /// [`MmuError`]: nothing was changed.
    pub fn mmu_update(
        &mut self,
        space: &mut Space<'_>,
        _cpu: &mut impl Cpu,
        pointer: u64,
        value: u64,
    ) -> Result<(), MmuError> {
        let gpa = pointer & !COMMAND;
        let preserved = match pointer & COMMAND {
            NORMAL => Flags::empty(),
            PRESERVE => Flags::ACCESSED | Flags::DIRTY,
            // Both numbers of a frame are the same, and stay it.
            MACHINE_TO_PHYSICAL => return Ok(()),
            command => return Err(MmuError::Command(command)),
        };
        if !gpa.is_multiple_of(ENTRY_SIZE) {
            return Err(MmuError::Misaligned(gpa));
        }
        let word = space.guest_word(gpa).ok_or(MmuError::NoMemory(gpa))?;
        let before = Entry(word.load(Relaxed));
        let now = Entry(value | before.only(preserved).bits());
        word.store(now.0, Relaxed);
        self.changed(space, gpa, before, now);
        Ok(())
    }

    /// `update_va_mapping`.
    ///
    /// # Errors
    /// [`MmuError`]: nothing was changed.
    pub fn update_va_mapping(
        &mut self,
        space: &mut Space<'_>,
        cpu: &mut impl Cpu,
        address: u64,
        value: u64,
        flags: u64,
    ) -> Result<(), MmuError> {
        let (gpa, before) =
            Walk::leaf_address(space, self.guest_root, address).map_err(|_| MmuError::NotMapped(address))?;
        space.guest_word(gpa).ok_or(MmuError::NoMemory(gpa))?.store(value, Relaxed);
        declare_one(space, gpa / PAGE, 1);
        self.changed(space, gpa, before, Entry(value));
        let flags = UpdateFlags::from_bits_truncate(flags);
        if flags.contains(UpdateFlags::FLUSH) {
            self.flush(cpu);
        } else if flags.contains(UpdateFlags::INVALIDATE) {
            self.invalidate(cpu, address);
        }
        Ok(())
    }

    /// Brings the shadows up to date with a change of the guest's memory from `gpa` on.
    pub fn table_stored(&mut self, space: &mut Space<'_>, _cpu: &mut impl Cpu, gpa: u64, bytes: u64) {
        let end = gpa.saturating_add(bytes);
        let mut gpa = gpa - gpa % ENTRY_SIZE;
        while gpa < end {
            let Some(now) = space.guest_word(gpa).map(|word| Entry(word.load(Relaxed))) else { return };
            self.changed(space, gpa, now, now);
            gpa += ENTRY_SIZE;
        }
    }

    /// MMUEXT_PIN_L1_TABLE to MMUEXT_PIN_L4_TABLE: the frame is a page table of this level. Its shadow is made when it is used.
    ///
    /// # Errors
    /// [`MmuError`]: it cannot be.
    pub fn pin(&mut self, space: &mut Space<'_>, _cpu: &mut impl Cpu, level: u8, frame: u64) -> Result<(), MmuError> {
        if !(1..=ROOT_LEVEL).contains(&level) {
            return Err(MmuError::Level(level));
        }
        let record = space.frame(frame).ok_or(MmuError::NoMemory(frame.wrapping_mul(PAGE)))?;
        if let Some(place) = record.shadow.place().filter(|place| space.kind(*place).level() != level) {
            if self.is_in_use(place) {
                return Err(MmuError::InUse(frame));
            }
            self.drop_table(space, place);
        }
        declare(space, frame, level);
        Ok(())
    }

    /// MMUEXT_UNPIN_TABLE: the frame is no page table any more, unless it is a root in use.
    ///
    /// # Errors
    /// [`MmuError`]: there is no such frame.
    pub fn unpin(&mut self, space: &mut Space<'_>, _cpu: &mut impl Cpu, frame: u64) -> Result<(), MmuError> {
        let record = space.frame(frame).ok_or(MmuError::NoMemory(frame.wrapping_mul(PAGE)))?;
        let shadow = record.shadow.place();
        if shadow.is_some_and(|place| self.is_in_use(place)) {
            return Ok(());
        }
        if let Some(place) = shadow {
            self.drop_table(space, place);
        }
        space.edit_frame(frame, |frame| frame.uses = frame.uses.with_level(0));
        Ok(())
    }

    /// Brings the shadows up to date with an entry of the guest's. `before` is what it has been, or anything if that is not known.
    fn changed(&mut self, space: &mut Space<'_>, gpa: u64, before: Entry, now: Entry) {
        let table = gpa / PAGE;
        let Some(record) = space.frame(table) else { return };
        let Ok(index) = usize::try_from(gpa % PAGE / ENTRY_SIZE) else { return };
        let level = record.uses.level();
        if level > 1 && now.leads_to_table() && !(level == ROOT_LEVEL && is_slot(index)) {
            declare_one(space, now.frame(), level - 1);
        }
        if level == 1 && now.has(WRITES) {
            // The guest wants to write to a frame: it is no longer a table, unless it is a root in use.
            let target = space.frame(now.frame()).and_then(|frame| frame.shadow.place());
            if let Some(target) = target.filter(|place| !self.is_in_use(*place)) {
                self.drop_table(space, target);
                if now.frame() == table {
                    return;
                }
            }
        }
        let Some(place) = record.shadow.place() else { return };
        if level == 1 {
            self.set_leaf(space, place, index, now, before.frame());
        } else {
            self.set_link(space, place, index, now);
        }
    }
}

/// Takes a frame for a page table, and what its entries lead to as well: Xen does not let a guest write to any of them. If the guest
/// still can, this waits for the table's use.
pub(super) fn declare(space: &mut Space<'_>, frame: u64, level: u8) {
    if space.frame(frame).is_none_or(|frame| frame.uses.writers() > 0) {
        return;
    }
    space.edit_frame(frame, |frame| frame.uses = frame.uses.with_level(level));
    let mut budget = MOST_DECLARED;
    declare_below(space, frame, level, &mut budget);
}

/// Takes a frame for a page table, if it is nothing else. Tells whether that is new.
fn declare_one(space: &mut Space<'_>, frame: u64, level: u8) -> bool {
    let is_new = space.frame(frame).is_some_and(|frame| frame.uses.level() == 0 && frame.uses.writers() == 0);
    if is_new {
        space.edit_frame(frame, |frame| frame.uses = frame.uses.with_level(level));
    }
    is_new
}

/// Takes all frames for page tables that the entries of this one lead to, and so on down, as far as `budget` lasts.
fn declare_below(space: &mut Space<'_>, table: u64, level: u8, budget: &mut u32) {
    if level <= 1 || *budget == 0 {
        return;
    }
    *budget -= 1;
    for index in (0..ENTRIES).filter(|index| level != ROOT_LEVEL || !is_slot(*index)) {
        let entry = space.guest_entry(table, index);
        if entry.leads_to_table() && declare_one(space, entry.frame(), level - 1) {
            declare_below(space, entry.frame(), level - 1, budget);
        }
    }
}
