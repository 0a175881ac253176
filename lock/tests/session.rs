//! The client over the service in memory, on paused time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::{Instant, advance, sleep, timeout};
use voussoir_lock::*;

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

fn config() -> LeaseConfig {
    let mut config = LeaseConfig::default();
    config.ttl = SECOND;
    config
}

async fn open(service: &Arc<dyn LockService<Grants = Fenced>>) -> Session {
    open_for(service, SECOND).await
}

async fn open_for(service: &Arc<dyn LockService<Grants = Fenced>>, ttl: Duration) -> Session {
    let mut config = config();
    config.ttl = ttl;
    let clock = Arc::new(TokioClock::default());
    let opened = Session::open_with_clock(Arc::clone(service), config, SECOND, clock).await;
    opened.expect("the service works")
}

fn memory() -> Arc<MemoryLocks> {
    MemoryLocks::start_with_clock(Arc::new(TokioClock::default()))
}

/// A service whose answers can be lost or late, and whose renewals and acquisitions can fail or
/// hang.
struct Faulty {
    service: Arc<MemoryLocks>,
    /// The next calls whose answer is lost, once they were done.
    lost_answers: AtomicUsize,
    /// The next renewals that fail before they are done.
    failing_renewals: AtomicUsize,
    renewals: AtomicUsize,
    releases: AtomicUsize,
    /// How long the answer to a renewal takes, in ms.
    renewal_delay_ms: AtomicU64,
    /// How long the answer to the opening of a session takes, in ms.
    open_delay_ms: AtomicU64,
    /// Whether acquisitions are never answered.
    hangs: AtomicBool,
    /// Whether releases and values are never answered.
    is_mute: AtomicBool,
    /// Whether acquisitions and views are answered at once, whatever their deadline is.
    is_impatient: AtomicBool,
    /// Acquisitions and views that were answered so.
    impatient: AtomicUsize,
}

impl Faulty {
    fn new(service: Arc<MemoryLocks>) -> Arc<Self> {
        let zero = || AtomicUsize::new(0);
        let (lost_answers, failing_renewals, renewals) = (zero(), zero(), zero());
        let (releases, renewal_delay_ms) = (zero(), AtomicU64::new(0));
        Arc::new(Self {
            service,
            lost_answers,
            failing_renewals,
            renewals,
            releases,
            renewal_delay_ms,
            open_delay_ms: AtomicU64::new(0),
            hangs: AtomicBool::new(false),
            is_mute: AtomicBool::new(false),
            is_impatient: AtomicBool::new(false),
            impatient: AtomicUsize::new(0),
        })
    }

    fn deadline(&self, deadline: Instant) -> Instant {
        if !self.is_impatient.load(Relaxed) {
            return deadline;
        }
        let count = self.impatient.fetch_add(1, Relaxed);
        assert!(count < 1_000, "it is asked without a pause");
        Instant::now()
    }

    async fn mute(&self) {
        if self.is_mute.load(Relaxed) {
            std::future::pending::<()>().await;
        }
    }

    fn answer<T>(&self, answer: Result<T, ServiceError>) -> Result<T, ServiceError> {
        let less = |left: usize| left.checked_sub(1);
        match self.lost_answers.fetch_update(Relaxed, Relaxed, less) {
            Ok(_) => Err(ServiceError::unknown("the answer was lost")),
            Err(_) => answer,
        }
    }
}

#[async_trait]
impl LockService for Faulty {
    type Grants = Fenced;

    async fn open_session(&self, ttl: Duration, deadline: Instant) -> Result<u64, ServiceError> {
        let opened = self.service.open_session(ttl, deadline).await;
        sleep(self.open_delay_ms.load(Relaxed) as u32 * MS).await;
        self.answer(opened)
    }

    async fn renew_session(&self, session: u64, deadline: Instant) -> Result<(), ServiceError> {
        self.renewals.fetch_add(1, Relaxed);
        let less = |left: usize| left.checked_sub(1);
        if self.failing_renewals.fetch_update(Relaxed, Relaxed, less).is_ok() {
            return Err(ServiceError::NotLeader { leader: None });
        }
        let renewed = self.service.renew_session(session, deadline).await;
        sleep(self.renewal_delay_ms.load(Relaxed) as u32 * MS).await;
        self.answer(renewed)
    }

    async fn close_session(&self, session: u64, deadline: Instant) -> Result<(), ServiceError> {
        self.answer(self.service.close_session(session, deadline).await)
    }

    async fn acquire(
        &self,
        acquisition: &Acquisition,
        deadline: Instant,
    ) -> Result<Acquired, ServiceError> {
        if self.hangs.load(Relaxed) {
            std::future::pending::<()>().await;
        }
        let acquired = self.service.acquire(acquisition, self.deadline(deadline)).await;
        self.answer(acquired)
    }

    async fn release(&self, session: u64, request: u64, by: Instant) -> Result<(), ServiceError> {
        self.releases.fetch_add(1, Relaxed);
        self.mute().await;
        self.answer(self.service.release(session, request, by).await)
    }

    async fn set_value(&self, value: &NewValue, deadline: Instant) -> Result<(), ServiceError> {
        self.mute().await;
        self.answer(self.service.set_value(value, deadline).await)
    }

    async fn view(
        &self,
        name: &Bytes,
        known: Option<u64>,
        deadline: Instant,
    ) -> Result<LockView, ServiceError> {
        self.answer(self.service.view(name, known, self.deadline(deadline)).await)
    }
}

#[tokio::test(start_paused = true)]
async fn locks_exclude_and_are_handed_over_in_order() {
    let memory = memory();
    let service: Arc<dyn LockService<Grants = Fenced>> = memory.clone();
    let session = open(&service).await;
    let first = session.lock("a").within(SECOND).await.expect("it is free");
    assert!(session.lock("a").try_within(SECOND).await.expect("an answer").is_none());
    let begun = Instant::now();
    let waited = session.lock("a").within(300 * MS).await;
    assert_eq!(waited.expect_err("it is held"), LockError::TimedOut);
    assert_eq!(begun.elapsed(), 300 * MS);
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut tasks = Vec::new();
    for number in 0..5 {
        let (session, order) = (session.clone(), Arc::clone(&order));
        tasks.push(tokio::spawn(async move {
            let guard = session.lock("a").within(60 * SECOND).await.expect("its turn comes");
            order.lock().expect("no panic").push((number, guard.token()));
            assert_eq!(guard.release(SECOND).await, Released::Released);
        }));
        sleep(MS).await;
    }
    assert_eq!(memory.replica().lock(b"a").waiters, 5, "who timed out is gone");
    assert_eq!(first.release(SECOND).await, Released::Released);
    for task in tasks {
        task.await.expect("no panic");
    }
    let order = order.lock().expect("no panic").clone();
    assert!(order.windows(2).all(|pair| pair[0] < pair[1]), "{order:?}");
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_renewed_lives_and_one_that_is_not_ends_by_its_own_deadline() {
    let memory = memory();
    let faulty = Faulty::new(Arc::clone(&memory));
    let service: Arc<dyn LockService<Grants = Fenced>> = faulty.clone();
    let session = open(&service).await;
    let guard = session.lock("a").within(SECOND).await.expect("it is free");
    sleep(60 * SECOND).await;
    guard.permit().expect("it was renewed all the time");
    let renewals = faulty.renewals.load(Relaxed);
    assert!((170..=200).contains(&renewals), "{renewals} in a minute, one each third of a second");
    // Regression corpus 55 and 56: failures are retried until the deadline.
    faulty.failing_renewals.store(4, Relaxed);
    sleep(5 * SECOND).await;
    guard.permit().expect("a few failures lose nothing");
    // And the deadline decides, not the service.
    faulty.failing_renewals.store(usize::MAX, Relaxed);
    session.lost().await;
    assert_eq!(guard.permit().expect_err("it is lost"), SessionLost);
    assert_eq!(memory.replica().lock(b"a").holders.len(), 1, "before the service gives it away");
    sleep(200 * MS).await;
    assert_eq!(memory.replica().lock(b"a").holders.len(), 0);
    // Regression corpus 54: lost is final.
    faulty.failing_renewals.store(0, Relaxed);
    sleep(5 * SECOND).await;
    assert_eq!(guard.permit().expect_err("for good"), SessionLost);
    assert_eq!(guard.release(SECOND).await, Released::AlreadyLost);
    let again = session.lock("a").within(SECOND).await;
    assert_eq!(again.expect_err("open a new session"), LockError::SessionLost(SessionLost));
}

/// Regression corpus 57: a confirmation counts from sending.
#[tokio::test(start_paused = true)]
async fn a_slow_confirmation_does_not_prolong_by_its_way() {
    let memory = memory();
    let faulty = Faulty::new(Arc::clone(&memory));
    let service: Arc<dyn LockService<Grants = Fenced>> = faulty.clone();
    let session = open(&service).await;
    let guard = session.lock("a").within(SECOND).await.expect("it is free");
    faulty.renewal_delay_ms.store(300, Relaxed);
    sleep(10 * SECOND).await;
    guard.permit().expect("each is confirmed in time");
    faulty.failing_renewals.store(usize::MAX, Relaxed);
    session.lost().await;
    assert_eq!(memory.replica().lock(b"a").holders.len(), 1, "the holder stopped first");
}

#[tokio::test(start_paused = true)]
async fn a_future_under_a_guard_is_dropped_before_the_service_gives_the_lock_away() {
    struct Dropped(Arc<MemoryLocks>, Arc<AtomicUsize>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.1.store(self.0.replica().lock(b"a").holders.len() + 1, Relaxed);
        }
    }
    let memory = memory();
    let faulty = Faulty::new(Arc::clone(&memory));
    let service: Arc<dyn LockService<Grants = Fenced>> = faulty.clone();
    let session = open(&service).await;
    let guard = session.lock("a").within(SECOND).await.expect("it is free");
    assert_eq!(guard.run(async { 7 }).await, Ok(7));
    let held = Arc::new(AtomicUsize::new(0));
    let dropped = Dropped(Arc::clone(&memory), Arc::clone(&held));
    faulty.failing_renewals.store(usize::MAX, Relaxed);
    let work = guard.run(async move {
        let _dropped = dropped;
        std::future::pending::<()>().await;
    });
    assert_eq!(work.await, Err(SessionLost));
    assert_eq!(held.load(Relaxed), 2, "one holder at the service when the future was dropped");
    // A process that was paused past its lease does not go on: nothing is polled.
    let guard = open(&service).await.lock("b").within(SECOND).await.expect("it is free");
    let polls = AtomicUsize::new(0);
    let work = guard.run(std::future::poll_fn(|cx| {
        polls.fetch_add(1, Relaxed);
        cx.waker().wake_by_ref();
        std::task::Poll::<()>::Pending
    }));
    let mut work = std::pin::pin!(work);
    let once = std::future::poll_fn(|cx| std::task::Poll::Ready(work.as_mut().poll(cx)));
    assert!(once.await.is_pending());
    advance(10 * SECOND).await;
    let before = polls.load(Relaxed);
    assert_eq!(work.await, Err(SessionLost));
    assert_eq!(polls.load(Relaxed), before);
}

/// Regression corpus 50, 53, 58 and 59: what is dropped is given back, and forgotten only when
/// the service has confirmed it.
#[tokio::test(start_paused = true)]
async fn dropped_guards_and_acquisitions_are_released_whatever_answers_are_lost() {
    let memory = memory();
    let faulty = Faulty::new(Arc::clone(&memory));
    let service: Arc<dyn LockService<Grants = Fenced>> = faulty.clone();
    let (session, other) = (open(&service).await, open(&service).await);
    let guard = session.lock("a").within(SECOND).await.expect("it is free");
    // A waiter that is dropped leaves the queue.
    assert!(timeout(100 * MS, other.lock("a").within(60 * SECOND)).await.is_err());
    sleep(10 * MS).await;
    assert_eq!(memory.replica().lock(b"a").waiters, 0);
    // One that is dropped when its grant is under way gives it back.
    let mut waiter = Box::pin(other.lock("a").within(60 * SECOND));
    let poll = std::future::poll_fn(|cx| std::task::Poll::Ready(waiter.as_mut().poll(cx)));
    assert!(poll.await.is_pending());
    faulty.lost_answers.store(3, Relaxed);
    drop(guard);
    sleep(MS).await;
    drop(waiter);
    sleep(SECOND).await;
    assert_eq!(memory.replica().lock(b"a"), LockView::default());
    assert!(faulty.releases.load(Relaxed) >= 4, "releases were repeated");
    // An acquisition whose answer is lost is the same when it is repeated.
    faulty.lost_answers.store(2, Relaxed);
    let guard = session.lock("a").within(SECOND).await.expect("it is free");
    let view = memory.replica().lock(b"a");
    assert_eq!((view.holders.len(), view.waiters), (1, 0));
    faulty.lost_answers.store(2, Relaxed);
    assert!(other.lock("a").try_within(SECOND).await.expect("an answer").is_none());
    faulty.lost_answers.store(2, Relaxed);
    assert_eq!(guard.release(SECOND).await, Released::Released);
    // The session too: dropped, it is closed.
    assert_eq!(memory.replica().session_count(), 2);
    faulty.lost_answers.store(2, Relaxed);
    drop((session, other));
    sleep(SECOND / 2).await;
    assert_eq!(memory.replica().session_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn shared_slots_many_and_reentry() {
    let memory = memory();
    let service: Arc<dyn LockService<Grants = Fenced>> = memory.clone();
    let (one, two) = (open(&service).await, open(&service).await);
    let first = one.lock("s").shared().within(SECOND).await.expect("shared");
    let second = two.lock("s").shared().within(SECOND).await.expect("shared");
    assert!(second.token() > first.token());
    assert!(one.lock("s").try_within(SECOND).await.expect("an answer").is_none());
    let mut slots = Vec::new();
    for _ in 0..3 {
        slots.push(one.lock("n").slot(3).within(SECOND).await.expect("a slot"));
    }
    assert!(two.lock("n").slot(3).try_within(SECOND).await.expect("an answer").is_none());
    drop(slots.pop());
    two.lock("n").slot(3).within(SECOND).await.expect("one is free again").release(SECOND).await;
    // Two who ask for the same locks in opposite order get them one after the other.
    let (a, b) = (["x", "y", "z"], ["z", "y", "x"]);
    let pair = async |session: &Session, names: [&'static str; 3]| {
        for _ in 0..50 {
            let guards = session.lock_many(names).within(SECOND).await.expect("no deadlock");
            let held: Vec<_> = guards.iter().map(|guard| guard.name().clone()).collect();
            assert_eq!(held, names, "in the order of the caller");
            sleep(MS).await;
        }
    };
    tokio::join!(pair(&one, a), pair(&two, b));
    let twice = one.lock_many(["x", "y", "x"]).within(SECOND).await;
    assert_eq!(twice.expect_err("a mistake"), LockError::NamedTwice);
    // All or none.
    let y = two.lock("y").within(SECOND).await.expect("it is free");
    assert!(one.lock_many(a).within(50 * MS).await.is_err());
    sleep(50 * MS).await;
    assert_eq!(memory.replica().lock(b"x"), LockView::default());
    // Clones are one grant.
    let again = y.clone();
    assert_eq!(again.token(), y.token());
    assert_eq!(y.release(SECOND).await, Released::StillHeld);
    again.permit().expect("it is held still");
    assert_eq!(again.release(SECOND).await, Released::Released);
    assert_eq!(memory.replica().lock(b"y"), LockView::default());
}

#[tokio::test(start_paused = true)]
async fn a_lock_delay_keeps_the_lock_of_a_lost_session() {
    let memory = memory();
    let faulty = Faulty::new(Arc::clone(&memory));
    let service: Arc<dyn LockService<Grants = Fenced>> = faulty.clone();
    let session = open(&service).await;
    let delay = 5 * SECOND;
    let guard = session.lock("a").lock_delay(delay).within(SECOND).await.expect("it is free");
    assert_eq!(guard.release(SECOND).await, Released::Released);
    let guard = session.lock("a").lock_delay(delay).within(SECOND).await.expect("no delay");
    // Without renewals: the process is gone.
    let begun = Instant::now();
    std::mem::forget(guard);
    faulty.failing_renewals.store(usize::MAX, Relaxed);
    session.lost().await;
    faulty.failing_renewals.store(0, Relaxed);
    let late = open(&service).await;
    let _late = late.lock("a").within(60 * SECOND).await.expect("after the delay");
    assert!(begun.elapsed() >= delay, "{:?}", begun.elapsed());
}

/// The lease counts from the sending of the request that opened it, and so does its first renewal.
#[tokio::test(start_paused = true)]
async fn a_session_that_was_opened_slowly_is_renewed_before_its_deadline() {
    let faulty = Faulty::new(memory());
    let service: Arc<dyn LockService<Grants = Fenced>> = faulty.clone();
    faulty.open_delay_ms.store(700, Relaxed);
    let session = open(&service).await;
    sleep(5 * SECOND).await;
    session.check().expect("each renewal is confirmed at once");
}

/// Regression corpus 49: a service that is silent does not keep an acquisition whose session ends.
#[tokio::test(start_paused = true)]
async fn the_end_of_the_session_ends_an_acquisition_that_is_not_answered() {
    let faulty = Faulty::new(memory());
    let service: Arc<dyn LockService<Grants = Fenced>> = faulty.clone();
    let session = open(&service).await;
    faulty.hangs.store(true, Relaxed);
    let asking = session.clone();
    let asked = tokio::spawn(async move { asking.lock("a").within(3600 * SECOND).await });
    sleep(10 * MS).await;
    let begun = Instant::now();
    session.close(SECOND).await.expect("the service works");
    let ended = asked.await.expect("no panic");
    assert_eq!(ended.expect_err("no session"), LockError::SessionLost(SessionLost));
    assert!(begun.elapsed() < 100 * MS, "{:?}", begun.elapsed());
}

/// What is held or waits is known to the service, and keeps no number that came after it: also when
/// the service says so only at the end of the wait, long after.
#[tokio::test(start_paused = true)]
async fn a_lock_that_is_held_for_long_does_not_use_up_the_session() {
    let memory = memory();
    let service: Arc<dyn LockService<Grants = Fenced>> = memory.clone();
    // The service answers a waiter no sooner than this.
    let (session, other) = (open_for(&service, 60 * SECOND).await, open(&service).await);
    let leader = session.lock("leader").within(SECOND).await.expect("it is free");
    let elsewhere = other.lock("elsewhere").within(SECOND).await.expect("it is free");
    let waiting = session.clone();
    let waiter = tokio::spawn(async move { waiting.lock("elsewhere").within(60 * SECOND).await });
    for round in 0..=10_000 {
        sleep(MS).await;
        let guard = session.lock("b").try_within(MS).await;
        let guard = guard.unwrap_or_else(|error| panic!("round {round}: {error}"));
        let released = guard.expect("it is free").release(MS).await;
        assert_eq!(released, Released::Released, "round {round}");
    }
    leader.permit().expect("it is held all the time");
    assert_eq!(elsewhere.release(SECOND).await, Released::Released);
    let granted = waiter.await.expect("no panic").expect("its turn has come");
    assert_eq!(granted.release(SECOND).await, Released::Released);
    assert_eq!(leader.release(SECOND).await, Released::Released);
    assert_eq!(memory.replica().lock(b"leader"), LockView::default());
}

/// A client of a network service answers a little before the deadline, and others may answer at
/// once: neither is a reason to ask in a loop without a pause.
#[tokio::test(start_paused = true)]
async fn a_service_that_does_not_wait_is_asked_in_pauses() {
    let faulty = Faulty::new(memory());
    let service: Arc<dyn LockService<Grants = Fenced>> = faulty.clone();
    let session = open(&service).await;
    let _held = session.lock("a").within(SECOND).await.expect("it is free");
    faulty.is_impatient.store(true, Relaxed);
    let waited = session.lock("a").within(5 * SECOND).await;
    assert_eq!(waited.expect_err("it is held"), LockError::TimedOut);
    let asked = faulty.impatient.load(Relaxed);
    assert!((20..100).contains(&asked), "{asked} times in 5 s");
}

#[tokio::test(start_paused = true)]
async fn an_observer_of_a_service_that_does_not_wait_asks_in_pauses() {
    let faulty = Faulty::new(memory());
    let service: Arc<dyn LockService<Grants = Fenced>> = faulty.clone();
    let mut observer = Observer::new(service, "e");
    faulty.is_impatient.store(true, Relaxed);
    for _ in 0..2 {
        assert_eq!(observer.next(5 * SECOND).await.expect("an answer"), None);
    }
    let asked = faulty.impatient.load(Relaxed);
    assert!((20..100).contains(&asked), "{asked} times in 5 s");
}

/// A service that does not answer keeps neither a campaign nor the result of finished work, however
/// long the session lives.
#[tokio::test(start_paused = true)]
async fn an_election_ends_in_the_time_of_its_caller() {
    let faulty = Faulty::new(memory());
    let service: Arc<dyn LockService<Grants = Fenced>> = faulty.clone();
    let session = open_for(&service, 600 * SECOND).await;
    faulty.is_mute.store(true, Relaxed);
    let begun = Instant::now();
    let campaign = Election::new(&session, "a").campaign("v", SECOND).await;
    let unavailable = campaign.expect_err("its value is not set");
    assert!(matches!(unavailable, LockError::Unavailable(_)), "{unavailable}");
    assert_eq!(begun.elapsed(), SECOND);
    for (name, within) in [("b", 60 * SECOND), ("c", 300 * MS)] {
        faulty.is_mute.store(false, Relaxed);
        let (election, begun) = (Election::new(&session, name), Instant::now());
        let work = async |_: &Leadership| {
            faulty.is_mute.store(true, Relaxed);
            7
        };
        assert_eq!(election.run_while_leader("v", within, work).await, Ok(7));
        assert_eq!(begun.elapsed(), within.min(SECOND));
    }
}

/// A time to wait may be any duration.
#[tokio::test(start_paused = true)]
async fn a_wait_without_end_is_a_wait() {
    let service: Arc<dyn LockService<Grants = Fenced>> = memory();
    let clock = Arc::new(TokioClock::default());
    let opened =
        Session::open_with_clock(Arc::clone(&service), config(), Duration::MAX, clock).await;
    let session = opened.expect("the service works");
    let first = session.lock("a").within(Duration::MAX).await.expect("it is free");
    assert!(session.lock("a").try_within(Duration::MAX).await.expect("an answer").is_none());
    let waiting = session.clone();
    let waiter = tokio::spawn(async move { waiting.lock_many(["a"]).within(Duration::MAX).await });
    sleep(60 * SECOND).await;
    first.set_value("v", Duration::MAX).await.expect("it is held");
    assert_eq!(first.release(Duration::MAX).await, Released::Released);
    drop(waiter.await.expect("no panic").expect("its turn has come"));
    let leadership = Election::new(&session, "e").campaign("x", Duration::MAX).await;
    let mut observer = Observer::new(Arc::clone(&service), "e");
    observer.next(Duration::MAX).await.expect("an answer").expect("a leader");
    let resigned = leadership.expect("nobody else").resign(Duration::MAX).await;
    assert_eq!(resigned, Released::Released);
    session.close(Duration::MAX).await.expect("the service works");
}

/// A service that is away over and over, and there for a quarter of a second between: a session is
/// renewed in each such time.
#[tokio::test(start_paused = true)]
async fn a_session_is_renewed_as_soon_as_the_service_is_back() {
    let service = Faulty::new(memory());
    let mut config = config();
    config.ttl = 60 * SECOND;
    let clock = Arc::new(TokioClock::default());
    let locks: Arc<dyn LockService<Grants = Fenced>> = service.clone();
    let opened = Session::open_with_clock(locks, config, SECOND, clock).await;
    let session = opened.expect("the service works");
    let mut latest = session.deadline();
    for outage in 0..10 {
        // A renewal is due after a third; at the end its attempts have their longest pause.
        service.failing_renewals.store(usize::MAX, Relaxed);
        sleep(25 * SECOND).await;
        assert_eq!(session.deadline(), latest, "outage {outage}: nothing is confirmed");
        service.failing_renewals.store(0, Relaxed);
        sleep(250 * MS).await;
        assert!(session.deadline() > latest, "outage {outage}: it is back, and nobody noticed");
        latest = session.deadline();
    }
    session.check().expect("it was renewed");
}
