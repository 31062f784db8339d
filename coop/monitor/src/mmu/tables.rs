//! Shadow tables: how they are made, filled, linked, emptied. Everything that changes an entry of a shadow is here, and keeps the
//! counts: writers of a frame, references to a table.

use core::sync::atomic::Ordering::Relaxed;

use super::Mmu;
use super::entry::Entry;
use super::entry::Flags;
use super::error::MmuError;
use super::space::SHARED_INFO;
use super::space::Space;
use crate::frame::ENTRIES;
use crate::frame::Kind;
use crate::frame::Link;
use crate::frame::Shadow;
use crate::layout::FIRST_SLOT;
use crate::layout::PAGE;
use crate::layout::SLOTS;

/// Whether an entry of a root is the monitor's.
pub(super) const fn is_slot(index: usize) -> bool {
    index >= FIRST_SLOT && index < FIRST_SLOT + SLOTS
}

/// What the shadow has for an entry of a level 1 table. The CPU never sees the guest's memory types, and never sets a bit by itself:
/// until an access has set the guest's accessed and dirty bits, it faults. Programs and kernel run in ring 3 both.
fn leaf(space: &Space<'_>, guest: Entry) -> Entry {
    if !guest.has(Flags::PRESENT.union(Flags::ACCESSED)) {
        return Entry::NONE;
    }
    let frame = guest.frame();
    let (host, is_table) = match space.frame(frame) {
        Some(record) => (record.host, !record.shadow.is_none()),
        None if frame == SHARED_INFO => (space.config().shared_info, false),
        None => return Entry::NONE,
    };
    let mut flags = Flags::PRESENT | Flags::USER | Flags::ACCESSED | guest.only(Flags::NO_EXECUTE);
    if guest.has(Flags::WRITABLE.union(Flags::DIRTY)) && !is_table {
        flags |= Flags::WRITABLE | Flags::DIRTY;
    }
    Entry::shadow(host, frame, flags)
}

/// The shadow of the table that an entry of the guest's leads to, if that is ready to be linked. An entry without its accessed bit is
/// not: linking waits for the access.
fn table_behind(space: &Space<'_>, guest: Entry, kind: Kind) -> Option<u32> {
    let is_used = guest.leads_to_table() && guest.has(Flags::ACCESSED);
    if is_used { space.shadow_of(guest.frame(), kind) } else { None }
}

impl Mmu {
    /// Whether a shadow is a root in use.
    pub(super) fn is_in_use(&self, place: u32) -> bool {
        [self.kernel, self.user].contains(&Link::to(place))
    }

    /// Brings an entry of a level 1 shadow to what the guest's is. `before` is the frame that the guest's entry named before, if the
    /// caller knows.
    #[inline(always)]
    pub(super) fn set_leaf(&mut self, space: &mut Space<'_>, place: u32, index: usize, guest: Entry, before: u64) {
        let Some(entry) = space.table(place).and_then(|table| table.get(index)) else { return };
        let old = Entry(entry.load(Relaxed));
        let new = leaf(space, guest);
        if old == new {
            return;
        }
        entry.store(new.0, Relaxed);
        if old.has(Flags::WRITABLE) {
            self.lose_writer(space, old, before);
        }
        if new.has(Flags::WRITABLE) {
            add_writer(space, guest.frame());
        }
        count_present(space, place, old, new);
    }

    /// Counts a writable entry as gone. A CPU may remember it until CR3 is loaded.
    fn lose_writer(&mut self, space: &mut Space<'_>, entry: Entry, guess: u64) {
        self.weakened = true;
        if let Some(frame) = space.mapped_frame_mut(entry, guess) {
            frame.uses = frame.uses.without_writer();
        }
    }

    /// Brings an entry of a higher shadow to what the guest's is, as far as the table that it leads to has a shadow.
    pub(super) fn set_link(&mut self, space: &mut Space<'_>, place: u32, index: usize, guest: Entry) {
        let kind = space.kind(place);
        let Some(below) = kind.below() else { return };
        if kind.is_root() && is_slot(index) {
            return;
        }
        let child = table_behind(space, guest, below);
        let new = child.map_or(Entry::NONE, |child| {
            let flags = Flags::PRESENT | Flags::USER | Flags::ACCESSED;
            let flags = flags | guest.only(Flags::WRITABLE | Flags::NO_EXECUTE);
            Entry::shadow(space.shadow(child).host, child.into(), flags)
        });
        let old = space.entry(place, index);
        if old == new {
            return;
        }
        space.set_entry(place, index, new);
        if let Some(child) = child {
            self.refer(space, child);
        }
        if old.has(Flags::PRESENT) {
            self.release_behind(space, old);
        }
        count_present(space, place, old, new);
    }

    /// Counts a reference to a table.
    pub(super) fn refer(&mut self, space: &mut Space<'_>, place: u32) {
        space.edit_shadow(place, |shadow| shadow.references += 1);
    }

    /// Counts a reference to a table as gone. One that is only waiting for that is free then.
    pub(super) fn release(&mut self, space: &mut Space<'_>, place: u32) {
        space.edit_shadow(place, |shadow| shadow.references = shadow.references.saturating_sub(1));
        if space.kind(place) == Kind::Orphan && space.shadow(place).references == 0 {
            self.lists.free(space, place);
        }
    }

    /// Counts the reference of an entry as gone.
    fn release_behind(&mut self, space: &mut Space<'_>, entry: Entry) {
        if let Ok(place) = u32::try_from(entry.tag()) {
            self.release(space, place);
        }
    }

    /// A shadow of the table in `frame`, the one that there is or a new one, with nothing in it but a root's entries. There has to be
    /// a free table, and nobody may be able to write to the frame: see [`Mmu::prepare`].
    pub(super) fn make(&mut self, space: &mut Space<'_>, frame: u64, kind: Kind) -> Result<u32, MmuError> {
        let record = space.frame(frame).ok_or(MmuError::NoMemory(frame.wrapping_mul(PAGE)))?;
        if let Some(place) = record.shadow.place() {
            if space.kind(place) == kind {
                return Ok(place);
            }
            if self.is_in_use(place) {
                return Err(MmuError::InUse(frame));
            }
            self.drop_table(space, place);
        }
        let guest = u32::try_from(frame).map_err(|_| MmuError::NoMemory(frame.wrapping_mul(PAGE)))?;
        let place = self.lists.take(space).ok_or(MmuError::PoolEmpty)?;
        space.edit_shadow(place, |shadow| {
            *shadow = Shadow { host: shadow.host, guest, kind: kind as u16, ..Shadow::default() };
        });
        space.edit_frame(frame, |frame| {
            frame.shadow = Link::to(place);
            frame.uses = frame.uses.with_level(kind.level());
        });
        // A CPU that remembers to be allowed to write to the frame would change the table behind our back.
        self.flush_needed |= self.weakened;
        if kind.is_root() {
            self.fill_root(space, place, kind);
        }
        Ok(place)
    }

    /// Fills a new root: with the monitor's entries, and with what others have used already, which is most of a guest's kernel.
    fn fill_root(&mut self, space: &mut Space<'_>, place: u32, kind: Kind) {
        let slots = if kind == Kind::KernelRoot { space.config().kernel_slots } else { space.config().user_slots };
        for (index, slot) in (FIRST_SLOT..).zip(slots) {
            space.set_entry(place, index, Entry(slot));
        }
        let guest = space.shadow(place).guest.into();
        for index in 0..ENTRIES {
            let entry = space.guest_entry(guest, index);
            if entry.has(Flags::PRESENT) {
                self.set_link(space, place, index, entry);
            }
        }
    }

    /// Fills a new level 1 shadow.
    pub(super) fn fill(space: &mut Space<'_>, place: u32) {
        let guest = space.guest_table(space.shadow(place).guest.into());
        let (Some(guest), Some(table)) = (guest, space.table(place)) else { return };
        let mut present = 0;
        for (guest, entry) in guest.iter().zip(table) {
            let guest = Entry(guest.load(Relaxed));
            let new = leaf(space, guest);
            if new == Entry::NONE {
                continue;
            }
            entry.store(new.0, Relaxed);
            present += 1;
            if new.has(Flags::WRITABLE) {
                add_writer(space, guest.frame());
            }
        }
        space.edit_shadow(place, |shadow| shadow.present = present);
    }

    /// Gives up the shadow of a table, which must not be a root in use. While entries lead to it it stays, empty.
    pub(super) fn drop_table(&mut self, space: &mut Space<'_>, place: u32) {
        self.empty(space, place);
        let shadow = space.shadow(place);
        if space.kind(place).is_root() {
            (FIRST_SLOT..FIRST_SLOT + SLOTS).for_each(|index| space.set_entry(place, index, Entry::NONE));
        }
        space.edit_frame(shadow.guest.into(), |frame| frame.shadow = Link::NONE);
        if shadow.references == 0 {
            self.lists.free(space, place);
        } else {
            space.edit_shadow(place, |shadow| shadow.kind = Kind::Orphan as u16);
        }
    }

    /// Takes all entries out of a table, except the monitor's.
    pub(super) fn empty(&mut self, space: &mut Space<'_>, place: u32) {
        let kind = space.kind(place);
        let shadow = space.shadow(place);
        let guest = space.guest_table(shadow.guest.into());
        let (Some(guest), Some(table)) = (guest, space.table(place)) else { return };
        let mut left = shadow.present;
        for (index, (guest, entry)) in guest.iter().zip(table).enumerate() {
            if left == 0 {
                break;
            }
            let old = Entry(entry.load(Relaxed));
            if !old.has(Flags::PRESENT) || kind.is_root() && is_slot(index) {
                continue;
            }
            left -= 1;
            entry.store(Entry::NONE.0, Relaxed);
            if kind != Kind::L1 {
                self.release_behind(space, old);
            } else if old.has(Flags::WRITABLE) {
                self.lose_writer(space, old, Entry(guest.load(Relaxed)).frame());
            }
        }
        space.edit_shadow(place, |shadow| shadow.present = 0);
    }
}

/// Counts an entry by which the guest can write to a frame, which is no table then.
fn add_writer(space: &mut Space<'_>, frame: u64) {
    space.edit_frame(frame, |frame| frame.uses = frame.uses.with_writer().with_level(0));
}

/// Keeps a table's count of entries that are present.
fn count_present(space: &mut Space<'_>, place: u32, old: Entry, new: Entry) {
    match (old.has(Flags::PRESENT), new.has(Flags::PRESENT)) {
        (false, true) => space.edit_shadow(place, |shadow| shadow.present += 1),
        (true, false) => space.edit_shadow(place, |shadow| shadow.present = shadow.present.saturating_sub(1)),
        _ => {}
    }
}
