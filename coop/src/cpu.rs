//! One physical CPU: its crossing, and where the host's state is while a guest's is loaded.

use alloc::alloc::alloc_zeroed;
use alloc::alloc::dealloc;
use core::alloc::Layout;
use core::ptr::NonNull;

use covisor_core::debug_registers::DR7_ENABLES;
use covisor_core::host::Host;
use covisor_core::host::OutOfMemory;
use covisor_core::host_registers::HostRegisters;
use covisor_core::instructions as insn;
use covisor_core::mitigation::Mitigations;
use covisor_core::msr::index;
use covisor_core::xstate;
use covisor_monitor::crossing::Crossing;
use covisor_monitor::crossing::TablePointer;
use covisor_monitor::layout;
use covisor_monitor::layout::PAGE;
use covisor_monitor::layout::selector;
use static_assertions::const_assert_eq;

use crate::Coop;
use crate::Vm;
use crate::control::Cr4;
use crate::descriptor;
use crate::features::Features;
use crate::instructions as coop;
use crate::pages::to_usize;
use crate::rights::Rights;
use crate::rights::Tables;
use crate::vcpu::CoopVcpu;
use crate::world;

/// Descriptors of a page.
const PER_PAGE: usize = to_usize(PAGE) / 8;
/// Descriptors of the H-GDT, which is as large as the monitor's.
const GDT_ENTRIES: usize = to_usize(layout::GDT_PAGES) * PER_PAGE;
/// Those of them that can be the host's: all but the last page.
const HOST_ENTRIES: usize = GDT_ENTRIES - PER_PAGE;
/// Vectors of the H-IDT: the highest is that of machine checks.
const IDT_VECTORS: usize = 19;
/// Words of the H-stack: what the last page has left.
const STACK_WORDS: usize = PER_PAGE - 2 * IDT_VECTORS - size_of::<Crossing>() / 8;

/// Bits of a selector that tell where its descriptor is.
const SELECTOR_INDEX: u16 = !7;

/// What SYSCALL clears: TF, IF, DF, IOPL, NT, AC.
const SYSCALL_FLAGS: u64 = 1 << 8 | 1 << 9 | 1 << 10 | 3 << 12 | 1 << 14 | 1 << 18;
/// STAR of the monitor's world: the segments of SYSCALL and SYSRET.
const STAR: u64 = (selector::RING3_CODE32 as u64) << 48 | (selector::RING0_CODE as u64) << 32;

/// The crossing with all that belongs to it. The transition root maps it.
#[repr(C, align(4096))]
struct Block {
    gdt: [u64; GDT_ENTRIES],
    idt: [u64; 2 * IDT_VECTORS],
    /// Ends at `crossing`.
    stack: [u64; STACK_WORDS],
    crossing: Crossing,
}
const_assert_eq!(size_of::<Block>() as u64, (layout::GDT_PAGES + 1) * PAGE);
const_assert_eq!(core::mem::offset_of!(Block, crossing) % 16, 0);

/// A block of the heap's.
#[derive(Debug)]
struct BlockBox(NonNull<Block>);

// SAFETY: it owns its memory, as a box does.
unsafe impl Send for BlockBox {}
// SAFETY: as above.
unsafe impl Sync for BlockBox {}

impl BlockBox {
    /// A block of zeros.
    fn new() -> Result<Self, OutOfMemory> {
        // SAFETY: the layout has a size.
        let memory = unsafe { alloc_zeroed(Layout::new::<Block>()) };
        NonNull::new(memory.cast()).map(Self).ok_or(OutOfMemory)
    }

    /// Address of the crossing, without a reference: while worlds are crossed, handlers write there.
    const fn crossing(&self) -> *mut Crossing {
        // SAFETY: the block is alive, and the field lies in it.
        unsafe { &raw mut (*self.0.as_ptr()).crossing }
    }
}

impl Drop for BlockBox {
    fn drop(&mut self) {
        // SAFETY: allocated in new() with this layout, and nothing names it any more.
        unsafe { dealloc(self.0.as_ptr().cast(), Layout::new::<Block>()) };
    }
}

/// What the host has in registers that the crossing leaves alone: its handlers for NMI and machine check need none of it.
#[derive(Clone, Copy, Debug, Default)]
struct Outer {
    ds: u16,
    es: u16,
    fs: u16,
    gs: u16,
    ldt: u16,
    fs_base: u64,
    kernel_gs_base: u64,
    star: u64,
    lstar: u64,
    cstar: u64,
    syscall_flags: u64,
    sysenter_cs: u64,
}

/// One physical CPU while VMs exist.
#[derive(Debug)]
pub struct Cpu {
    block: BlockBox,
    /// The transition root.
    transition: Tables,
    /// The entry in it for the ENTRY region, which is another for each VM.
    entry_region: NonNull<u64>,
    /// The host's extended state.
    extended: xstate::Area,
    /// Debug registers, `TSC_AUX`, `IA32_XSS`.
    registers: HostRegisters,
    outer: Outer,
}

// SAFETY: `entry_region` points into `transition`, which goes where this goes.
unsafe impl Send for Cpu {}
// SAFETY: as above; it is written only with &mut self.
unsafe impl Sync for Cpu {}

impl Cpu {
    pub(crate) fn new<H: Host>(features: &Features, extended: &xstate::ExtendedState) -> Result<Self, OutOfMemory> {
        let block = BlockBox::new()?;
        let extended = extended.area_new::<H>()?;
        let mut transition = match Tables::new::<H>(Rights::DATA, features.paging_levels) {
            Ok(tables) => tables,
            Err(error) => {
                extended.free::<H>();
                return Err(error);
            }
        };
        match map_transition::<H>(&mut transition, &block) {
            Ok(entry_region) => {
                let mut cpu = Self {
                    block,
                    transition,
                    entry_region,
                    extended,
                    registers: HostRegisters::default(),
                    outer: Outer::default(),
                };
                cpu.fill();
                Ok(cpu)
            }
            Err(error) => {
                transition.free::<H>();
                extended.free::<H>();
                Err(error)
            }
        }
    }

    /// Writes what does not change.
    fn fill(&mut self) {
        let transition_cr3 = self.transition.root();
        // SAFETY: the block is ours, and no world is being crossed.
        let block = unsafe { self.block.0.as_mut() };
        for (selector, descriptor) in descriptor::RING0 {
            block.gdt[HOST_ENTRIES + descriptor::index(selector)] = descriptor;
        }
        for (vector, handler) in world::handlers() {
            block.idt[2 * vector..2 * vector + 2].copy_from_slice(&descriptor::gate(handler, 0));
        }
        let (gdt, idt) = (table(&block.gdt), table(&block.idt));
        block.crossing = Crossing { gdt, idt, transition_cr3, ..Crossing::default() };
    }

    pub(crate) fn free<H: Host>(self) {
        self.transition.free::<H>();
        self.extended.free::<H>();
    }

    /// # Safety
    /// On the CPU itself, interrupts off, the host loaded.
    pub(crate) unsafe fn enable(&mut self, engine: &Coop) {
        let header = engine.image.header();
        // SAFETY: by the caller; the block is ours, and no world is being crossed.
        unsafe {
            self.registers.capture(engine.features.tsc_aux, engine.features.supervisor_state);
            let crossing = &mut self.block.0.as_mut().crossing;
            crossing.landing = header.landing;
            crossing.clear_buffers = u64::from(Mitigations::read().clear_buffers);
        }
    }

    /// The crossing.
    pub(crate) const fn crossing(&self) -> *mut Crossing {
        self.block.crossing()
    }

    /// Notes the host's state for the crossing.
    ///
    /// # Safety
    /// On the CPU itself, interrupts off, the host loaded.
    unsafe fn note_host(&mut self) {
        // SAFETY: the block is ours, and no world is being crossed.
        let block = unsafe { self.block.0.as_mut() };
        let (gdt, tr) = (coop::sgdt(), coop::read_tr());
        let entries = ((usize::from(gdt.limit) + 1) / 8).min(HOST_ENTRIES);
        let base = to_usize(gdt.base) as *const u64;
        // SAFETY: the GDT that is loaded is there, so far as its limit says, and the H-GDT has room.
        unsafe { core::ptr::copy_nonoverlapping(base, block.gdt.as_mut_ptr(), entries) };
        let descriptor = usize::from(tr & SELECTOR_INDEX) / 8;
        let descriptor =
            block.gdt.get(descriptor).map_or(0, |descriptor| core::ptr::from_ref(descriptor).addr() as u64);
        let crossing = &mut block.crossing;
        crossing.host_gdt = gdt;
        crossing.host_idt = coop::sidt();
        crossing.host_cs = u64::from(coop::read_cs());
        crossing.host_ss = u64::from(coop::read_ss());
        crossing.host_tr = u64::from(tr);
        crossing.host_tss_descriptor = descriptor;
        // SAFETY: by the caller.
        unsafe {
            crossing.host_cr0 = insn::read_cr0();
            crossing.host_cr3 = insn::read_cr3();
            crossing.host_cr4 = insn::read_cr4();
            crossing.host_gs_base = insn::rdmsr(index::GS_BASE);
        }
        crossing.monitor_cr4 = Cr4::of_monitor(Cr4::from_bits_retain(crossing.host_cr4)).bits();
    }

    /// Puts the host's state aside and loads the guest's: what stays loaded over exits that core answers itself.
    ///
    /// # Safety
    /// On the CPU itself, which is enabled, interrupts off; nothing of the host runs until [`Cpu::unload`].
    #[inline]
    pub(crate) unsafe fn load(&mut self, engine: &Coop, vm: &Vm, vcpu: &mut CoopVcpu) {
        // SAFETY: by the caller; the guest's values are checked when they are set. The pointer is to an entry of our tables, which no
        // CPU uses now.
        unsafe {
            let area = vcpu.area();
            let [dr0, dr1, dr2, dr3, _, dr7] = area.debug;
            self.registers.enter(dr7 & DR7_ENABLES != 0, &[dr0, dr1, dr2, dr3], vcpu.own.tsc_aux);
            engine.extended.enter(&mut self.extended, &vcpu.extended, vcpu.own.xcr0);
            self.note_host();
            self.entry_region.write(vm.entry_region());
            let (transition_cr3, host_rsp) = (self.transition.root(), self.crossing().addr() as u64);
            let area = vcpu.area_mut();
            area.transition_cr3 = transition_cr3;
            area.host_rip = world::back();
            area.host_rsp = host_rsp;
            self.outer = Outer::exchange(engine);
            vcpu.own.set_loaded(true);
        }
    }

    /// Puts the guest's state aside and loads the host's.
    ///
    /// # Safety
    /// [`Cpu::load`] came before with the same vCPU, and the monitor's world was left.
    #[inline]
    pub(crate) unsafe fn unload(&mut self, engine: &Coop, vcpu: &mut CoopVcpu) {
        // SAFETY: by the caller; the host's values are the ones that load() found.
        unsafe {
            self.outer.restore();
            engine.extended.leave(&self.extended, &mut vcpu.extended, &mut vcpu.own.xcr0);
            self.registers.leave(vcpu.own.tsc_aux);
            vcpu.own.set_loaded(false);
        }
    }
}

impl Outer {
    /// Reads the host's, and sets what the monitor's world has instead: null selectors, which the landing finds to differ from the
    /// guest's where the guest has others, and SYSCALL's way to the monitor. SYSENTER has none: it faults (SDM vol. 2, SYSENTER).
    ///
    /// # Safety
    /// Ring 0, the host loaded, interrupts off; nothing of the host runs until [`Outer::restore`].
    #[inline]
    unsafe fn exchange(engine: &Coop) -> Self {
        // SAFETY: by the caller; every CPU with long mode has these MSRs, and the addresses are canonical.
        unsafe {
            let host = Self {
                ds: coop::read_ds(),
                es: coop::read_es(),
                fs: coop::read_fs(),
                gs: coop::read_gs(),
                ldt: coop::read_ldt(),
                fs_base: insn::rdmsr(index::FS_BASE),
                kernel_gs_base: insn::rdmsr(index::KERNEL_GS_BASE),
                star: insn::rdmsr(index::STAR),
                lstar: insn::rdmsr(index::LSTAR),
                cstar: insn::rdmsr(index::CSTAR),
                syscall_flags: insn::rdmsr(index::SFMASK),
                sysenter_cs: insn::rdmsr(index::SYSENTER_CS),
            };
            Self { ldt: host.ldt, ..Self::default() }.select(&host);
            let header = engine.image.header();
            insn::wrmsr(index::STAR, STAR);
            insn::wrmsr(index::LSTAR, header.syscall);
            insn::wrmsr(index::CSTAR, header.syscall32);
            insn::wrmsr(index::SFMASK, SYSCALL_FLAGS);
            insn::wrmsr(index::SYSENTER_CS, 0);
            host
        }
    }

    /// Sets the host's again.
    ///
    /// # Safety
    /// As [`Outer::exchange`], which gave the value.
    #[inline]
    unsafe fn restore(&self) {
        // SAFETY: by the caller.
        unsafe {
            // Before GS is loaded: see there.
            insn::wrmsr(index::KERNEL_GS_BASE, self.kernel_gs_base);
            let now = Self {
                ds: coop::read_ds(),
                es: coop::read_es(),
                fs: coop::read_fs(),
                gs: coop::read_gs(),
                ldt: coop::read_ldt(),
                ..*self
            };
            self.select(&now);
            insn::wrmsr(index::FS_BASE, self.fs_base);
            insn::wrmsr(index::STAR, self.star);
            insn::wrmsr(index::LSTAR, self.lstar);
            insn::wrmsr(index::CSTAR, self.cstar);
            insn::wrmsr(index::SFMASK, self.syscall_flags);
            insn::wrmsr(index::SYSENTER_CS, self.sysenter_cs);
        }
    }

    /// Loads the selectors that differ from those that the CPU has: `now`.
    ///
    /// # Safety
    /// Ring 0, interrupts off, the host's GDT is loaded; they are null or the host's. `KERNEL_GS_BASE` is the host's.
    #[inline]
    unsafe fn select(&self, now: &Self) {
        // SAFETY: by the caller.
        unsafe {
            if self.ds != now.ds {
                coop::load_ds(self.ds);
            }
            if self.es != now.es {
                coop::load_es(self.es);
            }
            if self.fs != now.fs {
                coop::load_fs(self.fs);
            }
            if self.gs != now.gs {
                coop::load_gs(self.gs);
                insn::wrmsr(index::KERNEL_GS_BASE, self.kernel_gs_base);
            }
            if self.ldt != now.ldt {
                coop::load_ldt(self.ldt);
            }
        }
    }
}

/// The pointer to a table in memory.
#[expect(clippy::cast_possible_truncation, reason = "no table is larger than 64 KiB")]
fn table(entries: &[u64]) -> TablePointer {
    TablePointer::new((size_of_val(entries) - 1) as u16, entries.as_ptr().addr() as u64)
}

/// Maps what crosses the worlds where the host has it: the code and the block. Returns the entry for the ENTRY region, which is
/// empty.
fn map_transition<H: Host>(tables: &mut Tables, block: &BlockBox) -> Result<NonNull<u64>, OutOfMemory> {
    let block = block.0.as_ptr().addr() as u64;
    for (range, rights) in [(world::code(), Rights::CODE), (block..block + size_of::<Block>() as u64, Rights::DATA)] {
        tables.set_format(rights);
        for page in (range.start & !(PAGE - 1)..range.end).step_by(to_usize(PAGE)) {
            let phys = H::physical_address(to_usize(page) as *const u8).ok_or(OutOfMemory)?;
            tables.map::<H>(page, phys, 0)?;
        }
    }
    let entry = tables.entry::<H>(layout::ENTRY, 3)?;
    // A host that has its memory in that very GiB, of all, cannot run guests; Linux leaves the monitor's slots to hypervisors.
    if *entry == 0 { Ok(NonNull::from(entry)) } else { Err(OutOfMemory) }
}

#[cfg(test)]
mod tests {
    use covisor_core::test_support::MockHost;
    use covisor_core::xstate::ExtendedState;
    use covisor_monitor::mmu::entry::Flags;

    use super::*;
    use crate::vm::tests::FEATURES;
    use crate::vm::tests::walk;

    /// Calls `use_cpu` on a new CPU, and frees all that it needs.
    fn with_cpu(features: &Features, use_cpu: impl FnOnce(&mut Cpu)) {
        let before = MockHost::blocks();
        let mut cpu = Cpu::new::<MockHost>(features, &ExtendedState::for_tests()).unwrap();
        use_cpu(&mut cpu);
        cpu.free::<MockHost>();
        assert_eq!(MockHost::blocks(), before);
    }

    #[test]
    fn the_transition_root_has_code_and_block_where_the_host_has_them() {
        for levels in [4, 5] {
            with_cpu(&Features { paging_levels: levels, ..FEATURES }, |cpu| {
                let found = walk(cpu.transition.root(), levels);
                let block = cpu.block.0.as_ptr().addr() as u64;
                for page in (block..block + 16 * PAGE).step_by(to_usize(PAGE)) {
                    assert_eq!(found.get(&page), Some(&(page, Flags::WRITABLE | Flags::NO_EXECUTE)));
                }
                let code: Vec<u64> =
                    found.keys().copied().filter(|page| !(block..block + 16 * PAGE).contains(page)).collect();
                assert!(!code.is_empty() && code.len() <= 2, "{code:x?}");
                for page in code {
                    assert_eq!(found[&page], (page, Flags::empty()));
                    assert!(page + PAGE > world::code().start && page < world::code().end);
                }
            });
        }
    }

    #[test]
    fn tables_of_the_crossing_lead_to_its_code_in_the_monitors_segment() {
        with_cpu(&FEATURES, |cpu| {
            // SAFETY: the block is the CPU's.
            let block = unsafe { cpu.block.0.as_ref() };
            let Crossing { gdt, idt, transition_cr3, .. } = block.crossing;
            assert_eq!(gdt, TablePointer::new(0xefff, block.gdt.as_ptr().addr() as u64));
            assert_eq!(idt, TablePointer::new(19 * 16 - 1, block.idt.as_ptr().addr() as u64));
            assert_eq!(transition_cr3, cpu.transition.root());
            for selector in [selector::RING0_CODE, selector::RING0_DATA] {
                let own = descriptor::own_page().find(|(index, _)| *index == descriptor::index(selector));
                assert_eq!(own.map(|(_, descriptor)| descriptor), Some(block.gdt[usize::from(selector) / 8]));
            }
            let present: Vec<usize> = (0..19).filter(|vector| block.idt[2 * vector] >> 47 & 1 != 0).collect();
            assert_eq!(present, [1, 2, 18]);
            for (vector, handler) in world::handlers() {
                assert_eq!(block.idt[2 * vector..][..2], descriptor::gate(handler, 0));
                assert!(world::code().contains(&handler));
            }
            assert!(world::code().contains(&world::back()));
        });
    }

    #[test]
    fn the_segments_of_syscall_and_sysret_are_the_monitors_and_flat() {
        assert_eq!(STAR, 0xe023_e008_0000_0000);
        assert_eq!(SYSCALL_FLAGS, 0x4_7700);
    }
}
