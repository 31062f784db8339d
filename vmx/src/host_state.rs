//! The host's state that an exit loads (SDM vol. 3, 25.5 and 28.5), and what it loads only in part.

use covisor_core::instructions as insn;
use covisor_core::msr::index;

use crate::field::Field;
use crate::instructions as vmx;
use crate::instructions::TableRegister;
use crate::instructions::vmwrite;
use crate::vcpu::HostFields;

/// What of a CPU's host state does not change while VMs exist.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HostConstants {
    cs: u16,
    pub(crate) ss: u16,
    tr: u16,
    tr_base: u64,
    gdt: TableRegister,
    idt: TableRegister,
    gs_base: u64,
    efer: u64,
    pat: u64,
    sysenter: [u64; 3],
}

/// Base in the 16 bytes of a system segment's descriptor (SDM vol. 3, 8.2.3).
fn system_base(descriptor: [u64; 2]) -> u64 {
    let [low, high] = descriptor;
    low >> 16 & 0x00ff_ffff | low >> 32 & 0xff00_0000 | high << 32
}

impl HostConstants {
    /// Of the calling CPU.
    ///
    /// # Safety
    /// Ring 0, in the host's kernel: its GDT can be read, and its base of GS is loaded.
    pub(crate) unsafe fn read() -> Self {
        let (gdt, tr) = (vmx::sgdt(), vmx::read_tr());
        #[expect(clippy::cast_possible_truncation, reason = "addresses have 64 bits here")]
        let base = gdt.base as usize as *const u8;
        // SAFETY: TR was loaded from this GDT, so its descriptor lies in it.
        let descriptor = unsafe { base.add(usize::from(tr & !7)).cast::<[u64; 2]>().read_unaligned() };
        // SAFETY: every 64-bit CPU has these MSRs.
        unsafe {
            Self {
                cs: vmx::read_cs(),
                ss: vmx::read_ss(),
                tr,
                tr_base: system_base(descriptor),
                gdt,
                idt: vmx::sidt(),
                gs_base: insn::rdmsr(index::GS_BASE),
                efer: insn::rdmsr(index::EFER),
                pat: insn::rdmsr(index::PAT),
                sysenter: [index::SYSENTER_CS, index::SYSENTER_ESP, index::SYSENTER_EIP].map(|msr| insn::rdmsr(msr)),
            }
        }
    }

    /// Writes them into the current VMCS. Selectors of data segments stay 0, for those of the host may have a privilege level
    /// that an entry refuses (27.2.3): [`HostSegments`] deals with them.
    ///
    /// # Safety
    /// A VMCS of ours is current on the CPU that they were read on.
    pub(crate) unsafe fn write(&self) {
        let [sysenter_cs, sysenter_esp, sysenter_eip] = self.sysenter;
        let (gdt_base, idt_base) = (self.gdt.base, self.idt.base);
        for (field, value) in [
            (Field::HOST_CS_SELECTOR, u64::from(self.cs)),
            (Field::HOST_SS_SELECTOR, u64::from(self.ss)),
            (Field::HOST_DS_SELECTOR, 0),
            (Field::HOST_ES_SELECTOR, 0),
            (Field::HOST_FS_SELECTOR, 0),
            (Field::HOST_GS_SELECTOR, 0),
            (Field::HOST_TR_SELECTOR, u64::from(self.tr)),
            (Field::HOST_TR_BASE, self.tr_base),
            (Field::HOST_GDTR_BASE, gdt_base),
            (Field::HOST_IDTR_BASE, idt_base),
            (Field::HOST_GS_BASE, self.gs_base),
            (Field::HOST_EFER, self.efer),
            (Field::HOST_PAT, self.pat),
            (Field::HOST_SYSENTER_CS, sysenter_cs),
            (Field::HOST_SYSENTER_ESP, sysenter_esp),
            (Field::HOST_SYSENTER_EIP, sysenter_eip),
        ] {
            // SAFETY: by the caller.
            unsafe { vmwrite(field, value) };
        }
    }

    /// Gives GDTR and IDTR the limits back that an exit made 0xffff (28.5.2).
    ///
    /// # Safety
    /// Ring 0 on the CPU that they were read on, after an exit.
    #[inline]
    pub(crate) unsafe fn restore_tables(&self) {
        // SAFETY: by the caller.
        unsafe { vmx::load_tables(&self.gdt, &self.idt) };
    }
}

/// Writes those of the host's fields that differ from what the VMCS has.
///
/// # Safety
/// Ring 0; a VMCS of ours is current, which has `written`.
#[inline]
pub(crate) unsafe fn write_changed(written: &mut HostFields) {
    // SAFETY: by the caller; every 64-bit CPU has the MSR.
    let now = unsafe {
        HostFields {
            cr0: insn::read_cr0(),
            cr3: insn::read_cr3(),
            cr4: insn::read_cr4(),
            fs_base: insn::rdmsr(index::FS_BASE),
        }
    };
    let write = |field, now, written| {
        if now != written {
            // SAFETY: by the caller.
            unsafe { vmwrite(field, now) };
        }
    };
    write(Field::HOST_CR0, now.cr0, written.cr0);
    write(Field::HOST_CR3, now.cr3, written.cr3);
    write(Field::HOST_CR4, now.cr4, written.cr4);
    write(Field::HOST_FS_BASE, now.fs_base, written.fs_base);
    *written = now;
}

/// The host's selectors of data segments, which an exit makes null: Windows has some of user mode loaded in its kernel, Linux
/// those of a 32-bit program.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HostSegments {
    ds: u16,
    es: u16,
    fs: u16,
    gs: u16,
}

impl HostSegments {
    /// Those that the CPU has.
    #[inline]
    pub(crate) fn read() -> Self {
        Self { ds: vmx::read_ds(), es: vmx::read_es(), fs: vmx::read_fs(), gs: vmx::read_gs() }
    }

    /// Loads them again, after an exit and after all MSRs of the host but these two, which loading FS and GS changes.
    ///
    /// # Safety
    /// Ring 0, after an exit; the host had these selectors, this base of FS, and this `KERNEL_GS_BASE`.
    #[inline]
    pub(crate) unsafe fn restore(&self, fs_base: u64, kernel_gs_base: u64) {
        if self.ds | self.es | self.fs | self.gs != 0 {
            // SAFETY: by the caller.
            unsafe { self.restore_some(fs_base, kernel_gs_base) };
        }
    }

    /// # Safety
    /// As [`HostSegments::restore`].
    #[cold]
    unsafe fn restore_some(&self, fs_base: u64, kernel_gs_base: u64) {
        // SAFETY: by the caller. Nobody uses FS between the two, for interrupts are off and handlers of NMIs do not.
        unsafe {
            vmx::load_ds_es(self.ds, self.es);
            if self.fs != 0 {
                vmx::load_fs(self.fs);
                insn::wrmsr(index::FS_BASE, fs_base);
            }
            if self.gs != 0 {
                vmx::load_gs(self.gs);
                insn::wrmsr(index::KERNEL_GS_BASE, kernel_gs_base);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_a_system_segments_base_is_put_together() {
        let base = 0xffff_fe12_3456_7890_u64;
        let low = (base & 0x00ff_ffff) << 16 | (base & 0xff00_0000) << 32 | 0x0000_8b00_0000_0067;
        assert_eq!(system_base([low, base >> 32]), base);
    }
}
