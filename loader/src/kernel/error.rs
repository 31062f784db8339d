//! What can be wrong with a kernel, its initial RAM disk or its command line.

use std::io;

use thiserror::Error;

/// Why a kernel cannot be started.
#[derive(Debug, Error)]
pub enum KernelError {
    /// The file cannot be read.
    #[error("it cannot be read: {0}")]
    Read(#[from] io::Error),
    /// No format that we know.
    #[error("it is neither a Linux bzImage (vmlinuz) nor an x86-64 ELF kernel (vmlinux)")]
    UnknownFormat,
    /// The file ends before what its headers announce.
    #[error("it is truncated: {part} should go on to byte {end}, the file has {len}")]
    Truncated {
        /// What is cut off.
        part: &'static str,
        /// Where it should end.
        end: u64,
        /// The file's length.
        len: u64,
    },
    /// A header contradicts itself.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// A 32-bit kernel.
    #[error("it is a 32-bit kernel; covisor runs 64-bit kernels (for x86-64) only")]
    Not64Bit,
    /// An ELF file for another machine.
    #[error("it is an ELF file for another kind of machine, not for x86-64")]
    WrongMachine,
    /// Too old a kernel.
    #[error("it speaks Linux boot protocol {}.{:02}, covisor needs 2.12 (Linux 3.8 or newer)", .0 >> 8, .0 & 0xff)]
    OldProtocol(u16),
    /// A compression that we cannot undo.
    #[error("it is compressed by {0}; decompress it first")]
    UnknownCompression(&'static str),
    /// A bzImage that holds its kernel in a compression that we cannot undo.
    #[error(
        "it holds its kernel compressed by {0}, which covisor cannot undo: take its vmlinux out by Linux's \
         scripts/extract-vmlinux, and name that"
    )]
    UnknownPayload(&'static str),
    /// The compressed data is bad.
    #[error("its {kind} compression is damaged: {source}")]
    Decompress {
        /// Kind of compression.
        kind: &'static str,
        /// What the decompressor says.
        source: io::Error,
    },
    /// The decompressed file is larger than RAM.
    #[error("decompressed, it does not fit into the guest's {} MiB of RAM: raise --mem", .ram >> 20)]
    DecompressedTooLarge {
        /// Size of RAM.
        ram: u64,
    },
    /// The kernel does not fit.
    #[error(
        "it needs the memory from {start:#x} to {end:#x}, but the guest's RAM there ends at {ram_end:#x}: raise --mem"
    )]
    DoesNotFit {
        /// First address that it needs.
        start: u64,
        /// End of what it needs.
        end: u64,
        /// End of RAM below 4 GiB.
        ram_end: u64,
    },
    /// A kernel without Xen PV support.
    #[error(
        "engine coop runs kernels with Xen PV support (CONFIG_XEN_PV), and this one has none: name one that has it by \
         --kernel, such as that of Debian's package linux-image-cloud-amd64 or linux-image-amd64"
    )]
    NotParavirtual,
    /// A kernel whose Xen PV support wants what we do not have.
    #[error("engine coop cannot start it: {0}")]
    ParavirtualForm(&'static str),
    /// A segment over memory that the start-up data uses.
    #[error("it wants to be loaded at {start:#x}, below 1 MiB, where the guest's start-up data lies")]
    TooLow {
        /// Where it wants to be.
        start: u64,
    },
    /// Segments that overlap.
    #[error("it is damaged: its segments at {first:#x} and {second:#x} overlap")]
    Overlap {
        /// One segment.
        first: u64,
        /// The other one.
        second: u64,
    },
    /// The entry point lies in no segment.
    #[error("it is damaged: its entry point {0:#x} lies in none of its segments")]
    EntryOutside(u64),
    /// The initial RAM disk does not fit.
    #[error(
        "the initial RAM disk ({} KiB) does not fit between the kernel's end ({kernel_end:#x}) and {limit:#x}: raise --mem",
        .size.div_ceil(1024)
    )]
    InitrdTooLarge {
        /// Its size.
        size: u64,
        /// End of the kernel.
        kernel_end: u64,
        /// Where it must end.
        limit: u64,
    },
    /// The command line is too long.
    #[error("the command line has {len} bytes, this kernel takes at most {max}: shorten --append")]
    CommandLineTooLong {
        /// Its length.
        len: u64,
        /// The longest that the kernel takes.
        max: u64,
    },
    /// RAM is too small to start anything.
    #[error("{} KiB of RAM are too little to start a kernel: raise --mem", .0 >> 10)]
    RamTooSmall(u64),
    /// The initial RAM disk cannot be read.
    #[error("the initial RAM disk cannot be read: {0}")]
    ReadInitrd(io::Error),
    /// Guest memory refuses a copy, which the plan excludes.
    #[error("the guest's memory at {address:#x} cannot be filled: {reason}")]
    Memory {
        /// Where.
        address: u64,
        /// Why.
        reason: String,
    },
}
