//! CPUs, clocks, timers.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use covisor_core::host::Cpus;
use covisor_core::host::Host;
use covisor_core::host::Interrupted;
use covisor_core::host::Stay;
use covisor_core::host::TimerCallback;

use crate::Kapi;
use crate::Nt;
use crate::kapi::Irql;
use crate::tests::end;
use crate::tests::kernel::CPUS;
use crate::tests::kernel::Config;
use crate::tests::kernel::Fake;
use crate::tests::kernel::Kernel;
use crate::tests::kernel::TSC_KHZ;
use crate::tests::machine;
use crate::tests::start;

type TestHost = Nt<Fake>;

#[test]
fn test_preemption_nests_and_gives_the_level_back() {
    let kernel = machine();
    TestHost::preempt_off();
    TestHost::preempt_off();
    assert_eq!(Fake::irql(), Irql::DISPATCH);
    TestHost::preempt_on();
    assert_eq!(Fake::irql(), Irql::DISPATCH, "once more");
    TestHost::preempt_on();
    assert_eq!(Fake::irql(), Irql::PASSIVE);
    Fake::raise_irql(Irql::APC);
    TestHost::preempt_off();
    TestHost::preempt_on();
    assert_eq!(Fake::irql(), Irql::APC);
    // SAFETY: it was raised here.
    unsafe { Fake::lower_irql(Irql::PASSIVE) };
    end(kernel);
}

#[test]
fn test_everything_can_interrupt_a_guest_and_nothing_the_host_meanwhile() {
    let kernel = machine();
    TestHost::preempt_off();
    TestHost::interrupts_off();
    let stay = Stay { takes_interrupts: false, cuts_task_segment: false };
    TestHost::in_guest(stay, || assert_eq!(Fake::irql(), Irql::PASSIVE, "CR8 holds nothing back"));
    assert_eq!(Fake::irql(), Irql::DISPATCH, "before interrupts are on");
    TestHost::interrupts_on();
    TestHost::preempt_on();
    end(kernel);
}

#[test]
fn test_a_kick_goes_to_its_cpu_and_to_none_that_is_not_there() {
    let kernel = machine();
    for cpu in [2, 2, 3, CPUS, 63, 64, usize::MAX] {
        TestHost::kick(cpu);
    }
    let kicks: Vec<_> = kernel.kicks.iter().map(|count| count.load(Ordering::SeqCst)).collect();
    assert_eq!(kicks, [0, 0, 2, 1]);
    end(kernel);
}

#[test]
fn test_cpus_are_those_that_are_on() {
    let kernel = Kernel::boot(Config { active_cpus: 0b101, ..Config::default() });
    start(kernel).expect("it starts");
    assert_eq!(TestHost::machine().cpu_limit, 3);
    static SEEN: AtomicUsize = AtomicUsize::new(0);
    let mark = |cpu, _| {
        assert_eq!(cpu, Fake::cpu());
        SEEN.fetch_or(1_usize << cpu, Ordering::SeqCst);
    };
    TestHost::on_cpus(Cpus::Each, mark, std::ptr::null());
    assert_eq!(SEEN.load(Ordering::SeqCst), 0b101);
    assert_eq!(Fake::cpu(), 0, "the thread is back");
    TestHost::on_cpus(Cpus::One(1), |_, _| unreachable!("it is off"), std::ptr::null());
    TestHost::on_cpus(Cpus::One(64), |_, _| unreachable!("it is not there"), std::ptr::null());
    end(kernel);
}

/// Two threads that want each other's CPU must not wait for ever.
#[test]
fn test_two_cpus_can_call_each_other() {
    let kernel = machine();
    let callers = [(0, 1), (1, 0)].map(|(here, there)| {
        kernel.spawn(here, 1, move || {
            let count = AtomicUsize::new(0);
            for _ in 0..500 {
                TestHost::on_cpus(
                    Cpus::One(there),
                    |_, count| {
                        // SAFETY: the caller waits, and it is that.
                        unsafe { &*count.cast::<AtomicUsize>() }.fetch_add(1, Ordering::SeqCst);
                    },
                    (&raw const count).cast(),
                );
                TestHost::preempt_off();
                TestHost::preempt_on();
            }
            count.into_inner()
        })
    });
    for (_, caller) in callers {
        assert_eq!(caller.join().unwrap(), 500);
    }
    end(kernel);
}

#[test]
fn test_a_timer_calls_once_and_not_after_its_end() {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let kernel = machine();
    let function = |_| {
        assert_eq!(Fake::irql(), Irql::DISPATCH);
        CALLS.fetch_add(1, Ordering::SeqCst);
    };
    let timer = TestHost::timer_new(TimerCallback { function, argument: std::ptr::null() }).expect("there is memory");
    TestHost::timer_set(&timer, Some(1_001));
    kernel.advance(10);
    assert_eq!(CALLS.load(Ordering::SeqCst), 0, "units are rounded up");
    kernel.advance(1);
    kernel.advance(1000);
    assert_eq!(CALLS.load(Ordering::SeqCst), 1);
    TestHost::timer_set(&timer, Some(0));
    kernel.advance(1);
    assert_eq!(CALLS.load(Ordering::SeqCst), 2);
    TestHost::timer_set(&timer, Some(u64::MAX));
    TestHost::timer_set(&timer, Some(100));
    assert_eq!(kernel.timers(), 1, "the second setting replaces the first");
    TestHost::timer_set(&timer, None);
    kernel.advance(1000);
    TestHost::timer_set(&timer, Some(100));
    drop(timer);
    kernel.advance(1000);
    assert_eq!(CALLS.load(Ordering::SeqCst), 2);
    end(kernel);
}

#[test]
fn test_a_sleeper_wakes_by_a_wake_and_by_its_end() {
    let kernel = machine();
    let waker: &_ = Box::leak(Box::new(TestHost::waker_new().expect("there is memory")));
    let ready: &AtomicBool = Box::leak(Box::default());
    let wait = move || TestHost::wait(waker, || ready.load(Ordering::SeqCst));
    // Whoever waits is inside of the gate, as every caller of the device is.
    let inside = move || {
        kernel.port().gate().enter::<Fake>().unwrap();
        let waited = wait();
        kernel.port().gate().leave();
        waited
    };
    let (_, sleeper) = kernel.spawn(1, 1, inside);
    TestHost::wake(waker);
    ready.store(true, Ordering::SeqCst);
    TestHost::wake(waker);
    assert_eq!(sleeper.join().unwrap(), Ok(()));
    ready.store(false, Ordering::SeqCst);
    let (thread, sleeper) = kernel.spawn(1, 1, inside);
    kernel.terminate(&thread);
    assert_eq!(sleeper.join().unwrap(), Err(Interrupted));
    end(kernel);
}

#[test]
fn test_an_event_is_one_of_the_caller_s_and_its_reference_goes_back() {
    let kernel = machine();
    assert!([-1, 0, 0x99, i64::MIN, i64::MAX].into_iter().all(|handle| TestHost::event_open(handle).is_none()));
    let event = TestHost::event_open(0x123).expect("it is one");
    TestHost::event_signal(&event);
    assert_eq!(kernel.signals(0x123), 1);
    drop(event);
    end(kernel);
}

/// As core asks.
fn must_yield() -> bool {
    TestHost::preempt_off();
    let must = TestHost::must_yield();
    TestHost::preempt_on();
    must
}

#[test]
fn test_a_thread_that_ends_yields_and_is_interrupted() {
    let kernel = machine();
    let (thread, ending) = kernel.spawn(1, 1, || {
        while !must_yield() {
            std::thread::yield_now();
        }
        TestHost::yield_now()
    });
    kernel.terminate(&thread);
    assert_eq!(ending.join().unwrap(), Err(Interrupted));
    end(kernel);
}

#[test]
fn test_the_kernel_says_when_to_yield_where_it_can() {
    static WANTED: AtomicBool = AtomicBool::new(false);
    extern "C" fn should_yield() -> u32 {
        WANTED.load(Ordering::SeqCst).into()
    }
    let mut config = Config::default();
    config.routines.insert("KeShouldYieldProcessor", should_yield as *const () as usize);
    let kernel = Kernel::boot(config);
    start(kernel).expect("it starts");
    assert!(!must_yield());
    WANTED.store(true, Ordering::SeqCst);
    assert!(must_yield());
    end(kernel);
}

#[test]
fn test_without_that_a_slice_and_an_event_make_it_yield() {
    let kernel = machine();
    let event = TestHost::event_open(0x100).expect("it is one");
    TestHost::preempt_off();
    assert!(!TestHost::must_yield());
    TestHost::event_signal(&event);
    assert!(TestHost::must_yield(), "who waited for it may wait for this CPU");
    TestHost::preempt_on();
    TestHost::preempt_off();
    assert!(!TestHost::must_yield());
    kernel.pass(2);
    assert!(TestHost::must_yield(), "its slice is over");
    TestHost::preempt_on();
    assert!(!must_yield(), "and another one begins");
    drop(event);
    end(kernel);
}

#[test]
fn test_the_time_stamp_counter_is_measured() {
    let kernel = machine();
    let khz = u64::from(TestHost::machine().tsc_khz);
    assert!(khz.abs_diff(TSC_KHZ) < TSC_KHZ / 100_000, "{khz}");
    end(kernel);
}

#[test]
fn test_the_precise_clock_is_taken_where_there_is_one() {
    extern "C" fn precise(time: *mut i64) {
        // SAFETY: the caller's.
        unsafe { *time = 116_444_736_000_000_007 };
    }
    let kernel = machine();
    assert_eq!(TestHost::wall_clock_ns(), (134_000_000_000_000_000 - 116_444_736_000_000_000) * 100);
    end(kernel);
    let mut config = Config::default();
    config.routines.insert("KeQuerySystemTimePrecise", precise as *const () as usize);
    let kernel = Kernel::boot(config);
    start(kernel).expect("it starts");
    assert_eq!(TestHost::wall_clock_ns(), 700);
    end(kernel);
}
