//! The interrupt controllers: each vCPU's local APIC, the I/O APIC, and message-signalled interrupts.

mod inbox;
mod ioapic;
mod lapic;
mod message;
pub mod msi;
pub mod registers;
mod timer;
mod vectors;

#[cfg(test)]
mod lapic_tests;

pub use inbox::Identity;
pub use inbox::Inbox;
pub use inbox::Mode;
pub use inbox::Signals;
pub use ioapic::IoApic;
pub use ioapic::Trigger;
pub use lapic::Effect;
pub use lapic::LocalApic;
pub use lapic::X2APIC_FIRST_MSR;
pub use lapic::X2APIC_LAST_MSR;
pub use message::Delivery;
pub use message::Destination;
pub use message::Message;
pub use timer::BUS_KHZ;
pub use timer::MIN_PERIOD_NS;
