//! The cases, by what they are about.

mod attacks;
mod doorbells;
mod ends;
mod exits;
mod handshake;
mod interrupts;
mod memory;
mod run;
mod vcpu;
mod vm;

use crate::case::Case;

pub(crate) use ends::spin;

/// All cases, in the order in which they are tried: what the later ones build on comes first.
pub(crate) fn all() -> impl Iterator<Item = &'static Case> {
    [
        handshake::CASES,
        vm::CASES,
        memory::CASES,
        vcpu::CASES,
        exits::CASES,
        run::CASES,
        interrupts::CASES,
        doorbells::CASES,
        ends::CASES,
        attacks::CASES,
    ]
    .into_iter()
    .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_cases_apart_and_every_case_says_what_it_shows() {
        let mut names: Vec<_> = all().map(|case| case.name).collect();
        assert!(all().all(|case| case.name.contains('/') && !case.shows.is_empty()));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
