//! What is decided about Windows without asking it: tested on every host.

pub(super) mod clock;
pub(super) mod command_line;
pub(super) mod conditions;
pub(super) mod files;
pub(super) mod guest_service;
pub(super) mod keys;
pub(super) mod refusals;
pub(super) mod text;
pub(super) mod waits;
