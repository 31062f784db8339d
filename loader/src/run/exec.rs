//! `--exec`: a command in the guest, by the guest's agent.

use std::io;
use std::io::Read;
use std::io::Write;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;

use covisor_exec_protocol::Decoder;
use covisor_exec_protocol::ToGuest;
use covisor_exec_protocol::ToHost;
use covisor_exec_protocol::VERSION;

use crate::devices::pipe::HostInput;
use crate::devices::pipe::HostOutput;
use crate::platform::lock;
use crate::run::RunError;
use crate::run::clock;
use crate::run::session::Event;
use crate::run::session::spawn;
use crate::sys::terminal;

/// What asks any Linux to power off soon and in order: systemd without stopping its services one by one, or busybox.
const POWER_OFF: &str = "systemctl -f poweroff || { sync; poweroff -f; }";
/// Bytes of standard input that are taken at once.
const CHUNK: usize = 16 << 10;

/// Runs a command over the agent's port, and reports its end as [`Event::Exec`].
pub(super) fn start(input: HostInput, port: Arc<Port>, command: String, events: Sender<Event>) -> io::Result<()> {
    spawn("exec", move || {
        let mut agent = Agent { port, command, state: State::Waiting };
        match agent.serve(&input, &mut terminal::stdout(), &mut terminal::stderr()) {
            Ok(Some(status)) => {
                let _ = events.send(Event::Exec(Ok(status)));
                // The guest may go on talking while it powers off; it must not wait for us.
                let _ = input.copy_to(&mut io::sink());
            }
            // The port is gone with the machine, whose end is told elsewhere.
            Ok(None) => {}
            Err(error) => {
                let _ = events.send(Event::Exec(Err(error)));
            }
        }
    })
    .map(drop)
}

/// The way to the agent.
#[derive(Debug)]
pub(super) struct Port {
    output: HostOutput,
    /// Held for a frame: several threads send.
    frame: Mutex<()>,
    /// The agent is there.
    is_ready: AtomicBool,
    /// The clock jumped, and somebody is on the way to tell the agent, or will when it is there.
    clock_jumped: AtomicBool,
}

impl Port {
    pub(super) fn new(output: HostOutput) -> Self {
        Self { output, frame: Mutex::new(()), is_ready: AtomicBool::new(false), clock_jumped: AtomicBool::new(false) }
    }

    /// Asks the guest to power off, once its command is over.
    pub(super) fn power_off(&self) {
        self.send(&ToGuest::Exec(POWER_OFF.to_owned()));
    }

    /// The host's clock jumped: has the agent set the guest's, at once or as soon as it is there.
    pub(super) fn clock_jumped(self: &Arc<Self>) -> io::Result<()> {
        if self.clock_jumped.swap(true, Ordering::SeqCst) || !self.is_ready.load(Ordering::SeqCst) {
            return Ok(());
        }
        // The guest may be long in taking it.
        let port = Arc::clone(self);
        spawn("clock-told", move || port.tell_time()).map(drop)
    }

    fn tell_time(&self) {
        let _whole = lock(&self.frame);
        if self.clock_jumped.swap(false, Ordering::SeqCst) {
            self.put(&clock::message());
        }
    }

    /// Whether the message could be sent.
    fn send(&self, message: &ToGuest) -> bool {
        let _whole = lock(&self.frame);
        self.put(message)
    }

    fn put(&self, message: &ToGuest) -> bool {
        let mut bytes = Vec::new();
        // Only the command can be too long, and it was checked before the machine was made.
        message.encode(&mut bytes).is_ok() && self.output.send(&bytes)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// For the agent to say that it is there.
    Waiting,
    /// The command runs.
    Running,
}

struct Agent {
    port: Arc<Port>,
    command: String,
    state: State,
}

impl Agent {
    /// Talks to the agent until the command ends; `None` when the port goes first.
    fn serve(
        &mut self,
        input: &HostInput,
        stdout: &mut dyn Write,
        stderr: &mut dyn Write,
    ) -> Result<Option<i32>, RunError> {
        let mut decoder = Decoder::<ToHost>::new();
        let mut buffer = [0; 4096];
        loop {
            let count = input.receive(&mut buffer);
            if count == 0 {
                return Ok(None);
            }
            let mut bytes = &buffer[..count];
            while let Some(message) = decoder.next(&mut bytes)? {
                match message {
                    ToHost::Hello(version) => self.hello(version)?,
                    ToHost::Stdout(bytes) => put(stdout, &bytes)?,
                    // Nobody reading what goes wrong is no reason to end the command.
                    ToHost::Stderr(bytes) => drop(put(stderr, &bytes)),
                    ToHost::Exit(status) if self.state == State::Running => return Ok(Some(status)),
                    ToHost::Exit(_) => {}
                }
            }
        }
    }

    /// The agent is there: tells it the command.
    fn hello(&mut self, version: u32) -> Result<(), RunError> {
        if version != VERSION {
            return Err(RunError::AgentVersion { agent: version, ours: VERSION });
        }
        if self.state == State::Running {
            return Err(RunError::GuestLeft { how: "restarted its agent", when: "ended" });
        }
        self.state = State::Running;
        self.port.is_ready.store(true, Ordering::SeqCst);
        self.port.tell_time();
        if self.port.send(&ToGuest::Exec(std::mem::take(&mut self.command))) {
            let port = Arc::clone(&self.port);
            let forward = move || forward_input(&port, &mut io::stdin());
            if terminal::stdin_is_terminal() {
                // What is typed is not the command's: it runs without a terminal.
                self.port.send(&ToGuest::StdinEnd);
            } else if let Err(source) = spawn("exec-input", forward) {
                return Err(RunError::Host { what: "start a thread", source });
            }
        }
        Ok(())
    }
}

fn put(stream: &mut dyn Write, bytes: &[u8]) -> Result<(), RunError> {
    stream.write_all(bytes).and_then(|()| stream.flush()).map_err(RunError::Output)
}

/// Gives the command what comes on standard input, until its end.
fn forward_input(port: &Port, stdin: &mut dyn Read) {
    let mut buffer = vec![0; CHUNK];
    loop {
        let message = match stdin.read(&mut buffer) {
            Ok(count) if count > 0 => ToGuest::Stdin(buffer[..count].to_vec()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Ok(_) | Err(_) => ToGuest::StdinEnd,
        };
        let is_end = message == ToGuest::StdinEnd;
        if !port.send(&message) || is_end {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use covisor_exec_protocol::Decoder;

    use super::*;
    use crate::devices::pipe;
    use crate::devices::pipe::DeviceInput;
    use crate::devices::pipe::DeviceOutput;

    struct Port {
        agent: Agent,
        input: HostInput,
        from_guest: DeviceOutput,
        to_guest: DeviceInput,
    }

    fn port() -> Port {
        let (from_guest, input) = pipe::to_host(1 << 16, Arc::new(|| {}));
        let (output, to_guest) = pipe::to_device(1 << 16, Arc::new(|| {}));
        let agent =
            Agent { port: Arc::new(super::Port::new(output)), command: "true".to_owned(), state: State::Waiting };
        Port { agent, input, from_guest, to_guest }
    }

    impl Port {
        fn play(mut self, messages: &[ToHost]) -> (Result<Option<i32>, RunError>, Vec<u8>, Vec<u8>, DeviceInput) {
            let mut bytes = Vec::new();
            messages.iter().for_each(|message| message.encode(&mut bytes).unwrap());
            assert_eq!(self.from_guest.send(&bytes), bytes.len());
            drop(self.from_guest);
            let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
            let result = self.agent.serve(&self.input, &mut stdout, &mut stderr);
            (result, stdout, stderr, self.to_guest)
        }
    }

    #[test]
    fn test_output_is_kept_apart_and_the_status_comes_back() {
        let (result, stdout, stderr, _) = port().play(&[
            ToHost::Hello(VERSION),
            ToHost::Stdout(b"a\0b\n".to_vec()),
            ToHost::Stderr(b"warning".to_vec()),
            ToHost::Stdout(b"c".to_vec()),
            ToHost::Exit(7),
        ]);
        assert_eq!(result.unwrap(), Some(7));
        assert_eq!((stdout.as_slice(), stderr.as_slice()), (&b"a\0b\nc"[..], &b"warning"[..]));
    }

    #[test]
    fn test_the_command_is_told_after_hello() {
        let (result, _, _, to_guest) = port().play(&[ToHost::Hello(VERSION)]);
        assert_eq!(result.unwrap(), None);
        let mut bytes = [0; 64];
        let count = to_guest.receive(&mut bytes);
        let message = Decoder::<ToGuest>::new().next(&mut &bytes[..count]).unwrap();
        assert_eq!(message, Some(ToGuest::Exec("true".to_owned())));
    }

    #[test]
    fn test_a_clock_that_jumps_is_told_when_the_agent_is_there() {
        let Port { agent, to_guest, .. } = port();
        let way = Arc::clone(&agent.port);
        let mut agent = agent;
        way.clock_jumped().unwrap();
        assert!(to_guest.is_empty());
        agent.hello(VERSION).unwrap();
        let mut decoder = Decoder::<ToGuest>::new();
        let mut bytes = [0; 256];
        let count = to_guest.receive(&mut bytes);
        let mut bytes = &bytes[..count];
        assert!(matches!(decoder.next(&mut bytes).unwrap(), Some(ToGuest::SetClock(_))));
        assert_eq!(decoder.next(&mut bytes).unwrap(), Some(ToGuest::Exec("true".to_owned())));
    }

    #[test]
    fn test_an_agent_of_another_version_is_refused() {
        let (result, ..) = port().play(&[ToHost::Hello(VERSION + 1)]);
        assert!(matches!(result, Err(RunError::AgentVersion { .. })));
    }

    #[test]
    fn test_an_agent_that_restarts_has_lost_the_command() {
        let (result, ..) = port().play(&[ToHost::Hello(VERSION), ToHost::Hello(VERSION)]);
        assert!(matches!(result, Err(RunError::GuestLeft { .. })));
    }

    #[test]
    fn test_a_status_that_nobody_asked_for_is_nothing() {
        let (result, ..) = port().play(&[ToHost::Exit(3)]);
        assert_eq!(result.unwrap(), None);
    }

    #[test]
    fn test_nonsense_from_the_guest_is_an_error() {
        let mut port = port();
        port.from_guest.send(&[0xff; 16]);
        drop(port.from_guest);
        let result = port.agent.serve(&port.input, &mut io::sink(), &mut io::sink());
        assert!(matches!(result, Err(RunError::Agent(_))));
    }

    #[test]
    fn test_standard_input_goes_to_the_command_and_ends() {
        let (output, to_guest) = pipe::to_device(1 << 16, Arc::new(|| {}));
        forward_input(&super::Port::new(output), &mut &b"some input"[..]);
        let mut bytes = [0; 64];
        let count = to_guest.receive(&mut bytes);
        let mut decoder = Decoder::<ToGuest>::new();
        let mut bytes = &bytes[..count];
        assert_eq!(decoder.next(&mut bytes).unwrap(), Some(ToGuest::Stdin(b"some input".to_vec())));
        assert_eq!(decoder.next(&mut bytes).unwrap(), Some(ToGuest::StdinEnd));
    }
}
