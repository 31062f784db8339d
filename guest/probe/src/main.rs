//! The probe guest's image. On bare metal it is entered by `boot`; as an ordinary program it only says what it is.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod bare_metal {
    use covisor_probe::machine;
    use covisor_probe::println;

    /// A panic is an error of the probe itself: say where, and end the machine.
    #[panic_handler]
    fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
        println!("probe: panic: {info}");
        machine::power_off()
    }

    /// Keeps the entry point of the library in the image.
    #[used]
    static ENTRY: unsafe extern "C" fn() -> ! = covisor_probe::boot::pvh_entry;
}

#[cfg(not(target_os = "none"))]
fn main() -> std::process::ExitCode {
    eprintln!(
        "covisor-probe is a kernel, not a program: build it by `cargo xtask build`, run it by `covisor run --kernel`"
    );
    std::process::ExitCode::FAILURE
}
