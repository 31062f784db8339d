//! Debian as it is: its kernels, its initrds, its systemd, its compiler, on a disk.

use std::path::PathBuf;

use covisor_guest_images::command::{Cmd, find_program};
use covisor_guest_images::debian::{BootFiles, DebianImage};
use xtask::rig::{Outcome, Rig, RigKind};
use xtask::run::shell_word;
use xtask::scenario::{Scenario, Verdict};
use xtask::{Env, Result, images};

use crate::checked::{Checked, Failure, ensure, told};
use crate::host::{Host, in_folder, on_own_host};

/// The scenarios about the Debian guest.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario::new("debian/compiles-and-runs", |env, kind| {
        on_debian(env, kind, "6.1.", "-cloud-amd64", compiles_and_runs)
    }),
    Scenario::new("debian/boots-cloud-6.1", |env, kind| on_debian(env, kind, "6.1.", "-cloud-amd64", boots)),
    Scenario::new("debian/boots-generic-6.1", |env, kind| on_debian(env, kind, "6.1.", "-amd64", boots)),
    Scenario::new("debian/boots-cloud-6.12", |env, kind| on_debian(env, kind, "6.12.", "-cloud-amd64", boots)),
    Scenario::new("debian/stop-powers-off", |env, kind| on_debian(env, kind, "6.1.", "-cloud-amd64", stop_powers_off)),
    Scenario::new("debian/disk-round-trip", |env, kind| on_debian(env, kind, "6.1.", "-cloud-amd64", disk_round_trip)),
];

/// The guest. Its disk is the host's first, whose changes are gone with the host.
const DEBIAN: &str = "run --engine $ENGINE --kernel debian-kernel --initrd debian-initrd --disk $DISK --mem 512 \
                      --append 'console=tty0 console=hvc0 root=/dev/vda ro'";

/// The host's memory: the guest's, the files, and the room that all of it takes while the host unpacks them.
const HOST_MEMORY_MIB: u32 = 1536;

/// Tries a scenario on a host with the Debian image and one of its kernels, and checks the file system afterwards.
pub(crate) fn on_debian(
    env: &Env,
    kind: RigKind,
    version: &str,
    flavour: &str,
    scenario: impl FnOnce(&mut Host) -> Checked,
) -> Result<Verdict> {
    on_debian_with_cpu(env, kind, kind.default_cpu(), (version, flavour), scenario)
}

/// The same with another CPU.
pub(crate) fn on_debian_with_cpu(
    env: &Env,
    kind: RigKind,
    cpu: &str,
    (version, flavour): (&str, &str),
    scenario: impl FnOnce(&mut Host) -> Checked,
) -> Result<Verdict> {
    let image = images::debian(env)?;
    on_own_host(
        env,
        kind,
        |rig| debian_rig(rig.cpu(cpu), &image, version, flavour),
        |host| {
            scenario(host)?;
            file_system_is_clean(host)
        },
    )
}

/// The rig with the Debian image and one of its kernels.
pub(crate) fn debian_rig(rig: Rig, image: &DebianImage, version: &str, flavour: &str) -> Checked<Rig> {
    let kernel = kernel(image, version, flavour)?;
    let mut rig = rig
        .memory_mib(HOST_MEMORY_MIB)
        .disk(&image.image)
        .file(&kernel.vmlinuz, in_folder("debian-kernel"))
        .file(&kernel.initrd, in_folder("debian-initrd"));
    for file in with_libraries("e2fsck")? {
        let name = file.to_string_lossy().into_owned();
        rig = rig.file(file, name);
    }
    Ok(rig)
}

/// The image's kernel of this version and flavour.
fn kernel<'a>(image: &'a DebianImage, version: &str, flavour: &str) -> Checked<&'a BootFiles> {
    let is_it = |kernel: &&BootFiles| {
        let cloud = kernel.version.ends_with("-cloud-amd64");
        kernel.version.starts_with(version) && kernel.version.ends_with(flavour) && cloud == flavour.contains("cloud")
    };
    image
        .kernels
        .iter()
        .find(is_it)
        .ok_or_else(|| Failure::Seen(format!("the Debian image has no kernel {version}*{flavour}")))
}

/// A program of this machine and the libraries that it needs, which go to the same places in the host.
pub(crate) fn with_libraries(program: &str) -> Checked<Vec<PathBuf>> {
    let program = find_program(program)
        .ok_or_else(|| Failure::Seen(format!("{program} is not installed here (`cargo xtask setup` does it)")))?;
    let list = Cmd::new("ldd").arg(&program).output().map_err(xtask::Error::from)?;
    // `name => /path (address)`, or `/path (address)` for the dynamic loader.
    let libraries = list.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(libraries.map(PathBuf::from).chain([program.clone()]).collect())
}

/// Runs a command in the guest.
fn exec(host: &mut Host, options: &str, command: &str) -> Checked<Outcome> {
    host.covisor(&run_with(options, command))
}

/// The arguments for that.
pub(crate) fn run_with(options: &str, command: &str) -> String {
    format!("{DEBIAN} {options} --exec {}", shell_word(command))
}

/// Checks that the guest left its file system in order: whole, and with nothing left in its journal.
pub(crate) fn file_system_is_clean(host: &mut Host) -> Checked {
    let program = with_libraries("e2fsck")?.pop().unwrap_or_default();
    let outcome = host.sh(&format!("{} -f -n $DISK", program.display()))?;
    let text = format!("{}{}", outcome.stdout_text(), outcome.stderr_text());
    ensure!(outcome.status == 0 && !text.contains("journal recovery"), "fsck -n: {}", told(&outcome));
    Ok(())
}

/// systemd comes up without a failure, and root is logged in at the console.
pub(crate) fn boots(host: &mut Host) -> Checked {
    let command = "systemctl is-system-running --wait; systemctl --failed --no-legend --plain; \
                   systemctl is-active getty.target serial-getty@hvc0.service; \
                   for i in $(seq 600); do ps -t hvc0 -o user=,comm= | grep bash && break; sleep 0.1; done; exit 5";
    let outcome = exec(host, "--verbose", command)?;
    let text = outcome.stdout_text();
    let lines: Vec<&str> = text.lines().collect();
    ensure!(
        outcome.status == 5 && matches!(lines[..], ["running", "active", "active", ..]),
        "systemd is not up: {}",
        told(&outcome)
    );
    ensure!(
        lines.iter().any(|line| line.split_whitespace().eq(["root", "bash"])),
        "nobody is logged in at the console: {}",
        told(&outcome)
    );
    // With --verbose the console is on standard error.
    ensure!(outcome.stderr_text().contains("login: root"), "the console shows no login: {}", told(&outcome));
    Ok(())
}

/// `covisor stop` presses the power button, and systemd powers off in order.
fn stop_powers_off(host: &mut Host) -> Checked {
    let script = format!(
        r#"
        ./covisor {DEBIAN} --name stopped </dev/null >/tmp/console 2>/tmp/errors &
        for i in $(seq 3000); do grep -q 'login: root' /tmp/console && break; sleep 0.2; done
        ./covisor ps
        ./covisor stop stopped --timeout 500 || {{ tail -n 20 /tmp/console >&2; kill -9 $!; }}
        wait $!
        status=$?
        cat /tmp/errors >&2
        exit $status
        "#
    );
    let outcome = host.sh(&script)?;
    ensure!(outcome.status == 0, "{}", told(&outcome));
    let engine = host.engine();
    let listed = outcome.stdout_text().lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        matches!(words[..], ["stopped", _, "running", by, "512", _, _, _] if by == engine)
    });
    ensure!(listed, "`covisor ps` does not list the machine: {}", told(&outcome));
    Ok(())
}

/// apt installs a compiler, from packages that wait in the image as the guest has no network, and it works. A small one:
/// to unpack GCC takes the emulated machine several minutes more.
fn compiles_and_runs(host: &mut Host) -> Checked {
    let command = r#"set -e
        export DEBIAN_FRONTEND=noninteractive
        apt-get -q -y --no-install-recommends install tcc libc6-dev >&2
        cat >/root/sum.c <<'END'
#include <math.h>
#include <stdio.h>
int main(void) {
    double sum = 0;
    for (long i = 1; i <= 1000000; i++) sum += 1.0 / ((double)i * i);
    printf("%.9f\n", sqrt(6 * sum));
    return 0;
}
END
        tcc -Wall -o /root/sum /root/sum.c -lm
        /root/sum"#;
    let outcome = exec(host, "", command)?;
    ensure!(outcome.status == 0 && outcome.stdout == b"3.141591699\n", "{}", told(&outcome));
    Ok(())
}

/// 256 MiB written, forgotten by the guest's memory, and read back.
fn disk_round_trip(host: &mut Host) -> Checked {
    let command = "dd if=/dev/urandom bs=1M count=256 2>/dev/null | tee /root/data | sha256sum; \
                   sync; echo 3 >/proc/sys/vm/drop_caches; sha256sum </root/data; stat -c %s /root/data";
    let outcome = exec(host, "", command)?;
    let text = outcome.stdout_text();
    let lines: Vec<&str> = text.lines().collect();
    ensure!(
        outcome.status == 0 && matches!(lines[..], [written, read, "268435456"] if written == read),
        "{}",
        told(&outcome)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_found_by_version_and_flavour() {
        let boot = |version: &str| BootFiles { version: version.to_owned(), vmlinuz: "k".into(), initrd: "i".into() };
        let kernels = ["6.1.0-9-cloud-amd64", "6.1.0-9-amd64", "6.12.3-cloud-amd64"].map(boot).to_vec();
        let image = DebianImage { image: "disk".into(), kernels };
        let found = |version, flavour| kernel(&image, version, flavour).map(|kernel| kernel.version.clone()).ok();
        assert_eq!(found("6.1.", "-cloud-amd64").as_deref(), Some("6.1.0-9-cloud-amd64"));
        assert_eq!(found("6.1.", "-amd64").as_deref(), Some("6.1.0-9-amd64"));
        assert_eq!(found("6.12.", "-cloud-amd64").as_deref(), Some("6.12.3-cloud-amd64"));
        assert_eq!(found("6.12.", "-amd64"), None);
    }
}
