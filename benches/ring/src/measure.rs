//! What is built and asked, and how it is timed.

use std::hint::black_box;
use std::time::Instant;

use voussoir_ring::{HashRing, Node, RingConfig, Topology, hash};

use crate::rivals::Key;

const LOOKUPS: u64 = 1_000_000;
const ROUNDS: usize = 7;

pub fn topology(nodes: u64, zones: u64) -> Topology {
    let node = |id| {
        let node = Node::new(id);
        if zones > 1 { node.in_zone(format!("z{}", id % zones)) } else { node }
    };
    Topology::new(1, (0..nodes).map(node)).expect("a topology")
}

pub fn ring(nodes: u64, zones: u64) -> HashRing {
    HashRing::with_config(&topology(nodes, zones), &RingConfig::default()).expect("a ring")
}

/// A key that no branch predictor has seen: hashed from a counter, about 2 ns.
#[inline]
pub fn key(number: u64) -> Key {
    let random = hash::mix(number);
    let mut key = [0; 16];
    key[..8].copy_from_slice(&random.to_le_bytes());
    key[8..].copy_from_slice(&number.to_le_bytes());
    key
}

fn round(look: &impl Fn(&Key) -> u64, from: u64, lookups: u64) -> f64 {
    let start = Instant::now();
    let mut sum = 0_u64;
    for number in from..from + lookups {
        sum = sum.wrapping_add(look(&key(number)));
    }
    black_box(sum);
    start.elapsed().as_nanos() as f64 / lookups as f64
}

/// The median of some rounds, each over other keys; nanoseconds a lookup, the key included.
pub fn time(look: impl Fn(&Key) -> u64) -> f64 {
    // About 60 ms a round: a slow rival gets fewer lookups, not more of the machine.
    let lookups = (6e7 / round(&look, 0, 2000)).clamp(200.0, LOOKUPS as f64) as u64;
    let mut rounds: Vec<f64> =
        (0..ROUNDS as u64).map(|nth| round(&look, (nth + 1) << 32, lookups)).collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}

/// The median of building it a number of times, in milliseconds.
pub fn median_ms<T>(build: impl Fn() -> T, times: usize) -> f64 {
    let once = || {
        let start = Instant::now();
        black_box(build());
        start.elapsed().as_secs_f64() * 1e3
    };
    let mut times: Vec<f64> = (0..times).map(|_| once()).collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
