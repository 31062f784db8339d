//! Who may open the device: the system and administrators, nobody else.
//!
//! `IoCreateDeviceSecure` is newer than NT 5.2, so the device is made first and then its list of access rights is replaced, before it
//! has a name that programs can open.

use core::ptr;

use covisor_nt::NtStatus;
use wdk_sys::DEVICE_OBJECT;
use wdk_sys::ntddk::ObOpenObjectByPointer;
use wdk_sys::ntddk::ZwClose;

use crate::imports::ZwSetSecurityObject;
use crate::status;

/// `WRITE_DAC`.
const WRITE_DAC: u32 = 0x0004_0000;
/// `DACL_SECURITY_INFORMATION`.
const DACL: u32 = 4;
/// `OBJ_KERNEL_HANDLE`: no program gets the handle.
const KERNEL_HANDLE: u32 = 0x200;
/// `KernelMode`.
const KERNEL_MODE: i8 = 0;

/// Bytes of the list's header, of an entry without the SID, and of SIDs with one and with two numbers ([MS-DTYP] 2.4.5, 2.4.4.2, 2.4.2.2).
const LIST_HEADER: u16 = 8;
const ENTRY_HEADER: u16 = 8;
const SYSTEM_SID: u16 = 12;
const ADMINISTRATORS_SID: u16 = 16;

const LIST_SIZE: u16 = LIST_HEADER + ENTRY_HEADER + SYSTEM_SID + ENTRY_HEADER + ADMINISTRATORS_SID;

/// An entry that allows one account.
#[repr(C)]
struct Allow<const NUMBERS: usize> {
    /// `ACCESS_ALLOWED_ACE_TYPE`.
    kind: u8,
    flags: u8,
    size: u16,
    rights: u32,
    sid_revision: u8,
    sid_count: u8,
    /// Of the authority that gave the numbers: NT is 5, most significant byte first.
    sid_authority: [u8; 6],
    sid_numbers: [u32; NUMBERS],
}

impl<const NUMBERS: usize> Allow<NUMBERS> {
    /// Everything that can be done with a file, for NT's own account with these numbers.
    #[expect(clippy::cast_possible_truncation, reason = "an entry has a few bytes")]
    const fn all(sid_numbers: [u32; NUMBERS]) -> Self {
        Self {
            kind: 0,
            flags: 0,
            size: size_of::<Self>() as u16,
            rights: FILE_ALL_ACCESS,
            sid_revision: 1,
            sid_count: NUMBERS as u8,
            sid_authority: [0, 0, 0, 0, 0, 5],
            sid_numbers,
        }
    }
}

/// `FILE_ALL_ACCESS`.
const FILE_ALL_ACCESS: u32 = 0x001f_01ff;

/// A security descriptor with everything in it, "self-relative" ([MS-DTYP] 2.4.6), and its list.
#[repr(C, align(8))]
struct Descriptor {
    revision: u8,
    reserved: u8,
    /// `SE_SELF_RELATIVE`, `SE_DACL_PROTECTED`, `SE_DACL_PRESENT`.
    control: u16,
    owner: u32,
    group: u32,
    system_list: u32,
    list: u32,
    list_revision: u16,
    list_size: u16,
    list_count: u16,
    list_reserved: u16,
    system: Allow<1>,
    administrators: Allow<2>,
}

/// `D:P(A;;FA;;;SY)(A;;FA;;;BA)`.
#[expect(clippy::cast_possible_truncation, reason = "an offset of some dozen bytes")]
static DESCRIPTOR: Descriptor = Descriptor {
    revision: 1,
    reserved: 0,
    control: 0x8000 | 0x1000 | 0x0004,
    owner: 0,
    group: 0,
    system_list: 0,
    list: core::mem::offset_of!(Descriptor, list_revision) as u32,
    list_revision: 2,
    list_size: LIST_SIZE,
    list_count: 2,
    list_reserved: 0,
    // S-1-5-18 and S-1-5-32-544.
    system: Allow::all([18]),
    administrators: Allow::all([32, 544]),
};

const _: () = {
    assert!(core::mem::offset_of!(Descriptor, list_revision) == 20);
    assert!(core::mem::offset_of!(Descriptor, system) == 28);
    assert!(size_of::<Allow<1>>() == (ENTRY_HEADER + SYSTEM_SID) as usize);
    assert!(size_of::<Allow<2>>() == (ENTRY_HEADER + ADMINISTRATORS_SID) as usize);
    assert!(core::mem::offset_of!(Descriptor, administrators) + size_of::<Allow<2>>() == 20 + LIST_SIZE as usize);
};

/// Lets only the system and administrators open the device.
///
/// # Errors
/// What the kernel says.
///
/// # Safety
/// `device` is a device of this driver's. PASSIVE_LEVEL.
pub(crate) unsafe fn restrict(device: *mut DEVICE_OBJECT) -> Result<(), NtStatus> {
    let mut handle = ptr::null_mut();
    // SAFETY: by the caller; the handle is closed below.
    status(unsafe {
        ObOpenObjectByPointer(
            device.cast(),
            KERNEL_HANDLE,
            ptr::null_mut(),
            WRITE_DAC,
            ptr::null_mut(),
            KERNEL_MODE,
            &raw mut handle,
        )
    })?;
    // SAFETY: the handle is open, and the descriptor is only read.
    let result = status(unsafe { ZwSetSecurityObject(handle.cast(), DACL, (&raw const DESCRIPTOR).cast_mut().cast()) });
    // SAFETY: it is open, and nobody uses it any more. Closing it cannot fail.
    let _ = unsafe { ZwClose(handle) };
    result
}
