//! A qcow2 image of any bytes: described, checked, read, written and repaired.
#![no_main]

use std::sync::Arc;

use covisor::disk::BlockBackend;
use covisor::disk::medium::MemoryMedium;
use covisor::disk::medium::Medium;
use covisor::disk::qcow2::Header;
use covisor::disk::qcow2::Qcow2;
use covisor::disk::qcow2::check;
use covisor::disk::qcow2::repair;
use covisor_fuzz::Input;
use libfuzzer_sys::fuzz_target;
use vm_memory::VolatileSlice;

/// Most bytes that an image may become.
const LIMIT: usize = 4 << 20;
/// Most bytes of a request.
const LARGEST: u64 = 64 << 10;
/// Requests.
const MOST: usize = 16;

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let (choice, seed) = (input.byte(), input.array::<8>());
    let image = input.rest().to_vec();
    let open = || -> Arc<dyn Medium> { Arc::new(MemoryMedium::new(image.clone(), LIMIT)) };
    let medium = open();
    let Ok(header) = Header::read(medium.as_ref()) else { return };
    // A larger one takes long, and is no other.
    if header.size > 1 << 40 {
        return;
    }
    if choice & 1 != 0 {
        let _ = check(medium.as_ref(), &header);
        if choice & 2 != 0 && repair(medium.as_ref(), &header).is_ok() {
            let header = Header::read(medium.as_ref()).expect("what is repaired has a header");
            let found = check(medium.as_ref(), &header).expect("memory can be read");
            assert_eq!((found.errors, found.leaks), (0, 0), "{found:?}");
        }
    }
    let read_only = choice & 4 != 0;
    let medium = if choice & 8 != 0 { open() } else { medium };
    let Ok(header) = Header::read(medium.as_ref()) else { return };
    let Ok(mut disk) = Qcow2::new(medium, &header, None, read_only) else { return };
    requests(&mut disk, u64::from_le_bytes(seed), read_only);
});

/// Makes requests that are on the disk, as the device does.
fn requests(disk: &mut dyn BlockBackend, mut seed: u64, read_only: bool) {
    let sectors = disk.sectors();
    for _ in 0..MOST {
        seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let sector = (seed >> 16) % sectors.min(256);
        let length = (1 + (seed >> 40) % 100).min(sectors - sector) * 512;
        let offset = sector * 512;
        let mut bytes = vec![0x5a; usize::try_from(length.min(LARGEST)).expect("64 bits")];
        let buffers = [VolatileSlice::from(bytes.as_mut_slice())];
        let _ = match (seed >> 60) % 6 {
            0 | 1 => disk.read_at(offset, &buffers),
            _ if read_only => disk.run(offset, length).map(|_| ()),
            2 => disk.write_at(offset, &buffers),
            3 => disk.write_zeroes(offset, length, seed & 1 << 59 != 0),
            4 => disk.discard(offset, length),
            _ => disk.flush(),
        };
    }
}
