//! Rules that every algorithm keeps: the exported suite, movement, balance, spreading.

mod common;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use common::{ids, topology, zoned};
use proptest::prelude::*;
use voussoir_ring::compat::{cassandra, ketama, nginx, redis};
use voussoir_ring::geo::{Composite, Geo, Prefix, Region};
use voussoir_ring::range::RangeMap;
use voussoir_ring::testing::{conforms, keys, movement};
use voussoir_ring::{
    Degraded, HashRing, Jump, Maglev, Memento, Modulo, Node, Partitioner, Rendezvous, RingConfig,
    Topology, Weight,
};

type Build = fn(&Topology) -> Box<dyn Partitioner>;

/// The consistent algorithms that know weights and any membership.
const GENERAL: [(&str, Build); 3] = [
    ("ring", |t| Box::new(HashRing::new(t).unwrap())),
    ("rendezvous", |t| Box::new(Rendezvous::new(t).unwrap())),
    ("maglev", |t| Box::new(Maglev::new(t).unwrap())),
];

/// The ones for nodes of one weight.
const EQUAL: [(&str, Build); 3] = [
    ("jump", |t| Box::new(Jump::new(t).unwrap())),
    ("memento", |t| Box::new(Memento::new(t).unwrap())),
    ("modulo", |t| Box::new(Modulo::new(t).unwrap())),
];

#[test]
fn every_partitioner_conforms() {
    for nodes in [1, 2, 3, 7, 40] {
        for topology in [topology(nodes), zoned(nodes, 3, 2)] {
            for (_, build) in GENERAL.into_iter().chain(EQUAL) {
                conforms(&*build(&topology), &ids(&topology));
            }
        }
    }
}

#[test]
fn every_other_placement_conforms() {
    let ring = |range: std::ops::Range<u64>| -> Arc<dyn Partitioner> {
        Arc::new(HashRing::new(&Topology::new(1, range.map(Node::new)).unwrap()).unwrap())
    };
    let geo = Geo::new([
        Region::new("eu", ring(0..3)).or_else("us"),
        Region::new("us", ring(3..9)).or_else("eu"),
    ]);
    let composite = Composite::new(geo.unwrap(), Arc::new(Prefix(b':')), "us").unwrap();
    conforms(&composite, &(0..9).collect::<Vec<_>>());
    let map = RangeMap::new(1, &[4, 5]).unwrap().split(b"key:8").unwrap();
    conforms(&map.assign(2, &[6]).unwrap(), &[4, 5, 6]);
    let servers: Vec<_> = (0..5).map(|n| ketama::Server::new(n, format!("{n}:1"), 1)).collect();
    conforms(&ketama::Ketama::new(&servers).unwrap(), &[0, 1, 2, 3, 4]);
    let servers: Vec<_> = (0..5).map(|n| nginx::Server::new(n, format!("h{n}:80"), 2)).collect();
    conforms(&nginx::Consistent::new(&servers).unwrap(), &[0, 1, 2, 3, 4]);
    let tokens = (-20..20_i64).map(|n| (n << 58, n.unsigned_abs() % 4));
    conforms(&cassandra::TokenRing::new(tokens).unwrap(), &[0, 1, 2, 3]);
    let slots = redis::SlotMap::new([(0, 8191, &[1, 2][..]), (8192, 16383, &[2, 3])]).unwrap();
    conforms(&slots, &[1, 2, 3]);
}

/// A join moves keys to the node that joins and a leave from the one that leaves, nothing else.
#[test]
fn nothing_moves_without_need() {
    for (name, build) in [GENERAL[0], GENERAL[1]] {
        for nodes in [1, 2, 10, 60] {
            let before = topology(nodes);
            let after = before.with(Node::new(7_777)).unwrap();
            let (small, large) = (build(&before), build(&after));
            let (moved, needless) = movement(&*small, &*large, &[7_777], &[], 20_000);
            assert!(moved > 0.0 && needless <= 0.0, "{name} {nodes} join: {needless}");
            let (moved, needless) = movement(&*large, &*small, &[], &[7_777], 20_000);
            assert!(moved > 0.0 && needless <= 0.0, "{name} {nodes} leave: {needless}");
        }
    }
    for nodes in [1, 2, 10, 60] {
        let before = topology(nodes);
        let after = before.with(Node::new(7_777)).unwrap();
        let (small, large) = (Jump::new(&before).unwrap(), Jump::new(&after).unwrap());
        let (_, needless) = movement(&small, &large, &[7_777], &[], 20_000);
        assert!(needless <= 0.0, "jump {nodes}: {needless}");
    }
}

/// The test of the test: an algorithm that is not consistent is caught.
#[test]
fn modulo_moves_nearly_everything() {
    let before = topology(10);
    let after = before.with(Node::new(7_777)).unwrap();
    let (small, large) = (Modulo::new(&before).unwrap(), Modulo::new(&after).unwrap());
    let (_, needless) = movement(&small, &large, &[7_777], &[], 20_000);
    assert!(needless > 0.8, "{needless}");
}

#[test]
fn memento_moves_only_what_it_must_through_any_history() {
    let mut memento = Memento::new(&topology(50)).unwrap();
    let leave = [3, 49, 17, 0, 48, 25, 26, 12];
    for id in leave {
        let before = memento.clone();
        memento.remove(id).unwrap();
        let (moved, needless) = movement(&before, &memento, &[], &[id], 20_000);
        assert!(moved > 0.0 && needless <= 0.0, "leave of {id}: {needless}");
        conforms(&memento, &ids(memento.topology()));
    }
    let copy = Memento::restore(memento.topology(), memento.buckets(), memento.removals()).unwrap();
    assert!(movement(&memento, &copy, &[], &[], 20_000).0 <= 0.0);
    for id in [3, 900, 901, 0, 902, 903, 904, 905, 906] {
        let before = memento.clone();
        memento.add(Node::new(id)).unwrap();
        let (moved, needless) = movement(&before, &memento, &[id], &[], 20_000);
        assert!(moved > 0.0 && needless <= 0.0, "join of {id}: {needless}");
    }
    assert!(memento.removals().is_empty());
}

/// Load follows weight, also through removals in Memento.
#[test]
fn load_follows_weight() {
    let weights = [500, 1000, 2000, 4000];
    let nodes = weights.iter().zip(1..);
    let nodes = nodes.map(|(&milli, id)| Node::new(id).weighing(Weight::milli(milli).unwrap()));
    let uneven = Topology::new(1, nodes).unwrap();
    let mut config = RingConfig::default();
    config.virtual_nodes = 4000;
    let ring = HashRing::with_config(&uneven, &config).unwrap();
    let rendezvous = Rendezvous::new(&uneven).unwrap();
    let maglev = Maglev::new(&uneven).unwrap();
    for (name, of) in
        [("ring", &ring as &dyn Partitioner), ("rendezvous", &rendezvous), ("maglev", &maglev)]
    {
        let loads = loads(of, 100_000);
        for node in uneven.nodes() {
            let (share, want) = (loads[&node.id], uneven.target_share(node.id));
            assert!((share / want - 1.0).abs() < 0.06, "{name}: {share} for {want}");
        }
    }
    let mut memento = Memento::new(&topology(20)).unwrap();
    for id in [1, 5, 19, 7, 3] {
        memento.remove(id).unwrap();
    }
    let most = loads(&memento, 100_000).values().copied().fold(0.0, f64::max);
    assert!(most * 15.0 < 1.06, "{most}");
}

fn loads(partitioner: &dyn Partitioner, count: u64) -> HashMap<u64, f64> {
    let mut loads = HashMap::new();
    for key in keys(count) {
        *loads.entry(partitioner.owner(&key)).or_insert(0.0) += 1.0 / count as f64;
    }
    loads
}

#[test]
fn warnings_say_what_could_not_be_kept() {
    let ring = |topology: &Topology| HashRing::new(topology).unwrap();
    let plain = ring(&topology(5));
    assert_eq!(plain.owners(b"k", 5).degraded(), None, "zones that are not named are not missed");
    assert_eq!(
        plain.owners(b"k", 6).degraded(),
        Some(Degraded::FewerNodes { wanted: 6, found: 5 })
    );
    let zones = ring(&zoned(12, 3, 2));
    assert_eq!(zones.owners(b"k", 3).degraded(), None);
    assert_eq!(
        zones.owners(b"k", 5).degraded(),
        Some(Degraded::SharedZone { replicas: 5, zones: 3 })
    );
    assert_eq!(
        zones.owners(b"k", 7).degraded(),
        Some(Degraded::SharedRack { replicas: 7, racks: 6 })
    );
}

fn any_topology() -> impl Strategy<Value = Topology> {
    let node = (0..5_u8, 0..3_u8, 100..3000_u32);
    prop::collection::vec(node, 1..24).prop_map(|nodes| {
        let node = |(id, (zone, rack, milli)): (usize, (u8, u8, u32))| {
            Node::new(id as u64 * 7)
                .in_zone(format!("z{zone}"))
                .in_rack(format!("r{rack}"))
                .weighing(Weight::milli(milli).unwrap())
        };
        Topology::new(1, nodes.into_iter().enumerate().map(node)).unwrap()
    })
}

/// The most zones and racks that `n` replicas can have, one zone for each as long as there are.
fn check_spread(topology: &Topology, owners: &[u64]) {
    let mut zones: HashMap<&str, usize> = HashMap::new();
    let mut racks: HashSet<(&str, &str)> = HashSet::new();
    let mut size: HashMap<&str, usize> = HashMap::new();
    let mut in_zone: HashMap<&str, HashSet<&str>> = HashMap::new();
    for node in topology.nodes() {
        *size.entry(&node.zone).or_default() += 1;
        in_zone.entry(&node.zone).or_default().insert(&node.rack);
    }
    for &id in owners {
        let node = topology.get(id).unwrap();
        *zones.entry(&node.zone).or_default() += 1;
        racks.insert((&node.zone, &node.rack));
    }
    let most = zones.values().copied().max().unwrap_or(0);
    for (zone, nodes) in size {
        let has = zones.get(zone).copied().unwrap_or(0);
        assert!(has + 1 >= most || has == nodes, "{zone} has {has} of {nodes}, another {most}");
        let used = racks.iter().filter(|(of, _)| *of == zone).count();
        assert_eq!(used, has.min(in_zone[zone].len()), "racks of {zone}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn replicas_spread_as_far_as_the_topology_allows(topology in any_topology(), n in 1..9_usize) {
        for (name, build) in GENERAL {
            let partitioner = build(&topology);
            for key in keys(20) {
                let owners = partitioner.owners(&key, n);
                prop_assert_eq!(owners.len(), n.min(topology.len()), "{}", name);
                check_spread(&topology, &owners);
            }
        }
    }

    /// The table answers what a search among the sorted points answers.
    #[test]
    fn the_table_agrees_with_the_points(topology in any_topology(), vnodes in 1..300_u32) {
        let mut config = RingConfig::default();
        config.virtual_nodes = vnodes;
        let ring = HashRing::with_config(&topology, &config).unwrap();
        let points: Vec<(u64, u64)> = ring.iter().collect();
        prop_assert!(points.windows(2).all(|pair| pair[0].0 < pair[1].0));
        let around = |end: u64| [end, end.wrapping_add(1), end - 1, end & !0xff_ffff];
        let near = points.iter().flat_map(|&(end, _)| around(end));
        let hashed = keys(300).map(|key| voussoir_ring::hash::key(&key));
        let positions = near.chain([0, 1, u64::MAX]).chain(hashed);
        for position in positions {
            let at = points.partition_point(|&(end, _)| end < position);
            let want = points.get(at).unwrap_or(&points[0]).1;
            prop_assert_eq!(ring.owner_at(position), want, "{:x}", position);
            prop_assert_eq!(ring.owners_at(position, 1)[0], want, "{:x}", position);
        }
        let placement = ring.placement(2);
        for key in keys(100) {
            let position = voussoir_ring::hash::key(&key);
            prop_assert_eq!(placement.owners_at(position), ring.owners(&key, 2));
        }
    }
}

/// Enough nodes that a slot has no room for a place, and that a zone bit mask is too short.
#[test]
fn many_nodes_and_many_zones() {
    let nodes = (0..65_535).map(|id| Node::new(id).in_zone(format!("z{}", id % 100)));
    let mut config = RingConfig::default();
    config.virtual_nodes = 3;
    let topology = Topology::new(1, nodes).unwrap();
    let ring = HashRing::with_config(&topology, &config).unwrap();
    let points: Vec<(u64, u64)> = ring.iter().collect();
    for key in keys(20_000) {
        let position = voussoir_ring::hash::key(&key);
        let at = points.partition_point(|&(end, _)| end < position);
        assert_eq!(ring.owner_at(position), points.get(at).unwrap_or(&points[0]).1);
    }
    for key in keys(500) {
        check_spread(&topology, &ring.owners(&key, 16));
    }
}
