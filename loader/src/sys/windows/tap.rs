//! TAP adapters: network interfaces of the host whose frames a program carries, as the driver tap-windows6 makes them (its
//! `src/tap-windows.h` has the requests). It comes with OpenVPN and runs on every Windows from 7 on.

use std::ffi::c_void;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::os::windows::fs::OpenOptionsExt;
use std::os::windows::io::AsHandle;
use std::os::windows::io::AsRawHandle;
use std::os::windows::io::OwnedHandle;
use std::ptr;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use windows_sys::Win32::Foundation::ERROR_GEN_FAILURE;
use windows_sys::Win32::Foundation::ERROR_IO_INCOMPLETE;
use windows_sys::Win32::Foundation::ERROR_IO_PENDING;
use windows_sys::Win32::Foundation::ERROR_SHARING_VIOLATION;
use windows_sys::Win32::Foundation::WAIT_OBJECT_0;
use windows_sys::Win32::Storage::FileSystem::FILE_ATTRIBUTE_SYSTEM;
use windows_sys::Win32::Storage::FileSystem::FILE_FLAG_OVERLAPPED;
use windows_sys::Win32::Storage::FileSystem::ReadFile;
use windows_sys::Win32::Storage::FileSystem::WriteFile;
use windows_sys::Win32::System::IO::DeviceIoControl;
use windows_sys::Win32::System::IO::GetOverlappedResult;
use windows_sys::Win32::System::IO::OVERLAPPED;
use windows_sys::Win32::System::Threading::WaitForMultipleObjects;
use windows_sys::Win32::System::Threading::WaitForSingleObject;

use super::event;
use super::overlapped;
use super::registry;
use super::wide::milliseconds;
use crate::net::MAX_FRAME;
use crate::net::Offloads;
use crate::net::offload::HEADER_SIZE;
use crate::platform::Event;
use crate::run::describe;

/// The class of network adapters, as the registry names it.
const ADAPTERS: &str = "{4D36E972-E325-11CE-BFC1-08002BE10318}";
/// What the driver's adapters are called as devices; those that a program made have a path before it.
const COMPONENT: &str = "tap0901";
/// The driver's requests, `TAP_WIN_IOCTL_GET_MTU` and `TAP_WIN_IOCTL_SET_MEDIA_STATUS`: of the type `FILE_DEVICE_UNKNOWN`, with
/// copied buffers and any access, numbers 3 and 6.
const GET_MTU: u32 = 0x22 << 16 | 3 << 2;
const SET_MEDIA_STATUS: u32 = 0x22 << 16 | 6 << 2;
/// How long the driver may take for what it does at once.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why a TAP adapter cannot be used.
#[derive(Debug, Error)]
pub enum TapError {
    /// The host has none.
    #[error("this Windows has no TAP adapter: install tap-windows6, which comes with OpenVPN")]
    None,
    /// None of them is called so.
    #[error("no TAP adapter is called `{name}`; there {}", if let [one] = .others.as_slice() {
        format!("is `{one}`")
    } else {
        format!("are `{}`", .others.join("`, `"))
    })]
    Unknown {
        /// The name.
        name: String,
        /// What they are called.
        others: Vec<String>,
    },
    /// Somebody uses it, or all of them.
    #[error("another program uses the TAP adapter `{0}`")]
    Busy(String),
    /// Bridges are the host's.
    #[error(
        "Windows makes bridges itself: choose the TAP adapter and the other one in `Network Connections`, then `Bridge Connections`, and leave out bridge={0}"
    )]
    Bridge(String),
    /// The adapter's packets have another size.
    #[error(
        "the largest packet of `{name}` has {is} bytes, not {wanted}: its properties in `Network Connections` say how many"
    )]
    Mtu {
        /// The adapter.
        name: String,
        /// How many it takes.
        is: u32,
        /// How many were asked for.
        wanted: u16,
    },
    /// Something else.
    #[error("the TAP adapter `{name}` cannot be used: {}", describe(.source))]
    Other {
        /// The adapter.
        name: String,
        /// What the host says.
        source: io::Error,
    },
}

/// A TAP adapter in use.
#[derive(Debug)]
pub struct Tap {
    /// Dropped first: closing the adapter ends its reads, whichever thread began them.
    file: File,
    reading: Reading,
    name: String,
    mtu: u16,
    event: Option<Arc<Event>>,
}

/// The read of the next frame.
#[derive(Debug)]
struct Reading {
    shared: NonNull<Shared>,
    /// Signalled from the end of a read until the next one begins.
    done: OwnedHandle,
    state: State,
}

/// What the driver writes into while it has the read.
struct Shared {
    overlapped: OVERLAPPED,
    frame: [u8; MAX_FRAME],
}

// SAFETY: nobody else has the pointer but the driver, which knows no threads.
unsafe impl Send for Reading {}

/// Where a read is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// None is going on.
    Idle,
    /// The driver has it.
    Pending,
    /// The driver has it, and that it is over was said.
    Told,
}

impl Tap {
    /// What the host and a guest may leave to each other: the driver takes whole frames with their checksums.
    pub const OFFLOADS: Offloads = Offloads::NONE;

    /// Takes the adapter called `name`, or without a name the first one that nobody uses, and plugs its cable in.
    ///
    /// # Errors
    ///
    /// The host's.
    pub fn open(name: Option<&str>, mtu: Option<u16>, bridge: Option<&str>) -> Result<Self, TapError> {
        if let Some(bridge) = bridge {
            return Err(TapError::Bridge(bridge.to_owned()));
        }
        let adapters = adapters();
        let names = || adapters.iter().map(|adapter| adapter.name.clone());
        if adapters.is_empty() {
            return Err(TapError::None);
        }
        let wanted = |adapter: &&Adapter| name.is_none_or(|name| adapter.is_called(name));
        let mut found = adapters.iter().filter(wanted).peekable();
        if let (Some(name), None) = (name, found.peek()) {
            return Err(TapError::Unknown { name: name.to_owned(), others: names().collect() });
        }
        let mut refusal = TapError::None;
        for adapter in found {
            match adapter.open() {
                Ok(file) => return Self::start(file, adapter.name.clone(), mtu),
                Err(error) => refusal = error,
            }
        }
        Err(refusal)
    }

    fn start(file: File, name: String, wanted: Option<u16>) -> Result<Self, TapError> {
        let other = |source| TapError::Other { name: name.clone(), source };
        let is = control(&file, GET_MTU, 0).map_err(other)?;
        let mtu = match (wanted, u16::try_from(is).unwrap_or(u16::MAX)) {
            (None, is) => is,
            (Some(wanted), is) if wanted <= is => wanted,
            (Some(wanted), _) => return Err(TapError::Mtu { name, is, wanted }),
        };
        control(&file, SET_MEDIA_STATUS, 1).map_err(other)?;
        let reading = Reading::new().map_err(other)?;
        Ok(Self { file, reading, name, mtu, event: None })
    }

    /// Its name on the host.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of the largest packet.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// What the host may leave to the guest: nothing.
    ///
    /// # Errors
    ///
    /// None here.
    pub fn set_offloads(&self, _agreed: Offloads) -> io::Result<()> {
        Ok(())
    }

    /// From now on [`Tap::wait`] also ends when `event` is signalled, and takes its signal.
    ///
    /// # Errors
    ///
    /// None here.
    pub fn attach(&mut self, event: &Arc<Event>) -> io::Result<()> {
        self.event = Some(Arc::clone(event));
        Ok(())
    }

    /// Waits for the event, for a frame, or for the end of `timeout`; says whether a frame may be there. It says so once, and again
    /// only after a read found no more.
    pub fn wait(&mut self, timeout: Option<Duration>) -> bool {
        let done = self.reading.done.as_raw_handle();
        let reads = self.reading.state == State::Pending;
        let mut handles = [done; 2];
        let mut count = u32::from(reads);
        if let Some(event) = &self.event {
            handles[usize::from(reads)] = event.as_raw_handle();
            count += 1;
        }
        if count > 0 {
            // SAFETY: so many handles are there and open.
            unsafe { WaitForMultipleObjects(count, handles.as_ptr(), 0, milliseconds(timeout)) };
        }
        if let Some(event) = &self.event {
            // The first that is signalled ends the wait and is taken by it; the other one is taken here.
            event.wait(Some(Duration::ZERO));
        }
        let readable = reads && self.reading.is_done();
        if readable {
            self.reading.state = State::Told;
        }
        readable
    }

    /// Reads the next frame, with its header, into `buffer`.
    ///
    /// # Errors
    ///
    /// There is none (`WouldBlock`), or the host's.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let frame = self.reading.read(&self.file)?;
        let (header, rest) = buffer.split_at_mut_checked(HEADER_SIZE).ok_or(io::ErrorKind::InvalidInput)?;
        let place = rest.get_mut(..frame.len()).ok_or(io::ErrorKind::InvalidInput)?;
        header.fill(0);
        place.copy_from_slice(frame);
        Ok(HEADER_SIZE + frame.len())
    }

    /// Gives the host a frame, whose header says nothing.
    ///
    /// # Errors
    ///
    /// The host's: it does not take the frame.
    pub fn write(&self, _header: &[u8; HEADER_SIZE], frame: &[u8]) -> io::Result<()> {
        let length = u32::try_from(frame.len()).map_err(io::Error::other)?;
        // SAFETY: one call with this handle and structure, which reads the frame, which stays there.
        unsafe {
            overlapped::call(self.file.as_handle(), Some(PATIENCE), |handle, overlapped| {
                WriteFile(handle, frame.as_ptr(), length, ptr::null_mut(), overlapped)
            })
        }
        .map(drop)
    }
}

impl Reading {
    fn new() -> io::Result<Self> {
        let done = event::create(true)?;
        let shared = Box::new(Shared { overlapped: OVERLAPPED::default(), frame: [0; MAX_FRAME] });
        Ok(Self { shared: NonNull::from(Box::leak(shared)), done, state: State::Idle })
    }

    /// Whether the driver has it no more.
    fn is_done(&self) -> bool {
        self.ends(Duration::ZERO)
    }

    fn ends(&self, patience: Duration) -> bool {
        // SAFETY: the event is open.
        let waited = unsafe { WaitForSingleObject(self.done.as_raw_handle(), milliseconds(Some(patience))) };
        self.state == State::Idle || waited == WAIT_OBJECT_0
    }

    /// The next frame, if it is there; begins to read it if that is not begun.
    fn read(&mut self, file: &File) -> io::Result<&[u8]> {
        let handle = file.as_raw_handle();
        let shared = self.shared.as_ptr();
        // SAFETY: `shared` is there until this is dropped; this is where its structure is.
        let overlapped = unsafe { &raw mut (*shared).overlapped };
        if self.state == State::Idle {
            // SAFETY: the driver has no read, so nobody else uses the structure.
            unsafe { overlapped.write(OVERLAPPED { hEvent: self.done.as_raw_handle(), ..OVERLAPPED::default() }) };
            // SAFETY: this is where the frame is, in what is there until this is dropped.
            let frame = unsafe { (&raw mut (*shared).frame).cast() };
            let room = u32::try_from(MAX_FRAME).unwrap_or(u32::MAX);
            // SAFETY: the adapter is open. The structure and the frame stay where they are while the driver has them: they are freed
            // only when the read is over.
            if unsafe { ReadFile(handle, frame, room, ptr::null_mut(), overlapped) } == 0 {
                let error = io::Error::last_os_error();
                if error.raw_os_error() != Some(ERROR_IO_PENDING.cast_signed()) {
                    return Err(error);
                }
            }
        }
        self.state = State::Pending;
        let mut count = 0;
        // SAFETY: the read with this structure was begun, and its event is open.
        if unsafe { GetOverlappedResult(handle, overlapped, &raw mut count, 0) } == 0 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() == Some(ERROR_IO_INCOMPLETE.cast_signed()) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.state = State::Idle;
            return Err(error);
        }
        self.state = State::Idle;
        // SAFETY: the read is over, so that nobody writes until the next one begins, for which this is borrowed.
        let frame = unsafe { &(*shared).frame };
        frame.get(..count as usize).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        // A driver that still has the read would write into memory that is no more: then it stays.
        if self.ends(PATIENCE) {
            // SAFETY: it is from a box, and nobody else has it any more.
            drop(unsafe { Box::from_raw(self.shared.as_ptr()) });
        }
    }
}

/// An adapter of the driver's.
#[derive(Debug)]
struct Adapter {
    /// What the user sees.
    name: String,
    /// What the driver calls it.
    id: String,
}

impl Adapter {
    fn is_called(&self, name: &str) -> bool {
        // Windows does not tell large letters from small ones in names.
        self.name.to_lowercase() == name.to_lowercase() || self.id.eq_ignore_ascii_case(name)
    }

    fn open(&self) -> Result<File, TapError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).share_mode(0).custom_flags(FILE_ATTRIBUTE_SYSTEM | FILE_FLAG_OVERLAPPED);
        options.open(format!(r"\\.\Global\{}.tap", self.id)).map_err(|source| {
            // The driver gives a second opener the first of these.
            match source.raw_os_error().map(i32::cast_unsigned) {
                Some(ERROR_GEN_FAILURE | ERROR_SHARING_VIOLATION) => TapError::Busy(self.name.clone()),
                _ => TapError::Other { name: self.name.clone(), source },
            }
        })
    }
}

/// The driver's adapters.
fn adapters() -> Vec<Adapter> {
    let class = format!(r"SYSTEM\CurrentControlSet\Control\Class\{ADAPTERS}");
    let instances = registry::keys(&class).into_iter().map(|instance| format!(r"{class}\{instance}"));
    let ours = instances.filter(|key| registry::text(key, "ComponentId").is_some_and(|id| is_component(&id)));
    let ids = ours.filter_map(|key| registry::text(&key, "NetCfgInstanceId"));
    ids.map(|id| {
        let connection = format!(r"SYSTEM\CurrentControlSet\Control\Network\{ADAPTERS}\{id}\Connection");
        Adapter { name: registry::text(&connection, "Name").unwrap_or_else(|| id.clone()), id }
    })
    .collect()
}

fn is_component(id: &str) -> bool {
    let name = id.rsplit('\\').next().unwrap_or(id);
    name.eq_ignore_ascii_case(COMPONENT)
}

/// Asks the driver for something that takes a number and gives one.
fn control(file: &File, request: u32, number: u32) -> io::Result<u32> {
    let mut number = [number];
    let (place, size) = (number.as_mut_ptr().cast::<c_void>(), 4);
    // SAFETY: one call with this handle and structure, which reads and writes the number, which stays there.
    unsafe {
        overlapped::call(file.as_handle(), Some(PATIENCE), |handle, overlapped| {
            DeviceIoControl(handle, request, place, size, place, size, ptr::null_mut(), overlapped)
        })
    }?;
    Ok(number[0])
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::io::Write;
    use std::os::windows::io::FromRawHandle;
    use std::process;

    use windows_sys::Win32::Storage::FileSystem::PIPE_ACCESS_DUPLEX;
    use windows_sys::Win32::System::Pipes::CreateNamedPipeW;
    use windows_sys::Win32::System::Pipes::PIPE_READMODE_MESSAGE;
    use windows_sys::Win32::System::Pipes::PIPE_TYPE_MESSAGE;

    use super::super::wide::wide;
    use super::*;

    const HEADER: usize = HEADER_SIZE;

    /// A pipe of messages, which are read and written as an adapter's frames are; and what is at its other end.
    fn adapter(name: &str) -> (Tap, File) {
        let path = format!(r"\\.\pipe\covisor-tap-{}-{name}", process::id());
        let mode = PIPE_TYPE_MESSAGE | PIPE_READMODE_MESSAGE;
        let access = PIPE_ACCESS_DUPLEX | FILE_FLAG_OVERLAPPED;
        let wide = wide(&path);
        // SAFETY: the path ends with a zero.
        let handle = unsafe { CreateNamedPipeW(wide.as_ptr(), access, mode, 1, 1 << 17, 1 << 17, 0, ptr::null()) };
        // SAFETY: just made, and nobody else's.
        let file = unsafe { File::from_raw_handle(handle) };
        let far = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let reading = Reading::new().unwrap();
        (Tap { file, reading, name: name.to_owned(), mtu: 1500, event: None }, far)
    }

    #[test]
    fn test_frames_come_one_by_one() {
        let (mut tap, mut far) = adapter("frames");
        let mut buffer = vec![0xff; HEADER + MAX_FRAME];
        let would_block = |tap: &mut Tap, buffer: &mut [u8]| {
            assert_eq!(tap.read(buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        };
        would_block(&mut tap, &mut buffer);
        assert!(!tap.wait(Some(Duration::from_millis(1))));
        far.write_all(&[1; 60]).unwrap();
        far.write_all(&[2; 1514]).unwrap();
        assert!(tap.wait(None));
        // It is said once.
        assert!(!tap.wait(Some(Duration::from_millis(1))));
        assert_eq!(tap.read(&mut buffer).unwrap(), HEADER + 60);
        assert_eq!((&buffer[..HEADER], &buffer[HEADER..HEADER + 60]), ([0; HEADER].as_slice(), [1; 60].as_slice()));
        assert_eq!(tap.read(&mut buffer).unwrap(), HEADER + 1514);
        would_block(&mut tap, &mut buffer);
        far.write_all(&[3; 60]).unwrap();
        assert!(tap.wait(None));
        assert_eq!(tap.read(&mut buffer).unwrap(), HEADER + 60);
    }

    #[test]
    fn test_the_event_ends_a_wait() {
        let (mut tap, _far) = adapter("event");
        let event = Arc::new(Event::new().unwrap());
        tap.attach(&event).unwrap();
        let mut buffer = vec![0; HEADER + MAX_FRAME];
        assert!(tap.read(&mut buffer).is_err());
        event.signal();
        assert!(!tap.wait(None));
        // The signal is taken.
        assert!(!event.wait(Some(Duration::ZERO)));
    }

    #[test]
    fn test_an_adapter_goes_while_it_is_read() {
        let (mut tap, far) = adapter("goes");
        let mut buffer = vec![0; HEADER + MAX_FRAME];
        assert!(tap.read(&mut buffer).is_err());
        drop(far);
        assert!(tap.wait(Some(PATIENCE)));
        assert!(tap.read(&mut buffer).is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock));
        let (mut tap, _far) = adapter("dropped");
        assert!(tap.read(&mut buffer).is_err());
        drop(tap);
    }

    #[test]
    fn test_frames_are_written_whole() {
        let (tap, far) = adapter("written");
        tap.write(&[0; HEADER], &[7; 64]).unwrap();
        let mut buffer = [0; 100];
        assert_eq!((&far).read(&mut buffer).unwrap(), 64);
    }

    #[test]
    fn test_a_component_is_the_drivers() {
        assert!(is_component("tap0901") && is_component(r"root\TAP0901"));
        assert!(!is_component("tap0801") && !is_component("wintun"));
    }

    #[test]
    fn test_a_host_without_adapters_says_so() {
        if adapters().is_empty() {
            assert!(Tap::open(None, None, None).is_err_and(|error| error.to_string().contains("install tap-windows6")));
        }
        assert!(matches!(Tap::open(None, None, Some("br0")), Err(TapError::Bridge(_))));
    }
}
