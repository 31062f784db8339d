//! The allow list: one type per CPUID register that holds features, and in it exactly the bits that a guest may see.
//!
//! A bit that is not named here is hidden, also if a later CPU defines it. Hidden for a reason:
//!
//! - *Virtualization of their own*: VMX, SMX, SVM, SKINIT. Guests have no nested virtualization.
//! - *State that the engines do not switch*: CET, PKS, AMX, MPX, XSAVES, XFD, UINTR, key locker, LWP, FRED; and
//!   `SPEC_CTRL` with all that it enumerates (IBRS, STIBP, SSBD, `VIRT_SSBD`, PSFD, automatic IBRS).
//! - *Counters and tracing*, which show or touch the host: PMU, PDCM, DS, PERFCTR extensions, IBS, PT, LBR, RDPRU,
//!   APERF/MPERF, RDT/PQM.
//! - *Power and thermal control*, the host's: ACPI, TM, EIST, MONITOR, MWAITX, WAITPKG, HWP, hardware P-states.
//! - *MSRs that a guest has no use for*: MTRR (nested paging and PAT decide the memory type), `TSC_ADJUST`, debug store,
//!   OSVW, `NodeId`, microcode, `ARCH_CAPABILITIES`, `CORE_CAPABILITIES`, `FLUSH_CMD`, data breakpoint masks, IRPERF.
//! - *Enclaves and memory encryption*: SGX, TME, SME, SEV.
//! - *Transactional memory*, which microcode switches off anyway: HLE, RTM.
//! - *57-bit addresses*: LA57 and LAM; guests have 4-level paging.
//! - *What only costs*: topology leaf 0x1f, crystal clock and frequencies (the guest takes its clock rates from the
//!   hypervisor leaves), extended APIC space, TCE, FFXSR, WBNOINVD.
//!
//! From paravirtual guests, whose kernel runs in ring 3, more is hidden: the constants `NOT_PARAVIRTUAL` say what and why.

use bitflags::bitflags;

/// The bits of leaf 1's EDX that AMD repeats in leaf 0x8000_0001.
pub(super) const REPEATED_1_EDX: u32 = 0x0183_f3ff;

bitflags! {
    /// Leaf 1, ECX.
    #[derive(Clone, Copy)]
    pub(super) struct Leaf1Ecx: u32 {
        const SSE3 = 1 << 0;
        const PCLMULQDQ = 1 << 1;
        const SSSE3 = 1 << 9;
        const FMA = 1 << 12;
        const CX16 = 1 << 13;
        const PCID = 1 << 17;
        const SSE4_1 = 1 << 19;
        const SSE4_2 = 1 << 20;
        const X2APIC = 1 << 21;
        const MOVBE = 1 << 22;
        const POPCNT = 1 << 23;
        const TSC_DEADLINE = 1 << 24;
        const AES = 1 << 25;
        const XSAVE = 1 << 26;
        /// Copy of CR4.OSXSAVE, set at each lookup.
        const OSXSAVE = 1 << 27;
        const AVX = 1 << 28;
        const F16C = 1 << 29;
        const RDRAND = 1 << 30;
        const HYPERVISOR = 1 << 31;

        /// Useless without AVX state.
        const NEEDS_AVX = Self::FMA.bits() | Self::AVX.bits() | Self::F16C.bits();
        /// Emulated, so there whatever the host has.
        const ALWAYS = Self::X2APIC.bits() | Self::TSC_DEADLINE.bits() | Self::HYPERVISOR.bits();
        /// - PCID: TLB tags are the monitor's.
        /// - X2APIC, `TSC_DEADLINE`: there are events in the place of a local APIC, and a timer by call.
        const NOT_PARAVIRTUAL = Self::PCID.bits() | Self::X2APIC.bits() | Self::TSC_DEADLINE.bits();
    }

    /// Leaf 1, EDX. AMD repeats some of it in leaf 0x8000_0001.
    #[derive(Clone, Copy)]
    pub(super) struct Leaf1Edx: u32 {
        const FPU = 1 << 0;
        const VME = 1 << 1;
        const DE = 1 << 2;
        const PSE = 1 << 3;
        const TSC = 1 << 4;
        const MSR = 1 << 5;
        const PAE = 1 << 6;
        const MCE = 1 << 7;
        const CX8 = 1 << 8;
        /// Cleared at lookup while `IA32_APIC_BASE` says off.
        const APIC = 1 << 9;
        const SEP = 1 << 11;
        const PGE = 1 << 13;
        const MCA = 1 << 14;
        const CMOV = 1 << 15;
        const PAT = 1 << 16;
        const PSE36 = 1 << 17;
        const CLFSH = 1 << 19;
        const MMX = 1 << 23;
        const FXSR = 1 << 24;
        const SSE = 1 << 25;
        const SSE2 = 1 << 26;
        const SS = 1 << 27;
        /// More than one vCPU; set by the topology.
        const HTT = 1 << 28;

        /// - VME: there is no virtual-8086 mode.
        /// - DE: I/O breakpoints would be on the host's ports.
        /// - PSE, PSE36: the monitor's tables have pages of 4 KiB only.
        /// - MCE, MCA: machine checks are the host's.
        /// - SEP: SYSENTER is not offered, and system calls of 32 bits have INT 0x80.
        /// - PGE: global pages would outlive the change from user to kernel tables.
        const NOT_PARAVIRTUAL = Self::VME.bits() | Self::DE.bits() | Self::PSE.bits() | Self::PSE36.bits() | Self::MCE.bits()
            | Self::MCA.bits() | Self::SEP.bits() | Self::PGE.bits();
    }

    /// Leaf 7, EBX.
    #[derive(Clone, Copy)]
    pub(super) struct Leaf7Ebx: u32 {
        const FSGSBASE = 1 << 0;
        const BMI1 = 1 << 3;
        const AVX2 = 1 << 5;
        const FDP_EXCPTN_ONLY = 1 << 6;
        const SMEP = 1 << 7;
        const BMI2 = 1 << 8;
        const ERMS = 1 << 9;
        const INVPCID = 1 << 10;
        const ZERO_FCS_FDS = 1 << 13;
        const AVX512F = 1 << 16;
        const AVX512DQ = 1 << 17;
        const RDSEED = 1 << 18;
        const ADX = 1 << 19;
        const SMAP = 1 << 20;
        const AVX512_IFMA = 1 << 21;
        const CLFLUSHOPT = 1 << 23;
        const CLWB = 1 << 24;
        const AVX512PF = 1 << 26;
        const AVX512ER = 1 << 27;
        const AVX512CD = 1 << 28;
        const SHA = 1 << 29;
        const AVX512BW = 1 << 30;
        const AVX512VL = 1 << 31;

        /// Useless without AVX state.
        const NEEDS_AVX = Self::AVX2.bits();
        /// Useless without AVX-512 state.
        const NEEDS_AVX512 = Self::AVX512F.bits() | Self::AVX512DQ.bits() | Self::AVX512_IFMA.bits()
            | Self::AVX512PF.bits() | Self::AVX512ER.bits() | Self::AVX512CD.bits() | Self::AVX512BW.bits()
            | Self::AVX512VL.bits();
        /// - FSGSBASE: the monitor would not hear of a new base of GS, and Linux would look for it at each task switch.
        /// - SMEP, SMAP: kernel and user run in the same ring.
        /// - INVPCID: as PCID, which is hidden.
        const NOT_PARAVIRTUAL = Self::FSGSBASE.bits() | Self::SMEP.bits() | Self::SMAP.bits() | Self::INVPCID.bits();
    }

    /// Leaf 7, ECX.
    #[derive(Clone, Copy)]
    pub(super) struct Leaf7Ecx: u32 {
        const PREFETCHWT1 = 1 << 0;
        const AVX512_VBMI = 1 << 1;
        const UMIP = 1 << 2;
        const PKU = 1 << 3;
        /// Copy of CR4.PKE, set at each lookup.
        const OSPKE = 1 << 4;
        const AVX512_VBMI2 = 1 << 6;
        const GFNI = 1 << 8;
        const VAES = 1 << 9;
        const VPCLMULQDQ = 1 << 10;
        const AVX512_VNNI = 1 << 11;
        const AVX512_BITALG = 1 << 12;
        const AVX512_VPOPCNTDQ = 1 << 14;
        const RDPID = 1 << 22;
        const CLDEMOTE = 1 << 25;
        const MOVDIRI = 1 << 27;
        const MOVDIR64B = 1 << 28;

        /// Useless without AVX state.
        const NEEDS_AVX = Self::VAES.bits() | Self::VPCLMULQDQ.bits();
        /// Useless without AVX-512 state.
        const NEEDS_AVX512 = Self::AVX512_VBMI.bits() | Self::AVX512_VBMI2.bits() | Self::AVX512_VNNI.bits()
            | Self::AVX512_BITALG.bits() | Self::AVX512_VPOPCNTDQ.bits();
        /// - UMIP: it would fault the kernel's own instructions as well.
        /// - PKU: keys would hold for the kernel as for its programs.
        const NOT_PARAVIRTUAL = Self::UMIP.bits() | Self::PKU.bits();
    }

    /// Leaf 7, EDX.
    #[derive(Clone, Copy)]
    pub(super) struct Leaf7Edx: u32 {
        const AVX512_4VNNIW = 1 << 2;
        const AVX512_4FMAPS = 1 << 3;
        const FSRM = 1 << 4;
        const AVX512_VP2INTERSECT = 1 << 8;
        const MD_CLEAR = 1 << 10;
        const SERIALIZE = 1 << 14;
        const AVX512_FP16 = 1 << 23;

        /// Useless without AVX-512 state.
        const NEEDS_AVX512 = Self::AVX512_4VNNIW.bits() | Self::AVX512_4FMAPS.bits()
            | Self::AVX512_VP2INTERSECT.bits() | Self::AVX512_FP16.bits();
    }

    /// Leaf 7, sub-leaf 1, EAX.
    #[derive(Clone, Copy)]
    pub(super) struct Leaf7Sub1Eax: u32 {
        const AVX_VNNI = 1 << 4;
        const AVX512_BF16 = 1 << 5;
        const FZRM = 1 << 10;
        const FSRS = 1 << 11;
        const FSRC = 1 << 12;
        const AVX_IFMA = 1 << 23;

        /// Useless without AVX state.
        const NEEDS_AVX = Self::AVX_VNNI.bits() | Self::AVX_IFMA.bits();
        /// Useless without AVX-512 state.
        const NEEDS_AVX512 = Self::AVX512_BF16.bits();
    }

    /// Leaf 7, sub-leaf 1, EDX.
    #[derive(Clone, Copy)]
    pub(super) struct Leaf7Sub1Edx: u32 {
        const AVX_VNNI_INT8 = 1 << 4;
        const AVX_NE_CONVERT = 1 << 5;
        const PREFETCHITI = 1 << 14;

        /// Useless without AVX state.
        const NEEDS_AVX = Self::AVX_VNNI_INT8.bits() | Self::AVX_NE_CONVERT.bits();
    }

    /// Leaf 7, sub-leaf 2, EDX.
    #[derive(Clone, Copy)]
    pub(super) struct Leaf7Sub2Edx: u32 {
        const MCDT_NO = 1 << 5;
    }

    /// Leaf 0xd, sub-leaf 1, EAX.
    #[derive(Clone, Copy)]
    pub(super) struct XsaveFeatures: u32 {
        const XSAVEOPT = 1 << 0;
        const XSAVEC = 1 << 1;
        const XGETBV1 = 1 << 2;
    }

    /// Leaf 0x8000_0001, ECX.
    #[derive(Clone, Copy)]
    pub(super) struct Leaf80000001Ecx: u32 {
        const LAHF_SAHF = 1 << 0;
        /// More than one vCPU; set by the topology.
        const CMP_LEGACY = 1 << 1;
        const ALT_MOV_CR8 = 1 << 4;
        const ABM = 1 << 5;
        const SSE4A = 1 << 6;
        const MISALIGN_SSE = 1 << 7;
        const PREFETCHW = 1 << 8;
        const XOP = 1 << 11;
        const FMA4 = 1 << 16;
        const TBM = 1 << 21;
        const TOPOLOGY = 1 << 22;

        /// Useless without AVX state.
        const NEEDS_AVX = Self::XOP.bits() | Self::FMA4.bits();
        /// - `ALT_MOV_CR8`: there is no CR8.
        const NOT_PARAVIRTUAL = Self::ALT_MOV_CR8.bits();
    }

    /// Leaf 0x8000_0001, EDX, without what it repeats of leaf 1.
    #[derive(Clone, Copy)]
    pub(super) struct Leaf80000001Edx: u32 {
        const SYSCALL = 1 << 11;
        const NX = 1 << 20;
        const MMXEXT = 1 << 22;
        const PAGE_1G = 1 << 26;
        const RDTSCP = 1 << 27;
        const LM = 1 << 29;
        const AMD_3DNOWEXT = 1 << 30;
        const AMD_3DNOW = 1 << 31;

        /// - `PAGE_1G`: as PSE.
        const NOT_PARAVIRTUAL = Self::PAGE_1G.bits();
    }

    /// Leaf 0x8000_0007, EDX.
    #[derive(Clone, Copy)]
    pub(super) struct Leaf80000007Edx: u32 {
        const INVARIANT_TSC = 1 << 8;
    }

    /// Leaf 0x8000_0008, EBX.
    #[derive(Clone, Copy)]
    pub(super) struct Leaf80000008Ebx: u32 {
        const CLZERO = 1 << 0;
        const XSAVE_ERROR_POINTERS = 1 << 2;
        /// `PRED_CMD`, write-only, which needs no switching.
        const IBPB = 1 << 12;
        const SSB_NO = 1 << 26;
        const BTC_NO = 1 << 29;
        const IBPB_RET = 1 << 30;
    }

    /// Leaf 0x8000_0021, EAX.
    #[derive(Clone, Copy)]
    pub(super) struct Leaf80000021Eax: u32 {
        const NO_NESTED_DATA_BP = 1 << 0;
        const LFENCE_SERIALIZING = 1 << 2;
        const NULL_SELECTOR_CLEARS_BASE = 1 << 6;
        const FSRS = 1 << 10;
        const FSRC = 1 << 11;
        const SRSO_NO = 1 << 29;
    }

    /// Leaf 0x4000_0002, ECX, of Xen (Xen public headers, `arch-x86/cpuid.h`).
    #[derive(Clone, Copy)]
    pub(super) struct XenFeatures: u32 {
        /// `mmu_update` can leave the accessed and dirty bits as they are.
        const MMU_PT_UPDATE_PRESERVE_AD = 1 << 0;
    }

    /// Leaf 0x4000_0003, EAX, of Xen: about the time stamp counter.
    #[derive(Clone, Copy)]
    pub(super) struct XenTsc: u32 {
        /// The host trusts its own.
        const RELIABLE = 1 << 1;
    }

    /// Leaf 0x4000_0001, EAX (Linux `Documentation/virt/kvm/x86/cpuid.rst`).
    #[derive(Clone, Copy)]
    pub(super) struct KvmFeatures: u32 {
        /// Port I/O needs no delay.
        const NOP_IO_DELAY = 1 << 1;
        /// The clock of MSRs 0x4b56_4d00 and 01.
        const CLOCKSOURCE2 = 1 << 3;
        /// That clock never goes back between vCPUs.
        const CLOCKSOURCE_STABLE = 1 << 24;
    }
}
