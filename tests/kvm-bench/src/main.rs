//! Runs the probe guest under KVM: the smallest virtual machine monitor that the probe can boot in, to compare covisor
//! with. The same guest code measures both, so the definitions are the same (see the probe's `bench`).
//!
//! The machine: 64 MiB of RAM, KVM's own interrupt controllers, COM1's data and scratch registers, the sleep register of
//! hardware-reduced ACPI, one I/O port as an eventfd's doorbell that nobody waits on, and reads of any other port or
//! address answered with ones.

mod error;
mod image;
mod machine;
mod memory;

use std::fs;
use std::io::BufWriter;
use std::io::Write;
use std::io::stdout;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use crate::error::Error;
use crate::machine::Machine;

/// The doorbell's port.
const DOORBELL_PORT: u16 = 0xc000;

/// The mask register of the first interrupt controller (8259A), which KVM answers in the kernel.
const PIC_MASK_PORT: u16 = 0x21;

/// An address that this monitor answers, in user mode.
const MMIO_ADDRESS: u64 = 0xd000_0000;

/// Runs the probe guest under KVM.
///
/// Without --append it measures what exits cost and prints one JSON object a line; with it, the guest's serial output is
/// printed as it comes.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Example:\n  covisor-kvm-bench covisor-probe\n  covisor-kvm-bench --append test=all covisor-probe"
)]
struct Arguments {
    /// The probe guest's image.
    probe: PathBuf,

    /// The guest's command line.
    #[arg(long)]
    append: Option<String>,

    /// Further words for the guest's command line when it measures.
    #[arg(long, value_name = "WORDS", default_value = "", conflicts_with = "append")]
    bench_append: String,

    /// Print the figures as the guest does, `bench OP INSTRUCTIONS`, not as JSON.
    #[arg(long)]
    text: bool,

    /// The name that results carry.
    #[arg(long, default_value = "kvm-svm")]
    system: String,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("covisor-kvm-bench: error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Error> {
    let image = fs::read(&arguments.probe).map_err(|source| Error::Read { path: arguments.probe.clone(), source })?;
    let mut out = BufWriter::new(stdout().lock());
    match &arguments.append {
        Some(line) => {
            Machine::new(&image, line, DOORBELL_PORT)?.run(|text| writeln!(out, "{text}").and_then(|()| out.flush()))
        }
        None => {
            let line = format!(
                "test=bench driver-port={PIC_MASK_PORT:#x} driver-port-bytes=1 doorbell={DOORBELL_PORT:#x} mmio={MMIO_ADDRESS:#x} {}",
                arguments.bench_append
            );
            Machine::new(&image, &line, DOORBELL_PORT)?.run(|text| match result(text) {
                Some(_) if arguments.text => writeln!(out, "{text}"),
                Some((op, instructions)) => {
                    let system = &arguments.system;
                    writeln!(
                        out,
                        r#"{{"bench":"exits","op":"{op}","system":"{system}","instructions":{instructions}}}"#
                    )?;
                    out.flush()
                }
                None => Ok(()),
            })
        }
    }
}

/// The operation and the figure of a result's line.
fn result(text: &str) -> Option<(&str, u64)> {
    let (op, figure) = text.strip_prefix("bench ")?.split_once(' ')?;
    Some((op, figure.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_only_result_lines_are_results() {
        assert_eq!(result("bench cpuid 12"), Some(("cpuid", 12)));
        assert_eq!(result("bench cpuid x"), None);
        assert_eq!(result("probe: entry-tsc 5"), None);
    }
}
