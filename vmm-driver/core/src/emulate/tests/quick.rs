use proptest::prelude::*;

use super::*;

/// Loads and stores that the quick path knows, and neighbours that it does not.
const OPCODES: [&[u8]; 16] = [
    &[0x88],
    &[0x89],
    &[0x8a],
    &[0x8b],
    &[0xc6],
    &[0xc7],
    &[0x0f, 0xb6],
    &[0x0f, 0xb7],
    &[0x0f, 0xbe],
    &[0x0f, 0xbf],
    &[0x63],
    &[0x01],
    &[0x8f],
    &[0xff],
    &[0x0f, 0xc3],
    &[0x87],
];

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3_000) })]
    /// Where the exit tells the operand's address, the result is the same as without.
    #[test]
    fn the_quick_path_agrees_with_the_decoder(
        prefixes in prop::collection::vec(prop::sample::select(vec![0x66_u8, 0x67, 0xf0, 0x2e]), 0..2),
        rex in prop::option::of(0x40_u8..0x50),
        opcode in prop::sample::select(OPCODES.as_slice()),
        rest in any::<[u8; 10]>(),
        gprs in any::<[u64; 16]>(),
        device in prop::sample::select(vec![DEVICE, DRIVER]),
        offset in 0_u64..4096,
        known in any::<bool>(),
    ) {
        let code: Vec<u8> = prefixes.into_iter().chain(rex).chain(opcode.iter().copied()).chain(rest).collect();
        let make = || {
            let mut machine = Machine::new();
            machine.put(&code[..code.len().min(15)]);
            machine.guest.vcpu.gprs.set_array(&gprs);
            machine
        };
        // Aim each register that might be a base so that the operand, if it is that simple, is in the device.
        let displacement = |bytes: &[u8]| match bytes[0] >> 6 {
            1 => i64::from(bytes[1].cast_signed()),
            2 => i64::from(i32::from_le_bytes([bytes[1], bytes[2], bytes[3], bytes[4]])),
            _ => 0,
        };
        let aimed = (device + offset).wrapping_add_signed(displacement(&rest).wrapping_neg());
        let base = usize::from(rest[0] & 7 | rex.unwrap_or(0) << 3 & 8);
        let mut slow = make();
        *slow.guest.vcpu.gprs.get_mut(base) = aimed;
        let mut quick = make();
        *quick.guest.vcpu.gprs.get_mut(base) = aimed;
        let answer = |outcome| match outcome {
            Outcome::NeedRead { gpa, size } if known => Some(Answer::Memory { gpa, size, value: 0x8182_8384_8586_8788 }),
            _ => None,
        };
        let first = slow.step(None);
        let expected = match answer(first) {
            Some(answer) => slow.step(Some(answer)),
            None => first,
        };
        let (gpa, write) = match (first, slow.devices.writes.first(), slow.devices.reads.first()) {
            (Outcome::NeedRead { gpa, .. }, ..) => (gpa, false),
            (Outcome::Write { gpa, .. }, ..) | (_, Some(&(gpa, ..)), _) => (gpa, true),
            (_, None, Some(&gpa)) => (gpa, false),
            // No CPU stops at a device for what faults or touches none, be it at the same place of another page.
            _ => return Ok(()),
        };
        quick.cause = memory_cause(gpa, write);
        let first = quick.step(None);
        let actual = match answer(first) {
            Some(answer) => quick.step(Some(answer)),
            None => first,
        };
        prop_assert_eq!(actual, expected);
        prop_assert_eq!(&quick.guest.vcpu, &slow.guest.vcpu);
        prop_assert_eq!(quick.devices.writes, slow.devices.writes);
    }
}
