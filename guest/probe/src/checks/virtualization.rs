//! Virtualization is not for guests, of neither vendor's kind; what they have of it is the hypercall.

use super::Check;
use crate::cpu;
use crate::cpu::cr4;
use crate::cpu::msr;
use crate::exception::vector;
use crate::kernel;
use crate::report::Report;
use crate::user;
use crate::xen;

pub(super) const CHECKS: &[Check] = &[
    Check { name: "svm-instructions", run: |report| undefined(report, SVM) },
    Check { name: "svm-registers", run: svm_registers },
    Check { name: "vmx-instructions", run: |report| undefined(report, VMX) },
    Check { name: "vmx-registers", run: vmx_registers },
    Check { name: "hypercall", run: hypercall },
];

/// Name and encoding of an instruction. Memory operands are at `[rsp - 64]`.
type Instruction = (&'static str, &'static [u8]);

/// SVM's instructions, without the hypercall (APM vol. 3, chapter 4). CLGI carried out would stop the host (LTP's
/// `kvm_svm03`), VMLOAD and VMSAVE would reach host memory (CVE-2021-3656).
const SVM: &[Instruction] = &[
    ("VMRUN", &[0x0f, 0x01, 0xd8]),
    ("VMLOAD", &[0x0f, 0x01, 0xda]),
    ("VMSAVE", &[0x0f, 0x01, 0xdb]),
    ("STGI", &[0x0f, 0x01, 0xdc]),
    ("CLGI", &[0x0f, 0x01, 0xdd]),
    ("SKINIT", &[0x0f, 0x01, 0xde]),
    ("INVLPGA", &[0x0f, 0x01, 0xdf]),
];

/// VMX's instructions, without the hypercall (SDM vol. 3, chapter 31), and what else of Intel's leads out of the machine:
/// SMX (SDM vol. 2, chapter 7) and SGX (SDM vol. 3, chapter 40).
const VMX: &[Instruction] = &[
    ("VMXON", &[0xf3, 0x0f, 0xc7, 0x74, 0x24, 0xc0]),
    ("VMXOFF", &[0x0f, 0x01, 0xc4]),
    ("VMCLEAR", &[0x66, 0x0f, 0xc7, 0x74, 0x24, 0xc0]),
    ("VMPTRLD", &[0x0f, 0xc7, 0x74, 0x24, 0xc0]),
    ("VMPTRST", &[0x0f, 0xc7, 0x7c, 0x24, 0xc0]),
    ("VMREAD to a register", &[0x0f, 0x78, 0xc8]),
    ("VMREAD to memory", &[0x0f, 0x78, 0x4c, 0x24, 0xc0]),
    ("VMWRITE of a register", &[0x0f, 0x79, 0xc8]),
    ("VMWRITE of memory", &[0x0f, 0x79, 0x4c, 0x24, 0xc0]),
    ("VMLAUNCH", &[0x0f, 0x01, 0xc2]),
    ("VMRESUME", &[0x0f, 0x01, 0xc3]),
    ("INVEPT", &[0x66, 0x0f, 0x38, 0x80, 0x44, 0x24, 0xc0]),
    ("INVVPID", &[0x66, 0x0f, 0x38, 0x81, 0x44, 0x24, 0xc0]),
    ("VMFUNC", &[0x0f, 0x01, 0xd4]),
    ("GETSEC", &[0x0f, 0x37]),
    ("ENCLV", &[0x0f, 0x01, 0xc0]),
    ("ENCLS", &[0x0f, 0x01, 0xcf]),
    ("ENCLU", &[0x0f, 0x01, 0xd7]),
];

/// The hypercall of the manual that the CPU follows, and the other one.
const VMCALL: Instruction = ("VMCALL", &[0x0f, 0x01, 0xc1]);
const VMMCALL: Instruction = ("VMMCALL", &[0x0f, 0x01, 0xd9]);

/// What is not there raises #UD in ring 0. In ring 3, where a paravirtual kernel is as well, it is #UD or #GP: which comes first, "not
/// there" or "not in ring 0", differs.
fn undefined(report: &mut Report, instructions: &[Instruction]) {
    for (name, code) in instructions {
        match kernel::raised(code) {
            Some(fault) => report
                .expect(fault.vector == vector::UD || xen::active() && fault.is_gp0(), format_args!("{name}: {fault}")),
            None => report.fail(format_args!("{name} is carried out")),
        }
        match user::raised(code) {
            Some(fault) => {
                report
                    .expect(matches!(fault.vector, vector::UD | vector::GP), format_args!("{name} in ring 3: {fault}"));
            }
            None => report.fail(format_args!("{name} is carried out in ring 3")),
        }
    }
}

/// Expects that an MSR does not exist.
fn absent(report: &mut Report, index: u32) {
    match cpu::try_rdmsr(index) {
        Ok(value) => report.fail(format_args!("MSR {index:#x} is {value:#x}")),
        Err(fault) => report.expect(fault.is_gp0(), format_args!("RDMSR {index:#x}: {fault}")),
    }
    for value in [0, 1, 0x1000, u64::MAX] {
        match cpu::try_wrmsr(index, value) {
            Ok(()) => report.fail(format_args!("MSR {index:#x} takes {value:#x}")),
            Err(fault) => report.expect(fault.is_gp0(), format_args!("WRMSR {index:#x} = {value:#x}: {fault}")),
        }
    }
}

/// Where the CPU is AMD's, its firmware has switched SVM off and locked that (APM vol. 2, 15.30.1); there is no host save
/// area, and EFER.SVME cannot be set (`msr-efer`).
fn svm_registers(report: &mut Report) {
    /// VM_CR: SVM cannot be switched on, and neither can this be changed.
    const LOCKED_OFF: u64 = 1 << 3 | 1 << 4;
    absent(report, msr::VM_HSAVE_PA);
    if cpu::is_intel() || xen::active() && cpu::try_rdmsr(msr::VM_CR).is_err() {
        return absent(report, msr::VM_CR);
    }
    for value in [0, LOCKED_OFF, u64::MAX] {
        if let Err(fault) = cpu::try_wrmsr(msr::VM_CR, value) {
            report.expect(fault.is_gp0(), format_args!("VM_CR = {value:#x}: {fault}"));
        }
        match cpu::try_rdmsr(msr::VM_CR) {
            Ok(now) => report.expect(now & LOCKED_OFF == LOCKED_OFF, format_args!("VM_CR is {now:#x}")),
            Err(fault) => report.fail(format_args!("RDMSR of VM_CR: {fault}")),
        }
    }
}

/// CR4.VMXE and CR4.SMXE cannot be set and read as 0; where the CPU is Intel's, its firmware has left VMX off and locked
/// that (SDM vol. 3, 24.7). Nothing describes VMX (SDM vol. 3, appendix A).
fn vmx_registers(report: &mut Report) {
    /// `IA32_FEATURE_CONTROL`: cannot be written any more.
    const LOCKED: u64 = 1 << 0;
    /// VMX is on inside and outside of SMX.
    const VMX_ON: u64 = 1 << 1 | 1 << 2;
    let before = cpu::cr4();
    for (name, bit) in [("VMXE", cr4::VMXE), ("SMXE", cr4::SMXE)] {
        report.expect(before & bit == 0, format_args!("CR4.{name} is set"));
        match cpu::try_set_cr4(before | bit) {
            // What a paravirtual guest writes to CR4 may be ignored.
            Ok(()) => report.expect(xen::active(), format_args!("CR4.{name} is taken")),
            Err(fault) => report.expect(fault.is_gp0(), format_args!("CR4.{name}: {fault}")),
        }
        report.expect(cpu::cr4() == before, format_args!("CR4 is {:#x}, was {before:#x}", cpu::cr4()));
    }
    for index in msr::VMX_BASIC..=msr::VMX_LAST {
        absent(report, index);
    }
    if !cpu::is_intel() || xen::active() {
        return absent(report, msr::FEATURE_CONTROL);
    }
    for value in [0, LOCKED, LOCKED | VMX_ON, u64::MAX] {
        match cpu::try_wrmsr(msr::FEATURE_CONTROL, value) {
            Ok(()) => report.fail(format_args!("FEATURE_CONTROL = {value:#x} is taken")),
            Err(fault) => report.expect(fault.is_gp0(), format_args!("FEATURE_CONTROL = {value:#x}: {fault}")),
        }
        match cpu::try_rdmsr(msr::FEATURE_CONTROL) {
            Ok(now) => report.expect(now & (LOCKED | VMX_ON) == LOCKED, format_args!("FEATURE_CONTROL is {now:#x}")),
            Err(fault) => report.fail(format_args!("RDMSR of FEATURE_CONTROL: {fault}")),
        }
    }
}

/// A hypercall of any number and with any arguments comes back, in KVM's way: RAX holds the answer. The other vendor's
/// instruction does not exist (APM vol. 3, VMMCALL; SDM vol. 3, 31.3).
fn hypercall(report: &mut Report) {
    if xen::active() {
        // A paravirtual guest's hypercall is SYSCALL.
        return undefined(report, &[VMCALL, VMMCALL]);
    }
    /// A call with a number.
    macro_rules! call {
        ($name:literal, $line:literal, $number:ident) => {
            if let Some(fault) =
                catch!([$line], inout("rax") $number => _, in("rcx") u64::MAX, in("rdx") u64::MAX, in("rsi") u64::MAX)
            {
                report.fail(format_args!("{}: {fault}", $name));
            }
        };
    }
    for number in [0_u64, 1, 5, 9, 11, 100, 0xffff_ffff, u64::MAX] {
        with_hypercall!(call, number);
    }
    let (ours, other) = if cpu::is_intel() { (VMCALL, VMMCALL) } else { (VMMCALL, VMCALL) };
    undefined(report, &[other]);
    // From ring 3 it is refused or answered, as the hypervisor likes; it returns or raises.
    if let Some(fault) = user::raised(ours.1) {
        report.expect(matches!(fault.vector, vector::UD | vector::GP), format_args!("{} in ring 3: {fault}", ours.0));
    }
}
