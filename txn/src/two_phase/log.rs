//! Where decisions are recorded: the seam, and an implementation over the stores of sagas.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::core::{Decision, Heuristic};
use super::error::OtherCoordinator;
use super::gid::{Gid, TxnId, is_name};
use crate::error::StoreError;
use crate::store::batcher::Batcher;
use crate::store::{Record, RecordKind, SagaStore};

/// The record of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Committed {
    /// The transaction.
    pub txn: TxnId,
    /// The branches that were prepared, and only those: a branch that read only knows nothing of
    /// the transaction any more, and would answer as one that was lost. Number of the branch, at
    /// most 1,000, and name of its participant.
    pub branches: Vec<(u32, Arc<str>)>,
}

impl Committed {
    /// The record of a commit.
    pub fn new(txn: TxnId, branches: Vec<(u32, Arc<str>)>) -> Self {
        Self { txn, branches }
    }
}

/// A participant decided a branch alone, and otherwise than the coordinator. Listed until an
/// operator forgets it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HeuristicOutcome {
    /// The branch.
    pub gid: Gid,
    /// Name of the participant.
    pub participant: Arc<str>,
    /// What it did.
    pub heuristic: Heuristic,
}

impl HeuristicOutcome {
    /// The record of a heuristic outcome.
    pub fn new(gid: Gid, participant: Arc<str>, heuristic: Heuristic) -> Self {
        Self { gid, participant, heuristic }
    }
}

/// What an opened log holds.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct OpenedLog {
    /// Larger than at every opening before, durably.
    pub epoch: u64,
    /// All commits that were not forgotten.
    pub committed: Vec<Committed>,
    /// All heuristic outcomes that were not forgotten.
    pub heuristics: Vec<HeuristicOutcome>,
}

/// A write-once register for each transaction, and a list of heuristic outcomes. Called without any
/// lock held.
#[async_trait]
pub trait DecisionLog: Send + Sync + 'static {
    /// Begins a new epoch for the coordinator of this name, and reads everything. Called once,
    /// before anything else. No coordinator of an earlier epoch records a commit after it.
    ///
    /// # Errors
    /// [`StoreError`]. A log that cannot be read wholly is an error: a commit that is missed would
    /// be rolled back. So is, as [`OtherCoordinator`], one that was opened under another name.
    ///
    /// # Cancel safety
    /// Not cancel safe: an epoch may be used up.
    async fn open(&self, coordinator: &str) -> Result<OpenedLog, StoreError>;

    /// Records that a transaction commits, unless an abort was recorded first. Returns what stands
    /// in the register when it is durable.
    ///
    /// # Errors
    /// [`StoreError`]: the commit may be found at the next opening, or not.
    ///
    /// # Cancel safety
    /// The future is dropped only with the runtime.
    async fn commit(&self, commit: &Committed) -> Result<Decision, StoreError>;

    /// All branches of the transaction have been told, and its record may go.
    ///
    /// # Errors
    /// [`StoreError`]: the record may be found at the next opening. Asked again, unless it is
    /// [`Superseded`](super::Superseded): a later coordinator tells the branches, and nobody else
    /// may have the participants forget.
    ///
    /// # Cancel safety
    /// The future is dropped only with the runtime.
    async fn forget(&self, txn: TxnId) -> Result<(), StoreError>;

    /// Records a heuristic outcome, durably.
    ///
    /// # Errors
    /// [`StoreError`]: the outcome may be found at the next opening, or not. The branch is told
    /// again, unless it is [`Superseded`](super::Superseded): a branch that looks lost may be one
    /// that a later coordinator has ended and forgotten.
    ///
    /// # Cancel safety
    /// The future is dropped only with the runtime.
    async fn report(&self, outcome: &HeuristicOutcome) -> Result<(), StoreError>;

    /// An operator has dealt with the heuristic outcome of this branch.
    ///
    /// # Errors
    /// [`StoreError`]: the outcome may be found at the next opening.
    ///
    /// # Cancel safety
    /// May be dropped: the outcome is forgotten, or not.
    async fn resolve(&self, gid: &Gid) -> Result<(), StoreError>;

    /// Heuristic outcomes that are recorded, as far as is known without asking: another coordinator
    /// may have recorded some. None by default: a log that is on one disk has one coordinator.
    fn heuristics(&self) -> Vec<HeuristicOutcome> {
        Vec::new()
    }

    /// Whether a later coordinator has opened the log, as far as is known without asking: no
    /// transaction begins here any more. False by default: a log that is on one disk fails then.
    fn is_superseded(&self) -> bool {
        false
    }

    /// Whether a commit can be recorded from here now, as far as is known without asking: if not,
    /// no transaction begins, and one that was refused is told so. True by default.
    fn can_decide(&self) -> bool {
        true
    }
}

const FORMAT: u8 = 1;
const COMMIT: u8 = 0;
const HEURISTIC: u8 = 1;
const COORDINATOR: u8 = 2;
/// The id of the record of the coordinator's name.
const COORDINATOR_KEY: &str = "coordinator";
/// Branches of one transaction.
pub(super) const MAX_BRANCHES: u32 = 1000;

/// Decisions in a store of sagas, which must have no other user: a
/// [`JournalStore`](crate::store::JournalStore) over a namespace of its own, or a
/// [`MemoryStore`](crate::store::MemoryStore) in tests.
///
/// The id of a record is the spelling of its branch, number 0 for a commit. Its events are: version
/// (1 byte, 1), kind (1 byte). A commit goes on with the number of branches (4 bytes,
/// little-endian) and for each its number, the length of its participant's name (4 bytes each) and
/// the name (UTF-8); a heuristic outcome with what was done (1 byte: 0 committed, 1 rolled back)
/// and the participant's name. The record `coordinator` (kind 2) has the name of the coordinator,
/// written when the log is opened for the first time. A coordinator of another name is refused;
/// the epoch that its attempt has begun ends the epoch of one that is still running.
///
/// Records that wait while the store appends are appended together: under load many decisions
/// share one append.
pub struct StoreLog<S> {
    records: Batcher<S>,
}

impl<S: SagaStore> StoreLog<S> {
    /// A log in `store`.
    pub fn new(store: S) -> Self {
        Self { records: Batcher::new(store) }
    }

    async fn append(&self, key: Arc<str>, events: Bytes) -> Result<(), StoreError> {
        self.records.append(vec![Record { saga: key, kind: RecordKind::Whole, events }]).await
    }

    async fn remove(&self, key: Arc<str>) -> Result<(), StoreError> {
        let kind = RecordKind::Forgotten;
        self.records.append(vec![Record { saga: key, kind, events: Bytes::new() }]).await
    }
}

impl<S: SagaStore> fmt::Debug for StoreLog<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreLog")
            .field("standing", &self.records.standing())
            .finish_non_exhaustive()
    }
}

/// The id of a commit's record. Its coordinator does not matter: a log has one.
fn key(txn: TxnId) -> Arc<str> {
    format!("{}:{}", txn.epoch, txn.number).into()
}

#[async_trait]
impl<S: SagaStore> DecisionLog for StoreLog<S> {
    async fn open(&self, coordinator: &str) -> Result<OpenedLog, StoreError> {
        let (epoch, last) = self.records.open().await?;
        let mut log = OpenedLog { epoch, ..OpenedLog::default() };
        let mut owner = None;
        for (key, events) in &last {
            let decoded = decode(key, events.clone());
            match decoded.ok_or_else(|| StoreError::new(format!("record {key} is garbled")))? {
                Decoded::Commit(commit) => log.committed.push(commit),
                Decoded::Heuristic(outcome) => log.heuristics.push(outcome),
                Decoded::Coordinator(name) => owner = Some(name),
            }
        }
        match owner {
            Some(owner) if *owner != *coordinator => {
                return Err(StoreError::new(OtherCoordinator { owner: owner.to_string() }));
            }
            Some(_) => {}
            None => {
                let name = [&[FORMAT, COORDINATOR], coordinator.as_bytes()].concat();
                self.append(COORDINATOR_KEY.into(), name.into()).await?;
            }
        }
        log.committed.sort_by_key(|commit| commit.txn);
        log.heuristics.sort_by(|a, b| a.gid.cmp(&b.gid));
        Ok(log)
    }

    async fn commit(&self, commit: &Committed) -> Result<Decision, StoreError> {
        let mut events = BytesMut::new();
        events.put_slice(&[FORMAT, COMMIT]);
        events.put_u32_le(commit.branches.len() as u32);
        for (branch, name) in &commit.branches {
            events.put_u32_le(*branch);
            events.put_u32_le(name.len() as u32);
            events.put_slice(name.as_bytes());
        }
        match self.append(key(commit.txn), events.freeze()).await {
            Ok(()) => Ok(Decision::Commit),
            // The record is not in the store and never will be.
            Err(error) if error.is_retryable() => {
                tracing::warn!(
                    target: "voussoir::txn", txn = ?commit.txn, %error,
                    "a transaction is aborted: its commit could not be recorded"
                );
                Ok(Decision::Abort)
            }
            Err(error) => Err(error),
        }
    }

    async fn forget(&self, txn: TxnId) -> Result<(), StoreError> {
        // Nobody waits for it, and no other record has its id.
        let (saga, kind, events) = (key(txn), RecordKind::Forgotten, Bytes::new());
        self.records.append_with_others(vec![Record { saga, kind, events }]).await
    }

    async fn report(&self, outcome: &HeuristicOutcome) -> Result<(), StoreError> {
        let mut events = BytesMut::new();
        let how = match outcome.heuristic {
            Heuristic::Committed => 0,
            Heuristic::RolledBack => 1,
        };
        events.put_slice(&[FORMAT, HEURISTIC, how]);
        events.put_slice(outcome.participant.as_bytes());
        self.append(outcome.gid.to_string().into(), events.freeze()).await
    }

    async fn resolve(&self, gid: &Gid) -> Result<(), StoreError> {
        self.remove(gid.to_string().into()).await
    }
}

enum Decoded {
    Commit(Committed),
    Heuristic(HeuristicOutcome),
    Coordinator(Arc<str>),
}

fn decode(key: &str, mut events: Bytes) -> Option<Decoded> {
    let format = events.try_get_u8().ok()?;
    let kind = events.try_get_u8().ok()?;
    let text = |bytes: Bytes| std::str::from_utf8(&bytes).ok().map(Arc::<str>::from);
    match (format, kind) {
        (FORMAT, COMMIT) => {
            let (epoch, number) = key.split_once(':')?;
            let txn = TxnId { epoch: epoch.parse().ok()?, number: number.parse().ok()? };
            let count = events.try_get_u32_le().ok()?;
            let mut branches = Vec::new();
            for _ in 0..count {
                let branch = events.try_get_u32_le().ok()?;
                let length = events.try_get_u32_le().ok()? as usize;
                if length > events.len() || branch >= MAX_BRANCHES {
                    return None;
                }
                branches.push((branch, text(events.split_to(length))?));
            }
            events.is_empty().then_some(Decoded::Commit(Committed { txn, branches }))
        }
        (FORMAT, HEURISTIC) => {
            let heuristic = match events.try_get_u8().ok()? {
                0 => Heuristic::Committed,
                1 => Heuristic::RolledBack,
                _ => return None,
            };
            let (gid, participant) = (key.parse().ok()?, text(events)?);
            Some(Decoded::Heuristic(HeuristicOutcome { gid, participant, heuristic }))
        }
        (FORMAT, COORDINATOR) if key == COORDINATOR_KEY => {
            text(events).filter(|name| is_name(name)).map(Decoded::Coordinator)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;
    use crate::store::MemoryStore;

    #[tokio::test]
    async fn a_log_gives_back_what_was_not_forgotten() {
        let store = MemoryStore::new();
        let log = StoreLog::new(store.clone());
        assert_eq!(log.open("c").await.unwrap().epoch, 1);
        let txn = |number| TxnId { epoch: 1, number };
        let names: Vec<(u32, Arc<str>)> =
            vec![(0, "left".into()), (1, "right".into()), (3, "left".into())];
        for number in 0..3 {
            let commit = Committed::new(txn(number), names.clone());
            assert_eq!(log.commit(&commit).await.unwrap(), Decision::Commit);
        }
        let gid = Gid::new(&"c".into(), txn(1), 2);
        let outcome = HeuristicOutcome::new(gid.clone(), "left".into(), Heuristic::RolledBack);
        log.report(&outcome).await.unwrap();
        log.forget(txn(0)).await.unwrap();
        let next = StoreLog::new(store.clone());
        let opened = next.open("c").await.unwrap();
        assert_eq!(opened.epoch, 2);
        let kept = [1, 2].map(|number| Committed::new(txn(number), names.clone()));
        assert_eq!(opened.committed, kept);
        assert_eq!(opened.heuristics, [outcome]);
        assert!(log.commit(&kept[0]).await.is_err(), "an earlier coordinator records nothing");
        next.resolve(&gid).await.unwrap();
        assert!(StoreLog::new(store).open("c").await.unwrap().heuristics.is_empty());
    }

    /// Under another name the branches of the records would be others, and the prepared ones
    /// nobody's.
    #[tokio::test]
    async fn a_log_has_one_coordinator() {
        let store = MemoryStore::new();
        let first = StoreLog::new(store.clone());
        first.open("c").await.unwrap();
        let commit = Committed::new(TxnId { epoch: 1, number: 0 }, vec![(0, "left".into())]);
        first.commit(&commit).await.unwrap();
        let error = StoreLog::new(store.clone()).open("d").await.unwrap_err();
        assert_eq!(error.is(), Some(&OtherCoordinator { owner: "c".to_owned() }));
        let opened = StoreLog::new(store).open("c").await.unwrap();
        assert_eq!((opened.epoch, opened.committed), (3, vec![commit]));
    }

    /// A store whose appends take a millisecond of the paused clock.
    #[derive(Clone, Default)]
    struct Slow {
        store: Arc<MemoryStore>,
        batches: Arc<Mutex<Vec<usize>>>,
    }

    #[async_trait]
    impl SagaStore for Slow {
        async fn open(&self) -> Result<crate::store::Opened, StoreError> {
            self.store.open().await
        }

        async fn append(&self, records: Vec<Record>) -> Result<(), StoreError> {
            self.batches.lock().push(records.len());
            assert!(records.iter().all(|record| &*record.saga != "1:13"), "the store's own panic");
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            self.store.append(records).await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn decisions_that_wait_share_an_append() {
        let slow = Slow::default();
        let log = Arc::new(StoreLog::new(slow.clone()));
        log.open("c").await.unwrap();
        slow.batches.lock().clear();
        let commit = |number| {
            let log = Arc::clone(&log);
            let commit = Committed::new(TxnId { epoch: 1, number }, vec![(0, "a".into())]);
            tokio::spawn(async move { log.commit(&commit).await })
        };
        let tasks: Vec<_> = (100..164).map(commit).collect();
        // Dropped while it waits, it is appended with the others: what it joined is not its own.
        tokio::task::yield_now().await;
        tasks[9].abort();
        for (task, number) in tasks.into_iter().zip(0..) {
            let done = task.await;
            assert!(done.is_ok_and(|done| done.is_ok()) || number == 9);
        }
        assert_eq!(*slow.batches.lock(), [64]);
        // A store that panics fails what waited for it, and only that.
        assert!(commit(13).await.unwrap().is_err());
        assert!(commit(14).await.unwrap().is_ok());
        let next = StoreLog::new((*slow.store).clone());
        assert_eq!(next.open("c").await.unwrap().committed.len(), 65);
    }

    /// Nobody waits for a record to be forgotten: it costs no append of its own while others come.
    #[tokio::test(start_paused = true)]
    async fn what_is_forgotten_shares_the_append_of_the_next_decision() {
        let slow = Slow::default();
        let log = Arc::new(StoreLog::new(slow.clone()));
        log.open("c").await.unwrap();
        slow.batches.lock().clear();
        let txn = |number| TxnId { epoch: 1, number };
        let commit = |number| Committed::new(txn(number), vec![(0, "a".into())]);
        log.commit(&commit(1)).await.unwrap();
        let forget = |number| {
            let log = Arc::clone(&log);
            tokio::spawn(async move { log.forget(txn(number)).await })
        };
        let forgotten = forget(1);
        tokio::task::yield_now().await;
        log.commit(&commit(2)).await.unwrap();
        forgotten.await.unwrap().unwrap();
        assert_eq!(*slow.batches.lock(), [1, 2]);
        // Also if none comes.
        log.forget(txn(2)).await.unwrap();
        assert_eq!(*slow.batches.lock(), [1, 2, 1]);
        // One that ended before it was appended costs nobody the next append.
        let dropped = forget(3);
        tokio::task::yield_now().await;
        dropped.abort();
        log.commit(&commit(4)).await.unwrap();
        assert_eq!(*slow.batches.lock(), [1, 2, 1, 2]);
        let next = StoreLog::new((*slow.store).clone());
        assert_eq!(next.open("c").await.unwrap().committed, [commit(4)]);
    }

    #[test]
    fn garbled_records_are_no_decisions() {
        let whole = b"\x01\x00\x01\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00ab";
        assert!(decode("1:2", Bytes::from_static(whole)).is_some());
        for end in 0..whole.len() {
            assert!(decode("1:2", Bytes::copy_from_slice(&whole[..end])).is_none(), "{end}");
        }
        let long = b"\x01\x00\xff\xff\xff\xff\x00\x00\x00\x00\xff\xff\xff\xffab";
        for (key, events) in [
            ("1:2", &long[..]),
            ("1", whole),
            ("x:2", whole),
            ("1:2", b"\x02\x00\x00\x00\x00\x00"),
            ("1:2", b"\x01\x02\x00\x00\x00\x00"),
            ("1:2", b"\x01\x01\x00ab"),
            ("vs1:c:1:2:3", b"\x01\x01\x02ab"),
            ("1:2", b"\x01\x00\x00\x00\x00\x00a"),
            ("1:2", b"\x01\x02c"),
            ("coordinator", b"\x01\x02"),
            ("coordinator", b"\x01\x02c:d"),
        ] {
            assert!(decode(key, Bytes::copy_from_slice(events)).is_none(), "{key} {events:?}");
        }
    }
}
