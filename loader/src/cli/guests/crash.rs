//! A run of a guest as it is noted while it lasts, and what became of one that did not come to its end.

use std::fmt;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use serde::Deserialize;
use serde::Serialize;

use crate::sys::host;

/// A run that has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Run {
    /// The host's boot that it began in, where the host can tell.
    boot: Option<String>,
    /// The process.
    pid: u32,
    /// When it began, in seconds since 1970.
    since: u64,
}

impl Run {
    /// The run of this process, which begins now.
    pub(super) fn here() -> Self {
        Self { boot: host::boot(), pid: std::process::id(), since: seconds(SystemTime::now()) }
    }

    /// What became of it, for nobody runs it any more: `boot` is the host's of now, which began at `booted`.
    pub(super) fn crash(self, boot: Option<&str>, booted: Option<SystemTime>) -> Crash {
        let how = match (self.boot.as_deref(), boot) {
            (Some(then), Some(now)) if then == now => How::Killed { pid: self.pid },
            (Some(_), Some(_)) => How::HostRestarted { at: booted.map(seconds) },
            _ => How::Unknown,
        };
        Crash { how, since: Some(self.since) }
    }
}

/// Seconds since 1970.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// How a run ended that did not come to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum How {
    Killed {
        pid: u32,
    },
    /// The host went down without ending it, and is up again since this time.
    HostRestarted {
        at: Option<u64>,
    },
    Unknown,
}

/// The end of a run that did not come to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Crash {
    how: How,
    since: Option<u64>,
}

impl Crash {
    /// One of which no more is known.
    pub(super) const UNKNOWN: Self = Self { how: How::Unknown, since: None };
}

impl fmt::Display for Crash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.how {
            How::Killed { pid } => write!(formatter, "was ended when its process {pid} was killed")?,
            How::HostRestarted { at: Some(at) } => {
                write!(formatter, "was ended when the host restarted, which was up again at {}", Utc(*at))?;
            }
            How::HostRestarted { at: None } => formatter.write_str("was ended when the host restarted")?,
            How::Unknown => formatter.write_str("was ended when its process was killed or the host went down")?,
        }
        match self.since {
            Some(since) => write!(formatter, "; it had run since {}", Utc(since)),
            None => Ok(()),
        }
    }
}

/// A time of day, as it is written.
struct Utc(u64);

impl fmt::Display for Utc {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// The last second of the year 9999, after which there is no such time.
        const LAST: u64 = 253_402_300_799;
        humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(self.0.min(LAST))).fmt(formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(boot: Option<&str>) -> Run {
        Run { boot: boot.map(str::to_owned), pid: 42, since: 1_700_000_000 }
    }

    fn told(then: Option<&str>, now: Option<&str>) -> String {
        run(then).crash(now, Some(UNIX_EPOCH + Duration::from_secs(1_700_003_600))).to_string()
    }

    #[test]
    fn test_in_the_same_boot_it_was_killed() {
        assert_eq!(
            told(Some("a"), Some("a")),
            "was ended when its process 42 was killed; it had run since 2023-11-14T22:13:20Z"
        );
    }

    #[test]
    fn test_in_another_boot_the_host_restarted() {
        assert_eq!(
            told(Some("a"), Some("b")),
            "was ended when the host restarted, which was up again at 2023-11-14T23:13:20Z; it had run since 2023-11-14T22:13:20Z"
        );
        assert!(run(Some("a")).crash(Some("b"), None).to_string().starts_with("was ended when the host restarted; "));
    }

    #[test]
    fn test_what_is_not_known_is_not_told() {
        for (then, now) in [(None, Some("a")), (Some("a"), None), (None, None)] {
            assert!(told(then, now).starts_with("was ended when its process was killed or the host went down; "));
        }
        assert_eq!(Crash::UNKNOWN.to_string(), "was ended when its process was killed or the host went down");
    }

    #[test]
    fn test_a_time_beyond_all_calendars_is_harmless() {
        assert_eq!(Utc(u64::MAX).to_string(), "9999-12-31T23:59:59Z");
        assert_eq!(seconds(UNIX_EPOCH - Duration::from_secs(1)), 0);
    }
}
