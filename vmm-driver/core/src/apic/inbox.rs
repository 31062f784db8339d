//! What other threads have for a vCPU's local APIC: interrupts on their way, and how the vCPU is addressed.

use core::sync::atomic::AtomicU8;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering;

use super::message::Delivery;
use super::message::Message;

/// Mode of a local APIC (SDM vol. 3, 11.12.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Off, by `IA32_APIC_BASE`.
    Disabled,
    /// Registers in memory.
    Xapic,
    /// Registers as MSRs.
    X2apic,
}

/// How a vCPU's APIC is addressed besides by its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its mode.
    pub mode: Mode,
    /// Its logical destination register.
    pub logical: u32,
    /// xAPIC: the cluster model, else the flat one.
    pub cluster: bool,
    /// Software has enabled it.
    pub enabled: bool,
}

impl Identity {
    /// Of a vCPU's APIC after reset.
    pub const RESET: Self = Self { mode: Mode::Xapic, logical: 0, cluster: false, enabled: false };

    const MODE_SHIFT: u32 = 32;
    const CLUSTER: u64 = 1 << 34;
    const ENABLED: u64 = 1 << 35;

    const fn pack(self) -> u64 {
        let mut word = self.logical as u64 | (self.mode as u64) << Self::MODE_SHIFT;
        if self.cluster {
            word |= Self::CLUSTER;
        }
        if self.enabled {
            word |= Self::ENABLED;
        }
        word
    }

    #[expect(clippy::cast_possible_truncation, reason = "the low half is the logical destination")]
    const fn unpack(word: u64) -> Self {
        let mode = match word >> Self::MODE_SHIFT & 3 {
            0 => Mode::Disabled,
            1 => Mode::Xapic,
            _ => Mode::X2apic,
        };
        Self { mode, logical: word as u32, cluster: word & Self::CLUSTER != 0, enabled: word & Self::ENABLED != 0 }
    }

    /// Whether a logical destination means this APIC (SDM vol. 3, 11.6.2.2 and 11.12.10.1).
    #[must_use]
    pub const fn matches(self, address: u32) -> bool {
        let byte = self.logical >> 24;
        match self.mode {
            Mode::Disabled => false,
            Mode::X2apic => address >> 16 == self.logical >> 16 && address & self.logical & 0xffff != 0,
            Mode::Xapic if address > 0xff => false,
            Mode::Xapic if self.cluster => address == 0xff || address >> 4 == byte >> 4 && address & byte & 0xf != 0,
            Mode::Xapic => address & byte != 0,
        }
    }
}

/// What a vCPU found in its inbox besides interrupts with vectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signals {
    /// A non-maskable interrupt.
    pub nmi: bool,
    /// INIT: reset the vCPU and let it wait for a start-up.
    pub init: bool,
    /// Start-up: begin at `vector << 12` if it waits. Comes after the INIT of the same [`Signals`].
    pub start_up: Option<u8>,
}

/// Interrupts that other threads post to a vCPU. Lock-free; every context may post.
#[derive(Debug)]
pub struct Inbox {
    /// 0 where there is nothing; bits 0 to 3 for `vectors`, and the flags below. Whoever makes it not 0 wakes the vCPU.
    pending: AtomicU32,
    start_up: AtomicU8,
    vectors: [AtomicU64; 4],
    /// Of `vectors`: level-triggered.
    level: [AtomicU64; 4],
    identity: AtomicU64,
}

const WORDS: u32 = 0xf;
const NMI: u32 = 1 << 4;
const INIT: u32 = 1 << 5;
const START_UP: u32 = 1 << 6;

impl Default for Inbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Inbox {
    /// Nothing in it.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            pending: AtomicU32::new(0),
            start_up: AtomicU8::new(0),
            vectors: [const { AtomicU64::new(0) }; 4],
            level: [const { AtomicU64::new(0) }; 4],
            identity: AtomicU64::new(Identity::RESET.pack()),
        }
    }

    /// Whether there is nothing in it: one load.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pending.load(Ordering::Acquire) == 0
    }

    /// How the vCPU is addressed.
    #[must_use]
    pub fn identity(&self) -> Identity {
        Identity::unpack(self.identity.load(Ordering::Acquire))
    }

    /// Tells the others how the vCPU is addressed now. Only its own thread calls it, after
    /// [`super::Effect::Identity`].
    pub fn publish(&self, identity: Identity) {
        self.identity.store(identity.pack(), Ordering::Release);
    }

    /// Posts what a message brings to one of its targets. True where the inbox was empty before: the caller then wakes
    /// the vCPU, or makes it leave the guest.
    pub fn post(&self, message: &Message) -> bool {
        match message.delivery {
            Delivery::Fixed | Delivery::LowestPriority => self.post_vector(message.vector, message.level),
            Delivery::Nmi => self.flag(NMI),
            Delivery::Init => self.flag(INIT),
            Delivery::StartUp => {
                self.start_up.store(message.vector, Ordering::Relaxed);
                self.flag(START_UP)
            }
        }
    }

    /// Posts an interrupt; the result is that of [`Inbox::post`].
    pub fn post_vector(&self, vector: u8, level: bool) -> bool {
        let word = usize::from(vector >> 6);
        let bit = 1 << (vector & 63);
        if level {
            self.level[word].fetch_or(bit, Ordering::Relaxed);
        } else if self.level[word].load(Ordering::Relaxed) & bit != 0 {
            self.level[word].fetch_and(!bit, Ordering::Relaxed);
        }
        self.vectors[word].fetch_or(bit, Ordering::Release);
        self.flag(1 << word)
    }

    fn flag(&self, flag: u32) -> bool {
        // AcqRel: what was stored before is seen by who takes the flag.
        self.pending.fetch_or(flag, Ordering::AcqRel) == 0
    }

    /// Takes everything out: calls `vectors(word, posted, level)` for each word of vectors that has some.
    #[inline]
    pub(super) fn take(&self, mut vectors: impl FnMut(usize, u64, u64)) -> Signals {
        if self.is_empty() {
            return Signals::default();
        }
        let pending = self.pending.swap(0, Ordering::AcqRel);
        let mut words = pending & WORDS;
        while words != 0 {
            let word = words.trailing_zeros() as usize;
            words &= words - 1;
            let posted = self.vectors[word].swap(0, Ordering::AcqRel);
            vectors(word, posted, self.level[word].load(Ordering::Relaxed));
        }
        Signals {
            nmi: pending & NMI != 0,
            init: pending & INIT != 0,
            start_up: (pending & START_UP != 0).then(|| self.start_up.load(Ordering::Relaxed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use proptest::prelude::*;

    use super::super::message::Destination;
    use super::*;

    fn message(delivery: Delivery, vector: u8) -> Message {
        Message { destination: Destination::All, delivery, vector, level: false }
    }

    proptest! {
        #[test]
        fn identity_survives_packing(mode in 0..3_u8, logical: u32, cluster: bool, enabled: bool) {
            let mode = [Mode::Disabled, Mode::Xapic, Mode::X2apic][usize::from(mode)];
            let identity = Identity { mode, logical, cluster, enabled };
            prop_assert_eq!(Identity::unpack(identity.pack()), identity);
        }
    }

    #[test]
    fn signals_are_taken_once() {
        let inbox = Inbox::new();
        assert!(inbox.post(&message(Delivery::Init, 0)));
        assert!(!inbox.post(&message(Delivery::StartUp, 0x9a)));
        assert!(!inbox.post(&message(Delivery::Nmi, 2)));
        let signals = inbox.take(|_, _, _| unreachable!());
        assert_eq!(signals, Signals { nmi: true, init: true, start_up: Some(0x9a) });
        assert!(inbox.is_empty());
        assert_eq!(inbox.take(|_, _, _| unreachable!()), Signals::default());
    }

    #[test]
    fn level_follows_the_last_post() {
        let inbox = Inbox::new();
        inbox.post_vector(0x51, true);
        inbox.take(|word, posted, level| assert_eq!((word, posted, level), (1, 1 << 17, 1 << 17)));
        inbox.post_vector(0x51, false);
        inbox.take(|word, posted, level| assert_eq!((word, posted, level), (1, 1 << 17, 0)));
    }

    #[test]
    fn nothing_is_lost_between_threads() {
        const ROUNDS: u32 = 5_000;
        const POSTED: [u8; 2] = [0x20, 0xff];
        let inbox = Inbox::new();
        let done = AtomicBool::new(false);
        let waits =
            |vector: u8| inbox.vectors[usize::from(vector >> 6)].load(Ordering::SeqCst) >> (vector & 63) & 1 != 0;
        let taken = thread::scope(|scope| {
            let taker = scope.spawn(|| {
                let mut taken = [0_u32; 256];
                loop {
                    let last = done.load(Ordering::SeqCst);
                    inbox.take(|word, posted, _| {
                        for bit in 0..64 {
                            taken[word * 64 + bit] += u32::from(posted >> bit & 1 != 0);
                        }
                    });
                    if last {
                        return taken;
                    }
                    thread::yield_now();
                }
            });
            let posters = POSTED.map(|vector| {
                let (inbox, waits) = (&inbox, &waits);
                scope.spawn(move || {
                    for _ in 0..ROUNDS {
                        inbox.post_vector(vector, false);
                        // Posted again only after it was taken, so each one counts.
                        while waits(vector) {
                            thread::yield_now();
                        }
                    }
                })
            });
            for poster in posters {
                poster.join().unwrap();
            }
            done.store(true, Ordering::SeqCst);
            taker.join().unwrap()
        });
        for vector in POSTED {
            assert_eq!(taken[usize::from(vector)], ROUNDS);
        }
    }
}
