//! What a driver may answer where it refuses, by numbers: the table of `docs/abi.md`, "Errors".

use std::io;

/// A refusal that is documented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// A field cannot have this value, or the call is not for this state.
    Invalid,
    /// No memory, no room.
    NoMemory,
    /// Another thread does the same, or it is too late.
    Busy,
    /// A signal, a cancel, the close of the handle.
    Interrupted,
    /// The engine cannot run here.
    NoEngine,
    /// No handshake of the same version.
    Version,
    /// No such VM, vCPU, event or doorbell.
    NotFound,
    /// It is there already, or something else is.
    Exists,
    /// There is no such call.
    NoSuchCall,
    /// The structure has another size.
    WrongSize,
    /// The structure cannot be read or written.
    Unreadable,
    /// The call comes from another process than the opener's.
    OtherProcess,
}

/// What a host says for a refusal.
#[derive(Clone, Copy, Debug)]
struct Numbers {
    refusal: Refusal,
    /// `errno`, where Linux has the refusal.
    linux: Option<i32>,
    /// What Win32 makes of NT's status.
    win32: i32,
}

const fn row(refusal: Refusal, linux: i32, win32: i32) -> Numbers {
    Numbers { refusal, linux: Some(linux), win32 }
}

/// The refusals. Win32's numbers, in their order: `ERROR_INVALID_PARAMETER`, `_NOT_ENOUGH_MEMORY`, `_BUSY`, `_OPERATION_ABORTED`,
/// `_NOT_SUPPORTED`, `_REVISION_MISMATCH`, `_NOT_FOUND`, `_ALREADY_EXISTS`, `_INVALID_FUNCTION`, `_BAD_LENGTH`, `_NOACCESS`,
/// `_ACCESS_DENIED`.
const TABLE: [Numbers; 12] = [
    // EINVAL.
    row(Refusal::Invalid, 22, 87),
    // ENOMEM.
    row(Refusal::NoMemory, 12, 8),
    // EBUSY.
    row(Refusal::Busy, 16, 170),
    // EINTR.
    row(Refusal::Interrupted, 4, 995),
    // ENODEV.
    row(Refusal::NoEngine, 19, 50),
    // EPROTO.
    row(Refusal::Version, 71, 1306),
    // ENOENT.
    row(Refusal::NotFound, 2, 1168),
    // EEXIST.
    row(Refusal::Exists, 17, 183),
    // ENOTTY.
    row(Refusal::NoSuchCall, 25, 1),
    // ENOTTY: the size is a part of the number.
    row(Refusal::WrongSize, 25, 24),
    // EFAULT.
    row(Refusal::Unreadable, 14, 998),
    Numbers { refusal: Refusal::OtherProcess, linux: None, win32: 5 },
];

impl Numbers {
    /// The number on this host.
    const fn here(self) -> Option<i32> {
        if cfg!(windows) { Some(self.win32) } else { self.linux }
    }
}

impl Refusal {
    /// Whether an error is this refusal.
    pub(crate) fn is(self, error: &io::Error) -> bool {
        let number = TABLE.iter().find(|row| row.refusal == self).and_then(|row| row.here());
        number.is_some() && number == error.raw_os_error()
    }
}

/// Whether an error is one of the documented refusals.
pub(crate) fn is_documented(error: &io::Error) -> bool {
    TABLE.iter().any(|row| row.here().is_some() && row.here() == error.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cells of the documentation's table: the refusal in core, and Linux' and NT's answers.
    fn documented() -> Vec<[String; 3]> {
        let text = include_str!("../../../docs/abi.md");
        let errors = text.split_once("\n## Errors\n").expect("abi.md has a chapter on errors").1;
        let rows = errors.lines().skip_while(|line| !line.starts_with("|---")).skip(1);
        rows.take_while(|line| line.starts_with('|'))
            .map(|line| {
                let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
                [cells[0].trim_matches('`').to_owned(), cells[2].to_owned(), cells[3].to_owned()]
            })
            .collect()
    }

    #[cfg(target_os = "linux")]
    fn errno(name: &str) -> Option<i32> {
        Some(match name {
            "EINVAL" => libc::EINVAL,
            "ENOMEM" => libc::ENOMEM,
            "EBUSY" => libc::EBUSY,
            "EINTR" => libc::EINTR,
            "ENODEV" => libc::ENODEV,
            "EPROTO" => libc::EPROTO,
            "ENOENT" => libc::ENOENT,
            "EEXIST" => libc::EEXIST,
            "ENOTTY" => libc::ENOTTY,
            "EFAULT" => libc::EFAULT,
            _ => return None,
        })
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_documentation_says_the_same_of_linux() {
        let documented: Vec<Option<i32>> = documented().iter().map(|[_, linux, _]| errno(linux)).collect();
        assert_eq!(documented, TABLE.map(|row| row.linux));
    }

    #[test]
    fn the_documentation_has_the_same_refusals() {
        let documented = documented();
        assert_eq!(documented.len(), TABLE.len());
        for ([name, ..], row) in documented.iter().zip(TABLE) {
            assert!(name == "-" || *name == format!("{:?}", row.refusal), "{name} is not {row:?}");
        }
    }

    #[test]
    fn the_documentation_says_the_same_of_windows() {
        let text = include_str!("../../../docs/abi.md").replace('\n', " ");
        let first: Vec<String> = TABLE[..8].iter().map(|row| row.win32.to_string()).collect();
        assert!(text.contains(&format!("programs see them by Win32's: {};", first.join(", "))), "{first:?}");
        let others = TABLE[8..].iter().map(|row| row.win32.to_string()).collect::<Vec<_>>().join(", ");
        assert!(text.contains(&format!("; {others} for the others")), "{others}");
    }
}
