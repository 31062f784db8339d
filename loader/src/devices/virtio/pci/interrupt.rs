//! A virtio function's interrupts: by MSI-X when the driver uses it, else by the pin and the interrupt status byte.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::Ordering;

use crate::devices::pci::IntxPin;
use crate::devices::pci::MsixTable;
use crate::devices::virtio::DriverSignal;
use crate::platform::lock;

/// No vector: such events do not interrupt (virtio 1.2, 4.1.5.1.2).
pub(super) const NO_VECTOR: u16 = 0xffff;

/// Interrupt status: a queue has used buffers (virtio 1.2, 4.1.4.5).
const ISR_QUEUE: u8 = 1 << 0;
/// Interrupt status: the configuration has changed.
const ISR_CONFIG: u8 = 1 << 1;

struct Pin {
    pin: IntxPin,
    /// The interrupt status byte.
    status: u8,
    /// The command register forbids the pin, or MSI-X replaces it.
    disabled: bool,
}

impl Pin {
    fn update(&self) {
        self.pin.set(self.status != 0 && !self.disabled);
    }
}

/// The interrupts of one function.
pub(super) struct Interrupt {
    msix: Option<Arc<Mutex<MsixTable>>>,
    config_vector: AtomicU16,
    queue_vectors: Box<[AtomicU16]>,
    pin: Mutex<Pin>,
}

impl Interrupt {
    pub(super) fn new(pin: IntxPin, msix: Option<Arc<Mutex<MsixTable>>>, queues: usize) -> Self {
        Self {
            msix,
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            pin: Mutex::new(Pin { pin, status: 0, disabled: false }),
        }
    }

    /// The vector of configuration changes.
    pub(super) fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::Relaxed)
    }

    /// The vector of queue `index`.
    pub(super) fn queue_vector(&self, index: u16) -> u16 {
        self.queue_vectors.get(usize::from(index)).map_or(NO_VECTOR, |vector| vector.load(Ordering::Relaxed))
    }

    /// Sets the vector of configuration changes; one that there is not is none (virtio 1.2, 4.1.5.1.2.1).
    pub(super) fn set_config_vector(&self, vector: u16) {
        self.config_vector.store(self.existing(vector), Ordering::Relaxed);
    }

    /// Sets the vector of queue `index`.
    pub(super) fn set_queue_vector(&self, index: u16, vector: u16) {
        if let Some(queue) = self.queue_vectors.get(usize::from(index)) {
            queue.store(self.existing(vector), Ordering::Relaxed);
        }
    }

    fn existing(&self, vector: u16) -> u16 {
        let vectors = self.msix.as_ref().map_or(0, |msix| lock(msix).vectors());
        if usize::from(vector) < vectors { vector } else { NO_VECTOR }
    }

    /// Sets what configuration space says: whether MSI-X is in use and masked, bus mastering, and whether the pin is
    /// forbidden.
    pub(super) fn set_control(&self, msix: (bool, bool), bus_master: bool, no_pin: bool) {
        if let Some(table) = &self.msix {
            lock(table).set_control(msix.0, msix.1, bus_master);
        }
        let mut pin = lock(&self.pin);
        pin.disabled = no_pin || msix.0;
        pin.update();
    }

    /// The driver reads the interrupt status byte, which clears it.
    pub(super) fn take_status(&self) -> u8 {
        let mut pin = lock(&self.pin);
        let status = std::mem::take(&mut pin.status);
        pin.update();
        status
    }

    /// Whether the pin is asserted, or would be if it were not forbidden.
    pub(super) fn is_pending(&self) -> bool {
        lock(&self.pin).status != 0
    }

    /// The driver has reset the device.
    pub(super) fn reset(&self) {
        self.config_vector.store(NO_VECTOR, Ordering::Relaxed);
        for vector in &self.queue_vectors {
            vector.store(NO_VECTOR, Ordering::Relaxed);
        }
        if let Some(table) = &self.msix {
            lock(table).clear_pending();
        }
        self.take_status();
    }

    fn raise(&self, vector: u16, status: u8) {
        if let Some(table) = &self.msix {
            let mut table = lock(table);
            if table.enabled() {
                // No vector is past the table's end.
                table.signal(vector);
                return;
            }
        }
        let mut pin = lock(&self.pin);
        pin.status |= status;
        pin.update();
    }
}

impl DriverSignal for Interrupt {
    fn used(&self, queue: u16) {
        self.raise(self.queue_vector(queue), ISR_QUEUE);
    }

    fn config_changed(&self) {
        self.raise(self.config_vector(), ISR_CONFIG);
    }
}
