//! What the user of this host types, and how things are called here.

use covisor_abi::EngineKind;

/// How the driver is installed.
pub const INSTALL: &str = "`covisor driver install` as administrator";
/// What to do when the device is there and may not be opened.
pub const GET_ACCESS: &str =
    "open the command prompt by \"Run as administrator\", or let an administrator run covisor for you";
/// What to look for when the driver is loaded and its device is not there.
pub const DEVICE_MISSING: &str = "remove the driver and install it again";
/// What `covisor driver install --module` takes.
pub const MODULE_HELP: &str = "The driver's file [default: covisor.sys beside this program]";
/// What `covisor driver install --help` ends with.
pub const INSTALL_HELP: &str = "\
Examples:
  covisor driver install
  covisor driver install --module build\\covisor.sys";
/// What `covisor --help` ends with.
pub const EXAMPLES: &str = "\
Examples, in a command prompt of an administrator:
  covisor doctor                                   what this machine offers
  covisor driver install                           load the driver
  covisor run --kernel vmlinuz --initrd initrd.img --disk debian.img,ro --mem 1G
  covisor run --kernel vmlinuz --initrd mini.cpio --exec \"uname -a\"
  covisor ps                                       what runs
  covisor disk add web data.qcow2                  one more disk for a guest that runs
  covisor stop --all                               power everything off";
/// How a service is started.
pub const START_SERVICE: &str = "sc start";
/// Who installs and removes services.
pub const ONLY_ADMINISTRATORS: &str = "only administrators may install and remove services: open the command prompt by \
                                       \"Run as administrator\" and type it again";
/// Where what a service says goes.
pub const SERVICE_LOG_HELP: &str =
    "File at whose end the guest's console and covisor's messages are written [default: nowhere]";
/// What `covisor service install --help` ends with.
pub const SERVICE_HELP: &str = "\
The service is called covisor-NAME. It runs as the system and starts the driver first. When it is
stopped or Windows shuts down, it has the guest power off. When the guest cannot run, the service stops
with covisor's exit status, and Windows' log for programs (Event Viewer, source covisor-NAME) has the reason.

Examples:
  covisor service install web --kernel C:\\vm\\vmlinuz --disk C:\\vm\\web.img --mem 1G
  covisor service install db --start demand --log C:\\vm\\db.log @C:\\vm\\db.options
  sc start covisor-db";
/// How a disk image is made.
pub const MAKE_IMAGE: &str = "e.g. `fsutil file createnew FILE 2147483648`";
/// How an image's size is rounded up.
pub const ROUND_IMAGE: &str = r"`fsutil file seteof FILE BYTES` sets another";
/// What else can be a disk.
pub const BLOCK_DEVICE: &str = r"a partition or disk, as \\.\E: or \\.\PhysicalDrive1";

/// How whoever else holds an engine's extension gives it back.
#[must_use]
pub const fn release(_engine: EngineKind) -> &'static str {
    "switch it off if that is not enough (Hyper-V, WSL 2 and memory integrity: `bcdedit /set hypervisorlaunchtype off` and \
     restart; VirtualBox, VMware: quit them)"
}
