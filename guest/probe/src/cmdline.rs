//! The command line: words `key=value`.

/// Longest command line that is kept, in bytes.
pub const MAX: usize = 512;

/// A command line.
#[derive(Clone, Copy, Debug)]
pub struct CommandLine {
    bytes: [u8; MAX],
    length: usize,
}

impl CommandLine {
    /// One without words.
    pub const EMPTY: Self = Self { bytes: [0; MAX], length: 0 };

    /// Takes bytes up to the first NUL; what is too long or no ASCII is dropped.
    pub fn from_bytes(bytes: impl Iterator<Item = u8>) -> Self {
        let mut line = Self::EMPTY;
        for (slot, byte) in line.bytes.iter_mut().zip(bytes.take_while(|byte| *byte != 0).filter(u8::is_ascii)) {
            *slot = byte;
            line.length += 1;
        }
        line
    }

    /// The text.
    #[must_use]
    pub fn text(&self) -> &str {
        self.bytes.get(..self.length).and_then(|bytes| core::str::from_utf8(bytes).ok()).unwrap_or_default()
    }

    /// The value of the last word `key=value`.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&str> {
        self.text()
            .split_ascii_whitespace()
            .rev()
            .filter_map(|word| word.split_once('='))
            .find(|(k, _)| *k == key)
            .map(|(_, v)| v)
    }

    /// The value of `key` as a number, decimal or `0x` hexadecimal.
    #[must_use]
    pub fn number(&self, key: &str) -> Option<u64> {
        let value = self.value(key)?;
        match value.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => value.parse().ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_words_are_found_and_the_last_one_counts() {
        let line = CommandLine::from_bytes(b"test=a quiet x=0x1f test=b n=12\0rest=1".iter().copied());
        assert_eq!(line.value("test"), Some("b"));
        assert_eq!(line.number("x"), Some(0x1f));
        assert_eq!(line.number("n"), Some(12));
        assert_eq!(line.number("test"), None);
        assert_eq!(line.value("rest"), None);
    }

    #[test]
    fn test_too_long_a_line_is_cut() {
        let line = CommandLine::from_bytes(core::iter::repeat_n(b'x', MAX + 10));
        assert_eq!(line.text().len(), MAX);
    }
}
