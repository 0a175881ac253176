//! What `Tcp` promises beyond the suite that all transports keep.

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use support::*;
use tokio::net::TcpListener;
use voussoir_net::{
    BindError, CallError, Class, Config, DownReason, Event, Instant, Lost, Outcome, Peers,
    SendError, ServeError, Tcp, Transport,
};

const UP: Event = Event::Up { peer: 2, class: Class::Small };

fn is_down(event: &Event) -> bool {
    matches!(event, Event::Down { peer: 2, class: Class::Small, .. })
}

#[tokio::test]
async fn what_was_sent_before_the_connection_stood_arrives() {
    let peers = Peers::new();
    let one = node(1, &peers).await;
    let mut two = node(2, &peers).await;
    for i in 0..10_u8 {
        one.tcp.send(2, SMALL, vec![i].into()).unwrap();
    }
    for i in 0..10_u8 {
        assert_eq!(*two.got.recv().await.unwrap().1, [i]);
    }
}

#[tokio::test]
async fn a_restarted_peer_is_found_again_also_elsewhere() {
    let peers = Peers::new();
    let one = node(1, &peers).await;
    let mut events = one.tcp.events();
    let mut address = "127.0.0.1:0".to_owned();
    for is_elsewhere in [false, true, false] {
        let mut two = node_at(2, &address, &peers, config()).await;
        one.tcp.connect(2).unwrap();
        until(&mut events, "the connection", |event| *event == UP).await;
        one.tcp.send(2, SMALL, "hello".into()).unwrap();
        assert_eq!(soon("the message", two.got.recv()).await.unwrap().1, "hello");
        address =
            if is_elsewhere { "127.0.0.1:0".to_owned() } else { two.tcp.address().to_string() };
        two.tcp.shutdown(later()).await;
        until(&mut events, "the end", is_down).await;
    }
    peers.remove(2);
    soon("the peer to be forgotten", async {
        while one.tcp.send(2, SMALL, "x".into()) != Err(SendError::UnknownPeer) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_peer_that_comes_in_ends_the_pause() {
    let peers = Peers::new();
    let mut patient = config();
    (patient.min_backoff, patient.max_backoff) =
        (Duration::from_millis(1), Duration::from_secs(60));
    let one = node_at(1, "127.0.0.1:0", &peers, patient).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    peers.insert(2, address);
    one.tcp.connect(2).unwrap();
    let mut events = one.tcp.events();
    // Long enough for the pauses to have grown to seconds.
    soon("failed attempts", async {
        while one.tcp.stats().dial_failed < 24 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let two = node_at(2, &address.to_string(), &peers, config()).await;
    two.tcp.connect(1).unwrap();
    let began = Instant::now();
    until(&mut events, "the connection", |event| *event == UP).await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test]
async fn short_messages_do_not_wait_behind_long_ones() {
    let peers = Peers::new();
    let one = node(1, &peers).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    peers.insert(2, listener.local_addr().unwrap());
    one.tcp.connect(2).unwrap();
    let (first, second) = (accept(&listener).await, accept(&listener).await);
    let (mut small, bulk) = if first.1 == 0 { (first.0, second.0) } else { (second.0, first.0) };
    let mut events = one.tcp.events();
    let bulk_up = Event::Up { peer: 2, class: Class::Bulk };
    until(&mut events, "the connection", |event| *event == bulk_up).await;
    fill(&one.tcp, 2, BULK, 1 << 20).await;
    let tcp = one.tcp.clone();
    let call = tokio::spawn(async move { tcp.call(2, SMALL, "x".into(), later()).await });
    let (_, id, _) = small.read(2).await;
    small.write(&frame(3, 0, 0, id, 0, b"through")).await;
    assert_eq!(soon("the answer", call).await.unwrap().unwrap(), "through");
    drop(bulk);
}

#[tokio::test]
async fn a_request_that_never_left_is_told_from_one_that_did() {
    let peers = Peers::new();
    let one = node(1, &peers).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    peers.insert(2, listener.local_addr().unwrap());
    let soon_over = || Instant::now() + Duration::from_millis(100);
    // It left: the peer has read it, and does not answer.
    let tcp = one.tcp.clone();
    let call = tokio::spawn(async move { tcp.call(2, SMALL, "left".into(), soon_over()).await });
    let (mut raw, _) = accept(&listener).await;
    let (_, id, body) = raw.read(2).await;
    assert_eq!(body, b"left");
    let error = soon("the deadline", call).await.unwrap().unwrap_err();
    assert_eq!((error.outcome(), error), (Outcome::Unknown, Lost::Deadline.into()));
    assert_eq!(raw.read(5).await, (0, id, vec![]), "the peer is told to give it up");
    // It waits behind what the peer does not read; and is taken out of the queue.
    fill(&one.tcp, 2, SMALL, 1 << 20).await;
    let error = one.tcp.call(2, SMALL, "waits".into(), soon_over()).await.unwrap_err();
    assert_eq!((error.outcome(), error), (Outcome::NotApplied, SendError::Expired.into()));
    let tcp = one.tcp.clone();
    let call = tokio::spawn(async move { tcp.call(2, SMALL, "waits".into(), later()).await });
    soon("the call to be queued", async {
        while one.tcp.queues().iter().all(|queue| queue.calls == 0) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop(raw);
    let error = soon("the end", call).await.unwrap().unwrap_err();
    assert_eq!((error.outcome(), error), (Outcome::NotApplied, SendError::Down.into()));
}

#[tokio::test]
async fn the_lower_limit_of_both_sides_holds() {
    let peers = Peers::new();
    let one = node(1, &peers).await;
    let mut modest = config();
    modest.small.max_message_bytes = 2000;
    let mut two = node_at(2, "127.0.0.1:0", &peers, modest).await;
    let mut events = one.tcp.events();
    // Queued before the limit of the peer is known: dropped, and the rest arrives.
    one.tcp.send(2, SMALL, vec![0; 3000].into()).unwrap();
    let tcp = one.tcp.clone();
    let call = async move { tcp.call(2, SMALL, vec![0; 3000].into(), later()).await };
    let too_large = SendError::TooLarge { bytes: 3000, max_bytes: 2000 };
    assert_eq!(call.await.unwrap_err(), too_large.into());
    one.tcp.send(2, SMALL, "short".into()).unwrap();
    assert_eq!(two.got.recv().await.unwrap().1, "short");
    until(&mut events, "the connection", |event| *event == UP).await;
    assert_eq!(one.tcp.send(2, SMALL, vec![0; 2001].into()), Err(too_large_of(2001)));
    one.tcp.send(2, SMALL, vec![0; 2000].into()).unwrap();
    assert_eq!(two.got.recv().await.unwrap().1.len(), 2000);
    // An answer that the caller would not take is rejected where it is made.
    two.tcp.send(1, SMALL, "x".into()).unwrap();
    let error = two.tcp.call(1, SMALL, vec![1; 2001].into(), later()).await.unwrap_err();
    assert_eq!(error, too_large_of(2001).into());
}

fn too_large_of(bytes: usize) -> SendError {
    SendError::TooLarge { bytes, max_bytes: 2000 }
}

#[tokio::test]
async fn a_shutdown_writes_and_answers_what_was_taken() {
    let peers = Peers::new();
    let one = node(1, &peers).await;
    let mut two = node(2, &peers).await;
    let count = 5000_u32;
    for i in 0..count {
        one.tcp.send(2, SMALL, i.to_le_bytes().to_vec().into()).unwrap();
    }
    let tcp = one.tcp.clone();
    let call = tokio::spawn(async move { tcp.call(2, BULK, "echo".into(), later()).await });
    tokio::task::yield_now().await;
    assert!(one.tcp.shutdown(later()).await, "nothing was cut off");
    assert_eq!(call.await.unwrap().unwrap(), "echo");
    for i in 0..count {
        assert_eq!(*soon("the message", two.got.recv()).await.unwrap().1, i.to_le_bytes());
    }
    assert_eq!(one.tcp.send(2, SMALL, "x".into()), Err(SendError::Closed));
    assert_eq!(one.tcp.connect(3), Err(SendError::UnknownPeer));
    let called = one.tcp.call(2, SMALL, "x".into(), later()).await;
    assert_eq!(called.unwrap_err(), SendError::Closed.into());
    let (sender, _) = tokio::sync::mpsc::unbounded_channel();
    assert_eq!(one.tcp.serve(9, Arc::new(Echo(sender))), Err(ServeError::Closed));
    assert!(one.tcp.shutdown(later()).await, "a second time does no harm");
}

/// The connections of `one` to peer 2, made of bare bytes, which reads nothing: small and bulk.
async fn stalled_peer(one: &Node, peers: &Peers) -> [Raw; 2] {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    peers.insert(2, listener.local_addr().unwrap());
    let mut events = one.tcp.events();
    one.tcp.connect(2).unwrap();
    let (first, second) = (accept(&listener).await, accept(&listener).await);
    until(&mut events, "the connection", |event| *event == UP).await;
    if first.1 == 0 { [first.0, second.0] } else { [second.0, first.0] }
}

/// A node that pings once at the start of each connection, and bears silence.
async fn patient_node(peers: &Peers) -> Node {
    let mut config = config();
    (config.keep_alive, config.dead_after) = (Duration::from_secs(600), Duration::from_secs(3600));
    (config.small.max_message_bytes, config.small.max_queue_bytes) = (1 << 16, 1 << 20);
    config.max_calls_out = usize::MAX;
    node_at(1, "127.0.0.1:0", peers, config).await
}

#[tokio::test]
async fn of_what_a_stalled_peer_took_no_byte_the_outcome_is_known() {
    const FRAME_BYTES: u64 = 24 + 1000;
    for is_by_deadline in [false, true] {
        let peers = Peers::new();
        let one = patient_node(&peers).await;
        let raw = stalled_peer(&one, &peers).await;
        let deadline =
            if is_by_deadline { Instant::now() + Duration::from_secs(2) } else { later() };
        let mut calls = Vec::new();
        let mut full_since = Instant::now();
        while full_since.elapsed() < Duration::from_millis(100) {
            let mut call = by_hand(one.tcp.call(2, SMALL, vec![1; 1000].into(), deadline));
            if call.poll_once() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            } else {
                calls.push(call);
                full_since = Instant::now();
            }
        }
        let mut raw = Some(raw);
        if !is_by_deadline {
            raw = None;
        }
        let mut unknown = 0;
        let mut not_sent = 0;
        for call in calls {
            match soon("the end of a call", call.0).await.unwrap_err() {
                CallError::Unknown(Lost::Deadline | Lost::Disconnected) => {
                    assert_eq!(not_sent, 0, "it left after one that did not");
                    unknown += 1;
                }
                CallError::NotSent(SendError::Expired | SendError::Down) => not_sent += 1,
                other => panic!("{other}"),
            }
        }
        let stats = one.tcp.stats();
        // Beside the requests two pings have left.
        let begun = stats.bytes_out.div_ceil(FRAME_BYTES);
        assert!((begun - 1..=begun).contains(&unknown), "{unknown} unknown, {begun} begun");
        assert!(not_sent > 900, "{not_sent} were in the queue or in the batch");
        if is_by_deadline {
            assert_eq!(stats.dropped, 0, "the calls were withdrawn");
            let mut events = one.tcp.events();
            drop(raw.take());
            until(&mut events, "the end", is_down).await;
            assert!(one.tcp.stats().dropped <= 1, "and are not dropped once more");
        } else {
            let dropped = not_sent..=not_sent + 1;
            assert!(dropped.contains(&stats.dropped), "{} dropped, {not_sent}", stats.dropped);
        }
    }
}

#[tokio::test]
async fn a_shutdown_tells_of_messages_that_a_silent_peer_did_not_take() {
    let peers = Peers::new();
    let mut config = config();
    (config.keep_alive, config.dead_after) = (Duration::from_millis(100), Duration::from_secs(1));
    let one = node_at(1, "127.0.0.1:0", &peers, config).await;
    let _stalled = stalled_peer(&one, &peers).await;
    // All that the kernel does not take is in one batch then.
    let waits = || one.tcp.queues().iter().any(|queue| queue.bytes > 0);
    while !waits() {
        one.tcp.send(2, SMALL, vec![1; 1000].into()).unwrap();
        tokio::task::yield_now().await;
    }
    for _ in 0..10 {
        one.tcp.send(2, SMALL, vec![1; 1000].into()).unwrap();
    }
    tokio::task::yield_now().await;
    assert!(!one.tcp.shutdown(later()).await, "messages were lost");
    assert!(one.tcp.stats().dropped >= 10);
}

#[tokio::test]
async fn a_shutdown_tells_of_messages_of_which_a_part_was_written() {
    let peers = Peers::new();
    let mut config = config();
    (config.keep_alive, config.dead_after) = (Duration::from_millis(100), Duration::from_secs(1));
    config.bulk.max_message_bytes = 64 << 20;
    let one = node_at(1, "127.0.0.1:0", &peers, config).await;
    let _stalled = stalled_peer(&one, &peers).await;
    one.tcp.send(2, BULK, vec![1; 64 << 20].into()).unwrap();
    while one.tcp.stats().bytes_out < 1000 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(!one.tcp.shutdown(later()).await, "most of the message was lost");
    assert_eq!(one.tcp.stats().dropped, 1);
}

#[tokio::test]
async fn a_service_that_may_yet_be_served_is_worth_another_call() {
    let peers = Peers::new();
    let one = node(1, &peers).await;
    let _two = node(2, &peers).await;
    let channel = voussoir_net::Channel::small(SERVICE + 1);
    let error = one.tcp.call(2, channel, "x".into(), later()).await.unwrap_err();
    assert_eq!(error, CallError::Rejected(voussoir_net::Rejected::UnknownService));
    assert!(error.is_retryable() && error.outcome() == Outcome::NotApplied);
}

#[tokio::test]
async fn each_side_pings_for_the_silence_that_the_other_bears() {
    let peers = Peers::new();
    let mut slow = config();
    (slow.keep_alive, slow.dead_after) = (Duration::from_secs(3), Duration::from_secs(10));
    let mut quick = config();
    (quick.keep_alive, quick.dead_after) = (Duration::from_millis(150), Duration::from_millis(600));
    let one = node_at(1, "127.0.0.1:0", &peers, slow).await;
    let two = node_at(2, "127.0.0.1:0", &peers, quick).await;
    let mut events = [one.tcp.events(), two.tcp.events()];
    one.tcp.connect(2).unwrap();
    two.tcp.connect(1).unwrap();
    for (events, peer) in events.iter_mut().zip([2, 1]) {
        for _ in Class::ALL {
            until(
                events,
                "a connection",
                |event| matches!(event, Event::Up { peer: up, .. } if *up == peer),
            )
            .await;
        }
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    for events in &mut events {
        let next = tokio::time::timeout(Duration::ZERO, events.next()).await;
        assert!(next.is_err(), "{next:?}");
    }
    assert_eq!((one.tcp.stats().violations, two.tcp.stats().violations), (0, 0));
    for (from, to) in [(&one, &two), (&two, &one)] {
        let answer = from.tcp.call(to.tcp.local(), SMALL, "x".into(), later()).await;
        assert_eq!(answer.unwrap(), "x");
    }
}

#[tokio::test]
async fn a_prepared_node_takes_no_call_before_its_services_are_there() {
    let peers = Peers::new();
    let one = node(1, &peers).await;
    let any = "127.0.0.1:0".parse().unwrap();
    let two = Tcp::prepare(2, any, Arc::new(peers.clone()), config()).await.unwrap();
    peers.insert(2, two.address());
    assert_eq!(two.call(1, SMALL, "x".into(), later()).await.unwrap(), "x", "it calls at once");
    let tcp = one.tcp.clone();
    let mut call = tokio::spawn(async move { tcp.call(2, SMALL, "y".into(), later()).await });
    let early = tokio::time::timeout(Duration::from_millis(200), &mut call).await;
    assert!(early.is_err(), "{early:?}");
    let (sender, _got) = tokio::sync::mpsc::unbounded_channel();
    two.serve(SERVICE, Arc::new(Echo(sender))).unwrap();
    two.open();
    two.open();
    assert_eq!(soon("the answer", call).await.unwrap().unwrap(), "y");

    let never = Tcp::prepare(3, any, Arc::new(peers.clone()), config()).await.unwrap();
    assert!(never.shutdown(later()).await, "there was nothing to cut off");
    TcpListener::bind(never.address()).await.expect("the address is free");
    never.open();
}

async fn under_way(node: &Node) {
    soon("the call to be under way", async {
        while node.tcp.stats().frames_in == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_shutdown_ends_at_its_deadline() {
    let peers = Peers::new();
    let one = node(1, &peers).await;
    let two = node(2, &peers).await;
    let mut events = one.tcp.events();
    let tcp = one.tcp.clone();
    let call = tokio::spawn(async move { tcp.call(2, SMALL, "never".into(), later()).await });
    until(&mut events, "the connection", |event| *event == UP).await;
    under_way(&two).await;
    let began = Instant::now();
    let is_whole = two.tcp.shutdown(began + Duration::from_millis(100)).await;
    assert!(!is_whole, "a call was cut off");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let error = soon("the end of the call", call).await.unwrap().unwrap_err();
    assert_eq!(error, CallError::Unknown(Lost::Disconnected));
    let goodbye = Event::Down { peer: 2, class: Class::Small, reason: DownReason::Goodbye };
    until(&mut events, "the goodbye", |event| *event == goodbye).await;

    let tcp = one.tcp.clone();
    let three = node(3, &peers).await;
    let call = tokio::spawn(async move { tcp.call(3, SMALL, "never".into(), later()).await });
    under_way(&three).await;
    assert!(!one.tcp.shutdown(Instant::now()).await, "a call was cut off");
    let error = soon("the end of the call", call).await.unwrap().unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown);
}

#[tokio::test]
async fn the_last_handle_ends_everything() {
    let peers = Peers::new();
    let one = node(1, &peers).await;
    let two = node(2, &peers).await;
    let mut events = one.tcp.events();
    one.tcp.connect(2).unwrap();
    until(&mut events, "the connection", |event| *event == UP).await;
    let address = two.tcp.address();
    drop(two);
    until(&mut events, "the end", is_down).await;
    soon("the address to be free", async {
        while TcpListener::bind(address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_call_may_be_dropped_at_every_poll() {
    let peers = Peers::new();
    let one = node(1, &peers).await;
    let _two = node(2, &peers).await;
    for polls in 0..20 {
        let mut call = by_hand(one.tcp.call(2, SMALL, "echo".into(), later()));
        for _ in 0..polls {
            if call.poll_once() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(call);
    }
    let answer = one.tcp.call(2, SMALL, "echo".into(), later()).await;
    assert_eq!(answer.unwrap(), "echo");
    assert!(one.tcp.queues().iter().all(|queue| queue.calls == 0), "no call is left behind");
}

/// A future that is polled by hand.
struct Polled<F>(std::pin::Pin<Box<F>>);

fn by_hand<F: Future>(future: F) -> Polled<F> {
    Polled(Box::pin(future))
}

impl<F: Future> Polled<F> {
    fn poll_once(&mut self) -> bool {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        self.0.as_mut().poll(&mut cx).is_ready()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_senders_and_callers_at_once() {
    let peers = Peers::new();
    let one = node(1, &peers).await;
    let mut two = node(2, &peers).await;
    let senders: u32 = 8;
    let count = 2000_u32;
    let tasks: Vec<_> = (0..senders)
        .map(|sender| {
            let tcp = one.tcp.clone();
            tokio::spawn(async move {
                for i in 0..count {
                    let body = [sender.to_le_bytes(), i.to_le_bytes()].concat();
                    while tcp.send(2, SMALL, body.clone().into()) == Err(SendError::Full) {
                        tokio::task::yield_now().await;
                    }
                    if i % 50 == 0 {
                        let answer = tcp.call(2, SMALL, body.clone().into(), later()).await;
                        assert_eq!(answer.unwrap(), body, "each gets its own answer");
                    }
                }
            })
        })
        .collect();
    let mut next = vec![0_u32; senders as usize];
    for _ in 0..senders * count {
        let (_, body) = soon("a message", two.got.recv()).await.unwrap();
        let sender = u32::from_le_bytes(body[..4].try_into().unwrap()) as usize;
        assert_eq!(body[4..], next[sender].to_le_bytes(), "in order for each sender");
        next[sender] += 1;
    }
    for task in tasks {
        soon("the sender", task).await.unwrap();
    }
    let stats = one.tcp.stats();
    assert!(stats.writes < stats.frames_out, "messages are gathered: {stats:?}");
}

#[tokio::test]
async fn what_does_not_start_says_why() {
    let peers = Peers::new();
    let one = node(1, &peers).await;
    let bind = |address, config: Config| Tcp::bind(2, address, Arc::new(Peers::new()), config);
    let taken = bind(one.tcp.address(), config()).await;
    assert!(
        matches!(taken, Err(BindError::Listen { address, .. }) if address == one.tcp.address())
    );
    let mut wrong = config();
    wrong.dead_after = wrong.keep_alive;
    let error = bind("127.0.0.1:0".parse().unwrap(), wrong).await.unwrap_err();
    assert_eq!(error.to_string(), "config: `dead_after` must be at least twice keep_alive");
    let mut wrong = config();
    wrong.bulk.max_message_bytes = usize::MAX;
    assert!(wrong.validate().is_err());
}

#[tokio::test]
async fn messages_share_the_buffer_they_were_read_into() {
    let peers = Peers::new();
    let one = node(1, &peers).await;
    let mut two = node(2, &peers).await;
    let whole = Bytes::from(vec![9; 1 << 20]);
    one.tcp.send(2, BULK, whole.clone().into()).unwrap();
    let (from, body) = two.got.recv().await.unwrap();
    assert_eq!((from, body), (1, whole));
}
