//! `bench boot`: instructions from a guest kernel's entry to its first program.
//!
//! The kernel is Debian 12's cloud kernel as it is packed (so unpacking it is counted), with one CPU, 512 MiB, and an
//! initramfs whose `/init` prints the time stamp counter, first thing, and switches off. The counter at the kernel's entry
//! is found by a second run with a stub in the kernel's place (see [`stub`]), and subtracted. The entry is the 32-bit one
//! (`startup_32`) on the bare machine, behind the real-mode code with its calls to the firmware, and the 64-bit one
//! (`startup_64`) on covisor, which enters there.
//!
//! `bare` is QEMU's `microvm`, the machine that boots Linux with the fewest instructions; its CPU is the one that covisor's
//! host has.

use std::path::Path;

use covisor_guest_images::cpio::Archive;
use covisor_guest_images::error::Error as BuildError;
use covisor_guest_images::fs;

use super::figure::{BARE, COVISOR_SVM, Figure};
use super::{BenchError, machine, stub};
use crate::env::Env;
use crate::error::Result;
use crate::rig::{Machine, RigKind};
use crate::{build, images, run};

/// Where things are in the host.
const KERNEL: &str = "/covisor/vmlinuz";
const STUB: &str = "/covisor/stub";
const INITRD: &str = "/covisor/boot.cpio";
const PROGRAM: &str = "/covisor/covisor";
const MODULE: &str = "/covisor/covisor.ko";

/// The guest's memory.
const MEMORY_MIB: u32 = 512;

/// The guest kernel's command line, the same everywhere.
const CMDLINE: &str = "console=ttyS0 quiet panic=-1";

/// What the first program's line begins with.
const INIT_MARK: &str = "covisor-boot-init: tsc ";

/// Measures both systems with this CPU.
pub(super) fn run(env: &Env, cpu: &str) -> Result<Vec<Figure>> {
    let kernel = images::default_kernel(env)?.vmlinuz;
    let stub = env.out.join("bench/stub");
    fs::write(&stub, stub::of(&fs::read(&kernel)?, &kernel)?)?;
    let initrd = env.out.join("bench/boot.cpio");
    fs::write(&initrd, initramfs(env)?)?;

    let step = env.progress.step("booting the bare kernel");
    let bare = since_entry(bare(&stub, &initrd, cpu)?, bare(&kernel, &initrd, cpu)?)?;
    step.done();
    env.progress.say(&format!("bare: {bare} instructions"));

    let rig = run::covisor_rig(env, RigKind::Qemu)?
        .cpu(cpu)
        .count_instructions(true)
        .memory_mib(MEMORY_MIB + 512)
        .file(&kernel, KERNEL)
        .file(&stub, STUB)
        .file(&initrd, INITRD);
    let step = env.progress.step("booting the kernel on covisor");
    let mut machine = rig.start()?;
    let installed = machine.run(&format!("{PROGRAM} driver install --module {MODULE}"))?;
    if installed.status != 0 {
        let output = format!("{}{}", installed.stdout_text(), installed.stderr_text());
        return Err(BenchError::Script { what: "installing the driver", status: installed.status, output }.into());
    }
    let covisor = since_entry(covisor(&mut machine, STUB)?, covisor(&mut machine, KERNEL)?)?;
    machine.shut_down()?;
    step.done();

    let figure = |system, instructions| Figure { bench: "boot", op: "boot".to_owned(), system, instructions };
    Ok(vec![figure(COVISOR_SVM, covisor), figure(BARE, bare)])
}

/// The difference of the two counters.
fn since_entry(entry: u64, init: u64) -> Result<u64> {
    init.checked_sub(entry).ok_or_else(|| {
        let output = format!("entry at {entry}, first program at {init}");
        BenchError::NoFigure { what: "a time stamp counter that goes back".to_owned(), output }.into()
    })
}

/// The initramfs: a console and the first program.
fn initramfs(env: &Env) -> Result<Vec<u8>> {
    let init = fs::read(build::static_program(env, "covisor-boot-init", "covisor-boot-init")?)?;
    let mut archive = Archive::new();
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.file("init", 0o755, &init).map_err(BuildError::from)?;
    Ok(archive.finish())
}

/// The counter in a line of the first program's or the stub's.
fn counter(line: &str) -> Option<u64> {
    match line.split_once(INIT_MARK) {
        Some((_, number)) => number.trim().parse().ok(),
        None => stub::counter(line),
    }
}

/// Boots a kernel on QEMU's microvm and gives the counter that it tells.
fn bare(kernel: &Path, initrd: &Path, cpu: &str) -> Result<u64> {
    let machine = machine::Machine {
        what: &format!("{} on the bare machine", kernel.display()),
        board: "microvm",
        cpu,
        memory_mib: MEMORY_MIB,
        dir: Path::new("."),
        kernel: &kernel.to_string_lossy(),
        initrd: &initrd.to_string_lossy(),
        cmdline: CMDLINE,
    };
    machine.find(counter)
}

/// Boots a kernel on covisor and gives the counter that it tells.
fn covisor(machine: &mut Machine, kernel: &str) -> Result<u64> {
    let script = format!(
        "exec {PROGRAM} run --engine svm --kernel {kernel} --initrd {INITRD} --mem {MEMORY_MIB} --console serial --no-reboot \
         --append '{CMDLINE}' </dev/null"
    );
    let outcome = machine.run(&script)?;
    let output = outcome.stdout_text();
    output.lines().find_map(counter).ok_or_else(|| {
        let output = format!("{output}{}", outcome.stderr_text());
        BenchError::NoFigure { what: format!("{kernel} on covisor"), output }.into()
    })
}
