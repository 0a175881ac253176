//! Lives of a proxy among faulty backends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use hyper::{Method, Request};
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::sleep;
use voussoir_lb::l7::{HttpConfig, HttpProxy, Upstream, UpstreamConfig};
use voussoir_lb::{Clock, EndpointConfig, Monotonic};
use voussoir_sim::Situations;

use crate::backends::{World, body_of, start};
use crate::number;
use crate::support::*;

static NAMES: [&str; 20] = [
    "a backend reset before its answer",
    "a backend closed before its answer",
    "a backend closed within its answer",
    "a backend reset within its answer",
    "a backend stalled",
    "a backend answered before the request's body",
    "a backend answered 503",
    "a backend said more than its answer",
    "a backend closed behind its answer",
    "a backend took the next request and closed",
    "a backend was slow",
    "a response broke off at the client",
    "a POST failed and was not sent again",
    "a POST succeeded",
    "a GET was sent more than once and succeeded",
    "a client left before the answer",
    "a client left within the answer",
    "a client of HTTP/2",
    "an endpoint left with a request in flight",
    "an idle connection was reused",
];

/// Clients of a life at a time.
const CLIENTS: u64 = 12;
/// Requests that each client sends.
const REQUESTS: u64 = 60;

struct Life {
    world: Arc<World>,
    address: SocketAddr,
    numbers: AtomicU64,
}

/// What a client sends.
struct Ask {
    number: u64,
    is_post: bool,
    len: usize,
    body: Vec<u8>,
}

impl Life {
    fn ask(&self) -> Ask {
        let number = self.numbers.fetch_add(1, SeqCst);
        let is_post = self.world.draw(3) == 0;
        let len = match self.world.draw(4) {
            0 => self.world.draw(3),
            1 => self.world.draw(100_000),
            _ => self.world.draw(500),
        } as usize;
        let size = if is_post { self.world.draw(3).pow(2) * self.world.draw(20_000) } else { 0 };
        Ask { number, is_post, len, body: body_of(number, size as usize) }
    }

    /// Checks a response. `body` is what arrived, `is_whole` whether the response ended well.
    fn check(&self, ask: &Ask, status: u16, named: Option<&str>, body: &[u8], is_whole: bool) {
        let Ask { number, is_post, len, .. } = *ask;
        let seen = self.world.seen.lock();
        let heads = seen.heads.get(&number).copied().unwrap_or(0);
        let reached = |name| self.world.situations.reached(name);
        assert!(!is_post || heads <= 1, "POST {number} reached {heads} backends");
        if status == 200 {
            let expected = number.to_string();
            assert_eq!(named, Some(expected.as_str()), "the answer to another request");
            assert!(body.len() <= len && *body == body_of(number, body.len())[..], "{number}");
            if is_whole {
                assert_eq!(body.len(), len, "{number}: a response that was cut looks whole");
                match (is_post, heads) {
                    (true, _) => reached("a POST succeeded"),
                    (false, 2..) => reached("a GET was sent more than once and succeeded"),
                    _ => {}
                }
            } else {
                assert!(seen.cut.contains_key(&number), "{number} broke off without a reason");
                reached("a response broke off at the client");
            }
            return;
        }
        assert!(is_whole && (500..600).contains(&status), "{number}: {status}");
        assert!(is_post, "GET {number} failed with {status} while a healthy backend was there");
        reached("a POST failed and was not sent again");
    }

    /// Sends requests over one connection of HTTP/1.1, and connects again when it has ended.
    async fn client(self: Arc<Self>) {
        let mut conn: Option<Conn> = None;
        for _ in 0..REQUESTS {
            let ask = self.ask();
            let mut open = match conn.take() {
                Some(conn) => conn,
                None => Conn::connect(self.address).await,
            };
            let Ask { number, len, .. } = ask;
            let method = if ask.is_post { "POST" } else { "GET" };
            let mut text = format!("{method} /{number}/{len} HTTP/1.1\r\nhost: a\r\n").into_bytes();
            match (ask.is_post, self.world.draw(2)) {
                (false, _) => text.extend(b"\r\n"),
                (true, 0) => {
                    let length = format!("content-length: {}\r\n\r\n", ask.body.len());
                    text.extend(length.bytes().chain(ask.body.iter().copied()));
                }
                (true, _) => {
                    text.extend(b"transfer-encoding: chunked\r\n\r\n");
                    for part in ask.body.chunks(7_001) {
                        text.extend(format!("{:x}\r\n", part.len()).bytes());
                        text.extend(part.iter().copied().chain(*b"\r\n"));
                    }
                    text.extend(b"0\r\n\r\n");
                }
            }
            // An early answer may end the connection while the body is written.
            let written = tokio::io::AsyncWriteExt::write_all(&mut open.tcp, &text).await;
            if written.is_ok() && self.world.draw(25) == 0 {
                self.world.situations.reached("a client left before the answer");
                continue;
            }
            let Some(head) = open.head().await else {
                assert!(written.is_err() || ask.is_post, "{number}: no answer");
                continue;
            };
            if self.world.draw(25) == 0 {
                self.world.situations.reached("a client left within the answer");
                continue;
            }
            let message = Message { head, body: Vec::new() };
            let (body, is_whole) = open.try_body(&message).await;
            let named = message.header("x-number");
            self.check(&ask, message.status(), named, &body, is_whole);
            let stays = is_whole && message.header("connection") != Some("close");
            // After an early answer, the rest of the body is the proxy's to read or to refuse.
            conn = (stays && !ask.is_post).then_some(open);
        }
    }

    /// Sends requests over one connection of HTTP/2, three at a time.
    async fn client2(self: Arc<Self>) {
        let tcp = tokio::net::TcpStream::connect(self.address).await.unwrap();
        let (client, connection) = h2::client::handshake(tcp).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut tasks = JoinSet::new();
        for _ in 0..3 {
            let (life, client) = (Arc::clone(&self), client.clone());
            tasks.spawn(async move {
                for _ in 0..REQUESTS / 3 {
                    life.ask2(client.clone()).await;
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        connection.abort();
    }

    async fn ask2(&self, client: h2::client::SendRequest<Bytes>) {
        self.world.situations.reached("a client of HTTP/2");
        let mut client = client.ready().await.expect("the connection stays");
        let mut ask = self.ask();
        let method = if ask.is_post { Method::POST } else { Method::GET };
        let uri = format!("http://a/{}/{}", ask.number, ask.len);
        let request = Request::builder().method(method).uri(uri).body(()).unwrap();
        let (answer, mut body) = client.send_request(request, !ask.is_post).unwrap();
        if ask.is_post {
            // An early answer resets the stream.
            let _ = body.send_data(Bytes::from(std::mem::take(&mut ask.body)), true);
        }
        if self.world.draw(25) == 0 {
            self.world.situations.reached("a client left before the answer");
            return;
        }
        let answer = match soon(answer).await {
            Ok(answer) => answer,
            Err(error) => {
                // A reset discards a head that was not yet sent.
                let is_cut = self.world.seen.lock().cut.contains_key(&ask.number);
                assert!(ask.is_post || is_cut, "GET {}: {error}", ask.number);
                return;
            }
        };
        let (parts, mut stream) = answer.into_parts();
        let mut bytes = Vec::new();
        let is_whole = loop {
            match soon(stream.data()).await {
                None => break true,
                Some(Err(_)) => break false,
                Some(Ok(data)) => {
                    let _ = stream.flow_control().release_capacity(data.len());
                    bytes.extend_from_slice(&data);
                }
            }
        };
        let named = parts.headers.get("x-number").map(|name| name.to_str().unwrap());
        self.check(&ask, parts.status.as_u16(), named, &bytes, is_whole);
    }
}

/// Changes the set until `is_done`: at least one healthy endpoint, and some of the others.
async fn change_sets(
    world: Arc<World>,
    up: Upstream,
    healthy: Vec<SocketAddr>,
    faulty: Vec<SocketAddr>,
    is_done: Arc<AtomicBool>,
) {
    let mut before: Vec<String> = Vec::new();
    while !is_done.load(SeqCst) {
        let first = world.draw(healthy.len() as u64) as usize;
        let mut names = vec![healthy[first].to_string()];
        for address in healthy.iter().chain(&faulty) {
            let name = address.to_string();
            if world.draw(2) == 0 && !names.contains(&name) {
                names.push(name);
            }
        }
        let leaving = up.balancer().endpoints();
        let busy = leaving.iter().any(|endpoint| {
            endpoint.in_flight() > 0 && !names.iter().any(|name| name == endpoint.name())
        });
        if busy && !before.is_empty() {
            world.situations.reached("an endpoint left with a request in flight");
        }
        let set = names.iter().map(|name| EndpointConfig::new(name.clone()));
        up.balancer().update(set, Monotonic.now()).unwrap();
        before = names;
        sleep(Duration::from_millis(world.draw(30))).await;
    }
}

async fn live(seed: u64, situations: &'static Situations) {
    let rng = Mutex::new(fastrand::Rng::with_seed(seed));
    let world = Arc::new(World { situations, seen: Mutex::default(), rng });
    let (mut healthy, mut faulty) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        healthy.push(start(Arc::clone(&world), false).await);
        faulty.push(start(Arc::clone(&world), true).await);
    }
    let mut config = UpstreamConfig::default();
    // Above what a healthy backend takes on a busy machine.
    config.try_timeout = Duration::from_secs(2);
    config.total_timeout = Duration::from_secs(60);
    config.max_idle = world.draw(4) as usize * 8;
    config.idle_timeout = Duration::from_millis(1 + world.draw(2) * 2_000);
    // A GET may fail at each faulty endpoint before it finds a healthy one.
    config.retry.max_attempts = 8;
    config.retry.min_budget = 1_000;
    let up = upstream(&healthy, config);
    let (address, proxy): (_, HttpProxy) = proxy(up.clone(), HttpConfig::default()).await;
    let life = Arc::new(Life { world: Arc::clone(&world), address, numbers: AtomicU64::new(1) });
    let is_done = Arc::new(AtomicBool::new(false));
    let sets = change_sets(Arc::clone(&world), up.clone(), healthy, faulty, Arc::clone(&is_done));
    let sets = tokio::spawn(sets);
    let mut clients = JoinSet::new();
    for at in 0..CLIENTS {
        if at % 4 == 0 {
            clients.spawn(Arc::clone(&life).client2());
        } else {
            clients.spawn(Arc::clone(&life).client());
        }
    }
    while let Some(done) = clients.join_next().await {
        done.unwrap_or_else(|error| {
            panic!(
                "seed {seed}: {error}\nreplay: VOUSSOIR_L7_LIVES=1 VOUSSOIR_L7_SEED={seed} \
                    cargo test -p voussoir-lb --all-features --test l7_lives random"
            )
        });
    }
    is_done.store(true, SeqCst);
    sets.await.unwrap();
    situations.add("an idle connection was reused", up.stats().reuses);
    // Nothing is held once the clients have gone.
    assert_eq!(soon(proxy.drain(Duration::from_secs(15))).await, 0, "seed {seed}");
    assert_eq!(up.stats().active, 0, "seed {seed}");
    let in_flight: u32 = up.balancer().endpoints().iter().map(|found| found.in_flight()).sum();
    assert_eq!(in_flight, 0, "seed {seed}");
    // A POST whose client left is counted too.
    let seen = world.seen.lock();
    assert!(!seen.heads.is_empty());
}

#[test]
fn responses_belong_to_their_requests_and_no_post_is_sent_twice() {
    static SITUATIONS: std::sync::OnceLock<Situations> = std::sync::OnceLock::new();
    let situations = SITUATIONS.get_or_init(|| Situations::new(&NAMES));
    let first = number("VOUSSOIR_L7_SEED", 1);
    let lives = number("VOUSSOIR_L7_LIVES", 3);
    for seed in first..first + lives {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(live(seed, situations));
    }
    if lives >= 3 {
        situations.assert_all_reached();
    }
}
