//! `Run` and what ends it.

use std::time::Duration;
use std::time::Instant;

use covisor_abi::Call;
use covisor_abi::ExitReason;
use covisor_abi::Kick;

use crate::case::Case;
use crate::case::Checked;
use crate::case::done;
use crate::case::ensure;
use crate::case::refused;
use crate::code::CODE;
use crate::code::Code;
use crate::code::HLT;
use crate::code::STI;
use crate::host::Caller;
use crate::machine::Handle;
use crate::machine::Machine;
use crate::machine::is_interrupted;
use crate::refusal::Refusal;

pub(crate) const CASES: &[Case] = &[
    Case { name: "run/no-vcpu", shows: "a vCPU that is not there does not run", run: no_vcpu },
    Case {
        name: "run/one-thread-at-a-time",
        shows: "a second thread that runs the vCPU is told that it is busy",
        run: one_thread,
    },
    Case { name: "run/two-vcpus", shows: "vCPUs run at the same time, and share the RAM", run: two_vcpus },
    Case {
        name: "run/kicked-before",
        shows: "a kick of a vCPU that does not run ends its next run at once",
        run: kicked_before,
    },
    Case {
        name: "run/kicked-while-it-runs",
        shows: "a kick from another thread ends the run of a guest that only runs",
        run: kicked,
    },
    Case { name: "run/kicked-while-it-halts", shows: "a kick ends the wait for an interrupt", run: kicked_in_a_halt },
    Case {
        name: "run/kicks-that-are-wrong",
        shows: "a kick of no vCPU, or with more than that, is refused",
        run: wrong_kicks,
    },
    Case {
        name: "run/ended-from-outside",
        shows: "a signal, or a cancel, ends the run, and nothing is lost",
        run: ended_from_outside,
    },
    Case {
        name: "run/ended-in-a-halt",
        shows: "a signal, or a cancel, ends the wait for an interrupt",
        run: ended_in_a_halt,
    },
    Case {
        name: "run/ended-again-and-again",
        shows: "no moment is the wrong one for a kick",
        run: ended_again_and_again,
    },
];

/// How long a kick may take, busy machines in mind.
const PROMPT: Duration = Duration::from_secs(10);

fn no_vcpu() -> Checked {
    let handle = Handle::with_vm(2)?;
    done("vCPU 0", handle.create_vcpu(0, 0))?;
    [1, 2, 63, 64, 1 << 31, u32::MAX]
        .into_iter()
        .try_for_each(|vcpu| refused(format!("running vCPU {vcpu}"), handle.run(vcpu, 0), Refusal::NotFound))
}

/// Says that it is there, and runs on.
fn spinning() -> Code {
    Code::new().mark().spin()
}

/// Says that it is there, and waits for an interrupt.
fn halted() -> Code {
    Code::new().mark().op(STI).op(HLT).write(0x10)
}

fn one_thread() -> Checked {
    let machine = Machine::new(&spinning())?;
    let (run, ()) = machine.while_runs(0, |_| {
        for _ in 0..10 {
            refused("a second run", machine.handle.run(0, 0), Refusal::Busy)?;
        }
        done("a kick", machine.handle.kick(0))
    })?;
    ensure!(is_interrupted(&run), "{run:?}");
    Ok(())
}

fn two_vcpus() -> Checked {
    // The second one writes where the first one sees it.
    const SEEN: u16 = 0x2001;
    let code = spinning();
    let machine = Machine::with_vcpus(2, &code)?;
    let second = code.here();
    machine.ram.write(second, Code::new().al(0x99).store(SEEN).write(0x10).bytes());
    machine.set(1, |state| state.rip = second)?;
    let (run, ()) = machine.while_runs(0, |_| {
        let run = machine.run(1, ExitReason::PortWrite)?;
        ensure!((run.address, run.data) == (0x10, 0x99), "the second vCPU: {run:?}");
        ensure!(machine.ram.byte(SEEN.into()) == 0x99, "the second vCPU's write is not there");
        done("a kick", machine.handle.kick(0))
    })?;
    ensure!(is_interrupted(&run), "the first vCPU: {run:?}");
    Ok(())
}

fn kicked_before() -> Checked {
    let machine = Machine::new(&Code::new().write(0x10).write(0x11))?;
    done("a kick", machine.handle.kick(0))?;
    done("another one", machine.handle.kick(0))?;
    machine.run(0, ExitReason::Interrupted)?;
    machine.run_to_port(0x10, 0, 1)?;
    done("a kick between runs", machine.handle.kick(0))?;
    machine.run(0, ExitReason::Interrupted)?;
    machine.run_to_port(0x11, 0, 1)
}

fn kicked() -> Checked {
    let machine = Machine::new(&spinning())?;
    let (run, start) = machine.while_runs(0, |_| {
        done("a kick", machine.handle.kick(0))?;
        Ok(Instant::now())
    })?;
    ensure!(is_interrupted(&run), "{run:?}");
    ensure!(start.elapsed() < PROMPT, "the run went on for {:?} after the kick", start.elapsed());
    Ok(())
}

fn kicked_in_a_halt() -> Checked {
    let machine = Machine::new(&halted())?;
    let (run, ()) = machine.while_runs(0, |_| {
        // Long enough for it to come to the halt; it would be no error if not.
        std::thread::sleep(Duration::from_millis(20));
        done("a kick", machine.handle.kick(0))
    })?;
    ensure!(is_interrupted(&run), "{run:?}");
    Ok(())
}

fn wrong_kicks() -> Checked {
    let machine = Machine::new(&Code::new().write(0x10))?;
    let kick = |vcpu, reserved| machine.handle.call(Call::Kick, &mut Kick { vcpu, reserved });
    for vcpu in [1, 63, 64, 1 << 31, u32::MAX] {
        refused(format!("a kick of vCPU {vcpu} before the first run"), kick(vcpu, 0), Refusal::NotFound)?;
    }
    refused("a kick with a reserved word", kick(0, 1), Refusal::Invalid)?;
    machine.run_to_port(0x10, 0, 1)?;
    for vcpu in [1, 63, 64, 1 << 31, u32::MAX] {
        refused(format!("a kick of vCPU {vcpu}"), kick(vcpu, 0), Refusal::NotFound)?;
    }
    refused("a kick with a reserved word", kick(0, u32::MAX), Refusal::Invalid)
}

/// Ends a run from outside: it returns as if it were kicked, or says that the call was interrupted.
fn end_from_outside(machine: &Machine, wait: Duration) -> Checked {
    let (run, ()) = machine.while_runs(0, |caller: Caller| {
        std::thread::sleep(wait);
        caller.end_call(machine.handle.transport());
        Ok(())
    })?;
    let ended = is_interrupted(&run) || run.as_ref().is_err_and(|error| Refusal::Interrupted.is(error));
    ensure!(ended, "the run that was ended from outside: {run:?}");
    Ok(())
}

fn ended_from_outside() -> Checked {
    let machine = Machine::new(&spinning())?;
    end_from_outside(&machine, Duration::ZERO)?;
    let state = done("reading registers", machine.handle.state(0))?;
    ensure!((CODE..spinning().here()).contains(&state.rip), "the guest is at {:#x}", state.rip);
    // It goes on where it was.
    machine.ram.write(state.rip, Code::new().write(0x10).bytes());
    machine.run_to_port(0x10, 1, 1)
}

fn ended_in_a_halt() -> Checked {
    let machine = Machine::new(&halted())?;
    end_from_outside(&machine, Duration::from_millis(20))?;
    done("a kick", machine.handle.kick(0))?;
    // It still waits, so that the kick ends that, and nothing else.
    machine.run(0, ExitReason::Interrupted).map(drop)
}

fn ended_again_and_again() -> Checked {
    let machine = Machine::new(&spinning())?;
    for round in 0..50_u32 {
        let (run, ()) = machine.while_runs(0, |_| {
            (0..round % 7).for_each(|_| std::thread::yield_now());
            done("a kick", machine.handle.kick(0))
        })?;
        ensure!(is_interrupted(&run), "round {round}: {run:?}");
    }
    Ok(())
}
