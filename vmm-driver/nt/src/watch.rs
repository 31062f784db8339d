//! What NT watches, looked at by ourselves: registers and tables before a stretch with interrupts off, and after it.
//!
//! NT checks now and then that nobody changes these, and stops the machine (0x109) minutes after somebody did, with nothing on the
//! stack that would tell who. A driver that is built with [`Kapi::WATCH`](crate::Kapi::WATCH) stops it at once, and tells what was
//! changed. The bits that switch virtualization on are left out: they stay set as long as there are VMs.

use core::arch::asm;
use core::arch::x86_64::__cpuid;

use covisor_core::instructions::rdmsr;
use covisor_core::msr::index;
use covisor_core::xstate::read_xcr0;

/// CR4.VMXE.
const CR4_VMXE: u64 = 1 << 13;
/// CR4.OSXSAVE.
const CR4_OSXSAVE: u64 = 1 << 18;
/// EFER.SVME.
const EFER_SVME: u64 = 1 << 12;
/// CPUID 0x8000_0001, EDX: RDTSCP, and with that `TSC_AUX`.
const RDTSCP: u32 = 1 << 27;

/// MSRs that every CPU with long mode has.
const MSRS: [(&str, u32); 12] = [
    ("STAR", index::STAR),
    ("LSTAR", index::LSTAR),
    ("CSTAR", index::CSTAR),
    ("SFMASK", index::SFMASK),
    ("SYSENTER_CS", index::SYSENTER_CS),
    ("SYSENTER_ESP", index::SYSENTER_ESP),
    ("SYSENTER_EIP", index::SYSENTER_EIP),
    ("FS_BASE", index::FS_BASE),
    ("GS_BASE", index::GS_BASE),
    ("KERNEL_GS_BASE", index::KERNEL_GS_BASE),
    ("PAT", index::PAT),
    ("DEBUGCTL", index::DEBUGCTL),
];

/// The others.
const OTHERS: [&str; 15] = [
    "EFER",
    "TSC_AUX",
    "CR0",
    "CR4",
    "CR8",
    "DR7",
    "XCR0",
    "TR",
    "LDTR",
    "GDTR's base",
    "GDTR's limit",
    "IDTR's base",
    "IDTR's limit",
    "the GDT",
    "the IDT",
];

/// The values of one CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watched {
    msrs: [u64; MSRS.len()],
    others: [u64; OTHERS.len()],
}

/// GDTR or IDTR.
#[repr(C, packed)]
struct Table {
    limit: u16,
    base: u64,
}

impl Table {
    /// One number for its contents.
    ///
    /// # Safety
    /// It is the CPU's.
    unsafe fn digest(&self) -> u64 {
        #[expect(clippy::cast_possible_truncation, reason = "both have 64 bits")]
        let base = core::ptr::with_exposed_provenance::<u64>(self.base as usize);
        let words = (usize::from(self.limit) + 1) / 8;
        // SAFETY: by the caller; volatile, since the CPU writes it.
        (0..words).fold(0, |digest: u64, word| digest.rotate_left(5) ^ unsafe { base.add(word).read_volatile() })
    }
}

impl Watched {
    /// Before anything was read.
    pub(crate) const NONE: Self = Self { msrs: [0; MSRS.len()], others: [0; OTHERS.len()] };

    /// One of a test's, with a value of DR7.
    #[cfg(test)]
    pub(crate) const fn with_dr7(dr7: u64) -> Self {
        let mut watched = Self::NONE;
        watched.others[5] = dr7;
        watched
    }

    /// Those of the calling CPU.
    ///
    /// # Safety
    /// In ring 0, with interrupts off.
    #[must_use]
    pub unsafe fn read() -> Self {
        let (cr0, cr4, cr8, dr7): (u64, u64, u64, u64);
        let (tr, ldtr): (u64, u64);
        let (mut gdtr, mut idtr) = (Table { limit: 0, base: 0 }, Table { limit: 0, base: 0 });
        // SAFETY: ring 0; all of it only reads.
        unsafe {
            asm!("mov {}, cr0", "mov {}, cr4", "mov {}, cr8", "mov {}, dr7", "str {4:e}", "sldt {5:e}",
                out(reg) cr0, out(reg) cr4, out(reg) cr8, out(reg) dr7, out(reg) tr, out(reg) ldtr,
                options(nomem, nostack, preserves_flags));
            asm!("sgdt [{}]", "sidt [{}]", in(reg) &raw mut gdtr, in(reg) &raw mut idtr, options(nostack, preserves_flags));
            let aux = if __cpuid(0x8000_0001).edx & RDTSCP != 0 { rdmsr(index::TSC_AUX) } else { 0 };
            let xcr0 = if cr4 & CR4_OSXSAVE != 0 { read_xcr0() } else { 0 };
            Self {
                msrs: MSRS.map(|(_, msr)| rdmsr(msr)),
                others: [
                    rdmsr(index::EFER) & !EFER_SVME,
                    aux,
                    cr0,
                    cr4 & !CR4_VMXE,
                    cr8,
                    dr7,
                    xcr0,
                    tr,
                    ldtr,
                    gdtr.base,
                    gdtr.limit.into(),
                    idtr.base,
                    idtr.limit.into(),
                    gdtr.digest(),
                    idtr.digest(),
                ],
            }
        }
    }

    /// What is not as it was, with both values.
    pub(crate) fn changed(&self, before: &Self) -> Option<(&'static str, u64, u64)> {
        let msrs = MSRS.iter().map(|(name, _)| *name).zip(self.msrs.iter().zip(&before.msrs));
        let others = OTHERS.into_iter().zip(self.others.iter().zip(&before.others));
        msrs.chain(others).find(|(_, (now, then))| now != then).map(|(name, (now, then))| (name, *then, *now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_each_change_is_told_by_its_name() {
        let before = Watched::NONE;
        assert_eq!(before.changed(&before), None);
        for (index, (name, _)) in MSRS.into_iter().enumerate() {
            let mut after = before;
            after.msrs[index] = 7;
            assert_eq!(after.changed(&before), Some((name, 0, 7)));
        }
        for (index, name) in OTHERS.into_iter().enumerate() {
            let mut after = before;
            after.others[index] = 7;
            assert_eq!(after.changed(&before), Some((name, 0, 7)));
        }
    }

    /// The registers and tables that others came to grief by.
    #[test]
    fn test_what_others_came_to_grief_by_is_among_them() {
        for name in
            ["TSC_AUX", "CR8", "GS_BASE", "KERNEL_GS_BASE", "STAR", "LSTAR", "CSTAR", "SFMASK", "EFER", "PAT", "DR7"]
        {
            assert!(MSRS.iter().map(|(name, _)| *name).chain(OTHERS).any(|other| other == name), "{name}");
        }
        assert!(OTHERS.contains(&"XCR0") && OTHERS.contains(&"the GDT"));
    }

    #[test]
    fn test_a_task_segment_that_is_not_busy_any_more_changes_the_table() {
        let mut table = [0_u64, 0x00cf_9b00_0000_ffff, 0x0000_8b00_0000_0067, 0xffff_f800];
        let pointer = Table { limit: 31, base: table.as_ptr().expose_provenance() as u64 };
        // SAFETY: it is there.
        let busy = unsafe { pointer.digest() };
        table[2] &= !(2 << 40);
        // SAFETY: as above.
        assert_ne!(unsafe { pointer.digest() }, std::hint::black_box(busy));
        assert_eq!(table[2], 0x0000_8900_0000_0067);
    }
}
