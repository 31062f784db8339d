//! Standard output.

use crate::calls::Kernel;

/// Writes texts to it.
pub(crate) fn say(texts: &[&str]) {
    for text in texts {
        Kernel::ByInterrupt.write(1, text.as_bytes());
    }
}
