//! All memory that the shadow MMU works on: the guest's, what is known of its frames, the shadow tables. Whatever number comes from
//! the guest goes through here, and is answered by nothing where it names nothing.

use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use covisor_abi::paravirtual;

use super::entry::ENTRY_SIZE;
use super::entry::Entry;
use super::entry::Flags;
use super::entry::TAG_BITS;
use crate::config::Config;
use crate::frame::ENTRIES;
use crate::frame::Frame;
use crate::frame::Kind;
use crate::frame::MOST_SHADOWS;
use crate::frame::Shadow;
use crate::layout;

/// A page table. Atomic, as the CPU reads it whenever it likes.
pub type Table = [AtomicU64; ENTRIES];

/// Guest frame of the `shared_info` page.
pub(super) const SHARED_INFO: u64 = paravirtual::SHARED_INFO / layout::PAGE;

/// The memory.
pub struct Space<'a> {
    /// The guest's memory. Atomic, as devices write to it whenever they like.
    ram: &'a [Table],
    frames: &'a mut [Frame],
    shadows: &'a mut [Shadow],
    pool: &'a [Table],
    top_tables: &'a [Table],
    config: &'a Config,
}

impl fmt::Debug for Space<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Space")
            .field("frames", &self.frames.len())
            .field("shadows", &self.shadows.len())
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl<'a> Space<'a> {
    /// The memory of a guest. `top_tables` are the L5 pages of the kernel's and the user mode's root, where there are such.
    #[must_use]
    pub fn new(
        ram: &'a [Table],
        frames: &'a mut [Frame],
        shadows: &'a mut [Shadow],
        pool: &'a [Table],
        top_tables: &'a [Table],
        config: &'a Config,
    ) -> Self {
        // What has no record is no memory of ours.
        let count = ram.len().min(frames.len());
        let tables = pool.len().min(shadows.len()).min(MOST_SHADOWS);
        let (ram, frames) = (&ram[..count], &mut frames[..count]);
        let (pool, shadows) = (&pool[..tables], &mut shadows[..tables]);
        Self { ram, frames, shadows, pool, top_tables, config }
    }

    /// The memory where [`layout`] says that it is.
    ///
    /// # Safety
    /// The host has mapped all of it: `config.frames` frames of the guest's memory and their records, `config.shadows` tables and
    /// their records, and the L5 pages if `config` has such. All tables were empty and all records' own fields 0 at the guest's
    /// start. For as long as the space is used nobody else uses records and tables, except that CPUs walk the tables.
    #[must_use]
    pub unsafe fn of_monitor(config: &'static Config) -> Space<'static> {
        let frames = usize::try_from(config.frames).unwrap_or(0);
        let shadows = usize::try_from(config.shadows).unwrap_or(0);
        let top_tables = if config.top_tables[0] == 0 { 0 } else { 2 };
        // SAFETY: mapped, as the caller says, for as long as the monitor exists, at addresses that are multiples of the page size.
        // Records are plain numbers. Memory that others change is atomic; no one else refers to the records.
        unsafe {
            Space::new(
                core::slice::from_raw_parts(pointer(layout::RAM), frames),
                core::slice::from_raw_parts_mut(pointer::<Frame>(layout::FRAMES).cast_mut(), frames),
                core::slice::from_raw_parts_mut(pointer::<Shadow>(layout::SHADOWS).cast_mut(), shadows),
                core::slice::from_raw_parts(pointer(layout::POOL), shadows),
                core::slice::from_raw_parts(pointer(layout::TOP_TABLES), top_tables),
                config,
            )
        }
    }

    /// What the host told.
    #[must_use]
    pub fn config(&self) -> &Config {
        self.config
    }

    /// Number of the guest's frames.
    #[must_use]
    pub fn frame_count(&self) -> u64 {
        self.frames.len() as u64
    }

    /// Whether the guest has memory at this frame.
    #[must_use]
    pub fn is_ram(&self, frame: u64) -> bool {
        frame < self.frame_count()
    }

    /// What is known of a guest frame; nothing where the guest has no memory.
    #[must_use]
    pub fn frame(&self, frame: u64) -> Option<Frame> {
        self.frames.get(usize::try_from(frame).ok()?).copied()
    }

    /// Changes what is known of a guest frame.
    pub(super) fn edit_frame(&mut self, frame: u64, edit: impl FnOnce(&mut Frame)) {
        if let Some(frame) = usize::try_from(frame).ok().and_then(|place| self.frames.get_mut(place)) {
            edit(frame);
        }
    }

    /// The entry of the guest's at a guest-physical address.
    #[inline]
    pub(super) fn guest_word(&self, gpa: u64) -> Option<&'a AtomicU64> {
        self.guest_table(gpa / layout::PAGE)?.get(usize::try_from(gpa % layout::PAGE / ENTRY_SIZE).ok()?)
    }

    /// Reads 8 bytes of guest memory, at a guest-physical address that is a multiple of 8.
    #[inline]
    #[must_use]
    pub fn read_word(&self, gpa: u64) -> Option<u64> {
        self.guest_word(gpa).map(|word| word.load(Relaxed))
    }

    /// Writes them.
    #[inline]
    pub fn write_word(&self, gpa: u64, value: u64) -> Option<()> {
        self.guest_word(gpa).map(|word| word.store(value, Relaxed))
    }

    /// Where the guest memory at a guest-physical address that is a multiple of 8 is.
    #[must_use]
    pub fn ram(&self, gpa: u64) -> Option<NonNull<u8>> {
        self.guest_word(gpa).map(|word| NonNull::from(word).cast())
    }

    /// The guest's table in `frame`; none where the guest has no memory.
    #[inline]
    pub(super) fn guest_table(&self, frame: u64) -> Option<&'a Table> {
        self.ram.get(usize::try_from(frame).ok()?)
    }

    /// Reads an entry of the guest's table in `frame`; an empty one where the guest has no memory.
    #[inline]
    pub(super) fn guest_entry(&self, frame: u64, index: usize) -> Entry {
        self.guest_table(frame).map_or(Entry::NONE, |table| entry_in(table, index))
    }

    /// Sets bits in an entry of the guest's table in `frame`.
    pub(super) fn mark(&self, frame: u64, index: usize, flags: Flags) {
        if let Some(entry) = self.guest_table(frame).and_then(|table| table.get(index)) {
            entry.fetch_or(flags.bits(), Relaxed);
        }
    }

    /// Number of the shadow tables.
    pub(super) fn table_count(&self) -> u32 {
        u32::try_from(self.shadows.len()).unwrap_or(0)
    }

    /// What is known of a shadow table.
    pub(super) fn shadow(&self, place: u32) -> Shadow {
        self.shadows.get(place as usize).copied().unwrap_or_default()
    }

    /// Changes what is known of a shadow table.
    pub(super) fn edit_shadow(&mut self, place: u32, edit: impl FnOnce(&mut Shadow)) {
        if let Some(shadow) = self.shadows.get_mut(place as usize) {
            edit(shadow);
        }
    }

    /// A shadow table.
    #[inline]
    pub(super) fn table(&self, place: u32) -> Option<&'a Table> {
        self.pool.get(place as usize)
    }

    /// What a shadow table is.
    pub(super) fn kind(&self, place: u32) -> Kind {
        Kind::from_number(self.shadow(place).kind).unwrap_or(Kind::Free)
    }

    /// The shadow of the page table in a guest frame, if it is of this kind.
    #[inline]
    pub(super) fn shadow_of(&self, frame: u64, kind: Kind) -> Option<u32> {
        self.frame(frame)?.shadow.place().filter(|place| self.shadow(*place).kind == kind as u16)
    }

    /// Reads an entry of a shadow table.
    pub(super) fn entry(&self, place: u32, index: usize) -> Entry {
        self.table(place).map_or(Entry::NONE, |table| entry_in(table, index))
    }

    /// Writes an entry of a shadow table, and nothing else.
    pub(super) fn set_entry(&self, place: u32, index: usize, value: Entry) {
        if let Some(entry) = self.table(place).and_then(|table| table.get(index)) {
            entry.store(value.0, Relaxed);
        }
    }

    /// The L5 page of the kernel's (0) or the user mode's (1) root, where there are such.
    pub(super) fn top_table(&self, which: usize) -> Option<&Table> {
        self.top_tables.get(which)
    }

    /// What is known of the guest frame that an entry of a level 1 shadow maps; nothing for `shared_info`. `guess` is tried first: the
    /// frame that the guest's entry names or named.
    pub(super) fn mapped_frame_mut(&mut self, entry: Entry, guess: u64) -> Option<&mut Frame> {
        let host = entry.frame();
        let guess = usize::try_from(guess).ok()?;
        let place = if self.frames.get(guess).is_some_and(|frame| frame.host == host) {
            guess
        } else {
            usize::try_from(self.mapped_frame(entry)?).ok()?
        };
        self.frames.get_mut(place)
    }

    /// The guest frame that an entry of a level 1 shadow maps; none for `shared_info`. The tag leaves few frames to look at.
    pub(super) fn mapped_frame(&self, entry: Entry) -> Option<u64> {
        let host = entry.frame();
        let mut number = entry.tag();
        while let Some(frame) = self.frame(number) {
            if frame.host == host {
                return Some(number);
            }
            number += 1 << TAG_BITS;
        }
        None
    }
}

/// Reads an entry of a table.
#[inline]
pub(super) fn entry_in(table: &Table, index: usize) -> Entry {
    table.get(index).map_or(Entry::NONE, |entry| Entry(entry.load(Relaxed)))
}

/// A pointer to an address of the monitor's.
fn pointer<T>(address: u64) -> *const T {
    core::ptr::with_exposed_provenance(usize::try_from(address).unwrap_or(0))
}
