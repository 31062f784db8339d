//! The virtual machine.

use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_bindings::kvm_segment;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::IoEventAddress;
use kvm_ioctls::Kvm;
use kvm_ioctls::NoDatamatch;
use kvm_ioctls::VcpuExit;
use kvm_ioctls::VcpuFd;
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EFD_NONBLOCK;
use vmm_sys_util::eventfd::EventFd;

use crate::error::Error;
use crate::image;
use crate::image::Entry;
use crate::memory::Memory;

/// RAM, in bytes.
const RAM: usize = 64 << 20;
/// Three pages that KVM may need on Intel CPUs.
const TSS_ADDRESS: usize = 0xfffb_d000;
/// COM1's data register.
const COM1_DATA: u16 = 0x3f8;
/// COM1's scratch register.
const COM1_SCRATCH: u16 = 0x3ff;
/// Sleep control register of hardware-reduced ACPI.
const SLEEP_CONTROL: u16 = 0x600;
/// CPUID leaf 1, ECX: runs in a virtual machine. KVM leaves it to its monitor.
const CPUID_HYPERVISOR: u32 = 1 << 31;
/// CR0: protected mode.
const CR0_PE: u64 = 1;
/// Flags after reset.
const RFLAGS_RESERVED: u64 = 2;

/// A machine with the probe in it.
#[derive(Debug)]
pub(crate) struct Machine {
    // Dropped in this order: the vCPU and the VM before the memory that they use.
    vcpu: VcpuFd,
    _vm: VmFd,
    _memory: Memory,
    doorbell: EventFd,
}

impl Machine {
    /// A machine that is ready to enter the probe.
    pub(crate) fn new(image: &[u8], command_line: &str, doorbell_port: u16) -> Result<Self, Error> {
        let mut memory = Memory::new(RAM)?;
        let entry = image::load(&mut memory, image, command_line)?;

        let kvm = Kvm::new().map_err(Error::kvm("be opened"))?;
        let vm = kvm.create_vm().map_err(Error::kvm("make a VM"))?;
        vm.set_tss_address(TSS_ADDRESS).map_err(Error::kvm("place its TSS"))?;
        vm.create_irq_chip().map_err(Error::kvm("make interrupt controllers"))?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: memory.size(),
            userspace_addr: memory.host_address(),
        };
        // SAFETY: the memory outlives the VM (see `Machine`), and Rust holds no reference into it while the guest runs.
        unsafe { vm.set_user_memory_region(region) }.map_err(Error::kvm("take the guest's memory"))?;
        let doorbell = EventFd::new(EFD_NONBLOCK).map_err(Error::Event)?;
        vm.register_ioevent(&doorbell, &IoEventAddress::Pio(u64::from(doorbell_port)), NoDatamatch)
            .map_err(Error::kvm("register a doorbell"))?;

        let vcpu = vm.create_vcpu(0).map_err(Error::kvm("make a vCPU"))?;
        let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(Error::kvm("tell its CPUID"))?;
        for leaf in cpuid.as_mut_slice().iter_mut().filter(|leaf| leaf.function == 1) {
            leaf.ecx |= CPUID_HYPERVISOR;
        }
        vcpu.set_cpuid2(&cpuid).map_err(Error::kvm("set CPUID"))?;
        set_registers(&vcpu, entry)?;
        Ok(Self { vcpu, _vm: vm, _memory: memory, doorbell })
    }

    /// Runs it to its end and hands each line of its serial output to `line`.
    pub(crate) fn run(mut self, mut line: impl FnMut(&str) -> std::io::Result<()>) -> Result<(), Error> {
        let mut text = Vec::new();
        let mut scratch = 0_u8;
        loop {
            match self.vcpu.run().map_err(Error::kvm("run the vCPU"))? {
                VcpuExit::IoOut(COM1_DATA, data) => {
                    for byte in data.iter().copied() {
                        if byte == b'\n' {
                            line(&String::from_utf8_lossy(&text))?;
                            text.clear();
                        } else {
                            text.push(byte);
                        }
                    }
                }
                VcpuExit::IoOut(COM1_SCRATCH, &[value]) => scratch = value,
                VcpuExit::IoIn(COM1_SCRATCH, data) => data.fill(scratch),
                VcpuExit::IoOut(SLEEP_CONTROL, _) => break,
                VcpuExit::IoIn(_, data) | VcpuExit::MmioRead(_, data) => data.fill(0xff),
                VcpuExit::IoOut(..) | VcpuExit::MmioWrite(..) | VcpuExit::Intr | VcpuExit::IoapicEoi(_) => {}
                VcpuExit::Shutdown => return Err(Error::Guest("a triple fault".to_owned())),
                other => return Err(Error::Guest(format!("{other:?}"))),
            }
        }
        // Rings that nobody waited for; an empty counter is as good.
        let _ = self.doorbell.read();
        Ok(())
    }
}

/// 32-bit protected mode with flat segments and without paging, as PVH asks.
fn set_registers(vcpu: &VcpuFd, entry: Entry) -> Result<(), Error> {
    let mut special = vcpu.get_sregs().map_err(Error::kvm("read registers"))?;
    let flat = kvm_segment { base: 0, limit: u32::MAX, present: 1, s: 1, db: 1, g: 1, ..Default::default() };
    special.cs = kvm_segment { selector: 0x08, type_: 0xb, ..flat };
    let data = kvm_segment { selector: 0x10, type_: 0x3, ..flat };
    (special.ds, special.es, special.fs, special.gs, special.ss) = (data, data, data, data, data);
    special.cr0 = CR0_PE;
    vcpu.set_sregs(&special).map_err(Error::kvm("set registers"))?;
    let mut general = vcpu.get_regs().map_err(Error::kvm("read registers"))?;
    general.rip = entry.rip;
    general.rbx = entry.start_info;
    general.rflags = RFLAGS_RESERVED;
    vcpu.set_regs(&general).map_err(Error::kvm("set registers"))
}
