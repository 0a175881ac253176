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
use voussoir_raft::{Change as Members, ChangeError, FollowerState, Membership};

use super::command::{Command, Reply, Step};
use super::hand_over::{HandOvers, Preferred};
use super::host::{Failed, Host, Replica};
use super::map::{Address, Change, ShardInfo};
use super::{fill, map_group, state};

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
        replicas(&host).await;
        for (shard, replica) in host.replicas() {
            tasks.drive(&host, shard, &replica);
        }
    }
}

/// Starts the replicas that this node holds or is to hold, and deletes those that it has given
/// away. A shard that fails does not keep the others from it.
async fn replicas(host: &Host) {
    let mut is_pending = host.strays().next().is_some();
    let mut failures = BTreeMap::new();
    for (id, info) in &host.routes().map.shards {
        is_pending |= match host.replica(*id) {
            Some(replica) => is_removed(host, *id, info, &replica).await,
            // A replica in the journal is started whatever the map says: its group may need it
            // until it has removed it.
            None => match host.open(*id, info).await {
                Ok(is_there) => !is_there && info.nodes.contains(&host.id()),
                Err(error) => {
                    failures.insert(*id, error.to_string());
                    false
                }
            },
        };
    }
    if is_pending {
        // By the newest map, and not by one that is older than what this node has done before.
        match host.map.read(Instant::now() + MAP_WAIT).await {
            Ok(_) => create_and_delete(host, &mut failures).await,
            Err(error) => tracing::debug!(%error, "replicas wait for the newest map"),
        }
    }
    for (shard, error) in &failures {
        tracing::warn!(shard, error, "a replica was not started or deleted");
    }
    *host.failures.lock() = failures;
}

async fn create_and_delete(host: &Host, failures: &mut BTreeMap<u64, String>) {
    let routes = host.routes();
    for (id, info) in &routes.map.shards {
        let done = match host.replica(*id) {
            Some(replica) if is_removed(host, *id, info, &replica).await => host.delete(*id).await,
            None if info.nodes.contains(&host.id()) && !failures.contains_key(id) => {
                host.create(*id, info).await
            }
            _ => continue,
        };
        match done {
            Ok(()) => tracing::info!(shard = id, "a replica is created, or deleted for good"),
            Err(error) => drop(failures.insert(*id, error.to_string())),
        }
    }
    // Of splits that were taken back: they never owned anything, and no number is given twice.
    for id in host.strays().collect::<Vec<_>>() {
        if let Err(error) = host.delete(id).await {
            failures.insert(id, error.to_string());
        }
    }
}

/// Whether the group has left this node out for good. A voter that was away hears it when it asks
/// for votes; one without a vote never does, and so it asks the leader.
async fn is_removed(host: &Host, id: u64, info: &ShardInfo, replica: &Replica) -> bool {
    if !info.left.contains(&host.id()) {
        return false;
    }
    if replica.raft.status().borrow().removed.is_some() {
        return true;
    }
    let is_voter = replica.raft.members().borrow().is_voter(host.id());
    let is_out = |state: &state::ShardState| {
        state.members.as_ref().is_some_and(|members| !members.contains(&host.id()))
    };
    !is_voter && state::find(host, id, info, is_out).await.is_some()
}

/// At most one task for each shard that this node leads.
#[derive(Default)]
struct Tasks {
    running: BTreeMap<u64, JoinHandle<()>>,
    hand_overs: HandOvers,
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.running.values().for_each(JoinHandle::abort);
    }
}

impl Tasks {
    fn drive(&mut self, host: &Arc<Host>, shard: u64, replica: &Arc<Replica>) {
        let routes = host.routes();
        let Some(info) = routes.map.shards.get(&shard) else { return };
        let status = replica.raft.status().borrow().clone();
        if !replica.leads() {
            let is_preferred = status.leader.is_some_and(|id| info.nodes.first() == Some(&id));
            self.hand_overs.led_by_another(shard, is_preferred);
            return;
        }
        let now = Instant::now();
        let to = info.nodes.first().copied().filter(|node| *node != host.id());
        let to = to.filter(|to| {
            let preferred = preferred(host, *to, replica, status.is_quiesced);
            self.hand_overs.may_begin(shard, preferred, status.commit, now)
        });
        if self.running.get(&shard).is_some_and(|task| !task.is_finished()) {
            return;
        }
        let work = next_step(&routes.map.shards, info, replica);
        let work = work.or(to.map(|to| Work::HandOver { to }));
        let Some(work) = work else { return };
        if matches!(work, Work::HandOver { .. }) {
            self.hand_overs.begins(shard, now);
        }
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
    /// Delete what was sealed for a shard, if that has it.
    Forget {
        to: u64,
    },
    /// Take a split back.
    Abort {
        to: u64,
    },
    /// Exchange a voter for another node.
    Exchange {
        old: u64,
        new: u64,
    },
    /// Take out a member that the map does not name.
    Drop {
        id: u64,
    },
    HandOver {
        to: u64,
    },
}

impl Work {
    /// Whether it waits for its turn among the shards that this node leads. A fill does not: part
    /// of the keys is frozen until it is done, and a move ahead of it may wait for a dead node.
    fn takes_a_turn(&self) -> bool {
        matches!(self, Self::Exchange { .. } | Self::Drop { .. })
    }
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
    let members = replica.raft.members().borrow().clone();
    next_of_split(shards, info, is_open, parting).or_else(|| next_for(info, &members))
}

fn next_of_split(
    shards: &BTreeMap<u64, ShardInfo>,
    info: &ShardInfo,
    is_open: bool,
    parting: Option<u64>,
) -> Option<Work> {
    match (is_open, info.origin) {
        (false, None) => return Some(Work::Open),
        // Whatever the map says of it: an empty shard is not what it was to be filled with.
        (false, Some(from)) => return Some(Work::Fill { from }),
        (true, _) if !info.is_open => return Some(Work::Report),
        (true, _) => {}
    }
    let is_served = |to: &u64| shards.get(to).is_some_and(|right| right.is_open);
    if let Some(to) = parting.filter(is_served) {
        return Some(Work::Forget { to });
    }
    let split = info.split.as_ref().filter(|split| split.is_aborted && parting.is_none());
    split.map(|split| Work::Abort { to: split.to })
}

fn next_for(info: &ShardInfo, members: &Membership) -> Option<Work> {
    let next = || next_of_members(&info.nodes, members.voters(), members.learners());
    // A joint membership is left without anybody's doing.
    if members.is_joint() { None } else { next() }
}

/// The next change that makes the members those that the map names. Members that it does not name
/// are left over from a change that was withdrawn, or that came late.
fn next_of_members(nodes: &[u64], voters: &[u64], learners: &[u64]) -> Option<Work> {
    let is_surplus = |id: &&u64| !nodes.contains(id);
    if let Some(&id) = learners.iter().find(is_surplus) {
        return Some(Work::Drop { id });
    }
    let old = voters.iter().find(is_surplus)?;
    Some(match nodes.iter().find(|node| !voters.contains(node)) {
        Some(&new) => Work::Exchange { old: *old, new },
        None => Work::Drop { id: *old },
    })
}

/// What this node, as the leader of a shard, knows of the preferred leader.
fn preferred(host: &Host, to: u64, replica: &Replica, is_at_rest: bool) -> Preferred {
    let is_alive = host.node.peers().iter().any(|peer| peer.id == to && peer.is_alive);
    let followers = replica.raft.followers();
    let Some(follower) = followers.iter().find(|follower| follower.id == to) else {
        return Preferred { is_there: false, is_heard: false, matched: 0 };
    };
    let is_replicating = follower.state == FollowerState::Replicating;
    let silent = Duration::from_nanos(follower.silent_ns);
    Preferred {
        is_there: is_alive && follower.is_voter && is_replicating,
        is_heard: is_at_rest || silent < host.serve.timing.election_max,
        matched: follower.matched,
    }
}

async fn take(
    host: &Host,
    id: u64,
    info: &ShardInfo,
    replica: &Replica,
    work: Work,
) -> Result<(), Failed> {
    if work.takes_a_turn() {
        return exchange(host, id, replica).await;
    }
    match work {
        Work::Open => {
            let (start, end, epoch) = (info.start.clone(), info.end.clone(), info.epoch);
            step(replica, Step::Open { epoch, start, end, count: 0 }).await
        }
        Work::Fill { from } => fill::fill(host, id, info, from, replica).await,
        Work::Report => map_group::change(host, &Change::Opened { shard: id }).await.map(drop),
        Work::Forget { to } => {
            let routes = host.routes();
            let right = routes.map.shards.get(&to).ok_or("no such shard")?;
            // The only copy is not deleted on the word of the map alone.
            let served = state::find(host, to, right, |state| state.is_open).await;
            served.ok_or("the shard that it was sealed for does not say that it has it")?;
            step(replica, Step::Forget { to }).await
        }
        Work::Abort { to } => {
            step(replica, Step::Bar { to }).await?;
            map_group::change(host, &Change::Aborted { shard: to }).await.map(drop)
        }
        Work::HandOver { to } => {
            let until = Instant::now() + TRANSFER_WAIT;
            replica.raft.transfer_leadership(Some(to), until).await?;
            Ok(())
        }
        Work::Exchange { .. } | Work::Drop { .. } => Ok(()),
    }
}

/// Changes the members of a shard, one after the other with other shards. What is to change is
/// looked up when the turn has come, in the newest map: it may be another node by then.
async fn exchange(host: &Host, id: u64, replica: &Replica) -> Result<(), Failed> {
    let _turn = host.moves.acquire().await?;
    host.map.read(Instant::now() + MAP_WAIT).await?;
    let routes = host.routes();
    let info = routes.map.shards.get(&id).ok_or("no such shard")?;
    let members = replica.raft.members().borrow().clone();
    let until = Instant::now() + CHANGE_WAIT;
    let changed = match next_for(info, &members) {
        Some(Work::Exchange { old, new }) => {
            let Address { peers, http } = *routes.map.nodes.get(&new).ok_or("no such node")?;
            replica.raft.replace(old, new, format!("{peers},{http}"), until).await
        }
        Some(Work::Drop { id }) => replica.raft.change(Members::new().remove(id), until).await,
        _ => return Ok(()),
    };
    match changed {
        Ok(_) => tracing::info!(shard = id, from = ?members, "the members have changed"),
        // It goes on; the members say when it is done.
        Err(ChangeError::TimedOut) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Takes a step of a shard's group.
pub async fn step(replica: &Replica, step: Step) -> Result<(), Failed> {
    let answer = replica.raft.propose(Command::Step(step).encode()).await?;
    match Reply::decode(&answer)? {
        Reply::Done => Ok(()),
        reply => Err(format!("a step was answered with {reply:?}").into()),
    }
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;
