//! One transaction's task: carries out what the core asks for.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::coordinator::Inner;
use super::core::{
    Answer, BranchNo, Decision, Finished, Heuristic, Input, Output, Transaction, Voted,
};
use super::gid::{Gid, TxnId};
use super::log::{Committed, HeuristicOutcome};
use super::participant::{Applied, PrepareError, Vote};

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
    if forget && let Err(error) = inner.log.forget(txn).await {
        inner.fail(&error);
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

async fn prepare(inner: Arc<Inner>, txn: TxnId, branch: BranchNo, participant: Arc<str>) -> Input {
    let gid = inner.gid(txn, branch);
    let called = Arc::clone(&inner.participants[&participant]);
    let vote = async move { called.prepare(&gid).await };
    let vote = guarded(inner.config.prepare_timeout, vote).await;
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
    match inner.log.commit(&commit).await {
        Ok(decision) => Input::Decided(Some(decision)),
        Err(error) => {
            inner.fail(&error);
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
    tracing::warn!(target: "voussoir::txn", %gid, %participant, %heuristic, "a heuristic outcome");
    if inner.log.report(&outcome).await.is_err() {
        return Finished::Failed;
    }
    let mut state = inner.state.lock();
    if !state.heuristics.contains(&outcome) {
        state.heuristics.push(outcome);
    }
    Finished::Heuristic(heuristic)
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
