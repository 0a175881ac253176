//! What becomes of the bytes and the ends of a connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use voussoir_lb::l4::{Connection, TcpConfig};
use voussoir_lb::strategy::{PeakEwma, RoundRobin};
use voussoir_lb::{Balancer, Clock, Config, Monotonic, OutlierConfig};

use crate::support::*;

const MIB: usize = 1 << 20;

#[tokio::test]
async fn a_connection_holds_its_endpoint_from_the_first_byte_to_the_end() {
    let backend = Backend::echo().await;
    let balancer = balancer(&[backend.address]);
    let running = run(balancer.clone(), TcpConfig::default()).await;
    let mut client = running.connected().await;
    let bytes = pattern(3 * MIB);
    let (mut reader, mut writer) = client.split();
    let mut answer = vec![0; bytes.len()];
    let (sent, got) =
        soon(async { tokio::join!(writer.write_all(&bytes), reader.read_exact(&mut answer)) })
            .await;
    sent.and(got.map(drop)).expect("an echo");
    assert!(answer[..] == bytes[..], "the echo differs");
    assert_eq!(balancer.endpoints()[0].in_flight(), 1);
    drop(client);
    running.idle().await;
    let stats = running.proxy.stats();
    let moved = bytes.len() as u64 + 1;
    assert_eq!((stats.bytes_to_upstream, stats.bytes_to_client), (moved, moved));
    assert_eq!((stats.accepted, stats.completed), (1, 1), "{stats:?}");
    let endpoint = &balancer.stats(Monotonic.now()).endpoints[0];
    assert_eq!((endpoint.in_flight, endpoint.failures, endpoint.cancelled), (0, 0, 0));
}

/// caddy #8026, golang/go #35892: an end in one direction tears both down.
#[tokio::test]
async fn an_end_of_the_client_is_passed_on_and_the_answer_still_arrives() {
    let backend = Backend::new(|mut stream| async move {
        let mut request = Vec::new();
        stream.read_to_end(&mut request).await.expect("the request ends");
        assert!(request[..] == pattern(MIB)[..], "the request differs");
        // The client ended long ago, and gets an answer that fills every buffer on the way.
        stream.write_all(&pattern(8 * MIB)).await.expect("the client still reads");
    })
    .await;
    let running = run(balancer(&[backend.address]), TcpConfig::default()).await;
    let mut client = running.client().await;
    soon(client.write_all(&pattern(MIB))).await.expect("taken");
    client.shutdown().await.expect("open");
    assert!(rest(&mut client).await.expect("an end")[..] == pattern(8 * MIB)[..]);
    running.idle().await;
    assert_eq!(running.proxy.stats().completed, 1);
}

/// cilium/proxy #2012, the other way round.
#[tokio::test]
async fn an_end_of_the_endpoint_is_passed_on_and_the_client_still_sends() {
    let (backend, mut streams) = Backend::handed().await;
    let running = run(balancer(&[backend.address]), TcpConfig::default()).await;
    let mut client = running.client().await;
    let mut upstream = soon(streams.recv()).await.expect("a connection");
    upstream.write_all(b"bye").await.expect("open");
    upstream.shutdown().await.expect("open");
    assert_eq!(rest(&mut client).await.expect("an end"), b"bye");
    let sending = tokio::spawn(async move {
        client.write_all(&pattern(8 * MIB)).await.expect("the endpoint still reads");
        client.shutdown().await.expect("open");
        client
    });
    assert!(rest(&mut upstream).await.expect("an end")[..] == pattern(8 * MIB)[..]);
    drop((upstream, soon(sending).await));
    running.idle().await;
    assert_eq!(running.proxy.stats().completed, 1);
}

#[tokio::test]
async fn a_reset_of_the_client_is_passed_on_as_a_reset() {
    let (backend, mut streams) = Backend::handed().await;
    let balancer = balancer_with(PeakEwma::default(), Config::default(), &[backend.address]);
    let running = run(balancer.clone(), TcpConfig::default()).await;
    let mut client = running.client().await;
    client.write_all(b"x").await.expect("open");
    let mut upstream = soon(streams.recv()).await.expect("a connection");
    assert_eq!(soon(upstream.read_u8()).await.expect("open"), b'x');
    reset(client);
    assert_reset(&mut upstream).await;
    running.idle().await;
    assert_eq!(running.proxy.stats().client_resets, 1);
    // It says nothing of the endpoint.
    let stats = &balancer.stats(Monotonic.now()).endpoints[0];
    assert_eq!((stats.failures, stats.cancelled, stats.latency), (0, 1, Duration::ZERO));
}

#[tokio::test]
async fn a_reset_of_the_endpoint_is_passed_on_as_a_reset() {
    let (backend, mut streams) = Backend::handed().await;
    let running = run(balancer(&[backend.address]), TcpConfig::default()).await;
    let mut client = running.client().await;
    let mut upstream = soon(streams.recv()).await.expect("a connection");
    upstream.write_all(b"x").await.expect("open");
    assert_eq!(soon(client.read_u8()).await.expect("open"), b'x');
    reset(upstream);
    assert_reset(&mut client).await;
    running.idle().await;
    assert_eq!(running.proxy.stats().upstream_resets, 1);
}

/// Writes the pattern until the receiver takes no more.
async fn fill(stream: &mut TcpStream, most: usize) -> usize {
    let bytes = pattern(251 + (64 << 10));
    let mut written = 0;
    let stuck = Duration::from_millis(300);
    while let Ok(result) = tokio::time::timeout(stuck, stream.write(&bytes[written % 251..])).await
    {
        written += result.expect("open");
        assert!(written < most, "{written} bytes were taken from a sender nobody reads from");
    }
    written
}

/// pingora #910: nobody watches the client while the upstream write blocks.
#[tokio::test]
async fn a_client_that_resets_is_noticed_while_the_endpoint_takes_no_bytes() {
    let (backend, mut streams) = Backend::handed().await;
    let running = run(balancer(&[backend.address]), TcpConfig::default()).await;
    let mut client = running.client().await;
    let upstream = soon(streams.recv()).await.expect("a connection");
    fill(&mut client, 256 * MIB).await;
    reset(client);
    running.idle().await;
    soon(upstream.ready(Interest::ERROR)).await.expect("a socket");
    assert_eq!(running.proxy.stats().client_resets, 1);
}

#[tokio::test]
async fn a_client_that_resets_after_its_end_is_noticed_while_the_endpoint_is_silent() {
    let (backend, mut streams) = Backend::handed().await;
    let running = run(balancer(&[backend.address]), TcpConfig::default()).await;
    let mut client = running.client().await;
    client.shutdown().await.expect("open");
    let mut upstream = soon(streams.recv()).await.expect("a connection");
    assert_eq!(soon(upstream.read(&mut [0])).await.expect("an end"), 0);
    reset(client);
    running.idle().await;
    assert_eq!(running.proxy.stats().client_resets, 1);
    soon(upstream.ready(Interest::ERROR)).await.expect("a socket");
}

#[tokio::test]
async fn a_client_that_resets_is_noticed_while_an_endpoint_is_connected_to() {
    let hole = BlackHole::new().await;
    let balancer = balancer_with(PeakEwma::default(), Config::default(), &[hole.address]);
    let mut config = TcpConfig::default();
    config.connect_timeout = Duration::from_secs(200);
    let running = run(balancer.clone(), config).await;
    let client = running.client().await;
    until(|| balancer.endpoints()[0].in_flight() == 1).await;
    reset(client);
    running.idle().await;
    let stats = &balancer.stats(Monotonic.now()).endpoints[0];
    assert_eq!((stats.in_flight, stats.failures, stats.cancelled), (0, 0, 1));
    assert!(stats.latency > Duration::ZERO, "connecting takes at least as long");
    assert_eq!(running.proxy.stats().client_resets, 1);
}

/// A server that answers and closes without reading the request: its system resets the connection
/// behind the answer.
#[tokio::test]
async fn an_answer_before_a_reset_reaches_a_client_that_still_sends() {
    let backend = Backend::new(|mut stream| async move {
        let _ = stream.read_u8().await;
        let _ = stream.write_all(&pattern(1000)).await;
    })
    .await;
    let running = run(balancer(&[backend.address]), TcpConfig::default()).await;
    for _ in 0..20 {
        let mut client = running.client().await;
        let (mut reader, mut writer) = client.split();
        let read = async {
            let mut answer = vec![0; 1000];
            reader.read_exact(&mut answer).await.map(|_| answer)
        };
        let send = async {
            let bytes = pattern(16 << 10);
            while writer.write_all(&bytes).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        let (answer, ()) = soon(async { tokio::join!(read, send) }).await;
        assert!(answer.expect("the whole answer")[..] == pattern(1000)[..]);
    }
    running.idle().await;
}

/// The same with every step in the order that loses the answer: the proxy finds it, the reset
/// behind it and bytes of the client all at once.
#[tokio::test]
async fn an_answer_before_a_reset_is_read_when_writing_fails_first() {
    let (backend, mut streams) = Backend::handed().await;
    let running = run(balancer(&[backend.address]), TcpConfig::default()).await;
    let mut client = running.client().await;
    client.write_all(b"x").await.expect("open");
    let mut upstream = soon(streams.recv()).await.expect("a connection");
    assert_eq!(soon(upstream.read_u8()).await.expect("open"), b'x');
    soon(client.writable()).await.expect("open");
    soon(upstream.writable()).await.expect("open");
    // Nothing is awaited, so the proxy, a task of this thread, runs after all three.
    assert_eq!(upstream.try_write(&pattern(1000)).expect("room"), 1000);
    reset(upstream);
    client.try_write(b"more").expect("room");
    let mut answer = vec![0; 1000];
    soon(client.read_exact(&mut answer)).await.expect("the whole answer");
    assert!(answer[..] == pattern(1000)[..]);
    assert_reset(&mut client).await;
    assert_eq!(running.proxy.stats().upstream_resets, 1);
}

/// The reset that is passed on must not overtake what the system has yet to send to the client.
#[tokio::test]
async fn an_answer_before_a_reset_reaches_a_client_that_is_slow() {
    let (backend, mut streams) = Backend::handed().await;
    let running = run(balancer(&[backend.address]), TcpConfig::default()).await;
    let mut client = running.client().await;
    let mut upstream = soon(streams.recv()).await.expect("a connection");
    fill(&mut upstream, 256 * MIB).await;
    reset(upstream);
    let mut read = Vec::new();
    let mut buffer = vec![0; 16 << 10];
    let error = loop {
        match soon(client.read(&mut buffer)).await {
            Ok(0) => panic!("an answer that was cut off ends with a reset"),
            Ok(count) => read.extend_from_slice(&buffer[..count]),
            Err(error) => break error,
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    running.idle().await;
    let written = running.proxy.stats().bytes_to_client;
    assert_eq!(read.len() as u64, written, "what was written to the client has reached it");
    assert!(read.iter().enumerate().all(|(at, byte)| *byte == (at % 251) as u8));
}

#[tokio::test]
async fn a_sender_nobody_reads_from_is_held_up_and_loses_no_byte() {
    for buffer_bytes in [1 << 10, 64 << 10] {
        let (backend, mut streams) = Backend::handed().await;
        let mut config = TcpConfig::default();
        config.buffer_bytes = buffer_bytes;
        let running = run(balancer(&[backend.address]), config).await;
        let mut client = running.client().await;
        let mut upstream = soon(streams.recv()).await.expect("a connection");
        // The systems' buffers hold some MiB, those of the proxy hardly anything.
        let sent = fill(&mut client, 64 * MIB).await;
        let reading = tokio::spawn(async move { rest(&mut upstream).await.expect("an end") });
        client.shutdown().await.expect("open");
        let got = soon(reading).await.expect("no panic");
        assert_eq!(got.len(), sent);
        assert!(got[..] == pattern(sent)[..], "the bytes differ");
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
    let backend = Backend::echo().await;
    let mut config = TcpConfig::default();
    config.idle_timeout = Duration::from_millis(400);
    let running = run(balancer(&[backend.address]), config).await;
    let mut client = running.connected().await;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        exchange(&mut client, b"still there").await.expect("a busy connection stays");
    }
    let idle_since = std::time::Instant::now();
    assert_eq!(rest(&mut client).await.expect("an end"), b"");
    let idle = idle_since.elapsed();
    assert!(idle >= Duration::from_millis(395), "closed after {idle:?}");
    running.idle().await;
    assert_eq!(running.proxy.stats().idle_timeouts, 1);
}

/// tower #856: the endpoint is kept as a place in the set, which another one takes.
#[tokio::test]
async fn a_connection_stays_at_an_endpoint_that_leaves_the_set() {
    let [first, second] = [Backend::letter(b'1').await, Backend::letter(b'2').await];
    let balancer = balancer(&[first.address]);
    let running = run(balancer.clone(), TcpConfig::default()).await;
    let mut old = running.client().await;
    assert_eq!(soon(old.read_u8()).await.expect("open"), b'1');
    set(&balancer, &[second.address]);
    let mut new = running.client().await;
    assert_eq!(soon(new.read_u8()).await.expect("open"), b'2');
    assert_eq!(exchange(&mut old, b"old").await.expect("open"), b"old");
    assert_eq!(exchange(&mut new, b"new").await.expect("open"), b"new");
    drop((old, new));
    running.idle().await;
    assert_eq!(balancer.endpoints()[0].in_flight(), 0);
}

#[tokio::test]
async fn a_new_route_is_for_new_connections() {
    let [first, second] = [Backend::letter(b'1').await, Backend::letter(b'2').await];
    let running = run(balancer(&[first.address]), TcpConfig::default()).await;
    let mut old = running.client().await;
    assert_eq!(soon(old.read_u8()).await.expect("open"), b'1');
    running.proxy.set_route(balancer(&[second.address]));
    let mut new = running.client().await;
    assert_eq!(soon(new.read_u8()).await.expect("open"), b'2');
    assert_eq!(exchange(&mut old, b"old").await.expect("open"), b"old");
    running.proxy.set_route(|_: &Connection<'_>| None);
    assert_reset(&mut running.client().await).await;
    assert_eq!(running.proxy.stats().rejected_route, 1);
}

#[tokio::test]
async fn a_route_that_panics_ends_one_connection_and_gives_back_what_it_held() {
    let backend = Backend::echo().await;
    let behind = balancer(&[backend.address]);
    let calls = AtomicU32::new(0);
    let route = move |_: &Connection<'_>| -> Option<Balancer> {
        let call = calls.fetch_add(1, Ordering::Relaxed);
        assert!(call >= 3, "the route fails on purpose");
        Some(behind.clone())
    };
    let mut config = TcpConfig::default();
    config.max_connections = 1;
    let running = run(route, config).await;
    for _ in 0..3 {
        assert_eq!(rest(&mut running.client().await).await.expect("an end"), b"");
    }
    running.connected().await;
    running.idle().await;
}

/// linkerd2 #11669: what fails at once attracts the traffic.
#[tokio::test]
async fn an_endpoint_that_resets_before_its_first_byte_is_ejected() {
    let taken = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&taken);
    let bad = Backend::new(move |stream| {
        count.fetch_add(1, Ordering::Relaxed);
        async move { reset(stream) }
    })
    .await;
    let good = Backend::echo().await;
    let mut config = Config::default();
    let mut outliers = OutlierConfig::default();
    outliers.consecutive_failures = Some(2);
    config.outliers = Some(outliers);
    // `PeakEwma` would not ask the endpoint a second time within a second.
    let balancer = balancer_with(RoundRobin::default(), config, &[bad.address, good.address]);
    let running = run(balancer.clone(), TcpConfig::default()).await;
    let mut failed = 0;
    for _ in 0..100 {
        let mut client = running.client().await;
        failed += u32::from(exchange(&mut client, b"ping").await.is_err());
    }
    // A reset that is there before the connection is used is one of connecting: its client is
    // served by the other endpoint.
    let taken = taken.load(Ordering::Relaxed);
    assert!((2..=10).contains(&taken) && failed <= taken, "{taken} taken, {failed} failed");
    running.idle().await;
    let now = Monotonic.now();
    assert_eq!(balancer.stats(now).ejections, 1);
}

/// The latency that strategies see is that of connecting, not the life of the connection.
#[tokio::test]
async fn a_long_connection_is_not_a_slow_endpoint() {
    let backend = Backend::echo().await;
    let balancer = balancer_with(
        PeakEwma::new(Duration::from_secs(3600)),
        Config::default(),
        &[backend.address],
    );
    let running = run(balancer.clone(), TcpConfig::default()).await;
    let client = running.connected().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    drop(client);
    running.idle().await;
    let latency = balancer.stats(Monotonic.now()).endpoints[0].latency;
    assert!(latency > Duration::ZERO && latency < Duration::from_millis(250), "{latency:?}");
}
