//! Ways out of a shared folder on a Linux host that take links, devices or the host's help: what its programs do in the folder
//! while the guest works there, what is mounted in it, and a system that is too old for openat2.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use fuse_abi::linux as fuse;
use fuse_abi::linux::fuse_opcode as code;
use nix::mount::MntFlags;
use nix::mount::MsFlags;
use nix::mount::mount;
use nix::mount::umount2;
use nix::sched::CloneFlags;
use nix::sched::unshare;
use seccompiler::SeccompAction;
use seccompiler::SeccompFilter;

use super::Mapping;
use super::ROOT;
use super::testing::Guest;
use super::testing::O_EXCL;
use super::testing::O_RDONLY;
use super::testing::O_RDWR;
use super::testing::O_TRUNC;
use super::tests;

const EPERM: u16 = 1;
const EACCES: u16 = 13;
const ENOENT: u16 = 2;
const ENOTDIR: u16 = 20;
const EINVAL: u16 = 22;
const EXDEV: u16 = 18;
const S_IFREG: u32 = 0o100_000;
const S_IFIFO: u32 = 0o010_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFBLK: u32 = 0o060_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFSOCK: u32 = 0o140_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFMT: u32 = 0o170_000;

/// How long a race is run, at least and, where the guest does not win once, at most.
const RACE: Duration = Duration::from_millis(1500);
const LONGEST_RACE: Duration = Duration::from_secs(60);

/// A folder that the guest must not reach, and what must stay as it is.
struct Outside(tempfile::TempDir);

impl Outside {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("sub")).unwrap();
        fs::write(folder.path().join("sub/file"), "secret").unwrap();
        fs::set_permissions(folder.path().join("sub/file"), fs::Permissions::from_mode(0o640)).unwrap();
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Panics if the guest was here.
    fn check(&self) {
        for (folder, name) in [("", "sub"), ("sub", "file")] {
            let names: Vec<_> =
                fs::read_dir(self.path().join(folder)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(names, [name], "in {folder:?}");
        }
        let file = self.path().join("sub/file");
        let metadata = file.metadata().unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.uid()), (0o640, nix::unistd::getuid().as_raw()));
        assert_eq!(fs::read(file).unwrap(), b"secret");
    }
}

/// Runs `guest`, which tells whether it won, over and over, for a while, beside what others do over and over. A race that is never won
/// shows nothing.
fn race(mut guest: impl FnMut() -> bool, others: Vec<Box<dyn FnMut() + Send + '_>>) {
    let stop = AtomicBool::new(false);
    let mut won = false;
    thread::scope(|scope| {
        for mut other in others {
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    other();
                }
            });
        }
        let begun = Instant::now();
        while begun.elapsed() < RACE || !won && begun.elapsed() < LONGEST_RACE {
            won |= guest();
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(won, "the guest never won");
}

/// Attack: symbolic links as folders, as files, to what is outside, to what is inside.
#[test]
fn test_attack_links_are_never_followed() {
    let mut guest = Guest::new();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    symlink(outside.path(), guest.path("by-host")).unwrap();
    symlink(outside.path().join("secret"), guest.path("file-by-host")).unwrap();
    let target = outside.path().as_os_str().as_encoded_bytes().to_vec();
    guest.symlink(ROOT, b"by-guest", &target).unwrap();
    guest.symlink(ROOT, b"up", b"..").unwrap();
    guest.symlink(ROOT, b"root", b"/").unwrap();
    guest.symlink(ROOT, b"proc", b"/proc/self/root").unwrap();
    guest.symlink(ROOT, b"loop", b"loop").unwrap();
    for name in ["by-host", "file-by-host", "by-guest", "up", "root", "proc", "loop"] {
        let link = guest.lookup(ROOT, name.as_bytes()).unwrap();
        assert_eq!(link.attr.mode & S_IFMT, S_IFLNK, "{name}");
        let node = link.nodeid;
        assert_eq!(guest.lookup(node, b"secret").err(), Some(ENOTDIR));
        assert_eq!(guest.lookup(node, b"etc").err(), Some(ENOTDIR));
        assert_eq!(guest.open(node, O_RDONLY).err(), Some(EACCES));
        assert_eq!(guest.list(node, 4096, true).err(), Some(ENOTDIR));
        assert_eq!(guest.make_node(node, b"made", S_IFREG | 0o600).err(), Some(ENOTDIR));
        assert_eq!(guest.create(node, b"made", 0o600, O_RDWR).err(), Some(ENOTDIR));
        // Where there is such a name already, nothing is opened behind it.
        assert_eq!(guest.create(ROOT, name.as_bytes(), 0o600, O_RDWR | O_TRUNC).err(), Some(EACCES));
        assert_eq!(guest.change(node, fuse::FATTR_SIZE, |set| set.size = 0).err(), Some(EACCES));
    }
    let by_guest = guest.walk("by-guest").unwrap();
    assert_eq!(guest.send(code::FUSE_READLINK, by_guest, &[]), Ok(target));
    assert_eq!(guest.send(code::FUSE_READLINK, ROOT, &[]), Err(EINVAL));
    // One more name of a link is one of the link.
    let linked = guest.link(by_guest, ROOT, b"linked").unwrap();
    assert_eq!((linked.attr.mode & S_IFMT, linked.attr.nlink), (S_IFLNK, 2));
    if tests::is_root(&guest) {
        guest.change(by_guest, fuse::FATTR_UID, |set| set.uid = 4321).unwrap();
        assert_ne!(outside.path().metadata().unwrap().uid(), 4321);
    }
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    assert_eq!(fs::read(outside.path().join("secret")).unwrap(), b"secret");
}

/// Attack: a folder that the guest knows becomes a link, or moves away, while the guest works in it.
#[test]
fn test_attack_a_folder_becomes_a_link() {
    let mut guest = Guest::new();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    let folder = guest.make_directory(ROOT, b"folder", 0o700).unwrap().nodeid;
    guest.make_node(folder, b"inner", S_IFREG | 0o600).unwrap();
    fs::rename(guest.path("folder"), guest.path("moved")).unwrap();
    symlink(outside.path(), guest.path("folder")).unwrap();
    // It is the folder that it was, wherever that is now.
    assert_eq!(guest.lookup(folder, b"secret").err(), Some(ENOENT));
    assert!(guest.lookup(folder, b"inner").is_ok());
    guest.make_node(folder, b"made", S_IFREG | 0o600).unwrap();
    assert!(guest.path("moved/made").exists());
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
}

/// Attack: the name of a file becomes a link between its look-up and its opening, over and over.
#[test]
fn test_attack_a_race_of_links() {
    let mut guest = Guest::new();
    let outside = tempfile::tempdir().unwrap();
    fs::create_dir(outside.path().join("sub")).unwrap();
    fs::write(outside.path().join("sub/file"), "secret").unwrap();
    fs::create_dir(guest.path("sub")).unwrap();
    fs::write(guest.path("sub/file"), "public").unwrap();
    let (inside, aside) = (guest.path("sub"), guest.path("aside"));
    let (stop, outside_sub) = (AtomicBool::new(false), outside.path().join("sub"));
    let (mut read, mut missed) = (0, 0);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                fs::rename(&inside, &aside).unwrap();
                symlink(&outside_sub, &inside).unwrap();
                fs::remove_file(&inside).unwrap();
                fs::rename(&aside, &inside).unwrap();
            }
        });
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(10) {
            let Ok(node) = guest.walk("sub/file") else {
                missed += 1;
                continue;
            };
            let Ok(handle) = guest.open(node, O_RDWR) else { continue };
            assert_eq!(guest.read(node, handle, 0, 6), Ok(b"public".to_vec()));
            guest.write(node, handle, 0, b"public").unwrap();
            guest.release(code::FUSE_RELEASE, node, handle).unwrap();
            read += 1;
            if read > 500 && missed > 500 {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(read > 0);
    assert_eq!(fs::read(outside.path().join("sub/file")).unwrap(), b"secret");
}

/// Attack: devices are not made, and neither they nor pipes are opened, which would wait for somebody.
#[test]
fn test_attack_devices_and_pipes() {
    let mut guest = Guest::new();
    for kind in [S_IFCHR, S_IFBLK, S_IFLNK, S_IFDIR, S_IFMT] {
        assert_eq!(guest.make_node(ROOT, b"device", kind | 0o666).err(), Some(EPERM), "{kind:o}");
    }
    for (name, kind) in [(&b"pipe"[..], S_IFIFO), (b"socket", S_IFSOCK)] {
        let made = guest.make_node(ROOT, name, kind | 0o666).unwrap();
        assert_eq!(made.attr.mode, kind | 0o666);
        for flags in [O_RDONLY, O_RDWR] {
            assert_eq!(guest.open(made.nodeid, flags).err(), Some(EACCES));
            assert_eq!(guest.create(ROOT, name, 0o600, flags).err(), Some(EACCES));
        }
        assert_eq!(guest.change(made.nodeid, fuse::FATTR_SIZE, |set| set.size = 0).err(), Some(EACCES));
    }
    let device = std::ffi::CString::new(guest.path("null").to_str().unwrap()).unwrap();
    if nix::sys::stat::mknod(
        device.as_c_str(),
        nix::sys::stat::SFlag::S_IFCHR,
        nix::sys::stat::Mode::from_bits_truncate(0o666),
        nix::sys::stat::makedev(1, 3),
    )
    .is_ok()
    {
        let node = guest.walk("null").unwrap();
        assert_eq!(guest.open(node, O_RDWR).err(), Some(EACCES));
        assert_eq!(guest.attributes(node).unwrap().rdev, 0);
    }
    assert!(!guest.path("device").exists());
}

/// Attack: programs that run with root's rights on the host.
#[test]
fn test_attack_programs_with_their_owners_rights() {
    let mut guest = Guest::new();
    let (node, _) = guest.create(ROOT, b"program", 0o6755, O_RDWR).unwrap();
    let mode = |guest: &Guest| guest.path("program").metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&guest), 0o755);
    guest.change(node, fuse::FATTR_MODE, |set| set.mode = 0o4755).unwrap();
    assert_eq!(mode(&guest), 0o755);
    // One of the host's keeps its right until the guest may change what it does.
    fs::set_permissions(guest.path("program"), fs::Permissions::from_mode(0o4755)).unwrap();
    guest.open(node, O_RDONLY).unwrap();
    assert_eq!(mode(&guest), 0o4755);
    guest.open(node, O_RDWR).unwrap();
    assert_eq!(mode(&guest), 0o755);
    // The folder's group for what is made in it runs nothing.
    assert_eq!(guest.make_directory(ROOT, b"folder", 0o2755).unwrap().attr.mode & 0o7777, 0o2755);

    let mut trusted = Guest::with(false, Mapping { suid: true, ..Mapping::default() });
    trusted.create(ROOT, b"program", 0o4755, O_RDWR).unwrap();
    assert_eq!(mode(&trusted), 0o4755);
}

/// Attack: folder and link change places, by the host and by another part of the guest, while the guest makes, changes and takes away
/// files behind the name.
#[test]
fn test_attack_a_race_of_changes() {
    let outside = Outside::new();
    let mut guest = Guest::new();
    // Each share has a thread, so that two of the same folder work at the same time.
    let mut other = Guest::beside(&guest);
    fs::create_dir(guest.path("sub")).unwrap();
    let (name, aside, target) = (guest.path("sub"), guest.path("aside"), outside.path().join("sub"));
    let by_host = || {
        // The other part of the guest may have been there first.
        let _ = fs::rename(&name, &aside);
        let _ = symlink(&target, &name);
        let _ = fs::remove_file(&name);
        let _ = fs::rename(&aside, &name);
        let _ = fs::create_dir(&name);
    };
    let target = target.to_str().unwrap().as_bytes().to_vec();
    let by_guest = move || {
        let _ = other.rename((ROOT, b"sub"), (ROOT, b"gone"), 0);
        let _ = other.symlink(ROOT, b"sub", &target);
        let _ = other.unlink(ROOT, b"sub");
        let _ = other.rename((ROOT, b"gone"), (ROOT, b"sub"), 0);
    };
    let work = || {
        let mut there = false;
        let Ok(node) = guest.walk("sub") else { return there };
        if let Ok((file, handle)) = guest.create(node, b"file", 0o666, O_RDWR) {
            guest.write(file, handle, 0, b"guest").unwrap();
            let _ = guest.change(file, fuse::FATTR_MODE | fuse::FATTR_UID, |set| (set.mode, set.uid) = (0o777, 4321));
            guest.release(code::FUSE_RELEASE, file, handle).unwrap();
            there = true;
        }
        let _ = guest.make_directory(node, b"folder", 0o777);
        let _ = guest.make_node(node, b"node", S_IFREG | 0o666);
        let _ = guest.symlink(node, b"link", b"file");
        if let Ok(made) = guest.lookup(node, b"node") {
            let _ = guest.link(made.nodeid, node, b"linked");
        }
        let _ = guest.rename((node, b"node"), (node, b"renamed"), 0);
        for name in [&b"file"[..], b"linked", b"link", b"renamed"] {
            let _ = guest.unlink(node, name);
        }
        let _ = guest.send(code::FUSE_RMDIR, node, &[b"folder\0"]);
        there
    };
    race(work, vec![Box::new(by_host), Box::new(by_guest)]);
    outside.check();
}

/// Attack: the host puts another name of a file of its own in the place of one that the guest makes.
#[test]
fn test_attack_a_race_of_names() {
    let outside = Outside::new();
    let mut guest = Guest::new();
    let (secret, name) = (outside.path().join("sub/file"), guest.path("name"));
    let by_host = || {
        let _ = fs::remove_file(&name);
        let _ = fs::hard_link(&secret, &name);
    };
    let work = || {
        let mut made = guest.make_node(ROOT, b"name", S_IFREG | 0o666).is_ok();
        let _ = guest.unlink(ROOT, b"name");
        if let Ok((node, handle)) = guest.create(ROOT, b"name", 0o666, O_RDONLY | O_EXCL) {
            guest.release(code::FUSE_RELEASE, node, handle).unwrap();
            made = true;
        }
        let _ = guest.unlink(ROOT, b"name");
        made
    };
    race(work, vec![Box::new(by_host)]);
    outside.check();
}

/// Attack: a folder that the host moves out of the shared one leads no further than it did.
#[test]
fn test_attack_a_folder_moves_out() {
    let outside = Outside::new();
    let mut guest = Guest::new();
    let folder = guest.make_directory(ROOT, b"folder", 0o700).unwrap().nodeid;
    let below = guest.make_directory(folder, b"below", 0o700).unwrap().nodeid;
    fs::rename(guest.path("folder"), outside.path().join("moved")).unwrap();
    for node in [folder, below] {
        assert_eq!(guest.lookup(node, b"..").err(), Some(EINVAL));
        assert_eq!(guest.lookup(node, b"sub").err(), Some(ENOENT));
        assert!(
            guest
                .list(node, 4096, true)
                .unwrap()
                .iter()
                .all(|(name, node)| name != "sub" && (name != ".." || *node == 0))
        );
    }
    // It is what the guest had, and may be brought back.
    guest.rename((folder, b"below"), (ROOT, b"back"), 0).unwrap();
    assert_eq!(guest.walk("back"), Ok(below));
    fs::remove_dir(outside.path().join("moved")).unwrap();
    outside.check();
}

/// Attack: the links of `/proc` lead to other places without any path.
#[test]
fn test_attack_magic_links() {
    let mut guest = Guest::of(Path::new("/proc/self"), true, Mapping::default());
    for name in ["root", "cwd", "exe", "fd/0"] {
        let node = guest.walk(name).unwrap();
        assert_eq!(guest.attributes(node).unwrap().mode & S_IFMT, S_IFLNK, "{name}");
        assert_eq!(guest.open(node, O_RDONLY).err(), Some(EACCES), "{name}");
        assert_eq!(guest.lookup(node, b"etc").err(), Some(ENOTDIR), "{name}");
        assert_eq!(guest.list(node, 4096, true).err(), Some(ENOTDIR), "{name}");
    }
    assert_eq!(guest.walk("root/etc").err(), Some(ENOTDIR));
}

/// Runs `work` where what it mounts is seen by nobody else; not at all where nothing can be mounted, or what is mounted could be seen:
/// in a changed root that is no mount of its own.
fn with_mounts(work: impl FnOnce() + Send) {
    let there = || {
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        let apart = unshare(CloneFlags::CLONE_NEWNS)
            .and_then(|()| mount(None::<&str>, "/", None::<&str>, private, None::<&str>));
        match apart {
            Ok(()) => work(),
            Err(error) => eprintln!("nothing is mounted here: {error}"),
        }
    };
    thread::scope(|scope| scope.spawn(there).join().unwrap());
}

fn memory(at: &Path) {
    mount(Some("none"), at, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
}

/// What is mounted in the folder is part of it, and no way out.
#[test]
fn test_attack_other_file_systems_in_the_folder() {
    with_mounts(|| {
        let mut guest = Guest::new();
        let folder = guest.make_directory(ROOT, b"folder", 0o700).unwrap().nodeid;
        guest.make_node(folder, b"below", S_IFREG | 0o600).unwrap();
        memory(&guest.path("folder"));
        fs::write(guest.path("folder/above"), "above").unwrap();
        // What the guest has is what it was; by its name it finds the other.
        assert!(guest.lookup(folder, b"below").is_ok());
        let mounted = guest.walk("folder").unwrap();
        assert_ne!(mounted, folder);
        assert_eq!(guest.lookup(mounted, b"..").err(), Some(EINVAL));
        assert_eq!(guest.lookup(mounted, b"below").err(), Some(ENOENT));
        let above = guest.walk("folder/above").unwrap();
        assert_ne!(guest.attributes(mounted).unwrap().ino, guest.attributes(folder).unwrap().ino);
        assert_eq!(guest.rename((mounted, b"above"), (ROOT, b"here"), 0), Err(EXDEV));
        assert_eq!(guest.link(above, ROOT, b"here").err(), Some(EXDEV));
        // It goes while the guest works in it.
        umount2(&guest.path("folder"), MntFlags::MNT_DETACH).unwrap();
        let handle = guest.open(above, O_RDONLY).unwrap();
        assert_eq!(guest.read(above, handle, 0, 10), Ok(b"above".to_vec()));
        assert_eq!(guest.walk("folder"), Ok(folder));
    });
}

/// Runs `work` where there is no openat2, as before Linux 5.6.
fn without_openat2(work: impl FnOnce() + Send) {
    let there = || {
        let refused = SeccompAction::Errno(u32::try_from(libc::ENOSYS).unwrap());
        let calls = BTreeMap::from([(libc::SYS_openat2, Vec::new())]);
        let architecture = std::env::consts::ARCH.try_into().unwrap();
        let filter = SeccompFilter::new(calls, SeccompAction::Allow, refused, architecture).unwrap();
        let filter: seccompiler::BpfProgram = filter.try_into().unwrap();
        seccompiler::apply_filter(&filter).unwrap();
        let how = rustix::fs::openat2(
            rustix::fs::CWD,
            c"/",
            rustix::fs::OFlags::PATH,
            rustix::fs::Mode::empty(),
            rustix::fs::ResolveFlags::empty(),
        );
        assert_eq!(how.unwrap_err(), rustix::io::Errno::NOSYS);
        work();
    };
    thread::scope(|scope| scope.spawn(there).join().unwrap());
}

/// The guest works and gets no further on a system without openat2.
#[test]
fn test_attacks_before_linux_5_6() {
    without_openat2(|| {
        tests::test_files_are_made_written_read_and_taken_away();
        tests::test_folders_are_made_listed_and_taken_away();
        tests::test_names_move_and_multiply();
        tests::test_attack_names_that_lead_out();
        test_attack_links_are_never_followed();
        test_attack_a_folder_becomes_a_link();
        test_attack_devices_and_pipes();
        test_attack_a_race_of_changes();
        test_attack_a_folder_moves_out();
        test_attack_magic_links();
    });
}
