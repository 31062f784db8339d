//! What is refused, as far as anybody acts on it; each host has numbers of its own for it.

/// Why the driver's device cannot be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenRefusal {
    /// There is none.
    NoDevice,
    /// This user may not.
    NotAllowed,
    /// Something else.
    Other,
}

/// Why a call on the device fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallRefusal {
    /// The device does not know the call: it is not our driver's.
    NotOurs,
    /// The engine cannot run.
    NoEngine,
    /// The host has not that much memory.
    NoMemory,
    /// The host ended the call before it was done.
    Interrupted,
    /// Something else.
    Other,
}
