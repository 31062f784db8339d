//! What a guest must not get away with. Each mode ends its VM, goes on for ever (and is then ended from outside), or comes
//! back unharmed; in no case does the host notice more than that.

mod entry;
pub mod paravirtual;

use core::arch::asm;

use crate::apic;
use crate::apic::register;
use crate::checks::msr;
use crate::checks::nmi;
use crate::cmdline::CommandLine;
use crate::cpu;
use crate::exception;
use crate::exception::TablePointer;
use crate::exception::selector;
use crate::exception::vector;
use crate::layout;
use crate::machine;
use crate::port;
use crate::rng::Rng;
use crate::user;
use crate::xen;

/// What becomes of the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It ends by itself: shut down, killed with a reason, or halted for ever.
    Ends,
    /// It goes on until somebody ends it.
    GoesOn,
    /// It comes back and switches itself off.
    ComesBack,
}

/// One mode.
#[derive(Clone, Copy, Debug)]
pub struct Mode {
    /// Its name on the command line.
    pub name: &'static str,
    /// What becomes of the VM.
    pub end: End,
    /// What it does.
    pub run: fn(&CommandLine),
}

const fn mode(name: &'static str, end: End, run: fn(&CommandLine)) -> Mode {
    Mode { name, end, run }
}

/// All modes of a guest with a machine of its own; [`paravirtual::ALL`] has those of others.
pub const ALL: &[Mode] = &[
    mode("triple-fault", End::Ends, triple_fault),
    mode("halt-forever", End::Ends, halt_forever),
    mode("jump-to-mmio", End::Ends, jump_to_mmio),
    mode("jump-to-apic", End::Ends, jump_to_apic),
    mode("page-table-in-mmio", End::Ends, page_table_in_mmio),
    mode("page-table-beyond", End::Ends, page_table_beyond),
    mode("idt-in-mmio", End::Ends, idt_in_mmio),
    mode("stack-in-mmio", End::Ends, stack_in_mmio),
    mode("vector-on-mmio", End::Ends, vector_on_mmio),
    mode("split-mmio", End::Ends, split_mmio),
    mode("cli-loop", End::GoesOn, cli_loop),
    mode("sti-loop", End::GoesOn, sti_loop),
    mode("pause-loop", End::GoesOn, pause_loop),
    mode("idle", End::GoesOn, idle),
    mode("ac-loop", End::GoesOn, ac_loop),
    mode("db-loop", End::GoesOn, db_loop),
    mode("exit-flood", End::GoesOn, exit_flood),
    mode("port-flood", End::GoesOn, port_flood),
    mode("mmio-flood", End::GoesOn, mmio_flood),
    mode("console-flood", End::GoesOn, console_flood),
    mode("apic-flood", End::GoesOn, apic_flood),
    mode("nmi-flood", End::GoesOn, nmi_flood),
    mode("timer-flood", End::GoesOn, timer_flood),
    mode("nmi-iret", End::GoesOn, nmi_iret),
    mode("mov-ss-flood", End::GoesOn, entry::mov_ss_flood),
    mode("entry-state", End::GoesOn, entry::entry_state),
    mode("gif-off", End::ComesBack, gif_off),
    mode("vmx-on", End::ComesBack, entry::vmx_on),
    mode("init-self", End::ComesBack, init_self),
    mode("clock-anywhere", End::ComesBack, clock_anywhere),
    mode("random-msr", End::GoesOn, random_msr),
    mode("random-cr", End::GoesOn, random_cr),
    mode("random-port", End::GoesOn, random_port),
    mode("random-mmio", End::GoesOn, random_mmio),
    mode("random-code", End::GoesOn, random_code),
    mode("random-user-code", End::GoesOn, random_user_code),
];

/// The mode of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Mode> {
    let all = if xen::active() { paravirtual::ALL } else { ALL };
    all.iter().find(|mode| mode.name == name)
}

/// Attacks. Where a hypervisor has tables of its own for the guest, they are checked when the attack is over.
pub fn run(mode: &Mode, line: &CommandLine) {
    let name = mode.name;
    println!("probe: {name}: goes ahead");
    (mode.run)(line);
    if xen::active() {
        paravirtual::finish(name);
    }
    println!("probe: {name}: came back");
}

/// Shutdown by a triple fault (APM vol. 2, 8.2.9).
fn triple_fault(_: &CommandLine) {
    machine::triple_fault()
}

/// HLT with interrupts off: nothing wakes this CPU again.
fn halt_forever(_: &CommandLine) {
    // SAFETY: the end, on purpose.
    unsafe { asm!("cli", "hlt") }
}

/// Goes on at an address.
fn jump(address: u64) {
    // SAFETY: the end, on purpose.
    unsafe { asm!("jmp {}", in(reg) address, options(noreturn)) }
}

/// Fetches instructions where there is neither RAM nor a device.
fn jump_to_mmio(_: &CommandLine) {
    jump(layout::HOLE);
}

/// Fetches instructions from the local APIC.
fn jump_to_apic(_: &CommandLine) {
    jump(apic::BASE);
}

/// Loads CR3; what follows is fetched through the new tables.
fn load_cr3(value: u64) {
    // SAFETY: the end, on purpose.
    unsafe { asm!("mov cr3, {}", "nop", in(reg) value) }
}

/// Page tables where there is neither RAM nor a device.
fn page_table_in_mmio(_: &CommandLine) {
    load_cr3(layout::HOLE);
}

/// Page tables far behind the end of RAM.
fn page_table_beyond(_: &CommandLine) {
    load_cr3(0x7f_ffff_f000);
}

/// An interrupt table in device memory: what the CPU reads there to deliver an exception is not memory.
fn idt_in_mmio(_: &CommandLine) {
    exception::load_idt(TablePointer { limit: 4095, base: layout::HOLE });
    // SAFETY: the end, on purpose.
    unsafe { asm!("ud2", options(noreturn)) }
}

/// A stack in device memory, on which an exception's frame would go.
fn stack_in_mmio(_: &CommandLine) {
    // SAFETY: the end, on purpose.
    unsafe { asm!("mov rsp, {}", "ud2", in(reg) layout::HOLE + 0x800, options(noreturn)) }
}

/// Device memory by an instruction that nobody emulates.
fn vector_on_mmio(_: &CommandLine) {
    // SAFETY: reads device memory, or ends.
    unsafe { asm!("fxrstor [{}]", in(reg) layout::HOLE) }
}

/// An access over the end of a page of device memory, which an engine may carry out in two parts, too.
fn split_mmio(_: &CommandLine) {
    // SAFETY: reads device memory, or ends.
    unsafe { asm!("mov {0:e}, [{1}]", out(reg) _, in(reg) layout::HOLE + 0xffe) }
}

/// `cli; jmp .`: only the host's own interrupts bring the CPU back.
fn cli_loop(_: &CommandLine) {
    // SAFETY: goes on for ever, on purpose.
    unsafe { asm!("cli", "2: jmp 2b", options(noreturn)) }
}

/// `sti; jmp .`.
fn sti_loop(_: &CommandLine) {
    // SAFETY: goes on for ever, on purpose.
    unsafe { asm!("sti", "2: jmp 2b", options(noreturn)) }
}

/// Spins as one who waits for a lock does.
fn pause_loop(_: &CommandLine) {
    loop {
        core::hint::spin_loop();
    }
}

/// Waits for an interrupt that never comes: not an attack in itself, but a machine that only has to be there.
fn idle(_: &CommandLine) {
    loop {
        // SAFETY: no device and no timer was told to interrupt.
        unsafe { asm!("sti", "hlt", options(nomem, nostack)) }
    }
}

/// #AC without end (near CVE-2015-5307, whose endless delivery needs a 32-bit kernel's misaligned stack): ring 3 with
/// alignment checks on reads a misaligned word, again and again. A CPU that does not check stays in ring 3's loop.
fn ac_loop(_: &CommandLine) {
    /// Alignment check, and the bit that is always set.
    const RFLAGS: u64 = 1 << 18 | 2;
    /// `mov eax, [rsp + 1]`, and a jump back to it.
    const CODE: [u8; 6] = [0x8b, 0x44, 0x24, 0x01, 0xeb, 0xfa];
    let _ = cpu::try_set_cr0(cpu::cr0() | cpu::cr0::AM);
    loop {
        let _ = user::run_as(&CODE, selector::USER_CODE, RFLAGS);
    }
}

/// #DB whose delivery raises #DB, for ever (CVE-2015-8104): a data breakpoint on the stack that the handler's frame goes
/// to.
fn db_loop(_: &CommandLine) {
    let stack: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rsp", out(reg) stack, options(nomem, nostack, preserves_flags)) }
    let frame = (stack - 64) & !15;
    let _ = cpu::try_set_dr0(frame - 8);
    let _ = cpu::try_set_dr1(frame - 16);
    let _ = cpu::try_set_dr2(frame - 24);
    // Writes of eight bytes, three of them.
    let _ = cpu::try_set_dr7(0x0999_0000 | 1 << 10 | 0b11_1111);
    exception::record_debug(true);
    // SAFETY: goes on for ever, on purpose: with the stack where the breakpoints are.
    unsafe {
        asm!("mov rsp, {}", "push 0x102", "popfq", "2: push rax", "pop rax", "jmp 2b", in(reg) frame, options(noreturn))
    }
}

/// Exits that the driver answers.
fn exit_flood(_: &CommandLine) {
    loop {
        let _ = cpu::cpuid(0, 0);
    }
}

/// Exits to user mode.
fn port_flood(_: &CommandLine) {
    loop {
        let _ = port::in8(port::scratch());
    }
}

/// Exits to user mode by device memory.
fn mmio_flood(_: &CommandLine) {
    loop {
        // SAFETY: device memory, or nothing.
        let _ = unsafe { core::ptr::with_exposed_provenance::<u64>(0xd000_0000).read_volatile() };
    }
}

/// Output without end.
fn console_flood(_: &CommandLine) {
    loop {
        println!("probe: console-flood: the quick brown fox jumps over the lazy dog");
    }
}

/// The best interface that the APIC has.
fn prepare_apic() {
    let entered = if apic::has_x2() { apic::enter_x2apic() } else { apic::enter_xapic() };
    if let Err(fault) = entered {
        println!("probe: the APIC refuses its mode: {fault}");
    }
}

/// Interrupts to oneself, as fast as they go.
fn apic_flood(_: &CommandLine) {
    prepare_apic();
    cpu::enable_interrupts();
    loop {
        for vector in 0x20..=0xfe {
            apic::send_self(vector);
        }
    }
}

/// NMIs to oneself.
fn nmi_flood(_: &CommandLine) {
    prepare_apic();
    loop {
        apic::write(register::ICR, apic::ICR_NMI | apic::ICR_ASSERT | apic::ICR_SELF);
        if !apic::is_x2() {
            apic::write(register::ICR_HIGH, apic::read(register::ID));
        }
        apic::write(register::ICR, apic::ICR_NMI | apic::ICR_ASSERT);
    }
}

/// The shortest period that the timer has, and HLT: the host is woken without end.
fn timer_flood(_: &CommandLine) {
    prepare_apic();
    apic::write(register::LVT_TIMER, apic::TIMER_PERIODIC | 0x40);
    apic::write(register::TIMER_INITIAL, 1);
    loop {
        cpu::wait_for_interrupt();
    }
}

/// NMIs whose handlers return by stacks that fault, without end: what is due and what is blocked is never clear.
fn nmi_iret(_: &CommandLine) {
    match apic::enter_x2apic() {
        Ok(()) => nmi::flood_with_bad_returns(),
        Err(fault) => println!("probe: nmi-iret: no x2APIC mode: {fault}"),
    }
}

/// CLGI would stop all of the host's interrupts: it must raise #UD.
fn gif_off(_: &CommandLine) {
    match catch!([".byte 0x0f, 0x01, 0xdd"]) {
        Some(fault) => println!("probe: gif-off: {fault}"),
        None => println!("probe: gif-off: carried out"),
    }
}

/// INIT and SIPI to oneself, which a CPU ignores or resets itself by.
fn init_self(_: &CommandLine) {
    const ICR_INIT: u32 = 5 << 8;
    const ICR_STARTUP: u32 = 6 << 8;
    prepare_apic();
    for command in [ICR_INIT, ICR_STARTUP] {
        apic::write(register::ICR, command | apic::ICR_ASSERT | apic::ICR_SELF | 0x10);
        if !apic::is_x2() {
            apic::write(register::ICR_HIGH, apic::read(register::ID));
        }
        apic::write(register::ICR, command | apic::ICR_ASSERT | 0x10);
    }
}

/// Asks the host to write its clocks to every kind of address.
fn clock_anywhere(line: &CommandLine) {
    let mut rng = rng(line);
    for round in 0..2000_u32 {
        // Not over the probe itself.
        let value = match round % 4 {
            0 => rng.draw() | 1 << 40,
            1 => layout::HOLE + rng.below(1 << 20),
            2 => layout::SCRATCH + rng.below(layout::SCRATCH_SIZE - 64),
            _ => 0xfec0_0000 + rng.below(0x40_0000),
        };
        let _ = cpu::try_wrmsr(cpu::msr::KVM_SYSTEM_TIME, value | 1);
        let _ = cpu::try_wrmsr(cpu::msr::KVM_WALL_CLOCK, value);
        let _ = cpu::cpuid(0, 0);
    }
    let _ = cpu::try_wrmsr(cpu::msr::KVM_SYSTEM_TIME, 0);
}

/// A generator by `seed=`.
fn rng(line: &CommandLine) -> Rng {
    Rng::new(line.number("seed").unwrap_or(1))
}

/// Runs `action` again and again; whatever it raises, the next one comes. A guest that loses its ground ends.
fn endlessly(mut action: impl FnMut()) {
    loop {
        let _ = exception::guarded(&mut action);
    }
}

/// Random values to any MSR, those that take the ground away included.
fn random_msr(line: &CommandLine) {
    let mut rng = rng(line);
    let count = msr::all().count() as u64;
    endlessly(|| {
        let number = usize::try_from(rng.below(count)).unwrap_or(0);
        let value = if rng.below(2) == 0 { rng.draw() } else { rng.few_bits() };
        if let Some(index) = msr::all().nth(number) {
            let _ = cpu::try_wrmsr(index, value);
        }
    });
}

/// Random values to any control or debug register.
fn random_cr(line: &CommandLine) {
    let mut rng = rng(line);
    endlessly(|| {
        let change = if rng.below(8) == 0 { rng.draw() } else { rng.few_bits() };
        let _ = match rng.below(10) {
            0 => cpu::try_set_cr0(cpu::cr0() ^ change),
            1 => cpu::try_set_cr4(cpu::cr4() ^ change),
            2 => cpu::try_wrmsr(cpu::msr::EFER, cpu::rdmsr(cpu::msr::EFER) ^ change),
            3 => cpu::try_xsetbv(0, change),
            4 => cpu::try_set_cr8(change),
            5 => cpu::try_set_dr7(change),
            6 => cpu::try_set_dr0(change),
            7 => cpu::try_set_dr6(change),
            8 => cpu::try_set_cr3(cpu::cr3() ^ (change & 0x18)),
            _ => cpu::try_set_cr2(change),
        };
    });
}

/// Random accesses to random ports: devices and PCI configuration see everything sooner or later.
fn random_port(line: &CommandLine) {
    let mut rng = rng(line);
    endlessly(|| {
        // Half of them where something is: PCI, the first virtio devices' windows, the serial port, the system's own.
        let port = match rng.below(8) {
            0 => 0xcf8,
            1 => 0xcfc + rng.below(4),
            2 => 0xc000 + rng.below(0x100),
            3 => 0x3f8 + rng.below(8),
            _ => rng.below(0x1_0000),
        };
        let port = u16::try_from(port).unwrap_or(u16::MAX);
        let (value, _) = cpu::halves(rng.draw());
        // Not those that end the machine.
        if matches!(port, 0x5fd..=0x601 | 0xcf6..=0xcf9) && port != 0xcf8 {
            return;
        }
        match rng.below(6) {
            0 => port::out8(port, value.to_le_bytes()[0]),
            1 => port::out16(port, u16::try_from(value & 0xffff).unwrap_or(0)),
            2 if port == 0xcf8 => port::out32(port, value & 0xff_fffc | 1 << 31),
            2 => port::out32(port, value),
            3 => drop(port::in8(port)),
            4 => drop(port::in16(port)),
            _ => drop(port::in32(port)),
        }
    });
}

/// Random accesses to device memory.
fn random_mmio(line: &CommandLine) {
    let mut rng = rng(line);
    endlessly(|| {
        let address = match rng.below(4) {
            0 => 0xfee0_0000 + rng.below(0x1000),
            1 => 0xfec0_0000 + rng.below(0x1000),
            2 => 0xc000_0000 + rng.below(0x10_0000),
            _ => 0xc000_0000 + rng.below(0x3f00_0000),
        };
        // Any alignment, but within a page: `split-mmio` is about the rest.
        let address = if address & 0xfff > 0xff8 { address - 8 } else { address };
        let value = rng.draw();
        let _ = match rng.below(8) {
            0 => catch!(["mov [{0}], {1:l}"], in(reg) address, in(reg_abcd) value),
            1 => catch!(["mov [{0}], {1:x}"], in(reg) address, in(reg) value),
            2 => catch!(["mov [{0}], {1:e}"], in(reg) address, in(reg) value),
            3 => catch!(["mov [{0}], {1}"], in(reg) address, in(reg) value),
            4 => catch!(["mov {1:l}, [{0}]"], in(reg) address, out(reg_abcd) _),
            5 => catch!(["mov {1:e}, [{0}]"], in(reg) address, out(reg) _),
            6 => catch!(["mov {1}, [{0}]"], in(reg) address, out(reg) _),
            _ => catch!(["add [{0}], {1:e}"], in(reg) address, in(reg) value),
        };
    });
}

/// Random bytes with a few that lead to instructions which leave the guest.
fn random_bytes(rng: &mut Rng) -> [u8; 15] {
    const PREFIXES: [u8; 16] =
        [0x0f, 0x0f, 0x0f, 0xf3, 0xf2, 0x66, 0x67, 0x48, 0xf0, 0x6c, 0x6e, 0xe4, 0xec, 0xc7, 0xa5, 0xae];
    let mut bytes = [0_u8; 15];
    for byte in &mut bytes {
        *byte = rng.draw().to_le_bytes()[0];
    }
    bytes[0] = PREFIXES[usize::try_from(rng.below(16)).unwrap_or(0)];
    if bytes[0] == 0x0f && rng.below(2) == 0 {
        // Group 7, control and debug registers, MSRs.
        const SECOND: [u8; 8] = [0x01, 0x00, 0x20, 0x22, 0x21, 0x23, 0x30, 0x32];
        bytes[1] = SECOND[usize::try_from(rng.below(8)).unwrap_or(0)];
    }
    bytes
}

/// Random code in ring 0, until it destroys itself.
fn random_code(line: &CommandLine) {
    let mut rng = rng(line);
    let page = core::ptr::with_exposed_provenance_mut::<u8>(0x60_0000);
    endlessly(|| {
        for (index, byte) in random_bytes(&mut rng).into_iter().chain([0xcc; 16]).enumerate() {
            // SAFETY: scratch memory.
            unsafe { page.add(index).write_volatile(byte) }
        }
        // SAFETY: no more than a hostile guest's.
        unsafe {
            asm!(
                "call {}", in(reg) layout::SCRATCH,
                in("rax") rng.draw(), in("rdx") rng.draw() & 0xffff, in("rcx") rng.draw() & 0xff, in("rdi") layout::HOLE,
                in("rsi") layout::SCRATCH + 0x1000, clobber_abi("C"),
            );
        }
    });
}

/// Random code in ring 3, which may destroy nothing: a timer brings it back from loops, and it goes on for ever.
fn random_user_code(line: &CommandLine) {
    /// Interrupts on, and the bit that is always set.
    const RFLAGS: u64 = 1 << 9 | 2;
    let mut rng = rng(line);
    prepare_apic();
    apic::write(register::LVT_TIMER, apic::TIMER_ONE_SHOT | 0x4f);
    loop {
        let bytes = random_bytes(&mut rng);
        apic::write(register::TIMER_INITIAL, 100_000);
        if let Some(fault) = user::run_as(&bytes, selector::USER_CODE, RFLAGS)
            && fault.vector == vector::DF
        {
            println!("probe: random-user-code: {fault}");
        }
    }
}
