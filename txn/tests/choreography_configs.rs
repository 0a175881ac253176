//! Every configuration of a choreography that validates works, at its extremes too, and no other
//! starts.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::Config as ProptestConfig;
use voussoir_sim::Situations;
use voussoir_txn::Retry;
use voussoir_txn::choreography::*;

static SITUATIONS: [&str; 5] = ["accepted", "rejected", "done", "too many hops", "tried again"];

fn around(most: usize) -> impl Strategy<Value = usize> {
    let chosen = [0, 1, 2, most - 1, most, most + 1, usize::MAX];
    prop_oneof![4 => 1..=most, 1 => prop::sample::select(chosen.to_vec())]
}

fn hops() -> impl Strategy<Value = u32> {
    prop_oneof![1..=10_000_u32, prop::sample::select(&[0, 1, 2, 10_000, 10_001, u32::MAX][..])]
}

fn pauses() -> impl Strategy<Value = Duration> {
    let chosen = [0, 1, 3_600_000, 3_600_001, u64::MAX];
    let millis = prop_oneof![1..=3_600_000_u64, prop::sample::select(chosen.to_vec())];
    millis.prop_map(Duration::from_millis)
}

/// A join, a reaction that fails at first, and one more.
async fn works(config: ChoreographyConfig, situations: &Situations) {
    let bus = Arc::new(MemoryBus::new(1000));
    let first = Rule::on("a", "first", |cx: EventCx| async move {
        if cx.attempt == 1 {
            return Err(ReactError::new("at first"));
        }
        Ok(vec![NewEvent::new("b", "x")])
    });
    let retry = Retry::exponential(Duration::from_millis(1), 3);
    let join = Rule::on("a", "join", |_| async { Ok(vec![NewEvent::new("c", "")]) }).and("b");
    let end = Rule::on("c", "end", |_| async { Ok(vec![NewEvent::new("d", "")]) });
    let participant = Participant::new("p", [first.retry(retry), join, end]).unwrap();
    let max_hops = config.max_hops;
    let running = Running::start(bus.clone(), &participant, config).unwrap();
    for number in 0..10 {
        let key = format!("k{number}");
        bus.publish(&[Event::first(&key, "a", &key, "")]).await.unwrap();
        let ended = |observed: &Observed| match observed {
            Observed::Event(event) => event.kind == "d" && event.key == key,
            Observed::Dead(letter) => letter.event.key == key,
        };
        for _ in 0..1000 {
            if bus.observed().iter().any(ended) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let last = bus.observed().into_iter().find(ended).expect("it ends");
        match last {
            Observed::Event(_) => situations.reached("done"),
            Observed::Dead(letter) => {
                let expected = DeadReason::TooManyHops { hops: max_hops + 1, max: max_hops };
                assert_eq!(letter.why, expected);
                situations.reached("too many hops");
            }
        }
    }
    situations.add("tried again", running.stats().failures);
    running.stop().await;
}

#[test]
fn whatever_validates_works_and_nothing_else_starts() {
    let situations = Situations::new(&SITUATIONS);
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) };
    let mut runner = prop::test_runner::TestRunner::new(config);
    let limits = (around(1_000_000), around(1_000_000), around(100_000), around(10_000));
    let sizes = (around(10_000_000), around(98_304), around(1000));
    let cases = (hops(), limits, sizes, pauses(), any::<u64>());
    let result = runner.run(&cases, |(hops, limits, sizes, pause, seed)| {
        let mut config = ChoreographyConfig::default();
        config.max_hops = hops;
        (config.max_waits, config.max_parked, config.max_due, config.max_parallel) = limits;
        (config.max_seen, config.max_body_bytes, config.max_published) = sizes;
        (config.pause, config.seed) = (pause, Some(seed));
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_time().start_paused(true).build().expect("a runtime");
        runtime.block_on(async {
            if config.validate().is_ok() {
                situations.reached("accepted");
                works(config, &situations).await;
            } else {
                situations.reached("rejected");
                let bus = Arc::new(MemoryBus::new(1));
                let rule = Rule::on("a", "r", |_| async { Ok(vec![]) });
                let participant = Participant::new("p", [rule]).unwrap();
                assert!(Running::start(bus, &participant, config).is_err());
            }
        });
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    situations.assert_all_reached();
}
