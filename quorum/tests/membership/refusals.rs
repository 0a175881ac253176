//! What is refused while the replicas change, and why an operator is not told more than is so.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use voussoir_quorum::membership::ChangeRejected;
use voussoir_quorum::table::{
    CallError, Coordinator, CoordinatorInput, CoordinatorOutput, Guarantee, Level, OperationError,
    ReadRepair, Reply, TableConfig, Value,
};
use voussoir_quorum::version::VersionVector;
use voussoir_quorum::*;

use super::clients;
use super::scenes::{LONG, begin, change, ids, registers, texts, three};
use super::world::{Start, World, node_config};

const SHORT: Duration = Duration::from_millis(600);

/// A table that reads one replica, over nodes that know it.
fn one_of_all(world: &Arc<World>, id: u64, local: u64) -> Table {
    let mut config = TableConfig::with_replicas([1, 2, 3]);
    (config.read, config.write, config.local) = (Level::One, Level::All, Some(local));
    (config.read_repair, config.require) = (ReadRepair::Background, Guarantee::Intersecting);
    config.timeout = Duration::from_millis(300);
    Table::new(config, world.link(id)).unwrap()
}

/// A replica that has not heard of the change serves reads of one replica: the change does not end
/// before it has.
#[tokio::test(start_paused = true)]
async fn a_read_of_one_replica_never_misses_what_the_new_replicas_acknowledged() {
    let mut config = node_config([1, 2, 3]);
    (config.read, config.write) = (Level::One, Level::All);
    let world = World::new(1, config);
    for id in 1..=3 {
        world.start(id, Start::Create).await;
    }
    let (writer, reader) = (one_of_all(&world, 100, 2), one_of_all(&world, 101, 1));
    let first = writer.put_blind("k", "v1").await.unwrap();
    assert_eq!(texts(&reader.get("k").await.unwrap()), ["v1"]);
    world.start(4, Start::Join).await;
    for other in 2..=4 {
        world.cut(1, other, true);
    }
    let replace = MemberChange::Replace { old: 1, new: 4 };
    let error = change(&world, 2, replace, SHORT).await.unwrap_err();
    assert_eq!(error, ReconfigureError::TooFewWhole { found: 2, needed: 3 });
    assert_eq!(error.outcome(), table::Outcome::NotApplied);
    assert_eq!(texts(&reader.get("k").await.unwrap()), ["v1"]);
    world.heal();
    assert_eq!(ids(&change(&world, 2, replace, LONG).await.unwrap()), [2, 3, 4]);
    // The reader and the replica that it asks first are cut off from the others again.
    for other in 2..=4 {
        world.cut(1, other, true);
    }
    writer.put("k", first.context(), "v2").await.unwrap();
    assert_eq!(texts(&reader.get("k").await.unwrap()), ["v2"]);
}

/// The list of a client is no membership: one stale replica is no majority.
#[tokio::test(start_paused = true)]
async fn a_client_that_knows_one_stale_replica_changes_nothing() {
    let world = three().await;
    registers(&world, 100).put("r", "chosen").await.unwrap();
    world.isolate(3);
    world.start(4, Start::Join).await;
    let replace = MemberChange::Replace { old: 3, new: 4 };
    change(&world, 1, replace, LONG).await.unwrap();
    world.heal();
    // They reach the replaced replica alone, which has heard of nothing.
    for other in [1, 2, 4] {
        for client in [3, 101, 102] {
            world.cut(client, other, true);
        }
    }
    let mut config = RegisterConfig::with_acceptors([3]);
    config.timeout = Duration::from_millis(300);
    let alone = Registers::new(101, config, world.link(101)).unwrap();
    assert_eq!(alone.put("r", "lost").await, Err(RegisterError::Unavailable));
    assert_eq!(alone.membership().epoch(), 1);
    assert!(clients::table(102, &world, vec![3]).put_blind("k", "v").await.is_err());
    world.heal();
    assert_eq!(registers(&world, 103).get("r").await, Ok((1, Some("chosen".into()))));
}

/// The members of the first epoch are those of when the node was created.
#[tokio::test(start_paused = true)]
async fn another_list_in_the_configuration_does_not_change_who_the_replicas_are() {
    let world = three().await;
    world.crash(1);
    let node = world.start_of(1, Start::Again, node_config([1])).await;
    assert_eq!(ids(&node.membership().borrow()), [1, 2, 3]);
    world.isolate(1);
    assert!(clients::table(100, &world, vec![1]).put_blind("k", "v").await.is_err());
}

/// A mistyped id, and a cluster that is too small to go on: nothing has begun.
#[tokio::test(start_paused = true)]
async fn a_change_that_could_not_end_is_not_begun() {
    let world = World::new(1, node_config([1]));
    world.start(1, Start::Create).await;
    let error = change(&world, 1, MemberChange::Add(9), SHORT).await.unwrap_err();
    assert_eq!(error, ReconfigureError::NewcomerAway { node: 9 });
    assert!(error.is_retryable() && error.outcome() == table::Outcome::NotApplied);
    clients::table(100, &world, vec![1]).put_blind("k", "v").await.unwrap();
    // A node of another cluster.
    world.start_of(9, Start::Create, node_config([9])).await;
    let error = change(&world, 1, MemberChange::Add(9), SHORT).await.unwrap_err();
    assert_eq!(error, ReconfigureError::NotJoining { node: 9 });
    assert!(!error.is_retryable());
    assert_eq!(world.latest().epoch(), 1);

    let world = three().await;
    world.start(4, Start::Join).await;
    world.crash(3);
    let replace = MemberChange::Replace { old: 1, new: 4 };
    let error = change(&world, 1, replace, SHORT).await.unwrap_err();
    assert_eq!(error, ReconfigureError::TooFewWhole { found: 1, needed: 2 });
    let replace = MemberChange::Replace { old: 3, new: 4 };
    assert_eq!(ids(&change(&world, 1, replace, LONG).await.unwrap()), [1, 2, 4]);
}

/// The node that was added dies before it is filled. The new set has no majority without it, and
/// the old one takes the change back alone.
#[tokio::test(start_paused = true)]
async fn a_majority_of_the_old_replicas_takes_a_change_back_alone() {
    let world = World::new(1, node_config([1]));
    world.start(1, Start::Create).await;
    let table = clients::table(100, &world, vec![1]);
    let seen = table.put_blind("k", "v").await.unwrap();
    world.start(2, Start::Join).await;
    let operator = begin(&world, 1, MemberChange::Add(2), SHORT).await;
    world.crash(2);
    assert_eq!(operator.await.unwrap(), Err(ReconfigureError::Unfinished { epoch: 2 }));
    assert!(table.put("k", seen.context(), "w").await.is_err());
    let (node, link, _) = world.host(1).unwrap();
    let after = node.abandon_change(&link, LONG).await.unwrap();
    assert_eq!((after.epoch(), ids(&after)), (3, vec![1]));
    table.put("k", seen.context(), "x").await.unwrap();
}

/// The call that began the change still runs when another operator takes it back.
#[tokio::test(start_paused = true)]
async fn a_change_that_was_taken_back_is_not_begun_again() {
    let world = three().await;
    world.start(4, Start::Join).await;
    let operator = begin(&world, 1, MemberChange::Replace { old: 3, new: 4 }, LONG).await;
    world.crash(4);
    let (node, link, _) = world.host(2).unwrap();
    assert_eq!(node.abandon_change(&link, LONG).await.unwrap().epoch(), 3);
    world.start(4, Start::Again).await;
    let error = operator.await.unwrap().unwrap_err();
    assert_eq!(error, ReconfigureError::Abandoned { epoch: 3 });
    assert!(!error.is_retryable());
    sleep(Duration::from_secs(2)).await;
    assert_eq!((world.latest().epoch(), ids(&world.latest())), (3, vec![1, 2, 3]));
}

/// What an operator is told is what a majority says, and not what one node believes.
#[tokio::test(start_paused = true)]
async fn an_operator_is_told_nothing_from_the_view_of_one_node() {
    let world = three().await;
    let joined = world.start(4, Start::Join).await;
    let (_, link, _) = world.host(4).unwrap();
    // It knows of no replica.
    let removed = joined.reconfigure(&link, MemberChange::Remove(3), SHORT).await;
    assert_eq!(removed, Err(ReconfigureError::NotWhole));
    assert_eq!(joined.abandon_change(&link, SHORT).await, Err(ReconfigureError::NotWhole));
    world.isolate(3);
    let undecided = Err(ReconfigureError::Undecided { epoch: 1 });
    assert_eq!(change(&world, 3, MemberChange::Remove(9), SHORT).await, undecided);
    let (stale, link, _) = world.host(3).unwrap();
    assert_eq!(stale.abandon_change(&link, SHORT).await, undecided);
    change(&world, 1, MemberChange::Replace { old: 3, new: 4 }, LONG).await.unwrap();
    // Node 3 believes to be a replica, and is told.
    world.heal();
    let after = change(&world, 3, MemberChange::Remove(9), LONG).await.unwrap();
    assert_eq!(after.epoch(), 3);
    // What was made is not told without the majority that has made it.
    world.isolate(1);
    let undecided = Err(ReconfigureError::Undecided { epoch: 3 });
    assert_eq!(change(&world, 1, MemberChange::Remove(3), SHORT).await, undecided);
}

/// The node that was asked fails in the joint epoch. An operator who is told that nothing has
/// changed would wipe the new replica, on which quorums rest by then.
#[tokio::test(start_paused = true)]
async fn a_change_that_has_begun_is_not_told_as_nothing() {
    let world = three().await;
    world.start(4, Start::Join).await;
    let replace = MemberChange::Replace { old: 3, new: 4 };
    let operator = begin(&world, 1, replace, LONG).await;
    world.isolate(4);
    world.node(1).unwrap().shutdown().await;
    let error = operator.await.unwrap().unwrap_err();
    assert_eq!(error.outcome(), table::Outcome::Unknown, "{error}");
    world.heal();
    let after = change(&world, 2, replace, LONG).await.unwrap();
    assert_eq!(ids(&after), [1, 2, 4], "the others have carried it on");
}

/// A deadline of an operator is one.
#[tokio::test(start_paused = true)]
async fn a_change_answers_by_its_deadline() {
    let mut config = node_config([1, 2, 3]);
    (config.repair_every, config.timeout) = (None, Duration::from_secs(30));
    let world = World::new(1, config);
    for id in 1..=3 {
        world.start(id, Start::Create).await;
    }
    world.isolate(2);
    world.isolate(3);
    let began = Instant::now();
    let error = change(&world, 1, MemberChange::Remove(3), SHORT).await.unwrap_err();
    assert_eq!(error, ReconfigureError::Undecided { epoch: 1 });
    assert!(began.elapsed() < SHORT + Duration::from_millis(50), "{:?}", began.elapsed());
}

/// 31 are the most that there may be, and both sets of a replacement together are 32.
#[tokio::test(start_paused = true)]
async fn one_of_as_many_replicas_as_there_may_be_is_replaced() {
    let world = World::new(1, node_config(1..=31));
    for id in 1..=31 {
        world.start(id, Start::Create).await;
    }
    world.start(32, Start::Join).await;
    let replace = MemberChange::Replace { old: 31, new: 32 };
    let after = change(&world, 1, replace, LONG).await.unwrap();
    assert_eq!((after.epoch(), ids(&after)), (3, (1..=30).chain([32]).collect()));
    let error = change(&world, 1, MemberChange::Add(33), SHORT).await.unwrap_err();
    assert_eq!(error, ChangeRejected::Count { count: 32 }.into());
}

/// What the coordinator wants done.
fn outputs(coordinator: &mut Coordinator) -> Vec<CoordinatorOutput> {
    std::iter::from_fn(|| coordinator.poll_output()).collect()
}

/// A table of one replica reads and writes one. While it runs, the replicas become two: then one
/// and one do not intersect, and the table has promised that they do.
#[test]
fn an_operation_that_runs_while_the_replicas_change_keeps_what_the_table_requires() {
    let mut config = TableConfig::with_replicas([1]);
    (config.read, config.write) = (Level::One, Level::One);
    let joint = Membership::first([1]).begin(MemberChange::Add(2), Level::Quorum);
    let joint = joint.unwrap().unwrap();
    let refused =
        OperationError::Guarantee { given: Guarantee::Eventual, required: Guarantee::Monotonic };
    let unknown = OperationError::WriteUnknown { holders: 1, needed: 1 };
    for (is_read, reply, expected) in [
        (true, None, refused.clone()),
        (false, Some(Err(CallError::NotSent)), refused),
        (false, Some(Ok(())), unknown),
    ] {
        let mut coordinator = Coordinator::new(config.clone()).unwrap();
        let begun = if is_read {
            coordinator.get(0, "k".into(), VersionVector::new())
        } else {
            coordinator.put_blind(0, "k".into(), "v".into())
        };
        let operation = begun.unwrap();
        let call = match &outputs(&mut coordinator)[..] {
            [CoordinatorOutput::Call { id, to: 1, .. }] => *id,
            other => panic!("{other:?}"),
        };
        coordinator.reconfigure(1, joint.clone());
        match reply {
            None => {}
            Some(Ok(())) => {
                let reply = Reply::Written { state: Value::new() };
                coordinator.step(2, CoordinatorInput::Reply { call, reply });
            }
            Some(Err(error)) => coordinator.step(2, CoordinatorInput::Failed { call, error }),
        }
        let done = CoordinatorOutput::Done { operation, result: Err(expected) };
        let all = outputs(&mut coordinator);
        assert!(all.contains(&done), "{all:?}");
    }
}
