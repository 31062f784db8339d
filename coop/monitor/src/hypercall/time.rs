//! `vcpu_op` and `sched_op`: the vCPU's records, its timer, its rest and its end.

use core::ptr::NonNull;

use covisor_abi::KillReason;

use crate::area::ExitKind;
use crate::area::ExitRecord;
use crate::errno::Errno;
use crate::event::VIRQ_TIMER;
use crate::hypercall::Arguments;
use crate::hypercall::Done;
use crate::hypercall::OK;
use crate::hypercall::Outcome;
use crate::layout::PAGE;
use crate::machine::Machine;
use crate::processor::Processor;
use crate::shared_info::VCPU_INFO_SIZE;
use crate::shared_info::VcpuInfo;

/// Operations of `vcpu_op` (`vcpu.h`).
mod vcpu_op {
    pub(super) const IS_UP: u64 = 3;
    pub(super) const REGISTER_RUNSTATE: u64 = 5;
    pub(super) const STOP_PERIODIC_TIMER: u64 = 7;
    pub(super) const SET_SINGLESHOT_TIMER: u64 = 8;
    pub(super) const STOP_SINGLESHOT_TIMER: u64 = 9;
    pub(super) const REGISTER_VCPU_INFO: u64 = 10;
    pub(super) const DOWN: u64 = 2;
    /// Flag of `set_singleshot_timer`: a time that has passed is an error.
    pub(super) const FUTURE: u64 = 1;
}

/// Operations of `sched_op` (`sched.h`).
mod sched_op {
    pub(super) const YIELD: u64 = 0;
    pub(super) const BLOCK: u64 = 1;
    pub(super) const SHUTDOWN: u64 = 2;
}

/// Reasons of a shutdown.
mod shutdown {
    pub(super) const POWER_OFF: u32 = 0;
    pub(super) const REBOOT: u32 = 1;
}

/// `vcpu_runstate_info`: states, and words of the record.
mod run_state {
    pub(super) const RUNNING: u64 = 0;
    pub(super) const BLOCKED: u64 = 2;
}

impl<P: Processor> Machine<'_, P> {
    /// `vcpu_op(operation, vcpu, argument)`.
    pub(super) fn vcpu_op(&mut self, &[operation, vcpu, argument, ..]: &Arguments) -> Outcome {
        if vcpu != 0 {
            return Err(Errno::ENOENT);
        }
        match operation {
            vcpu_op::IS_UP => return Ok(Done::Result(1)),
            vcpu_op::REGISTER_RUNSTATE => {
                let [address] = self.read_words::<1>(argument)?;
                self.state.run_state.address = address;
                self.state.run_state.since = self.now();
                self.tell_run_state(run_state::RUNNING);
            }
            vcpu_op::STOP_PERIODIC_TIMER => {}
            vcpu_op::SET_SINGLESHOT_TIMER => {
                let [at, flags] = self.read_words::<2>(argument)?;
                return self.set_timer(at, flags & vcpu_op::FUTURE != 0);
            }
            vcpu_op::STOP_SINGLESHOT_TIMER => {
                self.exit_to_host(ExitKind::SetTimer, 0);
                return Ok(Done::Host(0));
            }
            vcpu_op::REGISTER_VCPU_INFO => {
                let [frame, offset] = self.read_words::<2>(argument)?;
                self.move_vcpu_info(frame, offset & 0xffff_ffff)?;
            }
            vcpu_op::DOWN => {
                // The only vCPU: the machine rests for good.
                self.exit_to_host(ExitKind::Power, 0);
                return Ok(Done::Host(0));
            }
            _ => return Err(Errno::ENOSYS),
        }
        OK
    }

    /// Sets the timer: an event when the guest's time comes to `at`.
    fn set_timer(&mut self, at: u64, future: bool) -> Outcome {
        if at <= self.now() {
            if future {
                return Err(Errno::ETIME);
            }
            if let Some(port) = self.state.events.of_virtual(VIRQ_TIMER) {
                self.raise_event(port);
            }
            return OK;
        }
        let tsc = self.scale().tsc(at);
        self.area.exit = ExitRecord { kind: ExitKind::SetTimer as u64, a: tsc, b: 1, c: 0, d: 0 };
        Ok(Done::Host(0))
    }

    /// The guest wants its `vcpu_info` in its own memory.
    fn move_vcpu_info(&mut self, frame: u64, offset: u64) -> Result<(), Errno> {
        if frame >= self.config.frames || !offset.is_multiple_of(8) || offset > PAGE - VCPU_INFO_SIZE {
            return Err(Errno::EINVAL);
        }
        let address: NonNull<u8> = self.space.ram((frame << 12) + offset).ok_or(Errno::EINVAL)?;
        // SAFETY: the bytes are in one page of the guest's memory, which is mapped as long as the guest lives, and which
        // nobody accesses otherwise than by volatile accesses.
        let info = unsafe { VcpuInfo::at(address) };
        info.copy_from(self.state.vcpu_info);
        self.state.vcpu_info = info;
        self.area.quick.vcpu_info = info.address();
        info.set_all_pending();
        Ok(())
    }

    /// Writes the run state into the guest's record, if it has one that can be written.
    fn tell_run_state(&mut self, state: u64) {
        let record = self.state.run_state;
        if record.address == 0 {
            return;
        }
        let running = record.since.saturating_sub(record.blocked);
        // A record that cannot be written is the guest's own affair.
        let _ = self.write_words(record.address, &[state, record.since, running, 0, record.blocked, 0]);
    }

    /// `sched_op(operation, argument)`.
    pub(super) fn sched_op(&mut self, &[operation, argument, ..]: &Arguments) -> Outcome {
        match operation {
            sched_op::YIELD => {
                self.exit_to_host(ExitKind::Attention, 0);
                Ok(Done::Host(0))
            }
            sched_op::BLOCK => {
                self.state.vcpu_info.set_masked(false);
                if self.state.vcpu_info.is_pending() {
                    return OK;
                }
                self.state.run_state.since = self.now();
                self.tell_run_state(run_state::BLOCKED);
                self.state.halted = true;
                self.exit_to_host(ExitKind::Halt, 0);
                Ok(Done::Host(0))
            }
            sched_op::SHUTDOWN => {
                let mut bytes = [0; 4];
                self.read_bytes(argument, &mut bytes)?;
                match u32::from_le_bytes(bytes) {
                    shutdown::POWER_OFF => self.exit_to_host(ExitKind::Power, 0),
                    shutdown::REBOOT => self.exit_to_host(ExitKind::Power, 1),
                    reason => {
                        let _ = self.kill(KillReason::GuestCrashed, reason.into());
                    }
                }
                Ok(Done::Host(0))
            }
            _ => Err(Errno::ENOSYS),
        }
    }

    /// The guest waited, and goes on.
    pub(crate) fn end_of_halt(&mut self) {
        let now = self.now();
        let record = &mut self.state.run_state;
        record.blocked = record.blocked.saturating_add(now.saturating_sub(record.since));
        record.since = now;
        self.tell_run_state(run_state::RUNNING);
    }
}
