//! Every public configuration over its whole range: what is accepted works, what is not is refused
//! with a typed error, and nothing panics.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::topology;
use proptest::prelude::*;
use voussoir_ring::load::{HotKeys, RangeLoad};
use voussoir_ring::range::RangeMap;
use voussoir_ring::testing::{conforms, keys};
use voussoir_ring::{
    Bounded, HashRing, HotKeysConfig, Input, LoadConfig, MAX_PLAN_REPLICAS, MAX_POINTS, MAX_SLOTS,
    Maglev, Node, Output, Partitioner, Placement, Plan, PlanConfig, Rebalance, Rendezvous,
    RingConfig, State, Topology, Weight,
};

/// Numbers that meet both ends of `least..=most`, its inside, and what lies beyond.
fn around(least: u64, most: u64) -> impl Strategy<Value = u64> {
    let edges = [0, 1, least.saturating_sub(1), least, most, most.saturating_add(1), u64::MAX];
    prop_oneof![prop::sample::select(edges.to_vec()), least..=most, any::<u64>()]
}

fn weights() -> impl Strategy<Value = Vec<u32>> {
    let weight = prop_oneof![Just(1), Just(1_000_000), Just(1000), 1..=1_000_000_u32];
    prop::collection::vec(weight, 1..12)
}

fn weighted(milli: &[u32]) -> Topology {
    let node = |(&milli, id)| Node::new(id).weighing(Weight::milli(milli).unwrap());
    Topology::new(u64::MAX - 1, milli.iter().zip(u64::MAX - 20..).map(node)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(60)
    })]

    #[test]
    fn rings_of_any_size_and_weight(points in around(1, 65_536), milli in weights()) {
        let topology = weighted(&milli);
        let mut config = RingConfig::default();
        config.virtual_nodes = u32::try_from(points).unwrap_or(u32::MAX);
        let points = |milli: u32| u64::from(config.virtual_nodes) * u64::from(milli);
        let wanted: u64 = milli.iter().map(|&milli| ((points(milli) + 500) / 1000).max(1)).sum();
        // The largest rings take seconds each: one in a while shows what several would.
        prop_assume!(!(1_000_000..=MAX_POINTS).contains(&wanted));
        let accepted = (1..=65_536).contains(&config.virtual_nodes) && wanted <= MAX_POINTS;
        let built = HashRing::with_config(&topology, &config);
        prop_assert_eq!(built.is_ok(), accepted);
        if let Ok(ring) = built {
            conforms(&ring, &common::ids(&topology));
            prop_assert_eq!(ring.without_keys(), []);
            let shares: f64 = ring.placement(1).shares().iter().map(|(_, share)| share).sum();
            prop_assert!((shares - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn maglev_and_rendezvous_of_any_weight(size in around(2, 70_000), milli in weights()) {
        let topology = weighted(&milli);
        let ids = common::ids(&topology);
        conforms(&Rendezvous::new(&topology).unwrap(), &ids);
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        if let Ok(maglev) = Maglev::with_table(&topology, size) {
            conforms(&maglev, &ids);
            let idle = maglev.without_keys();
            prop_assert!(keys(200).all(|key| !idle.contains(&maglev.owner(&key))));
            prop_assert!(idle.len() < ids.len());
        }
    }

    #[test]
    fn loads_of_any_bound_stay_within_it(bound in prop_oneof![
        Just(1.001), Just(100.0), 1.001..100.0_f64, any::<f64>()
    ], milli in weights()) {
        let ring = HashRing::new(&weighted(&milli));
        prop_assume!(ring.is_ok());
        let accepted = (1.0005..100.0005).contains(&bound);
        let bounded = Bounded::new(ring.unwrap(), bound);
        prop_assert_eq!(bounded.is_ok(), accepted);
        if let Ok(bounded) = bounded {
            let all: f64 = milli.iter().map(|&milli| f64::from(milli)).sum();
            let held: Vec<_> = (0..200_u8).map(|n| bounded.assign(&[n % 3])).collect();
            for ((_, load), &milli) in bounded.stats().loads.iter().zip(&milli) {
                let most = (bound * 1000.0).round() / 1000.0 * 200.0 * f64::from(milli) / all;
                prop_assert!(*load as f64 <= most.ceil() + 1e-6, "{load} of {most}");
            }
            drop(held);
            prop_assert_eq!(bounded.stats().total, 0);
        }
    }

    #[test]
    fn plans_of_any_limits_finish(
        per_step in around(1, 100),
        per_node in around(1, 100),
        pause in around(0, u64::MAX),
        retry in around(0, u64::MAX),
        replicas in around(1, MAX_PLAN_REPLICAS as u64),
        start in around(0, u64::MAX),
    ) {
        let mut config = PlanConfig::default();
        config.moves_per_step = usize::try_from(per_step).unwrap();
        config.moves_per_node = usize::try_from(per_node).unwrap();
        config.step_pause = Duration::from_nanos(pause);
        config.retry_after = Duration::from_nanos(retry);
        let replicas = usize::try_from(replicas).unwrap();
        let place = |nodes| HashRing::new(&topology(nodes)).unwrap().placement(replicas);
        let plan = Plan::new(&place(4), &place(5), &config);
        let accepted = (1..=MAX_PLAN_REPLICAS).contains(&replicas) && per_step > 0 && per_node > 0;
        prop_assert_eq!(plan.is_ok(), accepted);
        let Ok(plan) = plan else { return Ok(()) };
        let mut rebalance = Rebalance::new(Arc::new(plan), start);
        let (mut now, mut fail) = (start, true);
        rebalance.step(now, Input::Tick);
        while rebalance.progress().state != State::Finished {
            let Some(output) = rebalance.poll_output() else {
                now = rebalance.next_deadline().expect("there is something to do").max(now);
                rebalance.step(now, Input::Tick);
                continue;
            };
            if let Output::Copy { op, .. } | Output::Remove { op, .. } = output {
                // One failure, which the retry time puts off.
                let failed = std::mem::take(&mut fail);
                rebalance.step(now, if failed { Input::Failed(op) } else { Input::Done(op) });
            }
        }
    }

    #[test]
    fn sketches_of_any_size(counters in around(1, 3000), bytes in around(1, 1024)) {
        let mut config = HotKeysConfig::default();
        config.counters = usize::try_from(counters).unwrap();
        config.key_bytes = usize::try_from(bytes).unwrap();
        let accepted = (1..=1 << 20).contains(&counters) && (1..=1024).contains(&bytes);
        prop_assume!(!accepted || counters < 10_000);
        let sketch = HotKeys::new(&config);
        prop_assert_eq!(sketch.is_ok(), accepted);
        if let Ok(mut sketch) = sketch {
            let before = sketch.memory_bytes();
            keys(500).for_each(|key| sketch.record(&key));
            (0..500).for_each(|_| sketch.record(b"hot"));
            prop_assert!(sketch.total() == 1000 && sketch.memory_bytes() == before);
            prop_assert_eq!(&sketch.top()[0].key[..], &b"hot"[..config.key_bytes.min(3)]);
        }
    }

    #[test]
    fn advice_of_any_shares(
        hot in prop_oneof![Just(1.0), Just(f64::MIN_POSITIVE), 0.0..1.0, any::<f64>()],
        cold in prop_oneof![Just(0.0), 0.0..1.0, any::<f64>()],
        key in prop_oneof![Just(1.0), Just(f64::MIN_POSITIVE), 0.0..1.0, any::<f64>()],
        least in around(0, u64::MAX),
        samples in around(8, 4096),
    ) {
        let mut config = LoadConfig::default();
        (config.hot_share, config.cold_share, config.key_share) = (hot, cold, key);
        config.min_accesses = least;
        config.samples = usize::try_from(samples).unwrap();
        let share = |share: f64| share > 0.0 && share <= 1.0;
        let accepted = share(hot) && share(key) && (0.0..=hot).contains(&cold)
            && (8..=4096).contains(&samples);
        let load = RangeLoad::new(&config);
        prop_assert_eq!(load.is_ok(), accepted, "{:?}", config);
        if let Ok(mut load) = load {
            let map = RangeMap::new(1, &[1]).unwrap().split(b"key:5").unwrap();
            keys(300).for_each(|key| load.record(&map, &key));
            let advice = load.advise(&map);
            prop_assert!(least <= 300 || advice.is_empty());
        }
    }

    #[test]
    fn slots_of_any_number(slots in around(1, 5000), replicas in around(0, 20)) {
        let slots = u32::try_from(slots).unwrap_or(u32::MAX);
        prop_assume!(!(10_000..=MAX_SLOTS).contains(&slots));
        let replicas = usize::try_from(replicas).unwrap();
        let ring = HashRing::new(&topology(5)).unwrap();
        let placement = Placement::slots(&ring, 1, slots, replicas);
        prop_assert_eq!(placement.is_ok(), (1..=MAX_SLOTS).contains(&slots));
        if let Ok(placement) = placement {
            let found = placement.owners_at(u64::MAX).len();
            prop_assert_eq!(found, replicas.min(5));
        }
    }
}
