//! Work for a host's kernel, until SIGTERM: page faults, pipes between processes, new processes, system calls, computing.

use std::io;
use std::io::Read;
use std::io::Write;
use std::ptr;
use std::time::Duration;

use crate::last_error;
use crate::ticks::blocked;
use crate::ticks::comes;

/// A kind of work by its name, and what does it once.
type Kind = (&'static str, fn() -> io::Result<()>);

/// Bytes of the memory that is mapped, touched and unmapped.
const MEMORY: usize = 1 << 20;
/// Bytes of a page.
const PAGE: usize = 4096;
/// How often the loops go round between two looks at whether to end.
const ROUNDS: u32 = 20;
/// Numbers that are computed in a round.
const NUMBERS: u64 = 200_000;

/// Runs one process for each kind of work on each of `cpus` CPUs, and prints how much they did: each at least something.
pub(crate) fn stress(cpus: u32) -> io::Result<()> {
    let terminate = blocked(libc::SIGTERM)?;
    let kinds: [Kind; 4] = [("faults", faults), ("pipes", pipes), ("processes", processes), ("numbers", numbers)];
    let mut workers = Vec::new();
    for _ in 0..cpus {
        for (_, work) in kinds {
            workers.push(Worker::start(work, &terminate)?);
        }
    }
    while !comes(&terminate, Duration::from_secs(1))? {}
    let mut done = [0_u64; 4];
    for (index, worker) in workers.into_iter().enumerate() {
        done[index % kinds.len()] += worker.end()?;
    }
    let told: Vec<String> = kinds.iter().zip(done).map(|((name, _), count)| format!("{name} {count}")).collect();
    println!("stress: {}", told.join(", "));
    if done.contains(&0) { Err(io::Error::other("some of it was not done at all")) } else { Ok(()) }
}

/// A process that works until SIGTERM, and then tells how much it did.
struct Worker {
    pid: libc::pid_t,
    told: io::PipeReader,
}

impl Worker {
    fn start(work: fn() -> io::Result<()>, terminate: &libc::sigset_t) -> io::Result<Self> {
        let (told, mut tell) = io::pipe()?;
        match fork()? {
            0 => {
                let mut count = 0_u64;
                let done = loop {
                    let round = (0..ROUNDS).try_for_each(|_| work());
                    count += u64::from(ROUNDS);
                    match round.and_then(|()| comes(terminate, Duration::ZERO)) {
                        Ok(false) => {}
                        Ok(true) => break tell.write_all(&count.to_ne_bytes()),
                        Err(error) => break Err(error),
                    }
                };
                exit(i32::from(done.is_err()))
            }
            pid => Ok(Self { pid, told }),
        }
    }

    fn end(mut self) -> io::Result<u64> {
        // SAFETY: kill(2) takes plain integers.
        unsafe { libc::kill(self.pid, libc::SIGTERM) };
        let mut count = [0; 8];
        self.told.read_exact(&mut count)?;
        wait(self.pid)?;
        Ok(u64::from_ne_bytes(count))
    }
}

fn fork() -> io::Result<libc::pid_t> {
    // SAFETY: this program has one thread, so the child may do whatever the parent may.
    match unsafe { libc::fork() } {
        -1 => last_error(),
        pid => Ok(pid),
    }
}

fn exit(status: i32) -> ! {
    // SAFETY: the child ends, without what the parent has to do at its own end.
    unsafe { libc::_exit(status) }
}

/// Waits for a child, which has to succeed.
fn wait(pid: libc::pid_t) -> io::Result<()> {
    let mut status = 0;
    // SAFETY: the pointer is to a live number.
    if unsafe { libc::waitpid(pid, &raw mut status, 0) } != pid {
        return last_error();
    }
    if status == 0 { Ok(()) } else { Err(io::Error::other(format!("a worker ended with status {status:#x}"))) }
}

fn faults() -> io::Result<()> {
    // SAFETY: new memory, which only this function has and knows the size of.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let memory = libc::mmap(ptr::null_mut(), MEMORY, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        if memory == libc::MAP_FAILED {
            return last_error();
        }
        for at in (0..MEMORY).step_by(PAGE) {
            memory.cast::<u8>().add(at).write_volatile(1);
        }
        libc::munmap(memory, MEMORY);
    }
    Ok(())
}

/// A byte to a child and back, a few times.
fn pipes() -> io::Result<()> {
    let ((mut there_reader, mut there), (mut back, mut back_writer)) = (io::pipe()?, io::pipe()?);
    let pid = fork()?;
    if pid == 0 {
        let mut byte = [0];
        drop(there);
        while let Ok(1) = there_reader.read(&mut byte) {
            if back_writer.write_all(&byte).is_err() {
                exit(1);
            }
        }
        exit(0)
    }
    drop(there_reader);
    for number in 0..50_u8 {
        let mut byte = [number];
        there.write_all(&byte)?;
        back.read_exact(&mut byte)?;
        if byte != [number] {
            return Err(io::Error::other("a byte changed in a pipe"));
        }
    }
    drop(there);
    wait(pid)
}

fn processes() -> io::Result<()> {
    match fork()? {
        0 => exit(0),
        pid => wait(pid),
    }
}

fn numbers() -> io::Result<()> {
    let sum = (0..NUMBERS).fold(0_u64, |sum, number| std::hint::black_box(sum.wrapping_add(number * number)));
    // The sum of the squares below n.
    let right = (NUMBERS - 1) * NUMBERS * (2 * NUMBERS - 1) / 6;
    if sum == right { Ok(()) } else { Err(io::Error::other(format!("a sum is {sum} and should be {right}"))) }
}
