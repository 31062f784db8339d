//! Segments of the program's own, by modify_ldt(2): data by GS in 64-bit code, code and stacks of 32 and 16 bits, entries that are
//! not there, entries that change under a thread.

mod ldt;
mod narrow;

use std::arch::asm;
use std::hint;
use std::ptr;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::thread;

use crate::attempt;
use crate::error::Result;
use crate::error::ensure;
use crate::mmap::Mapping;
use crate::mmap::PAGE;
use crate::mmap::WORDS;
use crate::processes;
use crate::random::pattern;
use ldt::Descriptor;
use ldt::MOST;

/// Pages of data, each with a segment.
const PAGES: usize = 6;
/// Entries that are used, on the first, the second and the last page of the table.
const ENTRIES: [u32; PAGES] = [0, 1, 511, 512, 4097, MOST - 1];
/// How often the thread looks for a change at most.
const TURNS: u64 = 40_000_000;

/// Access rights, as LAR gives them: data of ring 3, present, writable, of 32 bits, accessed; its limit counts bytes.
const DATA_RIGHTS: u32 = 0x0040_f300;
/// As above, with the limit counting pages.
const DATA_IN_PAGES_RIGHTS: u32 = 0x00c0_f300;

/// Tries all of it, what limits refuse only if the CPU checks them.
pub(crate) fn work(without_limits: bool) -> Result<String> {
    attempt::prepare()?;
    let mut data = Mapping::low(PAGES * PAGE)?;
    for (index, word) in (0..).zip(data.words()) {
        *word = pattern(3, index);
    }
    by_gs(&mut data)?;
    bad_entries(&data)?;
    inherited(&data)?;
    under_a_thread(&mut data)?;
    let narrow = narrow::work(without_limits)?;
    Ok(format!("segments: {narrow}"))
}

/// A segment for a page of the data.
fn segment(data: &Mapping, page: usize) -> Descriptor {
    Descriptor::data(data.address() + page * PAGE, PAGE - 1)
}

/// The word at an offset by GS.
fn read_gs(offset: usize) -> u64 {
    let value;
    // SAFETY: the caller has loaded GS with a segment of mapped memory.
    unsafe { asm!("mov {}, gs:[{}]", out(reg) value, in(reg) offset, options(nostack, readonly, preserves_flags)) };
    value
}

/// What LAR says of a selector.
fn rights(selector: u16) -> Option<u32> {
    let (rights, valid): (u32, u8);
    // SAFETY: LAR only reads.
    unsafe {
        asm!("lar {0:e}, {1:e}", "setz {2}", out(reg) rights, in(reg) u32::from(selector), out(reg_byte) valid,
            options(nomem, nostack));
    }
    (valid != 0).then_some(rights & 0x00f0_ff00)
}

/// Segments on several pages of the table, used in turn.
fn by_gs(data: &mut Mapping) -> Result<()> {
    for (page, entry) in ENTRIES.into_iter().enumerate() {
        segment(data, page).install(entry)?;
    }
    for round in 0..50_u64 {
        for (page, entry) in ENTRIES.into_iter().enumerate() {
            let selector = ldt::selector(entry);
            ensure!(attempt::load_gs(selector), "round {round}: GS cannot be loaded with entry {entry}");
            if round % 10 == 0 {
                thread::yield_now();
            }
            let word = usize::try_from(round).unwrap_or(0);
            let (read, right) = (read_gs(word * 8), pattern(3, (page * WORDS + word) as u64));
            ensure!(read == right, "by entry {entry} word {word} is {read:#x} and should be {right:#x}");
            let found = rights(selector);
            ensure!(found == Some(DATA_RIGHTS), "LAR of entry {entry} is {found:x?}");
        }
    }
    Ok(())
}

/// Entries that the kernel refuses, and that the CPU does.
fn bad_entries(data: &Mapping) -> Result<()> {
    let good = segment(data, 0);
    ensure!(good.install(MOST).is_err(), "the table has an entry {MOST}");
    ensure!(good.conforming_code().install(0).is_err(), "an entry can be conforming code");
    good.in_pages().install(7)?;
    let found = rights(ldt::selector(7));
    ensure!(found == Some(DATA_IN_PAGES_RIGHTS), "LAR of entry 7 is {found:x?}");
    // Not present, empty, and where the table has no entry: none can be loaded, and all are what they were after that.
    good.not_present().install(7)?;
    Descriptor::EMPTY.install(8)?;
    for entry in [7, 8, 9] {
        ensure!(!attempt::load_gs(ldt::selector(entry)), "GS can be loaded with entry {entry}");
    }
    ensure!(rights(ldt::selector(8)).is_none(), "LAR finds an empty entry");
    good.install(7)?;
    ensure!(attempt::load_gs(ldt::selector(7)), "GS cannot be loaded with entry 7");
    ensure!(read_gs(0) == pattern(3, 0), "by entry 7 there is {:#x}", read_gs(0));
    ensure!(attempt::load_gs(0), "GS cannot be made null");
    Ok(())
}

/// A child has a table of its own, which is as the parent's was.
fn inherited(data: &Mapping) -> Result<()> {
    let before = ldt::read()?;
    let child = processes::fork(|| {
        ensure!(ldt::read()? == before, "the child's table is not its parent's");
        ensure!(attempt::load_gs(ldt::selector(ENTRIES[5])), "the child cannot use its parent's last entry");
        ensure!(read_gs(0) == pattern(3, (5 * WORDS) as u64), "by the last entry there is {:#x}", read_gs(0));
        ENTRIES.iter().try_for_each(|entry| Descriptor::EMPTY.install(*entry))?;
        ensure!(!attempt::load_gs(ldt::selector(ENTRIES[5])), "the child can use an entry that it emptied");
        Ok(())
    })?;
    child.succeeds()?;
    ensure!(ldt::read()? == before, "the parent's table changed with its child's");
    for (page, entry) in ENTRIES.into_iter().enumerate() {
        segment(data, page).install(entry)?;
        ensure!(attempt::load_gs(ldt::selector(entry)), "GS cannot be loaded with entry {entry} after the child's end");
    }
    ensure!(attempt::load_gs(0), "GS cannot be made null");
    Ok(())
}

/// A thread uses a segment whose entry changes again and again.
fn under_a_thread(data: &mut Mapping) -> Result<()> {
    let entry = ENTRIES[3];
    segment(data, 0).install(entry)?;
    let seen = AtomicU32::new(0);
    let data = &*data;
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut page, mut turns) = (0_usize, 0_u64);
            while page < PAGES {
                // With FSGSBASE, Linux leaves GS alone when the entry changes: the next load finds what it is.
                if !attempt::load_gs(ldt::selector(entry)) {
                    return Some("the thread cannot load the segment".to_owned());
                }
                let value = read_gs(8);
                if value == pattern(3, (page * WORDS + 1) as u64) {
                    page += 1;
                    seen.fetch_add(1, Ordering::Release);
                }
                turns += 1;
                if turns == TURNS {
                    return Some(format!("the thread does not see the segment's page {page}, but {value:#x}"));
                }
            }
            attempt::load_gs(0);
            None
        });
        for page in 1..PAGES {
            while (seen.load(Ordering::Acquire) as usize) < page && !reader.is_finished() {
                hint::spin_loop();
                thread::yield_now();
            }
            segment(data, page).install(entry)?;
        }
        let wrong = reader.join().unwrap_or_else(|_| Some("the thread panicked".to_owned()));
        ensure!(wrong.is_none(), "{}", wrong.unwrap_or_default());
        Ok(())
    })?;
    let last: *const u64 = ptr::with_exposed_provenance(data.address() + (PAGES - 1) * PAGE + 8);
    // SAFETY: the word is the mapping's.
    let word = unsafe { last.read() };
    ensure!(word == pattern(3, ((PAGES - 1) * WORDS + 1) as u64), "the data changed");
    Ok(())
}
