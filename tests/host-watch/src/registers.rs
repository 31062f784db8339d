//! Whether a program's registers keep their values while a guest runs on the same CPU.
//!
//! All of it happens in loops that spin, so that the host takes the CPU away from this program and gives it back at any
//! instruction: what is not restored then shows here.

use std::arch::asm;
use std::arch::x86_64::__rdtscp;
use std::io;
use std::ptr;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::last_error;
use crate::ticks::blocked;
use crate::ticks::comes;

/// How often a loop goes round before the values are looked at: some milliseconds.
const SPINS: u64 = 4_000_000;

/// Which function of arch_prctl(2) sets the base of GS, and which tells it.
const ARCH_SET_GS: libc::c_long = 0x1001;
const ARCH_GET_GS: libc::c_long = 0x1004;

/// Values in the sixteen vector registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
struct Vectors([[u64; 4]; 16]);

/// What the x87 and SSE units round and hide by: CR of the one, MXCSR of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
struct Controls {
    x87: u16,
    mxcsr: u32,
}

/// Watches until SIGTERM. One of the registers has a breakpoint, for this thread or `for_the_cpu`.
pub(crate) fn watch(for_the_cpu: bool) -> io::Result<()> {
    let terminate = blocked(libc::SIGTERM)?;
    let mark = Box::new(0x5eed_0f65_u64);
    set_gs_base(ptr::from_ref(&*mark).expose_provenance())?;
    let breakpoint = if for_the_cpu { Breakpoint::of_cpu(this_cpu())? } else { Breakpoint::of_this_thread()? };
    allow_port()?;
    let (mut rounds, mut changes) = (0_u64, Vec::new());
    while !comes(&terminate, Duration::ZERO)? {
        rounds += 1;
        changes.extend(vectors_change(rounds));
        changes.extend(controls_change());
        changes.extend(processor_number_changes());
        changes.extend(segment_bases_change(&mark)?);
        changes.extend(breakpoint.misses(rounds)?);
        use_port();
        if changes.len() > 10 {
            break;
        }
    }
    println!("registers: {rounds} rounds, {} changes", changes.len());
    for change in &changes {
        println!("{change}");
    }
    Ok(())
}

/// The POST code port, whose writes do nothing.
const PORT: u16 = 0x80;

/// Gets the permission for [`PORT`], which is a bit in the part of the task's segment that a VM exit of VT-x cuts off.
fn allow_port() -> io::Result<()> {
    // SAFETY: ioperm(2) takes numbers only.
    if unsafe { libc::ioperm(PORT.into(), 1, 1) } == 0 { Ok(()) } else { last_error() }
}

/// Writes to it: without the permission that ends the program by a signal.
fn use_port() {
    // SAFETY: the program has the permission, and nobody listens there but who displays POST codes.
    unsafe { asm!("out dx, al", in("dx") PORT, in("al") 0_u8, options(nomem, nostack, preserves_flags)) };
}

/// Fills all vector registers, spins, and looks at them.
fn vectors_change(seed: u64) -> Option<String> {
    let mut values = Vectors([[0; 4]; 16]);
    for (index, word) in (0_u64..).zip(values.0.as_flattened_mut()) {
        *word = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(7) ^ index.wrapping_mul(0x0123_4567_89ab_cdef);
    }
    let mut after = Vectors([[0; 4]; 16]);
    if std::arch::is_x86_feature_detected!("avx") {
        // SAFETY: the CPU has AVX, both arrays are as large as sixteen of its registers and aligned; the registers are
        // declared as overwritten.
        unsafe {
            asm!(
                "vmovaps ymm0, [{from}]", "vmovaps ymm1, [{from}+32]", "vmovaps ymm2, [{from}+64]",
                "vmovaps ymm3, [{from}+96]", "vmovaps ymm4, [{from}+128]", "vmovaps ymm5, [{from}+160]",
                "vmovaps ymm6, [{from}+192]", "vmovaps ymm7, [{from}+224]", "vmovaps ymm8, [{from}+256]",
                "vmovaps ymm9, [{from}+288]", "vmovaps ymm10, [{from}+320]", "vmovaps ymm11, [{from}+352]",
                "vmovaps ymm12, [{from}+384]", "vmovaps ymm13, [{from}+416]", "vmovaps ymm14, [{from}+448]",
                "vmovaps ymm15, [{from}+480]",
                "2: dec {spins}", "jnz 2b",
                "vmovaps [{to}], ymm0", "vmovaps [{to}+32], ymm1", "vmovaps [{to}+64], ymm2",
                "vmovaps [{to}+96], ymm3", "vmovaps [{to}+128], ymm4", "vmovaps [{to}+160], ymm5",
                "vmovaps [{to}+192], ymm6", "vmovaps [{to}+224], ymm7", "vmovaps [{to}+256], ymm8",
                "vmovaps [{to}+288], ymm9", "vmovaps [{to}+320], ymm10", "vmovaps [{to}+352], ymm11",
                "vmovaps [{to}+384], ymm12", "vmovaps [{to}+416], ymm13", "vmovaps [{to}+448], ymm14",
                "vmovaps [{to}+480], ymm15",
                "vzeroupper",
                from = in(reg) &raw const values, to = in(reg) &raw mut after, spins = inout(reg) SPINS => _,
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
                out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _, options(nostack),
            );
        }
    } else {
        after = values;
    }
    let changed = values.0.iter().zip(&after.0).position(|(before, after)| before != after)?;
    Some(format!("ymm{changed} was {:x?} and became {:x?}", values.0[changed], after.0[changed]))
}

/// Sets unusual rounding, spins, and looks at it.
fn controls_change() -> Option<String> {
    // Round to zero in both, all exceptions masked, which is what the program behind it expects of the masks.
    let set = Controls { x87: 0x0f7f, mxcsr: 0x7f80 };
    let (mut x87_was, mut x87_is, mut mxcsr_was, mut mxcsr_is) = (0_u16, 0_u16, 0_u32, 0_u32);
    // SAFETY: the pointers are to live values of the sizes that the instructions access; the controls are put back to
    // what they were before the block ends.
    unsafe {
        asm!(
            "fnstcw [{x87_was}]", "stmxcsr [{mxcsr_was}]",
            "fldcw [{x87}]", "ldmxcsr [{mxcsr}]",
            "2: dec {spins}", "jnz 2b",
            "fnstcw [{x87_is}]", "stmxcsr [{mxcsr_is}]",
            "fldcw [{x87_was}]", "ldmxcsr [{mxcsr_was}]",
            x87 = in(reg) &raw const set.x87, mxcsr = in(reg) &raw const set.mxcsr,
            x87_was = in(reg) &raw mut x87_was, mxcsr_was = in(reg) &raw mut mxcsr_was,
            x87_is = in(reg) &raw mut x87_is, mxcsr_is = in(reg) &raw mut mxcsr_is,
            spins = inout(reg) SPINS => _, options(nostack),
        );
    }
    let is = Controls { x87: x87_is, mxcsr: mxcsr_is };
    (is != set).then(|| format!("{set:x?} became {is:x?}"))
}

/// Whether TSC_AUX has the CPU's number, as Linux sets it (the node's is above bit 12).
fn processor_number_changes() -> Option<String> {
    let cpu = this_cpu();
    for _ in 0..100_000 {
        let mut aux = 0;
        // SAFETY: every CPU with AMD-V has RDTSCP; the pointer is to a live number.
        unsafe { __rdtscp(&raw mut aux) };
        // This program may have been moved to another CPU meanwhile.
        if aux & 0xfff != cpu && cpu == this_cpu() {
            return Some(format!("TSC_AUX is {aux:#x} on CPU {cpu}"));
        }
    }
    None
}

/// The number of the CPU that this runs on, by the kernel's word: the C library's function reads TSC_AUX.
fn this_cpu() -> u32 {
    let mut cpu = u32::MAX;
    // SAFETY: getcpu(2) writes the number; the other pointers may be null.
    unsafe { libc::syscall(libc::SYS_getcpu, &raw mut cpu, ptr::null_mut::<u32>(), ptr::null_mut::<u8>()) };
    cpu
}

fn set_gs_base(base: usize) -> io::Result<()> {
    // SAFETY: nothing in this program uses GS on x86-64 Linux, where FS is for thread-local storage.
    if unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, base) } == 0 { Ok(()) } else { last_error() }
}

/// Spins with reads by FS and GS.
fn segment_bases_change(mark: &u64) -> io::Result<Option<String>> {
    let thread = thread_pointer();
    for _ in 0..100_000 {
        let by_gs: u64;
        // SAFETY: GS's base is the address of `mark`, if it is what it should be; if not, this program may fault, which is
        // also told.
        unsafe { asm!("mov {}, gs:[0]", out(reg) by_gs, options(nostack, readonly, preserves_flags)) };
        if by_gs != *mark || thread_pointer() != thread {
            let mut base = 0_usize;
            // SAFETY: the pointer is to a live number.
            if unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_GET_GS, &raw mut base) } != 0 {
                return last_error();
            }
            return Ok(Some(format!("GS has base {base:#x} and reads {by_gs:#x}; FS reads {:#x}", thread_pointer())));
        }
    }
    Ok(None)
}

/// What is at FS:0: the thread's own address, by the ABI for thread-local storage.
fn thread_pointer() -> u64 {
    let pointer: u64;
    // SAFETY: the C library set it up so.
    unsafe { asm!("mov {}, fs:[0]", out(reg) pointer, options(nostack, readonly, preserves_flags)) };
    pointer
}

/// A breakpoint on writes to a word, by the CPU's debug registers, that counts.
struct Breakpoint {
    event: libc::c_int,
    word: Box<AtomicU64>,
}

/// `struct perf_event_attr` of perf_event_open(2), as far as breakpoints need it.
#[derive(Debug, Default)]
#[repr(C)]
struct EventAttributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint_type: u32,
    breakpoint_address: u64,
    breakpoint_length: u64,
}

/// `PERF_TYPE_BREAKPOINT`.
const EVENT_BREAKPOINT: u32 = 5;
/// `HW_BREAKPOINT_W`.
const ON_WRITE: u32 = 2;
/// `exclude_kernel` and `exclude_hv`.
const USER_ONLY: u64 = 1 << 5 | 1 << 6;

impl Breakpoint {
    /// One that the kernel loads whenever this thread runs.
    fn of_this_thread() -> io::Result<Self> {
        Self::new(0, -1)
    }

    /// One that the kernel loads once, and leaves in the CPU whatever runs there. This program has to stay on it.
    fn of_cpu(cpu: u32) -> io::Result<Self> {
        Self::new(-1, i32::try_from(cpu).map_err(io::Error::other)?)
    }

    /// One for a thread on any CPU, or for any thread on a CPU.
    fn new(thread: i32, cpu: i32) -> io::Result<Self> {
        let word = Box::new(AtomicU64::new(0));
        let attributes = EventAttributes {
            kind: EVENT_BREAKPOINT,
            size: u32::try_from(size_of::<EventAttributes>()).unwrap_or(0),
            flags: USER_ONLY,
            breakpoint_type: ON_WRITE,
            breakpoint_address: ptr::from_ref(&*word).expose_provenance() as u64,
            breakpoint_length: 8,
            ..EventAttributes::default()
        };
        // SAFETY: the structure says its own size and lives over the call.
        let event = unsafe { libc::syscall(libc::SYS_perf_event_open, &raw const attributes, thread, cpu, -1, 0) };
        match libc::c_int::try_from(event) {
            Ok(event) if event >= 0 => Ok(Self { event, word }),
            _ => last_error(),
        }
    }

    /// Writes the word, as in each round, and looks whether the CPU counted every time.
    fn misses(&self, rounds: u64) -> io::Result<Option<String>> {
        self.word.store(rounds, Ordering::Relaxed);
        let mut bytes = [0; 8];
        // SAFETY: the buffer is as long as is said.
        if unsafe { libc::read(self.event, bytes.as_mut_ptr().cast(), bytes.len()) } != 8 {
            return last_error();
        }
        let counted = u64::from_ne_bytes(bytes);
        Ok((counted != rounds).then(|| format!("the breakpoint counted {counted} writes of {rounds}")))
    }
}
