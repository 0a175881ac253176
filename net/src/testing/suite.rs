//! The checks.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::Factory;
use super::support::{PATIENCE, Probe, Reports, Seen, soon, until};
use crate::{
    CallError, Channel, Class, Event, Lost, Outcome, Parts, Rejected, SendError, ServeError,
    Transport,
};

const SERVICE: u16 = 7;
const SMALL: Channel = Channel::small(SERVICE);
const BULK: Channel = Channel::bulk(SERVICE);

struct Pair {
    one: Arc<dyn Transport>,
    two: Arc<dyn Transport>,
    probe: Arc<Probe>,
    reports: Reports,
}

/// Nodes 1 and 2, of which 2 serves.
async fn pair(factory: &dyn Factory) -> Pair {
    let mut nodes = factory.start(&[1, 2]).await.into_iter();
    let (one, two) = (nodes.next().expect("node 1"), nodes.next().expect("node 2"));
    let (probe, reports) = Probe::new();
    two.serve(SERVICE, probe.clone()).expect("a free service");
    Pair { one, two, probe, reports }
}

/// A deadline that no check is meant to reach.
fn distant_deadline() -> Instant {
    Instant::now() + PATIENCE
}

/// Sends, again while the queue is full: a transport may reject a message, but must not lose one.
async fn push(transport: &dyn Transport, peer: u64, channel: Channel, parts: Parts) {
    soon("room in the queue", async {
        loop {
            match transport.send(peer, channel, parts.clone()) {
                Ok(()) => return,
                Err(SendError::Full) => tokio::time::sleep(Duration::from_millis(1)).await,
                Err(error) => panic!("a message was rejected: {error}"),
            }
        }
    })
    .await;
}

pub(super) async fn run(factory: &dyn Factory) {
    identity(factory).await;
    order(factory).await;
    pieces(factory).await;
    sizes(factory).await;
    calls(factory).await;
    many_calls(factory).await;
    rejections(factory).await;
    panics(factory).await;
    deadlines(factory).await;
    dropped_calls(factory).await;
    limits_of_calls(factory).await;
    services(factory).await;
    both_ways(factory).await;
    death(factory).await;
    revival_of_events(factory).await;
}

async fn identity(factory: &dyn Factory) {
    let pair = pair(factory).await;
    assert_eq!((pair.one.local(), pair.two.local()), (1, 2), "`local` is the id asked for");
    for (peer, error) in [(1, SendError::ToSelf), (99, SendError::UnknownPeer)] {
        let sent = pair.one.send(peer, SMALL, "x".into());
        assert_eq!(sent, Err(error), "peer {peer} is no peer of node 1");
        let called = pair.one.call(peer, SMALL, "x".into(), distant_deadline()).await;
        assert_eq!(called, Err(CallError::NotSent(error)));
        assert!(!error.is_retryable());
    }
}

async fn order(factory: &dyn Factory) {
    let mut pair = pair(factory).await;
    let count = 2000_u32;
    for i in 0..count {
        for channel in [SMALL, BULK] {
            push(&*pair.one, 2, channel, Parts::new(i.to_le_bytes().to_vec())).await;
        }
    }
    let mut next = [0_u32; 2];
    for _ in 0..2 * count {
        let Seen { from, class, body } = pair.reports.next().await;
        let index = usize::from(class == Class::Bulk);
        assert_eq!(from, 1, "the sender is told");
        assert_eq!(*body, next[index].to_le_bytes(), "in order, none twice, none missing");
        next[index] += 1;
    }
    assert_eq!(next, [count; 2], "each class carries its own");
}

async fn pieces(factory: &dyn Factory) {
    let mut pair = pair(factory).await;
    let long = Bytes::from(vec![3; 5000]);
    let shapes = [
        Parts::default(),
        Parts::new("head"),
        Parts::new("").with([Bytes::new(), "b".into()]),
        Parts::new("h").with([long.clone(), "x".into(), long.clone(), Bytes::new()]),
        Parts::new("h").with((0..200).map(|i| Bytes::from(vec![i; i as usize * 10]))),
    ];
    for parts in shapes {
        let whole = parts.to_bytes();
        push(&*pair.one, 2, SMALL, parts).await;
        assert_eq!(pair.reports.next().await.body, whole, "the pieces arrive as one");
    }
}

async fn sizes(factory: &dyn Factory) {
    let mut pair = pair(factory).await;
    for (channel, bytes) in [(SMALL, 64 << 10), (BULK, 1 << 20)] {
        let body: Bytes = (0..bytes).map(|i: u32| (i ^ (i >> 8)) as u8).collect();
        push(&*pair.one, 2, channel, body.clone().into()).await;
        assert_eq!(pair.reports.next().await.body, body, "{bytes} bytes arrive whole");
    }
    let huge = Bytes::from(vec![0; 65 << 20]);
    for channel in [SMALL, BULK] {
        match pair.one.send(2, channel, huge.clone().into()) {
            Err(SendError::TooLarge { bytes, max_bytes }) => {
                assert!(bytes == huge.len() && max_bytes < bytes, "the error says why");
            }
            other => panic!("65 MiB: {other:?}"),
        }
        let called = pair.one.call(2, channel, huge.clone().into(), distant_deadline()).await;
        assert!(matches!(called, Err(CallError::NotSent(SendError::TooLarge { .. }))));
    }
    push(&*pair.one, 2, SMALL, "after".into()).await;
    assert_eq!(pair.reports.next().await.body, "after", "a rejected message harms none");
}

async fn calls(factory: &dyn Factory) {
    let pair = pair(factory).await;
    for channel in [SMALL, BULK] {
        let request = Parts::new("echo ").with(["a".into(), "b".into()]);
        let answer = pair.one.call(2, channel, request, distant_deadline()).await;
        assert_eq!(answer.as_deref(), Ok(&b"echo ab"[..]), "the answer of the handler");
        let answer = pair.one.call(2, channel, "nothing".into(), distant_deadline()).await;
        assert_eq!(answer.as_deref(), Ok(&b""[..]), "an empty answer is one");
    }
    let answer = pair.one.call(2, BULK, "large 1048576".into(), distant_deadline()).await;
    assert_eq!(answer.map(|bytes| bytes.len()), Ok(1 << 20), "a long answer arrives whole");
    // The handler has run, and a retry would bring no other end.
    let too_long =
        pair.one.call(2, BULK, "large 68157440".into(), distant_deadline()).await.unwrap_err();
    assert_eq!(too_long, CallError::Unknown(Lost::AnswerTooLong), "no answer of 65 MiB arrives");
    assert!(too_long.outcome() == Outcome::Unknown && !too_long.is_retryable());
    let after = pair.one.call(2, BULK, "echo after".into(), distant_deadline()).await;
    assert_eq!(after.as_deref(), Ok(&b"echo after"[..]), "an answer too long harms no other call");
}

async fn many_calls(factory: &dyn Factory) {
    let pair = pair(factory).await;
    let tasks: Vec<_> = (0..200)
        .map(|i| {
            let one = Arc::clone(&pair.one);
            tokio::spawn(async move {
                let request = format!("echo {i}");
                let answer = one
                    .call(2, SMALL, request.clone().into_bytes().into(), distant_deadline())
                    .await;
                assert_eq!(answer.as_deref(), Ok(request.as_bytes()), "each gets its own answer");
            })
        })
        .collect();
    for task in tasks {
        soon("an answer", task).await.expect("no call fails");
    }
}

async fn rejections(factory: &dyn Factory) {
    let pair = pair(factory).await;
    let cases = [
        ("reject why", SMALL, Rejected::ByHandler("why".into())),
        ("busy", SMALL, Rejected::Busy),
        ("x", Channel::small(999), Rejected::UnknownService),
    ];
    for (request, channel, rejected) in cases {
        let error =
            pair.one.call(2, channel, request.into(), distant_deadline()).await.unwrap_err();
        assert_eq!(error, CallError::Rejected(rejected), "the rejection of the peer is told");
        assert_eq!(error.outcome(), Outcome::NotApplied);
    }
}

async fn panics(factory: &dyn Factory) {
    let mut pair = pair(factory).await;
    push(&*pair.one, 2, SMALL, "panic".into()).await;
    let error = pair.one.call(2, SMALL, "panic".into(), distant_deadline()).await.unwrap_err();
    assert_eq!(error, CallError::Unknown(Lost::HandlerFailed), "a panic is told as such");
    assert_eq!(error.outcome(), Outcome::Unknown);
    push(&*pair.one, 2, SMALL, "after".into()).await;
    assert_eq!(pair.reports.next().await.body, "after", "a panicking handler harms no other call");
}

async fn deadlines(factory: &dyn Factory) {
    let mut pair = pair(factory).await;
    let past = Instant::now();
    let error = pair.one.call(2, SMALL, "wait".into(), past).await.unwrap_err();
    assert_eq!(error, CallError::NotSent(SendError::Expired), "what is late is not sent");
    let deadline = Instant::now() + Duration::from_millis(100);
    let error = pair.one.call(2, SMALL, "wait".into(), deadline).await.unwrap_err();
    assert_eq!(error, CallError::Unknown(Lost::Deadline));
    assert!(Instant::now() >= deadline, "a deadline is waited for");
    soon("the drop of the handler's future", pair.reports.drops.recv()).await;
    assert_eq!(pair.probe.dropped(), 1, "the handler is dropped at the deadline, once");
}

async fn dropped_calls(factory: &dyn Factory) {
    let mut pair = pair(factory).await;
    let one = Arc::clone(&pair.one);
    let call =
        tokio::spawn(async move { one.call(2, SMALL, "wait".into(), distant_deadline()).await });
    soon("the start of the call", pair.reports.started.recv()).await;
    call.abort();
    soon("the drop of the handler's future", pair.reports.drops.recv()).await;
    let answer = pair.one.call(2, SMALL, "echo".into(), distant_deadline()).await;
    assert_eq!(answer.as_deref(), Ok(&b"echo"[..]), "a dropped call harms no other");
}

async fn limits_of_calls(factory: &dyn Factory) {
    let mut pair = pair(factory).await;
    let count = 5000;
    let (results, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    for _ in 0..count {
        let (one, results) = (Arc::clone(&pair.one), results.clone());
        tokio::spawn(async move {
            let _ = results.send(one.call(2, SMALL, "wait".into(), distant_deadline()).await);
        });
    }
    let first = soon("a rejected call", receiver.recv()).await.expect("a result");
    let is_limit = |error: &CallError| {
        matches!(error, CallError::NotSent(SendError::Full) | CallError::Rejected(Rejected::Busy))
    };
    assert!(first.as_ref().is_err_and(is_limit), "calls under way are bounded: {first:?}");
    soon("a call that began", pair.reports.started.recv()).await;
    pair.probe.release(count);
    for _ in 1..count {
        let result = soon("the other calls", receiver.recv()).await.expect("a result");
        match result {
            Ok(answer) => assert_eq!(answer, "waited"),
            Err(error) => assert!(is_limit(&error), "nothing else ends a call: {error}"),
        }
    }
}

async fn services(factory: &dyn Factory) {
    let mut pair = pair(factory).await;
    let (other, mut reports) = Probe::new();
    let again = pair.two.serve(SERVICE, other.clone());
    assert_eq!(again, Err(ServeError::AlreadyServed { service: SERVICE }));
    pair.two.serve(8, other.clone()).expect("a free service");
    let mut events = pair.two.events();
    push(&*pair.one, 2, Channel::small(8), "eight".into()).await;
    push(&*pair.one, 2, SMALL, "seven".into()).await;
    push(&*pair.one, 2, Channel::small(999), "none".into()).await;
    assert_eq!(reports.next().await.body, "eight", "each service has its own handler");
    assert_eq!(pair.reports.next().await.body, "seven", "each service has its own handler");
    let fits = |event: &Event| matches!(event, Event::UnknownService { peer: 1, service: 999 });
    until(&mut events, "the event of an unknown service", fits).await;
    assert!(pair.two.withdraw(8), "it was served");
    assert!(!pair.two.withdraw(8), "it is not any more");
    let error =
        pair.one.call(2, Channel::small(8), "echo".into(), distant_deadline()).await.unwrap_err();
    assert_eq!(error, CallError::Rejected(Rejected::UnknownService));
    pair.two.serve(8, other).expect("a service can be served again");
    let answer = pair.one.call(2, Channel::small(8), "echo".into(), distant_deadline()).await;
    assert_eq!(answer.as_deref(), Ok(&b"echo"[..]));
}

async fn both_ways(factory: &dyn Factory) {
    let mut pair = pair(factory).await;
    let (probe, mut reports) = Probe::new();
    pair.one.serve(SERVICE, probe).expect("a free service");
    for i in 0..100_u8 {
        push(&*pair.one, 2, SMALL, vec![i].into()).await;
        push(&*pair.two, 1, SMALL, vec![i].into()).await;
    }
    for i in 0..100_u8 {
        assert_eq!(*pair.reports.next().await.body, [i]);
        assert_eq!(*reports.next().await.body, [i]);
    }
}

async fn death(factory: &dyn Factory) {
    let mut pair = pair(factory).await;
    let mut events = pair.one.events();
    let one = Arc::clone(&pair.one);
    let call =
        tokio::spawn(async move { one.call(2, SMALL, "wait".into(), distant_deadline()).await });
    soon("the start of the call", pair.reports.started.recv()).await;
    let up = Event::Up { peer: 2, class: Class::Small };
    until(&mut events, "the event of the connection", |event| *event == up).await;
    factory.kill(pair.two).await;
    let error = soon("the end of the call", call).await.expect("no panic").unwrap_err();
    assert_eq!(error, CallError::Unknown(Lost::Disconnected), "what has left may have been done");
    let is_down = |event: &Event| matches!(event, Event::Down { peer: 2, class: Class::Small, .. });
    until(&mut events, "the event of the end", is_down).await;
    assert_eq!(pair.one.send(2, SMALL, "x".into()), Err(SendError::Down));
    let called = pair.one.call(2, SMALL, "x".into(), distant_deadline()).await;
    assert_eq!(called, Err(CallError::NotSent(SendError::Down)));
    soon("the drop of the handler's future", pair.reports.drops.recv()).await;
}

async fn revival_of_events(factory: &dyn Factory) {
    let pair = pair(factory).await;
    let answer = pair.one.call(2, SMALL, "echo".into(), distant_deadline()).await;
    assert!(answer.is_ok(), "a connection stands");
    let up = Event::Up { peer: 2, class: Class::Small };
    let mut events = pair.one.events();
    until(&mut events, "a late reader to hear what stands", |event| *event == up).await;
}
