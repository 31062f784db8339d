//! Randomness of the host.

use std::io;

/// Fills `bytes` by `getrandom(2)`.
///
/// # Errors
///
/// The system's.
pub fn fill(bytes: &mut [u8]) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        // SAFETY: the pointer and length are those of a slice that we may write.
        let count = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(count) {
            Ok(count) => rest = &mut rest[count..],
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
    Ok(())
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
