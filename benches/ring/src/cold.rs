//! Lookups that find nothing of the ring in the caches: as many rings as it takes to push each
//! other out, asked in turn, each answer deciding the next key.

use std::hint::black_box;
use std::time::Instant;

use crate::measure::{key, ring};
use crate::report::Report;
use crate::rivals::{self, Key};

const LOOKUPS: u64 = 200_000;

fn chase(rings: &[impl Fn(&Key) -> u64]) -> f64 {
    let start = Instant::now();
    let (mut number, mut at) = (0_u64, 0);
    for nth in 0..LOOKUPS {
        number = nth ^ (rings[at](&key(number ^ nth)) << 32);
        at = if at + 1 == rings.len() { 0 } else { at + 1 };
    }
    black_box(number);
    start.elapsed().as_nanos() as f64 / LOOKUPS as f64
}

pub fn cold(report: &mut Report) {
    for (nodes, copies) in [(100, 200), (1000, 32)] {
        let one = ring(nodes, 1);
        let warm = chase(&[|key: &Key| voussoir_ring::Partitioner::owner(&one, key)]);
        let theirs = rivals::hashring(nodes);
        let warm_theirs = chase(&[theirs]);
        let name = format!("dependent lookups, warm, {nodes} nodes");
        report.beside(&name, warm, "hashring 0.3.6", warm_theirs, "ns");
        let ours: Vec<_> = (0..copies)
            .map(|_| ring(nodes, 1))
            .map(|ring| move |key: &Key| voussoir_ring::Partitioner::owner(&ring, key))
            .collect();
        let cold = chase(&ours);
        drop(ours);
        let theirs: Vec<_> = (0..copies).map(|_| rivals::hashring(nodes)).collect();
        let name = format!("dependent lookups, cold, {nodes} nodes");
        report.beside(&name, cold, "hashring 0.3.6", chase(&theirs), "ns");
    }
}
