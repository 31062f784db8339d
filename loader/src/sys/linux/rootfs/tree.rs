//! The files of a root file system to be, in a folder of the host's, and what they are to be on the guest's disk.
//!
//! Names come from who is not trusted: each is followed folder by folder, and none may be a link. Nobody else changes the folder, which
//! is in one that only its owner may enter.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::fs::File;
use std::fs::Permissions;
use std::io;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::fs::symlink;
use std::path::Component;
use std::path::Path;
use std::path::PathBuf;
use std::time::SystemTime;

use nix::unistd::getegid;
use nix::unistd::geteuid;

use super::at;
use crate::rootfs::ArchiveError;
use crate::rootfs::RootfsError;
use crate::rootfs::Watch;

/// What a folder and a file have at least here, so that they can be written and read.
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
/// Rights of a file that have no meaning on this host.
const RIGHTS: u32 = 0o777;
/// The bits of a mode that are no type.
const MODE: u32 = 0o7777;
/// The types of a file in a mode.
const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
/// Bytes of a file system's block, and of an inode.
const BLOCK: u64 = 4096;
const INODE: u64 = 256;
/// Bytes that are copied at once.
const PIECE: usize = 1 << 16;

/// What cannot be done with a name.
#[derive(Debug)]
pub(super) enum TreeError {
    /// The name, or what it is for.
    Name(ArchiveError),
    /// The disk that it is for.
    TooSmall,
    /// What is read.
    Read(io::Error),
    /// This host.
    Host(RootfsError),
    /// Nobody wants it any more.
    Cancelled,
}

impl From<ArchiveError> for TreeError {
    fn from(error: ArchiveError) -> Self {
        Self::Name(error)
    }
}

impl From<RootfsError> for TreeError {
    fn from(error: RootfsError) -> Self {
        Self::Host(error)
    }
}

/// What a file is to be on the guest's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// When it was last written, if that is known.
    pub(super) modified: Option<SystemTime>,
}

impl Attributes {
    /// Root's, with this mode.
    pub(super) const fn of_root(mode: u32) -> Self {
        Self { mode, uid: 0, gid: 0, modified: None }
    }
}

/// What is no file, folder or link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Node {
    Pipe,
    Character(u32, u32),
    Block(u32, u32),
}

/// What is to be done on the guest's disk with one name.
#[derive(Debug, Default)]
struct Fix {
    node: Option<Node>,
    /// With the type.
    mode: Option<u32>,
    owner: Option<(u32, u32)>,
    /// Names of extended attributes and the numbers of the files that have their values.
    values: Vec<(String, usize)>,
}

/// The files of a root file system.
#[derive(Debug)]
pub(super) struct Tree {
    root: PathBuf,
    /// Whose this process's files are.
    own: (u32, u32),
    /// Bytes that the files take on a disk, and those that there may be.
    used: u64,
    limit: u64,
    fixes: BTreeMap<String, Fix>,
    values: usize,
    /// The folder that was looked at last.
    last: Option<PathBuf>,
}

/// A name, checked.
#[derive(Debug)]
struct Place {
    /// On this host.
    path: PathBuf,
    /// On the guest's disk, from its root.
    name: String,
}

impl Tree {
    /// A tree with nothing in it, for a disk of so many bytes.
    pub(super) fn new(root: &Path, limit: u64) -> Result<Self, RootfsError> {
        fs::DirBuilder::new().mode(FOLDER_MODE).create(root).map_err(at(root))?;
        let mut tree = Self::of(root, limit);
        tree.fix("/".to_owned(), FOLDER | 0o755, FOLDER_MODE, Attributes::of_root(0o755));
        Ok(tree)
    }

    /// One that is there already, with the owners that its files are to have.
    pub(super) fn of(root: &Path, limit: u64) -> Self {
        Self {
            root: root.to_owned(),
            own: (geteuid().as_raw(), getegid().as_raw()),
            used: 0,
            limit,
            fixes: BTreeMap::new(),
            values: 0,
            last: None,
        }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Bytes that its files take on a disk.
    pub(super) fn used(&self) -> u64 {
        self.used
    }

    /// Bytes of the disk that it is for.
    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// Counts what was in it already.
    pub(super) fn measure(&mut self) -> Result<(), RootfsError> {
        /// Bytes of the unit in which the host counts a file's blocks.
        const UNIT: u64 = 512;
        let mut folders = vec![self.root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).map_err(at(&folder))? {
                let entry = entry.map_err(at(&folder))?;
                let metadata = entry.metadata().map_err(at(&folder))?;
                self.used += metadata.blocks() * UNIT + INODE;
                if metadata.is_dir() {
                    folders.push(entry.path());
                }
            }
        }
        Ok(())
    }

    /// Whether nothing was put into it.
    pub(super) fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// The file of an extended attribute's value, beside the tree.
    fn value(&self, number: usize) -> PathBuf {
        self.root.with_extension(format!("value{number}"))
    }

    /// The parts of a name; `..` is none of them.
    fn parts(name: &Path) -> Result<Vec<&str>, ArchiveError> {
        let text = || name.display().to_string();
        let mut parts = Vec::new();
        for component in name.components() {
            match component {
                Component::RootDir | Component::CurDir => {}
                Component::Normal(part) => match part.to_str().filter(|part| !part.contains(char::is_control)) {
                    Some(part) => parts.push(part),
                    None => return Err(ArchiveError::Name(text().escape_debug().to_string())),
                },
                Component::ParentDir | Component::Prefix(_) => return Err(ArchiveError::Outside(text())),
            }
        }
        Ok(parts)
    }

    /// Where a name is, after each folder on the way has been looked at; folders that are missing are made if `make` says so.
    fn place(&mut self, name: &Path, make: bool) -> Result<Place, TreeError> {
        let parts = Self::parts(name)?;
        let mut place = Place { path: self.root.clone(), name: String::new() };
        let Some((last, folders)) = parts.split_last() else {
            return Ok(Place { name: "/".to_owned(), ..place });
        };
        let parent: PathBuf = folders.iter().collect();
        if self.last.as_ref() == Some(&parent) {
            place.path.push(&parent);
            folders.iter().for_each(|folder| place.name.extend(["/", folder]));
        } else {
            for folder in folders {
                place.path.push(folder);
                place.name.extend(["/", folder]);
                match place.path.symlink_metadata() {
                    Ok(metadata) if metadata.is_dir() => {}
                    Ok(_) => return Err(ArchiveError::NoFolder(name.display().to_string()).into()),
                    Err(error) if make && error.kind() == io::ErrorKind::NotFound => {
                        self.new_folder(&place, Attributes::of_root(0o755))?;
                    }
                    Err(error) => return Err(at(&place.path)(error).into()),
                }
            }
            self.last = Some(parent);
        }
        place.path.push(last);
        place.name.extend(["/", last]);
        Ok(place)
    }

    /// So many bytes more are on the disk.
    fn take(&mut self, bytes: u64) -> Result<(), TreeError> {
        self.used += bytes;
        match self.used > self.limit {
            true => Err(TreeError::TooSmall),
            false => Ok(()),
        }
    }

    /// Notes what a name has to become, whose file has a mode of `own` here and is this process's.
    fn fix(&mut self, name: String, mode: u32, own: u32, attributes: Attributes) {
        let owner = (attributes.uid, attributes.gid);
        let fix = Fix {
            mode: (mode & MODE != own).then_some(mode),
            owner: (owner != self.own).then_some(owner),
            ..Fix::default()
        };
        // A name that comes again has nothing of what it was.
        match fix.mode.is_some() || fix.owner.is_some() {
            true => drop(self.fixes.insert(name, fix)),
            false => drop(self.fixes.remove(&name)),
        }
    }

    fn new_folder(&mut self, place: &Place, attributes: Attributes) -> Result<(), TreeError> {
        self.take(BLOCK + INODE)?;
        fs::DirBuilder::new().mode(FOLDER_MODE).create(&place.path).map_err(at(&place.path))?;
        self.folder_attributes(place, attributes)
    }

    fn folder_attributes(&mut self, place: &Place, attributes: Attributes) -> Result<(), TreeError> {
        let own = attributes.mode & RIGHTS | FOLDER_MODE;
        if place.name != "/" {
            fs::set_permissions(&place.path, Permissions::from_mode(own)).map_err(at(&place.path))?;
        }
        let own = if place.name == "/" { FOLDER_MODE } else { own };
        self.fix(place.name.clone(), FOLDER | attributes.mode & MODE, own, attributes);
        Ok(())
    }

    /// Takes away what has this name, unless it is a folder.
    fn make_way(place: &Place) -> Result<(), TreeError> {
        match place.path.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => Err(ArchiveError::Twice(place.name.clone()).into()),
            Ok(_) => Ok(fs::remove_file(&place.path).map_err(at(&place.path))?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(at(&place.path)(error).into()),
        }
    }

    /// A folder, which may be there already.
    pub(super) fn folder(&mut self, name: &Path, attributes: Attributes) -> Result<(), TreeError> {
        let place = self.place(name, true)?;
        match place.path.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => self.folder_attributes(&place, attributes),
            Ok(_) => Err(ArchiveError::Twice(place.name).into()),
            Err(_) => self.new_folder(&place, attributes),
        }
    }

    /// A file with what `content` says.
    pub(super) fn file(
        &mut self,
        name: &Path,
        attributes: Attributes,
        content: &mut dyn Read,
        watch: &dyn Watch,
    ) -> Result<(), TreeError> {
        let place = self.place(name, true)?;
        Self::make_way(&place)?;
        self.take(INODE)?;
        let mut options = File::options();
        let mut file =
            options.write(true).create_new(true).mode(FILE_MODE).open(&place.path).map_err(at(&place.path))?;
        let mut buffer = vec![0; PIECE];
        let mut length: u64 = 0;
        loop {
            let count = match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(TreeError::Read(error)),
            };
            if watch.is_cancelled() {
                return Err(TreeError::Cancelled);
            }
            let blocks = length.next_multiple_of(BLOCK);
            length += count as u64;
            self.take(length.next_multiple_of(BLOCK) - blocks)?;
            file.write_all(&buffer[..count]).map_err(at(&place.path))?;
        }
        let own = attributes.mode & RIGHTS | FILE_MODE;
        file.set_permissions(Permissions::from_mode(own)).map_err(at(&place.path))?;
        if let Some(modified) = attributes.modified {
            file.set_modified(modified).map_err(at(&place.path))?;
        }
        self.fix(place.name, FILE | attributes.mode & MODE, own, attributes);
        Ok(())
    }

    /// A symbolic link, to whatever it is.
    pub(super) fn link(&mut self, name: &Path, target: &Path, attributes: Attributes) -> Result<(), TreeError> {
        let place = self.place(name, true)?;
        Self::make_way(&place)?;
        self.take(INODE + BLOCK)?;
        symlink(target, &place.path).map_err(at(&place.path))?;
        // Links have all rights.
        self.fix(place.name, LINK | RIGHTS, RIGHTS, attributes);
        Ok(())
    }

    /// A second name for a file.
    pub(super) fn second_name(&mut self, name: &Path, of: &Path) -> Result<(), TreeError> {
        let no_file = || TreeError::Name(ArchiveError::Link(name.display().to_string()));
        let first = match self.place(of, false) {
            Err(TreeError::Host(_)) => return Err(no_file()),
            place => place?,
        };
        let place = self.place(name, true)?;
        if first.name == place.name {
            return Err(no_file());
        }
        match first.path.symlink_metadata() {
            Ok(metadata) if !metadata.is_dir() => {}
            _ => return Err(no_file()),
        }
        Self::make_way(&place)?;
        self.take(INODE)?;
        // What was said of the first name is of both. This does not follow links.
        fs::hard_link(&first.path, &place.path).map_err(at(&place.path))?;
        self.fixes.remove(&place.name);
        Ok(())
    }

    /// A pipe or a device, which comes onto the guest's disk only.
    pub(super) fn node(&mut self, name: &Path, node: Node, attributes: Attributes) -> Result<(), TreeError> {
        let place = self.place(name, true)?;
        Self::make_way(&place)?;
        self.take(INODE)?;
        let kind = match node {
            Node::Pipe => 0o010_000,
            Node::Character(..) => 0o020_000,
            Node::Block(..) => 0o060_000,
        };
        let mode = Some(kind | attributes.mode & MODE);
        let fix = Fix { node: Some(node), mode, owner: Some((attributes.uid, attributes.gid)), values: Vec::new() };
        self.fixes.insert(place.name, fix);
        Ok(())
    }

    /// Gives a name that is there an extended attribute.
    pub(super) fn attribute(&mut self, name: &Path, key: &str, value: &[u8]) -> Result<(), TreeError> {
        let place = self.place(name, false)?;
        self.take(value.len() as u64)?;
        let number = self.values;
        let path = self.value(number);
        fs::write(&path, value).map_err(at(&path))?;
        self.values += 1;
        self.fixes.entry(place.name).or_default().values.push((key.to_owned(), number));
        Ok(())
    }

    /// Removes the files that have values.
    pub(super) fn forget_values(&self) -> Result<(), RootfsError> {
        (0..self.values).map(|number| self.value(number)).try_for_each(|path| fs::remove_file(&path).map_err(at(&path)))
    }

    /// A file of root's, in the place of what is there.
    pub(super) fn put(&mut self, name: &str, content: &[u8], mode: u32) -> Result<(), TreeError> {
        let mut content = content;
        self.file(Path::new(name), Attributes::of_root(mode), &mut content, &Nobody)
    }

    /// A program of root's, in the place of what is there.
    pub(super) fn program(&mut self, name: &Path, content: &mut dyn Read) -> Result<(), TreeError> {
        self.file(name, Attributes::of_root(0o755), content, &Nobody)
    }

    /// Removes a name, if it is there and no folder.
    pub(super) fn remove(&mut self, name: &str) -> Result<(), TreeError> {
        let place = match self.place(Path::new(name), false) {
            Err(TreeError::Host(_)) => return Ok(()),
            place => place?,
        };
        Self::make_way(&place)?;
        self.fixes.remove(&place.name);
        Ok(())
    }

    /// The path of a folder or plain file that is there, on this host.
    pub(super) fn find(&mut self, name: &str) -> Option<PathBuf> {
        let place = self.place(Path::new(name), false).ok()?;
        let metadata = place.path.symlink_metadata().ok()?;
        (metadata.is_dir() || metadata.is_file()).then_some(place.path)
    }

    /// What `debugfs` is to do with an image of it.
    pub(super) fn script(&self) -> String {
        let mut script = String::new();
        let mut line = |arguments: std::fmt::Arguments<'_>| {
            // Nothing that is written to a text can go wrong.
            let _ = writeln!(script, "{arguments}");
        };
        for (name, fix) in &self.fixes {
            if let (Some(node), Some((folder, last))) = (fix.node, name.rsplit_once('/')) {
                line(format_args!("cd {}", Quoted(if folder.is_empty() { "/" } else { folder })));
                match node {
                    Node::Pipe => line(format_args!("mknod {} p", Quoted(last))),
                    Node::Character(major, minor) => {
                        line(format_args!("mknod {} c {major} {minor}", Quoted(last)));
                    }
                    Node::Block(major, minor) => line(format_args!("mknod {} b {major} {minor}", Quoted(last))),
                }
            }
            if let Some(mode) = fix.mode {
                line(format_args!("set_inode_field {} mode 0{mode:o}", Quoted(name)));
            }
            if let Some((uid, gid)) = fix.owner {
                line(format_args!("set_inode_field {} uid {uid}", Quoted(name)));
                line(format_args!("set_inode_field {} gid {gid}", Quoted(name)));
            }
            for (key, number) in &fix.values {
                let value = self.value(*number);
                let value = value.to_string_lossy();
                line(format_args!("ea_set -f {} {} {}", Quoted(&value), Quoted(name), Quoted(key)));
            }
        }
        script
    }
}

/// A word as `debugfs` reads it: no control characters are in it.
struct Quoted<'a>(&'a str);

impl std::fmt::Display for Quoted<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "\"{}\"", self.0.replace('"', "\"\""))
    }
}

/// Nobody looks on at what takes no time.
struct Nobody;

impl Watch for Nobody {
    fn step(&mut self, _what: &str) {}

    fn detail(&mut self, _what: &str) {}

    fn is_cancelled(&self) -> bool {
        false
    }
}
