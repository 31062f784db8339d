//! Why the monitor left the guest, in core's words.

use covisor_abi::KillReason;
use covisor_core::exit::Exit;
use covisor_core::exit::MemoryAccess;
use covisor_core::exit::PortAccess;
use covisor_core::exit::PowerRequest;
use covisor_monitor::area::ExitKind;
use covisor_monitor::area::ExitRecord;

/// Vector of NMIs.
const NMI: u8 = 2;
/// Vector of machine checks.
const MACHINE_CHECK: u8 = 18;
/// First vector that interrupts can have.
const FIRST_INTERRUPT: u8 = 32;
/// [`ExitKind::Port`]: a write.
const PORT_WRITE: u64 = 1 << 0;
/// [`ExitKind::Port`]: INS or OUTS.
const PORT_STRING: u64 = 1 << 1;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Core answers.
    Exit(Exit),
    /// The same, for a write to a port by a call: this value is to be in RAX meanwhile.
    PortWrite(PortAccess, u64),
    /// The host takes this interrupt.
    Interrupt(u8),
}

/// A port access, if there can be such a one.
fn port(port: u64, size: u64, flags: u64, next_rip: u64) -> Option<PortAccess> {
    let size = u8::try_from(size).ok().filter(|size| matches!(size, 1 | 2 | 4))?;
    let port = u16::try_from(port).ok()?;
    Some(PortAccess { port, size, write: flags & PORT_WRITE != 0, string: flags & PORT_STRING != 0, next_rip })
}

/// What an exit means; `rip` is the guest's.
pub(crate) fn decode(record: &ExitRecord, rip: u64) -> Event {
    let ExitRecord { kind, a, b, c, d } = *record;
    let unknown = Event::Exit(Exit::Kill(KillReason::UnknownExit, kind));
    let Some(kind) = ExitKind::from_number(kind) else { return unknown };
    let exit = match kind {
        ExitKind::Attention => Exit::HostInterrupt,
        ExitKind::Interrupt => match u8::try_from(a) {
            Ok(vector @ (NMI | MACHINE_CHECK | FIRST_INTERRUPT..)) => return Event::Interrupt(vector),
            _ => return unknown,
        },
        ExitKind::Port => match port(a, b, c, d) {
            Some(access) => Exit::Port(access),
            None => return unknown,
        },
        ExitKind::PortWrite => match port(a, c, PORT_WRITE, rip) {
            Some(access) => return Event::PortWrite(access, b),
            None => return unknown,
        },
        ExitKind::ReadMsr => Exit::ReadMsr,
        ExitKind::WriteMsr => Exit::WriteMsr,
        ExitKind::Cpuid => Exit::Cpuid,
        ExitKind::Xsetbv => Exit::Xsetbv,
        ExitKind::Memory => Exit::Memory(MemoryAccess { gpa: a, write: b != 0, fetch: false, page_walk: false }),
        ExitKind::Halt => Exit::Halt,
        ExitKind::SetTimer => Exit::SetTimer((b != 0).then_some(a)),
        ExitKind::EndOfInterrupt => match u8::try_from(a) {
            Ok(gsi) => Exit::EndOfInterrupt { gsi },
            Err(_) => return unknown,
        },
        ExitKind::Power => Exit::Power(if a == 0 { PowerRequest::Off } else { PowerRequest::Reset }),
        ExitKind::Kill => match u32::try_from(a).ok().and_then(KillReason::from_u32) {
            Some(reason) => Exit::Kill(reason, b),
            None => return unknown,
        },
    };
    Event::Exit(exit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(kind: ExitKind, [a, b, c, d]: [u64; 4]) -> Event {
        decode(&ExitRecord { kind: kind as u64, a, b, c, d }, 0x1000)
    }

    fn exit(kind: ExitKind, values: [u64; 4]) -> Exit {
        match decoded(kind, values) {
            Event::Exit(exit) => exit,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn interrupts_are_the_hosts_and_exceptions_are_not() {
        for vector in [2, 18, 32, 0x80, 255] {
            assert_eq!(
                decoded(ExitKind::Interrupt, [vector, 0, 0, 0]),
                Event::Interrupt(u8::try_from(vector).unwrap())
            );
        }
        for vector in [0, 3, 14, 31, 256, 0x1_0020] {
            assert_eq!(exit(ExitKind::Interrupt, [vector, 0, 0, 0]), Exit::Kill(KillReason::UnknownExit, 1));
        }
    }

    #[test]
    fn port_accesses_are_those_that_there_are() {
        let access = PortAccess { port: 0xcf8, size: 4, write: true, string: false, next_rip: 0x1001 };
        assert_eq!(exit(ExitKind::Port, [0xcf8, 4, 1, 0x1001]), Exit::Port(access));
        let by_call = PortAccess { port: 0xe9, size: 1, write: true, string: false, next_rip: 0x1000 };
        assert_eq!(decoded(ExitKind::PortWrite, [0xe9, 0x41, 1, 0]), Event::PortWrite(by_call, 0x41));
        for values in [[0x1_0000, 4, 0, 0], [0, 3, 0, 0], [0, 8, 0, 0]] {
            assert_eq!(exit(ExitKind::Port, values), Exit::Kill(KillReason::UnknownExit, 2));
        }
    }

    #[test]
    fn calls_are_what_they_say() {
        assert_eq!(exit(ExitKind::SetTimer, [77, 1, 0, 0]), Exit::SetTimer(Some(77)));
        assert_eq!(exit(ExitKind::SetTimer, [77, 0, 0, 0]), Exit::SetTimer(None));
        assert_eq!(exit(ExitKind::EndOfInterrupt, [11, 0, 0, 0]), Exit::EndOfInterrupt { gsi: 11 });
        assert_eq!(exit(ExitKind::Power, [1, 0, 0, 0]), Exit::Power(PowerRequest::Reset));
        assert_eq!(exit(ExitKind::Kill, [15, 0xd, 0, 0]), Exit::Kill(KillReason::MonitorFault, 0xd));
        assert_eq!(exit(ExitKind::Kill, [0, 0, 0, 0]), Exit::Kill(KillReason::UnknownExit, 12));
        let unknown = decode(&ExitRecord { kind: 99, ..ExitRecord::default() }, 0);
        assert_eq!(unknown, Event::Exit(Exit::Kill(KillReason::UnknownExit, 99)));
    }
}
