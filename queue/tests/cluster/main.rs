//! Replicated topics as a back end: three nodes in this process, on paused time, over journals on
//! disks that lose power and a network whose paths are cut.
//!
//! `VOUSSOIR_CLUSTER_SEEDS` sets the number of lives (8), `VOUSSOIR_SEED` plays one.

mod life;
mod nodes;

use std::sync::Arc;
use std::time::Duration;

use nodes::{Cluster, MS, NODES};
use tokio::time::{Instant, sleep};
use voussoir_net::memory::Faults;
use voussoir_queue::backend::{
    Backend, BackendError, Consumer, Delivery, Need, Producer, Received, Subscription,
};
use voussoir_queue::testing::conformance;
use voussoir_queue::{Murmur2, Outcome, Partitioner, Record, Retention, Start};

const SECOND: Duration = Duration::from_secs(1);

/// Values in the order in which they came.
fn values(came: &[Received]) -> Vec<String> {
    let value = |read: &Received| read.record.value.as_deref().unwrap_or_default().to_vec();
    came.iter().map(|read| String::from_utf8(value(read)).expect("text")).collect()
}

/// Polls until so many records have come.
async fn read(consumer: &mut Box<dyn Consumer>, count: usize) -> Vec<Received> {
    let (mut all, until) = (Vec::new(), Instant::now() + 60 * SECOND);
    while all.len() < count {
        assert!(Instant::now() < until, "{} of {count} came", all.len());
        match consumer.poll(SECOND).await {
            Ok(came) => all.extend(came),
            Err(error) => {
                assert!(error.is_retryable(), "{error}");
                sleep(50 * MS).await;
            }
        }
    }
    all
}

async fn send(producer: &Arc<dyn Producer>, topic: &str, range: std::ops::Range<usize>) {
    let records = range.map(|number| Record::new(number.to_string()).key(number.to_string()));
    for answer in producer.send(topic, records.collect()).await {
        answer.expect("it is stored");
    }
}

/// A key of each of the first two partitions.
fn keys() -> [String; 2] {
    let key = |partition| {
        let is_there = |key: &String| {
            let record = Record::new("").key(key.clone());
            Murmur2.partition("", &record, 2) == Some(partition)
        };
        (0..100).map(|number: u32| number.to_string()).find(is_there).expect("a key")
    };
    [key(0), key(1)]
}

/// The suite of back ends, on a node that follows as on one that leads.
#[tokio::test(start_paused = true)]
async fn the_replicated_queue_conforms() {
    let cluster = Cluster::new(1, 30 * SECOND).await;
    let leader = cluster.settled().await;
    let follower = NODES.into_iter().find(|id| *id != leader).expect("another one");
    for (id, namespace) in [(leader, "leader"), (follower, "follower")] {
        let report = conformance(Arc::new(cluster.queue(id)), namespace).await;
        report.assert_passed();
        assert_eq!(report.refused, ["delivery_counts", "exactly_once", "message_ids"]);
    }
}

/// What one node's application sends, that of another one reads; what its group has read stays so
/// when both are replaced.
#[tokio::test(start_paused = true)]
async fn applications_on_all_nodes_share_topics_and_groups() {
    let mut cluster = Cluster::new(2, 30 * SECOND).await;
    cluster.queue(1).create_topic("t", 3).await.expect("a topic");
    let producer = cluster.queue(2).producer().await.expect("a producer");
    send(&producer, "t", 0..20).await;
    let subscription = Subscription::new("g", ["t"]);
    let mut consumer = cluster.queue(3).consumer(subscription.clone()).await.expect("a member");
    assert_eq!(read(&mut consumer, 20).await.len(), 20);
    consumer.commit().await.expect("it is stored");
    drop(consumer);
    for id in NODES {
        cluster.kill(id, true);
    }
    for id in NODES {
        cluster.start(id).await;
    }
    let mut consumer = cluster.queue(1).consumer(subscription).await.expect("a member");
    let producer = cluster.queue(3).producer().await.expect("a producer");
    send(&producer, "t", 20..22).await;
    let mut came = values(&read(&mut consumer, 2).await);
    came.sort_unstable();
    assert_eq!(came, ["20", "21"], "the rest was read before");
    let other = Arc::new(cluster.queue(2));
    let error = other.create_topic("t", 4).await.expect_err("it has three");
    assert!(matches!(error, BackendError::Mismatch { .. }), "{error}");
}

/// A partition that has lost its majority answers within the time-out whether the record may be in
/// the log, and others go on.
#[tokio::test(start_paused = true)]
async fn a_partition_without_a_majority_holds_up_no_other() {
    let cluster = Cluster::new(3, 5 * SECOND).await;
    let queue = cluster.queue(1);
    queue.create_topic("t", 2).await.expect("a topic");
    let producer = queue.producer().await.expect("a producer");
    let [lost, well] = keys();
    for key in [&lost, &well] {
        producer.send_one("t", Record::new("1").key(key.clone())).await.expect("it is stored");
    }
    let number = |partition| {
        let part = queue.partition("t", partition).expect("it has started");
        let status = part.raft().status();
        let shown = status.borrow();
        shown.group
    };
    for id in [2, 3] {
        cluster.running[&id].node.stop_group(number(0)).await;
    }
    let began = Instant::now();
    let stuck = tokio::spawn({
        let producer = Arc::clone(&producer);
        async move { producer.send_one("t", Record::new("2").key(lost)).await }
    });
    for round in 0..20 {
        let sent = producer.send_one("t", Record::new(round.to_string()).key(well.clone())).await;
        sent.expect("the other partition goes on");
    }
    assert!(began.elapsed() < SECOND, "it was not held up");
    let error = stuck.await.expect("no panic").expect_err("nobody leads");
    assert!(error.is_retryable(), "{error}");
    assert!(began.elapsed() <= 5 * SECOND, "after {:?}", began.elapsed());
}

/// A batch that was lost sight of is in the log at most once, and none that was given up takes the
/// number of a later one.
#[tokio::test(start_paused = true)]
async fn what_was_given_up_takes_no_other_records_place() {
    let mut cluster = Cluster::new(4, SECOND).await;
    cluster.queue(1).create_topic("t", 1).await.expect("a topic");
    let part = |queue: &voussoir_queue::backend::replicated::Replicated| queue.partition("t", 0);
    let mut unknown = 0;
    for round in 0..10 {
        cluster.settled().await;
        let leader = loop {
            match cluster.leader_of(part) {
                Some(leader) => break leader,
                None => sleep(10 * MS).await,
            }
        };
        let producer = cluster.queue(leader).producer().await.expect("a producer");
        let first = producer.send_one("t", Record::new(format!("{round} first"))).await;
        first.expect("it is stored");
        // The others hear the leader, and it does not hear them.
        for id in NODES.into_iter().filter(|id| *id != leader) {
            cluster.network.cut(id, leader);
        }
        let sent = producer.send_one("t", Record::new(format!("{round} second"))).await;
        let error = sent.expect_err("nobody acknowledges it");
        unknown += usize::from(error.outcome() == Outcome::Unknown);
        cluster.network.heal();
        let mut third = Err(BackendError::Unavailable { why: String::new() });
        let until = Instant::now() + 30 * SECOND;
        while third.is_err() {
            assert!(Instant::now() < until, "{third:?}");
            third = producer.send_one("t", Record::new(format!("{round} third"))).await;
            let outcome = third.as_ref().map_or_else(BackendError::outcome, |_| Outcome::Unknown);
            assert!(third.is_ok() || outcome == Outcome::NotApplied, "{third:?}");
        }
        let at = third.expect("it is stored").offset;
        let mut subscription = Subscription::new(&format!("g{round}"), ["t"]);
        subscription.max_poll_records = 1_000;
        let mut reader = cluster.queue(leader).consumer(subscription).await.expect("a member");
        let came = read(&mut reader, usize::try_from(at).expect("small") + 1).await;
        let there = came.iter().find(|read| read.position.offset == at).expect("it is there");
        assert_eq!(values(std::slice::from_ref(there)), [format!("{round} third")]);
    }
    assert!(unknown > 0, "no outcome was unknown");
    for id in NODES {
        cluster.kill(id, false);
    }
}

/// A member that was silent for too long, and whose records another one has, commits nothing; nor
/// does it after the leader of the table was replaced.
#[tokio::test(start_paused = true)]
async fn a_member_of_an_earlier_generation_commits_nothing() {
    for is_replaced in [false, true] {
        let mut cluster = Cluster::new(5, 30 * SECOND).await;
        let leader = cluster.settled().await;
        let mut others = NODES.into_iter().filter(|id| *id != leader);
        let (one, two) = (others.next().expect("one"), others.next().expect("another"));
        cluster.queue(one).create_topic("t", 1).await.expect("a topic");
        let producer = cluster.queue(one).producer().await.expect("a producer");
        send(&producer, "t", 0..5).await;
        let mut subscription = Subscription::new("g", ["t"]);
        subscription.processing_timeout = 2 * SECOND;
        let mut slow = cluster.queue(one).consumer(subscription.clone()).await.expect("a member");
        assert_eq!(read(&mut slow, 5).await.len(), 5);
        if is_replaced {
            cluster.kill(leader, true);
        }
        let mut other = cluster.queue(two).consumer(subscription).await.expect("a member");
        assert_eq!(read(&mut other, 5).await.len(), 5);
        let error = slow.commit().await.expect_err("it is over");
        assert!(matches!(error, BackendError::Lost { .. }), "{error}");
        other.commit().await.expect("it is its own");
    }
}

/// A member whose coordinator is replaced may still commit what it has read, while nobody else was
/// given it.
#[tokio::test(start_paused = true)]
async fn a_commit_outlives_the_coordinator() {
    let mut cluster = Cluster::new(6, 30 * SECOND).await;
    let leader = cluster.settled().await;
    let other = NODES.into_iter().find(|id| *id != leader).expect("another one");
    cluster.queue(other).create_topic("t", 2).await.expect("a topic");
    let producer = cluster.queue(other).producer().await.expect("a producer");
    send(&producer, "t", 0..10).await;
    let subscription = Subscription::new("g", ["t"]);
    let mut member = cluster.queue(other).consumer(subscription).await.expect("a member");
    assert_eq!(read(&mut member, 10).await.len(), 10);
    cluster.kill(leader, true);
    member.commit().await.expect("it is stored");
    send(&producer, "t", 10..12).await;
    let mut came = values(&read(&mut member, 2).await);
    came.sort_unstable();
    assert_eq!(came, ["10", "11"], "what was committed does not come again");
}

/// A leader of the table that is cut off, and does not know it, tells no member that it may read.
#[tokio::test(start_paused = true)]
async fn a_coordinator_that_is_cut_off_lets_nobody_read() {
    let mut cluster = Cluster::new(7, 30 * SECOND).await;
    let (leader, other) = (1, 2);
    cluster.slow = Some(leader);
    cluster.kill(leader, false);
    cluster.start(leader).await;
    cluster.settled().await;
    cluster.queue(leader).create_topic("t", 1).await.expect("a topic");
    let mut subscription = Subscription::new("g", ["t"]);
    subscription.max_poll_records = 1;
    subscription.processing_timeout = 5 * SECOND;
    let producer = cluster.queue(leader).producer().await.expect("a producer");
    send(&producer, "t", 0..100).await;
    let mut zombie = cluster.queue(leader).consumer(subscription.clone()).await.expect("one");
    let mut follower = cluster.queue(other).consumer(subscription).await.expect("a member");
    let soon = || Instant::now() + 10 * SECOND;
    let mut rounds = 0;
    // Ends: when it still leads after its member has read.
    loop {
        let table = cluster.queue(cluster.settled().await).table().clone();
        let _ = table.raft().transfer_leadership(Some(leader), soon()).await;
        read(&mut zombie, 1).await;
        if cluster.leader() == Some(leader) {
            break;
        }
        rounds += 1;
        assert!(rounds < 20, "another one leads each time");
    }
    zombie.rewind().await.expect("it goes back");
    cluster.network.isolate(leader);
    let cut_at = Instant::now();
    let going = tokio::spawn(async move {
        let mut last = None;
        while cut_at.elapsed() < 20 * SECOND {
            // So that there is always something to read.
            zombie.rewind().await.expect("it goes back");
            if let Ok(came) = zombie.poll(50 * MS).await
                && !came.is_empty()
            {
                last = Some(Instant::now());
            }
            sleep(20 * MS).await;
        }
        last
    });
    let came = read(&mut follower, 1).await;
    let given_at = Instant::now();
    assert_eq!(values(&came), ["0"], "nothing was committed");
    let last = going.await.expect("no panic");
    assert!(last > Some(cut_at), "it had nothing to read");
    assert!(last < Some(given_at), "both read: {last:?} and {given_at:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_there_is_refused_by_type() {
    let cluster = Cluster::new(8, 5 * SECOND).await;
    let queue = cluster.queue(1);
    queue.create_topic("t", 1).await.expect("a topic");
    let refused = queue.provides(Need::ExactlyOnce).expect_err("no commit spans two groups");
    let subscription = Subscription::new("g", ["t"]).delivery(Delivery::ExactlyOnce);
    let error = queue.consumer(subscription).await.expect_err("it is refused");
    assert_eq!(error, BackendError::Refused(refused));
    assert_eq!(queue.require(&[Need::SyncedSend, Need::KeyOrder, Need::FencedCommits]), Ok(()));
    // A member with another time-out would be thought dead, or alive, at another time.
    let subscription = Subscription::new("h", ["t"]);
    let mut first = queue.consumer(subscription.clone()).await.expect("a member");
    assert_eq!(first.poll(SECOND).await, Ok(Vec::new()));
    let mut other = subscription;
    other.processing_timeout = 7 * SECOND;
    let mut other = queue.consumer(other).await.expect("it has not joined yet");
    let error = other.poll(SECOND).await.expect_err("members have the same");
    assert!(matches!(error, BackendError::Mismatch { field: "processing_timeout", .. }), "{error}");
}

/// A topic that is deleted goes from every node, also from one that was away, and takes nothing
/// else along: groups that read it go on with their other topics. One of the same name begins anew.
#[tokio::test(start_paused = true)]
async fn a_deleted_topic_goes_from_every_node_and_can_be_created_again() {
    let mut cluster = Cluster::new(9, 5 * SECOND).await;
    let leader = cluster.settled().await;
    let mut others = NODES.into_iter().filter(|id| *id != leader);
    let (here, away) = (others.next().expect("one"), others.next().expect("another"));
    let queue = cluster.queue(here);
    queue.create_topic("t", 2).await.expect("a topic");
    queue.create_topic("u", 1).await.expect("a topic");
    let producer = queue.producer().await.expect("a producer");
    send(&producer, "t", 0..10).await;
    let mut member = queue.consumer(Subscription::new("g", ["t", "u"])).await.expect("a member");
    assert_eq!(read(&mut member, 10).await.len(), 10);
    member.commit().await.expect("it is stored");
    send(&producer, "t", 10..12).await;
    assert_eq!(read(&mut member, 2).await.len(), 2);
    cluster.kill(away, true);

    queue.delete_topic("t").await.expect("it is deleted");
    let unknown = BackendError::UnknownTopic { topic: "t".to_owned() };
    assert_eq!(queue.delete_topic("t").await, Err(unknown.clone()));
    assert_eq!(producer.send_one("t", Record::new("late")).await, Err(unknown.clone()));
    let refused = queue.consumer(Subscription::new("h", ["t"])).await;
    assert_eq!(refused.err(), Some(unknown));
    send(&producer, "u", 20..21).await;
    let came = member.poll(SECOND).await.expect("no error for what was deleted");
    assert_eq!(values(&came), ["20"]);
    member.commit().await.expect("what is left of it is stored");

    queue.create_topic("t", 3).await.expect("another topic");
    send(&producer, "t", 30..40).await;
    let came = read(&mut member, 10).await;
    let mut numbers = values(&came);
    numbers.sort_unstable();
    let expected: Vec<_> = (30..40).map(|number| number.to_string()).collect();
    assert_eq!(numbers, expected, "nothing of the old topic, and all of the new one");
    assert!(came.iter().any(|read| read.position.offset == 0), "offsets begin anew");
    member.commit().await.expect("it is stored");

    cluster.start(away).await;
    // The table, the second topic and the new one: no number is used again.
    let expected = vec![0, 3, 4, 5, 6];
    let until = Instant::now() + 30 * SECOND;
    for id in NODES {
        // Ends: when the node has come to know of it.
        while cluster.groups(id) != (expected.clone(), expected.clone()) {
            assert!(Instant::now() < until, "node {id}: {:?}", cluster.groups(id));
            sleep(100 * MS).await;
        }
    }
}

/// What retention does not keep goes on every node, whoever is asked to apply it; the rest stays.
#[tokio::test(start_paused = true)]
async fn retention_is_applied_by_whoever_leads() {
    let mut cluster = Cluster::new(10, 5 * SECOND).await;
    let queue = cluster.queue(1);
    queue.create_topic("t", 2).await.expect("a topic");
    queue.create_topic("kept", 1).await.expect("a topic");
    let producer = queue.producer().await.expect("a producer");
    let mut at = Vec::new();
    for number in 0..200 {
        let record = |key: u32| Record::new(vec![7; 1_000]).key(key.to_string());
        at.push(producer.send_one("t", record(number)).await.expect("it is stored"));
        producer.send_one("kept", record(number)).await.expect("it is stored");
    }
    let unknown = queue.set_retention("none", Retention::default()).await;
    assert!(matches!(unknown, Err(BackendError::UnknownTopic { .. })), "{unknown:?}");
    let mut retention = Retention::default();
    retention.max_bytes = Some(20_000);
    queue.set_retention("t", retention).await.expect("it is set");
    // The nodes are others since.
    for id in NODES {
        cluster.kill(id, true);
    }
    for id in NODES {
        cluster.start(id).await;
    }
    let apply = async |cluster: &Cluster, now_ms: i64| {
        for id in NODES {
            let failed = cluster.queue(id).apply_retention(now_ms).await;
            assert!(failed.is_empty(), "{failed:?}");
        }
    };
    let offsets = async |cluster: &Cluster, topic: &str, partition: u32| {
        let mut seen = Vec::new();
        for id in NODES {
            let part = loop {
                match cluster.queue(id).partition(topic, partition) {
                    Some(part) => break part,
                    None => sleep(10 * MS).await,
                }
            };
            part.sync(Instant::now() + 10 * SECOND).await.expect("a majority is there");
            seen.push(part.reader().offsets());
        }
        assert!(seen.windows(2).all(|two| two[0] == two[1]), "{seen:?}");
        seen.remove(0)
    };
    for partition in 0..2 {
        offsets(&cluster, "t", partition).await;
    }
    apply(&cluster, 0).await;
    for partition in 0..2 {
        let kept = offsets(&cluster, "t", partition).await;
        let sent = at.iter().filter(|at| at.partition == partition).count() as u64;
        assert_eq!(kept.end, sent);
        let left = kept.end - kept.start;
        assert!((19..=21).contains(&left), "{left} of {sent} records of 1,000 bytes are left");
    }
    assert_eq!(offsets(&cluster, "kept", 0).await, 0..200);

    retention.max_age = Some(3_600 * SECOND);
    cluster.queue(2).set_retention("t", retention).await.expect("it is set");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after");
    let now_ms = i64::try_from(now.as_millis()).expect("it fits");
    apply(&cluster, now_ms).await;
    assert!(!offsets(&cluster, "t", 0).await.is_empty(), "they are young");
    apply(&cluster, now_ms + 2 * 3_600_000).await;
    assert!(offsets(&cluster, "t", 0).await.is_empty(), "they are old");
    assert_eq!(offsets(&cluster, "kept", 0).await, 0..200);
    // A group that begins at the beginning, and one that stands before it, read what is left.
    let mut member = cluster.queue(3).consumer(Subscription::new("g", ["t"])).await.expect("one");
    let producer = cluster.queue(3).producer().await.expect("a producer");
    send(&producer, "t", 0..4).await;
    assert_eq!(read(&mut member, 4).await.len(), 4);
}

/// A node that was cut off for so long that the table no longer says what was deleted meanwhile
/// sees that it is not there.
#[tokio::test(start_paused = true)]
async fn a_node_that_has_missed_a_deletion_deletes_the_topic_all_the_same() {
    let cluster = Cluster::new(11, 5 * SECOND).await;
    let leader = cluster.settled().await;
    let away = NODES.into_iter().find(|id| *id != leader).expect("another one");
    let queue = cluster.queue(leader);
    for topic in ["t", "u"] {
        queue.create_topic(topic, 1).await.expect("a topic");
    }
    let until = Instant::now() + 30 * SECOND;
    // Ends: when the node has come to know of them.
    while cluster.groups(away).0 != [0, 1, 2] {
        assert!(Instant::now() < until, "{:?}", cluster.groups(away));
        sleep(10 * MS).await;
    }
    let before = cluster.queue(away).table().reader().offsets().end;
    cluster.network.isolate(away);
    queue.delete_topic("t").await.expect("it is deleted");
    // Ends: when the log of the table has been cleaned.
    while queue.table().reader().offsets().start <= before {
        drop(queue.producer().await.expect("an id of it"));
    }
    cluster.network.heal();
    let until = Instant::now() + 60 * SECOND;
    // Ends: when the node has come to know of it.
    while cluster.groups(away) != (vec![0, 2], vec![0, 2]) {
        assert!(Instant::now() < until, "{:?}", cluster.groups(away));
        sleep(100 * MS).await;
    }
    assert!(cluster.queue(away).partition("t", 0).is_none());
}

/// A group that begins at the end begins there in many partitions, over slow links.
#[tokio::test(start_paused = true)]
async fn a_group_begins_at_the_end_of_many_partitions_over_slow_links() {
    let cluster = Cluster::new(12, 30 * SECOND).await;
    let leader = cluster.settled().await;
    let other = NODES.into_iter().find(|id| *id != leader).expect("another one");
    let queue = cluster.queue(other);
    queue.create_topic("t", 24).await.expect("a topic");
    let producer = queue.producer().await.expect("a producer");
    send(&producer, "t", 0..100).await;
    cluster.network.set_all_faults(Faults::delay(60 * MS, 60 * MS));
    let mut subscription = Subscription::new("g", ["t"]);
    subscription.start = Start::Latest;
    let mut member = queue.consumer(subscription).await.expect("a member");
    let until = Instant::now() + 10 * SECOND;
    while Instant::now() < until {
        match member.poll(100 * MS).await {
            Ok(came) => assert_eq!(came, [], "it begins at the end"),
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
    }
    send(&producer, "t", 100..200).await;
    let mut came: Vec<usize> =
        values(&read(&mut member, 100).await).iter().map(|value| value.parse().unwrap()).collect();
    came.sort_unstable();
    assert_eq!(came, (100..200).collect::<Vec<_>>());
}

/// A partition that nobody leads keeps no group from the others.
#[tokio::test(start_paused = true)]
async fn a_group_begins_beside_a_partition_that_nobody_leads() {
    let cluster = Cluster::new(13, 5 * SECOND).await;
    let queue = cluster.queue(1);
    queue.create_topic("t", 2).await.expect("a topic");
    let producer = queue.producer().await.expect("a producer");
    let [lost, well] = keys();
    for key in [&lost, &well] {
        producer.send_one("t", Record::new("old").key(key.clone())).await.expect("it is stored");
    }
    let group = {
        let part = queue.partition("t", 0).expect("it has started");
        part.raft().status().borrow().group
    };
    for id in [2, 3] {
        cluster.running[&id].node.stop_group(group).await;
    }
    let mut subscription = Subscription::new("g", ["t"]);
    subscription.start = Start::Latest;
    let mut member = queue.consumer(subscription).await.expect("a member");
    let until = Instant::now() + 5 * SECOND;
    while Instant::now() < until {
        if let Ok(came) = member.poll(100 * MS).await {
            assert_eq!(came, [], "it begins at the end");
        }
    }
    // It goes on, and is never without the right to read.
    for number in 0..50 {
        let value = number.to_string();
        producer.send_one("t", Record::new(value.clone()).key(well.clone())).await.expect("stored");
        let came = member.poll(500 * MS).await.expect("it may read");
        assert_eq!(values(&came), [value]);
        sleep(100 * MS).await;
    }
}
