//! The page of calls that older kernels want filled (Xen `xen.h`, `hypercall-x86_64.h`): call N is the code at N * 32. Newer ones
//! make their calls themselves.

/// Bytes of a page.
const PAGE: usize = 0x1000;
/// Bytes of a call.
const SLOT: usize = 32;
/// Call number of `iret`, which does not return to its caller.
const IRET: u32 = 23;
/// `int3`, where there is no code.
const FILL: u8 = 0xcc;

/// The page.
pub(super) fn bytes() -> Vec<u8> {
    let mut page = vec![FILL; PAGE];
    for (number, slot) in (0..).zip(page.chunks_exact_mut(SLOT)) {
        let code = if number == IRET { iret() } else { call(number) };
        slot[..code.len()].copy_from_slice(&code);
    }
    page
}

/// `syscall` changes RCX and R11, which a call keeps.
fn call(number: u32) -> Vec<u8> {
    let [a, b, c, d] = number.to_le_bytes();
    let instructions: [&[u8]; 7] = [
        &[0x51],             // push rcx
        &[0x41, 0x53],       // push r11
        &[0xb8, a, b, c, d], // mov eax, number
        &[0x0f, 0x05],       // syscall
        &[0x41, 0x5b],       // pop r11
        &[0x59],             // pop rcx
        &[0xc3],             // ret
    ];
    instructions.concat()
}

/// What it pushes is the top of the frame that the call returns by.
fn iret() -> Vec<u8> {
    let [a, b, c, d] = IRET.to_le_bytes();
    let instructions: [&[u8]; 5] = [
        &[0x51],             // push rcx
        &[0x41, 0x53],       // push r11
        &[0x50],             // push rax
        &[0xb8, a, b, c, d], // mov eax, IRET
        &[0x0f, 0x05],       // syscall
    ];
    instructions.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_a_call_lies_at_its_number() {
        let page = bytes();
        assert_eq!(page.len(), 4096);
        assert_eq!(page[..14], [0x51, 0x41, 0x53, 0xb8, 0, 0, 0, 0, 0x0f, 0x05, 0x41, 0x5b, 0x59, 0xc3]);
        assert_eq!(page[29 * 32 + 4], 29);
        assert_eq!(page[23 * 32..23 * 32 + 12], [0x51, 0x41, 0x53, 0x50, 0xb8, 23, 0, 0, 0, 0x0f, 0x05, 0xcc]);
    }
}
