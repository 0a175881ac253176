//! Lives of a cluster: applications on all nodes send to a topic and read it as one group, while
//! nodes are killed, lose power and are cut off. The ledger is exact.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};
use voussoir_queue::backend::replicated::Replicated;
use voussoir_queue::backend::{Backend, BackendError, Consumer, Position, Producer, Subscription};
use voussoir_queue::format::MAX_UNPACKED_BYTES;
use voussoir_queue::raft::ReplicatedPartition;
use voussoir_queue::{Outcome, Record};
use voussoir_sim::Situations;

use super::nodes::{Cluster, MS, NODES};

const PARTITIONS: u32 = 2;
const ROUNDS: u32 = 24;

static SITUATIONS: [&str; 20] = [
    "a node was killed",
    "a node lost power",
    "all nodes lost power",
    "the leader of the table was lost",
    "a node was cut off",
    "a node was heard and did not hear",
    "a send was dropped",
    "a send was unknown",
    "what was unknown is in the log",
    "what was unknown is not in the log",
    "a member of an earlier generation was refused",
    "a commit was unknown",
    "records came again",
    "a commit was on its way when the leader of the table moved",
    "a send was on its way when the leader of a partition moved",
    "a member had records that another one was given",
    "the client of a follower committed",
    "a topic was deleted while a node was away",
    "a topic was created again",
    "the group read on while its topic's neighbour went",
];

#[derive(Default)]
struct Ledger {
    next_value: u64,
    acknowledged: BTreeMap<(u32, u64), String>,
    /// Sent, and not known to be there or not.
    unknown: BTreeSet<String>,
    dropped: BTreeSet<String>,
    /// By partition: the offset behind what was committed, as far as that was acknowledged.
    committed: BTreeMap<u32, u64>,
    /// By partition: what some member was given.
    given: BTreeMap<u32, BTreeSet<u64>>,
    /// Members, and partitions of which they have records that they have not committed.
    holding: BTreeSet<(u64, u32)>,
    sends_on_their_way: u32,
    commits_on_their_way: u32,
    /// The side topic has been there and was deleted.
    was_deleted: bool,
}

/// What the applications share.
#[derive(Clone)]
struct World {
    ledger: Arc<Mutex<Ledger>>,
    situations: Arc<Situations>,
}

#[test]
fn no_life_of_a_cluster_loses_doubles_or_goes_back() {
    let number = |name: &str| -> Option<u64> {
        std::env::var(name).ok().map(|text| text.parse().expect("a number"))
    };
    let situations = Arc::new(Situations::new(&SITUATIONS));
    if let Some(seed) = number("VOUSSOIR_SEED") {
        return play(seed, &situations);
    }
    for seed in 0..number("VOUSSOIR_CLUSTER_SEEDS").unwrap_or(8) {
        println!("seed {seed}: VOUSSOIR_SEED={seed} cargo test -p voussoir-queue --test cluster");
        play(seed, &situations);
    }
    println!("{situations}");
    situations.assert_all_reached();
}

fn play(seed: u64, situations: &Arc<Situations>) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().expect("a runtime");
    let world = World { ledger: Arc::default(), situations: Arc::clone(situations) };
    runtime.block_on(live(seed, world));
}

async fn live(seed: u64, world: World) {
    let mut rng = Rng::with_seed(seed);
    let mut cluster = Cluster::new(seed + 1_000, 1_500 * MS).await;
    cluster.settled().await;
    until(|| async { cluster.queue(1).create_topic("t", PARTITIONS).await }).await;
    for _ in 0..ROUNDS {
        round(&mut cluster, &mut rng, &world).await;
    }
    cluster.network.heal();
    for id in NODES {
        if !cluster.running.contains_key(&id) {
            cluster.start(id).await;
        }
    }
    finish(&cluster, &world).await;
    judge(&cluster, &world).await;
    for id in NODES {
        cluster.kill(id, false);
    }
}

/// Tries again what may fail while leaders change.
async fn until<T, F>(mut attempt: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, BackendError>>,
{
    // Ends: when a majority is there for long enough.
    for _ in 0..100 {
        match attempt().await {
            Ok(done) => return done,
            // The topic may not be known here yet.
            Err(BackendError::UnknownTopic { .. }) => {}
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
        sleep(100 * MS).await;
    }
    panic!("it never succeeds");
}

/// Applications work on all nodes that run, while something befalls some of them.
async fn round(cluster: &mut Cluster, rng: &mut Rng, world: &World) {
    let sleeper = (rng.u8(..) < 80).then(|| rng.u64(1..=3));
    let ms = if sleeper.is_some() { rng.u64(3_500..6_000) } else { rng.u64(200..1_500) };
    let ends = Instant::now() + Duration::from_millis(ms);
    {
        let mut ledger = world.ledger.lock();
        ledger.holding.clear();
        // Those of applications that died.
        (ledger.sends_on_their_way, ledger.commits_on_their_way) = (0, 0);
    }
    let mut tasks: BTreeMap<u64, [JoinHandle<()>; 2]> = BTreeMap::new();
    for (id, running) in &cluster.running {
        let (queue, seed) = (running.queue.clone(), rng.u64(..));
        let sending = tokio::spawn(send(queue.clone(), world.clone(), seed, ends));
        let is_slow = sleeper == Some(*id);
        let reading = tokio::spawn(consume(queue, world.clone(), seed, is_slow, ends));
        tasks.insert(*id, [sending, reading]);
    }
    let lost = trouble(cluster, rng, world, ends).await;
    for (id, tasks) in tasks {
        for task in tasks {
            if lost.contains(&id) {
                // The application dies with its node. What it has sent is unknown.
                task.abort();
            } else {
                task.await.expect("the application works");
            }
        }
    }
    cluster.network.heal();
    for id in lost {
        cluster.start(id).await;
    }
}

/// Returns the nodes that do not run any more.
async fn trouble(
    cluster: &mut Cluster,
    rng: &mut Rng,
    world: &World,
    ends: Instant,
) -> BTreeSet<u64> {
    let left = ends.saturating_duration_since(Instant::now());
    sleep(left.mul_f64(rng.f64() * 0.6)).await;
    let reached = |name| world.situations.reached(name);
    let leader = cluster.leader();
    let any = rng.u64(1..=3);
    let mut lost = BTreeSet::new();
    match rng.u8(..18) {
        0 | 1 => {
            reached("a node was killed");
            lost.insert(any);
            cluster.kill(any, false);
        }
        2..=4 => {
            let id = leader.unwrap_or(any);
            reached("a node lost power");
            lost.insert(id);
            cluster.kill(id, true);
        }
        5 => {
            reached("all nodes lost power");
            for id in NODES {
                lost.insert(id);
                cluster.kill(id, true);
            }
        }
        6 | 7 => {
            reached("a node was cut off");
            cluster.network.isolate(if rng.bool() { any } else { leader.unwrap_or(any) });
        }
        8 | 9 => {
            reached("a node was heard and did not hear");
            let id = leader.unwrap_or(any);
            for other in NODES.into_iter().filter(|other| *other != id) {
                cluster.network.cut(other, id);
            }
        }
        10 | 11 => {
            let is_busy = |ledger: &Ledger| ledger.commits_on_their_way > 0;
            if busy(world, is_busy).await
                && move_leader(cluster, rng, |q| Some(q.table().clone())).await
            {
                reached("a commit was on its way when the leader of the table moved");
            }
        }
        12 | 13 => {
            let partition = rng.u32(..PARTITIONS);
            let is_busy = |ledger: &Ledger| ledger.sends_on_their_way > 0;
            let part = |queue: &Replicated| queue.partition("t", partition);
            if busy(world, is_busy).await && move_leader(cluster, rng, part).await {
                reached("a send was on its way when the leader of a partition moved");
            }
        }
        14 | 15 => {
            lost.insert(any);
            cluster.kill(any, rng.bool());
            change_side_topic(cluster, any, world).await;
        }
        _ => {}
    }
    if leader.is_some_and(|leader| lost.contains(&leader)) {
        reached("the leader of the table was lost");
    }
    if rng.bool() {
        sleep(Duration::from_millis(rng.u64(0..2_500))).await;
        cluster.network.heal();
    }
    sleep_until(ends).await;
    lost
}

/// Waits until something is under way, for a short time.
async fn busy(world: &World, is_busy: impl Fn(&Ledger) -> bool) -> bool {
    for _ in 0..300 {
        if is_busy(&world.ledger.lock()) {
            return true;
        }
        sleep(MS).await;
    }
    false
}

/// Has another node lead a group. Returns whether it does.
async fn move_leader(
    cluster: &Cluster,
    rng: &mut Rng,
    part: impl Fn(&Replicated) -> Option<ReplicatedPartition>,
) -> bool {
    let Some(leader) = cluster.leader_of(&part) else { return false };
    let Some(moved) = part(&cluster.queue(leader)) else { return false };
    let to = NODES[(leader as usize + rng.usize(..2)) % 3];
    moved.raft().transfer_leadership(Some(to), Instant::now() + 1_000 * MS).await.is_ok()
}

/// Deletes a second topic, or creates it, while a node is away.
async fn change_side_topic(cluster: &Cluster, away: u64, world: &World) {
    let Some(running) = cluster.running.iter().find(|(id, _)| **id != away) else { return };
    let queue = running.1.queue.clone();
    if queue.partition("u", 0).is_some() {
        match queue.delete_topic("u").await {
            Ok(()) => {
                world.situations.reached("a topic was deleted while a node was away");
                world.ledger.lock().was_deleted = true;
            }
            // It may have been deleted by an attempt whose outcome is unknown.
            Err(BackendError::UnknownTopic { .. }) => {}
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
    } else {
        match queue.create_topic("u", 2).await {
            Ok(()) => {
                if world.ledger.lock().was_deleted {
                    world.situations.reached("a topic was created again");
                }
                let Ok(producer) = queue.producer().await else { return };
                drop(producer.send_one("u", Record::new("of no interest")).await);
            }
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
    }
}

/// Sends records, and notes what becomes of them.
async fn send(queue: Replicated, world: World, seed: u64, ends: Instant) {
    let mut rng = Rng::with_seed(seed);
    let Ok(producer) = queue.producer().await else { return };
    // Ends: with the round.
    while Instant::now() < ends {
        let values: Vec<String> = {
            let mut ledger = world.ledger.lock();
            let first = ledger.next_value;
            ledger.next_value += rng.u64(1..4);
            (first..ledger.next_value).map(|value| value.to_string()).collect()
        };
        world.ledger.lock().unknown.extend(values.iter().cloned());
        let record = |value: &String| Record::new(value.clone()).key(rng.u8(..8).to_string());
        let records = values.iter().map(record).collect();
        let began = Instant::now();
        world.ledger.lock().sends_on_their_way += 1;
        let answers = producer.send("t", records).await;
        {
            let mut ledger = world.ledger.lock();
            ledger.sends_on_their_way = ledger.sends_on_their_way.saturating_sub(1);
        }
        // A topic that the node does not know yet takes an attempt to find out.
        assert!(began.elapsed() < 4_000 * MS, "no answer for {:?}", began.elapsed());
        note(&world, values, answers);
        sleep(Duration::from_millis(rng.u64(1..120))).await;
    }
}

fn note(world: &World, values: Vec<String>, answers: Vec<Result<Position, BackendError>>) {
    let mut ledger = world.ledger.lock();
    for (value, answer) in values.into_iter().zip(answers) {
        let outcome = match answer {
            Ok(at) => {
                ledger.unknown.remove(&value);
                let before = ledger.acknowledged.insert((at.partition, at.offset), value);
                assert_eq!(before, None, "{at:?} was given twice");
                continue;
            }
            Err(error) => error.outcome(),
        };
        match outcome {
            Outcome::NotApplied => {
                world.situations.reached("a send was dropped");
                ledger.unknown.remove(&value);
                ledger.dropped.insert(value);
            }
            Outcome::Unknown => world.situations.reached("a send was unknown"),
        }
    }
}

/// Reads as a member of the group, and commits.
async fn consume(queue: Replicated, world: World, seed: u64, is_slow: bool, ends: Instant) {
    let mut rng = Rng::with_seed(seed);
    let has_both = queue.partition("u", 0).is_some() && rng.bool();
    let topics = if has_both { &["t", "u"][..] } else { &["t"] };
    let mut subscription = Subscription::new("g", topics.iter().copied());
    subscription.processing_timeout = 2_000 * MS;
    subscription.max_poll_records = rng.usize(1..9);
    let Ok(consumer) = queue.consumer(subscription).await else { return };
    let mut member = Member { queue, id: seed, has_both, world, consumer, since: BTreeMap::new() };
    let mut has_slept = false;
    // Ends: with the round.
    while Instant::now() < ends {
        // Time passes also where nothing waits: on a node that has stopped.
        sleep(Duration::from_millis(rng.u64(1..20))).await;
        member.take(rng.u64(0..300)).await;
        if is_slow && !member.since.is_empty() && !has_slept {
            has_slept = true;
            sleep(3_000 * MS).await;
        }
        if rng.u8(..) < 20 {
            member.consumer.rewind().await.expect("it goes back");
            member.put_down();
        } else if rng.u8(..) < 180 {
            member.commit().await;
        }
    }
    member.put_down();
    if rng.bool() {
        drop(member.consumer.close().await);
    }
}

/// A member of the group.
struct Member {
    queue: Replicated,
    id: u64,
    /// It reads the second topic, too.
    has_both: bool,
    world: World,
    consumer: Box<dyn Consumer>,
    /// By partition: the offset behind what it was given and has not committed.
    since: BTreeMap<u32, u64>,
}

impl Member {
    async fn take(&mut self, wait_ms: u64) {
        let came = match self.consumer.poll(Duration::from_millis(wait_ms)).await {
            Ok(came) => came,
            Err(error) => {
                assert!(error.is_retryable(), "{error}");
                return sleep(50 * MS).await;
            }
        };
        let reached = |name| self.world.situations.reached(name);
        let mut ledger = self.world.ledger.lock();
        for read in came.into_iter().filter(|read| &*read.topic == "t") {
            if self.has_both && self.queue.partition("u", 0).is_none() {
                reached("the group read on while its topic's neighbour went");
            }
            let at = read.position;
            let committed = ledger.committed.get(&at.partition).copied().unwrap_or(0);
            assert!(at.offset >= committed, "{at:?} comes again, {committed} is committed");
            let is_new = ledger.given.entry(at.partition).or_default().insert(at.offset);
            if !is_new {
                reached("records came again");
            }
            let is_others =
                |(id, partition): &(u64, u32)| *id != self.id && *partition == at.partition;
            if ledger.holding.iter().any(is_others) {
                reached("a member had records that another one was given");
            }
            ledger.holding.insert((self.id, at.partition));
            self.since.insert(at.partition, at.offset + 1);
        }
    }

    /// It has no records any more that it has not committed.
    fn put_down(&mut self) {
        self.since.clear();
        self.world.ledger.lock().holding.retain(|(id, _)| *id != self.id);
    }

    async fn commit(&mut self) {
        self.world.ledger.lock().commits_on_their_way += 1;
        let result = self.consumer.commit().await;
        let done = std::mem::take(&mut self.since);
        self.put_down();
        let reached = |name| self.world.situations.reached(name);
        let mut ledger = self.world.ledger.lock();
        ledger.commits_on_their_way = ledger.commits_on_their_way.saturating_sub(1);
        match result {
            Ok(()) => {
                let status = self.queue.table().raft().status();
                let status = status.borrow();
                if !done.is_empty() && status.leader.is_some_and(|leader| leader != status.id) {
                    reached("the client of a follower committed");
                }
                for (partition, offset) in done {
                    let stored = ledger.committed.entry(partition).or_default();
                    *stored = offset.max(*stored);
                }
            }
            Err(BackendError::Lost { .. }) => {
                reached("a member of an earlier generation was refused");
            }
            Err(error) => {
                assert!(error.is_retryable(), "{error}");
                if error.outcome() == Outcome::Unknown {
                    reached("a commit was unknown");
                }
            }
        }
    }
}

/// Everything is read to the end.
async fn finish(cluster: &Cluster, world: &World) {
    let queue = cluster.queue(1);
    let producer: Arc<dyn Producer> = until(|| queue.producer()).await;
    let value = |number: u32| format!("last {number}");
    for number in 0..8 {
        let record = || Record::new(value(number)).key(number.to_string());
        // Unknown outcomes make it several records.
        let mut attempts = 0;
        let at = until(|| {
            attempts += 1;
            let value = format!("{} attempt {attempts}", value(number));
            world.ledger.lock().unknown.insert(value.clone());
            let (producer, mut record) = (Arc::clone(&producer), record());
            record.value = Some(value.into());
            async move { producer.send_one("t", record).await }
        });
        let at = at.await;
        let value = format!("{} attempt {attempts}", value(number));
        let mut ledger = world.ledger.lock();
        ledger.unknown.remove(&value);
        ledger.acknowledged.insert((at.partition, at.offset), value);
    }
    let mut subscription = Subscription::new("g", ["t"]);
    subscription.processing_timeout = 2_000 * MS;
    let consumer = until(|| queue.consumer(subscription.clone())).await;
    let (world, since) = (world.clone(), BTreeMap::new());
    let mut member = Member { queue, id: u64::MAX, has_both: false, world, consumer, since };
    let until = Instant::now() + Duration::from_secs(60);
    // Ends: when all that was acknowledged is committed.
    loop {
        let is_done = {
            let ledger = member.world.ledger.lock();
            ledger.acknowledged.keys().all(|(partition, offset)| {
                ledger.committed.get(partition).is_some_and(|committed| committed > offset)
            })
        };
        if is_done {
            return;
        }
        assert!(Instant::now() < until, "the group is stuck");
        member.take(500).await;
        member.commit().await;
    }
}

/// What was acknowledged is there, at its place; nothing is there twice; what was dropped is not;
/// the group has skipped nothing; and nothing is left of a topic that was deleted.
async fn judge(cluster: &Cluster, world: &World) {
    let until = Instant::now() + Duration::from_secs(60);
    // Ends: when the nodes have come to know all changes.
    while !has_what_topics_have(cluster) {
        let groups = NODES.map(|id| cluster.groups(id));
        assert!(Instant::now() < until, "groups that run and are stored: {groups:?}");
        sleep(100 * MS).await;
    }
    let mut logs = Vec::new();
    for id in NODES {
        logs.push(log_of(&cluster.queue(id)).await);
    }
    assert!(logs.windows(2).all(|two| two[0] == two[1]), "the nodes differ");
    let log = logs.remove(0);
    let ledger = world.ledger.lock();
    for (at, value) in &ledger.acknowledged {
        assert_eq!(log.get(at), Some(value), "{at:?} was acknowledged");
    }
    let there: BTreeSet<&String> = log.values().collect();
    assert_eq!(there.len(), log.len(), "a record is in the log twice");
    let dropped: Vec<_> = ledger.dropped.iter().filter(|value| there.contains(value)).collect();
    assert!(dropped.is_empty(), "in the log, though they were dropped: {dropped:?}");
    for value in &ledger.unknown {
        let is_there = there.contains(value);
        let name = if is_there { "what was unknown is in the log" } else { SITUATIONS[9] };
        world.situations.reached(name);
    }
    for (partition, committed) in &ledger.committed {
        let given = ledger.given.get(partition).cloned().unwrap_or_default();
        let skipped: Vec<_> = (0..*committed).filter(|offset| !given.contains(offset)).collect();
        assert!(skipped.is_empty(), "partition {partition}: {skipped:?} are committed, not read");
    }
}

/// Whether all nodes run, and store, the groups of the partitions of the same topics, and no
/// others.
fn has_what_topics_have(cluster: &Cluster) -> bool {
    let has_side_topic = cluster.queue(1).partition("u", 0).is_some();
    let partitions = PARTITIONS as usize + if has_side_topic { 2 } else { 0 };
    let first = cluster.groups(1);
    first.0.len() == 1 + partitions
        && NODES.into_iter().all(|id| cluster.groups(id) == first)
        && first.0 == first.1
}

/// All records that a node shows.
async fn log_of(queue: &Replicated) -> BTreeMap<(u32, u64), String> {
    let mut log = BTreeMap::new();
    for partition in 0..PARTITIONS {
        let part = queue.partition("t", partition).expect("it has started");
        part.sync(Instant::now() + 20_000 * MS).await.expect("a majority is there");
        let (reader, mut at) = (part.reader(), 0);
        // Ends: each fetch before the end has at least one batch.
        while at < reader.offsets().end {
            let fetched = reader.fetch(at, 1 << 20).expect("it can be read");
            for record in fetched.records(MAX_UNPACKED_BYTES) {
                let record = record.expect("a record");
                let value = record.value.unwrap_or_default().to_vec();
                log.insert((partition, record.offset), String::from_utf8(value).expect("text"));
            }
            at = fetched.next_offset;
        }
    }
    log
}
