//! What CPUID tells the guest: the host's own answers by way of an allow list, made once per VM (AMD APM vol. 3, appendix
//! E; Intel SDM vol. 2, CPUID).
//!
//! Vendor, family and model are the host's, so that the guest takes the paths that fit the CPU. All that is listed in
//! `features` is what the guest may use; topology is one socket with one thread per core and one core per vCPU.

mod features;
#[cfg(test)]
pub(crate) mod tests;

use core::arch::x86_64::CpuidResult;

use covisor_abi::MAX_VCPUS;
use features::KvmFeatures;
use features::Leaf1Ecx;
use features::Leaf1Edx;
use features::Leaf7Ebx;
use features::Leaf7Ecx;
use features::Leaf7Edx;
use features::Leaf7Sub1Eax;
use features::Leaf7Sub1Edx;
use features::Leaf7Sub2Edx;
use features::Leaf80000001Ecx;
use features::Leaf80000001Edx;
use features::Leaf80000007Edx;
use features::Leaf80000008Ebx;
use features::Leaf80000021Eax;
use features::REPEATED_1_EDX;
use features::XenFeatures;
use features::XenTsc;
use features::XsaveFeatures;

use crate::apic::BUS_KHZ;
use crate::memory::GUEST_PHYSICAL_LIMIT;
use crate::policy::Xcr0;
use crate::registers::Cr4;
use crate::registers::Efer;

/// First leaf of the hypervisor's range.
pub const HYPERVISOR_FIRST: u32 = 0x4000_0000;
/// Last leaf that is answered there: rates of time stamp counter and APIC timer.
pub const HYPERVISOR_LAST: u32 = 0x4000_0010;
/// First leaf of the extended range.
const EXTENDED_FIRST: u32 = 0x8000_0000;
/// Last extended leaf that is ever answered.
const EXTENDED_LAST: u32 = 0x8000_0021;
/// Highest basic leaf: extended state. What comes later is hidden as a whole, but for [`FREQUENCIES`].
const BASIC_LAST: u32 = 0xd;
/// Frequencies of the CPU, in MHz, which only Intel's have. Linux as a paravirtual guest has the counter's rate from Xen's clock,
/// but the CPU's it would measure by a timer that is not there.
const FREQUENCIES: u32 = 0x16;
/// Sub-leaves of the cache leaves: more caches than CPUs have.
const CACHES: usize = 8;
const CR4_OSXSAVE: u64 = Cr4::CR4_ENABLE_OS_XSAVE.bits() as u64;
const CR4_PKE: u64 = Cr4::CR4_ENABLE_PROTECTION_KEY.bits() as u64;
/// An XSAVE area begins with 512 bytes of legacy state and a header of 64 (SDM vol. 1, 13.4).
const LEGACY_AND_HEADER: u32 = 576;
/// Signature in leaf 0x4000_0000, for EBX, ECX and EDX: with it Linux looks for the clock and trusts x2APIC.
const SIGNATURE: &[u8; 12] = b"KVMKVMKVM\0\0\0";

/// What paravirtual guests find in the hypervisor's range (Xen public headers, `arch-x86/cpuid.h`).
mod xen {
    /// Signature in leaf 0x4000_0000: without it Linux looks for neither the shared page nor the clock.
    pub(super) const SIGNATURE: &[u8; 12] = b"XenVMMXenVMM";
    /// Last leaf that is answered.
    pub(super) const LAST: u32 = TSC;
    /// Xen 4.17, whose interface it is.
    pub(super) const VERSION: u32 = 4 << 16 | 17;
    /// Hypercall pages that the MSR below fills: none, for guests take SYSCALL themselves.
    pub(super) const HYPERCALL_PAGES: u32 = 0;
    /// First MSR of Xen's, as Xen has it.
    pub(super) const MSR_BASE: u32 = 0x4000_0000;
    /// Leaf about the time stamp counter. It has sub-leaves, of which only the first is answered.
    pub(super) const TSC: u32 = 0x4000_0003;
    /// RDTSC is always the CPU's own. It has Linux take the counter itself for its clock.
    pub(super) const TSC_NEVER_EMULATED: u32 = 2;
}

/// A leaf's answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Leaf {
    eax: u32,
    ebx: u32,
    ecx: u32,
    edx: u32,
}

impl From<CpuidResult> for Leaf {
    fn from(CpuidResult { eax, ebx, ecx, edx }: CpuidResult) -> Self {
        Self { eax, ebx, ecx, edx }
    }
}

impl Leaf {
    const ZERO: Self = Self { eax: 0, ebx: 0, ecx: 0, edx: 0 };
}

/// Whose manual the CPU follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// AMD, Hygon.
    Amd,
    /// Intel and all others.
    Intel,
}

impl Vendor {
    /// The calling CPU's.
    #[must_use]
    pub fn of_this_cpu() -> Self {
        Self::of(core::arch::x86_64::__cpuid(0).into())
    }

    fn of(leaf: Leaf) -> Self {
        let words = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes);
        match words.as_flattened() {
            b"AuthenticAMD" | b"HygonGenuine" => Self::Amd,
            _ => Self::Intel,
        }
    }
}

/// What a [`CpuidTable`] depends on besides the host's CPUID.
#[derive(Clone, Copy, Debug)]
pub struct CpuidConfig {
    /// Number of vCPUs, which the topology shows.
    pub vcpus: u32,
    /// Rate of the time stamp counter.
    pub tsc_khz: u32,
    /// The extended state that the engine switches.
    pub xcr0: u64,
    /// The guest is paravirtual and its kernel runs in ring 3: it finds Xen, and nothing that needs ring 0.
    pub paravirtual: bool,
}

/// What CPUID copies from the vCPU at each execution.
#[derive(Clone, Copy, Debug)]
pub struct Dynamic {
    /// Its CR4.
    pub cr4: u64,
    /// Its XCR0.
    pub xcr0: u64,
    /// Its APIC id.
    pub apic_id: u32,
}

/// CPUID's answers for one VM, and what follows from them for control registers and MSRs.
#[derive(Clone, Debug)]
pub struct CpuidTable {
    basic: [Leaf; BASIC_LAST as usize + 1],
    hypervisor: [Leaf; (HYPERVISOR_LAST - HYPERVISOR_FIRST) as usize + 1],
    extended: [Leaf; (EXTENDED_LAST - EXTENDED_FIRST) as usize + 1],
    /// Leaf 4, and on AMD leaf 0x8000_001d.
    caches: [Leaf; CACHES],
    amd_caches: [Leaf; CACHES],
    features: [Leaf; 3],
    topology: [Leaf; 2],
    /// [`FREQUENCIES`], where `basic_last` is that.
    frequencies: Leaf,
    xstate: [Leaf; Xcr0::COMPONENTS],
    /// Highest leaf of the basic and of the extended range.
    basic_last: u32,
    extended_last: u32,
    vendor: Vendor,
    cr4: Cr4,
    efer: Efer,
    xcr0: Xcr0,
    physical_bits: u32,
    ibpb: bool,
}

impl CpuidTable {
    /// The table for a host whose CPUID is `host(leaf, sub-leaf)`: [`core::arch::x86_64::__cpuid_count`] in the driver.
    #[must_use]
    pub fn new(host: impl Fn(u32, u32) -> CpuidResult, config: &CpuidConfig) -> Self {
        let host = |leaf, subleaf| Leaf::from(host(leaf, subleaf));
        let first = host(0, 0);
        let mut table = Self {
            basic: [Leaf::ZERO; _],
            hypervisor: [Leaf::ZERO; _],
            extended: [Leaf::ZERO; _],
            caches: [Leaf::ZERO; _],
            amd_caches: [Leaf::ZERO; _],
            features: [Leaf::ZERO; _],
            topology: [Leaf::ZERO; _],
            frequencies: Leaf::ZERO,
            xstate: [Leaf::ZERO; _],
            basic_last: BASIC_LAST,
            extended_last: host(EXTENDED_FIRST, 0).eax.clamp(0x8000_0008, EXTENDED_LAST),
            vendor: Vendor::of(first),
            cr4: Cr4::empty(),
            efer: Efer::empty(),
            xcr0: Xcr0::X87,
            physical_bits: 0,
            ibpb: false,
        };
        if table.vendor == Vendor::Intel {
            table.extended_last = 0x8000_0008;
            if config.paravirtual {
                let mhz = config.tsc_khz / 1000;
                table.frequencies = Leaf { eax: mhz, ebx: mhz, ..Leaf::ZERO };
                table.basic_last = FREQUENCIES;
            }
        }
        // A leaf that the host does not have answers with something else's values: it counts as 0.
        let basic = |leaf, subleaf| if leaf <= first.eax { host(leaf, subleaf) } else { Leaf::ZERO };
        let extended_last = host(EXTENDED_FIRST, 0).eax;
        let extended = |leaf| if leaf <= extended_last { host(leaf, 0) } else { Leaf::ZERO };
        // As the feature, its state is hidden.
        let hidden = if config.paravirtual { Xcr0::PKRU } else { Xcr0::empty() };
        table.set_xcr0(&basic, config.xcr0 & !hidden.bits());
        table.set_basic(first, &basic);
        table.set_features(&basic);
        table.set_extended(extended);
        table.set_topology(config.vcpus.clamp(1, MAX_VCPUS), &basic, host);
        if config.paravirtual {
            table.hide_from_paravirtual();
            table.set_xen(config.tsc_khz);
        } else {
            table.set_kvm(config.tsc_khz);
        }
        table.set_control();
        table
    }

    fn basic_mut(&mut self, leaf: u32) -> &mut Leaf {
        &mut self.basic[leaf as usize]
    }

    fn extended_mut(&mut self, leaf: u32) -> &mut Leaf {
        &mut self.extended[(leaf - EXTENDED_FIRST) as usize]
    }

    // Making the table.

    fn set_xcr0(&mut self, basic: &impl Fn(u32, u32) -> Leaf, limit: u64) {
        let one = basic(1, 0);
        // Without the host's own OSXSAVE there is nobody to switch extended state.
        let usable = Leaf1Ecx::XSAVE | Leaf1Ecx::OSXSAVE;
        if !Leaf1Ecx::from_bits_truncate(one.ecx).contains(usable) {
            return;
        }
        let main = basic(0xd, 0);
        let host = u64::from(main.edx) << 32 | u64::from(main.eax);
        let mut components = Xcr0::from_bits_truncate(host & limit) | Xcr0::X87;
        if !components.contains(Xcr0::SSE | Xcr0::AVX) {
            components.remove(Xcr0::AVX | Xcr0::AVX512);
        }
        if !components.contains(Xcr0::AVX512) {
            components.remove(Xcr0::AVX512);
        }
        if Leaf7Ecx::from_bits_truncate(basic(7, 0).ecx).contains(Leaf7Ecx::PKU) {
            self.xcr0 = components;
        } else {
            self.xcr0 = components - Xcr0::PKRU;
        }
        for (component, leaf) in (0_u32..).zip(&mut self.xstate) {
            let shown = self.xcr0.bits() & 1 << component != 0;
            *leaf = match component {
                0 => Leaf::ZERO,
                1 => {
                    let features = XsaveFeatures::from_bits_truncate(basic(0xd, 1).eax);
                    Leaf { eax: features.bits(), ..Leaf::ZERO }
                }
                // ECX bit 1: aligned in the compacted format; the others belong to XSAVES and XFD.
                _ if shown => {
                    let Leaf { eax, ebx, ecx, .. } = basic(0xd, component);
                    Leaf { eax, ebx, ecx: ecx & 2, edx: 0 }
                }
                _ => Leaf::ZERO,
            };
        }
        let size = self.standard_size(self.xcr0);
        #[expect(clippy::cast_possible_truncation, reason = "the components have numbers below 32")]
        let components = self.xcr0.bits() as u32;
        self.xstate[0] = Leaf { eax: components, ebx: 0, ecx: size, edx: 0 };
    }

    fn has_xsave(&self) -> bool {
        self.xstate[0].eax != 0
    }

    fn set_basic(&mut self, first: Leaf, basic: &impl Fn(u32, u32) -> Leaf) {
        *self.basic_mut(0) = Leaf { eax: self.basic_last, ..first };
        let host = basic(1, 0);
        let mut ecx = Leaf1Ecx::from_bits_truncate(host.ecx) | Leaf1Ecx::ALWAYS;
        ecx.remove(Leaf1Ecx::OSXSAVE);
        if !self.has_xsave() {
            ecx.remove(Leaf1Ecx::XSAVE);
        }
        if !self.xcr0.contains(Xcr0::AVX) {
            ecx.remove(Leaf1Ecx::NEEDS_AVX);
        }
        let edx = (Leaf1Edx::from_bits_truncate(host.edx) - Leaf1Edx::HTT) | Leaf1Edx::APIC;
        // EBX: brand and CLFLUSH size; the topology sets the rest.
        *self.basic_mut(1) = Leaf { eax: host.eax, ebx: host.ebx & 0xffff, ecx: ecx.bits(), edx: edx.bits() };
        if self.vendor == Vendor::Intel {
            *self.basic_mut(2) = basic(2, 0);
        }
        // The APIC's timer goes on in every power state ("ARAT").
        *self.basic_mut(6) = Leaf { eax: 1 << 2, ..Leaf::ZERO };
    }

    fn set_features(&mut self, basic: &impl Fn(u32, u32) -> Leaf) {
        let main = basic(7, 0);
        let sub = |number| if number <= main.eax { basic(7, number) } else { Leaf::ZERO };
        let (one, two) = (sub(1), sub(2));
        let mut ebx = Leaf7Ebx::from_bits_truncate(main.ebx);
        let mut ecx = Leaf7Ecx::from_bits_truncate(main.ecx) - Leaf7Ecx::OSPKE;
        let mut edx = Leaf7Edx::from_bits_truncate(main.edx);
        let mut one_eax = Leaf7Sub1Eax::from_bits_truncate(one.eax);
        let mut one_edx = Leaf7Sub1Edx::from_bits_truncate(one.edx);
        if !self.xcr0.contains(Xcr0::AVX) {
            ebx.remove(Leaf7Ebx::NEEDS_AVX);
            ecx.remove(Leaf7Ecx::NEEDS_AVX);
            one_eax.remove(Leaf7Sub1Eax::NEEDS_AVX);
            one_edx.remove(Leaf7Sub1Edx::NEEDS_AVX);
        }
        if !self.xcr0.contains(Xcr0::AVX512) {
            ebx.remove(Leaf7Ebx::NEEDS_AVX512);
            ecx.remove(Leaf7Ecx::NEEDS_AVX512);
            edx.remove(Leaf7Edx::NEEDS_AVX512);
            one_eax.remove(Leaf7Sub1Eax::NEEDS_AVX512);
        }
        if !self.xcr0.contains(Xcr0::PKRU) {
            ecx.remove(Leaf7Ecx::PKU);
        }
        let last = main.eax.min(2);
        let two_edx = Leaf7Sub2Edx::from_bits_truncate(two.edx).bits();
        self.features = [
            Leaf { eax: last, ebx: ebx.bits(), ecx: ecx.bits(), edx: edx.bits() },
            Leaf { eax: one_eax.bits(), ebx: 0, ecx: 0, edx: one_edx.bits() },
            Leaf { edx: two_edx, ..Leaf::ZERO },
        ];
    }

    fn set_extended(&mut self, host: impl Fn(u32) -> Leaf) {
        let amd = self.vendor == Vendor::Amd;
        let first = self.basic[0];
        *self.extended_mut(EXTENDED_FIRST) = Leaf {
            eax: self.extended_last,
            // Only AMD repeats its name here.
            ..if amd { first } else { Leaf::ZERO }
        };
        let one = host(0x8000_0001);
        let mut ecx = Leaf80000001Ecx::from_bits_truncate(one.ecx) - Leaf80000001Ecx::CMP_LEGACY;
        if !self.xcr0.contains(Xcr0::AVX) {
            ecx.remove(Leaf80000001Ecx::NEEDS_AVX);
        }
        let repeated = if amd { self.basic[1].edx & one.edx & REPEATED_1_EDX } else { 0 };
        let edx = Leaf80000001Edx::from_bits_truncate(one.edx).bits() | repeated;
        let (eax, ebx) = if amd { (one.eax, one.ebx) } else { (0, 0) };
        *self.extended_mut(0x8000_0001) = Leaf { eax, ebx, ecx: ecx.bits(), edx };
        // Name, and the sizes of caches and TLBs.
        for leaf in 0x8000_0002..=0x8000_0006 {
            *self.extended_mut(leaf) = host(leaf);
        }
        let power = Leaf80000007Edx::from_bits_truncate(host(0x8000_0007).edx);
        *self.extended_mut(0x8000_0007) = Leaf { edx: power.bits(), ..Leaf::ZERO };
        let sizes = host(0x8000_0008);
        self.physical_bits = (sizes.eax & 0xff).clamp(32, GUEST_PHYSICAL_LIMIT.ilog2());
        let ebx = if amd { Leaf80000008Ebx::from_bits_truncate(sizes.ebx) } else { Leaf80000008Ebx::empty() };
        self.ibpb = ebx.contains(Leaf80000008Ebx::IBPB);
        *self.extended_mut(0x8000_0008) = Leaf { eax: self.physical_bits | 48 << 8, ebx: ebx.bits(), ecx: 0, edx: 0 };
        if amd {
            for leaf in [0x8000_0019, 0x8000_001a] {
                *self.extended_mut(leaf) = host(leaf);
            }
            let more = Leaf80000021Eax::from_bits_truncate(host(0x8000_0021).eax);
            *self.extended_mut(0x8000_0021) = Leaf { eax: more.bits(), ..Leaf::ZERO };
        }
    }

    /// One socket, one thread per core, one core per vCPU, APIC ids from 0.
    fn set_topology(&mut self, vcpus: u32, basic: &impl Fn(u32, u32) -> Leaf, host: impl Fn(u32, u32) -> Leaf) {
        let slots = vcpus.next_power_of_two();
        let id_bits = slots.ilog2();
        let one = self.basic_mut(1);
        one.ebx |= slots << 16;
        if vcpus > 1 {
            one.edx |= Leaf1Edx::HTT.bits();
        }
        // Type and level in the low byte, in bits 25-14 how many APIC ids share the cache: the third level is the socket's.
        let shared = |eax: u32| if eax >> 5 & 7 >= 3 { (slots - 1) << 14 } else { 0 };
        if self.vendor == Vendor::Intel {
            for (subleaf, leaf) in (0..).zip(&mut self.caches) {
                *leaf = basic(4, subleaf);
                if leaf.eax & 0x1f == 0 {
                    *leaf = Leaf::ZERO;
                    break;
                }
                leaf.eax = leaf.eax & 0x3fff | shared(leaf.eax) | (slots - 1) << 26;
            }
        }
        // Leaf 0xb: threads of a core, then cores of the socket. EDX, the APIC id, is set at each lookup.
        self.topology =
            [Leaf { eax: 0, ebx: 1, ecx: 1 << 8, edx: 0 }, Leaf { eax: id_bits, ebx: vcpus, ecx: 2 << 8 | 1, edx: 0 }];
        if self.vendor == Vendor::Amd {
            let one = self.extended_mut(0x8000_0001);
            let topology = one.ecx & Leaf80000001Ecx::TOPOLOGY.bits() != 0;
            if vcpus > 1 {
                one.ecx |= Leaf80000001Ecx::CMP_LEGACY.bits();
            }
            self.extended_mut(0x8000_0008).ecx = id_bits << 12 | (vcpus - 1);
            if topology && self.extended_last >= 0x8000_001e {
                for (subleaf, leaf) in (0..).zip(&mut self.amd_caches) {
                    *leaf = host(0x8000_001d, subleaf);
                    if leaf.eax & 0x1f == 0 {
                        *leaf = Leaf::ZERO;
                        break;
                    }
                    leaf.eax = leaf.eax & 0x3fff | shared(leaf.eax);
                }
            }
        }
    }

    /// Takes away what a kernel in ring 3 cannot have.
    fn hide_from_paravirtual(&mut self) {
        let one = self.basic_mut(1);
        one.ecx &= !Leaf1Ecx::NOT_PARAVIRTUAL.bits();
        one.edx &= !Leaf1Edx::NOT_PARAVIRTUAL.bits();
        let [seven, ..] = &mut self.features;
        seven.ebx &= !Leaf7Ebx::NOT_PARAVIRTUAL.bits();
        seven.ecx &= !Leaf7Ecx::NOT_PARAVIRTUAL.bits();
        let repeated = Leaf1Edx::NOT_PARAVIRTUAL.bits() & REPEATED_1_EDX;
        let extended = self.extended_mut(0x8000_0001);
        extended.ecx &= !Leaf80000001Ecx::NOT_PARAVIRTUAL.bits();
        extended.edx &= !(Leaf80000001Edx::NOT_PARAVIRTUAL.bits() | repeated);
    }

    /// The hypervisor's first leaf.
    fn set_signature(&mut self, last: u32, signature: &[u8; 12]) {
        let word =
            |at: usize| u32::from_le_bytes([signature[at], signature[at + 1], signature[at + 2], signature[at + 3]]);
        self.hypervisor[0] = Leaf { eax: last, ebx: word(0), ecx: word(4), edx: word(8) };
    }

    fn set_kvm(&mut self, tsc_khz: u32) {
        self.set_signature(HYPERVISOR_LAST, SIGNATURE);
        let features = KvmFeatures::NOP_IO_DELAY | KvmFeatures::CLOCKSOURCE2 | KvmFeatures::CLOCKSOURCE_STABLE;
        self.hypervisor[1] = Leaf { eax: features.bits(), ..Leaf::ZERO };
        self.hypervisor[0x10] = Leaf { eax: tsc_khz, ebx: BUS_KHZ, ..Leaf::ZERO };
    }

    fn set_xen(&mut self, tsc_khz: u32) {
        self.set_signature(xen::LAST, xen::SIGNATURE);
        self.hypervisor[1] = Leaf { eax: xen::VERSION, ..Leaf::ZERO };
        let features = XenFeatures::MMU_PT_UPDATE_PRESERVE_AD;
        self.hypervisor[2] = Leaf { eax: xen::HYPERCALL_PAGES, ebx: xen::MSR_BASE, ecx: features.bits(), ..Leaf::ZERO };
        self.hypervisor[3] = Leaf { eax: XenTsc::RELIABLE.bits(), ebx: xen::TSC_NEVER_EMULATED, ecx: tsc_khz, edx: 0 };
    }

    /// The control register bits that come with the features shown.
    fn set_control(&mut self) {
        let [ecx, edx] = [self.basic[1].ecx, self.basic[1].edx];
        let (ecx, edx) = (Leaf1Ecx::from_bits_retain(ecx), Leaf1Edx::from_bits_retain(edx));
        let seven_ebx = Leaf7Ebx::from_bits_retain(self.features[0].ebx);
        let seven_ecx = Leaf7Ecx::from_bits_retain(self.features[0].ecx);
        let extended = Leaf80000001Edx::from_bits_retain(self.extended[1].edx);
        for (shown, bits) in [
            (true, Cr4::CR4_ENABLE_PPMC),
            (edx.contains(Leaf1Edx::VME), Cr4::CR4_ENABLE_VME | Cr4::CR4_VIRTUAL_INTERRUPTS),
            (edx.contains(Leaf1Edx::TSC), Cr4::CR4_TIME_STAMP_DISABLE),
            (edx.contains(Leaf1Edx::DE), Cr4::CR4_DEBUGGING_EXTENSIONS),
            (edx.contains(Leaf1Edx::PSE), Cr4::CR4_ENABLE_PSE),
            (edx.contains(Leaf1Edx::PAE), Cr4::CR4_ENABLE_PAE),
            (edx.contains(Leaf1Edx::MCE), Cr4::CR4_ENABLE_MACHINE_CHECK),
            (edx.contains(Leaf1Edx::PGE), Cr4::CR4_ENABLE_GLOBAL_PAGES),
            (edx.contains(Leaf1Edx::FXSR), Cr4::CR4_ENABLE_SSE),
            (edx.contains(Leaf1Edx::SSE), Cr4::CR4_UNMASKED_SSE),
            (ecx.contains(Leaf1Ecx::PCID), Cr4::CR4_ENABLE_PCID),
            (ecx.contains(Leaf1Ecx::XSAVE), Cr4::CR4_ENABLE_OS_XSAVE),
            (seven_ebx.contains(Leaf7Ebx::FSGSBASE), Cr4::CR4_ENABLE_FSGSBASE),
            (seven_ebx.contains(Leaf7Ebx::SMEP), Cr4::CR4_ENABLE_SMEP),
            (seven_ebx.contains(Leaf7Ebx::SMAP), Cr4::CR4_ENABLE_SMAP),
            (seven_ecx.contains(Leaf7Ecx::UMIP), Cr4::CR4_ENABLE_UMIP),
            (seven_ecx.contains(Leaf7Ecx::PKU), Cr4::CR4_ENABLE_PROTECTION_KEY),
        ] {
            if shown {
                self.cr4 |= bits;
            }
        }
        for (shown, bits) in [
            (extended.contains(Leaf80000001Edx::SYSCALL), Efer::SCE),
            (extended.contains(Leaf80000001Edx::LM), Efer::LME | Efer::LMA),
            (extended.contains(Leaf80000001Edx::NX), Efer::NXE),
        ] {
            if shown {
                self.efer |= bits;
            }
        }
    }

    // Reading it.

    /// CPUID's answer to EAX = `leaf`, ECX = `subleaf`: EAX, EBX, ECX, EDX.
    #[inline]
    #[must_use]
    pub fn lookup(&self, leaf: u32, subleaf: u32, vcpu: &Dynamic) -> [u32; 4] {
        let Leaf { eax, ebx, ecx, edx } = self.find(leaf, subleaf, vcpu);
        [eax, ebx, ecx, edx]
    }

    #[inline]
    fn find(&self, leaf: u32, subleaf: u32, vcpu: &Dynamic) -> Leaf {
        match leaf {
            0..=BASIC_LAST => self.lookup_basic(leaf, subleaf, vcpu),
            // KVM's guests find nothing in this leaf at all.
            xen::TSC if subleaf != 0 => Leaf::ZERO,
            HYPERVISOR_FIRST..=HYPERVISOR_LAST => self.hypervisor[(leaf - HYPERVISOR_FIRST) as usize],
            EXTENDED_FIRST..=EXTENDED_LAST if leaf <= self.extended_last => self.lookup_extended(leaf, subleaf, vcpu),
            _ => self.lookup_beyond(leaf, subleaf, vcpu),
        }
    }

    #[inline]
    fn lookup_basic(&self, leaf: u32, subleaf: u32, vcpu: &Dynamic) -> Leaf {
        match leaf {
            1 => {
                let mut answer = self.basic[1];
                answer.ebx |= vcpu.apic_id << 24;
                if vcpu.cr4 & CR4_OSXSAVE != 0 {
                    answer.ecx |= Leaf1Ecx::OSXSAVE.bits();
                }
                answer
            }
            4 => self.caches.get(subleaf as usize).copied().unwrap_or_default(),
            7 => {
                let mut answer = self.features.get(subleaf as usize).copied().unwrap_or_default();
                if subleaf == 0 && vcpu.cr4 & CR4_PKE != 0 {
                    answer.ecx |= Leaf7Ecx::OSPKE.bits();
                }
                answer
            }
            0xb => {
                let level = Leaf { ecx: subleaf & 0xff, ..Leaf::ZERO };
                let level = self.topology.get(subleaf as usize).copied().unwrap_or(level);
                Leaf { edx: vcpu.apic_id, ..level }
            }
            0xd => self.lookup_xstate(subleaf, vcpu),
            _ => self.basic[leaf as usize],
        }
    }

    fn lookup_extended(&self, leaf: u32, subleaf: u32, vcpu: &Dynamic) -> Leaf {
        match leaf {
            0x8000_001d => self.amd_caches.get(subleaf as usize).copied().unwrap_or_default(),
            // Extended APIC id, core number, node 0.
            0x8000_001e if self.amd_caches[0] != Leaf::ZERO => {
                Leaf { eax: vcpu.apic_id, ebx: vcpu.apic_id & 0xff, ecx: 0, edx: 0 }
            }
            _ => self.extended[(leaf - EXTENDED_FIRST) as usize],
        }
    }

    fn lookup_xstate(&self, subleaf: u32, vcpu: &Dynamic) -> Leaf {
        let mut answer = self.xstate.get(subleaf as usize).copied().unwrap_or_default();
        let enabled = Xcr0::from_bits_truncate(vcpu.xcr0);
        match subleaf {
            0 if self.has_xsave() => answer.ebx = self.standard_size(enabled),
            1 if answer.eax & XsaveFeatures::XSAVEC.bits() != 0 => answer.ebx = self.compacted_size(enabled),
            _ => {}
        }
        answer
    }

    /// Beyond the last leaf: zeros on AMD, the last basic leaf on Intel (SDM vol. 2, CPUID).
    fn lookup_beyond(&self, leaf: u32, subleaf: u32, vcpu: &Dynamic) -> Leaf {
        let of_hypervisor = leaf >> 16 == HYPERVISOR_FIRST >> 16;
        match (self.vendor, self.basic_last) {
            (Vendor::Intel, FREQUENCIES) if leaf < FREQUENCIES => Leaf::ZERO,
            (Vendor::Intel, FREQUENCIES) if !of_hypervisor => self.frequencies,
            (Vendor::Intel, last) if !of_hypervisor => self.lookup_basic(last, subleaf, vcpu),
            (Vendor::Intel | Vendor::Amd, _) => Leaf::ZERO,
        }
    }

    /// Size of an area in XSAVE's standard format with these components (SDM vol. 1, 13.4.2).
    fn standard_size(&self, components: Xcr0) -> u32 {
        let end = |component: usize| self.xstate[component].ebx.saturating_add(self.xstate[component].eax);
        components.extended().map(end).fold(LEGACY_AND_HEADER, u32::max)
    }

    /// The same in the compacted format (SDM vol. 1, 13.4.3).
    fn compacted_size(&self, components: Xcr0) -> u32 {
        components.extended().fold(LEGACY_AND_HEADER, |end, component| {
            let Leaf { eax: size, ecx, .. } = self.xstate[component];
            let start = if ecx & 2 != 0 { end.checked_next_multiple_of(64).unwrap_or(end) } else { end };
            start.saturating_add(size)
        })
    }

    /// Whose manual the guest follows.
    #[must_use]
    pub const fn vendor(&self) -> Vendor {
        self.vendor
    }

    /// The bits that the guest's CR4 can have.
    #[must_use]
    pub const fn cr4(&self) -> u64 {
        self.cr4.bits() as u64
    }

    /// The bits that the guest's EFER can have.
    #[must_use]
    pub const fn efer(&self) -> Efer {
        self.efer
    }

    /// The components that the guest's XCR0 can have.
    #[must_use]
    pub const fn xcr0(&self) -> Xcr0 {
        self.xcr0
    }

    /// Bits of a guest-physical address.
    #[must_use]
    pub const fn physical_bits(&self) -> u32 {
        self.physical_bits
    }

    /// Whether the guest has `PRED_CMD`.
    #[must_use]
    pub const fn has_ibpb(&self) -> bool {
        self.ibpb
    }
}
