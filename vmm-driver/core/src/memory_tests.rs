use super::*;
use crate::test_support::MockHost;

/// Calls `use_memory` on a map, and frees it.
fn with_memory(use_memory: impl FnOnce(&Memory)) {
    let before = MockHost::blocks();
    let mut memory = Memory::default();
    use_memory(&memory);
    memory.free::<MockHost>();
    assert_eq!(MockHost::blocks(), before, "all is given back");
}

fn blocks(memory: &Memory, gpa: u64, size: u64) -> Vec<(u64, u32)> {
    let mut found = Vec::new();
    memory
        .for_blocks(gpa, size, |gpa, block| {
            found.push((gpa, block.order));
            Ok(())
        })
        .expect("nothing fails");
    found
}

#[test]
fn test_what_is_absent_reads_as_zeros_and_is_not_written() {
    with_memory(|memory| {
        memory.add::<MockHost>(0, 2 * CHUNK, false).unwrap();
        let mut bytes = [1; 16];
        assert!(memory.read(CHUNK - 8, &mut bytes) && bytes == [0; 16]);
        assert_eq!((memory.read_u64(0x1000), memory.read_u64(2 * CHUNK)), (Some(0), None));
        assert!(memory.is_ram(0x1000) && memory.page(0x1000).is_none());
        assert!(!memory.write(0x1000, &[1]) && !memory.exchange_u64(0x1000, 0, 1));
        memory.populate::<MockHost>(0x1234).unwrap();
        assert!(memory.write(0x1000, &[1]) && memory.exchange_u64(0x2000, 0, 1));
        assert!(!memory.write(CHUNK, &[1]), "the next one is absent still");
        assert_eq!(memory.allocated(), CHUNK);
    });
}

#[test]
fn test_chunks_are_aligned_and_less_at_the_ends() {
    with_memory(|memory| {
        let (gpa, size) = (CHUNK - 0x2000, CHUNK + 0x3000);
        memory.add::<MockHost>(gpa, size, true).unwrap();
        let wanted = [(gpa, 0), (gpa + 0x1000, 0), (CHUNK, ORDER_2M), (2 * CHUNK, 0)];
        assert_eq!(blocks(memory, gpa, size), wanted);
        assert_eq!(memory.allocated(), size);
        assert_eq!(blocks(memory, CHUNK + 5, 1), [(CHUNK, ORDER_2M)]);
        for at in [gpa, gpa + 0x1fff, CHUNK, CHUNK + 0x1_2345, 2 * CHUNK + 0xfff] {
            // The mock host's addresses are the program's.
            assert_eq!(memory.phys(at), memory.page(at).map(|page| page.addr().get() as u64), "{at:#x}");
        }
        assert_eq!((memory.phys(gpa - 1), memory.phys(gpa + size)), (None, None));
    });
}

#[test]
fn test_only_whole_chunks_of_a_range_are_discarded() {
    with_memory(|memory| {
        memory.add::<MockHost>(0, 4 * CHUNK, true).unwrap();
        assert!(memory.write(CHUNK, &[7]));
        let mut unmapped = Vec::new();
        let mut discard = |gpa, size| memory.discard::<MockHost>(gpa, size, |gpa| unmapped.push(gpa));
        assert_eq!(discard(0x1000, CHUNK), 0);
        assert_eq!(discard(0x1000, 3 * CHUNK), 2 * CHUNK);
        assert_eq!(discard(0, 3 * CHUNK), CHUNK, "what is absent goes once");
        assert_eq!(discard(4 * CHUNK, CHUNK), 0, "no RAM");
        assert_eq!(discard(3 * CHUNK, u64::MAX), CHUNK, "no more than the region");
        assert_eq!(unmapped, [CHUNK, 2 * CHUNK, 0, 3 * CHUNK]);
        assert_eq!(memory.allocated(), 0);
        memory.populate::<MockHost>(CHUNK).unwrap();
        assert_eq!(memory.read_u64(CHUNK), Some(0), "what comes again is zeros");
    });
}

#[test]
fn test_a_range_is_discarded_in_all_regions_that_it_reaches() {
    with_memory(|memory| {
        // One that ends within a chunk, one that begins there, and one behind a gap.
        for (gpa, size) in [(0, CHUNK + 0x1000), (CHUNK + 0x1000, CHUNK), (4 * CHUNK, CHUNK)] {
            memory.add::<MockHost>(gpa, size, true).unwrap();
        }
        let mut unmapped = Vec::new();
        let freed = memory.discard::<MockHost>(0x1000, 6 * CHUNK, |gpa| unmapped.push(gpa));
        assert_eq!(unmapped, [CHUNK, CHUNK + 0x1000, 2 * CHUNK, 4 * CHUNK]);
        assert_eq!((freed, memory.allocated()), (2 * CHUNK + 0x1000, CHUNK));
        assert_eq!(memory.discard::<MockHost>(2 * CHUNK + 0x1000, 2 * CHUNK, |_| panic!("there is no RAM")), 0);
    });
}

#[test]
fn test_populating_again_or_beside_ram_changes_nothing() {
    with_memory(|memory| {
        memory.add::<MockHost>(0x10_0000, 0x1000, false).unwrap();
        for gpa in [0, 0xf_ffff, 0x10_1000, u64::MAX] {
            memory.populate::<MockHost>(gpa).unwrap();
        }
        assert_eq!(memory.allocated(), 0);
        memory.populate::<MockHost>(0x10_0fff).unwrap();
        let page = memory.page(0x10_0000);
        memory.populate::<MockHost>(0x10_0000).unwrap();
        assert_eq!((memory.page(0x10_0000), memory.allocated()), (page, 0x1000));
    });
}
