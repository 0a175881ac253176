//! The table of a coordinator, without a network: generations, offsets and who may read.

use voussoir_raft::memory::{MemoryStore, Network};
use voussoir_raft::{Node, NodeConfig};

use super::*;
use crate::raft::ReplicaConfig;

const MAX_BYTES: u64 = 64 << 20;

/// The table of a cluster of one node.
async fn table() -> (Node, ReplicatedPartition) {
    let node = Node::start(NodeConfig::default(), Network::new().node(1)).expect("a node");
    let group = voussoir_raft::Config::new(1, [1]);
    let mut config = ReplicaConfig::default();
    config.partition.max_producers = 10;
    config.partition.max_index_entries = 10;
    let log = Arc::new(MemoryStore::new());
    let table = ReplicatedPartition::start(&node, group, log, config).await.expect("it starts");
    let mut status = table.raft().status();
    status.wait_for(|status| status.leader == Some(1)).await.expect("it leads");
    (node, table)
}

async fn ask(desk: &Arc<Desk>, request: Request) -> Response {
    desk.answer(request, Instant::now() + Duration::from_secs(10)).await
}

fn beat(group: &str, instance: &str, member: Option<Member>) -> Request {
    Request::Beat(Beat {
        group: group.to_owned(),
        instance: instance.to_owned(),
        member,
        topics: vec!["t".to_owned()],
        session_ms: 10_000,
        join: None,
    })
}

/// As [`beat`], of a member that was told in `generation` to join, and goes on reading `owned`.
fn join(group: &str, instance: &str, member: Member, generation: u32, owned: &[u32]) -> Request {
    let Request::Beat(beat) = beat(group, instance, Some(member)) else { unreachable!() };
    Request::Beat(Beat { join: Some(Join { generation, owned: owned.to_vec() }), ..beat })
}

async fn placed(desk: &Arc<Desk>, request: Request) -> Place {
    match ask(desk, request).await {
        Response::Place(place) => place,
        other => panic!("{other:?}"),
    }
}

async fn create(desk: &Arc<Desk>, name: &str, partitions: u32) -> Response {
    ask(desk, Request::CreateTopic { name: name.to_owned(), partitions }).await
}

fn commit(group: &str, generation: u32, offsets: &[(u32, u64)]) -> Request {
    Request::Commit { group: group.to_owned(), generation, offsets: offsets.to_vec() }
}

#[tokio::test(start_paused = true)]
async fn an_offset_never_goes_back() {
    let (_node, table) = table().await;
    let desk = Desk::new(table, QueueConfig::default(), MAX_BYTES);
    assert_eq!(create(&desk, "t", 2).await, Response::Done);
    let place = placed(&desk, beat("g", "one", None)).await;
    assert_eq!((place.generation, place.must_join), (1, false));
    assert_eq!(place.partitions, [(1, None), (2, None)]);
    assert_eq!(ask(&desk, commit("g", 1, &[(1, 5), (2, 1)])).await, Response::Done);
    // It was held up on its way.
    assert_eq!(ask(&desk, commit("g", 1, &[(1, 3), (2, 2)])).await, Response::Done);
    let place = placed(&desk, beat("g", "one", Some(place.member))).await;
    assert_eq!(place.partitions, [(1, Some(5)), (2, Some(2))]);
    assert_eq!(ask(&desk, commit("g", 2, &[(1, 9)])).await, Response::Stale { current: 1 });
    assert_eq!(ask(&desk, commit("h", 1, &[(1, 9)])).await, Response::Stale { current: 0 });
    let foreign = ask(&desk, commit("g", 1, &[(3, 9)])).await;
    assert!(matches!(foreign, Response::Rejected { .. }), "{foreign:?}");
}

#[tokio::test(start_paused = true)]
async fn a_member_of_an_earlier_coordinator_is_none() {
    let (_node, table) = table().await;
    let limits = QueueConfig { max_groups: 1, ..QueueConfig::default() };
    let desk = Desk::new(table.clone(), limits.clone(), MAX_BYTES);
    assert_eq!(create(&desk, "t", 1).await, Response::Done);
    let first = placed(&desk, beat("g", "one", None)).await.member;
    let full = ask(&desk, beat("h", "two", None)).await;
    assert!(matches!(full, Response::NotNow { .. }), "{full:?}");
    let leave = |group: &str, member| Request::Leave { group: group.to_owned(), member };
    assert_eq!(ask(&desk, leave("g", first)).await, Response::Done);
    let other = placed(&desk, beat("h", "two", None)).await.member;
    assert_eq!(ask(&desk, leave("h", other)).await, Response::Done);
    tokio::time::sleep(READ_LEASE).await;
    let second = placed(&desk, beat("g", "three", None)).await.member;
    assert_eq!(first.id, second.id, "ids begin anew");
    assert_eq!(ask(&desk, beat("g", "one", Some(first))).await, Response::NoMember);
    // It cannot make the other one leave either.
    assert_eq!(ask(&desk, leave("g", first)).await, Response::Done);
    assert_eq!(placed(&desk, beat("g", "three", Some(second))).await.member, second);
}

/// A group that there was before is given out when the word of the leader before has run out; one
/// that is new at once.
#[tokio::test(start_paused = true)]
async fn a_new_coordinator_waits_for_those_who_may_still_read() {
    let (_node, table) = table().await;
    let first = Desk::new(table.clone(), QueueConfig::default(), MAX_BYTES);
    assert_eq!(create(&first, "t", 1).await, Response::Done);
    let member = placed(&first, beat("g", "one", None)).await.member;
    let next = Desk::new(table, QueueConfig::default(), MAX_BYTES);
    let began = Instant::now();
    assert_eq!(ask(&next, beat("g", "one", Some(member))).await, Response::NoMember);
    // Its offsets are taken all the same: nobody else was given anything.
    assert_eq!(ask(&next, commit("g", 1, &[(1, 4)])).await, Response::Done);
    assert_eq!(placed(&next, beat("new", "one", None)).await.generation, 1);
    // Ends: when it is given the partition.
    let place = loop {
        match ask(&next, beat("g", "one", None)).await {
            Response::Waiting { member: None } => {}
            Response::Place(place) => break place,
            other => panic!("{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!((place.generation, &place.partitions[..]), (2, &[(1, Some(4))][..]));
    assert!(began.elapsed() >= READ_LEASE, "after {:?}", began.elapsed());
    assert!(began.elapsed() < 2 * READ_LEASE, "after {:?}", began.elapsed());
}

/// The log of the table is as long as what it says, however much was written.
#[tokio::test(start_paused = true)]
async fn the_table_stays_short_and_says_the_same_to_the_next_leader() {
    let (_node, table) = table().await;
    let desk = Desk::new(table.clone(), QueueConfig::default(), MAX_BYTES);
    for name in ["t", "u"] {
        assert_eq!(create(&desk, name, 3).await, Response::Done);
    }
    let Response::Producer { id } = ask(&desk, Request::NewProducer).await else {
        panic!("no producer")
    };
    placed(&desk, beat("g", "one", None)).await;
    for offset in 1..4_000 {
        assert_eq!(ask(&desk, commit("g", 1, &[(1, offset)])).await, Response::Done);
    }
    let offsets = table.reader().offsets();
    assert!(offsets.end > 4_000, "{offsets:?}");
    assert!(offsets.end - offsets.start < 1_400, "{offsets:?}");
    let next = Desk::new(table, QueueConfig::default(), MAX_BYTES);
    assert_eq!(create(&next, "t", 3).await, Response::Done, "it is there");
    assert_eq!(create(&next, "u", 4).await, Response::Mismatch { found: 3 });
    let found = ask(&next, Request::NewProducer).await;
    assert_eq!(found, Response::Producer { id: id + 1 }, "no id is given twice");
    assert_eq!(ask(&next, commit("g", 1, &[(2, 1)])).await, Response::Done);
    tokio::time::sleep(READ_LEASE).await;
    let place = placed(&next, beat("g", "two", None)).await;
    assert_eq!(place.partitions, [(1, Some(3_999)), (2, Some(1)), (3, None)]);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_is_rejected_and_changes_nothing() {
    let (_node, table) = table().await;
    let mut limits = QueueConfig::default();
    (limits.max_topics, limits.max_partitions) = (2, 5);
    let desk = Desk::new(table.clone(), limits, MAX_BYTES);
    let end = table.reader().offsets().end;
    for (name, partitions) in [("", 1), ("a b", 1), ("..", 1), ("ok", 0), ("ok", 6)] {
        let rejected = create(&desk, name, partitions).await;
        assert!(matches!(rejected, Response::Rejected { .. }), "{name:?}: {rejected:?}");
    }
    let batch = Request::Append { number: 1, batch: bytes::Bytes::new() };
    assert!(matches!(ask(&desk, batch).await, Response::Rejected { .. }));
    assert_eq!(table.reader().offsets().end, end);
    assert_eq!(create(&desk, "a", 4).await, Response::Done);
    assert!(matches!(create(&desk, "b", 2).await, Response::Rejected { .. }));
    assert_eq!(create(&desk, "b", 1).await, Response::Done);
    assert!(matches!(create(&desk, "c", 1).await, Response::Rejected { .. }));
}

/// Offsets are of a topic's partitions, whose numbers no later topic has.
#[tokio::test(start_paused = true)]
async fn a_deleted_topic_takes_along_what_is_stored_about_it_and_nothing_else() {
    let (_node, table) = table().await;
    let desk = Desk::new(table, QueueConfig::default(), MAX_BYTES);
    let delete = |first_number| Request::DeleteTopic { name: "t".to_owned(), first_number };
    let retain = |first_number| {
        let (name, max_bytes, max_age_ms) = ("t".to_owned(), 9, 8);
        Request::SetRetention { name, first_number, max_bytes, max_age_ms }
    };
    assert_eq!(create(&desk, "t", 2).await, Response::Done);
    assert_eq!(create(&desk, "u", 1).await, Response::Done);
    let member = placed(&desk, beat("g", "one", None)).await.member;
    assert_eq!(ask(&desk, commit("g", 1, &[(1, 5), (2, 1)])).await, Response::Done);
    assert_eq!(ask(&desk, retain(1)).await, Response::Done);
    // An attempt that was held up since a topic before this one.
    assert_eq!(ask(&desk, delete(3)).await, Response::Done);
    assert_eq!(create(&desk, "t", 2).await, Response::Done, "it is there");
    assert_eq!(ask(&desk, delete(1)).await, Response::Done);
    assert_eq!(ask(&desk, delete(1)).await, Response::Done, "it was sent again");
    assert_eq!(ask(&desk, retain(1)).await, Response::NoTopic);
    // Its member does not know yet.
    assert_eq!(ask(&desk, commit("g", 1, &[(1, 6), (3, 2)])).await, Response::Done);
    let foreign = ask(&desk, commit("g", 1, &[(4, 9)])).await;
    assert!(matches!(foreign, Response::Rejected { .. }), "{foreign:?}");
    assert_eq!(create(&desk, "t", 1).await, Response::Done);
    // Ends: when the group has settled.
    let mut place = placed(&desk, beat("g", "one", Some(member))).await;
    while place.must_join {
        place = placed(&desk, join("g", "one", member, place.generation, &[])).await;
    }
    assert_eq!(place.partitions, [(4, None)], "it begins anew");
    for offset in 1..2_000 {
        let stored = ask(&desk, commit("g", place.generation, &[(4, offset)])).await;
        assert_eq!(stored, Response::Done);
    }
    let reign = desk.reign.lock().await;
    let stored = |number| {
        let table = &reign.as_ref().expect("it leads").table;
        table.get(&Key::Offset("g".to_owned(), number)).is_some()
    };
    assert_eq!([1, 2, 3, 4].map(stored), [false, false, true, true]);
}

fn delete(group: &str) -> Request {
    Request::DeleteGroup { group: group.to_owned() }
}

async fn leave(desk: &Arc<Desk>, group: &str, member: Member) {
    let request = Request::Leave { group: group.to_owned(), member };
    assert_eq!(ask(desk, request).await, Response::Done);
}

#[tokio::test(start_paused = true)]
async fn a_deleted_group_has_no_members_and_none_of_its_generations_comes_again() {
    let (_node, table) = table().await;
    let desk = Desk::new(table.clone(), QueueConfig::default(), MAX_BYTES);
    assert_eq!(create(&desk, "t", 2).await, Response::Done);
    let place = placed(&desk, beat("g", "one", None)).await;
    assert_eq!(ask(&desk, commit("g", 1, &[(1, 5), (2, 6)])).await, Response::Done);
    let young = ask(&desk, delete("g")).await;
    assert!(matches!(young, Response::NotNow { .. }), "members of before may come: {young:?}");
    tokio::time::sleep(READ_LEASE).await;
    let refused = ask(&desk, delete("g")).await;
    assert!(matches!(refused, Response::Rejected { .. }), "it has a member: {refused:?}");
    leave(&desk, "g", place.member).await;
    assert_eq!(ask(&desk, delete("g")).await, Response::Done);
    assert_eq!(ask(&desk, delete("g")).await, Response::Done, "there is none");
    assert_eq!(ask(&desk, commit("g", 2, &[(1, 9)])).await, Response::Stale { current: 0 });
    let next = Desk::new(table, QueueConfig::default(), MAX_BYTES);
    let place = placed(&next, beat("g", "two", None)).await;
    assert_eq!((place.generation, &place.partitions[..]), (3, &[(1, None), (2, None)][..]));
    for late in [1, 2] {
        let answer = ask(&next, commit("g", late, &[(1, 9)])).await;
        assert_eq!(answer, Response::Stale { current: 3 });
    }
}

/// Also those whose members are dead, and that have many offsets; not those that are used.
#[tokio::test(start_paused = true)]
async fn groups_that_nobody_uses_expire() {
    let (_node, table) = table().await;
    let desk = Desk::new(table, QueueConfig::default(), MAX_BYTES);
    assert_eq!(create(&desk, "t", 5_000).await, Response::Done);
    let offsets: Vec<(u32, u64)> = (1..=5_000).map(|number| (number, 7)).collect();
    for group in ["left", "dead", "used"] {
        let member = placed(&desk, beat(group, "one", None)).await.member;
        assert_eq!(ask(&desk, commit(group, 1, &offsets)).await, Response::Done);
        if group == "left" {
            leave(&desk, group, member).await;
        }
    }
    tokio::time::sleep(Duration::from_secs(30)).await;
    let place = placed(&desk, beat("used", "two", None)).await;
    let expire = async |unused_ms: u64| {
        let mut parts = 1;
        while ask(&desk, Request::ExpireGroups { unused_ms }).await != Response::Done {
            parts += 1;
            assert!(parts < 100, "it never ends");
        }
        parts
    };
    assert_eq!(expire(1 << 40).await, 1, "they were used lately");
    let stored = async |group: &str, place: Place| {
        let all = place.partitions.iter().all(|(_, stored)| *stored == Some(7));
        let none = place.partitions.iter().all(|(_, stored)| stored.is_none());
        assert!(all != none, "{group}: a part of it is gone");
        all
    };
    assert!(expire(0).await > 1, "a change of the table has its limit");
    let place_of = async |group: &str| placed(&desk, beat(group, "three", None)).await;
    assert!(!stored("left", place_of("left").await).await);
    assert!(!stored("dead", place_of("dead").await).await);
    assert!(stored("used", place).await);
    let Response::Place(place) = ask(&desk, beat("used", "two", None)).await else {
        panic!("it is a member")
    };
    assert!(stored("used", place).await);
}

/// What it holds can still be changed and deleted, which makes room.
#[tokio::test(start_paused = true)]
async fn a_full_table_takes_nothing_new_and_all_else() {
    let (_node, table) = table().await;
    let desk = Desk::new(table, QueueConfig::default(), 20_000);
    assert_eq!(create(&desk, "t", 1).await, Response::Done);
    tokio::time::sleep(READ_LEASE).await;
    let name = |at: usize| format!("group-{at}");
    let mut groups = 0;
    let full = loop {
        match ask(&desk, beat(&name(groups), "one", None)).await {
            Response::Place(place) => leave(&desk, &name(groups), place.member).await,
            other => break other,
        }
        groups += 1;
        assert!(groups < 1_000, "it is never full");
    };
    let is_full = |response: &Response| match response {
        Response::Unable { why } => why.contains("expire_groups"),
        _ => false,
    };
    assert!(is_full(&full) && groups > 10, "{groups}: {full:?}");
    assert!(is_full(&create(&desk, "u", 1).await));
    assert_eq!(create(&desk, "t", 1).await, Response::Done, "it is there");
    let place = placed(&desk, beat(&name(0), "one", None)).await;
    let answer = ask(&desk, commit(&name(0), place.generation, &[(1, 5)])).await;
    assert!(is_full(&answer), "{answer:?}");
    assert!(matches!(ask(&desk, Request::NewProducer).await, Response::Producer { .. }));
    for at in 1..4 {
        assert_eq!(ask(&desk, delete(&name(at))).await, Response::Done);
    }
    let answer = ask(&desk, commit(&name(0), place.generation, &[(1, 5)])).await;
    assert_eq!(answer, Response::Done, "there is room for one");
    let answer = ask(&desk, commit(&name(0), place.generation, &[(1, 6)])).await;
    assert_eq!(answer, Response::Done, "it is there");
    assert_eq!(ask(&desk, Request::ExpireGroups { unused_ms: 0 }).await, Response::Done);
    assert_eq!(create(&desk, "u", 1).await, Response::Done);
    placed(&desk, beat("new", "one", None)).await;
}

/// A partition moves in two rebalances. The request by which its owner joins the first one is sent
/// again when the answer is lost, and comes in the second one: the owner reads the partition still.
#[tokio::test(start_paused = true)]
async fn a_request_to_join_that_comes_again_gives_nothing_away() {
    let (_node, table) = table().await;
    let desk = Desk::new(table, QueueConfig::default(), MAX_BYTES);
    assert_eq!(create(&desk, "t", 2).await, Response::Done);
    let a = placed(&desk, beat("g", "a", None)).await;
    assert_eq!((a.generation, &a.partitions[..]), (1, &[(1, None), (2, None)][..]));
    let Response::Waiting { member: Some(b) } = ask(&desk, beat("g", "b", None)).await else {
        panic!("it waits for the other one")
    };
    let told = placed(&desk, beat("g", "a", Some(a.member))).await;
    assert_eq!(told, Place { must_join: true, ..a.clone() });
    let first = join("g", "a", a.member, told.generation, &[1, 2]);
    let second = placed(&desk, first.clone()).await;
    assert_eq!((second.must_join, second.generation), (true, 2));
    let kept = second.partitions.clone();
    assert_eq!(kept.len(), 1, "one of them is to move");
    assert_eq!(placed(&desk, first.clone()).await, second, "it has not joined this one");
    let b_told = placed(&desk, beat("g", "b", Some(b))).await;
    assert!(b_told.must_join && b_told.generation == 2, "{b_told:?}");
    let waits = Response::Waiting { member: Some(b) };
    assert_eq!(ask(&desk, join("g", "b", b, 2, &[])).await, waits, "the owner has not let go");
    // Now it has.
    let settled = placed(&desk, join("g", "a", a.member, 2, &[kept[0].0])).await;
    assert_eq!(settled, Place { must_join: false, generation: 3, ..second });
    let moved = placed(&desk, beat("g", "b", Some(b))).await;
    assert_eq!((moved.must_join, moved.partitions.len()), (false, 1));
    assert_ne!(moved.partitions, kept);
    // Nor does it begin another rebalance later on.
    assert_eq!(placed(&desk, first).await, settled);
}

/// The first request of a member was held up on its way, and sent again: it reads by then.
#[tokio::test(start_paused = true)]
async fn a_member_does_not_take_its_own_place() {
    let (_node, table) = table().await;
    let desk = Desk::new(table, QueueConfig::default(), MAX_BYTES);
    assert_eq!(create(&desk, "t", 2).await, Response::Done);
    let a = placed(&desk, beat("g", "a", None)).await;
    assert_eq!(placed(&desk, beat("g", "a", None)).await, a);
    let Response::Waiting { member: Some(b) } = ask(&desk, beat("g", "b", None)).await else {
        panic!("it waits for the other one")
    };
    assert_eq!(placed(&desk, beat("g", "a", None)).await, Place { must_join: true, ..a.clone() });
    let waits = Response::Waiting { member: Some(b) };
    assert_eq!(ask(&desk, beat("g", "b", None)).await, waits);
    assert_eq!(ask(&desk, beat("g", "b", Some(b))).await, waits, "the other one reads all of it");
    assert_eq!(placed(&desk, beat("g", "a", Some(a.member))).await.member, a.member);
}
