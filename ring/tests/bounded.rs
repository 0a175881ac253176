//! Bounded loads: the bound holds at every assignment, through releases and membership changes.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::topology;
use proptest::prelude::*;
use voussoir_ring::{Assignment, Bounded, BuildError, HashRing, Node, Topology, Weight};

/// `ceil(bound * total * weight / all weights)`, in integers.
fn capacity(bound_milli: u128, topology: &Topology, id: u64, total: u64) -> u64 {
    let all: u128 = topology.nodes().iter().map(|n| u128::from(n.weight.as_milli())).sum();
    let weight = u128::from(topology.get(id).unwrap().weight.as_milli());
    (bound_milli * u128::from(total) * weight).div_ceil(1000 * all) as u64
}

fn load(bounded: &Bounded, id: u64) -> u64 {
    bounded.stats().loads.iter().find(|(node, _)| *node == id).unwrap().1
}

#[derive(Clone, Debug)]
enum Act {
    Assign(u8),
    Release(u16),
    Join(u16),
    Leave(u16),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        12 => any::<u8>().prop_map(Act::Assign),
        4 => any::<u16>().prop_map(Act::Release),
        1 => (200..2000_u16).prop_map(Act::Join),
        1 => any::<u16>().prop_map(Act::Leave),
    ];
    prop::collection::vec(act, 1..400)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn no_assignment_exceeds_the_bound(bound in 1001..3000_u32, acts in acts()) {
        let mut topology = topology(4);
        let ring = |topology: &Topology| HashRing::new(topology).unwrap();
        let mut bounded = Bounded::new(ring(&topology), f64::from(bound) / 1000.0).unwrap();
        let mut held: Vec<Assignment> = Vec::new();
        for (nth, act) in acts.into_iter().enumerate() {
            match act {
                Act::Assign(key) => {
                    let assignment = bounded.assign(&[key % 8]);
                    let (id, total) = (assignment.node(), bounded.stats().total);
                    let most = capacity(bound.into(), &topology, id, total);
                    prop_assert!(load(&bounded, id) <= most, "{} of {most}", load(&bounded, id));
                    held.push(assignment);
                }
                Act::Release(which) if !held.is_empty() => {
                    drop(held.swap_remove(usize::from(which) % held.len()));
                }
                Act::Join(milli) => {
                    let weight = Weight::milli(milli.into()).unwrap();
                    topology = topology.with(Node::new(100 + nth as u64).weighing(weight)).unwrap();
                    bounded = bounded.over(ring(&topology));
                }
                Act::Leave(which) if topology.len() > 1 => {
                    let id = topology.nodes()[usize::from(which) % topology.len()].id;
                    topology = topology.without(id).unwrap();
                    bounded = bounded.over(ring(&topology));
                }
                _ => {}
            }
            // The counts are exactly what is held at nodes that are still there.
            let present = held.iter().filter(|one| topology.get(one.node()).is_some()).count();
            let stats = bounded.stats();
            prop_assert_eq!(stats.total, present as u64);
            prop_assert_eq!(stats.loads.iter().map(|(_, load)| load).sum::<u64>(), stats.total);
        }
    }
}

/// A key that no bound pushes away stays with its owner, so the keys of a quiet ring stay put.
#[test]
fn a_key_stays_with_its_owner_while_there_is_room() {
    let ring = HashRing::new(&topology(5)).unwrap();
    let bounded = Bounded::new(ring.clone(), 100.0).unwrap();
    let held: Vec<_> = (0..50_u8).map(|n| (n, bounded.assign(&[n]))).collect();
    for (n, assignment) in &held {
        assert_eq!(assignment.node(), voussoir_ring::Partitioner::owner(&ring, &[*n]));
    }
}

#[test]
fn loads_stay_bounded_between_threads() {
    let bounded = Bounded::new(HashRing::new(&topology(8)).unwrap(), 1.25).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..2_u64 {
            let (bounded, stop) = (&bounded, &stop);
            scope.spawn(move || {
                for round in 0..200_u64 {
                    let keys = (0..50).map(|n| (thread * 7 + round * n) % 11);
                    let held: Vec<_> = keys.map(|k| bounded.assign(&k.to_le_bytes())).collect();
                    drop(held);
                }
                stop.store(true, Ordering::Relaxed);
            });
        }
        // At most 100 are ever held at once, so no node may ever have more than the bound of these.
        while !stop.load(Ordering::Relaxed) {
            for (id, load) in bounded.stats().loads {
                assert!(load <= 16, "node {id} has {load}");
            }
        }
    });
    assert_eq!(bounded.stats().total, 0);
    assert!(bounded.stats().loads.iter().all(|&(_, load)| load == 0));
}

/// An old view whose nodes are all gone still answers.
#[test]
fn a_ring_whose_nodes_have_all_left_assigns_without_counting() {
    let old = Bounded::new(HashRing::new(&topology(2)).unwrap(), 1.5).unwrap();
    let before = old.assign(b"a");
    let others = Topology::new(2, [Node::new(50)]).unwrap();
    let new = old.over(HashRing::new(&others).unwrap());
    let late = old.assign(b"b");
    assert!(late.node() < 2);
    drop((before, late));
    assert_eq!(new.stats().total, 0);
}

#[test]
fn bounds_that_make_no_sense_are_refused() {
    let ring = HashRing::new(&topology(2)).unwrap();
    for bound in [f64::NAN, f64::INFINITY, -1.0, 0.0, 1.0, 1.0001, 101.0] {
        assert!(
            matches!(Bounded::new(ring.clone(), bound), Err(BuildError::LoadBound(_))),
            "{bound}"
        );
    }
}

#[test]
fn assign_where_keeps_to_the_admitted_nodes_and_their_bound() {
    let topology = topology(8);
    let bounded = Bounded::new(HashRing::new(&topology).unwrap(), 1.25).unwrap();
    let mut held = Vec::new();
    for key in 0..700_u32 {
        // Node 3 refuses; the keys of its points go on along the ring.
        let key = key.to_le_bytes();
        let assignment = bounded.assign_where(&key, |node| node != 3).expect("seven are admitted");
        let (id, total) = (assignment.node(), bounded.stats().total);
        assert!(id != 3 && load(&bounded, id) <= capacity(1250, &topology, id, total));
        held.push(assignment);
    }
    assert_eq!((load(&bounded, 3), bounded.stats().total), (0, 700));
    // Room for the bound over all nodes is not among two: they share the total between them.
    for key in 700..1400_u32 {
        let key = key.to_le_bytes();
        let assignment = bounded.assign_where(&key, |node| node <= 2).expect("two are admitted");
        let most = (1250 * bounded.stats().total).div_ceil(1000 * 2);
        assert!(assignment.node() <= 2 && load(&bounded, assignment.node()) <= most);
        held.push(assignment);
    }
    assert!(bounded.assign_where(b"key", |_| false).is_none());
    assert_eq!(bounded.stats().total, 1400);
    drop(held);
    assert_eq!(bounded.stats().total, 0);
}
