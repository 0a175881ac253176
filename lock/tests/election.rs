//! Election over the service in memory, on paused time.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use voussoir_lock::*;

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

fn memory() -> Arc<dyn LockService<Grants = Fenced>> {
    MemoryLocks::start_with_clock(Arc::new(TokioClock::default()))
}

async fn open(service: &Arc<dyn LockService<Grants = Fenced>>) -> Session {
    let mut config = LeaseConfig::default();
    config.ttl = SECOND;
    let clock = Arc::new(TokioClock::default());
    let opened = Session::open_with_clock(Arc::clone(service), config, SECOND, clock).await;
    opened.expect("the service works")
}

#[tokio::test(start_paused = true)]
async fn observers_see_the_current_leader_first_then_each_change_and_vacancy() {
    let service = memory();
    let (one, two) = (open(&service).await, open(&service).await);
    let (a, b) = (Election::new(&one, "e"), Election::new(&two, "e"));
    let mut observer = a.observe();
    assert_eq!(observer.next(SECOND).await.expect("an answer"), None);
    let first = a.campaign("a", SECOND).await.expect("nobody else");
    let seen = observer.next(SECOND).await.expect("an answer").expect("a leader");
    let expected = Leader { session: one.id(), term: first.term().get(), value: "a".into() };
    assert_eq!(seen, expected);
    // One that comes later sees it first too.
    assert_eq!(b.observe().next(SECOND).await.expect("an answer"), Some(expected.clone()));
    first.proclaim("a2", SECOND).await.expect("it leads");
    let seen = observer.next(SECOND).await.expect("an answer").expect("a leader");
    assert_eq!((seen.term, seen.value), (expected.term, "a2".into()));
    // Nothing new: told again at the end of the wait.
    let again = observer.next(SECOND).await.expect("an answer").expect("a leader");
    assert_eq!(again.value, "a2");
    // Vacancy is an event, and the value of the last leader is not that of the next.
    assert_eq!(first.resign(SECOND).await, Released::Released);
    assert_eq!(observer.next(SECOND).await.expect("an answer"), None);
    let second = two.lock("e").within(SECOND).await.expect("it is free");
    let seen = observer.next(SECOND).await.expect("an answer").expect("a leader");
    assert_eq!((seen.term, seen.value), (second.token().get(), Bytes::new()));
    assert!(seen.term > expected.term);
}

/// Regression corpus 49: the end of the session ends a campaign.
#[tokio::test(start_paused = true)]
async fn the_end_of_the_session_ends_its_campaign() {
    let service = memory();
    let (one, two) = (open(&service).await, open(&service).await);
    let _leader = Election::new(&one, "e").campaign("a", SECOND).await.expect("nobody else");
    let election = Election::new(&two, "e");
    let campaign = tokio::spawn(async move { election.campaign("b", 3600 * SECOND).await });
    sleep(10 * MS).await;
    two.close(SECOND).await.expect("the service works");
    let ended = campaign.await.expect("no panic");
    assert_eq!(ended.expect_err("no session"), LockError::SessionLost(SessionLost));
}

#[tokio::test(start_paused = true)]
async fn work_runs_while_its_session_leads_and_then_the_next_leads() {
    let service = memory();
    let (one, two) = (open(&service).await, open(&service).await);
    let first = Election::new(&one, "e");
    let second = Election::new(&two, "e");
    let lead = async |leadership: &Leadership| leadership.term().get();
    let term = first.run_while_leader("a", SECOND, lead).await.expect("it leads");
    assert!(second.run_while_leader("b", SECOND, lead).await.expect("it leads") > term);
    // A leader whose session ends: its work is dropped, and the other candidate leads.
    let closing = one.clone();
    let pending = async |_: &Leadership| std::future::pending::<()>().await;
    let work = tokio::spawn(async move { first.run_while_leader("a", SECOND, pending).await });
    sleep(10 * MS).await;
    let waiting = tokio::spawn(async move { second.campaign("b", 60 * SECOND).await });
    sleep(10 * MS).await;
    closing.close(SECOND).await.expect("the service works");
    let ended = work.await.expect("no panic").expect_err("it was dropped");
    assert_eq!(ended, LockError::SessionLost(SessionLost));
    waiting.await.expect("no panic").expect("it leads").permit().expect("it leads");
}
