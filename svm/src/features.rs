//! What the CPU offers (APM vol. 2, 15.4 and vol. 3, appendix E.4.9), and why it may not.

use covisor_abi::EngineStatus;
use covisor_core::cpuid::Vendor;
use covisor_core::hypervisor;
use covisor_core::instructions::rdmsr;
use covisor_core::instructions::read_cr4;
use covisor_core::msr::index;

/// EFER.SVME.
pub(crate) const EFER_SVME: u64 = 1 << 12;
/// VM_CR.SVMDIS (15.30.1): EFER.SVME cannot be set.
const VM_CR_SVMDIS: u64 = 1 << 4;
/// SYSCFG.SMEE: memory encryption is on.
const SYSCFG_SMEE: u64 = 1 << 23;
/// CR4.LA57.
const CR4_LA57: u64 = 1 << 12;

/// Features of the CPU that the engine uses where they are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Features {
    /// The VMCB tells the next instruction's address.
    pub(crate) next_rip_save: bool,
    /// VMRUN can flush one ASID.
    pub(crate) flush_by_asid: bool,
    /// Number of ASIDs, with 0, which is the host's.
    pub(crate) asids: u32,
    /// The CPU is QEMU's emulation, whose VMRUN forgets the interrupt shadow.
    pub(crate) emulated_by_qemu: bool,
    /// RDTSCP, hence `TSC_AUX`.
    pub(crate) tsc_aux: bool,
    /// XSAVES, hence `IA32_XSS`.
    pub(crate) supervisor_state: bool,
    /// The CPU keeps the guest's return predictions from the host by itself (ERAPS).
    pub(crate) return_stack_isolated: bool,
    /// Levels of the host's page tables, hence of the nested ones.
    pub(crate) paging_levels: u32,
    /// The bit that marks encrypted pages in physical addresses; 0 where the host does not encrypt.
    pub(crate) encryption_bit: u64,
}

/// Registers of a CPUID leaf; zeros above the highest extended leaf.
fn extended_leaf(leaf: u32) -> core::arch::x86_64::CpuidResult {
    let highest = core::arch::x86_64::__cpuid(0x8000_0000).eax;
    if leaf <= highest {
        return core::arch::x86_64::__cpuid_count(leaf, 0);
    }
    core::arch::x86_64::CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 }
}

impl Features {
    /// # Safety
    /// Ring 0.
    pub(crate) unsafe fn read() -> Self {
        let svm = extended_leaf(0x8000_000a);
        let encryption = extended_leaf(0x8000_001f);
        let has_encryption = encryption.eax & 1 != 0;
        // SAFETY: ring 0; a CPU with memory encryption has SYSCFG.
        let (encrypts, cr4) = unsafe { (has_encryption && rdmsr(index::SYSCFG) & SYSCFG_SMEE != 0, read_cr4()) };
        Self {
            next_rip_save: svm.edx & 1 << 3 != 0,
            flush_by_asid: svm.edx & 1 << 6 != 0,
            asids: svm.ebx,
            emulated_by_qemu: hypervisor::is_qemu_emulation(),
            tsc_aux: extended_leaf(0x8000_0001).edx & 1 << 27 != 0,
            supervisor_state: core::arch::x86_64::__cpuid(0).eax >= 0xd
                && core::arch::x86_64::__cpuid_count(0xd, 1).eax & 1 << 3 != 0,
            return_stack_isolated: extended_leaf(0x8000_0021).eax & 1 << 24 != 0,
            paging_levels: if cr4 & CR4_LA57 != 0 { 5 } else { 4 },
            encryption_bit: if encrypts { 1 << (encryption.ebx & 0x3f) } else { 0 },
        }
    }
}

/// Whether the calling CPU can run guests, in the order in which the APM has it asked (15.4).
pub(crate) fn status() -> EngineStatus {
    if extended_leaf(0x8000_0001).ecx & 1 << 2 == 0 {
        return hypervisor::status_without_extension(Vendor::Amd);
    }
    // SAFETY: drivers run in ring 0, and a CPU with SVM has both MSRs.
    let (vm_cr, efer) = unsafe { (rdmsr(index::VM_CR), rdmsr(index::EFER)) };
    if vm_cr & VM_CR_SVMDIS != 0 {
        EngineStatus::DisabledByFirmware
    } else if efer & EFER_SVME != 0 {
        EngineStatus::Taken
    } else if extended_leaf(0x8000_000a).edx & 1 == 0 {
        EngineStatus::NoNestedPaging
    } else {
        EngineStatus::Usable
    }
}
