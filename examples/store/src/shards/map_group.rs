//! Group 0: the first map, and changes of it from any node.

use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use tokio::time::Instant;
use voussoir_raft::{Change as Members, ProposeError};

use super::host::{Failed, Host};
use super::machine::{decode_answer, encode_change};
use super::map::{Address, Change, Refused};
use super::state;
use crate::client::Answered;

/// How long another node may take for a change of the map.
const WAIT: Duration = Duration::from_secs(3);
/// Replicas of each shard.
const REPLICAS: usize = 3;

/// What became of a change that was proposed at this node.
#[derive(Debug)]
pub enum Changed {
    /// The map has this version now.
    Version(u64),
    Refused(Refused),
    /// Another node leads, or nobody that is known. Nothing was changed.
    Elsewhere(Option<u64>),
    /// The change may have been applied or not; it may be sent again.
    Failed(String),
}

/// Proposes a change here. A node that is added learns the map first.
pub async fn propose(host: &Host, change: &Change) -> Changed {
    if let Change::AddNode { id, address } = change {
        // The group does not learn an address that the map would refuse.
        if leader(host) == Some(host.id())
            && let Err(refused) = host.routes().map.clone().apply(change.clone())
        {
            return Changed::Refused(refused);
        }
        let address = format!("{},{}", address.peers, address.http);
        let members = host.map.members().borrow().clone();
        let is_known = members.contains(*id) && members.address(*id) == Some(&address);
        let learns = Members::new().learner(*id).address(*id, address);
        if !members.is_voter(*id)
            && !is_known
            && let Err(error) = host.map.change(learns, Instant::now() + WAIT).await
        {
            return match leader(host) {
                Some(leader) if leader != host.id() => Changed::Elsewhere(Some(leader)),
                _ => Changed::Failed(error.to_string()),
            };
        }
    }
    write(host, change).await
}

/// Proposes here what a shard is said to have done, if this node leads group 0 and the shard's own
/// log says so too.
pub async fn report(host: &Host, change: &Change) -> Changed {
    let leader = leader(host);
    if leader != Some(host.id()) {
        return Changed::Elsewhere(leader);
    }
    if !state::confirms(host, change).await {
        return Changed::Failed("the shard does not confirm it".to_owned());
    }
    write(host, change).await
}

async fn write(host: &Host, change: &Change) -> Changed {
    match host.map.propose(encode_change(change)).await {
        Ok(answer) => match decode_answer(&answer) {
            Ok(Ok(version)) => Changed::Version(version),
            Ok(Err(refused)) => Changed::Refused(refused),
            Err(error) => Changed::Failed(error.to_string()),
        },
        Err(ProposeError::NotLeader { leader }) => Changed::Elsewhere(leader),
        Err(error) => Changed::Failed(error.to_string()),
    }
}

fn leader(host: &Host) -> Option<u64> {
    host.map.status().borrow().leader
}

/// Changes the map, wherever group 0 has its leader. Returns the version.
///
/// # Errors
/// It was refused, or it is to be tried again.
pub async fn change(host: &Host, change: &Change) -> Result<u64, Failed> {
    let (path, changed) = match change.is_report() {
        true => ("/map/report", report(host, change).await),
        false => ("/map", propose(host, change).await),
    };
    let leader = match changed {
        Changed::Version(version) => return Ok(version),
        Changed::Refused(refused) => return Err(refused.into()),
        Changed::Failed(error) => return Err(error.into()),
        Changed::Elsewhere(leader) => leader.ok_or("no leader of the map is known")?,
    };
    let http = host.book.http(leader).ok_or("the leader of the map has no known address")?;
    let body = Bytes::from(serde_json::to_vec(change)?);
    let until = Instant::now() + WAIT;
    match host.client.send_to(http.parse()?, &Method::POST, path, None, body, until).await {
        Ok(Answered::Reply(reply)) if reply.status.is_success() => {
            Ok(serde_json::from_slice(&reply.body)?)
        }
        other => Err(format!("node {leader} did not change the map: {other:?}").into()),
    }
}

/// Writes the first map, if this node leads group 0 and there is none.
///
/// # Errors
/// It is to be tried again.
pub async fn begin(host: &Host) -> Result<(), Failed> {
    let has_map = host.routes().map.version > 0;
    let Some(hashes) = host.serve.shards.filter(|_| !has_map && !host.serve.join) else {
        return Ok(());
    };
    if leader(host) != Some(host.id()) {
        return Ok(());
    }
    let mut nodes = std::collections::BTreeMap::new();
    for peer in &host.serve.peers {
        nodes.insert(peer.id, Address { peers: peer.address, http: peer.http.parse()? });
    }
    let http = host.book.http(host.id()).ok_or("no address of its own")?.parse()?;
    nodes.insert(host.id(), Address { peers: host.serve.listen, http });
    match propose(host, &Change::Begin { nodes, hashes, replicas: REPLICAS }).await {
        Changed::Version(_) | Changed::Refused(Refused::Begun) | Changed::Elsewhere(_) => Ok(()),
        Changed::Refused(refused) => Err(refused.into()),
        Changed::Failed(error) => Err(error.into()),
    }
}
