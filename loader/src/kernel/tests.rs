//! Kernels made by hand, good and bad.

use std::io::Cursor;

use proptest::prelude::*;

use super::testing::bzimage;
use super::testing::bzimage_with;
use super::testing::elf;
use super::*;

const MIB: u64 = 1 << 20;

fn parse(file: &[u8]) -> Result<Image, KernelError> {
    Image::parse(&mut Cursor::new(file))
}

fn request(ram: u64) -> Request<'static> {
    Request { ram: Ram::new(ram), command_line: "console=hvc0", initrd_size: None }
}

fn plan(file: &[u8], request: &Request<'_>) -> Result<Plan, KernelError> {
    Plan::new(&parse(file)?, request)
}

#[test]
fn test_a_bzimage_goes_where_it_prefers() {
    let plan = plan(&bzimage(), &request(512 * MIB)).unwrap();
    assert_eq!(plan.segments()[0].address, 0x100_0000);
    assert_eq!(plan.state.rip, 0x100_0200);
    assert_eq!(plan.state.gprs[6], BOOT_PARAMS);
}

#[test]
fn test_a_relocatable_bzimage_without_a_preference_goes_low() {
    let mut file = bzimage();
    file[0x258..0x260].fill(0);
    assert_eq!(plan(&file, &request(16 * MIB)).unwrap().segments()[0].address, 2 * MIB);
    file[0x234] = 0;
    assert!(matches!(plan(&file, &request(16 * MIB)), Err(KernelError::TooLow { start: 0 })));
}

/// Loaded lower it would move itself to where it prefers, and find no RAM there.
#[test]
fn test_a_bzimage_whose_preferred_place_is_not_ram_is_refused() {
    assert!(plan(&bzimage(), &request(24 * MIB)).is_ok());
    let error = plan(&bzimage(), &request(23 * MIB)).unwrap_err();
    assert!(matches!(error, KernelError::DoesNotFit { start: 0x100_0000, .. }), "{error}");
}

#[test]
fn test_a_kernel_larger_than_ram_is_refused() {
    let error = plan(&bzimage(), &request(4 * MIB)).unwrap_err();
    assert!(error.to_string().ends_with("raise --mem"), "{error}");
    let error = plan(&elf(&[(16 * MIB, 4096, 64 * MIB)], 16 * MIB, None), &request(32 * MIB)).unwrap_err();
    assert!(matches!(error, KernelError::DoesNotFit { .. }), "{error}");
    assert!(matches!(plan(&bzimage(), &request(MIB)), Err(KernelError::RamTooSmall(_))));
}

#[test]
fn test_the_initrd_goes_as_high_as_it_may() {
    let request = Request { initrd_size: Some(0x1234), ..request(512 * MIB) };
    assert_eq!(plan(&bzimage(), &request).unwrap().initrd(), Some((512 * MIB - 0x2000, 0x1234)));
    let request = Request { ram: Ram::new(4 << 30), ..request };
    assert_eq!(plan(&bzimage(), &request).unwrap().initrd(), Some((0x8000_0000 - 0x2000, 0x1234)));
}

#[test]
fn test_an_initrd_larger_than_the_free_ram_is_refused() {
    for size in [500 * MIB, 512 * MIB, u64::MAX] {
        let request = Request { initrd_size: Some(size), ..request(512 * MIB) };
        let error = plan(&bzimage(), &request).unwrap_err();
        assert!(matches!(error, KernelError::InitrdTooLarge { .. }), "{error}");
    }
}

#[test]
fn test_a_command_line_over_the_kernels_limit_is_refused() {
    let line = "x".repeat(2048);
    let error = plan(&bzimage(), &Request { command_line: &line, ..request(512 * MIB) }).unwrap_err();
    assert_eq!(error.to_string(), "the command line has 2048 bytes, this kernel takes at most 2047: shorten --append");
}

#[test]
fn test_a_truncated_bzimage_is_refused_at_every_length() {
    let file = bzimage();
    for len in 0..file.len() {
        assert!(plan(&file[..len], &request(512 * MIB)).is_err(), "{len}");
    }
}

#[test]
fn test_bad_bzimage_headers_are_refused_in_words() {
    let refusal = |offset: usize, bytes: &[u8]| {
        let mut file = bzimage();
        file[offset..offset + bytes.len()].copy_from_slice(bytes);
        plan(&file, &request(512 * MIB)).unwrap_err().to_string()
    };
    assert_eq!(refusal(0x236, &[0]), "it is a 32-bit kernel; covisor runs 64-bit kernels (for x86-64) only");
    assert!(refusal(0x206, &[4, 2]).starts_with("it speaks Linux boot protocol 2.04"));
    assert!(refusal(0x201, &[0x10]).starts_with("it speaks Linux boot protocol"));
    assert!(refusal(0x260, &[0; 4]).contains("init_size"));
    assert!(refusal(0x230, &[3]).contains("kernel_alignment"));
    assert!(refusal(0x1f4, &[0xff; 4]).starts_with("it is truncated"));
    assert!(refusal(0x202, b"HDRS").starts_with("it is neither"));
}

#[test]
fn test_a_preferred_address_over_the_end_of_the_address_space_is_not_taken() {
    let mut file = bzimage();
    file[0x258..0x260].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(matches!(plan(&file, &request(512 * MIB)), Err(KernelError::DoesNotFit { .. })));
}

#[test]
fn test_an_elf_kernel_starts_by_pvh_when_it_can() {
    let segments = [(16 * MIB, 4096, 8192), (32 * MIB, 100, 100)];
    let image = elf(&segments, 16 * MIB, Some(0x100_0010));
    let started = plan(&image, &request(512 * MIB)).unwrap();
    assert_eq!(started.state.rip, 0x100_0010);
    assert_eq!(started.state.cr0, 0x11);
    assert_eq!(started.state.gprs[3], PVH_START_INFO);
    let started = plan(&elf(&segments, 16 * MIB + 8, None), &request(512 * MIB)).unwrap();
    assert_eq!(started.state.rip, 16 * MIB + 8);
    assert_eq!(started.state.gprs[6], BOOT_PARAMS);
}

#[test]
fn test_bad_elf_kernels_are_refused() {
    let refusal =
        |segments: &[(u64, u64, u64)], entry| plan(&elf(segments, entry, None), &request(512 * MIB)).unwrap_err();
    let low = refusal(&[(0x8000, 4096, 4096)], 0x8000);
    assert!(matches!(low, KernelError::TooLow { start: 0x8000 }), "{low}");
    let overlap = refusal(&[(16 * MIB, 10, 8192), (16 * MIB + 4096, 10, 10)], 16 * MIB);
    assert!(matches!(overlap, KernelError::Overlap { .. }), "{overlap}");
    let outside = refusal(&[(16 * MIB, 4096, 4096)], 17 * MIB);
    assert!(matches!(outside, KernelError::EntryOutside(_)), "{outside}");
    let wrapping = refusal(&[(u64::MAX - 10, 10, 4096)], u64::MAX - 10);
    assert!(matches!(wrapping, KernelError::Damaged(_)), "{wrapping}");
    let larger = refusal(&[(16 * MIB, 4096, 10)], 16 * MIB);
    assert!(matches!(larger, KernelError::Damaged(_)), "{larger}");
    let empty = refusal(&[], 0);
    assert!(matches!(empty, KernelError::Damaged(_)), "{empty}");
}

#[test]
fn test_elf_files_for_other_machines_are_named() {
    let mut file = elf(&[(16 * MIB, 10, 10)], 16 * MIB, None);
    file[18] = 183; // EM_AARCH64
    assert!(matches!(parse(&file), Err(KernelError::WrongMachine)));
    file[18] = 62;
    file[4] = 1; // ELFCLASS32
    assert!(matches!(parse(&file), Err(KernelError::Not64Bit)));
    file[4] = 2;
    file[5] = 2; // big-endian
    assert!(matches!(parse(&file), Err(KernelError::WrongMachine)));
}

#[test]
fn test_a_truncated_elf_kernel_is_refused_at_every_length() {
    let file = elf(&[(16 * MIB, 300, 8192)], 16 * MIB, Some(0x100_0000));
    for len in 0..file.len() {
        assert!(plan(&file[..len], &request(512 * MIB)).is_err(), "{len}");
    }
}

#[test]
fn test_execution_puts_everything_where_it_was_planned() {
    let memory = crate::sys::memory::anonymous(&[(GuestAddress(0), 64 << 20)]);
    let mut initrd = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut initrd, b"initrd").unwrap();
    let file = bzimage();
    let request = Request { initrd_size: Some(6), ..request(64 * MIB) };
    let plan = plan(&file, &request).unwrap();
    let state = plan.execute(&memory, &mut KernelFile::Decompressed(Cursor::new(file)), Some(&mut initrd)).unwrap();
    let bytes = |address, len| {
        let mut bytes = vec![0; len];
        memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    };
    assert_eq!(bytes(state.rip, 4), [0xf4; 4]);
    assert_eq!(bytes(COMMAND_LINE, 13), b"console=hvc0\0");
    assert_eq!(bytes(64 * MIB - 0x1000, 7), b"initrd\0");
    assert_eq!(bytes(BOOT_PARAMS + 0x202, 4), b"HdrS");
}

#[test]
fn test_a_file_cut_off_after_planning_is_an_error() {
    let memory = crate::sys::memory::anonymous(&[(GuestAddress(0), 64 << 20)]);
    let mut file = bzimage();
    let plan = plan(&file, &request(64 * MIB)).unwrap();
    file.truncate(3000);
    let result = plan.execute(&memory, &mut KernelFile::Decompressed(Cursor::new(file)), None);
    assert!(matches!(result, Err(KernelError::Memory { .. })));
}

fn into_elf(file: Vec<u8>, ram: u64) -> Result<(Vec<u8>, Box<ElfImage>), KernelError> {
    let (mut file, image) = KernelFile::Decompressed(Cursor::new(file)).into_elf(Ram::new(ram))?;
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok((bytes, image))
}

#[test]
fn test_the_elf_file_in_a_bzimage_is_found() {
    let vmlinux = elf(&[(16 * MIB, 4096, 8192)], 16 * MIB, None);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &vmlinux).unwrap();
    let gzip = gzip.finish().unwrap();
    let size = u32::try_from(vmlinux.len()).unwrap().to_le_bytes();
    let lz4 = [&lz4::frame(&vmlinux)[..], &size].concat();
    for file in [bzimage_with(&gzip), bzimage_with(&lz4), vmlinux.clone()] {
        let (bytes, image) = into_elf(file, 64 * MIB).unwrap();
        assert!(bytes == vmlinux);
        assert_eq!(image.segments[0].address, 16 * MIB);
    }
    let error = into_elf(bzimage_with(&gzip), 4096).unwrap_err();
    assert!(matches!(error, KernelError::DecompressedTooLarge { .. }), "{error}");
}

#[test]
fn test_bzimages_without_an_elf_file_are_refused_in_words() {
    let refusal = |file: Vec<u8>| into_elf(file, 64 * MIB).unwrap_err().to_string();
    let inner = [&lz4::frame(&bzimage())[..], &[0; 4]].concat();
    assert_eq!(refusal(bzimage_with(&inner)), "it is damaged: what it holds is no ELF file");
    assert!(refusal(bzimage_with(b"\x5d\0\0 as lzma begins")).contains("extract-vmlinux"));
    assert!(refusal(bzimage_with(b"nothing of Linux's")).contains("not compressed"));
    assert!(refusal(bzimage_with(b"x")).contains("not compressed"));
    assert!(refusal(bzimage()).contains("payload"));
    let mut long = bzimage_with(&inner);
    long[0x24c..0x250].fill(0xff);
    assert!(refusal(long).contains("payload"));
}

/// Whatever the file says, a plan stays within RAM and away from the start-up data.
fn check_bounds(file: &[u8], request: &Request<'_>) {
    let Ok(plan) = plan(file, request) else {
        return;
    };
    let end = request.ram.low_end();
    for segment in plan.segments() {
        assert!(segment.address >= HIGH_RAM_START && segment.end() <= end);
        assert!(segment.file_size <= segment.memory_size && segment.offset + segment.file_size <= file.len() as u64);
    }
    if let Some((start, size)) = plan.initrd() {
        assert!(start + size <= end);
        assert!(plan.segments().iter().all(|segment| segment.end() <= start));
    }
}

proptest! {
    #[test]
    fn test_random_bytes_never_panic(file in prop::collection::vec(any::<u8>(), 0..4096)) {
        check_bounds(&file, &request(64 * MIB));
    }

    #[test]
    fn test_changed_bzimages_stay_within_bounds(
        changes in prop::collection::vec((0x1f1usize..0x270, any::<u8>()), 0..12),
        ram in 1..5000u64,
        initrd in prop::option::of(0..5000 * MIB),
    ) {
        let mut file = bzimage();
        for (offset, value) in changes {
            file[offset] = value;
        }
        check_bounds(&file, &Request { initrd_size: initrd, ..request(ram * MIB) });
    }

    #[test]
    fn test_changed_elf_kernels_stay_within_bounds(
        changes in prop::collection::vec((0usize..250, any::<u8>()), 0..12),
        ram in 1..5000u64,
    ) {
        let mut file = elf(&[(16 * MIB, 300, 8192), (32 * MIB, 10, 10)], 16 * MIB, Some(0x100_0000));
        for (offset, value) in changes {
            file[offset] = value;
        }
        check_bounds(&file, &request(ram * MIB));
    }
}
