//! Stores to page tables that are in use, which the kernel has mapped read-only (`vm_assist`, writable page tables): to the entries of
//! the lowest level Linux stores as if they were memory. They end as they would in memory: the same value, registers and flags, and the
//! page is where the entry says. What Linux does not use ends so as well, or in a page fault with nothing done.

use core::arch::asm;

use super::super::Check;
use crate::cpu;
use crate::exception;
use crate::exception::Fault;
use crate::exception::vector;
use crate::layout;
use crate::report::Report;
use crate::xen;
use crate::xen::abi::call;
use crate::xen::abi::mmuext;
use crate::xen::frames;
use crate::xen::frames::Loan;
use crate::xen::hypercall::at;
use crate::xen::hypercall::hypercall;
use crate::xen::hypercall::mmuext;
use crate::xen::tables::ADDRESS;
use crate::xen::tables::GLOBAL;
use crate::xen::tables::PRESENT;
use crate::xen::tables::RO;
use crate::xen::tables::RW;
use crate::xen::window::Window;

pub(super) const CHECKS: &[Check] =
    &[Check { name: "xen-table-stores", run: stores }, Check { name: "xen-table-stores-odd", run: odd_stores }];

/// The page whose entry is stored to.
const NUMBER: u64 = 8;
/// Marks of the two pages that it leads to.
const MARKS: [u64; 2] = [0x1111_aaaa, 0x2222_bbbb];
/// The status flags: CF, PF, AF, ZF, SF, OF.
const STATUS: u64 = 0x8d5;

/// What is there before and after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    /// The two words from RDI on.
    words: [u64; 2],
    rax: u64,
    r8: u64,
    flags: u64,
}

/// Executes one instruction with RDI at `at`, RSI at a third word, RCX at 1 and RAX, R8 and RDX from the state.
macro_rules! execute {
    ($line:literal, $at:expr, $state:expr) => {{
        let mut after: State = $state;
        let source = after.r8;
        let raised = catch!(
            ["push 2", "popfq", $line, "pushfq", "pop r9", "cld"],
            inout("rdi") $at => _, inout("rsi") &raw const source => _, inout("rcx") 1_u64 => _,
            inout("rax") after.rax, inout("r8") after.r8, in("rdx") 0_u64, inout("r9") 0_u64 => after.flags
        );
        after.flags &= STATUS;
        (after, raised)
    }};
}

/// Two words, where instructions want 16 bytes aligned.
#[repr(align(16))]
struct Aligned([u64; 2]);

/// The entry under test.
struct Table {
    window: Window,
    /// Entries that lead to the two pages: writable, read-only.
    entries: [[u64; 2]; 2],
}

impl Table {
    fn new(loan: &Loan) -> Self {
        /// `vm_assist`: enable; writable page tables.
        const WRITABLE_PAGE_TABLES: [u64; 2] = [0, 2];
        hypercall(call::VM_ASSIST, WRITABLE_PAGE_TABLES);
        // Xen sets the bit of its own accord.
        let global = if xen::is_covisor() { 0 } else { GLOBAL };
        let entries = MARKS.map(|mark| {
            let page = loan.take();
            frames::write(page, mark);
            [frames::machine(page) | RW | global, frames::machine(page) | RO | global]
        });
        Self { window: Window::new(), entries }
    }

    /// Sets both entries that the instruction may reach.
    fn set(&self, words: [u64; 2]) {
        for (number, word) in (NUMBER..).zip(words) {
            self.window.set(number, word);
        }
    }

    fn words(&self) -> [u64; 2] {
        [frames::read(self.window.entry(NUMBER)), frames::read(self.window.entry(NUMBER + 1))]
    }

    /// What a load through the entry gives.
    fn seen(&self) -> Option<u64> {
        mmuext(mmuext::INVLPG_LOCAL, Window::page(NUMBER), 0);
        let mut value = 0_u64;
        let raised = catch!(["mov {1}, [{0}]"], in(reg) Window::page(NUMBER), inout(reg) value);
        raised.is_none().then_some(value)
    }

    /// What it should give, if that can be told: nothing where the entry leads nowhere.
    fn wanted(&self) -> Option<Option<u64>> {
        let entry = self.window.get(NUMBER);
        if entry & PRESENT == 0 {
            return Some(None);
        }
        let page = frames::physical(entry & ADDRESS)?;
        // What is further up may be mapped otherwise.
        (page < layout::FRAMES + layout::FRAMES_SIZE / 2).then(|| Some(frames::read(page)))
    }

    /// Puts an instruction to the entry, and to memory. `may_fault`: a page fault with nothing done is right, too.
    fn judge(
        &self,
        report: &mut Report,
        name: &str,
        before: State,
        run: impl Fn(u64, State) -> (State, Option<Fault>),
        may_fault: bool,
    ) {
        let mut memory = Aligned(before.words);
        let (mut native, fault) = run(at(&raw mut memory), before);
        native.words = memory.0;
        if let Some(fault) = fault {
            return report.error(format_args!("{name} in memory: {fault}"));
        }
        self.set(before.words);
        let (mut came, raised) = run(self.window.entry(NUMBER), before);
        came.words = self.words();
        match raised {
            None if may_fault => {
                // Xen has its own mind about entries that lead to no memory.
                report.expect_of_covisor(came == native, format_args!("{name}: {came:x?}, not {native:x?}"));
            }
            None => report.expect(came == native, format_args!("{name}: {came:x?}, not {native:x?}")),
            Some(fault) => {
                let right = may_fault && fault.vector == vector::PF && fault.error == 3;
                report.expect(right, format_args!("{name}: {fault}"));
                report.expect(
                    came.words == before.words && came.rax == before.rax,
                    format_args!("{name} faults with something done: {came:x?}, was {before:x?}"),
                );
            }
        }
        if let Some(wanted) = self.wanted() {
            let seen = self.seen();
            report.expect(seen == wanted, format_args!("{name}: the page reads as {seen:x?}, not {wanted:x?}"));
        }
        self.set([0; 2]);
    }
}

/// Judges each instruction in several states.
macro_rules! judge {
    ($report:ident, $table:ident, $may_fault:literal, $states:expr, $($line:literal),+ $(,)?) => { $(
        for before in $states {
            $table.judge($report, $line, before, |at, state| execute!($line, at, state), $may_fault);
        }
    )+ };
}

/// States to begin with: the entry's value, RAX and R8.
fn states(table: &Table) -> [State; 5] {
    let [[a, a_read_only], [b, _]] = table.entries;
    let state = |word, rax, r8| State { words: [word, 0], rax, r8, flags: 0 };
    [state(a, a, b), state(a, b, b), state(a, 0, 0), state(0, 0, a_read_only), state(a_read_only, a_read_only, a)]
}

/// The stores that Linux 6.1 and 6.12 change page tables by.
fn stores(report: &mut Report) {
    let loan = Loan::new();
    let table = Table::new(&loan);
    judge!(
        report,
        table,
        false,
        states(&table),
        "mov [rdi], r8",
        "mov [rdi], rax",
        "mov qword ptr [rdi], 0",
        "xchg [rdi], r8",
        "xchg [rdi], rax",
        "lock xchg [rdi], r8",
        "cmpxchg [rdi], r8",
        "lock cmpxchg [rdi], r8",
        "lock and byte ptr [rdi], 0xdf",
        "lock and qword ptr [rdi], -3",
        "and qword ptr [rdi], -0x43",
        "lock or byte ptr [rdi], 0x40",
        "or qword ptr [rdi], 0x20",
        "lock btr qword ptr [rdi], 5",
        "lock btr qword ptr [rdi], 1",
        "lock bts qword ptr [rdi], 6",
        "btr qword ptr [rdi], 6",
    );
}

/// Other stores: of other sizes, between entries, over two of them, by instructions that nobody changes page tables by.
fn odd_stores(report: &mut Report) {
    let loan = Loan::new();
    let table = Table::new(&loan);
    judge!(
        report,
        table,
        true,
        states(&table),
        "mov [rdi], eax",
        "mov [rdi], ax",
        "mov [rdi], al",
        "mov [rdi + 4], eax",
        "mov byte ptr [rdi], 0",
        "mov word ptr [rdi], 0x20",
        "mov dword ptr [rdi], 0",
        "mov [rdi + 1], r8",
        "mov [rdi + 7], r8w",
        "mov [rdi + 4], r8",
        "add [rdi], r8",
        "sub qword ptr [rdi], 1",
        "xor qword ptr [rdi], 2",
        "inc qword ptr [rdi]",
        "dec qword ptr [rdi]",
        "not qword ptr [rdi]",
        "neg qword ptr [rdi]",
        "xadd [rdi], r8",
        "btc qword ptr [rdi], 1",
        "lock bts qword ptr [rdi], rcx",
        "cmpxchg [rdi], r8d",
        "lock and [rdi], r8",
        "lock or [rdi], r8",
        "lock and word ptr [rdi], 0xffdf",
        "movnti [rdi], r8",
        "stosq",
        "stosb",
        "rep stosq",
        "movsq",
        "rep movsb",
    );
    if xen::is_covisor() {
        // A guest is ended that stores by what nobody emulates (`exotic-table-store` of the attacks).
        return;
    }
    judge!(report, table, true, states(&table), "shl qword ptr [rdi], 1", "movq xmm0, r8; movups [rdi], xmm0");
    for before in states(&table) {
        if cpu::cpuid(1, 0).ecx & 1 << 13 != 0 {
            table.judge(report, "cmpxchg16b", before, |at, state| compare_pair(at, state, true), true);
        }
        table.judge(report, "cmpxchg8b", before, |at, state| compare_pair(at, state, false), true);
    }
}

/// CMPXCHG16B or CMPXCHG8B: compares with RAX and 0, exchanges with R8 and 0. (RBX, which the compiler keeps for itself, comes back by the
/// stack, after a fault by that of `guarded`.)
fn compare_pair(at: u64, before: State, wide: bool) -> (State, Option<Fault>) {
    let mut after = before;
    let raised = exception::guarded(|| {
        let (rax, flags): (u64, u64);
        /// With one of them.
        macro_rules! exchange {
            ($line:literal) => {
                asm!(
                    "push rbx", "mov rbx, r8", "push 2", "popfq", $line, "pushfq", "pop r9", "pop rbx",
                    in("rdi") at, in("r8") before.r8, inout("rax") before.rax => rax, inout("rdx") 0_u64 => _, in("rcx") 0,
                    out("r9") flags,
                )
            };
        }
        // SAFETY: changes 16 bytes, which are the caller's, or faults.
        unsafe { if wide { exchange!("cmpxchg16b [rdi]") } else { exchange!("cmpxchg8b [rdi]") } }
        after.rax = rax;
        after.flags = flags & STATUS;
    });
    (after, raised)
}
