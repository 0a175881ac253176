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
use crate::client::{RegisterConfig, RegisterError, Registers};
use crate::link::{Class, Link};
use crate::membership::{self, ChangeRejected, MemberChange, Membership, Seen};
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
    /// No majority of the replicas of this epoch answered in time. The change may have begun; then
    /// it goes on by itself once a majority is there.
    #[error("no majority of the replicas of epoch {epoch} answered in time")]
    Undecided {
        /// The epoch.
        epoch: u64,
    },
    /// The change has begun and not ended in time: a new replica is still being filled or is away,
    /// or too few old ones are there. It goes on by itself; until it ends, quorums of both sets are
    /// needed. [`Node::abandon_change`] takes it back.
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
            Self::Rejected(_) | Self::NotWhole => Outcome::NotApplied,
            Self::Undecided { .. } | Self::Unfinished { .. } => Outcome::Unknown,
        }
    }

    /// Whether the same call may succeed later. It never has a second effect.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Rejected(rejected) => matches!(rejected, ChangeRejected::Underway { .. }),
            _ => true,
        }
    }
}

impl Node {
    /// Changes the replicas: adds one, removes one, or replaces one by another, while clients go
    /// on. Returns when the new replicas stand alone, with their membership. Every whole replica
    /// may be asked. A call for what is already so returns at once; a call that is repeated carries
    /// on what it finds.
    ///
    /// A node that is added was begun by [`Node::join`] and maintains itself. A replica that is
    /// removed may be dead, and so may others: a majority of the old replicas must be there, and
    /// N - W + 1 of them; for a removal, all that stay. While another change is under way, this one
    /// waits for it. What ends late goes on by itself: the maintenance of any replica carries it
    /// on.
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
        let ends = Instant::now() + timeout;
        // Ends: with the change, or by the deadline.
        loop {
            let current = self.current();
            let begun = current.begin(change, self.shared.config.write);
            match begun {
                // Also a node that the change has removed knows that it is made.
                Ok(None) => return Ok(current),
                _ if !self.is_whole() => return Err(ReconfigureError::NotWhole),
                Ok(Some(next)) => drop(self.decide(link, &current, &next).await),
                Err(ChangeRejected::Underway { .. }) => self.advance(link).await,
                Err(rejected) => return Err(rejected.into()),
            }
            let latest = self.current();
            if latest.epoch() > current.epoch() {
                // Ends: each epoch ends this change or another one.
                continue;
            }
            if Instant::now() >= ends {
                return Err(self.late(&latest, change));
            }
            sleep(self.shared.config.maintain_every.min(LOOK_EVERY)).await;
        }
    }

    /// Why a change has not ended in time.
    fn late(&self, latest: &Membership, change: MemberChange) -> ReconfigureError {
        let epoch = latest.epoch();
        let Some(after) = latest.finish() else { return ReconfigureError::Undecided { epoch } };
        if after.begin(change, self.shared.config.write) == Ok(None) {
            ReconfigureError::Unfinished { epoch }
        } else {
            ChangeRejected::Underway { epoch }.into()
        }
    }

    /// Takes back a change that has not ended: the replicas are those of before it. Returns at once
    /// if there is none. A replica that was being added is removed.
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
        let (ends, joint) = (Instant::now() + timeout, self.current());
        let Some(before) = joint.abandon() else { return Ok(joint) };
        // Ends: when the epoch has a successor, or by the deadline.
        loop {
            let decided = self.decide(link, &joint, &before).await;
            let latest = self.current();
            if decided.is_some() || latest.epoch() > joint.epoch() {
                let epoch = latest.epoch();
                let is_changing = latest.is_changing();
                let underway = ChangeRejected::Underway { epoch };
                return if is_changing { Err(underway.into()) } else { Ok(latest) };
            }
            if Instant::now() >= ends {
                return Err(ReconfigureError::Undecided { epoch: joint.epoch() });
            }
            sleep(self.shared.config.maintain_every.min(LOOK_EVERY)).await;
        }
    }

    /// What the node tells of itself.
    pub(super) fn told(&self) -> Answer {
        let membership = Membership::clone(&self.current());
        let is_whole = self.is_whole();
        let is_caught_up = self.shared.caught_up.load(Ordering::Acquire) == membership.epoch();
        let is_ready = is_whole && (!membership.must_catch_up(self.shared.id) || is_caught_up);
        Answer::Membership { membership, is_whole, is_ready }
    }

    /// Serves a later membership. Returns when that is durable, or the node has halted.
    pub(super) async fn adopt(&self, membership: Membership) {
        if membership.epoch() > self.current().epoch() {
            self.order(|done| Job::Adopt { membership, done }).await;
            let current = self.current();
            self.shared.hints.retain(|replica| current.contains(replica));
        }
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
        match call(link, to, class, scope, ask, deadline).await.ok()?.1 {
            Answer::Membership { membership, .. } => {
                self.adopt(membership).await;
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
        let mut seen = BTreeMap::new();
        let mut count = |id, answer: Answer| {
            let Answer::Membership { membership, is_whole, is_ready } = answer else { return None };
            seen.insert(id, Seen { epoch: membership.epoch(), is_whole, is_ready });
            Some(membership)
        };
        let mut latest: Option<Membership> = None;
        // Ends: each turn takes one of them.
        while let Some(answered) = asked.join_next().await {
            let Ok((id, Ok((_, answer)))) = answered else { continue };
            let Some(membership) = count(id, answer) else { continue };
            if latest.as_ref().is_none_or(|latest| latest.epoch() < membership.epoch()) {
                latest = Some(membership);
            }
        }
        if let Some(latest) = latest {
            self.adopt(latest).await;
        }
        count(self.shared.id, self.told());
        seen
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
            match self.catch_up(link).await {
                Ok(()) => self.shared.caught_up.store(joint.epoch(), Ordering::Release),
                Err(error) => {
                    tracing::debug!(target: "voussoir::quorum", %error, "not caught up yet");
                }
            }
        }
        let seen = self.survey(link, &joint.ids()).await;
        if joint.may_finish(&seen, self.shared.config.write)
            && let Some(after) = joint.finish()
        {
            self.decide(link, &joint, &after).await;
        }
    }

    /// Decides what follows the membership `current`: `wanted`, or what was decided before. Serves
    /// it, and tells the replicas. None: it is not known to be decided.
    async fn decide(
        &self,
        link: &Arc<dyn Link>,
        current: &Arc<Membership>,
        wanted: &Membership,
    ) -> Option<Membership> {
        let own: Arc<dyn Link> = Arc::new(OwnLink { node: self.clone(), link: Arc::clone(link) });
        let mut config = RegisterConfig::with_acceptors(current.ids());
        config.timeout = self.shared.config.timeout;
        let registers = Registers::pinned(self.shared.id, config, current, own).ok()?;
        let key = decree_key(current.epoch());
        let value = Some(membership::encode(wanted));
        let decided = match registers.compare_and_set(key.clone(), 0, value).await {
            Ok(paxos::Outcome::Applied { .. }) => Some(wanted.clone()),
            Ok(paxos::Outcome::NotApplied { value, .. }) => decree_of(value),
            Err(RegisterError::Unknown(_)) => {
                registers.get(key).await.ok().and_then(|(_, value)| decree_of(value))
            }
            _ => None,
        };
        // An acceptor may have told of a later membership instead.
        let later = Membership::clone(&registers.membership());
        let decided = decided.filter(|decided| current.is_followed_by(decided));
        self.adopt(decided.clone().unwrap_or(later)).await;
        self.survey(link, &current.ids()).await;
        decided
    }
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
