//! What a guest is told in memory: `start_info`, `shared_info` and `vcpu_info` (Xen public headers, `xen.h`,
//! `arch-x86/xen.h`).

use core::mem::offset_of;
use core::sync::atomic::AtomicU8;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering::AcqRel;
use core::sync::atomic::Ordering::Acquire;
use core::sync::atomic::Ordering::Relaxed;

use crate::time_info::TimeInfo;

/// Longest command line in [`StartInfo`].
const COMMAND_LINE: usize = 1024;

/// `start_info`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct StartInfo {
    /// "xen-3.0-x86_64".
    pub magic: [u8; 32],
    /// Frames of RAM.
    pub pages: u64,
    /// Machine address of `shared_info`.
    pub shared_info: u64,
    /// Flags.
    pub flags: u32,
    /// Xenstore's frame and channel.
    pub store: [u64; 2],
    /// Frame and channel of the console.
    pub console: [u64; 2],
    /// Address of the L4 in use.
    pub page_tables: u64,
    /// Frames of the page tables in use.
    pub page_table_frames: u64,
    /// Address of the list of machine frames.
    pub frame_list: u64,
    /// Module: start and size.
    pub module: [u64; 2],
    /// Command line, NUL-terminated.
    pub command_line: [u8; COMMAND_LINE],
}

const _: () = assert!(offset_of!(StartInfo, flags) == 48 && offset_of!(StartInfo, store) == 56);
const _: () = assert!(offset_of!(StartInfo, console) == 72 && offset_of!(StartInfo, page_tables) == 88);
const _: () = assert!(offset_of!(StartInfo, module) == 112 && offset_of!(StartInfo, command_line) == 128);

/// `vcpu_info`.
#[derive(Debug)]
#[repr(C)]
pub struct VcpuInfo {
    /// 1: events wait.
    pub pending: AtomicU8,
    /// 1: they have to.
    pub mask: AtomicU8,
    /// A bit for each word of [`SharedInfo::pending`] that has bits.
    pub pending_selector: AtomicU64,
    /// CR2 of the last page fault.
    pub cr2: AtomicU64,
    padding: u64,
    time: TimeInfo,
}

/// Bytes of [`VcpuInfo`].
pub const VCPU_INFO_SIZE: u64 = 64;
/// Offset of the time in it.
const TIME: u64 = 32;
/// Words of event bits.
const WORDS: usize = 64;
/// Event channels that there are bits for.
pub const CHANNELS: u32 = 4096;

const _: () = assert!(size_of::<VcpuInfo>() as u64 == VCPU_INFO_SIZE);
const _: () = assert!(offset_of!(VcpuInfo, time) as u64 == TIME);

/// `shared_info`.
#[derive(Debug)]
#[repr(C)]
pub struct SharedInfo {
    /// Of the first 32 vCPUs.
    pub vcpus: [VcpuInfo; 32],
    /// A bit for each channel: an event waits.
    pub pending: [AtomicU64; WORDS],
    /// A bit for each channel: it has to.
    pub mask: [AtomicU64; WORDS],
    /// Wall clock at time 0: version.
    pub wall_version: AtomicU32,
    /// Seconds since 1970 UTC.
    pub wall_seconds: AtomicU32,
    /// Nanoseconds.
    pub wall_nanoseconds: AtomicU32,
}

const _: () = assert!(offset_of!(SharedInfo, pending) == 2048 && offset_of!(SharedInfo, wall_version) == 3072);

static SHARED: AtomicUsize = AtomicUsize::new(0);
static VCPU: AtomicUsize = AtomicUsize::new(0);

/// Says where `shared_info` is mapped: for good, and the first `vcpu_info` with it.
pub fn set_shared(address: u64) {
    let address = usize::try_from(address).unwrap_or(0);
    SHARED.store(address, Relaxed);
    VCPU.store(address, Relaxed);
}

/// Says where the `vcpu_info` is now.
pub fn set_vcpu(address: u64) {
    VCPU.store(usize::try_from(address).unwrap_or(0), Relaxed);
}

/// `shared_info`.
#[must_use]
pub fn shared() -> &'static SharedInfo {
    // SAFETY: the start has mapped it for good, and it consists of atomic fields.
    unsafe { &*core::ptr::with_exposed_provenance(SHARED.load(Relaxed)) }
}

/// `vcpu_info`.
#[must_use]
pub fn vcpu() -> &'static VcpuInfo {
    // SAFETY: as above; where it goes later, the memory is there for good as well.
    unsafe { &*core::ptr::with_exposed_provenance(VCPU.load(Relaxed)) }
}

/// A consistent reading of the time.
#[must_use]
pub fn time() -> Option<TimeInfo> {
    // SAFETY: a field of `vcpu_info`, which is there for good.
    unsafe { TimeInfo::read(&raw const vcpu().time) }
}

/// The word of a channel's bits, and its bit.
const fn place(channel: u32) -> (usize, u64) {
    ((channel / 64) as usize % WORDS, 1 << (channel % 64))
}

impl SharedInfo {
    /// Whether an event waits on a channel.
    #[must_use]
    pub fn is_pending(&self, channel: u32) -> bool {
        let (word, bit) = place(channel);
        self.pending.get(word).is_some_and(|word| word.load(Acquire) & bit != 0)
    }

    /// Sets or clears that.
    pub fn set_pending(&self, channel: u32, on: bool) {
        let (word, bit) = place(channel);
        if let Some(word) = self.pending.get(word) {
            if on {
                word.fetch_or(bit, AcqRel)
            } else {
                word.fetch_and(!bit, AcqRel)
            };
        }
    }

    /// Whether a channel is masked.
    #[must_use]
    pub fn is_masked(&self, channel: u32) -> bool {
        let (word, bit) = place(channel);
        self.mask.get(word).is_some_and(|word| word.load(Acquire) & bit != 0)
    }

    /// Masks a channel, or not: nothing more than the bit.
    pub fn set_masked(&self, channel: u32, on: bool) {
        let (word, bit) = place(channel);
        if let Some(word) = self.mask.get(word) {
            if on {
                word.fetch_or(bit, AcqRel)
            } else {
                word.fetch_and(!bit, AcqRel)
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_a_channels_bit_is_found() {
        assert_eq!(place(0), (0, 1));
        assert_eq!(place(65), (1, 2));
        assert_eq!(place(CHANNELS - 1), (63, 1 << 63));
    }
}
