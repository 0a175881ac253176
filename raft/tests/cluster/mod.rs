//! A cluster of nodes in one process, on stores and a network in memory.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use voussoir_raft::memory::{MemoryStore, Network, NetworkNode};
use voussoir_raft::testing::FaultyStore;
use voussoir_raft::{
    Chunks, Command, Config, MachineError, Raft, Role, Sessions, StateMachine, Status, Transport,
    WholeSnapshot,
};

/// Appends the command's text to a text, and answers with the whole.
#[derive(Clone)]
pub(crate) struct Text {
    pub(crate) value: Arc<Mutex<String>>,
    /// Each command takes one permit: close to fail, take away to block.
    pub(crate) gate: Arc<Semaphore>,
    pub(crate) restored: Arc<Mutex<u32>>,
    /// Does not do what "panic" says.
    immune: Arc<Mutex<bool>>,
}

impl Text {
    pub(crate) fn immune(&self) {
        *self.immune.lock() = true;
    }
}

impl Default for Text {
    fn default() -> Self {
        let gate = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
        Self { value: Arc::default(), gate, restored: Arc::default(), immune: Arc::default() }
    }
}

#[async_trait]
impl StateMachine for Text {
    async fn apply(&mut self, commands: &[Command]) -> Result<Vec<Bytes>, MachineError> {
        let mut answers = Vec::new();
        for command in commands {
            self.gate.acquire().await?.forget();
            assert!(command.data != "panic" || *self.immune.lock(), "as told");
            let mut text = self.value.lock();
            text.push_str(std::str::from_utf8(&command.data)?);
            answers.push(Bytes::from(text.clone()));
        }
        Ok(answers)
    }

    async fn snapshot(&mut self) -> Result<Box<dyn Chunks>, MachineError> {
        Ok(Box::new(WholeSnapshot::new(self.value.lock().clone())))
    }

    async fn restore(&mut self, chunks: &mut dyn Chunks) -> Result<(), MachineError> {
        let whole = WholeSnapshot::collect(chunks).await?;
        *self.value.lock() = String::from_utf8(whole.into())?;
        *self.restored.lock() += 1;
        Ok(())
    }
}

pub(crate) struct Node {
    pub(crate) raft: Raft,
    pub(crate) store: FaultyStore,
    pub(crate) machine: Text,
}

pub(crate) struct Cluster {
    pub(crate) network: Network,
    pub(crate) nodes: BTreeMap<u64, Node>,
    pub(crate) tune: Box<dyn Fn(&mut Config)>,
    pub(crate) wrap: fn(Arc<NetworkNode>) -> Arc<dyn Transport>,
    /// Whether the machines stand in `Sessions`.
    sessions: bool,
}

pub(crate) fn append(text: &str) -> Bytes {
    Bytes::from(text.to_owned())
}

/// Virtual time: nothing here takes a minute unless it hangs.
pub(crate) async fn timeout<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("it hangs")
}

/// A deadline for reads that is never reached, unless something hangs.
pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(50)
}

impl Cluster {
    pub(crate) async fn new(nodes: u64) -> Self {
        Self::tuned(nodes, |_| ()).await
    }

    pub(crate) async fn tuned(nodes: u64, tune: impl Fn(&mut Config) + 'static) -> Self {
        Self::wrapped(nodes, tune, |node| node).await
    }

    pub(crate) async fn wrapped(
        nodes: u64,
        tune: impl Fn(&mut Config) + 'static,
        wrap: fn(Arc<NetworkNode>) -> Arc<dyn Transport>,
    ) -> Self {
        Self::with(nodes, tune, wrap, false).await
    }

    pub(crate) async fn with_sessions(nodes: u64, tune: impl Fn(&mut Config) + 'static) -> Self {
        Self::with(nodes, tune, |node| node, true).await
    }

    async fn with(
        nodes: u64,
        tune: impl Fn(&mut Config) + 'static,
        wrap: fn(Arc<NetworkNode>) -> Arc<dyn Transport>,
        sessions: bool,
    ) -> Self {
        let (network, tune) = (Network::new(), Box::new(tune));
        let mut cluster = Self { network, nodes: BTreeMap::new(), tune, wrap, sessions };
        for id in 1..=nodes {
            let store = FaultyStore::new(Arc::new(MemoryStore::new()));
            cluster.start(id, nodes, store).await;
        }
        cluster
    }

    async fn start(&mut self, id: u64, nodes: u64, store: FaultyStore) {
        let mut config = Config::new(id, (1..=nodes).collect::<Vec<_>>());
        config.seed = Some(7);
        (self.tune)(&mut config);
        let machine = Text::default();
        let boxed: Box<dyn StateMachine> = if self.sessions {
            Box::new(Sessions::new(machine.clone()))
        } else {
            Box::new(machine.clone())
        };
        let raft =
            Raft::start(config, Arc::new(store.clone()), boxed, (self.wrap)(self.network.node(id)));
        let raft = timeout(raft).await.expect("it starts");
        self.nodes.insert(id, Node { raft, store, machine });
    }

    pub(crate) fn raft(&self, id: u64) -> &Raft {
        &self.nodes[&id].raft
    }

    pub(crate) fn status(&self, id: u64) -> Status {
        self.raft(id).status().borrow().clone()
    }

    pub(crate) fn text(&self, id: u64) -> String {
        self.nodes[&id].machine.value.lock().clone()
    }

    /// Stops a node and starts it anew on what its store has kept.
    pub(crate) async fn restart(&mut self, id: u64) {
        let nodes = self.nodes.len() as u64;
        let node = self.nodes.remove(&id).expect("it runs");
        timeout(node.raft.shutdown()).await;
        node.store.crash();
        self.start(id, nodes, node.store).await;
    }

    pub(crate) async fn until(&self, id: u64, holds: impl FnMut(&Status) -> bool) -> Status {
        let mut status = self.raft(id).status();
        timeout(status.wait_for(holds)).await.expect("it runs").clone()
    }

    /// A leader that at least `voters` nodes follow, itself included.
    pub(crate) async fn led_by(&self, voters: usize) -> u64 {
        self.led_by_other_than(0, voters).await
    }

    pub(crate) async fn led_by_other_than(&self, old: u64, voters: usize) -> u64 {
        let mut watches: Vec<_> = self.nodes.values().map(|node| node.raft.status()).collect();
        let leads = |s: &&Status| s.role == Role::Leader && s.halted.is_none() && s.id != old;
        let search = async {
            loop {
                let all: Vec<Status> =
                    watches.iter_mut().map(|watch| watch.borrow_and_update().clone()).collect();
                for leader in all.iter().filter(leads) {
                    let follow = |s: &&Status| s.leader == Some(leader.id) && s.term == leader.term;
                    if all.iter().filter(follow).count() >= voters {
                        return leader.id;
                    }
                }
                any_change(&mut watches).await;
            }
        };
        timeout(search).await
    }

    /// The leader that all follow.
    pub(crate) async fn leader(&self) -> u64 {
        self.led_by(self.nodes.len()).await
    }

    /// Everybody has applied what `leader` has committed, and shows the same.
    pub(crate) async fn converge(&self, leader: u64) -> String {
        let commit = self.status(leader).commit;
        for id in self.nodes.keys() {
            self.until(*id, |status| status.applied >= commit).await;
        }
        let texts: Vec<String> = self.nodes.keys().map(|id| self.text(*id)).collect();
        assert!(texts.windows(2).all(|two| two[0] == two[1]), "{texts:?}");
        texts[0].clone()
    }
}

async fn any_change(watches: &mut [watch::Receiver<Status>]) {
    let mut waits: Vec<_> = watches.iter_mut().map(|watch| Box::pin(watch.changed())).collect();
    poll_fn(|cx| {
        let mut ready = false;
        waits.retain_mut(|wait| {
            let done = wait.as_mut().poll(cx);
            ready |= matches!(done, Poll::Ready(Ok(())));
            done.is_pending()
        });
        if ready { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}
