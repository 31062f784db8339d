//! What the user gets wrong: one clear line, a failure's status, and nothing left behind.

use xtask::rig::CPU_PLAIN;
use xtask::scenario::Scenario;

use crate::checked::{Checked, ensure, told};
use crate::host::{Host, MINI, PROBE, on_host, on_own_host};

/// The exit status of wrong usage or configuration.
const USAGE: i32 = 1;
/// The exit status when the driver or the engine is missing or refuses.
const DRIVER: i32 = 2;

/// One scenario for each mistake: its name, a script that makes the wrong files, covisor's arguments, its exit status, and
/// a word of the message that names what is wrong.
macro_rules! mistakes {
    ($(#[$attribute:meta])* $list:ident = [$($more:expr,)*] and
        $($name:literal: $prepare:expr, $arguments:expr, $status:expr, $word:expr;)+) => {
        $(#[$attribute])*
        pub(crate) const $list: &[Scenario] = &[
            $(Scenario::new(concat!("bad-input/", $name), |env, kind| on_host(env, kind, |host| mistake(host, $prepare, $arguments, $status, $word))),)+
            $($more,)*
        ];
    };
}

mistakes! {
    /// The scenarios about input that is bad for engine `coop`.
    WITH_COOP = [
        Scenario::new("bad-input/more-memory-than-coop-gives", |env, kind| {
            on_own_host(env, kind, |rig| Ok(rig.memory_mib(4096)), more_memory_than_coop_gives)
        }),
    ] and
    // The file has no Xen note any more.
    "kernel-without-xen-pv": "sed 's/Xen/Nex/g' probe >/tmp/bad",
        "run --engine coop --kernel /tmp/bad", USAGE, "Debian's package linux-image-cloud-amd64";
    "cpus-with-coop": "", "run --engine coop --kernel vmlinuz --cpus 2", USAGE, "--cpus";
}

mistakes! {
    /// The scenarios about bad input.
    SCENARIOS = [
        Scenario::new("bad-input/driver-not-loaded", |env, kind| on_host(env, kind, driver_not_loaded)),
        Scenario::new("bad-input/device-of-something-else", |env, kind| on_host(env, kind, device_of_something_else)),
        Scenario::new("bad-input/disk-where-nothing-can-be-written", |env, kind| {
            on_host(env, kind, disk_where_nothing_can_be_written)
        }),
        Scenario::new("bad-input/guests-in-each-others-way", |env, kind| on_host(env, kind, guests_in_each_others_way)),
        Scenario::new("bad-input/cpu-without-amd-v", |env, kind| {
            on_own_host(env, kind, |rig| Ok(rig.cpu(CPU_PLAIN)), cpu_without_amd_v)
        }),
    ] and
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
    "config-that-is-no-toml":
        "printf 'mem = 64\nmem = \n' >/tmp/bad", "run --config /tmp/bad", USAGE, "/tmp/bad, line 2, column ";
    "config-with-an-unknown-key": "echo 'mme = 64' >/tmp/bad", "run --config /tmp/bad", USAGE, "the nearest is `mem`";
    "missing-config": "", "run --config /no/config", USAGE, "/no/config";
    "options-file-with-an-open-quote": "echo \"--kernel 'vmlinuz\" >/tmp/bad", "run @/tmp/bad", USAGE, "/tmp/bad";
    "missing-options-file": "", "run @/no/options", USAGE, "/no/options";
    "missing-disk-of-colinux": "", "run kernel=vmlinuz cobd0=/no/disk", USAGE, "/no/disk";
    "guest-of-a-missing-image": "", "create new --from /no/image --kernel vmlinuz", USAGE, "/no/image";
    "start-of-no-guest": "", "start nobody", USAGE, "`covisor create nobody` makes one";
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

/// A disk on a file system that is only read.
fn disk_where_nothing_can_be_written(host: &mut Host) -> Checked {
    host.output(
        "mkdir /tmp/full && mount -t tmpfs none /tmp/full && truncate -s 1M /tmp/full/disk && mount -o remount,ro /tmp/full",
    )?;
    let checked =
        mistake(host, "", "run --kernel vmlinuz --disk /tmp/full/disk", USAGE, "add `,ro` to use it read-only");
    host.output("umount /tmp/full")?;
    checked
}

/// A name that is taken, and two who start the same guest at once: one of them does, and the other is told why not.
fn guests_in_each_others_way(host: &mut Host) -> Checked {
    let outcome = host.sh(&format!(
        "./covisor create web {arguments} --append test=idle || exit
        ./covisor create web {arguments} 2>/tmp/taken; echo \"create $?\"
        (./covisor start web 2>/tmp/one; echo $? >>/tmp/statuses) & (./covisor start web 2>/tmp/two; echo $? >>/tmp/statuses) & wait
        sort /tmp/statuses; ./covisor list | grep -c '^web  *running'
        ./covisor stop web --force; ./covisor remove web; echo \"remove $?\"
        cat /tmp/taken /tmp/one /tmp/two >&2",
        arguments = &PROBE["run ".len()..]
    ))?;
    let (text, errors) = (outcome.stdout_text(), outcome.stderr_text());
    let lines: Vec<&str> = errors.lines().collect();
    ensure!(
        text == "create 1\n0\n1\n1\nremove 0\n"
            && matches!(lines[..], [taken, busy]
                if taken.starts_with("covisor: error: there is a guest web already")
                    && busy.starts_with("covisor: error: guest web runs, or is being started")),
        "{}",
        told(&outcome)
    );
    Ok(())
}

fn more_memory_than_coop_gives(host: &mut Host) -> Checked {
    mistake(host, "", "run --engine coop --kernel vmlinuz --mem 3100", USAGE, "at most 3072 MiB")
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
