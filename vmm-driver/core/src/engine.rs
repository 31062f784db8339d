//! What a switch engine is: `svm`, `vmx` and `coop` implement these traits.

use covisor_abi::EngineKind;
use covisor_abi::EngineStatus;

use crate::exit::Exit;
use crate::exit::Injection;
use crate::host::Host;
use crate::host::OutOfMemory;
use crate::host::Stay;
use crate::pvclock::Clock;
use crate::registers::Gprs;
use crate::registers::Segment;
use crate::registers::SegmentName;
use crate::registers::Table;
use crate::xstate::ExtendedState;

/// What to do after an exit was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Next {
    /// Back into the guest at once: the host did not run, nothing of it was loaded.
    Resume = 0,
    /// Load the host's state and return from [`Engine::run`].
    Leave = 1,
}

/// What a vCPU begins with that is its VM's.
#[derive(Clone, Copy, Debug)]
pub struct VcpuConfig {
    /// What is added to the host's time stamp counter for the guest's.
    pub tsc_offset: u64,
    /// The VM's clock, for engines that show it to the guest themselves.
    pub clock: Clock,
    /// [`covisor_abi::VcpuCreate::CHECKS`].
    pub checks: bool,
}

/// Who answers exits. Called in guest context (see [`crate::host`]).
pub trait ExitHandler<E: Engine> {
    /// Answers one exit.
    fn on_exit(&mut self, vcpu: &mut E::Vcpu, exit: Exit) -> Next;
}

/// A switch engine: what this CPU vendor, or the cooperative monitor, needs to run a guest.
///
/// An engine value holds the CPU's features, read once. Its associated types hold what belongs to one physical CPU, one
/// VM and one vCPU.
pub trait Engine: Sized + Send + Sync + 'static {
    /// Its name.
    const KIND: EngineKind;
    /// Guests are paravirtual: their kernel runs by the Xen PV interface, and what it has of interrupts are events, which an
    /// engine's monitor keeps. Core then has for it what [`crate::paravirtual`] says. Such a VM has one vCPU.
    const PARAVIRTUAL: bool = false;
    /// Guest RAM can come and go while vCPUs exist: [`Engine::vm_map_later`] and [`Engine::vm_unmap`] do something.
    const RAM_ON_DEMAND: bool = false;
    /// What its guests' stays are like for the host.
    const STAY: Stay = Stay { takes_interrupts: false, cuts_task_segment: false };
    /// What one physical CPU needs while a VM exists (SVM: host save area, VMX: VMXON region).
    type Cpu: Send + Sync;
    /// What one VM needs: nested page tables, permission maps.
    type Vm: Send + Sync;
    /// One vCPU's registers and controls.
    type Vcpu: Vcpu + Send;

    /// Whether the engine can run on the calling CPU. Preemption is off.
    fn status() -> EngineStatus;

    /// The engine, with the features of the calling CPU. [`Engine::status`] was usable.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    fn new<H: Host>() -> Result<Self, OutOfMemory>;

    /// Frees the engine; no VM of it exists any more.
    fn free<H: Host>(self);

    /// How extended state is switched, and what guests can have of it.
    fn extended_state(&self) -> &ExtendedState;

    /// Memory for one physical CPU. In thread context.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    fn cpu_new<H: Host>(&self) -> Result<Self::Cpu, OutOfMemory>;

    /// Gives it back.
    fn cpu_drop<H: Host>(&self, cpu: Self::Cpu);

    /// Switches the extension on, on the calling CPU, whose number is `number`.
    ///
    /// # Errors
    /// The status that stands against it, [`EngineStatus::Taken`] above all.
    ///
    /// # Safety
    /// Preemption and interrupts are off, and the extension is not on by us on this CPU.
    unsafe fn cpu_enable<H: Host>(&self, cpu: &mut Self::Cpu, number: usize) -> Result<(), EngineStatus>;

    /// Switches it off again. What this CPU keeps of vCPUs is given up before ([`Engine::give_up`]).
    ///
    /// # Safety
    /// Preemption and interrupts are off, [`Engine::cpu_enable`] succeeded on this CPU, and no vCPU is loaded on it.
    unsafe fn cpu_disable<H: Host>(&self, cpu: &mut Self::Cpu);

    /// A VM without memory.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    fn vm_new<H: Host>(&self) -> Result<Self::Vm, OutOfMemory>;

    /// Frees it; no vCPU of it exists any more.
    fn vm_drop<H: Host>(&self, vm: Self::Vm);

    /// Maps `2^order` pages of host memory at `gpa`, readable, writable and executable for the guest. No vCPU has run
    /// yet, `gpa` and `phys` are multiples of the block's size, and nothing is mapped there.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    fn vm_map<H: Host>(&self, vm: &mut Self::Vm, gpa: u64, phys: u64, order: u32) -> Result<(), OutOfMemory>;

    /// [`Engine::vm_map`] when vCPUs may run, and what is there may be mapped already, to the same. No two calls of this and of [`Engine::vm_unmap`] come at the same time for a VM.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    fn vm_map_later<H: Host>(&self, _vm: &Self::Vm, _gpa: u64, _phys: u64, _order: u32) -> Result<(), OutOfMemory> {
        Err(OutOfMemory)
    }

    /// Unmaps the aligned 2 MiB that `gpa` is in, also what is another region's there: that is mapped again when the guest touches
    /// it. No vCPU runs, and each forgets what it knows of them
    /// ([`Vcpu::forget_memory`]) before it runs again.
    fn vm_unmap(&self, _vm: &Self::Vm, _gpa: u64) {}

    /// A vCPU in its state after reset (APM vol. 2, 14.1.3).
    ///
    /// # Errors
    /// [`OutOfMemory`].
    fn vcpu_new<H: Host>(&self, vm: &Self::Vm, config: &VcpuConfig) -> Result<Self::Vcpu, OutOfMemory>;

    /// Frees it; no CPU keeps a part of it ([`Engine::home`]).
    fn vcpu_drop<H: Host>(&self, vcpu: Self::Vcpu);

    /// The CPU that keeps a part of the vCPU, which no other CPU can use before [`Engine::give_up`] (VMX: an active VMCS,
    /// SDM vol. 3, 25.1).
    #[inline]
    fn home(_vcpu: &Self::Vcpu) -> Option<usize> {
        None
    }

    /// Has the CPU write that part back. Nothing is to be done where it did so meanwhile, for [`Engine::cpu_disable`].
    ///
    /// # Safety
    /// On the CPU that was the vCPU's home, interrupts off; `cpu` is its own, and enabled; the vCPU does not run.
    unsafe fn give_up(&self, _cpu: &mut Self::Cpu, _vcpu: &Self::Vcpu) {}

    /// Whether all registers of a vCPU that does not run can be read. If not, RIP and RFLAGS can, and what [`Vcpu::inject`] and
    /// interrupts depend on; the others after [`Engine::complete`].
    #[inline]
    fn is_complete(_vcpu: &Self::Vcpu) -> bool {
        true
    }

    /// Reads the registers that cannot be read from memory.
    ///
    /// # Safety
    /// As [`Engine::run`].
    unsafe fn complete(&self, _cpu: &mut Self::Cpu, _vcpu: &mut Self::Vcpu) {}

    /// No CPU keeps a part of it any more: its home has given it up, or is off.
    #[inline]
    fn forget_home(_vcpu: &mut Self::Vcpu) {}

    /// Enters the guest, and enters it again after each exit, until `handler` says [`Next::Leave`]. Returns with the
    /// host's state whole and interrupts off; interrupts that are pending for the host wait until they are on again.
    ///
    /// # Safety
    /// Preemption and interrupts are off; `cpu` is the calling CPU's and enabled; `vcpu` is of `vm`, and no other CPU
    /// runs it.
    unsafe fn run<X: ExitHandler<Self>>(
        &self,
        cpu: &mut Self::Cpu,
        vm: &Self::Vm,
        vcpu: &mut Self::Vcpu,
        handler: &mut X,
    );

    /// Raises the interrupts again that [`Engine::run`] took off the CPU, if there are any.
    ///
    /// # Safety
    /// Interrupts are off since it returned, and this is the CPU that it was on.
    #[inline]
    unsafe fn hand_over(_vcpu: &mut Self::Vcpu) {}
}

/// A vCPU's registers. Setters take any value: what the guest may set is decided by core before (`policy`).
pub trait Vcpu {
    /// The general registers.
    fn gprs(&self) -> &Gprs;
    /// The general registers.
    fn gprs_mut(&mut self) -> &mut Gprs;

    /// Instruction pointer.
    fn rip(&self) -> u64;
    /// Sets it.
    fn set_rip(&mut self, value: u64);
    /// Flags.
    fn rflags(&self) -> u64;
    /// Sets them.
    fn set_rflags(&mut self, value: u64);

    /// A segment register.
    fn segment(&self, name: SegmentName) -> Segment;
    /// Sets it.
    fn set_segment(&mut self, name: SegmentName, segment: Segment);
    /// What SWAPGS exchanges with the base of GS. Only paravirtual guests come to core for it; others have the MSR itself.
    #[inline]
    fn kernel_gs_base(&self) -> u64 {
        0
    }
    /// Sets it; the value is canonical.
    #[inline]
    fn set_kernel_gs_base(&mut self, _value: u64) {}
    /// GDTR.
    fn gdtr(&self) -> Table;
    /// Sets it.
    fn set_gdtr(&mut self, table: Table);
    /// IDTR.
    fn idtr(&self) -> Table;
    /// Sets it.
    fn set_idtr(&mut self, table: Table);

    /// CR0 as the guest sees it.
    fn cr0(&self) -> u64;
    /// Sets it.
    fn set_cr0(&mut self, value: u64);
    /// CR2.
    fn cr2(&self) -> u64;
    /// Sets it.
    fn set_cr2(&mut self, value: u64);
    /// CR3.
    fn cr3(&self) -> u64;
    /// Sets it, and forgets the guest's translations.
    fn set_cr3(&mut self, value: u64);
    /// Forgets, at the next entry on whichever CPU, which host memory is behind guest-physical addresses.
    #[inline]
    fn forget_memory(&mut self) {}
    /// Whether the CPU has the page directory pointers of PAE paging from [`Vcpu::set_page_directory_pointers`] where core
    /// changes control registers, not from memory.
    const KEEPS_PAGE_DIRECTORY_POINTERS: bool = false;
    /// Sets them; none has a reserved bit.
    #[inline]
    fn set_page_directory_pointers(&mut self, _pointers: [u64; 4]) {}
    /// CR4 as the guest sees it.
    fn cr4(&self) -> u64;
    /// Sets it.
    fn set_cr4(&mut self, value: u64);
    /// EFER as the guest sees it, without `SVME`.
    fn efer(&self) -> u64;
    /// Sets it.
    fn set_efer(&mut self, value: u64);
    /// The guest's `IA32_PAT`.
    fn pat(&self) -> u64;
    /// Sets it; each byte is a memory type that PAT knows.
    fn set_pat(&mut self, value: u64);
    /// XCR0.
    fn xcr0(&self) -> u64;
    /// Sets it; the value is valid on this CPU.
    fn set_xcr0(&mut self, value: u64);
    /// `TSC_AUX`.
    fn tsc_aux(&self) -> u32;
    /// Sets it.
    fn set_tsc_aux(&mut self, value: u32);
    /// Task priority, 0 to 15 (CR8).
    fn task_priority(&self) -> u8;
    /// Sets it.
    fn set_task_priority(&mut self, value: u8);
    /// DR0 to DR3.
    fn debug_address(&self, number: usize) -> u64;
    /// Sets one.
    fn set_debug_address(&mut self, number: usize, value: u64);
    /// DR6.
    fn dr6(&self) -> u64;
    /// Sets it.
    fn set_dr6(&mut self, value: u64);
    /// DR7.
    fn dr7(&self) -> u64;
    /// Sets it.
    fn set_dr7(&mut self, value: u64);

    /// What is added to the host's time stamp counter for the guest's.
    fn tsc_offset(&self) -> u64;
    /// Sets it.
    fn set_tsc_offset(&mut self, value: u64);

    /// Shows a paravirtual guest the wall clock at its time 0, in nanoseconds since 1970, for when it looks again.
    #[inline]
    fn show_wall_clock(&mut self, _nanoseconds: u64) {}

    /// Privilege level, 0 to 3.
    fn cpl(&self) -> u8;
    /// Whether interrupts are held for one instruction after STI or MOV SS.
    fn interrupt_shadow(&self) -> bool;
    /// Whether this CPU forgets the shadow on the way into the guest, as QEMU's does: an interrupt must then not be offered
    /// before the instruction behind STI is done, or a HLT there sleeps through it.
    fn forgets_interrupt_shadow(&self) -> bool {
        false
    }
    /// Ends that, or starts it.
    fn set_interrupt_shadow(&mut self, value: bool);
    /// Whether the guest is in an NMI's handler, so that the next NMI waits for its IRET.
    fn nmi_blocked(&self) -> bool;
    /// Address of the instruction after the one that left the guest, where the CPU tells.
    fn next_rip(&self) -> Option<u64>;

    /// Hands something to the guest at the next entry. Nothing else waits ([`Vcpu::injection_waits`]). Where guests are
    /// paravirtual, interrupts come whatever waits, any number of them and at any time, and exceptions in between.
    fn inject(&mut self, injection: Injection);
    /// Whether something is to be handed to the guest at the next entry, be it that the last delivery was interrupted. Where
    /// guests are paravirtual, only exceptions count.
    fn injection_waits(&self) -> bool;
    /// Makes the guest exit with [`Exit::Deadline`] when the host's time stamp counter comes to `deadline`, or no longer. False
    /// where the CPU has no timer of that kind: then the host's has to wake it.
    #[inline]
    fn set_deadline(&mut self, _deadline: Option<u64>) -> bool {
        false
    }
    /// Asks for [`Exit::InterruptWindow`] as soon as the guest can take an NMI, at the latest behind the IRET of an NMI's handler,
    /// or no longer asks. Without it, the NMI waits for the next exit.
    #[inline]
    fn want_nmi_window(&mut self, _on: bool) {}
    /// Asks for [`Exit::InterruptWindow`] as soon as the guest can take an interrupt of this priority class (1 to 15: its
    /// flags are open and its task priority is lower), or no longer asks.
    fn want_interrupt_window(&mut self, class: Option<u8>);
}
