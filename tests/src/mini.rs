//! Linux with busybox: commands in it, its console and its power.

use xtask::rig::Input;
use xtask::run::shell_word;
use xtask::scenario::Scenario;

use crate::checked::{Checked, ensure, told};
use crate::host::{Host, MINI, on_host};

/// The scenarios about the small Linux guest.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario::new("mini/exec-gives-output-and-status", |env, kind| on_host(env, kind, exec_gives_output_and_status)),
    Scenario::new("mini/kernel-finds-no-fault", |env, kind| on_host(env, kind, kernel_finds_no_fault)),
    Scenario::new("mini/exec-is-binary-clean", |env, kind| on_host(env, kind, exec_is_binary_clean)),
    Scenario::new("mini/exec-gives-a-signal-as-status", |env, kind| on_host(env, kind, exec_gives_a_signal_as_status)),
    Scenario::new("mini/exec-tells-of-a-guest-that-leaves", |env, kind| {
        on_host(env, kind, exec_tells_of_a_guest_that_leaves)
    }),
    Scenario::new("mini/reboot-and-power-off-at-the-console", |env, kind| {
        on_host(env, kind, reboot_and_power_off_at_the_console)
    }),
    Scenario::new("mini/disk-keeps-what-is-written", |env, kind| on_host(env, kind, disk_keeps_what_is_written)),
    Scenario::new("mini/read-only-disk-stays", |env, kind| on_host(env, kind, read_only_disk_stays)),
    Scenario::new("mini/timeout-ends-it", |env, kind| on_host(env, kind, timeout_ends_it)),
];

/// The exit status of `--timeout`.
const TIMED_OUT: i32 = 124;
/// Lines that a kernel's log has at least.
const FEWEST_LINES: u32 = 100;
/// The exit status when the guest leaves.
const GUEST_LEFT: i32 = 3;

/// A run of the small guest with a command.
fn exec(command: &str) -> String {
    format!("{MINI} --exec {}", shell_word(command))
}

fn exec_gives_output_and_status(host: &mut Host) -> Checked {
    let outcome = host.covisor(&exec(r#"printf 'one\n\ttwo "three"'; echo err >&2; exit 3"#))?;
    ensure!(outcome.status == 3 && outcome.stdout == b"one\n\ttwo \"three\"", "{}", told(&outcome));
    // Beside the command's own there is only the line about the engine.
    let stderr = outcome.stderr_text();
    let lines: Vec<&str> = stderr.lines().collect();
    let told_of = format!("covisor: engine {}: ", host.engine());
    ensure!(
        matches!(lines[..], [engine, "err"] if engine.starts_with(&told_of)),
        "standard error is not the engine's line and the command's: {}",
        told(&outcome)
    );
    let outcome = host.covisor(&exec("cat /proc/sys/kernel/hostname"))?;
    ensure!(outcome.status == 0 && outcome.stdout == b"mini\n", "{}", told(&outcome));
    Ok(())
}

/// The guest's kernel checks what it finds of its CPU and platform against each other, and says when something does not fit.
fn kernel_finds_no_fault(host: &mut Host) -> Checked {
    let outcome = host.covisor(&exec(
        "dmesg | grep -E 'WARNING: CPU|consistency|Call Trace|BUG:|Firmware (Bug|Warn)'; dmesg | wc -l",
    ))?;
    let text = outcome.stdout_text();
    let lines: Vec<&str> = text.lines().collect();
    let is_whole = |count: &str| count.trim().parse().is_ok_and(|count: u32| count > FEWEST_LINES);
    ensure!(outcome.status == 0 && matches!(lines[..], [count] if is_whole(count)), "{}", told(&outcome));
    Ok(())
}

fn exec_is_binary_clean(host: &mut Host) -> Checked {
    // All byte values, in an order without a period that a buffer could hide.
    // Bochs' serial line takes 87 us for a byte.
    let size = if host.engine() == "vmx" { 32_768 } else { 1_048_576_u32 };
    let data: Vec<u8> = (0..size).map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let script = format!("exec ./covisor {}", exec("tee /tmp/copy && sha256sum </tmp/copy >&2"));
    let outcome = host.sh_with(&script, Input::Bytes(data.clone()))?;
    ensure!(
        outcome.status == 0 && outcome.stdout == data,
        "{} of {} bytes came back; status {}, standard error:\n{}",
        outcome.stdout.len(),
        data.len(),
        outcome.status,
        outcome.stderr_text()
    );
    let inside = outcome.stderr_text().lines().last().unwrap_or_default().to_owned();
    let outside = host.sh_with("sha256sum", Input::Bytes(data))?.stdout_text();
    ensure!(inside == outside.trim_end(), "the guest's sum is {inside}, the host's {outside}");
    Ok(())
}

fn exec_gives_a_signal_as_status(host: &mut Host) -> Checked {
    let outcome = host.covisor(&exec("kill -9 $$"))?;
    ensure!(outcome.status == 128 + 9, "{}", told(&outcome));
    Ok(())
}

fn exec_tells_of_a_guest_that_leaves(host: &mut Host) -> Checked {
    for (command, how) in [("poweroff -f", "powered off"), ("reboot -f", "reset")] {
        let outcome = host.covisor(&exec(&format!("{command}; sleep 100")))?;
        let told_so = outcome.stderr_text().contains(&format!("covisor: error: the guest {how} before"));
        ensure!(outcome.status == GUEST_LEFT && told_so, "after `{command}`: {}", told(&outcome));
    }
    Ok(())
}

fn reboot_and_power_off_at_the_console(host: &mut Host) -> Checked {
    // A shell is on the console.
    let script = format!(
        r#"
        cd /tmp && rm -f keys && mkfifo keys
        wait_for_prompts() {{
            for i in $(seq 600); do
                [ "$(grep -o '[~/] # ' out | wc -l)" -ge "$1" ] && return
                sleep 0.1
            done
            echo "no prompt number $1" >&2
        }}
        : >out
        (cd /covisor && exec ./covisor {MINI}) <keys >out &
        exec 3>keys
        wait_for_prompts 1
        echo 'echo $((6 * 7)) >/tmp/left; reboot -f' >&3
        wait_for_prompts 2
        echo 'cat /tmp/left || poweroff -f' >&3
        wait $!
        status=$?
        cat out
        exit $status
        "#
    );
    let outcome = host.sh(&script)?;
    ensure!(outcome.status == 0, "{}", told(&outcome));
    ensure!(outcome.stderr_text().contains("covisor: the guest resets: it starts again"), "{}", told(&outcome));
    ensure!(
        outcome.stdout_text().contains("can't open '/tmp/left'"),
        "the guest's memory outlived its reset: {}",
        told(&outcome)
    );
    Ok(())
}

fn disk_keeps_what_is_written(host: &mut Host) -> Checked {
    let write = "dd if=/dev/urandom of=/tmp/data bs=64k count=64 2>/dev/null; \
                 dd if=/tmp/data of=/dev/vda bs=64k conv=fsync 2>/dev/null; sha256sum </tmp/data";
    let outcome =
        host.sh(&format!("truncate -s 8M /tmp/disk && ./covisor {} --disk /tmp/disk </dev/null", exec(write)))?;
    ensure!(outcome.status == 0, "{}", told(&outcome));
    let on_host = host.output("head -c 4194304 /tmp/disk | sha256sum")?;
    let read = "sha256sum </dev/vda; blockdev --getsize64 /dev/vda";
    let again = host.sh(&format!("./covisor {} --disk /tmp/disk </dev/null", exec(read)))?;
    let whole = host.output("sha256sum </tmp/disk; rm /tmp/disk")?;
    ensure!(on_host == outcome.stdout_text(), "the guest wrote {}, the host reads {on_host}", told(&outcome));
    ensure!(
        again.stdout_text() == format!("{whole}8388608\n"),
        "the host reads {whole}, the next guest: {}",
        told(&again)
    );
    Ok(())
}

fn read_only_disk_stays(host: &mut Host) -> Checked {
    host.output("yes data | head -c 1048576 >/tmp/disk")?;
    let command = "cat /sys/block/vda/ro; echo x >/dev/vda && echo written; head -c 5 /dev/vda";
    let outcome = host.sh(&format!("./covisor {} --disk /tmp/disk,ro </dev/null", exec(command)))?;
    let kept = host.output("yes data | head -c 1048576 | cmp - /tmp/disk; echo $?; rm /tmp/disk")?;
    ensure!(outcome.stdout == b"1\ndata\n", "{}", told(&outcome));
    ensure!(kept == "0\n", "the read-only disk changed: {kept}");
    Ok(())
}

fn timeout_ends_it(host: &mut Host) -> Checked {
    let outcome = host.covisor(&format!("{} --timeout 4", exec("echo begun; sleep 1000")))?;
    let told_so = outcome.stderr_text().contains("covisor: error: the time of --timeout is over (4 s)");
    ensure!(outcome.status == TIMED_OUT && outcome.stdout == b"begun\n" && told_so, "{}", told(&outcome));
    Ok(())
}
