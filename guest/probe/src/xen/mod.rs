//! The probe as a paravirtual guest: in ring 3, by the 64-bit Xen PV ABI (Xen public headers). Under covisor's engine `coop` it is
//! entered here, and under Xen itself too: the same image, the same checks. What differs from a machine of its own is behind the
//! functions of `cpu`, `exception`, `user` and `machine`, which ask [`active`].

pub mod abi;
#[cfg(target_os = "none")]
mod boot;
pub mod console;
pub mod events;
pub mod frames;
pub mod hypercall;
pub mod info;
pub mod iret;
pub mod multicall;
pub mod segments;
pub mod tables;
pub mod timer;
pub mod traps;
pub mod window;

use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering::Relaxed;

use crate::cmdline::CommandLine;
use crate::layout;
use crate::report;
use crate::start;

use self::abi::call;
use self::abi::physdev;
use self::abi::version;
use self::hypercall::at;
use self::hypercall::hypercall;
use self::info::StartInfo;

/// Whether the probe runs so. The stubs of `exception` ask as well.
#[unsafe(no_mangle)]
static PROBE_XEN: AtomicBool = AtomicBool::new(false);

/// Whether the probe is a paravirtual guest.
#[must_use]
pub fn active() -> bool {
    PROBE_XEN.load(Relaxed)
}

/// Whether the hypervisor is covisor, not Xen: what is beyond the ABI is only expected of it.
#[must_use]
pub fn is_covisor() -> bool {
    let mut text = [0_u8; 16];
    hypercall(call::XEN_VERSION, [version::EXTRA_VERSION, at(text.as_mut_ptr())]);
    text.starts_with(b".covisor")
}

/// Entered from `boot`.
///
/// # Safety
/// `info` is what the hypervisor left in RSI: its own `start_info`.
pub unsafe extern "C" fn start(info: *const StartInfo, entry_tsc: u64) -> ! {
    PROBE_XEN.store(true, Relaxed);
    // SAFETY: by the contract.
    let info = unsafe { info.read() };
    let line = CommandLine::from_bytes(info.command_line.iter().copied());
    frames::set_list(info.frame_list, info.pages);
    tables::set_kernel(info.page_tables);
    let shared = frames::take_for_good();
    let result = hypercall::update_va_mapping(shared, info.shared_info | tables::RW, abi::uvmf::INVLPG);
    assert!(result == 0, "shared_info cannot be mapped: {result}");
    info::set_shared(shared);
    traps::install();
    segments::install();
    tables::make_users(layout::USER_PAGE);
    for page in 0..2 {
        let address = layout::HOLE + page * frames::PAGE;
        tables::map(address, address, tables::RW | tables::CACHE_DISABLE);
    }
    report::set_reference(!is_covisor());
    // Ports are the kernel's, if it asks for them.
    let privilege = 1_u32;
    hypercall(call::PHYSDEV_OP, [physdev::SET_IOPL, at(&raw const privilege)]);
    start::go(&line, entry_tsc)
}
