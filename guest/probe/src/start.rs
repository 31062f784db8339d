//! From the entry to what the command line asks for.

use crate::bench;
use crate::checks;
use crate::cmdline;
use crate::cmdline::CommandLine;
use crate::exception;
use crate::hostile;
use crate::machine;
use crate::report;

/// `hvm_start_info`, version 0 (Xen `public/arch-x86/hvm/start_info.h`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct StartInfo {
    /// [`StartInfo::MAGIC`].
    pub magic: u32,
    /// Version.
    pub version: u32,
    /// Flags.
    pub flags: u32,
    /// Modules loaded beside the kernel.
    pub module_count: u32,
    /// Where they are listed.
    pub module_list: u64,
    /// Where the command line is, NUL-terminated; 0: none.
    pub command_line: u64,
    /// ACPI's root pointer.
    pub rsdp: u64,
}

impl StartInfo {
    /// "xEn3" with the upper bit of the E set.
    pub const MAGIC: u32 = 0x336e_c578;
}

/// Entered from `boot`, in 64-bit mode.
///
/// # Safety
/// `info` is what the loader left in EBX, and its memory is as the loader filled it.
pub unsafe extern "C" fn start(info: *const StartInfo, entry_tsc: u64) -> ! {
    exception::install();
    // SAFETY: by this function's contract.
    let line = unsafe { command_line(info) };
    go(&line, entry_tsc)
}

/// Does what the command line asks for, and ends the machine.
pub(crate) fn go(line: &CommandLine, entry_tsc: u64) -> ! {
    report::set_emulated_cpu(line.value("cpu") == Some("tcg"));
    println!("probe: entry-tsc {entry_tsc}");
    let test = line.value("test").unwrap_or("all");
    if test == "bench" {
        bench::run(line);
    } else if let Some(mode) = hostile::find(test) {
        hostile::run(mode, line);
    } else if test != "entry" {
        checks::run(test, line);
    }
    machine::power_off()
}

/// Copies the command line.
///
/// # Safety
/// As [`start`].
unsafe fn command_line(info: *const StartInfo) -> CommandLine {
    // SAFETY: by the contract.
    let info = unsafe { info.read_unaligned() };
    if info.magic != StartInfo::MAGIC || info.command_line == 0 {
        return CommandLine::EMPTY;
    }
    let Ok(address) = usize::try_from(info.command_line) else { return CommandLine::EMPTY };
    let text = core::ptr::with_exposed_provenance::<u8>(address);
    // SAFETY: by the contract; what lies behind the NUL is read no further than the longest line.
    CommandLine::from_bytes((0..cmdline::MAX).map(|index| unsafe { text.add(index).read_volatile() }))
}
