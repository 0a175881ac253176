//! Each configuration that validates works, at the ends of its ranges too; others are rejected.

mod support;

use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use support::*;
use voussoir_net::memory::Network;
use voussoir_net::{Config, Peers, Transport};
use voussoir_sim::Situations;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const MS: Duration = Duration::from_millis(1);

/// Both ends, and the default.
fn count(default: usize) -> impl Strategy<Value = usize> {
    prop_oneof![Just(1), Just(2), Just(default), Just(usize::MAX)]
}

fn time(default: Duration) -> impl Strategy<Value = Duration> {
    prop_oneof![Just(MS), Just(Duration::from_millis(20)), Just(default), Just(DAY)]
}

prop_compose! {
    fn valid()(
        sizes in prop::array::uniform2(prop_oneof![Just(1 << 10), Just(1 << 20), Just(1 << 30)]),
        queues in prop::array::uniform2(prop_oneof![Just(0), Just(1 << 20), Just(usize::MAX)]),
        messages in prop::array::uniform2(count(1024)),
        counts in (count(1024), count(1024), count(1024), count(256)),
        events in prop_oneof![Just(1), Just(1024), Just(1 << 16)],
        partial in prop_oneof![Just(0), Just(1 << 28), Just(usize::MAX)],
        times in prop::array::uniform4(time(Duration::from_secs(2))),
        backoff in prop::array::uniform2(time(Duration::from_millis(10))),
        gather in prop_oneof![Just(Duration::ZERO), Just(Duration::from_secs(1))],
        seed in any::<Option<u64>>(),
    ) -> Config {
        let mut config = Config::new(CLUSTER);
        for (index, limits) in [&mut config.small, &mut config.bulk].into_iter().enumerate() {
            limits.max_message_bytes = sizes[index];
            limits.max_queue_bytes = sizes[index].max(queues[index]);
            limits.max_queue_messages = messages[index];
        }
        (config.max_calls_out, config.max_calls_in) = (counts.0, counts.1);
        // Two for each peer are needed.
        (config.max_connections, config.max_handshakes) = (counts.2.max(2), counts.3);
        (config.max_events, config.gather, config.seed) = (events, gather, seed);
        config.max_partial_bytes = partial.max(sizes[0]).max(sizes[1]);
        let [dial, handshake, keep_alive, dead_after] = times;
        (config.dial_timeout, config.handshake_timeout) = (dial, handshake);
        config.keep_alive = keep_alive.min(DAY / 2);
        config.dead_after = dead_after.max(config.keep_alive * 2);
        config.min_backoff = backoff[0].min(backoff[1]).min(Duration::from_millis(20));
        config.max_backoff = backoff[0].max(backoff[1]);
        config
    }
}

/// A message and a call get through, in time: with limits of a millisecond perhaps not the first.
async fn works(one: &dyn Transport, two: &Node) {
    for channel in [SMALL, BULK] {
        soon("an answer", async {
            while one.call(two.tcp.local(), channel, "x".into(), later()).await != Ok("x".into()) {
                tokio::time::sleep(MS).await;
            }
        })
        .await;
    }
}

static EXTREMES: [&str; 7] = [
    "queue of one message",
    "queue of one longest message",
    "one call at a time",
    "room for one unfinished frame",
    "one event",
    "peer given up after 2 ms",
    "seed from the system",
];

fn count_extremes(config: &Config, situations: &Situations) {
    let (small, longest) = (config.small, config.small.max_message_bytes);
    let is_reached = [
        small.max_queue_messages == 1,
        small.max_queue_bytes == longest,
        config.max_calls_out == 1 || config.max_calls_in == 1,
        config.max_partial_bytes == longest.max(config.bulk.max_message_bytes),
        config.max_events == 1,
        config.dead_after == 2 * MS,
        config.seed.is_none(),
    ];
    for (name, is_reached) in EXTREMES.into_iter().zip(is_reached) {
        situations.add(name, u64::from(is_reached));
    }
}

#[test]
fn what_validates_works() {
    let situations = Situations::new(&EXTREMES);
    let mut runner = TestRunner::new(ProptestConfig::with_cases(64));
    let outcome = runner.run(&valid(), |config| {
        prop_assert_eq!(config.validate(), Ok(()));
        count_extremes(&config, &situations);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let peers = Peers::new();
            let one = node_at(1, "127.0.0.1:0", &peers, config.clone()).await;
            let two = node_at(2, "127.0.0.1:0", &peers, config.clone()).await;
            works(&one.tcp, &two).await;
            let network = Network::new(config.clone()).unwrap();
            let (near, far) = (network.join(1), network.join(2));
            let (sender, _got) = tokio::sync::mpsc::unbounded_channel();
            far.serve(SERVICE, std::sync::Arc::new(Echo(sender))).unwrap();
            let answer = near.call(2, SMALL, "x".into(), later()).await;
            assert_eq!(answer.unwrap(), "x");
        });
        Ok(())
    });
    outcome.unwrap();
    situations.assert_all_reached();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_out_of_range_is_rejected_by_name(at in 0..16_usize, config in valid()) {
        let mut config = config;
        let bulk = config.bulk.max_message_bytes;
        let field = match at {
            0 => { config.small.max_message_bytes = 1023; "max_message_bytes" }
            1 => { config.bulk.max_message_bytes = (1 << 30) + 1; "max_message_bytes" }
            2 => { config.bulk.max_queue_bytes = bulk - 1; "max_queue_bytes" }
            3 => { config.small.max_queue_messages = 0; "max_queue_messages" }
            4 => { config.max_calls_out = 0; "max_calls_out" }
            5 => { config.max_calls_in = 0; "max_calls_in" }
            6 => { config.max_connections = 0; "max_connections" }
            7 => { config.max_handshakes = 0; "max_handshakes" }
            8 => { config.max_events = (1 << 16) + 1; "max_events" }
            9 => { config.max_partial_bytes = bulk - 1; "max_partial_bytes" }
            10 => { config.dial_timeout = Duration::MAX; "dial_timeout" }
            11 => { config.handshake_timeout = Duration::ZERO; "handshake_timeout" }
            12 => { config.keep_alive = Duration::MAX; "keep_alive" }
            13 => { config.dead_after = config.keep_alive; "dead_after" }
            14 => { config.max_backoff = Duration::MAX; "max_backoff" }
            _ => { config.gather = Duration::MAX; "gather" }
        };
        prop_assert_eq!(config.validate().unwrap_err().field, field);
    }
}
