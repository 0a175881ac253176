//! What a shard's own group says of itself, asked by other nodes: what they undo or report rests on
//! its log, and not on a map that may be old or a request that anybody may send.

use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::host::{Host, Replica};
use super::map::{Change, ShardInfo};
use crate::client::Answered;

/// How long one node is asked.
const WAIT: Duration = Duration::from_millis(500);

/// What a replica has applied, and so what stays true: a shard that was opened never closes, and a
/// bar is never lifted. `GET /shards/{id}/state`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardState {
    pub is_open: bool,
    /// Nothing is sealed for shards up to this number.
    pub barred: u64,
    /// The members of the group, from its leader and once they are committed.
    pub members: Option<Vec<u64>>,
}

impl ShardState {
    pub async fn of(replica: &Replica) -> Self {
        let members = members(replica).await;
        let shard = replica.shard.read();
        Self { is_open: shard.span().is_some(), barred: shard.barred(), members }
    }
}

async fn members(replica: &Replica) -> Option<Vec<u64>> {
    if !replica.leads() || replica.raft.read(Instant::now() + WAIT).await.is_err() {
        return None;
    }
    let status = replica.raft.status().borrow().clone();
    let members = replica.raft.members().borrow().clone();
    let is_settled = status.members_index <= status.commit && !members.is_joint();
    (is_settled && replica.leads()).then(|| members.members().collect())
}

/// The first node that holds shard `id` by the map and whose replica is as `is_so` says.
pub async fn find(
    host: &Host,
    id: u64,
    info: &ShardInfo,
    is_so: impl Fn(&ShardState) -> bool,
) -> Option<u64> {
    if let Some(replica) = host.replica(id)
        && is_so(&ShardState::of(&replica).await)
    {
        return Some(host.id());
    }
    let routes = host.routes();
    for node in host.living_first(info.nodes.iter().copied()) {
        let Some(address) = routes.map.nodes.get(&node).filter(|_| node != host.id()) else {
            continue;
        };
        let (path, until) = (format!("/shards/{id}/state"), Instant::now() + WAIT);
        let asked =
            host.client.send_to(address.http, &Method::GET, &path, None, Bytes::new(), until);
        if let Ok(Answered::Reply(reply)) = asked.await
            && reply.status.is_success()
            && serde_json::from_slice(&reply.body).is_ok_and(|state| is_so(&state))
        {
            return Some(node);
        }
    }
    None
}

/// Whether the shard's log holds what a change of the map reports of it.
pub async fn confirms(host: &Host, change: &Change) -> bool {
    let routes = host.routes();
    let info = |shard: &u64| routes.map.shards.get(shard);
    match change {
        Change::Opened { shard } => match info(shard) {
            Some(known) => find(host, *shard, known, |state| state.is_open).await.is_some(),
            None => false,
        },
        Change::Aborted { shard } => {
            let from = info(shard).and_then(ShardInfo::fills_from);
            match from.and_then(|from| Some((from, info(&from)?))) {
                Some((from, known)) => {
                    find(host, from, known, |state| state.barred >= *shard).await.is_some()
                }
                None => false,
            }
        }
        _ => false,
    }
}
