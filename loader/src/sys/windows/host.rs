//! Facts about the host for checks and for `covisor doctor`.

use std::arch::x86_64::__cpuid;
use std::mem;
use std::path::Path;
use std::path::PathBuf;
use std::ptr;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use raw_cpuid::CpuId;
use raw_cpuid::Hypervisor;
use windows_sys::Wdk::System::SystemInformation::NtQuerySystemInformation;
use windows_sys::Wdk::System::SystemInformation::SYSTEM_INFORMATION_CLASS;
use windows_sys::Wdk::System::SystemServices::RtlGetVersion;
use windows_sys::Win32::Storage::FileSystem::GetDiskFreeSpaceExW;
use windows_sys::Win32::System::SystemInformation::GlobalMemoryStatusEx;
use windows_sys::Win32::System::SystemInformation::MEMORYSTATUSEX;
use windows_sys::Win32::System::SystemInformation::OSVERSIONINFOW;
use windows_sys::Win32::System::Threading::IsProcessorFeaturePresent;

use super::module;
use super::process;
use super::registry;
use super::wide::wide;
use crate::sys::OpenRefusal;
use crate::sys::nt::conditions;
use crate::sys::nt::conditions::Facts;
use crate::sys::transport;
use crate::sys::transport::DEVICE_PATH;
use crate::sys::transport::Transport;

/// `SystemCodeIntegrityInformation`, and its options (`winternl.h`).
const CODE_INTEGRITY: SYSTEM_INFORMATION_CLASS = 103;
const CODE_INTEGRITY_ENABLED: u32 = 1;
const CODE_INTEGRITY_TESTSIGN: u32 = 2;
const CODE_INTEGRITY_HVCI: u32 = 0x400;
/// `PF_VIRT_FIRMWARE_ENABLED` (`winnt.h`), which Windows 8 and later know.
const VIRTUALIZATION_IN_FIRMWARE: u32 = 21;
const WINDOWS_8: (u32, u32) = (6, 2);
/// Hyper-V's leaf of what the partition may do, and in its EBX the right to make partitions (Hypervisor TLFS, 2.4.4).
const HYPER_V_FEATURES: u32 = 0x4000_0003;
const MAY_CREATE_PARTITIONS: u32 = 1;
/// Other hypervisors' drivers: the service and whose it is.
const OTHERS: [(&str, &str); 5] = [
    ("VBoxSup", "VirtualBox"),
    ("VBoxDrv", "VirtualBox (old)"),
    ("vmx86", "VMware"),
    ("IntelHaxm", "HAXM"),
    ("aehd", "Android Emulator"),
];

/// `SystemTimeOfDayInformation` (`winternl.h`).
const TIME_OF_DAY: SYSTEM_INFORMATION_CLASS = 3;
/// Times are in intervals of 100 ns since 1601.
const INTERVALS_UNTIL_1970: u64 = 116_444_736_000_000_000;
const INTERVALS_OF_A_MICROSECOND: u64 = 10;

/// Memory that programs can get now, in bytes.
#[must_use]
pub fn available_memory() -> Option<u64> {
    let mut status = MEMORYSTATUSEX::default();
    status.dwLength = u32::try_from(mem::size_of_val(&status)).ok()?;
    // SAFETY: fills the structure, whose size it is told.
    (unsafe { GlobalMemoryStatusEx(&raw mut status) } != 0).then_some(status.ullAvailPhys)
}

/// This host's name.
#[must_use]
pub fn name() -> Option<String> {
    std::env::var("COMPUTERNAME").ok()
}

/// The system and its kernel.
#[must_use]
pub fn system() -> String {
    let info = version_information();
    format!("Windows {}.{}.{}", info.dwMajorVersion, info.dwMinorVersion, info.dwBuildNumber)
}

/// What Windows and the firmware let be loaded.
#[must_use]
pub fn security() -> String {
    conditions::security(&facts())
}

/// Bytes that this user can still write to the file system of a folder.
#[must_use]
pub fn free_space(folder: &Path) -> Option<u64> {
    let (path, mut bytes) = (wide(folder), 0);
    // SAFETY: the path ends with a zero; the one number is written, and nothing where there is no pointer.
    let told = unsafe { GetDiskFreeSpaceExW(path.as_ptr(), &raw mut bytes, ptr::null_mut(), ptr::null_mut()) };
    (told != 0).then_some(bytes)
}

/// What the driver complained of: Windows keeps that in its event log, where this does not look.
#[must_use]
pub fn complaints() -> Vec<String> {
    Vec::new()
}

/// Major and minor version: what Windows is, not what it tells old programs.
fn version() -> (u32, u32) {
    let info = version_information();
    (info.dwMajorVersion, info.dwMinorVersion)
}

fn version_information() -> OSVERSIONINFOW {
    let mut info = OSVERSIONINFOW::default();
    info.dwOSVersionInfoSize = u32::try_from(mem::size_of_val(&info)).unwrap_or(0);
    // SAFETY: fills the structure, whose size it is told.
    unsafe { RtlGetVersion(&raw mut info) };
    info
}

/// What tells this boot of the host from the others: the number that Windows gives it.
#[must_use]
pub fn boot() -> Option<String> {
    const COUNTED: &str = r"SYSTEM\CurrentControlSet\Control\Session Manager\Memory Management\PrefetchParameters";
    registry::number(COUNTED, "BootId").map(|number| number.to_string())
}

/// When the host booted, by its clock.
#[must_use]
pub fn boot_time() -> Option<SystemTime> {
    // `SYSTEM_TIMEOFDAY_INFORMATION`, as all NTs have it: the boot's time, that of now, and the zone.
    let mut info = [0_i64; 4];
    let size = u32::try_from(mem::size_of_val(&info)).ok()?;
    // SAFETY: fills the structure, whose size it is told.
    let status = unsafe { NtQuerySystemInformation(TIME_OF_DAY, (&raw mut info).cast(), size, ptr::null_mut()) };
    let intervals = u64::try_from(info[0]).ok().filter(|_| status >= 0)?.checked_sub(INTERVALS_UNTIL_1970)?;
    UNIX_EPOCH.checked_add(Duration::from_micros(intervals / INTERVALS_OF_A_MICROSECOND))
}

/// The variable of the environment that says where covisor keeps what lasts.
pub const DATA_FOLDER: &str = "COVISOR_DATA_DIR";

/// Where covisor keeps what lasts.
#[must_use]
pub fn data_folder() -> PathBuf {
    if let Some(folder) = std::env::var_os(DATA_FOLDER) {
        return folder.into();
    }
    std::env::var_os("ALLUSERSPROFILE").map_or_else(std::env::temp_dir, PathBuf::from).join("covisor")
}

/// A kernel that the host itself runs could be the guest's.
///
/// # Errors
/// Windows has none, as a clause.
pub fn own_kernel() -> Result<(PathBuf, Option<PathBuf>), String> {
    Err("Windows has none of its own".to_owned())
}

/// Whether the driver's device is there.
#[must_use]
pub fn has_device() -> bool {
    match Transport::open(Path::new(DEVICE_PATH)) {
        Ok(_) => true,
        Err(error) => transport::open_refusal(&error) != OpenRefusal::NoDevice,
    }
}

/// Names of the other hypervisors whose drivers run.
#[must_use]
pub fn other_hypervisors() -> Vec<&'static str> {
    OTHERS.into_iter().filter(|(service, _)| module::is_running(service)).map(|(_, name)| name).collect()
}

/// Options of code integrity.
fn code_integrity() -> Option<u32> {
    // Length and options.
    let mut info = [8_u32, 0];
    // SAFETY: fills the array, whose size it is told.
    let status = unsafe { NtQuerySystemInformation(CODE_INTEGRITY, info.as_mut_ptr().cast(), 8, ptr::null_mut()) };
    (status >= 0).then_some(info[1])
}

/// What there is to know of this Windows.
pub(super) fn facts() -> Facts {
    const DEVICE_GUARD: &str = r"SYSTEM\CurrentControlSet\Control\DeviceGuard";
    const MEMORY_INTEGRITY: &str =
        r"SYSTEM\CurrentControlSet\Control\DeviceGuard\Scenarios\HypervisorEnforcedCodeIntegrity";
    const SECURE_BOOT: &str = r"SYSTEM\CurrentControlSet\Control\SecureBoot\State";
    let hypervisor = CpuId::new().get_hypervisor_info().map(|info| info.identify());
    let is_on_hyper_v = matches!(hypervisor, Some(Hypervisor::HyperV));
    let integrity = code_integrity();
    let has = |option: u32| integrity.map(|options| options & option != 0);
    // SAFETY: takes a number.
    let firmware = || unsafe { IsProcessorFeaturePresent(VIRTUALIZATION_IN_FIRMWARE) } != 0;
    Facts {
        is_administrator: process::is_administrator(),
        is_on_hyper_v,
        is_hyper_v_root: is_on_hyper_v && __cpuid(HYPER_V_FEATURES).ebx & MAY_CREATE_PARTITIONS != 0,
        vbs: registry::number(DEVICE_GUARD, "EnableVirtualizationBasedSecurity") == Some(1),
        memory_integrity: has(CODE_INTEGRITY_HVCI) == Some(true)
            || registry::number(MEMORY_INTEGRITY, "Enabled") == Some(1),
        secure_boot: registry::number(SECURE_BOOT, "UEFISecureBootEnabled").map(|enabled| enabled == 1),
        enforces_signatures: has(CODE_INTEGRITY_ENABLED),
        test_signing: has(CODE_INTEGRITY_TESTSIGN),
        // In a virtual machine it says nothing of the firmware.
        firmware_has_it_on: (version() >= WINDOWS_8 && hypervisor.is_none()).then(firmware),
        others: other_hypervisors(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_this_host_tells_of_itself() {
        assert!(available_memory().is_some());
        assert!(version().0 >= 5);
        assert!(system().starts_with("Windows ") && security().contains("Secure Boot"));
        assert!(free_space(&std::env::temp_dir()).is_some());
        assert!(own_kernel().is_err());
        assert!(boot_time().is_some_and(|time| time < SystemTime::now()));
        // Reads all there is, whatever it says.
        let _ = facts();
    }
}
