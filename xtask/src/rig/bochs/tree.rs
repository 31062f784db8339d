//! Bochs itself: built from the source of Debian 13's package, the first version that has VMX. Debian's own build is not what is
//! needed: it has the debugger and devices that cost time at each instruction, and a flaw with several CPUs that is mended here.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::available_parallelism;

use covisor_guest_images::apt::{self, Apt};
use covisor_guest_images::command::Cmd;
use covisor_guest_images::fs;
use covisor_guest_images::progress::Step;

use crate::env::Env;
use crate::error::{Error, Result};
use crate::setup;

/// The suite.
const SUITE: &str = "trixie";

/// The package whose source is built.
const PACKAGE: &str = "bochs";

/// The firmware: the machine's and its graphics card's.
const FIRMWARE: [&str; 2] = ["bochsbios", "vgabios"];

/// How it is built: a PC with several CPUs with VMX and breakpoints, fast, and nothing to look at. It needs EVEX to compile with AVX.
const CONFIGURATION: [&str; 18] = [
    "--enable-smp",
    "--enable-cpu-level=6",
    "--enable-x86-64",
    "--enable-vmx=2",
    "--enable-avx",
    "--enable-evex",
    "--enable-x86-debugger",
    "--enable-monitor-mwait",
    "--enable-pci",
    "--enable-fast-function-calls",
    "--enable-handlers-chaining",
    "--enable-repeat-speedups",
    "--disable-large-ramfile",
    "--disable-debugger",
    "--disable-debugger-gui",
    "--disable-readline",
    "--disable-docbook",
    "--with-nogui",
];

/// How it is compiled. Its warnings are nobody's here.
const COMPILER_FLAGS: &str = "-O2 -w";

/// What is mended in the source: a file, where, and what comes there.
struct Mending {
    file: &'static str,
    after: &'static str,
    inserted: &'static str,
}

/// With one CPU, the loop that carries out instructions notes after each exception that the handler's first instruction is next:
/// faults and exits go back to what is noted. With several CPUs it does not, and an exit from a guest that comes first thing then,
/// as at the end of the preemption timer, has the address of the instruction that had the exception, but the handler's stack and
/// privilege. A guest that goes on there dies.
const MENDINGS: [Mending; 1] = [Mending {
    file: "cpu/cpu.cc",
    after: "void BX_CPU_C::cpu_run_trace(void)\n{\n",
    inserted: "  BX_CPU_THIS_PTR prev_rip = RIP;\n  BX_CPU_THIS_PTR speculative_rsp = false;\n",
}];

/// The program, in the tree.
const PROGRAM: &str = "bochs";

/// Bochs, built, with its firmware.
#[derive(Debug, Clone)]
pub(super) struct Tree {
    root: PathBuf,
}

impl Tree {
    /// Bochs as it was built before, or builds it.
    ///
    /// # Errors
    /// When its source cannot be fetched or built.
    pub(super) fn find(env: &Env) -> Result<Self> {
        let dir = env.out.join("bochs");
        let tree = Self { root: dir.join("built") };
        let _lock = fs::Lock::take(dir.join("lock"))?;
        if tree.root.is_dir() {
            return Ok(tree);
        }
        setup::ensure_for_bochs(env)?;
        let step = env.progress.step(format!("building Bochs of Debian {SUITE}"));
        let work = dir.join("work");
        fs::remove(&work)?;
        let apt = Apt::with_source_code(&work.join("apt"), &apt::sources_of_any(SUITE)?)?;
        apt.update(&step)?;
        let source = work.join("source");
        fs::create_dir_all(&source)?;
        let archive = apt.download_source(PACKAGE, &work, &step)?;
        Cmd::new("tar").arg("-xf").arg(archive).arg("-C").arg(&source).arg("--strip-components=1").run(&step)?;
        MENDINGS.iter().try_for_each(|mending| mending.apply(&source))?;
        build(&source, &step)?;

        let built = work.join("built");
        fs::create_dir_all(&built)?;
        fs::copy(source.join(PROGRAM), built.join(PROGRAM))?;
        for package in FIRMWARE {
            let deb = apt.download(package, &work, &step)?;
            Cmd::new("dpkg-deb").arg("-x").arg(&deb).arg(&built).run(&step)?;
        }
        fs::rename(&built, &tree.root)?;
        fs::remove(&work)?;
        step.done();
        Ok(tree)
    }

    /// A command that runs it.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(self.root.join(PROGRAM));
        command.env("BXSHARE", self.bios_folder());
        command
    }

    /// The BIOS.
    pub(super) fn bios(&self) -> PathBuf {
        self.bios_folder().join("BIOS-bochs-latest")
    }

    /// The graphics card's.
    pub(super) fn vga_bios(&self) -> PathBuf {
        self.root.join("usr/share/vgabios/vgabios.bin")
    }

    fn bios_folder(&self) -> PathBuf {
        self.root.join("usr/share/bochs")
    }
}

impl Mending {
    fn apply(&self, source: &Path) -> Result<()> {
        let path = source.join(self.file);
        let text = fs::read_to_string(&path)?;
        let Some((before, after)) = text.split_once(self.after).filter(|(_, after)| !after.contains(self.after)) else {
            return Err(Error::OtherBochs(self.file.into()));
        };
        Ok(fs::write(&path, [before, self.after, self.inserted, after].concat())?)
    }
}

fn build(source: &Path, step: &Step) -> Result<()> {
    let flags = ["CFLAGS", "CXXFLAGS"].map(|name| format!("{name}={COMPILER_FLAGS}"));
    Cmd::new("./configure").args(CONFIGURATION).args(flags).dir(source).run(step)?;
    let jobs = available_parallelism().map_or(1, NonZero::get);
    Ok(Cmd::new("make").arg(format!("-j{jobs}")).arg(PROGRAM).dir(source).run(step)?)
}
