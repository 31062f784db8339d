//! Why the CPU left the guest: one vocabulary for all engines.

use covisor_abi::KillReason;

/// An access to an I/O port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortAccess {
    /// The port.
    pub port: u16,
    /// Bytes: 1, 2 or 4.
    pub size: u8,
    /// OUT, else IN.
    pub write: bool,
    /// INS or OUTS; the instruction has to be decoded for its operands.
    pub string: bool,
    /// Address of the next instruction; 0 where the engine does not know.
    pub next_rip: u64,
}

/// An access to guest-physical memory that is not mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryAccess {
    /// Guest-physical address.
    pub gpa: u64,
    /// A store.
    pub write: bool,
    /// An instruction fetch.
    pub fetch: bool,
    /// The guest's page walk touched it, not its instruction.
    pub page_walk: bool,
}

/// A control register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlRegister {
    /// CR0.
    Cr0,
    /// CR3.
    Cr3,
    /// CR4.
    Cr4,
    /// CR8, the task priority.
    Cr8,
}

/// What a paravirtual guest wants of its machine's power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerRequest {
    /// Off.
    Off,
    /// Off and on again.
    Reset,
}

/// Why the CPU left the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// An interrupt, NMI, SMI or INIT for the host: it takes it as soon as it runs.
    HostInterrupt,
    /// The guest can take an interrupt now.
    InterruptWindow,
    /// The deadline of [`crate::engine::Vcpu::set_deadline`] has come, or nearly.
    Deadline,
    /// CPUID.
    Cpuid,
    /// RDMSR.
    ReadMsr,
    /// WRMSR.
    WriteMsr,
    /// IN, OUT, INS, OUTS.
    Port(PortAccess),
    /// Device memory, or nothing, at a guest-physical address.
    Memory(MemoryAccess),
    /// HLT. Of a paravirtual guest: its call to wait for an event, which the engine has ended already.
    Halt,
    /// PAUSE in a spin loop.
    Pause,
    /// VMMCALL or VMCALL.
    Hypercall,
    /// MOV to or from a control register, CLTS, LMSW, SMSW.
    ControlRegister(ControlRegister),
    /// MOV to or from a debug register.
    DebugRegister,
    /// XSETBV.
    Xsetbv,
    /// INVD or WBINVD: the host's caches stay as they are, the guest goes on.
    CacheFlush,
    /// RDPMC.
    ReadPmc,
    /// An instruction that guests do not have: #UD.
    Undefined,
    /// An exception that the engine intercepts, to hand on to the guest.
    Exception(Exception),
    /// Triple fault.
    Shutdown,
    /// A paravirtual guest sets its timer: to this value of the host's time stamp counter, which may have been, or off.
    SetTimer(Option<u64>),
    /// A paravirtual guest has served what came by this interrupt line.
    EndOfInterrupt {
        /// The line.
        gsi: u8,
    },
    /// A paravirtual guest switches its vCPU off for good.
    HaltForever,
    /// A paravirtual guest ends its machine.
    Power(PowerRequest),
    /// The engine ends the guest.
    Kill(KillReason, u64),
}

/// An exception (APM vol. 2, 8.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Its vector, below 32.
    pub vector: u8,
    /// Its error code, where the vector has one.
    pub error_code: Option<u32>,
}

impl Exception {
    /// #DB.
    pub const DEBUG: u8 = 1;
    /// #UD.
    pub const INVALID_OPCODE: Self = Self { vector: 6, error_code: None };
    /// #GP with error code 0.
    pub const GENERAL_PROTECTION: Self = Self { vector: 13, error_code: Some(0) };
    /// #AC.
    pub const ALIGNMENT_CHECK: u8 = 17;
    /// #MC.
    pub const MACHINE_CHECK: u8 = 18;

    /// #PF; the caller sets CR2.
    #[must_use]
    pub const fn page_fault(error_code: u32) -> Self {
        Self { vector: 14, error_code: Some(error_code) }
    }

    /// #SS with error code 0.
    pub const STACK: Self = Self { vector: 12, error_code: Some(0) };
}

/// Something to hand to the guest at its next entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Injection {
    /// An external interrupt.
    Interrupt(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// An exception, a fault of the instruction at RIP.
    Exception(Exception),
}
