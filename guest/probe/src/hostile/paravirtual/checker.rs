//! The hypervisor's own look at the tables that the CPU walks. An attack may fail by luck: what it led to is not where the probe looks.
//! So after what an attack did, and in the middle of it, covisor is asked whether all of its tables lead to the guest's memory only. If
//! not, it ends the guest, with the reason in words.

use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;

use crate::xen::abi::call;
use crate::xen::hypercall::hypercall;

/// How often the tables were checked.
static TIMES: AtomicU32 = AtomicU32::new(0);

/// Has the tables checked, where the hypervisor does that. It does not come back from tables that are wrong.
pub(super) fn check() {
    if hypercall(call::CHECK, []) == 0 {
        TIMES.fetch_add(1, Relaxed);
    }
}

/// Has the tables checked as the attack left them, and says how often they were: whoever looks at the output knows these words.
pub(in crate::hostile) fn finish(name: &str) {
    check();
    match TIMES.load(Relaxed) {
        0 => println!("probe: {name}: the hypervisor does not check its tables, so nobody did"),
        times => println!("probe: {name}: the hypervisor's tables were checked {times} times"),
    }
}
