//! What happens to the groups of one seed, and what their clients were told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout};
use voussoir_raft::{ProposeError, Role};
use voussoir_sim::{Rng, Situations};

use super::hosts::{Group, Hosts};

pub(crate) struct Troubles<'a> {
    situations: &'a Situations,
    /// Commands that were proposed, by group.
    proposed: BTreeMap<u64, u64>,
    /// Numbers that were acknowledged, by group.
    told: BTreeMap<u64, BTreeSet<u64>>,
    /// Node and peer: they shared no group for a while.
    forgotten: BTreeSet<(u64, u64)>,
}

/// The number in the answer to a proposal.
pub(crate) fn number(answer: &Result<Bytes, ProposeError>) -> Option<u64> {
    let answer = answer.as_ref().ok()?;
    std::str::from_utf8(answer).ok()?.parse().ok()
}

impl<'a> Troubles<'a> {
    pub(crate) fn new(situations: &'a Situations) -> Self {
        let (proposed, told) = (BTreeMap::new(), BTreeMap::new());
        Self { situations, proposed, told, forgotten: BTreeSet::new() }
    }

    /// The last count of a group holds every command that was acknowledged, and none twice.
    pub(crate) fn check(&self, group: u64, last: u64) -> Result<(), String> {
        let told = self.told.get(&group);
        let (highest, count) =
            told.map_or((0, 0), |told| (told.last().copied().unwrap_or(0), told.len() as u64));
        let proposed = self.proposed.get(&group).copied().unwrap_or(0) + 1;
        if last <= highest || last <= count || last > proposed {
            return Err(format!(
                "group {group} counts {last}: {count} acknowledged up to {highest}, {proposed} sent"
            ));
        }
        Ok(())
    }

    pub(crate) async fn one(&mut self, hosts: &mut Hosts, rng: &mut Rng) {
        match rng.below(13) {
            0..=2 => self.propose(hosts, rng).await,
            3 => self.read(hosts, rng).await,
            4..=5 => self.stop(hosts, rng).await,
            6..=7 => self.start(hosts, rng).await,
            8 => self.cut(hosts, rng),
            9 => hosts.network.heal(),
            10 => {
                let lossy = rng.chance(500_000);
                hosts.faults.loss_ppm.store(if lossy { 100_000 } else { 0 }, Ordering::Relaxed);
                if lossy {
                    self.situations.reached("messages are lost");
                }
            }
            11 => self.fill_or_free(hosts, rng),
            _ => self.restart(hosts, rng).await,
        }
    }

    /// The disk of a node has room no more, or again.
    fn fill_or_free(&self, hosts: &Hosts, rng: &mut Rng) {
        let Some((id, _)) = at_rest(hosts, rng).or_else(|| replica(hosts, rng)) else { return };
        let full = hosts.faults.full.fetch_xor(1 << id, Ordering::Relaxed) ^ 1 << id;
        let leads = hosts.groups.iter().any(|group| hosts.leader(group.id) == Some(id));
        if hosts.features.is_narrow && leads && full >> id & 1 == 1 {
            self.situations.reached("a leader has no room");
        }
    }

    async fn propose(&mut self, hosts: &Hosts, rng: &mut Rng) {
        let group = rng.pick(hosts.groups).expect("there are groups").id;
        let Some(leader) = hosts.leader(group) else { return };
        let Some(raft) = hosts.raft(leader, group) else { return };
        let of_same = hosts.groups.iter().filter(|other| other.id != group);
        let mut others = of_same.filter_map(|other| hosts.status(leader, other.id));
        let rests_beside = others.any(|status| status.role == Role::Leader && status.is_quiesced);
        *self.proposed.entry(group).or_default() += 1;
        let answer = raft.propose(Bytes::from_static(b"x"));
        let answer = timeout(hosts.features.patience(500), answer).await;
        if matches!(answer, Ok(Err(ProposeError::Busy))) {
            self.situations.reached("a proposal rejected for want of room");
        }
        let Some(number) = answer.ok().and_then(|answer| number(&answer)) else { return };
        assert!(self.told.entry(group).or_default().insert(number), "{number} was said twice");
        if rests_beside {
            self.situations.reached("a group works while another one rests under the same leader");
        }
    }

    async fn read(&mut self, hosts: &Hosts, rng: &mut Rng) {
        let Some((id, group)) = replica(hosts, rng) else { return };
        let Some(raft) = hosts.raft(id, group) else { return };
        if raft.status().borrow().is_quiesced {
            self.situations.reached("read asked of a member at rest");
        }
        let told = self.told.get(&group).and_then(|told| told.last().copied()).unwrap_or(0);
        // While the faults go on it may well fail.
        let read = raft.read(Instant::now() + hosts.features.patience(300)).await;
        let shown = hosts.count(id, group);
        assert!(
            read.is_err() || shown >= told,
            "a stale read: {shown}, and {told} was told before"
        );
    }

    /// Stops one replica, or all of a node; leaders at rest rather often.
    async fn stop(&mut self, hosts: &mut Hosts, rng: &mut Rng) {
        let Some((mut id, mut group)) = replica(hosts, rng) else { return };
        if rng.chance(500_000) {
            (id, group) = at_rest(hosts, rng).unwrap_or((id, group));
        }
        let all = if rng.chance(300_000) { hosts.nodes[&id].groups() } else { vec![group] };
        let before: Vec<u64> = hosts.nodes[&id].peers().iter().map(|peer| peer.id).collect();
        let is_mute = rng.chance(400_000);
        if is_mute {
            (1..=4).for_each(|to| hosts.network.cut(id, to));
        }
        for group in all {
            let status = hosts.status(id, group).expect("it runs");
            hosts.nodes[&id].stop_group(group).await;
            if !status.is_quiesced {
                continue;
            }
            self.situations.reached(match (status.role, status.is_voter) {
                (Role::Leader, _) if is_mute => "leader stopped at rest, and its word is lost",
                (Role::Leader, _) => "leader stopped at rest while its node lives",
                (_, true) => "follower stopped at rest",
                (_, false) => "learner stopped at rest",
            });
        }
        if is_mute {
            sleep(Duration::from_millis(rng.between(20, 300))).await;
            hosts.network.heal();
        }
        let after: Vec<u64> = hosts.nodes[&id].peers().iter().map(|peer| peer.id).collect();
        let gone = before.into_iter().filter(|peer| !after.contains(peer));
        self.forgotten.extend(gone.map(|peer| (id, peer)));
    }

    async fn start(&mut self, hosts: &mut Hosts, rng: &mut Rng) {
        let members = hosts.groups.iter().flat_map(Group::members);
        let ids: Vec<u64> = members.collect();
        let id = *rng.pick(&ids).expect("there are members");
        hosts.start(id).await;
        for peer in hosts.nodes[&id].peers() {
            if self.forgotten.remove(&(id, peer.id)) {
                self.situations.reached("peer forgotten and linked again in one life");
            }
        }
    }

    fn cut(&mut self, hosts: &Hosts, rng: &mut Rng) {
        let Some((from, _)) = at_rest(hosts, rng).or_else(|| replica(hosts, rng)) else { return };
        let leads = |id: u64| {
            let mut all = hosts.groups.iter().filter_map(|group| hosts.status(id, group.id));
            all.any(|status| status.role == Role::Leader && status.is_quiesced)
        };
        if rng.chance(300_000) {
            if leads(from) {
                self.situations.reached("node cut off while it leads at rest");
            }
            return hosts.network.isolate(from, 1..=4);
        }
        let to = (from + rng.below(3)) % 4 + 1;
        if leads(from) || leads(to) {
            self.situations.reached("link cut one way while a leader rests");
        }
        let (from, to) = if rng.chance(500_000) { (from, to) } else { (to, from) };
        hosts.network.cut(from, to);
    }

    /// A process ends, and the next one begins at once or later.
    async fn restart(&mut self, hosts: &mut Hosts, rng: &mut Rng) {
        let ids: Vec<u64> = hosts.nodes.keys().copied().collect();
        let Some(id) = rng.pick(&ids).copied() else { return };
        let node = hosts.nodes.remove(&id).expect("it runs");
        let status = |group| node.group(group).map(|raft| raft.status().borrow().clone());
        let rests = node.groups().into_iter().filter_map(status).any(|status| status.is_quiesced);
        self.forgotten.retain(|(node, _)| *node != id);
        let dies = rng.chance(500_000);
        if dies {
            // Without a word.
            hosts.network.isolate(id, 1..=4);
        }
        node.shutdown().await;
        drop(node);
        if dies {
            hosts.network.heal();
        }
        if dies && rests && rng.chance(700_000) {
            self.situations.reached("node dies at rest and is back at once");
            hosts.start(id).await;
        } else if !dies && rests {
            self.situations.reached("node shut down at rest");
        }
    }
}

/// One of the replicas that run.
fn replica(hosts: &Hosts, rng: &mut Rng) -> Option<(u64, u64)> {
    let of = |(id, node): (&u64, &voussoir_raft::Node)| {
        let id = *id;
        node.groups().into_iter().map(move |group| (id, group))
    };
    let all: Vec<_> = hosts.nodes.iter().flat_map(of).collect();
    rng.pick(&all).copied()
}

/// One of the leaders at rest.
fn at_rest(hosts: &Hosts, rng: &mut Rng) -> Option<(u64, u64)> {
    let leader = |group: &Group| {
        let id = hosts.leader(group.id)?;
        hosts.status(id, group.id)?.is_quiesced.then_some((id, group.id))
    };
    let all: Vec<_> = hosts.groups.iter().filter_map(leader).collect();
    rng.pick(&all).copied()
}
