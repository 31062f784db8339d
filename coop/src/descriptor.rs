//! Descriptor tables of the monitor's world and of the crossing (SDM vol. 3, 3.4.5, 6.14.1 and 8.7).

use covisor_monitor::area::Area;
use covisor_monitor::area::Frame;
use covisor_monitor::layout;
use covisor_monitor::layout::PAGE;
use covisor_monitor::layout::selector;

use crate::pages::to_usize;

/// Bits of a segment's descriptor.
mod segment {
    /// Accessed: set from the start, so that the CPU need not.
    pub(super) const ACCESSED: u64 = 1 << 40;
    /// Code can be read, data can be written.
    pub(super) const READABLE_WRITABLE: u64 = 1 << 41;
    /// Code, else data.
    pub(super) const CODE: u64 = 1 << 43;
    /// Code or data, else a system segment.
    pub(super) const ORDINARY: u64 = 1 << 44;
    /// For ring 3.
    pub(super) const RING3: u64 = 3 << 45;
    /// Present.
    pub(super) const PRESENT: u64 = 1 << 47;
    /// 64-bit code.
    pub(super) const LONG: u64 = 1 << 53;
    /// 32-bit code or data.
    pub(super) const BIG: u64 = 1 << 54;
    /// From 0 to 4 GiB.
    pub(super) const FLAT: u64 = 0xffff | 0xf << 48 | 1 << 55;
    /// System segment: an LDT.
    pub(super) const LDT: u64 = 2 << 40;
    /// System segment: a 64-bit task state segment that is not in use.
    pub(super) const TSS: u64 = 9 << 40;
}

/// Gates: an interrupt gate, present.
const INTERRUPT_GATE: u64 = 0x8e << 40;
/// Gates: ring 3 may use it by INT.
const GATE_RING3: u64 = 3 << 45;

/// Vectors with stacks of their own, in the order of the interrupt stack table from 1 on: NMI, machine check, debug exception,
/// double fault.
const OWN_STACK: [u8; to_usize(layout::IST_STACK_COUNT)] = [2, 18, 1, 8];
/// Vectors that programs of the guest's raise: breakpoint, overflow, and the system calls of 32-bit programs.
const RAISED_BY_PROGRAMS: [u8; 3] = [3, 4, 0x80];

/// Bytes of a task state segment.
const TSS_SIZE: u16 = 104;
/// Offset of RSP0 in it, in words of 32 bits.
const TSS_RSP0: usize = 1;
/// As above, of the first entry of the interrupt stack table.
const TSS_IST: usize = 9;
/// As above, of the word in whose upper half is the offset of the I/O permission map.
const TSS_IO_MAP: usize = 25;

/// A segment from 0 to the end.
const fn flat(bits: u64) -> u64 {
    use segment::ACCESSED;
    use segment::FLAT;
    use segment::ORDINARY;
    use segment::PRESENT;
    use segment::READABLE_WRITABLE;
    FLAT | PRESENT | ORDINARY | ACCESSED | READABLE_WRITABLE | bits
}

/// The monitor's code and data, which the crossing has in its GDT at the same selectors.
pub(crate) const RING0: [(u16, u64); 2] =
    [(selector::RING0_CODE, flat(segment::CODE | segment::LONG)), (selector::RING0_DATA, flat(segment::BIG))];

/// What every guest has.
const RING3: [(u16, u64); 3] = [
    (selector::RING3_CODE32, flat(segment::CODE | segment::BIG | segment::RING3)),
    (selector::RING3_DATA, flat(segment::BIG | segment::RING3)),
    (selector::RING3_CODE64, flat(segment::CODE | segment::LONG | segment::RING3)),
];

/// A system segment; its descriptor is two entries long.
const fn system(kind: u64, base: u64, limit: u16) -> [u64; 2] {
    let low = limit as u64 | (base & 0xff_ffff) << 16 | (base >> 24 & 0xff) << 56;
    [low | kind | segment::PRESENT, base >> 32]
}

/// Index of a selector's descriptor in its page.
pub(crate) const fn index(selector: u16) -> usize {
    selector as usize % to_usize(PAGE) / 8
}

/// What the page of the GDT has that is the monitor's own: words, and their indices. (Pages as values are too large for the stack of
/// a host's kernel.)
pub(crate) fn own_page() -> impl Iterator<Item = (usize, u64)> {
    let ordinary = RING0.into_iter().chain(RING3).map(|(selector, descriptor)| (index(selector), descriptor));
    let tss = system(segment::TSS, layout::TSS, TSS_SIZE - 1);
    #[expect(clippy::cast_possible_truncation, reason = "16 pages are 64 KiB, so their last byte has a 16-bit offset")]
    let ldt = system(segment::LDT, layout::LDT, (layout::LDT_PAGES * PAGE - 1) as u16);
    let systems = [(selector::TSS, tss), (selector::LDT, ldt)];
    ordinary.chain(systems.into_iter().flat_map(|(selector, words)| (index(selector)..).zip(words)))
}

/// A gate to the monitor's ring 0: to `handler`, with stack `ist` of the interrupt stack table, or for 0 the current one.
pub(crate) const fn gate(handler: u64, ist: u8) -> [u64; 2] {
    let low = handler & 0xffff
        | (selector::RING0_CODE as u64) << 16
        | (ist as u64 & 7) << 32
        | (handler >> 16 & 0xffff) << 48;
    [low | INTERRUPT_GATE, handler >> 32]
}

/// The gates of the monitor's IDT, by vector.
pub(crate) fn interrupt_table() -> impl Iterator<Item = [u64; 2]> {
    (0_u8..=255).map(|vector| {
        let own_stack = (1..).zip(OWN_STACK).find(|(_, has)| *has == vector);
        let handler = layout::STUBS + u64::from(vector) * layout::STUB_SIZE;
        let [low, high] = gate(handler, own_stack.map_or(0, |(ist, _)| ist));
        [if RAISED_BY_PROGRAMS.contains(&vector) { low | GATE_RING3 } else { low }, high]
    })
}

/// The monitor's task state segment: where traps of ring 3 push to, and the stacks of those that need one of their own. The I/O
/// permission map lies behind the limit: ring 3 has no port.
pub(crate) fn task_state() -> [u32; TSS_SIZE as usize / 4] {
    let mut words = [0; TSS_SIZE as usize / 4];
    let mut set = |word: usize, address: u64| {
        let bytes = address.to_le_bytes();
        for (word, bytes) in words[word..].iter_mut().zip(bytes.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
    };
    let frame_end = core::mem::offset_of!(Area, frame) + size_of::<Frame>();
    set(TSS_RSP0, layout::AREA + frame_end as u64);
    for (number, stack) in (0..layout::IST_STACK_COUNT).zip(0..) {
        set(TSS_IST + 2 * stack, layout::IST_STACKS + (number + 1) * PAGE);
    }
    words[TSS_IO_MAP] = u32::from(TSS_SIZE) << 16;
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_page_has_what_selectors_promise() {
        let mut page = [0; 512];
        for (index, word) in own_page() {
            page[index] = word;
        }
        let descriptor = |selector: u16| page[index(selector)];
        assert_eq!(descriptor(selector::RING0_CODE), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(selector::RING0_DATA), 0x00cf_9300_0000_ffff);
        assert_eq!(descriptor(selector::RING3_CODE32), 0x00cf_fb00_0000_ffff);
        assert_eq!(descriptor(selector::RING3_DATA), 0x00cf_f300_0000_ffff);
        assert_eq!(descriptor(selector::RING3_CODE64), 0x00af_fb00_0000_ffff);
        assert_eq!(page[8..12], [0x0000_8912_0000_0067, 0xffff_8080, 0x0000_8216_0000_ffff, 0xffff_8080]);
        assert_eq!(page.iter().filter(|descriptor| **descriptor != 0).count(), 9);
        // SYSCALL takes SS from behind CS, SYSRET SS and the 64-bit CS from behind the 32-bit one (SDM vol. 2, SYSCALL, SYSRET).
        assert_eq!(selector::RING0_DATA, selector::RING0_CODE + 8);
        assert_eq!(
            (selector::RING3_DATA, selector::RING3_CODE64),
            (selector::RING3_CODE32 + 8, selector::RING3_CODE32 + 16)
        );
    }

    #[test]
    fn gates_lead_to_the_stubs_on_the_right_stacks() {
        assert_eq!(interrupt_table().count(), 256);
        for (vector, [low, high]) in interrupt_table().enumerate() {
            let handler = high << 32 | low >> 32 & 0xffff_0000 | low & 0xffff;
            assert_eq!(handler, layout::STUBS + 16 * vector as u64);
            assert_eq!(low >> 16 & 0xffff, 0xe008);
            let expected = match vector {
                1 => 0x8e03,
                2 => 0x8e01,
                8 => 0x8e04,
                18 => 0x8e02,
                3 | 4 | 0x80 => 0xee00,
                _ => 0x8e00,
            };
            assert_eq!(low >> 32 & 0xffff, expected, "vector {vector}");
        }
    }

    #[test]
    fn task_state_has_the_stacks_and_no_ports() {
        let words = task_state();
        let address = |word: usize| u64::from(words[word + 1]) << 32 | u64::from(words[word]);
        assert_eq!(address(1), layout::AREA + 192);
        assert_eq!(address(9), layout::IST_STACKS + 0x1000);
        assert_eq!(address(15), layout::IST_STACKS + 0x4000);
        assert_eq!((address(17), words[25]), (0, 104 << 16));
    }
}
