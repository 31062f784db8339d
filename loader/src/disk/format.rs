//! The formats of images, and how they are told apart.

use std::fmt;
use std::io;
use std::path::Path;

use thiserror::Error;

use super::medium::Medium;
use super::qcow2::Qcow2Error;
use super::vhdx::VhdxError;
use super::vmdk::VmdkError;

/// A format of disk images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// The disk's sectors as they are.
    Raw,
    /// QEMU's.
    Qcow2,
    /// Hyper-V's.
    Vhdx,
    /// VMware's.
    Vmdk,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Raw, Self::Qcow2, Self::Vhdx, Self::Vmdk];

    /// What it is called, here and by others.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vhdx => "vhdx",
            Self::Vmdk => "vmdk",
        }
    }

    /// The format of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    /// The format that a file's name says.
    ///
    /// A guest can write what it likes to a raw disk, also what another format begins with, which can name files of the
    /// host. So what a file holds does not say its format where a guest is to have it.
    #[must_use]
    pub fn of_name(path: &Path) -> Self {
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        Self::from_name(&extension.to_ascii_lowercase()).unwrap_or(Self::Raw)
    }

    /// The format that the first bytes are of; raw images may begin with anything.
    ///
    /// # Errors
    /// The host's.
    pub fn of_content(medium: &dyn Medium) -> io::Result<Self> {
        let mut start = [0; LONGEST_START];
        medium.read_padded(0, &[vm_memory::VolatileSlice::from(&mut start[..])])?;
        let found = STARTS.iter().find(|(bytes, _)| start.starts_with(bytes));
        Ok(found.map_or(Self::Raw, |(_, format)| *format))
    }
}

/// What the files of each format begin with: the magic numbers of qcow2 and of sparse VMDK extents, the signature of VHDX
/// ([MS-VHDX] 2.2.1), and the first line of VMDK descriptors.
const STARTS: [(&[u8], Format); 4] = [
    (b"QFI\xfb", Format::Qcow2),
    (b"vhdxfile", Format::Vhdx),
    (b"KDMV", Format::Vmdk),
    (b"# Disk DescriptorFile", Format::Vmdk),
];
const LONGEST_START: usize = 21;

impl fmt::Display for Format {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// What is wrong with an image.
#[derive(Debug, Error)]
pub enum FormatError {
    /// A qcow2 image.
    #[error(transparent)]
    Qcow2(#[from] Qcow2Error),
    /// A VHDX image.
    #[error(transparent)]
    Vhdx(#[from] VhdxError),
    /// A VMDK image.
    #[error(transparent)]
    Vmdk(#[from] VmdkError),
}

#[cfg(test)]
mod tests {
    use super::super::medium::MemoryMedium;
    use super::*;

    #[test]
    fn test_names_say_the_format_and_content_does_for_those_who_ask() {
        assert_eq!(Format::of_name(Path::new("a.QCOW2")), Format::Qcow2);
        assert_eq!(Format::of_name(Path::new("a.qcow2.img")), Format::Raw);
        assert_eq!(Format::of_name(Path::new("vmdk")), Format::Raw);
        let of = |bytes: &[u8]| Format::of_content(&MemoryMedium::new(bytes.to_vec(), 100)).unwrap();
        assert_eq!(of(b""), Format::Raw);
        assert_eq!(of(b"QFI\xfb\0\0"), Format::Qcow2);
        assert_eq!(of(b"vhdxfil"), Format::Raw);
        assert_eq!(of(b"# Disk DescriptorFile\nversion=1"), Format::Vmdk);
        assert_eq!(Format::from_name("vhdx"), Some(Format::Vhdx));
    }
}
