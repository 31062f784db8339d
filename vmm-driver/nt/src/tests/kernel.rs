//! A kernel that is a fake: threads of the test are threads of processes on CPUs, and every function checks what NT would make a
//! blue screen of: its IRQL, interrupts that are off, objects that are not initialized, what is given back twice or never.

use std::alloc::Layout;
use std::alloc::alloc;
use std::alloc::dealloc;
use std::cell::Cell;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicI64;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use crate::Kapi;
use crate::NtStatus;
use crate::Port;
use crate::Watched;
use crate::kapi::ApcState;
use crate::kapi::DeferredRoutine;
use crate::kapi::EventKind;
use crate::kapi::EventObject;
use crate::kapi::Irp;
use crate::kapi::Irql;
use crate::kapi::KernelDpc;
use crate::kapi::KernelEvent;
use crate::kapi::KernelTimer;
use crate::kapi::Mdl;
use crate::kapi::Process;
use crate::kapi::WaitKind;

/// CPUs that a fake machine has.
pub(crate) const CPUS: usize = 4;
/// What its time stamp counter counts in a millisecond.
pub(crate) const TSC_KHZ: u64 = 2_500_000;
/// Pages that it has to give.
const PAGES: usize = 1 << 14;
/// What the structures hold while they are initialized.
const MAGIC: u64 = 0x6e74_6661_6b65;

/// The kernel as the port sees it; which one it is depends on the thread.
#[derive(Debug)]
pub(crate) struct Fake;

/// What a fake can be told to do.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) version: (u32, u32),
    pub(crate) active_cpus: u64,
    /// Newer functions, by name.
    pub(crate) routines: HashMap<&'static str, usize>,
    /// Pages that an allocation for an MDL gives at most.
    pub(crate) pages_at_once: usize,
    /// Contiguous chunks are where they should.
    pub(crate) chunks_aligned: bool,
    /// How often room for a mapping is taken by somebody else.
    pub(crate) stolen_rooms: usize,
    /// Mappings that succeed before there is no room any more.
    pub(crate) maps_left: usize,
    /// What the performance counter counts in a second.
    pub(crate) frequency: i64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            version: (10, 0),
            active_cpus: (1 << CPUS) - 1,
            routines: HashMap::new(),
            pages_at_once: usize::MAX,
            chunks_aligned: true,
            stolen_rooms: 0,
            maps_left: usize::MAX,
            frequency: 10_000_000,
        }
    }
}

/// A thread that the port can be called by.
#[derive(Debug, Default)]
pub(crate) struct Thread {
    /// It is to end.
    pub(crate) ends: AtomicBool,
}

/// A process' address space: mappings by address, with their MDLs.
type Space = BTreeMap<usize, (usize, usize)>;

/// What is protected by the kernel's one lock.
#[derive(Debug, Default)]
struct Inside {
    spaces: HashMap<usize, Space>,
    next_room: usize,
    process_references: HashMap<usize, isize>,
    event_references: HashMap<usize, isize>,
    signals: HashMap<usize, usize>,
    /// Due times, with the timer and the DPC.
    timers: Vec<(u64, usize, usize)>,
    resolution: isize,
    pages: usize,
    contiguous: usize,
    mdls: HashMap<usize, MdlState>,
    next_frame: usize,
    /// Cancel routines of requests.
    cancels: HashMap<usize, usize>,
    cancelled: HashMap<usize, bool>,
    /// The request whose cancel routine runs.
    cancelling: Option<usize>,
    allocations: usize,
}

#[derive(Debug, Default)]
struct MdlState {
    memory: Option<(usize, Layout)>,
    kernel_map: bool,
    user_map: Option<(usize, usize)>,
}

/// An MDL of the fake's.
struct FakeMdl {
    frames: Vec<usize>,
}

/// One fake kernel, with the port in it.
#[derive(Debug)]
pub(crate) struct Kernel {
    port: Port<Fake>,
    pub(crate) config: Mutex<Config>,
    inside: Mutex<Inside>,
    changed: Condvar,
    /// Who has a CPU at DISPATCH_LEVEL.
    cpus: [Mutex<()>; CPUS],
    pub(crate) kicks: [AtomicUsize; CPUS],
    /// How often interrupts came on where nothing is held back.
    pub(crate) at_ease: AtomicUsize,
    time: AtomicU64,
    count: AtomicI64,
    stamp: AtomicU64,
    cancel_lock: Mutex<()>,
    /// How long a cancel is on its way to its routine.
    pub(crate) cancel_takes_ms: AtomicU64,
}

thread_local! {
    static KERNEL: Cell<Option<&'static Kernel>> = const { Cell::new(None) };
    static THREAD: RefCell<Arc<Thread>> = RefCell::default();
    static IRQL: Cell<u8> = const { Cell::new(0) };
    static INTERRUPTS_OFF: Cell<bool> = const { Cell::new(false) };
    static CPU: Cell<usize> = const { Cell::new(0) };
    static HOME_CPU: Cell<Option<usize>> = const { Cell::new(None) };
    static HELD_CPU: RefCell<Option<MutexGuard<'static, ()>>> = const { RefCell::new(None) };
    static PROCESS: Cell<usize> = const { Cell::new(1) };
    static ATTACHED: RefCell<Vec<(usize, usize)>> = const { RefCell::new(Vec::new()) };
    static DR7: Cell<u64> = const { Cell::new(0x400) };
    static REGIONS: Cell<usize> = const { Cell::new(0) };
}

fn kernel() -> &'static Kernel {
    KERNEL.get().expect("the thread belongs to a kernel")
}

/// Interrupts are on, and the level is at most this.
fn check(most: Irql) {
    assert!(!INTERRUPTS_OFF.get(), "the kernel is called with interrupts off");
    assert!(IRQL.get() <= most.0, "the kernel is called at IRQL {}", IRQL.get());
}

fn words<'a>(structure: *mut c_void, count: usize) -> &'a mut [u64] {
    // SAFETY: the structure has that many words, and the kernel's lock is held, or nobody else has it yet.
    unsafe { std::slice::from_raw_parts_mut(structure.cast(), count) }
}

impl Kernel {
    /// A machine, which the calling thread is on CPU 0 of, in process 1.
    pub(crate) fn boot(config: Config) -> &'static Self {
        let kernel = Box::leak(Box::new(Self {
            port: Port::new(),
            config: Mutex::new(config),
            inside: Mutex::new(Inside { next_room: 0x10_0000_0000, next_frame: 0x1000, ..Inside::default() }),
            changed: Condvar::new(),
            cpus: Default::default(),
            kicks: Default::default(),
            at_ease: AtomicUsize::new(0),
            time: AtomicU64::new(0),
            count: AtomicI64::new(0),
            stamp: AtomicU64::new(1 << 40),
            cancel_lock: Mutex::new(()),
            cancel_takes_ms: AtomicU64::new(0),
        }));
        KERNEL.set(Some(kernel));
        CPU.set(0);
        PROCESS.set(1);
        kernel
    }

    pub(crate) fn port(&'static self) -> &'static Port<Fake> {
        &self.port
    }

    /// A thread more, on a CPU and in a process.
    pub(crate) fn spawn<T: Send + 'static>(
        &'static self,
        cpu: usize,
        process: usize,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> (Arc<Thread>, JoinHandle<T>) {
        let thread = Arc::<Thread>::default();
        let own = Arc::clone(&thread);
        let handle = std::thread::spawn(move || {
            KERNEL.set(Some(self));
            THREAD.set(own);
            CPU.set(cpu);
            PROCESS.set(process);
            let result = run();
            assert_eq!((IRQL.get(), REGIONS.get(), INTERRUPTS_OFF.get()), (0, 0, false), "as it was before");
            result
        });
        (thread, handle)
    }

    /// The thread is to end: what it waits for in user mode does.
    pub(crate) fn terminate(&self, thread: &Thread) {
        thread.ends.store(true, Ordering::SeqCst);
        let _inside = self.inside.lock().unwrap();
        self.changed.notify_all();
    }

    /// Changes a register that NT watches.
    pub(crate) fn set_dr7(value: u64) {
        DR7.set(value);
    }

    /// Moves the calling thread into a process.
    pub(crate) fn enter_process(process: usize) {
        PROCESS.set(process);
    }

    /// Cancels a request, as the I/O manager does.
    pub(crate) fn cancel(&'static self, irp: Irp) {
        let lock = self.cancel_lock.lock().unwrap();
        let key = irp.0.as_ptr().addr();
        let routine = {
            let mut inside = self.inside.lock().unwrap();
            inside.cancelled.insert(key, true);
            let routine = inside.cancels.remove(&key);
            inside.cancelling = routine.map(|_| key);
            routine
        };
        std::thread::sleep(std::time::Duration::from_millis(self.cancel_takes_ms.load(Ordering::SeqCst)));
        if let Some(context) = routine {
            let before = IRQL.replace(2);
            let context = NonNull::new(std::ptr::with_exposed_provenance_mut(context)).unwrap();
            // SAFETY: the context is the routine's, and the lock is held.
            unsafe { self.port.cancelled(context) };
            IRQL.set(before);
        }
        self.inside.lock().unwrap().cancelling = None;
        drop(lock);
    }

    /// Whether a cancel routine is about to run, or runs.
    pub(crate) fn cancels(&self) -> bool {
        self.inside.lock().unwrap().cancelling.is_some()
    }

    /// A request is completed.
    pub(crate) fn complete(&self, irp: Irp) {
        let inside = self.inside.lock().unwrap();
        let key = irp.0.as_ptr().addr();
        assert!(!inside.cancels.contains_key(&key), "no cancel routine is set any more");
        assert_ne!(inside.cancelling, Some(key), "nor does it run");
    }

    /// A request of a thread's.
    pub(crate) fn irp(number: usize) -> Irp {
        Irp(NonNull::new(std::ptr::without_provenance_mut(number)).unwrap())
    }

    /// Time goes on, and timers expire.
    pub(crate) fn advance(&self, units: u64) {
        let now = self.time.fetch_add(units, Ordering::SeqCst) + units;
        loop {
            let dpc = {
                let mut inside = self.inside.lock().unwrap();
                let Some(index) = inside.timers.iter().position(|timer| timer.0 <= now) else { return };
                inside.timers.swap_remove(index).2
            };
            let words = words(std::ptr::with_exposed_provenance_mut(dpc), 8);
            run_dpc(words);
        }
    }

    /// The time stamp counter counts on.
    pub(crate) fn pass(&self, milliseconds: u64) {
        self.stamp.fetch_add(milliseconds * TSC_KHZ, Ordering::SeqCst);
    }

    /// How many timers are set.
    pub(crate) fn timers(&self) -> usize {
        self.inside.lock().unwrap().timers.len()
    }

    /// How often an event of a program's was set.
    pub(crate) fn signals(&self, handle: usize) -> usize {
        self.inside.lock().unwrap().signals.get(&handle).copied().unwrap_or(0)
    }

    /// Mappings in a process, with the page frames in their order.
    pub(crate) fn mappings(&self, process: usize) -> Vec<(usize, Vec<usize>)> {
        let inside = self.inside.lock().unwrap();
        let space = inside.spaces.get(&process);
        let frames = |mdl: usize| {
            // SAFETY: an MDL that is mapped is alive.
            unsafe { &*std::ptr::with_exposed_provenance::<FakeMdl>(mdl) }.frames.clone()
        };
        space.into_iter().flatten().map(|(address, (_, mdl))| (*address, frames(*mdl))).collect()
    }

    /// The address space of a process goes.
    pub(crate) fn end_process(&'static self, process: usize) {
        let before = PROCESS.replace(process);
        self.port.process_ended(Fake::current_process());
        PROCESS.set(before);
        let mut inside = self.inside.lock().unwrap();
        let space = inside.spaces.remove(&process).unwrap_or_default();
        assert!(space.is_empty(), "nothing is mapped in a process that is gone");
        inside.next_room += 1 << 40;
    }

    /// Calls of allocating functions.
    pub(crate) fn allocations(&self) -> usize {
        self.inside.lock().unwrap().allocations
    }

    /// Everything was given back.
    pub(crate) fn assert_clean(&self) {
        let inside = self.inside.lock().unwrap();
        assert_eq!(inside.pages, 0, "pages");
        assert_eq!(inside.contiguous, 0, "contiguous memory");
        assert!(inside.mdls.is_empty(), "MDLs");
        assert!(inside.timers.is_empty(), "timers");
        assert_eq!(inside.resolution, 0, "timer resolution");
        assert!(inside.spaces.values().all(BTreeMap::is_empty), "mappings");
        assert!(inside.process_references.values().all(|count| *count == 0), "processes");
        assert!(inside.event_references.values().all(|count| *count == 0), "events");
        assert!(inside.cancels.is_empty(), "cancel routines");
    }
}

/// Runs a deferred call in the calling thread, as an interrupt would.
fn run_dpc(words: &[u64]) {
    assert_eq!(words[0], MAGIC, "the DPC is initialized");
    let (routine, context) = (words[1], words[2]);
    let before = IRQL.replace(2);
    // SAFETY: dpc_initialize() wrote a routine and its context.
    unsafe {
        let routine: DeferredRoutine = std::mem::transmute(routine);
        let context = std::ptr::with_exposed_provenance_mut(usize::try_from(context).unwrap());
        routine(std::ptr::null_mut(), context, std::ptr::null_mut(), std::ptr::null_mut());
    }
    IRQL.set(before);
}

fn mdl_of(frames: Vec<usize>) -> Mdl {
    let mdl = Box::into_raw(Box::new(FakeMdl { frames }));
    mdl.expose_provenance();
    Mdl(NonNull::new(mdl.cast()).unwrap())
}

fn key(mdl: Mdl) -> usize {
    mdl.0.as_ptr().addr()
}

// SAFETY: it does what the tests need of NT, and nothing else is called.
unsafe impl Kapi for Fake {
    const WATCH: bool = true;

    unsafe fn watched() -> Watched {
        assert!(INTERRUPTS_OFF.get(), "interrupts are off");
        Watched::with_dr7(DR7.get())
    }

    fn port() -> &'static Port<Self> {
        kernel().port()
    }

    fn system_routine(name: &str) -> Option<NonNull<c_void>> {
        check(Irql::PASSIVE);
        let address = *kernel().config.lock().unwrap().routines.get(name)?;
        NonNull::new(std::ptr::with_exposed_provenance_mut(address))
    }

    fn version() -> (u32, u32) {
        check(Irql::PASSIVE);
        kernel().config.lock().unwrap().version
    }

    fn irql() -> Irql {
        Irql(IRQL.get())
    }

    fn raise_irql(to: Irql) -> Irql {
        let before = IRQL.replace(to.0);
        assert!(before <= to.0, "raised from {before} to {}", to.0);
        if to == Irql::DISPATCH && HELD_CPU.with_borrow(Option::is_none) {
            HELD_CPU.set(Some(kernel().cpus[CPU.get()].lock().unwrap()));
        }
        Irql(before)
    }

    unsafe fn lower_irql(to: Irql) {
        let before = IRQL.replace(to.0);
        assert!(before >= to.0, "lowered from {before} to {}", to.0);
        if to < Irql::DISPATCH && !INTERRUPTS_OFF.get() {
            HELD_CPU.set(None);
            std::thread::yield_now();
        }
    }

    fn interrupts_off() {
        assert!(!INTERRUPTS_OFF.replace(true), "they were on");
        assert!(IRQL.get() >= 2, "preemption is off");
    }

    fn interrupts_on() {
        assert!(INTERRUPTS_OFF.replace(false), "they were off");
        if IRQL.get() < 2 {
            kernel().at_ease.fetch_add(1, Ordering::SeqCst);
            HELD_CPU.set(None);
            std::thread::yield_now();
        }
    }

    fn cpu() -> usize {
        CPU.get()
    }

    fn active_cpus() -> u64 {
        check(Irql::DISPATCH);
        kernel().config.lock().unwrap().active_cpus
    }

    unsafe fn set_affinity(cpus: u64) {
        check(Irql::APC);
        assert!(HOME_CPU.get().is_none(), "it does not nest");
        HOME_CPU.set(Some(CPU.replace(cpus.trailing_zeros() as usize)));
    }

    unsafe fn revert_affinity() {
        check(Irql::APC);
        CPU.set(HOME_CPU.take().expect("it was set"));
    }

    fn allocate_contiguous(bytes: usize, boundary: u64) -> Option<NonNull<u8>> {
        check(Irql::PASSIVE);
        let layout = Layout::from_size_align(bytes, usize::try_from(boundary).unwrap()).unwrap();
        let mut inside = kernel().inside.lock().unwrap();
        inside.allocations += 1;
        inside.contiguous += 1;
        // SAFETY: the layout has a size.
        let memory = NonNull::new(unsafe { alloc(layout) })?;
        // SAFETY: just allocated.
        unsafe { memory.write_bytes(0xcd, bytes) };
        Some(memory)
    }

    unsafe fn free_contiguous(memory: NonNull<u8>, bytes: usize) {
        check(Irql::PASSIVE);
        kernel().inside.lock().unwrap().contiguous -= 1;
        // SAFETY: the port asks for blocks at multiples of their size.
        unsafe { dealloc(memory.as_ptr(), Layout::from_size_align(bytes, bytes).unwrap()) };
    }

    fn physical_address(pointer: *const u8) -> u64 {
        check(Irql::DISPATCH);
        pointer.addr() as u64
    }

    fn allocate_pages(bytes: usize, skip: u64, flags: u32) -> Option<Mdl> {
        check(Irql::APC);
        let config = kernel().config.lock().unwrap().clone();
        let mut inside = kernel().inside.lock().unwrap();
        inside.allocations += 1;
        let wanted = bytes / 4096;
        let pages = wanted.min(config.pages_at_once).min(PAGES - inside.pages);
        if pages == 0 || flags & 4 != 0 && pages < wanted {
            return None;
        }
        let first = inside.next_frame;
        inside.next_frame += 0x1000;
        let frames = if flags & 0x20 != 0 {
            assert_eq!(skip, 2 << 20);
            let first = if config.chunks_aligned { first } else { first + 8 };
            (first..first + pages).collect()
        } else {
            // From anywhere: no two in a row.
            (0..pages).map(|page| first + 0x800 - 2 * page).collect()
        };
        inside.pages += pages;
        let layout = Layout::from_size_align(bytes, 4096).unwrap();
        // SAFETY: the layout has a size.
        let memory = unsafe { alloc(layout) };
        // SAFETY: just allocated.
        unsafe { memory.write_bytes(0xcd, bytes) };
        let mdl = mdl_of(frames);
        let memory = Some((memory.expose_provenance(), layout));
        inside.mdls.insert(key(mdl), MdlState { memory, ..MdlState::default() });
        Some(mdl)
    }

    unsafe fn free_pages(mdl: Mdl) {
        check(Irql::APC);
        let mut inside = kernel().inside.lock().unwrap();
        let state = inside.mdls.remove(&key(mdl)).expect("it is there");
        assert!(!state.kernel_map && state.user_map.is_none(), "it is mapped nowhere");
        let (memory, layout) = state.memory.expect("it has pages of its own");
        // SAFETY: allocate_pages() made both.
        unsafe {
            let mdl = Box::from_raw(mdl.0.as_ptr().cast::<FakeMdl>());
            inside.pages -= mdl.frames.len();
            dealloc(std::ptr::with_exposed_provenance_mut(memory), layout);
        }
    }

    fn allocate_mdl(pages: usize) -> Option<Mdl> {
        check(Irql::DISPATCH);
        assert!(48 + 8 * pages < 1 << 15, "an MDL's size has 15 bits");
        let mdl = mdl_of(vec![0; pages]);
        let mut inside = kernel().inside.lock().unwrap();
        inside.mdls.insert(key(mdl), MdlState::default());
        Some(mdl)
    }

    unsafe fn free_mdl(mdl: Mdl) {
        check(Irql::DISPATCH);
        let state = kernel().inside.lock().unwrap().mdls.remove(&key(mdl)).expect("it is there");
        assert!(state.memory.is_none() && state.user_map.is_none(), "it is mapped nowhere");
        // SAFETY: allocate_mdl() made it.
        drop(unsafe { Box::from_raw(mdl.0.as_ptr().cast::<FakeMdl>()) });
    }

    unsafe fn mdl_frames(mdl: Mdl) -> NonNull<[usize]> {
        // SAFETY: the MDL is alive.
        let mdl = unsafe { &mut *mdl.0.as_ptr().cast::<FakeMdl>() };
        NonNull::from(mdl.frames.as_mut_slice())
    }

    unsafe fn map_to_kernel(mdl: Mdl) -> Option<NonNull<u8>> {
        check(Irql::DISPATCH);
        let mut inside = kernel().inside.lock().unwrap();
        let state = inside.mdls.get_mut(&key(mdl)).expect("it is there");
        assert!(!std::mem::replace(&mut state.kernel_map, true), "it is not mapped");
        NonNull::new(std::ptr::with_exposed_provenance_mut(state.memory?.0))
    }

    unsafe fn map_to_user(mdl: Mdl, address: usize) -> Option<usize> {
        check(Irql::APC);
        let mut config = kernel().config.lock().unwrap();
        if config.stolen_rooms > 0 {
            config.stolen_rooms -= 1;
            return None;
        }
        config.maps_left = config.maps_left.checked_sub(1)?;
        let process = PROCESS.get();
        let mut inside = kernel().inside.lock().unwrap();
        // SAFETY: the MDL is alive.
        let frames = &unsafe { &*mdl.0.as_ptr().cast::<FakeMdl>() }.frames;
        assert!(frames.iter().all(|frame| *frame != 0), "all frames are written");
        let end = address + frames.len() * 4096;
        let space = inside.spaces.entry(process).or_default();
        if space.range(..end).next_back().is_some_and(|(start, (length, _))| start + length > address) {
            return None;
        }
        space.insert(address, (end - address, key(mdl)));
        inside.mdls.get_mut(&key(mdl)).expect("it is there").user_map = Some((process, address));
        Some(address)
    }

    unsafe fn unmap(address: usize, mdl: Mdl) {
        check(Irql::DISPATCH);
        let mut inside = kernel().inside.lock().unwrap();
        let state = inside.mdls.get_mut(&key(mdl)).expect("it is there");
        match state.user_map.take() {
            Some(map) => {
                check(Irql::APC);
                assert_eq!(map, (PROCESS.get(), address), "it is mapped there, in the current process");
                assert!(inside.spaces.get_mut(&map.0).unwrap().remove(&address).is_some());
            }
            None => assert!(std::mem::replace(&mut state.kernel_map, false), "it is mapped"),
        }
    }

    fn find_user_room(bytes: usize) -> Option<usize> {
        check(Irql::PASSIVE);
        let mut inside = kernel().inside.lock().unwrap();
        let room = inside.next_room;
        inside.next_room += bytes.next_multiple_of(0x1_0000);
        Some(room)
    }

    fn available_pages() -> u64 {
        check(Irql::PASSIVE);
        (PAGES - kernel().inside.lock().unwrap().pages) as u64
    }

    unsafe fn event_initialize(event: &KernelEvent, kind: EventKind, signaled: bool) {
        let words = words(event.as_ptr(), 3);
        words.copy_from_slice(&[MAGIC, u64::from(kind == EventKind::Synchronization), u64::from(signaled)]);
    }

    unsafe fn event_set(event: &KernelEvent, _boost: i32) {
        check(Irql::DISPATCH);
        let _inside = kernel().inside.lock().unwrap();
        let words = words(event.as_ptr(), 3);
        assert_eq!(words[0], MAGIC, "the event is initialized");
        words[2] = 1;
        kernel().changed.notify_all();
    }

    unsafe fn event_clear(event: &KernelEvent) {
        check(Irql::DISPATCH);
        let _inside = kernel().inside.lock().unwrap();
        words(event.as_ptr(), 3)[2] = 0;
    }

    unsafe fn event_wait(event: &KernelEvent, kind: WaitKind) -> NtStatus {
        check(Irql::APC);
        let mut inside = kernel().inside.lock().unwrap();
        loop {
            {
                let words = words(event.as_ptr(), 3);
                assert_eq!(words[0], MAGIC, "the event is initialized");
                if words[2] != 0 {
                    words[2] = 1 - words[1];
                    return NtStatus::SUCCESS;
                }
            }
            if kind == WaitKind::Interruptible && THREAD.with_borrow(|thread| thread.ends.load(Ordering::SeqCst)) {
                return NtStatus::USER_APC;
            }
            inside = kernel().changed.wait(inside).unwrap();
        }
    }

    fn sleep(milliseconds: u32) {
        check(Irql::APC);
        let frequency = kernel().config.lock().unwrap().frequency;
        kernel().count.fetch_add(frequency * i64::from(milliseconds) / 1000, Ordering::SeqCst);
        kernel().pass(milliseconds.into());
        std::thread::sleep(std::time::Duration::from_millis(1));
    }

    fn enter_critical_region() {
        check(Irql::APC);
        REGIONS.set(REGIONS.get() + 1);
    }

    unsafe fn leave_critical_region() {
        check(Irql::APC);
        REGIONS.set(REGIONS.get().checked_sub(1).expect("it was entered"));
    }

    fn thread_ends() -> bool {
        THREAD.with_borrow(|thread| thread.ends.load(Ordering::SeqCst))
    }

    /// Handles 0x100 to 0x1ff are events.
    fn event_object(handle: isize) -> Option<EventObject> {
        check(Irql::PASSIVE);
        let handle = usize::try_from(handle).ok().filter(|handle| (0x100..0x200).contains(handle))?;
        *kernel().inside.lock().unwrap().event_references.entry(handle).or_default() += 1;
        NonNull::new(std::ptr::without_provenance_mut(handle)).map(EventObject)
    }

    unsafe fn event_object_set(event: EventObject, _boost: i32) {
        check(Irql::DISPATCH);
        let mut inside = kernel().inside.lock().unwrap();
        let handle = event.0.as_ptr().addr();
        assert!(inside.event_references[&handle] > 0, "a reference is held");
        *inside.signals.entry(handle).or_default() += 1;
    }

    unsafe fn event_object_release(event: EventObject) {
        check(Irql::DISPATCH);
        let mut inside = kernel().inside.lock().unwrap();
        let count = inside.event_references.get_mut(&event.0.as_ptr().addr()).expect("it was referenced");
        *count -= 1;
        assert!(*count >= 0, "it was referenced");
    }

    unsafe fn dpc_initialize(dpc: &KernelDpc, routine: DeferredRoutine, context: *mut c_void) {
        let words = words(dpc.as_ptr(), 8);
        let routine = routine as usize;
        words.copy_from_slice(&[MAGIC, routine as u64, context.expose_provenance() as u64, u64::MAX, 0, 0, 0, 0]);
    }

    unsafe fn dpc_target(dpc: &KernelDpc, cpu: usize) {
        assert!(cpu < CPUS, "the CPU is there");
        words(dpc.as_ptr(), 8)[3] = cpu as u64;
    }

    /// Runs it in the calling thread.
    unsafe fn dpc_insert(dpc: &KernelDpc) -> bool {
        check(Irql::DISPATCH);
        let words = words(dpc.as_ptr(), 8);
        if let Some(kicks) = usize::try_from(words[3]).ok().and_then(|cpu| kernel().kicks.get(cpu)) {
            kicks.fetch_add(1, Ordering::SeqCst);
        }
        run_dpc(words);
        true
    }

    unsafe fn dpc_remove(dpc: &KernelDpc) -> bool {
        check(Irql::DISPATCH);
        assert_eq!(words(dpc.as_ptr(), 8)[0], MAGIC, "it is initialized");
        false
    }

    fn dpc_flush() {
        check(Irql::PASSIVE);
    }

    unsafe fn timer_initialize(timer: &KernelTimer) {
        words(timer.as_ptr(), 8)[0] = MAGIC;
    }

    unsafe fn timer_set(timer: &KernelTimer, units: u64, dpc: &KernelDpc) {
        check(Irql::DISPATCH);
        assert_eq!(words(timer.as_ptr(), 8)[0], MAGIC, "it is initialized");
        assert!((1..=i64::MAX as u64).contains(&units), "it is a relative time");
        let due = kernel().time.load(Ordering::SeqCst).saturating_add(units);
        let mut inside = kernel().inside.lock().unwrap();
        let (timer, dpc) = (timer.as_ptr().expose_provenance(), dpc.as_ptr().expose_provenance());
        inside.timers.retain(|other| other.1 != timer);
        inside.timers.push((due, timer, dpc));
    }

    unsafe fn timer_cancel(timer: &KernelTimer) -> bool {
        check(Irql::DISPATCH);
        let mut inside = kernel().inside.lock().unwrap();
        let before = inside.timers.len();
        let timer = timer.as_ptr().addr();
        inside.timers.retain(|other| other.1 != timer);
        inside.timers.len() != before
    }

    fn timer_resolution(units: u32, on: bool) {
        check(Irql::APC);
        assert_eq!(units, 10_000);
        kernel().inside.lock().unwrap().resolution += if on { 1 } else { -1 };
    }

    fn system_time() -> i64 {
        134_000_000_000_000_000
    }

    fn performance_counter() -> (i64, i64) {
        let frequency = kernel().config.lock().unwrap().frequency;
        (kernel().count.load(Ordering::SeqCst), frequency)
    }

    fn time_stamp() -> u64 {
        kernel().stamp.fetch_add(10, Ordering::SeqCst)
    }

    fn current_process() -> Process {
        Process(NonNull::new(std::ptr::without_provenance_mut(PROCESS.get() << 4)).unwrap())
    }

    unsafe fn process_reference(process: Process) {
        check(Irql::DISPATCH);
        *kernel().inside.lock().unwrap().process_references.entry(process.0.as_ptr().addr() >> 4).or_default() += 1;
    }

    unsafe fn process_release(process: Process) {
        check(Irql::DISPATCH);
        let mut inside = kernel().inside.lock().unwrap();
        let count = inside.process_references.get_mut(&(process.0.as_ptr().addr() >> 4)).expect("it was referenced");
        *count -= 1;
        assert!(*count >= 0, "it was referenced");
    }

    unsafe fn attach(process: Process, state: &ApcState) {
        check(Irql::APC);
        let process = process.0.as_ptr().addr() >> 4;
        assert!(kernel().inside.lock().unwrap().process_references[&process] > 0, "a reference is held");
        let before = PROCESS.replace(process);
        ATTACHED.with_borrow_mut(|attached| attached.push((state.as_ptr().addr(), before)));
    }

    unsafe fn detach(state: &ApcState) {
        check(Irql::APC);
        let (address, before) = ATTACHED.with_borrow_mut(Vec::pop).expect("it is attached");
        assert_eq!(address, state.as_ptr().addr(), "with the same state");
        PROCESS.set(before);
    }

    unsafe fn set_cancel_routine(irp: Irp, context: Option<NonNull<c_void>>) -> bool {
        check(Irql::DISPATCH);
        let mut inside = kernel().inside.lock().unwrap();
        let key = irp.0.as_ptr().addr();
        match context {
            Some(context) => inside.cancels.insert(key, context.as_ptr().expose_provenance()).is_some(),
            None => inside.cancels.remove(&key).is_some(),
        }
    }

    unsafe fn is_cancelled(irp: Irp) -> bool {
        kernel().inside.lock().unwrap().cancelled.get(&irp.0.as_ptr().addr()).copied().unwrap_or(false)
    }

    fn wait_for_cancel_routines() {
        check(Irql::DISPATCH);
        drop(kernel().cancel_lock.lock().unwrap());
    }
}
