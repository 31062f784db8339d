//! Command lines: Windows gives a program one text, which the program cuts into words. How is the C library's convention, which
//! Rust's library follows: white space parts, quotes hold together, and backslashes count only before a quote.

/// A line that is cut into these words.
pub(in crate::sys) fn join<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let mut line = String::new();
    for (index, word) in words.into_iter().enumerate() {
        if index > 0 {
            line.push(' ');
        }
        push_word(&mut line, word);
    }
    line
}

fn push_word(line: &mut String, word: &str) {
    let is_plain = !word.is_empty() && !word.contains([' ', '\t', '\n', '\u{b}', '"']);
    if is_plain {
        line.push_str(word);
        return;
    }
    line.push('"');
    let mut backslashes = 0;
    for character in word.chars() {
        match character {
            '\\' => backslashes += 1,
            // Each of those before a quote is doubled, and the quote has one of its own.
            '"' => {
                line.extend(std::iter::repeat_n('\\', backslashes + 1));
                backslashes = 0;
            }
            _ => backslashes = 0,
        }
        line.push(character);
    }
    // The quote that ends the word is one as well.
    line.extend(std::iter::repeat_n('\\', backslashes));
    line.push('"');
}

/// The words of a line. The first is the program, in which backslashes never count.
pub(in crate::sys) fn split(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = line.chars().peekable();
    let mut program = String::new();
    let mut quoted = false;
    for character in rest.by_ref() {
        match character {
            '"' => quoted = !quoted,
            ' ' | '\t' if !quoted => break,
            _ => program.push(character),
        }
    }
    words.push(program);
    loop {
        while rest.next_if(|&character| character == ' ' || character == '\t').is_some() {}
        if rest.peek().is_none() {
            return words;
        }
        let mut word = String::new();
        let (mut quoted, mut backslashes) = (false, 0);
        while let Some(character) = rest.next_if(|&character| quoted || (character != ' ' && character != '\t')) {
            match character {
                '\\' => {
                    backslashes += 1;
                    continue;
                }
                '"' => {
                    word.extend(std::iter::repeat_n('\\', backslashes / 2));
                    if backslashes % 2 == 1 {
                        word.push('"');
                    } else if quoted && rest.next_if_eq(&'"').is_some() {
                        // Two in a quoted word are one.
                        word.push('"');
                    } else {
                        quoted = !quoted;
                    }
                }
                _ => {
                    word.extend(std::iter::repeat_n('\\', backslashes));
                    word.push(character);
                }
            }
            backslashes = 0;
        }
        word.extend(std::iter::repeat_n('\\', backslashes));
        words.push(word);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn test_words_are_quoted_where_they_need_it() {
        let line =
            join([r"C:\Program Files\covisor\covisor.exe", "run", "--append", r#"a="b c""#, "", r"C:\größer 日本\"]);
        let expected = r#""C:\Program Files\covisor\covisor.exe" run --append "a=\"b c\"" "" "C:\größer 日本\\""#;
        assert_eq!(line, expected);
        assert_eq!(join([r"C:\a\b\"]), r"C:\a\b\");
    }

    #[test]
    fn test_a_line_is_cut_as_windows_cuts_it() {
        // Of Microsoft's own table of cases.
        let words = |line: &str| split(&format!("program {line}"))[1..].to_vec();
        assert_eq!(words(r#""a b c" d e"#), ["a b c", "d", "e"]);
        assert_eq!(words(r#""ab\"c" "\\" d"#), ["ab\"c", "\\", "d"]);
        assert_eq!(words(r#"a\\\b d"e f"g h"#), [r"a\\\b", "de fg", "h"]);
        assert_eq!(words(r#"a\\\"b c d"#), [r#"a\"b"#, "c", "d"]);
        assert_eq!(words(r#"a\\\\"b c" d e"#), [r"a\\b c", "d", "e"]);
        assert_eq!(words(r#"a"b"" c d"#), ["ab\" c d"]);
        assert_eq!(split(r#""C:\a b\" c"#), [r"C:\a b\", "c"]);
    }

    proptest! {
        #[test]
        fn test_what_was_joined_is_cut_into_the_same(
            words in prop::collection::vec(r#"[ \t"\\a-cäß日😀=,]{0,12}"#, 0..6),
        ) {
            let line = join(std::iter::once(r"C:\a b\covisor.exe").chain(words.iter().map(String::as_str)));
            prop_assert_eq!(&split(&line)[1..], &words[..]);
        }
    }
}
