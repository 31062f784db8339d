//! Hypercalls (Xen public headers, `xen.h`): number in RAX, arguments in RDI, RSI, RDX, R10 and R8, result in RAX.
//!
//! What is not here does not exist for the guest (`ENOSYS`), which stock kernels live with: the list of those that they need is
//! from their boots.

mod descriptors;
mod events;
mod memory;
mod platform;
mod time;

use covisor_abi::KillReason;
use covisor_abi::paravirtual::CHECK_CALL;

use crate::errno::Errno;
use crate::guest_memory::Near;
use crate::layout;
use crate::layout::PAGE;
use crate::machine::Machine;
use crate::machine::Next;
use crate::processor::Processor;

/// Numbers.
mod number {
    pub(super) const SET_TRAP_TABLE: u64 = 0;
    pub(super) const MMU_UPDATE: u64 = 1;
    pub(super) const SET_GDT: u64 = 2;
    pub(super) const STACK_SWITCH: u64 = 3;
    pub(super) const FPU_TASKSWITCH: u64 = 5;
    pub(super) const SET_DEBUGREG: u64 = 8;
    pub(super) const GET_DEBUGREG: u64 = 9;
    pub(super) const UPDATE_DESCRIPTOR: u64 = 10;
    pub(super) const MEMORY_OP: u64 = 12;
    pub(super) const MULTICALL: u64 = 13;
    pub(super) const UPDATE_VA_MAPPING: u64 = 14;
    pub(super) const XEN_VERSION: u64 = 17;
    pub(super) const CONSOLE_IO: u64 = 18;
    pub(super) const VM_ASSIST: u64 = 21;
    pub(super) const VCPU_OP: u64 = 24;
    pub(super) const SET_SEGMENT_BASE: u64 = 25;
    pub(super) const MMUEXT_OP: u64 = 26;
    pub(super) const SCHED_OP: u64 = 29;
    pub(super) const CALLBACK_OP: u64 = 30;
    pub(super) const EVENT_CHANNEL_OP: u64 = 32;
    pub(super) const PHYSDEV_OP: u64 = 33;
}

/// Number of `iret`: the guest's kernel returns from an exception, an event or a system call.
pub const IRET: u64 = 23;
/// Bytes of SYSCALL: going back by them has the guest call again.
const SYSCALL_LENGTH: u64 = 2;
/// What one hypercall does at once, in entries of page tables; the host's interrupts wait so long. An entry takes some 150
/// instructions.
pub const BUDGET: u64 = 256;
/// What a call of a multicall costs beside its entries.
const CALL_COST: u64 = 2;
/// Words of an entry of a multicall: number, result, six arguments (`xen.h`, `multicall_entry`).
const MULTICALL_WORDS: usize = 8;

/// A hypercall's arguments.
pub(crate) type Arguments = [u64; 5];

/// How a hypercall ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// With this result.
    Result(u64),
    /// With this result, once the host did what `area.exit` says.
    Host(u64),
    /// Not yet: the guest calls again, with these arguments, and takes what waits for it in between.
    Again(Arguments),
    /// As `Again`, once the host did what `area.exit` says.
    HostAgain(Arguments),
}

pub(crate) type Outcome = Result<Done, Errno>;

/// Success.
pub(crate) const OK: Outcome = Ok(Done::Result(0));

impl<P: Processor> Machine<'_, P> {
    /// Serves the hypercall that the guest's kernel made.
    pub(crate) fn hypercall(&mut self) -> Next {
        let registers = &self.area.frame.registers;
        let arguments = [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8];
        self.state.budget = BUDGET;
        let done = match registers.rax {
            IRET => return self.iret(),
            number::MULTICALL => self.multicall(arguments),
            number => self.call(number, &arguments),
        };
        match done {
            Ok(Done::Result(result)) => {
                self.area.frame.registers.rax = result;
                Next::Guest
            }
            Ok(Done::Host(result)) => {
                self.area.frame.registers.rax = result;
                Next::Host
            }
            Ok(Done::Again(arguments)) => {
                self.call_again(arguments);
                Next::Guest
            }
            Ok(Done::HostAgain(arguments)) => {
                self.call_again(arguments);
                Next::Host
            }
            Err(errno) => {
                self.area.frame.registers.rax = errno.to_result();
                Next::Guest
            }
        }
    }

    /// Has the guest make the call again, with other arguments: they are the call's to change.
    fn call_again(&mut self, arguments: Arguments) {
        let frame = &mut self.area.frame;
        frame.rip = frame.rip.wrapping_sub(SYSCALL_LENGTH);
        let registers = &mut frame.registers;
        [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8] = arguments;
    }

    /// A hypercall that can be part of a multicall.
    fn call(&mut self, number: u64, arguments: &Arguments) -> Outcome {
        match number {
            number::MMU_UPDATE => self.mmu_update(arguments),
            number::MMUEXT_OP => self.mmuext_op(arguments),
            number::UPDATE_VA_MAPPING => self.update_va_mapping(arguments),
            number::STACK_SWITCH => self.stack_switch(arguments),
            number::SET_SEGMENT_BASE => self.set_segment_base(arguments),
            number::UPDATE_DESCRIPTOR => self.update_descriptor(arguments),
            number::FPU_TASKSWITCH => {
                self.set_task_switched(arguments[0] != 0);
                OK
            }
            number::XEN_VERSION => self.xen_version(arguments),
            number::EVENT_CHANNEL_OP => self.event_channel_op(arguments),
            number::VCPU_OP => self.vcpu_op(arguments),
            number::SCHED_OP => self.sched_op(arguments),
            number::PHYSDEV_OP => self.physdev_op(arguments),
            number::SET_TRAP_TABLE => self.set_trap_table(arguments),
            number::SET_GDT => self.set_gdt(arguments),
            number::SET_DEBUGREG => self.set_debugreg(arguments),
            number::GET_DEBUGREG => self.get_debugreg(arguments),
            number::MEMORY_OP => self.memory_op(arguments),
            number::CONSOLE_IO => self.console_io(arguments),
            number::VM_ASSIST => self.vm_assist(arguments),
            number::CALLBACK_OP => self.callback_op(arguments),
            CHECK_CALL if self.config.checks != 0 => self.check(),
            _ => Err(Errno::ENOSYS),
        }
    }

    /// `multicall(list, count)`: the calls of the list one after another, each with its result.
    fn multicall(&mut self, [list, count, ..]: Arguments) -> Outcome {
        let mut entry = list;
        let mut left = count;
        let mut near = Near::NONE;
        while left != 0 {
            if self.state.budget == 0 {
                return Ok(Done::Again([entry, left, 0, 0, 0]));
            }
            self.spend(CALL_COST);
            let words = self.read_near::<MULTICALL_WORDS>(&mut near, entry)?;
            let arguments = [words[2], words[3], words[4], words[5], words[6]];
            let (result, to_host) = match self.call(words[0], &arguments) {
                Ok(Done::Result(result)) => (result, false),
                Ok(Done::Host(result)) => (result, true),
                Ok(Done::Again(rest)) => {
                    self.keep_rest(entry, rest)?;
                    continue;
                }
                Ok(Done::HostAgain(rest)) => {
                    self.keep_rest(entry, rest)?;
                    return Ok(Done::HostAgain([entry, left, 0, 0, 0]));
                }
                Err(errno) => (errno.to_result(), false),
            };
            self.write_words(entry.wrapping_add(8), &[result])?;
            entry = entry.wrapping_add(8 * MULTICALL_WORDS as u64);
            left -= 1;
            if to_host {
                return Ok(if left == 0 { Done::Host(0) } else { Done::HostAgain([entry, left, 0, 0, 0]) });
            }
        }
        OK
    }

    /// Takes from what the hypercall may do.
    pub(crate) const fn spend(&mut self, cost: u64) {
        self.state.budget = self.state.budget.saturating_sub(cost);
    }

    /// Puts what is left of a call's work into its entry.
    fn keep_rest(&mut self, entry: u64, rest: Arguments) -> Result<(), Errno> {
        self.write_words(entry.wrapping_add(16), &rest)
    }

    /// Looks at every entry that the CPU can find from a root, and at all that the monitor counts.
    fn check(&mut self) -> Outcome {
        match self.state.mmu.check(&self.space) {
            Ok(()) => OK,
            Err(address) => {
                let (Next::Host | Next::Guest) = self.kill(KillReason::ForeignPage, address);
                Ok(Done::Host(0))
            }
        }
    }

    /// `stack_switch(ss, sp)`: where the guest's kernel has its stack when a program is interrupted.
    fn stack_switch(&mut self, arguments: &Arguments) -> Outcome {
        let stack = arguments[1];
        self.state.kernel_stack = stack;
        // The entry code writes there without a look at the guest's page tables: its own part of the addresses only.
        self.area.quick.kernel_stack = if stack >= layout::END + PAGE { stack & !15 } else { 0 };
        OK
    }
}
