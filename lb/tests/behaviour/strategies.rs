//! The strategies, one by one.

use super::*;
use voussoir_lb::strategy::*;

#[test]
fn round_robin_is_smooth() {
    let sequence = |weights: &[u32]| {
        let balancer = balancer(RoundRobin::default(), Config::default(), weights);
        names(&balancer, 14, 0)
    };
    assert_eq!(sequence(&[5, 1, 1]), "aabacaaaabacaa");
    assert_eq!(sequence(&[4, 2, 1]), "abacabaabacaba");
    assert_eq!(sequence(&[3, 3]), "ababababababab");
}

#[test]
fn a_random_start_differs_between_seeds_and_keeps_the_order() {
    let first = |seed| {
        let mut config = Config::default();
        config.seed = Some(seed);
        let balancer = Balancer::new(RoundRobin::from_random_start(), config).expect("valid");
        balancer.update(weighted(&[1; 8]), 0).expect("a set");
        let names = names(&balancer, 9, 0);
        assert!("abcdefghabcdefgh".contains(&names), "{names}");
        names
    };
    let starts: std::collections::BTreeSet<_> = (0..50).map(first).collect();
    assert_eq!(starts.len(), 8);
}

#[test]
fn long_cycles_serve_the_weights_by_deadlines() {
    let balancer = balancer(RoundRobin::default(), Config::default(), &[60_000, 30_001, 9_999]);
    let counts = counts(&balancer, 100_000, 0);
    let near = |name: &str, expected: usize| counts[name].abs_diff(expected) <= 1;
    assert!(near("a", 60_000) && near("b", 30_001) && near("c", 9_999), "{counts:?}");
}

#[test]
fn a_changed_weight_takes_effect_at_once_in_a_long_cycle() {
    let balancer = balancer(RoundRobin::default(), Config::default(), &[65_535, 65_534, 1]);
    names(&balancer, 10, 0);
    balancer.update(weighted(&[65_535, 65_534, 65_533]), 0).expect("a set");
    let counts = counts(&balancer, 300, 0);
    assert!(counts.values().all(|count| (99..=101).contains(count)), "{counts:?}");
}

#[test]
fn random_strategies_follow_the_weights() {
    let strategies: [Box<dyn Strategy>; 4] = [
        Box::new(RandomChoice::default()),
        Box::new(PowerOfTwo::default()),
        Box::new(PeakEwma::default()),
        Box::new(LeastRequest::default()),
    ];
    for strategy in strategies {
        let mut config = Config::default();
        config.seed = Some(3);
        let balancer = Balancer::boxed(strategy, config).expect("valid");
        balancer.update(weighted(&[1, 2, 5]), 0).expect("a set");
        // 80 in flight at a time, so that loads matter.
        let mut flying = std::collections::VecDeque::new();
        let mut counts = BTreeMap::<String, u32>::new();
        for step in 0..8_000 {
            let now = step * MS / 4;
            let pick = balancer.pick(&Context::new(), now).expect("healthy");
            *counts.entry(pick.endpoint().name().to_owned()).or_default() += 1;
            flying.push_back(pick);
            if flying.len() > 80 {
                flying.pop_front().expect("one").finish(now, Outcome::Success);
            }
        }
        let near = |name: &str, share: u32| counts[name].abs_diff(share) <= share / 6;
        let all = near("a", 1_000) && near("b", 2_000) && near("c", 5_000);
        assert!(all, "{balancer:?} {counts:?}");
    }
}

type Make = fn() -> Box<dyn Strategy>;

/// The shares of endpoints that take 10 ms, in per mille, with so many requests in flight on
/// average that come at random times.
fn shares(strategy: Box<dyn Strategy>, weights: &[u32], in_flight: f64) -> Vec<u32> {
    let mut config = Config::default();
    config.seed = Some(3);
    let balancer = Balancer::boxed(strategy, config).expect("valid");
    balancer.update(weighted(weights), 0).expect("a set");
    let mut rng = fastrand::Rng::with_seed(8);
    let mut running = std::collections::VecDeque::new();
    let mut counts = vec![0; weights.len()];
    let (mut now, requests) = (0.0, 40_000);
    for _ in 0..requests {
        now += -(1.0 - rng.f64()).ln() * 10.0 * MS as f64 / in_flight;
        while let Some((end, _)) = running.front()
            && *end <= now as u64
        {
            let (end, pick): (u64, voussoir_lb::Pick) = running.pop_front().expect("one");
            pick.finish(end, Outcome::Success);
        }
        let pick = balancer.pick(&Context::new(), now as u64).expect("healthy");
        counts[usize::from(pick.endpoint().name().as_bytes()[0] - b'a')] += 1;
        running.push_back((now as u64 + 10 * MS, pick));
    }
    counts.into_iter().map(|count: u32| count * 1_000 / requests).collect()
}

#[test]
fn weights_are_shares_whatever_the_load() {
    let strategies: [(&str, Make); 7] = [
        ("p2c", || Box::new(PowerOfTwo::default())),
        ("ewma", || Box::new(PeakEwma::default())),
        ("ewma of 3", || Box::new(PeakEwma::default().with_choices(3))),
        ("ewma of all", || Box::new(PeakEwma::default().with_choices(0))),
        ("least request", || Box::new(LeastRequest::default())),
        ("least request of 3", || Box::new(LeastRequest::sampled(3))),
        ("least connections", || Box::new(LeastConnections::default())),
    ];
    let mut wrong = Vec::new();
    for (name, strategy) in strategies {
        for weights in [&[9, 10][..], &[1, 2], &[1, 1, 1, 1, 10], &[1, 99]] {
            for in_flight in [0.01, 0.1, 1.0, 20.0, 200.0] {
                let seen = shares(strategy(), weights, in_flight);
                let sum: u32 = weights.iter().sum();
                let far = |(seen, weight): (&u32, &u32)| {
                    let fair = 1_000 * weight / sum;
                    seen.abs_diff(fair) > fair / 5 + 2
                };
                // A light endpoint that is idle is preferred to one in use: nginx's `least_conn`.
                let is_meant =
                    name == "least connections" && weights != [9, 10] && in_flight < 200.0;
                if seen.iter().zip(weights).any(far) && !is_meant {
                    wrong.push(format!("{name}, {weights:?}, {in_flight}: {seen:?}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn least_strategies_choose_the_least_loaded() {
    let least = |strategy: Box<dyn Strategy>, loads: [usize; 3], weights: [u32; 3]| {
        let balancer = Balancer::boxed(strategy, Config::default()).expect("valid");
        let mut set = weighted(&weights);
        let mut held = Vec::new();
        balancer.update(set.clone(), 0).expect("a set");
        for (at, &load) in loads.iter().enumerate() {
            for endpoint in &mut set {
                endpoint.draining = true;
            }
            set[at].draining = false;
            balancer.update(set.clone(), 0).expect("a set");
            held.extend((0..load).filter_map(|_| balancer.pick(&Context::new(), 0)));
        }
        for endpoint in &mut set {
            endpoint.draining = false;
        }
        balancer.update(set, 0).expect("a set");
        request(&balancer, &Context::new(), 0, Outcome::Success).expect("healthy")
    };
    assert_eq!(least(Box::<LeastConnections>::default(), [3, 2, 4], [1, 1, 1]), "b");
    assert_eq!(least(Box::<LeastConnections>::default(), [3, 2, 4], [1, 1, 4]), "c");
    assert_eq!(least(Box::<LeastRequest>::default(), [1, 1, 1], [1, 1, 9]), "c");
    assert_eq!(least(Box::new(LeastRequest::sampled(60)), [3, 0, 4], [1, 1, 1]), "b");
}

#[test]
fn peak_ewma_avoids_the_slow_and_returns_when_it_recovers() {
    let balancer = balancer(PeakEwma::default(), Config::default(), &[1, 1, 1, 1]);
    let run = |from: u64, slow: u64| {
        let mut picks = BTreeMap::<String, u32>::new();
        for step in 0..20_000 {
            let now = from + step * MS;
            let pick = balancer.pick(&Context::new(), now).expect("healthy");
            let name = pick.endpoint().name().to_owned();
            let latency = if name == "a" { slow } else { 2 * MS };
            pick.finish(now + latency, Outcome::Success);
            *picks.entry(name).or_default() += 1;
        }
        picks
    };
    let before = run(0, 2 * MS);
    assert!(before["a"] > 3_500, "{before:?}");
    let slow = run(20 * SECOND, 200 * MS);
    assert!(slow.get("a").is_none_or(|&picks| picks < 50), "{slow:?}");
    // 200 ms decay to 2 ms in 6.6 half-lives of 7 s.
    run(40 * SECOND, 2 * MS);
    run(60 * SECOND, 2 * MS);
    let after = run(80 * SECOND, 2 * MS);
    assert!(after["a"] > 3_500, "{after:?}");
}

/// Latencies fade while nothing is measured: equals would differ by the time of their last request.
#[test]
fn equal_endpoints_share_a_burst_after_little_traffic() {
    for choices in [2, 3, 0] {
        let strategy = PeakEwma::default().with_choices(choices);
        let balancer = balancer(strategy, Config::default(), &[1; 10]);
        for request in 1..=200 {
            let now = request * 5 * SECOND;
            let pick = balancer.pick(&Context::new(), now).expect("healthy");
            pick.finish(now + 10 * MS, Outcome::Success);
        }
        let now = 1_005 * SECOND;
        let burst: Vec<_> = (0..200).filter_map(|_| balancer.pick(&Context::new(), now)).collect();
        let of = |endpoint: &voussoir_lb::EndpointStats| endpoint.in_flight;
        let held: Vec<u32> = balancer.stats(now).endpoints.iter().map(of).collect();
        let bound = if choices == 0 { 20..=20 } else { 17..=23 };
        assert!(held.iter().all(|held| bound.contains(held)), "{choices} choices: {held:?}");
        drop(burst);
    }
}

#[test]
fn keys_and_clients_stay_and_only_those_of_a_lost_endpoint_move() {
    let balancer = balancer(KeyHash::default(), Config::default(), &[1; 8]);
    let place = || -> Vec<String> {
        let key = |n: u32| n.to_le_bytes();
        let one = |n| request(&balancer, &Context::new().with_key(&key(n)), 0, Outcome::Success);
        (0..800).map(|n| one(n).expect("healthy")).collect()
    };
    let before = place();
    assert_eq!(before, place());
    balancer.set_draining("c", true, 0);
    for (before, after) in before.iter().zip(place()) {
        assert!(if before == "c" { after != "c" } else { *before == after });
    }
}

#[cfg(feature = "ring")]
#[test]
fn maglev_moves_few_keys_and_places_by_name_not_by_order() {
    let place = |balancer: &Balancer| -> Vec<String> {
        let one = |n: u32| {
            let key = n.to_le_bytes();
            request(balancer, &Context::new().with_key(&key), 0, Outcome::Success)
        };
        (0..2_000).map(|n| one(n).expect("healthy")).collect()
    };
    let first = balancer(MaglevHash::default(), Config::default(), &[1; 10]);
    let before = place(&first);
    let reversed = Balancer::new(MaglevHash::default(), Config::default()).expect("valid");
    reversed.update(weighted(&[1; 10]).into_iter().rev(), 0).expect("a set");
    assert_eq!(before, place(&reversed));
    first.update(weighted(&[1; 9]), 0).expect("a set");
    let moved = before.iter().zip(place(&first)).filter(|(before, after)| *before != after);
    let moved = moved.count();
    assert!((100..400).contains(&moved), "{moved} of 2000 moved; 200 lost their endpoint");
}

#[cfg(feature = "ring")]
#[test]
fn a_bounded_hash_spreads_one_hot_key_and_keeps_counts_over_updates() {
    let balancer = balancer(BoundedHash::new(1.25), Config::default(), &[1; 4]);
    let ctx = Context::new().with_key(b"hot");
    let mut held: Vec<_> = (0..50).filter_map(|_| balancer.pick(&ctx, 0)).collect();
    balancer.update(weighted(&[1; 4]), 0).expect("a set");
    held.extend((0..50).filter_map(|_| balancer.pick(&ctx, 0)));
    let stats = balancer.stats(0);
    assert_eq!(stats.endpoints.iter().map(|endpoint| endpoint.in_flight).sum::<u32>(), 100);
    assert!(stats.endpoints.iter().all(|endpoint| endpoint.in_flight <= 32), "{stats:?}");
    drop(held);
    let home = request(&balancer, &ctx, 0, Outcome::Success);
    assert_eq!(home, request(&balancer, &ctx, 0, Outcome::Success));
}
