//! Images in memory: what is written is there, also after a crash, and what is damaged is refused.

use proptest::prelude::*;

use super::*;
use crate::disk::medium::Faulty;
use crate::disk::medium::MemoryMedium;

const SIZE: u64 = 1 << 20;
const SMALL: u64 = 4096;
const LIMIT: usize = 16 << 20;

fn memory(bytes: Vec<u8>) -> Arc<MemoryMedium> {
    Arc::new(MemoryMedium::new(bytes, LIMIT))
}

fn fresh(cluster: u64) -> Arc<MemoryMedium> {
    let medium = memory(Vec::new());
    Qcow2::create(Arc::clone(&medium) as Arc<dyn Medium>, SIZE, cluster, None).unwrap();
    medium
}

fn open(medium: &Arc<MemoryMedium>, read_only: bool) -> Result<Qcow2, Qcow2Error> {
    let medium: Arc<dyn Medium> = Arc::clone(medium) as Arc<dyn Medium>;
    let header = Header::read(medium.as_ref())?;
    Qcow2::new(medium, &header, None, read_only)
}

fn findings(medium: &Arc<MemoryMedium>) -> Findings {
    let medium: &dyn Medium = medium.as_ref();
    check(medium, &Header::read(medium).unwrap()).unwrap()
}

fn write(image: &mut Qcow2, offset: u64, bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    image.write_at(offset, &[VolatileSlice::from(bytes.as_mut_slice())]).unwrap();
}

fn read(image: &mut Qcow2, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; length];
    image.read_at(offset, &[VolatileSlice::from(bytes.as_mut_slice())]).unwrap();
    bytes
}

/// The features that the header has, without which it cannot be used.
fn features(medium: &Arc<MemoryMedium>) -> Incompatible {
    Header::read(medium.as_ref() as &dyn Medium).unwrap().incompatible
}

#[test]
fn test_a_new_image_is_whole_and_reads_zero() {
    for cluster in [512, SMALL, CLUSTER] {
        let medium = fresh(cluster);
        let found = findings(&medium);
        assert_eq!((found.errors, found.leaks, found.data), (0, 0, 0), "{:?}", found.told);
        let mut image = open(&medium, true).unwrap();
        assert_eq!((image.sectors(), image.is_read_only()), (SIZE / SECTOR, true));
        assert_eq!(read(&mut image, SIZE - 512, 512), [0; 512]);
        assert!(image.run(0, SIZE).unwrap().zeroes);
    }
}

#[test]
fn test_what_is_open_is_marked_as_dirty_and_what_is_closed_is_not() {
    let medium = fresh(SMALL);
    let mut image = open(&medium, false).unwrap();
    assert_eq!(features(&medium), Incompatible::DIRTY);
    write(&mut image, 5000, b"data");
    drop(image);
    assert_eq!(features(&medium), Incompatible::empty());
    let found = findings(&medium);
    assert_eq!((found.errors, found.leaks, found.data), (0, 0, 1), "{:?}", found.told);
    assert_eq!(read(&mut open(&medium, true).unwrap(), 4998, 8), b"\0\0data\0\0");
}

#[test]
fn test_what_was_flushed_is_there_after_a_crash() {
    let medium = fresh(SMALL);
    let mut image = open(&medium, false).unwrap();
    write(&mut image, 0, &[1; 100_000]);
    image.flush().unwrap();
    write(&mut image, 200_000, &[2; 100_000]);
    // The process ends here: nothing that is in its memory comes to the file.
    let crashed = memory(medium.bytes());
    drop(image);
    assert_eq!(features(&crashed), Incompatible::DIRTY);
    // To look at, it need not be repaired.
    assert_eq!(read(&mut open(&crashed, true).unwrap(), 0, 100_000), [1; 100_000]);
    let mut image = open(&crashed, false).unwrap();
    assert_eq!(read(&mut image, 0, 100_000), [1; 100_000]);
    write(&mut image, 400_000, &[3; 100_000]);
    drop(image);
    let found = findings(&crashed);
    assert_eq!((found.errors, found.leaks), (0, 0), "{:?}", found.told);
    assert_eq!(read(&mut open(&crashed, true).unwrap(), 0, 100_000), [1; 100_000]);
}

#[test]
fn test_refcounts_that_are_lost_are_counted_anew() {
    for (cluster, is_marked) in [(512, true), (SMALL, true), (CLUSTER, true), (512, false), (CLUSTER, false)] {
        let medium = fresh(cluster);
        let mut image = open(&medium, false).unwrap();
        let data: Vec<u8> = (0..=250).cycle().take(300_000).collect();
        write(&mut image, 0, &data);
        drop(image);
        let as_medium: &dyn Medium = medium.as_ref();
        let header = Header::read(as_medium).unwrap();
        let table_bytes = header.refcount_table_clusters * header.cluster();
        as_medium.write_zeroes(header.refcount_table, table_bytes, false).unwrap();
        assert!(findings(&medium).errors > 0);
        if is_marked {
            as_medium.write(INCOMPATIBLE_AT, &Incompatible::DIRTY.bits().to_be_bytes()).unwrap();
        }
        drop(open(&medium, false).unwrap());
        let found = findings(&medium);
        assert_eq!((found.errors, found.leaks), (0, 0), "{cluster}: {:?}", found.told);
        assert_eq!(read(&mut open(&medium, true).unwrap(), 0, 300_000), data);
    }
}

#[test]
fn test_an_image_that_is_damaged_beyond_its_refcounts_is_not_written() {
    let medium = fresh(SMALL);
    let mut image = open(&medium, false).unwrap();
    write(&mut image, 0, &[1; 8192]);
    drop(image);
    let as_medium: &dyn Medium = medium.as_ref();
    let header = Header::read(as_medium).unwrap();
    let mut table = [0; 8];
    as_medium.read(header.l1_offset, &mut table).unwrap();
    let table = u64::from_be_bytes(table) & 0x00ff_ffff_ffff_fe00;
    // Two clusters of the disk lie at the same place.
    let mut entry = [0; 8];
    as_medium.read(table, &mut entry).unwrap();
    as_medium.write(table + 8, &entry).unwrap();
    let found = findings(&medium);
    assert!(found.errors > 0 && found.leaks == 1, "{found:?}");
    as_medium.write(INCOMPATIBLE_AT, &Incompatible::DIRTY.bits().to_be_bytes()).unwrap();
    let refusal = open(&medium, false).unwrap_err().to_string();
    assert!(refusal.contains("marked as used once") && refusal.contains("image check"), "{refusal}");
    assert_eq!(read(&mut open(&medium, true).unwrap(), 4096, 4096), [1; 4096]);
}

/// A header changed at one place, and what is said of it.
#[test]
fn test_headers_that_cannot_be_are_refused_in_words() {
    let whole = fresh(SMALL).bytes();
    let refusal = |at: usize, value: &[u8]| {
        let mut bytes = whole.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        open(&memory(bytes), false).unwrap_err().to_string()
    };
    let (word, double) = (u32::to_be_bytes, u64::to_be_bytes);
    let cases: [(usize, Vec<u8>, &str); 21] = [
        (0, b"QFJ".to_vec(), "no qcow2 image"),
        (4, word(1).into(), "version 1"),
        (4, word(4).into(), "version 4"),
        (8, double(u64::MAX).into(), "backing file"),
        (20, word(8).into(), "2^8"),
        (20, word(63).into(), "2^63"),
        (24, double(0).into(), "empty"),
        (24, double(513).into(), "multiple of 512"),
        (24, double(1 << 62).into(), "too small for"),
        (24, double(u64::MAX - 511).into(), "too small for"),
        (32, word(1).into(), "encrypted"),
        (36, word(u32::MAX).into(), "L1 table"),
        (36, word(0).into(), "L1 table"),
        (40, double(1).into(), "L1 table"),
        (40, double(1 << 50).into(), "L1 table"),
        (48, double(!0xfff).into(), "table of refcounts"),
        (56, word(u32::MAX).into(), "table of refcounts"),
        (60, word(u32::MAX).into(), "snapshots"),
        (72, double(1 << 2).into(), "another file"),
        (72, double(1 << 40).into(), "feature 40"),
        (96, word(7).into(), "64 bits"),
    ];
    for (at, value, words) in cases {
        let text = refusal(at, &value);
        assert!(text.contains(words) && !text.contains('\n'), "{at}: {text}");
    }
    assert!(refusal(72, &double(1 << 1)).contains("marked as damaged"));
    assert!(refusal(72, &double(1 << 3)).contains("compressed"));
    assert!(refusal(72, &double(1 << 4)).contains("extended_l2"));
    assert!(refusal(100, &word(90)).contains("length"));
    for length in [0, 3, 71, 72, 103, 104, 512] {
        assert!(open(&memory(whole[..length].to_vec()), false).is_err(), "{length}");
    }
}

#[test]
fn test_a_damaged_table_is_an_error_when_it_is_used() {
    let medium = fresh(SMALL);
    let mut image = open(&medium, false).unwrap();
    write(&mut image, 0, &[1; 4096]);
    drop(image);
    let as_medium: &dyn Medium = medium.as_ref();
    let header = Header::read(as_medium).unwrap();
    let whole = medium.bytes();
    // One that does not begin with a cluster is found at once, one behind the file's end when it is used.
    as_medium.write(header.l1_offset, &(1_u64 << 63 | 0x200).to_be_bytes()).unwrap();
    assert!(open(&medium, true).is_err());
    as_medium.write(header.l1_offset, &(1_u64 << 63 | 1 << 40).to_be_bytes()).unwrap();
    let mut bytes = [0; 512];
    let mut error =
        |image: &mut Qcow2| image.read_at(0, &[VolatileSlice::from(&mut bytes[..])]).unwrap_err().to_string();
    assert!(error(&mut open(&medium, true).unwrap()).contains("cut off"));
    assert!(findings(&medium).errors > 0);
    // So is data.
    let cut = memory(whole[..whole.len() - 4096].to_vec());
    assert!(error(&mut open(&cut, true).unwrap()).contains("cut off"));
    assert!(findings(&cut).errors > 0);
    // Where the host went down before it had stored what was not flushed, it is no error.
    (cut.as_ref() as &dyn Medium).write(INCOMPATIBLE_AT, &Incompatible::DIRTY.bits().to_be_bytes()).unwrap();
    assert_eq!(read(&mut open(&cut, false).unwrap(), 0, 4096), [0; 4096]);
    assert_eq!(findings(&cut).errors, 0);
}

#[test]
fn test_an_image_shows_what_it_is_based_on() {
    let base = fresh(SMALL);
    let mut image = open(&base, false).unwrap();
    write(&mut image, 0, &[1; 16384]);
    drop(image);
    let medium = memory(Vec::new());
    let names = Some(("base.qcow2".to_owned(), "qcow2".to_owned()));
    Qcow2::create(Arc::clone(&medium) as Arc<dyn Medium>, 2 * SIZE, CLUSTER, names).unwrap();
    let header = Header::read(medium.as_ref() as &dyn Medium).unwrap();
    let backing = Backing { name: "base.qcow2".to_owned(), format: Some("qcow2".to_owned()) };
    assert_eq!(header.backing, Some(backing));
    let with_base = || {
        let base: Arc<dyn Medium> = Arc::clone(&base) as Arc<dyn Medium>;
        let header = Header::read(base.as_ref()).unwrap();
        Some(Base::qcow2(base, &header, None).unwrap())
    };
    let before = base.bytes();
    let open = || Qcow2::new(Arc::clone(&medium) as Arc<dyn Medium>, &header, with_base(), false).unwrap();
    let mut image = open();
    assert_eq!(read(&mut image, 8192, 512), [1; 512]);
    assert_eq!(read(&mut image, SIZE - 256, 512), [0; 512]);
    write(&mut image, 4096, &[2; 512]);
    image.write_zeroes(8192, 4096, false).unwrap();
    image.discard(0, 512).unwrap();
    drop(image);
    let mut image = open();
    assert_eq!(read(&mut image, 4096 - 256, 256 + 512 + 256), [vec![1; 256], vec![2; 512], vec![1; 256]].concat());
    assert_eq!(read(&mut image, 8192, 4097), [vec![0; 4096], vec![1]].concat());
    drop(image);
    assert_eq!(base.bytes(), before);
    let found = findings(&medium);
    assert_eq!((found.errors, found.leaks), (0, 0), "{:?}", found.told);
}

#[test]
fn test_a_free_cluster_is_not_taken_before_the_tables_that_had_it_are_stored() {
    // Clusters of 512 bytes have tables of 32 KiB each: the second is made when the first has freed clusters already.
    for (written, discarded) in [((967_680, 9_216), (934_400, 49_152)), ((390_144, 28_160), (399_872, 26_624))] {
        let medium = fresh(512);
        let mut image = open(&medium, false).unwrap();
        write(&mut image, written.0, &vec![1; written.1]);
        image.flush().unwrap();
        image.discard(discarded.0, discarded.1).unwrap();
        write(&mut image, 0, &[2; 40_000]);
        let crashed = memory(medium.bytes());
        std::mem::forget(image);
        let image = open(&crashed, false).unwrap();
        drop(image);
        let found = findings(&crashed);
        assert_eq!((found.errors, found.leaks), (0, 0), "{:?}", found.told);
    }
}

#[test]
fn test_clusters_that_read_zero_and_kept_their_places_are_not_given_to_two() {
    let medium = fresh(512);
    let mut image = open(&medium, false).unwrap();
    // Behind one another on the disk, and not in the file.
    write(&mut image, 512, &[1; 512]);
    write(&mut image, 0, &[1; 512]);
    image.write_zeroes(0, 1024, false).unwrap();
    image.flush().unwrap();
    write(&mut image, 0, &[2; 1024]);
    // This takes a cluster for a table, and none for data.
    image.write_zeroes(32_768, 1024, true).unwrap();
    let crashed = memory(medium.bytes());
    std::mem::forget(image);
    drop(open(&crashed, false).unwrap());
    let found = findings(&crashed);
    assert_eq!((found.errors, found.leaks), (0, 0), "{:?}", found.told);
}

#[test]
fn test_a_table_that_could_not_be_written_is_written_by_the_next_flush() {
    for failing in 0..60 {
        let medium = fresh(SMALL);
        let header = Header::read(medium.as_ref() as &dyn Medium).unwrap();
        let fails = (0..=failing).map(|operation| operation == failing).collect();
        let faulty: Arc<dyn Medium> = Arc::new(Faulty::new(Arc::clone(&medium), fails));
        let Ok(mut image) = Qcow2::new(faulty, &header, None, false) else { continue };
        let mut write = |at| image.write_at(at, &[VolatileSlice::from(&mut [1; 512][..])]);
        let _ = write(0);
        let (first, second) = (write(0), write(8192));
        let flushed = image.flush().is_ok() || image.flush().is_ok();
        let crashed = memory(medium.bytes());
        std::mem::forget(image);
        assert!(flushed, "{failing}");
        let mut image = open(&crashed, false).unwrap();
        for (result, at) in [(first, 0), (second, 8192)] {
            assert!(result.is_err() || read(&mut image, at, 512) == [1; 512], "{failing}, {at}");
        }
    }
}

#[test]
fn test_the_host_gets_the_storage_of_what_is_discarded() {
    let medium = fresh(SMALL);
    let mut image = open(&medium, false).unwrap();
    write(&mut image, 0, &[0xab; 64 * 1024]);
    let stored = |medium: &MemoryMedium| medium.bytes().iter().filter(|byte| **byte == 0xab).count();
    let before = stored(&medium);
    image.discard(2048, 16 * 1024).unwrap();
    // Whole clusters only.
    assert_eq!(before - stored(&medium), 12 * 1024);
    image.write_zeroes(32 * 1024, 8192, true).unwrap();
    assert_eq!(before - stored(&medium), 20 * 1024);
    assert_eq!(read(&mut image, 0, 2048), [0xab; 2048]);
    assert_eq!(read(&mut image, 20 * 1024, 4096), [0xab; 4096]);
}

/// What a disk's thread does, on a stack of that size.
fn work_on_a_stack_of(bytes: usize) {
    let work = || {
        // A chain of images, the last of which is written.
        let mut base = None;
        for _ in 0..31 {
            let medium = memory(Vec::new());
            let names = base.as_ref().map(|_| ("base".to_owned(), "qcow2".to_owned()));
            Qcow2::create(Arc::clone(&medium) as Arc<dyn Medium>, SIZE, SMALL, names).unwrap();
            let medium: Arc<dyn Medium> = medium;
            let header = Header::read(medium.as_ref()).unwrap();
            base = Some(Base::qcow2(medium, &header, base).unwrap());
        }
        let medium = memory(Vec::new());
        let names = Some(("base".to_owned(), "qcow2".to_owned()));
        Qcow2::create(Arc::clone(&medium) as Arc<dyn Medium>, SIZE, SMALL, names).unwrap();
        let header = Header::read(medium.as_ref() as &dyn Medium).unwrap();
        let mut image = Qcow2::new(medium as Arc<dyn Medium>, &header, base, false).unwrap();
        assert_eq!(read(&mut image, 0, 100_000), [0; 100_000]);
        write(&mut image, 1000, &[1; 100_000]);
        image.write_zeroes(5000, 50_000, true).unwrap();
        image.write_zeroes(100_000, 50_000, false).unwrap();
        image.discard(0, 20_000).unwrap();
        image.flush().unwrap();
        write(&mut image, 0, &[1; 100_000]);
    };
    std::thread::Builder::new().stack_size(bytes).spawn(work).unwrap().join().unwrap();
}

#[test]
fn test_half_of_a_disks_stack_is_enough() {
    work_on_a_stack_of(crate::devices::virtio::WORKER_STACK / 2);
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, usize, u8),
    Zero(u64, u64, bool),
    Discard(u64, u64),
    Flush,
    Reopen,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let range = (0..SIZE / SECTOR, 1..100_u64).prop_map(|(sector, count)| {
        let count = count.min(SIZE / SECTOR - sector);
        (sector * SECTOR, count * SECTOR)
    });
    prop_oneof![
        5 => (range.clone(), 1..=255_u8).prop_map(|((at, length), byte)| {
            Step::Write(at, usize::try_from(length).unwrap(), byte)
        }),
        2 => (range.clone(), any::<bool>()).prop_map(|((at, length), unmap)| Step::Zero(at, length, unmap)),
        1 => range.prop_map(|(at, length)| Step::Discard(at, length)),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
        1 => Just(Step::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is done, the image holds what a plain disk would, and its tables are whole. What a crash may take, or a discard,
    /// is not looked at.
    #[test]
    fn test_an_image_is_like_a_plain_disk(
        cluster in prop_oneof![Just(512_u64), Just(SMALL), Just(CLUSTER)],
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let mut medium = fresh(cluster);
        let mut image = open(&medium, false).unwrap();
        let mut model: Vec<Option<u8>> = vec![Some(0); usize::try_from(SIZE).unwrap()];
        // What is sure to be there after a crash: nothing that was touched since the last flush.
        let mut flushed = model.clone();
        for step in steps {
            match step {
                Step::Write(at, length, byte) => {
                    write(&mut image, at, &vec![byte; length]);
                    let range = usize::try_from(at).unwrap()..usize::try_from(at).unwrap() + length;
                    model[range.clone()].fill(Some(byte));
                    flushed[range].fill(None);
                }
                Step::Zero(at, length, unmap) => {
                    image.write_zeroes(at, length, unmap).unwrap();
                    let range = usize::try_from(at).unwrap()..usize::try_from(at + length).unwrap();
                    model[range.clone()].fill(Some(0));
                    flushed[range].fill(None);
                }
                Step::Discard(at, length) => {
                    image.discard(at, length).unwrap();
                    let range = usize::try_from(at).unwrap()..usize::try_from(at + length).unwrap();
                    model[range.clone()].fill(None);
                    flushed[range].fill(None);
                }
                Step::Flush => {
                    image.flush().unwrap();
                    flushed.clone_from(&model);
                }
                Step::Reopen => {
                    drop(image);
                    flushed.clone_from(&model);
                    prop_assert_eq!(features(&medium), Incompatible::empty());
                    image = open(&medium, false).unwrap();
                }
                Step::Crash => {
                    let crashed = memory(medium.bytes());
                    drop(image);
                    medium = crashed;
                    image = open(&medium, false).unwrap();
                    model.clone_from(&flushed);
                }
            }
        }
        let content = read(&mut image, 0, model.len());
        for (at, (is, should)) in content.iter().zip(&model).enumerate() {
            prop_assert!(should.is_none_or(|should| should == *is), "byte {}: {} and not {:?}", at, is, should);
        }
        drop(image);
        let found = findings(&medium);
        prop_assert_eq!((found.errors, found.leaks), (0, 0), "{:?}", found.told);
    }

    /// The host fails now and then: what was flushed without an error before is there, and what was written since may be or not.
    #[test]
    fn test_errors_of_the_host_lose_nothing_that_was_flushed(
        cluster in prop_oneof![Just(512_u64), Just(SMALL), Just(CLUSTER)],
        steps in prop::collection::vec(step(), 1..40),
        fails in prop::collection::vec(prop::bool::weighted(0.05), 0..400),
    ) {
        let medium = fresh(cluster);
        let header = Header::read(medium.as_ref() as &dyn Medium).unwrap();
        let faulty: Arc<dyn Medium> = Arc::new(Faulty::new(Arc::clone(&medium), fails));
        let Ok(mut image) = Qcow2::new(faulty, &header, None, false) else { return Ok(()) };
        let mut model: Vec<Option<u8>> = vec![Some(0); usize::try_from(SIZE).unwrap()];
        let mut flushed = model.clone();
        for step in steps {
            let (at, length, value) = match step {
                Step::Write(at, length, byte) => (at, length, Some(byte)),
                Step::Zero(at, length, _) => (at, usize::try_from(length).unwrap(), Some(0)),
                Step::Discard(at, length) => (at, usize::try_from(length).unwrap(), None),
                Step::Flush | Step::Reopen | Step::Crash => {
                    if image.flush().is_ok() {
                        flushed.clone_from(&model);
                    }
                    continue;
                }
            };
            let result = match step {
                Step::Write(at, length, byte) => {
                    let mut bytes = vec![byte; length];
                    image.write_at(at, &[VolatileSlice::from(bytes.as_mut_slice())])
                }
                Step::Zero(at, length, unmap) => image.write_zeroes(at, length, unmap),
                _ => image.discard(at, length as u64),
            };
            let range = usize::try_from(at).unwrap()..usize::try_from(at).unwrap() + length;
            model[range.clone()].fill(value.filter(|_| result.is_ok()));
            flushed[range].fill(None);
            // What is seen now is what was written, unless it cannot be read.
            let mut bytes = vec![0; length];
            if image.read_at(at, &[VolatileSlice::from(bytes.as_mut_slice())]).is_ok() && result.is_ok() {
                prop_assert!(value.is_none_or(|value| bytes.iter().all(|byte| *byte == value)), "at {}", at);
            }
        }
        // The process ends here.
        let crashed = memory(medium.bytes());
        drop(image);
        let mut image = open(&crashed, false).unwrap();
        let content = read(&mut image, 0, flushed.len());
        for (at, (is, should)) in content.iter().zip(&flushed).enumerate() {
            prop_assert!(should.is_none_or(|should| should == *is), "byte {}: {} and not {:?}", at, is, should);
        }
        drop(image);
        let found = findings(&crashed);
        prop_assert_eq!((found.errors, found.leaks), (0, 0), "{:?}", found.told);
    }

    /// Bytes of the tables changed at random: an error or data, and no panic.
    #[test]
    fn test_damage_is_an_error_or_not_seen(changes in prop::collection::vec((0..40_000_usize, any::<u8>()), 1..20)) {
        let medium = fresh(SMALL);
        let mut image = open(&medium, false).unwrap();
        write(&mut image, 0, &[1; 20_000]);
        drop(image);
        let mut bytes = medium.bytes();
        for (at, value) in changes {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        let medium = memory(bytes);
        let Ok(header) = Header::read(medium.as_ref() as &dyn Medium) else { return Ok(()) };
        let _ = check(medium.as_ref(), &header);
        let _ = repair(medium.as_ref(), &header);
        let Ok(mut image) = open(&medium, false) else { return Ok(()) };
        let mut bytes = vec![0; 65536];
        let _ = image.read_at(0, &[VolatileSlice::from(bytes.as_mut_slice())]);
        let _ = image.write_at(4096, &[VolatileSlice::from(bytes.as_mut_slice())]);
        let _ = image.write_zeroes(0, 8192, true);
        let _ = image.flush();
    }
}
