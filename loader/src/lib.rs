//! The user side of covisor: the command line, the kernel loaders, the machine and its devices.
