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
use crate::host::Host;
use crate::host::Interrupted;
use crate::host::OutOfMemory;
use crate::host::TimerCallback;

/// The host.
#[derive(Debug)]
pub struct MockHost;

/// Where a test's vCPU thread would sleep.
#[derive(Debug, Default)]
pub struct MockWaker;

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
    static EVENTS: RefCell<HashMap<i64, Arc<AtomicU64>>> = RefCell::default();
    static BLOCKS: Cell<usize> = const { Cell::new(0) };
    static CPU: Cell<usize> = const { Cell::new(0) };
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

    fn alloc_block(order: u32) -> Option<Block> {
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

    fn map_to_loader(_gpa: u64, blocks: &[Block]) -> Result<u64, OutOfMemory> {
        Ok(blocks.first().map_or(0, |block| block.phys))
    }

    fn memory_available() -> u64 {
        1 << 30
    }

    fn on_each_cpu(function: fn(*const ()), argument: *const ()) {
        for cpu in 0..Self::CPUS {
            Self::on_cpu(cpu, function, argument);
        }
    }

    fn on_cpu(cpu: usize, function: fn(*const ()), argument: *const ()) {
        if cpu >= Self::CPUS {
            return;
        }
        let here = CPU.replace(cpu);
        function(argument);
        CPU.set(here);
    }

    fn cpu_limit() -> usize {
        Self::CPUS
    }

    fn cpu() -> usize {
        CPU.get()
    }

    fn task_segment_cut() {}

    fn set_vmx_enable(_on: bool) {}

    fn preempt_off() {}

    fn preempt_on() {}

    fn interrupts_off() {}

    fn interrupts_on() {}

    fn must_yield() -> bool {
        SIGNAL.get()
    }

    fn yield_now() -> Result<(), Interrupted> {
        if SIGNAL.get() { Err(Interrupted) } else { Ok(()) }
    }

    fn kick(_cpu: usize) {}

    fn wall_clock_ns() -> u64 {
        1_700_000_000_000_000_000 + CLOCK_NS.get()
    }

    fn tsc_khz() -> u32 {
        1_000_000
    }

    fn event_open(handle: i64) -> Option<Self::Event> {
        (handle >= 0).then(|| EVENTS.with_borrow_mut(|events| Arc::clone(events.entry(handle).or_default())))
    }

    fn event_signal(event: &Self::Event) {
        event.fetch_add(1, Ordering::SeqCst);
    }

    fn waker_new() -> Result<Self::Waker, OutOfMemory> {
        Ok(MockWaker)
    }

    /// Tests have no other thread that would wake this one: where nothing is ready, a signal comes.
    fn wait(_waker: &Self::Waker, ready: impl Fn() -> bool) -> Result<(), Interrupted> {
        if ready() { Ok(()) } else { Err(Interrupted) }
    }

    fn wake(_waker: &Self::Waker) {}

    fn timer_new(callback: TimerCallback) -> Result<Self::Timer, OutOfMemory> {
        let state = Arc::new(TimerState { callback, deadline: AtomicU64::new(NEVER) });
        TIMERS.with_borrow_mut(|timers| {
            timers.retain(|timer| timer.strong_count() != 0);
            timers.push(Arc::downgrade(&state));
        });
        Ok(MockTimer(state))
    }

    fn timer_set(timer: &Self::Timer, delay_ns: u64) {
        timer.0.deadline.store(CLOCK_NS.get().saturating_add(delay_ns), Ordering::SeqCst);
    }

    fn timer_cancel(timer: &Self::Timer) {
        timer.0.deadline.store(NEVER, Ordering::SeqCst);
    }
}
