//! The end of a VM: its handle is closed, its process dies.

use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use covisor::sys::module;
use covisor_abi::Call;
use covisor_abi::Run;
use zerocopy::IntoBytes;

use crate::case::Case;
use crate::case::Checked;
use crate::case::done;
use crate::case::ensure;
use crate::code::Code;
use crate::host;
use crate::host::Caller;
use crate::host::Loose;
use crate::machine::Handle;
use crate::machine::Machine;
use crate::machine::RAM;
use crate::machine::Ram;
use crate::machine::is_interrupted;
use crate::refusal::Refusal;

pub(crate) const CASES: &[Case] = &[
    Case {
        name: "ends/closed-while-it-runs",
        shows: "a handle can be closed while a vCPU runs; its VM ends then",
        run: closed_while_it_runs,
    },
    Case {
        name: "ends/closed-with-all-made",
        shows: "a VM that never ran, or is half made, ends with its handle",
        run: closed_half_made,
    },
    Case { name: "ends/50-one-after-another", shows: "VMs leave nothing behind", run: fifty },
    Case {
        name: "ends/killed-while-it-runs",
        shows: "a process that is killed while its vCPU runs leaves nothing behind",
        run: killed,
    },
];

/// How long the driver may take to be rid of a VM.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many VMs come one after another. Together they have more RAM than the emulated machines.
const VMS: u8 = 50;
/// The RAM of each.
const MUCH: u64 = 11 * RAM;

/// Waits until the driver has no more users than before, where the host counts them.
fn wait_for_users(before: Option<u32>) -> Checked {
    let start = Instant::now();
    while module::users() > before {
        ensure!(start.elapsed() < PATIENCE, "the driver has {:?} users, and had {before:?}", module::users());
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// A VM runs, with all that belongs to it.
fn can_run() -> Checked {
    Machine::new(&Code::new().al(0x61).write(0x10))?.run_to_port(0x10, 0x61, 1)
}

fn closed_while_it_runs() -> Checked {
    let users = module::users();
    let machine = Machine::new(&Code::new().mark().spin())?;
    thread::scope(|scope| {
        let Machine { handle, ram } = machine;
        // It stays open for the mapping, where that keeps it.
        let device = Loose::of(handle.into_transport());
        let (sender, receiver) = mpsc::channel();
        let running = scope.spawn(move || {
            // Who waits for it is there.
            _ = sender.send(Caller::current());
            let mut run = Run::default();
            device.call(Call::Run, run.as_mut_bytes()).map(|()| run)
        });
        let caller = receiver.recv().map_err(|error| error.to_string())?;
        let start = Instant::now();
        while ram.byte(crate::code::MARK.into()) == 0 {
            ensure!(start.elapsed() < PATIENCE, "the guest does not come to its mark");
            thread::sleep(Duration::from_millis(1));
        }
        drop(ram);
        done("closing the handle", device.close())?;
        if !host::CLOSE_ENDS_RUN {
            thread::sleep(Duration::from_millis(20));
            ensure!(!running.is_finished(), "the run ended with the handle");
            caller.end_running();
        }
        let run = running.join().map_err(|_| "the vCPU's thread panicked".to_owned())?;
        let ended = is_interrupted(&run) || run.as_ref().is_err_and(|error| Refusal::Interrupted.is(error));
        ensure!(ended, "the run whose handle was closed: {run:?}");
        let again = device.call(Call::Run, Run::default().as_mut_bytes());
        ensure!(again.as_ref().is_err_and(host::is_closed), "a call on the closed handle: {again:?}");
        Ok(())
    })?;
    wait_for_users(users)?;
    can_run()
}

fn closed_half_made() -> Checked {
    let users = module::users();
    for steps in 0..5 {
        let handle = if steps == 0 { Handle::greeted()? } else { Handle::with_vm(2)? };
        let mut ram = None;
        if steps >= 2 {
            let map = done("RAM", handle.add_memory(0, RAM))?;
            ram = Some(Ram::map(&handle, 0, map, RAM)?);
        }
        if steps >= 3 {
            done("a vCPU", handle.create_vcpu(0, 0))?;
        }
        if steps >= 4 {
            done("a kick", handle.kick(0))?;
        }
        drop(ram);
        drop(handle);
    }
    wait_for_users(users)?;
    can_run()
}

fn fifty() -> Checked {
    let users = module::users();
    for number in 0..VMS {
        let machine = Machine::new(&Code::new().al(number).write(0x10))?;
        let map = done("much RAM", machine.handle.add_memory(MUCH, MUCH))?;
        let much = Ram::map(&machine.handle, MUCH, map, MUCH)?;
        for page in (0..MUCH).step_by(16 * 4096) {
            ensure!(much.byte(page) == 0, "VM {number}'s RAM has something at {page:#x}");
            much.write(page, &[number + 1]);
        }
        machine.run_to_port(0x10, number.into(), 1)?;
    }
    wait_for_users(users)
}

/// This program, to be killed while its vCPU runs.
struct Spinning(Child);

impl Spinning {
    /// The word that it is started with, and that it says when its vCPU runs.
    const WORD: &'static str = "spin";

    fn start() -> Checked<Self> {
        let program = done("finding this program", std::env::current_exe())?;
        let child = Command::new(program).arg(Self::WORD).stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut spinning = Self(done("starting this program again", child)?);
        let output = spinning.0.stdout.take().ok_or("it has no output")?;
        let mut line = String::new();
        done("reading what it says", BufReader::new(output).read_line(&mut line))?;
        ensure!(line.trim_end() == Self::WORD, "it says {line:?}");
        Ok(spinning)
    }
}

impl Drop for Spinning {
    fn drop(&mut self) {
        // It may have died by itself, which is told elsewhere.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// What the program does that is killed: runs a vCPU, says so, and does nothing else.
pub(crate) fn spin() -> Checked {
    let machine = Machine::new(&Code::new().mark().spin())?;
    let (run, ()) = machine.while_runs(0, |_| {
        println!("{}", Spinning::WORD);
        done("telling", std::io::stdout().flush())
    })?;
    Err(format!("the run ended: {run:?}"))
}

fn killed() -> Checked {
    let users = module::users();
    for _ in 0..4 {
        drop(Spinning::start()?);
        wait_for_users(users)?;
        can_run()?;
    }
    // Two at once, of which one goes on while the other one ends.
    let (one, other) = (Spinning::start()?, Spinning::start()?);
    drop(one);
    can_run()?;
    drop(other);
    wait_for_users(users)?;
    can_run()
}
