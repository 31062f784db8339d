//! Why an entry was refused: the checks of SDM vol. 3, 27.3.1, made again in software after the CPU has said only that one
//! failed. Each function is a section of the manual.

use covisor_abi::EntryCheck;
use covisor_core::registers::Cr0;
use covisor_core::registers::Cr4;
use covisor_core::registers::Efer;
use covisor_core::registers::RFlags;
use covisor_core::registers::SegmentName;
use covisor_core::registers::is_canonical;

use crate::VmxVcpu;
use crate::controls::Entry;
use crate::field::Field;
use crate::instructions::vmread;

/// A check's outcome: the one that failed.
type Checked = Result<(), EntryCheck>;

/// A segment as the VMCS has it.
#[derive(Clone, Copy, Debug, Default)]
struct Segment {
    selector: u64,
    base: u64,
    limit: u64,
    rights: u64,
}

/// Bits of access rights (25.4.1).
mod rights {
    pub(super) const TYPE: u64 = 0xf;
    pub(super) const CODE_OR_DATA: u64 = 1 << 4;
    pub(super) const PRESENT: u64 = 1 << 7;
    pub(super) const LONG: u64 = 1 << 13;
    pub(super) const BIG: u64 = 1 << 14;
    pub(super) const GRANULAR: u64 = 1 << 15;
    pub(super) const UNUSABLE: u64 = 1 << 16;
    pub(super) const RESERVED: u64 = 0xf00 | !0x1_ffff;
}

impl Segment {
    const fn usable(&self) -> bool {
        self.rights & rights::UNUSABLE == 0
    }

    const fn kind(&self) -> u64 {
        self.rights & rights::TYPE
    }

    const fn privilege(&self) -> u64 {
        self.rights >> 5 & 3
    }
}

/// What the checks look at.
#[derive(Clone, Debug, Default)]
struct State {
    cr0: u64,
    cr3: u64,
    cr4: u64,
    cr0_ones: u64,
    cr4_ones: u64,
    cr4_possible: u64,
    dr7: u64,
    sysenter_esp: u64,
    sysenter_eip: u64,
    pat: u64,
    efer: u64,
    entry: u64,
    segments: [Segment; 8],
    gdtr: Segment,
    idtr: Segment,
    rip: u64,
    rflags: u64,
    activity: u64,
    interruptibility: u64,
    pending_debug: u64,
    link: u64,
    interruption: u64,
    pdptes: [u64; 4],
    physical_bits: u32,
}

fn require(holds: bool, check: EntryCheck) -> Checked {
    if holds { Ok(()) } else { Err(check) }
}

const fn has_cr0(value: u64, bit: Cr0) -> bool {
    value & bit.bits() as u64 != 0
}

const fn has_cr4(value: u64, bit: Cr4) -> bool {
    value & bit.bits() as u64 != 0
}

impl State {
    fn segment(&self, name: SegmentName) -> &Segment {
        &self.segments[name as usize]
    }

    fn long_mode(&self) -> bool {
        self.entry & u64::from(Entry::GUEST_LONG_MODE.bits()) != 0
    }

    fn virtual_8086(&self) -> bool {
        self.rflags & RFlags::FLAGS_VM.bits() != 0
    }

    /// Type of the event that is injected, bits 8 to 10; `None` without one.
    fn injected(&self) -> Option<u64> {
        (self.interruption & 1 << 31 != 0).then_some(self.interruption >> 8 & 7)
    }

    fn wide(&self, address: u64) -> bool {
        address >> self.physical_bits != 0
    }

    /// 27.3.1.1.
    fn control_registers(&self) -> Checked {
        use EntryCheck as Check;
        require(self.cr0 & self.cr0_ones == self.cr0_ones && self.cr0 >> 32 == 0, Check::Cr0Fixed)?;
        let paging = has_cr0(self.cr0, Cr0::CR0_ENABLE_PAGING);
        require(!paging || has_cr0(self.cr0, Cr0::CR0_PROTECTED_MODE), Check::PagingWithoutProtection)?;
        let fixed = self.cr4 & self.cr4_ones == self.cr4_ones && self.cr4 & !self.cr4_possible == 0;
        require(fixed, Check::Cr4Fixed)?;
        if self.long_mode() {
            require(paging && has_cr4(self.cr4, Cr4::CR4_ENABLE_PAE), Check::LongModeWithoutPaging)?;
        } else {
            require(!has_cr4(self.cr4, Cr4::CR4_ENABLE_PCID), Check::PcidWithoutLongMode)?;
        }
        require(!self.wide(self.cr3), Check::Cr3)?;
        require(self.dr7 >> 32 == 0, Check::Dr7)?;
        require(is_canonical(self.sysenter_esp) && is_canonical(self.sysenter_eip), Check::Sysenter)?;
        require(self.pat.to_le_bytes().iter().all(|byte| matches!(byte, 0 | 1 | 4..=7)), Check::Pat)?;
        let known = Efer::SCE | Efer::LME | Efer::LMA | Efer::NXE;
        require(self.efer & !known.bits() == 0, Check::EferReserved)?;
        let active = self.efer & Efer::LMA.bits() != 0;
        let enabled = self.efer & Efer::LME.bits() != 0;
        require(active == self.long_mode() && (!paging || active == enabled), Check::EferLongMode)
    }

    /// 27.3.1.2.
    fn segment_registers(&self) -> Checked {
        use EntryCheck as Check;
        use SegmentName as Name;
        /// The table indicator of a selector: the LDT.
        const TABLE: u64 = 1 << 2;
        let (ldtr, tr) = (self.segment(Name::Ldtr), self.segment(Name::Tr));
        require(tr.selector & TABLE == 0, Check::TrSelector)?;
        require(!ldtr.usable() || ldtr.selector & TABLE == 0, Check::LdtrSelector)?;
        if self.virtual_8086() {
            for name in Name::USER {
                let segment = self.segment(name);
                let good = segment.base == segment.selector << 4 && segment.limit == 0xffff && segment.rights == 0xf3;
                require(good, Check::Virtual8086)?;
            }
        }
        self.bases()?;
        if !self.virtual_8086() {
            self.code_segment()?;
            self.stack_segment()?;
            for name in [Name::Ds, Name::Es, Name::Fs, Name::Gs] {
                data_segment(self.segment(name))?;
            }
        }
        let busy = [11, 3].contains(&tr.kind()) && (tr.kind() == 11 || !self.long_mode());
        require(tr.usable() && busy, Check::TrType)?;
        system_segment(tr)?;
        if ldtr.usable() {
            require(ldtr.kind() == 2, Check::LdtrType)?;
            system_segment(ldtr)?;
        }
        Ok(())
    }

    fn bases(&self) -> Checked {
        use SegmentName as Name;
        let canonical = [Name::Tr, Name::Fs, Name::Gs].into_iter().all(|name| is_canonical(self.segment(name).base));
        let ldtr = self.segment(Name::Ldtr);
        let low = |name| !self.segment(name).usable() || self.segment(name).base >> 32 == 0;
        let code = self.segment(Name::Cs).base >> 32 == 0;
        let good = canonical && (!ldtr.usable() || is_canonical(ldtr.base)) && code;
        require(good && [Name::Ss, Name::Ds, Name::Es].into_iter().all(low), EntryCheck::SegmentBase)
    }

    fn code_segment(&self) -> Checked {
        use EntryCheck as Check;
        let (code, stack) = (self.segment(SegmentName::Cs), self.segment(SegmentName::Ss));
        // Unrestricted guests may have data of type 3.
        require(matches!(code.kind(), 3 | 9 | 11 | 13 | 15), Check::CsType)?;
        let level = match code.kind() {
            3 => code.privilege() == 0,
            9 | 11 => code.privilege() == stack.privilege(),
            _ => code.privilege() <= stack.privilege(),
        };
        require(level, Check::CsPrivilege)?;
        form(code)?;
        let both = rights::LONG | rights::BIG;
        require(!self.long_mode() || code.rights & both != both, Check::CsSize)
    }

    fn stack_segment(&self) -> Checked {
        use EntryCheck as Check;
        let (code, stack) = (self.segment(SegmentName::Cs), self.segment(SegmentName::Ss));
        let real = code.kind() == 3 || !has_cr0(self.cr0, Cr0::CR0_PROTECTED_MODE);
        require(!real || stack.privilege() == 0, Check::SsPrivilege)?;
        if !stack.usable() {
            return Ok(());
        }
        require(matches!(stack.kind(), 3 | 7), Check::SsType)?;
        form(stack)
    }

    /// 27.3.1.3.
    fn tables(&self) -> Checked {
        let good = |table: &Segment| is_canonical(table.base) && table.limit >> 16 == 0;
        require(good(&self.gdtr) && good(&self.idtr), EntryCheck::Tables)
    }

    /// 27.3.1.4.
    fn rip_and_rflags(&self) -> Checked {
        use EntryCheck as Check;
        /// Bits 63 to 22, 15, 5 and 3 are 0.
        const RESERVED: u64 = !0x3f_ffff | 1 << 15 | 1 << 5 | 1 << 3;
        let code_64 = self.long_mode() && self.segment(SegmentName::Cs).rights & rights::LONG != 0;
        require(if code_64 { is_canonical(self.rip) } else { self.rip >> 32 == 0 }, Check::Rip)?;
        let fixed = self.rflags & RFlags::FLAGS_A1.bits() != 0;
        require(self.rflags & RESERVED == 0 && fixed, Check::RflagsReserved)?;
        let protected = has_cr0(self.cr0, Cr0::CR0_PROTECTED_MODE);
        require(!self.virtual_8086() || protected && !self.long_mode(), Check::RflagsVirtual8086)?;
        let open = self.rflags & RFlags::FLAGS_IF.bits() != 0;
        require(self.injected() != Some(0) || open, Check::RflagsInterrupt)
    }

    /// 27.3.1.5.
    fn other_state(&self) -> Checked {
        use EntryCheck as Check;
        const STI: u64 = 1 << 0;
        const MOV_SS: u64 = 1 << 1;
        const NMI: u64 = 1 << 3;
        /// Bits 31 to 5.
        const RESERVED: u64 = !0x1f;
        /// Bit BS of pending debug exceptions.
        const SINGLE_STEP: u64 = 1 << 14;
        require(self.activity <= 3, Check::Activity)?;
        let blocking = self.interruptibility;
        let open = self.rflags & RFlags::FLAGS_IF.bits() != 0;
        let both = blocking & (STI | MOV_SS) == STI | MOV_SS;
        require(blocking & RESERVED == 0 && !both && (blocking & STI == 0 || open), Check::Blocking)?;
        let blocked = match self.injected() {
            Some(0) => blocking & (STI | MOV_SS) != 0,
            Some(2) => blocking & (MOV_SS | NMI) != 0,
            _ => false,
        };
        require(!blocked, Check::BlockedEvent)?;
        let stepping = self.rflags & RFlags::FLAGS_TF.bits() != 0;
        if blocking & (STI | MOV_SS) != 0 || self.activity == 1 {
            require((self.pending_debug & SINGLE_STEP != 0) == stepping, Check::PendingDebug)?;
        }
        require(self.link == u64::MAX, Check::Link)
    }

    /// 27.3.1.6.
    fn page_directory_pointers(&self) -> Checked {
        /// Bits 1, 2 and 5 to 8 of one that is present.
        const RESERVED: u64 = 0x1e6;
        let pae = has_cr0(self.cr0, Cr0::CR0_ENABLE_PAGING) && has_cr4(self.cr4, Cr4::CR4_ENABLE_PAE);
        let bad = |entry: u64| entry & 1 != 0 && (entry & RESERVED != 0 || self.wide(entry));
        let wrong = pae && !self.long_mode() && self.pdptes.into_iter().any(bad);
        require(!wrong, EntryCheck::PageDirectoryPointers)
    }

    fn violated(&self) -> EntryCheck {
        let checked = self
            .control_registers()
            .and_then(|()| self.segment_registers())
            .and_then(|()| self.tables())
            .and_then(|()| self.rip_and_rflags())
            .and_then(|()| self.other_state())
            .and_then(|()| self.page_directory_pointers());
        checked.err().unwrap_or(EntryCheck::Unknown)
    }
}

/// A segment that is usable: present, no reserved bit, granularity as the limit demands.
fn form(segment: &Segment) -> Checked {
    let good = segment.rights & rights::RESERVED == 0
        && segment.rights & rights::PRESENT != 0
        && segment.rights & rights::CODE_OR_DATA != 0;
    require(good, EntryCheck::SegmentForm)?;
    granularity(segment)
}

fn system_segment(segment: &Segment) -> Checked {
    let good = segment.rights & (rights::RESERVED | rights::CODE_OR_DATA) == 0 && segment.rights & rights::PRESENT != 0;
    require(good, EntryCheck::SegmentForm)?;
    granularity(segment)
}

fn granularity(segment: &Segment) -> Checked {
    let good =
        if segment.rights & rights::GRANULAR != 0 { segment.limit & 0xfff == 0xfff } else { segment.limit >> 20 == 0 };
    require(good, EntryCheck::SegmentGranularity)
}

fn data_segment(segment: &Segment) -> Checked {
    if !segment.usable() {
        return Ok(());
    }
    let kind = segment.kind();
    let readable = kind & 8 == 0 || kind & 2 != 0;
    require(kind & 1 != 0 && readable, EntryCheck::DataType)?;
    // Of privilege levels nothing is demanded of unrestricted guests.
    form(segment)
}

/// The first check that the vCPU's state does not pass, after an entry that failed for it.
#[cold]
pub(crate) fn violated(vcpu: &VmxVcpu) -> EntryCheck {
    // SAFETY: the engine asks while the VMCS is current.
    let read = |field| unsafe { vmread(field) };
    let segment = |number| Segment {
        selector: read(Field::GUEST_ES_SELECTOR.of_segment(number)),
        base: read(Field::GUEST_ES_BASE.of_segment(number)),
        limit: read(Field::GUEST_ES_LIMIT.of_segment(number)),
        rights: read(Field::GUEST_ES_ACCESS_RIGHTS.of_segment(number)),
    };
    let table = |base, limit| Segment { base: read(base), limit: read(limit), ..Segment::default() };
    let state = State {
        cr0: read(Field::GUEST_CR0),
        cr3: read(Field::GUEST_CR3),
        cr4: read(Field::GUEST_CR4),
        cr0_ones: vcpu.cr0_ones,
        cr4_ones: vcpu.cr4_ones,
        cr4_possible: vcpu.cr4_possible,
        dr7: read(Field::GUEST_DR7),
        sysenter_esp: read(Field::GUEST_SYSENTER_ESP),
        sysenter_eip: read(Field::GUEST_SYSENTER_EIP),
        pat: read(Field::GUEST_PAT),
        efer: read(Field::GUEST_EFER),
        entry: read(Field::ENTRY_CONTROLS),
        segments: [0, 1, 2, 3, 4, 5, 6, 7].map(segment),
        gdtr: table(Field::GUEST_GDTR_BASE, Field::GUEST_GDTR_LIMIT),
        idtr: table(Field::GUEST_IDTR_BASE, Field::GUEST_IDTR_LIMIT),
        rip: read(Field::GUEST_RIP),
        rflags: read(Field::GUEST_RFLAGS),
        activity: read(Field::GUEST_ACTIVITY),
        interruptibility: read(Field::GUEST_INTERRUPTIBILITY),
        pending_debug: read(Field::GUEST_PENDING_DEBUG),
        link: read(Field::LINK_POINTER),
        interruption: read(Field::ENTRY_INTERRUPTION_INFO),
        pdptes: [Field::GUEST_PDPTE0, Field::GUEST_PDPTE1, Field::GUEST_PDPTE2, Field::GUEST_PDPTE3].map(read),
        physical_bits: core::arch::x86_64::__cpuid(0x8000_0008).eax & 0xff,
    };
    state.violated()
}

/// What a VM-instruction error number means (31.4); 0 stands for a failure without a current VMCS.
pub(crate) const fn of_instruction(number: u64) -> EntryCheck {
    match number {
        0 => EntryCheck::NoVmcs,
        7 => EntryCheck::Controls,
        8 => EntryCheck::HostState,
        _ => EntryCheck::Instruction,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A 64-bit guest as Linux is.
    fn linux() -> State {
        let flat = |rights| Segment { selector: 0x18, base: 0, limit: 0xffff_ffff, rights };
        let unusable = Segment { rights: rights::UNUSABLE, ..Segment::default() };
        let system = |rights| Segment { selector: 0x40, base: 0xffff_fe00_0000_3000, limit: 0x206f, rights };
        State {
            cr0: 0x8005_0033,
            cr3: 0x1000,
            cr4: 0x0000_20a0,
            cr0_ones: 0x20,
            cr4_ones: 0x2000,
            cr4_possible: 0x0037_27ff,
            dr7: 0x400,
            pat: 0x0007_0406_0007_0406,
            efer: 0xd01,
            entry: u64::from(Entry::GUEST_LONG_MODE.bits()),
            segments: [unusable, flat(0xa09b), flat(0xc093), unusable, unusable, unusable, unusable, system(0x8b)],
            rip: 0xffff_ffff_8100_0000,
            rflags: 0x202,
            link: u64::MAX,
            physical_bits: 40,
            ..State::default()
        }
    }

    /// Linux with one thing changed.
    fn with(change: impl FnOnce(&mut State)) -> EntryCheck {
        let mut state = linux();
        change(&mut state);
        state.violated()
    }

    #[test]
    fn test_a_state_that_is_in_order_violates_nothing() {
        assert_eq!(linux().violated(), EntryCheck::Unknown);
    }

    #[test]
    fn test_attack_every_wrong_state_is_told_by_its_check() {
        use EntryCheck as Check;
        use SegmentName as Name;
        assert_eq!(with(|state| state.cr0 &= !0x20), Check::Cr0Fixed);
        assert_eq!(with(|state| state.cr0 &= !1), Check::PagingWithoutProtection);
        assert_eq!(with(|state| state.cr4 &= !0x2000), Check::Cr4Fixed);
        assert_eq!(with(|state| state.cr4 &= !0x20), Check::LongModeWithoutPaging);
        assert_eq!(with(|state| state.cr3 = 1 << 50), Check::Cr3);
        assert_eq!(with(|state| state.dr7 = 1 << 32), Check::Dr7);
        assert_eq!(with(|state| state.sysenter_eip = 1 << 60), Check::Sysenter);
        assert_eq!(with(|state| state.pat = 2), Check::Pat);
        assert_eq!(with(|state| state.efer |= 1 << 12), Check::EferReserved);
        assert_eq!(with(|state| state.efer &= !0x400), Check::EferLongMode);
        assert_eq!(with(|state| state.segments[Name::Tr as usize].selector = 4), Check::TrSelector);
        assert_eq!(with(|state| state.segments[Name::Fs as usize].base = 1 << 60), Check::SegmentBase);
        assert_eq!(with(|state| state.segments[Name::Cs as usize].base = 1 << 32), Check::SegmentBase);
        assert_eq!(with(|state| state.segments[Name::Cs as usize].rights = 0xa09a), Check::CsType);
        assert_eq!(with(|state| state.segments[Name::Cs as usize].rights = 0xa0fb), Check::CsPrivilege);
        assert_eq!(with(|state| state.segments[Name::Cs as usize].rights |= rights::BIG), Check::CsSize);
        assert_eq!(with(|state| state.segments[Name::Ss as usize].rights = 0xc091), Check::SsType);
        assert_eq!(with(|state| state.segments[Name::Ds as usize].rights = 0xc098), Check::DataType);
        assert_eq!(with(|state| state.segments[Name::Es as usize].rights = 0xc013), Check::SegmentForm);
        assert_eq!(with(|state| state.segments[Name::Ss as usize].limit = 0x1234_5678), Check::SegmentGranularity);
        assert_eq!(with(|state| state.segments[Name::Tr as usize].rights = 0x89), Check::TrType);
        assert_eq!(with(|state| state.gdtr.base = 1 << 60), Check::Tables);
        assert_eq!(with(|state| state.rip = 1 << 60), Check::Rip);
        assert_eq!(with(|state| state.rflags |= 1 << 15), Check::RflagsReserved);
        assert_eq!(with(|state| (state.rflags, state.interruption) = (2, 0x8000_0030)), Check::RflagsInterrupt);
        assert_eq!(with(|state| state.interruptibility = 3), Check::Blocking);
        assert_eq!(with(|state| (state.interruptibility, state.interruption) = (8, 0x8000_0202)), Check::BlockedEvent);
        assert_eq!(with(|state| (state.interruptibility, state.rflags) = (2, 0x102)), Check::PendingDebug);
        assert_eq!(with(|state| state.link = 0), Check::Link);
        let pae = |state: &mut State| {
            (state.entry, state.efer, state.rip) = (0, 0, 0x1000);
            state.pdptes[1] = 3;
        };
        assert_eq!(with(pae), Check::PageDirectoryPointers);
    }

    #[test]
    fn test_failures_of_the_instruction_are_told_apart() {
        assert_eq!(of_instruction(7), EntryCheck::Controls);
        assert_eq!(of_instruction(8), EntryCheck::HostState);
        assert_eq!(of_instruction(5), EntryCheck::Instruction);
        assert_eq!(of_instruction(0), EntryCheck::NoVmcs);
    }
}
