//! Exceptions, events and system calls of a paravirtual guest. The hypervisor puts a *bounce frame* on the kernel's stack: RCX, R11,
//! the error code where there is one, and what the CPU itself would put there. Without the first two it is what the stubs of
//! [`exception`] take, so these here only take them off.

use core::arch::global_asm;

use super::abi::call;
use super::abi::callback;
use super::abi::selector;
use super::hypercall::at;
use super::hypercall::hypercall;
use crate::exception;
use crate::exception::vector;

/// Events come as this vector, which means nothing else.
pub const EVENT: u8 = 0xf3;
/// A return to the guest that failed comes as this vector.
pub const FAILSAFE: u8 = 0xf4;
/// SYSCALL in 64-bit code of user mode comes as this vector.
pub const SYSCALL: u8 = 0xf5;
/// The same in 32-bit code.
pub const SYSCALL32: u8 = 0xf6;
/// Linux's vector for system calls: ring 3 may use it on any guest that has a handler. The probe has none.
pub const INT80: u8 = 0x80;

global_asm!(
    r#"
    .section .text.xen_stubs, "ax"
    .balign 16
    .globl probe_xen_stubs, probe_xen_failsafe
probe_xen_stubs:
    .Lprobe_xen_i = 0
    .rept 256
    .balign 16
    popq %rcx
    popq %r11
    jmp probe_stubs + 16 * .Lprobe_xen_i
    .Lprobe_xen_i = .Lprobe_xen_i + 1
    .endr

    /* Its frame has DS, ES, FS and GS behind R11. */
    .balign 16
probe_xen_failsafe:
    popq %rcx
    popq %r11
    addq $32, %rsp
    jmp probe_stubs + 16 * {failsafe}
    "#,
    failsafe = const FAILSAFE,
    options(att_syntax)
);

unsafe extern "C" {
    static probe_xen_stubs: [[u8; 16]; 256];
    fn probe_xen_failsafe();
}

/// Flag of a handler: events are masked on the way in.
const MASKS_EVENTS: u64 = 4;

/// The address of a vector's stub.
#[must_use]
pub fn stub(vector: u8) -> u64 {
    // SAFETY: the stubs exist for all 256 vectors; only an address is taken.
    unsafe { (&raw const probe_xen_stubs).cast::<[u8; 16]>().add(usize::from(vector)) as u64 }
}

/// The address of the failsafe callback.
#[must_use]
pub fn failsafe() -> u64 {
    probe_xen_failsafe as *const () as u64
}

/// `trap_info`: a handler that code of ring `privilege` may go to by INT n.
#[must_use]
pub fn handler(vector: u8, privilege: u64, address: u64) -> [u64; 2] {
    [u64::from(vector) | (privilege & 3 | MASKS_EVENTS) << 8 | u64::from(selector::CODE64) << 16, address]
}

/// `set_trap_table`.
pub fn set_table(table: &[[u64; 2]]) -> i64 {
    hypercall(call::SET_TRAP_TABLE, [at(table.as_ptr())])
}

/// Has a vector go to its stub, by INT n from ring `privilege` as well.
pub fn open(vector: u8, privilege: u64) -> i64 {
    set_table(&[handler(vector, privilege, stub(vector)), [0; 2]])
}

/// The handler that every vector has to begin with: its own stub.
fn own_handler(vector: u8) -> [u64; 2] {
    handler(vector, if vector == vector::BP { 3 } else { 0 }, stub(vector))
}

/// Has every vector go to its stub but for [`INT80`].
pub fn fill() -> i64 {
    hypercall(call::SET_TRAP_TABLE, [0]);
    let mut table = [[0_u64; 2]; 256];
    for (slot, vector) in table.iter_mut().zip((0..=u8::MAX).filter(|vector| *vector != INT80)) {
        *slot = own_handler(vector);
    }
    set_table(&table)
}

/// Has exceptions go to their stubs, and leaves the other vectors as they are.
pub fn fill_exceptions() -> i64 {
    let mut table = [[0_u64; 2]; 33];
    for (slot, vector) in table.iter_mut().zip(0..32) {
        *slot = own_handler(vector);
    }
    set_table(&table)
}

/// `callback_op`: registers a callback.
pub fn register(kind: u16, flags: u16, address: u64) -> i64 {
    let argument = [u64::from(kind) | u64::from(flags) << 16, address];
    hypercall(call::CALLBACK_OP, [callback::REGISTER, at(&raw const argument)])
}

/// Has callbacks go to their stubs.
pub fn register_all() -> i64 {
    let masks = callback::MASK_EVENTS;
    register(callback::EVENT, masks, stub(EVENT))
        | register(callback::FAILSAFE, masks, failsafe())
        | register(callback::SYSCALL, masks, stub(SYSCALL))
}

/// Has exceptions from user mode use this stack.
pub fn set_stack(top: u64) -> i64 {
    hypercall(call::STACK_SWITCH, [u64::from(selector::DATA), top])
}

/// Takes all exceptions and callbacks over.
///
/// # Panics
/// When the hypervisor refuses.
pub fn install() {
    let results = [fill(), register_all(), set_stack(exception::user_entry_stack())];
    assert!(results == [0; 3], "no handlers: {results:?}");
}
