//! The host is Linux.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::RawFd;
use std::ptr;
use std::sync::Once;

use covisor::sys::transport::DEVICE_PATH;
use covisor::sys::transport::Transport;
use covisor_abi::Call;

use super::Attempt;
use crate::refusal::Refusal;

/// Whether the close of a handle ends the `Run` of another thread on it. Linux keeps the file open until that returns.
pub(crate) const CLOSE_ENDS_RUN: bool = false;

/// Where the size is in an ioctl's number, and how much of it there is.
const SIZE_SHIFT: u32 = 16;
const SIZE_BITS: u32 = 0x3fff;

/// A handle that is used without the loader's transport.
#[derive(Debug)]
pub(crate) struct Raw(File);

impl Raw {
    /// Opens the device.
    pub(crate) fn open() -> io::Result<Self> {
        OpenOptions::new().read(true).write(true).open(DEVICE_PATH).map(Self)
    }

    /// A call with any number and argument.
    ///
    /// # Safety
    /// The argument is null, no address of the process, or that of as many bytes as the number says or the call has.
    unsafe fn control(&self, number: u32, argument: *mut u8) -> io::Result<()> {
        // SAFETY: by the caller: the kernel reads and writes no more than that.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), number.into(), argument) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// A call with its structure's bytes, as it should be.
    pub(crate) fn call(&self, call: Call, bytes: &mut [u8]) -> io::Result<()> {
        assert_eq!(bytes.len(), call.size());
        // SAFETY: the bytes are as many as the number says.
        unsafe { self.control(call.linux_number(), bytes.as_mut_ptr()) }
    }

    /// The call with structures of another size: the number has the size.
    pub(crate) fn wrong_sizes(&self, call: Call) -> Vec<Attempt> {
        let right = u32::try_from(call.size()).expect("structures are small");
        let mut bytes = vec![0_u8; SIZE_BITS as usize];
        [0, right - 1, right + 1, right - 8, right + 8, 512, 520, SIZE_BITS]
            .into_iter()
            .filter(|&size| size != right)
            .map(|size| {
                let number = call.linux_number() & !(SIZE_BITS << SIZE_SHIFT) | size << SIZE_SHIFT;
                // SAFETY: there are as many bytes as a number can say.
                let answer = unsafe { self.control(number, bytes.as_mut_ptr()) };
                Attempt { what: format!("{call:?} with {size} bytes"), answer, refusals: &[Refusal::WrongSize] }
            })
            .collect()
    }

    /// Numbers that are no calls: unknown ones, other types, and the calls' with other directions.
    pub(crate) fn unknown_calls(&self) -> Vec<Attempt> {
        let run = Call::Run.linux_number();
        let count = u32::try_from(Call::ALL.len()).expect("there are few");
        let unknown = (count..256).map(|number| run & !0xff | number);
        let directions =
            Call::ALL.into_iter().flat_map(|call| [0, 1, 2].map(|way| call.linux_number() & !(3 << 30) | way << 30));
        let types = [0, b'W', u8::MAX].map(|kind| run & !0xff00 | u32::from(kind) << 8);
        let mut bytes = vec![0_u8; SIZE_BITS as usize];
        unknown
            .chain(directions)
            .chain(types)
            .chain([0, u32::MAX])
            .map(|number| {
                // SAFETY: there are as many bytes as a number can say.
                let answer = unsafe { self.control(number, bytes.as_mut_ptr()) };
                Attempt { what: format!("call {number:#x}"), answer, refusals: &[Refusal::NoSuchCall] }
            })
            .collect()
    }

    /// The call with a structure that is not there, only in part, in the kernel's memory, or cannot be written. What can be read the
    /// driver acts on, so it is a handshake's that cannot be written.
    pub(crate) fn bad_buffers(&self, call: Call) -> Vec<Attempt> {
        let page = Page::new().expect("there is memory");
        let (half, read_only) = (page.last_bytes(call.size() / 2), page.read_only());
        let mut places = vec![
            ("at address 0", ptr::null_mut()),
            ("at address 1", ptr::without_provenance_mut(1)),
            ("of the kernel's", ptr::without_provenance_mut(0xffff_8000_0000_0000)),
            ("at no address", ptr::without_provenance_mut(0x8000_0000_0000_0000)),
            ("at the last address", ptr::without_provenance_mut(usize::MAX - 7)),
            ("at a page's end", half),
        ];
        if call == Call::Handshake {
            places.push(("that cannot be written", read_only));
        }
        places
            .into_iter()
            .map(|(place, pointer)| {
                // SAFETY: no memory of the process's is there but the page's, which nobody else uses.
                let answer = unsafe { self.control(call.linux_number(), pointer) };
                Attempt { what: format!("{call:?} with a structure {place}"), answer, refusals: &[Refusal::Unreadable] }
            })
            .collect()
    }

    /// A handshake whose structure the driver finds in other bytes than it leaves it in; here both are always the same.
    pub(crate) fn overlapping(&self, bytes: &mut [u8], _shift: usize) -> io::Result<()> {
        self.call(Call::Handshake, &mut bytes[..Call::Handshake.size()])
    }
}

/// Two pages of memory, of which the second one can only be read and holds a handshake's beginning, and nothing behind.
struct Page(*mut u8);

const PAGE: usize = 4096;

impl Page {
    fn new() -> io::Result<Self> {
        // SAFETY: new memory, anywhere; a page more than is used, which is given back, so that nothing is there.
        unsafe {
            let (kind, access) = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, libc::PROT_READ | libc::PROT_WRITE);
            let start = libc::mmap(ptr::null_mut(), 3 * PAGE, access, kind, -1, 0);
            if start == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            let page = Self(start.cast());
            let greeting = [covisor_abi::MAGIC, covisor_abi::VERSION];
            page.read_only().cast::<[u32; 2]>().write(greeting);
            libc::mprotect(page.read_only().cast(), PAGE, libc::PROT_READ);
            libc::munmap(page.0.add(2 * PAGE).cast(), PAGE);
            Ok(page)
        }
    }

    /// The second page.
    fn read_only(&self) -> *mut u8 {
        self.0.wrapping_add(PAGE)
    }

    /// The last bytes of it.
    fn last_bytes(&self, count: usize) -> *mut u8 {
        self.0.wrapping_add(2 * PAGE - count)
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: they are this one's, and nobody uses them any more.
        unsafe { libc::munmap(self.0.cast(), 2 * PAGE) };
    }
}

/// Who makes a call that blocks: its thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller(libc::pthread_t);

impl Caller {
    /// The calling thread.
    pub(crate) fn current() -> Self {
        extern "C" fn nothing(_: libc::c_int) {}
        static HANDLER: Once = Once::new();
        HANDLER.call_once(|| {
            // SAFETY: all zeros are a `sigaction` without flags, so that what is interrupted is not begun anew; the handler does
            // nothing.
            unsafe {
                let mut action: libc::sigaction = mem::zeroed();
                action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
                libc::sigaction(libc::SIGUSR1, &raw const action, ptr::null_mut());
            }
        });
        // SAFETY: it only tells.
        Self(unsafe { libc::pthread_self() })
    }

    /// Ends the call that it makes on the handle, by a signal.
    pub(crate) fn end_call(self, _handle: &Transport) {
        self.end_running();
    }

    /// The same where the handle is, or may be, closed.
    pub(crate) fn end_running(self) {
        // SAFETY: the thread is there: the caller waits for it after this.
        unsafe { libc::pthread_kill(self.0, libc::SIGUSR1) };
    }
}

/// A handle behind its owner's back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Loose(RawFd);

impl Loose {
    /// The handle of a transport, which is not to be used as one any more.
    pub(crate) fn of(transport: Transport) -> Self {
        let handle = transport.as_fd().as_raw_fd();
        mem::forget(transport);
        Self(handle)
    }

    /// A call with its structure's bytes.
    pub(crate) fn call(self, call: Call, bytes: &mut [u8]) -> io::Result<()> {
        assert_eq!(bytes.len(), call.size());
        // SAFETY: the bytes are as many as the number says.
        let result = unsafe { libc::ioctl(self.0, call.linux_number().into(), bytes.as_mut_ptr()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Closes it, whoever uses it.
    pub(crate) fn close(self) -> io::Result<()> {
        // SAFETY: nobody owns it.
        if unsafe { libc::close(self.0) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Whether an error says that a handle is closed.
pub(crate) fn is_closed(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EBADF)
}

/// A handle that is open, but no event's: the device's own, as doorbells name it.
pub(crate) fn no_event(transport: &Transport) -> i64 {
    transport.as_fd().as_raw_fd().into()
}
