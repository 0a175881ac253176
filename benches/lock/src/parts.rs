//! The rows.

use std::future::poll_fn;
use std::hint::black_box;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use voussoir_lock::ids::{Snowflake, SnowflakeConfig, UuidV7, UuidV7Config, WorkerWindow};
use voussoir_lock::{
    Acquisition, BootClock, Clock as _, LeaseConfig, LockService as _, MemoryLocks, Mode, Session,
};

use crate::Error;
use crate::clients::Clients;
use crate::etcd::Etcd;
use crate::ours::{self, Ours, State, session};
use crate::report::{Figure, Report};

/// Rounds of each subject, in turn.
const ROUNDS: usize = 5;
/// Cycles of a round with one client.
const CYCLES: usize = 400;
/// Clients of a lock each, and for how long they go on.
const CLIENTS: usize = 256;
const PERIOD: Duration = Duration::from_secs(3);
/// Handovers of a round, and the pause before each.
const HANDOVERS: usize = 100;
const PAUSE: Duration = Duration::from_millis(3);
/// Leaders that are killed.
const FAILOVERS: usize = 7;
const SECOND: Duration = Duration::from_secs(1);

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e6
}

/// Nanoseconds of a call, best of seven rounds of a million.
fn best(mut call: impl FnMut()) -> f64 {
    const CALLS: u32 = 1_000_000;
    let round = |_| {
        let begun = Instant::now();
        (0..CALLS).for_each(|_| call());
        begun.elapsed().as_nanos() as f64 / f64::from(CALLS)
    };
    (0..7).map(round).fold(f64::MAX, f64::min)
}

/// Ids with the time passed in, just below what the layout holds, and the check of a permit.
pub fn ids(report: &mut Report) -> Result<(), Error> {
    // 1 January 2026, in ns since the UNIX epoch.
    let mut now = 1_767_225_600_000_000_000;
    let ids = Snowflake::new(SnowflakeConfig::default(), WorkerWindow::unleased(1, 0))?;
    let snowflake = best(|| {
        now += 250;
        black_box(ids.next(black_box(now)).is_ok());
    });
    report.alone("snowflake id (bar 25)", snowflake, "ns");
    let mut ids = UuidV7::new(UuidV7Config::default())?;
    let uuid = best(|| {
        now += 250;
        black_box(ids.next(black_box(now)).is_ok());
    });
    report.alone("uuid v7 (bar 25)", uuid, "ns");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    runtime.block_on(async {
        let session = Session::open(MemoryLocks::start(), LeaseConfig::default(), SECOND).await?;
        let guard = session.lock("one").within(SECOND).await?;
        let now = BootClock.now();
        let checked = best(|| {
            black_box(guard.permit_at(black_box(now)).is_ok());
        });
        report.alone("permit check, the time passed in (bar 5)", checked, "ns");
        Ok(())
    })
}

pub async fn clusters(report: &mut Report, wants: impl Fn(&str) -> bool) -> Result<(), Error> {
    if wants("wakes") {
        wakes(report).await?;
    }
    let mut ours = Ours::start().await?;
    if wants("idle") {
        idle(report, &mut ours).await?;
    }
    if !["latency", "handover", "cycles", "failover"].iter().any(|part| wants(part)) {
        return Ok(());
    }
    let mut etcd = Etcd::start()?;
    if wants("latency") {
        latency(report, &ours, &etcd).await?;
    }
    if wants("handover") {
        handover(report, &ours, &etcd).await?;
    }
    if wants("cycles") {
        cycles(report, &ours, &etcd).await?;
    }
    if wants("failover") {
        failover(report, &mut ours, &mut etcd).await?;
    }
    Ok(())
}

/// Lock and unlock by one client, the median of a round.
async fn latency(report: &mut Report, ours: &Ours, etcd: &Etcd) -> Result<(), Error> {
    let (session, client) = (ours.session().await?, etcd.client().await?);
    let lease = client.lease().await?;
    let (mut own, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let mut times = Vec::new();
        for _ in 0..CYCLES {
            let begun = Instant::now();
            session.lock("latency").within(SECOND).await?.release(SECOND).await;
            times.push(begun.elapsed());
        }
        own.push(median(times));
        let mut times = Vec::new();
        for _ in 0..CYCLES {
            let begun = Instant::now();
            client.unlock(client.lock("latency", lease).await?).await?;
            times.push(begun.elapsed());
        }
        theirs.push(median(times));
    }
    report.beside(
        "lock and unlock, p50 (bar 2x)",
        Figure::from(own),
        "etcd",
        Figure::from(theirs),
        "us",
    );
    Ok(())
}

/// From sending the release to the grant of the one that waits; and beside it one commit alone, the
/// release of a lock that nobody waits for, after the same pause.
async fn handover(report: &mut Report, ours: &Ours, etcd: &Etcd) -> Result<(), Error> {
    let (one, two) = (ours.session().await?, session(&ours.waiters).await?);
    let client = etcd.client().await?;
    let (lease, others) = (client.lease().await?, client.lease().await?);
    let (mut own, mut ratios, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (mut handovers, mut commits, mut rival) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..HANDOVERS {
            let held = one.lock("handover").within(SECOND).await?;
            let waiter = two.clone();
            let waits = tokio::spawn(async move {
                let guard = waiter.lock("handover").within(10 * SECOND).await?;
                Ok::<_, Error>((Instant::now(), guard))
            });
            tokio::time::sleep(PAUSE).await;
            let begun = Instant::now();
            held.release(SECOND).await;
            let (granted, guard) = waits.await??;
            handovers.push(granted - begun);
            tokio::time::sleep(PAUSE).await;
            let begun = Instant::now();
            guard.release(SECOND).await;
            commits.push(begun.elapsed());
        }
        let other = etcd.client().await?;
        for _ in 0..HANDOVERS {
            let held = client.lock("handover", lease).await?;
            let other = other.clone();
            let waits = tokio::spawn(async move {
                let key = other.lock("handover", others).await?;
                Ok::<_, Error>((Instant::now(), key))
            });
            tokio::time::sleep(PAUSE).await;
            let begun = Instant::now();
            client.unlock(held).await?;
            let (granted, key) = waits.await??;
            rival.push(granted.saturating_duration_since(begun));
            client.unlock(key).await?;
        }
        let (handover, commit) = (median(handovers), median(commits));
        own.push(handover);
        ratios.push(handover / commit);
        theirs.push(median(rival));
    }
    report.beside("handover, p50", Figure::from(own), "etcd", Figure::from(theirs), "us");
    report.alone("handover in commits (bar 1.2)", Figure::from(ratios), "x");
    Ok(())
}

/// Locks and unlocks of many clients with sessions that were opened before, a lock each: in
/// processes of many clients, and in one process a client.
async fn cycles(report: &mut Report, ours: &Ours, etcd: &Etcd) -> Result<(), Error> {
    for processes in [4, CLIENTS] {
        let each = CLIENTS / processes;
        let mut clients = Clients::start("ours", processes, each, &ours.addresses)?;
        let mut rivals = Clients::start("etcd", processes, each, &[etcd.leader().await?])?;
        let (mut own, mut theirs) = (Measured::default(), Measured::default());
        for _ in 0..3 {
            own.add(&mut clients, || ours.cpu())?;
            theirs.add(&mut rivals, || etcd.cpu())?;
        }
        let bars = "(bar 5x, goal 10x)";
        let name = format!("a cycle, {CLIENTS} clients, {processes} processes {bars}");
        report.beside(&name, Figure::from(own.times), "etcd", Figure::from(theirs.times), "us");
        report.beside(
            "- CPU of the three nodes",
            Figure::from(own.cpu),
            "etcd",
            Figure::from(theirs.cpu),
            "us",
        );
    }
    Ok(())
}

/// Time and CPU of the nodes a cycle, in us, of each round.
#[derive(Default)]
struct Measured {
    times: Vec<f64>,
    cpu: Vec<f64>,
}

impl Measured {
    /// One round.
    fn add(
        &mut self,
        clients: &mut Clients,
        cpu: impl Fn() -> Result<Vec<Duration>, Error>,
    ) -> Result<(), Error> {
        let used = || Ok::<Duration, Error>(cpu()?.into_iter().sum());
        let (before, begun) = (used()?, Instant::now());
        let cycles = clients.run(PERIOD)? as f64;
        self.times.push(begun.elapsed().as_secs_f64() * 1e6 / cycles);
        self.cpu.push((used()? - before).as_secs_f64() * 1e6 / cycles);
        Ok(())
    }
}

/// How many of those that wait are woken by a release, at the leader of a group in this process.
async fn wakes(report: &mut Report) -> Result<(), Error> {
    const WAITERS: usize = 1_000;
    let (folder, addresses) = (tempfile::tempdir()?, crate::process::free(3)?);
    let mut nodes = Vec::new();
    for id in ours::NODES {
        let folder = folder.path().join(id.to_string());
        std::fs::create_dir_all(&folder)?;
        nodes.push(ours::start(id, &folder, &addresses).await?);
    }
    let by = Instant::now() + 60 * SECOND;
    // Ends: a leader opens it, or a minute has passed.
    let (leader, raft, holder) = 'opened: loop {
        for (raft, locks) in &nodes {
            if let Ok(session) = locks.open_session(60 * SECOND, by.into()).await {
                break 'opened (locks.clone(), raft.clone(), session);
            }
        }
        if Instant::now() > by {
            return Err("no leader".into());
        }
        tokio::time::sleep(PAUSE).await;
    };
    let ask = |session, request| Acquisition {
        session,
        request,
        floor: 1,
        name: "wakes".into(),
        mode: Mode::Exclusive,
        wait: true,
        lock_delay: Duration::ZERO,
    };
    leader.acquire(&ask(holder, 1), by.into()).await?;
    let waiting = leader.open_session(60 * SECOND, by.into()).await?;
    let (polls, mut waiters) = (Arc::new(AtomicUsize::new(0)), JoinSet::new());
    for request in 1..=WAITERS as u64 {
        let (leader, polls, asked) = (leader.clone(), polls.clone(), ask(waiting, request));
        waiters.spawn(async move {
            let mut waits = pin!(leader.acquire(&asked, by.into()));
            poll_fn(|context| {
                polls.fetch_add(1, Relaxed);
                waits.as_mut().poll(context)
            })
            .await
        });
    }
    // Ends: all wait, or a minute has passed.
    while leader.replica().lock(b"wakes").waiters < WAITERS && Instant::now() < by {
        tokio::time::sleep(PAUSE).await;
    }
    tokio::time::sleep(SECOND / 2).await;
    let (before, last) = (polls.load(Relaxed), raft.status().borrow().last);
    leader.release(holder, 1, by.into()).await?;
    waiters.join_next().await.ok_or("nobody waits")???;
    tokio::time::sleep(SECOND / 2).await;
    let woken = polls.load(Relaxed) - before;
    let entries = raft.status().borrow().last - last;
    report.alone("woken of 1,000 by a release (bar 1)", woken as f64, "");
    report.alone("log entries of a handover (bar 1)", entries as f64, "");
    Ok(())
}

/// Locks that are held, and nothing else: entries of the log, and CPU of the nodes.
async fn idle(report: &mut Report, ours: &mut Ours) -> Result<(), Error> {
    const SESSIONS: usize = 1_000;
    const EACH: usize = 100;
    const IDLE: Duration = Duration::from_secs(20);
    let mut tasks = JoinSet::new();
    for number in 0..SESSIONS {
        let locks = ours.locks.clone();
        tasks.spawn(async move {
            let session = session(&locks).await?;
            let mut guards = Vec::new();
            for lock in 0..EACH {
                let name = format!("idle-{number}-{lock}");
                guards.push(session.lock(name).within(60 * SECOND).await?);
            }
            Ok::<_, Error>(guards)
        });
    }
    let mut guards = Vec::new();
    while let Some(task) = tasks.join_next().await {
        guards.extend(task??);
    }
    // Renewals are under way by now, and what the log has is written.
    tokio::time::sleep(5 * SECOND).await;
    let (states, used, begun) = (ours.states()?, ours.cpu()?, Instant::now());
    tokio::time::sleep(IDLE).await;
    let (now, after, period) = (ours.cpu()?, ours.states()?, begun.elapsed());
    let last = |states: &[State]| states.iter().map(|state| state.last).max().unwrap_or(0);
    let entries = last(&after) - last(&states);
    let share = |at: usize| (now[at] - used[at]).as_secs_f64() / period.as_secs_f64() * 100.0;
    let leader = after.iter().position(|state| state.leads).ok_or("no node leads")?;
    let all: f64 = (0..now.len()).map(share).sum();
    let held = guards.iter().filter(|guard| guard.permit().is_ok()).count();
    report.alone("locks held by 1,000 sessions, idle", held as f64, "");
    report.alone("log entries in 20 s of it (bar 0)", entries as f64, "");
    report.alone("CPU of the leader (bar 5 % of a core)", share(leader), "%");
    report.alone("CPU of all three nodes", all, "%");
    // Nobody waits for them: the sessions are closed.
    drop(guards);
    tokio::time::sleep(5 * SECOND).await;
    Ok(())
}

/// From the kill of the leader to the grant of a lock that is free; and from the election of the
/// next leader to it. A client of etcd looks for the leader every 10 ms, ours does so by itself.
async fn failover(report: &mut Report, ours: &mut Ours, etcd: &mut Etcd) -> Result<(), Error> {
    let (mut own, mut elections, mut grants, mut commits) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..FAILOVERS {
        let session = ours.session().await?;
        for _ in 0..20 {
            let begun = BootClock.now();
            session.lock("failover").within(SECOND).await?.release(SECOND).await;
            commits.push(Duration::from_nanos(BootClock.now() - begun) / 2);
        }
        ours.kill_leader()?;
        let begun = BootClock.now();
        let guard = session.lock("failover").within(30 * SECOND).await?;
        let granted = BootClock.now();
        let elected_at = ours.states()?.iter().map(|state| state.elected_at).max().unwrap_or(0);
        own.push((granted - begun) as f64 / 1e6);
        elections.push(elected_at.saturating_sub(begun) as f64 / 1e6);
        grants.push(granted.saturating_sub(elected_at) as f64 / 1e6);
        guard.release(SECOND).await;
        session.close(SECOND).await?;
        ours.restart().await?;
    }
    let lease = etcd.client().await?.lease().await?;
    etcd.kill_leader().await?;
    let begun = Instant::now();
    // Ends: the others elect a leader.
    let theirs = loop {
        let client = etcd.client().await?;
        if client.lock("failover", lease).await.is_ok() {
            break begun.elapsed().as_secs_f64() * 1e3;
        }
    };
    report.beside("free lock after a leader kill, p50", Figure::from(own), "etcd", theirs, "ms");
    report.alone("- of it until the election", Figure::from(elections), "ms");
    report.alone("- from the election to the grant", Figure::from(grants), "ms");
    report.alone("- one commit before the kill, p50", median(commits) / 1e3, "ms");
    Ok(())
}
