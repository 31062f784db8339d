//! covisor's probe guest: a bare 64-bit kernel that looks at an engine from inside.
//!
//! It is one ELF file with a PVH note, so it boots in covisor, in QEMU (`-kernel`) and in the small KVM program of
//! `tests/kvm-bench`: the same checks and the same measurements run on all of them. By its other notes it is a kernel for the 64-bit
//! Xen PV ABI as well ([`xen`]), for covisor's engine `coop` and for Xen. The command line says what to do:
//!
//! * `test=all` (or nothing): every check of [`checks::ALL`]; `test=NAME,NAME` only these;
//! * `test=bench`: what exits cost ([`bench`]);
//! * `test=entry`: only the time stamp counter at the first instruction;
//! * `test=NAME` of [`hostile::ALL`]: something that a guest must not get away with.
//!
//! `cpu=tcg` says that the CPU below is QEMU's own, whose known errors are then only noted.
//!
//! Modules are layered: [`cpu`], [`port`] wrap instructions; [`exception`] catches what they raise; [`apic`], [`pci`] are
//! the devices that checks need; [`report`] prints results.
#![no_std]

#[cfg(test)]
extern crate std;

#[macro_use]
pub mod serial;
#[macro_use]
pub mod exception;
#[macro_use]
pub mod cpu;
pub mod apic;
pub mod bench;
#[cfg(target_os = "none")]
pub mod boot;
pub mod checks;
pub mod cmdline;
pub mod hostile;
pub mod kernel;
pub mod layout;
pub mod legacy;
pub mod machine;
pub mod paging;
pub mod pci;
pub mod port;
pub mod report;
pub mod rng;
pub mod start;
pub mod time_info;
pub mod user;
pub mod xen;
