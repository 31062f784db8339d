//! The ACPI tables: what the guest is told of its processors, interrupts, PCI bus, serial port and power.
//!
//! Hardware-reduced ACPI (ACPI 6.5, 4.1): no system management mode, no legacy timers, no embedded controller.

use acpi_tables::Aml;
use acpi_tables::aml;
use acpi_tables::fadt::FADTBuilder;
use acpi_tables::fadt::Flags;
use acpi_tables::gas::AccessSize;
use acpi_tables::gas::AddressSpace;
use acpi_tables::gas::GAS;
use acpi_tables::madt::EnabledStatus;
use acpi_tables::madt::IoApic;
use acpi_tables::madt::LocalInterruptController;
use acpi_tables::madt::MADT;
use acpi_tables::madt::ProcessorLocalApic;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use covisor_abi::IO_APIC_BASE;
use covisor_abi::LOCAL_APIC_BASE;
use covisor_abi::MAX_VCPUS;
use covisor_abi::driver_ports::PM_TIMER;

use crate::devices::pci::CONFIG_PORTS;
use crate::devices::pci::CONFIG_PORTS_SIZE;
use crate::devices::pci::HOT_PLUG_PORT;
use crate::devices::pci::HOT_PLUG_PORTS;
use crate::devices::pci::HOT_SLOTS;
use crate::devices::pci::SLOTS;
use crate::devices::pci::gsi_of_slot;
use crate::devices::power::EVENT_HOT_PLUG;
use crate::devices::power::EVENT_PORT;
use crate::devices::power::EVENT_PORTS;
use crate::devices::power::EVENT_POWER_BUTTON;
use crate::devices::power::RESET_PORT;
use crate::devices::power::RESET_VALUE;
use crate::devices::power::SLEEP_PORT;
use crate::devices::power::SLEEP_TYPE_S5;
use crate::devices::serial::SERIAL_IRQ;
use crate::devices::serial::SERIAL_PORT;
use crate::devices::serial::SERIAL_PORTS;
use crate::layout::ACPI_TABLES;
use crate::layout::EVENT_GSI;
use crate::layout::HIGH_RAM_START;
use crate::layout::PCI_MEMORY;
use crate::layout::PCI_PORTS;

const OEM_ID: [u8; 6] = *b"COVISR";
const OEM_TABLE_ID: [u8; 8] = *b"COVISOR ";
const OEM_REVISION: u32 = 1;
/// "covisor", the FADT's hypervisor vendor identity (ACPI 6.5, 5.2.9).
const HYPERVISOR: u64 = u64::from_le_bytes(*b"covisor\0");
/// Revision of the DSDT: 2 makes integers 64-bit.
const DSDT_REVISION: u8 = 2;
const TABLE_HEADER_SIZE: u32 = 36;
/// FADT, IA-PC boot architecture flags (ACPI 6.5, 5.2.9.3): neither VGA nor a CMOS clock; those that claim legacy
/// devices or an 8042 stay clear.
const BOOT_ARCH_NO_VGA: u16 = 1 << 2;
const BOOT_ARCH_NO_CMOS_CLOCK: u16 = 1 << 5;
const PM_TIMER_BYTES: u8 = 4;
/// Tables begin at multiples of this.
const TABLE_ALIGNMENT: usize = 16;
/// `Notify` value: a button was pressed (ACPI 6.5, 5.6.6).
const BUTTON_PRESSED: u8 = 0x80;
/// `Notify` values: see what came; let go what is there.
const DEVICE_CHECK: u8 = 1;
const EJECT_REQUEST: u8 = 3;

// A local APIC entry of the MADT has a byte for the id; only larger ids need x2APIC entries.
const _: () = assert!(MAX_VCPUS <= 255);

/// The tables for so many vCPUs, for [`ACPI_TABLES`]; the RSDP comes first.
#[must_use]
pub fn tables(vcpus: u32) -> Vec<u8> {
    let mut area = Area { bytes: vec![0; Rsdp::len()] };
    let dsdt = area.put(&dsdt());
    let fadt = area.put(&fadt(dsdt));
    let madt = area.put(&madt(vcpus));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = area.put(&xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
    area.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    debug_assert!(ACPI_TABLES + area.bytes.len() as u64 <= HIGH_RAM_START);
    area.bytes
}

/// Tables one after another.
struct Area {
    bytes: Vec<u8>,
}

impl Area {
    /// Adds a table, and gives its guest-physical address.
    fn put(&mut self, table: &dyn Aml) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(TABLE_ALIGNMENT), 0);
        let address = ACPI_TABLES + self.bytes.len() as u64;
        table.to_aml_bytes(&mut self.bytes);
        address
    }
}

fn port(address: u64, access: AccessSize, bits: u8) -> GAS {
    GAS::new(AddressSpace::SystemIo, bits, 0, access, address)
}

fn byte_port(address: u64) -> GAS {
    port(address, AccessSize::ByteAccess, 8)
}

fn fadt(dsdt: u64) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        // The buttons, if any, are devices of the name space, not bits of fixed hardware.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup)
        .flag(Flags::HwReducedAcpi);
    fadt.iapc_boot_arch = (BOOT_ARCH_NO_VGA | BOOT_ARCH_NO_CMOS_CLOCK).into();
    fadt.reset_reg = byte_port(RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = byte_port(SLEEP_PORT);
    fadt.sleep_status_reg = byte_port(SLEEP_PORT + 1);
    // Hardware-reduced ACPI has no use for the timer, but Linux uses it all the same, as a clock to check others by.
    fadt.pm_tmr_blk = u32::from(PM_TIMER).into();
    fadt.pm_tmr_len = PM_TIMER_BYTES;
    fadt.x_pm_tmr_blk = port(u64::from(PM_TIMER), AccessSize::DwordAccess, PM_TIMER_BYTES * 8);
    fadt.hypervisor_vendor_identity = HYPERVISOR.into();
    fadt.finalize()
}

fn madt(vcpus: u32) -> impl Aml {
    let local_apic = LocalInterruptController::Address(low(LOCAL_APIC_BASE));
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, local_apic);
    for id in (0..vcpus.min(MAX_VCPUS)).filter_map(|id| u8::try_from(id).ok()) {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, low(IO_APIC_BASE), 0));
    madt
}

fn dsdt() -> impl Aml {
    let mut dsdt = Sdt::new(*b"DSDT", TABLE_HEADER_SIZE, DSDT_REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let mut code = Vec::new();
    soft_off(&mut code);
    pci(&mut code);
    serial(&mut code);
    power_button(&mut code);
    dsdt.append_slice(&code);
    dsdt
}

/// `\_S5`: the sleep type of soft off.
fn soft_off(code: &mut Vec<u8>) {
    name("_S5_", &aml::Package::new(vec![&SLEEP_TYPE_S5])).to_aml_bytes(code);
}

/// An object with a name.
fn name(path: &str, value: &dyn Aml) -> aml::Name {
    aml::Name::new(path.into(), value)
}

/// Adds a device.
fn device(code: &mut Vec<u8>, path: &str, children: &[&dyn Aml]) {
    aml::Device::new(path.into(), children.to_vec()).to_aml_bytes(code);
}

/// The root of the PCI bus: one bus, its windows, its interrupts.
fn pci(code: &mut Vec<u8>) {
    let (memory, memory_size) = PCI_MEMORY;
    let (first, size) = PCI_PORTS;
    let bus = aml::AddressSpace::new_bus_number(0u16, 0u16);
    let config = ports(CONFIG_PORTS, CONFIG_PORTS_SIZE);
    let io_window = aml::AddressSpace::new_io(first, first + (size - 1), None);
    let uncached = aml::AddressSpaceCacheable::NotCacheable;
    let memory_window = aml::AddressSpace::new_memory(uncached, true, low(memory), low(memory + memory_size - 1), None);
    let resources = aml::ResourceTemplate::new(vec![&bus, &config, &io_window, &memory_window]);
    let hot_slots: Vec<HotSlot> = HOT_SLOTS.map(HotSlot).collect();
    let mut routing = aml::PackageBuilder::new();
    for slot in 0..SLOTS {
        // All functions of the slot; pin INTA; no link device but this interrupt.
        let address = u32::from(slot) << 16 | 0xffff;
        let gsi = gsi_of_slot(slot);
        routing.add_element(&aml::Package::new(vec![&address, &aml::ZERO, &aml::ZERO, &gsi]));
    }
    let named = [
        name("_HID", &aml::EISAName::new("PNP0A03")),
        name("_UID", &aml::ZERO),
        name("_BBN", &aml::ZERO),
        name("_SEG", &aml::ZERO),
        name("_CRS", &resources),
        name("_PRT", &routing),
    ];
    let (registers, fields) = hot_plug_registers();
    let mut children: Vec<&dyn Aml> = named.iter().map(|name| name as &dyn Aml).collect();
    children.extend([&registers as &dyn Aml, &fields]);
    children.extend(hot_slots.iter().map(|slot| slot as &dyn Aml));
    children.push(&SlotChanges);
    device(code, "_SB_.PCI0", &children);
}

/// The registers of [`crate::devices::pci::HotPlugRegisters`]: what came, what is to go, what was let go.
fn hot_plug_registers() -> (aml::OpRegion<'static>, aml::Field) {
    let region = aml::OpRegion::new("HPRG".into(), aml::OpRegionSpace::SystemIO, &HOT_PLUG_PORT, &HOT_PLUG_PORTS);
    let field = aml::Field::new(
        "HPRG".into(),
        aml::FieldAccessType::DWord,
        aml::FieldLockRule::NoLock,
        aml::FieldUpdateRule::WriteAsZeroes,
        [*b"HADD", *b"HLEA", *b"HEJE"].map(|name| aml::FieldEntry::Named(name, 32)).into(),
    );
    (region, field)
}

/// A slot whose function can come and go: the guest calls `_EJ0` when it has let the function go.
struct HotSlot(u8);

impl HotSlot {
    fn path(&self) -> aml::Path {
        aml::Path::new(&format!("S{:03}", self.0))
    }

    fn bit(&self) -> u32 {
        1 << self.0
    }
}

impl Aml for HotSlot {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        let (address, bit) = (u32::from(self.0) << 16, self.bit());
        let eject = aml::Path::new("HEJE");
        let store = aml::Store::new(&eject, &bit);
        aml::Device::new(
            self.path(),
            vec![
                &name("_ADR", &address),
                &name("_SUN", &self.0),
                &aml::Method::new("_EJ0".into(), 1, true, vec![&store]),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// The method that tells the guest of each slot that changed (ACPI 6.5, 5.6.6).
struct SlotChanges;

/// Its name.
const SLOT_CHANGES: &str = "HCHG";

impl Aml for SlotChanges {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        // Reading a register takes what is in it, so each is read once.
        let slots: Vec<(aml::Path, u32)> = HOT_SLOTS.map(HotSlot).map(|slot| (slot.path(), slot.bit())).collect();
        let mut statements: Vec<Box<dyn Aml>> = Vec::new();
        for (local, register, value) in [(0, "HADD", &DEVICE_CHECK), (1, "HLEA", &EJECT_REQUEST)] {
            statements.push(Box::new(Taken { local, register }));
            for (path, bit) in &slots {
                statements.push(Box::new(NotifyIf { local, bit: *bit, path, value }));
            }
        }
        let statements = statements.iter().map(AsRef::as_ref).collect();
        aml::Method::new(SLOT_CHANGES.into(), 0, true, statements).to_aml_bytes(sink);
    }
}

/// Reads a register into a local variable.
struct Taken {
    local: u8,
    register: &'static str,
}

impl Aml for Taken {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        aml::Store::new(&aml::Local(self.local), &aml::Path::new(self.register)).to_aml_bytes(sink);
    }
}

/// Notifies a device if a bit is set in a local variable.
struct NotifyIf<'a> {
    local: u8,
    bit: u32,
    path: &'a aml::Path,
    value: &'a u8,
}

impl Aml for NotifyIf<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        let notify = aml::Notify::new(self.path, self.value);
        let local = aml::Local(self.local);
        let is_set = aml::And::new(&aml::ZERO, &local, &self.bit);
        aml::If::new(&is_set, vec![&notify]).to_aml_bytes(sink);
    }
}

/// COM1.
fn serial(code: &mut Vec<u8>) {
    let registers = ports(SERIAL_PORT, SERIAL_PORTS);
    let interrupt = aml::Interrupt::new(true, true, false, false, SERIAL_IRQ);
    device(
        code,
        "_SB_.COM1",
        &[
            &name("_HID", &aml::EISAName::new("PNP0501")),
            &name("_UID", &aml::ZERO),
            &name("_CRS", &aml::ResourceTemplate::new(vec![&registers, &interrupt])),
        ],
    );
}

/// The power button, and the generic event device (ACPI 6.5, 5.6.9) that says when it was pressed, and of slots that changed.
fn power_button(code: &mut Vec<u8>) {
    device(code, "_SB_.PWRB", &[&name("_HID", &aml::EISAName::new("PNP0C0C")), &name("_UID", &aml::ZERO)]);
    let interrupt = aml::Interrupt::new(true, false, false, false, EVENT_GSI);
    let field = aml::Field::new(
        "EREG".into(),
        aml::FieldAccessType::Byte,
        aml::FieldLockRule::NoLock,
        aml::FieldUpdateRule::WriteAsZeroes,
        vec![aml::FieldEntry::Named(*b"EVTS", 8)],
    );
    // Reading the register takes the events, so it is read once.
    let (events, status) = (aml::Local(0), aml::Path::new("EVTS"));
    let read = aml::Store::new(&events, &status);
    let was_pressed = aml::And::new(&aml::ZERO, &events, &EVENT_POWER_BUTTON);
    let button = aml::Path::new("\\_SB_.PWRB");
    let notify = aml::Notify::new(&button, &BUTTON_PRESSED);
    let branch = aml::If::new(&was_pressed, vec![&notify]);
    let have_changed = aml::And::new(&aml::ZERO, &events, &EVENT_HOT_PLUG);
    let changes = aml::MethodCall::new(format!("\\_SB_.PCI0.{SLOT_CHANGES}").as_str().into(), Vec::new());
    let slots = aml::If::new(&have_changed, vec![&changes]);
    // Who calls this will take events.
    let hear = aml::Store::new(&status, &aml::ONE);
    device(
        code,
        "_SB_.GED_",
        &[
            &name("_HID", &"ACPI0013"),
            &name("_UID", &aml::ZERO),
            &name("_CRS", &aml::ResourceTemplate::new(vec![&interrupt])),
            &aml::OpRegion::new("EREG".into(), aml::OpRegionSpace::SystemIO, &EVENT_PORT, &EVENT_PORTS),
            &field,
            &aml::Method::new("_INI".into(), 0, false, vec![&hear]),
            &aml::Method::new("_EVT".into(), 1, true, vec![&read, &branch, &slots]),
        ],
    );
}

/// Ports that a device decodes.
#[expect(clippy::cast_possible_truncation, reason = "only constants that are ports come here, see the assert")]
fn ports(first: u64, count: u64) -> aml::IO {
    debug_assert!(first + count <= 0x1_0000 && count <= 0xff);
    aml::IO::new(first as u16, first as u16, 1, count as u8)
}

/// An address below 4 GiB, where all that the tables name lies.
#[expect(
    clippy::cast_possible_truncation,
    reason = "only constants of the layout below 4 GiB come here, see the assert"
)]
fn low(address: u64) -> u32 {
    debug_assert!(u32::try_from(address).is_ok());
    address as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u32_at(bytes: &[u8], offset: usize) -> u32 {
        u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
    }

    fn u64_at(bytes: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
    }

    /// The table at a guest-physical address, its checksum checked.
    fn table(area: &[u8], address: u64) -> &[u8] {
        let table = &area[usize::try_from(address - ACPI_TABLES).unwrap()..];
        let table = &table[..u32_at(table, 4) as usize];
        assert_eq!(table.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte)), 0);
        table
    }

    /// FADT and MADT, found from the RSDP as a guest does.
    fn fadt_and_madt(area: &[u8]) -> (&[u8], &[u8]) {
        assert_eq!(&area[..8], b"RSD PTR ");
        assert_eq!(area[..36].iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte)), 0);
        assert_eq!(area[..20].iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte)), 0);
        let xsdt = table(area, u64_at(area, 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        (table(area, u64_at(xsdt, 36)), table(area, u64_at(xsdt, 44)))
    }

    #[test]
    fn test_every_table_is_found_and_has_a_right_checksum() {
        let area = tables(1);
        let (fadt, madt) = fadt_and_madt(&area);
        assert_eq!(&fadt[..4], b"FACP");
        assert_eq!(&madt[..4], b"APIC");
        let dsdt = table(&area, u64_at(fadt, 140));
        assert_eq!(&dsdt[..4], b"DSDT");
    }

    #[test]
    fn test_the_fadt_tells_of_reset_and_sleep() {
        let area = tables(1);
        let (fadt, _) = fadt_and_madt(&area);
        assert_ne!(u32_at(fadt, 112) & 1 << 20, 0, "hardware-reduced");
        assert_eq!((u64_at(fadt, 120), fadt[128]), (0xcf9, 6), "reset register");
        assert_eq!((u64_at(fadt, 248), u64_at(fadt, 260)), (0x600, 0x601), "sleep registers");
        assert_eq!(u64_at(fadt, 212), 0x608, "timer");
    }

    #[test]
    fn test_the_madt_has_an_entry_for_every_vcpu() {
        for vcpus in [1, 2, MAX_VCPUS] {
            let area = tables(vcpus);
            let (_, madt) = fadt_and_madt(&area);
            assert_eq!(madt.len(), 44 + 8 * vcpus as usize + 12);
            assert_eq!(u32_at(madt, 36), 0xfee0_0000);
        }
    }

    #[test]
    fn test_the_tables_stay_within_their_area() {
        assert!(tables(MAX_VCPUS).len() as u64 <= HIGH_RAM_START - ACPI_TABLES);
    }
}
