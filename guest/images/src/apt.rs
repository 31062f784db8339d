//! Debian packages from the mirror that this machine's apt uses.
//!
//! Packages for other machines (a kernel for the guest) are fetched with package lists of our own,
//! so that this machine's lists and packages stay as they are.

use std::path::{Path, PathBuf};

use crate::command::Cmd;
use crate::error::{Error, Result};
use crate::fs;
use crate::progress::Step;

/// Debian's own keys, where the package debian-archive-keyring puts them.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// One suite of one mirror.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Source {
    /// The mirror, as apt has it.
    pub uri: String,
    /// The suite: `bookworm`, `bookworm-security`.
    pub suite: String,
}

impl Source {
    /// This source in the format of `/etc/apt/sources.list.d/*.sources`.
    #[must_use]
    pub fn as_deb822(&self) -> String {
        let keyring = if Path::new(KEYRING).exists() { format!("Signed-By: {KEYRING}\n") } else { String::new() };
        format!("Types: deb\nURIs: {}\nSuites: {}\nComponents: main\n{keyring}\n", self.uri, self.suite)
    }
}

/// The sources that this machine's apt has for a Debian release: the release itself, its updates
/// and its security fixes, as far as they are configured; the release itself first.
///
/// # Errors
/// When apt has no source for the release.
pub fn machine_sources(release: &str) -> Result<Vec<Source>> {
    let format = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)";
    let targets = Cmd::new("apt-get").args(["indextargets", "--format", format, "Created-By: Packages"]).output()?;
    let sources = parse_targets(&targets, release);
    if sources.first().is_some_and(|first| first.suite == release) {
        return Ok(sources);
    }
    Err(Error::Unexpected(format!(
        "this machine's apt has no source for Debian's suite {release}, whose packages the guest is made of: add it to /etc/apt/sources.list"
    )))
}

/// The same, with the release's security fixes even where this machine's apt does not have them: on the mirror that it
/// does have, where mirrors have them by custom.
///
/// # Errors
/// As [`machine_sources`].
pub fn machine_sources_with_security(release: &str) -> Result<Vec<Source>> {
    let mut sources = machine_sources(release)?;
    let suite = format!("{release}-security");
    if !sources.iter().any(|source| source.suite == suite)
        && let Some(first) = sources.first()
    {
        let uri = format!("{}-security", first.uri);
        sources.push(Source { uri, suite });
    }
    Ok(sources)
}

/// The sources for any suite: this machine's for the release, or, for a newer release that it has none for, that release on
/// the same mirror.
///
/// # Errors
/// When apt has no source for Debian 12 either.
pub fn sources_of_any(suite: &str) -> Result<Vec<Source>> {
    if let Ok(sources) = machine_sources(suite) {
        return Ok(sources);
    }
    let ours = machine_sources("bookworm")?;
    let uri = ours.into_iter().map(|source| source.uri).next().unwrap_or_default();
    Ok(vec![Source { uri, suite: suite.to_owned() }])
}

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

/// Finds a release's sources in the list of apt's index targets.
fn parse_targets(targets: &str, release: &str) -> Vec<Source> {
    let suites = [release.to_owned(), format!("{release}-updates"), format!("{release}-security")];
    let mut found: Vec<Source> = Vec::new();
    for suite in suites {
        let source = targets.lines().find_map(|line| {
            let mut fields = line.split('|');
            let (uri, of, component) = (fields.next()?, fields.next()?, fields.next()?);
            // A release may be configured by its name or with its path: "bookworm/updates".
            (of == suite && component == "main")
                .then(|| Source { uri: uri.trim_end_matches('/').to_owned(), suite: suite.clone() })
        });
        found.extend(source);
    }
    found
}

/// The machine's HTTP proxy for apt, if it has one.
#[must_use]
pub fn http_proxy() -> Option<String> {
    let dump = Cmd::new("apt-config").args(["dump", "--format", "%v%n", "Acquire::http::Proxy"]).output().ok()?;
    let proxy = dump.trim();
    (!proxy.is_empty() && proxy != "DIRECT").then(|| proxy.to_owned())
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
        let status = dir.join("status");
        fs::write(&status, "")?;
        Self::with_status(dir, sources, &status)
    }

    /// The same, to install packages on this machine.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn for_this_machine(dir: &Path, sources: &[Source]) -> Result<Self> {
        Self::with_status(dir, sources, Path::new("/var/lib/dpkg/status"))
    }

    fn with_status(dir: &Path, sources: &[Source], status: &Path) -> Result<Self> {
        fs::create_dir_all(dir.join("lists/partial"))?;
        fs::create_dir_all(dir.join("cache/archives/partial"))?;
        fs::write(dir.join("apt.conf"), configuration(dir, status))?;
        let text: String = sources.iter().map(Source::as_deb822).collect();
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

    const TARGETS: &str = "http://mirror.example/debian/|bookworm|main\n\
        http://mirror.example/debian/|bookworm|contrib\n\
        http://mirror.example/debian/|bookworm-updates|main\n\
        http://other.example/node/|nodistro|main\n\
        http://mirror.example/security/|bookworm-security|main\n";

    #[test]
    fn the_release_comes_first_and_foreign_sources_do_not_come() {
        let sources = parse_targets(TARGETS, "bookworm");
        let suites: Vec<&str> = sources.iter().map(|s| s.suite.as_str()).collect();
        assert_eq!(suites, ["bookworm", "bookworm-updates", "bookworm-security"]);
        assert_eq!(sources[2].uri, "http://mirror.example/security");
        assert!(parse_targets(TARGETS, "trixie").is_empty());
    }

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
