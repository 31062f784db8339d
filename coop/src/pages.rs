//! Memory of the monitor's, page by page: the host need not have any in a row.

use alloc::vec::Vec;

use covisor_core::host::Block;
use covisor_core::host::Host;
use covisor_core::host::OutOfMemory;
use covisor_monitor::layout::PAGE;

use crate::rights::Rights;
use crate::rights::Tables;

/// A size, an index or an address on this CPU, whose addresses have 64 bits.
#[expect(clippy::cast_possible_truncation, reason = "both types have 64 bits here")]
pub(crate) const fn to_usize(value: u64) -> usize {
    value as usize
}

/// Pages that belong together.
#[derive(Debug, Default)]
pub(crate) struct Pages(Vec<Block>);

impl Pages {
    /// One more, zeroed.
    pub(crate) fn add<H: Host>(&mut self) -> Result<Block, OutOfMemory> {
        self.0.try_reserve(1).map_err(|_| OutOfMemory)?;
        let block = H::alloc_block(0).ok_or(OutOfMemory)?;
        self.0.push(block);
        Ok(block)
    }

    /// So many bytes at least, from `address` on, where earlier pages of this value are mapped already.
    pub(crate) fn grow<H: Host>(
        &mut self,
        tables: &mut Tables,
        address: u64,
        bytes: u64,
        rights: Rights,
    ) -> Result<(), OutOfMemory> {
        tables.set_format(rights);
        while self.size() < bytes {
            let at = address + self.size();
            let block = self.add::<H>()?;
            tables.map::<H>(at, block.phys, block.order).inspect_err(|_| {
                self.0.pop();
                // SAFETY: just allocated, and nothing names it.
                unsafe { H::free_block(block) };
            })?;
        }
        Ok(())
    }

    /// Bytes.
    fn size(&self) -> u64 {
        self.0.len() as u64 * PAGE
    }

    /// The pages, in their order.
    pub(crate) fn blocks(&self) -> &[Block] {
        &self.0
    }

    /// Writes 8 bytes at an offset that is a multiple of 8; does nothing behind the end.
    pub(crate) fn write(&mut self, offset: u64, value: u64) {
        let (page, within) = (offset / PAGE, offset % PAGE / 8);
        if let Some(block) = self.0.get(to_usize(page)) {
            // SAFETY: a page has 512 times 8 bytes. It is ours, and nobody uses it while the VM is put together.
            unsafe { block.virt.cast::<u64>().add(to_usize(within)).write(value) };
        }
    }

    /// Gives them back; no CPU uses them any more.
    pub(crate) fn free<H: Host>(self) {
        for block in self.0 {
            // SAFETY: allocated in add(), and by the caller nothing names them any more.
            unsafe { H::free_block(block) };
        }
    }
}
