//! Regions whose rings share nodes, and members that own nothing.

use std::sync::Arc;

use voussoir_ring::geo::{Geo, Region};
use voussoir_ring::testing::keys;
use voussoir_ring::{
    Degraded, HashRing, Maglev, Node, Partitioner, Placement, RingConfig, Topology, Weight,
};

fn ring(ids: impl IntoIterator<Item = u64>) -> Arc<HashRing> {
    let nodes = Topology::new(1, ids.into_iter().map(Node::new)).unwrap();
    Arc::new(HashRing::new(&nodes).unwrap())
}

#[test]
fn a_list_over_regions_that_share_nodes_is_as_long_as_asked() {
    let geo = Geo::new([
        Region::new("eu", ring([1, 2])).or_else("all").or_else("more"),
        Region::new("all", ring([1, 2, 3, 4])),
        Region::new("more", ring([2, 4, 5, 6, 7])),
    ])
    .unwrap();
    for key in keys(1000) {
        for n in 1..=7 {
            let owners = geo.owners("eu", &key, n).unwrap();
            assert_eq!(owners.len(), n, "{owners:?} for {key:?}");
            let outside = n.saturating_sub(2);
            let told = Degraded::OutsideRegion { inside: n.min(2), outside };
            assert_eq!(owners.degraded(), (outside > 0).then_some(told));
            assert!(owners[..n.min(2)].iter().all(|&id| id <= 2), "its own nodes come first");
        }
        let all = geo.owners("eu", &key, 8).unwrap();
        assert_eq!(all.degraded(), Some(Degraded::FewerNodes { wanted: 8, found: 7 }));
    }
}

/// A weight of 0.001 beside 1000 is a millionth of the keys, less than one slot of the table.
#[test]
fn nodes_that_own_nothing_are_named() {
    let weighing = |id, milli| Node::new(id).weighing(Weight::milli(milli).unwrap());
    let uneven =
        Topology::new(1, [weighing(1, 1_000_000), weighing(2, 1), weighing(3, 2)]).unwrap();
    let maglev = Maglev::new(&uneven).unwrap();
    assert_eq!(maglev.without_keys(), [2, 3]);
    assert!(keys(10_000).all(|key| maglev.owner(&key) == 1));
    // A ring gives each node a point of its own, so only a shared position takes it away.
    let mut config = RingConfig::default();
    config.virtual_nodes = 1;
    let crowd = Topology::new(1, (0..60_000).map(Node::new)).unwrap();
    let (small, one) = (HashRing::new(&uneven).unwrap(), HashRing::with_config(&crowd, &config));
    assert_eq!(small.without_keys(), []);
    let one = one.unwrap();
    assert_eq!(one.points() + one.without_keys().len(), 60_000);
    // Fewer slots than nodes: most hold nothing.
    let ten = Topology::new(1, (0..10).map(Node::new)).unwrap();
    let placement = Placement::slots(&Maglev::new(&ten).unwrap(), 1, 4, 1).unwrap();
    let held: Vec<u64> = placement.shares().iter().map(|&(id, _)| id).collect();
    let without = placement.without_keys(&ten);
    assert_eq!(held.len() + without.len(), 10);
    assert!(without.iter().all(|id| !held.contains(id)));
}
