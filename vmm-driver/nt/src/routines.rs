//! Functions of the kernel that are newer than NT 5.2, each with what is done where it is missing.
//!
//! | function | since | without it |
//! |---|---|---|
//! | `KeQueryActiveProcessorCountEx` | 6.1 | there are no groups: all CPUs are in the mask of `KeQueryActiveProcessors` |
//! | `KeQuerySystemTimePrecise` | 6.2 | the clock as of the last tick |
//! | `KeShouldYieldProcessor` | 6.0 | a time slice, and an event of ours that made a thread ready ([`crate::cpus`]) |
//!
//! What others take and this driver does not need: `KeGetCurrentProcessorNumberEx` (only one group is served, and in it the old
//! number is right); `KeSaveExtendedProcessorState` (an engine saves and loads the host's whole XCR0 state by itself, with
//! interrupts off in between, so no other code of the host's ever sees the guest's); `PoRegisterPowerSettingCallback` (the
//! callback object `\Callback\PowerState` is in NT 5.0 and says as much).

use core::ffi::c_void;
use core::mem::transmute;
use core::ptr::NonNull;

use crate::kapi::Kapi;

/// `KeShouldYieldProcessor`: DISPATCH_LEVEL.
type ShouldYield = unsafe extern "C" fn() -> u32;
/// `KeQuerySystemTimePrecise`: any IRQL.
type PreciseTime = unsafe extern "C" fn(*mut i64);
/// `KeQueryActiveProcessorCountEx`: any IRQL up to DISPATCH_LEVEL.
type CpuCount = unsafe extern "C" fn(u16) -> u32;

/// `ALL_PROCESSOR_GROUPS`.
const ALL_GROUPS: u16 = 0xffff;

/// The functions that this kernel has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Routines {
    should_yield: Option<ShouldYield>,
    precise_time: Option<PreciseTime>,
    cpu_count: Option<CpuCount>,
}

impl Routines {
    /// Before they are looked for.
    pub(crate) const NONE: Self = Self { should_yield: None, precise_time: None, cpu_count: None };

    /// Looks for them. At PASSIVE_LEVEL.
    pub(crate) fn find<K: Kapi>() -> Self {
        let find = |name| K::system_routine(name);
        // SAFETY: the kernel's functions of these names have these types.
        unsafe {
            Self {
                should_yield: find("KeShouldYieldProcessor")
                    .map(|routine| transmute::<NonNull<c_void>, ShouldYield>(routine)),
                precise_time: find("KeQuerySystemTimePrecise")
                    .map(|routine| transmute::<NonNull<c_void>, PreciseTime>(routine)),
                cpu_count: find("KeQueryActiveProcessorCountEx")
                    .map(|routine| transmute::<NonNull<c_void>, CpuCount>(routine)),
            }
        }
    }

    /// Whether the scheduler or a deferred call waits for this CPU; `None` where the kernel does not tell. At DISPATCH_LEVEL.
    #[inline]
    pub(crate) fn should_yield(&self) -> Option<bool> {
        // SAFETY: at DISPATCH_LEVEL, by the caller's being one who holds preemption off.
        self.should_yield.map(|should_yield| unsafe { should_yield() } != 0)
    }

    /// 100 ns since 1601 UTC.
    pub(crate) fn time<K: Kapi>(&self) -> i64 {
        let Some(precise_time) = self.precise_time else { return K::system_time() };
        let mut time = 0;
        // SAFETY: it writes the time to where the pointer says.
        unsafe { precise_time(&raw mut time) };
        time
    }

    /// CPUs that are on, of all groups.
    pub(crate) fn cpu_count<K: Kapi>(&self) -> u32 {
        // SAFETY: it only counts.
        self.cpu_count.map_or(K::active_cpus().count_ones(), |count| unsafe { count(ALL_GROUPS) })
    }
}
