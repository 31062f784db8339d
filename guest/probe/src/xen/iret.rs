//! The hypercall `iret`: to any place in any state.

use core::arch::asm;

use super::abi;
use super::abi::call;
use crate::exception;
use crate::exception::Fault;
use crate::exception::selector;
use crate::layout;
use crate::user;

/// `iret_context` (`arch-x86/xen-x86_64.h`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Context {
    /// RAX.
    pub rax: u64,
    /// R11.
    pub r11: u64,
    /// RCX.
    pub rcx: u64,
    /// How it returns; nothing that guests still use.
    pub flags: u64,
    /// Instruction pointer.
    pub rip: u64,
    /// Code segment; privilege level 3 is user mode.
    pub cs: u64,
    /// Flags, whose IF is the mask of events.
    pub rflags: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Stack segment.
    pub ss: u64,
}

/// The code that is returned to: UD2.
pub const CODE: u64 = layout::SCRATCH;
/// A stack of the kernel's.
pub const STACK: u64 = layout::SCRATCH + 0x8000;
/// Flags: the bit that is always set.
const FIXED: u64 = 1 << 1;

impl Context {
    /// To kernel mode, with events masked.
    pub const KERNEL: Self = Self {
        rax: 0x1111,
        r11: 0x2222,
        rcx: 0x3333,
        flags: 0,
        rip: CODE,
        cs: abi::selector::KERNEL_CODE as u64,
        rflags: FIXED,
        rsp: STACK,
        ss: abi::selector::DATA as u64,
    };
    /// To user mode.
    pub const USER: Self = Self {
        rip: layout::USER_PAGE,
        cs: selector::USER_CODE as u64,
        rsp: user::STACK,
        ss: selector::USER_DATA as u64,
        ..Self::KERNEL
    };

    /// Makes the call, with UD2 at both places that it may return to; gives the exception that came.
    #[must_use]
    pub fn go(self) -> Option<Fault> {
        const UD2: u16 = 0x0b0f;
        for place in [CODE, layout::USER_PAGE] {
            let place = core::ptr::with_exposed_provenance_mut::<u16>(usize::try_from(place).unwrap_or(0));
            // SAFETY: memory of the checks'.
            unsafe { place.write_volatile(UD2) }
        }
        exception::guarded(|| {
            let context = self;
            // SAFETY: the exception that follows unwinds to `guarded`.
            unsafe {
                asm!(
                    "mov rsp, {context}", "syscall", "ud2",
                    context = in(reg) &raw const context, in("rax") call::IRET, options(noreturn),
                );
            }
        })
    }
}
