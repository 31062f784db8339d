//! Hypercalls: SYSCALL with the number in RAX, arguments in RDI, RSI, RDX, R10 and R8, result in RAX (Xen public headers,
//! `arch-x86/xen-x86_64.h`). RCX and R11 are the instruction's.

use core::arch::asm;

use super::abi::DOMID_SELF;
use super::abi::call;
use super::abi::memory;
use super::abi::mmuext;
use super::abi::sched;

/// A hypercall; what it is not given, is 0.
pub fn hypercall<const N: usize>(number: u64, arguments: [u64; N]) -> i64 {
    let argument = |index: usize| arguments.get(index).copied().unwrap_or(0);
    let result: u64;
    // SAFETY: what the call may change of memory is the caller's to know; registers are kept but for those named.
    unsafe {
        asm!(
            "syscall",
            inout("rax") number => result,
            in("rdi") argument(0), in("rsi") argument(1), in("rdx") argument(2), in("r10") argument(3), in("r8") argument(4),
            out("rcx") _, out("r11") _,
        );
    }
    result.cast_signed()
}

/// The address of an argument in memory.
pub fn at<T: ?Sized>(argument: *const T) -> u64 {
    argument.expose_provenance() as u64
}

/// `mmu_update` of one entry.
pub fn mmu_update(pointer: u64, value: u64) -> i64 {
    let update = [pointer, value];
    hypercall(call::MMU_UPDATE, [at(&raw const update), 1, 0, DOMID_SELF])
}

/// `mmuext_op` of one operation.
pub fn mmuext(operation: u32, first: u64, second: u64) -> i64 {
    let operation = [u64::from(operation), first, second];
    hypercall(call::MMUEXT_OP, [at(&raw const operation), 1, 0, DOMID_SELF])
}

/// `update_va_mapping`.
pub fn update_va_mapping(address: u64, entry: u64, flags: u64) -> i64 {
    hypercall(call::UPDATE_VA_MAPPING, [address, entry, flags])
}

/// `mmuext_op`: forgets all translations.
pub fn flush() {
    mmuext(mmuext::TLB_FLUSH_LOCAL, 0, 0);
}

/// `update_descriptor`: `address` is a machine address.
pub fn update_descriptor(address: u64, descriptor: u64) -> i64 {
    hypercall(call::UPDATE_DESCRIPTOR, [address, descriptor])
}

/// `memory_op`: where the table of frames by machine frames is, its end, its last frame.
///
/// # Errors
/// The call's.
pub fn machphys_mapping() -> Result<[u64; 3], i64> {
    let mut mapping = [0_u64; 3];
    match hypercall(call::MEMORY_OP, [memory::MACHPHYS_MAPPING, at(&raw mut mapping)]) {
        0 => Ok(mapping),
        error => Err(error),
    }
}

/// `sched_op`: ends the machine.
pub fn shutdown(reason: u32) -> ! {
    loop {
        hypercall(call::SCHED_OP, [sched::SHUTDOWN, at(&raw const reason)]);
    }
}
