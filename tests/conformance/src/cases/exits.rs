//! What a guest asks of the program.

use covisor_abi::Call;
use covisor_abi::ExitReason;
use covisor_abi::Stats;
use covisor_abi::StatsKind;

use crate::case::Case;
use crate::case::Checked;
use crate::case::done;
use crate::case::ensure;
use crate::case::refused;
use crate::code;
use crate::code::CLI;
use crate::code::Code;
use crate::code::DEVICE_MEMORY;
use crate::code::HLT;
use crate::machine::DS;
use crate::machine::Machine;
use crate::machine::RAX;
use crate::refusal::Refusal;

pub(crate) const CASES: &[Case] = &[
    Case {
        name: "exits/port-writes",
        shows: "a write to a port comes with its address, value and size",
        run: port_writes,
    },
    Case {
        name: "exits/port-reads",
        shows: "the answer to a read of a port reaches the guest, in its size",
        run: port_reads,
    },
    Case {
        name: "exits/device-memory-write",
        shows: "a write to device memory comes with its address and value",
        run: device_write,
    },
    Case {
        name: "exits/device-memory-read",
        shows: "the answer to a read of device memory reaches the guest",
        run: device_read,
    },
    Case {
        name: "exits/halted-for-ever",
        shows: "a halt that nothing can end is told, and final",
        run: halted_for_ever,
    },
    Case { name: "exits/shutdown", shows: "a triple fault is told, and final", run: shutdown },
    Case { name: "exits/stats", shows: "what a vCPU did is counted", run: stats },
    Case { name: "exits/thousands", shows: "thousands of exits, each with the value that is its own", run: thousands },
];

/// A port of the program's.
const PORT: u16 = 0x5678;

fn port_writes() -> Checked {
    let code = Code::new()
        .al(0x5a)
        .write(0xed)
        .dx(PORT)
        .op(code::OUT_DX_AL)
        .ax(0xbeef)
        .op(code::OUT_DX_AX)
        .then(code::OUT_DX_EAX)
        .dx(u16::MAX)
        .op(code::OUT_DX_AL);
    let machine = Machine::new(&code)?;
    machine.set(0, |state| state.gprs[RAX] = 0x1122_3344_5566_7788)?;
    machine.run_to_port(0xed, 0x5a, 1)?;
    machine.run_to_port(PORT.into(), 0x5a, 1)?;
    machine.run_to_port(PORT.into(), 0xbeef, 2)?;
    machine.run_to_port(PORT.into(), 0x5566_beef, 4)?;
    machine.run_to_port(0xffff, 0xef, 1)
}

fn port_reads() -> Checked {
    let code = Code::new().read(0xed).dx(PORT).op(code::IN_AL_DX).op(code::IN_AX_DX).then(code::IN_EAX_DX).write(0x10);
    let machine = Machine::new(&code)?;
    machine.set(0, |state| state.gprs[RAX] = 0x1122_3344_5566_7788)?;
    // What is answered has more bits than count, each time; the last kept are the guest's.
    let mut answer = 0;
    let rax_after = [0x1122_3344_5566_7788_u64, 0x1122_3344_5566_77a1, 0x1122_3344_5566_77b2, 0x1122_3344_5566_c3c3];
    for ((port, size, next), rax) in [
        (0xed, 1, u64::MAX << 8 | 0xa1),
        (PORT, 1, u64::MAX << 8 | 0xb2),
        (PORT, 2, u64::MAX << 16 | 0xc3c3),
        (PORT, 4, u64::MAX << 32 | 0xd4d4_e5e5),
    ]
    .into_iter()
    .zip(rax_after)
    {
        let run = machine.answer(0, answer, ExitReason::PortRead)?;
        ensure!((run.address, run.size) == (port.into(), size), "{size} bytes of port {port:#x}, and not {run:?}");
        let state = done("reading registers", machine.handle.state(0))?;
        ensure!(state.gprs[RAX] == rax, "RAX is {:#x} and not {rax:#x}", state.gprs[RAX]);
        answer = next;
    }
    let run = machine.answer(0, answer, ExitReason::PortWrite)?;
    ensure!((run.address, run.data) == (0x10, 0xe5), "{run:?}");
    let rax = done("reading registers", machine.handle.state(0))?.gprs[RAX];
    ensure!(rax == 0xd4d4_e5e5, "RAX is {rax:#x}");
    Ok(())
}

fn device_write() -> Checked {
    let machine = Machine::new(&Code::new().al(0xc9).store(0x234).write(0x10))?;
    machine.set(0, |state| state.segments[DS].base = DEVICE_MEMORY)?;
    let run = machine.run(0, ExitReason::MemoryWrite)?;
    let is_so = (run.address, run.data, run.size) == (DEVICE_MEMORY + 0x234, 0xc9, 1);
    ensure!(is_so, "{run:?}");
    machine.run_to_port(0x10, 0xc9, 1)
}

fn device_read() -> Checked {
    let machine = Machine::new(&Code::new().load(0x235).write(0x10))?;
    machine.set(0, |state| state.segments[DS].base = DEVICE_MEMORY)?;
    let run = machine.run(0, ExitReason::MemoryRead)?;
    ensure!((run.address, run.size) == (DEVICE_MEMORY + 0x235, 1), "{run:?}");
    let run = machine.answer(0, 0xffff_ff42, ExitReason::PortWrite)?;
    ensure!((run.address, run.data) == (0x10, 0x42), "{run:?}");
    Ok(())
}

/// Runs a guest to its end, and tries to run it on.
fn end(code: &Code, reason: ExitReason) -> Checked<u64> {
    let machine = Machine::new(code)?;
    let run = machine.run(0, reason)?;
    for _ in 0..3 {
        let again = machine.answer(0, 7, reason)?;
        ensure!(again.rip == run.rip, "it ended at {:#x}, and then at {:#x}", run.rip, again.rip);
    }
    Ok(run.rip)
}

fn halted_for_ever() -> Checked {
    let code = Code::new().op(CLI).op(HLT);
    let rip = end(&code, ExitReason::HaltedForever)?;
    ensure!(rip == code.here(), "it halts at {rip:#x}");
    Ok(())
}

fn shutdown() -> Checked {
    end(&Code::new().then(code::UD2), ExitReason::Shutdown).map(drop)
}

fn stats() -> Checked {
    let machine = Machine::new(&Code::new().write(0x10).write(0x11).write(0x12))?;
    let counts = |vcpu, reserved| {
        let mut stats = Stats { vcpu, reserved, ..Stats::default() };
        machine.handle.call(Call::Stats, &mut stats).map(|()| stats.counts)
    };
    let before = done("Stats before the first run", counts(0, 0))?;
    ensure!(before == [0; 8], "before the first run: {before:?}");
    for port in [0x10, 0x11, 0x12] {
        machine.run_to_port(port, 0, 1)?;
    }
    let after = done("Stats", counts(0, 0))?;
    let to_program = after[StatsKind::ToLoader as usize];
    ensure!(to_program == 3 && after[StatsKind::Exits as usize] >= 3, "after three writes: {after:?}");
    for vcpu in [1, 64, u32::MAX] {
        refused(format!("Stats of vCPU {vcpu}"), counts(vcpu, 0), Refusal::NotFound)?;
    }
    Ok(())
}

fn thousands() -> Checked {
    // in al, 0x20; out 0x21, al; jmp back
    let machine = Machine::new(&Code::new().read(0x20).write(0x21).then([0xeb, 0xfa]))?;
    let mut last = 0_u64;
    for round in 0..2000_u64 {
        let run = machine.run(0, ExitReason::PortRead)?;
        ensure!(run.address == 0x20, "round {round}: {run:?}");
        last = round & 0xff;
        let run = machine.answer(0, last, ExitReason::PortWrite)?;
        ensure!((run.address, run.data) == (0x21, last), "round {round}: {run:?}");
    }
    ensure!(last == 1999 & 0xff, "the last was {last}");
    Ok(())
}
