//! Interrupts and exceptions on their way into a guest in real mode (APM vol. 2, 8.6).

use covisor_core::engine::Vcpu;
use covisor_core::exit::Injection;
use covisor_core::registers::RFlags;
use covisor_core::registers::SegmentName;
use covisor_core::test_vcpu::TestVcpu;

use crate::ram::Ram;

/// The guest cannot go on: a triple fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TripleFault;

/// What a pointer of the table has: offset and segment, 16 bits each.
const POINTER_SIZE: u64 = 4;
/// The vector of NMIs.
const NMI_VECTOR: u8 = 2;

/// Bits that are the same in every 16-bit register.
const WORD: u64 = 0xffff;

/// Hands the guest what waits for it.
///
/// # Errors
/// [`TripleFault`] where the table has no such vector, or there is no stack.
pub(crate) fn deliver(vcpu: &mut TestVcpu, ram: &Ram) -> Result<(), TripleFault> {
    let Some(injection) = vcpu.injection.take() else { return Ok(()) };
    // Tests of core look at it; here nobody does, and it would grow as long as the guest runs.
    vcpu.injected.clear();
    let vector = match injection {
        Injection::Interrupt(vector) => vector,
        Injection::Nmi => {
            vcpu.nmi_blocked = true;
            NMI_VECTOR
        }
        // Real mode has no error codes.
        Injection::Exception(exception) => exception.vector,
    };
    let entry = u64::from(vector) * POINTER_SIZE;
    if entry + POINTER_SIZE - 1 > vcpu.idtr.limit {
        return Err(TripleFault);
    }
    let [ip_low, ip_high, cs_low, cs_high] = ram.read(vcpu.idtr.base + entry).map_err(|_| TripleFault)?;
    for value in [vcpu.rflags, vcpu.segment(SegmentName::Cs).selector.into(), vcpu.rip] {
        push(vcpu, ram, value)?;
    }
    vcpu.rflags &= !(RFlags::FLAGS_IF | RFlags::FLAGS_TF | RFlags::FLAGS_RF | RFlags::FLAGS_AC).bits();
    vcpu.interrupt_shadow = false;
    go_to(vcpu, u16::from_le_bytes([cs_low, cs_high]), u16::from_le_bytes([ip_low, ip_high]));
    Ok(())
}

/// IRET.
///
/// # Errors
/// [`TripleFault`] where there is no stack.
pub(crate) fn go_back(vcpu: &mut TestVcpu, ram: &Ram) -> Result<(), TripleFault> {
    let [ip, cs, flags] = [pop(vcpu, ram)?, pop(vcpu, ram)?, pop(vcpu, ram)?];
    vcpu.rflags = vcpu.rflags & !WORD | u64::from(flags) & RFlags::all().bits() | RFlags::FLAGS_A1.bits();
    vcpu.nmi_blocked = false;
    go_to(vcpu, cs, ip);
    Ok(())
}

fn go_to(vcpu: &mut TestVcpu, cs: u16, ip: u16) {
    let mut segment = vcpu.segment(SegmentName::Cs);
    segment.selector = cs;
    segment.base = u64::from(cs) << 4;
    vcpu.set_segment(SegmentName::Cs, segment);
    vcpu.rip = ip.into();
}

/// Moves the stack pointer, and returns the address that it had and the one that it has.
fn move_stack(vcpu: &mut TestVcpu, by: u64) -> (u64, u64) {
    let base = vcpu.segment(SegmentName::Ss).base;
    let before = vcpu.gprs.rsp & WORD;
    let after = before.wrapping_add(by) & WORD;
    vcpu.gprs.rsp = vcpu.gprs.rsp & !WORD | after;
    (base + before, base + after)
}

fn push(vcpu: &mut TestVcpu, ram: &Ram, value: u64) -> Result<(), TripleFault> {
    let (_, top) = move_stack(vcpu, 2_u64.wrapping_neg());
    let [low, high, ..] = value.to_le_bytes();
    ram.write(top, &[low, high]).map_err(|_| TripleFault)
}

fn pop(vcpu: &mut TestVcpu, ram: &Ram) -> Result<u16, TripleFault> {
    let (top, _) = move_stack(vcpu, 2);
    ram.read(top).map(u16::from_le_bytes).map_err(|_| TripleFault)
}
