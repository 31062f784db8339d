//! A 32-bit program for 64-bit guests, without a C library: it makes system calls by INT 0x80 and by the way that the kernel's page of
//! code (vDSO) has for the CPU, SYSENTER or SYSCALL; takes signals; has threads with storage of their own in segments.
//!
//! Built for `x86_64` it only says what it is.
#![cfg_attr(target_arch = "x86", no_std, no_main)]

#[cfg(target_arch = "x86")]
mod calls;
#[cfg(target_arch = "x86")]
mod output;
#[cfg(target_arch = "x86")]
mod signals;
#[cfg(target_arch = "x86")]
mod start;
#[cfg(target_arch = "x86")]
mod threads;

#[cfg(not(target_arch = "x86"))]
fn main() -> std::process::ExitCode {
    eprintln!("covisor-guest-work-32 is a 32-bit program, which `cargo xtask test` builds");
    std::process::ExitCode::FAILURE
}
