//! Messages of FUSE about a shared folder, with any fields, names and order. Beside the folder is what no message may reach.
#![no_main]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::path::PathBuf;
use std::sync::OnceLock;

use covisor::share::MOST_REPLY;
use covisor::share::Mapping;
use covisor::share::NoRoom;
use covisor::share::Server;
use covisor::sys::share;
use covisor_fuzz::Input;
use libfuzzer_sys::fuzz_target;

/// Bytes before a message's arguments and an answer's.
const IN_HEADER: usize = 40;
const OUT_HEADER: usize = 16;
const INIT: u32 = 26;
/// Messages of one run.
const MOST_MESSAGES: usize = 64;
/// What is beside the folder, and in it.
const SECRET: &[u8] = b"secret";

/// Names that messages have besides any bytes.
const NAMES: [&[u8]; 12] = [
    b"a\0",
    b"b\0",
    b"folder\0",
    b"up\0",
    b"out\0",
    b"file\0",
    b"..\0",
    b".\0",
    b"../secret\0",
    b"user.x\0",
    b"a\0b\0",
    b"c\0../secret\0",
];

/// The folder of this process, in memory if the system has some for files; what the last one left is taken away.
fn place() -> &'static Path {
    static PLACE: OnceLock<PathBuf> = OnceLock::new();
    PLACE.get_or_init(|| {
        let memory = Path::new("/dev/shm");
        let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        base.join(format!("covisor-fuzz-share-{}", std::process::id()))
    })
}

fn fill(outside: &Path) -> PathBuf {
    let _ = fs::remove_dir_all(outside);
    let folder = outside.join("shared");
    fs::create_dir_all(folder.join("folder")).expect("a folder can be made");
    fs::write(outside.join("secret"), SECRET).expect("a file can be made");
    fs::write(folder.join("file"), SECRET).expect("a file can be made");
    symlink("..", folder.join("up")).expect("a link can be made");
    symlink(outside.join("secret"), folder.join("out")).expect("a link can be made");
    folder
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let outside = place();
    let folder = fill(outside);
    // Nothing larger than this is worth the storage; who reaches the limit gets an error, not a signal.
    static LIMIT: OnceLock<()> = OnceLock::new();
    LIMIT.get_or_init(|| {
        let limit = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
        // SAFETY: the structure is valid, and ignoring a signal touches no memory.
        unsafe {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit);
        }
    });
    let read_only = input.byte() > 240;
    let mapping = Mapping { uid: input.flag().then_some(1000), gid: None, suid: input.flag() };
    let files = share::open(&folder, read_only, mapping).expect("the folder is there");
    let mut server = Server::new(files, read_only);
    let mut answer = Vec::new();
    let init: Vec<u8> = [7_u32, 38, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
    let begun = server.serve(&message(INIT, 0, &init), MOST_REPLY, &mut answer);
    assert_eq!(begun, Ok(()));
    for _ in 0..MOST_MESSAGES {
        if input.is_empty() {
            break;
        }
        let (opcode, node) = (u32::from(input.byte() % 54), input.number());
        let mut arguments = Vec::new();
        for _ in 0..input.byte() % 12 {
            match input.byte() {
                0..=99 => arguments.extend((input.number() as u32).to_le_bytes()),
                100..=199 => arguments.extend(input.number().to_le_bytes()),
                name => arguments.extend(NAMES[usize::from(name) % NAMES.len()]),
            }
        }
        let mut bytes = message(opcode, node, &arguments);
        if input.byte() > 250 {
            bytes.truncate(usize::from(input.byte()));
        }
        let room = if input.byte() > 200 { input.word().into() } else { MOST_REPLY };
        match server.serve(&bytes, room, &mut answer) {
            Ok(()) => assert!(answer.len() <= room && (answer.is_empty() || answer.len() >= OUT_HEADER)),
            Err(NoRoom) => assert!(room < OUT_HEADER),
        }
    }
    drop(server);
    let left: Vec<_> = fs::read_dir(outside).expect("it is there").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    assert_eq!(fs::read(outside.join("secret")).expect("it is there"), SECRET);
    let _ = fs::remove_dir_all(outside);
});

fn message(opcode: u32, node: u64, arguments: &[u8]) -> Vec<u8> {
    let length = u32::try_from(IN_HEADER + arguments.len()).expect("it is short");
    let mut message = Vec::with_capacity(IN_HEADER + arguments.len());
    for word in [length, opcode, 1, 0] {
        message.extend(word.to_le_bytes());
    }
    message.extend(node.to_le_bytes());
    message.resize(IN_HEADER, 0);
    message.extend(arguments);
    message
}
