//! The messages of each direction and their bytes.

use std::fmt;

use crate::decoder::DecodeError;
use crate::{HEADER_LEN, MAX_PAYLOAD};

const EXEC: u8 = 0x01;
const STDIN: u8 = 0x02;
const STDIN_END: u8 = 0x03;
const KILL: u8 = 0x04;
const SET_CLOCK: u8 = 0x05;
const HELLO: u8 = 0x81;
const STDOUT: u8 = 0x82;
const STDERR: u8 = 0x83;
const EXIT: u8 = 0x84;

/// The messages of one direction.
pub trait Message: Sized {
    /// Whether `len` is a possible payload length of a frame of this kind; an error names what is
    /// wrong before any of the payload is taken in.
    ///
    /// # Errors
    /// [`DecodeError::UnknownKind`] or [`DecodeError::BadLength`].
    fn check(kind: u8, len: u32) -> Result<(), DecodeError>;

    /// Makes the message from a frame that [`Message::check`] let through.
    ///
    /// # Errors
    /// What [`Message::check`] says, and [`DecodeError::CommandNotUtf8`].
    fn from_frame(kind: u8, payload: &[u8]) -> Result<Self, DecodeError>;
}

/// What the host says to the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToGuest {
    /// Run this command with `/bin/sh -c`.
    Exec(String),
    /// Bytes for the running command's standard input.
    Stdin(Vec<u8>),
    /// The running command's standard input ends.
    StdinEnd,
    /// End the running command and all that it started in its process group.
    Kill,
    /// Set the clock to this time of day, in nanoseconds since 1970 UTC: the host's was set, or the host slept.
    SetClock(u64),
}

/// What the agent says to the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToHost {
    /// The agent is there and speaks this version.
    Hello(u32),
    /// Bytes that the command wrote to standard output.
    Stdout(Vec<u8>),
    /// Bytes that the command wrote to standard error.
    Stderr(Vec<u8>),
    /// The command ended with this status; 128 + signal when a signal killed it.
    Exit(i32),
}

/// A message that does not fit a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodeError {
    /// The payload's length.
    pub len: usize,
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the message has {} bytes, more than the {MAX_PAYLOAD} that a frame between host and guest can carry: \
             shorten the command or put it into a script in the guest",
            self.len
        )
    }
}

impl std::error::Error for EncodeError {}

/// Appends one frame to `out`.
fn put_frame(out: &mut Vec<u8>, kind: u8, payload: &[u8]) -> Result<(), EncodeError> {
    let len = u32::try_from(payload.len())
        .ok()
        .filter(|_| payload.len() <= MAX_PAYLOAD)
        .ok_or(EncodeError { len: payload.len() })?;
    out.reserve(HEADER_LEN + payload.len());
    out.push(kind);
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(payload);
    Ok(())
}

/// A data frame's length is anything up to the limit, the others' are fixed.
fn check_len(kind: u8, len: u32, allowed: std::ops::RangeInclusive<usize>) -> Result<(), DecodeError> {
    match usize::try_from(len) {
        Ok(n) if allowed.contains(&n) => Ok(()),
        _ => Err(DecodeError::BadLength { kind, len }),
    }
}

/// The payload of a fixed-size frame.
fn fixed<const N: usize>(kind: u8, payload: &[u8]) -> Result<[u8; N], DecodeError> {
    payload
        .try_into()
        .map_err(|_| DecodeError::BadLength { kind, len: u32::try_from(payload.len()).unwrap_or(u32::MAX) })
}

impl ToGuest {
    /// Appends this message's frame to `out`.
    ///
    /// # Errors
    /// When the payload is longer than [`MAX_PAYLOAD`].
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        match self {
            Self::Exec(command) => put_frame(out, EXEC, command.as_bytes()),
            Self::Stdin(bytes) => put_frame(out, STDIN, bytes),
            Self::StdinEnd => put_frame(out, STDIN_END, &[]),
            Self::Kill => put_frame(out, KILL, &[]),
            Self::SetClock(nanoseconds) => put_frame(out, SET_CLOCK, &nanoseconds.to_le_bytes()),
        }
    }
}

impl Message for ToGuest {
    fn check(kind: u8, len: u32) -> Result<(), DecodeError> {
        match kind {
            EXEC | STDIN => check_len(kind, len, 0..=MAX_PAYLOAD),
            STDIN_END | KILL => check_len(kind, len, 0..=0),
            SET_CLOCK => check_len(kind, len, 8..=8),
            _ => Err(DecodeError::UnknownKind { kind }),
        }
    }

    fn from_frame(kind: u8, payload: &[u8]) -> Result<Self, DecodeError> {
        match kind {
            EXEC => std::str::from_utf8(payload)
                .map(|command| Self::Exec(command.to_owned()))
                .map_err(|_| DecodeError::CommandNotUtf8),
            STDIN => Ok(Self::Stdin(payload.to_vec())),
            STDIN_END => Ok(Self::StdinEnd),
            KILL => Ok(Self::Kill),
            SET_CLOCK => Ok(Self::SetClock(u64::from_le_bytes(fixed(kind, payload)?))),
            _ => Err(DecodeError::UnknownKind { kind }),
        }
    }
}

impl ToHost {
    /// Appends this message's frame to `out`.
    ///
    /// # Errors
    /// When the payload is longer than [`MAX_PAYLOAD`].
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        match self {
            Self::Hello(version) => put_frame(out, HELLO, &version.to_le_bytes()),
            Self::Stdout(bytes) => put_frame(out, STDOUT, bytes),
            Self::Stderr(bytes) => put_frame(out, STDERR, bytes),
            Self::Exit(status) => put_frame(out, EXIT, &status.to_le_bytes()),
        }
    }
}

impl Message for ToHost {
    fn check(kind: u8, len: u32) -> Result<(), DecodeError> {
        match kind {
            STDOUT | STDERR => check_len(kind, len, 0..=MAX_PAYLOAD),
            HELLO | EXIT => check_len(kind, len, 4..=4),
            _ => Err(DecodeError::UnknownKind { kind }),
        }
    }

    fn from_frame(kind: u8, payload: &[u8]) -> Result<Self, DecodeError> {
        match kind {
            HELLO => Ok(Self::Hello(u32::from_le_bytes(fixed(kind, payload)?))),
            STDOUT => Ok(Self::Stdout(payload.to_vec())),
            STDERR => Ok(Self::Stderr(payload.to_vec())),
            EXIT => Ok(Self::Exit(i32::from_le_bytes(fixed(kind, payload)?))),
            _ => Err(DecodeError::UnknownKind { kind }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_what_the_table_says() {
        let mut out = Vec::new();
        ToGuest::Exec("id".into()).encode(&mut out).unwrap();
        ToHost::Exit(-2).encode(&mut out).unwrap();
        assert_eq!(out, [1, 2, 0, 0, 0, b'i', b'd', 0x84, 4, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff]);
    }

    #[test]
    fn a_payload_over_the_limit_is_refused_and_leaves_nothing() {
        let mut out = Vec::new();
        let error = ToGuest::Stdin(vec![0; MAX_PAYLOAD + 1]).encode(&mut out).unwrap_err();
        assert_eq!(error, EncodeError { len: MAX_PAYLOAD + 1 });
        assert!(out.is_empty());
        ToGuest::Stdin(vec![0; MAX_PAYLOAD]).encode(&mut out).unwrap();
    }
}
