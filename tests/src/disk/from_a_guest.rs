//! Images that a guest has written are as QEMU's tools have them.
//!
//! Each image of random kind has a twin, a raw file with the same on it, made by `qemu-img`. A guest has many such pairs and writes
//! the same to both disks of each. Then `qemu-img` has to find the image whole and like its twin, and so does covisor.

use std::fs;

use xtask::rig::{Rig, RigKind};
use xtask::run::shell_word;
use xtask::scenario::Verdict;
use xtask::{Env, Result, work};

use crate::checked::{Checked, ensure, told, verdict};
use crate::debian::with_libraries;
use crate::host::{Host, MINI, in_folder, on_own_host};
use crate::images::{Random, in_folder as in_lab, random_image};

/// Pairs of disks that a guest has at a time: a bus has not many more slots.
const PAIRS: usize = 12;
/// Random ranges that it writes to each, and rounds that it is started for.
const RANGES: u32 = 16;
const ROUNDS: u32 = 2;
/// Sectors of an image at most, beside those that each has.
const MOST_SECTORS: u64 = 5000;

/// As many images as are asked for.
pub(super) fn scenario(env: &Env, kind: RigKind, images: u64) -> Result<Verdict> {
    let mut names = Vec::new();
    let mut result = Ok(Verdict::Pass);
    let in_lab = in_lab(env, &format!("guest-{}-{images}", kind.engine()), |lab| {
        let mut files = Vec::new();
        for seed in 0..images {
            let image = random_image(lab, &mut Random::of(seed + 1000), seed, MOST_SECTORS)?;
            files.extend([image.name.clone(), image.base]);
            names.push(image.name);
        }
        files.retain(|name| fs::exists(lab.path(name)).unwrap_or(false));
        let with_images = |rig: Rig| {
            let mut rig = rig.memory_mib(2048).file(work::program(env)?, in_folder("guest-work"));
            for name in &files {
                rig = rig.file(lab.path(name), in_folder(&format!("images/{name}")));
            }
            for file in with_libraries("qemu-img")? {
                let name = file.to_string_lossy().into_owned();
                rig = rig.file(file, name);
            }
            Ok(rig)
        };
        result = on_own_host(env, kind, with_images, |host| {
            names.chunks(PAIRS).enumerate().try_for_each(|(number, pairs)| written(host, number, pairs))
        });
        Ok(())
    });
    match verdict(in_lab)? {
        Verdict::Pass => result,
        other => Ok(other),
    }
}

fn written(host: &mut Host, number: usize, names: &[String]) -> Checked {
    let qemu_img = with_libraries("qemu-img")?.pop().unwrap_or_default();
    let qemu_img = qemu_img.display();
    let all = names.join(" ");
    host.output(&format!("cd images; for name in {all}; do {qemu_img} convert -O raw $name $name.raw || exit; done"))?;
    let disks: String = names.iter().map(|name| format!("--disk images/{name} --disk images/{name}.raw ")).collect();
    for round in 0..ROUNDS {
        let command = format!(
            "cat >/tmp/work; chmod +x /tmp/work; set -- $(ls /dev/vd*); i=0
            while [ $# -gt 0 ]; do
                /tmp/work twins $1 $2 $((i + {})) {RANGES} || exit
                shift 2; i=$((i + 1))
            done",
            number * 1000 + usize::try_from(round).unwrap_or(0) * 100
        );
        let outcome = host.sh(&format!("exec ./covisor {MINI} {disks} --exec {} <guest-work", shell_word(&command)))?;
        let done = outcome.stdout_text().lines().filter(|line| line.starts_with("twins: ")).count();
        ensure!(outcome.status == 0 && done == names.len(), "{}", told(&outcome));
        host.output(&format!(
            "cd images; for name in {all}; do
                {qemu_img} check -q $name && {qemu_img} compare -q -F raw $name $name.raw && ../covisor image check $name >/dev/null &&
                ../covisor image convert --to raw $name copy && cmp copy $name.raw && rm copy || {{ echo $name >&2; exit 1; }}
            done"
        ))?;
    }
    // And the other way: what QEMU makes of the twin is what we read, and what we make is what QEMU reads.
    host.output(&format!(
        "cd images; for name in {all}; do
            {qemu_img} convert -f raw -O qcow2 $name.raw made.qcow2 && ../covisor image convert --to raw made.qcow2 copy && cmp copy $name.raw &&
            rm made.qcow2 copy && ../covisor image convert --from raw $name.raw made.qcow2 && {qemu_img} check -q made.qcow2 &&
            {qemu_img} compare -q -F raw made.qcow2 $name.raw && rm made.qcow2 $name.raw || {{ echo $name >&2; exit 1; }}
        done"
    ))
    .map(drop)
}
