//! A server of names (RFC 1035): whatever ends in `test` is there, and nothing else.

use std::io;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::UdpSocket;

/// The port of DNS.
pub(crate) const PORT: u16 = 53;
/// Addresses of documentation (RFC 5737, RFC 3849), which the host may give itself.
const FOUR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const SIX: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
/// Bytes of a message's header.
const HEADER: usize = 12;
/// Types of records.
const A: u16 = 1;
const AAAA: u16 = 28;
/// A response with authority; the code for a name that is not there.
const RESPONSE: u8 = 0x84;
const NO_SUCH_NAME: u8 = 3;

/// Answers until the socket fails.
pub(crate) fn serve(socket: &UdpSocket) -> io::Result<()> {
    let mut buffer = [0; 512];
    loop {
        let (count, peer) = socket.recv_from(&mut buffer)?;
        if let Some(answer) = answer(&buffer[..count]) {
            socket.send_to(&answer, peer)?;
        }
    }
}

fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let mut at = HEADER;
    let mut last: &[u8] = &[];
    loop {
        let length = usize::from(*query.get(at)?);
        let label = query.get(at + 1..at + 1 + length)?;
        at += 1 + length;
        if length == 0 {
            break;
        }
        last = label;
    }
    let kind = u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]);
    let mut answer = query.get(..at + 4)?.to_vec();
    answer[2] = RESPONSE | answer[2] & 1;
    answer[3] = 0;
    answer[6..HEADER].fill(0);
    let address = match kind {
        A => FOUR.octets().to_vec(),
        AAAA => SIX.octets().to_vec(),
        _ => Vec::new(),
    };
    if last != b"test" {
        answer[3] = NO_SUCH_NAME;
    } else if !address.is_empty() {
        answer[7] = 1;
        // The name that was asked for, the type, the class of the Internet, a minute.
        answer.extend([0xc0, 12]);
        answer.extend(kind.to_be_bytes());
        answer.extend([0, 1, 0, 0, 0, 60]);
        answer.extend([0, u8::try_from(address.len()).ok()?]);
        answer.extend(address);
    }
    Some(answer)
}
