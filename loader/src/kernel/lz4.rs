//! LZ4's legacy frames (`lz4_Frame_format.md`, "Legacy frame"): what Linux is compressed by.

use std::io;
use std::io::Read;
use std::io::Write;

/// First bytes of a legacy frame.
pub(super) const MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];

/// Bytes that a block unpacks to at most.
const BLOCK: usize = 8 << 20;
/// Bytes of the largest block as it lies in the frame: data that cannot be compressed grows by one byte in 255, and a few.
const PACKED_BLOCK: u64 = (BLOCK + BLOCK / 255 + 16) as u64;

/// Unpacks a frame that goes on to the end of `from`.
pub(super) fn decompress(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut magic = [0; 4];
    from.read_exact(&mut magic)?;
    if magic != MAGIC {
        return Err(bad("it does not begin as a frame"));
    }
    let mut packed = Vec::new();
    let mut unpacked = vec![0; BLOCK];
    while let Some(size) = block_size(from)? {
        packed.clear();
        let count = from.take(u64::from(size)).read_to_end(&mut packed)?;
        if count as u64 != u64::from(size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let count = lz4_flex::block::decompress_into(&packed, &mut unpacked).map_err(io::Error::other)?;
        to.write_all(&unpacked[..count])?;
    }
    Ok(())
}

/// The size of the next block, or `None` at the end.
fn block_size(from: &mut impl Read) -> io::Result<Option<u32>> {
    let mut bytes = Vec::with_capacity(4);
    from.take(4).read_to_end(&mut bytes)?;
    match *bytes {
        [] => Ok(None),
        [a, b, c, d] => match u32::from_le_bytes([a, b, c, d]) {
            size if u64::from(size) > PACKED_BLOCK => Err(bad("a block is larger than any")),
            size => Ok(Some(size)),
        },
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn bad(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// A frame of one block that holds `data`, not compressed: a run of literals (`lz4_Block_format.md`).
#[cfg(test)]
pub(super) fn frame(data: &[u8]) -> Vec<u8> {
    let mut block = vec![0xf0];
    let mut left = data.len().checked_sub(15).expect("a run of 15 or more");
    while left >= 255 {
        block.push(255);
        left -= 255;
    }
    block.push(u8::try_from(left).unwrap());
    block.extend_from_slice(data);
    [&MAGIC, &u32::try_from(block.len()).unwrap().to_le_bytes(), &block[..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpack(frame: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        decompress(&mut &frame[..], &mut out).map(|()| out)
    }

    #[test]
    fn test_blocks_follow_each_other() {
        let data = b"a kernel in a frame".repeat(40);
        let one = frame(&data);
        assert_eq!(unpack(&one).unwrap(), data);
        let two = [&one[..], &one[MAGIC.len()..]].concat();
        assert_eq!(unpack(&two).unwrap(), data.repeat(2));
        assert_eq!(unpack(&MAGIC).unwrap(), b"");
    }

    #[test]
    fn test_a_match_is_copied() {
        // Four literals, then eight bytes from four back, then five literals.
        let block = [0x44, b'a', b'b', b'c', b'd', 4, 0, 0x50, b'e', b'f', b'g', b'h', b'i'];
        let frame = [&MAGIC, &13u32.to_le_bytes(), &block[..]].concat();
        assert_eq!(unpack(&frame).unwrap(), b"abcdabcdabcdefghi");
    }

    #[test]
    fn test_damaged_frames_are_errors() {
        let good = frame(&b"kernel".repeat(10));
        for len in 0..good.len() {
            assert_eq!(unpack(&good[..len]).is_ok(), len == MAGIC.len(), "{len}");
        }
        assert!(unpack(b"\x04\x22\x4d\x18").is_err());
        assert!(unpack(&[&MAGIC[..], &[0xff; 40]].concat()).is_err());
        // A match from before the beginning.
        assert!(unpack(&[&MAGIC[..], &3u32.to_le_bytes(), &[0x00, 4, 0]].concat()).is_err());
    }
}
