//! vCPUs and their registers.

use covisor_abi::Segment;
use covisor_abi::VcpuCreate;
use covisor_abi::VcpuState;

use crate::case::Case;
use crate::case::Checked;
use crate::case::done;
use crate::case::ensure;
use crate::case::refused;
use crate::code::CODE;
use crate::code::Code;
use crate::machine::Handle;
use crate::machine::Machine;
use crate::machine::is_interrupted;
use crate::refusal::Refusal;

pub(crate) const CASES: &[Case] = &[
    Case {
        name: "vcpu/in-their-order",
        shows: "vCPUs are made in their order, each once, and no more than were said",
        run: in_their_order,
    },
    Case { name: "vcpu/flags", shows: "a vCPU has no flags that its engine does not know", run: flags },
    Case { name: "vcpu/after-the-first-run", shows: "vCPUs are fixed when one has run", run: after_the_first_run },
    Case { name: "vcpu/after-reset", shows: "a new vCPU is as a CPU after its reset", run: after_reset },
    Case {
        name: "vcpu/registers-come-back",
        shows: "registers that were set are read again",
        run: registers_come_back,
    },
    Case {
        name: "vcpu/bad-registers",
        shows: "values that no CPU could have are refused, and change nothing",
        run: bad_registers,
    },
    Case {
        name: "vcpu/none-of-that-number",
        shows: "a vCPU that is not there has no registers",
        run: none_of_that_number,
    },
    Case {
        name: "vcpu/registers-while-it-runs",
        shows: "a vCPU that runs keeps its registers to itself",
        run: while_it_runs,
    },
];

fn in_their_order() -> Checked {
    let handle = Handle::with_vm(3)?;
    refused("vCPU 1 as the first", handle.create_vcpu(1, 0), Refusal::Invalid)?;
    done("vCPU 0", handle.create_vcpu(0, 0))?;
    refused("vCPU 0 again", handle.create_vcpu(0, 0), Refusal::Exists)?;
    refused("vCPU 2 before 1", handle.create_vcpu(2, 0), Refusal::Invalid)?;
    done("vCPU 1", handle.create_vcpu(1, 0))?;
    done("vCPU 2", handle.create_vcpu(2, 0))?;
    for vcpu in [3, 4, 63, 64, 1 << 31, u32::MAX] {
        refused(format!("vCPU {vcpu} of 3"), handle.create_vcpu(vcpu, 0), Refusal::Invalid)?;
    }
    Ok(())
}

fn flags() -> Checked {
    let handle = Handle::with_vm(1)?;
    for flags in [VcpuCreate::CHECKS, 2, 3, 1 << 31, u32::MAX] {
        refused(format!("flags {flags:#x}"), handle.create_vcpu(0, flags), Refusal::Invalid)?;
    }
    done("no flags", handle.create_vcpu(0, 0))
}

fn after_the_first_run() -> Checked {
    let handle = Handle::with_vm(2)?;
    done("vCPU 0", handle.create_vcpu(0, 0))?;
    // The first run is one, be it of a vCPU that is not there.
    refused("running vCPU 1", handle.run(1, 0), Refusal::NotFound)?;
    refused("vCPU 1", handle.create_vcpu(1, 0), Refusal::Busy)
}

fn after_reset() -> Checked {
    let handle = Handle::with_vm(1)?;
    done("vCPU 0", handle.create_vcpu(0, 0))?;
    let state = done("reading registers", handle.state(0))?;
    let [_, cs, ..] = state.segments;
    let is_so = state.rip == 0xfff0
        && (cs.base, cs.selector, cs.limit) == (0xffff_0000, 0xf000, 0xffff)
        && (state.rflags, state.cr0, state.cr3, state.cr4, state.efer) == (2, 0x6000_0010, 0, 0, 0)
        && state.xcr0 == 1;
    ensure!(is_so, "{state:?}");
    Ok(())
}

/// Registers of real mode, all different.
fn different() -> VcpuState {
    let segment =
        |number: u16, attributes| Segment { base: u64::from(number) << 4, limit: 0xffff, selector: number, attributes };
    let mut state = VcpuState {
        gprs: std::array::from_fn(|index| 0x0101_0101_0101_0101 * (index as u64 + 1)),
        rip: 0x1234,
        rflags: 0x0cd7,
        segments: [(0x111, 0x93), (0x211, 0x9b), (0x311, 0x93), (0x411, 0x93), (0x511, 0x93), (0x611, 0x93)]
            .map(|(number, attributes)| segment(number, attributes)),
        ldtr: segment(0x777, 0x82),
        tr: segment(0x888, 0x8b),
        cr0: 0x10,
        cr2: 0xabcd_e000,
        cr3: 0x7000,
        ..VcpuState::default()
    };
    (state.gdtr.base, state.gdtr.limit) = (0x5000, 0x7f);
    (state.idtr.base, state.idtr.limit) = (0x6000, 0x3ff);
    state
}

fn registers_come_back() -> Checked {
    let handle = Handle::with_vm(2)?;
    done("vCPU 0", handle.create_vcpu(0, 0))?;
    done("vCPU 1", handle.create_vcpu(1, 0))?;
    let before = done("reading registers", handle.state(1))?;
    let set = different();
    done("setting registers", handle.set_state(&set))?;
    let read = done("reading registers", handle.state(0))?;
    // What XCR0 is set to is ignored.
    let expected = VcpuState { xcr0: read.xcr0, ..set };
    ensure!(read == expected, "set {expected:?}\nread {read:?}");
    let other = done("reading registers", handle.state(1))?;
    ensure!(other == before, "the other vCPU's registers were changed to {other:?}");
    Ok(())
}

/// A change of registers, and what it is called.
type Change = (&'static str, fn(&mut VcpuState));

const BAD: [Change; 22] = [
    ("a reserved word", |state| state.reserved = 1),
    ("an instruction pointer that is not canonical", |state| state.rip = 1 << 47),
    ("another one", |state| state.rip = 1 << 63),
    ("reserved flags", |state| state.rflags |= 1 << 3),
    ("flags of the upper half", |state| state.rflags |= 1 << 40),
    ("virtual 8086 mode", |state| state.rflags |= 1 << 17),
    ("a privilege level for ports", |state| state.rflags |= 3 << 12),
    ("a code segment with too many attributes", |state| state.segments[1].attributes |= 1 << 12),
    ("a stack segment with too many", |state| state.segments[2].attributes |= 1 << 15),
    ("a task with too many", |state| state.tr.attributes = u16::MAX),
    ("a local table with too many", |state| state.ldtr.attributes |= 1 << 13),
    ("a base that is not canonical", |state| state.segments[4].base = 1 << 50),
    ("a task's base that is not", |state| state.tr.base = 0x8000_0000_0000),
    ("a long global table", |state| state.gdtr.limit = 0x1_0000),
    ("a long interrupt table", |state| state.idtr.limit = u64::MAX),
    ("an interrupt table that is not canonical", |state| state.idtr.base = 1 << 60),
    ("paging without protection", |state| state.cr0 |= 1 << 31),
    ("a reserved bit of CR0", |state| state.cr0 |= 1 << 20),
    ("the upper half of CR0", |state| state.cr0 |= 1 << 32),
    ("a reserved bit of CR4", |state| state.cr4 |= 1 << 63),
    ("virtualization in EFER", |state| state.efer |= 1 << 12),
    ("long mode active without paging", |state| state.efer |= 1 << 10),
];

fn bad_registers() -> Checked {
    let handle = Handle::with_vm(1)?;
    done("vCPU 0", handle.create_vcpu(0, 0))?;
    let good = VcpuState { xcr0: 1, ..different() };
    done("setting registers", handle.set_state(&good))?;
    for (what, change) in BAD {
        let mut bad = VcpuState { gprs: [0x77; 16], ..good };
        change(&mut bad);
        refused(what, handle.set_state(&bad), Refusal::Invalid)?;
        let state = done("reading registers", handle.state(0))?;
        ensure!(state == good, "{what} was refused, and changed registers to {state:?}");
    }
    Ok(())
}

fn none_of_that_number() -> Checked {
    let handle = Handle::with_vm(2)?;
    done("vCPU 0", handle.create_vcpu(0, 0))?;
    for vcpu in [1, 2, 63, 64, 1 << 31, u32::MAX] {
        refused(format!("reading vCPU {vcpu}"), handle.state(vcpu), Refusal::NotFound)?;
        refused(
            format!("setting vCPU {vcpu}"),
            handle.set_state(&VcpuState { vcpu, ..different() }),
            Refusal::NotFound,
        )?;
    }
    Ok(())
}

fn while_it_runs() -> Checked {
    let machine = Machine::new(&Code::new().mark().spin())?;
    let (run, ()) = machine.while_runs(0, |_| {
        refused("reading registers", machine.handle.state(0), Refusal::Busy)?;
        refused("setting registers", machine.handle.set_state(&different()), Refusal::Busy)?;
        done("a kick", machine.handle.kick(0))
    })?;
    ensure!(is_interrupted(&run), "{run:?}");
    let state = done("reading registers", machine.handle.state(0))?;
    ensure!((CODE..CODE + 0x10).contains(&state.rip) && state.gprs[0] & 0xff == 1, "{state:?}");
    Ok(())
}
