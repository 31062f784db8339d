//! The host is Windows: any x64 one from 7 on, and what else has NT's functions.

pub mod clock;
pub mod control;
pub mod disk;
pub mod event;
mod event_log;
pub mod files;
pub mod guest_service;
pub mod host;
pub mod memory;
pub mod module;
mod newer;
mod overlapped;
pub mod process;
pub mod random;
mod registry;
pub mod rootfs;
mod service;
mod service_process;
pub mod share;
pub mod sockets;
pub mod tap;
pub mod terminal;
pub mod transport;
mod wide;
pub mod words;
