//! What host and monitor share of a vCPU: its registers, why it was left, what it is told. One page, mapped at
//! [`crate::layout::AREA`] beside the guest, and in the host.

use core::mem::offset_of;
use core::mem::size_of;

use static_assertions::const_assert;
use static_assertions::const_assert_eq;
use zerocopy::FromBytes;
use zerocopy::Immutable;
use zerocopy::IntoBytes;
use zerocopy::KnownLayout;

/// The general registers, in the order of the instruction encoding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "registers by their names")]
pub struct Registers {
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rbx: u64,
    /// Not RSP: that is [`Frame::rsp`]. The host copies it here for those who want all registers in a row, and back.
    pub rsp_copy: u64,
    pub rbp: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
}
const_assert_eq!(offset_of!(Registers, rdi), 7 * 8);
const_assert_eq!(offset_of!(Registers, r15), 15 * 8);

impl Registers {
    /// Register `number` of the instruction encoding; only its low four bits count, and 4 is not RSP (see there).
    pub fn get_mut(&mut self, number: usize) -> &mut u64 {
        let registers: &mut [u64; 16] = zerocopy::transmute_mut!(self);
        &mut registers[number & 15]
    }
}

/// The guest's registers as a trap leaves them: the lower part is pushed by the entry code, the upper by the CPU (SDM vol. 3, 6.14.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Frame {
    /// The general registers.
    pub registers: Registers,
    /// Vector of the trap, or one of [`crate::area::SYSCALL`] and [`crate::area::SYSCALL32`].
    pub vector: u64,
    /// Its error code, or 0.
    pub error_code: u64,
    /// Instruction pointer.
    pub rip: u64,
    /// Code segment's selector.
    pub cs: u64,
    /// Flags.
    pub rflags: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Stack segment's selector.
    pub ss: u64,
}
const_assert_eq!(size_of::<Frame>(), 184);
// The entry code stores them where the frame begins.
const_assert_eq!(offset_of!(Frame, registers), 0);

/// [`Frame::vector`] of SYSCALL from 64-bit code.
pub const SYSCALL: u64 = 0x100;
/// [`Frame::vector`] of SYSCALL from 32-bit code.
pub const SYSCALL32: u64 = 0x101;
/// [`Frame::vector`] of no trap: the guest was on its way back when something came for the host.
pub const ATTENTION: u64 = 0x102;

/// Why the guest was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum ExitKind {
    /// Nothing; the host only is to look around.
    Attention = 0,
    /// The host's interrupt, NMI (2) or machine check (18) of vector `a`.
    Interrupt = 1,
    /// IN, OUT, INS or OUTS at RIP: port `a`, `b` bytes, `c` bit 0 write, bit 1 string; `d` is RIP behind it.
    Port = 2,
    /// RDMSR at RIP.
    ReadMsr = 3,
    /// WRMSR at RIP.
    WriteMsr = 4,
    /// CPUID at RIP.
    Cpuid = 5,
    /// XSETBV at RIP.
    Xsetbv = 6,
    /// The instruction at RIP accesses guest-physical address `a`, which the monitor does not serve: `b` 1 is a store, 0 a load.
    Memory = 7,
    /// The guest waits for an event.
    Halt = 8,
    /// The timer is to expire when the host's time stamp counter comes to `a`; `b` is 0 for no timer.
    SetTimer = 9,
    /// The guest is done with interrupt line `a`.
    EndOfInterrupt = 10,
    /// The guest switches its machine off (`a` 0) or resets it (1).
    Power = 11,
    /// The guest is ended: [`covisor_abi::KillReason`] `a`, detail `b`.
    Kill = 12,
    /// The guest writes `b`, `c` bytes, to port `a` by a hypercall: no instruction is to be skipped.
    PortWrite = 13,
}

impl ExitKind {
    /// The kind with this number.
    #[must_use]
    pub const fn from_number(number: u64) -> Option<Self> {
        Some(match number {
            0 => Self::Attention,
            1 => Self::Interrupt,
            2 => Self::Port,
            3 => Self::ReadMsr,
            4 => Self::WriteMsr,
            5 => Self::Cpuid,
            6 => Self::Xsetbv,
            7 => Self::Memory,
            8 => Self::Halt,
            9 => Self::SetTimer,
            10 => Self::EndOfInterrupt,
            11 => Self::Power,
            12 => Self::Kill,
            13 => Self::PortWrite,
            _ => return None,
        })
    }
}

/// Why the guest was left, with what that needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "see `ExitKind`")]
pub struct ExitRecord {
    /// Number of an [`ExitKind`].
    pub kind: u64,
    pub a: u64,
    pub b: u64,
    pub c: u64,
    pub d: u64,
}

/// What the host tells the guest at the next entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Answer {
    /// Interrupt lines that came, a bit each.
    pub lines: u64,
    /// 1: the timer expired.
    pub timer: u64,
    /// 1: `vector` is to be raised at RIP, with `error_code` where it has one, and CR2 of the area for #PF.
    pub exception: u64,
    /// Its vector.
    pub vector: u64,
    /// Its error code.
    pub error_code: u64,
}

/// The guest's segment registers and bases that the CPU holds while it runs. The crossing saves and loads them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Segments {
    /// Selectors.
    pub ds: u64,
    /// As above.
    pub es: u64,
    /// As above.
    pub fs: u64,
    /// As above.
    pub gs: u64,
    /// Base of FS.
    pub fs_base: u64,
    /// Base of GS in the current mode (kernel or user).
    pub gs_base: u64,
    /// Base of GS in the other mode.
    pub other_gs_base: u64,
}

/// [`Area::mode`]: the guest's kernel runs.
pub const MODE_KERNEL: u64 = 0;
/// [`Area::mode`]: a program of the guest's runs.
pub const MODE_USER: u64 = 1;

/// DR6 that tells of nothing.
pub const DR6_RESET: u64 = 0xffff_0ff0;

/// What the entry code knows of the guest's kernel.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Quick {
    /// Handler of system calls of 64-bit programs, if it is to have events masked; else 0.
    pub syscall_handler: u64,
    /// Where the kernel has its stack then, a multiple of 16.
    pub kernel_stack: u64,
    /// Address of its `vcpu_info`, the monitor's.
    pub vcpu_info: u64,
    /// Where RAX is for a moment.
    pub rax: u64,
}

/// The page.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Area {
    /// The register frame's end has to be a multiple of 16.
    pub padding: u64,
    /// The guest's registers. RSP0 points behind it.
    pub frame: Frame,
    /// [`MODE_KERNEL`] or [`MODE_USER`].
    pub mode: u64,
    /// CR3 of the guest's kernel: the monitor runs with it.
    pub kernel_cr3: u64,
    /// CR3 of the guest's user mode, or 0 where it has none.
    pub user_cr3: u64,
    /// Where the entry code of SYSCALL puts RSP for a moment.
    pub scratch: u64,
    /// CR0 that the guest runs with; its TS bit follows `fpu_taskswitch`.
    pub cr0: u64,
    /// CR2 of the last page fault, or of the one in `answer`.
    pub cr2: u64,
    /// Guest-physical address of the guest's kernel L4: its CR3 as it sees it.
    pub guest_cr3: u64,
    /// DR0 to DR3, DR6 and DR7 of the guest, checked. Its DR6 is here only: the CPU's is [`DR6_RESET`] but while a debug exception is
    /// served.
    pub debug: [u64; 6],
    /// Segments.
    pub segments: Segments,
    /// Why the guest was left.
    pub exit: ExitRecord,
    /// What it is told.
    pub answer: Answer,
    /// An NMI (bit 0) or a machine check (bit 1) came where it could not be handed on at once; the host takes it over.
    pub pending_host: u64,
    /// CR3 of the transition root.
    pub transition_cr3: u64,
    /// Where the world switch goes on in the host: the address of its code, and the stack pointer.
    pub host_rip: u64,
    /// As above.
    pub host_rsp: u64,
    /// What the entry code needs for a system call and the return from it, without the monitor's other code.
    pub quick: Quick,
    /// Monitor has begun: the first entry starts the guest.
    pub started: u64,
}
const_assert!(size_of::<Area>() <= 4096);
const_assert_eq!((offset_of!(Area, frame) + size_of::<Frame>()) % 16, 0);
