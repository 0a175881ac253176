//! Requests that their callers give up.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::*;
use voussoir_lb::strategy::*;
use voussoir_lb::{OutlierConfig, Pick};

/// How a caller gives up after [`PATIENCE`].
type GiveUp = fn(Pick, u64);

const PATIENCE: u64 = SECOND;
const GIVE_UPS: [GiveUp; 2] = [|pick, _| drop(pick), |pick, now| pick.cancel(now)];

/// 1,000 requests a second to ten endpoints that take 10 ms, of which one takes `fast` and from 5 s
/// on never answers. Returns how many were given up in each 20 s.
fn given_up(choices: u32, fast: u64, give_up: GiveUp) -> Vec<u32> {
    let mut config = Config::default();
    config.outliers = Some(OutlierConfig::default());
    let balancer = balancer(PeakEwma::default().with_choices(choices), config, &[1; 10]);
    let mut ends = BinaryHeap::<Reverse<(u64, usize, bool)>>::new();
    let mut running: Vec<Option<Pick>> = Vec::new();
    let mut lost = vec![0; 6];
    for step in 0..120_000 {
        let now = step * MS;
        while let Some(&Reverse((end, at, is_lost))) = ends.peek()
            && end <= now
        {
            ends.pop();
            let pick = running[at].take().expect("ends once");
            if is_lost { give_up(pick, end) } else { pick.finish(end, Outcome::Success) }
        }
        let pick = balancer.pick(&Context::new(), now).expect("healthy");
        let is_first = pick.endpoint().name() == "a";
        let is_lost = is_first && now >= 5 * SECOND;
        let takes = if is_lost {
            PATIENCE
        } else if is_first {
            fast
        } else {
            10 * MS
        };
        lost[(now / (20 * SECOND)) as usize] += u32::from(is_lost);
        ends.push(Reverse((now + takes, running.len(), is_lost)));
        running.push(Some(pick));
    }
    lost
}

/// ingress-nginx #5540: the latency of an endpoint from which no answer comes fades to nothing, and
/// the endpoint draws all traffic.
#[test]
fn an_endpoint_that_hangs_is_avoided_though_its_callers_give_up() {
    for give_up in GIVE_UPS {
        for choices in [2, 3, 0] {
            for fast in [MS, 10 * MS, 50 * MS] {
                let lost = given_up(choices, fast, give_up);
                // Those of the first second, then some each time that its latency has faded.
                assert!(lost[0] < 300, "{choices} choices, {fast}: {lost:?} of 20000 each");
                assert!(lost[1..].iter().all(|&lost| lost < 60), "{choices}, {fast}: {lost:?}");
            }
        }
    }
}

/// Without other traffic only the caller knows how long it has waited.
#[test]
fn a_lone_caller_leaves_an_endpoint_that_hangs() {
    for hangs_from in [0, 100] {
        let balancer = balancer(PeakEwma::default().with_choices(0), Config::default(), &[1; 3]);
        let (mut now, mut lost) = (0, 0);
        for request in 0..1_000 {
            let pick = balancer.pick(&Context::new(), now).expect("healthy");
            let is_first = pick.endpoint().name() == "a";
            if is_first && request >= hangs_from {
                lost += 1;
                now += PATIENCE;
                pick.cancel(now);
            } else {
                now += if is_first { 2 * MS } else { 10 * MS };
                pick.finish(now, Outcome::Success);
            }
        }
        assert!((1..=5).contains(&lost), "{lost} of 1000 were lost");
    }
}

#[test]
fn a_request_that_is_cancelled_at_once_says_nothing_of_the_latency() {
    for is_known in [false, true] {
        for give_up in GIVE_UPS {
            let balancer =
                balancer(PeakEwma::default().with_choices(0), Config::default(), &[1; 2]);
            let mut now = SECOND;
            let mut ended = BTreeMap::<String, u32>::new();
            for request in 0..2_000 {
                let pick = balancer.pick(&Context::new(), now).expect("healthy");
                let name = pick.endpoint().name().to_owned();
                // `a` is asked and cancelled at once, nine times of ten; `b` answers in 10 ms.
                if name == "a" && request % 10 != 0 && (is_known || request > 0) {
                    give_up(pick, now + 1_000);
                    now += 1_000;
                } else {
                    now += 10 * MS;
                    pick.finish(now, Outcome::Success);
                    *ended.entry(name).or_default() += 1;
                }
            }
            let latency = |at: usize| balancer.endpoints()[at].latency(now) / MS as f32;
            assert!(latency(0) < 11.0, "it does not look slow: {} ms", latency(0));
            assert!(ended["b"] > 20 || !is_known, "it does not look fast: {ended:?}");
        }
    }
}

/// The time of a pick that is dropped is the latest that the balancer has seen.
#[test]
fn a_dropped_pick_has_lasted_until_the_latest_pick() {
    let balancer = balancer(PeakEwma::default(), Config::default(), &[1]);
    let (held, short) = (
        balancer.pick(&Context::new(), SECOND).expect("healthy"),
        balancer.pick(&Context::new(), SECOND).expect("healthy"),
    );
    short.finish(SECOND + 10 * MS, Outcome::Success);
    balancer.pick(&Context::new(), 3 * SECOND).expect("healthy").cancel(3 * SECOND);
    drop(held);
    let endpoint = &balancer.endpoints()[0];
    let latency = endpoint.latency(3 * SECOND) / SECOND as f32;
    assert!((1.99..=2.0).contains(&latency), "{latency} s");
    assert_eq!(balancer.stats(0).endpoints[0].cancelled, 2);
}
