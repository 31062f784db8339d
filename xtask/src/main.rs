//! `cargo xtask`: set-up, build, run, test, bench.

fn main() {}
