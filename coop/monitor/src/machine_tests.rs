//! The machine, with memory of the test's and a CPU that notes what it is told.

use core::ptr::NonNull;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering;

use covisor_abi::KillReason;
use covisor_abi::paravirtual::CHECK_CALL;
use covisor_abi::paravirtual::CONSOLE_CHANNEL;
use covisor_abi::paravirtual::CONSOLE_GSI;
use covisor_abi::paravirtual::CONSOLE_PORT;
use zerocopy::FromZeros;

use crate::area::Answer;
use crate::area::Area;
use crate::area::ExitKind;
use crate::area::MODE_KERNEL;
use crate::area::MODE_USER;
use crate::area::SYSCALL;
use crate::bounce::flags;
use crate::config::Config;
use crate::frame::Frame;
use crate::frame::Shadow;
use crate::layout;
use crate::layout::selector;
use crate::machine::DescriptorTables;
use crate::machine::Machine;
use crate::machine::Next;
use crate::mmu;
use crate::mmu::Space;
use crate::mmu::Table;
use crate::processor::Processor;
use crate::shared_info::SharedInfo;
use crate::state::State;

/// Guest frames.
const FRAMES: usize = 64;
/// Shadow tables.
const SHADOWS: usize = 32;
/// Where the guest's kernel has its memory: page n is frame n.
const KERNEL: u64 = 0xffff_ffff_8000_0000;
/// Its root, then the tables below it; then the root of its user mode.
const ROOT: u64 = 1;
const USER_ROOT: u64 = 5;
/// Frame of the kernel's stack, of the hypercalls' arguments, of its GDT.
const STACK: u64 = 8;
const ARGUMENTS: u64 = 9;
const GDT: u64 = 10;
/// Its handlers.
const HANDLER: u64 = KERNEL + 0x20_000;
/// Its code.
const CODE: u64 = 12;

/// What the CPU was told.
#[derive(Debug, Default)]
pub(crate) struct Told {
    cr2: u64,
    dr6: u64,
    swaps: u32,
    cr0: u64,
    bases: [u64; 3],
    user_gs: Option<u16>,
    debug: ([u64; 4], u64),
    tsc: u64,
}

impl mmu::Cpu for Told {
    fn load_cr3(&mut self, _cr3: u64) {}
    fn invlpg(&mut self, _address: u64) {}
}

impl Processor for Told {
    fn cr2(&self) -> u64 {
        self.cr2
    }
    fn dr6(&self) -> u64 {
        self.dr6
    }
    fn set_dr6(&mut self, value: u64) {
        self.dr6 = value;
    }
    fn set_cr0(&mut self, value: u64) {
        self.cr0 = value;
    }
    fn swap_gs(&mut self) {
        self.swaps += 1;
    }
    fn set_fs_base(&mut self, base: u64) {
        self.bases[0] = base;
    }
    fn set_gs_base(&mut self, base: u64) {
        self.bases[1] = base;
    }
    fn set_other_gs_base(&mut self, base: u64) {
        self.bases[2] = base;
    }
    fn load_user_gs(&mut self, selector: u16) {
        self.user_gs = Some(selector);
    }
    fn load_breakpoints(&mut self, addresses: [u64; 4], dr7: u64) {
        self.debug = (addresses, dr7);
    }
    fn tsc(&self) -> u64 {
        self.tsc
    }
}

/// Zeroed tables.
fn tables(count: usize) -> Vec<Table> {
    (0..count).map(|_| [const { AtomicU64::new(0) }; 512]).collect()
}

/// Runs a test on a machine whose kernel has set its handlers and its user mode up: a vector's handler is at HANDLER + 16 × vector.
fn with_machine(test: impl FnOnce(&mut Machine<'_, Told>)) {
    let ram = tables(FRAMES);
    let pool = tables(SHADOWS);
    let mut frames: Vec<Frame> = (0..FRAMES as u64).map(|n| Frame { host: 0x1000 + n, ..Frame::default() }).collect();
    let mut shadows: Vec<Shadow> =
        (0..SHADOWS as u64).map(|n| Shadow { host: 0x9000 + n, ..Shadow::default() }).collect();
    let config = Config {
        frames: FRAMES as u64,
        shadows: SHADOWS as u64,
        shared_info: 0x8000,
        first_root: ROOT << 12,
        tsc_multiplier: 1 << 31,
        tsc_shift: 1,
        guest_cr4: 0x620,
        checks: 1,
        address_mask: (1 << 46) - 1,
        ..Config::default()
    };
    let entry = |frame: usize, index: usize, value: u64| ram[frame][index].store(value, Ordering::Relaxed);
    entry(1, 511, 2 << 12 | 0x67);
    entry(2, 510, 3 << 12 | 0x67);
    entry(3, 0, 4 << 12 | 0x67);
    for page in 0..FRAMES {
        entry(4, page, (page as u64) << 12 | 0x63);
    }
    let page = Box::leak(Box::new([0_u64; 512]));
    // SAFETY: a page of 8-aligned memory, leaked, and used by nothing else.
    let shared = unsafe { SharedInfo::at(NonNull::from(page).cast()) };
    let mut state = State::new(shared.vcpu_info());
    let mut area = Area::new_zeroed();
    let (mut gdt, mut ldt) = (vec![0; 15 * 512], vec![0; 16 * 512]);
    let mut machine = Machine {
        area: &mut area,
        config: &config,
        state: &mut state,
        space: Space::new(&ram, &mut frames, &mut shadows, &pool, &[], &config),
        tables: DescriptorTables { gdt: &mut gdt, ldt: &mut ldt },
        shared,
        cpu: Told::default(),
    };
    assert_eq!(machine.start(), Next::Guest);
    machine.area.frame.rip = KERNEL + (CODE << 12);
    machine.area.frame.rsp = KERNEL + ((STACK + 1) << 12) - 0x100;
    for vector in 0..256_u64 {
        put(&mut machine, 0, &[vector, HANDLER + 16 * vector, 0, 0]);
        assert_eq!(call(&mut machine, 0, &[arguments_at(0)]), 0);
    }
    for (kind, address) in [(0_u64, HANDLER + 0x2000), (1, HANDLER + 0x2010), (2, HANDLER + 0x2020)] {
        put(&mut machine, 0, &[kind | 1 << 16, address]);
        assert_eq!(call(&mut machine, 30, &[0, arguments_at(0)]), 0);
    }
    assert_eq!(call(&mut machine, 3, &[0, KERNEL + ((STACK + 1) << 12)]), 0);
    put(&mut machine, 0, &[15, USER_ROOT, 0]);
    assert_eq!(call(&mut machine, 26, &[arguments_at(0), 1, 0, 0x7ff0]), 0);
    test(&mut machine);
}

/// Guest-virtual address of a word of the arguments' page.
const fn arguments_at(word: u64) -> u64 {
    KERNEL + (ARGUMENTS << 12) + word * 8
}

/// Puts words there.
fn put(machine: &mut Machine<'_, Told>, word: u64, words: &[u64]) {
    machine.write_words(arguments_at(word), words).unwrap();
}

/// A word there.
fn got(machine: &Machine<'_, Told>, word: u64) -> u64 {
    machine.read_words::<1>(arguments_at(word)).unwrap()[0]
}

/// A trap of the guest's.
fn trap(machine: &mut Machine<'_, Told>, vector: u64, error_code: u64) -> Next {
    machine.area.frame.vector = vector;
    machine.area.frame.error_code = error_code;
    machine.trap()
}

/// Makes a hypercall and gives its result, again as often as it says.
#[track_caller]
fn call(machine: &mut Machine<'_, Told>, number: u64, arguments: &[u64]) -> u64 {
    let before = machine.area.frame.rip;
    let registers = &mut machine.area.frame.registers;
    registers.rax = number;
    let slots = [&mut registers.rdi, &mut registers.rsi, &mut registers.rdx, &mut registers.r10, &mut registers.r8];
    for (slot, value) in slots.into_iter().zip(arguments) {
        *slot = *value;
    }
    for _ in 0..1000 {
        machine.area.frame.rip = before + 2;
        assert_eq!(trap(machine, SYSCALL, 0), Next::Guest, "{:?}", machine.area.exit);
        if machine.area.frame.rip != before {
            assert_eq!(machine.area.frame.rip, before + 2);
            machine.area.frame.rip = before;
            return machine.area.frame.registers.rax;
        }
    }
    panic!("the call does not end");
}

/// The words on top of the guest's stack.
fn stack<const N: usize>(machine: &Machine<'_, Told>) -> [u64; N] {
    machine.read_words::<N>(machine.area.frame.rsp).unwrap()
}

/// Goes to user mode by the hypercall.
fn go_to_user(machine: &mut Machine<'_, Told>, rflags: u64) {
    let rsp = machine.area.frame.rsp;
    machine.write_words(rsp, &[1, 2, 3, 0, 0x40_1000, 0x33, rflags, 0x7fff_0000, 0x2b]).unwrap();
    machine.area.frame.registers.rax = 23;
    assert_eq!(trap(machine, SYSCALL, 0), Next::Guest);
    assert_eq!(machine.area.mode, MODE_USER);
}

const EINVAL: u64 = 22_u64.wrapping_neg();
const EFAULT: u64 = 14_u64.wrapping_neg();
const ENOSYS: u64 = 38_u64.wrapping_neg();

#[test]
fn test_a_program_goes_into_its_kernel_and_back() {
    with_machine(|machine| {
        let before = machine.cpu.swaps;
        go_to_user(machine, 0x246);
        let frame = machine.area.frame;
        assert_eq!((frame.rip, frame.cs, frame.ss, frame.rsp), (0x40_1000, 0x33, 0x2b, 0x7fff_0000));
        assert_eq!((frame.registers.rax, frame.registers.r11, frame.registers.rcx), (1, 2, 3));
        assert!(!machine.state.vcpu_info.is_masked());
        // A system call: events are masked by its callback's flag.
        machine.area.frame.cs = selector::RING3_CODE64.into();
        assert_eq!(trap(machine, SYSCALL, 0), Next::Guest);
        assert_eq!((machine.area.mode, machine.cpu.swaps), (MODE_KERNEL, before + 2));
        assert_eq!(machine.area.frame.rip, HANDLER + 0x2020);
        let [rcx, r11, rip, cs, rflags, rsp, ss] = stack::<7>(machine);
        assert_eq!((rcx, r11, rip, rsp), (3, 2, 0x40_1000, 0x7fff_0000));
        assert_eq!((cs, ss), (u64::from(selector::RING3_CODE64), 0x2b));
        assert_eq!(rflags & flags::IF, flags::IF);
        assert!(machine.state.vcpu_info.is_masked());
    });
}

#[test]
fn test_flags_of_a_return_are_those_of_a_program() {
    with_machine(|machine| {
        go_to_user(machine, u64::MAX);
        assert_eq!(machine.area.frame.rflags & (flags::IOPL | flags::VM), 0);
        assert_eq!(machine.area.frame.rflags >> 22, 0);
        assert_eq!(machine.area.frame.rflags & flags::IF, flags::IF);
    });
}

#[test]
fn test_an_exception_of_the_kernel_looks_like_ring_0() {
    with_machine(|machine| {
        machine.area.frame.cs = 0x13;
        machine.state.vcpu_info.set_masked(true);
        let rip = machine.area.frame.rip;
        assert_eq!(trap(machine, 12, 0x55), Next::Guest);
        let [_, _, error, from, cs, rflags, _, _] = stack::<8>(machine);
        assert_eq!((error, from, cs), (0x55, rip, 1 << 32 | 0x10));
        assert_eq!(rflags & flags::IF, 0);
        assert_eq!(machine.area.frame.rip, HANDLER + 16 * 12);
        assert_eq!(machine.area.frame.rsp % 16, 0);
    });
}

#[test]
fn test_an_int_instruction_asks_the_guests_table() {
    with_machine(|machine| {
        put(machine, 0, &[0x99 | 3 << 8, HANDLER + 0x990, 0, 0]);
        assert_eq!(call(machine, 0, &[arguments_at(0)]), 0);
        go_to_user(machine, 0x202);
        assert_eq!(trap(machine, 13, 0x99 << 3 | 2), Next::Guest);
        assert_eq!(machine.area.frame.rip, HANDLER + 0x990);
        assert_eq!(stack::<3>(machine)[2], 0x40_1002);
        machine.area.frame.rsp = KERNEL + ((STACK + 1) << 12) - 0x200;
        go_to_user(machine, 0x202);
        assert_eq!(trap(machine, 13, 0x98 << 3 | 2), Next::Guest);
        assert_eq!(machine.area.frame.rip, HANDLER + 16 * 13);
    });
}

#[test]
fn test_a_stack_that_cannot_be_written_ends_the_guest() {
    with_machine(|machine| {
        for stack in [0, layout::RAM, layout::AREA, u64::MAX, 0xdead_0000_0000_0000] {
            machine.area.frame.rsp = stack;
            assert_eq!(trap(machine, 3, 0), Next::Host);
            assert_eq!(machine.area.exit.kind, ExitKind::Kill as u64);
            assert_eq!(machine.area.exit.a, KillReason::BadKernelStack as u64);
        }
    });
}

#[test]
fn test_handlers_at_the_monitors_addresses_are_refused() {
    with_machine(|machine| {
        for address in [layout::ENTRY, layout::M2P, 0x8000_0000_0000, 0xffff_7fff_ffff_ffff] {
            put(machine, 0, &[3, address, 0, 0]);
            assert_eq!(call(machine, 0, &[arguments_at(0)]), EINVAL);
            put(machine, 0, &[0, address]);
            assert_eq!(call(machine, 30, &[0, arguments_at(0)]), EINVAL);
        }
        assert_eq!(call(machine, 0, &[layout::AREA]), EFAULT);
    });
}

#[test]
fn test_events_wait_for_their_mask() {
    with_machine(|machine| {
        put(machine, 0, &[0, 0]);
        assert_eq!(call(machine, 32, &[1, arguments_at(0)]), 0);
        let port = u32::try_from(got(machine, 1) & 0xffff_ffff).unwrap();
        machine.shared.unmask(port);
        machine.state.vcpu_info.set_masked(true);
        machine.area.answer = Answer { timer: 1, ..Answer::default() };
        let rip = machine.area.frame.rip;
        assert_eq!(machine.resume(), Next::Guest);
        assert_eq!(machine.area.frame.rip, rip);
        assert!(machine.state.vcpu_info.is_pending());
        // The kernel unmasks, and asks for what waits.
        machine.state.vcpu_info.set_masked(false);
        machine.area.frame.registers.rax = 17;
        machine.area.frame.registers.rdi = 0;
        assert_eq!(trap(machine, SYSCALL, 0), Next::Guest);
        assert_eq!(machine.area.frame.rip, HANDLER + 0x2000);
        assert_eq!(machine.area.frame.registers.rax, 4 << 16 | 17);
        assert!(machine.state.vcpu_info.is_masked());
    });
}

#[test]
fn test_lines_come_and_are_ended() {
    with_machine(|machine| {
        put(machine, 0, &[17, 0]);
        assert_eq!(call(machine, 32, &[2, arguments_at(0)]), 0);
        machine.state.vcpu_info.set_masked(true);
        machine.area.answer = Answer { lines: 1 << 17 | 1 << CONSOLE_GSI, ..Answer::default() };
        assert_eq!(machine.resume(), Next::Guest);
        put(machine, 0, &[17]);
        machine.area.frame.registers.rax = 33;
        machine.area.frame.registers.rdi = 12;
        machine.area.frame.registers.rsi = arguments_at(0);
        assert_eq!(trap(machine, SYSCALL, 0), Next::Host);
        assert_eq!((machine.area.exit.kind, machine.area.exit.a), (ExitKind::EndOfInterrupt as u64, 17));
        assert_eq!(call(machine, 33, &[12, arguments_at(0)]), 0);
    });
}

#[test]
fn test_the_consoles_channel_is_a_port_of_the_hosts() {
    with_machine(|machine| {
        put(machine, 0, &[CONSOLE_CHANNEL.into()]);
        machine.area.frame.registers.rax = 32;
        machine.area.frame.registers.rdi = 4;
        machine.area.frame.registers.rsi = arguments_at(0);
        assert_eq!(trap(machine, SYSCALL, 0), Next::Host);
        let exit = machine.area.exit;
        assert_eq!((exit.kind, exit.a, exit.c), (ExitKind::PortWrite as u64, CONSOLE_PORT.into(), 4));
        assert_eq!(machine.area.frame.registers.rax, 0);
        put(machine, 0, &[255]);
        assert_eq!(call(machine, 32, &[4, arguments_at(0)]), EINVAL);
        put(machine, 0, &[u64::MAX]);
        assert_eq!(call(machine, 32, &[4, arguments_at(0)]), EINVAL);
    });
}

#[test]
fn test_the_timer_is_the_hosts() {
    with_machine(|machine| {
        put(machine, 0, &[5_000, 0]);
        machine.area.frame.registers.rax = 24;
        machine.area.frame.registers.rdi = 8;
        machine.area.frame.registers.rsi = 0;
        machine.area.frame.registers.rdx = arguments_at(0);
        assert_eq!(trap(machine, SYSCALL, 0), Next::Host);
        assert_eq!((machine.area.exit.kind, machine.area.exit.b), (ExitKind::SetTimer as u64, 1));
        assert!((5_000..5_050).contains(&machine.area.exit.a));
        machine.cpu.tsc = 10_000;
        assert_eq!(call(machine, 24, &[8, 0, arguments_at(0)]), 0);
        put(machine, 0, &[5_000, 1]);
        assert_eq!(call(machine, 24, &[8, 0, arguments_at(0)]), 62_u64.wrapping_neg());
        assert_eq!(call(machine, 24, &[3, 1, 0]), 2_u64.wrapping_neg());
        assert_eq!(call(machine, 24, &[3, 0, 0]), 1);
    });
}

#[test]
fn test_calls_of_a_multicall_have_results_of_their_own() {
    with_machine(|machine| {
        let mut words = Vec::new();
        for index in 0..40_u64 {
            words.extend(if index % 2 == 0 { [17, 7, 0, 0, 0, 0, 0, 0] } else { [999, 7, 0, 0, 0, 0, 0, 0] });
        }
        put(machine, 0, &words);
        assert_eq!(call(machine, 13, &[arguments_at(0), 40]), 0);
        for index in 0..40_u64 {
            assert_eq!(got(machine, index * 8 + 1), if index % 2 == 0 { 4 << 16 | 17 } else { ENOSYS });
        }
        assert_eq!(call(machine, 13, &[0x1000, 1]), EFAULT);
        assert_eq!(call(machine, 13, &[arguments_at(510), u64::MAX]), EFAULT);
    });
}

#[test]
fn test_a_table_of_segments_is_copied_and_made_harmless() {
    with_machine(|machine| {
        let code = 0x00af_9b00_0000_ffff_u64;
        let gate = 0x0000_8e00_0008_0000_u64;
        machine.write_words(KERNEL + (GDT << 12), &[0, gate, code]).unwrap();
        put(machine, 0, &[GDT]);
        assert_eq!(call(machine, 2, &[arguments_at(0), 16]), 0);
        assert_eq!(machine.tables.gdt[..4], [0, 0, 0x00af_fb00_0000_ffff, 0]);
        assert_eq!(call(machine, 10, &[(GDT << 12) + 24, code]), 0);
        assert_eq!(machine.tables.gdt[3], 0x00af_fb00_0000_ffff);
        assert_eq!(call(machine, 10, &[!7, code]), EINVAL);
        put(machine, 0, &[FRAMES as u64]);
        assert_eq!(call(machine, 2, &[arguments_at(0), 16]), EINVAL);
        assert_eq!(call(machine, 2, &[arguments_at(0), 0xffff_ffff]), EINVAL);
        put(machine, 0, &[13, KERNEL + (GDT << 12), 3]);
        assert_eq!(call(machine, 26, &[arguments_at(0), 1, 0, 0x7ff0]), 0);
        assert_eq!(machine.tables.ldt[2], 0x00af_fb00_0000_ffff);
    });
}

#[test]
fn test_debug_registers_are_of_the_guests_addresses() {
    with_machine(|machine| {
        assert_eq!(call(machine, 8, &[0, 0x40_0000]), 0);
        assert_eq!(call(machine, 8, &[1, layout::ENTRY]), EINVAL);
        assert_eq!(call(machine, 8, &[7, 0x0002_0001]), EINVAL);
        assert_eq!(call(machine, 8, &[7, 0x000d_2001]), 0);
        assert_eq!(machine.cpu.debug.1, 0x000d_0401);
        assert_eq!(call(machine, 9, &[0]), 0x40_0000);
        assert_eq!(call(machine, 8, &[4, 0]), EINVAL);
    });
}

#[test]
fn test_privileged_instructions_go_where_they_are_served() {
    with_machine(|machine| {
        let code = KERNEL + (CODE << 12);
        machine.write_bytes(code, &[0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x0f, 0xa2]).unwrap();
        assert_eq!(trap(machine, 6, 0), Next::Host);
        assert_eq!((machine.area.exit.kind, machine.area.frame.rip), (ExitKind::Cpuid as u64, code + 5));
        machine.area.frame.rip = code;
        machine.write_bytes(code, &[0x66, 0xef, 0x90]).unwrap();
        machine.area.frame.registers.rdx = 0xffff_0cf8;
        assert_eq!(trap(machine, 13, 0), Next::Host);
        let exit = machine.area.exit;
        assert_eq!((exit.kind, exit.a, exit.b, exit.c, exit.d), (ExitKind::Port as u64, 0xcf8, 2, 1, code + 2));
        machine.write_bytes(code, &[0x0f, 0x20, 0xe0]).unwrap();
        assert_eq!(trap(machine, 13, 0), Next::Guest);
        assert_eq!((machine.area.frame.registers.rax, machine.area.frame.rip), (0x620, code + 3));
        machine.area.frame.rip = code;
        machine.write_bytes(code, &[0x0f, 0x01, 0xd0]).unwrap();
        assert_eq!(trap(machine, 13, 0), Next::Guest);
        assert_eq!(machine.area.frame.rip, HANDLER + 16 * 13);
    });
}

#[test]
fn test_extended_state_is_asked_for_once() {
    with_machine(|machine| {
        assert_eq!(call(machine, 5, &[1]), 0);
        assert_ne!(machine.cpu.cr0 & 8, 0);
        assert_eq!(trap(machine, 7, 0), Next::Guest);
        assert_eq!(machine.cpu.cr0 & 8, 0);
    });
}

#[test]
fn test_stores_to_page_tables_are_carried_out() {
    with_machine(|machine| {
        // The kernel has mapped its L1 table, frame 4, read-only, at page 4.
        let entry = 4_u64 * 8;
        machine.space.write_word((4 << 12) + entry, 4 << 12 | 0x61).unwrap();
        let code = machine.area.frame.rip;
        machine.write_bytes(code, &[0x48, 0x87, 0x07]).unwrap();
        machine.cpu.cr2 = KERNEL + (4 << 12) + 20 * 8;
        machine.area.frame.registers.rax = 21 << 12 | 0x63;
        assert_eq!(trap(machine, 14, 3), Next::Guest);
        assert_eq!(machine.area.frame.rip, code + 3);
        assert_eq!(machine.area.frame.registers.rax, 20 << 12 | 0x63);
        assert_eq!(machine.space.read_word((4 << 12) + 20 * 8), Some(21 << 12 | 0x63));
        // What the monitor does not know the host does.
        machine.area.frame.rip = code;
        machine.write_bytes(code, &[0x66, 0x89, 0x07]).unwrap();
        assert_eq!(trap(machine, 14, 3), Next::Host);
        assert_eq!((machine.area.exit.kind, machine.area.exit.a), (ExitKind::Memory as u64, (4 << 12) + 20 * 8));
    });
}

#[test]
fn test_the_vcpus_record_moves_to_the_guests_memory() {
    with_machine(|machine| {
        put(machine, 0, &[20, 0x40]);
        assert_eq!(call(machine, 24, &[10, 0, arguments_at(0)]), 0);
        assert_ne!(machine.space.read_word((20 << 12) + 0x48), Some(0));
        for (frame, offset) in [(FRAMES as u64, 0), (20, 4096 - 56), (20, 4), (u64::MAX, 0)] {
            put(machine, 0, &[frame, offset]);
            assert_eq!(call(machine, 24, &[10, 0, arguments_at(0)]), EINVAL);
        }
    });
}

#[test]
fn test_ends_are_told_to_the_host() {
    with_machine(|machine| {
        for (reason, kind, a) in [
            (0, ExitKind::Power as u64, 0),
            (1, ExitKind::Power as u64, 1),
            (3, ExitKind::Kill as u64, KillReason::GuestCrashed as u64),
        ] {
            put(machine, 0, &[reason]);
            machine.area.frame.registers.rax = 29;
            machine.area.frame.registers.rdi = 2;
            machine.area.frame.registers.rsi = arguments_at(0);
            assert_eq!(trap(machine, SYSCALL, 0), Next::Host);
            assert_eq!((machine.area.exit.kind, machine.area.exit.a), (kind, a));
        }
    });
}

#[test]
fn test_causes_of_debug_exceptions_do_not_add_up() {
    with_machine(|machine| {
        machine.cpu.dr6 = 0xffff_0ff1;
        assert_eq!(trap(machine, 1, 0), Next::Guest);
        assert_eq!(call(machine, 9, &[6]), 0xffff_0ff1);
        machine.cpu.dr6 |= 0x4000;
        assert_eq!(trap(machine, 1, 0), Next::Guest);
        assert_eq!(call(machine, 9, &[6]), 0xffff_4ff0);
    });
}

#[test]
fn test_the_guests_dr6_never_gets_into_the_cpu() {
    with_machine(|machine| {
        machine.cpu.dr6 = 0xffff_0ff0;
        assert_eq!(call(machine, 8, &[6, 0xffff_ffff]), 0);
        assert_eq!(call(machine, 9, &[6]), 0xffff_efff);
        assert_eq!(machine.cpu.dr6, 0xffff_0ff0, "it would be the host's next");
    });
}

#[test]
fn test_page_tables_are_checked_when_the_guest_asks() {
    with_machine(|machine| {
        assert_eq!(call(machine, CHECK_CALL, &[]), 0);
        assert_eq!(call(machine, 54, &[]), ENOSYS);
    });
}

#[test]
fn test_wrong_page_tables_end_the_guest_that_has_them_checked() {
    with_machine(|machine| {
        // It does not know any more of the roots, which count as being in use.
        machine.state.mmu = mmu::Mmu::new();
        machine.area.frame.registers.rax = CHECK_CALL;
        assert_eq!(trap(machine, SYSCALL, 0), Next::Host);
        let exit = machine.area.exit;
        assert_eq!((exit.kind, exit.a), (ExitKind::Kill as u64, KillReason::ForeignPage as u64));
        assert_eq!(exit.b, layout::SHADOWS);
    });
}

#[test]
fn test_long_lists_give_the_hosts_interrupts_a_turn() {
    with_machine(|machine| {
        // 240 changes of one entry, which two calls of a multicall make, each from a page of its own.
        for entry in 0..240_u64 {
            machine
                .write_words(KERNEL + (GDT << 12) + entry * 16, &[(4 << 12) + 50 * 8, (50 + entry % 2) << 12 | 0x63])
                .unwrap();
        }
        let list = KERNEL + (GDT << 12);
        put(machine, 0, &[1, 7, list, 240, 0, 0x7ff0, 0, 0, 1, 7, list, 240, 0, 0x7ff0, 0, 0]);
        let rip = machine.area.frame.rip;
        let registers = &mut machine.area.frame.registers;
        (registers.rax, registers.rdi, registers.rsi) = (13, arguments_at(0), 2);
        let mut turns = 0;
        loop {
            machine.area.frame.rip = rip + 2;
            assert_eq!(trap(machine, SYSCALL, 0), Next::Guest);
            turns += 1;
            if machine.area.frame.rip != rip {
                break;
            }
        }
        assert_eq!((machine.area.frame.registers.rax, turns), (0, 2));
        assert_eq!((got(machine, 1), got(machine, 9)), (0, 0));
        assert_eq!(machine.space.read_word((4 << 12) + 50 * 8), Some(51 << 12 | 0x63));
    });
}

#[test]
fn test_int_0x80_that_the_kernel_does_not_offer_is_a_fault_of_its_program() {
    with_machine(|machine| {
        // The table has a handler, for ring 0 only.
        go_to_user(machine, 0x202);
        machine.area.frame.rip = 0x40_1002;
        assert_eq!(trap(machine, 0x80, 0), Next::Guest);
        assert_eq!(machine.area.frame.rip, HANDLER + 16 * 13);
        assert_eq!(stack::<4>(machine)[2..], [0x80 << 3 | 2, 0x40_1000]);
        put(machine, 0, &[0x80 | 3 << 8, HANDLER + 0x800, 0, 0]);
        machine.area.frame.rsp = KERNEL + ((STACK + 1) << 12) - 0x200;
        assert_eq!(call(machine, 0, &[arguments_at(0)]), 0);
        go_to_user(machine, 0x202);
        machine.area.frame.rip = 0x40_1002;
        assert_eq!(trap(machine, 0x80, 0), Next::Guest);
        assert_eq!(machine.area.frame.rip, HANDLER + 0x800);
        assert_eq!(stack::<3>(machine)[2], 0x40_1002);
    });
}
