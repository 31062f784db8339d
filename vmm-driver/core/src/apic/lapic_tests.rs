//! Tests of the local APIC.

use covisor_abi::LOCAL_APIC_BASE;
use proptest::prelude::*;

use super::lapic::Effect;
use super::lapic::LocalApic;
use super::lapic::X2APIC_FIRST_MSR;
use super::message::Delivery;
use super::message::Destination;
use super::message::Message;
use super::registers::Lvt;
use super::registers::Register;
use super::registers::apic_base;
use super::registers::error;
use super::registers::spurious;
use super::*;
use crate::exit::Exception;

const KHZ: u32 = 1_000_000;
const X2APIC: u64 = LOCAL_APIC_BASE | apic_base::ENABLED | apic_base::EXTENDED;

/// An APIC that takes interrupts.
fn xapic() -> LocalApic {
    let mut apic = LocalApic::new(0, KHZ, 0);
    assert_eq!(store(&mut apic, Register::Spurious, spurious::ENABLED | 0xff), Effect::Identity);
    apic
}

fn x2apic(id: u32) -> LocalApic {
    let mut apic = LocalApic::new(id, KHZ, 0);
    assert_eq!(apic.set_base(X2APIC), Ok(Effect::Identity));
    assert_eq!(wrmsr(&mut apic, Register::Spurious, 0x1ff), Ok(Effect::Identity));
    apic
}

fn store(apic: &mut LocalApic, register: Register, value: u32) -> Effect {
    apic.write_memory(u64::from(register as u8) << 4, 4, value.into(), 0)
}

fn set(apic: &mut LocalApic, register: Register, value: u32) {
    let _effect = store(apic, register, value);
}

fn load(apic: &mut LocalApic, register: Register) -> u64 {
    apic.read_memory(u64::from(register as u8) << 4, 4, 0)
}

fn wrmsr(apic: &mut LocalApic, register: Register, value: u64) -> Result<Effect, Exception> {
    apic.write_msr(X2APIC_FIRST_MSR + u32::from(register as u8), value, 0)
}

fn rdmsr(apic: &LocalApic, register: Register) -> Option<u64> {
    apic.read_msr(X2APIC_FIRST_MSR + u32::from(register as u8), 0)
}

#[test]
fn state_after_reset() {
    let mut apic = LocalApic::new(3, KHZ, 0);
    assert_eq!(apic.base(), 0xfee0_0800);
    assert_eq!(LocalApic::new(0, KHZ, 0).base(), 0xfee0_0900);
    assert_eq!(load(&mut apic, Register::Id), 3 << 24);
    assert_eq!(load(&mut apic, Register::Version), 0x0005_0014);
    assert_eq!(load(&mut apic, Register::Spurious), 0xff);
    assert_eq!(load(&mut apic, Register::DestinationFormat), 0xffff_ffff);
    assert_eq!(load(&mut apic, Register::LvtLint0), 0x1_0000);
    assert_eq!(apic.deadline(), None);
    assert_eq!(apic.highest(), None);
}

#[test]
fn interrupts_nest_by_priority_class() {
    let (mut apic, inbox) = (xapic(), Inbox::new());
    inbox.post_vector(0x31, false);
    inbox.post_vector(0x52, true);
    assert_eq!(apic.drain(&inbox), Signals::default());
    assert_eq!(apic.highest(), Some(0x52));
    apic.accept(0x52);
    assert_eq!(load(&mut apic, Register::ProcessorPriority), 0x50);
    assert_eq!(apic.highest(), None);
    inbox.post_vector(0x5f, false);
    inbox.post_vector(0x61, false);
    apic.drain(&inbox);
    assert_eq!(apic.highest(), Some(0x61));
    apic.accept(0x61);
    assert_eq!(store(&mut apic, Register::EndOfInterrupt, 0), Effect::None);
    assert_eq!(apic.highest(), None, "0x5f is of the class in service");
    assert_eq!(store(&mut apic, Register::EndOfInterrupt, 0), Effect::EndOfInterrupt(0x52));
    assert_eq!(apic.highest(), Some(0x5f));
    assert_eq!(apic.end_of_interrupt(), None, "nothing in service");
}

#[test]
fn task_priority_holds_back() {
    let (mut apic, inbox) = (xapic(), Inbox::new());
    assert_eq!(store(&mut apic, Register::TaskPriority, 0x45), Effect::TaskPriority);
    assert_eq!(apic.task_priority(), 4);
    apic.set_task_priority(4);
    assert_eq!(load(&mut apic, Register::TaskPriority), 0x45, "the sub-class stays");
    inbox.post_vector(0x4f, false);
    apic.drain(&inbox);
    assert_eq!((apic.highest(), apic.held_by_task_priority()), (None, Some(0x4f)));
    apic.set_task_priority(3);
    assert_eq!((apic.highest(), apic.held_by_task_priority()), (Some(0x4f), None));
    assert_eq!(load(&mut apic, Register::TaskPriority), 0x30);
}

#[test]
fn a_disabled_apic_takes_no_interrupts_but_signals() {
    let (mut apic, inbox) = (LocalApic::new(0, KHZ, 0), Inbox::new());
    inbox.post_vector(0x40, false);
    inbox.post(&Message { destination: Destination::All, delivery: Delivery::Nmi, vector: 0, level: false });
    assert!(apic.drain(&inbox).nmi);
    assert!(apic.is_quiet());
}

#[test]
fn vectors_of_exceptions_are_errors() {
    let (mut apic, inbox) = (xapic(), Inbox::new());
    set(&mut apic, Register::LvtError, 0xfe);
    inbox.post_vector(15, false);
    apic.drain(&inbox);
    assert_eq!(apic.highest(), Some(0xfe));
    assert_eq!(load(&mut apic, Register::ErrorStatus), 0);
    set(&mut apic, Register::ErrorStatus, 0);
    assert_eq!(load(&mut apic, Register::ErrorStatus), u64::from(error::RECEIVE_ILLEGAL_VECTOR));
    set(&mut apic, Register::ErrorStatus, 0);
    assert_eq!(load(&mut apic, Register::ErrorStatus), 0);
    assert_eq!(store(&mut apic, Register::Command, 1 << 18 | 3), Effect::None);
    set(&mut apic, Register::ErrorStatus, 0);
    assert_eq!(load(&mut apic, Register::ErrorStatus), u64::from(error::SEND_ILLEGAL_VECTOR));
}

#[test]
fn modes_change_as_the_manual_draws_it() {
    let xapic_base = LOCAL_APIC_BASE | apic_base::ENABLED | apic_base::BOOTSTRAP;
    let mut apic = xapic();
    assert_eq!(apic.base(), xapic_base);
    for wrong in [0, 1, LOCAL_APIC_BASE | apic_base::EXTENDED, 0xfee0_1800, xapic_base | 1 << 52, xapic_base | 1 << 9] {
        assert_eq!(apic.set_base(wrong), Err(Exception::GENERAL_PROTECTION), "{wrong:#x}");
    }
    assert_eq!(apic.set_base(X2APIC), Ok(Effect::Identity));
    assert_eq!(apic.base(), X2APIC | apic_base::BOOTSTRAP, "the bootstrap flag stays");
    assert_eq!(rdmsr(&apic, Register::Spurious), Some(0x1ff), "registers stay");
    assert!(apic.set_base(xapic_base).is_err());
    assert_eq!(apic.set_base(LOCAL_APIC_BASE), Ok(Effect::Identity));
    assert_eq!(apic.mode(), Mode::Disabled);
    assert!(apic.set_base(X2APIC).is_err());
    assert_eq!(apic.set_base(xapic_base), Ok(Effect::Identity));
    assert_eq!(load(&mut apic, Register::Spurious), 0xff, "disabling resets");
}

#[test]
fn each_mode_has_its_door() {
    let mut apic = xapic();
    assert_eq!(rdmsr(&apic, Register::Version), None);
    assert!(wrmsr(&mut apic, Register::EndOfInterrupt, 0).is_err());
    apic = x2apic(0);
    assert_eq!(load(&mut apic, Register::Version), u64::MAX);
    assert_eq!(store(&mut apic, Register::TaskPriority, 0xff), Effect::None);
    assert_eq!(apic.task_priority(), 0);
}

#[test]
fn x2apic_faults_where_xapic_ignores() {
    let mut apic = x2apic(0x25);
    assert_eq!(rdmsr(&apic, Register::Id), Some(0x25));
    assert_eq!(rdmsr(&apic, Register::LogicalDestination), Some(0x2_0020));
    for register in [Register::DestinationFormat, Register::CommandHigh, Register::SelfIpi, Register::EndOfInterrupt] {
        assert_eq!(rdmsr(&apic, register), None, "{register:?}");
    }
    for (register, value) in [
        (Register::Id, 0),
        (Register::LogicalDestination, 0),
        (Register::DestinationFormat, 0xf000_0000),
        (Register::EndOfInterrupt, 1),
        (Register::ErrorStatus, 1),
        (Register::TaskPriority, 0x100),
        (Register::SelfIpi, 0x100),
        (Register::Command, 1 << 20),
        (Register::LvtTimer, 1 << 19),
        (Register::InitialCount, 1 << 32),
        (Register::CurrentCount, 0),
    ] {
        assert_eq!(wrmsr(&mut apic, register, value), Err(Exception::GENERAL_PROTECTION), "{register:?} {value:#x}");
    }
    assert_eq!(apic.read_msr(0x8ff, 0), None);
    assert_eq!(apic.read_msr(0x810, 0), Some(0));
}

#[test]
fn interprocessor_interrupts() {
    let ipi = |destination, delivery, vector| Effect::Ipi(Message { destination, delivery, vector, level: false });
    let mut apic = xapic();
    set(&mut apic, Register::CommandHigh, 2 << 24);
    assert_eq!(store(&mut apic, Register::Command, 0x40fd), ipi(Destination::Physical(2), Delivery::Fixed, 0xfd));
    assert_eq!(load(&mut apic, Register::Command), 0x40fd);
    assert_eq!(load(&mut apic, Register::CommandHigh), 2 << 24);
    assert_eq!(store(&mut apic, Register::Command, 0x48fd), ipi(Destination::Logical(2), Delivery::Fixed, 0xfd));
    assert_eq!(store(&mut apic, Register::Command, 0xc4500), ipi(Destination::Others, Delivery::Init, 0));
    assert_eq!(store(&mut apic, Register::Command, 0x8500), Effect::None, "INIT level de-assert");
    assert_eq!(store(&mut apic, Register::Command, 0x4699), ipi(Destination::Physical(2), Delivery::StartUp, 0x99));
    assert_eq!(store(&mut apic, Register::Command, 0x4200), Effect::None, "SMI");
    assert_eq!(store(&mut apic, Register::Command, 0x4_00ec), Effect::None);
    assert_eq!(apic.highest(), Some(0xec), "self");

    let mut apic = x2apic(5);
    let to = |id: u64, low: u64| id << 32 | low;
    assert_eq!(
        wrmsr(&mut apic, Register::Command, to(9, 0xfb)),
        Ok(ipi(Destination::Physical(9), Delivery::Fixed, 0xfb))
    );
    assert_eq!(rdmsr(&apic, Register::Command), Some(to(9, 0xfb)));
    assert_eq!(
        wrmsr(&mut apic, Register::Command, to(0xffff_ffff, 0x400)),
        Ok(ipi(Destination::All, Delivery::Nmi, 0))
    );
    assert_eq!(wrmsr(&mut apic, Register::Command, to(5, 0x77)), Ok(Effect::None));
    assert_eq!(apic.highest(), Some(0x77));
    assert_eq!(wrmsr(&mut apic, Register::SelfIpi, 0x88), Ok(Effect::None));
    assert_eq!(apic.highest(), Some(0x88));
}

#[test]
fn timer_raises_its_vector() {
    let mut apic = xapic();
    set(&mut apic, Register::Divide, 0b1011);
    assert_eq!(store(&mut apic, Register::LvtTimer, 0xec), Effect::Timer);
    assert_eq!(store(&mut apic, Register::InitialCount, 1000), Effect::Timer);
    assert_eq!(apic.deadline(), Some(1000));
    apic.expire(999);
    assert!(apic.is_quiet());
    apic.expire(1000);
    assert_eq!((apic.highest(), apic.deadline()), (Some(0xec), None));
}

#[test]
fn tsc_deadline_in_the_past_fires_at_once() {
    let mut apic = x2apic(0);
    assert_eq!(wrmsr(&mut apic, Register::LvtTimer, 2 << 17 | 0xec), Ok(Effect::Timer));
    assert_eq!(apic.set_tsc_deadline(500, 400), Effect::Timer);
    assert_eq!((apic.tsc_deadline(), apic.deadline()), (500, Some(500)));
    assert_eq!(apic.set_tsc_deadline(500, 600), Effect::Timer);
    assert_eq!((apic.highest(), apic.tsc_deadline(), apic.deadline()), (Some(0xec), 0, None));
}

#[test]
fn software_disable_masks_the_table() {
    let mut apic = xapic();
    set(&mut apic, Register::LvtTimer, 0xec);
    set(&mut apic, Register::InitialCount, 1000);
    assert!(apic.deadline().is_some());
    set(&mut apic, Register::Spurious, 0xff);
    assert_eq!(load(&mut apic, Register::LvtTimer), u64::from(Lvt::MASKED | 0xec));
    assert_eq!(apic.deadline(), None);
    set(&mut apic, Register::LvtLint1, 0x400);
    assert_eq!(load(&mut apic, Register::LvtLint1), u64::from(Lvt::MASKED | 0x400), "no unmasking while disabled");
}

#[test]
fn init_keeps_id_and_mode() {
    let mut apic = x2apic(7);
    assert_eq!(wrmsr(&mut apic, Register::LvtTimer, 0x2_0020), Ok(Effect::Timer));
    apic.init();
    assert_eq!(apic.base(), X2APIC);
    assert_eq!(rdmsr(&apic, Register::Id), Some(7));
    assert_eq!(rdmsr(&apic, Register::Spurious), Some(0xff));
    assert_eq!(rdmsr(&apic, Register::LvtTimer), Some(u64::from(Lvt::MASKED)));
}

#[test]
fn odd_accesses_do_no_harm() {
    let mut apic = xapic();
    assert_eq!(apic.write_memory(0x80, 1, 0x55, 0), Effect::None);
    assert_eq!(apic.write_memory(0x81, 4, 0x55, 0), Effect::None);
    assert_eq!(load(&mut apic, Register::TaskPriority), 0);
    assert_eq!(apic.read_memory(0x32, 1, 0), 0x05, "a byte of the version");
    assert_eq!(apic.read_memory(0x3f, 2, 0), 0);
    assert_eq!(apic.read_memory(0x00, 4, 0), 0);
    set(&mut apic, Register::ErrorStatus, 0);
    assert_eq!(load(&mut apic, Register::ErrorStatus), u64::from(error::ILLEGAL_REGISTER));
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Store(u64, u8, u64),
    Load(u64, u8),
    Write(u32, u64),
    Read(u32),
    Base(u64),
    Deadline(u64),
    Offset(u64),
    Post(u8, bool),
    Cr8(u8),
    Take,
    Expire,
}

fn step() -> impl Strategy<Value = Step> {
    let value = prop_oneof![any::<u64>(), 0..0x20000_u64, Just(0_u64)];
    let base = (0..16_u64).prop_map(|flags| LOCAL_APIC_BASE | flags << 8);
    prop_oneof![
        4 => (0..0x400_u64, 0..9_u8, value.clone()).prop_map(|(offset, size, value)| Step::Store(offset, size, value)),
        4 => (0..0x40_u64, value.clone()).prop_map(|(register, value)| Step::Store(register << 4, 4, value)),
        2 => (any::<u64>(), 0..9_u8).prop_map(|(offset, size)| Step::Load(offset, size)),
        4 => (0x7ff..0x842_u32, value.clone()).prop_map(|(index, value)| Step::Write(index, value)),
        2 => (0x7ff..0x842_u32).prop_map(Step::Read),
        1 => prop_oneof![any::<u64>(), base].prop_map(Step::Base),
        1 => any::<u64>().prop_map(Step::Deadline),
        1 => any::<u64>().prop_map(Step::Offset),
        4 => (any::<u8>(), any::<bool>()).prop_map(|(vector, level)| Step::Post(vector, level)),
        1 => any::<u8>().prop_map(Step::Cr8),
        4 => Just(Step::Take),
        1 => Just(Step::Expire),
    ]
}

proptest! {
    /// Whatever the guest writes: no panic, no vector of an exception, never one that the priority forbids.
    #[test]
    fn hostile_guests_get_nowhere(
        id in 0..64_u32,
        khz: u32,
        steps in proptest::collection::vec((step(), any::<u64>()), 0..100),
    ) {
        let (mut apic, inbox) = (LocalApic::new(id, khz, 0), Inbox::new());
        for (step, now) in steps {
            let effect = match step {
                Step::Store(offset, size, value) => apic.write_memory(offset, size, value, now),
                Step::Load(offset, size) => { let _ = apic.read_memory(offset, size, now); Effect::None }
                Step::Write(index, value) => apic.write_msr(index, value, now).unwrap_or(Effect::None),
                Step::Read(index) => { let _ = apic.read_msr(index, now); Effect::None }
                Step::Base(value) => apic.set_base(value).unwrap_or(Effect::None),
                Step::Deadline(value) => apic.set_tsc_deadline(value, now),
                Step::Offset(value) => { apic.set_tsc_offset(value, now); Effect::None }
                Step::Post(vector, level) => { inbox.post_vector(vector, level); apic.drain(&inbox); Effect::None }
                Step::Cr8(class) => { apic.set_task_priority(class); Effect::None }
                Step::Expire => { apic.expire(now); Effect::None }
                Step::Take => {
                    if let Some(vector) = apic.highest() {
                        prop_assert!(vector >= 16 && vector >> 4 > apic.task_priority());
                        apic.accept(vector);
                        prop_assert!(apic.highest().is_none_or(|next| next >> 4 > vector >> 4));
                    }
                    Effect::None
                }
            };
            if let Effect::Ipi(message) = effect {
                prop_assert!(message.delivery.takes(message.vector));
            }
            prop_assert_eq!(apic.base() & !0xfff, LOCAL_APIC_BASE);
        }
    }
}
