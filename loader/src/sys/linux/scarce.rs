//! The host's memory runs short, while a guest has RAM that it was not given yet.
//!
//! A vCPU that touches such RAM ends the guest with a reason ([`covisor_abi::KillReason::NoHostMemory`]). A thread of this process
//! cannot be told like that: it gets SIGBUS where it touches RAM itself, and EFAULT where the kernel was to copy there. Nothing can
//! go on then, so the process says why and ends; its files are what a killed process leaves.
//!
//! Before that the kernel looks for a process to end. Guest RAM counts for none, so it would take another one: therefore this one
//! asks to be counted with all that its guest may use.

use std::fs;
use std::sync::Once;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use super::terminal;

/// What the user reads, in the words of [`covisor_abi::KillReason::NoHostMemory`].
const NONE_LEFT: &str = "\r\ncovisor: error: the host has no memory left for RAM that the guest has begun to use: close programs, \
                         or run fewer guests at once\r\n";
/// `covisor run`'s status where the guest was ended.
const EXIT_GUEST: i32 = 3;

/// How likely the kernel is to end this process, by itself and with a part of all memory in thousandths (proc(5)).
const SCORE: &str = "/proc/self/oom_score_adj";

/// Addresses of this process between which guest RAM is mapped.
static START: AtomicUsize = AtomicUsize::new(usize::MAX);
static END: AtomicUsize = AtomicUsize::new(0);

/// Guest RAM is mapped here, at this address and with so many bytes; it ends at the guest-physical address `guest_end`.
pub(super) fn mapped(address: *const u8, size: usize, guest_end: u64) {
    static HANDLER: Once = Once::new();
    START.fetch_min(address.addr(), Ordering::SeqCst);
    END.fetch_max(address.addr().saturating_add(size), Ordering::SeqCst);
    HANDLER.call_once(install);
    if let Some(score) = score(guest_end, all_memory())
        && fs::read_to_string(SCORE).is_ok_and(|now| is_lower(&now, score))
    {
        // It is a wish.
        let _ = fs::write(SCORE, score.to_string());
    }
}

/// Whether the kernel's setting is nobody's own, and less than this.
fn is_lower(now: &str, score: u64) -> bool {
    now.trim().parse::<u64>().is_ok_and(|now| now < score)
}

/// The part of all memory that a guest may use, in thousandths.
fn score(guest: u64, all: u64) -> Option<u64> {
    guest.checked_mul(1000)?.checked_div(all).map(|score| score.min(1000))
}

/// Bytes of the host's memory.
fn all_memory() -> u64 {
    let number = |name| {
        // SAFETY: returns a number.
        u64::try_from(unsafe { libc::sysconf(name) }).unwrap_or(0)
    };
    number(libc::_SC_PHYS_PAGES).saturating_mul(number(libc::_SC_PAGESIZE))
}

fn install() {
    // SAFETY: all zeros are a value: no signal is blocked meanwhile.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = bus_error;
    action.sa_sigaction = handler as libc::sighandler_t;
    // A second one has the kernel's own answer.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESETHAND;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for, and does only what a handler may.
    unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) };
}

extern "C" fn bus_error(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel gives the signal's own, and SIGBUS has an address.
    let address = unsafe { (*info).si_addr() }.addr();
    if (START.load(Ordering::SeqCst)..END.load(Ordering::SeqCst)).contains(&address) {
        none_left();
    }
    // The instruction is tried again, and the kernel ends the process.
}

/// Ends this process, for guest RAM that it was to use cannot be had. May be called in a signal's handler: whoever touches guest RAM
/// holds none of the locks that are taken here.
pub(super) fn none_left() -> ! {
    terminal::restore();
    // Not by std's standard error, whose lock this thread may have.
    // SAFETY: the bytes are there. Then the process ends without anything that another thread could be in the middle of.
    unsafe {
        libc::write(libc::STDERR_FILENO, NONE_LEFT.as_ptr().cast(), NONE_LEFT.len());
        libc::_exit(EXIT_GUEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_a_guest_counts_with_its_part_of_the_host() {
        assert_eq!(score(1 << 30, 4 << 30), Some(250));
        assert_eq!(score(8 << 30, 4 << 30), Some(1000));
        assert_eq!((score(1 << 30, 0), score(u64::MAX, 1)), (None, None));
        assert!(all_memory() > 1 << 24);
    }

    #[test]
    fn test_what_somebody_set_stays() {
        assert!(is_lower("0\n", 250) && is_lower("200\n", 250));
        assert!(!is_lower("-1000\n", 250), "this process is never to be ended");
        assert!(!is_lower("300\n", 250) && !is_lower("", 250));
    }
}
