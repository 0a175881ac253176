//! What a balancer does, over virtual time.

mod cancelled;
mod corpus;
mod elsewhere;
mod foreign;
mod health;
mod sets;
mod shares;
mod strategies;

use std::collections::BTreeMap;

use voussoir_lb::strategy::Strategy;
use voussoir_lb::{Balancer, Config, Context, EndpointConfig, Outcome};

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;

/// Endpoints `a`, `b`, … of the given weights.
fn weighted(weights: &[u32]) -> Vec<EndpointConfig> {
    let name = |at: usize| char::from(b'a' + at as u8).to_string();
    let endpoint = |(at, &weight)| EndpointConfig::new(name(at)).with_weight(weight);
    weights.iter().enumerate().map(endpoint).collect()
}

/// A seeded balancer over endpoints of the given weights.
fn balancer(strategy: impl Strategy + 'static, mut config: Config, weights: &[u32]) -> Balancer {
    config.seed = Some(1);
    let balancer = Balancer::new(strategy, config).expect("valid");
    balancer.update(weighted(weights), 0).expect("a set");
    balancer
}

/// One request that takes no time.
fn request(balancer: &Balancer, ctx: &Context<'_>, now: u64, outcome: Outcome) -> Option<String> {
    let pick = balancer.pick(ctx, now)?;
    let name = pick.endpoint().name().to_owned();
    pick.finish(now, outcome);
    Some(name)
}

/// The names of `count` requests.
fn names(balancer: &Balancer, count: usize, now: u64) -> String {
    let pick = |_| request(balancer, &Context::new(), now, Outcome::Success).expect("healthy");
    (0..count).map(pick).collect()
}

/// Requests by endpoint.
fn counts(balancer: &Balancer, count: usize, now: u64) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..count {
        let name = request(balancer, &Context::new(), now, Outcome::Success).expect("healthy");
        *counts.entry(name).or_default() += 1;
    }
    counts
}

/// Fails the requests of `name` until it is picked `times` times.
fn fail(balancer: &Balancer, name: &str, times: u32, now: u64) {
    let mut failed = 0;
    for _ in 0..10_000 {
        if failed == times {
            return;
        }
        let pick = balancer.pick(&Context::new(), now).expect("healthy");
        let is_bad = pick.endpoint().name() == name;
        failed += u32::from(is_bad);
        pick.finish(now, if is_bad { Outcome::Failure } else { Outcome::Success });
    }
    panic!("{name} was picked {failed} times only");
}
