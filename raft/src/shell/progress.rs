//! What the loop keeps beside the core: how fresh the state machine is, what operators see of the
//! followers, and the commit index on its way to the disk.

use std::sync::atomic::Ordering;

use super::shared::{NEVER, Shared};
use crate::core::Core;
use crate::message::Message;
use crate::types::{Role, Status};

/// How far the view of the followers may be behind, in nanoseconds, while the loop turns.
const SHOW_WITHIN: u64 = 1_000_000;

/// How long a new commit index may stay in memory only, in nanoseconds. Nothing depends on it but
/// what a restarted node shows before it reaches a quorum.
const STORE_WITHIN: u64 = 100_000_000;

/// When the state machine last showed everything that was committed, as far as this node knows.
#[derive(Debug, Default)]
pub(crate) struct Freshness {
    /// At this time (ns) everything up to this index was committed or might be. The state machine
    /// was as fresh as that time once it has applied the index.
    awaited: Option<(u64, u64)>,
}

impl Freshness {
    /// A message arrived at `now`. To be called before the core sees it.
    pub(crate) fn heard(&mut self, core: &Core, from: u64, message: &Message, now: u64) {
        let (term, commit) = match message {
            Message::Heartbeat(beat) => (beat.term, beat.commit),
            Message::Append { head, .. } => (head.term, head.commit),
            _ => return,
        };
        let is_of_leader = core.leader() == Some(from) && term == core.hard_state().term;
        if is_of_leader && self.awaited.is_none() {
            self.awaited = Some((now, commit));
        }
    }

    /// The end of a turn.
    pub(crate) fn update(&mut self, status: &Status, shared: &Shared, now: u64) {
        if status.role == Role::Leader && self.awaited.is_none() {
            // Its log holds everything that is committed, and perhaps more.
            self.awaited = Some((now, status.last));
        }
        shared.applied.store(status.applied, Ordering::Relaxed);
        if let Some((at, _)) = self.awaited.take_if(|(_, index)| *index <= status.applied) {
            shared.fresh_at.store(at, Ordering::Relaxed);
        }
    }

    /// Whether this node has ever heard of a leader; before that it cannot say how old it is.
    pub(crate) fn read(shared: &Shared) -> (u64, Option<u64>) {
        // In this order: the index is never older than the time says.
        let at = shared.fresh_at.load(Ordering::Relaxed);
        (shared.applied.load(Ordering::Relaxed), (at != NEVER).then_some(at))
    }
}

/// Shows the followers to operators.
#[derive(Debug, Default)]
pub(crate) struct FollowersView {
    shown_at: u64,
    shown: bool,
}

impl FollowersView {
    pub(crate) fn update(&mut self, core: &Core, leads: bool, shared: &Shared, now: u64) {
        let due = now >= self.shown_at.saturating_add(SHOW_WITHIN);
        if (leads && due) || leads != self.shown {
            (self.shown_at, self.shown) = (now, leads);
            let mut followers = shared.followers.lock();
            followers.clear();
            followers.extend(core.followers());
        }
    }
}

/// The commit index on its way to the disk.
#[derive(Debug, Default)]
pub(crate) struct CommitIndex {
    stored: u64,
    store_at: Option<u64>,
}

impl CommitIndex {
    /// As the store gave it back.
    pub(crate) fn new(stored: u64) -> Self {
        Self { stored, store_at: None }
    }

    /// Notes what is committed and durable here.
    pub(crate) fn update(&mut self, status: &Status, now: u64) {
        if known(status) > self.stored && self.store_at.is_none() {
            self.store_at = Some(now.saturating_add(STORE_WITHIN));
        }
    }

    /// When it has to be written by itself. While other writes are under way it waits for the next
    /// of them.
    pub(crate) fn deadline(&self, status: &Status) -> Option<u64> {
        self.store_at.filter(|_| status.halted.is_none() && status.durable == status.last)
    }

    /// What goes along with a write: always with one that is `cheap` to add to, else when it is
    /// due.
    pub(crate) fn take(&mut self, status: &Status, now: u64, cheap: bool) -> Option<u64> {
        let known = known(status);
        if known <= self.stored || !(cheap || self.store_at.is_some_and(|at| at <= now)) {
            return None;
        }
        (self.stored, self.store_at) = (known, None);
        Some(known)
    }
}

/// Committed, and durable here: no crash of this node takes back what it vouches for.
fn known(status: &Status) -> u64 {
    status.commit.min(status.durable)
}
