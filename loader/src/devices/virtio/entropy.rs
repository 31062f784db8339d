//! Entropy device (virtio 1.2, 5.4): randomness of the host, at a bounded rate.

use std::io;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use super::Chain;
use super::DeviceKind;
use super::NoConfig;
use super::QueueError;
use super::QueueHandler;
use super::Rings;
use super::VirtQueue;
use super::VirtioDevice;
use crate::devices::reports::Reports;
use crate::platform::Event;
use crate::sys::random;

/// Entries of the queue.
const QUEUE_SIZE: u16 = 16;
/// Bytes a second that guests get: far more than seeding needs, and little of the host's time.
const RATE: u64 = 1 << 20;
/// Bytes that they get at once.
const BURST: u64 = 64 * 1024;
/// Most bytes for one buffer; a device may give less than was asked (virtio 1.2, 5.4.6.1).
const MOST: usize = 1024;
/// How long to wait when all is used up.
const PAUSE: Duration = Duration::from_millis(50);

/// An entropy device.
///
/// # Errors
///
/// The system has no event left.
pub fn device(name: &str) -> io::Result<VirtioDevice> {
    let budget = Budget { bytes: BURST, counted: Instant::now() };
    Ok(VirtioDevice {
        kind: DeviceKind::Entropy,
        name: name.to_owned(),
        features: 0,
        queue_sizes: vec![QUEUE_SIZE],
        config: Box::new(NoConfig),
        handler: Box::new(EntropyHandler { budget, chain: Chain::default(), reports: Reports::new(name) }),
        event: Arc::new(Event::new()?),
    })
}

/// What guests may have now.
#[derive(Debug)]
struct Budget {
    bytes: u64,
    counted: Instant,
}

impl Budget {
    /// Adds what came since the last time.
    fn refill(&mut self, now: Instant) {
        let microseconds = now.saturating_duration_since(self.counted).as_micros();
        let earned = microseconds.saturating_mul(RATE.into()) / 1_000_000;
        // Only whole earnings move the time on, so that nothing is lost to rounding.
        if earned > 0 {
            self.bytes = BURST.min(self.bytes.saturating_add(u64::try_from(earned).unwrap_or(BURST)));
            self.counted = now;
        }
    }

    /// Spends up to `wanted`.
    fn spend(&mut self, wanted: u64) -> u64 {
        let spent = wanted.min(self.bytes);
        self.bytes -= spent;
        spent
    }
}

struct EntropyHandler {
    budget: Budget,
    chain: Chain,
    reports: Reports,
}

impl EntropyHandler {
    fn serve(&mut self, queue: &mut VirtQueue) -> Result<Option<Duration>, QueueError> {
        loop {
            queue.disarm()?;
            while self.budget.bytes > 0 {
                if !queue.pop(&mut self.chain)? {
                    break;
                }
                let written = self.fill(queue);
                queue.complete(self.chain.head, written)?;
            }
            if self.budget.bytes == 0 {
                return Ok(Some(PAUSE));
            }
            if !queue.arm()? {
                return Ok(None);
            }
        }
    }

    /// Fills the chain's buffers and gives the bytes written.
    fn fill(&mut self, queue: &VirtQueue) -> u32 {
        let mut bytes = [0; MOST];
        let wanted = self.chain.writable.len().min(MOST as u64);
        let count = usize::try_from(self.budget.spend(wanted)).unwrap_or(0);
        let bytes = &mut bytes[..count];
        if let Err(error) = random::fill(bytes) {
            self.reports.warn(&format_args!("the host has no randomness: {error}"));
            return 0;
        }
        // The buffers were checked when the chain came.
        let written = self.chain.writable.write(queue.memory(), bytes).unwrap_or(0);
        u32::try_from(written).unwrap_or(0)
    }
}

impl QueueHandler for EntropyHandler {
    fn process(&mut self, rings: &mut Rings) -> Result<Option<Duration>, QueueError> {
        self.budget.refill(Instant::now());
        rings.get(0).map_or(Ok(None), |queue| self.serve(queue))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::testing::Buffer;
    use crate::devices::virtio::testing::TestQueue;

    fn handler() -> EntropyHandler {
        let budget = Budget { bytes: BURST, counted: Instant::now() };
        EntropyHandler { budget, chain: Chain::default(), reports: Reports::new("entropy") }
    }

    #[test]
    fn test_buffers_are_filled() {
        let test = TestQueue::new(16);
        test.offer(0, &[Buffer::writable(0x8000, 40), Buffer::writable(0x9000, 24)]);
        let mut queue = test.queue(false);
        assert_eq!(handler().serve(&mut queue).unwrap(), None);
        assert_eq!(test.take_used(), [(0, 64)]);
        assert_ne!(test.bytes(0x8000, 40), [0; 40]);
        assert_ne!(test.bytes(0x9000, 24), [0; 24]);
        assert_eq!(test.bytes(0x8000 + 40, 8), [0; 8]);
    }

    /// Attack F2 8: a guest that asks without end.
    #[test]
    fn test_a_flood_is_served_at_the_bounded_rate() {
        let test = TestQueue::new(16);
        let mut queue = test.queue(false);
        let mut handler = handler();
        let mut served = 0;
        for _ in 0..10 {
            for head in 0..16 {
                test.offer(head, &[Buffer::writable(0x8000, 0x4000)]);
            }
            let pause = handler.serve(&mut queue).unwrap();
            served += test.take_used().iter().map(|used| u64::from(used.1)).sum::<u64>();
            if pause.is_some() {
                break;
            }
        }
        assert_eq!(served, BURST);
        handler.budget.refill(handler.budget.counted + Duration::from_millis(10));
        assert_eq!(handler.budget.bytes, RATE / 100);
    }

    #[test]
    fn test_a_buffer_to_read_gets_nothing() {
        let test = TestQueue::new(16);
        test.offer(0, &[Buffer::readable(0x8000, 40)]);
        let mut queue = test.queue(false);
        handler().serve(&mut queue).unwrap();
        assert_eq!(test.take_used(), [(0, 0)]);
    }
}
