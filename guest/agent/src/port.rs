//! The port's device: where it is, and reading and writing it without blocking.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};

/// Where udev links ports by name.
const BY_NAME: &str = "/dev/virtio-ports";

/// Where the kernel tells each port's name, with or without udev.
const CLASS: &str = "/sys/class/virtio-ports";

/// The device of the port with this name, if it is there.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
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

/// Opens the port; the kernel lets one process have it at a time.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
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
