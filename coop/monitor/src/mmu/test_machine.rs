//! A machine for tests: memory of a guest, and a CPU that walks the shadows as hardware does, knowing nothing of how they were made,
//! and that remembers what it may remember.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use super::Cpu;
use super::Fault;
use super::Mmu;
use super::MmuError;
use super::entry::Entry;
use super::entry::ErrorCode;
use super::entry::Flags;
use super::entry::index;
use super::entry::is_canonical;
use super::space::Space;
use super::space::Table;
use crate::config::Config;
use crate::frame::ENTRIES;
use crate::frame::Frame;
use crate::frame::Kind;
use crate::frame::Link;
use crate::frame::Shadow;
use crate::layout::FIRST_SLOT;
use crate::layout::PAGE;
use crate::layout::SLOTS;

pub(super) const P: u64 = Flags::PRESENT.bits();
pub(super) const W: u64 = Flags::WRITABLE.bits();
pub(super) const U: u64 = Flags::USER.bits();
pub(super) const A: u64 = Flags::ACCESSED.bits();
pub(super) const D: u64 = Flags::DIRTY.bits();
pub(super) const PS: u64 = Flags::LARGE.bits();
pub(super) const NX: u64 = Flags::NO_EXECUTE.bits();
/// What a kernel has in an entry for a table, and for a page of its own.
pub(super) const TABLE: u64 = P | W | U | A | D;
pub(super) const RW: u64 = P | W | A | D;
pub(super) const RO: u64 = P | A | D;

/// An entry.
pub(super) const fn entry(frame: u64, flags: u64) -> u64 {
    (frame * PAGE) | flags
}

/// Host frames: of guest memory from here on, in another order.
const HOST_RAM: u64 = 0x10_0000;
/// Of the pool.
const HOST_POOL: u64 = 0x20_0000;
/// Of the L5 pages.
const HOST_TOP: u64 = 0x30_0000;
/// Of `shared_info`.
pub(super) const HOST_SHARED_INFO: u64 = 0x40_0000;

/// An access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
    Fetch,
}

/// How an access ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// In the memory of this host frame.
    Host(u64),
    TableStore(u64),
    Device(u64),
    Fault(u64),
}

/// A translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Translation {
    pub(super) host: u64,
    pub(super) writable: bool,
    pub(super) executable: bool,
}

impl Translation {
    fn allows(self, access: Access) -> bool {
        match access {
            Access::Read => true,
            Access::Write => self.writable,
            Access::Fetch => self.executable,
        }
    }
}

/// The CPU.
#[derive(Debug, Default)]
pub(super) struct TestCpu {
    pub(super) cr3: u64,
    pub(super) loads: u32,
    pub(super) invalidated: Vec<u64>,
    /// Translations by page.
    pub(super) tlb: BTreeMap<u64, Translation>,
    /// Tables it may remember the way to, by place, and what they were.
    walked: BTreeSet<(u32, u32, u16)>,
}

impl Cpu for TestCpu {
    fn load_cr3(&mut self, cr3: u64) {
        self.cr3 = cr3;
        self.loads += 1;
        self.tlb.clear();
        self.walked.clear();
    }

    fn invlpg(&mut self, address: u64) {
        self.invalidated.push(address);
        self.tlb.remove(&(address / PAGE));
    }
}

pub(super) fn new_tables(count: usize) -> Vec<Table> {
    (0..count).map(|_| [const { AtomicU64::new(0) }; ENTRIES]).collect()
}

/// The machine.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) ram: Vec<Table>,
    pub(super) frames: Vec<Frame>,
    pub(super) shadows: Vec<Shadow>,
    pub(super) pool: Vec<Table>,
    top_tables: Vec<Table>,
    pub(super) config: Config,
    pub(super) mmu: Mmu,
    pub(super) cpu: TestCpu,
}

impl Machine {
    /// A machine with so many frames and tables, not started.
    pub(super) fn new(frames: u64, tables: usize, with_top_tables: bool) -> Self {
        let mut config = Config {
            frames,
            shadows: tables as u64,
            shared_info: HOST_SHARED_INFO,
            kernel_slots: [0; SLOTS],
            user_slots: [0; SLOTS],
            address_mask: (1 << 40) - PAGE,
            ..Config::default()
        };
        for (number, slot) in (0..).zip(&mut config.kernel_slots) {
            *slot = entry(0x50_0000 + number, P | W);
        }
        config.user_slots[1] = config.kernel_slots[1];
        if with_top_tables {
            config.top_tables = [HOST_TOP, HOST_TOP + 1];
        }
        let host_of = |frame| HOST_RAM + frame * 7 % (frames + 1);
        let shadow = |host| Shadow { host, ..Shadow::default() };
        Self {
            ram: new_tables(usize::try_from(frames).unwrap()),
            frames: (0..frames).map(|frame| Frame { host: host_of(frame), ..Frame::default() }).collect(),
            shadows: (HOST_POOL..).take(tables).map(shadow).collect(),
            pool: new_tables(tables),
            top_tables: new_tables(if with_top_tables { 2 } else { 0 }),
            config,
            mmu: Mmu::new(),
            cpu: TestCpu::default(),
        }
    }

    /// A machine whose guest has a tree of tables: the L4 in frame 1, then frames 2, 3 and 4, for addresses from 0 on; and the same
    /// L3 for addresses from [`KERNEL`] on. Nothing is mapped. Frame 5 is the L4 of its user mode, and has the first entry only.
    pub(super) fn started(frames: u64, tables: usize) -> Self {
        let mut machine = Self::new(frames, tables, false);
        machine.build();
        machine.start();
        machine
    }

    pub(super) fn build(&mut self) {
        self.set(1, 0, 2, TABLE);
        self.set(1, index(KERNEL, 4), 2, TABLE);
        self.set(2, 0, 3, TABLE);
        self.set(3, 0, 4, TABLE);
        self.set(5, 0, 2, TABLE);
    }

    pub(super) fn start(&mut self) {
        let (mmu, mut space, cpu) = self.parts();
        mmu.start(&mut space, PAGE).unwrap();
        cpu.load_cr3(mmu.kernel_cr3());
        self.check();
    }

    pub(super) fn parts(&mut self) -> (&mut Mmu, Space<'_>, &mut TestCpu) {
        let Self { ram, frames, shadows, pool, top_tables, config, mmu, cpu } = self;
        (mmu, Space::new(ram, frames, shadows, pool, top_tables, config), cpu)
    }

    /// Calls the MMU, flushes if it says so, and checks everything.
    pub(super) fn call<T>(&mut self, call: impl FnOnce(&mut Mmu, &mut Space<'_>, &mut TestCpu) -> T) -> T {
        let (mmu, mut space, cpu) = self.parts();
        let result = call(mmu, &mut space, cpu);
        if mmu.pending_flush() {
            mmu.flush(cpu);
        }
        self.check();
        result
    }

    /// Sets an entry of the guest's, behind the MMU's back.
    pub(super) fn set(&self, table: usize, index: usize, frame: u64, flags: u64) {
        self.ram[table][index].store(entry(frame, flags), Relaxed);
    }

    pub(super) fn guest_entry(&self, table: usize, index: usize) -> u64 {
        self.ram[table][index].load(Relaxed)
    }

    /// `mmu_update` of an entry.
    pub(super) fn update(&mut self, table: u64, index: usize, frame: u64, flags: u64) {
        let pointer = Entry::address(table, index);
        self.call(|mmu, space, cpu| mmu.mmu_update(space, cpu, pointer, entry(frame, flags))).unwrap();
    }

    pub(super) fn set_kernel_root(&mut self, frame: u64) -> Result<(), MmuError> {
        self.call(|mmu, space, cpu| mmu.set_kernel_root(space, cpu, frame))
    }

    pub(super) fn set_user_root(&mut self, frame: u64) -> Result<(), MmuError> {
        self.call(|mmu, space, cpu| mmu.set_user_root(space, cpu, frame))
    }

    pub(super) fn pin(&mut self, level: u8, frame: u64) -> Result<(), MmuError> {
        self.call(|mmu, space, cpu| mmu.pin(space, cpu, level, frame))
    }

    pub(super) fn unpin(&mut self, frame: u64) -> Result<(), MmuError> {
        self.call(|mmu, space, cpu| mmu.unpin(space, cpu, frame))
    }

    /// The guest's kernel accesses an address.
    pub(super) fn kernel(&mut self, address: u64, access: Access) -> Outcome {
        self.access(address, access, true)
    }

    /// A program of the guest's accesses an address.
    pub(super) fn user(&mut self, address: u64, access: Access) -> Outcome {
        self.access(address, access, false)
    }

    pub(super) fn access(&mut self, address: u64, access: Access, kernel_mode: bool) -> Outcome {
        let cr3 = if kernel_mode { self.mmu.kernel_cr3() } else { self.mmu.user_cr3() };
        assert_eq!(self.cpu.cr3, self.mmu.kernel_cr3(), "the monitor runs on the kernel's root");
        if !kernel_mode {
            self.cpu.load_cr3(cr3);
        }
        let outcome = self.access_by(address, access, kernel_mode, cr3);
        if !kernel_mode {
            self.cpu.load_cr3(self.mmu.kernel_cr3());
        }
        outcome
    }

    fn access_by(&mut self, address: u64, access: Access, kernel_mode: bool, cr3: u64) -> Outcome {
        for _ in 0..4 {
            if let Some(known) = self.cpu.tlb.get(&(address / PAGE)).filter(|known| known.allows(access)) {
                return Outcome::Host(known.host);
            }
            let found = if cr3 == 0 { None } else { self.walk(cr3, address) };
            if let Some(found) = found.filter(|found| found.allows(access)) {
                self.cpu.tlb.insert(address / PAGE, found);
                return Outcome::Host(found.host);
            }
            self.cpu.tlb.remove(&(address / PAGE));
            let mut code = ErrorCode::USER;
            code.set(ErrorCode::PRESENT, found.is_some());
            code.set(ErrorCode::WRITE, access == Access::Write);
            code.set(ErrorCode::FETCH, access == Access::Fetch);
            // The trap has loaded the kernel's root, and the way back loads the other again.
            let kernel_cr3 = self.mmu.kernel_cr3();
            if !kernel_mode {
                self.cpu.load_cr3(kernel_cr3);
            }
            match self.call(|mmu, space, cpu| mmu.fault(space, cpu, address, code.bits(), kernel_mode)) {
                Fault::Resume => {}
                Fault::TableStore { gpa } => return Outcome::TableStore(gpa),
                Fault::Device { gpa } => return Outcome::Device(gpa),
                Fault::Guest { error_code } => return Outcome::Fault(error_code),
            }
            if !kernel_mode {
                self.cpu.load_cr3(self.mmu.user_cr3());
            }
        }
        panic!("{access:?} at {address:#x} comes to no end");
    }

    /// Walks the shadows from CR3 on as a CPU does, by host frames. No CPU does it for an address that is not canonical.
    pub(super) fn walk(&mut self, cr3: u64, address: u64) -> Option<Translation> {
        if !is_canonical(address) {
            return None;
        }
        let mut table = cr3 / PAGE;
        let mut found = Translation { host: 0, writable: true, executable: true };
        if self.config.top_tables[0] != 0 {
            let top = &self.top_tables[usize::try_from(table.checked_sub(HOST_TOP).unwrap()).unwrap()];
            let entry = Entry(top[usize::try_from(address >> 48 & 511).unwrap()].load(Relaxed));
            table = entry.frame();
        }
        for level in (1..=4).rev() {
            let place = usize::try_from(table.checked_sub(HOST_POOL).expect("tables are in the pool")).unwrap();
            let shadow = self.shadows[place];
            self.cpu.walked.insert((u32::try_from(place).unwrap(), shadow.guest, shadow.kind));
            let index = index(address, level);
            if level == 4 && (FIRST_SLOT..FIRST_SLOT + SLOTS).contains(&index) {
                // The monitor's; not for ring 3.
                return None;
            }
            let entry = Entry(self.pool[place][index].load(Relaxed));
            if !entry.has(Flags::PRESENT) {
                assert_eq!(entry, Entry::NONE, "nothing to speculate with");
                return None;
            }
            assert!(entry.has(Flags::USER | Flags::ACCESSED) && !entry.has(Flags::LARGE));
            found.writable &= entry.has(Flags::WRITABLE);
            found.executable &= !entry.has(Flags::NO_EXECUTE);
            table = entry.frame();
        }
        found.host = table;
        Some(found)
    }

    pub(super) fn host_of(&self, frame: usize) -> Outcome {
        Outcome::Host(self.frames[frame].host)
    }

    /// The guest frame behind a host frame.
    pub(super) fn guest_of(&self, host: u64) -> Option<usize> {
        self.frames.iter().position(|frame| frame.host == host)
    }

    pub(super) fn has_shadow(&self, frame: usize) -> bool {
        !self.frames[frame].shadow.is_none()
    }

    pub(super) fn live_tables(&self) -> usize {
        self.shadows.iter().filter(|shadow| shadow.kind != Kind::Free as u16).count()
    }

    /// What has to hold after everything, whatever the guest does.
    pub(super) fn check(&mut self) {
        let (mmu, space, _) = self.parts();
        assert_eq!(mmu.check(&space), Ok(()));
        self.check_references();
        self.check_coherence();
        self.check_cpu();
    }

    /// Each table's references are those that there are.
    fn check_references(&self) {
        let mut references = vec![0; self.shadows.len()];
        for root in [self.mmu.kernel, self.mmu.user].into_iter().filter_map(Link::place) {
            references[root as usize] += 1;
        }
        for (shadow, table) in self.shadows.iter().zip(&self.pool) {
            let kind = Kind::from_number(shadow.kind).unwrap();
            for (index, entry) in table.iter().map(|entry| Entry(entry.load(Relaxed))).enumerate() {
                let is_slot = kind.is_root() && (FIRST_SLOT..FIRST_SLOT + SLOTS).contains(&index);
                if kind.below().is_some() && !is_slot && entry != Entry::NONE {
                    references[usize::try_from(entry.frame() - HOST_POOL).unwrap()] += 1;
                }
                assert!(kind.level() != 0 || entry == Entry::NONE, "free tables and orphans are empty");
            }
        }
        for (shadow, references) in self.shadows.iter().zip(references) {
            assert_eq!(shadow.references, references, "{shadow:?}");
            assert!(shadow.kind != Kind::Orphan as u16 || references > 0, "an orphan that nothing leads to is free");
        }
        let mut writers: BTreeMap<u64, u32> = BTreeMap::new();
        let last = self.shadows.iter().zip(&self.pool).filter(|(shadow, _)| shadow.kind == Kind::L1 as u16);
        for entry in last.flat_map(|(_, table)| table).map(|entry| Entry(entry.load(Relaxed))) {
            if entry.has(Flags::WRITABLE) {
                *writers.entry(entry.frame()).or_default() += 1;
            }
        }
        for (number, frame) in self.frames.iter().enumerate() {
            assert_eq!(frame.uses.writers(), writers.get(&frame.host).copied().unwrap_or(0), "frame {number}");
        }
    }

    /// Shadows offer nothing that the guest's tables do not offer now.
    fn check_coherence(&self) {
        for (shadow, table) in self.shadows.iter().zip(&self.pool) {
            let kind = Kind::from_number(shadow.kind).unwrap();
            for (index, entry) in table.iter().map(|entry| Entry(entry.load(Relaxed))).enumerate() {
                let is_slot = kind.is_root() && (FIRST_SLOT..FIRST_SLOT + SLOTS).contains(&index);
                if kind.level() == 0 || is_slot || entry == Entry::NONE {
                    continue;
                }
                let guest = Entry(self.ram[shadow.guest as usize][index].load(Relaxed));
                let frame = if kind == Kind::L1 {
                    assert!(!entry.has(Flags::WRITABLE) || guest.has(Flags::WRITABLE | Flags::DIRTY));
                    if entry.frame() == HOST_SHARED_INFO {
                        super::space::SHARED_INFO
                    } else {
                        self.guest_of(entry.frame()).expect("the guest's memory") as u64
                    }
                } else {
                    let child = self.shadows[usize::try_from(entry.frame() - HOST_POOL).unwrap()];
                    if child.kind == Kind::Orphan as u16 {
                        continue;
                    }
                    assert!(!guest.has(Flags::LARGE));
                    assert_eq!(entry.has(Flags::WRITABLE), guest.has(Flags::WRITABLE));
                    child.guest.into()
                };
                assert!(guest.has(Flags::PRESENT | Flags::ACCESSED), "{kind:?} {index} {entry:x?} {guest:x?}");
                assert_eq!(guest.frame(), frame);
                assert_eq!(entry.has(Flags::NO_EXECUTE), guest.has(Flags::NO_EXECUTE));
            }
        }
    }

    /// What the CPU remembers does no harm.
    fn check_cpu(&self) {
        for translation in self.cpu.tlb.values().filter(|translation| translation.writable) {
            let frame = self.guest_of(translation.host);
            assert!(frame.is_none_or(|frame| !self.has_shadow(frame)), "the CPU may write to table {frame:?}");
        }
        for (place, guest, kind) in &self.cpu.walked {
            let now = self.shadows[*place as usize];
            let is_empty = now.kind == Kind::Free as u16 || now.kind == Kind::Orphan as u16;
            assert!(is_empty || (now.guest, now.kind) == (*guest, *kind), "table {place} was used again too early");
        }
    }
}

/// An address in the half of the guest's kernel.
pub(super) const KERNEL: u64 = 0xffff_8880_0000_0000;
