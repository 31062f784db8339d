//! One vCPU. Its registers are in the area that host and monitor share; how core reads and sets them is in `registers`.

mod registers;

use core::ptr::NonNull;

use covisor_core::debug_registers::DR6_RESET;
use covisor_core::debug_registers::DR7_RESET;
use covisor_core::engine::Vcpu;
use covisor_core::engine::VcpuConfig;
use covisor_core::guest_registers::GuestRegisters;
use covisor_core::host::Block;
use covisor_core::host::Host;
use covisor_core::host::OutOfMemory;
use covisor_core::registers::RFlags;
use covisor_core::xstate;
use covisor_core::xstate::ExtendedState;
use covisor_monitor::area::Area;
use covisor_monitor::area::MODE_KERNEL;
use covisor_monitor::config::Config;
use covisor_monitor::layout::selector;
use covisor_monitor::shared_info::SharedInfo;

use crate::Vm;
use crate::control::Cr0;
use crate::features::Features;

/// Index of DR6 in [`Area::debug`].
const DR6: usize = 4;
/// As above, of DR7.
const DR7: usize = 5;

/// One vCPU.
#[derive(Debug)]
pub struct CoopVcpu {
    area: NonNull<Area>,
    config: NonNull<Config>,
    shared: SharedInfo,
    /// The guest's descriptors.
    gdt: NonNull<[Block]>,
    ldt: NonNull<[Block]>,
    pub(crate) extended: xstate::Area,
    pub(crate) own: GuestRegisters,
    /// RIP behind the instruction that left the guest, where it is known.
    pub(crate) next_rip: Option<u64>,
    /// Vector of an interrupt of the host's that came in the guest.
    pub(crate) taken: Option<u8>,
    xsave: bool,
}

// SAFETY: the area, the configuration and the descriptors are memory of the VM that the vCPU belongs to and that outlives it; a VM
// has one vCPU, and whoever has that may use them.
unsafe impl Send for CoopVcpu {}

impl CoopVcpu {
    /// A vCPU at the start of a kernel: nothing is loaded yet.
    pub(crate) fn new<H: Host>(
        features: &Features,
        extended: &ExtendedState,
        vm: &Vm,
        config: &VcpuConfig,
    ) -> Result<Self, OutOfMemory> {
        let (gdt, ldt) = vm.descriptor_tables();
        let mut vcpu = Self {
            area: vm.area()?,
            config: vm.config()?,
            shared: vm.shared_info()?,
            gdt: NonNull::from(gdt),
            ldt: NonNull::from(ldt),
            extended: extended.area_new::<H>()?,
            own: GuestRegisters::RESET,
            next_rip: None,
            taken: None,
            xsave: features.xsave,
        };
        let area = vcpu.area_mut();
        area.frame.cs = u64::from(selector::RING3_CODE64);
        area.frame.ss = u64::from(selector::RING3_DATA);
        area.frame.rflags = RFlags::FLAGS_A1.bits();
        area.mode = MODE_KERNEL;
        area.cr0 = Cr0::GUEST.bits();
        area.debug[DR6] = DR6_RESET;
        area.debug[DR7] = DR7_RESET;
        let (clock, checks, guest_cr4) = (&config.clock, config.checks, vcpu.cr4());
        let ((tsc_multiplier, tsc_shift), (seconds, nanoseconds)) = (clock.scale(), clock.start_wall());
        let config = vcpu.config_mut();
        config.guest_cr4 = guest_cr4;
        config.checks = u64::from(checks);
        config.tsc_start = clock.start_tsc();
        config.tsc_multiplier = tsc_multiplier;
        config.tsc_shift = i32::from(tsc_shift);
        config.tsc_khz = u64::from(H::machine().tsc_khz);
        config.wall_clock = seconds.saturating_mul(1_000_000_000).saturating_add(u64::from(nanoseconds));
        Ok(vcpu)
    }

    pub(crate) fn free<H: Host>(self) {
        self.extended.free::<H>();
    }

    /// The area.
    #[inline]
    pub(crate) fn area(&self) -> &Area {
        // SAFETY: the page is the VM's, which outlives the vCPU, and holds an Area, whose fields take all values. While the monitor's
        // world runs, nobody holds a reference.
        unsafe { self.area.as_ref() }
    }

    /// As above.
    #[inline]
    pub(crate) fn area_mut(&mut self) -> &mut Area {
        // SAFETY: as in area(), and &mut self makes it the only reference: a VM has one vCPU.
        unsafe { self.area.as_mut() }
    }

    fn config(&self) -> &Config {
        // SAFETY: as in area(); the VM writes it only before the vCPU runs, under core's lock.
        unsafe { self.config.as_ref() }
    }

    fn config_mut(&mut self) -> &mut Config {
        // SAFETY: as in area_mut() and config().
        unsafe { self.config.as_mut() }
    }

    /// RSP travels in the frame.
    #[inline]
    pub(crate) fn store_rsp(&mut self) {
        let frame = &mut self.area_mut().frame;
        frame.rsp = frame.registers.rsp_copy;
    }

    /// And back.
    #[inline]
    pub(crate) fn load_rsp(&mut self) {
        let frame = &mut self.area_mut().frame;
        frame.registers.rsp_copy = frame.rsp;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use covisor_core::pvclock::Clock;
    use covisor_core::test_support::MockHost;

    use super::*;
    use crate::vm::tests::FEATURES;
    use crate::vm::tests::with_vm;

    /// Calls `use_vcpu` on a new vCPU, and frees all that it needs.
    pub(crate) fn with_vcpu(use_vcpu: impl FnOnce(&mut CoopVcpu)) {
        with_vm(&FEATURES, |vm| {
            let config =
                VcpuConfig { tsc_offset: 0, clock: Clock::new(2_000_000, 77, 1_700_000_000_123_456_789), checks: true };
            let mut vcpu = CoopVcpu::new::<MockHost>(&FEATURES, &ExtendedState::for_tests(), vm, &config).unwrap();
            use_vcpu(&mut vcpu);
            vcpu.free::<MockHost>();
        });
    }

    #[test]
    fn a_new_vcpu_is_a_kernel_in_ring_3_and_knows_the_time() {
        with_vcpu(|vcpu| {
            let area = vcpu.area();
            assert_eq!((area.frame.cs, area.frame.ss, area.mode, area.started), (0xe033, 0xe02b, MODE_KERNEL, 0));
            assert_eq!((area.cr0, area.debug[4], area.debug[5]), (0x8005_0033, 0xffff_0ff0, 0x400));
            let config = vcpu.config();
            assert_eq!(config.guest_cr4, vcpu.cr4());
            assert_eq!((config.tsc_start, config.wall_clock), (77, 1_700_000_000_123_456_789));
            assert_eq!((config.tsc_multiplier, config.tsc_shift, config.tsc_khz), (1 << 31, 0, 1_000_000));
            assert_eq!((vcpu.cpl(), vcpu.efer(), vcpu.cr4(), vcpu.xcr0()), (0, 0xd01, 0x4_0620, 1));
        });
    }
}
