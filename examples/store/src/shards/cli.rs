//! `store shards`: what an operator sees and does.

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use super::admin::Admin;
use super::map::Address;
use crate::args::ShardsWanted;
use crate::log::print;

/// How long moves and splits are waited for.
const PATIENCE: Duration = Duration::from_secs(600);

/// Does what is wanted, through the node at `to`.
///
/// # Errors
/// The store refuses it, or it is not done within 10 minutes.
///
/// # Cancel safety
/// After a dropped future a move or a split may go on.
pub async fn run(to: SocketAddr, wanted: ShardsWanted) -> Result<(), Box<dyn Error>> {
    let admin = Admin::new(vec![to]);
    match wanted {
        ShardsWanted::Show => {}
        ShardsWanted::Add { id, peers, http } => {
            let plan = admin.add(id, Address { peers, http }).await?;
            let (moves, percent) = (plan.moves.len(), plan.share * 100.0);
            print(&format!("{moves} replicas move to node {id}, {percent:.1} % of the data"));
            admin.settled(PATIENCE).await?;
        }
        ShardsWanted::Split => {
            let hot = admin.hottest().await.ok_or("no shard is hot: nothing is split")?;
            let new = admin.split(hot.shard, &hot.at).await?;
            print(&format!("shard {} is split at {}: shard {new}", hot.shard, hot.at));
            admin.settled(PATIENCE).await?;
        }
        ShardsWanted::Abort { shard } => {
            admin.abort(shard).await?;
            admin.settled(PATIENCE).await?;
        }
    }
    let (map, statuses) = (admin.map().await, admin.statuses().await);
    print(&format!("map {}", map.version));
    for (id, info) in &map.shards {
        let all = statuses.values().flat_map(|node| &node.shards);
        let held: Vec<_> = all.filter(|shard| shard.id == *id).collect();
        let keys = held.iter().find(|shard| shard.leads).map_or(0, |shard| shard.keys);
        let requests: u64 = held.iter().map(|shard| shard.reads + shard.writes).sum();
        let end = info.end.as_deref().unwrap_or("the end");
        print(&format!(
            "shard {id:<3} epoch {:<3} nodes {:?}  {keys} keys  {requests} requests  \
             '{}' to '{end}'",
            info.epoch, info.nodes, info.start
        ));
    }
    Ok(())
}
