//! The demo (`store` without a command) and the soak. A copy of the template does without this
//! folder: delete it, and take `demo` out of the default features in `Cargo.toml`.

pub mod certs;
pub mod check;
mod live;
pub mod load;
pub mod model;
pub mod shards;
pub mod soak;

use std::io;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use self::check::Checked;
use self::live::Live;
use self::load::{Load, Shape};
use crate::client::Client;
use crate::cluster::Cluster;
use crate::log::print;
use crate::members::{self, Placed, Wanted};

/// Length of each part of the demo.
const PART: Duration = Duration::from_secs(5);
/// Time between two updates of the live view.
const TICK: Duration = Duration::from_millis(500);

/// Runs a load over three nodes, kills the leader, brings it back, replaces a follower by a new
/// node, and checks what is there; with TLS between the nodes or without.
///
/// # Errors
/// What made the run fail: a lost write, a history that is not linearizable, a crashed node.
///
/// # Cancel safety
/// Dropping the future kills the nodes.
pub async fn run(is_tls: bool) -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let mut cluster = Cluster::new(&std::env::current_exe()?, folder.path(), 3)?;
    let authority = is_tls.then(|| certs::set_up(&mut cluster, folder.path())).transpose()?;
    if is_tls {
        print("TLS 1.3 between the nodes, with certificates made for this run");
    }
    cluster.start_all()?;
    let client = cluster.client();
    let mut live = Live::new();
    let first = cluster.leader(&client).await?;
    print(&format!(
        "three nodes, each a process with its own journal; data and logs in {}",
        folder.path().display()
    ));
    let shape = Shape::default();
    let Shape { clients, .. } = shape;
    live.say(&format!(
        "node {} is the leader in term {}; starting {clients} clients",
        first.id, first.term
    ));

    let load = Load::start(&client, shape);
    show(&mut live, &mut cluster, &client, &load, PART).await?;

    let victim = cluster.leader(&client).await?;
    load.stats.outage_begins();
    cluster.kill(victim.id).await?;
    live.say(&format!("kill -9 of node {}, the leader", victim.id));
    show(&mut live, &mut cluster, &client, &load, PART).await?;
    let failover = load.stats.failover().ok_or("no write was acknowledged after the kill")?;
    live.say(&format!("failover took {} ms", failover.as_millis()));

    cluster.start(victim.id)?;
    live.say(&format!("node {} is restarted", victim.id));
    show(&mut live, &mut cluster, &client, &load, PART).await?;

    let new = cluster.join()?;
    if let Some(authority) = &authority {
        authority.equip(&mut cluster, folder.path(), new)?;
    }
    let old = replace_a_follower(&mut cluster, &client, new).await?;
    live.say(&format!("node {new} has taken the place of node {old}"));
    show(&mut live, &mut cluster, &client, &load, PART).await?;

    let stats = load.stats.clone();
    let history = load.stop().await;
    live.say("the clients have stopped; checking all nodes and the history");
    cluster.caught_up(&client).await?;
    let checked = check::check(&cluster, &client, &history).await?;
    live.draw(&stats, &cluster.statuses(&client).await);

    print(&summary(&checked, failover));
    Ok(())
}

/// Starts node `id`, which learns and gets its vote, while a follower leaves. Returns the follower.
async fn replace_a_follower(
    cluster: &mut Cluster,
    client: &Client,
    id: u64,
) -> Result<u64, Box<dyn std::error::Error>> {
    let leader = cluster.leader(client).await?.id;
    let leaves = |node: &u64| *node != leader && *node != id;
    let old = cluster.ids().into_iter().find(leaves).ok_or("one node only")?;
    cluster.start(id)?;
    let address = |of: u64| cluster.addresses().into_iter().find(|(id, _)| *id == of);
    let (Some((_, to)), Some((_, http))) = (address(leader), address(id)) else {
        return Err("a node without an address".into());
    };
    let peers = cluster.peer_address(id).ok_or("a node without an address")?;
    let add = Some(Placed { id, peers, http: http.to_string() });
    let wanted = Wanted { add, remove: Some(old), ..Wanted::default() };
    members::ask(&[to], &wanted).await?;
    cluster.retire(old).await?;
    Ok(old)
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

/// Updates the live view for `time`.
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
        cluster.no_crash()?;
        live.draw(&load.stats, &cluster.statuses(client).await);
    }
    Ok(())
}
