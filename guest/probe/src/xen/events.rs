//! Event channels (Xen public headers, `event_channel.h`; 2-level bits): they are to a paravirtual guest what interrupts are to
//! others. `vcpu_info`'s mask is its interrupt flag.

use core::sync::atomic::AtomicU32;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::AcqRel;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::Ordering::SeqCst;

use super::abi::call;
use super::abi::channel;
use super::abi::sched;
use super::abi::version;
use super::hypercall::at;
use super::hypercall::hypercall;
use super::info;

/// Channels that are counted.
const COUNTED: usize = 256;

/// How often an event came on each channel.
static COUNTS: [AtomicU32; COUNTED] = [const { AtomicU32::new(0) }; COUNTED];
/// Calls of the handler, and those that found nothing.
static UPCALLS: AtomicU32 = AtomicU32::new(0);
static EMPTY: AtomicU32 = AtomicU32::new(0);
/// Channels whose events came, in that order.
static ORDER: [AtomicU32; 16] = [const { AtomicU32::new(0) }; 16];
static TAKEN: AtomicU64 = AtomicU64::new(0);

/// Forgets the events so far.
pub fn forget() {
    COUNTS.iter().for_each(|count| count.store(0, Relaxed));
    UPCALLS.store(0, Relaxed);
    EMPTY.store(0, Relaxed);
    TAKEN.store(0, Relaxed);
}

/// How often an event came on a channel since.
#[must_use]
pub fn count(channel: u32) -> u32 {
    COUNTS.get(channel as usize).map_or(0, |count| count.load(Relaxed))
}

/// How often the handler was called since.
#[must_use]
pub fn upcalls() -> u32 {
    UPCALLS.load(Relaxed)
}

/// How often it found nothing.
#[must_use]
pub fn empty() -> u32 {
    EMPTY.load(Relaxed)
}

/// The channel of the event that came as number `index`.
#[must_use]
pub fn order(index: usize) -> Option<u32> {
    (u64::try_from(index).is_ok_and(|index| index < TAKEN.load(Relaxed)))
        .then(|| ORDER.get(index).map(|channel| channel.load(Relaxed)))
        .flatten()
}

/// The handler: takes all events that wait and are not masked.
pub(crate) fn take() {
    UPCALLS.fetch_add(1, Relaxed);
    let mut found = false;
    let (vcpu, shared) = (info::vcpu(), info::shared());
    loop {
        vcpu.pending.store(0, SeqCst);
        let mut selector = vcpu.pending_selector.swap(0, AcqRel);
        if selector == 0 {
            break;
        }
        while selector != 0 {
            let word = selector.trailing_zeros();
            selector &= selector - 1;
            for bit in 0..64 {
                let channel = word * 64 + bit;
                if shared.is_pending(channel) && !shared.is_masked(channel) {
                    shared.set_pending(channel, false);
                    found = true;
                    note(channel);
                }
            }
        }
    }
    if !found {
        EMPTY.fetch_add(1, Relaxed);
    }
}

fn note(channel: u32) {
    if let Some(count) = COUNTS.get(channel as usize) {
        count.fetch_add(1, Relaxed);
    }
    let index = TAKEN.fetch_add(1, Relaxed);
    if let Some(slot) = usize::try_from(index).ok().and_then(|index| ORDER.get(index)) {
        slot.store(channel, Relaxed);
    }
}

/// Has events wait.
pub fn mask() {
    info::vcpu().mask.store(1, SeqCst);
}

/// Has events come; those that wait come now, by a hypercall that does nothing else.
pub fn unmask() {
    info::vcpu().mask.store(0, SeqCst);
    if info::vcpu().pending.load(SeqCst) != 0 {
        hypercall(call::XEN_VERSION, [version::VERSION]);
    }
}

/// Waits for an event, which comes; then events are masked.
pub fn wait() {
    block();
    mask();
}

/// `sched_op`: waits for an event with events not masked.
pub fn block() -> i64 {
    hypercall(call::SCHED_OP, [sched::BLOCK])
}

/// `event_channel_op` with an argument of words.
pub fn operate<const N: usize>(operation: u64, argument: &mut [u32; N]) -> i64 {
    hypercall(call::EVENT_CHANNEL_OP, [operation, at(argument.as_mut_ptr())])
}

/// The channel that an operation returns, not masked.
fn bound(result: i64, channel: u32) -> Result<u32, i64> {
    if result != 0 {
        return Err(result);
    }
    info::shared().set_masked(channel, false);
    Ok(channel)
}

/// Binds a virtual interrupt.
///
/// # Errors
/// The call's.
pub fn bind_virq(virq: u32) -> Result<u32, i64> {
    let mut argument = [virq, 0, 0];
    let result = operate(channel::BIND_VIRQ, &mut argument);
    bound(result, argument[2])
}

/// Binds a channel to the vCPU itself.
///
/// # Errors
/// The call's.
pub fn bind_ipi() -> Result<u32, i64> {
    let mut argument = [0, 0];
    let result = operate(channel::BIND_IPI, &mut argument);
    bound(result, argument[1])
}

/// Sends an event on a channel.
pub fn send(channel: u32) -> i64 {
    operate(channel::SEND, &mut [channel])
}

/// Frees a channel.
pub fn close(channel: u32) -> i64 {
    info::shared().set_masked(channel, true);
    operate(channel::CLOSE, &mut [channel])
}
