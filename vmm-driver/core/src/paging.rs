//! Walks of the guest's page tables (APM vol. 2, chapter 5; Intel SDM vol. 3, chapter 4). Reading its code by them is in `code`.
//!
//! Knows no paging, 32-bit, PAE and 4-level tables; guests have no 5-level paging. A walk reads what the tables say now,
//! as a CPU with an empty TLB would. Protection keys are not looked at: guests do not see PKU, and an emulated access was
//! checked by the CPU before it came here.
//!
//! Everything here runs in guest context.

mod code;

pub use code::FetchFault;
pub use code::MAX_INSTRUCTION;
pub use code::code_size;
pub use code::fetch;
pub use code::fetch_rest;
pub use code::linear_rip;
pub use code::peek;
pub use code::peek_usual;

use crate::engine::Vcpu;
use crate::memory::Memory;
use crate::registers::Cr0;
use crate::registers::Cr4;
use crate::registers::Efer;
use crate::registers::RFlags;

/// Bits of a page-table entry (APM vol. 2, 5.4).
pub mod entry {
    /// Present.
    pub const PRESENT: u64 = 1 << 0;
    /// Writable.
    pub const WRITABLE: u64 = 1 << 1;
    /// For user mode.
    pub const USER: u64 = 1 << 2;
    /// Used in a translation.
    pub const ACCESSED: u64 = 1 << 5;
    /// Written to; only in the entry that maps the page.
    pub const DIRTY: u64 = 1 << 6;
    /// Maps a large page instead of pointing to a table. Page attribute table bit in a 4 KiB entry.
    pub const LARGE: u64 = 1 << 7;
    /// Not executable.
    pub const NO_EXECUTE: u64 = 1 << 63;
    /// Physical address in 8-byte entries. What lies above the guest's physical address width is not RAM of ours, so
    /// those bits need no check of their own.
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
}

/// Bits of a page fault's error code (APM vol. 2, 8.4.2).
pub mod error_code {
    /// The page is present; the access is not allowed.
    pub const PRESENT: u32 = 1 << 0;
    /// A write.
    pub const WRITE: u32 = 1 << 1;
    /// At privilege level 3.
    pub const USER: u32 = 1 << 2;
    /// A reserved bit is set in an entry.
    pub const RESERVED: u32 = 1 << 3;
    /// An instruction fetch.
    pub const FETCH: u32 = 1 << 4;
}

/// What an access does to the page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Writes, else reads.
    pub write: bool,
    /// Fetches an instruction.
    pub fetch: bool,
    /// At privilege level 3.
    pub user: bool,
}

/// Why an address has no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// #PF with this error code.
    Page(u32),
    /// The table at this guest-physical address is not in RAM.
    TableOutsideRam(u64),
}

/// How often a walk starts again because somebody changes the tables under it. After that it goes on without setting
/// the accessed bit, as if the guest had overwritten it.
const RACES: u32 = 16;

/// Guest-physical address of a linear one.
///
/// Sets accessed and dirty bits. Does not check that `linear` is canonical.
///
/// # Errors
/// [`Fault`]. The caller sets CR2 where the fault goes to the guest.
#[inline]
pub fn translate<V: Vcpu>(vcpu: &V, memory: &Memory, linear: u64, access: Access) -> Result<u64, Fault> {
    match translate_usual(vcpu, memory, linear, access) {
        Some(gpa) => Ok(gpa),
        None => translate_any(vcpu, memory, linear, access),
    }
}

/// The usual case, in few instructions: long mode with no-execute on, all tables in one region of RAM, nothing to mark
/// as accessed or dirty, and rights that need no look at CR0, CR4 or the flags. `None` says nothing.
#[inline(always)]
fn translate_usual<V: Vcpu>(vcpu: &V, memory: &Memory, linear: u64, access: Access) -> Option<u64> {
    const MODE: u64 = Efer::LMA.bits() | Efer::NXE.bits();
    if vcpu.efer() & MODE != MODE {
        return None;
    }
    let view = memory.view(vcpu.cr3())?;
    let mut value = view.read_entry(vcpu.cr3() & entry::ADDRESS, linear >> 39)?;
    // A large page is not possible there. What else may be wrong with an entry shows at the end: an address that is
    // none leads to some other word of RAM, or out of the view.
    let (mut all, mut any) = (value, value & entry::LARGE);
    let mut shift = 39;
    while shift > 12 {
        shift -= 9;
        value = view.read_entry(value & entry::ADDRESS, linear >> shift)?;
        all &= value;
        any |= value & entry::NO_EXECUTE;
        if shift > 12 && value & entry::LARGE != 0 {
            if has_reserved_large(value, shift) {
                return None;
            }
            break;
        }
    }
    let mut required = entry::PRESENT | entry::ACCESSED;
    let mut looked_at = required | entry::USER;
    if access.user {
        required |= entry::USER;
    }
    if access.write {
        required |= entry::WRITABLE;
        looked_at |= entry::WRITABLE;
    }
    let mut unusual = (all ^ required) & looked_at;
    if access.fetch {
        unusual |= any;
    } else {
        unusual |= any & entry::LARGE;
    }
    if access.write {
        unusual |= !value & entry::DIRTY;
    }
    let offset = (1 << shift) - 1;
    (unusual == 0).then_some(value & entry::ADDRESS & !offset | linear & offset)
}

/// Every case.
#[cold]
fn translate_any<V: Vcpu>(vcpu: &V, memory: &Memory, linear: u64, access: Access) -> Result<u64, Fault> {
    let cr0 = vcpu.cr0();
    if cr0 & Cr0::CR0_ENABLE_PAGING.bits() as u64 == 0 {
        return Ok(linear & 0xffff_ffff);
    }
    let rights = Rights::new(vcpu, cr0, access);
    if vcpu.efer() & Efer::LMA.bits() != 0 {
        walk(&rights, memory, vcpu.cr3() & entry::ADDRESS, 39, linear)
    } else {
        translate_legacy(&rights, memory, vcpu.cr3(), vcpu.cr4(), linear)
    }
}

/// The checks of one access, made ready before the walk.
struct Rights {
    access: Access,
    /// Bits that all entries must have (with [`entry::NO_EXECUTE`] inverted).
    required: u64,
    /// The page must not be a user page: SMEP or SMAP.
    supervisor_only: bool,
    /// Bits that no entry may have.
    reserved: u64,
    /// The fetch bit is part of error codes.
    fetch_is_told: bool,
}

impl Rights {
    #[inline]
    fn new<V: Vcpu>(vcpu: &V, cr0: u64, access: Access) -> Self {
        let cr4 = vcpu.cr4();
        let no_execute = vcpu.efer() & Efer::NXE.bits() != 0;
        let smep = cr4 & Cr4::CR4_ENABLE_SMEP.bits() as u64 != 0;
        let mut required = entry::PRESENT;
        if access.write && (access.user || cr0 & Cr0::CR0_WRITE_PROTECT.bits() as u64 != 0) {
            required |= entry::WRITABLE;
        }
        if access.fetch {
            required |= entry::NO_EXECUTE;
        }
        let mut supervisor_only = false;
        if access.user {
            required |= entry::USER;
        } else if access.fetch {
            supervisor_only = smep;
        } else if cr4 & Cr4::CR4_ENABLE_SMAP.bits() as u64 != 0 {
            supervisor_only = vcpu.rflags() & RFlags::FLAGS_AC.bits() == 0;
        }
        Self {
            access,
            required,
            supervisor_only,
            reserved: if no_execute { 0 } else { entry::NO_EXECUTE },
            fetch_is_told: no_execute || smep,
        }
    }

    /// Whether the access is allowed by what all entries of the walk have in common.
    #[inline]
    const fn allow(&self, common: u64) -> bool {
        common & self.required == self.required && !(self.supervisor_only && common & entry::USER != 0)
    }

    #[cold]
    fn fault(&self, cause: u32) -> Fault {
        let mut code = cause;
        if self.access.write {
            code |= error_code::WRITE;
        }
        if self.access.user {
            code |= error_code::USER;
        }
        if self.access.fetch && self.fetch_is_told {
            code |= error_code::FETCH;
        }
        Fault::Page(code)
    }

    #[cold]
    fn not_allowed(&self) -> Fault {
        self.fault(error_code::PRESENT)
    }

    #[cold]
    fn not_present(&self) -> Fault {
        self.fault(0)
    }

    #[cold]
    fn reserved_bit(&self) -> Fault {
        self.fault(error_code::PRESENT | error_code::RESERVED)
    }
}

/// Address of the 8-byte entry for `linear` in a table, at the level that maps 2^`shift` bytes.
#[inline]
const fn entry_address(table: u64, linear: u64, shift: u32) -> u64 {
    table + (linear >> shift & 0x1ff) * 8
}

/// A walk through tables of 8-byte entries from the one at `table` down. Changes nothing, unless accessed or dirty bits
/// are to be set.
#[inline]
fn walk(rights: &Rights, memory: &Memory, table: u64, top: u32, linear: u64) -> Result<u64, Fault> {
    let (mut address, mut shift) = (table, top);
    // The bits that all entries have, the no-execute bit inverted, and those that one has.
    let mut common = u64::MAX;
    loop {
        let Some(value) = memory.read_u64(entry_address(address, linear, shift)) else {
            return Err(Fault::TableOutsideRam(entry_address(address, linear, shift)));
        };
        if value & entry::PRESENT == 0 {
            return Err(rights.not_present());
        }
        if value & rights.reserved != 0 {
            return Err(rights.reserved_bit());
        }
        common &= value ^ entry::NO_EXECUTE;
        let leaf = shift == 12 || value & entry::LARGE != 0;
        if !leaf {
            address = value & entry::ADDRESS;
            shift -= 9;
            continue;
        }
        let offset = (1 << shift) - 1;
        if shift > 12 && has_reserved_large(value, shift) {
            return Err(rights.reserved_bit());
        }
        if !rights.allow(common) {
            return Err(rights.not_allowed());
        }
        if common & entry::ACCESSED == 0 || rights.access.write && value & entry::DIRTY == 0 {
            return walk_and_mark(rights, memory, table, top, linear);
        }
        return Ok(value & entry::ADDRESS & !offset | linear & offset);
    }
}

/// Whether an entry that maps a large page has one of its must-be-zero bits set: address bits below the page's size
/// except the PAT bit, and all 512 GiB pages.
#[inline]
const fn has_reserved_large(value: u64, shift: u32) -> bool {
    shift > 30 || value & ((1 << shift) - 1) & !0x1fff != 0
}

/// The same walk once more, setting accessed and dirty bits as it goes. The access was allowed a moment ago; if another
/// CPU changes the tables meanwhile, the walk starts again.
#[cold]
fn walk_and_mark(rights: &Rights, memory: &Memory, table: u64, top: u32, linear: u64) -> Result<u64, Fault> {
    let mut attempts = 0;
    'walk: loop {
        attempts += 1;
        let (mut address, mut shift) = (table, top);
        let mut common = u64::MAX;
        loop {
            let place = entry_address(address, linear, shift);
            let value = memory.read_u64(place).ok_or(Fault::TableOutsideRam(place))?;
            if value & entry::PRESENT == 0 {
                return Err(rights.not_present());
            }
            common &= value ^ entry::NO_EXECUTE;
            let leaf = shift == 12 || value & entry::LARGE != 0;
            if value & rights.reserved != 0 || leaf && shift > 12 && has_reserved_large(value, shift) {
                return Err(rights.reserved_bit());
            }
            if leaf && !rights.allow(common) {
                return Err(rights.not_allowed());
            }
            let dirty = if leaf && rights.access.write { entry::DIRTY } else { 0 };
            let marked = value | entry::ACCESSED | dirty;
            if marked != value && !memory.exchange_u64(place, value, marked) && attempts < RACES {
                continue 'walk;
            }
            if leaf {
                let offset = (1 << shift) - 1;
                return Ok(value & entry::ADDRESS & !offset | linear & offset);
            }
            address = value & entry::ADDRESS;
            shift -= 9;
        }
    }
}

/// Bits of a page-directory pointer besides the address: present, write-through, cache disable, accessed, and the ignored ones.
const POINTER_BITS: u64 = entry::PRESENT | 0x18 | entry::ACCESSED | 0xe00;

/// Paging without long mode: PAE or 32-bit tables.
#[cold]
fn translate_legacy(rights: &Rights, memory: &Memory, cr3: u64, cr4: u64, linear: u64) -> Result<u64, Fault> {
    let linear = linear & 0xffff_ffff;
    if cr4 & Cr4::CR4_ENABLE_PAE.bits() as u64 == 0 {
        let large_pages = cr4 & Cr4::CR4_ENABLE_PSE.bits() as u64 != 0;
        return walk_32bit(rights, memory, cr3 & 0xffff_f000, large_pages, linear);
    }
    // The four page-directory pointers have no rights and no accessed bit (APM vol. 2, 5.2.3). They are read from memory
    // as nested paging does; a CPU may use the ones from its last load of CR3. QEMU's CPU sets the accessed bit in them all the
    // same, as in every other entry, and then a walk that took it for reserved would fault for ever.
    let place = cr3 & 0xffff_ffe0 | linear >> 30 << 3;
    let pointer = memory.read_u64(place).ok_or(Fault::TableOutsideRam(place))?;
    if pointer & entry::PRESENT == 0 {
        return Err(rights.not_present());
    }
    if pointer & !(entry::ADDRESS | POINTER_BITS) != 0 {
        return Err(rights.reserved_bit());
    }
    walk(rights, memory, pointer & entry::ADDRESS, 21, linear)
}

/// Reads the 4-byte entry at `place`.
fn read_entry32(memory: &Memory, place: u64) -> Result<u64, Fault> {
    let word = memory.read_u64(place).ok_or(Fault::TableOutsideRam(place))?;
    Ok(word >> (place % 8 * 8) & 0xffff_ffff)
}

/// Sets `bits` in the 4-byte entry at `place` if it still holds `value`.
fn mark_entry32(memory: &Memory, place: u64, value: u64, bits: u64) -> bool {
    let shift = place % 8 * 8;
    memory.read_u64(place).is_some_and(|word| {
        word >> shift & 0xffff_ffff == value && memory.exchange_u64(place, word, word | bits << shift)
    })
}

/// A walk through 32-bit tables (APM vol. 2, 5.2.2), with PSE-36.
fn walk_32bit(rights: &Rights, memory: &Memory, table: u64, large_pages: bool, linear: u64) -> Result<u64, Fault> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        let directory_place = table + (linear >> 22) * 4;
        let directory = read_entry32(memory, directory_place)?;
        if directory & entry::PRESENT == 0 {
            return Err(rights.not_present());
        }
        let large = large_pages && directory & entry::LARGE != 0;
        let (place, leaf) = if large {
            // Bit 21 must be 0; bits 20 to 13 are bits 39 to 32 of the address.
            if directory & 1 << 21 != 0 {
                return Err(rights.reserved_bit());
            }
            (directory_place, directory)
        } else {
            let place = (directory & 0xffff_f000) + (linear >> 12 & 0x3ff) * 4;
            (place, read_entry32(memory, place)?)
        };
        if leaf & entry::PRESENT == 0 {
            return Err(rights.not_present());
        }
        // Without a no-execute bit everything is executable.
        if !rights.allow(directory & leaf | entry::NO_EXECUTE) {
            return Err(rights.not_allowed());
        }
        let dirty = if rights.access.write { entry::DIRTY } else { 0 };
        let accessed = entry::ACCESSED & !directory;
        let missing = (entry::ACCESSED | dirty) & !leaf;
        let unmarked = !large && accessed != 0 && !mark_entry32(memory, directory_place, directory, accessed)
            || missing != 0 && !mark_entry32(memory, place, leaf, missing);
        if unmarked && attempts < RACES {
            continue;
        }
        return Ok(if large {
            (leaf & 0x1f_e000) << 19 | leaf & 0xffc0_0000 | linear & 0x3f_ffff
        } else {
            leaf & 0xffff_f000 | linear & 0xfff
        });
    }
}

#[cfg(test)]
#[path = "paging_tests.rs"]
mod tests;
