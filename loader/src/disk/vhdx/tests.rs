//! Images made by hand.

use super::parse::checksum;
use super::*;
use crate::disk::medium::MemoryMedium;

const MIB: usize = 1 << 20;
const BLOCK_TABLE: [u8; 16] =
    [0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0x00, 0x42, 0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08];
const METADATA: [u8; 16] =
    [0x06, 0xa2, 0x7c, 0x8b, 0x90, 0x47, 0x9a, 0x4b, 0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e];
const FILE_PARAMETERS: [u8; 16] =
    [0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d, 0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b];
const DISK_SIZE: [u8; 16] =
    [0x24, 0x42, 0xa5, 0x2f, 0x1b, 0xcd, 0x76, 0x48, 0xb2, 0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8];
const LOGICAL_SECTOR: [u8; 16] =
    [0x1d, 0xbf, 0x41, 0x81, 0x6f, 0xa9, 0x09, 0x47, 0xba, 0x47, 0xf2, 0x33, 0xa8, 0xfa, 0xab, 0x5f];

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// Puts the checksum of a structure right.
fn seal(bytes: &mut [u8], at: usize, size: usize) {
    let sum = checksum(&bytes[at..at + size]);
    put(bytes, at + 4, &sum.to_le_bytes());
}

/// Headers at 64 and 128 KiB, regions' tables at 192 and 256 KiB, the block table at 1 MiB, metadata at 2 MiB, blocks from
/// 3 MiB on: a disk of three blocks of 1 MiB, of which the second is there and the third is all zero.
pub(in crate::disk) fn image() -> Vec<u8> {
    let mut bytes = vec![0; 4 * MIB];
    put(&mut bytes, 0, b"vhdxfile");
    for (at, number) in [(64 << 10, 1_u64), (128 << 10, 2)] {
        put(&mut bytes, at, b"head");
        put(&mut bytes, at + 8, &number.to_le_bytes());
        put(&mut bytes, at + 66, &1_u16.to_le_bytes());
        seal(&mut bytes, at, 4096);
    }
    for at in [192 << 10, 256 << 10] {
        put(&mut bytes, at, b"regi");
        put(&mut bytes, at + 8, &2_u32.to_le_bytes());
        for (entry, id, offset) in [(at + 16, BLOCK_TABLE, MIB), (at + 48, METADATA, 2 * MIB)] {
            put(&mut bytes, entry, &id);
            put(&mut bytes, entry + 16, &(offset as u64).to_le_bytes());
            put(&mut bytes, entry + 24, &(1_u32 << 20).to_le_bytes());
            put(&mut bytes, entry + 28, &1_u32.to_le_bytes());
        }
        seal(&mut bytes, at, 64 << 10);
    }
    let metadata = 2 * MIB;
    put(&mut bytes, metadata, b"metadata");
    put(&mut bytes, metadata + 10, &3_u16.to_le_bytes());
    let items: [([u8; 16], Vec<u8>); 3] = [
        (FILE_PARAMETERS, (1_u64 << 20).to_le_bytes().to_vec()),
        (DISK_SIZE, (3_u64 << 20).to_le_bytes().to_vec()),
        (LOGICAL_SECTOR, 512_u32.to_le_bytes().to_vec()),
    ];
    for (index, (id, value)) in (0_u32..).zip(items) {
        let entry = metadata + 32 + index as usize * 32;
        let offset = (64 << 10) + index * 16;
        put(&mut bytes, entry, &id);
        put(&mut bytes, entry + 16, &offset.to_le_bytes());
        put(&mut bytes, entry + 20, &u32::try_from(value.len()).unwrap().to_le_bytes());
        put(&mut bytes, entry + 24, &4_u32.to_le_bytes());
        put(&mut bytes, metadata + offset as usize, &value);
    }
    put(&mut bytes, MIB + 8, &(3_u64 << 20 | 6).to_le_bytes());
    put(&mut bytes, MIB + 16, &2_u64.to_le_bytes());
    bytes[3 * MIB..].fill(0x5a);
    bytes
}

fn open_bytes(bytes: Vec<u8>) -> Result<Box<dyn BlockBackend>, String> {
    open(Arc::new(MemoryMedium::new(bytes, 8 * MIB))).map_err(|error| error.to_string())
}

fn read(disk: &mut dyn BlockBackend, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![1; length];
    disk.read_at(offset, &[vm_memory::VolatileSlice::from(bytes.as_mut_slice())])?;
    Ok(bytes)
}

#[test]
fn test_blocks_are_read_and_what_is_not_there_is_zero() {
    let mut disk = open_bytes(image()).unwrap();
    assert_eq!((disk.sectors(), disk.is_read_only()), (6144, true));
    let around = read(disk.as_mut(), (1 << 20) - 512, (1 << 20) + 1024).unwrap();
    assert!(around[..512].iter().chain(&around[512 + MIB..]).all(|byte| *byte == 0));
    assert!(around[512..512 + MIB].iter().all(|byte| *byte == 0x5a));
    assert_eq!(disk.run(0, 3 << 20).unwrap(), crate::disk::Run { length: 1 << 20, zeroes: true });
    let mut bytes = [0; 512];
    assert!(disk.write_at(0, &[vm_memory::VolatileSlice::from(&mut bytes[..])]).is_err());
}

#[test]
fn test_the_other_copy_counts_where_one_is_damaged() {
    for at in [64 << 10, 128 << 10, 192 << 10, 256 << 10] {
        let mut bytes = image();
        bytes[at + 100] ^= 1;
        assert!(open_bytes(bytes).is_ok(), "{at}");
    }
}

#[test]
fn test_what_cannot_be_is_refused_in_words() {
    let refusal = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = image();
        change(&mut bytes);
        open_bytes(bytes).map(|_| ()).unwrap_err()
    };
    let both = |bytes: &mut Vec<u8>, at: [usize; 2], size: usize, offset: usize, value: &[u8]| {
        for at in at {
            put(bytes, at + offset, value);
            seal(bytes, at, size);
        }
    };
    let headers =
        |offset: usize, value: &[u8]| refusal(&|bytes| both(bytes, [64 << 10, 128 << 10], 4096, offset, value));
    let regions =
        |offset: usize, value: &[u8]| refusal(&|bytes| both(bytes, [192 << 10, 256 << 10], 64 << 10, offset, value));
    let metadata = |offset: usize, value: &[u8]| refusal(&|bytes| put(bytes, 2 * MIB + offset, value));
    assert!(refusal(&|bytes| bytes[0] = 0).contains("no VHDX image"));
    assert!(refusal(&|bytes| bytes.truncate(10)).contains("headers"));
    assert!(refusal(&|bytes| bytes[64 << 10..129 << 10].fill(0)).contains("headers"));
    assert!(headers(66, &[2, 0]).contains("version 2"));
    assert!(headers(48, &[1]).contains("log"));
    assert!(refusal(&|bytes| bytes[192 << 10..257 << 10].fill(0)).contains("region tables"));
    assert!(regions(8, &u32::MAX.to_le_bytes()).contains("more entries"));
    assert!(regions(16, &[0]).contains("region that is not known"));
    assert!(regions(8, &1_u32.to_le_bytes()).contains("no metadata"));
    for (offset, value) in [(32, u64::MAX), (32, 1), (32, 0), (32, 4 << 20), (64, 1 << 20)] {
        assert!(regions(offset, &u64::to_le_bytes(value)).contains("does not lie where it can"), "{offset} {value}");
    }
    assert!(metadata(0, b"x").contains("metadata table"));
    assert!(metadata(32, &[0]).contains("item that is not known"));
    assert!(metadata(48, &u32::MAX.to_le_bytes()).contains("does not lie"));
    assert!(metadata(64 << 10, &3_u32.to_le_bytes()).contains("blocks"));
    assert!(metadata((64 << 10) + 4, &2_u32.to_le_bytes()).contains("differencing"));
    assert!(metadata((64 << 10) + 16, &u64::MAX.to_le_bytes()).contains("64 TiB"));
    assert!(metadata((64 << 10) + 16, &(1_u64 << 40).to_le_bytes()).contains("too small for the disk"));
    assert!(metadata((64 << 10) + 32, &513_u32.to_le_bytes()).contains("sectors"));
    for length in [0, 8, 65536, 200 << 10, 2 * MIB, 3 * MIB - 1] {
        assert!(open_bytes(image()[..length].to_vec()).is_err(), "{length}");
    }
}

#[test]
fn test_blocks_that_cannot_be_are_errors() {
    for entry in [5, 7, 6, !1, 4 << 20 | 6] {
        let mut bytes = image();
        put(&mut bytes, MIB, &u64::to_le_bytes(entry));
        let error = read(open_bytes(bytes).unwrap().as_mut(), 0, 512).unwrap_err().to_string();
        assert!(error.contains("damaged"), "{error}");
    }
}
