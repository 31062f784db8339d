//! Input at random: hypercalls with any arguments, page tables, descriptors and returns of any content. The guest puts back what it needs
//! itself after each, so that it goes on for as long as it is let.

use core::arch::asm;

use super::check;
use super::look;
use super::store;
use crate::cmdline::CommandLine;
use crate::cpu;
use crate::exception;
use crate::exception::selector;
use crate::layout;
use crate::rng::Rng;
use crate::user;
use crate::xen::abi::DOMID_SELF;
use crate::xen::abi::HYPERVISOR_START;
use crate::xen::abi::call;
use crate::xen::abi::mmuext;
use crate::xen::abi::sched;
use crate::xen::abi::vcpu;
use crate::xen::events;
use crate::xen::frames;
use crate::xen::frames::PAGE;
use crate::xen::hypercall;
use crate::xen::hypercall::at;
use crate::xen::iret::Context;
use crate::xen::multicall;
use crate::xen::segments;
use crate::xen::tables;
use crate::xen::tables::RW;
use crate::xen::timer;
use crate::xen::traps;
use crate::xen::window::Window;

/// Frames that are tables and memory in turn.
const FRAMES: usize = 24;
/// Memory for arguments.
const ARGUMENTS: u64 = layout::SCRATCH + 0x1_0000;
/// How many bytes it has.
const ARGUMENTS_SIZE: u64 = 0x1000;
/// Slots of the root that tables are hung into.
const SLOTS: core::ops::Range<u64> = 160..168;
/// Steps between two lines of output.
const REPORT: u64 = 20_000;
/// Steps between two checks of the hypervisor's tables, which take as long as a few hundred.
const CHECK: u64 = 256;

/// The state of the run.
struct Run {
    rng: Rng,
    window: Window,
    frames: [u64; FRAMES],
}

/// Everything, for `seconds=` seconds of the guest's time, or for ever; `seed=` says how it begins.
pub(super) fn everything(line: &CommandLine) {
    let mut run =
        Run { rng: super::super::rng(line), window: Window::new(), frames: [(); FRAMES].map(|()| frames::take()) };
    let end = line.number("seconds").map(|seconds| timer::now() + seconds * 1_000_000_000);
    let mut steps = 0_u64;
    while end.is_none_or(|end| timer::now() < end) {
        let _ = exception::guarded(|| run.step());
        steps += 1;
        // Before anything is put back.
        if steps.is_multiple_of(CHECK) {
            check();
        }
        let _ = exception::guarded(repair);
        if steps.is_multiple_of(REPORT) {
            println!("probe: random: {steps} steps");
        }
    }
    println!("probe: random: {steps} steps in all");
}

/// Puts back what the probe itself needs.
fn repair() {
    traps::fill_exceptions();
    traps::register_all();
    traps::set_stack(exception::user_entry_stack());
    segments::load();
    hypercall::hypercall(call::SET_DEBUGREG, [7, 1 << 10]);
    hypercall::hypercall(call::FPU_TASKSWITCH, [0]);
    hypercall::mmuext(mmuext::SET_LDT, 0, 0);
    events::mask();
    hypercall::mmuext(mmuext::NEW_BASEPTR, tables::frame(tables::kernel()), 0);
    hypercall::mmuext(mmuext::NEW_USER_BASEPTR, tables::frame(tables::users()), 0);
}

impl Run {
    fn pick<T: Copy>(&mut self, list: &[T]) -> Option<T> {
        list.get(usize::try_from(self.rng.below(list.len() as u64)).unwrap_or(0)).copied()
    }

    /// One of the frames.
    fn page(&mut self) -> u64 {
        let pages = self.frames;
        self.pick(&pages).unwrap_or(ARGUMENTS)
    }

    /// A frame number: mostly of the run's own, sometimes of others, sometimes anything.
    fn frame(&mut self) -> u64 {
        match self.rng.below(8) {
            0 => frames::count() + self.rng.below(64),
            1 => self.rng.few_bits() >> 12,
            2 => tables::frame(self.window.table()),
            3 => tables::frame(tables::users()),
            _ => tables::frame(self.page()),
        }
    }

    /// An entry of a page table: the address of a frame, and flags.
    fn entry(&mut self) -> u64 {
        let flags = match self.rng.below(4) {
            0 => RW,
            1 => tables::TABLE,
            2 => tables::RO,
            _ => self.rng.draw() & 0xfff0_0000_0000_0fff,
        };
        (self.frame() << 12 & tables::ADDRESS) | flags
    }

    /// Where an entry of a table is that the run may change: in its own tables, in the root's slots.
    fn place(&mut self) -> u64 {
        let slot = SLOTS.start + self.rng.below(SLOTS.end - SLOTS.start);
        match self.rng.below(4) {
            0 => tables::kernel() + slot * 8,
            1 => self.window.entry(self.rng.below(512)),
            _ => self.page() + self.rng.below(512) * 8,
        }
    }

    /// An address: of the window, of what hangs in the slots, of the monitor's, of anything, of nothing.
    fn address(&mut self) -> u64 {
        match self.rng.below(8) {
            0 => HYPERVISOR_START + (self.rng.draw() & 0x7ff_ffff_ffff),
            1 => self.rng.draw(),
            2 => self.rng.few_bits(),
            3 => self.page() + self.rng.below(PAGE),
            4 => Window::BASE + (self.rng.draw() & 0x1f_ffff),
            _ => {
                let slot = SLOTS.start + self.rng.below(SLOTS.end - SLOTS.start);
                let page = [30, 21, 12].map(|shift| self.rng.below(4) << shift).into_iter().sum::<u64>();
                (slot << 39) + page + self.rng.below(512) * 8
            }
        }
    }

    /// A pointer for a hypercall: mostly to arguments, never to the probe's own memory.
    fn pointer(&mut self) -> u64 {
        if self.rng.below(4) != 0 { (ARGUMENTS + self.rng.below(ARGUMENTS_SIZE / 2)) & !7 } else { self.address() }
    }

    /// A number, small as a rule.
    fn number(&mut self) -> u64 {
        match self.rng.below(4) {
            0 => self.rng.draw(),
            1 => self.rng.few_bits(),
            _ => self.rng.below(20),
        }
    }

    /// Fills the arguments.
    fn fill(&mut self) {
        for index in 0..ARGUMENTS_SIZE / 8 {
            let word = match self.rng.below(6) {
                0 => self.entry(),
                1 => self.address(),
                2 => self.frame(),
                3 => frames::machine(self.place()) | self.rng.below(4),
                _ => self.number(),
            };
            frames::write(ARGUMENTS + index * 8, word);
        }
    }

    /// Number and arguments of a hypercall that does not end the guest, or take from it what it cannot put back.
    fn call(&mut self) -> (u64, [u64; 5]) {
        let number = self.rng.below(48);
        let arguments = [(); 5].map(|()| if self.rng.below(2) == 0 { self.pointer() } else { self.number() });
        let [first, second, third, ..] = arguments;
        match number {
            // Lists of these are made with care, below; the guest returns by `iret` only from where it knows.
            call::MMU_UPDATE | call::MMUEXT_OP | call::IRET | call::MULTICALL => {
                (call::XEN_VERSION, [first, self.pointer(), 0, 0, 0])
            }
            call::UPDATE_VA_MAPPING => (number, [self.address() | 1 << 40, self.entry(), third, 0, 0]),
            // Text without end would be nothing but that.
            call::CONSOLE_IO => (number, [first, second & 0xf, third, 0, 0]),
            call::SCHED_OP if first & 0xf == sched::BLOCK || first & 0xf == sched::SHUTDOWN => (number, [0; 5]),
            call::VCPU_OP if first == 2 || first == vcpu::REGISTER_VCPU_INFO => {
                (number, [vcpu::IS_UP, second, third, 0, 0])
            }
            call::UPDATE_DESCRIPTOR => {
                (number, [frames::machine(self.page() + self.rng.below(512) * 8), self.rng.draw(), 0, 0, 0])
            }
            _ => (number, arguments),
        }
    }

    fn step(&mut self) {
        match self.rng.below(16) {
            0 => self.fill(),
            1..=3 => {
                let (number, arguments) = self.call();
                hypercall::hypercall(number, arguments);
            }
            4 => self.many_calls(),
            5 | 6 => self.updates(),
            7 => self.operations(),
            8 => self.stores(),
            9 => {
                // As memory again, and whatever in it.
                let page = self.page();
                hypercall::update_va_mapping(page, frames::machine(page) | RW, 2);
                let _ = store(page + self.rng.below(512) * 8, self.entry());
            }
            10 | 11 => self.accesses(),
            12 => self.descriptors(),
            13 => drop(self.context().go()),
            14 => self.debug(),
            _ => self.program(),
        }
    }

    fn many_calls(&mut self) {
        let mut list = [multicall::entry(0, [0; 3]); 8];
        for entry in &mut list {
            let (number, arguments) = self.call();
            entry[0] = number;
            for (slot, argument) in entry[2..].iter_mut().zip(arguments) {
                *slot = argument;
            }
        }
        multicall::multicall(&mut list);
    }

    fn updates(&mut self) {
        let mut list = [[0_u64; 2]; 8];
        for update in &mut list {
            *update = [frames::machine(self.place()) | self.rng.below(4), self.entry()];
        }
        let count = self.rng.below(9);
        hypercall::hypercall(call::MMU_UPDATE, [at(list.as_ptr()), count, 0, DOMID_SELF]);
    }

    fn operations(&mut self) {
        let mut list = [[0_u64; 3]; 4];
        for operation in &mut list {
            let kind = self.rng.below(24);
            let first = if self.rng.below(2) == 0 { self.frame() } else { self.address() };
            *operation = [kind, first, self.number()];
            // A root without the probe in it would be its end.
            if kind == u64::from(mmuext::NEW_BASEPTR) {
                operation[1] = frames::count() + self.rng.below(1 << 30);
            }
        }
        hypercall::hypercall(call::MMUEXT_OP, [at(list.as_ptr()), self.rng.below(5), 0, DOMID_SELF]);
    }

    /// Stores to page tables, of many kinds.
    fn stores(&mut self) {
        let (place, value) = (self.place(), self.entry());
        let _ = match self.rng.below(10) {
            0 => catch!(["mov [{0}], {1}"], in(reg) place, in(reg) value),
            1 => catch!(["xchg [{0}], {1}"], in(reg) place, inout(reg) value => _),
            2 => catch!(["lock cmpxchg [{0}], {1}"], in(reg) place, in(reg) value, inout("rax") self.entry() => _),
            3 => catch!(["lock and [{0}], {1}"], in(reg) place, in(reg) value),
            4 => catch!(["lock bts qword ptr [{0}], 1"], in(reg) place),
            5 => catch!(["mov [{0} + 3], {1:e}"], in(reg) place, in(reg) value),
            6 => catch!(["mov byte ptr [{0} + 1], 0x67"], in(reg) place),
            7 => catch!(["mov [{0} + 5], {1}"], in(reg) place, in(reg) value),
            8 => catch!(["rep stosq"], inout("rdi") place => _, inout("rcx") self.rng.below(16) => _, in("rax") value),
            _ => catch!(["add [{0}], {1}"], in(reg) place, in(reg) value),
        };
    }

    fn accesses(&mut self) {
        for _ in 0..4 {
            // Over a page's end there may be device memory, which would be the guest's end.
            let address = self.address() & !7;
            match self.rng.below(3) {
                0 => _ = super::load(address),
                // Not over the probe itself: it is below the window.
                1 if address >= Window::BASE => _ = store(address, self.entry()),
                _ => _ = hypercall::hypercall(call::XEN_VERSION, [1, self.pointer()]),
            }
        }
        // Whatever the tables are, what they must not lead to they do not.
        let slot = SLOTS.start + self.rng.below(SLOTS.end - SLOTS.start);
        let entry = tables::kernel() + slot * 8;
        let result = tables::set(entry, (frames::count() + self.rng.below(1 << 20)) << 12 | tables::TABLE);
        hypercall::flush();
        if result == 0 {
            look("random: a root's slot with a foreign frame", slot << 39);
        }
    }

    fn descriptors(&mut self) {
        /// Descriptor: code; its base.
        const CODE: u64 = 1 << 44 | 1 << 43;
        const BASE: u64 = 0xff << 56 | 0xff_ffff << 16;
        let mut descriptor = self.rng.draw() | if self.rng.below(2) == 0 { 1 << 47 } else { 0 };
        if descriptor & CODE == CODE {
            // Code begins at 0, so that the guest does not run away from itself.
            descriptor &= !BASE;
        }
        let _ = segments::set_spare(descriptor);
        let selector = u32::from(selector::SPARE) | u32::try_from(self.rng.below(4)).unwrap_or(0);
        let _ = match self.rng.below(5) {
            0 => catch!(["mov ds, {0:e}", "mov ds, {1:e}"], in(reg) selector, in(reg) 0),
            1 => catch!(["mov es, {0:e}", "mov es, {1:e}"], in(reg) selector, in(reg) 0),
            2 => catch!(["mov fs, {0:e}", "mov al, fs:[0]"], in(reg) selector, out("al") _),
            3 => catch!(["mov gs, {0:e}", "mov al, gs:[0]"], in(reg) selector, out("al") _),
            _ => self.context().go(),
        };
        let _ = catch!(["mov fs, {0:e}", "mov gs, {0:e}"], in(reg) 0);
        let _ = segments::set_spare(0);
        let page = self.page();
        hypercall::mmuext(mmuext::SET_LDT, page, self.rng.below(600));
        let local = u32::try_from(self.rng.below(8192) * 8).unwrap_or(0) | 7;
        let _ = catch!(["mov fs, {0:e}", "mov fs, {1:e}"], in(reg) local, in(reg) 0);
    }

    /// A frame for `iret`: near one that is right.
    fn context(&mut self) -> Context {
        let mut context = if self.rng.below(2) == 0 { Context::KERNEL } else { Context::USER };
        let kernel = context.cs & 3 != 3;
        match self.rng.below(6) {
            0 => context.rflags = self.rng.draw() & !(1 << 8),
            1 => context.cs = self.rng.draw() & 0xfffc | context.cs & 3,
            2 => context.ss = self.rng.draw(),
            3 if !kernel => context.rsp = self.address(),
            // Where there is code of the kernel's, it would go on with it.
            4 => context.rip = self.address() | 1 << 40,
            _ => context.cs = u64::from(selector::SPARE) | context.cs & 3,
        }
        context.flags = self.rng.few_bits();
        context
    }

    fn debug(&mut self) {
        for number in 0..8 {
            let value = if self.rng.below(2) == 0 { self.address() } else { self.rng.draw() };
            hypercall::hypercall(call::SET_DEBUGREG, [number, value]);
        }
        let _ = cpu::cpuid(0, 0);
    }

    fn program(&mut self) {
        let bytes = super::super::random_bytes(&mut self.rng);
        run_program(&bytes);
    }
}

/// Executes code in user mode, with events on: the timer's ends loops.
fn run_program(bytes: &[u8]) {
    const RFLAGS: u64 = 1 << 9 | 2;
    timer::after(100_000);
    let _ = user::run_as(bytes, selector::USER_CODE, RFLAGS);
    events::mask();
    // Segments that it has left behind are none of the kernel's.
    // SAFETY: null selectors, whose bases the probe does not use.
    unsafe { asm!("mov ds, {0:e}", "mov es, {0:e}", "mov fs, {0:e}", "mov gs, {0:e}", in(reg) 0) }
}

/// Random code in user mode, which may destroy nothing.
pub(super) fn user_code(line: &CommandLine) {
    let mut rng = super::super::rng(line);
    loop {
        run_program(&super::super::random_bytes(&mut rng));
    }
}
