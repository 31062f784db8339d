//! NT as core's host.

use core::marker::PhantomData;

use covisor_core::host::Block;
use covisor_core::host::CpuFunction;
use covisor_core::host::Cpus;
use covisor_core::host::Host;
use covisor_core::host::Interrupted;
use covisor_core::host::Machine;
use covisor_core::host::ORDER_2M;
use covisor_core::host::OutOfMemory;
use covisor_core::host::Stay;
use covisor_core::host::TimerCallback;

use crate::clock;
use crate::kapi::Irql;
use crate::kapi::Kapi;
use crate::maps::Mapping;
use crate::pages;
use crate::sync::Event;
use crate::sync::Timer;
use crate::sync::Waker;

/// The NT kernel that the driver is loaded into.
#[derive(Clone, Copy, Debug)]
pub struct Nt<K: Kapi>(PhantomData<fn() -> K>);

impl<K: Kapi> Host for Nt<K> {
    type Event = Event<K>;
    type Waker = Waker<K>;
    type Timer = Timer<K>;
    type Mapping = Mapping<K>;

    /// A memory descriptor list maps all of its pages at once.
    const RAM_ON_DEMAND: bool = false;

    fn alloc_block(order: u32) -> Option<Block> {
        let block = match order {
            0 => K::port().pages().lock().take_page(),
            ORDER_2M => K::port().pages().lock().take_chunk(),
            _ => pages::take_contiguous::<K>(order),
        }?;
        // SAFETY: just taken.
        unsafe { pages::clear(&block) };
        Some(block)
    }

    unsafe fn free_block(block: Block) {
        // SAFETY: by the caller; the order tells where it came from.
        unsafe {
            match block.order {
                0 | ORDER_2M => K::port().pages().lock().put(block),
                _ => pages::put_contiguous::<K>(block),
            }
        }
    }

    fn physical_address(pointer: *const u8) -> Option<u64> {
        Some(K::physical_address(pointer)).filter(|phys| *phys != 0)
    }

    fn map_to_loader(_gpa: u64, blocks: &[Block]) -> Result<(u64, Mapping<K>), OutOfMemory> {
        let (address, id) = K::port().maps().add(blocks)?;
        Ok((address as u64, Mapping::new(id)))
    }

    fn memory_available() -> u64 {
        K::available_pages().saturating_mul(4096)
    }

    #[inline]
    fn machine() -> Machine {
        Machine { cpu_limit: K::port().cpus().limit(), tsc_khz: K::port().tsc_khz() }
    }

    fn on_cpus(cpus: Cpus, function: CpuFunction, argument: *const ()) {
        K::port().cpus().on_cpus::<K>(cpus, function, argument);
    }

    #[inline]
    fn preempt_off() -> usize {
        K::port().cpus().preempt_off::<K>()
    }

    #[inline]
    fn preempt_on() {
        K::port().cpus().preempt_on::<K>();
    }

    #[inline]
    fn interrupts_off() {
        K::port().cpus().interrupts_off::<K>();
    }

    #[inline]
    fn interrupts_on() {
        K::port().cpus().interrupts_on::<K>();
    }

    #[inline]
    fn let_go(last: impl FnOnce()) {
        K::port().cpus().let_go::<K>(last);
    }

    /// For CR8 see [`crate::cpus`].
    ///
    /// A task segment that is cut needs nothing: NT's has no I/O permission bitmap, so its limit is 0x67 anyway, which the start
    /// of the driver makes sure of ([`crate::port`]). Loading the register again would need its descriptor marked as free, and
    /// NT watches the table that it is in.
    #[inline]
    fn in_guest(stay: Stay, enter: impl FnOnce()) {
        if stay.takes_interrupts {
            return enter();
        }
        // SAFETY: interrupts are off, and it is raised again before anything of the kernel's.
        unsafe { K::lower_irql(Irql::PASSIVE) };
        enter();
        K::raise_irql(Irql::DISPATCH);
    }

    /// The scheduler needs no question where the CPU can tell by an interrupt that it is waiting ([`Host::in_guest`]): that
    /// ends the stay in the guest, and [`Host::let_go`] lets it come.
    #[inline]
    fn must_yield() -> bool {
        let port = K::port();
        port.gate().is_shut()
            || K::thread_ends()
            || port.routines().should_yield().unwrap_or_else(|| port.cpus().slice_is_over::<K>())
    }

    /// With preemption on, the scheduler has had its way already. What is left is to step aside while the machine sleeps.
    fn yield_now() -> Result<(), Interrupted> {
        if K::port().gate().is_shut() {
            K::port().gate().aside::<K>(|| Ok(()))?;
        }
        if K::thread_ends() { Err(Interrupted) } else { Ok(()) }
    }

    #[inline]
    fn kick(cpu: usize) {
        K::port().cpus().kick::<K>(cpu);
    }

    fn wall_clock_ns() -> u64 {
        clock::unix_ns(K::port().routines().time::<K>())
    }

    fn event_open(handle: i64) -> Option<Event<K>> {
        Event::open(handle)
    }

    fn event_signal(event: &Event<K>) {
        event.signal();
        if K::irql() >= Irql::DISPATCH {
            K::port().cpus().note_readied::<K>();
        }
    }

    fn waker_new() -> Result<Waker<K>, OutOfMemory> {
        Waker::new()
    }

    fn wait(waker: &Waker<K>, ready: impl Fn() -> bool) -> Result<(), Interrupted> {
        while !ready() {
            K::port().gate().aside::<K>(|| waker.sleep())?;
        }
        Ok(())
    }

    fn wake(waker: &Waker<K>) {
        waker.wake();
    }

    fn timer_new(callback: TimerCallback) -> Result<Timer<K>, OutOfMemory> {
        Timer::new(callback)
    }

    fn timer_set(timer: &Timer<K>, delay_ns: Option<u64>) {
        match delay_ns {
            Some(delay_ns) => timer.set(delay_ns),
            None => timer.cancel(),
        }
    }
}
