//! Randomness of the host.

use std::io;

use windows_sys::Win32::Security::Authentication::Identity::RtlGenRandom;

/// Fills `bytes` by `RtlGenRandom`, which every Windows has.
///
/// # Errors
///
/// The system's.
pub fn fill(bytes: &mut [u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the pointer and length are those of a slice that we may write.
    if unsafe { RtlGenRandom(bytes.as_mut_ptr().cast(), length) } { Ok(()) } else { Err(io::ErrorKind::Other.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_bytes_are_filled() {
        let mut bytes = [0; 300];
        fill(&mut bytes).unwrap();
        assert!(bytes.iter().filter(|byte| **byte == 0).count() < 50);
    }
}
