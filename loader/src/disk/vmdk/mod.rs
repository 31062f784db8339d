//! VMware's format, VMDK ("Virtual Disk Format 5.0"): read only.
//!
//! A descriptor, which is text, names the extents that make up the disk; it is a file of its own, or inside of the one extent
//! that there is. An extent is flat, sparse (maybe compressed, as in OVA packages) or all zero.

mod descriptor;
mod sparse;

use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;

use self::descriptor::Kind;
use self::sparse::Sparse;
use super::BlockBackend;
use super::SECTOR;
use super::layout::Layout;
use super::layout::Place;
use super::layout::ReadOnly;
use super::medium::Medium;

/// What is wrong with a VMDK image.
#[derive(Debug, Error)]
pub enum VmdkError {
    /// The host does not let it be read.
    #[error("{0}")]
    Host(#[from] io::Error),
    /// Not one.
    #[error("it is no VMDK image; if it is a raw one, say so by `format=raw`")]
    Signature,
    /// A kind of file that is not supported.
    #[error("it is a {0}, which is not supported: copy the disk by VMware's `vmkfstools -i`, or by `qemu-img convert`")]
    Kind(&'static str),
    /// It is cut off.
    #[error("it is cut off")]
    Short,
    /// A version that there is not.
    #[error("it is of version {0} of VMDK; the versions 1 to 3 are known")]
    Version(u32),
    /// A value that cannot be.
    #[error("it is damaged: {0}")]
    Value(&'static str),
    /// Data went through a conversion of line ends.
    #[error("it was copied as text, which has damaged it")]
    Text,
    /// It is based on another.
    #[error("it is a snapshot or linked clone, which is not supported: clone it as a whole in VMware")]
    Parent,
    /// The descriptor does not say what it has to.
    #[error("line {line} of its descriptor: {problem}")]
    Descriptor {
        /// The line.
        line: usize,
        /// What is wrong.
        problem: &'static str,
    },
    /// An extent cannot be used.
    #[error("its extent {}: {error}", path.display())]
    Extent {
        /// The extent's file.
        path: PathBuf,
        /// Why.
        error: Box<VmdkError>,
    },
    /// An extent cannot be opened.
    #[error("its extent {name}: {error}")]
    OpenExtent {
        /// The extent's file.
        name: String,
        /// Why.
        error: String,
    },
    /// The disk has no bytes.
    #[error("the disk in it is empty")]
    Empty,
}

/// Largest descriptor.
const LONGEST_DESCRIPTOR: u64 = 64 << 10;
/// Most bytes of the disk, so that sums of them cannot overflow.
const LARGEST: u64 = 1 << 60;

/// Where a part of the disk is.
#[derive(Debug)]
enum Source {
    Flat(Arc<dyn Medium>, u64),
    Sparse(Sparse),
    Zero,
}

/// A part of the disk.
#[derive(Debug)]
struct Extent {
    start: u64,
    length: u64,
    source: Source,
}

/// A disk.
#[derive(Debug)]
struct Extents {
    extents: Vec<Extent>,
    size: u64,
}

/// Opens a file beside the descriptor, or says why not.
pub type OpenBeside<'a> = dyn FnMut(&Path) -> Result<Arc<dyn Medium>, String> + 'a;

/// The disk of which `medium` is the descriptor, or the one extent. `open` opens further files, by names beside it.
///
/// # Errors
/// It is not an image that can be used.
pub fn open(medium: Arc<dyn Medium>, open: &mut OpenBeside<'_>) -> Result<Box<dyn BlockBackend>, VmdkError> {
    let size = medium.size()?;
    let mut start = [0; 4];
    medium.read_padded(0, &[vm_memory::VolatileSlice::from(&mut start[..])])?;
    let extents = match &start {
        sparse::MAGIC => {
            let sparse = Sparse::new(medium)?;
            if let Some(text) = sparse.descriptor()? {
                descriptor::parse(&text)?;
            }
            let length = sparse.size();
            vec![Extent { start: 0, length, source: Source::Sparse(sparse) }]
        }
        b"COWD" => return Err(VmdkError::Kind("sparse extent of an ESX server (COWD)")),
        b"\xbe\xba\xfe\xca" => return Err(VmdkError::Kind("SEsparse extent of an ESX server")),
        _ => {
            if size > LONGEST_DESCRIPTOR {
                return Err(VmdkError::Signature);
            }
            let mut text = vec![0; usize::try_from(size).unwrap_or(0)];
            medium.read(0, &mut text)?;
            named_extents(&text, open)?
        }
    };
    let size = extents.last().map_or(0, |extent| extent.start + extent.length);
    if size == 0 {
        return Err(VmdkError::Empty);
    }
    Ok(Box::new(ReadOnly(Extents { extents, size })))
}

fn named_extents(text: &[u8], open: &mut OpenBeside<'_>) -> Result<Vec<Extent>, VmdkError> {
    let mut extents = Vec::new();
    let mut start = 0_u64;
    for named in descriptor::parse(text)? {
        let length = named.sectors.checked_mul(SECTOR).filter(|length| start + length <= LARGEST);
        let length = length.ok_or(VmdkError::Value("its extents are larger than any disk"))?;
        let mut file =
            |name: &str| open(Path::new(name)).map_err(|error| VmdkError::OpenExtent { name: name.to_owned(), error });
        let source = match &named.kind {
            Kind::Zero => Source::Zero,
            Kind::Flat { name, sector } => {
                let medium = file(name)?;
                let first =
                    sector.checked_mul(SECTOR).ok_or(VmdkError::Value("an extent begins behind every file's end"))?;
                let is_there = first.checked_add(length).is_some_and(|end| medium.size().is_ok_and(|size| end <= size));
                if !is_there {
                    return Err(VmdkError::Extent { path: name.into(), error: Box::new(VmdkError::Short) });
                }
                Source::Flat(medium, first)
            }
            Kind::Sparse { name } => {
                let of_extent = |error| VmdkError::Extent { path: name.into(), error: Box::new(error) };
                let sparse = Sparse::new(file(name)?).map_err(of_extent)?;
                if sparse.size() < length {
                    return Err(of_extent(VmdkError::Value("it is smaller than the descriptor says")));
                }
                Source::Sparse(sparse)
            }
        };
        extents.push(Extent { start, length, source });
        start += length;
    }
    Ok(extents)
}

impl Layout for Extents {
    fn size(&self) -> u64 {
        self.size
    }

    fn place(&mut self, offset: u64, length: u64) -> io::Result<(Place, u64)> {
        let index = self.extents.partition_point(|extent| extent.start + extent.length <= offset);
        let extent = self.extents.get_mut(index).ok_or(io::ErrorKind::UnexpectedEof)?;
        let within = offset - extent.start;
        let length = length.min(extent.length - within);
        match &mut extent.source {
            Source::Zero => Ok((Place::Zero, length)),
            Source::Flat(medium, first) => Ok((Place::At(Arc::clone(medium), *first + within), length)),
            Source::Sparse(sparse) => sparse.place(within, length),
        }
    }
}

#[cfg(test)]
mod tests;
