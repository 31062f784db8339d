//! Byte streams between a device and the host: bounded, and a device never waits for the host in one.
//!
//! A full stream makes its device leave the guest's bytes where they are until there is room; so a slow terminal costs
//! neither bytes nor a vCPU's time, and a flood by the guest costs no memory.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::io::Write;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use crate::platform::lock;

/// Wakes a device: there is room, or there are bytes.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

struct State {
    bytes: VecDeque<u8>,
    /// The host hung up, or the device is gone: nothing moves any more.
    closed: bool,
    /// The device wants to be woken when it can go on.
    device_waits: bool,
}

struct Pipe {
    state: Mutex<State>,
    /// Wakes the host.
    host: Condvar,
    capacity: usize,
    wake: Wake,
}

impl Pipe {
    fn new(capacity: usize, wake: Wake) -> Arc<Self> {
        let state = State { bytes: VecDeque::new(), closed: false, device_waits: false };
        Arc::new(Self { state: Mutex::new(state), host: Condvar::new(), capacity, wake })
    }

    fn room(&self, state: &State) -> usize {
        self.capacity - state.bytes.len()
    }

    fn close(&self) {
        lock(&self.state).closed = true;
        self.host.notify_all();
        (self.wake)();
    }

    /// The device's part of a move is over; tells it to come again when it could not do all.
    fn wake_device(&self, mut state: MutexGuard<'_, State>) {
        let waits = std::mem::take(&mut state.device_waits);
        drop(state);
        if waits {
            (self.wake)();
        }
    }
}

fn take(bytes: &mut VecDeque<u8>, into: &mut [u8]) -> usize {
    let count = bytes.len().min(into.len());
    for (to, from) in into.iter_mut().zip(bytes.drain(..count)) {
        *to = from;
    }
    count
}

/// A stream from a device to the host, of at most `capacity` bytes under way. `wake` wakes the device when there is room
/// after there was none.
#[must_use]
pub fn to_host(capacity: usize, wake: Wake) -> (DeviceOutput, HostInput) {
    let pipe = Pipe::new(capacity, wake);
    (DeviceOutput(Arc::clone(&pipe)), HostInput(pipe))
}

/// A stream from the host to a device, of at most `capacity` bytes under way. `wake` wakes the device when there are bytes
/// after there were none.
#[must_use]
pub fn to_device(capacity: usize, wake: Wake) -> (HostOutput, DeviceInput) {
    let pipe = Pipe::new(capacity, wake);
    lock(&pipe.state).device_waits = true;
    (HostOutput(Arc::clone(&pipe)), DeviceInput(pipe))
}

/// The device's end of a stream to the host.
pub struct DeviceOutput(Arc<Pipe>);

impl DeviceOutput {
    /// Sends what there is room for and says how much that was; when not all, the device is woken once there is more.
    /// Nobody listening takes everything.
    pub fn send(&self, bytes: &[u8]) -> usize {
        let mut state = lock(&self.0.state);
        if state.closed {
            return bytes.len();
        }
        let count = self.0.room(&state).min(bytes.len());
        state.bytes.extend(&bytes[..count]);
        state.device_waits = count < bytes.len();
        drop(state);
        if count > 0 {
            self.0.host.notify_one();
        }
        count
    }

    /// Whether [`DeviceOutput::send`] would take `bytes`. If not, the device is woken when there is more room than now.
    #[must_use]
    pub fn has_room(&self, bytes: usize) -> bool {
        let mut state = lock(&self.0.state);
        let fits = state.closed || self.0.room(&state) >= bytes;
        state.device_waits = !fits;
        fits
    }
}

impl Drop for DeviceOutput {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The host's end of a stream from a device.
pub struct HostInput(Arc<Pipe>);

impl HostInput {
    /// Waits for bytes and gives how many came; 0 once the device is gone.
    pub fn receive(&self, into: &mut [u8]) -> usize {
        let mut state = lock(&self.0.state);
        while state.bytes.is_empty() && !state.closed {
            state = self.0.host.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let count = take(&mut state.bytes, into);
        self.0.wake_device(state);
        count
    }

    /// [`HostInput::receive`] for at most `timeout`: nothing came then gives `None`.
    pub fn receive_timeout(&self, into: &mut [u8], timeout: Duration) -> Option<usize> {
        let deadline = Instant::now() + timeout;
        let mut state = lock(&self.0.state);
        while state.bytes.is_empty() && !state.closed {
            let left = deadline.checked_duration_since(Instant::now())?;
            state = self.0.host.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let count = take(&mut state.bytes, into);
        self.0.wake_device(state);
        Some(count)
    }

    /// Copies the stream to `sink` until the device is gone. When `sink` fails the rest is lost, for the guest must not
    /// stop because nobody reads what it says.
    ///
    /// # Errors
    ///
    /// The sink's.
    pub fn copy_to(&self, sink: &mut dyn Write) -> io::Result<()> {
        let mut buffer = [0; 4096];
        loop {
            let count = self.receive(&mut buffer);
            if count == 0 {
                return Ok(());
            }
            sink.write_all(&buffer[..count])?;
            sink.flush()?;
        }
    }
}

impl Drop for HostInput {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The host's end of a stream to a device.
#[derive(Clone)]
pub struct HostOutput(Arc<Pipe>);

impl HostOutput {
    /// Sends all bytes, waiting for room; says whether the device still takes them.
    pub fn send(&self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let mut state = lock(&self.0.state);
            while self.0.room(&state) == 0 && !state.closed {
                state = self.0.host.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.closed {
                return false;
            }
            let (now, later) = bytes.split_at(self.0.room(&state).min(bytes.len()));
            state.bytes.extend(now);
            bytes = later;
            self.0.wake_device(state);
        }
        true
    }

    /// Sends what there is room for and says how much that was. A device that is gone takes everything.
    #[must_use]
    pub fn send_now(&self, bytes: &[u8]) -> usize {
        let mut state = lock(&self.0.state);
        if state.closed {
            return bytes.len();
        }
        let count = self.0.room(&state).min(bytes.len());
        state.bytes.extend(&bytes[..count]);
        self.0.wake_device(state);
        count
    }

    /// Ends the stream for both sides: a [`HostOutput::send`] that waits returns.
    pub fn close(&self) {
        self.0.close();
    }
}

/// The device's end of a stream from the host.
pub struct DeviceInput(Arc<Pipe>);

impl DeviceInput {
    /// Takes what is there. When that empties the stream, the device is woken for more.
    pub fn receive(&self, into: &mut [u8]) -> usize {
        let mut state = lock(&self.0.state);
        let count = take(&mut state.bytes, into);
        state.device_waits = state.bytes.is_empty();
        drop(state);
        if count > 0 {
            self.0.host.notify_all();
        }
        count
    }

    /// Whether nothing is there. The device is woken then once there is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let mut state = lock(&self.0.state);
        state.device_waits = state.bytes.is_empty();
        state.device_waits
    }
}

impl Drop for DeviceInput {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl fmt::Debug for Pipe {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = lock(&self.state);
        write!(formatter, "{} of {} bytes", state.bytes.len(), self.capacity)
    }
}

macro_rules! debug_as_pipe {
    ($($end:ident)*) => {$(
        impl fmt::Debug for $end {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.debug_tuple(stringify!($end)).field(&self.0).finish()
            }
        }
    )*};
}
debug_as_pipe!(DeviceOutput HostInput HostOutput DeviceInput);

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering;
    use std::thread;

    use super::*;

    fn wake() -> (Arc<AtomicUsize>, Wake) {
        let count = Arc::new(AtomicUsize::new(0));
        let wakes = Arc::clone(&count);
        (count, Arc::new(move || _ = wakes.fetch_add(1, Ordering::SeqCst)))
    }

    #[test]
    fn test_a_full_stream_takes_no_more_and_wakes_the_device_later() {
        let (wakes, wake) = wake();
        let (output, input) = to_host(4, wake);
        assert_eq!(output.send(b"abcdef"), 4);
        assert_eq!((output.has_room(1), wakes.load(Ordering::SeqCst)), (false, 0));
        let mut bytes = [0; 3];
        assert_eq!(input.receive(&mut bytes), 3);
        assert_eq!((&bytes, wakes.load(Ordering::SeqCst)), (b"abc", 1));
        assert_eq!(output.send(b"ef"), 2);
        assert_eq!(input.receive(&mut bytes), 3);
        assert_eq!((&bytes, wakes.load(Ordering::SeqCst)), (b"def", 1));
    }

    #[test]
    fn test_the_device_is_woken_for_the_first_bytes_only() {
        let (wakes, wake) = wake();
        let (output, input) = to_device(4, wake);
        assert!(output.send(b"a"));
        assert!(output.send(b"b"));
        assert_eq!(wakes.load(Ordering::SeqCst), 1);
        let mut bytes = [0; 8];
        assert_eq!(input.receive(&mut bytes), 2);
        assert!(input.is_empty());
        assert!(output.send(b"c"));
        assert_eq!(wakes.load(Ordering::SeqCst), 2);
        assert!(!input.is_empty());
    }

    #[test]
    fn test_a_host_that_does_not_wait_sends_what_there_is_room_for() {
        let (wakes, wake) = wake();
        let (output, input) = to_device(4, wake);
        assert_eq!(output.send_now(b"abcdef"), 4);
        assert_eq!((output.send_now(b"ef"), wakes.load(Ordering::SeqCst)), (0, 1));
        let mut bytes = [0; 8];
        assert_eq!((input.receive(&mut bytes), &bytes[..4]), (4, &b"abcd"[..]));
        assert_eq!(output.send_now(b"ef"), 2);
        drop(input);
        assert_eq!(output.send_now(b"gone"), 4);
    }

    #[test]
    fn test_the_host_waits_for_the_device() {
        let (_, wake) = wake();
        let (output, input) = to_device(2, wake);
        let sender = thread::spawn(move || output.send(b"hello, guest"));
        let mut got: Vec<u8> = Vec::new();
        while got.len() < 12 {
            let mut bytes = [0; 5];
            let count = input.receive(&mut bytes);
            got.extend(&bytes[..count]);
            thread::yield_now();
        }
        assert!(sender.join().unwrap());
        assert_eq!(got, b"hello, guest");
    }

    #[test]
    fn test_a_gone_end_stops_nobody() {
        let (_, wake) = wake();
        let (output, input) = to_host(2, Arc::clone(&wake));
        drop(input);
        assert_eq!(output.send(b"nobody listens"), 14);

        let (output, input) = to_host(2, Arc::clone(&wake));
        output.send(b"z");
        drop(output);
        let mut sink = Vec::new();
        input.copy_to(&mut sink).unwrap();
        assert_eq!(sink, b"z");

        let (output, input) = to_device(2, wake);
        drop(input);
        assert!(!output.send(b"gone"));
    }

    #[test]
    fn test_waiting_for_bytes_ends_in_time() {
        let (_, wake) = wake();
        let (output, input) = to_host(2, wake);
        assert_eq!(input.receive_timeout(&mut [0; 2], Duration::from_millis(5)), None);
        output.send(b"a");
        assert_eq!(input.receive_timeout(&mut [0; 2], Duration::from_secs(5)), Some(1));
    }
}
