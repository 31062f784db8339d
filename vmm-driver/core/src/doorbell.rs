//! Doorbells: guest stores to these addresses signal an event of the loader's, and the guest goes on.
//!
//! Looked up on the exit path without a lock. A slot that was used is not used again while the VM lives, so an event is
//! there as long as anybody can look at it.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering;

use covisor_abi::DoorbellChange;
use covisor_abi::DoorbellSpace;
use covisor_abi::MAX_DOORBELLS;

use crate::device::CallError;
use crate::host::Host;
use crate::memory::GUEST_PHYSICAL_LIMIT;

/// One doorbell.
struct Doorbell<H: Host> {
    /// Address, space and width ([`key`]); 0 while it is not in use.
    key: AtomicU64,
    event: spin::Once<H::Event>,
}

/// The doorbells of a VM.
pub(crate) struct Doorbells<H: Host> {
    slots: [Doorbell<H>; MAX_DOORBELLS],
    /// Slots that were ever used.
    used: AtomicUsize,
    /// One change at a time.
    changing: spin::Mutex<()>,
}

/// Bits of a key below the address: the space, and the width in bytes.
const KEY_SHIFT: u32 = 8;
/// The width's bits.
const KEY_WIDTH: u64 = 0xf;
/// Set for ports.
const KEY_PORT: u64 = 0x10;

/// Address and space in one word, without the width.
#[inline]
const fn key(space: DoorbellSpace, address: u64) -> u64 {
    let port = match space {
        DoorbellSpace::Port => KEY_PORT,
        DoorbellSpace::Memory => 0,
    };
    address << KEY_SHIFT | port
}

/// Checks a change and makes its key.
fn checked_key(change: &DoorbellChange) -> Result<u64, CallError> {
    let (space, limit) = match change.space {
        0 => (DoorbellSpace::Port, 1 << 16),
        1 => (DoorbellSpace::Memory, GUEST_PHYSICAL_LIMIT),
        _ => return Err(CallError::Invalid),
    };
    let width = match (change.width, space) {
        (1 | 2 | 4, _) | (8, DoorbellSpace::Memory) => u64::from(change.width),
        _ => return Err(CallError::Invalid),
    };
    match change.address.checked_add(width) {
        Some(end) if end <= limit => Ok(key(space, change.address) | width),
        _ => Err(CallError::Invalid),
    }
}

impl<H: Host> Doorbells<H> {
    pub(crate) fn new() -> Self {
        let slots = [const { Doorbell { key: AtomicU64::new(0), event: spin::Once::new() } }; MAX_DOORBELLS];
        Self { slots, used: AtomicUsize::new(0), changing: spin::Mutex::new(()) }
    }

    /// Adds one.
    pub(crate) fn add(&self, change: &DoorbellChange) -> Result<(), CallError> {
        let key = checked_key(change)?;
        let _changing = self.changing.try_lock().ok_or(CallError::Busy)?;
        if self.find_key(key & !KEY_WIDTH).is_some() {
            return Err(CallError::Exists);
        }
        let index = self.used.load(Ordering::Relaxed);
        let slot = self.slots.get(index).ok_or(CallError::NoMemory)?;
        let event = H::event_open(change.event).ok_or(CallError::NotFound)?;
        slot.event.call_once(|| event);
        slot.key.store(key, Ordering::Relaxed);
        // Release: who sees the slot counted sees its key and event.
        self.used.store(index + 1, Ordering::Release);
        Ok(())
    }

    /// Takes one away.
    pub(crate) fn remove(&self, change: &DoorbellChange) -> Result<(), CallError> {
        let key = checked_key(change)?;
        let _changing = self.changing.try_lock().ok_or(CallError::Busy)?;
        let index = self.find_key(key & !KEY_WIDTH).ok_or(CallError::NotFound)?;
        self.slots[index].key.store(0, Ordering::Release);
        Ok(())
    }

    #[inline]
    fn find_key(&self, wanted: u64) -> Option<usize> {
        let used = self.used.load(Ordering::Acquire);
        self.slots.iter().take(used).position(|slot| {
            let key = slot.key.load(Ordering::Relaxed);
            key & !KEY_WIDTH == wanted && key != 0
        })
    }

    /// The doorbell that a store of `size` bytes rings.
    #[inline]
    pub(crate) fn find(&self, space: DoorbellSpace, address: u64, size: u8) -> Option<usize> {
        let index = self.find_key(key(space, address))?;
        let width = self.slots[index].key.load(Ordering::Relaxed) & KEY_WIDTH;
        (u64::from(size) <= width).then_some(index)
    }

    /// Signals a doorbell's event. Not in guest context.
    pub(crate) fn ring(&self, index: usize) {
        if let Some(event) = self.slots.get(index).and_then(|slot| slot.event.get()) {
            H::event_signal(event);
        }
    }
}
