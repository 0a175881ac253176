//! Checks after a run: no lost write, equal nodes, a linearizable history.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use voussoir_sim::{Ended, check as linearizable};

use super::load::StoreHistory;
use super::model::{OWN, StoreModel, StoreOp};
use crate::client::{Answered, Client};
use crate::cluster::Cluster;

/// Steps after which the checker gives up. An undecided history counts as a failure.
const MAX_STEPS: u64 = 200_000_000;

/// What was checked, all of it without a violation.
#[derive(Debug, Clone, Copy)]
pub struct Checked {
    /// Operations that were acknowledged.
    pub acknowledged: u64,
    /// Operations with an unknown outcome.
    pub unknown: u64,
    /// Keys written once, acknowledged, and found on every node.
    pub kept: usize,
    /// Nodes whose keys were compared.
    pub nodes: usize,
    /// Operations in the history that was checked.
    pub judged: usize,
    /// Keys and listed prefixes in that history.
    pub keys: usize,
}

/// Checks that every acknowledged write is on every node, that all nodes hold the same, and that
/// the history is linearizable. All nodes must have caught up.
///
/// # Errors
/// The first violation, as a sentence.
///
/// # Cancel safety
/// Cancel safe: nothing is changed.
pub async fn check(
    cluster: &Cluster,
    client: &Client,
    history: &StoreHistory,
) -> Result<Checked, String> {
    let written: BTreeSet<&str> = history
        .calls()
        .iter()
        .filter(|call| matches!((&call.op, &call.ended), (StoreOp::Put { .. }, Ended::Ok(_))))
        .map(|call| call.op.target())
        .filter(|key| key.starts_with(OWN))
        .collect();
    let addresses = cluster.addresses();
    let mut first: Option<(u64, Held)> = None;
    for (id, http) in &addresses {
        let held = held(client, *http).await.map_err(|e| format!("node {id}: {e}"))?;
        let lost: Vec<_> = written.iter().filter(|key| !held.contains_key(**key)).take(5).collect();
        if !lost.is_empty() {
            return Err(format!("node {id} has lost acknowledged writes, among them {lost:?}"));
        }
        if let Some((other, theirs)) = &first {
            same(*other, theirs, *id, &held)?;
        }
        first.get_or_insert((*id, held));
    }
    linearizable(&StoreModel, history, MAX_STEPS).map_err(|error| error.to_string())?;
    let (acknowledged, _, unknown) = history.outcomes();
    let keys: BTreeSet<&str> = history.calls().iter().map(|call| call.op.target()).collect();
    Ok(Checked {
        acknowledged,
        unknown,
        kept: written.len(),
        nodes: addresses.len(),
        judged: history.calls().len(),
        keys: keys.len(),
    })
}

/// Version and length of each value, by key.
type Held = BTreeMap<String, (u64, usize)>;

/// Fails when two nodes hold different versions.
fn same(one: u64, held: &Held, other: u64, theirs: &Held) -> Result<(), String> {
    if held == theirs {
        return Ok(());
    }
    let differs = |key: &&String| held.get(*key) != theirs.get(*key);
    let keys: BTreeSet<&String> = held.keys().chain(theirs.keys()).collect();
    let found: Vec<String> = keys
        .into_iter()
        .filter(differs)
        .take(5)
        .map(|key| format!("{key}: {:?} and {:?}", held.get(key), theirs.get(key)))
        .collect();
    Err(format!("nodes {one} and {other} differ (version, bytes): {}", found.join("; ")))
}

/// Reads all keys of one node, a page at a time. The reads are linearizable: the node first applies
/// every write that was acknowledged anywhere, then answers from its own state.
async fn held(client: &Client, node: SocketAddr) -> Result<Held, String> {
    #[derive(serde::Deserialize)]
    struct Listed {
        key: String,
        version: u64,
        bytes: usize,
    }
    let mut held = Held::new();
    let mut after = String::new();
    loop {
        let path = format!("/kv?after={after}&limit=1000");
        let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
        let sent = client.send_to(node, &Method::GET, &path, None, Bytes::new(), deadline).await;
        let Ok(Answered::Reply(reply)) = sent else { return Err(format!("{path}: {sent:?}")) };
        let page: Vec<Listed> =
            serde_json::from_slice(&reply.body).map_err(|e| format!("{path}: {e}"))?;
        match page.last() {
            Some(last) => after.clone_from(&last.key),
            None => return Ok(held),
        }
        held.extend(page.into_iter().map(|listed| (listed.key, (listed.version, listed.bytes))));
    }
}
