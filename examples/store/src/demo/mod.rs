//! What `cargo run --release -p store` shows. Leave this folder out when you copy the template.

pub mod check;
pub mod client;
pub mod cluster;
mod live;
pub mod load;
pub mod model;
pub mod soak;
pub mod up;

use std::io;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use self::check::Checked;
use self::client::Client;
use self::cluster::Cluster;
use self::live::{Live, print, status_of};
use self::load::{Load, Shape};
use crate::http::NodeStatus;

/// How long each part of the demo goes on.
const PART: Duration = Duration::from_secs(5);
/// How long the cluster may take to elect its first leader, or to catch up at the end.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks at the nodes.
const TICK: Duration = Duration::from_millis(500);

/// Runs a load over three nodes, kills the leader, brings it back, and checks what is there.
///
/// # Errors
/// Whatever made the run fail: a lost write, a history that is not linearizable, a crashed node.
///
/// # Cancel safety
/// Dropped, the nodes are killed.
pub async fn run() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let mut cluster = Cluster::new(&std::env::current_exe()?, folder.path(), 3)?;
    cluster.start_all()?;
    let client = client_of(&cluster);
    let mut live = Live::new();
    let first = leader(&cluster, &client).await?;
    print(&format!(
        "three nodes, each a process with a journal of its own, below {}",
        folder.path().display()
    ));
    let shape = Shape::default();
    let Shape { clients, .. } = shape;
    live.say(&format!("node {} leads term {}; {clients} clients start", first.id, first.term));

    let load = Load::start(&client, shape);
    show(&mut live, &mut cluster, &client, &load, PART).await?;

    let victim = leader(&cluster, &client).await?;
    load.stats.outage_begins();
    cluster.kill(victim.id).await?;
    live.say(&format!("kill -9 of node {}, the leader", victim.id));
    show(&mut live, &mut cluster, &client, &load, PART).await?;
    let failover = load.stats.failover().ok_or("no write was acknowledged after the kill")?;
    live.say(&format!("failover took {} ms", failover.as_millis()));

    cluster.start(victim.id)?;
    live.say(&format!("node {} is started again", victim.id));
    show(&mut live, &mut cluster, &client, &load, PART).await?;

    let stats = load.stats.clone();
    let history = load.stop().await;
    live.say("the load has stopped; checking");
    caught_up(&cluster, &client).await?;
    let checked = check::check(&cluster, &client, &history).await?;
    live.draw(&stats, &statuses(&cluster, &client).await);

    print(&summary(&checked, failover));
    Ok(())
}

fn summary(checked: &Checked, failover: Duration) -> String {
    let Checked { acknowledged, unknown, kept, nodes, judged, keys } = checked;
    let failover = failover.as_millis();
    format!(
        "
operations        {acknowledged} acknowledged
                  {unknown} with an unknown outcome
failover          {failover} ms, from the kill to the first new write
acknowledged keys {kept} on each of {nodes} nodes, none lost
history           linearizable: {judged} operations on {keys} keys and prefixes"
    )
}

fn client_of(cluster: &Cluster) -> Client {
    Client::new(cluster.addresses().into_iter().map(|(_, http)| http).collect())
}

/// Draws the load and the nodes until `time` is over.
async fn show(
    live: &mut Live,
    cluster: &mut Cluster,
    client: &Client,
    load: &Load,
    time: Duration,
) -> io::Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        sleep(TICK).await;
        no_crash(cluster)?;
        live.draw(&load.stats, &statuses(cluster, client).await);
    }
    Ok(())
}

fn no_crash(cluster: &mut Cluster) -> io::Result<()> {
    match cluster.crashed().first() {
        Some((id, status)) => {
            let said = cluster.log(*id);
            Err(io::Error::other(format!("node {id} ended by itself, {status}:\n{said}")))
        }
        None => Ok(()),
    }
}

/// What each node says of itself; `None` where it is down or does not answer.
pub type Statuses = Vec<(u64, Option<NodeStatus>)>;

/// What every node says of itself.
pub async fn statuses(cluster: &Cluster, client: &Client) -> Statuses {
    let mut statuses = Vec::new();
    for (id, http) in cluster.addresses() {
        let status = if cluster.is_up(id) { status_of(client, http).await } else { None };
        statuses.push((id, status));
    }
    statuses
}

/// The leader of the newest term, once a node says that it is.
///
/// # Errors
/// Where there is none within the patience of the demo.
///
/// # Cancel safety
/// Dropped, nothing is left behind.
pub async fn leader(cluster: &Cluster, client: &Client) -> Result<NodeStatus, String> {
    until(cluster, client, "no node leads", |nodes| {
        let known = nodes.into_iter().filter_map(|(_, status)| status);
        let leaders = known.filter(|status| status.leader == Some(status.id));
        leaders.max_by_key(|status| status.term)
    })
    .await
}

/// Waits until every node has applied what the leader has committed by now.
///
/// # Errors
/// Where one has not within the patience of the demo.
///
/// # Cancel safety
/// Dropped, nothing is left behind.
pub async fn caught_up(cluster: &Cluster, client: &Client) -> Result<(), String> {
    let goal = leader(cluster, client).await?.commit;
    until(cluster, client, &format!("a node has not applied entry {goal}"), |nodes| {
        let applied = |node: &Option<NodeStatus>| node.as_ref().is_some_and(|n| n.applied >= goal);
        nodes.iter().all(|(_, node)| applied(node)).then_some(())
    })
    .await
}

/// Asks all nodes again and again until `found` finds what it looks for.
async fn until<T>(
    cluster: &Cluster,
    client: &Client,
    otherwise: &str,
    found: impl Fn(Statuses) -> Option<T>,
) -> Result<T, String> {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if let Some(found) = found(statuses(cluster, client).await) {
            return Ok(found);
        }
        sleep(Duration::from_millis(20)).await;
    }
    Err(format!("{otherwise} within {} s", PATIENCE.as_secs()))
}
