//! The user side of covisor: the command line, the kernel loaders, the machine and its devices.

pub mod acpi;
pub mod devices;
pub mod driver;
pub mod kernel;
pub mod layout;
pub mod platform;
pub mod sys;
pub mod vcpu;
