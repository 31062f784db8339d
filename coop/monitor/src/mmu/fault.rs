//! Page faults: those that the guest is not to see are answered here.

use super::Cpu;
use super::Mmu;
use super::entry::ErrorCode;
use super::entry::index;
use super::error::MmuError;
use super::space::SHARED_INFO;
use super::space::Space;
use super::walk::Missing;
use super::walk::Walk;
use crate::frame::Kind;

/// What a page fault is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The shadows were behind; the instruction can be tried again.
    Resume,
    /// The guest's kernel stores to a page table of its own, at this guest-physical address. Carry out the store, then tell
    /// [`Mmu::table_stored`].
    TableStore {
        /// The address.
        gpa: u64,
    },
    /// The guest accesses what is no memory.
    Device {
        /// The guest-physical address.
        gpa: u64,
    },
    /// The guest's own page fault.
    Guest {
        /// Its error code.
        error_code: u64,
    },
}

impl Mmu {
    /// Answers a page fault at `address` that has happened in the guest.
    pub fn fault(
        &mut self,
        space: &mut Space<'_>,
        cpu: &mut impl Cpu,
        address: u64,
        error_code: u64,
        kernel_mode: bool,
    ) -> Fault {
        let access = ErrorCode::from_bits_truncate(error_code);
        // Both modes are in ring 3, which the guest need not know of its kernel.
        let told = if kernel_mode { ErrorCode::empty() } else { ErrorCode::USER } | ErrorCode::WRITE | ErrorCode::FETCH;
        let guests = |cause: ErrorCode| Fault::Guest { error_code: (access & told | cause).bits() };
        let root = if kernel_mode { self.kernel } else { self.user };
        let Some(root) = root.place() else { return guests(ErrorCode::empty()) };
        let walk = match Walk::new(space, space.shadow(root).guest.into(), address) {
            Ok(walk) => walk,
            Err(Missing::NotPresent) => return guests(ErrorCode::empty()),
            Err(Missing::Reserved) => return guests(ErrorCode::PRESENT | ErrorCode::RESERVED),
        };
        let write = access.contains(ErrorCode::WRITE);
        let target = walk.leaf().frame();
        if access.contains(ErrorCode::FETCH) && !walk.is_executable() {
            return guests(ErrorCode::PRESENT);
        }
        if write && !walk.is_writable() {
            let is_table = space.frame(target).is_some_and(|frame| frame.uses.level() != 0);
            return if kernel_mode && is_table {
                Fault::TableStore { gpa: walk.gpa() }
            } else {
                guests(ErrorCode::PRESENT)
            };
        }
        walk.mark_used(space, write);
        if !space.is_ram(target) && target != SHARED_INFO {
            return Fault::Device { gpa: walk.gpa() };
        }
        if write && let Some(table) = space.frame(target).and_then(|frame| frame.shadow.place()) {
            // The guest may write to what has been a table. Not if the walk needs it: then there would be no end.
            if self.is_in_use(table) || walk.tables.contains(&target) {
                return if kernel_mode { Fault::TableStore { gpa: walk.gpa() } } else { guests(ErrorCode::PRESENT) };
            }
            self.drop_table(space, table);
        }
        if walk.has_loop() || self.map(space, cpu, root, &walk, address).is_err() {
            // Tables that no shadows can be made of. Xen does not let a guest have such.
            return guests(ErrorCode::PRESENT | ErrorCode::RESERVED);
        }
        Fault::Resume
    }

    /// Makes what the shadows lack for a walk of four different tables, whose entries have their accessed bits.
    fn map(
        &mut self,
        space: &mut Space<'_>,
        cpu: &mut impl Cpu,
        root: u32,
        walk: &Walk,
        address: u64,
    ) -> Result<(), MmuError> {
        let [fourth, third, second, first] = walk.tables;
        self.prepare(space, cpu, &[(third, Kind::L3), (second, Kind::L2), (first, Kind::L1)])?;
        let is_new = space.shadow_of(first, Kind::L1).is_none();
        let third_shadow = self.make(space, third, Kind::L3)?;
        let second_shadow = self.make(space, second, Kind::L2)?;
        let first_shadow = self.make(space, first, Kind::L1)?;
        self.follow(space, root, fourth, address, 4);
        self.follow(space, third_shadow, third, address, 3);
        self.follow(space, second_shadow, second, address, 2);
        if is_new {
            Self::fill(space, first_shadow);
        } else {
            let index = index(address, 1);
            self.set_leaf(space, first_shadow, index, space.guest_entry(first, index), walk.leaf().frame());
        }
        Ok(())
    }

    /// Links the entry for an address in the shadow of a table of level 2 or higher.
    fn follow(&mut self, space: &mut Space<'_>, place: u32, table: u64, address: u64, level: u8) {
        let index = index(address, level);
        self.set_link(space, place, index, space.guest_entry(table, index));
    }
}
