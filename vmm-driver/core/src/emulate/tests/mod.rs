mod arithmetic;
mod control;
mod edges;
mod moves;
mod native;
mod quick;
mod strings;

use std::collections::HashMap;

use super::Answer;
use super::Cause;
use super::DeviceSpace;
use super::Outcome;
use super::emulate;
use crate::exit::MemoryAccess;
use crate::paging::entry;
use crate::test_support::TestGuest;

/// Where the code is, linear and physical.
const CODE: u64 = 0x1000;
/// A page of RAM, linear and physical; the one after it is RAM too.
const RAM: u64 = 0x4000;
/// Linear address of a page of device memory.
const DEVICE: u64 = 0x10_0000;
/// Its physical address.
const DEVICE_GPA: u64 = 0xfe00_0000;
/// Linear address of another page of device memory, whose device is in the driver.
const DRIVER: u64 = 0x11_0000;
/// Its physical address.
const DRIVER_GPA: u64 = 0xfee0_0000;
/// Linear address of a page that the guest may only read.
const READ_ONLY: u64 = 0x12_0000;
/// Not mapped.
const NOTHING: u64 = 0x13_0000;

/// The driver's devices: words at [`DRIVER_GPA`].
#[derive(Default)]
struct Devices {
    words: HashMap<u64, u64>,
    reads: Vec<u64>,
    writes: Vec<(u64, u8, u64)>,
}

impl DeviceSpace for Devices {
    fn read(&mut self, gpa: u64, _size: u8) -> Option<u64> {
        let mine = gpa >> 12 == DRIVER_GPA >> 12;
        if mine {
            self.reads.push(gpa);
        }
        mine.then(|| self.words.get(&gpa).copied().unwrap_or(0))
    }

    fn write(&mut self, gpa: u64, size: u8, value: u64) -> bool {
        let mine = gpa >> 12 == DRIVER_GPA >> 12;
        if mine {
            self.words.insert(gpa, value);
            self.writes.push((gpa, size, value));
        }
        mine
    }
}

struct Machine {
    guest: TestGuest,
    devices: Devices,
    cause: Cause,
}

impl Machine {
    fn new() -> Self {
        let mut guest = TestGuest::long_mode();
        let rights = entry::PRESENT | entry::USER;
        for page in [CODE, CODE + 0x1000, RAM, RAM + 0x1000] {
            guest.map(page, 12, page | rights | entry::WRITABLE);
        }
        guest.map(DEVICE, 12, DEVICE_GPA | rights | entry::WRITABLE);
        guest.map(DRIVER, 12, DRIVER_GPA | rights | entry::WRITABLE);
        guest.map(READ_ONLY, 12, 0x6000 | rights);
        guest.vcpu.rip = CODE;
        guest.vcpu.gprs.rsp = RAM + 0x800;
        Self { guest, devices: Devices::default(), cause: Cause::Other }
    }

    /// Without paging, 32-bit.
    fn protected_mode() -> Self {
        let mut guest = TestGuest::protected_mode();
        guest.vcpu.rip = CODE;
        Self { guest, devices: Devices::default(), cause: Cause::Other }
    }

    /// Puts an instruction at RIP.
    fn put(&mut self, code: &[u8]) {
        let base = if self.guest.vcpu.efer != 0 { 0 } else { self.guest.vcpu.segments[1].base };
        self.guest.write(base + self.guest.vcpu.rip, code);
    }

    fn step(&mut self, answer: Option<Answer>) -> Outcome {
        emulate(&mut self.guest.vcpu, &self.guest.memory, &mut self.devices, self.cause, answer)
    }

    /// Runs one instruction that needs nothing of the loader.
    fn run(&mut self, code: &[u8]) -> Outcome {
        self.put(code);
        self.step(None)
    }

    /// Runs one instruction to its end, the loader's device reading as `value`.
    fn run_with(&mut self, code: &[u8], value: u64) -> Outcome {
        self.put(code);
        let before = self.guest.vcpu.clone();
        match self.step(None) {
            Outcome::NeedRead { gpa, size } => {
                assert_eq!(self.guest.vcpu, before, "nothing is committed before the answer");
                self.step(Some(Answer::Memory { gpa, size, value }))
            }
            Outcome::NeedPortRead { port, size } => {
                assert_eq!(self.guest.vcpu, before, "nothing is committed before the answer");
                self.step(Some(Answer::Port { port, size, value }))
            }
            other => other,
        }
    }

    /// The instruction is over: `length` bytes further.
    fn assert_done(&self, outcome: Outcome, length: u64) {
        assert_eq!(outcome, Outcome::Done);
        assert_eq!(self.guest.vcpu.rip, CODE + length);
    }
}

fn memory_cause(gpa: u64, write: bool) -> Cause {
    Cause::Memory(MemoryAccess { gpa, write, fetch: false, page_walk: false })
}
