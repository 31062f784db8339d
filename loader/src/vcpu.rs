//! The run loop of a vCPU: what the driver does not answer goes to the buses.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use covisor_abi::Call;
use covisor_abi::ExitReason;
use covisor_abi::KillReason;
use covisor_abi::Run;
use thiserror::Error;

use crate::devices::power::PowerEvent;
use crate::driver::DriverError;
use crate::driver::RunVcpu;
use crate::machine::Pause;
use crate::platform::Bus;

/// Largest access, in bytes.
const MAX_ACCESS: usize = size_of::<u64>();

/// Why a vCPU stopped for good.
#[derive(Debug, Error)]
pub enum VcpuEnd {
    /// The loader wanted it so.
    #[error("the machine was stopped")]
    Stopped,
    /// A triple fault: a machine resets then.
    #[error("the guest shut down by a triple fault (its instruction pointer is {rip:#x})")]
    Shutdown {
        /// Where.
        rip: u64,
    },
    /// `HLT` with interrupts off.
    #[error("the guest halted with interrupts off, and nothing can wake it (its instruction pointer is {rip:#x})")]
    HaltedForever {
        /// Where.
        rip: u64,
    },
    /// The guest switched its machine off or reset it by a call to the driver.
    #[error("the guest {}", match .0 { PowerEvent::PowerOff => "powered off", PowerEvent::Reset => "reset" })]
    Power(PowerEvent),
    /// The driver ended the guest.
    #[error("the guest was ended: {reason} (its instruction pointer is {rip:#x})")]
    Killed {
        /// Why, in words.
        reason: String,
        /// Where.
        rip: u64,
    },
    /// The driver failed.
    #[error("{0}")]
    Driver(#[from] DriverError),
}

/// Runs a vCPU until it ends or `stop` is set; who sets `stop` then kicks the vCPU, as does who wants a `pause`.
pub fn run(vcpu: &mut impl RunVcpu, ports: &Bus, memory: &Bus, stop: &AtomicBool, pause: &Pause) -> VcpuEnd {
    let mut run = Run::default();
    let running = pause.enter();
    // The order pairs with the kick, which the driver remembers if it comes before the run.
    while !stop.load(Ordering::Acquire) {
        running.give_way();
        if let Err(error) = vcpu.run(&mut run) {
            return error.into();
        }
        let handled = match ExitReason::from_u32(run.exit) {
            Some(ExitReason::Interrupted) => continue,
            Some(ExitReason::PortRead) => read(ports, &mut run),
            Some(ExitReason::PortWrite) => write(ports, &run),
            Some(ExitReason::MemoryRead) => read(memory, &mut run),
            Some(ExitReason::MemoryWrite) => write(memory, &run),
            Some(ExitReason::Shutdown) => return VcpuEnd::Shutdown { rip: run.rip },
            Some(ExitReason::HaltedForever) => return VcpuEnd::HaltedForever { rip: run.rip },
            Some(ExitReason::Killed) => return killed(&run),
            Some(ExitReason::PowerOff) => return VcpuEnd::Power(PowerEvent::PowerOff),
            Some(ExitReason::Reset) => return VcpuEnd::Power(PowerEvent::Reset),
            None => Err(bad_answer("exit reason", run.exit)),
        };
        if let Err(error) = handled {
            return error.into();
        }
    }
    VcpuEnd::Stopped
}

/// The length of the access that the driver asks for.
#[inline]
fn length(run: &Run) -> Result<usize, DriverError> {
    match run.size {
        1 => Ok(1),
        2 => Ok(2),
        4 => Ok(4),
        8 => Ok(8),
        size => Err(bad_answer("access size", size)),
    }
}

#[inline]
fn read(bus: &Bus, run: &mut Run) -> Result<(), DriverError> {
    let length = length(run)?;
    let mut data = [0; MAX_ACCESS];
    bus.read(run.address, &mut data[..length]);
    run.data = u64::from_le_bytes(data);
    Ok(())
}

#[inline]
fn write(bus: &Bus, run: &Run) -> Result<(), DriverError> {
    let length = length(run)?;
    bus.write(run.address, &run.data.to_le_bytes()[..length]);
    Ok(())
}

fn bad_answer(what: &'static str, value: u32) -> DriverError {
    DriverError::BadAnswer { call: Call::Run, what, value }
}

fn killed(run: &Run) -> VcpuEnd {
    let reason = match KillReason::from_u32(run.kill) {
        Some(reason) => reason.with_detail(run.detail).to_string(),
        None => format!("for a reason that this covisor does not know (number {}, {:#x})", run.kill, run.detail),
    };
    VcpuEnd::Killed { reason, rip: run.rip }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Arc;
    use std::sync::Mutex;

    use super::*;
    use crate::platform::BusDevice;

    /// A driver whose guest does what a list says; it notes what its reads gave.
    struct Script {
        exits: VecDeque<Run>,
        reads: Vec<u64>,
        reading: bool,
    }

    impl RunVcpu for Script {
        fn run(&mut self, run: &mut Run) -> Result<(), DriverError> {
            if std::mem::take(&mut self.reading) {
                self.reads.push(run.data);
            }
            *run = self.exits.pop_front().expect("the script should end by an exit that ends the loop");
            self.reading =
                matches!(ExitReason::from_u32(run.exit), Some(ExitReason::PortRead | ExitReason::MemoryRead));
            Ok(())
        }
    }

    fn exit(reason: ExitReason, address: u64, data: u64, size: u32) -> Run {
        Run { exit: reason as u32, address, data, size, rip: 0x1234, ..Run::default() }
    }

    /// One byte that keeps what was written.
    struct Latch(u8);

    impl BusDevice for Latch {
        fn read(&mut self, _offset: u64, data: &mut [u8]) {
            data.fill(self.0);
        }

        fn write(&mut self, _offset: u64, data: &[u8]) {
            self.0 = data[0];
        }
    }

    fn play(exits: &[Run]) -> (VcpuEnd, Vec<u64>) {
        let (ports, memory) = (Bus::new(), Bus::new());
        ports.insert(0x10, 1, Arc::new(Mutex::new(Latch(7)))).unwrap();
        memory.insert(0xc000_0000, 8, Arc::new(Mutex::new(Latch(9)))).unwrap();
        let mut script = Script { exits: exits.iter().copied().collect(), reads: Vec::new(), reading: false };
        let end = run(&mut script, &ports, &memory, &AtomicBool::new(false), &Pause::default());
        (end, script.reads)
    }

    #[test]
    fn test_accesses_go_to_the_bus_they_are_for() {
        let (end, reads) = play(&[
            exit(ExitReason::PortRead, 0x10, 0, 1),
            exit(ExitReason::PortWrite, 0x10, 0xab, 1),
            exit(ExitReason::PortRead, 0x10, 0, 1),
            exit(ExitReason::MemoryRead, 0xc000_0000, 0, 8),
            exit(ExitReason::MemoryWrite, 0xc000_0004, 0x5566, 2),
            exit(ExitReason::MemoryRead, 0xc000_0000, 0, 4),
            exit(ExitReason::HaltedForever, 0, 0, 0),
        ]);
        assert_eq!(reads, [7, 0xab, 0x0909_0909_0909_0909, 0x6666_6666]);
        assert!(matches!(end, VcpuEnd::HaltedForever { rip: 0x1234 }));
    }

    #[test]
    fn test_nobodys_reads_give_ones_and_writes_go_nowhere() {
        let (_, reads) = play(&[
            exit(ExitReason::PortWrite, 0x999, 1, 4),
            exit(ExitReason::PortRead, 0x999, 0, 4),
            exit(ExitReason::MemoryRead, u64::MAX, 0, 8),
            exit(ExitReason::Shutdown, 0, 0, 0),
        ]);
        assert_eq!(reads, [0xffff_ffff, u64::MAX]);
    }

    #[test]
    fn test_an_interruption_runs_on() {
        let (end, _) = play(&[exit(ExitReason::Interrupted, 0, 0, 0), exit(ExitReason::Shutdown, 0, 0, 0)]);
        assert!(matches!(end, VcpuEnd::Shutdown { .. }));
    }

    #[test]
    fn test_an_interruption_keeps_the_answer_of_a_read() {
        struct Interrupts(u32);
        impl RunVcpu for Interrupts {
            fn run(&mut self, run: &mut Run) -> Result<(), DriverError> {
                self.0 += 1;
                match self.0 {
                    1 => *run = exit(ExitReason::PortRead, 0x10, 0, 1),
                    2 => run.exit = ExitReason::Interrupted as u32,
                    _ => {
                        assert_eq!(run.data, 7);
                        run.exit = ExitReason::Shutdown as u32;
                    }
                }
                Ok(())
            }
        }
        let ports = Bus::new();
        ports.insert(0x10, 1, Arc::new(Mutex::new(Latch(7)))).unwrap();
        run(&mut Interrupts(0), &ports, &Bus::new(), &AtomicBool::new(false), &Pause::default());
    }

    #[test]
    fn test_a_guest_can_call_for_its_machines_end() {
        for (reason, event) in [(ExitReason::PowerOff, PowerEvent::PowerOff), (ExitReason::Reset, PowerEvent::Reset)] {
            let (end, _) = play(&[exit(reason, 0, 0, 0)]);
            assert!(matches!(end, VcpuEnd::Power(wanted) if wanted == event), "{end}");
        }
    }

    #[test]
    fn test_a_killed_guest_is_told_of_in_words() {
        let run = Run { kill: KillReason::CodeOutsideRam as u32, detail: 0xf000, ..exit(ExitReason::Killed, 0, 0, 0) };
        let (end, _) = play(&[run]);
        assert_eq!(
            end.to_string(),
            "the guest was ended: the guest jumped to guest-physical address 0xf000, where it has no RAM \
             (its instruction pointer is 0x1234)"
        );
        let (end, _) = play(&[Run { kill: 99, ..run }]);
        assert!(end.to_string().contains("number 99"));
    }

    #[test]
    fn test_answers_that_no_driver_of_ours_gives_end_the_vcpu() {
        for run in [
            exit(ExitReason::PortRead, 0, 0, 3),
            exit(ExitReason::MemoryWrite, 0, 0, 9),
            Run { exit: 77, ..Run::default() },
        ] {
            assert!(matches!(play(&[run]).0, VcpuEnd::Driver(DriverError::BadAnswer { .. })));
        }
    }

    #[test]
    fn test_a_device_can_stop_the_vcpu_that_writes_to_it() {
        struct Stop(Arc<AtomicBool>);
        impl BusDevice for Stop {
            fn read(&mut self, _offset: u64, _data: &mut [u8]) {}
            fn write(&mut self, _offset: u64, _data: &[u8]) {
                self.0.store(true, Ordering::Release);
            }
        }
        let stop = Arc::new(AtomicBool::new(false));
        let ports = Bus::new();
        ports.insert(0x600, 1, Arc::new(Mutex::new(Stop(Arc::clone(&stop))))).unwrap();
        let exits = VecDeque::from([exit(ExitReason::PortWrite, 0x600, 0x34, 1)]);
        let mut script = Script { exits, reads: Vec::new(), reading: false };
        assert!(matches!(run(&mut script, &ports, &Bus::new(), &stop, &Pause::default()), VcpuEnd::Stopped));
    }
}
