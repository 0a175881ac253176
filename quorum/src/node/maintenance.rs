//! What a node does by itself: handing over hints, rebuilding, collecting tombstones.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use tokio::time::{Instant, sleep};

use super::{Node, Shared, Status};
use crate::caller::call;
use crate::link::{Class, Link};
use crate::table::{Reply, Request};
use crate::wire::{Answer, Ask};

/// Hints that are handed to one replica in a turn.
const HINTS: usize = 1_000;

/// What a node has to hand over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HintStats {
    /// Keys that other replicas have missed.
    pub waiting: usize,
    /// Keys that were left to read repair, because there were more than `max_hints`.
    pub dropped: u64,
}

impl Node {
    /// Starts a task that keeps the node in order until the node ends, or the link is dropped
    /// elsewhere: it hands missed keys to the replicas that missed them, rebuilds the node when it
    /// is not whole, and collects tombstones, as its configuration says. Start it once.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn maintain(&self, link: &Arc<dyn Link>) {
        // A link that serves the node holds a handle to it: neither is kept alive from here.
        tokio::spawn(run(Arc::downgrade(&self.shared), Arc::downgrade(link)));
    }

    /// Records that a replica has missed a key of which this node holds a newer state.
    pub(crate) fn add_hint(&self, replica: u64, key: Bytes) {
        if replica != self.shared.id {
            self.shared.hints.add(replica, key);
        }
    }

    /// What waits to be handed over.
    pub fn hint_stats(&self) -> HintStats {
        let (waiting, dropped) = self.shared.hints.counts();
        HintStats { waiting, dropped }
    }

    /// Hands the keys that other replicas have missed to those that are there. Returns how many
    /// were handed over. [`Node::maintain`] does it by itself.
    ///
    /// # Cancel safety
    /// Dropping it may lose the hint that is being handed over.
    pub async fn hand_over_hints(&self, link: &Arc<dyn Link>) -> usize {
        let mut handed_over = 0;
        for replica in &self.shared.config.replicas {
            for key in self.shared.hints.of(*replica, HINTS) {
                self.shared.hints.remove(*replica, &key);
                if !self.hand_over(link, *replica, &key).await {
                    self.shared.hints.add(*replica, key);
                    break; // It is away, or busy.
                }
                handed_over += 1;
            }
        }
        handed_over
    }

    async fn hand_over(&self, link: &Arc<dyn Link>, replica: u64, key: &Bytes) -> bool {
        // The epoch is taken before the state is read, as each operation does.
        let request = Request::Epoch { epoch: 0 };
        let Some(Answer::Table(Reply::Epoch { epoch })) =
            self.ask_own(0, Ask::Table(request)).await
        else {
            return false;
        };
        let get = Ask::Table(Request::Get { key: key.clone() });
        let Some(Answer::Table(Reply::Value { state })) = self.ask_own(epoch, get).await else {
            return false;
        };
        let merge = Ask::Table(Request::Merge { key: key.clone(), state });
        let deadline = Instant::now() + self.shared.config.timeout;
        let answer = call(link, replica, Class::Bulk, epoch, merge, deadline).await;
        matches!(answer, Ok((_, Answer::Table(Reply::Merged))))
    }
}

async fn run(shared: Weak<Shared>, link: Weak<dyn Link>) {
    let mut collected = Instant::now();
    // Ends: with the last handle to the node or the link, or when the node halts.
    loop {
        let Some(link) = link.upgrade() else { return };
        let Some(node) = shared.upgrade().map(|shared| Node { shared }) else { return };
        let status = node.shared.status.borrow().clone();
        match status {
            Status::Halted(_) | Status::Stopped => return,
            Status::NotWhole { is_condemned: false } => {
                if let Err(error) = node.rebuild(&link).await {
                    tracing::debug!(target: "voussoir::quorum", %error, "not rebuilt yet");
                }
            }
            Status::NotWhole { .. } => {}
            Status::Whole => {
                node.hand_over_hints(&link).await;
                let every = node.shared.config.collect_every;
                if every.is_some_and(|every| collected.elapsed() >= every) {
                    collected = Instant::now();
                    if let Err(error) = node.collect_tombstones(&link).await {
                        tracing::debug!(target: "voussoir::quorum", %error, "nothing collected");
                    }
                }
            }
        }
        let pause = node.shared.config.maintain_every;
        drop((node, link));
        sleep(pause).await;
    }
}
