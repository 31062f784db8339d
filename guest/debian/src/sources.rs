//! Where Debian's packages come from: the mirror that this machine's own apt uses.

use std::io;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;

use thiserror::Error;

/// Debian's own keys, where the package debian-archive-keyring puts them.
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// How apt calls what Debian publishes.
const ORIGIN: &str = "Debian";
/// What apt is to tell of each list of packages.
const FORMAT: &str = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)";

/// Why it is not known where packages come from.
#[derive(Debug, Error)]
pub enum SourcesError {
    /// There is no apt, or it fails.
    #[error("this machine's apt cannot tell where its packages come from: {0}")]
    Apt(String),
    /// It has none for Debian.
    #[error(
        "this machine's apt has no source for Debian's suite {0}, whose packages the guest is made of: add it to /etc/apt/sources.list"
    )]
    Missing(String),
}

/// One suite of one mirror.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Source {
    /// The mirror, as apt has it.
    pub uri: String,
    /// The suite: `bookworm`, `bookworm-security`.
    pub suite: String,
}

impl Source {
    /// This source in the format of `/etc/apt/sources.list.d/*.sources`, signed by the keys of [`KEYRING`] if these are there.
    #[must_use]
    pub fn as_deb822(&self) -> String {
        self.with_types("deb")
    }

    /// The same for packages of these types: `deb`, or `deb deb-src`.
    #[must_use]
    pub fn with_types(&self, types: &str) -> String {
        let keyring = if Path::new(KEYRING).exists() { format!("Signed-By: {KEYRING}\n") } else { String::new() };
        format!("Types: {types}\nURIs: {}\nSuites: {}\nComponents: main\n{keyring}\n", self.uri, self.suite)
    }
}

/// The sources that this machine's apt has for a Debian release: the release itself, its updates
/// and its security fixes, as far as they are configured; the release itself first.
///
/// # Errors
/// When apt has no source for the release.
pub fn machine_sources(release: &str) -> Result<Vec<Source>, SourcesError> {
    let sources = parse_targets(&targets()?, release);
    if sources.first().is_some_and(|first| first.suite == release) {
        return Ok(sources);
    }
    Err(SourcesError::Missing(release.to_owned()))
}

/// The same, with the release's security fixes even where this machine's apt does not have them: on the mirror that it
/// does have, where mirrors have them by custom.
///
/// # Errors
/// As [`machine_sources`].
pub fn machine_sources_with_security(release: &str) -> Result<Vec<Source>, SourcesError> {
    let mut sources = machine_sources(release)?;
    add_security(&mut sources, release);
    Ok(sources)
}

fn add_security(sources: &mut Vec<Source>, release: &str) {
    let suite = format!("{release}-security");
    if !sources.iter().any(|source| source.suite == suite)
        && let Some(first) = sources.first()
    {
        let uri = format!("{}-security", first.uri);
        sources.push(Source { uri, suite });
    }
}

/// The sources for any suite: this machine's for it, or, where it has none, the suite on the mirror that it has for another of
/// Debian's.
///
/// # Errors
/// When apt has no source for Debian at all.
pub fn sources_of_any(suite: &str) -> Result<Vec<Source>, SourcesError> {
    let targets = targets()?;
    let sources = parse_targets(&targets, suite);
    if sources.first().is_some_and(|first| first.suite == suite) {
        return Ok(sources);
    }
    let uri = main_mirror(&targets).ok_or_else(|| SourcesError::Missing(suite.to_owned()))?;
    Ok(vec![Source { uri, suite: suite.to_owned() }])
}

fn targets() -> Result<String, SourcesError> {
    output("apt-get", &["indextargets", "--format", FORMAT, "Created-By: Packages"]).map_err(SourcesError::Apt)
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

/// The mirror of a release of Debian's, whichever it is; what is beside one (security fixes) is on others.
fn main_mirror(targets: &str) -> Option<String> {
    targets.lines().find_map(|line| {
        let fields: Vec<&str> = line.split('|').collect();
        let [uri, suite, "main", ORIGIN] = fields[..] else { return None };
        (!suite.contains(['-', '/'])).then(|| uri.trim_end_matches('/').to_owned())
    })
}

/// The machine's HTTP proxy for apt, if it has one.
#[must_use]
pub fn http_proxy() -> Option<String> {
    let dump = output("apt-config", &["dump", "--format", "%v%n", "Acquire::http::Proxy"]).ok()?;
    let proxy = dump.trim();
    (!proxy.is_empty() && proxy != "DIRECT").then(|| proxy.to_owned())
}

fn output(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output =
        Command::new(program).args(arguments).stdin(Stdio::null()).output().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => format!("there is no program {program}"),
            _ => format!("{program}: {error}"),
        })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{program} failed ({}): {}", output.status, said.lines().last().unwrap_or_default()));
    }
    String::from_utf8(output.stdout).map_err(|_| format!("{program} wrote something that is not text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGETS: &str = "http://security.example/debian/|trixie-security|main|Debian\n\
        http://mirror.example/debian/|bookworm|main|Debian\n\
        http://mirror.example/debian/|bookworm|contrib|Debian\n\
        http://mirror.example/debian/|bookworm-updates|main|Debian\n\
        http://other.example/node/|nodistro|main|\n\
        http://mirror.example/security/|bookworm-security|main|Debian\n";

    #[test]
    fn the_release_comes_first_and_foreign_sources_do_not_come() {
        let sources = parse_targets(TARGETS, "bookworm");
        let suites: Vec<&str> = sources.iter().map(|s| s.suite.as_str()).collect();
        assert_eq!(suites, ["bookworm", "bookworm-updates", "bookworm-security"]);
        assert_eq!(sources[2].uri, "http://mirror.example/security");
        assert!(parse_targets(TARGETS, "forky").is_empty());
    }

    #[test]
    fn another_release_is_on_the_same_mirror() {
        assert_eq!(main_mirror(TARGETS).unwrap(), "http://mirror.example/debian");
        assert_eq!(main_mirror("http://mirror.example/ubuntu/|jammy|main|Ubuntu\n"), None);
        assert_eq!(main_mirror(""), None);
    }

    #[test]
    fn security_fixes_are_added_once() {
        let source = |uri: &str, suite: &str| Source { uri: uri.to_owned(), suite: suite.to_owned() };
        let mut sources = vec![source("http://mirror.example/debian", "trixie")];
        for _ in 0..2 {
            add_security(&mut sources, "trixie");
        }
        assert_eq!(sources[1..], [source("http://mirror.example/debian-security", "trixie-security")]);
    }

    #[test]
    fn what_fails_is_told_in_a_line() {
        assert_eq!(output("no-such-program-here", &[]).unwrap_err(), "there is no program no-such-program-here");
        let error = output("sh", &["-c", "echo one >&2; echo two >&2; exit 3"]).unwrap_err();
        assert!(error.contains("two") && error.contains('3') && !error.contains('\n'), "{error}");
    }
}
