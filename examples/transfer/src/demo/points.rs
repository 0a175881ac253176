//! Points of the protocol at which the coordinator can be stopped: before and after each call of
//! the log of decisions and of the participants. A call that is stopped goes on when it is told to,
//! or ends with its process.

use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::Notify;
use voussoir_txn::StoreError;
use voussoir_txn::two_phase::{
    Applied, Committed, Decision, DecisionLog, Gid, HeuristicOutcome, InDoubt, OpenedLog,
    Participant, ParticipantError, PrepareError, TxnId, Vote,
};

use crate::bank::Bank;

/// All points, in the order of a transfer.
pub(crate) const POINTS: [&str; 23] = [
    "opened",
    "east listed",
    "west listed",
    "before east prepares",
    "before west prepares",
    "east prepared",
    "west prepared",
    "before the decision",
    "decided",
    "before east commits",
    "before west commits",
    "east committed",
    "west committed",
    "before the decision is forgotten",
    "the decision is forgotten",
    "before east forgets",
    "before west forgets",
    "east has forgotten",
    "west has forgotten",
    "before east aborts",
    "before west aborts",
    "east aborted",
    "west aborted",
];

/// At which point to stop.
#[derive(Debug)]
struct Armed {
    point: String,
    /// Calls that pass it first.
    passes: u32,
    /// Whether all later calls stop there, too.
    is_for_all: bool,
}

/// The points of one process.
#[derive(Debug, Default)]
pub(crate) struct Points {
    armed: Mutex<Option<Armed>>,
    go: Notify,
}

impl Points {
    pub(crate) fn new(stop_at: Option<&str>) -> Arc<Self> {
        let points = Self::default();
        if let Some(point) = stop_at {
            *points.armed.lock() =
                Some(Armed { point: point.to_owned(), passes: 0, is_for_all: false });
        }
        Arc::new(points)
    }

    /// `stop PASSES POINT`: the call after so many stops. `hold PASSES POINT`: it and all later
    /// ones stop. `go`: a stopped call goes on. `free`: all do, and none stops any more.
    pub(crate) fn order(&self, line: &str) {
        if line == "go" {
            self.go.notify_one();
            return;
        }
        if line == "free" {
            *self.armed.lock() = None;
            self.go.notify_waiters();
            return;
        }
        let mut words = line.splitn(3, ' ');
        if let (Some(verb), Some(Ok(passes)), Some(point)) =
            (words.next(), words.next().map(str::parse), words.next())
        {
            let is_for_all = verb == "hold";
            *self.armed.lock() = Some(Armed { point: point.to_owned(), passes, is_for_all });
        }
    }

    async fn at(&self, point: &str) {
        debug_assert!(POINTS.contains(&point), "{point}");
        let stops = {
            let mut armed = self.armed.lock();
            match &mut *armed {
                Some(at) if at.point == point && at.passes > 0 => {
                    at.passes -= 1;
                    false
                }
                Some(at) if at.point == point => {
                    if !at.is_for_all {
                        *armed = None;
                    }
                    true
                }
                _ => false,
            }
        };
        if stops {
            println!("at {point}");
            self.go.notified().await;
        }
    }
}

/// A participant that stops.
pub(crate) struct Stopping {
    inner: Arc<dyn Participant>,
    bank: Bank,
    points: Arc<Points>,
}

impl Stopping {
    pub(crate) fn both(
        inner: [Arc<dyn Participant>; 2],
        points: &Arc<Points>,
    ) -> [Arc<dyn Participant>; 2] {
        let [east, west] = inner;
        [(Bank::East, east), (Bank::West, west)].map(|(bank, inner)| {
            Arc::new(Self { inner, bank, points: Arc::clone(points) }) as Arc<dyn Participant>
        })
    }
}

#[async_trait]
impl Participant for Stopping {
    async fn prepare(&self, gid: &Gid) -> Result<Vote, PrepareError> {
        let bank = self.bank;
        self.points.at(&format!("before {bank} prepares")).await;
        let vote = self.inner.prepare(gid).await;
        self.points.at(&format!("{bank} prepared")).await;
        vote
    }

    async fn finish(&self, gid: &Gid, decision: Decision) -> Result<Applied, ParticipantError> {
        let bank = self.bank;
        let (now, past) = match decision {
            Decision::Commit => ("commits", "committed"),
            Decision::Abort => ("aborts", "aborted"),
        };
        self.points.at(&format!("before {bank} {now}")).await;
        let applied = self.inner.finish(gid, decision).await;
        self.points.at(&format!("{bank} {past}")).await;
        applied
    }

    async fn in_doubt(
        &self,
        coordinator: &str,
        max: usize,
    ) -> Result<Vec<InDoubt>, ParticipantError> {
        let list = self.inner.in_doubt(coordinator, max).await;
        self.points.at(&format!("{} listed", self.bank)).await;
        list
    }

    async fn forget(&self, gids: &[Gid]) {
        let bank = self.bank;
        self.points.at(&format!("before {bank} forgets")).await;
        self.inner.forget(gids).await;
        self.points.at(&format!("{bank} has forgotten")).await;
    }
}

/// A log of decisions that stops.
pub(crate) struct StoppingLog<L> {
    inner: L,
    points: Arc<Points>,
}

impl<L> StoppingLog<L> {
    pub(crate) fn new(inner: L, points: &Arc<Points>) -> Self {
        Self { inner, points: Arc::clone(points) }
    }
}

#[async_trait]
impl<L: DecisionLog> DecisionLog for StoppingLog<L> {
    async fn open(&self, coordinator: &str) -> Result<OpenedLog, StoreError> {
        let opened = self.inner.open(coordinator).await;
        self.points.at("opened").await;
        opened
    }

    async fn commit(&self, commit: &Committed) -> Result<Decision, StoreError> {
        self.points.at("before the decision").await;
        let decision = self.inner.commit(commit).await;
        self.points.at("decided").await;
        decision
    }

    async fn forget(&self, txn: TxnId) -> Result<(), StoreError> {
        self.points.at("before the decision is forgotten").await;
        let forgotten = self.inner.forget(txn).await;
        self.points.at("the decision is forgotten").await;
        forgotten
    }

    async fn report(&self, outcome: &HeuristicOutcome) -> Result<(), StoreError> {
        self.inner.report(outcome).await
    }

    async fn resolve(&self, gid: &Gid) -> Result<(), StoreError> {
        self.inner.resolve(gid).await
    }

    fn heuristics(&self) -> Vec<HeuristicOutcome> {
        self.inner.heuristics()
    }

    fn is_superseded(&self) -> bool {
        self.inner.is_superseded()
    }

    fn can_decide(&self) -> bool {
        self.inner.can_decide()
    }
}
