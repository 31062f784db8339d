//! Calls that no honest program makes. Whatever comes, the answer is a documented one, and the driver goes on.

use std::sync::mpsc;
use std::thread;
use std::thread::ScopedJoinHandle;
use std::time::Duration;
use std::time::Instant;

use covisor_abi::Call;
use covisor_abi::ExitReason;
use covisor_abi::Handshake;
use covisor_abi::Kick;
use covisor_abi::MemoryAdd;
use covisor_abi::VERSION;
use zerocopy::FromBytes;
use zerocopy::IntoBytes;

use crate::arguments;
use crate::case::Case;
use crate::case::Checked;
use crate::case::done;
use crate::case::ensure;
use crate::case::refused_as;
use crate::code::Code;
use crate::host;
use crate::host::Attempt;
use crate::host::Caller;
use crate::host::Loose;
use crate::host::Raw;
use crate::machine::Handle;
use crate::machine::Machine;
use crate::machine::RAM;
use crate::machine::greeting;
use crate::random::Random;
use crate::refusal::is_documented;

pub(crate) const CASES: &[Case] = &[
    Case {
        name: "attacks/wrong-sizes",
        shows: "every call with a structure of another size is refused",
        run: wrong_sizes,
    },
    Case { name: "attacks/unknown-calls", shows: "what is no call is refused", run: unknown_calls },
    Case {
        name: "attacks/bad-buffers",
        shows: "every call with a structure that is not there is refused",
        run: bad_buffers,
    },
    Case {
        name: "attacks/overlapping-buffers",
        shows: "what goes in and what comes out may be the same bytes",
        run: overlapping,
    },
    Case {
        name: "attacks/structure-in-guest-ram",
        shows: "a structure may be where a guest writes",
        run: in_guest_ram,
    },
    Case { name: "attacks/random-structures", shows: "random structures, from two threads on one handle", run: random },
    Case {
        name: "attacks/random-before-the-handshake",
        shows: "random structures on a handle that has no VM",
        run: random_before,
    },
    Case {
        name: "attacks/closed-during-calls",
        shows: "a handle is closed while two threads make random calls on it",
        run: closed,
    },
];

/// The driver still does what it should.
fn goes_on() -> Checked {
    Machine::new(&Code::new().al(0x62).write(0x10))?.run_to_port(0x10, 0x62, 1)
}

/// Each was refused as it should be, on a handle in every state: new, after the handshake, with a VM.
fn tried(attempt: impl Fn(&Raw) -> Vec<Attempt>) -> Checked {
    for state in 0..3 {
        let handle = done("opening the device", Raw::open())?;
        if state >= 1 {
            done("the handshake", handle.call(Call::Handshake, greeting().as_mut_bytes()))?;
        }
        if state >= 2 {
            let mut create = covisor_abi::VmCreate { engine: 0, vcpus: 1 };
            done("making the VM", handle.call(Call::VmCreate, create.as_mut_bytes()))?;
        }
        for Attempt { what, answer, refusals } in attempt(&handle) {
            refused_as(what, answer, refusals)?;
        }
    }
    goes_on()
}

fn wrong_sizes() -> Checked {
    tried(|handle| Call::ALL.into_iter().flat_map(|call| handle.wrong_sizes(call)).collect())
}

fn unknown_calls() -> Checked {
    tried(Raw::unknown_calls)
}

fn bad_buffers() -> Checked {
    tried(|handle| Call::ALL.into_iter().flat_map(|call| handle.bad_buffers(call)).collect())
}

fn overlapping() -> Checked {
    let handle = done("opening the device", Raw::open())?;
    let size = Call::Handshake.size();
    for shift in [0, 1, 4, 8, size - 1] {
        let mut bytes = vec![0; 2 * size];
        bytes[..size].copy_from_slice(greeting().as_bytes());
        done(format!("the handshake shifted by {shift}"), handle.overlapping(&mut bytes, shift))?;
        let answer = Handshake::read_from_bytes(&bytes[..size]).map_err(|error| error.to_string())?;
        ensure!(answer.version == VERSION && answer.max_vcpus > 0, "shifted by {shift}: {answer:?}");
    }
    Ok(())
}

fn in_guest_ram() -> Checked {
    let machine = Machine::new(&Code::new().al(0x63).write(0x10))?;
    let place = machine.ram.pointer(0x10_0000);
    // SAFETY: the pointer is to the guest's RAM, which is mapped as long as the machine is there; the guest does not touch it.
    let bytes = unsafe { std::slice::from_raw_parts_mut(place, Call::Run.size()) };
    bytes.fill(0);
    let run = covisor_abi::Run::mut_from_bytes(bytes).map_err(|error| error.to_string())?;
    done("running a vCPU", machine.handle.call(Call::Run, run))?;
    ensure!((run.exit, run.address, run.data) == (ExitReason::PortWrite as u32, 0x10, 0x63), "{run:?}");
    Ok(())
}

/// The seed, in what is told of a failure.
const SEED: u64 = 0x00c0_ffee;
/// How many calls a handle gets from a thread.
const CALLS: u32 = 100;
/// The most RAM that a random call asks for and might get.
const MUCH: u64 = 4 * RAM;

/// A random structure for a call. What would use up the machine's memory is left out: that others suffer is no fault.
fn structure(random: &mut Random, call: Call) -> Vec<u8> {
    let mut bytes = vec![0; call.size()];
    for word in bytes.chunks_mut(4) {
        word.copy_from_slice(&random.word().to_le_bytes()[..word.len()]);
    }
    if call == Call::Handshake && random.one_in(2) {
        greeting().write_to(&mut bytes).expect("it is as long");
    }
    if call == Call::MemoryAdd
        && let Ok(add) = MemoryAdd::mut_from_bytes(&mut bytes)
        && (MUCH..1 << 40).contains(&add.size)
    {
        add.size %= MUCH;
    }
    bytes
}

/// Makes random calls; each must be answered by a documented refusal, if at all, or as `may_be` says.
fn make_calls(
    seed: u64,
    count: u32,
    make: impl Fn(Call, &mut [u8]) -> std::io::Result<()>,
    may_be: impl Fn(&std::io::Error) -> bool,
) -> Checked {
    let mut random = Random::new(seed);
    for number in 0..count {
        let call = Call::ALL[random.below(Call::ALL.len())];
        let mut bytes = structure(&mut random, call);
        let asked = bytes.clone();
        if let Err(error) = make(call, &mut bytes) {
            let expected = is_documented(&error) || may_be(&error);
            ensure!(expected, "seed {seed:#x}, call {number}: {call:?} {asked:x?} was answered by {error}");
        }
    }
    Ok(())
}

/// Until the time is over, in rounds: each with a seed of its own.
fn rounds(mut round: impl FnMut(u64) -> Checked) -> Checked {
    let start = Instant::now();
    for seed in SEED.. {
        round(seed)?;
        if start.elapsed() >= arguments::attack_time() {
            break;
        }
    }
    goes_on()
}

/// A VM with memory and two vCPUs, of four that it may have.
fn victim() -> Checked<Handle> {
    let handle = Handle::with_vm(4)?;
    done("RAM", handle.add_memory(0, RAM))?;
    (0..2).try_for_each(|vcpu| done("a vCPU", handle.create_vcpu(vcpu, 0)))?;
    Ok(handle)
}

/// Two threads make random calls, and then comes `meanwhile`. What runs is ended again and again, for guests of random registers may
/// run for ever.
fn attack_by_two(
    handle: Loose,
    seed: u64,
    meanwhile: impl FnOnce() -> Checked,
    may_be: fn(&std::io::Error) -> bool,
) -> Checked {
    thread::scope(|scope| {
        let (sender, callers) = mpsc::channel();
        let threads = [0, 1].map(|thread| {
            let (seed, sender) = (seed << 1 | thread, sender.clone());
            scope.spawn(move || {
                // Who waits for it is there.
                _ = sender.send(Caller::current());
                make_calls(seed, CALLS, |call, bytes| handle.call(call, bytes), may_be)
            })
        });
        drop(sender);
        let callers: Vec<Caller> = callers.into_iter().collect();
        let mut result = meanwhile();
        while !threads.iter().all(ScopedJoinHandle::is_finished) {
            for vcpu in 0..4 {
                // It may be closed.
                _ = handle.call(Call::Kick, Kick { vcpu, reserved: 0 }.as_mut_bytes());
            }
            callers.iter().for_each(|caller| caller.end_running());
            thread::sleep(Duration::from_millis(1));
        }
        for thread in threads {
            let ended = thread.join().unwrap_or_else(|_| Err("a thread panicked".to_owned()));
            result = result.and(ended);
        }
        result
    })
}

fn random() -> Checked {
    rounds(|seed| {
        let handle = Loose::of(victim()?.into_transport());
        let result = attack_by_two(handle, seed, || Ok(()), |_| false);
        done("closing the handle", handle.close())?;
        result
    })
}

fn random_before() -> Checked {
    rounds(|seed| {
        let handle = done("opening the device", Raw::open())?;
        // No vCPU comes to run: that takes VM and vCPU to be made of random numbers, and in this order.
        make_calls(
            seed,
            CALLS,
            |call, bytes| if call == Call::Run { Ok(()) } else { handle.call(call, bytes) },
            |_| false,
        )
    })
}

fn closed() -> Checked {
    rounds(|seed| {
        let handle = Loose::of(victim()?.into_transport());
        let close = || {
            thread::sleep(Duration::from_micros(seed * 37 % 3000));
            done("closing the handle", handle.close())
        };
        attack_by_two(handle, seed, close, host::is_closed)
    })
}
