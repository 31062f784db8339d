//! Root file systems of packages and archives, which this version makes on Linux hosts only.

use crate::rootfs::Made;
use crate::rootfs::RootfsError;
use crate::rootfs::Wanted;
use crate::rootfs::Watch;

/// Makes none.
///
/// # Errors
/// Always.
pub fn make(_wanted: &Wanted<'_>, _watch: &mut dyn Watch) -> Result<Made, RootfsError> {
    Err(RootfsError::NotHere)
}
