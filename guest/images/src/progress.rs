//! Progress on standard error: a spinner on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// A plain line says how long a step took when it took at least this.
const WORTH_TELLING: Duration = Duration::from_secs(2);

/// Where progress is shown.
#[derive(Debug, Clone, Copy, Default)]
pub struct Progress {
    terminal: bool,
}

impl Progress {
    /// Progress on standard error.
    #[must_use]
    pub fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal() }
    }

    /// Begins a step and says what it is: "building the loader".
    #[must_use]
    pub fn step(self, what: impl Into<String>) -> Step {
        let what = what.into();
        let bar = self.terminal.then(|| {
            let style = ProgressStyle::with_template("{spinner} {prefix} {elapsed:.dim} {wide_msg:.dim}");
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = style {
                bar.set_style(style);
            }
            bar.set_prefix(what.clone());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        if bar.is_none() {
            eprintln!("covisor: {what}");
        }
        Step { bar, what, start: Instant::now() }
    }

    /// Says one line.
    pub fn say(self, line: &str) {
        eprintln!("covisor: {line}");
    }
}

/// One step under way. When it is dropped without [`Step::done`], the step failed.
#[derive(Debug)]
pub struct Step {
    bar: Option<ProgressBar>,
    what: String,
    start: Instant,
}

impl Step {
    /// Shows what is going on within the step; only where it does not fill a log.
    pub fn detail(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.trim().to_owned());
        }
    }

    /// Ends the step.
    pub fn done(mut self) {
        let took = self.start.elapsed();
        match self.bar.take() {
            Some(bar) => {
                bar.finish_and_clear();
                if took >= WORTH_TELLING {
                    eprintln!("✓ {} ({} s)", self.what, took.as_secs());
                }
            }
            None if took >= WORTH_TELLING => {
                eprintln!("covisor: {}: done in {} s", self.what, took.as_secs())
            }
            None => {}
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
