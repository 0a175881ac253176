//! Every configuration that validates works, at its extremes too.

use std::time::Duration;

use proptest::prelude::*;
use voussoir_lb::l7::{HttpConfig, Protocol, UpstreamConfig};

use crate::support::*;

fn ms(range: std::ops::RangeInclusive<u64>) -> impl Strategy<Value = Duration> {
    let ends = (*range.start(), *range.end());
    prop_oneof![Just(ends.0), Just(ends.1), range].prop_map(Duration::from_millis)
}

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;

prop_compose! {
    fn http()(
        max_connections in prop_oneof![Just(1), Just(1_000_000), 1_usize..=1_000_000],
        max_header_bytes in prop_oneof![Just(1_usize << 10), Just(1 << 20)],
        max_headers in prop_oneof![Just(2_usize), Just(1_000), 2_usize..=1_000],
        header_timeout in ms(2_000..=HOUR),
        idle_timeout in ms(10..=DAY),
        body_timeout in ms(2_000..=HOUR),
        tunnel_timeout in ms(10..=DAY),
        streams in prop_oneof![Just(1_u32), Just(10_000)],
        resets in prop_oneof![Just(1_u32), Just(10_000)],
    ) -> HttpConfig {
        let mut config = HttpConfig::default();
        config.max_connections = max_connections;
        config.max_header_bytes = max_header_bytes;
        config.max_headers = max_headers;
        config.header_timeout = header_timeout;
        config.idle_timeout = idle_timeout;
        config.body_timeout = body_timeout;
        config.tunnel_timeout = tunnel_timeout;
        config.max_concurrent_streams = streams;
        config.max_pending_resets = resets;
        config
    }
}

prop_compose! {
    fn to_backends()(
        connect in ms(2_000..=60_000),
        times in (ms(2_000..=DAY), ms(2_000..=DAY)),
        body_timeout in ms(2_000..=DAY),
        max_idle in prop_oneof![Just(0_usize), Just(10_000), 0_usize..=10_000],
        max_streams in prop_oneof![Just(1_u32), Just(10_000)],
        idle_timeout in ms(1..=HOUR),
        max_header_bytes in prop_oneof![Just(1_usize << 10), Just(1 << 20)],
        max_attempts in prop_oneof![Just(1_u32), Just(100)],
        budget_share in prop_oneof![Just(0.0), Just(1.0), 0.0..=1.0],
        min_budget in prop_oneof![Just(0), Just(u32::MAX)],
    ) -> UpstreamConfig {
        let mut config = UpstreamConfig::default();
        config.connect_timeout = connect;
        config.try_timeout = times.0.min(times.1);
        config.total_timeout = times.0.max(times.1);
        config.body_timeout = body_timeout;
        config.max_idle = max_idle;
        config.max_streams = max_streams;
        config.idle_timeout = idle_timeout;
        config.max_header_bytes = max_header_bytes;
        config.retry.max_attempts = max_attempts;
        config.retry.budget_share = budget_share;
        config.retry.min_budget = min_budget;
        config
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_configuration_that_validates_forwards(http in http(), up in to_backends()) {
        prop_assert_eq!(http.validate(), Ok(()));
        prop_assert_eq!(up.validate(), Ok(()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (address, proxy) =
                proxy(upstream(&[echo().await], up), http).await;
            let mut client = Conn::connect(address).await;
            for _ in 0..3 {
                let answer = client
                    .ask("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi")
                    .await;
                assert_eq!((answer.status(), answer.text().ends_with("hi")), (200, true));
            }
            drop(client);
            assert_eq!(soon(proxy.drain(Duration::from_secs(10))).await, 0);
        });
    }
}

/// Whatever the range names is a limit, at its ends too.
#[tokio::test]
async fn the_head_of_a_response_may_be_as_long_as_its_limit() {
    for (limit, length, lines, expected) in [
        (1 << 20, 300 << 10, 1, 200),
        (1 << 20, 70 << 10, 1, 200),
        (1 << 20, 10, 900, 200),
        (1 << 20, 10, 1_100, 502),
        (1 << 20, 1_100 << 10, 1, 502),
        (64 << 10, 60 << 10, 1, 200),
        (64 << 10, 70 << 10, 1, 502),
        (1 << 10, 900, 1, 200),
        (1 << 10, 60 << 10, 1, 502),
    ] {
        let to = backend(move |mut conn, _| async move {
            if conn.message().await.is_some() {
                let value = "x".repeat(length);
                let lines: Vec<String> =
                    (0..lines).map(|at| format!("x-{at}: {value}\r\n")).collect();
                let head = lines.concat();
                let head = format!("HTTP/1.1 200 OK\r\n{head}content-length: 0\r\n\r\n");
                // The proxy may have had enough before the end.
                let _ = tokio::io::AsyncWriteExt::write_all(&mut conn.tcp, head.as_bytes()).await;
                conn.rest().await;
            }
        })
        .await;
        let mut config = UpstreamConfig::default();
        config.max_header_bytes = limit;
        let (address, _proxy) = proxy(upstream(&[to], config), HttpConfig::default()).await;
        let answer = Conn::connect(address).await.ask(GET).await;
        assert_eq!(answer.status(), expected, "{lines} of {length} bytes, limit {limit}");
    }
}

#[test]
fn values_out_of_range_are_named() {
    type Break<T> = (&'static str, fn(&mut T));
    let http: [Break<HttpConfig>; 9] = [
        ("max_connections", |c| c.max_connections = 0),
        ("max_header_bytes", |c| c.max_header_bytes = 1023),
        ("max_headers", |c| c.max_headers = 1_001),
        ("header_timeout", |c| c.header_timeout = Duration::from_millis(9)),
        ("idle_timeout", |c| c.idle_timeout = Duration::MAX),
        ("body_timeout", |c| c.body_timeout = Duration::ZERO),
        ("tunnel_timeout", |c| c.tunnel_timeout = Duration::MAX),
        ("max_concurrent_streams", |c| c.max_concurrent_streams = 0),
        ("max_pending_resets", |c| c.max_pending_resets = 10_001),
    ];
    for (field, change) in http {
        let mut config = HttpConfig::default();
        change(&mut config);
        assert_eq!(config.validate().unwrap_err().field, field);
    }
    let upstreams: [Break<UpstreamConfig>; 11] = [
        ("connect_timeout", |c| c.connect_timeout = Duration::ZERO),
        ("try_timeout", |c| c.try_timeout = Duration::MAX),
        ("total_timeout", |c| c.total_timeout = Duration::from_secs(1)),
        ("body_timeout", |c| c.body_timeout = Duration::ZERO),
        ("max_idle", |c| c.max_idle = 10_001),
        ("max_streams", |c| c.max_streams = 0),
        ("idle_timeout", |c| c.idle_timeout = Duration::ZERO),
        ("max_header_bytes", |c| c.max_header_bytes = 2 << 20),
        ("retry.max_attempts", |c| c.retry.max_attempts = 0),
        ("retry.budget_share", |c| c.retry.budget_share = f64::NAN),
        ("session_cookie", |c| c.session_cookie = Some("a b".into())),
    ];
    for (field, change) in upstreams {
        let mut config = UpstreamConfig::default();
        config.protocol = Protocol::Http2;
        change(&mut config);
        assert_eq!(config.validate().unwrap_err().field, field);
    }
}
