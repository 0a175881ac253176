//! The loopback proxy: flipped bits, faults at exact places, and what transports make of them.

mod support;

use std::collections::HashSet;
use std::num::NonZeroU64;
use std::time::Duration;

use bytes::Bytes;
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use voussoir_net::testing::{Direction, Fault, Proxy, Rule};
use voussoir_net::{
    CallError, Class, DownReason, Event, Events, HandshakeError, Instant, Lost, Peers, SendError,
    Transport, Violation,
};
use voussoir_sim::Situations;

const BOTH: [Direction; 2] = Direction::BOTH;
/// Bytes of a hello, and of its reply.
const HELLO_BYTES: u64 = 66;
const REPLY_BYTES: u64 = 38;
const HEADER_BYTES: u64 = 24;

fn one_in(bytes: u64) -> Option<NonZeroU64> {
    NonZeroU64::new(bytes)
}

fn rule(after_bytes: u64, fault: Fault) -> Rule {
    Rule { after_bytes, fault }
}

/// A client of a proxy and its connection at the server.
async fn pair(proxy: &Proxy, server: &TcpListener) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(proxy.address()).await.unwrap();
    (client, soon("a connection", server.accept()).await.unwrap().0)
}

/// Passes zeros to the target, and returns what came of them.
async fn pass_zeros(proxy: &Proxy, server: &TcpListener, bytes: usize) -> Vec<u8> {
    let (mut client, mut accepted) = pair(proxy, server).await;
    let writing = tokio::spawn(async move {
        client.write_all(&vec![0; bytes]).await.unwrap();
        client.shutdown().await.unwrap();
    });
    let mut got = Vec::new();
    soon("all bytes", accepted.read_to_end(&mut got)).await.unwrap();
    writing.await.unwrap();
    assert_eq!(got.len(), bytes, "no byte is lost or added");
    got
}

#[tokio::test]
async fn flips_change_one_bit_of_some_bytes_at_places_that_are_the_same_each_time() {
    let mut runs = Vec::new();
    for _ in 0..2 {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::start(server.local_addr().unwrap()).await.unwrap();
        proxy.set_flips(Direction::ToTarget, one_in(1000));
        let first = pass_zeros(&proxy, &server, 1 << 20).await;
        let second = pass_zeros(&proxy, &server, 1 << 20).await;
        assert!(first != second, "each connection has places of its own");
        let flipped: Vec<u8> = first.iter().chain(&second).copied().filter(|&b| b != 0).collect();
        assert!(flipped.iter().all(|byte| byte.is_power_of_two()));
        assert!((1900..=2300).contains(&flipped.len()), "{} of 2 MiB", flipped.len());
        assert_eq!(proxy.stats().flipped_bytes, flipped.len() as u64);
        proxy.set_flips(Direction::ToTarget, None);
        assert!(pass_zeros(&proxy, &server, 1 << 20).await.iter().all(|&byte| byte == 0));
        // The other direction was never touched.
        let (mut client, mut accepted) = pair(&proxy, &server).await;
        accepted.write_all(&[0; 5000]).await.unwrap();
        let mut back = [1; 5000];
        soon("bytes", client.read_exact(&mut back)).await.unwrap();
        assert_eq!(back, [0; 5000]);
        runs.push((first, second));
    }
    assert!(runs[0] == runs[1], "the same bytes meet the same flips");
}

#[tokio::test]
async fn a_rule_is_met_once_at_its_byte_and_in_its_direction() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::start(server.local_addr().unwrap()).await.unwrap();
    for place in [0, 1, 70_000, (1 << 20) - 1] {
        proxy.set_rule(Direction::ToTarget, Some(rule(place, Fault::FlipBit)));
        let got = pass_zeros(&proxy, &server, 1 << 20).await;
        let flipped: Vec<_> = (0..).zip(got).filter(|&(_, byte)| byte != 0).collect();
        assert_eq!(flipped, [(place, 1)]);
        assert_eq!(proxy.rule(Direction::ToTarget), None);
    }
    assert_eq!((proxy.stats().rules_met, proxy.stats().flipped_bytes), (4, 4));
    // Counted over connections; a rule of the other direction waits.
    proxy.set_rule(Direction::FromTarget, Some(rule(3, Fault::Reset)));
    proxy.set_rule(Direction::ToTarget, Some(rule(2500, Fault::FlipBit)));
    pass_zeros(&proxy, &server, 1000).await;
    assert_eq!(proxy.rule(Direction::ToTarget), Some(rule(1500, Fault::FlipBit)));
    assert!(pass_zeros(&proxy, &server, 2000).await[1500] == 1);
    assert_eq!(proxy.rule(Direction::FromTarget), Some(rule(3, Fault::Reset)));
    let (mut client, mut accepted) = pair(&proxy, &server).await;
    accepted.write_all(b"abcdef").await.unwrap();
    let mut got = [0; 3];
    soon("bytes before the reset", client.read_exact(&mut got)).await.unwrap();
    assert_eq!(&got, b"abc");
    for stream in [&mut client, &mut accepted] {
        let error = soon("the reset", stream.read(&mut [0; 1])).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn a_stall_holds_one_connection_in_one_direction() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::start(server.local_addr().unwrap()).await.unwrap();
    let (mut client, mut accepted) = pair(&proxy, &server).await;
    proxy.set_rule(Direction::ToTarget, Some(rule(2, Fault::Stall)));
    client.write_all(b"held").await.unwrap();
    let mut got = [0; 2];
    soon("bytes", accepted.read_exact(&mut got)).await.unwrap();
    assert_eq!(&got, b"he");
    // Another connection, and the other direction of this one, go on.
    assert_eq!(pass_zeros(&proxy, &server, 5000).await.len(), 5000);
    accepted.write_all(b"back").await.unwrap();
    let mut got = [0; 4];
    soon("bytes", client.read_exact(&mut got)).await.unwrap();
    proxy.heal();
    drop(client);
    let silent = tokio::time::timeout(Duration::from_millis(100), accepted.read(&mut got)).await;
    assert!(silent.is_err(), "neither the bytes nor the end came through");
    proxy.disconnect();
    let error = soon("the reset", accepted.read(&mut got)).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

/// Two nodes; the first reaches the second through a proxy.
struct Pair {
    one: Node,
    two: Node,
    proxy: Proxy,
}

impl Pair {
    /// Nothing goes over the wire but what the test sends: a rule that counts bytes from now on
    /// hits the frame that it is meant for.
    async fn quiet() -> Self {
        Self::with(Duration::from_secs(10), Duration::from_secs(30), Duration::from_secs(10)).await
    }

    /// What stays away is missed soon.
    async fn impatient() -> Self {
        let [keep_alive, dead_after, handshake] = [50, 300, 200].map(Duration::from_millis);
        Self::with(keep_alive, dead_after, handshake).await
    }

    async fn with(keep_alive: Duration, dead_after: Duration, handshake: Duration) -> Self {
        let mut config = config();
        (config.keep_alive, config.dead_after) = (keep_alive, dead_after);
        config.handshake_timeout = handshake;
        let (of_one, of_two) = (Peers::new(), Peers::new());
        let one = node_at(1, "127.0.0.1:0", &of_one, config.clone()).await;
        let two = node_at(2, "127.0.0.1:0", &of_two, config).await;
        let proxy = Proxy::start(two.tcp.address()).await.unwrap();
        of_one.insert(2, proxy.address());
        Self { one, two, proxy }
    }

    /// Calls until there is an answer.
    async fn recovers(&self) {
        soon("a call to get through", async {
            while self.one.tcp.call(2, SMALL, "x".into(), later()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

async fn violation_of(events: &mut Events) -> Violation {
    let of_one = |event: &Event| matches!(event, Event::Violation { peer: 1, .. });
    match until(events, "the violation", of_one).await {
        Event::Violation { violation, .. } => violation,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn each_byte_of_a_frame_that_arrives_flipped_is_refused_typed() {
    let (flipped, further) = (Bytes::from_static(&[7; 8]), Bytes::from_static(&[8; 4096]));
    for place in 0..HEADER_BYTES + flipped.len() as u64 {
        let mut pair = Pair::quiet().await;
        pair.recovers().await;
        let mut events = pair.two.tcp.events();
        pair.proxy.set_rule(Direction::ToTarget, Some(rule(place, Fault::FlipBit)));
        pair.one.tcp.send(2, SMALL, flipped.clone().into()).unwrap();
        // A frame that its flipped length makes longer by up to 65,536 bytes ends within these.
        for _ in 0..20 {
            pair.one.tcp.send(2, SMALL, further.clone().into()).unwrap();
        }
        let violation = violation_of(&mut events).await;
        // The lowest bit of the length makes the frame shorter or longer by one byte; of the
        // kind, a message a frame that only an acceptor sends.
        let fits = match place {
            4 => matches!(violation, Violation::Kind(_) | Violation::Checksum),
            3 => matches!(violation, Violation::Oversized { .. }),
            _ => violation == Violation::Checksum,
        };
        assert!(fits, "byte {place}: {violation:?}");
        pair.recovers().await;
        while let Ok((_, body)) = pair.two.got.try_recv() {
            assert_eq!(body, further, "byte {place} was delivered");
        }
        assert_eq!(pair.proxy.stats().flipped_bytes, 1);
    }
}

/// A frame whose length was flipped to more than ever comes: the receiver gives up, or the sender
/// does, whose keep-alives are a part of it, and ends the connection within the frame.
#[tokio::test]
async fn a_frame_that_stays_a_part_ends_the_connection() {
    let mut pair = Pair::impatient().await;
    pair.recovers().await;
    let mut events = pair.two.tcp.events();
    pair.proxy.set_rule(Direction::ToTarget, Some(rule(1, Fault::FlipBit)));
    pair.one.tcp.send(2, SMALL, vec![7; 8].into()).unwrap();
    let violation = violation_of(&mut events).await;
    assert!(matches!(violation, Violation::Silent | Violation::Truncated), "{violation:?}");
    pair.recovers().await;
    assert!(pair.two.got.try_recv().is_err(), "it was delivered");
}

#[tokio::test]
async fn each_byte_of_an_answer_that_arrives_flipped_makes_the_outcome_unknown() {
    for place in [0, 4, 6, 8, 20, 24, 30] {
        let pair = Pair::quiet().await;
        pair.recovers().await;
        let mut events = pair.one.tcp.events();
        pair.proxy.set_rule(Direction::FromTarget, Some(rule(place, Fault::FlipBit)));
        let call = |body: u8| pair.one.tcp.call(2, SMALL, vec![body; 40].into(), later());
        // The second answer ends a first one that its flipped length makes longer.
        let (answer, _) = tokio::join!(call(7), call(8));
        assert_eq!(answer, Err(CallError::Unknown(Lost::Disconnected)), "byte {place}");
        let down = |event: &Event| matches!(event, Event::Down { class: Class::Small, .. });
        let Event::Down { reason, .. } = until(&mut events, "the end", down).await else {
            panic!("an event that fits")
        };
        assert!(matches!(reason, DownReason::Violation(_)), "{reason:?}");
        pair.recovers().await;
    }
}

#[tokio::test]
async fn a_flipped_handshake_is_rejected_by_either_side() {
    for place in [0, 9, 20, HELLO_BYTES - 1] {
        let pair = Pair::impatient().await;
        let mut events = pair.two.tcp.events();
        pair.proxy.set_rule(Direction::ToTarget, Some(rule(place, Fault::FlipBit)));
        pair.one.tcp.send(2, SMALL, "x".into()).unwrap();
        let rejected = |event: &Event| matches!(event, Event::AcceptRejected { .. });
        let Event::AcceptRejected { error, .. } = until(&mut events, "it", rejected).await else {
            panic!("an event that fits")
        };
        let fits = matches!(error, HandshakeError::Malformed | HandshakeError::TimedOut);
        assert!(fits, "byte {place}: {error:?}");
        pair.recovers().await;
    }
    for place in [0, 11, REPLY_BYTES - 1] {
        let pair = Pair::quiet().await;
        let mut events = pair.one.tcp.events();
        pair.proxy.set_rule(Direction::FromTarget, Some(rule(place, Fault::FlipBit)));
        pair.one.tcp.send(2, SMALL, "x".into()).unwrap();
        let rejected = |event: &Event| matches!(event, Event::ConnectRejected { .. });
        let Event::ConnectRejected { error, .. } = until(&mut events, "it", rejected).await else {
            panic!("an event that fits")
        };
        assert_eq!(error, HandshakeError::Malformed, "byte {place}");
        pair.recovers().await;
    }
}

/// What random flips have to meet.
static MET: [&str; 7] = [
    "a message delivered",
    "a call answered",
    "a call unknown",
    "a frame refused by the acceptor",
    "a frame refused by the dialler",
    "a handshake refused by the acceptor",
    "a handshake refused by the dialler",
];

#[tokio::test]
async fn under_random_flips_what_arrives_is_what_was_sent_and_once() {
    let mut pair = Pair::impatient().await;
    let met = Situations::new(&MET);
    let (mut at_one, mut at_two) = (pair.one.tcp.events(), pair.two.tcp.events());
    let mut sent = HashSet::new();
    let mut arrived = HashSet::new();
    for direction in BOTH {
        pair.proxy.set_flips(direction, one_in(700));
    }
    let end = Instant::now() + Duration::from_secs(20);
    let mut turn = 0_u64;
    while Instant::now() < end && (turn < 300 || !met.missed().is_empty()) {
        turn += 1;
        let body = Bytes::from([turn.to_le_bytes().as_slice(), &[turn as u8; 40]].concat());
        if pair.one.tcp.send(2, SMALL, body.clone().into()).is_ok() {
            sent.insert(body.clone());
        }
        let soon_over = Instant::now() + Duration::from_millis(100);
        match pair.one.tcp.call(2, SMALL, body.clone().into(), soon_over).await {
            Ok(answer) => {
                assert_eq!(answer, body, "another answer than was given");
                met.reached("a call answered");
            }
            Err(CallError::Unknown(_)) => met.reached("a call unknown"),
            Err(CallError::NotSent(SendError::Down | SendError::Expired)) => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Err(error) => panic!("{error}"),
        }
        while let Ok((_, body)) = pair.two.got.try_recv() {
            assert!(sent.contains(&body), "never sent: {body:?}");
            assert!(arrived.insert(body), "delivered twice");
            met.reached("a message delivered");
        }
        while let Some(event) = at_one.try_next() {
            match event {
                Event::Down { reason: DownReason::Violation(_), .. } => met.reached(MET[4]),
                Event::ConnectRejected { .. } => met.reached(MET[6]),
                _ => {}
            }
        }
        while let Some(event) = at_two.try_next() {
            match event {
                Event::Violation { .. } => met.reached(MET[3]),
                Event::AcceptRejected { .. } => met.reached(MET[5]),
                _ => {}
            }
        }
    }
    met.assert_all_reached();
    for direction in BOTH {
        pair.proxy.set_flips(direction, None);
    }
    // What flips have begun ends, and everything goes on.
    pair.recovers().await;
}
