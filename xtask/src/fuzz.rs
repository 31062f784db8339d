//! `cargo xtask fuzz`: builds the fuzz targets with libFuzzer and runs them.
//!
//! No cargo-fuzz and no nightly toolchain: the flags that it would pass are below.

use std::num::NonZero;
use std::panic::resume_unwind;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::thread::available_parallelism;

use clap::Args;
use covisor_guest_images::Error as BuildError;
use covisor_guest_images::command::Cmd;
use covisor_guest_images::fs::create_dir_all;

use crate::env::Env;
use crate::error::Result;
use crate::scenario::{Tally, Verdict};
use crate::setup;

/// Instrumentation for libFuzzer, and the address sanitizer. `-Z` options work on any compiler with `RUSTC_BOOTSTRAP`.
const RUSTFLAGS: &[&str] = &[
    "--cfg",
    "fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Zsanitizer=address",
    "-Cforce-frame-pointers=yes",
    "-Ccodegen-units=1",
];

/// With a target named, sanitizers stay out of build scripts.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The fuzz targets: programs in `fuzz/fuzz_targets`.
const FUZZ_TARGETS: [&str; 10] =
    ["emulator", "ioctl", "virtio_block", "kernel_loader", "qcow2", "vhdx", "net_header", "dhcp", "dns", "share"];

/// Seconds in which a target must be done with one input.
const SLOWEST_INPUT: u32 = 20;

/// How much of a failed target's report is shown.
const REPORT_LINES: usize = 60;

/// Seconds for each target in continuous integration.
pub const CI_SECONDS: u32 = 20;

/// Arguments of `cargo xtask fuzz`.
#[derive(Debug, Args)]
pub struct FuzzArgs {
    /// Only this target: emulator, ioctl, virtio_block, kernel_loader, qcow2, vhdx, net_header, dhcp, dns or share.
    #[arg(value_name = "TARGET", value_parser = FUZZ_TARGETS)]
    target: Option<String>,

    /// How long each target runs.
    #[arg(long, value_name = "N", default_value_t = CI_SECONDS)]
    seconds: u32,

    /// Adds what was found to reach new code to the seeds in the checkout.
    #[arg(long)]
    keep: bool,
}

/// Fuzzes as the arguments say.
///
/// # Errors
/// When the targets cannot be built.
pub fn run(env: &Env, args: &FuzzArgs) -> Result<ExitCode> {
    let chosen = |target: &&&str| args.target.as_deref().is_none_or(|name| name == **target);
    let targets: Vec<_> = FUZZ_TARGETS.iter().filter(chosen).copied().collect();
    let tally = run_targets(env, &targets, args.seconds, args.keep)?;
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Fuzzes all targets, each for so long.
///
/// # Errors
/// When they cannot be built.
pub fn run_all(env: &Env, seconds_each: u32) -> Result<Tally> {
    run_targets(env, &FUZZ_TARGETS, seconds_each, false)
}

/// Builds and runs the targets, and prints a line for each.
fn run_targets(env: &Env, targets: &[&str], seconds: u32, keep: bool) -> Result<Tally> {
    setup::ensure_for_fuzzing(env)?;
    let programs = build(env, targets)?;
    let next = AtomicUsize::new(0);
    let tally = Mutex::new(Tally::default());
    // As many at the same time as there are CPUs, since each uses one.
    let work = || -> Result<()> {
        while let Some(target) = targets.get(next.fetch_add(1, Ordering::Relaxed)) {
            let verdict = match run_target(env, target, &programs, seconds, keep)? {
                Ok(line) => {
                    println!("pass  fuzz/{target}: {line}");
                    Verdict::Pass
                }
                Err(why) => {
                    println!("FAIL  fuzz/{target}\n{why}");
                    Verdict::Fail(why)
                }
            };
            tally.lock().unwrap_or_else(PoisonError::into_inner).count(&verdict);
        }
        Ok(())
    };
    let threads = available_parallelism().map_or(1, NonZero::get).min(targets.len());
    thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })?;
    Ok(tally.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Builds the targets; the folder with their programs.
fn build(env: &Env, targets: &[&str]) -> Result<PathBuf> {
    let output = env.cargo_target.join("fuzz");
    let step = env.progress.step("building the fuzz targets");
    let mut command = Cmd::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--release", "--target", TARGET])
        .dir(env.root.join("fuzz"))
        .env("CARGO_TARGET_DIR", &output)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", RUSTFLAGS.join("\u{1f}"));
    for target in targets {
        command = command.args(["--bin", target]);
    }
    command.run(&step)?;
    step.done();
    Ok(output.join(TARGET).join("release"))
}

/// Runs one target: its closing line, or the end of its report.
fn run_target(
    env: &Env,
    target: &str,
    programs: &Path,
    seconds: u32,
    keep: bool,
) -> Result<std::result::Result<String, String>> {
    let seeds = env.root.join("fuzz/seeds").join(target);
    let corpus = env.out.join("fuzz").join(target);
    let artifacts = env.root.join("fuzz/artifacts").join(target);
    for folder in [&seeds, &corpus, &artifacts] {
        create_dir_all(folder)?;
    }
    let step = env.progress.step(format!("fuzzing {target} for {seconds} s"));
    let fuzzer = |options: &[String]| {
        Cmd::new(programs.join(target))
            .args(options)
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .arg(format!("-timeout={SLOWEST_INPUT}"))
            // Its messages are libFuzzer's report; leaks are found by the targets' own counts.
            .env("ASAN_OPTIONS", "detect_leaks=0:allocator_may_return_null=1")
            .env("RUST_BACKTRACE", "1")
    };
    let limit = [format!("-max_total_time={seconds}"), "-print_final_stats=1".to_owned()];
    let run = fuzzer(&limit).arg(&corpus).arg(&seeds);
    let output =
        run.into_inner().output().map_err(|source| BuildError::Start { program: target.to_owned(), source })?;
    let report = String::from_utf8_lossy(&output.stderr);
    let outcome = if output.status.success() { Ok(summary(&report)) } else { Err(tail(&report)) };
    if keep && outcome.is_ok() {
        fuzzer(&["-merge=1".to_owned()]).arg(&seeds).arg(&corpus).run(&step)?;
    }
    step.done();
    Ok(outcome)
}

/// The closing line's numbers: `#1234 DONE cov: 567 ft: 890 corp: 12/34Kb …`, which libFuzzer prints before its statistics.
fn summary(lines: &str) -> String {
    let is_done = |line: &&str| line.split_whitespace().nth(1) == Some("DONE");
    let mut words = lines.lines().rev().find(is_done).unwrap_or_default().split_whitespace();
    let runs = words.next().unwrap_or_default().trim_start_matches('#');
    let edges = words.skip_while(|word| *word != "cov:").nth(1).unwrap_or_default();
    format!("{runs} inputs, {edges} edges reached")
}

/// The end of a failed target's report, where the cause and the input's file are.
fn tail(report: &str) -> String {
    let lines: Vec<_> = report.lines().collect();
    lines[lines.len().saturating_sub(REPORT_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_line_is_read() {
        let lines = "#16\tINITED cov: 60\n#1234\tDONE   cov: 567 ft: 890 corp: 12/34Kb lim: 4096 exec/s: 41 rss: 52Mb\nDone 1234 runs";
        assert_eq!(summary(lines), "1234 inputs, 567 edges reached");
    }
}
