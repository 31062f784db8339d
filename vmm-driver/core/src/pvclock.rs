//! The paravirtual clock as KVM's guests know it: two structures in guest memory from which the guest computes the time
//! by its own time stamp counter (Linux `Documentation/virt/kvm/x86/msr.rst`, `pvclock-abi.h`).
//!
//! Both are written once, when the guest asks for them: guest time is the host's time stamp counter since the VM's
//! start, in nanoseconds, at a rate that never changes. It is the same for all vCPUs and never goes back. The wall clock is
//! the host's of the moment when the guest asks, so that one who asks again hears of a clock that was set meanwhile.

use core::sync::atomic::Ordering;
use core::sync::atomic::fence;

use zerocopy::Immutable;
use zerocopy::IntoBytes;

use crate::memory::Memory;

/// Flag of [`SystemTime`]: the clocks of all vCPUs agree.
const TSC_STABLE: u8 = 1 << 0;

/// What each vCPU's clock is made of: `struct pvclock_vcpu_time_info`.
///
/// nanoseconds = `system_time` + (((TSC - `tsc_timestamp`) << `tsc_shift`) * `tsc_to_system_mul`) >> 32
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
#[repr(C)]
struct SystemTime {
    version: u32,
    reserved: u32,
    tsc_timestamp: u64,
    system_time: u64,
    tsc_to_system_mul: u32,
    tsc_shift: i8,
    flags: u8,
    reserved_end: [u8; 2],
}
static_assertions::const_assert_eq!(size_of::<SystemTime>(), 32);

/// Wall clock at system time 0: `struct pvclock_wall_clock`.
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
#[repr(C)]
struct WallClock {
    version: u32,
    seconds: u32,
    nanoseconds: u32,
}
static_assertions::const_assert_eq!(size_of::<WallClock>(), 12);

/// Nanoseconds of a second.
const SECOND: u64 = 1_000_000_000;

/// A VM's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// The host's time stamp counter when the guest's time was 0.
    start_tsc: u64,
    /// The wall clock then, in nanoseconds since 1970.
    start_wall_ns: u64,
    multiplier: u32,
    shift: i8,
}

impl Clock {
    /// A clock that starts when the host's time stamp counter, of rate `tsc_khz`, was `start_tsc` and its wall clock
    /// was `start_wall_ns`.
    #[must_use]
    pub fn new(tsc_khz: u32, start_tsc: u64, start_wall_ns: u64) -> Self {
        // Nanoseconds per count as multiplier / 2^32 * 2^shift, the multiplier having its top bit set.
        let mut scaled = (1_000_000_u128 << 64) / u128::from(tsc_khz.max(1));
        let mut shift = 32_i8;
        while scaled > u128::from(u32::MAX) {
            scaled >>= 1;
            shift += 1;
        }
        #[expect(clippy::cast_possible_truncation, reason = "the loop ends when it fits")]
        let multiplier = scaled as u32;
        Self { start_tsc, start_wall_ns, multiplier, shift: shift - 64 }
    }

    /// The host's time stamp counter when the guest's time was 0.
    #[must_use]
    pub const fn start_tsc(&self) -> u64 {
        self.start_tsc
    }

    /// The wall clock at the guest's time 0: seconds since 1970, and nanoseconds.
    #[must_use]
    pub const fn start_wall(&self) -> (u64, u32) {
        (self.start_wall_ns / SECOND, (self.start_wall_ns % SECOND) as u32)
    }

    /// The guest's time, in nanoseconds, when the host's time stamp counter is `tsc`.
    #[must_use]
    pub fn elapsed_ns(&self, tsc: u64) -> u64 {
        let counts = u128::from(tsc.wrapping_sub(self.start_tsc));
        // A rate is 1 kHz at least, for which the shift is 20.
        let right = u32::try_from(32 - i32::from(self.shift)).unwrap_or(0);
        u64::try_from((counts * u128::from(self.multiplier)) >> right).unwrap_or(u64::MAX)
    }

    /// The wall clock at the guest's time 0, in nanoseconds since 1970, by the host's of now, at the time stamp counter `tsc`.
    #[must_use]
    pub fn wall_at_start(&self, wall_ns: u64, tsc: u64) -> u64 {
        wall_ns.saturating_sub(self.elapsed_ns(tsc))
    }

    /// Multiplier and shift of the rate: nanoseconds = ((counts << shift) * multiplier) >> 32, shifted right where the shift is
    /// negative. The multiplier's top bit is set.
    #[must_use]
    pub const fn scale(&self) -> (u32, i8) {
        (self.multiplier, self.shift)
    }

    /// Bytes of the larger of the two structures.
    pub(crate) const LARGEST: u64 = size_of::<SystemTime>() as u64;

    /// Writes a vCPU's system time to guest-physical `gpa`. `tsc_offset` is what its time stamp counter has more than
    /// the host's, `version` what was written last. False where there is no RAM.
    #[must_use]
    pub fn write_system_time(&self, memory: &Memory, gpa: u64, tsc_offset: u64, version: &mut u32) -> bool {
        let time = SystemTime {
            version: 0,
            reserved: 0,
            tsc_timestamp: self.start_tsc.wrapping_add(tsc_offset),
            system_time: 0,
            tsc_to_system_mul: self.multiplier,
            tsc_shift: self.shift,
            flags: TSC_STABLE,
            reserved_end: [0; 2],
        };
        write_versioned(memory, gpa, time.as_bytes(), version)
    }
}

/// Writes the wall clock at the guest's time 0 to guest-physical `gpa`; `version` is what was written last. False where there is no
/// RAM.
#[must_use]
pub fn write_wall_clock(memory: &Memory, gpa: u64, wall_at_start: u64, version: &mut u32) -> bool {
    #[expect(clippy::cast_possible_truncation, reason = "the interface has 32 bits for the seconds: until 2106")]
    let (seconds, nanoseconds) = ((wall_at_start / SECOND) as u32, (wall_at_start % SECOND) as u32);
    let wall = WallClock { version: 0, seconds, nanoseconds };
    write_versioned(memory, gpa, wall.as_bytes(), version)
}

/// Writes a structure that begins with its version: odd while the rest changes, even and new afterwards, so that a
/// reader on another CPU tries again. The guest may give any address; what is not RAM is not written.
fn write_versioned(memory: &Memory, gpa: u64, structure: &[u8], version: &mut u32) -> bool {
    const VERSION: usize = size_of::<u32>();
    let write = |offset: usize, bytes: &[u8]| memory.write(gpa.wrapping_add(offset as u64), bytes);
    let changing = version.wrapping_add(1) | 1;
    *version = changing.wrapping_add(1);
    if !write(0, &changing.to_le_bytes()) {
        return false;
    }
    fence(Ordering::SeqCst);
    let whole = write(VERSION, &structure[VERSION..]);
    fence(Ordering::SeqCst);
    whole && write(0, &version.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::test_support::TestGuest;

    /// The guest's side of the interface.
    fn guest_ns(bytes: &[u8], tsc: u64) -> u64 {
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let shift = i8::from_le_bytes([bytes[28]]);
        let delta = tsc.wrapping_sub(word(8));
        let delta = if shift < 0 { delta >> -shift } else { delta << shift };
        let multiplier = u128::from(u32::from_le_bytes(bytes[24..28].try_into().unwrap()));
        word(16) + u64::try_from((u128::from(delta) * multiplier) >> 32).unwrap()
    }

    #[test]
    fn scale_of_common_rates() {
        for (khz, multiplier, shift) in
            [(1_000_000, 1 << 31, 1), (2_000_000, 1 << 31, 0), (2_500_000, 3_435_973_836, -1)]
        {
            let clock = Clock::new(khz, 0, 0);
            assert_eq!(clock.scale(), (multiplier, shift), "{khz} kHz");
        }
    }

    #[test]
    fn start_is_told() {
        let clock = Clock::new(1, 77, 1_700_000_000_123_456_789);
        assert_eq!((clock.start_tsc(), clock.start_wall()), (77, (1_700_000_000, 123_456_789)));
    }

    proptest! {
        #[test]
        fn any_time_is_harmless(khz: u32, start: u64, tsc: u64, wall: u64) {
            let clock = Clock::new(khz, start, 0);
            prop_assert!(clock.wall_at_start(wall, tsc) <= wall);
        }
    }

    #[test]
    fn wall_clock_layout() {
        let guest = TestGuest::real_mode();
        let mut version = 6;
        assert!(write_wall_clock(&guest.memory, 0xffd, 1_700_000_000_123_456_789, &mut version));
        let bytes = guest.read(0xffd, 12);
        assert_eq!(bytes[..4], 8_u32.to_le_bytes());
        assert_eq!(bytes[4..8], 1_700_000_000_u32.to_le_bytes());
        assert_eq!(bytes[8..], 123_456_789_u32.to_le_bytes());
    }

    proptest! {
        #[test]
        fn guests_compute_the_right_time(
            khz in 10_000..20_000_000_u32,
            start: u64,
            offset: u64,
            elapsed in 0..1_u64 << 55,
        ) {
            let guest = TestGuest::real_mode();
            let mut version = 0;
            let clock = Clock::new(khz, start, 0);
            prop_assert!(clock.write_system_time(&guest.memory, 0x2000, offset, &mut version));
            let bytes = guest.read(0x2000, 32);
            prop_assert_eq!(&bytes[..4], &2_u32.to_le_bytes());
            prop_assert_eq!(bytes[29], TSC_STABLE);
            let tsc = start.wrapping_add(elapsed).wrapping_add(offset);
            let wanted = u128::from(elapsed) * 1_000_000 / u128::from(khz);
            let got = u128::from(guest_ns(&bytes, tsc));
            // One part in 2^31, and the count that the shift drops.
            prop_assert!(got.abs_diff(wanted) <= wanted / (1 << 31) + 200, "{} for {}", got, wanted);
            // The driver's own count is the same.
            let ours = clock.elapsed_ns(start.wrapping_add(elapsed));
            prop_assert!(got.abs_diff(u128::from(ours)) <= 200, "{} for {}", ours, got);
            prop_assert_eq!(clock.wall_at_start(ours.saturating_add(5), start.wrapping_add(elapsed)), 5);
        }

        #[test]
        fn any_address_is_harmless(gpa: u64, near_end in TestGuest::RAM - 40..TestGuest::RAM + 8, mut version: u32) {
            let guest = TestGuest::real_mode();
            let clock = Clock::new(1_000_000, 0, 0);
            let fits = |at: u64, size: u64| at.checked_add(size).is_some_and(|end| end <= TestGuest::RAM);
            for at in [gpa, near_end] {
                prop_assert_eq!(clock.write_system_time(&guest.memory, at, 0, &mut version), fits(at, 32));
                prop_assert_eq!(write_wall_clock(&guest.memory, at, 7, &mut version), fits(at, 12));
                prop_assert_eq!(version & 1, 0);
            }
        }
    }
}
