//! The host is Linux.

pub mod control;
pub mod disk;
pub mod event;
pub mod host;
pub mod module;
pub mod process;
pub mod random;
pub mod terminal;
pub mod transport;
