//! Guest RAM in the loader's address space.
//!
//! A mapping is taken back in the process that has it, and before its memory is freed. There are two ways to that, and the one
//! that comes first does it: the VM ends, in whatever process has the last handle then; or the process ends, before its address
//! space goes ([`Maps::process_ended`]). A lock is held meanwhile, so the process does not go on with its end while another
//! thread is in its address space.

use alloc::vec::Vec;
use core::marker::PhantomData;

use covisor_core::host::Block;
use covisor_core::host::OutOfMemory;

use crate::kapi::ApcState;
use crate::kapi::Kapi;
use crate::kapi::Mdl;
use crate::kapi::Process;
use crate::lock::Lock;

/// Pages that one MDL describes. Its size is a signed 16-bit number in bytes, 8 for each page.
const MDL_PAGES: usize = 2048;
const PAGE: usize = 4096;
/// How often room is looked for: other threads of the process may be quicker to take it.
const TRIES: usize = 8;

/// A part of a mapping, where its MDL is mapped.
#[derive(Debug)]
struct Part {
    address: usize,
    mdl: Mdl,
}

/// A mapping of one region in one process.
#[derive(Debug)]
struct Map<K: Kapi> {
    id: u64,
    /// It is referenced.
    process: Process,
    parts: Vec<Part>,
    kapi: PhantomData<fn() -> K>,
}

impl<K: Kapi> Map<K> {
    /// Maps the blocks at `address` of the calling process.
    fn new(address: usize, frames: &mut dyn Iterator<Item = usize>, pages: usize) -> Result<Self, OutOfMemory> {
        let process = K::current_process();
        // SAFETY: it is the current one.
        unsafe { K::process_reference(process) };
        let mut map = Self { id: 0, process, parts: Vec::new(), kapi: PhantomData };
        match map.fill(address, frames, pages) {
            Ok(()) => Ok(map),
            Err(error) => {
                map.undo();
                Err(error)
            }
        }
    }

    fn fill(
        &mut self,
        address: usize,
        frames: &mut dyn Iterator<Item = usize>,
        pages: usize,
    ) -> Result<(), OutOfMemory> {
        self.parts.try_reserve_exact(pages.div_ceil(MDL_PAGES)).map_err(|_| OutOfMemory)?;
        for first in (0..pages).step_by(MDL_PAGES) {
            let address = address + first * PAGE;
            let mdl = K::allocate_mdl(MDL_PAGES.min(pages - first)).ok_or(OutOfMemory)?;
            // SAFETY: the MDL is ours alone, and its frames are those of blocks that stay longer than the mapping.
            let mapped = unsafe {
                for (frame, source) in K::mdl_frames(mdl).as_mut().iter_mut().zip(&mut *frames) {
                    *frame = source;
                }
                K::map_to_user(mdl, address)
            };
            match mapped {
                Some(there) if there == address => self.parts.push(Part { address, mdl }),
                other => {
                    // SAFETY: it is mapped there in this process, or nowhere; then nobody has the MDL any more.
                    unsafe {
                        if let Some(elsewhere) = other {
                            K::unmap(elsewhere, mdl);
                        }
                        K::free_mdl(mdl);
                    }
                    return Err(OutOfMemory);
                }
            }
        }
        Ok(())
    }

    /// Takes it back. The process is the current one.
    fn undo(self) {
        for part in self.parts {
            // SAFETY: mapped there in this process, by fill(); nobody has the MDL any more then.
            unsafe {
                K::unmap(part.address, part.mdl);
                K::free_mdl(part.mdl);
            }
        }
        // SAFETY: new() took the reference.
        unsafe { K::process_release(self.process) };
    }

    /// Takes it back from any process. Its own has not ended.
    fn undo_from_anywhere(self) {
        let process = self.process;
        if K::current_process() == process {
            return self.undo();
        }
        let state = ApcState::new();
        // SAFETY: the process is referenced, for one more time so that undo() may give back its own, and has its address space
        // still: process_ended() would have come before that goes.
        unsafe {
            K::process_reference(process);
            K::attach(process, &state);
            self.undo();
            K::detach(&state);
            K::process_release(process);
        }
    }
}

/// All mappings of the driver's.
#[derive(Debug)]
pub(crate) struct Maps<K: Kapi> {
    maps: Lock<K, (u64, Vec<Map<K>>)>,
}

// SAFETY: MDLs and processes belong to no thread.
unsafe impl<K: Kapi> Send for Map<K> {}

impl<K: Kapi> Maps<K> {
    pub(crate) const fn new() -> Self {
        Self { maps: Lock::new((0, Vec::new())) }
    }

    /// # Safety
    /// As [`Lock::initialize`].
    pub(crate) unsafe fn initialize(&self) {
        // SAFETY: by the caller.
        unsafe { self.maps.initialize() };
    }

    /// Maps blocks into the calling process, in their order. Returns the address and the mapping's number.
    pub(crate) fn add(&self, blocks: &[Block]) -> Result<(usize, u64), OutOfMemory> {
        let pages = blocks.iter().map(|block| 1_usize << block.order).sum::<usize>();
        let bytes = pages.checked_mul(PAGE).ok_or(OutOfMemory)?;
        for _ in 0..TRIES {
            let address = K::find_user_room(bytes).ok_or(OutOfMemory)?;
            let mut frames = blocks.iter().flat_map(|block| {
                #[expect(clippy::cast_possible_truncation, reason = "both have 64 bits")]
                let first = block.phys as usize / PAGE;
                first..first + (1 << block.order)
            });
            let Ok(mut map) = Map::new(address, &mut frames, pages) else { continue };
            let mut guard = self.maps.lock();
            let (next, maps) = &mut *guard;
            if maps.try_reserve(1).is_err() {
                map.undo();
                return Err(OutOfMemory);
            }
            *next += 1;
            map.id = *next;
            maps.push(map);
            return Ok((address, *next));
        }
        Err(OutOfMemory)
    }

    /// Takes a mapping back, if its process has not ended.
    pub(crate) fn remove(&self, id: u64) {
        let mut guard = self.maps.lock();
        if let Some(index) = guard.1.iter().position(|map| map.id == id) {
            guard.1.swap_remove(index).undo_from_anywhere();
        }
    }

    /// The process ends, and calls this itself before its address space goes. Nothing of it comes to [`Maps::add`] any more.
    pub(crate) fn process_ended(&self, process: Process) {
        let mut guard = self.maps.lock();
        while let Some(index) = guard.1.iter().position(|map| map.process == process) {
            guard.1.swap_remove(index).undo();
        }
    }
}

/// A mapping, until it is dropped.
#[derive(Debug)]
pub struct Mapping<K: Kapi> {
    id: u64,
    kapi: PhantomData<fn() -> K>,
}

impl<K: Kapi> Mapping<K> {
    pub(crate) const fn new(id: u64) -> Self {
        Self { id, kapi: PhantomData }
    }
}

impl<K: Kapi> Drop for Mapping<K> {
    fn drop(&mut self) {
        K::port().maps().remove(self.id);
    }
}
