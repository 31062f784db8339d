//! covisor's monitor: what runs in ring 0 beside a guest that has no virtualization hardware.
//!
//! The guest's kernel runs in ring 3 by the 64-bit Xen PV ABI. The monitor serves its system calls, hypercalls, page faults and
//! events; what it cannot serve goes to the host (`area`). This library is all of it that can be tested as a program; the
//! binary beside it is linked at the addresses of `layout` and embedded into the driver.
#![cfg_attr(not(test), no_std)]

pub mod area;
pub mod bounce;
pub mod config;
pub mod crossing;
pub mod decode;
pub mod descriptor;
pub mod errno;
pub mod event;
pub mod frame;
mod guest_memory;
pub mod hypercall;
pub mod image;
pub mod layout;
pub mod machine;
#[cfg(test)]
mod machine_tests;
pub mod mmu;
pub mod processor;
pub mod shared_info;
pub mod state;
mod time;
mod trap;
