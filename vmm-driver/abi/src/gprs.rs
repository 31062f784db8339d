//! Assembler text by which the general registers go from memory to the CPU and back, and are kept from steering what runs after a
//! guest. It stands in this crate because all switches have it alone in common, the engines' and that of `coop`'s monitor.
//!
//! In memory the registers lie as in [`VcpuState::gprs`](crate::VcpuState::gprs): in the order of the instruction encoding, 8 bytes
//! each.

/// The text that loads all general registers but RAX and RSP from the address in `$base`, the name of one of these two.
#[rustfmt::skip]
#[macro_export]
macro_rules! load_gprs {
    ($base:literal) => {
        concat!(
            "mov rcx, [", $base, " + 1*8]\n",
            "mov rdx, [", $base, " + 2*8]\n",
            "mov rbx, [", $base, " + 3*8]\n",
            "mov rbp, [", $base, " + 5*8]\n",
            "mov rsi, [", $base, " + 6*8]\n",
            "mov rdi, [", $base, " + 7*8]\n",
            "mov r8, [", $base, " + 8*8]\n",
            "mov r9, [", $base, " + 9*8]\n",
            "mov r10, [", $base, " + 10*8]\n",
            "mov r11, [", $base, " + 11*8]\n",
            "mov r12, [", $base, " + 12*8]\n",
            "mov r13, [", $base, " + 13*8]\n",
            "mov r14, [", $base, " + 14*8]\n",
            "mov r15, [", $base, " + 15*8]",
        )
    };
}

/// The text that stores all general registers but RAX and RSP at the address in `$base`, the name of one of these two.
#[rustfmt::skip]
#[macro_export]
macro_rules! store_gprs {
    ($base:literal) => {
        concat!(
            "mov [", $base, " + 1*8], rcx\n",
            "mov [", $base, " + 2*8], rdx\n",
            "mov [", $base, " + 3*8], rbx\n",
            "mov [", $base, " + 5*8], rbp\n",
            "mov [", $base, " + 6*8], rsi\n",
            "mov [", $base, " + 7*8], rdi\n",
            "mov [", $base, " + 8*8], r8\n",
            "mov [", $base, " + 9*8], r9\n",
            "mov [", $base, " + 10*8], r10\n",
            "mov [", $base, " + 11*8], r11\n",
            "mov [", $base, " + 12*8], r12\n",
            "mov [", $base, " + 13*8], r13\n",
            "mov [", $base, " + 14*8], r14\n",
            "mov [", $base, " + 15*8], r15",
        )
    };
}

/// The text that clears the registers that functions keep for their callers (System V ABI for x86-64, 3.2.1). Code that is called
/// after a guest would carry them along; so they hold nothing of the guest that could steer its speculation. The others it writes
/// before it reads them, or are its arguments.
#[macro_export]
macro_rules! clear_kept_registers {
    () => {
        concat!(
            "xor ebx, ebx\n",
            "xor ebp, ebp\n",
            "xor r12d, r12d\n",
            "xor r13d, r13d\n",
            "xor r14d, r14d\n",
            "xor r15d, r15d",
        )
    };
}

#[cfg(test)]
mod tests {
    use core::arch::asm;

    #[test]
    fn test_registers_are_loaded_and_stored_by_their_numbers_and_kept_ones_are_cleared() {
        let from: [u64; 16] = core::array::from_fn(|number| 0x1111_0000_0000_0000 + number as u64);
        // After the load, and after the kept ones were cleared.
        let mut stored = [[0_u64; 16]; 2];
        let (rcx, rdx, rsi, rdi, r8, r9, r10, r11): (u64, u64, u64, u64, u64, u64, u64, u64);
        // SAFETY: the text reads `from` and writes `stored`. All registers that change are named here or pushed.
        unsafe {
            asm!(
                "push rbx",
                "push rbp",
                "push rsi",
                load_gprs!("rax"),
                "mov rax, [rsp]",
                store_gprs!("rax"),
                clear_kept_registers!(),
                "add rax, 16*8",
                store_gprs!("rax"),
                "add rsp, 8",
                "pop rbp",
                "pop rbx",
                inout("rax") from.as_ptr() => _,
                inout("rsi") stored.as_mut_ptr() => rsi,
                out("rcx") rcx, out("rdx") rdx, out("rdi") rdi,
                out("r8") r8, out("r9") r9, out("r10") r10, out("r11") r11,
                out("r12") _, out("r13") _, out("r14") _, out("r15") _,
            );
        }
        let numbered = |number: usize| from[number];
        assert_eq!([rcx, rdx, rsi, rdi, r8, r9, r10, r11], [1, 2, 6, 7, 8, 9, 10, 11].map(numbered));
        let [loaded, cleared] = stored;
        for number in 0..16 {
            let is_moved = ![0, 4].contains(&number);
            let is_kept = [3, 5, 12, 13, 14, 15].contains(&number);
            assert_eq!(loaded[number], if is_moved { from[number] } else { 0 }, "register {number}");
            assert_eq!(cleared[number], if is_kept { 0 } else { loaded[number] }, "register {number}");
        }
    }
}
