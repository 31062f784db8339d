//! How the guest's kernel is entered: a *bounce frame* on its stack, as 64-bit Xen PV kernels expect it, and a jump to its handler.
//!
//! From the lowest address: RCX, R11, error code where there is one, RIP, CS with the former event mask in bits 32 to 39, RFLAGS with
//! IF standing for events that are not masked, RSP, SS. A CS whose privilege level is 0 tells the kernel that it interrupted itself.

use covisor_abi::KillReason;

use crate::area::Answer;
use crate::area::MODE_KERNEL;
use crate::area::MODE_USER;
use crate::layout::selector;
use crate::machine::Machine;
use crate::machine::Next;
use crate::processor::Processor;
use crate::state::Callback;

/// Flags (SDM vol. 1, 3.4.3).
pub(crate) mod flags {
    /// Always 1.
    pub(crate) const FIXED: u64 = 1 << 1;
    /// Single step.
    pub(crate) const TF: u64 = 1 << 8;
    /// Interrupts.
    pub(crate) const IF: u64 = 1 << 9;
    /// I/O privilege level.
    pub(crate) const IOPL: u64 = 3 << 12;
    /// Nested task.
    pub(crate) const NT: u64 = 1 << 14;
    /// Resume.
    pub(crate) const RF: u64 = 1 << 16;
    /// Virtual 8086 mode.
    pub(crate) const VM: u64 = 1 << 17;
    /// Alignment check.
    pub(crate) const AC: u64 = 1 << 18;
    /// Virtual interrupts of virtual 8086 mode.
    pub(crate) const VIF_VIP: u64 = 3 << 19;
}

/// Flags that go on into the kernel's handler.
pub const INTO_HANDLER: u64 =
    0x3f_ffff & !(flags::TF | flags::NT | flags::RF | flags::AC | flags::VM | flags::IOPL | flags::VIF_VIP);
/// Flags that a return gives a program.
pub const OF_RETURN: u64 = 0x3f_ffff & !(flags::IOPL | flags::VM | flags::VIF_VIP);

/// Vectors of exceptions.
pub(crate) mod vector {
    pub(crate) const DEBUG: u64 = 1;
    pub(crate) const NMI: u64 = 2;
    pub(crate) const INVALID_OPCODE: u64 = 6;
    pub(crate) const NO_FPU: u64 = 7;
    pub(crate) const DOUBLE_FAULT: u64 = 8;
    pub(crate) const GENERAL_PROTECTION: u64 = 13;
    pub(crate) const PAGE_FAULT: u64 = 14;
    pub(crate) const MACHINE_CHECK: u64 = 18;
    /// INT 0x80.
    pub(crate) const INT80: u64 = 0x80;
}

/// Detail of [`KillReason::NoHandler`] for callbacks.
pub(crate) mod callback {
    pub(crate) const SYSCALL: u64 = 258;
}

/// Where the kernel is entered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) address: u64,
    pub(crate) masks_events: bool,
    pub(crate) error_code: Option<u64>,
}

/// Whether an exception has an error code (SDM vol. 3, table 6-1; APM vol. 2, 8.2 for 29 and 30).
pub(crate) const fn has_error_code(vector: u64) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30)
}

impl<P: Processor> Machine<'_, P> {
    /// Enters the guest's kernel.
    pub(crate) fn bounce(&mut self, entry: Entry) -> Next {
        let from_kernel = self.in_kernel();
        let info = self.state.vcpu_info;
        let masked = info.is_masked();
        let frame = self.area.frame;
        let stack = if from_kernel { frame.rsp } else { self.state.kernel_stack } & !15;
        let cs = if from_kernel { frame.cs & !u64::from(selector::RPL) } else { frame.cs } & 0xffff;
        let rflags = frame.rflags & !flags::IF | if masked { 0 } else { flags::IF };
        let cs = cs | u64::from(masked) << 32;
        let head = [frame.registers.rcx, frame.registers.r11];
        let tail = [frame.rip, cs, rflags, frame.rsp, frame.ss & 0xffff];
        let (bottom, written) = if let Some(error_code) = entry.error_code {
            let words = [head[0], head[1], error_code, tail[0], tail[1], tail[2], tail[3], tail[4]];
            let bottom = stack.wrapping_sub(64);
            (bottom, self.write_words(bottom, &words))
        } else {
            let words = [head[0], head[1], tail[0], tail[1], tail[2], tail[3], tail[4]];
            let bottom = stack.wrapping_sub(56);
            (bottom, self.write_words(bottom, &words))
        };
        if written.is_err() {
            return self.kill(KillReason::BadKernelStack, stack);
        }
        if !from_kernel {
            self.area.mode = MODE_KERNEL;
            self.cpu.swap_gs();
        }
        if entry.masks_events {
            info.set_masked(true);
        }
        let frame = &mut self.area.frame;
        frame.rip = entry.address;
        frame.rsp = bottom;
        frame.cs = selector::RING3_CODE64.into();
        frame.ss = selector::RING3_DATA.into();
        frame.rflags = frame.rflags & INTO_HANDLER | flags::IF | flags::FIXED;
        Next::Guest
    }

    /// Enters it for an event.
    pub(crate) fn bounce_event(&mut self, callback: Callback) -> Next {
        self.bounce(Entry { address: callback.address, masks_events: true, error_code: None })
    }

    /// Raises an exception in the guest's kernel.
    pub(crate) fn raise(&mut self, vector: u64, error_code: Option<u64>) -> Next {
        let handler = self.state.traps.get((vector & 0xff) as usize).copied().unwrap_or_default();
        if handler.address == 0 {
            return self.kill(KillReason::NoHandler, vector);
        }
        self.bounce(Entry { address: handler.address, masks_events: handler.masks_events(), error_code })
    }

    /// Raises #GP with error code 0.
    pub(crate) fn raise_general_protection(&mut self) -> Next {
        self.raise(vector::GENERAL_PROTECTION, Some(0))
    }

    /// Raises what the host says.
    pub(crate) fn raise_for_host(&mut self, answer: &Answer) -> Next {
        if answer.vector == vector::PAGE_FAULT {
            self.state.vcpu_info.set_cr2(self.area.cr2);
        }
        self.raise(answer.vector & 0x1f, has_error_code(answer.vector).then_some(answer.error_code))
    }

    /// The hypercall `iret`: the frame is on the kernel's stack (`arch-x86/xen-x86_64.h`, `iret_context`).
    pub(crate) fn iret(&mut self) -> Next {
        let Ok([rax, r11, rcx, _flags, rip, cs, rflags, rsp, ss]) = self.read_words::<9>(self.area.frame.rsp) else {
            return self.kill(KillReason::BadKernelStack, self.area.frame.rsp);
        };
        if cs & u64::from(selector::RPL) == 3 {
            if self.area.user_cr3 == 0 {
                return self.kill(KillReason::NoUserPageTables, 0);
            }
            self.area.mode = MODE_USER;
            self.cpu.swap_gs();
        }
        let frame = &mut self.area.frame;
        frame.registers.rax = rax;
        frame.registers.r11 = r11;
        frame.registers.rcx = rcx;
        frame.rip = rip;
        frame.cs = cs & 0xffff | u64::from(selector::RPL);
        frame.rsp = rsp;
        frame.ss = ss & 0xffff | u64::from(selector::RPL);
        frame.rflags = rflags & OF_RETURN | flags::IF | flags::FIXED;
        self.state.vcpu_info.set_masked(rflags & flags::IF == 0);
        Next::Guest
    }

    /// The return to the guest failed: its segments or its instruction pointer are such as the CPU does not take. `error_code` is of the
    /// fault that came of it. The kernel takes a #GP of what it returned to as well as the failsafe callback, and the way to a handler
    /// of its own cannot fail: handlers' addresses are canonical, and the segments the monitor's.
    pub fn return_failed(&mut self, error_code: u64) -> Next {
        self.raise(vector::GENERAL_PROTECTION, Some(error_code))
    }
}
