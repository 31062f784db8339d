//! The start by the 64-bit Xen PV ABI (Xen's public headers `xen.h`, `arch-x86/xen-x86_64.h` and `elfnote.h`), for the engine
//! that runs the guest's kernel in ring 3.
//!
//! The kernel begins at its link address, on page tables that we make, with paging on. Frame numbers of machine and guest are
//! the same, so the list that tells the kernel the one for the other counts up from 0.

mod hypercall_page;
mod layout;
mod page_tables;
mod start_info;
mod support;
#[cfg(test)]
mod tests;

use covisor_abi::PAGE_SIZE;
use zerocopy::IntoBytes;

use self::layout::Layout;
use self::page_tables::FrameListTables;
use self::page_tables::KernelTables;
use self::start_info::StartInfo;
use self::support::Support;
use super::ElfImage;
use super::KernelError;
use super::Plan;
use super::Request;
use super::start;

/// Decides where everything goes for a kernel in an ELF file.
pub(super) fn plan(image: &ElfImage, request: &Request<'_>) -> Result<Plan, KernelError> {
    let support = Support::of(image)?;
    let len = request.command_line.len() as u64;
    if len > start_info::COMMAND_LINE_MAX {
        return Err(KernelError::CommandLineTooLong { len, max: start_info::COMMAND_LINE_MAX });
    }
    let layout = Layout::new(image.end(), request.ram.size(), request.initrd_size.unwrap_or(0))?;

    let info = StartInfo::new(&support, &layout, request.command_line);
    let kernel_tables = KernelTables { layout: &layout, support: &support };
    let list_tables = FrameListTables { layout: &layout, support: &support };
    let mut blobs = vec![
        (layout.start_info, info.as_bytes().to_vec()),
        (layout.page_tables, kernel_tables.bytes()),
        (layout.frame_list, (0..layout.pages).flat_map(u64::to_le_bytes).collect()),
        (layout.frame_list_tables, list_tables.bytes()),
    ];
    blobs.extend(support.hypercall_page.map(|address| (address, hypercall_page::bytes())));
    let state = start::paravirtual(start::Paravirtual {
        entry: support.entry,
        page_table: layout.page_tables,
        start_info: support.virtual_address(layout.start_info),
        stack: support.virtual_address(layout.stack + PAGE_SIZE),
    });
    Ok(Plan {
        segments: image.segments.clone(),
        initrd: layout.initrd,
        blobs,
        state,
        console_ring: Some(layout.console_ring),
    })
}
