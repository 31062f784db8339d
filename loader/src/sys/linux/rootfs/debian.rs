//! A Debian of packages.

use std::fs;
use std::fs::File;
use std::path::Path;
use std::process::Command;

use covisor_debian::programs::find_program;
use covisor_debian::recipe::RECIPE;
use covisor_debian::settings;
use covisor_debian::sources;
use covisor_debian::sources::Source;
use nix::sys::statvfs::statvfs;
use nix::unistd::geteuid;

use super::ROOM;
use super::archive;
use super::at;
use super::tool;
use super::tree::Attributes;
use super::tree::Tree;
use super::tree::TreeError;
use crate::rootfs::Debian;
use crate::rootfs::RootfsError;
use crate::rootfs::Wanted;
use crate::rootfs::Watch;

/// The suite where neither the user nor this machine says one.
const STABLE: &str = "stable";
/// Where debootstrap has what it knows of suites.
const SUITES: &str = "/usr/share/debootstrap/scripts";
/// Bytes of the least disk for the smallest Debian, which is told before anything is fetched.
const LEAST: u64 = 640 << 20;
/// What does the work of debootstrap, as root, behind [`RECIPE`].
const SCRIPT: &str = include_str!("debootstrap.sh");
/// apt's sources in the guest.
const APT_SOURCES: &str = "etc/apt/sources.list.d/debian.sources";

/// Makes the tree.
pub(super) fn make(
    debian: &Debian,
    wanted: &Wanted<'_>,
    root: &Path,
    watch: &mut dyn Watch,
) -> Result<Tree, RootfsError> {
    let (mmdebstrap, debootstrap) = (find_program("mmdebstrap"), find_program("debootstrap"));
    if mmdebstrap.is_none() && debootstrap.is_none() {
        return Err(RootfsError::Tool { program: "mmdebstrap", package: "mmdebstrap" });
    }
    if mmdebstrap.is_none() && !geteuid().is_root() {
        return Err(RootfsError::NeedsRoot);
    }
    if !Path::new(sources::KEYRING).exists() {
        return Err(RootfsError::NoKeys(sources::KEYRING));
    }
    if wanted.size < LEAST {
        return Err(RootfsError::TooSmall { size: wanted.size, needed: LEAST });
    }
    let suite = debian.suite.clone().unwrap_or_else(own_suite);
    let sources = sources_of(&suite, debian.mirror.as_deref())?;
    has_room(wanted.folder)?;
    let build = Build { debian, suite: &suite, sources: &sources, folder: wanted.folder };
    let mut tree = match mmdebstrap {
        Some(program) => build.by_mmdebstrap(&program, root, wanted.size, watch)?,
        None => build.by_debootstrap(root, wanted.size, watch)?,
    };
    watch.step("setting it up");
    settle(&mut tree, debian, &sources).map_err(|error| archive::in_tree(error, &tree, root))?;
    Ok(tree)
}

/// The suite of this machine, if it is a Debian's.
fn own_suite() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    suite_of(&text).unwrap_or(STABLE).to_owned()
}

/// The suite that a machine says it is of.
fn suite_of(os_release: &str) -> Option<&str> {
    let value = |key: &str| {
        let line = os_release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
        Some(line.trim().trim_matches('"'))
    };
    let suite = value("VERSION_CODENAME")?;
    (value("ID") == Some("debian") && !suite.is_empty()).then_some(suite)
}

/// Where packages of a suite come from.
fn sources_of(suite: &str, mirror: Option<&str>) -> Result<Vec<Source>, RootfsError> {
    match mirror {
        Some(uri) => Ok(vec![Source { uri: uri.trim_end_matches('/').to_owned(), suite: suite.to_owned() }]),
        None => sources::machine_sources_with_security(suite)
            .or_else(|_| sources::sources_of_any(suite))
            .map_err(|error| RootfsError::Sources(error.to_string())),
    }
}

/// Whether there is room for it.
fn has_room(folder: &Path) -> Result<(), RootfsError> {
    let free = statvfs(folder).map_err(|error| at(folder)(error.into()))?;
    match free.blocks_available() * free.fragment_size() < ROOM {
        true => Err(RootfsError::NoRoom { path: folder.to_owned(), needed: ROOM }),
        false => Ok(()),
    }
}

/// What is made.
struct Build<'a> {
    debian: &'a Debian,
    suite: &'a str,
    sources: &'a [Source],
    folder: &'a Path,
}

impl Build<'_> {
    fn kernel(&self) -> &'static str {
        if self.debian.generic { settings::GENERIC_KERNEL } else { settings::CLOUD_KERNEL }
    }

    /// The file of apt's sources.
    fn write_sources(&self) -> Result<std::path::PathBuf, RootfsError> {
        let path = self.folder.join("debian.sources");
        fs::write(&path, text_of(self.sources)).map_err(at(&path))?;
        Ok(path)
    }

    /// By the tool that needs root's rights for nothing; it makes an archive.
    fn by_mmdebstrap(
        &self,
        program: &Path,
        root: &Path,
        size: u64,
        watch: &mut dyn Watch,
    ) -> Result<Tree, RootfsError> {
        watch.step(&format!("fetching and installing Debian {}", self.suite));
        let sources = self.write_sources()?;
        let archive = self.folder.join("packages.tar");
        let packages = settings::PACKAGES.iter().copied().chain([self.kernel()]);
        let packages: Vec<&str> = packages.chain(self.debian.include.iter().map(String::as_str)).collect();
        let mut command = Command::new(program);
        command
            .args(["--variant=minbase", "--format=tar", "--skip=cleanup/reproducible"])
            .arg(format!("--include={}", packages.join(",")))
            .arg(format!("--keyring={}", sources::KEYRING))
            .env("LC_ALL", "C.UTF-8");
        if let Some(proxy) = sources::http_proxy() {
            command.arg(format!("--aptopt=Acquire::http::Proxy \"{proxy}\""));
        }
        command.args([self.suite.as_ref(), archive.as_os_str(), sources.as_os_str()]);
        tool::run(&command, watch)?;
        watch.step("unpacking it");
        let mut tree = Tree::new(root, size)?;
        archive::unpack(&archive, &mut tree, watch)?;
        for path in [&archive, &sources] {
            fs::remove_file(path).map_err(at(path))?;
        }
        Ok(tree)
    }

    /// By the tool that works in the folder itself, as root.
    fn by_debootstrap(&self, root: &Path, size: u64, watch: &mut dyn Watch) -> Result<Tree, RootfsError> {
        if Path::new(SUITES).is_dir() && !Path::new(SUITES).join(self.suite).exists() {
            return Err(RootfsError::Suite(self.suite.to_owned()));
        }
        let sources = self.write_sources()?;
        let mirror = self.sources.first().map(|source| source.uri.as_str()).unwrap_or_default();
        let more: Vec<&str> =
            [self.kernel()].into_iter().chain(self.debian.include.iter().map(String::as_str)).collect();
        let proxy = sources::http_proxy().unwrap_or_default();
        let mut command = Command::new(tool::needed("unshare", "util-linux")?);
        command
            .args(["--mount", "--propagation", "unchanged", "--pid", "--fork", "--kill-child", "sh", "-c"])
            .arg(format!("{RECIPE}{SCRIPT}"))
            .env("WORK", self.folder)
            .env("TREE", root)
            .env("SUITE", self.suite)
            .env("MIRROR", mirror)
            .env("KEYRING", sources::KEYRING)
            .env("PACKAGES", settings::PACKAGES.join(","))
            .env("MORE", more.join(" "))
            .env("PROXY", &proxy)
            .env("http_proxy", &proxy);
        tool::run(&command, watch).map_err(|error| match error {
            RootfsError::Failed { status, said, .. } => {
                RootfsError::Failed { program: "debootstrap".to_owned(), status, said }
            }
            error => error,
        })?;
        fs::remove_file(&sources).map_err(at(&sources))?;
        let mut tree = Tree::of(root, size);
        tree.measure()?;
        Ok(tree)
    }
}

fn text_of(sources: &[Source]) -> String {
    sources.iter().map(Source::as_deb822).collect()
}

/// Makes a guest of a plain Debian.
fn settle(tree: &mut Tree, debian: &Debian, sources: &[Source]) -> Result<(), TreeError> {
    let name = &debian.host_name;
    for old in apt_sources(tree) {
        tree.remove(&old)?;
    }
    tree.put(APT_SOURCES, text_of(sources).as_bytes(), 0o644)?;
    tree.put("etc/hostname", format!("{name}\n").as_bytes(), 0o644)?;
    let hosts = format!("127.0.0.1 localhost\n127.0.1.1 {name}\n::1 localhost ip6-localhost ip6-loopback\n");
    tree.put("etc/hosts", hosts.as_bytes(), 0o644)?;
    let table = "# The whole first disk.\n/dev/vda / ext4 noatime,errors=remount-ro 0 1\n";
    tree.put("etc/fstab", table.as_bytes(), 0o644)?;
    for (file, content) in [settings::RULES, settings::NETWORK, settings::AUTOLOGIN] {
        tree.put(file, content.as_bytes(), 0o644)?;
    }
    for (link, target) in [
        ("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf"),
        // It would ask at the console for what is set already.
        ("etc/systemd/system/systemd-firstboot.service", "/dev/null"),
    ] {
        tree.link(Path::new(link), Path::new(target), Attributes::of_root(0o777))?;
    }
    // Each guest gets one of its own when it first starts.
    tree.put("etc/machine-id", b"", 0o444)?;
    tree.remove("var/lib/dbus/machine-id")?;
    if let Some(path) = tree.find("etc/shadow") {
        let text = fs::read_to_string(&path).map_err(at(&path))?;
        fs::write(&path, without_password(&text)).map_err(at(&path))?;
    }
    Ok(())
}

/// The names of the files that say where apt's packages come from.
fn apt_sources(tree: &mut Tree) -> Vec<String> {
    const FOLDER: &str = "etc/apt/sources.list.d";
    let mut names = vec!["etc/apt/sources.list".to_owned()];
    if let Some(folder) = tree.find(FOLDER) {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        names.extend(entries.filter_map(|entry| Some(format!("{FOLDER}/{}", entry.file_name().to_str()?))));
    }
    names
}

/// The file of passwords, with none for root: who has the guest's console runs the guest, and nothing else logs in without a key.
fn without_password(shadow: &str) -> String {
    let line = |line: &str| match line.strip_prefix("root:").and_then(|rest| rest.split_once(':')) {
        Some((_, rest)) => format!("root::{rest}\n"),
        None => format!("{line}\n"),
    };
    shadow.lines().map(line).collect()
}

/// Puts the agent into a tree with systemd, as a service; in another it would not be started.
pub(super) fn put_agent(tree: &mut Tree, agent: &Path) -> Result<(), RootfsError> {
    let is_there = ["usr/lib/systemd/systemd", "lib/systemd/systemd"].iter().any(|path| tree.find(path).is_some());
    if !is_there {
        return Ok(());
    }
    let mut content = File::open(agent).map_err(at(agent))?;
    let mut put = || {
        // Where the folder is a link, it is one to this.
        let folder = if tree.find("usr/sbin").is_some() { "usr/sbin" } else { "usr/bin" };
        let name = settings::AGENT.rsplit('/').next().unwrap_or_default();
        tree.program(Path::new(folder).join(name).as_path(), &mut content)?;
        for (file, content) in [settings::RULES, settings::AGENT_SERVICE] {
            tree.put(file, content.as_bytes(), 0o644)?;
        }
        Ok(())
    };
    let put: Result<(), TreeError> = put();
    put.map_err(|error| archive::in_tree(error, tree, tree.root()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_the_suite_is_that_of_a_debian_only() {
        let debian = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_CODENAME=bookworm\nID=debian\n";
        assert_eq!(suite_of(debian), Some("bookworm"));
        assert_eq!(suite_of("ID=ubuntu\nID_LIKE=debian\nVERSION_CODENAME=jammy\n"), None);
        assert_eq!(suite_of("ID=debian\n"), None);
    }

    #[test]
    fn test_root_and_nobody_else_gets_in_without_a_password() {
        let shadow = "root:*:19000:0:99999:7:::\ndaemon:*:19000:0:99999:7:::\nrooty:!:1:::::\n";
        let after = "root::19000:0:99999:7:::\ndaemon:*:19000:0:99999:7:::\nrooty:!:1:::::\n";
        assert_eq!(without_password(shadow), after);
    }

    #[test]
    fn test_a_mirror_that_is_named_is_the_only_source() {
        let sources = sources_of("trixie", Some("http://mirror.example/debian/")).unwrap();
        assert_eq!(sources, [Source { uri: "http://mirror.example/debian".to_owned(), suite: "trixie".to_owned() }]);
    }
}
