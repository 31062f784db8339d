//! Messages are built on the stack: there may be no memory, and no right to ask for any.

use core::fmt;

/// A line of text; what does not fit is cut off.
pub(crate) struct Text {
    bytes: [u8; Self::LIMIT],
    length: usize,
}

impl Text {
    /// Bytes that fit.
    const LIMIT: usize = 256;

    /// The arguments as text.
    pub(crate) fn new(arguments: fmt::Arguments<'_>) -> Self {
        let mut text = Self { bytes: [0; Self::LIMIT], length: 0 };
        // Fails when the text was cut, or when a value cannot show itself: the part that is there is shown.
        let _ = fmt::Write::write_fmt(&mut text, arguments);
        text
    }

    /// Its bytes.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let room = Self::LIMIT - self.length;
        let fits = part.floor_char_boundary(room);
        self.bytes[self.length..self.length + fits].copy_from_slice(&part.as_bytes()[..fits]);
        self.length += fits;
        if fits == part.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_text_is_kept() {
        assert_eq!(Text::new(format_args!("{} of {}", 1, 2)).as_bytes(), b"1 of 2");
    }

    #[test]
    fn test_too_much_text_is_cut_between_characters() {
        let long = "é".repeat(200);
        let text = Text::new(format_args!("x{long}"));
        assert_eq!(text.as_bytes().len(), 255);
        assert!(core::str::from_utf8(text.as_bytes()).is_ok());
    }
}
