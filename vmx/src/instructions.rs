//! Instructions of VMX and of the state that VM exits do not bring back whole, one small function each.

use core::arch::asm;

use crate::field::Field;

/// An instruction of VMX failed (SDM vol. 3, 31.2): without a current VMCS, or with a number in
/// [`Field::INSTRUCTION_ERROR`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failed;

/// Defines instructions that take the physical address of a VMCS or a VMXON region, in memory.
macro_rules! on_region {
    ($(#[$attribute:meta])* $name:ident, $instruction:literal) => {
        $(#[$attribute])*
        #[inline]
        pub(crate) unsafe fn $name(region: u64) -> Result<(), Failed> {
            let failed: u8;
            // SAFETY: by the caller.
            unsafe { asm!(concat!($instruction, " qword ptr [{}]"), "setbe {}", in(reg) &raw const region, out(reg_byte) failed, options(nostack)) };
            if failed == 0 { Ok(()) } else { Err(Failed) }
        }
    };
}
on_region! {
    /// Switches VMX operation on.
    ///
    /// # Safety
    /// Ring 0, CR4.VMXE is set, FEATURE_CONTROL allows it, and nobody is in VMX operation on this CPU. The region is a page
    /// of ours with the revision in it, until [`vmxoff`].
    vmxon, "vmxon"
}
on_region! {
    /// Writes a VMCS back to memory, and makes it inactive and not launched.
    ///
    /// # Safety
    /// Ring 0 in VMX operation; the region is a page of ours, and active on no other CPU.
    vmclear, "vmclear"
}
on_region! {
    /// Makes a VMCS the current one.
    ///
    /// # Safety
    /// As [`vmclear`]; the region has the revision in it.
    vmptrld, "vmptrld"
}

/// Switches VMX operation off.
///
/// # Safety
/// Ring 0 in VMX operation; no VMCS is active.
pub(crate) unsafe fn vmxoff() {
    // SAFETY: by the caller.
    unsafe { asm!("vmxoff", options(nostack)) };
}

/// Reads a field of the current VMCS.
///
/// # Safety
/// Ring 0 in VMX operation, a VMCS is current, and the CPU has the field.
#[inline(always)]
pub(crate) unsafe fn vmread(field: Field) -> u64 {
    let value;
    // SAFETY: by the caller; it fails only without a current VMCS or for a field that the CPU does not have.
    unsafe { asm!("vmread {}, {}", out(reg) value, in(reg) u64::from(field.0), options(nomem, nostack)) };
    value
}

/// Writes a field of the current VMCS; one that the CPU does not have it leaves alone (VMfailValid).
///
/// # Safety
/// Ring 0 in VMX operation, a VMCS of ours is current, and the field is not read-only. The CPU checks the value at entry.
#[inline(always)]
pub(crate) unsafe fn vmwrite(field: Field, value: u64) {
    // SAFETY: by the caller.
    unsafe { asm!("vmwrite {}, {}", in(reg) u64::from(field.0), in(reg) value, options(nomem, nostack)) };
}

/// Forgets translations by EPT of one root (SDM vol. 3, 31.3, INVEPT type 1).
///
/// # Safety
/// Ring 0 in VMX operation, and the CPU has this type of INVEPT.
pub(crate) unsafe fn invept_single(pointer: u64) {
    let descriptor = [pointer, 0];
    // SAFETY: by the caller.
    unsafe { asm!("invept {}, xmmword ptr [{}]", in(reg) 1_u64, in(reg) &raw const descriptor, options(nostack)) };
}

/// Forgets all translations by any EPT (type 2).
///
/// # Safety
/// As [`invept_single`].
pub(crate) unsafe fn invept_all() {
    let descriptor = [0_u64; 2];
    // SAFETY: by the caller.
    unsafe { asm!("invept {}, xmmword ptr [{}]", in(reg) 2_u64, in(reg) &raw const descriptor, options(nostack)) };
}

/// Forgets translations with one VPID (SDM vol. 3, 31.3, INVVPID type 1).
///
/// # Safety
/// Ring 0 in VMX operation, the CPU has this type of INVVPID, and the VPID is not 0.
pub(crate) unsafe fn invvpid_single(vpid: u16) {
    let descriptor = [u64::from(vpid), 0];
    // SAFETY: by the caller.
    unsafe { asm!("invvpid {}, xmmword ptr [{}]", in(reg) 1_u64, in(reg) &raw const descriptor, options(nostack)) };
}

/// Forgets translations with any VPID but 0 (type 2).
///
/// # Safety
/// As [`invvpid_single`].
pub(crate) unsafe fn invvpid_all() {
    let descriptor = [0_u64; 2];
    // SAFETY: by the caller.
    unsafe { asm!("invvpid {}, xmmword ptr [{}]", in(reg) 2_u64, in(reg) &raw const descriptor, options(nostack)) };
}

/// GDTR or IDTR as the instructions store it: a limit of 16 bits, then the base.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, packed)]
pub(crate) struct TableRegister {
    /// Limit.
    pub(crate) limit: u16,
    /// Base.
    pub(crate) base: u64,
}

/// GDTR.
#[inline]
pub(crate) fn sgdt() -> TableRegister {
    let mut table = TableRegister::default();
    // SAFETY: it stores ten bytes into a variable of that size; ring 0 may.
    unsafe { asm!("sgdt [{}]", in(reg) &raw mut table, options(nostack, preserves_flags)) };
    table
}

/// IDTR.
#[inline]
pub(crate) fn sidt() -> TableRegister {
    let mut table = TableRegister::default();
    // SAFETY: as sgdt().
    unsafe { asm!("sidt [{}]", in(reg) &raw mut table, options(nostack, preserves_flags)) };
    table
}

/// Loads GDTR and IDTR.
///
/// # Safety
/// Ring 0; these are the host's own.
#[inline]
pub(crate) unsafe fn load_tables(gdt: &TableRegister, idt: &TableRegister) {
    // SAFETY: by the caller.
    unsafe { asm!("lgdt [{}]", "lidt [{}]", in(reg) gdt, in(reg) idt, options(nostack, preserves_flags)) };
}

/// Defines readers of selectors.
macro_rules! selector {
    ($name:ident, $instruction:literal) => {
        #[doc = concat!("The selector that `", $instruction, "` gives.")]
        #[inline]
        pub(crate) fn $name() -> u16 {
            let value: u16;
            // SAFETY: reading a selector has no effect; ring 0 may read TR's.
            unsafe { asm!($instruction, out(reg) value, options(nomem, nostack, preserves_flags)) };
            value
        }
    };
}
selector!(read_cs, "mov {0:x}, cs");
selector!(read_ss, "mov {0:x}, ss");
selector!(read_ds, "mov {0:x}, ds");
selector!(read_es, "mov {0:x}, es");
selector!(read_fs, "mov {0:x}, fs");
selector!(read_gs, "mov {0:x}, gs");
selector!(read_tr, "str {0:x}");

/// Loads DS and ES.
///
/// # Safety
/// Ring 0; the host had these selectors.
pub(crate) unsafe fn load_ds_es(ds: u16, es: u16) {
    // SAFETY: by the caller.
    unsafe { asm!("mov ds, {0:x}", "mov es, {1:x}", in(reg) ds, in(reg) es, options(nostack, preserves_flags)) };
}

/// Loads FS's selector, which loads its base too: the caller restores that.
///
/// # Safety
/// Ring 0; the host had this selector, and nobody uses FS until its base is right again.
pub(crate) unsafe fn load_fs(fs: u16) {
    // SAFETY: by the caller.
    unsafe { asm!("mov fs, {0:x}", in(reg) fs, options(nostack, preserves_flags)) };
}

/// Loads GS's selector, whose base in the descriptor goes where SWAPGS takes it from: GS's own base stays the host's at every
/// instruction at which an NMI could come.
///
/// # Safety
/// Ring 0; the host had this selector, and `KERNEL_GS_BASE` is written afterwards.
pub(crate) unsafe fn load_gs(gs: u16) {
    // SAFETY: by the caller. An NMI between the two swaps finds a user's base, as at the kernel's entry from there, which its
    // handler is made for.
    unsafe { asm!("swapgs", "mov gs, {0:x}", "mfence", "swapgs", in(reg) gs, options(nostack, preserves_flags)) };
}
