//! Work for a guest. Each command does something that asks much of the guest's kernel and of the engine below it, checks all of its
//! results itself, and prints one line: what was done, or what went wrong.

mod attempt;
mod debuggee;
mod error;
mod files;
mod mappings;
mod memory;
mod mmap;
mod processes;
mod random;
mod records;
mod segments;
mod tracing;
mod twins;
mod vectors;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use clap::Subcommand;

/// Work for a guest that checks its own results.
#[derive(Debug, Parser)]
#[command(name = "guest-work", version)]
struct Arguments {
    #[command(subcommand)]
    work: Work,
}

#[derive(Debug, Subcommand)]
enum Work {
    /// Writes patterns to memory, more than there is, and reads them back; a child has a copy of it all
    Memory {
        /// How much, in MiB.
        mib: usize,
    },
    /// Writes to a file by shared mappings and reads it back, with the kernel's memory of it dropped in between
    Files {
        /// The file.
        path: PathBuf,
        /// Its size, in MiB.
        mib: usize,
    },
    /// Writes records to a disk and flushes them, and tells of each flush
    WriteRecords {
        /// The disk: an image or a block device.
        path: PathBuf,
        /// The first operation: the one after the last that was flushed.
        first: u64,
        /// How many operations, instead of going on for ever.
        count: Option<u64>,
    },
    /// Checks the records on a disk
    CheckRecords {
        /// The disk.
        path: PathBuf,
        /// The last operation that was flushed.
        flushed: u64,
    },
    /// Writes the same to two disks
    Twins {
        /// The first.
        first: PathBuf,
        /// The second, as large, with the same on it.
        second: PathBuf,
        /// What the random ranges come from.
        seed: u64,
        /// How many ranges.
        count: u32,
    },
    /// Maps, protects, moves and unmaps at random, and checks each page against what it should be
    Mappings {
        /// How many operations.
        operations: u32,
    },
    /// Forks, many children at a time, each of which changes its copy of the memory
    Forks {
        /// How many children.
        count: u32,
    },
    /// Runs this program again and again, by vfork
    Executions {
        /// How often.
        count: u32,
    },
    /// Only prints a word
    Echo {
        /// The word.
        word: String,
    },
    /// Steps a child through its instructions, and stops it by breakpoints of the CPU's
    Tracing,
    /// Keeps values in vector registers, in several processes at a time, with signal handlers that use the same registers
    Vectors {
        /// How many processes.
        processes: u32,
        /// How many rounds each.
        rounds: u32,
    },
    /// Makes segments by modify_ldt and uses them
    Segments {
        /// Leave out what the CPU must refuse for a segment's limit: QEMU's own checks none.
        #[arg(long)]
        without_limits: bool,
    },
    /// Stops by an INT3 that tells a debugger where there is something to watch, and goes on
    Debuggee,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().work {
        Work::Memory { mib } => memory::work(mib),
        Work::Files { path, mib } => files::work(&path, mib),
        Work::WriteRecords { path, first, count } => records::write(&path, first, count),
        Work::CheckRecords { path, flushed } => records::check(&path, flushed),
        Work::Twins { first, second, seed, count } => twins::work([&first, &second], seed, count),
        Work::Mappings { operations } => mappings::work(operations),
        Work::Forks { count } => processes::forks(count),
        Work::Executions { count } => processes::executions(count),
        Work::Echo { word } => Ok(word),
        Work::Tracing => tracing::work(),
        Work::Vectors { processes, rounds } => vectors::work(processes, rounds),
        Work::Segments { without_limits } => segments::work(without_limits),
        Work::Debuggee => Ok(debuggee::work()),
    };
    match done {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("FAILED: {failure}");
            ExitCode::FAILURE
        }
    }
}
