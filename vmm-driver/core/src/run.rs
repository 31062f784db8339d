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
use covisor_abi::KillReason;
use covisor_abi::Run;
use covisor_abi::StatsKind;

use crate::device::CallError;
use crate::emulate;
use crate::emulate::Answer;
use crate::emulate::Cause;
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
    if vm.stopped.load(Ordering::SeqCst) {
        return Err(CallError::Interrupted);
    }
    if E::PARAVIRTUAL {
        // Whoever sets the clock kicks the vCPU, which so comes here.
        owned.engine.show_wall_clock(vm.clock.wall_at_start(H::wall_clock_ns(), tsc()));
    }
    let mut leave = complete(vm, engine_vm, shared, owned, run.data)?;
    loop {
        match leave {
            Leave::Again => {}
            // Rung by a store that an answer of the loader's completed; the others are rung in enter().
            Leave::Doorbell(index) => vm.doorbells.ring(index),
            Leave::Notify(set) => vm.notify(set),
            Leave::WallClock => {
                owned.state.wall_clock = Some(vm.clock.wall_at_start(H::wall_clock_ns(), tsc()));
            }
            Leave::Populate(gpa) => {
                if vm.populate(engine_vm, gpa).is_err() {
                    leave = Leave::Loader(out_of_memory(&owned.engine, gpa));
                    continue;
                }
            }
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
    match reason {
        ExitReason::Shutdown
        | ExitReason::HaltedForever
        | ExitReason::Killed
        | ExitReason::PowerOff
        | ExitReason::Reset => true,
        ExitReason::Interrupted
        | ExitReason::PortRead
        | ExitReason::PortWrite
        | ExitReason::MemoryRead
        | ExitReason::MemoryWrite => false,
    }
}

/// The end of a guest whose RAM the host has no memory for.
#[cold]
fn out_of_memory<V: Vcpu>(vcpu: &V, gpa: u64) -> Run {
    Run { kill: KillReason::NoHostMemory as u32, detail: gpa, ..end(vcpu, ExitReason::Killed) }
}

/// The exit that tells the loader of an end.
pub(crate) fn end<V: Vcpu>(vcpu: &V, reason: ExitReason) -> Run {
    Run { exit: reason as u32, rip: vcpu.rip(), ..Run::default() }
}

/// Gives the guest what the loader read for it.
#[inline]
fn complete<H: Host, E: Engine>(
    vm: &Vm<H, E>,
    engine_vm: &E::Vm,
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
    complete_instruction(vm, engine_vm, shared, owned, cause, answer)
}

/// Carries out the instruction that wanted to know.
#[inline(never)]
fn complete_instruction<H: Host, E: Engine>(
    vm: &Vm<H, E>,
    engine_vm: &E::Vm,
    shared: &Shared<H>,
    owned: &mut Owned<E>,
    cause: Cause,
    answer: Answer,
) -> Result<Leave, CallError> {
    let Owned { engine, state } = owned;
    vm.slot.complete::<H>(engine).map_err(|_| CallError::NoEngine)?;
    let mut handler = Handler::new(vm, shared, state);
    loop {
        let next = handler.emulate(engine, cause, Some(answer));
        let leave = match next {
            Next::Resume => Leave::Again,
            Next::Leave => handler.leave,
        };
        // The answer is for this try only, so the memory comes at once.
        let Leave::Populate(gpa) = leave else { return Ok(leave) };
        if vm.populate(engine_vm, gpa).is_err() {
            return Ok(Leave::Loader(out_of_memory(engine, gpa)));
        }
    }
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

/// Whether nothing can end the halt: the guest does not take interrupts, and no other vCPU is there to send an NMI. A
/// paravirtual guest says so by itself ([`crate::exit::Exit::HaltForever`]).
fn is_halted_forever<H: Host, E: Engine>(parts: &Parts<H, E>, owned: &Owned<E>) -> bool {
    !E::PARAVIRTUAL
        && owned.engine.rflags() & RFlags::FLAGS_IF.bits() == 0
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
    shared.set_timer(deadline.map(|deadline| {
        let ticks = deadline.saturating_sub(tsc());
        // Rounded up: when the timer fires it is time.
        let nanoseconds = u128::from(ticks) * 1_000_000 / u128::from(H::machine().tsc_khz.max(1)) + 1;
        u64::try_from(nanoseconds).unwrap_or(u64::MAX)
    }));
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
    let here = vm.slot.settle::<H>(&mut owned.engine);
    arm_for_guest(shared, owned);
    shared.enter(here);
    H::interrupts_off();
    // With interrupts off: what comes now makes the guest exit at once, so nothing is overlooked. A kick that came since it was looked for,
    // and before the CPU could be seen, interrupted nothing.
    let outcome = if H::must_yield() || shared.kicked.load(Ordering::SeqCst) {
        Err(None)
    } else {
        // SAFETY: interrupts are off, and this is the only reference on this CPU until they are on.
        unsafe { vm.slot.cpu_here::<H>(here) }.map_err(Some)
    };
    let leave = outcome.map(|cpu| {
        let Owned { engine, state } = owned;
        state.apic.expire(tsc());
        let mut handler = Handler::new(vm, shared, state);
        loop {
            handler.deliver(engine);
            H::in_guest(E::STAY, || {
                // SAFETY: preemption and interrupts are off, the CPU is this one and enabled, the vCPU is this VM's and ours.
                unsafe { vm.slot.engine().run(cpu, engine_vm, engine, &mut handler) };
            });
            let Leave::Doorbell(index) = handler.leave else { return handler.leave };
            // The short way for what guests do most: the thread stays where it is.
            handler.leave = Leave::Again;
            // SAFETY: interrupts are off since run() returned.
            unsafe { E::hand_over(engine) };
            H::interrupts_on();
            vm.doorbells.ring(index);
            H::interrupts_off();
            if H::must_yield() || shared.wants_attention() {
                return Leave::Again;
            }
        }
    });
    shared.leave();
    // SAFETY: it is called with interrupts off, which they are since run() returned, if it was called.
    H::let_go(|| unsafe { E::hand_over(&mut owned.engine) });
    match leave {
        Ok(leave) => Ok(leave),
        Err(None) => {
            H::yield_now()?;
            Ok(Leave::Again)
        }
        Err(Some(_)) => Err(CallError::NoEngine),
    }
}

#[cfg(test)]
mod tests {
    use covisor_abi::Call;
    use covisor_abi::Kick;

    use super::*;
    use crate::test_support::MockEngine;
    use crate::test_support::MockHost;
    use crate::test_support::machine::Machine;

    #[test]
    fn test_a_kick_on_the_way_in_keeps_the_guest_out() {
        let machine: &Machine = Box::leak(Box::new(Machine::new::<MockEngine>()));
        MockEngine::set_script(Box::new(|_| None));
        machine.run_to_signal();
        MockHost::set_signal(false);
        let entries = MockEngine::entries();
        // It finds no CPU to interrupt, and nobody asleep.
        MockHost::before_preempt_off(|| {
            machine.call(Call::Kick, Kick::default()).expect("the vCPU is there");
        });
        let run = machine.run(0).expect("it returns");
        assert_eq!((run.exit, MockEngine::entries()), (ExitReason::Interrupted as u32, entries));
    }
}
