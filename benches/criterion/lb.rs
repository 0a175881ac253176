//! A pick and its end, by strategy and number of endpoints, on one thread and on two.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use voussoir_lb::strategy::*;
use voussoir_lb::{Balancer, Config, Context, EndpointConfig, Outcome};

fn balancer(strategy: Box<dyn Strategy>, endpoints: usize, weighted: bool) -> Balancer {
    let balancer = Balancer::boxed(strategy, Config::default()).expect("valid");
    let weight = |at: usize| if weighted { 1 + at as u32 % 5 } else { 1 };
    let endpoint = |at| EndpointConfig::new(format!("10.0.0.{at}:80")).with_weight(weight(at));
    balancer.update((0..endpoints).map(endpoint), 0).expect("a set");
    balancer
}

/// `picks` picks, each with another key and client, 1 µs of virtual time apart: 1,000 picks change
/// a decaying average once.
fn picks(balancer: &Balancer, mut key: u64, picks: u64) -> Duration {
    let begin = Instant::now();
    for step in 0..picks {
        key = key.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1);
        let bytes = key.to_le_bytes();
        let client = [bytes[4], bytes[5], bytes[6], 1].into();
        let ctx = Context::new().with_key(&bytes).with_client(client);
        let now = step * 1_000;
        let pick = balancer.pick(black_box(&ctx), now).expect("healthy");
        black_box(pick.endpoint());
        pick.finish(now + 500, Outcome::Success);
    }
    begin.elapsed()
}

type Make = fn() -> Box<dyn Strategy>;

const STRATEGIES: [(&str, bool, Make); 12] = [
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

fn one_thread(c: &mut Criterion) {
    let mut group = c.benchmark_group("lb/pick");
    for endpoints in [10, 100, 1_000] {
        for (name, weighted, make) in STRATEGIES {
            let balancer = balancer(make(), endpoints, weighted);
            group.bench_function(BenchmarkId::new(name, endpoints), |b| {
                b.iter_custom(|count| picks(&balancer, 1, count));
            });
        }
    }
    group.finish();
}

/// Wall time of the slower of two threads that pick from one balancer, for each of its own picks.
fn two_threads(c: &mut Criterion) {
    let mut group = c.benchmark_group("lb/pick, 2 threads");
    for (name, weighted, make) in STRATEGIES {
        let balancer = balancer(make(), 100, weighted);
        group.bench_function(BenchmarkId::new(name, 100), |b| {
            b.iter_custom(|count| {
                std::thread::scope(|scope| {
                    let other = scope.spawn(|| picks(&balancer, 7, count));
                    let own = picks(&balancer, 1, count);
                    own.max(other.join().expect("no panic"))
                })
            });
        });
    }
    group.finish();
}

criterion_group!(benches, one_thread, two_threads);
criterion_main!(benches);
