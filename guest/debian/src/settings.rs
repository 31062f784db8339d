//! Packages and settings of a Debian that is a guest.

/// Where covisor's agent goes.
pub const AGENT: &str = "/usr/sbin/covisor-agent";

/// The packages beyond Debian's smallest set with which one can log in, reach a network and install more.
pub const PACKAGES: &[&str] = &[
    "apt",
    "ca-certificates",
    "dbus",
    "e2fsprogs",
    "initramfs-tools",
    "iproute2",
    "iputils-ping",
    "kmod",
    "login",
    "passwd",
    "procps",
    "systemd",
    "systemd-resolved",
    "systemd-sysv",
    "udev",
    "zstd",
];

/// Debian's kernels by their meta packages: the one for virtual machines, which has fewer drivers, and the one for all.
pub const CLOUD_KERNEL: &str = "linux-image-cloud-amd64";
/// The kernel for all machines.
pub const GENERIC_KERNEL: &str = "linux-image-amd64";

/// A file of a guest's: its path from the root, and what is in it.
pub type Setting = (&'static str, &'static str);

/// Has udev start what a device is there for: a log-in, the agent, the network.
pub const RULES: Setting = ("etc/udev/rules.d/80-covisor.rules", include_str!("files/80-covisor.rules"));
/// Gives network adapters their addresses by DHCP.
pub const NETWORK: Setting = ("etc/systemd/network/80-covisor.network", include_str!("files/80-covisor.network"));
/// The agent as a service.
pub const AGENT_SERVICE: Setting =
    ("etc/systemd/system/covisor-agent.service", include_str!("files/covisor-agent.service"));
/// Logs root in on each serial console.
pub const AUTOLOGIN: Setting =
    ("etc/systemd/system/serial-getty@.service.d/autologin.conf", include_str!("files/autologin.conf"));
/// Keeps package lists small.
pub const SMALL_APT: Setting = ("etc/apt/apt.conf.d/80covisor", include_str!("files/80covisor"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_runs_the_agent_where_it_is() {
        assert!(AGENT_SERVICE.1.contains(&format!("ExecStart={AGENT}\n")));
        assert!(RULES.1.contains("covisor-agent.service"));
    }
}
