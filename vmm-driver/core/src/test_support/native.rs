//! Runs single instructions natively in this process, to compare the emulator with the CPU.
//!
//! Code and data lie at fixed linear addresses, which a test's guest maps as well. Instructions must be harmless: no
//! privileged ones, no branches, memory operands in the data pages only.

use std::arch::global_asm;
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

/// Linear address of the page with the code.
pub const NATIVE_CODE: u64 = 0x2000_0000;
/// Linear address of the data pages.
pub const NATIVE_DATA: u64 = 0x2100_0000;
/// Bytes of data: two pages.
pub const NATIVE_DATA_SIZE: usize = 0x2000;

/// Registers before and after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct NativeState {
    /// General registers by their number.
    pub gprs: [u64; 16],
    /// Flags; of those before, only the status and direction flags count.
    pub flags: u64,
}

/// What the assembly below works with.
#[repr(C)]
struct Exchange {
    state: NativeState,
    stack: u64,
    code: u64,
}

static mut EXCHANGE: Exchange =
    Exchange { state: NativeState { gprs: [0; 16], flags: 0 }, stack: 0, code: NATIVE_CODE };

unsafe extern "C" {
    fn covisor_native_run();
    fn covisor_native_resume();
}

global_asm!(
    ".global covisor_native_run",
    "covisor_native_run:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov [rip + {exchange} + 17*8], rsp",
    "push qword ptr [rip + {exchange} + 16*8]",
    "popfq",
    "mov rax, [rip + {exchange} + 0*8]",
    "mov rcx, [rip + {exchange} + 1*8]",
    "mov rdx, [rip + {exchange} + 2*8]",
    "mov rbx, [rip + {exchange} + 3*8]",
    "mov rsp, [rip + {exchange} + 4*8]",
    "mov rbp, [rip + {exchange} + 5*8]",
    "mov rsi, [rip + {exchange} + 6*8]",
    "mov rdi, [rip + {exchange} + 7*8]",
    "mov r8,  [rip + {exchange} + 8*8]",
    "mov r9,  [rip + {exchange} + 9*8]",
    "mov r10, [rip + {exchange} + 10*8]",
    "mov r11, [rip + {exchange} + 11*8]",
    "mov r12, [rip + {exchange} + 12*8]",
    "mov r13, [rip + {exchange} + 13*8]",
    "mov r14, [rip + {exchange} + 14*8]",
    "mov r15, [rip + {exchange} + 15*8]",
    "jmp qword ptr [rip + {exchange} + 18*8]",
    ".global covisor_native_resume",
    "covisor_native_resume:",
    "mov [rip + {exchange} + 0*8], rax",
    "mov [rip + {exchange} + 1*8], rcx",
    "mov [rip + {exchange} + 2*8], rdx",
    "mov [rip + {exchange} + 3*8], rbx",
    "mov [rip + {exchange} + 4*8], rsp",
    "mov [rip + {exchange} + 5*8], rbp",
    "mov [rip + {exchange} + 6*8], rsi",
    "mov [rip + {exchange} + 7*8], rdi",
    "mov [rip + {exchange} + 8*8], r8",
    "mov [rip + {exchange} + 9*8], r9",
    "mov [rip + {exchange} + 10*8], r10",
    "mov [rip + {exchange} + 11*8], r11",
    "mov [rip + {exchange} + 12*8], r12",
    "mov [rip + {exchange} + 13*8], r13",
    "mov [rip + {exchange} + 14*8], r14",
    "mov [rip + {exchange} + 15*8], r15",
    "mov rsp, [rip + {exchange} + 17*8]",
    "pushfq",
    "pop qword ptr [rip + {exchange} + 16*8]",
    "cld",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    exchange = sym EXCHANGE,
);

/// `jmp [rip + 0]`, followed by the target.
const JUMP: [u8; 6] = [0xff, 0x25, 0, 0, 0, 0];
/// Flags that an instruction can be given: CF, PF, AF, ZF, SF, DF, OF.
const FLAGS: u64 = 0xcd5;

/// The pages, made once. One thread at a time uses them.
static PAGES: Mutex<bool> = Mutex::new(false);

/// The right to run instructions natively.
#[derive(Debug)]
pub struct Native(MutexGuard<'static, bool>);

impl Native {
    /// Makes the pages if they are not there yet.
    ///
    /// # Panics
    /// Where something else of the process lies at those addresses.
    #[must_use]
    pub fn new() -> Self {
        let mut made = PAGES.lock().unwrap_or_else(PoisonError::into_inner);
        if !*made {
            map(NATIVE_CODE, 4096, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC);
            map(NATIVE_DATA, NATIVE_DATA_SIZE, libc::PROT_READ | libc::PROT_WRITE);
            *made = true;
        }
        Self(made)
    }

    /// The data pages.
    #[must_use]
    pub fn data(&mut self) -> &mut [u8; NATIVE_DATA_SIZE] {
        debug_assert!(*self.0, "new() made the pages");
        // SAFETY: new() mapped that many bytes there, for good, and the guard makes this the only reference.
        unsafe { pointer(NATIVE_DATA).cast::<[u8; NATIVE_DATA_SIZE]>().as_mut() }
    }

    /// Runs one instruction.
    ///
    /// # Safety
    /// It is harmless, as the module says, with these registers.
    #[must_use]
    pub unsafe fn run(&mut self, instruction: &[u8], state: &NativeState) -> NativeState {
        let resume = covisor_native_resume as *const () as u64;
        let code: Vec<u8> = instruction.iter().copied().chain(JUMP).chain(resume.to_le_bytes()).collect();
        // SAFETY: the code page is ours, see new(), and the code is far shorter than it. The guard makes us the only
        // users of EXCHANGE. The assembly keeps all registers that the ABI wants kept, and the caller vouches for the
        // instruction.
        unsafe {
            pointer(NATIVE_CODE).copy_from_nonoverlapping(NonNull::from(code.as_slice()).cast(), code.len());
            let exchange = &raw mut EXCHANGE;
            (*exchange).state = NativeState { flags: state.flags & FLAGS | 2, ..*state };
            covisor_native_run();
            let mut after = (*exchange).state;
            after.flags &= FLAGS;
            after
        }
    }
}

impl Default for Native {
    fn default() -> Self {
        Self::new()
    }
}

fn pointer(linear: u64) -> NonNull<u8> {
    NonNull::new(core::ptr::with_exposed_provenance_mut(usize::try_from(linear).expect("64 bits"))).expect("not 0")
}

fn map(linear: u64, size: usize, protection: i32) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: new memory at an address where nothing is, or else an error.
    let address = unsafe { libc::mmap(pointer(linear).as_ptr().cast(), size, protection, flags, -1, 0) };
    assert_eq!(address as u64, linear, "nothing of the process may lie where instructions are tried natively");
}
