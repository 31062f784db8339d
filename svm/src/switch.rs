//! The way into the guest and back.
//!
//! ```text
//! run()            CLGI, the guest's state loaded ──┐
//!   ┌──────────────────────────────────────────────┘
//!   ▼
//!   general registers ─► VMRUN ─► guest ─► #VMEXIT ─► general registers
//!   ▲                                                      │
//!   │ Next::Resume                                         ▼
//!   └──────────────────────────────────────────── on_exit(): core answers
//!                                                          │ Next::Leave
//!                        the host's state loaded, STGI ◄───┘
//! ```
//!
//! The inner loop is the fast path. The host did not run in it, so nothing of the host is loaded: GIF is still 0, segment
//! bases, SYSCALL MSRs and extended state are the guest's. It returns nowhere: `on_exit` is called *from* the loop, so all
//! return addresses that are predicted between two entries were pushed after the exit; the return stack is refilled only
//! on the way out.

use core::arch::asm;

use covisor_abi::clear_kept_registers;
use covisor_abi::load_gprs;
use covisor_abi::store_gprs;
use covisor_core::delivery::Event;
use covisor_core::engine::ExitHandler;
use covisor_core::engine::Next;
use covisor_core::engine::Vcpu;
use covisor_core::instructions::fill_return_stack;
use covisor_core::instructions::raise_machine_check;

use crate::Cpu;
use crate::Svm;
use crate::SvmVcpu;
use crate::exit_code;
use crate::exits;
use crate::instructions as insn;
use crate::vmcb::Clean;
use crate::vmcb::TlbControl;

/// What the loop hands to [`on_exit`].
struct Context<'a, X> {
    vcpu: *mut SvmVcpu,
    handler: &'a mut X,
}

/// Enters the guest until the handler wants to leave; see [`covisor_core::engine::Engine::run`].
///
/// # Safety
/// As there.
#[inline]
pub(crate) unsafe fn run<X: ExitHandler<Svm>>(svm: &Svm, cpu: &mut Cpu, vcpu: &mut SvmVcpu, handler: &mut X) {
    if !cpu.asids.holds(&vcpu.assigned) {
        let (assigned, flush) = cpu.asids.assign();
        vcpu.set_asid(assigned, flush);
        // The VMCB may have been used on another CPU since: nothing cached of it holds (15.15.1).
        vcpu.vmcb_mut().control.clean = Clean::empty();
    }
    store_rax_rsp(vcpu);
    // SAFETY: by the caller. With GIF at 0 nothing interrupts. IF is set so that a physical interrupt, which VMRUN
    // judges by the host's IF (V_INTR_MASKING, 15.21.1), ends the guest's turn at once.
    unsafe {
        insn::clgi();
        cpu.load(&svm.extended, vcpu);
        insn::sti();
        enter_loop(vcpu, handler);
        insn::cli();
        if !svm.features.return_stack_isolated {
            fill_return_stack();
        }
        cpu.unload(&svm.extended, vcpu);
        insn::stgi();
        if vcpu.vmcb().control.exit_code == exit_code::EXCEPTION_MC {
            raise_machine_check();
        }
    }
}

/// RAX and RSP travel in the VMCB.
#[inline]
fn store_rax_rsp(vcpu: &mut SvmVcpu) {
    let (rax, rsp) = (vcpu.gprs().rax, vcpu.gprs().rsp);
    let save = &mut vcpu.vmcb_mut().save;
    save.rax = rax;
    save.rsp = rsp;
}

/// The loop of the module's picture.
///
/// # Safety
/// GIF is 0 and the guest's state is loaded.
#[inline(never)]
unsafe fn enter_loop<X: ExitHandler<Svm>>(vcpu: &mut SvmVcpu, handler: &mut X) {
    let mut context = Context { vcpu, handler };
    // SAFETY: VMRUN saves and restores all of the host but what the guest's state was loaded over, which the caller
    // deals with, and the general registers, which are clobbered here or pushed. The stack at the call is aligned: four
    // pushes.
    unsafe {
        asm!(
            "push rbx",
            "push rbp",
            // Two slots that are found again after #VMEXIT, when only RSP and RAX are ours.
            "push rdi",
            "push rsi",
            // In: all general registers but RAX and RSP, which are in the VMCB.
            "2:",
            "mov rax, [rsp]",
            load_gprs!("rax"),
            "mov rax, [rax + {vmcb}]",
            "vmrun rax",
            // Out: RAX is ours again, the guest's is in the VMCB.
            "mov rax, [rsp]",
            store_gprs!("rax"),
            clear_kept_registers!(),
            "mov rdi, [rsp + 8]",
            "call {on_exit}",
            "test eax, eax",
            "jz 2b",
            "add rsp, 16",
            "pop rbp",
            "pop rbx",
            inout("rdi") &raw mut context => _,
            inout("rsi") context.vcpu => _,
            on_exit = sym on_exit::<X>,
            vmcb = const SvmVcpu::VMCB_PA_OFFSET,
            clobber_abi("sysv64"),
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
        );
    }
}

/// One exit: brings the VMCB in order, and has core answer. Returns [`Next`].
extern "sysv64" fn on_exit<X: ExitHandler<Svm>>(context: &mut Context<'_, X>) -> u32 {
    // SAFETY: enter_loop() holds the vCPU's &mut for us and does not use it while this runs.
    let vcpu = unsafe { &mut *context.vcpu };
    vcpu.unsync();
    let vmcb = vcpu.vmcb_mut();
    let (rax, rsp) = (vmcb.save.rax, vmcb.save.rsp);
    let interrupted = Event::from_amd(vmcb.control.exit_interrupt_info);
    vmcb.control.event_injection = Event::NONE.to_amd();
    vmcb.control.clean = Clean::all();
    vmcb.control.tlb_control = TlbControl::Keep;
    vcpu.gprs_mut().rax = rax;
    vcpu.gprs_mut().rsp = rsp;
    if vcpu.virtual_on_qemu {
        // SAFETY: the engine runs in ring 0, and CR8 is the host's since #VMEXIT.
        unsafe { insn::renew_task_priority() };
        vcpu.look_after_offer();
    }
    if vcpu.track_nmi() {
        return Next::Resume as u32;
    }
    if interrupted.is_valid() {
        return on_interrupted_delivery(context, interrupted);
    }
    vcpu.deliveries.succeeded();
    let exit = exits::decode(&vcpu.vmcb().control);
    let next = context.handler.on_exit(vcpu, exit);
    store_rax_rsp(vcpu);
    next as u32
}

/// As [`on_exit`], when the exit interrupted a delivery (APM vol. 2, 15.7.2).
#[cold]
#[inline(never)]
fn on_interrupted_delivery<X: ExitHandler<Svm>>(context: &mut Context<'_, X>, interrupted: Event) -> u32 {
    // SAFETY: as in on_exit(), which does not use its reference any more.
    let vcpu = unsafe { &mut *context.vcpu };
    let exit = exits::decode(&vcpu.vmcb().control);
    let interrupted = vcpu.interrupted_event(interrupted);
    let (exit, again) = vcpu.deliveries.interrupted(interrupted, exit);
    vcpu.inject_again(again.unwrap_or_default());
    let next = context.handler.on_exit(vcpu, exit);
    store_rax_rsp(vcpu);
    next as u32
}
