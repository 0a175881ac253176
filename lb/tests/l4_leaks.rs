//! Nothing is left of 10,000 connections, however they ended. A process of its own, because it
//! counts descriptors.

#[allow(dead_code, reason = "the other tests use the rest")]
#[path = "l4/support.rs"]
mod support;

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use voussoir_lb::l4::{ProxyInConfig, TcpConfig, UdpConfig, UdpProxy};
use voussoir_lb::strategy::LeastConnections;
use voussoir_lb::{Config, Context, Monotonic};

use support::*;

#[cfg(target_os = "linux")]
fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("Linux has it").count()
}

#[cfg(not(target_os = "linux"))]
fn descriptors() -> usize {
    0
}

const HEADER: &[u8] = b"PROXY UNKNOWN\r\n";

/// One connection, ended in one of eight ways.
async fn connection(running: &Running, way: u32) {
    let mut client = running.client().await;
    match way {
        // In order, by the client and by the endpoint.
        0..=2 => {
            client.write_all(HEADER).await.expect("open");
            exchange(&mut client, b"ping").await.expect("an echo");
            client.shutdown().await.expect("open");
            rest(&mut client).await.expect("an end");
        }
        // With a reset: in the middle, before the header, within it.
        3 => {
            client.write_all(HEADER).await.expect("open");
            exchange(&mut client, b"ping").await.expect("an echo");
            reset(client);
        }
        4 => reset(client),
        5 => {
            let _ = client.write_all(&HEADER[..7]).await;
            reset(client);
        }
        // The proxy rejects it.
        6 => {
            let _ = client.write_all(b"no header\r\n").await;
            let _ = rest(&mut client).await;
        }
        // The endpoint resets it.
        _ => {
            let _ = client.write_all(&[HEADER, b"!"].concat()).await;
            let _ = rest(&mut client).await;
        }
    }
}

#[test]
fn nothing_is_left_of_ten_thousand_connections() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("built");
    runtime.block_on(async {
        let backend = Backend::new(|mut stream| async move {
            let mut buffer = [0; 64];
            while let Ok(len @ 1..) = stream.read(&mut buffer).await {
                if buffer[0] == b'!' {
                    return reset(stream);
                }
                if stream.write_all(&buffer[..len]).await.is_err() {
                    return;
                }
            }
        })
        .await;
        let mut limits = Config::default();
        limits.max_in_flight = Some(64);
        let set = [closed_port().await, backend.address];
        let balancer = balancer_with(LeastConnections::default(), limits, &set);
        let mut config = TcpConfig::default();
        // A permit that is lost is missed soon.
        config.max_connections = 16;
        config.endpoint_wait = Duration::from_secs(5);
        config.proxy_in = Some(ProxyInConfig::new(["127.0.0.0/8".parse().expect("a range")]));
        let running = run(balancer.clone(), config).await;
        connection(&running, 0).await;
        running.idle().await;
        let before = descriptors();
        for round in 0..10_000_u32.div_ceil(8) {
            let ways = (0..8).map(|way| connection(&running, (way + round) % 8));
            soon(join_all(ways)).await;
        }
        running.idle().await;
        until(|| descriptors() <= before).await;
        let stats = running.proxy.stats();
        assert_eq!(stats.accepted, 10_001);
        let ends = stats.completed + stats.client_resets + stats.upstream_resets;
        assert_eq!(ends + stats.prelude_failures + stats.unconnected, 10_001, "{stats:?}");
        assert!(balancer.endpoints().iter().all(|endpoint| endpoint.in_flight() == 0));
        assert!(balancer.pick(&Context::new(), voussoir_lb::Clock::now(&Monotonic)).is_some());

        flows(before).await;
    });
}

/// The same of flows.
async fn flows(before: usize) {
    let backend = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let balancer = balancer(&[backend.local_addr().expect("bound")]);
    let mut config = UdpConfig::default();
    config.max_flows = 100;
    config.idle_timeout = Duration::from_millis(100);
    let proxy = UdpProxy::new(balancer.clone(), config).expect("valid");
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let address = socket.local_addr().expect("bound");
    let serving = tokio::spawn({
        let proxy = proxy.clone();
        async move { proxy.serve(socket).await }
    });
    let mut buffer = [0; 9];
    for _ in 0..2_000 {
        let client = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        client.send_to(b"x", address).await.expect("loopback");
        let (_, flow) = soon(backend.recv_from(&mut buffer)).await.expect("forwarded");
        backend.send_to(b"y", flow).await.expect("loopback");
        soon(client.recv_from(&mut buffer)).await.expect("answered");
    }
    until(|| proxy.stats().active == 0).await;
    // Those of the backend and the proxy.
    until(|| descriptors() <= before + 2).await;
    until(|| balancer.endpoints()[0].in_flight() == 0).await;
    // A port that comes again within the idle time is the same flow.
    let stats = proxy.stats();
    assert!(stats.flows <= 2_000 && stats.flows > 1_000, "{stats:?}");
    assert_eq!(stats.sent_to_client, 2_000);
    assert_eq!(soon(proxy.drain(LONG)).await, 0);
    soon(serving).await.expect("serving ends");
}

async fn join_all(futures: impl Iterator<Item = impl Future<Output = ()>>) {
    let mut futures: Vec<_> = futures.map(Box::pin).collect();
    std::future::poll_fn(|cx| {
        futures.retain_mut(|future| future.as_mut().poll(cx).is_pending());
        if futures.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}
