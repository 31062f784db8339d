//! The maps by which a CPU tells which ports and MSRs make a guest exit: AMD-V's permission maps (APM vol. 2, 15.10 and 15.11),
//! VT-x's bitmaps (SDM vol. 3, 25.6.4 and 25.6.9). A bit that is set makes it exit; which bit is whose is the engine's to know. One
//! pair serves all VMs, for what passes is core's policy ([`crate::msr::PASSED_THROUGH`]) and the same for each.

use crate::host::Block;
use crate::host::Host;
use crate::host::OutOfMemory;

/// The two maps.
#[derive(Debug)]
pub struct PermissionMaps {
    io: Block,
    msr: Block,
}

/// A map of 2^`order` pages by which everything exits.
fn closed<H: Host>(order: u32) -> Result<Block, OutOfMemory> {
    let block = H::alloc_block(order).ok_or(OutOfMemory)?;
    // SAFETY: the block has this size and is ours alone.
    unsafe { block.virt.as_ptr().write_bytes(u8::MAX, size(order)) };
    Ok(block)
}

/// Bytes of 2^`order` pages.
const fn size(order: u32) -> usize {
    4096 << order
}

impl PermissionMaps {
    /// Maps of 2^`io_order` and 2^`msr_order` pages. Everything exits but the MSRs whose bits `open` clears in theirs.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new<H: Host>(io_order: u32, msr_order: u32, open: impl FnOnce(&mut [u8])) -> Result<Self, OutOfMemory> {
        let io = closed::<H>(io_order)?;
        let msr = closed::<H>(msr_order).inspect_err(|_| {
            // SAFETY: just allocated, unused.
            unsafe { H::free_block(io) };
        })?;
        // SAFETY: the block has this size, is ours alone, and its bytes are written.
        open(unsafe { core::slice::from_raw_parts_mut(msr.virt.as_ptr(), size(msr_order)) });
        Ok(Self { io, msr })
    }

    /// Frees them; no vCPU that uses them is left.
    pub fn free<H: Host>(self) {
        // SAFETY: allocated in new(), and no control block names them any more.
        unsafe {
            H::free_block(self.io);
            H::free_block(self.msr);
        }
    }

    /// Physical address of the ports' map.
    #[must_use]
    pub const fn io(&self) -> u64 {
        self.io.phys
    }

    /// Physical address of the MSRs' map.
    #[must_use]
    pub const fn msr(&self) -> u64 {
        self.msr.phys
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::MockHost;

    #[test]
    fn test_attack_everything_exits_but_what_is_opened() {
        let before = MockHost::blocks();
        let maps = PermissionMaps::new::<MockHost>(1, 0, |map| {
            assert_eq!(map.len(), 4096);
            map[17] = 0xf7;
        })
        .expect("there is memory");
        // SAFETY: the blocks have two pages and one, and nobody writes them.
        let (io, msr) = unsafe {
            (
                core::slice::from_raw_parts(maps.io.virt.as_ptr(), 8192),
                core::slice::from_raw_parts(maps.msr.virt.as_ptr(), 4096),
            )
        };
        assert!(io.iter().all(|byte| *byte == 0xff));
        assert!(msr.iter().enumerate().all(|(at, byte)| *byte == if at == 17 { 0xf7 } else { 0xff }));
        assert_eq!((maps.io(), maps.msr()), (maps.io.phys, maps.msr.phys));
        maps.free::<MockHost>();
        assert_eq!(MockHost::blocks(), before);
    }

    #[test]
    fn test_what_there_is_no_memory_for_leaves_nothing_behind() {
        let before = MockHost::blocks();
        MockHost::set_no_memory(true);
        let refused = PermissionMaps::new::<MockHost>(0, 0, |_| {}).map(drop);
        MockHost::set_no_memory(false);
        assert_eq!((refused, MockHost::blocks()), (Err(OutOfMemory), before));
    }
}
