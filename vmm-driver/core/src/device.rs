//! The device: what a host port makes of open, ioctl, mmap and close.
//!
//! Who calls is hostile: every field is checked here, once for all hosts, before anything acts on it.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering;
use core::sync::atomic::fence;

use covisor_abi::Call;
use covisor_abi::DoorbellChange;
use covisor_abi::EngineKind;
use covisor_abi::EngineStatus;
use covisor_abi::Handshake;
use covisor_abi::IrqLine;
use covisor_abi::Kick;
use covisor_abi::MAGIC;
use covisor_abi::MAX_VCPUS;
use covisor_abi::MemoryAdd;
use covisor_abi::MemoryDiscard;
use covisor_abi::Msi;
use covisor_abi::Run;
use covisor_abi::Stats;
use covisor_abi::VERSION;
use covisor_abi::VcpuCreate;
use covisor_abi::VcpuState;
use covisor_abi::VmCreate;
use zerocopy::FromBytes;
use zerocopy::Immutable;
use zerocopy::IntoBytes;
use zerocopy::KnownLayout;

use crate::engine::Engine;
use crate::engine_slot::EngineSlot;
use crate::host::Host;
use crate::host::Interrupted;
use crate::host::OutOfMemory;
use crate::memory::RegionError;
use crate::vm::Vm;

/// Why a call failed. Host ports map it to their error numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// A field has a value that it cannot have, or the call is not for this state of the handle.
    #[error("invalid argument")]
    Invalid,
    /// No memory.
    #[error("out of memory")]
    NoMemory,
    /// Another thread does the same, or it is too late.
    #[error("busy")]
    Busy,
    /// A signal, a cancel or the end of the process.
    #[error("interrupted")]
    Interrupted,
    /// The engine cannot run here.
    #[error("the engine cannot run here")]
    NoEngine,
    /// Loader and driver are of different versions, or no handshake was made.
    #[error("different versions")]
    Version,
    /// There is no such VM, vCPU, event or doorbell.
    #[error("not found")]
    NotFound,
    /// It is there already.
    #[error("exists")]
    Exists,
}

impl From<OutOfMemory> for CallError {
    fn from(_: OutOfMemory) -> Self {
        Self::NoMemory
    }
}

impl From<Interrupted> for CallError {
    fn from(_: Interrupted) -> Self {
        Self::Interrupted
    }
}

impl From<RegionError> for CallError {
    fn from(error: RegionError) -> Self {
        match error {
            RegionError::Malformed => Self::Invalid,
            RegionError::Overlap => Self::Exists,
            RegionError::TooMany => Self::Busy,
            RegionError::OutOfMemory(_) => Self::NoMemory,
        }
    }
}

/// Room on the heap for a value.
#[derive(Debug)]
pub(crate) struct Room<T>(Vec<T>);

impl<T> Room<T> {
    /// Gets it without ending the driver where there is no memory.
    pub(crate) fn new() -> Result<Self, OutOfMemory> {
        let mut room = Vec::new();
        room.try_reserve_exact(1).map_err(|_| OutOfMemory)?;
        Ok(Self(room))
    }

    /// Makes the value and puts it there. Not inlined, so that a large value is on the kernel's stack only while this runs.
    #[inline(never)]
    pub(crate) fn fill(self, make: impl FnOnce() -> T) -> Box<T> {
        let Self(mut room) = self;
        room.push(make());
        let slice: Box<[T]> = room.into_boxed_slice();
        // SAFETY: a boxed slice of one element has the layout of a box of the element, and the length was reserved exactly, so
        // into_boxed_slice() did not reallocate.
        unsafe { Box::from_raw(Box::into_raw(slice).cast::<T>()) }
    }
}

/// Puts a value on the heap without ending the driver where there is no memory.
///
/// # Errors
/// [`OutOfMemory`].
pub fn try_box<T>(value: T) -> Result<Box<T>, OutOfMemory> {
    Ok(Room::new()?.fill(|| value))
}

/// An engine as the device sees it, whichever it is.
pub trait EngineEntry<H: Host>: Send + Sync {
    /// Its name.
    fn kind(&self) -> EngineKind;
    /// Whether it can run here now.
    fn status(&self) -> EngineStatus;
    /// A VM that it runs.
    ///
    /// # Errors
    /// [`CallError::NoEngine`], [`CallError::NoMemory`].
    fn vm_new(&'static self, vcpus: u32) -> Result<Box<dyn VmCalls>, CallError>;
    /// Switches the extension off on all CPUs.
    fn power_down(&self);
    /// Switches the extension off on this CPU, with interrupts off.
    fn power_down_here(&self);
    /// Frees it; no VM exists.
    fn free(self: Box<Self>);
}

/// What can be asked of a VM, whichever engine runs it.
pub trait VmCalls: Send + Sync {
    /// [`Call::MemoryAdd`].
    fn memory_add(&self, request: &mut MemoryAdd) -> Result<(), CallError>;
    /// [`Call::VcpuCreate`].
    fn vcpu_create(&self, request: &VcpuCreate) -> Result<(), CallError>;
    /// [`Call::VcpuSet`].
    fn vcpu_set(&self, state: &VcpuState) -> Result<(), CallError>;
    /// [`Call::VcpuGet`].
    fn vcpu_get(&self, state: &mut VcpuState) -> Result<(), CallError>;
    /// [`Call::Run`].
    fn run(&self, run: &mut Run) -> Result<(), CallError>;
    /// [`Call::IrqLine`].
    fn irq_line(&self, request: &IrqLine) -> Result<(), CallError>;
    /// [`Call::Msi`].
    fn msi(&self, request: &Msi) -> Result<(), CallError>;
    /// [`Call::DoorbellAdd`].
    fn doorbell_add(&self, request: &DoorbellChange) -> Result<(), CallError>;
    /// [`Call::DoorbellRemove`].
    fn doorbell_remove(&self, request: &DoorbellChange) -> Result<(), CallError>;
    /// [`Call::Kick`].
    fn kick(&self, request: &Kick) -> Result<(), CallError>;
    /// Ends every `RUN`, and lets none begin: who could use its answer is gone.
    fn stop(&self);
    /// What [`Call::Kick`] does, from any context but guest context and at any time: nobody waits, and it is never lost.
    fn interrupt(&self, vcpu: u32);
    /// [`Call::Stats`].
    fn stats(&self, request: &mut Stats) -> Result<(), CallError>;
    /// [`Call::MemoryDiscard`].
    fn memory_discard(&self, request: &mut MemoryDiscard) -> Result<(), CallError>;
    /// Calls `hold` with the host-physical address of the guest's RAM page at `gpa`, which gets its memory now where it has none.
    /// While `hold` runs the page stays. False where there is no RAM, or no memory for it.
    fn with_ram_page(&self, gpa: u64, hold: &mut dyn FnMut(u64)) -> bool;
}

/// An engine that this CPU has.
struct Present<H: Host, E: Engine> {
    slot: EngineSlot<E>,
    host: core::marker::PhantomData<H>,
}

/// An engine that this CPU does not have.
struct Absent(EngineKind, EngineStatus);

impl<H: Host, E: Engine> EngineEntry<H> for Present<H, E> {
    fn kind(&self) -> EngineKind {
        E::KIND
    }

    fn status(&self) -> EngineStatus {
        self.slot.status::<H>()
    }

    fn vm_new(&'static self, vcpus: u32) -> Result<Box<dyn VmCalls>, CallError> {
        if self.status() != EngineStatus::Usable {
            return Err(CallError::NoEngine);
        }
        let vm: Box<dyn VmCalls> = Vm::<H, E>::new(&self.slot, vcpus)?;
        Ok(vm)
    }

    fn power_down(&self) {
        self.slot.power_down::<H>();
    }

    fn power_down_here(&self) {
        let here = H::preempt_off();
        self.slot.disable_here::<H>(here);
        H::preempt_on();
    }

    fn free(self: Box<Self>) {
        self.slot.free::<H>();
    }
}

impl<H: Host> EngineEntry<H> for Absent {
    fn kind(&self) -> EngineKind {
        self.0
    }

    fn status(&self) -> EngineStatus {
        self.1
    }

    fn vm_new(&'static self, _vcpus: u32) -> Result<Box<dyn VmCalls>, CallError> {
        Err(CallError::NoEngine)
    }

    fn power_down(&self) {}

    fn power_down_here(&self) {}

    fn free(self: Box<Self>) {}
}

/// An engine for [`Driver::new`]. Where the CPU lacks it, it only says so.
///
/// # Errors
/// [`OutOfMemory`].
pub fn entry<H: Host, E: Engine>() -> Result<Box<dyn EngineEntry<H>>, OutOfMemory> {
    H::preempt_off();
    let status = E::status();
    H::preempt_on();
    match status {
        EngineStatus::Usable | EngineStatus::DisabledByFirmware | EngineStatus::Taken => {
            Ok(try_box(Present::<H, E> { slot: EngineSlot::new::<H>()?, host: core::marker::PhantomData })?)
        }
        EngineStatus::NotBuilt
        | EngineStatus::CpuLacks
        | EngineStatus::NoNestedPaging
        | EngineStatus::NoUnrestrictedGuest
        | EngineStatus::HiddenByHyperV
        | EngineStatus::HiddenByHypervisor
        | EngineStatus::LacksControls
        | EngineStatus::ShadowStackOn
        | EngineStatus::FredOn => Ok(try_box(Absent(E::KIND, status))?),
    }
}

/// The loaded driver.
pub struct Driver<H: Host> {
    engines: Vec<Box<dyn EngineEntry<H>>>,
}

impl<H: Host> core::fmt::Debug for Driver<H> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list().entries(self.engines.iter().map(|engine| (engine.kind(), engine.status()))).finish()
    }
}

impl<H: Host> Driver<H> {
    /// The driver with these engines, the best one first.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(engines: Vec<Box<dyn EngineEntry<H>>>) -> Result<Self, OutOfMemory> {
        crate::emulate::warm_up();
        Ok(Self { engines })
    }

    /// Switches the extensions off on all CPUs: the machine sleeps or goes down. VMs go on when they run again.
    pub fn power_down(&self) {
        for engine in &self.engines {
            engine.power_down();
        }
    }

    /// [`Driver::power_down`] for the calling CPU only: it goes down, or comes up and has forgotten what it was told.
    /// Interrupts are off.
    pub fn power_down_here(&self) {
        for engine in &self.engines {
            engine.power_down_here();
        }
    }

    fn status(&self, kind: EngineKind) -> EngineStatus {
        let mut statuses = self.engines.iter().filter(|engine| engine.kind() == kind).map(|engine| engine.status());
        statuses.next().unwrap_or(EngineStatus::NotBuilt)
    }

    /// The engine for a request.
    fn choose(&'static self, kind: EngineKind) -> Option<&'static dyn EngineEntry<H>> {
        let mut engines = self.engines.iter().map(|engine| &**engine);
        engines.find(|engine| {
            (kind == EngineKind::Auto || engine.kind() == kind) && engine.status() == EngineStatus::Usable
        })
    }

    fn handshake(&self, handshake: &mut Handshake) -> Result<bool, CallError> {
        if handshake.magic != MAGIC {
            return Err(CallError::Invalid);
        }
        let same = handshake.version == VERSION;
        handshake.version = VERSION;
        for kind in [EngineKind::Svm, EngineKind::Vmx, EngineKind::Coop] {
            handshake.engines[kind as usize] = self.status(kind) as u32;
        }
        let usable = |status: &&u32| **status == EngineStatus::Usable as u32;
        let best = handshake.engines[1..].iter().find(usable).copied();
        handshake.engines[0] = best.unwrap_or(EngineStatus::CpuLacks as u32);
        handshake.tsc_khz = H::machine().tsc_khz;
        handshake.max_vcpus = MAX_VCPUS;
        handshake.memory_available = H::memory_available();
        Ok(same)
    }
}

impl<H: Host> Drop for Driver<H> {
    fn drop(&mut self) {
        for engine in self.engines.drain(..) {
            engine.free();
        }
    }
}

/// An open handle: a VM, once it is created.
pub struct Handle<H: Host> {
    driver: &'static Driver<H>,
    greeted: AtomicBool,
    creating: AtomicBool,
    stopped: AtomicBool,
    vm: spin::Once<Box<dyn VmCalls>>,
}

impl<H: Host> core::fmt::Debug for Handle<H> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Handle")
            .field("greeted", &self.greeted)
            .field("creating", &self.creating)
            .finish_non_exhaustive()
    }
}

/// The structure in a call's buffer.
fn structure<T: FromBytes + IntoBytes + Immutable + KnownLayout>(buffer: &[u8]) -> Result<T, CallError> {
    T::read_from_bytes(buffer).map_err(|_| CallError::Invalid)
}

/// Runs `call` on the structure in the buffer, and puts it back where that succeeded.
fn exchange<T: FromBytes + IntoBytes + Immutable + KnownLayout>(
    buffer: &mut [u8],
    call: impl FnOnce(&mut T) -> Result<(), CallError>,
) -> Result<(), CallError> {
    let mut value = structure::<T>(buffer)?;
    call(&mut value)?;
    value.write_to(buffer).map_err(|_| CallError::Invalid)
}

impl<H: Host> Handle<H> {
    /// A handle of a process that opened the device.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(driver: &'static Driver<H>) -> Result<Box<Self>, OutOfMemory> {
        let [greeted, creating, stopped] = [const { AtomicBool::new(false) }; 3];
        try_box(Self { driver, greeted, creating, stopped, vm: spin::Once::new() })
    }

    /// Calls `hold` with the host-physical address of the guest's RAM page at `gpa`, for mapping it into the loader: `hold` takes
    /// a reference to the page. False where there is no RAM, or no memory for it. In thread context.
    pub fn with_ram_page(&self, gpa: u64, mut hold: impl FnMut(u64)) -> bool {
        self.vm.get().is_some_and(|vm| vm.with_ram_page(gpa, &mut hold))
    }

    /// The program is about to lose the handle: every `RUN` returns soon, and none begins. For hosts where the end of a program
    /// does not interrupt what it waits for.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.stop_vm();
    }

    /// Stops the VM, if both are there: the wish and the VM. Called by who made one of them, so the later one sees the other.
    fn stop_vm(&self) {
        fence(Ordering::SeqCst);
        if self.stopped.load(Ordering::SeqCst)
            && let Some(vm) = self.vm.get()
        {
            vm.stop();
        }
    }

    /// Has the vCPU's `RUN` return: this one, or else the next. From any context but guest context.
    pub fn interrupt(&self, vcpu: u32) {
        if let Some(vm) = self.vm.get() {
            vm.interrupt(vcpu);
        }
    }

    fn vm(&self) -> Result<&dyn VmCalls, CallError> {
        self.vm.get().map(|vm| &**vm).ok_or(CallError::NotFound)
    }

    /// Carries out a call; `buffer` holds its structure, in and out, and is as long as it ([`Call::size`]). On an error its
    /// contents mean nothing.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn call(&self, call: Call, buffer: &mut [u8]) -> Result<(), CallError> {
        if call == Call::Run {
            // The hot one. A VM exists only after a handshake.
            let vm = self.vm()?;
            return exchange(buffer, |run| vm.run(run));
        }
        if call == Call::Handshake {
            return exchange(buffer, |handshake| {
                let same = self.driver.handshake(handshake)?;
                self.greeted.store(same, Ordering::SeqCst);
                Ok(())
            });
        }
        if !self.greeted.load(Ordering::SeqCst) {
            return Err(CallError::Version);
        }
        match call {
            Call::Handshake | Call::Run => Err(CallError::Invalid),
            Call::VmCreate => exchange(buffer, |request| self.vm_create(request)),
            Call::MemoryAdd => exchange(buffer, |request| self.vm()?.memory_add(request)),
            Call::VcpuCreate => self.vm()?.vcpu_create(&structure(buffer)?),
            Call::VcpuSet => self.vm()?.vcpu_set(&structure(buffer)?),
            Call::VcpuGet => exchange(buffer, |state| self.vm()?.vcpu_get(state)),
            Call::IrqLine => self.vm()?.irq_line(&structure(buffer)?),
            Call::Msi => self.vm()?.msi(&structure(buffer)?),
            Call::DoorbellAdd => self.vm()?.doorbell_add(&structure(buffer)?),
            Call::DoorbellRemove => self.vm()?.doorbell_remove(&structure(buffer)?),
            Call::Kick => self.vm()?.kick(&structure(buffer)?),
            Call::Stats => exchange(buffer, |stats| self.vm()?.stats(stats)),
            Call::MemoryDiscard => exchange(buffer, |request| self.vm()?.memory_discard(request)),
        }
    }

    fn vm_create(&self, request: &mut VmCreate) -> Result<(), CallError> {
        let kind = EngineKind::from_u32(request.engine).ok_or(CallError::Invalid)?;
        if request.vcpus == 0 || request.vcpus > MAX_VCPUS {
            return Err(CallError::Invalid);
        }
        let engine = self.driver.choose(kind).ok_or(CallError::NoEngine)?;
        if self.creating.swap(true, Ordering::SeqCst) {
            return Err(CallError::Exists);
        }
        match engine.vm_new(request.vcpus) {
            Ok(vm) => {
                request.engine = engine.kind() as u32;
                self.vm.call_once(|| vm);
                self.stop_vm();
                Ok(())
            }
            Err(error) => {
                self.creating.store(false, Ordering::SeqCst);
                Err(error)
            }
        }
    }
}
