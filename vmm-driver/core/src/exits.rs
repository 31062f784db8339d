//! What each exit means: the one place, for all engines.
//!
//! All of this runs in guest context: the host is not loaded. What can be answered here goes straight back
//! ([`Next::Resume`]); the rest says what for in [`Leave`].

use covisor_abi::DoorbellSpace;
use covisor_abi::ExitReason;
use covisor_abi::IO_APIC_BASE;
use covisor_abi::KillReason;
use covisor_abi::LOCAL_APIC_BASE;
use covisor_abi::PAGE_SIZE;
use covisor_abi::Run;
use covisor_abi::StatsKind;
use covisor_abi::driver_ports;

use crate::apic::Effect;
use crate::apic::Message;
use crate::cpuid::Dynamic;
use crate::emulate;
use crate::emulate::Answer;
use crate::emulate::Cause;
use crate::emulate::DeviceSpace;
use crate::emulate::Outcome;
use crate::emulate::opcode;
use crate::engine::Engine;
use crate::engine::ExitHandler;
use crate::engine::Next;
use crate::engine::Vcpu;
use crate::exit::Exception;
use crate::exit::Exit;
use crate::exit::Injection;
use crate::exit::MemoryAccess;
use crate::exit::PortAccess;
use crate::host::Host;
use crate::instructions::wrmsr;
use crate::msr;
use crate::msr::Action;
use crate::msr::GuestMsrs;
use crate::paravirtual;
use crate::registers::RFlags;
use crate::run::end;
use crate::run::set_port_value;
use crate::vcpu::Pending;
use crate::vcpu::Shared;
use crate::vcpu::VcpuState;
use crate::vm::Vm;
use crate::vm::tsc;

/// Why the guest was left.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Leave {
    /// The host wanted the CPU, or the guest halted: look around, and enter again.
    Again,
    /// Signal this doorbell's event first.
    Doorbell(usize),
    /// Notify these vCPUs first.
    Notify(u64),
    /// Read the host's wall clock first ([`VcpuState::wall_clock`]); the guest does again what it did.
    WallClock,
    /// Give the RAM at this guest-physical address host memory first; the guest does again what it did.
    Populate(u64),
    /// Return to the loader.
    Loader(Run),
}

/// The indirect branch prediction barrier (APM vol. 2, 3.2.9).
///
/// # Safety
/// Ring 0, on a CPU that has it.
unsafe fn prediction_barrier() {
    // SAFETY: by the caller; the command changes no value.
    unsafe { wrmsr(msr::index::PRED_CMD, msr::PRED_CMD_IBPB) };
}

/// Answers exits of one vCPU.
pub(crate) struct Handler<'a, H: Host, E: Engine> {
    pub(crate) vm: &'a Vm<H, E>,
    pub(crate) shared: &'a Shared<H>,
    pub(crate) state: &'a mut VcpuState,
    /// Why the guest was left, after [`Next::Leave`].
    pub(crate) leave: Leave,
}

impl<H: Host, E: Engine> ExitHandler<E> for Handler<'_, H, E> {
    // One copy in the engine's hot loop, where the exit's code then leads straight to its answer.
    #[inline(always)]
    fn on_exit(&mut self, vcpu: &mut E::Vcpu, exit: Exit) -> Next {
        self.shared.count(StatsKind::Exits);
        let next = match exit {
            Exit::ReadMsr => self.read_msr(vcpu),
            Exit::WriteMsr => self.write_msr(vcpu),
            Exit::Cpuid => self.cpuid(vcpu),
            Exit::Port(access) => self.port(vcpu, access),
            Exit::HostInterrupt => {
                self.shared.count(StatsKind::HostInterrupts);
                return Next::Leave;
            }
            Exit::Memory(access) => self.memory(vcpu, access),
            Exit::Halt => self.halt(vcpu),
            Exit::InterruptWindow => {
                self.set_window(vcpu, None);
                Next::Resume
            }
            Exit::Hypercall => self.hypercall(vcpu),
            Exit::Deadline => {
                self.state.apic.expire(tsc());
                self.timer_changed(vcpu)
            }
            Exit::SetTimer(deadline) if E::PARAVIRTUAL => self.set_timer(vcpu, deadline),
            Exit::EndOfInterrupt { gsi } if E::PARAVIRTUAL => self.end_of_line(vcpu, gsi),
            other => self.rare(vcpu, other),
        };
        if next == Next::Resume {
            self.shared.count(StatsKind::Fast);
            self.deliver(vcpu);
        }
        next
    }
}

/// KVM's "no such hypercall" (Linux `Documentation/virt/kvm/x86/hypercalls.rst`).
const KVM_ENOSYS: u64 = 1000;

impl<'a, H: Host, E: Engine> Handler<'a, H, E> {
    pub(crate) fn new(vm: &'a Vm<H, E>, shared: &'a Shared<H>, state: &'a mut VcpuState) -> Self {
        Self { vm, shared, state, leave: Leave::Again }
    }

    // Interrupts.

    /// Takes over what others posted.
    #[inline]
    pub(crate) fn collect(&mut self) {
        if self.shared.inbox.is_empty() {
            return;
        }
        let signals = self.state.apic.drain(&self.shared.inbox);
        self.state.nmi |= signals.nmi;
    }

    /// Ends a halt, if there is something that the guest takes now.
    pub(crate) fn end_halt(&mut self, vcpu: &E::Vcpu) {
        let interrupted = if E::PARAVIRTUAL {
            // It waits for any event, with whatever flags and priority.
            !self.state.apic.is_quiet()
        } else {
            vcpu.rflags() & RFlags::FLAGS_IF.bits() != 0 && self.state.apic.highest().is_some()
        };
        if self.state.nmi || vcpu.injection_waits() || interrupted {
            self.state.halted = false;
        }
    }

    /// Hands the guest the interrupt that it can take now, or asks for the window.
    #[inline]
    pub(crate) fn deliver(&mut self, vcpu: &mut E::Vcpu) {
        self.collect();
        if E::PARAVIRTUAL {
            self.deliver_events(vcpu);
            return;
        }
        if self.state.apic.is_quiet() && !self.state.nmi {
            self.set_window(vcpu, None);
            return;
        }
        self.deliver_some(vcpu);
    }

    fn deliver_some(&mut self, vcpu: &mut E::Vcpu) {
        if self.state.nmi {
            if !vcpu.injection_waits() && !vcpu.nmi_blocked() && !vcpu.interrupt_shadow() {
                self.state.nmi = false;
                vcpu.inject(Injection::Nmi);
            }
            vcpu.want_nmi_window(self.state.nmi);
        }
        self.state.apic.set_task_priority(vcpu.task_priority());
        let Some(vector) = self.state.apic.highest() else {
            let held = self.state.apic.held_by_task_priority();
            self.set_window(vcpu, held);
            return;
        };
        let open = vcpu.rflags() & RFlags::FLAGS_IF.bits() != 0 && !vcpu.interrupt_shadow();
        if vcpu.interrupt_shadow() && vcpu.forgets_interrupt_shadow() {
            // The next exit is soon enough: most often it is the HLT that follows.
            self.set_window(vcpu, None);
            return;
        }
        if !open || vcpu.injection_waits() {
            self.set_window(vcpu, Some(vector));
            return;
        }
        self.state.apic.accept(vector);
        vcpu.inject(Injection::Interrupt(vector));
        self.shared.count(StatsKind::Injections);
        let next = self.state.apic.highest().or_else(|| self.state.apic.held_by_task_priority());
        self.set_window(vcpu, next);
    }

    /// Asks for the window in which the guest takes this interrupt, or for none.
    #[inline]
    fn set_window(&mut self, vcpu: &mut E::Vcpu, vector: Option<u8>) {
        let class = vector.map(|vector| vector >> 4);
        if self.state.window != class {
            self.state.window = class;
            vcpu.want_interrupt_window(class);
        }
    }

    /// Does what a local APIC register's write asks for.
    pub(crate) fn effect(&mut self, vcpu: &mut E::Vcpu, effect: Effect) -> Next {
        match effect {
            Effect::None => Next::Resume,
            Effect::TaskPriority => {
                vcpu.set_task_priority(self.state.apic.task_priority());
                Next::Resume
            }
            Effect::EndOfInterrupt(vector) => {
                let message = self.vm.io_apic.lock().end_of_interrupt(vector);
                message.map_or(Next::Resume, |message| self.send(&message))
            }
            Effect::Ipi(message) => self.send(&message),
            Effect::Timer => self.timer_changed(vcpu),
            Effect::Identity => {
                self.shared.inbox.publish(self.state.apic.identity());
                vcpu.set_task_priority(self.state.apic.task_priority());
                self.timer_changed(vcpu)
            }
        }
    }

    /// Arming the host's timer is the host's work; where it is armed right, or the CPU has a timer of its own, there is none.
    fn timer_changed(&mut self, vcpu: &mut E::Vcpu) -> Next {
        let deadline = self.state.apic.deadline();
        if vcpu.set_deadline(deadline) {
            return Next::Resume;
        }
        if deadline == self.state.armed || deadline.is_none() { Next::Resume } else { Next::Leave }
    }

    fn send(&mut self, message: &Message) -> Next {
        let notify = self.vm.post(message, Some(self.state.id));
        if notify == 0 {
            return Next::Resume;
        }
        self.leave = Leave::Notify(notify);
        Next::Leave
    }

    // Instructions that core answers.

    /// RIP after the current instruction, which has this encoding; or what became of the guest where it cannot be told.
    #[inline]
    fn next_rip(&mut self, vcpu: &mut E::Vcpu, encoding: &[u8]) -> Result<u64, Next> {
        emulate::length_of_current(vcpu, &self.vm.memory, encoding)
            .map_err(|outcome| self.outcome(vcpu, outcome, Cause::Other))
    }

    /// Ends the instruction with this encoding after `execute`, which may refuse it with an exception.
    #[inline]
    pub(crate) fn finish(
        &mut self,
        vcpu: &mut E::Vcpu,
        encoding: &[u8],
        execute: impl FnOnce(&mut Self, &mut E::Vcpu) -> Result<Next, Exception>,
    ) -> Next {
        let next_rip = match self.next_rip(vcpu, encoding) {
            Ok(next_rip) => next_rip,
            Err(next) => return next,
        };
        match execute(self, vcpu) {
            Ok(next) => {
                emulate::skip(vcpu, next_rip);
                next
            }
            Err(exception) => self.inject(vcpu, exception),
        }
    }

    #[inline]
    fn cpuid(&mut self, vcpu: &mut E::Vcpu) -> Next {
        self.finish(vcpu, opcode::CPUID, |handler, vcpu| {
            let dynamic = Dynamic { cr4: vcpu.cr4(), xcr0: vcpu.xcr0(), apic_id: handler.state.id };
            let gprs = vcpu.gprs_mut();
            #[expect(clippy::cast_possible_truncation, reason = "CPUID takes EAX and ECX")]
            let [eax, ebx, ecx, edx] = handler.vm.cpuid.lookup(gprs.rax as u32, gprs.rcx as u32, &dynamic);
            gprs.rax = u64::from(eax);
            gprs.rbx = u64::from(ebx);
            gprs.rcx = u64::from(ecx);
            gprs.rdx = u64::from(edx);
            Ok(Next::Resume)
        })
    }

    pub(crate) fn inject(&mut self, vcpu: &mut E::Vcpu, exception: Exception) -> Next {
        if !vcpu.injection_waits() {
            vcpu.inject(Injection::Exception(exception));
        }
        Next::Resume
    }

    /// Hypercalls by KVM's convention: none is offered in CPUID, so none exists.
    #[inline]
    fn hypercall(&mut self, vcpu: &mut E::Vcpu) -> Next {
        let encoding = match E::KIND {
            covisor_abi::EngineKind::Vmx => opcode::VMCALL,
            _ => opcode::VMMCALL,
        };
        self.finish(vcpu, encoding, |_, vcpu| {
            vcpu.gprs_mut().rax = KVM_ENOSYS.wrapping_neg();
            Ok(Next::Resume)
        })
    }

    /// Calls `use_msrs` on this vCPU's MSRs and what they are made of.
    #[inline]
    fn with_msrs<T>(
        &mut self,
        vcpu: &mut E::Vcpu,
        use_msrs: impl FnOnce(&mut GuestMsrs, &mut msr::Context<'_, E::Vcpu>) -> T,
    ) -> T {
        let VcpuState { apic, msrs, .. } = &mut *self.state;
        let Vm { cpuid, memory, clock, .. } = self.vm;
        // The guest changes CR8 without an exit, and may look at the register.
        apic.set_task_priority(vcpu.task_priority());
        use_msrs(msrs, &mut msr::Context { vcpu, apic, table: cpuid, memory, clock, now: tsc() })
    }

    #[inline]
    fn read_msr(&mut self, vcpu: &mut E::Vcpu) -> Next {
        #[expect(clippy::cast_possible_truncation, reason = "RDMSR takes ECX")]
        let index = vcpu.gprs().rcx as u32;
        self.finish(vcpu, opcode::RDMSR, |handler, vcpu| {
            let value = handler.with_msrs(vcpu, |msrs, context| {
                if E::PARAVIRTUAL { paravirtual::msr::read(index, context) } else { msrs.read(index, context) }
            });
            vcpu.gprs_mut().set_edx_eax(value.ok_or(Exception::GENERAL_PROTECTION)?);
            Ok(Next::Resume)
        })
    }

    #[inline]
    fn write_msr(&mut self, vcpu: &mut E::Vcpu) -> Next {
        #[expect(clippy::cast_possible_truncation, reason = "WRMSR takes ECX")]
        let (index, value) = (vcpu.gprs().rcx as u32, vcpu.gprs().edx_eax());
        if Vm::<H, E>::RAM_ON_DEMAND
            && let Some(gpa) = msr::absent_memory(&self.vm.memory, index, value)
        {
            return self.populate(gpa);
        }
        if index == msr::index::KVM_WALL_CLOCK && !E::PARAVIRTUAL {
            return self.write_wall_clock(vcpu, value);
        }
        self.finish(vcpu, opcode::WRMSR, |handler, vcpu| {
            let written = handler.with_msrs(vcpu, |msrs, context| {
                if E::PARAVIRTUAL {
                    paravirtual::msr::write(index, value, context)
                } else {
                    msrs.write(index, value, context)
                }
            });
            match written? {
                Action::Done => Ok(Next::Resume),
                Action::Apic(effect) => Ok(handler.effect(vcpu, effect)),
                Action::Ibpb => {
                    // SAFETY: drivers run in ring 0, and the action comes only where the CPU has the barrier.
                    unsafe { prediction_barrier() };
                    Ok(Next::Resume)
                }
            }
        })
    }

    /// The guest asks for the wall clock at an address. The host's cannot be read here, so the guest asks twice.
    #[cold]
    fn write_wall_clock(&mut self, vcpu: &mut E::Vcpu, gpa: u64) -> Next {
        let Some(wall) = self.state.wall_clock.take() else {
            self.leave = Leave::WallClock;
            return Next::Leave;
        };
        self.finish(vcpu, opcode::WRMSR, |handler, _| {
            handler.state.msrs.show_wall_clock(&handler.vm.memory, gpa, wall);
            Ok(Next::Resume)
        })
    }

    fn halt(&mut self, vcpu: &mut E::Vcpu) -> Next {
        let next = if E::PARAVIRTUAL {
            self.state.halted = true;
            Next::Resume
        } else {
            self.finish(vcpu, opcode::HLT, |handler, _| {
                handler.state.halted = true;
                Ok(Next::Resume)
            })
        };
        if !self.state.halted {
            return next;
        }
        self.shared.count(StatsKind::Halts);
        self.collect();
        self.state.apic.set_task_priority(vcpu.task_priority());
        self.end_halt(vcpu);
        if self.state.halted { Next::Leave } else { Next::Resume }
    }

    // Ports.

    #[inline]
    fn port(&mut self, vcpu: &mut E::Vcpu, access: PortAccess) -> Next {
        if access.string || access.next_rip == 0 {
            return self.emulate(vcpu, Cause::Port(access), None);
        }
        let PortAccess { port, size, write, next_rip, .. } = access;
        if write {
            let value = vcpu.gprs().rax & u64::MAX >> (64 - u32::from(size) * 8);
            emulate::skip(vcpu, next_rip);
            return self.port_write(port, size, value);
        }
        if let Some(value) = self.driver_port_read(port, size) {
            set_port_value(vcpu, size, value);
            emulate::skip(vcpu, next_rip);
            return Next::Resume;
        }
        self.state.pending = Some(Pending::PortRead { size, next_rip });
        self.leave_for_loader(ExitReason::PortRead, u64::from(port), size, 0)
    }

    /// A port write, its instruction done.
    #[inline]
    fn port_write(&mut self, port: u16, size: u8, value: u64) -> Next {
        if let Some(index) = self.vm.doorbells.find(DoorbellSpace::Port, u64::from(port), size) {
            self.shared.count(StatsKind::Doorbells);
            self.leave = Leave::Doorbell(index);
            return Next::Leave;
        }
        if port == driver_ports::POST_CODE {
            return Next::Resume;
        }
        self.leave_for_loader(ExitReason::PortWrite, u64::from(port), size, value)
    }

    /// Ports that the driver answers.
    #[inline]
    fn driver_port_read(&self, port: u16, size: u8) -> Option<u64> {
        match port {
            driver_ports::PM_TIMER if size == 4 => Some(self.vm.pm_timer()),
            driver_ports::POST_CODE => Some(u64::MAX),
            driver_ports::TIMER_CHANNEL_2 if E::PARAVIRTUAL => Some(0),
            _ => None,
        }
    }

    #[inline]
    fn leave_for_loader(&mut self, reason: ExitReason, address: u64, size: u8, data: u64) -> Next {
        let exit = reason as u32;
        self.leave = Leave::Loader(Run { exit, address, data, size: u32::from(size), ..Run::default() });
        Next::Leave
    }

    // Device memory.

    fn memory(&mut self, vcpu: &mut E::Vcpu, access: MemoryAccess) -> Next {
        if Vm::<H, E>::RAM_ON_DEMAND && self.vm.memory.is_ram(access.gpa) {
            return self.populate(access.gpa);
        }
        if access.page_walk {
            return self.kill(vcpu, KillReason::PageTableOutsideRam, access.gpa);
        }
        if access.fetch {
            return self.kill(vcpu, KillReason::CodeOutsideRam, access.gpa);
        }
        self.emulate(vcpu, Cause::Memory(access), None)
    }

    /// Leaves for host memory.
    #[cold]
    fn populate(&mut self, gpa: u64) -> Next {
        self.leave = Leave::Populate(gpa);
        Next::Leave
    }

    /// Emulates the current instruction.
    pub(crate) fn emulate(&mut self, vcpu: &mut E::Vcpu, cause: Cause, answer: Option<Answer>) -> Next {
        self.shared.count(StatsKind::Emulated);
        self.state.apic.set_task_priority(vcpu.task_priority());
        let memory = &self.vm.memory;
        let mut devices = Devices { handler: self, effect: Effect::None, next: Next::Resume, redirected: None };
        let outcome = emulate::emulate(vcpu, memory, &mut devices, cause, answer);
        let Devices { effect, next, redirected, .. } = devices;
        let after = self.outcome(vcpu, outcome, cause);
        let effect = self.effect(vcpu, effect);
        let sent = redirected.map_or(Next::Resume, |message| self.send(&message));
        [after, next, effect, sent].into_iter().find(|next| *next == Next::Leave).unwrap_or(Next::Resume)
    }

    pub(crate) fn outcome(&mut self, vcpu: &mut E::Vcpu, outcome: Outcome, cause: Cause) -> Next {
        match outcome {
            Outcome::Done => Next::Resume,
            Outcome::NeedRead { gpa, size } => {
                self.state.pending = Some(Pending::Memory { gpa, size, cause });
                self.leave_for_loader(ExitReason::MemoryRead, gpa, size, 0)
            }
            Outcome::Write { gpa, size, value } => self.leave_for_loader(ExitReason::MemoryWrite, gpa, size, value),
            Outcome::NeedPortRead { port, size } => match self.driver_port_read(port, size) {
                Some(value) => self.emulate(vcpu, cause, Some(Answer::Port { port, size, value })),
                None => {
                    self.state.pending = Some(Pending::PortElement { port, size, cause });
                    self.leave_for_loader(ExitReason::PortRead, u64::from(port), size, 0)
                }
            },
            Outcome::PortWrite { port, size, value } => self.port_write(port, size, u64::from(value)),
            Outcome::Fault(exception) => self.inject(vcpu, exception),
            Outcome::Unsupported(bytes) => {
                self.kill(vcpu, KillReason::UnsupportedInstruction, u64::from_le_bytes(bytes))
            }
            Outcome::Absent(gpa) => self.populate(gpa),
            Outcome::TableOutsideRam(gpa) => self.kill(vcpu, KillReason::PageTableOutsideRam, gpa),
            Outcome::FetchOutsideRam(gpa) => self.kill(vcpu, KillReason::CodeOutsideRam, gpa),
        }
    }

    /// The one way to end a guest.
    #[cold]
    pub(crate) fn kill(&mut self, vcpu: &E::Vcpu, reason: KillReason, detail: u64) -> Next {
        self.leave = Leave::Loader(Run { kill: reason as u32, detail, ..end(vcpu, ExitReason::Killed) });
        Next::Leave
    }
}

/// The devices in the driver, as an emulated instruction reaches them.
struct Devices<'h, 'a, H: Host, E: Engine> {
    handler: &'h mut Handler<'a, H, E>,
    effect: Effect,
    next: Next,
    /// What the I/O APIC sends.
    redirected: Option<Message>,
}

/// Offset in the page at `base`, where `gpa` is in it.
#[inline]
fn offset_in(base: u64, gpa: u64) -> Option<u64> {
    let offset = gpa.wrapping_sub(base);
    (offset < PAGE_SIZE).then_some(offset)
}

impl<H: Host, E: Engine> DeviceSpace for Devices<'_, '_, H, E> {
    fn read(&mut self, gpa: u64, size: u8) -> Option<u64> {
        if E::PARAVIRTUAL {
            return None;
        }
        if let Some(offset) = offset_in(LOCAL_APIC_BASE, gpa) {
            return Some(self.handler.state.apic.read_memory(offset, size, tsc()));
        }
        let offset = offset_in(IO_APIC_BASE, gpa)?;
        Some(self.handler.vm.io_apic.lock().read(offset, size))
    }

    fn write(&mut self, gpa: u64, size: u8, value: u64) -> bool {
        if let Some(index) = self.handler.vm.doorbells.find(DoorbellSpace::Memory, gpa, size) {
            self.handler.shared.count(StatsKind::Doorbells);
            self.handler.leave = Leave::Doorbell(index);
            self.next = Next::Leave;
            return true;
        }
        if E::PARAVIRTUAL {
            return false;
        }
        if let Some(offset) = offset_in(LOCAL_APIC_BASE, gpa) {
            self.effect = self.handler.state.apic.write_memory(offset, size, value, tsc());
            return true;
        }
        if let Some(offset) = offset_in(IO_APIC_BASE, gpa) {
            self.redirected = self.handler.vm.io_apic.lock().write(offset, size, value);
            return true;
        }
        false
    }
}
