//! Tests of Xen's console.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::devices::testing::Bells;
use crate::devices::testing::Interrupts;

const PAGE: u64 = 0x3000;
const IN_CONS: u64 = PAGE + 3072;
const IN_PROD: u64 = IN_CONS + 4;
const OUT_CONS: u64 = IN_CONS + 8;
const OUT_PROD: u64 = IN_CONS + 12;
const PULSE: [(u32, bool); 2] = [(CONSOLE_GSI, true), (CONSOLE_GSI, false)];

struct Rig {
    memory: Arc<GuestRam>,
    interrupts: Arc<Interrupts>,
    mover: Mover,
    input: HostOutput,
    output: HostInput,
}

fn rig() -> Rig {
    let memory = Arc::new(crate::sys::memory::anonymous(&[(GuestAddress(0), 0x5000)]));
    let interrupts = Arc::new(Interrupts::default());
    let (to_host, output) = pipe::to_host(CAPACITY, Arc::new(|| {}));
    let (input, from_host) = pipe::to_device(CAPACITY, Arc::new(|| {}));
    let mover = Mover {
        memory: Arc::clone(&memory),
        input_ring: Ring { start: PAGE, size: 1024, theirs: IN_CONS, ours: IN_PROD },
        output_ring: Ring { start: PAGE + 1024, size: 2048, theirs: OUT_PROD, ours: OUT_CONS },
        in_prod: 0,
        out_cons: 0,
        to_host: Arc::new(to_host),
        from_host,
        interrupts: interrupts.clone(),
        reports: Reports::new("test"),
    };
    Rig { memory, interrupts, mover, input, output }
}

impl Rig {
    fn index(&self, address: u64) -> u32 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    fn set_index(&self, address: u64, value: u32) {
        self.memory.write_obj(value, GuestAddress(address)).unwrap();
    }

    /// The guest says as much as the ring takes, and gives how much that was.
    fn say(&self, text: &[u8]) -> usize {
        let (prod, cons) = (self.index(OUT_PROD), self.index(OUT_CONS));
        let count = text.len().min(2048 - prod.wrapping_sub(cons) as usize);
        for (byte, at) in text[..count].iter().zip(0..) {
            let place = prod.wrapping_add(at) % 2048;
            self.memory.write_obj(*byte, GuestAddress(PAGE + 1024 + u64::from(place))).unwrap();
        }
        self.set_index(OUT_PROD, prod.wrapping_add(u32::try_from(count).unwrap()));
        count
    }

    /// What the guest hears.
    fn hear(&self) -> Vec<u8> {
        let (prod, cons) = (self.index(IN_PROD), self.index(IN_CONS));
        let bytes = (0..prod.wrapping_sub(cons)).map(|at| {
            let place = cons.wrapping_add(at) % 1024;
            self.memory.read_obj(GuestAddress(PAGE + u64::from(place))).unwrap()
        });
        let bytes = bytes.collect();
        self.set_index(IN_CONS, prod);
        bytes
    }

    fn shown(&self) -> Vec<u8> {
        let mut bytes = vec![0; CAPACITY];
        let count = self.output.receive_timeout(&mut bytes, Duration::ZERO).unwrap_or(0);
        bytes.truncate(count);
        bytes
    }
}

#[test]
fn test_what_the_guest_says_is_shown_over_the_rings_end() {
    let mut rig = rig();
    let mut said = Vec::new();
    for round in 0..10u8 {
        let text = vec![b'a' + round; 700];
        assert_eq!(rig.say(&text), 700);
        said.extend(text);
        rig.mover.process().unwrap();
    }
    assert_eq!(rig.shown(), said);
    assert_eq!(rig.index(OUT_CONS), 7000);
    assert_eq!(rig.interrupts.take_lines(), [], "nobody waited for room");
}

#[test]
fn test_what_is_typed_comes_with_an_interrupt_as_there_is_room() {
    let mut rig = rig();
    let text: Vec<u8> = (0..3000u32).map(|i| i.to_le_bytes()[0]).collect();
    assert!(rig.input.send(&text));
    let mut heard = Vec::new();
    for part in [1024, 1024, 952] {
        rig.mover.process().unwrap();
        assert_eq!(rig.interrupts.take_lines(), PULSE);
        rig.mover.process().unwrap();
        assert_eq!(rig.interrupts.take_lines(), []);
        let bytes = rig.hear();
        assert_eq!(bytes.len(), part);
        heard.extend(bytes);
    }
    assert_eq!(heard, text);
}

#[test]
fn test_a_guest_that_found_no_room_is_told_of_some() {
    let mut rig = rig();
    let mut left = CAPACITY;
    while left > 0 {
        left -= rig.say(&vec![b'x'; left.min(1000)]);
        rig.mover.process().unwrap();
    }
    // The host takes no more.
    assert_eq!(rig.say(&[b'y'; 3000]), 2048);
    rig.mover.process().unwrap();
    assert_eq!((rig.index(OUT_CONS) as usize, rig.interrupts.take_lines()), (CAPACITY, vec![]));
    assert_eq!(rig.shown(), vec![b'x'; CAPACITY]);
    rig.mover.process().unwrap();
    assert_eq!(rig.interrupts.take_lines(), PULSE);
    assert_eq!(rig.shown(), vec![b'y'; 2048]);
}

#[test]
fn test_indexes_wrap_around() {
    let mut rig = rig();
    let start = u32::MAX - 100;
    rig.mover.in_prod = start;
    rig.mover.out_cons = start;
    [IN_CONS, IN_PROD, OUT_CONS, OUT_PROD].iter().for_each(|address| rig.set_index(*address, start));
    rig.say(&[b'o'; 300]);
    rig.input.send(&[b'i'; 300]);
    rig.mover.process().unwrap();
    assert_eq!((rig.shown(), rig.hear()), (vec![b'o'; 300], vec![b'i'; 300]));
    assert_eq!((rig.index(OUT_CONS), rig.index(IN_PROD)), (199, 199));
}

/// Attack F2 8: indexes that promise more than the ring holds.
#[test]
fn test_indexes_that_make_no_sense_end_the_console() {
    for (address, value) in [(OUT_PROD, 2049), (OUT_PROD, u32::MAX), (IN_CONS, 1), (IN_CONS, 0x8000_0000)] {
        let mut rig = rig();
        rig.set_index(address, value);
        assert!(matches!(rig.mover.process(), Err(Broken::Index(index)) if index == value));
        assert!(rig.shown().is_empty());
    }
    let mut rig = rig();
    rig.set_index(OUT_PROD, 2048);
    rig.mover.process().unwrap();
    assert_eq!(rig.shown().len(), 2048);
}

#[test]
fn test_our_own_indexes_are_not_believed_from_the_page() {
    let mut rig = rig();
    rig.say(b"one");
    rig.mover.process().unwrap();
    rig.set_index(OUT_CONS, 0xdead_beef);
    rig.set_index(IN_PROD, 0xdead_beef);
    rig.input.send(b"x");
    rig.mover.process().unwrap();
    assert_eq!(rig.shown(), b"one");
    assert_eq!((rig.index(OUT_CONS), rig.index(IN_PROD)), (3, 1));
}

#[test]
fn test_the_thread_works_on_kicks_by_doorbell_and_port_and_says_the_last_words() {
    let memory = Arc::new(crate::sys::memory::anonymous(&[(GuestAddress(0), 0x5000)]));
    let interrupts = Arc::new(Interrupts::default());
    let bells = Bells::new(1);
    let (mut console, handle) = XenConsole::new(PAGE, Arc::clone(&memory), &bells, interrupts).unwrap();
    let say = |text: &[u8], prod: u32| {
        memory.write_slice(text, GuestAddress(PAGE + 1024 + u64::from(prod) - text.len() as u64)).unwrap();
        memory.store(prod, GuestAddress(OUT_PROD), Ordering::Release).unwrap();
    };
    let mut bytes = [0; 16];
    say(b"bell", 4);
    assert!(bells.ring(CONSOLE_PORT.into()));
    assert_eq!(handle.output.receive(&mut bytes), 4);
    say(b"port", 8);
    console.write(0, &[0; 4]);
    assert_eq!(handle.output.receive(&mut bytes), 4);
    assert_eq!(&bytes[..4], b"port");
    say(b"end", 11);
    drop((console, handle.writer));
    assert_eq!(handle.output.receive(&mut bytes), 3);
    assert_eq!(handle.output.receive(&mut bytes), 0);
    assert!(!handle.input.send(b"gone"));
}

#[test]
fn test_early_messages_come_byte_by_byte() {
    let (mut early, stream) = EarlyConsole::with_stream();
    b"Linux".iter().for_each(|byte| early.write(0, &[*byte]));
    let mut data = [0xff];
    early.read(0, &mut data);
    assert_eq!(data, [0xff]);
    drop(early);
    let mut text = Vec::new();
    stream.copy_to(&mut text).unwrap();
    assert_eq!(text, b"Linux");
}

proptest! {
    /// Whatever the guest writes into its page, nothing but the page changes and no more than the rings hold moves.
    #[test]
    fn test_hostile_pages_change_nothing_else(
        writes in prop::collection::vec((0..4u64, any::<u32>(), any::<bool>()), 1..20),
        typed in 0usize..3000,
    ) {
        let mut rig = rig();
        rig.input.send(&vec![b'i'; typed]);
        for (index, value, small) in writes {
            rig.set_index(IN_CONS + index * 4, if small { value % 4096 } else { value });
            let ended = rig.mover.process().is_err();
            prop_assert!(rig.shown().len() <= 2048);
            if ended {
                break;
            }
        }
        let mut before = [0; 0x3000];
        let mut after = [0; 0x5000 - 0x3c10];
        rig.memory.read_slice(&mut before, GuestAddress(0)).unwrap();
        rig.memory.read_slice(&mut after, GuestAddress(PAGE + 3088)).unwrap();
        prop_assert!(before.iter().chain(&after).all(|&byte| byte == 0));
    }
}
