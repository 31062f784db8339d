//! Page tables of a paravirtual guest. It makes a table as ordinary memory, maps that read-only, and hands it over by hanging it
//! into another table or by pinning it; from then on entries change by hypercalls (Xen `docs`, "PV memory management").

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use super::abi::mmuext;
use super::abi::uvmf;
use super::frames;
use super::frames::PAGE;
use super::hypercall;

/// Entry: present.
pub const PRESENT: u64 = 1 << 0;
/// Entry: may be written.
pub const WRITABLE: u64 = 1 << 1;
/// Entry: the user's. All of a kernel in ring 3 is.
pub const USER: u64 = 1 << 2;
/// Entry: written through.
pub const WRITE_THROUGH: u64 = 1 << 3;
/// Entry: not cached.
pub const CACHE_DISABLE: u64 = 1 << 4;
/// Entry: it was used.
pub const ACCESSED: u64 = 1 << 5;
/// Entry: the page was written.
pub const DIRTY: u64 = 1 << 6;
/// Entry of a directory: a large page. In one of a page table: PAT.
pub const LARGE: u64 = 1 << 7;
/// Entry: stays when translations are forgotten.
pub const GLOBAL: u64 = 1 << 8;
/// Entry: no code.
pub const NO_EXECUTE: u64 = 1 << 63;

/// A page.
pub const RW: u64 = PRESENT | WRITABLE | USER | ACCESSED | DIRTY;
/// A page that can be read only.
pub const RO: u64 = PRESENT | USER | ACCESSED;
/// A table.
pub const TABLE: u64 = PRESENT | WRITABLE | USER | ACCESSED;
/// The address in an entry.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The kernel's L4 and the user's, by the guest's addresses.
static KERNEL: AtomicU64 = AtomicU64::new(0);
static USERS: AtomicU64 = AtomicU64::new(0);

/// The kernel's L4.
#[must_use]
pub fn kernel() -> u64 {
    KERNEL.load(Relaxed)
}

/// The user's L4; 0: none.
#[must_use]
pub fn users() -> u64 {
    USERS.load(Relaxed)
}

/// Says which L4 is the kernel's.
pub(super) fn set_kernel(table: u64) {
    KERNEL.store(table, Relaxed);
}

/// Machine frame of memory of the guest's.
#[must_use]
pub fn frame(address: u64) -> u64 {
    frames::machine(address) / PAGE
}

/// The index of an address in a table of this level, 4 being the highest.
const fn index(address: u64, level: u32) -> u64 {
    address >> (12 + 9 * (level - 1)) & 0x1ff
}

/// Where the entry for an address is in a table of this level.
#[must_use]
pub const fn slot(table: u64, address: u64, level: u32) -> u64 {
    table + index(address, level) * 8
}

/// Where the entry of `level` for an address is, by the tables under `root`, if there are such.
#[must_use]
pub fn find(root: u64, address: u64, level: u32) -> Option<u64> {
    let mut table = root;
    for above in (level + 1..=4).rev() {
        let entry = frames::read(slot(table, address, above));
        if entry & PRESENT == 0 {
            return None;
        }
        table = frames::physical(entry & ADDRESS)?;
    }
    Some(slot(table, address, level))
}

/// Changes an entry at an address of the guest's by `mmu_update`.
pub fn set(entry: u64, value: u64) -> i64 {
    hypercall::mmu_update(frames::machine(entry), value)
}

/// Maps memory of the guest's read-only or writable where it always is.
///
/// # Panics
/// When the hypervisor refuses.
pub fn protect(page: u64, flags: u64) {
    let result = hypercall::update_va_mapping(page, frames::machine(page) | flags, uvmf::INVLPG | uvmf::ALL);
    assert!(result == 0, "page {page:#x} cannot be mapped with {flags:#x}: {result}");
}

/// Makes a page a table: zeros, or what it has, and nobody can write it.
pub fn make(page: u64) -> u64 {
    protect(page, RO);
    page
}

/// A new table of zeros, for good.
#[must_use]
pub fn new() -> u64 {
    make(frames::take_for_good())
}

/// The entry of `level` for an address under `root`, with tables made where there are none.
///
/// # Panics
/// When the hypervisor refuses a table.
pub fn reach(root: u64, address: u64, level: u32) -> u64 {
    for above in (level + 1..=4).rev() {
        let Some(entry) = find(root, address, above) else { break };
        if frames::read(entry) & PRESENT == 0 {
            let result = set(entry, frames::machine(new()) | TABLE);
            assert!(result == 0, "no table of level {} for {address:#x}: {result}", above - 1);
        }
    }
    find(root, address, level).unwrap_or(0)
}

/// Maps machine memory at an address of the kernel's.
///
/// # Panics
/// When the hypervisor refuses.
pub fn map(address: u64, machine: u64, flags: u64) {
    let result = set(reach(kernel(), address, 1), machine & ADDRESS | flags);
    assert!(result == 0, "{machine:#x} cannot be mapped at {address:#x}: {result}");
    hypercall::mmuext(mmuext::INVLPG_LOCAL, address, 0);
}

/// Makes page tables for user mode, in which the 2 MiB at `region` are what they are in the kernel's, and nothing else.
///
/// # Panics
/// When the hypervisor refuses.
pub fn make_users(region: u64) {
    let [level_4, level_3, level_2] = [(); 3].map(|()| frames::take_for_good());
    let shared = find(kernel(), region, 2).map_or(0, frames::read);
    frames::write(slot(level_2, region, 2), shared);
    frames::write(slot(level_3, region, 3), frames::machine(level_2) | TABLE);
    frames::write(slot(level_4, region, 4), frames::machine(level_3) | TABLE);
    for table in [level_2, level_3, level_4] {
        make(table);
    }
    let pinned = hypercall::mmuext(mmuext::PIN_L4, frame(level_4), 0);
    let taken = hypercall::mmuext(mmuext::NEW_USER_BASEPTR, frame(level_4), 0);
    assert!(pinned == 0 && taken == 0, "no page tables for user mode: {pinned}, {taken}");
    USERS.store(level_4, Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_an_entry_is_where_the_cpu_looks() {
        let address = (1 << 39) + (2 << 30) + (3 << 21) + (4 << 12) + 5;
        assert_eq!([4, 3, 2, 1].map(|level| slot(0x1000, address, level)), [0x1008, 0x1010, 0x1018, 0x1020]);
    }
}
