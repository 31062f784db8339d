use proptest::prelude::*;

use super::Access;
use super::Fault;
use super::FetchFault;
use super::MAX_INSTRUCTION;
use super::entry;
use super::error_code;
use super::fetch;
use super::fetch_rest;
use super::peek;
use super::peek_usual;
use super::translate;
use crate::registers::Cr0;
use crate::registers::Cr4;
use crate::registers::Efer;
use crate::registers::RFlags;
use crate::registers::SegmentName;
use crate::test_support::TestGuest;

const READ: Access = Access { write: false, fetch: false, user: false };
const WRITE: Access = Access { write: true, ..READ };
const FETCH: Access = Access { fetch: true, ..READ };
const USER: Access = Access { user: true, ..READ };
const P: u64 = entry::PRESENT;
const W: u64 = entry::WRITABLE;
const U: u64 = entry::USER;
const NX: u64 = entry::NO_EXECUTE;
const A: u64 = entry::ACCESSED;
const D: u64 = entry::DIRTY;

const LINEAR: u64 = 0xffff_8123_4567_8000;

fn walk(guest: &TestGuest, linear: u64, access: Access) -> Result<u64, Fault> {
    translate(&guest.vcpu, &guest.memory, linear, access)
}

#[test]
fn without_paging_linear_is_physical() {
    assert_eq!(walk(&TestGuest::protected_mode(), 0x1_2345_6789, WRITE), Ok(0x2345_6789));
}

#[test]
fn maps_pages_of_every_size() {
    let mut guest = TestGuest::long_mode();
    guest.map(LINEAR, 12, 0x5000 | P | W);
    guest.map(0x20_0000, 21, 0x4000_0000 | P | W | entry::LARGE);
    guest.map(0x80_0000_0000, 30, 0x8_c000_0000 | P | W | entry::LARGE);
    assert_eq!(walk(&guest, LINEAR + 0x123, READ), Ok(0x5123));
    assert_eq!(walk(&guest, 0x21_2345, READ), Ok(0x4001_2345));
    assert_eq!(walk(&guest, 0x80_2345_6789, WRITE), Ok(0x8_e345_6789));

    let mut guest = TestGuest::paging_pae();
    guest.map(0xc000_0000, 12, 0x6000 | P);
    guest.map(0x4020_0000, 21, 0x40_0000 | P | entry::LARGE);
    assert_eq!(walk(&guest, 0xc000_0fff, READ), Ok(0x6fff));
    assert_eq!(walk(&guest, 0x4020_1234, READ), Ok(0x40_1234));

    let mut guest = TestGuest::paging_32bit();
    guest.map(0xc000_0000, 12, 0x7000 | P);
    // PSE-36: bits 20 to 13 of the entry are bits 39 to 32 of the address.
    guest.map(0x40_0000, 22, 0xc00_0000 | 0x42 << 13 | P | entry::LARGE);
    assert_eq!(walk(&guest, 0xc000_0004, READ), Ok(0x7004));
    assert_eq!(walk(&guest, 0x41_2345, READ), Ok(0x42_0c01_2345));
    guest.vcpu.cr4 = 0;
    assert!(matches!(walk(&guest, 0x41_2345, READ), Err(Fault::TableOutsideRam(0xc08_4048))));
}

#[test]
fn refuses_what_the_rights_forbid() {
    let mut guest = TestGuest::long_mode();
    guest.map(0x1000, 12, 0x5000 | P | W | NX);
    guest.map(0x2000, 12, 0x5000 | P | U);
    guest.map(0x3000, 12, 0x5000 | W | U);
    let fault = |guest: &TestGuest, linear, access| match walk(guest, linear, access) {
        Err(Fault::Page(code)) => code,
        other => panic!("{other:?}"),
    };
    use error_code::PRESENT;
    use error_code::RESERVED;
    assert_eq!(fault(&guest, 0x1000, FETCH), PRESENT | error_code::FETCH);
    assert_eq!(fault(&guest, 0x1000, Access { user: true, ..WRITE }), PRESENT | error_code::USER | error_code::WRITE);
    assert_eq!(fault(&guest, 0x2000, WRITE), PRESENT | error_code::WRITE);
    assert_eq!(fault(&guest, 0x3000, USER), error_code::USER);
    assert_eq!(fault(&guest, 0x40_0000, Access { user: true, ..FETCH }), error_code::USER | error_code::FETCH);
    assert_eq!(walk(&guest, 0x2000, USER), Ok(0x5000));
    assert_eq!(walk(&guest, 0x2000, FETCH), Ok(0x5000));

    // Without CR0.WP a supervisor writes everywhere, a user does not.
    guest.vcpu.cr0 &= !(Cr0::CR0_WRITE_PROTECT.bits() as u64);
    assert_eq!(walk(&guest, 0x2000, WRITE), Ok(0x5000));
    assert_eq!(fault(&guest, 0x2000, Access { user: true, ..WRITE }), PRESENT | error_code::WRITE | error_code::USER);

    // SMEP and SMAP.
    guest.vcpu.cr4 |= (Cr4::CR4_ENABLE_SMEP | Cr4::CR4_ENABLE_SMAP).bits() as u64;
    assert_eq!(fault(&guest, 0x2000, FETCH), PRESENT | error_code::FETCH);
    assert_eq!(fault(&guest, 0x2000, READ), PRESENT);
    guest.vcpu.rflags |= RFlags::FLAGS_AC.bits();
    assert_eq!(walk(&guest, 0x2000, READ), Ok(0x5000));
    assert_eq!(fault(&guest, 0x2000, FETCH), PRESENT | error_code::FETCH);

    // Without NXE the no-execute bit is reserved, and error codes do not tell fetches but for SMEP.
    guest.vcpu.efer &= !Efer::NXE.bits();
    assert_eq!(fault(&guest, 0x1000, READ), PRESENT | RESERVED);
    guest.vcpu.cr4 = Cr4::CR4_ENABLE_PAE.bits() as u64;
    assert_eq!(fault(&guest, 0x1000, FETCH), PRESENT | RESERVED);
}

#[test]
fn rights_of_upper_entries_count() {
    for (shift, removed) in [(39, W), (30, U), (21, NX)] {
        let mut guest = TestGuest::long_mode();
        guest.map(LINEAR, 12, 0x5000 | P | W | U);
        let place = guest.entry_place(LINEAR, shift);
        let value = guest.read_u64(place);
        guest.write(place, &(value ^ removed).to_le_bytes());
        assert_eq!(walk(&guest, LINEAR, Access { write: true, fetch: false, user: true }).is_ok(), removed == NX);
        assert_eq!(walk(&guest, LINEAR, Access { write: false, fetch: true, user: true }).is_ok(), removed == W);
        assert_eq!(walk(&guest, LINEAR, READ), Ok(0x5000));
    }
}

#[test]
fn refuses_reserved_bits() {
    let reserved = Err(Fault::Page(error_code::PRESENT | error_code::RESERVED));
    let mut guest = TestGuest::long_mode();
    guest.map(0x20_0000, 21, 0x4000_0000 | P | entry::LARGE | 1 << 13);
    guest.map(0x4000_0000, 30, 0x4000_0000 | P | entry::LARGE | 1 << 29);
    guest.map(0x80_0000_0000, 39, P | entry::LARGE);
    assert_eq!(walk(&guest, 0x20_0000, READ), reserved);
    assert_eq!(walk(&guest, 0x4000_0000, READ), reserved);
    assert_eq!(walk(&guest, 0x80_0000_0000, READ), reserved);
    let mut guest = TestGuest::paging_pae();
    guest.map(0, 12, 0x5000 | P);
    guest.map(0x4000_0000, 30, P | W);
    assert_eq!(walk(&guest, 0, READ), Ok(0x5000));
    assert_eq!(walk(&guest, 0x4000_0000, READ), reserved);
    // QEMU's CPU marks the pointer at its first use.
    let place = guest.entry_place(0, 30);
    let pointer = guest.read_u64(place) | A;
    guest.write(place, &pointer.to_le_bytes());
    assert_eq!(walk(&guest, 0, READ), Ok(0x5000));
    let mut guest = TestGuest::paging_32bit();
    guest.map(0x40_0000, 22, P | entry::LARGE | 1 << 21);
    assert_eq!(walk(&guest, 0x40_0000, READ), reserved);
}

#[test]
fn marks_what_it_used() {
    let entries = |guest: &mut TestGuest, shifts: &[u32]| {
        let marks = |shift: &u32| {
            let place = guest.entry_place(0, *shift);
            guest.read_u64(place & !7) >> (place % 8 * 8) & (A | D)
        };
        shifts.iter().map(marks).collect::<Vec<_>>()
    };
    for (mut guest, shifts) in [
        (TestGuest::long_mode(), &[39, 30, 21, 12][..]),
        (TestGuest::paging_pae(), &[21, 12]),
        (TestGuest::paging_32bit(), &[22, 12]),
    ] {
        guest.map(0, 12, 0x5000 | P);
        assert!(walk(&guest, 0, USER).is_err());
        assert!(entries(&mut guest, shifts).iter().all(|bits| *bits == 0), "a fault marks nothing");
        assert_eq!(walk(&guest, 0, READ), Ok(0x5000));
        assert!(entries(&mut guest, shifts).iter().all(|bits| *bits == A));
        guest.vcpu.cr0 &= !(Cr0::CR0_WRITE_PROTECT.bits() as u64);
        assert_eq!(walk(&guest, 0, WRITE), Ok(0x5000));
        let (leaf, upper) = (entries(&mut guest, shifts).pop(), entries(&mut guest, &shifts[..1]));
        assert_eq!((leaf, upper), (Some(A | D), vec![A]));
    }
}

#[test]
fn tables_outside_of_ram_are_told() {
    let mut guest = TestGuest::long_mode();
    guest.map(0x20_0000, 21, 0x1_0000_0000 | P);
    assert_eq!(walk(&guest, 0x20_3000, READ), Err(Fault::TableOutsideRam(0x1_0000_0018)));
    guest.vcpu.cr3 = 0x7fff_f000;
    assert_eq!(walk(&guest, 0, READ), Err(Fault::TableOutsideRam(0x7fff_f000)));
}

#[test]
fn reads_code_across_pages() {
    let mut guest = TestGuest::long_mode();
    guest.map(0x1000, 12, 0x5000 | P);
    guest.write(0x5000, &(0..=255).cycle().take(4096).collect::<Vec<u8>>());
    guest.vcpu.rip = 0x1010;
    let mut bytes = [0; MAX_INSTRUCTION];
    assert_eq!(fetch(&guest.vcpu, &guest.memory, &mut bytes), Ok(15));
    assert_eq!(bytes, *(0x10..0x1f).collect::<Vec<u8>>());
    assert_eq!(peek(&guest.vcpu, &guest.memory), Ok([0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17]));
    assert_eq!(peek_usual(&guest.vcpu, &guest.memory), Some(0x1716_1514_1312_1110));

    guest.vcpu.rip = 0x1ffd;
    assert_eq!(peek(&guest.vcpu, &guest.memory), Ok([0xfd, 0xfe, 0xff, 0, 0, 0, 0, 0]));
    assert_eq!(fetch(&guest.vcpu, &guest.memory, &mut bytes), Ok(3));
    assert_eq!(peek_usual(&guest.vcpu, &guest.memory), None);
    assert_eq!(
        fetch_rest(&guest.vcpu, &guest.memory, &mut bytes, 3),
        Err(FetchFault::Translation(0x2000, Fault::Page(error_code::FETCH)))
    );
    guest.map(0x2000, 12, 0x6000 | P);
    guest.write(0x6000, &[0xaa; 16]);
    assert_eq!(fetch_rest(&guest.vcpu, &guest.memory, &mut bytes, 3), Ok(15));
    assert_eq!(bytes[..4], [0xfd, 0xfe, 0xff, 0xaa]);

    guest.map(0x3000, 12, 0x10_0000 | P);
    guest.vcpu.rip = 0x3004;
    assert_eq!(peek_usual(&guest.vcpu, &guest.memory), None);
    assert_eq!(fetch(&guest.vcpu, &guest.memory, &mut bytes), Err(FetchFault::OutsideRam(0x10_0004)));
}

#[test]
fn code_outside_64_bit_mode_has_a_base() {
    let mut guest = TestGuest::real_mode();
    guest.vcpu.segments[SegmentName::Cs as usize].base = 0x1_0000;
    guest.vcpu.rip = 0x234;
    guest.write(0x1_0234, &[0xf4]);
    let mut bytes = [0; MAX_INSTRUCTION];
    assert_eq!(fetch(&guest.vcpu, &guest.memory, &mut bytes), Ok(15));
    assert_eq!(bytes[0], 0xf4);
}

/// What the manuals say of a walk, written once more without regard for speed.
fn reference(guest: &TestGuest, linear: u64, access: Access) -> Result<u64, Fault> {
    let vcpu = &guest.vcpu;
    let nxe = vcpu.efer & Efer::NXE.bits() != 0;
    let (smep, smap) = (vcpu.cr4 >> 20 & 1 != 0, vcpu.cr4 >> 21 & 1 != 0);
    let mut code = 0;
    for (set, bit) in [
        (access.write, error_code::WRITE),
        (access.user, error_code::USER),
        (access.fetch && (nxe || smep), error_code::FETCH),
    ] {
        code |= if set { bit } else { 0 };
    }
    let mut table = vcpu.cr3;
    let (mut writable, mut user, mut executable) = (true, true, true);
    for shift in [39, 30, 21, 12] {
        let place = table + (linear >> shift & 511) * 8;
        let Some(value) = guest.memory.read_u64(place) else { return Err(Fault::TableOutsideRam(place)) };
        if value & P == 0 {
            return Err(Fault::Page(code));
        }
        let large = value & entry::LARGE != 0 && shift != 12;
        let must_be_zero = match (large, shift) {
            (true, 39) => entry::LARGE,
            (true, 30) => 0x3fff_e000,
            (true, _) => 0x1f_e000,
            _ => 0,
        };
        if value & must_be_zero != 0 || !nxe && value & NX != 0 {
            return Err(Fault::Page(code | error_code::PRESENT | error_code::RESERVED));
        }
        writable &= value & W != 0;
        user &= value & U != 0;
        executable &= value & NX == 0;
        if shift == 12 || large {
            let write_protect = vcpu.cr0 >> 16 & 1 != 0;
            let allowed = if access.user {
                user && (writable || !access.write)
            } else {
                let ac = vcpu.rflags >> 18 & 1 != 0;
                let data = access.fetch || !(smap && user && !ac);
                (writable || !access.write || !write_protect) && data && !(access.fetch && smep && user)
            };
            if !allowed || access.fetch && !executable {
                return Err(Fault::Page(code | error_code::PRESENT));
            }
            let size = 1 << shift;
            return Ok((value & entry::ADDRESS) / size * size + linear % size);
        }
        table = value & entry::ADDRESS;
    }
    unreachable!("the last level returns");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn agrees_with_the_manuals(
        flips in prop::collection::vec((0_u32..4, prop::sample::select(vec![0, 1, 2, 5, 6, 7, 13, 63])), 0..4),
        large in 0_u32..3,
        (write, fetch, user) in any::<(bool, bool, bool)>(),
        (cr0, cr4, efer, flags) in any::<(u64, u64, u64, u64)>(),
    ) {
        let mut guest = TestGuest::long_mode();
        let shift = 12 + 9 * large;
        guest.map(LINEAR, shift, 0x4000_0000 | P | W | U | if large == 0 { 0 } else { entry::LARGE });
        let places = [0, 1, 2, 3].map(|level: u32| guest.entry_place(LINEAR, 12 + 9 * level.max(large)));
        for (level, bit) in flips {
            let place = places[level as usize];
            guest.write(place, &(guest.read_u64(place) ^ 1 << bit).to_le_bytes());
        }
        guest.vcpu.cr0 |= cr0 & Cr0::CR0_WRITE_PROTECT.bits() as u64;
        guest.vcpu.cr0 &= !(cr0 >> 32 & 1 << 16);
        guest.vcpu.cr4 |= cr4 & (Cr4::CR4_ENABLE_SMEP | Cr4::CR4_ENABLE_SMAP).bits() as u64;
        guest.vcpu.efer &= !(efer & Efer::NXE.bits());
        guest.vcpu.rflags |= flags & RFlags::FLAGS_AC.bits();
        let access = Access { write: write && !fetch, fetch, user };
        let expected = reference(&guest, LINEAR + 0x678, access);
        prop_assert_eq!(walk(&guest, LINEAR + 0x678, access), expected);
        // Marking changed nothing of it.
        prop_assert_eq!(walk(&guest, LINEAR + 0x678, access), expected);
    }
}
