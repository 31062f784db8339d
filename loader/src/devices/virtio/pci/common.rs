//! The common configuration registers (virtio 1.2, 4.1.4.3): negotiation, and where the queues are.

use std::sync::Arc;

use bitflags::bitflags;

use super::interrupt::Interrupt;
use crate::devices::virtio::QueueLayout;
use crate::devices::virtio::feature;

/// Registers, by offset.
mod register {
    pub(super) const DEVICE_FEATURE_SELECT: u8 = 0x00;
    pub(super) const DEVICE_FEATURE: u8 = 0x04;
    pub(super) const DRIVER_FEATURE_SELECT: u8 = 0x08;
    pub(super) const DRIVER_FEATURE: u8 = 0x0c;
    pub(super) const CONFIG_VECTOR: u8 = 0x10;
    pub(super) const STATUS: u8 = 0x14;
    pub(super) const QUEUE_SELECT: u8 = 0x16;
    pub(super) const QUEUE_SIZE: u8 = 0x18;
    pub(super) const QUEUE_VECTOR: u8 = 0x1a;
    pub(super) const QUEUE_ENABLE: u8 = 0x1c;
    pub(super) const QUEUE_DESCRIPTORS: u8 = 0x20;
    pub(super) const QUEUE_AVAILABLE: u8 = 0x28;
    pub(super) const QUEUE_USED: u8 = 0x30;
}

bitflags! {
    /// The device status (virtio 1.2, 2.1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Status: u8 {
        const ACKNOWLEDGE = 1 << 0;
        const DRIVER = 1 << 1;
        const DRIVER_OK = 1 << 2;
        const FEATURES_OK = 1 << 3;
        const NEEDS_RESET = 1 << 6;
        const FAILED = 1 << 7;
    }
}

/// What a write asks of the transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing.
    None,
    /// Reset the device.
    Reset,
    /// The driver is ready: start the device.
    Start,
}

/// One queue's registers.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueRegisters {
    /// Most entries.
    pub(super) max: u16,
    /// What the driver set.
    pub(super) layout: QueueLayout,
    /// The driver will use it, and cannot change it any more.
    pub(super) enabled: bool,
}

impl QueueRegisters {
    fn new(max: u16) -> Self {
        Self { max, layout: QueueLayout { size: max, ..QueueLayout::default() }, enabled: false }
    }
}

/// The registers.
pub(super) struct CommonConfig {
    offered: u64,
    accepted: u64,
    device_select: u32,
    driver_select: u32,
    status: Status,
    selected: u16,
    queues: Vec<QueueRegisters>,
    interrupt: Arc<Interrupt>,
}

/// The half of a 64-bit register, as a select register chooses it.
fn half(value: u64, select: u32) -> u32 {
    let bytes = value.to_le_bytes();
    let [a, b, c, d, e, f, g, h] = bytes;
    match select {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}

fn set_half(value: &mut u64, select: u32, new: u32) {
    match select {
        0 => *value = *value & !0xffff_ffff | u64::from(new),
        1 => *value = *value & 0xffff_ffff | u64::from(new) << 32,
        _ => {}
    }
}

impl CommonConfig {
    pub(super) fn new(offered: u64, queue_sizes: &[u16], interrupt: Arc<Interrupt>) -> Self {
        Self {
            offered,
            accepted: 0,
            device_select: 0,
            driver_select: 0,
            status: Status::empty(),
            selected: 0,
            queues: queue_sizes.iter().copied().map(QueueRegisters::new).collect(),
            interrupt,
        }
    }

    /// Features that both sides agreed on.
    pub(super) fn accepted(&self) -> u64 {
        self.accepted
    }

    /// The queues.
    pub(super) fn queues(&self) -> &[QueueRegisters] {
        &self.queues
    }

    /// Whether the driver has said that it is ready.
    pub(super) fn is_started(&self) -> bool {
        self.status.contains(Status::DRIVER_OK)
    }

    /// Whether a driver uses the device. Linux acknowledges one once more when its driver has let it go.
    pub(super) fn has_driver(&self) -> bool {
        self.status.contains(Status::DRIVER)
    }

    /// The device cannot go on until it is reset.
    pub(super) fn set_needs_reset(&mut self) {
        self.status |= Status::NEEDS_RESET;
    }

    /// Puts everything back to how it was at first.
    pub(super) fn reset(&mut self) {
        self.accepted = 0;
        self.device_select = 0;
        self.driver_select = 0;
        self.status = Status::empty();
        self.selected = 0;
        for queue in &mut self.queues {
            *queue = QueueRegisters::new(queue.max);
        }
    }

    fn queue(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::from(self.selected))
    }

    /// The selected queue, as long as the driver may still set it up. Once it is enabled, or the device works, nothing of it
    /// changes (CVE-2026-5747 was a device where it could).
    fn queue_to_set_up(&mut self) -> Option<&mut QueueRegisters> {
        let started = self.is_started();
        self.queues.get_mut(usize::from(self.selected)).filter(|queue| !queue.enabled && !started)
    }

    /// Reads at `offset`, any bytes of the registers. `generation` is the device configuration's.
    pub(super) fn read(&self, offset: u8, generation: u8, data: &mut [u8]) {
        for (offset, byte) in (offset..).zip(data) {
            *byte = self.word(offset & !3, generation).to_le_bytes()[usize::from(offset & 3)];
        }
    }

    /// The four bytes of registers at `offset`.
    fn word(&self, offset: u8, generation: u8) -> u32 {
        let pair = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
        let layout = self.queue().map_or_else(QueueLayout::default, |queue| queue.layout);
        match offset {
            register::DEVICE_FEATURE_SELECT => self.device_select,
            register::DEVICE_FEATURE => half(self.offered, self.device_select),
            register::DRIVER_FEATURE_SELECT => self.driver_select,
            register::DRIVER_FEATURE => half(self.accepted, self.driver_select),
            register::CONFIG_VECTOR => {
                let queues = u16::try_from(self.queues.len()).unwrap_or(u16::MAX);
                pair(self.interrupt.config_vector(), queues)
            }
            register::STATUS => pair(u16::from_le_bytes([self.status.bits(), generation]), self.selected),
            register::QUEUE_SIZE => pair(layout.size, self.interrupt.queue_vector(self.selected)),
            register::QUEUE_ENABLE => {
                // Every queue's notification offset is its number.
                let (enabled, notify) = self.queue().map_or((0, 0), |queue| (u16::from(queue.enabled), self.selected));
                pair(enabled, notify)
            }
            register::QUEUE_DESCRIPTORS => half(layout.descriptors, 0),
            0x24 => half(layout.descriptors, 1),
            register::QUEUE_AVAILABLE => half(layout.available, 0),
            0x2c => half(layout.available, 1),
            register::QUEUE_USED => half(layout.used, 0),
            0x34 => half(layout.used, 1),
            _ => 0,
        }
    }

    /// Writes a register; drivers write whole ones only (virtio 1.2, 4.1.3.1), 64-bit ones by halves.
    pub(super) fn write(&mut self, offset: u8, data: &[u8]) -> Effect {
        match *data {
            [value] if offset == register::STATUS => return self.write_status(value),
            [a, b] => self.write_16(offset, u16::from_le_bytes([a, b])),
            [a, b, c, d] => self.write_32(offset, u32::from_le_bytes([a, b, c, d])),
            _ => {}
        }
        Effect::None
    }

    fn write_16(&mut self, offset: u8, value: u16) {
        match offset {
            register::CONFIG_VECTOR => self.interrupt.set_config_vector(value),
            register::QUEUE_SELECT => self.selected = value,
            register::QUEUE_SIZE => {
                if let Some(queue) = self.queue_to_set_up() {
                    queue.layout.size = value;
                }
            }
            register::QUEUE_VECTOR => self.interrupt.set_queue_vector(self.selected, value),
            // Only a reset disables a queue (virtio 1.2, 4.1.4.3.2).
            register::QUEUE_ENABLE if value == 1 => {
                if let Some(queue) = self.queue_to_set_up() {
                    queue.enabled = true;
                }
            }
            _ => {}
        }
    }

    fn write_32(&mut self, offset: u8, value: u32) {
        match offset {
            register::DEVICE_FEATURE_SELECT => self.device_select = value,
            register::DRIVER_FEATURE_SELECT => self.driver_select = value,
            // What was agreed on stays.
            register::DRIVER_FEATURE if !self.status.contains(Status::FEATURES_OK) => {
                set_half(&mut self.accepted, self.driver_select, value);
            }
            register::QUEUE_DESCRIPTORS..=0x37 => {
                let Some(queue) = self.queue_to_set_up() else { return };
                let layout = &mut queue.layout;
                match offset {
                    register::QUEUE_DESCRIPTORS => set_half(&mut layout.descriptors, 0, value),
                    0x24 => set_half(&mut layout.descriptors, 1, value),
                    register::QUEUE_AVAILABLE => set_half(&mut layout.available, 0, value),
                    0x2c => set_half(&mut layout.available, 1, value),
                    register::QUEUE_USED => set_half(&mut layout.used, 0, value),
                    0x34 => set_half(&mut layout.used, 1, value),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn write_status(&mut self, value: u8) -> Effect {
        if value == 0 {
            return Effect::Reset;
        }
        // The driver only ever adds bits (virtio 1.2, 2.1.1), and one is the device's own.
        let mut added = (Status::from_bits_truncate(value) - Status::NEEDS_RESET) - self.status;
        let agreed = self.accepted & !self.offered == 0 && self.accepted & feature::VERSION_1 != 0;
        if !agreed {
            added -= Status::FEATURES_OK;
        }
        if !(self.status | added).contains(Status::FEATURES_OK) {
            added -= Status::DRIVER_OK;
        }
        self.status |= added;
        if added.contains(Status::DRIVER_OK) { Effect::Start } else { Effect::None }
    }
}
