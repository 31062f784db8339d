//! The host is Linux.

pub mod transport;
