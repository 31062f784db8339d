//! What every driver has to do with the device's calls: the list of `tests/conformance`, on the emulated machines, where the Linux
//! module has engines that run guests. The same list is tried under Wine ([`crate::wine`]).

use xtask::scenario::Scenario;

use crate::checked::{Checked, ensure, told};
use crate::host::{Host, on_host};

/// The scenarios about the device's calls.
pub(crate) const SCENARIOS: &[Scenario] =
    &[Scenario::new("conformance/linux", |env, kind| on_host(env, kind, conformance))];

/// Seconds that each attack by random numbers goes on: see [`crate::hostile`].
const ATTACK_SECONDS: &str = "0.3";

pub(crate) fn conformance(host: &mut Host) -> Checked {
    let all = host.output("./conformance list")?;
    let outcome = host.sh(&format!("exec ./conformance run --attack {ATTACK_SECONDS}"))?;
    let result = check(&all, &outcome.stdout_text());
    ensure!(outcome.status == 0 && result.is_ok(), "{}\n{}", result.err().unwrap_or_default(), told(&outcome));
    Ok(())
}

/// Checks that every case of the list passed.
pub(crate) fn check(all: &str, said: &str) -> Result<(), String> {
    let failed: Vec<&str> = said.lines().filter(|line| line.starts_with("fail ")).collect();
    if !failed.is_empty() {
        return Err(failed.join("\n"));
    }
    let passed = |name: &str| said.lines().any(|line| line.strip_prefix("pass ") == Some(name));
    let missing: Vec<&str> = all.lines().filter(|name| !passed(name)).collect();
    match &missing[..] {
        [] if all.lines().next().is_some() => Ok(()),
        [] => Err("there are no cases".to_owned()),
        _ => Err(format!("these cases were not tried to their end: {}", missing.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_has_to_pass() {
        let all = "a/b\na/c\n";
        assert_eq!(check(all, "pass a/b\npass a/c\n2 passed, 0 failed\n"), Ok(()));
        assert_eq!(check(all, "pass a/b\nfail a/c: x\n1 passed, 1 failed\n"), Err("fail a/c: x".to_owned()));
        assert!(check(all, "pass a/b\n1 passed, 0 failed\n").unwrap_err().contains("a/c"));
        assert!(check("", "0 passed, 0 failed\n").is_err());
    }
}
