//! Flows of the UDP proxy.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use voussoir_lb::l4::{Connection, OnFullFlows, Route, UdpConfig, UdpProxy};
use voussoir_lb::strategy::{LeastConnections, RoundRobin};
use voussoir_lb::{Balancer, Clock, Config, Monotonic, OutlierConfig};

use crate::support::{LONG, balancer, balancer_with, set, soon, until};

const MOMENT: Duration = Duration::from_millis(100);

/// Answers each datagram by its letter and the datagram.
struct UdpBackend {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl UdpBackend {
    async fn new(letter: u8) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let address = socket.local_addr().expect("bound");
        let task = tokio::spawn(async move {
            let mut buffer = vec![0; 65_535];
            while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
                let answer = [&[letter], &buffer[..len]].concat();
                let _ = socket.send_to(&answer, from).await;
            }
        });
        Self { address, task }
    }
}

impl Drop for UdpBackend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Running {
    proxy: UdpProxy,
    address: SocketAddr,
    serving: JoinHandle<()>,
}

async fn run(route: impl Route + 'static, config: UdpConfig) -> Running {
    let proxy = UdpProxy::new(route, config).expect("valid");
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let address = socket.local_addr().expect("bound");
    let serving = tokio::spawn({
        let proxy = proxy.clone();
        async move { proxy.serve(socket).await }
    });
    Running { proxy, address, serving }
}

impl Running {
    async fn client(&self) -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        socket.connect(self.address).await.expect("loopback");
        socket
    }
}

/// The letter that answers a datagram, which must come back whole.
async fn ask(client: &UdpSocket, bytes: &[u8]) -> u8 {
    client.send(bytes).await.expect("loopback");
    receive(client, bytes).await
}

async fn receive(client: &UdpSocket, bytes: &[u8]) -> u8 {
    let mut buffer = vec![0; 65_535];
    let len = soon(client.recv(&mut buffer)).await.expect("an answer");
    assert_eq!(&buffer[1..len], bytes);
    buffer[0]
}

#[tokio::test]
async fn a_client_stays_at_its_endpoint_and_gets_its_own_answers() {
    let [a, b] = [UdpBackend::new(b'a').await, UdpBackend::new(b'b').await];
    let balancer = balancer(&[a.address, b.address]);
    let running = run(balancer.clone(), UdpConfig::default()).await;
    let mut clients = Vec::new();
    for at in 0..10_u8 {
        let client = running.client().await;
        clients.push((ask(&client, &[at]).await, client));
    }
    assert_eq!(clients.iter().filter(|(letter, _)| *letter == b'a').count(), 5);
    for (at, (letter, client)) in clients.iter().enumerate() {
        assert_eq!(ask(client, format!("again {at}").as_bytes()).await, *letter);
        assert_eq!(ask(client, b"").await, *letter, "an empty datagram is one too");
        assert_eq!(ask(client, &vec![7; 60_000]).await, *letter);
    }
    let stats = running.proxy.stats();
    assert_eq!((stats.active, stats.flows, stats.dropped), (10, 10, 0), "{stats:?}");
    assert_eq!((stats.received, stats.sent_to_upstream, stats.sent_to_client), (40, 40, 40));
    assert_eq!(balancer.endpoints()[0].in_flight(), 5);
    let endpoint = &balancer.stats(Monotonic.now()).endpoints[0];
    assert_eq!((endpoint.failures, endpoint.cancelled), (0, 0));
}

/// One source port may ask two services, as DNS and games do, and whatever is behind a NAT.
#[tokio::test]
async fn one_client_at_two_sockets_has_two_flows() {
    let [a, b] = [UdpBackend::new(b'a').await, UdpBackend::new(b'b').await];
    let sockets = [0; 2].map(|_| std::net::UdpSocket::bind("127.0.0.1:0").expect("a port"));
    let [first, second] = sockets.each_ref().map(|socket| socket.local_addr().expect("bound"));
    let (to_a, to_b) = (balancer(&[a.address]), balancer(&[b.address]));
    let route = move |connection: &Connection<'_>| {
        Some(if connection.local == first { to_a.clone() } else { to_b.clone() })
    };
    let proxy = UdpProxy::new(route, UdpConfig::default()).expect("valid");
    for socket in sockets {
        socket.set_nonblocking(true).expect("a socket");
        let (serving, socket) = (proxy.clone(), UdpSocket::from_std(socket).expect("a socket"));
        tokio::spawn(async move { serving.serve(socket).await });
    }
    let client = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let mut buffer = [0; 16];
    for (to, letter) in [(first, b'a'), (second, b'b'), (first, b'a'), (second, b'b')] {
        client.send_to(b"?", to).await.expect("loopback");
        let (len, from) = soon(client.recv_from(&mut buffer)).await.expect("an answer");
        assert_eq!((&buffer[..len], from), (&[letter, b'?'][..], to));
    }
    assert_eq!((proxy.stats().active, proxy.stats().flows), (2, 2));
}

/// More datagrams at once than a socket is known to be ready for.
#[tokio::test]
async fn a_burst_of_a_new_client_is_not_lost() {
    let backend = UdpBackend::new(b'a').await;
    let running = run(balancer(&[backend.address]), UdpConfig::default()).await;
    for _ in 0..20 {
        let client = running.client().await;
        for at in 0..30_u8 {
            client.send(&[at]).await.expect("loopback");
        }
        for at in 0..30_u8 {
            assert_eq!(receive(&client, &[at]).await, b'a');
        }
    }
    assert_eq!(running.proxy.stats().dropped, 0);
}

#[tokio::test]
async fn a_flow_ends_when_it_is_idle_and_not_while_answers_arrive() {
    let backend = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let balancer = balancer(&[backend.local_addr().expect("bound")]);
    let mut config = UdpConfig::default();
    config.idle_timeout = Duration::from_millis(400);
    let running = run(balancer.clone(), config).await;
    let client = running.client().await;
    client.send(b"subscribe").await.expect("loopback");
    let (_, from) = soon(backend.recv_from(&mut [0; 99])).await.expect("forwarded");
    for at in 0..12 {
        tokio::time::sleep(Duration::from_millis(80)).await;
        backend.send_to(&[at], from).await.expect("loopback");
        let mut byte = [0];
        soon(client.recv(&mut byte)).await.expect("an answer");
        assert_eq!(byte, [at]);
    }
    assert_eq!(running.proxy.stats().flows, 1);
    let since = std::time::Instant::now();
    until(|| running.proxy.stats().active == 0).await;
    assert!(since.elapsed() >= Duration::from_millis(395), "{:?}", since.elapsed());
    assert_eq!(running.proxy.stats().idle_timeouts, 1);
    until(|| balancer.endpoints()[0].in_flight() == 0).await;
}

#[tokio::test]
async fn at_the_limit_the_idlest_flow_leaves_or_the_new_one_is_dropped() {
    let backend = UdpBackend::new(b'a').await;
    for on_full in [OnFullFlows::EvictIdle, OnFullFlows::Reject] {
        let mut config = UdpConfig::default();
        (config.max_flows, config.on_full) = (3, on_full);
        let balancer = balancer(&[backend.address]);
        let running = run(balancer.clone(), config).await;
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(running.client().await);
            ask(clients.last().expect("one"), b"x").await;
        }
        // The first is not the idlest any more.
        ask(&clients[0], b"x").await;
        let new = running.client().await;
        if on_full == OnFullFlows::Reject {
            new.send(b"x").await.expect("loopback");
            until(|| running.proxy.stats().rejected_full == 1).await;
            assert_eq!(running.proxy.stats().flows, 3);
        } else {
            ask(&new, b"x").await;
            let stats = running.proxy.stats();
            assert_eq!((stats.active, stats.flows, stats.evicted), (3, 4, 1));
            ask(&clients[0], b"x").await;
            ask(&clients[2], b"x").await;
            assert_eq!(running.proxy.stats().flows, 4, "the second one has left");
            ask(&clients[1], b"x").await;
            assert_eq!(running.proxy.stats().flows, 5);
        }
        until(|| balancer.endpoints()[0].in_flight() == 3).await;
        assert_eq!(running.proxy.stats().active, 3);
    }
}

#[tokio::test]
async fn a_flow_that_only_gets_answers_is_not_the_idlest() {
    let backend = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let mut config = UdpConfig::default();
    config.max_flows = 2;
    let running = run(balancer(&[backend.local_addr().expect("bound")]), config).await;
    let [first, second] = [running.client().await, running.client().await];
    let mut flows = Vec::new();
    for client in [&first, &second] {
        client.send(b"x").await.expect("loopback");
        flows.push(soon(backend.recv_from(&mut [0; 9])).await.expect("forwarded").1);
    }
    tokio::time::sleep(Duration::from_millis(2)).await;
    backend.send_to(b"y", flows[0]).await.expect("loopback");
    soon(first.recv(&mut [0; 9])).await.expect("an answer");
    let third = running.client().await;
    third.send(b"x").await.expect("loopback");
    soon(backend.recv_from(&mut [0; 9])).await.expect("forwarded");
    backend.send_to(b"y", flows[0]).await.expect("loopback");
    soon(first.recv(&mut [0; 9])).await.expect("the first is still there");
}

#[tokio::test]
async fn an_icmp_error_is_a_failure_and_the_client_goes_elsewhere() {
    let closed = UdpSocket::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("bound");
    let good = UdpBackend::new(b'g').await;
    let mut config = Config::default();
    let mut outliers = OutlierConfig::default();
    outliers.consecutive_failures = Some(1);
    config.outliers = Some(outliers);
    let balancer = balancer_with(RoundRobin::default(), config, &[closed, good.address]);
    let running = run(balancer.clone(), UdpConfig::default()).await;
    let client = running.client().await;
    client.send(b"lost").await.expect("loopback");
    until(|| running.proxy.stats().upstream_errors == 1).await;
    until(|| running.proxy.stats().active == 0).await;
    assert_eq!(ask(&client, b"again").await, b'g');
    let stats = balancer.stats(Monotonic.now());
    assert_eq!((stats.ejections, stats.endpoints[0].failures), (1, 1));
    assert_eq!(stats.endpoints[0].in_flight, 0);
}

#[tokio::test]
async fn a_full_set_drops_datagrams_and_counts_them() {
    let backend = UdpBackend::new(b'a').await;
    let mut limits = Config::default();
    limits.max_in_flight = Some(1);
    let balancer = balancer_with(LeastConnections::default(), limits, &[backend.address]);
    let running = run(balancer, UdpConfig::default()).await;
    ask(&running.client().await, b"x").await;
    running.client().await.send(b"x").await.expect("loopback");
    until(|| running.proxy.stats().rejected_endpoint == 1).await;
    assert_eq!((running.proxy.stats().active, running.proxy.stats().dropped), (1, 1));
}

#[tokio::test]
async fn a_flow_stays_at_an_endpoint_that_leaves_the_set() {
    let [a, b] = [UdpBackend::new(b'a').await, UdpBackend::new(b'b').await];
    let balancer = balancer(&[a.address]);
    let running = run(balancer.clone(), UdpConfig::default()).await;
    let old = running.client().await;
    assert_eq!(ask(&old, b"1").await, b'a');
    set(&balancer, &[b.address]);
    assert_eq!(ask(&old, b"2").await, b'a');
    assert_eq!(ask(&running.client().await, b"3").await, b'b');
    running.proxy.set_route(move |_: &Connection<'_>| -> Option<Balancer> { None });
    assert_eq!(ask(&old, b"4").await, b'a');
    running.client().await.send(b"x").await.expect("loopback");
    until(|| running.proxy.stats().rejected_route == 1).await;
}

#[tokio::test]
async fn a_drain_lets_flows_go_on_and_begins_no_other() {
    let backend = UdpBackend::new(b'a').await;
    let balancer = balancer(&[backend.address]);
    let mut config = UdpConfig::default();
    config.idle_timeout = Duration::from_millis(300);
    let mut running = run(balancer.clone(), config).await;
    let client = running.client().await;
    ask(&client, b"x").await;
    let proxy = running.proxy.clone();
    let draining = tokio::spawn(async move { proxy.drain(LONG).await });
    tokio::task::yield_now().await;
    ask(&client, b"still served").await;
    let new = running.client().await;
    new.send(b"x").await.expect("loopback");
    assert!(timeout(MOMENT, new.recv(&mut [0; 9])).await.is_err(), "a flow began in a drain");
    assert_eq!(soon(draining).await.expect("no panic"), 0);
    soon(&mut running.serving).await.expect("serving ends");
    assert_eq!(balancer.endpoints()[0].in_flight(), 0);
}

#[tokio::test]
async fn a_drain_ends_flows_after_its_time() {
    let backend = UdpBackend::new(b'a').await;
    let balancer = balancer(&[backend.address]);
    let mut running = run(balancer.clone(), UdpConfig::default()).await;
    let clients = [running.client().await, running.client().await];
    for client in &clients {
        ask(client, b"x").await;
    }
    assert_eq!(soon(running.proxy.drain(MOMENT)).await, 2);
    soon(&mut running.serving).await.expect("serving ends");
    let stats = running.proxy.stats();
    assert_eq!((stats.active, stats.aborted), (0, 2));
    assert_eq!(balancer.endpoints()[0].in_flight(), 0);
}

/// A stranger floods the proxy from many addresses: memory and descriptors stay bounded, and a
/// client that talks keeps its flow.
#[tokio::test]
async fn a_flood_of_new_clients_does_not_cost_a_busy_one_its_flow() {
    let backend = UdpBackend::new(b'a').await;
    let mut config = UdpConfig::default();
    config.max_flows = 20;
    let running = run(balancer(&[backend.address]), config).await;
    let busy = Arc::new(running.client().await);
    ask(&busy, b"x").await;
    // Open until the end: a port that is given out again would be the client of a flow that lives.
    let mut strangers = Vec::new();
    for round in 0..30 {
        for _ in 0..10 {
            let stranger = running.client().await;
            ask(&stranger, b"x").await;
            strangers.push(stranger);
        }
        ask(&busy, b"x").await;
        let stats = running.proxy.stats();
        assert!(stats.active <= 20);
        assert_eq!(stats.flows, 1 + 10 * (round + 1), "the busy flow was evicted");
    }
}
