//! The calls and their structures, but for `RUN` (`run.rs`) and the vCPU's registers (`state.rs`).

use core::mem::size_of;

use static_assertions::const_assert_eq;
use zerocopy::FromBytes;
use zerocopy::Immutable;
use zerocopy::IntoBytes;
use zerocopy::KnownLayout;

use crate::Run;
use crate::VcpuState;

/// The calls that a handle takes, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Call {
    /// [`Handshake`]: versions, and what the engines of this machine say. First on every handle.
    Handshake = 0,
    /// [`VmCreate`]: makes this handle a VM. Once.
    VmCreate = 1,
    /// [`MemoryAdd`]: gives the VM RAM. Before the first vCPU runs.
    MemoryAdd = 2,
    /// [`VcpuCreate`]: gives the VM a vCPU.
    VcpuCreate = 3,
    /// [`VcpuState`]: sets a vCPU's registers.
    VcpuSet = 4,
    /// [`VcpuState`]: reads a vCPU's registers.
    VcpuGet = 5,
    /// [`Run`]: runs a vCPU until it needs the loader. Blocks; a signal (Linux) or cancel (NT) ends it.
    Run = 6,
    /// [`IrqLine`]: sets the level of an I/O APIC input.
    IrqLine = 7,
    /// [`Msi`]: sends a message-signalled interrupt.
    Msi = 8,
    /// [`DoorbellChange`]: makes stores to an address signal an event.
    DoorbellAdd = 9,
    /// [`DoorbellChange`]: undoes that.
    DoorbellRemove = 10,
    /// [`Kick`]: makes a vCPU's `Run` return [`crate::ExitReason::Interrupted`], now or at its next start.
    Kick = 11,
    /// [`Stats`]: exit counts of a vCPU.
    Stats = 12,
    /// [`MemoryDiscard`]: gives host memory back that the guest has no use for.
    MemoryDiscard = 13,
}

impl Call {
    /// All calls, by number.
    pub const ALL: [Call; 14] = [
        Call::Handshake,
        Call::VmCreate,
        Call::MemoryAdd,
        Call::VcpuCreate,
        Call::VcpuSet,
        Call::VcpuGet,
        Call::Run,
        Call::IrqLine,
        Call::Msi,
        Call::DoorbellAdd,
        Call::DoorbellRemove,
        Call::Kick,
        Call::Stats,
        Call::MemoryDiscard,
    ];

    /// Size of the call's structure, in bytes.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Call::Handshake => size_of::<Handshake>(),
            Call::VmCreate => size_of::<VmCreate>(),
            Call::MemoryAdd => size_of::<MemoryAdd>(),
            Call::VcpuCreate => size_of::<VcpuCreate>(),
            Call::VcpuSet | Call::VcpuGet => size_of::<VcpuState>(),
            Call::Run => size_of::<Run>(),
            Call::IrqLine => size_of::<IrqLine>(),
            Call::Msi => size_of::<Msi>(),
            Call::DoorbellAdd | Call::DoorbellRemove => size_of::<DoorbellChange>(),
            Call::Kick => size_of::<Kick>(),
            Call::Stats => size_of::<Stats>(),
            Call::MemoryDiscard => size_of::<MemoryDiscard>(),
        }
    }

    /// The ioctl number on Linux: `_IOWR('V', number, size)` (Linux `ioctl-number.rst`).
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "no structure here comes near the 14 bits of an ioctl's size")]
    pub const fn linux_number(self) -> u32 {
        const READ_WRITE: u32 = 3 << 30;
        READ_WRITE | (self.size() as u32) << 16 | (b'V' as u32) << 8 | self as u32
    }

    /// The device control code on NT: `CTL_CODE(0xC051, 0x800 + number, METHOD_BUFFERED, FILE_READ_ACCESS | FILE_WRITE_ACCESS)`.
    #[must_use]
    pub const fn nt_code(self) -> u32 {
        Self::NT_BASE + ((self as u32) << 2)
    }

    /// The code of the first call.
    const NT_BASE: u32 = 0xC051 << 16 | 3 << 14 | 0x800 << 2;

    /// The call with this Linux ioctl number.
    #[must_use]
    #[inline]
    pub fn from_linux_number(number: u32) -> Option<Self> {
        const RUN: u32 = Call::Run.linux_number();
        if number == RUN {
            // The one that comes often.
            return Some(Self::Run);
        }
        let call = *Self::ALL.get((number & 0xff) as usize)?;
        (call.linux_number() == number).then_some(call)
    }

    /// The call with this NT device control code.
    #[must_use]
    #[inline]
    pub fn from_nt_code(code: u32) -> Option<Self> {
        let call = *Self::ALL.get((code.checked_sub(Self::NT_BASE)? >> 2) as usize)?;
        (call.nt_code() == code).then_some(call)
    }
}

/// A switch engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum EngineKind {
    /// In a request: the best one that this machine has.
    Auto = 0,
    /// AMD-V with nested paging.
    Svm = 1,
    /// Intel VT-x with EPT and unrestricted guest.
    Vmx = 2,
    /// The cooperative ring-0 world switch.
    Coop = 3,
}

impl EngineKind {
    /// The engine with this number.
    #[must_use]
    pub const fn from_u32(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Auto),
            1 => Some(Self::Svm),
            2 => Some(Self::Vmx),
            3 => Some(Self::Coop),
            _ => None,
        }
    }

    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Svm => "svm",
            Self::Vmx => "vmx",
            Self::Coop => "coop",
        }
    }
}

/// Whether an engine can run here, and if not, why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum EngineStatus {
    /// It can run guests.
    Usable = 0,
    /// This driver was built without it.
    NotBuilt = 1,
    /// The CPU does not have the extension.
    CpuLacks = 2,
    /// The CPU has it, the firmware has switched it off (SVM: `VM_CR.SVMDIS`, APM vol. 2, 15.4; VMX:
    /// `IA32_FEATURE_CONTROL`, SDM vol. 3, 24.7).
    DisabledByFirmware = 3,
    /// Another hypervisor holds it (SVM: `EFER.SVME` was already set; VMX: `CR4.VMXE` was).
    Taken = 4,
    /// The CPU has the extension, but not nested paging.
    NoNestedPaging = 5,
    /// The CPU has VT-x, but without unrestricted guest.
    NoUnrestrictedGuest = 6,
    /// Hyper-V runs this machine, a virtual one of its own or the Windows that it belongs to, and does not offer the
    /// extension in it.
    HiddenByHyperV = 7,
    /// The same with another hypervisor.
    HiddenByHypervisor = 8,
    /// The CPU has VT-x, but not all controls that the engine needs: it is too old, or a hypervisor hides them.
    LacksControls = 9,
    /// The host's kernel runs with a shadow stack (`CR4.CET`, `IA32_S_CET.SH_STK_EN`), which the cooperative
    /// world switch does not carry over.
    ShadowStackOn = 10,
    /// The host's kernel takes its events by FRED (`CR4.FRED`) and not by the interrupt descriptor table, which the cooperative
    /// world switch needs.
    FredOn = 11,
}

impl EngineStatus {
    /// The status with this number.
    #[must_use]
    pub const fn from_u32(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Usable),
            1 => Some(Self::NotBuilt),
            2 => Some(Self::CpuLacks),
            3 => Some(Self::DisabledByFirmware),
            4 => Some(Self::Taken),
            5 => Some(Self::NoNestedPaging),
            6 => Some(Self::NoUnrestrictedGuest),
            7 => Some(Self::HiddenByHyperV),
            8 => Some(Self::HiddenByHypervisor),
            9 => Some(Self::LacksControls),
            10 => Some(Self::ShadowStackOn),
            11 => Some(Self::FredOn),
            _ => None,
        }
    }
}

/// Structure of [`Call::Handshake`].
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Handshake {
    /// In: [`crate::MAGIC`].
    pub magic: u32,
    /// In: the loader's [`crate::VERSION`]. Out: the driver's. The driver answers also when they differ, then takes no
    /// other call on this handle.
    pub version: u32,
    /// Out: [`EngineStatus`] by [`EngineKind`]; the first entry (auto) is the best of the others.
    pub engines: [u32; 4],
    /// Out: rate of the guest's time stamp counter, in kHz.
    pub tsc_khz: u32,
    /// Out: [`crate::MAX_VCPUS`] of this driver.
    pub max_vcpus: u32,
    /// Out: RAM that the host could give to guests now, in bytes; an estimate.
    pub memory_available: u64,
}
const_assert_eq!(size_of::<Handshake>(), 40);

/// Structure of [`Call::VmCreate`].
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VmCreate {
    /// In: the wanted [`EngineKind`]. Out: the one that runs the VM.
    pub engine: u32,
    /// In: how many vCPUs it will have, 1 to [`crate::MAX_VCPUS`]; CPUID shows them.
    pub vcpus: u32,
}
const_assert_eq!(size_of::<VmCreate>(), 8);

/// Structure of [`Call::MemoryAdd`]. The driver allocates zeroed host memory, now or where it is first touched, and guest and
/// loader share it.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemoryAdd {
    /// In: first guest-physical address, a multiple of [`crate::PAGE_SIZE`].
    pub gpa: u64,
    /// In: bytes, a multiple of [`crate::PAGE_SIZE`], not 0, not over another region or an APIC.
    pub size: u64,
    /// Out: on Linux the offset to give to `mmap` on the handle; on NT the region's address in the caller.
    pub map: u64,
    /// Out: 1 where host memory comes when it is first touched and [`MemoryDiscard`] gives it back, else 0.
    pub on_demand: u64,
}
const_assert_eq!(size_of::<MemoryAdd>(), 32);

/// Structure of [`Call::MemoryDiscard`]. No vCPU of the VM runs meanwhile. Host memory is given back by aligned 2 MiB, those that
/// lie wholly in the range; a page of it that the loader has mapped lives on there until it is unmapped. What is touched again
/// is zeros.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemoryDiscard {
    /// In: first guest-physical address, a multiple of [`crate::PAGE_SIZE`].
    pub gpa: u64,
    /// In: bytes, a multiple of [`crate::PAGE_SIZE`]. 0 asks for `allocated` only, and vCPUs may run.
    pub size: u64,
    /// Out: bytes that were given back.
    pub freed: u64,
    /// Out: bytes of host memory that the VM's RAM has now.
    pub allocated: u64,
}
const_assert_eq!(size_of::<MemoryDiscard>(), 32);

/// Structure of [`Call::VcpuCreate`].
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VcpuCreate {
    /// In: its number, which is its local APIC's id too; below [`crate::MAX_VCPUS`], and the next free one.
    pub vcpu: u32,
    /// 0 or [`VcpuCreate::CHECKS`].
    pub flags: u32,
}
const_assert_eq!(size_of::<VcpuCreate>(), 8);

impl VcpuCreate {
    /// The guest can have its page tables checked ([`crate::paravirtual::CHECK_CALL`]); for tests, and for the engine `coop` only.
    pub const CHECKS: u32 = 1;
}

/// Structure of [`Call::IrqLine`].
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IrqLine {
    /// In: input of the I/O APIC, below [`crate::MAX_GSI`].
    pub gsi: u32,
    /// In: 1 asserted, 0 not.
    pub level: u32,
}
const_assert_eq!(size_of::<IrqLine>(), 8);

/// Structure of [`Call::Msi`] (Intel SDM vol. 3, 11.11; PCI 3.0, 6.8).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Msi {
    /// In: message address.
    pub address: u64,
    /// In: message data.
    pub data: u32,
    /// Must be 0.
    pub reserved: u32,
}
const_assert_eq!(size_of::<Msi>(), 16);

/// Where a doorbell's address lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum DoorbellSpace {
    /// An I/O port.
    Port = 0,
    /// Guest-physical memory.
    Memory = 1,
}

/// Structure of [`Call::DoorbellAdd`] and [`Call::DoorbellRemove`]: guest stores to the address, of any value and of at most
/// `width` bytes, signal the event and go on without leaving the driver.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DoorbellChange {
    /// In: port or guest-physical address.
    pub address: u64,
    /// In: [`DoorbellSpace`].
    pub space: u32,
    /// In: 1, 2, 4 or 8 bytes.
    pub width: u32,
    /// In: eventfd on Linux, event handle on NT; unused by remove.
    pub event: i64,
}
const_assert_eq!(size_of::<DoorbellChange>(), 24);

/// Structure of [`Call::Kick`].
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Kick {
    /// In: the vCPU.
    pub vcpu: u32,
    /// Must be 0.
    pub reserved: u32,
}
const_assert_eq!(size_of::<Kick>(), 8);

/// What [`Stats`] counts, an index into its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum StatsKind {
    /// Every exit of the guest to the driver.
    Exits = 0,
    /// Those that handed an interrupt to the host.
    HostInterrupts = 1,
    /// Those that the driver answered without the host running in between.
    Fast = 2,
    /// Returns to the loader.
    ToLoader = 3,
    /// Times that the vCPU waited in `HLT`.
    Halts = 4,
    /// Doorbells rung.
    Doorbells = 5,
    /// Interrupts given to the guest.
    Injections = 6,
    /// Instructions that the driver emulated.
    Emulated = 7,
}

/// Structure of [`Call::Stats`].
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Stats {
    /// In: the vCPU.
    pub vcpu: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Out: counts by [`StatsKind`].
    pub counts: [u64; 8],
}
const_assert_eq!(size_of::<Stats>(), 72);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_every_call_is_found_by_its_numbers() {
        for (number, call) in Call::ALL.into_iter().enumerate() {
            assert_eq!(call as usize, number);
            assert_eq!(Call::from_linux_number(call.linux_number()), Some(call));
            assert_eq!(Call::from_nt_code(call.nt_code()), Some(call));
        }
    }

    #[test]
    fn test_a_number_with_another_size_is_refused() {
        assert_eq!(Call::from_linux_number(Call::Run.linux_number() + (1 << 16)), None);
        assert_eq!(Call::from_linux_number(0xff), None);
    }

    #[test]
    fn test_codes_beside_ours_are_refused() {
        let first = Call::ALL[0].nt_code();
        for code in [0, first - 4, first | 1, first & !(1 << 14), first + 4 * 14, u32::MAX] {
            assert_eq!(Call::from_nt_code(code), None, "{code:#x}");
        }
    }
}
