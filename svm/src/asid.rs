//! Address space identifiers (APM vol. 2, 15.16): the TLB's names for guests, given out anew per physical CPU.
//!
//! A vCPU keeps its ASID while it stays on a CPU and the CPU has not run out of them.

/// One physical CPU's ASIDs.
#[derive(Debug)]
pub(crate) struct Asids {
    /// The next to give out.
    next: u32,
    /// How many there are, with 0, the host's.
    count: u32,
    /// Raised each time all were used up and the TLB was flushed.
    generation: u64,
}

/// An ASID with where and when it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Assigned {
    /// The ASID; 0 before the first.
    pub(crate) asid: u32,
    generation: u64,
    /// Which [`Asids`] gave it.
    cpu: usize,
}

impl Asids {
    /// All of a CPU's ASIDs, none given out.
    pub(crate) fn new(count: u32) -> Self {
        // The first assignment starts generation 1 with a flush: what another hypervisor left in the TLB goes with it.
        Self { next: count, count, generation: 0 }
    }

    /// Whether `assigned` may be used on this CPU still.
    #[inline]
    pub(crate) fn holds(&self, assigned: &Assigned) -> bool {
        assigned.asid != 0 && assigned.generation == self.generation && assigned.cpu == self.identity()
    }

    /// A fresh ASID, and whether the TLB has to be flushed with it.
    pub(crate) fn assign(&mut self) -> (Assigned, bool) {
        let flush = self.next >= self.count;
        if flush {
            self.generation += 1;
            self.next = 1;
        }
        let asid = self.next;
        self.next += 1;
        (Assigned { asid, generation: self.generation, cpu: self.identity() }, flush)
    }

    /// The address tells CPUs apart: a CPU's structure stays where it is while VMs exist.
    fn identity(&self) -> usize {
        core::ptr::from_ref(self) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_attack_asid_zero_or_reused_without_flush() {
        let mut asids = Asids::new(4);
        let (first, flush) = asids.assign();
        assert!(flush, "what was in the TLB before is flushed");
        assert_eq!(first.asid, 1);
        for expected in [2, 3] {
            let (next, flush) = asids.assign();
            assert_eq!((next.asid, flush), (expected, false));
        }
        assert!(asids.holds(&first));
        let (again, flush) = asids.assign();
        assert_eq!((again.asid, flush), (1, true));
        assert!(!asids.holds(&first), "an ASID of before the flush does not hold");
        assert!(asids.holds(&again));
    }

    #[test]
    fn test_an_asid_of_another_cpu_does_not_hold() {
        let (mut one, mut two) = (Asids::new(8), Asids::new(8));
        let (assigned, _) = one.assign();
        let _ = two.assign();
        assert!(!two.holds(&assigned));
        assert!(!one.holds(&Assigned::default()));
    }
}
