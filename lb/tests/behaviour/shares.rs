//! Priorities, panics and zones.

use super::*;
use voussoir_lb::strategy::*;
use voussoir_lb::{CheckConfig, OnPanic, ZoneConfig};

/// Endpoints `pN.M`: `counts[N]` of priority N, of which the first `healthy[N]` pass their check.
fn priorities(counts: &[usize], healthy: &[usize], on_panic: OnPanic) -> Balancer {
    let mut config = Config::default();
    config.seed = Some(2);
    config.checks = Some(CheckConfig::default());
    config.priorities.on_panic = on_panic;
    let balancer = Balancer::new(RandomChoice::default(), config).expect("valid");
    let level = |(priority, &count): (usize, &usize)| {
        let endpoint = move |at| {
            EndpointConfig::new(format!("p{priority}.{at}")).with_priority(priority as u8)
        };
        (0..count).map(endpoint).collect::<Vec<_>>()
    };
    balancer.update(counts.iter().enumerate().flat_map(level), 0).expect("a set");
    for endpoint in balancer.endpoints() {
        let (priority, at) = endpoint.name()[1..].split_once('.').expect("a dot");
        let (priority, at): (usize, usize) = (priority.parse().unwrap(), at.parse().unwrap());
        balancer.record_check(endpoint.id(), at < healthy[priority], 0);
    }
    balancer
}

/// Percent of the requests by the first two letters of the endpoints; `-` is rejected.
fn percent(balancer: &Balancer) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::<String, u32>::new();
    for _ in 0..20_000 {
        let name = request(balancer, &Context::new(), 0, Outcome::Success);
        *counts.entry(name.map_or("-".into(), |name| name[..2].into())).or_default() += 1;
    }
    for count in counts.values_mut() {
        *count = (*count + 100) / 200;
    }
    counts
}

fn is_near(percent: &BTreeMap<String, u32>, expected: &[(&str, u32)]) -> bool {
    percent.len() == expected.len()
        && expected.iter().all(|(name, share)| percent[*name].abs_diff(*share) <= 1)
}

#[test]
fn traffic_overflows_to_the_next_priority() {
    let all = percent(&priorities(&[10, 10], &[10, 10], OnPanic::UseAll));
    assert!(is_near(&all, &[("p0", 100)]), "{all:?}");
    let half = percent(&priorities(&[10, 10], &[5, 10], OnPanic::UseAll));
    assert!(is_near(&half, &[("p0", 70), ("p1", 30)]), "{half:?}");
    let none = percent(&priorities(&[10, 10], &[0, 10], OnPanic::UseAll));
    assert!(is_near(&none, &[("p1", 100)]), "{none:?}");
}

#[test]
fn a_panic_uses_all_or_rejects() {
    let all = priorities(&[10], &[3], OnPanic::UseAll);
    let used = counts(&all, 5_000, 0);
    assert_eq!(used.len(), 10);
    let calm = priorities(&[10], &[6], OnPanic::UseAll);
    assert_eq!(counts(&calm, 5_000, 0).len(), 6);
    let rejected = percent(&priorities(&[10], &[3], OnPanic::Reject));
    assert!(is_near(&rejected, &[("-", 100)]), "{rejected:?}");
    // Priority 0 can take 42 %, priority 1 28 % of the traffic: divided by what each can take.
    let two = percent(&priorities(&[10, 10], &[3, 2], OnPanic::UseAll));
    assert!(is_near(&two, &[("p0", 60), ("p1", 40)]), "{two:?}");
}

#[test]
fn nothing_healthy_anywhere_still_serves_by_the_first_priority_that_was_checked() {
    let balancer = priorities(&[2, 2], &[0, 0], OnPanic::UseAll);
    let used = percent(&balancer);
    assert!(is_near(&used, &[("p0", 100)]), "{used:?}");
    assert!(balancer.availability().borrow().healthy == 0);
}

/// Envoy's `ignore_new_hosts_until_first_hc`: those that wait for their first check get nothing,
/// and take nothing away from those that serve.
#[test]
fn endpoints_that_join_push_no_traffic_to_the_next_priority() {
    let balancer = priorities(&[4, 4], &[4, 4], OnPanic::UseAll);
    let joined = (0..8).map(|at| EndpointConfig::new(format!("p0.{at}")));
    let other = (0..4).map(|at| EndpointConfig::new(format!("p1.{at}")).with_priority(1));
    balancer.update(joined.chain(other), 0).expect("a set");
    let percents = percent(&balancer);
    assert!(is_near(&percents, &[("p0", 100)]), "{percents:?}");
    let new = balancer.endpoints().into_iter().find(|endpoint| endpoint.name() == "p0.5");
    let new = new.expect("it joined").id();
    for _ in 0..3 {
        balancer.record_check(new, false, 0);
    }
    let percents = percent(&balancer);
    assert!(is_near(&percents, &[("p0", 100)]), "4 of 5 serve: {percents:?}");
}

fn zones(callers: Option<f64>, down: &[&str]) -> BTreeMap<String, u32> {
    let mut config = Config::default();
    config.seed = Some(4);
    let mut zone = ZoneConfig::new("z0");
    zone.callers_share = callers;
    config.zone = Some(zone);
    let balancer = Balancer::new(PowerOfTwo::default(), config).expect("valid");
    let endpoint =
        |at| EndpointConfig::new(format!("z{}.{at}", at % 3)).with_zone(format!("z{}", at % 3));
    balancer.update((0..12).map(endpoint), 0).expect("a set");
    for name in down {
        balancer.set_draining(name, true, 0);
    }
    percent(&balancer)
}

#[test]
fn traffic_stays_in_its_zone_and_spills_over() {
    let local = zones(None, &[]);
    assert!(is_near(&local, &[("z0", 100)]), "{local:?}");
    let crowded = zones(Some(0.5), &[]);
    assert!(is_near(&crowded, &[("z0", 67), ("z1", 17), ("z2", 17)]), "{crowded:?}");
    let gone = zones(None, &["z0.0", "z0.3", "z0.6", "z0.9"]);
    assert!(is_near(&gone, &[("z1", 50), ("z2", 50)]), "{gone:?}");
}

#[test]
fn a_priority_that_is_full_overflows() {
    let mut config = Config::default();
    config.max_in_flight = Some(2);
    let balancer = Balancer::new(PowerOfTwo::default(), config).expect("valid");
    let endpoint = |at: u8| EndpointConfig::new(at.to_string()).with_priority(at / 2);
    balancer.update((0..4).map(endpoint), 0).expect("a set");
    let held: Vec<_> = (0..8).map_while(|_| balancer.pick(&Context::new(), 0)).collect();
    assert_eq!(held.len(), 8);
    assert!(held[..4].iter().all(|pick| pick.endpoint().name() < "2"));
    assert!(balancer.pick(&Context::new(), 0).is_none());
}

#[test]
fn a_key_keeps_its_priority_while_traffic_overflows() {
    let mut config = Config::default();
    config.checks = Some(CheckConfig::default());
    let balancer = Balancer::new(KeyHash::default(), config).expect("valid");
    let endpoint = |at: u8| EndpointConfig::new(at.to_string()).with_priority(at / 4);
    balancer.update((0..8).map(endpoint), 0).expect("a set");
    for endpoint in balancer.endpoints() {
        balancer.record_check(endpoint.id(), endpoint.name() >= "2", 0);
    }
    let mut used = std::collections::BTreeSet::new();
    for key in 0..200_u32 {
        let key = key.to_le_bytes();
        let ctx = Context::new().with_key(&key);
        let place = || request(&balancer, &ctx, 0, Outcome::Success).expect("healthy");
        let first = place();
        assert!((0..5).all(|_| place() == first));
        used.insert(first);
    }
    assert_eq!(used.len(), 6, "{used:?}");
}
