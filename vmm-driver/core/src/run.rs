//! `RUN`: the loop of a vCPU's thread, around the engine.
//!
//! ```text
//! run()     complete what the loader was asked ─► sleep in HLT ─► timer, interrupts off ─► Engine::run()
//!   ▲                                                                                         │ exits
//!   │                                                                                         ▼
//!   └── doorbell, other vCPUs, yield ◄── Next::Leave ◄── exits.rs: ExitHandler::on_exit() ── Next::Resume
//!                      │
//!                      ▼
//!                 to the loader
//! ```

use core::sync::atomic::Ordering;

use covisor_abi::ExitReason;
use covisor_abi::Run;
use covisor_abi::StatsKind;

use crate::device::CallError;
use crate::emulate;
use crate::emulate::Answer;
use crate::engine::Engine;
use crate::engine::Next;
use crate::engine::Vcpu;
use crate::exits::Handler;
use crate::exits::Leave;
use crate::host::Host;
use crate::registers::RFlags;
use crate::vcpu::Owned;
use crate::vcpu::Pending;
use crate::vcpu::Shared;
use crate::vcpu::VcpuState;
use crate::vm::Parts;
use crate::vm::Vm;
use crate::vm::tsc;

/// Runs a vCPU until it needs the loader.
pub(crate) fn run<H: Host, E: Engine>(
    vm: &Vm<H, E>,
    parts: &Parts<H, E>,
    shared: &Shared<H>,
    owned: &mut Owned<E>,
    run: &mut Run,
) -> Result<(), CallError> {
    if let Some(ended) = owned.state.ended {
        *run = ended;
        return Ok(());
    }
    let engine_vm = parts.vm.as_ref().ok_or(CallError::Busy)?;
    let mut leave = complete(vm, shared, owned, run.data)?;
    loop {
        match leave {
            Leave::Again => {}
            // Rung by a store that an answer of the loader's completed; the others are rung in enter().
            Leave::Doorbell(index) => vm.doorbells.ring(index),
            Leave::Notify(set) => vm.notify(set),
            Leave::Loader(ref exit) => return to_loader(shared, owned, exit, run),
        }
        leave = Leave::Again;
        if shared.kicked.load(Ordering::Relaxed) && shared.kicked.swap(false, Ordering::SeqCst) {
            *run = Run { vcpu: run.vcpu, exit: ExitReason::Interrupted as u32, ..Run::default() };
            return Ok(());
        }
        if owned.state.halted {
            if is_halted_forever(parts, owned) {
                leave = Leave::Loader(end(&owned.engine, ExitReason::HaltedForever));
                continue;
            }
            wait(vm, shared, owned)?;
            continue;
        }
        leave = enter(vm, engine_vm, shared, owned)?;
    }
}

/// Returns to the loader.
#[inline]
fn to_loader<H: Host, E: Engine>(
    shared: &Shared<H>,
    owned: &mut Owned<E>,
    exit: &Run,
    run: &mut Run,
) -> Result<(), CallError> {
    shared.count(StatsKind::ToLoader);
    let vcpu = run.vcpu;
    *run = *exit;
    run.vcpu = vcpu;
    if ExitReason::from_u32(exit.exit).is_some_and(is_end) {
        owned.state.ended = Some(*run);
    }
    Ok(())
}

/// Whether the vCPU does not run again after this exit.
const fn is_end(reason: ExitReason) -> bool {
    matches!(reason, ExitReason::Shutdown | ExitReason::HaltedForever | ExitReason::Killed)
}

/// The exit that tells the loader of an end.
pub(crate) fn end<V: Vcpu>(vcpu: &V, reason: ExitReason) -> Run {
    Run { exit: reason as u32, rip: vcpu.rip(), ..Run::default() }
}

/// Gives the guest what the loader read for it.
fn complete<H: Host, E: Engine>(
    vm: &Vm<H, E>,
    shared: &Shared<H>,
    owned: &mut Owned<E>,
    data: u64,
) -> Result<Leave, CallError> {
    let (cause, answer) = match owned.state.pending.take() {
        None => return Ok(Leave::Again),
        Some(Pending::PortRead { size, next_rip }) => {
            set_port_value(&mut owned.engine, size, data);
            emulate::skip(&mut owned.engine, next_rip);
            return Ok(Leave::Again);
        }
        Some(Pending::PortElement { port, size, cause }) => (cause, Answer::Port { port, size, value: data }),
        Some(Pending::Memory { gpa, size, cause }) => (cause, Answer::Memory { gpa, size, value: data }),
    };
    let Owned { engine, state } = owned;
    vm.slot.complete::<H>(engine).map_err(|_| CallError::NoEngine)?;
    let mut handler = Handler::new(vm, shared, state);
    let next = handler.emulate(engine, cause, Some(answer));
    Ok(match next {
        Next::Resume => Leave::Again,
        Next::Leave => handler.leave,
    })
}

/// Puts what was read from a port into AL, AX or EAX; 32 bits clear the upper half.
pub(crate) fn set_port_value<V: Vcpu>(vcpu: &mut V, size: u8, value: u64) {
    let rax = &mut vcpu.gprs_mut().rax;
    *rax = match size {
        1 => *rax & !0xff | value & 0xff,
        2 => *rax & !0xffff | value & 0xffff,
        _ => value & 0xffff_ffff,
    };
}

/// Whether nothing can end the halt: the guest does not take interrupts, and no other vCPU is there to send an NMI.
fn is_halted_forever<H: Host, E: Engine>(parts: &Parts<H, E>, owned: &Owned<E>) -> bool {
    owned.engine.rflags() & RFlags::FLAGS_IF.bits() == 0
        && parts.vcpus.len() == 1
        && !owned.state.nmi
        && !owned.engine.injection_waits()
}

/// Arms the CPU's own timer for the local APIC's while the guest runs, or where it has none the host's. Preemption is off.
fn arm_for_guest<H: Host, E: Engine>(shared: &Shared<H>, owned: &mut Owned<E>) {
    forget_fired(shared, &mut owned.state);
    let deadline = owned.state.apic.deadline();
    if !owned.engine.set_deadline(deadline) {
        arm(shared, &mut owned.state);
    }
}

/// A timer that fired is not armed any more.
fn forget_fired<H: Host>(shared: &Shared<H>, state: &mut VcpuState) {
    if shared.timer_fired.load(Ordering::Relaxed) {
        shared.timer_fired.store(false, Ordering::SeqCst);
        state.armed = None;
    }
}

/// Arms the host's timer for the local APIC's, where it is not armed so already. Preemption may be on.
fn arm<H: Host>(shared: &Shared<H>, state: &mut VcpuState) {
    forget_fired(shared, state);
    let deadline = state.apic.deadline();
    if deadline == state.armed {
        return;
    }
    match deadline {
        Some(deadline) => {
            let ticks = deadline.saturating_sub(tsc());
            // Rounded up: when the timer fires it is time.
            let nanoseconds = u128::from(ticks) * 1_000_000 / u128::from(H::tsc_khz().max(1)) + 1;
            shared.set_timer(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        }
        None => shared.cancel_timer(),
    }
    state.armed = deadline;
}

/// Sleeps in HLT until something is there for the guest, or the loader wants the thread.
fn wait<H: Host, E: Engine>(vm: &Vm<H, E>, shared: &Shared<H>, owned: &mut Owned<E>) -> Result<(), CallError> {
    arm(shared, &mut owned.state);
    H::wait(&shared.waker, || {
        !shared.inbox.is_empty() || shared.timer_fired.load(Ordering::SeqCst) || shared.kicked.load(Ordering::SeqCst)
    })?;
    let Owned { engine, state } = owned;
    state.apic.expire(tsc());
    let mut handler = Handler::new(vm, shared, state);
    handler.collect();
    handler.end_halt(engine);
    Ok(())
}

/// Enters the guest and comes back when the host has to run.
fn enter<H: Host, E: Engine>(
    vm: &Vm<H, E>,
    engine_vm: &E::Vm,
    shared: &Shared<H>,
    owned: &mut Owned<E>,
) -> Result<Leave, CallError> {
    H::preempt_off();
    arm_for_guest(shared, owned);
    let here = H::cpu();
    vm.slot.give_up::<H>(&owned.engine, Some(here));
    shared.enter(here);
    H::interrupts_off();
    // With interrupts off: what comes now makes the guest exit at once, so nothing is overlooked.
    let outcome = if H::must_yield() {
        Err(None)
    } else {
        // SAFETY: interrupts are off, and this is the only reference on this CPU until they are on.
        unsafe { vm.slot.cpu_here::<H>() }.map_err(Some)
    };
    let leave = outcome.map(|cpu| {
        let Owned { engine, state } = owned;
        state.apic.expire(tsc());
        let mut handler = Handler::new(vm, shared, state);
        loop {
            handler.deliver(engine);
            // SAFETY: preemption and interrupts are off, the CPU is this one and enabled, the vCPU is this VM's and ours.
            unsafe { vm.slot.engine().run(cpu, engine_vm, engine, &mut handler) };
            if E::CUTS_TASK_SEGMENT {
                H::task_segment_cut();
            }
            let Leave::Doorbell(index) = handler.leave else { return handler.leave };
            // The short way for what guests do most: the thread stays where it is.
            handler.leave = Leave::Again;
            H::interrupts_on();
            vm.doorbells.ring(index);
            H::interrupts_off();
            if H::must_yield() || shared.wants_attention() {
                return Leave::Again;
            }
        }
    });
    H::interrupts_on();
    shared.leave();
    H::preempt_on();
    match leave {
        Ok(leave) => Ok(leave),
        Err(None) => {
            H::yield_now()?;
            Ok(Leave::Again)
        }
        Err(Some(_)) => Err(CallError::NoEngine),
    }
}
