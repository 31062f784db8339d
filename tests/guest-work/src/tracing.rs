//! A parent that traces its child: by single steps, by breakpoints of the CPU's debug registers.

use std::arch::global_asm;
use std::mem;
use std::mem::offset_of;
use std::ptr;

use crate::error::Failure;
use crate::error::Result;
use crate::error::done;
use crate::error::ensure;
use crate::processes;
use crate::processes::Child;

/// What is added to the word each time.
pub(crate) const STEP: u64 = 7;
/// How often that is done.
const ROUNDS: u64 = 300;
/// Instructions of the traced code but for the loop's, up to its end.
const OTHERS: u64 = 5;
/// Instructions of the loop.
const LOOP: u64 = 3;
/// Number of getpid(2) for SYSCALL, and for INT 0x80.
const GETPID: u64 = 39;
/// As above.
const GETPID32: u64 = 20;

/// DR7: the first breakpoint on, at an instruction.
const AT_INSTRUCTION: u64 = 1;
/// DR7: the first breakpoint on, at writes to eight bytes.
const AT_WRITE: u64 = 1 | 0b1001 << 16;
/// DR6: the first breakpoint was met.
const MET: u64 = 1;

global_asm!(
    ".globl guest_work_traced",
    "guest_work_traced:",
    "mov ecx, {rounds}",
    "2:",
    "add qword ptr [rdi], {step}",
    ".globl guest_work_traced_written",
    "guest_work_traced_written:",
    "dec ecx",
    "jnz 2b",
    "mov eax, {getpid}",
    "syscall",
    "mov eax, {getpid32}",
    "int 0x80",
    ".globl guest_work_traced_end",
    "guest_work_traced_end:",
    "ret",
    rounds = const ROUNDS,
    step = const STEP,
    getpid = const GETPID,
    getpid32 = const GETPID32,
);

unsafe extern "C" {
    fn guest_work_traced(word: *mut u64) -> u32;
    fn guest_work_traced_written();
    fn guest_work_traced_end();
}

/// Traces a child.
pub(crate) fn work() -> Result<String> {
    let mut word = 0_u64;
    let address = (&raw mut word).expose_provenance() as u64;
    let child = processes::fork(|| {
        // SAFETY: only this process is about it.
        done("ptrace(TRACEME)", unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) })?;
        for _ in 0..2 {
            // SAFETY: the parent has it go on.
            done("raise", unsafe { libc::raise(libc::SIGSTOP) })?;
            // SAFETY: the word is this function's.
            let pid = unsafe { guest_work_traced(&raw mut word) };
            ensure!(pid == std::process::id(), "INT 0x80 gives process {pid}");
        }
        ensure!(word == 2 * ROUNDS * STEP, "the word is {word} at the end");
        Ok(())
    })?;
    let traced = Traced(child);
    traced.stops_by(libc::SIGSTOP)?;
    let begin = (guest_work_traced as *const ()).addr() as u64;
    let end = (guest_work_traced_end as *const ()).addr() as u64;
    traced.set_breakpoint(begin, AT_INSTRUCTION)?;
    traced.go_on()?;
    traced.meets_breakpoint(begin)?;
    traced.set_breakpoint(0, 0)?;
    let steps = traced.count_steps(end)?;
    let right = ROUNDS * LOOP + OTHERS;
    ensure!(steps == right, "there were {steps} steps and should be {right}");

    traced.go_on()?;
    traced.stops_by(libc::SIGSTOP)?;
    traced.set_breakpoint(address, AT_WRITE)?;
    let written = (guest_work_traced_written as *const ()).addr() as u64;
    for round in ROUNDS..2 * ROUNDS {
        traced.go_on()?;
        traced.meets_breakpoint(written)?;
        let value = traced.word(address)?;
        ensure!(value == (round + 1) * STEP, "behind write {round} the word is {value}");
    }
    traced.set_breakpoint(0, 0)?;
    traced.go_on()?;
    traced.0.succeeds()?;
    Ok(format!("tracing: {steps} steps, {ROUNDS} writes"))
}

/// A child that is traced.
struct Traced(Child);

impl Traced {
    fn request(&self, what: &'static str, request: libc::c_uint, address: u64, data: u64) -> Result<i64> {
        // SAFETY: none of the requests here writes to memory of this process, but for that of `registers`.
        done(what, unsafe { libc::ptrace(request, self.0.pid(), address, data) })
    }

    fn go_on(&self) -> Result<()> {
        self.request("ptrace(CONT)", libc::PTRACE_CONT, 0, 0).map(drop)
    }

    /// Waits until it stops by this signal.
    fn stops_by(&self, signal: libc::c_int) -> Result<()> {
        let status = self.0.wait()?;
        ensure!(
            libc::WIFSTOPPED(status) && libc::WSTOPSIG(status) == signal,
            "the child should stop by signal {signal}, its status is {status:#x}"
        );
        Ok(())
    }

    fn instruction_pointer(&self) -> Result<u64> {
        // SAFETY: all zeros are a right value.
        let mut registers: libc::user_regs_struct = unsafe { mem::zeroed() };
        let data = ptr::from_mut(&mut registers).expose_provenance() as u64;
        self.request("ptrace(GETREGS)", libc::PTRACE_GETREGS, 0, data)?;
        Ok(registers.rip)
    }

    /// Steps until it comes to `end`; the number of steps.
    fn count_steps(&self, end: u64) -> Result<u64> {
        let mut steps = 0;
        while self.instruction_pointer()? != end {
            self.request("ptrace(SINGLESTEP)", libc::PTRACE_SINGLESTEP, 0, 0)?;
            self.stops_by(libc::SIGTRAP)?;
            steps += 1;
        }
        Ok(steps)
    }

    /// Offset of a debug register, as requests name it.
    fn debug_register(number: usize) -> u64 {
        (offset_of!(libc::user, u_debugreg) + number * size_of::<u64>()) as u64
    }

    /// Sets the first breakpoint, as DR7 says.
    fn set_breakpoint(&self, address: u64, control: u64) -> Result<()> {
        for (number, value) in [(7, 0), (0, address), (7, control)] {
            let register = Self::debug_register(number);
            self.request("setting a debug register", libc::PTRACE_POKEUSER, register, value)?;
        }
        Ok(())
    }

    /// Waits until it stops by the breakpoint, at this address.
    fn meets_breakpoint(&self, at: u64) -> Result<()> {
        self.stops_by(libc::SIGTRAP)?;
        let rip = self.instruction_pointer()?;
        let status = self.peek(libc::PTRACE_PEEKUSER, Self::debug_register(6))?;
        ensure!(rip == at && status & 0xf == MET, "it stopped at {rip:#x}, DR6 {status:#x}, and should at {at:#x}");
        Ok(())
    }

    fn word(&self, address: u64) -> Result<u64> {
        self.peek(libc::PTRACE_PEEKDATA, address)
    }

    /// A request whose result may be any number, -1 among them.
    fn peek(&self, request: libc::c_uint, address: u64) -> Result<u64> {
        // SAFETY: the C library gives where its `errno` is, and keeps the result there.
        let value = unsafe {
            *libc::__errno_location() = 0;
            libc::ptrace(request, self.0.pid(), address, 0)
        };
        let failure = Failure::last("ptrace(PEEK)");
        match &failure {
            Failure::Refused { source, .. } if value == -1 && source.raw_os_error() != Some(0) => Err(failure),
            _ => Ok(value.cast_unsigned()),
        }
    }
}
