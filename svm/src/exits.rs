//! From exit codes to core's exits.

use covisor_abi::KillReason;
use covisor_core::exit::ControlRegister;
use covisor_core::exit::Exception;
use covisor_core::exit::Exit;
use covisor_core::exit::MemoryAccess;
use covisor_core::exit::PortAccess;

use crate::exit_code as code;
use crate::vmcb::Control;

/// EXITINFO1 of an I/O exit (APM vol. 2, 15.10.2).
mod io_info {
    /// IN, else OUT.
    pub(super) const IN: u64 = 1 << 0;
    /// INS, OUTS.
    pub(super) const STRING: u64 = 1 << 2;
    /// Lowest of the three size bits, for 1, 2 and 4 bytes.
    pub(super) const SIZE_SHIFT: u64 = 4;
    /// The port.
    pub(super) const PORT_SHIFT: u64 = 16;
}

/// EXITINFO1 of a nested page fault (15.25.6).
mod fault_info {
    /// A store.
    pub(super) const WRITE: u64 = 1 << 1;
    /// An instruction fetch.
    pub(super) const FETCH: u64 = 1 << 4;
    /// The guest's page walk.
    pub(super) const PAGE_WALK: u64 = 1 << 33;
}

/// The exit that a VMCB tells.
#[inline(always)]
pub(crate) fn decode(control: &Control) -> Exit {
    match control.exit_code {
        code::MSR => {
            if control.exit_info1 & 1 == 0 {
                Exit::ReadMsr
            } else {
                Exit::WriteMsr
            }
        }
        code::CPUID => Exit::Cpuid,
        code::IOIO => Exit::Port(port(control.exit_info1, control.exit_info2)),
        code::INTR => Exit::HostInterrupt,
        code::NESTED_PAGE_FAULT => Exit::Memory(MemoryAccess {
            gpa: control.exit_info2,
            write: control.exit_info1 & fault_info::WRITE != 0,
            fetch: control.exit_info1 & fault_info::FETCH != 0,
            page_walk: control.exit_info1 & fault_info::PAGE_WALK != 0,
        }),
        code::HLT => Exit::Halt,
        code::VINTR => Exit::InterruptWindow,
        code::VMMCALL => Exit::Hypercall,
        other => rare(control, other),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "fields of these widths")]
fn port(info1: u64, next_rip: u64) -> PortAccess {
    PortAccess {
        port: (info1 >> io_info::PORT_SHIFT) as u16,
        size: (info1 >> io_info::SIZE_SHIFT & 7) as u8,
        write: info1 & io_info::IN == 0,
        string: info1 & io_info::STRING != 0,
        next_rip,
    }
}

/// Exceptions that have an error code (APM vol. 2, table 8-1), by vector: #DF, #TS, #NP, #SS, #GP, #PF, #AC, #CP, #VC, #SX.
const ERROR_CODES: u32 = 1 << 8 | 0x1f << 10 | 1 << 17 | 1 << 21 | 1 << 29 | 1 << 30;

/// An exception whose error code is in EXITINFO1 (15.12).
#[expect(clippy::cast_possible_truncation, reason = "a vector below 32, and an error code of 32 bits")]
fn exception(exit_code: u64, info1: u64) -> Exception {
    let vector = (exit_code - code::EXCEPTION) as u8;
    Exception { vector, error_code: (ERROR_CODES >> vector & 1 != 0).then_some(info1 as u32) }
}

#[cold]
fn rare(control: &Control, exit_code: u64) -> Exit {
    match exit_code {
        code::NMI | code::SMI | code::INIT | code::FERR_FREEZE => Exit::HostInterrupt,
        code::CR0_SELECTIVE_WRITE => Exit::ControlRegister(ControlRegister::Cr0),
        code::WRITE_CR4 => Exit::ControlRegister(ControlRegister::Cr4),
        code::WRITE_CR8 => Exit::ControlRegister(ControlRegister::Cr8),
        code::READ_DR0..=code::WRITE_DR15 => Exit::DebugRegister,
        code::PAUSE => Exit::Pause,
        code::XSETBV => Exit::Xsetbv,
        code::INVD | code::WBINVD => Exit::CacheFlush,
        code::RDPMC => Exit::ReadPmc,
        code::EXCEPTION_DB => Exit::Exception(Exception { vector: Exception::DEBUG, error_code: None }),
        code::EXCEPTION_AC => Exit::Exception(Exception { vector: Exception::ALIGNMENT_CHECK, error_code: Some(0) }),
        code::EXCEPTION_MC => Exit::Exception(Exception { vector: Exception::MACHINE_CHECK, error_code: None }),
        // Only in a step over an IRET.
        code::EXCEPTION..=code::EXCEPTION_LAST => Exit::Exception(exception(exit_code, control.exit_info1)),
        code::TASK_SWITCH => Exit::Kill(KillReason::TaskSwitch, control.exit_info1 & 0xffff),
        code::SHUTDOWN => Exit::Shutdown,
        code::RSM
        | code::INVLPGA
        | code::VMRUN
        | code::VMLOAD
        | code::VMSAVE
        | code::STGI
        | code::CLGI
        | code::SKINIT
        | code::MONITOR
        | code::MWAIT
        | code::MWAIT_ARMED
        | code::RDPRU
        | code::INVLPGB..=code::TLBSYNC => Exit::Undefined,
        // VMEXIT_INVALID is -1 (appendix C); some CPUs store it as 32 bits.
        u64::MAX | 0xffff_ffff => Exit::Kill(KillReason::InvalidState, exit_code),
        other => Exit::Kill(KillReason::UnknownExit, other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_port_information_is_taken_apart() {
        let access = port(0x03f8 << 16 | 1 << 4, 0x1234);
        assert_eq!(access, PortAccess { port: 0x3f8, size: 1, write: true, string: false, next_rip: 0x1234 });
        let access = port(0xffff << 16 | 1 << 6 | 1 << 2 | 1, 0);
        assert_eq!(access, PortAccess { port: 0xffff, size: 4, write: false, string: true, next_rip: 0 });
    }
}
