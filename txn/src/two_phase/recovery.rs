//! Finds branches that nobody tells any more, and finishes them.

use std::collections::HashSet;
use std::ops::AddAssign;
use std::sync::{Arc, Weak};

use tokio::sync::watch;

use super::coordinator::Inner;
use super::core::{Decision, Finished, is_orphan};
use super::gid::Gid;
use super::participant::InDoubt;
use super::task::{guarded, tell};

/// What a recovery did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recovered {
    /// Branches that were aborted. Those of recorded commits are told by their transactions.
    pub aborted: usize,
    /// Branches that could not be told; the next recovery tries again.
    pub failed: usize,
    /// Branches of a later epoch: another coordinator of this name has taken over.
    pub foreign: usize,
    /// Names of the participants that did not give their list.
    pub unreachable: Vec<String>,
}

impl AddAssign for Recovered {
    fn add_assign(&mut self, other: Self) {
        // Every field is named: one that is added and not summed does not compile.
        let Self { aborted, failed, foreign, unreachable } = other;
        self.aborted += aborted;
        self.failed += failed;
        self.foreign += foreign;
        self.unreachable.extend(unreachable);
    }
}

/// Recovers again and again, until the coordinator is dropped.
pub(super) async fn run(inner: Weak<Inner>, mut stopped: watch::Receiver<()>) {
    // Ends: when the last handle of the coordinator is gone.
    loop {
        let Some(strong) = inner.upgrade() else { return };
        let every = strong.config.recover_every;
        strong.look_for_successor();
        tokio::select! {
            _ = once(&strong) => {}
            _ = stopped.changed() => return,
        }
        drop(strong);
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            _ = stopped.changed() => return,
        }
    }
}

/// Asks every participant once. Participants are independent: one that does not answer holds up no
/// other.
pub(super) async fn once(inner: &Arc<Inner>) -> Recovered {
    for outcome in inner.log.heuristics() {
        inner.state.lock().note_heuristic(&outcome);
    }
    let mut lists = tokio::task::JoinSet::new();
    for name in inner.participants.keys() {
        lists.spawn(of_participant(Arc::clone(inner), Arc::clone(name)));
    }
    let mut all = Recovered::default();
    while let Some(one) = lists.join_next().await {
        if let Ok(one) = one {
            all += one;
        }
    }
    all.unreachable.sort();
    all
}

/// Counts the recoveries under way, so that transactions that end meanwhile are remembered.
struct Watch<'a>(&'a Inner);

impl<'a> Watch<'a> {
    fn begin(inner: &'a Inner) -> Self {
        let mut state = inner.state.lock();
        state.recoveries += 1;
        state.ended.get_or_insert_with(HashSet::new);
        Self(inner)
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.recoveries -= 1;
        if state.recoveries == 0 {
            state.ended = None;
        }
    }
}

async fn of_participant(inner: Arc<Inner>, name: Arc<str>) -> Recovered {
    let mut done = Recovered::default();
    // The order matters: first the list, then what is active. A transaction that ends between the
    // two is among those that ended meanwhile.
    let _watch = Watch::begin(&inner);
    let (called, coordinator) = (Arc::clone(&inner.participants[&name]), Arc::clone(&inner.name));
    let max = inner.config.max_in_doubt;
    let list = async move { called.in_doubt(&coordinator, max).await };
    let Some(Ok(list)) = guarded(inner.config.finish_timeout, list).await else {
        done.unreachable.push(name.to_string());
        return done;
    };
    note_oldest(&inner, &name, &list);
    for InDoubt { gid, .. } in list {
        if gid.coordinator() == &*inner.name && gid.txn().epoch > inner.epoch {
            done.foreign += 1;
        }
        if !is_orphan_now(&inner, &gid) {
            continue;
        }
        match tell(&inner, &gid, &name, Decision::Abort).await {
            Finished::Failed | Finished::Superseded => done.failed += 1,
            Finished::Done | Finished::Heuristic(_) => done.aborted += 1,
        }
    }
    done
}

fn is_orphan_now(inner: &Inner, gid: &Gid) -> bool {
    let state = inner.state.lock();
    // After a failure of the log nobody here knows what is committed, and what a later coordinator
    // tells is not active here any more.
    if state.closed.is_some() {
        return false;
    }
    let ended = |txn| state.ended.as_ref().is_some_and(|ended| ended.contains(&txn));
    is_orphan(gid, &inner.name, inner.epoch, |txn| state.active.contains(&txn) || ended(txn))
}

fn note_oldest(inner: &Inner, name: &Arc<str>, list: &[InDoubt]) {
    let own = list.iter().filter(|branch| branch.gid.coordinator() == &*inner.name);
    let oldest = own.map(|branch| branch.age).max();
    let mut state = inner.state.lock();
    match oldest {
        Some(age) => state.oldest.insert(Arc::clone(name), age),
        None => state.oldest.remove(name),
    };
}
