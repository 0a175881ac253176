//! Compares two trees.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;

use super::tree::FAN_OUT;
use super::{Answer, Entry, MerkleConfig, MerkleTree, NodeId, Question};

/// Why an answer was refused. The exchange is over; what it has found stays valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExchangeError {
    /// The peer answered something that was not asked, or with another configuration.
    #[error("the peer's answer does not fit the question: {rule}")]
    Mismatch {
        /// What must hold.
        rule: &'static str,
    },
}

/// Finds the keys on which the own tree and that of one peer disagree.
///
/// Whatever the peer answers, the exchange ends: each answer takes nodes off a list, or names
/// entries, of which `max_differing` that differ are the last.
///
/// One question is under way at a time. If its answer is lost, ask [`Exchange::question`] again:
/// the peer keeps no state. Memory is bounded by `max_differing` and the nodes that are still to be
/// compared, each of which differs.
#[derive(Clone, Debug)]
pub struct Exchange {
    config: MerkleConfig,
    /// Nodes with children that differ.
    nodes: VecDeque<NodeId>,
    /// Buckets that differ, each with the id behind which to go on.
    buckets: VecDeque<(u32, Option<u128>)>,
    /// Entries of the peer whose key is not known here.
    unknown: BTreeSet<u128>,
    differing: BTreeSet<Bytes>,
    /// How many entries were found to differ, those among them whose key the peer did not tell.
    found: usize,
    /// Whether differences were left for the next exchange.
    is_cut: bool,
}

impl Exchange {
    /// Begins to compare `own` with the tree of a peer.
    pub fn new(own: &MerkleTree) -> Self {
        Self {
            config: own.config().clone(),
            nodes: VecDeque::from([NodeId { level: 0, at: 0 }]),
            buckets: VecDeque::new(),
            unknown: BTreeSet::new(),
            differing: BTreeSet::new(),
            found: 0,
            is_cut: false,
        }
    }

    /// What to ask the peer next. None: the exchange is over.
    pub fn question(&self) -> Option<Question> {
        // Buckets first: so the list of nodes stays short.
        let is_full = self.unknown.len() >= self.config.max_keys;
        if is_full || (self.buckets.is_empty() && self.nodes.is_empty()) {
            let ids: Vec<u128> = self.unknown.iter().take(self.config.max_keys).copied().collect();
            return (!ids.is_empty()).then_some(Question::Keys { ids });
        }
        if let Some((bucket, after)) = self.buckets.front().copied() {
            return Some(Question::Entries { bucket, after });
        }
        let nodes = self.asked_nodes();
        Some(Question::Sums { nodes })
    }

    /// Takes the answer to the latest question. `own` is the same tree; it may have changed since.
    ///
    /// # Errors
    /// [`ExchangeError`]: the exchange is over.
    pub fn answer(&mut self, own: &MerkleTree, answer: Answer) -> Result<(), ExchangeError> {
        let taken = match (self.question(), answer) {
            (Some(Question::Sums { nodes }), Answer::Sums { sums }) => {
                self.sums(own, &nodes, &sums)
            }
            (Some(Question::Entries { bucket, after }), Answer::Entries { entries, is_last }) => {
                self.entries(own, (bucket, after), &entries, is_last)
            }
            (Some(Question::Keys { ids }), Answer::Keys { keys }) => self.keys(own, &ids, keys),
            _ => Err("of another kind"),
        };
        if self.found >= self.config.max_differing {
            self.is_cut |= !(self.nodes.is_empty() && self.buckets.is_empty());
            (self.nodes, self.buckets) = (VecDeque::new(), VecDeque::new());
        }
        taken.map_err(|rule| {
            (self.nodes, self.buckets) = (VecDeque::new(), VecDeque::new());
            (self.unknown, self.is_cut) = (BTreeSet::new(), true);
            ExchangeError::Mismatch { rule }
        })
    }

    /// The keys that differ, or that only one side has, as far as they are known.
    pub fn differing(&self) -> impl Iterator<Item = &Bytes> {
        self.differing.iter()
    }

    /// Whether the exchange ended before all differences were found: at `max_differing`, or by an
    /// error. Repair what was found and begin another one.
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }

    fn asked_nodes(&self) -> Vec<NodeId> {
        self.nodes.iter().take(self.config.max_nodes).copied().collect()
    }

    fn sums(
        &mut self,
        own: &MerkleTree,
        nodes: &[NodeId],
        sums: &[[u128; FAN_OUT]],
    ) -> Result<(), &'static str> {
        if sums.len() != nodes.len() {
            return Err("one list of sums for each node");
        }
        self.nodes.drain(..nodes.len());
        for (node, theirs) in nodes.iter().zip(sums) {
            let ours = own.children(*node);
            let level = node.level + 1;
            for at in (0..FAN_OUT).filter(|at| ours[*at] != theirs[*at]) {
                let at = node.at * FAN_OUT as u32 + at as u32;
                if level == self.config.depth {
                    self.buckets.push_back((at, None));
                } else {
                    self.nodes.push_front(NodeId { level, at });
                }
            }
        }
        Ok(())
    }

    fn entries(
        &mut self,
        own: &MerkleTree,
        (bucket, after): (u32, Option<u128>),
        theirs: &[Entry],
        is_last: bool,
    ) -> Result<(), &'static str> {
        let bits = 4 * u32::from(self.config.depth);
        let is_ascending = theirs.windows(2).all(|pair| pair[0].id < pair[1].id);
        let is_behind = theirs.first().is_none_or(|first| after.is_none_or(|id| id < first.id));
        let is_in_bucket = theirs.iter().all(|entry| (entry.id >> (128 - bits)) as u32 == bucket);
        if !(is_ascending && is_behind && is_in_bucket) {
            return Err("ascending entries of the bucket");
        }
        if theirs.len() > self.config.max_entries || (theirs.is_empty() && !is_last) {
            return Err("as many entries as were asked for");
        }
        // What the peer has not told yet is not compared yet.
        let end = theirs.last().filter(|_| !is_last).map(|last| last.id);
        let ours = own.entries_of(bucket, after).take_while(|own| end.is_none_or(|e| own.id <= e));
        let ours: BTreeSet<Entry> = ours.collect();
        let theirs: BTreeSet<Entry> = theirs.iter().copied().collect();
        for entry in ours.symmetric_difference(&theirs) {
            match own.key_of(entry.id) {
                Some(key) => self.found += usize::from(self.differing.insert(key.clone())),
                None => self.found += usize::from(self.unknown.insert(entry.id)),
            }
        }
        self.buckets.pop_front();
        if let Some(end) = end {
            self.buckets.push_front((bucket, Some(end)));
        }
        Ok(())
    }

    fn keys(
        &mut self,
        own: &MerkleTree,
        ids: &[u128],
        keys: Vec<Option<Bytes>>,
    ) -> Result<(), &'static str> {
        if keys.len() != ids.len() {
            return Err("one key for each id");
        }
        for (id, key) in ids.iter().zip(keys) {
            self.unknown.remove(id);
            let Some(key) = key else { continue };
            if key.len() > self.config.max_key_bytes || own.id_of(&key) != *id {
                return Err("the key of the id");
            }
            self.differing.insert(key);
        }
        Ok(())
    }
}
