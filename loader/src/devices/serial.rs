//! The serial port: a 16550A (National Semiconductor PC16550D data sheet) at the PC's first place.

use std::fmt;
use std::io;
use std::io::Write;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::Weak;

use vm_superio::Trigger;
use vm_superio::serial::NoEvents;

use super::pipe;
use super::pipe::DeviceInput;
use super::pipe::DeviceOutput;
use super::pipe::HostInput;
use super::pipe::HostOutput;
use crate::platform::BusDevice;
use crate::platform::InterruptController;
use crate::platform::lock;

/// First port.
pub const SERIAL_PORT: u64 = 0x3f8;
/// Ports.
pub const SERIAL_PORTS: u64 = 8;
/// Interrupt line.
pub const SERIAL_IRQ: u32 = 4;

/// Bytes under way to the host, and to the guest.
const CAPACITY: usize = 16 * 1024;
/// Bytes that a driver may send on one look at the line status: the transmitter's FIFO.
const TRANSMIT_FIFO: usize = 16;
/// The receiver's FIFO in `vm_superio`.
const RECEIVE_FIFO: usize = 64;

/// Receiver buffer, read.
const RECEIVER: u8 = 0;
/// Interrupt enable; divisor latch, high byte, with [`LCR_DIVISOR`].
const INTERRUPT_ENABLE: u8 = 1;
/// Line control.
const LINE_CONTROL: u8 = 3;
/// Line control: the first two registers are the divisor latch.
const LCR_DIVISOR: u8 = 1 << 7;
/// Modem control.
const MODEM_CONTROL: u8 = 4;
/// Modem control: what is sent is received.
const MCR_LOOP: u8 = 1 << 4;
/// Line status.
const LINE_STATUS: u8 = 5;
/// Line status: the transmitter takes bytes; it has none left.
const LSR_TRANSMITTER: u8 = 1 << 5 | 1 << 6;

/// An ISA interrupt: its rising edge counts.
struct Edge(Arc<dyn InterruptController>);

impl Trigger for Edge {
    type E = io::Error;

    fn trigger(&self) -> Result<(), io::Error> {
        self.0.line(SERIAL_IRQ, true);
        self.0.line(SERIAL_IRQ, false);
        Ok(())
    }
}

struct Output(DeviceOutput);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.send(bytes) {
            0 if !bytes.is_empty() => Err(io::ErrorKind::WouldBlock.into()),
            count => Ok(count),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The serial port.
///
/// While the host does not keep up, the transmitter says that it is not empty, as a slow line's does: a driver that
/// looks loses nothing.
pub struct Serial {
    uart: vm_superio::Serial<Edge, NoEvents, Output>,
    input: DeviceInput,
    /// The guest was told that the transmitter is not empty.
    blocked: bool,
}

impl Serial {
    /// A serial port, what the guest sends, and what it receives.
    #[must_use]
    pub fn new(controller: Arc<dyn InterruptController>) -> (Arc<Mutex<Self>>, HostInput, HostOutput) {
        let mut ends = None;
        let serial = Arc::new_cyclic(|serial: &Weak<Mutex<Self>>| {
            let wake = |action: fn(&mut Self)| -> pipe::Wake {
                let serial = Weak::clone(serial);
                Arc::new(move || {
                    if let Some(serial) = serial.upgrade() {
                        action(&mut lock(&serial));
                    }
                })
            };
            let (output, received) = pipe::to_host(CAPACITY, wake(Self::unblock));
            let (sent, input) = pipe::to_device(CAPACITY, wake(Self::fill));
            ends = Some((received, sent));
            Mutex::new(Self { uart: vm_superio::Serial::new(Edge(controller), Output(output)), input, blocked: false })
        });
        let (received, sent) = ends.expect("the closure above ran");
        (serial, received, sent)
    }

    fn ready(&self) -> bool {
        self.uart.writer().0.has_room(TRANSMIT_FIFO)
    }

    /// The host took bytes: tells a driver that waits for the transmitter.
    fn unblock(&mut self) {
        let divisor = self.uart.read(LINE_CONTROL) & LCR_DIVISOR != 0;
        if self.blocked && !divisor && self.ready() {
            self.blocked = false;
            // Enabling the interrupt while the transmitter is empty raises it (PC16550D, 8.6.3). The trigger cannot fail.
            let enabled = self.uart.read(INTERRUPT_ENABLE);
            _ = self.uart.write(INTERRUPT_ENABLE, enabled);
        }
    }

    /// Moves the host's bytes into the receiver.
    fn fill(&mut self) {
        let mut bytes = [0; RECEIVE_FIFO];
        let room = self.uart.fifo_capacity();
        let looped = self.uart.read(MODEM_CONTROL) & MCR_LOOP != 0;
        if room == 0 || looped {
            return;
        }
        let count = self.input.receive(&mut bytes[..room]);
        // There is room for them, and the trigger cannot fail.
        _ = self.uart.enqueue_raw_bytes(&bytes[..count]);
    }

    fn read_register(&mut self, register: u8) -> u8 {
        let value = self.uart.read(register);
        match register {
            RECEIVER => {
                self.fill();
                value
            }
            LINE_STATUS if !self.ready() => {
                self.blocked = true;
                value & !LSR_TRANSMITTER
            }
            _ => value,
        }
    }

    fn write_register(&mut self, register: u8, value: u8) {
        // A byte that is sent although the transmitter is not empty is lost, as on the real one.
        _ = self.uart.write(register, value);
        match register {
            LINE_CONTROL => self.unblock(),
            MODEM_CONTROL => self.fill(),
            _ => {}
        }
    }
}

/// The register of each byte of an access at `offset`.
fn registers(offset: u64) -> impl Iterator<Item = u8> {
    u8::try_from(offset).unwrap_or(u8::MAX)..=u8::MAX
}

impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (byte, register) in data.iter_mut().zip(registers(offset)) {
            *byte = self.read_register(register);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (byte, register) in data.iter().zip(registers(offset)) {
            self.write_register(register, *byte);
        }
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Serial").field("input", &self.input).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::testing::Interrupts;

    fn read(serial: &Mutex<Serial>, register: u64) -> u8 {
        let mut data = [0];
        lock(serial).read(register, &mut data);
        data[0]
    }

    fn write(serial: &Mutex<Serial>, register: u64, value: u8) {
        lock(serial).write(register, &[value]);
    }

    #[test]
    fn test_what_the_guest_sends_comes_out() {
        let (serial, received, _sent) = Serial::new(Arc::new(Interrupts::default()));
        for byte in b"Linux" {
            assert_ne!(read(&serial, 5) & 0x20, 0);
            write(&serial, 0, *byte);
        }
        let mut bytes = [0; 16];
        let count = received.receive(&mut bytes);
        assert_eq!(&bytes[..count], b"Linux");
    }

    #[test]
    fn test_input_longer_than_the_fifo_arrives_whole() {
        let interrupts = Arc::new(Interrupts::default());
        let (serial, _received, sent) = Serial::new(interrupts.clone());
        write(&serial, 1, 1);
        let text: Vec<u8> = (0..=255).collect();
        assert!(sent.send(&text));
        assert_eq!(interrupts.take_lines(), [(4, true), (4, false)]);
        let mut got = Vec::new();
        while read(&serial, 5) & 1 != 0 {
            got.push(read(&serial, 0));
        }
        assert_eq!(got, text);
    }

    /// Attack F2 8: a guest that floods the console.
    #[test]
    fn test_a_flood_is_bounded_and_a_polite_driver_loses_nothing() {
        let interrupts = Arc::new(Interrupts::default());
        let (serial, received, _sent) = Serial::new(interrupts.clone());
        write(&serial, 1, 2);
        interrupts.take_lines();
        let mut count = 0;
        while read(&serial, 5) & 0x20 != 0 {
            for _ in 0..16 {
                write(&serial, 0, b'x');
                count += 1;
            }
            read(&serial, 2);
        }
        assert_eq!(count, CAPACITY);
        for _ in 0..100 {
            write(&serial, 0, b'y');
        }
        read(&serial, 2);
        interrupts.take_lines();
        let mut bytes = [0; 64];
        assert_eq!(received.receive(&mut bytes), 64);
        assert_eq!(bytes, [b'x'; 64]);
        // The driver is told that it can go on.
        assert_eq!(interrupts.take_lines(), [(4, true), (4, false)]);
        assert_eq!(read(&serial, 2) & 0xf, 2);
        assert_ne!(read(&serial, 5) & 0x20, 0);
    }

    #[test]
    fn test_wide_accesses_are_bytewise() {
        let (serial, _received, _sent) = Serial::new(Arc::new(Interrupts::default()));
        write(&serial, 7, 0x5a);
        let mut data = [0; 2];
        lock(&serial).read(6, &mut data);
        assert_eq!(data[1], 0x5a);
    }
}
