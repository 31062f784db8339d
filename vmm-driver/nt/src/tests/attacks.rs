//! A hostile loader: any bytes, from two threads, during a close.

use covisor_abi::Call;
use covisor_core::exit::Exit;
use covisor_core::test_support::MockEngine;
use proptest::prelude::*;

use crate::NtStatus;
use crate::tests::Open;
use crate::tests::end;
use crate::tests::machine;
use crate::tests::new_irp;

/// One request: a code, what the buffer begins with, and both sizes.
#[derive(Clone, Debug)]
struct Request {
    code: u32,
    bytes: Vec<u8>,
    input: usize,
    output: usize,
}

/// Statuses that requests can end with (docs/abi.md).
const DOCUMENTED: [NtStatus; 12] = [
    NtStatus::SUCCESS,
    NtStatus::INVALID_DEVICE_REQUEST,
    NtStatus::INFO_LENGTH_MISMATCH,
    NtStatus::ACCESS_DENIED,
    NtStatus::INVALID_PARAMETER,
    NtStatus::NO_MEMORY,
    NtStatus::DEVICE_BUSY,
    NtStatus::CANCELLED,
    NtStatus::NOT_SUPPORTED,
    NtStatus::REVISION_MISMATCH,
    NtStatus::NOT_FOUND,
    NtStatus::OBJECT_NAME_COLLISION,
];

/// Words that get further than random ones.
fn word() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 0..5_u32, 1 => any::<u32>(), 1 => Just(0x1000), 1 => Just(0x150)]
}

fn request() -> impl Strategy<Value = Request> {
    let call = 0..Call::ALL.len();
    let bytes = proptest::collection::vec(word(), 128);
    (call, bytes, prop_oneof![9 => Just(None), 1 => any::<(u32, u16, u16)>().prop_map(Some)]).prop_map(
        |(call, words, odd)| {
            let call = Call::ALL[call];
            let bytes = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            let (code, input, output) = match odd {
                Some((flip, input, output)) => {
                    (call.nt_code() ^ (flip & 0xff), usize::from(input % 512), usize::from(output % 512))
                }
                None => (call.nt_code(), call.size(), call.size()),
            };
            Request { code, bytes, input, output }
        },
    )
}

/// Makes the requests; a `RUN` leaves the guest by one exit.
fn make(open: Open, requests: Vec<Request>) {
    for mut request in requests {
        let mut exits = 0;
        MockEngine::set_script(Box::new(move |_| {
            exits += 1;
            Some(if exits < 3 { Exit::HostInterrupt } else { Exit::Shutdown })
        }));
        let answer = open.control(new_irp(), request.code, &mut request.bytes, request.input, request.output);
        assert!(DOCUMENTED.contains(&answer.status), "{answer:x?}");
        let copied = if answer.status == NtStatus::SUCCESS { request.output } else { 0 };
        assert_eq!(answer.information, copied);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// The kernel that is a fake ends the test at anything that NT would stop at.
    #[test]
    fn test_attack_any_requests_from_two_threads_during_a_close(
        first in proptest::collection::vec(request(), 0..40),
        second in proptest::collection::vec(request(), 0..40),
        built in any::<bool>(),
    ) {
        let kernel = machine();
        let open = Open::new(kernel);
        let open = if built { open.build(0x4000) } else { open };
        let threads = [(1, first), (2, second)].map(|(cpu, requests)| {
            kernel.spawn(cpu, 1, move || {
                let open = open;
                make(open, requests);
            }).1
        });
        open.cleanup();
        for thread in threads {
            thread.join().expect("nothing NT would stop at");
        }
        open.close();
        end(kernel);
    }
}
