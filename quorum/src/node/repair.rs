//! Anti-entropy: a node compares its tree with that of each other replica and repairs what differs
//! (Dynamo §4.7).
//!
//! Keys of the table are read on both sides, and the merge is written to the side that lacks a
//! part of it. Of a register, the acceptance with the higher ballot is sent to the acceptor that
//! does not have it, as its proposer had sent it: an acceptor that has promised a higher ballot
//! since refuses it, and the next change of the register brings it up to date.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::driver::store_key;
use super::{Node, Shared};
use crate::caller::Scope;
use crate::link::{Class, Link};
use crate::merkle::codec::{encode_answer, encode_question};
use crate::pace::Pace;
use crate::paxos::{self, Ballot, Record};
use crate::table::{Reply, Request, Value};
use crate::wire::{Answer, Ask, Space, compare_limits, decode_record};

/// The pause before the own store is read again where it could not be read.
const READ_PAUSE: Duration = Duration::from_secs(1);
/// Keys that are repaired at once, at most; fewer where they take more than a tenth of a second at
/// the rate.
const MAX_REPAIRS: u64 = 64;
/// How much of the own store is read at once for the tree, in bytes. Whatever the node is asked
/// meanwhile waits until that much is in the tree.
const FILL_BYTES: usize = 64 << 10;

/// What comparisons with other replicas have found and done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Repaired {
    /// Replicas that were compared to the end.
    pub replicas: usize,
    /// Keys that differed, those among them that were only being written.
    pub differing: u64,
    /// Keys of which a replica got what it lacked.
    pub repaired: u64,
    /// Keys that a replica did not take: it is busy or away, the values together are too long, or
    /// its acceptor has promised a higher ballot.
    pub left: u64,
    /// Bytes of questions, answers and states.
    pub bytes: u64,
}

impl Repaired {
    fn add(&mut self, other: &Self) {
        self.replicas += other.replicas;
        self.differing += other.differing;
        self.repaired += other.repaired;
        self.left += other.left;
        self.bytes += other.bytes;
    }
}

/// The state of a node's anti-entropy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RepairStats {
    /// Keys of the table and the registers that are compared. None: the store is still being read
    /// after the start.
    pub keys: Option<usize>,
    /// All comparisons of this node since its start.
    pub total: Repaired,
}

/// Why a node compared nothing. Try again later.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RepairError {
    /// The node is not whole, or its store has failed. It is rebuilt first.
    #[error("the node itself is not whole")]
    NotWhole,
    /// The node has started, and its store is still being read.
    #[error("the store is still being read")]
    Reading,
}

/// What became of a key that differed.
enum Repair {
    /// It was being written, and is equal by now.
    Equal,
    Done,
    Left,
}

impl Node {
    /// Compares the node with each replica that answers, and repairs what differs on both sides,
    /// within `repair_bytes_per_second`. [`Node::maintain`] does it by itself.
    ///
    /// Equal replicas exchange about 300 bytes each, whatever they hold.
    ///
    /// # Errors
    /// [`RepairError`].
    ///
    /// # Cancel safety
    /// Dropping it leaves the rest to the next time.
    pub async fn repair(&self, link: &Arc<dyn Link>) -> Result<Repaired, RepairError> {
        let mut all = Repaired::default();
        for peer in self.current().ids() {
            if peer != self.shared.id {
                let mut repaired = Repaired::default();
                let result = self.repair_with(link, peer, &mut repaired).await;
                all.add(&repaired);
                self.shared.repaired.lock().add(&repaired);
                result?;
            }
        }
        Ok(all)
    }

    /// What comparisons have found so far.
    pub fn repair_stats(&self) -> RepairStats {
        RepairStats { keys: self.shared.tree.len(), total: *self.shared.repaired.lock() }
    }

    async fn repair_with(
        &self,
        link: &Arc<dyn Link>,
        peer: u64,
        repaired: &mut Repaired,
    ) -> Result<(), RepairError> {
        let pace = Pace::new(self.shared.config.repair_bytes_per_second);
        // Ends: each turn but the last has repaired a key.
        loop {
            if !self.is_whole() {
                return Err(RepairError::NotWhole);
            }
            // Before any state is read, as each operation does.
            let scope = self.own_scope().await.ok_or(RepairError::NotWhole)?;
            let mut exchange = self.shared.tree.compare().ok_or(RepairError::Reading)?;
            let limits = compare_limits();
            // Ends: an exchange ends whatever the peer answers.
            while let Some(question) = exchange.question() {
                let asked = encode_question(&question, &limits).len();
                let Some(answer) = self.compare(link, peer, &scope, question).await else {
                    return Ok(());
                };
                repaired.bytes += (asked + encode_answer(&answer, &limits).len()) as u64;
                if let Err(error) = self.shared.tree.go_on(&mut exchange, answer) {
                    tracing::warn!(target: "voussoir::quorum", node = peer, %error, "not compared");
                    return Ok(());
                }
                pace.keep(repaired.bytes).await;
            }
            let (before, compared) = (repaired.repaired, repaired.bytes);
            let mut repairs = JoinSet::new();
            // No key is empty, whatever a peer's tree says.
            let differing = exchange.differing().filter(|key| key.len() > 1).cloned();
            for (ended, key) in differing.enumerate() {
                repaired.differing += 1;
                // The first key alone: it tells how long they are.
                let mean_bytes = (repaired.bytes - compared) / (ended as u64).max(1);
                let share = self.shared.config.repair_bytes_per_second / 10;
                let at_once = (share / mean_bytes.max(1)).clamp(1, MAX_REPAIRS);
                let at_once = if ended <= 1 { 1 } else { at_once };
                // Ends: each turn takes one of them.
                while repairs.len() as u64 >= at_once {
                    repaired.count(repairs.join_next().await);
                    pace.keep(repaired.bytes).await;
                }
                let (node, link, scope) = (self.clone(), Arc::clone(link), scope.clone());
                repairs.spawn(async move { node.repair_key(&link, peer, &scope, &key).await });
            }
            // Ends: each turn takes one of them.
            while let Some(repair) = repairs.join_next().await {
                repaired.count(Some(repair));
                pace.keep(repaired.bytes).await;
            }
            if !exchange.is_cut() || repaired.repaired == before {
                // What lies behind keys that cannot be repaired was not compared.
                repaired.replicas += usize::from(!exchange.is_cut());
                return Ok(());
            }
        }
    }

    async fn compare(
        &self,
        link: &Arc<dyn Link>,
        peer: u64,
        scope: &Scope,
        question: crate::merkle::Question,
    ) -> Option<crate::merkle::Answer> {
        let (ask, timeout) = (Ask::Compare { question }, self.shared.config.timeout);
        match self.ask(link, peer, Class::Bulk, scope, ask, timeout).await {
            Some(Answer::Compared(answer)) => Some(answer),
            _ => None,
        }
    }

    /// Repairs a key, and says how many bytes of states that took.
    async fn repair_key(
        &self,
        link: &Arc<dyn Link>,
        peer: u64,
        scope: &Scope,
        store_key: &Bytes,
    ) -> (Repair, u64) {
        let mut bytes = 0;
        let key = store_key.slice(1.min(store_key.len())..);
        let repair = if store_key.first() == Some(&Space::Registers.prefix()) {
            self.repair_register(link, peer, scope, key, &mut bytes).await
        } else {
            self.repair_table(link, peer, scope, key, &mut bytes).await
        };
        (repair.unwrap_or(Repair::Left), bytes)
    }

    async fn repair_table(
        &self,
        link: &Arc<dyn Link>,
        peer: u64,
        scope: &Scope,
        key: Bytes,
        bytes: &mut u64,
    ) -> Option<Repair> {
        let get = || Request::Get { key: key.clone() };
        let length = |state: &Value| {
            let values: usize = state.values().map(Bytes::len).sum();
            (key.len() + values + 32 * (state.len() + state.context().len())) as u64
        };
        let Some(Reply::Value { state: theirs }) = self.request(link, peer, scope, get()).await
        else {
            return None;
        };
        *bytes += length(&theirs);
        let own = self.request(link, self.shared.id, scope, get()).await;
        let Some(Reply::Value { state: own }) = own else { return None };
        let mut merged = own.clone();
        merged.merge(theirs.clone());
        let lacking = [(self.shared.id, own), (peer, theirs)];
        let mut repair = Repair::Equal;
        for (replica, _) in lacking.iter().filter(|(_, state)| !state.includes(&merged)) {
            let merge = Request::Merge { key: key.clone(), state: merged.clone() };
            *bytes += if *replica == peer { length(&merged) } else { 0 };
            if self.request(link, *replica, scope, merge).await != Some(Reply::Merged) {
                return None;
            }
            repair = Repair::Done;
        }
        Some(repair)
    }

    async fn repair_register(
        &self,
        link: &Arc<dyn Link>,
        peer: u64,
        scope: &Scope,
        key: Bytes,
        bytes: &mut u64,
    ) -> Option<Repair> {
        let own = self.shared.store.get(&[store_key(Space::Registers, &key)]).await;
        let own = self.shared.readable(own).await?;
        let own =
            own.into_iter().next()?.map_or(Some(Record::EMPTY), |own| decode_record(own).ok())?;
        let read = Ask::Read { space: Space::Registers, key: key.clone() };
        let Answer::Page(page) = self.ask_peer(link, peer, scope, read).await? else { return None };
        let theirs = match page.into_iter().next() {
            None => Record::EMPTY,
            Some((_, record)) => {
                *bytes += (key.len() + record.len()) as u64;
                decode_record(record).ok()?
            }
        };
        let ballot = |record: &Record| record.accepted.as_ref().map(|(ballot, _)| *ballot);
        let (is_behind, newer) = match ballot(&own).cmp(&ballot(&theirs)) {
            std::cmp::Ordering::Equal => return Some(Repair::Equal),
            std::cmp::Ordering::Less => (true, theirs),
            std::cmp::Ordering::Greater => (false, own),
        };
        let (ballot, state) = newer.accepted?;
        // What the proposer had sent along with it.
        let next = Ballot { round: ballot.round + 1, session: ballot.session };
        let value_bytes = state.value.as_ref().map_or(0, Bytes::len);
        let accept = paxos::Request::Accept { ballot, state, next };
        let ask = Ask::Register { key: key.clone(), request: accept };
        let answer = if is_behind {
            self.ask_own(scope, ask).await?
        } else {
            *bytes += (key.len() + value_bytes) as u64;
            self.ask_peer(link, peer, scope, ask).await?
        };
        let is_accepted = matches!(answer, Answer::Register(paxos::Reply::Accepted { .. }));
        is_accepted.then_some(Repair::Done)
    }

    async fn ask_peer(
        &self,
        link: &Arc<dyn Link>,
        peer: u64,
        scope: &Scope,
        ask: Ask,
    ) -> Option<Answer> {
        self.ask(link, peer, Class::Bulk, scope, ask, self.shared.config.timeout).await
    }
}

impl Repaired {
    fn count(&mut self, repair: Option<Result<(Repair, u64), tokio::task::JoinError>>) {
        let Some(Ok((repair, bytes))) = repair else {
            self.left += u64::from(repair.is_some());
            return;
        };
        self.bytes += bytes;
        match repair {
            Repair::Equal => {}
            Repair::Done => self.repaired += 1,
            Repair::Left => self.left += 1,
        }
    }
}

/// Reads the store of a node that has started into its tree, at the rate of a rebuild; what cannot
/// be read at the moment, again after a pause. Ends with the last page, or with the node.
pub(super) async fn fill(shared: Weak<Shared>) {
    let (mut after, mut read, mut pace) = (Bytes::new(), 0, None);
    // Ends: each turn moves on by a key, and the last page is empty; or when the node ends.
    loop {
        let is_read = {
            let Some(shared) = shared.upgrade() else { return };
            if shared.jobs.is_closed() {
                return;
            }
            let rate = shared.config.rebuild_bytes_per_second;
            pace.get_or_insert_with(|| Pace::new(rate));
            let page = shared.store.scan(&[], &after, FILL_BYTES).await;
            let page = shared.readable(page).await;
            if let Some(page) = &page {
                let Some((last, _)) = page.last() else { return shared.tree.filled() };
                after = last.clone();
                let lengths = page.iter().map(|(key, record)| key.len() + record.len());
                read += lengths.sum::<usize>() as u64;
            }
            page.map(|page| shared.tree.fill(page)).is_some()
        };
        match &pace {
            Some(pace) if is_read => pace.keep(read).await,
            _ => sleep(READ_PAUSE).await,
        }
    }
}
