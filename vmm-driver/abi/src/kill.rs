//! Why the driver ended a guest, in numbers for the interface and in words for the user.

use core::fmt;

use crate::EntryCheck;

/// Why the driver ended a guest. Each comes with one number, `detail`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum KillReason {
    /// The CPU refused the guest's state at entry (SVM: `VMEXIT_INVALID`, APM vol. 2, 15.5.1); detail: exit code.
    InvalidState = 1,
    /// The guest uses device memory by an instruction that is not emulated; detail: first bytes, the lowest first.
    UnsupportedInstruction = 2,
    /// The guest fetches instructions from device memory; detail: its guest-physical address.
    CodeOutsideRam = 3,
    /// The engine left the guest for a reason that the driver does not know; detail: the reason's code.
    UnknownExit = 4,
    /// The guest hands faults to itself without end; detail: the vector.
    FaultLoop = 5,
    /// A machine check of the host hit the guest; detail: 0.
    MachineCheck = 6,
    /// Guest page tables lie in device memory; detail: their guest-physical address.
    PageTableOutsideRam = 7,
    /// A task switch through a task gate, which no 64-bit system uses; detail: the task's selector.
    TaskSwitch = 8,
    /// The nested page tables are wrong, which is the driver's fault (VMX: EPT misconfiguration, SDM vol. 3, 29.3.3);
    /// detail: the guest-physical address that was looked up.
    NestedTables = 9,
    /// VT-x refused the guest's state at entry (SVM has [`KillReason::InvalidState`] for it); detail: the number of the check
    /// that failed (SDM vol. 3, 27.2 and 27.3).
    EntryRefused = 10,
    /// The guest's kernel says that it crashed (Xen's `SCHEDOP_shutdown`); detail: the reason that it gave.
    GuestCrashed = 11,
    /// An event or exception cannot be handed to the guest's kernel, since its stack cannot be written; detail: the stack pointer.
    BadKernelStack = 12,
    /// The guest has no handler for what it has to be told; detail: the vector, or 256 for the callback of events, 257 for that of
    /// failed returns, 258 for that of system calls.
    NoHandler = 13,
    /// The guest's kernel goes to user mode without page tables for it; detail: 0.
    NoUserPageTables = 14,
    /// The monitor met an exception of its own, which is the driver's fault; detail: its vector in the low byte, and where it was above.
    MonitorFault = 15,
    /// Page tables with a page of the driver's or the host's in them were found, which is the driver's fault; detail: where.
    ForeignPage = 16,
    /// The CPU raised a debug exception at the first instruction of another one's handler, so it is lost where the guest was;
    /// detail: 0.
    DebugExceptionLost = 17,
    /// The host has no memory left for RAM that the guest has begun to use; detail: its guest-physical address.
    NoHostMemory = 18,
}

impl KillReason {
    /// The reason with this number.
    #[must_use]
    pub const fn from_u32(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::InvalidState),
            2 => Some(Self::UnsupportedInstruction),
            3 => Some(Self::CodeOutsideRam),
            4 => Some(Self::UnknownExit),
            5 => Some(Self::FaultLoop),
            6 => Some(Self::MachineCheck),
            7 => Some(Self::PageTableOutsideRam),
            8 => Some(Self::TaskSwitch),
            9 => Some(Self::NestedTables),
            10 => Some(Self::EntryRefused),
            11 => Some(Self::GuestCrashed),
            12 => Some(Self::BadKernelStack),
            13 => Some(Self::NoHandler),
            14 => Some(Self::NoUserPageTables),
            15 => Some(Self::MonitorFault),
            16 => Some(Self::ForeignPage),
            17 => Some(Self::DebugExceptionLost),
            18 => Some(Self::NoHostMemory),
            _ => None,
        }
    }

    /// The reason and its detail as a sentence.
    #[must_use]
    pub const fn with_detail(self, detail: u64) -> impl fmt::Display {
        Sentence(self, detail)
    }
}

/// A [`KillReason`] with its detail.
struct Sentence(KillReason, u64);

impl fmt::Display for Sentence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(reason, detail) = *self;
        match reason {
            KillReason::InvalidState => {
                write!(f, "the CPU refused the guest's register state (exit code {detail:#x})")
            }
            KillReason::UnsupportedInstruction => {
                f.write_str("the guest accessed device memory by an instruction that is not emulated (bytes")?;
                for byte in detail.to_le_bytes() {
                    write!(f, " {byte:02x}")?;
                }
                f.write_str(")")
            }
            KillReason::CodeOutsideRam => {
                write!(f, "the guest jumped to guest-physical address {detail:#x}, where it has no RAM")
            }
            KillReason::UnknownExit => write!(f, "the CPU left the guest for an unknown reason (code {detail:#x})"),
            KillReason::FaultLoop => write!(f, "the guest raised exception {detail} to itself without end"),
            KillReason::MachineCheck => f.write_str("the host reported a hardware error (machine check) in the guest"),
            KillReason::PageTableOutsideRam => {
                write!(f, "the guest's page tables lie at guest-physical address {detail:#x}, where it has no RAM")
            }
            KillReason::TaskSwitch => {
                write!(f, "the guest switched tasks through a task gate (selector {detail:#x}), which is not supported")
            }
            KillReason::NestedTables => {
                write!(f, "the driver's page tables for guest-physical address {detail:#x} are wrong")
            }
            KillReason::EntryRefused => {
                let check = u32::try_from(detail).ok().and_then(EntryCheck::from_u32).unwrap_or(EntryCheck::Unknown);
                write!(f, "the CPU refused the guest's register state at entry: {check}")
            }
            KillReason::GuestCrashed => write!(f, "the guest's kernel says that it crashed (reason {detail})"),
            KillReason::BadKernelStack => {
                write!(
                    f,
                    "the guest's kernel cannot be told of an event, for its stack at {detail:#x} cannot be written"
                )
            }
            KillReason::NoHandler => write!(f, "the guest's kernel has no handler for {}", Handler(detail)),
            KillReason::NoUserPageTables => {
                f.write_str("the guest's kernel went to user mode without page tables for it")
            }
            KillReason::MonitorFault => write!(
                f,
                "the driver's monitor met exception {} at {:#x}, which is an error in covisor",
                detail & 0xff,
                detail >> 8 | 0xff << 56
            ),
            KillReason::ForeignPage => {
                write!(
                    f,
                    "the guest's page tables reached a page that is not its own (at {detail:#x}), which is an error in covisor"
                )
            }
            KillReason::DebugExceptionLost => f.write_str(
                "the CPU raised a debug exception within another one (a flaw that emulated CPUs have where a single step meets \
                 a watchpoint), so it is lost where the guest was",
            ),
            KillReason::NoHostMemory => write!(
                f,
                "the host has no memory left for RAM that the guest has begun to use (at guest-physical address {detail:#x}): close \
                 programs, or run fewer guests at once"
            ),
        }
    }
}

/// What a guest has no handler for.
struct Handler(u64);

impl fmt::Display for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            256 => f.write_str("events"),
            257 => f.write_str("returns that failed"),
            258 => f.write_str("system calls"),
            vector => write!(f, "exception {vector}"),
        }
    }
}
