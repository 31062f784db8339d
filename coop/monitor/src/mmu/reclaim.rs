//! Where free tables come from when there are none.

use super::Cpu;
use super::Mmu;
use super::error::MmuError;
use super::space::Space;
use super::walk::ROOT_LEVEL;
use crate::frame::Kind;

impl Mmu {
    /// Makes ready for [`Mmu::make`] of these tables, none of which needs to exist: there are free tables for all of them, and nobody
    /// can write to their frames. That may cost any table but the roots in use.
    pub(super) fn prepare(
        &mut self,
        space: &mut Space<'_>,
        cpu: &mut impl Cpu,
        tables: &[(u64, Kind)],
    ) -> Result<(), MmuError> {
        let lacking = |space: &Space<'_>| {
            tables.iter().map(|(frame, kind)| u32::from(space.shadow_of(*frame, *kind).is_none())).sum::<u32>()
        };
        if lacking(space) == 0 {
            return Ok(());
        }
        let have_writers = |space: &Space<'_>| {
            tables.iter().any(|(frame, _)| space.frame(*frame).is_some_and(|frame| frame.uses.writers() > 0))
        };
        // A writer may be in a table that is no longer in use. If not, the guest breaks its protocol; then what is made later finds
        // the frame to be a table, and does not let it be written to.
        if have_writers(space) {
            self.reclaim_idle(space);
        }
        if have_writers(space) {
            self.reclaim_all(space);
        }
        if self.lists.have(space, lacking(space)) {
            return Ok(());
        }
        for reclaim in [None, Some(Self::reclaim_idle as fn(&mut Self, &mut Space<'_>)), Some(Self::reclaim_all)] {
            if let Some(reclaim) = reclaim {
                reclaim(self, space);
            }
            self.flush(cpu);
            if self.lists.have(space, lacking(space)) {
                return Ok(());
            }
        }
        Err(MmuError::PoolEmpty)
    }

    /// Gives up all tables that nothing leads to: first roots not in use, then what only those led to, and so on down.
    fn reclaim_idle(&mut self, space: &mut Space<'_>) {
        for level in (1..=ROOT_LEVEL).rev() {
            for place in 0..space.table_count() {
                if space.kind(place).level() == level && space.shadow(place).references == 0 {
                    self.drop_table(space, place);
                }
            }
        }
    }

    /// Gives up all tables but the roots in use, which it empties. All of it comes back by page faults.
    fn reclaim_all(&mut self, space: &mut Space<'_>) {
        for root in [self.kernel, self.user] {
            if let Some(place) = root.place() {
                self.empty(space, place);
            }
        }
        self.reclaim_idle(space);
    }
}
