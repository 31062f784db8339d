//! The way out of an NMI's handler. NMIs are blocked from one's delivery to the next IRET (APM vol. 2, 8.2.3), and only the
//! hypervisor knows.
//!
//! ```text
//!          inject()            #VMEXIT(IRET)              the next #VMEXIT
//!   Open ───────────► Blocked ───────────────► Returning ───┬──► Open, where the IRET is done
//!                        ▲                                  │
//!                        └── where it is not, or faulted ◄──┘
//! ```
//!
//! An IRET that faults leaves NMIs blocked, as the CPU's own virtual NMIs do (15.21.10: the mask falls with the successful
//! end of an IRET).
//!
//! While an NMI waits, the next exit must not be long in coming: the IRET is stepped over. The trap flag is set in the guest's
//! RFLAGS, and the IRET ends in #DB, which exits. The flag never gets to the guest, and core never sees it: it is set for one
//! entry at which nothing is injected, the IRET itself loads RFLAGS anew, and until then every exception that it can raise
//! exits before flags are pushed. After the exit everything is as if there had been no step. (Only a guest whose other CPU puts
//! another instruction over the IRET in between may find the flag; that is its own doing, and nobody else's harm.)

use covisor_core::debug_registers::DR6_BREAKPOINTS;
use covisor_core::debug_registers::DR6_CAUSES;
use covisor_core::debug_registers::DR6_SINGLE_STEP;
use covisor_core::debug_registers::enabled_breakpoints;
use covisor_core::registers::RFlags;

use crate::SvmVcpu;
use crate::exit_code;
use crate::intercept;
use crate::intercept::Instructions1;
use crate::vmcb::Clean;
use crate::vmcb::Vmcb;

/// RFLAGS: trap flag.
const TRAP_FLAG: u64 = RFlags::FLAGS_TF.bits();

/// Whether the guest takes NMIs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NmiState {
    /// It does.
    Open,
    /// In the handler; IRET is intercepted.
    Blocked,
    /// IRET was met, and is not intercepted at this entry. Core never finds this state.
    Returning {
        /// The IRET's address.
        at: u64,
        /// It is stepped over.
        step: Option<Step>,
    },
}

/// What a step over an IRET hides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// The guest's DR6.
    dr6: u64,
    /// The guest steps by itself: the #DB is its own.
    own: bool,
}

impl Step {
    /// Has the IRET at RIP end in an exit.
    fn begin(vmcb: &mut Vmcb) -> Self {
        let step = Self { dr6: vmcb.save.dr6, own: vmcb.save.rflags & TRAP_FLAG != 0 };
        vmcb.control.exceptions = intercept::STEP_EXCEPTIONS;
        // What is in there at the exit came by the step.
        vmcb.save.dr6 &= !DR6_CAUSES;
        vmcb.save.rflags |= TRAP_FLAG;
        step
    }

    /// Takes everything back at the exit, which becomes core's interrupt window if it was made by the step only. Gives whether
    /// the IRET at this address is done.
    fn end(self, vmcb: &mut Vmcb, at: u64) -> bool {
        let is_debug = vmcb.control.exit_code == exit_code::EXCEPTION_DB;
        let causes = if is_debug { vmcb.save.dr6 & DR6_CAUSES } else { 0 };
        // An IRET may lead to itself.
        let done = causes & DR6_SINGLE_STEP != 0 || vmcb.save.rip != at;
        if !done && !self.own {
            vmcb.save.rflags &= !TRAP_FLAG;
        }
        vmcb.control.exceptions = intercept::EXCEPTIONS;
        vmcb.save.dr6 = self.dr6;
        // The IRET's read of the stack may have met a breakpoint too. CPUs note those that are not enabled as well.
        let disabled = DR6_BREAKPOINTS & !enabled_breakpoints(vmcb.save.dr7);
        let hidden = if self.own { disabled } else { disabled | DR6_SINGLE_STEP };
        if causes & !hidden != 0 {
            let guests = if self.own { causes } else { causes & !DR6_SINGLE_STEP };
            vmcb.save.dr6 = self.dr6 & !DR6_BREAKPOINTS | guests;
        } else if is_debug && done {
            vmcb.control.exit_code = exit_code::VINTR;
        }
        if vmcb.control.exit_code == exit_code::EXCEPTION_PF {
            // The address is there until the exception is delivered (15.12.15).
            vmcb.save.cr2 = vmcb.control.exit_info2;
            vmcb.control.clean.remove(Clean::CR2);
        }
        done
    }
}

impl SvmVcpu {
    /// NMIs are blocked, until the next IRET.
    pub(crate) fn block_nmis(&mut self) {
        self.nmi = NmiState::Blocked;
        self.change(Clean::INTERCEPTS).control.instructions1.insert(Instructions1::IRET);
    }

    /// Follows the guest out of an NMI's handler. True where the exit was about that only.
    #[inline]
    pub(crate) fn track_nmi(&mut self) -> bool {
        if self.nmi == NmiState::Open {
            return false;
        }
        self.track_blocked_nmi()
    }

    #[cold]
    fn track_blocked_nmi(&mut self) -> bool {
        match self.nmi {
            NmiState::Blocked if self.vmcb().control.exit_code == exit_code::IRET => {
                self.begin_return();
                true
            }
            NmiState::Returning { at, step } => {
                self.end_return(at, step);
                false
            }
            _ => false,
        }
    }

    /// Lets the guest execute the IRET at RIP.
    fn begin_return(&mut self) {
        let nmi_waits = self.nmi_window;
        let vmcb = self.change(Clean::INTERCEPTS | Clean::DEBUG_REGISTERS);
        vmcb.control.instructions1.remove(Instructions1::IRET);
        let (at, step) = (vmcb.save.rip, nmi_waits.then(|| Step::begin(vmcb)));
        self.nmi = NmiState::Returning { at, step };
    }

    /// At the exit after that.
    fn end_return(&mut self, at: u64, step: Option<Step>) {
        let vmcb = self.change(Clean::INTERCEPTS | Clean::DEBUG_REGISTERS);
        let done = match step {
            Some(step) => step.end(vmcb, at),
            None => vmcb.save.rip != at,
        };
        if done {
            self.nmi = NmiState::Open;
        } else {
            self.block_nmis();
        }
    }
}

#[cfg(test)]
mod tests {
    use covisor_core::engine::Vcpu;
    use covisor_core::exit::Exception;
    use covisor_core::exit::Exit;
    use covisor_core::exit::Injection;

    use super::*;
    use crate::exits;
    use crate::vcpu::tests::with_vcpu;

    /// Where the handler's IRET is, and where it goes.
    const IRET: u64 = 0x1000;
    const TARGET: u64 = 0x2000;
    /// DR6 before.
    const DR6: u64 = 0xffff_0ff2;
    /// IF, and the bit that is always 1.
    const FLAGS: u64 = 0x202;

    /// Calls `use_vcpu` on a vCPU at the IRET of an NMI's handler, which has exited, with another NMI that waits or without.
    fn at_iret(nmi_waits: bool, use_vcpu: impl FnOnce(&mut SvmVcpu)) {
        with_vcpu(|vcpu| {
            vcpu.inject(Injection::Nmi);
            assert!(vcpu.nmi_blocked() && iret_exits(vcpu));
            vcpu.want_nmi_window(nmi_waits);
            vcpu.set_rflags(FLAGS);
            vcpu.set_dr6(DR6);
            use_vcpu(vcpu);
        });
    }

    /// An exit; whether it was about the NMI's handler only.
    fn exit(vcpu: &mut SvmVcpu, code: u64, rip: u64) -> bool {
        let vmcb = vcpu.vmcb_mut();
        vmcb.control.clean = Clean::all();
        vmcb.control.exit_code = code;
        vmcb.save.rip = rip;
        vcpu.track_nmi()
    }

    /// A #DB that sets these bits in DR6, with these flags.
    fn debug_exit(vcpu: &mut SvmVcpu, rip: u64, causes: u64, rflags: u64) -> Exit {
        vcpu.vmcb_mut().save.dr6 |= causes;
        vcpu.vmcb_mut().save.rflags = rflags;
        assert!(!exit(vcpu, exit_code::EXCEPTION_DB, rip));
        exits::decode(&vcpu.vmcb().control)
    }

    fn iret_exits(vcpu: &SvmVcpu) -> bool {
        vcpu.vmcb().control.instructions1.contains(Instructions1::IRET)
    }

    /// Whether the guest runs as if nobody stepped it.
    fn nothing_is_left(vcpu: &SvmVcpu, rflags: u64, dr6: u64) -> bool {
        let clean = vcpu.vmcb().control.clean;
        vcpu.vmcb().control.exceptions == intercept::EXCEPTIONS
            && !clean.intersects(Clean::INTERCEPTS | Clean::DEBUG_REGISTERS)
            && (vcpu.rflags(), vcpu.dr6()) == (rflags, dr6)
    }

    #[test]
    fn test_without_an_nmi_that_waits_the_iret_is_not_stepped() {
        at_iret(false, |vcpu| {
            assert!(exit(vcpu, exit_code::IRET, IRET));
            assert!(!iret_exits(vcpu) && nothing_is_left(vcpu, FLAGS, DR6));
            assert!(!exit(vcpu, exit_code::CPUID, TARGET));
            assert!(!vcpu.nmi_blocked() && !iret_exits(vcpu));
        });
    }

    #[test]
    fn test_the_window_for_the_nmi_that_waits_is_behind_the_iret() {
        at_iret(true, |vcpu| {
            assert!(exit(vcpu, exit_code::IRET, IRET));
            assert!(!iret_exits(vcpu));
            assert_eq!(vcpu.rflags(), FLAGS | TRAP_FLAG);
            assert_eq!(vcpu.vmcb().control.exceptions, intercept::STEP_EXCEPTIONS);
            assert!(!vcpu.vmcb().control.clean.intersects(Clean::INTERCEPTS | Clean::DEBUG_REGISTERS));
            // The trap flag that the guest's own IRET loads is the guest's.
            let exit = debug_exit(vcpu, TARGET, DR6_SINGLE_STEP, FLAGS | TRAP_FLAG);
            assert_eq!(exit, Exit::InterruptWindow);
            assert!(!vcpu.nmi_blocked() && !iret_exits(vcpu));
            assert!(nothing_is_left(vcpu, FLAGS | TRAP_FLAG, DR6));
        });
    }

    #[test]
    fn test_an_iret_that_leads_to_itself_is_done_too() {
        at_iret(true, |vcpu| {
            assert!(exit(vcpu, exit_code::IRET, IRET));
            assert_eq!(debug_exit(vcpu, IRET, DR6_SINGLE_STEP, FLAGS), Exit::InterruptWindow);
            assert!(!vcpu.nmi_blocked());
        });
    }

    #[test]
    fn test_a_guest_that_steps_by_itself_has_its_debug_exception() {
        let debug = Exit::Exception(Exception { vector: Exception::DEBUG, error_code: None });
        at_iret(true, |vcpu| {
            vcpu.set_rflags(FLAGS | TRAP_FLAG);
            assert!(exit(vcpu, exit_code::IRET, IRET));
            assert_eq!(debug_exit(vcpu, TARGET, DR6_SINGLE_STEP, FLAGS), debug);
            assert!(!vcpu.nmi_blocked() && nothing_is_left(vcpu, FLAGS, DR6 & !2 | DR6_SINGLE_STEP));
        });
        // The stack has a breakpoint.
        at_iret(true, |vcpu| {
            vcpu.set_dr7(0x440);
            assert!(exit(vcpu, exit_code::IRET, IRET));
            assert_eq!(debug_exit(vcpu, TARGET, DR6_SINGLE_STEP | 3, FLAGS), Exit::InterruptWindow);
            assert!(nothing_is_left(vcpu, FLAGS, DR6), "no enabled one");
        });
        at_iret(true, |vcpu| {
            vcpu.set_dr7(0x404);
            assert!(exit(vcpu, exit_code::IRET, IRET));
            assert_eq!(debug_exit(vcpu, TARGET, DR6_SINGLE_STEP | 3, FLAGS), debug);
            assert!(!vcpu.nmi_blocked() && nothing_is_left(vcpu, FLAGS, DR6 | 3));
        });
        // The IRET itself has one, and is not done.
        at_iret(true, |vcpu| {
            vcpu.set_dr7(0x401);
            assert!(exit(vcpu, exit_code::IRET, IRET));
            assert_eq!(debug_exit(vcpu, IRET, 1, FLAGS | TRAP_FLAG), debug);
            assert!(vcpu.nmi_blocked() && iret_exits(vcpu));
            assert!(nothing_is_left(vcpu, FLAGS, DR6 & !2 | 1));
        });
    }

    #[test]
    fn test_attack_an_iret_that_faults_shows_no_trap_flag() {
        for (vector, error, own) in [(14_u8, 5, 0), (13, 0xfff8, 0), (12, 0, TRAP_FLAG)] {
            at_iret(true, |vcpu| {
                vcpu.set_rflags(FLAGS | own);
                assert!(exit(vcpu, exit_code::IRET, IRET));
                vcpu.vmcb_mut().control.exit_info1 = u64::from(error);
                vcpu.vmcb_mut().control.exit_info2 = 0x1234_5000;
                assert!(!exit(vcpu, exit_code::EXCEPTION + u64::from(vector), IRET));
                let raised = Exception { vector, error_code: Some(error) };
                assert_eq!(exits::decode(&vcpu.vmcb().control), Exit::Exception(raised));
                assert_eq!(vcpu.cr2(), if vector == 14 { 0x1234_5000 } else { 0 });
                assert!(vcpu.nmi_blocked() && iret_exits(vcpu));
                assert!(nothing_is_left(vcpu, FLAGS | own, DR6));
            });
        }
    }

    #[test]
    fn test_an_exit_before_the_iret_begins_it_anew() {
        for nmi_waits in [false, true] {
            at_iret(nmi_waits, |vcpu| {
                for _ in 0..3 {
                    assert!(exit(vcpu, exit_code::IRET, IRET));
                    assert!(!exit(vcpu, exit_code::INTR, IRET));
                    assert!(vcpu.nmi_blocked() && iret_exits(vcpu));
                    assert!(nothing_is_left(vcpu, FLAGS, DR6));
                }
                // One comes meanwhile.
                vcpu.want_nmi_window(true);
                assert!(exit(vcpu, exit_code::IRET, IRET));
                assert_eq!(debug_exit(vcpu, TARGET, DR6_SINGLE_STEP, FLAGS), Exit::InterruptWindow);
            });
        }
    }
}
