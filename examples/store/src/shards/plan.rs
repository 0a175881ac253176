//! Which replicas move to a node that is added: its even part of the data, and no more.

use std::collections::{BTreeMap, BTreeSet};

use super::map::{Change, ShardInfo, ShardMap};

/// The moves that give a new node its part.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    pub moves: Vec<Change>,
    /// Part of all data, replicas counted, that the moves carry: 0 to 1.
    pub share: f64,
}

/// What is planned so far.
struct Draft<'a> {
    map: &'a ShardMap,
    keys: &'a BTreeMap<u64, u64>,
    /// Weight that each node holds.
    held: BTreeMap<u64, u64>,
    moved: BTreeSet<u64>,
}

impl Draft<'_> {
    /// An empty shard has a weight too: it may be filled later.
    fn weight(&self, shard: u64) -> u64 {
        self.keys.get(&shard).copied().unwrap_or(0).max(1)
    }

    /// The best replica to give away for the node that holds most: a shard that fits into `room`,
    /// the heaviest; where the new node is to lead more shards, first of those that `old` leads.
    fn best(&self, old: u64, new: u64, room: u64, is_to_lead: bool) -> Option<(u64, bool)> {
        let fits = |shard: &u64, info: &ShardInfo| {
            info.nodes.contains(&old)
                && !info.nodes.contains(&new)
                && !info.left.contains(&new)
                && !self.moved.contains(shard)
                && self.weight(*shard) <= room
        };
        let all = self.map.shards.iter().filter(|(shard, info)| fits(shard, info));
        let leads = |info: &ShardInfo| info.nodes.first() == Some(&old);
        let best = all.max_by_key(|(shard, info)| {
            (leads(info) == is_to_lead, self.weight(**shard), std::cmp::Reverse(**shard))
        });
        best.map(|(shard, info)| (*shard, leads(info)))
    }
}

/// Plans the moves to `new`, which is in the map, from `keys` in each shard. No more than an even
/// part of the data moves, by this count, and all of it moves to the new node.
pub fn fill_up(map: &ShardMap, keys: &BTreeMap<u64, u64>, new: u64) -> Plan {
    let nodes = map.nodes.len().max(1) as u64;
    let held = map.nodes.keys().map(|node| (*node, 0)).collect();
    let mut draft = Draft { map, keys, held, moved: BTreeSet::new() };
    for (shard, info) in &map.shards {
        for node in &info.nodes {
            let weight = draft.weight(*shard);
            *draft.held.entry(*node).or_default() += weight;
        }
    }
    let total: u64 = draft.held.values().sum();
    let part = total / nodes;
    let part_led = map.shards.len() as u64 / nodes;
    let led = map.shards.values().filter(|info| info.nodes.first() == Some(&new));
    let (mut led, mut carried) = (led.count() as u64, 0);
    let mut moves = Vec::new();
    loop {
        let room = part.saturating_sub(draft.held.get(&new).copied().unwrap_or(0));
        let mut donors: Vec<(u64, u64)> =
            draft.held.iter().filter(|(n, _)| **n != new).map(|(n, held)| (*held, *n)).collect();
        donors.sort_unstable_by(|one, other| other.cmp(one));
        let found = donors.into_iter().filter(|(held, _)| *held > part).find_map(|(_, old)| {
            draft.best(old, new, room, led < part_led).map(|(shard, leads)| (old, shard, leads))
        });
        let Some((old, shard, leads)) = found else { break };
        let weight = draft.weight(shard);
        led += u64::from(leads);
        carried += weight;
        draft.moved.insert(shard);
        *draft.held.entry(old).or_default() -= weight;
        *draft.held.entry(new).or_default() += weight;
        moves.push(Change::Move { shard, old, new });
    }
    Plan { moves, share: carried as f64 / total.max(1) as f64 }
}

/// The nodes for the right half of a shard that is split: those that answered the fewest requests,
/// and one that does not hold the left half before all others, to lead it. As many as hold the left
/// half, or fewer where fewer are in `requests`, which is of the nodes that are up.
pub fn apart(map: &ShardMap, requests: &BTreeMap<u64, u64>, shard: u64) -> Vec<u64> {
    let Some(info) = map.shards.get(&shard) else { return Vec::new() };
    let mut nodes: Vec<u64> =
        map.nodes.keys().copied().filter(|node| requests.contains_key(node)).collect();
    nodes.sort_by_key(|node| {
        let is_leader = info.nodes.first() == Some(node);
        (is_leader, info.nodes.contains(node), requests[node])
    });
    nodes.truncate(info.nodes.len());
    nodes
}

#[cfg(test)]
mod tests {
    use super::super::map::Address;
    use super::*;

    fn map(nodes: u64, hashes: u32) -> ShardMap {
        let address =
            Address { peers: ([127, 0, 0, 1], 1).into(), http: ([127, 0, 0, 1], 2).into() };
        let nodes = (1..=nodes).map(|id| (id, address)).collect();
        let mut map = ShardMap::default();
        map.apply(Change::Begin { nodes, hashes, replicas: 3 }).unwrap();
        map.apply(Change::AddNode { id: 99, address }).unwrap();
        for shard in 1..=map.last_shard {
            map.apply(Change::Opened { shard }).unwrap();
        }
        map
    }

    #[test]
    fn a_new_node_gets_its_part_and_nothing_else_moves() {
        for (nodes, hashes) in [(3, 16), (3, 1), (4, 16), (5, 64), (8, 7), (12, 256)] {
            let mut map = map(nodes, hashes);
            let keys: BTreeMap<u64, u64> =
                map.shards.keys().map(|id| (*id, 900 + id * 7919 % 200)).collect();
            let plan = fill_up(&map, &keys, 99);
            let even = 1.0 / (nodes + 1) as f64;
            assert!(plan.share <= even, "{nodes} {hashes}: {} of {even}", plan.share);
            // What is missing is less than one shard.
            let shard = 1100.0 / (keys.values().sum::<u64>() * 3) as f64;
            assert!(plan.share > even - 1.5 * shard, "{nodes} {hashes}: {} of {even}", plan.share);
            for change in plan.moves {
                map.apply(change).unwrap();
            }
            let led = map.shards.values().filter(|info| info.nodes[0] == 99).count() as u64;
            assert!(led <= map.shards.len() as u64 / (nodes + 1), "{nodes} {hashes}: leads {led}");
            let most = map
                .nodes
                .keys()
                .map(|node| map.shards.values().filter(|info| info.nodes.contains(node)).count());
            assert!(most.max().unwrap() as f64 <= 3.0 * map.shards.len() as f64 * even * 1.4 + 2.0);
        }
    }

    #[test]
    fn halves_are_led_by_different_nodes_and_held_by_different_ones() {
        let map = map(3, 16);
        let requests = BTreeMap::from([(1, 10), (2, 5), (3, 7), (99, 1)]);
        let left = map.shards[&17].nodes.clone();
        let right = apart(&map, &requests, 17);
        assert_eq!((right.len(), right[0]), (3, 99));
        assert!(!right.contains(&left[0]), "{left:?} {right:?}");
        // A node that does not answer has not had few requests.
        let requests = BTreeMap::from([(1, 10), (2, 5), (3, 7)]);
        assert!(!apart(&map, &requests, 17).contains(&99));
    }
}
