//! From a kernel file to a guest that can take its first instruction.
//!
//! First the file is read into an [`Image`], then [`Plan::new`] decides where everything goes and checks that it fits,
//! both without any guest memory; then [`Plan::execute`] does what was planned. Guest memory is zero before.

mod bzimage;
mod compressed;
mod elf;
mod error;
mod info;
mod lz4;
mod notes;
mod paravirtual;
mod source;
mod start;

use std::fs::File;
use std::io::Cursor;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;

use covisor_abi::PAGE_SIZE;
use covisor_abi::VcpuState;
use vm_memory::Bytes;
use vm_memory::GuestAddress;
use vm_memory::ReadVolatile;
use vm_memory::VolatileMemoryError;
use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

pub use bzimage::BzImage;
pub use elf::ElfEntry;
pub use elf::ElfImage;
pub use elf::Segment;
pub use error::KernelError;
pub use notes::XenNotes;

use crate::kernel::source::FileSource;
use crate::layout::ACPI_TABLES;
use crate::layout::BOOT_GDT;
use crate::layout::BOOT_PARAMS;
use crate::layout::COMMAND_LINE;
use crate::layout::COMMAND_LINE_SIZE;
use crate::layout::HIGH_RAM_START;
use crate::layout::PAGE_TABLES;
use crate::layout::PVH_MEMORY_MAP;
use crate::layout::PVH_MODULES;
use crate::layout::PVH_START_INFO;
use crate::layout::Ram;
use crate::platform::GuestRam;

/// Longest command line of an ELF kernel, which does not say: `COMMAND_LINE_SIZE` of Linux on x86 less the NUL.
const ELF_COMMAND_LINE_MAX: u64 = 2047;
/// The same for the end of the initial RAM disk: what every bzImage of Linux says.
const ELF_INITRD_LIMIT: u64 = 0x8000_0000;
/// How much of a file's start tells its format.
const HEAD_SIZE: u64 = 1024;

/// A kernel file whose headers are consistent.
#[derive(Debug, Clone)]
pub enum Image {
    /// A bzImage.
    BzImage(Box<BzImage>),
    /// An ELF file.
    Elf(Box<ElfImage>),
}

impl Image {
    /// Reads and checks the headers of a kernel that is not compressed as a whole.
    ///
    /// # Errors
    /// When it is no kernel, or a damaged one.
    pub fn parse<R: Read + Seek>(file: &mut R) -> Result<Self, KernelError> {
        let len = file.seek(SeekFrom::End(0))?;
        let mut head = Vec::new();
        file.seek(SeekFrom::Start(0))?;
        file.by_ref().take(HEAD_SIZE).read_to_end(&mut head)?;
        if head.starts_with(&elf::MAGIC) {
            ElfImage::parse(file, len).map(|image| Self::Elf(Box::new(image)))
        } else if bzimage::is_bzimage(&head) {
            BzImage::parse(file, len).map(|image| Self::BzImage(Box::new(image)))
        } else {
            Err(KernelError::UnknownFormat)
        }
    }
}

/// A kernel file, decompressed if it was compressed.
#[derive(Debug)]
pub enum KernelFile {
    /// As it lies on the disk.
    Plain(File),
    /// Decompressed.
    Decompressed(Cursor<Vec<u8>>),
}

impl KernelFile {
    /// Whether all of it is in the loader's memory.
    #[must_use]
    pub const fn is_in_memory(&self) -> bool {
        matches!(self, Self::Decompressed(_))
    }

    /// Decompresses the file if need be, to not more bytes than `ram` has.
    ///
    /// # Errors
    /// When it cannot be read or its compressed data is bad.
    pub fn new(mut file: File, ram: Ram) -> Result<Self, KernelError> {
        Ok(match compressed::decompress(&mut file, ram.size())? {
            Some(bytes) => Self::Decompressed(Cursor::new(bytes)),
            None => Self::Plain(file),
        })
    }

    /// The ELF file that a bzImage holds, of not more bytes than `ram` has; an ELF file itself.
    ///
    /// # Errors
    /// When it is no kernel, or a damaged one, or is packed in a way that we do not know.
    pub fn into_elf(mut self, ram: Ram) -> Result<(Self, Box<ElfImage>), KernelError> {
        match Image::parse(&mut self)? {
            Image::Elf(image) => Ok((self, image)),
            Image::BzImage(image) => {
                let mut file = Cursor::new(compressed::unpack(&mut self, image.payload()?, ram.size())?);
                match Image::parse(&mut file)? {
                    Image::Elf(image) => Ok((Self::Decompressed(file), image)),
                    Image::BzImage(_) => Err(KernelError::Damaged("what it holds is no ELF file")),
                }
            }
        }
    }
}

/// Decompresses kernel files from any source, for tests and fuzzing.
///
/// # Errors
/// The same as [`KernelFile::new`].
pub fn decompress<R: Read + Seek>(file: &mut R, limit: u64) -> Result<Option<Vec<u8>>, KernelError> {
    compressed::decompress(file, limit)
}

impl Read for KernelFile {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Plain(file) => file.read(buffer),
            Self::Decompressed(cursor) => cursor.read(buffer),
        }
    }
}

impl Seek for KernelFile {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        match self {
            Self::Plain(file) => file.seek(to),
            Self::Decompressed(cursor) => cursor.seek(to),
        }
    }
}

impl ReadVolatile for KernelFile {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buffer: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        match self {
            Self::Plain(file) => FileSource(file).read_volatile(buffer),
            Self::Decompressed(cursor) => cursor.read_volatile(buffer),
        }
    }
}

/// What a start needs to know besides the kernel.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// The guest's RAM.
    pub ram: Ram,
    /// The kernel's command line.
    pub command_line: &'a str,
    /// Size of the initial RAM disk, if there is one.
    pub initrd_size: Option<u64>,
}

/// Where everything goes, and how the first vCPU starts.
#[derive(Debug)]
pub struct Plan {
    /// Parts of the kernel file.
    segments: Vec<Segment>,
    /// Start and size of the initial RAM disk.
    initrd: Option<(u64, u64)>,
    /// Bytes of our own.
    blobs: Vec<(u64, Vec<u8>)>,
    /// Registers of the first vCPU.
    state: VcpuState,
    /// The page of Xen's console ring.
    console_ring: Option<u64>,
}

impl Plan {
    /// Decides where everything goes.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn new(image: &Image, request: &Request<'_>) -> Result<Self, KernelError> {
        let ram = request.ram;
        let ram_end = ram.low_end();
        if ram_end <= HIGH_RAM_START {
            return Err(KernelError::RamTooSmall(ram.size()));
        }
        let (segments, kernel_end, initrd_limit, command_line_max) = match image {
            Image::BzImage(image) => {
                let address = image.place(ram_end)?;
                let memory_size = u64::from(image.header.init_size);
                let segment = Segment { offset: image.offset, file_size: image.size, address, memory_size };
                (vec![segment], segment.end(), image.initrd_limit(), image.command_line_max())
            }
            Image::Elf(image) => {
                image.check_fit(ram_end)?;
                (image.segments.clone(), image.end(), ELF_INITRD_LIMIT, ELF_COMMAND_LINE_MAX)
            }
        };
        let initrd = request
            .initrd_size
            .filter(|&size| size != 0)
            .map(|size| place_initrd(size, kernel_end, initrd_limit.min(ram_end)))
            .transpose()?;
        let command_line_max = command_line_max.min(COMMAND_LINE_SIZE - 1);
        let len = request.command_line.len() as u64;
        if len > command_line_max {
            return Err(KernelError::CommandLineTooLong { len, max: command_line_max });
        }

        let memory_map = ram.memory_map();
        let facts = info::Facts { memory_map: &memory_map, initrd, rsdp: ACPI_TABLES };
        let mut command_line = request.command_line.as_bytes().to_vec();
        command_line.push(0);
        let mut blobs = vec![(COMMAND_LINE, command_line)];
        let state = match image {
            Image::Elf(image) => match image.entry {
                ElfEntry::Pvh(entry) => {
                    let (start_info, map, modules) = info::pvh(facts);
                    blobs.extend([(PVH_START_INFO, start_info), (PVH_MEMORY_MAP, map), (PVH_MODULES, modules)]);
                    blobs.push((BOOT_GDT, start::gdt_bytes(false)));
                    start::pvh(entry)
                }
                ElfEntry::Linux64(entry) => {
                    blobs.push((BOOT_PARAMS, info::linux(info::default_header(), facts)));
                    blobs.extend([
                        (BOOT_GDT, start::gdt_bytes(true)),
                        (PAGE_TABLES, start::identity_page_tables(ram.end())),
                    ]);
                    start::linux_64(entry)
                }
            },
            Image::BzImage(image) => {
                let address = segments[0].address;
                let mut header = image.header;
                header.code32_start =
                    u32::try_from(address).map_err(|_| KernelError::Damaged("it prefers an address above 4 GiB"))?;
                blobs.push((BOOT_PARAMS, info::linux(header, facts)));
                blobs.extend([
                    (BOOT_GDT, start::gdt_bytes(true)),
                    (PAGE_TABLES, start::identity_page_tables(ram.end())),
                ]);
                start::linux_64(address + bzimage::ENTRY_64)
            }
        };
        Ok(Self { segments, initrd, blobs, state, console_ring: None })
    }

    /// The same for a start by the Xen PV ABI. The guest's RAM must be one range.
    ///
    /// # Errors
    /// When the kernel cannot be started so, or does not fit.
    pub fn paravirtual(image: &ElfImage, request: &Request<'_>) -> Result<Self, KernelError> {
        paravirtual::plan(image, request)
    }

    /// Parts of the kernel file, by address.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Start and size of the initial RAM disk.
    #[must_use]
    pub fn initrd(&self) -> Option<(u64, u64)> {
        self.initrd
    }

    /// Guest-physical address of the page of Xen's console ring, after a paravirtual start.
    #[must_use]
    pub fn console_ring(&self) -> Option<u64> {
        self.console_ring
    }

    /// Fills guest memory, and gives the first vCPU's registers.
    ///
    /// # Errors
    /// When a file cannot be read as far as it could be before.
    pub fn execute<K>(
        &self,
        memory: &GuestRam,
        kernel: &mut K,
        initrd: Option<&mut File>,
    ) -> Result<VcpuState, KernelError>
    where
        K: Seek + ReadVolatile,
    {
        let refused = |address: u64, error: vm_memory::GuestMemoryError| KernelError::Memory {
            address,
            reason: error.to_string(),
        };
        for segment in &self.segments {
            kernel.seek(SeekFrom::Start(segment.offset))?;
            let size =
                usize::try_from(segment.file_size).map_err(|_| KernelError::Damaged("a segment is too large"))?;
            memory
                .read_exact_volatile_from(GuestAddress(segment.address), kernel, size)
                .map_err(|error| refused(segment.address, error))?;
        }
        if let (Some((start, size)), Some(file)) = (self.initrd, initrd) {
            file.seek(SeekFrom::Start(0)).map_err(KernelError::ReadInitrd)?;
            let size = usize::try_from(size).map_err(|_| KernelError::Damaged("the initial RAM disk is too large"))?;
            memory
                .read_exact_volatile_from(GuestAddress(start), &mut FileSource(file), size)
                .map_err(|error| refused(start, error))?;
        }
        for (address, bytes) in &self.blobs {
            memory.write_slice(bytes, GuestAddress(*address)).map_err(|error| refused(*address, error))?;
        }
        Ok(self.state)
    }
}

/// The highest place for the initial RAM disk between the kernel and `limit`, on a page boundary.
fn place_initrd(size: u64, kernel_end: u64, limit: u64) -> Result<(u64, u64), KernelError> {
    limit
        .checked_sub(size)
        .map(|start| start - start % PAGE_SIZE)
        .filter(|&start| start >= kernel_end)
        .map(|start| (start, size))
        .ok_or(KernelError::InitrdTooLarge { size, kernel_end, limit })
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
