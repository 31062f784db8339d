//! Instructions that only ring 0 has, as functions. Those that may fault are used through `catch!` or
//! the `try_` functions here.

use core::arch::asm;
use core::arch::x86_64::__cpuid_count;
use core::arch::x86_64::CpuidResult;
use core::sync::atomic::Ordering::Relaxed;

use crate::exception::Fault;
use crate::exception::vector;
use crate::xen;
use crate::xen::abi::call;
use crate::xen::hypercall::hypercall;

/// Model-specific registers that the probe uses by name (APM vol. 2, appendix A; Intel SDM vol. 4).
pub mod msr {
    /// Time stamp counter.
    pub const TSC: u32 = 0x10;
    /// Base address and mode of the local APIC.
    pub const APIC_BASE: u32 = 0x1b;
    /// VMX's switch in the firmware's hands.
    pub const FEATURE_CONTROL: u32 = 0x3a;
    /// SYSENTER's stack.
    pub const SYSENTER_ESP: u32 = 0x175;
    /// SYSENTER's entry.
    pub const SYSENTER_EIP: u32 = 0x176;
    /// Page attribute table.
    pub const PAT: u32 = 0x277;
    /// First of the registers that describe VMX.
    pub const VMX_BASIC: u32 = 0x480;
    /// The last one.
    pub const VMX_LAST: u32 = 0x491;
    /// Deadline of the local APIC's timer.
    pub const TSC_DEADLINE: u32 = 0x6e0;
    /// First register of the local APIC in x2APIC mode.
    pub const X2APIC: u32 = 0x800;
    /// Extended features.
    pub const EFER: u32 = 0xc000_0080;
    /// SYSCALL's segments.
    pub const STAR: u32 = 0xc000_0081;
    /// SYSCALL's entry in long mode.
    pub const LSTAR: u32 = 0xc000_0082;
    /// SYSCALL's entry from compatibility mode.
    pub const CSTAR: u32 = 0xc000_0083;
    /// FS base.
    pub const FS_BASE: u32 = 0xc000_0100;
    /// GS base.
    pub const GS_BASE: u32 = 0xc000_0101;
    /// What SWAPGS swaps in.
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    /// What RDTSCP gives in ECX.
    pub const TSC_AUX: u32 = 0xc000_0103;
    /// SVM's switch in the firmware's hands.
    pub const VM_CR: u32 = 0xc001_0114;
    /// SVM's host save area.
    pub const VM_HSAVE_PA: u32 = 0xc001_0117;
    /// KVM's paravirtual clock: wall clock.
    pub const KVM_WALL_CLOCK: u32 = 0x4b56_4d00;
    /// KVM's paravirtual clock: system time.
    pub const KVM_SYSTEM_TIME: u32 = 0x4b56_4d01;
}

/// CPUID. A paravirtual guest asks for the hypervisor's answer by a prefix (Xen public headers, `arch-x86/xen.h`,
/// `XEN_EMULATE_PREFIX`); without it, it would be the CPU's own.
#[must_use]
pub fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    if !xen::active() {
        return __cpuid_count(leaf, subleaf);
    }
    let (eax, ebx, ecx, edx): (u32, u64, u32, u32);
    // SAFETY: as CPUID; RBX, which the compiler keeps for itself, is restored.
    unsafe {
        asm!(
            "xchg {ebx}, rbx", ".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e", "cpuid", "xchg {ebx}, rbx",
            ebx = out(reg) ebx, inout("eax") leaf => eax, inout("ecx") subleaf => ecx, out("edx") edx,
            options(nostack, preserves_flags),
        );
    }
    CpuidResult { eax, ebx: halves(ebx).0, ecx, edx }
}

/// Whether the CPU follows Intel's manual where it and AMD's differ: all vendors' do but AMD's and Hygon's.
#[must_use]
pub fn is_intel() -> bool {
    let CpuidResult { ebx, ecx, edx, .. } = cpuid(0, 0);
    let words = [ebx, edx, ecx].map(u32::to_le_bytes);
    !matches!(words.as_flattened(), b"AuthenticAMD" | b"HygonGenuine")
}

/// Calls the macro `$each` with name and mnemonic of this CPU's hypercall instruction, and then the arguments given: the
/// other vendor's instruction does not exist.
macro_rules! with_hypercall {
    ($each:ident $(, $argument:tt)*) => {
        if $crate::cpu::is_intel() { $each!("VMCALL", "vmcall" $(, $argument)*) } else { $each!("VMMCALL", "vmmcall" $(, $argument)*) }
    };
}

/// Time stamp counter, not before what stands before it.
#[must_use]
pub fn rdtsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a counter.
    unsafe { asm!("lfence", "rdtsc", out("eax") low, out("edx") high, options(nostack, preserves_flags)) }
    u64::from(high) << 32 | u64::from(low)
}

/// RDMSR.
///
/// # Errors
/// The fault that it raised.
pub fn try_rdmsr(index: u32) -> Result<u64, Fault> {
    let (low, high): (u32, u32);
    match catch!(["rdmsr"], in("ecx") index, out("eax") low, out("edx") high) {
        None => Ok(u64::from(high) << 32 | u64::from(low)),
        Some(fault) => Err(fault),
    }
}

/// WRMSR.
///
/// # Errors
/// The fault that it raised.
pub fn try_wrmsr(index: u32, value: u64) -> Result<(), Fault> {
    let (low, high) = halves(value);
    match catch!(["wrmsr"], in("ecx") index, in("eax") low, in("edx") high) {
        None => Ok(()),
        Some(fault) => Err(fault),
    }
}

/// RDMSR of a register that exists; 0 where it does not.
#[must_use]
pub fn rdmsr(index: u32) -> u64 {
    try_rdmsr(index).unwrap_or(0)
}

/// The lower and the upper half.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "that is its purpose")]
pub const fn halves(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}

/// Defines reading and writing functions of a register that a MOV reaches.
macro_rules! mov_register {
    ($($(#[$doc:meta])* $name:literal, $read:ident, $write:ident;)*) => { $(
        $(#[$doc])*
        #[must_use]
        pub fn $read() -> u64 {
            let value;
            // SAFETY: reads a register that ring 0 can always read.
            unsafe { asm!(concat!("mov {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) }
            value
        }

        /// Writes it.
        ///
        /// # Errors
        /// The fault that this raised.
        pub fn $write(value: u64) -> Result<(), Fault> {
            catch!([concat!("mov ", $name, ", {value}")], value = in(reg) value).map_or(Ok(()), Err)
        }
    )* };
}

mov_register! {
    /// CR0.
    "cr0", cr0, try_set_cr0;
    /// CR3.
    "cr3", cr3, try_set_cr3;
    /// CR4.
    "cr4", cr4, try_set_cr4;
    /// CR8.
    "cr8", cr8, try_set_cr8;
}

/// Defines the same of debug registers, which a paravirtual guest has by hypercalls. What these refuse is #GP.
macro_rules! debug_register {
    ($($number:literal, $name:literal, $read:ident, $write:ident;)*) => { $(
        #[doc = concat!("Reads ", $name, ".")]
        #[must_use]
        pub fn $read() -> u64 {
            if xen::active() {
                return hypercall(call::GET_DEBUGREG, [$number]).cast_unsigned();
            }
            let value;
            // SAFETY: reads a register that ring 0 can always read.
            unsafe { asm!(concat!("mov {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) }
            value
        }

        #[doc = concat!("Writes ", $name, ".")]
        ///
        /// # Errors
        /// The fault that this raised.
        pub fn $write(value: u64) -> Result<(), Fault> {
            if xen::active() {
                let refused = Fault { vector: vector::GP, error: 0, rip: 0 };
                return if hypercall(call::SET_DEBUGREG, [$number, value]) == 0 { Ok(()) } else { Err(refused) };
            }
            catch!([concat!("mov ", $name, ", {value}")], value = in(reg) value).map_or(Ok(()), Err)
        }
    )* };
}

debug_register! {
    0, "dr0", dr0, try_set_dr0;
    1, "dr1", dr1, try_set_dr1;
    2, "dr2", dr2, try_set_dr2;
    3, "dr3", dr3, try_set_dr3;
    6, "dr6", dr6, try_set_dr6;
    7, "dr7", dr7, try_set_dr7;
}

/// CR2. A paravirtual guest has it in memory.
#[must_use]
pub fn cr2() -> u64 {
    if xen::active() {
        return xen::info::vcpu().cr2.load(Relaxed);
    }
    let value;
    // SAFETY: reads a register that ring 0 can always read.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) }
    value
}

/// Writes CR2.
///
/// # Errors
/// The fault that this raised.
pub fn try_set_cr2(value: u64) -> Result<(), Fault> {
    catch!(["mov cr2, {value}"], value = in(reg) value).map_or(Ok(()), Err)
}

/// DR6 without events (APM vol. 2, 13.1.1.3).
pub const DR6_CLEAR: u64 = 0xffff_0ff0;

/// Sets DR6 to [`DR6_CLEAR`]; for the exception handler, which cannot use `catch!`.
pub fn clear_dr6() {
    if xen::active() {
        hypercall(call::SET_DEBUGREG, [6, DR6_CLEAR]);
        return;
    }
    // SAFETY: a valid value.
    unsafe { asm!("mov dr6, {}", in(reg) DR6_CLEAR, options(nomem, nostack, preserves_flags)) }
}

/// CR0 bits (APM vol. 2, 3.1.1).
pub mod cr0 {
    /// Protected mode.
    pub const PE: u64 = 1 << 0;
    /// Monitor the coprocessor.
    pub const MP: u64 = 1 << 1;
    /// Emulate the coprocessor.
    pub const EM: u64 = 1 << 2;
    /// A task was switched.
    pub const TS: u64 = 1 << 3;
    /// Hard-wired to 1.
    pub const ET: u64 = 1 << 4;
    /// Floating-point errors are exceptions.
    pub const NE: u64 = 1 << 5;
    /// Ring 0 keeps to pages that are not writable.
    pub const WP: u64 = 1 << 16;
    /// Alignment is checked in ring 3.
    pub const AM: u64 = 1 << 18;
    /// Not write-through.
    pub const NW: u64 = 1 << 29;
    /// Caches are off.
    pub const CD: u64 = 1 << 30;
    /// Paging.
    pub const PG: u64 = 1 << 31;
}

/// CR4 bits (APM vol. 2, 3.1.3).
pub mod cr4 {
    /// Debugging extensions: DR4 and DR5 do not exist.
    pub const DE: u64 = 1 << 3;
    /// Physical address extension.
    pub const PAE: u64 = 1 << 5;
    /// Pages that stay at a change of CR3.
    pub const PGE: u64 = 1 << 7;
    /// Five levels of page tables.
    pub const LA57: u64 = 1 << 12;
    /// VMX.
    pub const VMXE: u64 = 1 << 13;
    /// SMX.
    pub const SMXE: u64 = 1 << 14;
    /// XSAVE and XCR0.
    pub const OSXSAVE: u64 = 1 << 18;
}

/// Whether CPUID promises XSAVE (leaf 1, ECX bit 26).
#[must_use]
pub fn has_xsave() -> bool {
    cpuid(1, 0).ecx & 1 << 26 != 0
}

/// XGETBV of XCR0; CR4.OSXSAVE must be set.
#[must_use]
pub fn xcr0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a register.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags)) }
    u64::from(high) << 32 | u64::from(low)
}

/// XSETBV.
///
/// # Errors
/// The fault that it raised.
pub fn try_xsetbv(index: u32, value: u64) -> Result<(), Fault> {
    let (low, high) = halves(value);
    catch!(["xsetbv"], in("ecx") index, in("eax") low, in("edx") high).map_or(Ok(()), Err)
}

/// RFLAGS.
#[must_use]
pub fn rflags() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("pushfq", "pop {}", out(reg) value, options(preserves_flags)) }
    value
}

/// STI; interrupts are taken after the next instruction. A paravirtual guest's interrupts are events, here and below.
pub fn enable_interrupts() {
    if xen::active() {
        return xen::events::unmask();
    }
    // SAFETY: every vector has a handler.
    unsafe { asm!("sti", options(nostack)) }
}

/// CLI.
pub fn disable_interrupts() {
    if xen::active() {
        return xen::events::mask();
    }
    // SAFETY: no more than that.
    unsafe { asm!("cli", options(nostack)) }
}

/// STI, HLT, CLI: waits for one interrupt.
pub fn wait_for_interrupt() {
    if xen::active() {
        return xen::events::wait();
    }
    // SAFETY: every vector has a handler.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) }
}

/// Opens the window for interrupts that are due.
pub fn take_interrupts() {
    if xen::active() {
        xen::events::unmask();
        return xen::events::mask();
    }
    // SAFETY: every vector has a handler.
    unsafe { asm!("sti", "nop", "nop", "cli", options(nostack)) }
}
