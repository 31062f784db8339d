//! A vCPU's fields of the VMCS as core uses them: read when they are asked for, written before the next entry.
//!
//! VMREAD and VMWRITE reach only the VMCS that is current on the CPU, and take time. So each field has a copy in memory, with
//! two bits: whether the copy is valid, which an exit ends for what the CPU changes, and whether it is newer than the VMCS.
//! While the vCPU is not loaded on a CPU, the copies in [`BASIC`] are always valid; the others after [`Registers::fetch`].

use core::cell::Cell;

use covisor_core::registers::SegmentName;

use crate::field::Field;
use crate::instructions::vmread;
use crate::instructions::vmwrite;

/// A field with a copy, by its place in [`FIELDS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Register(usize);

/// How many there are.
const COUNT: usize = 58;

/// Defines the places from [`SEGMENTS`] on, and [`FIELDS`].
macro_rules! registers {
    ($($name:ident = $place:literal, $field:ident;)+) => {
        impl Register {
            $(pub(crate) const $name: Self = Self($place);)+
        }

        /// The fields, by place.
        const FIELDS: [Field; COUNT] = {
            let mut fields = [Field(0); COUNT];
            let mut segment = 0;
            while segment < 8 {
                #[expect(clippy::cast_possible_truncation, reason = "below 8")]
                let number = segment as u32;
                fields[segment] = Field::GUEST_ES_SELECTOR.of_segment(number);
                fields[segment + 8] = Field::GUEST_ES_BASE.of_segment(number);
                fields[segment + 16] = Field::GUEST_ES_LIMIT.of_segment(number);
                fields[segment + 24] = Field::GUEST_ES_ACCESS_RIGHTS.of_segment(number);
                segment += 1;
            }
            fields[46] = Field::GUEST_PDPTE0;
            fields[47] = Field::GUEST_PDPTE1;
            fields[48] = Field::GUEST_PDPTE2;
            fields[49] = Field::GUEST_PDPTE3;
            $(fields[$place] = Field::$field;)+
            fields
        };
    };
}

registers! {
    GDTR_BASE = 32, GUEST_GDTR_BASE;
    GDTR_LIMIT = 33, GUEST_GDTR_LIMIT;
    IDTR_BASE = 34, GUEST_IDTR_BASE;
    IDTR_LIMIT = 35, GUEST_IDTR_LIMIT;
    CR0 = 36, GUEST_CR0;
    CR3 = 37, GUEST_CR3;
    CR4 = 38, GUEST_CR4;
    DR7 = 39, GUEST_DR7;
    RIP = 40, GUEST_RIP;
    RFLAGS = 41, GUEST_RFLAGS;
    EFER = 42, GUEST_EFER;
    PAT = 43, GUEST_PAT;
    INTERRUPTIBILITY = 44, GUEST_INTERRUPTIBILITY;
    PENDING_DEBUG = 45, GUEST_PENDING_DEBUG;
    CR0_SHADOW = 50, CR0_SHADOW;
    CR4_SHADOW = 51, CR4_SHADOW;
    TSC_OFFSET = 52, TSC_OFFSET;
    TPR_THRESHOLD = 53, TPR_THRESHOLD;
    PROCESSOR_CONTROLS = 54, PROCESSOR_CONTROLS;
    ENTRY_CONTROLS = 55, ENTRY_CONTROLS;
    VPID = 56, VPID;
    PREEMPTION_TIMER = 57, PREEMPTION_TIMER;
}

impl Register {
    /// A segment's selector.
    pub(crate) const fn selector(name: SegmentName) -> Self {
        Self(name as usize)
    }

    /// A segment's base.
    pub(crate) const fn base(name: SegmentName) -> Self {
        Self(name as usize + 8)
    }

    /// A segment's limit.
    pub(crate) const fn limit(name: SegmentName) -> Self {
        Self(name as usize + 16)
    }

    /// A segment's access rights.
    pub(crate) const fn access_rights(name: SegmentName) -> Self {
        Self(name as usize + 24)
    }

    /// The page directory pointers of PAE paging.
    pub(crate) const PDPTES: [Self; 4] = [Self(46), Self(47), Self(48), Self(49)];

    const fn bit(self) -> u64 {
        1 << self.0
    }
}

/// All bits.
const ALL: u64 = (1 << COUNT) - 1;
/// The fields that the CPU never changes: their copies stay valid.
const KEPT: u64 = ALL & !(Register::CR0_SHADOW.bit() - 1);
/// The fields that core uses of a vCPU that is not loaded, without asking for more before.
const BASIC: [Register; 3] = [Register::RIP, Register::RFLAGS, Register::INTERRUPTIBILITY];

/// The copies.
#[derive(Debug)]
pub(crate) struct Registers {
    values: [Cell<u64>; COUNT],
    valid: Cell<u64>,
    dirty: u64,
    /// The VMCS is current, and nobody but us uses this CPU.
    loaded: bool,
}

impl Registers {
    /// All 0, and to be written before the first entry.
    pub(crate) fn new() -> Self {
        Self { values: [const { Cell::new(0) }; COUNT], valid: Cell::new(ALL), dirty: ALL, loaded: false }
    }

    /// A field's value.
    #[inline]
    pub(crate) fn get(&self, register: Register) -> u64 {
        if self.valid.get() & register.bit() == 0 {
            return self.read(register);
        }
        self.values[register.0].get()
    }

    #[inline]
    fn read(&self, register: Register) -> u64 {
        debug_assert!(self.loaded, "a field that was not fetched: {register:?}");
        if !self.loaded {
            return self.values[register.0].get();
        }
        // SAFETY: loaded: the VMCS is current on this CPU.
        let value = unsafe { vmread(FIELDS[register.0]) };
        self.values[register.0].set(value);
        self.valid.set(self.valid.get() | register.bit());
        value
    }

    /// Sets a field before the next entry.
    #[inline]
    pub(crate) fn set(&mut self, register: Register, value: u64) {
        self.values[register.0].set(value);
        self.valid.set(self.valid.get() | register.bit());
        self.dirty |= register.bit();
    }

    /// The same, where the value is another one.
    #[inline]
    pub(crate) fn change(&mut self, register: Register, value: u64) {
        if self.get(register) != value {
            self.set(register, value);
        }
    }

    /// The VMCS is current on this CPU from now on.
    #[inline]
    pub(crate) fn load(&mut self) {
        self.loaded = true;
    }

    /// The guest ran: what the CPU may have changed is to be read anew.
    #[inline]
    pub(crate) fn exited(&mut self) {
        debug_assert!(self.dirty == 0, "a field was not written before the entry");
        self.valid.set(KEPT);
    }

    /// Writes what was set into the VMCS.
    ///
    /// # Safety
    /// Loaded.
    #[inline]
    pub(crate) unsafe fn flush(&mut self) {
        let mut rest = core::mem::take(&mut self.dirty);
        // Nearly every exit moves RIP, and most nothing else.
        if rest & Register::RIP.bit() != 0 {
            // SAFETY: loaded, by the caller.
            unsafe { vmwrite(Field::GUEST_RIP, self.values[Register::RIP.0].get()) };
            rest &= !Register::RIP.bit();
        }
        if rest != 0 {
            self.write_all(rest);
        }
    }

    #[inline(never)]
    fn write_all(&self, mut set: u64) {
        while set != 0 {
            let place = set.trailing_zeros() as usize;
            set &= set - 1;
            // SAFETY: flush() is called when the vCPU is loaded.
            unsafe { vmwrite(FIELDS[place], self.values[place].get()) };
        }
    }

    /// Reads what core uses of a vCPU that is not loaded, and ends [`Registers::load`].
    #[inline]
    pub(crate) fn unload(&mut self) {
        for register in BASIC {
            self.get(register);
        }
        self.loaded = false;
    }

    /// Whether all copies are valid.
    pub(crate) fn is_complete(&self) -> bool {
        self.valid.get() == ALL
    }

    /// Reads everything that is not valid.
    ///
    /// # Safety
    /// The VMCS is current on this CPU.
    pub(crate) unsafe fn fetch(&mut self) {
        self.loaded = true;
        let mut set = ALL & !self.valid.get();
        while set != 0 {
            let place = set.trailing_zeros() as usize;
            set &= set - 1;
            self.read(Register(place));
        }
        self.loaded = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_each_place_has_its_field() {
        assert_eq!(FIELDS[Register::selector(SegmentName::Tr).0], Field(0x080e));
        assert_eq!(FIELDS[Register::base(SegmentName::Tr).0], Field(0x6814));
        assert_eq!(FIELDS[Register::limit(SegmentName::Cs).0], Field(0x4802));
        assert_eq!(FIELDS[Register::access_rights(SegmentName::Gs).0], Field(0x481e));
        for (place, field) in FIELDS.into_iter().enumerate() {
            assert!(place == Register::VPID.0 || field.0 != 0, "place {place} has no field");
            assert_eq!(FIELDS.into_iter().filter(|other| *other == field).count(), 1, "place {place} is there twice");
        }
    }

    #[test]
    fn test_what_is_set_is_read_back_and_waits_for_the_entry() {
        let mut registers = Registers::new();
        registers.dirty = 0;
        registers.set(Register::CR3, 0x5000);
        registers.change(Register::RFLAGS, 0);
        assert_eq!(registers.get(Register::CR3), 0x5000);
        assert_eq!(registers.dirty, Register::CR3.bit());
        assert!(registers.is_complete());
    }

    #[test]
    fn test_an_exit_makes_old_what_the_cpu_changes() {
        let mut registers = Registers::new();
        registers.dirty = 0;
        registers.exited();
        assert_eq!(registers.valid.get() & Register::RIP.bit(), 0);
        assert_ne!(registers.valid.get() & Register::CR4_SHADOW.bit(), 0, "only we write the shadow");
    }
}
