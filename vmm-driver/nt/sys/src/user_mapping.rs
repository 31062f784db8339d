//! Mapping pages into a program: the one call whose failure is an exception.

use core::arch::global_asm;
use core::ffi::c_void;

use wdk_sys::MDL;

// covisor_map_to_user(mdl, address, priority): calls MmMapLockedPagesSpecifyCache(mdl, UserMode, MmCached, address, FALSE, priority)
// and returns what it does, or null where it raises an exception. C has `__try` for that; it becomes the table of NT's x64
// exception handling that is written here: any exception in the call ends at label `failed`, with the stack as it is in this function.
global_asm!(
    ".section .text$covisor_map_to_user, \"xr\"",
    ".globl covisor_map_to_user",
    ".def covisor_map_to_user; .scl 2; .type 32; .endef",
    ".balign 16",
    "covisor_map_to_user:",
    ".seh_proc covisor_map_to_user",
    // Room for the arguments of the callee: four in registers, two beside.
    "sub rsp, 0x38",
    ".seh_stackalloc 0x38",
    ".seh_endprologue",
    "mov [rsp + 0x28], r8d",
    "mov dword ptr [rsp + 0x20], 0",
    "mov r9, rdx",
    "mov r8d, {cached}",
    "mov edx, {user_mode}",
    ".Lcovisor_map_begin:",
    "call MmMapLockedPagesSpecifyCache",
    // The return address is to be in the guarded range, not at its end.
    "nop",
    ".Lcovisor_map_end:",
    "add rsp, 0x38",
    "ret",
    ".Lcovisor_map_failed:",
    "xor eax, eax",
    "add rsp, 0x38",
    "ret",
    ".seh_handler __C_specific_handler, @except",
    ".seh_handlerdata",
    ".long 1",
    ".rva .Lcovisor_map_begin",
    ".rva .Lcovisor_map_end",
    // EXCEPTION_EXECUTE_HANDLER in the place of a filter.
    ".long 1",
    ".rva .Lcovisor_map_failed",
    ".section .text$covisor_map_to_user, \"xr\"",
    ".seh_endproc",
    ".text",
    cached = const 1, // MmCached
    user_mode = const 1, // UserMode
);

unsafe extern "C" {
    /// See above. At most APC_LEVEL.
    pub(crate) fn covisor_map_to_user(mdl: *mut MDL, address: usize, priority: u32) -> *mut c_void;
}
