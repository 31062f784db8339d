//! The host is Windows.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::mem;
use std::os::windows::io::AsHandle;
use std::os::windows::io::AsRawHandle;
use std::os::windows::io::RawHandle;
use std::ptr;

use covisor::sys::event::Event;
use covisor::sys::transport::DEVICE_PATH;
use covisor::sys::transport::Transport;
use covisor_abi::Call;
use windows_sys::Win32::Foundation::CloseHandle;
use windows_sys::Win32::Foundation::ERROR_INVALID_HANDLE;
use windows_sys::Win32::Foundation::ERROR_IO_PENDING;
use windows_sys::Win32::Foundation::HANDLE;
use windows_sys::Win32::System::IO::CancelIoEx;
use windows_sys::Win32::System::IO::DeviceIoControl;
use windows_sys::Win32::System::IO::GetOverlappedResult;
use windows_sys::Win32::System::IO::OVERLAPPED;

use super::Attempt;
use crate::refusal::Refusal;

/// Whether the close of a handle ends the `Run` of another thread on it.
pub(crate) const CLOSE_ENDS_RUN: bool = true;

/// More than any structure has.
const HUGE: usize = 1 << 20;

/// A handle that is used without the loader's transport; not for overlapped calls, so that one waits for the other.
#[derive(Debug)]
pub(crate) struct Raw(File);

fn size_of_buffer(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("buffers are small")
}

impl Raw {
    /// Opens the device.
    pub(crate) fn open() -> io::Result<Self> {
        OpenOptions::new().read(true).write(true).open(DEVICE_PATH).map(Self)
    }

    /// A call with any code and buffers.
    ///
    /// # Safety
    /// The buffers are null, no addresses of the process, or those of as many bytes as is said.
    unsafe fn control(&self, code: u32, input: (*const u8, usize), output: (*mut u8, usize)) -> io::Result<()> {
        let (mut moved, none) = (0, ptr::null_mut());
        let sizes = (size_of_buffer(input.1), size_of_buffer(output.1));
        // SAFETY: by the caller: no more than that is read and written.
        let done = unsafe {
            DeviceIoControl(
                self.0.as_raw_handle(),
                code,
                input.0.cast(),
                sizes.0,
                output.0.cast(),
                sizes.1,
                &raw mut moved,
                none,
            )
        };
        if done == 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// A call with its structure's bytes, as it should be.
    pub(crate) fn call(&self, call: Call, bytes: &mut [u8]) -> io::Result<()> {
        assert_eq!(bytes.len(), call.size());
        let (start, size) = (bytes.as_mut_ptr(), bytes.len());
        // SAFETY: the bytes are there.
        unsafe { self.control(call.nt_code(), (start, size), (start, size)) }
    }

    /// The call with structures of another size: too little or too much goes in, comes out, or both.
    pub(crate) fn wrong_sizes(&self, call: Call) -> Vec<Attempt> {
        let right = call.size();
        let (mut input, mut output) = (vec![0_u8; HUGE], vec![0_u8; HUGE]);
        [0, right - 1, right + 1, HUGE]
            .into_iter()
            .flat_map(|wrong| [(wrong, right), (right, wrong), (wrong, wrong)])
            .map(|(inward, outward)| {
                let buffers = ((input.as_mut_ptr().cast_const(), inward), (output.as_mut_ptr(), outward));
                // SAFETY: both have more bytes than that.
                let answer = unsafe { self.control(call.nt_code(), buffers.0, buffers.1) };
                let what = format!("{call:?} with {inward} bytes in and {outward} out");
                Attempt { what, answer, refusals: &[Refusal::WrongSize] }
            })
            .collect()
    }

    /// Codes that are no calls: unknown ones, other device types, and the calls' with another method, which has the I/O manager
    /// hand over buffers in another way, or with fewer rights.
    pub(crate) fn unknown_calls(&self) -> Vec<Attempt> {
        let first = Call::ALL[0].nt_code();
        let count = u32::try_from(Call::ALL.len()).expect("there are few");
        let unknown = (count..64).chain([0x400, 0x7ff]).map(|number| first + (number << 2));
        let methods = Call::ALL.into_iter().flat_map(|call| [1, 2, 3].map(|method| call.nt_code() | method));
        let rights =
            Call::ALL.into_iter().flat_map(|call| [0, 1, 2].map(|right| call.nt_code() & !(3 << 14) | right << 14));
        let types = [0xc052_u32, 0x8000, 0x22].map(|kind| first & 0xffff | kind << 16);
        let mut bytes = [0_u8; 1024];
        unknown
            .chain(methods)
            .chain(rights)
            .chain(types)
            .map(|code| {
                let (start, size) = (bytes.as_mut_ptr(), Call::Run.size());
                // SAFETY: there are more bytes.
                let answer = unsafe { self.control(code, (start, size), (start, size)) };
                Attempt { what: format!("call {code:#x}"), answer, refusals: &[Refusal::NoSuchCall] }
            })
            .collect()
    }

    /// The handshake with a structure that is not there. It is the I/O manager that sees that, whatever the call, and Wine's has
    /// another number for it than Windows', and takes less than a handshake for something that is there.
    pub(crate) fn bad_buffers(&self, call: Call) -> Vec<Attempt> {
        if call != Call::Handshake {
            return Vec::new();
        }
        let size = call.size();
        let mut bytes = vec![0_u8; size];
        [("at address 0", ptr::null()), ("at address 1", ptr::without_provenance(1))]
            .into_iter()
            .map(|(place, pointer)| {
                // SAFETY: no memory of the process's is there.
                let answer = unsafe { self.control(call.nt_code(), (pointer, size), (bytes.as_mut_ptr(), size)) };
                Attempt {
                    what: format!("{call:?} with a structure {place}"),
                    answer,
                    refusals: &[Refusal::Unreadable, Refusal::OtherProcess],
                }
            })
            .collect()
    }

    /// A handshake whose structure begins the bytes, and comes back `shift` bytes behind.
    pub(crate) fn overlapping(&self, bytes: &mut [u8], shift: usize) -> io::Result<()> {
        let size = Call::Handshake.size();
        let start = bytes.as_mut_ptr();
        let output = bytes[shift..][..size].as_mut_ptr();
        // SAFETY: both are in the bytes; the I/O manager copies.
        let result = unsafe { self.control(Call::Handshake.nt_code(), (start, size), (output, size)) };
        bytes.copy_within(shift..shift + size, 0);
        result
    }
}

/// Who makes a call that blocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller;

impl Caller {
    /// The calling thread.
    pub(crate) fn current() -> Self {
        Self
    }

    /// Ends the calls that are made on the handle, by cancelling them.
    pub(crate) fn end_call(self, handle: &Transport) {
        // SAFETY: the handle is open; null means all calls of this process on it.
        unsafe { CancelIoEx(handle.as_handle().as_raw_handle(), ptr::null()) };
    }

    /// The same where the handle is, or may be, closed: the close ends them.
    pub(crate) fn end_running(self) {}
}

/// A handle behind its owner's back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Loose(usize);

impl Loose {
    /// The handle of a transport, which is not to be used as one any more.
    pub(crate) fn of(transport: Transport) -> Self {
        let handle = transport.as_handle().as_raw_handle();
        mem::forget(transport);
        Self(handle.expose_provenance())
    }

    fn handle(self) -> RawHandle {
        ptr::with_exposed_provenance_mut(self.0)
    }

    /// A call with its structure's bytes.
    pub(crate) fn call(self, call: Call, bytes: &mut [u8]) -> io::Result<()> {
        assert_eq!(bytes.len(), call.size());
        let event = Event::new()?;
        let done: HANDLE =
            ptr::with_exposed_provenance_mut(usize::try_from(event.handle()).expect("handles are positive"));
        let mut overlapped = OVERLAPPED { hEvent: done, ..OVERLAPPED::default() };
        let (start, size) = (bytes.as_mut_ptr(), size_of_buffer(bytes.len()));
        let (none, state) = (ptr::null_mut(), &raw mut overlapped);
        // SAFETY: bytes and structure are there until the call is over, which is waited for.
        unsafe {
            if DeviceIoControl(self.handle(), call.nt_code(), start.cast(), size, start.cast(), size, none, state) != 0
            {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(ERROR_IO_PENDING.cast_signed()) {
                return Err(error);
            }
            let mut moved = 0;
            // The event is waited for, not the handle, which may be closed.
            if GetOverlappedResult(self.handle(), state, &raw mut moved, 1) != 0 {
                Ok(())
            } else {
                Err(io::Error::last_os_error())
            }
        }
    }

    /// Closes it, whoever uses it.
    pub(crate) fn close(self) -> io::Result<()> {
        // SAFETY: nobody owns it.
        if unsafe { CloseHandle(self.handle()) } == 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Whether an error says that a handle is closed.
pub(crate) fn is_closed(error: &io::Error) -> bool {
    error.raw_os_error() == Some(ERROR_INVALID_HANDLE.cast_signed())
}

/// A handle that is open, but no event's: the device's own, as doorbells name it.
pub(crate) fn no_event(transport: &Transport) -> i64 {
    transport.as_handle().as_raw_handle().expose_provenance().cast_signed() as i64
}
