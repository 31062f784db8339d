//! `covisor image`.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use clap::Subcommand;

use super::EXIT_USAGE;
use super::fail;
use super::progress::Bytes;
use super::progress::Progress;
use crate::disk::Format;
use crate::disk::image;
use crate::disk::image::Copy;
use crate::disk::image::ImageError;
use crate::disk::image::New;
use crate::disk::qcow2::Findings;
use crate::run::install_logger;

/// Exit status of a check that found errors.
const EXIT_ERRORS: u8 = 3;
/// Exit status of a check that found only that space is lost.
const EXIT_LEAKS: u8 = 4;

const CREATE_HELP: &str = "\
Examples:
  covisor image create disk.qcow2 20G
  covisor image create --backing debian.qcow2 web.qcow2      what is written to web.qcow2 leaves debian.qcow2 as it is
  covisor image create --format raw disk.img 2G";

const CONVERT_HELP: &str = "\
What the source is based on is in the target, which is based on nothing. What is zero takes no space in it.

Examples:
  covisor image convert windows.vhdx windows.qcow2
  covisor image convert --from qcow2 cloud.img disk.qcow2
  covisor image convert disk.qcow2 disk.img";

const INFO_HELP: &str = "\
Examples:
  covisor image info disk.qcow2";

const CHECK_HELP: &str = "\
Exit status:
  0    nothing is wrong
  1    wrong usage, or the image cannot be read at all
  3    the image is damaged
  4    only space is lost

Examples:
  covisor image check disk.qcow2
  covisor image check --repair disk.qcow2";

/// Commands of `covisor image`.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make an image of an empty disk, or one that is based on another
    #[command(after_help = CREATE_HELP)]
    Create {
        /// Format: raw or qcow2 [default: what the name ends in, else raw]
        #[arg(long, value_name = "FORMAT")]
        format: Option<FormatArg>,
        /// The image that it is based on, as seen from the new image's folder
        #[arg(long, value_name = "FILE")]
        backing: Option<PathBuf>,
        /// The format of that: raw or qcow2 [default: what its name ends in, else raw]
        #[arg(long, value_name = "FORMAT", requires = "backing")]
        backing_format: Option<FormatArg>,
        /// The new file
        file: PathBuf,
        /// Size of the disk: MiB, or with a unit such as 20G [default: that of the image that it is based on]
        #[arg(value_parser = super::run::parse_size)]
        size: Option<u64>,
    },
    /// Copy a disk into a new image of another format
    #[command(after_help = CONVERT_HELP)]
    Convert {
        /// Format of the source: raw, qcow2, vhdx or vmdk [default: what its name ends in, else raw]
        #[arg(long, value_name = "FORMAT")]
        from: Option<FormatArg>,
        /// Format of the target: raw or qcow2 [default: what its name ends in, else raw]
        #[arg(long, value_name = "FORMAT")]
        to: Option<FormatArg>,
        /// The image or block device that is read
        source: PathBuf,
        /// The new file
        target: PathBuf,
    },
    /// Tell what an image is
    #[command(after_help = INFO_HELP)]
    Info {
        /// Format: raw, qcow2, vhdx or vmdk [default: what it looks like]
        #[arg(long, value_name = "FORMAT")]
        format: Option<FormatArg>,
        /// The image
        file: PathBuf,
    },
    /// Check an image's tables
    #[command(after_help = CHECK_HELP)]
    Check {
        /// Format: qcow2, vhdx or vmdk [default: what it looks like]
        #[arg(long, value_name = "FORMAT")]
        format: Option<FormatArg>,
        /// Count the clusters of a qcow2 image anew, which brings lost space back
        #[arg(long)]
        repair: bool,
        /// The image
        file: PathBuf,
    },
}

/// A format's name.
#[derive(Debug, Clone, Copy)]
pub(super) struct FormatArg(Format);

impl FromStr for FormatArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Format::from_name(text).map(Self).ok_or_else(|| "the formats are raw, qcow2, vhdx and vmdk".to_owned())
    }
}

impl From<FormatArg> for Format {
    fn from(FormatArg(format): FormatArg) -> Self {
        format
    }
}

pub(super) fn image(command: Command) -> ExitCode {
    install_logger(false);
    match attempt(command) {
        Ok(status) => status,
        Err(error) => fail(error, EXIT_USAGE),
    }
}

fn attempt(command: Command) -> Result<ExitCode, ImageError> {
    match command {
        Command::Create { format, backing, backing_format, file, size } => {
            let backing = backing.as_deref().map(|path| (path, backing_format.map(Format::from)));
            let (format, size) = image::create(&New { path: &file, format: format.map(Format::from), size, backing })?;
            print(format_args!("{}: {format}, {}", file.display(), Bytes(size)));
            Ok(ExitCode::SUCCESS)
        }
        Command::Convert { from, to, source, target } => {
            let mut progress = Progress::new();
            let copy =
                Copy { source: &source, from: from.map(Format::from), target: &target, to: to.map(Format::from) };
            let result = image::convert(&copy, &mut |done, all| {
                progress.show(done, all);
                ControlFlow::Continue(())
            });
            progress.end();
            let (format, size) = result?;
            print(format_args!("{}: {format}, {}", target.display(), Bytes(size)));
            Ok(ExitCode::SUCCESS)
        }
        Command::Info { format, file } => info(&file, format.map(Format::from)),
        Command::Check { format, repair, file } => {
            let mut progress = Progress::new();
            let result =
                image::check(&file, format.map(Format::from), repair, &mut |done, all| progress.show(done, all));
            progress.end();
            let (format, findings) = result?;
            Ok(report(&file, format, &findings))
        }
    }
}

fn info(file: &Path, format: Option<Format>) -> Result<ExitCode, ImageError> {
    let info = image::info(file, format)?;
    let mut lines = vec![
        ("file", file.display().to_string()),
        ("format", info.format.to_string()),
        ("disk", Bytes(info.size).to_string()),
        ("file's size", Bytes(info.file_size).to_string()),
        ("stored", Bytes(info.stored).to_string()),
    ];
    lines.extend(info.more);
    for (name, value) in lines {
        print(format_args!("{name:13} {}", printable(&value)));
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints what a check has found.
fn report(file: &Path, format: Format, findings: &Findings) -> ExitCode {
    let Findings { errors, leaks, told, .. } = findings;
    for line in told {
        print(format_args!("{line}"));
    }
    let untold = (errors + leaks).saturating_sub(told.len() as u64);
    if untold > 0 {
        print(format_args!("and {untold} more"));
    }
    let (verdict, status) = match (errors, leaks) {
        (0, 0) => ("nothing is wrong".to_owned(), 0),
        (0, leaks) => {
            (format!("{leaks} clusters are lost; `covisor image check --repair` brings them back"), EXIT_LEAKS)
        }
        (errors, _) => (format!("it is damaged: {errors} errors"), EXIT_ERRORS),
    };
    print(format_args!("{}: {format}, {verdict}", file.display()));
    status.into()
}

/// Says a line of what was asked for.
fn print(line: std::fmt::Arguments<'_>) {
    // Nobody to read it is no reason to complain.
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Text of an image's, without what would act on a terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_what_an_image_says_does_not_act_on_a_terminal() {
        assert_eq!(printable("a\x1b[2Jb\n"), "a?[2Jb?");
    }

    #[test]
    fn test_a_report_has_its_status() {
        let status = |errors, leaks| {
            let findings = Findings { errors, leaks, ..Findings::default() };
            format!("{:?}", report(Path::new("x"), Format::Qcow2, &findings))
        };
        let expected = |status: u8| format!("{:?}", ExitCode::from(status));
        assert_eq!(status(0, 0), expected(0));
        assert_eq!(status(1, 1), expected(EXIT_ERRORS));
        assert_eq!(status(0, 2), expected(EXIT_LEAKS));
    }
}
