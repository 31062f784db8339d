//! Where guests with names are kept: a folder for each, which has the guest's definition and what belongs to it alone.
//!
//! | file | |
//! |---|---|
//! | `NAME.lock` | locked as long as the guest runs, or something is done to it; the host takes the lock away with the process |
//! | `NAME/guest.json` | the [`Definition`] |
//! | `NAME/disk.qcow2` or `NAME/disk.raw` | the disk of `--from` |
//! | `NAME/vmlinuz`, `NAME/initrd.img` | the kernel that was found in what `--from` names |
//! | `NAME/running` | the [`Run`], there while the guest runs; what is there without a lock is of a run that did not come to its end |
//! | `NAME/messages` | what covisor said in the last run in the background |
//!
//! A guest comes and goes by the renaming of its folder, so that it is there as a whole or not at all.

use std::fs;
use std::fs::File;
use std::fs::TryLockError;
use std::io;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;
use thiserror::Error;

use super::crash::Crash;
use super::crash::Run;
use crate::run::check_name;
use crate::run::describe;
use crate::sys::files;
use crate::sys::host;

/// Version of the definition's format.
const VERSION: u32 = 2;
const DEFINITION: &str = "guest.json";
const QCOW2_DISK: &str = "disk.qcow2";
const RAW_DISK: &str = "disk.raw";
/// The kernel and the initial RAM disk that were found in what a disk is made of.
pub(super) const KERNEL: &str = "vmlinuz";
pub(super) const INITRD: &str = "initrd.img";
const RUNNING: &str = "running";
const MESSAGES: &str = "messages";
/// What ends the name of a guest's lock.
const LOCK: &str = "lock";
/// What ends the names of folders of guests that are being made or removed; no guest's name begins with a dot.
const UNFINISHED: &str = "unfinished";

/// How long to wait before a lock is tried again, and how often: who lists guests has each for a moment.
const AGAIN: (Duration, u32) = (Duration::from_millis(20), 5);

/// Why something cannot be done with a guest.
#[derive(Debug, Error)]
pub(super) enum StoreError {
    #[error("{0}")]
    Name(String),
    #[error("{0}")]
    Made(String),
    #[error("there is a guest {0} already: `covisor list` shows it, `covisor remove {0}` removes it")]
    Taken(String),
    #[error("there is no guest {0}: `covisor list` shows those there are, `covisor create {0}` makes one")]
    Missing(String),
    #[error("guest {0} runs, or is being started or removed: `covisor list` tells, `covisor stop {0}` ends it")]
    Busy(String),
    #[error("the definition of guest {0} is damaged ({1}): remove it by `covisor remove {0}`")]
    Damaged(String, String),
    #[error("guest {0} was made by a newer covisor: use that")]
    Newer(String),
    #[error("{}: {}", path.display(), describe(source))]
    Host { path: PathBuf, source: io::Error },
}

/// What a guest is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Definition {
    version: u32,
    /// Where relative paths begin.
    pub(super) folder: PathBuf,
    /// Whether it has a disk of its own.
    has_disk: bool,
    /// Whether that is a raw image.
    #[serde(default)]
    has_raw_disk: bool,
    /// Whether it has a kernel of its own, and an initial RAM disk.
    #[serde(default)]
    has_kernel: bool,
    #[serde(default)]
    has_initrd: bool,
    /// The options of `covisor run`.
    pub(super) options: Vec<String>,
}

/// The disk that is in a guest's own folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OwnDisk {
    Raw,
    Qcow2,
}

impl OwnDisk {
    /// Its file.
    pub(super) const fn file(self) -> &'static str {
        match self {
            Self::Raw => RAW_DISK,
            Self::Qcow2 => QCOW2_DISK,
        }
    }
}

/// What is in a guest's own folder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Own {
    pub(super) disk: Option<OwnDisk>,
    pub(super) kernel: bool,
    pub(super) initrd: bool,
}

impl Own {
    /// The options that name it, and its files.
    pub(super) fn files(self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let disk = self.disk.map(|disk| ("--disk", disk.file()));
        let kernel = self.kernel.then_some(("--kernel", KERNEL));
        disk.into_iter().chain(kernel).chain(self.initrd.then_some(("--initrd", INITRD)))
    }
}

impl Definition {
    pub(super) fn new(folder: PathBuf, own: Own, options: Vec<String>) -> Self {
        Self {
            version: VERSION,
            folder,
            has_disk: own.disk.is_some(),
            has_raw_disk: own.disk == Some(OwnDisk::Raw),
            has_kernel: own.kernel,
            has_initrd: own.initrd,
            options,
        }
    }

    /// What the guest has of its own.
    pub(super) fn own(&self) -> Own {
        let disk = if self.has_raw_disk { OwnDisk::Raw } else { OwnDisk::Qcow2 };
        Own { disk: self.has_disk.then_some(disk), kernel: self.has_kernel, initrd: self.has_initrd }
    }
}

/// What a guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum State {
    Stopped,
    /// It runs, or something is being done to it.
    Running,
    /// It ran when its process or the host ended.
    Crashed,
}

/// A lock on a guest, until this is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
    path: PathBuf,
}

/// All guests.
#[derive(Debug, Clone)]
pub(super) struct Store {
    folder: PathBuf,
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError::Host { path: path.to_owned(), source }
}

impl Store {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    fn of(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A file in a guest's own folder.
    pub(super) fn file(&self, name: &str, file: &str) -> PathBuf {
        self.of(name).join(file)
    }

    /// What covisor says in the background.
    pub(super) fn messages(&self, name: &str) -> PathBuf {
        self.of(name).join(MESSAGES)
    }

    /// An empty file for what covisor says in the background. What is written goes to its end: who lost the race for the guest's lock
    /// writes there, too. Who has that lock calls it.
    pub(super) fn begin_messages(&self, name: &str) -> Result<File, StoreError> {
        let path = self.messages(name);
        File::create(&path).and_then(|_| File::options().append(true).open(&path)).map_err(at(&path))
    }

    /// Keeps others from doing something with the guest.
    pub(super) fn lock(&self, name: &str) -> Result<Lock, StoreError> {
        let (pause, times) = AGAIN;
        for _ in 0..times {
            match self.try_lock(name) {
                Err(StoreError::Busy(_)) => thread::sleep(pause),
                done => return done,
            }
        }
        self.try_lock(name)
    }

    fn try_lock(&self, name: &str) -> Result<Lock, StoreError> {
        check_name(name).map_err(|error| StoreError::Name(error.to_string()))?;
        files::make_private_folder(&self.folder).map_err(at(&self.folder))?;
        let path = self.of(name).with_added_extension(LOCK);
        let file = File::options().write(true).create(true).truncate(false).open(&path).map_err(at(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(Lock { _file: file, path }),
            Err(TryLockError::WouldBlock) => Err(StoreError::Busy(name.to_owned())),
            Err(TryLockError::Error(error)) => Err(at(&path)(error)),
        }
    }

    /// Makes a guest; `fill` puts into its folder what belongs there, and gives its definition.
    pub(super) fn create(
        &self,
        name: &str,
        fill: impl FnOnce(&Path) -> Result<Definition, String>,
    ) -> Result<(), StoreError> {
        let lock = self.lock(name)?;
        let folder = self.of(name);
        if folder.exists() {
            return Err(StoreError::Taken(name.to_owned()));
        }
        let unfinished = self.unfinished(name)?;
        files::make_private_folder(&unfinished).map_err(at(&unfinished))?;
        let made = fill(&unfinished).map_err(StoreError::Made).and_then(|definition| {
            let path = unfinished.join(DEFINITION);
            let text = serde_json::to_vec_pretty(&definition).map_err(|error| at(&path)(error.into()))?;
            // Written out by the handle that wrote it: Windows does that for no other.
            let write = |mut file: File| file.write_all(&text).and_then(|()| file.sync_all());
            File::create(&path).and_then(write).map_err(at(&path))?;
            fs::rename(&unfinished, &folder).map_err(at(&folder))
        });
        if made.is_err() {
            // The error says more than that this fails, too.
            let _ = fs::remove_dir_all(&unfinished);
            let _ = fs::remove_file(&lock.path);
        }
        made
    }

    /// A folder that is not there, for a guest that is not there as a whole.
    fn unfinished(&self, name: &str) -> Result<PathBuf, StoreError> {
        let path = self.folder.join(format!(".{name}.{UNFINISHED}"));
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(&path)(error)),
            _ => Ok(path),
        }
    }

    pub(super) fn read(&self, name: &str) -> Result<Definition, StoreError> {
        check_name(name).map_err(|error| StoreError::Name(error.to_string()))?;
        if !self.of(name).is_dir() {
            return Err(StoreError::Missing(name.to_owned()));
        }
        let path = self.of(name).join(DEFINITION);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::Damaged(name.to_owned(), "it is not there".to_owned()));
            }
            Err(error) => return Err(at(&path)(error)),
        };
        let damaged = |error: serde_json::Error| StoreError::Damaged(name.to_owned(), error.to_string());
        let value: serde_json::Value = serde_json::from_slice(&text).map_err(damaged)?;
        if value["version"].as_u64().is_some_and(|version| version > VERSION.into()) {
            return Err(StoreError::Newer(name.to_owned()));
        }
        serde_json::from_value(value).map_err(damaged)
    }

    /// Notes that the guest runs from now on, in this process. Who has its lock calls it.
    pub(super) fn begin(&self, name: &str) -> Result<(), StoreError> {
        let path = self.of(name).join(RUNNING);
        let text = serde_json::to_vec(&Run::here()).map_err(|error| at(&path)(error.into()))?;
        // Of a host that goes down there shall be one that can be read.
        let write = || {
            let mut file = File::create(&path)?;
            file.write_all(&text)?;
            file.sync_all()
        };
        write().map_err(at(&path))
    }

    /// How the last run ended, if nobody runs the guest and that did not come to its end.
    pub(super) fn crash(&self, name: &str) -> Result<Option<Crash>, StoreError> {
        let path = self.of(name).join(RUNNING);
        match fs::read(&path) {
            Ok(text) => {
                let run = serde_json::from_slice::<Run>(&text);
                Ok(Some(run.map_or(Crash::UNKNOWN, |run| run.crash(host::boot().as_deref(), host::boot_time()))))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(at(&path)(error)),
        }
    }

    /// Notes that the guest's run has come to its end.
    pub(super) fn end(&self, name: &str) -> Result<(), StoreError> {
        let path = self.of(name).join(RUNNING);
        fs::remove_file(&path).map_err(at(&path))
    }

    /// The guests, in the order of their names.
    pub(super) fn list(&self) -> Result<Vec<(String, State)>, StoreError> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(at(&self.folder)(error)),
        };
        let mut guests = Vec::new();
        for entry in entries {
            let entry = entry.map_err(at(&self.folder))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if entry.path().is_dir() && check_name(&name).is_ok() {
                let state = self.state(&name)?;
                guests.push((name, state));
            }
        }
        guests.sort_by(|(one, _), (other, _)| one.cmp(other));
        Ok(guests)
    }

    fn state(&self, name: &str) -> Result<State, StoreError> {
        match self.try_lock(name) {
            Ok(_lock) if self.of(name).join(RUNNING).exists() => Ok(State::Crashed),
            Ok(_lock) => Ok(State::Stopped),
            Err(StoreError::Busy(_)) => Ok(State::Running),
            Err(error) => Err(error),
        }
    }

    /// Removes a guest that does not run, and what belongs to it.
    pub(super) fn remove(&self, name: &str) -> Result<(), StoreError> {
        let lock = self.lock(name)?;
        let folder = self.of(name);
        if !folder.is_dir() {
            // Nothing of a guest that there is none of stays.
            let _ = fs::remove_file(&lock.path);
            return Err(StoreError::Missing(name.to_owned()));
        }
        let unfinished = self.unfinished(name)?;
        fs::rename(&folder, &unfinished).map_err(at(&folder))?;
        fs::remove_dir_all(&unfinished).map_err(at(&unfinished))?;
        fs::remove_file(&lock.path).map_err(at(&lock.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("guests"));
        (folder, store)
    }

    fn definition() -> Definition {
        Definition::new("/vm".into(), Own::default(), vec!["--mem".to_owned(), "1G".to_owned()])
    }

    fn entries(store: &Store) -> Vec<String> {
        let entries = fs::read_dir(&store.folder).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn test_a_guest_comes_and_goes_as_a_whole() {
        let (_folder, store) = store();
        assert_eq!(store.list().unwrap(), []);
        let fill = |folder: &Path| {
            fs::write(folder.join(RAW_DISK), b"disk").map_err(|error| error.to_string())?;
            Ok(definition())
        };
        store.create("web", fill).unwrap();
        store.create("db", |_| Ok(definition())).unwrap();
        assert_eq!(store.read("web").unwrap(), definition());
        assert_eq!(fs::read(store.file("web", RAW_DISK)).unwrap(), b"disk");
        let stopped = |name: &str| (name.to_owned(), State::Stopped);
        assert_eq!(store.list().unwrap(), [stopped("db"), stopped("web")]);
        let error = store.create("web", |_| Ok(definition())).unwrap_err();
        assert!(matches!(error, StoreError::Taken(_)), "{error}");
        store.remove("web").unwrap();
        store.remove("db").unwrap();
        assert_eq!(entries(&store), [""; 0]);
        for error in [store.read("web").map(drop), store.remove("web")] {
            assert!(matches!(error, Err(StoreError::Missing(_))), "{error:?}");
        }
        assert_eq!(entries(&store), [""; 0]);
    }

    #[test]
    fn test_what_a_guest_has_of_its_own_is_read_as_it_was_written() {
        let disks = [None, Some(OwnDisk::Raw), Some(OwnDisk::Qcow2)];
        for disk in disks {
            for (kernel, initrd) in [(false, false), (true, false), (true, true)] {
                let own = Own { disk, kernel, initrd };
                let text = serde_json::to_string(&Definition::new("/".into(), own, Vec::new())).unwrap();
                assert_eq!(serde_json::from_str::<Definition>(&text).unwrap().own(), own);
            }
        }
        let own = Own { disk: Some(OwnDisk::Raw), kernel: true, initrd: false };
        assert_eq!(own.files().collect::<Vec<_>>(), [("--disk", "disk.raw"), ("--kernel", "vmlinuz")]);
        // That of the version before.
        let old = r#"{"version":1,"folder":"/","has-disk":true,"options":[]}"#;
        let own = Own { disk: Some(OwnDisk::Qcow2), kernel: false, initrd: false };
        assert_eq!(serde_json::from_str::<Definition>(old).unwrap().own(), own);
    }

    #[test]
    fn test_what_could_not_be_made_leaves_nothing() {
        let (_folder, store) = store();
        let error = store.create("web", |_| Err("the disk is full".to_owned())).unwrap_err();
        assert_eq!(error.to_string(), "the disk is full");
        assert_eq!((store.list().unwrap(), entries(&store)), (Vec::new(), Vec::new()));
        // Nor does what a process left that was killed over it.
        fs::create_dir_all(store.folder.join(".web.unfinished/x")).unwrap();
        assert_eq!(store.list().unwrap(), []);
        store.create("web", |_| Ok(definition())).unwrap();
        assert_eq!(entries(&store), ["web", "web.lock"]);
    }

    #[test]
    fn test_a_run_that_does_not_end_is_seen() {
        let (_folder, store) = store();
        store.create("web", |_| Ok(definition())).unwrap();
        let lock = store.lock("web").unwrap();
        store.begin("web").unwrap();
        assert_eq!(store.list().unwrap(), [("web".to_owned(), State::Running)]);
        for error in [store.lock("web").map(drop), store.remove("web"), store.create("web", |_| Ok(definition()))] {
            assert!(matches!(error, Err(StoreError::Busy(_))), "{error:?}");
        }
        // As when its process ends.
        drop(lock);
        assert_eq!(store.list().unwrap(), [("web".to_owned(), State::Crashed)]);
        let crash = store.crash("web").unwrap().unwrap().to_string();
        assert!(crash.contains("was ended when its process") && crash.contains("since 20"), "{crash}");
        store.begin("web").unwrap();
        store.end("web").unwrap();
        assert_eq!(store.list().unwrap(), [("web".to_owned(), State::Stopped)]);
        assert_eq!(store.crash("web").unwrap(), None);
    }

    #[test]
    fn test_two_who_start_a_guest_keep_each_others_messages() {
        let (_folder, store) = store();
        store.create("web", |_| Ok(definition())).unwrap();
        let mut one = store.begin_messages("web").unwrap();
        one.write_all(b"of a run before\n").unwrap();
        let mut other = store.begin_messages("web").unwrap();
        other.write_all(b"covisor: error: guest web runs\n").unwrap();
        one.write_all(b"covisor: engine svm\n").unwrap();
        let text = fs::read_to_string(store.messages("web")).unwrap();
        assert_eq!(text, "covisor: error: guest web runs\ncovisor: engine svm\n");
    }

    #[test]
    fn test_a_note_that_cannot_be_read_is_a_crash_all_the_same() {
        let (_folder, store) = store();
        store.create("web", |_| Ok(definition())).unwrap();
        // An older covisor's is empty.
        for text in ["", "{}", "nonsense", "{\"boot\":1,\"pid\":-1,\"since\":null}"] {
            fs::write(store.of("web").join(RUNNING), text).unwrap();
            assert_eq!(store.list().unwrap(), [("web".to_owned(), State::Crashed)]);
            assert_eq!(store.crash("web").unwrap(), Some(Crash::UNKNOWN));
        }
    }

    #[test]
    fn test_bad_names_and_definitions_are_told() {
        let (_folder, store) = store();
        for name in ["", ".", "..", "a/b", "1", ".web", "a b"] {
            assert!(store.create(name, |_| Ok(definition())).unwrap_err().to_string().contains("name"), "{name}");
            assert!(store.remove(name).is_err() && store.read(name).is_err());
        }
        store.create("web", |_| Ok(definition())).unwrap();
        let path = store.of("web").join(DEFINITION);
        for (text, says) in [
            ("", "damaged"),
            ("{}", "damaged"),
            ("{\"version\":3,\"x\":1}", "newer"),
            ("{\"version\":1,\"folder\":\"/\",\"has-disk\":false,\"options\":[],\"more\":1}", "damaged"),
        ] {
            fs::write(&path, text).unwrap();
            let error = store.read("web").unwrap_err().to_string();
            assert!(error.contains(says) && !error.contains('\n'), "{error}");
        }
        fs::remove_file(path).unwrap();
        assert!(store.read("web").unwrap_err().to_string().contains("damaged"));
        // It can be got rid of.
        store.remove("web").unwrap();
    }
}
