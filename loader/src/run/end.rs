//! How a run ends, and the exit status for it.

use std::io;
use std::time::Duration;

use covisor_exec_protocol::DecodeError;
use thiserror::Error;

use crate::driver::DriverError;
use crate::run::ConfigError;
use crate::vcpu::VcpuEnd;

/// A run that ended as it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The guest powered off, or reset and was not to run again, or the user ended it at the console.
    Off,
    /// The command of `--exec` ended with this status.
    Exec(i32),
}

impl End {
    /// The exit status for it: a command's own, of which a process gives the low byte.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Off => 0,
            Self::Exec(status) => status.to_le_bytes()[0],
        }
    }
}

/// Why a run did not end as it should.
#[derive(Debug, Error)]
pub enum RunError {
    /// What the user asked for cannot be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The driver or an engine.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The host refuses something.
    #[error("cannot {what}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// What the host says.
        source: io::Error,
    },
    /// A device cannot be put into the machine.
    #[error("{0}")]
    Device(String),
    /// The guest went wrong.
    #[error("{0}")]
    Guest(VcpuEnd),
    /// The guest ended before the command did.
    #[error("the guest {how} before the command of --exec {when}")]
    GuestLeft {
        /// How it ended.
        how: &'static str,
        /// When.
        when: &'static str,
    },
    /// The guest's agent is of another version.
    #[error(
        "the guest's agent speaks version {agent} of the exec protocol, this covisor version {ours}: install the agent of this covisor in the guest"
    )]
    AgentVersion {
        /// The agent's.
        agent: u32,
        /// Ours.
        ours: u32,
    },
    /// The guest's agent says nonsense.
    #[error("{0}")]
    Agent(#[from] DecodeError),
    /// Nobody takes the command's output.
    #[error("cannot write the command's output: {0}")]
    Output(io::Error),
    /// Time is up.
    #[error("the time of --timeout is over ({} s), the machine was ended", .0.as_secs_f64())]
    Timeout(Duration),
    /// It was asked to power off, and did not.
    #[error("the guest did not power off within {} s, and was ended: --stop-timeout gives it more time", .0.as_secs())]
    DidNotPowerOff(Duration),
    /// Ended from outside.
    #[error("the machine was ended by {0}")]
    Interrupted(&'static str),
}

/// Exit status when something was wrong before the guest could run.
pub(crate) const USAGE: u8 = 1;
/// Exit status of a machine that was ended from outside.
pub(crate) const INTERRUPTED: u8 = 130;
/// coLinux's exit status when driver and program do not belong to each other.
const COLINUX_VERSION: u8 = 3;
/// coLinux's exit status when the driver cannot be reached.
const COLINUX_NO_DRIVER: u8 = 14;
/// coLinux's exit status for all other errors.
pub(crate) const COLINUX_ERROR: u8 = 255;

impl RunError {
    /// The exit status for it, as `covisor run --help` lists them.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Host { .. } | Self::Device(_) | Self::Output(_) => USAGE,
            Self::Driver(_) | Self::Guest(VcpuEnd::Driver(_)) => 2,
            Self::Guest(_) | Self::GuestLeft { .. } | Self::AgentVersion { .. } | Self::Agent(_) => 3,
            Self::Timeout(_) => 124,
            Self::DidNotPowerOff(_) | Self::Interrupted(_) => INTERRUPTED,
        }
    }

    /// The exit status that coLinux had for it.
    #[must_use]
    pub fn colinux_exit_code(&self) -> u8 {
        match self {
            Self::Driver(DriverError::VersionMismatch { .. } | DriverError::BadAnswer { .. }) => COLINUX_VERSION,
            Self::Driver(
                DriverError::NotLoaded { .. }
                | DriverError::PermissionDenied { .. }
                | DriverError::Open { .. }
                | DriverError::NotOurs { .. },
            ) => COLINUX_NO_DRIVER,
            _ => COLINUX_ERROR,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_statuses_are_colinuxs_where_it_is_asked_for() {
        let path = || "/dev/covisor".to_owned();
        for (error, ours, colinuxs) in [
            (RunError::Driver(DriverError::NotLoaded { path: path() }), 2, 14),
            (RunError::Driver(DriverError::PermissionDenied { path: path() }), 2, 14),
            (RunError::Driver(DriverError::VersionMismatch { driver: 1, loader: 2 }), 2, 3),
            (RunError::Driver(DriverError::NoMemory { bytes: 1 }), 2, 255),
            (RunError::Config(ConfigError::NoMemory), 1, 255),
            (RunError::Interrupted("a signal"), 130, 255),
        ] {
            assert_eq!((error.exit_code(), error.colinux_exit_code()), (ours, colinuxs), "{error}");
        }
        assert_eq!(End::Off.exit_code(), 0);
    }
}
