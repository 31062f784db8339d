//! What the user gets wrong: one clear line, a failure's status, and nothing left behind.

use xtask::rig::CPU_PLAIN;
use xtask::scenario::Scenario;

use crate::checked::{Checked, ensure, told};
use crate::host::{Host, MINI, on_host, on_own_host};

/// The exit status of wrong usage or configuration.
const USAGE: i32 = 1;
/// The exit status when the driver or the engine is missing or refuses.
const DRIVER: i32 = 2;

/// One scenario for each mistake: its name, a script that makes the wrong files, covisor's arguments, its exit status, and
/// a word of the message that names what is wrong.
macro_rules! mistakes {
    ($($name:literal: $prepare:expr, $arguments:expr, $status:expr, $word:expr;)+) => {
        /// The scenarios about bad input.
        pub(crate) const SCENARIOS: &[Scenario] = &[
            $(Scenario::new(concat!("bad-input/", $name), |env, kind| on_host(env, kind, |host| mistake(host, $prepare, $arguments, $status, $word))),)+
            Scenario::new("bad-input/driver-not-loaded", |env, kind| on_host(env, kind, driver_not_loaded)),
            Scenario::new("bad-input/device-of-something-else", |env, kind| on_host(env, kind, device_of_something_else)),
            Scenario::new("bad-input/cpu-without-amd-v", |env, kind| on_own_host(env, kind, |rig| Ok(rig.cpu(CPU_PLAIN)), cpu_without_amd_v)),
        ];
    };
}

mistakes! {
    "kernel-cut-in-its-header": "head -c 512 vmlinuz >/tmp/bad", "run --kernel /tmp/bad", USAGE, "/tmp/bad";
    "kernel-cut-in-its-setup": "head -c 9000 vmlinuz >/tmp/bad", "run --kernel /tmp/bad", USAGE, "/tmp/bad";
    "kernel-cut-in-the-middle": "head -c 3145728 vmlinuz >/tmp/bad", "run --kernel /tmp/bad", USAGE, "/tmp/bad";
    "kernel-cut-near-its-end":
        "head -c $(($(stat -c %s vmlinuz) - 65536)) vmlinuz >/tmp/bad", "run --kernel /tmp/bad", USAGE, "/tmp/bad";
    "elf-kernel-cut-short": "head -c 9000 probe >/tmp/bad", "run --kernel /tmp/bad", USAGE, "/tmp/bad";
    "random-kernel": "head -c 8388608 /dev/urandom >/tmp/bad", "run --kernel /tmp/bad", USAGE, "/tmp/bad";
    "empty-kernel": ": >/tmp/bad", "run --kernel /tmp/bad", USAGE, "/tmp/bad";
    "kernel-is-a-folder": "", "run --kernel /tmp", USAGE, "folder";
    "missing-kernel": "", "run --kernel /no/kernel", USAGE, "/no/kernel";
    "no-kernel-named": "", "run", USAGE, "--kernel";
    "initrd-larger-than-memory":
        "truncate -s 256M /tmp/bad", "run --kernel vmlinuz --initrd /tmp/bad --mem 128", USAGE, "initial RAM disk";
    "empty-initrd": ": >/tmp/bad", "run --kernel vmlinuz --initrd /tmp/bad", USAGE, "/tmp/bad";
    "missing-initrd": "", "run --kernel vmlinuz --initrd /no/initrd", USAGE, "/no/initrd";
    "missing-disk": "", "run --kernel vmlinuz --disk /no/disk", USAGE, "/no/disk";
    "disk-not-of-whole-sectors":
        "truncate -s 1000 /tmp/bad", "run --kernel vmlinuz --disk /tmp/bad", USAGE, "512";
    "empty-disk": ": >/tmp/bad", "run --kernel vmlinuz --disk /tmp/bad", USAGE, "/tmp/bad";
    "disk-is-a-folder": "", "run --kernel vmlinuz --disk /tmp", USAGE, "/tmp";
    "disk-is-no-block-device": "", "run --kernel vmlinuz --disk /dev/null", USAGE, "/dev/null";
    "no-memory": "", "run --kernel vmlinuz --mem 0", USAGE, "--mem";
    "memory-for-no-kernel": "", "run --kernel vmlinuz --mem 4", USAGE, "--mem";
    "more-memory-than-the-host-has": "", "run --kernel vmlinuz --mem 100G", USAGE, "--mem";
    "more-memory-than-there-can-be": "", "run --kernel vmlinuz --mem 99999999T", USAGE, "--mem";
    "memory-in-words": "", "run --kernel vmlinuz --mem lots", USAGE, "--mem";
    "no-cpus": "", "run --kernel vmlinuz --cpus 0", USAGE, "--cpus";
    "too-many-cpus": "", "run --kernel vmlinuz --cpus 65", USAGE, "--cpus";
    "unknown-option": "", "run --nonsense", USAGE, "--nonsense";
    "unknown-command": "", "dance", USAGE, "dance";
    "unknown-engine": "", "run --engine magic", USAGE, "magic";
    "engine-of-another-cpu": "", "run --kernel vmlinuz --engine vmx", DRIVER, "vmx";
    "name-with-a-slash": "", "run --kernel vmlinuz --name ../up", USAGE, "name";
    "too-long-a-command-line":
        "", "run --kernel vmlinuz --append \"$(head -c 70000 /dev/zero | tr '\\0' x)\"", USAGE, "command line";
    "stop-of-no-machine": "", "stop nobody", USAGE, "nobody";
    "driver-that-is-no-module": "echo x >/tmp/bad; ./covisor driver remove 2>/dev/null",
        "driver install --module /tmp/bad", DRIVER, "not a kernel module";
    "driver-twice": "", "driver install --module covisor.ko", DRIVER, "already";
}

fn mistake(host: &mut Host, prepare: &str, arguments: &str, status: i32, word: &str) -> Checked {
    host.output(&format!("{prepare}\ntrue"))?;
    // What is taken for good runs, and nobody else would end it.
    let limit = if arguments.starts_with("run") { "--timeout 9" } else { "" };
    let outcome = host.covisor(&format!("{arguments} {limit}"))?;
    host.output("rm -f /tmp/bad; grep -q ^covisor /proc/modules || ./covisor driver install --module covisor.ko")?;
    let stderr = outcome.stderr_text();
    let lines: Vec<&str> = stderr.lines().collect();
    ensure!(outcome.status == status, "the status should be {status}: {}", told(&outcome));
    ensure!(outcome.stdout.is_empty(), "standard output should be empty: {}", told(&outcome));
    ensure!(
        matches!(lines[..], [line] if line.starts_with("covisor: error: ") && line.contains(word) && is_readable(line)),
        "there should be one line that begins with `covisor: error: ` and names {word}: {}",
        told(&outcome)
    );
    Ok(())
}

/// Whether a message is for people: not Rust's debug output, no bare error number.
fn is_readable(line: &str) -> bool {
    !line.contains("os error") && !line.contains("Error {") && !line.contains("Error(") && line.len() < 400
}

fn driver_not_loaded(host: &mut Host) -> Checked {
    mistake(host, "./covisor driver remove", "run --kernel vmlinuz", DRIVER, "sudo covisor driver install")
}

fn device_of_something_else(host: &mut Host) -> Checked {
    let replace = "mv /dev/covisor /dev/covisor.away && mknod /dev/covisor c 1 3";
    let checked = mistake(host, replace, "run --kernel vmlinuz", DRIVER, "not covisor's driver");
    host.output("mv /dev/covisor.away /dev/covisor")?;
    checked
}

fn cpu_without_amd_v(host: &mut Host) -> Checked {
    mistake(host, "", MINI, DRIVER, "AMD-V")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_is_not_for_people() {
        assert!(is_readable("covisor: error: disk x: there is no such file"));
        assert!(!is_readable("covisor: error: No such file or directory (os error 2)"));
        assert!(!is_readable("covisor: error: KernelError(BadMagic)"));
    }
}
