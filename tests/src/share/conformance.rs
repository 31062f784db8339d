//! Other people's tests of file systems, over a shared folder: fsx, which compares a file with what it should be after each
//! of many random changes, and pjdfstest, which tries what POSIX says of the system calls.

use covisor_guest_images::fs;
use xtask::rig::{Input, RigKind};
use xtask::run::shell_word;
use xtask::scenario::Verdict;
use xtask::tools::{self, FSX, PJDFSTEST, Tool};
use xtask::{Env, Result};

use crate::checked::{Checked, ensure, told};
use crate::host::{Host, MINI, on_host};

/// What fsx does and how often: all that it can, each with its own data after it. It closes the file seldom, since it never takes
/// back a mapping that it read by.
const FSX_CONFIGURATION: &str = r"
[opsize]
max = 65536
[weights]
close_open = 0.1
copy_file_range = 1
fdatasync = 1
fsync = 1
invalidate = 1
mapread = 2
mapwrite = 2
posix_fadvise = 0.2
posix_fallocate = 1
punch_hole = 1
read = 2
sendfile = 1
truncate = 1
write = 2
";

/// What the shared folder is to have beside POSIX, and whom pjdfstest can take as other users.
const PJDFSTEST_CONFIGURATION: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.02
[dummy_auth]
entries = [["nobody", "nobody"], ["tests", "tests"]]
"#;

/// Begins a guest's script: the folder with the program, the one to be tried, and users beside root.
const MOUNT: &str = "modprobe virtiofs && mkdir /tools /files && mount -t virtiofs tools /tools && mount -t virtiofs files /files || exit 20
for user in nobody:x:65534:65534 tests:x:1000:1000; do
    echo $user::/:/bin/sh >>/etc/passwd
    echo ${user%:*}: >>/etc/group
done\n";

/// Runs a tool in the guest and gives its standard output. What it may say of the file's place is `/files`.
fn in_a_guest(env: &Env, host: &mut Host, tool: Tool, configuration: &str, command: &str) -> Checked<(i32, String)> {
    let program = fs::read(tools::build(env, tool)?).map_err(xtask::Error::from)?;
    let script = format!(
        "mkdir -p /tmp/tools /tmp/files && cat >/tmp/tools/tool && chmod 755 /tmp/tools/tool || exit
        echo {} >/tmp/tools/configuration
        exec ./covisor {MINI} --mem 192 --share /tmp/tools,ro,tag=tools --share /tmp/files,suid,tag=files --exec {}",
        shell_word(configuration),
        shell_word(&format!("{MOUNT}{command}"))
    );
    let outcome = host.sh_with(&script, Input::Bytes(program))?;
    let has_run = outcome.stderr.is_empty() || outcome.status < 2;
    ensure!(has_run, "{}", told(&outcome));
    Ok((outcome.status, outcome.stdout_text() + &outcome.stderr_text()))
}

/// fsx with as many operations.
pub(super) fn fsx(env: &Env, kind: RigKind, operations: u32) -> Result<Verdict> {
    on_host(env, kind, |host| {
        let command =
            format!("cd /tmp && /tools/tool -f /tools/configuration -N {operations} -S 7 -P /tmp /files/file");
        let (status, text) = in_a_guest(env, host, FSX, FSX_CONFIGURATION, &command)?;
        ensure!(status == 0 && text.contains("All operations completed"), "fsx ended with status {status}:\n{text}");
        Ok(())
    })
}

/// pjdfstest's tests whose names contain one of these words, at least as many of which must hold.
pub(super) fn pjdfstest(env: &Env, kind: RigKind, words: &str, least: usize) -> Result<Verdict> {
    on_host(env, kind, |host| {
        let command = format!("cd /tmp && /tools/tool -c /tools/configuration -p /files -s /tmp {words}");
        let (_, text) = in_a_guest(env, host, PJDFSTEST, PJDFSTEST_CONFIGURATION, &command)?;
        let Told { held, failed } = Told::of(&text);
        ensure!(
            failed.is_empty() && held >= least && text.contains("Summary"),
            "{held} tests hold, and not:\n{}\n{}",
            failed.join("\n"),
            if held < least { &text } else { "" }
        );
        Ok(())
    })
}

/// What pjdfstest says.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    held: usize,
    /// The tests that do not hold and should, with their reasons.
    failed: Vec<String>,
}

impl Told {
    fn of(text: &str) -> Self {
        let mut told = Self { held: 0, failed: Vec::new() };
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            let mut words = line.split_whitespace();
            match (words.next(), words.next(), words.next()) {
                (Some(_), Some("ok"), None) => told.held += 1,
                (Some(name), Some("FAILED"), None) if !takes_a_device(name) => {
                    let reason = lines.peek().map_or("", |line| line.trim());
                    told.failed.push(format!("{name}: {reason}"));
                }
                _ => {}
            }
        }
        told
    }
}

/// Whether a test makes a device node, which a shared folder has none of.
fn takes_a_device(name: &str) -> bool {
    name.ends_with("::char") || name.ends_with("::block")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_is_counted_and_what_does_not_is_told() {
        let text = "open::a   ok\nopen::b::block   FAILED\n\tEPERM\nopen::c   FAILED\n\tit is 5\nopen::d skipped\n\twhy\n\nSummary: 1 failed";
        assert_eq!(Told::of(text), Told { held: 1, failed: vec!["open::c: it is 5".to_owned()] });
    }
}
