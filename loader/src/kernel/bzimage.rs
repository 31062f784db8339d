//! The bzImage format (Linux `Documentation/arch/x86/boot.rst`), for its 64-bit entry.

use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::mem::offset_of;
use std::mem::size_of;

use linux_loader::loader::bootparam::XLF_KERNEL_64;
use linux_loader::loader::bootparam::boot_params;
use linux_loader::loader::bootparam::setup_header;
use vm_memory::ByteValued;

use crate::kernel::error::KernelError;
use crate::layout::HIGH_RAM_START;

/// Where `setup_header` lies in the file, the same as in `boot_params`.
const HEADER_OFFSET: usize = offset_of!(boot_params, hdr);
/// The jump over the header: its second byte, at 0x201, gives the header's end relative to 0x202.
const JUMP_OFFSET: usize = 0x201;
/// `boot_flag`.
const BOOT_FLAG: u16 = 0xaa55;
/// `header`.
const HDRS: u32 = u32::from_le_bytes(*b"HdrS");
/// The first protocol version that has `xloadflags`.
const PROTOCOL_2_12: u16 = 0x020c;
/// A sector of the set-up code.
const SECTOR: u64 = 512;
/// Where the 64-bit entry lies in the kernel proper.
pub(super) const ENTRY_64: u64 = 0x200;
/// The unit of `syssize`.
const PARAGRAPH: u64 = 16;

/// A bzImage whose headers are consistent.
#[derive(Debug, Clone)]
pub struct BzImage {
    /// The set-up header, as the kernel wants it back in `boot_params`.
    pub header: setup_header,
    /// Where the kernel proper begins in the file.
    pub offset: u64,
    /// Bytes of the kernel proper.
    pub size: u64,
}

/// Whether a file that begins so is a bzImage; `head` has at least 1 KiB unless the file is shorter.
pub(super) fn is_bzimage(head: &[u8]) -> bool {
    let flag = HEADER_OFFSET + offset_of!(setup_header, boot_flag);
    let magic = HEADER_OFFSET + offset_of!(setup_header, header);
    head.get(flag..flag + 2) == Some(&BOOT_FLAG.to_le_bytes())
        && head.get(magic..magic + 4) == Some(&HDRS.to_le_bytes())
}

impl BzImage {
    /// Reads and checks the headers.
    pub(super) fn parse<R: Read + Seek>(file: &mut R, len: u64) -> Result<Self, KernelError> {
        let mut head = [0; HEADER_OFFSET + size_of::<setup_header>()];
        if len < head.len() as u64 {
            return Err(KernelError::Truncated { part: "the set-up header", end: head.len() as u64, len });
        }
        file.seek(SeekFrom::Start(0))?;
        file.read_exact(&mut head)?;
        // Only as much as this kernel's header has: what follows is code.
        let end = JUMP_OFFSET + 1 + usize::from(head[JUMP_OFFSET]);
        if end < HEADER_OFFSET + offset_of!(setup_header, kernel_info_offset) {
            // The last field that we need, init_size, came with protocol 2.10.
            let version = HEADER_OFFSET + offset_of!(setup_header, version);
            return Err(KernelError::OldProtocol(u16::from_le_bytes([head[version], head[version + 1]])));
        }
        let end = end.min(head.len());
        let mut header = setup_header::default();
        header.as_mut_slice()[..end - HEADER_OFFSET].copy_from_slice(&head[HEADER_OFFSET..end]);

        if header.version < PROTOCOL_2_12 {
            return Err(KernelError::OldProtocol(header.version));
        }
        if u32::from(header.xloadflags) & XLF_KERNEL_64 == 0 {
            return Err(KernelError::Not64Bit);
        }
        let setup_sectors = match header.setup_sects {
            0 => 4, // for the sake of very old boot loaders, says the protocol
            sectors => u64::from(sectors),
        };
        let offset = (setup_sectors + 1) * SECTOR;
        let size = u64::from(header.syssize) * PARAGRAPH;
        if offset + size > len {
            return Err(KernelError::Truncated { part: "the kernel proper", end: offset + size, len });
        }
        if size <= ENTRY_64 {
            return Err(KernelError::Damaged("the kernel proper is too short to have a 64-bit entry"));
        }
        if u64::from(header.init_size) < size {
            return Err(KernelError::Damaged("init_size is smaller than the kernel itself"));
        }
        if !header.kernel_alignment.is_power_of_two() {
            return Err(KernelError::Damaged("kernel_alignment is no power of two"));
        }
        Ok(Self { header, offset, size })
    }

    /// Where to load the kernel proper in RAM that ends at `ram_end`: where it prefers. It can be loaded lower, but would
    /// move itself there (Documentation/x86/boot.rst, `pref_address`), so it needs that RAM in any case.
    pub(super) fn place(&self, ram_end: u64) -> Result<u64, KernelError> {
        let size = u64::from(self.header.init_size);
        let preferred = self.header.pref_address;
        let start = if preferred >= HIGH_RAM_START {
            preferred
        } else if self.header.relocatable_kernel != 0 {
            HIGH_RAM_START.next_multiple_of(u64::from(self.header.kernel_alignment))
        } else {
            return Err(KernelError::TooLow { start: preferred });
        };
        match start.checked_add(size) {
            Some(end) if end <= ram_end => Ok(start),
            end => Err(KernelError::DoesNotFit { start, end: end.unwrap_or(u64::MAX), ram_end }),
        }
    }

    /// Where the packed `vmlinux` lies in the file (`payload_offset`, `payload_length`): start and size.
    pub(super) fn payload(&self) -> Result<(u64, u64), KernelError> {
        let (start, size) = (u64::from(self.header.payload_offset), u64::from(self.header.payload_length));
        if size == 0 || start + size > self.size {
            return Err(KernelError::Damaged("its payload goes over its end"));
        }
        Ok((self.offset + start, size))
    }

    /// Longest command line that it takes, without the final NUL.
    pub(super) fn command_line_max(&self) -> u64 {
        u64::from(self.header.cmdline_size)
    }

    /// First address that its initial RAM disk must not reach.
    pub(super) fn initrd_limit(&self) -> u64 {
        u64::from(self.header.initrd_addr_max) + 1
    }
}
