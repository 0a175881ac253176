//! Whatever validates works: every field over its whole range, extremes included.

use std::time::Duration;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use voussoir_lb::ConfigError;
use voussoir_lb::l4::*;
use voussoir_sim::Situations;

use crate::hello::HELLO_H2;
use crate::support::*;

static SITUATIONS: [&str; 9] = [
    "refused",
    "echoed",
    "ended at once by its limits",
    "header expected",
    "hello expected",
    "header sent",
    "smallest buffer",
    "one connection",
    "flow answered",
];

const MS: Duration = Duration::from_millis(1);

fn any_duration(max: Duration) -> impl Strategy<Value = Duration> {
    let out = vec![Duration::ZERO, Duration::from_nanos(999_999), max + MS, Duration::MAX];
    prop_oneof![
        1 => prop::sample::select(out),
        4 => prop::sample::select(vec![MS, max]),
        8 => (1_000_000..=max.as_nanos() as u64).prop_map(Duration::from_nanos),
    ]
}

fn any_size(min: usize, max: usize) -> impl Strategy<Value = usize> {
    prop_oneof![
        1 => prop::sample::select(vec![0, min - 1, max + 1, usize::MAX]),
        4 => prop::sample::select(vec![min, max]),
        8 => min..=max,
    ]
}

fn any_tcp() -> impl Strategy<Value = TcpConfig> {
    let minutes = |count: u64| Duration::from_secs(60 * count);
    let limits =
        (any_size(1, 1_000_000), any::<bool>(), any_duration(minutes(60)), any_size(1, 100));
    let times = (any_duration(minutes(5)), any_duration(minutes(30 * 24 * 60)));
    let proxy_in = (any::<bool>(), any_duration(minutes(5)), any_size(16, 65_551), any::<bool>());
    let hello = (any_duration(minutes(5)), any_size(64, 1 << 18));
    let preludes = (
        prop::option::weighted(0.3, proxy_in),
        prop::option::of(prop::sample::select(vec![ProxyVersion::V1, ProxyVersion::V2])),
        prop::option::weighted(0.3, hello),
    );
    (limits, times, any_size(1 << 10, 16 << 20), preludes).prop_map(
        |(limits, times, bytes, preludes)| {
            let mut config = TcpConfig::default();
            config.max_connections = limits.0;
            config.on_full = if limits.1 { OnFull::Wait } else { OnFull::Reject };
            config.endpoint_wait = limits.2;
            config.max_attempts = u32::try_from(limits.3).unwrap_or(u32::MAX);
            (config.connect_timeout, config.idle_timeout) = times;
            config.buffer_bytes = bytes;
            let (proxy_in, proxy_out, hello) = preludes;
            config.proxy_in = proxy_in.map(|(is_empty, timeout, max_bytes, rejects)| {
                let all = ["0.0.0.0/0".parse().expect("a range")];
                // An empty list is one of many that are refused, so it is drawn rarely.
                let trusted = if is_empty && max_bytes % 8 == 0 { &[][..] } else { &all };
                let mut proxy_in = ProxyInConfig::new(trusted.iter().copied());
                (proxy_in.timeout, proxy_in.max_bytes) = (timeout, max_bytes);
                proxy_in.untrusted = if rejects { Untrusted::Reject } else { Untrusted::Direct };
                proxy_in
            });
            config.proxy_out = proxy_out;
            config.client_hello = hello.map(|(timeout, max_bytes)| {
                let mut hello = ClientHelloConfig::default();
                (hello.timeout, hello.max_bytes) = (timeout, max_bytes);
                hello
            });
            config
        },
    )
}

fn any_udp() -> impl Strategy<Value = UdpConfig> {
    let day = Duration::from_secs(86_400);
    let all = (any_size(1, 1_000_000), any_duration(day), any_size(1, 10_000), any::<bool>());
    all.prop_map(|(flows, idle, queued, rejects)| {
        let mut config = UdpConfig::default();
        (config.max_flows, config.idle_timeout, config.max_queued) = (flows, idle, queued);
        config.on_full = if rejects { OnFullFlows::Reject } else { OnFullFlows::EvictIdle };
        config
    })
}

fn cases() -> u32 {
    std::env::var("VOUSSOIR_L4_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(400)
}

/// Whether a limit is so short that it may end a connection which works.
fn is_hasty(config: &TcpConfig) -> bool {
    let prelude = config.proxy_in.as_ref().map(|given| given.timeout);
    let hello = config.client_hello.as_ref().map(|given| given.timeout);
    let times = [Some(config.connect_timeout), Some(config.idle_timeout), prelude, hello];
    let is_short = times.iter().flatten().any(|time| *time < Duration::from_secs(2));
    let bytes = config.client_hello.as_ref().map_or(usize::MAX, |hello| hello.max_bytes);
    is_short || bytes < HELLO_H2.len()
}

async fn live(config: TcpConfig, situations: &Situations) {
    let is_valid = config.validate().is_ok();
    let backend = Backend::echo().await;
    let balancer = balancer(&[backend.address]);
    if !is_valid {
        let refused: ConfigError = TcpProxy::new(balancer, config).expect_err("invalid");
        assert!(!refused.field.is_empty() && !refused.rule.is_empty());
        return situations.reached("refused");
    }
    let running = run(balancer, config.clone()).await;
    let mut sent = Vec::new();
    if config.proxy_in.is_some() {
        situations.reached("header expected");
        sent.extend(b"PROXY TCP4 192.0.2.7 198.51.100.9 56324 443\r\n");
    }
    let header_len = sent.len();
    sent.extend(HELLO_H2);
    sent.extend(&pattern(5_000)[..]);
    situations.add("hello expected", u64::from(config.client_hello.is_some()));
    situations.add("header sent", u64::from(config.proxy_out.is_some()));
    situations.add("smallest buffer", u64::from(config.buffer_bytes == 1 << 10));
    situations.add("one connection", u64::from(config.max_connections == 1));
    let mut client = running.client().await;
    let echoed = async {
        client.write_all(&sent).await?;
        client.shutdown().await?;
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.map(|_| answer)
    };
    match soon(echoed).await {
        Ok(answer) if answer.ends_with(&sent[header_len..]) => {
            let added = answer.len() - (sent.len() - header_len);
            assert_eq!(added > 0, config.proxy_out.is_some());
            situations.reached("echoed");
        }
        other => {
            assert!(is_hasty(&config), "{config:?}: {other:?}");
            situations.reached("ended at once by its limits");
        }
    }
    drop(client);
    assert_eq!(soon(running.proxy.drain(LONG)).await, 0);
    let stats = running.proxy.stats();
    assert_eq!((stats.active, stats.accepted), (0, 1));
}

async fn live_udp(config: UdpConfig, situations: &Situations) {
    let backend = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let balancer = balancer(&[backend.local_addr().expect("bound")]);
    let is_valid = config.validate().is_ok();
    let is_hasty = config.idle_timeout < Duration::from_secs(2);
    let Ok(proxy) = UdpProxy::new(balancer, config) else {
        assert!(!is_valid);
        return situations.reached("refused");
    };
    assert!(is_valid);
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let address = socket.local_addr().expect("bound");
    let serving = tokio::spawn({
        let proxy = proxy.clone();
        async move { proxy.serve(socket).await }
    });
    let client = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    client.send_to(b"ask", address).await.expect("loopback");
    let mut buffer = [0; 9];
    let (len, flow) = soon(backend.recv_from(&mut buffer)).await.expect("forwarded");
    assert_eq!(&buffer[..len], b"ask");
    backend.send_to(b"answer", flow).await.expect("loopback");
    let answer = tokio::time::timeout(LONG / 10, client.recv_from(&mut buffer)).await;
    match answer {
        Ok(Ok((len, _))) => {
            assert_eq!(&buffer[..len], b"answer");
            situations.reached("flow answered");
        }
        other => assert!(is_hasty, "{other:?}"),
    }
    soon(proxy.drain(Duration::ZERO)).await;
    soon(serving).await.expect("serving ends");
}

#[test]
fn a_proxy_whose_configuration_validates_works() {
    let situations = Situations::new(&SITUATIONS);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("built");
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = prop::test_runner::TestRunner::new_with_rng(
        ProptestConfig { cases: cases(), max_shrink_iters: 50, ..config },
        prop::test_runner::TestRng::deterministic_rng(prop::test_runner::RngAlgorithm::ChaCha),
    );
    let inputs = (any_tcp(), any_udp());
    let run = |(tcp, udp)| {
        runtime.block_on(async {
            live(tcp, &situations).await;
            live_udp(udp, &situations).await;
        });
        Ok(())
    };
    runner.run(&inputs, run).unwrap_or_else(|failure| panic!("{failure}"));
    situations.assert_all_reached();
}
