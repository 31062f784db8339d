//! The CPU's instructions, for the monitor.

use core::arch::asm;

use covisor_monitor::area::DR6_RESET;
use covisor_monitor::mmu;
use covisor_monitor::processor::Processor;

/// MSRs of the segment bases (SDM vol. 4, table 2-2).
mod msr {
    pub(super) const FS_BASE: u32 = 0xc000_0100;
    pub(super) const GS_BASE: u32 = 0xc000_0101;
    pub(super) const KERNEL_GS_BASE: u32 = 0xc000_0102;
}

/// The CPU that the monitor runs on, in ring 0.
#[derive(Debug)]
pub(crate) struct Cpu;

fn wrmsr(index: u32, value: u64) {
    #[expect(clippy::cast_possible_truncation, reason = "halves")]
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: ring 0, and the callers below write bases that are canonical, to MSRs that every CPU with long mode has. The
    // host's values are the world switch's to bring back.
    unsafe { asm!("wrmsr", in("ecx") index, in("eax") low, in("edx") high, options(nostack, preserves_flags)) };
}

impl mmu::Cpu for Cpu {
    fn load_cr3(&mut self, cr3: u64) {
        // SAFETY: a root of the guest's kernel has all of the monitor at the same addresses.
        unsafe { asm!("mov cr3, {}", in(reg) cr3, options(nostack, preserves_flags)) };
    }

    fn invlpg(&mut self, address: u64) {
        // SAFETY: forgetting a translation changes nothing.
        unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack, preserves_flags)) };
    }
}

impl Processor for Cpu {
    fn cr2(&self) -> u64 {
        let value;
        // SAFETY: ring 0.
        unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) };
        value
    }

    fn dr6(&self) -> u64 {
        let value;
        // SAFETY: ring 0.
        unsafe { asm!("mov {}, dr6", out(reg) value, options(nomem, nostack, preserves_flags)) };
        value
    }

    fn set_dr6(&mut self, value: u64) {
        // SAFETY: ring 0, and no reserved bit is set.
        unsafe { asm!("mov dr6, {}", in(reg) value, options(nomem, nostack, preserves_flags)) };
    }

    fn set_cr0(&mut self, value: u64) {
        // SAFETY: the area's CR0, of which only TS changes; the monitor uses no extended state.
        unsafe { asm!("mov cr0, {}", in(reg) value, options(nostack, preserves_flags)) };
    }

    fn swap_gs(&mut self) {
        // SAFETY: the monitor does not use GS.
        unsafe { asm!("swapgs", options(nostack, preserves_flags)) };
    }

    fn set_fs_base(&mut self, base: u64) {
        wrmsr(msr::FS_BASE, base);
    }

    fn set_gs_base(&mut self, base: u64) {
        wrmsr(msr::GS_BASE, base);
    }

    fn set_other_gs_base(&mut self, base: u64) {
        wrmsr(msr::KERNEL_GS_BASE, base);
    }

    fn load_user_gs(&mut self, selector: u16) {
        // SAFETY: the programs' GS is loaded between two exchanges, so that the kernel's base stays. A selector that cannot be
        // loaded becomes 0 by the fault's handler.
        unsafe { crate::entry::monitor_load_user_gs(selector.into()) };
    }

    fn load_breakpoints(&mut self, [dr0, dr1, dr2, dr3]: [u64; 4], dr7: u64) {
        // SAFETY: the values were checked: breakpoints are of the guest's addresses.
        unsafe {
            asm!(
                "mov dr7, {off}", "mov dr0, {dr0}", "mov dr1, {dr1}", "mov dr2, {dr2}", "mov dr3, {dr3}", "mov dr6, {dr6}", "mov dr7, {dr7}",
                off = in(reg) 0x400_u64, dr0 = in(reg) dr0, dr1 = in(reg) dr1, dr2 = in(reg) dr2, dr3 = in(reg) dr3,
                dr6 = in(reg) DR6_RESET, dr7 = in(reg) dr7, options(nostack, preserves_flags)
            );
        }
    }

    fn tsc(&self) -> u64 {
        // SAFETY: every CPU with long mode has RDTSC.
        unsafe { core::arch::x86_64::_rdtsc() }
    }
}
