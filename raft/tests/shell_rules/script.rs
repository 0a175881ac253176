//! One real node of three. The test speaks for the others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use voussoir_raft::memory::MemoryStore;
use voussoir_raft::testing::FaultyStore;
use voussoir_raft::{
    AppendHead, AttachError, Config, Entry, EntryKind, Heartbeat, Inbox, LogStore, Message, Node,
    NodeConfig, Raft, SendError, SnapshotAnswer, SnapshotMeta, SnapshotName, SnapshotPart, Status,
    Transport, VoteReply,
};

use crate::cluster::{Text, append, timeout};

/// The node that the test speaks for.
pub(crate) const PEER: u64 = 2;

/// What the node sends, and where it listens.
struct Ears {
    /// By group.
    inboxes: Mutex<BTreeMap<u64, Arc<dyn Inbox>>>,
    sent: mpsc::UnboundedSender<(u64, Message)>,
}

#[async_trait]
impl Transport for Ears {
    fn local(&self) -> u64 {
        1
    }

    fn attach(&self, group: u64, inbox: Arc<dyn Inbox>) -> Result<(), AttachError> {
        self.inboxes.lock().insert(group, inbox);
        Ok(())
    }

    fn detach(&self, group: u64) {
        self.inboxes.lock().remove(&group);
    }

    fn send(&self, to: u64, _: u64, message: Message) -> Result<(), SendError> {
        self.sent.send((to, message)).map_err(|_| SendError::Closed)
    }

    fn send_all(&self, to: u64, messages: Vec<(u64, Message)>) -> Result<(), SendError> {
        let send = |(group, message)| self.send(to, group, message);
        messages.into_iter().map(send).fold(Ok(()), Result::and)
    }

    async fn snapshot(
        &self,
        _: u64,
        _: u64,
        _: SnapshotPart,
        _: Duration,
    ) -> Result<SnapshotAnswer, SendError> {
        Err(SendError::Down)
    }
}

pub(crate) struct Script {
    pub(crate) raft: Raft,
    pub(crate) store: FaultyStore,
    pub(crate) machine: Text,
    pub(crate) inbox: Arc<dyn Inbox>,
    sent: mpsc::UnboundedReceiver<(u64, Message)>,
    /// With it ends what its groups share.
    _node: Option<Node>,
}

impl Script {
    pub(crate) async fn start() -> Self {
        Self::over(Arc::new(MemoryStore::new())).await
    }

    pub(crate) async fn over(log: Arc<dyn LogStore>) -> Self {
        Self::starting(log, false).await
    }

    /// The one group of a node of many.
    pub(crate) async fn of_many(log: Arc<dyn LogStore>) -> Self {
        Self::starting(log, true).await
    }

    async fn starting(log: Arc<dyn LogStore>, of_many: bool) -> Self {
        let mut config = Config::new(1, [1, 2, 3]);
        config.seed = Some(7);
        let (sender, sent) = mpsc::unbounded_channel();
        let ears = Arc::new(Ears { inboxes: Mutex::default(), sent: sender });
        let store = FaultyStore::new(log);
        let machine = Text::default();
        let log = Arc::new(store.clone());
        let (group, applies) = (config.group, Box::new(machine.clone()));
        let node = of_many.then(|| Node::start(NodeConfig::default(), ears.clone()).unwrap());
        let raft = timeout(async {
            match &node {
                Some(node) => node.start_group(config, log, applies).await,
                None => Raft::start(config, log, applies, ears.clone()).await,
            }
        });
        let raft = raft.await.expect("it starts");
        let inbox = ears.inboxes.lock().get(&group).cloned().expect("it is attached");
        Self { raft, store, machine, inbox, sent, _node: node }
    }

    pub(crate) fn status(&self) -> Status {
        self.raft.status().borrow().clone()
    }

    pub(crate) async fn until(&self, holds: impl FnMut(&Status) -> bool) -> Status {
        timeout(self.raft.status().wait_for(holds)).await.expect("it runs").clone()
    }

    pub(crate) fn says(&self, message: Message) {
        self.inbox.message(PEER, message);
    }

    /// The next message to [`PEER`] that `wanted` picks.
    pub(crate) async fn sent(&mut self, wanted: impl Fn(&Message) -> bool) -> Message {
        loop {
            let (to, message) = self.sent.recv().await.expect("it runs");
            if to == PEER && wanted(&message) {
                return message;
            }
        }
    }

    /// What was sent to [`PEER`] so far and not looked at.
    pub(crate) fn sent_so_far(&mut self) -> Vec<Message> {
        let all = std::iter::from_fn(|| self.sent.try_recv().ok());
        all.filter(|(to, _)| *to == PEER).map(|(_, message)| message).collect()
    }

    /// Grants what the node asks for until it leads.
    pub(crate) async fn win_election(&mut self) {
        let asks = |message: &Message| matches!(message, Message::PreVote(_) | Message::Vote(_));
        for _ in 0..2 {
            let reply = |term| VoteReply { term, granted: true };
            let answer = match timeout(self.sent(asks)).await {
                Message::PreVote(question) => Message::PreVoteReply(reply(question.term)),
                Message::Vote(question) => Message::VoteReply(reply(question.term)),
                other => panic!("{other:?}"),
            };
            self.says(answer);
        }
    }

    /// [`PEER`] leads `term`.
    pub(crate) fn hears_leader(&self, term: u64) {
        self.says(Message::Heartbeat(Heartbeat { term, round: 1, commit: 0 }));
    }

    /// [`PEER`] replicates commands, the first of them at `first`, all of `term`, and all
    /// committed.
    pub(crate) fn append(&self, term: u64, first: u64, prev_term: u64, texts: &[&str]) {
        let entries: Vec<Entry> = (first..)
            .zip(texts)
            .map(|(index, text)| Entry {
                term,
                index,
                kind: EntryKind::Command,
                data: append(text),
            })
            .collect();
        let commit = first + texts.len() as u64 - 1;
        let head = AppendHead {
            term,
            session: first,
            prev_index: first - 1,
            prev_term,
            commit,
            probe: false,
        };
        self.says(Message::Append { head, entries });
    }

    /// A part of a snapshot arrives.
    pub(crate) async fn part(&self, part: SnapshotPart) -> SnapshotAnswer {
        timeout(self.inbox.snapshot(PEER, part)).await
    }

    pub(crate) async fn open(&self, name: &SnapshotName, chunks: u64) -> SnapshotAnswer {
        let term = name.meta.term;
        self.part(SnapshotPart::Open { term, name: name.clone(), chunks }).await
    }

    pub(crate) async fn chunk(&self, identity: u64, number: u64, text: &str) -> SnapshotAnswer {
        self.part(SnapshotPart::Chunk { identity, number, data: append(text) }).await
    }

    pub(crate) async fn close(&self, identity: u64) -> SnapshotAnswer {
        self.part(SnapshotPart::Close { identity }).await
    }

    pub(crate) fn text(&self) -> String {
        self.machine.value.lock().clone()
    }
}

pub(crate) fn name(index: u64, term: u64, identity: u64) -> SnapshotName {
    SnapshotName { meta: SnapshotMeta { index, term, members: vec![1, 2, 3].into() }, identity }
}
