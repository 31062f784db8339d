//! The guest's RAM.

use covisor_abi::ExitReason;
use covisor_abi::IO_APIC_BASE;
use covisor_abi::LOCAL_APIC_BASE;
use covisor_abi::MAX_REGIONS;

use crate::case::Case;
use crate::case::Checked;
use crate::case::done;
use crate::case::ensure;
use crate::case::refused;
use crate::code::Code;
use crate::machine::Handle;
use crate::machine::Machine;
use crate::machine::RAM;
use crate::machine::Ram;
use crate::refusal::Refusal;

pub(crate) const CASES: &[Case] = &[
    Case {
        name: "memory/whole-pages",
        shows: "a region is made of whole pages, and of one at least",
        run: whole_pages,
    },
    Case {
        name: "memory/address-space",
        shows: "a region does not wrap, and ends at 2^46 at most",
        run: address_space,
    },
    Case { name: "memory/overlap", shows: "a region is not over another one", run: overlap },
    Case { name: "memory/apics", shows: "a region is not over the registers of an APIC", run: apics },
    Case {
        name: "memory/too-much",
        shows: "more than the host has is refused, and less is still given",
        run: too_much,
    },
    Case { name: "memory/too-many-regions", shows: "a VM has at most 8 regions", run: too_many_regions },
    Case { name: "memory/after-the-first-run", shows: "memory is fixed when a vCPU has run", run: after_the_first_run },
    Case { name: "memory/is-zero", shows: "new RAM is full of zeros, whatever the VM before left in it", run: is_zero },
    Case {
        name: "memory/is-shared",
        shows: "what the program writes the guest reads, and the other way round",
        run: is_shared,
    },
    Case { name: "memory/regions-are-apart", shows: "each region is where it was put", run: regions_are_apart },
    Case {
        name: "memory/discard-ranges",
        shows: "what is discarded is made of whole pages and does not wrap; beside RAM nothing is",
        run: discard_ranges,
    },
    Case {
        name: "memory/discard",
        shows: "what was discarded is zeros, or where the driver keeps it as it was",
        run: discard,
    },
];

/// The smallest page.
const PAGE: u64 = 4096;
/// The end of what a guest can have.
const LIMIT: u64 = 1 << 46;

fn each_is_refused(handle: &Handle, regions: &[(u64, u64)], refusal: Refusal) -> Checked {
    regions.iter().try_for_each(|&(gpa, size)| {
        refused(format!("{size:#x} bytes at {gpa:#x}"), handle.add_memory(gpa, size), refusal)
    })
}

fn whole_pages() -> Checked {
    let handle = Handle::with_vm(1)?;
    let regions = [
        (0, 0),
        (RAM, 0),
        (1, RAM),
        (0x800, RAM),
        (PAGE - 1, RAM),
        (0, 1),
        (0, PAGE - 1),
        (0, RAM + 1),
        (7, 0),
        (u64::MAX, 0),
    ];
    each_is_refused(&handle, &regions, Refusal::Invalid)?;
    done("RAM after that", handle.add_memory(0, RAM)).map(drop)
}

fn address_space() -> Checked {
    let handle = Handle::with_vm(1)?;
    let last = PAGE.wrapping_neg();
    let regions = [
        (last, PAGE),
        (last, 2 * PAGE),
        (2 * PAGE, last),
        (1 << 63, 1 << 63),
        (LIMIT, RAM),
        (LIMIT - PAGE, 2 * PAGE),
        (1 << 47, RAM),
        (0, LIMIT + PAGE),
        (0, last),
    ];
    each_is_refused(&handle, &regions, Refusal::Invalid)?;
    done("the last RAM that can be", handle.add_memory(LIMIT - RAM, RAM)).map(drop)
}

fn overlap() -> Checked {
    let handle = Handle::with_vm(1)?;
    done("RAM", handle.add_memory(2 * RAM, RAM))?;
    let regions = [(2 * RAM, RAM), (RAM, 2 * RAM), (3 * RAM - PAGE, RAM), (0, 8 * RAM), (2 * RAM + PAGE, PAGE)];
    each_is_refused(&handle, &regions, Refusal::Exists)?;
    done("RAM before it", handle.add_memory(RAM, RAM))?;
    done("RAM behind it", handle.add_memory(3 * RAM, RAM)).map(drop)
}

fn apics() -> Checked {
    let handle = Handle::with_vm(1)?;
    for base in [LOCAL_APIC_BASE, IO_APIC_BASE] {
        let regions = [(base, PAGE), (base, RAM), (base - PAGE, 2 * PAGE), (base & !(RAM - 1), RAM)];
        each_is_refused(&handle, &regions, Refusal::Exists)?;
    }
    each_is_refused(&handle, &[(0, 1 << 32)], Refusal::Exists)
}

fn too_much() -> Checked {
    let handle = Handle::with_vm(1)?;
    each_is_refused(&handle, &[(1 << 32, 1 << 40), (1 << 32, 1 << 45)], Refusal::NoMemory)?;
    done("RAM after that", handle.add_memory(0, RAM)).map(drop)
}

fn too_many_regions() -> Checked {
    let handle = Handle::with_vm(1)?;
    let places = (0..=MAX_REGIONS as u64).map(|index| 2 * index * RAM);
    let (last, first) =
        places.collect::<Vec<_>>().split_last().map(|(last, first)| (*last, first.to_vec())).unwrap_or_default();
    for gpa in first {
        done(format!("the region at {gpa:#x}"), handle.add_memory(gpa, RAM))?;
    }
    refused("the ninth region", handle.add_memory(last, RAM), Refusal::Busy)
}

fn after_the_first_run() -> Checked {
    let machine = Machine::new(&Code::new().write(0x10))?;
    machine.run_to_port(0x10, 0, 1)?;
    refused("RAM", machine.handle.add_memory(RAM, RAM), Refusal::Busy)
}

fn is_zero() -> Checked {
    for round in 0..4_u8 {
        let machine = Machine::new(&Code::new())?;
        let mut bytes = vec![0; 2 << 20];
        machine.ram.write(crate::code::CODE, &[0; 16]);
        machine.ram.read(0, &mut bytes);
        let wrong = bytes.iter().position(|&byte| byte != 0);
        ensure!(wrong.is_none(), "round {round}: new RAM has something at {wrong:?}");
        bytes.fill(round + 1);
        machine.ram.write(0, &bytes);
    }
    Ok(())
}

fn is_shared() -> Checked {
    /// Where the program and the guest write.
    const OURS: u16 = 0x3000;
    const THEIRS: u16 = 0x5ffe;
    let code = Code::new().load(OURS).write(0x10).al(0x5a).store(THEIRS).write(0x11).load(OURS).write(0x12);
    let machine = Machine::new(&code)?;
    machine.ram.write(OURS.into(), &[0xa7]);
    machine.run_to_port(0x10, 0xa7, 1)?;
    ensure!(machine.ram.byte(THEIRS.into()) == 0, "the guest is too far");
    machine.run_to_port(0x11, 0x5a, 1)?;
    let theirs = machine.ram.byte(THEIRS.into());
    ensure!(theirs == 0x5a, "the guest wrote 0x5a, and the program sees {theirs:#x}");
    machine.ram.write(OURS.into(), &[0x3c]);
    machine.run_to_port(0x12, 0x3c, 1)
}

/// The second region's address, as a segment's base.
const SECOND: u64 = 0x1000_0000;

/// A machine with a second region, which the guest's data is in.
fn with_second_region(code: &Code) -> Checked<(Machine, Ram)> {
    let handle = Handle::with_vm(1)?;
    let mut rams = Vec::new();
    for gpa in [0, SECOND] {
        let map = done("RAM", handle.add_memory(gpa, RAM))?;
        rams.push(Ram::map(&handle, gpa, map, RAM)?);
    }
    done("a vCPU", handle.create_vcpu(0, 0))?;
    let second = rams.pop().ok_or("there are two")?;
    let machine = Machine { handle, ram: rams.pop().ok_or("there are two")? };
    machine.ram.write(crate::code::CODE, code.bytes());
    machine.set(0, |state| state.segments[crate::machine::DS].base = SECOND)?;
    Ok((machine, second))
}

/// The guest writes into the second region.
fn regions_are_apart() -> Checked {
    let code = Code::new().load(0).write(0x10).al(0x77).store(1).write(0x11);
    let (machine, second) = with_second_region(&code)?;
    machine.ram.write(0, &[1, 2]);
    second.write(0, &[0x66]);
    machine.run_to_port(0x10, 0x66, 1)?;
    machine.run(0, ExitReason::PortWrite)?;
    ensure!(second.byte(1) == 0x77, "the second region does not have what the guest wrote");
    let mut first = [0; 2];
    machine.ram.read(0, &mut first);
    ensure!(first == [1, 2], "the first region was changed: {first:?}");
    Ok(())
}

fn discard_ranges() -> Checked {
    let machine = Machine::new(&Code::new())?;
    let last = PAGE.wrapping_neg();
    for (gpa, size) in [(1, PAGE), (0, 1), (PAGE, PAGE + 8), (last, PAGE), (PAGE, last)] {
        refused(format!("{size:#x} bytes at {gpa:#x}"), machine.handle.discard(gpa, size), Refusal::Invalid)?;
    }
    for (gpa, size) in [(RAM, RAM), (LIMIT, RAM), (PAGE, RAM - PAGE)] {
        let (freed, _) = done(format!("{size:#x} bytes at {gpa:#x}"), machine.handle.discard(gpa, size))?;
        ensure!(freed == 0, "{freed:#x} bytes went at {gpa:#x}");
    }
    Ok(())
}

fn discard() -> Checked {
    let code = Code::new().al(0x77).store(1).write(0x10).load(1).write(0x11).al(0x78).store(1).load(1).write(0x12);
    let (machine, second) = with_second_region(&code)?;
    machine.run_to_port(0x10, 0x77, 1)?;
    drop(second);
    let (freed, allocated) = done("a discard", machine.handle.discard(SECOND, RAM))?;
    ensure!(freed == 0 || freed == RAM, "{freed:#x} bytes went");
    ensure!(allocated == 2 * RAM - freed, "{freed:#x} bytes went, and {allocated:#x} are left");
    machine.run_to_port(0x11, if freed == 0 { 0x77 } else { 0 }, 1)?;
    machine.run_to_port(0x12, 0x78, 1)?;
    let (_, allocated) = done("a question", machine.handle.discard(0, 0))?;
    ensure!(allocated == 2 * RAM, "{allocated:#x} bytes came again");
    Ok(())
}
