//! One vCPU: its VMCS, and the registers that are not in it. How core reads and sets them is in `registers`.

mod registers;

use covisor_core::debug_registers::DR7_ENABLES;
use covisor_core::delivery::Deliveries;
use covisor_core::delivery::Event;
use covisor_core::engine::Vcpu;
use covisor_core::guest_registers::GuestRegisters;
use covisor_core::host::Block;
use covisor_core::host::Host;
use covisor_core::host::OutOfMemory;
use covisor_core::registers::Cr0;
use covisor_core::registers::Gprs;
use covisor_core::registers::RFlags;
use covisor_core::reset;
use covisor_core::tlb_tag::Assigned;
use covisor_core::xstate::Area;
use covisor_core::xstate::ExtendedState;

use crate::capability::CR4_VMXE;
use crate::capability::Capabilities;
use crate::controls::Processor;
use crate::exit_reason;
use crate::exits::HostEvent;
use crate::registers::Register;
use crate::registers::Registers;
use crate::syscall::SyscallMsrs;
use crate::vmcs::Region;

/// Interruptibility: blocking by STI (SDM vol. 3, table 25-3).
const INTERRUPTIBILITY_STI: u64 = 1 << 0;
/// Interruptibility: blocking by MOV SS.
const INTERRUPTIBILITY_MOV_SS: u64 = 1 << 1;
/// Interruptibility: blocking by NMI; the guest's own, with virtual NMIs.
pub(crate) const INTERRUPTIBILITY_NMI: u64 = 1 << 3;
/// Pending debug exceptions: a single step (25.4.2).
const PENDING_SINGLE_STEP: u64 = 1 << 14;
/// DR7.GD.
pub(crate) const DR7_GENERAL_DETECT: u64 = 1 << 13;
/// B0 to B3, BD and BS, which an exit qualification of #DB has as DR6 has them (table 28-1).
pub(crate) const DR6_TRAPS: u64 = 0x600f;
/// CR0's bits that the guest changes without an exit: nothing of the policy depends on them, and Linux changes them often.
const CR0_OF_GUEST: u64 = (Cr0::CR0_TASK_SWITCHED.bits() | Cr0::CR0_MONITOR_COPROCESSOR.bits()) as u64;
/// CR0's bits that an entry does not load, so that they are in the shadow alone: NW and CD (27.3.2.1).
const CR0_UNLOADED: u64 = (Cr0::CR0_NOT_WRITE_THROUGH.bits() | Cr0::CR0_CACHE_DISABLE.bits()) as u64;
/// Offset of the task priority in a virtual-APIC page (30.1.1).
const VIRTUAL_TPR: usize = 0x80;

/// Counts of the time stamp counter that a guest has for a turn while its interrupts are off. Interrupts of the host end the turn
/// whatever the guest's flags are (25.6.1); Bochs 3.0 keeps them from a guest that is entered with IF clear, and a CPU with a
/// flaw like that shall not be lost to the host.
const TURN_WITH_INTERRUPTS_OFF: u64 = 1 << 18;
/// The largest value of the preemption timer.
const FAR: u64 = u32::MAX as u64;

/// The bits of CR0 that are the host's.
pub(crate) const CR0_MASK: u64 = !CR0_OF_GUEST;
/// All of CR4 is the host's: the guest may set what its CPUID offers.
pub(crate) const CR4_MASK: u64 = !0;

/// One vCPU.
#[derive(Debug)]
#[repr(C)]
pub struct VmxVcpu {
    /// First, for the switch addresses them from here. RSP is the VMCS's while the guest runs.
    gprs: Gprs,
    /// The VMCS was launched since it was cleared: the switch resumes it. It reads it behind the registers.
    pub(crate) launched: u8,
    /// A selector for VERW before each entry; 0 where the CPU needs none. The switch reads it, too.
    pub(crate) clear_buffers: u16,
    pub(crate) region: Region,
    /// The page with the virtual task priority.
    virtual_apic: Block,
    pub(crate) registers: Registers,
    /// The controls were written into the VMCS.
    pub(crate) initialized: bool,
    /// Number of the CPU that the VMCS is active on.
    pub(crate) home: Option<usize>,
    pub(crate) extended: Area,
    pub(crate) own: GuestRegisters,
    pub(crate) syscall: SyscallMsrs,
    dr6: u64,
    /// CR2, which neither entry nor exit switches.
    pub(crate) cr2: u64,
    /// RSP as the VMCS has it.
    pub(crate) entered_rsp: u64,
    pub(crate) assigned: Assigned,
    pub(crate) deliveries: Deliveries,
    /// What to deliver at the next entry.
    pub(crate) injection: Event,
    /// Why the guest exited last.
    pub(crate) exit_reason: u64,
    pub(crate) host_event: HostEvent,
    /// Forget the guest's translations at the next entry.
    pub(crate) flush: bool,
    /// The EPT pointer.
    pub(crate) ept_pointer: u64,
    /// Values of the host that the VMCS has, which change now and then.
    pub(crate) host: HostFields,
    pub(crate) cr0_ones: u64,
    cr0_possible: u64,
    pub(crate) cr4_ones: u64,
    pub(crate) cr4_possible: u64,
    /// The priority class whose interrupt window core asked for.
    window: Option<u8>,
    /// Core asked for an NMI window.
    nmi_window: bool,
    /// When the guest is to exit, by the host's time stamp counter.
    deadline: Option<u64>,
    /// When the turn ends of a guest with its interrupts off, by the same counter.
    turn_end: u64,
    /// The VMCS has less than the largest value for the preemption timer.
    timer_armed: bool,
    /// The preemption timer counts once in 2^this counts of the time stamp counter.
    timer_shift: Option<u32>,
}

/// Host-state fields that are written when they change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HostFields {
    pub(crate) cr0: u64,
    pub(crate) cr3: u64,
    pub(crate) cr4: u64,
    pub(crate) fs_base: u64,
}

impl VmxVcpu {
    /// Where the switch finds whether to resume.
    pub(crate) const LAUNCHED_OFFSET: usize = core::mem::offset_of!(Self, launched);
    /// Where it finds the selector for VERW.
    pub(crate) const CLEAR_BUFFERS_OFFSET: usize = core::mem::offset_of!(Self, clear_buffers);

    pub(crate) fn new<H: Host>(
        capabilities: &Capabilities,
        extended: &ExtendedState,
        ept_pointer: u64,
        tsc_offset: u64,
    ) -> Result<Self, OutOfMemory> {
        let extended = extended.area_new::<H>()?;
        let pages = Region::new::<H>(capabilities.revision).and_then(|region| match H::alloc_block(0) {
            Some(virtual_apic) => Ok((region, virtual_apic)),
            None => {
                // SAFETY: just made, never active.
                unsafe { region.free::<H>() };
                Err(OutOfMemory)
            }
        });
        let (region, virtual_apic) = match pages {
            Ok(pages) => pages,
            Err(error) => {
                extended.free::<H>();
                return Err(error);
            }
        };
        let mut vcpu = Self {
            gprs: Gprs::default(),
            launched: 0,
            clear_buffers: 0,
            region,
            virtual_apic,
            registers: Registers::new(),
            initialized: false,
            home: None,
            extended,
            own: GuestRegisters::RESET,
            syscall: SyscallMsrs::default(),
            dr6: 0,
            cr2: 0,
            entered_rsp: 0,
            assigned: Assigned::default(),
            deliveries: Deliveries::default(),
            injection: Event::NONE,
            exit_reason: 0,
            host_event: HostEvent::None,
            flush: false,
            ept_pointer,
            host: HostFields::default(),
            cr0_ones: capabilities.cr0_ones,
            cr0_possible: capabilities.cr0_possible,
            cr4_ones: capabilities.cr4_ones | CR4_VMXE,
            cr4_possible: capabilities.cr4_possible,
            window: None,
            nmi_window: false,
            deadline: None,
            turn_end: 0,
            timer_armed: false,
            timer_shift: capabilities.preemption_timer_shift,
        };
        vcpu.registers.set(Register::PROCESSOR_CONTROLS, u64::from(capabilities.processor));
        vcpu.registers.set(Register::ENTRY_CONTROLS, u64::from(capabilities.entry));
        vcpu.registers.set(Register::TSC_OFFSET, tsc_offset);
        vcpu.registers.set(Register::PREEMPTION_TIMER, FAR);
        reset::reset(&mut vcpu);
        Ok(vcpu)
    }

    /// Frees it.
    ///
    /// # Safety
    /// Its VMCS is active on no CPU.
    pub(crate) unsafe fn free<H: Host>(self) {
        self.extended.free::<H>();
        // SAFETY: allocated in new(); by the caller no CPU uses them.
        unsafe {
            self.region.free::<H>();
            H::free_block(self.virtual_apic);
        }
    }

    /// Physical address of the page with the virtual task priority.
    pub(crate) fn virtual_apic(&self) -> u64 {
        self.virtual_apic.phys
    }

    fn virtual_task_priority(&self) -> *mut u8 {
        // SAFETY: within the page.
        unsafe { self.virtual_apic.virt.as_ptr().add(VIRTUAL_TPR) }
    }

    /// Whether the guest has breakpoints.
    #[inline]
    pub(crate) fn debug_active(&self) -> bool {
        self.registers.get(Register::DR7) & DR7_ENABLES != 0
    }

    /// Uses a tag at the next entry, as a VPID if the CPU has them.
    pub(crate) fn assign(&mut self, assigned: Assigned, as_vpid: bool) {
        self.assigned = assigned;
        if as_vpid {
            self.registers.set(Register::VPID, u64::from(assigned.tag));
        }
    }

    /// The guest's translations are to be forgotten.
    fn flush_translations(&mut self) {
        self.flush = true;
    }

    fn set_control(&mut self, control: Processor, on: bool) {
        let mut controls = Processor::from_bits_retain(low(self.registers.get(Register::PROCESSOR_CONTROLS)));
        controls.set(control, on);
        self.registers.change(Register::PROCESSOR_CONTROLS, u64::from(controls.bits()));
    }

    /// A turn in the guest begins.
    #[inline]
    pub(crate) fn begin_turn(&mut self) {
        self.turn_end = now().wrapping_add(TURN_WITH_INTERRUPTS_OFF);
    }

    /// What is to be written for the preemption timer: the counts to the deadline, or to the end of the turn where the guest has
    /// its interrupts off, rounded up. What is further away than the timer reaches comes in pieces. `None` where nothing is to be
    /// written.
    #[inline]
    pub(crate) fn timer_value(&mut self) -> Option<u64> {
        let shift = self.timer_shift?;
        let end = if self.rflags() & RFlags::FLAGS_IF.bits() == 0 {
            Some(self.deadline.map_or(self.turn_end, |deadline| deadline.min(self.turn_end)))
        } else {
            self.deadline
        };
        let armed = core::mem::replace(&mut self.timer_armed, end.is_some());
        match end {
            Some(end) => Some((end.saturating_sub(now()) >> shift).saturating_add(1).min(FAR)),
            None => armed.then_some(FAR),
        }
    }

    /// Whether the deadline that core set has come, and not only the turn's end.
    pub(crate) fn deadline_has_come(&self) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now())
    }

    /// Sets the controls for [`Vcpu::want_interrupt_window`] and [`Vcpu::want_nmi_window`]. A class above the guest's task
    /// priority has a window as soon as the guest's flags are open; one that the task priority holds back has to wait for a
    /// lower CR8.
    fn place_window(&mut self) {
        let task_priority = self.task_priority();
        let held = self.window.filter(|class| *class <= task_priority);
        // An NMI that waits behind STI waits for the interrupt window, which opens with the next instruction: its own may exit
        // before that, and so again and again (26.2).
        let behind_sti = self.nmi_window && self.registers.get(Register::INTERRUPTIBILITY) & INTERRUPTIBILITY_STI != 0;
        self.set_control(Processor::NMI_WINDOW, self.nmi_window && !behind_sti);
        self.set_control(Processor::INTERRUPT_WINDOW, self.window.is_some() && held.is_none() || behind_sti);
        self.registers.change(Register::TPR_THRESHOLD, u64::from(held.unwrap_or(0)));
    }

    /// A single step stays pending over an exit at #DB in an interrupt shadow; without it the entry would be refused
    /// (27.3.1.5).
    pub(crate) fn keep_single_step(&mut self) {
        if self.rflags() & RFlags::FLAGS_TF.bits() != 0 && self.interrupt_shadow() {
            let pending = self.registers.get(Register::PENDING_DEBUG);
            self.registers.set(Register::PENDING_DEBUG, pending | PENDING_SINGLE_STEP);
        }
    }

    /// Whether the exit was made by an instruction whose length the VMCS has (28.2.5).
    fn exited_at_instruction(&self) -> bool {
        matches!(
            self.exit_reason,
            exit_reason::CPUID
                ..=exit_reason::WRMSR
                    | exit_reason::MWAIT
                    | exit_reason::MONITOR
                    | exit_reason::PAUSE
                    | exit_reason::WBINVD
                    | exit_reason::XSETBV
        )
    }
}

/// The time stamp counter.
#[inline]
fn now() -> u64 {
    // SAFETY: every CPU with VMX has RDTSC, and drivers may execute it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// The low 32 bits.
#[expect(clippy::cast_possible_truncation, reason = "the low half is wanted")]
const fn low(value: u64) -> u32 {
    value as u32
}
