//! Foreign code never runs under a lock of the limiter: clocks, keys and wakers that call back,
//! and keys that panic.

use std::cell::Cell;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, OnceLock, Weak, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use voussoir_limit::*;

const SECOND: Duration = Duration::from_secs(1);

/// Runs the test in a thread of its own: a deadlock is a failure, not a test that hangs.
fn ends(test: impl FnOnce() + Send + 'static) {
    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        test();
        sender.send(()).expect("the test waits");
    });
    let outcome = receiver.recv_timeout(Duration::from_secs(20));
    assert_ne!(outcome, Err(mpsc::RecvTimeoutError::Timeout), "a deadlock");
    thread.join().expect("the test passes");
}

thread_local! {
    /// Set while foreign code calls back, so that it does so once.
    static CALLING: Cell<bool> = const { Cell::new(false) };
    /// Counts the calls back.
    static CALLS: Cell<u32> = const { Cell::new(0) };
}

fn once(call: impl FnOnce()) {
    if !CALLING.replace(true) {
        CALLS.set(CALLS.get() + 1);
        call();
        CALLING.set(false);
    }
}

type Call = Box<dyn Fn() + Send + Sync>;

/// A clock that uses the limiter each time it is read.
#[derive(Default)]
struct CallingClock(OnceLock<Call>);

impl std::fmt::Debug for CallingClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CallingClock")
    }
}

impl Clock for CallingClock {
    fn now(&self) -> u64 {
        once(|| self.0.get().expect("it was set before its first reading")());
        1 << 40
    }
}

fn shapes() -> [Vec<Quota>; 3] {
    let (gcra, log) = (Quota::gcra(1, SECOND).burst(9), Quota::sliding_log(9, SECOND));
    [vec![gcra], vec![log], vec![gcra, log]]
}

#[test]
fn a_clock_may_use_the_limiter() {
    ends(|| {
        for quotas in shapes() {
            let clock = Arc::new(CallingClock::default());
            let (config, shared) = (LimiterConfig::default(), Arc::clone(&clock) as _);
            let limiter = Arc::new(Limiter::with_clock(&quotas, config, shared).unwrap());
            let (weak, of_clock) = (Arc::downgrade(&limiter), quotas.clone());
            let call = move || {
                let limiter = Weak::upgrade(&weak).expect("it is in use");
                limiter.set_quotas(&of_clock).unwrap();
                let admitted = limiter.check_at(1 << 40, 1);
                if let Ok(admitted) = admitted {
                    limiter.refund(admitted);
                }
            };
            let _ = clock.0.set(Box::new(call));
            let admitted = limiter.check().unwrap();
            limiter.refund(admitted);
            limiter.set_quotas(&quotas).unwrap();
        }
        assert!(CALLS.get() >= 9, "{} calls", CALLS.get());
    });
}

#[test]
fn a_clock_may_use_the_keyed_limiter() {
    ends(|| {
        for quotas in shapes() {
            let clock = Arc::new(CallingClock::default());
            let (config, shared) = (KeyedConfig::default(), Arc::clone(&clock) as _);
            let limiter = Arc::new(Keyed::<u64>::with_clock(&quotas, config, shared).unwrap());
            let (weak, of_clock) = (Arc::downgrade(&limiter), quotas.clone());
            let call = move || {
                let limiter = Weak::upgrade(&weak).expect("it is in use");
                limiter.set_quotas(&of_clock).unwrap();
                let admitted = limiter.check_at(&1, 1 << 40, 1);
                if let Ok(admitted) = admitted {
                    limiter.refund(&1, admitted);
                }
                limiter.reclaim();
            };
            let _ = clock.0.set(Box::new(call));
            let admitted = limiter.check(&1).unwrap();
            limiter.refund(&1, admitted);
            limiter.set_quotas(&quotas).unwrap();
            limiter.reclaim();
        }
        assert!(CALLS.get() >= 11, "{} calls", CALLS.get());
    });
}

static LIMITER: OnceLock<Keyed<CallingKey>> = OnceLock::new();

/// A key that uses the limiter when it is hashed, cloned and dropped.
#[derive(PartialEq, Eq)]
struct CallingKey(u64);

fn use_the_limiter() {
    once(|| {
        let limiter = LIMITER.get().expect("it is in use");
        let _ = limiter.check_at(&CallingKey(u64::MAX), 1, 1);
        assert!(limiter.len() < 1 << 20);
        limiter.reclaim();
    });
}

impl Hash for CallingKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        use_the_limiter();
        self.0.hash(state);
    }
}

impl Clone for CallingKey {
    fn clone(&self) -> Self {
        use_the_limiter();
        Self(self.0)
    }
}

impl Drop for CallingKey {
    fn drop(&mut self) {
        use_the_limiter();
    }
}

/// A clock that stands at 0, so that the test does not depend on how long the machine has been up:
/// to calls without a time of their own no key is ever idle, and what is forgotten is forgotten by
/// the checks, which are told the time.
#[derive(Debug)]
struct StandingClock;

impl Clock for StandingClock {
    fn now(&self) -> u64 {
        0
    }
}

#[test]
fn a_key_may_use_the_limiter_when_it_is_hashed_cloned_and_dropped() {
    ends(|| {
        let mut config = KeyedConfig::default();
        config.max_keys = 300;
        let quota = Quota::sliding_log(2, SECOND);
        let limiter = Keyed::with_clock(&[quota], config, Arc::new(StandingClock)).unwrap();
        assert!(LIMITER.set(limiter).is_ok());
        let limiter = LIMITER.get().expect("it was set");
        for round in 0..4 {
            // Each round finds the keys of the last one idle, forgets them and grows the tables.
            for key in 0..1000 {
                let _ = limiter.check_at(&CallingKey(round << 32 | key), round << 40, 1);
            }
            limiter.reclaim();
        }
        assert!(limiter.stats().reclaimed > 300, "{:?}", limiter.stats());
        assert!(CALLS.get() > 4000);
    });
}

/// A key that panics when it is compared or cloned while `PANICS` is set.
struct Panicking(u64);

impl Hash for Panicking {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

thread_local!(static PANICS: Cell<bool> = const { Cell::new(false) });

impl PartialEq for Panicking {
    fn eq(&self, other: &Self) -> bool {
        assert!(!PANICS.get(), "this key does not like to be compared");
        self.0 == other.0
    }
}

impl Eq for Panicking {}

impl Clone for Panicking {
    fn clone(&self) -> Self {
        assert!(!PANICS.get(), "this key does not like to be cloned");
        Self(self.0)
    }
}

#[test]
fn a_key_that_panics_leaves_the_limiter_as_it_was() {
    for quotas in shapes() {
        let limiter: Keyed<Panicking> =
            Keyed::with_config(&quotas, KeyedConfig::default()).unwrap();
        limiter.check_at(&Panicking(1), 1, 4).unwrap();
        PANICS.set(true);
        for key in [1, 2] {
            // The table of words neither compares nor clones keys.
            let check = || limiter.check_at(&Panicking(key), 1, 1).is_ok();
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(check));
            let of_words = quotas.len() == 1 && quotas[0].algorithm == Algorithm::Gcra;
            assert_eq!(outcome.is_ok(), of_words, "key {key} of {quotas:?}");
        }
        PANICS.set(false);
        let left = |key| limiter.check_at(&Panicking(key), 1, 0).unwrap().remaining();
        let counted = u64::from(quotas.len() == 1 && quotas[0].algorithm == Algorithm::Gcra);
        assert_eq!((left(1), left(2)), (5 - counted, 9 - counted));
    }
}

/// A waker that drops another caller's wait, as an executor does that cancels a task when one of
/// its branches is done.
struct DropsAnother(std::sync::Mutex<Option<Waiting>>);

type Waiting = std::pin::Pin<Box<dyn Future<Output = Result<Admitted, WaitError>> + Send>>;

impl Wake for DropsAnother {
    fn wake(self: Arc<Self>) {
        CALLS.set(CALLS.get() + 1);
        drop(self.0.lock().unwrap().take());
    }
}

#[test]
fn a_waker_may_drop_another_that_waits() {
    ends(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _entered = runtime.enter();
        static KEYS: OnceLock<Keyed<u64>> = OnceLock::new();
        let keys = KEYS.get_or_init(|| Keyed::new(Quota::gcra(1, 3600 * SECOND)).unwrap());
        let taken: Vec<Admitted> = [1, 2].map(|key| keys.check(&key).unwrap()).into();
        let mut other: Waiting = Box::pin(keys.until_ready(&2));
        let mut noop = Context::from_waker(Waker::noop());
        assert!(other.as_mut().poll(&mut noop).is_pending());
        let waker = Arc::new(DropsAnother(std::sync::Mutex::new(Some(other))));
        let waker = Waker::from(waker);
        let mut waits: Waiting = Box::pin(keys.until_ready(&1));
        assert!(waits.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        assert_eq!(keys.waiting(), 2);
        keys.refund(&1, taken.into_iter().next().unwrap());
        assert_eq!((CALLS.get(), keys.waiting()), (1, 1), "the waker has dropped the other");
        assert!(matches!(waits.as_mut().poll(&mut noop), Poll::Ready(Ok(_))));
    });
}
