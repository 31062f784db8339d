//! The few instructions that a guest's kernel relies on the monitor for: privileged ones (in 64-bit code of ring 3 they are #GP), and
//! the stores by which Linux changes page tables. What is not here goes to the host, whose decoder knows all.
//!
//! Encodings: SDM vol. 2, chapters 2 to 5.

/// Longest instruction.
pub const MAX_LENGTH: usize = 15;

/// A privileged instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privileged {
    /// IN, OUT, INS or OUTS.
    Port {
        /// The port is this one, else it is in DX.
        port: Option<u8>,
        /// Bytes.
        size: u8,
        /// OUT or OUTS.
        write: bool,
        /// INS or OUTS.
        string: bool,
    },
    /// RDMSR.
    ReadMsr,
    /// WRMSR.
    WriteMsr,
    /// XSETBV.
    Xsetbv,
    /// MOV from a control register.
    ReadControl {
        /// Which one.
        control: u8,
        /// General register.
        register: usize,
    },
    /// MOV to a control register.
    WriteControl {
        /// Which one.
        control: u8,
        /// General register.
        register: usize,
    },
    /// CLTS.
    ClearTaskSwitched,
    /// HLT.
    Halt,
    /// CLI, STI, INVD, WBINVD: nothing is done.
    Nothing,
}

/// A read-modify-write of 8 bytes, or less, in a page table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// MOV: the new value.
    Move(Operand),
    /// XCHG with this register.
    Exchange(usize),
    /// CMPXCHG with this register.
    CompareExchange(usize),
    /// AND, of so many bytes.
    And(Operand, u8),
    /// OR, of so many bytes.
    Or(Operand, u8),
    /// BTS of this bit.
    SetBit(Operand),
    /// BTR of this bit.
    ResetBit(Operand),
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// A general register.
    Register(usize),
    /// The instruction, sign-extended.
    Immediate(u64),
}

/// An instruction and its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded<T> {
    /// What it does.
    pub operation: T,
    /// Bytes.
    pub length: u8,
}

/// Prefixes (SDM vol. 2, 2.1.1 and 2.2.1).
#[derive(Clone, Copy, Default)]
struct Prefixes {
    operand_size: bool,
    repeat: bool,
    rex: u8,
}

impl Prefixes {
    const fn wide(self) -> bool {
        self.rex & 8 != 0
    }

    /// The register that the ModRM byte's `reg` field names.
    const fn register(self, modrm: u8) -> usize {
        (modrm >> 3 & 7 | (self.rex & 4) << 1) as usize
    }

    /// The register that its `rm` field names.
    const fn other_register(self, modrm: u8) -> usize {
        (modrm & 7 | (self.rex & 1) << 3) as usize
    }
}

/// Bytes of code, taken off one by one.
struct Code<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Code<'_> {
    fn byte(&mut self) -> Option<u8> {
        let byte = self.bytes.get(self.at).copied()?;
        self.at += 1;
        Some(byte)
    }

    fn prefixes(&mut self) -> Option<Prefixes> {
        let mut prefixes = Prefixes::default();
        loop {
            match self.bytes.get(self.at)? {
                0x66 => prefixes.operand_size = true,
                0xf2 | 0xf3 => prefixes.repeat = true,
                // LOCK, segment overrides, 32-bit addresses: the one means nothing on one CPU, the others nothing for addresses that are
                // known.
                0xf0 | 0x67 | 0x2e | 0x36 | 0x3e | 0x26 | 0x64 | 0x65 => {}
                rex @ 0x40..=0x4f => {
                    prefixes.rex = *rex;
                    self.at += 1;
                    return Some(prefixes);
                }
                _ => return Some(prefixes),
            }
            self.at += 1;
        }
    }

    /// The ModRM byte of a memory operand; what belongs to its address is skipped (SDM vol. 2, 2.1.3).
    fn memory_operand(&mut self) -> Option<u8> {
        let modrm = self.byte()?;
        let (mode, rm) = (modrm >> 6, modrm & 7);
        let base = if rm == 4 { self.byte()? & 7 } else { rm };
        self.at += match mode {
            0 if base == 5 => 4,
            0 => 0,
            1 => 1,
            2 => 4,
            _ => return None,
        };
        Some(modrm)
    }

    fn immediate8(&mut self) -> Option<u64> {
        #[expect(clippy::cast_sign_loss, clippy::cast_possible_wrap, reason = "sign extension")]
        self.byte().map(|byte| byte as i8 as i64 as u64)
    }

    fn immediate32(&mut self) -> Option<u64> {
        let bytes = [self.byte()?, self.byte()?, self.byte()?, self.byte()?];
        #[expect(clippy::cast_sign_loss, reason = "sign extension")]
        Some(i64::from(i32::from_le_bytes(bytes)) as u64)
    }

    fn done<T>(self, operation: T) -> Option<Decoded<T>> {
        if self.at > self.bytes.len() || self.at > MAX_LENGTH {
            return None;
        }
        Some(Decoded { operation, length: u8::try_from(self.at).ok()? })
    }
}

/// The privileged instruction that 64-bit code begins with.
#[must_use]
pub fn privileged(bytes: &[u8]) -> Option<Decoded<Privileged>> {
    let mut code = Code { bytes, at: 0 };
    let prefixes = code.prefixes()?;
    let wide_port = if prefixes.operand_size { 2 } else { 4 };
    let port = |port, size, write| Privileged::Port { port, size, write, string: false };
    let string = |size, write| Privileged::Port { port: None, size, write, string: true };
    let operation = match code.byte()? {
        0xe4 => port(Some(code.byte()?), 1, false),
        0xe5 => port(Some(code.byte()?), wide_port, false),
        0xe6 => port(Some(code.byte()?), 1, true),
        0xe7 => port(Some(code.byte()?), wide_port, true),
        0xec => port(None, 1, false),
        0xed => port(None, wide_port, false),
        0xee => port(None, 1, true),
        0xef => port(None, wide_port, true),
        0x6c => string(1, false),
        0x6d => string(wide_port, false),
        0x6e => string(1, true),
        0x6f => string(wide_port, true),
        0xf4 => Privileged::Halt,
        0xfa | 0xfb => Privileged::Nothing,
        0x0f => match code.byte()? {
            0x01 if code.byte()? == 0xd1 => Privileged::Xsetbv,
            0x06 => Privileged::ClearTaskSwitched,
            0x08 | 0x09 => Privileged::Nothing,
            0x30 => Privileged::WriteMsr,
            0x32 => Privileged::ReadMsr,
            read_or_write @ (0x20 | 0x22) => {
                let modrm = code.byte()?;
                let (control, register) = (modrm >> 3 & 7 | (prefixes.rex & 4) << 1, prefixes.other_register(modrm));
                if read_or_write == 0x20 {
                    Privileged::ReadControl { control, register }
                } else {
                    Privileged::WriteControl { control, register }
                }
            }
            _ => return None,
        },
        _ => return None,
    };
    code.done(operation)
}

/// The store that 64-bit code begins with, if it is one that Linux changes page tables by.
#[must_use]
pub fn store(bytes: &[u8]) -> Option<Decoded<Store>> {
    let mut code = Code { bytes, at: 0 };
    let prefixes = code.prefixes()?;
    if prefixes.operand_size || prefixes.repeat {
        return None;
    }
    let opcode = code.byte()?;
    if opcode == 0x80 && !prefixes.wide() {
        let modrm = code.memory_operand()?;
        let value = Operand::Immediate(code.immediate8()?);
        return match modrm >> 3 & 7 {
            1 => code.done(Store::Or(value, 1)),
            4 => code.done(Store::And(value, 1)),
            _ => None,
        };
    }
    if !prefixes.wide() {
        return None;
    }
    let operation = match opcode {
        0x87 => Store::Exchange(prefixes.register(code.memory_operand()?)),
        0x89 => Store::Move(Operand::Register(prefixes.register(code.memory_operand()?))),
        0x21 => Store::And(Operand::Register(prefixes.register(code.memory_operand()?)), 8),
        0x09 => Store::Or(Operand::Register(prefixes.register(code.memory_operand()?)), 8),
        0xc7 if code.memory_operand()? >> 3 & 7 == 0 => Store::Move(Operand::Immediate(code.immediate32()?)),
        width @ (0x81 | 0x83) => {
            let modrm = code.memory_operand()?;
            let value = Operand::Immediate(if width == 0x81 { code.immediate32()? } else { code.immediate8()? });
            match modrm >> 3 & 7 {
                1 => Store::Or(value, 8),
                4 => Store::And(value, 8),
                _ => return None,
            }
        }
        0x0f => match code.byte()? {
            0xb1 => Store::CompareExchange(prefixes.register(code.memory_operand()?)),
            0xba => {
                let modrm = code.memory_operand()?;
                let bit = Operand::Immediate(code.immediate8()? & 63);
                match modrm >> 3 & 7 {
                    5 => Store::SetBit(bit),
                    6 => Store::ResetBit(bit),
                    _ => return None,
                }
            }
            _ => return None,
        },
        _ => return None,
    };
    code.done(operation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_privileged_instructions() {
        let port = |port, size, write, string| Privileged::Port { port, size, write, string };
        for (bytes, operation) in [
            (&[0xe4, 0x61][..], port(Some(0x61), 1, false, false)),
            (&[0x66, 0xef], port(None, 2, true, false)),
            (&[0xed], port(None, 4, false, false)),
            (&[0xf3, 0x6e], port(None, 1, true, true)),
            (&[0x67, 0x6e], port(None, 1, true, true)),
            (&[0x0f, 0x30], Privileged::WriteMsr),
            (&[0x0f, 0x32], Privileged::ReadMsr),
            (&[0x0f, 0x01, 0xd1], Privileged::Xsetbv),
            (&[0x41, 0x0f, 0x20, 0xe4], Privileged::ReadControl { control: 4, register: 12 }),
            (&[0x0f, 0x22, 0xc0], Privileged::WriteControl { control: 0, register: 0 }),
            (&[0x0f, 0x06], Privileged::ClearTaskSwitched),
            (&[0xfa], Privileged::Nothing),
            (&[0x0f, 0x09], Privileged::Nothing),
            (&[0xf4], Privileged::Halt),
        ] {
            let length = u8::try_from(bytes.len()).unwrap();
            assert_eq!(privileged(bytes), Some(Decoded { operation, length }), "{bytes:x?}");
        }
        for other in [&[0x90][..], &[0x0f, 0x01, 0xd0], &[0x0f, 0x0b], &[0xe4], &[]] {
            assert_eq!(privileged(other), None, "{other:x?}");
        }
    }

    #[test]
    fn test_stores_that_linux_changes_page_tables_by() {
        for (bytes, operation) in [
            // xchg %rax,(%rdi); xchg %r12,0x10(%rsp)
            (&[0x48, 0x87, 0x07][..], Store::Exchange(0)),
            (&[0x4c, 0x87, 0x64, 0x24, 0x10], Store::Exchange(12)),
            // lock andb $0xdf,(%rsi)
            (&[0xf0, 0x80, 0x26, 0xdf], Store::And(Operand::Immediate(0xffff_ffff_ffff_ffdf), 1)),
            // mov %rdx,(%r8); movq $0x0,0x8(%rax)
            (&[0x49, 0x89, 0x10], Store::Move(Operand::Register(2))),
            (&[0x48, 0xc7, 0x40, 0x08, 0, 0, 0, 0], Store::Move(Operand::Immediate(0))),
            // lock cmpxchg %rcx,(%rdx); lock btr $5,(%rax); lock orq $2,(%rax)
            (&[0xf0, 0x48, 0x0f, 0xb1, 0x0a], Store::CompareExchange(1)),
            (&[0xf0, 0x48, 0x0f, 0xba, 0x30, 0x05], Store::ResetBit(Operand::Immediate(5))),
            (&[0xf0, 0x48, 0x83, 0x08, 0x02], Store::Or(Operand::Immediate(2), 8)),
            // mov %rax,0x12345678
            (&[0x48, 0x89, 0x04, 0x25, 0x78, 0x56, 0x34, 0x12], Store::Move(Operand::Register(0))),
        ] {
            let length = u8::try_from(bytes.len()).unwrap();
            assert_eq!(store(bytes), Some(Decoded { operation, length }), "{bytes:x?}");
        }
        // Register operands, halves, other operations: not here.
        for other in
            [&[0x48, 0x89, 0xc0][..], &[0x89, 0x07], &[0x48, 0x29, 0x07], &[0x66, 0x48, 0x89, 0x07], &[0x48, 0x89]]
        {
            assert_eq!(store(other), None, "{other:x?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn test_no_bytes_are_longer_than_they_are(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..=15)) {
            if let Some(decoded) = store(&bytes) {
                proptest::prop_assert!(usize::from(decoded.length) <= bytes.len());
            }
            if let Some(decoded) = privileged(&bytes) {
                proptest::prop_assert!(usize::from(decoded.length) <= bytes.len());
            }
        }
    }
}
