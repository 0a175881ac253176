//! Many groups on one node, on paused time and a network in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::{Instant, sleep};
use voussoir_raft::memory::{MemoryStore, Network};
use voussoir_raft::{
    AttachError, Chunks, Command, Config, Inbox, MachineError, Message, NODE_GROUP, Node,
    NodeConfig, NodeStats, Raft, Role, SendError, SnapshotAnswer, SnapshotPart, StartError,
    StateMachine, Transport, WholeSnapshot,
};

/// Counts commands, and answers with the number.
struct Counter(u64);

#[async_trait]
impl StateMachine for Counter {
    async fn apply(&mut self, commands: &[Command]) -> Result<Vec<Bytes>, MachineError> {
        let mut answers = Vec::new();
        for _ in commands {
            self.0 += 1;
            answers.push(Bytes::from(self.0.to_string()));
        }
        Ok(answers)
    }

    fn is_quick(&self) -> bool {
        true
    }

    async fn snapshot(&mut self) -> Result<Box<dyn Chunks>, MachineError> {
        Ok(Box::new(WholeSnapshot::new(self.0.to_string())))
    }

    async fn restore(&mut self, chunks: &mut dyn Chunks) -> Result<(), MachineError> {
        let state = WholeSnapshot::collect(chunks).await?;
        self.0 = std::str::from_utf8(&state)?.parse()?;
        Ok(())
    }
}

/// Three nodes with the same groups.
struct Cluster {
    network: Network,
    nodes: BTreeMap<u64, Node>,
    stores: BTreeMap<(u64, u64), MemoryStore>,
    tune: fn(&mut Config),
    config: NodeConfig,
}

impl Cluster {
    async fn new(groups: u64, tune: fn(&mut Config)) -> Self {
        Self::with(NodeConfig::default(), groups, tune).await
    }

    async fn with(config: NodeConfig, groups: u64, tune: fn(&mut Config)) -> Self {
        let mut cluster = Self::empty(config, tune);
        for id in 1..=3 {
            cluster.start(id, groups).await;
        }
        cluster
    }

    fn empty(config: NodeConfig, tune: fn(&mut Config)) -> Self {
        let (nodes, stores) = (BTreeMap::new(), BTreeMap::new());
        Self { network: Network::new(), nodes, stores, tune, config }
    }

    async fn start(&mut self, id: u64, groups: u64) {
        let node = Node::start(self.config.clone(), self.network.node(id)).unwrap();
        self.nodes.insert(id, node);
        for group in 1..=groups {
            self.start_group(id, group).await.unwrap();
        }
    }

    fn config(&self, id: u64, group: u64) -> Config {
        let mut config = Config::new(id, [1, 2, 3]);
        (config.group, config.seed) = (group, Some(group * 7 + id));
        (self.tune)(&mut config);
        config
    }

    async fn start_group(&mut self, id: u64, group: u64) -> Result<Raft, StartError> {
        let store = self.stores.entry((id, group)).or_default().clone();
        let config = self.config(id, group);
        self.nodes[&id].start_group(config, Arc::new(store), Box::new(Counter(0))).await
    }

    fn raft(&self, id: u64, group: u64) -> Raft {
        self.nodes[&id].group(group).unwrap()
    }

    /// The node that leads a group, if any other than `but` does.
    fn leader(&self, group: u64, but: u64) -> Option<u64> {
        let leads = |id: &u64| {
            let raft = self.nodes[id].group(group);
            raft.is_some_and(|raft| raft.status().borrow().role == Role::Leader)
        };
        self.nodes.keys().copied().filter(|id| *id != but).find(leads)
    }

    /// Waits for leaders of all groups on other nodes than `but`; returns how long that took.
    async fn led(&self, groups: std::ops::RangeInclusive<u64>, but: u64) -> Duration {
        let began = Instant::now();
        while groups.clone().any(|group| self.leader(group, but).is_none()) {
            sleep(Duration::from_millis(5)).await;
            assert!(began.elapsed() < Duration::from_secs(30), "not led");
        }
        began.elapsed()
    }

    fn rests(&self, id: u64, group: u64) -> bool {
        self.raft(id, group).status().borrow().is_quiesced
    }

    /// Waits until all groups rest on all nodes.
    async fn all_rest(&self, groups: u64) {
        let began = Instant::now();
        let ids = || self.nodes.keys().flat_map(|id| (1..=groups).map(|group| (*id, group)));
        while !ids().all(|(id, group)| self.rests(id, group)) {
            sleep(Duration::from_millis(20)).await;
            assert!(began.elapsed() < Duration::from_secs(60), "they do not come to rest");
        }
    }

    fn stats(&self) -> Vec<NodeStats> {
        self.nodes.values().map(Node::stats).collect()
    }

    fn turns(&self, groups: u64) -> u64 {
        let ids = self.nodes.keys().flat_map(|id| (1..=groups).map(|group| (*id, group)));
        ids.map(|(id, group)| self.raft(id, group).stats().turns).sum()
    }
}

fn never_rests(config: &mut Config) {
    config.quiesce_after = None;
}

fn rests_soon(config: &mut Config) {
    config.quiesce_after = Some(Duration::from_millis(200));
}

#[tokio::test(start_paused = true)]
async fn one_message_per_peer_and_tick_carries_all_heartbeats() {
    const GROUPS: u64 = 60;
    let cluster = Cluster::new(GROUPS, never_rests).await;
    cluster.led(1..=GROUPS, 0).await;
    sleep(Duration::from_secs(1)).await;
    let before = cluster.stats();
    sleep(Duration::from_secs(10)).await;
    for (before, after) in before.iter().zip(cluster.stats()) {
        let messages = after.messages_sent - before.messages_sent;
        let beats = after.beats_sent - before.beats_sent;
        // 200 ticks, two peers: one message with the heartbeats, one with the answers.
        assert!((400..=820).contains(&messages), "{messages} messages");
        assert_eq!(after.sends_failed, before.sends_failed);
        // Each group beats 200 times to two peers, and each answers: on all three nodes together.
        let share = 200 * 4 * GROUPS / 3;
        assert!(beats > share / 8, "{beats} beats");
    }
    let all = |stats: &[NodeStats]| stats.iter().map(|stats| stats.beats_sent).sum::<u64>();
    let beats = all(&cluster.stats()) - all(&before);
    let expected = 200 * 4 * GROUPS;
    assert!(beats.abs_diff(expected) < expected / 10, "{beats} beats, and not {expected}");
}

#[tokio::test(start_paused = true)]
async fn groups_at_rest_run_nothing_and_send_nothing() {
    const GROUPS: u64 = 40;
    let cluster = Cluster::new(GROUPS, rests_soon).await;
    cluster.led(1..=GROUPS, 0).await;
    cluster.all_rest(GROUPS).await;
    // Timers that were set before ring once more.
    sleep(Duration::from_secs(5)).await;
    let (stats, turns) = (cluster.stats(), cluster.turns(GROUPS));
    sleep(Duration::from_secs(60)).await;
    assert_eq!(cluster.turns(GROUPS), turns, "a loop has run");
    for (before, after) in stats.iter().zip(cluster.stats()) {
        assert_eq!(after.beats_sent, before.beats_sent);
        let messages = after.messages_sent - before.messages_sent;
        assert!((2380..=2420).contains(&messages), "one per peer and tick: {messages}");
        assert_eq!((after.groups, after.beating), (GROUPS as usize, 0));
    }
    // One group wakes, and no other.
    let leader = cluster.leader(7, 0).unwrap();
    let raft = cluster.raft(leader, 7);
    assert_eq!(raft.propose(Bytes::from_static(b"x")).await.unwrap(), "1");
    let rest = |group| (1..=3).filter(|id| cluster.rests(*id, group)).count();
    assert_eq!(rest(7), 0);
    assert!((1..=GROUPS).filter(|group| *group != 7).all(|group| rest(group) == 3));
    let follower = leader % 3 + 1;
    let deadline = Instant::now() + Duration::from_secs(5);
    cluster.raft(follower, 9).read(deadline).await.unwrap();
    cluster.all_rest(GROUPS).await;
    for id in 1..=3 {
        assert_eq!(cluster.raft(id, 7).status().borrow().applied, 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_stopped_at_rest_is_replaced_while_its_node_lives() {
    let cluster = Cluster::new(4, rests_soon).await;
    cluster.led(1..=4, 0).await;
    cluster.all_rest(4).await;
    let leader = cluster.leader(2, 0).unwrap();
    assert!(cluster.nodes[&leader].stop_group(2).await);
    assert!(!cluster.nodes[&leader].stop_group(2).await, "it is gone");
    let took = cluster.led(2..=2, leader).await;
    assert!(took < Duration::from_millis(900), "{took:?}");
    for group in [1, 3, 4] {
        let resting = (1..=3).filter(|id| cluster.rests(*id, group)).count();
        assert_eq!(resting, 3, "group {group} was disturbed");
    }
}

#[tokio::test(start_paused = true)]
async fn the_groups_of_a_node_that_is_cut_off_at_rest_are_led_elsewhere() {
    const GROUPS: u64 = 9;
    let cluster = Cluster::new(GROUPS, rests_soon).await;
    cluster.led(1..=GROUPS, 0).await;
    cluster.all_rest(GROUPS).await;
    let leader = cluster.leader(1, 0).unwrap();
    cluster.network.isolate(leader, 1..=3);
    let took = cluster.led(1..=GROUPS, leader).await;
    assert!(took > Duration::from_millis(300), "nobody can know yet: {took:?}");
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!(cluster.nodes[&leader].peers().iter().all(|peer| !peer.is_alive));
    // The one that was cut off finds out, and follows again when it is back.
    sleep(Duration::from_secs(2)).await;
    assert_eq!(cluster.raft(leader, 1).status().borrow().leader, None);
    cluster.network.heal();
    cluster.all_rest(GROUPS).await;
    assert!(cluster.nodes[&leader].peers().iter().all(|peer| peer.is_alive));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_starts_again_at_once_is_noticed() {
    let mut cluster = Cluster::new(6, rests_soon).await;
    cluster.led(1..=6, 0).await;
    cluster.all_rest(6).await;
    let leader = cluster.leader(3, 0).unwrap();
    // Its process dies without a word, and the next one has only four of the groups.
    let old = cluster.nodes.remove(&leader).unwrap();
    cluster.network.isolate(leader, 1..=3);
    old.shutdown().await;
    cluster.network.heal();
    let node = Node::start(NodeConfig::default(), cluster.network.node(leader)).unwrap();
    cluster.nodes.insert(leader, node);
    for group in [1, 2, 4, 5] {
        cluster.start_group(leader, group).await.unwrap();
    }
    let took = cluster.led(1..=6, 0).await;
    assert!(took < Duration::from_millis(1500), "{took:?}");
    assert_ne!(cluster.leader(3, 0), Some(leader));
    let noticed: u64 = cluster.stats().iter().map(|stats| stats.nodes_restarted).sum();
    assert!(noticed >= 2, "{noticed}");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_shut_down_says_so() {
    let cluster = Cluster::new(6, rests_soon).await;
    cluster.led(1..=6, 0).await;
    cluster.all_rest(6).await;
    let leader = cluster.leader(3, 0).unwrap();
    cluster.nodes[&leader].shutdown().await;
    let took = cluster.led(1..=6, leader).await;
    assert!(took < Duration::from_millis(450), "sooner than a silence is noticed: {took:?}");
}

#[tokio::test(start_paused = true)]
async fn no_group_outlives_its_node() {
    let mut cluster = Cluster::new(2, rests_soon).await;
    cluster.led(1..=2, 0).await;
    let (raft, other) = (cluster.raft(1, 1), cluster.raft(2, 2));
    drop(cluster.nodes.remove(&1));
    sleep(Duration::from_millis(10)).await;
    assert!(raft.stopped().is_some(), "a handle is no node");
    cluster.nodes[&2].shutdown().await;
    assert!(other.stopped().is_some());
    let late = cluster.start_group(2, 9).await.unwrap_err();
    assert!(matches!(late, StartError::Transport(AttachError::Closed)), "{late}");
    assert!(cluster.nodes[&2].groups().is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_machine_of_a_leader_at_rest_is_not_called_fresh() {
    let cluster = Cluster::new(1, rests_soon).await;
    cluster.led(1..=1, 0).await;
    cluster.all_rest(1).await;
    let raft = cluster.raft(cluster.leader(1, 0).unwrap(), 1);
    sleep(Duration::from_secs(100)).await;
    // Its loop turns for something that does not wake it.
    cluster.network.cut(9, raft.status().borrow().id);
    sleep(Duration::from_millis(10)).await;
    assert!(raft.freshness().age.unwrap() > Duration::from_secs(99), "{:?}", raft.freshness());
    raft.read(Instant::now() + Duration::from_secs(1)).await.unwrap();
    assert!(raft.freshness().age.unwrap() < Duration::from_secs(1), "{:?}", raft.freshness());
}

#[tokio::test(start_paused = true)]
async fn groups_come_and_go() {
    let mut cluster = Cluster::new(1, rests_soon).await;
    cluster.led(1..=1, 0).await;
    for id in 1..=3 {
        cluster.start_group(id, 8).await.unwrap();
    }
    cluster.led(8..=8, 0).await;
    assert_eq!(cluster.nodes[&1].groups(), [1, 8]);
    let twice = cluster.start_group(1, 8).await.unwrap_err();
    let attached = AttachError::Attached { group: 8 };
    assert!(matches!(twice, StartError::Transport(error) if error == attached), "{twice}");
    let leader = cluster.leader(8, 0).unwrap();
    cluster.raft(leader, 8).propose(Bytes::from_static(b"x")).await.unwrap();
    for id in 1..=3 {
        assert!(cluster.nodes[&id].stop_group(8).await);
    }
    assert_eq!(cluster.nodes[&1].groups(), [1]);
    assert!(cluster.nodes[&1].group(8).is_none());
    for id in 1..=3 {
        cluster.start_group(id, 8).await.unwrap();
    }
    cluster.led(8..=8, 0).await;
    let leader = cluster.leader(8, 0).unwrap();
    let answer = cluster.raft(leader, 8).propose(Bytes::from_static(b"x")).await.unwrap();
    assert_eq!(answer, "2", "what it had is still there");
    for node in cluster.nodes.values() {
        node.shutdown().await;
        assert!(node.groups().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn few_groups_of_a_node_campaign_at_the_same_time() {
    const GROUPS: u64 = 60;
    let mut config = NodeConfig::default();
    config.max_elections = 2;
    let mut cluster = Cluster::empty(config, rests_soon);
    cluster.start(1, GROUPS).await;
    // The elections of all of them are due, and nobody answers.
    sleep(Duration::from_millis(450)).await;
    let questions: u64 =
        (1..=GROUPS).map(|group| cluster.raft(1, group).stats().messages_sent).sum();
    assert!((4..=20).contains(&questions), "{questions} questions");
    let stats = cluster.nodes[&1].stats();
    assert_eq!((stats.campaigning, stats.waiting_to_campaign), (2, GROUPS as usize - 2));
    cluster.start(2, GROUPS).await;
    cluster.start(3, GROUPS).await;
    let took = cluster.led(1..=GROUPS, 0).await;
    assert!(took < Duration::from_secs(3), "each that ends lets the next one begin: {took:?}");
    cluster.all_rest(GROUPS).await;
    for stats in cluster.stats() {
        assert_eq!((stats.campaigning, stats.waiting_to_campaign), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn elections_that_nobody_answers_do_not_keep_others_waiting() {
    let mut config = NodeConfig::default();
    config.max_elections = 1;
    let mut cluster = Cluster::with(config, 1, rests_soon).await;
    cluster.led(1..=1, 0).await;
    // Groups of which no other node has a part.
    for group in 100..120 {
        cluster.start_group(1, group).await.unwrap();
    }
    sleep(Duration::from_millis(500)).await;
    assert!(cluster.nodes[&1].stats().waiting_to_campaign > 10, "{:?}", cluster.stats());
    // Of this one, node 2 has none.
    for id in [1, 3] {
        cluster.start_group(id, 7).await.unwrap();
    }
    let took = cluster.led(7..=7, 0).await;
    assert!(took < Duration::from_secs(8), "{took:?}");
    // Nor do groups that go keep their places.
    for group in 100..120 {
        cluster.nodes[&1].stop_group(group).await;
    }
    cluster.all_rest(1).await;
    let stats = cluster.nodes[&1].stats();
    assert_eq!((stats.campaigning, stats.waiting_to_campaign), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_node_refuses_what_it_cannot_host() {
    let network = Network::new();
    let mut few = NodeConfig::default();
    few.max_groups = 1;
    let node = Node::start(few, network.node(1)).unwrap();
    let second = Node::start(NodeConfig::default(), network.node(1)).unwrap_err();
    assert!(matches!(second, StartError::Transport(_)), "{second}");
    let start = |config: Config| {
        node.start_group(config, Arc::new(MemoryStore::new()), Box::new(Counter(0)))
    };
    let config = |group| {
        let mut config = Config::new(1, [1]);
        config.group = group;
        config
    };
    let refused = start(config(NODE_GROUP)).await.unwrap_err();
    assert!(matches!(&refused, StartError::Config(error) if error.field == "group"), "{refused}");
    let mut slow = config(1);
    slow.heartbeat_interval = Duration::from_millis(60);
    let refused = start(slow).await.unwrap_err();
    let is_interval = matches!(&refused, StartError::Config(e) if e.field == "heartbeat_interval");
    assert!(is_interval, "{refused}");
    let mut broken = config(1);
    broken.max_reads = 0;
    assert!(matches!(start(broken).await.unwrap_err(), StartError::Config(_)));
    // None of them has left anything behind.
    start(config(1)).await.unwrap();
    let full = start(config(2)).await.unwrap_err();
    assert!(matches!(full, StartError::TooManyGroups { max_groups: 1 }), "{full}");
    node.stop_group(1).await;
    start(config(2)).await.unwrap();
    let broken = [(0, 500, 1, 1), (50, 149, 1, 1), (50, 500, 0, 1), (50, 500, 1, 0)];
    for (interval, suspect, max_groups, max_elections) in broken {
        let mut config = NodeConfig::default();
        config.max_elections = max_elections;
        config.heartbeat_interval = Duration::from_millis(interval);
        config.suspect_after = Duration::from_millis(suspect);
        config.max_groups = max_groups;
        assert!(Node::start(config, network.node(2)).is_err());
    }
    // Dropped without a word, it leaves the transport.
    drop(node);
    sleep(Duration::from_millis(1)).await;
    Node::start(NodeConfig::default(), network.node(1)).unwrap();
}

/// Counts what groups send together.
struct Counting {
    to: Arc<dyn Transport>,
    calls: AtomicU64,
    messages: AtomicU64,
}

#[async_trait]
impl Transport for Counting {
    fn local(&self) -> u64 {
        self.to.local()
    }

    fn attach(&self, group: u64, inbox: Arc<dyn Inbox>) -> Result<(), AttachError> {
        self.to.attach(group, inbox)
    }

    fn detach(&self, group: u64) {
        self.to.detach(group);
    }

    fn send(&self, to: u64, group: u64, message: Message) -> Result<(), SendError> {
        assert!(!matches!(message, Message::Append { .. } | Message::AppendAck(_)), "alone");
        self.to.send(to, group, message)
    }

    fn send_all(&self, to: u64, messages: Vec<(u64, Message)>) -> Result<(), SendError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.messages.fetch_add(messages.len() as u64, Ordering::Relaxed);
        self.to.send_all(to, messages)
    }

    async fn snapshot(
        &self,
        to: u64,
        group: u64,
        part: SnapshotPart,
        timeout: Duration,
    ) -> Result<SnapshotAnswer, SendError> {
        self.to.snapshot(to, group, part, timeout).await
    }
}

#[tokio::test(start_paused = true)]
async fn what_groups_have_for_a_peer_at_the_same_time_goes_together() {
    const GROUPS: u64 = 60;
    let (network, mut wires, mut nodes) = (Network::new(), Vec::new(), Vec::new());
    for id in 1..=3 {
        let (calls, messages) = (AtomicU64::new(0), AtomicU64::new(0));
        let wire = Arc::new(Counting { to: network.node(id), calls, messages });
        let node = Node::start(NodeConfig::default(), Arc::clone(&wire) as _).unwrap();
        for group in 1..=GROUPS {
            let mut config = Config::new(id, [1, 2, 3]);
            (config.group, config.seed) = (group, Some(group * 7 + id));
            let store = Arc::new(MemoryStore::new());
            node.start_group(config, store, Box::new(Counter(0))).await.unwrap();
        }
        wires.push(wire);
        nodes.push(node);
    }
    sleep(Duration::from_secs(3)).await;
    let leads = |raft: &Raft| raft.status().borrow().role == Role::Leader;
    let leaders: Vec<Raft> = (1..=GROUPS)
        .map(|group| nodes.iter().filter_map(|node| node.group(group)).find(leads).unwrap())
        .collect();
    let read = |of: fn(&Counting) -> &AtomicU64| -> u64 {
        wires.iter().map(|wire| of(wire).load(Ordering::Relaxed)).sum()
    };
    let (calls, messages) = (read(|wire| &wire.calls), read(|wire| &wire.messages));
    let mut tasks = tokio::task::JoinSet::new();
    for raft in leaders {
        tasks.spawn(async move { raft.propose(Bytes::from_static(b"x")).await.unwrap() });
    }
    assert_eq!(tasks.join_all().await.len(), GROUPS as usize);
    sleep(Duration::from_millis(1)).await;
    let calls = read(|wire| &wire.calls) - calls;
    let messages = read(|wire| &wire.messages) - messages;
    assert!(messages >= 4 * GROUPS, "an append and an answer for two followers: {messages}");
    assert!(calls * 8 <= messages, "{messages} messages in {calls} calls");
}

/// Whoever does not watch the status sees it as it is, and no timer shows it to nobody.
#[tokio::test(start_paused = true)]
async fn a_command_costs_few_turns_where_nobody_watches() {
    const COMMANDS: u64 = 50;
    let cluster = Cluster::new(1, never_rests).await;
    cluster.led(1..=1, 0).await;
    let raft = cluster.raft(cluster.leader(1, 0).unwrap(), 1);
    sleep(Duration::from_secs(1)).await;
    let before = cluster.turns(1);
    for _ in 0..COMMANDS {
        raft.propose(Bytes::from_static(b"x")).await.unwrap();
        let status = raft.status().borrow().clone();
        assert_eq!(status.applied, status.last, "it is shown before the next turn ends");
        sleep(Duration::from_millis(20)).await;
    }
    let turns = cluster.turns(1) - before;
    println!("{turns} turns of three replicas for {COMMANDS} commands");
    assert!(turns <= COMMANDS * 5, "{turns} turns of three replicas for {COMMANDS} commands");
}

/// Each turn of all that have something to do takes two milliseconds: the processor is short.
async fn take_the_processor() {
    loop {
        tokio::time::advance(Duration::from_millis(2)).await;
    }
}

/// Ten times eight proposals, each of which comes while the round of the one before is under way.
/// Returns how many writes the leader's log took for the 80 entries.
async fn writes_of_bursts(cluster: &Cluster) -> u64 {
    let raft = cluster.raft(cluster.leader(1, 0).unwrap(), 1);
    let before = raft.stats();
    for _ in 0..10 {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let raft = raft.clone();
            tasks.spawn(async move { raft.propose(Bytes::from_static(b"x")).await.unwrap() });
            // Whoever has something to do has a turn.
            tokio::task::yield_now().await;
        }
        tasks.join_all().await;
    }
    let after = raft.stats();
    assert_eq!(after.entries_written - before.entries_written, 80);
    after.writes - before.writes
}

#[tokio::test(start_paused = true)]
async fn many_groups_that_wait_for_the_processor_begin_one_round_after_the_other() {
    let cluster = Cluster::new(90, |config| config.quiesce_after = None).await;
    cluster.led(1..=90, 0).await;
    let free = writes_of_bursts(&cluster).await;
    let hog = tokio::spawn(take_the_processor());
    sleep(Duration::from_millis(500)).await;
    let busy = cluster.nodes[&cluster.leader(1, 0).unwrap()].stats().beating;
    assert!(busy >= 16, "the node leads few groups: {busy}");
    let pressed = writes_of_bursts(&cluster).await;
    hog.abort();
    println!("{pressed} writes of 80 entries, {free} without that");
    assert!(pressed * 5 <= free * 4, "{pressed} writes of 80 entries, {free} without that");
}

/// The node was kept from the processor, or its machine was suspended: what its peers have said
/// waits in the sockets, and its timers ring first.
#[tokio::test(start_paused = true)]
async fn nodes_that_stood_still_keep_their_leaders() {
    let cluster = Cluster::new(60, |config| config.quiesce_after = None).await;
    cluster.led(1..=60, 0).await;
    sleep(Duration::from_secs(2)).await;
    let reigns = |cluster: &Cluster| -> Vec<_> {
        (1..=60).map(|group| cluster.raft(1, group).status().borrow().clone()).collect()
    };
    let before = reigns(&cluster);
    for pause in [350, 450, 700] {
        tokio::time::advance(Duration::from_millis(pause)).await;
        sleep(Duration::from_secs(1)).await;
        for (was, is) in before.iter().zip(reigns(&cluster)) {
            let (was, is) = ((was.term, was.leader), (is.term, is.leader));
            assert_eq!(was, is, "after a pause of {pause} ms");
        }
    }
    // Who is gone is missed all the same, also where every tick is late.
    let late = tokio::spawn(async {
        loop {
            tokio::time::advance(Duration::from_millis(120)).await;
        }
    });
    let gone = cluster.leader(1, 0).unwrap();
    cluster.nodes[&gone].stop_group(1).await;
    cluster.led(1..=1, gone).await;
    late.abort();
}
