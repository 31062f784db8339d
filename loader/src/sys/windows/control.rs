//! Where running machines can be found and spoken to: one named pipe each, and a file by its name in a folder, for not every
//! NT lists its pipes. Both go with the machine's process.
//!
//! Every user of this Windows can make pipes and files by our names. So nobody is asked whose pipe does not belong to this user, the
//! administrators or the system, and who is asked cannot act in the asking user's name.

use std::ffi::OsString;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::os::windows::fs::OpenOptionsExt;
use std::os::windows::io::AsHandle;
use std::os::windows::io::AsRawHandle;
use std::os::windows::io::FromRawHandle;
use std::path::Path;
use std::path::PathBuf;
use std::ptr;
use std::time::Duration;
use std::time::Instant;

use windows_sys::Win32::Foundation::ERROR_ACCESS_DENIED;
use windows_sys::Win32::Foundation::ERROR_PIPE_BUSY;
use windows_sys::Win32::Foundation::ERROR_PIPE_CONNECTED;
use windows_sys::Win32::Foundation::FALSE;
use windows_sys::Win32::Foundation::GENERIC_READ;
use windows_sys::Win32::Foundation::GENERIC_WRITE;
use windows_sys::Win32::Foundation::HANDLE;
use windows_sys::Win32::Foundation::INVALID_HANDLE_VALUE;
use windows_sys::Win32::Foundation::LocalFree;
use windows_sys::Win32::Security::Authorization::ConvertSidToStringSidW;
use windows_sys::Win32::Security::Authorization::ConvertStringSecurityDescriptorToSecurityDescriptorW;
use windows_sys::Win32::Security::Authorization::GetSecurityInfo;
use windows_sys::Win32::Security::Authorization::SDDL_REVISION_1;
use windows_sys::Win32::Security::Authorization::SE_KERNEL_OBJECT;
use windows_sys::Win32::Security::EqualSid;
use windows_sys::Win32::Security::GetTokenInformation;
use windows_sys::Win32::Security::IsWellKnownSid;
use windows_sys::Win32::Security::OWNER_SECURITY_INFORMATION;
use windows_sys::Win32::Security::PSECURITY_DESCRIPTOR;
use windows_sys::Win32::Security::PSID;
use windows_sys::Win32::Security::SECURITY_ATTRIBUTES;
use windows_sys::Win32::Security::SECURITY_MAX_SID_SIZE;
use windows_sys::Win32::Security::TOKEN_QUERY;
use windows_sys::Win32::Security::TOKEN_USER;
use windows_sys::Win32::Security::TokenUser;
use windows_sys::Win32::Security::WinBuiltinAdministratorsSid;
use windows_sys::Win32::Security::WinLocalSystemSid;
use windows_sys::Win32::Storage::FileSystem::CreateFileW;
use windows_sys::Win32::Storage::FileSystem::DELETE;
use windows_sys::Win32::Storage::FileSystem::FILE_FLAG_DELETE_ON_CLOSE;
use windows_sys::Win32::Storage::FileSystem::FILE_FLAG_FIRST_PIPE_INSTANCE;
use windows_sys::Win32::Storage::FileSystem::FILE_FLAG_OVERLAPPED;
use windows_sys::Win32::Storage::FileSystem::FILE_SHARE_DELETE;
use windows_sys::Win32::Storage::FileSystem::FILE_SHARE_READ;
use windows_sys::Win32::Storage::FileSystem::OPEN_EXISTING;
use windows_sys::Win32::Storage::FileSystem::PIPE_ACCESS_DUPLEX;
use windows_sys::Win32::Storage::FileSystem::READ_CONTROL;
use windows_sys::Win32::Storage::FileSystem::ReadFile;
use windows_sys::Win32::Storage::FileSystem::SECURITY_IDENTIFICATION;
use windows_sys::Win32::Storage::FileSystem::SECURITY_SQOS_PRESENT;
use windows_sys::Win32::Storage::FileSystem::WriteFile;
use windows_sys::Win32::System::Pipes::ConnectNamedPipe;
use windows_sys::Win32::System::Pipes::CreateNamedPipeW;
use windows_sys::Win32::System::Pipes::DisconnectNamedPipe;
use windows_sys::Win32::System::Pipes::PIPE_READMODE_BYTE;
use windows_sys::Win32::System::Pipes::PIPE_TYPE_BYTE;
use windows_sys::Win32::System::Pipes::PIPE_WAIT;
use windows_sys::Win32::System::Pipes::WaitNamedPipeW;
use windows_sys::Win32::System::Threading::GetCurrentProcess;
use windows_sys::Win32::System::Threading::OpenProcessToken;

use super::overlapped;
use super::wide::check;
use super::wide::milliseconds;
use super::wide::wide;
use crate::sys::folder::files;

/// How long the other side may take for a line.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest line.
const MAX_LINE: usize = 64 << 10;
/// Bytes that a pipe holds on their way.
const BUFFER: u32 = 4 << 10;
/// How our pipes' names begin.
const PREFIX: &str = r"\\.\pipe\covisor.";
/// How the files' names end.
const SUFFIX: &str = "machine";

/// The folder of the files: one for all users, whose pipes tell them apart.
#[must_use]
pub fn folder() -> PathBuf {
    if let Some(folder) = std::env::var_os("COVISOR_RUNTIME_DIR") {
        return folder.into();
    }
    std::env::var_os("ALLUSERSPROFILE").map_or_else(std::env::temp_dir, PathBuf::from).join("covisor")
}

/// A machine's place in the folder, which goes when this is dropped, or its process ends in any way.
#[derive(Debug)]
pub struct Registration {
    _file: File,
}

/// What a machine hears requests by.
#[derive(Debug)]
pub struct Listener {
    pipe: File,
}

/// Makes the pipe for a machine's name. `None` when a machine of this name runs.
///
/// # Errors
/// What the host says.
pub fn register(folder: &Path, name: &str) -> io::Result<Option<(Registration, Listener)>> {
    fs::create_dir_all(folder)?;
    let path = wide(pipe_of(&socket(folder, name)));
    // It is the user's own, for the user, administrators and the system, and for nobody over the network.
    let user = User::current()?.text()?;
    let descriptor = Descriptor::parse(&format!("O:{user}D:P(D;;GA;;;NU)(A;;GA;;;SY)(A;;GA;;;BA)(A;;GA;;;{user})"))?;
    let attributes = SECURITY_ATTRIBUTES {
        nLength: u32::try_from(size_of::<SECURITY_ATTRIBUTES>()).unwrap_or(0),
        lpSecurityDescriptor: descriptor.0,
        bInheritHandle: FALSE,
    };
    // SAFETY: the name ends with a zero, and name and attributes are there during the call.
    let handle = unsafe {
        CreateNamedPipeW(
            path.as_ptr(),
            PIPE_ACCESS_DUPLEX | FILE_FLAG_FIRST_PIPE_INSTANCE | FILE_FLAG_OVERLAPPED,
            PIPE_TYPE_BYTE | PIPE_READMODE_BYTE | PIPE_WAIT,
            1,
            BUFFER,
            BUFFER,
            0,
            &raw const attributes,
        )
    };
    match own(handle) {
        Ok(pipe) => {
            let mut options = OpenOptions::new();
            options.write(true).create(true).share_mode(FILE_SHARE_READ | FILE_SHARE_DELETE);
            let file = options.custom_flags(FILE_FLAG_DELETE_ON_CLOSE).access_mode(GENERIC_WRITE | DELETE);
            Ok(Some((Registration { _file: file.open(socket(folder, name))? }, Listener { pipe })))
        }
        // A first instance is refused so when there is one.
        Err(error) if is(&error, ERROR_ACCESS_DENIED) || is(&error, ERROR_PIPE_BUSY) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Listener {
    /// Answers one request after another, for ever.
    pub fn serve(&self, mut answer: impl FnMut(&str) -> String) {
        loop {
            // SAFETY: the call has no data.
            let connected =
                unsafe { overlapped::call(self.pipe.as_handle(), None, |pipe, state| ConnectNamedPipe(pipe, state)) };
            match connected {
                Ok(_) => {}
                Err(error) if is(&error, ERROR_PIPE_CONNECTED) => {}
                // Somebody came and went.
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
            // A client that goes away in the middle is no concern of the machine.
            let _ = read_line(&self.pipe).and_then(|line| {
                write_line(&self.pipe, &answer(&line))?;
                // What is not read yet would go with the connection: its other end says when it has all, by closing.
                read_line(&self.pipe).map(drop)
            });
            // SAFETY: the handle is a pipe's.
            unsafe { DisconnectNamedPipe(self.pipe.as_raw_handle()) };
        }
    }
}

/// The file of the machine with this name.
#[must_use]
pub fn socket(folder: &Path, name: &str) -> PathBuf {
    folder.join(name).with_added_extension(SUFFIX)
}

/// The pipe of the machine with this file.
fn pipe_of(path: &Path) -> OsString {
    let mut pipe = OsString::from(PREFIX);
    pipe.push(path.file_stem().unwrap_or_default());
    pipe
}

/// Asks a machine, and gives its answer.
///
/// # Errors
/// When it does not run or does not answer.
pub fn ask(path: &Path, request: &str) -> io::Result<String> {
    let pipe = connect(path)?;
    if !is_trusted(&pipe)? {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    write_line(&pipe, request)?;
    read_line(&pipe)
}

/// The files in the folder.
#[must_use]
pub fn sockets(folder: &Path) -> Vec<PathBuf> {
    files(folder, SUFFIX)
}

/// Takes away a file whose machine is gone.
pub fn forget(path: &Path) {
    let _ = fs::remove_file(path);
}

fn is(error: &io::Error, code: u32) -> bool {
    error.raw_os_error() == Some(code.cast_signed())
}

/// Takes a handle that was just made.
fn own(handle: HANDLE) -> io::Result<File> {
    if handle == INVALID_HANDLE_VALUE {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the handle is new and nobody else's.
    Ok(unsafe { File::from_raw_handle(handle) })
}

/// Opens a pipe, once those before are through.
fn connect(path: &Path) -> io::Result<File> {
    let path = wide(pipe_of(path));
    let deadline = Instant::now() + PATIENCE;
    loop {
        // SAFETY: the name ends with a zero and is there during the call.
        let handle = unsafe {
            CreateFileW(
                path.as_ptr(),
                GENERIC_READ | GENERIC_WRITE | READ_CONTROL,
                0,
                ptr::null(),
                OPEN_EXISTING,
                FILE_FLAG_OVERLAPPED | SECURITY_SQOS_PRESENT | SECURITY_IDENTIFICATION,
                ptr::null_mut(),
            )
        };
        match own(handle) {
            Err(error) if is(&error, ERROR_PIPE_BUSY) && Instant::now() < deadline => {
                let left = deadline.saturating_duration_since(Instant::now());
                // SAFETY: as above. Its failure shows at the next attempt.
                unsafe { WaitNamedPipeW(path.as_ptr(), milliseconds(Some(left))) };
            }
            result => return result,
        }
    }
}

/// Whether a pipe belongs to this user, the administrators or the system.
fn is_trusted(pipe: &File) -> io::Result<bool> {
    let mut owner: PSID = ptr::null_mut();
    let mut descriptor: PSECURITY_DESCRIPTOR = ptr::null_mut();
    // SAFETY: the handle is open, and the pointers are to variables. The owner points into the descriptor.
    let error = unsafe {
        GetSecurityInfo(
            pipe.as_raw_handle(),
            SE_KERNEL_OBJECT,
            OWNER_SECURITY_INFORMATION,
            &raw mut owner,
            ptr::null_mut(),
            ptr::null_mut(),
            ptr::null_mut(),
            &raw mut descriptor,
        )
    };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error.cast_signed()));
    }
    let _descriptor = Descriptor(descriptor);
    if owner.is_null() {
        return Ok(false);
    }
    let user = User::current()?;
    // SAFETY: both SIDs are valid, and there while they are compared.
    Ok(unsafe {
        EqualSid(owner, user.sid()) != FALSE
            || IsWellKnownSid(owner, WinBuiltinAdministratorsSid) != FALSE
            || IsWellKnownSid(owner, WinLocalSystemSid) != FALSE
    })
}

/// Bytes of what the system tells of a user: a structure with a SID behind it.
const USER_SIZE: usize = size_of::<TOKEN_USER>() + SECURITY_MAX_SID_SIZE as usize;

/// The user that this process runs for. On the heap, for the structure points into itself.
struct User(Box<[u64; USER_SIZE.div_ceil(8)]>);

impl User {
    fn current() -> io::Result<Self> {
        let mut token = ptr::null_mut();
        // SAFETY: the first handle means this process, and the pointer is to a variable.
        check(unsafe { OpenProcessToken(GetCurrentProcess(), TOKEN_QUERY, &raw mut token) })?;
        let token = own(token)?;
        let mut user = Box::new([0_u64; USER_SIZE.div_ceil(8)]);
        let mut size = u32::try_from(size_of_val(&*user)).unwrap_or(0);
        // SAFETY: the buffer is as long as is said and aligned for the structure.
        check(unsafe {
            let buffer = user.as_mut_ptr().cast();
            GetTokenInformation(token.as_raw_handle(), TokenUser, buffer, size, &raw mut size)
        })?;
        Ok(Self(user))
    }

    /// Valid as long as this lives.
    fn sid(&self) -> PSID {
        // SAFETY: the system has put this structure there.
        unsafe { (*self.0.as_ptr().cast::<TOKEN_USER>()).User.Sid }
    }

    /// The SID as descriptors have it in text.
    fn text(&self) -> io::Result<String> {
        let mut text = ptr::null_mut();
        // SAFETY: the SID is valid, and the pointer is to a variable.
        check(unsafe { ConvertSidToStringSidW(self.sid(), &raw mut text) })?;
        // SAFETY: the text ends with a zero, up to which it is read; then it is freed as its maker says.
        unsafe {
            let length = (0..).take_while(|&index| *text.wrapping_add(index) != 0).count();
            let sid = String::from_utf16_lossy(std::slice::from_raw_parts(text, length));
            LocalFree(text.cast());
            Ok(sid)
        }
    }
}

/// A security descriptor of the system's heap.
struct Descriptor(PSECURITY_DESCRIPTOR);

impl Descriptor {
    fn parse(text: &str) -> io::Result<Self> {
        let text = wide(text);
        let mut descriptor = ptr::null_mut();
        // SAFETY: the text ends with a zero, and the pointer is to a variable.
        check(unsafe {
            ConvertStringSecurityDescriptorToSecurityDescriptorW(
                text.as_ptr(),
                SDDL_REVISION_1,
                &raw mut descriptor,
                ptr::null_mut(),
            )
        })?;
        Ok(Self(descriptor))
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: what made the descriptor says that it is freed so.
        unsafe { LocalFree(self.0) };
    }
}

fn read_line(pipe: &File) -> io::Result<String> {
    let deadline = Instant::now() + PATIENCE;
    let mut line = Vec::new();
    while line.len() < MAX_LINE {
        let mut bytes = [0_u8; 1024];
        let (start, length) = (bytes.as_mut_ptr(), 1024);
        let left = deadline.saturating_duration_since(Instant::now());
        // SAFETY: the array is there until the call is over, as long as it is told.
        let count = unsafe {
            overlapped::call(pipe.as_handle(), Some(left), |pipe, state| {
                ReadFile(pipe, start, length, ptr::null_mut(), state)
            })
        }?;
        if count == 0 {
            break;
        }
        line.extend_from_slice(&bytes[..count.min(bytes.len())]);
        if line.last() == Some(&b'\n') {
            line.pop();
            return String::from_utf8(line).map_err(|_| io::ErrorKind::InvalidData.into());
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

fn write_line(pipe: &File, line: &str) -> io::Result<()> {
    let line = format!("{line}\n");
    let mut rest = line.as_bytes();
    while !rest.is_empty() {
        let length = u32::try_from(rest.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let start = rest.as_ptr();
        // SAFETY: the line is there until the call is over, as long as it is told.
        let count = unsafe {
            overlapped::call(pipe.as_handle(), Some(PATIENCE), |pipe, state| {
                WriteFile(pipe, start, length, ptr::null_mut(), state)
            })
        }?;
        rest = rest.get(count.max(1)..).unwrap_or_default();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_a_machine_answers_and_its_name_is_taken() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("a folder, größer");
        let name = format!("test.{}", std::process::id());
        let (registration, listener) = register(&folder, &name).unwrap().unwrap();
        let path = socket(&folder, &name);
        std::thread::spawn(move || listener.serve(|line| format!("you said {line}")));
        for _ in 0..20 {
            assert_eq!(ask(&path, "hello").unwrap(), "you said hello");
        }
        assert!(register(&folder, &name).unwrap().is_none());
        assert_eq!(sockets(&folder), [path]);
        drop(registration);
        assert!(sockets(&folder).is_empty());
        assert!(ask(&socket(&folder, "nobody"), "hello").is_err());
    }
}
