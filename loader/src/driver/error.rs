//! What can go wrong with the driver, in the words that the user reads.

use std::fmt;
use std::io;

use covisor_abi::Call;
use covisor_abi::EngineKind;
use covisor_abi::EngineStatus;
use thiserror::Error;

/// Why the driver cannot do what it was asked.
#[derive(Debug, Error)]
pub enum DriverError {
    /// There is no device.
    #[error("the driver is not loaded ({path} is not there): type `sudo covisor driver install`")]
    NotLoaded {
        /// Where it should be.
        path: String,
    },
    /// The device is there, and this user must not open it.
    #[error(
        "you may not open {path}: run covisor as root (`sudo covisor …`), or let an administrator give you access to it"
    )]
    PermissionDenied {
        /// The device.
        path: String,
    },
    /// The device cannot be opened for another reason.
    #[error("cannot open {path}: {source}")]
    Open {
        /// The device.
        path: String,
        /// What the host says.
        source: io::Error,
    },
    /// The device does not know covisor's calls.
    #[error("{path} is not covisor's driver: remove what made it, then type `sudo covisor driver install`")]
    NotOurs {
        /// The device.
        path: String,
    },
    /// Driver and loader speak different versions of the interface.
    #[error(
        "the driver speaks interface version {driver}, this covisor speaks version {loader}: \
         install the driver that belongs to it by `sudo covisor driver install`"
    )]
    VersionMismatch {
        /// The driver's version.
        driver: u32,
        /// Ours.
        loader: u32,
    },
    /// The engine cannot run on this machine.
    #[error("engine {}: {}", .engine.name(), EngineVerdict { engine: *.engine, status: *.status })]
    EngineUnavailable {
        /// The engine that was asked for.
        engine: EngineKind,
        /// Why not.
        status: EngineStatus,
    },
    /// No engine can run on this machine.
    #[error("no engine can run a guest on this machine: {reasons}")]
    NoEngine {
        /// Each engine's reason.
        reasons: String,
    },
    /// More vCPUs than the driver can do.
    #[error("the driver runs at most {max} vCPUs a guest, not {wanted}: lower --cpus")]
    TooManyVcpus {
        /// What was asked for.
        wanted: u32,
        /// The driver's limit.
        max: u32,
    },
    /// The host has not that much memory.
    #[error("the host cannot give the guest {} MiB of memory now: lower --mem or end other programs", .bytes >> 20)]
    NoMemory {
        /// What was asked for.
        bytes: u64,
    },
    /// Guest memory cannot be mapped into this process.
    #[error("cannot map the guest's memory: {0}")]
    Map(io::Error),
    /// The driver refuses a call for another reason.
    #[error("the driver refused {call:?}: {source}")]
    Call {
        /// The call.
        call: Call,
        /// What it says.
        source: io::Error,
    },
    /// The driver answered with something that its interface does not know.
    #[error(
        "the driver answered {call:?} with an unknown {what} ({value}): install the driver that belongs to this covisor by `sudo covisor driver install`"
    )]
    BadAnswer {
        /// The call.
        call: Call,
        /// What is unknown.
        what: &'static str,
        /// Its value.
        value: u32,
    },
}

/// An engine's state on this machine as a clause: usable, or why not and what to do.
#[derive(Debug, Clone, Copy)]
pub struct EngineVerdict {
    /// The engine.
    pub engine: EngineKind,
    /// Its state.
    pub status: EngineStatus,
}

impl fmt::Display for EngineVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.engine {
            EngineKind::Svm => "AMD-V",
            EngineKind::Vmx => "Intel VT-x",
            EngineKind::Coop => "the cooperative world switch",
            EngineKind::Auto => "an engine",
        };
        match (self.status, self.engine) {
            (EngineStatus::Usable, EngineKind::Svm) => f.write_str("AMD-V with nested paging is available"),
            (EngineStatus::Usable, EngineKind::Vmx) => {
                f.write_str("Intel VT-x with EPT and unrestricted guest is available")
            }
            (EngineStatus::Usable, _) => write!(f, "{name} is available"),
            (EngineStatus::NotBuilt, _) => {
                write!(f, "the installed driver was built without it; use another --engine, or a driver that has it")
            }
            (EngineStatus::CpuLacks, EngineKind::Coop) => {
                f.write_str("this CPU lacks what the cooperative world switch needs; use another --engine")
            }
            (EngineStatus::CpuLacks, _) => {
                write!(f, "this CPU does not have {name} (or the hypervisor that this machine runs on hides it); use --engine auto")
            }
            (EngineStatus::DisabledByFirmware, EngineKind::Svm) => f.write_str(
                "AMD-V is disabled in the firmware; switch on \"SVM Mode\" in the firmware set-up, then power the machine off and on",
            ),
            (EngineStatus::DisabledByFirmware, _) => {
                write!(f, "{name} is disabled in the firmware; switch it on in the firmware set-up, then power the machine off and on")
            }
            (EngineStatus::Taken, _) => {
                write!(f, "another hypervisor holds {name}; end its machines (and on Linux unload it, as by `sudo modprobe -r kvm_amd kvm_intel`)")
            }
            (EngineStatus::NoNestedPaging, EngineKind::Svm) => {
                f.write_str("this CPU has AMD-V without nested paging, which covisor needs; use --engine auto")
            }
            (EngineStatus::NoNestedPaging, _) => {
                write!(f, "this CPU has {name} without nested paging, which covisor needs; use --engine auto")
            }
        }
    }
}

impl DriverError {
    /// From the host's error of opening the device at `path`.
    pub(super) fn from_open(path: &str, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => Self::NotLoaded { path },
            Some(libc::EACCES | libc::EPERM) => Self::PermissionDenied { path },
            _ => Self::Open { path, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_open_errors_name_cause_and_remedy() {
        let text = |errno| DriverError::from_open("/dev/covisor", io::Error::from_raw_os_error(errno)).to_string();
        assert!(text(libc::ENOENT).contains("sudo covisor driver install"));
        assert!(text(libc::EACCES).contains("root"));
        assert!(text(libc::EMFILE).contains("cannot open /dev/covisor"));
    }

    #[test]
    fn test_every_engine_status_has_a_sentence_of_its_own() {
        let mut seen = std::collections::HashSet::new();
        for number in 0..=5 {
            let status = EngineStatus::from_u32(number).unwrap();
            let text = EngineVerdict { engine: EngineKind::Svm, status }.to_string();
            assert!(seen.insert(text));
        }
    }
}
