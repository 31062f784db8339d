//! The interface between covisor's driver and its loader.
//!
//! One device (`/dev/covisor`, `\\.\covisor`). One open handle is one VM; closing the handle, or the death of its
//! process, destroys the VM and frees everything. Every call takes one fixed-size structure of this crate, in and out
//! through the same buffer, with no pointer inside; [`Handshake`] comes first, so that a loader and a driver of
//! different versions part with a sentence instead of a crash. Who can open the device is hostile to the driver: what
//! a field may hold is stated at the field, and the driver checks it.
#![no_std]

mod calls;
mod entry_check;
mod gprs;
mod kill;
pub mod paravirtual;
mod run;
mod state;

pub use calls::Call;
pub use calls::DoorbellChange;
pub use calls::DoorbellSpace;
pub use calls::EngineKind;
pub use calls::EngineStatus;
pub use calls::Handshake;
pub use calls::IrqLine;
pub use calls::Kick;
pub use calls::MemoryAdd;
pub use calls::MemoryDiscard;
pub use calls::Msi;
pub use calls::Stats;
pub use calls::StatsKind;
pub use calls::VcpuCreate;
pub use calls::VmCreate;
pub use entry_check::EntryCheck;
pub use kill::KillReason;
pub use run::ExitReason;
pub use run::Run;
pub use state::Segment;
pub use state::Table;
pub use state::VcpuState;

/// First word of a [`Handshake`], "covi" in ASCII, so that a foreign ioctl is told from ours.
pub const MAGIC: u32 = 0x6976_6f63;

/// Version of this interface. Any change of a structure or a meaning raises it; driver and loader must agree exactly.
pub const VERSION: u32 = 4;

/// The device's name on Linux.
pub const DEVICE_PATH_LINUX: &str = "/dev/covisor";

/// The device's name on Windows, for programs. To be opened for overlapped I/O: else NT has one call wait for the other.
pub const DEVICE_PATH_NT: &str = r"\\.\covisor";

/// The device object's name in NT.
pub const DEVICE_OBJECT_NT: &str = r"\Device\covisor";

/// The link in NT that makes [`DEVICE_PATH_NT`] of it.
pub const DEVICE_LINK_NT: &str = r"\DosDevices\covisor";

/// Page size of guest memory regions, in bytes: addresses and sizes in [`MemoryAdd`] are multiples of it.
pub const PAGE_SIZE: u64 = 4096;

/// Largest number of vCPUs of one VM.
pub const MAX_VCPUS: u32 = 64;

/// Largest number of memory regions of one VM.
pub const MAX_REGIONS: usize = 8;

/// Largest number of doorbells of one VM that can exist during its life.
pub const MAX_DOORBELLS: usize = 128;

/// Number of inputs of the I/O APIC, hence of global system interrupts.
pub const MAX_GSI: u32 = 24;

/// Guest-physical address of the local APIC's registers (Intel SDM vol. 3, 11.4.1); no RAM may be there.
pub const LOCAL_APIC_BASE: u64 = 0xfee0_0000;

/// Guest-physical address of the I/O APIC's registers (82093AA data sheet, 3.0); no RAM may be there.
pub const IO_APIC_BASE: u64 = 0xfec0_0000;

/// The ports that the driver itself answers.
pub mod driver_ports {
    /// The POST code port: writes are swallowed, reads give ones. Linux writes it for a short delay.
    pub const POST_CODE: u16 = 0x80;
    /// The ACPI power management timer, 32 bits counting at [`PM_TIMER_HZ`] (ACPI 6.5, 4.8.3.3).
    pub const PM_TIMER: u16 = 0x608;
    /// Count of channel 2 of the 8254 timer, of paravirtual guests: reads give 0, which ends Linux's calibration by a timer that
    /// is not there at once. Ones would have it try 50,000 times.
    pub const TIMER_CHANNEL_2: u16 = 0x42;
    /// Rate of [`PM_TIMER`], in counts a second.
    pub const PM_TIMER_HZ: u64 = 3_579_545;
}
