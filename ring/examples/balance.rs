//! How even each algorithm is and what it moves, at 10, 100 and 1000 nodes.
//!
//! `cargo run --release -p voussoir-ring --example balance [NODES]...`
//!
//! `max/avg`: the load of the fullest node over the average, by a sample of keys; a perfectly
//! uniform hash of the same sample has what the first row shows. `join` and `leave`: keys that
//! move, over the least that must (the share of the node that joins or leaves, if all had the
//! same), averaged over 12 nodes, 4 of 1000 (1 for rendezvous). `needless`: moved keys that neither
//! came from the node that leaves nor go to the one that joins, over the same least.

use std::collections::HashMap;

use voussoir_ring::{
    Bounded, HashRing, Jump, Maglev, Memento, Modulo, Node, Partitioner, Rendezvous, RingConfig,
    Topology, hash,
};

type Build = Box<dyn Fn(&Topology) -> Box<dyn Partitioner>>;

fn algorithms() -> Vec<(&'static str, u64, Build)> {
    let ring = |virtual_nodes: u32| -> Build {
        Box::new(move |t| {
            let mut config = RingConfig::default();
            config.virtual_nodes = virtual_nodes;
            Box::new(HashRing::with_config(t, &config).expect("a ring"))
        })
    };
    let maglev = |size: u32| -> Build {
        Box::new(move |t| Box::new(Maglev::with_table(t, size).expect("a table")))
    };
    vec![
        ("ring, 160 virtual nodes", 1_000_000, ring(160)),
        ("ring, 1000 virtual nodes", 1_000_000, ring(1000)),
        ("jump", 1_000_000, Box::new(|t| Box::new(Jump::new(t).expect("jump")))),
        ("memento", 1_000_000, Box::new(|t| Box::new(Memento::new(t).expect("memento")))),
        ("rendezvous", 200_000, Box::new(|t| Box::new(Rendezvous::new(t).expect("rendezvous")))),
        ("maglev 65,537", 1_000_000, maglev(65_537)),
        ("maglev 655,373", 1_000_000, maglev(655_373)),
        ("maglev 6,553,621", 1_000_000, maglev(6_553_621)),
        ("modulo", 1_000_000, Box::new(|t| Box::new(Modulo::new(t).expect("modulo")))),
    ]
}

fn owners(of: &dyn Partitioner, keys: u64) -> Vec<u64> {
    (0..keys).map(|key| of.owner(&hash::mix(key).to_le_bytes())).collect()
}

fn max_over_avg(owners: impl Iterator<Item = u64>, nodes: u64) -> f64 {
    let (mut loads, mut keys) = (HashMap::new(), 0);
    for owner in owners {
        *loads.entry(owner).or_insert(0_u64) += 1;
        keys += 1;
    }
    let most = loads.into_values().max().unwrap_or(0);
    most as f64 * nodes as f64 / f64::from(keys)
}

/// Moved keys and needlessly moved keys, over the keys of an average node of `nodes`.
fn moved(before: &[u64], after: &[u64], node: u64, nodes: u64) -> (f64, f64) {
    let (mut moved, mut needless) = (0_u64, 0_u64);
    for (old, new) in before.iter().zip(after).filter(|(old, new)| old != new) {
        moved += 1;
        needless += u64::from(*old != node && *new != node);
    }
    let least = before.len() as f64 / nodes as f64;
    (moved as f64 / least, needless as f64 / least)
}

fn row(name: &str, keys: u64, nodes: u64, build: &Build) {
    let topology = Topology::new(1, (0..nodes).map(Node::new)).expect("a topology");
    let before = owners(&*build(&topology), keys);
    let balance = max_over_avg(before.iter().copied(), nodes);
    let changes = match (nodes, name) {
        (1000.., "rendezvous") => 1,
        (1000.., _) => 4,
        _ => 12,
    };
    let (mut joins, mut leaves, mut needless) = (0.0, 0.0, 0.0);
    for nth in 0..changes {
        let joining = 1_000_000 + nth;
        let joined = topology.with(Node::new(joining)).expect("a new node");
        let (all, extra) = moved(&before, &owners(&*build(&joined), keys), joining, nodes + 1);
        joins += all / changes as f64;
        needless += extra / changes as f64;
        // Jump and modulo only take a leave at the end; Memento takes any, but by its own call.
        let leaving = if name == "jump" || name == "memento" {
            nodes - 1
        } else {
            nth * (nodes / 12).max(1) % nodes
        };
        let left = topology.without(leaving).expect("a member");
        leaves += moved(&before, &owners(&*build(&left), keys), leaving, nodes).0 / changes as f64;
    }
    println!("| {name} | {nodes} | {balance:.3} | {joins:.3} | {leaves:.3} | {needless:.3} |");
}

fn main() {
    println!("| algorithm | nodes | max/avg | join | leave | needless |");
    println!("|---|---:|---:|---:|---:|---:|");
    let asked: Vec<u64> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    for nodes in if asked.is_empty() { vec![10, 100, 1000] } else { asked } {
        let uniform = (0..1_000_000_u64).map(|key| hash::mix(hash::mix(key)) % nodes);
        println!(
            "| (uniform hash, no nodes) | {nodes} | {:.3} | | | |",
            max_over_avg(uniform, nodes)
        );
        for (name, keys, build) in algorithms() {
            row(name, keys, nodes, &build);
        }
        let topology = Topology::new(1, (0..nodes).map(Node::new)).expect("a topology");
        let bounded =
            Bounded::new(HashRing::new(&topology).expect("a ring"), 1.25).expect("a bound");
        let held: Vec<_> =
            (0..100_000_u64).map(|key| bounded.assign(&hash::mix(key).to_le_bytes())).collect();
        let most = max_over_avg(held.iter().map(voussoir_ring::Assignment::node), nodes);
        println!("| bounded loads, 1.25 | {nodes} | {most:.3} | | | |");
    }
}
