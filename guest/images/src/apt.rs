//! Debian packages from the mirror that this machine's apt uses.
//!
//! Packages for other machines (a kernel for the guest) are fetched with package lists of our own,
//! so that this machine's lists and packages stay as they are.

use std::path::{Path, PathBuf};

pub use covisor_debian::sources::{
    Source, SourcesError, http_proxy, machine_sources, machine_sources_with_security, sources_of_any,
};

use crate::command::Cmd;
use crate::error::{Error, Result};
use crate::fs;
use crate::progress::Step;

/// The version of a package that this machine's apt would install, if it knows the package.
#[must_use]
pub fn candidate(package: &str) -> Option<String> {
    let policy = Cmd::new("apt-cache").args(["policy", package]).env("LC_ALL", "C.UTF-8").output().ok()?;
    parse_candidate(&policy)
}

/// Finds the version in what `apt-cache policy` says of a package.
fn parse_candidate(policy: &str) -> Option<String> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.to_owned())
}

/// Package lists of our own, for a set of sources.
#[derive(Debug)]
pub struct Apt {
    dir: PathBuf,
}

impl Apt {
    /// Package lists for `sources`, kept in `dir`.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn new(dir: &Path, sources: &[Source]) -> Result<Self> {
        fs::create_dir_all(dir)?;
        Self::with_status(dir, sources, "deb", &no_packages(dir)?)
    }

    /// The same with lists of source packages, too.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn with_source_code(dir: &Path, sources: &[Source]) -> Result<Self> {
        fs::create_dir_all(dir)?;
        Self::with_status(dir, sources, "deb deb-src", &no_packages(dir)?)
    }

    /// The same, to install packages on this machine.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn for_this_machine(dir: &Path, sources: &[Source]) -> Result<Self> {
        Self::with_status(dir, sources, "deb", Path::new("/var/lib/dpkg/status"))
    }

    fn with_status(dir: &Path, sources: &[Source], types: &str, status: &Path) -> Result<Self> {
        fs::create_dir_all(dir.join("lists/partial"))?;
        fs::create_dir_all(dir.join("cache/archives/partial"))?;
        fs::write(dir.join("apt.conf"), configuration(dir, status))?;
        let text: String = sources.iter().map(|source| source.with_types(types)).collect();
        fs::write(dir.join("covisor.sources"), text)?;
        Ok(Self { dir: dir.to_path_buf() })
    }

    /// Fetches the lists.
    ///
    /// # Errors
    /// When the mirror cannot be reached or a signature is wrong.
    pub fn update(&self, step: &Step) -> Result<()> {
        self.cmd("apt-get").arg("update").run(step)
    }

    /// Installs packages.
    ///
    /// # Errors
    /// When they cannot be had, or do not go together with what is installed.
    pub fn install(&self, packages: &[&str], step: &Step) -> Result<()> {
        self.cmd("apt-get")
            .args(["install", "--no-install-recommends"])
            .args(packages)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .run(step)
    }

    /// The package that a meta package such as `linux-image-cloud-amd64` stands for: its first
    /// dependency.
    ///
    /// # Errors
    /// When there is no such package.
    pub fn resolve_meta(&self, package: &str) -> Result<String> {
        let show = self.cmd("apt-cache").args(["show", "--no-all-versions", package]).output()?;
        first_dependency(&show).ok_or_else(|| {
            Error::Unexpected(format!("Debian's package {package} does not say which package it stands for"))
        })
    }

    /// Downloads a package's `.deb` into `into` and returns its path.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn download(&self, package: &str, into: &Path, step: &Step) -> Result<PathBuf> {
        let dir = into.join(format!("{package}.download"));
        fs::remove(&dir)?;
        fs::create_dir_all(&dir)?;
        self.cmd("apt-get").args(["download", package]).dir(&dir).run(step)?;
        let deb = fs::list(&dir)?
            .into_iter()
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .ok_or_else(|| Error::Unexpected(format!("apt-get download {package} brought no .deb")))?;
        let kept = into.join(format!("{package}.deb"));
        fs::rename(deb, &kept)?;
        fs::remove(&dir)?;
        Ok(kept)
    }

    /// Downloads the archive of the original source that a package is made from, without Debian's changes, and returns its path.
    ///
    /// # Errors
    /// When these are not lists [`Apt::with_source_code`], or it cannot be had.
    pub fn download_source(&self, package: &str, into: &Path, step: &Step) -> Result<PathBuf> {
        let dir = into.join(format!("{package}.source"));
        fs::remove(&dir)?;
        fs::create_dir_all(&dir)?;
        self.cmd("apt-get").args(["source", "--download-only", "--tar-only", package]).dir(&dir).run(step)?;
        fs::list(&dir)?
            .into_iter()
            .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().contains(".orig.tar.")))
            .ok_or_else(|| Error::Unexpected(format!("apt-get source {package} brought no .orig.tar")))
    }

    /// Downloads packages with all that they depend on and that is not installed, and returns the paths of the `.deb`s.
    ///
    /// # Errors
    /// When they cannot be had.
    pub fn download_with_dependencies(&self, packages: &[&str], step: &Step) -> Result<Vec<PathBuf>> {
        self.cmd("apt-get").args(["install", "--no-install-recommends", "--download-only"]).args(packages).run(step)?;
        let mut files = fs::list(self.dir.join("cache/archives"))?;
        files.retain(|path| path.extension().is_some_and(|extension| extension == "deb"));
        Ok(files)
    }

    fn cmd(&self, program: &str) -> Cmd {
        Cmd::new(program).env("APT_CONFIG", self.dir.join("apt.conf")).env("LC_ALL", "C.UTF-8")
    }
}

/// The file of a machine on which no package is installed.
fn no_packages(dir: &Path) -> Result<PathBuf> {
    let status = dir.join("status");
    fs::write(&status, "")?;
    Ok(status)
}

/// The settings that make apt use only the lists and sources in `dir`.
fn configuration(dir: &Path, status: &Path) -> String {
    let (dir, status) = (dir.display(), status.display());
    format!(
        r#"Dir::Etc::SourceList "{dir}/covisor.sources";
Dir::Etc::SourceParts "-";
Dir::Etc::Preferences "-";
Dir::Etc::PreferencesParts "-";
Dir::State "{dir}";
Dir::State::Lists "{dir}/lists";
Dir::State::Status "{status}";
Dir::Cache "{dir}/cache";
// The download user cannot write into a checkout of root's.
APT::Sandbox::User "root";
APT::Get::Assume-Yes "true";
Acquire::Languages "none";
Acquire::Retries "3";
quiet "1";
"#
    )
}

/// The name of the first package in a control paragraph's `Depends`.
fn first_dependency(paragraph: &str) -> Option<String> {
    let depends = paragraph.lines().find_map(|line| line.strip_prefix("Depends:"))?;
    let first = depends.split([',', '|']).next()?.split_whitespace().next()?;
    Some(first.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_candidate_is_what_apt_would_install() {
        let policy =
            "rustc-web:\n  Installed: (none)\n  Candidate: 1.85.0+dfsg3-1\n  Version table:\n     1.85.0+dfsg3-1 500\n";
        assert_eq!(parse_candidate(policy).unwrap(), "1.85.0+dfsg3-1");
        assert_eq!(parse_candidate("x:\n  Installed: (none)\n  Candidate: (none)\n"), None);
        assert_eq!(parse_candidate(""), None);
    }

    #[test]
    fn a_meta_package_stands_for_its_first_dependency() {
        let paragraph =
            "Package: linux-image-cloud-amd64\nDepends: linux-image-6.1.0-1-cloud-amd64 (= 6.1.1-1)\nSize: 1\n";
        assert_eq!(first_dependency(paragraph).unwrap(), "linux-image-6.1.0-1-cloud-amd64");
        assert_eq!(first_dependency("Package: x\n"), None);
    }
}
