//! A machine for the devices' tests.

use std::io;
use std::mem;
use std::sync::Mutex;

use covisor_abi::DoorbellSpace;

use crate::platform::Doorbells;
use crate::platform::Event;
use crate::platform::InterruptController;
use crate::platform::lock;

/// Remembers the interrupts that devices send.
#[derive(Debug, Default)]
pub(crate) struct Interrupts {
    messages: Mutex<Vec<(u64, u32)>>,
    lines: Mutex<Vec<(u32, bool)>>,
}

impl Interrupts {
    /// The messages since the last call.
    pub(crate) fn take_messages(&self) -> Vec<(u64, u32)> {
        mem::take(&mut lock(&self.messages))
    }

    /// The level changes since the last call.
    pub(crate) fn take_lines(&self) -> Vec<(u32, bool)> {
        mem::take(&mut lock(&self.lines))
    }
}

impl InterruptController for Interrupts {
    fn msi(&self, address: u64, data: u32) {
        lock(&self.messages).push((address, data));
    }

    fn line(&self, gsi: u32, level: bool) {
        lock(&self.lines).push((gsi, level));
    }
}

/// Doorbells that can be rung, up to a number of them.
#[derive(Debug)]
pub(crate) struct Bells {
    room: usize,
    bells: Mutex<Vec<(u64, u32, Event)>>,
}

impl Bells {
    /// Room for `room` doorbells.
    pub(crate) fn new(room: usize) -> Self {
        Self { room, bells: Mutex::new(Vec::new()) }
    }

    /// The addresses that have one.
    pub(crate) fn addresses(&self) -> Vec<u64> {
        lock(&self.bells).iter().map(|bell| bell.0).collect()
    }

    /// Stores to `address`, and says whether there was a doorbell.
    pub(crate) fn ring(&self, address: u64) -> bool {
        lock(&self.bells).iter().filter(|bell| bell.0 == address).map(|bell| bell.2.signal()).next().is_some()
    }
}

impl Doorbells for Bells {
    fn add(&self, space: DoorbellSpace, address: u64, width: u32, event: &Event) -> io::Result<()> {
        assert_eq!(space, DoorbellSpace::Port);
        let mut bells = lock(&self.bells);
        if bells.len() >= self.room {
            return Err(io::ErrorKind::StorageFull.into());
        }
        bells.push((address, width, event.try_clone()?));
        Ok(())
    }

    fn remove(&self, _space: DoorbellSpace, address: u64, width: u32) -> io::Result<()> {
        let mut bells = lock(&self.bells);
        let at = bells.iter().position(|bell| (bell.0, bell.1) == (address, width));
        bells.remove(at.ok_or(io::ErrorKind::NotFound)?);
        Ok(())
    }
}
