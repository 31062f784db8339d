//! What a guest must not get away with: each mode is expected to end its VM, to hang it, or to come back unharmed, while
//! the host goes on as if nothing had happened.

use crate::machine;

/// One mode.
#[derive(Clone, Copy, Debug)]
pub struct Mode {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it does.
    pub run: fn(),
}

/// All modes.
pub const ALL: &[Mode] = &[Mode { name: "triple-fault", run: triple_fault }];

/// The mode of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Mode> {
    ALL.iter().find(|mode| mode.name == name)
}

/// Shutdown by a triple fault (APM vol. 2, 8.2.9). The VM ends, or starts anew.
fn triple_fault() {
    machine::triple_fault()
}
