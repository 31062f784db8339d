//! `struct start_info` (Xen `xen.h`): what the kernel is told.

use std::mem::offset_of;

use covisor_abi::PAGE_SIZE;
use covisor_abi::paravirtual::CONSOLE_CHANNEL;
use covisor_abi::paravirtual::SHARED_INFO;
use zerocopy::Immutable;
use zerocopy::IntoBytes;

use super::layout::Layout;
use super::support::Support;

/// `magic`, with zeros behind.
const MAGIC: &[u8] = b"xen-3.0-x86_64";
/// `MAX_GUEST_CMDLINE`.
const COMMAND_LINE_SIZE: usize = 1024;
/// Longest command line, without its NUL.
pub(super) const COMMAND_LINE_MAX: u64 = COMMAND_LINE_SIZE as u64 - 1;
/// `SIF_MOD_START_PFN`: `mod_start` is the number of a page.
const MOD_START_PFN: u32 = 1 << 3;
/// `SIF_VIRT_P2M_4TOOLS`: nobody but the kernel looks at its list of frames, so it need not keep it in an older form.
const VIRT_P2M_4TOOLS: u32 = 1 << 4;

/// `struct start_info`, in its 64-bit form.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct StartInfo {
    magic: [u8; 32],
    nr_pages: u64,
    /// Machine address.
    shared_info: u64,
    flags: u32,
    padding_0: u32,
    /// There is no xenstore.
    store_mfn: u64,
    store_evtchn: u32,
    padding_1: u32,
    console_mfn: u64,
    console_evtchn: u32,
    padding_2: u32,
    /// Virtual address.
    pt_base: u64,
    nr_pt_frames: u64,
    /// Virtual address.
    mfn_list: u64,
    mod_start: u64,
    mod_len: u64,
    cmd_line: [u8; COMMAND_LINE_SIZE],
    first_p2m_pfn: u64,
    /// With the page tables that map the list.
    nr_p2m_frames: u64,
}

const _: () = assert!(offset_of!(StartInfo, flags) == 48);
const _: () = assert!(offset_of!(StartInfo, store_mfn) == 56);
const _: () = assert!(offset_of!(StartInfo, console_mfn) == 72);
const _: () = assert!(offset_of!(StartInfo, console_evtchn) == 80);
const _: () = assert!(offset_of!(StartInfo, pt_base) == 88);
const _: () = assert!(offset_of!(StartInfo, mod_start) == 112);
const _: () = assert!(offset_of!(StartInfo, cmd_line) == 128);
const _: () = assert!(offset_of!(StartInfo, first_p2m_pfn) == 1152);
const _: () = assert!(size_of::<StartInfo>() == 1168);

impl StartInfo {
    /// For a command line of at most [`COMMAND_LINE_MAX`] bytes.
    pub(super) fn new(support: &Support, layout: &Layout, command_line: &str) -> Self {
        let frame = |address: u64| address / PAGE_SIZE;
        let (mod_start, mod_len) = layout.initrd.map_or((0, 0), |(start, size)| (frame(start), size));
        let mut info = Self {
            magic: [0; 32],
            nr_pages: layout.pages,
            shared_info: SHARED_INFO,
            flags: MOD_START_PFN | VIRT_P2M_4TOOLS,
            padding_0: 0,
            store_mfn: 0,
            store_evtchn: 0,
            padding_1: 0,
            console_mfn: frame(layout.console_ring),
            console_evtchn: CONSOLE_CHANNEL,
            padding_2: 0,
            pt_base: support.virtual_address(layout.page_tables),
            nr_pt_frames: layout.page_table_pages(),
            mfn_list: support.frame_list,
            mod_start,
            mod_len,
            cmd_line: [0; COMMAND_LINE_SIZE],
            first_p2m_pfn: frame(layout.frame_list),
            nr_p2m_frames: frame(layout.end - layout.frame_list),
        };
        info.magic[..MAGIC.len()].copy_from_slice(MAGIC);
        info.cmd_line[..command_line.len()].copy_from_slice(command_line.as_bytes());
        info
    }
}
