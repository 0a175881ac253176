//! What peers may do to a node, by bare bytes: each gets a typed event or answer, and others
//! are served all the while.

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use support::*;
use tokio::io::AsyncWriteExt;
use voussoir_net::{
    Class, DownReason, Event, Handler, HandshakeError, Instant, Lost, Parts, Peers, Rejected,
    SendError, Transport, Violation,
};
use voussoir_sim::Situations;

const HOUR: Duration = Duration::from_secs(60 * 60);

async fn violation(node: &Node, raw: &mut Raw, bytes: &[u8]) -> Violation {
    let mut events = node.tcp.events();
    raw.write(bytes).await;
    let is_violation = |event: &Event| matches!(event, Event::Violation { peer: 9, .. });
    let event = until(&mut events, "the violation", is_violation).await;
    let Event::Violation { violation, .. } = event else { unreachable!() };
    raw.closed().await;
    still_serves(node).await;
    violation
}

async fn rejection(node: &Node, bytes: &[u8]) -> HandshakeError {
    let mut events = node.tcp.events();
    let mut raw = Raw::connect(node).await;
    raw.write(bytes).await;
    let is_rejected = |event: &Event| matches!(event, Event::AcceptRejected { .. });
    let event = until(&mut events, "the rejection", is_rejected).await;
    let Event::AcceptRejected { error, remote } = event else { unreachable!() };
    assert_eq!(remote, raw.0.local_addr().unwrap());
    raw.closed().await;
    still_serves(node).await;
    error
}

#[tokio::test]
async fn garbage_instead_of_a_handshake() {
    let node = node(1, &Peers::new()).await;
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 100], &[0xff; 66], b"voussoir\xff\xff"] {
        assert_eq!(rejection(&node, garbage).await, HandshakeError::Malformed);
    }
    let mut damaged = RawHello::to(&node).bytes();
    damaged[30] ^= 1;
    assert_eq!(rejection(&node, &damaged).await, HandshakeError::Malformed);
    assert_eq!(node.tcp.stats().rejected, 5);
}

#[tokio::test]
async fn handshakes_of_others_are_rejected_with_the_reason() {
    let node = node(1, &Peers::new()).await;
    let hello = || RawHello::to(&node);
    let cases = [
        (RawHello { versions: (2, 5), ..hello() }, 3, HandshakeError::Version { min: 2, max: 5 }),
        (RawHello { cluster: 0xc2, ..hello() }, 4, HandshakeError::Cluster),
        (RawHello { to: 2, ..hello() }, 5, HandshakeError::Recipient),
        (RawHello { from: 1, ..hello() }, 6, HandshakeError::SameId),
        (RawHello { class: 9, ..hello() }, 7, HandshakeError::Class),
    ];
    for (hello, code, expected) in cases {
        let mut raw = Raw::connect(&node).await;
        assert_eq!(raw.greet(&hello).await, code, "the other side learns why");
        assert_eq!(rejection(&node, &hello.bytes()).await, expected);
    }
    let future = RawHello { versions: (0, 7), ..hello() };
    Raw::welcome(&node, &future).await;
}

#[tokio::test]
async fn a_node_is_told_why_it_was_rejected() {
    let peers = Peers::new();
    let _strict = node(1, &peers).await;
    let mut config = config();
    config.cluster = 0xc2;
    let other = node_at(2, "127.0.0.1:0", &peers, config).await;
    let mut events = other.tcp.events();
    other.tcp.connect(1).unwrap();
    let error = HandshakeError::Cluster;
    let rejected = Event::ConnectRejected { peer: 1, class: Class::Small, error };
    until(&mut events, "the rejection", |event| *event == rejected).await;
    assert_eq!(other.tcp.send(1, SMALL, "x".into()), Err(SendError::Down));
}

#[tokio::test]
async fn malformed_frames_end_their_connection_alone() {
    let mut node = node(1, &Peers::new()).await;
    let mut wrong_crc = message(b"body");
    wrong_crc[24] ^= 1;
    let mut oversized = message(b"");
    oversized[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    let cases = [
        (wrong_crc, Violation::Checksum),
        (oversized, Violation::Oversized { bytes: u32::MAX.into(), max_bytes: 1 << 20 }),
        (frame(99, 0, 0, 0, 0, b""), Violation::Kind(99)),
        (frame(1, 0x10, 0, 0, 0, b""), Violation::Flags(0x10)),
        (frame(3, 0, 0, 0, 0, b"an answer to no call"), Violation::Kind(3)),
        ([request(5, b"never"), request(5, b"never")].concat(), Violation::DuplicateCall),
    ];
    for (bytes, expected) in cases {
        let mut raw = Raw::welcome(&node, &RawHello::to(&node)).await;
        let bytes = [message(b"before"), bytes].concat();
        assert_eq!(violation(&node, &mut raw, &bytes).await, expected);
        assert_eq!(node.got.recv().await.unwrap(), (9, Bytes::from("before")), "nothing is lost");
    }
    assert_eq!(node.tcp.stats().violations, 6);
}

#[tokio::test]
async fn the_end_within_a_frame() {
    let node = node(1, &Peers::new()).await;
    for cut in [1, 23, 24, 27] {
        let mut raw = Raw::welcome(&node, &RawHello::to(&node)).await;
        let mut events = node.tcp.events();
        raw.write(&message(b"body")[..cut]).await;
        raw.0.shutdown().await.unwrap();
        let is_violation = |event: &Event| matches!(event, Event::Violation { .. });
        let event = until(&mut events, "the violation", is_violation).await;
        assert!(matches!(event, Event::Violation { violation: Violation::Truncated, .. }));
        still_serves(&node).await;
    }
}

#[tokio::test]
async fn unknown_services_are_answered() {
    let node = node(1, &Peers::new()).await;
    let mut raw = Raw::welcome(&node, &RawHello::to(&node)).await;
    let mut events = node.tcp.events();
    raw.write(&frame(1, 0, 500, 0, 0, b"message")).await;
    raw.write(&frame(2, 0, 500, 7, 1000, b"request")).await;
    let unknown = Event::UnknownService { peer: 9, service: 500 };
    until(&mut events, "the event", |event| *event == unknown).await;
    assert_eq!(raw.read(4).await, (1, 7, vec![]), "rejected: unknown service");
    raw.write(&request(8, b"known")).await;
    assert_eq!(raw.read(3).await, (0, 8, b"known".to_vec()), "the connection goes on");
    assert_eq!(node.tcp.stats().unknown_service, 2);
}

#[tokio::test]
async fn a_call_ends_at_its_deadline_also_when_the_caller_says_nothing() {
    let node = node(1, &Peers::new()).await;
    let mut raw = Raw::welcome(&node, &RawHello::to(&node)).await;
    raw.write(&frame(2, 0, SERVICE, 1, 50, b"never")).await;
    soon("the end of the call", async {
        while node.tcp.stats().cancelled == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    raw.write(&request(2, b"next")).await;
    assert_eq!(raw.read(3).await, (0, 2, b"next".to_vec()), "and was not answered");
}

#[tokio::test]
async fn slow_handshakes_and_trickled_frames_end() {
    let mut config = config();
    config.handshake_timeout = Duration::from_millis(200);
    (config.keep_alive, config.dead_after) =
        (Duration::from_millis(50), Duration::from_millis(200));
    let node = node_at(1, "127.0.0.1:0", &Peers::new(), config).await;
    let hello = RawHello::to(&node);
    assert_eq!(rejection(&node, &hello.bytes()[..20]).await, HandshakeError::TimedOut);

    let mut raw = Raw::welcome(&node, &hello).await;
    let mut events = node.tcp.events();
    let trickle = tokio::spawn(async move {
        for byte in message(&vec![0; 100_000]) {
            if raw.0.write_all(&[byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let is_silent =
        |event: &Event| matches!(event, Event::Violation { violation: Violation::Silent, .. });
    until(&mut events, "the end of the trickle", is_silent).await;
    soon("the end of the writer", trickle).await.unwrap();
    still_serves(&node).await;
}

#[tokio::test]
async fn a_thousand_connections_lock_nobody_out() {
    let mut node = node(1, &Peers::new()).await;
    let mut idle = Vec::new();
    for i in 0..1000 {
        let mut raw = Raw::connect(&node).await;
        if i % 3 == 1 {
            raw.write(b"voussoir").await;
        } else if i % 3 == 2 {
            let _ = raw.0.write_all(&[0x55; 500]).await;
        }
        idle.push(raw);
    }
    still_serves(&node).await;
    let mut raw = Raw::welcome(&node, &RawHello::to(&node)).await;
    raw.write(&message(b"through")).await;
    assert_eq!(soon("the message", node.got.recv()).await.unwrap().1, "through");
    drop(idle);
    still_serves(&node).await;
}

#[tokio::test]
async fn connections_in_their_handshake_are_bounded() {
    let mut config = config();
    (config.max_handshakes, config.handshake_timeout) = (4, Duration::from_secs(60));
    let node = node_at(1, "127.0.0.1:0", &Peers::new(), config).await;
    let mut idle = Vec::new();
    for _ in 0..10 {
        idle.push(Raw::connect(&node).await);
    }
    for raw in &mut idle[..6] {
        raw.closed().await;
    }
    assert_eq!(node.tcp.stats().rejected, 6, "the oldest went, and no more than had to");
    still_serves(&node).await;
}

#[tokio::test]
async fn connections_that_stand_are_bounded() {
    let mut config = config();
    config.max_connections = 3;
    let node = node_at(1, "127.0.0.1:0", &Peers::new(), config).await;
    let mut standing = Vec::new();
    for from in 100..103 {
        standing.push(Raw::welcome(&node, &RawHello { from, ..RawHello::to(&node) }).await);
    }
    let mut raw = Raw::connect(&node).await;
    assert_eq!(raw.greet(&RawHello::to(&node)).await, 8, "too many");
    drop(standing.pop());
    soon("a free place", async {
        while Raw::connect(&node).await.greet(&RawHello::to(&node)).await != 0 {}
    })
    .await;
}

#[tokio::test]
async fn a_newer_connection_ends_the_older_first() {
    // Only the newer connection can end the older one: its silence is borne for an hour.
    let mut patient = config();
    (patient.keep_alive, patient.dead_after) = (HOUR / 2, HOUR);
    let mut node = node_at(1, "127.0.0.1:0", &Peers::new(), patient).await;
    let hello = RawHello::to(&node);
    let mut older = Raw::welcome(&node, &hello).await;
    older.write(&message(b"older")).await;
    assert_eq!(node.got.recv().await.unwrap().1, "older");
    let mut newer = Raw::welcome(&node, &hello).await;
    // The reply to the newer one was sent after the older one had ended.
    let _ = older.0.write_all(&message(b"late")).await;
    newer.write(&message(b"newer")).await;
    assert_eq!(node.got.recv().await.unwrap().1, "newer");
    older.closed().await;
    newer.write(&message(b"last")).await;
    assert_eq!(node.got.recv().await.unwrap().1, "last", "nothing came late");
}

/// Holds up the task that hands it a message or a request.
struct Gate {
    entered: tokio::sync::mpsc::UnboundedSender<()>,
    open: parking_lot::Mutex<std::sync::mpsc::Receiver<()>>,
}

impl Gate {
    fn pass(&self) {
        self.entered.send(()).unwrap();
        // A worker that blocks may be the one that drives the timers and sockets of the others.
        tokio::task::block_in_place(|| self.open.lock().recv().unwrap());
    }
}

#[voussoir_net::async_trait]
impl Handler for Gate {
    fn message(&self, _from: u64, _class: Class, _body: Bytes) {
        self.pass();
    }

    async fn call(&self, _from: u64, body: Bytes) -> Result<Parts, Rejected> {
        if &*body == b"in a task of its own" {
            tokio::task::yield_now().await;
        }
        self.pass();
        Ok(Parts::new(body))
    }
}

/// A connection of peer 9 whose frame, of this kind, is in a handler that returns when told to.
async fn held_up(node: &Node, kind: u8) -> (Raw, std::sync::mpsc::Sender<()>) {
    held_up_by(node, kind, b"held up").await
}

async fn held_up_by(node: &Node, kind: u8, body: &[u8]) -> (Raw, std::sync::mpsc::Sender<()>) {
    let (entered, mut has_entered) = tokio::sync::mpsc::unbounded_channel();
    let (open, gate) = std::sync::mpsc::channel();
    let gate = Gate { entered, open: parking_lot::Mutex::new(gate) };
    node.tcp.serve(2, Arc::new(gate)).unwrap();
    let mut raw = Raw::welcome(node, &RawHello::to(node)).await;
    raw.write(&frame(kind, 0, 2, 1, 10_000, body)).await;
    soon("the handler", has_entered.recv()).await.unwrap();
    (raw, open)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn of_those_that_wait_for_an_older_connection_the_latest_is_welcome() {
    let mut node = node(1, &Peers::new()).await;
    let (_older, open) = held_up(&node, 1).await;
    let hello = RawHello::to(&node);
    let mut given_up = Vec::new();
    for _ in 0..5 {
        let mut raw = Raw::connect(&node).await;
        raw.write(&hello.bytes()).await;
        given_up.push(raw);
    }
    let mut latest = given_up.pop().unwrap();
    for raw in &mut given_up {
        assert_eq!(raw.reply().await, 13, "a later one has come");
        raw.closed().await;
    }
    assert_eq!(node.tcp.stats().rejected, 4);
    open.send(()).unwrap();
    assert_eq!(latest.reply().await, 0, "welcome");
    still_serves(&node).await;
    latest.write(&message(b"through")).await;
    let body = soon("the message", node.got.recv()).await.unwrap().1;
    assert_eq!(body, "through", "nobody has ended the latest");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn who_waits_for_an_older_connection_has_the_time_of_a_handshake() {
    let mut config = config();
    config.handshake_timeout = Duration::from_millis(300);
    let node = node_at(1, "127.0.0.1:0", &Peers::new(), config).await;
    let (_older, open) = held_up(&node, 1).await;
    let mut newer = Raw::connect(&node).await;
    assert_eq!(newer.greet(&RawHello::to(&node)).await, 2, "timed out");
    newer.closed().await;
    open.send(()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn who_waits_for_an_older_connection_counts_as_a_handshake() {
    let mut config = config();
    (config.max_handshakes, config.handshake_timeout) = (1, Duration::from_secs(60));
    let node = node_at(1, "127.0.0.1:0", &Peers::new(), config).await;
    let (_older, open) = held_up(&node, 1).await;
    let hello = RawHello::to(&node);
    let mut waiting = Raw::connect(&node).await;
    let mut events = node.tcp.events();
    waiting.write(&hello.bytes()).await;
    // Another peer gets the only place once the first has had its time.
    let _other = Raw::welcome(&node, &RawHello { from: 10, ..hello }).await;
    let is_rejected = |event: &Event| matches!(event, Event::AcceptRejected { .. });
    let event = until(&mut events, "the rejection", is_rejected).await;
    let (remote, error) = (waiting.0.local_addr().unwrap(), HandshakeError::TimedOut);
    assert_eq!(event, Event::AcceptRejected { remote, error });
    waiting.closed().await;
    open.send(()).unwrap();
}

#[tokio::test]
async fn a_connection_that_came_in_earlier_ends_no_later_one() {
    let node = node(1, &Peers::new()).await;
    let (mut earlier, rest) = slow_hello(&node, "127.0.0.1").await;
    let mut later = Raw::welcome(&node, &RawHello::to(&node)).await;
    earlier.write(&rest).await;
    assert_eq!(earlier.reply().await, 13, "a later one has come");
    later.write(&request(1, b"goes on")).await;
    assert_eq!(later.read(3).await, (0, 1, b"goes on".to_vec()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_shutdown_ends_although_a_handler_blocks() {
    for kind in [1, 2] {
        let node = node(1, &Peers::new()).await;
        let (_raw, open) = held_up(&node, kind).await;
        let deadline = Instant::now() + Duration::from_millis(100);
        let is_whole = soon("the end of the shutdown", node.tcp.shutdown(deadline)).await;
        assert!(!is_whole, "a frame of kind {kind} is still being handed on");
        open.send(()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_shutdown_tells_of_a_handler_that_goes_on_after_its_call_was_cancelled() {
    let node = node(1, &Peers::new()).await;
    let (mut raw, open) = held_up_by(&node, 2, b"in a task of its own").await;
    raw.write(&frame(5, 0, 0, 1, 0, b"")).await;
    soon("the call to be cancelled", async {
        while node.tcp.stats().cancelled == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    drop(raw);
    let deadline = Instant::now() + Duration::from_millis(100);
    let is_whole = soon("the end of the shutdown", node.tcp.shutdown(deadline)).await;
    assert!(!is_whole, "the handler still runs");
    open.send(()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_newer_connection_is_welcome_when_the_older_has_ended() {
    let node = node(1, &Peers::new()).await;
    let (_older, open) = held_up(&node, 1).await;
    let hello = RawHello::to(&node);
    let mut newer = Raw::connect(&node).await;
    let mut greeting = Box::pin(newer.greet(&hello));
    let early = tokio::time::timeout(Duration::from_millis(200), &mut greeting).await;
    assert!(early.is_err(), "a message of the older connection is still being handed on");
    open.send(()).unwrap();
    assert_eq!(greeting.await, 0, "welcome");
}

#[tokio::test]
async fn a_stalled_peer_fills_its_own_queue_only() {
    let peers = Peers::new();
    let mut config = config();
    (config.keep_alive, config.dead_after) = (Duration::from_millis(100), Duration::from_secs(3));
    let one = node_at(1, "127.0.0.1:0", &peers, config.clone()).await;
    let mut three = node(3, &peers).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    peers.insert(2, listener.local_addr().unwrap());
    one.tcp.connect(2).unwrap();
    // It accepts both connections, and never reads.
    let _stalled = [accept(&listener).await, accept(&listener).await];
    let mut events = one.tcp.events();
    let up = Event::Up { peer: 2, class: Class::Small };
    until(&mut events, "the connection", |event| *event == up).await;

    fill(&one.tcp, 2, SMALL, 10_000).await;
    let queued = one.tcp.queues().into_iter().map(|queue| queue.bytes).max().unwrap();
    assert!(queued <= config.small.max_queue_bytes, "{queued} bytes wait");
    one.tcp.send(3, SMALL, "to another".into()).unwrap();
    assert_eq!(soon("the message", three.got.recv()).await.unwrap().1, "to another");
    let called = one.tcp.call(2, SMALL, vec![1; 10_000].into(), later()).await;
    assert_eq!(called.unwrap_err(), SendError::Full.into());

    let reason = DownReason::Silent;
    let down = Event::Down { peer: 2, class: Class::Small, reason };
    until(&mut events, "the end of the stalled peer", |event| *event == down).await;
    assert_eq!(one.tcp.send(2, SMALL, "x".into()), Err(SendError::Down));
}

#[tokio::test]
async fn a_peer_that_reads_no_answers_is_bounded_and_ends() {
    let mut config = config();
    (config.keep_alive, config.dead_after) = (Duration::from_millis(100), Duration::from_secs(1));
    config.small.max_queue_bytes = 1 << 20;
    let node = node_at(1, "127.0.0.1:0", &Peers::new(), config).await;
    let mut raw = Raw::welcome(&node, &RawHello::to(&node)).await;
    let mut events = node.tcp.events();
    let flood = tokio::spawn(async move {
        let body = vec![1; 100_000];
        for id in 0.. {
            if raw.0.write_all(&request(id, &body)).await.is_err() {
                return id;
            }
        }
        unreachable!("the node takes no end of requests")
    });
    let is_silent =
        |event: &Event| matches!(event, Event::Violation { violation: Violation::Silent, .. });
    until(&mut events, "the end of the flood", is_silent).await;
    let taken = soon("the end of the writer", flood).await.unwrap();
    // Of 100 KB each: what the two sockets hold, the queue, and the one that waits for room.
    assert!(taken < 200, "{taken} requests were taken");
    still_serves(&node).await;
}

/// Answers a mebibyte, to everybody at once.
struct Chunks {
    go: tokio::sync::watch::Receiver<bool>,
    chunk: Bytes,
}

#[voussoir_net::async_trait]
impl Handler for Chunks {
    fn message(&self, _from: u64, _class: Class, _body: Bytes) {}

    async fn call(&self, _from: u64, _body: Bytes) -> Result<Parts, Rejected> {
        let mut go = self.go.clone();
        go.wait_for(|go| *go).await.expect("the test tells when to go");
        Ok(Parts::new(self.chunk.clone()))
    }
}

#[tokio::test]
async fn answers_that_a_peer_does_not_read_are_bounded_in_bytes() {
    const CALLS: u64 = 1000;
    let mut config = config();
    (config.keep_alive, config.dead_after) = (HOUR / 2, HOUR);
    // Room for three answers, however short; those that find room in the end are written at once,
    // so that each waiter learns of it from the one before.
    (config.small.max_queue_messages, config.gather) = (3, Duration::ZERO);
    config.small.max_queue_bytes = 4 << 20;
    let node = node_at(1, "127.0.0.1:0", &Peers::new(), config).await;
    let (start, go) = tokio::sync::watch::channel(false);
    let chunk = Bytes::from(vec![7; 1 << 20]);
    node.tcp.serve(2, Arc::new(Chunks { go, chunk })).unwrap();
    let mut raw = Raw::welcome(&node, &RawHello::to(&node)).await;
    for id in 0..CALLS {
        raw.write(&frame(2, 0, 2, id, 60_000, b"")).await;
    }
    soon("the calls to be under way", async {
        while node.tcp.stats().frames_in < CALLS {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    start.send(true).unwrap();
    // Of a mebibyte each: what the two sockets hold, four in the queue and four beside it.
    soon("most answers to be dropped", async {
        while node.tcp.stats().dropped < CALLS / 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    for _ in 0..node.tcp.stats().dropped {
        let (reason, _, body) = raw.read(4).await;
        assert_eq!((reason, body), (6, vec![]), "the answer was dropped");
    }
    raw.write(&request(CALLS, b"goes on")).await;
    while raw.read(3).await.1 != CALLS {}
    assert!(node.tcp.stats().dropped < CALLS, "some were sent");
}

#[tokio::test]
async fn answers_that_make_no_sense_end_the_call_alone() {
    let peers = Peers::new();
    let one = node(1, &peers).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    peers.insert(2, listener.local_addr().unwrap());
    let tcp = one.tcp.clone();
    let call = tokio::spawn(async move { tcp.call(2, SMALL, "x".into(), later()).await });
    let (mut raw, _) = accept(&listener).await;
    let (_, id, _) = raw.read(2).await;
    raw.write(&frame(3, 0, 0, id + 1000, 0, b"to no call")).await;
    raw.write(&frame(4, 0, 999, id, 0, b"for no known reason")).await;
    let error = soon("the end of the call", call).await.unwrap().unwrap_err();
    assert_eq!(error, Lost::UnknownReason.into());
    let tcp = one.tcp.clone();
    let call = tokio::spawn(async move { tcp.call(2, SMALL, "x".into(), later()).await });
    let (_, id, _) = raw.read(2).await;
    raw.write(&frame(4, 0, 6, id, 0, b"")).await;
    let error = soon("the end of the call", call).await.unwrap().unwrap_err();
    assert_eq!(error, Lost::AnswerDropped.into());
    let tcp = one.tcp.clone();
    let call = tokio::spawn(async move { tcp.call(2, SMALL, "y".into(), later()).await });
    let (_, id, _) = raw.read(2).await;
    let mut damaged = frame(3, 0, 0, id, 0, b"answer");
    damaged[24] ^= 1;
    raw.write(&damaged).await;
    let error = soon("the end of the call", call).await.unwrap().unwrap_err();
    assert_eq!(error, Lost::Disconnected.into());
}

/// A stream of valid frames in which bits are flipped, pieces left out, repeated and cut, on many
/// connections. VOUSSOIR_NET_MUTATIONS sets how many, default 300.
#[tokio::test]
async fn mutated_sessions() {
    let rounds = std::env::var("VOUSSOIR_NET_MUTATIONS").map_or(300, |text| text.parse().unwrap());
    let mut node = node(1, &Peers::new()).await;
    static NAMES: [&str; 4] = [
        "message before the damage",
        "handshake rejected",
        "violation after the handshake",
        "session accepted",
    ];
    let situations = Situations::new(&NAMES);
    let mut state = 0x5eed_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    for round in 0..rounds {
        let hello = RawHello::to(&node).bytes();
        let mut bytes = [&hello[..], &message(b"one"), &request(1, b"two")].concat();
        bytes.extend([frame(5, 0, 0, 1, 0, b""), frame(6, 0, 0, 2, 0, b"")].concat());
        for _ in 0..=random(3) {
            let at = random(bytes.len());
            match random(4) {
                0 => bytes[at] ^= 1 << random(8),
                1 => bytes.truncate(at.max(1)),
                2 => drop(bytes.drain(at..(at + 5).min(bytes.len() - 1).max(at))),
                _ => bytes.extend_from_within(at..),
            }
        }
        let mut raw = Raw::connect(&node).await;
        let _ = raw.0.write_all(&bytes).await;
        drop(raw);
        while let Ok((from, body)) = node.got.try_recv() {
            assert_eq!((from, &*body), (9, &b"one"[..]), "round {round}: only what was sent");
            situations.reached("message before the damage");
        }
    }
    still_serves(&node).await;
    let stats = node.tcp.stats();
    situations.add("handshake rejected", stats.rejected);
    situations.add("violation after the handshake", stats.violations);
    // Less the one of `still_serves`.
    situations.add("session accepted", stats.accepted - 1);
    situations.assert_all_reached();
}

/// A hello in two pieces, the second of which comes when the test says so.
async fn slow_hello(node: &Node, from_ip: &str) -> (Raw, Vec<u8>) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(format!("{from_ip}:0").parse().unwrap()).unwrap();
    let mut raw = Raw(socket.connect(node.tcp.address()).await.unwrap());
    let hello = RawHello::to(node).bytes();
    raw.write(&hello[..20]).await;
    (raw, hello[20..].to_vec())
}

#[tokio::test]
async fn a_slow_handshake_outlives_many_new_connections() {
    let mut config = config();
    config.max_handshakes = 16;
    let node = node_at(1, "127.0.0.1:0", &Peers::new(), config).await;
    // Once from the address that floods, and once from another one.
    for from_ip in ["127.0.0.1", "127.0.0.2"] {
        let (mut raw, rest) = slow_hello(&node, from_ip).await;
        let mut flood = Vec::new();
        for _ in 0..40 {
            flood.push(Raw::connect(&node).await);
        }
        // The node has seen as many of them as it takes at a time.
        tokio::time::sleep(Duration::from_millis(100)).await;
        raw.write(&rest).await;
        let mut reply = [0; REPLY_BYTES];
        let got = tokio::io::AsyncReadExt::read_exact(&mut raw.0, &mut reply);
        soon("a reply", got).await.expect("the handshake was not ended by others");
        assert_eq!(reply[10..12], [0, 0], "welcome");
        // And an honest newcomer gets its turn.
        still_serves(&node).await;
        drop(flood);
    }
}

#[tokio::test]
async fn a_flood_from_one_address_takes_no_place_from_others() {
    let mut config = config();
    (config.max_handshakes, config.handshake_timeout) = (16, Duration::from_secs(60));
    let node = node_at(1, "127.0.0.1:0", &Peers::new(), config).await;
    let mut flood = Vec::new();
    for _ in 0..16 {
        flood.push(Raw::connect(&node).await);
    }
    // All places are taken by connections that have not had their time; this one need not wait.
    let began = Instant::now();
    let (mut raw, rest) = slow_hello(&node, "127.0.0.3").await;
    raw.write(&rest).await;
    let mut reply = [0; REPLY_BYTES];
    let got = tokio::io::AsyncReadExt::read_exact(&mut raw.0, &mut reply);
    soon("a reply", got).await.unwrap();
    assert!(began.elapsed() < Duration::from_millis(400), "{:?}", began.elapsed());
}

/// The beginning of a message of `bytes` on the bulk connection of peer `from`.
async fn unfinished(node: &Node, from: u64, bytes: usize, sent: usize) -> Raw {
    let hello = RawHello { class: 1, from, max_body_bytes: 1 << 30, ..RawHello::to(node) };
    let mut raw = Raw::welcome(node, &hello).await;
    let header = &message(&vec![0; bytes])[..24];
    raw.write(header).await;
    raw.write(&vec![0; sent]).await;
    raw
}

#[tokio::test]
async fn unfinished_frames_are_bounded_over_all_peers() {
    const MIB: usize = 1 << 20;
    let mut config = config();
    config.bulk.max_message_bytes = 16 * MIB;
    config.max_partial_bytes = 64 * MIB;
    // Those that wait for their turn to write on a loaded machine are not ended as silent instead.
    (config.keep_alive, config.dead_after) = (HOUR / 2, HOUR);
    let limit = config.max_partial_bytes;
    let mut node = node_at(1, "127.0.0.1:0", &Peers::new(), config).await;
    let mut events = node.tcp.events();
    let peers = 60;
    let mut raws = Vec::new();
    for from in 100..100 + peers {
        // A peer whose connection was ended meanwhile cannot be written to any more.
        raws.push(unfinished(&node, from, 15 * MIB, MIB).await);
        assert!(node.tcp.partial_bytes() <= limit);
    }
    let mut writers = tokio::task::JoinSet::new();
    for mut raw in raws {
        writers.spawn(async move {
            let _ = raw.0.write_all(&vec![0; 13 * MIB]).await;
            raw
        });
    }
    let mut most = 0;
    let mut overloaded = 0;
    soon("the connections that hold too much to end", async {
        // Counted by the transport: a reader of events that falls behind misses some.
        while node.tcp.stats().overloaded < peers - 5 || overloaded == 0 {
            most = most.max(node.tcp.partial_bytes());
            match tokio::time::timeout(Duration::from_millis(1), events.next()).await {
                Ok(Some(Event::Overloaded { peer: 100.., .. })) => overloaded += 1,
                Ok(event) => assert!(event.is_some(), "the transport lives"),
                Err(_) => {}
            }
        }
    })
    .await;
    assert!(most > limit / 2 && most <= limit, "{most} bytes at the most");
    // An honest peer's long message comes through meanwhile.
    let peers = Peers::from_iter([(1, node.tcp.address())]);
    let honest = node_at(2, "127.0.0.1:0", &peers, support::config()).await;
    honest.tcp.send(1, BULK, vec![7; 15 * MIB].into()).unwrap();
    let (from, body) = soon("the message", node.got.recv()).await.unwrap();
    assert_eq!((from, body.len()), (2, 15 * MIB));
    drop(writers);
    soon("everything to be given back", async {
        while node.tcp.partial_bytes() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn an_answer_goes_to_the_connection_of_its_request_alone() {
    let node = node(1, &Peers::new()).await;
    let hello = RawHello::to(&node);
    let mut older = Raw::welcome(&node, &hello).await;
    older.write(&request(1, b"never")).await;
    under_way(&node).await;
    // The peer has restarted, and its ids begin anew.
    let mut newer = Raw::welcome(&node, &hello).await;
    soon("the older call to be dropped", async {
        while node.tcp.stats().cancelled == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    newer.write(&request(1, b"new")).await;
    assert_eq!(newer.read(3).await, (0, 1, b"new".to_vec()));
    newer.write(&request(2, b"next")).await;
    assert_eq!(newer.read(3).await, (0, 2, b"next".to_vec()), "nothing came in between");
}

async fn under_way(node: &Node) {
    soon("the call to be under way", async {
        while node.tcp.stats().frames_in == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}
