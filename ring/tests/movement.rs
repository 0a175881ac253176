//! How much moves on a join and on a leave, against the least that must, and how even the load is.
//! `cargo run --release -p voussoir-ring --example balance` prints the whole table.

mod common;

use common::topology;
use voussoir_ring::testing::movement;
use voussoir_ring::{HashRing, Jump, Maglev, Memento, Node, Partitioner, Rendezvous, Topology};

const KEYS: u64 = 30_000;

/// Moved keys over the least that must move, averaged over several joins or leaves of one node:
/// how much a single one takes is up to where its points fall.
fn averaged(
    nodes: u64,
    changes: u64,
    build: impl Fn(&Topology) -> Box<dyn Partitioner>,
) -> (f64, f64) {
    let before = topology(nodes);
    let old = build(&before);
    let (mut moved, mut needless) = (0.0, 0.0);
    for nth in 0..changes {
        let id = 1_000_000 + nth * 17;
        let new = build(&before.with(Node::new(id)).unwrap());
        // A leave is a join seen from the other side: both placements depend on the members alone.
        let (all, extra) = movement(&*old, &*new, &[id], &[], KEYS);
        moved += all;
        needless += extra;
    }
    let least = changes as f64 / (nodes + 1) as f64;
    (moved / least, needless / least)
}

/// A ring's placement is known exactly: no sampling.
#[test]
fn a_ring_moves_the_least_within_five_percent() {
    for nodes in [10, 100, 1000] {
        let before = topology(nodes);
        let changes = 40;
        let mut moved = 0.0;
        for nth in 0..changes {
            let id = 1_000_000 + nth * 17;
            let new = HashRing::new(&before.with(Node::new(id)).unwrap()).unwrap();
            let share = new.placement(1).shares().into_iter().find(|(node, _)| *node == id);
            // What the joining node holds is all that moves (checked key by key elsewhere).
            moved += share.unwrap().1;
        }
        let ratio = moved / changes as f64 * (nodes + 1) as f64;
        println!("ring, {nodes} nodes: {ratio:.3} of the least");
        assert!((0.95..1.05).contains(&ratio), "{nodes}: {ratio}");
    }
}

#[test]
fn jump_memento_and_rendezvous_move_the_least_within_five_percent() {
    for nodes in [10, 100] {
        let changes = if nodes == 10 { 20 } else { 60 };
        let (jump, needless) = averaged(nodes, 1, |t| Box::new(Jump::new(t).unwrap()));
        // One join only: jump takes any node as the next bucket.
        let noise = 4.0 * ((nodes + 1) as f64 / KEYS as f64).sqrt();
        assert!((jump - 1.0).abs() < 0.05_f64.max(noise) && needless <= 0.0, "jump: {jump}");
        let (memento, needless) = averaged(nodes, 1, |t| Box::new(Memento::new(t).unwrap()));
        assert!((memento - 1.0).abs() < 0.05_f64.max(noise) && needless <= 0.0, "{memento}");
        let (moved, needless) = averaged(nodes, changes, |t| Box::new(Rendezvous::new(t).unwrap()));
        assert!((0.95..1.05).contains(&moved) && needless <= 0.0, "rendezvous: {moved}");
    }
}

/// Maglev moves more than the least, by design: filling the table in turns shifts some slots
/// between nodes that stay. The figure is pinned so that it is known, and falls with the table.
#[test]
fn maglev_moves_a_known_amount_more() {
    let small = averaged(10, 4, |t| Box::new(Maglev::with_table(t, 65_537).unwrap()));
    assert!((0.95..1.10).contains(&small.0), "10 nodes in 65,537: {small:?}");
    let small = averaged(100, 4, |t| Box::new(Maglev::with_table(t, 65_537).unwrap()));
    let large = averaged(100, 4, |t| Box::new(Maglev::with_table(t, 655_373).unwrap()));
    println!("maglev, 100 nodes: {small:?} in 65,537, {large:?} in 655,373");
    assert!(small.1 > 0.1, "a table of 65,537 moves more than it must");
    assert!(large.0 < small.0, "a larger table moves less");
}
