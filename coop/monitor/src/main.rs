//! The monitor's image: entry code, and the library at the addresses of the layout.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod cpu;
#[cfg(target_os = "none")]
mod entry;
#[cfg(target_os = "none")]
mod world;

#[cfg(target_os = "none")]
pub use image::*;

/// What the entry code calls.
#[cfg(target_os = "none")]
mod image {
    use core::panic::PanicInfo;
    use core::ptr::NonNull;
    use core::slice;

    use covisor_abi::KillReason;
    use covisor_monitor::area::Area;
    use covisor_monitor::area::ExitKind;
    use covisor_monitor::area::ExitRecord;
    use covisor_monitor::config::Config;
    use covisor_monitor::layout;
    use covisor_monitor::machine::DescriptorTables;
    use covisor_monitor::machine::Machine;
    use covisor_monitor::machine::Next;
    use covisor_monitor::mmu::Space;
    use covisor_monitor::shared_info::SharedInfo;
    use covisor_monitor::state::State;

    use crate::cpu::Cpu;

    /// Where [`State`] is.
    const STATE: u64 = (layout::STATE + size_of::<Config>() as u64).next_multiple_of(64);
    const _: () = assert!(STATE + size_of::<State>() as u64 <= layout::STATE + layout::STATE_PAGES * layout::PAGE);

    /// The page of `shared_info`.
    fn shared_info() -> SharedInfo {
        // SAFETY: the address is not null.
        let address = unsafe { NonNull::new_unchecked(layout::SHARED_INFO as *mut u8) };
        // SAFETY: the host mapped the page there as long as the guest lives, and it is accessed by this type only.
        unsafe { SharedInfo::at(address) }
    }

    /// The area.
    ///
    /// # Safety
    /// No other reference to it lives.
    unsafe fn area() -> &'static mut Area {
        // SAFETY: the host mapped the page there, all of whose bytes are values; by the caller.
        unsafe { &mut *(layout::AREA as *mut Area) }
    }

    /// The guest's machine.
    ///
    /// # Safety
    /// No other one lives, and the state was written before.
    unsafe fn machine() -> Machine<'static, Cpu> {
        let descriptors = |address: u64, pages: u64| {
            let length = (pages * layout::PAGE / 8) as usize;
            // SAFETY: the host mapped these pages there; by the caller this is the only reference.
            unsafe { slice::from_raw_parts_mut(address as *mut u64, length) }
        };
        // SAFETY: the host filled the configuration in and leaves it alone.
        let config = unsafe { &*(layout::STATE as *const Config) };
        Machine {
            // SAFETY: by the caller.
            area: unsafe { area() },
            config,
            // SAFETY: by the caller; the host mapped the pages and leaves them alone.
            state: unsafe { &mut *(STATE as *mut State) },
            // SAFETY: the host mapped what the configuration tells of; by the caller this is the only one.
            space: unsafe { Space::of_monitor(config) },
            tables: DescriptorTables {
                gdt: descriptors(layout::GDT, layout::GDT_PAGES),
                ldt: descriptors(layout::LDT, layout::LDT_PAGES),
            },
            shared: shared_info(),
            cpu: Cpu,
        }
    }

    /// What the entry code takes: 0 for the guest, 1 for the host.
    const fn code(next: Next) -> u32 {
        match next {
            Next::Guest => 0,
            Next::Host => 1,
        }
    }

    /// Serves a trap.
    pub extern "sysv64" fn serve_trap() -> u32 {
        // SAFETY: one trap at a time is served, with interrupts off; go_on() came before.
        code(unsafe { machine() }.trap())
    }

    /// The guest begins, or goes on after the host was there.
    pub extern "sysv64" fn go_on() -> u32 {
        // SAFETY: nothing else of the monitor runs.
        let started = core::mem::replace(unsafe { &mut area().started }, 1) != 0;
        if started {
            // SAFETY: as above; the state was written at the start.
            return code(unsafe { machine() }.resume());
        }
        // SAFETY: the pages are mapped, and nobody has a reference.
        unsafe { (STATE as *mut State).write(State::new(shared_info().vcpu_info())) };
        // SAFETY: as above.
        code(unsafe { machine() }.start())
    }

    /// The host is wanted before the guest goes on.
    pub extern "sysv64" fn attention() {
        // SAFETY: nothing else of the monitor runs.
        unsafe { area() }.exit = ExitRecord { kind: ExitKind::Attention as u64, ..ExitRecord::default() };
    }

    /// The return to the guest failed by a fault with this error code.
    pub extern "sysv64" fn return_failed(error_code: u64) -> u32 {
        // SAFETY: nothing else of the monitor runs.
        let mut machine = unsafe { machine() };
        let next = machine.return_failed(error_code);
        code(machine.finish(next))
    }

    /// The monitor met an exception of its own.
    pub extern "sysv64" fn fatal(vector: u64, rip: u64) {
        // SAFETY: whatever ran does not go on.
        unsafe { area() }.exit = ExitRecord {
            kind: ExitKind::Kill as u64,
            a: KillReason::MonitorFault as u64,
            b: rip << 8 | vector & 0xff,
            ..ExitRecord::default()
        };
    }

    /// A debug exception came before the handler of another one began.
    pub extern "sysv64" fn debug_exception_lost() {
        // SAFETY: what was interrupted cannot go on.
        unsafe { area() }.exit = ExitRecord {
            kind: ExitKind::Kill as u64,
            a: KillReason::DebugExceptionLost as u64,
            ..ExitRecord::default()
        };
    }

    /// The vector that stands for a panic: none of the CPU's.
    const PANIC: u64 = 0xff;

    #[panic_handler]
    fn panic(info: &PanicInfo<'_>) -> ! {
        fatal(PANIC, info.location().map_or(0, |location| location.line().into()));
        crate::world::leave_world()
    }
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("this program is a part of covisor's driver and does nothing by itself");
}
