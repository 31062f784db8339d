//! The user side of covisor: the command line, the kernel loaders, the machine and its devices.
//!
//! | module | concept |
//! |---|---|
//! | `cli` | the commands, their arguments, exit statuses |
//! | `run` | a machine from its configuration to its end: console, signals, reboots, `--exec` |
//! | `machine` | which device is where, the vCPUs' threads |
//! | `vcpu` | the run loop of one vCPU |
//! | `driver` | the driver's calls with types |
//! | `kernel` | from a kernel file to the first instruction |
//! | `layout`, `acpi`, `firmware` | what lies where in guest memory, and what the guest is told of it |
//! | `platform` | buses, interrupts and doorbells, as the devices see them |
//! | `devices` | the devices |
//! | `disk` | what is a disk on the host: image formats, devices |
//! | `net` | what network adapters are connected to |
//! | `share` | folders of the host's that a guest sees: FUSE's messages, and who answers them |
//! | `rootfs` | root file systems for guests, made of packages or archives |
//! | `control` | what `covisor ps` and `covisor stop` say to a running machine |
//! | `sys` | what depends on the host operating system |

pub mod acpi;
pub mod cli;
pub mod control;
pub mod devices;
pub mod disk;
pub mod driver;
pub mod firmware;
pub mod kernel;
pub mod layout;
pub mod machine;
pub mod net;
pub mod platform;
pub mod rootfs;
pub mod run;
pub mod share;
pub mod sys;
pub mod vcpu;
