//! What each trap means: exceptions, system calls, the host's interrupts.

use crate::area::ATTENTION;
use crate::area::DR6_RESET;
use crate::area::ExitKind;
use crate::area::SYSCALL;
use crate::area::SYSCALL32;
use crate::bounce::Entry;
use crate::bounce::callback;
use crate::bounce::has_error_code;
use crate::bounce::vector;
use crate::decode;
use crate::decode::Decoded;
use crate::decode::Privileged;
use crate::layout::PAGE;
use crate::layout::selector;
use crate::machine::Machine;
use crate::machine::Next;
use crate::mmu::Fault;
use crate::processor::Processor;
use crate::state::Callback;
use covisor_abi::KillReason;

/// What a 64-bit Xen PV kernel puts before CPUID to have the hypervisor answer it (`arch-x86/xen.h`, `XEN_EMULATE_PREFIX`): UD2, "xen".
const EMULATE_PREFIX: [u8; 5] = [0x0f, 0x0b, 0x78, 0x65, 0x6e];
/// CPUID.
const CPUID: [u8; 2] = [0x0f, 0xa2];
/// Bit of a #GP's error code: it is a gate's number (SDM vol. 3, 6.13).
const ERROR_CODE_GATE: u64 = 2;
/// Bytes of INT n.
const INT_LENGTH: u64 = 2;
/// CR0.TS.
pub(crate) const CR0_TS: u64 = 1 << 3;
/// DR6's causes: breakpoints, single step and the like.
const DR6_CAUSES: u64 = 0xf | 0xf << 13;
/// What the guest sees of CR0: protected mode, monitor coprocessor, 387, native errors, write protect, alignment mask, paging.
pub(crate) const GUEST_CR0: u64 = 0x8005_0033;

impl<P: Processor> Machine<'_, P> {
    /// Serves the trap that `area.frame` tells of.
    pub fn trap(&mut self) -> Next {
        let (number, error_code) = (self.area.frame.vector, self.area.frame.error_code);
        let next = match number {
            SYSCALL if self.in_kernel() => self.hypercall(),
            SYSCALL => self.system_call(self.state.callbacks.syscall),
            ATTENTION => self.exit(ExitKind::Attention, 0, 0),
            SYSCALL32 => self.system_call(self.state.callbacks.syscall32),
            vector::PAGE_FAULT => self.page_fault(error_code),
            vector::GENERAL_PROTECTION => self.general_protection(error_code),
            vector::INVALID_OPCODE => self.invalid_opcode(),
            vector::NO_FPU => {
                if self.area.cr0 & CR0_TS != 0 {
                    self.area.cr0 &= !CR0_TS;
                    self.cpu.set_cr0(self.area.cr0);
                }
                self.raise(number, None)
            }
            vector::DEBUG => {
                // The CPU only ever adds causes; the guest takes those of this one, and the next finds none.
                self.area.debug[4] = DR6_RESET | self.cpu.dr6() & DR6_CAUSES;
                self.cpu.set_dr6(DR6_RESET);
                self.raise(number, None)
            }
            vector::NMI | vector::MACHINE_CHECK => self.exit(ExitKind::Interrupt, number, 0),
            vector::DOUBLE_FAULT => self.kill(KillReason::MonitorFault, number),
            // The CPU lets ring 3 use this gate, and so is past the instruction already.
            vector::INT80 => {
                self.area.frame.rip = self.area.frame.rip.wrapping_sub(INT_LENGTH);
                self.software_interrupt(vector::INT80 << 3 | ERROR_CODE_GATE)
            }
            0..32 => self.raise(number, has_error_code(number).then_some(error_code)),
            _ => self.exit(ExitKind::Interrupt, number & 0xff, 0),
        };
        self.finish(next)
    }

    /// SYSCALL of a program's.
    fn system_call(&mut self, handler: Callback) -> Next {
        if self.in_kernel() || handler.address == 0 {
            // As on a CPU whose EFER does not have it on: the program is told.
            return if self.state.callbacks.syscall.address == 0 {
                self.kill(KillReason::NoHandler, callback::SYSCALL)
            } else {
                self.raise(vector::INVALID_OPCODE, None)
            };
        }
        if self.area.frame.vector == SYSCALL32 {
            self.area.frame.cs = selector::RING3_CODE32.into();
        }
        self.bounce(Entry { address: handler.address, masks_events: handler.masks_events, error_code: None })
    }

    fn page_fault(&mut self, error_code: u64) -> Next {
        let address = self.cpu.cr2();
        let kernel = self.in_kernel();
        match self.state.mmu.fault(&mut self.space, &mut self.cpu, address, error_code, kernel) {
            Fault::Resume => Next::Guest,
            Fault::TableStore { gpa } => self.table_store(gpa),
            Fault::Device { gpa } => {
                if self.in_kernel() {
                    self.area.cr2 = address;
                    self.exit(ExitKind::Memory, gpa, error_code >> 1 & 1)
                } else {
                    self.guest_page_fault(address, error_code)
                }
            }
            Fault::Guest { error_code } => self.guest_page_fault(address, error_code),
        }
    }

    fn guest_page_fault(&mut self, address: u64, error_code: u64) -> Next {
        self.state.vcpu_info.set_cr2(address);
        self.raise(vector::PAGE_FAULT, Some(error_code))
    }

    /// A store of the kernel's to a page that it has mapped read-only, for it is a page table (`vm_assist`, writable page tables).
    fn table_store(&mut self, gpa: u64) -> Next {
        let mut room = [0; decode::MAX_LENGTH];
        let decoded = decode::store(self.code(&mut room));
        if let Some(Decoded { operation, length }) = decoded
            && self.store(gpa, operation).is_some()
        {
            self.area.frame.rip = self.area.frame.rip.wrapping_add(length.into());
            let around = gpa & !7;
            self.state.mmu.table_stored(&mut self.space, &mut self.cpu, around, 8);
            return Next::Guest;
        }
        if gpa & (PAGE - 1) > PAGE - 16 {
            // It may go over the page's end, where another page may be anything.
            return self.guest_page_fault(self.cpu.cr2(), 3);
        }
        self.state.store_by_host = Some(gpa);
        self.area.cr2 = self.cpu.cr2();
        self.exit(ExitKind::Memory, gpa, 1)
    }

    fn general_protection(&mut self, error_code: u64) -> Next {
        if error_code & ERROR_CODE_GATE != 0 {
            return self.software_interrupt(error_code);
        }
        if !self.in_kernel() || error_code != 0 {
            return self.raise(vector::GENERAL_PROTECTION, Some(error_code));
        }
        let mut room = [0; decode::MAX_LENGTH];
        match decode::privileged(self.code(&mut room)) {
            Some(decoded) => self.privileged(decoded),
            None => self.raise_general_protection(),
        }
    }

    /// INT n through a gate that the CPU does not let ring 3 use: the guest's own table decides.
    fn software_interrupt(&mut self, error_code: u64) -> Next {
        let number = error_code >> 3 & 0xff;
        let handler = self.state.traps.get(number as usize).copied().unwrap_or_default();
        let ring = if self.in_kernel() { 0 } else { 3 };
        if handler.address == 0 || handler.ring() < ring {
            return self.raise(vector::GENERAL_PROTECTION, Some(error_code));
        }
        self.area.frame.rip = self.area.frame.rip.wrapping_add(INT_LENGTH);
        self.raise(number, None)
    }

    fn privileged(&mut self, decoded: Decoded<Privileged>) -> Next {
        let next_rip = self.area.frame.rip.wrapping_add(decoded.length.into());
        match decoded.operation {
            Privileged::Port { port, size, write, string } => {
                let port = port.map_or(self.area.frame.registers.rdx & 0xffff, u64::from);
                let next = self.exit(ExitKind::Port, port, size.into());
                self.area.exit.c = u64::from(write) | u64::from(string) << 1;
                self.area.exit.d = next_rip;
                return next;
            }
            Privileged::ReadMsr => return self.exit(ExitKind::ReadMsr, 0, 0),
            Privileged::WriteMsr => return self.exit(ExitKind::WriteMsr, 0, 0),
            Privileged::Xsetbv => return self.exit(ExitKind::Xsetbv, 0, 0),
            Privileged::ReadControl { control, register } => {
                let value = match control {
                    0 => GUEST_CR0 | self.area.cr0 & CR0_TS,
                    2 => self.state.vcpu_info.cr2(),
                    3 => self.area.guest_cr3,
                    4 => self.config.guest_cr4,
                    _ => return self.raise_general_protection(),
                };
                *self.register(register) = value;
            }
            Privileged::WriteControl { control, register } => {
                let value = *self.register(register);
                match control {
                    0 => self.set_task_switched(value & CR0_TS != 0),
                    2 => self.state.vcpu_info.set_cr2(value),
                    // Linux writes what it read, with bits that it may have on a CPU of its own; the real one stays.
                    4 => {}
                    _ => return self.raise_general_protection(),
                }
            }
            Privileged::ClearTaskSwitched => self.set_task_switched(false),
            Privileged::Halt => {
                self.area.frame.rip = next_rip;
                return self.exit(ExitKind::Halt, 0, 0);
            }
            Privileged::Nothing => {}
        }
        self.area.frame.rip = next_rip;
        Next::Guest
    }

    /// The general register of this number.
    fn register(&mut self, number: usize) -> &mut u64 {
        if number & 15 == 4 {
            return &mut self.area.frame.rsp;
        }
        self.area.frame.registers.get_mut(number)
    }

    /// CR0.TS: the next use of extended state is #NM, or not.
    pub(crate) fn set_task_switched(&mut self, on: bool) {
        self.area.cr0 = self.area.cr0 & !CR0_TS | if on { CR0_TS } else { 0 };
        self.cpu.set_cr0(self.area.cr0);
    }

    fn invalid_opcode(&mut self) -> Next {
        if self.in_kernel() {
            let mut room = [0; decode::MAX_LENGTH];
            let code = self.code(&mut room);
            if code.starts_with(&EMULATE_PREFIX) && code[EMULATE_PREFIX.len()..].starts_with(&CPUID) {
                self.area.frame.rip = self.area.frame.rip.wrapping_add(EMULATE_PREFIX.len() as u64);
                return self.exit(ExitKind::Cpuid, 0, 0);
            }
        }
        self.raise(vector::INVALID_OPCODE, None)
    }

    /// Carries out a store to the page table at `gpa`; `None` where it is not one of 8 aligned bytes.
    fn store(&mut self, gpa: u64, operation: decode::Store) -> Option<()> {
        use decode::Operand;
        use decode::Store;
        let operand = |machine: &mut Self, operand| match operand {
            Operand::Register(register) => *machine.register(register),
            Operand::Immediate(value) => value,
        };
        if let Store::And(_, 1) | Store::Or(_, 1) = operation {
        } else if gpa & 7 != 0 {
            return None;
        }
        let old = self.space.read_word(gpa & !7)?;
        let mut status = None;
        let new = match operation {
            Store::Move(value) => operand(self, value),
            Store::Exchange(register) => core::mem::replace(self.register(register), old),
            Store::CompareExchange(register) => {
                let expected = self.area.frame.registers.rax;
                let (difference, borrow) = expected.overflowing_sub(old);
                let overflow = (expected ^ old) & (expected ^ difference) & 1 << 63 != 0;
                let auxiliary = (expected ^ old ^ difference) & 0x10 != 0;
                status = Some(
                    status_of(difference, 8) | carry(borrow) | auxiliary_flag(auxiliary) | overflow_flag(overflow),
                );
                if expected == old {
                    *self.register(register)
                } else {
                    self.area.frame.registers.rax = old;
                    old
                }
            }
            Store::And(value, size) | Store::Or(value, size) => {
                let shift = if size == 1 { (gpa & 7) * 8 } else { 0 };
                let width = if size == 1 { 0xff } else { u64::MAX };
                let value = operand(self, value) & width;
                let part = old >> shift & width;
                let part = if let Store::And(..) = operation { part & value } else { part | value };
                status = Some(status_of(part, size));
                old & !(width << shift) | part << shift
            }
            Store::SetBit(bit) | Store::ResetBit(bit) => {
                let bit = 1 << (operand(self, bit) & 63);
                let others = self.area.frame.rflags & STATUS & !carry(true);
                status = Some(others | carry(old & bit != 0));
                if let Store::SetBit(_) = operation { old | bit } else { old & !bit }
            }
        };
        self.space.write_word(gpa & !7, new)?;
        if let Some(status) = status {
            self.area.frame.rflags = self.area.frame.rflags & !STATUS | status;
        }
        Some(())
    }
}

/// The status flags: CF, PF, AF, ZF, SF, OF.
const STATUS: u64 = 0x8d5;

const fn carry(on: bool) -> u64 {
    on as u64
}

const fn auxiliary_flag(on: bool) -> u64 {
    (on as u64) << 4
}

const fn overflow_flag(on: bool) -> u64 {
    (on as u64) << 11
}

/// PF, ZF and SF of a result of so many bytes (SDM vol. 1, 3.4.3.1).
const fn status_of(result: u64, size: u8) -> u64 {
    #[expect(clippy::cast_possible_truncation, reason = "parity is of the low byte")]
    let parity = (result as u8).count_ones().is_multiple_of(2);
    let zero = result == 0;
    let sign = result >> (size as u32 * 8 - 1) & 1 != 0;
    (parity as u64) << 2 | (zero as u64) << 6 | (sign as u64) << 7
}
