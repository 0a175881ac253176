//! What has to hold once the faults have ended.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use tokio::task::{JoinHandle, unconstrained};
use tokio::time::{Instant, sleep, timeout};
use voussoir_raft::Status;
use voussoir_sim::{Kv, KvOp, KvRet, check};

use super::clients::{read, write};
use super::world::{Fate, Running, World};

/// How long the nodes may make no progress at all.
const STANDSTILL: Duration = Duration::from_secs(30);
/// How long the whole may take.
const RECOVERY: Duration = Duration::from_secs(300);
/// How long the clients go on after a first success.
const CALM: Duration = Duration::from_millis(500);
/// How long a read at the end may take.
const READ: Duration = Duration::from_secs(10);
/// Steps of the linearizability check, per key.
const CHECK_STEPS: u64 = 5_000_000;
/// The first client number that no client has.
const JUDGE: u64 = 1 << 20;

type Verdict = Result<(), String>;

/// Judges a run: everybody catches up, nothing acknowledged is lost, every wait ends, all room
/// comes back.
pub(crate) async fn judge(world: &Arc<World>, clients: Vec<JoinHandle<()>>) -> Verdict {
    works_again(world).await?;
    sleep(CALM).await;
    world.resting.store(true, Ordering::Relaxed);
    every_wait_ends(world, clients).await?;
    let commit = catches_up(world).await?;
    same_state(world)?;
    reads_everywhere(world).await?;
    room_is_back(world).await?;
    nothing_is_lost(world)?;
    world.check();
    if let Some(violation) = world.notes.violation() {
        return Err(violation);
    }
    world.notes.line(format!("all nodes have applied {commit}"));
    for node in world.all_running() {
        if timeout(READ, node.raft.shutdown()).await.is_err() {
            return Err(format!("node {}: its shutdown does not end", node.id));
        }
    }
    let history = world.history.lock();
    check(&Kv::new(), &history, CHECK_STEPS).map(drop).map_err(|error| error.to_string())
}

fn statuses(world: &World) -> Vec<Status> {
    world.all_running().iter().map(Running::status).collect()
}

/// Waits until `holds`, as long as the nodes make progress of any kind.
async fn until(world: &World, what: &str, mut holds: impl FnMut() -> bool) -> Verdict {
    let (begun, mut moved) = (Instant::now(), Instant::now());
    let mut last = (0, 0);
    while !holds() {
        world.check();
        if let Some(violation) = world.notes.violation() {
            return Err(violation);
        }
        let all = statuses(world);
        let now =
            (all.iter().map(|s| s.applied).sum::<u64>(), world.open_calls.load(Ordering::Relaxed));
        if now != last {
            (last, moved) = (now, Instant::now());
        }
        if moved.elapsed() > STANDSTILL || begun.elapsed() > RECOVERY {
            let open = world.open_calls.load(Ordering::Relaxed);
            return Err(format!("liveness: {what}; {open} calls are open; {all:#?}"));
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// A write goes through, behind those that were there before: a group that sends an entry for each
/// round trip takes minutes for hundreds of them, and some node has more all along.
async fn works_again(world: &Arc<World>) -> Verdict {
    let (mut moved, mut turn, mut most) = (Instant::now(), 0, 0);
    loop {
        world.check();
        let all = world.all_running().into_iter().map(|node| node.status());
        let all: u64 = all.map(|status| status.durable + status.commit).sum();
        if all > most {
            (moved, most) = (Instant::now(), all);
        }
        if let Some(violation) = world.notes.violation() {
            return Err(violation);
        }
        if let Some(leader) = world.leader() {
            turn += 1;
            let op = KvOp::Put { key: 0, value: (JUDGE << 32) | turn };
            let now = world.notes.now();
            let call = world.history.lock().invoke((JUDGE << 32) | turn, op.clone(), now);
            let written = timeout(STANDSTILL, write(world, &leader, &op, 32)).await;
            let now = world.notes.now();
            let mut history = world.history.lock();
            match written {
                Ok(Ok(ret)) => {
                    history.ok(call, ret, now);
                    return Ok(());
                }
                Ok(Err(_)) | Err(_) => history.unknown(call, now),
            };
        }
        if moved.elapsed() > STANDSTILL * 2 {
            let all = statuses(world);
            return Err(format!("liveness: no write goes through: {all:#?}"));
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Every call that was begun ends.
async fn every_wait_ends(world: &Arc<World>, clients: Vec<JoinHandle<()>>) -> Verdict {
    until(world, "a call does not end", || {
        clients.iter().all(JoinHandle::is_finished) && world.open_calls.load(Ordering::Relaxed) == 0
    })
    .await?;
    for client in clients {
        client.await.map_err(|error| format!("a client: {error}"))?;
    }
    Ok(())
}

/// All nodes apply what the leader has committed.
async fn catches_up(world: &Arc<World>) -> Result<u64, String> {
    let mut commit = 0;
    until(world, "a node does not catch up", || {
        let Some(leader) = world.leader() else { return false };
        commit = leader.status().commit;
        let all = statuses(world);
        all.len() + world.out() == world.setup.voters.len()
            && commit == leader.status().last
            && all.iter().all(|status| status.applied == commit)
    })
    .await?;
    Ok(commit)
}

fn same_state(world: &World) -> Verdict {
    let states: Vec<_> =
        world.all_running().iter().map(|node| (node.id, node.state.lock().clone())).collect();
    let (first, others) = states.split_first().ok_or("nobody runs")?;
    for other in others {
        if other.1.values != first.1.values || other.1.applied != first.1.applied {
            let at = (first.1.applied, other.1.applied);
            return Err(format!("nodes {} and {} differ: {at:?}", first.0, other.0));
        }
    }
    Ok(())
}

/// A read completes at every node, and becomes part of the history.
async fn reads_everywhere(world: &Arc<World>) -> Verdict {
    for node in world.all_running() {
        for key in 0..world.setup.keys {
            let process = ((JUDGE + node.id) << 32) | key;
            let now = world.notes.now();
            let call = world.history.lock().invoke(process, KvOp::Get { key }, now);
            let mut tries = 0;
            let value = loop {
                match read(world, &node, key, READ).await {
                    Ok(value) => break value,
                    // Leadership may still change once or twice.
                    Err(error) if tries == 20 => {
                        return Err(format!("node {}: no read completes: {error}", node.id));
                    }
                    Err(_) => sleep(Duration::from_millis(200)).await,
                }
                tries += 1;
            };
            world.history.lock().ok(call, KvRet::Value(value), world.notes.now());
        }
    }
    Ok(())
}

/// Every permit is there: as many reads and as many bytes of proposals as the limits allow get
/// in at once.
async fn room_is_back(world: &Arc<World>) -> Verdict {
    let config = &world.setup.config;
    for node in world.all_running() {
        let before = node.raft.stats();
        let mut reads: Vec<_> =
            (0..config.max_reads).map(|_| Box::pin(read(world, &node, 0, READ))).collect();
        let largest = config.max_entry_bytes as u64 + voussoir_raft::ENTRY_OVERHEAD;
        let room = config.max_uncommitted_bytes.max(largest);
        let op = KvOp::Delete { key: u64::MAX };
        let mut writes = Vec::new();
        for at in 0..room / largest {
            // The last one takes what the division leaves over, as far as one entry may.
            let bytes = if at == 0 { config.max_entry_bytes as u64 } else { largest - 48 };
            writes.push(Box::pin(write(world, &node, &op, bytes)));
        }
        let count = (reads.len() as u64, writes.len() as u64);
        let mut got = (0, 0);
        for _ in 0..50 {
            // All of them in one go, which may be more than tokio lets a task do.
            unconstrained(poll_fn(|cx| {
                reads.retain_mut(|read| read.as_mut().poll(cx).is_pending());
                writes.retain_mut(|write| write.as_mut().poll(cx).is_pending());
                Poll::Ready(())
            }))
            .await;
            let now = node.raft.stats();
            got = (now.reads - before.reads, now.proposals - before.proposals);
            if got == count {
                break;
            }
            tokio::task::yield_now().await;
        }
        if got != count {
            return Err(format!(
                "node {}: of {count:?} reads and proposals within the limits, {got:?} got in",
                node.id
            ));
        }
        let end = poll_fn(|cx| {
            reads.retain_mut(|read| read.as_mut().poll(cx).is_pending());
            writes.retain_mut(|write| write.as_mut().poll(cx).is_pending());
            if reads.is_empty() && writes.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        });
        if timeout(STANDSTILL, pin!(end)).await.is_err() {
            return Err(format!("node {}: calls at the limits do not end", node.id));
        }
    }
    Ok(())
}

/// Each write to a key of its own is there when it was acknowledged, and is not there when it
/// was said not to be applied.
fn nothing_is_lost(world: &World) -> Verdict {
    let nodes = world.all_running();
    let state = nodes.first().ok_or("nobody runs")?.state.lock().clone();
    for (key, fate) in world.singles.lock().iter() {
        let there = state.values.get(*key) == Some(*key);
        match fate {
            Fate::Done if !there => return Err(format!("the acknowledged write {key} is lost")),
            Fate::NotApplied if there => {
                return Err(format!("the write {key} was said not to be applied, and is there"));
            }
            Fate::Open => return Err(format!("the write {key} was never answered")),
            _ => {}
        }
    }
    Ok(())
}
