//! What the loop keeps beside the core: how fresh the state machine is, what operators see of the
//! followers, and the commit index on its way to the disk.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::watch;

use super::shared::{NEVER, Shared};
use crate::core::Core;
use crate::membership::Membership;
use crate::message::Message;
use crate::types::Status;

/// How far the view of the followers may be behind, in nanoseconds, while the loop turns.
const SHOW_WITHIN: u64 = 1_000_000;

/// How long a new commit index may stay in memory only, in nanoseconds. Nothing depends on it but
/// what a restarted node shows before it reaches a quorum.
const STORE_WITHIN: u64 = 200_000_000;

/// How long before that a write of the log takes it along: in a group at work it never costs a
/// write of its own.
const STORE_ALONG_WITHIN: u64 = 150_000_000;

/// When the state machine last showed everything that was committed, as far as this node knows.
#[derive(Debug, Default)]
pub(crate) struct Freshness {
    /// A time (ns), and an index above which this node knows of nothing that was committed by then:
    /// once the index is applied, the state machine is as fresh as that time.
    awaited: Option<(u64, u64)>,
}

impl Freshness {
    /// A message arrived at `now`. To be called before the core sees it.
    pub(crate) fn heard(&mut self, core: &Core, from: u64, message: &Message, now: u64) {
        let (term, commit) = match message {
            Message::Heartbeat(beat) => (beat.term, beat.commit),
            Message::Append { head, .. } => (head.term, head.commit),
            Message::Quiesce(quiesce) => (quiesce.term, quiesce.commit),
            _ => return,
        };
        let is_of_leader = core.leader() == Some(from) && term == core.hard_state().term;
        if is_of_leader && self.awaited.is_none() {
            self.awaited = Some((now, commit));
        }
    }

    /// To be called at the end of each turn of the loop.
    pub(crate) fn update(&mut self, core: &Core, status: &Status, shared: &Shared) {
        if self.awaited.is_none()
            && let Some(at) = core.led_at()
        {
            // Its log holds everything that was committed by then, and perhaps more.
            self.awaited = Some((at, status.last));
        }
        shared.applied.store(status.applied, Ordering::Relaxed);
        if let Some((at, _)) = self.awaited.take_if(|(_, index)| *index <= status.applied) {
            shared.fresh_at.store(at, Ordering::Release);
        }
    }

    /// The applied index, and the time at which the state machine was last known to be fresh. No
    /// time before this node has heard of a leader.
    pub(crate) fn read(shared: &Shared) -> (u64, Option<u64>) {
        // The time is stored after the index and read before it, so the index is at least as new.
        let at = shared.fresh_at.load(Ordering::Acquire);
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

/// Shows the members to whoever watches. The channel is made for the first of them: most of ten
/// thousand groups have none.
#[derive(Debug)]
pub(crate) struct MembersView {
    shown: Arc<Membership>,
    watched: Option<watch::Sender<Arc<Membership>>>,
    is_over: bool,
}

impl MembersView {
    pub(crate) fn new(members: &Arc<Membership>) -> Self {
        Self { shown: Arc::clone(members), watched: None, is_over: false }
    }

    /// Others count from now on. Returns how to tell the watchers, if there are any.
    pub(crate) fn show(
        &mut self,
        members: &Arc<Membership>,
    ) -> Option<watch::Sender<Arc<Membership>>> {
        self.shown = Arc::clone(members);
        self.watched.clone()
    }

    /// A watcher more. After the end it hears of no change, and that it is the end.
    pub(crate) fn watch(&mut self) -> watch::Receiver<Arc<Membership>> {
        if self.is_over {
            return watch::channel(Arc::clone(&self.shown)).1;
        }
        let shown = &self.shown;
        self.watched.get_or_insert_with(|| watch::Sender::new(Arc::clone(shown))).subscribe()
    }

    /// The node stops. Returns what the watchers hear that by when it is dropped.
    pub(crate) fn end(&mut self) -> Option<watch::Sender<Arc<Membership>>> {
        self.is_over = true;
        self.watched.take()
    }
}

/// The commit index on its way to the disk. What is `known` here is the
/// [safe one](Core::safe_commit).
#[derive(Debug, Default)]
pub(crate) struct CommitIndex {
    stored: u64,
    store_at: Option<u64>,
}

impl CommitIndex {
    /// `stored` is what the store gave back at the start.
    pub(crate) fn new(stored: u64) -> Self {
        Self { stored, store_at: None }
    }

    /// Notes what is known.
    pub(crate) fn update(&mut self, known: u64, now: u64) {
        if known > self.stored && self.store_at.is_none() {
            self.store_at = Some(now.saturating_add(STORE_WITHIN));
        }
    }

    /// When it has to be stored by a write of its own. `None` while writes of the log are under
    /// way, the next of which takes it along, and when the node has halted.
    pub(crate) fn deadline(&self, core: &Core) -> Option<u64> {
        self.store_at.filter(|_| core.has_written_all())
    }

    /// The index to add to a write of the log, if it has grown and adding is `cheap` or it has
    /// waited for a while. It counts as stored from then on.
    pub(crate) fn take_along(&mut self, known: u64, now: u64, cheap: bool) -> Option<u64> {
        let soon = now.saturating_add(STORE_ALONG_WITHIN);
        self.take(known, cheap || self.store_at.is_some_and(|at| at <= soon))
    }

    /// The index to write by itself, if it has grown and the deadline has passed. It counts as
    /// stored from then on.
    pub(crate) fn take_due(&mut self, known: u64, now: u64) -> Option<u64> {
        self.take(known, self.store_at.is_some_and(|at| at <= now))
    }

    fn take(&mut self, known: u64, is_time: bool) -> Option<u64> {
        if known <= self.stored || !is_time {
            return None;
        }
        (self.stored, self.store_at) = (known, None);
        Some(known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::core::Restored;

    const MS: u64 = 1_000_000;

    #[test]
    fn members_are_shown_to_those_who_watch_and_to_those_who_come_later() {
        let members = |voters: [u64; 2]| Arc::new(Membership::new(voters));
        let mut view = MembersView::new(&members([1, 2]));
        assert!(view.show(&members([1, 3])).is_none(), "nobody watches");
        let mut watcher = view.watch();
        assert_eq!(watcher.borrow().voters(), [1, 3]);
        assert!(!watcher.has_changed().unwrap(), "what it sees is no change");
        let watched = view.show(&members([1, 4])).expect("somebody watches");
        watched.send_replace(members([1, 4]));
        drop(watched);
        assert!(watcher.has_changed().unwrap());
        assert_eq!(view.watch().borrow_and_update().voters(), [1, 4]);
        assert_eq!(watcher.borrow_and_update().voters(), [1, 4]);
        drop(view.end());
        assert!(watcher.has_changed().is_err(), "and it is over");
        let late = view.watch();
        assert_eq!(late.borrow().voters(), [1, 4]);
        assert!(late.has_changed().is_err(), "from the beginning");
    }

    #[test]
    fn a_commit_index_goes_along_with_a_write_or_waits_for_its_own() {
        // All that it has is durable.
        let core = Core::new(Config::new(1, [1, 2, 3]), Restored::empty(), 0).unwrap();
        let mut index = CommitIndex::new(3);
        index.update(4, MS);
        assert_eq!(index.take_along(4, 2 * MS, false), None, "it is fresh");
        assert_eq!(index.take_along(4, 60 * MS, false), Some(4));
        assert_eq!(index.deadline(&core), None, "all is stored");
        index.update(6, 70 * MS);
        assert_eq!(index.take_along(6, 71 * MS, true), Some(6), "a vote is rare");
        index.update(7, 100 * MS);
        let due = index.deadline(&core).unwrap();
        assert_eq!(index.take_due(7, due - 1), None);
        assert_eq!(index.take_due(7, due), Some(7));
    }
}
