//! Sets that change at run time, leases, limits, sessions and draining.

use super::*;
use voussoir_lb::strategy::*;
use voussoir_lb::{CheckConfig, UpdateError};

#[test]
fn a_lease_counts_until_it_ends_and_a_dropped_one_is_cancelled() {
    let balancer = balancer(RoundRobin::default(), Config::default(), &[1]);
    let pick = balancer.pick(&Context::new(), 0).expect("healthy");
    let endpoint = std::sync::Arc::clone(pick.endpoint());
    assert_eq!(endpoint.in_flight(), 1);
    drop(pick);
    assert_eq!(endpoint.in_flight(), 0);
    fail(&balancer, "a", 1, 0);
    names(&balancer, 3, 0);
    let stats = &balancer.stats(0).endpoints[0];
    assert_eq!((stats.picks, stats.failures, stats.cancelled, stats.in_flight), (5, 1, 1, 0));
}

#[test]
fn three_hundred_endpoints_are_picked_in_their_order() {
    let balancer = Balancer::new(RoundRobin::default(), Config::default()).expect("valid");
    let name = |at: usize| format!("endpoint {}", at % 300);
    balancer.update((0..300).map(|at| EndpointConfig::new(name(at))), 0).expect("a set");
    for at in 0..900 {
        let pick = balancer.pick(&Context::new(), 0).expect("healthy");
        assert_eq!(pick.endpoint().name(), name(at));
        pick.finish(0, Outcome::Success);
    }
    assert!(balancer.stats(0).endpoints.iter().all(|found| found.picks == 3));
}

#[test]
fn a_pick_may_begin_and_end_on_different_threads() {
    let balancer = balancer(RoundRobin::default(), Config::default(), &[1, 1, 1]);
    for _ in 0..100 {
        let pick = balancer.pick(&Context::new(), 0).expect("healthy");
        let other = balancer.clone();
        let thread = std::thread::spawn(move || {
            pick.finish(0, Outcome::Success);
            other.pick(&Context::new(), 0).expect("healthy")
        });
        thread.join().expect("no panic").finish(0, Outcome::Success);
    }
    let stats = balancer.stats(0).endpoints;
    assert!(stats.iter().all(|found| found.in_flight == 0 && found.failures == 0));
    assert_eq!(stats.iter().map(|found| found.picks).sum::<u64>(), 200);
}

#[test]
fn full_endpoints_are_skipped_and_all_full_is_rejected() {
    let strategies: [Box<dyn Strategy>; 5] = [
        Box::new(RoundRobin::default()),
        Box::new(RandomChoice::default()),
        Box::new(PowerOfTwo::default()),
        Box::new(LeastConnections::default()),
        Box::new(IpHash::default()),
    ];
    for strategy in strategies {
        let mut config = Config::default();
        config.max_in_flight = Some(3);
        let balancer = Balancer::boxed(strategy, config).expect("valid");
        balancer.update(weighted(&[1, 7, 2]), 0).expect("a set");
        let ctx = Context::new().with_client([9, 9, 9, 9].into());
        let held: Vec<_> = (0..9).map(|_| balancer.pick(&ctx, 0).expect("not full")).collect();
        assert!(balancer.pick(&ctx, 0).is_none());
        assert_eq!(balancer.stats(0).rejected, 1);
        drop(held);
        assert!(balancer.pick(&ctx, 0).is_some());
    }
}

#[test]
fn an_excluded_endpoint_is_never_picked_and_all_excluded_is_rejected() {
    let strategies: [Box<dyn Strategy>; 5] = [
        Box::new(RoundRobin::default()),
        Box::new(RandomChoice::default()),
        Box::new(PowerOfTwo::default()),
        Box::new(LeastConnections::default()),
        Box::new(IpHash::default()),
    ];
    for strategy in strategies {
        let balancer = Balancer::boxed(strategy, Config::default()).expect("valid");
        balancer.update(weighted(&[1, 7, 2]), 0).expect("a set");
        let endpoints = balancer.endpoints();
        let ids: Vec<u64> = endpoints.iter().map(|endpoint| endpoint.id()).collect();
        let session = endpoints[0].session();
        let client = Context::new().with_client([9, 9, 9, 9].into());
        for ctx in [client, client.with_session(session)] {
            let names: Vec<_> = (0..50)
                .map(|_| request(&balancer, &ctx.with_excluded(&ids[..2]), 0, Outcome::Success))
                .collect();
            assert!(names.iter().all(|name| name.as_deref() == Some("c")), "{names:?}");
            assert!(balancer.pick(&ctx.with_excluded(&ids), 0).is_none());
        }
    }
}

#[test]
fn a_recorded_outcome_counts_once_and_the_place_is_kept_until_the_drop() {
    let balancer = balancer(PeakEwma::default(), Config::default(), &[1]);
    let mut pick = balancer.pick(&Context::new(), 0).expect("healthy");
    pick.record(5 * MS, Outcome::Success);
    pick.record(9 * SECOND, Outcome::Failure);
    let stats = &balancer.stats(5 * MS).endpoints[0];
    assert_eq!((stats.in_flight, stats.failures, stats.latency.as_millis()), (1, 0, 5));
    drop(pick);
    let stats = &balancer.stats(5 * MS).endpoints[0];
    assert_eq!((stats.in_flight, stats.cancelled), (0, 0));
}

#[test]
fn a_bad_set_is_refused_and_the_old_one_stays() {
    let balancer = balancer(RoundRobin::default(), Config::default(), &[1, 1]);
    assert_eq!(balancer.update([], 0), Err(UpdateError::Empty));
    let twice = ["a", "a"].map(EndpointConfig::new);
    assert_eq!(balancer.update(twice, 0), Err(UpdateError::Duplicate { name: "a".into() }));
    for weight in [0, 65_536] {
        let refused = balancer.update([EndpointConfig::new("x").with_weight(weight)], 0);
        assert_eq!(refused, Err(UpdateError::Weight { name: "x".into(), weight }));
    }
    let many = (0..65_536).map(|n| EndpointConfig::new(n.to_string()));
    assert!(matches!(balancer.update(many, 0), Err(UpdateError::TooMany { .. })));
    assert_eq!(names(&balancer, 2, 0), "ab");
    assert_eq!(balancer.stats(5 * SECOND).updates, 1);
}

#[test]
fn the_age_of_the_last_set_is_a_statistic() {
    let balancer = balancer(RoundRobin::default(), Config::default(), &[1]);
    let age = balancer.stats(5 * SECOND).update_age.expect("one set came");
    assert_eq!(age.as_secs(), 5);
}

#[test]
fn a_session_stays_at_its_endpoint_also_while_it_drains() {
    let balancer = balancer(RoundRobin::default(), Config::default(), &[1, 1, 1]);
    let token = balancer.endpoints()[1].session().to_owned();
    let cookie = format!("theme=dark; lb={token}");
    let ctx = Context::new().with_cookie(&cookie, "lb");
    let sticky = |ctx: &Context<'_>| request(&balancer, ctx, 0, Outcome::Success).expect("healthy");
    assert_eq!([sticky(&ctx), sticky(&ctx)], ["b", "b"]);
    balancer.set_draining("b", true, 0);
    assert_eq!(sticky(&ctx), "b");
    assert!(!names(&balancer, 20, 0).contains('b'));
    let mut set = weighted(&[1, 1, 1]);
    set.remove(1);
    balancer.update(set, 0).expect("a set");
    assert_ne!(sticky(&ctx), "b");
    for token in ["", "zz", "+123456789abcdef", "0000000000000000", "00000000000000000"] {
        assert_ne!(sticky(&Context::new().with_session(token)), "b");
    }
}

#[test]
fn counters_and_latency_survive_a_replaced_set() {
    let balancer = balancer(PeakEwma::default(), Config::default(), &[1, 1]);
    for now in 0..100 {
        let pick = balancer.pick(&Context::new(), now * 10 * MS).expect("healthy");
        pick.finish(now * 10 * MS + 5 * MS, Outcome::Success);
    }
    let held = balancer.pick(&Context::new(), SECOND).expect("healthy");
    let before = balancer.stats(SECOND);
    balancer.update(weighted(&[3, 1, 1]), SECOND).expect("a set");
    let after = balancer.stats(SECOND);
    for (before, after) in before.endpoints.iter().zip(&after.endpoints) {
        assert_eq!((before.picks, before.in_flight), (after.picks, after.in_flight));
        assert_eq!(before.latency, after.latency);
        assert!(after.latency.as_millis() >= 3, "{after:?}");
    }
    drop(held);
}

/// A resolver that answers again knows nothing of what an operator has drained.
#[test]
fn what_was_drained_by_hand_stays_drained_in_later_sets() {
    let balancer = balancer(RoundRobin::default(), Config::default(), &[1, 1]);
    assert!(balancer.set_draining("a", true, 0));
    balancer.update(weighted(&[1, 1, 1]), 0).expect("a set");
    assert_eq!(names(&balancer, 4, 0).matches('a').count(), 0);
    assert!(balancer.stats(0).endpoints[0].draining);
    assert!(balancer.set_draining("a", false, 0));
    assert_eq!(names(&balancer, 3, 0).matches('a').count(), 1);
    // What its set drains is not resumed by hand.
    let set = weighted(&[1, 1]).into_iter();
    let draining = set.map(|endpoint| match &*endpoint.name {
        "a" => endpoint.draining(),
        _ => endpoint,
    });
    balancer.update(draining, 0).expect("a set");
    balancer.set_draining("a", false, 0);
    assert_eq!(names(&balancer, 4, 0), "bbbb");
}

fn checked() -> Balancer {
    let mut config = Config::default();
    config.checks = Some(CheckConfig::default());
    Balancer::new(RoundRobin::default(), config).expect("valid")
}

fn set(balancer: &Balancer, names: &[&str]) {
    balancer.update(names.iter().copied().map(EndpointConfig::new), 0).expect("a set");
}

fn check(balancer: &Balancer, name: &str, passed: bool) {
    let endpoints = balancer.endpoints();
    let found = endpoints.iter().find(|endpoint| endpoint.name() == name).expect("known");
    balancer.record_check(found.id(), passed, 0);
}

/// Envoy keeps hosts that left discovery while their checks pass (envoy #6714).
#[test]
fn a_set_that_is_replaced_as_a_whole_serves_until_the_new_one_does() {
    let balancer = checked();
    set(&balancer, &["a", "b"]);
    check(&balancer, "a", true);
    check(&balancer, "b", true);
    let mut updates = balancer.updates();
    set(&balancer, &["c", "d"]);
    updates.mark_unchanged();
    assert_eq!(names(&balancer, 4, 0), "abab", "nothing of the new set was checked yet");
    let listed: Vec<_> = balancer.endpoints().iter().map(|found| found.name().to_owned()).collect();
    assert_eq!(listed, ["c", "d", "a", "b"], "those that left are checked, too");
    // A new one that does not start yet, and an old one that ends.
    check(&balancer, "c", false);
    for _ in 0..3 {
        check(&balancer, "a", false);
    }
    assert_eq!(names(&balancer, 2, 0), "bb");
    // The same set again, such as the next answer of DNS, keeps what serves.
    set(&balancer, &["c", "d"]);
    assert_eq!(names(&balancer, 2, 0), "bb");
    updates.mark_unchanged();
    check(&balancer, "d", true);
    assert_eq!(names(&balancer, 2, 0), "dd");
    assert!(updates.has_changed().expect("open"), "those who check the endpoints look again");
    assert_eq!((*updates.borrow(), balancer.endpoints().len()), (3, 2));
}

#[test]
fn an_endpoint_that_left_serves_rather_than_one_that_is_down() {
    let balancer = checked();
    set(&balancer, &["a", "b"]);
    check(&balancer, "a", false);
    check(&balancer, "b", true);
    set(&balancer, &["a", "c"]);
    assert_eq!(names(&balancer, 4, 0), "bbbb");
    // One that returns to the set is a part of it again.
    set(&balancer, &["b", "d"]);
    assert_eq!((names(&balancer, 2, 0), balancer.endpoints().len()), ("bb".to_owned(), 2));
    // One that drains by hand leaves at once, and nobody serves.
    set(&balancer, &["e"]);
    assert_eq!(names(&balancer, 2, 0), "bb");
    assert!(balancer.set_draining("b", true, 0));
    assert!(balancer.pick(&Context::new(), 0).is_none());
    assert_eq!(balancer.endpoints().len(), 1);
    // Without checks a new set is used at once.
    let unchecked = Balancer::new(RoundRobin::default(), Config::default()).expect("valid");
    set(&unchecked, &["a"]);
    set(&unchecked, &["b"]);
    assert_eq!(names(&unchecked, 2, 0), "bb");
}
