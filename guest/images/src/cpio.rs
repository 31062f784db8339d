//! Initramfs archives: the "newc" format of cpio.
//!
//! The format is the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`: a
//! header of thirteen eight-digit hexadecimal numbers after the magic, the name, the content, each
//! padded to four bytes. Archives can be put one after another.

/// The magic of the format without checksums.
const MAGIC: &str = "070701";

/// The name that ends an archive.
const TRAILER: &str = "TRAILER!!!";

const TYPE_DIRECTORY: u32 = 0o040_000;
const TYPE_FILE: u32 = 0o100_000;
const TYPE_SYMLINK: u32 = 0o120_000;
const TYPE_CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive being written. Names are relative to the root: `bin/sh`.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    next_inode: u32,
    directories: std::collections::BTreeSet<String>,
}

/// A file is too long for the format, whose lengths have 32 bits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} is too large for an initramfs archive, which holds files of up to 4 GiB: put it on a disk instead")]
pub struct TooLarge {
    /// The file's name.
    pub name: String,
}

impl Archive {
    /// An empty archive.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a folder, and its parents, with mode 0755.
    pub fn directory(&mut self, name: &str) {
        let name = name.trim_matches('/');
        if name.is_empty() || self.directories.contains(name) {
            return;
        }
        self.parents(name);
        self.directories.insert(name.to_owned());
        self.entry(name, TYPE_DIRECTORY | 0o755, (0, 0), 0, &[]);
    }

    /// Adds a file and its parent folders.
    ///
    /// # Errors
    /// When the file is longer than the format can say.
    pub fn file(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<(), TooLarge> {
        let length = u32::try_from(content.len()).map_err(|_| TooLarge { name: name.to_owned() })?;
        self.parents(name);
        self.entry(name, TYPE_FILE | (mode & 0o7777), (0, 0), length, content);
        Ok(())
    }

    /// Adds a symbolic link and its parent folders.
    ///
    /// # Errors
    /// When the target is longer than the format can say.
    pub fn symlink(&mut self, name: &str, target: &str) -> Result<(), TooLarge> {
        let length = u32::try_from(target.len()).map_err(|_| TooLarge { name: name.to_owned() })?;
        self.parents(name);
        self.entry(name, TYPE_SYMLINK | 0o777, (0, 0), length, target.as_bytes());
        Ok(())
    }

    /// Adds a character device and its parent folders.
    pub fn character_device(&mut self, name: &str, mode: u32, major: u32, minor: u32) {
        self.parents(name);
        self.entry(name, TYPE_CHARACTER_DEVICE | (mode & 0o7777), (major, minor), 0, &[]);
    }

    /// Ends the archive and returns its bytes.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.next_inode = 0;
        self.entry(TRAILER, 0, (0, 0), 0, &[]);
        self.bytes
    }

    fn parents(&mut self, name: &str) {
        if let Some((parent, _)) = name.trim_matches('/').rsplit_once('/') {
            self.directory(parent);
        }
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), length: u32, content: &[u8]) {
        let name = name.trim_matches('/');
        let name_size = name.len() + 1;
        let links = if mode & TYPE_DIRECTORY == TYPE_DIRECTORY { 2 } else { 1 };
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor,
        // namesize, check. Times are 0, so that the same input gives the same archive.
        let header = format!(
            "{MAGIC}{:08x}{mode:08x}{:08x}{:08x}{links:08x}{:08x}{length:08x}{:08x}{:08x}{:08x}{:08x}{name_size:08x}{:08x}",
            self.next_inode, 0, 0, 0, 0, 0, device.0, device.1, 0
        );
        self.next_inode += 1;
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        let padded = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(padded, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    /// Reads the archive with the `cpio` program, where it is installed.
    fn listed(archive: &[u8]) -> Option<String> {
        let mut cpio = Command::new("cpio")
            .args(["-t", "-v", "--numeric-uid-gid", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        cpio.stdin.take()?.write_all(archive).ok()?;
        let output = cpio.wait_with_output().ok()?;
        assert!(output.status.success());
        String::from_utf8(output.stdout).ok()
    }

    #[test]
    fn cpio_reads_what_is_written() {
        let mut archive = Archive::new();
        archive.file("etc/init.d/rc", 0o755, b"hello").unwrap();
        archive.symlink("bin/sh", "busybox").unwrap();
        archive.character_device("dev/console", 0o600, 5, 1);
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let Some(list) = listed(&bytes) else { return };
        let lines: Vec<&str> = list.lines().collect();
        assert_eq!(lines.len(), 7, "{list}");
        assert!(lines[0].starts_with("drwxr-xr-x") && lines[0].ends_with(" etc"));
        assert!(lines[2].starts_with("-rwxr-xr-x") && lines[2].contains(" 5 ") && lines[2].ends_with(" etc/init.d/rc"));
        assert!(lines[4].ends_with("bin/sh -> busybox"));
        assert!(lines[6].starts_with("crw-------") && lines[6].contains("5,   1"));
    }

    #[test]
    fn a_folder_is_added_once() {
        let mut archive = Archive::new();
        archive.directory("/a/b/");
        archive.directory("a");
        archive.file("a/b/c", 0o644, &[]).unwrap();
        let text = String::from_utf8(archive.finish()).unwrap();
        assert_eq!(text.matches(MAGIC).count(), 4);
    }
}
