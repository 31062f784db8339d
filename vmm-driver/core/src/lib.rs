//! covisor's driver core: everything of the driver that is neither one CPU vendor's nor one host's.
//!
//! `core` owns policy, the engines own mechanism: an [`engine::Engine`] enters the guest and returns one [`exit::Exit`]
//! value, and [`run`] answers it once for all engines. What core needs of the operating system it asks of a
//! [`host::Host`]. Both are type parameters, so the way from an exit back into the guest has no indirect call.
//!
//! | module | concept |
//! |---|---|
//! | `device` | the device: handles, calls, which engine |
//! | `engine_slot` | an engine in the driver, switched on and off per CPU |
//! | `vm`, `vcpu`, `memory`, `state` | a VM, its vCPUs, its RAM, registers from and to the loader |
//! | `run` | the loop of a vCPU's thread around the engine |
//! | `exit`, `exits`, `rare_exits` | why the guest was left, and what that means |
//! | `cpuid`, `msr`, `policy` | what the guest's CPU has, and what may be loaded into it |
//! | `emulate`, `paging` | instructions that the CPU could not finish, and the guest's page tables |
//! | `apic`, `pvclock`, `doorbell` | interrupts, time, events to the loader |
//! | `paravirtual` | the same for guests that have event channels |
//! | `xstate`, `registers` | extended state, names of registers |
//! | `hypervisor` | who runs this machine, where it is a virtual one |
//! | `instructions` | privileged instructions that engines share |
//! | `mitigation` | what a guest must not find in the CPU's buffers |
//! | `nested` | nested page tables, whatever their entries look like |
//! | `permission_maps` | maps of ports and MSRs, whatever their bits mean |
//! | `delivery` | events on their way into the guest |
//! | `host_registers`, `debug_registers`, `reset` | the host's registers put aside; registers after reset |
//! | `tlb_tag` | the TLB's names for guests |
#![cfg_attr(not(any(test, feature = "test-support")), no_std)]

extern crate alloc;

pub mod apic;
pub mod cpuid;
pub mod debug_registers;
pub mod delivery;
pub mod device;
mod doorbell;
pub mod emulate;
pub mod engine;
mod engine_slot;
pub mod exit;
mod exits;
pub mod guest_registers;
pub mod host;
pub mod host_registers;
pub mod hypervisor;
pub mod instructions;
pub mod memory;
pub mod mitigation;
pub mod msr;
pub mod nested;
pub mod pae;
pub mod paging;
pub mod paravirtual;
pub mod permission_maps;
pub mod policy;
pub mod pvclock;
mod rare_exits;
pub mod registers;
pub mod reset;
mod run;
mod state;
#[cfg(any(test, feature = "test-support"))]
pub mod test_support;
#[cfg(any(test, feature = "test-vcpu"))]
pub mod test_vcpu;
pub mod tlb_tag;
mod vcpu;
mod vm;
pub mod xstate;
