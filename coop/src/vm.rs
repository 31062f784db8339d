//! One VM: its monitor's memory and page tables.
//!
//! All of it is the VM's own, but for the image's pages. The guest's memory comes from core, which frees it.

use alloc::boxed::Box;
use core::ptr::NonNull;

use covisor_abi::paravirtual::RAM_LIMIT;
use covisor_core::device::try_box;
use covisor_core::host::Block;
use covisor_core::host::Host;
use covisor_core::host::OutOfMemory;
use covisor_monitor::area::Area;
use covisor_monitor::config::Config;
use covisor_monitor::frame::Frame;
use covisor_monitor::frame::Shadow;
use covisor_monitor::layout;
use covisor_monitor::layout::PAGE;
use covisor_monitor::shared_info::SharedInfo;

use crate::descriptor;
use crate::features::Features;
use crate::image::Image;
use crate::pages::Pages;
use crate::pages::to_usize;
use crate::rights::Rights;
use crate::rights::Tables;

/// Shadow tables that every guest has.
const LEAST_SHADOWS: u64 = 256;
/// Frames of the guest for which there is one more.
const FRAMES_PER_SHADOW: u64 = 64;
/// Entry of an L5 page for the upper half of a 4-level address space. The lower half's is entry 0.
const UPPER_HALF: u64 = 511;

/// Memory that is there from the start.
#[derive(Debug, Default)]
struct Fixed {
    area: Pages,
    stacks: Pages,
    tss: Pages,
    idt: Pages,
    gdt: Pages,
    ldt: Pages,
    state: Pages,
    shared_info: Pages,
    top_tables: Pages,
    stack: Pages,
}

/// Memory that grows with the guest's.
#[derive(Debug, Default)]
struct Growing {
    m2p: Pages,
    frames: Pages,
    shadows: Pages,
    pool: Pages,
}

/// All memory but the tables. It has a place of its own: core moves VMs over the host's kernel stack, which is small.
#[derive(Debug, Default)]
struct Memory {
    fixed: Fixed,
    growing: Growing,
}

/// A VM.
#[derive(Debug)]
pub struct Vm {
    /// The kernel root before the guest has one: the monitor's part only, with 4 levels.
    root: Tables,
    /// The same for the guest's user mode: the ENTRY region only.
    user_root: Tables,
    /// The entry of level 3 for the ENTRY region.
    entry_region: u64,
    memory: Box<Memory>,
    /// Frames of the guest, from 0 on.
    frames: u64,
    /// Shadow tables.
    shadows: u64,
}

impl Vm {
    /// A VM without memory.
    pub(crate) fn new<H: Host>(image: &Image, features: &Features) -> Result<Self, OutOfMemory> {
        let memory = try_box(Memory::default())?;
        let root = Tables::new::<H>(Rights::DATA, 4)?;
        let user_root = match Tables::new::<H>(Rights::DATA, 4) {
            Ok(tables) => tables,
            Err(error) => {
                root.free::<H>();
                return Err(error);
            }
        };
        let mut vm = Self { root, user_root, entry_region: 0, memory, frames: 0, shadows: 0 };
        match vm.fill::<H>(image, features) {
            Ok(()) => Ok(vm),
            Err(error) => {
                vm.free::<H>();
                Err(error)
            }
        }
    }

    fn fill<H: Host>(&mut self, image: &Image, features: &Features) -> Result<(), OutOfMemory> {
        let (root, fixed) = (&mut self.root, &mut self.memory.fixed);
        image.map::<H>(root)?;
        let top_tables = if features.paging_levels == 5 { 2 } else { 0 };
        for (pages, address, count) in [
            (&mut fixed.area, layout::AREA, 1),
            (&mut fixed.stacks, layout::IST_STACKS, layout::IST_STACK_COUNT),
            (&mut fixed.tss, layout::TSS, 1),
            (&mut fixed.gdt, layout::GDT, layout::GDT_PAGES),
            (&mut fixed.ldt, layout::LDT, layout::LDT_PAGES),
            (&mut fixed.state, layout::STATE, layout::STATE_PAGES),
            (&mut fixed.shared_info, layout::SHARED_INFO, 1),
            (&mut fixed.top_tables, layout::TOP_TABLES, top_tables),
            (&mut fixed.stack, layout::STACK, layout::STACK_PAGES),
        ] {
            pages.grow::<H>(root, address, count * PAGE, Rights::DATA)?;
        }
        fixed.idt.grow::<H>(root, layout::IDT, PAGE, Rights::CONSTANTS)?;
        for (offset, [low, high]) in (0..).step_by(8).zip(descriptor::task_state().as_chunks::<2>().0) {
            fixed.tss.write(offset, u64::from(*high) << 32 | u64::from(*low));
        }
        for (offset, [low, high]) in (0..).step_by(16).zip(descriptor::interrupt_table()) {
            fixed.idt.write(offset, low);
            fixed.idt.write(offset + 8, high);
        }
        for (index, word) in descriptor::own_page() {
            fixed.gdt.write((layout::GDT_PAGES - 1) * PAGE + index as u64 * 8, word);
        }
        // The root of user mode shares the tables of the ENTRY region, which no longer change.
        self.entry_region = *self.root.entry::<H>(layout::ENTRY, 3)?;
        *self.user_root.entry::<H>(layout::ENTRY, 3)? = self.entry_region;
        let user_slot = *self.user_root.entry::<H>(layout::ENTRY, 4)?;
        let shared_info = self.memory.fixed.shared_info.blocks().first().ok_or(OutOfMemory)?.phys / PAGE;
        let config = self.config_mut()?;
        config.address_mask = features.address_mask;
        config.shared_info = shared_info;
        config.user_slots[layout::ENTRY_SLOT - layout::FIRST_SLOT] = user_slot;
        let kernel_cr3 = self.first_root()?;
        self.area_mut()?.kernel_cr3 = kernel_cr3;
        Ok(())
    }

    /// CR3 of the root that the monitor begins with.
    fn first_root(&mut self) -> Result<u64, OutOfMemory> {
        let mut tops = [0; 2];
        for (top, block) in tops.iter_mut().zip(self.memory.fixed.top_tables.blocks()) {
            *top = block.phys;
        }
        let root = self.root.root();
        if tops[0] == 0 {
            return Ok(root);
        }
        for entry in [0, UPPER_HALF] {
            self.memory.fixed.top_tables.write(entry * 8, Rights::directory(root));
        }
        self.config_mut()?.top_tables = tops.map(|top| top / PAGE);
        Ok(tops[0])
    }

    /// The area; no vCPU runs.
    pub(crate) fn area(&self) -> Result<NonNull<Area>, OutOfMemory> {
        Ok(self.memory.fixed.area.blocks().first().ok_or(OutOfMemory)?.virt.cast())
    }

    /// The configuration; no vCPU runs.
    pub(crate) fn config(&self) -> Result<NonNull<Config>, OutOfMemory> {
        Ok(self.memory.fixed.state.blocks().first().ok_or(OutOfMemory)?.virt.cast())
    }

    /// The page that the guest's kernel and the monitor share; no vCPU runs.
    pub(crate) fn shared_info(&self) -> Result<SharedInfo, OutOfMemory> {
        let block = self.memory.fixed.shared_info.blocks().first().ok_or(OutOfMemory)?;
        // SAFETY: the page is the VM's own and lives as long; nothing else of the host's looks at it.
        Ok(unsafe { SharedInfo::at(block.virt.cast()) })
    }

    /// The pages of the guest's GDT and LDT.
    pub(crate) fn descriptor_tables(&self) -> (&[Block], &[Block]) {
        (self.memory.fixed.gdt.blocks(), self.memory.fixed.ldt.blocks())
    }

    /// What leads to the ENTRY region: the entry of level 3, for the transition root.
    pub(crate) const fn entry_region(&self) -> u64 {
        self.entry_region
    }

    fn area_mut(&mut self) -> Result<&mut Area, OutOfMemory> {
        // SAFETY: the page is the VM's own, zeroed or written as an Area, whose fields take all values. While the VM is put
        // together nobody else uses it.
        Ok(unsafe { self.area()?.as_mut() })
    }

    fn config_mut(&mut self) -> Result<&mut Config, OutOfMemory> {
        // SAFETY: as in area_mut(), for a Config.
        Ok(unsafe { self.config()?.as_mut() })
    }

    /// More of the guest's memory: it is one range from 0 on.
    pub(crate) fn map<H: Host>(&mut self, gpa: u64, phys: u64, order: u32) -> Result<(), OutOfMemory> {
        let pages = 1_u64 << order;
        let frames = self.frames + pages;
        if gpa != self.frames * PAGE || frames > RAM_LIMIT / PAGE {
            return Err(OutOfMemory);
        }
        let shadows = frames / FRAMES_PER_SHADOW + LEAST_SHADOWS;
        let Growing { m2p, frames: table, shadows: shadow_table, pool } = &mut self.memory.growing;
        let root = &mut self.root;
        m2p.grow::<H>(root, layout::M2P, frames * size_of::<u64>() as u64, Rights::GUEST_CONSTANTS)?;
        table.grow::<H>(root, layout::FRAMES, frames * size_of::<Frame>() as u64, Rights::DATA)?;
        shadow_table.grow::<H>(root, layout::SHADOWS, shadows * size_of::<Shadow>() as u64, Rights::DATA)?;
        pool.grow::<H>(root, layout::POOL, shadows * PAGE, Rights::DATA)?;
        let known = to_usize(self.shadows);
        for (index, block) in (self.shadows..).zip(pool.blocks().iter().skip(known)) {
            let offset = index * size_of::<Shadow>() as u64 + core::mem::offset_of!(Shadow, host) as u64;
            shadow_table.write(offset, block.phys / PAGE);
        }
        for (frame, host) in (self.frames..frames).zip(phys / PAGE..) {
            m2p.write(frame * size_of::<u64>() as u64, frame);
            table.write(frame * size_of::<Frame>() as u64 + core::mem::offset_of!(Frame, host) as u64, host);
        }
        root.set_format(Rights::DATA);
        root.map::<H>(layout::RAM + gpa, phys, order)?;
        let mut slots = [0; layout::SLOTS];
        for (slot, address) in slots.iter_mut().zip((layout::FIRST..).step_by(to_usize(layout::SLOT_SIZE))) {
            *slot = *root.entry::<H>(address, 4)?;
        }
        (self.frames, self.shadows) = (frames, shadows);
        let config = self.config_mut()?;
        config.frames = frames;
        config.shadows = shadows;
        config.kernel_slots = slots;
        Ok(())
    }

    /// Frees it.
    pub(crate) fn free<H: Host>(self) {
        let Fixed { area, stacks, tss, idt, gdt, ldt, state, shared_info, top_tables, stack } = self.memory.fixed;
        let Growing { m2p, frames, shadows, pool } = self.memory.growing;
        let fixed = [area, stacks, tss, idt, gdt, ldt, state, shared_info, top_tables, stack];
        for pages in fixed.into_iter().chain([m2p, frames, shadows, pool]) {
            pages.free::<H>();
        }
        self.user_root.free::<H>();
        self.root.free::<H>();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use covisor_core::host::ORDER_2M;
    use covisor_core::test_support::MockHost;
    use covisor_monitor::image::Header;
    use covisor_monitor::image::MAGIC;
    use covisor_monitor::mmu::entry::Entry;
    use covisor_monitor::mmu::entry::Flags;
    use zerocopy::IntoBytes;

    use super::*;

    pub(crate) const FEATURES: Features = Features {
        tsc_aux: true,
        supervisor_state: false,
        paging_levels: 4,
        xsave: true,
        address_mask: 0x000f_ffff_ffff_f000,
    };
    const HEADER: Header = Header {
        magic: MAGIC,
        entry_pages: 3,
        text_pages: 2,
        constant_pages: 1,
        syscall: layout::ENTRY,
        syscall32: layout::ENTRY,
        landing: layout::ENTRY,
    };

    /// Calls `use_vm` on a new VM, and frees all that it needs.
    pub(crate) fn with_vm(features: &Features, use_vm: impl FnOnce(&mut Vm)) {
        let before = MockHost::blocks();
        let mut bytes = vec![0x90; 6 * 4096];
        HEADER.write_to_prefix(&mut bytes).unwrap();
        let image = Image::load::<MockHost>(HEADER, &bytes).unwrap();
        let mut vm = Vm::new::<MockHost>(&image, features).unwrap();
        use_vm(&mut vm);
        vm.free::<MockHost>();
        image.free::<MockHost>();
        assert_eq!(MockHost::blocks(), before);
    }

    /// What a CPU finds that walks a table of `level`: every page that is mapped, from `base` on, with what all entries on the way
    /// allow.
    fn walk_table(table: u64, level: u32, base: u64, above: Flags, found: &mut BTreeMap<u64, (u64, Flags)>) {
        for index in 0..512 {
            // SAFETY: the mock host's physical addresses are its own, and the tables are alive.
            let bits = unsafe { *((table + index * 8) as *const u64) };
            let entry = Flags::from_bits_retain(bits);
            if !entry.contains(Flags::PRESENT) {
                continue;
            }
            let address = base | index << (12 + 9 * (level - 1));
            let allowed = above & entry & (Flags::WRITABLE | Flags::USER) | (above | entry) & Flags::NO_EXECUTE;
            if level == 1 || entry.contains(Flags::LARGE) {
                let sign = if address >> 47 & 1 == 0 { 0 } else { 0xffff << 48 };
                found.insert(address | sign, (Entry(bits).page(), allowed | entry & Flags::LARGE));
            } else {
                walk_table(Entry(bits).page(), level - 1, address, allowed, found);
            }
        }
    }

    /// The same from a root on. Of 5 levels only the halves of a 4-level address space are looked at.
    pub(crate) fn walk(root: u64, levels: u32) -> BTreeMap<u64, (u64, Flags)> {
        let mut found = BTreeMap::new();
        walk_table(root, levels, 0, Flags::WRITABLE | Flags::USER, &mut found);
        found
    }

    /// The rights of so many pages from an address on.
    fn expect(map: &mut BTreeMap<u64, Flags>, address: u64, pages: u64, rights: Flags) {
        for page in 0..pages {
            map.insert(address + page * PAGE, rights);
        }
    }

    /// What the ENTRY region has to have.
    fn entry_region() -> BTreeMap<u64, Flags> {
        let data = Flags::WRITABLE | Flags::NO_EXECUTE;
        let mut expected = BTreeMap::new();
        expect(&mut expected, layout::ENTRY, 3, Flags::empty());
        expect(&mut expected, layout::AREA, 1, data);
        expect(&mut expected, layout::IST_STACKS, 4, data);
        expect(&mut expected, layout::TSS, 1, data);
        expect(&mut expected, layout::IDT, 1, Flags::NO_EXECUTE);
        expect(&mut expected, layout::GDT, 15, data);
        expect(&mut expected, layout::LDT, 16, data);
        expected
    }

    fn rights(map: BTreeMap<u64, (u64, Flags)>) -> BTreeMap<u64, Flags> {
        map.into_iter().map(|(address, (_, rights))| (address, rights)).collect()
    }

    #[test]
    fn the_kernels_root_has_the_whole_layout_and_nothing_else() {
        with_vm(&FEATURES, |vm| {
            vm.map::<MockHost>(0, 0x4000_0000, ORDER_2M).unwrap();
            vm.map::<MockHost>(0x20_0000, 0x5000, 0).unwrap();
            let data = Flags::WRITABLE | Flags::NO_EXECUTE;
            let mut expected = entry_region();
            expect(&mut expected, layout::IMAGE, 2, Flags::empty());
            expect(&mut expected, layout::IMAGE + 0x2000, 1, Flags::NO_EXECUTE);
            expect(&mut expected, layout::STATE, layout::STATE_PAGES, data);
            expect(&mut expected, layout::SHARED_INFO, 1, data);
            expect(&mut expected, layout::STACK, layout::STACK_PAGES, data);
            // 513 frames.
            expect(&mut expected, layout::M2P, 2, Flags::USER | Flags::NO_EXECUTE);
            expect(&mut expected, layout::FRAMES, 3, data);
            expect(&mut expected, layout::SHADOWS, 2, data);
            expect(&mut expected, layout::POOL, 264, data);
            expect(&mut expected, layout::RAM, 1, data | Flags::LARGE);
            expect(&mut expected, layout::RAM + 0x20_0000, 1, data);
            let root = vm.root.root();
            assert_eq!(rights(walk(root, 4)), expected);
            assert_eq!(vm.area_mut().unwrap().kernel_cr3, root);
        });
    }

    #[test]
    fn user_mode_and_transition_have_the_entry_region_only() {
        with_vm(&FEATURES, |vm| {
            vm.map::<MockHost>(0, 0x4000_0000, ORDER_2M).unwrap();
            let user = walk(vm.user_root.root(), 4);
            let kernel = walk(vm.root.root(), 4);
            for (address, place) in &user {
                assert_eq!(kernel.get(address), Some(place), "{address:#x}");
            }
            assert_eq!(rights(user), entry_region());
            // What the configuration gives to the shadow tables' roots.
            let config = *vm.config_mut().unwrap();
            let mut slots = [[0_u64; 512]; 2];
            slots[0][layout::FIRST_SLOT..][..layout::SLOTS].copy_from_slice(&config.kernel_slots);
            slots[1][layout::FIRST_SLOT..][..layout::SLOTS].copy_from_slice(&config.user_slots);
            let [kernel_root, user_root] = slots.each_ref().map(|root| walk(root.as_ptr().addr() as u64, 4));
            assert_eq!(kernel_root, kernel);
            assert_eq!(rights(user_root), entry_region());
            let mut region = BTreeMap::new();
            walk_table(
                Entry(vm.entry_region()).page(),
                2,
                layout::ENTRY & 0xffff_ffff_ffff,
                Flags::WRITABLE,
                &mut region,
            );
            assert_eq!(rights(region), entry_region());
        });
    }

    #[test]
    fn tables_of_frames_and_shadows_name_what_is_mapped() {
        with_vm(&FEATURES, |vm| {
            for page in 0..100 {
                vm.map::<MockHost>(page * PAGE, 0x10_0000 + page * 2 * PAGE, 0).unwrap();
            }
            let kernel = walk(vm.root.root(), 4);
            let word = |address: u64| {
                let (phys, _) = kernel[&(address & !(PAGE - 1))];
                // SAFETY: a page of the mock host's, which is alive.
                unsafe { *((phys + address % PAGE) as *const u64) }
            };
            for frame in 0..100 {
                assert_eq!(word(layout::M2P + frame * 8), frame);
                assert_eq!(word(layout::FRAMES + frame * 16), 0x100 + frame * 2);
                assert_eq!(kernel[&(layout::RAM + frame * PAGE)].0, 0x10_0000 + frame * 2 * PAGE);
            }
            for shadow in 0..257 {
                assert_eq!(word(layout::SHADOWS + shadow * 24) * PAGE, kernel[&(layout::POOL + shadow * PAGE)].0);
            }
            let config = vm.config_mut().unwrap();
            assert_eq!((config.frames, config.shadows), (100, 257));
            assert_eq!(config.shared_info * PAGE, kernel[&layout::SHARED_INFO].0);
        });
    }

    #[test]
    fn memory_is_one_range_from_0_on_below_the_limit() {
        with_vm(&FEATURES, |vm| {
            assert!(vm.map::<MockHost>(0x1000, 0x5000, 0).is_err());
            vm.map::<MockHost>(0, 0x5000, 0).unwrap();
            assert!(vm.map::<MockHost>(0, 0x6000, 0).is_err());
            assert!(vm.map::<MockHost>(0x2000, 0x6000, 0).is_err());
            vm.frames = RAM_LIMIT / PAGE;
            assert!(vm.map::<MockHost>(RAM_LIMIT, 0x6000, 0).is_err());
        });
    }

    #[test]
    fn with_5_levels_both_halves_lead_to_the_root() {
        with_vm(&Features { paging_levels: 5, ..FEATURES }, |vm| {
            let [kernel_top, user_top] = vm.config_mut().unwrap().top_tables;
            assert_eq!(vm.area_mut().unwrap().kernel_cr3, kernel_top * PAGE);
            let entry = |table: u64, index: u64| {
                // SAFETY: a page of the mock host's, which is alive.
                unsafe { *((table * PAGE + index * 8) as *const u64) }
            };
            let root = Rights::directory(vm.root.root());
            assert_eq!((entry(kernel_top, 0), entry(kernel_top, 511), entry(user_top, 511)), (root, root, 0));
            let kernel = walk(vm.root.root(), 4);
            assert_eq!(kernel[&layout::TOP_TABLES].0, kernel_top * PAGE);
            assert_eq!(kernel[&(layout::TOP_TABLES + PAGE)].0, user_top * PAGE);
        });
    }
}
