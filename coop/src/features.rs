//! What the CPU and the host's kernel have to be like, and what the engine uses where it is there.

use core::arch::x86_64::__cpuid;
use core::arch::x86_64::__cpuid_count;
use core::arch::x86_64::CpuidResult;

use covisor_abi::EngineStatus;
use covisor_core::instructions::rdmsr;
use covisor_core::instructions::read_cr4;
use covisor_core::msr::index;
use covisor_core::registers::Efer;

use crate::control::Cr4;
use crate::image;

/// CPUID 0x8000_0001, EDX: SYSCALL and SYSRET.
const HAS_SYSCALL: u32 = 1 << 11;
/// CPUID 0x8000_0001, EDX: no-execute pages.
const HAS_NO_EXECUTE: u32 = 1 << 20;
/// CPUID 0x8000_0001, EDX: RDTSCP, hence `TSC_AUX`.
const HAS_RDTSCP: u32 = 1 << 27;
/// CPUID 0x8000_0001, EDX: long mode.
const HAS_LONG_MODE: u32 = 1 << 29;
/// CPUID 0xd, sub-leaf 1, EAX: XSAVES, hence `IA32_XSS`.
const HAS_XSAVES: u32 = 1 << 3;
/// CPUID 7, ECX: RDPID, hence `TSC_AUX`.
const HAS_RDPID: u32 = 1 << 22;
/// `IA32_S_CET`.
const MSR_S_CET: u32 = 0x6a2;
/// There: the kernel has a shadow stack.
const SHADOW_STACK: u64 = 1 << 0;

/// Features of the CPU that the engine uses where they are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Features {
    /// `TSC_AUX`.
    pub(crate) tsc_aux: bool,
    /// `IA32_XSS`.
    pub(crate) supervisor_state: bool,
    /// Levels of the host's page tables.
    pub(crate) paging_levels: u32,
    /// The host uses XSAVE, so guests can.
    pub(crate) xsave: bool,
    /// Address bits that an entry of a page table can have.
    pub(crate) address_mask: u64,
}

/// Registers of a CPUID leaf; zeros above the highest one of its kind.
fn leaf(number: u32) -> CpuidResult {
    let highest = __cpuid(number & 0x8000_0000).eax;
    if number <= highest { __cpuid_count(number, 0) } else { CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 } }
}

/// Mask of the physical address in an entry, with so many address bits.
const fn address_mask(bits: u32) -> u64 {
    // At most bit 51 (SDM vol. 3, 4.5.4), and what CPUs have that do not tell.
    let bits = if bits == 0 || bits > 52 { 36 } else { bits };
    ((1 << bits) - 1) & !0xfff
}

impl Features {
    /// # Safety
    /// Ring 0.
    pub(crate) unsafe fn read() -> Self {
        // SAFETY: ring 0.
        let cr4 = Cr4::from_bits_retain(unsafe { read_cr4() });
        let extended = leaf(0x8000_0001).edx;
        Self {
            tsc_aux: extended & HAS_RDTSCP != 0 || leaf(7).ecx & HAS_RDPID != 0,
            supervisor_state: __cpuid(0).eax >= 0xd && __cpuid_count(0xd, 1).eax & HAS_XSAVES != 0,
            paging_levels: if cr4.contains(Cr4::LA57) { 5 } else { 4 },
            xsave: cr4.contains(Cr4::OSXSAVE),
            address_mask: address_mask(leaf(0x8000_0008).eax & 0xff),
        }
    }
}

/// Whether the calling CPU can run guests. It need not have any extension for virtualization.
pub(crate) fn status() -> EngineStatus {
    let needed = HAS_SYSCALL | HAS_NO_EXECUTE | HAS_LONG_MODE;
    if image::header().is_none() {
        return EngineStatus::NotBuilt;
    }
    if leaf(0x8000_0001).edx & needed != needed {
        return EngineStatus::CpuLacks;
    }
    // SAFETY: drivers run in ring 0; CPUs with long mode have EFER, and those with CR4.CET have S_CET.
    let (cr4, efer, shadow_stack) = unsafe {
        let cr4 = Cr4::from_bits_retain(read_cr4());
        (cr4, rdmsr(index::EFER), cr4.contains(Cr4::CET) && rdmsr(MSR_S_CET) & SHADOW_STACK != 0)
    };
    // Guests use SYSCALL, and their pages and the monitor's are not executable, by the host's EFER.
    let enabled = Efer::SCE | Efer::NXE | Efer::LMA;
    if !Efer::from_bits_retain(efer).contains(enabled) {
        EngineStatus::CpuLacks
    } else if shadow_stack {
        EngineStatus::ShadowStackOn
    } else if cr4.contains(Cr4::FRED) {
        EngineStatus::FredOn
    } else {
        EngineStatus::Usable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_masks_end_where_the_cpu_says() {
        assert_eq!(address_mask(46), 0x3fff_ffff_f000);
        assert_eq!(address_mask(52), 0x000f_ffff_ffff_f000);
        assert_eq!(address_mask(0), 0xf_ffff_f000);
    }

    #[test]
    fn without_an_image_the_engine_is_not_built() {
        if image::header().is_none() {
            assert_eq!(status(), EngineStatus::NotBuilt);
        }
    }
}
