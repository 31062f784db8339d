//! Privileged instructions that only this engine needs.

use core::arch::asm;

use covisor_monitor::crossing::TablePointer;

/// Defines a reader of a descriptor table's register.
macro_rules! table {
    ($read:ident, $store:literal) => {
        pub(crate) fn $read() -> TablePointer {
            let mut table = TablePointer::default();
            // SAFETY: stores 10 bytes, which the value has from its operand on.
            unsafe {
                asm!(
                    concat!($store, " [{} + {}]"),
                    in(reg) &raw mut table,
                    const TablePointer::OPERAND,
                    options(nostack, preserves_flags),
                );
            }
            table
        }
    };
}

table!(sgdt, "sgdt");
table!(sidt, "sidt");

/// Defines a reader of a selector.
macro_rules! selector {
    ($read:ident, $instruction:literal) => {
        #[inline]
        pub(crate) fn $read() -> u16 {
            let value: u32;
            // SAFETY: reads a selector.
            unsafe { asm!($instruction, out(reg) value, options(nomem, nostack, preserves_flags)) };
            // A selector in a register of 32 bits has its upper half clear.
            value.to_le_bytes().as_chunks::<2>().0.first().map_or(0, |bytes| u16::from_le_bytes(*bytes))
        }
    };
}

selector!(read_cs, "mov {0:e}, cs");
selector!(read_ss, "mov {0:e}, ss");
selector!(read_ds, "mov {0:e}, ds");
selector!(read_es, "mov {0:e}, es");
selector!(read_fs, "mov {0:e}, fs");
selector!(read_gs, "mov {0:e}, gs");
selector!(read_tr, "str {0:e}");
selector!(read_ldt, "sldt {0:e}");

/// Defines a loader of a selector.
macro_rules! load {
    ($load:ident, $instruction:literal, $contract:literal) => {
        #[doc = concat!("Loads a selector.\n\n# Safety\nRing 0; it is null, or was loaded from this GDT. ", $contract)]
        #[inline]
        pub(crate) unsafe fn $load(selector: u16) {
            // SAFETY: by the caller.
            unsafe { asm!($instruction, in(reg) u32::from(selector), options(nostack, preserves_flags)) };
        }
    };
}

load!(load_ds, "mov ds, {0:e}", "64-bit code does not use DS.");
load!(load_es, "mov es, {0:e}", "64-bit code does not use ES.");
load!(load_fs, "mov fs, {0:e}", "The base of FS is set after.");
load!(load_ldt, "lldt {0:x}", "Its descriptor is still what it was.");

// The base of GS is the host's per-CPU data, also for an NMI's handler: between two SWAPGS the other base is clobbered, and such a
// handler sees that it has to exchange them, for after the load the base is one of user space, 0 most often.
load!(load_gs, "swapgs\nmov gs, {0:e}\nswapgs", "`KERNEL_GS_BASE` has a value of user space's, and is set after.");
