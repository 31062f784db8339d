//! What the user of this host types, and how things are called here.

use covisor_abi::EngineKind;

/// How the driver is installed.
pub const INSTALL: &str = "`sudo covisor driver install`";
/// What to do when the device is there and may not be opened.
pub const GET_ACCESS: &str = "run covisor as root (`sudo covisor …`), or let an administrator give you access to it";
/// What to look for when the driver is loaded and its device is not there.
pub const DEVICE_MISSING: &str = "is devtmpfs mounted on /dev?";
/// What `covisor driver install --module` takes.
pub const MODULE_HELP: &str =
    "The module's file [default: covisor.ko beside this program, or among the kernel's modules]";
/// What `covisor driver install --help` ends with.
pub const INSTALL_HELP: &str = "\
Examples:
  covisor driver install
  covisor driver install --module build/covisor.ko";
/// What `covisor --help` ends with.
pub const EXAMPLES: &str = "\
Examples:
  covisor doctor                                   what this machine offers
  sudo covisor driver install                      load the driver
  sudo covisor run --disk debian.img               boot a disk with the host's own kernel
  sudo covisor run --kernel vmlinuz --initrd initrd.img --disk debian.img,ro --mem 1G
  sudo covisor run --kernel vmlinuz --initrd mini.cpio --exec 'uname -a'
  sudo covisor create web --from debian            make a Debian guest of packages, to keep
  sudo covisor start web                           start it, in the background
  sudo covisor ps                                  what runs
  sudo covisor disk add web data.qcow2             one more disk for a guest that runs
  sudo covisor stop --all                          power everything off";
/// How a service is started.
pub const START_SERVICE: &str = "systemctl start";
/// Who installs and removes services.
pub const ONLY_ADMINISTRATORS: &str = "only root may install and remove services: use sudo";
/// Where what a service says goes.
pub const SERVICE_LOG_HELP: &str =
    "File at whose end the guest's console and covisor's messages are written [default: the host's journal]";
/// What `covisor service install --help` ends with.
pub const SERVICE_HELP: &str = "\
The service is a unit of systemd's, covisor-NAME.service. It runs as root and loads the driver first, if that is beside covisor or
among the kernel's modules. When it is stopped or the host shuts down, it has the guest power off. When the guest goes wrong, the
service fails with covisor's exit status, and is tried again unless its configuration is wrong.

Examples:
  covisor service install web
  covisor service install db --stop-timeout 300 --start demand --disk /srv/db.qcow2 --net nat,forward=tcp:5432:5432
  systemctl start covisor-db";
/// How a disk image is made.
pub const MAKE_IMAGE: &str = "e.g. `truncate -s 2G FILE`";
/// How an image's size is rounded up.
pub const ROUND_IMAGE: &str = "`truncate -s %512 FILE` rounds it up";
/// What else can be a disk.
pub const BLOCK_DEVICE: &str = "a block device";

/// How whoever else holds an engine's extension gives it back.
#[must_use]
pub const fn release(engine: EngineKind) -> &'static str {
    match engine {
        EngineKind::Svm => {
            "unload it if that is not enough (KVM: `sudo modprobe -r kvm_amd`; VirtualBox: `sudo modprobe -r vboxnetadp \
             vboxnetflt vboxdrv`; VMware: `sudo modprobe -r vmmon`)"
        }
        _ => {
            "unload it if that is not enough (KVM: `sudo modprobe -r kvm_intel`; VirtualBox: `sudo modprobe -r vboxnetadp \
             vboxnetflt vboxdrv`; VMware: `sudo modprobe -r vmmon`)"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_whoever_holds_the_extension_is_named() {
        assert!(release(EngineKind::Svm).contains("modprobe -r kvm_amd"));
        assert!(release(EngineKind::Vmx).contains("modprobe -r kvm_intel"));
        assert!(release(EngineKind::Vmx).contains("vboxdrv"));
    }
}
