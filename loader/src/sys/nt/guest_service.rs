//! A guest that is a service: what it is called, and the line that Windows starts it by.

use super::command_line;

/// How the services' names begin. The driver's has no dash.
const PREFIX: &str = "covisor-";
/// What covisor is told when it is started as a service: its first words.
const COMMAND: [&str; 2] = ["service", "run"];
/// The longest line, in UTF-16 units: Windows starts no program with more than 32,767.
const MAX_LINE: usize = 32_000;

/// The service of the machine with this name.
pub(in crate::sys) fn service_of(machine: &str) -> String {
    format!("{PREFIX}{machine}")
}

/// Why there can be no such line: Windows would put something else there.
const PERCENT: &str = "Windows replaces what is between two percent signs in a service's command line: write the options into a \
                       file, and give it as @FILE";
/// Windows takes no such line.
const TOO_LONG: &str =
    "these are more options than a service's command line holds: write them into a file, and give it as @FILE";

/// The line by which Windows starts a service, or why there can be none.
pub(in crate::sys) fn line<'a>(
    program: &'a str,
    words: impl IntoIterator<Item = &'a str>,
) -> Result<String, &'static str> {
    let line = command_line::join(std::iter::once(program).chain(COMMAND).chain(words));
    if line.matches('%').count() > 1 {
        Err(PERCENT)
    } else if line.encode_utf16().count() > MAX_LINE {
        Err(TOO_LONG)
    } else {
        Ok(line)
    }
}

/// Whether a service with this line is one of ours.
pub(in crate::sys) fn is_ours(line: &str) -> bool {
    command_line::split(line).get(1..=COMMAND.len()).is_some_and(|words| words == COMMAND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_the_line_holds_any_words_but_those_that_windows_replaces() {
        let program = r"C:\Program Files\covisor\covisor.exe";
        let line_of = |words: &[&str]| line(program, words.iter().copied());
        let good = line_of(&["web", "--disk", r"D:\größer\100% Linux 日本.img,ro", "--append", "a=\"b\""]).unwrap();
        assert!(good.starts_with(r#""C:\Program Files\covisor\covisor.exe" service run web --disk "D:\größer\100% "#));
        assert!(is_ours(&good));
        assert_eq!(line_of(&["web", "--append", "%PATH%"]), Err(PERCENT));
        assert_eq!(line_of(&["web", "--append", &"x".repeat(40_000)]), Err(TOO_LONG));
    }

    #[test]
    fn test_other_peoples_services_are_not_ours() {
        assert_eq!(service_of("web"), "covisor-web");
        assert!(!is_ours(r"C:\Windows\System32\svchost.exe -k netsvcs"));
        assert!(!is_ours(r"C:\covisor.exe service"));
        assert!(!is_ours(""));
    }
}
