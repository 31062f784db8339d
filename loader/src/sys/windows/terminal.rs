//! The console that the guest's console is attached to.

use std::io;
use std::io::Read;
use std::io::Write;
use std::os::windows::io::AsRawHandle;
use std::sync::Mutex;
use std::sync::PoisonError;

use windows_sys::Win32::Foundation::HANDLE;
use windows_sys::Win32::System::Console::CONSOLE_MODE;
use windows_sys::Win32::System::Console::CONSOLE_SCREEN_BUFFER_INFO;
use windows_sys::Win32::System::Console::DISABLE_NEWLINE_AUTO_RETURN;
use windows_sys::Win32::System::Console::ENABLE_ECHO_INPUT;
use windows_sys::Win32::System::Console::ENABLE_LINE_INPUT;
use windows_sys::Win32::System::Console::ENABLE_MOUSE_INPUT;
use windows_sys::Win32::System::Console::ENABLE_PROCESSED_INPUT;
use windows_sys::Win32::System::Console::ENABLE_PROCESSED_OUTPUT;
use windows_sys::Win32::System::Console::ENABLE_VIRTUAL_TERMINAL_INPUT;
use windows_sys::Win32::System::Console::ENABLE_VIRTUAL_TERMINAL_PROCESSING;
use windows_sys::Win32::System::Console::ENABLE_WINDOW_INPUT;
use windows_sys::Win32::System::Console::GetConsoleMode;
use windows_sys::Win32::System::Console::GetConsoleScreenBufferInfo;
use windows_sys::Win32::System::Console::INPUT_RECORD;
use windows_sys::Win32::System::Console::KEY_EVENT;
use windows_sys::Win32::System::Console::ReadConsoleInputW;
use windows_sys::Win32::System::Console::SetConsoleMode;
use windows_sys::Win32::System::Console::WriteConsoleW;

use super::wide::check;
use crate::sys::nt::keys::KeyEvent;
use crate::sys::nt::keys::Keys;
use crate::sys::nt::text::Text;

/// The modes to go back to, while the console is raw: of input and output.
static SAVED: Mutex<Option<(CONSOLE_MODE, Option<CONSOLE_MODE>)>> = Mutex::new(None);
/// What is on its way to the console.
static STDOUT: Mutex<Option<Text>> = Mutex::new(None);
static STDERR: Mutex<Option<Text>> = Mutex::new(None);
/// Most events that are taken at once.
const EVENTS: usize = 64;
/// Most UTF-16 units of one call: old consoles take no more than about 64 KiB.
const UNITS: usize = 8 << 10;

/// The mode of a console; `None` when the handle is none's.
fn mode(handle: HANDLE) -> Option<CONSOLE_MODE> {
    let mut mode = 0;
    // SAFETY: writes to where the pointer says; any handle may be asked.
    (unsafe { GetConsoleMode(handle, &raw mut mode) } != 0).then_some(mode)
}

fn set_mode(handle: HANDLE, mode: CONSOLE_MODE) -> io::Result<()> {
    // SAFETY: any handle may be asked.
    check(unsafe { SetConsoleMode(handle, mode) })
}

fn input_handle() -> HANDLE {
    io::stdin().as_raw_handle()
}

fn output_handle() -> HANDLE {
    io::stdout().as_raw_handle()
}

/// Whether standard input is a console.
#[must_use]
pub fn stdin_is_terminal() -> bool {
    mode(input_handle()).is_some()
}

/// Whether the console is raw now.
#[must_use]
pub fn is_raw() -> bool {
    SAVED.lock().unwrap_or_else(PoisonError::into_inner).is_some()
}

/// Whether standard output is a console.
#[must_use]
pub fn stdout_is_terminal() -> bool {
    mode(output_handle()).is_some()
}

/// While this lives, standard input gives every key as it comes, Ctrl-C among them, nothing is echoed, and where the console
/// knows escape sequences it acts on them.
#[derive(Debug)]
pub struct RawMode(());

impl RawMode {
    /// Makes the console raw.
    ///
    /// # Errors
    /// What the host says.
    pub fn enter() -> io::Result<Self> {
        let (input, output) = (input_handle(), output_handle());
        let before = mode(input).ok_or(io::ErrorKind::Unsupported)?;
        let output_before = mode(output);
        *SAVED.lock().unwrap_or_else(PoisonError::into_inner) = Some((before, output_before));
        let cooked = ENABLE_PROCESSED_INPUT
            | ENABLE_LINE_INPUT
            | ENABLE_ECHO_INPUT
            | ENABLE_MOUSE_INPUT
            | ENABLE_WINDOW_INPUT
            | ENABLE_VIRTUAL_TERMINAL_INPUT;
        let raw = before & !cooked;
        // Windows 10 makes the sequences of keys itself, before that we do.
        set_mode(input, raw | ENABLE_VIRTUAL_TERMINAL_INPUT).or_else(|_| set_mode(input, raw))?;
        if let Some(before) = output_before {
            let sequences = before | ENABLE_PROCESSED_OUTPUT | ENABLE_VIRTUAL_TERMINAL_PROCESSING;
            // A console that knows neither shows the text without sequences.
            _ = set_mode(output, sequences | DISABLE_NEWLINE_AUTO_RETURN).or_else(|_| set_mode(output, sequences));
        }
        Ok(Self(()))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the console back as it was. Does nothing when it is not raw, so every way out of the program may call it.
pub fn restore() {
    if let Some((input, output)) = SAVED.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // A console that went away needs no modes.
        _ = set_mode(input_handle(), input);
        if let Some(output) = output {
            _ = set_mode(output_handle(), output);
        }
    }
}

/// The size of the window on standard output: columns and rows.
#[must_use]
pub fn size() -> Option<(u16, u16)> {
    let mut info = CONSOLE_SCREEN_BUFFER_INFO::default();
    // SAFETY: fills the structure that it is given; any handle may be asked.
    if unsafe { GetConsoleScreenBufferInfo(output_handle(), &raw mut info) } == 0 {
        return None;
    }
    let length = |first: i16, last: i16| u16::try_from(i32::from(last) - i32::from(first) + 1).ok();
    let size = (length(info.srWindow.Left, info.srWindow.Right)?, length(info.srWindow.Top, info.srWindow.Bottom)?);
    (size.0 != 0 && size.1 != 0).then_some(size)
}

/// What is typed, or comes on standard input that is no console.
pub fn input() -> impl Read {
    let keys = is_raw().then(Typed::default);
    Input { keys }
}

/// Standard input.
struct Input {
    /// Of a console that is raw.
    keys: Option<Typed>,
}

#[derive(Default)]
struct Typed {
    keys: Keys,
    /// What did not fit.
    rest: Vec<u8>,
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(typed) = &mut self.keys else { return io::stdin().read(buffer) };
        while typed.rest.is_empty() {
            typed.take_events()?;
        }
        let count = typed.rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&typed.rest[..count]);
        typed.rest.drain(..count);
        Ok(count)
    }
}

impl Typed {
    /// Waits for events, and keeps the bytes of those that are keys.
    fn take_events(&mut self) -> io::Result<()> {
        let mut records = [INPUT_RECORD::default(); EVENTS];
        let mut count = 0;
        let room = u32::try_from(records.len()).unwrap_or(0);
        // SAFETY: the pointer and length are those of the array.
        check(unsafe { ReadConsoleInputW(input_handle(), records.as_mut_ptr(), room, &raw mut count) })?;
        for record in records.iter().take(count as usize).filter(|record| u32::from(record.EventType) == KEY_EVENT) {
            // SAFETY: the type says which of the union's parts it is; of the character, Windows' wide functions set the unit.
            let (key, unit) = unsafe { (record.Event.KeyEvent, record.Event.KeyEvent.uChar.UnicodeChar) };
            let event = KeyEvent {
                down: key.bKeyDown != 0,
                repeat: key.wRepeatCount,
                key: key.wVirtualKeyCode,
                unit,
                state: key.dwControlKeyState,
            };
            self.keys.push(event, &mut self.rest);
        }
        Ok(())
    }
}

/// Standard output, for the bytes of a guest.
pub fn stdout() -> impl Write {
    Output { handle: io::stdout().as_raw_handle(), text: &STDOUT, plain: io::stdout() }
}

/// Standard error, for the bytes of a guest.
pub fn stderr() -> impl Write {
    Output { handle: io::stderr().as_raw_handle(), text: &STDERR, plain: io::stderr() }
}

/// A standard stream: a console gets text, everything else the bytes.
struct Output<W> {
    handle: HANDLE,
    text: &'static Mutex<Option<Text>>,
    plain: W,
}

impl<W: Write> Write for Output<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(mode) = mode(self.handle) else { return self.plain.write(bytes) };
        let mut text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        let text = text.get_or_insert_with(|| Text::new(mode & ENABLE_VIRTUAL_TERMINAL_PROCESSING != 0));
        for mut units in text.push(bytes).chunks(UNITS) {
            while !units.is_empty() {
                let mut count = 0;
                let length = u32::try_from(units.len()).unwrap_or(u32::MAX);
                // SAFETY: the pointer and length are those of the slice.
                check(unsafe { WriteConsoleW(self.handle, units.as_ptr(), length, &raw mut count, std::ptr::null()) })?;
                units = units.get(count.max(1) as usize..).unwrap_or_default();
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.plain.flush()
    }
}
