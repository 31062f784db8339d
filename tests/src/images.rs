//! Disk images, on the machine that builds: QEMU's `qemu-img` and `qemu-io` are the referees.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use covisor::disk::{self, BlockBackend, Format};
use vm_memory::VolatileSlice;
use xtask::scenario::Scenario;
use xtask::{Env, Error, build, setup};

use crate::checked::{Checked, ensure, verdict};

/// The scenarios about images.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario::new("images/fifty-random-ones-are-as-qemu-has-them", |env, _| {
        verdict(in_folder(env, "random", fifty_random))
    }),
    Scenario::new("images/other-formats-are-read-as-qemu-reads-them", |env, _| {
        verdict(in_folder(env, "formats", other_formats))
    }),
    Scenario::new("images/qemu-and-covisor-keep-each-other-out", |env, _| verdict(in_folder(env, "locks", locks))),
    Scenario::new("images/bad-ones-are-refused-in-one-line", |env, _| verdict(in_folder(env, "bad", bad_ones))),
];

/// Random images.
const IMAGES: u64 = 50;
/// Random writes into each, by QEMU and then by us.
const WRITES: u64 = 12;
const SECTOR: u64 = 512;

/// Numbers that look random, the same for a seed each time.
pub(crate) struct Random(u64);

impl Random {
    /// What a seed gives.
    pub(crate) fn of(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
}

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        // A linear congruential generator by Knuth's constants; its upper bits are good.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    fn pick<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[usize::try_from(self.below(choices.len() as u64)).unwrap_or(0)]
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(1 + self.below(255)).unwrap_or(1)
    }
}

/// A folder for images, and covisor.
pub(crate) struct Lab {
    folder: PathBuf,
    covisor: PathBuf,
}

pub(crate) fn in_folder(env: &Env, name: &str, check: impl FnOnce(&Lab) -> Checked) -> Checked {
    setup::ensure_for_images(env)?;
    let lab = Lab { folder: env.out.join("images-test").join(name), covisor: build::loader(env)? };
    // What an earlier run left.
    let _ = fs::remove_dir_all(&lab.folder);
    fs::create_dir_all(&lab.folder).map_err(|error| seen(&lab.folder, &error))?;
    check(&lab)?;
    // Nothing depends on it any more.
    let _ = fs::remove_dir_all(&lab.folder);
    Ok(())
}

fn seen(path: &Path, error: &dyn std::fmt::Display) -> crate::checked::Failure {
    crate::checked::Failure::Seen(format!("{}: {error}", path.display()))
}

impl Lab {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Runs a program in the folder, whatever comes of it.
    fn run(&self, program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Checked<Output> {
        let name = program.as_ref().to_string_lossy().into_owned();
        let output = Command::new(program).args(arguments).current_dir(&self.folder).output();
        output.map_err(|source| Error::from(covisor_guest_images::Error::Start { program: name, source }).into())
    }

    /// Runs one that has to succeed.
    fn good(&self, program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Checked<String> {
        let name = program.as_ref().to_string_lossy().into_owned();
        let output = self.run(program, arguments)?;
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "{name} {} ended with {}:\n{text}", arguments.join(" "), output.status);
        Ok(text)
    }

    fn covisor(&self, arguments: &[&str]) -> Checked<String> {
        self.good(&self.covisor, arguments)
    }

    fn qemu_img(&self, arguments: &[&str]) -> Checked<String> {
        self.good("qemu-img", arguments)
    }

    fn read(&self, name: &str) -> Checked<Vec<u8>> {
        fs::read(self.path(name)).map_err(|error| seen(&self.path(name), &error))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Checked {
        fs::write(self.path(name), bytes).map_err(|error| seen(&self.path(name), &error))
    }

    /// A disk for us.
    fn open(&self, name: &str) -> Checked<Box<dyn BlockBackend>> {
        disk::open(&self.path(name), Some(Format::Qcow2), false).map_err(|error| seen(&self.path(name), &error))
    }

    /// Both find the image whole, and hold that its disk has these bytes.
    fn is(&self, name: &str, expected: &[u8], model: &str) -> Checked {
        self.write(model, expected)?;
        self.qemu_img(&["check", "-q", name])?;
        self.qemu_img(&["compare", "-q", "-F", "raw", name, model])?;
        self.covisor(&["image", "check", name])?;
        let copy = format!("{model}.copy");
        self.covisor(&["image", "convert", "--to", "raw", name, &copy])?;
        ensure!(self.read(&copy)? == expected, "covisor reads {name} otherwise than qemu-img");
        fs::remove_file(self.path(&copy)).map_err(|error| seen(&self.path(&copy), &error))
    }
}

/// A sector, and how many from it on.
fn range(random: &mut Random, sectors: u64) -> (u64, u64) {
    let start = random.below(sectors);
    (start, (1 + random.below(300)).min(sectors - start))
}

fn fifty_random(lab: &Lab) -> Checked {
    for seed in 0..IMAGES {
        one_random(lab, seed)?;
    }
    Ok(())
}

/// An image of random kind, written by QEMU, then by us; and copied by us, and looked at by QEMU.
fn one_random(lab: &Lab, seed: u64) -> Checked {
    let random = &mut Random::of(seed);
    let RandomImage { name, base, sectors } = random_image(lab, random, seed, 14_000)?;
    let model = format!("{seed}.raw");
    lab.qemu_img(&["convert", "-O", "raw", &name, &model])?;
    let mut expected = lab.read(&model)?;
    lab.is(&name, &expected, &model)?;
    let mut disk = lab.open(&name)?;
    for _ in 0..WRITES {
        let (start, count) = range(random, sectors);
        let at = usize::try_from(start * SECTOR).unwrap_or(0);
        let length = usize::try_from(count * SECTOR).unwrap_or(0);
        let wrong = |error: std::io::Error| seen(&lab.path(&name), &error);
        let byte = if random.below(3) == 0 {
            disk.write_zeroes(start * SECTOR, count * SECTOR, random.below(2) == 0).map_err(wrong)?;
            0
        } else {
            let byte = random.byte();
            let mut bytes = vec![byte; length];
            disk.write_at(start * SECTOR, &[VolatileSlice::from(bytes.as_mut_slice())]).map_err(wrong)?;
            byte
        };
        expected[at..at + length].fill(byte);
        if random.below(4) == 0 {
            disk.flush().map_err(wrong)?;
        }
    }
    drop(disk);
    lab.is(&name, &expected, &model)?;
    // And the other way: QEMU takes what we make.
    let made = format!("{seed}-made.qcow2");
    lab.covisor(&["image", "convert", "--from", "raw", &model, &made])?;
    lab.is(&made, &expected, &model)?;
    qemu_writes(lab, random, &made, "qcow2", sectors)?;
    lab.qemu_img(&["convert", "-O", "raw", &made, &model])?;
    let expected = lab.read(&model)?;
    lab.is(&made, &expected, &model)?;
    for file in [&name, &base, &model, &made] {
        // Not each has a base.
        let _ = fs::remove_file(lab.path(file));
    }
    Ok(())
}

/// An image that QEMU has made and written.
pub(crate) struct RandomImage {
    /// Its file.
    pub(crate) name: String,
    /// The file of what it is based on, if it is.
    pub(crate) base: String,
    /// The disk's size.
    pub(crate) sectors: u64,
}

/// Makes an image of random kind.
pub(crate) fn random_image(lab: &Lab, random: &mut Random, seed: u64, most_sectors: u64) -> Checked<RandomImage> {
    let sectors = 2048 + random.below(most_sectors);
    let cluster = random.pick(&["512", "4k", "64k", "64k", "2M"]);
    let version = random.pick(&["1.1", "1.1", "0.10"]);
    let refcounts = if version == "1.1" { random.pick(&["16", "16", "1", "64"]) } else { "16" };
    let options = format!("cluster_size={cluster},compat={version},refcount_bits={refcounts}");
    let size = (sectors * SECTOR).to_string();
    let name = format!("{seed}.qcow2");
    let base = format!("{seed}-base");
    match random.below(4) {
        // Over another, which may be smaller.
        kind @ (0 | 1) => {
            let format = if kind == 0 { "raw" } else { "qcow2" };
            let base_size = (1024 + random.below(4096)) * SECTOR;
            lab.qemu_img(&["create", "-q", "-f", format, &base, &base_size.to_string()])?;
            qemu_writes(lab, random, &base, format, base_size / SECTOR)?;
            lab.qemu_img(&["create", "-q", "-f", "qcow2", "-o", &options, "-b", &base, "-F", format, &name, &size])?;
        }
        _ => drop(lab.qemu_img(&["create", "-q", "-f", "qcow2", "-o", &options, &name, &size])?),
    }
    qemu_writes(lab, random, &name, "qcow2", sectors)?;
    if random.below(4) == 0 {
        let packed = format!("{name}.packed");
        lab.qemu_img(&["convert", "-c", "-O", "qcow2", "-o", &options, &name, &packed])?;
        fs::rename(lab.path(&packed), lab.path(&name)).map_err(|error| seen(&lab.path(&packed), &error))?;
    }
    if refcounts == "16" && random.below(4) == 0 {
        lab.qemu_img(&["snapshot", "-c", "before", &name])?;
    }
    Ok(RandomImage { name, base, sectors })
}

/// Writes into an image by QEMU.
fn qemu_writes(lab: &Lab, random: &mut Random, name: &str, format: &str, sectors: u64) -> Checked {
    let mut arguments = vec!["-f".to_owned(), format.to_owned()];
    for _ in 0..WRITES {
        let (start, count) = range(random, sectors);
        let what = match random.below(4) {
            0 => "write -z".to_owned(),
            _ => format!("write -P {}", random.byte()),
        };
        arguments.extend(["-c".to_owned(), format!("{what} {} {}", start * SECTOR, count * SECTOR)]);
    }
    arguments.push(name.to_owned());
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    lab.good("qemu-io", &arguments).map(drop)
}

fn other_formats(lab: &Lab) -> Checked {
    /// Formats, and options for making one by `qemu-img`.
    const KINDS: [(&str, &str, &str); 8] = [
        ("vhdx", "dynamic.vhdx", "subformat=dynamic"),
        ("vhdx", "fixed.vhdx", "subformat=fixed"),
        ("vhdx", "large.vhdx", "block_size=32M"),
        ("vmdk", "sparse.vmdk", "subformat=monolithicSparse"),
        ("vmdk", "stream.vmdk", "subformat=streamOptimized"),
        ("vmdk", "flat.vmdk", "subformat=monolithicFlat"),
        ("vmdk", "split.vmdk", "subformat=twoGbMaxExtentSparse"),
        ("vmdk", "split-flat.vmdk", "subformat=twoGbMaxExtentFlat"),
    ];
    let sectors = 100_000;
    lab.qemu_img(&["create", "-q", "-f", "raw", "disk.raw", &(sectors * SECTOR).to_string()])?;
    let mut random = Random(5);
    for _ in 0..4 {
        qemu_writes(lab, &mut random, "disk.raw", "raw", sectors)?;
    }
    let expected = lab.read("disk.raw")?;
    for (format, name, options) in KINDS {
        lab.qemu_img(&["convert", "-O", format, "-o", options, "disk.raw", name])?;
        lab.covisor(&["image", "check", name])?;
        lab.covisor(&["image", "convert", name, "copy.qcow2"])?;
        lab.qemu_img(&["convert", "-O", "raw", "copy.qcow2", "copy.raw"])?;
        // Its last block may be larger than the disk was.
        let copy = lab.read("copy.raw")?;
        ensure!(copy == expected, "covisor reads {name} otherwise than qemu-img, which has made it");
        for file in ["copy.qcow2", "copy.raw"] {
            fs::remove_file(lab.path(file)).map_err(|error| seen(&lab.path(file), &error))?;
        }
    }
    Ok(())
}

fn locks(lab: &Lab) -> Checked {
    lab.covisor(&["image", "create", "base.qcow2", "16"])?;
    lab.covisor(&["image", "create", "--backing", "base.qcow2", "top.qcow2"])?;
    let disk = lab.open("top.qcow2")?;
    for name in ["top.qcow2", "base.qcow2"] {
        let output = lab.run("qemu-io", &["-f", "qcow2", "-c", "write 0 512", name])?;
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(text.contains("lock"), "QEMU may write {name} while covisor has it: {text}");
    }
    drop(disk);
    lab.good("qemu-io", &["-f", "qcow2", "-c", "write 0 512", "base.qcow2"])?;
    Ok(())
}

/// Bad images: a name, what is to be at a place of a good one, and a word of the message. Places and values are hexadecimal.
const BAD: [(&str, usize, &[u8], &str); 13] = [
    ("other-magic", 0, b"QFIX", "no qcow2 image"),
    ("version-9", 4, &[0, 0, 0, 9], "version 9"),
    ("clusters-of-2-to-the-63", 20, &[0, 0, 0, 63], "2^63"),
    ("absurd-size", 24, &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe, 0], "too small for"),
    ("no-size", 24, &[0; 8], "empty"),
    ("encrypted", 32, &[0, 0, 0, 2], "encrypted"),
    ("absurd-l1-table", 36, &[0xff; 4], "L1 table"),
    ("l1-table-elsewhere", 40, &[0x7f, 0, 0, 0, 0, 0, 0, 0], "L1 table"),
    ("absurd-refcount-table", 56, &[0xff; 4], "refcounts"),
    ("too-many-snapshots", 60, &[0xff; 4], "snapshots"),
    ("data-elsewhere", 72, &[0, 0, 0, 0, 0, 0, 0, 4], "another file"),
    ("unknown-feature", 72, &[0, 1, 0, 0, 0, 0, 0, 0], "feature 48"),
    ("refcounts-of-128-bits", 96, &[0, 0, 0, 7], "64 bits"),
];

fn bad_ones(lab: &Lab) -> Checked {
    lab.qemu_img(&["create", "-q", "-f", "qcow2", "good.qcow2", "64M"])?;
    lab.good("qemu-io", &["-f", "qcow2", "-c", "write -P 1 0 1M", "good.qcow2"])?;
    let good = lab.read("good.qcow2")?;
    for (name, at, value, word) in BAD {
        let mut bytes = good.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        lab.write("bad.qcow2", &bytes)?;
        refused(lab, name, &["image", "convert", "bad.qcow2", "copy.raw"], word)?;
        refused(lab, name, &["image", "info", "--format", "qcow2", "bad.qcow2"], word)?;
    }
    for length in [0, 4, 100, 70_000, good.len() / 2] {
        lab.write("bad.qcow2", &good[..length])?;
        refused(lab, &format!("cut at {length}"), &["image", "convert", "bad.qcow2", "copy.raw"], "bad.qcow2")?;
    }
    // Two that are based on each other.
    lab.qemu_img(&["create", "-q", "-u", "-f", "qcow2", "-b", "b.qcow2", "-F", "qcow2", "a.qcow2", "64M"])?;
    lab.qemu_img(&["create", "-q", "-u", "-f", "qcow2", "-b", "a.qcow2", "-F", "qcow2", "b.qcow2", "64M"])?;
    refused(lab, "cycle", &["image", "convert", "a.qcow2", "copy.raw"], "based on itself")?;
    lab.qemu_img(&["create", "-q", "-u", "-f", "qcow2", "-b", "nbd://host/x", "-F", "raw", "n.qcow2", "64M"])?;
    refused(lab, "network", &["image", "convert", "n.qcow2", "copy.raw"], "no file's name")?;
    lab.qemu_img(&["create", "-q", "-u", "-f", "qcow2", "-b", "/dev/zero", "-F", "raw", "z.qcow2", "64M"])?;
    refused(lab, "device", &["image", "convert", "z.qcow2", "copy.raw"], "/dev/zero")?;
    lab.write("shadow.vmdk", b"# Disk DescriptorFile\nversion=1\nRW 2048 FLAT \"/etc/shadow\" 0\n")?;
    refused(lab, "extent elsewhere", &["image", "convert", "shadow.vmdk", "copy.raw"], "beside the descriptor")?;
    lab.write("bad.vhdx", &[b"vhdxfile".to_vec(), vec![0; 1 << 20]].concat())?;
    refused(lab, "vhdx", &["image", "convert", "bad.vhdx", "copy.raw"], "headers")?;
    ensure!(!lab.path("copy.raw").exists(), "a target is left");
    Ok(())
}

/// One line that names what is wrong, and the status of a wrong configuration.
fn refused(lab: &Lab, name: &str, arguments: &[&str], word: &str) -> Checked {
    let output = lab.run(&lab.covisor, arguments)?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(1)
            && text.lines().count() == 1
            && text.starts_with("covisor: error: ")
            && text.contains(word)
            && !text.contains("os error"),
        "{name}: `covisor {}` should be refused by one line with {word}; it ended with {}: {text}",
        arguments.join(" "),
        output.status
    );
    Ok(())
}
