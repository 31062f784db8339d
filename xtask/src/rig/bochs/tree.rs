//! Bochs itself: Debian 13's, the first whose package has VMX, with all the libraries that it needs, unpacked from their
//! packages. So it runs on a machine that is older, and nothing is installed there.

use std::path::PathBuf;
use std::process::Command;

use covisor_guest_images::apt::{self, Apt};
use covisor_guest_images::command::Cmd;
use covisor_guest_images::fs;

use crate::env::Env;
use crate::error::{Error, Result};

/// The suite.
const SUITE: &str = "trixie";

/// Bochs, a display that needs no window, and the firmware.
const PACKAGES: [&str; 4] = ["bochs", "bochs-term", "bochsbios", "vgabios"];

/// How the files of the packages that are unpacked begin: of what Bochs' packages depend on, it needs the libraries only.
const UNPACKED: [&str; 3] = ["bochs", "lib", "vgabios"];

/// What goes from the tree: it is large and nobody reads it.
const REMOVED: [&str; 4] = ["usr/share/doc", "usr/share/icons", "usr/share/locale", "usr/share/man"];

/// The program, in the tree.
const PROGRAM: &str = "usr/bin/bochs-bin";

/// Libraries, in the tree.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// An unpacked Bochs.
#[derive(Debug, Clone)]
pub(super) struct Tree {
    root: PathBuf,
}

impl Tree {
    /// Bochs as it was fetched before, or fetches it.
    ///
    /// # Errors
    /// When it cannot be fetched.
    pub(super) fn find(env: &Env) -> Result<Self> {
        let dir = env.out.join("bochs");
        let tree = Self { root: dir.join("tree") };
        let _lock = fs::Lock::take(dir.join("lock"))?;
        if tree.root.is_dir() {
            return Ok(tree);
        }
        let step = env.progress.step(format!("fetching Bochs of Debian {SUITE}"));
        let apt = Apt::new(&dir.join("apt"), &apt::sources_of_any(SUITE)?)?;
        apt.update(&step)?;
        let unpacking = dir.join("tree.unpacking");
        fs::remove(&unpacking)?;
        fs::create_dir_all(&unpacking)?;
        for deb in apt.download_with_dependencies(&PACKAGES, &step)? {
            let name = deb.file_name().unwrap_or_default().to_string_lossy();
            if UNPACKED.iter().any(|start| name.starts_with(start)) {
                Cmd::new("dpkg-deb").arg("-x").arg(&deb).arg(&unpacking).run(&step)?;
            }
        }
        for folder in REMOVED {
            fs::remove(unpacking.join(folder))?;
        }
        let program = unpacking.join(PROGRAM);
        if !program.exists() {
            return Err(Error::NoBochs(program));
        }
        fs::rename(&unpacking, &tree.root)?;
        fs::remove(dir.join("apt"))?;
        step.done();
        Ok(tree)
    }

    /// A command that runs it, with its own C library: this machine's may be older.
    pub(super) fn command(&self) -> Command {
        let libraries = self.root.join(LIBRARIES);
        let mut command = Command::new(libraries.join("ld-linux-x86-64.so.2"));
        command
            .arg("--library-path")
            .arg(&libraries)
            .arg(self.root.join(PROGRAM))
            .env("LTDL_LIBRARY_PATH", libraries.join("bochs/plugins"))
            .env("BXSHARE", self.bios_folder());
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
