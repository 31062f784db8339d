//! Console device (virtio 1.2, 5.3), in two forms:
//!
//! - [`console`] is a terminal, `hvc0` in the guest. It has no control queues, for its size is told by configuration
//!   space: of the control message for it, Linux has had two forms over the years.
//! - [`named_port`] is a byte stream with a name, found at `/dev/virtio-ports/NAME`.

mod control;
mod port;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use self::control::Control;
use self::port::Port;
use super::DeviceConfig;
use super::DeviceKind;
use super::QueueError;
use super::QueueHandler;
use super::Rings;
use super::VirtioDevice;
use super::read_bytes;
use crate::devices::pipe;
use crate::devices::pipe::HostInput;
use crate::devices::pipe::HostOutput;
use crate::platform::Event;
use crate::platform::lock;

/// Entries of each queue.
const QUEUE_SIZE: u16 = 64;
/// Bytes under way in each direction.
const CAPACITY: usize = 64 * 1024;

/// Queues, by number (virtio 1.2, 5.3.2).
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const CONTROL_RECEIVE: usize = 2;
const CONTROL_TRANSMIT: usize = 3;

/// Feature bits (virtio 1.2, 5.3.3).
mod bit {
    pub(super) const SIZE: u64 = 1 << 0;
    pub(super) const MULTIPORT: u64 = 1 << 1;
}

/// The host's side of a terminal.
#[derive(Debug)]
pub struct ConsoleHandle {
    /// What is typed.
    pub input: HostOutput,
    /// What is shown.
    pub output: HostInput,
    /// How large it is.
    pub size: ConsoleSize,
}

/// The size of the terminal.
#[derive(Clone)]
pub struct ConsoleSize {
    shared: Arc<SharedSize>,
    event: Arc<Event>,
}

#[derive(Default)]
struct SharedSize {
    /// Columns in the low half, rows in the high half.
    size: AtomicU32,
    generation: AtomicU8,
    /// The driver has not been told yet.
    changed: AtomicBool,
}

impl ConsoleSize {
    /// The terminal has this size now.
    pub fn set(&self, columns: u16, rows: u16) {
        self.shared.size.store(u32::from(columns) | u32::from(rows) << 16, Ordering::SeqCst);
        self.shared.generation.fetch_add(1, Ordering::SeqCst);
        self.shared.changed.store(true, Ordering::SeqCst);
        self.event.signal();
    }
}

impl fmt::Debug for ConsoleSize {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = self.shared.size.load(Ordering::SeqCst);
        write!(formatter, "{}x{}", size & 0xffff, size >> 16)
    }
}

/// The host's side of a named port.
#[derive(Debug)]
pub struct PortHandle {
    /// To the guest. The bytes wait until a program there has opened the port.
    pub input: HostOutput,
    /// From the guest.
    pub output: HostInput,
    /// Whether a program in the guest has the port open.
    pub state: PortState,
}

/// Whether a program in the guest has the port open.
#[derive(Clone, Debug, Default)]
pub struct PortState {
    shared: Arc<(Mutex<bool>, Condvar)>,
}

impl PortState {
    /// Whether it is open now.
    #[must_use]
    pub fn is_open(&self) -> bool {
        *lock(&self.shared.0)
    }

    /// Waits until it is as `open` says, for at most `timeout`; says whether it is.
    #[must_use]
    pub fn wait(&self, open: bool, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut state = lock(&self.shared.0);
        while *state != open {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return false };
            state = self.shared.1.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    fn set(&self, open: bool) {
        *lock(&self.shared.0) = open;
        self.shared.1.notify_all();
    }
}

/// A terminal.
///
/// # Errors
///
/// The system has no event left.
pub fn console(name: &str) -> io::Result<(VirtioDevice, ConsoleHandle)> {
    let event = Arc::new(Event::new()?);
    let (port, input, output) = port(&event);
    let shared = Arc::new(SharedSize::default());
    let config = Config { size: Some(Arc::clone(&shared)) };
    let handler = ConsoleHandler { port, control: None, size: Some(Arc::clone(&shared)) };
    let size = ConsoleSize { shared, event: Arc::clone(&event) };
    let device = device(name, bit::SIZE, 2, config, handler, event);
    Ok((device, ConsoleHandle { input, output, size }))
}

/// A byte stream that the guest finds under `port_name`.
///
/// # Errors
///
/// The system has no event left.
pub fn named_port(name: &str, port_name: &str) -> io::Result<(VirtioDevice, PortHandle)> {
    let event = Arc::new(Event::new()?);
    let (port, input, output) = port(&event);
    let state = PortState::default();
    let control = Some(Control::new(port_name, state.clone()));
    let handler = ConsoleHandler { port, control, size: None };
    let device = device(name, bit::MULTIPORT, 4, Config { size: None }, handler, event);
    Ok((device, PortHandle { input, output, state }))
}

fn port(event: &Arc<Event>) -> (Port, HostOutput, HostInput) {
    let event = Arc::clone(event);
    let wake: pipe::Wake = Arc::new(move || event.signal());
    let (to_host, output) = pipe::to_host(CAPACITY, Arc::clone(&wake));
    let (input, from_host) = pipe::to_device(CAPACITY, wake);
    (Port::new(to_host, from_host), input, output)
}

fn device(
    name: &str,
    features: u64,
    queues: usize,
    config: Config,
    handler: ConsoleHandler,
    event: Arc<Event>,
) -> VirtioDevice {
    VirtioDevice {
        kind: DeviceKind::Console,
        name: name.to_owned(),
        features,
        queue_sizes: vec![QUEUE_SIZE; queues],
        config: Box::new(config),
        handler: Box::new(handler),
        event,
    }
}

/// `struct virtio_console_config` (virtio 1.2, 5.3.4): columns, rows, and the number of ports, which is one.
struct Config {
    size: Option<Arc<SharedSize>>,
}

impl DeviceConfig for Config {
    fn size(&self) -> u8 {
        8
    }

    fn read(&self, offset: usize, data: &mut [u8]) {
        let size = self.size.as_ref().map_or(0, |size| size.size.load(Ordering::SeqCst));
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&size.to_le_bytes());
        bytes[4] = 1;
        read_bytes(&bytes, offset, data);
    }

    fn generation(&self) -> u8 {
        self.size.as_ref().map_or(0, |size| size.generation.load(Ordering::SeqCst))
    }
}

/// Serves the queues of one console device.
struct ConsoleHandler {
    port: Port,
    /// Of a named port.
    control: Option<Control>,
    /// Of a terminal.
    size: Option<Arc<SharedSize>>,
}

impl QueueHandler for ConsoleHandler {
    fn start(&mut self, features: u64) {
        if let Some(control) = &mut self.control {
            control.start(features & bit::MULTIPORT != 0);
        }
        if let Some(size) = &self.size {
            // The driver reads it while it starts.
            size.changed.store(false, Ordering::SeqCst);
        }
    }

    fn process(&mut self, rings: &mut Rings) -> Result<Option<Duration>, QueueError> {
        if let Some(size) = &self.size
            && size.changed.swap(false, Ordering::SeqCst)
        {
            rings.config_changed();
        }
        let mut accepts = true;
        if let Some(control) = &mut self.control {
            if let Some(queue) = rings.get(CONTROL_TRANSMIT) {
                control.hear(queue)?;
            }
            if let Some(queue) = rings.get(CONTROL_RECEIVE) {
                control.speak(queue)?;
            }
            accepts = control.is_open();
        }
        if let Some(queue) = rings.get(TRANSMIT) {
            self.port.transmit(queue)?;
        }
        if accepts && let Some(queue) = rings.get(RECEIVE) {
            self.port.receive(queue)?;
        }
        Ok(None)
    }

    fn reset(&mut self) {
        self.port.reset();
        if let Some(control) = &mut self.control {
            control.reset();
        }
    }
}

#[cfg(test)]
mod tests;
