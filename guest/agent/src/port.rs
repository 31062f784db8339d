//! The port's device: where it is, and reading and writing it without blocking.
//!
//! It is the virtio-console port with the protocol's name, or a serial port where [`VARIABLE`] names one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Names the serial port where there is no virtio. The kernel hands words of its command line that it does not know to the
/// first program as its environment, and so they come here.
const VARIABLE: &str = "COVISOR_PORT";

/// Where udev links ports by name.
const BY_NAME: &str = "/dev/virtio-ports";

/// Where the kernel tells each port's name, with or without udev.
const CLASS: &str = "/sys/class/virtio-ports";

/// The device of the port with this name, if it is there.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    if let Some(device) = std::env::var_os(VARIABLE) {
        return Some(PathBuf::from(device)).filter(|device| device.exists());
    }
    let link = Path::new(BY_NAME).join(name);
    if link.exists() {
        return Some(link);
    }
    fs::read_dir(CLASS).ok()?.flatten().find_map(|entry| {
        let found = fs::read_to_string(entry.path().join("name")).ok()?;
        let device = Path::new("/dev").join(entry.file_name());
        (found.trim_end() == name && device.exists()).then_some(device)
    })
}

/// An open port.
#[derive(Debug)]
pub(crate) struct Port {
    /// The device.
    pub(crate) file: File,
    /// Whether the host waits while the agent does not read. On a serial line it does not: what nobody takes is lost.
    pub(crate) host_waits: bool,
}

/// Opens the port; the kernel lets one process have a virtio port at a time.
pub(crate) fn open(path: &Path) -> io::Result<Port> {
    // A terminal shall not become the agent's own: its hang-up would be a signal.
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(path)?;
    let is_serial = make_raw(file.as_raw_fd())?;
    Ok(Port { file, host_waits: !is_serial })
}

/// Makes a serial line pass every byte as it is, as fast as it can; false when this is none.
fn make_raw(fd: RawFd) -> io::Result<bool> {
    let mut mode = MaybeUninit::<libc::termios>::uninit();
    // SAFETY: the pointer is to memory for one termios, which the call fills.
    if unsafe { libc::tcgetattr(fd, mode.as_mut_ptr()) } != 0 {
        return Ok(false);
    }
    // SAFETY: the call above succeeded and so has filled it.
    let mut mode = unsafe { mode.assume_init() };
    // SAFETY: the pointer is to a valid termios.
    unsafe { libc::cfmakeraw(&raw mut mode) };
    // No modem is there that could hang up.
    mode.c_cflag = mode.c_cflag & !libc::CBAUD | libc::B115200 | libc::CLOCAL | libc::CREAD;
    // SAFETY: the pointer is to a valid termios; a descriptor that is no terminal is an error.
    match unsafe { libc::tcsetattr(fd, libc::TCSANOW, &raw const mode) } {
        0 => Ok(true),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Writes `bytes`, sleeping in the kernel until the host's end of the port is open.
///
/// A blocking write is what waits for the host: a poll on a port whose host is away returns at
/// once with `POLLHUP`, and a read with end of file.
pub(crate) fn write_when_host_is_there(port: &File, bytes: &[u8]) -> io::Result<()> {
    set_nonblocking(port.as_raw_fd(), false)?;
    let mut writer: &File = port;
    writer.write_all(bytes)?;
    set_nonblocking(port.as_raw_fd(), true)
}

/// Chooses whether reads and writes of this descriptor block.
pub(crate) fn set_nonblocking(fd: RawFd, nonblocking: bool) -> io::Result<()> {
    // SAFETY: F_GETFL and F_SETFL take and return plain integers; a bad descriptor is an error.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    let flags = if nonblocking { flags | libc::O_NONBLOCK } else { flags & !libc::O_NONBLOCK };
    // SAFETY: as above.
    if unsafe { libc::fcntl(fd, libc::F_SETFL, flags) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::{FromRawFd, OwnedFd};

    use super::*;

    /// A pseudo-terminal: its master and the name of its other end.
    fn terminal() -> (File, PathBuf) {
        // SAFETY: the call takes plain integers and makes a descriptor that nobody else has.
        let master = unsafe { OwnedFd::from_raw_fd(libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY)) };
        let mut name = [0; 64];
        // SAFETY: the descriptor is open, and the pointer and the length are the array's.
        let named = unsafe {
            libc::grantpt(master.as_raw_fd()) == 0
                && libc::unlockpt(master.as_raw_fd()) == 0
                && libc::ptsname_r(master.as_raw_fd(), name.as_mut_ptr(), name.len()) == 0
        };
        assert!(named);
        // SAFETY: the call above succeeded and so has ended the name with a zero.
        let name = unsafe { std::ffi::CStr::from_ptr(name.as_ptr()) };
        (File::from(master), PathBuf::from(name.to_str().unwrap()))
    }

    #[test]
    fn a_serial_line_passes_every_byte_both_ways() {
        let (mut master, name) = terminal();
        let mut port = open(&name).unwrap();
        assert!(!port.host_waits);
        let bytes: Vec<u8> = (0..=255).collect();
        let mut buffer = [0; 256];
        port.file.write_all(&bytes).unwrap();
        master.read_exact(&mut buffer).unwrap();
        assert_eq!(buffer.as_slice(), bytes);
        master.write_all(&bytes).unwrap();
        port.file.read_exact(&mut buffer).unwrap();
        assert_eq!(buffer.as_slice(), bytes);
    }

    #[test]
    fn what_is_no_terminal_has_a_host_that_waits() {
        assert!(open(Path::new("/dev/null")).unwrap().host_waits);
    }
}
