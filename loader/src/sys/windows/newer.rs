//! Functions of Windows that are newer than NT 5.2 for x86-64, which Rust's library is linked to. An NT that lacks one of them
//! would not start this program at all: ReactOS is one. The linker takes what is defined here instead of what libraries offer for
//! import. Where NT has the functions they are called; where it lacks one, all of them are done without.

use std::ffi::c_void;
use std::mem::transmute;
use std::ptr;
use std::ptr::NonNull;
use std::sync::atomic::AtomicPtr;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use windows_sys::Win32::Foundation::ERROR_CALL_NOT_IMPLEMENTED;
use windows_sys::Win32::Foundation::ERROR_INVALID_PARAMETER;
use windows_sys::Win32::Foundation::ERROR_TIMEOUT;
use windows_sys::Win32::Foundation::FALSE;
use windows_sys::Win32::Foundation::GENERIC_READ;
use windows_sys::Win32::Foundation::GENERIC_WRITE;
use windows_sys::Win32::Foundation::HANDLE;
use windows_sys::Win32::Foundation::NTSTATUS;
use windows_sys::Win32::Foundation::RtlNtStatusToDosError;
use windows_sys::Win32::Foundation::STATUS_SUCCESS;
use windows_sys::Win32::Foundation::SetLastError;
use windows_sys::Win32::Foundation::TRUE;
use windows_sys::Win32::Networking::WinSock::SOCKET_ERROR;
use windows_sys::Win32::Networking::WinSock::WSAEOPNOTSUPP;
use windows_sys::Win32::Networking::WinSock::WSASetLastError;
use windows_sys::Win32::System::LibraryLoader::GetModuleHandleA;
use windows_sys::Win32::System::LibraryLoader::GetProcAddress;
use windows_sys::Win32::System::Threading::INFINITE;
use windows_sys::core::BOOL;

use crate::sys::nt::waits;
use crate::sys::nt::waits::Keyed;

/// What this NT has, once it is known.
static STATE: AtomicU8 = AtomicU8::new(UNKNOWN);
/// Nobody has looked yet.
const UNKNOWN: u8 = 0;
/// All of them.
const COMPLETE: u8 = 1;
/// Not all of them.
const LACKING: u8 = 2;

/// The function of NT's, if it has all of them.
#[inline]
fn real(slot: &AtomicPtr<c_void>) -> Option<NonNull<c_void>> {
    let state = match STATE.load(Ordering::Acquire) {
        UNKNOWN => look(),
        state => state,
    };
    if state == COMPLETE { NonNull::new(slot.load(Ordering::Relaxed)) } else { None }
}

/// Looks for all of them. Several threads may do it at once, and find the same.
#[cold]
fn look() -> u8 {
    // SAFETY: the name ends with a zero. This library is in every process.
    let library = unsafe { GetModuleHandleA(c"kernel32.dll".as_ptr().cast()) };
    let mut state = COMPLETE;
    for (name, slot) in ALL {
        // SAFETY: the library stays, and the name ends with a zero.
        match unsafe { GetProcAddress(library, name.as_ptr()) } {
            Some(function) => slot.store(function as *mut c_void, Ordering::Relaxed),
            None => state = LACKING,
        }
    }
    STATE.store(state, Ordering::Release);
    state
}

/// Defines functions as importing code knows them, each with what is done without it.
macro_rules! newer {
    ($($name:ident($($argument:ident: $type:ty),*) -> $result:ty { $without:expr })*) => {
        /// Their names, which end with a zero, and where their addresses are kept.
        static ALL: &[(&str, &AtomicPtr<c_void>)] = &[$((concat!(stringify!($name), "\0"), &$name::REAL)),*];

        $(
            #[expect(non_snake_case, reason = "Windows' name")]
            mod $name {
                pub(super) static REAL: super::AtomicPtr<super::c_void> = super::AtomicPtr::new(super::ptr::null_mut());
            }

            /// See the function's documentation.
            #[unsafe(no_mangle)]
            unsafe extern "system" fn $name($($argument: $type),*) -> $result {
                match real(&$name::REAL) {
                    // SAFETY: NT's function of this name has this type, and by the caller.
                    Some(real) => unsafe {
                        transmute::<NonNull<c_void>, unsafe extern "system" fn($($type),*) -> $result>(real)($($argument),*)
                    },
                    None => $without,
                }
            }

            const _: () = {
                /// What code calls through that is compiled for a function of a library's.
                #[unsafe(export_name = concat!("__imp_", stringify!($name)))]
                static IMPORT: unsafe extern "system" fn($($type),*) -> $result = $name;
            };
        )*
    };
}

newer! {
    AcquireSRWLockExclusive(lock: *mut usize) -> () { waits::acquire::<Events>(word(lock)) }
    TryAcquireSRWLockExclusive(lock: *mut usize) -> u8 { waits::try_acquire(word(lock)).into() }
    ReleaseSRWLockExclusive(lock: *mut usize) -> () { waits::release::<Events>(word(lock)) }
    SleepConditionVariableSRW(variable: *mut usize, lock: *mut usize, milliseconds: u32, _flags: u32) -> BOOL {
        succeed_unless(ERROR_TIMEOUT, waits::sleep::<Events>(
            word(variable),
            word(lock),
            Some(milliseconds).filter(|time| *time != INFINITE),
        ))
    }
    WakeConditionVariable(variable: *mut usize) -> () { waits::wake::<Events>(word(variable)) }
    WakeAllConditionVariable(variable: *mut usize) -> () { waits::wake_all::<Events>(word(variable)) }

    InitOnceBeginInitialize(once: *mut usize, _flags: u32, begun: *mut BOOL, _context: *mut *mut c_void) -> BOOL {{
        let is_first = waits::begin::<Events>(word(once));
        // SAFETY: the caller's variable.
        unsafe { *begun = is_first.into() };
        TRUE
    }}
    InitOnceComplete(once: *mut usize, _flags: u32, _context: *mut c_void) -> BOOL {{
        waits::complete::<Events>(word(once));
        TRUE
    }}

    GetFileInformationByHandleEx(file: HANDLE, class: i32, buffer: *mut c_void, size: u32) -> BOOL {
        // SAFETY: by the caller.
        information(class, |class, status| unsafe { NtQueryInformationFile(file, status, buffer, size, class) })
    }
    SetFileInformationByHandle(file: HANDLE, class: i32, buffer: *const c_void, size: u32) -> BOOL {
        // SAFETY: by the caller.
        information(class, |class, status| unsafe { NtSetInformationFile(file, status, buffer, size, class) })
    }

    CompareStringOrdinal(first: *const u16, first_length: i32, second: *const u16, second_length: i32, no_case: BOOL) -> i32 {
        // SAFETY: by the caller.
        unsafe { compare((first, first_length), (second, second_length), no_case != FALSE) }
    }

    // What is asked for these has a way of its own round their failure, or is not done by this program.
    CreateWaitableTimerExW(_rights: *const c_void, _name: *const u16, _flags: u32, _access: u32) -> HANDLE {{
        fail();
        ptr::null_mut()
    }}
    GetFinalPathNameByHandleW(_file: HANDLE, _path: *mut u16, _size: u32, _flags: u32) -> u32 {{
        fail();
        0
    }}
    CreateSymbolicLinkW(_link: *const u16, _target: *const u16, _flags: u32) -> u8 {{
        fail();
        0
    }}
    InitializeProcThreadAttributeList(_list: *mut c_void, _count: u32, _flags: u32, _size: *mut usize) -> BOOL { fail() }
    UpdateProcThreadAttribute(
        _list: *mut c_void,
        _flags: u32,
        _attribute: usize,
        _value: *const c_void,
        _size: usize,
        _before: *mut c_void,
        _before_size: *const usize
    ) -> BOOL { fail() }
    DeleteProcThreadAttributeList(_list: *mut c_void) -> () { () }
}

/// The word of a lock, a condition variable or a "once".
fn word<'a>(pointer: *mut usize) -> &'a AtomicUsize {
    // SAFETY: callers of the functions above have such a word, aligned and alive, and only these functions touch it.
    unsafe { AtomicUsize::from_ptr(pointer) }
}

/// An answer of Win32.
fn succeed_unless(error: u32, success: bool) -> BOOL {
    if success {
        return TRUE;
    }
    // SAFETY: sets a number of the thread's.
    unsafe { SetLastError(error) };
    FALSE
}

/// NT has no such function.
fn fail() -> BOOL {
    succeed_unless(ERROR_CALL_NOT_IMPLEMENTED, false)
}

/// NT's keyed events: one object for all waits of this program.
struct Events;

/// The object, once it is made.
static EVENTS: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

impl Events {
    fn object() -> HANDLE {
        let there = EVENTS.load(Ordering::Acquire);
        if !there.is_null() {
            return there;
        }
        let mut new = ptr::null_mut();
        // SAFETY: the pointer is to a variable. No name, no rights to be told.
        let status = unsafe { NtCreateKeyedEvent(&raw mut new, GENERIC_READ | GENERIC_WRITE, ptr::null(), 0) };
        if status != STATUS_SUCCESS {
            // Without it no thread can wait for another, and a panic would have to.
            std::process::abort();
        }
        // If another thread was first, its object is everybody's; this one stays unused.
        match EVENTS.compare_exchange(ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => new,
            Err(first) => first,
        }
    }
}

/// Units of NT's time in a millisecond.
const UNITS_IN_MILLISECOND: i64 = 10_000;

impl Keyed for Events {
    fn wait(key: usize, milliseconds: Option<u32>) -> bool {
        // Negative: from now.
        let time = milliseconds.map(|time| -i64::from(time) * UNITS_IN_MILLISECOND);
        let time = time.as_ref().map_or(ptr::null(), ptr::from_ref);
        // SAFETY: the object is a keyed event's; the key is a number, and the time is there during the call.
        unsafe { NtWaitForKeyedEvent(Self::object(), key, 0, time) == STATUS_SUCCESS }
    }

    fn release(key: usize) {
        // SAFETY: as above.
        unsafe { NtReleaseKeyedEvent(Self::object(), key, 0, ptr::null()) };
    }
}

/// `IO_STATUS_BLOCK`.
#[repr(C)]
struct IoStatus {
    status: usize,
    information: usize,
}

/// `FILE_INFO_BY_HANDLE_CLASS` as Win32 numbers it, and `FILE_INFORMATION_CLASS` as NT does, of the same structures.
const CLASSES: [(i32, i32); 7] = [
    // Basic, standard, name, disposition, allocation, end of file, attribute tag.
    (0, 4),
    (1, 5),
    (2, 9),
    (4, 13),
    (5, 19),
    (6, 20),
    (9, 35),
];

/// Asks for, or sets, what NT calls by another number.
fn information(class: i32, call: impl FnOnce(i32, *mut IoStatus) -> NTSTATUS) -> BOOL {
    let Some((_, class)) = CLASSES.into_iter().find(|(of_win32, _)| *of_win32 == class) else {
        return succeed_unless(ERROR_INVALID_PARAMETER, false);
    };
    let mut status = IoStatus { status: 0, information: 0 };
    let status = call(class, &raw mut status);
    // SAFETY: takes a number.
    succeed_unless(unsafe { RtlNtStatusToDosError(status) }, status >= 0)
}

/// Compares texts unit by unit, if wanted as if in capitals; a length below 0 says that a zero ends the text.
///
/// # Safety
/// The texts are there.
unsafe fn compare(first: (*const u16, i32), second: (*const u16, i32), no_case: bool) -> i32 {
    let text = |(start, length): (*const u16, i32)| {
        // SAFETY: by the caller.
        unsafe {
            let length =
                usize::try_from(length).unwrap_or_else(|_| (0..).take_while(|index| *start.add(*index) != 0).count());
            std::slice::from_raw_parts(start, length)
        }
    };
    // SAFETY: takes a number.
    let unit = |unit: &u16| if no_case { unsafe { RtlUpcaseUnicodeChar(*unit) } } else { *unit };
    // CSTR_LESS_THAN, CSTR_EQUAL and CSTR_GREATER_THAN are 1, 2 and 3.
    text(first).iter().map(unit).cmp(text(second).iter().map(unit)) as i32 + 2
}

#[link(name = "ntdll.dll", kind = "raw-dylib", modifiers = "+verbatim")]
unsafe extern "system" {
    /// NT 5.1, as the next two.
    fn NtCreateKeyedEvent(event: *mut HANDLE, access: u32, attributes: *const c_void, flags: u32) -> NTSTATUS;
    fn NtWaitForKeyedEvent(event: HANDLE, key: usize, alertable: u8, timeout: *const i64) -> NTSTATUS;
    fn NtReleaseKeyedEvent(event: HANDLE, key: usize, alertable: u8, timeout: *const i64) -> NTSTATUS;
    /// NT 3.1, as the next two.
    fn NtQueryInformationFile(
        file: HANDLE,
        status: *mut IoStatus,
        buffer: *mut c_void,
        size: u32,
        class: i32,
    ) -> NTSTATUS;
    fn NtSetInformationFile(
        file: HANDLE,
        status: *mut IoStatus,
        buffer: *const c_void,
        size: u32,
        class: i32,
    ) -> NTSTATUS;
    fn RtlUpcaseUnicodeChar(unit: u16) -> u16;
}

/// Defines functions of sockets' that are newer as well. The library `socket2` has calls of them for what this program never asks of
/// it; they refuse.
macro_rules! never_called {
    ($($name:ident($($argument:ident: $type:ty),*);)*) => {
        $(
            /// See the function's documentation.
            #[unsafe(no_mangle)]
            extern "system" fn $name($($argument: $type),*) -> i32 {
                // SAFETY: it has no conditions.
                unsafe { WSASetLastError(WSAEOPNOTSUPP) };
                SOCKET_ERROR
            }

            const _: () = {
                /// What code calls through that is compiled for a function of a library's.
                #[unsafe(export_name = concat!("__imp_", stringify!($name)))]
                static IMPORT: extern "system" fn($($type),*) -> i32 = $name;
            };
        )*
    };
}

never_called! {
    WSAPoll(_sockets: *mut c_void, _count: u32, _milliseconds: i32);
    WSASendMsg(_socket: usize, _message: *const c_void, _flags: u32, _sent: *mut u32, _overlapped: *mut c_void, _done: *const c_void);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_this_windows_has_all_of_them() {
        assert_eq!(look(), COMPLETE);
        assert!(ALL.iter().all(|(_, slot)| real(slot).is_some()));
    }

    #[test]
    fn test_keyed_events_let_threads_wait() {
        let (lock, waiters, once) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        let count = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    if waits::begin::<Events>(&once) {
                        waits::complete::<Events>(&once);
                    }
                    waits::acquire::<Events>(&lock);
                    while count.load(Ordering::SeqCst) == 0 {
                        waits::sleep::<Events>(&waiters, &lock, None);
                    }
                    count.fetch_sub(1, Ordering::SeqCst);
                    waits::release::<Events>(&lock);
                });
            }
            for _ in 0..4 {
                waits::acquire::<Events>(&lock);
                count.fetch_add(1, Ordering::SeqCst);
                waits::release::<Events>(&lock);
                waits::wake_all::<Events>(&waiters);
            }
        });
        waits::acquire::<Events>(&lock);
        assert!(!waits::sleep::<Events>(&waiters, &lock, Some(20)), "nobody wakes");
    }

    #[test]
    fn test_files_answer_by_the_other_number() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(700).unwrap();
        let handle = std::os::windows::io::AsRawHandle::as_raw_handle(&file);
        // FILE_STANDARD_INFO: allocation size, then the end of the file.
        let mut standard = [0_u64; 3];
        // SAFETY: fills the array, whose size it is told.
        let ask = |class: i32, status: *mut IoStatus, buffer: *mut c_void| unsafe {
            NtQueryInformationFile(handle, status, buffer, 24, class)
        };
        assert_eq!(information(1, |class, status| ask(class, status, standard.as_mut_ptr().cast())), TRUE);
        assert_eq!(standard[1], 700);
        assert_eq!(information(77, |_, _| STATUS_SUCCESS), FALSE);
    }

    #[test]
    fn test_texts_compare_as_in_capitals() {
        let text = |text: &str| text.encode_utf16().chain([0]).collect::<Vec<_>>();
        let by = |first: &str, second: &str, no_case: bool| {
            let (first, second) = (text(first), text(second));
            // SAFETY: the texts are there, with a zero at their ends.
            unsafe { compare((first.as_ptr(), -1), (second.as_ptr(), -1), no_case) }
        };
        assert_eq!((by("Path", "PATH", true), by("Path", "PATH", false)), (2, 3));
        assert_eq!((by("grün", "GRÜN", true), by("a", "ab", true), by("b", "A", true)), (2, 1, 3));
    }
}
