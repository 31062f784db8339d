//! What guests are made of, and what cannot be made.

use clap::Parser;

use super::super::super::Cli;
use super::super::super::Command;
use super::*;

fn args(words: &[&str]) -> CreateArgs {
    match Cli::try_parse_from(["covisor", "create"].iter().chain(words)).unwrap().command {
        Command::Create(args) => args,
        other => panic!("{other:?}"),
    }
}

/// Makes a guest that nobody looks at.
fn make(store: &Store, args: &CreateArgs) -> Result<(), String> {
    let (_sender, signalled) = std::sync::mpsc::channel();
    super::make(store, args, &Watcher::new(&signalled))
}

fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path().join("guests"));
    (folder, store)
}

#[test]
fn test_a_guest_is_what_its_options_say() {
    let (folder, store) = store();
    let source = folder.path().join("base.img");
    fs::write(&source, vec![7; 1 << 20]).unwrap();
    let from = source.to_str().unwrap();
    let options = ["--kernel", "/vm/vmlinuz", "--mem", "1G", "--disk", "x.img,ro"];
    make(&store, &args(&[&["--from", from, "web"], &options[..]].concat())).unwrap();
    let definition = store.read("web").unwrap();
    assert_eq!(definition.options, options);
    let config = guest(&store, "web", &definition).unwrap().into_config().unwrap();
    assert_eq!((config.name.as_str(), config.memory), ("web", 1 << 30));
    let disks: Vec<_> = config.disks.iter().map(|disk| (disk.path.clone(), disk.read_only)).collect();
    let own = store.file("web", OwnDisk::Qcow2.file());
    assert_eq!(disks, [(own.clone(), false), ("x.img".into(), true)]);
    assert_eq!(image::info(&own, None).unwrap().format, Format::Qcow2);
    make(&store, &args(&["--from", from, "--format", "raw", "db", "--kernel", "/vm/vmlinuz"])).unwrap();
    assert_eq!(fs::read(store.file("db", OwnDisk::Raw.file())).unwrap(), vec![7; 1 << 20]);
}

#[test]
fn test_what_is_wrong_shows_when_it_is_made() {
    let (_folder, store) = store();
    for (words, says) in [
        (&["web", "--nonsense"][..], "--nonsense"),
        (&["web", "--kernel", "/k", "--name", "db"], "--name"),
        (&["web", "--kernel", "/k", "--config", "/nowhere.toml"], "no such file"),
        (&["web", "@/nowhere"], "no such file"),
        (&["--from", "/nowhere.img", "web", "--kernel", "/k"], "no such file"),
        (&["1", "--kernel", "/k"], "name"),
        (&["--size", "1G", "web", "--kernel", "/k"], "--size is for"),
        (&["--from", "/x.img", "--include", "gcc", "web", "--kernel", "/k"], "--from debian"),
        (&["--from", "/x.tar", "--mirror", "http://x/", "web", "--kernel", "/k"], "--from debian"),
        (&["--format", "raw", "web", "--kernel", "/k"], "--from"),
    ] {
        let error = make(&store, &args(words)).unwrap_err();
        assert!(error.contains(says) && !error.contains('\n'), "{error}");
    }
    assert_eq!(store.list().unwrap(), []);
}

#[test]
fn test_words_that_programs_are_given_are_names_and_addresses() {
    for words in [
        ["--from", "debian:x y"],
        ["--include", "gcc,-x"],
        ["--include", "a;b"],
        ["--mirror", "-http://x"],
        ["--mirror", "http://x y"],
        ["--format", "vmdk"],
        ["--size", "much"],
    ] {
        let words = ["covisor", "create", "web"].iter().chain(&words);
        assert!(Cli::try_parse_from(words).is_err());
    }
    let some =
        args(&["web", "--from", "debian:trixie", "--include", "gcc,libc6-dev", "--mirror", "file:///srv/debian"]);
    assert_eq!(some.include, ["gcc", "libc6-dev"]);
    assert_eq!(some.from, Some(Source::Debian(Some("trixie".to_owned()))));
}

#[test]
fn test_host_names_are_of_what_host_names_are_of() {
    assert_eq!(host_name("Web_1.x"), "web-1-x");
    assert_eq!(host_name("_"), "covisor");
    assert_eq!(host_name(&"a".repeat(100)).len(), 63);
}

#[test]
fn test_nothing_is_left_of_what_was_interrupted() {
    let (folder, store) = store();
    let source = folder.path().join("base.img");
    fs::write(&source, vec![7; 1 << 20]).unwrap();
    let (sender, signalled) = std::sync::mpsc::channel();
    sender.send(()).unwrap();
    let watcher = Watcher::new(&signalled);
    let wanted = args(&["web", "--from", source.to_str().unwrap(), "--kernel", "/k"]);
    let error = super::make(&store, &wanted, &watcher).unwrap_err();
    assert!(error.contains("interrupted") && watcher.is_cancelled(), "{error}");
    assert_eq!(fs::read_dir(folder.path().join("guests")).unwrap().count(), 0);
}
