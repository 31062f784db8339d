//! A panic is a bug in the driver. It ends the task that ran into it, as any bug in the kernel does.

use core::arch::asm;
use core::panic::PanicInfo;

use crate::ffi;
use crate::text::Text;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let text = match info.location() {
        Some(location) => Text::new(format_args!("bug at {}:{}: {}", location.file(), location.line(), info.message())),
        None => Text::new(format_args!("bug: {}", info.message())),
    };
    let bytes = text.as_bytes();
    // SAFETY: the bytes are there, and the shim only reads them. It does not return, and says so to the C compiler; the
    // instruction after the call says it to objtool, which would else take the next function for a part of this one.
    unsafe {
        ffi::covisor_host_bug(bytes.as_ptr(), bytes.len());
        asm!("ud2", options(noreturn, nomem, nostack));
    }
}
