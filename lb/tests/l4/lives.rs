//! Random lives: endpoints die, return, are slow, drain and leave; clients of every manner come and
//! go; routes change. Whatever arrives is right, and nothing is held at the end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use fastrand::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use voussoir_lb::l4::*;
use voussoir_lb::strategy::*;
use voussoir_lb::{Balancer, Clock, Config, Endpoint, EndpointConfig, Monotonic, OutlierConfig};
use voussoir_sim::Situations;

use crate::support::{LONG, pattern, soon};

static SITUATIONS: [&str; 16] = [
    "whole echo",
    "whole echo behind a half-close",
    "cut off by the endpoint",
    "reset by the client",
    "connecting failed and another endpoint served",
    "no endpoint was reached",
    "no endpoint could be picked",
    "idle",
    "aborted by a drain",
    "drained in time",
    "ejection",
    "endpoint left with connections",
    "endpoint draining with connections",
    "receiver slower than sender",
    "rejected at the limit",
    "header sent",
];

const ENDPOINTS: usize = 4;
const CLIENTS: usize = 10;

/// An endpoint at a fixed address that can be killed and revived.
struct Server {
    address: SocketAddr,
    task: Option<JoinHandle<()>>,
}

impl Server {
    fn revive(&mut self, rng: &mut Rng, has_header: bool) {
        if self.task.is_some() {
            return;
        }
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("a socket");
        // Another process may have taken the port meanwhile; then it stays dead.
        if socket.bind(self.address).is_err() {
            return;
        }
        let Ok(listener) = socket.listen(64) else { return };
        let seed = rng.u64(..);
        self.task = Some(tokio::spawn(serve(listener, seed, has_header)));
    }

    fn kill(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

async fn serve(listener: TcpListener, seed: u64, has_header: bool) {
    let mut rng = Rng::with_seed(seed);
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(echo(stream, rng.fork(), has_header));
        while connections.try_join_next().is_some() {}
    }
}

/// Echoes, by small or large steps, after taking off the PROXY header.
async fn echo(mut stream: TcpStream, mut rng: Rng, has_header: bool) {
    if has_header {
        let mut header = [0; 28];
        if stream.read_exact(&mut header).await.is_err() {
            return;
        }
        assert_eq!((&header[..12], header[12]), (&b"\r\n\r\n\0\r\nQUIT\n"[..], 0x21));
    }
    let manner = rng.u8(..10);
    if manner == 0 {
        return stream.set_zero_linger().expect("a socket");
    }
    let mut buffer = vec![0; if manner < 4 { 700 } else { 32 << 10 }];
    while let Ok(len @ 1..) = stream.read(&mut buffer).await {
        if manner == 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if stream.write_all(&buffer[..len]).await.is_err() {
            return;
        }
    }
}

/// What the clients of a life need to know.
struct Shared {
    address: SocketAddr,
    situations: Arc<Situations>,
    wrong: AtomicU64,
}

/// One connection. Whatever comes back must be the beginning of what was sent.
async fn client(shared: Arc<Shared>, mut rng: Rng) {
    let Ok(mut stream) = TcpStream::connect(shared.address).await else { return };
    let len = if rng.u8(..4) == 0 { rng.usize(..3 << 20) } else { rng.usize(1..20_000) };
    let bytes = pattern(len);
    let manner = rng.u8(..8);
    let is_slow = rng.u8(..4) == 0;
    let (mut reader, mut writer) = stream.split();
    let send = async {
        if manner == 0 {
            // Says little, and nothing more: the idle time-out ends it.
            return writer.write_all(&bytes[..1]).await;
        }
        writer.write_all(&bytes).await?;
        if manner > 2 { writer.shutdown().await } else { Ok(()) }
    };
    let wanted = match manner {
        0 => usize::MAX,
        1 => len / 2,
        2 => len,
        _ => usize::MAX,
    };
    let mut got = 0;
    let mut is_right = true;
    let receive = async {
        let mut buffer = vec![0; if is_slow { 997 } else { 64 << 10 }];
        // Ends: with the connection, or when enough has come.
        while got < wanted {
            let read = reader.read(&mut buffer).await?;
            if read == 0 {
                return Ok(true);
            }
            let expected = bytes.get(got..got + read);
            is_right &= expected == Some(&buffer[..read]);
            got += read;
            if is_slow && rng.u8(..16) == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        Ok::<_, std::io::Error>(false)
    };
    let (_, received) = tokio::join!(send, receive);
    shared.wrong.fetch_add(u64::from(!is_right), Relaxed);
    let situations = &shared.situations;
    match received {
        Ok(true) if got == len && manner > 2 => {
            situations.reached("whole echo behind a half-close");
            situations.add("receiver slower than sender", u64::from(is_slow && len > 1 << 20));
        }
        Ok(false) if manner == 2 => situations.reached("whole echo"),
        Ok(false) => {
            stream.set_zero_linger().expect("a socket");
        }
        _ => {}
    }
}

fn any_strategy(rng: &mut Rng) -> Box<dyn Strategy> {
    match rng.u8(..6) {
        0 => Box::new(RoundRobin::default()),
        1 => Box::new(LeastConnections::default()),
        2 => Box::new(PeakEwma::default()),
        3 => Box::new(PowerOfTwo::default()),
        4 => Box::new(IpHash::default()),
        _ => Box::new(RandomChoice::default()),
    }
}

fn any_balancer(rng: &mut Rng) -> Balancer {
    let mut config = Config::default();
    config.seed = Some(rng.u64(..));
    config.max_in_flight = (rng.u8(..3) == 0).then(|| rng.u32(1..4));
    if rng.bool() {
        let mut outliers = OutlierConfig::default();
        outliers.consecutive_failures = Some(rng.u32(1..4));
        outliers.base_ejection = Duration::from_millis(rng.u64(1..200));
        config.outliers = Some(outliers);
    }
    Balancer::boxed(any_strategy(rng), config).expect("valid")
}

fn any_config(rng: &mut Rng, has_header: bool) -> TcpConfig {
    let mut config = TcpConfig::default();
    config.max_connections = if rng.u8(..3) == 0 { rng.usize(1..8) } else { 100 };
    config.on_full = if rng.bool() { OnFull::Wait } else { OnFull::Reject };
    config.endpoint_wait = Duration::from_millis(if rng.bool() { 0 } else { rng.u64(1..100) });
    config.connect_timeout = Duration::from_millis(rng.u64(20..500));
    config.max_attempts = rng.u32(1..5);
    config.idle_timeout = Duration::from_millis(rng.u64(50..400));
    config.buffer_bytes = if rng.bool() { 1 << 10 } else { rng.usize(1 << 10..1 << 18) };
    config.proxy_out = has_header.then_some(ProxyVersion::V2);
    config
}

/// What endpoints there were, also those that have left.
type Seen = Vec<Arc<Endpoint>>;

/// Changes the world once.
fn disturb(
    rng: &mut Rng,
    endpoints: &mut [Server],
    balancer: &Balancer,
    seen: &mut Seen,
    life: &Life<'_>,
) {
    let at = rng.usize(..ENDPOINTS);
    match rng.u8(..6) {
        0 => endpoints[at].kill(),
        1 | 2 => endpoints[at].revive(rng, life.has_header),
        3 => {
            let all: Vec<usize> = (0..ENDPOINTS).filter(|_| rng.u8(..3) > 0).collect();
            let all = if all.is_empty() { vec![at] } else { all };
            let before = balancer.endpoints();
            let set = all.iter().map(|at| {
                let endpoint = EndpointConfig::new(endpoints[*at].address.to_string());
                endpoint.with_weight(rng.u32(1..5))
            });
            balancer.update(set, Monotonic.now()).expect("a set");
            let now = balancer.endpoints();
            let left = |old: &&Arc<Endpoint>| {
                old.in_flight() > 0 && now.iter().all(|new| new.id() != old.id())
            };
            let count = before.iter().filter(left).count();
            life.situations.add("endpoint left with connections", count as u64);
            seen.extend(now);
        }
        4 => {
            let name = endpoints[at].address.to_string();
            let draining = rng.bool();
            balancer.set_draining(&name, draining, Monotonic.now());
            let is_busy =
                |endpoint: &Arc<Endpoint>| endpoint.name() == name && endpoint.in_flight() > 0;
            let count = balancer.endpoints().into_iter().filter(is_busy).count();
            let count = if draining { count } else { 0 };
            life.situations.add("endpoint draining with connections", count as u64);
        }
        _ => life.proxy.set_route(balancer.clone()),
    }
}

struct Life<'a> {
    proxy: &'a TcpProxy,
    situations: &'a Situations,
    has_header: bool,
}

async fn live(seed: u64, situations: Arc<Situations>) {
    let mut rng = Rng::with_seed(seed);
    let has_header = rng.u8(..3) == 0;
    let mut endpoints = Vec::new();
    for _ in 0..ENDPOINTS {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let task = Some(tokio::spawn(serve(listener, rng.u64(..), has_header)));
        endpoints.push(Server { address, task });
    }
    let balancer = any_balancer(&mut rng);
    let set = endpoints.iter().map(|endpoint| EndpointConfig::new(endpoint.address.to_string()));
    balancer.update(set, Monotonic.now()).expect("a set");
    let mut seen: Seen = balancer.endpoints();
    let proxy = TcpProxy::new(balancer.clone(), any_config(&mut rng, has_header)).expect("valid");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let serving = tokio::spawn({
        let proxy = proxy.clone();
        async move { proxy.serve(listener).await }
    });
    let shared = Shared { address, situations: Arc::clone(&situations), wrong: AtomicU64::new(0) };
    let shared = Arc::new(shared);
    let mut clients = JoinSet::new();
    let life = Life { proxy: &proxy, situations: &situations, has_header };
    for _ in 0..40 {
        while clients.len() < CLIENTS {
            clients.spawn(client(Arc::clone(&shared), rng.fork()));
        }
        disturb(&mut rng, &mut endpoints, &balancer, &mut seen, &life);
        let pause = Duration::from_millis(rng.u64(..15));
        let _ = tokio::time::timeout(pause, clients.join_next()).await;
        while let Some(ended) = clients.try_join_next() {
            ended.expect("no client panics");
        }
    }
    let drain_time = if rng.bool() { Duration::from_millis(20) } else { LONG };
    let aborted = soon(proxy.drain(drain_time)).await;
    situations.reached(if aborted > 0 { "aborted by a drain" } else { "drained in time" });
    soon(serving).await.expect("serving ends");
    while let Some(ended) = soon(clients.join_next()).await {
        ended.expect("no client panics");
    }
    check(&proxy, &balancer, &seen, &shared, aborted);
}

/// What holds at the end of each life.
fn check(proxy: &TcpProxy, balancer: &Balancer, seen: &Seen, shared: &Shared, aborted: usize) {
    assert_eq!(shared.wrong.load(Relaxed), 0, "bytes arrived that were not sent");
    let stats = proxy.stats();
    assert_eq!((stats.active, stats.aborted), (0, aborted as u64), "{stats:?}");
    let rejected = stats.rejected_full + stats.rejected_route + stats.rejected_endpoint;
    let ended = stats.completed + stats.client_resets + stats.upstream_resets + stats.idle_timeouts;
    let others = stats.unconnected + stats.prelude_failures + stats.aborted;
    assert_eq!(stats.accepted, rejected + ended + others, "{stats:?}");
    for endpoint in seen {
        assert_eq!(endpoint.in_flight(), 0, "{endpoint:?} is still held");
    }
    let situations = &shared.situations;
    situations.add("cut off by the endpoint", stats.upstream_resets);
    situations.add("reset by the client", stats.client_resets);
    situations.add("no endpoint was reached", stats.unconnected);
    situations.add("no endpoint could be picked", stats.rejected_endpoint);
    situations.add("idle", stats.idle_timeouts);
    situations.add("rejected at the limit", stats.rejected_full);
    let retried = stats.connect_failures > 0 && stats.unconnected == 0 && stats.completed > 0;
    situations.add("connecting failed and another endpoint served", u64::from(retried));
    situations.add("ejection", balancer.stats(Monotonic.now()).ejections);
    let sent = proxy.config().proxy_out.is_some() && stats.completed > 0;
    situations.add("header sent", u64::from(sent));
}

#[test]
fn random_lives_hold_nothing_and_every_byte_that_arrives_is_right() {
    let seeds = std::env::var("VOUSSOIR_L4_SEEDS").ok();
    let seeds = match seeds.as_deref().map(|text| text.split_once("..").unwrap_or((text, ""))) {
        None => 0..20,
        Some((from, "")) => {
            let seed: u64 = from.parse().expect("a seed, or seeds as in 0..1000");
            seed..seed + 1
        }
        Some((from, to)) => from.parse().expect("a seed")..to.parse().expect("a seed"),
    };
    let situations = Arc::new(Situations::new(&SITUATIONS));
    let is_one = seeds.end - seeds.start < 20;
    for seed in seeds {
        println!(
            "VOUSSOIR_L4_SEEDS={seed} cargo test -p voussoir-lb --all-features --test l4 lives"
        );
        let mut runtime = if seed % 2 == 0 {
            tokio::runtime::Builder::new_current_thread()
        } else {
            tokio::runtime::Builder::new_multi_thread()
        };
        let runtime = runtime.worker_threads(2).enable_all().build().expect("a runtime");
        runtime.block_on(live(seed, Arc::clone(&situations)));
    }
    if !is_one {
        situations.assert_all_reached();
    }
}
