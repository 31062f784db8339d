//! Frames out of a byte stream.

use std::fmt;
use std::marker::PhantomData;

use crate::message::Message;
use crate::{HEADER_LEN, MAX_PAYLOAD};

/// Why a byte stream is not one of this protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeError {
    /// No message of this direction has this kind.
    UnknownKind {
        /// The kind that came.
        kind: u8,
    },
    /// The length is over the limit or not that of this kind of message.
    BadLength {
        /// The message's kind.
        kind: u8,
        /// The length that came.
        len: u32,
    },
    /// The command is not UTF-8.
    CommandNotUtf8,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownKind { kind } => write!(
                f,
                "the other end of the exec port sent a message of unknown kind {kind:#04x}: \
                 host and guest agent are of different versions, or the port is not the agent's"
            ),
            Self::BadLength { kind, len } => write!(
                f,
                "the other end of the exec port sent a message of kind {kind:#04x} with the impossible length {len}: \
                 host and guest agent are of different versions, or the port is not the agent's"
            ),
            Self::CommandNotUtf8 => write!(f, "the command is not UTF-8 text"),
        }
    }
}

impl std::error::Error for DecodeError {}

/// Turns bytes, in pieces as they come, into messages.
///
/// It holds at most one frame. The first error is final: where one frame is wrong, nothing says
/// where the next begins.
#[derive(Debug)]
pub struct Decoder<M> {
    frame: Vec<u8>,
    failed: Option<DecodeError>,
    message: PhantomData<fn() -> M>,
}

impl<M> Default for Decoder<M> {
    fn default() -> Self {
        Self { frame: Vec::new(), failed: None, message: PhantomData }
    }
}

impl<M: Message> Decoder<M> {
    /// A decoder at the start of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes from the front of `input` until one message is complete or `input` is empty.
    ///
    /// `Ok(None)` means that `input` is used up and the message is not complete yet. Call it in a
    /// loop until then:
    ///
    /// ```
    /// # use covisor_exec_protocol::{Decoder, ToHost};
    /// let mut decoder = Decoder::<ToHost>::new();
    /// let mut input: &[u8] = &[0x84, 4, 0, 0, 0, 7, 0, 0, 0];
    /// while let Some(message) = decoder.next(&mut input)? {
    ///     assert_eq!(message, ToHost::Exit(7));
    /// }
    /// # Ok::<(), covisor_exec_protocol::DecodeError>(())
    /// ```
    ///
    /// # Errors
    /// When the bytes are not this protocol's; from then on every call says the same.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<M>, DecodeError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.advance(input).inspect_err(|&error| {
            self.failed = Some(error);
            self.frame = Vec::new();
        })
    }

    /// Whether the stream could end here: no message is half read.
    #[must_use]
    pub fn is_at_boundary(&self) -> bool {
        self.frame.is_empty() && self.failed.is_none()
    }

    fn advance(&mut self, input: &mut &[u8]) -> Result<Option<M>, DecodeError> {
        self.fill_to(HEADER_LEN, input);
        let Some(&[kind, l0, l1, l2, l3]) = self.frame.first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let len = u32::from_le_bytes([l0, l1, l2, l3]);
        M::check(kind, len)?;
        let payload_len =
            usize::try_from(len).ok().filter(|&n| n <= MAX_PAYLOAD).ok_or(DecodeError::BadLength { kind, len })?;
        if !self.fill_to(HEADER_LEN + payload_len, input) {
            return Ok(None);
        }
        let message = M::from_frame(kind, &self.frame[HEADER_LEN..])?;
        self.frame.clear();
        Ok(Some(message))
    }

    /// Moves bytes from `input` until the frame has `want` of them; whether it has.
    fn fill_to(&mut self, want: usize, input: &mut &[u8]) -> bool {
        let missing = want.saturating_sub(self.frame.len());
        let (taken, rest) = input.split_at(missing.min(input.len()));
        self.frame.extend_from_slice(taken);
        *input = rest;
        self.frame.len() >= want
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{ToGuest, ToHost};

    fn to_host() -> impl Strategy<Value = ToHost> {
        prop_oneof![
            any::<u32>().prop_map(ToHost::Hello),
            prop::collection::vec(any::<u8>(), 0..2000).prop_map(ToHost::Stdout),
            prop::collection::vec(any::<u8>(), 0..2000).prop_map(ToHost::Stderr),
            any::<i32>().prop_map(ToHost::Exit),
        ]
    }

    fn to_guest() -> impl Strategy<Value = ToGuest> {
        prop_oneof![
            any::<String>().prop_map(ToGuest::Exec),
            prop::collection::vec(any::<u8>(), 0..2000).prop_map(ToGuest::Stdin),
            Just(ToGuest::StdinEnd),
            any::<u64>().prop_map(ToGuest::SetClock),
            Just(ToGuest::Kill),
        ]
    }

    /// Feeds `bytes` in pieces of the given lengths, round and round.
    fn decode_in_pieces<M: Message>(bytes: &[u8], pieces: &[usize]) -> Result<Vec<M>, DecodeError> {
        let mut decoder = Decoder::new();
        let mut messages = Vec::new();
        let mut rest = bytes;
        let mut lengths = pieces.iter().cycle();
        while !rest.is_empty() {
            let (mut piece, tail) = rest.split_at((*lengths.next().unwrap()).min(rest.len()));
            while let Some(message) = decoder.next(&mut piece)? {
                messages.push(message);
            }
            assert!(piece.is_empty());
            rest = tail;
        }
        assert!(decoder.is_at_boundary());
        Ok(messages)
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(
            host in prop::collection::vec(to_host(), 0..20),
            guest in prop::collection::vec(to_guest(), 0..20),
            pieces in prop::collection::vec(1usize..700, 1..8),
        ) {
            let mut bytes = Vec::new();
            host.iter().for_each(|m| m.encode(&mut bytes).unwrap());
            prop_assert_eq!(decode_in_pieces::<ToHost>(&bytes, &pieces).unwrap(), host);
            bytes.clear();
            guest.iter().for_each(|m| m.encode(&mut bytes).unwrap());
            prop_assert_eq!(decode_in_pieces::<ToGuest>(&bytes, &pieces).unwrap(), guest);
        }

        #[test]
        fn any_bytes_are_taken_without_panic_and_within_one_frame(
            bytes in prop::collection::vec(any::<u8>(), 0..5000),
            valid_kind in any::<bool>(),
        ) {
            let mut bytes = bytes;
            if valid_kind && !bytes.is_empty() {
                bytes[0] = 0x82;
            }
            let mut decoder = Decoder::<ToHost>::new();
            let mut input = bytes.as_slice();
            while let Ok(Some(_)) = decoder.next(&mut input) {}
            prop_assert!(decoder.frame.len() <= HEADER_LEN + MAX_PAYLOAD);
        }
    }

    #[test]
    fn a_huge_length_is_refused_from_the_header_alone() {
        let mut decoder = Decoder::<ToHost>::new();
        let mut header: &[u8] = &[0x82, 0xff, 0xff, 0xff, 0xff];
        let expected = DecodeError::BadLength { kind: 0x82, len: u32::MAX };
        assert_eq!(decoder.next(&mut header), Err(expected));
        // The error is final.
        let mut good: &[u8] = &[0x84, 4, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(decoder.next(&mut good), Err(expected));
    }

    #[test]
    fn a_message_of_the_other_direction_is_refused() {
        let mut bytes = Vec::new();
        ToGuest::StdinEnd.encode(&mut bytes).unwrap();
        let result = Decoder::<ToHost>::new().next(&mut bytes.as_slice());
        assert_eq!(result, Err(DecodeError::UnknownKind { kind: 0x03 }));
    }

    #[test]
    fn a_command_that_is_not_text_is_refused() {
        let mut bytes: &[u8] = &[0x01, 1, 0, 0, 0, 0xff];
        assert_eq!(Decoder::<ToGuest>::new().next(&mut bytes), Err(DecodeError::CommandNotUtf8));
    }
}
