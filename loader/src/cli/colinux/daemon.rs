//! coLinux's own command line: `covisor -v 1 @example.conf mem=128`, as it was with `colinux-daemon`.
//!
//! It is that of `covisor run`, with some switches of its own and with coLinux's exit statuses.

use std::ffi::OsStr;
use std::ffi::OsString;

use thiserror::Error;

use crate::run::notice;

/// A switch that is another command's now.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("coLinux's {switch} is no more: {instead}")]
pub(in crate::cli) struct DaemonError {
    switch: &'static str,
    instead: &'static str,
}

/// What a switch of `colinux-daemon` means here.
#[derive(Debug, Clone, Copy)]
enum Meaning {
    /// Nothing; a value may go with it.
    None { value: bool, instead: &'static str },
    /// How much is said.
    Verbosity,
    /// Something else does it.
    Instead(&'static str),
}

const SERVICE: &str = if cfg!(windows) {
    "`covisor service install NAME @FILE`, `covisor service remove NAME`"
} else {
    "let the system's service manager run `covisor run @FILE`"
};

/// The switches of `colinux-daemon`.
const SWITCHES: [(&str, Meaning); 12] = [
    ("-d", Meaning::None { value: false, instead: "the console is the terminal that covisor is started in" }),
    ("-t", Meaning::None { value: true, instead: "the console is the terminal that covisor is started in" }),
    (
        "-k",
        Meaning::None {
            value: false,
            instead: "the kernel speaks on the guest's console only; `quiet` has it say less",
        },
    ),
    ("-v", Meaning::Verbosity),
    (
        "-p",
        Meaning::Instead(
            "`covisor ps --json` tells the process's number, and `--name` gives the guest a name to be found by",
        ),
    ),
    ("-c", Meaning::Instead("write coLinux's words into a text file, and name that by @FILE")),
    ("--install-service", Meaning::Instead(SERVICE)),
    ("--remove-service", Meaning::Instead(SERVICE)),
    ("--run-service", Meaning::Instead(SERVICE)),
    ("--install-driver", Meaning::Instead("`covisor driver install`")),
    ("--remove-driver", Meaning::Instead("`covisor driver remove`")),
    ("--status-driver", Meaning::Instead("`covisor driver status`")),
];

fn meaning(argument: &OsStr) -> Option<(&'static str, Meaning)> {
    let text = argument.to_str()?;
    // A service's name or folder could stand behind a colon.
    let switch = text.split_once(':').map_or(text, |(switch, _)| switch);
    SWITCHES.into_iter().find(|(name, _)| *name == switch)
}

/// Whether a command line that begins with this argument is one of coLinux's.
fn is_colinuxs(argument: &OsStr) -> bool {
    let text = argument.to_string_lossy();
    text.starts_with('@') || !text.starts_with('-') && text.contains('=') || meaning(argument).is_some()
}

/// The same command line as one of `covisor run`; `None` if it is none of coLinux's.
pub(in crate::cli) fn as_run(arguments: &[OsString]) -> Result<Option<Vec<OsString>>, DaemonError> {
    let [program, rest @ ..] = arguments else { return Ok(None) };
    // A switch may stand anywhere, but begins no command of covisor's.
    if !rest.first().is_some_and(|first| is_colinuxs(first)) {
        return Ok(None);
    }
    let mut run = vec![program.clone(), "run".into()];
    let mut rest = rest.iter();
    while let Some(argument) = rest.next() {
        match meaning(argument) {
            None => run.push(argument.clone()),
            Some((switch, Meaning::Instead(instead))) => return Err(DaemonError { switch, instead }),
            Some((switch, Meaning::None { value, instead })) => {
                if value {
                    rest.next();
                }
                notice(format_args!("{switch} has no meaning any more: {instead}"));
            }
            Some((_, Meaning::Verbosity)) => {
                if rest.next().is_some_and(|level| level != "0") {
                    run.push("--verbose".into());
                }
            }
        }
    }
    Ok(Some(run))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(words: &[&str]) -> Result<Option<Vec<String>>, String> {
        let words: Vec<OsString> = std::iter::once(&"covisor").chain(words).map(OsString::from).collect();
        let run = as_run(&words).map_err(|error| error.to_string())?;
        Ok(run.map(|words| words.into_iter().skip(1).map(|word| word.into_string().unwrap()).collect()))
    }

    #[test]
    fn test_a_command_line_of_colinux_is_one_of_run() {
        let expect = |words: &[&str]| Ok(Some(words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>()));
        assert_eq!(run(&["@example.conf"]), expect(&["run", "@example.conf"]));
        assert_eq!(run(&["@a", "@b", "mem=32"]), expect(&["run", "@a", "@b", "mem=32"]));
        assert_eq!(run(&["kernel=x", "single"]), expect(&["run", "kernel=x", "single"]));
        assert_eq!(run(&["-t", "nt", "-d", "-k", "-v", "3", "@a"]), expect(&["run", "--verbose", "@a"]));
        assert_eq!(run(&["-v", "0", "@a", "--name", "web"]), expect(&["run", "@a", "--name", "web"]));
        assert_eq!(run(&["-t"]), expect(&["run"]));
    }

    #[test]
    fn test_covisors_own_command_lines_are_not() {
        for words in [&["run", "@a"][..], &["--help"], &["-h"], &["-V"], &["ps"], &["dance"], &["--x=y"], &[]] {
            assert_eq!(run(words), Ok(None), "{words:?}");
        }
    }

    #[test]
    fn test_switches_that_are_commands_now_say_which() {
        for (words, says) in [
            (&["--install-driver"][..], "covisor driver install"),
            (&["--remove-driver"], "covisor driver remove"),
            (&["--status-driver"], "covisor driver status"),
            (&["@example.conf", "--install-service", "coLinux"], "service"),
            (&["--run-service:C:\\vm", "x"], "service"),
            (&["-p", "pid", "@a"], "covisor ps"),
            (&["-c", "default.colinux.xml"], "@FILE"),
        ] {
            let error = run(words).unwrap_err();
            assert!(error.contains(says) && error.contains("is no more"), "{error}");
        }
    }
}
