//! A vCPU's local APIC (Intel SDM vol. 3, chapter 11; AMD APM vol. 2, chapter 16): xAPIC and x2APIC over the same
//! registers.
//!
//! A state machine without clock, lock or host: the vCPU's thread owns it, tells it the time, and does what the
//! returned [`Effect`] says. What other threads have for it lies in the vCPU's [`Inbox`]. How its registers are read and
//! written is in `access`.

mod access;

use covisor_abi::LOCAL_APIC_BASE;

use super::inbox::Identity;
use super::inbox::Inbox;
use super::inbox::Mode;
use super::inbox::Signals;
use super::message::Delivery;
use super::message::Destination;
use super::message::Message;
use super::registers::Command;
use super::registers::FIRST_VECTOR;
use super::registers::FLAT;
use super::registers::Lvt;
use super::registers::apic_base;
use super::registers::error;
use super::registers::spurious;
use super::timer::Timer;
use super::vectors::Vectors;
use crate::exit::Exception;

/// First x2APIC MSR.
pub const X2APIC_FIRST_MSR: u32 = 0x800;
/// Last x2APIC MSR.
pub const X2APIC_LAST_MSR: u32 = 0x8ff;

/// What is left to do after a register was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Effect {
    /// Nothing; look for an interrupt to deliver as always.
    None,
    /// The task priority changed: hand [`LocalApic::task_priority`] to the vCPU's CR8.
    TaskPriority,
    /// The EOI of a level-triggered interrupt: tell the I/O APIC.
    EndOfInterrupt(u8),
    /// Send this to other vCPUs, or to this one through its inbox.
    Ipi(Message),
    /// [`LocalApic::deadline`] may have changed.
    Timer,
    /// [`LocalApic::identity`] may have changed, so publish it; and deadline and task priority may have, too.
    Identity,
}

/// A local APIC.
#[derive(Clone, Debug)]
pub struct LocalApic {
    irr: Vectors,
    isr: Vectors,
    tmr: Vectors,
    task_priority: u8,
    mode: Mode,
    id: u32,
    bootstrap: bool,
    spurious: u32,
    logical: u32,
    format: u32,
    command: Command,
    /// Thermal, performance, LINT0, LINT1.
    sources: [Lvt; 4],
    lvt_timer: Lvt,
    lvt_error: Lvt,
    /// The error status register, and what it takes over when it is written.
    error: u32,
    error_next: u32,
    timer: Timer,
}

impl LocalApic {
    /// After power-up: xAPIC mode, disabled by software. `id` is the vCPU's number; vCPU 0 boots. `tsc_khz` is the rate
    /// of the host's time stamp counter, `tsc_offset` what the guest's has more.
    #[must_use]
    pub fn new(id: u32, tsc_khz: u32, tsc_offset: u64) -> Self {
        Self {
            irr: Vectors::EMPTY,
            isr: Vectors::EMPTY,
            tmr: Vectors::EMPTY,
            task_priority: 0,
            mode: Mode::Xapic,
            id,
            bootstrap: id == 0,
            spurious: spurious::RESET,
            logical: 0,
            format: FLAT,
            command: Command(0),
            sources: [Lvt::RESET; 4],
            lvt_timer: Lvt::RESET,
            lvt_error: Lvt::RESET,
            error: 0,
            error_next: 0,
            timer: Timer::new(tsc_khz, tsc_offset),
        }
    }

    /// INIT: all registers but id and `IA32_APIC_BASE` as after power-up (SDM vol. 3, 11.4.7.3). Publish the identity
    /// after it.
    pub fn init(&mut self) {
        self.irr = Vectors::EMPTY;
        self.isr = Vectors::EMPTY;
        self.tmr = Vectors::EMPTY;
        self.task_priority = 0;
        self.spurious = spurious::RESET;
        self.logical = 0;
        self.format = FLAT;
        self.command = Command(0);
        self.sources = [Lvt::RESET; 4];
        self.lvt_timer = Lvt::RESET;
        self.lvt_error = Lvt::RESET;
        self.error = 0;
        self.error_next = 0;
        self.timer.reset();
    }

    /// How other vCPUs and devices address it.
    #[must_use]
    pub fn identity(&self) -> Identity {
        let cluster = self.format >> 28 == 0;
        Identity { mode: self.mode, logical: self.logical_destination(), cluster, enabled: self.enabled() }
    }

    /// Its mode.
    #[must_use]
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether it takes interrupts with vectors.
    const fn enabled(&self) -> bool {
        self.spurious & spurious::ENABLED != 0 && !matches!(self.mode, Mode::Disabled)
    }

    // Delivery.

    /// Takes over what other threads posted: interrupts into IRR, the rest to the caller.
    #[inline]
    pub fn drain(&mut self, inbox: &Inbox) -> Signals {
        let enabled = self.enabled();
        let mut illegal = false;
        let signals = inbox.take(|word, posted, level| {
            let mut posted = if enabled { posted } else { 0 };
            if word == 0 {
                let below = (1 << FIRST_VECTOR) - 1;
                illegal |= posted & below != 0;
                posted &= !below;
            }
            self.irr.assign(word, posted, posted);
            self.tmr.assign(word, posted, level);
        });
        if illegal {
            self.record(error::RECEIVE_ILLEGAL_VECTOR);
        }
        signals
    }

    /// Whether an interrupt is requested at all, be it deliverable or not.
    #[inline]
    #[must_use]
    pub const fn is_quiet(&self) -> bool {
        self.irr.is_empty()
    }

    /// The interrupt to deliver now: the highest one requested, where its priority class is above the processor's.
    #[inline]
    #[must_use]
    pub fn highest(&self) -> Option<u8> {
        let vector = self.irr.highest()?;
        (vector >> 4 > self.processor_priority() >> 4).then_some(vector)
    }

    /// The interrupt that waits only for the task priority to fall below its class, for engines that have to be told to
    /// watch CR8.
    #[must_use]
    pub fn held_by_task_priority(&self) -> Option<u8> {
        let vector = self.irr.highest()?;
        let class = vector >> 4;
        let in_service = self.isr.highest().unwrap_or(0) >> 4;
        (class > in_service && class <= self.task_priority >> 4).then_some(vector)
    }

    /// The CPU takes the interrupt that [`LocalApic::highest`] named: from requested to in service.
    #[inline]
    pub fn accept(&mut self, vector: u8) {
        self.irr.remove(vector);
        self.isr.insert(vector);
    }

    /// End of interrupt. The vector of a level-triggered one is for the I/O APIC.
    #[inline]
    pub fn end_of_interrupt(&mut self) -> Option<u8> {
        let vector = self.isr.highest()?;
        self.isr.remove(vector);
        self.tmr.contains(vector).then_some(vector)
    }

    /// Requests an edge-triggered interrupt of the APIC's own.
    fn request(&mut self, vector: u8) {
        if vector < FIRST_VECTOR {
            self.record(error::RECEIVE_ILLEGAL_VECTOR);
        } else if self.enabled() {
            self.tmr.remove(vector);
            self.irr.insert(vector);
        }
    }

    /// Notes an error, and raises the error interrupt where it is new.
    fn record(&mut self, bit: u32) {
        if self.error_next & bit == 0 {
            self.error_next |= bit;
            let vector = self.lvt_error.vector();
            if !self.lvt_error.masked() && vector >= FIRST_VECTOR && self.enabled() {
                self.tmr.remove(vector);
                self.irr.insert(vector);
            }
        }
    }

    // Priorities.

    /// The task priority's class, as CR8 has it.
    #[inline]
    #[must_use]
    pub const fn task_priority(&self) -> u8 {
        self.task_priority >> 4
    }

    /// Takes over CR8, 0 to 15; a sub-class that the guest set in the register stays where the class is the same.
    #[inline]
    pub const fn set_task_priority(&mut self, class: u8) {
        if self.task_priority >> 4 != class & 0xf {
            self.task_priority = class << 4;
        }
    }

    /// The processor priority (SDM vol. 3, 11.8.3.1).
    #[inline]
    fn processor_priority(&self) -> u8 {
        let in_service = self.isr.highest().unwrap_or(0) & 0xf0;
        if self.task_priority & 0xf0 >= in_service { self.task_priority } else { in_service }
    }

    // Timer.

    /// When the run loop has to call [`LocalApic::expire`], in counts of the host's time stamp counter.
    #[inline]
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        self.timer.deadline()
    }

    /// Raises the timer's interrupt if it is time.
    #[inline]
    pub fn expire(&mut self, now: u64) {
        if self.timer.expire(now) {
            self.request(self.lvt_timer.vector());
        }
    }

    /// `IA32_TSC_DEADLINE`.
    #[inline]
    #[must_use]
    pub const fn tsc_deadline(&self) -> u64 {
        self.timer.tsc_deadline()
    }

    /// Writes `IA32_TSC_DEADLINE`; a value in the past raises the interrupt at once.
    #[inline]
    pub fn set_tsc_deadline(&mut self, value: u64, now: u64) -> Effect {
        self.timer.set_tsc_deadline(value, now);
        self.expire(now);
        Effect::Timer
    }

    /// The guest's time stamp counter was moved.
    pub fn set_tsc_offset(&mut self, offset: u64, now: u64) {
        self.timer.set_tsc_offset(offset, now);
    }

    // IA32_APIC_BASE.

    /// `IA32_APIC_BASE`.
    #[must_use]
    pub const fn base(&self) -> u64 {
        let mode = match self.mode {
            Mode::Disabled => 0,
            Mode::Xapic => apic_base::ENABLED,
            Mode::X2apic => apic_base::ENABLED | apic_base::EXTENDED,
        };
        LOCAL_APIC_BASE | mode | if self.bootstrap { apic_base::BOOTSTRAP } else { 0 }
    }

    /// Writes `IA32_APIC_BASE` (SDM vol. 3, figure 11-27): x2APIC is entered from xAPIC and left to disabled only. The
    /// registers stay at their address, and the bootstrap flag stays as it is.
    ///
    /// # Errors
    /// #GP for reserved bits, another address, or a change of mode that does not exist.
    pub fn set_base(&mut self, value: u64) -> Result<Effect, Exception> {
        let flags = apic_base::BOOTSTRAP | apic_base::EXTENDED | apic_base::ENABLED;
        if value & !flags != LOCAL_APIC_BASE {
            return Err(Exception::GENERAL_PROTECTION);
        }
        let wanted = match (value & apic_base::ENABLED != 0, value & apic_base::EXTENDED != 0) {
            (false, false) => Mode::Disabled,
            (true, false) => Mode::Xapic,
            (true, true) => Mode::X2apic,
            (false, true) => return Err(Exception::GENERAL_PROTECTION),
        };
        match (self.mode, wanted) {
            (from, to) if from == to => return Ok(Effect::None),
            (Mode::X2apic, Mode::Xapic) | (Mode::Disabled, Mode::X2apic) => return Err(Exception::GENERAL_PROTECTION),
            (_, Mode::Disabled) => self.init(),
            _ => {}
        }
        self.mode = wanted;
        Ok(Effect::Identity)
    }

    /// The logical destination register; x2APIC derives it from the id (SDM vol. 3, 11.12.10.2).
    const fn logical_destination(&self) -> u32 {
        match self.mode {
            Mode::X2apic => (self.id >> 4) << 16 | 1 << (self.id & 0xf),
            Mode::Xapic | Mode::Disabled => self.logical,
        }
    }

    // Interprocessor interrupts.

    /// Sends what the command register says.
    fn send(&mut self) -> Effect {
        let command = self.command;
        let Some(delivery) = Delivery::from_code(command.delivery()) else { return Effect::None };
        if delivery == Delivery::Init && command.is_deassert() {
            return Effect::None;
        }
        if !delivery.takes(command.vector()) {
            self.record(error::SEND_ILLEGAL_VECTOR);
            return Effect::None;
        }
        let destination = match command.shorthand() {
            1 => Destination::Physical(self.id),
            2 => Destination::All,
            3 => Destination::Others,
            _ if self.mode == Mode::X2apic => Destination::from_word(command.high(), command.logical()),
            _ => Destination::from_byte(command.high().to_le_bytes()[3], command.logical()),
        };
        if destination == Destination::Physical(self.id)
            && matches!(delivery, Delivery::Fixed | Delivery::LowestPriority)
        {
            self.request(command.vector());
            return Effect::None;
        }
        Effect::Ipi(Message { destination, delivery, vector: command.vector(), level: false })
    }

    fn send_to_self(&mut self, vector: u8) {
        if vector < FIRST_VECTOR {
            self.record(error::SEND_ILLEGAL_VECTOR);
        } else {
            self.request(vector);
        }
    }
}
