//! The copy of a split: the leader of the new shard fetches what the old one has sealed.
//!
//! It asks when its own group has a leader, and the old shard is sealed by the first request: the
//! part that moves is without an owner for as long as the copy takes, and not for an election
//! besides. What was sealed never changes, so any replica of the old shard that has applied the
//! seal can be asked, and the copy goes on behind the last pair that has arrived.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use hyper::Method;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::command::{Command, Reply, Step};
use super::host::{Failed, Host, Replica};
use super::map::ShardInfo;
use super::reconcile::step;
use super::shard::Shard;
use crate::client::Answered;
use crate::kv::Kv;

/// How long a node may take for one chunk.
const WAIT: Duration = Duration::from_secs(2);

/// What is asked for: the part of a shard that goes to shard `to`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    pub to: u64,
    /// Pairs after this place; from the first without one.
    pub after: Option<String>,
}

/// One answer: how many pairs there are in all, the clients, and a chunk of pairs. As bytes: the
/// count (u64, little-endian), the length of the clients (u32), these, and the chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    pub count: u64,
    pub clients: Bytes,
    pub chunk: Bytes,
}

impl Piece {
    /// The piece of a sealed part that comes after a place; `None` where nothing is sealed for that
    /// shard.
    pub fn of(shard: &Shard, wanted: &Wanted) -> Option<Self> {
        let parting = shard.parting().filter(|parting| parting.to == wanted.to)?;
        let after = wanted.after.as_ref().map(|after| Bytes::from(after.clone()));
        let clients = if after.is_none() { parting.clients.encode() } else { Bytes::new() };
        let (_, chunk) = parting.kv.encode_chunk(after.as_ref());
        Some(Self { count: parting.kv.count() as u64, clients, chunk })
    }

    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(12 + self.clients.len() + self.chunk.len());
        out.put_u64_le(self.count);
        out.put_u32_le(self.clients.len() as u32);
        out.put_slice(&self.clients);
        out.put_slice(&self.chunk);
        out.freeze()
    }

    /// `None` where the bytes are none.
    pub fn decode(mut bytes: Bytes) -> Option<Self> {
        let count = bytes.try_get_u64_le().ok()?;
        let len = bytes.try_get_u32_le().ok()? as usize;
        if bytes.len() < len {
            return None;
        }
        let clients = bytes.split_to(len);
        // What is no chunk must not get into the log.
        Kv::default().decode_chunk(bytes.clone()).ok()?;
        Some(Self { count, clients, chunk: bytes })
    }
}

/// Fetches what shard `from` has sealed for shard `id`, and opens it.
///
/// # Errors
/// It is to be tried again: it goes on where it ended.
pub async fn fill(
    host: &Host,
    id: u64,
    info: &ShardInfo,
    from: u64,
    replica: &Replica,
) -> Result<(), Failed> {
    let mut giver = None;
    loop {
        let (after, held) = {
            let shard = replica.shard.read();
            let last =
                shard.pairs().last_key().map(|key| String::from_utf8_lossy(key).into_owned());
            (last, shard.pairs().count() as u64)
        };
        let piece = fetch(host, from, &Wanted { to: id, after }, &mut giver).await?;
        if !piece.clients.is_empty() {
            put(replica, Command::Clients(piece.clients)).await?;
        }
        // Also when it is empty: it carries the version above which those of this shard begin.
        put(replica, Command::Pairs(piece.chunk)).await?;
        let now = replica.shard.read().pairs().count() as u64;
        if now == piece.count {
            let (epoch, start, end) = (info.epoch, info.start.clone(), info.end.clone());
            step(replica, Step::Open { epoch, start, end, count: now }).await?;
            tracing::info!(shard = id, from, pairs = now, "a shard that was split off is open");
            return Ok(());
        }
        if now <= held {
            return Err(format!("{now} pairs have come, of {}", piece.count).into());
        }
    }
}

async fn put(replica: &Replica, command: Command) -> Result<(), Failed> {
    match Reply::decode(&replica.raft.propose(command.encode()).await?)? {
        Reply::Done => Ok(()),
        reply => Err(format!("a piece was answered with {reply:?}").into()),
    }
}

/// Asks the nodes that hold shard `from`, until one has sealed it and answers. That one is asked
/// first for the next piece.
async fn fetch(
    host: &Host,
    from: u64,
    wanted: &Wanted,
    giver: &mut Option<u64>,
) -> Result<Piece, Failed> {
    let routes = host.routes();
    let source = routes.map.shards.get(&from).ok_or("no such shard")?;
    let body = Bytes::from(serde_json::to_vec(wanted)?);
    let path = format!("/shards/{from}/parting");
    for node in order(*giver, host.living_first(holders(source))) {
        let Some(address) = routes.map.nodes.get(&node) else { continue };
        let until = Instant::now() + WAIT;
        let asked =
            host.client.send_to(address.http, &Method::POST, &path, None, body.clone(), until);
        if let Ok(Answered::Reply(reply)) = asked.await
            && reply.status.is_success()
            && let Some(piece) = Piece::decode(reply.body)
        {
            *giver = Some(node);
            return Ok(piece);
        }
    }
    Err(format!("no node gives what shard {from} has sealed").into())
}

/// Nodes that may have a replica: those of the map, and those that it has moved away from, which
/// are members of the group until it has exchanged them.
fn holders(source: &ShardInfo) -> impl Iterator<Item = u64> {
    source.nodes.iter().chain(&source.left).copied()
}

fn order(giver: Option<u64>, nodes: Vec<u64>) -> impl Iterator<Item = u64> {
    giver.into_iter().chain(nodes.into_iter().filter(move |node| Some(*node) != giver))
}

#[cfg(test)]
mod tests {
    use super::order;

    #[test]
    fn the_node_that_gave_the_last_piece_is_asked_first() {
        let asked = |giver| order(giver, vec![1, 2, 3]).collect::<Vec<_>>();
        assert_eq!(asked(None), [1, 2, 3]);
        assert_eq!(asked(Some(2)), [2, 1, 3]);
        assert_eq!(asked(Some(9)), [9, 1, 2, 3]);
    }
}
