//! Exits that are rare enough to be away from the others: control and debug registers, XSETBV, exceptions, ends.

use covisor_abi::ExitReason;
use covisor_abi::Run;

use crate::emulate;
use crate::emulate::Cause;
use crate::emulate::ControlAccess;
use crate::emulate::ControlOperation;
use crate::emulate::Register;
use crate::emulate::opcode;
use crate::engine::Engine;
use crate::engine::Next;
use crate::engine::Vcpu;
use crate::exit::Exception;
use crate::exit::Exit;
use crate::exit::PowerRequest;
use crate::exits::Handler;
use crate::exits::Leave;
use crate::host::Host;
use crate::pae;
use crate::paging;
use crate::policy;
use crate::policy::Control;
use crate::registers::CodeSize;
use crate::registers::Cr0;
use crate::run::end;

/// CR0's low four bits, which LMSW sets; of them it cannot clear the first, PE (APM vol. 3, LMSW).
const MACHINE_STATUS: u64 = 0xf;
/// CR0.PE.
const PROTECTED_MODE: u64 = 1;

impl<H: Host, E: Engine> Handler<'_, H, E> {
    /// See [`crate::exits`].
    #[inline(never)]
    pub(crate) fn rare(&mut self, vcpu: &mut E::Vcpu, exit: Exit) -> Next {
        match exit {
            Exit::ControlRegister(_) | Exit::DebugRegister => self.control(vcpu),
            Exit::Xsetbv => self.xsetbv(vcpu),
            Exit::CacheFlush => self.cache_flush(vcpu),
            Exit::Pause => self.finish(vcpu, opcode::PAUSE, |_, _| Ok(Next::Resume)),
            // CPUID shows no counters, so none can be read.
            Exit::ReadPmc => self.inject(vcpu, Exception::GENERAL_PROTECTION),
            Exit::Undefined => self.inject(vcpu, Exception::INVALID_OPCODE),
            // The engine hands it to the host, which decides about the machine; the guest is lost.
            Exit::Exception(Exception { vector: Exception::MACHINE_CHECK, .. }) => {
                self.kill(vcpu, covisor_abi::KillReason::MachineCheck, 0)
            }
            Exit::Exception(exception) => self.inject(vcpu, exception),
            Exit::Shutdown => {
                self.leave = Leave::Loader(end(vcpu, ExitReason::Shutdown));
                Next::Leave
            }
            Exit::Kill(reason, detail) => self.kill(vcpu, reason, detail),
            Exit::HaltForever => {
                self.leave = Leave::Loader(end(vcpu, ExitReason::HaltedForever));
                Next::Leave
            }
            Exit::Power(request) => {
                let reason = match request {
                    PowerRequest::Off => ExitReason::PowerOff,
                    PowerRequest::Reset => ExitReason::Reset,
                };
                self.leave = Leave::Loader(Run { exit: reason as u32, ..Run::default() });
                Next::Leave
            }
            // The others are answered in exits.rs.
            _ => Next::Resume,
        }
    }

    /// The registers that decide about control registers.
    fn control_now(vcpu: &E::Vcpu) -> Control {
        Control {
            cr0: vcpu.cr0(),
            cr3: vcpu.cr3(),
            cr4: vcpu.cr4(),
            efer: vcpu.efer(),
            code_64bit: paging::code_size(vcpu) == CodeSize::Bits64,
        }
    }

    /// An instruction on a control or debug register.
    fn control(&mut self, vcpu: &mut E::Vcpu) -> Next {
        let access = match emulate::control_access(vcpu, &self.vm.memory) {
            Ok(access) => access,
            Err(outcome) => return self.outcome(vcpu, outcome, Cause::Other),
        };
        let ControlAccess { operation, next_rip } = access;
        // DR0 to DR3 are loaded at entry only, and only for a guest with breakpoints.
        let next = match operation {
            ControlOperation::Write { register: Register::Debug(_), .. } => Next::Leave,
            _ => Next::Resume,
        };
        let done = match operation {
            ControlOperation::StoreMachineStatus => return self.emulate(vcpu, Cause::Other, None),
            ControlOperation::ClearTaskSwitched => {
                let cr0 = vcpu.cr0() & !(Cr0::CR0_TASK_SWITCHED.bits() as u64);
                vcpu.set_cr0(cr0);
                Ok(())
            }
            ControlOperation::LoadMachineStatus { value } => {
                let cr0 = vcpu.cr0();
                let wanted = u64::from(value) & MACHINE_STATUS | cr0 & PROTECTED_MODE;
                self.write_control(vcpu, 0, cr0 & !MACHINE_STATUS | wanted)
            }
            ControlOperation::Read { register, gpr } => {
                let value = self.read_register(vcpu, register);
                *vcpu.gprs_mut().get_mut(gpr) = value;
                Ok(())
            }
            ControlOperation::Write { register: Register::Control(number), value } => {
                self.write_control(vcpu, number, value)
            }
            ControlOperation::Write { register: Register::Debug(number), value } => write_debug(vcpu, number, value),
        };
        match done {
            Ok(()) => {
                emulate::skip(vcpu, next_rip);
                next
            }
            Err(exception) => self.inject(vcpu, exception),
        }
    }

    fn read_register(&self, vcpu: &E::Vcpu, register: Register) -> u64 {
        match register {
            Register::Control(0) => vcpu.cr0(),
            Register::Control(2) => vcpu.cr2(),
            Register::Control(3) => vcpu.cr3(),
            Register::Control(4) => vcpu.cr4(),
            Register::Control(_) => u64::from(vcpu.task_priority()),
            Register::Debug(6) => vcpu.dr6(),
            Register::Debug(7) => vcpu.dr7(),
            Register::Debug(number) => vcpu.debug_address(usize::from(number)),
        }
    }

    fn write_control(&mut self, vcpu: &mut E::Vcpu, number: u8, value: u64) -> Result<(), Exception> {
        let now = Self::control_now(vcpu);
        match number {
            0 => {
                let change = policy::check_cr0(&now, value)?;
                self.load_pointers(vcpu, &now, &Control { cr0: change.cr0, efer: change.efer, ..now }, false)?;
                vcpu.set_efer(change.efer);
                vcpu.set_cr0(change.cr0);
            }
            2 => vcpu.set_cr2(value),
            3 => {
                let cr3 = policy::check_cr3(&self.vm.cpuid, &now, value)?;
                self.load_pointers(vcpu, &now, &Control { cr3, ..now }, true)?;
                vcpu.set_cr3(cr3);
            }
            4 => {
                let cr4 = policy::check_cr4(&self.vm.cpuid, &now, value)?;
                self.load_pointers(vcpu, &now, &Control { cr4, ..now }, false)?;
                vcpu.set_cr4(cr4);
            }
            _ => {
                let class = policy::check_cr8(value)?;
                self.state.apic.set_task_priority(class);
                vcpu.set_task_priority(class);
            }
        }
        Ok(())
    }

    /// Loads the page directory pointers where the change has the CPU do that, and the engine leaves it to core.
    fn load_pointers(
        &self,
        vcpu: &mut E::Vcpu,
        before: &Control,
        after: &Control,
        writes_cr3: bool,
    ) -> Result<(), Exception> {
        if E::Vcpu::KEEPS_PAGE_DIRECTORY_POINTERS && pae::change_loads(before, after, writes_cr3) {
            vcpu.set_page_directory_pointers(pae::load(&self.vm.memory, after.cr3, self.vm.cpuid.physical_bits())?);
        }
        Ok(())
    }

    fn xsetbv(&mut self, vcpu: &mut E::Vcpu) -> Next {
        let (index, value) = (vcpu.gprs().rcx, vcpu.gprs().edx_eax());
        self.finish(vcpu, opcode::XSETBV, |handler, vcpu| {
            let xcr0 = policy::check_xsetbv(&handler.vm.cpuid, vcpu.cr4(), vcpu.cpl(), index, value)?;
            vcpu.set_xcr0(xcr0);
            Ok(Next::Resume)
        })
    }

    /// INVD and WBINVD (15.8 has the intercept come before the privilege check).
    fn cache_flush(&mut self, vcpu: &mut E::Vcpu) -> Next {
        if vcpu.cpl() != 0 {
            return self.inject(vcpu, Exception::GENERAL_PROTECTION);
        }
        let bytes = paging::peek(vcpu, &self.vm.memory);
        let invd = bytes.is_ok_and(|bytes| bytes.starts_with(opcode::INVD));
        self.finish(vcpu, if invd { opcode::INVD } else { opcode::WBINVD }, |_, _| Ok(Next::Resume))
    }
}

fn write_debug<V: Vcpu>(vcpu: &mut V, number: u8, value: u64) -> Result<(), Exception> {
    match number {
        6 => vcpu.set_dr6(policy::check_dr6(value)?),
        7 => vcpu.set_dr7(policy::check_dr7(value)?),
        number => vcpu.set_debug_address(usize::from(number), value),
    }
    Ok(())
}
