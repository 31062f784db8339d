//! `--engine auto`: which engine it takes, and what it says where there is none.

use xtask::rig::CPU_FOR_NO_ENGINE;
use xtask::scenario::Scenario;

use crate::checked::{Checked, ensure, told};
use crate::host::{Host, MINI, PROBE, on_host, on_own_host};

/// The scenarios about the choice of the engine.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario::new("engine/auto-takes-the-cpus", |env, kind| on_host(env, kind, auto_takes_the_cpus)),
    Scenario::new("engine/auto-tells-why-none", |env, kind| {
        on_own_host(env, kind, |rig| Ok(rig.cpu(CPU_FOR_NO_ENGINE)), auto_tells_why_none)
    }),
    Scenario::new("engine/the-other-vendors-is-refused", |env, kind| on_host(env, kind, the_other_vendors_is_refused)),
    Scenario::new("engine/coop-where-there-is-better", |env, kind| on_host(env, kind, coop_where_there_is_better)),
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

/// What is said of the engines of a CPU that is for none.
const WHY_NONE: [&str; 3] = [
    "svm: this CPU does not have AMD-V",
    "vmx: this CPU does not have Intel VT-x",
    "coop: this CPU, or the way in which the host's kernel uses it, does not allow the cooperative world switch",
];

/// One line says of each engine why not.
fn auto_tells_why_none(host: &mut Host) -> Checked {
    let outcome = enter(host, "auto")?;
    let stderr = outcome.stderr_text();
    let lines: Vec<&str> = stderr.lines().collect();
    ensure!(
        outcome.status == DRIVER
            && matches!(lines[..], [line] if line.starts_with("covisor: error: ")
                && WHY_NONE.iter().all(|words| line.contains(words))),
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

/// Engine `coop` runs on any CPU if it is named, says so, and stands in the way of no other.
fn coop_where_there_is_better(host: &mut Host) -> Checked {
    for engine in ["coop", host.engine(), "coop"] {
        let outcome = enter(host, engine)?;
        ensure!(
            outcome.status == 0
                && outcome.stdout_text().contains("probe: entry-tsc")
                && outcome.stderr_text().starts_with(&format!("covisor: engine {engine}: ")),
            "{}",
            told(&outcome)
        );
    }
    // Both at once, on one CPU: Linux boots by the one while the other's guest keeps the CPU busy.
    let outcome = host.sh(&format!(
        "sh -c 'renice -n 10 -p $$ >/dev/null; exec ./covisor {PROBE} --append test=exit-flood --name flood' \
            </dev/null >/tmp/flood 2>/tmp/flood.errors & pid=$!
        until grep -q 'goes ahead' /tmp/flood; do kill -0 $pid || exit; sleep 0.02; done
        (ENGINE=coop; ./covisor {MINI} --exec 'sha256sum /bin/busybox' </dev/null)
        ./covisor ps --json | grep -c flood
        kill $pid; wait $pid; echo \"its status $?\""
    ))?;
    let alone = host.output("sha256sum /bin/busybox")?;
    ensure!(outcome.stdout_text() == format!("{alone}1\nits status 130\n"), "{}", told(&outcome));
    Ok(())
}
