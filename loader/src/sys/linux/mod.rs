//! The host is Linux.

pub mod control;
pub mod host;
pub mod module;
pub mod process;
pub mod terminal;
pub mod transport;
