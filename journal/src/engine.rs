//! The journal itself: deterministic synchronous code over the `Files` seam.
//!
//! Three locks, taken in this order: `writer` (held while a group is written), `state` (accepted
//! commits), and the short ones of segments and logs. Between the first two come `rewriter` and
//! `keeper`, in a journal without threads; otherwise only the keeper's thread holds `rewriter`, and
//! takes `writer` under it, never under `keeper`. `state` is never held during I/O.

use std::any::{Any, TypeId};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

pub(crate) mod cache;
pub(crate) mod completion;
pub(crate) mod foreign;
pub(crate) mod group;
pub(crate) mod lead;
pub(crate) mod log;
pub(crate) mod reader;
pub(crate) mod rewrite;
pub(crate) mod rotate;
pub(crate) mod run;
pub(crate) mod seal;
pub(crate) mod segment;
pub(crate) mod space;
pub(crate) mod submit;
pub(crate) mod threads;
pub(crate) mod wakers;
pub(crate) mod writer;

use self::cache::{Buffers, IndexCache};
use self::lead::Leadership;
use self::log::LogInner;
use self::rewrite::Rewriter;
use self::space::{Keeper, Space};
use self::wakers::Wakers;
use self::writer::Writer;
use crate::config::Config;
use crate::core::queue::{LogState, State};
use crate::error::{Error, Fault};
use crate::files::Files;

/// Logs visited under one lock of the state: other threads wait some 10 µs for that lock at most.
const LOGS_AT_ONCE: usize = 256;

/// All of one open journal.
pub(crate) struct Engine {
    /// Number of this opened journal, unique in the process: commits name the logs of one.
    pub(crate) opening: u64,
    pub(crate) config: Config,
    pub(crate) writer: Mutex<Writer>,
    pub(crate) state: Mutex<State>,
    pub(crate) leadership: Leadership,
    pub(crate) space: Space,
    pub(crate) keeper: Mutex<Keeper>,
    pub(crate) index_cache: Mutex<IndexCache>,
    pub(crate) buffers: Buffers,
    /// What is being moved out of full segments.
    pub(crate) rewriter: Mutex<Rewriter>,
    /// Rounds of rewriting whose copies readers have been pointed to.
    pub(crate) rounds_ended: AtomicU64,
    /// For large batches on their way to the disk.
    pub(crate) write_buffers: Arc<Buffers>,
    /// Highest LSN that is durable. Invariant: durable <= written.
    pub(crate) durable: AtomicU64,
    /// Highest LSN that has been written. Invariant: written < `Writer::next_lsn`.
    pub(crate) written: AtomicU64,
    pub(crate) counters: Counters,
    pub(crate) closed: AtomicBool,
    /// Of those who wait until the journal takes no more commits. Woken after `State::rejected`
    /// has been set.
    pub(crate) halted: Wakers,
    /// Namespaces that a holder of [`Journal::lease`](crate::Journal::lease) has reserved.
    pub(crate) leases: Mutex<BTreeSet<Box<str>>>,
    /// Of [`Journal::shared`](crate::Journal::shared), by type.
    pub(crate) shared: Mutex<BTreeMap<TypeId, Arc<dyn Any + Send + Sync>>>,
    /// Keeps other processes out until the journal is closed.
    pub(crate) guard: Mutex<Option<Box<dyn Send + Sync>>>,
    pub(crate) files: Arc<dyn Files>,
}

/// A number that no other opened journal of this process has.
pub(crate) fn next_opening() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::Relaxed)
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) commits: AtomicU64,
    pub(crate) groups: AtomicU64,
    pub(crate) syncs: AtomicU64,
    pub(crate) sync_nanos: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) rotations: AtomicU64,
    pub(crate) marks: AtomicU64,
    pub(crate) buffered_lost: AtomicU64,
    pub(crate) segments_rewritten: AtomicU64,
    pub(crate) bytes_rewritten: AtomicU64,
    pub(crate) segments_unmovable: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, more: u64) {
        counter.fetch_add(more, Ordering::Relaxed);
    }
}

impl Engine {
    pub(crate) fn durable_lsn(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// Stops the journal after a failed write or sync: rejects new commits, fails waiting ones.
    pub(crate) fn stop(&self, fault: &Fault) {
        tracing::error!(target: "voussoir::journal", %fault, "stopped");
        let told = self.state.lock().reject(&Error::Stopped { fault: fault.clone() });
        self.space.stop();
        self.count_lost(told.buffered(), &Error::Stopped { fault: fault.clone() });
        told.tell();
        self.halted.wake_all();
        self.wake_all_followers();
    }

    /// Buffered commits that were acknowledged have failed.
    pub(crate) fn count_lost(&self, commits: u64, error: &Error) {
        if commits > 0 {
            Counters::add(&self.counters.buffered_lost, commits);
            tracing::warn!(target: "voussoir::journal", commits, %error, "buffered commits lost");
        }
    }

    pub(crate) fn rejection(&self) -> Option<Error> {
        self.state.lock().rejected.clone()
    }

    pub(crate) fn wake_all_followers(&self) {
        for log in self.logs_and_handles() {
            log.followers.wake_all();
        }
    }

    /// Each log with a handle or records.
    pub(crate) fn logs_and_handles(&self) -> Vec<Arc<LogInner>> {
        let mut logs = Vec::new();
        self.each_log(|log| logs.push(Arc::clone(&log.inner)));
        logs
    }

    /// Calls `found` for each log with a handle or records. The state is locked for
    /// [`LOGS_AT_ONCE`] logs at a time; `found` runs under that lock, so it must not look at all
    /// that a log has: a log may have records in each segment.
    fn each_log(&self, mut found: impl FnMut(&LogState)) {
        let mut from = 0;
        // Ends because each round goes on behind the last, and the number of logs is bounded.
        loop {
            let state = self.state.lock();
            let logs = state.logs.get(from..).unwrap_or_default();
            let some = &logs[..logs.len().min(LOGS_AT_ONCE)];
            some.iter().flatten().for_each(&mut found);
            if some.len() == logs.len() {
                return;
            }
            from += some.len();
        }
    }

    /// As [`each_log`](Self::each_log), for each log that exists, as what was taken left it.
    pub(crate) fn each_existing(&self, mut found: impl FnMut(&LogState)) {
        self.each_log(|log| {
            if log.taken.exists() {
                found(log);
            }
        });
    }

    /// The logs of a namespace that exist, by id. The state is locked for [`LOGS_AT_ONCE`] logs
    /// at a time.
    pub(crate) fn existing_in(&self, namespace: &str) -> Vec<Arc<LogInner>> {
        let (mut logs, mut from) = (Vec::new(), 0);
        // Ends because each round goes on behind the last id, and ids are bounded.
        loop {
            let state = self.state.lock();
            let some = state.ids_from(namespace, from, LOGS_AT_ONCE);
            let exists = |log: &&Arc<LogInner>| {
                let log = state.logs.get(log.index() as usize).and_then(Option::as_ref);
                log.is_some_and(|log| log.taken.exists())
            };
            logs.extend(some.iter().filter(exists).cloned());
            drop(state);
            let next = some.last().and_then(|last| last.name().id.checked_add(1));
            let Some(next) = next.filter(|_| some.len() == LOGS_AT_ONCE) else { return logs };
            from = next;
        }
    }

    /// The logs that exist.
    pub(crate) fn existing(&self) -> Vec<Arc<LogInner>> {
        let mut logs = Vec::new();
        self.each_existing(|log| logs.push(Arc::clone(&log.inner)));
        logs
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("files", &self.files)
            .field("durable", &self.durable_lsn())
            .finish_non_exhaustive()
    }
}
