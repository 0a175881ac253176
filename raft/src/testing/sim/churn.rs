//! Changes of the membership as faults: voters, learners and outsiders trade places time and again.

use voussoir_sim::{MILLISECOND, Rng, SECOND, World};

use super::node::RaftNode;
use crate::membership::{Change, Membership};
use crate::types::Role;

/// Between two changes, at least and at most.
const PAUSE_NS: (u64, u64) = (50 * MILLISECOND, 2 * SECOND);

/// Asks leaders for other members, whatever else goes on.
#[derive(Debug)]
pub(super) struct Churn {
    ids: Vec<u64>,
    /// The fewest voters that a change leaves.
    min_voters: usize,
}

impl Churn {
    /// Changes among these nodes, of which `min_voters` vote at least.
    pub(super) fn new(ids: Vec<u64>, min_voters: usize) -> Self {
        Self { ids, min_voters }
    }

    /// Asks the latest leader for a change, while there are faults. Returns when to ask again, in
    /// ns.
    pub(super) fn turn(&self, world: &mut World<RaftNode>) -> Option<u64> {
        if world.now() >= world.plan().quiet_ns {
            return None;
        }
        let status = world.nodes().map(|(_, node)| node.status());
        let leaders = status.filter(|status| status.role == Role::Leader);
        if let Some(leader) = leaders.max_by_key(|status| status.term).map(|status| status.id) {
            let members = world.node(leader).map(|node| node.members().clone());
            let change = members.map(|members| self.draw(&members, leader, world.rng()));
            let hands_over = world.rng().chance(100_000);
            world.with_node(leader, |node, ctx| match change {
                Some(_) if hands_over => node.hand_over(ctx, None),
                Some(change) => node.change(ctx, change),
                None => {}
            });
        }
        Some(world.rng().scaled(PAUSE_NS.0, PAUSE_NS.1))
    }

    /// Mostly one node, sometimes any number of them.
    fn draw(&self, members: &Membership, leader: u64, rng: &mut Rng) -> Change {
        let mut ids = self.ids.clone();
        rng.shuffle(&mut ids);
        match rng.below(10) {
            // One comes, one goes: of the voters, and the leader rather often.
            0..4 => {
                let old = if rng.chance(300_000) { leader } else { ids[0] };
                let new = ids.iter().copied().find(|id| !members.is_voter(*id));
                let shrinks = new.is_none() && members.voters().len() <= self.min_voters;
                let change = if shrinks { Change::new() } else { Change::new().remove(old) };
                new.into_iter().fold(change, Change::voter)
            }
            4..6 => Change::new().voter(ids[0]),
            6..7 if !members.voters().contains(&ids[0]) => Change::new().learner(ids[0]),
            7..8 if !members.voters().contains(&ids[0]) => Change::new().remove(ids[0]),
            _ => {
                let voters = self.min_voters as u64..self.ids.len() as u64 + 1;
                let (voters, others) =
                    ids.split_at(rng.between(voters.start, voters.end - 1) as usize);
                let change = voters.iter().copied().fold(Change::new(), Change::voter);
                others.iter().fold(change, |change, id| {
                    if rng.chance(300_000) { change.learner(*id) } else { change.remove(*id) }
                })
            }
        }
    }
}
