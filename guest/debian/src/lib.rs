//! What makes a Debian a guest of covisor's: where its packages come from, which there are to be, and its settings.
//!
//! `covisor create --from debian` makes guests of it, and the tests' own Debian is made of it, too.

pub mod programs;
pub mod recipe;
pub mod settings;
pub mod sources;
