//! A machine from its making to its end, over reboots, with the terminal, the signals and the control socket.

use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::Sender;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use crate::control;
use crate::control::Shared;
use crate::devices::pipe::HostOutput;
use crate::devices::power::PowerEvent;
use crate::disk::BlockBackend;
use crate::driver::Driver;
use crate::driver::ENGINES;
use crate::driver::EngineVerdict;
use crate::machine::Machine;
use crate::run::Config;
use crate::run::ConfigError;
use crate::run::Disk;
use crate::run::End;
use crate::run::Prepared;
use crate::run::RunError;
use crate::run::clock;
use crate::run::commands::Commands;
use crate::run::console::Console;
use crate::run::console::HELP;
use crate::run::console::Key;
use crate::run::console::LINGER;
use crate::run::console::Sink;
use crate::run::exec;
use crate::run::notice;
use crate::run::programs::Programs;
use crate::run::question::Question;
use crate::run::requests::register;
use crate::run::stop::Step;
use crate::run::stop::Stop;
use crate::sys::Request;
use crate::sys::control as socket;
use crate::sys::process::HANG_UP_LIMIT;
use crate::sys::process::Requests;
use crate::sys::terminal;
use crate::vcpu::VcpuEnd;

/// Stack of the threads that only move bytes.
const STACK: usize = 128 << 10;
/// How many of the console's last lines are shown where a guest went wrong.
const TAIL_LINES: usize = 12;
/// The same where a kernel gave up: what it says of why is long, and its beginning tells most.
const PANIC_LINES: usize = 60;
/// How Linux begins the last line of a kernel that gives up.
const KERNEL_PANIC: &str = "Kernel panic";
/// How long a guest may take to power off after its command.
const POWER_OFF_PATIENCE: Duration = Duration::from_secs(60);
/// What ends a machine, in an error's words.
const SIGNAL: &str = "a signal";
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
    /// Have the guest use no more than so many MiB.
    Memory(u64, Question),
    /// Which disks are there?
    ListDisks(Question),
    /// A disk that is open, for the guest.
    AddDisk(Disk, Box<dyn BlockBackend>, Question),
    /// The disk that the guest is to let go.
    RemoveDisk(String, Question),
    /// The console has so many columns and rows now, for somebody who looks at it from elsewhere.
    Size(u16, u16),
    /// The guest has let a disk go.
    Ejected,
    /// The host's clock was set, or the host slept.
    Clock,
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

/// Runs a machine until its end, and says by `on_start` when its guest runs, the first time.
///
/// # Errors
/// Why it did not run, or did not end as it should.
pub fn run(config: Config, on_start: impl FnOnce()) -> Result<End, RunError> {
    // First of all, so that no thread takes the signals.
    let requests = Requests::block().map_err(host("wait for signals"))?;
    let prepared = config.prepare()?;
    let driver = Driver::open()?;
    driver.check(prepared.config.engine, prepared.config.cpus)?;
    let available = driver.handshake().memory_available;
    if prepared.ram.size() > available {
        return Err(ConfigError::TooMuchMemory { wanted: prepared.ram.size(), available }.into());
    }
    let _programs = Programs::start(&prepared.config.programs)?;
    Session::new(prepared, requests)?.run(driver, on_start)
}

/// An error of the host.
pub(super) fn host(what: &'static str) -> impl FnOnce(io::Error) -> RunError {
    move |source| RunError::Host { what, source }
}

/// Starts a thread that moves bytes.
pub(super) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(work)
}

/// A machine over its lives, as its main thread has it.
pub(super) struct Session {
    pub(super) prepared: Prepared,
    pub(super) shared: Arc<Shared>,
    sender: Sender<Event>,
    events: Receiver<Event>,
    console: Arc<Console>,
    commands: Arc<Commands>,
    deadline: Option<Instant>,
    raw_mode: Option<terminal::RawMode>,
    /// Whether somebody sits at the console.
    attended: bool,
    /// How many machines were made: one, and one for each reset.
    booted: u32,
    /// How many disks got a name; none gets that of another.
    pub(super) disks_named: u32,
    _registration: Option<socket::Registration>,
}

impl Session {
    fn new(prepared: Prepared, requests: Requests) -> Result<Self, RunError> {
        let config = &prepared.config;
        let (sender, events) = mpsc::channel();
        let shared = Arc::new(Shared::new(&config.name, config.memory, config.cpus));
        let signals = sender.clone();
        spawn("signals", move || {
            while let Ok(request) = requests.wait() {
                if signals.send(Event::Host(request)).is_err() {
                    return;
                }
            }
        })
        .map_err(host("start a thread"))?;
        if let Err(error) = clock::watch(sender.clone()) {
            log::warn!("the guest's clock will not follow when the host's is set: {error}");
        }
        let with_console = config.exec.is_none();
        let attended = with_console && terminal::stdin_is_terminal();
        let console = Arc::new(Console::new(if with_console {
            Sink::Stdout
        } else if config.verbose {
            Sink::Stderr
        } else {
            Sink::Nowhere
        }));
        let commands = Arc::new(Commands::new());
        if !with_console {
            commands.refuse();
        }
        let registration = register(&config.name, &shared, (&console, &commands), &sender)?;
        let deadline = config.timeout.map(|timeout| Instant::now() + timeout);
        let disks_named = u32::try_from(config.disks.len()).unwrap_or(u32::MAX);
        Ok(Self {
            prepared,
            shared,
            sender,
            events,
            console,
            commands,
            deadline,
            raw_mode: None,
            attended,
            booted: 0,
            disks_named,
            _registration: registration,
        })
    }

    fn run(mut self, driver: Driver, on_start: impl FnOnce()) -> Result<End, RunError> {
        let end = self.boots(driver, on_start);
        // Nothing more will come: who looks on gets the time to ask for the last of it.
        if self.console.is_attended() || self.commands.is_attended() {
            thread::sleep(LINGER);
        }
        end
    }

    /// All lives of the guest.
    fn boots(&mut self, driver: Driver, on_start: impl FnOnce()) -> Result<End, RunError> {
        let mut driver = Some(driver);
        let mut on_start = Some(on_start);
        let mut started = || on_start.take().into_iter().for_each(|on_start| on_start());
        loop {
            let driver = match driver.take() {
                Some(driver) => driver,
                None => Driver::open()?,
            };
            match self.boot(driver, &mut started)? {
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
    fn boot(&mut self, driver: Driver, started: &mut dyn FnMut()) -> Result<BootEnd, RunError> {
        self.booted += 1;
        let Config { engine, cpus, .. } = self.prepared.config;
        let statuses = ENGINES.map(|engine| (engine, driver.status(engine)));
        let vm = Arc::new(driver.create_vm(engine, cpus)?);
        for (engine, status) in statuses {
            if self.booted == 1 && engine == vm.engine() {
                notice(format_args!("engine {}: {}", engine.name(), EngineVerdict { engine, status: status? }));
            }
        }
        self.prepared.fit(vm.engine())?;
        self.shared.set_vm(Arc::downgrade(&vm));
        self.shared.set_stopping(false);

        let power = self.sender.clone();
        let vcpus = self.sender.clone();
        let ejections = self.sender.clone();
        let (mut machine, ends) = Machine::new(
            vm,
            &mut self.prepared,
            Arc::new(move |event| drop(power.send(Event::Power(event)))),
            Arc::new(move |end| drop(vcpus.send(Event::Vcpu(end)))),
            Arc::new(move || drop(ejections.send(Event::Ejected))),
        )?;
        let mut outputs = Vec::new();
        let console = Arc::clone(&self.console);
        let copy = move || console.copy(&ends.console_output);
        outputs.push(spawn("console-out", copy).map_err(host("start a thread"))?);
        if let Some(output) = ends.early_output {
            let console = Arc::clone(&self.console);
            let keep = move || console.keep_early(&output);
            outputs.push(spawn("early-out", keep).map_err(host("start a thread"))?);
        }
        let (input, output) = ends.exec;
        let exec_port = match self.prepared.config.exec.clone() {
            Some(command) => {
                let port = Arc::new(exec::Port::new(output));
                exec::start(input, Arc::clone(&port), command, self.sender.clone()).map_err(host("start a thread"))?;
                Some(port)
            }
            None => {
                self.commands.connect(input, output).map_err(host("start a thread"))?;
                None
            }
        };
        self.attach(ends.console_input)?;
        if let Some((columns, rows)) = terminal::size().filter(|_| self.attended) {
            machine.resize(columns, rows);
        }
        machine.start().map_err(host("start a thread"))?;
        started();
        let end = self.attend(&mut machine, exec_port.as_ref());
        drop(machine);
        self.console.hang_up();
        self.commands.hang_up();
        join_all(outputs, OUTPUT_PATIENCE);
        self.forget_the_machines_events();
        end.map_err(|error| self.explain(error))
    }

    /// What a machine still said on its way out belongs to it, not to the next one; what the user said stays.
    fn forget_the_machines_events(&self) {
        let is_the_users = |event: &Event| {
            matches!(
                event,
                Event::Host(_)
                    | Event::Key(_)
                    | Event::Control(_)
                    | Event::ListDisks(_)
                    | Event::AddDisk(..)
                    | Event::RemoveDisk(..)
            )
        };
        let kept: Vec<_> = self.events.try_iter().filter(is_the_users).collect();
        for event in kept {
            // The receiver is here, so this cannot fail.
            let _ = self.sender.send(event);
        }
    }

    /// Connects the keyboard to this machine's console.
    fn attach(&mut self, input: HostOutput) -> Result<(), RunError> {
        self.console.connect(input);
        if self.booted > 1 || self.prepared.config.exec.is_some() {
            return Ok(());
        }
        if self.attended {
            self.raw_mode = Some(terminal::RawMode::enter().map_err(host("set the terminal"))?);
        }
        let (console, events, attended) = (Arc::clone(&self.console), self.sender.clone(), self.attended);
        spawn("console-in", move || console.read_keys(&mut terminal::input(), attended, &events))
            .map(drop)
            .map_err(host("start a thread"))
    }

    /// Waits for what happens, until the machine must end.
    fn attend(&mut self, machine: &mut Machine, exec: Option<&Arc<exec::Port>>) -> Result<BootEnd, RunError> {
        // An orderly end, once the host's user or system wants one, and whether a signal did: another one ends at once.
        let mut stop: Option<Stop> = None;
        let mut was_signalled = false;
        // The command's status, while the guest powers off after it.
        let mut status = None;
        let mut patience = None;
        loop {
            let due = patience.into_iter().chain(stop.as_ref().map(Stop::due)).min();
            let Some(event) = self.next_event(due) else {
                let now = Instant::now();
                if let Some(status) = status.filter(|_| patience.is_some_and(|patience| now >= patience)) {
                    notice("the guest did not power off after its command: it was ended");
                    return Ok(BootEnd::Exec(status));
                }
                if self.deadline.is_some_and(|deadline| now >= deadline) {
                    return Err(RunError::Timeout(self.prepared.config.timeout.unwrap_or_default()));
                }
                match stop.as_mut().and_then(|stop| Some((stop.step(now)?, stop.patience()))) {
                    Some((Step::Press, _)) => self.ask_to_end(machine),
                    Some((Step::End, patience)) => return Err(RunError::DidNotPowerOff(patience)),
                    None => {}
                }
                continue;
            };
            match event {
                Event::Power(event) | Event::Vcpu(VcpuEnd::Power(event)) => match (status, event) {
                    (Some(status), _) => return Ok(BootEnd::Exec(status)),
                    (None, _) if stop.is_some() => return self.has_stopped(),
                    (None, PowerEvent::Reset) => return Ok(BootEnd::Reset),
                    (None, PowerEvent::PowerOff) if self.prepared.config.exec.is_some() => {
                        return Err(RunError::GuestLeft { how: "powered off", when: "ended" });
                    }
                    (None, PowerEvent::PowerOff) => return Ok(BootEnd::Off),
                },
                Event::Vcpu(end) => match (status, end) {
                    (_, VcpuEnd::Stopped) => {}
                    (Some(status), _) => return Ok(BootEnd::Exec(status)),
                    (None, VcpuEnd::Shutdown { .. }) if stop.is_some() => return self.has_stopped(),
                    // A triple fault resets a PC. A guest that has one before it says anything would do so for ever. Where none is to
                    // start again, it is an end that nobody asked for, whatever has been heard of the guest by now.
                    (None, VcpuEnd::Shutdown { .. })
                        if !self.prepared.config.no_reboot && !self.console.is_silent() =>
                    {
                        return Ok(BootEnd::Reset);
                    }
                    (None, end) => return Err(RunError::Guest(end)),
                },
                Event::Exec(Ok(code)) => {
                    match exec.filter(|_| self.writes()) {
                        // What was written must reach the disks before the machine goes.
                        Some(port) => {
                            port.power_off();
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
                Event::Host(Request::End) => {
                    if std::mem::replace(&mut was_signalled, true) || !self.would_power_off(machine) {
                        return Err(RunError::Interrupted(SIGNAL));
                    }
                    stop.get_or_insert_with(|| Stop::new(Instant::now(), self.prepared.config.stop_timeout));
                    notice("asked the guest to power off; a second signal ends it at once");
                }
                // It comes more than once, from the terminal and from the shell.
                Event::Host(Request::HangUp) if stop.is_some() => {}
                Event::Host(Request::HangUp) => {
                    if !self.would_power_off(machine) {
                        return Err(RunError::Interrupted("the end of its terminal"));
                    }
                    let patience = self.prepared.config.stop_timeout.min(HANG_UP_LIMIT);
                    stop = Some(Stop::new(Instant::now(), patience));
                }
                Event::Key(Key::Quit) => return Ok(BootEnd::Off),
                Event::Key(Key::Help | Key::Detach) => notice(HELP),
                Event::Key(Key::Guest(_)) => {}
                Event::Control(control::Request::PowerButton) => self.ask_to_end(machine),
                Event::Control(control::Request::End) => return Err(RunError::Interrupted("`covisor stop`")),
                // Answered where they arrived.
                Event::Control(
                    control::Request::Status
                    | control::Request::Disk(_)
                    | control::Request::Memory(_)
                    | control::Request::Console(_)
                    | control::Request::Exec(_),
                ) => {}
                Event::Clock => {
                    machine.show_clock();
                    self.commands.clock_jumped();
                    if let Some(Err(error)) = exec.map(exec::Port::clock_jumped) {
                        log::warn!("the guest does not hear that the host's clock was set: {error}");
                    }
                }
                Event::Size(columns, rows) => machine.resize(columns, rows),
                Event::ListDisks(question) => question.answer(|| self.list_disks(machine)),
                Event::AddDisk(disk, backend, question) => {
                    question.answer(|| self.add_disk(machine, disk, backend));
                }
                Event::Memory(mib, question) => question.answer(|| self.set_memory(machine, mib)),
                Event::RemoveDisk(name, question) => question.answer(|| self.remove_disk(machine, &name)),
                Event::Ejected => self.settle_disks(machine),
            }
        }
    }

    /// Whether it is worth waiting for the guest to power off: it hears that it shall, and has something to put in order. That is
    /// not so where it runs for one command and writes no disk.
    fn would_power_off(&self, machine: &Machine) -> bool {
        machine.hears_power_button() && (self.prepared.config.exec.is_none() || self.writes())
    }

    fn writes(&self) -> bool {
        self.prepared.config.disks.iter().any(|disk| !disk.read_only)
    }

    /// The end of a guest that did as it was told, or reset instead, which it is not to do now.
    fn has_stopped(&self) -> Result<BootEnd, RunError> {
        match self.prepared.config.exec {
            Some(_) => Err(RunError::Interrupted(SIGNAL)),
            None => Ok(BootEnd::Off),
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
        let all = self.console.unseen_lines(usize::MAX);
        let panic = all.iter().find(|line| line.contains(KERNEL_PANIC));
        if let Some(panic) = panic {
            notice(format_args!("the guest's kernel gave up: {panic}"));
        }
        let count = if panic.is_some() { PANIC_LINES } else { TAIL_LINES };
        let lines = &all[all.len().saturating_sub(count)..];
        if !lines.is_empty() {
            notice("the last lines of the guest:");
            lines.iter().for_each(|line| notice(format_args!("| {line}")));
        }
        error
    }
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
