//! Makes it as the map says: starts and deletes the replicas of this node, and, for each shard that
//! this node leads, carries moves and splits through.
//!
//! Nothing here remembers what it has begun. Each round compares the map with what is, and takes
//! the next step; each step may be taken twice. So a move or a split goes on wherever its leader
//! was killed, by whoever leads next.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};
use voussoir_raft::{ChangeError, FollowerState};

use super::command::{Command, Reply, Step};
use super::host::{Failed, Host, Replica};
use super::map::{Address, Change, ShardInfo};
use super::{fill, map_group};

/// Time between two rounds. A change of the map begins one at once.
const ROUND: Duration = Duration::from_millis(100);
/// How long a read of the map may take, before a replica is created or deleted.
const MAP_WAIT: Duration = Duration::from_secs(2);
/// How long a change of the members is waited for. The next round asks again.
const CHANGE_WAIT: Duration = Duration::from_secs(10);
/// How long leadership that was handed over is waited for.
const TRANSFER_WAIT: Duration = Duration::from_secs(1);
/// Rounds between two halvings of the counted load.
const DECAY_ROUNDS: u64 = 50;
/// A node hands a shard to its preferred leader after leading it for so long: a node that has just
/// come back takes up its replicas first.
const SETTLED: Duration = Duration::from_secs(2);

/// Runs until it is dropped.
pub async fn run(host: Arc<Host>) {
    let mut tasks = Tasks::default();
    let mut map = host.routes.clone();
    let mut ticks = interval(ROUND);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for round in 1_u64.. {
        tokio::select! {
            _ = ticks.tick() => {}
            changed = map.changed() => if changed.is_err() { return },
        }
        if round.is_multiple_of(DECAY_ROUNDS) {
            host.load.lock().decay();
        }
        for (id, Address { peers, http }) in &host.routes().map.nodes {
            let peers = (*id != host.id()).then_some(*peers);
            host.book.insert(*id, peers, http.to_string());
        }
        if let Err(error) = map_group::begin(&host).await {
            tracing::warn!(%error, "the first shard map was not written");
        }
        if let Err(error) = replicas(&host).await {
            tracing::warn!(%error, "a replica was not started or deleted");
        }
        for (shard, replica) in host.replicas() {
            tasks.drive(&host, shard, &replica);
        }
    }
}

/// Starts the replicas that this node holds or is to hold, and deletes those that it has given
/// away.
async fn replicas(host: &Host) -> Result<(), Failed> {
    let mut is_pending = false;
    for (id, info) in &host.routes().map.shards {
        is_pending |= match host.replica(*id) {
            Some(replica) => is_removed(&replica, info, host.id()),
            // A replica in the journal is started whatever the map says: its group may need it
            // until it has removed it.
            None => !host.open(*id, info).await? && info.nodes.contains(&host.id()),
        };
    }
    if !is_pending {
        return Ok(());
    }
    // By the newest map, and not by one that is older than what this node has done before.
    host.map.read(Instant::now() + MAP_WAIT).await?;
    for (id, info) in &host.routes().map.shards {
        match host.replica(*id) {
            Some(replica) if is_removed(&replica, info, host.id()) => {
                host.delete(*id).await?;
                tracing::info!(shard = id, "the replica is deleted, others hold the shard");
            }
            None if info.nodes.contains(&host.id()) => {
                host.create(*id, info).await?;
                tracing::info!(shard = id, "a replica is created");
            }
            _ => {}
        }
    }
    Ok(())
}

fn is_removed(replica: &Replica, info: &ShardInfo, node: u64) -> bool {
    info.left.contains(&node) && replica.raft.status().borrow().removed.is_some()
}

/// At most one task for each shard that this node leads.
#[derive(Default)]
struct Tasks {
    running: BTreeMap<u64, JoinHandle<()>>,
    /// Since when this node leads each shard.
    led_since: BTreeMap<u64, Instant>,
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.running.values().for_each(JoinHandle::abort);
    }
}

impl Tasks {
    fn drive(&mut self, host: &Arc<Host>, shard: u64, replica: &Arc<Replica>) {
        if !replica.leads() {
            self.led_since.remove(&shard);
            return;
        }
        let since = *self.led_since.entry(shard).or_insert_with(Instant::now);
        if self.running.get(&shard).is_some_and(|task| !task.is_finished()) {
            return;
        }
        let routes = host.routes();
        let Some(info) = routes.map.shards.get(&shard) else { return };
        let work = next_step(&routes.map.shards, info, replica);
        let is_settled = since.elapsed() >= SETTLED;
        let work = work.or_else(|| hand_over(host, info, replica).filter(|_| is_settled));
        let Some(work) = work else { return };
        let (host, replica, info) = (host.clone(), replica.clone(), info.clone());
        let task = tokio::spawn(async move {
            if let Err(error) = take(&host, shard, &info, &replica, work).await {
                tracing::debug!(shard, %error, "a step is to be taken again");
            }
        });
        self.running.insert(shard, task);
    }
}

/// What is to be done next in a shard that this node leads.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Work {
    /// Open a first shard.
    Open,
    /// Fetch the pairs of a shard that is split, and open this one.
    Fill {
        from: u64,
    },
    /// Write into the map that the shard is open.
    Report,
    Forget {
        to: u64,
    },
    Exchange {
        old: u64,
        new: u64,
    },
    HandOver {
        to: u64,
    },
}

fn next_step(
    shards: &BTreeMap<u64, ShardInfo>,
    info: &ShardInfo,
    replica: &Replica,
) -> Option<Work> {
    let (is_open, parting) = {
        let shard = replica.shard.read();
        (shard.span().is_some(), shard.parting().map(|parting| parting.to))
    };
    match (is_open, info.fills_from) {
        (false, None) => return Some(Work::Open),
        (false, Some(from)) => return Some(Work::Fill { from }),
        (true, Some(_)) => return Some(Work::Report),
        (true, None) => {}
    }
    let is_served = |to: &u64| shards.get(to).is_some_and(|right| right.fills_from.is_none());
    if let Some(to) = parting.filter(is_served) {
        return Some(Work::Forget { to });
    }
    let members = replica.raft.members().borrow().clone();
    let old = members.voters().iter().find(|node| !info.nodes.contains(node));
    let new = info.nodes.iter().find(|node| !members.is_voter(**node));
    match (old, new) {
        (Some(&old), Some(&new)) if !members.is_joint() => Some(Work::Exchange { old, new }),
        _ => None,
    }
}

/// The preferred leader, if it is another node that is up and keeps up.
fn hand_over(host: &Host, info: &ShardInfo, replica: &Replica) -> Option<Work> {
    let to = *info.nodes.first().filter(|node| **node != host.id())?;
    let is_alive = host.node.peers().iter().any(|peer| peer.id == to && peer.is_alive);
    let is_fit = replica.raft.followers().iter().any(|follower| {
        follower.id == to && follower.is_voter && follower.state == FollowerState::Replicating
    });
    (is_alive && is_fit).then_some(Work::HandOver { to })
}

async fn take(
    host: &Host,
    id: u64,
    info: &ShardInfo,
    replica: &Replica,
    work: Work,
) -> Result<(), Failed> {
    match work {
        Work::Open => {
            let (start, end, epoch) = (info.start.clone(), info.end.clone(), info.epoch);
            step(replica, Step::Open { epoch, start, end, count: 0 }).await
        }
        Work::Fill { from } => {
            let _place = host.moves.acquire().await?;
            fill::fill(host, id, info, from, replica).await
        }
        Work::Report => map_group::change(host, &Change::Opened { shard: id }).await.map(drop),
        Work::Forget { to } => step(replica, Step::Forget { to }).await,
        Work::Exchange { old, new } => {
            let _place = host.moves.acquire().await?;
            let routes = host.routes();
            let Address { peers, http } = *routes.map.nodes.get(&new).ok_or("no such node")?;
            let until = Instant::now() + CHANGE_WAIT;
            match replica.raft.replace(old, new, format!("{peers},{http}"), until).await {
                Ok(_) => {
                    tracing::info!(shard = id, old, new, "a replica has moved");
                    Ok(())
                }
                // It goes on; the members say when it is done.
                Err(ChangeError::TimedOut) => Ok(()),
                Err(error) => Err(error.into()),
            }
        }
        Work::HandOver { to } => {
            let until = Instant::now() + TRANSFER_WAIT;
            replica.raft.transfer_leadership(Some(to), until).await?;
            Ok(())
        }
    }
}

/// Takes a step of a shard's group.
pub async fn step(replica: &Replica, step: Step) -> Result<(), Failed> {
    let answer = replica.raft.propose(Command::Step(step).encode()).await?;
    match Reply::decode(&answer)? {
        Reply::Done => Ok(()),
        reply => Err(format!("a step was answered with {reply:?}").into()),
    }
}
