//! The first program of the guest that boots are measured with: prints the time stamp counter, and switches the machine
//! off.

use core::arch::x86_64::_rdtsc;

fn main() {
    // SAFETY: reads a counter that every x86-64 CPU has; Linux lets user space read it.
    let now = unsafe { _rdtsc() };
    println!("covisor-boot-init: tsc {now}");
    // SAFETY: nothing is left to be written: the root is in memory.
    unsafe { libc::reboot(libc::RB_POWER_OFF) };
}
