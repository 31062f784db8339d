//! The guest's time, and its one-shot timer.

use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;

use super::abi::call;
use super::abi::vcpu;
use super::abi::virq;
use super::events;
use super::hypercall::at;
use super::hypercall::hypercall;
use super::info;
use crate::cpu;

/// The timer's channel; 0: none yet.
static CHANNEL: AtomicU32 = AtomicU32::new(0);

/// Nanoseconds since the start.
#[must_use]
pub fn now() -> u64 {
    info::time().map_or(0, |time| time.nanoseconds(cpu::rdtsc()))
}

/// Sets the timer to a time.
pub fn set(at_time: u64, flags: u64) -> i64 {
    let argument = [at_time, flags];
    hypercall(call::VCPU_OP, [vcpu::SET_SINGLESHOT_TIMER, 0, at(&raw const argument)])
}

/// Stops it.
pub fn stop() -> i64 {
    hypercall(call::VCPU_OP, [vcpu::STOP_SINGLESHOT_TIMER, 0, 0])
}

/// Its channel, which is bound when it is first asked for.
///
/// # Panics
/// When the hypervisor refuses.
#[must_use]
pub fn channel() -> u32 {
    if CHANNEL.load(Relaxed) == 0 {
        // Xen has another timer, which ticks.
        hypercall(call::VCPU_OP, [vcpu::STOP_PERIODIC_TIMER, 0, 0]);
        match events::bind_virq(virq::TIMER) {
            Ok(channel) => CHANNEL.store(channel, Relaxed),
            Err(error) => panic!("no channel for the timer: {error}"),
        }
    }
    CHANNEL.load(Relaxed)
}

/// Has the timer's event come after so many nanoseconds.
pub fn after(nanoseconds: u64) {
    let _ = channel();
    set(now() + nanoseconds, 0);
}
