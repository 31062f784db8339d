//! The `covisor` command.

fn main() {}
