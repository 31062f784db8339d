//! `--engine auto`: which engine it takes, and what it says where there is none.

use xtask::rig::CPU_PLAIN;
use xtask::scenario::Scenario;

use crate::checked::{Checked, ensure, told};
use crate::host::{Host, on_host, on_own_host};

/// The scenarios about the choice of the engine.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario::new("engine/auto-takes-the-cpus", |env, kind| on_host(env, kind, auto_takes_the_cpus)),
    Scenario::new("engine/auto-tells-why-none", |env, kind| {
        on_own_host(env, kind, |rig| Ok(rig.cpu(CPU_PLAIN)), auto_tells_why_none)
    }),
    Scenario::new("engine/the-other-vendors-is-refused", |env, kind| on_host(env, kind, the_other_vendors_is_refused)),
];

/// The exit status when the driver or the engine is missing or refuses.
const DRIVER: i32 = 2;

/// The probe, which only says that it was entered.
fn enter(host: &mut Host, engine: &str) -> Checked<xtask::rig::Outcome> {
    host.covisor(&format!(
        "run --engine {engine} --kernel probe --mem 64 --console serial --no-reboot --append test=entry"
    ))
}

/// It takes the engine that the CPU has, and says so in the same words as if that had been named.
fn auto_takes_the_cpus(host: &mut Host) -> Checked {
    let lines = ["auto", host.engine()].map(|engine| {
        let outcome = enter(host, engine)?;
        ensure!(outcome.status == 0 && outcome.stdout_text().contains("probe: entry-tsc"), "{}", told(&outcome));
        Ok(outcome.stderr_text())
    });
    let [auto, named] = lines;
    let (auto, named) = (auto?, named?);
    let begin = format!("covisor: engine {}: ", host.engine());
    ensure!(auto == named && auto.starts_with(&begin), "auto says:\n{auto}and {}:\n{named}", host.engine());
    Ok(())
}

/// One line says of each engine why not.
fn auto_tells_why_none(host: &mut Host) -> Checked {
    let outcome = enter(host, "auto")?;
    let stderr = outcome.stderr_text();
    let lines: Vec<&str> = stderr.lines().collect();
    ensure!(
        outcome.status == DRIVER
            && matches!(lines[..], [line] if line.starts_with("covisor: error: ")
                && ["svm: this CPU does not have AMD-V", "vmx: this CPU does not have Intel VT-x"].iter().all(|words| line.contains(words))),
        "{}",
        told(&outcome)
    );
    Ok(())
}

/// An engine that the CPU is not for is refused by its own words.
fn the_other_vendors_is_refused(host: &mut Host) -> Checked {
    let (other, words) = match host.engine() {
        "svm" => ("vmx", "covisor: error: engine vmx: this CPU does not have Intel VT-x"),
        _ => ("svm", "covisor: error: engine svm: this CPU does not have AMD-V"),
    };
    let outcome = enter(host, other)?;
    ensure!(outcome.status == DRIVER && outcome.stderr_text().starts_with(words), "{}", told(&outcome));
    Ok(())
}
