//! `covisor cp`: a file into a running guest, or out of it, by a command there (`cli/exec.rs`).
//!
//! Either end writes a file beside the wanted one, which gets that one's name when all is there.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::exec::DEFAULT_WAIT;
use super::exec::ExecError;
use super::exec::READ_AHEAD;
use super::exec::Running;
use super::exec::attend;
use super::exec::read_input;
use super::exec::signals;
use super::exec::start;
use super::fail;
use super::machines::find;
use super::progress::Progress;
use crate::sys::files;

/// Behind the name of a file that is not complete.
const PART: &str = "covisor-part";
/// In the guest: what comes becomes the file $1, or $2 in the folder $1, with mode $3, if it has $4 bytes.
const TAKE: &str = r#"to=$1; [ ! -d "$to" ] || to=${to%/}/$2; part=$to.covisor-part; trap 'rm -f "$part"' EXIT; umask 077
cat >"$part" && [ "$(stat -c %s "$part")" = "$4" ] && chmod "$3" "$part" && mv -f "$part" "$to""#;
/// In the guest: a line with size and mode of the file $1, and the file.
const GIVE: &str = r#"if [ -d "$1" ]; then echo "$1 is a folder: pack it with tar" >&2; exit 1; fi
stat -L -c '%s %a' "$1" && exec cat "$1""#;
/// The longest line of [`GIVE`]'s.
const MAX_LINE: usize = 64;

/// Arguments of `covisor cp`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A place in a guest is NAME:PATH; a file here whose name has a colon is ./FILE. Folders go by tar.\n\nExamples:\n  covisor cp program web:/usr/local/bin/\n  covisor cp web:/var/log/dpkg.log .\n  tar c folder | covisor exec web -- tar x -C /srv"
)]
pub(super) struct Args {
    /// The file
    #[arg(value_name = "[NAME:]FILE")]
    from: Place,
    /// Where it is to be: a file, or a folder that is there
    #[arg(value_name = "[NAME:]PLACE")]
    to: Place,
    /// How long the guest may take until its agent is there, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_WAIT)]
    wait: u64,
}

/// Where a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Here(PathBuf),
    Guest { machine: String, path: String },
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            // A drive of Windows' has one letter.
            Some((machine, path)) if machine.len() > 1 && !machine.contains(['/', '\\']) => {
                if path.is_empty() {
                    return Err("it names no file in the guest: NAME:PATH does".to_owned());
                }
                Ok(Self::Guest { machine: machine.to_owned(), path: path.to_owned() })
            }
            _ => Ok(Self::Here(text.into())),
        }
    }
}

pub(super) fn copy(args: &Args) -> ExitCode {
    let mut progress = Progress::new();
    let done = match (&args.from, &args.to) {
        (Place::Here(file), Place::Guest { machine, path }) => give(file, machine, path, args.wait, &mut progress),
        (Place::Guest { machine, path }, Place::Here(file)) => take(machine, path, file, args.wait, &mut progress),
        _ => Err(ExecError::Usage("one of the two has to be in a guest: NAME:PATH".to_owned())),
    };
    progress.end();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, error.exit_code()),
    }
}

fn here(path: &Path) -> impl FnOnce(io::Error) -> ExecError {
    move |error| ExecError::Usage(format!("{}: {error}", path.display()))
}

/// The line for the guest's shell that runs a script with these words.
fn script(script: &str, words: &[&str]) -> Result<String, ExecError> {
    shlex::try_join(["sh", "-c", script, "sh"].into_iter().chain(words.iter().copied()))
        .map_err(|error| ExecError::Usage(format!("the file's name cannot be given to the guest: {error}")))
}

/// Runs a script in the guest; `Ok` when it succeeds, and otherwise it has said why.
fn run(
    machine: &str,
    command: &str,
    wait: u64,
    source: Option<Box<dyn Read + Send>>,
    output: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> Result<(), ExecError> {
    let socket = find(machine).map_err(ExecError::Usage)?;
    let signalled = signals()?;
    let number = start(&socket, command, Duration::from_secs(wait), &signalled)?;
    let (sender, input) = mpsc::sync_channel(READ_AHEAD);
    if let Some(mut source) = source {
        thread::spawn(move || read_input(&mut source, &sender));
    } else {
        drop(sender);
    }
    match attend(Running { machine: &socket, number, signalled: &signalled }, &input, output)? {
        0 => Ok(()),
        status => Err(ExecError::Guest(format!("nothing was copied: the guest's command ended with status {status}"))),
    }
}

/// What is read, and how much of it was.
struct Counted<R> {
    source: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.count.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// From here into the guest.
fn give(file: &Path, machine: &str, path: &str, wait: u64, progress: &mut Progress) -> Result<(), ExecError> {
    let source = File::open(file).map_err(here(file))?;
    let metadata = source.metadata().map_err(here(file))?;
    if !metadata.is_file() {
        return Err(ExecError::Usage(format!("{} is no file: pack folders with tar", file.display())));
    }
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or("file");
    let size = metadata.len();
    let command = script(TAKE, &[path, name, &format!("{:o}", files::mode(&metadata)), &size.to_string()])?;
    let count = Arc::new(AtomicU64::new(0));
    let source = Counted { source: source.take(size), count: Arc::clone(&count) };
    run(machine, &command, wait, Some(Box::new(source)), &mut |_| {
        progress.show(count.load(Ordering::Relaxed), size);
        Ok(())
    })
}

/// From the guest to here.
fn take(machine: &str, path: &str, place: &Path, wait: u64, progress: &mut Progress) -> Result<(), ExecError> {
    let name = path.rsplit('/').next().filter(|name| !matches!(*name, "" | "." | ".."));
    let target = match name {
        Some(name) if place.is_dir() => place.join(name),
        _ => place.to_owned(),
    };
    let part = target.with_added_extension(PART);
    let mut taking =
        Taking { file: File::create_new(&part).map_err(here(&part))?, head: Vec::new(), left: None, mode: 0 };
    let all = &mut |bytes: &[u8]| {
        let left = taking.take(bytes)?;
        if let Some((left, size)) = left {
            progress.show(size - left, size);
        }
        Ok(())
    };
    let done = run(machine, &script(GIVE, &[path])?, wait, None, all)
        .and_then(|()| taking.finish().map_err(here(&part)))
        .and_then(|()| fs::rename(&part, &target).map_err(here(&target)));
    if done.is_err() {
        // It is only a part.
        let _ = fs::remove_file(&part);
    }
    done
}

/// A file that comes from the guest, behind a line that says how long it is.
struct Taking {
    file: File,
    /// The line, until it is complete.
    head: Vec<u8>,
    /// How many bytes are still to come, and of how many.
    left: Option<(u64, u64)>,
    mode: u32,
}

impl Taking {
    fn take(&mut self, mut bytes: &[u8]) -> io::Result<Option<(u64, u64)>> {
        while self.left.is_none() {
            let Some((byte, rest)) = bytes.split_first() else { return Ok(None) };
            bytes = rest;
            if *byte == b'\n' {
                self.left = Some(self.begin()?);
            } else if self.head.len() < MAX_LINE {
                self.head.push(*byte);
            } else {
                return Err(nonsense());
            }
        }
        let Some((left, _)) = &mut self.left else { return Ok(None) };
        *left = left.checked_sub(bytes.len() as u64).ok_or_else(grown)?;
        self.file.write_all(bytes)?;
        Ok(self.left)
    }

    /// What the line says: size and mode.
    fn begin(&mut self) -> io::Result<(u64, u64)> {
        let line = std::str::from_utf8(&self.head).map_err(|_| nonsense())?;
        let (size, mode) = line.split_once(' ').ok_or_else(nonsense)?;
        self.mode = u32::from_str_radix(mode, 8).map_err(|_| nonsense())?;
        let size = size.parse().map_err(|_| nonsense())?;
        Ok((size, size))
    }

    /// All is there.
    fn finish(&self) -> io::Result<()> {
        match self.left {
            Some((0, _)) => files::set_mode(&self.file, self.mode),
            _ => Err(grown()),
        }
    }
}

fn nonsense() -> io::Error {
    io::Error::other("the guest does not say how long the file is")
}

fn grown() -> io::Error {
    io::Error::other("the file's length changed while it was copied")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_places_here_and_in_guests_are_told_apart() {
        let guest = |machine: &str, path: &str| Place::Guest { machine: machine.to_owned(), path: path.to_owned() };
        assert_eq!("vm-1:/etc/a:b".parse(), Ok(guest("vm-1", "/etc/a:b")));
        for text in ["file", "./a:b", "/x/a:b", r"C:\x", "C:x", r"folder\a:b"] {
            assert_eq!(text.parse(), Ok(Place::Here(text.into())), "{text}");
        }
        assert!("vm-1:".parse::<Place>().is_err());
    }

    fn taking(pieces: &[&[u8]]) -> Result<(Vec<u8>, u32), String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut taking = Taking { file: File::create_new(&path).unwrap(), head: Vec::new(), left: None, mode: 0 };
        for piece in pieces {
            taking.take(piece).map_err(|error| error.to_string())?;
        }
        taking.finish().map_err(|error| error.to_string())?;
        Ok((fs::read(&path).unwrap(), taking.mode))
    }

    #[test]
    fn test_a_file_comes_behind_its_length_in_any_pieces() {
        assert_eq!(taking(&[b"5 755\nab\nde"]).unwrap(), (b"ab\nde".to_vec(), 0o755));
        assert_eq!(taking(&[b"5", b" 644", b"\n", b"abc", b"", b"de"]).unwrap(), (b"abcde".to_vec(), 0o644));
        assert_eq!(taking(&[b"0 4755\n"]).unwrap(), (Vec::new(), 0o4755));
    }

    #[test]
    fn test_a_guest_that_lies_about_a_file_is_told_of() {
        for (pieces, why) in [
            (&[&b"5 755\nabc"[..]][..], "length changed"),
            (&[b"2 755\nabc"], "length changed"),
            (&[b"five 755\nabcde"], "how long"),
            (&[b"5 9\nabcde"], "how long"),
            (&[b"5\nabcde"], "how long"),
            (&[&[b'1'; 100]], "how long"),
            (&[], "length changed"),
        ] {
            assert!(taking(pieces).unwrap_err().contains(why), "{pieces:?}");
        }
    }
}
