//! What the fuzz targets share.

/// A fuzzer's bytes, taken from the front; zeros once they are used up.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// All of them.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether they are used up.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is left.
    #[must_use]
    pub const fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.fill(&mut bytes);
        bytes
    }

    /// Fills `bytes` from the next ones.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        let count = bytes.len().min(self.0.len());
        let (taken, rest) = self.0.split_at(count);
        bytes[..count].copy_from_slice(taken);
        bytes[count..].fill(0);
        self.0 = rest;
    }

    /// A byte.
    pub fn byte(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// A truth value.
    pub fn flag(&mut self) -> bool {
        self.byte() & 1 != 0
    }

    /// Two bytes.
    pub fn word(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// Eight bytes.
    pub fn long(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// A number in which few bits are set or few are clear, small more often than large: what limits are made of.
    pub fn number(&mut self) -> u64 {
        match self.byte() {
            kind @ 0..=127 => kind.into(),
            kind @ 128..=159 => u64::from(kind - 128) << 12 | u64::from(self.byte()),
            kind @ 160..=191 => 1_u64.rotate_left(kind.into()).wrapping_sub(u64::from(self.byte() % 3)),
            192..=223 => u64::from_le_bytes([self.byte(), self.byte(), self.byte(), self.byte(), 0, 0, 0, 0]),
            _ => self.long(),
        }
    }
}
