//! raft 0.7 (TiKV's) with a small driver: a task for each node, channels between them, the store in
//! memory, appends batched. The crate has no driver of its own.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use raft::prelude::{ConfState, EntryType, Message};
use raft::storage::MemStorage;
use raft::{Config, RawNode, StateRole};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

enum Input {
    Peer(Box<Message>),
    Propose(Bytes, oneshot::Sender<()>),
    Stop,
}

/// Three nodes in this process.
pub(crate) struct Group {
    leader: mpsc::UnboundedSender<Input>,
    all: Vec<mpsc::UnboundedSender<Input>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Group {
    pub(crate) async fn start() -> Self {
        let mut senders = HashMap::new();
        let mut receivers = Vec::new();
        for id in 1..=3u64 {
            let (sender, receiver) = mpsc::unbounded_channel();
            senders.insert(id, sender);
            receivers.push((id, receiver));
        }
        let (elected, mut leader) = watch::channel(false);
        let mut tasks = Vec::new();
        for (id, inbox) in receivers {
            let mut node = Node::new(id, senders.clone());
            if id == 1 {
                node.raw.campaign().expect("a campaign");
            }
            let elected = (id == 1).then(|| elected.clone());
            tasks.push(tokio::spawn(node.run(inbox, elected)));
        }
        leader.wait_for(|elected| *elected).await.expect("an election");
        let all = senders.values().cloned().collect();
        Self { leader: senders[&1].clone(), all, tasks }
    }

    pub(crate) async fn propose(&self, command: Bytes) {
        let (done, wait) = oneshot::channel();
        self.leader.send(Input::Propose(command, done)).expect("a running leader");
        wait.await.expect("a committed write");
    }

    pub(crate) async fn stop(self) {
        for node in &self.all {
            let _ = node.send(Input::Stop);
        }
        for task in self.tasks {
            task.await.expect("a clean end");
        }
    }
}

struct Node {
    raw: RawNode<MemStorage>,
    peers: HashMap<u64, mpsc::UnboundedSender<Input>>,
    waiting: VecDeque<oneshot::Sender<()>>,
    bytes: u64,
}

impl Node {
    fn new(id: u64, peers: HashMap<u64, mpsc::UnboundedSender<Input>>) -> Self {
        let store = MemStorage::new_with_conf_state(ConfState::from((vec![1, 2, 3], vec![])));
        let config = Config {
            id,
            election_tick: 10,
            heartbeat_tick: 1,
            max_size_per_msg: 1 << 20,
            max_inflight_msgs: 256,
            batch_append: true,
            pre_vote: true,
            check_quorum: true,
            ..Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&config, store, &logger).expect("a valid configuration");
        Self { raw, peers, waiting: VecDeque::new(), bytes: 0 }
    }

    async fn run(
        mut self,
        mut inbox: mpsc::UnboundedReceiver<Input>,
        elected: Option<watch::Sender<bool>>,
    ) {
        let mut tick = interval(Duration::from_millis(50));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.handle_ready();
            if let Some(elected) = &elected
                && self.raw.raft.state == StateRole::Leader
            {
                elected.send_replace(true);
            }
            tokio::select! {
                biased;
                input = inbox.recv() => {
                    let Some(input) = input else { return };
                    if self.take(input) {
                        return;
                    }
                    // What has gathered in the meantime goes into the same batch.
                    while let Ok(input) = inbox.try_recv() {
                        if self.take(input) {
                            return;
                        }
                    }
                }
                _ = tick.tick() => { self.raw.tick(); }
            }
        }
    }

    fn take(&mut self, input: Input) -> bool {
        match input {
            Input::Peer(message) => self.raw.step(*message).expect("a valid message"),
            Input::Propose(command, done) => {
                self.raw.propose(Vec::new(), command.to_vec()).expect("a leader");
                self.waiting.push_back(done);
            }
            Input::Stop => return true,
        }
        false
    }

    fn handle_ready(&mut self) {
        while self.raw.has_ready() {
            let mut ready = self.raw.ready();
            self.send(ready.take_messages());
            self.apply(ready.take_committed_entries());
            let store = self.raw.mut_store();
            if !ready.entries().is_empty() {
                store.wl().append(ready.entries()).expect("entries in order");
            }
            if let Some(hard_state) = ready.hs() {
                store.wl().set_hardstate(hard_state.clone());
            }
            self.send(ready.take_persisted_messages());
            let mut light = self.raw.advance(ready);
            if let Some(commit) = light.commit_index() {
                self.raw.mut_store().wl().mut_hard_state().set_commit(commit);
            }
            self.send(light.take_messages());
            self.apply(light.take_committed_entries());
            self.raw.advance_apply();
        }
    }

    fn send(&self, messages: Vec<Message>) {
        for message in messages {
            if let Some(peer) = self.peers.get(&message.to) {
                let _ = peer.send(Input::Peer(Box::new(message)));
            }
        }
    }

    fn apply(&mut self, entries: Vec<raft::prelude::Entry>) {
        let leads = self.raw.raft.state == StateRole::Leader;
        for entry in entries {
            if entry.get_entry_type() != EntryType::EntryNormal || entry.data.is_empty() {
                continue;
            }
            self.bytes += entry.data.len() as u64;
            if leads && let Some(done) = self.waiting.pop_front() {
                let _ = done.send(());
            }
        }
    }
}
