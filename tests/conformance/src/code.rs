//! Guests in bytes. They use little of the instruction set, for where there is no CPU for guests, under Wine, an interpreter runs
//! them that knows no more than this: HLT, a short JMP, MOV of a constant into AL, AX and DX, MOV between AL and memory at a
//! constant address, IN and OUT, CLI, STI, UD2. They run in real mode (Intel SDM vol. 3, chapter 21).

/// Where a guest's code begins.
pub(crate) const CODE: u64 = 0x1000;

/// A byte of RAM that a guest sets to say how far it is.
pub(crate) const MARK: u16 = 0x2000;

/// A device's memory: there is no RAM.
pub(crate) const DEVICE_MEMORY: u64 = 0xd000_0000;

pub(crate) const CLI: u8 = 0xfa;
pub(crate) const STI: u8 = 0xfb;
pub(crate) const HLT: u8 = 0xf4;
/// Jumps to itself.
pub(crate) const SPIN: [u8; 2] = [0xeb, 0xfe];
pub(crate) const UD2: [u8; 2] = [0x0f, 0x0b];
pub(crate) const IN_AL_DX: u8 = 0xec;
pub(crate) const IN_AX_DX: u8 = 0xed;
pub(crate) const IN_EAX_DX: [u8; 2] = [0x66, 0xed];
pub(crate) const OUT_DX_AL: u8 = 0xee;
pub(crate) const OUT_DX_AX: u8 = 0xef;
pub(crate) const OUT_DX_EAX: [u8; 2] = [0x66, 0xef];

/// A guest in the making.
#[derive(Clone, Debug, Default)]
pub(crate) struct Code(Vec<u8>);

impl Code {
    /// No code.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// These bytes.
    pub(crate) fn then(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.0.extend_from_slice(bytes.as_ref());
        self
    }

    /// This one byte.
    pub(crate) fn op(self, byte: u8) -> Self {
        self.then([byte])
    }

    /// `mov al, value`
    pub(crate) fn al(self, value: u8) -> Self {
        self.then([0xb0, value])
    }

    /// `mov ax, value`
    pub(crate) fn ax(self, value: u16) -> Self {
        self.op(0xb8).then(value.to_le_bytes())
    }

    /// `mov dx, value`
    pub(crate) fn dx(self, value: u16) -> Self {
        self.op(0xba).then(value.to_le_bytes())
    }

    /// `mov [address], al`
    pub(crate) fn store(self, address: u16) -> Self {
        self.op(0xa2).then(address.to_le_bytes())
    }

    /// `mov al, [address]`
    pub(crate) fn load(self, address: u16) -> Self {
        self.op(0xa0).then(address.to_le_bytes())
    }

    /// `in al, port`
    pub(crate) fn read(self, port: u8) -> Self {
        self.then([0xe4, port])
    }

    /// `out port, al`
    pub(crate) fn write(self, port: u8) -> Self {
        self.then([0xe6, port])
    }

    /// Says that the guest is here.
    pub(crate) fn mark(self) -> Self {
        self.al(1).store(MARK)
    }

    /// Goes on for ever.
    pub(crate) fn spin(self) -> Self {
        self.then(SPIN)
    }

    /// The address of what comes next.
    pub(crate) fn here(&self) -> u64 {
        CODE + self.0.len() as u64
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}
