//! The CPU as the monitor uses it, so that all but the instructions themselves can be tested as a program.

/// The CPU beside the guest, in ring 0.
pub trait Processor: crate::mmu::Cpu {
    /// CR2.
    fn cr2(&self) -> u64;
    /// DR6.
    fn dr6(&self) -> u64;
    /// Sets it; no reserved bit is set.
    fn set_dr6(&mut self, value: u64);
    /// Loads CR0.
    fn set_cr0(&mut self, value: u64);
    /// Exchanges the bases of GS: that of the guest's kernel and that of its programs.
    fn swap_gs(&mut self);
    /// Sets the base of FS; it is canonical.
    fn set_fs_base(&mut self, base: u64);
    /// Sets the base of GS in the current mode; it is canonical.
    fn set_gs_base(&mut self, base: u64);
    /// Sets the base of GS in the other mode; it is canonical.
    fn set_other_gs_base(&mut self, base: u64);
    /// Loads the selector of GS for programs, while the guest's kernel runs; one that cannot be loaded is 0.
    fn load_user_gs(&mut self, selector: u16);
    /// Loads DR0 to DR3 and DR7, which were checked. DR6 tells of nothing then: a guest's never gets into the CPU, where it would be the
    /// host's next.
    fn load_breakpoints(&mut self, addresses: [u64; 4], dr7: u64);
    /// The time stamp counter.
    fn tsc(&self) -> u64;
}
