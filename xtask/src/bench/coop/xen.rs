//! Debian's Xen, unpacked from its package; nothing is installed.

use std::path::PathBuf;

use covisor_guest_images::apt::{self, Apt};
use covisor_guest_images::command::Cmd;
use covisor_guest_images::error::Error as BuildError;
use covisor_guest_images::fs;

use super::guest::Measured;
use super::{Available, CMDLINE, INITRD, KERNEL, MEMORY_MIB, NotAvailable, Parts};
use crate::bench::figure::{Figure, XEN_PV};
use crate::bench::{BenchError, machine};
use crate::env::Env;
use crate::error::Result;

/// The release and its package with Xen 4.17.
const RELEASE: &str = "bookworm";
const PACKAGE: &str = "xen-hypervisor-4.17-amd64";

/// The hypervisor in the package.
const PACKED: &str = "boot/xen-4.17-amd64.gz";

/// What Xen has for itself.
const XEN_MEMORY_MIB: u32 = 1024;

/// What Xen prints just before it unpacks dom0's kernel.
const BEFORE_UNPACKING: &str = "*** Building a PV Dom0 ***";

/// The kernel as Xen's paravirtual dom0.
pub(super) fn run(parts: &Parts<'_>) -> Result<Available<Vec<Figure>>> {
    let xen = match fetch(parts.env) {
        Ok(xen) => xen,
        Err(error) => return Ok(Err(NotAvailable::because(error))),
    };
    // Debian's cloud kernel is built without what makes a dom0 of a kernel: it has no console but the one for early messages.
    let modules = format!("{KERNEL} {},{INITRD}", module_words(&format!("earlyprintk=xen,keep {CMDLINE}")));
    let machine = machine::Machine {
        what: XEN_PV,
        board: "q35",
        cpu: &parts.cpu,
        memory_mib: MEMORY_MIB + XEN_MEMORY_MIB,
        dir: &parts.dir,
        kernel: &xen.to_string_lossy(),
        initrd: &modules,
        // Each line of Xen's begins with the time stamp counter.
        cmdline: &format!("dom0_mem={MEMORY_MIB}M console=com1 com1=115200 loglvl=info console_timestamps=raw"),
    };
    let mut measured = Measured::default();
    let mut unpacking = None;
    let step = parts.step(XEN_PV);
    machine.find(|line| {
        if line.contains(BEFORE_UNPACKING) {
            unpacking = counter(line);
        }
        measured.hear(line).then_some(())
    })?;
    step.done();
    let unpacking = unpacking.ok_or_else(|| BenchError::NoFigure {
        what: XEN_PV.to_owned(),
        output: format!("no time stamp counter before `{BEFORE_UNPACKING}`"),
    })?;
    Ok(Ok(measured.figures(XEN_PV, unpacking)?))
}

/// Words for a module in QEMU's list of modules, which commas separate: a comma of a word is written twice.
fn module_words(words: &str) -> String {
    words.replace(',', ",,")
}

/// The counter that a line of Xen's begins with: `(XEN) [0000000023bc92f3] text`.
fn counter(line: &str) -> Option<u64> {
    let (number, _) = line.split_once("(XEN) [")?.1.split_once(']')?;
    u64::from_str_radix(number, 16).ok()
}

/// Xen as it was fetched before, or fetches it. QEMU wants it unpacked.
fn fetch(env: &Env) -> std::result::Result<PathBuf, BuildError> {
    let dir = env.out.join("xen");
    let xen = dir.join("xen");
    let _lock = fs::Lock::take(dir.join("lock"))?;
    if xen.exists() {
        return Ok(xen);
    }
    let step = env.progress.step("fetching Xen");
    let apt = Apt::new(&dir.join("apt"), &apt::machine_sources(RELEASE)?)?;
    apt.update(&step)?;
    let deb = apt.download(PACKAGE, &dir, &step)?;
    let tree = dir.join("tree");
    fs::remove(&tree)?;
    fs::create_dir_all(&tree)?;
    Cmd::new("dpkg-deb").arg("-x").arg(&deb).arg(&tree).run(&step)?;
    let packed = tree.join(PACKED);
    Cmd::new("gunzip").arg(&packed).run(&step)?;
    fs::rename(packed.with_extension(""), &xen)?;
    for rest in [tree, dir.join("apt"), deb] {
        fs::remove(rest)?;
    }
    step.done();
    Ok(xen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_xens_begins_with_the_counter() {
        assert_eq!(counter("(XEN) [0000000023bc92f3] *** Building a PV Dom0 ***"), Some(0x23bc_92f3));
        assert_eq!(counter("\u{1b}[H(XEN) [00000000000000ff] text"), Some(0xff));
        assert_eq!(counter("(XEN) *** Building a PV Dom0 ***"), None);
    }

    #[test]
    fn commas_in_a_module_s_words_are_doubled() {
        assert_eq!(module_words("earlyprintk=xen,keep quiet"), "earlyprintk=xen,,keep quiet");
    }
}
