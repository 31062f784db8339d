//! Numbers of the 64-bit Xen PV ABI, by their names in Xen's public headers.

/// Hypercalls (`xen.h`).
pub mod call {
    /// `set_trap_table`.
    pub const SET_TRAP_TABLE: u64 = 0;
    /// `mmu_update`.
    pub const MMU_UPDATE: u64 = 1;
    /// `set_gdt`.
    pub const SET_GDT: u64 = 2;
    /// `stack_switch`.
    pub const STACK_SWITCH: u64 = 3;
    /// `set_callbacks`.
    pub const SET_CALLBACKS: u64 = 4;
    /// `fpu_taskswitch`.
    pub const FPU_TASKSWITCH: u64 = 5;
    /// `platform_op`.
    pub const PLATFORM_OP: u64 = 7;
    /// `set_debugreg`.
    pub const SET_DEBUGREG: u64 = 8;
    /// `get_debugreg`.
    pub const GET_DEBUGREG: u64 = 9;
    /// `update_descriptor`.
    pub const UPDATE_DESCRIPTOR: u64 = 10;
    /// `memory_op`.
    pub const MEMORY_OP: u64 = 12;
    /// `multicall`.
    pub const MULTICALL: u64 = 13;
    /// `update_va_mapping`.
    pub const UPDATE_VA_MAPPING: u64 = 14;
    /// `set_timer_op`.
    pub const SET_TIMER_OP: u64 = 15;
    /// `xen_version`.
    pub const XEN_VERSION: u64 = 17;
    /// `console_io`.
    pub const CONSOLE_IO: u64 = 18;
    /// `grant_table_op`.
    pub const GRANT_TABLE_OP: u64 = 20;
    /// `vm_assist`.
    pub const VM_ASSIST: u64 = 21;
    /// `iret`.
    pub const IRET: u64 = 23;
    /// `vcpu_op`.
    pub const VCPU_OP: u64 = 24;
    /// `set_segment_base`.
    pub const SET_SEGMENT_BASE: u64 = 25;
    /// `mmuext_op`.
    pub const MMUEXT_OP: u64 = 26;
    /// `sched_op`.
    pub const SCHED_OP: u64 = 29;
    /// `callback_op`.
    pub const CALLBACK_OP: u64 = 30;
    /// `event_channel_op`.
    pub const EVENT_CHANNEL_OP: u64 = 32;
    /// `physdev_op`.
    pub const PHYSDEV_OP: u64 = 33;
    /// `xenpmu_op`.
    pub const XENPMU_OP: u64 = 40;
    /// Not Xen's: covisor looks at every entry of the tables that it made for the guest, where it was started with
    /// `--test-page-tables`. 0 says that all are right; a guest with one that is wrong is ended. Elsewhere, and under Xen, which leaves
    /// the number to the architecture (`__HYPERVISOR_arch_7`), `ENOSYS`.
    pub const CHECK: u64 = 55;
}

/// Errors of hypercalls (`errno.h`), as they are returned.
pub mod errno {
    /// There is no such thing.
    pub const ENOENT: i64 = -2;
    /// Memory cannot be accessed.
    pub const EFAULT: i64 = -14;
    /// It exists already.
    pub const EEXIST: i64 = -17;
    /// An argument is wrong.
    pub const EINVAL: i64 = -22;
    /// There is no room.
    pub const ENOSPC: i64 = -28;
    /// The call, or what it is asked for, does not exist.
    pub const ENOSYS: i64 = -38;
    /// The time has passed.
    pub const ETIME: i64 = -62;
}

/// Operations of `mmuext_op`.
pub mod mmuext {
    /// `MMUEXT_PIN_L1_TABLE`.
    pub const PIN_L1: u32 = 0;
    /// `MMUEXT_PIN_L2_TABLE`.
    pub const PIN_L2: u32 = 1;
    /// `MMUEXT_PIN_L3_TABLE`.
    pub const PIN_L3: u32 = 2;
    /// `MMUEXT_PIN_L4_TABLE`.
    pub const PIN_L4: u32 = 3;
    /// `MMUEXT_UNPIN_TABLE`.
    pub const UNPIN: u32 = 4;
    /// `MMUEXT_NEW_BASEPTR`.
    pub const NEW_BASEPTR: u32 = 5;
    /// `MMUEXT_TLB_FLUSH_LOCAL`.
    pub const TLB_FLUSH_LOCAL: u32 = 6;
    /// `MMUEXT_INVLPG_LOCAL`.
    pub const INVLPG_LOCAL: u32 = 7;
    /// `MMUEXT_TLB_FLUSH_MULTI`.
    pub const TLB_FLUSH_MULTI: u32 = 8;
    /// `MMUEXT_INVLPG_MULTI`.
    pub const INVLPG_MULTI: u32 = 9;
    /// `MMUEXT_TLB_FLUSH_ALL`.
    pub const TLB_FLUSH_ALL: u32 = 10;
    /// `MMUEXT_INVLPG_ALL`.
    pub const INVLPG_ALL: u32 = 11;
    /// `MMUEXT_SET_LDT`.
    pub const SET_LDT: u32 = 13;
    /// `MMUEXT_NEW_USER_BASEPTR`.
    pub const NEW_USER_BASEPTR: u32 = 15;
}

/// Low bits of `mmu_update`'s pointer.
pub mod mmu_update {
    /// `MMU_NORMAL_PT_UPDATE`.
    pub const NORMAL: u64 = 0;
    /// `MMU_MACHPHYS_UPDATE`.
    pub const MACHPHYS: u64 = 1;
    /// `MMU_PT_UPDATE_PRESERVE_AD`.
    pub const PRESERVE_AD: u64 = 2;
}

/// Flags of `update_va_mapping`.
pub mod uvmf {
    /// Nothing is flushed.
    pub const NONE: u64 = 0;
    /// `UVMF_TLB_FLUSH`.
    pub const TLB_FLUSH: u64 = 1;
    /// `UVMF_INVLPG`.
    pub const INVLPG: u64 = 2;
    /// `UVMF_ALL`: on every CPU.
    pub const ALL: u64 = 4;
}

/// Operations of `memory_op` (`memory.h`).
pub mod memory {
    /// `XENMEM_increase_reservation`.
    pub const INCREASE_RESERVATION: u64 = 0;
    /// `XENMEM_decrease_reservation`.
    pub const DECREASE_RESERVATION: u64 = 1;
    /// `XENMEM_populate_physmap`.
    pub const POPULATE_PHYSMAP: u64 = 6;
    /// `XENMEM_memory_map`.
    pub const MEMORY_MAP: u64 = 9;
    /// `XENMEM_exchange`.
    pub const EXCHANGE: u64 = 11;
    /// `XENMEM_machphys_mapping`.
    pub const MACHPHYS_MAPPING: u64 = 12;
}

/// Operations of `xen_version` (`version.h`).
pub mod version {
    /// `XENVER_version`.
    pub const VERSION: u64 = 0;
    /// `XENVER_extraversion`.
    pub const EXTRA_VERSION: u64 = 1;
    /// `XENVER_get_features`.
    pub const GET_FEATURES: u64 = 6;
}

/// Operations of `event_channel_op` (`event_channel.h`).
pub mod channel {
    /// `EVTCHNOP_bind_interdomain`.
    pub const BIND_INTERDOMAIN: u64 = 0;
    /// `EVTCHNOP_bind_virq`.
    pub const BIND_VIRQ: u64 = 1;
    /// `EVTCHNOP_bind_pirq`.
    pub const BIND_PIRQ: u64 = 2;
    /// `EVTCHNOP_close`.
    pub const CLOSE: u64 = 3;
    /// `EVTCHNOP_send`.
    pub const SEND: u64 = 4;
    /// `EVTCHNOP_status`.
    pub const STATUS: u64 = 5;
    /// `EVTCHNOP_alloc_unbound`.
    pub const ALLOC_UNBOUND: u64 = 6;
    /// `EVTCHNOP_bind_ipi`.
    pub const BIND_IPI: u64 = 7;
    /// `EVTCHNOP_bind_vcpu`.
    pub const BIND_VCPU: u64 = 8;
    /// `EVTCHNOP_unmask`.
    pub const UNMASK: u64 = 9;
    /// `EVTCHNOP_reset`.
    pub const RESET: u64 = 10;
    /// `EVTCHNOP_init_control`.
    pub const INIT_CONTROL: u64 = 11;
    /// `EVTCHNOP_expand_array`.
    pub const EXPAND_ARRAY: u64 = 12;
    /// `EVTCHNOP_set_priority`.
    pub const SET_PRIORITY: u64 = 13;
}

/// Virtual interrupts (`xen.h`).
pub mod virq {
    /// `VIRQ_TIMER`.
    pub const TIMER: u32 = 0;
    /// `NR_VIRQS`.
    pub const COUNT: u32 = 24;
}

/// Operations of `vcpu_op` (`vcpu.h`).
pub mod vcpu {
    /// `VCPUOP_initialise`.
    pub const INITIALISE: u64 = 0;
    /// `VCPUOP_up`.
    pub const UP: u64 = 1;
    /// `VCPUOP_is_up`.
    pub const IS_UP: u64 = 3;
    /// `VCPUOP_register_runstate_memory_area`.
    pub const REGISTER_RUNSTATE: u64 = 5;
    /// `VCPUOP_stop_periodic_timer`.
    pub const STOP_PERIODIC_TIMER: u64 = 7;
    /// `VCPUOP_set_singleshot_timer`.
    pub const SET_SINGLESHOT_TIMER: u64 = 8;
    /// `VCPUOP_stop_singleshot_timer`.
    pub const STOP_SINGLESHOT_TIMER: u64 = 9;
    /// `VCPUOP_register_vcpu_info`.
    pub const REGISTER_VCPU_INFO: u64 = 10;
    /// `VCPUOP_send_nmi`.
    pub const SEND_NMI: u64 = 11;
    /// `VCPU_SSHOTTMR_future`: a time that has passed is an error.
    pub const FUTURE: u64 = 1;
}

/// Operations of `sched_op` (`sched.h`).
pub mod sched {
    /// `SCHEDOP_yield`.
    pub const YIELD: u64 = 0;
    /// `SCHEDOP_block`.
    pub const BLOCK: u64 = 1;
    /// `SCHEDOP_shutdown`.
    pub const SHUTDOWN: u64 = 2;
    /// `SCHEDOP_poll`.
    pub const POLL: u64 = 3;
    /// `SCHEDOP_pin_override`.
    pub const PIN_OVERRIDE: u64 = 7;
    /// `SHUTDOWN_poweroff`.
    pub const REASON_POWER_OFF: u32 = 0;
    /// `SHUTDOWN_crash`.
    pub const REASON_CRASH: u32 = 3;
}

/// `callback_op` and its callbacks (`callback.h`).
pub mod callback {
    /// `CALLBACKOP_register`.
    pub const REGISTER: u64 = 0;
    /// `CALLBACKTYPE_event`.
    pub const EVENT: u16 = 0;
    /// `CALLBACKTYPE_failsafe`.
    pub const FAILSAFE: u16 = 1;
    /// `CALLBACKTYPE_syscall`.
    pub const SYSCALL: u16 = 2;
    /// `CALLBACKTYPE_sysenter`.
    pub const SYSENTER: u16 = 5;
    /// `CALLBACKTYPE_syscall32`.
    pub const SYSCALL32: u16 = 7;
    /// `CALLBACKF_mask_events`.
    pub const MASK_EVENTS: u16 = 1;
}

/// Operations of `physdev_op` (`physdev.h`).
pub mod physdev {
    /// `PHYSDEVOP_irq_status_query`.
    pub const IRQ_STATUS_QUERY: u64 = 5;
    /// `PHYSDEVOP_set_iopl`.
    pub const SET_IOPL: u64 = 6;
    /// `PHYSDEVOP_apic_read`.
    pub const APIC_READ: u64 = 8;
    /// `PHYSDEVOP_eoi`.
    pub const EOI: u64 = 12;
    /// `PHYSDEVOP_pirq_eoi_gmfn_v2`.
    pub const PIRQ_EOI_GMFN_V2: u64 = 28;
    /// `XENIRQSTAT_needs_eoi`.
    pub const NEEDS_EOI: u32 = 1;
}

/// `set_segment_base` (`arch-x86/xen-x86_64.h`).
pub mod segment_base {
    /// `SEGBASE_FS`.
    pub const FS: u64 = 0;
    /// `SEGBASE_GS_USER`.
    pub const GS_USER: u64 = 1;
    /// `SEGBASE_GS_KERNEL`.
    pub const GS_KERNEL: u64 = 2;
    /// `SEGBASE_GS_USER_SEL`.
    pub const GS_USER_SELECTOR: u64 = 3;
}

/// Flat segments that every guest has (`arch-x86/xen-x86_64.h`).
pub mod selector {
    /// `FLAT_RING3_CS32`.
    pub const CODE32: u16 = 0xe023;
    /// `FLAT_RING3_SS64`, and data.
    pub const DATA: u16 = 0xe02b;
    /// `FLAT_RING3_CS64`.
    pub const CODE64: u16 = 0xe033;
    /// The kernel's code, as frames that interrupted it have it: with privilege level 0.
    pub const KERNEL_CODE: u16 = 0xe030;
}

/// `HYPERVISOR_VIRT_START` (`arch-x86/xen-x86_64.h`).
pub const HYPERVISOR_START: u64 = 0xffff_8000_0000_0000;
/// `HYPERVISOR_VIRT_END`.
pub const HYPERVISOR_END: u64 = 0xffff_8800_0000_0000;
/// The L4 entries that are the hypervisor's.
pub const HYPERVISOR_SLOTS: core::ops::Range<u64> = 256..272;
/// `DOMID_SELF`.
pub const DOMID_SELF: u64 = 0x7ff0;
