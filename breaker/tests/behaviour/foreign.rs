//! Code of others that is called from inside: it may call back, panic or block.

use std::future::{pending, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};
use voussoir_breaker::*;

/// A subscriber that runs `f` at each event of the breaker.
struct At<F>(F);

impl<F: Fn() + 'static> Subscriber for At<F> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "voussoir::breaker"
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event<'_>) {
        (self.0)();
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

fn observed<R>(observer: impl Fn() + Send + Sync + 'static, f: impl FnOnce() -> R) -> R {
    tracing::subscriber::with_default(At(observer), f)
}

/// Runs `f` on a thread of its own: a deadlock fails the test instead of hanging it.
fn within_ten_seconds(f: impl FnOnce() + Send + 'static) {
    let (done, finished) = mpsc::channel();
    std::thread::spawn(move || {
        f();
        let _ = done.send(());
    });
    let answer = finished.recv_timeout(Duration::from_secs(10));
    answer.expect("it hangs or has panicked");
}

fn breaker() -> Arc<Breaker> {
    let mut config = BreakerConfig::default();
    config.consecutive_failures = Some(1);
    Arc::new(Breaker::new("b", &config).expect("valid"))
}

#[test]
fn an_observer_may_call_back() {
    within_ten_seconds(|| {
        let breaker = breaker();
        let seen = Arc::new(Mutex::new(vec![]));
        let (inner, log) = (Arc::clone(&breaker), Arc::clone(&seen));
        let observer = move || log.lock().expect("held briefly").push(inner.snapshot().state);
        observed(observer, || {
            breaker.try_acquire().expect("closed").failure();
            breaker.reset();
        });
        assert_eq!(*seen.lock().expect("held briefly"), [State::Open, State::Closed]);
    });
}

/// An observer that answers each opening with another change: all are heard, in their order.
#[test]
fn an_observer_may_change_the_state() {
    within_ten_seconds(|| {
        let breaker = breaker();
        let mut events = breaker.events();
        let inner = Arc::clone(&breaker);
        let observer = move || {
            if inner.state() == State::Open {
                inner.force_closed();
            }
        };
        observed(observer, || breaker.try_acquire().expect("closed").failure());
        let heard: Vec<_> = std::iter::from_fn(|| events.try_recv().ok()).map(|e| e.to).collect();
        assert_eq!(heard, [State::Open, State::ForcedClosed]);
        assert_eq!(*breaker.watch().borrow(), State::ForcedClosed);
    });
}

/// The call during which the state changes does not fail for it, the other listeners hear of the
/// change, and so does the next observer. Also when the call is unwinding itself.
#[test]
fn an_observer_that_panics_fails_nobody() {
    let breaker = breaker();
    let mut events = breaker.events();
    observed(
        || panic!("scripted: an observer"),
        || {
            breaker.try_acquire().expect("closed").failure();
            breaker.reset();
            let unwinding = catch_unwind(AssertUnwindSafe(|| {
                breaker.run(|| -> Result<(), ()> { panic!("scripted: a call") })
            }));
            assert!(unwinding.is_err());
        },
    );
    let heard: Vec<_> = std::iter::from_fn(|| events.try_recv().ok()).map(|e| e.to).collect();
    assert_eq!(heard, [State::Open, State::Closed, State::Open]);
    assert_eq!(*breaker.watch().borrow(), State::Open);
}

#[test]
fn an_observer_that_blocks_holds_up_no_other_thread() {
    within_ten_seconds(|| {
        let breaker = breaker();
        let (go, wait) = mpsc::channel::<()>();
        let (blocked, is_blocked) = mpsc::channel();
        let wait = Mutex::new(wait);
        let announcer = {
            let breaker = Arc::clone(&breaker);
            let observer = move || {
                let _ = blocked.send(());
                let _ = wait.lock().expect("one announcer at a time").recv();
            };
            std::thread::spawn(move || {
                observed(observer, || breaker.try_acquire().expect("closed").failure());
            })
        };
        is_blocked.recv().expect("the observer was called");
        // A hundred further changes, though nobody hears of them yet.
        for _ in 0..50 {
            breaker.reset();
            breaker.try_acquire().expect("closed").failure();
        }
        breaker.reset();
        assert_eq!((breaker.state(), breaker.stats().openings), (State::Closed, 51));
        drop(go);
        announcer.join().expect("no panic");
        assert_eq!(*breaker.watch().borrow(), State::Closed, "the last change is heard");
    });
}

/// A classifier's panic ends the call and counts as the call's: nothing stays taken.
#[tokio::test(start_paused = true)]
async fn a_classifier_or_fallback_that_panics_leaves_nothing_behind() {
    struct Wild;
    impl Classify<u8, ()> for Wild {
        fn verdict(&self, _: &Result<u8, ()>) -> Verdict {
            panic!("scripted: a classifier")
        }
    }
    let (breaker, bulkhead) = (breaker(), Bulkhead::new(1, QueueConfig::default()).expect("valid"));
    let guarded = || Policy::builder().breaker(Arc::clone(&breaker)).bulkhead(bulkhead.clone());
    let fallback = |_| async { panic!("scripted: a fallback") };
    let policies: [Policy<u8, ()>; 2] = [
        guarded().classify(Arc::new(Wild)).build().expect("valid"),
        guarded().fallback(fallback).build().expect("valid"),
    ];
    for policy in policies {
        breaker.reset();
        let mut call = pin!(policy.call(|_| async { Err(()) }));
        let ended = poll_fn(|cx| {
            let poll = catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(cx)));
            Poll::Ready(poll.is_err())
        });
        assert!(ended.await, "{policy} swallowed a panic");
        assert_eq!((breaker.state(), bulkhead.stats().running), (State::Open, 0), "{policy}");
    }
    breaker.reset();
    let classify = |_: &Result<u8, ()>| -> Verdict { panic!("scripted: a classifier") };
    let mut call = pin!(breaker.call_with(async { Ok(1) }, classify));
    let mut poll = |cx: &mut Context<'_>| catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(cx)));
    assert!(poll(&mut Context::from_waker(Waker::noop())).is_err());
    assert_eq!(breaker.state(), State::Open);
}

/// Panics and cancellations are told apart, also where one thread does both at once.
#[tokio::test(start_paused = true)]
async fn a_cancelled_call_beside_a_panicking_one_is_no_failure() {
    let (well, sick) = (breaker(), breaker());
    let mut hung = pin!(well.call(pending::<Result<(), ()>>()));
    let hung = poll_fn(|cx| Poll::Ready(hung.as_mut().poll(cx).is_pending()));
    assert!(hung.await);
    let both = {
        let (well, sick) = (Arc::clone(&well), Arc::clone(&sick));
        tokio::spawn(async move {
            let panicking = sick.call(async { panic!("scripted: a call") });
            let _: (Result<(), BreakerError<()>>, Result<(), BreakerError<()>>) =
                tokio::join!(well.call(pending()), panicking);
        })
    };
    assert!(both.await.expect_err("panicked").is_panic());
    assert_eq!((well.state(), sick.state()), (State::Closed, State::Open));
}

#[test]
fn panics_and_drops_count_as_configured() {
    for (on_drop, on_panic, dropped, panicked) in
        [(Verdict::Ignored, Verdict::Failure, 0, 1), (Verdict::Failure, Verdict::Ignored, 1, 0)]
    {
        let mut config = BreakerConfig::default();
        (config.on_drop, config.on_panic) = (on_drop, on_panic);
        let failures = |breaker: &Breaker| breaker.stats().window.failures;
        let breaker = Breaker::new("b", &config).expect("valid");
        drop(breaker.try_acquire().expect("closed"));
        assert_eq!(failures(&breaker), dropped);
        let breaker = Breaker::new("b", &config).expect("valid");
        let by_hand = || {
            let _permit = breaker.try_acquire().expect("closed");
            panic!("scripted: a call by hand");
        };
        assert!(catch_unwind(AssertUnwindSafe(by_hand)).is_err());
        assert_eq!(failures(&breaker), panicked);
    }
}

type LimitCell = Arc<OnceLock<AdaptiveLimit>>;

/// Asks its own limit, makes a call of its own through it, and panics when told to.
#[derive(Debug)]
struct Nosy {
    limit: LimitCell,
    updates: Arc<AtomicU32>,
    panics_at: u32,
}

impl LimitAlgorithm for Nosy {
    fn initial(&self) -> usize {
        8
    }

    fn update(&mut self, _sample: &LimitSample) -> usize {
        let update = self.updates.fetch_add(1, Relaxed);
        assert!(update != self.panics_at, "scripted: an algorithm");
        let limit = self.limit.get().expect("set before the first call");
        if update < 5 {
            limit.try_acquire().expect("8 places").success();
        }
        limit.stats().limit + 1
    }
}

fn nosy(panics_at: u32) -> (AdaptiveLimit, Arc<AtomicU32>) {
    let (cell, updates) = (LimitCell::default(), Arc::new(AtomicU32::new(0)));
    let algorithm = Nosy { limit: Arc::clone(&cell), updates: Arc::clone(&updates), panics_at };
    let limit = AdaptiveLimit::new(Box::new(algorithm), QueueConfig::default()).expect("valid");
    cell.set(limit.clone()).expect("once");
    (limit, updates)
}

#[test]
fn a_limit_algorithm_may_use_its_own_limit() {
    within_ten_seconds(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        runtime.expect("a runtime").block_on(async {
            let (limit, updates) = nosy(u32::MAX);
            limit.try_acquire().expect("free").success();
            // One sample of the caller's, five that the algorithm caused while it ran.
            assert_eq!((updates.load(Relaxed), limit.stats().limit), (6, 14));
        });
    });
}

#[tokio::test]
async fn a_limit_algorithm_that_panics_is_asked_again() {
    let (limit, updates) = nosy(0);
    let first = limit.try_acquire().expect("free");
    assert!(catch_unwind(AssertUnwindSafe(|| first.success())).is_err());
    assert_eq!((limit.stats().running, limit.stats().limit), (0, 8));
    limit.try_acquire().expect("free").success();
    assert!(updates.load(Relaxed) > 1 && limit.stats().limit > 8);
}

/// A waker that does what an executor may do in it: run code that uses the bulkhead.
struct Reenters(Bulkhead);

impl Wake for Reenters {
    fn wake(self: Arc<Self>) {
        assert!(self.0.stats().running <= 2);
        drop(self.0.try_acquire());
        self.0.set_limit(2).expect("in range");
    }
}

#[test]
fn a_waker_may_use_the_bulkhead_that_wakes_it() {
    within_ten_seconds(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        runtime.expect("a runtime").block_on(async {
            let mut queue = QueueConfig::default();
            queue.max_len = 4;
            let bulkhead = Bulkhead::new(1, queue).expect("valid");
            let place = bulkhead.try_acquire().expect("free");
            let waker = Waker::from(Arc::new(Reenters(bulkhead.clone())));
            let mut waiters: Vec<_> = (0..2).map(|_| Box::pin(bulkhead.acquire())).collect();
            for waiter in &mut waiters {
                assert!(waiter.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            }
            drop(place);
            for waiter in &mut waiters {
                let poll = waiter.as_mut().poll(&mut Context::from_waker(&waker));
                assert!(matches!(poll, Poll::Ready(Ok(_))), "woken with a place");
            }
        });
    });
}

/// A waker that panics: the panic goes to whoever gave the place back, and the place to the waiter.
#[tokio::test]
async fn a_waker_that_panics_loses_no_place() {
    struct Panics;
    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("scripted: a waker")
        }
    }
    let mut queue = QueueConfig::default();
    queue.max_len = 1;
    let bulkhead = Bulkhead::new(1, queue).expect("valid");
    let place = bulkhead.try_acquire().expect("free");
    let mut waiter = Box::pin(bulkhead.acquire());
    let waker = Waker::from(Arc::new(Panics));
    assert!(waiter.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    assert!(catch_unwind(AssertUnwindSafe(|| drop(place))).is_err());
    let granted = waiter.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(granted, Poll::Ready(Ok(_))));
    assert_eq!((bulkhead.stats().running, bulkhead.stats().waiting), (1, 0));
    drop(granted);
    assert_eq!(bulkhead.stats().running, 0);
}

/// A key whose name asks the registry, and a clock that does.
#[test]
fn a_keys_name_and_the_clock_may_use_the_registry() {
    #[derive(Clone, PartialEq, Eq, Hash)]
    struct Key(u32);
    static REGISTRY: OnceLock<Registry<Key>> = OnceLock::new();
    impl std::fmt::Display for Key {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            let others = REGISTRY.get().map_or(0, Registry::len);
            write!(f, "{} after {others}", self.0)
        }
    }
    #[derive(Debug)]
    struct Counting;
    impl Clock for Counting {
        fn now(&self) -> u64 {
            REGISTRY.get().map_or(0, |registry| registry.all().len() as u64)
        }
    }
    within_ten_seconds(|| {
        let registry = Registry::with_clock(BreakerConfig::default(), 2, Arc::new(Counting));
        REGISTRY.set(registry.expect("valid")).expect("once");
        let registry = REGISTRY.get().expect("set");
        for key in 0..4 {
            registry.get(&Key(key)).expect("room");
        }
        assert_eq!(registry.get(&Key(3)).expect("kept").name(), "3 after 2");
    });
}
