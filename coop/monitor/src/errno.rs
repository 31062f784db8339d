//! Errors of hypercalls (Xen public headers, `errno.h`): what RAX comes back with.

/// An error number, positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(u16);

impl Errno {
    /// There is no such thing.
    pub const ENOENT: Self = Self(2);
    /// Memory of the guest's cannot be accessed.
    pub const EFAULT: Self = Self(14);
    /// An argument is wrong.
    pub const EINVAL: Self = Self(22);
    /// There is no room.
    pub const ENOSPC: Self = Self(28);
    /// The hypercall, or what it is asked for, does not exist.
    pub const ENOSYS: Self = Self(38);
    /// The time has passed already.
    pub const ETIME: Self = Self(62);
    /// It exists already.
    pub const EEXIST: Self = Self(17);

    /// As hypercalls return it.
    #[must_use]
    pub const fn to_result(self) -> u64 {
        (self.0 as u64).wrapping_neg()
    }
}
