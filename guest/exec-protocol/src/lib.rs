//! What `covisor run --exec`, `covisor exec` and the agent in the guest say to each other.
//!
//! The two talk over a virtio-console port named [`PORT_NAME`]: a byte stream in each direction,
//! cut into frames. A frame is one byte of kind, the payload's length as a little-endian `u32`,
//! and the payload, of at most [`MAX_PAYLOAD`] bytes.
//!
//! | direction | message | kind | payload |
//! |---|---|---|---|
//! | host to guest | [`ToGuest::Exec`] | `0x01` | a command for `/bin/sh -c`, UTF-8 |
//! | host to guest | [`ToGuest::Stdin`] | `0x02` | bytes of the command's standard input |
//! | host to guest | [`ToGuest::StdinEnd`] | `0x03` | none: the command's standard input ends here |
//! | host to guest | [`ToGuest::Kill`] | `0x04` | none: end the command |
//! | host to guest | [`ToGuest::SetClock`] | `0x05` | the time of day in nanoseconds since 1970 UTC, `u64` |
//! | guest to host | [`ToHost::Hello`] | `0x81` | the protocol's version, `u32` |
//! | guest to host | [`ToHost::Stdout`] | `0x82` | bytes of standard output |
//! | guest to host | [`ToHost::Stderr`] | `0x83` | bytes of standard error |
//! | guest to host | [`ToHost::Exit`] | `0x84` | the exit status, `i32`; 128 + signal when killed |
//!
//! The agent says `Hello` when the host's end of the port opens, then serves one command after
//! another: after `Exec` come any number of `Stdout` and `Stderr`, and one `Exit` ends the command. `Kill` is answered by an
//! `Exit` if a command still runs, and by nothing if it has just ended.
//!
//! `SetClock` may come at any time, with or without a command, and is answered by nothing.
//!
//! Each side decodes only the messages that it can be sent, and takes no more memory than one
//! frame for it whatever the other side sends: the host's [`Decoder`] reads from a hostile guest.

mod decoder;
mod message;

pub use decoder::{DecodeError, Decoder};
pub use message::{EncodeError, Message, ToGuest, ToHost};

/// The name of the virtio-console port between the host and the agent.
pub const PORT_NAME: &str = "org.covisor.exec";

/// The version that the agent says in [`ToHost::Hello`].
pub const VERSION: u32 = 3;

/// The longest payload of a frame.
pub const MAX_PAYLOAD: usize = 64 * 1024;

/// A frame's head: one byte of kind and four of length.
pub const HEADER_LEN: usize = 5;
