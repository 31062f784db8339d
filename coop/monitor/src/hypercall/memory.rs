//! Page tables: `mmu_update`, `mmuext_op`, `update_va_mapping`; what the guest is told of its memory: `memory_op`.

use crate::errno::Errno;
use crate::guest_memory::Near;
use crate::hypercall::Arguments;
use crate::hypercall::Done;
use crate::hypercall::OK;
use crate::hypercall::Outcome;
use crate::layout::M2P;
use crate::machine::Machine;
use crate::mmu::MmuError;
use crate::processor::Processor;

/// What operations of `mmuext_op` cost, in entries of page tables: a root is filled, tables are looked through or emptied.
const TABLE_COST: u64 = 64;
/// What other operations cost.
const OPERATION_COST: u64 = 4;
/// Bit of a count: the call goes on with one that was begun (`xen.h`, `MMU_UPDATE_PREEMPTED`).
const CONTINUED: u64 = 1 << 31;

/// Operations of `mmuext_op`.
mod mmuext {
    pub(super) const PIN_L1: u64 = 0;
    pub(super) const PIN_L4: u64 = 3;
    pub(super) const UNPIN: u64 = 4;
    pub(super) const NEW_BASEPTR: u64 = 5;
    pub(super) const TLB_FLUSH_LOCAL: u64 = 6;
    pub(super) const INVLPG_LOCAL: u64 = 7;
    pub(super) const TLB_FLUSH_MULTI: u64 = 8;
    pub(super) const INVLPG_MULTI: u64 = 9;
    pub(super) const TLB_FLUSH_ALL: u64 = 10;
    pub(super) const INVLPG_ALL: u64 = 11;
    pub(super) const SET_LDT: u64 = 13;
    pub(super) const NEW_USER_BASEPTR: u64 = 15;
}

/// Operations of `memory_op`.
mod memory_op {
    pub(super) const MEMORY_MAP: u64 = 9;
    pub(super) const MACHPHYS_MAPPING: u64 = 12;
}

/// Type of a range of the memory map: RAM.
const E820_RAM: u64 = 1;

impl From<MmuError> for Errno {
    fn from(_: MmuError) -> Self {
        Self::EINVAL
    }
}

/// The number of a list's entries: the count without its flag.
const fn entries(count: u64) -> u64 {
    count & 0xffff_ffff & !CONTINUED
}

impl<P: Processor> Machine<'_, P> {
    /// Adds to the number of entries that were served, which the guest wants to know.
    fn tell_done(&mut self, address: u64, count: u64, served: u64) -> Result<(), Errno> {
        if address == 0 {
            return Ok(());
        }
        let mut before = [0; 4];
        if count & CONTINUED != 0 {
            self.read_bytes(address, &mut before)?;
        }
        #[expect(clippy::cast_possible_truncation, reason = "the count has 32 bits")]
        let done = u32::from_le_bytes(before).wrapping_add(served as u32);
        self.write_bytes(address, &done.to_le_bytes())
    }

    /// `mmu_update(list, count, done, domain)`: changes of page-table entries.
    pub(super) fn mmu_update(&mut self, &[list, count, done, domain, _]: &Arguments) -> Outcome {
        let total = entries(count);
        // One at least, or it would never end.
        let batch = total.min(self.state.budget.max(1));
        self.spend(batch);
        let mut near = Near::NONE;
        for index in 0..batch {
            let [pointer, value] = self.read_near::<2>(&mut near, list.wrapping_add(index * 16))?;
            let updated = self.state.mmu.mmu_update(&mut self.space, &mut self.cpu, pointer, value);
            if let Err(error) = updated {
                self.tell_done(done, count, index)?;
                return Err(error.into());
            }
        }
        self.tell_done(done, count, batch)?;
        Ok(if batch == total {
            Done::Result(0)
        } else {
            Done::Again([list.wrapping_add(batch * 16), (total - batch) | CONTINUED, done, domain, 0])
        })
    }

    /// `update_va_mapping(address, value, flags)`: the entry that maps an address, and what becomes of the TLB.
    pub(super) fn update_va_mapping(&mut self, &[address, value, flags, ..]: &Arguments) -> Outcome {
        self.state.mmu.update_va_mapping(&mut self.space, &mut self.cpu, address, value, flags)?;
        OK
    }

    /// `mmuext_op(list, count, done, domain)`.
    pub(super) fn mmuext_op(&mut self, &[list, count, done, domain, _]: &Arguments) -> Outcome {
        let total = entries(count);
        let mut near = Near::NONE;
        let mut batch = 0;
        while batch < total && (batch == 0 || self.state.budget != 0) {
            let [operation, first, second] = self.read_near::<3>(&mut near, list.wrapping_add(batch * 24))?;
            if let Err(error) = self.mmuext(operation & 0xffff_ffff, first, second) {
                self.tell_done(done, count, batch)?;
                return Err(error);
            }
            batch += 1;
        }
        self.tell_done(done, count, batch)?;
        Ok(if batch == total {
            Done::Result(0)
        } else {
            Done::Again([list.wrapping_add(batch * 24), (total - batch) | CONTINUED, done, domain, 0])
        })
    }

    fn mmuext(&mut self, operation: u64, first: u64, second: u64) -> Result<(), Errno> {
        self.spend(match operation {
            mmuext::PIN_L1..=mmuext::UNPIN => TABLE_COST,
            _ => OPERATION_COST,
        });
        let Self { state, space, cpu, .. } = self;
        let mmu = &mut state.mmu;
        match operation {
            #[expect(clippy::cast_possible_truncation, reason = "1 to 4")]
            mmuext::PIN_L1..=mmuext::PIN_L4 => mmu.pin(space, cpu, operation as u8 + 1, first)?,
            mmuext::UNPIN => mmu.unpin(space, cpu, first)?,
            mmuext::NEW_BASEPTR => {
                mmu.set_kernel_root(space, cpu, first)?;
                self.roots_changed();
            }
            mmuext::NEW_USER_BASEPTR => {
                mmu.set_user_root(space, cpu, first)?;
                self.roots_changed();
            }
            // There is one vCPU: what is for all is for this one.
            mmuext::TLB_FLUSH_LOCAL | mmuext::TLB_FLUSH_MULTI | mmuext::TLB_FLUSH_ALL => mmu.flush(cpu),
            mmuext::INVLPG_LOCAL | mmuext::INVLPG_MULTI | mmuext::INVLPG_ALL => mmu.invalidate(cpu, first),
            mmuext::SET_LDT => self.set_ldt(first, second)?,
            _ => return Err(Errno::ENOSYS),
        }
        Ok(())
    }

    /// `memory_op(operation, argument)`.
    pub(super) fn memory_op(&mut self, &[operation, argument, ..]: &Arguments) -> Outcome {
        match operation {
            memory_op::MACHPHYS_MAPPING => {
                let last = self.config.frames.saturating_sub(1);
                self.write_words(argument, &[M2P, M2P + self.config.frames * 8, last])?;
            }
            memory_op::MEMORY_MAP => {
                let [room, buffer] = self.read_words::<2>(argument)?;
                if room & 0xffff_ffff == 0 {
                    return Err(Errno::EINVAL);
                }
                let mut entry = [0; 20];
                entry[8..16].copy_from_slice(&(self.config.frames << 12).to_le_bytes());
                entry[16..].copy_from_slice(&E820_RAM.to_le_bytes()[..4]);
                self.write_bytes(buffer, &entry)?;
                self.write_bytes(argument, &1_u32.to_le_bytes())?;
            }
            _ => return Err(Errno::ENOSYS),
        }
        OK
    }
}
