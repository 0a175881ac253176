//! The coordinator over participants that are scripted, crash and come back.

#[path = "support/branches.rs"]
mod branches;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use branches::Held;
use parking_lot::Mutex;
use voussoir_txn::StoreError;
use voussoir_txn::async_trait;
use voussoir_txn::store::{MemoryStore, Opened, Record, SagaStore};
use voussoir_txn::two_phase::*;

const SECOND: Duration = Duration::from_secs(1);

/// What a database does next, instead of what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Refuse,
    ReadOnly,
    /// Prepares, and never answers.
    LoseVote,
    /// Prepares only after this time, when nobody waits any more.
    VoteLate(Duration),
    /// Prepares after this time, and answers.
    VoteSlowly(Duration),
    PanicOnPrepare,
    PanicOnFinish,
    FailFinish,
    LoseFinish,
    FailList,
    /// The list is taken, and arrives this much later.
    ListLate(Duration),
    RollBackAlone,
    CommitAlone,
}

#[derive(Default)]
struct Database {
    held: Mutex<BTreeMap<Gid, Held>>,
    faults: Mutex<Vec<Fault>>,
    /// Every call, in order.
    calls: Mutex<Vec<String>>,
}

impl Database {
    fn new() -> Arc<Self> {
        Arc::default()
    }

    fn next(&self, fault: Fault) {
        self.faults.lock().push(fault);
    }

    fn takes(&self, applies: impl Fn(Fault) -> bool) -> Option<Fault> {
        let mut faults = self.faults.lock();
        let at = faults.iter().position(|fault| applies(*fault))?;
        Some(faults.remove(at))
    }

    fn note(&self, what: impl ToString) {
        self.calls.lock().push(what.to_string());
    }

    fn of(&self, gid: &Gid) -> Option<Held> {
        self.held.lock().get(gid).copied()
    }
}

/// The database as a participant.
struct At(Arc<Database>);

impl std::ops::Deref for At {
    type Target = Database;

    fn deref(&self) -> &Database {
        &self.0
    }
}

#[async_trait]
impl Participant for At {
    async fn prepare(&self, gid: &Gid) -> Result<Vote, PrepareError> {
        self.note("prepare");
        let of_prepare = |fault| {
            !matches!(
                fault,
                Fault::PanicOnFinish
                    | Fault::FailFinish
                    | Fault::LoseFinish
                    | Fault::FailList
                    | Fault::ListLate(_)
                    | Fault::RollBackAlone
                    | Fault::CommitAlone
            )
        };
        match self.takes(of_prepare) {
            Some(Fault::Refuse) => return Err(PrepareError::Refused("no money".into())),
            Some(Fault::ReadOnly) => return Ok(Vote::ReadOnly),
            Some(Fault::PanicOnPrepare) => panic!("a participant's own panic"),
            Some(Fault::VoteLate(after)) => {
                let (own, gid) = (Arc::clone(&self.0), gid.clone());
                // Not under the caller's control any more, as a statement that is on its way.
                tokio::spawn(async move {
                    tokio::time::sleep(after).await;
                    own.held.lock().insert(gid, Held::Prepared);
                });
                return std::future::pending().await;
            }
            Some(Fault::VoteSlowly(after)) => {
                let (own, gid) = (Arc::clone(&self.0), gid.clone());
                // The statement runs at the server, also when its caller is gone.
                let statement = tokio::spawn(async move {
                    tokio::time::sleep(after).await;
                    own.held.lock().insert(gid, Held::Prepared);
                });
                statement.await.unwrap();
                return Ok(Vote::Prepared);
            }
            Some(Fault::LoseVote) => {
                self.held.lock().insert(gid.clone(), Held::Prepared);
                return std::future::pending().await;
            }
            _ => {}
        }
        self.held.lock().insert(gid.clone(), Held::Prepared);
        Ok(Vote::Prepared)
    }

    async fn finish(&self, gid: &Gid, decision: Decision) -> Result<Applied, ParticipantError> {
        self.note(format!("{decision:?}"));
        let of_finish = |fault| {
            matches!(
                fault,
                Fault::PanicOnFinish
                    | Fault::FailFinish
                    | Fault::LoseFinish
                    | Fault::RollBackAlone
                    | Fault::CommitAlone
            )
        };
        let fault = self.takes(of_finish);
        match fault {
            Some(Fault::PanicOnFinish) => panic!("a participant's own panic"),
            Some(Fault::FailFinish) => return Err(ParticipantError("it is away".into())),
            Some(Fault::RollBackAlone) => {
                self.held.lock().insert(gid.clone(), Held::Aborted);
            }
            Some(Fault::CommitAlone) => {
                self.held.lock().insert(gid.clone(), Held::Committed);
            }
            _ => {}
        }
        let applied = branches::finish(&mut self.held.lock(), gid, decision);
        if fault == Some(Fault::LoseFinish) {
            return std::future::pending().await;
        }
        Ok(applied)
    }

    async fn in_doubt(&self, _: &str, max: usize) -> Result<Vec<InDoubt>, ParticipantError> {
        if self.takes(|fault| fault == Fault::FailList).is_some() {
            return Err(ParticipantError("it is away".into()));
        }
        let list = {
            let held = self.held.lock();
            let prepared = held.iter().filter(|(_, held)| **held == Held::Prepared);
            // Those of other coordinators, too: a participant may be careless.
            prepared.map(|(gid, _)| InDoubt::new(gid.clone(), SECOND)).take(max).collect()
        };
        let late = self.takes(|fault| matches!(fault, Fault::ListLate(_)));
        if let Some(Fault::ListLate(time)) = late {
            tokio::time::sleep(time).await;
        }
        Ok(list)
    }
}

/// A store whose process can be cut off: appends fail, before or after they are stored.
#[derive(Clone)]
struct Cut {
    store: Arc<MemoryStore>,
    fails: Arc<AtomicBool>,
    stores_first: bool,
}

#[async_trait]
impl SagaStore for Cut {
    async fn open(&self) -> Result<Opened, StoreError> {
        self.store.open().await
    }

    async fn append(&self, records: Vec<Record>) -> Result<(), StoreError> {
        if self.fails.load(Ordering::Relaxed) {
            if self.stores_first {
                self.store.append(records).await?;
            }
            return Err(StoreError::new("the disk is gone"));
        }
        self.store.append(records).await
    }
}

async fn open(store: impl SagaStore, left: &Arc<Database>, right: &Arc<Database>) -> Coordinator {
    let coordinator = Coordinator::builder("transfers")
        .participant("left", Arc::new(At(Arc::clone(left))))
        .participant("right", Arc::new(At(Arc::clone(right))));
    coordinator.open(StoreLog::new(store)).await.expect("it opens")
}

fn both(coordinator: &Coordinator) -> (Txn, Gid, Gid) {
    let mut txn = coordinator.begin().expect("it begins");
    let (left, right) = (txn.enlist("left").unwrap(), txn.enlist("right").unwrap());
    (txn, left, right)
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..10_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within 100 s: {what}");
}

#[tokio::test(start_paused = true)]
async fn both_commit_or_both_abort() {
    let (left, right) = (Database::new(), Database::new());
    let coordinator = open(MemoryStore::new(), &left, &right).await;
    let (txn, at_left, at_right) = both(&coordinator);
    txn.commit(Ack::Applied).await.unwrap();
    assert_eq!(
        (left.of(&at_left), right.of(&at_right)),
        (Some(Held::Committed), Some(Held::Committed))
    );
    right.next(Fault::Refuse);
    let (txn, at_left, at_right) = both(&coordinator);
    let error = txn.commit(Ack::Applied).await.unwrap_err();
    assert_eq!(error.to_string(), "aborted: right: no money");
    assert_eq!((error.outcome(), error.is_retryable()), (TxnOutcome::NotApplied, true));
    until("the other branch is aborted", || left.of(&at_left) == Some(Held::Aborted)).await;
    assert_eq!(right.of(&at_right), None);
    until("it ends", || coordinator.active() == 0).await;
}

/// A sibling that is still voting is told of the refusal as soon as it has voted, and not by the
/// next recovery: it would hold its locks until then.
#[tokio::test(start_paused = true)]
async fn a_refusal_ends_its_siblings_as_soon_as_they_have_voted() {
    let (left, right) = (Database::new(), Database::new());
    let mut config = CoordinatorConfig::default();
    config.recover_every = 3600 * SECOND;
    let coordinator = Coordinator::builder("transfers")
        .config(config)
        .participant("left", Arc::new(At(Arc::clone(&left))))
        .participant("right", Arc::new(At(Arc::clone(&right))))
        .open(StoreLog::new(MemoryStore::new()))
        .await
        .unwrap();
    left.next(Fault::Refuse);
    right.next(Fault::VoteSlowly(SECOND));
    let begun = tokio::time::Instant::now();
    let (txn, _, at_right) = both(&coordinator);
    let error = txn.commit(Ack::Decided).await.unwrap_err();
    assert_eq!(error.to_string(), "aborted: left: no money");
    assert!(begun.elapsed() < SECOND, "the caller does not wait for the other vote");
    tokio::time::sleep(SECOND + SECOND / 2).await;
    assert_eq!(right.of(&at_right), Some(Held::Aborted), "half a second after its vote");
    until("it ends", || coordinator.active() == 0).await;
    assert_eq!(*right.calls.lock(), ["prepare", "Abort"]);
}

/// A participant that read only is not told: it knows nothing of the transaction any more.
#[tokio::test(start_paused = true)]
async fn who_read_only_is_not_told_also_after_a_restart() {
    let (left, right) = (Database::new(), Database::new());
    let store = MemoryStore::new();
    let coordinator = open(store.clone(), &left, &right).await;
    left.next(Fault::ReadOnly);
    for _ in 0..3 {
        right.next(Fault::FailFinish);
    }
    let (txn, _, at_right) = both(&coordinator);
    txn.commit(Ack::Decided).await.unwrap();
    drop(coordinator);
    let next = open(store, &left, &right).await;
    until("the branch is told", || right.of(&at_right) == Some(Held::Committed)).await;
    until("it ends", || next.active() == 0).await;
    assert_eq!(*left.calls.lock(), ["prepare"]);
    assert!(next.heuristics().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_transaction_without_writes_or_branches_records_nothing() {
    let (left, right) = (Database::new(), Database::new());
    let fails = Arc::new(AtomicBool::new(false));
    let cut = Cut { store: Arc::default(), fails: Arc::clone(&fails), stores_first: false };
    let coordinator = open(cut, &left, &right).await;
    fails.store(true, Ordering::Relaxed);
    coordinator.begin().unwrap().commit(Ack::Applied).await.unwrap();
    left.next(Fault::ReadOnly);
    right.next(Fault::ReadOnly);
    both(&coordinator).0.commit(Ack::Applied).await.unwrap();
}

/// citus #2272, temporal-compensating-transactions PR #4: the statement was sent and its answer is
/// never read; the branch becomes prepared after its transaction has aborted.
#[tokio::test(start_paused = true)]
async fn a_branch_that_is_prepared_late_is_aborted_by_the_recovery() {
    let (left, right) = (Database::new(), Database::new());
    let coordinator = open(MemoryStore::new(), &left, &right).await;
    right.next(Fault::VoteLate(63 * SECOND));
    let (txn, at_left, at_right) = both(&coordinator);
    let error = txn.commit(Ack::Applied).await.unwrap_err();
    assert_eq!(error.outcome(), TxnOutcome::NotApplied, "{error}");
    until("the voter is aborted", || left.of(&at_left) == Some(Held::Aborted)).await;
    until("the late one is prepared", || right.of(&at_right) == Some(Held::Prepared)).await;
    until("and aborted", || right.of(&at_right) == Some(Held::Aborted)).await;
}

/// citusdata/citus #1030, #2095: the recovery leaves what is active, and what is of others.
#[tokio::test(start_paused = true)]
async fn a_recovery_touches_neither_active_branches_nor_those_of_others() {
    let (left, right) = (Database::new(), Database::new());
    let coordinator = open(MemoryStore::new(), &left, &right).await;
    let others: Vec<Gid> = ["vs1:others:1:9:0", "vs1:transfers:2:0:0"]
        .map(|text| text.parse().unwrap())
        .into_iter()
        .collect();
    for gid in &others {
        left.held.lock().insert(gid.clone(), Held::Prepared);
    }
    // Prepared, and its transaction waits for the other vote.
    right.next(Fault::LoseVote);
    let (txn, at_left, _) = both(&coordinator);
    let commit = tokio::spawn(txn.commit(Ack::Decided));
    until("it is prepared", || left.of(&at_left) == Some(Held::Prepared)).await;
    let recovered = coordinator.recover().await;
    assert_eq!((recovered.aborted, recovered.foreign), (0, 1), "{recovered:?}");
    assert_eq!(left.of(&at_left), Some(Held::Prepared));
    assert!(commit.await.unwrap().is_err(), "the vote was lost");
    until("it is aborted", || left.of(&at_left) == Some(Held::Aborted)).await;
    for gid in &others {
        assert_eq!(left.of(gid), Some(Held::Prepared), "{gid}");
    }
}

/// atomikos #239, dble PR #1193: the process ends between the phases. What is recorded commits,
/// what is not aborts, whatever the caller was told.
#[tokio::test(start_paused = true)]
async fn the_next_coordinator_ends_what_the_record_says() {
    for stores_first in [false, true] {
        let (left, right) = (Database::new(), Database::new());
        let (store, fails) = (Arc::new(MemoryStore::new()), Arc::new(AtomicBool::new(false)));
        let cut = Cut { store: Arc::clone(&store), fails: Arc::clone(&fails), stores_first };
        let coordinator = open(cut, &left, &right).await;
        let (txn, at_left, at_right) = both(&coordinator);
        fails.store(true, Ordering::Relaxed);
        let error = txn.commit(Ack::Decided).await.unwrap_err();
        assert_eq!(
            (error.outcome(), error.is_retryable()),
            (TxnOutcome::Unknown, false),
            "{error}"
        );
        assert!(matches!(coordinator.begin(), Err(BeginError::Store(_))));
        // The old one does not guess: its branches stay prepared.
        tokio::time::sleep(60 * SECOND).await;
        assert_eq!(left.of(&at_left), Some(Held::Prepared));
        let next = open((*store).clone(), &left, &right).await;
        let end = if stores_first { Held::Committed } else { Held::Aborted };
        until("the left branch ends", || left.of(&at_left) == Some(end)).await;
        until("the right branch ends", || right.of(&at_right) == Some(end)).await;
        until("nothing is left", || next.active() == 0).await;
    }
}

/// scalar-labs/btm #59: a participant that is away holds up only its own branches.
#[tokio::test(start_paused = true)]
async fn a_participant_that_is_away_holds_up_no_other() {
    let (left, right) = (Database::new(), Database::new());
    let coordinator = open(MemoryStore::new(), &left, &right).await;
    for _ in 0..8 {
        right.next(Fault::FailFinish);
        right.next(Fault::FailList);
    }
    let (txn, at_left, at_right) = both(&coordinator);
    txn.commit(Ack::Decided).await.unwrap();
    until("the left one is told", || left.of(&at_left) == Some(Held::Committed)).await;
    let mut txn = coordinator.begin().unwrap();
    txn.enlist("left").unwrap();
    txn.commit(Ack::Applied).await.unwrap();
    until("the right one is told", || right.of(&at_right) == Some(Held::Committed)).await;
}

/// The one lists many branches that nobody tells, and hangs at each; the other's recovery goes on.
#[tokio::test(start_paused = true)]
async fn a_participant_that_hangs_holds_up_no_recovery_of_others() {
    let (left, right) = (Database::new(), Database::new());
    let coordinator = open(MemoryStore::new(), &left, &right).await;
    let gid = |number: u64| -> Gid {
        format!("vs1:transfers:{}:{number}:0", coordinator.epoch()).parse().unwrap()
    };
    for number in 1_000..1_100 {
        right.next(Fault::LoseFinish);
        right.held.lock().insert(gid(number), Held::Prepared);
    }
    until("the right one hangs", || !right.calls.lock().is_empty()).await;
    let late = gid(2_000);
    left.held.lock().insert(late.clone(), Held::Prepared);
    let begun = tokio::time::Instant::now();
    until("the left one is told", || left.of(&late) == Some(Held::Aborted)).await;
    let took = begun.elapsed();
    assert!(took <= 11 * SECOND, "longer than `recover_every` and a call: {took:?}");
}

/// citus #1030: a commit that a participant cannot be told yet stands against every recovery.
#[tokio::test(start_paused = true)]
async fn a_branch_that_is_committed_late_is_left_by_the_recovery() {
    let (left, right) = (Database::new(), Database::new());
    let coordinator = open(MemoryStore::new(), &left, &right).await;
    right.next(Fault::FailFinish);
    let (txn, _, at_right) = both(&coordinator);
    txn.commit(Ack::Decided).await.unwrap();
    assert_eq!(coordinator.recover().await.aborted, 0);
    until("it is told", || right.of(&at_right) == Some(Held::Committed)).await;
}

/// A transaction that ends between the list and the look at what is active.
#[tokio::test(start_paused = true)]
async fn a_branch_that_ends_while_it_is_listed_is_left() {
    let (left, right) = (Database::new(), Database::new());
    let coordinator = open(MemoryStore::new(), &left, &right).await;
    tokio::time::sleep(SECOND).await;
    right.next(Fault::FailFinish);
    let (txn, _, at_right) = both(&coordinator);
    let commit = tokio::spawn(txn.commit(Ack::Applied));
    until("it is prepared", || right.of(&at_right) == Some(Held::Prepared)).await;
    right.next(Fault::ListLate(5 * SECOND));
    let recovered = coordinator.recover().await;
    assert_eq!(right.of(&at_right), Some(Held::Committed));
    assert_eq!((recovered.aborted, recovered.failed), (0, 0));
    commit.await.unwrap().unwrap();
    assert!(coordinator.heuristics().is_empty());
}

/// narayana PR #1171: nothing is concluded from a list that failed.
#[tokio::test(start_paused = true)]
async fn a_list_that_fails_aborts_nothing_and_is_named() {
    let (left, right) = (Database::new(), Database::new());
    let coordinator = open(MemoryStore::new(), &left, &right).await;
    tokio::time::sleep(SECOND).await;
    right.next(Fault::FailList);
    let recovered = coordinator.recover().await;
    assert_eq!(recovered.unreachable, ["right"]);
}

#[tokio::test(start_paused = true)]
async fn foreign_code_may_panic_or_hang() {
    let (left, right) = (Database::new(), Database::new());
    let coordinator = open(MemoryStore::new(), &left, &right).await;
    left.next(Fault::PanicOnPrepare);
    let (txn, ..) = both(&coordinator);
    let error = txn.commit(Ack::Applied).await.unwrap_err();
    assert_eq!(error.outcome(), TxnOutcome::NotApplied, "{error}");
    for fault in [Fault::PanicOnFinish, Fault::LoseFinish, Fault::FailFinish] {
        left.next(fault);
        let (txn, at_left, _) = both(&coordinator);
        txn.commit(Ack::Applied).await.unwrap();
        assert_eq!(left.of(&at_left), Some(Held::Committed), "{fault:?}");
    }
    until("all end", || coordinator.active() == 0).await;
}

/// narayana PR #2280: a decision that a participant took alone is reported, and stays until an
/// operator forgets it.
#[tokio::test(start_paused = true)]
async fn a_heuristic_outcome_is_listed_until_it_is_forgotten() {
    let (left, right) = (Database::new(), Database::new());
    let store = MemoryStore::new();
    let coordinator = open(store.clone(), &left, &right).await;
    right.next(Fault::RollBackAlone);
    let (txn, _, at_right) = both(&coordinator);
    txn.commit(Ack::Applied).await.unwrap();
    let expected = HeuristicOutcome::new(at_right.clone(), "right".into(), Heuristic::RolledBack);
    assert_eq!(coordinator.heuristics(), std::slice::from_ref(&expected));
    // Before it has ended, the next coordinator tells its branches again.
    until("it ends", || coordinator.active() == 0).await;
    drop(coordinator);
    let next = open(store.clone(), &left, &right).await;
    assert_eq!(next.heuristics(), [expected]);
    next.forget_heuristic(&at_right).await.unwrap();
    assert!(next.heuristics().is_empty());
    assert!(open(store, &left, &right).await.heuristics().is_empty());
}

/// Money was made, and this process may be the only one that ever learns of it.
#[tokio::test(start_paused = true)]
async fn a_branch_committed_against_an_abort_is_listed_though_it_cannot_be_recorded() {
    let (left, right) = (Database::new(), Database::new());
    let store = Arc::new(MemoryStore::new());
    let fails = Arc::<AtomicBool>::default();
    let cut = Cut { store: Arc::clone(&store), fails: Arc::clone(&fails), stores_first: false };
    let coordinator = open(cut, &left, &right).await;
    fails.store(true, Ordering::Relaxed);
    left.next(Fault::CommitAlone);
    right.next(Fault::Refuse);
    let (txn, at_left, _) = both(&coordinator);
    txn.commit(Ack::Applied).await.unwrap_err();
    let expected = [HeuristicOutcome::new(at_left, "left".into(), Heuristic::Committed)];
    until("it is listed", || coordinator.heuristics() == expected).await;
    assert_eq!(coordinator.active(), 1, "it is not recorded");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(coordinator.heuristics(), expected, "once, however often it is told");
    fails.store(false, Ordering::Relaxed);
    until("it is recorded", || coordinator.active() == 0).await;
    let next = open((*store).clone(), &left, &right).await;
    assert_eq!(next.heuristics(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_transaction_that_is_dropped_or_late_is_aborted() {
    let (left, right) = (Database::new(), Database::new());
    let coordinator = open(MemoryStore::new(), &left, &right).await;
    let (txn, at_left, _) = both(&coordinator);
    drop(txn);
    until("it is told", || left.of(&at_left) == Some(Held::Aborted)).await;
    let (txn, ..) = both(&coordinator);
    tokio::time::sleep(61 * SECOND).await;
    let error = txn.commit(Ack::Decided).await.unwrap_err();
    assert_eq!(error.to_string(), "aborted: the transaction's time is over");
    // A commit whose caller goes away runs to its end.
    let (txn, at_left, _) = both(&coordinator);
    let mut commit = Box::pin(txn.commit(Ack::Applied));
    tokio::select! {
        biased;
        _ = &mut commit => panic!("it cannot be done yet"),
        () = std::future::ready(()) => {}
    }
    drop(commit);
    until("it commits", || left.of(&at_left) == Some(Held::Committed)).await;
    until("all end", || coordinator.active() == 0).await;
}

#[tokio::test(start_paused = true)]
async fn limits_and_names_are_typed_errors() {
    let (left, right) = (Database::new(), Database::new());
    let mut config = CoordinatorConfig::default();
    (config.max_active, config.max_branches) = (1, 2);
    let coordinator = Coordinator::builder("transfers")
        .config(config)
        .participant("left", Arc::new(At(Arc::clone(&left))))
        .open(StoreLog::new(MemoryStore::new()))
        .await
        .unwrap();
    let mut txn = coordinator.begin().unwrap();
    assert!(matches!(coordinator.begin(), Err(BeginError::Busy)));
    assert_eq!(txn.enlist("right"), Err(EnlistError::Unknown("right".into())));
    txn.enlist("left").unwrap();
    txn.enlist("left").unwrap();
    assert_eq!(txn.enlist("left"), Err(EnlistError::TooMany(2)));
    for name in ["", "it's", "a:b", &"x".repeat(101)] {
        let opened = Coordinator::builder(name).open(StoreLog::new(MemoryStore::new())).await;
        assert!(matches!(opened, Err(OpenCoordinatorError::Name)), "{name}");
    }
    let twice = Coordinator::builder("c")
        .participant("left", Arc::new(At(left)))
        .participant("left", Arc::new(At(right)))
        .open(StoreLog::new(MemoryStore::new()));
    let error = twice.await.unwrap_err();
    assert!(matches!(error, OpenCoordinatorError::Participant { name } if name == "left"));
}

/// What is locked between the phases only grows while a branch stays in doubt.
#[tokio::test(start_paused = true)]
async fn nothing_begins_while_a_branch_is_in_doubt_for_too_long() {
    let (left, right) = (Database::new(), Database::new());
    let mut config = CoordinatorConfig::default();
    config.max_in_doubt_age = Duration::from_millis(999);
    let coordinator = Coordinator::builder("transfers")
        .config(config)
        .participant("left", Arc::new(At(Arc::clone(&left))))
        .participant("right", Arc::new(At(Arc::clone(&right))))
        .open(StoreLog::new(MemoryStore::new()))
        .await
        .unwrap();
    for _ in 0..5 {
        right.next(Fault::FailFinish);
    }
    let (txn, _, at_right) = both(&coordinator);
    txn.commit(Ack::Decided).await.unwrap();
    coordinator.recover().await;
    let error = coordinator.begin().unwrap_err();
    assert_eq!(error.to_string(), "a branch at `right` has been prepared for 1s");
    until("it is told", || right.of(&at_right) == Some(Held::Committed)).await;
    coordinator.recover().await;
    coordinator.begin().unwrap();
}
