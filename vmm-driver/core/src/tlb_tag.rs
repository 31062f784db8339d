//! The TLB's names for guests: address space identifiers (ASID, APM vol. 2, 15.16) and virtual-processor identifiers
//! (VPID, SDM vol. 3, 29.1). Both are small numbers of which 0 is the host's, given out anew per physical CPU.
//!
//! A vCPU keeps its tag while it stays on a CPU and the CPU has not run out of them.

/// One physical CPU's tags.
#[derive(Debug)]
pub struct Tags {
    /// The next to give out.
    next: u32,
    /// How many there are, with 0, the host's.
    count: u32,
    /// Raised each time all were used up and the TLB was flushed.
    generation: u64,
}

/// A tag with where and when it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Assigned {
    /// The tag; 0 before the first.
    pub tag: u32,
    generation: u64,
    /// Which [`Tags`] gave it.
    cpu: usize,
}

impl Tags {
    /// All of a CPU's tags, none given out. `count`: with 0, the host's.
    #[must_use]
    pub const fn new(count: u32) -> Self {
        // The first assignment starts generation 1 with a flush: what another hypervisor left in the TLB goes with it.
        Self { next: count, count, generation: 0 }
    }

    /// None of the tags that were given out holds any more, and the next one comes with a flush: the extension is switched
    /// on (again, where the machine slept while VMs existed), and what is in the TLB is not known. A new value would not do,
    /// for its generations are the old one's over again.
    pub const fn restart(&mut self, count: u32) {
        self.generation += 1;
        self.next = count;
        self.count = count;
    }

    /// Whether `assigned` may be used on this CPU still.
    #[inline]
    #[must_use]
    pub fn holds(&self, assigned: &Assigned) -> bool {
        assigned.tag != 0 && assigned.generation == self.generation && assigned.cpu == self.identity()
    }

    /// A fresh tag, and whether the TLB has to be flushed of all tags with it.
    pub fn assign(&mut self) -> (Assigned, bool) {
        let flush = self.next >= self.count;
        if flush {
            self.generation += 1;
            self.next = 1;
        }
        let tag = self.next;
        self.next += 1;
        (Assigned { tag, generation: self.generation, cpu: self.identity() }, flush)
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
    fn test_attack_tag_zero_or_reused_without_flush() {
        let mut tags = Tags::new(4);
        let (first, flush) = tags.assign();
        assert!(flush, "what was in the TLB before is flushed");
        assert_eq!(first.tag, 1);
        for expected in [2, 3] {
            let (next, flush) = tags.assign();
            assert_eq!((next.tag, flush), (expected, false));
        }
        assert!(tags.holds(&first));
        let (again, flush) = tags.assign();
        assert_eq!((again.tag, flush), (1, true));
        assert!(!tags.holds(&first), "a tag of before the flush does not hold");
        assert!(tags.holds(&again));
    }

    #[test]
    fn test_attack_tag_of_before_a_restart_shared_with_another_vcpu() {
        let mut tags = Tags::new(4);
        let (old, _) = tags.assign();
        tags.restart(4);
        assert!(!tags.holds(&old), "the TLB may hold anything");
        let (new, flush) = tags.assign();
        assert_eq!((new.tag, flush), (old.tag, true));
        assert!(tags.holds(&new) && !tags.holds(&old), "the same number is another vCPU's now");
    }

    #[test]
    fn test_a_tag_of_another_cpu_does_not_hold() {
        let (mut one, mut two) = (Tags::new(8), Tags::new(8));
        let (assigned, _) = one.assign();
        let _ = two.assign();
        assert!(!two.holds(&assigned));
        assert!(!one.holds(&Assigned::default()));
    }
}
