//! Serving commands over an open port.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::thread;
use std::time::Duration;

use covisor_exec_protocol::{Decoder, MAX_PAYLOAD, ToGuest, ToHost, VERSION};

use crate::job::{Job, PipeRead, read_pipe, status_number};
use crate::port;
use crate::port::Port;

/// How much output waits for the host at most; beyond it the command waits.
const OUTPUT_LIMIT: usize = 512 * 1024;

/// The status of a command that could not be started, as a shell says it.
const CANNOT_START: i32 = 126;

/// The status of a command that the host ended, as a shell says it.
const KILLED: i32 = 128 + libc::SIGKILL;

/// How long a serial line is left to itself when bytes have come: they come one by one, and to wake up for a few of them
/// costs more than everything else that is done with them. Linux keeps several thousand.
const SERIAL_PAUSE: Duration = Duration::from_millis(20);

/// The connection to one host.
struct Session<'p> {
    port: &'p File,
    /// Whether the host waits while the port is not read.
    host_waits: bool,
    decoder: Decoder<ToGuest>,
    output: Vec<u8>,
    job: Option<Job>,
    /// Sets the guest's clock.
    set_clock: fn(u64),
    buffer: Vec<u8>,
}

/// Serves one host after another over the port at `path`; returns when the port is gone.
pub(crate) fn serve(path: &Path) -> io::Result<()> {
    let port = port::open(path)?;
    let mut hello = Vec::new();
    encode(&ToHost::Hello(VERSION), &mut hello);
    loop {
        match port::write_when_host_is_there(&port.file, &hello) {
            Ok(()) => Session::new(&port).run(),
            // The device was unplugged.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Encodes a message that fits a frame by construction.
fn encode(message: &ToHost, out: &mut Vec<u8>) {
    if let Err(error) = message.encode(out) {
        unreachable!("the agent cuts output to frames: {error}");
    }
}

impl<'p> Session<'p> {
    fn new(port: &'p Port) -> Self {
        let Port { file, host_waits } = port;
        Self {
            port: file,
            host_waits: *host_waits,
            decoder: Decoder::new(),
            output: Vec::new(),
            job: None,
            set_clock: crate::clock::set,
            buffer: vec![0; MAX_PAYLOAD],
        }
    }

    /// Serves until the host goes away; a command that still runs then is killed.
    fn run(mut self) {
        while self.turn() {}
        if let Some(job) = self.job.take() {
            job.kill();
        }
    }

    /// Waits for something to do and does it; false when the host is gone.
    fn turn(&mut self) -> bool {
        let ready = match self.wait() {
            Ok(ready) => ready,
            Err(error) => {
                crate::say(&format!("cannot wait for the host: {error}"));
                return false;
            }
        };
        if ready.host_gone {
            return false;
        }
        if ready.port_in && !self.host_waits {
            thread::sleep(SERIAL_PAUSE);
        }
        if ready.port_in && !self.read_port() {
            return false;
        }
        if let Some(job) = &mut self.job {
            job.pump_stdin();
        }
        self.read_output();
        self.reap();
        self.write_port()
    }

    /// Sleeps until a descriptor that matters now is ready.
    fn wait(&self) -> io::Result<Ready> {
        let entry = |fd: RawFd, events: libc::c_short| libc::pollfd { fd, events, revents: 0 };
        let wants_input = !self.host_waits || self.job.as_ref().is_none_or(Job::has_room_for_stdin);
        let has_room = self.output.len() < OUTPUT_LIMIT;
        let mut port_events = 0;
        if wants_input {
            port_events |= libc::POLLIN;
        }
        if !self.output.is_empty() {
            port_events |= libc::POLLOUT;
        }
        let mut entries = vec![entry(self.port.as_raw_fd(), port_events)];
        if let Some(job) = &self.job {
            if has_room {
                entries.extend(job.stdout.iter().chain(&job.stderr).map(|pipe| entry(pipe.as_raw_fd(), libc::POLLIN)));
                entries.push(entry(job.pidfd.as_raw_fd(), libc::POLLIN));
            }
            // Not polled while there is nothing to write: a closed pipe is always ready.
            let stdin = job.stdin.iter().filter(|_| job.wants_to_write_stdin());
            entries.extend(stdin.map(|pipe| entry(pipe.as_raw_fd(), libc::POLLOUT)));
        }
        loop {
            let count = libc::nfds_t::try_from(entries.len()).map_err(io::Error::other)?;
            // SAFETY: the pointer and the count are those of a live vector of pollfd.
            if unsafe { libc::poll(entries.as_mut_ptr(), count, -1) } >= 0 {
                break;
            }
            let error = io::Error::last_os_error();
            if error.kind() != ErrorKind::Interrupted {
                return Err(error);
            }
        }
        let port = entries[0].revents;
        Ok(Ready {
            // POLLHUP can come with POLLIN: what the host said before it went is still served.
            port_in: wants_input && port & libc::POLLIN != 0,
            host_gone: port & (libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) != 0 && port & libc::POLLIN == 0,
        })
    }

    /// Reads and obeys what the host says; false when it is gone or talks nonsense.
    fn read_port(&mut self) -> bool {
        let mut port = self.port;
        let count = match port.read(&mut self.buffer) {
            Ok(0) => return false,
            Ok(count) => count,
            Err(error) => {
                return matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted);
            }
        };
        let buffer = std::mem::take(&mut self.buffer);
        let mut input = &buffer[..count];
        let sane = loop {
            match self.decoder.next(&mut input) {
                Ok(Some(message)) => self.obey(message),
                Ok(None) => break true,
                Err(error) => {
                    crate::say(&error.to_string());
                    break false;
                }
            }
        };
        self.buffer = buffer;
        sane
    }

    fn obey(&mut self, message: ToGuest) {
        match (message, &mut self.job) {
            (ToGuest::Exec(command), job) => {
                // A host that gives a new command has given up on the one that runs.
                if let Some(old) = job.take() {
                    old.kill();
                }
                match Job::start(&command) {
                    Ok(new) => *job = Some(new),
                    Err(error) => {
                        let text = format!("covisor-agent: cannot run /bin/sh in the guest: {error}\n");
                        encode(&ToHost::Stderr(text.into_bytes()), &mut self.output);
                        encode(&ToHost::Exit(CANNOT_START), &mut self.output);
                    }
                }
            }
            (ToGuest::Stdin(bytes), Some(job)) => job.give_stdin(&bytes),
            (ToGuest::StdinEnd, Some(job)) => job.end_stdin(),
            (ToGuest::SetClock(nanoseconds), _) => (self.set_clock)(nanoseconds),
            (ToGuest::Kill, job @ Some(_)) => {
                if let Some(old) = job.take() {
                    old.kill();
                }
                encode(&ToHost::Exit(KILLED), &mut self.output);
            }
            // Under way when the command ended.
            (ToGuest::Stdin(_) | ToGuest::StdinEnd | ToGuest::Kill, None) => {}
        }
    }

    /// Takes what the command has written, as far as there is room.
    fn read_output(&mut self) {
        let Some(job) = &mut self.job else { return };
        for (pipe, message) in
            [(&mut job.stdout, ToHost::Stdout as fn(Vec<u8>) -> ToHost), (&mut job.stderr, ToHost::Stderr)]
        {
            while let Some(file) = pipe
                && self.output.len() < OUTPUT_LIMIT
            {
                match read_pipe(file, &mut self.buffer) {
                    PipeRead::Bytes(count) => encode(&message(self.buffer[..count].to_vec()), &mut self.output),
                    PipeRead::Nothing => break,
                    PipeRead::End => *pipe = None,
                }
            }
        }
    }

    /// Reports the command's end once all that it wrote is taken.
    ///
    /// What it left running in the background may hold the pipes open: that output is not waited
    /// for.
    fn reap(&mut self) {
        let Some(job) = &mut self.job else { return };
        let status = match job.try_wait() {
            Ok(Some(status)) => status_number(status),
            Ok(None) => return,
            Err(_) => 255,
        };
        self.read_output();
        if self.output.len() >= OUTPUT_LIMIT {
            // The rest is taken once the host has read some.
            return;
        }
        encode(&ToHost::Exit(status), &mut self.output);
        self.job = None;
    }

    /// Passes on as much as the host takes now; false when it is gone.
    fn write_port(&mut self) -> bool {
        let mut port = self.port;
        let mut written = 0;
        while written < self.output.len() {
            match port.write(&self.output[written..]) {
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        self.output.drain(..written);
        true
    }
}

/// What the port has.
struct Ready {
    port_in: bool,
    host_gone: bool,
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// What the host sees of commands.
    #[derive(Default)]
    struct Seen {
        stdout: Vec<u8>,
        stderr: Vec<u8>,
        statuses: Vec<i32>,
    }

    fn port(socket: UnixStream) -> Port {
        Port { file: File::from(OwnedFd::from(socket)), host_waits: true }
    }

    /// Plays the host: sends the messages, then reads until so many commands have ended.
    fn host(messages: &[ToGuest], ends: usize) -> Seen {
        let (mut host, agent) = UnixStream::pair().unwrap();
        agent.set_nonblocking(true).unwrap();
        let agent = thread::spawn(move || Session::new(&port(agent)).run());
        let mut bytes = Vec::new();
        for message in messages {
            message.encode(&mut bytes).unwrap();
        }
        let mut writer = host.try_clone().unwrap();
        let sender = thread::spawn(move || writer.write_all(&bytes).unwrap());
        let mut decoder = Decoder::<ToHost>::new();
        let mut seen = Seen::default();
        let mut buffer = [0; 4096];
        while seen.statuses.len() < ends {
            let count = host.read(&mut buffer).unwrap();
            let mut input = &buffer[..count];
            while let Some(message) = decoder.next(&mut input).unwrap() {
                match message {
                    ToHost::Hello(_) => {}
                    ToHost::Stdout(bytes) => seen.stdout.extend(bytes),
                    ToHost::Stderr(bytes) => seen.stderr.extend(bytes),
                    ToHost::Exit(status) => seen.statuses.push(status),
                }
            }
        }
        sender.join().unwrap();
        drop(host);
        agent.join().unwrap();
        seen
    }

    fn exec(command: &str) -> ToGuest {
        ToGuest::Exec(command.into())
    }

    #[test]
    fn output_error_and_status_come_back_apart() {
        let seen = host(&[exec("echo out; echo err >&2; exit 42")], 1);
        assert_eq!((seen.stdout.as_slice(), seen.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
        assert_eq!(seen.statuses, [42]);
    }

    #[test]
    fn a_signal_is_told_as_a_shell_tells_it() {
        assert_eq!(host(&[exec("kill -9 $$")], 1).statuses, [137]);
    }

    #[test]
    fn bytes_pass_both_ways_unchanged_and_beyond_every_buffer() {
        let data: Vec<u8> = (0..3_000_000u32).map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
        let mut messages = vec![exec("cat")];
        messages.extend(data.chunks(MAX_PAYLOAD).map(|chunk| ToGuest::Stdin(chunk.to_vec())));
        messages.push(ToGuest::StdinEnd);
        let seen = host(&messages, 1);
        assert!(seen.stdout == data);
        assert_eq!(seen.statuses, [0]);
    }

    #[test]
    fn input_that_nobody_reads_stops_nothing() {
        let mut messages = vec![exec("exec <&-; sleep 0.2; echo done")];
        messages.extend((0..8).map(|_| ToGuest::Stdin(vec![7; MAX_PAYLOAD])));
        let seen = host(&messages, 1);
        assert_eq!(seen.stdout, b"done\n");
    }

    #[test]
    fn a_background_process_does_not_hold_the_command_up() {
        let seen = host(&[exec("sleep 60 & echo started")], 1);
        assert_eq!(seen.stdout, b"started\n");
        assert_eq!(seen.statuses, [0]);
    }

    #[test]
    fn the_next_command_follows_the_first() {
        let messages = [exec("true"), exec("echo second")];
        // The first may be cut off by the second, whose output and status come last.
        let seen = host(&messages, 1);
        assert!(seen.statuses.ends_with(&[0]));
    }

    #[test]
    fn a_command_that_the_host_ends_has_a_status_and_the_next_one_runs() {
        let messages =
            [ToGuest::Kill, exec("echo first; sleep 1000"), ToGuest::Kill, ToGuest::Kill, exec("echo second")];
        let seen = host(&messages, 2);
        assert_eq!(seen.statuses, [137, 0]);
        assert!(seen.stdout.ends_with(b"second\n"));
    }

    #[test]
    fn the_clock_is_set_beside_a_command() {
        static TIME: AtomicU64 = AtomicU64::new(0);
        let (host, agent) = UnixStream::pair().unwrap();
        agent.set_nonblocking(true).unwrap();
        let agent = thread::spawn(move || {
            let port = port(agent);
            let mut session = Session::new(&port);
            session.set_clock = |time| TIME.store(time, Ordering::SeqCst);
            session.run();
        });
        let mut bytes = Vec::new();
        for message in [exec("sleep 1000"), ToGuest::SetClock(u64::MAX)] {
            message.encode(&mut bytes).unwrap();
        }
        (&host).write_all(&bytes).unwrap();
        while TIME.load(Ordering::SeqCst) != u64::MAX {
            thread::yield_now();
        }
        drop(host);
        agent.join().unwrap();
    }

    #[test]
    fn a_host_that_goes_away_takes_its_command_with_it() {
        let (host, agent) = UnixStream::pair().unwrap();
        agent.set_nonblocking(true).unwrap();
        let agent = thread::spawn(move || Session::new(&port(agent)).run());
        let mut bytes = Vec::new();
        exec("sleep 1000").encode(&mut bytes).unwrap();
        (&host).write_all(&bytes).unwrap();
        drop(host);
        // Ends only because the command is killed.
        agent.join().unwrap();
    }
}
