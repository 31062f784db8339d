//! What little of a PC's firmware a guest finds in its memory: ACPI tables, and code at the reset vector.

use vm_memory::Bytes;
use vm_memory::GuestAddress;
use vm_memory::GuestMemoryError;

use crate::acpi;
use crate::devices::power::RESET_PORT;
use crate::devices::power::RESET_VALUE;
use crate::layout::ACPI_TABLES;
use crate::layout::RESET_VECTOR;
use crate::platform::GuestRam;

/// Puts it there, for a machine with so many vCPUs.
///
/// # Errors
/// When guest memory does not reach so far.
pub fn install(ram: &GuestRam, vcpus: u32) -> Result<(), GuestMemoryError> {
    ram.write_slice(&acpi::tables(vcpus), GuestAddress(ACPI_TABLES))?;
    ram.write_slice(&reset_code(), GuestAddress(RESET_VECTOR))
}

/// Resets the machine, in 16-bit code. A Linux on hardware-reduced ACPI resets by EFI and, where there is none, by a jump
/// in real mode to `ffff:0000`, where a BIOS begins (`native_machine_emergency_restart`).
fn reset_code() -> Vec<u8> {
    let [low, high, ..] = RESET_PORT.to_le_bytes();
    let instructions: [&[u8]; 6] = [
        &[0xb0, RESET_VALUE], // mov al, RESET_VALUE
        &[0xba, low, high],   // mov dx, RESET_PORT
        &[0xee],              // out dx, al
        &[0xfa],              // cli
        &[0xf4],              // again: hlt
        &[0xeb, 0xfd],        // jmp again
    ];
    instructions.concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::HIGH_RAM_START;

    #[test]
    fn test_the_reset_code_ends_before_high_ram() {
        assert!(RESET_VECTOR + reset_code().len() as u64 <= HIGH_RAM_START);
        assert_eq!(reset_code()[..6], [0xb0, 6, 0xba, 0xf9, 0x0c, 0xee]);
    }

    #[test]
    fn test_the_tables_end_before_the_reset_vector() {
        let ram = crate::sys::memory::anonymous(&[(GuestAddress(0), 2 << 20)]);
        install(&ram, covisor_abi::MAX_VCPUS).unwrap();
        assert!(ACPI_TABLES + acpi::tables(covisor_abi::MAX_VCPUS).len() as u64 <= RESET_VECTOR);
    }
}
