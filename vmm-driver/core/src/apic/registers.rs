//! The local APIC's registers and their layout (Intel SDM vol. 3, chapter 11; AMD APM vol. 2, chapter 16).

/// A register: its number is its offset in the xAPIC page divided by 16, and its x2APIC MSR less 0x800
/// (SDM vol. 3, table 11-1 and table 11-6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Register {
    /// APIC id.
    Id = 0x02,
    /// Version and number of LVT entries.
    Version = 0x03,
    /// Task priority.
    TaskPriority = 0x08,
    /// Arbitration priority, which no CPU has had since the Pentium 4.
    ArbitrationPriority = 0x09,
    /// Processor priority.
    ProcessorPriority = 0x0a,
    /// End of interrupt.
    EndOfInterrupt = 0x0b,
    /// Remote read, which no CPU has had since the Pentium 4.
    RemoteRead = 0x0c,
    /// Logical destination.
    LogicalDestination = 0x0d,
    /// Destination format, xAPIC only.
    DestinationFormat = 0x0e,
    /// Spurious interrupt vector and software enable.
    Spurious = 0x0f,
    /// Error status.
    ErrorStatus = 0x28,
    /// Interrupt command, in xAPIC its low half.
    Command = 0x30,
    /// High half of the interrupt command, xAPIC only.
    CommandHigh = 0x31,
    /// Timer.
    LvtTimer = 0x32,
    /// Thermal sensor.
    LvtThermal = 0x33,
    /// Performance counters.
    LvtPerformance = 0x34,
    /// Pin LINT0.
    LvtLint0 = 0x35,
    /// Pin LINT1.
    LvtLint1 = 0x36,
    /// Error.
    LvtError = 0x37,
    /// Count that the timer starts from.
    InitialCount = 0x38,
    /// Count that the timer has come to.
    CurrentCount = 0x39,
    /// Timer's divisor.
    Divide = 0x3e,
    /// Self IPI, x2APIC only.
    SelfIpi = 0x3f,
}

/// First of the eight in-service registers.
pub const IN_SERVICE: u32 = 0x10;
/// First of the eight trigger mode registers.
pub const TRIGGER_MODE: u32 = 0x18;
/// First of the eight interrupt request registers.
pub const REQUEST: u32 = 0x20;
/// One past the last interrupt request register.
pub const REQUEST_END: u32 = 0x28;

impl Register {
    /// The register with this number; the three vector arrays are not among them.
    #[must_use]
    pub const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0x02 => Self::Id,
            0x03 => Self::Version,
            0x08 => Self::TaskPriority,
            0x09 => Self::ArbitrationPriority,
            0x0a => Self::ProcessorPriority,
            0x0b => Self::EndOfInterrupt,
            0x0c => Self::RemoteRead,
            0x0d => Self::LogicalDestination,
            0x0e => Self::DestinationFormat,
            0x0f => Self::Spurious,
            0x28 => Self::ErrorStatus,
            0x30 => Self::Command,
            0x31 => Self::CommandHigh,
            0x32 => Self::LvtTimer,
            0x33 => Self::LvtThermal,
            0x34 => Self::LvtPerformance,
            0x35 => Self::LvtLint0,
            0x36 => Self::LvtLint1,
            0x37 => Self::LvtError,
            0x38 => Self::InitialCount,
            0x39 => Self::CurrentCount,
            0x3e => Self::Divide,
            0x3f => Self::SelfIpi,
            _ => return None,
        })
    }

    /// The bits that software may set; `None` where the register is read-only. xAPIC ignores the others, x2APIC faults
    /// (SDM vol. 3, 11.12.1.3).
    #[must_use]
    pub const fn writable(self) -> Option<u32> {
        match self {
            Self::TaskPriority | Self::SelfIpi => Some(0xff),
            Self::EndOfInterrupt | Self::ErrorStatus => Some(0),
            Self::LogicalDestination | Self::CommandHigh => Some(0xff00_0000),
            Self::DestinationFormat => Some(0xf000_0000),
            Self::Spurious => Some(spurious::WRITABLE),
            Self::Command => Some(Command::WRITABLE),
            Self::LvtTimer => Some(0x0007_00ff | Lvt::READ_ONLY),
            Self::LvtThermal | Self::LvtPerformance | Self::LvtError => Some(0x0001_07ff | Lvt::READ_ONLY),
            Self::LvtLint0 | Self::LvtLint1 => Some(0x0001_a7ff | Lvt::READ_ONLY),
            Self::InitialCount => Some(u32::MAX),
            Self::Divide => Some(0xb),
            Self::Id
            | Self::Version
            | Self::ArbitrationPriority
            | Self::ProcessorPriority
            | Self::RemoteRead
            | Self::CurrentCount => None,
        }
    }
}

/// The spurious interrupt vector register.
pub mod spurious {
    /// The APIC accepts interrupts.
    pub const ENABLED: u32 = 1 << 8;
    /// Vector, enable, focus processor checking.
    pub const WRITABLE: u32 = 0x3ff;
    /// After reset.
    pub const RESET: u32 = 0xff;
}

/// The error status register (SDM vol. 3, 11.5.3).
pub mod error {
    /// Software sent an interrupt with a vector below 16.
    pub const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
    /// An interrupt with a vector below 16 arrived.
    pub const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
    /// Software touched a register that does not exist.
    pub const ILLEGAL_REGISTER: u32 = 1 << 7;
}

/// Version register: version 0x14, entries 0 to 5 in the local vector table, no EOI broadcast suppression.
pub const VERSION: u32 = 5 << 16 | 0x14;

/// Destination format after reset: the flat model.
pub const FLAT: u32 = u32::MAX;

/// Vectors below this one belong to exceptions and cannot be interrupts.
pub const FIRST_VECTOR: u8 = 16;

/// An entry of the local vector table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lvt(pub u32);

impl Lvt {
    /// Interrupts from this source are held back.
    pub const MASKED: u32 = 1 << 16;
    /// The timer's: it counts to a value of the time stamp counter.
    pub const TSC_DEADLINE: u32 = 2 << 17;
    /// Delivery status and remote IRR: software's writes to them are ignored, and here they are always 0.
    pub const READ_ONLY: u32 = 1 << 12 | 1 << 14;
    /// After reset.
    pub const RESET: Self = Self(Self::MASKED);

    /// Whether the source is held back.
    #[must_use]
    pub const fn masked(self) -> bool {
        self.0 & Self::MASKED != 0
    }

    /// The vector.
    #[must_use]
    pub const fn vector(self) -> u8 {
        self.0.to_le_bytes()[0]
    }

    /// Bits 17 and 18 of the timer's entry.
    #[must_use]
    pub const fn timer_mode(self) -> u32 {
        self.0 >> 17 & 3
    }
}

/// The interrupt command register (SDM vol. 3, 11.6.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Command(pub u64);

impl Command {
    /// Bits of the low half that software may set.
    pub const WRITABLE: u32 = 0x000c_cfff;

    /// Vector.
    #[must_use]
    pub const fn vector(self) -> u8 {
        self.0.to_le_bytes()[0]
    }

    /// Delivery mode, as coded.
    #[must_use]
    pub const fn delivery(self) -> u8 {
        self.0.to_le_bytes()[1] & 7
    }

    /// Logical destination, else physical.
    #[must_use]
    pub const fn logical(self) -> bool {
        self.0 & 1 << 11 != 0
    }

    /// INIT: the "level de-assert" that only the 82489DX and P6 knew; later CPUs ignore it.
    #[must_use]
    pub const fn is_deassert(self) -> bool {
        self.0 & 1 << 14 == 0 && self.0 & 1 << 15 != 0
    }

    /// Destination shorthand: 0 none, 1 self, 2 all, 3 all but self.
    #[must_use]
    pub const fn shorthand(self) -> u8 {
        self.0.to_le_bytes()[2] >> 2 & 3
    }

    /// The upper half: x2APIC's destination; xAPIC has it in its top byte.
    #[must_use]
    pub const fn high(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The lower half.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
    pub const fn low(self) -> u32 {
        self.0 as u32
    }
}

/// `IA32_APIC_BASE` (SDM vol. 3, 11.4.4 and 11.12.1).
pub mod apic_base {
    /// The vCPU is the one that boots.
    pub const BOOTSTRAP: u64 = 1 << 8;
    /// x2APIC mode.
    pub const EXTENDED: u64 = 1 << 10;
    /// The APIC is on.
    pub const ENABLED: u64 = 1 << 11;
}
