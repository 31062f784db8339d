//! A machine from its making to its end, over reboots, with the terminal, the signals and the control socket.

use std::io;
use std::io::Read;
use std::io::Write;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::Sender;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use crate::control;
use crate::control::Reply;
use crate::control::Shared;
use crate::devices::pipe::HostInput;
use crate::devices::pipe::HostOutput;
use crate::devices::power::PowerEvent;
use crate::driver::Driver;
use crate::driver::ENGINES;
use crate::driver::EngineVerdict;
use crate::machine::Machine;
use crate::platform::lock;
use crate::run::Config;
use crate::run::ConfigError;
use crate::run::End;
use crate::run::Prepared;
use crate::run::RunError;
use crate::run::console::Escape;
use crate::run::console::HELP;
use crate::run::console::Key;
use crate::run::console::Tail;
use crate::run::exec;
use crate::run::notice;
use crate::sys::control as socket;
use crate::sys::process::Request;
use crate::sys::process::Requests;
use crate::sys::terminal;
use crate::vcpu::VcpuEnd;

/// Stack of the threads that only move bytes.
const STACK: usize = 128 << 10;
/// How much of the console is kept for messages.
const TAIL_SIZE: usize = 8 << 10;
/// How many of its lines are shown.
const TAIL_LINES: usize = 12;
/// How Linux begins the last line of a kernel that gives up.
const KERNEL_PANIC: &str = "Kernel panic";
/// How long a guest may take to power off after its command.
const POWER_OFF_PATIENCE: Duration = Duration::from_secs(60);
/// How long the last output may take to be read by whoever reads it.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(2);

/// What a running machine's main thread hears of.
#[derive(Debug)]
pub(super) enum Event {
    /// The guest wants power off or a reset.
    Power(PowerEvent),
    /// A vCPU ended.
    Vcpu(VcpuEnd),
    /// The host's user or system.
    Host(Request),
    /// A key at the console.
    Key(Key),
    /// A request over the control socket.
    Control(control::Request),
    /// The end of the command.
    Exec(Result<i32, RunError>),
}

/// Why a boot ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BootEnd {
    Off,
    Reset,
    Exec(i32),
}

/// Runs a machine until its end.
///
/// # Errors
/// Why it did not run, or did not end as it should.
pub fn run(config: Config) -> Result<End, RunError> {
    // First of all, so that no thread takes the signals.
    let requests = Requests::block().map_err(host("wait for signals"))?;
    let prepared = config.prepare()?;
    let driver = Driver::open()?;
    driver.check(prepared.config.engine, prepared.config.cpus)?;
    let available = driver.handshake().memory_available;
    if prepared.ram.size() > available {
        return Err(ConfigError::TooMuchMemory { wanted: prepared.ram.size(), available }.into());
    }
    Session::new(prepared, requests)?.run(driver)
}

/// An error of the host.
fn host(what: &'static str) -> impl FnOnce(io::Error) -> RunError {
    move |source| RunError::Host { what, source }
}

/// Starts a thread that moves bytes.
pub(super) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(work)
}

struct Session {
    prepared: Prepared,
    shared: Arc<Shared>,
    sender: Sender<Event>,
    events: Receiver<Event>,
    console: Arc<Console>,
    deadline: Option<Instant>,
    raw_mode: Option<terminal::RawMode>,
    /// Whether somebody sits at the console, whom a guest's orderly end is worth waiting for.
    attended: bool,
    /// How many machines were made: one, and one for each reset.
    boots: u32,
    _registration: Option<socket::Registration>,
}

impl Session {
    fn new(prepared: Prepared, requests: Requests) -> Result<Self, RunError> {
        let config = &prepared.config;
        let (sender, events) = mpsc::channel();
        let shared = Arc::new(Shared::new(&config.name, config.memory, config.cpus));
        let registration = register(&config.name, &shared, &sender)?;
        let signals = sender.clone();
        spawn("signals", move || {
            while let Ok(request) = requests.wait() {
                if signals.send(Event::Host(request)).is_err() {
                    return;
                }
            }
        })
        .map_err(host("start a thread"))?;
        let with_console = config.exec.is_none();
        let attended = with_console && terminal::stdin_is_terminal();
        let console = Arc::new(Console {
            tail: Mutex::new(Tail::new(TAIL_SIZE)),
            serial: Mutex::new(Tail::new(TAIL_SIZE)),
            sink: if with_console {
                Sink::Stdout
            } else if config.verbose {
                Sink::Stderr
            } else {
                Sink::Nowhere
            },
            input: Mutex::new(None),
        });
        let deadline = config.timeout.map(|timeout| Instant::now() + timeout);
        Ok(Self {
            prepared,
            shared,
            sender,
            events,
            console,
            deadline,
            raw_mode: None,
            attended,
            boots: 0,
            _registration: registration,
        })
    }

    fn run(mut self, driver: Driver) -> Result<End, RunError> {
        let mut driver = Some(driver);
        loop {
            let driver = match driver.take() {
                Some(driver) => driver,
                None => Driver::open()?,
            };
            match self.boot(driver)? {
                BootEnd::Off => return Ok(End::Off),
                BootEnd::Exec(status) => return Ok(End::Exec(status)),
                BootEnd::Reset if self.prepared.config.exec.is_some() => {
                    return Err(self.explain(RunError::GuestLeft { how: "reset", when: "ended" }));
                }
                BootEnd::Reset if self.prepared.config.no_reboot => return Ok(End::Off),
                BootEnd::Reset => notice("the guest resets: it starts again"),
            }
        }
    }

    /// One life of the guest, from its making to its end.
    fn boot(&mut self, driver: Driver) -> Result<BootEnd, RunError> {
        self.boots += 1;
        let Config { engine, cpus, .. } = self.prepared.config;
        let statuses = ENGINES.map(|engine| (engine, driver.status(engine)));
        let vm = Arc::new(driver.create_vm(engine, cpus)?);
        for (engine, status) in statuses {
            if self.boots == 1 && engine == vm.engine() {
                notice(format_args!("engine {}: {}", engine.name(), EngineVerdict { engine, status: status? }));
            }
        }
        self.shared.set_vm(Arc::downgrade(&vm));
        self.shared.set_stopping(false);

        let power = self.sender.clone();
        let vcpus = self.sender.clone();
        let (mut machine, ends) = Machine::new(
            vm,
            &mut self.prepared,
            Arc::new(move |event| drop(power.send(Event::Power(event)))),
            Arc::new(move |end| drop(vcpus.send(Event::Vcpu(end)))),
        )?;
        let mut outputs = Vec::new();
        let console = Arc::clone(&self.console);
        let copy = move || console.copy(&ends.console_output);
        outputs.push(spawn("console-out", copy).map_err(host("start a thread"))?);
        if let Some(output) = ends.serial_output {
            let console = Arc::clone(&self.console);
            let keep = move || receive(&output, |bytes| lock(&console.serial).push(bytes));
            outputs.push(spawn("serial-out", keep).map_err(host("start a thread"))?);
        }
        let exec_output = match (self.prepared.config.exec.clone(), ends.exec) {
            (Some(command), Some((input, output))) => {
                let output = Arc::new(output);
                exec::start(input, Arc::clone(&output), command, self.sender.clone())
                    .map_err(host("start a thread"))?;
                Some(output)
            }
            _ => None,
        };
        self.attach(ends.console_input)?;
        if let Some((columns, rows)) = terminal::size().filter(|_| self.attended) {
            machine.resize(columns, rows);
        }
        machine.start().map_err(host("start a thread"))?;
        let end = self.attend(&machine, exec_output.as_deref());
        drop(machine);
        if let Some(input) = lock(&self.console.input).as_ref() {
            input.close();
        }
        join_all(outputs, OUTPUT_PATIENCE);
        self.forget_the_machines_events();
        end.map_err(|error| self.explain(error))
    }

    /// What a machine still said on its way out belongs to it, not to the next one; what the user said stays.
    fn forget_the_machines_events(&self) {
        let is_the_users = |event: &Event| matches!(event, Event::Host(_) | Event::Key(_) | Event::Control(_));
        let kept: Vec<_> = self.events.try_iter().filter(is_the_users).collect();
        for event in kept {
            // The receiver is here, so this cannot fail.
            let _ = self.sender.send(event);
        }
    }

    /// Connects the keyboard to this machine's console.
    fn attach(&mut self, input: HostOutput) -> Result<(), RunError> {
        *lock(&self.console.input) = Some(Arc::new(input));
        if self.boots > 1 || self.prepared.config.exec.is_some() {
            return Ok(());
        }
        if self.attended {
            self.raw_mode = Some(terminal::RawMode::enter().map_err(host("set the terminal"))?);
        }
        let (console, events, attended) = (Arc::clone(&self.console), self.sender.clone(), self.attended);
        spawn("console-in", move || console.read_keys(&mut io::stdin(), attended, &events))
            .map(drop)
            .map_err(host("start a thread"))
    }

    /// Waits for what happens, until the machine must end.
    fn attend(&mut self, machine: &Machine, exec: Option<&HostOutput>) -> Result<BootEnd, RunError> {
        let mut asked_to_end = false;
        // The command's status, while the guest powers off after it.
        let mut status = None;
        let mut patience = None;
        loop {
            let Some(event) = self.next_event(patience) else {
                if let Some(status) = status {
                    notice("the guest did not power off after its command: it was ended");
                    return Ok(BootEnd::Exec(status));
                }
                return Err(RunError::Timeout(self.prepared.config.timeout.unwrap_or_default()));
            };
            match event {
                Event::Power(event) => match (status, event) {
                    (Some(status), _) => return Ok(BootEnd::Exec(status)),
                    (None, PowerEvent::Reset) => return Ok(BootEnd::Reset),
                    (None, PowerEvent::PowerOff) if self.prepared.config.exec.is_some() => {
                        return Err(RunError::GuestLeft { how: "powered off", when: "ended" });
                    }
                    (None, PowerEvent::PowerOff) => return Ok(BootEnd::Off),
                },
                Event::Vcpu(end) => match (status, end) {
                    (_, VcpuEnd::Stopped) => {}
                    (Some(status), _) => return Ok(BootEnd::Exec(status)),
                    // A triple fault resets a PC. A guest that has one before it says anything would do so for ever.
                    (None, VcpuEnd::Shutdown { .. }) if !self.console.is_silent() => {
                        return Ok(BootEnd::Reset);
                    }
                    (None, end) => return Err(RunError::Guest(end)),
                },
                Event::Exec(Ok(code)) => {
                    let writes = self.prepared.config.disks.iter().any(|disk| !disk.read_only);
                    match exec.filter(|_| writes) {
                        // What was written must reach the disks before the machine goes.
                        Some(port) => {
                            exec::power_off(port);
                            self.shared.set_stopping(true);
                            (status, patience) = (Some(code), Some(Instant::now() + POWER_OFF_PATIENCE));
                        }
                        None => return Ok(BootEnd::Exec(code)),
                    }
                }
                Event::Exec(Err(error)) => return Err(error),
                Event::Host(Request::Resize) => {
                    if let Some((columns, rows)) = terminal::size() {
                        machine.resize(columns, rows);
                    }
                }
                Event::Host(Request::End) if self.attended && !asked_to_end => {
                    asked_to_end = true;
                    self.ask_to_end(machine);
                    notice("asked the guest to power off; a second signal ends it at once");
                }
                Event::Host(Request::End) => return Err(RunError::Interrupted("a signal")),
                Event::Host(Request::HangUp) => return Err(RunError::Interrupted("the end of its terminal")),
                Event::Key(Key::Quit) => return Ok(BootEnd::Off),
                Event::Key(Key::Help) => notice(HELP),
                Event::Key(Key::Guest(_)) => {}
                Event::Control(control::Request::PowerButton) => self.ask_to_end(machine),
                Event::Control(control::Request::End) => return Err(RunError::Interrupted("`covisor stop`")),
                Event::Control(control::Request::Status) => {}
            }
        }
    }

    fn ask_to_end(&self, machine: &Machine) {
        self.shared.set_stopping(true);
        machine.press_power_button();
    }

    /// The next event, or `None` when time is up.
    fn next_event(&self, patience: Option<Instant>) -> Option<Event> {
        let deadline = match (self.deadline, patience) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let Some(deadline) = deadline else { return self.events.recv().ok() };
        self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()
    }

    /// Shows the last lines of the guest that nobody saw.
    fn explain(&self, error: RunError) -> RunError {
        if matches!(error, RunError::Interrupted(_) | RunError::Output(_)) {
            return error;
        }
        if self.console.is_silent() {
            notice("the guest said nothing; `--console serial` shows what it says earliest");
            return error;
        }
        let lines = self.console.unseen_lines(TAIL_LINES);
        if let Some(panic) = self.console.unseen_lines(usize::MAX).iter().find(|line| line.contains(KERNEL_PANIC)) {
            notice(format_args!("the guest's kernel gave up: {panic}"));
        }
        if !lines.is_empty() {
            notice("the last lines of the guest:");
            lines.iter().for_each(|line| notice(format_args!("| {line}")));
        }
        error
    }
}

/// Makes the machine known to `covisor ps` and `covisor stop`.
fn register(
    name: &str,
    shared: &Arc<Shared>,
    events: &Sender<Event>,
) -> Result<Option<socket::Registration>, RunError> {
    let folder = socket::folder();
    let (registration, listener) = match socket::register(&folder, name) {
        Ok(Some(pair)) => pair,
        Ok(None) => return Err(ConfigError::NameTaken(name.to_owned()).into()),
        Err(error) => {
            log::warn!("`covisor ps` and `covisor stop` will not find this machine: {}: {error}", folder.display());
            return Ok(None);
        }
    };
    let (shared, events) = (Arc::clone(shared), events.clone());
    spawn("control", move || {
        listener.serve(|line| {
            let reply = match control::from_line(line) {
                Some(control::Request::Status) => Reply::Status(shared.status()),
                Some(request) => {
                    let _ = events.send(Event::Control(request));
                    Reply::Done
                }
                None => Reply::Unknown,
            };
            control::to_line(&reply)
        });
    })
    .map_err(host("start a thread"))?;
    Ok(Some(registration))
}

/// Where the console's output goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sink {
    Stdout,
    Stderr,
    Nowhere,
}

/// The host's end of the console, the same over reboots.
struct Console {
    tail: Mutex<Tail>,
    /// The same for the serial port, where that is not the console.
    serial: Mutex<Tail>,
    sink: Sink,
    input: Mutex<Option<Arc<HostOutput>>>,
}

impl Console {
    /// Copies a device's output until the device is gone.
    fn copy(&self, output: &HostInput) {
        let mut broken = false;
        receive(output, |bytes| {
            lock(&self.tail).push(bytes);
            // A guest does not stop because nobody reads what it says.
            broken = broken
                || match self.sink {
                    Sink::Stdout => write(&mut io::stdout().lock(), bytes),
                    Sink::Stderr => write(&mut io::stderr().lock(), bytes),
                    Sink::Nowhere => Ok(()),
                }
                .is_err();
        });
    }

    /// Whether the guest ever said anything.
    fn is_silent(&self) -> bool {
        lock(&self.tail).is_empty() && lock(&self.serial).is_empty()
    }

    /// The last lines that were not shown: the console's, or where it said nothing the serial port's.
    fn unseen_lines(&self, count: usize) -> Vec<String> {
        let tail = lock(&self.tail);
        if tail.is_empty() {
            lock(&self.serial).lines(count)
        } else if self.sink == Sink::Nowhere {
            tail.lines(count)
        } else {
            Vec::new()
        }
    }

    /// Gives the guest what comes on standard input, until its end. Keys of ours are told apart where somebody types.
    fn read_keys(&self, stdin: &mut dyn Read, with_escape: bool, events: &Sender<Event>) {
        let mut escape = Escape::default();
        let mut buffer = [0; 1024];
        loop {
            let count = match stdin.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            let mut bytes = Vec::with_capacity(count + 1);
            for &byte in &buffer[..count] {
                if !with_escape {
                    bytes.push(byte);
                    continue;
                }
                for key in escape.next(byte).into_iter().flatten() {
                    match key {
                        Key::Guest(byte) => bytes.push(byte),
                        key => drop(events.send(Event::Key(key))),
                    }
                }
            }
            let input = lock(&self.input).clone();
            if let Some(input) = input {
                input.send(&bytes);
            }
        }
    }
}

/// Gives `take` what comes out of a device, until the device is gone.
fn receive(output: &HostInput, mut take: impl FnMut(&[u8])) {
    let mut buffer = [0; 4096];
    loop {
        match output.receive(&mut buffer) {
            0 => return,
            count => take(&buffer[..count]),
        }
    }
}

fn write(stream: &mut dyn Write, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes)?;
    stream.flush()
}

/// Waits for threads, but not for ever: one may be writing to somebody who does not read.
fn join_all(threads: Vec<JoinHandle<()>>, patience: Duration) {
    let deadline = Instant::now() + patience;
    for handle in threads {
        while !handle.is_finished() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        if handle.is_finished() {
            let _ = handle.join();
        }
    }
}
