//! The host's end of the guest's console: escape keys going in, the last lines coming out.

use std::collections::VecDeque;
use std::io;
use std::io::Read;
use std::io::Write;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::mpsc::Sender;
use std::time::Duration;
use std::time::Instant;

use super::session::Event;
use crate::control::Bytes;
use crate::control::CONSOLE_PIECE;
use crate::control::ConsoleOutput;
use crate::control::ConsoleRequest;
use crate::control::TYPED_PIECE;
use crate::devices::pipe::HostInput;
use crate::devices::pipe::HostOutput;
use crate::platform::lock;
use crate::sys::terminal;

/// Who looks on, or waits for a command, asks more often than this.
pub(super) const LINGER: Duration = Duration::from_millis(400);
/// How many bytes of the console are kept, for messages and for who looks at it later.
const KEPT: usize = 256 << 10;
/// Control-A, which begins a command to covisor.
const PREFIX: u8 = 0x01;

/// What the keys typed at the console mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// A byte for the guest.
    Guest(u8),
    /// End the machine.
    Quit,
    /// Leave the console, and the machine running.
    Detach,
    /// Say which keys there are.
    Help,
}

/// Tells covisor's own keys from the guest's.
#[derive(Debug, Default)]
pub struct Escape {
    after_prefix: bool,
}

impl Escape {
    /// What a byte means. A prefix that begins no command of ours goes to the guest with what follows it.
    pub fn next(&mut self, byte: u8) -> [Option<Key>; 2] {
        if !std::mem::take(&mut self.after_prefix) {
            if byte == PREFIX {
                self.after_prefix = true;
                return [None, None];
            }
            return [Some(Key::Guest(byte)), None];
        }
        match byte {
            b'x' | b'X' => [Some(Key::Quit), None],
            b'd' | b'D' => [Some(Key::Detach), None],
            b'h' | b'H' | b'?' => [Some(Key::Help), None],
            PREFIX => [Some(Key::Guest(PREFIX)), None],
            other => [Some(Key::Guest(PREFIX)), Some(Key::Guest(other))],
        }
    }
}

impl Escape {
    /// What was typed for the guest, and the keys for covisor among it.
    pub fn sort(&mut self, typed: &[u8]) -> (Vec<u8>, Vec<Key>) {
        let (mut bytes, mut keys) = (Vec::with_capacity(typed.len() + 1), Vec::new());
        for key in typed.iter().flat_map(|&byte| self.next(byte)).flatten() {
            match key {
                Key::Guest(byte) => bytes.push(byte),
                key => keys.push(key),
            }
        }
        (bytes, keys)
    }
}

/// What [`Key::Help`] says.
pub(super) const HELP: &str =
    "keys: Ctrl-A x ends the machine, Ctrl-A Ctrl-A sends Ctrl-A to the guest, Ctrl-A h shows this";

/// The last bytes of the console.
#[derive(Debug)]
pub struct Tail {
    bytes: VecDeque<u8>,
    capacity: usize,
    /// How many came in all.
    total: u64,
}

impl Tail {
    /// Keeps so many bytes.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { bytes: VecDeque::new(), capacity, total: 0 }
    }

    /// Adds bytes and forgets the oldest.
    pub fn push(&mut self, bytes: &[u8]) {
        self.total = self.total.saturating_add(bytes.len() as u64);
        let bytes = &bytes[bytes.len().saturating_sub(self.capacity)..];
        let excess = (self.bytes.len() + bytes.len()).saturating_sub(self.capacity);
        self.bytes.drain(..excess);
        self.bytes.extend(bytes);
    }

    /// At most `most` bytes from the one with the number `from` on, or from the oldest that is kept, and the first one's number.
    #[must_use]
    pub fn since(&self, from: u64, most: usize) -> (u64, Vec<u8>) {
        let oldest = self.total - self.bytes.len() as u64;
        let from = from.clamp(oldest, self.total);
        let skipped = usize::try_from(from - oldest).unwrap_or(usize::MAX);
        (from, self.bytes.iter().skip(skipped).take(most).copied().collect())
    }

    /// Whether nothing ever came.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The last lines, made safe for a terminal.
    #[must_use]
    pub fn lines(&self, count: usize) -> Vec<String> {
        let (head, tail) = self.bytes.as_slices();
        let text = [head, tail].concat();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<String> = text
            .split('\n')
            .map(|line| line.chars().filter(|c| !c.is_control() || *c == '\t').collect::<String>())
            .filter(|line| !line.trim().is_empty())
            .collect();
        lines[lines.len().saturating_sub(count)..].to_vec()
    }
}

/// Where the console's output goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sink {
    Stdout,
    Stderr,
    Nowhere,
}

/// The host's end of the console, the same over reboots.
pub(super) struct Console {
    tail: Mutex<Tail>,
    /// The same for the earliest messages, where they come elsewhere.
    early: Mutex<Tail>,
    sink: Sink,
    input: Mutex<Option<Arc<HostOutput>>>,
    /// When somebody asked last for what came.
    looked_at: Mutex<Option<Instant>>,
}

impl Console {
    /// A console of which nothing was said yet.
    pub(super) fn new(sink: Sink) -> Self {
        let kept = || Mutex::new(Tail::new(KEPT));
        Self { tail: kept(), early: kept(), sink, input: Mutex::new(None), looked_at: Mutex::new(None) }
    }

    /// Another machine's console begins: what is typed goes there.
    pub(super) fn connect(&self, input: HostOutput) {
        *lock(&self.input) = Some(Arc::new(input));
    }

    /// The machine is gone: nobody waits any more for it to take what was typed.
    pub(super) fn hang_up(&self) {
        if let Some(input) = lock(&self.input).as_ref() {
            input.close();
        }
    }

    /// Whether somebody looks on.
    pub(super) fn is_attended(&self) -> bool {
        lock(&self.looked_at).is_some_and(|last| last.elapsed() < LINGER)
    }

    /// Keeps the earliest messages until their device is gone.
    pub(super) fn keep_early(&self, output: &HostInput) {
        receive(output, |bytes| lock(&self.early).push(bytes));
    }

    /// Types, and gives what came, for somebody who looks at the console from elsewhere.
    pub(super) fn exchange(&self, request: &ConsoleRequest) -> ConsoleOutput {
        *lock(&self.looked_at) = Some(Instant::now());
        let typed = &request.typed.0[..request.typed.0.len().min(TYPED_PIECE)];
        let taken = lock(&self.input).as_ref().map_or(0, |input| input.send_now(typed));
        let (from, bytes) = lock(&self.tail).since(request.from, CONSOLE_PIECE);
        ConsoleOutput { from, bytes: Bytes(bytes), taken }
    }

    /// Copies a device's output until the device is gone.
    pub(super) fn copy(&self, output: &HostInput) {
        let mut broken = false;
        receive(output, |bytes| {
            lock(&self.tail).push(bytes);
            // A guest does not stop because nobody reads what it says.
            broken = broken
                || match self.sink {
                    Sink::Stdout => write(&mut terminal::stdout(), bytes),
                    Sink::Stderr => write(&mut terminal::stderr(), bytes),
                    Sink::Nowhere => Ok(()),
                }
                .is_err();
        });
    }

    /// Whether the guest ever said anything.
    pub(super) fn is_silent(&self) -> bool {
        lock(&self.tail).is_empty() && lock(&self.early).is_empty()
    }

    /// The last lines that were not shown: the console's, or where it said nothing the earliest messages.
    pub(super) fn unseen_lines(&self, count: usize) -> Vec<String> {
        let tail = lock(&self.tail);
        if tail.is_empty() {
            lock(&self.early).lines(count)
        } else if self.sink == Sink::Nowhere {
            tail.lines(count)
        } else {
            Vec::new()
        }
    }

    /// Gives the guest what comes on standard input, until its end. Keys of ours are told apart where somebody types.
    pub(super) fn read_keys(&self, stdin: &mut dyn Read, with_escape: bool, events: &Sender<Event>) {
        let mut escape = Escape::default();
        let mut buffer = [0; 1024];
        loop {
            let count = match stdin.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            let typed = &buffer[..count];
            let (bytes, keys) = if with_escape { escape.sort(typed) } else { (typed.to_vec(), Vec::new()) };
            keys.into_iter().for_each(|key| drop(events.send(Event::Key(key))));
            let input = lock(&self.input).clone();
            if let Some(input) = input {
                input.send(&bytes);
            }
        }
    }
}

/// Gives `take` what comes out of a device, until the device is gone.
fn receive(output: &HostInput, mut take: impl FnMut(&[u8])) {
    let mut buffer = [0; 4096];
    loop {
        match output.receive(&mut buffer) {
            0 => return,
            count => take(&buffer[..count]),
        }
    }
}

fn write(stream: &mut dyn Write, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes)?;
    stream.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(bytes: &[u8]) -> Vec<Key> {
        let mut escape = Escape::default();
        bytes.iter().flat_map(|&byte| escape.next(byte)).flatten().collect()
    }

    #[test]
    fn test_ordinary_keys_go_to_the_guest() {
        assert_eq!(keys(b"ax"), [Key::Guest(b'a'), Key::Guest(b'x')]);
    }

    #[test]
    fn test_control_a_begins_a_command() {
        assert_eq!(keys(b"\x01x"), [Key::Quit]);
        assert_eq!(keys(b"\x01h\x01d"), [Key::Help, Key::Detach]);
        assert_eq!(keys(b"\x01\x01x"), [Key::Guest(1), Key::Guest(b'x')]);
        assert_eq!(keys(b"\x01b"), [Key::Guest(1), Key::Guest(b'b')]);
    }

    #[test]
    fn test_the_tail_keeps_the_last_bytes() {
        let mut tail = Tail::new(8);
        assert!(tail.is_empty());
        tail.push(b"one\ntwo\n");
        tail.push(b"xyz\n");
        assert_eq!(tail.lines(5), ["two", "xyz"]);
        tail.push(b"a long piece of text");
        assert_eq!(tail.lines(5), [" of text"]);
    }

    #[test]
    fn test_who_comes_back_gets_what_came_meanwhile() {
        let mut tail = Tail::new(8);
        assert_eq!(tail.since(0, 10), (0, Vec::new()));
        tail.push(b"abcdef");
        assert_eq!(tail.since(2, 3), (2, b"cde".to_vec()));
        assert_eq!(tail.since(6, 3), (6, Vec::new()));
        tail.push(b"ghijkl");
        assert_eq!(tail.since(2, 3), (4, b"efg".to_vec()));
        assert_eq!(tail.since(11, 3), (11, b"l".to_vec()));
        // Of another machine by the same name.
        assert_eq!(tail.since(99, 3), (12, Vec::new()));
    }

    #[test]
    fn test_what_is_typed_elsewhere_is_taken_as_far_as_there_is_room() {
        let console = Console::new(Sink::Nowhere);
        let typed = |bytes: &[u8]| {
            let request = ConsoleRequest { typed: Bytes(bytes.to_vec()), ..ConsoleRequest::default() };
            console.exchange(&request).taken
        };
        assert_eq!(typed(b"nobody"), 0);
        let (output, input) = crate::devices::pipe::to_device(4, Arc::new(|| {}));
        console.connect(output);
        assert_eq!((typed(b"abc"), typed(b"def")), (3, 1));
        let mut bytes = [0; 8];
        assert_eq!((input.receive(&mut bytes), &bytes[..4]), (4, &b"abcd"[..]));
        console.hang_up();
        assert_eq!(typed(b"gone"), 4);
    }

    #[test]
    fn test_the_tails_lines_are_safe_to_show() {
        let mut tail = Tail::new(100);
        tail.push(b"\x1b[31mred\r\n\n\xff\xfe bytes\n");
        assert_eq!(tail.lines(5), ["[31mred", "\u{fffd}\u{fffd} bytes"]);
        assert_eq!(tail.lines(1), ["\u{fffd}\u{fffd} bytes"]);
    }
}
