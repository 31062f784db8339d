//! The host is Linux.

pub mod clock;
pub mod control;
pub mod disk;
pub mod event;
pub mod files;
pub mod guest_service;
pub mod host;
pub mod memory;
pub mod module;
pub mod process;
pub mod random;
pub mod rootfs;
mod scarce;
pub mod share;
pub mod sockets;
pub mod tap;
pub mod terminal;
pub mod transport;
pub mod words;
