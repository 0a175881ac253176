//! A pick and its release: `cargo bench -p voussoir-lb --all-features`.
//!
//! Prints ns per pick for one thread and, as wall time of each thread's own picks, for two.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

use voussoir_lb::strategy::*;
use voussoir_lb::{Balancer, Config, Context, EndpointConfig, Outcome};

const ROUNDS: usize = 31;
const PICKS: u64 = 50_000;

fn balancer(strategy: Box<dyn Strategy>, endpoints: usize, weighted: bool) -> Balancer {
    let balancer = Balancer::boxed(strategy, Config::default()).expect("valid");
    let weight = |at: usize| if weighted { 1 + at as u32 % 5 } else { 1 };
    let endpoint = |at| EndpointConfig::new(format!("10.0.0.{at}:80")).with_weight(weight(at));
    balancer.update((0..endpoints).map(endpoint), 0).expect("a set");
    balancer
}

/// ns per pick of one thread.
fn round(balancer: &Balancer, key: &mut u64) -> f64 {
    let begin = Instant::now();
    for step in 0..PICKS {
        *key = key.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1);
        let bytes = key.to_le_bytes();
        let client = [bytes[4], bytes[5], bytes[6], 1].into();
        let ctx = Context::new().with_key(&bytes).with_client(client);
        // 1 µs of virtual time between picks: 1,000 picks change a decaying average once.
        let now = step * 1_000;
        let pick = balancer.pick(black_box(&ctx), now).expect("healthy");
        black_box(pick.endpoint());
        pick.finish(now + 500, Outcome::Success);
    }
    begin.elapsed().as_nanos() as f64 / PICKS as f64
}

fn median(mut rounds: Vec<f64>) -> (f64, f64) {
    rounds.sort_by(f64::total_cmp);
    (rounds[rounds.len() / 2], rounds[0])
}

fn one(balancer: &Balancer) -> (f64, f64) {
    let mut key = 1;
    median((0..ROUNDS).map(|_| round(balancer, &mut key)).collect())
}

fn two(balancer: &Balancer) -> (f64, f64) {
    let barrier = Barrier::new(2);
    let run = |mut key: u64| {
        let rounds = (0..ROUNDS).map(|_| {
            barrier.wait();
            round(balancer, &mut key)
        });
        rounds.collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| run(7));
        let mut rounds = run(1);
        rounds.extend(other.join().expect("no panic"));
        median(rounds)
    })
}

type Make = fn() -> Box<dyn Strategy>;

fn main() {
    // `cargo test --benches` passes no `--bench`: one short run of each.
    let only = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let all: [(&str, bool, Make); 12] = [
        ("power of two", false, || Box::new(PowerOfTwo::default())),
        ("power of two, weighted", true, || Box::new(PowerOfTwo::default())),
        ("peak EWMA", false, || Box::new(PeakEwma::default())),
        ("round robin", false, || Box::new(RoundRobin::default())),
        ("round robin, weighted", true, || Box::new(RoundRobin::default())),
        ("random", false, || Box::new(RandomChoice::default())),
        ("least connections", false, || Box::new(LeastConnections::default())),
        ("least request of 2", false, || Box::new(LeastRequest::sampled(2))),
        ("IP hash", false, || Box::new(IpHash::default())),
        ("key hash", false, || Box::new(KeyHash::default())),
        ("Maglev", false, || Box::new(MaglevHash::default())),
        ("bounded hash", false, || Box::new(BoundedHash::default())),
    ];
    println!(
        "{:24} {:>5} {:>9} {:>9} {:>9} {:>9}",
        "ns per pick", "n", "1T", "(min)", "2T", "(min)"
    );
    for endpoints in [10, 100, 1_000] {
        for (name, weighted, make) in all {
            if only.as_deref().is_some_and(|only| !name.contains(only)) {
                continue;
            }
            let balancer = balancer(make(), endpoints, weighted);
            let (one, two) = (one(&balancer), two(&balancer));
            println!(
                "{name:24} {endpoints:5} {:9.1} {:9.1} {:9.1} {:9.1}",
                one.0, one.1, two.0, two.1
            );
        }
    }
}
