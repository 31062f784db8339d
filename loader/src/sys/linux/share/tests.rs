use std::os::unix::fs::symlink;

use super::*;
use crate::share::ROOT;

fn shared(most: usize) -> (tempfile::TempDir, Folder) {
    let folder = tempfile::tempdir().unwrap();
    let mut files = Folder::new(folder.path(), false, Mapping::default()).unwrap();
    let root = fs::open(folder.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let stat = calls::stat(root.as_fd()).unwrap();
    files.nodes = Nodes::new(root, identity(&stat), most);
    (folder, files)
}

/// A file `depth` folders down, each called `d`.
fn deep(files: &mut Folder, depth: usize) -> Vec<NodeId> {
    let mut nodes = vec![ROOT];
    for _ in 0..depth {
        let new = New::Directory { mode: 0o700 };
        let made = files.make(*nodes.last().unwrap(), c"d", new, Owner::default()).unwrap();
        nodes.push(made.node);
    }
    nodes
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
fn test_descriptors_are_few_and_files_many() {
    let (_folder, mut files) = shared(8);
    let nodes = deep(&mut files, 40);
    assert_eq!(files.nodes.counts(), (41, 9));
    // All are found again, in any order.
    for &node in nodes.iter().rev().chain(&nodes) {
        assert_ne!(files.attributes(node, None).unwrap().mode, 0);
        assert!(files.nodes.counts().1 <= 9);
    }
    for &node in &nodes[1..] {
        files.forget(node, 1);
    }
    assert_eq!(files.nodes.counts(), (1, 1));
}

#[test]
fn test_descriptors_are_given_up_when_that_is_asked_for() {
    let (_folder, mut files) = shared(8);
    let nodes = deep(&mut files, 3);
    let open = files.open_directory(nodes[2]).unwrap();
    files.nodes.let_all_go();
    assert_eq!(files.nodes.counts(), (4, 2), "the shared folder and the open one");
    let inode = files.attributes(nodes[3], None).unwrap().inode;
    assert_eq!(files.nodes.counts(), (4, 3));
    let key = (files.devices[0], inode);
    assert!(files.nodes.is_within(nodes[3], key) && !files.nodes.is_within(nodes[2], key) && !files.nodes.is_open(key));
    files.nodes.let_go(key);
    assert_eq!(files.nodes.counts(), (4, 2));
    assert_eq!(files.nodes.parent_key(nodes[3]), Some((key.0, files.attributes(nodes[2], None).unwrap().inode)));
    files.release(open);
    files.nodes.let_all_go();
    assert_eq!(files.nodes.counts(), (4, 1));
    assert!(nodes.iter().all(|&node| files.attributes(node, None).is_ok()));
}

#[test]
fn test_a_file_is_found_again_where_the_guest_moved_it() {
    let (_folder, mut files) = shared(1);
    let nodes = deep(&mut files, 4);
    files.rename((nodes[1], c"d"), (ROOT, c"moved"), RenameMode::Replace).unwrap();
    for _ in 0..2 {
        for &node in &nodes {
            files.attributes(node, None).unwrap();
        }
    }
}

/// Attack: what took the place of a folder whose descriptor was given back.
#[test]
fn test_attack_another_file_in_the_place_of_a_known_one() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::create_dir(outside.path().join("d")).unwrap();
    let (folder, mut files) = shared(1);
    let nodes = deep(&mut files, 4);
    // The first is not held any more.
    std::fs::rename(folder.path().join("d"), folder.path().join("away")).unwrap();
    symlink(outside.path(), folder.path().join("d")).unwrap();
    assert_eq!(files.attributes(nodes[1], None), Err(Errno::STALE));
    assert_eq!(files.make(nodes[1], c"made", New::Directory { mode: 0o700 }, Owner::default()), Err(Errno::STALE));
    std::fs::remove_file(folder.path().join("d")).unwrap();
    std::fs::create_dir(folder.path().join("d")).unwrap();
    assert_eq!(files.attributes(nodes[1], None), Err(Errno::STALE));
    std::fs::remove_dir(folder.path().join("d")).unwrap();
    std::fs::rename(folder.path().join("away"), folder.path().join("d")).unwrap();
    assert!(files.attributes(nodes[1], None).is_ok());
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
}

/// Attack: more files, and more open ones, than we keep.
#[test]
fn test_attack_files_without_number() {
    let (_folder, mut files) = shared(8);
    files.nodes.limit(5);
    let node = New::Node { kind: NodeKind::Regular, mode: 0o600 };
    let names = [c"1", c"2", c"3", c"4"];
    for name in names {
        files.make(ROOT, name, node, Owner::default()).unwrap();
    }
    assert_eq!(files.make(ROOT, c"5", node, Owner::default()), Err(Errno::NOMEM));
    // The same ones are no more.
    let known = files.lookup(ROOT, c"1").unwrap().node;
    files.most_handles = 3;
    let how = Opening { read: true, ..Opening::default() };
    let handles: Vec<_> = (0..3).map(|_| files.open(known, how).unwrap()).collect();
    assert_eq!(files.open(known, how), Err(Errno::NFILE));
    assert_eq!(files.open_directory(ROOT), Err(Errno::NFILE));
    files.forget(known, 2);
    assert!(files.attributes(known, None).is_ok(), "it is still open");
    for handle in handles {
        files.release(handle);
    }
    assert_eq!(files.attributes(known, None), Err(Errno::STALE));
}

#[test]
fn test_a_folders_group_is_its_files() {
    let (folder, mut files) = shared(8);
    if !files.privileged {
        return;
    }
    let root = std::fs::File::open(folder.path()).unwrap();
    fs::fchown(&root, None, Some(fs::Gid::from_raw(77))).unwrap();
    fs::fchmod(&root, Mode::from_raw_mode(0o2755)).unwrap();
    let owner = Owner { uid: 1000, gid: 1000 };
    let file = files.make(ROOT, c"file", New::Node { kind: NodeKind::Regular, mode: 0o600 }, owner).unwrap();
    assert_eq!(file.attributes.owner, Owner { uid: 1000, gid: 77 });
    let below = files.make(ROOT, c"folder", New::Directory { mode: 0o755 }, owner).unwrap();
    assert_eq!((below.attributes.owner.gid, below.attributes.mode & PERMISSIONS), (77, 0o2755));
}
