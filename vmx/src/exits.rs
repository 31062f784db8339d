//! From exit reasons to core's exits.

use covisor_abi::EntryCheck;
use covisor_abi::KillReason;
use covisor_core::delivery::Event;
use covisor_core::engine::Vcpu;
use covisor_core::exit::ControlRegister;
use covisor_core::exit::Exception;
use covisor_core::exit::Exit;
use covisor_core::exit::MemoryAccess;
use covisor_core::exit::PortAccess;
use covisor_core::registers::SegmentName;

use crate::VmxVcpu;
use crate::entry_check;
use crate::exit_reason as reason;
use crate::field::Field;
use crate::instructions::vmread;
use crate::registers::Register;
use crate::segment;
use crate::vcpu::DR6_TRAPS;
use crate::vcpu::DR7_GENERAL_DETECT;
use crate::vcpu::INTERRUPTIBILITY_NMI;

/// Exit qualification of an I/O instruction (SDM vol. 3, table 28-5).
mod io {
    /// Bits 0 to 2: size in bytes, less 1.
    pub(super) const SIZE: u64 = 7;
    /// IN, else OUT.
    pub(super) const IN: u64 = 1 << 3;
    /// INS, OUTS.
    pub(super) const STRING: u64 = 1 << 4;
    /// The port.
    pub(super) const PORT_SHIFT: u64 = 16;
}

/// Exit qualification of an EPT violation (table 28-7).
mod violation {
    /// A store.
    pub(super) const WRITE: u64 = 1 << 1;
    /// An instruction fetch.
    pub(super) const FETCH: u64 = 1 << 2;
    /// The linear address is known.
    pub(super) const LINEAR_VALID: u64 = 1 << 7;
    /// The access was to what the linear address stands for, not to a page table.
    pub(super) const FINAL: u64 = 1 << 8;
}

/// Bit 12 of the exit qualification of an EPT violation, and of an exception's interruption information: IRET had ended the
/// blocking of NMIs before it faulted (28.2.3).
const NMI_UNBLOCKED_BY_IRET: u64 = 1 << 12;

/// Exit qualification of a control-register access (table 28-3).
mod control {
    /// Bits 0 to 3: the register.
    pub(super) const REGISTER: u64 = 0xf;
}

/// Interruption information (table 25-17): bits 8 to 10, the type.
mod interruption {
    use super::Event;

    /// A non-maskable interrupt.
    pub(super) const NMI: u32 = 2 << 8;
    /// INT1, which comes as #DB.
    pub(super) const PRIVILEGED_SOFTWARE: u32 = 5 << 8;

    pub(super) const fn kind(event: &Event) -> u32 {
        event.info & 7 << 8
    }
}

/// What the host has to be handed on before it goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum HostEvent {
    /// Nothing.
    #[default]
    None,
    /// The NMI that exited: the CPU has taken it.
    Nmi,
    /// The machine check that exited.
    MachineCheck,
}

/// A read-only field of 32 or 64 bits.
#[inline]
fn read(field: Field) -> u64 {
    // SAFETY: exits are decoded right after the exit, with the VMCS current.
    unsafe { vmread(field) }
}

/// The exit that the current VMCS tells, and the event that it interrupted.
#[inline(always)]
pub(crate) fn decode(vcpu: &mut VmxVcpu) -> (Exit, Event) {
    let why = read(Field::EXIT_REASON);
    vcpu.exit_reason = why;
    let exit = match why {
        reason::WRMSR => Exit::WriteMsr,
        reason::RDMSR => Exit::ReadMsr,
        reason::CPUID => Exit::Cpuid,
        reason::IO => Exit::Port(port(vcpu)),
        reason::EXTERNAL_INTERRUPT => Exit::HostInterrupt,
        reason::EPT_VIOLATION => return ept_violation(vcpu),
        reason::HLT => Exit::Halt,
        reason::INTERRUPT_WINDOW | reason::TPR_BELOW_THRESHOLD => Exit::InterruptWindow,
        reason::VMCALL => Exit::Hypercall,
        reason::PREEMPTION_TIMER if vcpu.deadline_has_come() => Exit::Deadline,
        // The turn is over, and an interrupt may wait for the host.
        reason::PREEMPTION_TIMER => Exit::HostInterrupt,
        other => return rare(vcpu, other),
    };
    (exit, Event::NONE)
}

#[expect(clippy::cast_possible_truncation, reason = "fields of these widths")]
fn port(vcpu: &VmxVcpu) -> PortAccess {
    let qualification = read(Field::EXIT_QUALIFICATION);
    let string = qualification & io::STRING != 0;
    PortAccess {
        port: (qualification >> io::PORT_SHIFT) as u16,
        size: (qualification & io::SIZE) as u8 + 1,
        write: qualification & io::IN == 0,
        string,
        next_rip: if string { 0 } else { vcpu.next_rip().unwrap_or(0) },
    }
}

/// The event whose delivery the exit interrupted.
fn interrupted() -> Event {
    let info = read(Field::IDT_VECTORING_INFO);
    if info & 1 << 31 == 0 {
        return Event::NONE;
    }
    event(info, Field::IDT_VECTORING_ERROR)
}

#[expect(clippy::cast_possible_truncation, reason = "both fields have 32 bits")]
fn event(info: u64, error: Field) -> Event {
    Event { info: info as u32, error: read(error) as u32 }
}

fn ept_violation(vcpu: &mut VmxVcpu) -> (Exit, Event) {
    let qualification = read(Field::EXIT_QUALIFICATION);
    let event = interrupted();
    if qualification & NMI_UNBLOCKED_BY_IRET != 0 && !event.is_valid() {
        block_nmis(vcpu);
    }
    let exit = Exit::Memory(MemoryAccess {
        gpa: read(Field::GUEST_PHYSICAL_ADDRESS),
        write: qualification & violation::WRITE != 0,
        fetch: qualification & violation::FETCH != 0,
        page_walk: qualification & (violation::LINEAR_VALID | violation::FINAL)
            != violation::LINEAR_VALID | violation::FINAL,
    });
    (exit, event)
}

/// NMIs are blocked again.
fn block_nmis(vcpu: &mut VmxVcpu) {
    let blocking = vcpu.registers.get(Register::INTERRUPTIBILITY);
    vcpu.registers.set(Register::INTERRUPTIBILITY, blocking | INTERRUPTIBILITY_NMI);
}

#[cold]
#[inline(never)]
fn rare(vcpu: &mut VmxVcpu, why: u64) -> (Exit, Event) {
    let exit = match why {
        reason::EXCEPTION_OR_NMI => return exception(vcpu),
        reason::INIT => Exit::HostInterrupt,
        reason::NMI_WINDOW => Exit::InterruptWindow,
        reason::TRIPLE_FAULT => Exit::Shutdown,
        reason::TASK_SWITCH => {
            return (Exit::Kill(KillReason::TaskSwitch, read(Field::EXIT_QUALIFICATION) & 0xffff), Event::NONE);
        }
        reason::CONTROL_REGISTER => Exit::ControlRegister(match read(Field::EXIT_QUALIFICATION) & control::REGISTER {
            3 => ControlRegister::Cr3,
            4 => ControlRegister::Cr4,
            8 => ControlRegister::Cr8,
            // CLTS and LMSW have 0 there, too.
            _ => ControlRegister::Cr0,
        }),
        reason::DEBUG_REGISTER => Exit::DebugRegister,
        reason::INVD | reason::WBINVD => Exit::CacheFlush,
        reason::RDPMC => Exit::ReadPmc,
        reason::PAUSE => Exit::Pause,
        reason::XSETBV => Exit::Xsetbv,
        reason::GETSEC
        | reason::RSM
        | reason::VMCLEAR..=reason::VMXON
        | reason::MWAIT
        | reason::MONITOR
        | reason::INVEPT
        | reason::INVVPID
        | reason::VMFUNC
        | reason::ENCLS => Exit::Undefined,
        reason::EPT_MISCONFIGURATION => Exit::Kill(KillReason::NestedTables, read(Field::GUEST_PHYSICAL_ADDRESS)),
        other if other & reason::ENTRY_FAILED != 0 => entry_failed(vcpu, other),
        other => Exit::Kill(KillReason::UnknownExit, other),
    };
    (exit, Event::NONE)
}

/// The entry did not come to the guest (SDM vol. 3, 27.8).
fn entry_failed(vcpu: &mut VmxVcpu, why: u64) -> Exit {
    match why & reason::BASIC {
        reason::INVALID_GUEST_STATE => {
            let check = entry_check::violated(vcpu);
            if check == EntryCheck::CsPrivilege && restore_stack_level(vcpu) {
                return Exit::HostInterrupt;
            }
            Exit::Kill(KillReason::EntryRefused, u64::from(check as u32))
        }
        reason::MACHINE_CHECK_AT_ENTRY => {
            vcpu.host_event = HostEvent::MachineCheck;
            Exit::Kill(KillReason::MachineCheck, 0)
        }
        _ => Exit::Kill(KillReason::UnknownExit, why),
    }
}

/// Gives an SS that cannot be used the privilege level that the CPU runs at, which is that of its code. Bochs' CPU (3.0) forgets it
/// when a return to ring 1 or 2 loads a null selector; others have it there always (SDM vol. 3, 25.4.1). Says whether it was wrong.
fn restore_stack_level(vcpu: &mut VmxVcpu) -> bool {
    let rights = |name| Register::access_rights(name);
    let (code, stack) = (vcpu.registers.get(rights(SegmentName::Cs)), vcpu.registers.get(rights(SegmentName::Ss)));
    match segment::with_level_of(stack, code) {
        Some(mended) => {
            vcpu.registers.set(rights(SegmentName::Ss), mended);
            true
        }
        None => false,
    }
}

/// An exception of the bitmap, or an NMI of the host.
fn exception(vcpu: &mut VmxVcpu) -> (Exit, Event) {
    /// A double fault: whether NMIs are blocked then is undefined (28.2.3).
    const DOUBLE_FAULT: u32 = 8;
    let info = read(Field::EXIT_INTERRUPTION_INFO);
    #[expect(clippy::cast_possible_truncation, reason = "the field has 32 bits")]
    let raised = Event { info: info as u32, error: 0 };
    let vector = raised.vector();
    if interruption::kind(&raised) == interruption::NMI {
        vcpu.host_event = HostEvent::Nmi;
        return (Exit::HostInterrupt, Event::NONE);
    }
    let interrupted = interrupted();
    if info & NMI_UNBLOCKED_BY_IRET != 0 && !interrupted.is_valid() && u32::from(vector) != DOUBLE_FAULT {
        block_nmis(vcpu);
    }
    let error_code = match vector {
        Exception::ALIGNMENT_CHECK => Some(0),
        _ => None,
    };
    match vector {
        Exception::MACHINE_CHECK => vcpu.host_event = HostEvent::MachineCheck,
        Exception::DEBUG => debug_exception(vcpu, &raised),
        _ => {}
    }
    (Exit::Exception(Exception { vector, error_code }), interrupted)
}

/// #DB that exits leaves DR6, DR7 and INT1 undone (28.1 and table 28-1).
fn debug_exception(vcpu: &mut VmxVcpu, raised: &Event) {
    let traps = read(Field::EXIT_QUALIFICATION) & DR6_TRAPS;
    let dr6 = vcpu.dr6();
    // B0 to B3 tell of this exception; the others stay until the guest clears them.
    vcpu.set_dr6(dr6 & !0xf | traps);
    let dr7 = vcpu.dr7();
    if dr7 & DR7_GENERAL_DETECT != 0 {
        vcpu.set_dr7(dr7 & !DR7_GENERAL_DETECT);
    }
    if interruption::kind(raised) == interruption::PRIVILEGED_SOFTWARE {
        let next = vcpu.rip().wrapping_add(read(Field::EXIT_INSTRUCTION_LENGTH));
        vcpu.set_rip(next);
    }
    vcpu.keep_single_step();
}
