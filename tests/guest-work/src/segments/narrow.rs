//! Code of 32 and of 16 bits in a 64-bit program, with code, data and stack in segments of the table: their bases, their limits, and
//! interrupts while they are in use.
//!
//! All of it is in one page below 4 GiB, and so are the stack and the data behind it. The code begins when 64-bit code jumps to it,
//! and ends by a far jump back to 64-bit code in that page, or by a fault, whose signal's handler goes on there.

use std::arch::global_asm;
use std::mem;
use std::mem::offset_of;
use std::ptr;
use std::slice;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use crate::error::Result;
use crate::error::done;
use crate::error::ensure;
use crate::mmap::Mapping;
use crate::mmap::PAGE;
use crate::segments::ldt;
use crate::segments::ldt::Descriptor;

/// Entries of the table.
const CODE: u32 = 20;
/// As above: data and stack.
const DATA: u32 = 21;
/// As above: code of 16 bits.
const NARROW_CODE: u32 = 22;
/// As above: data and stack of 16 bits.
const NARROW_DATA: u32 = 23;
/// As above: not present.
const ABSENT: u32 = 24;

/// Selectors of Linux' own: 64-bit code, and data.
const LINUX_CODE: u16 = 0x33;
/// As above.
const LINUX_DATA: u64 = 0x2b;

/// Bytes of data that the segment has.
const LIMIT: u32 = 0x7ff;
/// Offset of the stack's end in it.
const STACK: u32 = 0x700;
/// How often the loops go round: long enough for many interrupts.
const SPINS: u32 = 3_000_000;
/// As above, for 16 bits.
const NARROW_SPINS: u32 = 60_000;

/// Exceptions.
const SEGMENT_NOT_PRESENT: u64 = 11;
/// As above.
const STACK_FAULT: u64 = 12;
/// As above.
const GENERAL_PROTECTION: u64 = 13;

/// Beginning of the page with the code. `back` has to be its first part: the code jumps by it.
#[derive(Debug)]
#[repr(C)]
struct Head {
    /// Where the code goes back to.
    back: u32,
    back_selector: u16,
    /// Stack pointer of the 64-bit code.
    rsp: u64,
    /// Where that goes on.
    continuation: u64,
    /// Where the code begins.
    entry: u32,
    entry_selector: u16,
}

/// Offset of the code in the page.
const CODE_AT: usize = 64;

global_asm!(
    // RDI is the head, ESI the selector of data and stack, EDX the stack pointer, ECX a count, R8D an offset for the code.
    // Returns what the code has in EAX.
    ".globl guest_work_enter",
    "guest_work_enter:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov [rdi + {rsp}], rsp",
    "lea rax, [rip + 2f]",
    "mov [rdi + {continuation}], rax",
    "mov ebx, r8d",
    "mov ds, esi",
    "mov ss, esi",
    "mov esp, edx",
    ".byte 0xff, 0x6f, {entry}", // JMP far [RDI + entry]
    "2:",
    "xor ecx, ecx",
    "mov ds, ecx",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",

    // All from here to the end is copied.
    ".globl guest_work_narrow",
    "guest_work_narrow:",
    // Back in 64-bit code: RIP-relative, from the page's start.
    "mov rsp, [rip + guest_work_narrow - {code_at} + {rsp}]",
    "jmp [rip + guest_work_narrow - {code_at} + {continuation}]",

    ".code32",
    ".globl guest_work_32",
    "guest_work_32:",
    "xor eax, eax",
    "2:",
    "inc dword ptr [4]",
    "push ecx",
    "pop edx",
    "add eax, edx",
    "dec ecx",
    "jnz 2b",
    "mov edx, [ebx]",
    ".byte 0x2e, 0xff, 0x2d, 0, 0, 0, 0", // JMP far CS:[0]
    // One push.
    ".globl guest_work_32_push",
    "guest_work_32_push:",
    "push eax",
    ".byte 0x2e, 0xff, 0x2d, 0, 0, 0, 0",
    // DS with the selector EBX.
    ".globl guest_work_32_load",
    "guest_work_32_load:",
    "xor eax, eax",
    "mov ds, ebx",
    ".byte 0x2e, 0xff, 0x2d, 0, 0, 0, 0",

    ".code16",
    ".globl guest_work_16",
    "guest_work_16:",
    "xor eax, eax",
    "2:",
    "inc dword ptr [4]",
    "push cx",
    "pop dx",
    "add ax, dx",
    "dec cx",
    "jnz 2b",
    "mov dx, [bx]",
    ".byte 0x66, 0x2e, 0xff, 0x2e, 0, 0",
    ".globl guest_work_narrow_end",
    "guest_work_narrow_end:",
    ".code64",
    rsp = const offset_of!(Head, rsp),
    continuation = const offset_of!(Head, continuation),
    entry = const offset_of!(Head, entry),
    code_at = const CODE_AT,
);

unsafe extern "C" {
    fn guest_work_enter(head: *mut Head, selector: u32, stack: u32, count: u32, offset: u32) -> u32;
    fn guest_work_narrow();
    fn guest_work_32();
    fn guest_work_32_push();
    fn guest_work_32_load();
    fn guest_work_16();
    fn guest_work_narrow_end();
}

/// The exception that the last signal was for.
static TRAP: AtomicU64 = AtomicU64::new(0);
/// Where its handler goes on: 64-bit code in the page.
static BACK: AtomicU64 = AtomicU64::new(0);

/// The signal's handler: notes what it was, and goes back to 64-bit code.
extern "C" fn on_fault(signal: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO a context.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let number = |value: i64| value.cast_unsigned();
    let selectors = number(registers[libc::REG_CSGSFS as usize]);
    if selectors & 0xffff == LINUX_CODE.into() {
        // None of ours: it comes again, and ends the program.
        // SAFETY: the default for a signal is always allowed.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    TRAP.store(number(registers[libc::REG_TRAPNO as usize]), Ordering::Relaxed);
    registers[libc::REG_RIP as usize] = BACK.load(Ordering::Relaxed).cast_signed();
    let kept = selectors & 0x0000_ffff_ffff_0000;
    registers[libc::REG_CSGSFS as usize] = (kept | u64::from(LINUX_CODE) | LINUX_DATA << 48).cast_signed();
}

/// Has the handler called, on a stack of its own: what the code has is none for it.
fn prepare(stack: &Mapping) -> Result<()> {
    let stack =
        libc::stack_t { ss_sp: ptr::with_exposed_provenance_mut(stack.address()), ss_flags: 0, ss_size: SIGNAL_STACK };
    // SAFETY: the stack lives as long as the handler is called, all zeros are a right action, and the handler has the right form.
    unsafe {
        done("sigaltstack", libc::sigaltstack(&raw const stack, ptr::null_mut()))?;
        for signal in [libc::SIGSEGV, libc::SIGBUS] {
            let mut action: libc::sigaction = mem::zeroed();
            action.sa_sigaction = on_fault as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            done("sigaction", libc::sigaction(signal, &raw const action, ptr::null_mut()))?;
        }
    }
    Ok(())
}

/// Bytes of the handler's stack.
const SIGNAL_STACK: usize = 16 * PAGE;

/// The page with the code, and the one with data and stack.
struct Pages {
    mapping: Mapping,
}

/// How the code ended: its result, or the exception.
type End = std::result::Result<u32, u64>;

impl Pages {
    fn new() -> Result<Self> {
        let mapping = Mapping::low(2 * PAGE)?;
        let start = guest_work_narrow as *const u8;
        // SAFETY: both are labels of this program's code, which can be read.
        let code = unsafe { slice::from_raw_parts(start, offset(guest_work_narrow_end as *const ())) };
        // SAFETY: the page is as long, and nobody's.
        unsafe { ptr::copy_nonoverlapping(code.as_ptr(), mapping_byte(&mapping, CODE_AT), code.len()) };
        BACK.store((mapping.address() + CODE_AT) as u64, Ordering::Relaxed);
        Ok(Self { mapping })
    }

    /// Calls code in a segment of the table.
    fn call(&mut self, code: *const (), selectors: (u32, u32), stack: u32, count: u32, argument: u32) -> End {
        let low = |value: usize| u32::try_from(value).unwrap_or(0);
        let head = Head {
            back: low(self.mapping.address() + CODE_AT),
            back_selector: LINUX_CODE,
            rsp: 0,
            continuation: 0,
            entry: low(CODE_AT + offset(code)),
            entry_selector: ldt::selector(selectors.0),
        };
        let place: *mut Head = ptr::with_exposed_provenance_mut(self.mapping.address());
        TRAP.store(0, Ordering::Relaxed);
        // SAFETY: the head is at the page's beginning, where the code has it. Whatever the code does, it comes back by the head or
        // by the signal's handler, with the stack and the registers that a function keeps.
        let result = unsafe {
            place.write(head);
            guest_work_enter(place, ldt::selector(selectors.1).into(), stack, count, argument)
        };
        match TRAP.load(Ordering::Relaxed) {
            0 => Ok(result),
            trap => Err(trap),
        }
    }

    /// The count that the code has in its data.
    fn count(&self) -> u32 {
        // SAFETY: the data is the second page.
        unsafe { mapping_byte(&self.mapping, PAGE + 4).cast::<u32>().read_volatile() }
    }
}

fn mapping_byte(mapping: &Mapping, at: usize) -> *mut u8 {
    ptr::with_exposed_provenance_mut(mapping.address() + at)
}

/// Offset of a label in what is copied.
fn offset(label: *const ()) -> usize {
    label.addr() - (guest_work_narrow as *const ()).addr()
}

/// What the loops add up to.
fn sum(count: u32) -> u32 {
    let count = u64::from(count);
    u32::try_from((count * (count + 1) / 2) & u64::from(u32::MAX)).unwrap_or(0)
}

/// Tries all of it, what limits refuse only if the CPU checks them; and says whether Linux lets there be segments of 16 bits.
pub(super) fn work(without_limits: bool) -> Result<&'static str> {
    let signal_stack = Mapping::private(SIGNAL_STACK)?;
    prepare(&signal_stack)?;
    let mut pages = Pages::new()?;
    let (code, data) = (pages.mapping.address(), pages.mapping.address() + PAGE);
    let limit = LIMIT as usize;
    Descriptor::code(code, PAGE - 1).install(CODE)?;
    Descriptor::data(data, limit).install(DATA)?;
    Descriptor::data(data, limit).not_present().install(ABSENT)?;

    let wide = (CODE, DATA);
    let expect = |what: &str, end: End, right: End| {
        ensure!(end == right, "{what}: {end:x?}, and should be {right:x?}");
        Ok(())
    };
    let spin = guest_work_32 as *const ();
    expect("32-bit code", pages.call(spin, wide, STACK, SPINS, 0), Ok(sum(SPINS)))?;
    ensure!(pages.count() == SPINS, "32-bit code counted to {}", pages.count());
    // The last word, and one byte too far.
    expect("a read at the limit", pages.call(spin, wide, STACK, 1, LIMIT - 3), Ok(1))?;
    if !without_limits {
        expect("a read past the limit", pages.call(spin, wide, STACK, 1, LIMIT - 2), Err(GENERAL_PROTECTION))?;
        let push = guest_work_32_push as *const ();
        expect("a push past the limit", pages.call(push, wide, LIMIT + 100, 0, 0), Err(STACK_FAULT))?;
    }
    let load = guest_work_32_load as *const ();
    let absent = ldt::selector(ABSENT).into();
    expect("a segment that is not present", pages.call(load, wide, STACK, 0, absent), Err(SEGMENT_NOT_PRESENT))?;
    let beyond = ldt::selector(ldt::MOST - 2).into();
    expect("a segment that is not there", pages.call(load, wide, STACK, 0, beyond), Err(GENERAL_PROTECTION))?;
    let code = ldt::selector(CODE).into();
    expect("readable code as data", pages.call(load, wide, STACK, 0, code), Ok(0))?;
    // With the data's segment moved, the same code finds other data.
    Descriptor::data(data + 16, limit).install(DATA)?;
    expect("a read past the limit that was", pages.call(spin, wide, STACK, 1, LIMIT - 3), Ok(1))?;
    expect("32-bit code again", pages.call(spin, wide, STACK, SPINS, 0), Ok(sum(SPINS)))?;

    let narrow = Descriptor::code(pages.mapping.address(), PAGE - 1).narrow();
    if narrow.install(NARROW_CODE).is_err() {
        return Ok("32-bit code, none of 16 bits");
    }
    Descriptor::data(data, limit).narrow().install(NARROW_DATA)?;
    let before = pages.count();
    let spin = guest_work_16 as *const ();
    for round in 1..=10 {
        let end = pages.call(spin, (NARROW_CODE, NARROW_DATA), STACK, NARROW_SPINS, 0);
        expect("16-bit code", end, Ok(sum(NARROW_SPINS) & 0xffff))?;
        let counted = pages.count().wrapping_sub(before);
        ensure!(counted == round * NARROW_SPINS, "16-bit code counted to {counted} in round {round}");
    }
    if !without_limits {
        let end = pages.call(spin, (NARROW_CODE, NARROW_DATA), STACK, 1, LIMIT);
        expect("a read past the limit in 16-bit code", end, Err(GENERAL_PROTECTION))?;
    }
    Ok("32-bit and 16-bit code")
}
