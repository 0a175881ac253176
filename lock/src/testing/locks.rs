//! Exclusion, order, tokens, and what is left behind.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::core::Rejection;
use crate::service::ServiceError;
use crate::session::{LockError, Released};

pub(super) fn add<K: GrantKind>(checks: &mut Checks, bench: &Arc<Bench<K>>) {
    checks!(checks, bench:
        a_lock_has_one_holder_at_a_time,
        tokens_grow_over_the_deletion_of_the_lock,
        waiters_are_served_in_the_order_in_which_they_came,
        a_try_on_a_held_lock_ends_as_busy,
        a_wait_that_is_over_leaves_nothing,
        a_dropped_acquisition_leaves_nothing,
        a_dropped_guard_is_released,
        calls_may_be_repeated,
        an_acquisition_that_was_released_is_refused,
        an_acquisition_below_the_floor_is_refused,
        a_wait_is_kept_however_far_the_floor_rises,
        a_long_wait_outlives_other_locks_of_its_session,
        names_do_not_mix,
        what_is_too_long_is_refused,
    );
}

/// Eight sessions of two clients, each of which would see another in its critical section.
async fn a_lock_has_one_holder_at_a_time<K: GrantKind>(
    bench: &Arc<Bench<K>>,
    check: &str,
) -> Verdict {
    let name = bench.name(check);
    let is_held = Arc::new(AtomicBool::new(false));
    let tokens = Arc::new(Mutex::new(Vec::new()));
    let mut holders = JoinSet::new();
    for number in 0..8 {
        let (bench, name) = (Arc::clone(bench), name.clone());
        let (is_held, tokens) = (Arc::clone(&is_held), Arc::clone(&tokens));
        holders.spawn(async move {
            let session = bench.open(number % 2).await?;
            for _ in 0..10 {
                let guard = session.lock(name.clone()).within(12 * SOON).await;
                let guard = guard.map_err(|error| format!("its turn does not come: {error}"))?;
                ensure!(!is_held.swap(true, SeqCst), "two hold the lock");
                tokens.lock().unwrap_or_else(PoisonError::into_inner).push(guard.number());
                sleep(MS).await;
                is_held.store(false, SeqCst);
                let released = guard.release(SOON).await;
                ensure!(released == Released::Released, "not released: {released:?}");
            }
            Ok(())
        });
    }
    // Ends: each has ten turns.
    while let Some(holder) = holders.join_next().await {
        holder.map_err(|error| error.to_string())??;
    }
    let tokens = std::mem::take(&mut *tokens.lock().unwrap_or_else(PoisonError::into_inner));
    let grow = tokens.windows(2).all(|pair| pair[0] < pair[1]);
    ensure!(grow || !bench.capabilities.grows_tokens, "tokens do not grow: {tokens:?}");
    Ok(())
}

async fn tokens_grow_over_the_deletion_of_the_lock<K: GrantKind>(
    bench: &Arc<Bench<K>>,
    check: &str,
) -> Verdict {
    let (name, mut latest) = (bench.name(check), 0);
    for turn in 0..6 {
        let session = bench.open(turn % 2).await?;
        let guard = take(&session, &name).await?;
        let token = guard.number();
        ensure!(token > latest || !bench.capabilities.grows_tokens, "{token} after {latest}");
        latest = token;
        guard.release(SOON).await;
        session.close(SOON).await.map_err(told)?;
        let view = bench.view(&name).await?;
        ensure!(view == LockView::default(), "the lock is left over: {view:?}");
    }
    Ok(())
}

async fn waiters_are_served_in_the_order_in_which_they_came<K: GrantKind>(
    bench: &Arc<Bench<K>>,
    check: &str,
) -> Verdict {
    if !bench.capabilities.serves_in_order {
        return Ok(());
    }
    let name = bench.name(check);
    let sessions = [bench.open(0).await?, bench.open(1).await?];
    let first = take(&sessions[0], &name).await?;
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut waiters = JoinSet::new();
    for number in 0..6 {
        let (session, name) = (sessions[number % 2].clone(), name.clone());
        let order = Arc::clone(&order);
        waiters.spawn(async move {
            let guard = session.lock(name).within(2 * SOON).await;
            order.lock().unwrap_or_else(PoisonError::into_inner).push(number);
            match guard {
                Ok(guard) => guard.release(SOON).await == Released::Released,
                Err(_) => false,
            }
        });
        bench.until(&bench.name(check), |view| view.waiters == number + 1).await?;
    }
    first.release(SOON).await;
    // Ends: each has one turn.
    while let Some(served) = waiters.join_next().await {
        ensure!(served.map_err(|error| error.to_string())?, "a waiter was not served");
    }
    let order = std::mem::take(&mut *order.lock().unwrap_or_else(PoisonError::into_inner));
    ensure!(order == [0, 1, 2, 3, 4, 5], "served in the order {order:?}");
    Ok(())
}

async fn a_try_on_a_held_lock_ends_as_busy<K: GrantKind>(
    bench: &Arc<Bench<K>>,
    check: &str,
) -> Verdict {
    let name = bench.name(check);
    let (service, session) = (&bench.services[1], bench.open(0).await?);
    let guard = take(&session, &name).await?;
    let other = bench.open(1).await?;
    let tried = other.lock(name.clone()).try_within(SOON).await;
    ensure!(matches!(tried, Ok(None)), "a try on a held lock: {tried:?}");
    let raw = bench.open_raw(1).await?;
    let tried = Acquisition { wait: false, ..acquisition(raw, 1, &name) };
    let busy = service.acquire(&tried, soon()).await;
    ensure!(busy == Ok(Acquired::Busy), "a try on a held lock: {busy:?}");
    guard.release(SOON).await;
    // It has ended: one that arrives again takes nothing.
    let again = service.acquire(&tried, soon()).await;
    let is_over = matches!(again, Err(ServiceError::Rejected(Rejection::StaleRequest)));
    ensure!(is_over || again == Ok(Acquired::Busy), "the try that was busy: {again:?}");
    let tried = other.lock(name.clone()).try_within(SOON).await;
    let guard = tried.map_err(|error| error.to_string())?;
    let Some(guard) = guard else { return Err("a free lock was busy".to_owned()) };
    guard.release(SOON).await;
    service.close_session(raw, soon()).await.map_err(told)
}

async fn a_wait_that_is_over_leaves_nothing<K: GrantKind>(
    bench: &Arc<Bench<K>>,
    check: &str,
) -> Verdict {
    let name = bench.name(check);
    let (one, two) = (bench.open(0).await?, bench.open(1).await?);
    let guard = take(&one, &name).await?;
    let mut within = 150 * MS;
    // Ends: a wait ends as it should, or is long enough for every service to have answered in it.
    loop {
        let begun = Instant::now();
        let waited = two.lock(name.clone()).within(within).await;
        ensure!(begun.elapsed() >= within / 2, "it waited {:?} only", begun.elapsed());
        match waited {
            Err(LockError::TimedOut) => break,
            Err(LockError::Unavailable(_)) if within < SOON => within *= 4,
            waited => return Err(format!("a wait that is over: {waited:?}")),
        }
    }
    bench.until(&name, |view| view.waiters == 0).await?;
    guard.release(SOON).await;
    bench.until(&name, |view| view.holders.is_empty()).await?;
    take(&one, &name).await?.release(SOON).await;
    two.check().map_err(|error| error.to_string())
}

async fn a_dropped_acquisition_leaves_nothing<K: GrantKind>(
    bench: &Arc<Bench<K>>,
    check: &str,
) -> Verdict {
    let name = bench.name(check);
    let (one, two) = (bench.open(0).await?, bench.open(1).await?);
    for pause in [0, 1, 3, 10, 40] {
        let guard = take(&one, &name).await?;
        let dropped = timeout(pause * MS, two.lock(name.clone()).within(SOON)).await;
        ensure!(dropped.is_err(), "two hold the lock");
        guard.release(SOON).await;
        // The grant may have gone to the one that was dropped, which gives it back.
        take(&one, &name).await?.release(SOON).await;
    }
    bench.until(&name, |view| *view == LockView::default()).await?;
    two.check().map_err(|error| error.to_string())
}

async fn a_dropped_guard_is_released<K: GrantKind>(bench: &Arc<Bench<K>>, check: &str) -> Verdict {
    let name = bench.name(check);
    let (one, two) = (bench.open(0).await?, bench.open(1).await?);
    drop(take(&one, &name).await?);
    take(&two, &name).await?.release(SOON).await;
    one.check().map_err(|error| error.to_string())
}

async fn calls_may_be_repeated<K: GrantKind>(bench: &Arc<Bench<K>>, check: &str) -> Verdict {
    let name = bench.name(check);
    let (service, other) = (&bench.services[0], &bench.services[1]);
    let session = bench.open_raw(0).await?;
    let asked = acquisition(session, 1, &name);
    let token = grant(&**service, &asked).await?;
    // By another way to the same service too.
    let again = grant(&**other, &asked).await?;
    ensure!(again == token, "one acquisition has two tokens: {token} and {again}");
    for _ in 0..2 {
        service.renew_session(session, soon()).await.map_err(told)?;
        service.release(session, 1, soon()).await.map_err(told)?;
    }
    let view = bench.view(&name).await?;
    ensure!(view.holders.is_empty(), "it is released: {view:?}");
    // A release that comes again does not end the next acquisition.
    grant(&**service, &acquisition(session, 2, &name)).await?;
    service.release(session, 1, soon()).await.map_err(told)?;
    let view = bench.view(&name).await?;
    ensure!(view.holders.len() == 1, "the release of another acquisition: {view:?}");
    for _ in 0..2 {
        service.close_session(session, soon()).await.map_err(told)?;
    }
    let view = bench.view(&name).await?;
    ensure!(view.holders.is_empty(), "its session was closed: {view:?}");
    Ok(())
}

async fn an_acquisition_that_was_released_is_refused<K: GrantKind>(
    bench: &Arc<Bench<K>>,
    check: &str,
) -> Verdict {
    let (name, service) = (bench.name(check), &bench.services[0]);
    let session = bench.open_raw(0).await?;
    service.release(session, 7, soon()).await.map_err(told)?;
    let late = service.acquire(&acquisition(session, 7, &name), soon()).await;
    let is_stale = late == Err(Rejection::StaleRequest.into());
    ensure!(is_stale, "it was released before it came: {late:?}");
    grant(&**service, &acquisition(session, 8, &name)).await?;
    service.release(session, 8, soon()).await.map_err(told)?;
    let late = service.acquire(&acquisition(session, 8, &name), soon()).await;
    ensure!(late == Err(Rejection::StaleRequest.into()), "it was released: {late:?}");
    service.close_session(session, soon()).await.map_err(told)
}

async fn an_acquisition_below_the_floor_is_refused<K: GrantKind>(
    bench: &Arc<Bench<K>>,
    check: &str,
) -> Verdict {
    let (name, service) = (bench.name(check), &bench.services[0]);
    let session = bench.open_raw(0).await?;
    grant(&**service, &acquisition(session, 1, &name)).await?;
    let other = Bytes::from([&name[..], b"/other"].concat());
    let above = Acquisition { floor: 5, ..acquisition(session, 5, &other) };
    grant(&**service, &above).await?;
    for late in 2..5 {
        let late = service.acquire(&acquisition(session, late, &other), soon()).await;
        ensure!(late == Err(Rejection::StaleRequest.into()), "it is below the floor: {late:?}");
    }
    // A late one with a lower floor does not lower it.
    let lower = Acquisition { floor: 2, ..acquisition(session, 6, &other) };
    let queued = service.acquire(&lower, Instant::now() + 20 * MS).await;
    let is_known = matches!(queued, Ok(Acquired::Queued) | Err(ServiceError::Unknown { .. }));
    ensure!(is_known, "it waits for the lock: {queued:?}");
    service.release(session, 6, soon()).await.map_err(told)?;
    let late = service.acquire(&acquisition(session, 3, &other), soon()).await;
    ensure!(late == Err(Rejection::StaleRequest.into()), "it is below the floor: {late:?}");
    // What is held is held, however far the floor rises.
    let view = bench.view(&name).await?;
    ensure!(view.holders.len() == 1, "it is held below the floor: {view:?}");
    service.close_session(session, soon()).await.map_err(told)
}

/// The session has heard that it waits, and counts the wait as known to the service.
async fn a_wait_is_kept_however_far_the_floor_rises<K: GrantKind>(
    bench: &Arc<Bench<K>>,
    check: &str,
) -> Verdict {
    let (name, service) = (bench.name(check), &bench.services[0]);
    let holder = bench.open(1).await?;
    let session = bench.open_raw(0).await?;
    let other = Bytes::from([&name[..], b"/other"].concat());
    let held = take(&holder, &name).await?;
    let (waits, gives_up) = (acquisition(session, 1, &name), acquisition(session, 2, &name));
    for wait in [&waits, &gives_up] {
        queued(&**service, wait).await?;
    }
    for request in 3..40 {
        let floor = request;
        grant(&**service, &Acquisition { floor, ..acquisition(session, request, &other) }).await?;
        service.release(session, request, soon()).await.map_err(told)?;
    }
    for wait in [&waits, &gives_up] {
        queued(&**service, wait).await?;
    }
    for _ in 0..2 {
        service.release(session, 2, soon()).await.map_err(told)?;
    }
    service.renew_session(session, soon()).await.map_err(told)?;
    held.release(SOON).await;
    let token = grant(&**service, &waits).await?;
    let late = service.acquire(&gives_up, soon()).await;
    ensure!(late == Err(Rejection::StaleRequest.into()), "it was released: {late:?}");
    let view = bench.view(&name).await?;
    let is_granted = view.holders.first().is_some_and(|hold| hold.token == token);
    ensure!(is_granted, "the wait below the floor: {view:?}");
    service.release(session, 1, soon()).await.map_err(told)?;
    let late = service.acquire(&waits, soon()).await;
    ensure!(late == Err(Rejection::StaleRequest.into()), "it was released: {late:?}");
    service.close_session(session, soon()).await.map_err(told)
}

/// Waits until the service has answered that the acquisition waits.
async fn queued<K: GrantKind>(
    service: &dyn LockService<Grants = K>,
    acquisition: &Acquisition,
) -> Verdict {
    let by = soon();
    // Ends: `SOON` passes.
    loop {
        match service.acquire(acquisition, Instant::now() + 100 * MS).await {
            Ok(Acquired::Queued) => return Ok(()),
            Err(ServiceError::Unknown { .. }) if Instant::now() < by => {}
            answer => return Err(format!("it waits for a lock: {answer:?}")),
        }
    }
}

/// As [`Session`] does it: a wait is asked again after each time to live.
async fn a_long_wait_outlives_other_locks_of_its_session<K: GrantKind>(
    bench: &Arc<Bench<K>>,
    check: &str,
) -> Verdict {
    let (name, ttl) = (bench.name(check), bench.capabilities.ttl);
    let part = |part: &str| Bytes::from([&name[..], part.as_bytes()].concat());
    let (one, two) = (bench.open(0).await?, bench.open(1).await?);
    let (leads, held) = (take(&one, &part("leader")).await?, take(&two, &name).await?);
    let waiting = {
        let (one, name) = (one.clone(), name.clone());
        tokio::spawn(async move { one.lock(name).within(2 * ttl + 12 * SOON).await })
    };
    sleep(ttl + ttl / 4).await;
    for _ in 0..10 {
        take(&one, &part("other")).await?.release(SOON).await;
    }
    sleep(ttl).await;
    leads.permit().map_err(|error| format!("the lock that it holds meanwhile: {error}"))?;
    ensure!(!waiting.is_finished(), "the wait is over before its time");
    held.release(SOON).await;
    let waited = waiting.await.map_err(|error| error.to_string())?;
    waited.map_err(|error| format!("a wait of {:?}: {error}", 2 * ttl))?.release(SOON).await;
    Ok(())
}

async fn names_do_not_mix<K: GrantKind>(bench: &Arc<Bench<K>>, check: &str) -> Verdict {
    let session = bench.open(0).await?;
    let base = bench.name(check);
    let mut guards = Vec::new();
    let parts: [&[u8]; 10] =
        [b"", b"/", b"/a", b"%", b"%2F", b"\0", b"\xff", b"'\"\\", b"{a}", b" "];
    for part in parts {
        let name = Bytes::from([&base[..], part].concat());
        let guard = session.lock(name.clone()).within(SOON).await;
        let guard = guard.map_err(|error| format!("{name:?} mixes with another: {error}"))?;
        let held = bench.view(&name).await?.holders.len();
        ensure!(held == 1, "{name:?} has {held} holders");
        guards.push(guard);
    }
    let longest = Bytes::from([&base[..], &vec![b'/'; 1024 - base.len()]].concat());
    guards.push(take(&session, &longest).await?);
    for guard in guards {
        let name = guard.name().clone();
        guard.release(SOON).await;
        let view = bench.view(&name).await?;
        ensure!(view.holders.is_empty(), "{name:?} was released: {view:?}");
    }
    Ok(())
}

async fn what_is_too_long_is_refused<K: GrantKind>(bench: &Arc<Bench<K>>, _: &str) -> Verdict {
    let session = bench.open(0).await?;
    let refused = LockError::Rejected(Rejection::OutOfRange);
    let name = Bytes::from(vec![b'n'; 1025]);
    let named = session.lock(name.clone()).within(SOON).await;
    ensure!(named.as_ref().err() == Some(&refused), "a name of 1,025 bytes: {named:?}");
    let seen = bench.services[0].view(&name, None, soon()).await;
    ensure!(seen == Err(Rejection::OutOfRange.into()), "a name of 1,025 bytes: {seen:?}");
    for ttl in [99 * MS, 3_601_000 * MS] {
        let opened = bench.services[0].open_session(ttl, soon()).await;
        ensure!(opened == Err(Rejection::OutOfRange.into()), "{ttl:?} to live: {opened:?}");
    }
    Ok(())
}
