//! Balloon (virtio 1.2, 5.5): what the guest has no use for goes back to the host.
//!
//! Two ways lead there. The guest reports free memory by itself, in large pieces and a moment after it was freed
//! (5.5.6.7). And it puts pages into the balloon, as many as the host wants (5.5.6.1); they go once all of an aligned 2 MiB are in
//! it, for host memory is given back by these. Either way a page is the guest's again as soon as it touches it, so what it takes
//! out needs no answer.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Chain;
use super::DeviceConfig;
use super::DeviceKind;
use super::QueueError;
use super::QueueHandler;
use super::Rings;
use super::VirtQueue;
use super::VirtioDevice;
use super::read_bytes;
use crate::platform::Event;

/// What messages to the user call the device.
pub const NAME: &str = "balloon";

/// Entries of each queue.
const QUEUE_SIZE: u16 = 128;
/// Queues, by number (5.5.2). The standard gives reports number 4. Linux leaves out those of features that were not offered, and
/// has them at 2: so whatever is from there on is for reports.
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const REPORTS: std::ops::Range<usize> = 2..5;

/// Feature bits (5.5.3).
mod bit {
    /// The guest may take pages out when it is short of memory.
    pub(super) const DEFLATE_ON_OOM: u64 = 1 << 2;
    /// The guest reports free memory.
    pub(super) const REPORTING: u64 = 1 << 5;
}

/// Bytes of a page of the balloon, whatever pages the guest has (5.5.6).
const PAGE: u64 = 4096;
/// Bytes of a page's number.
const NUMBER: usize = 4;
/// Host memory goes by these.
const CHUNK: u64 = 2 << 20;
/// Pages of a chunk, in words of bits.
const WORDS: usize = (CHUNK / PAGE / 64) as usize;
/// Most page numbers of a buffer: Linux gives 256. What a longer one has beyond is left in the guest's hands.
const MOST_NUMBERS: usize = 1024;

/// Who takes the memory that the guest has no use for.
pub trait MemorySink: Send {
    /// These bytes of RAM, start and length, hold nothing any more.
    fn give_back(&self, ranges: &[(u64, u64)]);
}

/// What driver and host say to each other in the configuration (5.5.4).
#[derive(Debug, Default)]
struct Shared {
    /// Pages that the host wants in the balloon.
    wanted: AtomicU32,
    /// Pages that are in it, as the guest says.
    actual: AtomicU32,
    changed: AtomicBool,
    generation: AtomicU8,
}

/// The balloon, from the host's side.
#[derive(Clone)]
pub struct Balloon {
    shared: Arc<Shared>,
    event: Arc<Event>,
}

impl Balloon {
    /// Wants so many bytes of the guest's memory in the balloon. Where no driver uses the device, nothing happens.
    pub fn set_wanted(&self, bytes: u64) {
        self.shared.wanted.store(u32::try_from(bytes / PAGE).unwrap_or(u32::MAX), Ordering::SeqCst);
        self.shared.generation.fetch_add(1, Ordering::SeqCst);
        self.shared.changed.store(true, Ordering::SeqCst);
        self.event.signal();
    }

    /// Bytes that are in it, as the guest says.
    #[must_use]
    pub fn actual(&self) -> u64 {
        u64::from(self.shared.actual.load(Ordering::SeqCst)) * PAGE
    }
}

impl fmt::Debug for Balloon {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Balloon").field("shared", &self.shared).finish_non_exhaustive()
    }
}

/// A balloon device, and the host's side of it. What it collects goes to `sink`.
///
/// # Errors
///
/// The system has no event left.
pub fn device(sink: Box<dyn MemorySink>) -> io::Result<(VirtioDevice, Balloon)> {
    let event = Arc::new(Event::new()?);
    let shared = Arc::new(Shared::default());
    let handler = BalloonHandler {
        shared: Arc::clone(&shared),
        sink,
        ballooned: BTreeMap::new(),
        numbers: vec![0; MOST_NUMBERS * NUMBER],
        chain: Chain::default(),
    };
    let device = VirtioDevice {
        kind: DeviceKind::Balloon,
        name: NAME.to_owned(),
        features: bit::DEFLATE_ON_OOM | bit::REPORTING,
        queue_sizes: vec![QUEUE_SIZE; REPORTS.end],
        config: Box::new(Config(Arc::clone(&shared))),
        handler: Box::new(handler),
        event: Arc::clone(&event),
    };
    Ok((device, Balloon { shared, event }))
}

/// `struct virtio_balloon_config`, without what belongs to features that are not offered.
#[derive(Debug)]
struct Config(Arc<Shared>);

impl Config {
    /// Bytes of it, and where the guest writes.
    const SIZE: u8 = 8;
    const ACTUAL: usize = 4;
}

impl DeviceConfig for Config {
    fn size(&self) -> u8 {
        Self::SIZE
    }

    fn read(&self, offset: usize, data: &mut [u8]) {
        let mut bytes = [0; Self::SIZE as usize];
        bytes[..Self::ACTUAL].copy_from_slice(&self.0.wanted.load(Ordering::SeqCst).to_le_bytes());
        bytes[Self::ACTUAL..].copy_from_slice(&self.0.actual.load(Ordering::SeqCst).to_le_bytes());
        read_bytes(&bytes, offset, data);
    }

    fn write(&mut self, offset: usize, data: &[u8]) {
        let mut bytes = self.0.actual.load(Ordering::SeqCst).to_le_bytes();
        for (at, &byte) in (offset..).zip(data) {
            if let Some(place) = at.checked_sub(Self::ACTUAL).and_then(|at| bytes.get_mut(at)) {
                *place = byte;
            }
        }
        self.0.actual.store(u32::from_le_bytes(bytes), Ordering::SeqCst);
    }

    fn generation(&self) -> u8 {
        self.0.generation.load(Ordering::SeqCst)
    }
}

struct BalloonHandler {
    shared: Arc<Shared>,
    sink: Box<dyn MemorySink>,
    /// The pages in the balloon: a bit each, by chunk. There are no more chunks than the guest has RAM.
    ballooned: BTreeMap<u64, [u64; WORDS]>,
    numbers: Vec<u8>,
    chain: Chain,
}

impl BalloonHandler {
    /// Serves a queue; `take` gets each chain, and the memory that goes.
    fn serve(
        &mut self,
        queue: &mut VirtQueue,
        mut take: impl FnMut(&mut Self, &VirtQueue, &mut Vec<(u64, u64)>),
    ) -> Result<(), QueueError> {
        let mut going = Vec::new();
        let mut heads = Vec::new();
        loop {
            queue.disarm()?;
            // A guest that offers chains as fast as they are taken does not keep those from going.
            while heads.len() < usize::from(QUEUE_SIZE) && queue.pop(&mut self.chain)? {
                take(self, queue, &mut going);
                heads.push(self.chain.head);
            }
            // All at once, for each time the guest stands still. It may use its memory again after that.
            if !going.is_empty() {
                self.sink.give_back(&going);
                going.clear();
            }
            for head in heads.drain(..) {
                queue.complete(head, 0)?;
            }
            if !queue.arm()? {
                return Ok(());
            }
        }
    }

    /// What is free are the buffers themselves (5.5.6.7): their whole chunks go.
    fn report(&self, going: &mut Vec<(u64, u64)>) {
        going.extend(self.chain.writable.parts().filter_map(|(start, length)| whole_chunks(start, length)));
    }

    /// Pages go into the balloon, or come out.
    fn change(&mut self, queue: &VirtQueue, into: bool, going: &mut Vec<(u64, u64)>) {
        // The buffers were checked when the chain came.
        let count = self.chain.readable.read(queue.memory(), &mut self.numbers).unwrap_or(0);
        for number in self.numbers[..count].as_chunks::<NUMBER>().0 {
            let address = u64::from(u32::from_le_bytes(*number)) * PAGE;
            if !queue.is_ram(address, PAGE) {
                continue;
            }
            let (chunk, page) = (address / CHUNK * CHUNK, address % CHUNK / PAGE);
            let pages = self.ballooned.entry(chunk).or_default();
            let word = &mut pages[usize::try_from(page / 64).unwrap_or(0)];
            let bit = 1 << (page % 64);
            let is_new = into && *word & bit == 0;
            *word = if into { *word | bit } else { *word & !bit };
            if is_new && pages.iter().all(|word| *word == u64::MAX) {
                going.push((chunk, CHUNK));
            }
            if pages.iter().all(|word| *word == 0) {
                self.ballooned.remove(&chunk);
            }
        }
    }
}

/// The aligned chunks that lie wholly in a range, if there are any.
fn whole_chunks(start: u64, length: u64) -> Option<(u64, u64)> {
    let first = start.checked_next_multiple_of(CHUNK)?;
    let end = start.checked_add(length)? / CHUNK * CHUNK;
    (first < end).then(|| (first, end - first))
}

impl QueueHandler for BalloonHandler {
    fn start(&mut self, _features: u64) {
        // The driver reads it while it starts.
        self.shared.changed.store(false, Ordering::SeqCst);
    }

    fn process(&mut self, rings: &mut Rings) -> Result<Option<Duration>, QueueError> {
        if self.shared.changed.swap(false, Ordering::SeqCst) {
            rings.config_changed();
        }
        for (index, into) in [(INFLATE, true), (DEFLATE, false)] {
            if let Some(queue) = rings.get(index) {
                self.serve(queue, |handler, queue, going| handler.change(queue, into, going))?;
            }
        }
        for index in REPORTS {
            if let Some(queue) = rings.get(index) {
                self.serve(queue, |handler, _, going| handler.report(going))?;
            }
        }
        Ok(None)
    }

    fn reset(&mut self) {
        // The guest begins anew, with all of its memory.
        self.ballooned.clear();
        self.shared.actual.store(0, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::devices::virtio::testing::Buffer;
    use crate::devices::virtio::testing::TestQueue;
    use crate::platform::lock;

    /// Notes what goes.
    #[derive(Default)]
    struct Gone(Mutex<Vec<(u64, u64)>>);

    impl MemorySink for Arc<Gone> {
        fn give_back(&self, ranges: &[(u64, u64)]) {
            lock(&self.0).extend(ranges);
        }
    }

    fn handler() -> (BalloonHandler, Arc<Gone>) {
        let gone = Arc::<Gone>::default();
        let handler = BalloonHandler {
            shared: Arc::default(),
            sink: Box::new(Arc::clone(&gone)),
            ballooned: BTreeMap::new(),
            numbers: vec![0; MOST_NUMBERS * NUMBER],
            chain: Chain::default(),
        };
        (handler, gone)
    }

    fn change(handler: &mut BalloonHandler, test: &TestQueue, into: bool, numbers: impl IntoIterator<Item = u32>) {
        let bytes: Vec<_> = numbers.into_iter().flat_map(u32::to_le_bytes).collect();
        test.fill(0x8000, &bytes);
        test.offer(0, &[Buffer::readable(0x8000, u32::try_from(bytes.len()).unwrap())]);
        let mut queue = test.queue(false);
        handler.serve(&mut queue, |handler, queue, going| handler.change(queue, into, going)).unwrap();
    }

    #[test]
    fn test_a_chunk_goes_when_all_of_it_is_in_the_balloon() {
        let (mut handler, gone) = handler();
        let pages = |test: &TestQueue, handler: &mut _, into, range: std::ops::Range<u32>| {
            for first in range.clone().step_by(256) {
                change(handler, test, into, first..range.end.min(first + 256));
            }
        };
        let fresh = || TestQueue::new(16);
        pages(&fresh(), &mut handler, true, 0..256);
        pages(&fresh(), &mut handler, true, 257..512);
        assert_eq!(*lock(&gone.0), [], "one is missing");
        pages(&fresh(), &mut handler, true, 256..257);
        assert_eq!(*lock(&gone.0), [(0, CHUNK)]);
        pages(&fresh(), &mut handler, false, 0..256);
        pages(&fresh(), &mut handler, false, 256..512);
        assert!(handler.ballooned.is_empty());
    }

    /// Attack: numbers of pages that there are not, which would let the book grow without end.
    #[test]
    fn test_attack_pages_outside_ram_are_left_out() {
        let (mut handler, gone) = handler();
        change(&mut handler, &TestQueue::new(16), true, [0x200, 0x10_0100, u32::MAX]);
        assert!(handler.ballooned.is_empty() && lock(&gone.0).is_empty());
    }

    #[test]
    fn test_reported_memory_goes_before_the_guest_hears_of_it() {
        let test = TestQueue::new(16);
        let (mut handler, gone) = handler();
        test.offer(0, &[Buffer::writable(0x1000, 0x1000), Buffer::writable(0, 0x20_0000)]);
        let mut queue = test.queue(false);
        handler.serve(&mut queue, |handler, _, going| handler.report(going)).unwrap();
        assert_eq!(*lock(&gone.0), [(0, CHUNK)]);
        assert_eq!(test.take_used(), [(0, 0)]);
    }

    /// Attack: reports of what is no whole chunk, for each of which all vCPUs would stand still.
    #[test]
    fn test_attack_reports_of_crumbs() {
        assert_eq!(whole_chunks(0x10_0001, 1), None);
        assert_eq!(whole_chunks(0x20_0000, CHUNK - 1), None);
        assert_eq!(whole_chunks(0x1f_ffff, CHUNK + 1), Some((CHUNK, CHUNK)));
        assert_eq!(whole_chunks(0x10_0000, 3 * CHUNK), Some((CHUNK, 2 * CHUNK)));
        assert_eq!(whole_chunks(u64::MAX - 1, 1), None);
        assert_eq!(whole_chunks(CHUNK, u64::MAX), None);
    }

    /// Attack: one page of a full chunk again and again, each time of which would give the chunk back anew.
    #[test]
    fn test_attack_a_page_put_into_the_balloon_many_times() {
        let (mut handler, gone) = handler();
        let once: Vec<u32> = (0..512).collect();
        change(&mut handler, &TestQueue::new(16), true, once[..256].iter().copied());
        change(&mut handler, &TestQueue::new(16), true, once[256..].iter().copied());
        change(&mut handler, &TestQueue::new(16), true, [7; 256]);
        assert_eq!(*lock(&gone.0), [(0, CHUNK)]);
    }

    /// Attack: a chain that is offered again as soon as it was taken, so that none would ever be given back.
    #[test]
    fn test_attack_chains_without_end() {
        let test = TestQueue::new(16);
        let (mut handler, gone) = handler();
        let offer = || test.offer(0, &[Buffer::writable(0, 0x20_0000)]);
        offer();
        let mut queue = test.queue(false);
        let mut taken = 0;
        handler
            .serve(&mut queue, |handler, _, going| {
                handler.report(going);
                assert!(going.len() <= usize::from(QUEUE_SIZE), "{} wait", going.len());
                taken += 1;
                if taken < 1000 {
                    offer();
                }
            })
            .unwrap();
        assert_eq!(lock(&gone.0).len(), 1000);
    }

    #[test]
    fn test_the_configuration_says_what_is_wanted_and_takes_what_is_there() {
        let (mut device, balloon) = device(Box::new(Arc::<Gone>::default())).unwrap();
        let before = device.config.generation();
        balloon.set_wanted(64 << 20);
        assert_ne!(device.config.generation(), before);
        let mut bytes = [0; 8];
        device.config.read(0, &mut bytes);
        assert_eq!(bytes, [0, 0x40, 0, 0, 0, 0, 0, 0]);
        device.config.write(0, &[0xff; 4]);
        device.config.write(4, &0x1234_u32.to_le_bytes());
        assert_eq!(balloon.actual(), 0x1234 * PAGE);
        device.config.read(0, &mut bytes);
        assert_eq!(bytes[..4], [0, 0x40, 0, 0], "the guest does not write what is wanted");
    }
}
