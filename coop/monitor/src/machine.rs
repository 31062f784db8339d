//! The guest's machine as the monitor has it in hand during one trap. What it does for each is in the modules beside: `trap`, `bounce`,
//! `hypercall` and what these use.

use covisor_abi::KillReason;

use crate::area::Answer;
use crate::area::Area;
use crate::area::ExitKind;
use crate::area::ExitRecord;
use crate::area::MODE_KERNEL;
use crate::bounce::flags;
use crate::config::Config;
use crate::layout::selector;
use crate::mmu::Space;
use crate::processor::Processor;
use crate::shared_info::Scale;
use crate::shared_info::SharedInfo;
use crate::state::State;
use crate::trap::GUEST_CR0;

/// What comes after a trap was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Next {
    /// Back into the guest.
    Guest,
    /// To the host, for what `area.exit` says.
    Host,
}

/// The descriptor tables that the guest's segments come from, all of their pages.
#[derive(Debug)]
pub struct DescriptorTables<'a> {
    /// The GDT: the guest's pages, and the monitor's own behind them.
    pub gdt: &'a mut [u64],
    /// The LDT.
    pub ldt: &'a mut [u64],
}

/// A guest's machine.
#[derive(Debug)]
pub struct Machine<'a, P: Processor> {
    /// What host and monitor share.
    pub area: &'a mut Area,
    /// What the host said at the start.
    pub config: &'a Config,
    /// What the monitor remembers.
    pub state: &'a mut State,
    /// The guest's memory and its shadow tables.
    pub space: Space<'a>,
    /// Its segments.
    pub tables: DescriptorTables<'a>,
    /// Its `shared_info`.
    pub shared: SharedInfo,
    /// The CPU.
    pub cpu: P,
}

impl<P: Processor> Machine<'_, P> {
    /// Whether the guest's kernel runs, not a program of it.
    #[inline]
    #[must_use]
    pub fn in_kernel(&self) -> bool {
        self.area.mode == MODE_KERNEL
    }

    /// The guest's clock.
    #[must_use]
    pub fn scale(&self) -> Scale {
        Scale { tsc_start: self.config.tsc_start, multiplier: self.config.tsc_multiplier, shift: self.config.tsc_shift }
    }

    /// The guest's time, in nanoseconds.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.scale().nanoseconds(self.cpu.tsc())
    }

    /// To the host.
    pub fn exit(&mut self, kind: ExitKind, a: u64, b: u64) -> Next {
        self.area.exit = ExitRecord { kind: kind as u64, a, b, c: 0, d: 0 };
        Next::Host
    }

    /// Ends the guest.
    pub fn kill(&mut self, reason: KillReason, detail: u64) -> Next {
        self.exit(ExitKind::Kill, reason as u64, detail)
    }

    /// Begins: the guest's first root is loaded, and its registers are as its boot ABI says (Xen public headers,
    /// `arch-x86/xen-x86_64.h`).
    pub fn start(&mut self) -> Next {
        self.shared.start(self.scale(), self.config.wall_clock);
        if self.state.mmu.start(&mut self.space, self.config.first_root).is_err() {
            return self.kill(KillReason::PageTableOutsideRam, self.config.first_root);
        }
        self.area.mode = MODE_KERNEL;
        self.area.cr0 = GUEST_CR0;
        self.area.quick.vcpu_info = self.state.vcpu_info.address();
        self.roots_changed();
        self.state.mmu.flush(&mut self.cpu);
        let frame = &mut self.area.frame;
        frame.cs = selector::RING3_CODE64.into();
        frame.ss = selector::RING3_DATA.into();
        frame.rflags = flags::IF | flags::FIXED;
        self.area.answer = Answer::default();
        self.finish(Next::Guest)
    }

    /// Goes on after the host was there: hands the guest what the host says.
    pub fn resume(&mut self) -> Next {
        let answer = core::mem::take(&mut self.area.answer);
        if let Some(gpa) = self.state.store_by_host.take() {
            // The instruction may have written on both sides of the address that faulted.
            self.state.mmu.table_stored(&mut self.space, &mut self.cpu, gpa & !7, 16);
        }
        if core::mem::take(&mut self.state.halted) {
            self.end_of_halt();
        }
        if answer.exception != 0
            && let Next::Host = self.raise_for_host(&answer)
        {
            return Next::Host;
        }
        self.take_lines(&answer);
        self.finish(Next::Guest)
    }

    /// Hands over the interrupts that the host tells of.
    fn take_lines(&mut self, answer: &Answer) {
        if answer.timer != 0
            && let Some(port) = self.state.events.of_virtual(crate::event::VIRQ_TIMER)
        {
            self.raise_event(port);
        }
        let mut lines = answer.lines;
        while lines != 0 {
            let line = lines.trailing_zeros();
            lines &= lines - 1;
            if let Some(port) = self.state.events.of_line(line) {
                self.raise_event(port);
            }
        }
    }

    /// Sets an event's bit, and has the guest look if it wants to.
    pub fn raise_event(&mut self, port: u32) {
        if !self.shared.set_event(port) {
            self.state.vcpu_info.set_pending((port / 64) as usize);
        }
    }

    /// The end of every trap: events that wait and are not masked are delivered, and page tables that changed are loaded.
    #[inline]
    pub fn finish(&mut self, next: Next) -> Next {
        if next == Next::Host {
            return next;
        }
        if self.state.vcpu_info.is_pending() && !self.state.vcpu_info.is_masked() {
            let callback = self.state.callbacks.event;
            if callback.address != 0
                && let Next::Host = self.bounce_event(callback)
            {
                return Next::Host;
            }
        }
        if self.area.pending_host != 0 {
            return self.exit(ExitKind::Attention, 0, 0);
        }
        if self.state.mmu.pending_flush() {
            self.state.mmu.flush(&mut self.cpu);
        }
        Next::Guest
    }

    /// Takes over the roots after the guest changed them.
    pub fn roots_changed(&mut self) {
        self.area.kernel_cr3 = self.state.mmu.kernel_cr3();
        self.area.user_cr3 = self.state.mmu.user_cr3();
        self.area.guest_cr3 = self.state.mmu.guest_cr3();
    }
}
