//! Requests as drivers make them, and as they should not.

use proptest::prelude::*;

use super::*;
use crate::devices::virtio::testing::Buffer;
use crate::devices::virtio::testing::RAM;
use crate::devices::virtio::testing::TestQueue;
use crate::disk::MemoryBackend;

const SECTORS: u64 = 64;
const HEADER: u64 = 0x8000;
const STATUS: u64 = 0x8100;
const DATA: u64 = 0x1_0000;

/// A disk whose sectors hold their numbers.
fn disk() -> Vec<u8> {
    (0..SECTORS).flat_map(|sector| [u8::try_from(sector).unwrap(); 512]).collect()
}

struct Test {
    queue: TestQueue,
    handler: BlockHandler,
}

impl Test {
    fn new(read_only: bool) -> Self {
        let backend = Box::new(MemoryBackend::new(disk(), read_only));
        Self { queue: TestQueue::new(256), handler: BlockHandler::new("disk", "serial", backend) }
    }

    fn header(&self, kind: u32, sector: u64) {
        self.queue.write(HEADER, kind);
        self.queue.write(HEADER + 4, 0_u32);
        self.queue.write(HEADER + 8, sector);
    }

    /// Makes a request of a header, `data` and a status byte, and gives the status and the bytes written.
    fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
        self.header(kind, sector);
        let mut buffers = vec![Buffer::readable(HEADER, 16)];
        buffers.extend(data);
        buffers.push(Buffer::writable(STATUS, 1));
        self.raw(&buffers).unwrap()
    }

    /// Makes a request of these buffers.
    fn raw(&mut self, buffers: &[Buffer]) -> Result<(u8, u32), QueueError> {
        let fresh = TestQueue::at(Arc::clone(&self.queue.memory), 0, 256, 0);
        self.queue = fresh;
        self.queue.set_available_index(0);
        self.queue.write(crate::devices::virtio::testing::USED, 0_u32);
        self.queue.write(STATUS, 0xaa_u8);
        self.queue.offer(0, buffers);
        self.handler.serve(&mut self.queue.queue(false))?;
        let used = self.queue.take_used();
        assert_eq!(used.len(), 1);
        Ok((self.queue.bytes(STATUS, 1)[0], used[0].1))
    }
}

const OK: u8 = Status::Ok as u8;
const ERROR: u8 = Status::IoError as u8;
const UNSUPPORTED: u8 = Status::Unsupported as u8;

#[test]
fn test_sectors_are_read_and_written() {
    let mut test = Test::new(false);
    let data = [Buffer::writable(DATA, 512), Buffer::writable(RAM[1].0, 1024)];
    assert_eq!(test.request(0, 5, &data), (OK, 1537));
    assert_eq!(test.queue.bytes(DATA, 512), [5; 512]);
    assert_eq!(test.queue.bytes(RAM[1].0 + 512, 512), [7; 512]);
    test.queue.fill(DATA, &[0xee; 512]);
    assert_eq!(test.request(1, 63, &[Buffer::readable(DATA, 512)]), (OK, 1));
    assert_eq!(test.request(0, 63, &[Buffer::writable(DATA + 0x1000, 512)]), (OK, 513));
    assert_eq!(test.queue.bytes(DATA + 0x1000, 512), [0xee; 512]);
}

#[test]
fn test_a_request_may_be_cut_anywhere() {
    let mut test = Test::new(false);
    test.header(0, 9);
    let buffers = [
        Buffer::readable(HEADER, 3),
        Buffer::readable(HEADER + 3, 13),
        Buffer::writable(DATA, 100),
        Buffer::writable(DATA + 100, 413),
    ];
    // The status is the last byte, behind the data.
    test.raw(&buffers).unwrap();
    assert_eq!(test.queue.bytes(DATA, 512), [9; 512]);
    assert_eq!(test.queue.bytes(DATA + 512, 1), [OK]);
    // A write in one buffer with its header.
    let whole = HEADER + 0x1000;
    test.queue.write(whole, 1_u32);
    test.queue.write(whole + 8, 9_u64);
    test.queue.fill(whole + 16, &[0x77; 512]);
    assert_eq!(test.raw(&[Buffer::readable(whole, 528), Buffer::writable(DATA, 1)]).unwrap().1, 1);
    assert_eq!(test.request(0, 9, &[Buffer::writable(DATA, 512)]), (OK, 513));
    assert_eq!(test.queue.bytes(DATA, 512), [0x77; 512]);
}

#[test]
fn test_flush_id_and_unknown_types() {
    let mut test = Test::new(false);
    assert_eq!(test.request(4, 0, &[]), (OK, 1));
    assert_eq!(test.request(8, 0, &[Buffer::writable(DATA, 20)]), (OK, 21));
    assert_eq!(&test.queue.bytes(DATA, 8), b"serial\0\0");
    assert_eq!(test.request(99, 0, &[]), (UNSUPPORTED, 1));
}

#[test]
fn test_writes_last_at_once_for_drivers_that_do_not_flush() {
    #[derive(Debug)]
    struct Counting(MemoryBackend, Arc<std::sync::atomic::AtomicUsize>);
    impl BlockBackend for Counting {
        fn sectors(&self) -> u64 {
            self.0.sectors()
        }
        fn is_read_only(&self) -> bool {
            false
        }
        fn read_at(&mut self, offset: u64, buffers: &[vm_memory::VolatileSlice<'_>]) -> io::Result<()> {
            self.0.read_at(offset, buffers)
        }
        fn write_at(&mut self, offset: u64, buffers: &[vm_memory::VolatileSlice<'_>]) -> io::Result<()> {
            self.0.write_at(offset, buffers)
        }
        fn flush(&mut self) -> io::Result<()> {
            self.1.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            Ok(())
        }
        fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
            self.0.discard(offset, length)
        }
        fn write_zeroes(&mut self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
            self.0.write_zeroes(offset, length, unmap)
        }
    }
    let flushes = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let backend = Counting(MemoryBackend::new(disk(), false), Arc::clone(&flushes));
    let mut test = Test::new(false);
    test.handler = BlockHandler::new("disk", "", Box::new(backend));
    let count = || flushes.load(std::sync::atomic::Ordering::SeqCst);
    test.handler.start(0);
    test.request(1, 0, &[Buffer::readable(DATA, 512)]);
    assert_eq!(count(), 1);
    test.handler.start(bit::FLUSH);
    test.request(1, 0, &[Buffer::readable(DATA, 512)]);
    assert_eq!(count(), 1);
    test.request(4, 0, &[]);
    assert_eq!(count(), 2);
}

#[test]
fn test_ranges_are_zeroed() {
    let mut test = Test::new(false);
    let range = |test: &Test, sector: u64, sectors: u32, flags: u32| {
        test.queue.write(DATA, sector);
        test.queue.write(DATA + 8, sectors);
        test.queue.write(DATA + 12, flags);
    };
    let data = [Buffer::readable(DATA, 16)];
    range(&test, 3, 2, 1);
    assert_eq!(test.request(13, 0, &data), (OK, 1));
    assert_eq!(test.request(0, 3, &[Buffer::writable(DATA, 1536)]), (OK, 1537));
    assert_eq!(test.queue.bytes(DATA, 1024), [0; 1024]);
    assert_eq!(test.queue.bytes(DATA + 1024, 512), [5; 512]);
    range(&test, 3, 2, 0);
    assert_eq!(test.request(11, 0, &data), (OK, 1));
    for (sector, sectors, flags, status) in
        [(63, 2, 0, ERROR), (u64::MAX, 1, 0, ERROR), (0, 0, 0, ERROR), (0, u32::MAX, 0, ERROR), (0, 1, 2, UNSUPPORTED)]
    {
        range(&test, sector, sectors, flags);
        assert_eq!(test.request(13, 0, &data), (status, 1));
    }
    assert_eq!(test.request(13, 0, &[Buffer::readable(DATA, 15)]), (ERROR, 1));
    assert_eq!(test.request(13, 0, &[Buffer::readable(DATA, 32)]), (ERROR, 1));
    assert_eq!(test.request(13, 0, &[]), (ERROR, 1));
}

/// Attack F2 5: sectors past the end, and sums that overflow.
#[test]
fn test_attack_5_sectors_out_of_range() {
    let mut test = Test::new(false);
    for sector in [64, 63, u64::MAX, u64::MAX / 512, u64::MAX / 512 + 1, 1 << 63] {
        assert_eq!(test.request(0, sector, &[Buffer::writable(DATA, 1024)]), (ERROR, 1), "{sector:#x}");
        assert_eq!(test.request(1, sector, &[Buffer::readable(DATA, 1024)]), (ERROR, 1), "{sector:#x}");
    }
}

/// Attack F2 5: data that is no whole sectors, nothing, more than the disk, or goes the wrong way.
#[test]
fn test_attack_5_bad_data_lengths() {
    let mut test = Test::new(false);
    for length in [1, 511, 513, 0x20_0000 - 0x1_0000] {
        assert_eq!(test.request(0, 0, &[Buffer::writable(DATA, length)]), (ERROR, 1));
        assert_eq!(test.request(1, 0, &[Buffer::readable(DATA, length)]), (ERROR, 1));
    }
    for kind in [0, 1] {
        assert_eq!(test.request(kind, 0, &[]), (ERROR, 1));
    }
    assert_eq!(test.request(0, 0, &[Buffer::readable(DATA, 512)]), (ERROR, 1));
    assert_eq!(test.request(1, 0, &[Buffer::writable(DATA, 512)]), (ERROR, 1));
    let both = [Buffer::readable(DATA, 512), Buffer::writable(DATA, 512)];
    assert_eq!(test.request(1, 0, &both), (ERROR, 1));
    // Many times the largest buffer.
    let many = [Buffer::writable(DATA, 0x10_0000); 250];
    assert_eq!(test.request(0, 0, &many), (ERROR, 1));
    assert_eq!(test.handler.backend.sectors(), SECTORS);
}

/// Attack F2 5: writes to a read-only disk, by every request that writes.
#[test]
fn test_attack_5_write_to_read_only() {
    let mut test = Test::new(true);
    test.queue.write(DATA, 0_u64);
    test.queue.write(DATA + 8, 1_u64);
    assert_eq!(test.request(1, 0, &[Buffer::readable(DATA, 512)]), (ERROR, 1));
    assert_eq!(test.request(11, 0, &[Buffer::readable(DATA, 16)]), (ERROR, 1));
    assert_eq!(test.request(13, 0, &[Buffer::readable(DATA, 16)]), (ERROR, 1));
    assert_eq!(test.request(0, 1, &[Buffer::writable(DATA, 512)]), (OK, 513));
}

/// Attack F2 5: no status byte that could be written, no whole header, a buffer too short for the id.
#[test]
fn test_attack_5_cut_off_requests() {
    let mut test = Test::new(false);
    test.header(0, 0);
    for buffers in [
        vec![Buffer::readable(HEADER, 16)],
        vec![Buffer::readable(HEADER, 16), Buffer::readable(STATUS, 1)],
        vec![Buffer::readable(HEADER, 16), Buffer::writable(STATUS, 0)],
    ] {
        assert!(matches!(test.raw(&buffers), Err(QueueError::NoStatus { head: 0, .. })));
    }
    assert_eq!(test.raw(&[Buffer::readable(HEADER, 15), Buffer::writable(STATUS, 1)]).unwrap(), (ERROR, 1));
    assert_eq!(test.raw(&[Buffer::writable(STATUS, 1)]).unwrap(), (ERROR, 1));
    for length in [0, 19] {
        assert_eq!(test.request(8, 0, &[Buffer::writable(DATA, length)]), (ERROR, 1));
    }
}

/// Attack F2 6: the header changes after it was read, by the data that the request itself reads onto it.
#[test]
fn test_attack_6_request_overwrites_its_own_header() {
    let mut test = Test::new(false);
    assert_eq!(test.request(0, 7, &[Buffer::writable(HEADER & !0x1ff, 512)]), (OK, 513));
    assert_eq!(test.queue.bytes(HEADER & !0x1ff, 512 - 256)[..256], [7; 256]);
}

/// Attack F2 6: another CPU changes the header all the time. What was checked is what is done: the disk is never asked for
/// what it does not have.
#[test]
fn test_attack_6_header_changed_by_another_cpu() {
    let mut test = Test::new(true);
    test.handler = BlockHandler::new("disk", "", Box::new(Strict(MemoryBackend::new(disk(), true))));
    let memory = Arc::clone(&test.queue.memory);
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let other = std::thread::spawn(move || {
        use vm_memory::Bytes;
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            for (kind, sector) in [(0_u32, 3_u64), (1, 3), (0, u64::MAX), (13, 1 << 60)] {
                memory.write_obj(kind, vm_memory::GuestAddress(HEADER)).unwrap();
                memory.write_obj(sector, vm_memory::GuestAddress(HEADER + 8)).unwrap();
            }
        }
    });
    let buffers = [Buffer::readable(HEADER, 16), Buffer::writable(DATA, 512), Buffer::writable(STATUS, 1)];
    for _ in 0..2000 {
        let (status, written) = test.raw(&buffers).unwrap();
        assert!(matches!((status, written), (OK, 513) | (ERROR, 1)));
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    other.join().unwrap();
}

#[test]
fn test_the_guest_learns_the_disks_shape() {
    let device = device("disk", "x", Box::new(MemoryBackend::new(disk(), true))).unwrap();
    let mut bytes = [0xff; 64];
    device.config.read(0, &mut bytes);
    assert_eq!(bytes[..8], SECTORS.to_le_bytes());
    assert_eq!(bytes[12..16], 254_u32.to_le_bytes());
    assert_eq!(bytes[60..], [0; 4]);
    assert_eq!(device.features & (bit::READ_ONLY | bit::DISCARD), bit::READ_ONLY);
}

/// A disk that refuses ranges outside itself; none may be asked for.
#[derive(Debug)]
struct Strict(MemoryBackend);

impl BlockBackend for Strict {
    fn sectors(&self) -> u64 {
        self.0.sectors()
    }
    fn is_read_only(&self) -> bool {
        self.0.is_read_only()
    }
    fn read_at(&mut self, offset: u64, buffers: &[vm_memory::VolatileSlice<'_>]) -> io::Result<()> {
        self.0.read_at(offset, buffers).unwrap();
        Ok(())
    }
    fn write_at(&mut self, offset: u64, buffers: &[vm_memory::VolatileSlice<'_>]) -> io::Result<()> {
        assert!(!self.0.is_read_only());
        self.0.write_at(offset, buffers).unwrap();
        Ok(())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        assert!(!self.0.is_read_only());
        self.0.discard(offset, length).unwrap();
        Ok(())
    }
    fn write_zeroes(&mut self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        assert!(!self.0.is_read_only());
        self.0.write_zeroes(offset, length, unmap).unwrap();
        Ok(())
    }
}

proptest! {
    /// Whatever a request holds, it is answered or breaks the queue, and the disk is asked only for what it has.
    #[test]
    fn test_any_request_is_answered_or_refused(
        kind in prop_oneof![0u32..15, any::<u32>()],
        sector in prop_oneof![0u64..80, any::<u64>()],
        sectors in prop_oneof![0u32..80, any::<u32>()],
        flags in 0u32..3,
        buffers in prop::collection::vec((any::<bool>(), 0u64..0x3000, 0u32..0x1800), 0..8),
        read_only in any::<bool>(),
    ) {
        let mut test = Test::new(read_only);
        test.handler = BlockHandler::new("disk", "", Box::new(Strict(MemoryBackend::new(disk(), read_only))));
        test.header(kind, sector);
        test.queue.write(DATA, sector);
        test.queue.write(DATA + 8, sectors);
        test.queue.write(DATA + 12, flags);
        let mut chain = vec![Buffer::readable(HEADER, 16)];
        for (writable, offset, length) in buffers {
            let at = DATA + offset;
            chain.push(if writable { Buffer::writable(at, length) } else { Buffer::readable(at, length) });
        }
        chain.sort_by_key(|buffer| buffer.flags);
        chain.push(Buffer::writable(STATUS, 1));
        let (status, written) = test.raw(&chain).unwrap();
        prop_assert!(status <= UNSUPPORTED);
        prop_assert!(written >= 1);
    }
}
