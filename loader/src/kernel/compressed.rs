//! Kernel files compressed as a whole (`vmlinux.gz`, `vmlinux.xz`, `vmlinux.zst`), and what a bzImage holds.
//!
//! A bzImage as a file is not compressed: it holds its own decompressor, which runs in the guest.

use std::io;
use std::io::BufReader;
use std::io::Cursor;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::io::Write;

use crate::kernel::error::KernelError;
use crate::kernel::lz4;

/// First bytes of gzip.
const GZIP: &[u8] = &[0x1f, 0x8b, 0x08];
/// A kind of compression, by its first bytes.
const KINDS: [(&[u8], Kind); 7] = [
    (GZIP, Kind::Gzip),
    (b"\xfd7zXZ\0", Kind::Xz),
    (&[0x28, 0xb5, 0x2f, 0xfd], Kind::Zstd),
    (b"BZh", Kind::Other("bzip2")),
    (&[0x5d, 0, 0], Kind::Other("lzma")),
    (&lz4::MAGIC, Kind::Lz4),
    (&[0x89, b'L', b'Z', b'O'], Kind::Other("lzop")),
];

/// Most memory that unpacking xz may take, in KiB: enough for the largest dictionary of `xz -9`, four times over.
const XZ_MEMORY_KIB: u32 = 256 * 1024;

#[derive(Clone, Copy)]
enum Kind {
    Gzip,
    Xz,
    Zstd,
    Lz4,
    Other(&'static str),
}

/// The decompressed contents of `file`, or `None` when it is not compressed. Not more than `limit` bytes.
pub(super) fn decompress<R: Read + Seek>(file: &mut R, limit: u64) -> Result<Option<Vec<u8>>, KernelError> {
    let mut head = Vec::with_capacity(8);
    file.seek(SeekFrom::Start(0))?;
    file.by_ref().take(8).read_to_end(&mut head)?;
    file.seek(SeekFrom::Start(0))?;
    let Some(&(_, kind)) = KINDS.iter().find(|(magic, _)| head.starts_with(magic)) else {
        return Ok(None);
    };
    let mut out = Bounded { bytes: Vec::new(), limit, full: false };
    let (name, result) = match kind {
        Kind::Gzip => ("gzip", io::copy(&mut flate2::read::GzDecoder::new(BufReader::new(file)), &mut out).map(drop)),
        Kind::Xz => {
            let mut decoder = lzma_rust2::XzReader::new_mem_limit(BufReader::new(file), false, XZ_MEMORY_KIB);
            ("xz", io::copy(&mut decoder, &mut out).map(drop))
        }
        Kind::Zstd => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(BufReader::new(file)).map_err(io::Error::other);
            ("zstd", decoder.and_then(|mut decoder| io::copy(&mut decoder, &mut out).map(drop)))
        }
        Kind::Lz4 => ("lz4", lz4::decompress(&mut BufReader::new(file), &mut out)),
        Kind::Other(name) => return Err(KernelError::UnknownCompression(name)),
    };
    match result {
        _ if out.full => Err(KernelError::DecompressedTooLarge { ram: limit }),
        Err(source) => Err(KernelError::Decompress { kind: name, source }),
        Ok(()) => Ok(Some(out.bytes)),
    }
}

/// The `vmlinux` that a bzImage holds in the `size` bytes at `start`. Not more than `limit` bytes.
pub(super) fn unpack<R: Read + Seek>(
    file: &mut R,
    (start, size): (u64, u64),
    limit: u64,
) -> Result<Vec<u8>, KernelError> {
    let mut payload = Vec::new();
    file.seek(SeekFrom::Start(start))?;
    file.by_ref().take(size).read_to_end(&mut payload)?;
    // Linux appends the unpacked size, except to gzip, where it is the format's own end (`scripts/Makefile.lib`).
    if !payload.starts_with(GZIP) {
        payload.truncate(payload.len().saturating_sub(size_of::<u32>()));
    }
    decompress(&mut Cursor::new(payload), limit)
        .map_err(|error| match error {
            KernelError::UnknownCompression(kind) => KernelError::UnknownPayload(kind),
            other => other,
        })?
        .ok_or(KernelError::Damaged("what it holds is not compressed in a way of Linux's"))
}

/// A buffer that refuses to grow over a limit.
struct Bounded {
    bytes: Vec<u8>,
    limit: u64,
    full: bool,
}

impl Write for Bounded {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.bytes.len() as u64 + data.len() as u64 > self.limit {
            self.full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn xz(data: &[u8]) -> Vec<u8> {
        let mut writer = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).unwrap();
        writer.write_all(data).unwrap();
        writer.finish().unwrap()
    }

    fn zstd(data: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Fastest)
    }

    #[test]
    fn test_each_compression_is_undone() {
        let data = b"kernel".repeat(5000);
        for packed in [gzip(&data), xz(&data), zstd(&data), lz4::frame(&data)] {
            let out = decompress(&mut Cursor::new(packed), 1 << 20).unwrap();
            assert_eq!(out.as_deref(), Some(&data[..]));
        }
    }

    #[test]
    fn test_plain_and_empty_files_are_left_alone() {
        assert!(decompress(&mut Cursor::new(b"\x7fELF....".to_vec()), 1024).unwrap().is_none());
        assert!(decompress(&mut Cursor::new(Vec::new()), 1024).unwrap().is_none());
    }

    #[test]
    fn test_a_bomb_stops_at_the_limit() {
        let data = vec![0; 1 << 20];
        for packed in [gzip(&data), xz(&data), zstd(&data), lz4::frame(&data)] {
            let error = decompress(&mut Cursor::new(packed), 1 << 16).unwrap_err();
            assert!(matches!(error, KernelError::DecompressedTooLarge { .. }), "{error}");
        }
    }

    #[test]
    fn test_damaged_data_is_an_error() {
        let data = b"kernel".repeat(5000);
        for mut packed in [gzip(&data), xz(&data), zstd(&data), lz4::frame(&data)] {
            packed.truncate(packed.len() / 2);
            let error = decompress(&mut Cursor::new(packed), 1 << 20).unwrap_err();
            assert!(matches!(error, KernelError::Decompress { .. }), "{error}");
        }
    }

    #[test]
    fn test_an_xz_footer_with_any_size_is_an_error() {
        let mut packed = xz(b"kernel");
        let footer = packed.len() - 12;
        for byte in [0x00, 0x7f, 0xff] {
            // The backward size.
            packed[footer + 4..footer + 8].fill(byte);
            let error = decompress(&mut Cursor::new(packed.clone()), 1 << 20).unwrap_err();
            assert!(matches!(error, KernelError::Decompress { .. }), "{error}");
        }
    }

    #[test]
    fn test_an_xz_dictionary_larger_than_memory_is_an_error() {
        let mut packed = xz(b"kernel");
        // Block header: size, flags, filter LZMA2 (0x21), its property's size, the property, padding, CRC32.
        assert_eq!(packed[14..16], [0x21, 1]);
        packed[16] = 40;
        let size = (usize::from(packed[12]) + 1) * 4;
        let mut crc = flate2::Crc::new();
        crc.update(&packed[12..12 + size - 4]);
        packed[12 + size - 4..12 + size].copy_from_slice(&crc.sum().to_le_bytes());
        let error = decompress(&mut Cursor::new(packed), 1 << 20).unwrap_err();
        assert!(matches!(error, KernelError::Decompress { .. }), "{error}");
    }

    #[test]
    fn test_other_compressions_are_named() {
        let error = decompress(&mut Cursor::new(b"BZh91AY".to_vec()), 1024).unwrap_err();
        assert_eq!(error.to_string(), "it is compressed by bzip2; decompress it first");
    }
}
