//! The demo of the store in shards: a node is added and hot shards are split under load, each with
//! a `kill -9` in the middle; then everything is checked.

pub mod load;
mod view;

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::{Method, StatusCode};
use tokio::task::JoinSet;
use tokio::time::sleep;
use voussoir_sim::check_kv;

use self::load::Load;
use self::view::View;
use crate::cluster::Cluster;
use crate::log::print;
use crate::shards::admin::Admin;
use crate::shards::map::{Address, ShardMap};
use crate::shards::place::ORDERED;
use crate::shards::router::Router;

/// Options of the nodes: elections that a busy machine does not begin by itself.
const TIMING: [&str; 6] =
    ["--heartbeat", "100ms", "--election-min", "500ms", "--election-max", "1000ms"];
/// How long moves and splits may take.
const PATIENCE: Duration = Duration::from_secs(40);
/// Steps after which the checker gives up. An undecided history counts as a failure.
const MAX_STEPS: u64 = 200_000_000;
/// Percentage of requests to ordered keys, before and while these are hot.
const HEAT: (u64, u64) = (10, 85);
/// The part of all keys that may move to the last of n nodes, as a multiple of 1/n.
const MOST_MOVED: f64 = 1.05;

/// What a run is made of.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub shards: u32,
    pub clients: u64,
    /// Keys that are written before the load begins, and looked for at the end.
    pub kept: u64,
    /// Length of each part in which nothing is changed.
    pub part: Duration,
    /// How long a killed node stays away.
    pub away: Duration,
}

/// What a run has shown.
#[derive(Debug, Clone)]
pub struct Shown {
    /// The part of all keys that moved to the new node, replicas counted, and the most that may.
    pub moved: f64,
    pub most_moved: f64,
    /// For each split, the shard that was split and the new one, each with its leader.
    pub halves: [[(u64, u64); 2]; 2],
    /// Operations that were acknowledged, of unknown outcome, and refused.
    pub acknowledged: u64,
    pub unknown: u64,
    pub refused: u64,
    /// Answers that said that a key has moved.
    pub followed: u64,
    /// Operations of the history that was checked.
    pub judged: usize,
    pub kept: u64,
}

/// Runs the demo.
///
/// # Errors
/// What made the run fail: a lost write, a history that is not linearizable, a crashed node, more
/// moved than an even part.
///
/// # Cancel safety
/// Dropping the future kills the nodes.
pub async fn run(shards: u32) -> Result<(), Box<dyn Error>> {
    let part = Duration::from_secs(5);
    let away = Duration::from_secs(2);
    let folder = tempfile::tempdir()?;
    let program = std::env::current_exe()?;
    let shape = Shape { shards, clients: 24, kept: 4000, part, away };
    let shown = play(&program, folder.path(), shape).await?;
    print(&summary(&shown));
    Ok(())
}

/// The nodes of a run, and who looks at them and at what they do.
struct Stage {
    cluster: Cluster,
    admin: Admin,
    router: Router,
    load: Load,
    view: View,
}

/// Plays the whole run.
///
/// # Errors
/// As [`run`].
///
/// # Cancel safety
/// Dropping the future kills the nodes.
pub async fn play(program: &Path, folder: &Path, shape: Shape) -> Result<Shown, Box<dyn Error>> {
    let mut stage = set_up(program, folder, shape).await?;
    stage.watch(shape.part).await?;
    let (moved, most_moved) = add_a_node(&mut stage, shape).await?;
    stage.watch(shape.part).await?;
    let first = split_the_hottest(&mut stage, shape, Victim::Source).await?;
    stage.watch(shape.part).await?;
    let second = split_the_hottest(&mut stage, shape, Victim::Target).await?;
    stage.watch(shape.part).await?;

    let Stage { mut cluster, admin, router, load, .. } = stage;
    let history = load.stop().await;
    print("the clients have stopped; checking what was written and the history");
    cluster.no_crash()?;
    admin.settled(PATIENCE).await?;
    all_kept(&router, shape.kept).await?;
    check_kv(&history, MAX_STEPS).map_err(|error| error.to_string())?;
    let halves = [halves_apart(&admin, first).await?, halves_apart(&admin, second).await?];
    cluster.end_all().await?;
    let (acknowledged, refused, unknown) = history.outcomes();
    Ok(Shown {
        moved,
        most_moved,
        halves,
        acknowledged,
        unknown,
        refused,
        followed: router.followed(),
        judged: history.calls().len(),
        kept: shape.kept,
    })
}

async fn set_up(program: &Path, folder: &Path, shape: Shape) -> Result<Stage, Box<dyn Error>> {
    let mut cluster = Cluster::new(program, folder, 3)?;
    let shards = shape.shards.to_string();
    let options: Vec<&str> = ["--shards", &shards].into_iter().chain(TIMING).collect();
    cluster.set_options(&options);
    cluster.start_all()?;
    let nodes: Vec<_> = cluster.addresses().into_iter().map(|(_, http)| http).collect();
    let (admin, router) = (Admin::new(nodes.clone()), Router::new(nodes));
    let settled = admin.settled(PATIENCE).await;
    cluster.no_crash()?;
    settled?;
    print(&format!(
        "three nodes hold {shards} shards of hashes and one of ordered keys, three replicas each, \
         on one journal a node; data and logs in {}",
        folder.display()
    ));
    keep(&router, shape.kept).await?;
    let load = Load::start(&router, shape.clients);
    load.stats.heat.store(HEAT.0, std::sync::atomic::Ordering::Relaxed);
    print(&format!("{} keys are written; {} clients begin", shape.kept, shape.clients));
    Ok(Stage { cluster, admin, router, load, view: View::default() })
}

impl Stage {
    /// Prints a line a second for this long.
    async fn watch(&mut self, time: Duration) -> Result<(), Box<dyn Error>> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            sleep(Duration::from_secs(1)).await;
            self.cluster.no_crash()?;
            self.view.draw(&self.load.stats, &self.admin.statuses().await);
        }
        Ok(())
    }

    /// Kills a node, and starts it again after a while.
    async fn kill(&mut self, id: u64, why: &str) -> Result<(), Box<dyn Error>> {
        self.cluster.kill(id).await?;
        print(&format!("kill -9 of node {id}, {why}"));
        Ok(())
    }

    async fn back(&mut self, id: u64, away: Duration) -> Result<(), Box<dyn Error>> {
        self.watch(away).await?;
        self.cluster.start(id)?;
        print(&format!("node {id} is started again"));
        Ok(())
    }
}

/// Adds a fourth node under load. One of the others is killed when half of the moves are named.
/// Returns the part of the keys that moved, and the most that may.
async fn add_a_node(stage: &mut Stage, shape: Shape) -> Result<(f64, f64), Box<dyn Error>> {
    let id = stage.cluster.join()?;
    stage.cluster.start(id)?;
    let http = stage.cluster.addresses().into_iter().find(|(node, _)| *node == id);
    let (Some((_, http)), Some(peers)) = (http, stage.cluster.peer_address(id)) else {
        return Err("a node without an address".into());
    };
    let before = stage.admin.map().await;
    let plan = stage.admin.plan(id, Address { peers, http }).await?;
    print(&format!(
        "node {id} is added: {} of {} replicas move to it, {:.1} % of the data",
        plan.moves.len(),
        before.shards.values().map(|info| info.nodes.len()).sum::<usize>(),
        plan.share * 100.0
    ));
    let began = Instant::now();
    let victim = 2;
    for (nth, change) in plan.moves.iter().enumerate() {
        if nth == plan.moves.len() / 2 {
            stage.kill(victim, "which gives and takes part in moves").await?;
        }
        stage.admin.change(change).await?;
    }
    stage.back(victim, shape.away).await?;
    stage.admin.settled(PATIENCE).await?;
    print(&format!("all replicas have moved after {:.1} s", began.elapsed().as_secs_f64()));
    let (after, keys) = (stage.admin.map().await, stage.admin.keys().await);
    let moved = share_moved(&before, &after, &keys);
    let most = MOST_MOVED / after.nodes.len() as f64;
    if moved > most {
        return Err(format!("{moved:.4} of the keys moved, more than {most:.4}").into());
    }
    Ok((moved, most))
}

/// The part of all keys, replicas counted, that are on nodes where they were not before.
fn share_moved(before: &ShardMap, after: &ShardMap, keys: &BTreeMap<u64, u64>) -> f64 {
    let (mut moved, mut all) = (0, 0);
    for (id, info) in &after.shards {
        let held = keys.get(id).copied().unwrap_or(0);
        let old = before.shards.get(id).map(|info| info.nodes.as_slice()).unwrap_or_default();
        let new = info.nodes.iter().filter(|node| !old.contains(node)).count() as u64;
        moved += held * new;
        all += held * info.nodes.len() as u64;
    }
    moved as f64 / all.max(1) as f64
}

/// Who is killed in the middle of a split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    /// The leader of the shard that is split.
    Source,
    /// The node that is to lead the new one.
    Target,
}

/// Heats the ordered keys until a node says that a shard of them is hot, and splits it. A node that
/// takes part is killed as soon as the split is in the map. Returns both halves.
async fn split_the_hottest(
    stage: &mut Stage,
    shape: Shape,
    victim: Victim,
) -> Result<[u64; 2], Box<dyn Error>> {
    stage.load.stats.heat.store(HEAT.1, std::sync::atomic::Ordering::Relaxed);
    print(&format!("{} % of the requests go to keys below {ORDERED} now", HEAT.1));
    let end = Instant::now() + PATIENCE;
    // A shard that has just lost its leader has another one soon.
    let (hot, leader) = loop {
        stage.watch(Duration::from_secs(1)).await?;
        if let Some(hot) = stage.admin.hottest().await.filter(|hot| hot.at.contains(ORDERED))
            && let Some(leader) = leader(&stage.admin, hot.shard).await
        {
            break (hot, leader);
        }
        if Instant::now() >= end {
            return Err("no node has found the hot shard, or it has no leader".into());
        }
    };
    let map = stage.admin.map().await;
    let began = Instant::now();
    let new = stage.admin.split(hot.shard, &hot.at).await?;
    let left = map.shards.get(&hot.shard).map(|info| info.nodes.clone()).unwrap_or_default();
    let after = stage.admin.map().await;
    let right = after.shards.get(&new).map(|info| info.nodes.clone()).unwrap_or_default();
    print(&format!(
        "shard {} takes {:.0} % of its node's requests: it is split at '{}' into {} on {left:?} \
         and {new} on {right:?}",
        hot.shard,
        hot.share * 100.0,
        hot.at,
        hot.shard
    ));
    let (victim, why) = match (victim, right.first()) {
        (Victim::Target, Some(target)) => (*target, "which is to lead the new shard"),
        _ => (leader, "which leads the shard that is split"),
    };
    stage.kill(victim, why).await?;
    stage.back(victim, shape.away).await?;
    stage.admin.settled(PATIENCE).await?;
    let took = began.elapsed().as_secs_f64();
    print(&format!("the halves are apart after {took:.1} s, the kill included"));
    Ok([hot.shard, new])
}

async fn leader(admin: &Admin, shard: u64) -> Option<u64> {
    let statuses = admin.statuses().await;
    let leads = |status: &crate::shards::http::NodeStatus| {
        status.shards.iter().any(|held| held.id == shard && held.leads)
    };
    statuses.into_iter().find(|(_, status)| leads(status)).map(|(id, _)| id)
}

/// Waits until the halves are led by two nodes, and checks that they are not on the same ones.
async fn halves_apart(
    admin: &Admin,
    [left, right]: [u64; 2],
) -> Result<[(u64, u64); 2], Box<dyn Error>> {
    let end = Instant::now() + PATIENCE;
    loop {
        let leaders = (leader(admin, left).await, leader(admin, right).await);
        if let (Some(one), Some(other)) = leaders
            && one != other
        {
            let map = admin.map().await;
            let nodes = |shard| map.shards.get(&shard).map(|info| info.nodes.clone());
            if nodes(left) == nodes(right) {
                return Err("both halves are on the same nodes".into());
            }
            return Ok([(left, one), (right, other)]);
        }
        if Instant::now() >= end {
            return Err(format!("the halves are led by {leaders:?}").into());
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// The keys that are kept: one in eight is ordered.
fn kept_key(number: u64) -> String {
    match number % 8 {
        0 => format!("{ORDERED}kept/{number:05}"),
        _ => format!("kept/{number}"),
    }
}

/// Writes the keys that are looked for at the end.
async fn keep(router: &Router, kept: u64) -> Result<(), String> {
    each_kept(kept, router, |router, number| async move {
        let (key, body) = (kept_key(number), Bytes::from(number.to_string()));
        let sent = router.send(Method::PUT, &key, None, None, body).await;
        let is_written = sent.as_ref().is_ok_and(|reply| reply.status == StatusCode::NO_CONTENT);
        is_written.then_some(()).ok_or_else(|| format!("{key} was not written: {sent:?}"))
    })
    .await
}

/// Looks for them.
async fn all_kept(router: &Router, kept: u64) -> Result<(), String> {
    each_kept(kept, router, |router, number| async move {
        let key = kept_key(number);
        let sent = router.send(Method::GET, &key, None, None, Bytes::new()).await;
        let is_there = sent.as_ref().is_ok_and(|reply| reply.body == number.to_string());
        is_there.then_some(()).ok_or_else(|| format!("{key} is lost: {sent:?}"))
    })
    .await
}

/// Does something for each kept key, 16 at a time.
async fn each_kept<F>(
    kept: u64,
    router: &Router,
    work: impl Fn(Router, u64) -> F + Clone + Send + 'static,
) -> Result<(), String>
where
    F: Future<Output = Result<(), String>> + Send + 'static,
{
    let mut tasks: JoinSet<Result<(), String>> = JoinSet::new();
    for lane in 0..16 {
        let (work, router) = (work.clone(), router.clone());
        tasks.spawn(async move {
            for number in (lane..kept).step_by(16) {
                work(router.clone(), number).await?;
            }
            Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.map_err(|error| error.to_string())??;
    }
    Ok(())
}

fn summary(shown: &Shown) -> String {
    let halves = shown.halves.map(|[(left, one), (right, other)]| {
        format!("shard {left} is led by node {one}, shard {right} by node {other}")
    });
    format!(
        "
operations        {} acknowledged, {} of unknown outcome, {} refused
moved             {:.2} % of the keys to the new node; an even part and 5 % is {:.2} %
splits            {}
followed          {} answers that said that a key has moved
kept keys         {}, none lost
history           linearizable: {} operations",
        shown.acknowledged,
        shown.unknown,
        shown.refused,
        shown.moved * 100.0,
        shown.most_moved * 100.0,
        halves.join("; "),
        shown.followed,
        shown.kept,
        shown.judged,
    )
}
