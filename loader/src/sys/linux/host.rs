//! Facts about the host for checks and for `covisor doctor`.

use std::fs;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use crate::sys::transport::DEVICE_PATH;

/// Bytes of the longest record of the kernel's log (`PRINTK_MESSAGE_MAX`, with what describes it).
const KERNEL_RECORD: usize = 8192;

/// Memory that programs can get now, in bytes.
#[must_use]
pub fn available_memory() -> Option<u64> {
    parse_available(&fs::read_to_string("/proc/meminfo").ok()?)
}

fn parse_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The running kernel's release, as `uname -r` says it.
#[must_use]
pub fn kernel_release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// The kernel that the host itself runs and its initial RAM disk, where distributions put them.
///
/// # Errors
/// Why there is none, as a clause.
pub fn own_kernel() -> Result<(PathBuf, Option<PathBuf>), String> {
    kernel_in(Path::new("/boot"), &kernel_release())
}

/// A kernel and its initial RAM disk, as Debian, Fedora and openSUSE name them.
fn kernel_in(folder: &Path, release: &str) -> Result<(PathBuf, Option<PathBuf>), String> {
    let kernel = folder.join(format!("vmlinuz-{release}"));
    if !kernel.exists() {
        return Err(format!("the host's own is not at {}", kernel.display()));
    }
    let names = [format!("initrd.img-{release}"), format!("initramfs-{release}.img"), format!("initrd-{release}")];
    let initrd = names.into_iter().map(|name| folder.join(name)).find(|path| path.exists());
    Ok((kernel, initrd))
}

/// What tells this boot of the host from all others.
#[must_use]
pub fn boot() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|text| text.trim().to_owned())
}

/// When the host booted, by its clock of now.
#[must_use]
pub fn boot_time() -> Option<SystemTime> {
    parse_boot_time(&fs::read_to_string("/proc/stat").ok()?)
}

fn parse_boot_time(stat: &str) -> Option<SystemTime> {
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    UNIX_EPOCH.checked_add(Duration::from_secs(line.trim().parse().ok()?))
}

/// The variable of the environment that says where covisor keeps what lasts.
pub const DATA_FOLDER: &str = "COVISOR_DATA_DIR";

/// Where covisor keeps what lasts: root's, or this user's own.
#[must_use]
pub fn data_folder() -> PathBuf {
    if let Some(folder) = std::env::var_os(DATA_FOLDER) {
        return folder.into();
    }
    if super::process::is_administrator() {
        return "/var/lib/covisor".into();
    }
    let of_home = || std::env::home_dir().unwrap_or_default().join(".local/share");
    // One that is not from the root counts for nothing (XDG Base Directory Specification).
    let folder = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|folder| folder.is_absolute());
    folder.unwrap_or_else(of_home).join("covisor")
}

/// Whether the driver's device is there.
#[must_use]
pub fn has_device() -> bool {
    Path::new(DEVICE_PATH).exists()
}

/// Names of the hypervisor modules that are loaded, other than ours.
#[must_use]
pub fn other_hypervisors() -> Vec<String> {
    let modules = fs::read_to_string("/proc/modules").unwrap_or_default();
    let known = ["kvm_amd", "kvm_intel", "vboxdrv", "vmmon", "xen_privcmd"];
    let names = modules.lines().filter_map(|line| line.split(' ').next());
    names.filter(|name| known.contains(name)).map(str::to_owned).collect()
}

/// Where the running kernel's headers are, if they are installed.
#[must_use]
pub fn kernel_headers() -> Option<PathBuf> {
    let build = Path::new("/lib/modules").join(kernel_release()).join("build");
    build.join("Makefile").exists().then_some(build)
}

/// Why the kernel would refuse an unsigned module, if it would.
#[must_use]
pub fn module_refusal() -> Option<&'static str> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    if read("/sys/kernel/security/lockdown").contains("[integrity]")
        || read("/sys/kernel/security/lockdown").contains("[confidentiality]")
    {
        return Some(
            "the kernel is locked down (Secure Boot): sign the module with an enrolled key, or switch Secure Boot off",
        );
    }
    if read("/sys/module/module/parameters/sig_enforce").trim() == "Y" {
        return Some("the kernel takes signed modules only (module.sig_enforce): sign the module with an enrolled key");
    }
    if read("/proc/sys/kernel/modules_disabled").trim() == "1" {
        return Some("loading modules is switched off until the next boot (kernel.modules_disabled)");
    }
    None
}

/// This host's name.
#[must_use]
pub fn name() -> Option<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned())
}

/// The system and its kernel.
#[must_use]
pub fn system() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    format!("{}, Linux {}", parse_name(&release).unwrap_or("an unknown system"), kernel_release())
}

/// The name in os-release(5).
fn parse_name(release: &str) -> Option<&str> {
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(name.trim_matches(['"', '\''])).filter(|name| !name.is_empty())
}

/// What the kernel and the firmware let be loaded.
#[must_use]
pub fn security() -> String {
    const SECURE_BOOT: &str = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
    let boot = match fs::read(SECURE_BOOT).ok().as_deref().map(parse_secure_boot) {
        Some(Some(true)) => "Secure Boot is on",
        Some(Some(false)) => "Secure Boot is off",
        _ if Path::new("/sys/firmware/efi").exists() => "Secure Boot is not told of",
        _ => "no UEFI",
    };
    let lockdown = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    let lockdown = parse_chosen(&lockdown).unwrap_or("not told");
    let modules = if module_refusal().is_some() { "are refused" } else { "are taken" };
    format!("{boot}; lockdown: {lockdown}; unsigned modules {modules}")
}

/// Whether Secure Boot is on, by the firmware's variable: four bytes of its own attributes, and one that is 0 or 1.
fn parse_secure_boot(variable: &[u8]) -> Option<bool> {
    variable.get(4).map(|&value| value == 1)
}

/// The one of several words that is in brackets.
fn parse_chosen(words: &str) -> Option<&str> {
    words.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'))
}

/// Bytes that this user can still write to the file system of a folder.
#[must_use]
pub fn free_space(folder: &Path) -> Option<u64> {
    let of = rustix::fs::statvfs(folder).ok()?;
    of.f_bavail.checked_mul(of.f_frsize)
}

/// What the driver complained of in the kernel's log, the last at the end; nothing where this user may not read that.
#[must_use]
pub fn complaints() -> Vec<String> {
    let log = fs::File::options().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg");
    let Ok(mut log) = log else { return Vec::new() };
    let mut complaints = Vec::new();
    let mut record = [0; KERNEL_RECORD];
    loop {
        match log.read(&mut record) {
            Ok(0) => break,
            Ok(size) => {
                complaints.extend(parse_complaint(&String::from_utf8_lossy(&record[..size])).map(str::to_owned))
            }
            // It was overwritten before it was read; the next one is there.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(_) => break,
        }
    }
    complaints
}

/// The driver's message in a record of the kernel's log (`Documentation/ABI/testing/dev-kmsg`), if it is a warning or worse.
fn parse_complaint(record: &str) -> Option<&str> {
    /// `LOG_WARNING` of syslog(3); what is worse is less.
    const WARNING: u32 = 4;
    let (head, message) = record.lines().next()?.split_once(';')?;
    let priority: u32 = head.split(',').next()?.parse().ok()?;
    let is_complaint = priority & 7 <= WARNING && message.starts_with("covisor: ");
    is_complaint.then_some(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_the_hosts_own_initial_ram_disk_is_found_by_each_distributions_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        assert!(kernel_in(folder.path(), "6.1").unwrap_err().contains("vmlinuz-6.1"));
        fs::write(path("vmlinuz-6.1"), "").unwrap();
        // Another kernel's.
        fs::write(path("initrd.img-6.12"), "").unwrap();
        assert_eq!(kernel_in(folder.path(), "6.1"), Ok((path("vmlinuz-6.1"), None)));
        for name in ["initrd-6.1", "initramfs-6.1.img", "initrd.img-6.1"] {
            fs::write(path(name), "").unwrap();
            assert_eq!(kernel_in(folder.path(), "6.1"), Ok((path("vmlinuz-6.1"), Some(path(name)))));
        }
    }

    #[test]
    fn test_the_system_is_named() {
        assert_eq!(parse_name("ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n"), Some("Debian GNU/Linux 12"));
        assert_eq!(parse_name("ID=x\n"), None);
        assert!(system().contains(", Linux ") && name().is_some());
    }

    #[test]
    fn test_what_guards_the_kernel_is_told() {
        assert_eq!(parse_secure_boot(&[6, 0, 0, 0, 1]), Some(true));
        assert_eq!(parse_secure_boot(&[6, 0, 0, 0, 0]), Some(false));
        assert_eq!(parse_secure_boot(&[6]), None);
        assert_eq!(parse_chosen("none [integrity] confidentiality\n"), Some("integrity"));
        assert!(security().contains("lockdown: "));
    }

    #[test]
    fn test_complaints_are_the_drivers() {
        assert_eq!(parse_complaint("4,1,2,-;covisor: no\n SUBSYSTEM=x\n"), Some("covisor: no"));
        assert_eq!(parse_complaint("30,1,2,-;covisor: loaded\n"), None);
        assert_eq!(parse_complaint("3,1,2,-;usb: no\n"), None);
        assert_eq!(parse_complaint("x;covisor: no"), None);
        // Whatever there is, it ends.
        let _ = complaints();
    }

    #[test]
    fn test_there_is_room() {
        assert!(free_space(Path::new("/")).is_some());
        assert_eq!(free_space(Path::new("/no/folder")), None);
    }

    #[test]
    fn test_available_memory_is_read_in_kib() {
        assert_eq!(parse_available("MemTotal: 9 kB\nMemAvailable:   2048 kB\n"), Some(2 << 20));
        assert_eq!(parse_available("MemTotal: 9 kB\n"), None);
        assert_eq!(parse_available("MemAvailable: x kB"), None);
    }

    #[test]
    fn test_the_boot_has_a_name_and_a_time() {
        assert_eq!(boot().map(|boot| boot.len()), Some(36));
        assert!(boot_time().is_some_and(|time| time < SystemTime::now()));
        let time = UNIX_EPOCH + Duration::from_secs(17);
        assert_eq!(parse_boot_time("cpu 1 2\nbtime 17\nprocesses 3\n"), Some(time));
        assert_eq!(parse_boot_time("btime x\n"), None);
    }

    #[test]
    fn test_this_host_has_a_kernel() {
        assert!(!kernel_release().is_empty());
        assert!(available_memory().is_some());
    }
}
