//! The unit of a guest, as systemd reads it (systemd.unit(5), systemd.service(5), systemd.exec(5)).

use std::fmt;
use std::time::Duration;

use crate::run::INTERRUPTED;
use crate::run::USAGE;

/// The first words of a unit of ours.
const MARK: &str = "# Made by `covisor service install`.";
/// What begins the line that says what to run.
const START: &str = "ExecStart=";

/// A unit.
#[derive(Debug)]
pub(super) struct Unit<'a> {
    pub(super) machine: &'a str,
    /// This program.
    pub(super) program: &'a str,
    /// What comes behind `service run`.
    pub(super) words: &'a [String],
    /// Where relative paths begin.
    pub(super) folder: &'a str,
    /// Where covisor keeps what lasts, if somebody says.
    pub(super) data_folder: Option<&'a str>,
    /// How long a stop may take.
    pub(super) patience: Duration,
}

impl fmt::Display for Unit<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { machine, program, words, folder, data_folder, patience } = self;
        let program = quoted(program);
        write!(
            formatter,
            "{MARK} `covisor service remove {machine}` removes it.
[Unit]
Description=covisor guest {machine}
After=network.target local-fs.target remote-fs.target
RequiresMountsFor={folder}

[Service]
Type=notify
ExecStartPre=-+{program} driver install --unless-loaded
{START}{program} service run",
            folder = quoted(folder),
        )?;
        // Of the program systemd replaces no variables, but of its arguments.
        words.iter().try_for_each(|word| write!(formatter, " {}", quoted(word).replace('$', "$$")))?;
        if let Some(data_folder) = data_folder {
            write!(formatter, "\nEnvironment={}", quoted(&format!("{}={data_folder}", crate::sys::host::DATA_FOLDER)))?;
        }
        write!(
            formatter,
            "
# SIGTERM to covisor has the guest power off; what else runs is killed only at the end.
KillMode=mixed
TimeoutStopSec={stop}
# A guest that was ended because it did not hear is no failure; a wrong configuration is not tried again.
SuccessExitStatus={INTERRUPTED}
RestartPreventExitStatus={USAGE}
Restart=on-failure
RestartSec=5
# covisor needs the host's files, devices and network; not these.
NoNewPrivileges=yes
LockPersonality=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RestrictNamespaces=yes
RestrictRealtime=yes
SystemCallArchitectures=native

[Install]
WantedBy=multi-user.target
",
            stop = patience.as_secs(),
        )
    }
}

/// A word as it is written in a unit (systemd.syntax(7)): with no specifiers in it.
fn quoted(word: &str) -> String {
    let mut text = String::from("\"");
    for character in word.chars() {
        match character {
            '"' | '\\' => text.extend(['\\', character]),
            '%' => text.push_str("%%"),
            '\n' => text.push_str("\\n"),
            _ if character.is_ascii_control() => text.push_str(&format!("\\x{:02x}", u32::from(character))),
            _ => text.push(character),
        }
    }
    text.push('"');
    text
}

/// Whether `covisor service install` made a unit.
pub(super) fn is_ours(text: &str) -> bool {
    text.starts_with(MARK)
}

/// What a unit runs.
pub(super) fn line(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix(START))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    fn text(words: &[&str]) -> String {
        let program = std::env::current_exe().unwrap();
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        Unit {
            machine: "web",
            program: program.to_str().unwrap(),
            words: &words,
            folder: "/srv/my guests/100%",
            data_folder: Some("/data \"1\""),
            patience: Duration::from_secs(70),
        }
        .to_string()
    }

    #[test]
    fn test_words_stay_as_they_are() {
        let text = text(&["--append", "a=\"b c\" $HOME 50% \\x", "line\nbreak\ttab\x01", "größer"]);
        let line = line(&text).unwrap();
        assert!(
            line.ends_with(r#" service run "--append" "a=\"b c\" $$HOME 50%% \\x" "line\nbreak\x09tab\x01" "größer""#),
            "{line}"
        );
        assert!(text.contains("\nRequiresMountsFor=\"/srv/my guests/100%%\"\n"), "{text}");
        assert!(text.contains("\nEnvironment=\"COVISOR_DATA_DIR=/data \\\"1\\\"\"\n"), "{text}");
        assert!(is_ours(&text) && !is_ours("[Unit]\n"));
    }

    #[test]
    fn test_systemd_finds_nothing_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("covisor-web.service");
        fs::write(&path, text(&["--folder", "/a b", "web", "--append", "a=\"b\" $x %n \\ \n", "--disk", "größer,ro"]))
            .unwrap();
        // Where there is no systemd there is nobody to ask.
        let Ok(output) = Command::new("systemd-analyze").arg("verify").arg(&path).output() else { return };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !said.contains("covisor-web"), "{said}");
    }
}
