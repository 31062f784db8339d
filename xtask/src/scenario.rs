//! End-to-end tests: the list of scenarios, running them, and what they amount to.

use std::io::Write;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::thread::available_parallelism;
use std::time::Instant;

use crate::env::Env;
use crate::rig::RigKind;

/// How a scenario ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// As it should.
    Pass,
    /// Not as it should: what was seen and what was expected.
    Fail(String),
    /// It cannot be tried here: why.
    Skip(String),
}

impl Verdict {
    /// Passes when `holds`, and fails with what was seen otherwise.
    #[must_use]
    pub fn check(holds: bool, seen: impl FnOnce() -> String) -> Self {
        if holds { Self::Pass } else { Self::Fail(seen()) }
    }
}

/// An error ends a scenario as a failure.
impl<E: std::error::Error> From<Result<Verdict, E>> for Verdict {
    fn from(result: Result<Verdict, E>) -> Self {
        result.unwrap_or_else(|error| Self::Fail(error.to_string()))
    }
}

/// One end-to-end test.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// Its name, as `area/what-holds`.
    pub name: &'static str,
    /// Tries it on an emulated machine of this kind.
    pub run: fn(&Env, RigKind) -> crate::Result<Verdict>,
    /// The kind.
    pub on: RigKind,
    /// It takes too long for every run: it is tried only where the filter asks for it.
    pub on_demand: bool,
}

impl Scenario {
    /// A scenario, on QEMU's machine as long as nothing else is said.
    #[must_use]
    pub const fn new(name: &'static str, run: fn(&Env, RigKind) -> crate::Result<Verdict>) -> Self {
        Self { name, run, on: RigKind::Qemu, on_demand: false }
    }

    /// The same on another machine.
    #[must_use]
    pub const fn on(self, kind: RigKind) -> Self {
        Self { on: kind, ..self }
    }

    /// The same, tried only where the filter asks for it.
    #[must_use]
    pub const fn on_demand(self) -> Self {
        Self { on_demand: true, ..self }
    }

    /// Whether it is tried with this filter: a part of its name; all but those on demand where it is empty.
    fn is_chosen(&self, filter: &str) -> bool {
        self.full_name().contains(filter) && !(filter.is_empty() && self.on_demand)
    }

    /// Its name in lists and for filters: on another machine than QEMU's with AMD-V it begins with the engine's, `vmx/` or
    /// `coop/`.
    #[must_use]
    pub fn full_name(&self) -> String {
        match self.on {
            RigKind::Qemu => self.name.to_owned(),
            RigKind::Bochs | RigKind::Plain => format!("{}/{}", self.on.engine(), self.name),
        }
    }
}

/// How many tests ended in which way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// As they should.
    pub passed: u64,
    /// Not as they should.
    pub failed: u64,
    /// Not tried.
    pub skipped: u64,
}

impl Tally {
    /// Counts one more.
    pub fn count(&mut self, verdict: &Verdict) {
        match verdict {
            Verdict::Pass => self.passed += 1,
            Verdict::Fail(_) => self.failed += 1,
            Verdict::Skip(_) => self.skipped += 1,
        }
    }

    /// Adds another's counts.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    /// Reads a line as [`Tally`] is displayed.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let mut tally = Self::default();
        let mut parts = line.trim().split(", ");
        for (count, word) in
            [(&mut tally.passed, "passed"), (&mut tally.failed, "failed"), (&mut tally.skipped, "skipped")]
        {
            *count = parts.next()?.strip_suffix(word)?.trim_end().parse().ok()?;
        }
        parts.next().is_none().then_some(tally)
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Runs those of `scenarios` whose names contain `filter`, or the one alone whose whole name it is, as many at the same time as there are CPUs; tells each one's
/// verdict on standard output when it is there, and returns the tally. A scenario that panics has failed.
///
/// What a scenario keeps for the next one in a thread-local variable, it keeps once for each of these threads.
pub fn run_all(env: &Env, scenarios: &[Scenario], filter: &str) -> Tally {
    let mut chosen: Vec<&Scenario> = scenarios.iter().filter(|scenario| scenario.is_chosen(filter)).collect();
    if chosen.iter().any(|scenario| scenario.full_name() == filter) {
        chosen.retain(|scenario| scenario.full_name() == filter);
    }
    let next = AtomicUsize::new(0);
    let tally = Mutex::new(Tally::default());
    let work = || {
        while let Some(scenario) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
            let start = Instant::now();
            let verdict = match catch_unwind(AssertUnwindSafe(|| (scenario.run)(env, scenario.on))) {
                Ok(result) => Verdict::from(result),
                Err(_) => Verdict::Fail("it panicked; the message is above".to_owned()),
            };
            tell(&scenario.full_name(), start.elapsed().as_secs(), &verdict);
            tally.lock().unwrap_or_else(PoisonError::into_inner).count(&verdict);
        }
    };
    let threads = available_parallelism().map_or(1, NonZero::get).min(chosen.len());
    thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    tally.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Prints a verdict, in one piece.
fn tell(name: &str, seconds: u64, verdict: &Verdict) {
    let mut out = std::io::stdout().lock();
    // Who does not read the verdicts still gets the exit status.
    let _ = match verdict {
        Verdict::Pass => writeln!(out, "pass  {name} ({seconds} s)"),
        Verdict::Skip(why) => writeln!(out, "skip  {name}: {why}"),
        Verdict::Fail(why) => writeln!(out, "FAIL  {name} ({seconds} s)\n{}", indented(why)),
    };
    let _ = out.flush();
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("      {line}")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenarios_on_demand_are_tried_by_name_only() {
        const NOTHING: Scenario = Scenario::new("area/holds", |_, _| Ok(Verdict::Pass));
        assert!(NOTHING.is_chosen("") && NOTHING.is_chosen("holds") && !NOTHING.is_chosen("vmx/"));
        let demanded = NOTHING.on(RigKind::Bochs).on_demand();
        assert!(!demanded.is_chosen("") && demanded.is_chosen("vmx/area") && demanded.is_chosen("holds"));
    }

    #[test]
    fn a_tally_is_read_as_it_is_written() {
        let tally = Tally { passed: 12, failed: 1, skipped: 3 };
        assert_eq!(tally.to_string(), "12 passed, 1 failed, 3 skipped");
        assert_eq!(Tally::parse(&tally.to_string()), Some(tally));
        assert_eq!(Tally::parse("12 passed"), None);
        assert_eq!(Tally::parse("1 passed, 2 failed, 3 skipped, 4 lost"), None);
    }
}
