//! What a guest may load into control, debug and extended-state registers: what its CPU, as CPUID shows it, would take
//! (AMD APM vol. 2, chapters 3 and 5; Intel SDM vol. 3, chapter 2, and vol. 1, 13.3). Pure functions: nothing that fails
//! here reaches hardware.

use bitflags::bitflags;

use crate::cpuid::CpuidTable;
use crate::exit::Exception;
use crate::registers::Cr0;
use crate::registers::Cr4;
use crate::registers::Efer;

bitflags! {
    /// Components of extended state in XCR0 that guests can have (SDM vol. 1, 13.1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Xcr0: u64 {
        /// x87, always set.
        const X87 = 1 << 0;
        /// SSE.
        const SSE = 1 << 1;
        /// AVX: upper halves of YMM registers.
        const AVX = 1 << 2;
        /// AVX-512: mask registers, upper halves of ZMM0 to 15, and ZMM16 to 31; only together.
        const AVX512 = 0b111 << 5;
        /// PKRU.
        const PKRU = 1 << 9;
    }
}

impl Xcr0 {
    /// One more than the highest component.
    pub const COMPONENTS: usize = 10;

    /// The components but x87 and SSE, which have a fixed place in the XSAVE area.
    pub(crate) fn extended(self) -> impl Iterator<Item = usize> {
        (2..Self::COMPONENTS).filter(move |component| self.bits() >> component & 1 != 0)
    }
}

/// CR0's bits that can be written; the others are 0, but [`CR0_ET`] which is 1.
const CR0_WRITABLE: u64 = 0xe005_002f;
/// CR0.ET, hard-wired to 1.
const CR0_ET: u64 = 1 << 4;

/// CR3 bit 63, with PCIDs: keep the translations. Loads it is not.
pub const CR3_NO_FLUSH: u64 = 1 << 63;
/// CR3's PCID.
const CR3_PCID: u64 = 0xfff;

/// DR7's bits that can be written.
const DR7_WRITABLE: u64 = 0xffff_2bff;
/// DR7's bit 10, hard-wired to 1.
const DR7_ONES: u64 = 1 << 10;
/// DR6's bits that can be written.
const DR6_WRITABLE: u64 = 0xe00f;
/// DR6's bits that are 1.
const DR6_ONES: u64 = 0xffff_0ff0;

const GP: Exception = Exception::GENERAL_PROTECTION;

/// What of a vCPU decides about its control registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// The code segment is a 64-bit one.
    pub code_64bit: bool,
}

const fn has_cr0(value: u64, bits: Cr0) -> bool {
    value & bits.bits() as u64 != 0
}

const fn has_cr4(value: u64, bits: Cr4) -> bool {
    value & bits.bits() as u64 != 0
}

const fn has_efer(value: u64, bits: Efer) -> bool {
    value & bits.bits() != 0
}

fn refuse_if(wrong: bool) -> Result<(), Exception> {
    if wrong { Err(GP) } else { Ok(()) }
}

/// CR0 and EFER after a write to CR0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cr0Change {
    /// CR0 to load.
    pub cr0: u64,
    /// EFER to load: switching paging on with LME set makes long mode active, switching it off ends it.
    pub efer: u64,
}

/// Checks a value for CR0 (APM vol. 2, 3.1.1 and 14.6).
///
/// # Errors
/// #GP.
pub fn check_cr0(now: &Control, value: u64) -> Result<Cr0Change, Exception> {
    refuse_if(value >> 32 != 0)?;
    let cr0 = value & CR0_WRITABLE | CR0_ET;
    let paging = has_cr0(cr0, Cr0::CR0_ENABLE_PAGING);
    refuse_if(paging && !has_cr0(cr0, Cr0::CR0_PROTECTED_MODE))?;
    refuse_if(has_cr0(cr0, Cr0::CR0_NOT_WRITE_THROUGH) && !has_cr0(cr0, Cr0::CR0_CACHE_DISABLE))?;
    let had_paging = has_cr0(now.cr0, Cr0::CR0_ENABLE_PAGING);
    let mut efer = now.efer & !Efer::LMA.bits();
    if paging && has_efer(efer, Efer::LME) {
        let enters = !had_paging;
        refuse_if(enters && (!has_cr4(now.cr4, Cr4::CR4_ENABLE_PAE) || now.code_64bit))?;
        efer |= Efer::LMA.bits();
    }
    if had_paging && !paging {
        let in_64bit_code = has_efer(now.efer, Efer::LMA) && now.code_64bit;
        refuse_if(in_64bit_code || has_cr4(now.cr4, Cr4::CR4_ENABLE_PCID))?;
    }
    Ok(Cr0Change { cr0, efer })
}

/// Checks a value for CR3; the result is what to load (APM vol. 2, 5.5.1 and 3.1.2). Bits above the guest's physical
/// addresses are faults in long mode and ignored without.
///
/// # Errors
/// #GP.
pub fn check_cr3(table: &CpuidTable, now: &Control, value: u64) -> Result<u64, Exception> {
    let addresses = (1 << table.physical_bits()) - 1;
    if !has_efer(now.efer, Efer::LMA) {
        return Ok(value & u64::from(u32::MAX) & addresses);
    }
    let value = if has_cr4(now.cr4, Cr4::CR4_ENABLE_PCID) { value & !CR3_NO_FLUSH } else { value };
    refuse_if(value & !addresses != 0)?;
    Ok(value)
}

/// Checks a value for CR4; the result is what to load (APM vol. 2, 3.1.3).
///
/// # Errors
/// #GP.
pub fn check_cr4(table: &CpuidTable, now: &Control, value: u64) -> Result<u64, Exception> {
    refuse_if(value & !table.cr4() != 0)?;
    let long = has_efer(now.efer, Efer::LMA);
    refuse_if(long && !has_cr4(value, Cr4::CR4_ENABLE_PAE))?;
    if has_cr4(value, Cr4::CR4_ENABLE_PCID) && !has_cr4(now.cr4, Cr4::CR4_ENABLE_PCID) {
        refuse_if(!long || now.cr3 & CR3_PCID != 0)?;
    }
    Ok(value)
}

/// Checks a value for EFER; the result is what to load. LMA follows CR0 and is not writable (APM vol. 2, 3.1.7).
///
/// # Errors
/// #GP.
pub fn check_efer(table: &CpuidTable, now: &Control, value: u64) -> Result<u64, Exception> {
    refuse_if(value & !table.efer().bits() != 0)?;
    let changes_mode = has_efer(value ^ now.efer, Efer::LME);
    refuse_if(changes_mode && has_cr0(now.cr0, Cr0::CR0_ENABLE_PAGING))?;
    Ok(value & !Efer::LMA.bits() | now.efer & Efer::LMA.bits())
}

/// Checks all control registers at once, as the loader sets them for a start.
///
/// # Errors
/// #GP, for what no sequence of valid writes leads to.
pub fn check_start(table: &CpuidTable, cr0: u64, cr3: u64, cr4: u64, efer: u64) -> Result<(), Exception> {
    let before =
        Control { cr0: CR0_ET, cr3, cr4: cr4 & !(Cr4::CR4_ENABLE_PCID.bits() as u64), efer: 0, code_64bit: false };
    let efer_alone = check_efer(table, &before, efer)?;
    let allowed = check_cr4(table, &before, before.cr4)?;
    let entered = Control { cr4: allowed, efer: efer_alone, ..before };
    let change = check_cr0(&entered, cr0)?;
    refuse_if((change.cr0 ^ cr0) & !CR0_ET != 0 || change.efer != efer)?;
    let running = Control { cr0, efer, ..entered };
    refuse_if(check_cr3(table, &running, cr3)? != cr3)?;
    // A guest sets PCIDs on first, and its PCID afterwards.
    refuse_if(check_cr4(table, &Control { cr3: 0, ..running }, cr4)? != cr4)
}

/// Checks XSETBV's operands; the result is what to load (SDM vol. 1, 13.3).
///
/// # Errors
/// #UD where XSAVE is not switched on, #GP for all else.
pub fn check_xsetbv(table: &CpuidTable, cr4: u64, cpl: u8, index: u64, value: u64) -> Result<u64, Exception> {
    if !has_cr4(cr4, Cr4::CR4_ENABLE_OS_XSAVE) {
        return Err(Exception::INVALID_OPCODE);
    }
    refuse_if(cpl != 0 || index & u64::from(u32::MAX) != 0)?;
    check_xcr0(table, value)
}

/// Checks a value for XCR0; the result is what to load.
///
/// # Errors
/// #GP.
pub fn check_xcr0(table: &CpuidTable, value: u64) -> Result<u64, Exception> {
    refuse_if(value & !table.xcr0().bits() != 0)?;
    let set = Xcr0::from_bits_retain(value);
    refuse_if(!set.contains(Xcr0::X87))?;
    refuse_if(set.contains(Xcr0::AVX) && !set.contains(Xcr0::SSE))?;
    refuse_if(set.intersects(Xcr0::AVX512) && !set.contains(Xcr0::AVX512 | Xcr0::AVX))?;
    Ok(value)
}

/// Checks a value for CR8, the task priority.
///
/// # Errors
/// #GP.
pub fn check_cr8(value: u64) -> Result<u8, Exception> {
    u8::try_from(value).ok().filter(|priority| *priority <= 0xf).ok_or(GP)
}

/// Checks a value for DR7; the result is what to load (APM vol. 2, 13.1.1.4).
///
/// # Errors
/// #GP.
pub fn check_dr7(value: u64) -> Result<u64, Exception> {
    refuse_if(value >> 32 != 0)?;
    Ok(value & DR7_WRITABLE | DR7_ONES)
}

/// Checks a value for DR6; the result is what to load (APM vol. 2, 13.1.1.3).
///
/// # Errors
/// #GP.
pub fn check_dr6(value: u64) -> Result<u64, Exception> {
    refuse_if(value >> 32 != 0)?;
    Ok(value & DR6_WRITABLE | DR6_ONES)
}

/// Checks a value for `IA32_PAT`: each byte a memory type that PAT knows (APM vol. 2, 7.8.1).
///
/// # Errors
/// #GP.
pub fn check_pat(value: u64) -> Result<u64, Exception> {
    // 0 UC, 1 WC, 4 WT, 5 WP, 6 WB, 7 UC-.
    let known = |byte: u8| matches!(byte, 0 | 1 | 4..=7);
    refuse_if(!value.to_le_bytes().into_iter().all(known))?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cpuid::tests::all_features;

    const PG: u64 = 1 << 31;
    const PE: u64 = 1;
    const PAE: u64 = 1 << 5;
    const PCIDE: u64 = 1 << 17;
    const LME: u64 = 1 << 8;
    const LMA: u64 = 1 << 10;

    fn protected() -> Control {
        Control { cr0: PE | CR0_ET, ..Control::default() }
    }

    fn long() -> Control {
        Control { cr0: PG | PE | CR0_ET, cr3: 0x1000, cr4: PAE, efer: LME | LMA, code_64bit: true }
    }

    #[test]
    fn cr0_rules() {
        assert_eq!(check_cr0(&protected(), PG | PE).map(|change| change.cr0), Ok(PG | PE | CR0_ET));
        assert_eq!(check_cr0(&protected(), PE | 1 << 6 | 1 << 28).map(|change| change.cr0), Ok(PE | CR0_ET));
        for wrong in [PG, 1 << 29, 1 << 32 | PE, u64::MAX] {
            assert_eq!(check_cr0(&protected(), wrong), Err(GP), "{wrong:#x}");
        }
    }

    #[test]
    fn long_mode_is_entered_and_left_by_the_rules() {
        let ready = Control { cr4: PAE, efer: LME, ..protected() };
        assert_eq!(check_cr0(&ready, PG | PE), Ok(Cr0Change { cr0: PG | PE | CR0_ET, efer: LME | LMA }));
        assert_eq!(check_cr0(&Control { cr4: 0, ..ready }, PG | PE), Err(GP));
        assert_eq!(check_cr0(&Control { code_64bit: true, ..ready }, PG | PE), Err(GP));
        assert_eq!(check_cr0(&long(), PE), Err(GP), "in 64-bit code");
        let compatibility = Control { code_64bit: false, ..long() };
        assert_eq!(check_cr0(&compatibility, PE), Ok(Cr0Change { cr0: PE | CR0_ET, efer: LME }));
        assert_eq!(check_cr0(&Control { cr4: PAE | PCIDE, ..compatibility }, PE), Err(GP));
    }

    #[test]
    fn cr4_rules() {
        let table = all_features();
        assert_eq!(check_cr4(&table, &long(), PAE | PCIDE), Ok(PAE | PCIDE));
        assert_eq!(check_cr4(&table, &Control { cr3: 0x1001, ..long() }, PAE | PCIDE), Err(GP));
        assert_eq!(check_cr4(&table, &protected(), PCIDE), Err(GP));
        assert_eq!(check_cr4(&table, &long(), 0), Err(GP), "PAE in long mode");
        // VMXE, SMXE, LA57, CET, PKS, reserved.
        for bit in [13, 14, 12, 23, 24, 15, 19, 25, 32, 63] {
            assert_eq!(check_cr4(&table, &long(), PAE | 1 << bit), Err(GP), "bit {bit}");
        }
    }

    #[test]
    fn cr3_rules() {
        let table = all_features();
        let top = 1 << table.physical_bits();
        assert_eq!(check_cr3(&table, &long(), 0x5018), Ok(0x5018));
        assert_eq!(check_cr3(&table, &long(), top), Err(GP));
        assert_eq!(check_cr3(&table, &long(), CR3_NO_FLUSH | 0x5000), Err(GP));
        let with_pcids = Control { cr4: PAE | PCIDE, ..long() };
        assert_eq!(check_cr3(&table, &with_pcids, CR3_NO_FLUSH | 0x5abc), Ok(0x5abc));
        assert_eq!(check_cr3(&table, &protected(), u64::MAX), Ok(0xffff_ffff));
    }

    #[test]
    fn efer_rules() {
        let table = all_features();
        assert_eq!(check_efer(&table, &long(), LME | LMA | 0x801), Ok(LME | LMA | 0x801));
        assert_eq!(check_efer(&table, &long(), LME), Ok(LME | LMA), "LMA is not writable");
        assert_eq!(check_efer(&table, &protected(), LME | LMA), Ok(LME));
        assert_eq!(check_efer(&table, &long(), 0), Err(GP), "LME under paging");
        for bit in [1, 9, 12, 13, 14, 15, 17, 18, 20, 21, 63] {
            assert_eq!(check_efer(&table, &long(), LME | 1 << bit), Err(GP), "bit {bit}");
        }
    }

    #[test]
    fn xsetbv_rules() {
        let table = all_features();
        let on = 1 << 18;
        for good in [1, 3, 7, 0xe7, 0x2e7, 0x201] {
            assert_eq!(check_xsetbv(&table, on, 0, 0, good), Ok(good));
        }
        for bad in [0, 2, 5, 0x27, 0xe3, 0x67, 0x1f, 1 << 17 | 3, 1 << 63 | 3] {
            assert_eq!(check_xsetbv(&table, on, 0, 0, bad), Err(GP), "{bad:#x}");
        }
        assert_eq!(check_xsetbv(&table, on, 3, 0, 3), Err(GP));
        assert_eq!(check_xsetbv(&table, on, 0, 1, 3), Err(GP));
        assert_eq!(check_xsetbv(&table, on, 0, 0xffff_ffff_0000_0000, 3), Ok(3), "ECX alone counts");
        assert_eq!(check_xsetbv(&table, 0, 0, 0, 3), Err(Exception::INVALID_OPCODE));
    }

    #[test]
    fn start_states() {
        let table = all_features();
        assert_eq!(check_start(&table, PG | PE | CR0_ET, 0x1000, PAE, LME | LMA), Ok(()));
        assert_eq!(check_start(&table, PE | CR0_ET, 0, 0, 0), Ok(()));
        assert_eq!(check_start(&table, CR0_ET, 0, 0, 0), Ok(()));
        assert_eq!(check_start(&table, PG | PE | CR0_ET, 0x1001, PAE | PCIDE, LME | LMA), Ok(()));
        assert!(check_start(&table, PG | PE | CR0_ET, 0x1000, 0, LME | LMA).is_err());
        assert!(check_start(&table, PG | PE | CR0_ET, 0x1000, PAE, LME).is_err());
        assert!(check_start(&table, PE | CR0_ET, 0, PAE, LME | LMA).is_err());
        assert!(check_start(&table, PG | PE | CR0_ET, 1 << 60, PAE, LME | LMA).is_err());
        assert!(check_start(&table, PG, 0, 0, 0).is_err());
    }

    #[test]
    fn debug_registers_and_pat() {
        assert_eq!(check_dr7(0), Ok(0x400));
        assert_eq!(check_dr7(0xffff_ffff), Ok(0xffff_2fff));
        assert_eq!(check_dr7(1 << 32), Err(GP));
        assert_eq!(check_dr6(0), Ok(0xffff_0ff0));
        assert_eq!(check_dr6(u64::MAX), Err(GP));
        assert_eq!(check_pat(0x0007_0406_0007_0406), Ok(0x0007_0406_0007_0406));
        assert_eq!(check_pat(0x0007_0406_0007_0402), Err(GP));
        assert_eq!(check_cr8(15), Ok(15));
        assert_eq!(check_cr8(16), Err(GP));
    }

    proptest! {
        /// Whatever sequence a guest writes, its registers stay a state that a start could have.
        #[test]
        fn reachable_states_are_valid_starts(
            writes in proptest::collection::vec((0..4_u8, any::<u64>(), any::<u64>(), any::<bool>()), 0..60),
        ) {
            let table = all_features();
            let mut now = Control { cr0: CR0_ET, ..Control::default() };
            for (register, value, mask, code_64bit) in writes {
                // Sparse values get through more often.
                let interesting = PG | PE | PAE | PCIDE | LME | LMA | 0x1000;
                let value = value & mask & interesting | value & mask & value.rotate_left(7) & mask.rotate_left(13);
                now.code_64bit = code_64bit && now.efer & LMA != 0;
                match register {
                    0 => if let Ok(change) = check_cr0(&now, value) {
                        (now.cr0, now.efer) = (change.cr0, change.efer);
                    },
                    1 => if let Ok(cr3) = check_cr3(&table, &now, value) { now.cr3 = cr3; },
                    2 => if let Ok(cr4) = check_cr4(&table, &now, value) { now.cr4 = cr4; },
                    _ => if let Ok(efer) = check_efer(&table, &now, value) { now.efer = efer; },
                }
                prop_assert_eq!(check_start(&table, now.cr0, now.cr3, now.cr4, now.efer), Ok(()));
            }
        }
    }
}
