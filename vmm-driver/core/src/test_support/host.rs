//! A host in user mode: memory from the allocator, two CPUs that a test is on by turns, and per thread a clock that only
//! tests move.

use std::alloc::Layout;
use std::alloc::alloc_zeroed;
use std::alloc::dealloc;
use std::cell::Cell;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::Weak;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use crate::host::Block;
use crate::host::CpuFunction;
use crate::host::Cpus;
use crate::host::Host;
use crate::host::Interrupted;
use crate::host::Machine;
use crate::host::OutOfMemory;
use crate::host::Stay;
use crate::host::TimerCallback;
use crate::vcpu::Shared;

/// The host.
#[derive(Debug)]
pub struct MockHost;

/// Where a test's vCPU thread would sleep: how often it was woken.
#[derive(Debug, Default)]
pub struct MockWaker(AtomicU64);

impl Drop for MockWaker {
    /// A timer may expire until it is dropped, and what its callback is given has this waker.
    fn drop(&mut self) {
        /// What owns a waker and a timer.
        const OWNERS_SIZE: usize = size_of::<Shared<MockHost>>();
        let place = core::ptr::from_ref(self).addr();
        let timers: Vec<_> = TIMERS.with_borrow(|timers| timers.iter().filter_map(Weak::upgrade).collect());
        for timer in timers {
            let owner = timer.callback.argument.addr();
            assert!(
                !(owner..owner + OWNERS_SIZE).contains(&place),
                "a waker goes before the timer that would wake by it"
            );
        }
    }
}

/// A timer that expires in [`MockHost::advance`].
#[derive(Debug)]
pub struct MockTimer(Arc<TimerState>);

#[derive(Debug)]
struct TimerState {
    callback: TimerCallback,
    /// When it expires; [`NEVER`] while it is not armed.
    deadline: AtomicU64,
}

const NEVER: u64 = u64::MAX;

// SAFETY: the callback's argument is only handed to the callback, in the thread that made the timer.
unsafe impl Send for TimerState {}
// SAFETY: as above.
unsafe impl Sync for TimerState {}

thread_local! {
    static CLOCK_NS: Cell<u64> = const { Cell::new(1_000_000_000) };
    static TIMERS: RefCell<Vec<Weak<TimerState>>> = const { RefCell::new(Vec::new()) };
    static SIGNAL: Cell<bool> = const { Cell::new(false) };
    static NO_MEMORY: Cell<bool> = const { Cell::new(false) };
    static EVENTS: RefCell<HashMap<i64, Arc<AtomicU64>>> = RefCell::default();
    static BLOCKS: Cell<usize> = const { Cell::new(0) };
    static CPU: Cell<usize> = const { Cell::new(0) };
    static PREEMPT_OFF: Cell<usize> = const { Cell::new(0) };
    static INTERRUPTS_OFF: Cell<bool> = const { Cell::new(false) };
    static IN_GUEST: Cell<bool> = const { Cell::new(false) };
    static ON_YIELD: Cell<Option<Box<dyn FnOnce()>>> = const { Cell::new(None) };
    static BEFORE_PREEMPT_OFF: Cell<Option<Box<dyn FnOnce()>>> = const { Cell::new(None) };
}

impl MockHost {
    /// CPUs that there are.
    pub const CPUS: usize = 2;

    /// Moves the calling thread's clock and lets its timers expire.
    pub fn advance(ns: u64) {
        let now = CLOCK_NS.get() + ns;
        CLOCK_NS.set(now);
        let timers: Vec<_> = TIMERS.with_borrow(|timers| timers.iter().filter_map(Weak::upgrade).collect());
        for timer in timers {
            if timer.deadline.load(Ordering::SeqCst) <= now {
                timer.deadline.store(NEVER, Ordering::SeqCst);
                (timer.callback.function)(timer.callback.argument);
            }
        }
    }

    /// Moves the calling thread to another CPU, below [`MockHost::CPUS`].
    pub fn move_to(cpu: usize) {
        assert!(cpu < Self::CPUS, "there is no CPU {cpu}");
        CPU.set(cpu);
    }

    /// Whether a signal waits for the calling thread: then it is to yield, and does not sleep.
    pub fn set_signal(value: bool) {
        SIGNAL.set(value);
    }

    /// Whether the host has no block left for the calling thread.
    pub fn set_no_memory(value: bool) {
        NO_MEMORY.set(value);
    }

    /// Calls `other` when preemption is next switched off: what another thread does right before.
    pub fn before_preempt_off(other: impl FnOnce() + 'static) {
        BEFORE_PREEMPT_OFF.set(Some(Box::new(other)));
    }

    /// Calls `other` when the calling thread next yields.
    pub fn on_yield(other: impl FnOnce() + 'static) {
        ON_YIELD.set(Some(Box::new(other)));
    }

    /// How often the event with this handle was signalled, by the calling thread's count.
    #[must_use]
    pub fn signals(handle: i64) -> u64 {
        EVENTS.with_borrow(|events| events.get(&handle).map_or(0, |count| count.load(Ordering::SeqCst)))
    }

    /// Blocks that the calling thread allocated and did not free.
    #[must_use]
    pub fn blocks() -> usize {
        BLOCKS.get()
    }
}

fn layout(order: u32) -> Layout {
    let size = 4096_usize << order;
    Layout::from_size_align(size, size).expect("block sizes are powers of two")
}

impl Host for MockHost {
    type Event = Arc<AtomicU64>;
    type Waker = MockWaker;
    type Timer = MockTimer;
    type Mapping = ();

    const RAM_ON_DEMAND: bool = true;

    fn alloc_block(order: u32) -> Option<Block> {
        if NO_MEMORY.get() {
            return None;
        }
        // SAFETY: the layout has a size.
        let virt = NonNull::new(unsafe { alloc_zeroed(layout(order)) })?;
        BLOCKS.set(BLOCKS.get() + 1);
        Some(Block { phys: virt.as_ptr().addr() as u64, virt, order })
    }

    unsafe fn free_block(block: Block) {
        BLOCKS.set(BLOCKS.get().wrapping_sub(1));
        // SAFETY: the caller's: it comes from alloc_block.
        unsafe { dealloc(block.virt.as_ptr(), layout(block.order)) };
    }

    fn physical_address(pointer: *const u8) -> Option<u64> {
        // As in alloc_block().
        NonNull::new(pointer.cast_mut()).map(|pointer| pointer.addr().get() as u64)
    }

    fn map_to_loader(_gpa: u64, blocks: &[Block]) -> Result<(u64, ()), OutOfMemory> {
        Ok((blocks.first().map_or(0, |block| block.phys), ()))
    }

    fn memory_available() -> u64 {
        1 << 30
    }

    fn machine() -> Machine {
        Machine { cpu_limit: Self::CPUS, tsc_khz: 1_000_000 }
    }

    fn on_cpus(cpus: Cpus, function: CpuFunction, argument: *const ()) {
        assert_eq!((PREEMPT_OFF.get(), INTERRUPTS_OFF.get()), (0, false), "the thread can be moved");
        for cpu in (0..Self::CPUS).filter(|cpu| matches!(cpus, Cpus::Each) || cpus == Cpus::One(*cpu)) {
            let here = CPU.replace(cpu);
            function(cpu, argument);
            CPU.set(here);
        }
    }

    fn set_vmx_enable(_on: bool) {}

    fn preempt_off() -> usize {
        if let Some(other) = BEFORE_PREEMPT_OFF.take() {
            other();
        }
        PREEMPT_OFF.set(PREEMPT_OFF.get() + 1);
        CPU.get()
    }

    fn preempt_on() {
        PREEMPT_OFF.set(PREEMPT_OFF.get().checked_sub(1).expect("it was off"));
    }

    fn interrupts_off() {
        assert!(PREEMPT_OFF.get() > 0, "preemption is off");
        assert!(!INTERRUPTS_OFF.replace(true), "they were on");
    }

    fn interrupts_on() {
        assert!(INTERRUPTS_OFF.replace(false), "they were off");
        assert!(!IN_GUEST.get(), "the guest was left before");
    }

    fn in_guest(_stay: Stay, enter: impl FnOnce()) {
        assert!(INTERRUPTS_OFF.get(), "interrupts are off");
        assert!(!IN_GUEST.replace(true), "it was not in a guest");
        enter();
        assert!(INTERRUPTS_OFF.get(), "interrupts are off");
        assert!(IN_GUEST.replace(false), "it was in a guest");
    }

    fn must_yield() -> bool {
        SIGNAL.get()
    }

    fn yield_now() -> Result<(), Interrupted> {
        if let Some(other) = ON_YIELD.take() {
            other();
        }
        if SIGNAL.get() { Err(Interrupted) } else { Ok(()) }
    }

    fn kick(_cpu: usize) {}

    fn wall_clock_ns() -> u64 {
        1_700_000_000_000_000_000 + CLOCK_NS.get()
    }

    fn event_open(handle: i64) -> Option<Self::Event> {
        (handle >= 0).then(|| EVENTS.with_borrow_mut(|events| Arc::clone(events.entry(handle).or_default())))
    }

    fn event_signal(event: &Self::Event) {
        event.fetch_add(1, Ordering::SeqCst);
    }

    fn waker_new() -> Result<Self::Waker, OutOfMemory> {
        Ok(MockWaker::default())
    }

    /// Tests have no other thread that would wake this one: where nothing is ready, a signal comes.
    fn wait(_waker: &Self::Waker, ready: impl Fn() -> bool) -> Result<(), Interrupted> {
        if ready() { Ok(()) } else { Err(Interrupted) }
    }

    fn wake(waker: &Self::Waker) {
        waker.0.fetch_add(1, Ordering::Relaxed);
    }

    fn timer_new(callback: TimerCallback) -> Result<Self::Timer, OutOfMemory> {
        let state = Arc::new(TimerState { callback, deadline: AtomicU64::new(NEVER) });
        TIMERS.with_borrow_mut(|timers| {
            timers.retain(|timer| timer.strong_count() != 0);
            timers.push(Arc::downgrade(&state));
        });
        Ok(MockTimer(state))
    }

    fn timer_set(timer: &Self::Timer, delay_ns: Option<u64>) {
        let deadline = delay_ns.map_or(NEVER, |delay| CLOCK_NS.get().saturating_add(delay));
        timer.0.deadline.store(deadline, Ordering::SeqCst);
    }
}
