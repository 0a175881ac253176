//! One real node of three. The test speaks for the others.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use voussoir_raft::memory::MemoryStore;
use voussoir_raft::testing::FaultyStore;
use voussoir_raft::{
    AppendHead, AttachError, Config, Entry, EntryKind, Heartbeat, Inbox, LogStore, Message, Raft,
    SendError, SnapshotAnswer, SnapshotMeta, SnapshotName, SnapshotPart, Status, Transport,
    VoteReply,
};

use crate::cluster::{Text, append, timeout};

/// The node that the test speaks for.
pub(crate) const PEER: u64 = 2;

/// What the node sends, and where it listens.
struct Ears {
    inbox: Mutex<Option<Arc<dyn Inbox>>>,
    sent: mpsc::UnboundedSender<(u64, Message)>,
}

#[async_trait]
impl Transport for Ears {
    fn local(&self) -> u64 {
        1
    }

    fn attach(&self, _: u64, inbox: Arc<dyn Inbox>) -> Result<(), AttachError> {
        *self.inbox.lock() = Some(inbox);
        Ok(())
    }

    fn detach(&self, _: u64) {
        *self.inbox.lock() = None;
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
}

impl Script {
    pub(crate) async fn start() -> Self {
        Self::over(Arc::new(MemoryStore::new())).await
    }

    pub(crate) async fn over(log: Arc<dyn LogStore>) -> Self {
        let mut config = Config::new(1, [1, 2, 3]);
        config.seed = Some(7);
        let (sender, sent) = mpsc::unbounded_channel();
        let ears = Arc::new(Ears { inbox: Mutex::new(None), sent: sender });
        let store = FaultyStore::new(log);
        let machine = Text::default();
        let log = Arc::new(store.clone());
        let raft = Raft::start(config, log, Box::new(machine.clone()), ears.clone());
        let raft = timeout(raft).await.expect("it starts");
        let inbox = ears.inbox.lock().clone().expect("it is attached");
        Self { raft, store, machine, inbox, sent }
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
