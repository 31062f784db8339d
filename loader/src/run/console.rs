//! The host's end of the guest's console: escape keys going in, the last lines coming out.

use std::collections::VecDeque;

/// Control-A, which begins a command to covisor.
const PREFIX: u8 = 0x01;

/// What the keys typed at the console mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// A byte for the guest.
    Guest(u8),
    /// End the machine.
    Quit,
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
            b'h' | b'H' | b'?' => [Some(Key::Help), None],
            PREFIX => [Some(Key::Guest(PREFIX)), None],
            other => [Some(Key::Guest(PREFIX)), Some(Key::Guest(other))],
        }
    }
}

/// What [`Key::Help`] says.
pub(super) const HELP: &str =
    "keys: Ctrl-A x ends the machine, Ctrl-A Ctrl-A sends Ctrl-A to the guest, Ctrl-A h shows this";

/// The last bytes of the console, for messages about a guest that went wrong.
#[derive(Debug)]
pub struct Tail {
    bytes: VecDeque<u8>,
    capacity: usize,
}

impl Tail {
    /// Keeps so many bytes.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { bytes: VecDeque::new(), capacity }
    }

    /// Adds bytes and forgets the oldest.
    pub fn push(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(self.capacity)..];
        let excess = (self.bytes.len() + bytes.len()).saturating_sub(self.capacity);
        self.bytes.drain(..excess);
        self.bytes.extend(bytes);
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
        assert_eq!(keys(b"\x01h"), [Key::Help]);
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
    fn test_the_tails_lines_are_safe_to_show() {
        let mut tail = Tail::new(100);
        tail.push(b"\x1b[31mred\r\n\n\xff\xfe bytes\n");
        assert_eq!(tail.lines(5), ["[31mred", "\u{fffd}\u{fffd} bytes"]);
        assert_eq!(tail.lines(1), ["\u{fffd}\u{fffd} bytes"]);
    }
}
