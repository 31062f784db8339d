//! Tells the program which state of its source it is built from: git's commit, where there is one.

use std::process::Command;

fn main() {
    // Not git's own files: a commit that changes nothing here is no reason to build this anew.
    for source in ["build.rs", "src", "../Cargo.lock"] {
        println!("cargo::rerun-if-changed={source}");
    }
    let commit = git(&["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]);
    println!("cargo::rustc-env=COVISOR_COMMIT={}", commit.as_deref().unwrap_or("a source without history"));
}

/// What git says, if it does.
fn git(words: &[&str]) -> Option<String> {
    let output = Command::new("git").args(words).output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (!text.is_empty()).then_some(text)
}
