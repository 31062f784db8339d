//! DNS (RFC 1035): queries of the guest's go to the host's resolvers as they are, once they are seen to be queries.

/// The port of DNS.
pub(super) const PORT: u16 = 53;

/// Bytes of a message's header.
const HEADER: usize = 12;
/// Most bytes of a label and of a name (2.3.4).
const MOST_LABEL: u8 = 63;
const MOST_NAME: usize = 255;

/// Flags of the third byte: this is a response, and the kind of query.
const RESPONSE: u8 = 0x80;
const OPCODE: u8 = 0x78;
const RECURSION_DESIRED: u8 = 0x01;
/// Flag of the fourth byte: recursion is available; and the code for a server that failed.
const RECURSION_AVAILABLE: u8 = 0x80;
const SERVER_FAILURE: u8 = 2;

/// A query with one question, as far as a forwarder has to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query<'a> {
    /// What the answer will have as well.
    pub id: u16,
    /// Header and question.
    head: &'a [u8],
}

impl<'a> Query<'a> {
    /// The query in a datagram, or none.
    #[must_use]
    pub fn parse(datagram: &'a [u8]) -> Option<Self> {
        let header: &[u8; HEADER] = datagram.first_chunk()?;
        let questions = u16::from_be_bytes([header[4], header[5]]);
        // Nobody asks two questions, or anything but a standard query; answers are no questions.
        if header[2] & (RESPONSE | OPCODE) != 0 || questions != 1 {
            return None;
        }
        let mut at = HEADER;
        loop {
            let length = *datagram.get(at)?;
            at += 1 + usize::from(length);
            if length == 0 {
                break;
            }
            // Above are pointers, which a first name cannot be.
            if length > MOST_LABEL || at - HEADER > MOST_NAME {
                return None;
            }
        }
        // Type and class.
        let head = datagram.get(..at + 4)?;
        Some(Self { id: u16::from_be_bytes([header[0], header[1]]), head })
    }

    /// The answer when there is nobody to ask.
    #[must_use]
    pub fn failure(&self) -> Vec<u8> {
        let mut answer = self.head.to_vec();
        answer[2] = RESPONSE | answer[2] & RECURSION_DESIRED;
        answer[3] = RECURSION_AVAILABLE | SERVER_FAILURE;
        // Only the question is there.
        answer[6..HEADER].fill(0);
        answer
    }
}

/// The id of an answer, if the datagram is one.
#[must_use]
pub fn answer_id(datagram: &[u8]) -> Option<u16> {
    let header: &[u8; HEADER] = datagram.first_chunk()?;
    (header[2] & RESPONSE != 0).then(|| u16::from_be_bytes([header[0], header[1]]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Asks for the address of `a.example`, with an additional record (EDNS).
    const QUERY: &[u8] = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01\x01a\x07example\x00\x00\x01\x00\x01\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00";

    #[test]
    fn test_a_query_is_one() {
        let query = Query::parse(QUERY).unwrap();
        assert_eq!(query.id, 0x1234);
        let failure = query.failure();
        assert_eq!(&failure[..12], b"\x12\x34\x81\x82\x00\x01\x00\x00\x00\x00\x00\x00");
        assert_eq!(&failure[12..], &QUERY[12..27]);
        assert_eq!(answer_id(&failure), Some(0x1234));
        assert_eq!(Query::parse(&failure), None);
        assert_eq!(answer_id(QUERY), None);
    }

    #[test]
    fn test_attack_names() {
        let mut pointer = QUERY.to_vec();
        pointer[12] = 0xc0;
        assert_eq!(Query::parse(&pointer), None);
        let mut long = QUERY[..12].to_vec();
        long.extend([63; 64 * 5]);
        long.extend([0; 5]);
        assert_eq!(Query::parse(&long), None);
        for end in 0..27 {
            assert_eq!(Query::parse(&QUERY[..end]), None, "{end}");
        }
    }

    proptest! {
        #[test]
        fn test_anything_is_survived(datagram in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Some(query) = Query::parse(&datagram) {
                prop_assert_eq!(answer_id(&query.failure()), Some(query.id));
            }
        }
    }
}
