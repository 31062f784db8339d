//! What covisor costs: instructions, memory, and the host's patience.

use covisor_guest_images::command::Cmd;
use serde_json::Value;
use xtask::Env;
use xtask::rig::RigKind;
use xtask::scenario::{Scenario, Verdict};

use crate::checked::{Checked, Failure, ensure, told, verdict};
use crate::host::{Host, MINI, PROBE, on_host};
use crate::hostile::late_by;

/// The scenarios about costs.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario::new("cost/exits", |env, kind| bench(env, kind, "exits", &["--rig", kind.name()], exits)),
    Scenario::new("cost/boot", |env, kind| bench(env, kind, "boot", &[], boot)),
    Scenario::new("cost/io", |env, kind| bench(env, kind, "io", &["--only", "covisor-svm"], io)).on_demand(),
    Scenario::new("cost/beside-qemu", |env, kind| bench(env, kind, "io", &[], io_beside_qemu)).on_demand(),
    Scenario::new("cost/memory-of-the-loader", |env, kind| on_host(env, kind, memory_of_the_loader)),
    Scenario::new("cost/signals-are-obeyed-at-once", |env, kind| on_host(env, kind, signals_are_obeyed_at_once)),
    Scenario::new("cost/wake-ups-are-not-delayed", |env, kind| on_host(env, kind, wake_ups_are_not_delayed)),
];

/// Instructions that a round trip may take at most. VT-x takes more where the host is loaded: what VMSAVE and VMLOAD move in
/// two instructions, it leaves to software.
const fn exit_bars(kind: RigKind) -> [(&'static str, u64); 4] {
    match kind {
        RigKind::Qemu | RigKind::Plain => {
            [("cpuid", 400), ("port-driver", 500), ("doorbell", 700), ("port-user", 1800)]
        }
        RigKind::Bochs => [("cpuid", 353), ("port-driver", 448), ("doorbell", 900), ("port-user", 2100)],
    }
}

/// Those that may take at most a third of KVM's.
const THIRDS_OF_KVM: [&str; 2] = ["cpuid", "port-driver"];

/// The operations that have a figure.
const EXIT_OPERATIONS: [&str; 8] =
    ["cpuid", "hypercall", "msr", "port-driver", "doorbell", "port-user", "mmio-user", "halt-wake"];

/// How many percent of the bare machine's instructions a boot may take.
const BOOT_BAR_PERCENT: u64 = 115;

/// Instructions that a MiB may take at most, from the guest's program to the host's, or to the host's file.
const IO_BARS: [(&str, u64); 11] = [
    ("tcp-send", 1_900_000),
    ("tcp-receive", 2_300_000),
    ("raw-write", 490_000),
    ("raw-read", 440_000),
    ("raw-randwrite", 8_500_000),
    ("raw-randread", 9_900_000),
    ("qcow2-fill", 1_350_000),
    ("qcow2-write", 700_000),
    ("qcow2-read", 450_000),
    ("qcow2-randwrite", 8_750_000),
    ("qcow2-randread", 12_000_000),
];

/// KiB that the loader may have in memory beside the guest's RAM.
const LOADER_BAR_KIB: u64 = 8 << 10;

/// Microseconds within which the driver lets the host have the CPU.
const PROMPT_US: u32 = 1000;

/// A figure of `cargo xtask bench`.
#[derive(Debug)]
struct Figure {
    op: String,
    system: String,
    instructions: u64,
}

/// Runs a benchmark as a user does, and checks its figures.
fn bench(
    env: &Env,
    kind: RigKind,
    name: &str,
    words: &[&str],
    check: fn(&[Figure], RigKind) -> Checked,
) -> xtask::Result<Verdict> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let text = Cmd::new(cargo)
        .args(["run", "--quiet", "--package", "xtask", "--", "bench", name, "--json"])
        .args(words)
        .dir(&env.root)
        .output()?;
    let figures: Option<Vec<Figure>> = text.lines().map(|line| figure(line, name)).collect();
    let checked = match figures {
        Some(figures) => check(&figures, kind),
        None => Err(Failure::Seen(format!("not all lines are figures:\n{text}"))),
    };
    verdict(checked)
}

/// The figure in a line of JSON.
fn figure(line: &str, bench: &str) -> Option<Figure> {
    let object: Value = serde_json::from_str(line).ok()?;
    let text = |key: &str| object.get(key)?.as_str().map(str::to_owned);
    (text("bench")? == bench).then_some(())?;
    Some(Figure { op: text("op")?, system: text("system")?, instructions: object.get("instructions")?.as_u64()? })
}

fn instructions(figures: &[Figure], op: &str, system: &str) -> Checked<u64> {
    let found = figures.iter().find(|figure| figure.op == op && figure.system == system);
    found
        .map(|figure| figure.instructions)
        .ok_or_else(|| Failure::Seen(format!("there is no figure for {op} of {system}: {figures:?}")))
}

/// The systems that a rig's benches compare: covisor on its engine, and KVM.
fn systems(kind: RigKind) -> (String, String) {
    (format!("covisor-{}", kind.engine()), format!("kvm-{}", kind.engine()))
}

fn exits(figures: &[Figure], kind: RigKind) -> Checked {
    let (covisor, kvm) = systems(kind);
    for op in EXIT_OPERATIONS {
        let (ours, kvms) = (instructions(figures, op, &covisor)?, instructions(figures, op, &kvm)?);
        ensure!(ours < kvms, "{op} takes {ours} instructions, KVM only {kvms}");
    }
    for (op, bar) in exit_bars(kind) {
        let ours = instructions(figures, op, &covisor)?;
        ensure!(ours <= bar, "{op} takes {ours} instructions, the bar is {bar}");
    }
    for op in THIRDS_OF_KVM {
        let (ours, kvms) = (instructions(figures, op, &covisor)?, instructions(figures, op, &kvm)?);
        ensure!(ours * 3 <= kvms, "{op} takes {ours} instructions, more than a third of KVM's {kvms}");
    }
    Ok(())
}

fn boot(figures: &[Figure], kind: RigKind) -> Checked {
    let (ours, bare) = (instructions(figures, "boot", &systems(kind).0)?, instructions(figures, "boot", "bare")?);
    ensure!(
        ours * 100 <= bare * BOOT_BAR_PERCENT,
        "a boot takes {ours} instructions, more than {BOOT_BAR_PERCENT} % of the bare machine's {bare}"
    );
    Ok(())
}

fn io(figures: &[Figure], kind: RigKind) -> Checked {
    for (op, bar) in IO_BARS {
        let ours = instructions(figures, op, &systems(kind).0)?;
        ensure!(ours <= bar, "a MiB of {op} takes {ours} instructions, the bar is {bar}");
    }
    Ok(())
}

/// A MiB takes no more than on QEMU with KVM.
fn io_beside_qemu(figures: &[Figure], kind: RigKind) -> Checked {
    for (op, _) in IO_BARS {
        let (ours, qemus) = (instructions(figures, op, &systems(kind).0)?, instructions(figures, op, "qemu-kvm")?);
        ensure!(ours <= qemus, "a MiB of {op} takes {ours} instructions, on QEMU with KVM only {qemus}");
    }
    Ok(())
}

/// The loader's own memory, while a guest with 128 MiB is up and has used its disk and console.
fn memory_of_the_loader(host: &mut Host) -> Checked {
    // Each mapping of /proc/PID/smaps begins with a line with its file's name; its `Rss` line comes later.
    let outcome = host.sh(&format!(
        r#"
        truncate -s 64M /tmp/disk
        ./covisor {MINI} --mem 128 --disk /tmp/disk \
            --exec 'dd if=/dev/vda of=/dev/null bs=1M; dmesg; echo ready; sleep 1000' </dev/null >/tmp/out & pid=$!
        until grep -q ready /tmp/out; do kill -0 $pid || exit; sleep 0.1; done
        awk '/^[0-9a-f]+-/ {{ ram = $6 == "/dev/covisor" }}
             /^Rss:/ {{ if (ram) guest += $2; else loader += $2 }}
             END {{ print loader, guest }}' /proc/$pid/smaps
        kill $pid; wait $pid; rm /tmp/disk
        "#
    ))?;
    let text = outcome.stdout_text();
    let numbers: Vec<u64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [loader, guest] = numbers[..] else { return Err(Failure::Seen(told(&outcome))) };
    ensure!(guest > 0, "the guest's RAM is not among the loader's mappings: {}", told(&outcome));
    ensure!(loader <= LOADER_BAR_KIB, "the loader has {loader} KiB in memory, the bar is {LOADER_BAR_KIB}");
    Ok(())
}

/// A loader whose guest never gives the CPU up stops within a millisecond when it is told to, again and again.
fn signals_are_obeyed_at_once(host: &mut Host) -> Checked {
    let with_timers = if host.engine() == "coop" { "timer-storm" } else { "timer-flood" };
    for busy in ["cli-loop", "exit-flood", "port-flood", with_timers] {
        let outcome = host.sh(&format!(
            "taskset -c $FIRST ./host-watch stops --count 30 --after 100 -- ./covisor {PROBE} --append test={busy} >/tmp/out; tail -n 1 /tmp/out"
        ))?;
        let text = outcome.stdout_text();
        let longest =
            text.trim_end().rsplit_once("at most ").and_then(|(_, rest)| rest.strip_suffix(" us")?.parse().ok());
        ensure!(
            longest.is_some_and(|longest: u32| longest <= PROMPT_US),
            "a loader with the guest {busy} should stop within {PROMPT_US} us: {}",
            told(&outcome)
        );
    }
    Ok(())
}

/// A program of the host that must run first wakes within a millisecond, whatever a guest on its CPU does.
fn wake_ups_are_not_delayed(host: &mut Host) -> Checked {
    let without_leaving = if host.engine() == "coop" { "hypercall-flood" } else { "apic-flood" };
    for busy in ["cli-loop", "exit-flood", "port-flood", without_leaving, "random-user-code"] {
        // Only while the guest runs: Linux 6.1 itself takes longer to get back the memory of a process with large pages.
        let outcome = host.sh(&format!(
            "rm -f /tmp/out; taskset -c $FIRST ./covisor {PROBE} --append test={busy} </dev/null >/tmp/out 2>&1 & pid=$!
            until grep -q 'goes ahead' /tmp/out; do kill -0 $pid || exit; sleep 0.02; done
            taskset -c $FIRST ./host-watch ticks 1700 --first >/tmp/ticks & ticks=$!
            sleep 0.1; kill $ticks; wait $ticks; kill $pid; wait $pid; cat /tmp/ticks"
        ))?;
        let late = late_by(&outcome.stdout_text());
        ensure!(
            late.is_some_and(|late| late <= PROMPT_US),
            "beside the guest {busy} a sleeper should wake within {PROMPT_US} us: {}",
            told(&outcome)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_json() {
        let line = r#"{"bench":"exits","op":"cpuid","system":"kvm-svm","instructions":2718}"#;
        let found = figure(line, "exits").unwrap();
        assert_eq!((found.op.as_str(), found.system.as_str(), found.instructions), ("cpuid", "kvm-svm", 2718));
        assert!(figure(line, "boot").is_none());
        assert!(figure("cpuid 12", "exits").is_none());
    }

    #[test]
    fn a_figure_above_its_bar_fails() {
        let figure =
            |system: &str, instructions| Figure { op: "boot".to_owned(), system: system.to_owned(), instructions };
        assert!(boot(&[figure("covisor-svm", 114), figure("bare", 100)], RigKind::Qemu).is_ok());
        assert!(boot(&[figure("covisor-svm", 116), figure("bare", 100)], RigKind::Qemu).is_err());
        assert!(boot(&[figure("bare", 100)], RigKind::Qemu).is_err());
    }
}
