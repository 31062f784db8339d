//! How a run ends, and the exit status for it.

use std::io;
use std::time::Duration;

use covisor_exec_protocol::DecodeError;
use thiserror::Error;

use crate::driver::DriverError;
use crate::run::config::ConfigError;
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
    /// Ended from outside.
    #[error("the machine was ended by {0}")]
    Interrupted(&'static str),
}

impl RunError {
    /// The exit status for it, as `covisor run --help` lists them.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Host { .. } | Self::Device(_) | Self::Output(_) => 1,
            Self::Driver(_) | Self::Guest(VcpuEnd::Driver(_)) => 2,
            Self::Guest(_) | Self::GuestLeft { .. } | Self::AgentVersion { .. } | Self::Agent(_) => 3,
            Self::Timeout(_) => 124,
            Self::Interrupted(_) => 130,
        }
    }
}
