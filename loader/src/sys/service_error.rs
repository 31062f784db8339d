//! Why the host does nothing about a guest's service, in the words that the user reads.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

#[cfg(target_os = "linux")]
use crate::run::describe;
use crate::sys::words::ONLY_ADMINISTRATORS;

/// Why a guest's service cannot be installed, removed or looked at.
#[derive(Debug, Error)]
pub enum ServiceError {
    /// There is one of this name.
    #[error("there is a service for a guest {0} already: remove it first by `covisor service remove {0}`")]
    Exists(String),
    /// There is none of this name.
    #[error("there is no service for a guest {0}: `covisor service install {0}` makes one")]
    Missing(String),
    /// Somebody else made what this names: the unit's file, or the service.
    #[error("{0} was not made by `covisor service install`")]
    Foreign(String),
    /// The user is not an administrator.
    #[error("{ONLY_ADMINISTRATORS}")]
    NotAdministrator,
    /// A path that no command line can have.
    #[error("the path {0:?} has characters that are no text: move it to another folder")]
    NoText(PathBuf),
    /// Another service manager, or none.
    #[cfg(target_os = "linux")]
    #[error(
        "this host's services are not systemd's: have its own service manager run `covisor start --foreground NAME`, and stop it by SIGTERM"
    )]
    NoSystemd,
    /// systemd refuses.
    #[cfg(target_os = "linux")]
    #[error("`systemctl {action}` failed: {said}")]
    Systemd {
        /// What was wanted.
        action: String,
        /// What it said.
        said: String,
    },
    /// The host refuses a file.
    #[cfg(target_os = "linux")]
    #[error("{}: {}", path.display(), describe(source))]
    File {
        /// Which.
        path: PathBuf,
        /// What it says.
        source: io::Error,
    },
    /// Removed, but still there.
    #[cfg(windows)]
    #[error("the service that was here before is still being removed: close programs that show services, or restart")]
    Going,
    /// The options cannot be kept.
    #[cfg(windows)]
    #[error("{0}")]
    Line(&'static str),
    /// It goes on.
    #[cfg(windows)]
    #[error("the service does not stop: end its guest by `covisor stop {0} --force`, and type this again")]
    Stuck(String),
    /// Started by hand.
    #[cfg(windows)]
    #[error(
        "only Windows' service manager starts this: `covisor service install` tells it to, and `covisor run` runs a guest here"
    )]
    NotAService,
    /// Windows refuses for another reason.
    #[cfg(windows)]
    #[error("Windows does not do it: {0}")]
    Windows(io::Error),
    /// Another reason.
    #[error("{0}")]
    Host(io::Error),
}
