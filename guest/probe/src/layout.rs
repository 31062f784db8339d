//! Guest-physical memory of the probe; linear addresses are the same ones.
//!
//! | from | what |
//! |---|---|
//! | 0 | the loader's: start info, command line; they are read at the start, then [`REAL`] is the probe's |
//! | 2 MiB | the image, with stack and page tables |
//! | 4 MiB | [`USER_PAGE`] |
//! | 6 MiB | [`SCRATCH`], and [`LEGACY`] behind it |
//! | 8 MiB | [`FRAMES`] |

/// A 2 MiB page that ring 3 may use.
pub const USER_PAGE: u64 = 0x40_0000;

/// Memory that checks may fill as they like; nothing keeps its content from one to the next.
pub const SCRATCH: u64 = 0x60_0000;

/// Bytes at [`SCRATCH`].
pub const SCRATCH_SIZE: u64 = 0x1e_0000;

/// 128 KiB for what goes on outside of long mode: `legacy` has its own tables and stack there.
pub const LEGACY: u32 = 0x7e_0000;

/// Frames of a paravirtual guest's, for page tables and the like.
pub const FRAMES: u64 = 0x80_0000;

/// Bytes at [`FRAMES`].
pub const FRAMES_SIZE: u64 = 0x40_0000;

/// 16 KiB for what goes on in real mode, below 1 MiB: code, data with the stack, interrupt vectors.
pub const REAL: u32 = 0x8000;

/// A guest-physical address below 4 GiB where a PC with little memory has neither RAM nor a device.
pub const HOLE: u64 = 0xd000_0000;
