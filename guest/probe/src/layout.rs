//! Guest-physical memory of the probe; linear addresses are the same ones.
//!
//! | from | what |
//! |---|---|
//! | 0 | the loader's: start info, command line |
//! | 2 MiB | the image, with stack and page tables |
//! | 4 MiB | [`USER_PAGE`] |
//! | 6 MiB | [`SCRATCH`] |

/// A 2 MiB page that ring 3 may use.
pub const USER_PAGE: u64 = 0x40_0000;

/// 2 MiB that checks may fill as they like; nothing keeps its content from one to the next.
pub const SCRATCH: u64 = 0x60_0000;

/// Bytes at [`SCRATCH`].
pub const SCRATCH_SIZE: u64 = 0x20_0000;

/// A guest-physical address below 4 GiB where a PC with little memory has neither RAM nor a device.
pub const HOLE: u64 = 0xd000_0000;
