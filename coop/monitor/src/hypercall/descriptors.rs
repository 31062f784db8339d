//! Segments, exception handlers and debug registers.

use crate::area::DR6_RESET;
use crate::descriptor::sanitised;
use crate::errno::Errno;
use crate::hypercall::Arguments;
use crate::hypercall::Done;
use crate::hypercall::OK;
use crate::hypercall::Outcome;
use crate::layout::GDT_PAGES;
use crate::layout::LDT_PAGES;
use crate::layout::PAGE;
use crate::layout::is_monitors;
use crate::layout::place;
use crate::layout::selector;
use crate::machine::Machine;
use crate::processor::Processor;
use crate::state::TableFrames;
use crate::state::TrapHandler;
use crate::state::VECTORS;

/// Descriptors in a page.
const PER_PAGE: u64 = PAGE / 8;
/// Descriptors of the guest's in the GDT.
const GDT_ENTRIES: u64 = (GDT_PAGES - 1) * PER_PAGE;
/// Descriptors in the LDT.
const LDT_ENTRIES: u64 = LDT_PAGES * PER_PAGE;

/// What `set_segment_base` sets.
mod segment_base {
    pub(super) const FS: u64 = 0;
    pub(super) const GS_USER: u64 = 1;
    pub(super) const GS_KERNEL: u64 = 2;
    pub(super) const GS_USER_SELECTOR: u64 = 3;
}

/// DR7: always set.
const DR7_FIXED: u64 = 1 << 10;
/// DR7: what a guest can have. General detect and what is reserved it cannot.
const DR7_ALLOWED: u64 = 0xffff_03ff;

/// Whether an address has bits 63 to 47 all alike.
pub(crate) const fn is_canonical(address: u64) -> bool {
    let upper = address >> 47;
    upper == 0 || upper == 0x1_ffff
}

/// Whether the guest's kernel can begin there: an address of its own.
pub(crate) const fn is_entry(address: u64) -> bool {
    is_canonical(address) && !is_monitors(address)
}

impl<P: Processor> Machine<'_, P> {
    /// `set_trap_table(table)`: handlers of exceptions, up to the first whose address is 0; no table is no handlers.
    pub(super) fn set_trap_table(&mut self, &[table, ..]: &Arguments) -> Outcome {
        if table == 0 {
            self.state.traps = [TrapHandler::default(); VECTORS];
            return OK;
        }
        for index in 0..=VECTORS as u64 {
            let [first, address] = self.read_words::<2>(table.wrapping_add(index * 16))?;
            if address == 0 {
                return OK;
            }
            if !is_entry(address) {
                return Err(Errno::EINVAL);
            }
            let [vector, flags, ..] = first.to_le_bytes();
            if let Some(handler) = self.state.traps.get_mut(usize::from(vector)) {
                *handler = TrapHandler { address, flags };
            }
        }
        Err(Errno::EINVAL)
    }

    /// `set_gdt(frames, entries)`: the frames of the guest's descriptor table.
    pub(super) fn set_gdt(&mut self, &[list, entries, ..]: &Arguments) -> Outcome {
        let entries = entries & 0xffff_ffff;
        if entries > GDT_ENTRIES {
            return Err(Errno::EINVAL);
        }
        let mut table = TableFrames { entries: entries.next_multiple_of(PER_PAGE), ..TableFrames::NONE };
        for index in 0..entries.div_ceil(PER_PAGE) {
            let [frame] = self.read_words::<1>(list.wrapping_add(index * 8))?;
            if frame >= self.config.frames {
                return Err(Errno::EINVAL);
            }
            if let Some(entry) = table.frames.get_mut(table.count) {
                *entry = frame;
                table.count += 1;
            }
        }
        let frames = table.frames;
        for (frame, page) in frames.iter().take(table.count).zip(self.tables.gdt.chunks_mut(place(PER_PAGE))) {
            for (descriptor, offset) in page.iter_mut().zip((0..PAGE).step_by(8)) {
                *descriptor = sanitised(self.space.read_word((frame << 12) + offset).unwrap_or(0));
            }
        }
        let own = place(GDT_ENTRIES).min(self.tables.gdt.len());
        self.tables.gdt[table.count * place(PER_PAGE)..own].fill(0);
        self.state.gdt = table;
        OK
    }

    /// `mmuext_op`'s `SET_LDT`: a table of `entries` descriptors at guest-virtual `address`.
    pub(super) fn set_ldt(&mut self, address: u64, entries: u64) -> Result<(), Errno> {
        let mut table = TableFrames::NONE;
        if entries > LDT_ENTRIES || !address.is_multiple_of(PAGE) {
            return Err(Errno::EINVAL);
        }
        for page in 0..entries.div_ceil(PER_PAGE) {
            let virtual_address = address.wrapping_add(page * PAGE);
            let gpa = self.state.mmu.translate(&self.space, virtual_address, false).ok_or(Errno::EFAULT)?;
            if let Some(frame) = table.frames.get_mut(table.count) {
                *frame = gpa >> 12;
                table.count += 1;
            }
        }
        table.entries = entries;
        for index in 0..entries {
            let frame = table.frames.get(place(index / PER_PAGE)).copied().unwrap_or(0);
            let descriptor = self.space.read_word((frame << 12) + index % PER_PAGE * 8).unwrap_or(0);
            if let Some(entry) = self.tables.ldt.get_mut(place(index)) {
                *entry = sanitised(descriptor);
            }
        }
        let used = place(entries).min(self.tables.ldt.len());
        let before = place(self.state.ldt.entries).clamp(used, self.tables.ldt.len());
        self.tables.ldt[used..before].fill(0);
        self.state.ldt = table;
        Ok(())
    }

    /// `update_descriptor(address, descriptor)`: a descriptor in the guest's memory, and where it is in use in the CPU's table.
    pub(super) fn update_descriptor(&mut self, &[address, descriptor, ..]: &Arguments) -> Outcome {
        if !address.is_multiple_of(8) {
            return Err(Errno::EINVAL);
        }
        self.space.write_word(address, descriptor).ok_or(Errno::EINVAL)?;
        if let Some(index) = self.state.gdt.index_of(address)
            && index < GDT_ENTRIES
            && let Some(entry) = self.tables.gdt.get_mut(place(index))
        {
            *entry = sanitised(descriptor);
        }
        if let Some(index) = self.state.ldt.index_of(address)
            && let Some(entry) = self.tables.ldt.get_mut(place(index))
        {
            *entry = sanitised(descriptor);
        }
        self.state.mmu.table_stored(&mut self.space, &mut self.cpu, address, 8);
        OK
    }

    /// `set_segment_base(which, base)`.
    pub(super) fn set_segment_base(&mut self, &[which, base, ..]: &Arguments) -> Outcome {
        if which == segment_base::GS_USER_SELECTOR {
            let selector = u16::try_from(base & 0xffff).unwrap_or(0);
            self.cpu.load_user_gs(if selector == 0 { 0 } else { selector | selector::RPL });
            return OK;
        }
        if !is_canonical(base) {
            return Err(Errno::EINVAL);
        }
        match which {
            segment_base::FS => self.cpu.set_fs_base(base),
            segment_base::GS_USER => self.cpu.set_other_gs_base(base),
            segment_base::GS_KERNEL => self.cpu.set_gs_base(base),
            _ => return Err(Errno::EINVAL),
        }
        OK
    }

    /// `set_debugreg(number, value)`: breakpoints are the guest's own addresses only.
    pub(super) fn set_debugreg(&mut self, &[number, value, ..]: &Arguments) -> Outcome {
        let value = match number {
            0..4 if is_entry(value) => value,
            6 => DR6_RESET | value & 0xf | value & 0xe000,
            7 => {
                let checked = value & DR7_ALLOWED | DR7_FIXED;
                // Breakpoints on ports (R/W = 10b) would come with CR4.DE only, which the guest does not have.
                let ports = (0..4).any(|index| checked >> (16 + index * 4) & 3 == 2);
                if ports || value >> 32 != 0 {
                    return Err(Errno::EINVAL);
                }
                checked
            }
            _ => return Err(Errno::EINVAL),
        };
        let slot = if number < 4 { number } else { number - 2 };
        if let Some(register) = self.area.debug.get_mut(place(slot)) {
            *register = value;
        }
        let [dr0, dr1, dr2, dr3, _, dr7] = self.area.debug;
        self.cpu.load_breakpoints([dr0, dr1, dr2, dr3], dr7);
        OK
    }

    /// `get_debugreg(number)`.
    pub(super) fn get_debugreg(&mut self, &[number, ..]: &Arguments) -> Outcome {
        let slot = match number {
            0..4 => number,
            6 | 7 => number - 2,
            _ => return Err(Errno::EINVAL),
        };
        Ok(Done::Result(self.area.debug.get(place(slot)).copied().unwrap_or(0)))
    }
}
