//! The kernel loader: any file as a kernel, from its decompression to the guest's first registers.
#![no_main]

use std::io::Cursor;
use std::sync::OnceLock;

use covisor::kernel::Image;
use covisor::kernel::KernelFile;
use covisor::kernel::Plan;
use covisor::kernel::Request;
use covisor::kernel::decompress;
use covisor::layout::Ram;
use covisor::platform::GuestRam;
use covisor_abi::paravirtual::RAM_LIMIT;
use covisor_fuzz::Input;
use libfuzzer_sys::fuzz_target;
use vm_memory::GuestAddress;

const MIB: u64 = 1 << 20;
/// The guest's RAM where the plan is executed.
const SIZE: u64 = 64 * MIB;

fn memory() -> &'static GuestRam {
    static MEMORY: OnceLock<GuestRam> = OnceLock::new();
    MEMORY.get_or_init(|| {
        let ranges: Vec<_> = Ram::new(SIZE)
            .ranges()
            .into_iter()
            .map(|(start, size)| (GuestAddress(start), usize::try_from(size).expect("64 bits")))
            .collect();
        GuestRam::from_ranges(&ranges).expect("there is memory")
    })
}

/// What was planned fits, and does not overlap.
fn check(plan: &Plan, ram: Ram) {
    let mut taken: Vec<(u64, u64)> =
        plan.segments().iter().map(|segment| (segment.address, segment.file_size)).chain(plan.initrd()).collect();
    taken.sort_unstable();
    for (index, (start, size)) in taken.iter().enumerate() {
        let end = start.checked_add(*size).expect("ends in the address space");
        assert!(end <= ram.end());
        assert!(taken.get(index + 1).is_none_or(|next| end <= next.0));
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let choice = input.byte();
    let ram = Ram::new(match choice % 4 {
        0 => u64::from(input.byte()) << 12,
        1 => 4096 * MIB,
        _ => SIZE,
    });
    let initrd_size = (choice & 16 != 0).then(|| input.number());
    let command_line = "x".repeat(if choice & 32 != 0 { usize::from(input.word()) } else { 10 });
    let mut file = Cursor::new(input.rest().to_vec());
    if let Ok(Some(bytes)) = decompress(&mut file, SIZE) {
        assert!(bytes.len() as u64 <= SIZE);
        file = Cursor::new(bytes);
    }
    let request = Request { ram, command_line: &command_line, initrd_size };
    if choice & 64 != 0 && ram.size() <= RAM_LIMIT {
        let Ok((mut file, image)) = KernelFile::Decompressed(file).into_elf(ram) else { return };
        let Ok(plan) = Plan::paravirtual(&image, &request) else { return };
        check(&plan, ram);
        assert!(plan.console_ring().is_some_and(|page| page < ram.end()));
        if ram.size() == SIZE {
            let _ = plan.execute(memory(), &mut file, None);
        }
        return;
    }
    let Ok(image) = Image::parse(&mut file) else { return };
    let Ok(plan) = Plan::new(&image, &request) else { return };
    check(&plan, ram);
    if ram.size() == SIZE {
        // The file may be truncated; then it says so.
        let _ = plan.execute(memory(), &mut file, None);
    }
});
