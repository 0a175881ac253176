//! Journals with little room: no node halts while its data is a third of the journal.

mod common;
#[path = "room/lives.rs"]
mod lives;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use common::{Lab, MS};
use parking_lot::Mutex;
use tokio::task::JoinSet;
use voussoir_journal::{Commit, Config as JournalConfig, Journal, MemoryFiles};
use voussoir_raft::core::{Input, Output, Restored};
use voussoir_raft::journal::{Identity, JournalStore};
use voussoir_raft::memory::Network;
use voussoir_raft::{
    Chunks, Command, Completion, Config, Entry, LogStore, LogWrite, MachineError, Message, Node,
    NodeConfig, ProposeRejected, Raft, ReadFailed, Role, Room, SnapshotName, SnapshotReader,
    SnapshotWriter, StateMachine, StoreError,
};

const SEGMENT: u64 = 2 << 20;
const MAX: u64 = 64 << 20;
const VALUE: usize = 64 << 10;

/// The latest value of each key: the number of its write, and padding.
#[derive(Clone, Default)]
struct Values(Arc<Mutex<BTreeMap<u64, Bytes>>>);

fn write(key: u64, number: u64) -> Bytes {
    let mut command = BytesMut::with_capacity(VALUE);
    command.put_u64_le(key);
    command.put_u64_le(number);
    command.resize(VALUE, number as u8);
    command.freeze()
}

impl Values {
    fn number(&self, key: u64) -> u64 {
        self.0.lock().get(&key).map_or(0, |value| value.clone().get_u64_le())
    }

    /// The number of the last write, and the length of its padding.
    fn written(&self, key: u64) -> Option<(u64, usize)> {
        let mut padding = self.0.lock().get(&key)?.clone();
        let number = padding.get_u64_le();
        assert_eq!(padding, vec![number as u8; padding.len()], "key {key}");
        Some((number, padding.len()))
    }
}

struct Pairs(std::vec::IntoIter<Bytes>);

#[async_trait]
impl Chunks for Pairs {
    async fn next(&mut self) -> Result<Option<Bytes>, MachineError> {
        Ok(self.0.next())
    }
}

#[async_trait]
impl StateMachine for Values {
    async fn apply(&mut self, commands: &[Command]) -> Result<Vec<Bytes>, MachineError> {
        let mut values = self.0.lock();
        for command in commands {
            let mut value = command.data.clone();
            let (key, number) = (value.get_u64_le(), value.clone().get_u64_le());
            // One that was sent again may come behind the next one.
            if values.get(&key).is_none_or(|last| last.clone().get_u64_le() <= number) {
                values.insert(key, value);
            }
        }
        Ok(vec![Bytes::new(); commands.len()])
    }

    async fn snapshot(&mut self) -> Result<Box<dyn Chunks>, MachineError> {
        let chunk = |(key, value): (&u64, &Bytes)| {
            let mut chunk = BytesMut::with_capacity(VALUE);
            chunk.put_u64_le(*key);
            chunk.put_slice(value);
            chunk.freeze()
        };
        let chunks: Vec<Bytes> = self.0.lock().iter().map(chunk).collect();
        Ok(Box::new(Pairs(chunks.into_iter())))
    }

    async fn restore(&mut self, chunks: &mut dyn Chunks) -> Result<(), MachineError> {
        self.0.lock().clear();
        while let Some(mut chunk) = chunks.next().await? {
            self.0.lock().insert(chunk.get_u64_le(), chunk);
        }
        Ok(())
    }
}

fn options() -> JournalConfig {
    let mut options = JournalConfig::default();
    (options.segment_bytes, options.max_bytes) = (SEGMENT, MAX);
    options
}

fn journal() -> Journal {
    Journal::open_with(Arc::new(MemoryFiles::new()), options()).unwrap()
}

fn config(node: u64, nodes: u64, group: u64) -> Config {
    let mut config = Config::new(node, (1..=nodes).collect::<Vec<_>>());
    config.group = group;
    config
}

fn identity(node: u64, group: u64) -> Identity {
    Identity { cluster: 7, node, group }
}

fn create(journal: &Journal, node: u64, group: u64) -> Arc<JournalStore> {
    Arc::new(JournalStore::create(journal, identity(node, group)).unwrap())
}

/// The groups of one shape on some nodes, with their machines; `rafts[node][group]`.
struct World {
    nodes: Vec<Node>,
    rafts: Vec<Vec<(Raft, Values)>>,
}

impl World {
    async fn new(nodes: u64, groups: u64) -> Self {
        let network = Network::new();
        let mut world = Self { nodes: Vec::new(), rafts: Vec::new() };
        for id in 1..=nodes {
            let node = Node::start(NodeConfig::default(), network.node(id)).unwrap();
            let (journal, mut rafts) = (journal(), Vec::new());
            for group in 1..=groups {
                let (store, values) = (create(&journal, id, group), Values::default());
                let config = config(id, nodes, group);
                let raft = node.start_group(config, store, Box::new(values.clone())).await;
                rafts.push((raft.unwrap(), values));
            }
            world.nodes.push(node);
            world.rafts.push(rafts);
        }
        world
    }

    fn no_halt(&self) {
        for (raft, _) in self.rafts.iter().flatten() {
            assert_eq!(raft.stopped(), None, "group {}", raft.status().borrow().group);
        }
    }

    /// Each node's replica of one group.
    fn replicas(&self, group: usize) -> Vec<(Raft, Values)> {
        self.rafts.iter().map(|rafts| rafts[group].clone()).collect()
    }

    /// Writes each key of each group `rounds` times, each group from a task of its own, and looks
    /// whether all nodes hold the last value of each.
    async fn overwrite(&self, keys: u64, rounds: u64) {
        let mut writers = JoinSet::new();
        for group in 0..self.rafts[0].len() {
            let replicas = self.replicas(group);
            writers.spawn(async move {
                for number in 1..=rounds {
                    for key in 0..keys {
                        put(&replicas, key, number).await;
                    }
                }
            });
        }
        while let Some(ended) = writers.join_next().await {
            ended.unwrap();
            self.no_halt();
        }
        for group in 0..self.rafts[0].len() {
            for (raft, values) in self.replicas(group) {
                let mut status = raft.status();
                let commit =
                    self.replicas(group).iter().map(|(r, _)| r.status().borrow().commit).max();
                status.wait_for(|status| Some(status.applied) >= commit).await.unwrap();
                assert!((0..keys).all(|key| values.number(key) == rounds), "group {group}");
                assert!(
                    status.borrow().snapshot > 0,
                    "the journal is smaller than what was written"
                );
            }
        }
        self.no_halt();
        for node in &self.nodes {
            node.shutdown().await;
        }
    }
}

/// Writes until it is acknowledged.
async fn put(replicas: &[(Raft, Values)], key: u64, number: u64) {
    // By the clock of the machine: journals have threads, for which no paused clock waits.
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_secs(240) {
        for (raft, _) in replicas {
            assert_eq!(raft.stopped(), None);
            let leads = raft.status().borrow().role == Role::Leader;
            if leads && raft.propose(write(key, number)).await.is_ok() {
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("key {key} was never written");
}

/// Keys of each of so many groups, which together fill one part of the journal.
fn keys(part: u64, groups: u64) -> u64 {
    MAX / part / (VALUE as u64 + 64) / groups
}

#[tokio::test]
async fn a_third_of_the_journal_is_overwritten_for_ever() {
    World::new(1, 1).await.overwrite(keys(3, 1), 4).await;
}

#[tokio::test]
async fn many_groups_on_one_journal_share_its_room() {
    World::new(1, 17).await.overwrite(keys(4, 17), 12).await;
}

#[tokio::test]
async fn three_nodes_overwrite_what_their_journals_hold() {
    World::new(3, 1).await.overwrite(keys(4, 1), 6).await;
}

#[tokio::test]
async fn three_nodes_of_many_groups_overwrite_what_their_journals_hold() {
    World::new(3, 17).await.overwrite(keys(4, 17), 6).await;
}

/// Groups whose logs are small take no snapshot to make room, unless it is all that there is: they
/// hold it together, and have nothing to do that would make them look.
#[tokio::test(start_paused = true)]
async fn groups_at_rest_give_room_to_others() {
    let (mut options, groups) = (options(), 300);
    (options.segment_bytes, options.max_bytes) = (1 << 20, 24 << 20);
    let journal = Journal::open_with(Arc::new(MemoryFiles::new()), options).unwrap();
    let node = Node::start(NodeConfig::default(), Network::new().node(1)).unwrap();
    let mut rafts = Vec::new();
    for group in 0..=groups {
        let (store, values) = (create(&journal, 1, group), Values::default());
        let raft = node.start_group(config(1, 1, group), store, Box::new(values.clone())).await;
        rafts.push((raft.unwrap(), values));
    }
    let (last, resting) = rafts.split_last().unwrap();
    let mut full = resting.iter();
    while journal.room_bytes() > 4 << 20 {
        // 60 KiB of log, and next to no state.
        // Some may have made room already.
        let Some(one) = full.next() else { break };
        for number in 1..=12 {
            let command = write(1, number).slice(..5 << 10);
            while one.0.propose(command.clone()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
    for key in 0..64 {
        put(std::slice::from_ref(last), key, 1).await;
    }
    assert!(rafts.iter().all(|(raft, _)| raft.stopped().is_none()));
    node.shutdown().await;
}

/// A store that does not say what room it has: entries meet the full journal.
struct Blind(JournalStore);

#[async_trait]
impl LogStore for Blind {
    fn max_entry_bytes(&self) -> usize {
        self.0.max_entry_bytes()
    }

    async fn restore(&self) -> Result<Restored, StoreError> {
        self.0.restore().await
    }

    fn write(&self, write: LogWrite, done: Completion) {
        self.0.write(write, done);
    }

    async fn read(&self, range: Range<u64>, max_bytes: u64) -> Result<Vec<Entry>, ReadFailed> {
        self.0.read(range, max_bytes).await
    }

    async fn stage(&self, name: &SnapshotName) -> Result<Box<dyn SnapshotWriter>, StoreError> {
        self.0.stage(name).await
    }

    fn unstage(&self, identity: u64) {
        self.0.unstage(identity);
    }

    async fn open_snapshot(&self) -> Result<Option<Box<dyn SnapshotReader>>, StoreError> {
        self.0.open_snapshot().await
    }
}

/// Nodes of one group that do not see the room they have, with the journal of each.
async fn blind(nodes: u64) -> Vec<(Raft, Values, Journal)> {
    let (network, mut all) = (Network::new(), Vec::new());
    for id in 1..=nodes {
        let (journal, values) = (journal(), Values::default());
        let store = Arc::new(Blind(JournalStore::create(&journal, identity(id, 1)).unwrap()));
        let mut config = config(id, nodes, 1);
        config.proposal_timeout = Duration::from_secs(600);
        let machine = Box::new(values.clone());
        let raft = Raft::start(config, store, machine, network.node(id)).await.unwrap();
        all.push((raft, values, journal));
    }
    all
}

/// Another user of the journal takes all its room.
fn fill(journal: &Journal) {
    let other = journal.log("other", 1).unwrap();
    for bytes in [VALUE, 4096, 64] {
        let record = vec![7; bytes];
        while journal.commit_blocking(Commit::new().append(&other, [&record])).is_ok() {}
    }
}

/// And gives it back.
fn give_back(journal: &Journal) {
    let other = journal.log("other", 1).unwrap();
    journal.commit_blocking(Commit::new().release(&other, other.end())).unwrap();
}

#[tokio::test]
async fn a_write_waits_while_another_user_has_all_the_room() {
    let nodes = blind(1).await;
    let (raft, values, journal) = nodes[0].clone();
    let replicas = [(raft.clone(), values.clone())];
    put(&replicas, 1, 1).await;
    fill(&journal);
    let propose = |number| {
        let raft = raft.clone();
        tokio::spawn(async move { raft.propose(write(2, number)).await })
    };
    let waiting: Vec<_> = (1..=20).map(propose).collect();
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(raft.stopped(), None);
    assert_eq!(values.number(2), 0, "nothing fits");
    give_back(&journal);
    for proposal in waiting {
        proposal.await.unwrap().unwrap();
    }
    put(&replicas, 1, 2).await;
    assert_eq!(values.number(1), 2);
    assert_ne!(values.number(2), 0);
    raft.shutdown().await;
}

#[tokio::test]
async fn a_leader_without_room_for_long_hands_over_and_a_group_without_room_goes_on() {
    let nodes = blind(3).await;
    let replicas: Vec<(Raft, Values)> =
        nodes.iter().map(|(raft, values, _)| (raft.clone(), values.clone())).collect();
    put(&replicas, 1, 1).await;
    let leads = |(raft, _): &(Raft, Values)| raft.status().borrow().role == Role::Leader;
    let at = replicas.iter().position(leads).unwrap_or(0);
    let (old, journal) = (&nodes[at].0, &nodes[at].2);
    fill(journal);
    // The others write it, and then the one that cannot leads no more.
    put(&replicas, 1, 2).await;
    old.status().wait_for(|now| now.role != Role::Leader).await.unwrap();
    put(&replicas, 1, 3).await;
    assert_eq!(old.stopped(), None);
    // Nobody has room: nothing is acknowledged, and nobody halts.
    for (_, _, journal) in &nodes {
        fill(journal);
    }
    let write = tokio::spawn({
        let replicas = replicas.clone();
        async move { put(&replicas, 2, 1).await }
    });
    for (raft, ..) in &nodes {
        raft.status().wait_for(|now| now.role != Role::Leader).await.unwrap();
    }
    for (_, _, journal) in &nodes {
        give_back(journal);
    }
    write.await.unwrap();
    put(&replicas, 1, 4).await;
    let last = replicas.iter().map(|(raft, _)| raft.status().borrow().commit).max();
    for (raft, values) in &replicas {
        raft.status().wait_for(|now| Some(now.durable.min(now.applied)) >= last).await.unwrap();
        assert_eq!((values.number(1), values.number(2)), (4, 1));
        assert_eq!(raft.stopped(), None);
    }
    for (raft, _) in &replicas {
        raft.shutdown().await;
    }
}

const PLENTY: Room = Room { bytes: 1 << 30, max_bytes: 4 << 30, share: 1 << 29 };
const NONE: Room = Room { bytes: 0, max_bytes: 4 << 30, share: 64 << 10 };

fn rejected(lab: &Lab, token: u64) -> bool {
    let is_busy = |output: &Output| match output {
        Output::Rejected { token: of, reason: ProposeRejected::Busy } => *of == token,
        _ => false,
    };
    !lab.seen(1, is_busy).is_empty()
}

#[test]
fn a_leader_without_room_takes_no_proposals_and_leads_on() {
    let mut lab = Lab::new(3);
    lab.elect(1);
    lab.step(1, Input::Room { room: NONE });
    lab.propose(1, 1, "x");
    assert!(rejected(&lab, 1));
    lab.run(5_000 * MS);
    assert_eq!(lab.leader(), Some(1));
    lab.step(1, Input::Room { room: PLENTY });
    lab.propose(1, 2, "y");
    lab.run(200 * MS);
    assert!(!rejected(&lab, 2));
    assert_eq!(lab.commands(2), ["y"]);
}

/// What is in a log that has filled its store is committed by an entry of the next leader, and
/// released behind a snapshot of it.
#[test]
fn a_leader_begins_without_room() {
    let mut lab = Lab::new(1);
    lab.step(1, Input::Room { room: NONE });
    lab.elect(1);
    lab.run(100 * MS);
    assert_eq!((lab.status(1).commit, lab.status(1).applied), (1, 1));
    lab.propose(1, 1, "x");
    assert!(rejected(&lab, 1));
}

#[test]
fn a_follower_without_room_votes_and_writes_no_entries() {
    let mut lab = Lab::new(3);
    lab.elect(1);
    lab.step(2, Input::Room { room: NONE });
    lab.propose(1, 1, "x");
    lab.run(1_000 * MS);
    let (leader, follower) = (lab.status(1), lab.status(2));
    assert_eq!(leader.commit, leader.last, "the other two are a majority");
    assert_eq!(follower.durable, leader.last - 1);
    lab.elect(3);
    assert_eq!(lab.status(2).term, lab.status(3).term);
    lab.step(2, Input::Room { room: PLENTY });
    lab.run(1_000 * MS);
    assert_eq!(lab.status(2).durable, lab.status(3).last);
    assert_eq!(lab.commands(2), ["x"]);
}

/// Its vote would wait behind them, and with it the leader who makes room by a commit.
#[test]
fn a_new_term_forgets_entries_that_wait_for_room() {
    let mut lab = Lab::new(3);
    lab.elect(1);
    lab.node_mut(2).fast_disk = false;
    lab.propose(1, 1, "x");
    lab.settle_without(|letter| letter.to != 2);
    let (last, durable) = (lab.status(2).last, lab.status(2).durable);
    assert_eq!(last, durable + 1, "it is on its way to the disk");
    lab.step(2, Input::Room { room: NONE });
    lab.isolate(1);
    let term = lab.status(2).term;
    lab.send(1, 2, Message::TimeoutNow { term });
    assert_eq!((lab.status(2).role, lab.status(2).last), (Role::Candidate, durable));
    lab.sync(2);
    // A candidate says what it has, and no more.
    let asked = lab.take(|letter| matches!(letter.message, Message::Vote(_)));
    assert!(!asked.is_empty());
    for letter in asked {
        let Message::Vote(question) = letter.message else { continue };
        assert_eq!(question.last_index, durable);
    }
}

#[test]
fn a_log_with_more_than_its_share_is_cut_early() {
    let mut lab = Lab::new(1);
    lab.elect(1);
    let asked = |lab: &Lab| lab.seen(1, |output| matches!(output, Output::TakeSnapshot)).len();
    lab.propose(1, 1, &"x".repeat(4096));
    lab.step(1, Input::Room { room: Room { share: 1 << 20, ..PLENTY } });
    assert_eq!(asked(&lab), 0);
    lab.step(1, Input::Room { room: Room { share: 4096, ..PLENTY } });
    assert_eq!(asked(&lab), 1);
    // One that failed is not tried again at once.
    lab.step(1, Input::SnapshotFailed);
    lab.step(1, Input::Room { room: NONE });
    assert_eq!(asked(&lab), 1);
    lab.run(2_000 * MS);
    lab.step(1, Input::Room { room: NONE });
    assert_eq!(asked(&lab), 2);
    // Without room nothing is kept behind it.
    let (term, index) = (lab.status(1).term, lab.status(1).applied);
    let members = lab.core(1).members().clone();
    let meta = voussoir_raft::SnapshotMeta { index, term, members };
    lab.step(1, Input::SnapshotTaken { meta });
    assert_eq!(lab.status(1).first, index + 1);
}

/// Lets time pass, with the leader's reads from its store, and counts the appends with entries that
/// are handed to `to`.
fn appends_to(lab: &mut Lab, to: u64, rounds: u64) -> u64 {
    let count = Cell::new(0);
    for _ in 0..rounds {
        lab.run_without(20 * MS, |letter| {
            let is_append = |message: &Message| match message {
                Message::Append { entries, .. } => !entries.is_empty(),
                _ => false,
            };
            count.set(count.get() + u64::from(letter.to == to && is_append(&letter.message)));
            false
        });
        for id in lab.ids() {
            lab.fetched(id);
        }
    }
    count.get()
}

/// Node 3 has no room and holds all that one leader had under way to it, and then another one
/// leads. Returns how many entries are in the log.
fn a_follower_holds_a_window(max_window_bytes: u64) -> (Lab, u64) {
    let mut lab = Lab::with(3, move |config| {
        (config.max_append_bytes, config.max_inflight_bytes) = (2 << 10, 8 << 10);
        (config.max_append_entries, config.max_window_bytes) = (2, max_window_bytes);
    });
    lab.elect(1);
    lab.step(3, Input::Room { room: NONE });
    let command = "x".repeat(1 << 10);
    for token in 0..20 {
        lab.propose(1, token, &command);
    }
    appends_to(&mut lab, 3, 10);
    lab.elect(2);
    for token in 20..60 {
        lab.propose(2, token, &command);
    }
    (lab, 60)
}

fn goes_on_when_there_is_room(mut lab: Lab, commands: u64) {
    assert_eq!(lab.status(2).commit, lab.status(2).last, "two are a majority");
    // It is asked every 1.6 seconds, eight times `resend_interval`, with one entry.
    let sent = appends_to(&mut lab, 3, 250);
    assert!((1..=4).contains(&sent), "{sent} appends in five seconds");
    assert_eq!(lab.leader(), Some(2));
    lab.step(3, Input::Room { room: PLENTY });
    appends_to(&mut lab, 3, 50);
    assert_eq!(lab.status(3).durable, lab.status(2).last);
    assert_eq!(lab.commands(3).len() as u64, commands);
}

#[test]
fn a_follower_that_holds_enough_is_asked_at_the_leaders_pace() {
    let (mut lab, commands) = a_follower_holds_a_window(1 << 20);
    appends_to(&mut lab, 3, 50);
    goes_on_when_there_is_room(lab, commands);
}

#[test]
fn entries_from_the_store_go_to_a_full_follower_at_the_leaders_pace() {
    let (mut lab, commands) = a_follower_holds_a_window(1 << 10);
    appends_to(&mut lab, 3, 50);
    assert!(lab.core(2).entries(10..11).is_err(), "the entries have left memory");
    goes_on_when_there_is_room(lab, commands);
}

/// Proposes to whoever leads, ten times a second, and looks which node leads after each. The
/// heartbeats are `joined` where a node sends those of many groups together.
fn leaders_while_somebody_proposes(lab: &mut Lab, seconds: u64, joined: bool) -> Vec<u64> {
    let mut leaders = Vec::new();
    for token in 0..seconds * 10 {
        if let Some(leader) = lab.leader() {
            lab.propose(leader, token, "x");
        }
        for _ in 0..5 {
            lab.run(20 * MS);
            for id in lab.ids().into_iter().filter(|_| joined) {
                lab.step(id, Input::Beat);
            }
        }
        leaders.extend(lab.leader());
    }
    leaders.dedup();
    leaders
}

#[test]
fn a_leader_that_stays_without_room_hands_over_to_one_that_has_some() {
    let mut lab = Lab::new(3);
    lab.elect(1);
    lab.step(1, Input::Room { room: NONE });
    // Nobody asks for anything: no reason to elect another one.
    lab.run(5_000 * MS);
    assert_eq!(lab.leader(), Some(1));
    let leaders = leaders_while_somebody_proposes(&mut lab, 2, false);
    assert_eq!(leaders.len(), 1, "it leaves its place with the first proposal: {leaders:?}");
    assert_ne!(leaders, [1]);
    assert_eq!(lab.commands(leaders[0]).len(), 20 - 1, "all but the first are taken");
}

#[test]
fn a_leader_without_room_on_a_node_of_many_groups_hands_over() {
    let mut lab = Lab::new(3);
    lab.elect(1);
    lab.step(1, Input::Room { room: NONE });
    let leaders = leaders_while_somebody_proposes(&mut lab, 3, true);
    assert_eq!(leaders.len(), 2, "{leaders:?}");
    assert!(lab.commands(leaders[1]).len() >= 10);
}

#[test]
fn a_short_lack_of_room_costs_no_leader_its_place() {
    let mut lab = Lab::new(3);
    lab.elect(1);
    for _ in 0..10 {
        lab.step(1, Input::Room { room: NONE });
        lab.run(100 * MS);
        for token in 0..8 {
            lab.propose(1, token, "x");
            lab.run(100 * MS);
        }
        lab.step(1, Input::Room { room: PLENTY });
        lab.run(100 * MS);
    }
    assert_eq!(lab.leader(), Some(1));
}

#[test]
fn nodes_without_room_do_not_pass_the_lead_around() {
    let mut lab = Lab::new(3);
    lab.elect(1);
    // Votes and the first entry of a term can be written, and proposals are turned away.
    let little = Room { bytes: 1 << 20, ..NONE };
    for id in lab.ids() {
        lab.step(id, Input::Room { room: little });
    }
    let leaders = leaders_while_somebody_proposes(&mut lab, 60, false);
    assert!((3..=12).contains(&leaders.len()), "{leaders:?}");
    // A sole voter keeps its place.
    let mut lab = Lab::new(1);
    lab.elect(1);
    let term = lab.status(1).term;
    lab.step(1, Input::Room { room: NONE });
    assert_eq!(leaders_while_somebody_proposes(&mut lab, 5, false), [1]);
    assert_eq!(lab.status(1).term, term);
}
