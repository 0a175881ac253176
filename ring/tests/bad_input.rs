//! Input that makes no sense gets a typed error or the documented degraded answer, never a panic.

mod common;

use std::sync::Arc;

use common::topology;
use proptest::prelude::*;
use voussoir_ring::compat::{cassandra, ketama, nginx, redis};
use voussoir_ring::geo::{Composite, Geo, Prefix, Region};
use voussoir_ring::range::{MAX_KEY_BYTES, RangeMap};
use voussoir_ring::{
    BuildError, Degraded, GeoError, HashRing, Jump, MAX_MAGLEV_TABLE, MAX_NODES, MAX_POINTS,
    MAX_REPLICAS, Maglev, Memento, Modulo, Node, Owners, Partitioner, Published, RangeError,
    Rendezvous, RingConfig, StaleEpoch, Topology, TopologyError, Weight,
};

#[test]
fn an_empty_topology_is_legal_and_places_nothing() {
    let empty = topology(0);
    assert!(empty.is_empty() && empty.zones() == 0 && empty.target_share(1) <= 0.0);
    assert_eq!(HashRing::new(&empty).unwrap_err(), BuildError::NoNodes);
    assert_eq!(Jump::new(&empty).unwrap_err(), BuildError::NoNodes);
    assert_eq!(Rendezvous::new(&empty).unwrap_err(), BuildError::NoNodes);
    assert_eq!(Maglev::new(&empty).unwrap_err(), BuildError::NoNodes);
    assert_eq!(Memento::new(&empty).unwrap_err(), BuildError::NoNodes);
    assert_eq!(Modulo::new(&empty).unwrap_err(), BuildError::NoNodes);
}

#[test]
fn topologies_refuse_duplicates_strangers_and_crowds() {
    let three = topology(3);
    assert_eq!(three.with(Node::new(1)), Err(TopologyError::DuplicateNode(1)));
    assert_eq!(three.without(9), Err(TopologyError::UnknownNode(9)));
    assert_eq!(three.replacing(Node::new(9)), Err(TopologyError::UnknownNode(9)));
    let crowd = Topology::new(1, (0..=MAX_NODES as u64).map(Node::new));
    assert_eq!(crowd, Err(TopologyError::TooManyNodes(MAX_NODES + 1)));
    let endless = Topology::new(1, (0..).map(Node::new));
    assert!(endless.is_err(), "an endless list is cut, not collected");
    let last = Topology::new(u64::MAX, [Node::new(1)]).unwrap();
    assert_eq!(last.with(Node::new(2)), Err(TopologyError::EpochExhausted));
}

#[test]
fn the_last_epoch_has_no_next() {
    let map = RangeMap::new(u64::MAX - 1, &[1]).unwrap().split(b"m").unwrap();
    assert_eq!(map.epoch(), u64::MAX);
    let ids = [map.range(b"a").id, map.range(b"z").id];
    assert_eq!(map.split(b"t"), Err(RangeError::EpochExhausted));
    assert_eq!(map.merge(ids[0]), Err(RangeError::EpochExhausted));
    assert_eq!(map.assign(ids[1], &[2]), Err(RangeError::EpochExhausted));
}

proptest! {
    #[test]
    fn a_weight_is_in_range_or_refused(ratio in any::<f64>(), milli in any::<u32>()) {
        if let Ok(weight) = Weight::ratio(ratio) {
            prop_assert!((1..=1_000_000).contains(&weight.as_milli()));
            prop_assert!((f64::from(weight.as_milli()) - ratio * 1000.0).abs() <= 0.5);
        } else {
            prop_assert!(!(0.001..=1000.0).contains(&ratio));
        }
        prop_assert_eq!(Weight::milli(milli).is_ok(), (1..=1_000_000).contains(&milli));
    }

    #[test]
    fn any_key_and_any_count_is_answered(
        key in prop::collection::vec(any::<u8>(), 0..300),
        n in any::<usize>(),
    ) {
        let ring = HashRing::new(&topology(4)).unwrap();
        let owners = ring.owners(&key, n);
        prop_assert_eq!(owners.len(), n.min(4));
        prop_assert_eq!(owners.degraded().is_some(), n > 4);
        let _ = (redis::slot(&key), cassandra::token(&key), ketama::hash(&key));
    }
}

#[test]
fn more_replicas_than_nodes_or_than_a_list_holds_is_said() {
    let ring = HashRing::new(&topology(40)).unwrap();
    let owners = ring.owners(b"k", 20);
    assert_eq!(owners.len(), MAX_REPLICAS);
    let told = Some(Degraded::FewerNodes { wanted: 20, found: MAX_REPLICAS });
    assert_eq!(owners.degraded(), told);
    assert!(ring.owners(b"k", 0).is_empty());
}

#[test]
fn tables_too_large_are_refused_before_they_are_built() {
    let heavy = (0..100).map(|id| Node::new(id).weighing(Weight::MAX));
    let heavy = Topology::new(1, heavy).unwrap();
    let wanted = 100 * 160 * 1000;
    let what = "the ring's virtual nodes";
    let refused = BuildError::TooLarge { what, wanted, max: MAX_POINTS };
    let built = if wanted > MAX_POINTS { Some(refused) } else { None };
    assert_eq!(HashRing::new(&heavy).err(), built);
    let mut config = RingConfig::default();
    config.virtual_nodes = 65_536;
    assert!(matches!(
        HashRing::with_config(&topology(1000), &config),
        Err(BuildError::TooLarge { .. })
    ));
    for virtual_nodes in [0, 65_537, u32::MAX] {
        config.virtual_nodes = virtual_nodes;
        let refused = HashRing::with_config(&topology(1), &config);
        assert!(matches!(refused, Err(BuildError::OutOfRange { field: "virtual_nodes", .. })));
    }
    let three = topology(3);
    assert_eq!(Maglev::with_table(&three, 65_536).unwrap_err(), BuildError::NotPrime(65_536));
    for size in [0, 1, 3, MAX_MAGLEV_TABLE + 1, u32::MAX] {
        let refused = Maglev::with_table(&three, size);
        assert!(matches!(refused, Err(BuildError::OutOfRange { .. })), "{size}");
    }
    assert_eq!(Maglev::with_table(&three, 5).unwrap().memory_bytes(), 10);
}

#[test]
fn algorithms_without_weights_refuse_them() {
    let uneven = topology(2).with(Node::new(7).weighing(Weight::MIN)).unwrap();
    assert!(matches!(Jump::new(&uneven), Err(BuildError::UnequalWeights { .. })));
    assert!(matches!(Modulo::new(&uneven), Err(BuildError::UnequalWeights { .. })));
    assert!(matches!(Memento::new(&uneven), Err(BuildError::UnequalWeights { .. })));
    assert!(HashRing::new(&uneven).is_ok_and(|ring| ring.points() == 321), "at least one point");
}

#[test]
fn memento_keeps_its_state_when_it_refuses() {
    let mut memento = Memento::new(&topology(2)).unwrap();
    let before = memento.clone();
    assert_eq!(memento.remove(9), Err(BuildError::UnknownNode(9)));
    assert_eq!(memento.add(Node::new(1)), Err(BuildError::Duplicate("node 1".into())));
    assert!(memento.add(Node::new(5).weighing(Weight::MAX)).is_err());
    assert_eq!(memento.buckets(), before.buckets());
    memento.remove(0).unwrap();
    assert_eq!(memento.remove(1), Err(BuildError::LastNode));
    let two = topology(2);
    for (buckets, removals) in [
        (&[0, 0][..], &[][..]),
        (&[0], &[]),
        (&[0, 7], &[]),
        (&[0, 1, 2], &[3]),
        (&[0, 1, 2], &[2, 2]),
        (&[0, 1], &[0]),
        (&[], &[]),
    ] {
        assert!(Memento::restore(&two, buckets, removals).is_err(), "{buckets:?} {removals:?}");
    }
    assert!(Memento::restore(&two, &[0, 9, 1], &[1]).is_ok());
}

#[test]
fn range_maps_refuse_what_would_not_cover_every_key() {
    let map = RangeMap::new(1, &[1, 2]).unwrap();
    assert_eq!(RangeMap::new(1, &[]), Err(RangeError::BadOwners));
    assert_eq!(RangeMap::new(1, &[1, 1]), Err(RangeError::BadOwners));
    assert_eq!(map.split(b""), Err(RangeError::SplitAtStart(0)));
    let long = vec![0; MAX_KEY_BYTES + 1];
    assert_eq!(map.split(&long), Err(RangeError::KeyTooLong(long.len())));
    assert_eq!(map.merge(0), Err(RangeError::NoNeighbour(0)));
    assert_eq!(map.merge(77), Err(RangeError::UnknownRange(77)));
    let map = map.split(b"m").unwrap();
    let (left, right) = (map.ranges()[0].id, map.ranges()[1].id);
    let moved = map.assign(right, &[3]).unwrap();
    assert_eq!(moved.merge(left), Err(RangeError::OwnersDiffer { left, right }));
    assert_eq!(map.assign(left, &[4, 4]), Err(RangeError::BadOwners));
}

proptest! {
    /// Whatever is split and merged, every key is in exactly the range that a search by hand finds.
    #[test]
    fn ranges_always_cover_every_key_once(
        acts in prop::collection::vec(
            (any::<bool>(), prop::collection::vec(0..4_u8, 0..12)),
            1..60,
        ),
        keys in prop::collection::vec(prop::collection::vec(0..4_u8, 0..14), 1..40),
    ) {
        let mut map = RangeMap::new(1, &[1]).unwrap();
        for (split, key) in acts {
            let next = if split { map.split(&key) } else { map.merge(map.range(&key).id) };
            if let Ok(next) = next {
                prop_assert_eq!(next.epoch(), map.epoch() + 1);
                map = next;
            }
            let ranges = map.ranges();
            prop_assert!(ranges[0].start.is_empty());
            prop_assert!(ranges.windows(2).all(|pair| pair[0].start < pair[1].start));
        }
        for key in keys {
            let by_hand = map.ranges().iter().rfind(|range| *range.start <= *key).unwrap();
            prop_assert_eq!(map.range(&key), by_hand);
        }
    }
}

/// Keys that share their first bytes, as `customer/000017` does, cost about what others cost: a
/// search each, and no walk over the ranges of the prefix.
#[test]
fn a_common_prefix_makes_no_lookup_slow() {
    const RANGES: u64 = 2_000;
    let map = |key: fn(u64) -> Vec<u8>| {
        let whole = RangeMap::new(1, &[1]).unwrap();
        (1..RANGES).fold(whole, |map, n| map.split(&key(n)).unwrap())
    };
    let spread = |n: u64| (n << 40).to_be_bytes().to_vec();
    let prefixed = |n: u64| format!("customer/{n:06}").into_bytes();
    let fastest = |map: &RangeMap, key: fn(u64) -> Vec<u8>| {
        let keys: Vec<_> = (0..RANGES).map(key).collect();
        let once = || {
            let began = std::time::Instant::now();
            for key in &keys {
                std::hint::black_box(map.range(key).id);
            }
            began.elapsed()
        };
        (0..20).map(|_| once()).min().unwrap()
    };
    let (spread, prefixed) = (fastest(&map(spread), spread), fastest(&map(prefixed), prefixed));
    // 2 to 3 times: two searches, and comparisons of whole keys. A walk costs 50 times as much.
    assert!(prefixed < 15 * spread, "{prefixed:?} with a common prefix, {spread:?} without");
}

#[test]
fn geography_answers_or_says_why_not() {
    let ring = |from: u64, to: u64| -> Arc<dyn Partitioner> {
        let nodes = Topology::new(1, (from..to).map(Node::new)).unwrap();
        Arc::new(HashRing::new(&nodes).unwrap())
    };
    assert_eq!(Geo::new([]).unwrap_err(), GeoError::NoRegions);
    let twice = [Region::new("eu", ring(0, 1)), Region::new("eu", ring(1, 2))];
    assert_eq!(Geo::new(twice).unwrap_err(), GeoError::DuplicateRegion("eu".into()));
    let nowhere = Geo::new([Region::new("eu", ring(0, 1)).or_else("mars")]);
    assert_eq!(nowhere.unwrap_err(), GeoError::UnknownRegion("mars".into()));
    let geo = Geo::new([
        Region::new("eu", ring(0, 3)).or_else("us").or_else("asia"),
        Region::new("us", ring(10, 13)),
        Region::new("asia", ring(20, 23)),
    ])
    .unwrap();
    assert_eq!(geo.owner("mars", b"k"), Err(GeoError::UnknownRegion("mars".into())));
    assert!(geo.owner("eu", b"k").unwrap() < 3);
    let down = geo.with_down("eu", true).unwrap();
    assert!((10..13).contains(&down.owner("eu", b"k").unwrap()));
    let owners = down.owners("eu", b"k", 4).unwrap();
    assert!(owners[..3].iter().all(|id| (10..13).contains(id)) && owners[3] >= 20);
    let told = Some(Degraded::OutsideRegion { inside: 0, outside: 4 });
    assert_eq!(owners.degraded(), told);
    let down = down.with_down("us", true).unwrap();
    assert_eq!(down.owner("us", b"k"), Err(GeoError::AllDown("us".into())));
    assert!(down.owner("eu", b"k").unwrap() >= 20);
    assert!(Composite::new(geo.clone(), Arc::new(Prefix(b'/')), "mars").is_err());
    let composite = Composite::new(down, Arc::new(Prefix(b'/')), "us").unwrap();
    assert!(composite.owner(b"asia/k") >= 20);
    assert!(
        (10..13).contains(&composite.owner(b"no region")),
        "the default answers when all else is down"
    );
    assert_eq!(composite.owners(b"us/k", 9).len(), 3);
}

#[test]
fn compatible_placements_refuse_bad_servers() {
    assert_eq!(ketama::Ketama::new(&[]).unwrap_err(), BuildError::NoNodes);
    let server = |id, memory| ketama::Server::new(id, format!("10.0.0.{id}:1"), memory);
    assert!(ketama::Ketama::new(&[server(1, 0)]).is_err());
    assert!(ketama::Ketama::new(&[server(1, 1), server(1, 1)]).is_err());
    let server = |id, weight| nginx::Server::new(id, format!("10.0.0.{id}:1"), weight);
    assert!(nginx::Consistent::new(&[]).is_err());
    assert!(nginx::Consistent::new(&[server(1, 0)]).is_err());
    assert!(nginx::Consistent::new(&[server(1, u32::MAX)]).is_err());
    assert!(nginx::Consistent::new(&[server(1, 1), server(1, 1)]).is_err());
    assert!(cassandra::TokenRing::new([]).is_err());
    assert!(cassandra::TokenRing::new([(5, 1), (5, 2)]).is_err());
    for ranges in [
        &[(0, 16_382, &[1][..])][..],
        &[(0, 16_384, &[1])],
        &[(0, 16_383, &[])],
        &[(0, 16_383, &[1, 1])],
        &[(9, 3, &[1])],
        &[(0, 16_383, &[1]), (5, 5, &[2])],
    ] {
        assert!(redis::SlotMap::new(ranges.iter().copied()).is_err(), "{ranges:?}");
    }
}

#[test]
fn an_old_epoch_is_never_published() {
    let published = Published::new(5, 'a');
    let stale = StaleEpoch { current: 5, offered: 5 };
    assert_eq!(published.publish(5, 'b'), Err(stale));
    let older = StaleEpoch { current: 5, offered: 4 };
    assert_eq!((published.publish(4, 'b'), published.epoch()), (Err(older), 5));
    let mut reader = published.reader();
    assert_eq!((published.publish(6, 'c'), *reader.get(), reader.epoch()), (Ok(()), 'c', 6));
    assert_eq!(published.with(|value| *value), 'c');
}

/// No lock is held while foreign code runs: it may publish from inside, and may panic.
#[test]
fn foreign_code_may_call_back_and_panic() {
    #[derive(Debug)]
    struct Panics;
    impl Partitioner for Panics {
        fn owner(&self, _: &[u8]) -> u64 {
            panic!("owner")
        }
        fn owners(&self, _: &[u8], _: usize) -> Owners {
            panic!("owners")
        }
    }
    let published = Published::new(1, 'a');
    let seen = published.with(|value| published.publish(2, 'b').map(|()| *value));
    assert_eq!((seen, published.with(|value| *value)), (Ok('a'), 'b'));
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        published.with(|_| panic!("in the closure"));
    }));
    assert!(panicked.is_err());
    assert_eq!((published.publish(3, 'c'), published.epoch()), (Ok(()), 3));
    let sound = Arc::new(HashRing::new(&topology(3)).unwrap());
    let geo = Geo::new([Region::new("eu", Arc::new(Panics)), Region::new("us", sound)]).unwrap();
    let asked = std::panic::AssertUnwindSafe(|| geo.owner("eu", b"k"));
    assert!(std::panic::catch_unwind(asked).is_err());
    assert!(geo.with_down("eu", true).unwrap().owner("us", b"k").is_ok());
}

/// Many writers: the newest epoch wins, and no reader ever sees one go back.
#[test]
fn epochs_only_grow_between_threads() {
    let published = Published::new(0, 0_u64);
    std::thread::scope(|scope| {
        for writer in 0..2_u64 {
            let published = published.clone();
            scope.spawn(move || {
                for nth in 1..=20_000_u64 {
                    let epoch = nth * 2 + writer;
                    let _ = published.publish(epoch, epoch);
                }
            });
        }
        let mut reader = published.reader();
        let mut last = 0;
        while last < 40_001 {
            let (value, epoch) = (*reader.get(), reader.epoch());
            assert!(last <= value && value <= epoch);
            last = value;
        }
    });
    assert_eq!(published.epoch(), 40_001);
}
