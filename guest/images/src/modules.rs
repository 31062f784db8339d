//! Choosing kernel modules with everything that they depend on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use crate::cpio::Archive;
use crate::error::{Error, Result};
use crate::fs;
use crate::kernel::Kernel;

/// What the kernel has as modules and what it has built in.
#[derive(Debug, Default)]
pub struct ModuleIndex {
    /// Each module's path in the modules folder and the paths it depends on, by its plain name.
    modules: BTreeMap<String, (String, Vec<String>)>,
    built_in: BTreeSet<String>,
}

/// A module's plain name: `kernel/drivers/char/hw_random/virtio-rng.ko.xz` is `virtio_rng`.
fn plain_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    let stem = file.split(".ko").next().unwrap_or(file);
    stem.replace('-', "_")
}

impl ModuleIndex {
    /// Reads `modules.dep` and `modules.builtin`.
    #[must_use]
    pub fn parse(dep: &str, builtin: &str) -> Self {
        let modules = dep
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(path, needs)| {
                (plain_name(path), (path.to_owned(), needs.split_whitespace().map(str::to_owned).collect()))
            })
            .collect();
        let built_in = builtin.lines().map(plain_name).collect();
        Self { modules, built_in }
    }

    /// The index of a kernel's modules folder.
    ///
    /// # Errors
    /// When its `modules.dep` or `modules.builtin` cannot be read.
    pub fn of(modules: &Path) -> Result<Self> {
        let dep = fs::read_to_string(modules.join("modules.dep"))?;
        let builtin = fs::read_to_string(modules.join("modules.builtin"))?;
        Ok(Self::parse(&dep, &builtin))
    }

    /// The modules' paths with all that they depend on; none for those built in, `None` for one
    /// that the kernel does not have at all.
    #[must_use]
    pub fn closure(&self, name: &str) -> Option<Vec<&str>> {
        let name = name.replace('-', "_");
        match self.modules.get(&name) {
            Some((path, needs)) => Some(std::iter::once(path).chain(needs).map(String::as_str).collect()),
            None => self.built_in.contains(&name).then(Vec::new),
        }
    }

    /// The line of `modules.dep` for a module, with the compression's endings taken off.
    fn dep_line(&self, path: &str) -> String {
        let needs = self.modules.get(&plain_name(path)).map(|(_, needs)| needs.as_slice()).unwrap_or_default();
        let needs: Vec<&str> = needs.iter().map(|need| uncompressed_name(need)).collect();
        format!("{}: {}\n", uncompressed_name(path), needs.join(" "))
    }
}

/// A module's path without the ending of its compression.
fn uncompressed_name(path: &str) -> &str {
    path.find(".ko").map_or(path, |dot| &path[..dot + ".ko".len()])
}

/// Adds the modules `names` of a kernel, with all that they depend on, to an archive, so that
/// `modprobe` finds them there. What the kernel has built in needs nothing.
///
/// # Errors
/// When the kernel does not have one of them or a file cannot be read.
pub fn add_modules(archive: &mut Archive, kernel: &Kernel, names: &[&str]) -> Result<()> {
    let Some(modules) = &kernel.modules else {
        return Ok(());
    };
    let index = ModuleIndex::of(modules)?;
    let mut paths = BTreeSet::new();
    for name in names {
        let closure = index.closure(name).ok_or_else(|| {
            Error::Unexpected(format!("the kernel {} has no module {name}, which the image needs", kernel.version))
        })?;
        paths.extend(closure);
    }
    let root = format!("lib/modules/{}", kernel.version);
    let mut dep = String::new();
    for path in paths {
        let content = uncompressed(&modules.join(path))?;
        archive.file(&format!("{root}/{}", uncompressed_name(path)), 0o644, &content)?;
        dep.push_str(&index.dep_line(path));
    }
    archive.file(&format!("{root}/modules.dep"), 0o644, dep.as_bytes())?;
    let builtin = fs::read(modules.join("modules.builtin"))?;
    archive.file(&format!("{root}/modules.builtin"), 0o644, &builtin)?;
    Ok(())
}

/// A module's content, uncompressed: a small initramfs has no program to do it.
fn uncompressed(path: &Path) -> Result<Vec<u8>> {
    let program = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(path),
    };
    let output = Command::new(program)
        .args(["-d", "-c"])
        .arg(path)
        .output()
        .map_err(|source| Error::Start { program: program.to_owned(), source })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(Error::Failed {
        command: format!("{program} -d -c {}", path.display()),
        status: output.status,
        tail: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/drivers/virtio/virtio.ko:\n\
        kernel/drivers/char/hw_random/virtio-rng.ko.xz: kernel/drivers/virtio/virtio.ko\n";

    #[test]
    fn a_closure_has_the_dependencies_and_dashes_do_not_matter() {
        let index = ModuleIndex::parse(DEP, "kernel/fs/ext4/ext4.ko\n");
        let paths = index.closure("virtio_rng").unwrap();
        assert_eq!(paths, ["kernel/drivers/char/hw_random/virtio-rng.ko.xz", "kernel/drivers/virtio/virtio.ko"]);
        assert_eq!(index.closure("virtio-rng").unwrap().len(), 2);
        assert_eq!(index.closure("ext4").unwrap(), Vec::<&str>::new());
        assert_eq!(index.closure("nonsense"), None);
        assert_eq!(
            index.dep_line("kernel/drivers/char/hw_random/virtio-rng.ko.xz"),
            "kernel/drivers/char/hw_random/virtio-rng.ko: kernel/drivers/virtio/virtio.ko\n"
        );
    }
}
