//! Doorbells: stores that signal an event and go on.

use std::time::Duration;

use covisor::platform::DoorbellSpace;
use covisor::sys::event::Event;
use covisor_abi::Call;
use covisor_abi::DoorbellChange;
use covisor_abi::ExitReason;
use covisor_abi::MAX_DOORBELLS;
use covisor_abi::Stats;
use covisor_abi::StatsKind;

use crate::case::Case;
use crate::case::Checked;
use crate::case::done;
use crate::case::ensure;
use crate::case::refused;
use crate::code;
use crate::code::Code;
use crate::code::DEVICE_MEMORY;
use crate::host;
use crate::machine::DS;
use crate::machine::Handle;
use crate::machine::Machine;
use crate::refusal::Refusal;

pub(crate) const CASES: &[Case] = &[
    Case { name: "doorbells/port", shows: "a write to a port signals the event, and the guest goes on", run: port },
    Case { name: "doorbells/memory", shows: "a write to device memory does", run: memory },
    Case {
        name: "doorbells/too-wide",
        shows: "a write that is wider than the doorbell goes to the program",
        run: too_wide,
    },
    Case { name: "doorbells/twice", shows: "there is one doorbell at an address", run: twice },
    Case { name: "doorbells/removed", shows: "a doorbell that was removed does not ring", run: removed },
    Case {
        name: "doorbells/bad-places",
        shows: "a doorbell is at a port or in memory, 1, 2, 4 or 8 bytes wide",
        run: bad_places,
    },
    Case { name: "doorbells/no-event", shows: "what is not an event's handle is refused", run: no_event },
    Case {
        name: "doorbells/closed-event",
        shows: "a doorbell rings whose event the program has closed",
        run: closed_event,
    },
    Case { name: "doorbells/too-many", shows: "a VM has at most 128 in its life", run: too_many },
];

/// Where the doorbells are.
const PORT: u16 = 0x5670;
/// How long a signal may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it is waited for one that must not come.
const A_WHILE: Duration = Duration::from_millis(30);

fn event() -> Checked<Event> {
    done("an event", Event::new())
}

/// One byte at a port.
fn at_port(event: i64) -> DoorbellChange {
    DoorbellChange { address: PORT.into(), space: DoorbellSpace::Port as u32, width: 1, event }
}

fn add(handle: &Handle, change: DoorbellChange) -> std::io::Result<()> {
    handle.call(Call::DoorbellAdd, &mut change.clone())
}

fn remove(handle: &Handle, change: DoorbellChange) -> std::io::Result<()> {
    handle.call(Call::DoorbellRemove, &mut change.clone())
}

/// Writes a byte to the port, and then to another one.
fn ringing() -> Code {
    Code::new().al(0x31).dx(PORT).op(code::OUT_DX_AL).write(0x10)
}

fn port() -> Checked {
    let machine = Machine::new(&ringing())?;
    let event = event()?;
    done("a doorbell", add(&machine.handle, at_port(event.handle())))?;
    machine.run_to_port(0x10, 0x31, 1)?;
    ensure!(event.wait(Some(PATIENCE)), "the event was not signalled");
    ensure!(!event.wait(Some(A_WHILE)), "the event was signalled twice");
    let mut stats = Stats::default();
    done("Stats", machine.handle.call(Call::Stats, &mut stats))?;
    ensure!(stats.counts[StatsKind::Doorbells as usize] == 1, "{stats:?}");
    Ok(())
}

fn memory() -> Checked {
    let machine = Machine::new(&Code::new().al(0x32).store(0x40).write(0x10).store(0x41))?;
    machine.set(0, |state| state.segments[DS].base = DEVICE_MEMORY)?;
    let event = event()?;
    let space = DoorbellSpace::Memory as u32;
    let change = DoorbellChange { address: DEVICE_MEMORY + 0x40, space, width: 8, event: event.handle() };
    done("a doorbell", add(&machine.handle, change))?;
    machine.run_to_port(0x10, 0x32, 1)?;
    ensure!(event.wait(Some(PATIENCE)), "the event was not signalled");
    let run = machine.run(0, ExitReason::MemoryWrite)?;
    ensure!(run.address == DEVICE_MEMORY + 0x41, "the address behind is no doorbell: {run:?}");
    ensure!(!event.wait(Some(A_WHILE)), "a write to the address behind signalled the event");
    Ok(())
}

fn too_wide() -> Checked {
    let machine = Machine::new(&Code::new().ax(0x3334).dx(PORT).op(code::OUT_DX_AX).op(code::OUT_DX_AL).write(0x10))?;
    let event = event()?;
    done("a doorbell", add(&machine.handle, at_port(event.handle())))?;
    machine.run_to_port(PORT.into(), 0x3334, 2)?;
    ensure!(!event.wait(Some(A_WHILE)), "a write of two bytes rang a doorbell of one");
    machine.run_to_port(0x10, 0x34, 1)?;
    ensure!(event.wait(Some(PATIENCE)), "the write of one byte did not ring");
    Ok(())
}

fn twice() -> Checked {
    let machine = Machine::new(&ringing())?;
    let (first, second) = (event()?, event()?);
    done("a doorbell", add(&machine.handle, at_port(first.handle())))?;
    let other = at_port(second.handle());
    refused("a second one", add(&machine.handle, other), Refusal::Exists)?;
    refused(
        "a second one of another width",
        add(&machine.handle, DoorbellChange { width: 4, ..other }),
        Refusal::Exists,
    )?;
    // The same number in memory is another address.
    let in_memory = DoorbellChange { space: DoorbellSpace::Memory as u32, ..other };
    done("one in memory", add(&machine.handle, in_memory))?;
    machine.run_to_port(0x10, 0x31, 1)?;
    ensure!(first.wait(Some(PATIENCE)), "the first one does not ring");
    ensure!(!second.wait(Some(A_WHILE)), "another one rings");
    Ok(())
}

fn removed() -> Checked {
    let machine = Machine::new(&ringing())?;
    let event = event()?;
    let change = at_port(event.handle());
    refused("removing none", remove(&machine.handle, change), Refusal::NotFound)?;
    done("a doorbell", add(&machine.handle, change))?;
    done("removing it", remove(&machine.handle, DoorbellChange { event: -1, ..change }))?;
    refused("removing it again", remove(&machine.handle, change), Refusal::NotFound)?;
    machine.run_to_port(PORT.into(), 0x31, 1)?;
    ensure!(!event.wait(Some(A_WHILE)), "it rings");
    done("adding it again", add(&machine.handle, change))
}

fn bad_places() -> Checked {
    let handle = Handle::with_vm(1)?;
    let event = event()?;
    let at = |address, space, width| DoorbellChange { address, space, width, event: event.handle() };
    let (port, memory) = (DoorbellSpace::Port as u32, DoorbellSpace::Memory as u32);
    let bad = [
        at(0, 2, 1),
        at(0, u32::MAX, 1),
        at(0, port, 0),
        at(0, port, 3),
        at(0, port, 8),
        at(0, memory, 16),
        at(0, memory, u32::MAX),
        at(0x1_0000, port, 1),
        at(0xffff, port, 2),
        at(u64::MAX, port, 1),
        at(1 << 46, memory, 1),
        at((1 << 46) - 4, memory, 8),
        at(u64::MAX, memory, 1),
        at(u64::MAX - 3, memory, 4),
    ];
    for change in bad {
        refused(format!("{change:?}"), add(&handle, change), Refusal::Invalid)?;
        refused(format!("removing {change:?}"), remove(&handle, change), Refusal::Invalid)?;
    }
    for change in [at(0xffff, port, 1), at((1 << 46) - 8, memory, 8), at(0, memory, 2)] {
        done(format!("{change:?}"), add(&handle, change))?;
    }
    Ok(())
}

fn no_event() -> Checked {
    let handle = Handle::with_vm(1)?;
    let none = [-1, -2, 0x7fff_fff0, i64::MIN, i64::MAX, 0x1_0000_0000, host::no_event(handle.transport())];
    for event in none {
        refused(format!("handle {event:#x}"), add(&handle, at_port(event)), Refusal::NotFound)?;
    }
    let event = event()?;
    done("an event's handle", add(&handle, at_port(event.handle())))
}

fn closed_event() -> Checked {
    let machine = Machine::new(&ringing())?;
    let event = event()?;
    done("a doorbell", add(&machine.handle, at_port(event.handle())))?;
    drop(event);
    machine.run_to_port(0x10, 0x31, 1)
}

fn too_many() -> Checked {
    let handle = Handle::with_vm(1)?;
    let event = event()?;
    let change = at_port(event.handle());
    for number in 0..MAX_DOORBELLS {
        done(format!("doorbell {number}"), add(&handle, change))?;
        done(format!("removing doorbell {number}"), remove(&handle, change))?;
    }
    refused("one more", add(&handle, change), Refusal::NoMemory)
}
