//! Guests that do anything, with few frames and few tables, so that everything meets everything. After each step [`Machine::check`]
//! holds, however the guest keeps to its protocol: shadows offer what its tables offer now, or less; and each access comes to what
//! the guest's tables say, by a walk that knows nothing of shadows.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::sample::select;

use super::FEWEST_TABLES;
use super::space::SHARED_INFO;
use super::test_machine::*;
use crate::frame::Link;
use crate::layout::PAGE;
use crate::layout::is_monitors;

const FRAMES: u64 = 64;
const TABLES: u64 = 19;
/// Frames that are tables of each level, from 1 on, when the guest is orderly.
const ORDERLY: [&[u64]; 4] = [&[4, 9, 10, 11, 12, 13, 14, 15], &[3, 8, 16, 17], &[2, 7, 18], &[1, 5, 6]];
/// Entries that it uses of each table.
const ORDERLY_ENTRIES: usize = 3;

/// What a guest does.
#[derive(Clone, Debug)]
enum Step {
    Update { table: u64, index: usize, value: u64, command: u64 },
    UpdateByAddress { address: u64, value: u64, flags: u64 },
    Store { address: u64, value: u64, bytes: u64 },
    Access { address: u64, access: Access, kernel_mode: bool },
    Pin { level: u8, frame: u64 },
    Unpin { frame: u64 },
    KernelRoot { frame: u64 },
    UserRoot { frame: u64 },
    Translate { address: u64, write: bool },
    Invalidate { address: u64 },
    Flush,
}

fn indexes() -> impl Strategy<Value = usize> {
    prop_oneof![80 => 0..ORDERLY_ENTRIES, 2 => Just(511_usize), 1 => 255..274_usize, 1 => 0..512_usize]
}

/// Mostly the few frames that are tables most often.
fn frames() -> impl Strategy<Value = u64> {
    let others = prop_oneof![6 => 0..FRAMES, 1 => FRAMES..FRAMES + 4, 1 => Just(SHARED_INFO), 1 => 0..1_u64 << 40];
    prop_oneof![6 => 1..TABLES, 1 => others]
}

fn values() -> impl Strategy<Value = u64> {
    let flags = prop_oneof![
        6 => Just(TABLE),
        4 => Just(RW),
        4 => Just(RO),
        1 => Just(0),
        1 => Just(P | W),
        1 => Just(P | A | W),
        1 => Just(TABLE & !A),
        1 => Just(TABLE | NX),
        1 => Just(TABLE | PS),
        1 => any::<u64>().prop_map(|flags| flags & (0xfff | NX)),
    ];
    prop_oneof![20 => (frames(), flags).prop_map(|(frame, flags)| entry(frame, flags)), 1 => any::<u64>()]
}

/// Table, index and value of an entry that an orderly guest might have. It maps its tables as well, whether it may or not.
fn orderly() -> impl Strategy<Value = (u64, usize, u64)> {
    let flags = prop_oneof![16 => Just(TABLE), 2 => Just(TABLE & !A), 1 => Just(TABLE | PS), 1 => Just(0)];
    let higher = (1..4_usize).prop_flat_map(|level| (select(ORDERLY[level]), select(ORDERLY[level - 1])));
    let higher = (higher, 0..ORDERLY_ENTRIES, flags)
        .prop_map(|((table, below), index, flags)| (table, index, entry(below, flags)));
    let flags = prop_oneof![8 => Just(RW), 8 => Just(RO), 1 => Just(P | W), 1 => Just(P | W | A), 1 => Just(0)];
    let first = (select(ORDERLY[0]), 0..ORDERLY_ENTRIES, 1..TABLES + 4, flags)
        .prop_map(|(table, index, frame, flags)| (table, index, entry(frame, flags)));
    prop_oneof![1 => higher, 1 => first]
}

fn entries() -> impl Strategy<Value = (u64, usize, u64)> {
    prop_oneof![12 => orderly(), 1 => (frames(), indexes(), values())]
}

fn addresses() -> impl Strategy<Value = u64> {
    let indexes = (prop_oneof![20 => indexes(), 1 => 255..273_usize], indexes(), indexes(), indexes(), 0..PAGE);
    let usual = indexes.prop_map(|(fourth, third, second, first, offset)| {
        let number = [fourth, third, second, first].iter().fold(0, |number, index| number << 9 | *index as u64);
        let address = number * PAGE + offset;
        if address >> 47 == 0 { address } else { address | !0 << 48 }
    });
    prop_oneof![20 => usual, 1 => any::<u64>()]
}

fn roots() -> impl Strategy<Value = u64> {
    prop_oneof![12 => select(ORDERLY[3]), 1 => frames()]
}

fn commands() -> impl Strategy<Value = u64> {
    prop_oneof![8 => Just(0_u64), 4 => Just(2_u64), 1 => Just(1_u64), 1 => Just(3_u64)]
}

fn steps() -> impl Strategy<Value = Step> {
    let access = prop_oneof![Just(Access::Read), Just(Access::Write), Just(Access::Fetch)];
    prop_oneof![
        8 => (entries(), commands())
            .prop_map(|((table, index, value), command)| Step::Update { table, index, value, command }),
        4 => (addresses(), entries(), 0..8_u64)
            .prop_map(|(address, (.., value), flags)| Step::UpdateByAddress { address, value, flags }),
        6 => (addresses(), entries(), prop_oneof![8 => Just(8_u64), 1 => 0..40_u64])
            .prop_map(|(address, (.., value), bytes)| Step::Store { address, value, bytes }),
        16 => (addresses(), access, prop::bool::weighted(0.7))
            .prop_map(|(address, access, kernel_mode)| Step::Access { address, access, kernel_mode }),
        2 => (0..6_u8, frames()).prop_map(|(level, frame)| Step::Pin { level, frame }),
        2 => frames().prop_map(|frame| Step::Unpin { frame }),
        1 => roots().prop_map(|frame| Step::KernelRoot { frame }),
        1 => roots().prop_map(|frame| Step::UserRoot { frame }),
        3 => (addresses(), any::<bool>()).prop_map(|(address, write)| Step::Translate { address, write }),
        1 => addresses().prop_map(|address| Step::Invalidate { address }),
        1 => Just(Step::Flush),
    ]
}

/// What the guest's tables say of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Frame {
        frame: u64,
        /// The tables are none that shadows can be made of: one is of two levels, or is a root in use.
        impossible: bool,
        /// The frame is one of the tables, or a root in use.
        is_needed: bool,
    },
    Missing,
    Reserved,
    Forbidden {
        frame: u64,
    },
}

impl Machine {
    /// Walks the guest's own tables.
    fn told(&self, address: u64, access: Access, kernel_mode: bool) -> Told {
        let root = if kernel_mode { self.mmu.kernel } else { self.mmu.user };
        let Some(root) = root.place() else { return Told::Missing };
        let canonical = address >> 47 == 0 || address >> 47 == 0x1_ffff;
        if !canonical || is_monitors(address) {
            return Told::Missing;
        }
        let mut table = usize::try_from(self.shadows[root as usize].guest).unwrap();
        let (mut writable, mut executable, mut tables) = (true, true, vec![]);
        for shift in [39, 30, 21, 12] {
            tables.push(table);
            let entry = self.guest_entry(table, usize::try_from(address >> shift & 511).unwrap());
            let frame = entry >> 12 & 0xff_ffff_ffff;
            if entry & P == 0 {
                return Told::Missing;
            }
            writable &= entry & W != 0;
            executable &= entry & NX == 0;
            if shift == 12 {
                let allowed = match access {
                    Access::Read => true,
                    Access::Write => writable,
                    Access::Fetch => executable,
                };
                return match () {
                    () if entry & 0x000f_ffff_ffff_f000 & !self.config.address_mask != 0 => Told::Reserved,
                    () if !allowed => Told::Forbidden { frame },
                    () => {
                        let roots = [self.mmu.kernel, self.mmu.user].into_iter().filter_map(Link::place);
                        let roots: Vec<_> = roots.map(|root| self.shadows[root as usize].guest as usize).collect();
                        let distinct: BTreeSet<_> = tables.iter().collect();
                        let impossible = distinct.len() < 4 || tables[1..].iter().any(|table| roots.contains(table));
                        let is_needed = tables.iter().chain(&roots).any(|table| *table as u64 == frame);
                        Told::Frame { frame, impossible, is_needed }
                    }
                };
            }
            if entry & PS != 0 || frame >= FRAMES {
                return Told::Reserved;
            }
            table = usize::try_from(frame).unwrap();
        }
        unreachable!("the last level returns")
    }

    /// Whether an access may end like this. What the CPU remembered of older tables it may use.
    fn is_right(&self, told: Told, remembered: Option<u64>, outcome: Outcome, address: u64, access: Access) -> bool {
        let offset = address % PAGE;
        match (told, outcome) {
            (_, Outcome::Host(host)) if remembered == Some(host) => true,
            (Told::Frame { frame: SHARED_INFO, .. }, Outcome::Host(host)) => host == HOST_SHARED_INFO,
            (Told::Frame { frame, .. }, Outcome::Host(host)) => {
                self.guest_of(host).map(|frame| frame as u64) == Some(frame)
            }
            (Told::Frame { frame, .. }, Outcome::Device(gpa)) => {
                frame >= FRAMES && frame != SHARED_INFO && gpa == frame * PAGE + offset
            }
            (Told::Frame { frame, is_needed, .. }, Outcome::TableStore(gpa)) => {
                access == Access::Write && is_needed && gpa == frame * PAGE + offset
            }
            (Told::Forbidden { frame }, Outcome::TableStore(gpa)) => {
                let is_table = frame < FRAMES && self.frames[usize::try_from(frame).unwrap()].uses.level() != 0;
                access == Access::Write && is_table && gpa == frame * PAGE + offset
            }
            (Told::Frame { impossible, is_needed, .. }, Outcome::Fault(code)) => {
                code & 1 != 0 && (impossible || is_needed && access == Access::Write)
            }
            (Told::Forbidden { .. }, Outcome::Fault(code)) => code & 9 == 1,
            (Told::Reserved, Outcome::Fault(code)) => code & 9 == 9,
            (Told::Missing, Outcome::Fault(code)) => code & 1 == 0,
            _ => false,
        }
    }

    fn try_access(&mut self, address: u64, access: Access, kernel_mode: bool) -> Outcome {
        let told = self.told(address, access, kernel_mode);
        let remembered = self.cpu.tlb.get(&(address / PAGE)).map(|known| known.host);
        let outcome = self.access(address, access, kernel_mode);
        assert!(
            self.is_right(told, remembered, outcome, address, access),
            "{access:?} at {address:#x} is {outcome:x?}, but the tables tell {told:x?}"
        );
        assert!(kernel_mode || !matches!(outcome, Outcome::TableStore(_)), "programs do not write to tables");
        if let Outcome::Fault(code) = outcome {
            assert_eq!(code & 2 != 0, access == Access::Write);
            assert_eq!(code & 4 != 0, !kernel_mode);
            assert_eq!(code & 16 != 0, access == Access::Fetch);
        }
        outcome
    }

    /// Writes to the guest's memory as an instruction of its does.
    fn poke(&self, gpa: u64, value: u64) {
        let [frame, index] = [gpa / PAGE, gpa % PAGE / 8].map(|number| usize::try_from(number).unwrap());
        self.ram[frame][index].store(value, std::sync::atomic::Ordering::Relaxed);
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Update { table, index, value, command } => {
                let pointer = (table * PAGE + index as u64 * 8) | command;
                let result = self.call(|mmu, space, cpu| mmu.mmu_update(space, cpu, pointer, value));
                assert_eq!(result.is_ok(), command == 1 || command != 3 && table < FRAMES);
            }
            Step::UpdateByAddress { address, value, flags } => {
                let _ = self.call(|mmu, space, cpu| mmu.update_va_mapping(space, cpu, address, value, flags));
            }
            Step::Store { address, value, bytes } => {
                let address = address & !7;
                match self.try_access(address, Access::Write, true) {
                    Outcome::Host(host) if host != HOST_SHARED_INFO => {
                        let frame = self.guest_of(host).unwrap();
                        assert!(!self.has_shadow(frame), "no table is written to behind our back");
                        self.poke(frame as u64 * PAGE + address % PAGE, value);
                    }
                    Outcome::TableStore(gpa) => {
                        self.poke(gpa, value);
                        let bytes = bytes.max(8);
                        self.call(|mmu, space, cpu| mmu.table_stored(space, cpu, gpa, bytes));
                    }
                    _ => {}
                }
            }
            Step::Access { address, access, kernel_mode } => {
                self.try_access(address, access, kernel_mode);
            }
            Step::Pin { level, frame } => {
                let result = self.pin(level, frame);
                assert!(result.is_err() || (1..5).contains(&level) && frame < FRAMES);
            }
            Step::Unpin { frame } => assert_eq!(self.unpin(frame).is_ok(), frame < FRAMES),
            Step::KernelRoot { frame } => {
                let before = self.mmu.guest_cr3();
                let expected = if self.set_kernel_root(frame).is_ok() { frame * PAGE } else { before };
                assert_eq!(self.mmu.guest_cr3(), expected);
                assert_eq!(self.cpu.cr3, self.mmu.kernel_cr3());
            }
            Step::UserRoot { frame } => {
                let _ = self.set_user_root(frame);
            }
            Step::Translate { address, write } => {
                let told = self.told(address, if write { Access::Write } else { Access::Read }, true);
                let found = self.call(|mmu, space, _| mmu.translate(space, address, write));
                if let Some(gpa) = found {
                    assert!(matches!(told, Told::Frame { frame, .. } if frame == gpa / PAGE));
                    assert_eq!(gpa % PAGE, address % PAGE);
                    let frame = usize::try_from(gpa / PAGE).unwrap();
                    assert!(gpa / PAGE == SHARED_INFO || !(write && self.has_shadow(frame)));
                }
            }
            Step::Invalidate { address } => self.call(|mmu, _, cpu| mmu.invalidate(cpu, address)),
            Step::Flush => self.call(|mmu, _, cpu| mmu.flush(cpu)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn test_no_guest_comes_to_what_is_not_its_own(
        tables in prop_oneof![Just(FEWEST_TABLES as usize), Just(40)],
        entries in prop::collection::vec(orderly(), 0..8),
        steps in prop::collection::vec(steps(), 1..250),
    ) {
        let mut machine = Machine::started(FRAMES, tables);
        // All tables lead to tables or to pages of their own, before some of that changes.
        for level in 0..4 {
            for (place, table) in ORDERLY[level].iter().enumerate() {
                for index in 0..ORDERLY_ENTRIES {
                    let below = match level {
                        0 => TABLES + (place + index) as u64,
                        _ => ORDERLY[level - 1][(place * ORDERLY_ENTRIES + index) % ORDERLY[level - 1].len()],
                    };
                    machine.poke(table * PAGE + index as u64 * 8, entry(below, TABLE));
                }
            }
        }
        for (table, index, value) in entries {
            machine.poke(table * PAGE + index as u64 * 8, value);
        }
        for step in &steps {
            machine.step(step);
        }
    }
}
