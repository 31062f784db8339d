//! Processes: forks with memory that is copied when it is written to, and programs that are started by vfork.

use std::env;
use std::io;
use std::process::Command;

use crate::error::Failure;
use crate::error::Result;
use crate::error::done;
use crate::error::ensure;
use crate::mmap::Mapping;
use crate::mmap::PAGE;
use crate::mmap::WORDS;
use crate::random::pattern;

/// Children at a time.
const AT_A_TIME: u32 = 12;
/// Pages of the memory that each child has a copy of.
const PAGES: usize = 64;

/// A child.
#[derive(Debug)]
pub(crate) struct Child(libc::pid_t);

/// Forks. The child does its work and ends, with status 0 if that succeeds.
pub(crate) fn fork(work: impl FnOnce() -> Result<()>) -> Result<Child> {
    // SAFETY: this program has one thread, so the child may do whatever the parent may.
    match done("fork", unsafe { libc::fork() })? {
        0 => {
            let status = match work() {
                Ok(()) => 0,
                Err(failure) => {
                    println!("in a child: {failure}");
                    1
                }
            };
            // SAFETY: the child ends, without what the parent has to do at its own end.
            unsafe { libc::_exit(status) }
        }
        pid => Ok(Child(pid)),
    }
}

impl Child {
    /// Its process.
    pub(crate) const fn pid(&self) -> libc::pid_t {
        self.0
    }

    /// Waits for its next change of state, and gives that.
    pub(crate) fn wait(&self) -> Result<libc::c_int> {
        let mut status = 0;
        loop {
            // SAFETY: the pointer is to a live number.
            match done("waitpid", unsafe { libc::waitpid(self.0, &raw mut status, 0) }) {
                Ok(_) => return Ok(status),
                Err(Failure::Refused { source, .. }) if source.kind() == io::ErrorKind::Interrupted => {}
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Waits for its end, which has to be a success.
    pub(crate) fn succeeds(&self) -> Result<()> {
        let status = self.wait()?;
        ensure!(status == 0, "a child ended with status {status:#x}");
        Ok(())
    }
}

/// Forks so many children, each of which has a child itself. All of them have copies of one memory and share another.
pub(crate) fn forks(count: u32) -> Result<String> {
    let mut copied = Mapping::private(PAGES * PAGE)?;
    let mut shared = Mapping::shared(PAGE * (count as usize).div_ceil(WORDS))?;
    for (index, word) in (0..).zip(copied.words()) {
        *word = pattern(0, index);
    }
    let mut running = std::collections::VecDeque::new();
    for number in 0..count {
        let child = fork(|| {
            change(copied.words(), number, 0)?;
            // The grandchild's memory is a copy of what is a copy in part.
            fork(|| change(copied.words(), number + count, number))?.succeeds()?;
            check(copied.words(), number)?;
            shared.words()[number as usize] = pattern(1, number.into());
            Ok(())
        })?;
        running.push_back(child);
        if running.len() == AT_A_TIME as usize
            && let Some(child) = running.pop_front()
        {
            child.succeeds()?;
        }
        // What the parent writes meanwhile, no child sees.
        let at = number as usize % PAGES * WORDS + 1;
        copied.words()[at] = pattern(0, at as u64);
    }
    running.iter().try_for_each(Child::succeeds)?;
    check(copied.words(), 0)?;
    let right = (0..).zip(shared.words()).take(count as usize).all(|(index, word)| *word == pattern(1, index));
    ensure!(right, "not all children wrote to what they share");
    Ok(format!("forks: {} processes", count * 2))
}

/// Checks that the words are `before`'s, and writes those of `number`, on every other page.
fn change(words: &mut [u64], number: u32, before: u32) -> Result<()> {
    check(words, before)?;
    for at in (0..words.len()).step_by(2 * WORDS) {
        words[at] = pattern(number.into(), at as u64);
    }
    check(words, number)
}

/// Checks that every other page begins with a word of `number`'s, and that all else is as it was at first.
fn check(words: &[u64], number: u32) -> Result<()> {
    for (at, word) in words.iter().enumerate() {
        let round = if at % (2 * WORDS) == 0 { number } else { 0 };
        let right = pattern(round.into(), at as u64);
        ensure!(*word == right, "in process {number} word {at} is {word:#x} and should be {right:#x}");
    }
    Ok(())
}

/// Runs this program so many times, and checks what it prints. The standard library starts programs as by vfork.
pub(crate) fn executions(count: u32) -> Result<String> {
    let program = env::current_exe().map_err(Failure::refused("finding this program"))?;
    for number in 0..count {
        let word = format!("{:x}", pattern(2, number.into()));
        let output = Command::new(&program).args(["echo", &word]).output();
        let output = output.map_err(Failure::refused("starting a program"))?;
        let right = output.status.success() && output.stdout == format!("{word}\n").as_bytes();
        ensure!(right, "program {number} was to print {word}: {output:?}");
    }
    Ok(format!("executions: {count} programs"))
}
