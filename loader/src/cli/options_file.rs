//! Options from a file: `@FILE` on the command line stands for the words in it.
//!
//! The file is UTF-8 text with lines of Unix or Windows. White space parts words, quotes of either kind hold them together, `#` at the
//! begin of a word makes the rest of the line a comment. There are no escapes, for Windows' paths are full of backslashes: a quote
//! goes between quotes of the other kind.
//!
//! A file whose first word is one such as `kernel=vmlinux` has coLinux's words, by coLinux's rules: in words that begin with a letter,
//! a digit or a dot, only double quotes are quotes, and they stay in the word, for what they are for depends on the word; and `#` begins a comment
//! behind a word, too. Unlike coLinux's, quotes must end in their line and may have `#` between them, so that files can be called so.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::str;

use thiserror::Error;

use crate::run::describe;

/// What begins the name of a file of options.
const MARK: char = '@';

/// Why a file of options cannot be used.
#[derive(Debug, Error)]
pub(super) enum OptionsError {
    #[error("options {}: {}", path.display(), describe(source))]
    Read { path: PathBuf, source: io::Error },
    #[error("options {}: it is UTF-16 text: save it as UTF-8", .0.display())]
    Utf16(PathBuf),
    #[error("options {}, {place}: {flaw}", path.display())]
    Flaw { path: PathBuf, place: Place, flaw: Flaw },
}

/// What is wrong in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(super) enum Flaw {
    #[error("this is no UTF-8 text")]
    NoText,
    #[error("the quote that begins here has no end in its line")]
    OpenQuote,
    #[error("a file of options can name no other; put a word that begins with @ into quotes")]
    Nested,
    #[error("a null character can be in no option")]
    Null,
}

/// A place in a text, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("line {line}, column {column}")]
pub(super) struct Place {
    line: usize,
    /// In characters.
    column: usize,
}

impl Place {
    const START: Self = Self { line: 1, column: 1 };

    /// Where the byte of this offset is.
    pub(super) fn at(text: &str, offset: usize) -> Self {
        text.char_indices().take_while(|&(start, _)| start < offset).fold(Self::START, |place, (_, c)| place.after(c))
    }

    fn after(self, character: char) -> Self {
        match character {
            '\n' => Self { line: self.line + 1, column: 1 },
            _ => Self { column: self.column + 1, ..self },
        }
    }
}

/// The arguments with the words of the files in place of their names.
pub(super) fn expand(arguments: impl IntoIterator<Item = OsString>) -> Result<Vec<OsString>, OptionsError> {
    let mut words = Vec::new();
    for argument in arguments {
        match argument.to_str().and_then(|text| text.strip_prefix(MARK)) {
            Some(path) => words.extend(read(path.into())?.into_iter().map(OsString::from)),
            None => words.push(argument),
        }
    }
    Ok(words)
}

fn read(path: PathBuf) -> Result<Vec<String>, OptionsError> {
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(source) => return Err(OptionsError::Read { path, source }),
    };
    if is_utf16(&bytes) {
        return Err(OptionsError::Utf16(path));
    }
    parse(&bytes).map_err(|(place, flaw)| OptionsError::Flaw { path, place, flaw })
}

/// Whether a file is UTF-16 text: with its mark, or by the first character's being ASCII.
pub(super) fn is_utf16(bytes: &[u8]) -> bool {
    match bytes {
        &[first, second, ..] => matches!([first, second], [0xff, 0xfe] | [0xfe, 0xff]) || (first == 0) != (second == 0),
        _ => false,
    }
}

/// The words of a file.
pub(super) fn parse(bytes: &[u8]) -> Result<Vec<String>, (Place, Flaw)> {
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    let text = str::from_utf8(bytes).map_err(|error| {
        let good = str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default();
        (Place::at(good, good.len()), Flaw::NoText)
    })?;
    let has_colinuxs = begins_like_colinux(text);
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    // Whether the word is one of coLinux's.
    let mut is_colinuxs = false;
    let mut state = State::Plain;
    let mut place = Place::START;
    for character in text.chars() {
        state = match (state, character) {
            (_, '\0') => return Err((place, Flaw::Null)),
            (State::Comment, '\n') => State::Plain,
            (State::Comment, _) => State::Comment,
            (State::Quoted { start, .. }, '\n') => return Err((start, Flaw::OpenQuote)),
            (State::Quoted { quote, .. }, character) if character == quote => {
                word.as_mut().filter(|_| is_colinuxs).into_iter().for_each(|word| word.push(quote));
                State::Plain
            }
            (State::Plain, ' ' | '\t' | '\r' | '\n') => {
                words.extend(word.take());
                State::Plain
            }
            (State::Plain, '"' | '\'') if !(is_colinuxs && word.is_some() && character == '\'') => {
                // A word may be empty.
                let word_so_far = word.get_or_insert_with(|| {
                    is_colinuxs = false;
                    String::new()
                });
                if is_colinuxs {
                    word_so_far.push(character);
                }
                State::Quoted { quote: character, start: place }
            }
            (State::Plain, '#') if word.is_none() || is_colinuxs => {
                words.extend(word.take());
                State::Comment
            }
            (State::Plain, MARK) if word.is_none() => return Err((place, Flaw::Nested)),
            (state @ (State::Plain | State::Quoted { .. }), character) => {
                let word = word.get_or_insert_with(|| {
                    is_colinuxs = has_colinuxs && begins_colinuxs(character);
                    String::new()
                });
                word.push(character);
                state
            }
        };
        place = place.after(character);
    }
    if let State::Quoted { start, .. } = state {
        return Err((start, Flaw::OpenQuote));
    }
    words.extend(word);
    Ok(words)
}

/// Whether a word that begins so is one of coLinux's, and no option and nothing in quotes.
fn begins_colinuxs(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '.'
}

/// Whether the first word of a file is one of coLinux's.
fn begins_like_colinux(text: &str) -> bool {
    let mut lines = text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let first = lines.next().and_then(|line| line.split([' ', '\t', '#', '"']).next()).unwrap_or_default();
    first.starts_with(begins_colinuxs) && first.contains('=')
}

/// Where in the text the parser is.
#[derive(Debug, Clone, Copy)]
enum State {
    Plain,
    Quoted { quote: char, start: Place },
    Comment,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(text: &str) -> Vec<String> {
        parse(text.as_bytes()).unwrap()
    }

    fn flaw(bytes: &[u8]) -> (usize, usize, Flaw) {
        let (place, flaw) = parse(bytes).unwrap_err();
        (place.line, place.column, flaw)
    }

    #[test]
    fn test_words_are_parted_quoted_and_commented() {
        let text = "# A guest.\n--kernel C:\\vm\\vmlinuz   --mem 1G # enough\n\t--append \"root=/dev/vda ro\" a#b\n--exec 'echo \"hi\"'\n";
        let expected = [
            "--kernel",
            r"C:\vm\vmlinuz",
            "--mem",
            "1G",
            "--append",
            "root=/dev/vda ro",
            "a#b",
            "--exec",
            "echo \"hi\"",
        ];
        assert_eq!(words(text), expected);
        assert_eq!(words(&text.replace('\n', "\r\n")), expected);
        assert_eq!(words(&format!("\u{feff}{text}")), expected);
        assert_eq!(words("a\"b c\"'d'"), ["ab cd"]);
        assert_eq!(words("'' \"\""), ["", ""]);
        assert_eq!(words("'@x' --a=@x \"#\""), ["@x", "--a=@x", "#"]);
        assert_eq!(words(" \r\n#"), [""; 0]);
        assert_eq!(words("größer\u{a0}日本"), ["größer\u{a0}日本"]);
    }

    #[test]
    fn test_colinuxs_words_keep_their_quotes() {
        let text =
            "# coLinux\nkernel=vmlinux\r\n\tcobd0=\"C:\\my files\\it's.img\"# comment\nexec0=x.exe,\":0 -ac\" # more\n";
        let expected = ["kernel=vmlinux", "cobd0=\"C:\\my files\\it's.img\"", "exec0=x.exe,\":0 -ac\""];
        assert_eq!(words(text), expected);
        assert_eq!(words("a=\"b # c\" d=e#f g"), ["a=\"b # c\"", "d=e"]);
        assert_eq!(words("a=it's b='c d'"), ["a=it's", "b='c", "d'"]);
        // Options beside them are as elsewhere.
        assert_eq!(words("a=\"b\" --name \"web server\" --x='y z'"), ["a=\"b\"", "--name", "web server", "--x=y z"]);
        assert_eq!(words("a=1 \"b=\" \"c\"=\"d\""), ["a=1", "b=", "c=d"]);
        // And files of options are as ever.
        assert_eq!(words("--a b=\"c d\" e#f"), ["--a", "b=c d", "e#f"]);
        assert_eq!(flaw(b"a=1 b=\"c"), (1, 7, Flaw::OpenQuote));
        assert_eq!(flaw(b"a=1 @b"), (1, 5, Flaw::Nested));
    }

    #[test]
    fn test_flaws_are_told_with_their_place() {
        assert_eq!(flaw(b"--a\r\n--b \"c\r\nd\""), (2, 5, Flaw::OpenQuote));
        assert_eq!(flaw("ä 'b".as_bytes()), (1, 3, Flaw::OpenQuote));
        assert_eq!(flaw(b"a\n\xc3\xbcb \xff"), (2, 4, Flaw::NoText));
        assert_eq!(flaw(b"a @other"), (1, 3, Flaw::Nested));
        assert_eq!(flaw(b"ab\0"), (1, 3, Flaw::Null));
    }

    #[test]
    fn test_files_stand_in_for_their_words() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a guest, größer");
        fs::write(&path, "--mem 1G\r\n--name 'web'\r\n").unwrap();
        let mut mark = OsString::from("@");
        mark.push(&path);
        let all = expand(["run".into(), mark.clone(), "--append=@x".into()]).unwrap();
        assert_eq!(all, ["run", "--mem", "1G", "--name", "web", "--append=@x"]);
        for utf16 in [&b"\xff\xfea\0"[..], b"\xfe\xff\0a", b"a\0b\0", b"\0a\0b"] {
            fs::write(&path, utf16).unwrap();
            let error = expand([mark.clone()]).unwrap_err().to_string();
            assert!(error.contains("UTF-16") && error.contains("größer"), "{error}");
        }
        fs::remove_file(&path).unwrap();
        assert!(expand([mark]).unwrap_err().to_string().contains("größer"));
    }

    /// A word as it can stand in a file.
    fn written(word: &str) -> String {
        // Each quote goes between the other kind.
        let mut text = String::from("\"");
        for character in word.chars() {
            if character == '"' { text.push_str("\"'\"'\"") } else { text.push(character) }
        }
        text + "\""
    }

    proptest! {
        #[test]
        fn test_words_that_were_written_are_read(
            written_words in prop::collection::vec((r#"[ \t"'\\a-c#@äß日😀=,]{0,10}"#, "( |\t|\n|\r\n|\r\n\r\n| # \"c\r\n|\n#@d\n)"), 0..8),
        ) {
            let text: String = written_words.iter().map(|(word, gap)| written(word) + gap).collect();
            let expected: Vec<_> = written_words.iter().map(|(word, _)| word.clone()).collect();
            prop_assert_eq!(words(&text), expected);
        }

        #[test]
        fn test_no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Err((place, _)) = parse(&bytes) {
                let lines: Vec<_> = bytes.split(|&byte| byte == b'\n').collect();
                prop_assert!(place.line <= lines.len());
                prop_assert!(place.column <= lines[place.line - 1].len() + 1);
            }
        }
    }
}
