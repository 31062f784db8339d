//! A host with covisor, its driver and guests, and the checks that hold for it after whatever ran there.
//!
//! Starting a host takes longer than most scenarios do, so they share one, which is deterministic: it counts instructions,
//! and a second there is a thousand million instructions however busy this machine is. A scenario that fails takes its host
//! with it, and the next one gets a new host.

use std::cell::RefCell;
use std::path::PathBuf;
use std::time::Duration;

use covisor_guest_images::command::Cmd;
use covisor_guest_images::fs;
use xtask::rig::{Input, Machine, Outcome, Rig, RigKind};
use xtask::scenario::Verdict;
use xtask::{Env, Result, build, images, probe, run};

use crate::checked::{Checked, ensure, told, verdict};

/// The folder in the host where everything is, and where scripts run.
pub(crate) const FOLDER: &str = "/covisor";

/// A guest that boots Linux: Debian's cloud kernel with busybox. Like all scripts it names what depends on the emulated machine by
/// the variables of [`prelude`].
pub(crate) const MINI: &str = "run --engine $ENGINE --kernel vmlinuz --initrd mini --append quiet";

/// A guest without an operating system: the probe. `--append test=NAME` says what it does.
pub(crate) const PROBE: &str = "run --engine $ENGINE --kernel probe --mem 64 --console serial --no-reboot";

/// A disk image of zeros, sparse and of this size, in words of truncate(1). Machines that run at the same time need one each, by
/// another name.
pub(crate) fn empty_disk(env: &Env, name: &str, size: &str) -> Checked<PathBuf> {
    let path = env.out.join("images").join(name).with_extension("img");
    fs::write(&path, []).map_err(xtask::Error::from)?;
    Cmd::new("truncate").args(["-s", size]).arg(&path).output().map_err(xtask::Error::from)?;
    Ok(path)
}

/// How long a script may take by this machine's clock.
const TIMEOUT: Duration = Duration::from_secs(1800);

/// Begins each script: the folder, and what depends on the emulated machine, the CPUs for programs and the driver's file. Whose CPU
/// it is the probe is told, for it knows the flaws of QEMU's.
fn prelude(kind: RigKind, driver: DriverFile, (first, last): (u32, u32)) -> String {
    let (kvm, cpu) = match kind {
        RigKind::Qemu | RigKind::Plain => ("kvm_amd", "tcg"),
        RigKind::Bochs => ("kvm_intel", "bochs"),
    };
    let (engine, disk, module) = (kind.engine(), kind.first_disk(), driver.module());
    format!(
        "cd {FOLDER}\n\
         export ENGINE={engine} KVM={kvm} CPU={cpu} DISK={disk} MODULE={module} FIRST={first} LAST={last}\n"
    )
}

/// Which of the driver's files a host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DriverFile {
    /// `covisor.ko`.
    Linux,
    /// `covisor.sys`, in what it takes of the kernel of an NT of this version ([`crate::nt`]): 1000 is 10.0, 502 is 5.2.
    Nt(u32),
}

impl DriverFile {
    /// The module of the kernel's that it is, or is in.
    const fn module(self) -> &'static str {
        match self {
            Self::Linux => "covisor",
            Self::Nt(_) => "nt_kernel",
        }
    }

    /// The command that loads it.
    fn load(self) -> String {
        match self {
            Self::Linux => "./covisor driver install --module covisor.ko >/dev/null".to_owned(),
            Self::Nt(version) => format!("insmod nt_kernel.ko version={version}"),
        }
    }
}

/// Says what is not as it is on a host on which no machine runs and nothing went wrong, a line each; and takes away the
/// files that the scenario left, which the next one might take for its own.
const COMPLAINTS: &str = r#"
for pid in $(pidof covisor); do
    echo "process $pid still runs: $(tr '\0' ' ' </proc/$pid/cmdline)"
done
for left in $(ls -A /run/covisor 2>/dev/null); do echo "left in /run/covisor: $left"; done
if grep -q "^$MODULE " /proc/modules; then
    users=$(grep "^$MODULE " /proc/modules | cut -d' ' -f3)
    [ "$users" = 0 ] || echo "the driver still has $users users"
else
    echo "the driver is not loaded any more"
fi
# An extension that was not given back looks as if another hypervisor had it.
for cpu in $(seq 0 $LAST); do
    taskset -c "$cpu" ./covisor doctor --json | grep -o "another hypervisor holds[^\"]*" | sed "s/^/on CPU $cpu: /"
done
dmesg -c -r | sed 's/^/kernel: /'
rm -rf /tmp/*
"#;

/// Warnings of the host's kernel that tell of a slow emulated machine, or of what a scenario gives it to refuse.
const HARMLESS: [&str; 8] = [
    "hrtimer: interrupt took",
    "clocksource:",
    // What follows where the clock source that was found unstable is the counter: the kernel's `__sched_clock_work`.
    "TSC found unstable after boot",
    "sched: RT throttling activated",
    "perf: interrupt took too long",
    "Invalid ELF header",
    // KVM's, where its module is loaded before the kernel knows the counter's rate exactly.
    "user requested TSC rate below hardware speed",
    // The disk with bad sectors.
    "dev nullb0,",
];

/// A running host, with the driver loaded.
#[derive(Debug)]
pub(crate) struct Host {
    machine: Machine,
    kind: RigKind,
    driver: DriverFile,
    /// The first and the last CPU for programs.
    cpus: (u32, u32),
}

/// A rig with covisor, its driver, the guests `mini` and `probe`, and the programs `host-watch`, `net-work` and `conformance`, all
/// in [`FOLDER`].
pub(crate) fn rig(env: &Env, kind: RigKind) -> Result<Rig> {
    let kernel = images::default_kernel(env)?;
    let mini = images::mini(env, &kernel)?;
    Ok(run::covisor_rig(env, kind)?
        .file(kernel.vmlinuz, in_folder("vmlinuz"))
        .file(mini, in_folder("mini"))
        .file(probe::build_probe(env)?, in_folder("probe"))
        .file(build::static_program(env, "covisor-host-watch", "covisor-host-watch")?, in_folder("host-watch"))
        .file(build::static_program(env, "covisor-net-work", "covisor-net-work")?, in_folder("net-work"))
        .file(build::static_program(env, "covisor-conformance", "covisor-conformance")?, in_folder("conformance"))
        .timeout(TIMEOUT))
}

/// The path of a file in [`FOLDER`].
pub(crate) fn in_folder(name: &str) -> String {
    format!("{FOLDER}/{name}")
}

impl Host {
    /// Starts a rig of this kind, made by [`rig`], and loads the driver.
    pub(crate) fn start(rig: Rig, kind: RigKind) -> Checked<Self> {
        Self::start_with(rig, kind, DriverFile::Linux)
    }

    /// The same with this file of the driver's, and puts the host into the state that [`Host::check_clean`] expects.
    pub(crate) fn start_with(rig: Rig, kind: RigKind, driver: DriverFile) -> Checked<Self> {
        let cpus = (rig.first_cpu(), rig.last_cpu());
        let mut host = Self { machine: rig.start()?, kind, driver, cpus };
        let outcome = host.sh(&format!(
            "modprobe msr && {} && dmesg -c >/dev/null && exit; status=$?; dmesg | tail -n 60 >&2; exit $status",
            driver.load()
        ))?;
        ensure!(outcome.status == 0, "the driver cannot be loaded: {}", told(&outcome));
        Ok(host)
    }

    /// The engine that this CPU is for.
    pub(crate) fn engine(&self) -> &'static str {
        self.kind.engine()
    }

    /// The first and the last CPU for programs, `$FIRST` and `$LAST` in scripts.
    pub(crate) fn cpus(&self) -> (u32, u32) {
        self.cpus
    }

    /// How the line begins by which `doctor` says that this engine can run guests.
    pub(crate) fn doctors_words(&self) -> &'static [&'static str] {
        doctors_words(self.kind)
    }

    /// Runs a script in [`FOLDER`].
    pub(crate) fn sh(&mut self, script: &str) -> Checked<Outcome> {
        self.sh_with(script, Input::Empty)
    }

    /// The same with standard input.
    pub(crate) fn sh_with(&mut self, script: &str, input: Input) -> Checked<Outcome> {
        Ok(self.machine.run_with(&format!("{}{script}", prelude(self.kind, self.driver, self.cpus)), input)?)
    }

    /// Runs a script that must succeed, and gives its standard output.
    pub(crate) fn output(&mut self, script: &str) -> Checked<String> {
        let outcome = self.sh(script)?;
        ensure!(outcome.status == 0, "`{script}` failed: {}", told(&outcome));
        Ok(outcome.stdout_text())
    }

    /// Runs covisor with these arguments.
    pub(crate) fn covisor(&mut self, arguments: &str) -> Checked<Outcome> {
        self.sh(&format!("exec ./covisor {arguments} </dev/null"))
    }

    /// Checks that no machine is left: no process, no socket, no use of the driver, the extension given back on every CPU; and that
    /// the kernel has not warned of anything since the last check.
    pub(crate) fn check_clean(&mut self) -> Checked {
        let outcome = self.sh(COMPLAINTS)?;
        let text = outcome.stdout_text();
        let complaints: Vec<&str> = text.lines().filter(|line| is_complaint(line)).collect();
        ensure!(outcome.status == 0, "the host's state cannot be told: {}", told(&outcome));
        ensure!(complaints.is_empty(), "the host is not as it was:\n{}", complaints.join("\n"));
        Ok(())
    }
}

/// Whether a line of [`COMPLAINTS`] is one: of the kernel's log only warnings and worse are.
fn is_complaint(line: &str) -> bool {
    /// `LOG_WARNING` of syslog(3); what is worse is less. The lowest three bits of a line's number are the severity.
    const WARNING: u32 = 4;
    let Some(message) = line.strip_prefix("kernel: <") else { return !line.trim().is_empty() };
    if HARMLESS.iter().any(|known| message.contains(known)) {
        return false;
    }
    let number: Option<u32> = message.split_once('>').and_then(|(number, _)| number.parse().ok());
    number.is_none_or(|number| number & 7 <= WARNING)
}

/// How the line begins by which `doctor` says that the engine of this kind of machine can run guests.
pub(crate) const fn doctors_words(kind: RigKind) -> &'static [&'static str] {
    match kind {
        RigKind::Qemu => &["ok", "svm", "AMD-V", "with", "nested", "paging", "is", "available"],
        RigKind::Bochs => {
            &["ok", "vmx", "Intel", "VT-x", "with", "EPT", "and", "unrestricted", "guest", "is", "available"]
        }
        RigKind::Plain => &["ok", "coop", "the", "cooperative", "world", "switch", "is", "available,"],
    }
}

thread_local! {
    static SHARED: RefCell<Vec<Host>> = const { RefCell::new(Vec::new()) };
}

/// Tries a scenario on the shared host of this kind, and checks afterwards that the host is as it was.
pub(crate) fn on_host(env: &Env, kind: RigKind, scenario: impl FnOnce(&mut Host) -> Checked) -> Result<Verdict> {
    SHARED.with_borrow_mut(|shared| {
        let found = shared.iter().position(|host| host.kind == kind).map(|place| shared.swap_remove(place));
        let tried = match found {
            Some(host) => {
                host.machine.go_on();
                Ok(host)
            }
            None => rig(env, kind).map_err(Into::into).and_then(|rig| Host::start(rig.count_instructions(true), kind)),
        }
        .and_then(|mut host| {
            scenario(&mut host)?;
            host.check_clean()?;
            host.machine.pause();
            Ok(host)
        });
        verdict(tried.map(|host| shared.push(host)))
    })
}

/// Tries a scenario on a host of its own, and checks afterwards that the host is as it was.
pub(crate) fn on_own_host(
    env: &Env,
    kind: RigKind,
    shape: impl FnOnce(Rig) -> Checked<Rig>,
    scenario: impl FnOnce(&mut Host) -> Checked,
) -> Result<Verdict> {
    let started = rig(env, kind).map_err(Into::into).and_then(shape).and_then(|rig| Host::start(rig, kind));
    let tried = started.and_then(|mut host| {
        scenario(&mut host)?;
        host.check_clean()
    });
    verdict(tried)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_warnings_are_complaints_and_its_other_messages_are_not() {
        assert!(is_complaint("kernel: <4>[    1.0] WARNING: CPU: 0 PID: 1 at x"));
        assert!(is_complaint("kernel: <12>[    1.0] a driver's warning"));
        assert!(is_complaint("kernel: no number"));
        assert!(!is_complaint("kernel: <6>[    1.0] covisor: loaded"));
        assert!(!is_complaint("kernel: <4>[    1.0] hrtimer: interrupt took 1000 ns"));
        assert!(!is_complaint("kernel: <4>[    9.6] TSC found unstable after boot, most likely due to broken BIOS."));
        assert!(is_complaint("process 7 still runs: covisor"));
        assert!(!is_complaint(""));
    }
}
