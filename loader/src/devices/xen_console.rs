//! Xen's console: two rings of bytes in a page of the guest's (Xen `io/console.h`), the console of guests that run by the Xen PV
//! ABI.
//!
//! A thread of its own moves the bytes, on the guest's kicks at [`CONSOLE_PORT`] and when the host has something. Each side
//! writes two of the page's four indexes; we keep our own ones here and never read them back.

use std::fmt;
use std::io;
use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::thread::JoinHandle;

use covisor_abi::DoorbellSpace;
use covisor_abi::PAGE_SIZE;
use covisor_abi::paravirtual::CONSOLE_GSI;
use covisor_abi::paravirtual::CONSOLE_PORT;
use vm_memory::Bytes;
use vm_memory::GuestAddress;
use vm_memory::GuestMemoryError;

use super::pipe;
use super::pipe::DeviceInput;
use super::pipe::DeviceOutput;
use super::pipe::HostInput;
use super::pipe::HostOutput;
use super::reports::Reports;
use crate::platform::BusDevice;
use crate::platform::Doorbells;
use crate::platform::Event;
use crate::platform::GuestRam;
use crate::platform::InterruptController;

/// Ports of an [`XenConsole`].
pub const CONSOLE_PORTS: u64 = 4;
/// Bytes of the guest's store there.
const KICK_SIZE: u32 = 4;

/// Bytes under way in each direction, besides those in the rings.
const CAPACITY: usize = 64 * 1024;
/// Stack of the thread: a ring's bytes and little else.
const STACK: usize = 128 * 1024;
/// Bytes of the ring to the guest, and of that from it.
const INPUT_SIZE: usize = 1024;
const OUTPUT_SIZE: usize = 2048;

/// `struct xencons_interface`, for its offsets.
#[repr(C)]
struct Page {
    input: [u8; INPUT_SIZE],
    output: [u8; OUTPUT_SIZE],
    in_cons: u32,
    in_prod: u32,
    out_cons: u32,
    out_prod: u32,
}

const _: () = assert!(offset_of!(Page, in_cons) == 3072 && size_of::<Page>() == 3088);

/// A ring in guest memory whose indexes count up without end; an index modulo the size is a place.
#[derive(Debug, Clone, Copy)]
struct Ring {
    start: u64,
    size: usize,
    /// Address of the index that the guest writes.
    theirs: u64,
    /// Address of the index that we write.
    ours: u64,
}

impl Ring {
    /// The two pieces of `count` bytes at `index`: addresses and sizes. The second one may be empty.
    fn pieces(&self, index: u32, count: usize) -> [(GuestAddress, usize); 2] {
        let place = index as usize % self.size;
        let first = count.min(self.size - place);
        [(GuestAddress(self.start + place as u64), first), (GuestAddress(self.start), count - first)]
    }
}

/// Why the console stopped for good.
#[derive(Debug, thiserror::Error)]
enum Broken {
    /// The guest's index is further from ours than the ring is long.
    #[error("an index of the guest's makes no sense ({0:#x})")]
    Index(u32),
    /// The page was checked when the device was made.
    #[error("its page cannot be reached: {0}")]
    Memory(#[from] GuestMemoryError),
}

/// Moves the bytes.
struct Mover {
    memory: Arc<GuestRam>,
    input_ring: Ring,
    output_ring: Ring,
    in_prod: u32,
    out_cons: u32,
    to_host: Arc<DeviceOutput>,
    from_host: DeviceInput,
    interrupts: Arc<dyn InterruptController>,
    reports: Reports,
}

impl Mover {
    /// Moves what can be moved, once: whatever the guest adds after its index was read comes with a kick of its own.
    fn process(&mut self) -> Result<(), Broken> {
        let was_full = self.transmit()?;
        let received = self.receive()?;
        // A guest waits for room only where it found none.
        if was_full || received {
            self.interrupts.line(CONSOLE_GSI, true);
            self.interrupts.line(CONSOLE_GSI, false);
        }
        Ok(())
    }

    /// Takes what the guest sends as far as the host has room, and says whether that made room in a full ring.
    fn transmit(&mut self) -> Result<bool, Broken> {
        let ring = self.output_ring;
        // Acquire: the bytes that the index tells of are read after it.
        let prod: u32 = self.memory.load(GuestAddress(ring.theirs), Ordering::Acquire)?;
        let count = prod.wrapping_sub(self.out_cons) as usize;
        if count > ring.size {
            return Err(Broken::Index(prod));
        }
        let mut sent = 0;
        for (address, size) in ring.pieces(self.out_cons, count) {
            let mut bytes = [0; OUTPUT_SIZE];
            self.memory.read_slice(&mut bytes[..size], address)?;
            let now = self.to_host.send(&bytes[..size]);
            sent += now;
            if now < size {
                break;
            }
        }
        self.out_cons = advance(self.out_cons, sent);
        // Release: the bytes were read before the guest may write others there.
        self.memory.store(self.out_cons, GuestAddress(ring.ours), Ordering::Release)?;
        Ok(count == ring.size && sent > 0)
    }

    /// Gives the guest what the host sends as far as there is room, and says whether that was anything.
    fn receive(&mut self) -> Result<bool, Broken> {
        let ring = self.input_ring;
        // Acquire: the guest has read what it says before we write other bytes there.
        let cons: u32 = self.memory.load(GuestAddress(ring.theirs), Ordering::Acquire)?;
        let used = self.in_prod.wrapping_sub(cons) as usize;
        let Some(room) = ring.size.checked_sub(used) else { return Err(Broken::Index(cons)) };
        if room == 0 {
            return Ok(false);
        }
        let mut bytes = [0; INPUT_SIZE];
        let count = self.from_host.receive(&mut bytes[..room]);
        let [first, second] = ring.pieces(self.in_prod, count);
        self.memory.write_slice(&bytes[..first.1], first.0)?;
        self.memory.write_slice(&bytes[first.1..count], second.0)?;
        self.in_prod = advance(self.in_prod, count);
        // Release: the bytes are there before the index tells of them.
        self.memory.store(self.in_prod, GuestAddress(ring.ours), Ordering::Release)?;
        Ok(count > 0)
    }
}

/// An index `count` bytes further.
fn advance(index: u32, count: usize) -> u32 {
    debug_assert!(count <= OUTPUT_SIZE);
    index.wrapping_add(u32::try_from(count).unwrap_or(0))
}

/// The host's side of the console.
#[derive(Debug)]
pub struct XenConsoleHandle {
    /// What is typed.
    pub input: HostOutput,
    /// What is shown.
    pub output: HostInput,
    /// Another way to what is shown, for a device whose text goes there as well.
    pub writer: Arc<DeviceOutput>,
}

/// The console: what the guest kicks, and the thread that moves its bytes.
///
/// Dropping it ends the thread, after what the guest last said.
pub struct XenConsole {
    event: Arc<Event>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl XenConsole {
    /// A console whose page is at `page`, a multiple of a page's size in guest memory. It is to be put at [`CONSOLE_PORT`].
    ///
    /// # Errors
    /// When the host has no event or no thread for it.
    pub fn new(
        page: u64,
        memory: Arc<GuestRam>,
        doorbells: &dyn Doorbells,
        interrupts: Arc<dyn InterruptController>,
    ) -> io::Result<(Self, XenConsoleHandle)> {
        debug_assert!(page.is_multiple_of(PAGE_SIZE));
        let event = Arc::new(Event::new()?);
        let wake: pipe::Wake = {
            let event = Arc::clone(&event);
            Arc::new(move || event.signal())
        };
        let (to_host, output) = pipe::to_host(CAPACITY, Arc::clone(&wake));
        let (input, from_host) = pipe::to_device(CAPACITY, wake);
        let writer = Arc::new(to_host);
        let ring = |start, size, theirs, ours| Ring {
            start: page + start as u64,
            size,
            theirs: page + theirs as u64,
            ours: page + ours as u64,
        };
        let mover = Mover {
            memory,
            input_ring: ring(offset_of!(Page, input), INPUT_SIZE, offset_of!(Page, in_cons), offset_of!(Page, in_prod)),
            output_ring: ring(
                offset_of!(Page, output),
                OUTPUT_SIZE,
                offset_of!(Page, out_prod),
                offset_of!(Page, out_cons),
            ),
            in_prod: 0,
            out_cons: 0,
            to_host: Arc::clone(&writer),
            from_host,
            interrupts,
            reports: Reports::new("console"),
        };
        // Without the doorbell the guest's kicks come to the port's device.
        if let Err(error) = doorbells.add(DoorbellSpace::Port, CONSOLE_PORT.into(), KICK_SIZE, &event) {
            log::debug!("the console has no doorbell: {error}");
        }
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let (event, stop) = (Arc::clone(&event), Arc::clone(&stop));
            thread::Builder::new()
                .name("console".to_owned())
                .stack_size(STACK)
                .spawn(move || serve(mover, &event, &stop))?
        };
        Ok((Self { event, stop, thread: Some(thread) }, XenConsoleHandle { input, output, writer }))
    }
}

/// Moves bytes until the console is to stop, or the guest broke it.
fn serve(mut mover: Mover, event: &Event, stop: &AtomicBool) {
    loop {
        event.wait(None);
        let last = stop.load(Ordering::Acquire);
        if let Err(error) = mover.process() {
            mover.reports.warn(&format_args!("stopped for good: {error}"));
            return;
        }
        if last {
            return;
        }
    }
}

impl BusDevice for XenConsole {
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, _offset: u64, _data: &[u8]) {
        self.event.signal();
    }
}

impl Drop for XenConsole {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.event.signal();
        if let Some(thread) = self.thread.take() {
            // A panic on it was reported there.
            _ = thread.join();
        }
    }
}

impl fmt::Debug for XenConsole {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("XenConsole").field("thread", &self.thread).finish_non_exhaustive()
    }
}

/// The port of a kernel's earliest messages, `console_io`: a byte a store.
#[derive(Debug)]
pub struct EarlyConsole {
    output: Arc<DeviceOutput>,
}

/// Ports of an [`EarlyConsole`].
pub const EARLY_CONSOLE_PORTS: u64 = 1;

impl EarlyConsole {
    /// A port whose bytes go to `output`. While the host does not keep up, they are lost.
    #[must_use]
    pub fn new(output: Arc<DeviceOutput>) -> Self {
        Self { output }
    }

    /// A port with a stream of its own, and that stream.
    #[must_use]
    pub fn with_stream() -> (Self, HostInput) {
        let (output, input) = pipe::to_host(CAPACITY, Arc::new(|| {}));
        (Self::new(Arc::new(output)), input)
    }
}

impl BusDevice for EarlyConsole {
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, _offset: u64, data: &[u8]) {
        self.output.send(data);
    }
}

#[cfg(test)]
mod tests;
