//! The examples of coLinux's documentation, written anew: what each says must be what options of `covisor run` say.

use std::ffi::OsString;

use super::super::options_file;
use super::super::run::Args;
use super::*;
use crate::run::Config;
use crate::run::disk_name;

fn config(words: Vec<String>) -> Result<Config, String> {
    let name = ["--name", "test"].map(str::to_owned);
    Args::parse(words.into_iter().chain(name).map(OsString::from))?.into_config()
}

/// What a file in coLinux's words asks for.
fn of_file(text: &str) -> Result<Config, String> {
    config(options_file::parse(text.as_bytes()).unwrap())
}

/// The words of a command line.
fn split(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

/// Asserts that both ask for the same, but for how disks are called.
#[track_caller]
fn assert_same(colinux: Result<Config, String>, options: &str) {
    let mut colinux = colinux.unwrap();
    for (number, disk) in (0..).zip(&mut colinux.disks) {
        disk.name = disk_name(number);
    }
    let options = config(options_file::parse(options.as_bytes()).unwrap()).unwrap();
    assert_eq!(format!("{colinux:#?}"), format!("{options:#?}"));
}

#[track_caller]
fn assert_refused(text: &str, says: &str) {
    let error = of_file(text).unwrap_err();
    assert!(error.contains(says) && !error.contains('\n'), "{error}");
}

fn words(line: &str) -> Words {
    Words::parse(&split(line)).unwrap()
}

fn refusal(line: &str) -> String {
    Words::parse(&split(line)).unwrap_err().to_string()
}

/// Around what is looked at, a kernel.
fn with(word: &str) -> String {
    format!("kernel=vmlinux {word}\n")
}

// The file example.conf.

/// With nothing switched on that is behind `#` in it.
const EXAMPLE: &str = "\
#
# A guest for colinux-daemon, with comments as in the example file.
#    colinux-daemon @example.conf
#

# What to boot
kernel=vmlinux

# The disk with the root file system
cobd0=d:\\guests\\base_fs

# An empty file for swapping
#cobd1=d:\\guests\\swap

# Goes to the kernel
root=/dev/cobd0

# For the first boot
initrd=initrd.gz

# Memory
#mem=64

#eth0=slirp
#eth1=tuntap
#ttys0=COM1,\"BAUD=9600 PARITY=n\"
#exec0=D:\\Xming\\Xming.exe,\":0 -ac\"
";

#[test]
fn test_the_example_file() {
    assert_same(
        of_file(EXAMPLE),
        r"--kernel vmlinux --initrd initrd.gz --disk d:\guests\base_fs --append root=/dev/vda",
    );
    assert_same(
        of_file(&EXAMPLE.replace('\n', "\r\n")),
        r"--kernel vmlinux --initrd initrd.gz --disk d:\guests\base_fs --append root=/dev/vda",
    );
}

#[test]
fn test_the_example_file_with_all_switched_on() {
    // All but the serial port, of which there are none for guests.
    let all = EXAMPLE
        .replace("\n#cobd", "\ncobd")
        .replace("\n#mem", "\nmem")
        .replace("\n#eth", "\neth")
        .replace("\n#exec", "\nexec");
    let mut all = of_file(&all).unwrap();
    let program = Program { path: r"D:\Xming\Xming.exe".into(), arguments: ":0 -ac".to_owned() };
    assert_eq!(std::mem::take(&mut all.programs), [program]);
    assert_same(
        Ok(all),
        r"--kernel vmlinux --initrd initrd.gz --disk d:\guests\base_fs --disk d:\guests\swap --mem 64 --net nat --net tap --append root=/dev/vda",
    );
    let serial = EXAMPLE.replace("\n#ttys", "\nttys");
    assert_refused(&serial, "serial port");
}

#[test]
fn test_what_comes_later_overrides_what_one_file_says() {
    // colinux-daemon @example.conf @overrider.conf mem=32
    let mut all = options_file::parse(EXAMPLE.replace("#mem", "mem").as_bytes()).unwrap();
    all.extend(options_file::parse(b"kernel=vmlinux-2 mem=48").unwrap());
    all.push("mem=32".to_owned());
    assert_same(
        config(all),
        r"--kernel vmlinux-2 --initrd initrd.gz --disk d:\guests\base_fs --mem 32 --append root=/dev/vda",
    );
}

// The manual of colinux-daemon, word by word.

#[test]
fn test_kernel_initrd_and_memory() {
    assert_same(of_file("kernel=vmlinux"), "--kernel vmlinux");
    assert_same(of_file("kernel=vmlinux initrd=initrd.gz"), "--kernel vmlinux --initrd initrd.gz");
    assert_same(of_file(r#"kernel="C:\my files\vmlinux" mem=128"#), r"--kernel 'C:\my files\vmlinux' --mem 128");
    assert_refused("kernel=", "needs a value");
    assert_refused(&with("mem=much"), "mem=much: ");
    // coLinux ended at 984.
    assert_same(of_file(&with("mem=4096")), "--kernel vmlinux --mem 4G");
}

#[test]
fn test_an_options_word_is_over_that_of_the_file() {
    assert_same(of_file("kernel=a initrd=b mem=5\n--kernel c --initrd d --mem 6"), "--kernel c --initrd d --mem 6");
    assert_same(of_file("kernel=a cobd0=b single\n--append quiet"), "--kernel a --disk b --append 'single quiet'");
    assert_refused("cobd0=a --disk b --kernel k", "not by both");
    assert_refused("eth0=slirp --net nat --kernel k", "not by both");
}

#[test]
fn test_the_console_has_the_terminals_size() {
    for word in
        ["cocon=120x40", "cocon=80x25x200", "cocon=100,30", "cursor=50", "color=lightgray,blue", "setcobd=async"]
    {
        assert_same(of_file(&with(word)), "--kernel vmlinux");
        let said = words(&format!("kernel=k {word}")).notices;
        assert!(said.len() == 1 && said[0].starts_with(&format!("{word} has no meaning any more: ")), "{said:?}");
    }
    for bad in ["cocon=15x40", "cocon=80x1", "cocon=80", "cocon=wide", "cocon=1x2x3x4"] {
        assert_refused(&with(bad), "80x25");
    }
}

#[test]
fn test_disks() {
    assert_same(
        of_file("kernel=vmlinux\ncobd0=base.img\ncobd1=C:\\temp\\swap.img\n"),
        r"--kernel vmlinux --disk base.img --disk C:\temp\swap.img",
    );
    // A CD-ROM drive is for reading.
    let cdrom = words(r"cobd2=\Device\Cdrom0 kernel=k").disks;
    assert_eq!(
        cdrom,
        [Disk { name: "cobd2".into(), path: r"\\.\GLOBALROOT\Device\Cdrom0".into(), read_only: true, format: None }]
    );
    let partition = words(r"cobd0=\Device\Harddisk1\Partition2 kernel=k").disks;
    assert!(!partition[0].read_only && partition[0].path.ends_with(r"\\.\GLOBALROOT\Device\Harddisk1\Partition2"));
    // By their numbers, not by their order.
    let names: Vec<_> = words("cobd9=c cobd0=a cobd3=b").disks.into_iter().map(|disk| disk.name).collect();
    assert_eq!(names, ["cobd0", "cobd3", "cobd9"]);
    assert!(refusal("cobd0=a cobd0=b").ends_with("there twice"));
    for bad in ["cobd=a", "cobd32=a", "cobd99999999999999999999=a"] {
        assert!(refusal(bad).contains("0 to 31"), "{bad}");
    }
}

#[test]
fn test_aliases() {
    assert_same(of_file("kernel=k hda1=base.img root=/dev/hda1"), "--kernel k --disk base.img --append root=/dev/vda");
    assert_same(
        of_file("kernel=k\ncobd0=base.img  # is /dev/cobd0\nhda1=:cobd0    # and /dev/hda1\nroot=/dev/hda1"),
        "--kernel k --disk base.img --append root=/dev/vda",
    );
    let cdrom = words(r"hdc=\Device\Cdrom0 root=/dev/hdc").disks;
    assert!(cdrom[0].name == "hdc" && cdrom[0].read_only);
    // Files take the free numbers, those of sd first.
    let all =
        words("hdb=d cobd1=b sda1=a hda1=c root=/dev/sda1 swap=/dev/hdb resume=/dev/cobd1 other=/dev/hda1 x=/dev/hda2");
    let files: Vec<_> = all.disks.iter().map(|disk| disk.path.display().to_string()).collect();
    assert_eq!(files, ["a", "b", "d", "c"]);
    assert_eq!(all.append.as_deref(), Some("root=/dev/vda swap=/dev/vdc resume=/dev/vdb other=/dev/vdd x=/dev/hda2"));
    for (bad, says) in [
        ("hda1=:cobd0", "there is no cobd0="),
        ("cobd0=a hda1=:cobd1", "there is no cobd1="),
        ("cobd0=a hda1=:cobd0 hda2=:cobd0", "called hda1 already"),
        ("cobd0=a hda1=:sda", "name of a disk"),
        ("cobd0=a hda1=:cobdx", "name of a disk"),
        ("hda1=a hda1=b", "there twice"),
        ("cobd0=a root=/dev/cobd1", "there is no cobd1="),
    ] {
        assert!(refusal(bad).contains(says), "{bad}: {}", refusal(bad));
    }
    let full: String = (0..32).map(|number| format!("cobd{number}=f ")).collect();
    assert!(refusal(&(full + "hda=x")).contains("all 32 disks"));
}

#[test]
fn test_scsi_disks() {
    assert_same(of_file("kernel=k scsi0=disk,file.img"), "--kernel k --disk file.img");
    assert_same(of_file("kernel=k scsi1=cdrom,file.iso"), "--kernel k --disk file.iso,ro");
    let drive = words(r"scsi0=disk,\\.\PhysicalDrive1 kernel=k").disks;
    assert_eq!(drive[0].path, PathBuf::from(r"\\.\PhysicalDrive1"));
    // Behind the others, and with partitions.
    let all = words("scsi3=disk,d scsi1=cdrom,c scsi0=disk,b cobd0=a root=/dev/sda2 b=/dev/sdb c=/dev/sr0 d=/dev/sdc");
    let files: Vec<_> = all.disks.iter().map(|disk| (disk.path.display().to_string(), disk.read_only)).collect();
    assert_eq!(files, [("a", false), ("b", false), ("c", true), ("d", false)].map(|(path, ro)| (path.to_owned(), ro)));
    assert_eq!(all.append.as_deref(), Some("root=/dev/vdb2 b=/dev/vdd c=/dev/vdc d=/dev/sdc"));
    for (bad, says) in [
        ("scsi0=disk", "needs a file"),
        ("scsi0=floppy,x", "`floppy`"),
        ("scsi0=tape,x", "`tape` cannot be passed on"),
        ("scsi0=disk,/nowhere/x,512", "covisor image create"),
        ("scsi0=disk,x,,shared", "for it alone"),
        ("scsi0=disk,x,,,y", "more in it"),
        ("scsi0=disk,x scsi0=disk,y", "twice"),
        ("scsi=disk,x", "0 to 31"),
    ] {
        assert!(refusal(bad).contains(says), "{bad}: {}", refusal(bad));
    }
}

#[test]
fn test_shared_folders() {
    let shares = words(r"kernel=k cofs1=R:\ cofs0=C:\coLinux cofs31=D:\share\").shares;
    let share = |number, folder: &str| Share::tagged(Tag::colinux(number), folder.into());
    assert_eq!(shares, [share(0, r"C:\coLinux"), share(1, r"R:\"), share(31, r"D:\share")]);
    assert!(refusal("cofs0=a cofs0=b").contains("twice"));
    // Of the manual of cofs: colinux-daemon kernel=vmlinux hda1=base_fs cofs0=c:\
    let all = words(r"kernel=vmlinux hda1=base_fs cofs0=c:\");
    assert_eq!((all.disks.len(), all.shares.len()), (1, 1));
}

#[test]
fn test_slirp() {
    for (colinux, option) in [
        ("eth0=slirp", "nat"),
        ("eth0=slirp,", "nat"),
        ("eth0=slirp,,tcp:22:22", "nat,forward=tcp:22:22"),
        ("eth0=slirp,,tcp:2222:22", "nat,forward=tcp:2222:22"),
        ("eth0=slirp,,tcp:2222:22/tcp:4000:80:3", "nat,forward=tcp:2222:22,forward=tcp:4000-4002:80"),
        ("eth0=slirp,,udp:5000:6000", "nat,forward=udp:5000:6000"),
        ("eth0=slirp,02:00:00:00:00:01", "nat,mac=02:00:00:00:00:01"),
        ("eth0=slirp,00:FF:12:34:56:78,tcp:80:80", "nat,mac=00:ff:12:34:56:78,forward=tcp:80:80"),
        // The guest counts from 0.
        ("eth15=slirp", "nat"),
    ] {
        assert_same(of_file(&with(colinux)), &format!("--kernel vmlinux --net {option}"));
    }
    for bad in [
        "eth0=slirp,,tcp:1",
        "eth0=slirp,,,",
        "eth0=slirp,,tcp:1:2:0",
        "eth0=slirp,x",
        "eth0=slirps",
        "eth16=slirp",
        "eth=slirp",
        "eth0=slirp,,tcp:65535:1:2",
    ] {
        assert!(refusal(bad).starts_with(bad), "{bad}");
    }
    assert!(refusal("eth0=slirp eth0=slirp").contains("twice"));
}

#[test]
fn test_tuntap_and_bridges() {
    for (colinux, option) in [
        ("eth0=tuntap", "tap"),
        ("eth0=tuntap,\"Home Network\"", "'tap=Home Network'"),
        ("eth0=tuntap,,02:00:00:00:00:02", "tap,mac=02:00:00:00:00:02"),
        ("eth0=tuntap,\"TAP-guest\",02:00:00:00:00:02,192.168.0.1", "tap=TAP-guest,mac=02:00:00:00:00:02"),
        ("eth1=slirp eth0=tuntap", "tap --net nat"),
    ] {
        assert_same(of_file(&with(colinux)), &format!("--kernel vmlinux --net {option}"));
    }
    for bridge in ["pcap-bridge", "ndis-bridge"] {
        assert_refused(&with(&format!("eth0={bridge},\"Home Network\"")), "use tuntap, and bridge");
        assert_refused(&with(&format!("eth0={bridge},\"Home Network\",02:00:00:00:00:03,nopromisc")), "is no more");
    }
    assert_refused(&with("eth0=tuntap,a,02:00:00:00:00:02,b,c"), "more in it");
}

#[test]
fn test_serial_ports_are_the_hosts() {
    assert_refused(&with("ttys0=COM1"), "ttys0=COM1: a guest gets no serial port");
    assert_refused(&with("ttys0=COM1,\"BAUD=9600 PARITY=n DATA=8 STOP=1\""), "over the network");
}

#[test]
fn test_programs() {
    let program = |path: &str, arguments: &str| Program { path: path.into(), arguments: arguments.to_owned() };
    let programs = of_file(&with(r#"exec1=b exec0=C:\Xming\Xming.exe,":0 -clipboard, ""-ac""""#)).unwrap().programs;
    assert_eq!(programs, [program(r"C:\Xming\Xming.exe", r#":0 -clipboard, "-ac""#), program("b", "")]);
    for (bad, says) in [
        ("exec0=,x", "needs a program"),
        ("exec0=a,b,c", "more in it"),
        ("exec8=a", "0 to 7"),
        ("exec0=a exec0=b", "twice"),
    ] {
        assert!(refusal(bad).contains(says), "{bad}");
    }
}

#[test]
fn test_devices_that_are_no_more() {
    for word in ["pci3=0,network,0", "video0=4"] {
        assert_eq!(words(&format!("{word} kernel=k")).notices.len(), 1, "{word}");
    }
}

#[test]
fn test_all_other_words_are_for_the_kernel() {
    assert_same(
        of_file("kernel=k cobd0=d root=/dev/cobd0 ro init 5"),
        "--kernel k --disk d --append 'root=/dev/vda ro init 5'",
    );
    // As on Gentoo.
    assert_same(of_file("kernel=k cobd0=d root=/dev/cobd/0"), "--kernel k --disk d --append root=/dev/vda");
    // Quotes stay, for the kernel has its own.
    assert_same(
        of_file("kernel=k dyndbg=\"file x.c +p\" a=\"\"\n"),
        "--kernel k --append 'dyndbg=\"file x.c +p\" a=\"\"'",
    );
    // Names that only begin like coLinux's.
    let line =
        "pci=noacpi video=640x480 memmap=1G ethernet=x sd_mod.a=1 hd=1 scsi_mod.scan=sync Mem=1 execute console=ttyS0";
    assert_eq!(words(&format!("kernel=k {line}")).append.as_deref(), Some(line));
    // coLinux ended at 256 bytes.
    let long: String = (0..200).map(|number| format!("word.{number}=x ")).collect();
    let append = of_file(&format!("kernel=k\n{long}")).unwrap().append.unwrap();
    assert!(append.len() > 1800 && append == long.trim_end());
    // A word that went astray is no guest's.
    for line in ["debian.img", "eth0=slirp debian.img", "root=/dev/vda"] {
        let error = refusal(line);
        assert!(error.contains("--append") && error.contains("--disk"), "{error}");
    }
}
