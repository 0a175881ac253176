//! Changing the replicas: who decides, who is told, and when a change ends.
//!
//! See [`membership`](crate::membership) for why this is safe. What follows epoch e is the value of
//! one register of the acceptors of e, under a key of its own that is written once. Whoever finds
//! a change half done carries it on: [`Node::reconfigure`] while it runs, and the maintenance of
//! every replica.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::Node;
use super::driver::Job;
use crate::caller::{Scope, call};
use crate::client::{RegisterError, Registers};
use crate::link::{Class, Link};
use crate::membership::{
    self, ChangeRejected, Lack, Lineage, MemberChange, Membership, Seen, Unprepared,
};
use crate::paxos;
use crate::table::{CallError, Outcome};
use crate::wire::{Answer, Ask, decree_key};

/// How long a change waits before it looks again how far it is, at most.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Why a change of the replicas has not ended. Asking for the same change again is safe.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReconfigureError {
    /// The change cannot be made, or another one is under way. Nothing has changed.
    #[error(transparent)]
    Rejected(#[from] ChangeRejected),
    /// The node that was asked is no whole replica. Nothing has changed. Ask another one.
    #[error("the node that was asked is no whole replica")]
    NotWhole,
    /// The node that is to be added did not answer in time. Nothing has changed. Begin it with
    /// [`Node::join`], or check its id.
    #[error("node {node}, which is to be added, does not answer; nothing has changed")]
    NewcomerAway {
        /// The node.
        node: u64,
    },
    /// The node that is to be added counts as a replica already, of another cluster. Nothing has
    /// changed.
    #[error("node {node}, which is to be added, is a replica elsewhere; nothing has changed")]
    NotJoining {
        /// The node.
        node: u64,
    },
    /// The node that is to be added is of another cluster, or of a copy of this one. Nothing has
    /// changed. Clear its store and begin it with [`Node::join`], or check its address.
    #[error("node {node}, which is to be added, is of the cluster {lineage}; nothing has changed")]
    OtherCluster {
        /// The node.
        node: u64,
        /// The name of its cluster.
        lineage: Lineage,
    },
    /// Too few of the replicas are there and whole for the change to end. Nothing has changed. Wait
    /// until they are, or replace one that is dead first.
    #[error("{found} whole replicas are there, the change takes {needed}; nothing has changed")]
    TooFewWhole {
        /// How many answered.
        found: usize,
        /// How many must.
        needed: usize,
    },
    /// The change began and was taken back by another call, or undone by a later change, while this
    /// one waited for it. Nothing is left of it.
    #[error("the change was taken back: it is not part of epoch {epoch}")]
    Abandoned {
        /// The epoch that the node serves.
        epoch: u64,
    },
    /// No majority of the replicas of this epoch answered in time, or the node that was asked has
    /// stopped being a whole replica since. The change may have begun; then it goes on by itself
    /// once a majority is there. Ask another replica.
    #[error("it is not known in epoch {epoch} whether the change was made")]
    Undecided {
        /// The epoch.
        epoch: u64,
    },
    /// The change has begun and not ended in time: a new replica is still being filled or is away,
    /// too few old ones are there, or the node that was asked has stopped being a whole replica. It
    /// goes on by itself; until it ends, quorums of both sets are needed. [`Node::abandon_change`]
    /// takes it back.
    #[error("the change goes on in the joint epoch {epoch}")]
    Unfinished {
        /// The joint epoch.
        epoch: u64,
    },
}

impl ReconfigureError {
    /// Whether the change has had an effect.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Undecided { .. } | Self::Unfinished { .. } => Outcome::Unknown,
            _ => Outcome::NotApplied,
        }
    }

    /// Whether the same call may succeed later. It never has a second effect.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Rejected(rejected) => matches!(rejected, ChangeRejected::Underway { .. }),
            // To ask again would undo the word of another operator.
            Self::Abandoned { .. } | Self::NotJoining { .. } | Self::OtherCluster { .. } => false,
            _ => true,
        }
    }
}

impl Node {
    /// Changes the replicas: adds one, removes one, or replaces one by another, while clients go
    /// on. Returns when the new replicas stand alone and a majority of them serves the new epoch,
    /// with their membership. Every whole replica may be asked. A call for what is already so
    /// returns once a majority has said so; a call that is repeated carries on what it finds.
    ///
    /// A node that is added was begun by [`Node::join`] and maintains itself. A replica that is
    /// removed may be dead, and so may others: a majority of the old replicas must be there, and
    /// N - W + 1 of them; for a removal, all that stay. While another change is under way, this one
    /// waits for it. What ends late goes on by itself: the maintenance of any replica carries it
    /// on.
    ///
    /// A change is not begun before the nodes say that it can end: the node that is added answers,
    /// and so many of the replicas that stay are whole that they are a majority of the new ones.
    ///
    /// Tables and registers follow by themselves, if their list names a replica that is left.
    ///
    /// # Errors
    /// [`ReconfigureError`].
    ///
    /// # Cancel safety
    /// Dropping it leaves the change where it is. It goes on by itself once its first epoch is
    /// decided.
    pub async fn reconfigure(
        &self,
        link: &Arc<dyn Link>,
        change: MemberChange,
        timeout: Duration,
    ) -> Result<Arc<Membership>, ReconfigureError> {
        let (mut lack, mut may_have_begun) = (None, false);
        let changing = self.change(link, change, &mut lack, &mut may_have_begun);
        let changed = tokio::time::timeout(timeout, changing).await;
        // Dropped where it was: what it has begun goes on by itself.
        changed.unwrap_or_else(|_| Err(lack.unwrap_or_else(|| self.late(change, may_have_begun))))
    }

    /// Changes the replicas. `lack` is why the change has not begun, as long as it surely has not.
    async fn change(
        &self,
        link: &Arc<dyn Link>,
        change: MemberChange,
        lack: &mut Option<ReconfigureError>,
        may_have_begun: &mut bool,
    ) -> Result<Arc<Membership>, ReconfigureError> {
        let mut is_begun = false;
        // Ends: with the change; its caller drops it by a deadline.
        loop {
            let current = self.current();
            let epoch = current.epoch();
            if epoch == 0 {
                return Err(ReconfigureError::NotWhole);
            }
            match current.begin(change, self.shared.config.write) {
                // Also a node that the change has removed may find that it is made.
                Ok(None) if self.is_latest(link, &current).await => return Ok(current),
                Ok(None) => {}
                Err(ChangeRejected::Underway { .. }) if self.is_whole() => {
                    if self.is_change_of(&current, change) {
                        (*lack, is_begun, *may_have_begun) = (None, true, true);
                    }
                    self.advance(link).await;
                }
                // To begin it again would undo what another operator has decided.
                Ok(Some(_)) | Err(_) if is_begun && !current.is_changing() => {
                    return Err(ReconfigureError::Abandoned { epoch });
                }
                // Others carry on what was begun: "nothing has changed" would be wrong.
                Ok(Some(_)) | Err(_) if *may_have_begun && !self.is_whole() => {
                    return Err(self.late(change, true));
                }
                _ if !self.is_whole() => return Err(ReconfigureError::NotWhole),
                Ok(Some(next)) => match self.check_prepared(link, &next).await {
                    Err(error) if !*may_have_begun => *lack = Some(error),
                    Err(_) => {}
                    Ok(()) => {
                        let before = std::mem::replace(may_have_begun, true);
                        *lack = None;
                        match self.decide(link, &current, &next).await {
                            Decided::As(decided) if decided.is_same_change(&next) => {
                                is_begun = true;
                            }
                            // Another change follows this epoch, or none does yet.
                            Decided::As(_) | Decided::Not => *may_have_begun = before,
                            Decided::Unknown => {}
                        }
                    }
                },
                Err(_) if *may_have_begun => return Err(self.late(change, true)),
                Err(rejected) => return Err(rejected.into()),
            }
            // At once: each epoch ends this change or another one.
            if self.current().epoch() == epoch {
                sleep(self.shared.config.maintain_every.min(LOOK_EVERY)).await;
            }
        }
    }

    /// Whether a joint epoch is of a change.
    fn is_change_of(&self, joint: &Membership, change: MemberChange) -> bool {
        let write = self.shared.config.write;
        joint.finish().is_some_and(|after| after.begin(change, write) == Ok(None))
    }

    /// Why a change has not ended in time, or not as far as this node knows.
    fn late(&self, change: MemberChange, may_have_begun: bool) -> ReconfigureError {
        let latest = self.current();
        let epoch = latest.epoch();
        if !latest.is_changing() || may_have_begun && !self.is_change_of(&latest, change) {
            ReconfigureError::Undecided { epoch }
        } else if self.is_change_of(&latest, change) {
            ReconfigureError::Unfinished { epoch }
        } else {
            ChangeRejected::Underway { epoch }.into()
        }
    }

    /// Whether a change that begins with the joint epoch `next` can end, as far as the nodes say.
    async fn check_prepared(
        &self,
        link: &Arc<dyn Link>,
        next: &Membership,
    ) -> Result<(), ReconfigureError> {
        let seen = self.survey(link, &next.ids()).await;
        next.is_prepared(&seen, self.shared.config.levels()).map_err(|lack| match lack {
            Unprepared::Away(node) => match self.shared.strangers.of(node) {
                Some(lineage) => ReconfigureError::OtherCluster { node, lineage },
                None => ReconfigureError::NewcomerAway { node },
            },
            Unprepared::NotJoining(node) => ReconfigureError::NotJoining { node },
            Unprepared::TooFew(Lack { found, needed }) => {
                ReconfigureError::TooFewWhole { found, needed }
            }
        })
    }

    /// Takes back a change that has not ended: the replicas are those of before it. Returns at once
    /// if there is none, once a majority has said so. A replica that was being added is removed. A
    /// majority of the old replicas is enough: none of the new ones need be there.
    ///
    /// # Errors
    /// [`ReconfigureError`]. [`ChangeRejected::Underway`]: another change has begun meanwhile.
    ///
    /// # Cancel safety
    /// Dropping it may leave the change taken back or not.
    pub async fn abandon_change(
        &self,
        link: &Arc<dyn Link>,
        timeout: Duration,
    ) -> Result<Arc<Membership>, ReconfigureError> {
        let abandoned = tokio::time::timeout(timeout, self.abandon(link)).await;
        let undecided = |_| Err(ReconfigureError::Undecided { epoch: self.current().epoch() });
        abandoned.unwrap_or_else(undecided)
    }

    async fn abandon(&self, link: &Arc<dyn Link>) -> Result<Arc<Membership>, ReconfigureError> {
        let mut joint = None;
        // Ends: when no change is left; its caller drops it by a deadline.
        loop {
            let current = self.current();
            let epoch = current.epoch();
            if epoch == 0 {
                return Err(ReconfigureError::NotWhole);
            }
            match current.abandon() {
                Some(_) if joint.is_some_and(|joint| joint != epoch) => {
                    return Err(ChangeRejected::Underway { epoch }.into());
                }
                Some(before) => {
                    joint = Some(epoch);
                    self.decide(link, &current, &before).await;
                }
                None if self.is_latest(link, &current).await => return Ok(current),
                None => {}
            }
            if self.current().epoch() == epoch {
                sleep(self.shared.config.maintain_every.min(LOOK_EVERY)).await;
            }
        }
    }

    /// Whether nothing is decided to follow `current`, and a majority serves it, as of some moment
    /// during the call. What was decided is served.
    pub(super) async fn is_latest(&self, link: &Arc<dyn Link>, current: &Arc<Membership>) -> bool {
        let Some(registers) = self.decrees(link, current) else { return false };
        // Acceptors that serve another epoch do not answer: they tell of theirs, or are told.
        let read = registers.get(decree_key(current)).await;
        let decided = match read {
            Ok((0, _)) => return true,
            Ok((_, value)) => decree_of(value).filter(|decided| current.is_followed_by(decided)),
            Err(_) => None,
        };
        let later = || Membership::clone(&registers.membership());
        self.adopt(decided.unwrap_or_else(later)).await;
        false
    }

    /// What the node tells of itself.
    pub(super) fn told(&self) -> Answer {
        let membership = Membership::clone(&self.current());
        let is_whole = self.is_whole();
        let is_caught_up = self.shared.caught_up.load(Ordering::Acquire) == membership.epoch();
        let is_ready = is_whole && (!membership.must_catch_up(self.shared.id) || is_caught_up);
        Answer::Membership { membership, is_whole, is_ready }
    }

    /// Serves a later membership, unless it cannot follow the own one. Returns when that is
    /// durable, or the node has halted.
    pub(super) async fn adopt(&self, membership: Membership) {
        let (node, epoch, current) = (self.shared.id, membership.epoch(), self.current());
        if epoch <= current.epoch() {
            return;
        }
        if !current.is_in_past_of(&membership) {
            return self.shared.strangers.answer(node, None, membership.lineage());
        }
        if !current.can_lead_to(&membership) {
            let own = current.epoch();
            tracing::warn!(target: "voussoir::quorum", node, own, epoch, "refused a membership");
            return;
        }
        self.order(|done| Job::Adopt { membership, done }).await;
        let current = self.current();
        self.shared.hints.retain(|replica| current.contains(replica));
    }

    /// Asks a node on behalf of this one, which goes on with the membership that it is told. None:
    /// there is no answer to what was asked.
    pub(super) async fn ask(
        &self,
        link: &Arc<dyn Link>,
        to: u64,
        class: Class,
        scope: &Scope,
        ask: Ask,
        timeout: Duration,
    ) -> Option<Answer> {
        if to == self.shared.id {
            return self.ask_own(scope, ask).await;
        }
        let deadline = Instant::now() + timeout;
        let answer = match call(link, to, class, scope, ask, deadline).await {
            Err(CallError::Busy) => Answer::Busy,
            called => called.ok()?.1,
        };
        match answer {
            Answer::Membership { membership, .. } => {
                self.adopt(membership).await;
                None
            }
            Answer::OtherCluster { lineage } => {
                self.shared.strangers.answer(self.shared.id, Some(to), lineage);
                None
            }
            answer => Some(answer),
        }
    }

    /// Tells some nodes of the own membership, and asks each what it serves. The latest that any of
    /// them serves is served from then on.
    pub(super) async fn survey(&self, link: &Arc<dyn Link>, ids: &[u64]) -> BTreeMap<u64, Seen> {
        let current = self.current();
        let mut asked = JoinSet::new();
        for id in ids.iter().copied().filter(|id| *id != self.shared.id) {
            let (link, scope) = (Arc::clone(link), Scope::new(&current, 0));
            let is_decided = current.epoch() > Membership::FIRST_EPOCH;
            let offer = is_decided.then(|| Membership::clone(&current));
            let deadline = Instant::now() + self.shared.config.timeout;
            asked.spawn(async move {
                let ask = Ask::Membership { offer };
                (id, call(&link, id, Class::Small, &scope, ask, deadline).await)
            });
        }
        let (mut seen, mut told) = (BTreeMap::new(), Vec::new());
        // Ends: each turn takes one of them.
        while let Some(answered) = asked.join_next().await {
            match answered {
                Ok((id, Ok((_, Answer::Membership { membership, is_whole, is_ready })))) => {
                    seen.insert(id, Seen { epoch: membership.epoch(), is_whole, is_ready });
                    told.push((id, membership));
                }
                Ok((id, Ok((_, Answer::OtherCluster { lineage })))) => {
                    self.shared.strangers.answer(self.shared.id, Some(id), lineage);
                }
                _ => {}
            }
        }
        if !self.are_of_one(&told) {
            seen.clear();
            told.clear();
        }
        for (id, _) in &told {
            self.shared.strangers.is_of_us(*id);
        }
        let latest = told.into_iter().map(|(_, membership)| membership);
        if let Some(latest) = latest.max_by_key(Membership::epoch) {
            self.adopt(latest).await;
        }
        if let Answer::Membership { membership, is_whole, is_ready } = self.told() {
            seen.insert(self.shared.id, Seen { epoch: membership.epoch(), is_whole, is_ready });
        }
        seen
    }

    /// Whether those that know of a cluster know of the same one. If they do not, one of the
    /// addresses that the node was given is wrong, and it cannot tell which: it takes no word.
    fn are_of_one(&self, told: &[(u64, Membership)]) -> bool {
        let mut known = told.iter().filter(|(_, membership)| membership.epoch() > 0);
        let Some((_, first)) = known.next() else { return true };
        let Some((id, other)) = known.find(|(_, membership)| !first.is_kin(membership)) else {
            return true;
        };
        self.shared.strangers.answer(self.shared.id, Some(*id), other.lineage());
        false
    }

    /// Carries on a change that is half done: catches up if the node must, and ends the change if
    /// every new replica is ready.
    pub(super) async fn advance(&self, link: &Arc<dyn Link>) {
        let joint = self.current();
        if !joint.is_changing() || !self.is_whole() {
            return;
        }
        let caught_up = self.shared.caught_up.load(Ordering::Acquire);
        if joint.must_catch_up(self.shared.id) && caught_up != joint.epoch() {
            self.begin_to_catch_up(link, joint.epoch());
        }
        let seen = self.survey(link, &joint.ids()).await;
        if joint.may_finish(&seen, self.shared.config.levels())
            && let Some(after) = joint.finish()
        {
            self.decide(link, &joint, &after).await;
        }
    }

    /// Starts to copy what the node may lack. That takes as long as there is something to copy, and
    /// nothing waits for it. Does nothing if it copies already.
    fn begin_to_catch_up(&self, link: &Arc<dyn Link>, epoch: u64) {
        let (node, link) = (self.clone(), Arc::clone(link));
        tokio::spawn(async move {
            let Ok(_maintaining) = node.shared.maintaining.try_lock() else { return };
            match node.catch_up(&link).await {
                Ok(copied) => {
                    node.shared.caught_up.fetch_max(copied, Ordering::AcqRel);
                }
                Err(error) => {
                    tracing::debug!(target: "voussoir::quorum", epoch, %error, "not caught up yet");
                }
            }
        });
    }

    /// The register that holds what follows a membership, for this node as a client.
    fn decrees(&self, link: &Arc<dyn Link>, current: &Arc<Membership>) -> Option<Registers> {
        let own: Arc<dyn Link> = Arc::new(OwnLink { node: self.clone(), link: Arc::clone(link) });
        Registers::pinned(self.shared.id, self.shared.config.timeout, current, own).ok()
    }

    /// Decides what follows the membership `current`: `wanted`, or what was decided before. Serves
    /// it, and tells the replicas.
    async fn decide(
        &self,
        link: &Arc<dyn Link>,
        current: &Arc<Membership>,
        wanted: &Membership,
    ) -> Decided {
        let Some(registers) = self.decrees(link, current) else { return Decided::Not };
        let key = decree_key(current);
        let wanted = &wanted.drawn();
        let value = Some(membership::encode(wanted));
        let (decided, otherwise) = match registers.compare_and_set(key.clone(), 0, value).await {
            Ok(paxos::Outcome::Applied { .. }) => (Some(wanted.clone()), Decided::Unknown),
            Ok(paxos::Outcome::NotApplied { value, .. }) => (decree_of(value), Decided::Unknown),
            Err(RegisterError::Unknown(_)) => {
                let read = registers.get(key).await.ok();
                (read.and_then(|(_, value)| decree_of(value)), Decided::Unknown)
            }
            // Nothing was written, and nothing will be.
            _ => (None, Decided::Not),
        };
        // An acceptor may have told of a later membership instead.
        let later = Membership::clone(&registers.membership());
        let decided = decided.filter(|decided| current.is_followed_by(decided));
        self.adopt(decided.clone().unwrap_or(later)).await;
        self.survey(link, &current.ids()).await;
        decided.map_or(otherwise, Decided::As)
    }
}

/// What follows a membership.
enum Decided {
    As(Membership),
    /// The wanted one was not proposed.
    Not,
    /// The wanted one may have been decided, or may yet be.
    Unknown,
}

fn decree_of(value: Option<Bytes>) -> Option<Membership> {
    membership::decode(value?).ok()
}

/// The link of a node that also reaches the node itself.
struct OwnLink {
    node: Node,
    link: Arc<dyn Link>,
}

#[async_trait]
impl Link for OwnLink {
    async fn call(
        &self,
        to: u64,
        class: Class,
        request: Bytes,
        deadline: Instant,
    ) -> Result<Bytes, CallError> {
        if to == self.node.id() {
            return self.node.answer(request).await.ok_or(CallError::Unknown);
        }
        self.link.call(to, class, request, deadline).await
    }
}
