//! A DHCP client's message, and the answer to it.
#![no_main]

use std::net::Ipv4Addr;

use covisor::net::nat::dhcp::Message;
use covisor::net::nat::dhcp::Settings;
use covisor_fuzz::Input;
use libfuzzer_sys::fuzz_target;

/// Bytes of a message before its options.
const FIELDS: usize = 236;

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let mut message = Vec::new();
    if input.flag() {
        // A good message up to its options.
        message.extend([1, 1, 6]);
        message.resize(FIELDS, 0);
        message.extend([99, 130, 83, 99]);
    }
    message.extend(input.rest());
    let settings = Settings {
        server: Ipv4Addr::new(10, 0, 2, 2),
        client: Ipv4Addr::new(10, 0, 2, 15),
        netmask: Ipv4Addr::new(255, 255, 255, 0),
        dns: Ipv4Addr::new(10, 0, 2, 3),
        mtu: 1500,
    };
    if let Some(answer) = Message::parse(&message).and_then(|message| message.answer(&settings)) {
        assert!((300..576).contains(&answer.len()));
    }
});
