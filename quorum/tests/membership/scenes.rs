//! One scene for each rule of a change.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use voussoir_quorum::membership::ChangeRejected;
use voussoir_quorum::paxos::Outcome;
use voussoir_quorum::table::{Level, TableConfig, Value};
use voussoir_quorum::*;

use super::clients;
use super::world::{Start, World, node_config};

pub(crate) const LONG: Duration = Duration::from_secs(20);

pub(crate) fn ids(membership: &Membership) -> Vec<u64> {
    membership.members().iter().map(|member| member.id).collect()
}

pub(crate) fn texts(value: &Value) -> Vec<&str> {
    value.values().map(|value| std::str::from_utf8(value).unwrap()).collect()
}

pub(crate) async fn three() -> Arc<World> {
    let world = World::new(1, node_config([1, 2, 3]));
    for id in 1..=3 {
        world.start(id, Start::Create).await;
    }
    world
}

pub(crate) fn registers(world: &Arc<World>, id: u64) -> Registers {
    let mut config = RegisterConfig::with_acceptors([1, 2, 3]);
    config.timeout = Duration::from_millis(300);
    Registers::new(id, config, world.link(id)).unwrap()
}

/// Begins a change and returns as soon as its joint epoch is served somewhere.
pub(crate) async fn begin(
    world: &Arc<World>,
    at: u64,
    change: MemberChange,
    timeout: Duration,
) -> tokio::task::JoinHandle<Result<Arc<Membership>, ReconfigureError>> {
    let (node, link, _) = world.host(at).unwrap();
    let operator = tokio::spawn(async move { node.reconfigure(&link, change, timeout).await });
    // Ends: the joint epoch is decided.
    while !world.latest().is_changing() {
        sleep(Duration::from_millis(1)).await;
    }
    operator
}

pub(crate) async fn change(
    world: &Arc<World>,
    at: u64,
    change: MemberChange,
    timeout: Duration,
) -> Result<Arc<Membership>, ReconfigureError> {
    let (node, link, _) = world.host(at).unwrap();
    node.reconfigure(&link, change, timeout).await
}

/// scylladb #5251: accepted on {A, B}, D replaces A, and the quorum {C, D} misses it. And the same
/// of a table.
#[tokio::test(start_paused = true)]
async fn a_replica_that_takes_the_place_of_another_has_what_a_quorum_held() {
    let world = three().await;
    let (table, client) = (clients::near(2, 100, &world), registers(&world, 101));
    world.isolate(3);
    for key in 0..30 {
        table.put_blind(format!("k{key}"), "v").await.unwrap();
        client.put(format!("r{key}"), "w").await.unwrap();
    }
    world.heal();
    // Operations spread their result until their time is over. The replica 1 is gone for good.
    world.crash(1);
    let joined = world.start(4, Start::Join).await;
    assert!(!joined.is_whole());
    let replace = MemberChange::Replace { old: 1, new: 4 };
    let after = change(&world, 3, replace, LONG).await.unwrap();
    assert_eq!((after.epoch(), ids(&after)), (3, vec![2, 3, 4]));
    assert!(joined.is_whole());
    // The replica 2, the only one of the two that held it that is left, is away.
    world.isolate(2);
    for key in 0..30 {
        assert_eq!(texts(&table.get(format!("k{key}")).await.unwrap()), ["v"]);
        assert_eq!(client.get(format!("r{key}")).await, Ok((1, Some("w".into()))));
    }
    // Clients have moved on by themselves.
    assert_eq!((table.membership().epoch(), client.membership().epoch()), (3, 3));
    let again = change(&world, 3, replace, LONG).await.unwrap();
    assert_eq!(again.epoch(), 3, "what is already so changes nothing");
}

/// scylladb #5251, once more: the replaced replica is alive, was cut off meanwhile, and believes to
/// be one still.
#[tokio::test(start_paused = true)]
async fn a_replaced_replica_never_counts_again() {
    let world = three().await;
    let (old, new) = (clients::table(100, &world, vec![1, 2, 3]), registers(&world, 101));
    old.put_blind("k", "before").await.unwrap();
    world.isolate(3);
    world.start(4, Start::Join).await;
    let replace = MemberChange::Replace { old: 3, new: 4 };
    change(&world, 1, replace, LONG).await.unwrap();
    new.put("r", "after").await.unwrap();
    let seen = clients::table(102, &world, vec![1]).get("k").await.unwrap();
    clients::table(103, &world, vec![4]).put("k", seen.context(), "after").await.unwrap();
    // A client that has heard nothing, and the old replica with one that has.
    world.heal();
    world.isolate(1);
    assert_eq!(old.membership().epoch(), 1);
    assert_eq!(world.node(3).unwrap().membership().borrow().epoch(), 1);
    assert_eq!(texts(&old.get("k").await.unwrap()), ["after"]);
    let stale = registers(&world, 104);
    assert_eq!(stale.get("r").await, Ok((1, Some("after".into()))));
    assert_eq!((old.membership().epoch(), stale.membership().epoch()), (3, 3));
    world.heal();
    let mut status = world.node(3).unwrap().status();
    // It hears of it by its next comparison.
    let removed = status.wait_for(|status| matches!(status, Status::Removed { .. }));
    tokio::time::timeout(LONG, removed).await.unwrap().unwrap();
    // Started again it is empty, and waits to be added as another member.
    world.crash(3);
    let again = world.start(3, Start::Again).await;
    assert_eq!(*again.status().borrow(), Status::NotWhole { is_condemned: false });
    assert!(world.records(3).await.keys().all(|key| key[0] != b't' && key[0] != b'p'));
    let after = change(&world, 2, MemberChange::Add(3), LONG).await.unwrap();
    assert_eq!(after.since(3), Some(4));
    assert!(again.is_whole());
}

/// The disk of a replica that was removed and added again by another disk comes back.
#[tokio::test(start_paused = true)]
async fn the_store_of_an_earlier_member_is_not_one_of_the_later_member() {
    let world = three().await;
    let table = clients::table(100, &world, vec![1, 2, 3]);
    let value = table.put_blind("k", "old").await.unwrap();
    world.crash(3);
    change(&world, 1, MemberChange::Remove(3), LONG).await.unwrap();
    let stale = world.records(3).await;
    table.delete("k", value.context()).await.unwrap();
    world.start(3, Start::Join).await;
    let after = change(&world, 1, MemberChange::Add(3), LONG).await.unwrap();
    assert_eq!(after.since(3), Some(4));
    world.crash(3);
    world.put_back(3, stale).await;
    let node = world.start(3, Start::Again).await;
    assert!(node.is_whole(), "it has heard of nothing yet");
    let mut status = node.status();
    let removed = status.wait_for(|status| matches!(status, Status::Removed { .. }));
    tokio::time::timeout(LONG, removed).await.unwrap().unwrap();
    world.isolate(1);
    let read = clients::table(101, &world, vec![2, 3]).get("k").await;
    assert!(read.is_err(), "one replica and a store of before are no quorum: {read:?}");
}

/// Two operators at once: one of the changes is made first, and both know what became of theirs.
#[tokio::test(start_paused = true)]
async fn two_operators_do_not_make_two_different_epochs() {
    for seed in 0..24 {
        let world = World::new(seed, node_config([1, 2, 3]));
        for id in 1..=5 {
            world.start(id, if id <= 3 { Start::Create } else { Start::Join }).await;
        }
        let (left, right) = tokio::join!(
            change(&world, 1, MemberChange::Replace { old: 3, new: 4 }, LONG),
            change(&world, 2, MemberChange::Replace { old: 3, new: 5 }, LONG)
        );
        let (made, refused) = if left.is_ok() { (left, right) } else { (right, left) };
        let refused = refused.unwrap_err();
        assert_eq!(refused, ReconfigureError::Rejected(ChangeRejected::NotAMember { id: 3 }));
        assert_eq!(refused.outcome(), table::Outcome::NotApplied);
        assert_eq!(made.unwrap().epoch(), 3);
        let all = [1, 2].map(|id| Arc::clone(&world.node(id).unwrap().membership().borrow()));
        assert_eq!(all[0], all[1]);
    }
}

/// A write of the old epoch waits for the record of its key while its replica is told of the new
/// epoch. It is acknowledged, so the replica that is filled from there has it.
#[tokio::test(start_paused = true)]
async fn a_write_that_waits_for_its_record_is_not_missed_by_the_copy() {
    let mut config = node_config([1, 2, 3]);
    (config.repair_every, config.collect_every) = (None, None);
    let world = World::new(1, config);
    for id in 1..=4 {
        world.start(id, if id <= 3 { Start::Create } else { Start::Join }).await;
    }
    let pause = Duration::from_secs(3);
    world.with(|state| state.slow = Some((2, Bytes::from_static(b"tk"), pause)));
    let table = clients::patient(3, 100, &world, pause * 2);
    world.cut(100, 1, true);
    world.cut(3, 4, true);
    let write = tokio::spawn(async move { table.put_blind("k", "v").await });
    sleep(Duration::from_millis(50)).await;
    let replace = MemberChange::Replace { old: 3, new: 4 };
    change(&world, 1, replace, LONG).await.unwrap();
    write.await.unwrap().unwrap();
    world.with(|state| state.slow = None);
    world.isolate(2);
    let found = clients::table(101, &world, vec![1, 4]).get("k").await.unwrap();
    assert_eq!(texts(&found), ["v"]);
}

/// While the replicas change, quorums are needed of both sets. What cannot end is taken back.
#[tokio::test(start_paused = true)]
async fn a_joint_epoch_needs_both_sets_and_can_be_abandoned() {
    let world = three().await;
    let table = clients::near(1, 100, &world);
    let client = registers(&world, 101);
    table.put_blind("k", "v").await.unwrap();
    // The node 9 is gone as soon as the change has begun.
    world.start(9, Start::Join).await;
    let replace = MemberChange::Replace { old: 3, new: 9 };
    let operator = begin(&world, 1, replace, Duration::from_secs(1)).await;
    world.crash(9);
    let error = operator.await.unwrap().unwrap_err();
    assert_eq!(error, ReconfigureError::Unfinished { epoch: 2 });
    assert!(error.is_retryable() && error.outcome() == table::Outcome::Unknown);
    let error = change(&world, 2, MemberChange::Add(5), Duration::from_millis(200)).await;
    assert_eq!(error, Err(ChangeRejected::Underway { epoch: 2 }.into()));
    table.put_blind("k", "w").await.unwrap();
    client.put("r", "v").await.unwrap();
    // Two of the old set are there, and one of the new set is.
    world.isolate(2);
    assert!(table.put_blind("k", "x").await.is_err());
    assert!(table.get("k").await.is_err());
    assert!(client.put("r", "x").await.is_err());
    world.heal();
    let (node, link, _) = world.host(1).unwrap();
    let after = node.abandon_change(&link, LONG).await.unwrap();
    assert_eq!((after.epoch(), ids(&after), after.is_changing()), (3, vec![1, 2, 3], false));
    world.isolate(2);
    table.put_blind("k", "y").await.unwrap();
    assert_eq!(node.abandon_change(&link, LONG).await.unwrap().epoch(), 3);
}

/// The node that was told to change the replicas is killed in the middle of it.
#[tokio::test(start_paused = true)]
async fn a_change_that_was_begun_is_carried_on_by_the_others() {
    let world = three().await;
    clients::table(100, &world, vec![1, 2, 3]).put_blind("k", "v").await.unwrap();
    world.start(4, Start::Join).await;
    let operator = begin(&world, 1, MemberChange::Replace { old: 1, new: 4 }, LONG).await;
    operator.abort();
    assert!(operator.await.is_err());
    world.crash(1);
    // Ends: the maintenance of any replica ends the change.
    tokio::time::timeout(LONG, async {
        while world.latest().is_changing() {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(ids(&world.latest()), [2, 3, 4]);
}

/// With fewer replicas, what was acknowledged by two of three may be on one of the two that stay.
#[tokio::test(start_paused = true)]
async fn replicas_that_stay_catch_up_before_they_are_fewer() {
    let mut config = node_config([1, 2, 3]);
    // Nothing else brings it to the replica that missed it.
    (config.repair_every, config.collect_every) = (None, None);
    let world = World::new(1, config);
    for id in 1..=3 {
        world.start(id, Start::Create).await;
    }
    let table = clients::near(1, 100, &world);
    world.isolate(2);
    for key in 0..30 {
        table.put_blind(format!("k{key}"), "v").await.unwrap();
    }
    world.heal();
    sleep(Duration::from_secs(1)).await;
    assert!(world.records(2).await.keys().all(|key| key[0] != b't'));
    let after = change(&world, 2, MemberChange::Remove(3), LONG).await.unwrap();
    assert_eq!(ids(&after), [1, 2]);
    assert_eq!(world.records(2).await.keys().filter(|key| key[0] == b't').count(), 30);
    // A table that writes to both and reads one is one of two replicas.
    let mut config = TableConfig::with_replicas([1, 2]);
    (config.read, config.write, config.local) = (Level::One, Level::All, Some(2));
    let table = Table::new(config, world.link(101)).unwrap();
    for key in 0..30 {
        assert_eq!(texts(&table.get(format!("k{key}")).await.unwrap()), ["v"]);
    }
}

/// One replica becomes three, and three become one.
#[tokio::test(start_paused = true)]
async fn a_cluster_grows_from_one_replica_and_shrinks_to_one() {
    let world = World::new(1, node_config([1]));
    world.start(1, Start::Create).await;
    let table = clients::table(100, &world, vec![1]);
    let client = registers(&world, 101);
    let mut seen = table.put_blind("k", "0").await.unwrap();
    let steps = [
        MemberChange::Add(2),
        MemberChange::Add(3),
        MemberChange::Add(4),
        MemberChange::Remove(1),
        MemberChange::Remove(2),
        MemberChange::Remove(3),
    ];
    for (step, wanted) in (1..).zip(steps) {
        if let MemberChange::Add(id) = wanted {
            world.start_of(id, Start::Join, node_config([1])).await;
        }
        let at = world.latest().ids().into_iter().max().unwrap();
        let after = change(&world, at, wanted, LONG).await.unwrap();
        assert_eq!(after.epoch(), 2 * step + 1);
        assert_eq!(texts(&table.get("k").await.unwrap()), [(step - 1).to_string()]);
        seen = table.put("k", seen.context(), step.to_string()).await.unwrap();
        let outcome = client.compare_and_set("r", step - 1, Some("v".into())).await;
        assert_eq!(outcome, Ok(Outcome::Applied { version: step }));
    }
    assert_eq!(ids(&world.latest()), [4]);
    let error = change(&world, 4, MemberChange::Remove(4), LONG).await.unwrap_err();
    assert_eq!(error, ReconfigureError::Rejected(ChangeRejected::Count { count: 0 }));
}

/// A node that has lost its disk learns the membership from whoever it knows, and is rebuilt as a
/// replica of that one.
#[tokio::test(start_paused = true)]
async fn a_lost_replica_is_rebuilt_in_the_epoch_of_the_others() {
    let world = three().await;
    let table = clients::near(2, 100, &world);
    table.put_blind("k", "v").await.unwrap();
    world.start(4, Start::Join).await;
    change(&world, 1, MemberChange::Replace { old: 1, new: 4 }, LONG).await.unwrap();
    world.crash(4);
    let node = world.start(4, Start::Lost).await;
    let mut status = node.status();
    let whole = status.wait_for(|status| *status == Status::Whole);
    tokio::time::timeout(LONG, whole).await.unwrap().unwrap();
    assert_eq!(node.membership().borrow().epoch(), 3);
    // And after a restart it needs nobody to tell it.
    world.crash(4);
    world.isolate(4);
    let node = world.start(4, Start::Again).await;
    assert!(node.is_whole() && node.membership().borrow().epoch() == 3);
}

/// The keys of the registers that hold the memberships are nobody else's.
#[tokio::test(start_paused = true)]
async fn registers_that_hold_memberships_are_not_written_by_clients() {
    let world = three().await;
    let key = [&b"\0voussoir\0membership\0"[..], &1_u64.to_be_bytes()].concat();
    let error = registers(&world, 100).put(key, "v").await.unwrap_err();
    assert_eq!(error, RegisterError::Reserved);
    assert!(!error.is_retryable());
}

/// What the acceptors of the nodes 1 to 3 hold of the register `r`.
async fn register_records(world: &World) -> Vec<Option<Bytes>> {
    let mut records = Vec::new();
    for id in 1..=3 {
        records.push(world.records(id).await.remove(&Bytes::from("pr")));
    }
    records
}

/// A read of a register that a majority holds equally takes no ballot. One that finds a change half
/// done ends it first: what it returns is not taken back by the next read.
#[tokio::test(start_paused = true)]
async fn a_read_of_a_settled_register_writes_nothing_and_one_of_another_settles_it() {
    let world = three().await;
    let (writer, reader) = (registers(&world, 100), registers(&world, 101));
    assert_eq!(reader.get("r").await, Ok((0, None)));
    writer.put("r", "one").await.unwrap();
    sleep(Duration::from_secs(1)).await;
    let before = register_records(&world).await;
    assert_eq!(before.iter().flatten().count(), 3);
    for _ in 0..20 {
        assert_eq!(reader.get("r").await, Ok((1, Some("one".into()))));
    }
    sleep(Duration::from_secs(1)).await;
    assert_eq!(register_records(&world).await, before);
    // The acceptance of one node alone.
    world.cut(100, 2, true);
    world.cut(100, 3, true);
    assert!(matches!(writer.put("r", "two").await, Err(RegisterError::Unknown(_))));
    world.cut(101, 3, true);
    assert_eq!(reader.get("r").await, Ok((2, Some("two".into()))));
    world.heal();
    world.cut(101, 1, true);
    for _ in 0..20 {
        assert_eq!(reader.get("r").await, Ok((2, Some("two".into()))));
    }
}
