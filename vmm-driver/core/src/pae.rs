//! The page directory pointers of PAE paging, which the CPU loads into registers of its own when a control register changes
//! (SDM vol. 3, 4.4.1; APM vol. 2, 5.2.3). Where core carries out that change, an engine may leave the loading to it.

use crate::engine::Vcpu;
use crate::exit::Exception;
use crate::memory::Memory;
use crate::paging::entry;
use crate::policy::Control;
use crate::registers::Cr0;
use crate::registers::Cr4;
use crate::registers::Efer;

/// Bits of CR0 whose change loads the pointers: CD, NW, PG.
const CR0_LOADS: u64 =
    (Cr0::CR0_CACHE_DISABLE.bits() | Cr0::CR0_NOT_WRITE_THROUGH.bits() | Cr0::CR0_ENABLE_PAGING.bits()) as u64;
/// Bits of CR4 whose change does: PSE, PAE, PGE, SMEP.
const CR4_LOADS: u64 = 1 << 4 | 1 << 5 | 1 << 7 | 1 << 20;
/// CR3's bits with the address of the four pointers.
const TABLE: u64 = 0xffff_ffe0;
/// Reserved bits of a pointer that is present: 1, 2 and 5 to 8.
const RESERVED: u64 = 0x1e6;

/// Whether PAE paging is on, and not long mode.
const fn is_on(control: &Control) -> bool {
    control.cr0 & Cr0::CR0_ENABLE_PAGING.bits() as u64 != 0
        && control.cr4 & Cr4::CR4_ENABLE_PAE.bits() as u64 != 0
        && control.efer & Efer::LMA.bits() == 0
}

/// Loads the pointers into a vCPU whose engine leaves that to core, as after a start with these control registers.
///
/// # Errors
/// #GP.
pub fn load_at_start<V: Vcpu>(vcpu: &mut V, memory: &Memory, physical_bits: u32) -> Result<(), Exception> {
    let control = Control { cr0: vcpu.cr0(), cr3: vcpu.cr3(), cr4: vcpu.cr4(), efer: vcpu.efer(), code_64bit: false };
    if V::KEEPS_PAGE_DIRECTORY_POINTERS && is_on(&control) {
        vcpu.set_page_directory_pointers(load(memory, control.cr3, physical_bits)?);
    }
    Ok(())
}

/// Whether the change of control registers, of which CR3 may be written with the value that it has, loads the pointers.
#[must_use]
pub const fn change_loads(before: &Control, after: &Control, writes_cr3: bool) -> bool {
    let changed = (before.cr0 ^ after.cr0) & CR0_LOADS != 0 || (before.cr4 ^ after.cr4) & CR4_LOADS != 0;
    is_on(after) && (changed || writes_cr3)
}

/// The pointers that CR3 points to. `physical_bits`: width of the guest's physical addresses.
///
/// # Errors
/// #GP where one has a reserved bit.
pub fn load(memory: &Memory, cr3: u64, physical_bits: u32) -> Result<[u64; 4], Exception> {
    let mut pointers = [0; 4];
    let mut gpa = cr3 & TABLE;
    for pointer in &mut pointers {
        // Where there is no RAM, a bus without anybody on it gives ones, which are reserved bits.
        *pointer = memory.read_u64(gpa).unwrap_or(u64::MAX);
        if *pointer & entry::PRESENT != 0 && (*pointer & RESERVED != 0 || *pointer >> physical_bits != 0) {
            return Err(Exception::GENERAL_PROTECTION);
        }
        gpa += 8;
    }
    Ok(pointers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::TestGuest;

    const PAE: Control = Control { cr0: 0x8000_0011, cr3: 0x2000, cr4: 0x20, efer: 0, code_64bit: false };

    #[test]
    fn pointers_are_loaded_where_the_manual_says_so() {
        let before = Control { cr0: 0x11, ..PAE };
        assert!(change_loads(&before, &PAE, false), "paging comes on");
        assert!(!change_loads(&PAE, &PAE, false));
        assert!(change_loads(&PAE, &PAE, true));
        assert!(change_loads(&PAE, &Control { cr4: 0xa0, ..PAE }, false), "PGE");
        let long = Control { efer: 0x500, ..PAE };
        assert!(!change_loads(&long, &Control { cr4: 0xa0, ..long }, true), "not in long mode");
    }

    #[test]
    fn test_attack_reserved_bits_of_a_pointer_reach_no_entry() {
        let guest = TestGuest::paging_pae();
        let put = |gpa, pointer: u64| guest.write(gpa, &pointer.to_le_bytes());
        put(0x2000, 0x3001);
        put(0x2008, 0x1e6);
        assert_eq!(load(&guest.memory, 0x2000, 40), Ok([0x3001, 0x1e6, 0, 0]), "what is not present is not looked at");
        put(0x2018, 0x3003);
        assert_eq!(load(&guest.memory, 0x2000, 40), Err(Exception::GENERAL_PROTECTION));
        put(0x2018, 1 << 40 | 1);
        assert_eq!(load(&guest.memory, 0x2000, 40), Err(Exception::GENERAL_PROTECTION));
        assert_eq!(load(&guest.memory, 0xf000_0000, 40), Err(Exception::GENERAL_PROTECTION), "no RAM");
    }
}
