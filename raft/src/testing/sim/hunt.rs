//! Hunts: leaders are cut off with a minority, time and again.
//!
//! Where nodes read under leases the hunt is a trial of the leases: a node whose clock is slow is
//! made to lead, is cut off for longer than the others need to elect the next leader, and is asked
//! all the while, as the next one is told to write.

use voussoir_sim::{Crash, KvOp, MILLISECOND, SECOND, World};

use super::node::RaftNode;
use crate::types::Role;

/// How long a hunted leader is cut off, and left alone, at least and at most.
pub(super) const HUNT_NS: (u64, u64) = (30 * MILLISECOND, SECOND);
/// The same for a leader with a lease: its clock and those of all voters may run at half the pace,
/// and they wait for up to 400 ms.
const LEASE_CUT_NS: (u64, u64) = (500 * MILLISECOND, SECOND);
/// How long a cluster is left alone before and after a slow node is made to lead.
const LEASE_REST_NS: (u64, u64) = (50 * MILLISECOND, 500 * MILLISECOND);
/// How long one voter alone hears the leader.
const LEASE_THREAD_NS: (u64, u64) = (50 * MILLISECOND, 400 * MILLISECOND);
/// Between two questions to a hunted leader.
const ASK_NS: (u64, u64) = (5 * MILLISECOND, 40 * MILLISECOND);
/// Who asks. It is none of the clients in the history: what it may read is known to the oracle.
const ASKER: u64 = 1 << 40;
/// The key that nobody else reads and writes.
const ASKED: u64 = 1 << 40;

/// Cuts leaders off with a minority time and again.
pub(super) struct Hunt<'a> {
    voters: &'a [u64],
    /// How often a leader was cut off, if leaders are hunted. Even: none is cut off now.
    pub(super) hunts: Option<u64>,
    /// The nodes with slow clocks; `None`: there are no leases to be tried.
    slow: Option<Vec<u64>>,
    lease: Lease,
}

/// How far the trial of a lease has come.
#[derive(Default)]
struct Lease {
    stage: Stage,
    /// The leader on trial, and its term.
    leader: Option<(u64, u64)>,
    /// Who is cut off with it, itself included.
    minority: Vec<u64>,
    /// The only voter of the majority that still hears it.
    thread: Option<u64>,
    /// The number of the latest write.
    written: u64,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Rest,
    /// A slow node has been asked to lead.
    HandedOver,
    /// The leader hears one voter of the majority.
    Thread,
    Cut,
}

impl<'a> Hunt<'a> {
    /// A hunt among `voters`, if there is one; `slow` has slow clocks, and leases are tried.
    pub(super) fn new(voters: &'a [u64], is_on: bool, slow: Option<Vec<u64>>) -> Self {
        Self { voters, hunts: is_on.then_some(0), slow, lease: Lease::default() }
    }

    /// Goes on with the hunt. Returns when to go on again, in ns.
    pub(super) fn turn(&mut self, world: &mut World<RaftNode>) -> Option<u64> {
        self.hunts?;
        let is_over = world.now() >= world.plan().quiet_ns;
        if self.slow.is_some() {
            return self.try_lease(world, is_over);
        }
        let hunts = self.hunts.as_mut()?;
        world.heal();
        if is_over {
            return None;
        }
        *hunts += 1;
        if *hunts % 2 == 1 {
            let leader = leader(world).map_or(1, |(leader, _)| leader);
            let minority = self.minority(world, leader);
            world.partition(&minority);
        }
        Some(world.rng().scaled(HUNT_NS.0, HUNT_NS.1))
    }

    /// A leader with as many as are no majority; those with slow clocks first, where leases count
    /// on the others.
    fn minority(&self, world: &mut World<RaftNode>, leader: u64) -> Vec<u64> {
        let mut others = self.voters.to_vec();
        others.retain(|id| *id != leader);
        world.rng().shuffle(&mut others);
        others.sort_by_key(|id| self.slow.as_ref().is_some_and(|slow| !slow.contains(id)));
        others.truncate(self.voters.len() / 2 - 1);
        others.push(leader);
        others
    }

    fn try_lease(&mut self, world: &mut World<RaftNode>, is_over: bool) -> Option<u64> {
        if is_over {
            self.lease.leader = None;
            world.heal();
            return None;
        }
        let (next, (least, most)) = match self.lease.stage {
            Stage::Rest => {
                self.hand_over(world);
                (Stage::HandedOver, LEASE_REST_NS)
            }
            Stage::HandedOver => {
                *self.hunts.as_mut()? += 1;
                self.lease.leader = leader(world);
                let leader = self.lease.leader.map_or(1, |(leader, _)| leader);
                self.lease.minority = self.minority(world, leader);
                if world.rng().chance(500_000) {
                    self.leave_a_thread(world);
                    (Stage::Thread, LEASE_THREAD_NS)
                } else {
                    world.partition(&self.lease.minority);
                    (Stage::Cut, LEASE_CUT_NS)
                }
            }
            Stage::Thread => {
                world.partition(&self.lease.minority);
                // The voter that the lease rests on starts again.
                if let Some(id) = self.lease.thread.take().filter(|id| world.node(*id).is_some()) {
                    world.crash(id, Crash::Process);
                    world.restart(id);
                }
                (Stage::Cut, LEASE_CUT_NS)
            }
            Stage::Cut => {
                *self.hunts.as_mut()? += 1;
                self.lease.leader = None;
                world.heal();
                (Stage::Rest, LEASE_REST_NS)
            }
        };
        self.lease.stage = next;
        Some(world.rng().between(least, most))
    }

    /// Nodes with fast clocks are the first to campaign, and so the slow ones have to be asked.
    fn hand_over(&self, world: &mut World<RaftNode>) {
        let slow = self.slow.as_deref().unwrap_or_default();
        let Some((leader, _)) = leader(world).filter(|(id, _)| !slow.contains(id)) else { return };
        if !slow.is_empty() {
            let to = slow[world.rng().below(slow.len() as u64) as usize];
            world.with_node(leader, |node, ctx| node.hand_over(ctx, Some(to)));
        }
    }

    /// Cuts the minority off from all but one.
    fn leave_a_thread(&mut self, world: &mut World<RaftNode>) {
        let minority = &self.lease.minority;
        let mut majority = self.voters.to_vec();
        majority.retain(|id| !minority.contains(id));
        world.rng().shuffle(&mut majority);
        self.lease.thread = majority.pop();
        for inside in minority {
            for outside in &majority {
                world.cut(*inside, *outside);
                world.cut(*outside, *inside);
            }
        }
    }

    /// Asks the leader on trial, and has the one that followed it write. Returns when to do so
    /// again, in ns.
    pub(super) fn ask(&mut self, world: &mut World<RaftNode>) -> Option<u64> {
        if let Some((on_trial, term)) = self.lease.leader {
            world.request(ASKER, on_trial, KvOp::Get { key: ASKED });
            if let Some((next, _)) = leader(world).filter(|(_, latest)| *latest > term) {
                self.lease.written += 1;
                let value = self.lease.written;
                world.request(ASKER, next, KvOp::Put { key: ASKED, value });
            }
        }
        let goes_on = self.slow.is_some() && world.now() < world.plan().quiet_ns;
        goes_on.then(|| world.rng().between(ASK_NS.0, ASK_NS.1))
    }
}

/// The leader of the latest term, and the term.
fn leader(world: &World<RaftNode>) -> Option<(u64, u64)> {
    let status = world.nodes().map(|(_, node)| node.status());
    let leaders = status.filter(|status| status.role == Role::Leader);
    leaders.max_by_key(|status| status.term).map(|status| (status.id, status.term))
}
