//! What a wait for many sockets says of one.

/// What became of a socket since it was last said: it is said once, and again only after the socket had nothing more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// What the socket was added with.
    pub token: u64,
    /// Something may be read: data, the end, or an error.
    pub readable: bool,
    /// Something may be written, or there is an error.
    pub writable: bool,
}
