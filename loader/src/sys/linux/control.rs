//! Where running machines can be found and spoken to: one socket each, in a folder that only their owner may enter.

use std::fs;
use std::fs::DirBuilder;
use std::fs::File;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use crate::sys::folder::files;

/// How long the other side may take for a line.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest line.
const MAX_LINE: u64 = 64 << 10;
const SUFFIX: &str = "sock";

/// The folder of the sockets: root's, or this user's own.
#[must_use]
pub fn folder() -> PathBuf {
    if let Some(folder) = std::env::var_os("COVISOR_RUNTIME_DIR") {
        return folder.into();
    }
    if super::process::is_administrator() {
        return "/run/covisor".into();
    }
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(folder) => Path::new(&folder).join("covisor"),
        None => std::env::temp_dir().join(format!("covisor-{}", nix::unistd::geteuid())),
    }
}

/// A machine's place in the folder, which goes when this is dropped.
#[derive(Debug)]
pub struct Registration {
    path: PathBuf,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// What a machine hears requests by.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
}

/// Makes the socket for a machine's name. `None` when a machine of this name runs.
///
/// # Errors
/// What the host says.
pub fn register(folder: &Path, name: &str) -> io::Result<Option<(Registration, Listener)>> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let _lock = lock(folder)?;
    let path = socket(folder, name);
    if path.exists() {
        if UnixStream::connect(&path).is_ok() {
            return Ok(None);
        }
        // Its machine did not end in an orderly way.
        fs::remove_file(&path)?;
    }
    let listener = UnixListener::bind(&path)?;
    Ok(Some((Registration { path }, Listener { listener })))
}

/// Keeps others from making and forgetting sockets in the folder, until this is dropped. A new socket is refused until its machine
/// listens, as is that of one that is gone.
fn lock(folder: &Path) -> io::Result<File> {
    let folder = File::open(folder)?;
    folder.lock()?;
    Ok(folder)
}

impl Listener {
    /// Answers one request after another, for ever.
    pub fn serve(&self, mut answer: impl FnMut(&str) -> String) {
        for stream in self.listener.incoming() {
            // A client that goes away in the middle is no concern of the machine.
            let _ = stream.and_then(|stream| {
                let line = exchange_timeouts(&stream).and_then(|()| read_line(&stream))?;
                write_line(&stream, &answer(&line))
            });
        }
    }
}

/// The socket of the machine with this name.
#[must_use]
pub fn socket(folder: &Path, name: &str) -> PathBuf {
    folder.join(name).with_added_extension(SUFFIX)
}

/// Asks a machine, and gives its answer.
///
/// # Errors
/// When it does not run or does not answer.
pub fn ask(path: &Path, request: &str) -> io::Result<String> {
    let stream = UnixStream::connect(path)?;
    exchange_timeouts(&stream)?;
    write_line(&stream, request)?;
    read_line(&stream)
}

/// The sockets in the folder.
#[must_use]
pub fn sockets(folder: &Path) -> Vec<PathBuf> {
    files(folder, SUFFIX)
}

/// Takes away a socket, if its machine is gone.
pub fn forget(path: &Path) {
    let Some(Ok(_lock)) = path.parent().map(lock) else { return };
    if UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
        let _ = fs::remove_file(path);
    }
}

fn exchange_timeouts(stream: &UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))
}

fn read_line(stream: &UnixStream) -> io::Result<String> {
    let mut line = String::new();
    BufReader::new(stream.take(MAX_LINE)).read_line(&mut line)?;
    match line.pop() {
        Some('\n') => Ok(line),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn write_line(mut stream: &UnixStream, line: &str) -> io::Result<()> {
    stream.write_all(format!("{line}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_a_machine_answers_and_its_name_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let (registration, listener) = register(folder.path(), "one.two").unwrap().unwrap();
        let path = socket(folder.path(), "one.two");
        std::thread::spawn(move || listener.serve(|line| format!("you said {line}")));
        assert_eq!(ask(&path, "hello").unwrap(), "you said hello");
        assert!(register(folder.path(), "one.two").unwrap().is_none());
        assert_eq!(sockets(folder.path()), [path]);
        drop(registration);
        assert!(sockets(folder.path()).is_empty());
    }

    #[test]
    fn test_a_dead_machines_socket_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        // As if the process had died: the socket stays, nobody listens.
        let path = socket(folder.path(), "one");
        drop(UnixListener::bind(&path).unwrap());
        assert!(ask(&path, "hello").is_err());
        assert!(register(folder.path(), "one").unwrap().is_some());
    }

    #[test]
    fn test_a_machine_that_just_comes_is_not_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let path = socket(folder.path(), "one");
        drop(UnixListener::bind(&path).unwrap());
        let comes = lock(folder.path()).unwrap();
        let gone = path.clone();
        let forgets = std::thread::spawn(move || forget(&gone));
        // More than it would take.
        std::thread::sleep(Duration::from_millis(50));
        fs::remove_file(&path).unwrap();
        let _listener = UnixListener::bind(&path).unwrap();
        drop(comes);
        forgets.join().unwrap();
        assert!(path.exists());
    }
}
