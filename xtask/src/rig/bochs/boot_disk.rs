//! The disk that the Bochs rig boots from: a boot sector of our own (`boot.S`), the kernel, and its initramfs.
//!
//! Bochs has no way to put a whole kernel and initramfs into memory, and a boot loader made for everything takes longer. The kernel is
//! started by its real-mode entry (`Documentation/arch/x86/boot.rst`), so that it asks the BIOS for the memory map itself.

use covisor_guest_images::command::Cmd;
use covisor_guest_images::fs;

use crate::env::Env;
use crate::error::{Error, Result};

/// The boot sector's source.
const BOOT_SECTOR: &str = include_str!("boot.S");

/// Bytes of a sector.
const SECTOR: usize = 512;

/// What the boot sector reads at a time, and what the parts are aligned to: the BIOS reads no more than 127 sectors.
const CHUNK: usize = 64 * SECTOR;

/// Where the boot sector has the table of the parts, and how many fit in.
const PARTS: usize = 446 - 4 * PART;
/// Bytes of an entry: the first sector, the number of chunks, and the address.
const PART: usize = 12;

/// Where the kernel's real-mode code goes, with its stack, its heap and the command line behind it.
const SETUP_ADDRESS: u32 = 0x1_0000;
/// Size of all that: one segment.
const SETUP_SIZE: usize = 0x1_0000;
/// The command line's place in it.
const CMDLINE_OFFSET: usize = 0xe000;
/// Its address.
const CMDLINE_ADDRESS: u32 = 0x1_e000;
/// The longest command line that fits behind it, with the zero at its end.
const CMDLINE_SIZE: usize = SETUP_SIZE - CMDLINE_OFFSET;
/// End of the heap in it, below the stack.
const HEAP_END: u16 = 0xd000;

/// Where the rest of the kernel goes.
const KERNEL_ADDRESS: u32 = 0x10_0000;

/// Memory at the top that the BIOS uses for its ACPI tables, and then some.
const TOP_RESERVED: u32 = 2 << 20;

/// Offsets in the kernel's header.
mod header {
    /// Number of sectors of the real-mode code behind the first.
    pub(super) const SETUP_SECTORS: usize = 0x1f1;
    /// "HdrS".
    pub(super) const MAGIC: usize = 0x202;
    /// Who loads.
    pub(super) const LOADER: usize = 0x210;
    /// Flags for the kernel.
    pub(super) const LOAD_FLAGS: usize = 0x211;
    /// Address of the initramfs.
    pub(super) const INITRD_ADDRESS: usize = 0x218;
    /// Its size.
    pub(super) const INITRD_SIZE: usize = 0x21c;
    /// End of the heap.
    pub(super) const HEAP_END: usize = 0x224;
    /// Address of the command line.
    pub(super) const CMDLINE: usize = 0x228;
}

/// The header's heap end is so much less than the true one.
const HEAP_END_BIAS: u16 = 0x200;

/// A loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// The heap's end is valid.
const CAN_USE_HEAP: u8 = 1 << 7;

/// The sectors of a track and the tracks of a cylinder that Bochs has for every disk: it wants whole cylinders.
const CYLINDER: usize = 63 * 16 * SECTOR;

/// Builds the boot sector, or takes the one that was built before.
///
/// # Errors
/// When the assembler or the linker fails.
pub(super) fn boot_sector(env: &Env) -> Result<Vec<u8>> {
    let dir = env.out.join("bochs");
    let _lock = fs::Lock::take(dir.join("boot.lock"))?;
    let (source, object, binary) = (dir.join("boot.S"), dir.join("boot.o"), dir.join("boot.bin"));
    let is_built = binary.exists() && fs::read(&source).is_ok_and(|built| built == BOOT_SECTOR.as_bytes());
    if !is_built {
        let step = env.progress.step("assembling the boot sector");
        fs::remove(&binary)?;
        fs::write(&source, BOOT_SECTOR)?;
        Cmd::new("gcc").args(["-m32", "-c", "-o"]).arg(&object).arg(&source).run(&step)?;
        Cmd::new("ld")
            .args(["-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o"])
            .arg(&binary)
            .arg(&object)
            .run(&step)?;
        step.done();
    }
    let sector = fs::read(&binary)?;
    if sector.len() == SECTOR { Ok(sector) } else { Err(Error::BootDisk("its boot sector is not one sector long")) }
}

/// Lays out a disk.
///
/// # Errors
/// When the kernel is no bzImage or something does not fit.
pub(super) fn build(
    boot_sector: &[u8],
    kernel: &[u8],
    initramfs: &[u8],
    cmdline: &str,
    memory_mib: u32,
) -> Result<Vec<u8>> {
    if kernel.get(header::MAGIC..header::MAGIC + 4) != Some(b"HdrS") {
        return Err(Error::BootDisk("the kernel is no bzImage"));
    }
    // Zero means four, for the sake of very old kernels.
    let sectors = if kernel[header::SETUP_SECTORS] == 0 { 4 } else { usize::from(kernel[header::SETUP_SECTORS]) };
    let setup_length = (sectors + 1) * SECTOR;
    if setup_length > usize::from(HEAP_END) || setup_length > kernel.len() {
        return Err(Error::BootDisk("the kernel's real-mode code is too long"));
    }
    if cmdline.len() >= CMDLINE_SIZE {
        return Err(Error::BootDisk("the kernel's command line is too long"));
    }
    let (setup_code, protected) = kernel.split_at(setup_length);
    let initrd_size = u32::try_from(initramfs.len()).map_err(|_| Error::BootDisk(NO_ROOM))?;
    let initrd_address = initrd_address(memory_mib, initrd_size, protected.len())?;

    let mut setup = vec![0; SETUP_SIZE];
    setup[..setup_length].copy_from_slice(setup_code);
    setup[header::LOADER] = LOADER_UNDEFINED;
    setup[header::LOAD_FLAGS] |= CAN_USE_HEAP;
    put(&mut setup, header::HEAP_END, &(HEAP_END - HEAP_END_BIAS).to_le_bytes());
    put(&mut setup, header::INITRD_ADDRESS, &initrd_address.to_le_bytes());
    put(&mut setup, header::INITRD_SIZE, &initrd_size.to_le_bytes());
    put(&mut setup, header::CMDLINE, &CMDLINE_ADDRESS.to_le_bytes());
    put(&mut setup, CMDLINE_OFFSET, cmdline.as_bytes());

    let mut disk = boot_sector.to_vec();
    disk.resize(CHUNK, 0);
    let parts = [(&setup[..], SETUP_ADDRESS), (protected, KERNEL_ADDRESS), (initramfs, initrd_address)];
    for (index, (content, address)) in parts.into_iter().enumerate() {
        let chunks = content.len().div_ceil(CHUNK);
        let entry = [to_u32(disk.len() / SECTOR)?, to_u32(chunks)?, address].map(u32::to_le_bytes).concat();
        put(&mut disk, PARTS + index * PART, &entry);
        let end = disk.len() + chunks * CHUNK;
        disk.extend_from_slice(content);
        disk.resize(end, 0);
    }
    disk.resize(disk.len().next_multiple_of(CYLINDER), 0);
    Ok(disk)
}

/// What an error says where memory is too small.
const NO_ROOM: &str = "the host's memory has no room for its kernel and its initramfs";

/// Where the initramfs goes: as high as can be, and far enough above the kernel, which unpacks itself to several times its
/// size.
fn initrd_address(memory_mib: u32, initrd_size: u32, kernel_length: usize) -> Result<u32> {
    // The hole for devices begins at 3 GiB.
    let top = memory_mib.min(3 << 10) << 20;
    let chunks = initrd_size.next_multiple_of(to_u32(CHUNK)?);
    let address = top.checked_sub(TOP_RESERVED).and_then(|top| top.checked_sub(chunks)).map(|address| address & !0xfff);
    let kernel_end = u64::from(KERNEL_ADDRESS) + 8 * kernel_length as u64;
    address.filter(|&address| u64::from(address) >= kernel_end).ok_or(Error::BootDisk(NO_ROOM))
}

fn to_u32(number: usize) -> Result<u32> {
    u32::try_from(number).map_err(|_| Error::BootDisk(NO_ROOM))
}

fn put(target: &mut [u8], offset: usize, bytes: &[u8]) {
    target[offset..offset + bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(disk: &[u8], offset: usize) -> usize {
        usize::try_from(u32::from_le_bytes(disk[offset..offset + 4].try_into().unwrap())).unwrap()
    }

    fn kernel() -> Vec<u8> {
        let mut kernel = vec![7; 100_000];
        kernel[header::SETUP_SECTORS] = 3;
        put(&mut kernel, header::MAGIC, b"HdrS");
        kernel
    }

    #[test]
    fn each_part_is_where_the_table_says() {
        let kernel = kernel();
        let initramfs = vec![9; CHUNK + 1];
        let disk = build(&[0; SECTOR], &kernel, &initramfs, "console=ttyS0", 64).unwrap();
        assert_eq!(disk.len() % CYLINDER, 0);
        let setup = number(&disk, PARTS) * SECTOR;
        assert_eq!(&disk[setup + CMDLINE_OFFSET..][..14], b"console=ttyS0\0");
        assert_eq!(number(&disk, setup + header::INITRD_SIZE), CHUNK + 1);
        let protected = number(&disk, PARTS + PART) * SECTOR;
        assert_eq!(
            disk[protected..][..98_000],
            kernel[2048..][..98_000 - 48].iter().copied().chain([0; 48]).collect::<Vec<u8>>()
        );
        let initrd = PARTS + 2 * PART;
        assert_eq!(number(&disk, initrd + 4), 2);
        assert_eq!(number(&disk, initrd + 8), number(&disk, setup + header::INITRD_ADDRESS));
        assert_eq!(disk[number(&disk, initrd) * SECTOR..][..initramfs.len()], initramfs);
        assert_eq!(number(&disk, initrd + PART + 4), 0);
    }

    #[test]
    fn what_does_not_fit_is_told() {
        assert!(matches!(build(&[0; SECTOR], b"no kernel", &[], "", 64), Err(Error::BootDisk(_))));
        assert!(matches!(build(&[0; SECTOR], &kernel(), &vec![0; 64 << 20], "", 64), Err(Error::BootDisk(NO_ROOM))));
        assert!(build(&[0; SECTOR], &kernel(), &[], &"x".repeat(CMDLINE_SIZE), 64).is_err());
    }
}
