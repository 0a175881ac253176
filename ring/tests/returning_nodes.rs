//! Views of [`Bounded`] over rings that lose nodes and get them back, in order and under threads.

mod common;

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

use common::topology;
use voussoir_ring::{Assignment, Bounded, HashRing, Topology};

fn ring(nodes: u64) -> HashRing {
    HashRing::new(&topology(nodes)).unwrap()
}

fn hold(bounded: &Bounded, keys: u64) -> Vec<Assignment> {
    (0..keys).map(|key| bounded.assign(&key.to_le_bytes())).collect()
}

/// A node that has left takes nothing, so its share of the capacity must not be waited for.
#[test]
fn an_old_view_assigns_to_the_nodes_that_are_still_present() {
    let old = Bounded::new(ring(3), 1.25).unwrap();
    let _held = hold(&old, 300);
    let new = old.over(ring(2));
    let late = old.assign(b"late");
    assert!(late.node() < 2, "node 2 has left, and got an assignment");
    let present: u64 = new.stats().loads.iter().map(|&(_, load)| load).sum();
    assert_eq!(new.stats().total, present);
}

#[test]
fn a_node_that_returns_starts_with_a_count_of_zero() {
    let three = Bounded::new(ring(3), 1.25).unwrap();
    let before = hold(&three, 300);
    let two = three.over(ring(2));
    for view in [three.over(ring(3)), two.over(ring(3))] {
        let stats = view.stats();
        assert_eq!(stats.loads[2], (2, 0), "{stats:?}");
        assert_eq!(stats.total, stats.loads.iter().map(|&(_, load)| load).sum::<u64>());
        let after = hold(&view, 300);
        assert!(after.iter().any(|one| one.node() == 2), "the returned node takes nothing");
        drop(after);
        assert_eq!(view.stats().total, stats.total);
    }
    // What was assigned before node 2 left is no load of the node that returned.
    drop(before);
    assert_eq!(two.stats().total, 0);
}

/// Threads assign over views old and new while nodes leave and return: every call ends, and in the
/// end nothing is counted.
#[test]
fn every_assignment_ends_while_nodes_leave_and_return() {
    let first = Bounded::new(ring(4), 1.001).unwrap();
    let (stop, start) = (AtomicBool::new(false), Barrier::new(3));
    let views: Vec<Bounded> = (2..=4).map(|nodes| first.over(ring(nodes))).collect();
    let last = std::thread::scope(|scope| {
        for thread in 0..2_u64 {
            let (views, stop, start) = (&views, &stop, &start);
            scope.spawn(move || {
                start.wait();
                let mut round = thread;
                while !stop.load(Ordering::Relaxed) {
                    round += 1;
                    let view = &views[round as usize % views.len()];
                    drop(hold(view, 40));
                }
            });
        }
        start.wait();
        let mut current = first.over(ring(4));
        for round in 0..2000_u64 {
            current = current.over(ring(1 + round % 4));
            drop(hold(&current, 10));
        }
        stop.store(true, Ordering::Relaxed);
        current
    });
    assert_eq!(last.stats().total, 0, "{:?}", last.stats());
}

/// Ids change with every view, so a view may share no node with the one before.
#[test]
fn views_without_a_common_node_count_apart() {
    let old = Bounded::new(ring(2), 1.5).unwrap();
    let held = hold(&old, 10);
    let others = Topology::new(2, [voussoir_ring::Node::new(50)]).unwrap();
    let new = old.over(HashRing::new(&others).unwrap());
    assert_eq!(new.stats().total, 0);
    let uncounted = old.assign(b"late");
    assert_eq!((uncounted.node() < 2, new.stats().total), (true, 0));
    drop((held, uncounted));
    assert_eq!(new.stats().total, 0);
}
