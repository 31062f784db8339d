//! What a machine is at that does not come to an end.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use super::emulator::Log;

/// What is typed at QEMU's console to ask it and its host. After Ctrl-A, `c` leads to QEMU's monitor and back, and `b` is a break,
/// behind which the host's kernel takes a key of its own (sysrq): `9` has it show all that it says, `l` what its CPUs are at, `t` its
/// tasks.
///
/// First what changes nothing: a break is an interrupt, and may wake up a host that waits for one that was lost.
const QUESTIONS: [&str; 9] =
    ["\x01c", "info registers -a\ninfo lapic\n", "\x01c", "\x01b", "9", "\x01b", "l", "\x01b", "t"];

/// How long the host may take for a break, before the key.
const BETWEEN: Duration = Duration::from_millis(300);

/// The answers are over when nothing came for so long.
const SILENCE: Duration = Duration::from_secs(3);

/// How long the answers may take, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Registers that tell nothing of a hang.
const DULL_REGISTERS: [&str; 4] = ["FCW", "FPR", "XMM", "YMM"];

/// The process that is the parent of all of the kernel's own tasks.
const KTHREADD: &str = "2";

/// Asks QEMU and its host what they are at.
pub(super) fn ask(mut keys: &UnixStream, console: &Log) -> io::Result<String> {
    let before = console.text().len();
    for question in QUESTIONS {
        keys.write_all(question.as_bytes())?;
        thread::sleep(BETWEEN);
    }
    let end = Instant::now() + PATIENCE;
    let mut length = console.text().len();
    loop {
        thread::sleep(SILENCE);
        let now = console.text().len();
        if now == length || Instant::now() > end {
            return Ok(interesting(console.text().get(before..).unwrap_or_default()));
        }
        length = now;
    }
}

/// The answers without the keys' echo, with its cursor's moves, without what no hang shows in, the kernel's own tasks and its
/// scheduler's figures.
fn interesting(answers: &str) -> String {
    let mut shown = true;
    let mut lines = Vec::new();
    for line in answers.lines() {
        let line = line.trim_end();
        let text = line.strip_prefix('[').and_then(|line| Some(line.split_once("] ")?.1)).unwrap_or(line);
        if text.starts_with("Sched Debug Version") {
            break;
        }
        if text.starts_with("task:") {
            shown = ["pid:", "ppid:"].iter().all(|name| field(text, name) != Some(KTHREADD));
        }
        // A question mark is before what may only be left on a stack.
        let is_dull = line.contains('\x1b')
            || text.trim_start().starts_with("? ")
            || DULL_REGISTERS.iter().any(|name| line.starts_with(name));
        if shown && !is_dull && !line.is_empty() {
            lines.push(line);
        }
    }
    lines.join("\n")
}

/// What follows a name in a task's line.
fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let mut words = line.split_whitespace();
    let word = words.find_map(|word| word.strip_prefix(name))?;
    // Numbers are padded.
    if word.is_empty() { words.next() } else { Some(word) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_own_tasks_are_left_out() {
        let answers = "(qemu) i\x1b[K\x1b[Din\nIRR\t 236\nXMM00=0 XMM01=0\n\
            [   16.5] task:kthreadd        state:S stack:0     pid:2     ppid:0      flags:0x00000002\n[   16.5]  kthreadd+0x1\n\
            [   16.5] task:covisor         state:S stack:0     pid:108   ppid:100    flags:0x00000002\n[   16.5]  ? old+0x1\n[   16.5]  futex_wait+0x1\n\
            [   16.5] task:kswapd0         state:S stack:0     pid: 37   ppid:     2 flags:0x00000002\n[   16.5]  kswapd+0x1\n\
            [   16.5] task:vcpu-0          state:S stack:0     pid:  109 ppid:   100 flags:0x00000002\n[   16.5]  schedule+0x1\n\
            [   16.5] Sched Debug Version: v0.11\n[   16.5] ktime : 1\n";
        let shown = interesting(answers);
        assert!(
            shown.starts_with("IRR\t 236\n") && shown.contains("futex_wait") && shown.contains("vcpu-0"),
            "{shown}"
        );
        assert!(!shown.contains("kthreadd") && !shown.contains("kswapd") && !shown.contains("ktime"), "{shown}");
        assert!(!shown.contains("old"), "{shown}");
        assert_eq!(shown.lines().count(), 5, "{shown}");
    }
}
