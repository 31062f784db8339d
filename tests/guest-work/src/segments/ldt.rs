//! The local descriptor table, as modify_ldt(2) has it.

use std::io;

use crate::error::Failure;
use crate::error::Result;

/// Entries that a table can have.
pub(super) const MOST: u32 = 8192;

/// Functions of modify_ldt(2).
const READ: libc::c_long = 0;
/// As above.
const WRITE: libc::c_long = 1;

/// Bits of [`Descriptor::flags`]: an instruction or a stack of 32 bits.
const BIG: u32 = 1 << 0;
/// Code, else data.
const CODE: u32 = 2 << 1;
/// With [`CODE`], code that does not change the privilege level; without, data that grows down.
const CONFORMING: u32 = 1 << 1;
/// The limit counts pages.
const IN_PAGES: u32 = 1 << 4;
/// Not present.
const ABSENT: u32 = 1 << 5;
/// As the kernel's header says of an empty entry: cannot be written to or read.
const READ_ONLY: u32 = 1 << 3;

/// A segment: `struct user_desc`, without the number of its entry.
#[derive(Debug, Clone, Copy)]
pub(super) struct Descriptor {
    base: u32,
    limit: u32,
    flags: u32,
}

impl Descriptor {
    /// What empties an entry.
    pub(super) const EMPTY: Self = Self { base: 0, limit: 0, flags: READ_ONLY | ABSENT };

    /// Data of 32 bits, with the offset of its last byte; below 4 GiB.
    pub(super) fn data(base: usize, limit: usize) -> Self {
        let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        Self { base: number(base), limit: number(limit), flags: BIG }
    }

    /// Code of 32 bits.
    pub(super) fn code(base: usize, limit: usize) -> Self {
        let data = Self::data(base, limit);
        Self { flags: data.flags | CODE, ..data }
    }

    /// The same for 16 bits.
    pub(super) const fn narrow(self) -> Self {
        Self { flags: self.flags & !BIG, ..self }
    }

    /// The same with a limit in pages.
    pub(super) const fn in_pages(self) -> Self {
        Self { limit: self.limit >> 12, flags: self.flags | IN_PAGES, ..self }
    }

    /// The same, not present.
    pub(super) const fn not_present(self) -> Self {
        Self { flags: self.flags | ABSENT, ..self }
    }

    /// The same as conforming code.
    pub(super) const fn conforming_code(self) -> Self {
        Self { flags: self.flags | CODE | CONFORMING, ..self }
    }

    /// Puts it into the table.
    pub(super) fn install(self, entry: u32) -> Result<()> {
        let description = [entry, self.base, self.limit, self.flags];
        // SAFETY: the structure is as long as is said. What the table's entries are used for is the callers'.
        let result =
            unsafe { libc::syscall(libc::SYS_modify_ldt, WRITE, description.as_ptr(), size_of_val(&description)) };
        answer(result).map(drop)
    }
}

/// The selector of an entry, for ring 3.
pub(super) fn selector(entry: u32) -> u16 {
    u16::try_from(entry << 3 | 7).unwrap_or(0)
}

/// The table as the CPU has it.
pub(super) fn read() -> Result<Vec<u8>> {
    let mut table = vec![0; MOST as usize * 8];
    // SAFETY: the buffer is as long as is said.
    let result = unsafe { libc::syscall(libc::SYS_modify_ldt, READ, table.as_mut_ptr(), table.len()) };
    table.truncate(answer(result)?);
    Ok(table)
}

/// A result of modify_ldt(2), of which only the lower half counts.
fn answer(result: libc::c_long) -> Result<usize> {
    #[expect(clippy::cast_possible_truncation, reason = "the kernel returns an int, which older ones do not extend")]
    let result = if result == -1 { -io::Error::last_os_error().raw_os_error().unwrap_or(0) } else { result as i32 };
    usize::try_from(result)
        .map_err(|_| Failure::Refused { what: "modify_ldt", source: io::Error::from_raw_os_error(-result) })
}
