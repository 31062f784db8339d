//! From a guest's bytes to what a Windows console shows: UTF-16, and where it knows no escape sequences, without them.

use std::str;

/// A stream of bytes on its way to a console.
#[derive(Debug)]
pub(in crate::sys) struct Text {
    /// The begin of a character whose end has not come yet.
    partial: Vec<u8>,
    /// Takes escape sequences out.
    plain: Option<Plain>,
}

impl Text {
    /// A stream to a console that knows escape sequences, or does not.
    pub(in crate::sys) const fn new(knows_sequences: bool) -> Self {
        Self { partial: Vec::new(), plain: if knows_sequences { None } else { Some(Plain::Text) } }
    }

    /// The text that `bytes` add. What is no UTF-8 shows as replacement characters.
    pub(in crate::sys) fn push(&mut self, bytes: &[u8]) -> Vec<u16> {
        self.partial.extend_from_slice(bytes);
        let all = std::mem::take(&mut self.partial);
        let mut rest = all.as_slice();
        let mut units = Vec::with_capacity(rest.len());
        loop {
            match str::from_utf8(rest) {
                Ok(text) => {
                    self.put(text, &mut units);
                    return units;
                }
                Err(error) => {
                    let (good, bad) = rest.split_at(error.valid_up_to());
                    // Checked right above.
                    self.put(str::from_utf8(good).unwrap_or_default(), &mut units);
                    let Some(length) = error.error_len() else {
                        self.partial = bad.to_vec();
                        return units;
                    };
                    self.put("\u{fffd}", &mut units);
                    rest = &bad[length..];
                }
            }
        }
    }

    fn put(&mut self, text: &str, units: &mut Vec<u16>) {
        match &mut self.plain {
            None => units.extend(text.encode_utf16()),
            Some(plain) => {
                let mut buffer = [0; 2];
                for character in text.chars().filter(|&character| plain.keeps(character)) {
                    units.extend_from_slice(character.encode_utf16(&mut buffer));
                }
            }
        }
    }
}

/// Where in an escape sequence (ECMA-48) a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plain {
    /// In none.
    Text,
    /// After ESC.
    Escape,
    /// After ESC and an intermediate character, as of a character set.
    Intermediate,
    /// In a control sequence.
    Control,
    /// In a string, as a window's title.
    String,
    /// After ESC in a string.
    StringEscape,
}

impl Plain {
    /// Whether a character is text.
    fn keeps(&mut self, character: char) -> bool {
        let (next, keeps) = match (*self, character) {
            (Self::String, '\x07') => (Self::Text, false),
            (Self::String, '\x1b') => (Self::StringEscape, false),
            (Self::String, _) => (Self::String, false),
            (Self::StringEscape, _) => (Self::Text, false),
            (_, '\x1b') => (Self::Escape, false),
            (Self::Text, character) => (Self::Text, !character.is_control() || "\t\n\r\x08".contains(character)),
            (Self::Escape, '[') => (Self::Control, false),
            (Self::Escape, ']' | 'P' | 'X' | '^' | '_') => (Self::String, false),
            (Self::Escape | Self::Intermediate, ' '..='/') => (Self::Intermediate, false),
            (Self::Escape | Self::Intermediate, _) => (Self::Text, false),
            (Self::Control, '@'..='~') => (Self::Text, false),
            (Self::Control, _) => (Self::Control, false),
        };
        *self = next;
        keeps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &mut Text, bytes: &[u8]) -> String {
        String::from_utf16(&text.push(bytes)).unwrap()
    }

    #[test]
    fn test_characters_may_come_in_pieces() {
        let mut text = Text::new(true);
        assert_eq!(shown(&mut text, b"a\xe2\x82"), "a");
        assert_eq!(shown(&mut text, b"\xac\xf0\x9f\x98"), "€");
        assert_eq!(shown(&mut text, b"\x80\n"), "😀\n");
    }

    #[test]
    fn test_what_is_no_text_is_replaced() {
        let mut text = Text::new(true);
        assert_eq!(shown(&mut text, b"a\xffb\xe2\x82c"), "a\u{fffd}b\u{fffd}c");
    }

    #[test]
    fn test_sequences_go_where_the_console_knows_them() {
        assert_eq!(shown(&mut Text::new(true), b"\x1b[31mred\x1b[0m"), "\x1b[31mred\x1b[0m");
    }

    #[test]
    fn test_sequences_are_taken_out_elsewhere() {
        let mut text = Text::new(false);
        assert_eq!(shown(&mut text, b"\x1b[1;31mred\x1b[0m \x1b]0;title\x07ok\x1b(B\x07\r\n"), "red ok\r\n");
        assert_eq!(shown(&mut text, b"a\x1b["), "a");
        assert_eq!(shown(&mut text, b"2Jb\x1b]0;t\x1b\\c\x1b7d"), "bcd");
    }
}
