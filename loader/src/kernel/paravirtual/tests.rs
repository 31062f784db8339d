//! Starts of a kernel made by hand, seen as the kernel would.

use std::io::Cursor;

use covisor_abi::VcpuState;
use proptest::prelude::*;
use vm_memory::Bytes;
use vm_memory::GuestAddress;

use super::layout::WINDOW_MAX;
use super::*;
use crate::kernel::Image;
use crate::kernel::KernelFile;
use crate::kernel::testing::elf_with_notes;
use crate::layout::Ram;
use crate::platform::GuestRam;

const MIB: u64 = 1 << 20;
const BASE: u64 = 0xffff_ffff_8000_0000;
const FRAME_LIST: u64 = 0x80_0000_0000;
/// Where Debian's kernel for clouds begins and ends.
const KERNEL: (u64, u64) = (0x100_0000, 0x3e0_0000);
const ENTRY: u64 = BASE + KERNEL.0 + 0x10;
const MASK: u64 = 0x000f_ffff_ffff_f000;

fn number(value: u64) -> Vec<u8> {
    value.to_le_bytes().to_vec()
}

fn text(value: &str) -> Vec<u8> {
    format!("{value}\0").into_bytes()
}

/// The notes of Debian 12's kernel for clouds, as far as they are looked at.
fn notes() -> Vec<(u32, Vec<u8>)> {
    vec![
        (6, text("linux")),
        (7, text("2.6")),
        (5, text("xen-3.0")),
        (3, number(BASE)),
        (4, number(0)),
        (15, number(FRAME_LIST)),
        (1, number(ENTRY)),
        (10, text("!writable_page_tables|pae_pgdir_above_4gb")),
        (8, text("generic")),
        (16, number(1)),
        (18, 0x100_0000u32.to_le_bytes().to_vec()),
    ]
}

/// [`notes`] with another value of one type, or without it.
fn changed(kind: u32, value: Option<Vec<u8>>) -> Vec<(u32, Vec<u8>)> {
    let mut notes = notes();
    notes.retain(|note| note.0 != kind);
    notes.extend(value.map(|value| (kind, value)));
    notes
}

fn kernel(notes: &[(u32, Vec<u8>)]) -> Vec<u8> {
    elf_with_notes(&[(KERNEL.0, 4096, KERNEL.1 - KERNEL.0)], KERNEL.0, notes)
}

fn plan_of(file: &[u8], ram: u64, initrd: Option<u64>) -> Result<Plan, KernelError> {
    let Image::Elf(image) = Image::parse(&mut Cursor::new(file))? else { panic!("it is an ELF file") };
    plan(&image, &Request { ram: Ram::new(ram), command_line: "console=hvc0", initrd_size: initrd })
}

fn refusal(notes: &[(u32, Vec<u8>)]) -> KernelError {
    plan_of(&kernel(notes), 512 * MIB, None).unwrap_err()
}

/// A guest before its first instruction.
struct Guest {
    ram: GuestRam,
    state: VcpuState,
    plan: Plan,
}

impl Guest {
    fn new(notes: &[(u32, Vec<u8>)], size: u64, initrd: Option<&[u8]>) -> Self {
        let file = kernel(notes);
        let plan = plan_of(&file, size, initrd.map(|bytes| bytes.len() as u64)).unwrap();
        let ram = crate::sys::memory::anonymous(&[(GuestAddress(0), usize::try_from(size).unwrap())]);
        let mut initrd_file = initrd.map(|bytes| {
            let mut file = tempfile::tempfile().unwrap();
            std::io::Write::write_all(&mut file, bytes).unwrap();
            file
        });
        let state = plan.execute(&ram, &mut KernelFile::Decompressed(Cursor::new(file)), initrd_file.as_mut()).unwrap();
        Self { ram, state, plan }
    }

    fn word(&self, address: u64) -> u64 {
        self.ram.read_obj(GuestAddress(address)).unwrap()
    }

    /// The entry that maps a virtual address, by the CPU's rules.
    fn leaf(&self, address: u64) -> Option<u64> {
        let mut table = self.state.cr3;
        for shift in [39, 30, 21, 12] {
            let entry = self.word(table + (address >> shift & 0x1ff) * 8);
            if shift == 12 || entry & 1 == 0 {
                return (entry & 1 != 0).then_some(entry);
            }
            // Writable, and the user's.
            assert_eq!(entry & 0x87, 7);
            table = entry & MASK;
        }
        unreachable!("the last level returns")
    }

    /// The field of `start_info` at this offset.
    fn info(&self, offset: u64) -> u64 {
        self.word((self.leaf(self.state.gprs[6]).unwrap() & MASK) + offset)
    }

    /// The page tables, by a walk of them.
    fn tables(&self) -> Vec<u64> {
        let mut all = vec![self.state.cr3];
        let mut level = all.clone();
        for _ in 0..3 {
            level = level.iter().flat_map(|table| (0..512).map(move |i| self.word(table + i * 8))).collect();
            level.retain(|entry| entry & 1 != 0);
            level.iter_mut().for_each(|entry| *entry &= MASK);
            all.extend(&level);
        }
        all
    }
}

#[test]
fn test_the_layout_is_that_of_xens_own_builder() {
    // Measured with Debian's kernel in 256 MiB, less the page of xenstore, which is not there.
    let layout = Layout::new(KERNEL.1, 256 * MIB, 10).unwrap();
    assert_eq!(layout.start_info, 0x3e0_0000);
    assert_eq!(layout.console_ring, 0x3e0_1000);
    assert_eq!(layout.page_tables, 0x3e0_2000);
    assert_eq!(layout.page_table_pages(), 0x23);
    assert_eq!(layout.stack, 0x3e2_5000);
    assert_eq!(layout.window_end, 0x400_0000);
    assert_eq!(layout.initrd, Some((0x400_0000, 10)));
    assert_eq!(layout.frame_list, 0x400_1000);
    assert_eq!((layout.frame_list_pages(), layout.frame_list_tables), (128, 0x408_1000));
    assert_eq!(layout.end, 0x408_4000);
}

#[test]
fn test_the_kernel_finds_itself_mapped_at_its_base() {
    let guest = Guest::new(&notes(), 128 * MIB, None);
    assert_eq!(guest.state.rip, ENTRY);
    assert_eq!(guest.word(guest.leaf(ENTRY).unwrap() & MASK), u64::from_le_bytes([0xf4; 8]));
    let tables = guest.tables();
    for frame in 0..0x4000 {
        let entry = guest.leaf(BASE + frame * PAGE_SIZE).unwrap();
        assert_eq!(entry & MASK, frame * PAGE_SIZE);
        let is_table = tables.contains(&(frame * PAGE_SIZE));
        assert_eq!(entry & 0x27, if is_table { 0x25 } else { 0x27 }, "frame {frame:#x}");
    }
    assert_eq!(guest.leaf(BASE + 0x4000 * PAGE_SIZE), None);
    assert_eq!(guest.leaf(0), None);
    let stack = guest.state.gprs[4];
    assert!(stack.is_multiple_of(PAGE_SIZE) && guest.leaf(stack - 8).unwrap() & 2 != 0);
}

#[test]
fn test_every_page_table_of_the_window_is_where_the_kernel_is_told() {
    let guest = Guest::new(&notes(), 128 * MIB, None);
    let (base, count) = (guest.info(88), guest.info(96));
    assert_eq!(guest.leaf(base).unwrap() & MASK, guest.state.cr3);
    let told = guest.state.cr3..guest.state.cr3 + count * PAGE_SIZE;
    let list = guest.info(1152) * PAGE_SIZE..(guest.info(1152) + guest.info(1160)) * PAGE_SIZE;
    let (window, others): (Vec<_>, Vec<_>) = guest.tables().into_iter().partition(|table| told.contains(table));
    assert_eq!(window.len() as u64, count);
    assert!(!others.is_empty() && others.iter().all(|table| list.contains(table)));
}

#[test]
fn test_the_list_of_frames_counts_up() {
    let guest = Guest::new(&notes(), 128 * MIB, None);
    assert_eq!((guest.info(32), guest.info(104)), (128 * MIB / PAGE_SIZE, FRAME_LIST));
    for frame in 0..guest.info(32) {
        let address = FRAME_LIST + frame * 8;
        let place = guest.leaf(address).unwrap() & MASK;
        assert_eq!(guest.word(place + address % PAGE_SIZE), frame);
        assert!((guest.info(1152)..guest.info(1152) + guest.info(1160)).contains(&(place / PAGE_SIZE)));
    }
    assert_eq!(guest.leaf(FRAME_LIST + 128 * MIB / PAGE_SIZE * 8), None);
}

#[test]
fn test_the_kernel_is_told_of_everything() {
    let guest = Guest::new(&notes(), 128 * MIB, Some(b"initrd"));
    let place = guest.leaf(guest.state.gprs[6]).unwrap() & MASK;
    let mut magic = [0; 15];
    guest.ram.read_slice(&mut magic, GuestAddress(place)).unwrap();
    assert_eq!(&magic, b"xen-3.0-x86_64\0");
    assert_eq!(guest.info(40), 0xfed0_0000, "shared_info");
    assert_eq!(guest.info(48), 0x18, "flags");
    assert_eq!((guest.info(56), guest.info(64)), (0, 0), "xenstore");
    assert_eq!(Some(guest.info(72) * PAGE_SIZE), guest.plan.console_ring());
    assert_eq!(guest.info(80), 1, "console_evtchn");
    let mut line = [0; 13];
    guest.ram.read_slice(&mut line, GuestAddress(place + 128)).unwrap();
    assert_eq!(&line, b"console=hvc0\0");
    assert_eq!(guest.info(120), 6);
    let mut initrd = [0; 7];
    guest.ram.read_slice(&mut initrd, GuestAddress(guest.info(112) * PAGE_SIZE)).unwrap();
    assert_eq!(&initrd, b"initrd\0");
    let without = Guest::new(&notes(), 128 * MIB, None);
    assert_eq!((without.info(112), without.info(120)), (0, 0));
}

#[test]
fn test_the_first_registers_are_those_of_64_bit_code() {
    let state = Guest::new(&notes(), 128 * MIB, None).state;
    assert_eq!((state.cr0, state.cr4, state.efer), (0x8000_0011, 0x20, 0x500));
    assert_eq!(state.segments[1].attributes, 0xa9b);
    assert_eq!((state.gdtr.base, state.gdtr.limit), (0, 0));
}

#[test]
fn test_a_page_for_calls_is_filled() {
    let page = KERNEL.0 + 0x3000;
    let guest = Guest::new(&changed(2, Some(number(BASE + page))), 128 * MIB, None);
    let mut bytes = vec![0; 4096];
    guest.ram.read_slice(&mut bytes, GuestAddress(page)).unwrap();
    assert_eq!(bytes, hypercall_page::bytes());
    for bad in [BASE + page + 8, BASE, BASE + KERNEL.1, page, u64::MAX - 4095] {
        assert!(matches!(refusal(&changed(2, Some(number(bad)))), KernelError::ParavirtualForm(_)), "{bad:#x}");
    }
}

#[test]
fn test_kernels_without_xen_pv_are_refused_with_what_to_take_instead() {
    for notes in [
        vec![],
        vec![(18, 0x100_0000u32.to_le_bytes().to_vec())],
        changed(1, None),
        changed(6, Some(text("NetBSD"))),
        changed(8, None),
    ] {
        let error = refusal(&notes).to_string();
        assert!(error.contains("CONFIG_XEN_PV") && error.contains("linux-image-cloud-amd64"), "{error}");
    }
}

#[test]
fn test_forms_of_xen_pv_that_we_do_not_have_are_refused() {
    for notes in [
        changed(3, None),
        changed(3, Some(number(BASE + 4096))),
        changed(3, Some(number(0xffff_8000_0000_0000))),
        changed(3, Some(number(0x8000_0000_0000))),
        changed(3, Some(number(u64::MAX))),
        changed(4, Some(number(BASE))),
        changed(10, Some(text("!writable_page_tables|!auto_translated_physmap"))),
        changed(15, None),
        changed(15, Some(number(BASE - (1 << 30)))),
        changed(15, Some(number(FRAME_LIST + 4096))),
        changed(16, Some(number(0))),
    ] {
        let error = refusal(&notes);
        assert!(matches!(error, KernelError::ParavirtualForm(_)), "{error}");
    }
    assert!(matches!(refusal(&changed(1, Some(number(KERNEL.0)))), KernelError::EntryOutside(_)));
    assert!(matches!(refusal(&changed(1, Some(number(BASE + KERNEL.1)))), KernelError::EntryOutside(_)));
    assert!(matches!(refusal(&changed(1, Some(vec![0; 3]))), KernelError::Damaged(_)));
}

#[test]
fn test_too_little_ram_is_told() {
    let file = kernel(&notes());
    for ram in [1, 62 * MIB, 63 * MIB + 4096, 64 * MIB] {
        let error = plan_of(&file, ram, None).unwrap_err();
        assert!(matches!(error, KernelError::DoesNotFit { .. }), "{error}");
    }
    assert!(plan_of(&file, 65 * MIB, None).is_ok());
    for size in [64 * MIB, u64::MAX] {
        let error = plan_of(&file, 128 * MIB, Some(size)).unwrap_err();
        assert!(matches!(error, KernelError::InitrdTooLarge { .. }), "{error}");
    }
    assert!(plan_of(&file, 128 * MIB, Some(63 * MIB)).is_ok());
}

#[test]
fn test_a_long_command_line_is_refused() {
    let Image::Elf(image) = Image::parse(&mut Cursor::new(kernel(&notes()))).unwrap() else { panic!("an ELF file") };
    for (len, fits) in [(1023, true), (1024, false)] {
        let command_line = &"x".repeat(len);
        let request = Request { ram: Ram::new(128 * MIB), command_line, initrd_size: None };
        assert_eq!(plan(&image, &request).is_ok(), fits);
    }
}

#[test]
fn test_a_kernel_larger_than_its_window_is_refused() {
    for end in [WINDOW_MAX - 4096, WINDOW_MAX, WINDOW_MAX + 1, u64::MAX] {
        let error = Layout::new(end, 3 << 30, 0).unwrap_err();
        assert!(matches!(error, KernelError::ParavirtualForm(_)), "{error}");
    }
    assert!(Layout::new(WINDOW_MAX - 8 * MIB, 3 << 30, 0).is_ok());
}

proptest! {
    #[test]
    fn test_a_layout_has_no_overlap_and_ends_in_ram(
        kernel_end in 0..2 * WINDOW_MAX,
        ram in 0..4u64 << 30,
        initrd in prop_oneof![Just(0), 0..1u64 << 30, any::<u64>()],
    ) {
        let Ok(layout) = Layout::new(kernel_end, ram, initrd) else { return Ok(()) };
        let places = [
            kernel_end,
            layout.start_info,
            layout.console_ring,
            layout.page_tables,
            layout.stack,
            layout.window_end - 1,
            layout.initrd.map_or(layout.window_end, |(start, _)| start),
            layout.initrd.map_or(layout.window_end, |(start, size)| start + size),
            layout.frame_list,
            layout.frame_list_tables,
            layout.end,
            ram + 1,
        ];
        prop_assert!(places.is_sorted(), "{places:x?}");
        prop_assert!(layout.window_end - layout.stack >= PAGE_SIZE + (512 << 10));
        prop_assert_eq!(layout.page_table_pages(), 3 + layout.window_end / (2 * MIB));
        prop_assert!(layout.frame_list_pages() * 512 >= ram / PAGE_SIZE);
    }

    #[test]
    fn test_hostile_notes_never_panic(
        replaced in prop::collection::vec(
            (1..19u32, prop_oneof![
                any::<u64>().prop_map(number),
                (0..5u64).prop_map(|i| number(BASE.wrapping_add(i << 30))),
                prop::collection::vec(any::<u8>(), 0..40),
                "[!|a-z_]{0,20}".prop_map(|value| text(&value)),
            ]),
            0..4,
        ),
        damage in prop::collection::vec((0usize..2000, any::<u8>()), 0..4),
        ram in 0..1000u64,
    ) {
        let mut notes = notes();
        for (kind, value) in replaced {
            notes.insert(0, (kind, value));
        }
        let mut file = kernel(&notes);
        let (start, len) = (4096 + 64 + 2 * 56, file.len());
        for (at, value) in damage {
            file[start + at % (len - start)] = value;
        }
        if let Ok(plan) = plan_of(&file, ram * MIB, None) {
            for (address, bytes) in &plan.blobs {
                prop_assert!(address + bytes.len() as u64 <= ram * MIB);
            }
        }
    }
}
