//! Likes: a counter that goes up and down on each side of a partition, and adds up afterwards.

use std::sync::Arc;

use tokio::sync::Mutex;
use voussoir_quorum::crdt::codec::{Limits, merge_siblings};
use voussoir_quorum::crdt::{Crdt, PnCounter};
use voussoir_quorum::store::JournalStoreConfig;
use voussoir_quorum::table::{Guarantee, Level, Outcome, ReadRepair, TableConfig};
use voussoir_quorum::{Bytes, JournalStore, Link, Node, ReplicaStore, Table};

use crate::Error;
use crate::cluster::{Server, TIMEOUT};
use crate::own::{Own, encode};

/// The counters as one node sees them, in a table that reads and writes at one replica.
///
/// A counter is a PN-counter: what each actor has added, and what it has taken away. Two of them
/// merge without a loss, in any order and repeatedly, so that concurrent writes of a key, which the
/// table keeps as siblings, are one number when they are read.
pub(crate) struct Likes {
    table: Table,
    /// What this node has added. One addition is under way at a time, so that no two are based on
    /// the same share.
    own: Mutex<Own>,
}

impl Likes {
    pub(crate) async fn new(server: &Server) -> Result<Self, Error> {
        let (replicas, link) = (server.replicas.clone(), server.link.clone());
        // One node lives in the journal, so every number but its own is free.
        let (number, config) = (!server.node.id(), JournalStoreConfig::default());
        let own = JournalStore::open(&server.journal, number, config)?;
        Self::over(&server.node, replicas, link, Arc::new(own)).await
    }

    async fn over(
        node: &Node,
        replicas: Vec<u64>,
        link: Arc<dyn Link>,
        own: Arc<dyn ReplicaStore>,
    ) -> Result<Self, Error> {
        let id = node.id();
        let mut config = TableConfig::with_replicas(replicas);
        // Available whoever is away: one replica answers, and that is the own one if it can.
        (config.read, config.write) = (Level::One, Level::One);
        (config.local, config.timeout) = (Some(id), TIMEOUT);
        // The table says what such levels give, and refuses to be built if more is required.
        config.require = Guarantee::Eventual;
        config.read_repair = ReadRepair::Background;
        let table = Table::with_hints(config, link, node)?;
        Ok(Self { table, own: Mutex::new(Own::open(id, own).await?) })
    }

    /// Adds `n` to a counter, which is durable at one replica then. Returns its value here.
    ///
    /// # Errors
    /// No replica could be written to. If it is not known whether one was, the addition may count,
    /// as it may where the future is dropped. Or the counter has as many actors as a reader
    /// accepts, and this node is none of them.
    pub(crate) async fn add(&self, key: &Bytes, n: i64) -> Result<i128, Error> {
        let own = self.own.lock().await;
        let stored = self.table.get(key.clone()).await?;
        let mut counter: PnCounter = merge_siblings(&stored, &Limits::default())?;
        // Another replica may have answered, which has not heard of the latest addition.
        let before: PnCounter = own.get(key).await?;
        counter.merge(&before);
        let delta = counter.add(own.actor, n)?;
        let mut after = before.clone();
        after.merge(&delta);
        let value = encode(&counter)?;
        // Before it is sent: a process that ends, or a caller that goes away, leaves it unknown
        // whether a replica has it, and the next addition must be based on what may be stored.
        own.put(key, encode(&after)?).await?;
        let written = self.table.put(key.clone(), stored.context(), value).await;
        if let Err(error) = written {
            if error.outcome() == Outcome::NotApplied {
                own.put(key, encode(&before)?).await?;
            }
            return Err(error.into());
        }
        Ok(counter.value())
    }

    /// The counter as one replica has it.
    ///
    /// # Errors
    /// No replica answers.
    pub(crate) async fn show(&self, key: &Bytes) -> Result<i128, Error> {
        let stored = self.table.get(key.clone()).await?;
        let counter: PnCounter = merge_siblings(&stored, &Limits::default())?;
        Ok(counter.value())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use voussoir_quorum::table::CallError;
    use voussoir_quorum::{Class, Instant, MemoryStore, NodeConfig, async_trait};

    use super::*;

    /// Three nodes, of which calls reach one. After so many more calls no answer comes back.
    struct Switch {
        nodes: Vec<Node>,
        reached: AtomicU64,
        answers: AtomicU64,
        swallowed: AtomicU64,
    }

    #[async_trait]
    impl Link for Switch {
        async fn call(
            &self,
            to: u64,
            _class: Class,
            request: Bytes,
            deadline: Instant,
        ) -> Result<Bytes, CallError> {
            if to != self.reached.load(Ordering::SeqCst) {
                return Err(CallError::NotSent);
            }
            let answers = self.answers.load(Ordering::SeqCst);
            self.answers.store(answers.saturating_sub(1), Ordering::SeqCst);
            let answer = self.nodes[to as usize - 1].answer(request).await;
            if answers == 0 {
                self.swallowed.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep_until(deadline).await;
                return Err(CallError::Unknown);
            }
            answer.ok_or(CallError::Unknown)
        }
    }

    /// The addition has reached one replica when its caller goes away. The next one is based on
    /// another replica, and must not count as the same.
    #[tokio::test]
    async fn an_addition_whose_caller_went_away_hides_no_later_one() {
        let mut nodes = Vec::new();
        for id in 1..=3 {
            let (store, config) = (Arc::new(MemoryStore::new()), NodeConfig::with_replicas(1..=3));
            nodes.push(Node::create(id, store, config).await.unwrap());
        }
        let own = nodes[0].clone();
        let link = Arc::new(Switch {
            nodes,
            reached: AtomicU64::new(2),
            answers: AtomicU64::new(u64::MAX),
            swallowed: AtomicU64::new(0),
        });
        let shares = Arc::new(MemoryStore::new());
        let likes = Likes::over(&own, vec![1, 2, 3], link.clone(), shares.clone()).await.unwrap();
        let key = Bytes::from_static(b"post");
        likes.add(&key, 1).await.unwrap();
        let mut adding = Box::pin(likes.add(&key, 5));
        // The read is answered; the write arrives, and its answer is on its way.
        link.answers.store(1, Ordering::SeqCst);
        while link.swallowed.load(Ordering::SeqCst) == 0 {
            let polled = std::future::poll_fn(|cx| {
                std::task::Poll::Ready(adding.as_mut().poll(cx).is_ready())
            });
            assert!(!polled.await, "the addition has ended");
            tokio::task::yield_now().await;
        }
        drop(adding);
        // The process ends here, too: the next one goes on with what this one has made durable.
        drop(likes);
        let likes = Likes::over(&own, vec![1, 2, 3], link.clone(), shares).await.unwrap();
        link.answers.store(u64::MAX, Ordering::SeqCst);
        link.reached.store(3, Ordering::SeqCst);
        likes.add(&key, 3).await.unwrap();
        let mut shown = [0; 2];
        for (at, node) in (2..4).enumerate() {
            link.reached.store(node, Ordering::SeqCst);
            shown[at] = likes.show(&key).await.unwrap();
        }
        assert_eq!(shown, [6, 9], "1 + 5, and 3 more where that is known");
    }
}
