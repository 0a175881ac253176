//! A node's part in its region: what it tells the others, and what it answers them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock, Weak};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::config::RegionConfig;
use super::outbox::{Fate, Outbox};
use super::record::RegionRecord;
use super::stats::{PeerState, RegionStats};
use super::wire::{Answer, Envelope, Question, Reply as Answered, Tombstone};
use crate::ConfigError;
use crate::caller::Scope;
use crate::link::Link;
use crate::membership::Stamp;
use crate::node::Node;
use crate::table::{Reply, Request, Value};

/// Messages with states from other regions that are merged at once. More are answered "later".
const MAX_SHIPS: usize = 8;
/// Keys of one message that are merged or dropped at once.
const MAX_MERGES: usize = 32;
/// How many bytes of states one answer has, but for one longer state.
pub(super) const MAX_STATE_BYTES: usize = 1 << 20;

/// What a node tells the other regions: filled by the node's task, emptied by [`Region::maintain`].
pub(crate) struct Feed {
    pub(super) began: Instant,
    pub(super) peers: BTreeMap<u64, Peer>,
    /// What the node keeps of the regions, as the store has it.
    pub(super) record: Mutex<RegionRecord>,
}

/// Another region, as this node knows it.
pub(super) struct Peer {
    pub(super) outbox: Mutex<Outbox>,
    /// Wakes the task that ships.
    pub(super) woken: Notify,
    pub(super) contact: Mutex<Contact>,
}

/// How to reach a region.
#[derive(Clone)]
pub(super) struct Contact {
    pub(super) state: PeerState,
    /// Nodes that are asked, in turns. Invariant: not empty.
    pub(super) nodes: Vec<u64>,
    pub(super) turn: usize,
    /// The region's epoch of collected tombstones, as it was told last. 0: not known.
    pub(super) epoch: u64,
    pub(super) stats: RegionStats,
}

impl Contact {
    /// The node that is asked now. `own`: who asks; no two nodes of a region begin with the same
    /// one.
    pub(super) fn node(&self, own: u64) -> u64 {
        self.nodes[self.turn.wrapping_add(own as usize) % self.nodes.len()]
    }

    /// A node is of no use: the next one is asked, once for all who have asked `to` at the same
    /// time, or every second node would be left out for ever. Who the replicas are is asked anew,
    /// for they may have been replaced.
    pub(super) fn pass_over(&mut self, own: u64, to: u64) {
        if self.node(own) == to {
            self.turn = self.turn.wrapping_add(1);
        }
        self.epoch = 0;
    }
}

impl Feed {
    pub(crate) fn new(config: &RegionConfig, record: RegionRecord) -> Self {
        let peer = |region: &super::RegionMember| {
            let contact = Contact {
                state: PeerState::Unknown,
                nodes: region.nodes.clone(),
                turn: 0,
                epoch: 0,
                stats: RegionStats::of(region.id),
            };
            let peer = Peer {
                outbox: Mutex::new(Outbox::new(0, config.max_pending_keys)),
                woken: Notify::new(),
                contact: Mutex::new(contact),
            };
            (region.id, peer)
        };
        let (began, record) = (Instant::now(), Mutex::new(record));
        Self { began, peers: config.others().map(peer).collect(), record }
    }

    /// Records a write that this node has made, once it is durable.
    pub(crate) fn note(&self, key: &Bytes) {
        let now = self.now();
        for peer in self.peers.values() {
            peer.outbox.lock().note(now, key.clone());
            peer.woken.notify_one();
        }
    }

    /// In ns.
    pub(super) fn now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }
}

/// A node of a region: ships what the node has written to the other regions, merges what they
/// ship, and compares itself with them. Clones are handles to the same.
///
/// Made from a node whose [`NodeConfig::regions`](crate::NodeConfig::regions) are set. Each node
/// of a region runs one; tables in processes without a node need none.
///
/// # Example
/// ```no_run
/// # use std::sync::Arc;
/// # use voussoir_quorum::*;
/// # use voussoir_quorum::region::*;
/// # type Result = std::result::Result<(), Box<dyn std::error::Error>>;
/// # fn example(net: Arc<dyn voussoir_net::Transport>, node: Node) -> Result {
/// let local: Arc<dyn Link> = NetLink::serve(net.clone(), 1, node.clone())?; // in the region
/// node.maintain(&local);
/// let region = Region::new(&node)?;
/// let wide: Arc<dyn Link> = NetLink::serve_region(net, 2, region.clone())?; // between regions
/// region.maintain(&local, &wide);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Region {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) node: Node,
    pub(super) config: RegionConfig,
    pub(super) feed: Arc<Feed>,
    /// To the nodes of the own region, and to the regions. Set by [`Region::maintain`]; a link that
    /// serves the node or the region holds a handle to it, so that none is kept alive from here.
    pub(super) links: OnceLock<(Weak<dyn Link>, Weak<dyn Link>)>,
    ships: Semaphore,
    /// Held while a record of the region is written.
    pub(super) keeping: tokio::sync::Mutex<()>,
    /// The latest epoch of collected tombstones that a write quorum of the region is known to have.
    pub(super) confirmed: AtomicU64,
    /// Held by a collection of tombstones.
    pub(super) collecting: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Region")
            .field("id", &self.shared.config.own)
            .field("node", &self.shared.node.id())
            .finish_non_exhaustive()
    }
}

impl Region {
    /// The part of a node in its region.
    ///
    /// # Errors
    /// [`ConfigError`]: the node's configuration has no regions.
    pub fn new(node: &Node) -> Result<Self, ConfigError> {
        let Some((config, feed)) = node.regional() else {
            return Err(ConfigError { field: "regions", rule: "must be set" });
        };
        let shared = Shared {
            node: node.clone(),
            config: config.clone(),
            feed: Arc::clone(feed),
            links: OnceLock::new(),
            ships: Semaphore::new(MAX_SHIPS),
            keeping: tokio::sync::Mutex::new(()),
            confirmed: AtomicU64::new(0),
            collecting: tokio::sync::Mutex::new(()),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The map of the regions.
    pub fn config(&self) -> &RegionConfig {
        &self.shared.config
    }

    /// The node.
    pub fn node(&self) -> &Node {
        &self.shared.node
    }

    /// What the node knows of each other region, in ascending order of their ids.
    pub fn stats(&self) -> Vec<RegionStats> {
        let now = self.shared.feed.now();
        let peers = self.shared.feed.peers.values();
        peers
            .map(|peer| {
                let (contact, outbox) = (peer.contact.lock(), peer.outbox.lock());
                contact.stats.clone().with(contact.state, &outbox, now)
            })
            .collect()
    }

    /// Answers a question that a link has brought from a node of another region, or of the own one.
    /// None: it is no question.
    ///
    /// # Cancel safety
    /// Dropping the future does not take back what was asked: a part may be carried out.
    pub async fn answer(&self, question: Bytes) -> Option<Bytes> {
        let envelope = Envelope::decode(question)
            .inspect_err(|error| {
                tracing::debug!(target: "voussoir::quorum", %error, "dropped what is no question");
            })
            .ok()?;
        let answer = self.answer_to(envelope).await.unwrap_or(Answer::Later);
        Some(Answered { sender: self.sender(), answer }.encode())
    }

    /// None: nothing was done.
    async fn answer_to(&self, envelope: Envelope) -> Option<Answer> {
        let node = &self.shared.node;
        if let Some(refusal) = self.refusal(&envelope) {
            return Some(refusal);
        }
        let Envelope { from, question, .. } = envelope;
        let is_of_a_peer = from != self.shared.config.own;
        let is_shown = matches!(question, Question::Hello) || !is_of_a_peer;
        let (is_informed, floors) = self.floors();
        if !is_shown && !is_informed && !is_of_a_collection(&question) {
            return None;
        }
        let scope = node.own_scope().await?;
        match question {
            Question::Hello => Some(Answer::Welcome {
                epoch: self.told_epoch(&scope).await?,
                is_informed,
                floors,
                membership: (*scope.membership).clone(),
            }),
            Question::Ship { epoch, entries } if is_of_a_peer => {
                let _permit = self.shared.ships.try_acquire().ok()?;
                let fates = self.merge_all(entries, epoch).await?;
                Some(Answer::Fates { epoch: self.told_epoch(&scope).await?, fates })
            }
            Question::Compare { question } if is_of_a_peer => {
                node.table_answer(&question).map(Answer::Compared)
            }
            Question::Fetch { keys } if is_of_a_peer => {
                let (mut states, mut bytes) = (Vec::new(), 0);
                for key in keys {
                    let state = node.own_state(&scope, key).await?;
                    bytes += bytes_of(&state);
                    if bytes > MAX_STATE_BYTES && !states.is_empty() {
                        break;
                    }
                    states.push(state);
                }
                Some(Answer::Fetched { states })
            }
            Question::Hold { membership, floors, tombstones } => {
                check_served(&scope, membership)?;
                // Before the node says that it holds what a node below them may bring back.
                self.keep_floors(floors, false).await?;
                self.hold(&scope, tombstones).await
            }
            Question::Raise { membership, epoch } => {
                check_served(&scope, membership)?;
                let (raise, deadline) = (Request::Epoch { epoch }, self.deadline());
                match node.own_request_again(&scope, raise, deadline).await? {
                    Reply::Epoch { epoch } => Some(Answer::Epoch { epoch }),
                    _ => None,
                }
            }
            Question::Forget { membership, epoch, tombstones } => {
                check_served(&scope, membership)?;
                let scope = Scope { epoch, ..scope };
                let forget = |(key, context)| Request::Forget { key, context };
                let fates = self.ask_own(&scope, tombstones.into_iter().map(forget).collect());
                fates.await?.iter().all(|fate| *fate == Fate::Held).then_some(Answer::Done)
            }
            // A region does not ship to itself.
            Question::Ship { .. } | Question::Compare { .. } | Question::Fetch { .. } => None,
        }
    }

    /// Why a question is not for this node, or not to be heard: the one gate for what other regions
    /// send.
    fn refusal(&self, envelope: &Envelope) -> Option<Answer> {
        let config = &self.shared.config;
        let is_member = config.member(envelope.from).is_some();
        if envelope.map != self.map_stamp() || !is_member {
            return Some(Answer::OtherMap { epoch: config.epoch, is_member });
        }
        if envelope.to != config.own {
            return Some(Answer::OtherRegion { region: config.own });
        }
        if !self.is_heard(envelope.from, envelope.sender.stamp) {
            return Some(Answer::Over);
        }
        None
    }

    /// Merges tombstones into the node itself. None: it is not known to hold or to refuse each.
    async fn hold(&self, scope: &Scope, tombstones: Vec<Tombstone>) -> Option<Answer> {
        let merge = |(key, context)| {
            let state = Value::from_parts(context, BTreeMap::new());
            Request::Merge { key, state }
        };
        let fates = self.ask_own(scope, tombstones.into_iter().map(merge).collect()).await?;
        // Read again: what was read before the tombstones were held must be older than this.
        let epoch = self.shared.node.own_scope().await?.epoch;
        if fates.iter().all(|fate| *fate == Fate::Held) {
            return Some(Answer::Epoch { epoch });
        }
        Some(Answer::Fates { epoch, fates })
    }

    /// Asks the node itself, several at once: they share its syncs, and clients find room beside
    /// them. Returns what became of each: held or refused. None: of one that is not known.
    async fn ask_own(&self, scope: &Scope, requests: Vec<Request>) -> Option<Vec<Fate>> {
        let max_requests = MAX_MERGES.min(self.shared.node.max_own_requests());
        let deadline = self.deadline();
        let mut fates = vec![Fate::Later; requests.len()];
        let mut take = |asked: Result<(usize, Option<Reply>), _>| match asked {
            Ok((at, Some(Reply::Merged))) => fates[at] = Fate::Held,
            Ok((at, Some(Reply::Refused))) => fates[at] = Fate::Refused,
            _ => {}
        };
        let mut asked: JoinSet<(usize, Option<Reply>)> = JoinSet::new();
        for (at, request) in requests.into_iter().enumerate() {
            if asked.len() >= max_requests
                && let Some(answered) = asked.join_next().await
            {
                take(answered);
            }
            let (node, scope) = (self.shared.node.clone(), scope.clone());
            asked.spawn(
                async move { (at, node.own_request_again(&scope, request, deadline).await) },
            );
        }
        // Ends: each turn takes one of them.
        while let Some(answered) = asked.join_next().await {
            take(answered);
        }
        (!fates.contains(&Fate::Later)).then_some(fates)
    }

    /// Until when a node that is asked now is waited for.
    fn deadline(&self) -> Instant {
        Instant::now() + self.shared.config.timeout
    }

    /// Merges states into a write quorum of the own region. None: nothing was done.
    async fn merge_all(&self, entries: Vec<(Bytes, Value)>, epoch: u64) -> Option<Vec<Fate>> {
        let local = self.local()?;
        let mut fates = vec![Fate::Later; entries.len()];
        let mut merges = JoinSet::new();
        for (at, (key, state)) in entries.into_iter().enumerate() {
            // Ends: each turn takes one of them.
            while merges.len() >= MAX_MERGES {
                if let Some(Ok((at, fate))) = merges.join_next().await {
                    fates[at] = fate;
                }
            }
            let (region, local) = (self.clone(), Arc::clone(&local));
            merges.spawn(async move { (at, region.merge(&local, key, state, epoch).await) });
        }
        // Ends: each turn takes one of them.
        while let Some(merged) = merges.join_next().await {
            if let Ok((at, fate)) = merged {
                fates[at] = fate;
            }
        }
        Some(fates)
    }

    /// Merges a state into a write quorum of the own region. `epoch` was taken before any part of
    /// the state was read. Replicas that miss it are handed it by hints.
    pub(super) async fn merge(
        &self,
        local: &Arc<dyn Link>,
        key: Bytes,
        state: Value,
        epoch: u64,
    ) -> Fate {
        let node = &self.shared.node;
        let membership = node.current();
        let scope = Scope::new(&membership, epoch);
        let ids = membership.ids();
        let (told, mut replies) = mpsc::channel(ids.len().max(1));
        for id in ids {
            let (node, local, scope) = (node.clone(), Arc::clone(local), scope.clone());
            let (told, key) = (told.clone(), key.clone());
            let merge = Request::Merge { key: key.clone(), state: state.clone() };
            // Goes on when a quorum has answered and nobody waits for it any more.
            tokio::spawn(async move {
                let reply = node.request(&local, id, &scope, merge).await;
                let is_missed =
                    !matches!(reply, Some(Reply::Merged | Reply::Refused | Reply::Stale { .. }));
                if is_missed {
                    node.add_hint(id, key);
                }
                let _ = told.send((id, reply)).await;
            });
        }
        drop(told);
        let (mut holders, mut is_refused) = (BTreeSet::new(), false);
        // Ends: with the last of the tasks.
        while let Some((id, reply)) = replies.recv().await {
            match reply {
                Some(Reply::Merged) => {
                    holders.insert(id);
                }
                Some(Reply::Refused) => is_refused = true,
                _ => {}
            }
            if membership.is_met(node.write_level(), |id| holders.contains(&id)) {
                return Fate::Held;
            }
        }
        if is_refused { Fate::Refused } else { Fate::Later }
    }

    /// The link in the own region, while it is there.
    pub(super) fn local(&self) -> Option<Arc<dyn Link>> {
        self.shared.links.get()?.0.upgrade()
    }

    /// The link to the other regions, while it is there.
    pub(super) fn wide(&self) -> Option<Arc<dyn Link>> {
        self.shared.links.get()?.1.upgrade()
    }
}

/// Asked of each replica of each region, and only if it serves the membership that is named.
fn is_of_a_collection(question: &Question) -> bool {
    matches!(question, Question::Hold { .. } | Question::Raise { .. } | Question::Forget { .. })
}

/// A replica that the sender does not know of may not hold what the others drop.
fn check_served(scope: &Scope, membership: Stamp) -> Option<()> {
    let is_same = scope.membership.stamp() == membership && !scope.membership.is_changing();
    is_same.then_some(())
}

/// How many bytes a state takes in a message.
pub(super) fn bytes_of(state: &Value) -> usize {
    crate::version::codec::siblings_bytes(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ship and a comparison, say, find the same node away.
    #[test]
    fn two_who_ask_in_step_leave_out_no_node() {
        let nodes = vec![11, 12, 13, 14];
        let (state, stats) = (PeerState::Away, RegionStats::default());
        let mut contact = Contact { state, nodes: nodes.clone(), turn: 0, epoch: 3, stats };
        let mut asked = Vec::new();
        for _ in 0..4 {
            let to = contact.node(8);
            asked.push(to);
            contact.pass_over(8, to);
            contact.pass_over(8, to);
        }
        assert_eq!((asked, contact.epoch), (nodes, 0));
    }
}
