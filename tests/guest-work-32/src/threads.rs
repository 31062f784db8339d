//! Threads, each with a segment of its own that GS has, by set_thread_area(2) and clone(2).

use core::arch::asm;
use core::arch::global_asm;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering::Acquire;
use core::sync::atomic::Ordering::Relaxed;

use crate::calls::Kernel;
use crate::calls::PAGE;
use crate::calls::exit_thread;
use crate::calls::number;
use crate::calls::yield_now;
use crate::start::Done;

/// Threads beside the first.
const THREADS: usize = 4;
/// How often each looks at its segment.
const ROUNDS: usize = 400;
/// Words that a thread has in its segment.
const WORDS: usize = 4;
/// Bytes of a thread's stack.
const STACK: usize = 4 * PAGE;
/// Where a thread's stack begins, from its end: so that the calling convention's alignment holds where its function is called.
const FIRST_FRAME: usize = 20;
/// `CLONE_VM`, `_FS`, `_FILES`, `_SIGHAND`, `_THREAD`, `_SYSVSEM`, `_SETTLS`, `_CHILD_CLEARTID`.
const CLONE_THREAD: usize = 0x100 | 0x200 | 0x400 | 0x800 | 0x1_0000 | 0x4_0000 | 0x8_0000 | 0x20_0000;
/// Waits while a word has a value.
const FUTEX_WAIT: usize = 0;

global_asm!(
    // clone with the arguments in EBX, ECX, EDX, ESI, EDI, as `arguments` has them. The new thread calls the function that its stack
    // begins with, which does not return.
    ".globl guest_work_clone",
    "guest_work_clone:",
    "push ebx",
    "push esi",
    "push edi",
    "mov eax, [esp + 16]",
    "mov ebx, [eax]",
    "mov ecx, [eax + 4]",
    "mov edx, [eax + 8]",
    "mov esi, [eax + 12]",
    "mov edi, [eax + 16]",
    "mov eax, {clone}",
    "int 0x80",
    "test eax, eax",
    "jz 2f",
    "pop edi",
    "pop esi",
    "pop ebx",
    "ret",
    "2:",
    "xor ebp, ebp",
    "pop eax",
    "call eax",
    "ud2",
    clone = const number::CLONE,
);

unsafe extern "C" {
    fn guest_work_clone(arguments: *const [usize; 5]) -> isize;
}

/// `struct user_desc`: entry (-1: the kernel chooses one), base, limit, and flags.
#[repr(C)]
#[derive(Clone, Copy)]
struct Segment {
    entry: u32,
    base: u32,
    limit: u32,
    flags: u32,
}

/// Flags: of 32 bits, the limit counts pages, usable.
const SEGMENT_FLAGS: u32 = 1 | 1 << 4 | 1 << 6;

impl Segment {
    fn of(storage: &Storage, entry: u32) -> Self {
        Self { entry, base: (&raw const *storage).addr() as u32, limit: 0xf_ffff, flags: SEGMENT_FLAGS }
    }
}

/// A thread's storage: its words, and what the kernel sets to 0 when it has ended.
struct Storage {
    words: [AtomicUsize; WORDS],
    runs: AtomicU32,
}

static STORAGES: [Storage; THREADS + 1] =
    [const { Storage { words: [const { AtomicUsize::new(0) }; WORDS], runs: AtomicU32::new(0) } }; THREADS + 1];

/// Threads that found something wrong.
static WRONG: AtomicUsize = AtomicUsize::new(0);
/// Threads that have begun.
static BEGUN: AtomicUsize = AtomicUsize::new(0);

/// A word of this thread's segment.
fn by_gs(word: usize) -> usize {
    let value;
    // SAFETY: GS has a segment that begins with this thread's storage.
    unsafe { asm!("mov {}, gs:[{}]", out(reg) value, in(reg) word * 4, options(nostack, readonly, preserves_flags)) };
    value
}

/// The selector of an entry, for ring 3.
const fn selector(entry: u32) -> u32 {
    entry << 3 | 3
}

/// What a word of a thread is.
const fn value(thread: usize, word: usize) -> usize {
    thread.wrapping_mul(0x0101_0101) ^ word
}

/// Looks at its words again and again while others run, and computes in SSE registers meanwhile.
fn look(thread: usize) {
    let mut sum = 0.0;
    for round in 0..ROUNDS {
        let word = round % WORDS;
        sum += f64::from(thread as u32) * 0.5;
        if by_gs(word) != value(thread, word) {
            WRONG.fetch_add(1, Relaxed);
        }
        yield_now();
    }
    if sum != f64::from((thread * ROUNDS) as u32) * 0.5 {
        WRONG.fetch_add(1, Relaxed);
    }
}

/// What a new thread does. GS is the kernel's to load, as the call that made it said.
extern "C" fn begin() -> ! {
    BEGUN.fetch_add(1, Relaxed);
    look(by_gs(0) / 0x0101_0101);
    exit_thread()
}

/// Has all threads look, this one among them.
pub(crate) fn work() -> Done {
    for (thread, storage) in STORAGES.iter().enumerate() {
        for (word, at) in storage.words.iter().enumerate() {
            at.store(value(thread, word), Relaxed);
        }
    }
    let own = STORAGES.last().ok_or("there is no storage")?;
    let mut segment = Segment::of(own, u32::MAX);
    // SAFETY: the structure lives over the call, and nothing here uses the entry yet.
    let set = unsafe { Kernel::ByInterrupt.call(number::SET_THREAD_AREA, [(&raw mut segment).addr(), 0, 0, 0, 0, 0]) };
    if set != 0 {
        return Err("set_thread_area is refused");
    }
    // SAFETY: the segment was set, and nothing but `by_gs` uses GS.
    unsafe { asm!("mov gs, {:e}", in(reg) selector(segment.entry), options(nostack, preserves_flags)) };
    STORAGES.iter().take(THREADS).try_for_each(|storage| start(storage, segment.entry))?;
    look(THREADS);
    for storage in STORAGES.iter().take(THREADS) {
        wait(&storage.runs);
    }
    if WRONG.load(Relaxed) != 0 {
        return Err("a thread does not find its own segment, or computes wrong");
    }
    if BEGUN.load(Relaxed) == THREADS { Ok(()) } else { Err("not all threads ran") }
}

/// Starts a thread with a segment and a stack of its own.
fn start(storage: &'static Storage, entry: u32) -> Done {
    let segment = Segment::of(storage, entry);
    storage.runs.store(1, Relaxed);
    let stack = Kernel::ByInterrupt.map(None, STACK)? + STACK - FIRST_FRAME;
    let first = core::ptr::with_exposed_provenance_mut::<usize>(stack);
    let arguments = [CLONE_THREAD, stack, 0, (&raw const segment).addr(), (&raw const storage.runs).addr()];
    // SAFETY: the stack is new, and has the function; the segment lives over the call, the storage as long as the program.
    let thread = unsafe {
        first.write((begin as *const ()).addr());
        guest_work_clone(&raw const arguments)
    };
    if thread > 0 { Ok(()) } else { Err("clone is refused") }
}

/// Waits until the kernel has set the word to 0.
fn wait(runs: &AtomicU32) {
    while runs.load(Acquire) != 0 {
        // SAFETY: the word lives as long as the program.
        unsafe {
            Kernel::ByInterrupt.call(number::FUTEX, [(&raw const *runs).addr(), FUTEX_WAIT, 1, 0, 0, 0]);
        }
    }
}
