//! `event_channel_op`, `callback_op` and the interrupts of `physdev_op`.

use covisor_abi::paravirtual::CONSOLE_PORT;

use crate::area::ExitKind;
use crate::area::ExitRecord;
use crate::errno::Errno;
use crate::event::Channel;
use crate::hypercall::Arguments;
use crate::hypercall::Done;
use crate::hypercall::OK;
use crate::hypercall::Outcome;
use crate::hypercall::descriptors::is_entry;
use crate::machine::Machine;
use crate::processor::Processor;
use crate::state::Callback;

/// Operations of `event_channel_op` (`event_channel.h`).
mod channel_op {
    pub(super) const BIND_VIRQ: u64 = 1;
    pub(super) const BIND_PIRQ: u64 = 2;
    pub(super) const CLOSE: u64 = 3;
    pub(super) const SEND: u64 = 4;
    pub(super) const BIND_IPI: u64 = 7;
    pub(super) const BIND_VCPU: u64 = 8;
    pub(super) const UNMASK: u64 = 9;
}

/// Operations of `callback_op`, and the callbacks (`callback.h`).
mod callback {
    pub(super) const REGISTER: u64 = 0;
    pub(super) const EVENT: u64 = 0;
    pub(super) const FAILSAFE: u64 = 1;
    pub(super) const SYSCALL: u64 = 2;
    pub(super) const SYSCALL32: u64 = 7;
    /// Flag: events are masked on the way in.
    pub(super) const MASKS_EVENTS: u64 = 1;
}

/// Operations of `physdev_op` (`physdev.h`).
mod physdev {
    pub(super) const IRQ_STATUS_QUERY: u64 = 5;
    pub(super) const SET_IOPL: u64 = 6;
    pub(super) const SET_IOBITMAP: u64 = 7;
    pub(super) const EOI: u64 = 12;
    /// Flag of `irq_status_query`: the guest has to tell when it is done.
    pub(super) const NEEDS_EOI: u32 = 1;
}

/// The lower and the upper half of a word.
#[expect(clippy::cast_possible_truncation, reason = "halves")]
const fn halves(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32)
}

impl<P: Processor> Machine<'_, P> {
    /// `event_channel_op(operation, argument)`.
    pub(super) fn event_channel_op(&mut self, &[operation, argument, ..]: &Arguments) -> Outcome {
        match operation {
            channel_op::BIND_VIRQ => {
                let (virq, vcpu) = halves(self.read_words::<1>(argument)?[0]);
                only_vcpu(vcpu)?;
                let port = self.state.events.bind_virtual(virq)?;
                self.write_bytes(argument.wrapping_add(8), &port.to_le_bytes())?;
            }
            channel_op::BIND_IPI => {
                let (vcpu, _) = halves(self.read_words::<1>(argument)?[0]);
                only_vcpu(vcpu)?;
                let port = self.state.events.bind_self()?;
                self.write_bytes(argument.wrapping_add(4), &port.to_le_bytes())?;
            }
            channel_op::BIND_PIRQ => {
                let (line, _) = halves(self.read_words::<1>(argument)?[0]);
                let (port, came) = self.state.events.bind_line(line)?;
                self.write_bytes(argument.wrapping_add(8), &port.to_le_bytes())?;
                if came {
                    self.raise_event(port);
                }
            }
            channel_op::CLOSE => {
                let port = self.read_port(argument)?;
                self.state.events.close(port)?;
                self.shared.clear_event(port);
            }
            channel_op::SEND => {
                let port = self.read_port(argument)?;
                match self.state.events.channel(port) {
                    Channel::Self_ => self.raise_event(port),
                    Channel::Console => {
                        self.port_write(CONSOLE_PORT, port.into(), 4);
                        return Ok(Done::Host(0));
                    }
                    Channel::Free | Channel::Virtual(_) | Channel::Line(_) => return Err(Errno::EINVAL),
                }
            }
            channel_op::BIND_VCPU => {
                let (port, vcpu) = halves(self.read_words::<1>(argument)?[0]);
                only_vcpu(vcpu)?;
                if self.state.events.channel(port) == Channel::Free {
                    return Err(Errno::EINVAL);
                }
            }
            channel_op::UNMASK => {
                let port = self.read_port(argument)?;
                if self.state.events.channel(port) == Channel::Free {
                    return Err(Errno::EINVAL);
                }
                if self.shared.unmask(port) {
                    self.state.vcpu_info.set_pending((port / 64) as usize);
                }
            }
            _ => return Err(Errno::ENOSYS),
        }
        OK
    }

    fn read_port(&self, argument: u64) -> Result<u32, Errno> {
        let mut bytes = [0; 4];
        self.read_bytes(argument, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Has the host take a write to a port.
    pub(super) fn port_write(&mut self, port: u16, value: u64, size: u64) {
        self.area.exit = ExitRecord { kind: ExitKind::PortWrite as u64, a: port.into(), b: value, c: size, d: 0 };
    }

    /// `callback_op(operation, argument)`.
    pub(super) fn callback_op(&mut self, &[operation, argument, ..]: &Arguments) -> Outcome {
        if operation != callback::REGISTER {
            return Err(Errno::ENOSYS);
        }
        let [head, address] = self.read_words::<2>(argument)?;
        let (kind, flags) = (head & 0xffff, head >> 16 & 0xffff);
        if !is_entry(address) {
            return Err(Errno::EINVAL);
        }
        let callbacks = &mut self.state.callbacks;
        let slot = match kind {
            callback::EVENT => &mut callbacks.event,
            callback::FAILSAFE => &mut callbacks.failsafe,
            callback::SYSCALL => &mut callbacks.syscall,
            callback::SYSCALL32 => &mut callbacks.syscall32,
            _ => return Err(Errno::ENOSYS),
        };
        let masks_events = flags & callback::MASKS_EVENTS != 0;
        *slot = Callback { address, masks_events };
        if kind == callback::SYSCALL {
            self.area.quick.syscall_handler = if masks_events { address } else { 0 };
        }
        OK
    }

    /// `physdev_op(operation, argument)`.
    pub(super) fn physdev_op(&mut self, &[operation, argument, ..]: &Arguments) -> Outcome {
        match operation {
            physdev::IRQ_STATUS_QUERY => {
                self.write_bytes(argument.wrapping_add(4), &physdev::NEEDS_EOI.to_le_bytes())?;
            }
            physdev::EOI => {
                let line = self.read_port(argument)?;
                if self.state.events.end(line) {
                    self.exit_to_host(ExitKind::EndOfInterrupt, line.into());
                    return Ok(Done::Host(0));
                }
            }
            // Programs' ports are nobody's: they get their #GP.
            physdev::SET_IOPL | physdev::SET_IOBITMAP => {}
            _ => return Err(Errno::ENOSYS),
        }
        OK
    }

    /// Notes what the host is to do.
    pub(super) fn exit_to_host(&mut self, kind: ExitKind, a: u64) {
        self.area.exit = ExitRecord { kind: kind as u64, a, ..ExitRecord::default() };
    }
}

/// There is one vCPU.
const fn only_vcpu(vcpu: u32) -> Result<(), Errno> {
    if vcpu == 0 { Ok(()) } else { Err(Errno::ENOENT) }
}
