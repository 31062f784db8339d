//! Archives of all kinds, and what is on the disk then, as `debugfs` sees it.

use std::io::Write;
use std::process::Command;

use covisor_debian::programs::find_program;
use tempfile::TempDir;

use super::*;
use crate::rootfs::Debian;

const SIZE: u64 = 256 << 20;

/// Nobody looks on; the end comes after so many questions whether it shall.
struct Patience(std::cell::Cell<u32>);

impl Patience {
    fn endless() -> Self {
        Self(std::cell::Cell::new(u32::MAX))
    }
}

impl Watch for Patience {
    fn step(&mut self, _what: &str) {}

    fn detail(&mut self, _what: &str) {}

    fn is_cancelled(&self) -> bool {
        self.0.set(self.0.get().saturating_sub(1));
        self.0.get() == 0
    }
}

/// An archive to be.
struct Archive(tar::Builder<Vec<u8>>);

impl Archive {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    /// A header whose name is not checked.
    fn header(kind: tar::EntryType, name: &str, mode: u32, (uid, gid): (u64, u64)) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(uid);
        header.set_gid(gid);
        header.set_size(0);
        header.set_mtime(1_000_000_000);
        header
    }

    fn add(mut self, mut header: tar::Header, content: &[u8]) -> Self {
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    fn file(self, name: &str, mode: u32, owner: (u64, u64), content: &[u8]) -> Self {
        self.add(Self::header(tar::EntryType::Regular, name, mode, owner), content)
    }

    fn folder(self, name: &str, mode: u32, owner: (u64, u64)) -> Self {
        self.add(Self::header(tar::EntryType::Directory, name, mode, owner), b"")
    }

    fn link(self, kind: tar::EntryType, name: &str, target: &str) -> Self {
        let mut header = Self::header(kind, name, 0o777, (0, 0));
        header.as_gnu_mut().unwrap().linkname[..target.len()].copy_from_slice(target.as_bytes());
        self.add(header, b"")
    }

    fn device(self, name: &str, (major, minor): (u32, u32)) -> Self {
        let mut header = Self::header(tar::EntryType::Char, name, 0o666, (0, 5));
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        self.add(header, b"")
    }

    /// A file with an extended attribute.
    fn with_attribute(mut self, name: &str, key: &str, value: &[u8]) -> Self {
        self.0.append_pax_extensions([(format!("SCHILY.xattr.{key}").as_str(), value)]).unwrap();
        self.file(name, 0o755, (0, 0), b"program")
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }

    /// With a kernel in it.
    fn with_kernel(self) -> Self {
        self.file("./boot/vmlinuz-6.1", 0o644, (0, 0), b"kernel").file(
            "./boot/initrd.img-6.1",
            0o600,
            (0, 0),
            b"initrd",
        )
    }
}

/// Makes a disk of an archive's bytes.
fn made(bytes: &[u8]) -> (TempDir, Result<Made, RootfsError>) {
    let folder = tempfile::tempdir().unwrap();
    let made = made_in(&folder, bytes, SIZE, &mut Patience::endless());
    (folder, made)
}

fn made_in(folder: &TempDir, bytes: &[u8], size: u64, watch: &mut dyn Watch) -> Result<Made, RootfsError> {
    let path = folder.path().join("rootfs.tar");
    fs::write(&path, bytes).unwrap();
    let place = folder.path().join("guest");
    fs::create_dir(&place).unwrap();
    let agent = folder.path().join("agent");
    fs::write(&agent, b"agent").unwrap();
    let content = Content::Archive(&path);
    make(&Wanted { content, folder: &place, size, agent: Some(&agent), with_kernel: true }, watch)
}

/// What `debugfs` answers to a request about a disk.
fn ask(made: &Made, request: &str) -> String {
    let mut command = Command::new(find_program("debugfs").unwrap());
    let output = command.args(["-R", request]).arg(&made.disk).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A name's type, mode and owner.
fn stat(made: &Made, name: &str) -> (String, String, String) {
    let text = ask(made, &format!("stat \"{name}\""));
    let words: Vec<&str> = text.split_whitespace().collect();
    let of = |key: &str| {
        let place = words.iter().position(|word| *word == key).unwrap_or_else(|| panic!("{name}: {text}"));
        words[place + 1].to_owned()
    };
    (of("Type:"), of("Mode:"), format!("{}:{}", of("User:"), of("Group:")))
}

/// Whether this machine has the programs; without them there is nothing to try.
fn has_tools() -> bool {
    image::Tools::find().is_ok()
}

#[test]
fn test_a_disk_has_what_the_archive_says_whoever_makes_it() {
    if !has_tools() {
        return;
    }
    let archive = Archive::new()
        .folder("./", 0o751, (0, 0))
        .folder("./home", 0o755, (0, 0))
        .folder("./home/me", 0o700, (1000, 100_000))
        .file("./home/me/a \"file\" with spaces", 0o640, (1000, 100_000), b"mine")
        .file("./bin/su", 0o4755, (0, 0), b"su")
        .file("./closed", 0, (0, 42), b"")
        .folder("./tmp", 0o1777, (0, 0))
        .link(tar::EntryType::Symlink, "./lib", "/usr/lib")
        .link(tar::EntryType::Symlink, "./out", "../../../etc/passwd")
        .link(tar::EntryType::Link, "./bin/sudo", "./bin/su")
        .device("./dev/tty", (5, 0))
        .add(Archive::header(tar::EntryType::Fifo, "./pipe", 0o600, (7, 8)), b"")
        .with_attribute("./bin/ping", "security.capability", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0")
        .with_attribute("./bin/label", "security.selinux", b"not kept")
        .with_kernel();
    let (_folder, made) = made(&archive.bytes());
    let made = made.unwrap();
    let is = |kind: &str, mode: &str, owner: &str| (kind.to_owned(), mode.to_owned(), owner.to_owned());
    assert_eq!(stat(&made, "/"), is("directory", "0751", "0:0"));
    assert_eq!(stat(&made, "/home/me"), is("directory", "0700", "1000:100000"));
    assert_eq!(stat(&made, "/home/me/a \"\"file\"\" with spaces"), is("regular", "0640", "1000:100000"));
    assert_eq!(stat(&made, "/bin"), is("directory", "0755", "0:0"));
    assert_eq!(stat(&made, "/bin/sudo"), is("regular", "04755", "0:0"));
    assert_eq!(stat(&made, "/closed"), is("regular", "0000", "0:42"));
    assert_eq!(stat(&made, "/tmp"), is("directory", "01777", "0:0"));
    assert_eq!(stat(&made, "/lib").0, "symlink");
    assert_eq!(stat(&made, "/pipe"), is("FIFO", "0600", "7:8"));
    assert_eq!(stat(&made, "/dev/tty"), is("character", "0666", "0:5"));
    assert!(ask(&made, "stat /bin/su").contains("mtime: 0x3b9aca00:"));
    assert!(ask(&made, "stat /dev/tty").contains("05:00"));
    assert!(ask(&made, "stat /out").contains("../../../etc/passwd"));
    assert!(ask(&made, "ea_list /bin/ping").contains("security.capability"));
    assert!(!ask(&made, "ea_list /bin/label").contains("selinux"));
    assert_eq!(ask(&made, "cat /home/me/\"a \"\"file\"\" with spaces\""), "mine");
    // Without systemd nothing would start the agent.
    assert!(ask(&made, "ls /usr/sbin").is_empty());
    assert_eq!(fs::read(made.kernel.as_ref().unwrap()).unwrap(), b"kernel");
    assert_eq!(fs::read(made.initrd.as_ref().unwrap()).unwrap(), b"initrd");
    let check = Command::new(find_program("e2fsck").unwrap()).arg("-fn").arg(&made.disk).output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    // Nothing else is left.
    let mut left: Vec<_> = fs::read_dir(made.disk.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["disk.raw", "initrd.img", "vmlinuz"]);
}

#[test]
fn test_systemd_gets_the_agent() {
    if !has_tools() {
        return;
    }
    let systemd = |archive: Archive| archive.file("usr/lib/systemd/systemd", 0o755, (0, 0), b"").with_kernel();
    let (_folder, debian) = made(&systemd(Archive::new().folder("usr/sbin", 0o755, (0, 0))).bytes());
    let debian = debian.unwrap();
    assert_eq!(ask(&debian, "cat /usr/sbin/covisor-agent"), "agent");
    assert_eq!(stat(&debian, "/usr/sbin/covisor-agent").1, "0755");
    assert!(
        ask(&debian, "cat /etc/systemd/system/covisor-agent.service").contains("ExecStart=/usr/sbin/covisor-agent")
    );
    // As where /usr/sbin is a link.
    let (_folder, arch) = made(&systemd(Archive::new().link(tar::EntryType::Symlink, "usr/sbin", "bin")).bytes());
    assert_eq!(ask(&arch.unwrap(), "cat /usr/bin/covisor-agent"), "agent");
}

#[test]
fn test_all_compressions_are_known_by_what_they_begin_with() {
    if !has_tools() {
        return;
    }
    let tar = Archive::new().with_kernel().bytes();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    let mut xz = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).unwrap();
    xz.write_all(&tar).unwrap();
    let zstd = |bytes: &[u8]| ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest);
    // In two frames, as programs write it that work with several CPUs.
    let frames = [zstd(&tar[..1000]), zstd(&tar[1000..])].concat();
    for packed in [gzip.finish().unwrap(), xz.finish().unwrap(), zstd(&tar), frames] {
        let (_folder, made) = made(&packed);
        assert_eq!(ask(&made.unwrap(), "cat /boot/vmlinuz-6.1"), "kernel");
    }
}

#[test]
fn test_no_archive_reaches_out_of_the_guest() {
    if !has_tools() {
        return;
    }
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("victim");
    fs::write(&victim, b"as it was").unwrap();
    let (there, file) = (outside.path().to_str().unwrap(), victim.to_str().unwrap());
    let symlink = tar::EntryType::Symlink;
    let hard = tar::EntryType::Link;
    let new = Archive::new;
    for (archive, says) in [
        (new().file("../victim", 0o644, (0, 0), b"x"), "outside"),
        (new().file("a/../../victim", 0o644, (0, 0), b"x"), "outside"),
        (new().folder("..", 0o755, (0, 0)), "outside"),
        (new().link(symlink, "out", there).file("out/victim", 0o644, (0, 0), b"x"), "not as a folder"),
        (new().link(symlink, "out", there).folder("out/new", 0o755, (0, 0)), "not as a folder"),
        (new().link(symlink, "out", there).folder("out", 0o700, (0, 0)), "twice"),
        (new().link(hard, "mine", file), "second name"),
        (new().link(hard, "mine", "../victim"), "outside"),
        (new().link(symlink, "out", there).link(hard, "mine", "out/victim"), "not as a folder"),
        (new().link(hard, "self", "self"), "second name"),
        (new().folder("etc", 0o755, (0, 0)).link(hard, "mine", "etc"), "second name"),
        (new().folder("etc", 0o755, (0, 0)).file("etc", 0o644, (0, 0), b"x"), "twice"),
        (new().file("a\nb", 0o644, (0, 0), b"x"), "control characters"),
        (new().add(Archive::header(tar::EntryType::new(b'Z'), "odd", 0o644, (0, 0)), b""), "not known"),
    ] {
        let (folder, made) = made(&archive.with_kernel().bytes());
        let error = made.unwrap_err().to_string();
        assert!(error.contains(says) && !error.contains('\n'), "{error}");
        assert_eq!(fs::read(&victim).unwrap(), b"as it was");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
        assert!(!folder.path().join("victim").exists());
    }
    // An absolute name is one in the guest. A link that is overwritten is not followed, and has no second life as what it led to.
    let archive = new()
        .file(file, 0o644, (0, 0), b"x")
        .link(symlink, "link", file)
        .file("link", 0o644, (0, 0), b"x")
        .link(symlink, "boot/vmlinuz-9", file);
    let (_folder, made) = made(&archive.with_kernel().bytes());
    assert_eq!(fs::read(made.unwrap().kernel.unwrap()).unwrap(), b"kernel");
    assert_eq!(fs::read(&victim).unwrap(), b"as it was");
}

#[test]
fn test_what_is_no_good_archive_is_told_in_a_line() {
    if !has_tools() {
        return;
    }
    let whole = Archive::new().file("big", 0o644, (0, 0), &vec![7; 100_000]).with_kernel().bytes();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&whole).unwrap();
    let gzip = gzip.finish().unwrap();
    // A name of many megabytes, which would be kept in memory.
    let mut long = Archive::header(tar::EntryType::GNULongName, "././@LongLink", 0, (0, 0));
    long.set_size(8 << 20);
    let long = Archive::new().add(long, &vec![b'a'; 8 << 20]).file("x", 0o644, (0, 0), b"");
    for (bytes, says) in [
        (whole[..50_000].to_vec(), "damaged"),
        (gzip[..gzip.len() / 2].to_vec(), "damaged"),
        (b"no archive at all, but a text that is long enough to be a header of one".repeat(20), "damaged"),
        (Vec::new(), "nothing in the archive"),
        (vec![0; 10_240], "nothing in the archive"),
        (b"BZh91AY&SY".to_vec(), "bzip2"),
        (long.bytes(), "too long"),
        (Archive::new().file("etc/x", 0o644, (0, 0), b"x").bytes(), "--kernel FILE"),
        (Archive::new().link(tar::EntryType::Symlink, "boot", "/boot").bytes(), "--kernel FILE"),
    ] {
        let (_folder, made) = made(&bytes);
        let error = made.unwrap_err().to_string();
        assert!(error.contains(says) && !error.contains('\n'), "{error}");
    }
}

#[test]
fn test_a_disk_that_is_too_small_is_told_as_soon_as_it_shows() {
    if !has_tools() {
        return;
    }
    let archive = Archive::new().file("big", 0o644, (0, 0), &vec![7; 3 << 20]).with_kernel().bytes();
    for size in [1 << 20, 16 << 20] {
        let folder = tempfile::tempdir().unwrap();
        let error = made_in(&folder, &archive, size, &mut Patience::endless()).unwrap_err();
        assert!(matches!(error, RootfsError::TooSmall { .. }), "{error}");
        assert!(error.to_string().contains("say --size"), "{error}");
    }
}

#[test]
fn test_it_ends_when_nobody_wants_it() {
    if !has_tools() {
        return;
    }
    let archive = Archive::new().file("big", 0o644, (0, 0), &vec![7; 3 << 20]).with_kernel().bytes();
    for patience in [1, 2, 20, 45] {
        let folder = tempfile::tempdir().unwrap();
        let made = made_in(&folder, &archive, SIZE, &mut Patience(std::cell::Cell::new(patience)));
        assert!(matches!(made, Err(RootfsError::Cancelled)), "{patience}: {made:?}");
    }
}

#[test]
fn test_a_program_is_ended_with_who_waits_for_it() {
    let start = std::time::Instant::now();
    let mut command = Command::new("sleep");
    let ended = tool::run(command.arg("1000"), &mut Patience(std::cell::Cell::new(3)));
    assert!(matches!(ended, Err(RootfsError::Cancelled)));
    assert!(start.elapsed() < std::time::Duration::from_secs(60));
}

#[test]
fn test_the_reason_of_a_failure_is_the_line_that_says_it() {
    let run = |script: &str| {
        let mut command = Command::new("sh");
        tool::run(command.args(["-c", script]), &mut Patience::endless()).unwrap_err().to_string()
    };
    let error = run("echo 'I: Retrieving'; echo 'E: Failed getting release file'; echo umount >&2; exit 1");
    assert_eq!(error, "sh failed (exit status: 1): E: Failed getting release file");
    assert_eq!(run("exit 2"), "sh failed (exit status: 2): it did not say why");
    assert!(run("printf 'a\\033[2Jb\\n'; exit 2").ends_with(": a[2Jb"));
}

#[test]
fn test_a_debian_that_cannot_be_had_is_told_in_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let debian = Debian {
        suite: Some("no-such-suite".to_owned()),
        mirror: Some("file:///no/mirror".to_owned()),
        generic: false,
        include: Vec::new(),
        host_name: "web".to_owned(),
    };
    let content = Content::Debian(&debian);
    let of_size = |size| {
        let wanted = Wanted { content, folder: folder.path(), size, agent: None, with_kernel: true };
        make(&wanted, &mut Patience::endless()).unwrap_err().to_string()
    };
    // Which depends on what is installed.
    let known = ["no Debian suite no-such-suite", "apt install", "mmdebstrap failed", "more or less are needed"];
    let error = of_size(1 << 30);
    assert!(known.iter().any(|known| error.contains(known)) && !error.contains('\n'), "{error}");
    let error = of_size(SIZE);
    assert!(error.contains("say --size") || error.contains("apt install"), "{error}");
}
