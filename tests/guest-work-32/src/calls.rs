//! System calls of the i386 ABI: the number in EAX, arguments in EBX, ECX, EDX, ESI, EDI, EBP, the result in EAX.

use core::arch::global_asm;

use crate::start::Done;

/// Numbers (`asm/unistd_32.h`).
pub(crate) mod number {
    pub(crate) const EXIT: usize = 1;
    pub(crate) const WRITE: usize = 4;
    pub(crate) const GETPID: usize = 20;
    pub(crate) const KILL: usize = 37;
    pub(crate) const MUNMAP: usize = 91;
    pub(crate) const CLONE: usize = 120;
    pub(crate) const SCHED_YIELD: usize = 158;
    pub(crate) const RT_SIGACTION: usize = 174;
    pub(crate) const MMAP2: usize = 192;
    pub(crate) const FUTEX: usize = 240;
    pub(crate) const SET_THREAD_AREA: usize = 243;
    pub(crate) const EXIT_GROUP: usize = 252;
}

/// Memory that can be read and written.
const READ_WRITE: usize = 3;
/// Of this process alone, without a file.
const PRIVATE_ANONYMOUS: usize = 0x22;
/// At the address that is given.
const FIXED: usize = 0x10;
/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;

global_asm!(
    // Calls the kernel as `arguments` says (EAX, EBX, ECX, EDX, ESI, EDI, EBP) at `entry`, which the stack has behind that.
    ".globl guest_work_call_entry",
    "guest_work_call_entry:",
    "push ebx",
    "push esi",
    "push edi",
    "push ebp",
    "mov ebp, [esp + 20]",
    "push [esp + 24]",
    "mov eax, [ebp]",
    "mov ebx, [ebp + 4]",
    "mov ecx, [ebp + 8]",
    "mov edx, [ebp + 12]",
    "mov esi, [ebp + 16]",
    "mov edi, [ebp + 20]",
    "mov ebp, [ebp + 24]",
    "call [esp]",
    "add esp, 4",
    "pop ebp",
    "pop edi",
    "pop esi",
    "pop ebx",
    "ret",
    // An entry like the vDSO's.
    ".globl guest_work_interrupt",
    "guest_work_interrupt:",
    "int 0x80",
    "ret",
);

unsafe extern "C" {
    fn guest_work_call_entry(arguments: *const [usize; 7], entry: usize) -> isize;
    fn guest_work_interrupt();
}

/// A way into the kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kernel {
    /// INT 0x80.
    ByInterrupt,
    /// The vDSO's function for it.
    ByVdso(usize),
}

impl Kernel {
    /// The vDSO's way.
    ///
    /// # Safety
    /// The kernel told this address as that.
    pub(crate) unsafe fn by_vdso(entry: usize) -> Self {
        Self::ByVdso(entry)
    }

    /// Makes a call.
    ///
    /// # Safety
    /// As the call asks for.
    pub(crate) unsafe fn call(self, number: usize, arguments: [usize; 6]) -> isize {
        let [first, second, third, fourth, fifth, sixth] = arguments;
        let all = [number, first, second, third, fourth, fifth, sixth];
        let entry = match self {
            Self::ByInterrupt => (guest_work_interrupt as *const ()).addr(),
            Self::ByVdso(entry) => entry,
        };
        // SAFETY: by the caller; both ways keep all registers but EAX.
        unsafe { guest_work_call_entry(&raw const all, entry) }
    }

    /// This process.
    pub(crate) fn process(self) -> isize {
        // SAFETY: the call takes nothing.
        unsafe { self.call(number::GETPID, [0; 6]) }
    }

    /// Writes to a file.
    pub(crate) fn write(self, file: usize, bytes: &[u8]) -> isize {
        // SAFETY: the bytes live over the call.
        unsafe { self.call(number::WRITE, [file, bytes.as_ptr().addr(), bytes.len(), 0, 0, 0]) }
    }

    /// New memory.
    pub(crate) fn map(self, at: Option<usize>, bytes: usize) -> Result<usize, &'static str> {
        let fixed = if at.is_some() { FIXED } else { 0 };
        let arguments = [at.unwrap_or(0), bytes, READ_WRITE, PRIVATE_ANONYMOUS | fixed, usize::MAX, 0];
        // SAFETY: the memory is new, or was this function's.
        let address = unsafe { self.call(number::MMAP2, arguments) }.cast_unsigned();
        // The last page stands for errors.
        if address > 0usize.wrapping_sub(PAGE) { Err("mmap2 gives no memory") } else { Ok(address) }
    }

    /// A page comes where it is wanted, and goes.
    pub(crate) fn map_and_unmap(self) -> Done {
        let address = self.map(None, 2 * PAGE)?;
        if self.map(Some(address + PAGE), PAGE)? != address + PAGE {
            return Err("mmap2 gives memory elsewhere");
        }
        let word = core::ptr::with_exposed_provenance_mut::<usize>(address + PAGE);
        // SAFETY: the page is ours, and unmapped when nothing refers to it any more.
        unsafe {
            word.write_volatile(address);
            let read = word.read_volatile();
            let unmapped = self.call(number::MUNMAP, [address, 2 * PAGE, 0, 0, 0, 0]);
            if read == address && unmapped == 0 { Ok(()) } else { Err("memory by mmap2 does not keep its value") }
        }
    }
}

/// Lets other threads run.
pub(crate) fn yield_now() {
    // SAFETY: the call takes nothing.
    unsafe { Kernel::ByInterrupt.call(number::SCHED_YIELD, [0; 6]) };
}

/// Ends the program.
pub(crate) fn exit(status: i32) -> ! {
    end(number::EXIT_GROUP, status)
}

/// Ends this thread.
pub(crate) fn exit_thread() -> ! {
    end(number::EXIT, 0)
}

fn end(number: usize, status: i32) -> ! {
    loop {
        // SAFETY: the call does not come back.
        unsafe { Kernel::ByInterrupt.call(number, [status.cast_unsigned() as usize, 0, 0, 0, 0, 0]) };
    }
}
