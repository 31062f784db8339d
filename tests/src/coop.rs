//! Engine `coop` beside the others: on CPUs of other makers, and on a disk that another engine's guest used and will use.

use xtask::rig::{CPU_EPYC, CPU_FIVE_LEVELS, CPU_INTEL, CPU_SVM};
use xtask::scenario::Scenario;

use crate::checked::{Checked, ensure, told};
use crate::debian::{boots, file_system_is_clean, on_debian_with_cpu, run_with};
use crate::host::Host;

/// Debian 12's kernel.
const CLOUD_6_1: (&str, &str) = ("6.1.", "-cloud-amd64");
/// Debian 13's.
const CLOUD_6_12: (&str, &str) = ("6.12.", "-cloud-amd64");

/// The scenarios about engine `coop`, on QEMU's machines. What is their CPU's is told by the host's kernel, not assumed.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario::new("same-disk", |env, kind| on_debian_with_cpu(env, kind, CPU_SVM, CLOUD_6_1, same_disk)),
    Scenario::new("debian/boots-on-epyc-6.1", |env, kind| {
        on_debian_with_cpu(env, kind, CPU_EPYC, CLOUD_6_1, |host| boots_beside(host, &["svm", "smep", "smap"]))
    }),
    Scenario::new("debian/boots-on-epyc-6.12", |env, kind| {
        on_debian_with_cpu(env, kind, CPU_SVM, CLOUD_6_12, |host| boots_beside(host, &["svm", "smep", "smap"]))
    }),
    Scenario::new("debian/boots-on-intel-6.1", |env, kind| {
        on_debian_with_cpu(env, kind, CPU_INTEL, CLOUD_6_1, |host| boots_beside(host, &["pti", "smep", "smap"]))
    }),
    Scenario::new("debian/boots-on-intel-6.12", |env, kind| {
        let without_its_flaw = format!("{CPU_INTEL},-cx16");
        on_debian_with_cpu(env, kind, &without_its_flaw, CLOUD_6_12, |host| {
            boots_beside(host, &["pti", "smep", "smap"])
        })
    }),
    Scenario::new("debian/boots-on-five-levels-6.1", |env, kind| {
        on_debian_with_cpu(env, kind, CPU_FIVE_LEVELS, CLOUD_6_1, |host| boots_beside(host, &["la57", "pti", "pku"]))
    }),
];

/// Debian comes up on a host whose kernel uses these features of its CPU.
fn boots_beside(host: &mut Host, features: &[&str]) -> Checked {
    for feature in features {
        let outcome = host.sh(&format!("grep -qw {feature} /proc/cpuinfo"))?;
        ensure!(outcome.status == 0, "the host does not use {feature}, so this would not show what it is to");
    }
    boots(host)
}

/// The same kernel file, disk image and command line on one engine, on the other, and on the first again. Each guest finds what those
/// before it wrote, and leaves the file system in order.
fn same_disk(host: &mut Host) -> Checked {
    let (mut sums, mut written) = (String::new(), String::new());
    for (engine, name) in [("svm", "first"), ("coop", "second"), ("svm", "third")] {
        let command = format!(
            "set -e
            systemctl is-system-running --wait
            cd /root; for file in {written}; do sha256sum $file; done
            head -c 4194304 /dev/urandom >{name}; sha256sum {name}"
        );
        let outcome = host.sh(&format!("ENGINE={engine}; exec ./covisor {} </dev/null", run_with("", &command)))?;
        let text = outcome.stdout_text();
        let found = text.strip_prefix("running\n").and_then(|text| text.strip_prefix(&*sums));
        ensure!(
            outcome.status == 0
                && outcome.stderr_text().contains(&format!("covisor: engine {engine}: "))
                && found.is_some_and(|rest| rest.lines().count() == 1 && rest.ends_with(&format!("  {name}\n"))),
            "with {engine}, which should find\n{sums}it is otherwise: {}",
            told(&outcome)
        );
        sums.push_str(found.unwrap_or_default());
        written.push_str(&format!(" {name}"));
        file_system_is_clean(host)?;
    }
    Ok(())
}
