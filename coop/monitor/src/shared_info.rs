//! The page and the record that hypervisor and guest share (Xen public headers, `xen.h`: `shared_info`, `vcpu_info`;
//! `arch-x86/xen.h`: `arch_vcpu_info`). The guest writes them at any time: each access is one volatile access, and what is read is
//! only ever a bit or a number that is checked.

use core::ptr::NonNull;

/// Size of `vcpu_info`.
pub const VCPU_INFO_SIZE: u64 = 64;
/// Words of the bitmaps of events: 64 of 64 bits (2-level ABI).
pub const EVENT_WORDS: usize = 64;

/// Offset in `vcpu_info` of the byte that says that an event waits.
pub const UPCALL_PENDING: usize = vcpu::UPCALL_PENDING;
/// Offset of the byte by which the guest holds events back.
pub const UPCALL_MASK: usize = vcpu::UPCALL_MASK;

/// Offsets in `vcpu_info`.
mod vcpu {
    pub(super) const UPCALL_PENDING: usize = 0;
    pub(super) const UPCALL_MASK: usize = 1;
    pub(super) const PENDING_SEL: usize = 8;
    pub(super) const CR2: usize = 16;
    pub(super) const TIME: usize = 32;
}

/// Offsets in `vcpu_time_info`.
mod time {
    pub(super) const VERSION: usize = 0;
    pub(super) const TSC_TIMESTAMP: usize = 8;
    pub(super) const SYSTEM_TIME: usize = 16;
    pub(super) const MULTIPLIER: usize = 24;
    pub(super) const SHIFT: usize = 28;
    pub(super) const FLAGS: usize = 29;
}

/// Offsets in `shared_info`.
mod shared {
    pub(super) const EVENT_PENDING: usize = 2048;
    pub(super) const EVENT_MASK: usize = 2560;
    pub(super) const WALL_CLOCK_VERSION: usize = 3072;
    pub(super) const WALL_CLOCK_SECONDS: usize = 3076;
    pub(super) const WALL_CLOCK_NANOSECONDS: usize = 3080;
    pub(super) const WALL_CLOCK_SECONDS_HIGH: usize = 3084;
}

/// A place in memory that the guest can write too.
#[derive(Clone, Copy, Debug)]
struct Place(NonNull<u8>);

impl Place {
    fn read<T: Copy>(self, offset: usize) -> T {
        // SAFETY: who made the place promised that its bytes are mapped and aligned for the fields at their offsets.
        unsafe { self.0.add(offset).cast::<T>().read_volatile() }
    }

    fn write<T: Copy>(self, offset: usize, value: T) {
        // SAFETY: as above; no reference to these bytes exists anywhere.
        unsafe { self.0.add(offset).cast::<T>().write_volatile(value) };
    }
}

/// The guest's `vcpu_info`.
#[derive(Clone, Copy, Debug)]
pub struct VcpuInfo(Place);

/// The scale of the guest's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scale {
    /// Time stamp counter at time 0.
    pub tsc_start: u64,
    /// See [`crate::config::Config::tsc_multiplier`].
    pub multiplier: u32,
    /// See [`crate::config::Config::tsc_shift`].
    pub shift: i32,
}

impl VcpuInfo {
    /// The record at this address.
    ///
    /// # Safety
    /// [`VCPU_INFO_SIZE`] bytes are mapped there, writable, for as long as this lives, aligned to 8, and only ever accessed by
    /// volatile accesses.
    #[must_use]
    pub const unsafe fn at(address: NonNull<u8>) -> Self {
        Self(Place(address))
    }

    /// Where it is.
    #[must_use]
    pub fn address(self) -> u64 {
        self.0.0.addr().get() as u64
    }

    /// Whether an event waits.
    #[inline]
    #[must_use]
    pub fn is_pending(self) -> bool {
        self.0.read::<u8>(vcpu::UPCALL_PENDING) != 0
    }

    /// Says that one does, in this word of the bitmap.
    pub fn set_pending(self, word: usize) {
        let selected = self.0.read::<u64>(vcpu::PENDING_SEL) | 1 << (word & 63);
        self.0.write(vcpu::PENDING_SEL, selected);
        self.0.write(vcpu::UPCALL_PENDING, 1_u8);
    }

    /// Says that events may wait in every word: the record has moved, and the guest is to look.
    pub fn set_all_pending(self) {
        self.0.write(vcpu::PENDING_SEL, u64::MAX);
        self.0.write(vcpu::UPCALL_PENDING, 1_u8);
    }

    /// Whether the guest holds events back.
    #[inline]
    #[must_use]
    pub fn is_masked(self) -> bool {
        self.0.read::<u8>(vcpu::UPCALL_MASK) != 0
    }

    /// Holds events back, or not.
    #[inline]
    pub fn set_masked(self, masked: bool) {
        self.0.write(vcpu::UPCALL_MASK, u8::from(masked));
    }

    /// The address of the guest's last page fault.
    #[must_use]
    pub fn cr2(self) -> u64 {
        self.0.read(vcpu::CR2)
    }

    /// Sets it.
    pub fn set_cr2(self, address: u64) {
        self.0.write(vcpu::CR2, address);
    }

    /// Sets the clock: time is 0 at `scale.tsc_start`.
    pub fn set_time(self, scale: Scale) {
        let version = self.0.read::<u32>(vcpu::TIME + time::VERSION) | 1;
        self.0.write(vcpu::TIME + time::VERSION, version);
        self.0.write(vcpu::TIME + time::TSC_TIMESTAMP, scale.tsc_start);
        self.0.write(vcpu::TIME + time::SYSTEM_TIME, 0_u64);
        self.0.write(vcpu::TIME + time::MULTIPLIER, scale.multiplier);
        #[expect(clippy::cast_possible_truncation, reason = "a shift is a small number")]
        self.0.write(vcpu::TIME + time::SHIFT, scale.shift as i8);
        self.0.write(vcpu::TIME + time::FLAGS, 0_u8);
        self.0.write(vcpu::TIME + time::VERSION, version.wrapping_add(1));
    }

    /// Takes all of another record over.
    pub fn copy_from(self, other: Self) {
        let mut offset = 0;
        while offset < usize::try_from(VCPU_INFO_SIZE).unwrap_or(0) {
            self.0.write(offset, other.0.read::<u64>(offset));
            offset += 8;
        }
    }
}

/// The guest's `shared_info`.
#[derive(Clone, Copy, Debug)]
pub struct SharedInfo(Place);

impl SharedInfo {
    /// The page at this address.
    ///
    /// # Safety
    /// A page is mapped there, writable, for as long as this lives, and only ever accessed by volatile accesses.
    #[must_use]
    pub const unsafe fn at(address: NonNull<u8>) -> Self {
        Self(Place(address))
    }

    /// The `vcpu_info` in it, of the only vCPU.
    #[must_use]
    pub fn vcpu_info(self) -> VcpuInfo {
        VcpuInfo(self.0)
    }

    /// As a guest finds it at its start: all events masked. `wall_clock` is the time of day at time 0, in nanoseconds since 1970 UTC.
    pub fn start(self, scale: Scale, wall_clock: u64) {
        for word in 0..EVENT_WORDS {
            self.0.write(shared::EVENT_MASK + word * 8, u64::MAX);
        }
        self.vcpu_info().set_masked(true);
        self.vcpu_info().set_time(scale);
        self.set_wall_clock(wall_clock);
    }

    /// Sets the time of day at time 0, in nanoseconds since 1970 UTC. The version is odd meanwhile, so that a reader tries again.
    pub fn set_wall_clock(self, wall_clock: u64) {
        let changing = self.0.read::<u32>(shared::WALL_CLOCK_VERSION).wrapping_add(1) | 1;
        self.0.write(shared::WALL_CLOCK_VERSION, changing);
        let (seconds, nanoseconds) = (wall_clock / 1_000_000_000, wall_clock % 1_000_000_000);
        #[expect(clippy::cast_possible_truncation, reason = "the halves of the seconds, and less than 10^9")]
        {
            self.0.write(shared::WALL_CLOCK_SECONDS, seconds as u32);
            self.0.write(shared::WALL_CLOCK_SECONDS_HIGH, (seconds >> 32) as u32);
            self.0.write(shared::WALL_CLOCK_NANOSECONDS, nanoseconds as u32);
        }
        self.0.write(shared::WALL_CLOCK_VERSION, changing.wrapping_add(1));
    }

    /// The version of the time of day at time 0, and that in nanoseconds since 1970 UTC.
    #[must_use]
    pub fn wall_clock(self) -> (u32, u64) {
        let [version, low, nanoseconds, high] = [
            shared::WALL_CLOCK_VERSION,
            shared::WALL_CLOCK_SECONDS,
            shared::WALL_CLOCK_NANOSECONDS,
            shared::WALL_CLOCK_SECONDS_HIGH,
        ]
        .map(|offset| u64::from(self.0.read::<u32>(offset)));
        let time = (high << 32 | low).saturating_mul(1_000_000_000).saturating_add(nanoseconds);
        (u32::try_from(version).unwrap_or(0), time)
    }

    /// Sets an event's bit; says whether the guest masks it.
    pub fn set_event(self, port: u32) -> bool {
        let (word, bit) = place_of(port);
        let pending = shared::EVENT_PENDING + word * 8;
        self.0.write(pending, self.0.read::<u64>(pending) | bit);
        self.0.read::<u64>(shared::EVENT_MASK + word * 8) & bit != 0
    }

    /// Clears an event's bit: its channel is closed.
    pub fn clear_event(self, port: u32) {
        let (word, bit) = place_of(port);
        let pending = shared::EVENT_PENDING + word * 8;
        self.0.write(pending, self.0.read::<u64>(pending) & !bit);
    }

    /// Clears an event's mask; says whether it waits.
    pub fn unmask(self, port: u32) -> bool {
        let (word, bit) = place_of(port);
        let mask = shared::EVENT_MASK + word * 8;
        self.0.write(mask, self.0.read::<u64>(mask) & !bit);
        self.0.read::<u64>(shared::EVENT_PENDING + word * 8) & bit != 0
    }
}

/// The word of an event's bit in the bitmaps, and the bit.
const fn place_of(port: u32) -> (usize, u64) {
    ((port / 64) as usize & (EVENT_WORDS - 1), 1 << (port % 64))
}
