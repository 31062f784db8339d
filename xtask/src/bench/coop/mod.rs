//! `bench coop`: what a guest's kernel takes for what programs ask of it, where it runs paravirtually without virtualization
//! hardware, next to the same kernel on the bare machine, on Xen as its paravirtual dom0, and on AMD-V.
//!
//! Everywhere it is Debian 12's cloud kernel with one CPU and 1 GiB, on the same emulated CPU, with an initramfs of one program
//! that measures (`tests/guest-bench`).
//!
//! `boot` is what there is from the packed kernel to that program's beginning, unpacking included. On the bare machine and on
//! AMD-V the kernel unpacks itself, so there it counts from the kernel's entry (see [`stub`]). A paravirtual kernel is unpacked
//! by who starts it: on Xen it counts from the line that Xen prints just before, and on covisor from the guest's first instruction,
//! when the loader has unpacked it and the host has cleared the guest's memory, which the other systems find clear.

mod guest;
mod xen;

use std::fmt::Display;
use std::path::{Path, PathBuf};

use covisor_guest_images::cpio::Archive;
use covisor_guest_images::error::Error as BuildError;
use covisor_guest_images::fs;
use covisor_guest_images::progress::Step;

use self::guest::Measured;
use super::figure::{BARE, COVISOR_COOP, COVISOR_SVM, Figure, XEN_PV};
use super::{BenchError, machine, stub};
use crate::env::Env;
use crate::error::Result;
use crate::rig::{Machine, Outcome, Rig, RigKind};
use crate::{build, images, probe, run};

/// The CPU, when none is named: all that QEMU can emulate.
pub(super) const CPU: &str = "max";

/// What goes from any CPU. With SMAP, QEMU 7.2 takes the stack of an IRET in ring 3 for the supervisor's and lets it fault, of
/// which paravirtual kernels die.
const WITHOUT: &str = "-smap";

/// The guest's memory.
const MEMORY_MIB: u32 = 1024;

/// What a host has beside the guest's.
const HOST_MEMORY_MIB: u32 = 512;

/// What the guest kernel gets everywhere, beside its console: quiet until the program's lines, none of which is held back. How
/// much of a mapping gets huge pages goes by its address, which is the same in every run.
const CMDLINE: &str = "quiet panic=-1 printk.devkmsg=on norandmaps";

/// Files, in a folder of the benchmark's own. QEMU gets the kernel's name in a list of words, so it has no spaces.
const KERNEL: &str = "vmlinuz";
const STUB: &str = "stub";
const INITRD: &str = "initrd";
const PROBE: &str = "probe";

/// The operation that the probe measures.
const WORLD_SWITCH: &str = "world-switch";

/// Where things are in the host.
const IN_HOST: &str = "/covisor";
const PROGRAM: &str = "/covisor/covisor";
const MODULE: &str = "/covisor/covisor.ko";

/// How a line of `covisor doctor` begins that has nothing against an engine.
const DOCTOR_GOOD: &str = "ok";

/// What all systems start from.
struct Parts<'a> {
    env: &'a Env,
    cpu: String,
    /// The folder with the files.
    dir: PathBuf,
}

/// Measures all systems that there are, on machines with this CPU, less [`WITHOUT`]; says of the others why they are not.
pub(super) fn run(env: &Env, cpu: &str, only: Option<&str>) -> Result<Vec<Figure>> {
    let parts = Parts::make(env, format!("{cpu},{WITHOUT}"))?;
    let mut figures = Vec::new();
    for (system, measure) in [
        (COVISOR_COOP, covisor_coop as fn(&Parts<'_>) -> _),
        (COVISOR_SVM, covisor_svm),
        (BARE, bare),
        (XEN_PV, xen::run),
    ] {
        if only.is_some_and(|only| only != system) {
            continue;
        }
        match measure(&parts)? {
            Ok(found) => figures.extend(found),
            Err(NotAvailable(reason)) => env.progress.say(&format!("{system} is not available: {reason}")),
        }
    }
    Ok(figures)
}

/// Why a system cannot be measured here.
#[derive(Debug)]
struct NotAvailable(String);

impl NotAvailable {
    fn because(reason: impl Display) -> Self {
        Self(reason.to_string())
    }
}

/// What a system gave, if it is there.
type Available<T> = std::result::Result<T, NotAvailable>;

impl<'a> Parts<'a> {
    fn make(env: &'a Env, cpu: String) -> Result<Self> {
        let dir = env.out.join("bench/coop");
        fs::create_dir_all(&dir)?;
        let kernel = images::default_kernel(env)?.vmlinuz;
        let image = fs::read(&kernel)?;
        fs::write(dir.join(STUB), stub::of(&image, &kernel)?)?;
        fs::write(dir.join(KERNEL), image)?;
        let program = build::static_program(env, "covisor-guest-bench", "covisor-guest-bench")?;
        fs::write(dir.join(INITRD), initramfs(&program)?)?;
        fs::write(dir.join(PROBE), fs::read(probe::build_probe(env)?)?)?;
        Ok(Self { env, cpu, dir })
    }

    /// A machine whose host has covisor and the files.
    fn rig(&self) -> Result<Rig> {
        let mut rig = run::covisor_rig(self.env, RigKind::Qemu)?
            .cpu(&self.cpu)
            .count_instructions(true)
            .memory_mib(MEMORY_MIB + HOST_MEMORY_MIB);
        for name in [KERNEL, STUB, INITRD, PROBE] {
            rig = rig.file(self.dir.join(name), format!("{IN_HOST}/{name}"));
        }
        Ok(rig)
    }

    /// Shows which system's turn it is.
    fn step(&self, system: &str) -> Step {
        self.env.progress.step(format!("measuring {system}"))
    }
}

/// The initramfs: the program, and the devices that it has without anything mounted. Its standard files are the null device
/// where the kernel has no console.
fn initramfs(program: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::new();
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.character_device("dev/null", 0o666, 1, 3);
    archive.character_device("dev/kmsg", 0o600, 1, 11);
    archive.file("init", 0o755, &fs::read(program)?).map_err(BuildError::from)?;
    Ok(archive.finish())
}

/// The kernel on a machine of its own.
fn bare(parts: &Parts<'_>) -> Result<Available<Vec<Figure>>> {
    let cmdline = format!("console=ttyS0 {CMDLINE}");
    let machine = |kernel| machine::Machine {
        what: BARE,
        board: "q35",
        cpu: &parts.cpu,
        memory_mib: MEMORY_MIB,
        dir: &parts.dir,
        kernel,
        initrd: INITRD,
        cmdline: &cmdline,
    };
    let step = parts.step(BARE);
    let entry = machine(STUB).find(stub::counter)?;
    let mut measured = Measured::default();
    machine(KERNEL).find(|line| measured.hear(line).then_some(()))?;
    step.done();
    Ok(Ok(measured.figures(BARE, entry)?))
}

/// The kernel on covisor with AMD-V.
fn covisor_svm(parts: &Parts<'_>) -> Result<Available<Vec<Figure>>> {
    let rig = parts.rig()?;
    let step = parts.step(COVISOR_SVM);
    let (mut host, available) = host(rig, "svm")?;
    if let Err(missing) = available {
        return Ok(Err(missing));
    }
    let start = |kernel| covisor_run("svm", kernel, "--console serial", "console=ttyS0");
    let outcome = host.run(&start(STUB))?;
    let entry =
        outcome.stdout_text().lines().find_map(stub::counter).ok_or_else(|| no_figure(COVISOR_SVM, &outcome))?;
    let outcome = host.run(&start(KERNEL))?;
    host.shut_down()?;
    step.done();
    Ok(Ok(heard(COVISOR_SVM, &outcome)?.figures(COVISOR_SVM, entry)?))
}

/// What the loader says when the guest starts, with the counter behind it. A guest without virtualization hardware has the host's.
const STARTS: &str = "the guest starts at time stamp counter ";

/// The kernel on covisor without virtualization hardware.
fn covisor_coop(parts: &Parts<'_>) -> Result<Available<Vec<Figure>>> {
    let rig = parts.rig()?;
    let step = parts.step(COVISOR_COOP);
    let (mut host, available) = host(rig, "coop")?;
    if let Err(missing) = available {
        return Ok(Err(missing));
    }
    let outcome = host.run(&covisor_run("coop", KERNEL, "--console hvc --verbose", "console=hvc0"))?;
    let switched = host.run(&format!(
        "exec {PROGRAM} run --engine coop --kernel {IN_HOST}/{PROBE} --mem 64 --console serial --no-reboot --append test=bench </dev/null"
    ))?;
    host.shut_down()?;
    step.done();
    let measured = heard(COVISOR_COOP, &outcome)?;
    let said = outcome.stderr_text();
    let counter = said.lines().find_map(|line| line.split_once(STARTS)?.1.trim().parse().ok());
    let before = counter.ok_or_else(|| no_figure(COVISOR_COOP, &outcome))?;
    let mut figures = measured.figures(COVISOR_COOP, before)?;
    let instructions = switched.stdout_text().lines().find_map(world_switch);
    let instructions = instructions.ok_or_else(|| no_figure(COVISOR_COOP, &switched))?;
    figures.push(Figure { bench: "coop", op: WORLD_SWITCH.to_owned(), system: COVISOR_COOP, instructions });
    Ok(Ok(figures))
}

/// The probe's figure for the way to the host's world and back, in a line of its.
fn world_switch(line: &str) -> Option<u64> {
    let (_, figure) = line.split_once("bench ")?;
    figure.trim().strip_prefix(WORLD_SWITCH)?.trim().parse().ok()
}

/// Starts a host, loads the driver there, and asks whether it has this engine.
fn host(rig: Rig, engine: &str) -> Result<(Machine, Available<()>)> {
    let mut machine = rig.start()?;
    let installed = machine.run(&format!("{PROGRAM} driver install --module {MODULE}"))?;
    if installed.status != 0 {
        let output = format!("{}{}", installed.stdout_text(), installed.stderr_text());
        return Err(BenchError::Script { what: "installing the driver", status: installed.status, output }.into());
    }
    // Its status tells of all engines together.
    let report = machine.run(&format!("{PROGRAM} doctor"))?.stdout_text();
    Ok((machine, engine_in(&report, engine)))
}

/// What `covisor doctor` says of an engine.
fn engine_in(report: &str, engine: &str) -> Available<()> {
    for line in report.lines() {
        let line = line.trim_start();
        let Some((verdict, rest)) = line.split_once(' ') else { continue };
        match rest.trim_start().split_once(' ') {
            Some((about, _)) if about == engine && verdict == DOCTOR_GOOD => return Ok(()),
            Some((about, reason)) if about == engine => return Err(NotAvailable::because(reason.trim())),
            _ => {}
        }
    }
    Err(NotAvailable::because(format_args!("`covisor doctor` does not know the engine {engine}")))
}

/// The command that boots a kernel on covisor.
fn covisor_run(engine: &str, kernel: &str, options: &str, console: &str) -> String {
    format!(
        "exec {PROGRAM} run --engine {engine} --kernel {IN_HOST}/{kernel} --initrd {IN_HOST}/{INITRD} --mem {MEMORY_MIB} {options} \
         --no-reboot --append '{console} {CMDLINE}' </dev/null"
    )
}

/// What a guest on covisor told.
fn heard(system: &'static str, outcome: &Outcome) -> Result<Measured> {
    let mut measured = Measured::default();
    if outcome.stdout_text().lines().any(|line| measured.hear(line)) {
        return Ok(measured);
    }
    Err(no_figure(system, outcome).into())
}

fn no_figure(system: &'static str, outcome: &Outcome) -> BenchError {
    let output = format!("{}{}", outcome.stdout_text(), outcome.stderr_text());
    BenchError::NoFigure { what: system.to_owned(), output }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probes_figure_is_found() {
        assert_eq!(world_switch("bench world-switch 329\r"), Some(329));
        assert_eq!(world_switch("bench cpuid 329"), None);
    }

    #[test]
    fn the_doctor_tells_whether_an_engine_is_there() {
        let report =
            "ok   cpu      EPYC\nok   svm      can run guests\n  - coop     this driver was built without it\n";
        assert!(engine_in(report, "svm").is_ok());
        assert_eq!(engine_in(report, "coop").unwrap_err().0, "this driver was built without it");
        assert!(engine_in(report, "vmx").unwrap_err().0.contains("vmx"));
    }
}
