//! Sessions: renewal, death, and holders that were paused past it.

use std::sync::Arc;

use tokio::time::{Instant, sleep, timeout};

use super::deaf::Deaf;
use super::*;
use crate::core::Rejection;
use crate::election::Election;
use crate::fence::{Fence, FencingToken};
use crate::service::NewValue;
use crate::session::LockError;

pub(super) fn add<K: GrantKind>(checks: &mut Checks, bench: &Arc<Bench<K>>) {
    checks!(checks, bench:
        a_dead_sessions_locks_come_free_and_not_before,
        a_dead_session_gets_nothing,
        a_dead_waiter_does_not_block_those_behind_it,
        a_renewed_session_keeps_its_locks,
        a_closed_session_frees_its_locks_at_once,
        a_holder_stops_before_the_service_gives_its_lock_away,
        the_late_write_of_a_paused_holder_is_refused,
        leaders_follow_each_other_and_observers_see_it,
    );
}

async fn a_dead_sessions_locks_come_free_and_not_before<K: GrantKind>(
    bench: &Arc<Bench<K>>,
    check: &str,
) -> Verdict {
    let (name, ttl) = (bench.name(check), bench.capabilities.ttl);
    let service = &bench.services[0];
    let dead = bench.open_dying(0).await?;
    grant(&**service, &acquisition(dead, 1, &name)).await?;
    sleep(ttl / 4).await;
    let renewed_at = Instant::now();
    service.renew_session(dead, soon()).await.map_err(told)?;
    let session = bench.open(1).await?;
    let most = ttl + bench.capabilities.slack;
    let guard = session.lock(name).within(most).await;
    let waited = renewed_at.elapsed();
    let guard = guard.map_err(|error| format!("a dead session's lock, {waited:?}: {error}"))?;
    ensure!(waited >= ttl, "the session lived for {waited:?} of {ttl:?}");
    guard.release(SOON).await;
    Ok(())
}

async fn a_dead_session_gets_nothing<K: GrantKind>(bench: &Arc<Bench<K>>, check: &str) -> Verdict {
    let (name, service) = (bench.name(check), &bench.services[0]);
    let ended = || Err(Rejection::NoSession.into());
    let dead = bench.open_dying(0).await?;
    let token = grant(&**service, &acquisition(dead, 1, &name)).await?;
    let closed = bench.open_raw(0).await?;
    service.close_session(closed, soon()).await.map_err(told)?;
    let unknown = [closed, dead ^ 1 << 40, 0, u64::MAX];
    sleep(bench.capabilities.ttl + bench.capabilities.slack).await;
    for session in unknown.into_iter().chain([dead]) {
        let answer = service.renew_session(session, soon()).await;
        ensure!(answer == ended(), "a renewal of an ended session: {answer:?}");
        let answer = service.acquire(&acquisition(session, 2, &name), soon()).await;
        ensure!(answer.is_err(), "an acquisition of an ended session: {answer:?}");
        ensure!(answer.map(drop) == ended(), "an acquisition of an ended session is final");
        let (number, value) = (1, "v".into());
        let value = NewValue { session, token, number, name: name.clone(), value };
        let answer = service.set_value(&value, soon()).await;
        ensure!(answer.is_err(), "a value of an ended session");
        let answer = service.close_session(session, soon()).await;
        ensure!(answer == Ok(()), "an ended session is closed: {answer:?}");
    }
    let view = bench.view(&name).await?;
    ensure!(view.holders.is_empty(), "a dead session holds the lock: {view:?}");
    Ok(())
}

async fn a_dead_waiter_does_not_block_those_behind_it<K: GrantKind>(
    bench: &Arc<Bench<K>>,
    check: &str,
) -> Verdict {
    let (name, ttl) = (bench.name(check), bench.capabilities.ttl);
    let holder = bench.open(0).await?;
    let guard = take(&holder, &name).await?;
    let dead = bench.open_dying(0).await?;
    let waited = bench.services[0].acquire(&acquisition(dead, 1, &name), soon_by(20 * MS)).await;
    ensure!(!matches!(waited, Ok(Acquired::Granted { .. })), "two hold the lock");
    let behind = bench.open(1).await?;
    let most = 2 * (ttl + bench.capabilities.slack);
    let waiting = {
        let name = name.clone();
        tokio::spawn(async move { behind.lock(name).within(most).await })
    };
    sleep(ttl / 4).await;
    guard.release(SOON).await;
    let served = waiting.await.map_err(|error| error.to_string())?;
    served.map_err(|error| format!("behind a dead waiter: {error}"))?.release(SOON).await;
    Ok(())
}

fn soon_by(within: Duration) -> Instant {
    Instant::now() + within
}

async fn a_renewed_session_keeps_its_locks<K: GrantKind>(
    bench: &Arc<Bench<K>>,
    check: &str,
) -> Verdict {
    let (name, ttl) = (bench.name(check), bench.capabilities.ttl);
    let (one, two) = (bench.open(0).await?, bench.open(1).await?);
    let guard = take(&one, &name).await?;
    let waited = two.lock(name.clone()).within(3 * ttl).await;
    ensure!(matches!(waited, Err(LockError::TimedOut)), "two hold the lock: {waited:?}");
    guard.permit().map_err(|error| format!("a renewed session was lost: {error}"))?;
    guard.release(SOON).await;
    Ok(())
}

async fn a_closed_session_frees_its_locks_at_once<K: GrantKind>(
    bench: &Arc<Bench<K>>,
    check: &str,
) -> Verdict {
    let name = bench.name(check);
    let (one, two) = (bench.open(0).await?, bench.open(1).await?);
    let _guard = take(&one, &name).await?;
    let waiting = {
        let name = name.clone();
        tokio::spawn(async move { (two.lock(name).within(2 * SOON).await, Instant::now(), two) })
    };
    sleep(50 * MS).await;
    let closed_at = Instant::now();
    one.close(SOON).await.map_err(told)?;
    let (served, at, _session) = waiting.await.map_err(|error| error.to_string())?;
    served.map_err(|error| format!("after a close: {error}"))?.release(SOON).await;
    let after = at.saturating_duration_since(closed_at);
    ensure!(after < bench.capabilities.ttl / 2, "the lock was free after {after:?}");
    Ok(())
}

async fn a_holder_stops_before_the_service_gives_its_lock_away<K: GrantKind>(
    bench: &Arc<Bench<K>>,
    check: &str,
) -> Verdict {
    let name = bench.name(check);
    let deaf = Arc::new(Deaf(Arc::clone(&bench.services[0])));
    let session = bench.open_at(deaf).await?;
    let guard = take(&session, &name).await?;
    let acting = {
        let guard = guard.clone();
        tokio::spawn(async move { guard.run(std::future::pending::<()>()).await })
    };
    let other = bench.open(1).await?;
    let most = bench.capabilities.ttl + bench.capabilities.slack;
    let next = other.lock(name).within(most).await;
    // Whenever this comes to run: the next holder has the lock, so the first must not act.
    let permit = guard.permit().map(drop);
    ensure!(permit.is_err(), "given away while its holder has a permit");
    next.map_err(|error| format!("a lost lock: {error}"))?.release(SOON).await;
    let lost = timeout(SOON, acting).await;
    ensure!(matches!(lost, Ok(Ok(Err(_)))), "the holder is not told that it has lost its lock");
    Ok(())
}

async fn the_late_write_of_a_paused_holder_is_refused<K: GrantKind>(
    bench: &Arc<Bench<K>>,
    check: &str,
) -> Verdict {
    if !bench.capabilities.grows_tokens {
        return Ok(());
    }
    let name = bench.name(check);
    let mut ledger = Fence::new(Vec::new());
    let deaf = Arc::new(Deaf(Arc::clone(&bench.services[0])));
    let paused = bench.open_at(deaf).await?;
    let old = take(&paused, &name).await?;
    let token = |guard: &Guard<K>| FencingToken::new(guard.number());
    let entered = ledger.enter(token(&old)).map(|ledger| ledger.push("old"));
    ensure!(entered.is_ok(), "the holder of the lock: {entered:?}");
    let other = bench.open(1).await?;
    let new = other.lock(name).within(bench.capabilities.ttl + bench.capabilities.slack).await;
    let new = new.map_err(|error| format!("a lost lock: {error}"))?;
    let entered = ledger.enter(token(&new)).map(|ledger| ledger.push("new"));
    ensure!(entered.is_ok(), "the next holder of the lock: {entered:?}");
    // The paused holder wakes up.
    ensure!(old.permit().is_err(), "the paused holder has a permit");
    let late = ledger.enter(token(&old)).map(|ledger| ledger.push("late"));
    ensure!(late.is_err(), "the late write of a paused holder was done");
    new.release(SOON).await;
    Ok(())
}

async fn leaders_follow_each_other_and_observers_see_it<K: GrantKind>(
    bench: &Arc<Bench<K>>,
    check: &str,
) -> Verdict {
    let name = bench.name(check);
    let (one, two) = (bench.open(0).await?, bench.open(1).await?);
    let (first, second) = (Election::new(&one, name.clone()), Election::new(&two, name.clone()));
    let mut observer = second.observe();
    let next = async |observer: &mut crate::election::Observer<K>| {
        let seen = observer.next(SOON).await.map_err(told)?;
        Ok::<_, String>(seen.map(|leader| (leader.session, leader.value)))
    };
    ensure!(next(&mut observer).await?.is_none(), "nobody leads yet");
    let leads = first.campaign("one", SOON).await.map_err(|error| error.to_string())?;
    let expected = Some((one.id(), Bytes::from_static(b"one")));
    // The leader, then its value: perhaps in two steps.
    let mut seen = next(&mut observer).await?;
    if seen != expected {
        seen = next(&mut observer).await?;
    }
    ensure!(seen == expected, "the first leader: {seen:?}");
    let campaign = tokio::spawn(async move { (second.campaign("two", SOON).await, two) });
    sleep(50 * MS).await;
    leads.resign(SOON).await;
    let (leads, two) = campaign.await.map_err(|error| error.to_string())?;
    let leads = leads.map_err(|error| format!("after a resignation: {error}"))?;
    let expected = Some((two.id(), Bytes::from_static(b"two")));
    let mut steps = 0;
    // Ends: vacancy, the leader, its value.
    while seen != expected {
        steps += 1;
        ensure!(steps <= 3, "the second leader: {seen:?}");
        seen = next(&mut observer).await?;
    }
    leads.resign(SOON).await;
    ensure!(next(&mut observer).await?.is_none(), "vacancy is not seen");
    Ok(())
}
