//! The suite of back ends whose server is killed and started again while it is used.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};

use super::{Capabilities, MS, Report, Verdict, ensure};
use crate::core::LockView;
use crate::lease::LeaseConfig;
use crate::service::{GrantKind, LockService, ServiceError};
use crate::session::{Guard, LockError, Released, Session};

/// Time to live of the sessions: each outage must be shorter than about half of it.
const TTL: Duration = Duration::from_secs(12);
const SECOND: Duration = Duration::from_secs(1);
const RESTARTS: usize = 3;
/// Sessions that take turns at one lock.
const TAKERS: usize = 4;

/// The server of a back end, for [`restart_conformance`].
#[async_trait]
pub trait Restart: Send {
    /// Ends it at once, as a crash does. What it has acknowledged must survive that.
    ///
    /// # Cancel safety
    /// Not dropped by the suite.
    async fn kill(&mut self);

    /// Starts it again on what it has left. Returns when it listens, within about 5 s.
    ///
    /// # Cancel safety
    /// Not dropped by the suite.
    async fn start(&mut self);
}

/// Kills the server of a back end three times and starts it again, while sessions hold a lock, wait
/// for it, and take turns at another. No two hold a lock, tokens grow, what is held stays held,
/// what nobody can know is told as unknown and comes free, and each session is renewed within half
/// of its time to live after a start. Takes about half a minute.
///
/// A service in memory, or one that acknowledges before it is durable, does not pass.
///
/// # Panics
/// If a check panics, which is a defect of the suite or of the service's client.
///
/// # Cancel safety
/// Dropped, it stops.
pub async fn restart_conformance<S: LockService>(
    connect: impl AsyncFn() -> Arc<S>,
    server: &mut impl Restart,
    capabilities: &Capabilities,
) -> Report {
    let name = "locks_outlive_restarts";
    match locks_outlive_restarts(connect, server, capabilities).await {
        Ok(()) => Report { passed: vec![name], failed: Vec::new() },
        Err(seen) => Report { passed: Vec::new(), failed: vec![(name, seen)] },
    }
}

/// What those share that take turns at one lock.
struct Turns {
    name: Bytes,
    grows_tokens: bool,
    /// The session that is in its critical section; 0 for none.
    holder: AtomicU64,
    /// The latest token.
    latest: AtomicU64,
    taken: AtomicU64,
    is_over: AtomicBool,
    unknown: AtomicU64,
    unreached: AtomicU64,
}

impl Turns {
    /// Takes turns, each with a critical section that would see another one.
    async fn take<K: GrantKind>(&self, session: &Session<K>) -> Verdict {
        let id = session.id();
        // Ends: it is over.
        while !self.is_over.load(SeqCst) {
            let guard = match session.lock(self.name.clone()).within(300 * MS).await {
                Ok(guard) => guard,
                Err(LockError::TimedOut) => continue,
                Err(LockError::Unavailable(_)) => {
                    self.unreached.fetch_add(1, SeqCst);
                    continue;
                }
                Err(error) => return Err(format!("a session that is renewed: {error}")),
            };
            let other = self.holder.swap(id, SeqCst);
            ensure!(other == 0, "{other} and {id} hold the lock");
            let before = self.latest.swap(guard.number(), SeqCst);
            let grows = guard.number() > before;
            ensure!(grows || !self.grows_tokens, "token {} after {before}", guard.number());
            sleep(20 * MS).await;
            guard.permit().map_err(|error| format!("a session that is renewed: {error}"))?;
            let other = self.holder.swap(0, SeqCst);
            ensure!(other == id, "{other} and {id} hold the lock");
            self.taken.fetch_add(1, SeqCst);
            match guard.release(300 * MS).await {
                Released::Released => {}
                Released::Unknown(_) => drop(self.unknown.fetch_add(1, SeqCst)),
                other => return Err(format!("a session that is renewed: {other:?}")),
            }
        }
        Ok(())
    }

    /// Waits for one more turn.
    async fn one_more(&self) -> Verdict {
        let before = self.taken.load(SeqCst);
        let by = Instant::now() + 30 * SECOND;
        // Ends: a turn is taken, or the deadline passes.
        while self.taken.load(SeqCst) == before {
            ensure!(Instant::now() < by, "no turn is taken within 30 s");
            sleep(5 * MS).await;
        }
        Ok(())
    }
}

/// What is held and waited for over all restarts.
struct Held<K: GrantKind> {
    name: Bytes,
    holder: Session<K>,
    guard: Guard<K>,
    other: Session<K>,
    waiting: JoinHandle<Result<Guard<K>, LockError>>,
}

async fn locks_outlive_restarts<S: LockService>(
    connect: impl AsyncFn() -> Arc<S>,
    server: &mut impl Restart,
    capabilities: &Capabilities,
) -> Verdict {
    let run = fastrand::u64(..);
    let name = |lock: &str| Bytes::from(format!("restarts/{run:016x}/{lock}"));
    let (holder, other) = (open(connect().await).await?, open(connect().await).await?);
    let guard = super::take(&holder, &name("held")).await?;
    guard.set_value("kept", 5 * SECOND).await.map_err(super::told)?;
    let waiting = {
        let (other, held) = (other.clone(), name("held"));
        tokio::spawn(async move { other.lock(held).within(120 * SECOND).await })
    };
    let held = Held { name: name("held"), holder, guard, other, waiting };
    let service = connect().await;
    let turns = Arc::new(Turns {
        name: name("turns"),
        grows_tokens: capabilities.grows_tokens,
        holder: AtomicU64::new(0),
        latest: AtomicU64::new(0),
        taken: AtomicU64::new(0),
        is_over: AtomicBool::new(false),
        unknown: AtomicU64::new(0),
        unreached: AtomicU64::new(0),
    });
    let (mut takers, mut sessions) =
        (JoinSet::new(), vec![held.holder.clone(), held.other.clone()]);
    for _ in 0..TAKERS {
        let (session, turns) = (open(connect().await).await?, Arc::clone(&turns));
        sessions.push(session.clone());
        takers.spawn(async move { turns.take(&session).await });
    }
    wait_for_waiter(&*service, &held, capabilities).await?;
    for number in 0..RESTARTS {
        let mine = super::take(&held.holder, &name(&format!("mine {number}"))).await?;
        turns.one_more().await?;
        server.kill().await;
        // Nobody can have heard of this release, and its holder is told so.
        let released = mine.release(100 * MS).await;
        ensure!(matches!(released, Released::Unknown(_)), "a release to nobody: {released:?}");
        let opened = service.open_session(TTL, Instant::now() + 300 * MS).await;
        let is_told = opened.as_ref().is_err_and(ServiceError::is_retryable);
        ensure!(is_told, "a session of a server that is away: {opened:?}");
        // Longer than turns wait.
        sleep(SECOND).await;
        server.start().await;
        let started = Instant::now();
        let ends: Vec<Option<u64>> = sessions.iter().map(Session::deadline).collect();
        // What is held is held, and what is unknown comes free by itself.
        is_kept(&view(&*service, &held.name).await?, &held, capabilities)?;
        super::take(&held.other, &name(&format!("mine {number}"))).await?.release(SECOND).await;
        are_renewed(&sessions, &ends, started).await?;
    }
    turns.one_more().await?;
    turns.is_over.store(true, SeqCst);
    while let Some(taker) = takers.join_next().await {
        taker.map_err(|error| error.to_string())??;
    }
    ensure!(turns.unreached.load(SeqCst) > 0, "nobody noticed that the server was away");
    let first = held.guard.number();
    held.guard.release(10 * SECOND).await;
    let next =
        timeout(20 * SECOND, held.waiting).await.map_err(|_| "nobody wakes those who wait")?;
    let next = next.map_err(|error| error.to_string())?;
    let next = next.map_err(|error| format!("it waited over all restarts: {error}"))?;
    let grows = next.number() > first || !capabilities.grows_tokens;
    ensure!(grows, "token {} after {first}", next.number());
    Ok(())
}

async fn open<S: LockService>(service: Arc<S>) -> Result<Session<S::Grants>, String> {
    let config = LeaseConfig { ttl: TTL, ..LeaseConfig::default() };
    let opened = Session::open(service, config, 20 * SECOND).await;
    opened.map_err(|error| format!("no session: {error}"))
}

/// The lock as the service sees it. Repeats what may be repeated, as a [`Session`] does.
async fn view<S: LockService>(service: &S, name: &Bytes) -> Result<LockView, String> {
    let by = Instant::now() + 20 * SECOND;
    // Ends: the deadline passes.
    loop {
        match service.view(name, None, by).await {
            Err(error) if error.is_retryable() && Instant::now() < by => sleep(50 * MS).await,
            view => return view.map_err(super::told),
        }
    }
}

async fn wait_for_waiter<S: LockService>(
    service: &S,
    held: &Held<S::Grants>,
    capabilities: &Capabilities,
) -> Verdict {
    let by = Instant::now() + 5 * SECOND;
    // Ends: it waits, or the deadline passes.
    while capabilities.serves_in_order && view(service, &held.name).await?.waiters < 1 {
        ensure!(Instant::now() < by, "nobody waits for the lock");
        sleep(5 * MS).await;
    }
    Ok(())
}

fn is_kept<K: GrantKind>(seen: &LockView, held: &Held<K>, capabilities: &Capabilities) -> Verdict {
    let holders: Vec<u64> = seen.holders.iter().map(|hold| hold.session).collect();
    ensure!(holders == [held.holder.id()], "after a restart: {seen:?}");
    ensure!(seen.holders[0].token == held.guard.number(), "another token: {seen:?}");
    ensure!(seen.value == "kept", "another value: {seen:?}");
    ensure!(seen.waiters == 1 || !capabilities.serves_in_order, "who waited is gone: {seen:?}");
    held.guard.permit().map(drop).map_err(|error| format!("a session that is renewed: {error}"))
}

/// Each session is renewed soon after a start, whether or not an attempt was under way or failed.
async fn are_renewed<K: GrantKind>(
    sessions: &[Session<K>],
    ends: &[Option<u64>],
    started: Instant,
) -> Verdict {
    for (session, before) in sessions.iter().zip(ends) {
        // Ends: it is renewed or lost, or half of its time to live has passed.
        while session.deadline() <= *before {
            let since = started.elapsed();
            ensure!(session.check().is_ok(), "a session is lost {since:?} after a start");
            ensure!(since < TTL / 2, "a session is not renewed {since:?} after a start");
            sleep(10 * MS).await;
        }
    }
    Ok(())
}
