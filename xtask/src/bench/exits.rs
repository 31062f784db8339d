//! `bench exits`: the probe guest measures round trips on covisor and on KVM, in the same host on the same emulated
//! machine. What each operation is, is said in the probe's `bench` module; the guest's code is the same on both.

use super::BenchError;
use super::figure::{COVISOR_SVM, COVISOR_SVM_NT, COVISOR_VMX, COVISOR_VMX_NT, Figure, KVM_SVM, KVM_VMX};
use crate::env::Env;
use crate::error::Result;
use crate::rig::{Machine, RigKind};
use crate::windows::{NT_KERNEL, driver_in_linux};
use crate::{build, probe, run};

/// Where things are in the host.
const PROBE: &str = "/covisor/probe";
const KVM_BENCH: &str = "/covisor/kvm-bench";
const PROGRAM: &str = "/covisor/covisor";
const MODULE: &str = "/covisor/covisor.ko";

/// A port below the PCI devices', for the doorbell that nobody waits on.
const DOORBELL_PORT: u16 = 0xbf00;

/// What a line with a figure begins with.
const FIGURE: &str = "bench ";

/// Measures both systems on a machine of this kind with this CPU; with `nt`, covisor by its driver for Windows as well.
pub(super) fn run(env: &Env, kind: RigKind, cpu: &str, nt: bool) -> Result<Vec<Figure>> {
    let (covisor, covisor_nt, kvm, module) = match kind {
        RigKind::Qemu => (COVISOR_SVM, COVISOR_SVM_NT, KVM_SVM, "kvm_amd"),
        RigKind::Bochs => (COVISOR_VMX, COVISOR_VMX_NT, KVM_VMX, "kvm_intel"),
        RigKind::Plain => return Err(BenchError::NoKvm.into()),
    };
    let probe = probe::build_probe(env)?;
    let kvm_bench = build::static_program(env, "covisor-kvm-bench", "covisor-kvm-bench")?;
    let rig = run::covisor_rig(env, kind)?
        .cpu(cpu)
        .count_instructions(true)
        .memory_mib(512)
        .file(probe, PROBE)
        .file(kvm_bench, KVM_BENCH);
    let rig = if nt { driver_in_linux(env, rig)? } else { rig };
    let counter = format!("tsc-khz={}", rig.counter_khz());
    let step = env.progress.step("starting the emulated machine, counting instructions");
    let mut machine = rig.start()?;
    step.done();

    let step = env.progress.step("measuring KVM's exits");
    let script =
        format!("modprobe {module} && {KVM_BENCH} --text --bench-append {counter} {PROBE} && rmmod {module} kvm");
    let mut figures = figures(&mut machine, "KVM", &script, kvm)?;
    step.done();

    let step = env.progress.step("measuring covisor's exits");
    let engine = kind.engine();
    let run = format!(
        "exec {PROGRAM} run --engine {engine} --kernel {PROBE} \
         --mem 64 --console serial --no-reboot --test-doorbell {DOORBELL_PORT:#x} \
         --append 'test=bench doorbell={DOORBELL_PORT:#x} {counter}' </dev/null"
    );
    let script = format!("{PROGRAM} driver install --module {MODULE} >&2 && {run}");
    figures.extend(self::figures(&mut machine, "covisor", &script, covisor)?);
    if nt {
        let script = format!("{PROGRAM} driver remove >&2 && insmod {NT_KERNEL} && {run}");
        figures.extend(self::figures(&mut machine, "covisor with the driver for Windows", &script, covisor_nt)?);
    }
    step.done();
    machine.shut_down()?;
    Ok(figures)
}

/// Runs a script that prints the probe's output, and takes the figures from it.
fn figures(machine: &mut Machine, what: &'static str, script: &str, system: &'static str) -> Result<Vec<Figure>> {
    let outcome = machine.run(script)?;
    let output = format!("{}{}", outcome.stdout_text(), outcome.stderr_text());
    if outcome.status != 0 {
        return Err(BenchError::Script { what, status: outcome.status, output }.into());
    }
    let figures: Vec<Figure> = outcome.stdout_text().lines().filter_map(|line| figure(line, system)).collect();
    if figures.is_empty() {
        return Err(BenchError::NoFigure { what: what.to_owned(), output }.into());
    }
    Ok(figures)
}

/// The figure in a line.
fn figure(line: &str, system: &'static str) -> Option<Figure> {
    let (op, instructions) = line.trim().strip_prefix(FIGURE)?.split_once(' ')?;
    Some(Figure { bench: "exits", op: op.to_owned(), system, instructions: instructions.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_of_the_benchmark_have_figures() {
        let found = figure("bench cpuid 12\r", KVM_SVM).unwrap();
        assert_eq!((found.op.as_str(), found.instructions), ("cpuid", 12));
        assert_eq!(figure("probe: entry-tsc 12", KVM_SVM), None);
        assert_eq!(figure("bench cpuid", KVM_SVM), None);
    }
}
