//! One transaction's task: carries out what the core asks for.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::coordinator::Inner;
use super::core::{
    Answer, BranchNo, Decision, Finished, Heuristic, Input, Output, Transaction, Voted,
};
use super::error::Superseded;
use super::gid::{Gid, TxnId};
use super::log::{Committed, HeuristicOutcome};
use super::participant::{Applied, PrepareError, Vote};
use crate::error::StoreError;

/// Attempts to forget a record before the log counts as failed. With the default pauses about five
/// minutes, beside what the log itself waits for.
const FORGET_ATTEMPTS: u32 = 20;

pub(super) async fn drive(
    inner: Arc<Inner>,
    txn: TxnId,
    participants: Vec<Arc<str>>,
    mut core: Transaction,
    mut reply: Option<oneshot::Sender<Answer>>,
) {
    let mut calls = JoinSet::new();
    // Ends: when the core has nothing left to do, or the log failed.
    loop {
        while let Some(output) = core.poll_output() {
            match output {
                Output::Prepare(branch) => {
                    let participant = participants[branch as usize].clone();
                    calls.spawn(prepare(Arc::clone(&inner), txn, branch, participant));
                }
                Output::Decide(prepared) => {
                    let named = |branch: BranchNo| (branch, participants[branch as usize].clone());
                    let branches = prepared.into_iter().map(named).collect();
                    calls.spawn(decide(Arc::clone(&inner), Committed { txn, branches }));
                }
                Output::Finish(branch, decision) => {
                    let participant = participants[branch as usize].clone();
                    calls.spawn(finish_branch(
                        Arc::clone(&inner),
                        txn,
                        branch,
                        participant,
                        decision,
                    ));
                }
                Output::Answer(answer) => {
                    if let Some(reply) = reply.take() {
                        // A caller that is gone does not hear it.
                        let _ = reply.send(answer);
                    }
                }
                Output::Ended { forget } => return end(&inner, txn, &participants, forget).await,
                Output::HandedOver => return inner.end(txn),
            }
        }
        let now = inner.clock.now();
        let left = core.next_deadline().map(|at| Duration::from_nanos(at.saturating_sub(now)));
        let time = async {
            match left {
                Some(left) => tokio::time::sleep(left).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(input) = calls.join_next(), if !calls.is_empty() => {
                if let Ok(input) = input {
                    core.step(inner.clock.now(), input);
                }
            }
            () = time, if left.is_some() => core.step(inner.clock.now(), Input::Tick),
            // Nothing runs and nothing is due: the log failed, and the next coordinator goes on.
            else => return,
        }
    }
}

async fn end(inner: &Inner, txn: TxnId, participants: &[Arc<str>], forget: bool) {
    if forget && !forget_record(inner, txn).await {
        return;
    }
    // Only now: a recovery that finds neither the transaction nor its record aborts.
    inner.end(txn);
    for (name, participant) in &inner.participants {
        let of_it = participants.iter().zip(0..).filter(|(one, _)| *one == name);
        let gids: Vec<Gid> = of_it.map(|(_, branch)| inner.gid(txn, branch)).collect();
        if !gids.is_empty() {
            let participant = Arc::clone(participant);
            guarded(inner.config.finish_timeout, async move { participant.forget(&gids).await })
                .await;
        }
    }
}

/// Forgets the record of a commit; true if the participants may forget theirs. A log that does not
/// answer is asked again: all branches were told, and nobody waits.
async fn forget_record(inner: &Inner, txn: TxnId) -> bool {
    let mut pause = inner.config.pause;
    for _ in 0..FORGET_ATTEMPTS {
        let error = match caught(inner.log.forget(txn)).await {
            Some(Ok(())) => return true,
            Some(Err(error)) => error,
            None => StoreError::new("the log of decisions panicked"),
        };
        if has_successor(inner, &error) {
            // The successor tells the branches again, and then forgets.
            inner.end(txn);
            return false;
        }
        if inner.is_closed() {
            return false;
        }
        tracing::debug!(target: "voussoir::txn", ?txn, %error, "a record was not forgotten");
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(inner.config.max_pause);
    }
    inner.fail(&StoreError::new(format!("a record was not forgotten {FORGET_ATTEMPTS} times")));
    false
}

/// Whether a later coordinator has taken over, as the log has answered or knows by now. Noted
/// before it is acted on: from then on the recovery aborts nothing.
fn has_successor(inner: &Inner, error: &StoreError) -> bool {
    if error.is::<Superseded>().is_some() {
        inner.supersede();
        return true;
    }
    inner.look_for_successor()
}

async fn prepare(inner: Arc<Inner>, txn: TxnId, branch: BranchNo, participant: Arc<str>) -> Input {
    let gid = inner.gid(txn, branch);
    // In this task, which is the branch's own.
    let vote = caught(inner.participants[&participant].prepare(&gid));
    let vote = tokio::time::timeout(inner.config.prepare_timeout, vote).await.ok().flatten();
    Input::Voted(
        branch,
        match vote {
            Some(Ok(Vote::Prepared)) => Voted::Prepared,
            Some(Ok(Vote::ReadOnly)) => Voted::ReadOnly,
            Some(Err(PrepareError::Refused(why))) => {
                Voted::Refused(format!("{participant}: {why}"))
            }
            Some(Err(PrepareError::Unknown(why))) => {
                Voted::Unknown(format!("{participant}: {why}"))
            }
            None => Voted::Unknown(format!("{participant} did not vote in time, or panicked")),
        },
    )
}

async fn decide(inner: Arc<Inner>, commit: Committed) -> Input {
    match caught(inner.log.commit(&commit)).await {
        Some(Ok(Decision::Abort)) if inner.look_for_successor() => {
            Input::NotHere("a later coordinator has taken over".to_owned())
        }
        Some(Ok(Decision::Abort)) if !inner.log.can_decide() => {
            Input::NotHere("this node does not lead its group".to_owned())
        }
        Some(Ok(decision)) => Input::Decided(Some(decision)),
        Some(Err(error)) => {
            inner.fail(&error);
            Input::Decided(None)
        }
        None => {
            inner.fail(&StoreError::new("the log of decisions panicked"));
            Input::Decided(None)
        }
    }
}

async fn finish_branch(
    inner: Arc<Inner>,
    txn: TxnId,
    branch: BranchNo,
    participant: Arc<str>,
    decision: Decision,
) -> Input {
    let how = tell(&inner, &inner.gid(txn, branch), &participant, decision).await;
    Input::Finished(branch, how)
}

/// Tells a branch the decision; a heuristic outcome is on record before it counts.
pub(super) async fn tell(
    inner: &Inner,
    gid: &Gid,
    participant: &Arc<str>,
    decision: Decision,
) -> Finished {
    let Some(called) = inner.participants.get(participant).map(Arc::clone) else {
        return Finished::Failed;
    };
    let branch = gid.clone();
    let applied = async move { called.finish(&branch, decision).await };
    match guarded(inner.config.finish_timeout, applied).await {
        Some(Ok(Applied::Done)) => Finished::Done,
        Some(Ok(Applied::Heuristic(heuristic))) => report(inner, gid, participant, heuristic).await,
        Some(Err(error)) => {
            tracing::debug!(
                target: "voussoir::txn", %gid, %participant, %error, "a branch could not be told"
            );
            Finished::Failed
        }
        None => Finished::Failed,
    }
}

async fn report(
    inner: &Inner,
    gid: &Gid,
    participant: &Arc<str>,
    heuristic: Heuristic,
) -> Finished {
    let outcome = HeuristicOutcome::new(gid.clone(), Arc::clone(participant), heuristic);
    // Whatever becomes of the record: this process may be the only one that ever learns of it. What
    // looks lost may have been ended by a later coordinator, which the log knows.
    if heuristic == Heuristic::Committed && inner.state.lock().note_heuristic(&outcome) {
        warn_of(&outcome);
    }
    match caught(inner.log.report(&outcome)).await {
        Some(Ok(())) => {}
        Some(Err(error)) if heuristic == Heuristic::RolledBack && has_successor(inner, &error) => {
            return Finished::Superseded;
        }
        Some(Err(_)) | None => return Finished::Failed,
    }
    if inner.state.lock().note_heuristic(&outcome) {
        warn_of(&outcome);
    }
    Finished::Heuristic(heuristic)
}

fn warn_of(outcome: &HeuristicOutcome) {
    let HeuristicOutcome { gid, participant, heuristic } = outcome;
    tracing::warn!(
        target: "voussoir::txn", %gid, %participant, %heuristic, "a heuristic outcome"
    );
}

/// Runs a call of foreign code in this task. `None` if it panics.
async fn caught<T>(call: impl Future<Output = T>) -> Option<T> {
    let mut call = pin!(call);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(cx))) {
        Ok(Poll::Ready(answer)) => Poll::Ready(Some(answer)),
        Ok(Poll::Pending) => Poll::Pending,
        Err(_) => Poll::Ready(None),
    })
    .await
}

/// Runs foreign code in a task of its own. `None` if it takes longer than `limit`, and is dropped,
/// or panics.
pub(super) async fn guarded<T: Send + 'static>(
    limit: Duration,
    call: impl Future<Output = T> + Send + 'static,
) -> Option<T> {
    let mut task = JoinSet::new();
    task.spawn(call);
    match tokio::time::timeout(limit, task.join_next()).await {
        Ok(Some(Ok(answer))) => Some(answer),
        _ => None,
    }
}
