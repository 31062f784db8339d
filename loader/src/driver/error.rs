//! What can go wrong with the driver, in the words that the user reads.

use std::fmt;
use std::io;

use covisor_abi::Call;
use covisor_abi::EngineKind;
use covisor_abi::EngineStatus;
use thiserror::Error;

use crate::sys::OpenRefusal;
use crate::sys::transport::open_refusal;
use crate::sys::words;
use crate::sys::words::GET_ACCESS;
use crate::sys::words::INSTALL;

/// Why the driver cannot do what it was asked.
#[derive(Debug, Error)]
pub enum DriverError {
    /// There is no device.
    #[error("the driver is not loaded ({path} is not there): type {INSTALL}")]
    NotLoaded {
        /// Where it should be.
        path: String,
    },
    /// The device is there, and this user must not open it.
    #[error("you may not open {path}: {GET_ACCESS}")]
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
    #[error("{path} is not covisor's driver: remove what made it, then type {INSTALL}")]
    NotOurs {
        /// The device.
        path: String,
    },
    /// Driver and loader speak different versions of the interface.
    #[error(
        "the driver speaks interface version {driver}, this covisor speaks version {loader}: \
         install the driver that belongs to it by {INSTALL}"
    )]
    VersionMismatch {
        /// The driver's version.
        driver: u32,
        /// Ours.
        loader: u32,
    },
    /// The engine cannot run on this machine.
    #[error(
        "engine {}: {}{}", .engine.name(), EngineVerdict { engine: *.engine, status: *.status }, alternative(*.status)
    )]
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
        "the driver answered {call:?} with an unknown {what} ({value}): install the driver that belongs to this covisor by {INSTALL}"
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

/// What is left to the user of an engine that nothing on this machine brings about.
const fn alternative(status: EngineStatus) -> &'static str {
    match status {
        EngineStatus::NotBuilt
        | EngineStatus::CpuLacks
        | EngineStatus::NoNestedPaging
        | EngineStatus::NoUnrestrictedGuest
        | EngineStatus::LacksControls
        | EngineStatus::ShadowStackOn
        | EngineStatus::FredOn => "; use --engine auto",
        EngineStatus::Usable
        | EngineStatus::DisabledByFirmware
        | EngineStatus::Taken
        | EngineStatus::HiddenByHyperV
        | EngineStatus::HiddenByHypervisor => "",
    }
}

impl EngineVerdict {
    /// What the engine uses, as its vendor calls it.
    const fn extension(self) -> &'static str {
        match self.engine {
            EngineKind::Svm => "AMD-V",
            EngineKind::Vmx => "Intel VT-x",
            EngineKind::Coop => "the cooperative world switch",
            EngineKind::Auto => "an engine",
        }
    }
}

impl fmt::Display for EngineVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.extension();
        match (self.status, self.engine) {
            (EngineStatus::Usable, EngineKind::Svm) => f.write_str("AMD-V with nested paging is available"),
            (EngineStatus::Usable, EngineKind::Vmx) => {
                f.write_str("Intel VT-x with EPT and unrestricted guest is available")
            }
            (EngineStatus::Usable, EngineKind::Coop) => {
                write!(f, "{name} is available, for kernels with Xen PV support")
            }
            (EngineStatus::Usable, _) => write!(f, "{name} is available"),
            (EngineStatus::NotBuilt, _) => f.write_str("the installed driver was built without it"),
            (EngineStatus::CpuLacks, EngineKind::Coop) => f.write_str(
                "this CPU, or the way in which the host's kernel uses it, does not allow the cooperative world switch",
            ),
            (EngineStatus::CpuLacks, _) => write!(f, "this CPU does not have {name}"),
            (EngineStatus::DisabledByFirmware, EngineKind::Svm) => f.write_str(
                "AMD-V is switched off in the firmware's settings: switch on \"SVM Mode\" there, then power the machine off and on",
            ),
            (EngineStatus::DisabledByFirmware, EngineKind::Vmx) => f.write_str(
                "VT-x is switched off in the firmware's settings: switch on \"Intel Virtualization Technology\" (\"VT-x\", \"VMX\") there, then power the machine off and on",
            ),
            (EngineStatus::DisabledByFirmware, _) => write!(
                f,
                "{name} is switched off in the firmware's settings: switch it on there, then power the machine off and on"
            ),
            (EngineStatus::Taken, EngineKind::Svm | EngineKind::Vmx) => {
                write!(f, "another hypervisor holds {name}; end its machines, and {}", words::release(self.engine))
            }
            (EngineStatus::Taken, _) => write!(f, "another hypervisor holds {name}; end its machines"),
            (EngineStatus::NoNestedPaging, EngineKind::Vmx) => {
                f.write_str("this CPU's VT-x has no nested paging (EPT), which the engine coop does without")
            }
            (EngineStatus::NoNestedPaging, _) => {
                write!(f, "this CPU's {name} has no nested paging, which the engine coop does without")
            }
            (EngineStatus::NoUnrestrictedGuest, _) => f.write_str(
                "this CPU's VT-x cannot run real mode (unrestricted guest), which the engine coop does without",
            ),
            (EngineStatus::HiddenByHyperV, _) => write!(
                f,
                "Hyper-V runs this machine and hides {name} from it: shut it down, then type `Set-VMProcessor -VMName NAME \
                 -ExposeVirtualizationExtensions $true` on its host (on that host itself: switch Hyper-V off)"
            ),
            (EngineStatus::HiddenByHypervisor, EngineKind::Svm | EngineKind::Vmx) => {
                let kvm = if self.engine == EngineKind::Svm { "kvm_amd" } else { "kvm_intel" };
                write!(
                    f,
                    "the hypervisor that runs this machine hides {name} from it: switch on nested virtualization there \
                     (KVM: module option `nested=1` of {kvm}, and the CPU model of the host)"
                )
            }
            (EngineStatus::HiddenByHypervisor, _) => {
                write!(f, "the hypervisor that runs this machine hides {name} from it")
            }
            (EngineStatus::LacksControls, _) => write!(
                f,
                "this CPU's {name} lacks controls that covisor needs: it is too old, or a hypervisor hides them"
            ),
            (EngineStatus::ShadowStackOn, _) => {
                write!(f, "this host's kernel runs with a shadow stack (CET), which {name} cannot do with yet")
            }
            (EngineStatus::FredOn, _) => {
                write!(f, "this host's kernel takes events by FRED, which {name} cannot do with yet")
            }
        }
    }
}

impl DriverError {
    /// From the host's error of opening the device at `path`.
    pub(super) fn from_open(path: &str, source: io::Error) -> Self {
        let path = path.to_owned();
        match open_refusal(&source) {
            OpenRefusal::NoDevice => Self::NotLoaded { path },
            OpenRefusal::NotAllowed => Self::PermissionDenied { path },
            OpenRefusal::Other => Self::Open { path, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::ENGINES;

    #[test]
    fn test_open_errors_name_cause_and_remedy() {
        // ENOENT, EACCES, EMFILE; ERROR_FILE_NOT_FOUND, ERROR_ACCESS_DENIED, ERROR_TOO_MANY_OPEN_FILES.
        let [missing, denied, other] = if cfg!(windows) { [2, 5, 4] } else { [2, 13, 24] };
        let text = |number| DriverError::from_open("/dev/covisor", io::Error::from_raw_os_error(number)).to_string();
        assert!(text(missing).contains(INSTALL));
        assert!(text(denied).contains(GET_ACCESS));
        assert!(text(other).contains("cannot open /dev/covisor"));
    }

    #[test]
    fn test_every_engine_status_has_a_sentence_of_its_own() {
        let statuses: Vec<_> = (0..).map_while(EngineStatus::from_u32).collect();
        assert_eq!(statuses.len(), 12);
        for engine in ENGINES {
            let mut texts: Vec<_> =
                statuses.iter().map(|&status| EngineVerdict { engine, status }.to_string()).collect();
            texts.sort();
            texts.dedup();
            assert_eq!(texts.len(), statuses.len(), "{texts:?}");
        }
    }

    #[test]
    fn test_what_is_said_of_engines_is_not_too_long_for_one_line() {
        for engine in ENGINES {
            for status in (0..).map_while(EngineStatus::from_u32) {
                // Of the other vendor's extension there is no more to say than this.
                let reasons = format!("vmx: {}; svm: this CPU does not have AMD-V", EngineVerdict { engine, status });
                for error in [DriverError::NoEngine { reasons }, DriverError::EngineUnavailable { engine, status }] {
                    let text = format!("covisor: error: {error}");
                    assert!(text.len() < 400, "{}: {text}", text.len());
                }
            }
        }
    }

    #[test]
    fn test_verdicts_name_the_remedy() {
        let text = |engine, status| EngineVerdict { engine, status }.to_string();
        assert!(text(EngineKind::Vmx, EngineStatus::DisabledByFirmware).contains("Intel Virtualization Technology"));
        for engine in [EngineKind::Svm, EngineKind::Vmx] {
            assert!(text(engine, EngineStatus::Taken).contains(words::release(engine)));
        }
        let hidden = text(EngineKind::Vmx, EngineStatus::HiddenByHyperV);
        assert!(hidden.contains("-ExposeVirtualizationExtensions $true"), "{hidden}");
        for status in [EngineStatus::NoNestedPaging, EngineStatus::NoUnrestrictedGuest] {
            assert!(text(EngineKind::Vmx, status).contains("coop"));
        }
    }
}
