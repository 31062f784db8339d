//! `RUN`: what a vCPU asks of the loader, and the answer.

use core::mem::offset_of;
use core::mem::size_of;

use static_assertions::const_assert_eq;
use zerocopy::FromBytes;
use zerocopy::Immutable;
use zerocopy::IntoBytes;
use zerocopy::KnownLayout;

/// Why `RUN` returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ExitReason {
    /// A signal, a cancel or [`crate::Call::Kick`]; run again to go on.
    Interrupted = 0,
    /// The guest reads port `address`, `size` bytes: put the value into `data` and run again.
    PortRead = 1,
    /// The guest wrote `data` to port `address`, `size` bytes.
    PortWrite = 2,
    /// The guest reads device memory at `address`, `size` bytes: put the value into `data` and run again.
    MemoryRead = 3,
    /// The guest wrote `data` to device memory at `address`, `size` bytes.
    MemoryWrite = 4,
    /// The guest shut down by a triple fault (Intel SDM vol. 3, 6.15): a machine resets then.
    Shutdown = 5,
    /// The guest waits in `HLT` and nothing can wake it: interrupts are off.
    HaltedForever = 6,
    /// The driver ended the guest; `kill` says why ([`crate::KillReason`]). The vCPU does not run again.
    Killed = 7,
    /// The guest switched its machine off by a call to the driver (Xen's `SCHEDOP_shutdown`). The vCPU does not run again.
    PowerOff = 8,
    /// The guest reset its machine so. The vCPU does not run again.
    Reset = 9,
}

impl ExitReason {
    /// The reason with this number.
    #[must_use]
    pub const fn from_u32(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Interrupted),
            1 => Some(Self::PortRead),
            2 => Some(Self::PortWrite),
            3 => Some(Self::MemoryRead),
            4 => Some(Self::MemoryWrite),
            5 => Some(Self::Shutdown),
            6 => Some(Self::HaltedForever),
            7 => Some(Self::Killed),
            8 => Some(Self::PowerOff),
            9 => Some(Self::Reset),
            _ => None,
        }
    }
}

/// Structure of [`crate::Call::Run`].
///
/// A read that the last return asked for is completed by `data` of the next `RUN` of the same vCPU; the driver
/// remembers what it asked, so no other field needs to be kept.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Run {
    /// In: the vCPU.
    pub vcpu: u32,
    /// Out: [`ExitReason`].
    pub exit: u32,
    /// Out: port or guest-physical address.
    pub address: u64,
    /// Out: value written, zero-extended. In: value read, of which the low `size` bytes count.
    pub data: u64,
    /// Out: bytes of the access: 1, 2, 4 or 8.
    pub size: u32,
    /// Out: [`crate::KillReason`] of [`ExitReason::Killed`], else 0.
    pub kill: u32,
    /// Out: what the kill reason's text needs, see there.
    pub detail: u64,
    /// Out: the guest's instruction pointer at [`ExitReason::Killed`], [`ExitReason::Shutdown`] and
    /// [`ExitReason::HaltedForever`], else 0.
    pub rip: u64,
}
const_assert_eq!(size_of::<Run>(), 48);
const_assert_eq!(offset_of!(Run, data), 16);
const_assert_eq!(offset_of!(Run, rip), 40);
