//! Lookups by algorithm and number of nodes, preference lists over zones, and building.

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use voussoir_ring::{
    Bounded, HashRing, Jump, Maglev, Memento, Node, Partitioner, Rendezvous, Topology,
};

fn topology(nodes: u64, zones: u64) -> Topology {
    let node = |id| Node::new(id).in_zone(format!("z{}", id % zones));
    Topology::new(1, (0..nodes).map(node)).expect("a valid topology")
}

/// A key that no branch predictor has seen.
fn key(number: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&voussoir_ring::hash::mix(number).to_le_bytes());
    key[8..].copy_from_slice(&number.to_le_bytes());
    key
}

fn owner(c: &mut Criterion) {
    let mut group = c.benchmark_group("ring/owner");
    for nodes in [10, 100, 1000] {
        let topology = topology(nodes, 1);
        let algorithms: [(&str, Box<dyn Partitioner>); 5] = [
            ("ring", Box::new(HashRing::new(&topology).expect("a ring"))),
            ("maglev", Box::new(Maglev::with_table(&topology, 65_537).expect("a table"))),
            ("jump", Box::new(Jump::new(&topology).expect("numbered nodes"))),
            ("memento", Box::new(Memento::new(&topology).expect("numbered nodes"))),
            ("rendezvous", Box::new(Rendezvous::new(&topology).expect("nodes"))),
        ];
        for (name, partitioner) in algorithms {
            let mut number = 0;
            group.bench_function(BenchmarkId::new(name, nodes), |b| {
                b.iter(|| {
                    number += 1;
                    black_box(partitioner.owner(&key(number)))
                });
            });
        }
    }
    group.finish();
}

fn owners(c: &mut Criterion) {
    let mut group = c.benchmark_group("ring/owners");
    for zones in [1, 3] {
        let ring = HashRing::new(&topology(99, zones)).expect("a ring");
        let mut number = 0;
        group.bench_function(BenchmarkId::new("3 replicas", format!("{zones} zones")), |b| {
            b.iter(|| {
                number += 1;
                black_box(ring.owners(&key(number), 3))
            });
        });
    }
    group.finish();
}

fn bounded(c: &mut Criterion) {
    let ring = HashRing::new(&topology(10, 1)).expect("a ring");
    let bounded = Bounded::new(ring, 1.25).expect("a bound above 1");
    let mut number = 0;
    c.bench_function("ring/bounded/assign and complete", |b| {
        b.iter(|| {
            number += 1;
            drop(black_box(bounded.assign(&key(number))));
        });
    });
}

fn build(c: &mut Criterion) {
    let mut group = c.benchmark_group("ring/build");
    for nodes in [10, 100, 1000] {
        group.bench_function(BenchmarkId::new("ring", nodes), |b| {
            b.iter_batched(
                || topology(nodes, 3),
                |topology| HashRing::new(&topology).expect("a ring"),
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, owner, owners, bounded, build);
criterion_main!(benches);
