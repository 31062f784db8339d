//! What a report must not tell: whose machine it is.

/// What stands for a home folder.
const HOME: &str = "~";
/// What homes are in, and what ends their names.
const HOMES: [&str; 3] = ["/home/", "/Users/", "\\Users\\"];
const SEPARATORS: [char; 2] = ['/', '\\'];
/// What stands for a network adapter's address.
const ADDRESS: &str = "xx:xx:xx:xx:xx:xx";
/// Letters of an address: six numbers of two digits, and what is between them.
const ADDRESS_LENGTH: usize = 17;
/// What stands for a name of the user's.
const NAME: &str = "***";

/// Names that are nobody else's business.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Private {
    /// The user's home, if there is one.
    home: Option<String>,
    /// The host's and the user's names.
    names: Vec<String>,
}

impl Private {
    /// What is private here, and these names: the host's, the guests'.
    pub(super) fn here(names: impl Iterator<Item = String>) -> Self {
        // Names that all machines have tell nothing.
        const COMMON: [&str; 4] = ["root", "Administrator", "SYSTEM", "localhost"];
        let home = std::env::home_dir().and_then(|home| home.into_os_string().into_string().ok());
        let users =
            ["USER", "LOGNAME", "SUDO_USER", "USERNAME"].into_iter().filter_map(|name| std::env::var(name).ok());
        let names = names.chain(users);
        Self {
            home: home.filter(|home| home.len() > 1),
            names: names.filter(|name| !name.is_empty() && !COMMON.contains(&name.as_str())).collect(),
        }
    }

    /// A text of covisor's own, where paths may be.
    pub(super) fn paths(&self, text: &str) -> String {
        let mut text = text.to_owned();
        if let Some(home) = &self.home {
            text = replace_folder(&text, home);
        }
        for homes in HOMES {
            text = without_homes(&text, homes);
        }
        text
    }

    /// A text that may say anything.
    pub(super) fn all(&self, text: &str) -> String {
        let mut text = without_addresses(&self.paths(text));
        for name in &self.names {
            text = replace_word(&text, name);
        }
        text
    }
}

/// Puts `~` for a folder, not for others whose names only begin so.
fn replace_folder(text: &str, folder: &str) -> String {
    replace(text, folder, HOME, |_, after| after.is_none_or(|next| SEPARATORS.contains(&next) || !is_of_a_word(next)))
}

fn replace_word(text: &str, word: &str) -> String {
    let is_end = |next: Option<char>| next.is_none_or(|next| !is_of_a_word(next));
    replace(text, word, NAME, |before, after| is_end(before) && is_end(after))
}

fn is_of_a_word(letter: char) -> bool {
    letter.is_alphanumeric() || matches!(letter, '-' | '_')
}

/// Puts `by` for each `what` that has the right letters before and after it.
fn replace(text: &str, what: &str, by: &str, fits: impl Fn(Option<char>, Option<char>) -> bool) -> String {
    let mut replaced = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(what) {
        let (before, after) = (&rest[..at], &rest[at + what.len()..]);
        let last = before.chars().next_back().or_else(|| replaced.chars().next_back());
        replaced.push_str(before);
        replaced.push_str(if fits(last, after.chars().next()) { by } else { what });
        rest = after;
    }
    replaced + rest
}

/// Puts `~` for all homes, whoever's: the folder of homes, what comes before it on Windows (`C:`), and one name.
fn without_homes(text: &str, homes: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(homes) {
        let before = &rest[..at];
        let drive =
            before.len().checked_sub(2).filter(|&start| before.is_char_boundary(start) && before.ends_with(':'));
        kept.push_str(&before[..drive.filter(|_| homes.starts_with('\\')).unwrap_or(at)]);
        kept.push_str(HOME);
        let name = &rest[at + homes.len()..];
        let end =
            name.find(|letter: char| SEPARATORS.contains(&letter) || matches!(letter, ':' | '"' | '`' | '\'' | ','));
        rest = &name[end.unwrap_or(name.len())..];
    }
    kept + rest
}

/// Puts [`ADDRESS`] for all addresses of network adapters.
fn without_addresses(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(letter) = rest.chars().next() {
        let starts_here = kept.chars().next_back().is_none_or(|before| !before.is_ascii_hexdigit());
        if starts_here && rest.as_bytes().get(..ADDRESS_LENGTH).is_some_and(is_address) {
            kept.push_str(ADDRESS);
            rest = &rest[ADDRESS_LENGTH..];
        } else {
            kept.push(letter);
            rest = &rest[letter.len_utf8()..];
        }
    }
    kept
}

fn is_address(bytes: &[u8]) -> bool {
    let separator = bytes.get(2).copied();
    matches!(separator, Some(b':' | b'-'))
        && bytes.iter().enumerate().all(|(index, byte)| match index % 3 {
            2 => Some(*byte) == separator,
            _ => byte.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of_ann() -> Private {
        Private { home: Some("/srv/ann".to_owned()), names: vec!["tower".to_owned(), "ann".to_owned()] }
    }

    #[test]
    fn test_homes_are_not_told() {
        let private = of_ann();
        for (text, told) in [
            ("/srv/ann/vm/a.img: it is a folder", "~/vm/a.img: it is a folder"),
            ("/srv/anna/a.img", "/srv/anna/a.img"),
            ("in /srv/ann", "in ~"),
            ("/home/bob/a and /home/eve", "~/a and ~"),
            ("/Users/bob", "~"),
            (r"C:\Users\bob\a.img: x", r"~\a.img: x"),
            ("/var/lib/covisor", "/var/lib/covisor"),
        ] {
            assert_eq!(private.paths(text), told);
        }
    }

    #[test]
    fn test_names_and_addresses_are_not_told() {
        let private = of_ann();
        for (text, told) in [
            ("tower: disk of ann's", "***: disk of ***'s"),
            ("towers and joann", "towers and joann"),
            ("mac 52:54:00:12:34:56,", "mac xx:xx:xx:xx:xx:xx,"),
            ("52-54-00-AB-cd-ef", "xx:xx:xx:xx:xx:xx"),
            ("00000000:00:10.0 and 12:34:56", "00000000:00:10.0 and 12:34:56"),
        ] {
            assert_eq!(private.all(text), told);
        }
    }

    proptest! {
        #[test]
        fn test_any_text_has_nothing_private_in_the_end(before in "[ /a-z:é]{0,12}", after in "[ /:.]{0,3}") {
            let told = of_ann().all(&format!("{before} /home/secret/x 52:54:00:12:34:56 tower{after}"));
            prop_assert!(!told.contains("secret") && !told.contains("52:54") && !told.contains("tower"), "{}", told);
        }
    }
}
