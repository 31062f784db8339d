//! Packs what a user of Windows gets.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use covisor_guest_images::fs;
use zip::write::SimpleFileOptions;
use zip::{DateTime, ZipWriter};

use super::{WindowsError, out};
use crate::env::Env;
use crate::error::Result;

/// Files of the checkout that go along, and what they are called there.
const TEXTS: [(&str, &str); 6] = [
    ("vmm-driver/nt/package/readme.txt", "readme.txt"),
    ("vmm-driver/nt/package/install.cmd", "install.cmd"),
    ("vmm-driver/nt/package/uninstall.cmd", "uninstall.cmd"),
    ("vmm-driver/nt/package/covisor.inf", "covisor.inf"),
    ("LICENSE-MIT", "license-mit.txt"),
    ("LICENSE-APACHE", "license-apache.txt"),
];

/// The folder in the zip.
const FOLDER: &str = "covisor";

/// Packs the files and returns the path of the zip.
pub(super) fn pack(env: &Env, driver: &Path, program: &Path) -> Result<PathBuf> {
    let mut files = vec![("covisor.sys", fs::read(driver)?), ("covisor.exe", fs::read(program)?)];
    for (path, name) in TEXTS {
        files.push((name, with_windows_lines(&fs::read_to_string(env.root.join(path))?).into_bytes()));
    }
    let path = out(env).join("covisor-windows.zip");
    let new = path.with_extension("new");
    write_zip(&new, &files).map_err(|source| WindowsError::Pack { file: path.clone(), source })?;
    fs::rename(&new, &path)?;
    Ok(path)
}

/// Writes a zip that depends on nothing but the files.
fn write_zip(path: &Path, files: &[(&str, Vec<u8>)]) -> zip::result::ZipResult<()> {
    let mut zip = ZipWriter::new(File::create(path)?);
    let options = SimpleFileOptions::default().last_modified_time(DateTime::default()).unix_permissions(0o644);
    for (name, content) in files {
        zip.start_file(format!("{FOLDER}/{name}"), options)?;
        zip.write_all(content)?;
    }
    zip.finish()?.sync_all().map_err(io::Error::into)
}

/// The text with the ends of lines that Windows' oldest tools need.
fn with_windows_lines(text: &str) -> String {
    text.lines().map(|line| format!("{line}\r\n")).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn test_lines_end_as_windows_wants_them() {
        assert_eq!(with_windows_lines("a\nb\r\nc"), "a\r\nb\r\nc\r\n");
    }

    #[test]
    fn test_a_zip_has_the_files_and_nothing_of_the_day() {
        let path = std::env::temp_dir().join(format!("covisor-zip-{}", std::process::id()));
        let files = [("a.txt", b"hello".repeat(100)), ("b", Vec::new())];
        let make = || {
            write_zip(&path, &files).unwrap();
            fs::read(&path).unwrap()
        };
        let first = make();
        assert_eq!(first, make());
        let mut zip = zip::ZipArchive::new(io::Cursor::new(first)).unwrap();
        let mut content = Vec::new();
        zip.by_name("covisor/a.txt").unwrap().read_to_end(&mut content).unwrap();
        assert_eq!(content, b"hello".repeat(100));
        assert_eq!(zip.len(), 2);
        fs::remove(&path).unwrap();
    }
}
