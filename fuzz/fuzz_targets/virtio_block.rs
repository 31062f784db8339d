//! A virtio queue and the block device on it, with any bytes for rings, descriptors and requests.
#![no_main]

use std::sync::Arc;

use covisor::devices::virtio::DriverSignal;
use covisor::devices::virtio::Gate;
use covisor::devices::virtio::QueueLayout;
use covisor::devices::virtio::VirtQueue;
use covisor::devices::virtio::block::BlockHandler;
use covisor::disk::MemoryBackend;
use covisor::platform::GuestRam;
use covisor_fuzz::Input;
use libfuzzer_sys::fuzz_target;
use vm_memory::Bytes;
use vm_memory::GuestAddress;

/// Where the rings usually are.
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
/// Where requests usually are.
const BUFFERS: u64 = 0x4000;
/// RAM has a hole.
const RAM: [(GuestAddress, usize); 2] = [(GuestAddress(0), 0x1_0000), (GuestAddress(0x1_0000_0000), 0x1_0000)];
const DISK: usize = 0x8000;

struct Silent;

impl DriverSignal for Silent {
    fn used(&self, _queue: u16) {}

    fn config_changed(&self) {}
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let memory = Arc::new(GuestRam::from_ranges(&RAM).expect("there is memory"));
    let mut layout =
        QueueLayout { size: 1 << (input.byte() % 6), descriptors: DESCRIPTORS, available: AVAILABLE, used: USED };
    if input.byte() > 240 {
        layout = QueueLayout {
            size: input.word(),
            descriptors: input.number(),
            available: input.number(),
            used: input.number(),
        };
    }
    let event_idx = input.flag();
    let read_only = input.byte() > 200;
    fill(&memory, layout, &mut input);

    let (signal, gate) = (Arc::new(Silent), Arc::new(Gate::opened()));
    let Ok(mut queue) = VirtQueue::new(0, &layout, 256, event_idx, Arc::clone(&memory), signal, gate) else { return };
    let disk = vec![0x55; DISK];
    let mut handler = BlockHandler::new("fuzz", "disk", Box::new(MemoryBackend::new(disk, read_only)));
    for _ in 0..4 {
        if handler.serve(&mut queue).is_err() {
            return;
        }
        // The driver goes on.
        let _ = memory.write_obj(input.word(), GuestAddress(layout.available + 2));
    }
});

/// Writes what a driver would: chains of a header, data and a status byte, with any fields.
fn fill(memory: &GuestRam, layout: QueueLayout, input: &mut Input<'_>) {
    let size = layout.size.clamp(1, 256);
    let chains = u16::from(input.byte()) % 8;
    for index in 0..u16::from(input.byte()) % 32 {
        let kind = input.byte();
        let address = if kind & 64 != 0 { input.number() } else { BUFFERS + u64::from(input.word() % 0x8000) };
        let length = if kind & 32 != 0 { input.number() as u32 } else { u32::from(input.word() % 1025) };
        let next = if kind & 16 != 0 { input.word() } else { index + 1 };
        let mut descriptor = address.to_le_bytes().to_vec();
        descriptor.extend(length.to_le_bytes());
        descriptor.extend(u16::from(kind & 7).to_le_bytes());
        descriptor.extend(next.to_le_bytes());
        let _ = memory.write_slice(&descriptor, GuestAddress(layout.descriptors.wrapping_add(u64::from(index) * 16)));
    }
    for entry in 0..chains {
        let place = layout.available.wrapping_add(4 + u64::from(entry % size) * 2);
        let _ = memory.write_obj(u16::from(input.byte()) % size, GuestAddress(place));
    }
    let _ = memory.write_obj(chains, GuestAddress(layout.available.wrapping_add(2)));
    // Requests: type, sector, and what else there is.
    for _ in 0..input.byte() % 8 {
        let place = BUFFERS + u64::from(input.word() % 0x8000);
        let mut header = u32::from(input.byte() % 16).to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend((input.number() % 0x100).to_le_bytes());
        let _ = memory.write_slice(&header, GuestAddress(place));
    }
    let rest = input.rest();
    let count = rest.len().min(0x8000);
    let _ = memory.write_slice(&rest[..count], GuestAddress(BUFFERS));
}
