//! What a node does by itself: handing over hints, rebuilding, comparing itself with the other
//! replicas, collecting tombstones.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::{HintStats, Hints, Node, Shared, Status};
use crate::caller::Scope;
use crate::link::Link;
use crate::table::{Reply, Request, Value};
use crate::wire::{Answer, Ask};

/// Hints that are handed to one replica in a turn.
const HINTS: usize = 1_000;

/// Once in so many turns of maintenance a node reads whether its epoch has a successor.
const TURNS_OF_DECREES: u32 = 64;

impl Node {
    /// Starts a task that keeps the node in order until the node ends, or the link is dropped
    /// elsewhere: it hands missed keys to the replicas that missed them, rebuilds the node when it
    /// is not whole, repairs what differs from the other replicas, collects tombstones, and carries
    /// on changes of the replicas, as its configuration says. Start it once.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn maintain(&self, link: &Arc<dyn Link>) {
        // A link that serves the node holds a handle to it: neither is kept alive from here.
        tokio::spawn(run(Arc::downgrade(&self.shared), Arc::downgrade(link)));
        if let Some(every) = self.shared.config.repair_every {
            let repair =
                repair_regularly(Arc::downgrade(&self.shared), Arc::downgrade(link), every);
            tokio::spawn(repair);
        }
        // The tombstones of a region are collected with all regions.
        let every = self.shared.config.collect_every.filter(|_| self.shared.feed.is_none());
        if let Some(every) = every {
            let collect =
                collect_regularly(Arc::downgrade(&self.shared), Arc::downgrade(link), every);
            tokio::spawn(collect);
        }
    }

    /// Records that a replica, this node or another one, has missed a write of a key.
    pub(crate) fn add_hint(&self, replica: u64, key: Bytes) {
        self.shared.hints.add(replica, key);
    }

    /// What waits to be handed over.
    pub fn hint_stats(&self) -> HintStats {
        self.shared.hints.stats()
    }

    /// Hands the keys that replicas have missed, this node or others, to those that are there: the
    /// merge of what all replicas hold that answer. Returns how many were handed over.
    /// [`Node::maintain`] does it by itself.
    ///
    /// A key waits until so many replicas have answered that an acknowledged write is on one of
    /// them, and the one that missed it holds their merge.
    ///
    /// # Cancel safety
    /// Dropping it loses no hint.
    pub async fn hand_over_hints(&self, link: &Arc<dyn Link>) -> usize {
        let (mut handed_over, mut away) = (0, BTreeSet::new());
        let membership = self.current();
        // Who has not heard yet that a replica was removed may have added to its hints since.
        self.shared.hints.retain(|replica| membership.contains(replica));
        let replicas = membership.ids();
        for replica in replicas.iter().copied() {
            for key in self.shared.hints.of(replica, HINTS) {
                if away.contains(&replica) || !self.is_enough(|id| !away.contains(&id)) {
                    break;
                }
                let hint = Taken::new(&self.shared.hints, replica, key);
                match self.hand_over(link, replica, &hint.key, &mut away).await {
                    HandOver::Done => handed_over += 1,
                    HandOver::Refused => self.shared.hints.refused(),
                    HandOver::Later => continue,
                }
                hint.finish();
            }
        }
        handed_over
    }

    /// Adds the replicas that do not answer to `away`, and asks none that is there.
    async fn hand_over(
        &self,
        link: &Arc<dyn Link>,
        to: u64,
        key: &Bytes,
        away: &mut BTreeSet<u64>,
    ) -> HandOver {
        // The epoch is taken before the states are read, as each operation does.
        let Some(scope) = self.own_scope().await else { return HandOver::Later };
        let replicas = scope.membership.ids();
        let mut gets = JoinSet::new();
        for replica in replicas.iter().copied().filter(|replica| !away.contains(replica)) {
            let (node, link, scope) = (self.clone(), Arc::clone(link), scope.clone());
            let request = Request::Get { key: key.clone() };
            gets.spawn(
                async move { (replica, node.request(&link, replica, &scope, request).await) },
            );
        }
        let (mut merged, mut states) = (Value::new(), BTreeMap::new());
        // Ends: each turn takes one of them.
        while let Some(got) = gets.join_next().await {
            match got {
                Ok((replica, Some(Reply::Value { state }))) => {
                    merged.merge(state.clone());
                    states.insert(replica, state);
                }
                Ok((_, Some(Reply::Stale { .. }))) => return HandOver::Later,
                Ok((replica, _)) => {
                    away.insert(replica);
                }
                Err(_) => {}
            }
        }
        let Some(own) = states.get(&to) else { return HandOver::Later };
        if !self.is_enough(|id| states.contains_key(&id)) {
            return HandOver::Later;
        }
        if own.includes(&merged) {
            return HandOver::Done;
        }
        let merge = Request::Merge { key: key.clone(), state: merged };
        match self.request(link, to, &scope, merge).await {
            Some(Reply::Merged) => HandOver::Done,
            Some(Reply::Refused) => HandOver::Refused,
            Some(Reply::Stale { .. }) => HandOver::Later,
            _ => {
                away.insert(to);
                HandOver::Later
            }
        }
    }

    /// Whether so many replicas answer, the one that missed a write among them, that an
    /// acknowledged write is on one of these. While the replicas change, that is on W of the old
    /// ones.
    fn is_enough(&self, answers: impl Fn(u64) -> bool) -> bool {
        let (membership, write) = (self.current(), self.shared.config.write);
        let old = membership.members();
        let n = old.len();
        let found = old.iter().filter(|member| answers(member.id)).count();
        found >= (n + 1).saturating_sub(write.count(n)).max(n.min(2))
    }

    /// What an operation of this node that begins now is of: the epoch of its replica, durable.
    /// None: it is not whole.
    pub(crate) async fn own_scope(&self) -> Option<Scope> {
        let scope = Scope::new(&self.current(), 0);
        match self.ask_own(&scope, Ask::Table(Request::Epoch { epoch: 0 })).await? {
            Answer::Table(Reply::Epoch { epoch }) => Some(Scope { epoch, ..scope }),
            _ => None,
        }
    }
}

/// What became of a hint.
enum HandOver {
    Done,
    /// The replica will refuse it the next time, too.
    Refused,
    /// A replica that it takes is away or busy.
    Later,
}

/// A hint that is being handed over: taken before the states are read, since a write that is missed
/// meanwhile adds it again. It goes back unless it is done.
struct Taken<'a> {
    hints: &'a Hints,
    replica: u64,
    key: Bytes,
    is_done: bool,
}

impl<'a> Taken<'a> {
    fn new(hints: &'a Hints, replica: u64, key: Bytes) -> Self {
        hints.remove(replica, &key);
        Self { hints, replica, key, is_done: false }
    }

    fn finish(mut self) {
        self.is_done = true;
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.hints.add(self.replica, self.key.clone());
        }
    }
}

async fn run(shared: Weak<Shared>, link: Weak<dyn Link>) {
    // Not all nodes at once.
    let mut turn = fastrand::u32(..TURNS_OF_DECREES);
    // Ends: with the last handle to the node or the link, or when the node halts.
    loop {
        let Some(link) = link.upgrade() else { return };
        let Some(node) = shared.upgrade().map(|shared| Node { shared }) else { return };
        let status = node.shared.status.borrow().clone();
        match status {
            Status::Halted(_) | Status::Stopped | Status::Removed { .. } => return,
            Status::NotWhole { is_condemned: false } => {
                if let Err(error) = node.rebuild(&link).await {
                    tracing::debug!(target: "voussoir::quorum", %error, "not rebuilt yet");
                }
            }
            Status::NotWhole { .. } => {}
            Status::Whole => {
                node.advance(&link).await;
                turn = (turn + 1) % TURNS_OF_DECREES;
                if turn == 0 {
                    // Who decided what follows may have crashed before anybody served it.
                    node.is_latest(&link, &node.current()).await;
                }
                node.hand_over_hints(&link).await;
            }
        }
        let pause = node.shared.config.maintain_every;
        drop((node, link));
        sleep(pause).await;
    }
}

/// A task of its own: a repair of a replica that was long away takes hours at its rate, and hints
/// do not wait for it.
async fn repair_regularly(shared: Weak<Shared>, link: Weak<dyn Link>, every: Duration) {
    // Not all nodes at once.
    let mut pause = every.mul_f64(fastrand::f64());
    // Ends: with the last handle to the node or the link, or when the node halts.
    loop {
        sleep(pause).await;
        let Some(link) = link.upgrade() else { return };
        let Some(node) = shared.upgrade().map(|shared| Node { shared }) else { return };
        let status = node.shared.status.borrow().clone();
        if matches!(status, Status::Halted(_) | Status::Stopped | Status::Removed { .. }) {
            return;
        }
        if let Err(error) = node.repair(&link).await {
            tracing::debug!(target: "voussoir::quorum", %error, "not compared");
        }
        pause = every.mul_f64(0.5 + fastrand::f64());
    }
}

/// A task of its own: with many tombstones, or a slow replica, a collection takes minutes, and
/// hints and changes of the replicas do not wait for it.
async fn collect_regularly(shared: Weak<Shared>, link: Weak<dyn Link>, every: Duration) {
    // Not all nodes at once: of collectors that raise the epoch beside each other one goes on.
    let mut pause = every.mul_f64(0.5 + fastrand::f64() / 2.0);
    // Ends: with the last handle to the node or the link, or when the node halts.
    loop {
        sleep(pause).await;
        let Some(link) = link.upgrade() else { return };
        let Some(node) = shared.upgrade().map(|shared| Node { shared }) else { return };
        if node.has_ended() {
            return;
        }
        if node.is_whole()
            && let Err(error) = node.collect_tombstones(&link).await
        {
            tracing::debug!(target: "voussoir::quorum", %error, "not all collected");
        }
        pause = every.mul_f64(0.5 + fastrand::f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::Class;
    use crate::table::CallError;
    use crate::{MemoryStore, NodeConfig};

    /// A node alone calls nobody.
    struct Nobody;

    #[async_trait::async_trait]
    impl Link for Nobody {
        async fn call(
            &self,
            _to: u64,
            _class: Class,
            _request: Bytes,
            _deadline: tokio::time::Instant,
        ) -> Result<Bytes, CallError> {
            Err(CallError::NotSent)
        }
    }

    /// They would count against `max_hints` for as long as the replicas stay the same.
    #[tokio::test(start_paused = true)]
    async fn hints_of_a_node_that_has_left_are_forgotten() {
        let mut config = NodeConfig::with_replicas([1]);
        config.max_hints = 2;
        let node = Node::create(1, Arc::new(MemoryStore::new()), config).await.unwrap();
        node.add_hint(9, "k".into());
        node.add_hint(9, "l".into());
        let link: Arc<dyn Link> = Arc::new(Nobody);
        node.hand_over_hints(&link).await;
        assert_eq!(node.hint_stats(), HintStats::default());
        node.add_hint(1, "k".into());
        assert_eq!((node.hint_stats().waiting, node.hint_stats().dropped), (1, 0));
    }
}
