//! Limits on a Redis cluster of three nodes that the test starts.
//!
//! Needs a `redis-server` of version 7 on `PATH` or in `VOUSSOIR_REDIS_SERVER`; else says what it
//! left out.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use test_support::RedisServer;
use voussoir_limit::testing::check_counter;
use voussoir_limit::*;

const HOUR: Duration = Duration::from_secs(3600);

struct Cluster {
    nodes: Vec<RedisServer>,
    folder: PathBuf,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.nodes.clear();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Cluster {
    async fn start(name: &str) -> Option<Self> {
        let folder = format!("voussoir-limit-{name}-{}", std::process::id());
        let folder = std::env::temp_dir().join(folder);
        let mut cluster = Self { nodes: Vec::new(), folder };
        for node in 0..3 {
            let started = cluster.start_node(node)?;
            cluster.nodes.push(started);
        }
        let first = cluster.nodes[0].port();
        for (node, range) in [(0, (0, 5461)), (1, (5462, 10_922)), (2, (10_923, 16_383))] {
            let mut connection = cluster.connection(node).await;
            let _: () = ask(&mut connection, &format!("SET-CONFIG-EPOCH {}", node + 1)).await;
            let _: () =
                ask(&mut connection, &format!("ADDSLOTSRANGE {} {}", range.0, range.1)).await;
            let _: () = ask(&mut connection, &format!("MEET 127.0.0.1 {first}")).await;
        }
        let start = Instant::now();
        for node in 0..3 {
            let mut connection = cluster.connection(node).await;
            loop {
                let info: String = ask(&mut connection, "INFO").await;
                if ["cluster_state:ok", "cluster_slots_ok:16384", "cluster_size:3"]
                    .iter()
                    .all(|line| info.contains(line))
                {
                    break;
                }
                assert!(start.elapsed() < Duration::from_secs(20), "no cluster: {info}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Some(cluster)
    }

    fn start_node(&self, node: usize) -> Option<RedisServer> {
        let folder = self.folder.join(node.to_string());
        std::fs::create_dir_all(&folder).unwrap();
        let folder = folder.to_str().unwrap();
        let options = ["--cluster-enabled", "yes", "--cluster-require-full-coverage", "no"];
        let options = [&options[..], &["--cluster-node-timeout", "2000", "--dir", folder]];
        RedisServer::start(&options.concat())
    }

    async fn connection(&self, node: usize) -> MultiplexedConnection {
        let client = redis::Client::open(self.nodes[node].url()).unwrap();
        // Longer than any command here may block, WAIT included.
        let config = redis::AsyncConnectionConfig::new();
        let config = config.set_response_timeout(Some(Duration::from_secs(20)));
        client.get_multiplexed_async_connection_with_config(&config).await.unwrap()
    }

    fn counter(&self, when_lost: WhenLost) -> Arc<dyn Counter> {
        let clients = self.nodes.iter().map(|node| redis::Client::open(node.url()).unwrap());
        Arc::new(RedisCounter::cluster(clients, "limit:", when_lost).unwrap())
    }
}

async fn ask<T: redis::FromRedisValue>(connection: &mut MultiplexedConnection, call: &str) -> T {
    let mut command = redis::cmd("CLUSTER");
    command.arg(call.split(' ').collect::<Vec<_>>());
    command.query_async(connection).await.unwrap()
}

#[tokio::test]
async fn a_cluster_conforms() {
    let Some(cluster) = Cluster::start("conforms").await else { return };
    check_counter(&*cluster.counter(WhenLost::Fresh), "a").await;
}

/// The keys of a batch are in all nodes, each with all that its decisions need.
#[tokio::test]
async fn keys_are_spread_and_each_is_in_the_slot_of_its_name() {
    let Some(cluster) = Cluster::start("spread").await else { return };
    let counter = cluster.counter(WhenLost::Fresh);
    let names: Vec<String> = (0..60).map(|key| format!("user-{key}")).collect();
    let quota = Quota::gcra(1, HOUR).burst(5);
    let takes: Vec<Take<'_>> =
        names.iter().map(|key| Take { key, quota, least: 1, most: 3 }).collect();
    for expected in [3, 2, 0] {
        let taken = counter.take(&takes).await;
        let granted = |taken: &Result<Taken, _>| taken.as_ref().unwrap().granted == expected;
        assert!(taken.iter().all(granted), "{taken:?}");
    }
    let mut connection = cluster.connection(0).await;
    for name in &names {
        let whole: u64 = ask(&mut connection, &format!("KEYSLOT limit:{{{name}}}")).await;
        let tag: u64 = ask(&mut connection, &format!("KEYSLOT {name}")).await;
        assert_eq!(whole, tag);
    }
    let mut total = 0;
    for node in 0..3 {
        let mut connection = cluster.connection(node).await;
        let keys: u64 = redis::cmd("DBSIZE").query_async(&mut connection).await.unwrap();
        assert!(keys > 5, "node {node} has {keys} keys");
        total += keys;
    }
    assert_eq!(total, 60);
}

/// A node is killed and comes back empty: its keys fail meanwhile and start drained, those of the
/// others go on.
#[tokio::test]
async fn a_node_that_dies_takes_only_its_own_keys_along() {
    let Some(mut cluster) = Cluster::start("dies").await else { return };
    let counter = cluster.counter(WhenLost::Drained);
    let quota = Quota::gcra(1, Duration::from_millis(100)).burst(1000);
    let names: Vec<String> = (0..30).map(|key| format!("user-{key}")).collect();
    let mut connection = cluster.connection(0).await;
    let mut of_last = Vec::new();
    for name in &names {
        of_last.push(ask::<u64>(&mut connection, &format!("KEYSLOT {name}")).await > 10_922);
    }
    let strict = Strict::new(counter, quota, {
        let mut outage = OutageConfig::default();
        (outage.rest, outage.timeout) = (Duration::ZERO, Duration::from_secs(3));
        outage
    });
    let strict = strict.unwrap();
    // How many of the keys of the last node, and of the others, get an answer.
    let answered = async || {
        let mut answered = [0, 0];
        for (name, of_last) in names.iter().zip(&of_last) {
            let answer = strict.check(name, 1).await;
            answered[usize::from(!of_last)] +=
                usize::from(!matches!(answer, Err(SharedError::Store(_))));
        }
        answered
    };
    let of_last_count = of_last.iter().filter(|last| **last).count();
    let all = [of_last_count, 30 - of_last_count];
    assert_eq!(answered().await, all);
    cluster.nodes[2].kill();
    assert_eq!(answered().await, [0, all[1]]);
    cluster.nodes[2].restart();
    let start = Instant::now();
    while answered().await != all {
        assert!(start.elapsed() < Duration::from_secs(20), "the node does not come back");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Two minutes' worth is the burst, and none of its time has passed.
    let (last, _) = names.iter().zip(&of_last).find(|(_, last)| **last).unwrap();
    let rejected = strict.check(last, 900).await.unwrap_err();
    assert!(matches!(rejected, SharedError::Rejected(_)), "{rejected}");
}

/// With the default configuration: a node that is killed, and one that is stopped where it is, so
/// that nobody answers. Keys of other nodes are answered all the time, and those of the dead one
/// are left alone after the first time limit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_node_rests_its_own_keys_only() {
    let Some(mut cluster) = Cluster::start("rests").await else { return };
    let names: Vec<String> = (0..60).map(|key| format!("user-{key}")).collect();
    let mut connection = cluster.connection(0).await;
    let mut of_last = Vec::new();
    for name in &names {
        of_last.push(ask::<u64>(&mut connection, &format!("KEYSLOT {name}")).await > 10_922);
    }
    for stopped in [true, false] {
        let counter = cluster.counter(WhenLost::Fresh);
        let quota = Quota::gcra(1, Duration::from_millis(100)).burst(1000);
        let strict =
            Arc::new(Strict::new(Arc::clone(&counter), quota, OutageConfig::default()).unwrap());
        let ask_all = async || {
            let calls = names.iter().map(|name| {
                let (strict, name) = (Arc::clone(&strict), name.clone());
                tokio::spawn(async move { strict.check(&name, 1).await })
            });
            let mut answers = Vec::new();
            for call in calls.collect::<Vec<_>>() {
                answers.push(call.await.unwrap());
            }
            answers
        };
        let start = Instant::now();
        while !ask_all().await.iter().all(Result::is_ok) {
            assert!(start.elapsed() < Duration::from_secs(20), "the cluster does not answer");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // The map of slots is read in the background: until then the keys of a server are not
        // known.
        let servers = |last: bool| -> HashSet<u64> {
            let keys = names.iter().zip(&of_last).filter(|(_, of_last)| **of_last == last);
            keys.map(|(name, _)| counter.server_of(name)).collect()
        };
        while servers(true).len() != 1 || !servers(true).is_disjoint(&servers(false)) {
            assert!(start.elapsed() < Duration::from_secs(20), "the map is not read");
            tokio::time::sleep(Duration::from_millis(5)).await;
            ask_all().await;
        }
        if stopped {
            cluster.nodes[2].signal("STOP");
        } else {
            cluster.nodes[2].kill();
        }
        let (start, mut rounds, mut unanswered) = (Instant::now(), 0, 0);
        let (mut resting, mut failed_elsewhere) = (0, Vec::new());
        while start.elapsed() < Duration::from_secs(3) {
            for (answer, of_last) in ask_all().await.iter().zip(&of_last) {
                match answer {
                    Err(SharedError::Store(StoreError::Resting)) if *of_last => resting += 1,
                    Err(SharedError::Store(_)) if *of_last => unanswered += 1,
                    Ok(_) if !of_last => {}
                    answer => failed_elsewhere.push((start.elapsed(), answer.clone())),
                }
            }
            rounds += 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        eprintln!("stopped {stopped}: {rounds} rounds, {unanswered} unanswered, {resting} resting");
        assert!(failed_elsewhere.is_empty(), "{rounds} rounds: {failed_elsewhere:?}");
        let of_last = of_last.iter().filter(|last| **last).count();
        // One round of questions in each 500 ms of rest: at most 7 in 3 s, and one on its way.
        assert!(unanswered <= 8 * of_last, "{unanswered} of {of_last} keys");
        assert!(resting > unanswered, "{resting} resting");
        if stopped {
            cluster.nodes[2].signal("CONT");
        } else {
            cluster.nodes[2].restart();
        }
    }
}

/// A node is killed and its replica takes over: the keys of the node go on with what the replica
/// has, and those of other nodes never notice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_takes_over_is_found_with_what_it_has() {
    let Some(mut cluster) = Cluster::start("takes-over").await else { return };
    let Some(replica) = cluster.start_node(3) else { return };
    cluster.nodes.push(replica);
    let mut of_replica = cluster.connection(3).await;
    let first = cluster.nodes[0].port();
    let _: () = ask(&mut of_replica, &format!("MEET 127.0.0.1 {first}")).await;
    let primary: String = ask(&mut cluster.connection(2).await, "MYID").await;
    let start = Instant::now();
    while !ask::<String>(&mut of_replica, "NODES").await.contains(&primary) {
        assert!(start.elapsed() < Duration::from_secs(20), "the nodes do not meet");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let _: () = ask(&mut of_replica, &format!("REPLICATE {primary}")).await;
    loop {
        let mut info = redis::cmd("INFO");
        let info: String = info.arg("replication").query_async(&mut of_replica).await.unwrap();
        if info.contains("master_link_status:up") {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "the replica does not follow: {info}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let counter = cluster.counter(WhenLost::Fresh);
    let mut outage = OutageConfig::default();
    outage.timeout = Duration::from_secs(1);
    let strict = Strict::new(counter, Quota::gcra(1, HOUR).burst(1000), outage).unwrap();
    let (mut last, mut other) = (None, None);
    for key in (0..).map(|key| format!("user-{key}")) {
        let slot: u64 = ask(&mut of_replica, &format!("KEYSLOT {key}")).await;
        let place = if slot > 10_922 { &mut last } else { &mut other };
        place.get_or_insert(key);
        if last.is_some() && other.is_some() {
            break;
        }
    }
    let (last, other) = (last.unwrap(), other.unwrap());
    assert_eq!(strict.check(&last, 900).await.unwrap().remaining, 100);
    // WAIT counts the replicas that have the last write of its own connection, and each replica
    // for a connection that has written nothing: without this mark it would prove nothing.
    let mut primary = cluster.connection(2).await;
    let mark = format!("mark of {{{last}}}");
    let _: () = redis::cmd("SET").arg(mark).arg(1).query_async(&mut primary).await.unwrap();
    let copies: u64 =
        redis::cmd("WAIT").arg(1).arg(10_000).query_async(&mut primary).await.unwrap();
    assert_eq!(copies, 1, "the take is not replicated");
    cluster.nodes[2].kill();
    let (start, mut errors) = (Instant::now(), 0);
    let pass = loop {
        strict.check(&other, 1).await.expect("the other nodes are well");
        match strict.check(&last, 1).await {
            Err(SharedError::Store(error)) => {
                errors += 1;
                assert!(start.elapsed() < Duration::from_secs(30), "nobody takes over: {error}");
            }
            answer => break answer.unwrap(),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(errors > 0, "the node is dead");
    assert_eq!(pass.remaining, 99, "the replica knows of the 900");
}
