//! `covisor.sys`: the driver file for Windows. It implements [`Kapi`](covisor_nt::Kapi) by `wdk-sys`, makes the device and hands
//! requests to the port, `covisor-nt`, which has the logic.
//!
//! All functions that it imports are in NT 5.2, the first NT for x64; the build checks that (`nt-5.2.exports`). So one file is
//! loaded by every NT. What came later the port asks for by name.
//!
//! | module | concept |
//! |---|---|
//! | `entry` | the driver's start and end, and what the kernel tells it of |
//! | `device` | the device, and requests on it |
//! | `security` | who may open it |
//! | `kernel`, `imports`, `user_mapping` | the kernel's functions |
//! | `heap`, `print` | Rust's heap and log |
//! | `wine` | for tests: what Wine lacks, in the variant of the driver that is built for it (feature `wine`) |
#![no_std]

extern crate alloc;
// Its panic handler: a bug in the driver is a bug check, "RPNC".
extern crate wdk_panic;

#[cfg(target_feature = "sse")]
compile_error!(
    "the driver must not use SSE registers, which are the guest's while it answers an exit: build it for a target without them, \
     by `cargo xtask build --host windows driver`, or on Windows as docs/windows.md says"
);

mod device;
mod entry;
mod heap;
mod imports;
mod kernel;
mod print;
mod security;
mod user_mapping;
#[cfg(feature = "wine")]
mod wine;

use covisor_nt::NtStatus;
use wdk_sys::UNICODE_STRING;

#[cfg(not(feature = "wine"))]
use crate::device::dispatch;
#[cfg(not(feature = "wine"))]
use crate::entry::unload;
#[cfg(not(feature = "wine"))]
use crate::kernel::Kernel;
#[cfg(not(feature = "wine"))]
use crate::kernel::start;
#[cfg(feature = "wine")]
use crate::wine::Kernel;
#[cfg(feature = "wine")]
use crate::wine::dispatch;
#[cfg(feature = "wine")]
use crate::wine::start;
#[cfg(feature = "wine")]
use crate::wine::unload;

#[global_allocator]
static HEAP: heap::Pool = heap::Pool;

/// What an NT function returned, as a result: negative numbers are errors and warnings.
fn status(status: wdk_sys::NTSTATUS) -> Result<(), NtStatus> {
    if status < 0 { Err(NtStatus(status)) } else { Ok(()) }
}

/// ASCII as UTF-16.
const fn utf16<const LENGTH: usize>(text: &[u8; LENGTH]) -> [u16; LENGTH] {
    let mut units = [0; LENGTH];
    let mut index = 0;
    while index < LENGTH {
        units[index] = text[index] as u16;
        index += 1;
    }
    units
}

/// A string as the kernel takes it.
fn string(text: &'static [u16]) -> UNICODE_STRING {
    #[expect(clippy::cast_possible_truncation, reason = "names of a few letters")]
    let bytes = size_of_val(text) as u16;
    UNICODE_STRING { Length: bytes, MaximumLength: bytes, Buffer: text.as_ptr().cast_mut() }
}
