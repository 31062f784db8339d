//! What is measured.

use std::io;
use std::io::{PipeReader, PipeWriter, Read, Write};

use crate::memory::Mapping;
use crate::process::fork;
use crate::rounds::{counter, measure};

/// An operation.
pub(crate) struct Operation {
    /// Its name, as `cargo xtask bench` knows it.
    pub(crate) name: &'static str,
    /// Does it many times and tells what one takes.
    pub(crate) measure: fn() -> io::Result<u64>,
}

/// All of them, in the order in which they are done.
pub(crate) const OPERATIONS: [Operation; 5] = [
    Operation { name: "getpid", measure: getpid },
    Operation { name: "page-fault", measure: page_fault },
    Operation { name: "fork-exit", measure: fork_exit },
    Operation { name: "context-switch", measure: context_switch },
    Operation { name: "mmap-1m", measure: mmap_1m },
];

const MIB: usize = 1 << 20;

/// The shortest system call.
fn getpid() -> io::Result<u64> {
    measure(1000, |count| {
        let start = counter();
        for _ in 0..count {
            // SAFETY: only returns a number.
            unsafe { libc::syscall(libc::SYS_getpid) };
        }
        Ok(counter() - start)
    })
}

/// Pages that are written to at the operations with memory: enough for what page tables cost to be seen.
const PAGES: u32 = 4000;

/// The first write to a page of anonymous memory. Whether that is a fault for each page or for hundreds of them is the kernel's
/// choice: on paravirtual machines it has no huge pages.
fn page_fault() -> io::Result<u64> {
    measure(PAGES, |count| {
        let memory = Mapping::of_pages(count)?;
        let start = counter();
        memory.write_to_each_page();
        Ok(counter() - start)
    })
}

/// A process that is started and ends at once, until its parent knows. Its parent has memory whose tables are copied.
fn fork_exit() -> io::Result<u64> {
    let memory = Mapping::of_pages(PAGES)?;
    memory.write_to_each_page();
    measure(10, |count| {
        let start = counter();
        for _ in 0..count {
            fork(|| 0)?.wait()?;
        }
        Ok(counter() - start)
    })
}

/// A byte to another process through a pipe and back through another: two switches, four system calls.
fn context_switch() -> io::Result<u64> {
    let (mut from_child, mut to_parent) = io::pipe()?;
    let (mut from_parent, mut to_child) = io::pipe()?;
    let child = fork(|| match send_back(&mut from_parent, &mut to_parent) {
        Ok(()) => 0,
        Err(_) => 1,
    })?;
    let figure = measure(100, |count| {
        let start = counter();
        for _ in 0..count {
            to_child.write_all(&[GO_ON])?;
            from_child.read_exact(&mut [0])?;
        }
        Ok(counter() - start)
    });
    // The child has the writing end of its input, too, and so would never see it closed.
    to_child.write_all(&[END])?;
    child.wait()?;
    figure
}

/// A byte to be sent back.
const GO_ON: u8 = 1;

/// A byte that ends who gets it.
const END: u8 = 0;

/// Sends back each byte until [`END`].
fn send_back(from: &mut PipeReader, to: &mut PipeWriter) -> io::Result<()> {
    loop {
        let mut byte = [END];
        from.read_exact(&mut byte)?;
        if byte == [END] {
            return Ok(());
        }
        to.write_all(&byte)?;
    }
}

/// A mapping of 1 MiB with all its pages, and its end.
fn mmap_1m() -> io::Result<u64> {
    measure(10, |count| {
        let start = counter();
        for _ in 0..count {
            drop(Mapping::populated(MIB)?);
        }
        Ok(counter() - start)
    })
}
