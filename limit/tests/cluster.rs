//! Limits on a Redis cluster of three nodes that the test starts.
//!
//! Needs a `redis-server` of version 7 on `PATH` or in `VOUSSOIR_REDIS_SERVER`; else says what it
//! left out.

mod support;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::cluster::ClusterClient;
use support::RedisServer;
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
            let folder = cluster.folder.join(node.to_string());
            std::fs::create_dir_all(&folder).unwrap();
            let folder = folder.to_str().unwrap();
            let options = ["--cluster-enabled", "yes", "--cluster-require-full-coverage", "no"];
            let options = [&options[..], &["--cluster-node-timeout", "2000", "--dir", folder]];
            cluster.nodes.push(RedisServer::start(&options.concat())?);
        }
        let first = cluster.nodes[0].port;
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

    async fn connection(&self, node: usize) -> MultiplexedConnection {
        let client = redis::Client::open(self.nodes[node].url()).unwrap();
        client.get_multiplexed_async_connection().await.unwrap()
    }

    fn counter(&self, when_lost: WhenLost) -> Arc<dyn Counter> {
        let nodes = self.nodes.iter().map(RedisServer::url);
        let client = ClusterClient::builder(nodes)
            .retries(1)
            .connection_timeout(Duration::from_millis(500))
            .response_timeout(Duration::from_millis(500))
            .build()
            .unwrap();
        Arc::new(RedisCounter::cluster(client, "limit:", when_lost))
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
    let denied = strict.check(last, 900).await.unwrap_err();
    assert!(matches!(denied, SharedError::Denied(_)), "{denied}");
}
