//! Commands in a running guest, one at a time, for who asks the machine (`covisor exec`).
//!
//! The thread `exec` reads what the guest's agent says and keeps it, at most [`KEPT`] bytes of a command's output: beyond that it does
//! not read, and the command waits. Who gave the command comes for its output again and again; who does not come for [`ABANDONED`] is
//! gone, and so is the command, at the latest when somebody gives another.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use covisor_exec_protocol::Decoder;
use covisor_exec_protocol::MAX_PAYLOAD;
use covisor_exec_protocol::ToGuest;
use covisor_exec_protocol::ToHost;
use covisor_exec_protocol::VERSION;

use super::clock;
use super::console::LINGER;
use super::session::spawn;
use crate::control::Bytes;
use crate::control::ExecOutput;
use crate::control::ExecRequest;
use crate::control::OUTPUT_PIECE;
use crate::control::Reply;
use crate::devices::pipe::HostInput;
use crate::devices::pipe::HostOutput;
use crate::platform::lock;

/// Most bytes of a command's output that wait to be fetched.
const KEPT: usize = 256 << 10;
/// Who does not come for so long is gone.
const ABANDONED: Duration = Duration::from_secs(10);
/// How often to look whether somebody is gone, while a command waits for room.
const LOOK: Duration = Duration::from_secs(1);

/// The guest's agent.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Agent {
    /// It did not say yet that it is there.
    Silent,
    /// It takes commands.
    Ready,
    /// It cannot be used, and why.
    Useless(String),
}

/// The command that runs.
#[derive(Debug)]
struct Running {
    number: u64,
    stdout: VecDeque<u8>,
    stderr: VecDeque<u8>,
    status: Option<i32>,
    input_ended: bool,
    killed: bool,
    /// When who gave it came last.
    asked: Instant,
}

impl Running {
    fn is_full(&self) -> bool {
        self.stdout.len() + self.stderr.len() >= KEPT
    }

    fn is_abandoned(&self) -> bool {
        self.asked.elapsed() >= ABANDONED
    }

    /// Whether there is something of it to be fetched.
    fn has_more(&self) -> bool {
        !self.stdout.is_empty() || !self.stderr.is_empty() || self.status.is_some()
    }
}

struct State {
    /// The way to the agent of the machine that runs.
    port: Option<HostOutput>,
    /// How many machines began: what is still heard of one that is gone is not of the one that runs.
    machine: u64,
    agent: Agent,
    /// Frames that did not fit into the port yet.
    to_guest: VecDeque<u8>,
    /// The clock jumped since the machine began, and the agent is to hear of it.
    clock_jumped: bool,
    command: Option<Running>,
    /// How many commands were given.
    given: u64,
    /// So many ends of commands are still to come that nobody asks for.
    to_skip: u32,
}

impl State {
    /// Sends what there is room for.
    fn flush(&mut self) {
        let Some(port) = &self.port else { return self.to_guest.clear() };
        let sent = port.send_now(self.to_guest.make_contiguous());
        self.to_guest.drain(..sent);
        // Not behind what waits: it would be late, and one after another would pile up.
        if self.clock_jumped && self.to_guest.is_empty() && self.agent == Agent::Ready {
            self.clock_jumped = false;
            let told = self.send(&clock::message());
            debug_assert!(told.is_ok(), "the message is short");
        }
    }

    fn send(&mut self, message: &ToGuest) -> Result<(), String> {
        let mut frame = Vec::new();
        message.encode(&mut frame).map_err(|error| error.to_string())?;
        self.to_guest.extend(frame);
        self.flush();
        Ok(())
    }

    /// Ends the command, of which nobody wants to know any more.
    fn drop_command(&mut self) {
        let Some(command) = self.command.take() else { return };
        if command.status.is_none() {
            // One end comes for it in any case: that of the kill, or its own.
            self.to_skip += 1;
            let killed = if command.killed { Ok(()) } else { self.send(&ToGuest::Kill) };
            debug_assert!(killed.is_ok(), "the message is empty");
        }
    }

    fn start(&mut self, command: &str) -> Reply {
        match &self.agent {
            Agent::Ready if self.port.is_some() => {}
            Agent::Silent | Agent::Ready => return Reply::NotYet,
            Agent::Useless(why) => return Reply::Refused(why.clone()),
        }
        if self.command.as_ref().is_some_and(|running| !running.is_abandoned()) {
            return Reply::Refused("another command runs in the guest: it takes one at a time".to_owned());
        }
        self.drop_command();
        if let Err(error) = self.send(&ToGuest::Exec(command.to_owned())) {
            return Reply::Refused(error);
        }
        self.given += 1;
        self.command = Some(Running {
            number: self.given,
            stdout: VecDeque::new(),
            stderr: VecDeque::new(),
            status: None,
            input_ended: false,
            killed: false,
            asked: Instant::now(),
        });
        Reply::ExecStarted(self.given)
    }

    /// The command of this number, if it is there.
    fn command(&mut self, number: u64) -> Option<&mut Running> {
        self.command.as_mut().filter(|running| running.number == number)
    }

    fn go_on(&mut self, number: u64, input: &[u8], ends: bool) -> Reply {
        self.flush();
        let idle = self.to_guest.is_empty();
        let Some(running) = self.command(number) else {
            return Reply::Refused("the guest has lost the command: it, or its agent, has started again".to_owned());
        };
        running.asked = Instant::now();
        let mut taken = 0;
        if idle && !running.input_ended {
            running.input_ended = ends && input.len() <= MAX_PAYLOAD;
            let ended = running.input_ended;
            taken = input.len().min(MAX_PAYLOAD);
            let piece = (taken > 0).then(|| ToGuest::Stdin(input[..taken].to_vec()));
            for message in piece.into_iter().chain(ended.then_some(ToGuest::StdinEnd)) {
                if let Err(error) = self.send(&message) {
                    return Reply::Refused(error);
                }
            }
        }
        let Some(running) = self.command(number) else { return Reply::Unknown };
        let stdout = take(&mut running.stdout);
        let stderr = take(&mut running.stderr);
        let is_all = running.stdout.is_empty() && running.stderr.is_empty();
        let status = running.status.filter(|_| is_all);
        if status.is_some() {
            self.command = None;
        }
        Reply::ExecOutput(ExecOutput { stdout, stderr, taken, status })
    }

    fn kill(&mut self, number: u64) -> Reply {
        let Some(running) = self.command(number) else { return Reply::Done };
        if !std::mem::replace(&mut running.killed, true)
            && running.status.is_none()
            && let Err(error) = self.send(&ToGuest::Kill)
        {
            return Reply::Refused(error);
        }
        Reply::Done
    }

    fn hear(&mut self, message: ToHost) {
        match message {
            ToHost::Hello(VERSION) => {
                // What it ran before is gone with it.
                self.command = None;
                self.to_skip = 0;
                self.agent = Agent::Ready;
                self.flush();
            }
            ToHost::Hello(version) => {
                self.agent = Agent::Useless(format!(
                    "the guest's agent speaks version {version} of the protocol, and covisor version {VERSION}: put this covisor's agent into the guest"
                ));
            }
            ToHost::Exit(_) if self.to_skip > 0 => self.to_skip -= 1,
            ToHost::Stdout(_) | ToHost::Stderr(_) if self.to_skip > 0 => {}
            ToHost::Exit(status) => self.command.iter_mut().for_each(|running| running.status = Some(status)),
            ToHost::Stdout(bytes) => self.command.iter_mut().for_each(|running| running.stdout.extend(&bytes)),
            ToHost::Stderr(bytes) => self.command.iter_mut().for_each(|running| running.stderr.extend(&bytes)),
        }
    }
}

/// The next piece of a command's output.
fn take(bytes: &mut VecDeque<u8>) -> Bytes {
    let count = bytes.len().min(OUTPUT_PIECE);
    Bytes(bytes.drain(..count).collect())
}

/// The commands of a machine, the same over reboots.
pub(super) struct Commands {
    state: Mutex<State>,
    /// Output was fetched, or the machine goes.
    room: Condvar,
}

impl Commands {
    /// No machine runs yet.
    pub(super) fn new() -> Self {
        let state = State {
            port: None,
            machine: 0,
            agent: Agent::Silent,
            to_guest: VecDeque::new(),
            clock_jumped: false,
            command: None,
            given: 0,
            to_skip: 0,
        };
        Self { state: Mutex::new(state), room: Condvar::new() }
    }

    /// A machine of one command only: `covisor exec` is told so.
    pub(super) fn refuse(&self) {
        lock(&self.state).agent = Agent::Useless("the machine runs for the command of its --exec alone".to_owned());
    }

    /// A machine begins whose agent is reached by these.
    pub(super) fn connect(self: &Arc<Self>, input: HostInput, output: HostOutput) -> io::Result<()> {
        self.hang_up();
        let mut state = lock(&self.state);
        state.port = Some(output);
        state.agent = Agent::Silent;
        state.command = None;
        state.to_skip = 0;
        state.machine += 1;
        let machine = state.machine;
        drop(state);
        let commands = Arc::clone(self);
        spawn("exec", move || commands.listen(machine, &input)).map(drop)
    }

    /// The machine is gone. What its command said until then can be fetched still, and its status, if it ended in time; where it did
    /// not, nobody knows yet whether the machine begins anew, so nothing is said of it: who asks learns it next time, or that nobody
    /// answers any more.
    pub(super) fn hang_up(&self) {
        let mut state = lock(&self.state);
        let Some(port) = state.port.take() else { return };
        port.close();
        state.agent = Agent::Silent;
        state.to_guest.clear();
        state.clock_jumped = false;
        self.room.notify_all();
    }

    /// Whether somebody is about to ask for the rest of what a command said.
    pub(super) fn is_attended(&self) -> bool {
        let state = lock(&self.state);
        state.command.as_ref().is_some_and(|running| running.has_more() && running.asked.elapsed() < LINGER)
    }

    /// The host's clock jumped: has the agent set the guest's, at once or as soon as it is there.
    pub(super) fn clock_jumped(&self) {
        let mut state = lock(&self.state);
        if state.port.is_some() {
            state.clock_jumped = true;
            state.flush();
        }
    }

    /// Hears the agent of this machine until its port is gone.
    fn listen(&self, machine: u64, input: &HostInput) {
        let mut decoder = Decoder::<ToHost>::new();
        let mut buffer = [0; 4096];
        loop {
            let count = input.receive(&mut buffer);
            if count == 0 {
                return;
            }
            let mut bytes = &buffer[..count];
            loop {
                match decoder.next(&mut bytes) {
                    Ok(Some(message)) => self.hear(machine, message),
                    Ok(None) => break,
                    Err(error) => {
                        let mut state = lock(&self.state);
                        if state.machine == machine && state.port.is_some() {
                            state.command = None;
                            state.agent = Agent::Useless(format!("the guest's agent says nonsense: {error}"));
                        }
                        drop(state);
                        // The guest may go on talking; it must not wait for us.
                        let _ = input.copy_to(&mut io::sink());
                        return;
                    }
                }
            }
        }
    }

    /// Takes what the agent says, once there is room for it.
    fn hear(&self, machine: u64, message: ToHost) {
        let mut state = lock(&self.state);
        while state.port.is_some() && state.command.as_ref().is_some_and(Running::is_full) {
            if state.command.as_ref().is_some_and(Running::is_abandoned) {
                state.drop_command();
                break;
            }
            state = self.room.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
        if state.machine == machine {
            state.hear(message);
        }
    }

    /// Answers who asks.
    pub(super) fn answer(&self, request: &ExecRequest) -> Reply {
        let mut state = lock(&self.state);
        let reply = match request {
            ExecRequest::Start { command } => state.start(command),
            ExecRequest::Continue { number, input, ends } => state.go_on(*number, &input.0, *ends),
            ExecRequest::Kill { number } => state.kill(*number),
        };
        self.room.notify_all();
        reply
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::pipe;
    use crate::devices::pipe::DeviceInput;
    use crate::devices::pipe::DeviceOutput;
    use covisor_exec_protocol::HEADER_LEN;

    struct Guest {
        commands: Arc<Commands>,
        says: DeviceOutput,
        hears: DeviceInput,
        decoder: Decoder<ToGuest>,
    }

    fn guest() -> Guest {
        let (says, input) = pipe::to_host(1 << 20, Arc::new(|| {}));
        let (output, hears) = pipe::to_device(1 << 17, Arc::new(|| {}));
        let commands = Arc::new(Commands::new());
        commands.connect(input, output).unwrap();
        Guest { commands, says, hears, decoder: Decoder::new() }
    }

    impl Guest {
        fn say(&self, message: &ToHost) {
            let mut bytes = Vec::new();
            message.encode(&mut bytes).unwrap();
            assert_eq!(self.says.send(&bytes), bytes.len());
        }

        /// What the agent was told since it was asked last.
        fn told(&mut self) -> Vec<ToGuest> {
            let mut bytes = vec![0; 1 << 17];
            let count = self.hears.receive(&mut bytes);
            let mut bytes = &bytes[..count];
            std::iter::from_fn(|| self.decoder.next(&mut bytes).unwrap()).collect()
        }

        /// Gives a command, once the agent was heard.
        fn start(&self, command: &str) -> Reply {
            loop {
                match self.commands.answer(&ExecRequest::Start { command: command.to_owned() }) {
                    Reply::NotYet => std::thread::yield_now(),
                    reply => return reply,
                }
            }
        }

        fn go_on(&self, number: u64, input: &[u8], ends: bool) -> Result<ExecOutput, String> {
            match self.commands.answer(&ExecRequest::Continue { number, input: Bytes(input.to_vec()), ends }) {
                Reply::ExecOutput(output) => Ok(output),
                Reply::Refused(why) => Err(why),
                reply => panic!("{reply:?}"),
            }
        }

        /// All output and the status.
        fn rest(&self, number: u64) -> (Vec<u8>, Vec<u8>, i32) {
            let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
            loop {
                let output = self.go_on(number, &[], false).unwrap();
                stdout.extend(output.stdout.0);
                stderr.extend(output.stderr.0);
                if let Some(status) = output.status {
                    return (stdout, stderr, status);
                }
                std::thread::yield_now();
            }
        }
    }

    #[test]
    fn test_a_command_has_its_input_output_and_status() {
        let mut guest = guest();
        assert_eq!(guest.commands.answer(&ExecRequest::Start { command: "cat".to_owned() }), Reply::NotYet);
        guest.say(&ToHost::Hello(VERSION));
        assert_eq!(guest.start("cat"), Reply::ExecStarted(1));
        let output = guest.go_on(1, b"in", true).unwrap();
        assert_eq!(output.taken, 2);
        assert_eq!(guest.go_on(1, b"late", true).unwrap().taken, 0);
        let told = [ToGuest::Exec("cat".to_owned()), ToGuest::Stdin(b"in".to_vec()), ToGuest::StdinEnd];
        assert_eq!(guest.told(), told);
        guest.say(&ToHost::Stdout(b"in".to_vec()));
        guest.say(&ToHost::Stderr(b"err".to_vec()));
        guest.say(&ToHost::Exit(7));
        assert_eq!(guest.rest(1), (b"in".to_vec(), b"err".to_vec(), 7));
        assert!(guest.go_on(1, b"", false).is_err());
        assert_eq!(guest.start("true"), Reply::ExecStarted(2));
    }

    #[test]
    fn test_the_agent_hears_of_a_clock_that_jumped_once_it_is_there() {
        let mut guest = guest();
        let is_time =
            |message: &ToGuest| matches!(message, ToGuest::SetClock(time) if *time > 1_700_000_000_000_000_000);
        guest.commands.clock_jumped();
        guest.commands.clock_jumped();
        assert_eq!(guest.told(), []);
        guest.say(&ToHost::Hello(VERSION));
        assert_eq!(guest.start("true"), Reply::ExecStarted(1));
        let told = guest.told();
        assert!(matches!(&told[..], [time, ToGuest::Exec(_)] if is_time(time)), "{told:?}");
        guest.commands.clock_jumped();
        assert!(matches!(&guest.told()[..], [time] if is_time(time)));
        // Nor do times pile up where nobody reads.
        while guest.go_on(1, &[0; 4096], false).unwrap().taken > 0 {}
        (0..1000).for_each(|_| guest.commands.clock_jumped());
        assert!(lock(&guest.commands.state).to_guest.len() <= MAX_PAYLOAD + HEADER_LEN);
    }

    #[test]
    fn test_a_flood_of_output_waits_in_the_guest() {
        let guest = guest();
        guest.say(&ToHost::Hello(VERSION));
        assert_eq!(guest.start("yes"), Reply::ExecStarted(1));
        let piece = vec![b'y'; MAX_PAYLOAD];
        let mut bytes = Vec::new();
        (0..16).for_each(|_| ToHost::Stdout(piece.clone()).encode(&mut bytes).unwrap());
        let rest = guest.says.send(&bytes);
        while guest.says.has_room(KEPT) && lock(&guest.commands.state).command.as_ref().is_some_and(|c| !c.is_full()) {
            std::thread::yield_now();
        }
        assert!(lock(&guest.commands.state).command.as_ref().is_some_and(|c| c.stdout.len() <= KEPT + MAX_PAYLOAD));
        let more = &bytes[rest..];
        let mut sent = 0;
        let mut got = 0;
        while got < 16 * MAX_PAYLOAD {
            got += guest.go_on(1, &[], false).unwrap().stdout.0.len();
            sent += guest.says.send(&more[sent..]);
        }
        guest.say(&ToHost::Exit(0));
        assert_eq!(guest.rest(1).2, 0);
    }

    #[test]
    fn test_one_command_runs_at_a_time_until_its_giver_is_gone() {
        let mut guest = guest();
        guest.say(&ToHost::Hello(VERSION));
        assert_eq!(guest.start("first"), Reply::ExecStarted(1));
        assert!(matches!(guest.start("second"), Reply::Refused(why) if why.contains("another command")));
        let long_ago = Instant::now().checked_sub(ABANDONED).unwrap();
        lock(&guest.commands.state).command.as_mut().unwrap().asked = long_ago;
        assert_eq!(guest.start("third"), Reply::ExecStarted(2));
        let told = [ToGuest::Exec("first".to_owned()), ToGuest::Kill, ToGuest::Exec("third".to_owned())];
        assert_eq!(guest.told(), told);
        // What the first still says is not the third's.
        for message in
            [ToHost::Stdout(b"1".to_vec()), ToHost::Exit(137), ToHost::Stdout(b"3".to_vec()), ToHost::Exit(0)]
        {
            guest.say(&message);
        }
        assert_eq!(guest.rest(2), (b"3".to_vec(), Vec::new(), 0));
        assert!(guest.go_on(1, b"", false).is_err());
    }

    #[test]
    fn test_a_kill_is_told_once_and_brings_the_status() {
        let mut guest = guest();
        guest.say(&ToHost::Hello(VERSION));
        assert_eq!(guest.start("sleep"), Reply::ExecStarted(1));
        for _ in 0..2 {
            assert_eq!(guest.commands.answer(&ExecRequest::Kill { number: 1 }), Reply::Done);
        }
        assert_eq!(guest.commands.answer(&ExecRequest::Kill { number: 9 }), Reply::Done);
        assert_eq!(guest.told(), [ToGuest::Exec("sleep".to_owned()), ToGuest::Kill]);
        guest.say(&ToHost::Exit(137));
        assert_eq!(guest.rest(1).2, 137);
    }

    #[test]
    fn test_agents_that_cannot_be_used_are_told_of() {
        let other = guest();
        other.say(&ToHost::Hello(VERSION + 1));
        assert!(matches!(other.start("id"), Reply::Refused(why) if why.contains("version")));
        let nonsense = guest();
        nonsense.says.send(&[0xff; 16]);
        assert!(matches!(nonsense.start("id"), Reply::Refused(why) if why.contains("nonsense")));
        let lost = guest();
        lost.say(&ToHost::Hello(VERSION));
        assert_eq!(lost.start("id"), Reply::ExecStarted(1));
        lost.say(&ToHost::Hello(VERSION));
        while lost.go_on(1, b"", false).is_ok() {
            std::thread::yield_now();
        }
        lost.commands.hang_up();
        assert_eq!(lost.commands.answer(&ExecRequest::Start { command: "id".to_owned() }), Reply::NotYet);
    }

    #[test]
    fn test_a_machine_that_goes_did_not_start_again() {
        for (status, says) in [(None, &b"bye"[..]), (Some(7), b"bye")] {
            let guest = guest();
            guest.say(&ToHost::Hello(VERSION));
            assert_eq!(guest.start("poweroff"), Reply::ExecStarted(1));
            guest.say(&ToHost::Stdout(says.to_vec()));
            status.into_iter().for_each(|status| guest.say(&ToHost::Exit(status)));
            while !heard(&guest, status) {
                std::thread::yield_now();
            }
            guest.commands.hang_up();
            assert!(guest.commands.is_attended());
            let left = guest.go_on(1, b"input", true).unwrap();
            assert_eq!((left.stdout.0.as_slice(), left.status), (says, status));
            assert!(!guest.commands.is_attended());
            if status.is_none() {
                // The process may end now, or go on with another machine, in which the command is not.
                assert_eq!(guest.go_on(1, b"", true).unwrap().status, None);
            }
            let (output, _hears) = pipe::to_device(1 << 17, Arc::new(|| {}));
            let (_says, input) = pipe::to_host(1 << 20, Arc::new(|| {}));
            guest.commands.connect(input, output).unwrap();
            assert!(guest.go_on(1, b"", true).unwrap_err().contains("started again"));
        }
    }

    /// Whether the command's output and end, if it has one, came.
    fn heard(guest: &Guest, status: Option<i32>) -> bool {
        let state = lock(&guest.commands.state);
        state.command.as_ref().is_some_and(|running| !running.stdout.is_empty() && running.status == status)
    }

    #[test]
    fn test_what_a_machine_says_on_its_way_out_is_not_of_the_next_one() {
        let guest = guest();
        let first = lock(&guest.commands.state).machine;
        let (output, _hears) = pipe::to_device(1 << 17, Arc::new(|| {}));
        let (_says, input) = pipe::to_host(1 << 20, Arc::new(|| {}));
        guest.commands.connect(input, output).unwrap();
        guest.commands.hear(first, ToHost::Hello(VERSION));
        assert_eq!(guest.commands.answer(&ExecRequest::Start { command: "id".to_owned() }), Reply::NotYet);
    }
}
