//! How a guest's time follows from its time stamp counter: the structure that KVM's paravirtual clock (`pvclock_vcpu_time_info`,
//! Linux `Documentation/virt/kvm/x86/msr.rst`) and Xen's (`vcpu_time_info`, `xen.h`) have alike.

use core::sync::atomic::Ordering::Acquire;
use core::sync::atomic::fence;

/// The structure.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct TimeInfo {
    /// Odd while it changes.
    pub version: u32,
    /// Nothing.
    pub padding: u32,
    /// Counter at `time`.
    pub tsc: u64,
    /// Nanoseconds.
    pub time: u64,
    /// Nanoseconds are counts, shifted, times this, divided by 2³².
    pub multiplier: u32,
    /// Left if positive.
    pub shift: i8,
    /// Flags.
    pub flags: u8,
    /// Nothing.
    pub more_padding: [u8; 2],
}

impl TimeInfo {
    /// A consistent reading of one that is written now and then; `None` if its version never rests.
    ///
    /// # Safety
    /// There is one at `pointer`.
    #[must_use]
    pub unsafe fn read(pointer: *const Self) -> Option<Self> {
        for _ in 0..1000 {
            // SAFETY: by the caller; the version tells of a write meanwhile.
            let info = unsafe { pointer.read_volatile() };
            fence(Acquire);
            // SAFETY: as above.
            let again = unsafe { (&raw const (*pointer).version).read_volatile() };
            if info.version & 1 == 0 && info.version == again {
                return Some(info);
            }
        }
        None
    }

    /// Nanoseconds since the start at a time stamp.
    #[must_use]
    pub fn nanoseconds(&self, tsc: u64) -> u64 {
        let delta = tsc.wrapping_sub(self.tsc);
        let scaled =
            if self.shift >= 0 { delta << self.shift.unsigned_abs() } else { delta >> self.shift.unsigned_abs() };
        let product = (u128::from(scaled) * u128::from(self.multiplier)) >> 32;
        self.time.wrapping_add(u64::try_from(product).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_time_follows_the_counter() {
        let info = TimeInfo { tsc: 1000, time: 5, multiplier: 1 << 31, shift: 1, ..TimeInfo::default() };
        assert_eq!(info.nanoseconds(1000), 5);
        assert_eq!(info.nanoseconds(1100), 105);
        let slow = TimeInfo { multiplier: 1 << 31, shift: -1, ..TimeInfo::default() };
        assert_eq!(slow.nanoseconds(400), 100);
    }

    #[test]
    fn test_what_changes_while_it_is_read_is_not_taken() {
        let read = |version| {
            let info = TimeInfo { version, time: 7, ..TimeInfo::default() };
            // SAFETY: it is there.
            unsafe { TimeInfo::read(&raw const info) }.map(|info| info.time)
        };
        assert_eq!((read(4), read(5)), (Some(7), None));
    }
}
