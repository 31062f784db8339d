//! Ring 0: a few bytes of code at a time, at an address that is known.

use core::arch::asm;

use crate::exception;
use crate::exception::Fault;
use crate::layout;

/// Where the code is.
pub const CODE: u64 = layout::SCRATCH;

/// Executes `code` in ring 0, with RAX at scratch memory, RCX and RDX at 0; gives the exception that it raised. It may
/// change RAX and memory below the stack.
pub fn raised(code: &[u8]) -> Option<Fault> {
    const RET: u8 = 0xc3;
    let page = core::ptr::with_exposed_provenance_mut::<u8>(usize::try_from(CODE).unwrap_or(0));
    for (index, byte) in code.iter().copied().chain([RET]).enumerate() {
        // SAFETY: scratch memory, far larger than an instruction.
        unsafe { page.add(index).write_volatile(byte) }
    }
    exception::guarded(|| {
        // SAFETY: by this function's contract with its callers, checks all of them, which know what they execute.
        unsafe {
            asm!(
                "call {}", in(reg) page, inout("rax") layout::SCRATCH + 0x1000 => _, in("rcx") 0_u64, in("rdx") 0_u64,
                clobber_abi("C"),
            );
        }
    })
}
