//! From the key events of a Windows console to the bytes that a terminal sends.

/// The right and the left Alt key (`KEY_EVENT_RECORD::dwControlKeyState`).
const RIGHT_ALT: u32 = 1;
const LEFT_ALT: u32 = 2;
/// Either Ctrl key.
const CTRL: u32 = 4 | 8;
/// Shift.
const SHIFT: u32 = 0x10;

/// Virtual keys (`WinUser.h`).
const BACK: u16 = 0x08;
const ALT: u16 = 0x12;
const PAGE_UP: u16 = 0x21;
const PAGE_DOWN: u16 = 0x22;
const END: u16 = 0x23;
const HOME: u16 = 0x24;
const LEFT: u16 = 0x25;
const UP: u16 = 0x26;
const RIGHT: u16 = 0x27;
const DOWN: u16 = 0x28;
const INSERT: u16 = 0x2d;
const DELETE: u16 = 0x2e;
const F1: u16 = 0x70;
const F4: u16 = 0x73;
const F5: u16 = 0x74;
const F12: u16 = 0x7b;

/// xterm's numbers of F5 to F12.
const FUNCTION_KEYS: [u8; 8] = [15, 17, 18, 19, 20, 21, 23, 24];
const ESCAPE: u8 = 0x1b;
/// What the Backspace key of a terminal sends.
const RUBOUT: u8 = 0x7f;

/// A key event.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::sys) struct KeyEvent {
    /// Pressed, not released.
    pub(in crate::sys) down: bool,
    /// How often.
    pub(in crate::sys) repeat: u16,
    /// The virtual key.
    pub(in crate::sys) key: u16,
    /// The UTF-16 unit that it means, or 0.
    pub(in crate::sys) unit: u16,
    /// Modifiers.
    pub(in crate::sys) state: u32,
}

/// Makes bytes of key events. Where the console makes escape sequences itself, their characters come through as they are.
#[derive(Debug, Default)]
pub(in crate::sys) struct Keys {
    /// The first half of a surrogate pair.
    high: Option<u16>,
}

impl Keys {
    /// Adds an event's bytes to `bytes`.
    pub(in crate::sys) fn push(&mut self, event: KeyEvent, bytes: &mut Vec<u8>) {
        // A character typed by its number comes with the release of Alt.
        if !event.down && (event.key != ALT || event.unit == 0) {
            return;
        }
        for _ in 0..event.repeat.max(1) {
            if event.unit == 0 {
                sequence(event, bytes);
            } else {
                self.character(event, bytes);
            }
        }
    }

    fn character(&mut self, event: KeyEvent, bytes: &mut Vec<u8>) {
        let units = self.high.take().into_iter().chain([event.unit]);
        match char::decode_utf16(units).next() {
            Some(Ok(character)) => {
                // AltGr, which is Ctrl and the right Alt, chooses characters; Alt alone is a terminal's Meta.
                let meta = event.down
                    && event.state & (LEFT_ALT | RIGHT_ALT) != 0
                    && !(event.state & RIGHT_ALT != 0 && event.state & CTRL != 0);
                if meta {
                    bytes.push(ESCAPE);
                }
                if event.key == BACK && event.unit == 8 {
                    bytes.push(RUBOUT);
                } else {
                    bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                }
            }
            Some(Err(error)) if (0xd800..0xdc00).contains(&error.unpaired_surrogate()) => {
                self.high = Some(event.unit);
            }
            // Half a character is none.
            _ => {}
        }
    }
}

/// xterm's sequence of a key without a character.
fn sequence(event: KeyEvent, bytes: &mut Vec<u8>) {
    let modifiers = u8::from(event.state & SHIFT != 0)
        + 2 * u8::from(event.state & (LEFT_ALT | RIGHT_ALT) != 0)
        + 4 * u8::from(event.state & CTRL != 0);
    let lettered = |letter: char| match modifiers {
        0 => format!("\x1b[{letter}"),
        modifiers => format!("\x1b[1;{}{letter}", modifiers + 1),
    };
    let numbered = |number: u8| match modifiers {
        0 => format!("\x1b[{number}~"),
        modifiers => format!("\x1b[{number};{}~", modifiers + 1),
    };
    let text = match event.key {
        UP => lettered('A'),
        DOWN => lettered('B'),
        RIGHT => lettered('C'),
        LEFT => lettered('D'),
        HOME => lettered('H'),
        END => lettered('F'),
        INSERT => numbered(2),
        DELETE => numbered(3),
        PAGE_UP => numbered(5),
        PAGE_DOWN => numbered(6),
        F1..=F4 => {
            let letter = ['P', 'Q', 'R', 'S'][usize::from(event.key - F1)];
            if modifiers == 0 { format!("\x1bO{letter}") } else { lettered(letter) }
        }
        F5..=F12 => numbered(FUNCTION_KEYS[usize::from(event.key - F5)]),
        _ => return,
    };
    bytes.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(events: &[KeyEvent]) -> Vec<u8> {
        let (mut keys, mut bytes) = (Keys::default(), Vec::new());
        events.iter().for_each(|&event| keys.push(event, &mut bytes));
        bytes
    }

    fn character(unit: u16) -> KeyEvent {
        KeyEvent { down: true, repeat: 1, unit, ..KeyEvent::default() }
    }

    fn key(key: u16, state: u32) -> KeyEvent {
        KeyEvent { down: true, repeat: 1, key, state, ..KeyEvent::default() }
    }

    #[test]
    fn test_characters_are_utf_8() {
        assert_eq!(typed(&[character(0x61), character(0xe4), character(0x20ac)]), "aä€".as_bytes());
        assert_eq!(typed(&[character(0xd83d), character(0xde00)]), "😀".as_bytes());
        assert_eq!(typed(&[character(0xde00), character(0x61)]), b"a");
        assert_eq!(typed(&[KeyEvent { repeat: 3, ..character(0x78) }]), b"xxx");
    }

    #[test]
    fn test_control_keys_are_the_guests() {
        assert_eq!(typed(&[KeyEvent { state: CTRL, key: 0x43, ..character(3) }]), [3]);
        assert_eq!(typed(&[KeyEvent { key: BACK, ..character(8) }]), [RUBOUT]);
        assert_eq!(typed(&[KeyEvent { state: LEFT_ALT, ..character(0x62) }]), b"\x1bb");
        // AltGr with Q on a German keyboard.
        assert_eq!(typed(&[KeyEvent { state: RIGHT_ALT | 8, ..character(0x40) }]), b"@");
    }

    #[test]
    fn test_releases_say_nothing_but_for_a_character_by_its_number() {
        assert_eq!(typed(&[KeyEvent { down: false, ..character(0x61) }]), b"");
        assert_eq!(typed(&[KeyEvent { down: false, key: ALT, ..character(0xe4) }]), "ä".as_bytes());
    }

    #[test]
    fn test_other_keys_are_xterms_sequences() {
        assert_eq!(typed(&[key(UP, 0), key(LEFT, CTRL), key(HOME, SHIFT)]), b"\x1b[A\x1b[1;5D\x1b[1;2H");
        assert_eq!(typed(&[key(DELETE, 0), key(PAGE_UP, LEFT_ALT)]), b"\x1b[3~\x1b[5;3~");
        assert_eq!(typed(&[key(F1, 0), key(F4, SHIFT), key(F5, 0), key(F12, 0)]), b"\x1bOP\x1b[1;2S\x1b[15~\x1b[24~");
        // Shift, Ctrl and the like alone.
        assert_eq!(typed(&[key(0x10, SHIFT), key(0x11, CTRL), key(ALT, LEFT_ALT)]), b"");
    }
}
