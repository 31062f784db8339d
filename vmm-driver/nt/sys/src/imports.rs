//! Functions of the kernel that `wdk-sys` does not have with one or the other set of headers: Microsoft's have some as macros, mingw-w64's
//! lack some, and `wdk-sys` leaves out those that are deprecated, which are the ones that every NT has.

use core::ffi::c_void;

use wdk_sys::NTSTATUS;

unsafe extern "C" {
    /// NT 3.1; at most DISPATCH_LEVEL.
    pub(crate) fn ExAllocatePoolWithTag(kind: i32, bytes: usize, tag: u32) -> *mut c_void;
    /// NT 4; at most DISPATCH_LEVEL.
    pub(crate) fn ExFreePoolWithTag(block: *mut c_void, tag: u32);
    /// NT 3.1; any IRQL.
    pub(crate) fn IofCompleteRequest(irp: *mut c_void, boost: i8);
    /// NT 3.1; any IRQL.
    pub(crate) fn ObfDereferenceObject(object: *mut c_void) -> isize;
    /// NT 3.1; any IRQL.
    pub(crate) fn ObfReferenceObject(object: *mut c_void) -> isize;
    /// NT 5.0; any IRQL.
    pub(crate) fn PsGetCurrentThread() -> *mut c_void;
    /// NT 5.0; any IRQL.
    pub(crate) fn PsIsThreadTerminating(thread: *mut c_void) -> u8;
    /// NT 5.0; any IRQL.
    pub(crate) fn IoGetCurrentProcess() -> *mut c_void;
    /// NT 5.0; at most APC_LEVEL.
    pub(crate) fn KeStackAttachProcess(process: *mut c_void, state: *mut c_void);
    /// NT 5.0; at most APC_LEVEL.
    pub(crate) fn KeUnstackDetachProcess(state: *mut c_void);
    /// NT 3.1; PASSIVE_LEVEL.
    pub(crate) fn ZwQuerySystemInformation(class: i32, buffer: *mut c_void, bytes: u32, written: *mut u32) -> NTSTATUS;
    /// NT 3.1; PASSIVE_LEVEL.
    pub(crate) fn ZwSetSecurityObject(handle: *mut c_void, what: u32, descriptor: *mut c_void) -> NTSTATUS;
    /// NT 3.1; PASSIVE_LEVEL.
    pub(crate) fn ZwAllocateVirtualMemory(
        process: isize,
        address: *mut usize,
        zero_bits: usize,
        bytes: *mut usize,
        kind: u32,
        protection: u32,
    ) -> NTSTATUS;
    /// NT 3.1; PASSIVE_LEVEL.
    pub(crate) fn ZwFreeVirtualMemory(process: isize, address: *mut usize, bytes: *mut usize, kind: u32) -> NTSTATUS;
    /// NT 5.0; at most APC_LEVEL.
    pub(crate) fn KeRevertToUserAffinityThread();

    /// The slot that the loader fills with the address of the kernel's variable, which is a pointer to the type of event objects.
    #[link_name = "__imp_ExEventObjectType"]
    pub(crate) static EVENT_OBJECT_TYPE: *const *mut c_void;
}
