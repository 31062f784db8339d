//! String instructions, one element at a time (APM vol. 3: CMPS, INS, LODS, MOVS, OUTS, SCAS, STOS).

use iced_x86::Code;
use iced_x86::Instruction;
use iced_x86::OpKind;

use super::Cause;
use super::DeviceSpace;
use super::Outcome;
use super::Step;
use super::access::Bus;
use super::access::Place;
use super::access::mask;
use super::alu;
use super::complete;
use super::execute::set_status;
use super::operand::Gpr;
use super::operand::linear;
use super::operand::linear_of_operand;
use super::operand::number;
use super::skip;
use crate::engine::Vcpu;
use crate::exit::PortAccess;
use crate::registers::Cr0;
use crate::registers::RFlags;
use crate::registers::SegmentName;

/// What is done with each element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Move,
    Store,
    Load,
    Compare,
    Scan,
    Input,
    Output,
}

/// A string instruction: what it does, and the size of an element in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Element {
    kind: Kind,
    size: u8,
}

impl Element {
    /// The string instruction with this code.
    pub(super) const fn of(code: Code) -> Option<Self> {
        let (kind, size) = match code {
            Code::Movsb_m8_m8 => (Kind::Move, 1),
            Code::Movsw_m16_m16 => (Kind::Move, 2),
            Code::Movsd_m32_m32 => (Kind::Move, 4),
            Code::Movsq_m64_m64 => (Kind::Move, 8),
            Code::Stosb_m8_AL => (Kind::Store, 1),
            Code::Stosw_m16_AX => (Kind::Store, 2),
            Code::Stosd_m32_EAX => (Kind::Store, 4),
            Code::Stosq_m64_RAX => (Kind::Store, 8),
            Code::Lodsb_AL_m8 => (Kind::Load, 1),
            Code::Lodsw_AX_m16 => (Kind::Load, 2),
            Code::Lodsd_EAX_m32 => (Kind::Load, 4),
            Code::Lodsq_RAX_m64 => (Kind::Load, 8),
            Code::Cmpsb_m8_m8 => (Kind::Compare, 1),
            Code::Cmpsw_m16_m16 => (Kind::Compare, 2),
            Code::Cmpsd_m32_m32 => (Kind::Compare, 4),
            Code::Cmpsq_m64_m64 => (Kind::Compare, 8),
            Code::Scasb_AL_m8 => (Kind::Scan, 1),
            Code::Scasw_AX_m16 => (Kind::Scan, 2),
            Code::Scasd_EAX_m32 => (Kind::Scan, 4),
            Code::Scasq_RAX_m64 => (Kind::Scan, 8),
            Code::Insb_m8_DX => (Kind::Input, 1),
            Code::Insw_m16_DX => (Kind::Input, 2),
            Code::Insd_m32_DX => (Kind::Input, 4),
            Code::Outsb_DX_m8 => (Kind::Output, 1),
            Code::Outsw_DX_m16 => (Kind::Output, 2),
            Code::Outsd_DX_m32 => (Kind::Output, 4),
            _ => return None,
        };
        Some(Self { kind, size })
    }

    const fn is_port(self) -> bool {
        matches!(self.kind, Kind::Input | Kind::Output)
    }

    /// Whether the source at rSI, and the destination at rDI, are used.
    const fn uses(self) -> (bool, bool) {
        match self.kind {
            Kind::Move | Kind::Compare => (true, true),
            Kind::Load | Kind::Output => (true, false),
            Kind::Store | Kind::Scan | Kind::Input => (false, true),
        }
    }
}

/// Size of the addresses in bytes.
fn address_size(instruction: &Instruction) -> u8 {
    let of_kind = |kind| match kind {
        OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => Some(2),
        OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => Some(4),
        OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => Some(8),
        _ => None,
    };
    of_kind(instruction.op0_kind()).or_else(|| of_kind(instruction.op1_kind())).unwrap_or(8)
}

/// Does one element.
pub(super) fn execute<V: Vcpu, D: DeviceSpace>(bus: &mut Bus<'_, V, D>, element: Element) -> Step<Outcome> {
    check_port(bus, element)?;
    bus.has_two_operands();
    let decoded = bus.decoded;
    let instruction = &decoded.instruction;
    let address_size = address_size(instruction);
    let next_rip = decoded.next_rip(bus.vcpu);
    let repeated = instruction.has_rep_prefix() || instruction.has_repne_prefix();
    let counter = Gpr::numbered(number::RCX, address_size);
    let count = counter.read(bus.vcpu.gprs());
    if repeated && count == 0 {
        skip(bus.vcpu, next_rip);
        return Ok(Outcome::Done);
    }
    let Done { pending, status } = run(bus, element, address_size)?;
    let step = if bus.vcpu.rflags() & RFlags::FLAGS_DF.bits() == 0 {
        u64::from(element.size)
    } else {
        u64::from(element.size).wrapping_neg()
    };
    let (source, destination) = element.uses();
    for (used, register) in [(source, number::RSI), (destination, number::RDI)] {
        if used {
            let pointer = Gpr::numbered(register, address_size);
            let moved = pointer.read(bus.vcpu.gprs()).wrapping_add(step) & mask(address_size);
            pointer.write(bus.vcpu.gprs_mut(), moved);
        }
    }
    let mut more = false;
    if repeated {
        counter.write(bus.vcpu.gprs_mut(), count - 1);
        more = count > 1;
    }
    if let Some(status) = status {
        set_status(bus.vcpu, status);
        // REPE goes on while elements are equal, REPNE while they differ.
        let equal = status & RFlags::FLAGS_ZF.bits() != 0;
        more &= equal != instruction.has_repne_prefix();
    }
    if more {
        complete(bus.vcpu);
    } else {
        skip(bus.vcpu, next_rip);
    }
    Ok(pending.unwrap_or(Outcome::Done))
}

/// The element's effect outside the registers that count and point.
struct Done {
    pending: Option<Outcome>,
    /// New status flags.
    status: Option<u64>,
}

fn run<V: Vcpu, D: DeviceSpace>(bus: &mut Bus<'_, V, D>, element: Element, address_size: u8) -> Step<Done> {
    let size = element.size;
    let accumulator = Gpr::numbered(number::RAX, size);
    let mut done = Done { pending: None, status: None };
    match element.kind {
        Kind::Move => {
            let from = source(bus, size, address_size)?;
            let to = destination(bus, size, address_size, true)?;
            let value = bus.read(from, size)?;
            done.pending = bus.write(to, size, value);
        }
        Kind::Store => {
            let to = destination(bus, size, address_size, true)?;
            let value = accumulator.read(bus.vcpu.gprs());
            done.pending = bus.write(to, size, value);
        }
        Kind::Load => {
            let from = source(bus, size, address_size)?;
            let value = bus.read(from, size)?;
            accumulator.write(bus.vcpu.gprs_mut(), value);
        }
        Kind::Compare => {
            let (from, to) = (source(bus, size, address_size)?, destination(bus, size, address_size, false)?);
            let (a, b) = (bus.read(from, size)?, bus.read(to, size)?);
            done.status = Some(alu::subtract(a, b, false, size).flags);
        }
        Kind::Scan => {
            let to = destination(bus, size, address_size, false)?;
            let b = bus.read(to, size)?;
            done.status = Some(alu::subtract(accumulator.read(bus.vcpu.gprs()), b, false, size).flags);
        }
        Kind::Input => {
            // The page fault, if there is one, comes before the port is read.
            let to = destination(bus, size, address_size, true)?;
            let value = bus.read_port(port(bus.vcpu), size)?;
            done.pending = bus.write(to, size, value);
        }
        Kind::Output => {
            let from = source(bus, size, address_size)?;
            #[expect(clippy::cast_possible_truncation, reason = "ports have 4 bytes at most")]
            let value = bus.read(from, size)? as u32;
            done.pending = Some(Outcome::PortWrite { port: port(bus.vcpu), size, value });
        }
    }
    Ok(done)
}

/// The port of INS and OUTS.
fn port<V: Vcpu>(vcpu: &V) -> u16 {
    #[expect(clippy::cast_possible_truncation, reason = "DX is the low half of EDX")]
    let port = vcpu.gprs().rdx as u16;
    port
}

/// Port instructions run only where the CPU has checked the permission for the port, or none is needed; and nothing else
/// runs where the CPU has left the guest for a port.
fn check_port<V: Vcpu, D: DeviceSpace>(bus: &Bus<'_, V, D>, element: Element) -> Step<()> {
    let allowed = match bus.cause {
        Cause::Port(PortAccess { port: checked, size, .. }) => {
            element.is_port() && checked == port(bus.vcpu) && size == element.size
        }
        _ => !element.is_port() || may_use_all_ports(bus.vcpu),
    };
    if allowed { Ok(()) } else { Err(bus.decoded.unsupported()) }
}

/// Whether the vCPU may use ports without a look into the permission map of its task (APM vol. 2, 12.2.4).
fn may_use_all_ports<V: Vcpu>(vcpu: &V) -> bool {
    let flags = vcpu.rflags();
    let privilege = u64::from(vcpu.cpl());
    let level = (flags & RFlags::FLAGS_IOPL3.bits()) >> 12;
    vcpu.cr0() & Cr0::CR0_PROTECTED_MODE.bits() as u64 == 0
        || flags & RFlags::FLAGS_VM.bits() == 0 && privilege <= level
}

/// The element at rSI, in DS or the segment of a prefix.
fn source<V: Vcpu, D: DeviceSpace>(bus: &mut Bus<'_, V, D>, size: u8, address_size: u8) -> Step<Place> {
    let offset = Gpr::numbered(number::RSI, address_size).read(bus.vcpu.gprs());
    let linear = linear_of_operand(bus, offset, size, false)?;
    bus.locate(linear, size, false)
}

/// The element at rDI, always in ES.
fn destination<V: Vcpu, D: DeviceSpace>(
    bus: &mut Bus<'_, V, D>,
    size: u8,
    address_size: u8,
    write: bool,
) -> Step<Place> {
    let offset = Gpr::numbered(number::RDI, address_size).read(bus.vcpu.gprs());
    let linear = linear(bus, SegmentName::Es, offset, size, write)?;
    bus.locate(linear, size, write)
}
