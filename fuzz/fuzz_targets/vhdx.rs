//! A VHDX image whose headers, tables and metadata have any bytes, with right checksums for the most part.
#![no_main]

use std::sync::Arc;

use covisor::disk::medium::MemoryMedium;
use covisor::disk::vhdx;
use covisor_fuzz::Input;
use libfuzzer_sys::fuzz_target;
use vm_memory::VolatileSlice;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// Where what matters is: headers, region tables, block table, metadata table and items.
const PLACES: [usize; 8] = [0, 64 * KIB, 128 * KIB, 192 * KIB, 256 * KIB, MIB, 2 * MIB, 2 * MIB + 64 * KIB];
/// Where what has a checksum is, and its bytes.
const SUMMED: [(usize, usize); 4] = [(64 * KIB, 4 * KIB), (128 * KIB, 4 * KIB), (192 * KIB, 64 * KIB), (256 * KIB, 64 * KIB)];

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let choice = input.byte();
    let mut bytes = vec![0; 4 * MIB];
    // Pieces: a place, how far behind it, how long, and the bytes.
    while !input.is_empty() {
        let at = PLACES[usize::from(input.byte()) % PLACES.len()] + usize::from(input.byte());
        let mut piece = vec![0; usize::from(input.byte())];
        input.fill(&mut piece);
        bytes[at..at + piece.len()].copy_from_slice(&piece);
    }
    if choice & 1 == 0 {
        for (at, size) in SUMMED {
            let sum = vhdx::checksum(&bytes[at..at + size]);
            bytes[at + 4..at + 8].copy_from_slice(&sum.to_le_bytes());
        }
    }
    bytes.truncate(4 * MIB - (usize::from(choice) & 0xf0) * KIB);
    let Ok(mut disk) = vhdx::open(Arc::new(MemoryMedium::new(bytes, 4 * MIB))) else { return };
    let end = disk.sectors() * 512;
    for offset in [0, MIB as u64, end / 2 / 512 * 512, end - 512] {
        if offset < end {
            let mut buffer = [0; 512];
            let _ = disk.read_at(offset, &[VolatileSlice::from(&mut buffer[..])]);
            let run = disk.run(offset, end - offset);
            assert!(run.is_err() || run.is_ok_and(|run| run.length > 0 && run.length <= end - offset));
        }
    }
});
