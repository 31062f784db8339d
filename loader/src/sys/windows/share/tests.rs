use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use windows_sys::Win32::Storage::FileSystem::GetShortPathNameW;

use super::*;
use crate::share::Changes;
use crate::share::Time;
use crate::sys::windows::wide;

const READ: Opening = Opening { read: true, write: false, truncate: false, exclusive: false, sync: false };
const BOTH: Opening = Opening { read: true, write: true, truncate: false, exclusive: false, sync: false };
const NEW: Opening = Opening { exclusive: true, ..BOTH };
const NOBODY: Owner = Owner { uid: 0, gid: 0 };
const FILE: New<'_> = New::Node { kind: NodeKind::Regular, mode: 0o644 };
const FOLDER: New<'_> = New::Directory { mode: 0o755 };

/// A shared folder `in`, beside which there is one that must stay as it is.
struct Shared {
    files: Folder,
    outside: tempfile::TempDir,
}

impl Shared {
    fn new() -> Self {
        let outside = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(outside.path().join("out")).unwrap();
        std::fs::write(outside.path().join("out").join("secret"), "secret").unwrap();
        std::fs::create_dir(outside.path().join("in")).unwrap();
        let files = Folder::new(&outside.path().join("in"), false, Mapping::default()).unwrap();
        Self { files, outside }
    }

    /// One that keeps so many handles.
    fn holding(most: usize) -> Self {
        let mut shared = Self::new();
        let root = shared.files.nodes.file(ROOT).unwrap();
        let root = Found::of(calls::reopen(&root, FILE_LIST_DIRECTORY, 0).unwrap()).unwrap();
        shared.files.nodes = Nodes::new(root.file, (root.stat.id, root.kind), most);
        shared
    }

    /// A file of the folder's, as the host names it.
    fn path(&self, name: &str) -> PathBuf {
        self.outside.path().join("in").join(name)
    }

    /// Makes a file with this in it.
    fn write(&mut self, parent: NodeId, name: &CStr, text: &[u8]) -> NodeId {
        let (entry, handle) = self.files.create(parent, name, 0o644, NEW, NOBODY).unwrap();
        assert_eq!(self.files.write(handle, 0, text), Ok(text.len()));
        self.files.release(handle);
        entry.node
    }

    fn read(&mut self, node: NodeId) -> Vec<u8> {
        let handle = self.files.open(node, READ).unwrap();
        let mut text = vec![0; 100];
        let length = self.files.read(handle, 0, &mut text).unwrap();
        self.files.release(handle);
        text.truncate(length);
        text
    }

    /// The names in a folder, but for its own and the one above.
    fn list(&mut self, node: NodeId) -> Vec<String> {
        let handle = self.files.open_directory(node).unwrap();
        let (mut names, mut number) = (Vec::new(), 0);
        loop {
            let entries = self.files.read_directory(handle, number).unwrap();
            let Some(last) = entries.last() else { break };
            number = last.next;
            names.extend(entries.into_iter().map(|entry| entry.name.into_string().unwrap()));
        }
        self.files.release(handle);
        names.retain(|name| name != "." && name != "..");
        names.sort();
        names
    }
}

impl Drop for Shared {
    /// The guest was nowhere else.
    fn drop(&mut self) {
        if thread::panicking() {
            return;
        }
        let names = |path: PathBuf| {
            let entries =
                std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let mut names: Vec<_> = entries.collect();
            names.sort();
            names
        };
        assert_eq!(names(self.outside.path().into()), ["in", "out"]);
        assert_eq!(names(self.outside.path().join("out")), ["secret"]);
        assert_eq!(std::fs::read(self.outside.path().join("out").join("secret")).unwrap(), b"secret");
    }
}

#[test]
fn test_no_folder_is_said_to_be_none() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    for (path, kind) in [(file, io::ErrorKind::NotADirectory), (folder.path().join("none"), io::ErrorKind::NotFound)] {
        assert_eq!(Folder::new(&path, false, Mapping::default()).unwrap_err().kind(), kind);
    }
}

#[test]
fn test_folders_are_named_in_all_ways_of_windows() {
    let folder = tempfile::tempdir().unwrap();
    // Spaces, letters of several scripts, and more than MAX_PATH.
    let long = folder.path().join("a folder, größer (日本)").join("x".repeat(200)).join("y".repeat(200));
    std::fs::create_dir_all(&long).unwrap();
    std::fs::write(long.join("file"), "text").unwrap();
    let verbatim = PathBuf::from(format!(r"\\?\{}", long.display()));
    for path in [long.clone(), long.join("."), long.join(""), verbatim] {
        let mut files = Folder::new(&path, true, Mapping::default()).unwrap();
        assert!(files.lookup(ROOT, c"file").is_ok(), "{}", path.display());
    }
    let drive = folder.path().ancestors().last().unwrap();
    assert!(Folder::new(drive, true, Mapping::default()).unwrap().attributes(ROOT, None).is_ok());
}

/// Attack: names that are ways, streams, drives, devices or patterns to Windows are names of files in the folder, and nothing
/// else.
#[test]
fn test_attack_names_that_mean_something_to_windows() {
    let mut shared = Shared::new();
    let file = shared.write(ROOT, c"f", b"plain");
    let names = [
        c"a\\..\\b",
        c"..\\out\\secret",
        c"\\out",
        c"f:s",
        c"f::$DATA",
        c"C:",
        c"C:\\",
        c"\\??\\C:\\x",
        c"\\\\.\\pipe\\x",
        c"CON",
        c"con.txt",
        c"NUL",
        c"COM1",
        c"aux.",
        c"PhysicalDrive0",
        c"$MFT",
        c"dot.",
        c"space ",
        c"...",
        c"*",
        c"?",
        c"<>",
        c"a|b",
        c"\"",
        c"\x01",
        c"\x1f",
    ];
    for name in names {
        assert_eq!(shared.files.lookup(ROOT, name), Err(Errno::NOENT), "{name:?}");
        assert_eq!(shared.files.unlink(ROOT, name), Err(Errno::NOENT), "{name:?}");
        shared.write(ROOT, name, name.to_bytes());
    }
    let mut expected: Vec<_> = names.iter().map(|name| name.to_str().unwrap().to_owned()).collect();
    expected.push("f".to_owned());
    expected.sort();
    assert_eq!(shared.list(ROOT), expected);
    assert_eq!(std::fs::read_dir(shared.path("")).unwrap().count(), names.len() + 1);
    for name in names {
        let node = shared.files.lookup(ROOT, name).unwrap().node;
        assert_eq!(shared.read(node), name.to_bytes(), "{name:?}");
        shared.files.rename((ROOT, name), (ROOT, c"moved"), RenameMode::Keep).unwrap();
        shared.files.link(node, ROOT, name).unwrap();
        shared.files.unlink(ROOT, c"moved").unwrap();
        shared.files.unlink(ROOT, name).unwrap();
        shared.files.make(ROOT, name, FOLDER, NOBODY).unwrap();
        shared.files.remove_directory(ROOT, name).unwrap();
    }
    assert_eq!(shared.list(ROOT), ["f"]);
    assert_eq!(shared.read(file), b"plain");
}

/// Attack: the request's names have neither of these; they lead nowhere here either.
#[test]
fn test_attack_the_folder_above() {
    let mut shared = Shared::new();
    for name in [c"..", c"."] {
        assert_eq!(shared.files.lookup(ROOT, name), Err(Errno::NOENT));
    }
    for name in [c"../out", c"a/b", c"/"] {
        assert_eq!(shared.files.lookup(ROOT, name), Err(Errno::INVAL));
        assert_eq!(shared.files.make(ROOT, name, FILE, NOBODY), Err(Errno::INVAL));
    }
    assert_eq!(shared.files.make(ROOT, c"\xff", FILE, NOBODY), Err(Errno::ILSEQ));
    assert!(shared.list(ROOT).is_empty());
}

#[test]
fn test_small_and_large_letters_are_others() {
    let mut shared = Shared::new();
    let node = shared.write(ROOT, c"File", b"first");
    assert_eq!(shared.files.lookup(ROOT, c"file"), Err(Errno::NOENT));
    assert_eq!(shared.files.unlink(ROOT, c"FILE"), Err(Errno::NOENT));
    // Windows keeps no second one; what is there stays.
    assert_eq!(shared.files.make(ROOT, c"file", FILE, NOBODY), Err(Errno::EXIST));
    assert_eq!(shared.files.create(ROOT, c"file", 0o644, BOTH, NOBODY).unwrap_err(), Errno::EXIST);
    shared.write(ROOT, c"other", b"second");
    assert_eq!(shared.files.rename((ROOT, c"other"), (ROOT, c"FILE"), RenameMode::Replace), Err(Errno::EXIST));
    assert_eq!(shared.read(node), b"first");
    assert_eq!(shared.list(ROOT), ["File", "other"]);
}

#[test]
fn test_a_file_changes_letters_of_its_name() {
    let mut shared = Shared::new();
    let node = shared.write(ROOT, c"File", b"text");
    shared.files.rename((ROOT, c"File"), (ROOT, c"FILE"), RenameMode::Keep).unwrap();
    assert_eq!(shared.list(ROOT), ["FILE"]);
    assert_eq!(shared.files.lookup(ROOT, c"FILE").unwrap().node, node);
    assert_eq!(shared.files.lookup(ROOT, c"File"), Err(Errno::NOENT));
}

/// Attack: a file's second, short name would let one file be two for the guest.
#[test]
fn test_attack_short_names() {
    let mut shared = Shared::new();
    shared.write(ROOT, c"a long name.and more", b"text");
    let path = wide::wide(shared.path("a long name.and more"));
    let mut short = [0; 1024];
    // SAFETY: both are texts of these sizes, the first with its zero.
    let length = unsafe { GetShortPathNameW(path.as_ptr(), short.as_mut_ptr(), 1024) };
    let short = String::from_utf16(&short[..length as usize]).unwrap();
    let short = short.rsplit('\\').next().unwrap();
    // A volume may have none.
    if short != "a long name.and more" {
        let short = std::ffi::CString::new(short).unwrap();
        assert_eq!(shared.files.lookup(ROOT, &short), Err(Errno::NOENT), "{short:?}");
        assert_eq!(shared.files.unlink(ROOT, &short), Err(Errno::NOENT));
    }
    assert_eq!(shared.list(ROOT), ["a long name.and more"]);
}

/// Attack: a junction that the host has made is a link, behind which is nothing.
#[test]
fn test_attack_junctions_are_never_followed() {
    let mut shared = Shared::new();
    let target = shared.outside.path().join("out");
    std::fs::create_dir(shared.path("junction")).unwrap();
    let root = shared.files.nodes.file(ROOT).unwrap();
    let how = How { access: FILE_WRITE_ATTRIBUTES, ..How::default() };
    let junction = calls::open(&root, &names::to_windows(c"junction").unwrap(), &how).unwrap();
    let text = |text: String| text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect::<Vec<_>>();
    let (opened, shown) = (text(format!(r"\??\{}", target.display())), text(target.display().to_string()));
    let lengths = [0, opened.len() - 2, opened.len(), shown.len() - 2];
    let lengths = lengths.map(|length| u16::try_from(length).unwrap().to_le_bytes());
    let data = [lengths.as_flattened(), &opened, &shown].concat();
    let length = u16::try_from(data.len()).unwrap().to_le_bytes();
    let point = [&kind::MOUNT_POINT.to_le_bytes()[..], &length, &[0, 0], &data].concat();
    calls::set_reparse_point(&junction, &point).unwrap();
    drop(junction);
    assert!(shared.path("junction").join("secret").exists(), "the host gets there");
    let node = shared.files.lookup(ROOT, c"junction").unwrap().node;
    assert_eq!(shared.files.read_link(node).unwrap(), target.display().to_string().as_bytes());
    assert_eq!(shared.files.lookup(node, c"secret"), Err(Errno::NOTDIR));
    assert_eq!(shared.files.open_directory(node), Err(Errno::NOTDIR));
    assert_eq!(shared.files.open(node, READ), Err(Errno::ACCES));
    assert_eq!(shared.files.make(node, c"x", FILE, NOBODY), Err(Errno::NOTDIR));
    assert_eq!(shared.files.rename((ROOT, c"junction"), (node, c"x"), RenameMode::Keep), Err(Errno::NOTDIR));
    shared.files.unlink(ROOT, c"junction").unwrap();
}

/// Links, pipes and sockets are made as a whole or not at all, and nothing is opened behind them.
#[test]
fn test_links_are_kept_or_refused() {
    let mut shared = Shared::new();
    let link = New::Symlink { target: c"../out/secret" };
    let fifo = New::Node { kind: NodeKind::Fifo, mode: 0o600 };
    let socket = New::Node { kind: NodeKind::Socket, mode: 0o600 };
    for (new, kind) in [(link, Kind::Link), (fifo, Kind::Fifo), (socket, Kind::Socket)] {
        match shared.files.make(ROOT, c"special", new, NOBODY) {
            Ok(made) => {
                assert_eq!(made.attributes.mode & 0o170_000, kind.mode());
                assert_eq!(shared.files.open(made.node, BOTH), Err(Errno::ACCES));
                let target = shared.files.read_link(made.node);
                assert_eq!(target.is_ok_and(|target| target == b"../out/secret"), kind == Kind::Link);
                shared.files.unlink(ROOT, c"special").unwrap();
            }
            Err(error) => assert_eq!(error, Errno::PERM),
        }
        assert!(shared.list(ROOT).is_empty());
    }
    let not_text = New::Symlink { target: c"\xff" };
    assert_eq!(shared.files.make(ROOT, c"special", not_text, NOBODY), Err(Errno::ILSEQ));
    assert!(shared.list(ROOT).is_empty());
}

/// Attack: another folder in the place of a known one whose handle was given back.
#[test]
fn test_attack_another_folder_in_the_place_of_a_known_one() {
    let mut shared = Shared::holding(1);
    let folder = shared.files.make(ROOT, c"d", FOLDER, NOBODY).unwrap().node;
    let below = shared.files.make(folder, c"d", FOLDER, NOBODY).unwrap().node;
    shared.files.nodes.let_all_go();
    std::fs::rename(shared.path("d"), shared.path("away")).unwrap();
    std::fs::create_dir_all(shared.path("d").join("d")).unwrap();
    for node in [folder, below] {
        assert_eq!(shared.files.attributes(node, None), Err(Errno::STALE));
        assert_eq!(shared.files.make(node, c"made", FOLDER, NOBODY), Err(Errno::STALE));
    }
    std::fs::remove_dir_all(shared.path("d")).unwrap();
    std::fs::rename(shared.path("away"), shared.path("d")).unwrap();
    assert!(shared.files.attributes(below, None).is_ok());
}

/// Attack: folders change places, over and over, while the guest makes, reads and takes away files behind the name.
#[test]
fn test_attack_a_race_of_renames() {
    let mut shared = Shared::new();
    for name in ["sub", "aside"] {
        std::fs::create_dir(shared.path(name)).unwrap();
        std::fs::write(shared.path(name).join("file"), name).unwrap();
    }
    let (sub, aside, third) = (shared.path("sub"), shared.path("aside"), shared.path("third"));
    let stop = AtomicBool::new(false);
    let (mut read, mut made) = (0, 0);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // While the guest has a file open Windows refuses.
                for (from, to) in [(&sub, &third), (&aside, &sub), (&third, &aside)] {
                    let _ = std::fs::rename(from, to);
                }
            }
        });
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(20) && (read < 50 || made < 50) {
            let Ok(folder) = shared.files.lookup(ROOT, c"sub") else { continue };
            if let Ok(file) = shared.files.lookup(folder.node, c"file") {
                if let Ok(handle) = shared.files.open(file.node, READ) {
                    let mut text = [0; 10];
                    let length = shared.files.read(handle, 0, &mut text).unwrap();
                    assert!([&b"sub"[..], b"aside"].contains(&&text[..length]));
                    shared.files.release(handle);
                    read += 1;
                }
                shared.files.forget(file.node, 1);
            }
            if let Ok((file, handle)) = shared.files.create(folder.node, c"new", 0o644, NEW, NOBODY) {
                assert_eq!(shared.files.write(handle, 0, b"new"), Ok(3));
                shared.files.release(handle);
                shared.files.forget(file.node, 1);
                made += 1;
            }
            let _ = shared.files.unlink(folder.node, c"new");
            shared.files.forget(folder.node, 1);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(read > 0 && made > 0);
}

/// Attack: a folder that the host moves out of the shared one leads no further than it did.
#[test]
fn test_attack_a_folder_moves_out() {
    let mut shared = Shared::new();
    let folder = shared.files.make(ROOT, c"folder", FOLDER, NOBODY).unwrap().node;
    shared.write(folder, c"inner", b"text");
    shared.files.nodes.let_all_go();
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::rename(shared.path("folder"), elsewhere.path().join("moved")).unwrap();
    // The guest has nothing of it: it does not find it again.
    assert_eq!(shared.files.lookup(folder, c"inner"), Err(Errno::STALE));
    assert_eq!(shared.files.lookup(ROOT, c"folder"), Err(Errno::NOENT));
}

/// Attack: more files, and more open ones, than we keep.
#[test]
fn test_attack_files_without_number() {
    let mut shared = Shared::holding(8);
    shared.files.nodes.limit(5);
    for name in [c"1", c"2", c"3", c"4"] {
        shared.files.make(ROOT, name, FILE, NOBODY).unwrap();
    }
    assert_eq!(shared.files.make(ROOT, c"5", FILE, NOBODY), Err(Errno::NOMEM));
    let known = shared.files.lookup(ROOT, c"1").unwrap().node;
    shared.files.most_handles = 3;
    let handles: Vec<_> = (0..3).map(|_| shared.files.open(known, READ).unwrap()).collect();
    assert_eq!(shared.files.open(known, READ), Err(Errno::NFILE));
    assert_eq!(shared.files.open_directory(ROOT), Err(Errno::NFILE));
    for handle in handles {
        shared.files.release(handle);
    }
}

#[test]
fn test_handles_are_few_and_files_many() {
    let mut shared = Shared::holding(8);
    let mut nodes = vec![ROOT];
    for _ in 0..20 {
        let made = shared.files.make(*nodes.last().unwrap(), c"d", FOLDER, NOBODY).unwrap();
        nodes.push(made.node);
    }
    assert_eq!(shared.files.nodes.counts(), (21, 9));
    for &node in nodes.iter().rev().chain(&nodes) {
        assert_ne!(shared.files.attributes(node, None).unwrap().mode, 0);
        assert!(shared.files.nodes.counts().1 <= 9);
    }
}

#[test]
fn test_a_name_is_free_as_soon_as_it_is_taken_away() {
    let mut shared = Shared::new();
    let (old, handle) = shared.files.create(ROOT, c"file", 0o644, NEW, NOBODY).unwrap();
    shared.files.unlink(ROOT, c"file").unwrap();
    let new = shared.write(ROOT, c"file", b"new");
    assert_ne!(old.node, new);
    assert_eq!(shared.files.write(handle, 0, b"old"), Ok(3));
    assert_eq!(shared.read(new), b"new");
    // Replaced while it is open, too.
    let open = shared.files.open(new, BOTH).unwrap();
    shared.write(ROOT, c"next", b"next");
    shared.files.rename((ROOT, c"next"), (ROOT, c"file"), RenameMode::Replace).unwrap();
    let file = shared.files.lookup(ROOT, c"file").unwrap().node;
    assert_eq!(shared.read(file), b"next");
    let mut text = [0; 3];
    assert_eq!((shared.files.read(open, 0, &mut text), &text), (Ok(3), b"new"));
    // Nothing is left of them once the guest has closed and forgotten them.
    for (node, handle) in [(new, open), (old.node, handle)] {
        shared.files.release(handle);
        shared.files.forget(node, 1);
    }
    assert_eq!(shared.list(ROOT), ["file"]);
    assert_eq!(std::fs::read(shared.path("file")).unwrap(), b"next");
}

#[test]
fn test_folders_are_moved_and_replaced() {
    let mut shared = Shared::new();
    let [a, b] = [c"a", c"b"].map(|name| shared.files.make(ROOT, name, FOLDER, NOBODY).unwrap().node);
    let file = shared.write(a, c"file", b"text");
    let replace = RenameMode::Replace;
    // One that is empty is replaced, another is not.
    shared.files.rename((ROOT, c"a"), (ROOT, c"b"), replace).unwrap();
    assert_eq!(shared.list(ROOT), ["b"]);
    assert_eq!((shared.list(a), shared.read(file)), (vec!["file".to_owned()], b"text".to_vec()));
    assert_eq!(shared.files.attributes(b, None), Err(Errno::STALE));
    shared.files.make(ROOT, c"c", FOLDER, NOBODY).unwrap();
    assert_eq!(shared.files.rename((ROOT, c"c"), (ROOT, c"b"), replace), Err(Errno::NOTEMPTY));
    assert_eq!(shared.files.rename((a, c"file"), (ROOT, c"c"), replace), Err(Errno::ISDIR));
    assert_eq!(shared.files.rename((ROOT, c"c"), (a, c"file"), replace), Err(Errno::NOTDIR));
    assert_eq!(shared.files.rename((ROOT, c"b"), (a, c"in"), replace), Err(Errno::INVAL));
    assert_eq!(shared.files.remove_directory(ROOT, c"b"), Err(Errno::NOTEMPTY));
    assert_eq!(shared.files.remove_directory(a, c"file"), Err(Errno::NOTDIR));
    assert_eq!(shared.files.unlink(ROOT, c"b"), Err(Errno::ISDIR));
    assert_eq!(shared.read(file), b"text");
}

#[test]
fn test_a_file_that_nobody_writes_is_one_for_windows() {
    let mut shared = Shared::new();
    let node = shared.write(ROOT, c"file", b"text");
    let mode = |mode| Changes { mode: Some(mode), ..Changes::default() };
    let changed = shared.files.change(node, None, &mode(0o444)).unwrap();
    assert_eq!(changed.mode & WRITE, 0);
    let windows_says = std::fs::metadata(shared.path("file")).unwrap().permissions().readonly();
    assert_eq!(windows_says, !shared.files.keeps_metadata);
    assert_ne!(shared.files.change(node, None, &mode(0o644)).unwrap().mode & WRITE, 0);
    // What is so on the host stays so until the guest changes it, and can be taken away.
    let mut permissions = std::fs::metadata(shared.path("file")).unwrap().permissions();
    permissions.set_readonly(true);
    std::fs::set_permissions(shared.path("file"), permissions).unwrap();
    assert_eq!(shared.files.attributes(node, None).unwrap().mode & WRITE, 0);
    shared.files.unlink(ROOT, c"file").unwrap();
    assert!(!shared.path("file").exists());
}

#[test]
fn test_times_stay_when_a_written_file_is_closed() {
    let mut shared = Shared::new();
    let (entry, handle) = shared.files.create(ROOT, c"file", 0o644, NEW, NOBODY).unwrap();
    shared.files.write(handle, 0, b"text").unwrap();
    let modified = Some(Time::At { seconds: -5, nanoseconds: 500 });
    shared.files.change(entry.node, None, &Changes { modified, ..Changes::default() }).unwrap();
    shared.files.release(handle);
    assert_eq!(shared.files.attributes(entry.node, None).unwrap().modified, (-5, 500));
    let modified = Some(Time::Now);
    shared.files.change(entry.node, None, &Changes { modified, ..Changes::default() }).unwrap();
    assert!(shared.files.attributes(entry.node, None).unwrap().modified.0 > 1_600_000_000);
}

#[test]
fn test_a_folder_is_read_from_any_number_on() {
    let mut shared = Shared::new();
    let expected: Vec<_> = (0..400).map(|number| format!("{number:03} {}", "x".repeat(60))).collect();
    for name in &expected {
        std::fs::write(shared.path(name), "").unwrap();
    }
    std::fs::create_dir(shared.path("folder")).unwrap();
    let handle = shared.files.open_directory(ROOT).unwrap();
    let mut all = Vec::new();
    loop {
        let next = all.last().map_or(0, |entry: &DirectoryEntry| entry.next);
        let entries = shared.files.read_directory(handle, next).unwrap();
        if entries.is_empty() {
            break;
        }
        all.extend(entries);
    }
    assert_eq!(all.len(), 403);
    for at in [402, 2, 200, 1, 50, 0] {
        let from = if at == 0 { 0 } else { all[at - 1].next };
        assert_eq!(shared.files.read_directory(handle, from).unwrap()[0], all[at], "{at}");
    }
    assert_eq!(shared.files.read_directory(handle, u64::from(u32::MAX)), Ok(Vec::new()));
    for entry in &all[2..] {
        let kind = if entry.name.to_bytes() == b"folder" { 4 } else { 8 };
        let found = shared.files.lookup(ROOT, &entry.name).unwrap();
        assert_eq!((entry.kind, entry.inode), (kind, found.attributes.inode));
        shared.files.forget(found.node, 1);
    }
    // From the begin on it is what is there by then.
    std::fs::remove_dir(shared.path("folder")).unwrap();
    shared.files.read_directory(handle, 0).unwrap();
    shared.files.release(handle);
    assert_eq!(shared.list(ROOT), expected);
}

#[test]
fn test_room_is_given_and_taken_as_far_as_it_can_be() {
    let mut shared = Shared::new();
    let (entry, handle) = shared.files.create(ROOT, c"file", 0o644, NEW, NOBODY).unwrap();
    shared.files.write(handle, 0, &[7; 200_000]).unwrap();
    assert_eq!(shared.files.allocate(handle, 0, 0, 300_000), Ok(()));
    assert_eq!(shared.files.attributes(entry.node, None).unwrap().size, 300_000);
    for flags in [PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE] {
        let mut byte = [9];
        let result = shared.files.allocate(handle, flags, 65_536, 65_536);
        shared.files.read(handle, 65_536, &mut byte).unwrap();
        match result {
            Ok(()) => assert_eq!(byte, [0]),
            Err(error) => assert!(error == Errno::OPNOTSUPP && byte != [9]),
        }
    }
    assert_eq!(shared.files.allocate(handle, KEEP_SIZE, 0, 1), Err(Errno::OPNOTSUPP));
    assert_eq!(shared.files.allocate(handle, 0, 0, 0), Err(Errno::INVAL));
    assert_eq!(shared.files.seek(handle, 0, SeekTo::Data), Ok(0));
    assert!(shared.files.seek(handle, 0, SeekTo::Hole).unwrap() <= 300_000);
    assert_eq!(shared.files.seek(handle, 300_000, SeekTo::Data), Err(Errno::NXIO));
    let room = shared.files.statistics(ROOT).unwrap();
    assert!(room.blocks >= room.free && room.free > 0 && room.block_size.is_power_of_two());
}

#[test]
fn test_owners_are_kept_or_refused() {
    let mut shared = Shared::new();
    let owner = Owner { uid: 1000, gid: 100 };
    let made = shared.files.make(ROOT, c"file", FILE, owner).unwrap();
    let keeps = shared.files.keeps_metadata;
    assert_eq!(made.attributes.owner, if keeps { owner } else { NOBODY });
    let to = |uid| Changes { uid: Some(uid), ..Changes::default() };
    assert!(shared.files.change(made.node, None, &to(made.attributes.owner.uid)).is_ok());
    let other = shared.files.change(made.node, None, &to(4321)).map(|attributes| attributes.owner.uid);
    assert_eq!(other, if keeps { Ok(4321) } else { Err(Errno::PERM) });
}
