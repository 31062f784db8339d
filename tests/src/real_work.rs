//! Real work in the guest: programs that ask much of its kernel and of the engine below it, and check their own results
//! (`tests/guest-work`, `tests/guest-work-32`); a debugger; more memory than there is.

use covisor_guest_images::command::{Cmd, find_program};
use covisor_guest_images::fs;
use xtask::rig::{Input, Rig, RigKind};
use xtask::run::shell_word;
use xtask::scenario::{Scenario, Verdict};
use xtask::{Env, Result, work};

use crate::checked::{Checked, ensure, told};
use crate::debian::{file_system_is_clean, with_libraries};
use crate::host::{Host, MINI, empty_disk, in_folder, on_host, on_own_host};

/// The scenarios about real work.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario::new("real-work/memory-pressure", memory_pressure),
    Scenario::new("real-work/files-in-memory", files_in_memory),
    Scenario::new("real-work/32-bit-program", |env, kind| on_host(env, kind, |host| thirty_two_bit_program(env, host))),
    Scenario::new("real-work/mappings-that-change", |env, kind| {
        on_host(env, kind, |host| done(env, host, "mappings 2000", "mappings: 2000 operations"))
    }),
    Scenario::new("real-work/many-processes", |env, kind| on_host(env, kind, |host| many_processes(env, host))),
    Scenario::new("real-work/vectors-and-signals", |env, kind| {
        on_host(env, kind, |host| done(env, host, "vectors 4 150", "vectors: 4 processes, 150 rounds by AVX"))
    }),
    Scenario::new("real-work/segments-of-its-own", |env, kind| {
        on_host(env, kind, |host| segments_of_its_own(env, host))
    }),
];

/// Those that take breakpoints of the CPU's, which QEMU's does not have after VMRUN.
pub(crate) const WITH_BREAKPOINTS: &[Scenario] = &[
    Scenario::new("real-work/debugger", debugger),
    Scenario::new("real-work/single-steps-and-breakpoints", |env, kind| {
        on_host(env, kind, |host| done(env, host, "tracing", "tracing: 905 steps, 300 writes"))
    }),
];

/// The size of disks for the guest.
const DISK_SIZE: &str = "448M";

/// Puts standard input into a program in the guest.
const TAKE_PROGRAM: &str = "cat >/tmp/work; chmod 755 /tmp/work";

/// Runs the 64-bit program in the guest and checks the line that it prints.
fn done(env: &Env, host: &mut Host, arguments: &str, line: &str) -> Checked {
    let program = fs::read(work::program(env)?).map_err(xtask::Error::from)?;
    prints(host, program, MINI, &format!("exec /tmp/work {arguments}"), line)
}

/// Runs a program in a guest by a command, and checks what that prints.
fn prints(host: &mut Host, program: Vec<u8>, guest: &str, command: &str, lines: &str) -> Checked {
    let command = shell_word(&format!("{TAKE_PROGRAM}; {command}"));
    let outcome = host.sh_with(&format!("exec ./covisor {guest} --exec {command}"), Input::Bytes(program))?;
    ensure!(
        outcome.status == 0 && outcome.stdout_text() == format!("{lines}\n"),
        "the guest should say: {lines}\nbut {}",
        told(&outcome)
    );
    Ok(())
}

/// System calls of 32-bit programs, by INT 0x80 and by the kernel's way; their signals, threads and segments.
fn thirty_two_bit_program(env: &Env, host: &mut Host) -> Checked {
    let program = fs::read(work::program_32(env)?).map_err(xtask::Error::from)?;
    let line = "32-bit: system calls by INT 0x80 and by the kernel's way, signals, threads";
    prints(host, program, MINI, "exec /tmp/work", line)
}

/// Forks, with memory that is copied when it is written to, and programs started by vfork.
fn many_processes(env: &Env, host: &mut Host) -> Checked {
    let program = fs::read(work::program(env)?).map_err(xtask::Error::from)?;
    let command = "/tmp/work forks 150 && exec /tmp/work executions 40";
    prints(host, program, MINI, command, "forks: 300 processes\nexecutions: 40 programs")
}

/// Segments by modify_ldt. Debian's cloud kernels have those of 16 bits switched off; on Xen's ABI all of Linux' have.
///
/// QEMU's CPU adds the base of DS to addresses of 64-bit code that has a DS prefix, which real ones ignore there. Such a prefix is what
/// Linux makes of LOCK on a machine with one CPU, unless it is told not to. The CPU checks no limits, either.
fn segments_of_its_own(env: &Env, host: &mut Host) -> Checked {
    let program = fs::read(work::program(env)?).map_err(xtask::Error::from)?;
    let guest = "run --engine $ENGINE --kernel vmlinuz --initrd mini --append 'quiet noreplace-smp'";
    prints(host, program, guest, "exec /tmp/work segments --without-limits", "segments: 32-bit code, none of 16 bits")
}

/// Runs the program in a guest that has the host's disk, and checks what it prints.
fn on_disk(host: &mut Host, options: &str, command: &str, lines: &str) -> Checked {
    let command = shell_word(&format!("{TAKE_PROGRAM}; {command}"));
    let script = format!("exec ./covisor {MINI} {options} --disk $DISK --exec {command} <guest-work");
    let outcome = host.sh(&script)?;
    ensure!(
        outcome.status == 0 && outcome.stdout_text() == format!("{lines}\n"),
        "the guest should say: {lines}\nbut {}",
        told(&outcome)
    );
    Ok(())
}

/// Twice as much memory as there is, with swap on the disk; and programs that start meanwhile.
fn memory_pressure(env: &Env, kind: RigKind) -> Result<Verdict> {
    let command = "mkswap /dev/vda >/dev/null && swapon /dev/vda || exit; \
                   /tmp/work memory 192 & sleep 1; /tmp/work executions 10; wait $! && swapoff /dev/vda";
    let lines = "executions: 10 programs\nmemory: 192 MiB kept their values";
    on_own_host(
        env,
        kind,
        |rig| {
            Ok(rig
                .disk(empty_disk(env, &format!("swap-{}", kind.name()), DISK_SIZE)?)
                .file(work::program(env)?, in_folder("guest-work")))
        },
        |host| on_disk(host, "--mem 96", command, lines),
    )
}

/// What is written to a file in memory is on the disk, however the kernel comes to know of it.
fn files_in_memory(env: &Env, kind: RigKind) -> Result<Verdict> {
    let with_file_system = |rig: Rig| {
        let disk = empty_disk(env, &format!("files-{}", kind.name()), DISK_SIZE)?;
        let mkfs = find_program("mkfs.ext4").unwrap_or_else(|| "mkfs.ext4".into());
        Cmd::new(mkfs).arg("-q").arg(&disk).output().map_err(xtask::Error::from)?;
        let mut rig = rig.disk(disk).file(work::program(env)?, in_folder("guest-work"));
        for file in with_libraries("e2fsck")? {
            let name = file.to_string_lossy().into_owned();
            rig = rig.file(file, name);
        }
        Ok(rig)
    };
    let command = "mount -t ext4 /dev/vda /mnt && /tmp/work files /mnt/file 24 && umount /mnt";
    on_own_host(env, kind, with_file_system, |host| {
        on_disk(host, "--mem 192", command, "files: 24 MiB, 8 rounds")?;
        file_system_is_clean(host)
    })
}

/// What the debugger is told to do with the program, which stops itself once. Breakpoint and watchpoint are not there at the same time:
/// the debugger would step over the one, and where a step meets the other QEMU's CPU raises #DB twice, the second time in the handler of
/// the first, whose frame is lost then; so the machine hangs, bare ones as well.
const DEBUGGER_SCRIPT: &str = "set confirm off
set language c
run
eval \"hbreak *%lu\", (unsigned long) $rsi
continue
delete
eval \"watch *(unsigned long *) %lu\", (unsigned long) $rdi
continue
continue
delete
stepi
continue
";

/// Debian's debugger, with a watchpoint and a breakpoint of the CPU's.
fn debugger(env: &Env, kind: RigKind) -> Result<Verdict> {
    on_own_host(
        env,
        kind,
        |rig| {
            let rig = rig.file(work::debugger(env)?, in_folder("debugger"));
            Ok(rig.file(work::program(env)?, in_folder("guest-work")))
        },
        |host| {
            let gdb = "gdb -q -batch -nx -x /tmp/script --args /tmp/work debuggee 2>&1";
            let command = format!("{TAKE_PROGRAM}; printf %s {} >/tmp/script; {gdb}", shell_word(DEBUGGER_SCRIPT));
            let outcome = host.sh(&format!(
                "cat mini debugger >/tmp/initrd
                exec ./covisor run --engine $ENGINE --kernel vmlinuz --initrd /tmp/initrd --append quiet --exec {} <guest-work",
                shell_word(&command)
            ))?;
            let text = outcome.stdout_text();
            let events: Vec<&str> = text.lines().filter(|line| is_event(line)).collect();
            let right = [
                "Program received signal SIGTRAP",
                "Hardware assisted breakpoint 1",
                "Breakpoint 1",
                "Hardware watchpoint 2",
                "Hardware watchpoint 2",
                "Old value = 0",
                "New value = 7",
                "Hardware watchpoint 2",
                "Old value = 7",
                "New value = 14",
                "debuggee: 21",
            ];
            ensure!(
                outcome.status == 0
                    && events.len() == right.len()
                    && events.iter().zip(right).all(|(line, start)| line.starts_with(start)),
                "{}",
                told(&outcome)
            );
            Ok(())
        },
    )
}

/// Whether a line of the debugger tells that the program stopped and why, or is the program's own.
fn is_event(line: &str) -> bool {
    ["Program received", "Hardware", "Breakpoint", "Old value", "New value", "debuggee"]
        .iter()
        .any(|start| line.starts_with(start))
}
