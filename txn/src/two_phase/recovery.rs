//! Finds branches that nobody tells any more, and finishes them.

use std::collections::HashSet;
use std::ops::AddAssign;
use std::sync::{Arc, Weak};

use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};

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

impl Recovered {
    fn count(&mut self, told: Option<Result<Finished, JoinError>>) {
        match told {
            Some(Ok(Finished::Done | Finished::Heuristic(_))) => self.aborted += 1,
            Some(_) => self.failed += 1,
            None => {}
        }
    }
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

/// Branches of one participant that are told at once.
const MAX_TOLD: usize = 8;

/// Recovers again and again, until the coordinator is dropped. Each participant has a task of its
/// own: one that takes long holds up no other.
pub(super) fn start(inner: &Arc<Inner>, stopped: &watch::Receiver<()>) {
    for name in inner.participants.keys().cloned().map(Some).chain([None]) {
        tokio::spawn(run(Arc::downgrade(inner), name, stopped.clone()));
    }
}

/// Recovers one participant, or looks at the log alone.
async fn run(inner: Weak<Inner>, name: Option<Arc<str>>, mut stopped: watch::Receiver<()>) {
    // Ends: when the last handle of the coordinator is gone.
    loop {
        let Some(strong) = inner.upgrade() else { return };
        let every = strong.config.recover_every;
        strong.look_for_successor();
        note_heuristics(&strong);
        if let Some(name) = &name {
            tokio::select! {
                _ = of_participant(Arc::clone(&strong), Arc::clone(name)) => {}
                _ = stopped.changed() => return,
            }
        }
        drop(strong);
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            _ = stopped.changed() => return,
        }
    }
}

/// Lists what other coordinators of this log have recorded.
fn note_heuristics(inner: &Inner) {
    for outcome in inner.log.heuristics() {
        inner.state.lock().note_heuristic(&outcome);
    }
}

/// Asks every participant once, and returns when the last one is done.
pub(super) async fn once(inner: &Arc<Inner>) -> Recovered {
    note_heuristics(inner);
    let mut lists = JoinSet::new();
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

/// Remembers the transactions that end while a list is under way.
struct Watch<'a> {
    inner: &'a Inner,
    number: u64,
}

impl<'a> Watch<'a> {
    fn begin(inner: &'a Inner) -> Self {
        let mut state = inner.state.lock();
        let number = state.next_watch;
        state.next_watch += 1;
        state.ended.insert(number, HashSet::new());
        Self { inner, number }
    }

    /// Branches of the list that nobody tells. They stay so: a transaction that has ended does not
    /// begin again.
    fn orphans(&self, list: Vec<InDoubt>) -> Vec<Gid> {
        let state = self.inner.state.lock();
        let has_ended = |txn| state.ended.get(&self.number).is_some_and(|set| set.contains(&txn));
        let is_told = |txn| state.active.contains(&txn) || has_ended(txn);
        let (name, epoch) = (&self.inner.name, self.inner.epoch);
        let gids = list.into_iter().map(|branch| branch.gid);
        gids.filter(|gid| is_orphan(gid, name, epoch, is_told)).collect()
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.inner.state.lock().ended.remove(&self.number);
    }
}

async fn of_participant(inner: Arc<Inner>, name: Arc<str>) -> Recovered {
    let mut done = Recovered::default();
    // The order matters: first the list, then what is active. A transaction that ends between the
    // two is among those that ended meanwhile.
    let watch = Watch::begin(&inner);
    let (called, coordinator) = (Arc::clone(&inner.participants[&name]), Arc::clone(&inner.name));
    let max = inner.config.max_in_doubt;
    let list = async move { called.in_doubt(&coordinator, max).await };
    let Some(Ok(list)) = guarded(inner.config.finish_timeout, list).await else {
        done.unreachable.push(name.to_string());
        return done;
    };
    note_oldest(&inner, &name, &list);
    let is_foreign = |gid: &Gid| gid.coordinator() == &*inner.name && gid.txn().epoch > inner.epoch;
    done.foreign = list.iter().filter(|branch| is_foreign(&branch.gid)).count();
    let orphans = watch.orphans(list);
    drop(watch);
    let mut told = JoinSet::new();
    for gid in orphans {
        if told.len() >= MAX_TOLD {
            done.count(told.join_next().await);
        }
        // After a failure of the log nobody here knows what is committed, and what a later
        // coordinator tells is not active here any more.
        if inner.is_closed() {
            break;
        }
        let (inner, name) = (Arc::clone(&inner), Arc::clone(&name));
        told.spawn(async move { tell(&inner, &gid, &name, Decision::Abort).await });
    }
    // Ends: with those that were begun, each within its time.
    while let Some(one) = told.join_next().await {
        done.count(Some(one));
    }
    done
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
