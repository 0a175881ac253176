//! Where requests go whose endpoint is excluded or full.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};

use super::*;
use voussoir_lb::strategy::*;

fn strategies() -> Vec<(Box<dyn Strategy>, bool)> {
    let mut all: Vec<(Box<dyn Strategy>, bool)> = vec![
        (Box::<RoundRobin>::default(), false),
        (Box::<RandomChoice>::default(), false),
        (Box::<PowerOfTwo>::default(), false),
        (Box::<PeakEwma>::default(), false),
        (Box::<LeastConnections>::default(), false),
        (Box::<LeastRequest>::default(), false),
        (Box::<IpHash>::default(), true),
        (Box::<KeyHash>::default(), true),
    ];
    #[cfg(feature = "ring")]
    all.extend([
        (Box::<MaglevHash>::default() as Box<dyn Strategy>, true),
        (Box::<BoundedHash>::default() as Box<dyn Strategy>, true),
    ]);
    all
}

/// The request with a key and a client of its own.
fn with_request<T>(n: u64, run: impl FnOnce(&Context<'_>) -> T) -> T {
    let key = n.to_le_bytes();
    let client = IpAddr::from(Ipv4Addr::from((n as u32).wrapping_mul(2_654_435_761)));
    run(&Context::new().with_key(&key).with_client(client))
}

/// Requests of which `c` refuses its own, which are tried again elsewhere: how many of those went
/// where, and how many of all.
fn retries(balancer: &Balancer) -> (BTreeMap<String, u32>, BTreeMap<String, u32>) {
    let (mut retried, mut served) = (BTreeMap::new(), BTreeMap::new());
    for n in 0..40_000 {
        let now = n * MS;
        with_request(n, |ctx| {
            let pick = balancer.pick(ctx, now).expect("healthy");
            let name = pick.endpoint().name().to_owned();
            if name != "c" {
                *served.entry(name).or_default() += 1;
                return pick.finish(now, Outcome::Success);
            }
            let refused = [pick.endpoint().id()];
            drop(pick);
            let again = ctx.with_excluded(&refused);
            let name = request(balancer, &again, now, Outcome::Success).expect("healthy");
            *served.entry(name.clone()).or_default() += 1;
            *retried.entry(name).or_default() += 1;
        });
    }
    (retried, served)
}

#[test]
fn the_requests_of_an_endpoint_that_refuses_go_to_all_others() {
    for (strategy, _) in strategies() {
        let mut config = Config::default();
        config.seed = Some(1);
        let balancer = Balancer::boxed(strategy, config).expect("valid");
        balancer.update(weighted(&[1; 8]), 0).expect("a set");
        let (retried, served) = retries(&balancer);
        // A fair share is a seventh of 40,000; a single neighbour would serve 10,000.
        let is_fair = |&count: &u32| (4_000..8_000).contains(&count);
        assert!(served.len() == 7 && served.values().all(is_fair), "{balancer:?} {served:?}");
        if format!("{balancer:?}").contains("RoundRobin") {
            // The retries of `c` have the turns of `d`, and other requests do not.
            continue;
        }
        let all: u32 = retried.values().sum();
        assert!(all > 3_000 && retried.len() == 7, "{balancer:?} {retried:?}");
        let is_fair = |&count: &u32| (all / 14..all / 7 * 2).contains(&count);
        assert!(retried.values().all(is_fair), "{balancer:?} {retried:?}");
    }
}

#[test]
fn requests_go_elsewhere_by_the_weights() {
    // The others choose idle endpoints by other rules than the ratio of weights.
    let mut strategies: Vec<Box<dyn Strategy>> =
        vec![Box::<RandomChoice>::default(), Box::<IpHash>::default(), Box::<KeyHash>::default()];
    #[cfg(feature = "ring")]
    strategies.push(Box::<MaglevHash>::default());
    for strategy in strategies {
        let mut config = Config::default();
        config.seed = Some(2);
        let balancer = Balancer::boxed(strategy, config).expect("valid");
        balancer.update(weighted(&[1, 1, 1, 3, 1]), 0).expect("a set");
        let (counts, _) = retries(&balancer);
        let all: u32 = counts.values().sum();
        let near =
            |name: &str, sixths: u32| counts[name].abs_diff(all * sixths / 6) <= all * sixths / 24;
        let is_fair = near("a", 1) && near("b", 1) && near("d", 3) && near("e", 1);
        assert!(is_fair, "{balancer:?} {counts:?}");
    }
}

#[test]
fn a_key_goes_to_the_same_other_endpoint_each_time() {
    for (strategy, is_keyed) in strategies() {
        let mut config = Config::default();
        config.seed = Some(1);
        let balancer = Balancer::boxed(strategy, config).expect("valid");
        balancer.update(weighted(&[1; 8]), 0).expect("a set");
        for n in (0..200).filter(|_| is_keyed) {
            with_request(n, |ctx| {
                let first = balancer.pick(ctx, 0).expect("healthy");
                let refused = [first.endpoint().id()];
                drop(first);
                let again = ctx.with_excluded(&refused);
                let go = || request(&balancer, &again, 0, Outcome::Success);
                assert_eq!(go(), go(), "{balancer:?}");
            });
        }
    }
}

#[cfg(feature = "ring")]
#[test]
fn the_bound_holds_while_an_endpoint_refuses() {
    let balancer = balancer(BoundedHash::new(1.25), Config::default(), &[1; 8]);
    let mut flying = VecDeque::new();
    let mut refusals = 0;
    for n in 0..20_000 {
        let now = n * MS;
        let pick = with_request(n, |ctx| {
            let pick = balancer.pick(ctx, now).expect("healthy");
            if pick.endpoint().name() != "c" {
                return pick;
            }
            refusals += 1;
            let refused = [pick.endpoint().id()];
            pick.finish(now, Outcome::Failure);
            balancer.pick(&ctx.with_excluded(&refused), now).expect("healthy")
        });
        flying.push_back(pick);
        // 1.25 times the fair share of 70 in flight over 8 endpoints, rounded up.
        let most = balancer.endpoints().iter().map(|found| found.in_flight()).max();
        assert!(most <= Some(11), "{:?}", balancer.stats(now));
        if flying.len() == 70 {
            flying.pop_front().expect("one").finish(now, Outcome::Success);
        }
    }
    assert!(refusals > 1_000, "{refusals}");
    // Where all but one are excluded, that one takes everything.
    let ids: Vec<u64> = balancer.endpoints().iter().map(|found| found.id()).skip(1).collect();
    let ctx = Context::new().with_key(b"hot").with_excluded(&ids);
    let held: Vec<_> = (0..100).map(|_| balancer.pick(&ctx, 0).expect("a")).collect();
    assert!(held.iter().all(|pick| pick.endpoint().name() == "a"));
    drop((held, flying));
    assert!(balancer.endpoints().iter().all(|found| found.in_flight() == 0));
}

/// The rest of a hot key goes to many endpoints, not to one after the other.
#[test]
fn the_requests_of_a_full_endpoint_go_to_all_others() {
    for (strategy, _) in strategies() {
        let mut config = Config::default();
        (config.seed, config.max_in_flight) = (Some(1), Some(40));
        let balancer = Balancer::boxed(strategy, config).expect("valid");
        balancer.update(weighted(&[1; 8]), 0).expect("a set");
        let others: Vec<u64> = balancer.endpoints()[1..].iter().map(|found| found.id()).collect();
        let mut fill: Vec<_> = Vec::new();
        for n in 0..40 {
            let fills = |ctx: &Context<'_>| balancer.pick(&ctx.with_excluded(&others), 0);
            fill.push(with_request(n, fills).expect("not full"));
        }
        let before: Vec<u32> = balancer.endpoints().iter().map(|found| found.in_flight()).collect();
        assert_eq!(before, [40, 0, 0, 0, 0, 0, 0, 0]);
        fill.extend((0..140).map(|n| with_request(n, |ctx| balancer.pick(ctx, 0)).expect("room")));
        let after = balancer.endpoints();
        let is_fair =
            |found: &std::sync::Arc<voussoir_lb::Endpoint>| (8..=36).contains(&found.in_flight());
        assert!(after[1..].iter().all(is_fair), "{:?}", balancer.stats(0));
    }
}
