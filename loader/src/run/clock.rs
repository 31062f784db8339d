//! The guest's clock, when the host's was set or the host slept.
//!
//! A guest's clock begins with the host's and goes by the same counter, so it is right until the host's jumps. Then the guest's agent is told
//! the time, and the driver shows a paravirtual guest the new one, for when it looks again. A host's clock that is only slewed, as time
//! synchronization does it, is not followed: the guest has the same means, and the difference stays small.

use std::io;
use std::sync::mpsc::Sender;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use covisor_exec_protocol::ToGuest;

use crate::run::session::Event;
use crate::run::session::spawn;
use crate::sys::clock::Jumps;

/// Reports each jump of the host's clock from now on as [`Event::Clock`].
pub(super) fn watch(events: Sender<Event>) -> io::Result<()> {
    let mut jumps = Jumps::new()?;
    spawn("clock", move || while jumps.wait().is_ok() && events.send(Event::Clock).is_ok() {}).map(drop)
}

/// What tells the agent the time.
pub(super) fn message() -> ToGuest {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    ToGuest::SetClock(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}
