//! Whose word counts: nodes and disks of other clusters, copies that went on by themselves, and
//! epochs that have passed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use voussoir_quorum::table::TableConfig;
use voussoir_quorum::*;

use super::clients;
use super::scenes::{LONG, change, ids, registers, three};
use super::world::{Start, World, node_config};

const OURS: Lineage = Lineage::new(0xa);
const THEIRS: Lineage = Lineage::new(0xb);

fn config(lineage: Lineage) -> NodeConfig {
    let mut config = node_config([1, 2, 3]);
    config.lineage = lineage;
    config
}

async fn three_of(lineage: Lineage) -> Arc<World> {
    let world = World::new(1, config(lineage));
    for id in 1..=3 {
        world.start(id, Start::Create).await;
    }
    world
}

/// Mounts the disk of a node of `from` at the node of the same id of `to`, which then runs on it.
async fn mount(from: &Arc<World>, to: &Arc<World>, id: u64) -> Node {
    to.crash(id);
    to.put_back(id, from.records(id).await).await;
    to.start_of(id, Start::Again, node_config([1, 2, 3])).await
}

async fn disk_with(records: BTreeMap<Bytes, Bytes>) -> Arc<MemoryStore> {
    let disk = Arc::new(MemoryStore::new());
    let change = |(key, record)| store::Change { key, record: Some(record) };
    disk.apply(records.into_iter().map(change).collect()).await.unwrap();
    disk
}

async fn records_of(disk: &MemoryStore) -> BTreeMap<Bytes, Bytes> {
    disk.scan(b"", b"", usize::MAX).await.unwrap().into_iter().collect()
}

fn table(world: &Arc<World>, id: u64, lineage: Lineage) -> Table {
    let mut config = TableConfig::with_replicas([1, 2, 3]);
    (config.timeout, config.lineage) = (Duration::from_millis(300), lineage);
    Table::new(config, world.link(id)).unwrap()
}

/// Ids and epochs are equal. Without names the replica of the other cluster counts, which is how
/// this test knows that it can see it.
#[tokio::test(start_paused = true)]
async fn a_replica_of_another_cluster_is_not_heard() {
    for (ours, theirs) in [(Lineage::UNNAMED, Lineage::UNNAMED), (OURS, THEIRS)] {
        let (world, other) = (three_of(ours).await, three_of(theirs).await);
        let (known, client) = (table(&world, 100, Lineage::UNNAMED), registers(&world, 101));
        let seen = known.put_blind("k", "v").await.unwrap();
        client.put("r", "v").await.unwrap();
        let stranger = mount(&other, &world, 3).await;
        assert!(stranger.is_whole());
        world.crash(2);
        let put = known.put("k", seen.context(), "w").await;
        let changed = client.put("r", "w").await;
        if ours == theirs {
            assert!(put.is_ok() && changed.is_ok(), "{put:?} {changed:?}");
            continue;
        }
        let error = TableError::OtherCluster { node: 3, lineage: THEIRS };
        assert_eq!(known.get("k").await, Err(error.clone()));
        assert!(!error.is_retryable() && error.outcome() == table::Outcome::NotApplied);
        // The primary has it: it may become visible.
        assert_eq!(put.unwrap_err().outcome(), table::Outcome::Unknown);
        // So has the acceptor that is left.
        assert!(matches!(changed, Err(RegisterError::Unknown(_))), "{changed:?}");
        let error = RegisterError::OtherCluster { node: 3, lineage: THEIRS };
        assert_eq!(client.get("r").await, Err(error));
        // Nothing of it has arrived at the stranger, also by no repair.
        sleep(Duration::from_secs(10)).await;
        let held = world.records(3).await;
        assert!(!held.keys().any(|key| key.starts_with(b"tk") || key.starts_with(b"pr")));
        let heard = world.node(1).unwrap().strangers();
        assert!(heard.answers > 0 && heard.requests > 0, "{heard:?}");
        assert_eq!(heard.last.unwrap().lineage, THEIRS);
        assert!(stranger.strangers().requests > 0);
        // Its own replica comes back, and has what it held.
        world.crash(3);
        world.start(2, Start::Again).await;
        known.put("k", seen.context(), "x").await.unwrap();
    }
}

/// A client that is given the addresses of another cluster, and one that is given a name.
#[tokio::test(start_paused = true)]
async fn a_client_that_names_its_cluster_takes_no_other() {
    let (world, other) = (three_of(OURS).await, three_of(THEIRS).await);
    let error = TableError::OtherCluster { node: 1, lineage: THEIRS };
    let wrong = table(&other, 100, OURS).put_blind("k", "v").await.unwrap_err();
    assert_eq!(std::mem::discriminant(&wrong), std::mem::discriminant(&error), "{wrong:?}");
    let mut register = RegisterConfig::with_acceptors([1, 2, 3]);
    (register.timeout, register.lineage) = (Duration::from_millis(300), OURS);
    let wrong = Registers::new(101, register.clone(), other.link(101)).unwrap();
    let wrong = wrong.get("r").await.unwrap_err();
    assert!(matches!(wrong, RegisterError::OtherCluster { lineage: THEIRS, .. }), "{wrong:?}");
    assert!(!wrong.is_retryable());
    // Two of the three addresses lead to the other cluster.
    for id in [2, 3] {
        mount(&other, &world, id).await;
    }
    let right = table(&world, 102, OURS);
    assert!(right.get("k").await.is_err());
    assert_eq!(right.membership().lineage(), OURS, "the one that is left has told");
    let right = Registers::new(103, register, world.link(103)).unwrap().get("r").await.unwrap_err();
    assert!(matches!(right, RegisterError::OtherCluster { lineage: THEIRS, .. }), "{right:?}");
}

/// A cluster is copied with its disks, and both go on: each replaces node 3 by its own node 4. The
/// epochs are equal, the members are, and so is the name.
#[tokio::test(start_paused = true)]
async fn a_copy_that_went_on_by_itself_is_not_heard() {
    let (world, copy) = (three_of(OURS).await, three_of(OURS).await);
    let replace = MemberChange::Replace { old: 3, new: 4 };
    for world in [&world, &copy] {
        world.start(4, Start::Join).await;
        let after = change(world, 1, replace, LONG).await.unwrap();
        assert_eq!((after.epoch(), ids(&after)), (3, vec![1, 2, 4]));
    }
    let known = table(&world, 100, OURS);
    known.put_blind("k", "v").await.unwrap();
    // The disk of the copy is mounted.
    mount(&copy, &world, 2).await;
    world.crash(4);
    assert_eq!(known.get("k").await, Err(TableError::OtherCluster { node: 2, lineage: OURS }));
    // A later epoch of the copy is not taken, either: it has another past.
    copy.start(5, Start::Join).await;
    let after = change(&copy, 1, MemberChange::Replace { old: 4, new: 5 }, LONG).await.unwrap();
    assert_eq!(after.epoch(), 5);
    copy.crash(2);
    world.crash(2);
    world.put_back(2, copy.records(2).await).await;
    world.start_of(2, Start::Again, node_config([1, 2, 3])).await;
    assert_eq!(known.get("k").await, Err(TableError::OtherCluster { node: 2, lineage: OURS }));
    sleep(Duration::from_secs(20)).await;
    assert_eq!(world.node(1).unwrap().membership().borrow().epoch(), 3);
    assert_eq!((known.membership().epoch(), ids(&known.membership())), (3, vec![1, 2, 4]));
}

/// A copy is given a name of its own, and changes its replicas under it, although its disks hold
/// what the original has decided.
#[tokio::test(start_paused = true)]
async fn a_copy_is_given_a_name_of_its_own() {
    let world = three_of(OURS).await;
    let known = table(&world, 100, OURS);
    known.put_blind("k", "v").await.unwrap();
    sleep(Duration::from_secs(1)).await;
    let copy = World::new(2, config(THEIRS));
    let mut disks = Vec::new();
    for id in 1..=3 {
        disks.push((id, world.records(id).await));
    }
    // What follows epoch 1 is decided when the copy is made, and nobody has heard of it yet.
    world.start(4, Start::Join).await;
    change(&world, 1, MemberChange::Replace { old: 3, new: 4 }, LONG).await.unwrap();
    for (id, mut records) in disks {
        let decided = world.records(id).await;
        records.extend(decided.into_iter().filter(|(key, _)| key.starts_with(b"p")));
        let disk = disk_with(records).await;
        let store: Arc<dyn ReplicaStore> = disk.clone();
        let wrong = Node::start(id, Arc::clone(&store), config(THEIRS)).await.unwrap_err();
        assert_eq!(wrong, StartError::OtherCluster { found: OURS, expected: THEIRS });
        let unnamed = Node::set_lineage(id, &store, &config(Lineage::UNNAMED)).await;
        assert!(matches!(unnamed, Err(StartError::Config(_))));
        Node::set_lineage(id, &store, &config(THEIRS)).await.unwrap();
        copy.put_back(id, records_of(&disk).await).await;
        copy.start(id, Start::Again).await;
    }
    assert_eq!(copy.node(1).unwrap().membership().borrow().lineage(), THEIRS);
    assert!(table(&copy, 101, OURS).get("k").await.is_err());
    let value = table(&copy, 102, THEIRS).get("k").await.unwrap();
    assert_eq!(value.values().count(), 1);
    copy.start(4, Start::Join).await;
    let after = change(&copy, 1, MemberChange::Replace { old: 3, new: 4 }, LONG).await.unwrap();
    assert_eq!(ids(&after), [1, 2, 4]);
}

/// A store of a version without lineages goes on without one, and is not taken for one of a named
/// cluster.
#[tokio::test(start_paused = true)]
async fn a_store_without_a_name_is_told_apart() {
    let world = three().await;
    table(&world, 100, Lineage::UNNAMED).put_blind("k", "v").await.unwrap();
    for id in 1..=3 {
        world.crash(id);
        let records = world.records(id).await;
        assert_eq!(records[&Bytes::from("v")][0], 1, "as versions before wrote it");
        let disk = disk_with(records).await;
        let store: Arc<dyn ReplicaStore> = disk.clone();
        let refused = Node::start(id, Arc::clone(&store), config(OURS)).await.unwrap_err();
        assert_eq!(refused, StartError::NoLineage { node: id });
        Node::set_lineage(id, &store, &config(OURS)).await.unwrap();
        world.put_back(id, records_of(&disk).await).await;
        world.start_of(id, Start::Again, config(OURS)).await;
    }
    assert_eq!(table(&world, 101, OURS).get("k").await.unwrap().values().count(), 1);
    let unnamed = table(&world, 102, THEIRS).get("k").await.unwrap_err();
    assert!(matches!(unnamed, TableError::OtherCluster { lineage: OURS, .. }), "{unnamed:?}");
}

/// What an operator is told of a spare that belongs elsewhere, and what a spare does whose
/// addresses lead to two clusters.
#[tokio::test(start_paused = true)]
async fn a_spare_is_of_one_cluster() {
    let world = three_of(OURS).await;
    world.start_of(4, Start::Join, config(THEIRS)).await;
    let replace = MemberChange::Replace { old: 3, new: 4 };
    let short = Duration::from_millis(600);
    let error = change(&world, 1, replace, short).await.unwrap_err();
    assert_eq!(error, ReconfigureError::OtherCluster { node: 4, lineage: THEIRS });
    assert!(!error.is_retryable() && error.outcome() == table::Outcome::NotApplied);
    // A spare without a name takes that of its replicas, if they agree.
    let other = three_of(THEIRS).await;
    mount(&other, &world, 2).await;
    let spare = world.start_of(5, Start::Join, node_config([1, 2])).await;
    sleep(Duration::from_secs(5)).await;
    assert_eq!(spare.membership().borrow().epoch(), 0);
    assert!(spare.strangers().answers > 0);
    world.crash(2);
    sleep(Duration::from_secs(5)).await;
    let known = Arc::clone(&spare.membership().borrow());
    assert_eq!((known.epoch(), known.lineage()), (1, OURS));
}

/// A removed replica is cleared and waits to be added. The only node that it reaches has slept
/// through the change, and still serves the epoch in which both were replicas.
#[tokio::test(start_paused = true)]
async fn a_spare_does_not_go_back_to_an_epoch_that_has_passed() {
    for lineage in [Lineage::UNNAMED, OURS] {
        let mut config = node_config(1..=5);
        config.lineage = lineage;
        let world = World::new(1, config);
        for id in 1..=5 {
            world.start(id, Start::Create).await;
        }
        let (removed, stale) = (5, 4);
        world.isolate(stale);
        world.start(6, Start::Join).await;
        let replace = MemberChange::Replace { old: removed, new: 6 };
        assert_eq!(change(&world, 1, replace, LONG).await.unwrap().epoch(), 3);
        // Ends: it is told.
        while world.node(removed).unwrap().membership().borrow().epoch() < 3 {
            sleep(Duration::from_millis(10)).await;
        }
        world.crash(removed);
        world.heal();
        for id in [1, 2, 3, 6] {
            world.cut(removed, id, true);
            world.cut(stale, id, true);
        }
        // Cleared by the first start, and not by the second.
        for _ in 0..2 {
            let spare = world.start(removed, Start::Again).await;
            sleep(Duration::from_secs(5)).await;
            assert_eq!(world.node(stale).unwrap().membership().borrow().epoch(), 1);
            assert_eq!(spare.membership().borrow().epoch(), 0);
            world.crash(removed);
        }
        let spare = world.start(removed, Start::Again).await;
        world.heal();
        sleep(Duration::from_secs(5)).await;
        assert_eq!(spare.membership().borrow().epoch(), 3);
        let back = MemberChange::Replace { old: stale, new: removed };
        assert_eq!(ids(&change(&world, 1, back, LONG).await.unwrap()), [1, 2, 3, 5, 6]);
        assert!(clients::table(100, &world, vec![1]).put_blind("k", "v").await.is_ok());
    }
}
