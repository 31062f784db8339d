//! Images made by hand.

use std::io::Write;

use flate2::Compression;
use flate2::write::ZlibEncoder;

use super::*;
use crate::disk::medium::MemoryMedium;

/// Sectors of a grain.
const GRAIN: u64 = 8;
const SECTORS: u64 = 64;

/// An extent of 64 sectors whose third grain is `grain`, at sector 8; the directory at sector 2, its table at 3.
fn sparse(flags: u32, grain: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 8 * 512];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, b"KDMV");
    put(4, &1_u32.to_le_bytes());
    put(8, &flags.to_le_bytes());
    put(12, &SECTORS.to_le_bytes());
    put(20, &GRAIN.to_le_bytes());
    put(44, &512_u32.to_le_bytes());
    put(56, &2_u64.to_le_bytes());
    put(73, b"\n \r\n");
    put(77, &u16::from(flags & (1 << 16) != 0).to_le_bytes());
    put(2 * 512, &3_u32.to_le_bytes());
    put(3 * 512 + 8, &8_u32.to_le_bytes());
    put(3 * 512 + 12, &1_u32.to_le_bytes());
    bytes.extend(grain);
    bytes
}

fn none(_: &Path) -> Result<Arc<dyn Medium>, String> {
    Err("there is no such file".to_owned())
}

fn medium(bytes: &[u8]) -> Arc<dyn Medium> {
    Arc::new(MemoryMedium::new(bytes.to_vec(), 1 << 20))
}

fn refusal(bytes: &[u8]) -> String {
    open(medium(bytes), &mut none).map(|_| ()).unwrap_err().to_string()
}

fn content(disk: &mut dyn BlockBackend) -> io::Result<Vec<u8>> {
    let mut bytes = vec![9; usize::try_from(disk.sectors() * SECTOR).unwrap()];
    disk.read_at(0, &[vm_memory::VolatileSlice::from(bytes.as_mut_slice())])?;
    Ok(bytes)
}

/// What the disk in [`sparse`] has.
fn expected() -> Vec<u8> {
    let mut bytes = vec![0; 64 * 512];
    bytes[16 * 512..24 * 512].fill(0x77);
    bytes
}

#[test]
fn test_grains_are_read_plain_and_compressed() {
    let plain = sparse(1 | 1 << 2, &[0x77; 4096]);
    let mut disk = open(medium(&plain), &mut none).unwrap();
    assert_eq!(content(disk.as_mut()).unwrap(), expected());
    assert!(disk.run(0, 512).unwrap().zeroes);
    let mut packed = ZlibEncoder::new(Vec::new(), Compression::default());
    packed.write_all(&[0x77; 4096]).unwrap();
    let packed = packed.finish().unwrap();
    let mut grain = 16_u64.to_le_bytes().to_vec();
    grain.extend(u32::try_from(packed.len()).unwrap().to_le_bytes());
    grain.extend(&packed);
    let mut compressed = sparse(1 | 1 << 2 | 1 << 16, &grain);
    let mut disk = open(medium(&compressed), &mut none).unwrap();
    assert_eq!(content(disk.as_mut()).unwrap(), expected());
    // With its header at the end.
    compressed.resize(compressed.len().next_multiple_of(512), 0);
    let footer = compressed[..512].to_vec();
    compressed.extend(footer);
    compressed.extend([0; 512]);
    compressed[56..64].fill(0xff);
    let mut disk = open(medium(&compressed), &mut none).unwrap();
    assert_eq!(content(disk.as_mut()).unwrap(), expected());
    // A grain that unpacks to nothing, or is cut off.
    let at = 8 * 512 + 12;
    compressed[at] ^= 0xff;
    let error = content(open(medium(&compressed), &mut none).unwrap().as_mut()).unwrap_err().to_string();
    assert!(error.contains("cannot be unpacked"), "{error}");
}

#[test]
fn test_a_descriptor_joins_extents() {
    let text = b"version=1\nparentCID=ffffffff\nRW 2 FLAT \"flat\" 1\nRW 64 SPARSE \"sparse\"\nRW 1 ZERO\n";
    let mut files = |name: &Path| match name.to_str() {
        Some("flat") => Ok(medium(&[vec![1; 512], vec![2; 1024]].concat())),
        Some("sparse") => Ok(medium(&sparse(1 | 1 << 2, &[0x77; 4096]))),
        _ => Err("there is no such file".to_owned()),
    };
    let mut disk = open(medium(text), &mut files).unwrap();
    assert_eq!(content(disk.as_mut()).unwrap(), [vec![2; 1024], expected(), vec![0; 512]].concat());
    let short = b"version=1\nRW 3 FLAT \"flat\" 1\n";
    let error = open(medium(short), &mut files).map(|_| ()).unwrap_err().to_string();
    assert_eq!(error, "its extent flat: it is cut off");
    let small = b"version=1\nRW 65 SPARSE \"sparse\"\n";
    assert!(
        open(medium(small), &mut files).map(|_| ()).unwrap_err().to_string().contains("smaller than the descriptor")
    );
    assert_eq!(refusal(b"version=1\nRW 3 FLAT \"gone\" 0"), "its extent gone: there is no such file");
    assert!(refusal(b"version=1\n").contains("empty"));
    let many = format!("version=1\nRW {} ZERO\nRW {} ZERO\n", 1_u64 << 51, 1_u64 << 51);
    assert!(refusal(many.as_bytes()).contains("larger than any disk"));
}

#[test]
fn test_headers_that_cannot_be_are_refused_in_words() {
    let changed = |at: usize, value: &[u8]| {
        let mut bytes = sparse(1, &[0; 4096]);
        bytes[at..at + value.len()].copy_from_slice(value);
        refusal(&bytes)
    };
    assert!(changed(4, &[9]).contains("version 9"));
    assert!(changed(73, b"\r").contains("copied as text"));
    assert!(changed(12, &[0xff; 8]).contains("impossible sizes"));
    assert!(changed(12, &[0; 8]).contains("empty"));
    assert!(changed(20, &[3]).contains("grains"));
    assert!(changed(20, &[0; 8]).contains("grains"));
    assert!(changed(44, &[1]).contains("grain tables"));
    assert!(changed(56, &[0xff; 4]).contains("grain directory"));
    let descriptor = [1_u64.to_le_bytes(), 200_u64.to_le_bytes()].concat();
    assert!(changed(28, &descriptor).contains("descriptor does not lie"));
    // What lies there is none.
    assert!(changed(28, &[1_u64.to_le_bytes(), 1_u64.to_le_bytes()].concat()).contains("no VMDK image"));
    assert!(refusal(b"COWD").contains("ESX"));
    assert!(refusal(b"KDMV").contains("cut off"));
    assert!(refusal(&[0; 100_000]).contains("no VMDK image"));
    assert!(refusal(b"").contains("no VMDK image"));
}

#[test]
fn test_tables_that_lead_nowhere_are_errors() {
    for (at, value) in [(2 * 512, u32::MAX), (3 * 512, u32::MAX), (3 * 512, 9)] {
        let mut bytes = sparse(1, &[0; 4096]);
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        let error = content(open(medium(&bytes), &mut none).unwrap().as_mut()).unwrap_err().to_string();
        assert!(error.contains("does not lie in the file"), "{error}");
    }
}
