//! Images made and converted.

use tempfile::TempDir;

use super::*;

fn file(folder: &TempDir, name: &str) -> PathBuf {
    folder.path().join(name)
}

fn new(path: &Path, size: u64) -> Result<(Format, u64), ImageError> {
    create(&New { path, format: None, size: Some(size), backing: None })
}

fn copy(source: &Path, target: &Path) -> Result<(Format, u64), ImageError> {
    convert(&Copy { source, from: None, target, to: None }, &mut |_, _| ControlFlow::Continue(()))
}

/// A disk with data here and there.
fn disk() -> Vec<u8> {
    let mut bytes = vec![0; 5 << 20];
    for (at, byte) in [(0, 1), (70_000, 2), (1 << 20, 3), ((5 << 20) - 1, 4)] {
        bytes[at] = byte;
    }
    bytes[2 << 20..3 << 20].fill(5);
    bytes
}

#[test]
fn test_a_disk_goes_through_the_formats_and_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, qcow2, back) = (file(&folder, "a.img"), file(&folder, "b.qcow2"), file(&folder, "c.raw"));
    fs::write(&raw, disk()).unwrap();
    let mut seen = Vec::new();
    let request = Copy { source: &raw, from: None, target: &qcow2, to: None };
    assert_eq!(
        convert(&request, &mut |done, all| {
            seen.push((done, all));
            ControlFlow::Continue(())
        })
        .unwrap(),
        (Format::Qcow2, 5 << 20)
    );
    assert!(seen.is_sorted() && seen.last() == Some(&(5 << 20, 5 << 20)));
    let (_, findings) = check(&qcow2, None, false, &mut |_, _| {}).unwrap();
    assert_eq!((findings.errors, findings.leaks), (0, 0), "{:?}", findings.told);
    // What is zero is not there.
    assert_eq!(findings.data, 16 + 4);
    assert_eq!(copy(&qcow2, &back).unwrap(), (Format::Raw, 5 << 20));
    assert!(fs::read(&back).unwrap() == disk());
    let about = info(&qcow2, None).unwrap();
    assert_eq!((about.format, about.size), (Format::Qcow2, 5 << 20));
    assert!(about.file_size < 3 << 20);
    assert_eq!(info(&raw, None).unwrap().format, Format::Raw);
}

#[test]
fn test_what_is_there_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, "a.qcow2");
    assert_eq!(new(&path, 1 << 30).unwrap(), (Format::Qcow2, 1 << 30));
    let before = fs::read(&path).unwrap();
    assert!(new(&path, 1 << 20).unwrap_err().to_string().contains("there already"));
    assert!(copy(&path, &path).unwrap_err().to_string().contains("there already"));
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn test_what_cannot_be_made_is_refused_and_nothing_is_left() {
    let folder = tempfile::tempdir().unwrap();
    for size in [0, 511, 513, u64::MAX, 1 << 51] {
        assert!(new(&file(&folder, "a.qcow2"), size).unwrap_err().to_string().contains("512"));
    }
    assert!(new(&file(&folder, "a.vhdx"), 1 << 20).unwrap_err().to_string().contains("can only be read"));
    assert!(new(&file(&folder, "no/a.img"), 1 << 20).unwrap_err().to_string().contains("no such folder"));
    let based = |path: &Path, backing: &str, size| {
        create(&New { path, format: None, size, backing: Some((Path::new(backing), None)) })
    };
    assert!(based(&file(&folder, "a.qcow2"), "none.img", None).unwrap_err().to_string().contains("no such file"));
    new(&file(&folder, "base.img"), 3 << 20).unwrap();
    assert!(based(&file(&folder, "b.img"), "base.img", None).unwrap_err().to_string().contains("only a qcow2"));
    let nothing = New { path: &file(&folder, "b.qcow2"), format: None, size: None, backing: None };
    assert!(create(&nothing).unwrap_err().to_string().contains("needs a size"));
    assert_eq!(based(&file(&folder, "c.qcow2"), "base.img", None).unwrap(), (Format::Qcow2, 3 << 20));
    // A source that cannot be read leaves no target.
    fs::write(file(&folder, "bad.qcow2"), b"QFI\xfb").unwrap();
    assert!(copy(&file(&folder, "bad.qcow2"), &file(&folder, "d.img")).is_err());
    fs::write(file(&folder, "looks.img"), [b"QFI\xfb".to_vec(), vec![0; 508]].concat()).unwrap();
    assert!(copy(&file(&folder, "looks.img"), &file(&folder, "d.img")).unwrap_err().to_string().contains("--from"));
    let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 4, "{names:?}");
}

#[test]
fn test_other_formats_are_walked_through() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, "a.vhdx");
    let mut bytes = crate::disk::vhdx::tests::image();
    fs::write(&path, &bytes).unwrap();
    let (format, findings) = check(&path, None, false, &mut |_, _| {}).unwrap();
    assert_eq!((format, findings.errors, findings.data), (Format::Vhdx, 0, 1));
    bytes[(1 << 20) + 8] = 7;
    fs::write(&path, &bytes).unwrap();
    let (_, findings) = check(&path, None, false, &mut |_, _| {}).unwrap();
    assert!(findings.errors == 1 && findings.told[0].contains("at byte 1048576"), "{findings:?}");
    assert!(copy(&path, &file(&folder, "b.img")).unwrap_err().to_string().contains("at byte 1048576"));
    assert!(!file(&folder, "b.img").exists());
    assert!(check(&path, None, true, &mut |_, _| {}).unwrap_err().to_string().contains("only qcow2"));
}
