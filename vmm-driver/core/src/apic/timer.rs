//! The local APIC's timer (Intel SDM vol. 3, 11.5.4), on the host's time stamp counter.
//!
//! The timer never reads a clock: each call that depends on time is given `now`, the host's counter, and the run loop
//! arms a host timer for [`Timer::deadline`]. One count of the guest's is one nanosecond, times the divisor.

/// Counts a second that the guest's timer makes before division: the "bus frequency" of CPUID 0x4000_0010.
pub const BUS_KHZ: u32 = 1_000_000;

/// Shortest period of a periodic timer, in nanoseconds; a shorter one would leave the guest, and the host's timer, no
/// time for anything else. The fastest clock tick of a Linux kernel is 20 times longer.
pub const MIN_PERIOD_NS: u64 = 50_000;

/// No deadline.
const NEVER: u64 = u64::MAX;

/// How the timer counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimerMode {
    /// Once from the initial count to 0.
    OneShot,
    /// Again and again.
    Periodic,
    /// Until the guest's time stamp counter reaches a value.
    TscDeadline,
}

impl TimerMode {
    /// From bits 17 and 18 of the timer's LVT entry; the reserved code counts like one-shot.
    #[must_use]
    pub(super) const fn from_bits(bits: u32) -> Self {
        match bits {
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::OneShot,
        }
    }
}

/// The timer.
#[derive(Clone, Debug)]
pub(super) struct Timer {
    /// Host counts per nanosecond, 32 bits after the binary point.
    counts_per_ns: u64,
    /// Nanoseconds per host count, 32 bits after the binary point.
    ns_per_count: u64,
    /// Added to the host's time stamp counter for the guest's.
    tsc_offset: u64,
    mode: TimerMode,
    masked: bool,
    divide: u32,
    initial: u32,
    /// When it expires, in host counts; [`NEVER`] where it does not run.
    deadline: u64,
    /// `IA32_TSC_DEADLINE`, 0 where not armed.
    guest_deadline: u64,
}

impl Timer {
    /// A timer as after reset; `tsc_khz` is the rate of the host's time stamp counter.
    #[must_use]
    pub(super) fn new(tsc_khz: u32, tsc_offset: u64) -> Self {
        let khz = u64::from(tsc_khz.max(1));
        Self {
            counts_per_ns: (khz << 32) / 1_000_000,
            ns_per_count: (1_000_000 << 32) / khz,
            tsc_offset,
            mode: TimerMode::OneShot,
            masked: true,
            divide: 0,
            initial: 0,
            deadline: NEVER,
            guest_deadline: 0,
        }
    }

    /// Back to the state after reset.
    pub(super) fn reset(&mut self) {
        self.mode = TimerMode::OneShot;
        self.masked = true;
        self.divide = 0;
        self.initial = 0;
        self.disarm();
    }

    fn disarm(&mut self) {
        self.deadline = NEVER;
        self.guest_deadline = 0;
    }

    /// When [`Timer::expire`] is due, in host counts. `None` where nothing would come of it.
    #[inline]
    #[must_use]
    pub(super) fn deadline(&self) -> Option<u64> {
        (self.deadline != NEVER && !self.masked).then_some(self.deadline)
    }

    /// Lets the timer expire if it is time. True where that raises the interrupt; periods that were missed count as one.
    #[inline]
    pub(super) fn expire(&mut self, now: u64) -> bool {
        if now < self.deadline {
            return false;
        }
        let late = now - self.deadline;
        match self.mode {
            TimerMode::Periodic => {
                let period = self.period();
                self.deadline = now.saturating_add(period - late % period);
            }
            TimerMode::OneShot | TimerMode::TscDeadline => self.disarm(),
        }
        !self.masked
    }

    /// Takes over mode and mask of the LVT entry. A change to or from TSC-deadline mode stops the timer (SDM vol. 3,
    /// 11.5.4.1). The caller let the timer expire up to now before.
    pub(super) fn set_mode(&mut self, mode: TimerMode, masked: bool) {
        self.masked = masked;
        if (mode == TimerMode::TscDeadline) != (self.mode == TimerMode::TscDeadline) {
            self.initial = 0;
            self.disarm();
        }
        self.mode = mode;
    }

    /// Sets the initial count and starts, or stops by 0; without effect in TSC-deadline mode.
    pub(super) fn set_initial(&mut self, count: u32, now: u64) {
        if self.mode == TimerMode::TscDeadline {
            return;
        }
        self.initial = count;
        self.deadline = match (count, self.mode) {
            (0, _) => NEVER,
            (_, TimerMode::Periodic) => now.saturating_add(self.period()),
            _ => now.saturating_add(self.host_counts(count)),
        };
    }

    /// The initial count.
    #[must_use]
    pub(super) const fn initial(&self) -> u32 {
        self.initial
    }

    /// The current count.
    #[must_use]
    pub(super) fn current(&self, now: u64) -> u32 {
        if self.mode == TimerMode::TscDeadline || self.deadline == NEVER {
            return 0;
        }
        let remaining = match (self.deadline.checked_sub(now), self.mode) {
            (Some(remaining), _) => remaining,
            (None, TimerMode::Periodic) => {
                let period = self.period();
                period - (now - self.deadline) % period
            }
            (None, _) => return 0,
        };
        let ns = (u128::from(remaining) * u128::from(self.ns_per_count)).div_ceil(1 << 32);
        u32::try_from(ns.div_ceil(1 << self.shift())).unwrap_or(u32::MAX).min(self.initial)
    }

    /// The divide configuration register.
    #[must_use]
    pub(super) const fn divide(&self) -> u32 {
        self.divide
    }

    /// Sets it; a running count goes on with the new divisor.
    pub(super) fn set_divide(&mut self, value: u32, now: u64) {
        let count = self.current(now);
        self.divide = value;
        if count != 0 {
            self.deadline = now.saturating_add(self.host_counts(count));
        }
    }

    /// `IA32_TSC_DEADLINE`: 0 where not armed, and in the other modes.
    #[inline]
    #[must_use]
    pub(super) const fn tsc_deadline(&self) -> u64 {
        self.guest_deadline
    }

    /// Writes `IA32_TSC_DEADLINE`: arms, or disarms by 0; without effect in the other modes.
    #[inline]
    pub(super) fn set_tsc_deadline(&mut self, value: u64, now: u64) {
        if self.mode == TimerMode::TscDeadline {
            self.guest_deadline = value;
            self.place_tsc_deadline(now);
        }
    }

    fn place_tsc_deadline(&mut self, now: u64) {
        self.deadline = if self.guest_deadline == 0 {
            NEVER
        } else {
            let wait = self.guest_deadline.saturating_sub(now.wrapping_add(self.tsc_offset));
            now.saturating_add(wait).min(NEVER - 1)
        };
    }

    /// The guest's time stamp counter was moved; a TSC deadline moves with it.
    pub(super) fn set_tsc_offset(&mut self, offset: u64, now: u64) {
        self.tsc_offset = offset;
        if self.mode == TimerMode::TscDeadline {
            self.place_tsc_deadline(now);
        }
    }

    /// Log 2 of the divisor (SDM vol. 3, figure 11-10): codes 0 to 6 are 2 to 128, 7 is 1.
    const fn shift(&self) -> u32 {
        let code = self.divide & 3 | self.divide >> 1 & 4;
        (code + 1) & 7
    }

    /// What `count` lasts, in host counts; at least 1.
    fn host_counts(&self, count: u32) -> u64 {
        self.host_counts_of_ns(u64::from(count) << self.shift())
    }

    fn host_counts_of_ns(&self, ns: u64) -> u64 {
        let counts = (u128::from(ns) * u128::from(self.counts_per_ns)).div_ceil(1 << 32);
        u64::try_from(counts).unwrap_or(NEVER - 1).max(1)
    }

    /// A period, in host counts; never 0.
    fn period(&self) -> u64 {
        self.host_counts_of_ns((u64::from(self.initial) << self.shift()).max(MIN_PERIOD_NS))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 2.5 GHz.
    const KHZ: u32 = 2_500_000;
    const BY_1: u32 = 0b1011;

    fn timer(mode: TimerMode) -> Timer {
        let mut timer = Timer::new(KHZ, 0);
        timer.set_divide(BY_1, 0);
        timer.set_mode(mode, false);
        timer
    }

    #[test]
    fn one_shot_counts_nanoseconds() {
        let mut timer = timer(TimerMode::OneShot);
        timer.set_initial(1_000_000, 500);
        assert_eq!(timer.deadline(), Some(500 + 2_500_000));
        assert_eq!(timer.current(500), 1_000_000);
        assert_eq!(timer.current(500 + 1_250_000), 500_000);
        assert!(!timer.expire(2_500_499));
        assert!(timer.expire(2_500_500));
        assert_eq!(timer.deadline(), None);
        assert_eq!(timer.current(2_500_501), 0);
        assert_eq!(timer.initial(), 1_000_000);
    }

    #[test]
    fn divisor_changes_keep_the_count() {
        let mut timer = timer(TimerMode::OneShot);
        timer.set_initial(1_000, 0);
        timer.set_divide(0, 0);
        assert_eq!(timer.deadline(), Some(5_000));
        timer.set_divide(0b1010, 2_500);
        assert_eq!(timer.current(2_500), 500);
        assert_eq!(timer.deadline(), Some(2_500 + 500 * 128 * 5 / 2));
    }

    #[test]
    fn periodic_skips_what_was_missed() {
        let mut timer = timer(TimerMode::Periodic);
        timer.set_initial(100_000, 0);
        assert!(timer.expire(250_000));
        assert_eq!(timer.deadline(), Some(500_000));
        assert!(timer.expire(1_300_000));
        assert_eq!(timer.deadline(), Some(1_500_000));
        assert_eq!(timer.current(1_400_000), 40_000);
    }

    #[test]
    fn short_periods_are_stretched() {
        let mut timer = timer(TimerMode::Periodic);
        timer.set_initial(1, 0);
        assert_eq!(timer.deadline(), Some(MIN_PERIOD_NS * 5 / 2));
        assert_eq!(timer.current(10), 1);
    }

    #[test]
    fn tsc_deadline_follows_the_guests_counter() {
        let mut timer = Timer::new(KHZ, 1_000_u64.wrapping_neg());
        timer.set_mode(TimerMode::TscDeadline, false);
        timer.set_tsc_deadline(5_000, 2_000);
        assert_eq!(timer.deadline(), Some(6_000));
        timer.set_tsc_offset(0, 2_000);
        assert_eq!(timer.deadline(), Some(5_000));
        assert_eq!(timer.tsc_deadline(), 5_000);
        assert!(timer.expire(5_000));
        assert_eq!((timer.tsc_deadline(), timer.deadline()), (0, None));
        timer.set_tsc_deadline(4_000, 6_000);
        assert_eq!(timer.deadline(), Some(6_000));
        timer.set_tsc_deadline(0, 6_000);
        assert_eq!(timer.deadline(), None);
        timer.set_initial(7, 6_000);
        assert_eq!((timer.initial(), timer.current(6_000), timer.deadline()), (0, 0, None));
    }

    #[test]
    fn change_of_mode_stops() {
        let mut timer = timer(TimerMode::OneShot);
        timer.set_initial(1_000, 0);
        timer.set_mode(TimerMode::Periodic, false);
        assert!(timer.deadline().is_some());
        timer.set_mode(TimerMode::TscDeadline, false);
        assert_eq!(timer.deadline(), None);
    }

    #[test]
    fn masked_expiry_is_lost() {
        let mut timer = timer(TimerMode::OneShot);
        timer.set_initial(1_000, 0);
        timer.set_mode(TimerMode::OneShot, true);
        assert_eq!(timer.deadline(), None);
        assert!(!timer.expire(10_000));
        timer.set_mode(TimerMode::OneShot, false);
        assert!(!timer.expire(20_000));
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Mode(u32, bool),
        Initial(u32),
        Divide(u32),
        Deadline(u64),
        Offset(u64),
        Expire,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..4_u32, any::<bool>()).prop_map(|(mode, masked)| Step::Mode(mode, masked)),
            any::<u32>().prop_map(Step::Initial),
            any::<u32>().prop_map(Step::Divide),
            any::<u64>().prop_map(Step::Deadline),
            any::<u64>().prop_map(Step::Offset),
            Just(Step::Expire),
        ]
    }

    proptest! {
        #[test]
        fn no_sequence_panics_or_expires_forever(
            khz: u32,
            offset: u64,
            steps in proptest::collection::vec((step(), any::<u64>()), 0..40),
        ) {
            let mut timer = Timer::new(khz, offset);
            for (step, now) in steps {
                match step {
                    Step::Mode(mode, masked) => timer.set_mode(TimerMode::from_bits(mode), masked),
                    Step::Initial(count) => timer.set_initial(count, now),
                    Step::Divide(value) => timer.set_divide(value & 0xb, now),
                    Step::Deadline(value) => timer.set_tsc_deadline(value, now),
                    Step::Offset(value) => timer.set_tsc_offset(value, now),
                    Step::Expire => {
                        timer.expire(now);
                        // At the very end of time nothing later exists.
                        prop_assert!(now >= NEVER - 1 || timer.deadline().is_none_or(|deadline| deadline > now));
                    }
                }
                prop_assert!(timer.current(now) <= timer.initial());
            }
        }

        #[test]
        fn one_shot_is_neither_early_nor_late(khz in 100_000..10_000_000_u32, count in 1_u32.., code in 0..8_u32) {
            let mut timer = Timer::new(khz, 0);
            timer.set_mode(TimerMode::OneShot, false);
            timer.set_divide(code & 3 | (code & 4) << 1, 0);
            timer.set_initial(count, 1);
            let shift = (code + 1) & 7;
            let wanted = (u128::from(count) << shift) * u128::from(khz) / 1_000_000;
            let got = u128::from(timer.deadline().unwrap() - 1);
            let slack = wanted / (1 << 24) + 1;
            prop_assert!(got + slack >= wanted && got <= wanted + slack, "{} for {}", got, wanted);
        }
    }
}
