//! Which check of VT-x a guest's state failed, in numbers for the interface and in words for the user.

use core::fmt;

/// Defines the checks: number, name, words.
macro_rules! checks {
    ($($name:ident = $number:literal, $words:literal;)+) => {
        /// A check that VT-x makes at the entry to a guest (SDM vol. 3, 27.1 to 27.3).
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum EntryCheck {
            $(#[doc = concat!("Violated: ", $words, ".")] $name = $number,)+
        }

        impl EntryCheck {
            /// All checks.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The check with this number.
            #[must_use]
            pub const fn from_u32(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)+
                    _ => None,
                }
            }

            const fn words(self) -> &'static str {
                match self {
                    $(Self::$name => $words,)+
                }
            }
        }
    };
}

checks! {
    // 27.1 and 31.4: the instruction itself.
    NoVmcs = 1, "there must be a current VMCS";
    Controls = 2, "the control fields must be valid (27.2.1)";
    HostState = 3, "the host-state fields must be valid (27.2.2 to 27.2.4)";
    Instruction = 4, "the VMCS must be in the state that the instruction is for (31.4)";
    // 27.3.1.1.
    Cr0Fixed = 10, "CR0 must have the bits that VMX operation fixes (27.3.1.1)";
    PagingWithoutProtection = 11, "CR0.PG must not be set without CR0.PE (27.3.1.1)";
    Cr4Fixed = 12, "CR4 must have the bits that VMX operation fixes (27.3.1.1)";
    LongModeWithoutPaging = 13, "long mode needs CR0.PG and CR4.PAE (27.3.1.1)";
    PcidWithoutLongMode = 14, "CR4.PCIDE needs long mode (27.3.1.1)";
    Cr3 = 15, "CR3 must not be wider than physical addresses (27.3.1.1)";
    Dr7 = 16, "DR7 must have 32 bits (27.3.1.1)";
    Sysenter = 17, "the SYSENTER addresses must be canonical (27.3.1.1)";
    Pat = 18, "PAT must have types that there are (27.3.1.1)";
    EferReserved = 19, "EFER must not have reserved bits (27.3.1.1)";
    EferLongMode = 20, "EFER.LMA must tell the entry's mode, and EFER.LME with paging the same (27.3.1.1)";
    // 27.3.1.2.
    TrSelector = 30, "TR's selector must be of the GDT (27.3.1.2)";
    LdtrSelector = 31, "LDTR's selector must be of the GDT (27.3.1.2)";
    Virtual8086 = 32, "segments of virtual 8086 mode must have its form (27.3.1.2)";
    SegmentBase = 33, "bases of segments must be canonical, those of CS, SS, DS and ES below 4 GiB (27.3.1.2)";
    CsType = 34, "CS must be accessed code, or data in real mode (27.3.1.2)";
    CsPrivilege = 35, "CS's privilege level must go with SS's (27.3.1.2)";
    CsSize = 36, "64-bit code must have CS.D clear (27.3.1.2)";
    SsType = 37, "SS must be accessed and writable data (27.3.1.2)";
    SsPrivilege = 38, "SS's privilege level must be that of the mode (27.3.1.2)";
    DataType = 39, "DS, ES, FS and GS must be accessed, and readable (27.3.1.2)";
    SegmentForm = 41, "usable segments must be present, without reserved bits, and of the kind of their register (27.3.1.2)";
    SegmentGranularity = 42, "limits of segments must go with their granularity (27.3.1.2)";
    TrType = 43, "TR must be a busy task's (27.3.1.2)";
    LdtrType = 44, "LDTR must be an LDT's (27.3.1.2)";
    // 27.3.1.3.
    Tables = 50, "bases of GDT and IDT must be canonical, their limits of 16 bits (27.3.1.3)";
    // 27.3.1.4.
    Rip = 60, "RIP must be an address of the mode (27.3.1.4)";
    RflagsReserved = 61, "RFLAGS must not have reserved bits (27.3.1.4)";
    RflagsVirtual8086 = 62, "RFLAGS.VM needs protected mode, and not long mode (27.3.1.4)";
    RflagsInterrupt = 63, "an interrupt needs RFLAGS.IF (27.3.1.4)";
    // 27.3.1.5.
    Activity = 70, "the activity state must be one that there is (27.3.1.5)";
    Blocking = 71, "blocking by STI, MOV SS and NMI must go together, and with RFLAGS.IF (27.3.1.5)";
    BlockedEvent = 72, "an event must not be blocked (27.3.1.5)";
    PendingDebug = 73, "pending debug exceptions must go with RFLAGS.TF (27.3.1.5)";
    Link = 74, "the VMCS link pointer must be all ones (27.3.1.5)";
    // 27.3.1.6.
    PageDirectoryPointers = 80, "page directory pointers of PAE paging must not have reserved bits (27.3.1.6)";
    // None of them.
    Unknown = 99, "a check that covisor does not know of";
}

impl fmt::Display for EntryCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_numbers_come_back() {
        for check in EntryCheck::ALL {
            assert_eq!(EntryCheck::from_u32(*check as u32), Some(*check));
        }
        assert_eq!(EntryCheck::from_u32(0), None);
    }
}
