//! The user side of covisor: the command line, the kernel loaders, the machine and its devices.

pub mod acpi;
pub mod cli;
pub mod control;
pub mod devices;
pub mod driver;
pub mod firmware;
pub mod kernel;
pub mod layout;
pub mod machine;
pub mod platform;
pub mod run;
pub mod sys;
pub mod vcpu;
