//! Frames that are not the guest's, wherever a guest can name a frame.

use super::check;
use super::foreign_frames;
use super::look;
use crate::cmdline::CommandLine;
use crate::xen::abi::call;
use crate::xen::abi::mmuext;
use crate::xen::abi::uvmf;
use crate::xen::abi::vcpu;
use crate::xen::frames;
use crate::xen::hypercall;
use crate::xen::hypercall::at;
use crate::xen::hypercall::hypercall;
use crate::xen::hypercall::mmuext;
use crate::xen::segments;
use crate::xen::tables;
use crate::xen::tables::RO;
use crate::xen::tables::RW;
use crate::xen::tables::TABLE;
use crate::xen::window::Window;

/// In the lowest level, by every way that there is.
pub(super) fn leaves(_: &CommandLine) {
    let window = Window::new();
    for frame in foreign_frames() {
        for value in [frame << 12 | RW, frame << 12 | RO, frame << 12 | RW | 0x7ff << 52] {
            window.set(8, value);
            look("a foreign frame by mmu_update", Window::page(8));
            hypercall::update_va_mapping(Window::page(8), value, uvmf::INVLPG);
            look("a foreign frame by update_va_mapping", Window::page(8));
            window.set(8, 0);
            let _ = super::store(window.entry(8), value);
            look("a foreign frame by a store", Window::page(8));
            check();
            window.set(8, 0);
        }
    }
    // By a table that had them before it was one.
    let table = frames::take();
    let address = Window::BASE + (40 << 21);
    let entry = tables::reach(tables::kernel(), address, 2);
    for (index, frame) in (0..).zip(foreign_frames()) {
        frames::write(table + index * 8, frame << 12 | RW);
    }
    tables::make(table);
    println!("probe: frames-not-owned: a table of them: {}", tables::set(entry, frames::machine(table) | TABLE));
    for (index, _) in (0..).zip(foreign_frames()) {
        look("a foreign frame in a table from before", address + index * frames::PAGE);
    }
    check();
    tables::set(entry, 0);
    hypercall::flush();
}

/// In the upper levels: page tables in memory of others.
pub(super) fn upper_entries(_: &CommandLine) {
    let _ = Window::new();
    for (level, address) in [(2, Window::BASE + (41 << 21)), (3, Window::BASE + (71 << 30)), (4, 201 << 39)] {
        let Some(entry) = tables::find(tables::kernel(), address, level) else { continue };
        for frame in foreign_frames() {
            tables::set(entry, frame << 12 | TABLE);
            look("a foreign frame as a table", address);
            hypercall::update_va_mapping(address, frame << 12 | RW, uvmf::INVLPG);
            look("what a foreign table maps", address);
            check();
            tables::set(entry, 0);
        }
        hypercall::flush();
    }
}

/// As roots, pinned, in descriptor tables, for records.
pub(super) fn everywhere_else(_: &CommandLine) {
    let mut taken = 0;
    for frame in foreign_frames().chain([u64::MAX, u64::MAX >> 12, 1 << 52, 1 << 63]) {
        let list = [frame; 14];
        let record = [frame, 0];
        let results = [
            mmuext(mmuext::NEW_BASEPTR, frame, 0),
            mmuext(mmuext::NEW_USER_BASEPTR, frame, 0),
            mmuext(mmuext::PIN_L1, frame, 0),
            mmuext(mmuext::PIN_L2, frame, 0),
            mmuext(mmuext::PIN_L3, frame, 0),
            mmuext(mmuext::PIN_L4, frame, 0),
            mmuext(mmuext::UNPIN, frame, 0),
            segments::set_gdt(&list, 14 * 512),
            hypercall::update_descriptor(frame.saturating_mul(frames::PAGE) & !7, 0x00cf_f300_0000_ffff),
            hypercall::mmu_update(frame.saturating_mul(frames::PAGE) & !7, 0),
            hypercall(call::VCPU_OP, [vcpu::REGISTER_VCPU_INFO, 0, at(record.as_ptr())]),
        ];
        for (index, result) in results.into_iter().enumerate() {
            if result == 0 {
                taken += 1;
                println!("probe: roots-not-owned: frame {frame:#x} is taken by way {index}");
            }
        }
        check();
    }
    if taken != 0 {
        super::broke_through(format_args!("roots-not-owned: {taken} were taken"));
    }
    mmuext(mmuext::NEW_USER_BASEPTR, tables::frame(tables::users()), 0);
    segments::load();
}
