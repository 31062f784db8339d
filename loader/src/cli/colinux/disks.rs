//! `cobdN=`, `scsiN=` and the aliases: which disks there are, in which order, and what Linux called them.
//!
//! All are virtio disks here, in the order of coLinux's numbers, SCSI's last. A guest that looks for `/dev/cobd0` finds the disk by
//! its id, `/dev/disk/by-id/virtio-cobd0`, for its name is its id; on the kernel's command line the names are replaced.

use std::path::Path;
use std::path::PathBuf;

use super::ColinuxError;
use super::Flaw;
use super::MANY;
use super::once;
use super::value;
use crate::run::Disk;

/// What begins the alias of a disk that has a number.
const NUMBERED: &str = ":cobd";
/// Largest size that coLinux took, in MiB.
const MOST_MIB: u64 = 1 << 20;
/// Bytes of a MiB.
const MIB: u64 = 1 << 20;

/// The disks as they come.
#[derive(Debug, Default)]
pub(super) struct Disks<'a> {
    numbered: [Option<Numbered>; MANY],
    scsi: [Option<Scsi>; MANY],
    aliases: Vec<Alias<'a>>,
}

/// `cobdN`.
#[derive(Debug)]
struct Numbered {
    path: PathBuf,
    alias: Option<String>,
    /// Whether only an alias says it.
    is_alias_only: bool,
}

/// `scsiN`.
#[derive(Debug)]
struct Scsi {
    path: PathBuf,
    is_cdrom: bool,
}

/// `hda1=FILE` or `hda1=:cobd0`.
#[derive(Debug)]
struct Alias<'a> {
    word: &'a str,
    name: &'a str,
    value: &'a str,
}

impl<'a> Disks<'a> {
    pub(super) fn add(&mut self, number: usize, value: &str) -> Result<(), Flaw> {
        once(&mut self.numbered[number], Numbered { path: value::path(value), alias: None, is_alias_only: false })
    }

    pub(super) fn add_scsi(&mut self, number: usize, value: &str) -> Result<(), Flaw> {
        let parts = value::list(value);
        let mut parts = parts.iter().map(String::as_str);
        let is_cdrom = match parts.next().unwrap_or_default() {
            "disk" => false,
            "cdrom" => true,
            kind @ ("pass" | "cdrw" | "tape" | "changer") => return Err(Flaw::PassThrough(kind.to_owned())),
            kind => return Err(Flaw::ScsiKind(kind.to_owned())),
        };
        let path = parts.next().filter(|path| !path.is_empty()).map(value::path).ok_or(Flaw::NoFile)?;
        check_size(&path, parts.next().unwrap_or_default())?;
        match (parts.next(), parts.next()) {
            (None | Some(""), None) => once(&mut self.scsi[number], Scsi { path, is_cdrom }),
            (Some("shared"), None) => Err(Flaw::SharedDisk),
            _ => Err(Flaw::TooMuch),
        }
    }

    pub(super) fn add_alias(&mut self, word: &'a str, name: &'a str, value: &'a str) {
        self.aliases.push(Alias { word, name, value });
    }

    /// The disks with all their names. Aliases of files take the first free numbers, coLinux saw to those of `sd` first.
    pub(super) fn in_order(mut self) -> Result<InOrder, ColinuxError> {
        let mut aliases = std::mem::take(&mut self.aliases);
        aliases.sort_by_key(|alias| !alias.name.starts_with("sd"));
        for (index, alias) in aliases.iter().enumerate() {
            if aliases[..index].iter().any(|other| other.name == alias.name) {
                return Err(Flaw::Twice.of(alias.word));
            }
            self.alias(alias).map_err(|flaw| flaw.of(alias.word))?;
        }
        let mut all = InOrder::default();
        for (number, disk) in self.numbered.into_iter().enumerate() {
            let Some(Numbered { path, alias, is_alias_only }) = disk else { continue };
            let cobd = format!("cobd{number}");
            let name = alias.clone().filter(|_| is_alias_only).unwrap_or_else(|| cobd.clone());
            all.add(name, path, false);
            all.call(cobd, false);
            all.call(format!("cobd/{number}"), false);
            alias.into_iter().for_each(|alias| all.call(alias, false));
        }
        let (mut disks, mut cdroms) = (0, 0);
        for (number, scsi) in self.scsi.into_iter().enumerate() {
            let Some(Scsi { path, is_cdrom }) = scsi else { continue };
            all.add(format!("scsi{number}"), path, is_cdrom);
            let (called, has_partitions) = if is_cdrom {
                cdroms += 1;
                (format!("sr{}", cdroms - 1), false)
            } else {
                disks += 1;
                (format!("sd{}", letters(disks - 1)), true)
            };
            all.call(called, has_partitions);
        }
        Ok(all)
    }

    fn alias(&mut self, alias: &Alias<'_>) -> Result<(), Flaw> {
        if let Some(digits) = alias.value.strip_prefix(NUMBERED) {
            let number: usize = digits.parse().map_err(|_| Flaw::Alias)?;
            let disk = self.numbered.get_mut(number).and_then(Option::as_mut);
            let disk = disk.ok_or_else(|| Flaw::NoDisk(format!("cobd{number}")))?;
            return match &disk.alias {
                Some(other) => Err(Flaw::AliasTaken(other.clone())),
                None => {
                    disk.alias = Some(alias.name.to_owned());
                    Ok(())
                }
            };
        }
        if alias.value.starts_with(':') {
            return Err(Flaw::Alias);
        }
        let free = self.numbered.iter_mut().find(|disk| disk.is_none()).ok_or(Flaw::ManyDisks)?;
        let (path, name) = (value::path(alias.value), Some(alias.name.to_owned()));
        *free = Some(Numbered { path, alias: name, is_alias_only: true });
        Ok(())
    }
}

/// coLinux made files to the size that was said. Nothing of value is cut here: it is only looked at whether the size is that.
fn check_size(path: &Path, mib: &str) -> Result<(), Flaw> {
    let wrong = || Flaw::ScsiSize(path.to_owned());
    match mib {
        "" | "0" => Ok(()),
        digits => {
            let mib: u64 = digits.parse().ok().filter(|&mib| mib <= MOST_MIB).ok_or_else(wrong)?;
            let size = path.metadata().map_err(|_| wrong())?.len();
            if size == mib * MIB { Ok(()) } else { Err(wrong()) }
        }
    }
}

/// The disks in their order, and what they are called.
#[derive(Debug, Default)]
pub(super) struct InOrder {
    disks: Vec<Disk>,
    names: Vec<Name>,
}

/// A name of a disk's in coLinux's guests, below `/dev`.
#[derive(Debug)]
struct Name {
    name: String,
    /// Which disk it is.
    disk: usize,
    /// Whether numbers behind it are partitions.
    has_partitions: bool,
}

impl InOrder {
    fn add(&mut self, name: String, path: PathBuf, is_cdrom: bool) {
        // What cannot be written is for reading, as with coLinux.
        let read_only =
            is_cdrom || is_cdrom_device(&path) || path.metadata().is_ok_and(|file| file.permissions().readonly());
        self.disks.push(Disk { name, path, read_only, format: None });
    }

    /// Calls the last disk so, too.
    fn call(&mut self, name: String, has_partitions: bool) {
        self.names.push(Name { name, disk: self.disks.len() - 1, has_partitions });
    }

    /// A word for the kernel, with the name that a disk has now: `root=/dev/cobd0` becomes `root=/dev/vda`.
    pub(super) fn for_the_kernel(&self, word: &str) -> Result<String, ColinuxError> {
        let Some((key, device)) = word.split_once("=/dev/") else { return Ok(word.to_owned()) };
        for name in &self.names {
            let partition = match device.strip_prefix(name.name.as_str()) {
                Some("") => "",
                Some(digits) if name.has_partitions && digits.bytes().all(|digit| digit.is_ascii_digit()) => digits,
                _ => continue,
            };
            return Ok(format!("{key}=/dev/vd{}{partition}", letters(name.disk)));
        }
        match device.strip_prefix("cobd") {
            Some(number) => Err(Flaw::NoDisk(format!("cobd{}", number.trim_start_matches('/'))).of(word)),
            None => Ok(word.to_owned()),
        }
    }

    pub(super) fn into_disks(self) -> Vec<Disk> {
        self.disks
    }
}

/// Whether Windows calls a device so that is for reading only.
fn is_cdrom_device(path: &Path) -> bool {
    let name = path.to_string_lossy().to_ascii_lowercase();
    name.starts_with(r"\\.\") && name.rsplit('\\').next().is_some_and(|last| last.starts_with("cdrom"))
}

/// How Linux counts disks: a to z, then aa and so on.
fn letters(index: usize) -> String {
    const ALPHABET: &[u8; 26] = b"abcdefghijklmnopqrstuvwxyz";
    let last = char::from(ALPHABET[index % ALPHABET.len()]);
    match index / ALPHABET.len() {
        0 => last.to_string(),
        more => letters(more - 1) + &last.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_disks_are_counted_as_linux_does() {
        assert_eq!([0, 25, 26, 27, 701, 702].map(letters), ["a", "z", "aa", "ab", "zz", "aaa"]);
    }

    #[test]
    fn test_a_size_that_is_said_must_be_there() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(3 * MIB).unwrap();
        assert_eq!(check_size(file.path(), "3"), Ok(()));
        assert_eq!(check_size(file.path(), ""), Ok(()));
        for wrong in ["2", "1048577", "x", "-1"] {
            assert_eq!(check_size(file.path(), wrong), Err(Flaw::ScsiSize(file.path().to_owned())), "{wrong}");
        }
        assert!(check_size(Path::new("/nowhere/x"), "1").is_err());
    }

    #[test]
    fn test_what_cannot_be_written_is_for_reading() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read_only = || {
            let mut all = InOrder::default();
            all.add("cobd0".to_owned(), file.path().to_owned(), false);
            all.into_disks()[0].read_only
        };
        assert!(!read_only());
        let mut permissions = file.as_file().metadata().unwrap().permissions();
        permissions.set_readonly(true);
        file.as_file().set_permissions(permissions).unwrap();
        assert!(read_only());
        assert!(is_cdrom_device(Path::new(r"\\.\GLOBALROOT\Device\CdRom0")));
        assert!(!is_cdrom_device(Path::new(r"C:\cdrom.img")));
    }
}
