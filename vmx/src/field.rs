//! Fields of the VMCS, in the order of the manual (SDM vol. 3, appendix B).

/// A field of the VMCS, by its encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Field(pub(crate) u32);

/// Defines fields, each with its encoding.
macro_rules! fields {
    ($($(#[$attribute:meta])* $name:ident = $encoding:literal;)+) => {
        impl Field {
            $($(#[$attribute])* pub(crate) const $name: Self = Self($encoding);)+
        }
    };
}

// B.1.1: 16-bit control fields.
fields! {
    /// The guest's tag in the TLB.
    VPID = 0x0000;
}

// B.1.2: 16-bit guest-state fields. Those of other segments follow in steps of 2.
fields! {
    /// Selector of ES; CS, SS, DS, FS, GS, LDTR and TR follow.
    GUEST_ES_SELECTOR = 0x0800;
}

// B.1.3: 16-bit host-state fields.
fields! {
    /// ES of the host; like all its selectors with privilege level 0.
    HOST_ES_SELECTOR = 0x0c00;
    /// CS.
    HOST_CS_SELECTOR = 0x0c02;
    /// SS.
    HOST_SS_SELECTOR = 0x0c04;
    /// DS.
    HOST_DS_SELECTOR = 0x0c06;
    /// FS.
    HOST_FS_SELECTOR = 0x0c08;
    /// GS.
    HOST_GS_SELECTOR = 0x0c0a;
    /// TR, not 0.
    HOST_TR_SELECTOR = 0x0c0c;
}

// B.2.1: 64-bit control fields.
fields! {
    /// Physical address of the bitmap for ports 0 to 0x7fff.
    IO_BITMAP_A = 0x2000;
    /// Physical address of the bitmap for ports from 0x8000 on.
    IO_BITMAP_B = 0x2002;
    /// Physical address of the MSR bitmap.
    MSR_BITMAP = 0x2004;
    /// Added to the TSC.
    TSC_OFFSET = 0x2010;
    /// Physical address of the page with the virtual task priority.
    VIRTUAL_APIC = 0x2012;
    /// The EPT's root, and how it is walked.
    EPT_POINTER = 0x201a;
    /// Leaves of ENCLS that exit.
    ENCLS_EXITING = 0x202e;
}

// B.2.2: 64-bit read-only field.
fields! {
    /// Address of an EPT violation or misconfiguration.
    GUEST_PHYSICAL_ADDRESS = 0x2400;
}

// B.2.3: 64-bit guest-state fields.
fields! {
    /// No shadow VMCS: all ones.
    LINK_POINTER = 0x2800;
    /// `IA32_DEBUGCTL`.
    GUEST_DEBUGCTL = 0x2802;
    /// `IA32_PAT`.
    GUEST_PAT = 0x2804;
    /// `IA32_EFER`.
    GUEST_EFER = 0x2806;
    /// First of the four page directory pointers of PAE paging.
    GUEST_PDPTE0 = 0x280a;
    /// Second.
    GUEST_PDPTE1 = 0x280c;
    /// Third.
    GUEST_PDPTE2 = 0x280e;
    /// Fourth.
    GUEST_PDPTE3 = 0x2810;
}

// B.2.4: 64-bit host-state fields.
fields! {
    /// `IA32_PAT`.
    HOST_PAT = 0x2c00;
    /// `IA32_EFER`.
    HOST_EFER = 0x2c02;
}

// B.3.1: 32-bit control fields.
fields! {
    /// [`crate::controls::Pin`].
    PIN_CONTROLS = 0x4000;
    /// [`crate::controls::Processor`].
    PROCESSOR_CONTROLS = 0x4002;
    /// Exceptions that exit, by vector.
    EXCEPTION_BITMAP = 0x4004;
    /// Which error codes of page faults exit: together with the next none, where #PF is not in the exception bitmap.
    PAGE_FAULT_MASK = 0x4006;
    /// See before.
    PAGE_FAULT_MATCH = 0x4008;
    /// Number of values of CR3 that do not exit.
    CR3_TARGET_COUNT = 0x400a;
    /// [`crate::controls::Exit`].
    EXIT_CONTROLS = 0x400c;
    /// MSRs stored at exit: none.
    EXIT_MSR_STORE_COUNT = 0x400e;
    /// MSRs loaded at exit: none.
    EXIT_MSR_LOAD_COUNT = 0x4010;
    /// [`crate::controls::Entry`].
    ENTRY_CONTROLS = 0x4012;
    /// MSRs loaded at entry: none.
    ENTRY_MSR_LOAD_COUNT = 0x4014;
    /// The event to deliver at entry.
    ENTRY_INTERRUPTION_INFO = 0x4016;
    /// Its error code.
    ENTRY_EXCEPTION_ERROR = 0x4018;
    /// A lower task priority than this exits.
    TPR_THRESHOLD = 0x401c;
    /// [`crate::controls::Secondary`].
    SECONDARY_CONTROLS = 0x401e;
}

// B.3.2: 32-bit read-only fields.
fields! {
    /// What an instruction of VMX failed for (SDM vol. 3, 31.4).
    INSTRUCTION_ERROR = 0x4400;
    /// Why the guest exited.
    EXIT_REASON = 0x4402;
    /// The exception or NMI that exited.
    EXIT_INTERRUPTION_INFO = 0x4404;
    /// The event whose delivery the exit interrupted.
    IDT_VECTORING_INFO = 0x4408;
    /// Its error code.
    IDT_VECTORING_ERROR = 0x440a;
    /// Length of the instruction that exited.
    EXIT_INSTRUCTION_LENGTH = 0x440c;
}

// B.3.3: 32-bit guest-state fields. Those of other segments follow in steps of 2.
fields! {
    /// Limit of ES; CS, SS, DS, FS, GS, LDTR and TR follow.
    GUEST_ES_LIMIT = 0x4800;
    /// Limit of the GDT.
    GUEST_GDTR_LIMIT = 0x4810;
    /// Limit of the IDT.
    GUEST_IDTR_LIMIT = 0x4812;
    /// Access rights of ES; the others follow.
    GUEST_ES_ACCESS_RIGHTS = 0x4814;
    /// Blocking by STI, MOV SS, SMI and NMI.
    GUEST_INTERRUPTIBILITY = 0x4824;
    /// Active, or in HLT: always active here, for HLT exits.
    GUEST_ACTIVITY = 0x4826;
    /// `IA32_SYSENTER_CS`.
    GUEST_SYSENTER_CS = 0x482a;
    /// Counts down while the guest runs.
    PREEMPTION_TIMER = 0x482e;
}

// B.3.4: 32-bit host-state field.
fields! {
    /// `IA32_SYSENTER_CS`.
    HOST_SYSENTER_CS = 0x4c00;
}

// B.4.1: natural-width control fields.
fields! {
    /// Bits of CR0 that are the host's.
    CR0_MASK = 0x6000;
    /// Bits of CR4 that are the host's.
    CR4_MASK = 0x6002;
    /// What the guest reads of them.
    CR0_SHADOW = 0x6004;
    /// What the guest reads of them.
    CR4_SHADOW = 0x6006;
}

// B.4.2: natural-width read-only fields.
fields! {
    /// Details of the exit.
    EXIT_QUALIFICATION = 0x6400;
}

// B.4.3: natural-width guest-state fields. Bases of segments follow in steps of 2.
fields! {
    /// CR0.
    GUEST_CR0 = 0x6800;
    /// CR3.
    GUEST_CR3 = 0x6802;
    /// CR4.
    GUEST_CR4 = 0x6804;
    /// Base of ES; CS, SS, DS, FS, GS, LDTR and TR follow.
    GUEST_ES_BASE = 0x6806;
    /// Base of the GDT.
    GUEST_GDTR_BASE = 0x6816;
    /// Base of the IDT.
    GUEST_IDTR_BASE = 0x6818;
    /// DR7.
    GUEST_DR7 = 0x681a;
    /// RSP.
    GUEST_RSP = 0x681c;
    /// RIP.
    GUEST_RIP = 0x681e;
    /// RFLAGS.
    GUEST_RFLAGS = 0x6820;
    /// Debug exceptions that wait.
    GUEST_PENDING_DEBUG = 0x6822;
    /// `IA32_SYSENTER_ESP`.
    GUEST_SYSENTER_ESP = 0x6824;
    /// `IA32_SYSENTER_EIP`.
    GUEST_SYSENTER_EIP = 0x6826;
}

// B.4.4: natural-width host-state fields.
fields! {
    /// CR0.
    HOST_CR0 = 0x6c00;
    /// CR3.
    HOST_CR3 = 0x6c02;
    /// CR4.
    HOST_CR4 = 0x6c04;
    /// Base of FS.
    HOST_FS_BASE = 0x6c06;
    /// Base of GS.
    HOST_GS_BASE = 0x6c08;
    /// Base of the task's segment.
    HOST_TR_BASE = 0x6c0a;
    /// Base of the GDT; its limit becomes 0xffff.
    HOST_GDTR_BASE = 0x6c0c;
    /// Base of the IDT; its limit becomes 0xffff.
    HOST_IDTR_BASE = 0x6c0e;
    /// `IA32_SYSENTER_ESP`.
    HOST_SYSENTER_ESP = 0x6c10;
    /// `IA32_SYSENTER_EIP`.
    HOST_SYSENTER_EIP = 0x6c12;
    /// RSP.
    HOST_RSP = 0x6c14;
    /// RIP.
    HOST_RIP = 0x6c16;
}

impl Field {
    /// The field of segment `number` (0 ES, 1 CS, 2 SS, 3 DS, 4 FS, 5 GS, 6 LDTR, 7 TR), of which this is that of ES.
    pub(crate) const fn of_segment(self, number: u32) -> Self {
        Self(self.0 + 2 * number)
    }
}
