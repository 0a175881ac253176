//! Limits, retries and drains of the TCP proxy.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use voussoir_lb::l4::{OnFull, TcpConfig};
use voussoir_lb::strategy::{IpHash, LeastConnections, RoundRobin};
use voussoir_lb::{Clock, Config, Monotonic};

use crate::support::*;

/// So long nothing happens where nothing may.
const MOMENT: Duration = Duration::from_millis(100);

#[tokio::test]
async fn at_the_limit_accepting_waits_for_an_end() {
    let backend = Backend::echo().await;
    let mut config = TcpConfig::default();
    config.max_connections = 2;
    let running = run(balancer(&[backend.address]), config).await;
    let [first, _second] = [running.connected().await, running.connected().await];
    let mut third = running.client().await;
    third.write_all(b"!").await.expect("the system's queue takes it");
    assert!(timeout(MOMENT, third.read_u8()).await.is_err(), "accepted beyond the limit");
    assert_eq!(running.proxy.stats().accepted, 2);
    drop(first);
    assert_eq!(soon(third.read_u8()).await.expect("accepted"), b'!');
}

/// A listener to which nobody connects takes no place from the others.
#[tokio::test]
async fn listeners_share_the_last_place() {
    let backend = Backend::echo().await;
    let mut config = TcpConfig::default();
    config.max_connections = 1;
    let mut first = run(balancer(&[backend.address]), config).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let second = listener.local_addr().expect("bound");
    let proxy = first.proxy.clone();
    tokio::spawn(async move { proxy.serve(listener).await });
    for _ in 0..2 {
        drop(first.connected().await);
        first.idle().await;
        first.address = second;
        let client = first.connected().await;
        let mut waiting = first.client().await;
        waiting.write_all(b"!").await.expect("the system's queue takes it");
        assert!(timeout(MOMENT, waiting.read_u8()).await.is_err(), "served beyond the limit");
        drop(client);
        assert_eq!(soon(waiting.read_u8()).await.expect("served"), b'!');
        drop(waiting);
        first.idle().await;
    }
}

#[tokio::test]
async fn at_the_limit_a_connection_is_reset_if_configured() {
    let backend = Backend::echo().await;
    let mut config = TcpConfig::default();
    (config.max_connections, config.on_full) = (2, OnFull::Reject);
    let running = run(balancer(&[backend.address]), config).await;
    let [first, _second] = [running.connected().await, running.connected().await];
    assert_reset(&mut running.client().await).await;
    drop(first);
    until(|| running.proxy.stats().active == 1).await;
    running.connected().await;
    let stats = running.proxy.stats();
    assert_eq!((stats.accepted, stats.rejected_full), (4, 1));
}

#[tokio::test]
async fn a_full_endpoint_rejects_or_makes_wait() {
    for wait in [Duration::ZERO, LONG] {
        let backend = Backend::echo().await;
        let mut limits = Config::default();
        limits.max_in_flight = Some(1);
        let balancer = balancer_with(LeastConnections::default(), limits, &[backend.address]);
        let mut config = TcpConfig::default();
        config.endpoint_wait = wait;
        let running = run(balancer.clone(), config).await;
        let first = running.connected().await;
        let mut second = running.client().await;
        if wait.is_zero() {
            assert_reset(&mut second).await;
            assert_eq!(running.proxy.stats().rejected_endpoint, 1);
        } else {
            second.write_all(b"!").await.expect("open");
            assert!(timeout(MOMENT, second.read_u8()).await.is_err(), "beyond the limit");
            drop(first);
            assert_eq!(soon(second.read_u8()).await.expect("served"), b'!');
        }
        assert!(balancer.endpoints()[0].in_flight() <= 1);
    }
}

#[tokio::test]
async fn a_wait_for_an_endpoint_ends_when_another_user_of_the_balancer_gives_one_back() {
    let backend = Backend::echo().await;
    let mut limits = Config::default();
    limits.max_in_flight = Some(1);
    let balancer = balancer_with(RoundRobin::default(), limits, &[backend.address]);
    let held = balancer.pick(&voussoir_lb::Context::new(), Monotonic.now()).expect("free");
    let mut config = TcpConfig::default();
    config.endpoint_wait = LONG;
    let running = run(balancer, config).await;
    let mut client = running.client().await;
    until(|| running.proxy.stats().active == 1).await;
    drop(held);
    assert_eq!(exchange(&mut client, b"!").await.expect("served"), b"!");
}

#[tokio::test]
async fn a_wait_for_an_endpoint_ends_in_a_reset_after_its_time() {
    let backend = Backend::echo().await;
    let mut limits = Config::default();
    limits.max_in_flight = Some(1);
    let balancer = balancer_with(RoundRobin::default(), limits, &[backend.address]);
    let mut config = TcpConfig::default();
    config.endpoint_wait = MOMENT;
    let running = run(balancer, config).await;
    let _first = running.connected().await;
    let since = std::time::Instant::now();
    assert_reset(&mut running.client().await).await;
    assert!(since.elapsed() >= MOMENT, "{:?}", since.elapsed());
}

/// Every strategy, the one that always chooses the same endpoint as well, moves on.
#[tokio::test]
async fn a_connection_goes_elsewhere_when_an_endpoint_cannot_be_connected_to() {
    let hole = BlackHole::new().await;
    let good = Backend::echo().await;
    let set = [closed_port().await, hole.address, good.address];
    let strategies: [Box<dyn voussoir_lb::strategy::Strategy>; 3] = [
        Box::new(RoundRobin::default()),
        Box::new(LeastConnections::default()),
        Box::new(IpHash::default()),
    ];
    for strategy in strategies {
        let balancer = voussoir_lb::Balancer::boxed(strategy, Config::default()).expect("valid");
        crate::support::set(&balancer, &set);
        let mut config = TcpConfig::default();
        config.connect_timeout = Duration::from_millis(50);
        let running = run(balancer.clone(), config).await;
        for _ in 0..6 {
            running.connected().await;
        }
        running.idle().await;
        let stats = balancer.stats(Monotonic.now());
        let failures: Vec<u64> = stats.endpoints.iter().map(|endpoint| endpoint.failures).collect();
        assert_eq!(failures[2], 0, "{stats:?}");
        let failed: u64 = failures.iter().sum();
        assert_eq!(running.proxy.stats().connect_failures, failed);
        assert_eq!(running.proxy.stats().unconnected, 0);
        assert!(stats.endpoints.iter().all(|endpoint| endpoint.in_flight == 0));
    }
}

#[tokio::test]
async fn each_endpoint_is_tried_once_and_at_most_as_many_as_allowed() {
    let set = [closed_port().await, closed_port().await, closed_port().await];
    for (max_attempts, expected) in [(1, 1), (2, 2), (100, 3)] {
        let mut config = TcpConfig::default();
        config.max_attempts = max_attempts;
        let running = run(balancer(&set), config).await;
        assert_reset(&mut running.client().await).await;
        running.idle().await;
        let stats = running.proxy.stats();
        assert_eq!((stats.connect_failures, stats.unconnected), (expected, 1));
    }
}

#[tokio::test]
async fn a_name_that_is_no_address_is_a_failure_of_its_endpoint() {
    let good = Backend::echo().await;
    let balancer = balancer(&[good.address]);
    let named = ["not-an-address", &good.address.to_string()].map(voussoir_lb::EndpointConfig::new);
    balancer.update(named, Monotonic.now()).expect("a set");
    let running = run(balancer.clone(), TcpConfig::default()).await;
    for _ in 0..4 {
        running.connected().await;
    }
    let failures = balancer.stats(Monotonic.now()).endpoints[0].failures;
    assert!(failures >= 1, "{failures}");
}

#[tokio::test]
async fn a_drain_lets_connections_end_and_accepts_no_other() {
    let backend = Backend::echo().await;
    let mut running = run(balancer(&[backend.address]), TcpConfig::default()).await;
    let mut client = running.connected().await;
    let proxy = running.proxy.clone();
    let draining = tokio::spawn(async move { proxy.drain(LONG).await });
    soon(&mut running.serving).await.expect("serving ends");
    assert!(TcpStream::connect(running.address).await.is_err(), "accepted in a drain");
    assert_eq!(exchange(&mut client, b"go on").await.expect("open"), b"go on");
    assert!(!draining.is_finished());
    drop(client);
    assert_eq!(soon(draining).await.expect("no panic"), 0);
    assert_eq!(running.proxy.stats().aborted, 0);
}

#[tokio::test]
async fn a_connection_in_the_systems_queue_is_served_by_a_drain() {
    let backend = Backend::echo().await;
    let mut config = TcpConfig::default();
    config.max_connections = 2;
    let running = run(balancer(&[backend.address]), config).await;
    let first = running.connected().await;
    let second = running.connected().await;
    let mut queued = running.client().await;
    queued.write_all(b"!").await.expect("the queue takes it");
    // Both at once: a place is free, and nobody has accepted yet.
    drop(first);
    until(|| running.proxy.stats().active < 2 || running.proxy.stats().accepted == 3).await;
    let proxy = running.proxy.clone();
    let draining = tokio::spawn(async move { proxy.drain(LONG).await });
    assert_eq!(soon(queued.read_u8()).await.expect("served"), b'!');
    drop((second, queued));
    assert_eq!(soon(draining).await.expect("no panic"), 0);
}

#[tokio::test]
async fn a_drain_closes_what_is_open_after_its_time() {
    let backend = Backend::echo().await;
    let balancer = balancer(&[backend.address]);
    let running = run(balancer.clone(), TcpConfig::default()).await;
    let mut clients = [running.connected().await, running.connected().await];
    assert_eq!(soon(running.proxy.drain(MOMENT)).await, 2);
    for client in &mut clients {
        assert_eq!(rest(client).await.unwrap_or_default(), b"");
    }
    let stats = running.proxy.stats();
    assert_eq!((stats.active, stats.aborted), (0, 2));
    assert_eq!(balancer.endpoints()[0].in_flight(), 0);
    assert_eq!(soon(running.proxy.drain(Duration::MAX)).await, 0, "a second drain is over at once");
}

#[tokio::test]
async fn a_dropped_serve_closes_its_listener_and_no_connection() {
    let backend = Backend::echo().await;
    let running = run(balancer(&[backend.address]), TcpConfig::default()).await;
    let mut client = running.connected().await;
    running.serving.abort();
    until(|| running.serving.is_finished()).await;
    assert!(TcpStream::connect(running.address).await.is_err());
    assert_eq!(exchange(&mut client, b"go on").await.expect("open"), b"go on");
}

#[tokio::test]
async fn two_listeners_share_the_limits() {
    let backend = Backend::echo().await;
    let mut config = TcpConfig::default();
    (config.max_connections, config.on_full) = (1, OnFull::Reject);
    let running = run(balancer(&[backend.address]), config).await;
    let listener = tokio::net::TcpListener::bind("[::1]:0").await.expect("a port");
    let second = listener.local_addr().expect("bound");
    let proxy = running.proxy.clone();
    let serving = tokio::spawn(async move { proxy.serve(listener).await });
    let first = running.connected().await;
    assert_reset(&mut TcpStream::connect(second).await.expect("accepted")).await;
    drop(first);
    running.idle().await;
    let mut client = TcpStream::connect(second).await.expect("accepted");
    assert_eq!(exchange(&mut client, b"!").await.expect("served"), b"!");
    drop(client);
    soon(running.proxy.drain(LONG)).await;
    soon(serving).await.expect("both listeners end");
}
