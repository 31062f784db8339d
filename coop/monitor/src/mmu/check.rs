//! Whether the shadows are what they have to be, whatever the guest did: they lead to the guest's memory and to nothing else. Reads
//! everything that CPUs can read, and changes nothing.

use core::sync::atomic::Ordering::Relaxed;

use super::Mmu;
use super::entry::ENTRY_SIZE;
use super::entry::Entry;
use super::entry::Flags;
use super::roots;
use super::space::SHARED_INFO;
use super::space::Space;
use super::tables::is_slot;
use crate::config::Config;
use crate::frame::ENTRIES;
use crate::frame::Frame;
use crate::frame::Kind;
use crate::frame::Link;
use crate::frame::Shadow;
use crate::layout;

/// Sums over all tables.
#[derive(Default)]
struct Sums {
    /// Entries that lead to tables, and roots in use.
    links: u64,
    /// References that the tables' records tell.
    references: u64,
    /// Entries by which the guest can write to its memory.
    writable: u64,
}

/// Address of an entry of a shadow table.
fn entry_address(place: u32, index: usize) -> u64 {
    layout::POOL + u64::from(place) * layout::PAGE + index as u64 * ENTRY_SIZE
}

/// Address of a shadow table's record.
fn record_address(place: u32) -> u64 {
    layout::SHADOWS + u64::from(place) * size_of::<Shadow>() as u64
}

impl Mmu {
    /// Checks everything. For debugging: it takes long.
    ///
    /// # Errors
    /// Address of an entry or record that is wrong.
    pub fn check(&self, space: &Space<'_>) -> Result<(), u64> {
        let mut sums = Sums::default();
        for place in 0..space.table_count() {
            self.check_table(space, place, &mut sums)?;
        }
        let roots = [(self.kernel, self.kernel_cr3, Kind::KernelRoot), (self.user, self.user_cr3, Kind::UserRoot)];
        for (which, (root, cr3, kind)) in roots.into_iter().enumerate() {
            check_root(space, which, root, cr3, kind)?;
            sums.links += u64::from(!root.is_none());
        }
        if sums.references != sums.links {
            return Err(layout::SHADOWS);
        }
        let writers = check_frames(space)?;
        if sums.writable == writers { Ok(()) } else { Err(layout::FRAMES) }
    }

    fn check_table(&self, space: &Space<'_>, place: u32, sums: &mut Sums) -> Result<(), u64> {
        let shadow = space.shadow(place);
        let kind = Kind::from_number(shadow.kind).ok_or(record_address(place))?;
        let is_live = kind.level() != 0;
        let owner = space.frame(shadow.guest.into());
        if is_live && owner.is_none_or(|frame| frame.shadow != Link::to(place) || frame.uses.level() != kind.level()) {
            return Err(record_address(place));
        }
        let mut present = 0;
        for index in 0..ENTRIES {
            let entry = space.entry(place, index);
            if kind.is_root() && is_slot(index) {
                if entry.0 != slot(space.config(), kind, index) {
                    return Err(entry_address(place, index));
                }
            } else if entry != Entry::NONE {
                present += 1;
                let is_right = match kind.below() {
                    Some(below) => is_link(space, entry, below),
                    None => kind == Kind::L1 && is_leaf(space, entry),
                };
                if !is_right {
                    return Err(entry_address(place, index));
                }
                sums.links += u64::from(kind != Kind::L1);
                sums.writable += u64::from(kind == Kind::L1 && is_writable_memory(space, entry));
            }
        }
        sums.references += u64::from(shadow.references);
        if present == shadow.present { Ok(()) } else { Err(record_address(place)) }
    }
}

/// Checks a root, and the way from CR3 to it.
fn check_root(space: &Space<'_>, which: usize, root: Link, cr3: u64, kind: Kind) -> Result<(), u64> {
    if let Some(place) = root.place()
        && (space.kind(place) != kind || space.shadow(place).references == 0)
    {
        return Err(record_address(place));
    }
    if cr3 != roots::cr3(space, which, root) {
        return Err(layout::STATE);
    }
    let expected = root.place().map_or(Entry::NONE, |place| roots::top_entry(space.shadow(place).host));
    for (index, entry) in space.top_table(which).into_iter().flatten().enumerate() {
        let expected = if [0, ENTRIES - 1].contains(&index) { expected } else { Entry::NONE };
        if entry.load(Relaxed) != expected.0 {
            return Err(layout::TOP_TABLES + which as u64 * layout::PAGE + index as u64 * ENTRY_SIZE);
        }
    }
    Ok(())
}

/// What a root has in a slot of the monitor's.
fn slot(config: &Config, kind: Kind, index: usize) -> u64 {
    let slots = if kind == Kind::KernelRoot { &config.kernel_slots } else { &config.user_slots };
    slots.get(index - layout::FIRST_SLOT).copied().unwrap_or(0)
}

/// Whether an entry leads to a table of this kind, or to an empty one.
fn is_link(space: &Space<'_>, entry: Entry, below: Kind) -> bool {
    let Ok(place) = u32::try_from(entry.tag()) else { return false };
    let flags = entry.only(Flags::WRITABLE | Flags::NO_EXECUTE) | Flags::PRESENT | Flags::USER | Flags::ACCESSED;
    let child = space.shadow(place);
    place < space.table_count()
        && entry == Entry::shadow(child.host, place.into(), flags)
        && child.references > 0
        && [below, Kind::Orphan].contains(&space.kind(place))
}

/// Whether an entry maps memory of the guest's or `shared_info`, and does not let a page table be written to.
fn is_leaf(space: &Space<'_>, entry: Entry) -> bool {
    let is_writable = entry.has(Flags::WRITABLE);
    let changed = if is_writable { Flags::WRITABLE | Flags::DIRTY } else { Flags::empty() };
    let flags = entry.only(Flags::NO_EXECUTE) | changed | Flags::PRESENT | Flags::USER | Flags::ACCESSED;
    let (frame, host, is_table) = match space.mapped_frame(entry) {
        Some(frame) => {
            let record = space.frame(frame).unwrap_or_default();
            (frame, record.host, !record.shadow.is_none())
        }
        None => (SHARED_INFO, space.config().shared_info, false),
    };
    entry == Entry::shadow(host, frame, flags) && !(is_writable && is_table)
}

/// Whether an entry lets the guest write to memory of its own.
fn is_writable_memory(space: &Space<'_>, entry: Entry) -> bool {
    entry.has(Flags::WRITABLE) && space.mapped_frame(entry).is_some()
}

/// Checks the guest frames' records. Tells how many entries can write to them all.
fn check_frames(space: &Space<'_>) -> Result<u64, u64> {
    let mut writers = 0;
    for number in 0..space.frame_count() {
        let frame = space.frame(number).unwrap_or_default();
        let wrong = layout::FRAMES + number * size_of::<Frame>() as u64;
        writers += u64::from(frame.uses.writers());
        let is_table = frame.shadow.place().is_some_and(|place| u64::from(space.shadow(place).guest) == number);
        if !frame.shadow.is_none() && (!is_table || frame.uses.writers() > 0) {
            return Err(wrong);
        }
        if frame.uses.level() != 0 && frame.uses.writers() > 0 {
            return Err(wrong);
        }
    }
    Ok(writers)
}
