//! Facts about the host for checks and for `covisor doctor`.

use std::fs;
use std::path::Path;
use std::path::PathBuf;

use crate::sys::transport::DEVICE_PATH;

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
#[must_use]
pub fn own_kernel() -> Option<(PathBuf, Option<PathBuf>)> {
    let release = kernel_release();
    let kernel = Path::new("/boot").join(format!("vmlinuz-{release}"));
    let initrd = Path::new("/boot").join(format!("initrd.img-{release}"));
    kernel.exists().then(|| (kernel, initrd.exists().then_some(initrd)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_available_memory_is_read_in_kib() {
        assert_eq!(parse_available("MemTotal: 9 kB\nMemAvailable:   2048 kB\n"), Some(2 << 20));
        assert_eq!(parse_available("MemTotal: 9 kB\n"), None);
        assert_eq!(parse_available("MemAvailable: x kB"), None);
    }

    #[test]
    fn test_this_host_has_a_kernel() {
        assert!(!kernel_release().is_empty());
        assert!(available_memory().is_some());
    }
}
