//! `covisor doctor`: what it says of machines that can run guests and of those that cannot.

use xtask::rig::{CPU_FOR_NO_ENGINE, CPU_VMX_WITHOUT_EPT, CPU_VMX_WITHOUT_UNRESTRICTED_GUEST, RigKind};
use xtask::scenario::Scenario;
use xtask::{Env, build};

use crate::checked::{Checked, ensure, told};
use crate::host::{Host, PROBE, doctors_words, in_folder, on_host, on_own_host};

/// The scenarios about `doctor`, and about sharing the CPU's extension with KVM.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario::new("doctor/all-is-well", |env, kind| on_host(env, kind, all_is_well)),
    Scenario::new("doctor/driver-not-loaded", |env, kind| on_host(env, kind, driver_not_loaded)),
    Scenario::new("doctor/cpu-for-no-engine", |env, kind| {
        on_own_host(env, kind, |rig| Ok(rig.cpu(CPU_FOR_NO_ENGINE)), cpu_for_no_engine)
    }),
    Scenario::new("doctor/taken-by-kvm", |env, kind| with_kvm(env, kind, taken_by_kvm)),
    Scenario::new("doctor/kvm-does-not-get-what-covisor-has", |env, kind| with_kvm(env, kind, kvm_has_to_wait)),
];

/// What only the machine with VT-x can show.
pub(crate) const WITH_VT_X: &[Scenario] = &[
    Scenario::new("doctor/cpu-without-ept", |env, kind| {
        on_own_host(env, kind, |rig| Ok(rig.cpu(CPU_VMX_WITHOUT_EPT)), |host| refused(host, "no nested paging (EPT)"))
    }),
    Scenario::new("doctor/cpu-without-unrestricted-guest", |env, kind| {
        on_own_host(
            env,
            kind,
            |rig| Ok(rig.cpu(CPU_VMX_WITHOUT_UNRESTRICTED_GUEST)),
            |host| refused(host, "cannot run real mode (unrestricted guest)"),
        )
    }),
];

/// The exit status when the driver or the engine is missing or refuses.
const DRIVER: i32 = 2;

/// Whether a line of the report begins with these words, the lines that go on with it counted to it.
fn has_line(text: &str, words: &[&str]) -> bool {
    unfolded(text).lines().any(|line| line.split_whitespace().take(words.len()).eq(words.iter().copied()))
}

/// A report in which what is said of one thing is on one line.
fn unfolded(text: &str) -> String {
    /// Where what goes on begins.
    const FURTHER: &str = "\n              ";
    text.replace(FURTHER, " ")
}

/// Whether a report fits into a message, and says nothing of whose machine it is.
fn is_a_page(text: &str) -> bool {
    text.lines().all(|line| line.chars().count() <= 80)
        && text.starts_with("covisor ")
        && !text.contains("/home/")
        && ["host", "boot", "disk", "guests", "errors"]
            .iter()
            .all(|about| has_line(text, &["ok", about]) || has_line(text, &["-", about]))
}

/// The engines that take an extension of the CPU's, and how `doctor` calls that.
const ENGINES: [(&str, &str); 2] = [("svm", "AMD-V"), ("vmx", "Intel VT-x")];

/// Its own engine can run guests, engine `coop` can anywhere, and of the others it is said what the CPU does not have.
fn all_is_well(host: &mut Host) -> Checked {
    let outcome = host.covisor("doctor")?;
    let text = outcome.stdout_text();
    let not_there = |(engine, extension): (&str, &str)| {
        let words = format!("- {engine} this CPU does not have {extension}");
        engine == host.engine() || has_line(&text, &words.split(' ').collect::<Vec<_>>())
    };
    ensure!(
        outcome.status == 0
            && has_line(&text, host.doctors_words())
            && has_line(&text, doctors_words(RigKind::Plain))
            && ENGINES.into_iter().all(not_there)
            && has_line(&text, &["ok", "driver", "loaded,"])
            && is_a_page(&text)
            && text.ends_with("This machine can run guests.\n"),
        "{}",
        told(&outcome)
    );
    let json = host.output("./covisor doctor --json")?;
    let value: serde_json::Value = serde_json::from_str(&json).unwrap_or_default();
    ensure!(value["ready"] == true && value["findings"].is_array() && json.lines().count() == 1, "{json}");
    Ok(())
}

fn driver_not_loaded(host: &mut Host) -> Checked {
    host.output("./covisor driver remove")?;
    let outcome = host.covisor("doctor")?;
    host.output("./covisor driver install --module covisor.ko")?;
    let text = outcome.stdout_text();
    ensure!(
        outcome.status == DRIVER
            && has_line(&text, &["ok", host.engine()])
            && has_line(&text, &["-", "driver"])
            && is_a_page(&text)
            && unfolded(&text).contains("sudo covisor driver install"),
        "{}",
        told(&outcome)
    );
    Ok(())
}

fn cpu_for_no_engine(host: &mut Host) -> Checked {
    let outcome = host.covisor("doctor")?;
    let text = outcome.stdout_text();
    ensure!(
        outcome.status == DRIVER
            && ENGINES.iter().all(|(engine, _)| has_line(&text, &["-", engine]))
            && has_line(&text, &["-", "coop", "this", "CPU,"])
            && text.ends_with("This machine cannot run guests yet; the lines with a dash say why.\n"),
        "{}",
        told(&outcome)
    );
    Ok(())
}

/// A CPU whose VT-x is not enough is refused for the reason, by `doctor` and by `run`.
fn refused(host: &mut Host, reason: &str) -> Checked {
    let outcome = host.sh(&format!("./covisor doctor; ./covisor {PROBE} --append test=entry </dev/null"))?;
    let line =
        |text: &str, begin: &str| unfolded(text).lines().any(|line| line.starts_with(begin) && line.contains(reason));
    ensure!(
        outcome.status == DRIVER
            && line(&outcome.stdout_text(), "  -  vmx ")
            && line(&outcome.stderr_text(), "covisor: error: engine vmx: "),
        "{}",
        told(&outcome)
    );
    Ok(())
}

/// Tries a scenario on a host with KVM.
fn with_kvm(env: &Env, kind: RigKind, scenario: fn(&mut Host) -> Checked) -> xtask::Result<xtask::scenario::Verdict> {
    let monitor = build::static_program(env, "covisor-kvm-bench", "covisor-kvm-bench")?;
    on_own_host(env, kind, |rig| Ok(rig.file(monitor, in_folder("kvm-bench"))), scenario)
}

/// While a machine of KVM's runs, covisor says that it cannot use the extension, and by itself takes engine `coop`; when that has
/// ended, it can.
fn taken_by_kvm(host: &mut Host) -> Checked {
    let outcome = host.sh(&format!(
        "modprobe $KVM || exit
        ./kvm-bench --append test=idle probe >/tmp/idle & other=$!
        until grep -qs 'goes ahead' /tmp/idle; do kill -0 $other || exit; sleep 0.02; done
        ./covisor doctor; echo \"doctor's status $?\"
        ./covisor {PROBE} --append test=entry </dev/null; echo \"run's status $?\"
        (ENGINE=auto; ./covisor {PROBE} --append test=entry </dev/null); echo \"auto's status $?\"
        kill -9 $other; wait $other; rmmod $KVM kvm || exit
        ./covisor {PROBE} --append test=entry </dev/null"
    ))?;
    let text = outcome.stdout_text();
    ensure!(
        outcome.status == 0
            && has_line(&text, &["-", host.engine(), "another", "hypervisor", "holds"])
            && has_line(&text, doctors_words(RigKind::Plain))
            && text.contains("doctor's status 0")
            && text.contains("run's status 2")
            && text.contains("auto's status 0")
            && outcome.stderr_text().contains("covisor: engine coop: ")
            && outcome
                .stderr_text()
                .contains(&format!("covisor: error: engine {}: another hypervisor holds", host.engine())),
        "{}",
        told(&outcome)
    );
    Ok(())
}

/// While covisor's machine runs, KVM is refused and does no harm; when that has ended, KVM works.
fn kvm_has_to_wait(host: &mut Host) -> Checked {
    let outcome = host.sh(&format!(
        "./covisor {PROBE} --append test=idle --timeout 500 </dev/null >/tmp/idle & pid=$!
        until grep -qs 'goes ahead' /tmp/idle; do kill -0 $pid || exit; sleep 0.02; done
        modprobe $KVM && ./kvm-bench --append test=entry probe && echo 'KVM ran beside covisor'
        ./covisor ps
        kill $pid; wait $pid; echo \"its status $?\"
        ./kvm-bench --append test=entry probe && rmmod $KVM kvm"
    ))?;
    let text = outcome.stdout_text();
    ensure!(
        outcome.status == 0
            && !text.contains("KVM ran beside covisor")
            && text.contains(" running ")
            && text.contains("its status 130")
            && text.contains("probe: entry-tsc"),
        "{}",
        told(&outcome)
    );
    // KVM's own complaint is what was wanted.
    host.output("dmesg -c >/dev/null")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_by_their_words() {
        assert!(has_line("ok   cpu  x\n  -  svm      none\n", &["-", "svm"]));
        assert!(!has_line("ok   svm  x\n", &["-", "svm"]));
        assert!(has_line("ok   svm      x\n              y\n", &["ok", "svm", "x", "y"]));
    }
}
