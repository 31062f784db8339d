use fuse_abi::linux::fuse_opcode as code;
use zerocopy::IntoBytes;

use super::*;
use crate::devices::virtio::testing::Buffer;
use crate::devices::virtio::testing::TestQueue;
use crate::share::Mapping;
use crate::share::ROOT;
use crate::share::testing::message;
use crate::sys::share;

const MESSAGE: u64 = 0x8000;
const ANSWER: u64 = 0x1_0000;

fn handler(folder: &tempfile::TempDir) -> FsHandler {
    FsHandler::new(Server::new(share::open(folder.path(), false, Mapping::default()).unwrap(), false))
}

/// Sends a message and gives the bytes of the answer.
fn send(test: &TestQueue, handler: &mut FsHandler, opcode: code, arguments: &[&[u8]], room: u32) -> Vec<u8> {
    let message = message(opcode as u32, 1, ROOT, arguments);
    test.fill(MESSAGE, &message);
    let length = u32::try_from(message.len()).unwrap();
    // In parts that divide the header.
    let mut buffers = vec![Buffer::readable(MESSAGE, 10), Buffer::readable(MESSAGE + 10, length - 10)];
    buffers.extend((room > 0).then_some(Buffer::writable(ANSWER, room)));
    test.offer(0, &buffers);
    handler.serve(1, &mut test.queue(false)).unwrap();
    let used = test.take_used();
    test.bytes(ANSWER, used[0].1 as usize)
}

#[test]
fn test_the_configuration_tells_the_tag() {
    let config = Config::new(&"files".parse().unwrap());
    let mut bytes = [0xff; 44];
    config.read(0, &mut bytes);
    assert_eq!(&bytes[..6], b"files\0");
    assert_eq!(bytes[36..44], [1, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn test_messages_are_answered() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "text").unwrap();
    let mut handler = handler(&folder);
    let test = TestQueue::new(16);
    let begun = send(&test, &mut handler, code::FUSE_INIT, &[[7_u32, 38, 0, 0].as_bytes()], 80);
    assert_eq!((begun.len(), &begun[..8]), (80, &[80, 0, 0, 0, 0, 0, 0, 0][..]));
    let test = TestQueue::new(16);
    let found = send(&test, &mut handler, code::FUSE_LOOKUP, &[b"file\0"], 4096);
    assert_eq!(found.len(), 16 + 128);
    // What needs no answer has no room for one.
    let test = TestQueue::new(16);
    assert!(send(&test, &mut handler, code::FUSE_FORGET, &[&[0; 8]], 0).is_empty());
    handler.reset();
    let test = TestQueue::new(16);
    let refused = send(&test, &mut handler, code::FUSE_LOOKUP, &[b"file\0"], 4096);
    assert_eq!((refused.len(), &refused[4..8]), (16, &(-5_i32).to_le_bytes()[..]));
}

#[test]
fn test_attack_5_no_room_for_an_answer_ends_the_queue() {
    let folder = tempfile::tempdir().unwrap();
    let mut handler = handler(&folder);
    for buffers in [&[Buffer::readable(MESSAGE, 40)][..], &[Buffer::writable(ANSWER, 15)], &[]] {
        let test = TestQueue::new(16);
        if buffers.is_empty() {
            test.offer(0, &[Buffer::readable(MESSAGE, 0)]);
        } else {
            test.offer(0, buffers);
        }
        assert!(matches!(handler.serve(1, &mut test.queue(false)), Err(QueueError::NoRoom { queue: 1, head: 0 })));
    }
}
