//! Extended state (x87, SSE, AVX and what follows): switched whole between host and guest, around every stay of the host.
//!
//! Both sides are saved and restored under the host's XCR0, which contains the guest's, so a component that the guest has
//! switched off in its XCR0 keeps its value (Intel SDM vol. 1, 13.8 and 13.10).

use core::arch::asm;

use crate::host::Block;
use crate::host::Host;
use crate::host::OutOfMemory;
use crate::instructions::rdmsr;
use crate::instructions::read_cr0;
use crate::instructions::read_cr4;
use crate::instructions::wrmsr;
use crate::msr::index;
use crate::registers::Cr0;

/// How this CPU saves extended state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    /// FXSAVE: x87 and SSE are all there is.
    Fxsave,
    /// XSAVE.
    Xsave,
    /// XSAVEOPT: leaves out what did not change.
    Xsaveopt,
}

/// The CPU's way with extended state, read once.
#[derive(Clone, Copy, Debug)]
pub struct ExtendedState {
    method: Method,
    /// The host's XCR0: what is switched, and the most that a guest can have. 3 (x87, SSE) with FXSAVE.
    host_xcr0: u64,
    /// Bytes of an area.
    size: usize,
}

/// CR4.OSXSAVE.
const CR4_OSXSAVE: u64 = 1 << 18;
/// EFER.FFXSR (AMD APM vol. 2, 3.1.7).
const EFER_FFXSR: u64 = 1 << 14;
/// Offset of MXCSR in an area (Intel SDM vol. 1, 10.5.1).
const MXCSR_OFFSET: usize = 24;
/// MXCSR after reset: all exceptions masked.
const MXCSR_RESET: u32 = 0x1f80;
/// FCW after FNINIT.
const FCW_INIT: u16 = 0x037f;
/// Bytes of an FXSAVE area.
const FXSAVE_SIZE: usize = 512;

/// One area, in pages of its own.
#[derive(Debug)]
pub struct Area(Block);

impl Area {
    /// Frees it.
    pub fn free<H: Host>(self) {
        // SAFETY: the block came from alloc_block, and this is the only owner.
        unsafe { H::free_block(self.0) };
    }
}

impl ExtendedState {
    /// Reads the calling CPU's features.
    ///
    /// # Safety
    /// In ring 0.
    #[must_use]
    pub unsafe fn new() -> Self {
        // SAFETY: ring 0.
        if unsafe { read_cr4() } & CR4_OSXSAVE == 0 {
            return Self { method: Method::Fxsave, host_xcr0: 3, size: FXSAVE_SIZE };
        }
        // SAFETY: OSXSAVE is set, so XGETBV works.
        let host_xcr0 = unsafe { read_xcr0() };
        let size = core::arch::x86_64::__cpuid_count(0xd, 0).ebx as usize;
        let optimized = core::arch::x86_64::__cpuid_count(0xd, 1).eax & 1 != 0;
        Self { method: if optimized { Method::Xsaveopt } else { Method::Xsave }, host_xcr0, size }
    }

    /// Some CPU's, for an engine that never switches it.
    #[cfg(any(test, feature = "test-vcpu"))]
    #[must_use]
    pub const fn for_tests() -> Self {
        Self { method: Method::Xsave, host_xcr0: 7, size: 832 }
    }

    /// The most that a guest's XCR0 can be; 0 where guests cannot have XSAVE.
    #[must_use]
    pub fn guest_xcr0(&self) -> u64 {
        if self.has_xsave() { self.host_xcr0 } else { 0 }
    }

    /// Whether guests can have XSAVE at all.
    #[must_use]
    fn has_xsave(&self) -> bool {
        self.method != Method::Fxsave
    }

    /// An area in its initial state.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn area_new<H: Host>(&self) -> Result<Area, OutOfMemory> {
        let order = self.size.div_ceil(4096).next_power_of_two().trailing_zeros();
        let block = H::alloc_block(order).ok_or(OutOfMemory)?;
        // SAFETY: the block has at least FXSAVE_SIZE bytes, is page-aligned, and is ours alone.
        unsafe {
            block.virt.cast::<u16>().write(FCW_INIT);
            block.virt.add(MXCSR_OFFSET).cast::<u32>().write(MXCSR_RESET);
        }
        Ok(Area(block))
    }

    /// Saves the host's state into `host` and loads the guest's.
    ///
    /// # Safety
    /// In ring 0, interrupts off; `guest_xcr0` is valid here and within the host's; both areas are of this
    /// CPU model. Until [`ExtendedState::leave`] nobody uses extended state.
    #[inline]
    pub unsafe fn enter(&self, host: &mut Area, guest: &Area, guest_xcr0: u64) {
        // SAFETY: by the caller.
        unsafe {
            let ts = clear_ts();
            self.whole(|| {
                self.save(host);
                self.restore(guest);
            });
            if guest_xcr0 != self.host_xcr0 && self.has_xsave() {
                write_xcr0(guest_xcr0);
            }
            if ts {
                set_ts();
            }
        }
    }

    /// Saves the guest's state into `guest`, its XCR0 into `guest_xcr0`, and loads the host's.
    ///
    /// XCR0 is read and not remembered: QEMU's CPU (7.2) lets the guest's XSETBV through although it is intercepted.
    ///
    /// # Safety
    /// As [`ExtendedState::enter`], which came before.
    #[inline]
    pub unsafe fn leave(&self, host: &Area, guest: &mut Area, guest_xcr0: &mut u64) {
        // SAFETY: by the caller.
        unsafe {
            let ts = clear_ts();
            if self.has_xsave() {
                *guest_xcr0 = read_xcr0();
                if *guest_xcr0 != self.host_xcr0 {
                    write_xcr0(self.host_xcr0);
                }
            }
            self.whole(|| {
                self.save(guest);
                self.restore(host);
            });
            if ts {
                set_ts();
            }
        }
    }

    /// Calls it with FXSAVE and FXRSTOR doing all that they can: an operating system can have told AMD's CPUs that those leave out
    /// the SSE registers in ring 0.
    ///
    /// # Safety
    /// In ring 0, interrupts off.
    #[inline]
    unsafe fn whole(&self, switch: impl FnOnce()) {
        if self.has_xsave() {
            return switch();
        }
        // SAFETY: by the caller; CPUs with long mode have EFER, which is as before at the end.
        unsafe {
            let efer = rdmsr(index::EFER);
            if efer & EFER_FFXSR == 0 {
                return switch();
            }
            wrmsr(index::EFER, efer & !EFER_FFXSR);
            switch();
            wrmsr(index::EFER, efer);
        }
    }

    #[inline]
    unsafe fn save(&self, area: &mut Area) {
        let pointer = area.0.virt.as_ptr();
        let (low, high) = halves(self.host_xcr0);
        // SAFETY: the area has the CPU's size, is aligned, and CR0.TS is clear.
        unsafe {
            match self.method {
                Method::Fxsave => {
                    asm!("fxsave64 [{}]", in(reg) pointer, options(nostack, preserves_flags))
                }
                Method::Xsave => {
                    asm!("xsave64 [{}]", in(reg) pointer, in("eax") low, in("edx") high, options(nostack, preserves_flags));
                }
                Method::Xsaveopt => {
                    asm!("xsaveopt64 [{}]", in(reg) pointer, in("eax") low, in("edx") high, options(nostack, preserves_flags));
                }
            }
        }
    }

    #[inline]
    unsafe fn restore(&self, area: &Area) {
        let pointer = area.0.virt.as_ptr();
        let (low, high) = halves(self.host_xcr0);
        // SAFETY: the area was made by area_new() or save(), so its header is valid, and CR0.TS is clear.
        unsafe {
            match self.method {
                Method::Fxsave => {
                    asm!("fxrstor64 [{}]", in(reg) pointer, options(nostack, preserves_flags))
                }
                Method::Xsave | Method::Xsaveopt => {
                    asm!("xrstor64 [{}]", in(reg) pointer, in("eax") low, in("edx") high, options(nostack, preserves_flags));
                }
            }
        }
    }
}

/// EAX and EDX of a 64-bit value.
#[expect(clippy::cast_possible_truncation, reason = "the halves are what is wanted")]
const fn halves(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}

/// Reads XCR0.
///
/// # Safety
/// CR4.OSXSAVE is set.
pub unsafe fn read_xcr0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: by the caller.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Writes XCR0.
///
/// # Safety
/// Ring 0, CR4.OSXSAVE is set, `value` is valid on this CPU.
pub unsafe fn write_xcr0(value: u64) {
    let (low, high) = halves(value);
    // SAFETY: by the caller.
    unsafe { asm!("xsetbv", in("ecx") 0, in("eax") low, in("edx") high, options(nomem, nostack, preserves_flags)) };
}

/// Clears CR0.TS; says whether it was set. Hosts that load extended state lazily have it set now and then.
///
/// # Safety
/// Ring 0.
unsafe fn clear_ts() -> bool {
    // SAFETY: by the caller; CLTS only lets extended state be used.
    unsafe {
        let set = read_cr0() & Cr0::CR0_TASK_SWITCHED.bits() as u64 != 0;
        if set {
            asm!("clts", options(nomem, nostack, preserves_flags));
        }
        set
    }
}

/// # Safety
/// Ring 0, and TS was set before [`clear_ts`].
unsafe fn set_ts() {
    // SAFETY: by the caller.
    unsafe {
        asm!("mov {cr0}, cr0", "or {cr0}, 8", "mov cr0, {cr0}", cr0 = out(reg) _, options(nomem, nostack));
    }
}
