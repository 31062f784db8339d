//! Interrupts into the guest.

use covisor_abi::Call;
use covisor_abi::ExitReason;
use covisor_abi::IrqLine;
use covisor_abi::MAX_GSI;
use covisor_abi::Msi;

use crate::case::Case;
use crate::case::Checked;
use crate::case::done;
use crate::case::refused;
use crate::code::Code;
use crate::code::HLT;
use crate::machine::Machine;
use crate::refusal::Refusal;

pub(crate) const CASES: &[Case] = &[
    Case { name: "interrupts/lines", shows: "every line of the I/O APIC can be set, and no other", run: lines },
    Case { name: "interrupts/messages", shows: "messages to APICs are taken, and no others", run: messages },
    Case {
        name: "interrupts/wake-a-halted-vcpu",
        shows: "an interrupt from another thread ends a vCPU's wait",
        run: wake,
    },
];

fn lines() -> Checked {
    let machine = Machine::new(&Code::new().write(0x10))?;
    let set = |gsi, level| machine.handle.call(Call::IrqLine, &mut IrqLine { gsi, level });
    for round in 0..2 {
        for gsi in 0..MAX_GSI {
            for level in [1, 1, 0, 0] {
                done(format!("line {gsi} to {level}"), set(gsi, level))?;
            }
        }
        for (gsi, level) in [(MAX_GSI, 1), (u32::MAX, 0), (1 << 31, 1), (0, 2), (0, u32::MAX), (MAX_GSI, 2)] {
            refused(format!("line {gsi} to {level}"), set(gsi, level), Refusal::Invalid)?;
        }
        if round == 0 {
            // And all again after the first run.
            machine.run_to_port(0x10, 0, 1)?;
        }
    }
    Ok(())
}

fn messages() -> Checked {
    let machine = Machine::new(&Code::new().write(0x10))?;
    let send = |address, data, reserved| machine.handle.call(Call::Msi, &mut Msi { address, data, reserved });
    for round in 0..2 {
        // To nobody who takes it: the APIC is off after its reset, and there is no vCPU 5.
        for (address, data) in [(0xfee0_0000, 0x41), (0xfee0_5000, 0x41), (0xfee0_300c, 0xc1fe), (0xfeef_f000, 0xc041)]
        {
            done(format!("message {data:#x} to {address:#x}"), send(address, data, 0))?;
        }
        let bad = [
            // Other addresses.
            (0, 0x41),
            (0xfed0_0000, 0x41),
            (0xfef0_0000, 0x41),
            (0x1_fee0_0000, 0x41),
            (u64::MAX, 0x41),
            // An exception's vector, SMI, a reserved mode, ExtINT, the end of a level.
            (0xfee0_0000, 0x0f),
            (0xfee0_0000, 0x241),
            (0xfee0_0000, 0x341),
            (0xfee0_0000, 0x741),
            (0xfee0_0000, 0x8041),
        ];
        for (address, data) in bad {
            refused(format!("message {data:#x} to {address:#x}"), send(address, data, 0), Refusal::Invalid)?;
        }
        refused("a message with a reserved word", send(0xfee0_0000, 0x41, 1), Refusal::Invalid)?;
        if round == 0 {
            machine.run_to_port(0x10, 0, 1)?;
        }
    }
    Ok(())
}

/// An NMI, which is taken whatever the flags and the APIC say. Its handler is what comes after the halt, too.
fn wake() -> Checked {
    let code = Code::new().mark().op(HLT);
    let handler = code.here();
    let code = code.al(0x4e).write(0x10);
    // With a second vCPU it is no halt for ever: that could send an interrupt.
    let machine = Machine::with_vcpus(2, &code)?;
    // The handler of vector 2, by offset and segment (Intel SDM vol. 3, 21.1.4).
    machine.ram.write(2 * 4, &handler.to_le_bytes()[..4]);
    machine.set(0, |state| state.idtr.limit = 0x3ff)?;
    let (run, ()) = machine.while_runs(0, |_| {
        done("an NMI", machine.handle.call(Call::Msi, &mut Msi { address: 0xfee0_0000, data: 0x400, reserved: 0 }))
    })?;
    let run = done("the run", run)?;
    let is_so = (run.exit, run.address, run.data) == (ExitReason::PortWrite as u32, 0x10, 0x4e);
    crate::case::ensure!(is_so, "{run:?}");
    Ok(())
}
