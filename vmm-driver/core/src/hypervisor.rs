//! Who runs this machine, where it is a virtual one: CPUID's hypervisor bit and the leaves from 0x4000_0000 on (Microsoft's
//! "Hypervisor Top Level Functional Specification", 2.4; Linux `Documentation/virt/kvm/x86/cpuid.rst`).

use core::arch::x86_64::__cpuid;
use core::arch::x86_64::CpuidResult;

use covisor_abi::EngineStatus;

use crate::cpuid::Vendor;

/// Leaf 1, ECX: a hypervisor runs this machine.
const HYPERVISOR: u32 = 1 << 31;
/// The leaf with the hypervisor's signature in EBX, ECX and EDX.
const SIGNATURE_LEAF: u32 = 0x4000_0000;
/// Hyper-V's, be this one of its virtual machines or the Windows that it belongs to.
const HYPER_V: &[u8; 12] = b"Microsoft Hv";
/// QEMU's emulation of a CPU.
const QEMU_EMULATION: &[u8; 12] = b"TCGTCGTCGTCG";

/// The hypervisor's signature; `None` where the machine is none's.
#[must_use]
pub fn signature() -> Option<[u8; 12]> {
    (__cpuid(1).ecx & HYPERVISOR != 0).then(|| signature_in(__cpuid(SIGNATURE_LEAF)))
}

fn signature_in(leaf: CpuidResult) -> [u8; 12] {
    let mut bytes = [0; 12];
    for (part, word) in bytes.chunks_exact_mut(4).zip([leaf.ebx, leaf.ecx, leaf.edx]) {
        part.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// Whether the CPU is QEMU's emulation.
#[must_use]
pub fn is_qemu_emulation() -> bool {
    signature().as_ref() == Some(QEMU_EMULATION)
}

/// Why CPUID does not show the virtualization extension that CPUs of this vendor have.
#[must_use]
pub fn status_without_extension(vendor: Vendor) -> EngineStatus {
    if Vendor::of_this_cpu() != vendor {
        return EngineStatus::CpuLacks;
    }
    hidden_by(signature().as_ref())
}

fn hidden_by(signature: Option<&[u8; 12]>) -> EngineStatus {
    match signature {
        Some(HYPER_V) => EngineStatus::HiddenByHyperV,
        // An emulated CPU hides nothing: it has what it was made with.
        None | Some(QEMU_EMULATION) => EngineStatus::CpuLacks,
        Some(_) => EngineStatus::HiddenByHypervisor,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_the_signature_is_put_together_in_order() {
        let word = |bytes: &[u8; 4]| u32::from_le_bytes(*bytes);
        let leaf = CpuidResult { eax: 0, ebx: word(b"Micr"), ecx: word(b"osof"), edx: word(b"t Hv") };
        assert_eq!(&signature_in(leaf), HYPER_V);
    }

    #[test]
    fn test_hidden_extensions_are_told_from_missing_ones() {
        assert_eq!(hidden_by(None), EngineStatus::CpuLacks);
        assert_eq!(hidden_by(Some(QEMU_EMULATION)), EngineStatus::CpuLacks);
        assert_eq!(hidden_by(Some(HYPER_V)), EngineStatus::HiddenByHyperV);
        assert_eq!(hidden_by(Some(b"KVMKVMKVM\0\0\0")), EngineStatus::HiddenByHypervisor);
    }

    #[test]
    fn test_no_cpu_is_of_both_vendors() {
        let statuses = [Vendor::Amd, Vendor::Intel].map(status_without_extension);
        assert!(statuses.contains(&EngineStatus::CpuLacks), "{statuses:?}");
    }
}
