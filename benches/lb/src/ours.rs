//! Our strategies. Each request picks by a key and a client of its own, and ends with success.

use std::hint::black_box;

use voussoir_lb::strategy::*;
use voussoir_lb::{Balancer, Config, Context, EndpointConfig, Outcome};

use crate::measure::{Subject, Work};

type Make = fn() -> Box<dyn Strategy>;

/// Every strategy: its name, whether the weights differ, and how it is made.
pub const STRATEGIES: [(&str, bool, Make); 14] = [
    ("power of two", false, || Box::new(PowerOfTwo::default())),
    ("power of two, weighted", true, || Box::new(PowerOfTwo::default())),
    ("peak EWMA", false, || Box::new(PeakEwma::default())),
    ("round robin", false, || Box::new(RoundRobin::default())),
    ("round robin, weighted", true, || Box::new(RoundRobin::default())),
    ("random", false, || Box::new(RandomChoice::default())),
    ("random, weighted", true, || Box::new(RandomChoice::default())),
    ("least connections", false, || Box::new(LeastConnections::default())),
    ("least request", false, || Box::new(LeastRequest::default())),
    ("least request of 2", false, || Box::new(LeastRequest::sampled(2))),
    ("IP hash", false, || Box::new(IpHash::default())),
    ("key hash", false, || Box::new(KeyHash::default())),
    ("Maglev", false, || Box::new(MaglevHash::default())),
    ("bounded hash", false, || Box::new(BoundedHash::default())),
];

pub fn subject(name: &str, is_weighted: bool, make: Make, endpoints: usize) -> Subject {
    let balancer = Balancer::boxed(make(), Config::default()).expect("valid");
    let weight = |at: usize| if is_weighted { 1 + at as u32 % 5 } else { 1 };
    let endpoint = |at: usize| {
        EndpointConfig::new(format!("10.0.{}.{}:80", at / 250, at % 250)).with_weight(weight(at))
    };
    balancer.update((0..endpoints).map(endpoint), 0).expect("a set");
    let work: Work = Box::new(move |from, picks| {
        for number in from..from + picks {
            let key = number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes();
            let client = [key[4], key[5], key[6], 1].into();
            let ctx = Context::new().with_key(&key).with_client(client);
            // 1 µs of virtual time for each request.
            let now = (number & 0xFF_FFFF_FFFF) * 1_000;
            let pick = balancer.pick(black_box(&ctx), now).expect("healthy");
            black_box(pick.endpoint());
            pick.finish(now + 500, Outcome::Success);
        }
    });
    Subject::new(name, work)
}
