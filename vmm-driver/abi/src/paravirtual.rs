//! What driver and loader agree on for guests without virtualization hardware: kernels that run by the 64-bit Xen PV ABI (Xen public
//! headers, `xen.h`, `arch-x86/xen-x86_64.h`).

/// Guest-physical address of the page `shared_info`, which lies outside RAM and is the driver's.
pub const SHARED_INFO: u64 = 0xfed0_0000;

/// Port that an event from the guest on its console's channel writes to, 4 bytes: the ring page has something new. A doorbell can
/// be put there.
pub const CONSOLE_PORT: u16 = 0xd80;

/// Event channel of the console's ring, for `start_info.console.domU.evtchn`: the guest does not bind it.
pub const CONSOLE_CHANNEL: u32 = 1;

/// Interrupt line by which the loader tells the guest that the console's ring page has something new: it comes as an event on
/// [`CONSOLE_CHANNEL`].
pub const CONSOLE_GSI: u32 = 4;

/// Port that the text of `console_io` is written to, byte by byte: a kernel's earliest messages.
pub const EARLY_CONSOLE_PORT: u16 = 0xe9;

/// Number of the hypercall that has the monitor look at every entry of the guest's page tables as the CPU has them, where the vCPU was
/// made with [`crate::VcpuCreate::CHECKS`] (Xen leaves the number to the architecture: `__HYPERVISOR_arch_7`). Its result is 0; an entry
/// that is wrong ends the guest. It takes as long as there are tables, with the host waiting.
pub const CHECK_CALL: u64 = 55;

/// Guest-physical addresses of RAM lie below this: RAM is one range from 0, and what comes behind it is devices'.
pub const RAM_LIMIT: u64 = 3 << 30;
