//! Programs of this machine's with the libraries that they need, for machines without any.

use std::collections::BTreeSet;
use std::path::PathBuf;

use covisor_guest_images::command::Cmd;

use crate::error::Result;

/// Where Debian's packages put programs.
const BIN: &str = "/usr/bin";

/// The files, and their names, which are the same there.
pub(super) fn with_libraries(programs: &[&str]) -> Result<Vec<(PathBuf, String)>> {
    let mut files = Vec::new();
    let mut libraries = BTreeSet::new();
    for program in programs {
        let path = format!("{BIN}/{program}");
        libraries.extend(libraries_of(&Cmd::new("ldd").arg(&path).output()?));
        files.push((PathBuf::from(&path), path));
    }
    files.extend(libraries.into_iter().map(|library| (PathBuf::from(&library), library)));
    Ok(files)
}

/// The files in what `ldd` says: `libm.so.6 => /lib/libm.so.6 (0x00007f0000000000)`, or the loader's without an arrow.
fn libraries_of(text: &str) -> impl Iterator<Item = String> {
    text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/'))).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_in_what_ldd_says() {
        let text =
            "\tlinux-vdso.so.1 (0x1)\n\tlibm.so.6 => /lib/libm.so.6 (0x2)\n\t/lib64/ld-linux-x86-64.so.2 (0x3)\n";
        assert_eq!(libraries_of(text).collect::<Vec<_>>(), ["/lib/libm.so.6", "/lib64/ld-linux-x86-64.so.2"]);
    }
}
