//! What the host tells the monitor before the guest's first instruction. Mapped at [`crate::layout::STATE`].

use zerocopy::FromBytes;
use zerocopy::Immutable;
use zerocopy::IntoBytes;
use zerocopy::KnownLayout;

use crate::layout::SLOTS;

/// The configuration.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Config {
    /// Guest frames, all of them RAM, from 0.
    pub frames: u64,
    /// Shadow tables in the pool.
    pub shadows: u64,
    /// Host frame of the `shared_info` page.
    pub shared_info: u64,
    /// L4 entries of the monitor's slots, for the root of the guest's kernel.
    pub kernel_slots: [u64; SLOTS],
    /// L4 entries of the monitor's slots, for the root of its user mode.
    pub user_slots: [u64; SLOTS],
    /// Host frames of the L5 pages of both roots, or 0 where the host has 4-level paging.
    pub top_tables: [u64; 2],
    /// The guest's first root: guest-physical address of its L4.
    pub first_root: u64,
    /// Time stamp counter at time 0.
    pub tsc_start: u64,
    /// Nanoseconds are counts of the time stamp counter, shifted by `tsc_shift`, times this, divided by 2^32 (pvclock, Xen public
    /// headers, `vcpu_time_info`).
    pub tsc_multiplier: u32,
    /// See there: left if positive, right if negative.
    pub tsc_shift: i32,
    /// Rate of the time stamp counter in kHz.
    pub tsc_khz: u64,
    /// Wall clock at time 0, nanoseconds since 1970 UTC.
    pub wall_clock: u64,
    /// 1: the guest can have its page tables checked ([`covisor_abi::paravirtual::CHECK_CALL`]).
    pub checks: u64,
    /// What the guest sees of CR4.
    pub guest_cr4: u64,
    /// Address bits that a page-table entry of this CPU can have.
    pub address_mask: u64,
}
