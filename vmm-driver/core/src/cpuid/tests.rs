//! Tests of the CPUID table, on made-up hosts and on the one that they run on.

use core::arch::x86_64::__cpuid_count;

use proptest::prelude::*;

use super::*;

fn result([eax, ebx, ecx, edx]: [u32; 4]) -> CpuidResult {
    CpuidResult { eax, ebx, ecx, edx }
}

const AMD: [u32; 3] = [u32::from_le_bytes(*b"Auth"), u32::from_le_bytes(*b"cAMD"), u32::from_le_bytes(*b"enti")];
const INTEL: [u32; 3] = [u32::from_le_bytes(*b"Genu"), u32::from_le_bytes(*b"ntel"), u32::from_le_bytes(*b"ineI")];

/// A CPU that has every feature there is or may be.
fn everything(vendor: [u32; 3]) -> impl Fn(u32, u32) -> CpuidResult {
    let [ebx, ecx, edx] = vendor;
    move |leaf, subleaf| {
        result(match (leaf, subleaf) {
            (0, _) => [0x20, ebx, ecx, edx],
            (0x8000_0000, _) => [0x8000_0028, ebx, ecx, edx],
            (4 | 0x8000_001d, 0..=3) => [u32::MAX << 5 & !0xe0 | (subleaf.max(1) << 5) | 1, 0x3f, 0xff, 0],
            (4 | 0x8000_001d, _) => [0; 4],
            (7, 0) => [2, u32::MAX, u32::MAX, u32::MAX],
            (0xd, 0) => [u32::MAX, 0x1000, 0x2000, u32::MAX],
            (0xd, 2..) => [64 * subleaf, 512 + 64 * subleaf, 2, 0],
            (0x8000_0008, _) => [0x3034, u32::MAX, u32::MAX, u32::MAX],
            _ => [u32::MAX; 4],
        })
    }
}

const CONFIG: CpuidConfig = CpuidConfig { vcpus: 3, tsc_khz: 2_500_000, xcr0: u64::MAX, paravirtual: false };
const RESET: Dynamic = Dynamic { cr4: 0, xcr0: 1, apic_id: 2 };

/// A table with all features that a guest can have.
pub(crate) fn all_features() -> CpuidTable {
    CpuidTable::new(everything(AMD), &CONFIG)
}

/// The same for paravirtual guests.
pub(crate) fn all_features_paravirtual() -> CpuidTable {
    CpuidTable::new(everything(AMD), &CpuidConfig { vcpus: 1, paravirtual: true, ..CONFIG })
}

/// The same of the other vendor.
pub(crate) fn all_features_paravirtual_intel() -> CpuidTable {
    CpuidTable::new(everything(INTEL), &CpuidConfig { vcpus: 1, paravirtual: true, ..CONFIG })
}

/// All features, of the other vendor.
pub(crate) fn all_features_intel() -> CpuidTable {
    CpuidTable::new(everything(INTEL), &CONFIG)
}

fn bits(numbers: &[u32]) -> u32 {
    numbers.iter().fold(0, |bits, number| bits | 1 << number)
}

#[test]
fn hidden_features_stay_hidden() {
    for table in [all_features(), all_features_intel()] {
        let hidden = |leaf, subleaf, register: usize, numbers: &[u32]| {
            let shown = table.lookup(leaf, subleaf, &RESET)[register] & bits(numbers);
            assert_eq!(shown, 0, "leaf {leaf:#x}.{subleaf} register {register}: {shown:#x}");
        };
        // DTES64, MONITOR, DS-CPL, VMX, SMX, EIST, TM2, CNXT-ID, SDBG, xTPR, PDCM, DCA, OSXSAVE while CR4 has it not.
        hidden(1, 0, 2, &[2, 3, 4, 5, 6, 7, 8, 10, 11, 14, 15, 16, 18, 27]);
        // MTRR, serial number, DS, ACPI, TM, IA64, PBE.
        hidden(1, 0, 3, &[10, 12, 18, 20, 21, 22, 29, 30, 31]);
        // TSC_ADJUST, SGX, HLE, RTM, PQM, MPX, PQE, PT.
        hidden(7, 0, 1, &[1, 2, 4, 11, 12, 14, 15, 22, 25]);
        // OSPKE, WAITPKG, CET_SS, TME, LA57, MAWAU, key locker, bus lock detect, ENQCMD, SGX_LC, PKS.
        hidden(7, 0, 2, &[4, 5, 7, 13, 15, 16, 17, 18, 19, 20, 21, 23, 24, 26, 29, 30, 31]);
        // SGX keys, UINTR, SRBDS, RTM, hybrid, TSXLDTRK, PCONFIG, LBR, IBT, AMX, IBRS, STIBP, L1D flush, capabilities, SSBD.
        hidden(7, 0, 3, &[1, 5, 9, 11, 13, 15, 16, 18, 19, 20, 22, 24, 25, 26, 27, 28, 29, 30, 31]);
        // LASS, FRED, AMX, HRESET, LAM.
        hidden(7, 1, 0, &[6, 17, 18, 19, 21, 22, 26]);
        // CET_SSS, AMX.
        hidden(7, 1, 3, &[8, 18]);
        // PSFD, IPRED, RRSBA, DDPD, BHI.
        hidden(7, 2, 3, &[0, 1, 2, 3, 4]);
        // XSAVES, XFD.
        hidden(0xd, 1, 0, &[3, 4]);
        // MPX, PT, PASID, CET, HDC, UINTR, LBR, HWP, AMX.
        hidden(0xd, 0, 0, &[3, 4, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18]);
        // SVM, EXTAPIC, OSVW, IBS, SKINIT, WDT, LWP, TCE, NodeId, PERFCTR, BPEXT, MWAITX.
        hidden(0x8000_0001, 0, 2, &[2, 3, 9, 10, 12, 13, 15, 17, 19, 23, 24, 26, 27, 28, 29, 30]);
        // FFXSR.
        hidden(0x8000_0001, 0, 3, &[25, 28]);
        // Power states of the host.
        hidden(0x8000_0007, 0, 3, &[0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14]);
        // IRPERF, INVLPGB, RDPRU, MBE, WBNOINVD, IBRS, STIBP, SSBD, PPIN, CPPC, PSFD.
        hidden(0x8000_0008, 0, 1, &[1, 3, 4, 6, 8, 9, 13, 14, 15, 16, 17, 18, 19, 23, 24, 25, 27, 28]);
        // Automatic IBRS, SBPB, ERAPS.
        hidden(0x8000_0021, 0, 0, &[3, 8, 17, 24, 27]);
        for leaf in [3, 5, 8, 9, 0xa, 0xc] {
            assert_eq!(table.lookup(leaf, 0, &RESET), [0; 4], "leaf {leaf:#x}");
        }
    }
    for leaf in [0xe, 0xf, 0x10, 0x12, 0x14, 0x15, 0x16, 0x1f, 0x20, 0x8000_000a, 0x8000_001b, 0x8000_001c, 0x8000_001f]
    {
        assert_eq!(all_features().lookup(leaf, 0, &RESET), [0; 4], "leaf {leaf:#x}");
    }
}

#[test]
fn what_guests_rely_on_is_shown() {
    for table in [all_features(), all_features_intel()] {
        let shown = |leaf, register: usize, numbers: &[u32]| {
            let all = bits(numbers);
            assert_eq!(table.lookup(leaf, 0, &RESET)[register] & all, all, "leaf {leaf:#x} register {register}");
        };
        shown(1, 2, &[0, 1, 9, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 28, 29, 30, 31]);
        shown(1, 3, &[0, 4, 5, 6, 8, 9, 11, 13, 15, 16, 24, 25, 26]);
        shown(7, 1, &[0, 3, 5, 7, 8, 9, 10, 16, 18, 20, 23, 29]);
        shown(7, 2, &[2, 3]);
        shown(7, 3, &[4]);
        shown(0x8000_0001, 3, &[11, 20, 26, 27, 29]);
        shown(0x8000_0007, 3, &[8]);
        assert_eq!(table.lookup(6, 0, &RESET), [4, 0, 0, 0]);
        assert_eq!(table.xcr0().bits(), 0x2e7);
        assert_eq!(table.cr4(), 0x0077_0fff & !(1 << 12));
        assert_eq!(table.efer(), Efer::SCE | Efer::LME | Efer::LMA | Efer::NXE);
    }
    assert!(all_features().has_ibpb());
    assert!(!all_features_intel().has_ibpb());
}

#[test]
fn hypervisor_leaves() {
    let table = all_features();
    let [last, ebx, ecx, edx] = table.lookup(0x4000_0000, 0, &RESET);
    assert_eq!(last, 0x4000_0010);
    assert_eq!([ebx, ecx, edx].map(u32::to_le_bytes).concat(), b"KVMKVMKVM\0\0\0");
    assert_eq!(table.lookup(0x4000_0001, 0, &RESET), [0x0100_000a, 0, 0, 0]);
    assert_eq!(table.lookup(0x4000_0010, 0, &RESET), [2_500_000, 1_000_000, 0, 0]);
    for leaf in [0x4000_0002, 0x4000_0011, 0x4000_0100] {
        assert_eq!(table.lookup(leaf, 0, &RESET), [0; 4]);
        assert_eq!(all_features_intel().lookup(leaf, 0, &RESET), [0; 4]);
    }
}

#[test]
fn test_paravirtual_guests_find_xen() {
    for table in [all_features_paravirtual(), all_features_paravirtual_intel()] {
        let [last, ebx, ecx, edx] = table.lookup(0x4000_0000, 0, &RESET);
        assert_eq!(last, 0x4000_0003);
        assert_eq!([ebx, ecx, edx].map(u32::to_le_bytes).concat(), b"XenVMMXenVMM");
        assert_eq!(table.lookup(0x4000_0001, 0, &RESET), [0x0004_0011, 0, 0, 0]);
        assert_eq!(table.lookup(0x4000_0002, 0, &RESET), [0, 0x4000_0000, 1, 0]);
        assert_eq!(table.lookup(0x4000_0003, 0, &RESET), [2, 2, 2_500_000, 0]);
        assert_eq!(table.lookup(0x4000_0003, 1, &RESET), [0; 4]);
        for leaf in [0x4000_0004, 0x4000_0010, 0x4000_0100] {
            assert_eq!(table.lookup(leaf, 0, &RESET), [0; 4]);
        }
        assert_ne!(table.lookup(1, 0, &RESET)[2] & 1 << 31, 0, "there is a hypervisor");
    }
}

#[test]
fn test_what_needs_ring_0_is_hidden_from_paravirtual_guests() {
    for table in [all_features_paravirtual(), all_features_paravirtual_intel()] {
        let register = |leaf, register: usize| table.lookup(leaf, 0, &RESET)[register];
        let hidden = |leaf, number: usize, numbers: &[u32]| {
            let shown = register(leaf, number) & bits(numbers);
            assert_eq!(shown, 0, "leaf {leaf:#x} register {number}: {shown:#x}");
        };
        // MONITOR, VMX, PCID, x2APIC, TSC_DEADLINE.
        hidden(1, 2, &[3, 5, 17, 21, 24]);
        // VME, DE, PSE, MCE, SEP, MTRR, PGE, MCA, PSE36.
        hidden(1, 3, &[1, 2, 3, 7, 11, 12, 13, 14, 17]);
        // FSGSBASE, SMEP, INVPCID, SMAP.
        hidden(7, 1, &[0, 7, 10, 20]);
        // UMIP, PKU, OSPKE, shadow stacks, LA57.
        hidden(7, 2, &[2, 3, 4, 7, 16]);
        // Indirect branch tracking.
        hidden(7, 3, &[20]);
        // SVM, CR8.
        hidden(0x8000_0001, 2, &[2, 4]);
        // What AMD repeats (its bit 11 is SYSCALL), 1 GiB pages.
        hidden(0x8000_0001, 3, &[1, 2, 3, 7, 12, 13, 14, 17, 26]);
        let shown = |leaf, number: usize, numbers: &[u32]| {
            assert_eq!(register(leaf, number) & bits(numbers), bits(numbers), "leaf {leaf:#x} register {number}");
        };
        // SSE3, CX16, XSAVE, AVX.
        shown(1, 2, &[0, 13, 26, 28]);
        // FPU, TSC, MSR, PAE, CX8, CMOV, PAT, FXSR, SSE, SSE2: what Linux cannot do without.
        shown(1, 3, &[0, 4, 5, 6, 8, 15, 16, 24, 25, 26]);
        // SYSCALL, NX, RDTSCP, LM.
        shown(0x8000_0001, 3, &[11, 20, 27, 29]);
        // The counter's rate is constant.
        shown(0x8000_0007, 3, &[8]);
        assert_eq!(table.efer(), Efer::SCE | Efer::LME | Efer::LMA | Efer::NXE);
        // TSD, PAE, PCE, OSFXSR, OSXMMEXCPT, OSXSAVE.
        assert_eq!(table.cr4(), u64::from(bits(&[2, 5, 8, 9, 10, 18])));
        assert_eq!(table.xcr0().bits(), 0xe7, "without protection keys");
        let on = Dynamic { cr4: 1 << 18 | 1 << 22, ..RESET };
        assert_eq!(table.lookup(1, 0, &on)[2] ^ register(1, 2), 1 << 27, "OSXSAVE follows CR4");
    }
}

#[test]
fn test_paravirtual_guests_on_intel_find_their_frequency() {
    let table = all_features_paravirtual_intel();
    let frequencies = [2_500, 2_500, 0, 0];
    assert_eq!(table.lookup(0, 0, &RESET)[0], 0x16);
    for leaf in 0xe..0x16 {
        assert_eq!(table.lookup(leaf, 0, &RESET), [0; 4], "leaf {leaf:#x}");
    }
    for leaf in [0x16, 0x17, 0x8000_0009, u32::MAX] {
        assert_eq!(table.lookup(leaf, 0, &RESET), frequencies, "leaf {leaf:#x}");
    }
    let amd = all_features_paravirtual();
    assert_eq!((amd.lookup(0, 0, &RESET)[0], amd.lookup(0x16, 0, &RESET)), (0xd, [0; 4]));
}

#[test]
fn dynamic_bits_follow_the_vcpu() {
    let table = all_features();
    let on = Dynamic { cr4: 1 << 18 | 1 << 22, xcr0: 0x7, apic_id: 2 };
    assert_eq!(table.lookup(1, 0, &RESET)[1] >> 24, 2);
    assert_eq!(table.lookup(1, 0, &on)[2] ^ table.lookup(1, 0, &RESET)[2], 1 << 27);
    assert_eq!(table.lookup(7, 0, &on)[2] ^ table.lookup(7, 0, &RESET)[2], 1 << 4);
    let size = |xcr0| table.lookup(0xd, 0, &Dynamic { xcr0, ..RESET })[1];
    assert_eq!([size(1), size(3), size(7), size(0x2e7)], [576, 576, 768, 512 + 9 * 128]);
    assert_eq!(table.lookup(0xd, 0, &RESET)[2], 512 + 9 * 128);
    let compacted = |xcr0| table.lookup(0xd, 1, &Dynamic { xcr0, ..RESET })[1];
    assert_eq!([compacted(3), compacted(0x2e7)], [576, 576 + 64 * (2 + 5 + 6 + 7 + 9)]);
}

#[test]
fn topology_is_one_socket() {
    for (vcpus, slots, id_bits) in [(1, 1, 0), (2, 2, 1), (3, 4, 2), (64, 64, 6)] {
        let config = CpuidConfig { vcpus, ..CONFIG };
        let amd = CpuidTable::new(everything(AMD), &config);
        let intel = CpuidTable::new(everything(INTEL), &config);
        for table in [&amd, &intel] {
            assert_eq!(table.lookup(1, 0, &RESET)[1] >> 16 & 0xff, slots);
            assert_eq!(table.lookup(1, 0, &RESET)[3] >> 28 & 1, u32::from(vcpus > 1));
            assert_eq!(table.lookup(0xb, 0, &RESET), [0, 1, 0x100, 2]);
            assert_eq!(table.lookup(0xb, 1, &RESET), [id_bits, vcpus, 0x201, 2]);
            assert_eq!(table.lookup(0xb, 2, &RESET), [0, 0, 2, 2]);
        }
        assert_eq!(amd.lookup(0x8000_0008, 0, &RESET)[2], id_bits << 12 | (vcpus - 1));
        assert_eq!(amd.lookup(0x8000_001e, 0, &RESET), [2, 2, 0, 0]);
        assert_eq!(amd.lookup(0x8000_001d, 0, &RESET)[0] >> 14, 0);
        assert_eq!(amd.lookup(0x8000_001d, 3, &RESET)[0] >> 14, slots - 1);
        assert_eq!(intel.lookup(4, 0, &RESET)[0] >> 14, (slots - 1) << 12);
        assert_eq!(intel.lookup(4, 3, &RESET)[0] >> 14, (slots - 1) << 12 | (slots - 1));
        assert_eq!(intel.lookup(4, 4, &RESET), [0; 4]);
    }
}

#[test]
fn beyond_the_last_leaf() {
    let (amd, intel) = (all_features(), all_features_intel());
    for leaf in [0xe, 0x1f, 0x2000_0000, 0x8000_0022, 0xc000_0000, u32::MAX] {
        assert_eq!(amd.lookup(leaf, 1, &RESET), [0; 4]);
        assert_eq!(intel.lookup(leaf, 1, &RESET), intel.lookup(0xd, 1, &RESET));
    }
}

#[test]
fn without_the_state_the_features_are_gone() {
    let without = |xcr0| CpuidTable::new(everything(AMD), &CpuidConfig { xcr0, ..CONFIG });
    let table = without(7);
    assert_eq!(table.lookup(7, 0, &RESET)[1] & Leaf7Ebx::NEEDS_AVX512.bits(), 0);
    assert_ne!(table.lookup(7, 0, &RESET)[1] & Leaf7Ebx::AVX2.bits(), 0);
    assert_eq!(table.lookup(7, 0, &RESET)[2] & Leaf7Ecx::PKU.bits(), 0);
    assert_eq!(table.lookup(0xd, 0, &RESET)[0], 7);
    assert_eq!(table.lookup(0xd, 5, &RESET), [0; 4]);
    let table = without(3);
    assert_eq!(table.lookup(1, 0, &RESET)[2] & Leaf1Ecx::NEEDS_AVX.bits(), 0);
    assert_eq!(table.lookup(7, 0, &RESET)[1] & (Leaf7Ebx::NEEDS_AVX | Leaf7Ebx::NEEDS_AVX512).bits(), 0);
    let no_xsave = CpuidTable::new(
        |leaf, subleaf| {
            let mut answer = everything(AMD)(leaf, subleaf);
            if leaf == 1 {
                answer.ecx &= !Leaf1Ecx::OSXSAVE.bits();
            }
            answer
        },
        &CONFIG,
    );
    assert_eq!(no_xsave.lookup(1, 0, &RESET)[2] & (Leaf1Ecx::XSAVE | Leaf1Ecx::AVX).bits(), 0);
    assert_eq!(no_xsave.lookup(0xd, 0, &RESET), [0; 4]);
    assert_eq!(no_xsave.cr4() & 1 << 18, 0);
}

#[test]
fn this_machine_gives_a_table() {
    let host_xcr0 = 0x2e7;
    let table = CpuidTable::new(__cpuid_count, &CpuidConfig { vcpus: 1, xcr0: host_xcr0, ..CONFIG });
    let host = __cpuid_count(1, 0);
    let [eax, _, ecx, edx] = table.lookup(1, 0, &RESET);
    assert_eq!(eax, host.eax);
    let emulated = Leaf1Ecx::ALWAYS.bits();
    assert_eq!(ecx & !host.ecx & !emulated, 0);
    assert_eq!(edx & !host.edx, 0);
    let seven = __cpuid_count(7, 0);
    let [_, ebx, ecx, edx] = table.lookup(7, 0, &RESET);
    assert_eq!((ebx & !seven.ebx, ecx & !seven.ecx, edx & !seven.edx), (0, 0, 0));
    let xcr0 = table.xcr0().bits();
    let area = table.lookup(0xd, 0, &Dynamic { xcr0, ..RESET });
    assert_eq!(area[1], area[2]);
    assert!(area[2] <= __cpuid_count(0xd, 0).ecx);
}

proptest! {
    /// Neither a strange host nor any leaf makes the table panic or show a forbidden bit.
    #[test]
    fn strange_hosts(
        words in proptest::collection::vec(any::<[u32; 4]>(), 1..64),
        vcpus: u32,
        xcr0: u64,
        paravirtual: bool,
        leaves in proptest::collection::vec((any::<u32>(), any::<u32>(), any::<u64>(), any::<u64>()), 0..50),
    ) {
        let host = |leaf: u32, subleaf: u32| {
            let index = leaf.wrapping_mul(31).wrapping_add(subleaf) as usize % words.len();
            result(words[index])
        };
        let table = CpuidTable::new(host, &CpuidConfig { vcpus, xcr0, paravirtual, ..CONFIG });
        prop_assert_eq!(table.xcr0().bits() & !(xcr0 | 1), 0);
        for (leaf, subleaf, cr4, xcr0) in leaves {
            let vcpu = Dynamic { cr4, xcr0, apic_id: 1 };
            for base in [0, 0x4000_0000, 0x8000_0000] {
                let _ = table.lookup(base | leaf & 0x3f, subleaf & 0xf, &vcpu);
            }
            let _ = table.lookup(leaf, subleaf, &vcpu);
        }
        prop_assert_eq!(table.lookup(1, 0, &RESET)[2] & 1 << 5, 0);
        prop_assert_eq!(table.lookup(0x8000_0001, 0, &RESET)[2] & 1 << 2, 0);
    }
}
