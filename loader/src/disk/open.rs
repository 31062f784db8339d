//! From a path to a disk.

use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use super::BlockBackend;
use super::DiskError;
use super::Format;
use super::Raw;
use super::medium::HostMedium;
use super::medium::Medium;
use super::qcow2;
use super::qcow2::Backing;
use super::qcow2::Base;
use super::qcow2::Header;
use super::qcow2::Qcow2;
use super::qcow2::Qcow2Error;
use super::vhdx;
use super::vhdx::VhdxError;
use super::vmdk;
use super::vmdk::VmdkError;

/// Most images that are based one on another.
pub(super) const MOST_IMAGES: usize = 32;

/// Opens and locks the disk at `path`, and all that it is based on: nobody else can write any of it meanwhile, and nobody else
/// read what is written here. Without a `format`, the file's name says it.
///
/// # Errors
///
/// It cannot be used.
pub fn open(path: &Path, format: Option<Format>, read_only: bool) -> Result<Box<dyn BlockBackend>, DiskError> {
    let medium = HostMedium::open(path, read_only).map_err(|error| DiskError::of_open(error, path, read_only))?;
    let named = format.unwrap_or_else(|| Format::of_name(path));
    if format.is_none() {
        hint(&medium, path, named);
    }
    if named == Format::Raw {
        return Ok(Box::new(Raw::new(medium, path, read_only)?));
    }
    let medium: Arc<dyn Medium> = Arc::new(medium);
    if !read_only && named != Format::Qcow2 {
        return Err(DiskError::FormatReadOnly { path: path.to_owned(), format: named });
    }
    let wrong = |error| DiskError::Format { path: path.to_owned(), error };
    match named {
        Format::Raw | Format::Qcow2 => {
            let header = Header::read(medium.as_ref()).map_err(|error| wrong(error.into()))?;
            let mut chain = Chain::new(path)?;
            let backing = header.backing.as_ref().map(|backing| chain.base(path, backing)).transpose()?;
            let image = Qcow2::new(medium, &header, backing, read_only).map_err(|error| wrong(error.into()))?;
            Ok(Box::new(image))
        }
        Format::Vhdx => vhdx::open(medium).map_err(|error: VhdxError| wrong(error.into())),
        Format::Vmdk => {
            let mut beside = |name: &Path| extent(path, name);
            vmdk::open(medium, &mut beside).map_err(|error: VmdkError| wrong(error.into()))
        }
    }
}

/// Tells who has named a file as a raw disk that it looks like an image; it may be that the guest has written it so.
fn hint(medium: &HostMedium, path: &Path, named: Format) {
    if let Ok(format) = Format::of_content(medium)
        && named == Format::Raw
        && format != Format::Raw
    {
        log::warn!(
            "disk {}: it begins like a {format} image, and is used as a raw one for its name; add `,format={format}` if it \
             is one",
            path.display()
        );
    }
}

/// Opens a file of a disk that has several, which can only be read.
fn extent(descriptor: &Path, name: &Path) -> Result<Arc<dyn Medium>, String> {
    let path = beside(descriptor, name);
    // What is wrong with it is said of the descriptor, which the user has named.
    let medium = HostMedium::open(&path, true).map_err(|error| match DiskError::of_open(error, &path, true) {
        DiskError::Missing(_) => "there is no such file".to_owned(),
        DiskError::Locked(_) => "another process has it open for a VM".to_owned(),
        DiskError::System { error, .. } => error.to_string(),
        _ => "it cannot be read".to_owned(),
    })?;
    Ok(Arc::new(medium))
}

/// A name in an image's file is to be taken from the image's folder.
pub(super) fn beside(image: &Path, name: &Path) -> PathBuf {
    image.parent().map_or_else(|| name.to_owned(), |folder| folder.join(name))
}

/// Images that are based one on another.
struct Chain {
    /// Those on the way, by their real paths.
    seen: Vec<PathBuf>,
}

impl Chain {
    fn new(path: &Path) -> Result<Self, DiskError> {
        let mut chain = Self { seen: Vec::new() };
        chain.enter(path)?;
        Ok(chain)
    }

    /// Notes an image on the way.
    fn enter(&mut self, path: &Path) -> Result<(), DiskError> {
        let real = std::fs::canonicalize(path).map_err(|error| DiskError::of_open(error.into(), path, true))?;
        if self.seen.contains(&real) {
            return Err(DiskError::Cycle(path.to_owned()));
        }
        if self.seen.len() == MOST_IMAGES {
            return Err(DiskError::LongChain(path.to_owned()));
        }
        self.seen.push(real);
        Ok(())
    }

    /// What the image at `path` is based on.
    fn base(&mut self, path: &Path, backing: &Backing) -> Result<Base, DiskError> {
        let of_image = |error: DiskError| DiskError::Backing { path: path.to_owned(), error: Box::new(error) };
        let (target, format) = target(path, backing)?;
        match self.enter(&target) {
            Ok(()) => {}
            // What is said of the whole chain is said of the first.
            Err(error @ (DiskError::Cycle(_) | DiskError::LongChain(_))) => return Err(error),
            Err(error) => return Err(of_image(error)),
        }
        match self.open(&target, format) {
            Err(error @ (DiskError::Cycle(_) | DiskError::LongChain(_))) => Err(error),
            result => result.map_err(of_image),
        }
    }

    fn open(&mut self, path: &Path, format: Format) -> Result<Base, DiskError> {
        // A device's content is none of an image's business, whoever named it.
        if !std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file()) {
            return Err(DiskError::BackingKind(path.to_owned()));
        }
        let medium = HostMedium::open(path, true).map_err(|error| DiskError::of_open(error, path, true))?;
        let medium: Arc<dyn Medium> = Arc::new(medium);
        let host = |error| DiskError::System { path: path.to_owned(), error };
        if format == Format::Raw {
            return Base::raw(medium).map_err(host);
        }
        let wrong = |error: Qcow2Error| DiskError::Format { path: path.to_owned(), error: error.into() };
        let header = Header::read(medium.as_ref()).map_err(wrong)?;
        let backing = header.backing.as_ref().map(|backing| self.base(path, backing)).transpose()?;
        Base::qcow2(medium, &header, backing).map_err(host)
    }
}

/// The file that an image says it is based on, and its format.
pub(super) fn target(image: &Path, backing: &Backing) -> Result<(PathBuf, Format), DiskError> {
    // QEMU's other ways to name a disk: `json:…`, `nbd://…`. A letter alone is a drive of Windows'.
    let scheme = backing.name.split_once(':').map(|(scheme, _)| scheme);
    let name = match scheme {
        Some("file") => &backing.name["file:".len()..],
        Some(scheme) if scheme.len() > 1 && scheme.chars().all(|c| c.is_ascii_alphanumeric()) => {
            return Err(DiskError::BackingName { path: image.to_owned(), name: backing.name.clone() });
        }
        _ => &backing.name,
    };
    let path = beside(image, Path::new(name));
    let format = match &backing.format {
        None => Format::of_name(&path),
        Some(name) if name == "file" => Format::Raw,
        Some(name) => {
            let format = Format::from_name(name).filter(|format| matches!(format, Format::Raw | Format::Qcow2));
            format.ok_or_else(|| DiskError::BackingFormat { path: image.to_owned(), format: name.clone() })?
        }
    };
    if !matches!(format, Format::Raw | Format::Qcow2) {
        return Err(DiskError::BackingFormat { path: image.to_owned(), format: format.name().to_owned() });
    }
    Ok((path, format))
}

/// A disk of this format in memory, for fuzzing; nothing that it names is opened.
///
/// # Errors
///
/// What is wrong with it, in words.
pub fn open_medium(medium: Arc<dyn Medium>, format: Format, read_only: bool) -> Result<Box<dyn BlockBackend>, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    match format {
        Format::Raw => Err("a raw image has nothing to be parsed".to_owned()),
        Format::Qcow2 => {
            let header = Header::read(medium.as_ref()).map_err(|error| text(&error))?;
            let image = qcow2::Qcow2::new(medium, &header, None, read_only).map_err(|error| text(&error))?;
            Ok(Box::new(image))
        }
        Format::Vhdx => vhdx::open(medium).map_err(|error| text(&error)),
        Format::Vmdk => {
            let mut none = |_: &Path| Err(io::Error::from(io::ErrorKind::NotFound).to_string());
            vmdk::open(medium, &mut none).map_err(|error| text(&error))
        }
    }
}

#[cfg(test)]
mod tests;
