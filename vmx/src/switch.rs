//! The way into the guest and back.
//!
//! ```text
//! run()     the vCPU's VMCS made current, the guest's state loaded ──┐
//!   ┌────────────────────────────────────────────────────────────────┘
//!   ▼
//!   general registers ─► VMLAUNCH, VMRESUME ─► guest ─► exit ─► general registers
//!   ▲                                                                │
//!   │ Next::Resume                                                   ▼
//!   └────────────────────────────────────────────────────── on_exit(): core answers
//!                                                                    │ Next::Leave
//!                                  the host's state loaded ◄─────────┘
//! ```
//!
//! The inner loop is the fast path. Interrupts are off in it: those of the host end the guest's turn whatever its flags are,
//! stay pending, and are taken when core has switched them on again. An exit brings back the host's control registers,
//! segments, descriptor tables, EFER and SYSENTER MSRs; its SYSCALL MSRs and extended state stay put aside until the end.
//! It returns nowhere: `on_exit` is called *from* the loop, so all return addresses that are predicted between two entries
//! were pushed after the exit; the return stack is refilled only on the way out.

use core::arch::asm;
use core::mem::offset_of;

use covisor_abi::KillReason;
use covisor_abi::clear_kept_registers;
use covisor_abi::load_gprs;
use covisor_abi::store_gprs;
use covisor_core::delivery::Event;
use covisor_core::engine::ExitHandler;
use covisor_core::engine::Next;
use covisor_core::engine::Vcpu;
use covisor_core::exit::Exit;
use covisor_core::instructions as insn;
use covisor_core::registers::Gprs;

use crate::Cpu;
use crate::Vmx;
use crate::VmxVcpu;
use crate::controls::Secondary;
use crate::entry_check;
use crate::exits;
use crate::exits::HostEvent;
use crate::field::Field;
use crate::instructions as vmx;
use crate::instructions::vmread;
use crate::instructions::vmwrite;
use crate::registers::Register;

/// What the loop hands to [`on_exit`].
struct Context<'a, X> {
    engine: &'a Vmx,
    vcpu: *mut VmxVcpu,
    handler: &'a mut X,
}

/// Enters the guest until the handler wants to leave; see [`covisor_core::engine::Engine::run`].
///
/// # Safety
/// As there.
#[inline]
pub(crate) unsafe fn run<X: ExitHandler<Vmx>>(engine: &Vmx, cpu: &mut Cpu, vcpu: &mut VmxVcpu, handler: &mut X) {
    // SAFETY: by the caller.
    if unsafe { cpu.take(engine, vcpu) }.is_err() {
        handler.on_exit(vcpu, Exit::Kill(KillReason::EntryRefused, u64::from(entry_check::of_instruction(0) as u32)));
        return;
    }
    // SAFETY: by the caller; the VMCS is current.
    unsafe {
        cpu.tag(&engine.capabilities, vcpu);
        cpu.load(&engine.extended, vcpu);
        prepare_entry(engine, vcpu);
        enter_loop(engine, vcpu, handler);
        insn::fill_return_stack();
        cpu.unload(&engine.extended, vcpu);
        match core::mem::take(&mut vcpu.host_event) {
            HostEvent::None => {}
            HostEvent::Nmi => insn::raise_nmi(),
            HostEvent::MachineCheck => insn::raise_machine_check(),
        }
    }
}

/// Brings the VMCS and the CPU in order for the next entry.
///
/// # Safety
/// The vCPU is loaded.
#[inline]
unsafe fn prepare_entry(engine: &Vmx, vcpu: &mut VmxVcpu) {
    // SAFETY: by the caller, and there is a value only where the CPU has the timer.
    unsafe {
        vcpu.registers.flush();
        if let Some(value) = vcpu.timer_value() {
            vmwrite(Field::PREEMPTION_TIMER, value);
        }
        let rsp = vcpu.gprs().rsp;
        if rsp != vcpu.entered_rsp {
            vmwrite(Field::GUEST_RSP, rsp);
        }
        if vcpu.cr2 != insn::read_cr2() {
            insn::write_cr2(vcpu.cr2);
        }
        if vcpu.injection.is_valid() {
            vmwrite(Field::ENTRY_EXCEPTION_ERROR, u64::from(vcpu.injection.error));
            vmwrite(Field::ENTRY_INTERRUPTION_INFO, u64::from(vcpu.injection.info));
        }
        if vcpu.flush {
            forget_translations(engine, vcpu);
        }
    }
}

/// Forgets the guest's translations. Without VPIDs every entry does.
///
/// # Safety
/// The vCPU is loaded.
#[cold]
unsafe fn forget_translations(engine: &Vmx, vcpu: &mut VmxVcpu) {
    vcpu.flush = false;
    if engine.capabilities.secondary.contains(Secondary::VPID)
        && let Ok(vpid) = u16::try_from(vcpu.assigned.tag)
    {
        // SAFETY: VPIDs are used only where the CPU has this type of INVVPID, and those given out are not 0.
        unsafe { vmx::invvpid_single(vpid) };
    }
}

/// The loop of the module's picture.
///
/// # Safety
/// The guest's state is loaded, and the VMCS is in order.
#[inline(never)]
unsafe fn enter_loop<X: ExitHandler<Vmx>>(engine: &Vmx, vcpu: &mut VmxVcpu, handler: &mut X) {
    let mut context = Context { engine, vcpu, handler };
    // SAFETY: an exit restores all of the host but what the guest's state was loaded over, which the caller deals with, and
    // the general registers, which are clobbered here or pushed. It comes to label 3 with the stack pointer as it was at the
    // VMWRITE. The stack at the calls is aligned: four pushes.
    unsafe {
        asm!(
            "push rbx",
            "push rbp",
            // Two slots that are found again after an exit, when only RSP is ours.
            "push rdi",
            "push rsi",
            "mov eax, {host_rsp}",
            "vmwrite rax, rsp",
            "mov eax, {host_rip}",
            "lea rcx, [rip + 3f]",
            "vmwrite rax, rcx",
            // In: all general registers but RSP, which is in the VMCS.
            "2:",
            "mov rax, [rsp]",
            // What the host left in the CPU's buffers is overwritten where that is needed; nothing of its is loaded after it.
            "cmp word ptr [rax + {clear_buffers}], 0",
            "je 4f",
            "verw word ptr [rax + {clear_buffers}]",
            "4:",
            "cmp byte ptr [rax + {launched}], 0",
            "mov byte ptr [rax + {launched}], 1",
            load_gprs!("rax"),
            "mov rax, [rax + {rax}]",
            "jne 5f",
            "vmlaunch",
            "jmp 6f",
            "5:",
            "vmresume",
            // Only a refused entry comes here, with CF or ZF set; an exit comes to the label behind.
            "jbe 6f",
            "3:",
            "push rax",
            "mov rax, [rsp + 8]",
            store_gprs!("rax"),
            "pop rcx",
            "mov [rax + {rax}], rcx",
            clear_kept_registers!(),
            "mov rdi, [rsp + 8]",
            "call {on_exit}",
            "test eax, eax",
            "jz 2b",
            "jmp 7f",
            "6:",
            "mov rdi, [rsp + 8]",
            "call {on_refusal}",
            "7:",
            "add rsp, 16",
            "pop rbp",
            "pop rbx",
            inout("rdi") &raw mut context => _,
            inout("rsi") context.vcpu => _,
            on_exit = sym on_exit::<X>,
            on_refusal = sym on_refusal::<X>,
            host_rsp = const Field::HOST_RSP.0,
            host_rip = const Field::HOST_RIP.0,
            rax = const offset_of!(Gprs, rax),
            launched = const VmxVcpu::LAUNCHED_OFFSET,
            clear_buffers = const VmxVcpu::CLEAR_BUFFERS_OFFSET,
            clobber_abi("sysv64"),
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
        );
    }
}

/// One exit: has core answer, and brings the VMCS in order for the next entry. Returns [`Next`].
extern "sysv64" fn on_exit<X: ExitHandler<Vmx>>(context: &mut Context<'_, X>) -> u32 {
    // SAFETY: enter_loop() holds the vCPU's &mut for us and does not use it while this runs.
    let vcpu = unsafe { &mut *context.vcpu };
    vcpu.registers.exited();
    vcpu.injection = Event::NONE;
    // SAFETY: the VMCS is current.
    let rsp = unsafe {
        vcpu.cr2 = insn::read_cr2();
        vmread(Field::GUEST_RSP)
    };
    vcpu.entered_rsp = rsp;
    vcpu.gprs_mut().rsp = rsp;
    let (exit, interrupted) = exits::decode(vcpu);
    let exit = if interrupted.is_valid() {
        interrupted_delivery(vcpu, interrupted, exit)
    } else {
        vcpu.deliveries.succeeded();
        exit
    };
    let next = context.handler.on_exit(vcpu, exit);
    if next == Next::Resume {
        // SAFETY: the vCPU is loaded.
        unsafe { prepare_entry(context.engine, vcpu) };
    }
    next as u32
}

/// The CPU did not even begin with the entry (SDM vol. 3, 27.1): the guest is ended.
#[cold]
extern "sysv64" fn on_refusal<X: ExitHandler<Vmx>>(context: &mut Context<'_, X>) -> u32 {
    // SAFETY: as in on_exit().
    let vcpu = unsafe { &mut *context.vcpu };
    // SAFETY: the VMCS is current.
    let error = unsafe { vmread(Field::INSTRUCTION_ERROR) };
    let check = entry_check::of_instruction(error);
    context.handler.on_exit(vcpu, Exit::Kill(KillReason::EntryRefused, u64::from(check as u32))) as u32
}

/// An exit came while an event was delivered.
#[cold]
#[inline(never)]
fn interrupted_delivery(vcpu: &mut VmxVcpu, interrupted: Event, exit: Exit) -> Exit {
    let (exit, again) = vcpu.deliveries.interrupted(interrupted, exit);
    if let Some(event) = again {
        if event.is_nmi() {
            // The delivery had begun, so NMIs are blocked already; it is refused with that (27.3.1.5).
            let blocking = vcpu.registers.get(Register::INTERRUPTIBILITY);
            vcpu.registers.set(Register::INTERRUPTIBILITY, blocking & !crate::vcpu::INTERRUPTIBILITY_NMI);
        }
        vcpu.injection = event;
    }
    exit
}
