//! What not every back end has: shared locks, semaphores, lock-delay, values. Those that have not
//! say so.

use std::sync::Arc;

use tokio::time::{Instant, sleep};

use super::*;
use crate::core::Rejection;
use crate::service::NewValue;
use crate::session::LockError;

pub(super) fn add<K: GrantKind>(checks: &mut Checks, bench: &Arc<Bench<K>>) {
    checks!(checks, bench:
        shared_locks_exclude_exclusive_ones,
        a_semaphore_has_its_slots,
        a_lock_delay_keeps_a_dead_sessions_lock,
        several_locks_are_taken_all_or_none,
        values_are_set_by_the_holder_in_order,
        a_view_waits_for_a_change,
    );
}

fn unsupported<T>(answer: Result<T, LockError>, what: &str) -> Verdict {
    match answer {
        Err(LockError::Rejected(Rejection::Unsupported)) => Ok(()),
        Err(error) => Err(format!("{what} is not supported, and the answer is: {error}")),
        Ok(_) => Err(format!("{what} is declared as not supported, and is granted")),
    }
}

async fn shared_locks_exclude_exclusive_ones<K: GrantKind>(
    bench: &Arc<Bench<K>>,
    check: &str,
) -> Verdict {
    let name = bench.name(check);
    let (one, two) = (bench.open(0).await?, bench.open(1).await?);
    let shared = one.lock(name.clone()).shared().within(SOON).await;
    if !bench.capabilities.has_modes {
        return unsupported(shared, "a shared lock");
    }
    let first = shared.map_err(|error| error.to_string())?;
    let second = two.lock(name.clone()).shared().within(SOON).await;
    let second = second.map_err(|error| format!("shared beside shared: {error}"))?;
    let exclusive = one.lock(name.clone()).try_within(SOON).await;
    ensure!(matches!(exclusive, Ok(None)), "exclusive beside shared: {exclusive:?}");
    // A writer that waits is not overtaken by readers.
    let writer = {
        let (one, name) = (one.clone(), name.clone());
        tokio::spawn(async move { one.lock(name).within(SOON).await })
    };
    bench.until(&name, |view| view.waiters == 1).await?;
    let reader = two.lock(name.clone()).shared().try_within(SOON).await;
    ensure!(matches!(reader, Ok(None)), "a reader overtakes a writer: {reader:?}");
    first.release(SOON).await;
    second.release(SOON).await;
    let writer = writer.await.map_err(|error| error.to_string())?;
    let writer = writer.map_err(|error| format!("the writer: {error}"))?;
    let reader = two.lock(name).shared().try_within(SOON).await;
    ensure!(matches!(reader, Ok(None)), "shared beside exclusive: {reader:?}");
    writer.release(SOON).await;
    Ok(())
}

async fn a_semaphore_has_its_slots<K: GrantKind>(bench: &Arc<Bench<K>>, check: &str) -> Verdict {
    let name = bench.name(check);
    let sessions = [bench.open(0).await?, bench.open(1).await?];
    let first = sessions[0].lock(name.clone()).slot(3).within(SOON).await;
    if !bench.capabilities.has_modes {
        return unsupported(first, "a semaphore");
    }
    let mut slots = vec![first.map_err(|error| error.to_string())?];
    for session in &sessions {
        let slot = session.lock(name.clone()).slot(3).within(SOON).await;
        slots.push(slot.map_err(|error| format!("a free slot: {error}"))?);
    }
    let tokens: std::collections::BTreeSet<u64> = slots.iter().map(Guard::number).collect();
    ensure!(tokens.len() == 3, "slots share a token: {tokens:?}");
    let fourth = sessions[1].lock(name.clone()).slot(3).try_within(SOON).await;
    ensure!(matches!(fourth, Ok(None)), "a fourth of three slots: {fourth:?}");
    let other = sessions[1].lock(name.clone()).slot(4).try_within(SOON).await;
    ensure!(matches!(other, Ok(None)), "a slot of another size: {other:?}");
    if let Some(slot) = slots.pop() {
        slot.release(SOON).await;
    }
    let again = sessions[1].lock(name.clone()).slot(3).try_within(SOON).await;
    ensure!(matches!(again, Ok(Some(_))), "a slot that was given back: {again:?}");
    let none = sessions[0].lock(name).slot(0).within(SOON).await;
    let refused = matches!(none, Err(LockError::Rejected(Rejection::OutOfRange)));
    ensure!(refused, "a semaphore without slots: {none:?}");
    Ok(())
}

async fn a_lock_delay_keeps_a_dead_sessions_lock<K: GrantKind>(
    bench: &Arc<Bench<K>>,
    check: &str,
) -> Verdict {
    let name = bench.name(check);
    let (ttl, slack) = (bench.capabilities.ttl, bench.capabilities.slack);
    let session = bench.open(1).await?;
    let delay = ttl + slack + ttl;
    let guard = session.lock(name.clone()).lock_delay(delay).within(SOON).await;
    if !bench.capabilities.has_lock_delay {
        return unsupported(guard, "a lock-delay");
    }
    // A release ends it at once.
    guard.map_err(|error| error.to_string())?.release(SOON).await;
    // The session may have begun to die before the answer came.
    let begun = Instant::now();
    let dead = bench.open_dying(0).await?;
    let asked = Acquisition { lock_delay: delay, ..acquisition(dead, 1, &name) };
    grant(&*bench.services[0], &asked).await?;
    let guard = session.lock(name).within(ttl + slack + delay + slack).await;
    let waited = begun.elapsed();
    let guard = guard.map_err(|error| format!("after the lock-delay, {waited:?}: {error}"))?;
    ensure!(waited >= ttl + delay, "the lock was free after {waited:?}, with a delay of {delay:?}");
    guard.release(SOON).await;
    Ok(())
}

async fn several_locks_are_taken_all_or_none<K: GrantKind>(
    bench: &Arc<Bench<K>>,
    check: &str,
) -> Verdict {
    let name = |part: &str| Bytes::from([&bench.name(check)[..], part.as_bytes()].concat());
    let (one, two) = (bench.open(0).await?, bench.open(1).await?);
    let held = take(&one, &name("b")).await?;
    let many = two.lock_many([name("a"), name("b")]).within(100 * MS).await;
    ensure!(many.is_err(), "a held lock is taken with another");
    bench.until(&name("a"), |view| view.holders.is_empty() && view.waiters == 0).await?;
    held.release(SOON).await;
    let pair = async |session: &Session<K>, names: [Bytes; 2]| {
        for _ in 0..5 {
            let guards = session.lock_many(names.clone()).within(2 * SOON).await;
            for guard in guards.map_err(|error| format!("opposite orders: {error}"))? {
                guard.release(SOON).await;
            }
        }
        Ok::<_, String>(())
    };
    let (left, right) =
        tokio::join!(pair(&one, [name("a"), name("b")]), pair(&two, [name("b"), name("a")]),);
    left.and(right)
}

async fn values_are_set_by_the_holder_in_order<K: GrantKind>(
    bench: &Arc<Bench<K>>,
    check: &str,
) -> Verdict {
    let (name, service) = (bench.name(check), &bench.services[0]);
    let session = bench.open_raw(0).await?;
    let token = grant(&**service, &acquisition(session, 1, &name)).await?;
    let value = |number: u64, value: &'static str| NewValue {
        session,
        token,
        number,
        name: name.clone(),
        value: value.into(),
    };
    for number in [1, 3, 2, 3] {
        let text = ["", "one", "two", "three"][number];
        service.set_value(&value(number as u64, text), soon()).await.map_err(told)?;
    }
    let view = bench.view(&name).await?;
    ensure!(view.value == "three", "an older value came later: {view:?}");
    let stale = NewValue { token: token ^ 1 << 20, ..value(4, "stale") };
    let set = service.set_value(&stale, soon()).await;
    ensure!(set == Err(Rejection::NotHeld.into()), "a value by another token: {set:?}");
    let long = NewValue { value: vec![7; 4097].into(), ..value(5, "") };
    let set = service.set_value(&long, soon()).await;
    ensure!(set == Err(Rejection::OutOfRange.into()), "a value of 4,097 bytes: {set:?}");
    let longest = NewValue { value: vec![7; 4096].into(), ..value(6, "") };
    service.set_value(&longest, soon()).await.map_err(told)?;
    service.release(session, 1, soon()).await.map_err(told)?;
    let view = bench.view(&name).await?;
    let kept = view.value.len() == 4096;
    ensure!(kept == bench.capabilities.keeps_values, "after the release: {view:?}");
    let set = service.set_value(&value(7, "late"), soon()).await;
    ensure!(set == Err(Rejection::NotHeld.into()), "a value after the release: {set:?}");
    // A later holder replaces it, and an empty value removes it.
    let token = grant(&**service, &acquisition(session, 2, &name)).await?;
    let empty = NewValue { token, ..value(1, "") };
    service.set_value(&empty, soon()).await.map_err(told)?;
    service.close_session(session, soon()).await.map_err(told)?;
    let view = bench.view(&name).await?;
    ensure!(view == LockView::default(), "nobody uses the lock: {view:?}");
    Ok(())
}

async fn a_view_waits_for_a_change<K: GrantKind>(bench: &Arc<Bench<K>>, check: &str) -> Verdict {
    let (name, service) = (bench.name(check), &bench.services[1]);
    let session = bench.open(0).await?;
    let mut known = bench.view(&name).await?.version;
    let begun = Instant::now();
    let view = service.view(&name, Some(known), Instant::now() + 100 * MS).await.map_err(told)?;
    ensure!(view.version == known, "nothing has changed: {view:?}");
    ensure!(begun.elapsed() >= 90 * MS, "nothing has changed, and the view did not wait");
    let mut guard = None;
    for step in ["taken", "named", "released", "taken", "released"] {
        let waiting = {
            let (service, name) = (Arc::clone(service), name.clone());
            tokio::spawn(async move { service.view(&name, Some(known), soon()).await })
        };
        sleep(20 * MS).await;
        match (step, guard.take()) {
            ("taken", _) => guard = Some(take(&session, &name).await?),
            ("named", Some(held)) => {
                Guard::set_value(&held, "v", SOON).await.map_err(told)?;
                guard = Some(held);
            }
            (_, Some(held)) => drop(held.release(SOON).await),
            (_, None) => {}
        }
        let begun = Instant::now();
        let view = waiting.await.map_err(|error| error.to_string())?.map_err(told)?;
        ensure!(view.version != known, "{step} is not seen");
        ensure!(begun.elapsed() < SOON / 2, "{step} is seen after {:?}", begun.elapsed());
        let holders = usize::from(guard.is_some());
        ensure!(view.holders.len() == holders, "the lock was {step}: {view:?}");
        known = view.version;
    }
    Ok(())
}
