//! The loop around the world switch.
//!
//! ```text
//! run()       the host's state put aside ──┐
//!   ┌──────────────────────────────────────┘
//!   ▼
//!   cross() ─► monitor ─► guest ─► monitor ─► back
//!   ▲                                           │
//!   │ Next::Resume                              ▼
//!   └─────────────────────────────── on_exit(): core answers
//!                                               │ Next::Leave
//!                  the host's state loaded ◄────┘
//!                             │
//!                             ▼
//!                  NMIs that came raised again
//!                             │
//!                             ▼
//! hand_over() when core lets go of the CPU: an interrupt that came raised again
//! ```
//!
//! In the loop the host's root, tables, task register and base of GS are back after each crossing, so NMIs are the host's as ever.
//! Its SYSCALL MSRs, selectors, base of FS and extended state stay put aside until the end.

use covisor_core::engine::ExitHandler;
use covisor_core::engine::Next;
use covisor_core::engine::Vcpu;
use covisor_core::exit::Exit;
use covisor_core::instructions::fill_return_stack;
use covisor_core::instructions::raise_machine_check;
use covisor_core::instructions::raise_nmi;
use covisor_monitor::crossing::PENDING_MACHINE_CHECK;
use covisor_monitor::crossing::PENDING_NMI;

use crate::Coop;
use crate::Cpu;
use crate::Vm;
use crate::exits;
use crate::exits::Event;
use crate::vcpu::CoopVcpu;
use crate::world;

/// What the host has to take when its state is loaded: NMIs and machine checks at once, an interrupt when core lets go of the
/// CPU.
#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    /// [`PENDING_NMI`], [`PENDING_MACHINE_CHECK`].
    pending: u64,
    /// An interrupt's vector.
    vector: Option<u8>,
}

/// Enters the guest until the handler wants to leave; see [`covisor_core::engine::Engine::run`].
///
/// # Safety
/// As there.
#[inline]
pub(crate) unsafe fn run<X: ExitHandler<Coop>>(
    engine: &Coop,
    cpu: &mut Cpu,
    vm: &Vm,
    vcpu: &mut CoopVcpu,
    handler: &mut X,
) {
    // SAFETY: by the caller.
    unsafe {
        cpu.load(engine, vm, vcpu);
        let taken = enter_loop(cpu, vcpu, handler);
        fill_return_stack();
        cpu.unload(engine, vcpu);
        taken.raise();
        vcpu.taken = taken.vector;
    }
}

/// See [`covisor_core::engine::Engine::hand_over`].
///
/// # Safety
/// As there.
#[inline]
pub(crate) unsafe fn hand_over(vcpu: &mut CoopVcpu) {
    if let Some(vector) = vcpu.taken.take() {
        // SAFETY: by the caller; the host's state is loaded since run() returned, and this came.
        unsafe { world::raise(vector) };
    }
}

/// The loop of the module's picture. It returns nowhere until the end: core is called from it, so all return addresses that are
/// predicted between two crossings were pushed after the first.
///
/// # Safety
/// The guest's state is loaded.
#[inline(never)]
unsafe fn enter_loop<X: ExitHandler<Coop>>(cpu: &mut Cpu, vcpu: &mut CoopVcpu, handler: &mut X) -> Taken {
    loop {
        vcpu.store_rsp();
        // SAFETY: by the caller; Cpu::load() has filled what the crossing needs.
        unsafe { world::cross(cpu.crossing()) };
        vcpu.load_rsp();
        let mut taken = Taken { pending: take_pending(cpu, vcpu), vector: None };
        let next = match exits::decode(&vcpu.area().exit, vcpu.rip()) {
            Event::Exit(exit) => {
                vcpu.next_rip = match exit {
                    Exit::Port(access) if access.next_rip != 0 => Some(access.next_rip),
                    _ => None,
                };
                handler.on_exit(vcpu, exit)
            }
            Event::PortWrite(access, value) => {
                vcpu.next_rip = None;
                let rax = core::mem::replace(&mut vcpu.gprs_mut().rax, value);
                let next = handler.on_exit(vcpu, Exit::Port(access));
                vcpu.gprs_mut().rax = rax;
                next
            }
            Event::Interrupt(vector) => {
                taken.vector = Some(vector);
                handler.on_exit(vcpu, Exit::HostInterrupt)
            }
        };
        if next == Next::Leave || taken.pending != 0 || taken.vector.is_some() {
            return taken;
        }
    }
}

/// What came for the host on the way, and in the monitor.
#[inline]
fn take_pending(cpu: &mut Cpu, vcpu: &mut CoopVcpu) -> u64 {
    let crossing = cpu.crossing();
    // SAFETY: the crossing is this CPU's, and nothing crosses; an NMI that comes now is the host's own.
    let noted = unsafe { core::mem::replace(&mut (*crossing).pending, 0) };
    core::mem::replace(&mut vcpu.area_mut().pending_host, 0) | noted
}

impl Taken {
    /// Hands what no flag holds back to the host.
    ///
    /// # Safety
    /// The host's state is loaded, interrupts are off, and this came.
    unsafe fn raise(&self) {
        // SAFETY: by the caller.
        unsafe {
            if self.pending & PENDING_MACHINE_CHECK != 0 {
                raise_machine_check();
            }
            if self.pending & PENDING_NMI != 0 {
                raise_nmi();
            }
        }
    }
}
