//! Peers that move: a new instance at another address, while callers go on calling.

mod support;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use support::*;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use voussoir_net::{
    CallError, Channel, Class, DownReason, Event, Handler, Lost, Outcome, Parts, Peers, Rejected,
    SendError, Tcp, Transport, Violation,
};
use voussoir_sim::Situations;

/// How often the peer moves, or is killed.
fn moves() -> usize {
    std::env::var("VOUSSOIR_MOVES").map_or(15, |moves| moves.parse().expect("a number"))
}

/// What callers and movers met.
static MET: [&str; 6] = [
    "answered at once",
    "answered later",
    "answered by an instance that had begun to leave",
    "rejected as busy",
    "not sent",
    "reached by IPv6",
];

/// What all instances of the peer share: how often each attempt was carried out.
struct Ledger {
    carried_out: Mutex<HashMap<u64, u32>>,
    situations: Situations,
}

/// One instance of the peer that moves.
struct Instance {
    ledger: Arc<Ledger>,
    is_leaving: AtomicBool,
    is_ipv6: bool,
}

#[async_trait]
impl Handler for Instance {
    fn message(&self, _from: u64, _class: Class, _body: Bytes) {}

    async fn call(&self, _from: u64, body: Bytes) -> Result<Parts, Rejected> {
        let attempt = u64::from_le_bytes(body[..].try_into().unwrap());
        *self.ledger.carried_out.lock().unwrap().entry(attempt).or_default() += 1;
        let met = &self.ledger.situations;
        if attempt.is_multiple_of(3) {
            tokio::time::sleep(Duration::from_millis(1 + attempt % 4)).await;
            met.reached("answered later");
        } else {
            met.reached("answered at once");
        }
        met.add("reached by IPv6", u64::from(self.is_ipv6));
        let is_leaving = self.is_leaving.load(Ordering::Relaxed);
        met.add("answered by an instance that had begun to leave", u64::from(is_leaving));
        Ok(Parts::new(body))
    }
}

impl Ledger {
    fn new(situations: &'static [&'static str]) -> Arc<Self> {
        let situations = Situations::new(situations);
        Arc::new(Self { carried_out: Mutex::default(), situations })
    }

    fn attempts(&self) -> usize {
        self.carried_out.lock().unwrap().len()
    }

    /// Returns when so many more attempts have been carried out.
    async fn goes_on(&self, more: usize) {
        let target = self.attempts() + more;
        soon("the calls to go on", async {
            while self.attempts() < target {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }

    /// Starts an instance on another address than the one before, and tells the peers.
    async fn start(self: &Arc<Self>, turn: usize, peers: &Peers) -> (Tcp, Arc<Instance>) {
        let (listen, reach) = [
            ("127.0.0.1:0", "127.0.0.1"),
            ("[::1]:0", "::1"),
            ("[::]:0", "127.0.0.1"),
            ("[::]:0", "::1"),
        ][turn % 4];
        let nobody = Arc::new(Peers::new());
        let tcp = Tcp::bind(2, listen.parse().unwrap(), nobody, config()).await.unwrap();
        let address = SocketAddr::new(reach.parse().unwrap(), tcp.address().port());
        let ledger = Arc::clone(self);
        let is_ipv6 = address.is_ipv6();
        let instance = Arc::new(Instance { ledger, is_leaving: AtomicBool::new(false), is_ipv6 });
        tcp.serve(SERVICE, Arc::clone(&instance) as Arc<dyn Handler>).unwrap();
        peers.insert(2, address);
        (tcp, instance)
    }
}

/// How the attempts of the callers ended.
#[derive(Default)]
struct Ended {
    answered: Vec<u64>,
    not_applied: Vec<u64>,
    unknown: Vec<u64>,
}

/// Calls until told to stop, each time with the id of a new attempt.
fn callers(tcp: &Tcp, ledger: &Arc<Ledger>, stop: &Arc<AtomicBool>) -> Vec<JoinHandle<Ended>> {
    let next = Arc::new(AtomicU64::new(0));
    let caller = |channel: Channel| {
        let (tcp, ledger) = (tcp.clone(), Arc::clone(ledger));
        let (stop, next) = (Arc::clone(stop), Arc::clone(&next));
        tokio::spawn(async move {
            let mut ended = Ended::default();
            while !stop.load(Ordering::Relaxed) {
                let attempt = next.fetch_add(1, Ordering::Relaxed);
                let body = Bytes::copy_from_slice(&attempt.to_le_bytes());
                match tcp.call(2, channel, body.clone().into(), later()).await {
                    Ok(answer) => {
                        assert_eq!(answer, body, "the answer of another call");
                        ended.answered.push(attempt);
                    }
                    Err(error) if error.outcome() == Outcome::Unknown => {
                        assert_eq!(error, CallError::Unknown(Lost::Disconnected));
                        ended.unknown.push(attempt);
                    }
                    Err(error) => {
                        assert!(error.is_retryable(), "{error}");
                        let is_busy = error == CallError::Rejected(Rejected::Busy);
                        let met = if is_busy { "rejected as busy" } else { "not sent" };
                        ledger.situations.reached(met);
                        ended.not_applied.push(attempt);
                        tokio::time::sleep(Duration::from_micros(500)).await;
                    }
                }
            }
            ended
        })
    };
    [SMALL, BULK, SMALL, BULK, SMALL, BULK, SMALL, BULK].map(caller).into()
}

/// Moves the peer while callers call it, by `end` of the instance before.
async fn move_under_load<F: Future<Output = ()>>(
    ledger: &Arc<Ledger>,
    end: impl Fn(Tcp, Arc<Instance>) -> F,
) -> Ended {
    let peers = Peers::new();
    let one = Tcp::bind(1, "127.0.0.1:0".parse().unwrap(), Arc::new(peers.clone()), config());
    let one = one.await.unwrap();
    let (mut tcp, mut instance) = ledger.start(0, &peers).await;
    let stop = Arc::new(AtomicBool::new(false));
    let callers = callers(&one, ledger, &stop);
    for turn in 1..=moves() {
        ledger.goes_on(200).await;
        let (next, next_instance) = ledger.start(turn, &peers).await;
        let before = std::mem::replace(&mut tcp, next);
        end(before, std::mem::replace(&mut instance, next_instance)).await;
    }
    ledger.goes_on(200).await;
    stop.store(true, Ordering::Relaxed);
    let mut all = Ended::default();
    for caller in callers {
        let ended = soon("a caller", caller).await.unwrap();
        all.answered.extend(ended.answered);
        all.not_applied.extend(ended.not_applied);
        all.unknown.extend(ended.unknown);
    }
    all
}

/// Answered means carried out once, not applied never, and unknown at most once.
fn check(ledger: &Ledger, ended: &Ended) {
    let carried_out = ledger.carried_out.lock().unwrap();
    let count = |attempt: &u64| carried_out.get(attempt).copied().unwrap_or(0);
    for attempt in &ended.answered {
        assert_eq!(count(attempt), 1, "attempt {attempt} was answered");
    }
    for attempt in &ended.not_applied {
        assert_eq!(count(attempt), 0, "attempt {attempt} was said not to be applied");
    }
    for attempt in &ended.unknown {
        assert!(count(attempt) <= 1, "attempt {attempt} was carried out twice");
    }
    assert!(ended.answered.len() > 200 * moves(), "{} answers", ended.answered.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_moves_under_load_loses_no_call() {
    let ledger = Ledger::new(&MET);
    let ended = move_under_load(&ledger, |before, instance| async move {
        instance.is_leaving.store(true, Ordering::Relaxed);
        assert!(before.shutdown(later()).await, "something was cut off");
    })
    .await;
    check(&ledger, &ended);
    assert_eq!(ended.unknown.len(), 0, "calls of unknown outcome: {:?}", ended.unknown);
    // Whether a call crosses a goodbye is up to the machine: the next test makes one cross it.
    let missed = ledger.situations.missed();
    assert!(missed.iter().all(|met| *met == "rejected as busy"), "never met: {missed:?}");
}

#[tokio::test]
async fn a_request_that_crosses_the_goodbye_is_rejected_as_busy() {
    let two = node(2, &Peers::new()).await;
    let mut raw = Raw::welcome(&two, &RawHello::to(&two)).await;
    let leaving = two.tcp.clone();
    let shutdown = tokio::spawn(async move { leaving.shutdown(later()).await });
    raw.read(GOODBYE).await;
    raw.write(&request(7, b"x")).await;
    assert_eq!(raw.read(4).await, (2, 7, Vec::new()), "busy: not applied, to be sent elsewhere");
    raw.write(&frame(GOODBYE, 0, 0, 0, 0, b"")).await;
    raw.closed().await;
    assert!(soon("the shutdown", shutdown).await.unwrap(), "nothing was cut off");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_killed_and_comes_back_elsewhere_tells_what_is_unknown() {
    let ledger = Ledger::new(&MET);
    let ended = move_under_load(&ledger, |before, _| async move { drop(before) }).await;
    check(&ledger, &ended);
    assert!(!ended.unknown.is_empty(), "no call was under way at any of the kills");
    for met in ["answered at once", "answered later", "not sent", "reached by IPv6"] {
        assert!(ledger.situations.count(met) > 0, "no call was {met}");
    }
}

/// Answers with the name of the instance, `held` only once it is released.
struct Named {
    name: &'static str,
    release: Arc<Notify>,
}

#[async_trait]
impl Handler for Named {
    fn message(&self, _from: u64, _class: Class, _body: Bytes) {}

    async fn call(&self, _from: u64, body: Bytes) -> Result<Parts, Rejected> {
        if &*body == b"held" {
            self.release.notified().await;
        }
        Ok(Parts::new(self.name))
    }
}

async fn named(name: &'static str, peers: &Peers) -> (Tcp, Arc<Notify>) {
    let nobody = Arc::new(Peers::new());
    let tcp = Tcp::bind(2, "127.0.0.1:0".parse().unwrap(), nobody, config()).await.unwrap();
    let release = Arc::new(Notify::new());
    tcp.serve(SERVICE, Arc::new(Named { name, release: Arc::clone(&release) })).unwrap();
    peers.insert(2, tcp.address());
    (tcp, release)
}

#[tokio::test]
async fn new_calls_do_not_wait_for_those_that_an_old_instance_has() {
    let peers = Peers::new();
    let one = node(1, &peers).await;
    let (old, release) = named("old", &peers).await;
    let tcp = one.tcp.clone();
    let held = tokio::spawn(async move { tcp.call(2, SMALL, "held".into(), later()).await });
    soon("the call to be under way", async {
        while old.stats().frames_in == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let (_new, _) = named("new", &peers).await;
    let leaving = old.clone();
    let shutdown = tokio::spawn(async move { leaving.shutdown(later()).await });
    let answer = soon("an answer of the new instance", async {
        // Ends when the new instance answers: the old one takes nothing any more.
        loop {
            match one.tcp.call(2, SMALL, "x".into(), later()).await {
                Ok(answer) if answer == "old" => {}
                Ok(answer) => return answer,
                Err(error) => assert_eq!(error.outcome(), Outcome::NotApplied, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    assert_eq!(answer, "new");
    assert!(!held.is_finished() && !shutdown.is_finished());
    let calls = |tcp: &Tcp| tcp.queues().iter().map(|queue| queue.calls).sum::<usize>();
    assert_eq!(calls(&one.tcp), 1, "the one that the old instance has");
    release.notify_one();
    assert_eq!(soon("the answer", held).await.unwrap().unwrap(), "old");
    assert!(soon("the shutdown", shutdown).await.unwrap(), "nothing was cut off");
}

/// Answers with what peer 3 answers, once it is released.
struct Asks {
    tcp: Tcp,
    release: Arc<Notify>,
}

#[async_trait]
impl Handler for Asks {
    fn message(&self, _from: u64, _class: Class, _body: Bytes) {}

    async fn call(&self, _from: u64, body: Bytes) -> Result<Parts, Rejected> {
        self.release.notified().await;
        let answer = self.tcp.call(3, SMALL, body.into(), later()).await;
        answer.map(Parts::new).map_err(|error| Rejected::ByHandler(error.to_string().into()))
    }
}

#[tokio::test]
async fn a_shutdown_leaves_the_network_to_the_handlers_that_it_waits_for() {
    let peers = Peers::new();
    let one = node(1, &peers).await;
    let two = node(2, &peers).await;
    let three = node(3, &peers).await;
    let release = Arc::new(Notify::new());
    let asks = Asks { tcp: two.tcp.clone(), release: Arc::clone(&release) };
    two.tcp.serve(2, Arc::new(asks)).unwrap();
    let mut events = one.tcp.events();
    let tcp = one.tcp.clone();
    let channel = Channel::small(2);
    let held = tokio::spawn(async move { tcp.call(2, channel, "x".into(), later()).await });
    soon("the call to be under way", async {
        while two.tcp.stats().frames_in == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let leaving = two.tcp.clone();
    let shutdown = tokio::spawn(async move { leaving.shutdown(later()).await });
    let goodbye = Event::Down { peer: 2, class: Class::Small, reason: DownReason::Goodbye };
    until(&mut events, "the goodbye", |event| *event == goodbye).await;
    release.notify_one();
    assert_eq!(soon("the answer", held).await.unwrap().unwrap(), "x");
    assert!(soon("the shutdown", shutdown).await.unwrap(), "nothing was cut off");
    assert_eq!(three.tcp.stats().frames_in, 1, "peer 3 was asked");
    assert_eq!(two.tcp.send(3, SMALL, "x".into()), Err(SendError::Closed));
    two.tcp.withdraw(2);
}

const GOODBYE: u8 = 8;

/// Accepts the small connection of a node that dials both.
async fn accept_small(listener: &TcpListener) -> Raw {
    let (raw, class) = accept(listener).await;
    assert_eq!(class, 0);
    raw
}

#[tokio::test]
async fn a_peer_that_says_goodbye_and_stays_holds_two_connections_at_most() {
    let peers = Peers::new();
    // The peer answers no ping: its silence must not end the oldest connection instead.
    let mut config = config();
    config.dead_after = Duration::from_secs(60);
    let one = node_at(1, "127.0.0.1:0", &peers, config).await;
    let mut events = one.tcp.events();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    peers.insert(2, listener.local_addr().unwrap());
    let goodbye = Event::Down { peer: 2, class: Class::Small, reason: DownReason::Goodbye };
    let up = Event::Up { peer: 2, class: Class::Small };
    let mut stayed = Vec::new();
    for turn in 0..3 {
        let tcp = one.tcp.clone();
        let call = move || async move { tcp.call(2, SMALL, "x".into(), later()).await };
        let (mut raw, call) = if turn == 0 {
            let call = tokio::spawn(call());
            (accept_small(&listener).await, call)
        } else {
            let raw = accept_small(&listener).await;
            until(&mut events, "the connection", |event| *event == up).await;
            (raw, tokio::spawn(call()))
        };
        let (_, id, _) = raw.read(2).await;
        raw.write(&frame(GOODBYE, 0, 0, 0, 0, b"")).await;
        until(&mut events, "the goodbye", |event| *event == goodbye).await;
        raw.read(GOODBYE).await;
        assert_eq!(one.tcp.send(2, SMALL, "x".into()), Err(SendError::Down));
        stayed.push((raw, id, call));
    }
    let (mut oldest, _, call) = stayed.remove(0);
    oldest.closed().await;
    let error = soon("the end", call).await.unwrap().unwrap_err();
    assert_eq!(error, CallError::Unknown(Lost::Disconnected));
    let (mut last, id, call) = stayed.remove(1);
    last.write(&frame(3, 0, 0, id, 0, b"after the goodbye")).await;
    assert_eq!(soon("the answer", call).await.unwrap().unwrap(), "after the goodbye");
}

#[tokio::test]
async fn a_shutdown_waits_for_calls_to_a_peer_that_has_left_and_is_unknown() {
    let peers = Peers::new();
    let one = node(1, &peers).await;
    let (two, release) = named("two", &peers).await;
    let tcp = one.tcp.clone();
    let held = tokio::spawn(async move { tcp.call(2, SMALL, "held".into(), later()).await });
    soon("the call to be under way", async {
        while two.stats().frames_in == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    peers.remove(2);
    let leaving = two.clone();
    let left = tokio::spawn(async move { leaving.shutdown(later()).await });
    soon("the peer to be forgotten", async {
        while one.tcp.send(2, SMALL, "x".into()) != Err(SendError::UnknownPeer) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let calls = one.tcp.queues().iter().map(|queue| queue.calls).sum::<usize>();
    assert_eq!(calls, 1, "the one that the peer still has");
    let tcp = one.tcp.clone();
    let shutdown = tokio::spawn(async move { tcp.shutdown(later()).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!shutdown.is_finished(), "a call is under way");
    release.notify_one();
    assert_eq!(soon("the answer", held).await.unwrap().unwrap(), "two");
    assert!(soon("the shutdown", shutdown).await.unwrap(), "nothing was cut off");
    assert!(soon("the end of the peer", left).await.unwrap(), "nothing was cut off");
}

#[tokio::test]
async fn a_connection_that_comes_up_during_a_shutdown_is_told_goodbye() {
    let peers = Peers::new();
    let mut config = config();
    (config.handshake_timeout, config.dead_after) =
        (Duration::from_secs(20), Duration::from_secs(60));
    let one = node_at(1, "127.0.0.1:0", &peers, config).await;
    let listeners = [2, 3].map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let mut listening = Vec::new();
    for (peer, listener) in [2, 3].into_iter().zip(listeners) {
        listener.set_nonblocking(true).unwrap();
        peers.insert(peer, listener.local_addr().unwrap());
        listening.push(TcpListener::from_std(listener).unwrap());
    }
    let mut events = one.tcp.events();
    one.tcp.send(3, SMALL, "x".into()).unwrap();
    let mut stays = accept_small(&listening[1]).await;
    let up = Event::Up { peer: 3, class: Class::Small };
    until(&mut events, "the connection", |event| *event == up).await;
    // The hello to peer 2 waits for its reply.
    one.tcp.connect(2).unwrap();
    let tcp = one.tcp.clone();
    let shutdown = tokio::spawn(async move { tcp.shutdown(later()).await });
    stays.read(GOODBYE).await;
    // What stands has been told goodbye. Now peer 2 is back.
    for _ in Class::ALL {
        let (mut raw, _) = accept(&listening[0]).await;
        raw.read(GOODBYE).await;
    }
    drop(stays);
    assert!(soon("the shutdown", shutdown).await.unwrap(), "nothing was cut off");
}

#[tokio::test]
async fn a_peer_that_says_goodbye_and_goes_at_once_is_found_again() {
    let peers = Peers::new();
    let one = node(1, &peers).await;
    let mut events = one.tcp.events();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    peers.insert(2, listener.local_addr().unwrap());
    one.tcp.send(2, SMALL, "first".into()).unwrap();
    let up = Event::Up { peer: 2, class: Class::Small };
    for turn in 0..10 {
        let mut raw = accept_small(&listener).await;
        until(&mut events, "the connection", |event| *event == up).await;
        if turn > 0 {
            assert_eq!(one.tcp.send(2, SMALL, "next".into()), Ok(()), "turn {turn}");
        }
        raw.read(1).await;
        raw.write(&frame(GOODBYE, 0, 0, 0, 0, b"")).await;
    }
}

#[tokio::test]
async fn a_goodbye_ends_requests_and_not_the_answers_to_those_before() {
    let peers = Peers::new();
    let (tcp, release) = named("old", &peers).await;
    let hello = |from| RawHello {
        versions: (1, 1),
        class: 0,
        cluster: CLUSTER,
        from,
        to: 2,
        max_body_bytes: 1 << 20,
    };
    let connect = |from| {
        let (hello, address) = (hello(from), tcp.address());
        async move {
            let mut raw = Raw(tokio::net::TcpStream::connect(address).await.unwrap());
            assert_eq!(raw.greet(&hello).await, 0, "welcome");
            raw
        }
    };
    let mut raw = connect(9).await;
    // In one segment: once the request counts, the node has taken the goodbye too.
    let goodbye = frame(GOODBYE, 0, 0, 0, 0, b"");
    raw.write(&[request(7, b"held"), goodbye.clone()].concat()).await;
    soon("the request", async {
        while tcp.stats().frames_in == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    release.notify_one();
    assert_eq!(raw.read(3).await, (0, 7, b"old".to_vec()));
    raw.closed().await;
    let mut events = tcp.events();
    for after in [message(b"x"), request(1, b"x")] {
        let mut raw = connect(10).await;
        // Held, so that the connection does not end before the next frame.
        raw.write(&[request(7, b"held"), goodbye.clone(), after.clone()].concat()).await;
        let kind = Violation::Kind(after[4]);
        until(&mut events, "the violation", |event| {
            matches!(event, Event::Violation { peer: 10, violation, .. } if *violation == kind)
        })
        .await;
        raw.closed().await;
    }
}

#[tokio::test]
async fn a_node_on_both_stacks_is_reached_by_either_at_the_same_time() {
    let own = Peers::new();
    let two = node_at(2, "[::]:0", &own, config()).await;
    let port = two.tcp.address().port();
    let mut nodes = Vec::new();
    for (id, ip) in [(1, "127.0.0.1"), (3, "::1")] {
        let address = SocketAddr::new(ip.parse().unwrap(), port);
        let peers = Peers::from_iter([(2, address)]);
        let caller = node(id, &peers).await;
        let answer = caller.tcp.call(2, SMALL, ip.into(), later()).await;
        assert_eq!(answer.unwrap(), ip);
        own.insert(id, caller.tcp.address());
        nodes.push(caller);
    }
    for caller in &nodes {
        let id = caller.tcp.local();
        assert_eq!(two.tcp.call(id, SMALL, "back".into(), later()).await.unwrap(), "back");
        let again = caller.tcp.call(2, SMALL, "again".into(), later()).await;
        assert_eq!(again.unwrap(), "again", "both connections stand");
    }
}
