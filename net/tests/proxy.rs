//! The loopback proxy: what it passes, holds, delays and ends.

mod support;

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::time::Duration;

use bytes::Bytes;
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use voussoir_net::testing::{Direction, MAX_CONNECTIONS, MAX_HELD_BYTES, Proxy, ProxyError};
use voussoir_net::{Class, DownReason, Event, Instant, Peers, Transport};
use voussoir_sim::Situations;

const BOTH: [Direction; 2] = Direction::BOTH;
/// How long a test waits to see that nothing comes.
const NOTHING: Duration = Duration::from_millis(100);

/// A server that the test plays itself, and a proxy before it.
struct Setup {
    server: TcpListener,
    proxy: Proxy,
}

impl Setup {
    async fn new() -> Self {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::start(server.local_addr().unwrap()).await.unwrap();
        Self { server, proxy }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.proxy.address()).await.unwrap()
    }

    async fn accept(&self) -> TcpStream {
        soon("a connection", self.server.accept()).await.unwrap().0
    }

    /// A client and its connection at the server.
    async fn pair(&self) -> (TcpStream, TcpStream) {
        let client = self.connect().await;
        (client, self.accept().await)
    }
}

async fn read(stream: &mut TcpStream, expected: &[u8]) {
    let mut buffer = vec![0; expected.len()];
    soon("bytes", stream.read_exact(&mut buffer)).await.unwrap();
    assert_eq!(buffer, expected);
}

async fn ended(stream: &mut TcpStream) -> Result<(), std::io::ErrorKind> {
    match soon("the end", stream.read(&mut [0; 1])).await {
        Ok(0) => Ok(()),
        Ok(_) => panic!("a byte instead of the end"),
        Err(error) => Err(error.kind()),
    }
}

async fn is_silent(stream: &mut TcpStream) -> bool {
    tokio::time::timeout(NOTHING, stream.read(&mut [0; 1])).await.is_err()
}

fn rate(bytes_per_second: u64) -> Option<NonZeroU64> {
    NonZeroU64::new(bytes_per_second)
}

fn noise(bytes: usize, mut state: u64) -> Vec<u8> {
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (state >> 56) as u8
    })
    .take(bytes)
    .collect()
}

/// What changes while bytes pass, by the number drawn, and what it met.
static CHANGES: [&str; 6] =
    ["cut", "delay", "throttle", "wider throttle", "heal", "bytes held by a cut"];

#[tokio::test]
async fn every_byte_passes_in_order_whatever_changes_meanwhile() {
    let setup = Setup::new().await;
    let (client, server) = setup.pair().await;
    // Slow enough to change something many times under way.
    for direction in BOTH {
        setup.proxy.set_bytes_per_second(direction, rate(20_000_000));
    }
    let (forth, back) = (noise(4 << 20, 1), noise(3 << 20, 2));
    let transfer = |stream: TcpStream, out: Vec<u8>| async move {
        let (mut reader, mut writer) = stream.into_split();
        let writing = tokio::spawn(async move {
            writer.write_all(&out).await.unwrap();
            writer.shutdown().await.unwrap();
        });
        let mut got = Vec::new();
        soon("all bytes", reader.read_to_end(&mut got)).await.unwrap();
        writing.await.unwrap();
        got
    };
    let client = tokio::spawn(transfer(client, forth.clone()));
    let server = tokio::spawn(transfer(server, back.clone()));
    let situations = Situations::new(&CHANGES);
    let mut seed = noise(10_000, 3).into_iter();
    while !(client.is_finished() && server.is_finished()) {
        let mut random = || seed.next().unwrap_or(0);
        let direction = BOTH[usize::from(random() % 2)];
        let change = usize::from(random() % 5);
        let is_cut = BOTH.iter().any(|&direction| setup.proxy.link(direction).is_cut);
        let held = setup.proxy.stats().held_bytes;
        assert!(held <= 2 * MAX_HELD_BYTES, "{held} bytes are held");
        situations.reached(CHANGES[change]);
        situations.add("bytes held by a cut", u64::from(is_cut && held > 0));
        match change {
            0 => setup.proxy.cut_one_way(direction),
            1 => setup.proxy.set_delay(direction, Duration::from_millis((random() % 8).into())),
            2 => setup.proxy.set_bytes_per_second(direction, rate(20_000_000)),
            3 => setup.proxy.set_bytes_per_second(direction, rate(40_000_000)),
            _ => setup.proxy.heal(),
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(server.await.unwrap() == forth && client.await.unwrap() == back, "each byte, in order");
    situations.assert_all_reached();
    let stats = setup.proxy.stats();
    assert_eq!(stats.bytes_to_target, forth.len() as u64);
    assert_eq!(stats.bytes_from_target, back.len() as u64);
    assert_eq!((stats.accepted, stats.reset, stats.held_bytes), (1, 0, 0));
}

#[tokio::test]
async fn each_side_may_close_while_the_other_goes_on() {
    let setup = Setup::new().await;
    let (mut client, mut server) = setup.pair().await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    read(&mut server, b"question").await;
    assert_eq!(ended(&mut server).await, Ok(()));
    server.write_all(b"answer").await.unwrap();
    read(&mut client, b"answer").await;
    drop(server);
    assert_eq!(ended(&mut client).await, Ok(()));
    soon("the end of the connection", async {
        while setup.proxy.stats().connections > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(setup.proxy.stats().reset, 0);
}

#[tokio::test]
async fn a_delay_holds_per_direction_and_changes_at_once() {
    let setup = Setup::new().await;
    let (mut client, mut server) = setup.pair().await;
    let delay = Duration::from_millis(150);
    setup.proxy.set_delay(Direction::ToTarget, delay);
    let began = Instant::now();
    client.write_all(b"x").await.unwrap();
    read(&mut server, b"x").await;
    assert!(began.elapsed() >= delay, "{:?}", began.elapsed());
    let began = Instant::now();
    server.write_all(b"y").await.unwrap();
    read(&mut client, b"y").await;
    assert!(began.elapsed() < delay, "the other direction is not delayed");
    // Far beyond the patience of this test, and then none: also for what is held.
    setup.proxy.set_delay(Direction::ToTarget, Duration::MAX);
    client.write_all(b"z").await.unwrap();
    soon("the byte to be held", async {
        while setup.proxy.stats().held_bytes == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(is_silent(&mut server).await);
    setup.proxy.set_delay(Direction::ToTarget, Duration::ZERO);
    read(&mut server, b"z").await;
}

#[tokio::test]
async fn a_cut_holds_and_a_heal_loses_nothing() {
    let setup = Setup::new().await;
    let (mut client, mut server) = setup.pair().await;
    setup.proxy.cut();
    assert!(BOTH.iter().all(|&direction| setup.proxy.link(direction).is_cut));
    client.write_all(b"forth").await.unwrap();
    server.write_all(b"back").await.unwrap();
    assert!(is_silent(&mut server).await && is_silent(&mut client).await);
    setup.proxy.heal();
    read(&mut server, b"forth").await;
    read(&mut client, b"back").await;
}

#[tokio::test]
async fn a_cut_holds_also_what_the_proxy_has_read() {
    for direction in BOTH {
        let setup = Setup::new().await;
        let (mut client, mut server) = setup.pair().await;
        let (sender, receiver) = match direction {
            Direction::ToTarget => (&mut client, &mut server),
            Direction::FromTarget => (&mut server, &mut client),
        };
        setup.proxy.set_delay(direction, Duration::from_secs(3600));
        sender.write_all(b"held").await.unwrap();
        soon("the bytes to be held", async {
            while setup.proxy.stats().held_bytes < 4 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        setup.proxy.cut_one_way(direction);
        setup.proxy.set_delay(direction, Duration::ZERO);
        assert!(is_silent(receiver).await, "bytes passed a cut");
        setup.proxy.heal();
        read(receiver, b"held").await;
    }
}

#[tokio::test]
async fn a_cut_of_one_way_lets_the_other_pass() {
    let setup = Setup::new().await;
    for cut in BOTH {
        let (mut client, mut server) = setup.pair().await;
        setup.proxy.cut_one_way(cut);
        client.write_all(b"forth").await.unwrap();
        server.write_all(b"back").await.unwrap();
        match cut {
            Direction::ToTarget => {
                read(&mut client, b"back").await;
                assert!(is_silent(&mut server).await);
            }
            Direction::FromTarget => {
                read(&mut server, b"forth").await;
                assert!(is_silent(&mut client).await);
            }
        }
        setup.proxy.heal();
        match cut {
            Direction::ToTarget => read(&mut server, b"forth").await,
            Direction::FromTarget => read(&mut client, b"back").await,
        }
    }
}

#[tokio::test]
async fn a_cut_hides_that_the_other_side_has_gone() {
    let setup = Setup::new().await;
    let (client, mut server) = setup.pair().await;
    setup.proxy.cut_one_way(Direction::ToTarget);
    drop(client);
    // The client's socket is gone: this is answered by a reset, which the cut hides as well.
    server.write_all(&[0; 1000]).await.unwrap();
    assert!(is_silent(&mut server).await, "neither the close nor the reset came through");
    setup.proxy.heal();
    // Whether the close or the reset comes first is up to the kernel.
    let _close_or_reset = ended(&mut server).await;
}

#[tokio::test]
async fn a_reset_of_either_side_resets_the_other() {
    let setup = Setup::new().await;
    let (client, mut server) = setup.pair().await;
    client.set_zero_linger().unwrap();
    drop(client);
    assert_eq!(ended(&mut server).await, Err(std::io::ErrorKind::ConnectionReset));
    let (mut client, server) = setup.pair().await;
    server.set_zero_linger().unwrap();
    drop(server);
    assert_eq!(ended(&mut client).await, Err(std::io::ErrorKind::ConnectionReset));
    assert_eq!(setup.proxy.stats().reset, 2);
}

#[tokio::test]
async fn connections_given_up_during_a_cut_never_reach_the_target() {
    let setup = Setup::new().await;
    setup.proxy.cut_one_way(Direction::FromTarget);
    for _ in 0..10 {
        let mut given_up = setup.connect().await;
        given_up.write_all(b"given up").await.unwrap();
    }
    let mut patient = setup.connect().await;
    patient.write_all(b"patient").await.unwrap();
    soon("all connections", async {
        while setup.proxy.stats().connections < 11 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(tokio::time::timeout(NOTHING, setup.server.accept()).await.is_err());
    setup.proxy.heal();
    read(&mut setup.accept().await, b"patient").await;
    soon("the others to end", async {
        while setup.proxy.stats().connections > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(tokio::time::timeout(NOTHING, setup.server.accept()).await.is_err(), "only one came");
}

#[tokio::test]
async fn a_throttle_is_shared_by_all_connections() {
    let setup = Setup::new().await;
    let (mut one, mut one_at_server) = setup.pair().await;
    let (mut two, mut two_at_server) = setup.pair().await;
    setup.proxy.set_bytes_per_second(Direction::ToTarget, rate(200_000));
    let body = noise(40_000, 7);
    let began = Instant::now();
    one.write_all(&body).await.unwrap();
    two.write_all(&body).await.unwrap();
    tokio::join!(read(&mut one_at_server, &body), read(&mut two_at_server, &body));
    let took = began.elapsed();
    // 80,000 bytes at 200,000 a second, less what a late timer may catch up.
    assert!(took >= Duration::from_millis(390), "{took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    // One byte a second, and then no limit: also for what is held.
    setup.proxy.set_bytes_per_second(Direction::ToTarget, rate(1));
    one.write_all(&body).await.unwrap();
    setup.proxy.set_bytes_per_second(Direction::ToTarget, None);
    read(&mut one_at_server, &body).await;
    // The other direction was never limited.
    one_at_server.write_all(&body).await.unwrap();
    read(&mut one, &body).await;
}

#[tokio::test]
async fn what_is_held_is_bounded() {
    let setup = Setup::new().await;
    let (client, _server) = setup.pair().await;
    setup.proxy.set_delay(Direction::ToTarget, Duration::from_secs(3600));
    let body = vec![0; 1 << 16];
    let mut rejected_since = Instant::now();
    while rejected_since.elapsed() < NOTHING {
        let held = setup.proxy.stats().held_bytes;
        assert!(held <= MAX_HELD_BYTES, "{held} bytes are held");
        match client.try_write(&body) {
            Ok(_) => rejected_since = Instant::now(),
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
    assert_eq!(setup.proxy.stats().held_bytes, MAX_HELD_BYTES, "full, and not more");
    setup.proxy.disconnect();
    soon("the bytes to be dropped", async {
        while setup.proxy.stats().held_bytes > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_disconnect_resets_both_sides_and_takes_new_connections() {
    let setup = Setup::new().await;
    let (mut client, mut server) = setup.pair().await;
    setup.proxy.disconnect();
    assert_eq!(ended(&mut client).await, Err(std::io::ErrorKind::ConnectionReset));
    assert_eq!(ended(&mut server).await, Err(std::io::ErrorKind::ConnectionReset));
    let (mut client, mut server) = setup.pair().await;
    client.write_all(b"new").await.unwrap();
    read(&mut server, b"new").await;
    // One that waits for a cut to heal goes too.
    setup.proxy.cut();
    let mut waiting = setup.connect().await;
    soon("the connection", async {
        while setup.proxy.stats().connections < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    setup.proxy.disconnect();
    assert_eq!(ended(&mut waiting).await, Err(std::io::ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn a_target_may_die_and_come_back_elsewhere() {
    let Setup { server, proxy } = Setup::new().await;
    drop(server);
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(ended(&mut client).await, Err(std::io::ErrorKind::ConnectionReset));
    let server = TcpListener::bind("127.0.0.2:0").await.unwrap();
    proxy.set_target(server.local_addr().unwrap()).unwrap();
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    client.write_all(b"elsewhere").await.unwrap();
    read(&mut soon("a connection", server.accept()).await.unwrap().0, b"elsewhere").await;
}

#[tokio::test]
async fn the_end_of_a_proxy_closes_everything_and_frees_its_address() {
    let Setup { server, proxy } = Setup::new().await;
    let address = proxy.address();
    let mut client = TcpStream::connect(address).await.unwrap();
    let (mut accepted, _) = server.accept().await.unwrap();
    soon("the end", proxy.close()).await;
    // Closed already, not some time later.
    assert!(matches!(client.try_read(&mut [0; 1]), Ok(0) | Err(_)));
    assert!(ended(&mut client).await.is_ok() && ended(&mut accepted).await.is_ok());
    let again = Proxy::start_on(address, server.local_addr().unwrap()).await.unwrap();
    assert_eq!(again.address(), address);
    let mut client = TcpStream::connect(address).await.unwrap();
    drop(again);
    let _ = ended(&mut client).await;
    soon("the address to be free", async {
        while TcpListener::bind(address).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn only_loopback_addresses_are_taken() {
    let loopback: SocketAddr = "127.0.0.1:0".parse().unwrap();
    for outside in ["10.0.0.1:80", "0.0.0.0:0", "[::1]:80", "[::]:0", "128.0.0.1:80"] {
        let outside: SocketAddr = outside.parse().unwrap();
        let started = Proxy::start(outside).await;
        assert!(matches!(started, Err(ProxyError::NotLoopback { address }) if address == outside));
        let started = Proxy::start_on(outside, loopback).await;
        assert!(matches!(started, Err(ProxyError::NotLoopback { .. })));
    }
    let setup = Setup::new().await;
    assert!(setup.proxy.set_target("10.0.0.1:80".parse().unwrap()).is_err());
    let taken = Proxy::start_on(setup.proxy.address(), loopback).await;
    assert!(matches!(taken, Err(ProxyError::Listen { address, .. })
        if address == setup.proxy.address()));
}

#[tokio::test]
async fn connections_of_a_proxy_are_bounded() {
    let setup = Setup::new().await;
    setup.proxy.cut();
    let mut held = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        held.push(setup.connect().await);
    }
    let mut one_more = setup.connect().await;
    assert_eq!(ended(&mut one_more).await, Err(std::io::ErrorKind::ConnectionReset));
    assert_eq!(setup.proxy.stats().connections, MAX_CONNECTIONS);
}

#[tokio::test]
async fn transports_see_a_cut_as_silence_and_recover() {
    let peers = Peers::new();
    let mut config = config();
    (config.keep_alive, config.dead_after) =
        (Duration::from_millis(50), Duration::from_millis(300));
    config.handshake_timeout = Duration::from_millis(200);
    let one = node_at(1, "127.0.0.1:0", &peers, config.clone()).await;
    let mut two = node_at(2, "127.0.0.1:0", &peers, config).await;
    let proxy = Proxy::start(two.tcp.address()).await.unwrap();
    peers.insert(2, proxy.address());
    let up = Event::Up { peer: 2, class: Class::Small };
    for cut in [None, Some(Direction::ToTarget), Some(Direction::FromTarget)] {
        let mut events = one.tcp.events();
        one.tcp.connect(2).unwrap();
        until(&mut events, "the connection", |event| *event == up).await;
        let body = Bytes::from(format!("{cut:?}"));
        one.tcp.send(2, SMALL, body.clone().into()).unwrap();
        assert_eq!(soon("the message", two.got.recv()).await.unwrap(), (1, body));
        cut.map_or_else(|| proxy.cut(), |direction| proxy.cut_one_way(direction));
        let silent = Event::Down { peer: 2, class: Class::Small, reason: DownReason::Silent };
        until(&mut events, "the silence", |event| *event == silent).await;
        proxy.heal();
        until(&mut events, "the new connection", |event| *event == up).await;
    }
}

/// The socket has taken everything, and the peer has read nothing yet.
#[tokio::test]
async fn a_shutdown_waits_for_peers_to_read() {
    for heals in [false, true] {
        let (peers, of_one) = (Peers::new(), Peers::new());
        let one = node(1, &of_one).await;
        let mut two = node(2, &peers).await;
        let proxy = Proxy::start(two.tcp.address()).await.unwrap();
        of_one.insert(2, proxy.address());
        assert!(one.tcp.call(2, SMALL, "x".into(), later()).await.is_ok());
        proxy.cut();
        one.tcp.send(2, SMALL, "the last".into()).unwrap();
        let written = async {
            while one.tcp.queues().iter().any(|queue| queue.bytes > 0) {
                tokio::task::yield_now().await;
            }
        };
        soon("the socket to take it", written).await;
        let deadline = if heals { later() } else { Instant::now() + NOTHING };
        let shutdown = one.tcp.shutdown(deadline);
        if heals {
            let healed = async {
                // Long enough for a shutdown that does not wait.
                tokio::time::sleep(Duration::from_millis(100)).await;
                proxy.heal();
            };
            assert!(tokio::join!(shutdown, healed).0, "the peer has read everything");
            assert_eq!(soon("the message", two.got.recv()).await.unwrap(), (1, "the last".into()));
        } else {
            assert!(!shutdown.await, "the peer has read nothing");
        }
    }
}
