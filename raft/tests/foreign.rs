//! Code that is not ours panics, never returns, or calls back: what the node makes of it.

use std::collections::HashSet;
use std::future::{Future, pending};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio::time::Instant;
use voussoir_raft::Restored;
use voussoir_raft::memory::{MemoryStore, Network, NetworkNode};
use voussoir_raft::{
    AttachError, Chunks, Command, Completion, Config, Doubt, Entry, HaltReason, Inbox, LogStore,
    LogWrite, MachineError, Message, ProposeError, Raft, ReadFailed, Role, SendError,
    SnapshotAnswer, SnapshotName, SnapshotPart, SnapshotReader, SnapshotWriter, StateMachine,
    Status, StopReason, StoreError, Transport, WholeSnapshot,
};

/// What foreign code does at a place that it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum At {
    MachineSnapshot,
    MachineChunk,
    MachineRestore,
    StoreWrite,
    StoreRead,
    StoreStage,
    StoreOpen,
    StoreDropsCompletion,
    TransportSend,
    TransportSnapshot,
    TransportHangs,
}

/// Where foreign code misbehaves at the moment, and how often each place was passed.
#[derive(Clone, Debug, Default)]
struct Wrong(Arc<Mutex<HashSet<At>>>, Arc<AtomicUsize>);

impl Wrong {
    fn on(&self, at: At) {
        self.0.lock().insert(at);
    }

    fn off(&self) {
        self.0.lock().clear();
    }

    fn is(&self, at: At) -> bool {
        let wrong = self.0.lock().contains(&at);
        self.1.fetch_add(usize::from(wrong), Ordering::Relaxed);
        wrong
    }

    fn panics(&self, at: At) {
        assert!(!self.is(at), "foreign code, as told: {at:?}");
    }

    fn times(&self) -> usize {
        self.1.load(Ordering::Relaxed)
    }
}

#[derive(Clone)]
struct Machine {
    wrong: Wrong,
    text: Arc<Mutex<String>>,
    /// Proposes here while it applies "again".
    own: Arc<OnceCell<Raft>>,
    heard: Arc<Mutex<Option<Result<Bytes, ProposeError>>>>,
}

#[async_trait]
impl StateMachine for Machine {
    async fn apply(&mut self, commands: &[Command]) -> Result<Vec<Bytes>, MachineError> {
        for command in commands {
            if let (true, Some(own)) = (command.data == "again", self.own.get()) {
                let answer = own.propose("inner".into()).await;
                *self.heard.lock() = Some(answer);
            }
            self.text.lock().push_str(std::str::from_utf8(&command.data)?);
        }
        Ok(commands.iter().map(|_| Bytes::new()).collect())
    }

    async fn snapshot(&mut self) -> Result<Box<dyn Chunks>, MachineError> {
        self.wrong.panics(At::MachineSnapshot);
        let whole = WholeSnapshot::new(self.text.lock().clone());
        Ok(Box::new(Pieces { wrong: self.wrong.clone(), whole }))
    }

    async fn restore(&mut self, chunks: &mut dyn Chunks) -> Result<(), MachineError> {
        self.wrong.panics(At::MachineRestore);
        let whole = WholeSnapshot::collect(chunks).await?;
        *self.text.lock() = String::from_utf8(whole.into())?;
        Ok(())
    }
}

struct Pieces {
    wrong: Wrong,
    whole: WholeSnapshot,
}

#[async_trait]
impl Chunks for Pieces {
    async fn next(&mut self) -> Result<Option<Bytes>, MachineError> {
        self.wrong.panics(At::MachineChunk);
        self.whole.next().await
    }
}

#[derive(Clone)]
struct Store {
    wrong: Wrong,
    inner: MemoryStore,
}

#[async_trait]
impl LogStore for Store {
    async fn restore(&self) -> Result<Restored, StoreError> {
        self.inner.restore().await
    }

    fn write(&self, write: LogWrite, done: Completion) {
        self.wrong.panics(At::StoreWrite);
        if !self.wrong.is(At::StoreDropsCompletion) {
            self.inner.write(write, done);
        }
    }

    async fn read(&self, range: Range<u64>, max_bytes: u64) -> Result<Vec<Entry>, ReadFailed> {
        self.wrong.panics(At::StoreRead);
        self.inner.read(range, max_bytes).await
    }

    async fn stage(&self, name: &SnapshotName) -> Result<Box<dyn SnapshotWriter>, StoreError> {
        self.wrong.panics(At::StoreStage);
        self.inner.stage(name).await
    }

    fn unstage(&self, identity: u64) {
        self.inner.unstage(identity);
    }

    async fn open_snapshot(&self) -> Result<Option<Box<dyn SnapshotReader>>, StoreError> {
        self.wrong.panics(At::StoreOpen);
        self.inner.open_snapshot().await
    }
}

struct Wire {
    wrong: Wrong,
    node: Arc<NetworkNode>,
}

#[async_trait]
impl Transport for Wire {
    fn local(&self) -> u64 {
        self.node.local()
    }

    fn attach(&self, group: u64, inbox: Arc<dyn Inbox>) -> Result<(), AttachError> {
        self.node.attach(group, inbox)
    }

    fn detach(&self, group: u64) {
        self.node.detach(group);
    }

    fn send(&self, to: u64, group: u64, message: Message) -> Result<(), SendError> {
        self.wrong.panics(At::TransportSend);
        self.node.send(to, group, message)
    }

    fn send_all(&self, to: u64, messages: Vec<(u64, Message)>) -> Result<(), SendError> {
        let send = |(group, message)| self.send(to, group, message);
        messages.into_iter().map(send).fold(Ok(()), Result::and)
    }

    async fn snapshot(
        &self,
        to: u64,
        group: u64,
        part: SnapshotPart,
        timeout: Duration,
    ) -> Result<SnapshotAnswer, SendError> {
        self.wrong.panics(At::TransportSnapshot);
        if self.wrong.is(At::TransportHangs) {
            pending::<()>().await;
        }
        self.node.snapshot(to, group, part, timeout).await
    }
}

struct Node {
    raft: Raft,
    wrong: Wrong,
    machine: Machine,
}

struct Group {
    network: Network,
    nodes: Vec<Node>,
}

/// Says nothing of the panics that are told to happen.
fn quiet() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let payload = info.payload();
            let text = payload.downcast_ref::<&str>().copied();
            let owned = payload.downcast_ref::<String>().map(String::as_str);
            let said = text.or(owned).unwrap_or_default();
            if !said.contains("as told") {
                loud(info);
            }
        }));
    });
}

async fn timeout<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(100), future).await.expect("it hangs")
}

impl Group {
    async fn new(size: u64, tune: fn(&mut Config)) -> Self {
        quiet();
        let network = Network::new();
        let mut nodes = Vec::new();
        for id in 1..=size {
            let mut config = Config::new(id, (1..=size).collect::<Vec<_>>());
            config.seed = Some(3);
            tune(&mut config);
            let wrong = Wrong::default();
            let store = Store { wrong: wrong.clone(), inner: MemoryStore::new() };
            let machine = Machine {
                wrong: wrong.clone(),
                text: Arc::default(),
                own: Arc::default(),
                heard: Arc::default(),
            };
            let wire = Wire { wrong: wrong.clone(), node: network.node(id) };
            let raft =
                Raft::start(config, Arc::new(store), Box::new(machine.clone()), Arc::new(wire));
            nodes.push(Node { raft: timeout(raft).await.unwrap(), wrong, machine });
        }
        Self { network, nodes }
    }

    async fn leader(&self) -> &Node {
        timeout(async {
            loop {
                for node in &self.nodes {
                    let status = node.raft.status().borrow().clone();
                    if status.role == Role::Leader && node.raft.stopped().is_none() {
                        let soon = Instant::now() + Duration::from_secs(1);
                        if node.raft.read(soon).await.is_ok() {
                            return node;
                        }
                    }
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
    }

    async fn propose(&self, text: &str) {
        let leader = self.leader().await;
        timeout(leader.raft.propose(text.to_owned().into())).await.unwrap();
    }
}

impl Node {
    fn id(&self) -> u64 {
        self.raft.status().borrow().id
    }

    async fn until(&self, holds: impl FnMut(&Status) -> bool) -> Status {
        timeout(self.raft.status().wait_for(holds)).await.expect("it runs").clone()
    }

    async fn stopped(&self) -> StopReason {
        let mut status = self.raft.status();
        timeout(async { while status.changed().await.is_ok() {} }).await;
        let reason = self.raft.stopped().expect("it has ended");
        let propose = timeout(self.raft.propose("late".into())).await.unwrap_err();
        assert_eq!(propose, ProposeError::Stopped(reason.clone()));
        reason
    }
}

fn eager(config: &mut Config) {
    config.snapshot_after_entries = 10;
    config.keep_entries = 0;
    config.max_window_bytes = 1;
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_panics_under_a_snapshot_or_restore_stops_its_node() {
    let group = Group::new(1, eager).await;
    let node = group.leader().await;
    node.wrong.on(At::MachineSnapshot);
    for _ in 0..10 {
        let _ = timeout(node.raft.propose(".".into())).await;
    }
    assert_eq!(node.stopped().await, StopReason::Panicked);

    let group = Group::new(3, eager).await;
    let leader = group.leader().await;
    let late = &group.nodes[(leader.id() % 3) as usize];
    group.network.isolate(late.id(), 1..=3);
    late.wrong.on(At::MachineRestore);
    for _ in 0..30 {
        group.propose(".").await;
    }
    leader.until(|status| status.snapshot > 20).await;
    group.network.heal();
    assert_eq!(late.stopped().await, StopReason::Panicked);
    group.propose("!").await;
}

/// The snapshot is given up, the next one is taken, and nothing else is disturbed.
#[tokio::test(start_paused = true)]
async fn a_panic_while_a_snapshot_is_stored_costs_that_snapshot_only() {
    for at in [At::MachineChunk, At::StoreStage] {
        let group = Group::new(1, eager).await;
        let node = group.leader().await;
        node.wrong.on(at);
        for _ in 0..25 {
            group.propose(".").await;
        }
        assert!(node.wrong.times() >= 2, "{at:?}: it is asked again");
        assert_eq!(node.raft.status().borrow().snapshot, 0, "{at:?}");
        node.wrong.off();
        for _ in 0..25 {
            group.propose(".").await;
        }
        node.until(|status| status.snapshot > 25).await;
        assert_eq!(node.raft.stopped(), None, "{at:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_panics_or_drops_a_completion_stops_its_node_with_the_cause() {
    let halted = |reason, cause: &str| StopReason::Halted { reason, cause: Some(cause.into()) };
    let cases = [
        (At::StoreWrite, StopReason::Panicked),
        (
            At::StoreDropsCompletion,
            halted(HaltReason::PersistFailed, "the store abandoned the write"),
        ),
    ];
    for (at, expected) in cases {
        let group = Group::new(3, |_| ()).await;
        let leader = group.leader().await;
        leader.wrong.on(at);
        let error = timeout(leader.raft.propose("x".into())).await.unwrap_err();
        assert_eq!(error, ProposeError::Unknown(Doubt::Stopped(expected.clone())), "{at:?}");
        assert_eq!(leader.stopped().await, expected, "{at:?}");
        group.propose("y").await;
    }

    // A leader reads for a follower that has fallen behind its window.
    let group = Group::new(3, |config| config.max_window_bytes = 1).await;
    let leader = group.leader().await;
    let late = leader.id() % 3 + 1;
    group.network.isolate(late, 1..=3);
    for _ in 0..10 {
        group.propose(".").await;
    }
    leader.wrong.on(At::StoreRead);
    group.network.heal();
    let cause = "the store failed: the store panicked";
    assert_eq!(leader.stopped().await, halted(HaltReason::ReadFailed, cause));
    group.propose("!").await;
}

/// The leader has one place for transfers: each attempt gives it back, whatever became of it.
#[tokio::test(start_paused = true)]
async fn a_transfer_that_panics_or_hangs_is_tried_again() {
    for at in [At::StoreOpen, At::TransportSnapshot, At::TransportHangs] {
        let group = Group::new(3, eager).await;
        let leader = group.leader().await;
        let late = &group.nodes[(leader.id() % 3) as usize];
        group.network.isolate(late.id(), 1..=3);
        for _ in 0..30 {
            group.propose(".").await;
        }
        leader.until(|status| status.snapshot > 20).await;
        leader.wrong.on(at);
        group.network.heal();
        timeout(async {
            while leader.wrong.times() < 2 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        leader.wrong.off();
        late.until(|status| status.applied > 30).await;
        assert_eq!(late.machine.text.lock().len(), 30, "{at:?}");
        assert_eq!(leader.raft.stopped(), None, "{at:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_transport_that_panics_stops_its_node_and_answers_its_callers() {
    let group = Group::new(3, |_| ()).await;
    let leader = group.leader().await;
    leader.wrong.on(At::TransportSend);
    let error = timeout(leader.raft.propose("x".into())).await.unwrap_err();
    assert!(
        matches!(&error, ProposeError::Unknown(Doubt::Stopped(StopReason::Panicked))),
        "{error:?}"
    );
    assert_eq!(leader.stopped().await, StopReason::Panicked);
    group.propose("y").await;
}

/// It waits for itself; the inner proposal ends after `proposal_timeout`, and the node goes on.
#[tokio::test(start_paused = true)]
async fn a_machine_that_proposes_to_its_own_node_gets_an_answer_in_time() {
    let group = Group::new(1, |_| ()).await;
    let node = group.leader().await;
    assert!(node.machine.own.set(node.raft.clone()).is_ok());
    let began = Instant::now();
    let outer = timeout(node.raft.propose("again".into())).await;
    assert_eq!(outer, Err(ProposeError::Unknown(Doubt::TimedOut)), "it was applied too late");
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    group.propose("!").await;
    let inner = node.machine.heard.lock().clone();
    assert_eq!(inner, Some(Err(ProposeError::Unknown(Doubt::TimedOut))));
    assert_eq!(*node.machine.text.lock(), "againinner!");
}

#[tokio::test(start_paused = true)]
async fn an_observer_that_panics_disturbs_nobody() {
    let group = Group::new(1, |_| ()).await;
    let node = group.leader().await;
    let mut status = node.raft.status();
    let observer = tokio::spawn(async move {
        let _ = status.wait_for(|_| panic!("an observer, as told")).await;
    });
    assert!(timeout(observer).await.unwrap_err().is_panic());
    group.propose("x").await;
    node.until(|status| status.applied >= 2).await;
    assert_eq!(node.raft.stopped(), None);
}

/// A transfer whose peer asks for the same things again and again.
struct Stubborn {
    node: Arc<NetworkNode>,
    /// Answers `Close` with this chunk.
    after_close: u64,
    calls: Arc<AtomicU64>,
    chunks: Arc<AtomicU64>,
}

#[async_trait]
impl Transport for Stubborn {
    fn local(&self) -> u64 {
        self.node.local()
    }

    fn attach(&self, group: u64, inbox: Arc<dyn Inbox>) -> Result<(), AttachError> {
        self.node.attach(group, inbox)
    }

    fn detach(&self, group: u64) {
        self.node.detach(group);
    }

    fn send(&self, to: u64, group: u64, message: Message) -> Result<(), SendError> {
        self.node.send(to, group, message)
    }

    fn send_all(&self, to: u64, messages: Vec<(u64, Message)>) -> Result<(), SendError> {
        self.node.send_all(to, messages)
    }

    async fn snapshot(
        &self,
        _: u64,
        _: u64,
        part: SnapshotPart,
        _: Duration,
    ) -> Result<SnapshotAnswer, SendError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_micros(40)).await;
        let number = match part {
            SnapshotPart::Chunk { number, .. } => {
                self.chunks.fetch_add(1, Ordering::Relaxed);
                number + 1
            }
            SnapshotPart::Close { .. } => self.after_close,
            _ => 0,
        };
        Ok(SnapshotAnswer::Next { number })
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_never_has_enough_of_a_snapshot_does_not_keep_the_sender_busy() {
    for after_close in [0, 1] {
        let network = Network::new();
        let (calls, chunks) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let mut nodes = Vec::new();
        for id in 1..=3 {
            let mut config = Config::new(id, [1, 2, 3]);
            config.seed = Some(3);
            eager(&mut config);
            let machine = Machine {
                wrong: Wrong::default(),
                text: Arc::default(),
                own: Arc::default(),
                heard: Arc::default(),
            };
            let wire = Stubborn {
                node: network.node(id),
                after_close,
                calls: Arc::clone(&calls),
                chunks: Arc::clone(&chunks),
            };
            let store = Arc::new(MemoryStore::new());
            let raft = Raft::start(config, store, Box::new(machine.clone()), Arc::new(wire));
            nodes.push(Node {
                raft: timeout(raft).await.unwrap(),
                wrong: Wrong::default(),
                machine,
            });
        }
        let group = Group { network, nodes };
        let leader = group.leader().await;
        group.network.isolate(leader.id() % 3 + 1, 1..=3);
        for _ in 0..30 {
            group.propose(".").await;
        }
        leader.until(|status| status.snapshot > 20).await;
        group.network.heal();
        tokio::time::sleep(Duration::from_secs(20)).await;
        let (calls, chunks) = (calls.load(Ordering::Relaxed), chunks.load(Ordering::Relaxed));
        assert!(calls >= 8, "{calls} calls: it was tried");
        assert!(calls <= 200, "{calls} calls in 20 s, answered with Next {{ {after_close} }}");
        assert!(chunks <= 100, "{chunks} chunks in 20 s");
        assert_eq!(leader.raft.stopped(), None);
    }
}
