//! The header before a frame of the guest's, and the frame itself: both as they come, or behind good headers.
#![no_main]

use covisor::net::FrameHeader;
use covisor::net::MAX_FRAME;
use covisor::net::Offloads;
use covisor::net::nat::packet::Packet;
use covisor::net::offload::HEADER_SIZE;
use covisor_fuzz::Input;
use libfuzzer_sys::fuzz_target;

const MTU: u16 = 1500;

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let kind = input.byte();
    let header: [u8; HEADER_SIZE] = input.array();
    let agreed = if kind & 1 != 0 { Offloads::ALL } else { Offloads::default() };
    // From the gateway's address and a protocol on it goes deeper; `trusted` leaves the checksum out.
    let mut frame = Vec::new();
    if kind & 2 != 0 {
        frame.extend([0x52, 0x55, 10, 0, 2, 2, 2, 0, 0, 0, 0, 1]);
        frame.extend([[8, 0], [8, 6], [0x86, 0xdd], [0, 0]][usize::from(kind >> 2 & 3)]);
    }
    frame.extend(input.rest());
    frame.truncate(MAX_FRAME);
    let trusted = match FrameHeader::parse(&header, frame.len(), agreed, MTU) {
        Ok(parsed) => {
            assert_eq!(FrameHeader::parse(&parsed.encode(1), frame.len(), agreed, MTU), Ok(parsed));
            parsed.checksum.is_some()
        }
        Err(_) => kind & 0x80 != 0,
    };
    let _ = Packet::parse(&frame, trusted);
});
