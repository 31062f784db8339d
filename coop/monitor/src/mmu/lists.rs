//! Shadow tables that are free: those that can be used, and those in quarantine. A CPU may remember for a while where the entries
//! led that led to a table before it was freed, and what was in it (SDM vol. 3, 4.10.3). It forgets that when CR3 is loaded; until
//! then the table stays as it is, empty.

use super::space::Space;
use crate::frame::Kind;
use crate::frame::Link;
use crate::frame::Shadow;

/// The lists.
#[derive(Debug, Default, zerocopy::FromZeros)]
pub(super) struct Lists {
    clean: Link,
    clean_count: u32,
    quarantine: Link,
    quarantine_last: Link,
    quarantine_count: u32,
    /// CR3 was loaded since the last table came into quarantine.
    flushed: bool,
}

impl Lists {
    pub(super) const fn new() -> Self {
        Self {
            clean: Link::NONE,
            clean_count: 0,
            quarantine: Link::NONE,
            quarantine_last: Link::NONE,
            quarantine_count: 0,
            flushed: false,
        }
    }

    /// Puts an empty table into quarantine.
    pub(super) fn free(&mut self, space: &mut Space<'_>, place: u32) {
        self.end_quarantine(space);
        let next = self.quarantine;
        space.edit_shadow(place, |shadow| {
            *shadow = Shadow { host: shadow.host, next, kind: Kind::Free as u16, ..Shadow::default() };
        });
        self.quarantine = Link::to(place);
        if self.quarantine_last.is_none() {
            self.quarantine_last = Link::to(place);
        }
        self.quarantine_count += 1;
    }

    /// Tells that CR3 was loaded.
    pub(super) const fn flushed(&mut self) {
        self.flushed = true;
    }

    /// Whether so many tables can be used.
    pub(super) fn have(&mut self, space: &mut Space<'_>, count: u32) -> bool {
        self.end_quarantine(space);
        self.clean_count >= count
    }

    /// An empty table.
    pub(super) fn take(&mut self, space: &mut Space<'_>) -> Option<u32> {
        self.end_quarantine(space);
        let place = self.clean.place()?;
        self.clean = space.shadow(place).next;
        self.clean_count = self.clean_count.saturating_sub(1);
        Some(place)
    }

    /// If CR3 was loaded, all tables in quarantine can be used.
    fn end_quarantine(&mut self, space: &mut Space<'_>) {
        if !core::mem::take(&mut self.flushed) {
            return;
        }
        if let Some(last) = self.quarantine_last.place() {
            space.edit_shadow(last, |shadow| shadow.next = self.clean);
            self.clean = self.quarantine;
            self.clean_count += self.quarantine_count;
            (self.quarantine, self.quarantine_last, self.quarantine_count) = (Link::NONE, Link::NONE, 0);
        }
    }
}
