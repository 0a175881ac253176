//! Assignors: who of a group's members gets which partitions. Pure functions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::MemberId;

/// How partitions are divided among the members of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Assignor {
    /// For each topic, neighbouring partitions to each member; the first members get one more.
    Range,
    /// All partitions of all topics in turn.
    RoundRobin,
    /// Even, and each member keeps what it has as far as that allows. All members stop at each
    /// rebalance.
    Sticky,
    /// As sticky, but only partitions that move are stopped: a partition is given to its new owner
    /// by a second rebalance, when the old one has let go of it.
    #[default]
    CooperativeSticky,
}

/// A partition of a topic.
pub(crate) type Place = (Arc<str>, u32);

/// What an assignor knows of a member.
#[derive(Clone, Debug, Default)]
pub(crate) struct Claim {
    pub(crate) topics: BTreeSet<Arc<str>>,
    /// Partitions that it has had.
    pub(crate) owned: BTreeSet<Place>,
}

pub(crate) type Assignment = BTreeMap<MemberId, BTreeSet<Place>>;

/// Divides the partitions of `topics` among `members`: each partition of a topic that a member
/// wants goes to exactly one of those.
pub(crate) fn assign(
    assignor: Assignor,
    members: &BTreeMap<MemberId, Claim>,
    topics: &BTreeMap<Arc<str>, u32>,
) -> Assignment {
    let mut assignment: Assignment = members.keys().map(|id| (*id, BTreeSet::new())).collect();
    match assignor {
        Assignor::Range => range(members, topics, &mut assignment),
        Assignor::RoundRobin => round_robin(members, topics, &mut assignment),
        Assignor::Sticky | Assignor::CooperativeSticky => sticky(members, topics, &mut assignment),
    }
    assignment
}

fn subscribers(members: &BTreeMap<MemberId, Claim>, topic: &Arc<str>) -> Vec<MemberId> {
    let wants = |(id, claim): (&MemberId, &Claim)| claim.topics.contains(topic).then_some(*id);
    members.iter().filter_map(wants).collect()
}

fn range(
    members: &BTreeMap<MemberId, Claim>,
    topics: &BTreeMap<Arc<str>, u32>,
    assignment: &mut Assignment,
) {
    for (topic, partitions) in topics {
        let subscribers = subscribers(members, topic);
        let count = subscribers.len() as u32;
        let mut next = 0;
        for (at, id) in (0..).zip(&subscribers) {
            let share = partitions / count + u32::from(at < partitions % count);
            let places = (next..next + share).map(|partition| (Arc::clone(topic), partition));
            assignment.entry(*id).or_default().extend(places);
            next += share;
        }
    }
}

fn round_robin(
    members: &BTreeMap<MemberId, Claim>,
    topics: &BTreeMap<Arc<str>, u32>,
    assignment: &mut Assignment,
) {
    let ids: Vec<MemberId> = members.keys().copied().collect();
    let mut next = 0;
    for (topic, partitions) in topics {
        if subscribers(members, topic).is_empty() {
            continue;
        }
        for partition in 0..*partitions {
            // Ends: one of the members wants the topic.
            while !members[&ids[next % ids.len()]].topics.contains(topic) {
                next += 1;
            }
            let id = ids[next % ids.len()];
            assignment.entry(id).or_default().insert((Arc::clone(topic), partition));
            next += 1;
        }
    }
}

/// Each member keeps what it has; the rest goes to whoever has least; then partitions move from
/// who has more to who has less by at least two.
fn sticky(
    members: &BTreeMap<MemberId, Claim>,
    topics: &BTreeMap<Arc<str>, u32>,
    assignment: &mut Assignment,
) {
    let mut owners: BTreeMap<Place, MemberId> = BTreeMap::new();
    for (id, claim) in members {
        for place in &claim.owned {
            let exists = topics.get(&place.0).is_some_and(|count| place.1 < *count);
            // Of two that claim one partition, only one can have been right.
            if exists && claim.topics.contains(&place.0) && !owners.contains_key(place) {
                owners.insert(place.clone(), *id);
                assignment.entry(*id).or_default().insert(place.clone());
            }
        }
    }
    for (topic, partitions) in topics {
        let subscribers = subscribers(members, topic);
        for partition in 0..*partitions {
            let place = (Arc::clone(topic), partition);
            let least = subscribers.iter().min_by_key(|id| (assignment[*id].len(), **id));
            if let Some(least) = least.filter(|_| !owners.contains_key(&place)) {
                assignment.entry(*least).or_default().insert(place.clone());
                owners.insert(place, *least);
            }
        }
    }
    // Ends: each move makes the sum of the squares of the members' counts smaller.
    while let Some((place, from, to)) = next_move(members, assignment) {
        assignment.entry(from).or_default().remove(&place);
        assignment.entry(to).or_default().insert(place);
    }
}

/// A partition that makes the assignment more even when it moves.
fn next_move(
    members: &BTreeMap<MemberId, Claim>,
    assignment: &Assignment,
) -> Option<(Place, MemberId, MemberId)> {
    let mut by_load: Vec<(usize, MemberId)> =
        assignment.iter().map(|(id, places)| (places.len(), *id)).collect();
    by_load.sort_unstable();
    for (load, from) in by_load.iter().rev() {
        for (least, to) in &by_load {
            if least + 1 >= *load {
                break;
            }
            let wanted = |place: &&Place| members[to].topics.contains(&place.0);
            // Its own partitions of before are the last that a member gives away.
            let mut places = assignment[from].iter().filter(wanted);
            let fresh = places.clone().find(|place| !members[from].owned.contains(*place));
            if let Some(place) = fresh.or_else(|| places.next_back()) {
                return Some((place.clone(), *from, *to));
            }
        }
    }
    None
}
