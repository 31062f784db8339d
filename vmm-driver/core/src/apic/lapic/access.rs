//! The local APIC's registers as the guest reads and writes them: in memory with xAPIC (SDM vol. 3, 11.4.1), as MSRs with x2APIC
//! (11.12.1.2).

use super::Effect;
use super::LocalApic;
use super::X2APIC_FIRST_MSR;
use crate::apic::inbox::Mode;
use crate::apic::registers::Command;
use crate::apic::registers::IN_SERVICE;
use crate::apic::registers::Lvt;
use crate::apic::registers::REQUEST;
use crate::apic::registers::REQUEST_END;
use crate::apic::registers::Register;
use crate::apic::registers::TRIGGER_MODE;
use crate::apic::registers::VERSION;
use crate::apic::registers::error;
use crate::apic::registers::spurious;
use crate::apic::timer::TimerMode;
use crate::exit::Exception;

const END_OF_INTERRUPT_MSR: u32 = X2APIC_FIRST_MSR + Register::EndOfInterrupt as u32;
const COMMAND_MSR: u32 = X2APIC_FIRST_MSR + Register::Command as u32;

impl LocalApic {
    // Registers by way of memory (xAPIC).

    /// Reads `size` bytes at `offset` in the APIC's page. Ones where the APIC has no registers in memory; 0 for what
    /// lies beside a register.
    #[must_use]
    pub fn read_memory(&mut self, offset: u64, size: u8, now: u64) -> u64 {
        if self.mode != Mode::Xapic {
            return u64::MAX;
        }
        let within = offset & 0xf;
        if within + u64::from(size.min(4)) > 4 {
            return 0;
        }
        u64::from(self.read_xapic(number(offset), now)) >> (within * 8)
    }

    /// Writes to the APIC's page: 32 bits (or the lower half of 64) to the start of a register; all else is ignored.
    pub fn write_memory(&mut self, offset: u64, size: u8, value: u64, now: u64) -> Effect {
        if self.mode != Mode::Xapic || offset & 0xf != 0 || size < 4 {
            return Effect::None;
        }
        #[expect(clippy::cast_possible_truncation, reason = "registers have 32 bits")]
        let value = value as u32;
        match Register::from_number(number(offset)) {
            Some(Register::SelfIpi) | None => {
                self.record(error::ILLEGAL_REGISTER);
                Effect::None
            }
            Some(register) => match register.writable() {
                Some(writable) => self.write(register, value & writable, now),
                None => Effect::None,
            },
        }
    }

    fn read_xapic(&mut self, number: u32, now: u64) -> u32 {
        match Register::from_number(number) {
            Some(Register::Id) => self.id << 24,
            Some(Register::EndOfInterrupt | Register::ArbitrationPriority | Register::RemoteRead) => 0,
            Some(Register::CommandHigh) => self.command.high(),
            Some(Register::SelfIpi) | None if !(IN_SERVICE..REQUEST_END).contains(&number) => {
                self.record(error::ILLEGAL_REGISTER);
                0
            }
            _ => self.read(number, now).unwrap_or(0),
        }
    }

    // Registers as MSRs (x2APIC).

    /// Reads an x2APIC MSR; `None` for #GP (SDM vol. 3, table 11-6).
    #[inline]
    #[must_use]
    pub fn read_msr(&self, index: u32, now: u64) -> Option<u64> {
        if self.mode != Mode::X2apic {
            return None;
        }
        let number = index.wrapping_sub(X2APIC_FIRST_MSR);
        match Register::from_number(number) {
            Some(Register::Id) => Some(u64::from(self.id)),
            Some(Register::Command) => Some(self.command.0),
            _ => self.read(number, now).map(u64::from),
        }
    }

    /// Writes an x2APIC MSR. What guests write with each interrupt comes first, and at little cost.
    ///
    /// # Errors
    /// #GP for reserved bits, read-only registers and registers that do not exist.
    #[inline]
    pub fn write_msr(&mut self, index: u32, value: u64, now: u64) -> Result<Effect, Exception> {
        if self.mode != Mode::X2apic {
            return Err(Exception::GENERAL_PROTECTION);
        }
        match index {
            END_OF_INTERRUPT_MSR if value == 0 => {
                Ok(self.end_of_interrupt().map_or(Effect::None, Effect::EndOfInterrupt))
            }
            COMMAND_MSR if Command(value).low() & !Command::WRITABLE == 0 => {
                self.command = Command(value);
                Ok(self.send())
            }
            END_OF_INTERRUPT_MSR | COMMAND_MSR => Err(Exception::GENERAL_PROTECTION),
            _ => self.write_other_msr(index, value, now),
        }
    }

    #[inline(never)]
    fn write_other_msr(&mut self, index: u32, value: u64, now: u64) -> Result<Effect, Exception> {
        let register = Register::from_number(index.wrapping_sub(X2APIC_FIRST_MSR));
        let writable = register.and_then(|register| match register {
            Register::LogicalDestination | Register::DestinationFormat | Register::CommandHigh => None,
            _ => register.writable(),
        });
        match (register, writable, u32::try_from(value)) {
            (Some(register), Some(writable), Ok(value)) if value & !writable == 0 => {
                Ok(self.write(register, value, now))
            }
            _ => Err(Exception::GENERAL_PROTECTION),
        }
    }

    // Registers.

    /// Reads what both modes have alike; `None` for what cannot be read, or has a form of its own in each mode.
    fn read(&self, number: u32, now: u64) -> Option<u32> {
        let part = |first: u32| (number - first) as usize;
        match number {
            IN_SERVICE..TRIGGER_MODE => return Some(self.isr.part(part(IN_SERVICE))),
            TRIGGER_MODE..REQUEST => return Some(self.tmr.part(part(TRIGGER_MODE))),
            REQUEST..REQUEST_END => return Some(self.irr.part(part(REQUEST))),
            _ => {}
        }
        Some(match Register::from_number(number)? {
            Register::Version => VERSION,
            Register::TaskPriority => u32::from(self.task_priority),
            Register::ProcessorPriority => u32::from(self.processor_priority()),
            Register::LogicalDestination => self.logical_destination(),
            Register::DestinationFormat if self.mode == Mode::Xapic => self.format,
            Register::Spurious => self.spurious,
            Register::ErrorStatus => self.error,
            Register::Command => self.command.low(),
            Register::LvtTimer => self.lvt_timer.0,
            Register::LvtThermal => self.sources[0].0,
            Register::LvtPerformance => self.sources[1].0,
            Register::LvtLint0 => self.sources[2].0,
            Register::LvtLint1 => self.sources[3].0,
            Register::LvtError => self.lvt_error.0,
            Register::InitialCount => self.timer.initial(),
            Register::CurrentCount => self.timer.current(now),
            Register::Divide => self.timer.divide(),
            Register::Id
            | Register::DestinationFormat
            | Register::CommandHigh
            | Register::ArbitrationPriority
            | Register::RemoteRead
            | Register::EndOfInterrupt
            | Register::SelfIpi => return None,
        })
    }

    /// Writes a register that the mode has, with bits that it has.
    fn write(&mut self, register: Register, value: u32, now: u64) -> Effect {
        match register {
            Register::EndOfInterrupt => return self.end_of_interrupt().map_or(Effect::None, Effect::EndOfInterrupt),
            Register::TaskPriority => {
                self.task_priority = value.to_le_bytes()[0];
                return Effect::TaskPriority;
            }
            Register::SelfIpi => self.send_to_self(value.to_le_bytes()[0]),
            Register::LogicalDestination => {
                self.logical = value;
                return Effect::Identity;
            }
            Register::DestinationFormat => {
                self.format = value | 0x0fff_ffff;
                return Effect::Identity;
            }
            Register::Spurious => {
                self.set_spurious(value, now);
                return Effect::Identity;
            }
            Register::ErrorStatus => {
                self.error = self.error_next;
                self.error_next = 0;
            }
            Register::CommandHigh => {
                self.command = Command(u64::from(self.command.low()) | u64::from(value) << 32);
            }
            Register::Command => {
                self.command = Command(u64::from(self.command.high()) << 32 | u64::from(value));
                return self.send();
            }
            Register::LvtTimer => {
                self.set_lvt_timer(value, now);
                return Effect::Timer;
            }
            Register::LvtThermal => self.sources[0] = self.lvt(value),
            Register::LvtPerformance => self.sources[1] = self.lvt(value),
            Register::LvtLint0 => self.sources[2] = self.lvt(value),
            Register::LvtLint1 => self.sources[3] = self.lvt(value),
            Register::LvtError => self.lvt_error = self.lvt(value),
            Register::InitialCount => {
                self.expire(now);
                self.timer.set_initial(value, now);
                return Effect::Timer;
            }
            Register::Divide => {
                self.expire(now);
                self.timer.set_divide(value, now);
                return Effect::Timer;
            }
            Register::Id
            | Register::Version
            | Register::ArbitrationPriority
            | Register::ProcessorPriority
            | Register::RemoteRead
            | Register::CurrentCount => {}
        }
        Effect::None
    }

    /// An LVT entry's value as it is stored: masked while software has disabled the APIC (SDM vol. 3, 11.4.7.2).
    const fn lvt(&self, value: u32) -> Lvt {
        let forced = if self.spurious & spurious::ENABLED == 0 { Lvt::MASKED } else { 0 };
        Lvt(value & !Lvt::READ_ONLY | forced)
    }

    fn set_lvt_timer(&mut self, value: u32, now: u64) {
        self.expire(now);
        self.lvt_timer = self.lvt(value);
        self.timer.set_mode(TimerMode::from_bits(self.lvt_timer.timer_mode()), self.lvt_timer.masked());
    }

    fn set_spurious(&mut self, value: u32, now: u64) {
        self.spurious = value;
        if value & spurious::ENABLED == 0 {
            for source in &mut self.sources {
                source.0 |= Lvt::MASKED;
            }
            self.lvt_error.0 |= Lvt::MASKED;
            self.set_lvt_timer(self.lvt_timer.0, now);
        }
    }
}

/// The register's number from its offset in the page.
const fn number(offset: u64) -> u32 {
    (offset >> 4 & 0xff) as u32
}
