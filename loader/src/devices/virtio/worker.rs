//! The thread that serves a device's queues.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

use super::DriverSignal;
use super::QueueError;
use super::VirtQueue;
use crate::platform::Event;

/// Stack of a worker: handlers keep little on it. What needs most is a packed cluster of a qcow2 image: less than 48 KiB in a debug build.
pub(crate) const STACK: usize = 128 * 1024;

/// Whether a device may touch guest memory.
#[derive(Debug, Default)]
pub struct Gate {
    stopped: AtomicBool,
    bus_master: AtomicBool,
}

impl Gate {
    /// A gate that is open.
    #[must_use]
    pub fn opened() -> Self {
        Self { stopped: AtomicBool::new(false), bus_master: AtomicBool::new(true) }
    }

    /// Whether it is open: nothing has stopped the device, and the guest lets it master the bus.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.stopped.load(Ordering::Acquire) && self.bus_master.load(Ordering::Acquire)
    }

    /// Sets whether the guest lets the device master the bus.
    pub fn set_bus_master(&self, allowed: bool) {
        self.bus_master.store(allowed, Ordering::Release);
    }
}

/// The queues of a device in use.
pub struct Rings {
    queues: Vec<Option<VirtQueue>>,
    signal: Arc<dyn DriverSignal>,
}

impl Rings {
    /// Queues by number, as far as the driver enabled them; `signal` reaches it.
    #[must_use]
    pub fn new(queues: Vec<Option<VirtQueue>>, signal: Arc<dyn DriverSignal>) -> Self {
        Self { queues, signal }
    }

    /// Queue `index`, if the driver enabled it.
    pub fn get(&mut self, index: usize) -> Option<&mut VirtQueue> {
        self.queues.get_mut(index)?.as_mut()
    }

    /// Tells the driver that the device's configuration has changed.
    pub fn config_changed(&self) {
        self.signal.config_changed();
    }
}

impl fmt::Debug for Rings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Rings").field("queues", &self.queues).finish_non_exhaustive()
    }
}

/// Serves the queues of a device, on a thread of its own.
pub trait QueueHandler: Send {
    /// The driver has accepted `features` and will use the device.
    fn start(&mut self, _features: u64) {}

    /// Does all that there is to do, without waiting for anything but storage. Called when the device's event was
    /// signalled: the driver has notified, or what the device waits for has come. The time that it gives, if any, is when
    /// to call it again though nothing is signalled.
    ///
    /// # Errors
    ///
    /// The driver broke a queue: the device needs a reset then.
    fn process(&mut self, rings: &mut Rings) -> Result<Option<Duration>, QueueError>;

    /// Waits until there is something to do: the device's event is signalled, or `timeout` is over. A handler with more to wait for
    /// does so here, and takes the event's signal.
    fn wait(&mut self, event: &Event, timeout: Option<Duration>) {
        event.wait(timeout);
    }

    /// The driver has reset the device: what it said before does not count any more.
    fn reset(&mut self) {}
}

/// What a worker tells its transport.
pub(super) trait Breakdown: Send {
    /// The driver broke a queue, and the device has stopped.
    fn broken(&self, error: &QueueError);
}

/// A running worker.
pub(super) struct Worker {
    thread: JoinHandle<Box<dyn QueueHandler>>,
    event: Arc<Event>,
    gate: Arc<Gate>,
}

impl Worker {
    /// Starts `handler` on `rings`.
    pub(super) fn start(
        name: &str,
        mut handler: Box<dyn QueueHandler>,
        mut rings: Rings,
        event: Arc<Event>,
        gate: Arc<Gate>,
        breakdown: impl Breakdown + 'static,
    ) -> Result<Self, (io::Error, Box<dyn QueueHandler>)> {
        // The handler is sent after the thread is there, for it must not be lost with a thread that is not.
        let (sender, receiver) = std::sync::mpsc::sync_channel::<Box<dyn QueueHandler>>(1);
        let (worker_event, worker_gate) = (Arc::clone(&event), Arc::clone(&gate));
        let body = move || {
            let mut handler = receiver.recv().expect("the starter sends the handler");
            let mut wait = Some(Duration::ZERO);
            loop {
                handler.wait(&worker_event, wait);
                if worker_gate.stopped.load(Ordering::Acquire) {
                    break;
                }
                wait = match handler.process(&mut rings) {
                    Ok(wait) => wait,
                    Err(error) => {
                        breakdown.broken(&error);
                        break;
                    }
                };
            }
            handler.reset();
            handler
        };
        match thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(body) {
            Ok(thread) => {
                sender.send(handler).expect("the worker waits for its handler");
                Ok(Self { thread, event, gate })
            }
            Err(error) => {
                handler.reset();
                Err((error, handler))
            }
        }
    }

    /// Makes it stop soon.
    pub(super) fn stop(&self) {
        self.gate.stopped.store(true, Ordering::Release);
        self.event.signal();
    }

    /// Whether it has stopped.
    pub(super) fn is_stopped(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits until it has stopped, and gives the handler back; a worker that panicked has none.
    pub(super) fn join(self) -> Option<Box<dyn QueueHandler>> {
        self.thread.join().ok()
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Worker").field("gate", &self.gate).finish_non_exhaustive()
    }
}
