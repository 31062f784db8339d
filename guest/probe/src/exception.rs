//! Exceptions and interrupts: entry stubs, and a way to ask "what does this instruction raise?" The descriptor tables are in
//! `tables`.

mod tables;

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::fmt;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::AtomicU8;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering::Relaxed;

use crate::apic;
use crate::cpu;
use crate::xen;

pub use tables::CpuTable;
pub use tables::GDT;
pub use tables::IDT;
pub use tables::TSS;
pub use tables::TablePointer;
pub use tables::fill_idt;
pub use tables::gate;
pub use tables::install;
pub use tables::load_idt;
pub use tables::open_gate;
pub use tables::selector;
pub use tables::set_gate;
pub use tables::set_interrupt_stack;
pub use tables::user_entry_stack;

/// Exception vectors (APM vol. 2, 8.2).
pub mod vector {
    /// #DE.
    pub const DE: u8 = 0;
    /// #DB.
    pub const DB: u8 = 1;
    /// NMI.
    pub const NMI: u8 = 2;
    /// #BP.
    pub const BP: u8 = 3;
    /// #OF.
    pub const OF: u8 = 4;
    /// #UD.
    pub const UD: u8 = 6;
    /// #NM.
    pub const NM: u8 = 7;
    /// #DF.
    pub const DF: u8 = 8;
    /// #NP.
    pub const NP: u8 = 11;
    /// #SS.
    pub const SS: u8 = 12;
    /// #GP.
    pub const GP: u8 = 13;
    /// #PF.
    pub const PF: u8 = 14;
    /// #AC.
    pub const AC: u8 = 17;
}

/// What an instruction raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The vector.
    pub vector: u8,
    /// The error code; 0 where the vector has none.
    pub error: u64,
    /// Where.
    pub rip: u64,
}

impl Fault {
    /// Whether it is #GP with error code 0.
    #[must_use]
    pub const fn is_gp0(&self) -> bool {
        self.vector == vector::GP && self.error == 0
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 32] = [
            "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "#9", "#TS", "#NP", "#SS", "#GP", "#PF",
            "#15", "#MF", "#AC", "#MC", "#XF", "#20", "#CP", "#22", "#23", "#24", "#25", "#26", "#27", "#HV", "#VC",
            "#SX", "#31",
        ];
        match NAMES.get(usize::from(self.vector)) {
            Some(name) => write!(f, "{name}({:#x}) at {:#x}", self.error, self.rip),
            None => write!(f, "interrupt {:#x} at {:#x}", self.vector, self.rip),
        }
    }
}

/// The registers at an exception, as the entry stub stores them.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Frame {
    /// R15 down to R8, RDI, RSI, RBP, RBX, RDX, RCX, RAX.
    pub gprs: [u64; 15],
    /// Vector.
    pub vector: u64,
    /// Error code, or 0.
    pub error: u64,
    /// Instruction pointer.
    pub rip: u64,
    /// Code segment.
    pub cs: u64,
    /// Flags.
    pub rflags: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Stack segment.
    pub ss: u64,
}

/// Words of a [`Frame`].
const FRAME_WORDS: usize = 22;

impl Frame {
    const fn words(&self) -> [u64; FRAME_WORDS] {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o] = self.gprs;
        let Self { vector, error, rip, cs, rflags, rsp, ss, .. } = *self;
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, vector, error, rip, cs, rflags, rsp, ss]
    }

    const fn from_words(words: [u64; FRAME_WORDS]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, vector, error, rip, cs, rflags, rsp, ss] = words;
        Self { gprs: [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o], vector, error, rip, cs, rflags, rsp, ss }
    }

    /// What was raised.
    #[must_use]
    pub fn fault(&self) -> Fault {
        Fault { vector: u8::try_from(self.vector).unwrap_or(u8::MAX), error: self.error, rip: self.rip }
    }
}

/// Runs instructions and gives the exception that one of them raised, as `Option<Fault>`; after it, execution goes on
/// behind the last one. `r11` is used up.
macro_rules! catch {
    ([$($line:expr),+ $(,)?] $(, $($operand:tt)+)?) => {{
        // SAFETY: the exception handler knows where to go on; what the instructions may do is the caller's to know.
        #[allow(unused_unsafe, reason = "some callers are unsafe themselves")]
        unsafe {
            ::core::arch::asm!(
                "lea r11, [rip + 77f]",
                "mov [rip + PROBE_RECOVERY], r11",
                $($line,)+
                "77:",
                $($($operand)+,)?
                out("r11") _,
            );
        }
        $crate::exception::take_fault()
    }};
}

/// Where execution goes on after the next exception; 0: nowhere.
#[unsafe(no_mangle)]
static PROBE_RECOVERY: AtomicU64 = AtomicU64::new(0);

/// Stack pointer of the guarded call that runs ([`guarded`]); 0: none does.
#[unsafe(no_mangle)]
static PROBE_GUARD: AtomicU64 = AtomicU64::new(0);

/// Whether a fault was caught.
static CAUGHT: AtomicBool = AtomicBool::new(false);
/// The registers when it came, a word each as in [`Frame`].
static CAUGHT_FRAME: [AtomicU64; FRAME_WORDS] = [const { AtomicU64::new(0) }; FRAME_WORDS];
static CAUGHT_CR2: AtomicU64 = AtomicU64::new(0);
/// Where the frame was, and the handler's own flags.
static CAUGHT_AT: AtomicU64 = AtomicU64::new(0);
static CAUGHT_HANDLER_FLAGS: AtomicU64 = AtomicU64::new(0);
/// The mask of a paravirtual guest's events in the handler.
static CAUGHT_MASK: AtomicU8 = AtomicU8::new(0);

/// CR2 when the last fault was caught.
pub fn caught_cr2() -> u64 {
    CAUGHT_CR2.load(Relaxed)
}

/// Where the handler had its frame when the last fault was caught.
pub fn caught_at() -> u64 {
    CAUGHT_AT.load(Relaxed)
}

/// The handler's own RFLAGS when the last fault was caught.
pub fn caught_handler_flags() -> u64 {
    CAUGHT_HANDLER_FLAGS.load(Relaxed)
}

/// Whether a paravirtual guest's events were masked (1) in the handler when the last fault was caught.
pub fn caught_mask() -> u8 {
    CAUGHT_MASK.load(Relaxed)
}

/// RFLAGS when the last fault was caught.
pub fn caught_rflags() -> u64 {
    caught_frame().rflags
}

/// All registers when the last fault was caught.
pub fn caught_frame() -> Frame {
    let mut words = [0; FRAME_WORDS];
    for (word, caught) in words.iter_mut().zip(&CAUGHT_FRAME) {
        *word = caught.load(Relaxed);
    }
    Frame::from_words(words)
}

/// What `catch!` caught, and ends its protection.
pub fn take_fault() -> Option<Fault> {
    PROBE_RECOVERY.store(0, Relaxed);
    CAUGHT.swap(false, Relaxed).then(|| caught_frame().fault())
}

/// How often each vector was taken.
static COUNTS: [AtomicU32; 256] = [const { AtomicU32::new(0) }; 256];

/// The vectors of interrupts in the order in which they were taken.
static ORDER: [AtomicU32; 16] = [const { AtomicU32::new(0) }; 16];
static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// Time of the last interrupt, read first in its handler.
static LAST_TSC: AtomicU64 = AtomicU64::new(0);
/// Where it interrupted.
static LAST_RIP: AtomicU64 = AtomicU64::new(0);
/// RFLAGS when the last NMI came.
static NMI_RFLAGS: AtomicU64 = AtomicU64::new(0);

/// Whether the handler of interrupts sends the end of interrupt.
static AUTO_EOI: AtomicBool = AtomicBool::new(true);

/// Forgets the interrupts so far.
pub fn forget_interrupts() {
    COUNTS.iter().for_each(|count| count.store(0, Relaxed));
    TAKEN.store(0, Relaxed);
}

/// How often `vector` was taken since.
pub fn count(vector: u8) -> u32 {
    COUNTS.get(usize::from(vector)).map_or(0, |count| count.load(Relaxed))
}

/// How many interrupts were taken since.
pub fn taken() -> usize {
    TAKEN.load(Relaxed)
}

/// The vector of the interrupt that was taken as number `index`.
pub fn order(index: usize) -> Option<u32> {
    (index < taken()).then(|| ORDER.get(index).map(|vector| vector.load(Relaxed))).flatten()
}

/// When the last interrupt was taken.
pub fn last_tsc() -> u64 {
    LAST_TSC.load(Relaxed)
}

/// Where the last interrupt or debug exception came.
pub fn last_rip() -> u64 {
    LAST_RIP.load(Relaxed)
}

/// RFLAGS when the last NMI came.
pub fn nmi_rflags() -> u64 {
    NMI_RFLAGS.load(Relaxed)
}

/// Says whether the handler ends interrupts by itself.
pub fn set_auto_eoi(on: bool) {
    AUTO_EOI.store(on, Relaxed);
}

/// A function that the handler of NMIs calls.
struct NmiHook(UnsafeCell<Option<fn()>>);

// SAFETY: the probe runs on one CPU.
unsafe impl Sync for NmiHook {}

static NMI_HOOK: NmiHook = NmiHook(UnsafeCell::new(None));

/// Has the handler of NMIs call a function, with NMIs blocked; or no more.
pub fn on_nmi(hook: Option<fn()>) {
    // SAFETY: one CPU; no NMI is due.
    unsafe { *NMI_HOOK.0.get() = hook }
}

/// Addresses at which debug exceptions came, with DR6, while [`record_debug`] is on.
static DEBUG_ON: AtomicBool = AtomicBool::new(false);
static DEBUG_LOG: [(AtomicU64, AtomicU64); 16] = [const { (AtomicU64::new(0), AtomicU64::new(0)) }; 16];
static DEBUG_COUNT: AtomicUsize = AtomicUsize::new(0);

/// Takes #DB as an event to note instead of a fault.
pub fn record_debug(on: bool) {
    if on {
        DEBUG_COUNT.store(0, Relaxed);
    }
    DEBUG_ON.store(on, Relaxed);
}

/// The debug exceptions noted.
pub fn debug_count() -> usize {
    DEBUG_COUNT.load(Relaxed)
}

/// RIP and DR6 of the debug exception number `index`.
pub fn debug_event(index: usize) -> Option<(u64, u64)> {
    let (rip, dr6) = DEBUG_LOG.get(index)?;
    (index < debug_count()).then(|| (rip.load(Relaxed), dr6.load(Relaxed)))
}

/// Stops single-stepping when this many debug exceptions were noted.
const DEBUG_LIMIT: usize = DEBUG_LOG.len();

/// Trap flag.
pub const RFLAGS_TF: u64 = 1 << 8;
/// Interrupt flag.
const RFLAGS_IF: u64 = 1 << 9;
/// Direction flag.
const RFLAGS_DF: u64 = 1 << 10;
/// Nested task.
const RFLAGS_NT: u64 = 1 << 14;
/// Alignment check.
const RFLAGS_AC: u64 = 1 << 18;
/// Resume flag.
const RFLAGS_RF: u64 = 1 << 16;

/// Called by the stubs.
extern "C" fn on_exception(frame: &mut Frame) {
    let now = cpu::rdtsc();
    let number = u8::try_from(frame.vector).unwrap_or(u8::MAX);
    if let Some(count) = COUNTS.get(usize::from(number)) {
        count.fetch_add(1, Relaxed);
    }
    if number >= 32 && !(xen::active() && number == xen::traps::FAILSAFE) {
        LAST_TSC.store(now, Relaxed);
        LAST_RIP.store(frame.rip, Relaxed);
        let index = TAKEN.fetch_add(1, Relaxed);
        if let Some(slot) = ORDER.get(index) {
            slot.store(u32::from(number), Relaxed);
        }
        if xen::active() {
            if number == xen::traps::EVENT {
                xen::events::take();
            }
        } else if AUTO_EOI.load(Relaxed) {
            apic::end_of_interrupt();
        }
        // Ring 3 does not get the CPU back: it may be in a loop.
        if frame.cs & 3 == 3 && PROBE_GUARD.load(Relaxed) != 0 {
            unwind(frame, guard_address());
        }
        return;
    }
    if number == vector::NMI {
        LAST_TSC.store(now, Relaxed);
        LAST_RIP.store(frame.rip, Relaxed);
        NMI_RFLAGS.store(frame.rflags, Relaxed);
        // SAFETY: one CPU; `on_nmi` writes it while none is due.
        if let Some(hook) = unsafe { *NMI_HOOK.0.get() } {
            hook();
        }
        return;
    }
    if number == vector::DB && DEBUG_ON.load(Relaxed) {
        let index = DEBUG_COUNT.fetch_add(1, Relaxed);
        if let Some((rip, dr6)) = DEBUG_LOG.get(index) {
            rip.store(frame.rip, Relaxed);
            dr6.store(cpu::dr6(), Relaxed);
        }
        cpu::clear_dr6();
        frame.rflags |= RFLAGS_RF;
        if index + 1 >= DEBUG_LIMIT {
            frame.rflags &= !RFLAGS_TF;
        }
        return;
    }
    let recovery = PROBE_RECOVERY.swap(0, Relaxed);
    let target = if recovery == 0 && PROBE_GUARD.load(Relaxed) != 0 { guard_address() } else { recovery };
    if target == 0 {
        let fault = frame.fault();
        println!("probe: stray exception {fault}, rsp {:#x}, cr2 {:#x}", frame.rsp, cpu::cr2());
        crate::machine::power_off();
    }
    unwind(frame, target);
}

/// Notes what came, and goes on at `target`, in ring 0 (or what a paravirtual kernel has of it) with interrupts off.
fn unwind(frame: &mut Frame, target: u64) {
    CAUGHT.store(true, Relaxed);
    for (caught, word) in CAUGHT_FRAME.iter().zip(frame.words()) {
        caught.store(word, Relaxed);
    }
    CAUGHT_CR2.store(cpu::cr2(), Relaxed);
    CAUGHT_AT.store((&raw const *frame).expose_provenance() as u64, Relaxed);
    CAUGHT_HANDLER_FLAGS.store(cpu::rflags(), Relaxed);
    if xen::active() {
        CAUGHT_MASK.store(xen::info::vcpu().mask.load(Relaxed), Relaxed);
    }
    if target == guard_address() {
        // What comes right behind the IRET finds a stack there, whatever the guarded code made of it.
        frame.rsp = PROBE_GUARD.load(Relaxed);
    }
    frame.rip = target;
    frame.rflags &= !(RFLAGS_TF | RFLAGS_IF | RFLAGS_DF | RFLAGS_NT | RFLAGS_AC);
    let (code, data) = if xen::active() {
        (xen::abi::selector::KERNEL_CODE, xen::abi::selector::DATA)
    } else {
        (selector::KERNEL_CODE, selector::KERNEL_DATA)
    };
    frame.cs = u64::from(code);
    frame.ss = u64::from(data);
}

// The stubs: one each 16 bytes. Vectors whose exceptions push an error code: 8, 10 to 14, 17, 21, 29, 30. A paravirtual guest comes here
// by the stubs of `xen`, and returns by a hypercall (Xen public headers, `arch-x86/xen-x86_64.h`, `iret_context`).
global_asm!(
    r#"
    .section .text.stubs, "ax"
    .balign 16
    .globl probe_stubs
probe_stubs:
    .Lprobe_i = 0
    .rept 256
    .balign 16
    .if .Lprobe_i >= 32 || ((0x60227d00 >> .Lprobe_i) & 1) == 0
    pushq $0
    .endif
    pushq $.Lprobe_i
    jmp 1f
    .Lprobe_i = .Lprobe_i + 1
    .endr
1:  pushq %rax
    pushq %rcx
    pushq %rdx
    pushq %rbx
    pushq %rbp
    pushq %rsi
    pushq %rdi
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, %rdi
    cld
    call {handler}
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
    popq %rsi
    popq %rbp
    popq %rbx
    popq %rdx
    popq %rcx
    popq %rax
    addq $16, %rsp
    cmpb $0, PROBE_XEN(%rip)
    jne 3f
    iretq
3:  pushq $0
    pushq %rcx
    pushq %r11
    pushq %rax
    movl ${iret}, %eax
    syscall
    ud2

    /* u64 probe_guarded(void (*function)(void *), void *argument): 0, or 1 after an exception nobody waited for. */
    .globl probe_guarded
probe_guarded:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    subq $8, %rsp
    movq %rsp, PROBE_GUARD(%rip)
    movq %rdi, %rax
    movq %rsi, %rdi
    call *%rax
    xorl %eax, %eax
    jmp 2f
    .globl probe_guard_unwind
probe_guard_unwind:
    movq PROBE_GUARD(%rip), %rsp
    movl $1, %eax
2:  movq $0, PROBE_GUARD(%rip)
    addq $8, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret
    "#,
    handler = sym on_exception,
    iret = const xen::abi::call::IRET,
    options(att_syntax)
);

unsafe extern "C" {
    static probe_stubs: [[u8; 16]; 256];
    fn probe_guarded(function: extern "C" fn(*mut u8), argument: *mut u8) -> u64;
    fn probe_guard_unwind();
}

fn guard_address() -> u64 {
    probe_guard_unwind as *const () as u64
}

/// Calls `function`; gives the exception that ended it, if one did that nobody waited for.
pub fn guarded<F: FnMut()>(mut function: F) -> Option<Fault> {
    extern "C" fn call<F: FnMut()>(argument: *mut u8) {
        // SAFETY: `argument` is the closure below, which outlives the call.
        let function = unsafe { &mut *argument.cast::<F>() };
        function();
    }
    // SAFETY: the closure outlives the call; when an exception ends it, the stack is unwound to here without running
    // destructors, of which the checks have none that matter.
    let ended = unsafe { probe_guarded(call::<F>, (&raw mut function).cast()) };
    if ended == 0 {
        return None;
    }
    take_fault()
}

/// The address of a vector's entry stub.
#[must_use]
pub fn stub(vector: u8) -> u64 {
    // SAFETY: the stubs exist for all 256 vectors; only an address is taken.
    unsafe { (&raw const probe_stubs).cast::<[u8; 16]>().add(usize::from(vector)) as u64 }
}
