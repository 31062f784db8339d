//! The monitor's image in pages of its own, for all VMs. Nobody writes to them.

use covisor_core::host::Host;
use covisor_core::host::OutOfMemory;
use covisor_monitor::image::Header;
use covisor_monitor::layout::ENTRY;
use covisor_monitor::layout::IMAGE;
use covisor_monitor::layout::PAGE;

use crate::pages::Pages;
use crate::pages::to_usize;
use crate::rights::Rights;
use crate::rights::Tables;

/// The image; empty where the driver was built without one.
static BYTES: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/monitor.bin"));

/// Its header, if there is an image.
pub(crate) fn header() -> Option<Header> {
    Header::of(BYTES)
}

/// The image in memory.
#[derive(Debug)]
pub(crate) struct Image {
    header: Header,
    pages: Pages,
}

impl Image {
    /// Copies the image that the driver carries.
    pub(crate) fn new<H: Host>() -> Result<Self, OutOfMemory> {
        let header = header().ok_or(OutOfMemory)?;
        Self::load::<H>(header, BYTES)
    }

    /// Copies an image with this header.
    pub(crate) fn load<H: Host>(header: Header, bytes: &[u8]) -> Result<Self, OutOfMemory> {
        let mut pages = Pages::default();
        for chunk in bytes.chunks(to_usize(PAGE)) {
            match pages.add::<H>() {
                // SAFETY: the page is new, so it is ours alone, and has room for a chunk.
                Ok(block) => unsafe {
                    core::ptr::copy_nonoverlapping(chunk.as_ptr(), block.virt.as_ptr(), chunk.len());
                },
                Err(error) => {
                    pages.free::<H>();
                    return Err(error);
                }
            }
        }
        Ok(Self { header, pages })
    }

    /// Where the monitor is entered.
    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    /// Maps it where it was linked.
    pub(crate) fn map<H: Host>(&self, tables: &mut Tables) -> Result<(), OutOfMemory> {
        let Header { entry_pages, text_pages, constant_pages, .. } = self.header;
        let entry = (0..entry_pages).map(|page| (ENTRY + page * PAGE, Rights::CODE));
        let text = (0..text_pages).map(|page| (IMAGE + page * PAGE, Rights::CODE));
        let constants = (text_pages..text_pages + constant_pages).map(|page| (IMAGE + page * PAGE, Rights::CONSTANTS));
        for (block, (address, rights)) in self.pages.blocks().iter().zip(entry.chain(text).chain(constants)) {
            tables.set_format(rights);
            tables.map::<H>(address, block.phys, block.order)?;
        }
        Ok(())
    }

    pub(crate) fn free<H: Host>(self) {
        self.pages.free::<H>();
    }
}
