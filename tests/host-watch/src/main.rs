//! Programs of the host that watch whether a guest beside them disturbs them.

mod counter;
mod latency;
mod registers;
mod stops;
mod stress;
mod ticks;

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use clap::Subcommand;

/// Watches from the host's user space whether a guest disturbs it.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    watch: Watch,
}

#[derive(Debug, Subcommand)]
enum Watch {
    /// Sleeps again and again until SIGTERM, and prints how much too long the longest sleep took
    Ticks {
        /// How long to sleep, in microseconds.
        period: u64,
        /// Run before every ordinary program (SCHED_FIFO).
        #[arg(long)]
        first: bool,
    },
    /// Stops a process and lets it go on, and prints how long the longest wait for its threads took
    Stops {
        /// The process, a child of this program: what is to be run.
        #[arg(long, default_value_t = 50)]
        count: u32,
        /// How long to wait before the first stop, in milliseconds.
        #[arg(long, default_value_t = 500)]
        after: u64,
        /// The program and its arguments.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        program: Vec<String>,
    },
    /// Prints how far the time stamp counter goes on over a loop of two instructions
    Counter {
        /// How often it is done.
        rounds: u64,
    },
    /// Sleeps until points of time, run before every ordinary program, and prints how late it wakes: quantiles of a histogram
    Latency {
        /// How long it is from one to the next, in microseconds.
        period: u64,
        /// How often.
        count: u32,
    },
    /// Gives the kernel much to do until SIGTERM, and prints how much was done
    Stress {
        /// For how many CPUs.
        cpus: u32,
    },
    /// Keeps values in registers until SIGTERM, and prints which changed
    Registers {
        /// Have the breakpoint in the CPU whatever program runs; this one has to be bound to its CPU then.
        #[arg(long)]
        for_the_cpu: bool,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().watch {
        Watch::Ticks { period, first } => ticks::watch(Duration::from_micros(period), first),
        Watch::Stops { count, after, program } => stops::watch(&program, count, Duration::from_millis(after)),
        Watch::Counter { rounds } => {
            counter::watch(rounds);
            Ok(())
        }
        Watch::Registers { for_the_cpu } => registers::watch(for_the_cpu),
        Watch::Latency { period, count } => latency::watch(Duration::from_micros(period), count),
        Watch::Stress { cpus } => stress::stress(cpus),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("covisor-host-watch: error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The error of the last system call.
fn last_error<T>() -> io::Result<T> {
    Err(io::Error::last_os_error())
}

/// Runs before every ordinary program from now on.
fn run_first() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: the structure is one of ours.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) } == 0 {
        return Ok(());
    }
    last_error()
}
