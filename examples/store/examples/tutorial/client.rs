//! Adds exactly once, whatever happens to nodes and messages on the way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout_at};
use voussoir_raft::Outcome;

use crate::counters::Add;
use crate::node::{Error, NODES, Node};

/// The nodes that can be reached, by id. A service of several processes has their addresses here,
/// and sends the command over HTTP instead of calling `propose`.
pub type Nodes = Arc<Mutex<BTreeMap<u64, Node>>>;

/// Time between two attempts, for an election to end.
const PAUSE: Duration = Duration::from_millis(20);

/// What became of an addition.
#[derive(Debug)]
pub enum Added {
    /// It was applied once, and this is the value after it.
    Done { value: i64, unknown_attempts: u32 },
    /// It was never applied and never will be.
    NotApplied,
    /// The deadline passed, and nobody knows.
    Unknown,
}

/// Proposes the command until a node answers or the deadline passes.
pub async fn add(nodes: &Nodes, command: &Add, deadline: Instant) -> Result<Added, Error> {
    let bytes = Bytes::from(serde_json::to_vec(command)?);
    let (mut at, mut unknown_attempts) = (NODES[0], 0);
    while Instant::now() < deadline {
        let node = nodes.lock().get(&at).cloned();
        let mut leader = None;
        if let Some(node) = node {
            match timeout_at(deadline, node.raft.propose(bytes.clone())).await {
                Ok(Ok(answer)) => {
                    let value = serde_json::from_slice(&answer)?;
                    return Ok(Added::Done { value, unknown_attempts });
                }
                Ok(Err(error)) => {
                    // The attempt may have been applied, or may be later. It is sent again all the
                    // same, because the machine knows the request by its number.
                    unknown_attempts += u32::from(error.outcome() == Outcome::Unknown);
                    if !error.is_retryable() {
                        break;
                    }
                    leader = error.leader();
                }
                Err(_) => unknown_attempts += 1,
            }
        }
        at = leader.unwrap_or(at % NODES.len() as u64 + 1);
        sleep(PAUSE).await;
    }
    Ok(if unknown_attempts > 0 { Added::Unknown } else { Added::NotApplied })
}
