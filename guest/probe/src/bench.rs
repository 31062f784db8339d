//! What exits cost.
//!
//! Each operation is done [`WARM_UP`] times, then [`COUNT`] times between two readings of the time stamp counter, and that
//! [`BATCHES`] times; the result is the median of the batches' means, rounded down, with the loop's two instructions (DEC,
//! JNZ) and the operation's own included. (A batch in which the host's own timer fires is none of the exit's cost.) Under
//! QEMU's `-icount shift=0`, and on Bochs, the counter counts instructions.
//!
//! | op | instruction |
//! |---|---|
//! | `cpuid` | CPUID of leaf 1 |
//! | `hypercall` | VMMCALL, on Intel's CPUs VMCALL, with RAX = 1 (KVM's `VAPIC_POLL_IRQ`, which does nothing) |
//! | `msr` | RDMSR of `IA32_APIC_BASE` (0x1b), which no hypervisor can leave to the CPU |
//! | `port-driver` | IN from the port of `driver-port=` (covisor: the ACPI timer, four bytes; KVM: the PIC's mask, one byte) |
//! | `doorbell` | OUT of two bytes to the port of `doorbell=`, on which the host waits for nothing (an event counter) |
//! | `port-user` | IN of one byte from COM1's scratch register |
//! | `mmio-user` | MOV of four bytes from the address of `mmio=`, else from a virtio device's MSI-X table |
//! | `halt-wake` | see [`halt_wake`] |
//!
//! | `world-switch` | paravirtual guests, and nothing else of them: see [`world_switch`] |
//!
//! One line each: `bench OP INSTRUCTIONS`.

use core::arch::asm;

use crate::apic;
use crate::cmdline::CommandLine;
use crate::cpu;
use crate::cpu::msr;
use crate::exception;
use crate::layout;
use crate::pci;
use crate::port;
use crate::xen;
use crate::xen::abi::call;
use crate::xen::abi::vcpu;
use crate::xen::hypercall::hypercall;

/// Operations in a batch.
pub const COUNT: u64 = 100;
/// Batches.
const BATCHES: usize = 21;
/// Operations done before.
pub const WARM_UP: u64 = 100;

/// Waits in a batch of `halt-wake`.
const HALT_COUNT: u64 = 10;
/// Length of a wait, in the timer's counts, which are nanoseconds: longer than KVM polls for a wake-up (200 us).
const HALT_DELAY: u32 = 1_000_000;
/// How often a second the time stamp counter goes on by one, in thousands, where `tsc-khz=` does not say: one count is a
/// nanosecond.
const DEFAULT_TSC_KHZ: u64 = 1_000_000;
/// The timer's vector.
const HALT_VECTOR: u8 = 0x40;

/// covisor's ACPI power management timer.
const DEFAULT_DRIVER_PORT: u64 = 0x608;

/// Runs the body in a loop and gives the counts of one round.
macro_rules! measure {
    ([$($line:literal),+] $(, $($operand:tt)+)?) => {{
        let rounds = |count: u64| {
            let start = cpu::rdtsc();
            // SAFETY: the instructions of the body change nothing but the registers named and devices.
            unsafe { asm!("2:", $($line,)+ "dec r15", "jnz 2b", $($($operand)+,)? inout("r15") count => _) }
            cpu::rdtsc() - start
        };
        rounds(WARM_UP);
        median(|| rounds(COUNT) / COUNT)
    }};
}

/// The median of the batches.
fn median(mut batch: impl FnMut() -> u64) -> u64 {
    let mut results = [0; BATCHES];
    results.fill_with(&mut batch);
    results.sort_unstable();
    results[BATCHES / 2]
}

fn print(op: &str, instructions: u64) {
    println!("bench {op} {instructions}");
}

/// What it takes a paravirtual guest to have the host's side answer a hypercall that the monitor could answer itself:
/// `stop_singleshot_timer`, for which the worlds are switched and core stops a timer that does not run, less
/// `stop_periodic_timer`, which the monitor does nothing for and which goes the same way otherwise.
fn world_switch() -> u64 {
    let rounds = |operation: u64, count: u64| {
        let start = cpu::rdtsc();
        for _ in 0..count {
            hypercall(call::VCPU_OP, [operation, 0, 0]);
        }
        cpu::rdtsc() - start
    };
    let one = |operation: u64| {
        rounds(operation, WARM_UP);
        median(|| rounds(operation, COUNT) / COUNT)
    };
    one(vcpu::STOP_SINGLESHOT_TIMER).saturating_sub(one(vcpu::STOP_PERIODIC_TIMER))
}

/// Measures everything and prints it.
pub fn run(line: &CommandLine) {
    if xen::active() {
        print("world-switch", world_switch());
        return;
    }
    // RBX, which the compiler keeps for itself, is not saved inside of the loop.
    print("cpuid", {
        let rounds = |count: u64| {
            let start = cpu::rdtsc();
            // SAFETY: CPUID changes the registers named, and RBX, which is restored.
            unsafe {
                asm!("mov r14, rbx", "2:", "mov eax, 1", "cpuid", "dec r15", "jnz 2b", "mov rbx, r14",
                    out("eax") _, out("ecx") _, out("edx") _, out("r14") _, inout("r15") count => _);
            }
            cpu::rdtsc() - start
        };
        rounds(WARM_UP);
        median(|| rounds(COUNT) / COUNT)
    });
    /// The hypercall instruction.
    macro_rules! hypercall {
        ($name:literal, $line:literal) => {
            measure!(["mov eax, 1", $line], out("eax") _)
        };
    }
    print("hypercall", with_hypercall!(hypercall));
    print("msr", measure!(["rdmsr"], in("ecx") msr::APIC_BASE, out("eax") _, out("edx") _));

    let port = u16::try_from(line.number("driver-port").unwrap_or(DEFAULT_DRIVER_PORT)).unwrap_or(0);
    print(
        "port-driver",
        if line.number("driver-port-bytes") == Some(1) {
            measure!(["in al, dx"], in("dx") port, out("al") _)
        } else {
            measure!(["in eax, dx"], in("dx") port, out("eax") _)
        },
    );
    if let Some(port) = line.number("doorbell").and_then(|port| u16::try_from(port).ok()) {
        print("doorbell", measure!(["out dx, ax"], in("dx") port, in("ax") 0_u16));
    }
    print("port-user", measure!(["in al, dx"], in("dx") port::scratch(), out("al") _));
    let address = line.number("mmio").or_else(pci::virtio_memory).unwrap_or(layout::HOLE);
    print("mmio-user", measure!(["mov eax, [{address}]"], address = in(reg) address, out("eax") _));
    print("halt-wake", halt_wake(line.number("tsc-khz").unwrap_or(DEFAULT_TSC_KHZ)));
}

/// How long after the end of the wait the guest is awake.
///
/// The local APIC's timer is started for 1 ms in one-shot mode, then the guest halts; the result is the time from just
/// before the timer was started to the first instruction of the interrupt's handler, without the millisecond. So it
/// counts the exit that starts the timer and everything from the timer's expiry on: the host's timer interrupt, waking
/// the vCPU's thread, entering the guest, delivering the interrupt. The way into the halt falls into the millisecond and
/// is not counted. (One-shot, not TSC-deadline: KVM starts deadlines early and spins.)
fn halt_wake(tsc_khz: u64) -> u64 {
    let delay = u64::from(HALT_DELAY) * tsc_khz / DEFAULT_TSC_KHZ;
    if apic::has_x2() && apic::enter_x2apic().is_err() || !apic::has_x2() && apic::enter_xapic().is_err() {
        return 0;
    }
    apic::write(apic::register::LVT_TIMER, apic::TIMER_ONE_SHOT | u32::from(HALT_VECTOR));
    let rounds = |count: u64| {
        (0..count).fold(0_u64, |sum, _| {
            let start = cpu::rdtsc();
            apic::write(apic::register::TIMER_INITIAL, HALT_DELAY);
            cpu::wait_for_interrupt();
            sum + (exception::last_tsc() - start).saturating_sub(delay)
        })
    };
    rounds(10);
    let instructions = median(|| rounds(HALT_COUNT) / HALT_COUNT);
    apic::reset();
    instructions
}
