//! The monitor's image as the driver carries it: a flat file of whole pages, the entry code first, then the other code, then the
//! constants (`monitor.lds`). It begins with a header.

use core::mem::offset_of;

use static_assertions::const_assert_eq;
use zerocopy::FromBytes;
use zerocopy::Immutable;
use zerocopy::IntoBytes;
use zerocopy::KnownLayout;

use crate::layout::ENTRY;
use crate::layout::ENTRY_TEXT_SIZE;
use crate::layout::PAGE;

/// [`Header::magic`].
pub const MAGIC: u64 = u64::from_le_bytes(*b"covisor\x01");

/// What the image begins with, at [`ENTRY`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: u64,
    /// Pages of the entry code, at [`ENTRY`].
    pub entry_pages: u64,
    /// Pages of the other code, at [`crate::layout::IMAGE`].
    pub text_pages: u64,
    /// Pages of the constants, behind that.
    pub constant_pages: u64,
    /// Where SYSCALL of 64-bit code goes (LSTAR).
    pub syscall: u64,
    /// Where SYSCALL of 32-bit code goes (CSTAR).
    pub syscall32: u64,
    /// Where the world switch goes on in the monitor's world.
    pub landing: u64,
}
const_assert_eq!(offset_of!(Header, landing), 48);

impl Header {
    /// The header of an image; `None` where it is none, or not whole.
    #[must_use]
    pub fn of(image: &[u8]) -> Option<Self> {
        let (header, _) = Self::read_from_prefix(image).ok()?;
        let parts = [header.entry_pages, header.text_pages, header.constant_pages];
        let pages = parts.into_iter().try_fold(0_u64, |sum, pages| sum.checked_add(pages))?;
        let size = pages.checked_mul(PAGE)?;
        let entry = header.entry_pages.checked_mul(PAGE).filter(|size| *size <= ENTRY_TEXT_SIZE)?;
        let is_entry = |address: u64| address.wrapping_sub(ENTRY) < entry;
        let whole = header.magic == MAGIC
            && u64::try_from(image.len()) == Ok(size)
            && [header.syscall, header.syscall32, header.landing].into_iter().all(is_entry);
        whole.then_some(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header = Header {
        magic: MAGIC,
        entry_pages: 2,
        text_pages: 1,
        constant_pages: 1,
        syscall: ENTRY + 0x1800,
        syscall32: ENTRY + 0x1900,
        landing: ENTRY + 0x1fff,
    };

    fn image(header: &Header, pages: usize) -> Vec<u8> {
        let mut image = vec![0; pages * 4096];
        header.write_to_prefix(&mut image).unwrap();
        image
    }

    #[test]
    fn header_of_a_whole_image_is_found() {
        assert_eq!(Header::of(&image(&HEADER, 4)), Some(HEADER));
    }

    #[test]
    fn what_is_no_image_has_no_header() {
        let broken = [
            Header { magic: 0, ..HEADER },
            Header { text_pages: 2, ..HEADER },
            Header { entry_pages: u64::MAX, ..HEADER },
            Header { entry_pages: u64::MAX / PAGE + 2, ..HEADER },
            Header { entry_pages: 17, ..HEADER },
            Header { landing: ENTRY + 0x2000, ..HEADER },
            Header { syscall: 0, ..HEADER },
        ];
        for header in broken {
            assert_eq!(Header::of(&image(&header, 4)), None, "{header:?}");
        }
        assert_eq!(Header::of(&image(&HEADER, 3)), None);
        assert_eq!(Header::of(&[]), None);
    }
}
