//! A store in shards, in real processes: a node is added and a hot shard split under load, with a
//! `kill -9` in the middle of each.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use store::cluster::Cluster;
use store::demo::shards::{Shape, play};
use store::shards::admin::Admin;
use store::shards::http::{Moved, NodeStatus, ShardStatus};
use store::shards::map::{Address, Change, ShardMap};

use self::support::{Slow, ask, program, wait_until};

mod support;

/// The story of the demo in short: nothing is lost, the history is linearizable, at most an even
/// part of the keys has moved, and the halves of the hot shard are led by different nodes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_added_and_a_shard_split_while_nodes_are_killed() {
    let folder = tempfile::tempdir().unwrap();
    let shape = Shape {
        shards: 8,
        clients: 8,
        kept: 400,
        part: Duration::from_secs(1),
        away: Duration::from_secs(1),
    };
    let shown = play(program(), folder.path(), shape).await.unwrap();
    println!("{shown:?}");
    assert!(shown.moved > 0.0 && shown.moved <= shown.most_moved, "{shown:?}");
    for [(_, left), (_, right)] in shown.halves {
        assert_ne!(left, right, "one node leads both halves: {shown:?}");
    }
    assert!(shown.acknowledged > 100 && shown.followed > 0, "{shown:?}");
}

fn map_of(node: SocketAddr) -> Option<ShardMap> {
    serde_json::from_str(&ask(node, "GET", "/shards", "", "")?.body).ok()
}

/// One node in one process holds all: what is asked of it is answered in every case.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_for_a_key_that_has_moved_is_told_where_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::new(program(), folder.path(), 1).unwrap();
    cluster.set_options(&["--shards", "2"]);
    cluster.start_all().unwrap();
    let (_, node) = cluster.addresses()[0];
    let admin = Admin::new(vec![node]);
    admin.settled(Duration::from_secs(20)).await.unwrap();
    let ready = ask(node, "GET", "/ready", "", "").unwrap();
    assert_eq!(ready.status, 200, "{ready:?}");

    let put = |headers: &str, body: &str| ask(node, "PUT", "/kv/ordered/m", headers, body).unwrap();
    let named = |shard: u64, epoch: u64, request: u64| {
        format!(
            "store-shard: {shard}\r\nstore-epoch: {epoch}\r\nstore-client: 5\r\n\
             store-request: {request}\r\n"
        )
    };
    let first = put(&named(3, 1, 1), "one");
    assert_eq!(first.status, 204, "{first:?}");
    let version =
        |raw: &support::Raw| raw.headers["etag"].trim_matches('"').parse::<u64>().unwrap();

    // A split, by the map alone; the shards do the rest.
    let split = Change::Split { shard: 3, epoch: 1, at: "r/ordered/g".into(), nodes: vec![1] };
    admin.change(&split).await.unwrap();
    admin.settled(Duration::from_secs(20)).await.unwrap();
    wait_until("the map has the split", || map_of(node).is_some_and(|map| map.shards.len() == 4));
    let refused = admin.change(&split).await.unwrap_err();
    assert!(refused.contains("not the one that the change expects"), "{refused}");

    // The old place: a typed answer that says the new one, and nothing is changed.
    let moved = put(&named(3, 1, 2), "two");
    assert_eq!(moved.status, 421, "{moved:?}");
    let moved: Moved = serde_json::from_str(&moved.body).unwrap();
    assert_eq!((moved.shard, moved.epoch, moved.node, moved.http), (4, 2, 1, Some(node)));
    assert_eq!((&*moved.error, &*moved.outcome), ("moved", "not_applied"));
    // The same request at the new place is applied; the first one, sent again, is not.
    let second = put(&named(4, 2, 2), "two");
    assert_eq!(second.status, 204, "{second:?}");
    assert!(version(&second) > version(&first), "a version was given twice");
    let again = put(&named(4, 2, 2), "two");
    assert_eq!((again.status, version(&again)), (204, version(&second)));
    let old = put(&named(4, 2, 1), "one");
    assert_eq!(old.status, 409, "{old:?}");
    let read = ask(node, "GET", "/kv/ordered/m", "", "").unwrap();
    assert_eq!((&*read.body, version(&read)), ("two", version(&second)));
    // Without the headers a node finds the place by itself; a wrong epoch is told the right one.
    assert_eq!(put("", "three").status, 204);
    let stale = put(&named(4, 9, 3), "four");
    let stale: Moved = serde_json::from_str(&stale.body).unwrap();
    assert_eq!((stale.shard, stale.epoch), (4, 2));
    assert_eq!(put("store-client: x\r\nstore-request: 1\r\n", "five").status, 400);

    // All of it is there after a kill.
    cluster.kill(1).await.unwrap();
    cluster.start(1).unwrap();
    admin.settled(Duration::from_secs(20)).await.unwrap();
    let again = put(&named(4, 2, 2), "two");
    assert_eq!((again.status, version(&again)), (204, version(&second)), "{again:?}");
    let read = ask(node, "GET", "/kv/ordered/m", "", "").unwrap();
    assert_eq!(read.body, "three");
    cluster.end_all().await.unwrap();
}

/// The answer of a node to a request without headers, along redirects, as `curl -L` follows them.
fn follow(node: SocketAddr, method: &str, key: &str, body: &str) -> support::Raw {
    let (mut node, path) = (node, format!("/kv/{key}"));
    for _ in 0..4 {
        let answer = ask(node, method, &path, "", body).unwrap();
        if answer.status != 307 {
            return answer;
        }
        let to = answer.headers["location"].trim_start_matches("http://");
        node = to.split('/').next().unwrap().parse().unwrap();
    }
    panic!("{method} {key} is sent round in circles");
}

fn replica_of(node: SocketAddr, shard: u64) -> Option<ShardStatus> {
    let status: NodeStatus =
        serde_json::from_str(&ask(node, "GET", "/status", "", "")?.body).ok()?;
    status.shards.into_iter().find(|replica| replica.id == shard)
}

/// A node that ends while a client uploads slowly: its shards are led by others at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_ends_hands_its_shards_over_before_it_waits_for_a_slow_client() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::new(program(), folder.path(), 3).unwrap();
    cluster.set_options(&["--shards", "1"]);
    cluster.start_all().unwrap();
    let http: Vec<SocketAddr> = cluster.addresses().into_iter().map(|(_, http)| http).collect();
    let admin = Admin::new(http.clone());
    admin.settled(Duration::from_secs(30)).await.unwrap();
    let leads = |node: SocketAddr| replica_of(node, 2).is_some_and(|replica| replica.leads);
    wait_until("shard 2 has a leader", || http.iter().any(|node| leads(*node)));
    let at = http.iter().position(|node| leads(*node)).unwrap();
    let slow = Slow::put(http[at], "/kv/ordered/slow");
    let others: Vec<SocketAddr> = http.iter().copied().filter(|node| *node != http[at]).collect();
    let began = Instant::now();
    let writing = tokio::task::spawn_blocking(move || {
        wait_until("a write at another node", || {
            others.iter().any(|node| {
                ask(*node, "PUT", "/kv/ordered/a", "", "1").is_some_and(|raw| raw.status == 204)
            })
        });
        (began.elapsed(), slow.finish())
    });
    let (ended, written) = tokio::join!(cluster.end(at as u64 + 1), writing);
    ended.unwrap();
    let (took, answer) = written.unwrap();
    assert!(took < Duration::from_secs(3), "nobody led for {took:?}; --drain is 5 s");
    assert!(answer.starts_with("HTTP/1.1 "), "the slow one was in flight: {answer}");
    cluster.end_all().await.unwrap();
}

/// Node 1 is all of group 0, node 2 is to be the left half, node 3 the right one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_split_goes_on_and_both_halves_serve_while_the_map_has_no_leader() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::new(program(), folder.path(), 1).unwrap();
    cluster.set_options(&["--shards", "1"]);
    cluster.start_all().unwrap();
    for id in [2, 3] {
        assert_eq!(cluster.join().unwrap(), id);
        cluster.start(id).unwrap();
    }
    let http: Vec<SocketAddr> = cluster.addresses().into_iter().map(|(_, http)| http).collect();
    let [one, two, three] = http[..] else { panic!("{http:?}") };
    wait_until("all nodes answer", || {
        http.iter().all(|node| ask(*node, "GET", "/status", "", "").is_some())
    });
    let admin = Admin::new(vec![one]);
    let patience = Duration::from_secs(30);
    admin.settled(patience).await.unwrap();
    let address = |id: u64, http| Address { peers: cluster.peer_address(id).unwrap(), http };
    let wrong = admin.plan(2, address(2, three)).await.unwrap_err();
    assert!(wrong.ends_with("is node 3"), "{wrong}");
    for (id, http) in [(2, two), (3, three)] {
        admin.change(&Change::AddNode { id, address: address(id, http) }).await.unwrap();
    }
    admin.change(&Change::Move { shard: 2, old: 1, new: 2 }).await.unwrap();
    admin.settled(patience).await.unwrap();

    // A split whose node is away: nobody is believed that it is done, and it is taken back.
    cluster.pause(3).unwrap();
    let split = Change::Split { shard: 2, epoch: 1, at: "r/ordered/g".into(), nodes: vec![3] };
    admin.change(&split).await.unwrap();
    let said = r#"{"opened":{"shard":3}}"#;
    assert_eq!(ask(one, "POST", "/map", "", said).unwrap().status, 403);
    let lie = ask(one, "POST", "/map/report", "", said).unwrap();
    assert!(lie.status == 503 && lie.body.contains("does not confirm"), "{lie:?}");
    assert!(!map_of(one).unwrap().shards[&3].is_open);
    assert!(admin.change(&Change::Move { shard: 3, old: 3, new: 2 }).await.is_err());
    admin.abort(3).await.unwrap();
    wait_until("the split is taken back", || map_of(one).unwrap().shards.len() == 2);
    cluster.resume(3).unwrap();

    // A split that group 0 sees the beginning of, and not the end.
    let value = "v".repeat(256 * 1024);
    let keys: Vec<String> = (0..160).map(|nth| format!("ordered/m{nth}")).collect();
    for key in &keys {
        assert_eq!(follow(two, "PUT", key, &value).status, 204);
    }
    admin.change(&split).await.unwrap();
    wait_until("the copy has begun", || replica_of(three, 4).is_some_and(|it| it.keys > 0));
    cluster.kill(1).await.unwrap();
    wait_until("the copy is done", || replica_of(three, 4).is_some_and(|it| it.is_open));
    for node in [two, three] {
        let map = map_of(node).unwrap();
        assert!(!map.shards[&4].is_open, "node 1 was killed too late for what is to be shown");
        assert_eq!(follow(node, "PUT", "ordered/a", "left").status, 204);
        assert_eq!(follow(node, "PUT", "ordered/z", "right").status, 204);
        assert_eq!(follow(node, "GET", "ordered/a", "").body, "left");
        assert_eq!(follow(node, "GET", "ordered/z", "").body, "right");
        assert_eq!(follow(node, "GET", &keys[0], "").body.len(), value.len());
        assert_eq!(ask(node, "GET", "/ready", "", "").unwrap().status, 200);
    }

    cluster.start(1).unwrap();
    admin.settled(patience).await.unwrap();
    let map = map_of(one).unwrap();
    assert_eq!(map.shards[&2].end, Some("r/ordered/g".to_owned()), "{map:?}");
    assert_eq!((map.shards[&4].is_open, map.shards[&4].origin), (true, Some(2)));
    for key in &keys {
        assert_eq!(follow(one, "GET", key, "").body.len(), value.len(), "{key}");
    }
    cluster.end_all().await.unwrap();
}

/// A node dies while it catches up as a learner, and the move goes to another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_of_a_move_that_went_elsewhere_leaves_and_deletes_its_replica() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::new(program(), folder.path(), 1).unwrap();
    cluster.set_options(&["--shards", "1"]);
    cluster.start_all().unwrap();
    for id in [2, 3] {
        assert_eq!(cluster.join().unwrap(), id);
        cluster.start(id).unwrap();
    }
    let http: Vec<SocketAddr> = cluster.addresses().into_iter().map(|(_, http)| http).collect();
    let [one, two, three] = http[..] else { panic!("{http:?}") };
    wait_until("all nodes answer", || {
        http.iter().all(|node| ask(*node, "GET", "/status", "", "").is_some())
    });
    let admin = Admin::new(vec![one]);
    let patience = Duration::from_secs(30);
    admin.settled(patience).await.unwrap();
    for (id, http) in [(2, two), (3, three)] {
        let address = Address { peers: cluster.peer_address(id).unwrap(), http };
        admin.change(&Change::AddNode { id, address }).await.unwrap();
    }
    let value = "v".repeat(256 * 1024);
    for nth in 0..160 {
        let key = format!("ordered/m{nth}");
        assert_eq!(follow(one, "PUT", &key, &value).status, 204);
    }
    admin.change(&Change::Move { shard: 2, old: 1, new: 2 }).await.unwrap();
    wait_until("node 2 has a replica", || replica_of(two, 2).is_some());
    cluster.kill(2).await.unwrap();
    let led = replica_of(one, 2).unwrap();
    assert_eq!((&led.voters[..], &led.learners[..]), (&[1][..], &[2][..]), "killed too late");

    admin.change(&Change::Move { shard: 2, old: 2, new: 3 }).await.unwrap();
    admin.settled(patience).await.unwrap();
    let led = replica_of(three, 2).unwrap();
    assert_eq!((led.voters, led.learners, led.keys), (vec![3], Vec::new(), 160));
    cluster.start(2).unwrap();
    wait_until("node 2 has started", || map_of(two).is_some_and(|map| map.version > 0));
    wait_until("node 2 has deleted its replica", || replica_of(two, 2).is_none());
    admin.settled(patience).await.unwrap();
    cluster.end_all().await.unwrap();
}
