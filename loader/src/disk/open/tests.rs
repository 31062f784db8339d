//! Files and chains of them.

use std::fs;

use tempfile::TempDir;

use super::super::image;
use super::super::image::New;
use super::*;

fn refusal(path: &Path, format: Option<Format>, read_only: bool) -> String {
    open(path, format, read_only).map(|_| ()).unwrap_err().to_string()
}

fn raw(folder: &TempDir, name: &str, size: usize) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, vec![7; size]).unwrap();
    path
}

/// Makes an image based on another, which need not be there in the end.
fn overlay(folder: &TempDir, name: &str, backing: &str) -> PathBuf {
    let path = folder.path().join(name);
    let backing = Some((Path::new(backing), None));
    image::create(&New { path: &path, format: None, size: Some(1 << 20), backing }).unwrap();
    path
}

#[test]
fn test_a_refusal_names_cause_and_remedy() {
    let folder = tempfile::tempdir().unwrap();
    assert!(refusal(&folder.path().join("none"), None, false).contains("no such file"));
    assert!(refusal(folder.path(), None, true).contains("neither a file nor"));
    assert!(refusal(&raw(&folder, "empty.img", 0), None, true).contains("empty"));
    assert!(refusal(&raw(&folder, "odd.img", 1000), None, true).contains("1000 bytes is not a multiple of 512"));
    let held = raw(&folder, "held.img", 512);
    let _first = open(&held, None, false).unwrap();
    assert!(refusal(&held, None, false).contains("another process"));
}

#[test]
fn test_a_raw_disk_is_not_taken_for_what_its_guest_has_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = raw(&folder, "disk.img", 4096);
    fs::write(&path, [b"QFI\xfb\0\0\0\x03".to_vec(), vec![0; 504]].concat()).unwrap();
    assert_eq!(open(&path, None, false).unwrap().sectors(), 1);
    assert!(refusal(&path, Some(Format::Qcow2), false).contains("damaged"));
    assert!(refusal(&raw(&folder, "text.qcow2", 4096), None, false).contains("no qcow2 image"));
}

#[test]
fn test_what_can_only_be_read_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.vhdx");
    fs::write(&path, crate::disk::vhdx::tests::image()).unwrap();
    assert!(refusal(&path, None, false).contains("add `,ro`"));
    assert_eq!(open(&path, None, true).unwrap().sectors(), 6144);
}

#[test]
fn test_what_an_image_is_based_on_is_found_beside_it_and_locked() {
    let folder = tempfile::tempdir().unwrap();
    let base = raw(&folder, "base.img", 1 << 20);
    let middle = overlay(&folder, "middle.qcow2", "base.img");
    let (top, other) = (overlay(&folder, "top.qcow2", "middle.qcow2"), overlay(&folder, "other.qcow2", "middle.qcow2"));
    let mut first = open(&top, None, false).unwrap();
    let mut byte = [0; 512];
    first.read_at(1024, &[vm_memory::VolatileSlice::from(&mut byte[..])]).unwrap();
    assert_eq!(byte, [7; 512]);
    // Two may be based on the same, which nobody may write then.
    let _second = open(&other, None, false).unwrap();
    for path in [&base, &middle, &top] {
        assert!(refusal(path, None, false).contains("another process"));
    }
    assert!(open(&middle, None, true).is_ok());
}

#[test]
fn test_chains_that_lead_nowhere_or_in_a_circle_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    raw(&folder, "base.img", 1 << 20);
    let (a, b) = (overlay(&folder, "a.qcow2", "base.img"), overlay(&folder, "b.qcow2", "a.qcow2"));
    // Now `a` is based on `b`: the same length of name, in the same place.
    let bytes = fs::read(&a).unwrap();
    let at = bytes.windows(8).position(|window| window == b"base.img").unwrap();
    let changed = |name: &[u8; 8], format: &[u8]| {
        let mut bytes = bytes.clone();
        bytes[at..at + 8].copy_from_slice(name);
        let said = bytes[..at].windows(3).rposition(|window| window == b"raw").unwrap();
        bytes[said..said + 3].copy_from_slice(format);
        fs::write(&a, bytes).unwrap();
    };
    changed(b"./b.qcow", b"raw");
    assert!(
        refusal(&a, None, false).contains("based on another: disk")
            && refusal(&a, None, false).contains("no such file")
    );
    fs::rename(&b, folder.path().join("b.qcow")).unwrap();
    assert!(refusal(&folder.path().join("b.qcow"), Some(Format::Qcow2), false).contains("based on itself"));
    changed(b"nbd://a/", b"raw");
    assert!(refusal(&a, None, false).contains("no file's name"));
    changed(b"base.img", b"vdi");
    assert!(refusal(&a, None, false).contains("\"vdi\""));
    changed(b"/dev/tty", b"raw");
    assert!(!refusal(&a, None, false).contains('\n'));
}

#[test]
fn test_a_chain_ends() {
    let folder = tempfile::tempdir().unwrap();
    let mut name = "0.img".to_owned();
    raw(&folder, &name, 1 << 20);
    let mut last = folder.path().join(&name);
    for index in 1..MOST_IMAGES {
        let next = format!("{index}.qcow2");
        last = overlay(&folder, &next, &name);
        name = next;
    }
    assert!(open(&last, None, false).is_ok());
    let path = folder.path().join("more.qcow2");
    let medium: Arc<dyn Medium> = Arc::new(HostMedium::create(&path).unwrap());
    Qcow2::create(medium, 1 << 20, qcow2::CLUSTER, Some((name, "qcow2".to_owned()))).unwrap();
    assert!(refusal(&path, None, false).contains("based one on another"));
}
