//! The probe's descriptor tables and its task state segment.

use core::arch::asm;
use core::cell::UnsafeCell;

use super::stub;
use super::vector;
use crate::xen;

/// Selectors of the probe's GDT.
pub mod selector {
    /// 64-bit code, ring 0.
    pub const KERNEL_CODE: u16 = 0x08;
    /// Data, ring 0.
    pub const KERNEL_DATA: u16 = 0x10;
    /// 64-bit code, ring 3.
    pub const USER_CODE: u16 = 0x18 | 3;
    /// Data, ring 3.
    pub const USER_DATA: u16 = 0x20 | 3;
    /// 32-bit code, ring 0.
    pub const CODE32: u16 = 0x28;
    /// 32-bit code, ring 3.
    pub const USER_CODE32: u16 = 0x30 | 3;
    /// Task state segment, two entries.
    pub const TSS: u16 = 0x38;
    /// 16-bit code, ring 0.
    pub const CODE16: u16 = 0x48;
    /// 16-bit data, ring 0.
    pub const DATA16: u16 = 0x50;
    /// For descriptors that checks make up, two entries.
    pub const SPARE: u16 = 0x58;
}

/// A descriptor table that the CPU and the checks write.
#[derive(Debug)]
#[repr(C, align(16))]
pub struct CpuTable<const N: usize>(UnsafeCell<[u64; N]>);

// SAFETY: the probe runs on one CPU.
unsafe impl<const N: usize> Sync for CpuTable<N> {}

impl<const N: usize> CpuTable<N> {
    const fn new(values: [u64; N]) -> Self {
        Self(UnsafeCell::new(values))
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.0.get() as u64
    }

    /// Sets a word.
    pub fn set(&self, index: usize, value: u64) {
        if index < N {
            // SAFETY: in bounds, and nobody holds a reference into it.
            unsafe { self.0.get().cast::<u64>().add(index).write_volatile(value) }
        }
    }

    /// Reads a word; 0 behind the end.
    #[must_use]
    pub fn get(&self, index: usize) -> u64 {
        if index < N {
            // SAFETY: as in `set`.
            unsafe { self.0.get().cast::<u64>().add(index).read_volatile() }
        } else {
            0
        }
    }
}

/// The GDT, by [`selector`].
pub static GDT: CpuTable<13> = CpuTable::new([
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00cf_9b00_0000_ffff,
    0x00cf_fb00_0000_ffff,
    0,
    0,
    0x0000_9b00_0000_ffff,
    0x0000_9300_0000_ffff,
    0,
    0,
]);

/// The IDT, two words a vector.
pub static IDT: CpuTable<512> = CpuTable::new([0; 512]);

/// The task state segment (APM vol. 2, 12.2.5), 104 bytes; fields lie at odd multiples of four.
pub static TSS: CpuTable<14> = CpuTable::new([0; 14]);

/// Stack for #DF and for entries from ring 3.
static OTHER_STACKS: CpuTable<2048> = CpuTable::new([0; 2048]);

/// GDTR and IDTR as LGDT and LIDT read them.
#[derive(Clone, Copy, Debug)]
#[repr(C, packed)]
pub struct TablePointer {
    /// Last byte.
    pub limit: u16,
    /// First byte.
    pub base: u64,
}

/// An interrupt gate to `address` in 64-bit code (APM vol. 2, 4.8.4).
#[must_use]
pub const fn gate(address: u64, stack: u64, privilege: u64) -> [u64; 2] {
    let low =
        address & 0xffff | 0x08 << 16 | stack << 32 | 0x8e00 << 32 | privilege << 45 | (address >> 16 & 0xffff) << 48;
    [low, address >> 32]
}

/// The top of the stack for entries from ring 3.
#[must_use]
pub fn user_entry_stack() -> u64 {
    OTHER_STACKS.address() + 8192
}

/// Points every vector to its stub.
pub fn fill_idt() {
    if xen::active() {
        xen::traps::fill();
        return;
    }
    for vector in 0..=u8::MAX {
        let stack = u64::from(vector == vector::DF);
        let privilege = if vector == vector::BP { 3 } else { 0 };
        let [low, high] = gate(stub(vector), stack, privilege);
        IDT.set(usize::from(vector) * 2, low);
        IDT.set(usize::from(vector) * 2 + 1, high);
    }
}

/// Sets the stack number `number` (1 to 7) of the interrupt stack table: below 4 GiB. (Fields of the TSS straddle two
/// words: RSP0 is at byte 4, IST1 at byte 36.)
pub fn set_interrupt_stack(number: usize, top: u64) {
    let before = TSS.get(3 + number) & 0xffff_ffff;
    TSS.set(3 + number, before | top << 32);
}

/// Gives a vector a gate of ring 0 to `address` and a stack of the interrupt stack table; 0: no other stack.
pub fn set_gate(number: u8, address: u64, stack: u64) {
    let [low, high] = gate(address, stack, 0);
    IDT.set(usize::from(number) * 2, low);
    IDT.set(usize::from(number) * 2 + 1, high);
}

/// Gives a vector its own stub, which code of ring `privilege` may go to by INT n.
pub fn open_gate(number: u8, privilege: u64) {
    if xen::active() {
        xen::traps::open(number, privilege);
        return;
    }
    let [low, high] = gate(stub(number), 0, privilege);
    IDT.set(usize::from(number) * 2, low);
    IDT.set(usize::from(number) * 2 + 1, high);
}

/// Sets GDT, TSS and IDT up, and loads them.
pub fn install() {
    let tss = TSS.address();
    GDT.set(7, 103 | (tss & 0xff_ffff) << 16 | 0x89 << 40 | (tss >> 24 & 0xff) << 56);
    GDT.set(8, tss >> 32);
    TSS.set(0, user_entry_stack() << 32);
    set_interrupt_stack(1, OTHER_STACKS.address() + 16384);
    TSS.set(12, 104 << 48);
    fill_idt();
    let gdtr = TablePointer { limit: 103, base: GDT.address() };
    load_idt(TablePointer { limit: 4095, base: IDT.address() });
    // SAFETY: the tables are complete, and the selectors are those of the tables that the entry code loaded.
    unsafe {
        asm!(
            "lgdt [{gdtr}]",
            "push {code}",
            "lea {scratch}, [rip + 2f]",
            "push {scratch}",
            "retfq",
            "2:",
            "mov ss, {data:e}",
            "mov ds, {data:e}",
            "mov es, {data:e}",
            "ltr {tss:x}",
            gdtr = in(reg) &raw const gdtr,
            code = in(reg) u64::from(selector::KERNEL_CODE),
            data = in(reg) u64::from(selector::KERNEL_DATA),
            tss = in(reg) u64::from(selector::TSS),
            scratch = out(reg) _,
        );
    }
}

/// LIDT.
pub fn load_idt(pointer: TablePointer) {
    // SAFETY: the caller's table is what exceptions go to; checks that break it on purpose restore it.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer, options(nostack, preserves_flags)) }
}
