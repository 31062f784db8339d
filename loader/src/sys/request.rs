//! What the host asks of this process.

/// What the host may ask of this process at any time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Interrupted from the keyboard, or told to end, by the host's service manager too.
    End,
    /// The terminal went away: on Windows, the window was closed, the user logs off or the machine shuts down.
    HangUp,
    /// The terminal has another size.
    Resize,
}
