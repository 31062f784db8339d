use std::fs;
#[cfg(target_os = "linux")]
use std::os::unix::fs::MetadataExt;
#[cfg(target_os = "linux")]
use std::os::unix::fs::PermissionsExt;

use fuse_abi::linux as fuse;
use fuse_abi::linux::fuse_opcode as code;
use proptest::prelude::*;
use zerocopy::FromBytes;
use zerocopy::FromZeros;
use zerocopy::IntoBytes;

use super::testing::Guest;
use super::testing::O_EXCL;
use super::testing::O_RDONLY;
use super::testing::O_RDWR;
use super::testing::O_TRUNC;
use super::testing::message;
use super::*;

/// Types in a mode.
const S_IFREG: u32 = 0o100_000;
const S_IFDIR: u32 = 0o040_000;

/// Errors by their numbers in Linux.
const EPERM: u16 = 1;
const ENOENT: u16 = 2;
const EIO: u16 = 5;
const EBADF: u16 = 9;
const EEXIST: u16 = 17;
const EISDIR: u16 = 21;
const EINVAL: u16 = 22;
const EROFS: u16 = 30;
const ERANGE: u16 = 34;
const ENAMETOOLONG: u16 = 36;
const ENOSYS: u16 = 38;
const ENOTEMPTY: u16 = 39;
const ENODATA: u16 = 61;
const EPROTO: u16 = 71;
const EOPNOTSUPP: u16 = 95;
const ESTALE: u16 = 116;

/// Whether tests run as root, who alone may give files away.
#[cfg(target_os = "linux")]
pub(super) fn is_root(guest: &Guest) -> bool {
    guest.folder.path().metadata().unwrap().uid() == 0
}

/// The permissions that a file has that is given these: on Windows hosts they are kept by some file systems only, and are else
/// those of all files.
fn kept(guest: &mut Guest, mode: u32) -> u32 {
    let probe = guest.make_directory(ROOT, b"probe", 0o700).unwrap();
    guest.send(code::FUSE_RMDIR, ROOT, &[b"probe\0"]).unwrap();
    let keeps = probe.attr.mode == S_IFDIR | 0o700;
    assert!(keeps || cfg!(windows));
    if keeps { mode } else { 0o755 }
}

/// The part of a second that a time has that is given this one.
fn part(nanoseconds: u32) -> u32 {
    if cfg!(windows) { nanoseconds / 100 * 100 } else { nanoseconds }
}

#[test]
pub(super) fn test_files_are_made_written_read_and_taken_away() {
    let mut guest = Guest::new();
    let (node, handle) = guest.create(ROOT, b"file", 0o640, O_RDWR | O_EXCL).unwrap();
    assert_eq!(guest.write(node, handle, 3, b"abc"), Ok(3));
    assert_eq!(fs::read(guest.path("file")).unwrap(), b"\0\0\0abc");
    #[cfg(target_os = "linux")]
    assert_eq!(guest.path("file").metadata().unwrap().permissions().mode() & 0o7777, 0o640);
    assert_eq!(guest.attributes(node).unwrap().mode, S_IFREG | kept(&mut guest, 0o640));
    assert_eq!(guest.read(node, handle, 2, 100), Ok(b"\0abc".to_vec()));
    assert_eq!(guest.read(node, handle, 6, 100), Ok(Vec::new()));
    assert_eq!(guest.read(node, handle, u64::MAX, 1), Err(EINVAL));
    assert_eq!(guest.attributes(node).unwrap().size, 6);
    assert_eq!(guest.create(ROOT, b"file", 0o600, O_RDWR | O_EXCL), Err(EEXIST));
    // Without O_EXCL it is the same file, emptied if that is asked for.
    let (again, other) = guest.create(ROOT, b"file", 0o600, O_RDWR | O_TRUNC).unwrap();
    assert_eq!((again, guest.attributes(node).unwrap().size), (node, 0));
    for handle in [handle, other] {
        assert_eq!(guest.release(code::FUSE_RELEASE, node, handle), Ok(Vec::new()));
    }
    assert_eq!(guest.read(node, handle, 0, 1), Err(EBADF));
    assert_eq!(guest.unlink(ROOT, b"file"), Ok(Vec::new()));
    assert_eq!(guest.unlink(ROOT, b"file"), Err(ENOENT));
    assert!(!guest.path("file").exists());
}

#[test]
fn test_an_open_file_outlives_its_name() {
    let mut guest = Guest::new();
    let (node, handle) = guest.create(ROOT, b"file", 0o600, O_RDWR).unwrap();
    guest.unlink(ROOT, b"file").unwrap();
    assert_eq!(guest.write(node, handle, 0, b"x"), Ok(1));
    assert_eq!(guest.read(node, handle, 0, 1), Ok(b"x".to_vec()));
    assert_eq!(guest.attributes(node).unwrap().nlink, 0);
}

#[test]
fn test_what_the_host_does_is_seen() {
    let mut guest = Guest::new();
    assert_eq!(guest.lookup(ROOT, b"new").err(), Some(ENOENT));
    fs::write(guest.path("new"), "12345").unwrap();
    let node = guest.walk("new").unwrap();
    assert_eq!(guest.attributes(node).unwrap().size, 5);
    fs::write(guest.path("new"), "1").unwrap();
    assert_eq!(guest.attributes(node).unwrap().size, 1);
}

#[test]
pub(super) fn test_folders_are_made_listed_and_taken_away() {
    let mut guest = Guest::new();
    let folder = guest.make_directory(ROOT, b"folder", 0o750).unwrap();
    assert_eq!(folder.attr.mode, S_IFDIR | kept(&mut guest, 0o750));
    for number in 0..100 {
        guest.make_node(folder.nodeid, format!("file{number}").as_bytes(), S_IFREG | 0o600).unwrap();
    }
    for (size, plus) in [(200, false), (400, true), (65536, false), (65536, true)] {
        let mut entries = guest.list(folder.nodeid, size, plus).unwrap();
        entries.sort();
        assert_eq!(entries.len(), 102, "{size} {plus}");
        let (own, others): (Vec<_>, Vec<_>) = entries.into_iter().partition(|(name, _)| name.starts_with('.'));
        assert_eq!(own, [(".".to_owned(), 0), ("..".to_owned(), 0)]);
        for (name, node) in others {
            let known = guest.lookup(folder.nodeid, name.as_bytes()).unwrap().nodeid;
            assert_eq!(node, if plus { known } else { 0 });
        }
    }
    // Without room for one entry there is no end to see.
    assert_eq!(guest.list(folder.nodeid, 16, false), Err(EINVAL));
    assert_eq!(guest.send(code::FUSE_RMDIR, ROOT, &[b"folder\0"]), Err(ENOTEMPTY));
    for number in 0..100 {
        guest.unlink(folder.nodeid, format!("file{number}").as_bytes()).unwrap();
    }
    assert_eq!(guest.unlink(ROOT, b"folder"), Err(EISDIR));
    assert_eq!(guest.send(code::FUSE_RMDIR, ROOT, &[b"folder\0"]), Ok(Vec::new()));
}

#[test]
pub(super) fn test_names_move_and_multiply() {
    let mut guest = Guest::new();
    let folder = guest.make_directory(ROOT, b"folder", 0o700).unwrap().nodeid;
    let a = guest.make_node(ROOT, b"a", S_IFREG | 0o600).unwrap().nodeid;
    let b = guest.make_node(ROOT, b"b", S_IFREG | 0o600).unwrap().nodeid;
    guest.rename((ROOT, b"a"), (folder, b"moved"), 0).unwrap();
    assert!(guest.path("folder/moved").exists() && !guest.path("a").exists());
    assert_eq!(guest.walk("folder/moved"), Ok(a));
    assert_eq!(guest.rename((ROOT, b"b"), (folder, b"moved"), 1), Err(EEXIST));
    if cfg!(windows) {
        assert_eq!(guest.rename((ROOT, b"b"), (folder, b"moved"), 2), Err(EINVAL));
        assert_eq!((guest.walk("b"), guest.walk("folder/moved")), (Ok(b), Ok(a)));
    } else {
        guest.rename((ROOT, b"b"), (folder, b"moved"), 2).unwrap();
        assert_eq!((guest.walk("b"), guest.walk("folder/moved")), (Ok(a), Ok(b)));
    }
    assert_eq!(guest.rename((ROOT, b"b"), (folder, b"moved"), 4), Err(EINVAL));
    // A folder does not move into itself.
    assert_eq!(guest.rename((ROOT, b"folder"), (folder, b"in"), 0), Err(EINVAL));
    let linked = guest.link(a, folder, b"link").unwrap();
    assert_eq!((linked.nodeid, linked.attr.nlink), (a, 2));
    assert_eq!(guest.link(folder, ROOT, b"no").err(), Some(EPERM));
    let old = fuse::fuse_rename_in { newdir: ROOT };
    guest.send(code::FUSE_RENAME, folder, &[old.as_bytes(), b"link\0last\0"]).unwrap();
    assert_eq!(guest.walk("last"), Ok(a));
}

#[test]
fn test_what_is_about_a_file_can_be_changed() {
    let mut guest = Guest::new();
    let node = guest.make_node(ROOT, b"file", S_IFREG | 0o600).unwrap().nodeid;
    let changed = guest.change(node, fuse::FATTR_MODE, |set| set.mode = S_IFREG | 0o751).unwrap();
    assert_eq!(changed.mode & 0o7777, kept(&mut guest, 0o751));
    assert_eq!(guest.change(node, fuse::FATTR_SIZE, |set| set.size = 5000).unwrap().size, 5000);
    assert_eq!(guest.change(node, fuse::FATTR_SIZE, |set| set.size = u64::MAX).err(), Some(EINVAL));
    let times = guest.change(node, fuse::FATTR_ATIME | fuse::FATTR_MTIME, |set| {
        (set.atime, set.atimensec) = (1_000_000, 7);
        (set.mtime, set.mtimensec) = ((-5_i64).cast_unsigned(), 999_999_999);
    });
    let times = times.unwrap();
    assert_eq!((times.atime, times.atimensec, times.mtimensec), (1_000_000, part(7), part(999_999_999)));
    assert_eq!(times.mtime.cast_signed(), -5);
    assert_eq!(guest.change(node, fuse::FATTR_ATIME, |set| set.atimensec = 1_000_000_000).err(), Some(EINVAL));
    let now = guest.change(node, fuse::FATTR_MTIME | fuse::FATTR_MTIME_NOW, |_| ()).unwrap();
    assert!(now.mtime > 1_600_000_000 && now.mtime < u64::from(u32::MAX) * 2);
    #[cfg(target_os = "linux")]
    if is_root(&guest) {
        let owned = guest.change(node, fuse::FATTR_UID | fuse::FATTR_GID, |set| (set.uid, set.gid) = (1234, 99));
        assert_eq!(owned.map(|attr| (attr.uid, attr.gid)), Ok((1234, 99)));
        let metadata = guest.path("file").metadata().unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (1234, 99));
    }
    assert_eq!(guest.change(node, fuse::FATTR_UID, |set| set.uid = u32::MAX).err(), Some(EINVAL));
    if cfg!(windows) {
        return;
    }
    let link = guest.symlink(ROOT, b"link", b"file").unwrap().nodeid;
    assert_eq!(guest.change(link, fuse::FATTR_MODE, |set| set.mode = 0o777).err(), Some(EOPNOTSUPP));
    assert!(guest.change(link, fuse::FATTR_MTIME, |set| set.mtime = 17).is_ok_and(|attr| attr.mtime == 17));
    assert_ne!(guest.attributes(node).unwrap().mtime, 17);
}

#[test]
fn test_holes_room_and_storage() {
    let mut guest = Guest::new();
    let (node, handle) = guest.create(ROOT, b"file", 0o600, O_RDWR).unwrap();
    let mut allocate = fuse::fuse_fallocate_in::new_zeroed();
    (allocate.fh, allocate.length) = (handle, 8192);
    guest.send(code::FUSE_FALLOCATE, node, &[allocate.as_bytes()]).unwrap();
    assert_eq!(guest.attributes(node).unwrap().size, 8192);
    allocate.mode = 0x80;
    assert_eq!(guest.send(code::FUSE_FALLOCATE, node, &[allocate.as_bytes()]), Err(EOPNOTSUPP));
    let mut seek = fuse::fuse_lseek_in::new_zeroed();
    (seek.fh, seek.whence) = (handle, 4);
    let found: fuse::fuse_lseek_out = guest.ask(code::FUSE_LSEEK, node, &[seek.as_bytes()]).unwrap();
    assert!(found.offset <= 8192);
    seek.whence = 0;
    assert_eq!(guest.send(code::FUSE_LSEEK, node, &[seek.as_bytes()]), Err(EINVAL));
    let room: fuse::fuse_statfs_out = guest.ask(code::FUSE_STATFS, node, &[]).unwrap();
    assert!(room.st.blocks > 0 && room.st.namelen >= 255);
    for flags in [0, 1] {
        let sync = fuse::fuse_fsync_in { fh: handle, fsync_flags: flags, padding: 0 };
        assert_eq!(guest.send(code::FUSE_FSYNC, node, &[sync.as_bytes()]), Ok(Vec::new()));
    }
    let flush = fuse::fuse_flush_in { fh: handle, unused: 0, padding: 0, lock_owner: 0 };
    assert_eq!(guest.send(code::FUSE_FLUSH, node, &[flush.as_bytes()]), Ok(Vec::new()));
    assert_eq!(guest.send(code::FUSE_SYNCFS, ROOT, &[&[0; 8]]), Ok(Vec::new()));
}

#[test]
fn test_own_attributes_and_no_others() {
    let mut guest = Guest::new();
    let node = guest.make_node(ROOT, b"file", S_IFREG | 0o600).unwrap().nodeid;
    let set = |guest: &mut Guest, node, name: &[u8], value: &[u8], flags: u32| {
        let sizes = [u32::try_from(value.len()).unwrap(), flags];
        guest.send(code::FUSE_SETXATTR, node, &[sizes.as_bytes(), name, b"\0", value])
    };
    let get = |guest: &mut Guest, name: &[u8], size: u32| {
        let get = fuse::fuse_getxattr_in { size, padding: 0 };
        guest.send(code::FUSE_GETXATTR, node, &[get.as_bytes(), name, b"\0"])
    };
    for name in [&b"security.capability"[..], b"trusted.x", b"system.posix_acl_access", b"users"] {
        assert_eq!(set(&mut guest, node, name, b"1", 0), Err(EOPNOTSUPP));
        assert_eq!(get(&mut guest, name, 10), Err(EOPNOTSUPP));
    }
    if set(&mut guest, node, b"user.x", b"value", 0) == Err(EOPNOTSUPP) {
        // The temporary folder's file system has none.
        return;
    }
    assert_eq!(set(&mut guest, node, b"user.x", b"value", 1), Err(EEXIST));
    assert_eq!(set(&mut guest, node, b"user.x", b"value", 4), Err(EINVAL));
    assert_eq!(get(&mut guest, b"user.x", 10), Ok(b"value".to_vec()));
    assert_eq!(get(&mut guest, b"user.x", 2), Err(ERANGE));
    assert_eq!(get(&mut guest, b"user.x", 0).unwrap()[..4], 5_u32.to_le_bytes());
    assert_eq!(get(&mut guest, b"user.none", 10), Err(ENODATA));
    let list = fuse::fuse_getxattr_in { size: 100, padding: 0 };
    assert_eq!(guest.send(code::FUSE_LISTXATTR, node, &[list.as_bytes()]), Ok(b"user.x\0".to_vec()));
    assert_eq!(guest.send(code::FUSE_REMOVEXATTR, node, &[b"user.x\0"]), Ok(Vec::new()));
    let link = guest.symlink(ROOT, b"link", b"file").unwrap().nodeid;
    assert_eq!(set(&mut guest, link, b"user.x", b"value", 0), Err(EOPNOTSUPP));
}

/// Attack: names that are paths, or no names.
#[test]
pub(super) fn test_attack_names_that_lead_out() {
    let mut guest = Guest::new();
    let folder = guest.make_directory(ROOT, b"folder", 0o700).unwrap().nodeid;
    let long = [b'x'; 256];
    let bad: [(&[u8], u16); 8] = [
        (b"..", EINVAL),
        (b".", EINVAL),
        (b"", ENOENT),
        (b"../x", EINVAL),
        (b"/etc", EINVAL),
        (b"folder/..", EINVAL),
        (b"a/b", EINVAL),
        (&long, ENAMETOOLONG),
    ];
    for (name, error) in bad {
        for parent in [ROOT, folder] {
            assert_eq!(guest.lookup(parent, name).err(), Some(error), "{name:?}");
            assert_eq!(guest.create(parent, name, 0o600, O_RDWR).err(), Some(error));
            assert_eq!(guest.make_directory(parent, name, 0o700).err(), Some(error));
            assert_eq!(guest.make_node(parent, name, S_IFREG).err(), Some(error));
            assert_eq!(guest.symlink(parent, name, b"x").err(), Some(error));
            assert_eq!(guest.unlink(parent, name), Err(error));
            assert_eq!(guest.send(code::FUSE_RMDIR, parent, &[name, b"\0"]), Err(error));
            assert_eq!(guest.rename((ROOT, b"folder"), (parent, name), 0), Err(error));
            assert_eq!(guest.rename((parent, name), (ROOT, b"x"), 0), Err(error));
            assert_eq!(guest.link(folder, parent, name).err(), Some(error));
        }
    }
    // Names without their ends, or with something behind these.
    assert_eq!(guest.send(code::FUSE_LOOKUP, ROOT, &[b"folder"]), Err(EINVAL));
    assert_eq!(guest.send(code::FUSE_LOOKUP, ROOT, &[b"folder\0x\0"]), Err(EINVAL));
    assert_eq!(guest.send(code::FUSE_LOOKUP, ROOT, &[]), Err(EINVAL));
    assert_eq!(guest.list(ROOT, 4096, false).unwrap().len(), 3);
}

#[test]
fn test_files_are_shown_as_somebodys() {
    let mut guest = Guest::with(false, Mapping { uid: Some(1000), gid: Some(100), suid: false });
    let made = guest.make_node(ROOT, b"file", S_IFREG | 0o600).unwrap();
    assert_eq!((made.attr.uid, made.attr.gid), (1000, 100));
    #[cfg(target_os = "linux")]
    {
        // On the host they are whose the folder is.
        let (file, folder) = (guest.path("file").metadata().unwrap(), guest.folder.path().metadata().unwrap());
        assert_eq!((file.uid(), file.gid()), (folder.uid(), folder.gid()));
    }
    assert!(guest.change(made.nodeid, fuse::FATTR_UID, |set| set.uid = 1000).is_ok());
    assert_eq!(guest.change(made.nodeid, fuse::FATTR_UID, |set| set.uid = 0).err(), Some(EPERM));
    assert_eq!(guest.change(made.nodeid, fuse::FATTR_GID, |set| set.gid = 0).err(), Some(EPERM));
}

#[test]
fn test_attack_a_folder_that_is_only_read() {
    let mut guest = Guest::with(true, Mapping::default());
    fs::write(guest.path("file"), "text").unwrap();
    fs::create_dir(guest.path("folder")).unwrap();
    let (file, folder) = (guest.walk("file").unwrap(), guest.walk("folder").unwrap());
    let handle = guest.open(file, O_RDONLY).unwrap();
    assert_eq!(guest.read(file, handle, 0, 10), Ok(b"text".to_vec()));
    assert_eq!(guest.list(ROOT, 4096, true).unwrap().len(), 4);
    let mut allocate = fuse::fuse_fallocate_in::new_zeroed();
    (allocate.fh, allocate.length) = (handle, 10);
    let refused = [
        guest.open(file, O_RDWR).err(),
        guest.open(file, 1).err(),
        guest.open(file, O_RDONLY | O_TRUNC).err(),
        guest.write(file, handle, 0, b"x").err(),
        guest.create(ROOT, b"file", 0o600, O_RDONLY).err(),
        guest.make_directory(ROOT, b"x", 0o700).err(),
        guest.make_node(ROOT, b"x", S_IFREG).err(),
        guest.symlink(ROOT, b"x", b"y").err(),
        guest.link(file, ROOT, b"x").err(),
        guest.unlink(ROOT, b"file").err(),
        guest.rename((ROOT, b"file"), (folder, b"x"), 0).err(),
        guest.send(code::FUSE_RMDIR, ROOT, &[b"folder\0"]).err(),
        guest.change(file, fuse::FATTR_MODE, |set| set.mode = 0o777).err(),
        guest.change(file, 0, |_| ()).err(),
        guest.send(code::FUSE_FALLOCATE, file, &[allocate.as_bytes()]).err(),
        guest.send(code::FUSE_SETXATTR, file, &[&[0; 8], b"user.x\0"]).err(),
        guest.send(code::FUSE_REMOVEXATTR, file, &[b"user.x\0"]).err(),
    ];
    for (number, refused) in refused.into_iter().enumerate() {
        assert_eq!(refused, Some(EROFS), "{number}");
    }
    assert_eq!(fs::read(guest.path("file")).unwrap(), b"text");
}

/// Attack: numbers that were never given, or not for this.
#[test]
fn test_attack_numbers_that_are_not_the_guests() {
    let mut guest = Guest::new();
    let node = guest.make_node(ROOT, b"file", S_IFREG | 0o600).unwrap().nodeid;
    let handle = guest.open(node, O_RDONLY).unwrap();
    for bad in [0, node + 1, u64::MAX] {
        assert_eq!(guest.attributes(bad).err(), Some(ESTALE));
        assert_eq!(guest.lookup(bad, b"file").err(), Some(ESTALE));
        assert_eq!(guest.open(bad, O_RDONLY).err(), Some(ESTALE));
        assert_eq!(guest.rename((ROOT, b"file"), (bad, b"x"), 0), Err(ESTALE));
        assert_eq!(guest.link(bad, ROOT, b"x").err(), Some(ESTALE));
    }
    assert_eq!(guest.read(node, handle + 1, 0, 1), Err(EBADF));
    // A file's handle is no folder's.
    assert_eq!(guest.read_by(code::FUSE_READDIR, node, handle, 0, 4096), Err(EBADF));
    assert_eq!(guest.write(node, handle, 0, b"x"), Err(EBADF), "opened for reading only");
    // Closing twice closes once.
    guest.release(code::FUSE_RELEASE, node, handle).unwrap();
    guest.release(code::FUSE_RELEASE, node, handle).unwrap();
    // The guest forgets more than it knew, also the folder itself.
    for node in [node, ROOT] {
        let forget = fuse::fuse_forget_in { nlookup: u64::MAX };
        let mut answer = vec![1];
        guest.server.serve(&message(2, 1, node, &[forget.as_bytes()]), 0, &mut answer).unwrap();
        assert!(answer.is_empty());
    }
    assert_eq!(guest.attributes(node).err(), Some(ESTALE));
    assert!(guest.attributes(ROOT).is_ok());
}

#[test]
fn test_many_are_forgotten_at_once() {
    let mut guest = Guest::new();
    let nodes = [b"a", b"b", b"c"].map(|name| guest.make_node(ROOT, name, S_IFREG | 0o600).unwrap().nodeid);
    let batch = fuse::fuse_batch_forget_in { count: 2, dummy: 0 };
    let ones = [[nodes[0], 1], [nodes[1], 1]];
    let mut answer = Vec::new();
    let forget = message(code::FUSE_BATCH_FORGET as u32, 1, 0, &[batch.as_bytes(), ones.as_bytes()]);
    guest.server.serve(&forget, 0, &mut answer).unwrap();
    let known = nodes.map(|node| guest.attributes(node).is_ok());
    assert_eq!(known, [false, false, true]);
    // A count that lies is no message; there is no room for saying so.
    let batch = fuse::fuse_batch_forget_in { count: u32::MAX, dummy: 0 };
    let lie = message(code::FUSE_BATCH_FORGET as u32, 1, 0, &[batch.as_bytes(), ones.as_bytes()]);
    assert_eq!(guest.server.serve(&lie, 0, &mut answer), Err(NoRoom));
}

#[test]
fn test_a_guest_has_to_begin() {
    let mut guest = Guest::new();
    let node = guest.make_node(ROOT, b"file", S_IFREG | 0o600).unwrap().nodeid;
    let mut init = fuse::fuse_init_in::new_zeroed();
    for (major, minor) in [(6, 38), (8, 0), (7, 30)] {
        (init.major, init.minor) = (major, minor);
        assert_eq!(guest.send(code::FUSE_INIT, 0, &[init.as_bytes()]), Err(EPROTO));
    }
    guest.send(code::FUSE_DESTROY, 0, &[]).unwrap();
    assert_eq!(guest.attributes(ROOT).err(), Some(EIO));
    guest.begin();
    assert!(guest.attributes(ROOT).is_ok());
    assert_eq!(guest.attributes(node).err(), Some(ESTALE));
}

#[test]
fn test_attack_messages_that_are_none() {
    let mut guest = Guest::new();
    let mut answer = Vec::new();
    assert_eq!(guest.server.serve(&[], 16, &mut answer), Ok(()));
    assert_eq!(answer[4..8], (-5_i32).to_le_bytes());
    assert_eq!(guest.server.serve(&[0; 39], 15, &mut answer), Err(NoRoom));
    // Lengths that lie.
    let mut lie = message(code::FUSE_STATFS as u32, 7, ROOT, &[]);
    lie[0] += 1;
    guest.server.serve(&lie, 4096, &mut answer).unwrap();
    let header = fuse::fuse_out_header::read_from_bytes(&answer).unwrap();
    assert_eq!((header.error, header.unique), (-i32::from(EIO), 7));
    // What there is no room to answer is not done.
    let make = fuse::fuse_mkdir_in { mode: 0o700, umask: 0 };
    let no_room = message(code::FUSE_MKDIR as u32, 8, ROOT, &[make.as_bytes(), b"folder\0"]);
    guest.server.serve(&no_room, 16 + 127, &mut answer).unwrap();
    assert_eq!(answer[4..8], (-i32::from(ERANGE)).to_le_bytes());
    assert!(!guest.path("folder").exists());
    for unknown in [0, 7, 19, 31, 47, 49, 52, 4096, u32::MAX] {
        assert_eq!(guest.send_raw(unknown, ROOT, &[&[0; 64]]), Err(ENOSYS), "{unknown}");
    }
    let mut write = fuse::fuse_write_in::new_zeroed();
    write.size = 5;
    assert_eq!(guest.send(code::FUSE_WRITE, ROOT, &[write.as_bytes(), b"four"]), Err(EINVAL));
}

proptest! {
    // Each case works on files.
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever comes is answered within its room or not at all, and nothing outside of the folder changes.
    #[test]
    fn test_any_messages_are_survived(
        messages in prop::collection::vec(
            (0_u32..54, 0_u64..6, prop::collection::vec(prop_oneof![Just(0_u8), Just(1), Just(2), any::<u8>()], 0..96),
             prop::sample::select(vec!["", "a\0", "b\0", "a\0b\0", "..\0", "l\0../out\0", "/\0"]), 0_usize..5000),
            0..40,
        )
    ) {
        let outside = tempfile::tempdir().unwrap();
        let inside = outside.path().join("in");
        fs::create_dir(&inside).unwrap();
        let mut server = Server::new(crate::sys::share::open(&inside, false, Mapping::default()).unwrap(), false);
        let mut answer = Vec::new();
        let init = message(code::FUSE_INIT as u32, 1, 0, &[[7_u32, 38, 0, 0].as_bytes()]);
        server.serve(&init, 4096, &mut answer).unwrap();
        // To have the whole file system written out takes as long as that is busy with others.
        let messages = messages.into_iter().filter(|message| message.0 != code::FUSE_SYNCFS as u32);
        for (opcode, node, arguments, names, room) in messages {
            let bytes = message(opcode, 9, node, &[&arguments, names.as_bytes()]);
            match server.serve(&bytes, room, &mut answer) {
                Ok(()) => prop_assert!(answer.len() <= room),
                Err(NoRoom) => prop_assert!(room < 16),
            }
            let names = message(opcode, 9, node, &[&[0; 8], names.as_bytes()]);
            let _ = server.serve(&names, 4096, &mut answer);
        }
        prop_assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    }

    /// What is written is what is read, in any order, as with a file of the host's own.
    #[test]
    fn test_data_is_as_it_was_written(
        steps in prop::collection::vec((0_u64..20_000, 0_usize..9000, any::<u8>(), 0..4), 1..30)
    ) {
        let mut guest = Guest::new();
        let (node, handle) = guest.create(ROOT, b"file", 0o600, O_RDWR).unwrap();
        let mut expected: Vec<u8> = Vec::new();
        for (offset, length, fill, kind) in steps {
            let start = usize::try_from(offset).unwrap();
            match kind {
                0 => {
                    let size = start + length;
                    guest.change(node, fuse::FATTR_SIZE, |set| set.size = size as u64).unwrap();
                    expected.resize(size, 0);
                }
                1 | 2 => {
                    prop_assert_eq!(guest.write(node, handle, offset, &vec![fill; length]), Ok(length));
                    if length > 0 {
                        expected.resize(expected.len().max(start + length), 0);
                        expected[start..start + length].fill(fill);
                    }
                }
                _ => {
                    let read = guest.read(node, handle, offset, u32::try_from(length).unwrap()).unwrap();
                    let end = expected.len().min(start + length);
                    prop_assert_eq!(&read, expected.get(start..end).unwrap_or_default());
                }
            }
            prop_assert_eq!(guest.attributes(node).unwrap().size, expected.len() as u64);
        }
        prop_assert_eq!(fs::read(guest.path("file")).unwrap(), expected);
    }
}
