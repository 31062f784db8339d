//! Builds what a Windows host needs, on Linux: the driver `covisor.sys`, the program `covisor.exe`, and a zip of both.

mod driver;
mod package;
pub mod pe;
mod program;
mod target;
mod wdk;
pub mod wine;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use covisor_guest_images::fs;
use covisor_guest_images::progress::Step;
use object::pe::{IMAGE_SUBSYSTEM_NATIVE, IMAGE_SUBSYSTEM_WINDOWS_CUI};

use crate::build::Part;
use crate::driver::build_c_module;
use crate::env::Env;
use crate::error::Result;
use crate::rig::Rig;
use crate::{setup, toolchain};
use driver::Variant;
use pe::{Exports, Flaw, Rules};

/// Bytes of the stack that one function of the driver's may take: a quarter of what a thread has in the kernel.
const MOST_STACK: u32 = 6 << 10;

/// What can go wrong, beyond what goes wrong everywhere.
#[derive(Debug, thiserror::Error)]
pub enum WindowsError {
    /// A guest's image, say.
    #[error("{0} is no part of a Windows host: what is built for one is loader and driver")]
    NoSuchPart(String),

    /// The lock file is not what it was.
    #[error("the driver's lock file, vmm-driver/nt/sys/Cargo.lock, names no package wdk-build from the registry")]
    NoBuildCrate,

    /// A new compiler, most likely.
    #[error(
        "the compiler's descriptions of its targets for Windows and for bare metal are not as the build knows them: \
         see xtask/src/windows/target.rs"
    )]
    NoTarget,

    /// A new version, most likely.
    #[error(
        "{version} is not as the build knows it, so it cannot be made to run on Linux: its {file} has the text `{text}` {found} \
         time(s). The places to mend are listed in xtask/src/windows/wdk.rs"
    )]
    UnknownBuildCrate {
        /// The crate's folder, which has its version.
        version: String,
        /// Which file.
        file: &'static str,
        /// What is looked for.
        text: &'static str,
        /// How often it is there.
        found: usize,
    },

    /// A file that Windows would refuse, or that would harm it.
    #[error("{} is built, but is no good: {}", file.display(), sentences(flaws))]
    Flaws {
        /// The file.
        file: PathBuf,
        /// Why not.
        flaws: Vec<Flaw>,
    },

    /// Cargo has changed what it says, most likely.
    #[error("cargo does not say where the unit tests of {package} are, which it has built for Windows")]
    NoTests {
        /// The package.
        package: String,
    },

    /// Wine's programs do not run.
    #[error("Wine does not start: {told}")]
    NoSession {
        /// What it says.
        told: String,
    },

    /// A program under Wine came to no end.
    #[error("under Wine, {program} did not finish within {seconds} s; it said:\n{told}\nthe driver said:\n{log}")]
    WineLate {
        /// Which.
        program: String,
        /// The limit.
        seconds: u64,
        /// Its output.
        told: String,
        /// What drivers have printed.
        log: String,
    },

    /// The zip cannot be written.
    #[error("cannot pack {}: {source}", file.display())]
    Pack {
        /// The file.
        file: PathBuf,
        /// Why not.
        source: zip::result::ZipError,
    },
}

fn sentences(flaws: &[Flaw]) -> String {
    flaws.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Builds the parts, or all and the zip if none are named, and says where they are.
///
/// # Errors
/// When something does not build, or fails a check.
pub fn run(env: &Env, parts: &[Part]) -> Result<()> {
    let name = |part: Part| format!("{part:?}").to_lowercase();
    if let Some(&part) = parts.iter().find(|part| !matches!(part, Part::Loader | Part::Driver)) {
        return Err(WindowsError::NoSuchPart(name(part)).into());
    }
    setup::ensure_for_windows(env)?;
    let say = |what: &str, path: &Path| env.progress.say(&format!("{what}: {}", path.display()));
    let wanted = |part| parts.is_empty() || parts.contains(&part);
    let driver = wanted(Part::Driver).then(|| driver(env)).transpose()?;
    if let Some(driver) = &driver {
        say("driver", driver);
    }
    let program = wanted(Part::Loader).then(|| program(env)).transpose()?;
    if let Some(program) = &program {
        say("covisor", program);
    }
    if let (Some(driver), Some(program)) = (driver, program) {
        say("package", &package::pack(env, &driver, &program)?);
    }
    Ok(())
}

/// Builds the driver and looks at it.
///
/// # Errors
/// When it does not build, or fails a check.
pub fn driver(env: &Env) -> Result<PathBuf> {
    driver_variant(env, Variant::Nt)
}

/// Where [`driver_in_linux`] puts the module that loads the driver. Its parameters are in `tests/nt-kernel/main.c`.
pub const NT_KERNEL: &str = "/covisor/nt_kernel.ko";

/// Adds the driver to a host that is a Linux, and the module that has there for it what it takes of NT's kernel.
///
/// # Errors
/// When one of them does not build, or the driver fails a check.
pub fn driver_in_linux(env: &Env, rig: Rig) -> Result<Rig> {
    setup::ensure_for_windows(env)?;
    let module = build_c_module(env, &rig.host().headers, "tests/nt-kernel", "nt_kernel")?;
    Ok(rig.file(module, NT_KERNEL).file(driver(env)?, "/covisor/covisor.sys"))
}

/// Builds the driver that Wine can run, for tests, and looks at it.
///
/// # Errors
/// When it does not build, or fails a check.
pub fn driver_for_wine(env: &Env) -> Result<PathBuf> {
    driver_variant(env, Variant::Wine)
}

fn driver_variant(env: &Env, variant: Variant) -> Result<PathBuf> {
    let exports = exports(env, "the list of what NT 5.2 exports, vmm-driver/nt/sys/nt-5.2.exports")?;
    let rules = Rules { subsystem: IMAGE_SUBSYSTEM_NATIVE, checksum: true, exports, most_stack: Some(MOST_STACK) };
    check(driver::build(env, variant)?, &rules)
}

/// Builds the program and looks at it.
///
/// # Errors
/// When it does not build, or fails a check.
pub fn program(env: &Env) -> Result<PathBuf> {
    let [program] = program::build(env, ["covisor"])?;
    check_program(env, program)
}

/// The program that users get, if it has no flaw.
fn check_program(env: &Env, program: PathBuf) -> Result<PathBuf> {
    let exports = exports(env, "the list of what NT 5.2 exports to programs, loader/nt-5.2.exports")?;
    check(program, &Rules { subsystem: IMAGE_SUBSYSTEM_WINDOWS_CUI, checksum: false, exports, most_stack: None })
}

/// What is run under Wine.
#[derive(Debug, Clone)]
pub struct Programs {
    /// `covisor.exe`.
    pub covisor: PathBuf,
    /// What tries the driver.
    pub conformance: PathBuf,
}

/// Builds what is run under Wine, and looks at it: once in the life of this process.
///
/// # Errors
/// When it does not build, or fails a check.
pub fn programs_for_wine(env: &Env) -> Result<Programs> {
    static BUILT: Mutex<Option<Programs>> = Mutex::new(None);
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(programs) = &*built {
        return Ok(programs.clone());
    }
    setup::ensure_for_windows(env)?;
    let [covisor, conformance] = program::build(env, ["covisor", "covisor-conformance"])?;
    let covisor = check_program(env, covisor)?;
    Ok(built.insert(Programs { covisor, conformance }).clone())
}

/// Builds the loader's unit tests as a program for Windows.
///
/// # Errors
/// When it does not build.
pub fn loader_tests(env: &Env) -> Result<PathBuf> {
    setup::ensure_for_windows(env)?;
    program::build_tests(env, "covisor")
}

/// Has clippy look at what is for Windows only.
///
/// # Errors
/// What it finds.
pub fn lint(env: &Env, step: &Step) -> Result<()> {
    program::lint(env, step)
}

/// Why [`lint`] cannot be, if so: the compiler with the library's source may have come without clippy.
#[must_use]
pub fn cannot_lint() -> Option<String> {
    let has_clippy = toolchain::bare_metal().is_ok_and(|toolchain| toolchain.has("clippy"));
    (!has_clippy).then(|| {
        "the compiler with the library's source has no clippy (Debian: `apt-get install rust-web-clippy`, rustup: `rustup \
         component add clippy`)"
            .to_owned()
    })
}

/// Reads the list whose path ends its name.
fn exports(env: &Env, name: &'static str) -> Result<Exports> {
    let path = name.rsplit(' ').next().unwrap_or_default();
    Ok(Exports::parse(name, &fs::read_to_string(env.root.join(path))?))
}

/// The file, if it has no flaw.
fn check(file: PathBuf, rules: &Rules) -> Result<PathBuf> {
    let flaws = pe::flaws(&fs::read(&file)?, rules);
    if flaws.is_empty() { Ok(file) } else { Err(WindowsError::Flaws { file, flaws }.into()) }
}

/// Where everything for a Windows host goes.
fn out(env: &Env) -> PathBuf {
    env.out.join("windows")
}

/// Writes a file if it is not already so: a newer date would have things compiled again.
fn write_if_new(path: &Path, content: &[u8]) -> Result<()> {
    if std::fs::read(path).ok().as_deref() != Some(content) {
        fs::write(path, content)?;
    }
    Ok(())
}
