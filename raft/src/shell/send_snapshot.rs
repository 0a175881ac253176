//! Sending a snapshot: chunks over calls, several under way at once.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

use super::shared::{Shared, count};
use super::transfers::Shown;
use crate::core::TransferEnd;
use crate::store::{LogStore, ReadFailed, SnapshotName, SnapshotReader, StoreError};
use crate::transport::{SendError, SnapshotAnswer, SnapshotPart, Transport};

/// Passes over the chunks after which a transfer is given up when the peer never got further than
/// in an earlier one.
const MAX_FUTILE_PASSES: u32 = 8;
/// The pause after the first futile pass. It doubles with each further one.
const MIN_PAUSE: Duration = Duration::from_millis(20);
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// How often each chunk may be sent in one transfer, on average.
const MAX_SENDS_PER_CHUNK: u64 = 4;
/// Chunks that may be sent beyond that, so that a small snapshot bears some repetitions.
const SENDS_EXTRA: u64 = 64;

/// What to send to whom.
#[derive(Clone, Debug)]
pub(crate) struct Transfer {
    /// Different from that of every other transfer of this life of the node.
    pub(crate) id: u64,
    pub(crate) group: u64,
    pub(crate) to: u64,
    /// In which this node leads.
    pub(crate) term: u64,
    /// What the snapshot has to cover.
    pub(crate) at_least: u64,
    /// Chunks under way at once.
    pub(crate) window: usize,
    /// For the answer to each part.
    pub(crate) timeout: Duration,
}

/// Why a snapshot was not sent. What has arrived of it stays there for the next attempt.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransferError {
    #[error("no snapshot covers what the peer needs")]
    NoSnapshot,
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("a chunk could not be read: {0}")]
    Read(#[from] ReadFailed),
    #[error("{0}")]
    Send(#[from] SendError),
    #[error("the peer refused")]
    Rejected,
    #[error("the peer asked for the same chunk again and again")]
    NoProgress,
}

/// How far the peer said to be.
#[derive(Default)]
struct Reach {
    /// The first chunk that it needed when the transfer began.
    opened_at: u64,
    /// The most that any answer said to have arrived.
    arrived: u64,
}

/// One pass over the chunks of a snapshot.
struct Pass<'a> {
    /// Of the snapshot.
    identity: u64,
    /// The first chunk to send.
    from: u64,
    /// Chunks that the transfer may still send.
    budget: &'a mut u64,
    /// Raised to the number of chunks that the peer says to have.
    arrived: &'a mut u64,
    /// What operators see of it.
    shown: &'a Shown<'a>,
}

type Call<'a> = Pin<Box<dyn Future<Output = Result<SnapshotAnswer, SendError>> + Send + 'a>>;

/// A call under way, or its answer.
enum Slot<'a> {
    Waiting(Call<'a>),
    Answered(Result<SnapshotAnswer, SendError>),
}

impl Transfer {
    /// Sends the current snapshot, from where the peer has it.
    pub(crate) async fn run(
        &self,
        log: &dyn LogStore,
        transport: &dyn Transport,
        shared: &Shared,
    ) -> TransferEnd {
        let mut reach = Reach::default();
        let Err(error) = self.send(log, transport, shared, &mut reach).await else {
            return TransferEnd::Complete;
        };
        tracing::debug!(target: "voussoir::raft", to = self.to, %error, "snapshot not sent");
        if reach.arrived > reach.opened_at { TransferEnd::Advanced } else { TransferEnd::Futile }
    }

    async fn send(
        &self,
        log: &dyn LogStore,
        transport: &dyn Transport,
        shared: &Shared,
        reach: &mut Reach,
    ) -> Result<(), TransferError> {
        let reader = log.open_snapshot().await?.ok_or(TransferError::NoSnapshot)?;
        let name = reader.name().clone();
        if name.meta.index < self.at_least {
            return Err(TransferError::NoSnapshot);
        }
        let Some(mut from) = self.open(transport, &*reader, &name).await? else {
            return Ok(());
        };
        let total = (reader.chunks(), reader.bytes());
        let shown = Shown::new(&shared.transfers, (self.id, self.to), name.meta.index, total);
        let mut budget = MAX_SENDS_PER_CHUNK.saturating_mul(reader.chunks()) + SENDS_EXTRA;
        let (mut furthest, mut futile) = (from, 0);
        *reach = Reach { opened_at: from, arrived: from };
        // Ends: a pass gets further than all before it, at most once for each chunk, or it is
        // futile, and of those there are few in a row; the budget bounds what all of them send.
        loop {
            let arrived = &mut reach.arrived;
            let identity = name.identity;
            let pass = Pass { identity, from, budget: &mut budget, arrived, shown: &shown };
            let reached = self.chunks(&*reader, transport, shared, pass).await?;
            from = reached;
            if reached == reader.chunks() {
                let close = SnapshotPart::Close { identity: name.identity };
                match self.call(transport, close).await? {
                    SnapshotAnswer::Done => return Ok(()),
                    SnapshotAnswer::Next { number } if number <= reader.chunks() => from = number,
                    SnapshotAnswer::Next { .. } | SnapshotAnswer::Rejected => {
                        return Err(TransferError::Rejected);
                    }
                }
            }
            if reach.arrived > furthest {
                (furthest, futile) = (reach.arrived, 0);
                continue;
            }
            if futile == MAX_FUTILE_PASSES {
                return Err(TransferError::NoProgress);
            }
            tokio::time::sleep((MIN_PAUSE * 2u32.pow(futile)).min(MAX_PAUSE)).await;
            futile += 1;
        }
    }

    /// The chunk that the peer needs first; `None` when it needs nothing.
    async fn open(
        &self,
        transport: &dyn Transport,
        reader: &dyn SnapshotReader,
        name: &SnapshotName,
    ) -> Result<Option<u64>, TransferError> {
        let (term, chunks) = (self.term, reader.chunks());
        let open = SnapshotPart::Open { term, name: name.clone(), chunks };
        match self.call(transport, open).await? {
            SnapshotAnswer::Next { number } if number <= chunks => Ok(Some(number)),
            SnapshotAnswer::Done => Ok(None),
            SnapshotAnswer::Next { .. } | SnapshotAnswer::Rejected => Err(TransferError::Rejected),
        }
    }

    async fn call(
        &self,
        transport: &dyn Transport,
        part: SnapshotPart,
    ) -> Result<SnapshotAnswer, SendError> {
        self.within(transport.snapshot(self.to, self.group, part, self.timeout)).await
    }

    /// A transport answers by the time-out that it is given. One that does not must not keep the
    /// transfer, and with it the leader's only place for one, for ever.
    async fn within(
        &self,
        answer: impl Future<Output = Result<SnapshotAnswer, SendError>>,
    ) -> Result<SnapshotAnswer, SendError> {
        let answer = tokio::time::timeout(self.timeout.saturating_mul(2), answer).await;
        answer.unwrap_or(Err(SendError::NoAnswer))
    }

    /// Sends chunks from `pass.from` on until all are there or the peer asks for another one.
    /// Returns the chunk to go on with.
    async fn chunks(
        &self,
        reader: &dyn SnapshotReader,
        transport: &dyn Transport,
        shared: &Shared,
        pass: Pass<'_>,
    ) -> Result<u64, TransferError> {
        let Pass { identity, from, budget, arrived, shown } = pass;
        shown.continues_at(from);
        let mut calls: VecDeque<Slot<'_>> = VecDeque::new();
        // The lengths of the chunks under way, and the chunk that the rate does not allow yet.
        let (mut lengths, mut held_back) = (VecDeque::new(), None);
        let (mut next, mut answered) = (from, from);
        while answered < reader.chunks() {
            let mut resume_at = None;
            while calls.len() < self.window && next < reader.chunks() {
                let data = match held_back.take() {
                    Some(data) => data,
                    None => reader.chunk(next).await?,
                };
                if let Err(at) = shared.transfers.admit(data.len()) {
                    (held_back, resume_at) = (Some(data), Some(at));
                    break;
                }
                *budget = budget.checked_sub(1).ok_or(TransferError::NoProgress)?;
                lengths.push_back(data.len() as u64);
                let part = SnapshotPart::Chunk { identity, number: next, data };
                let call = transport.snapshot(self.to, self.group, part, self.timeout);
                calls.push_back(Slot::Waiting(Box::pin(self.within(call))));
                count(&shared.counters.chunks_sent, 1);
                next += 1;
            }
            let Some(answer) = first_answer(&mut calls, resume_at).await else { continue };
            let length = lengths.pop_front().unwrap_or(0);
            match answer? {
                SnapshotAnswer::Next { number } if number == answered + 1 => {
                    answered = number;
                    *arrived = number.max(*arrived);
                    shown.acknowledged(length);
                }
                SnapshotAnswer::Next { number } if number <= reader.chunks() => {
                    *arrived = number.max(*arrived);
                    return Ok(number);
                }
                SnapshotAnswer::Done => return Ok(reader.chunks()),
                SnapshotAnswer::Next { .. } | SnapshotAnswer::Rejected => {
                    return Err(TransferError::Rejected);
                }
            }
        }
        Ok(answered)
    }
}

/// Waits for the answer to the oldest call, but not beyond `resume_at`: `None` then.
async fn first_answer(
    calls: &mut VecDeque<Slot<'_>>,
    resume_at: Option<Instant>,
) -> Option<Result<SnapshotAnswer, SendError>> {
    let Some(at) = resume_at else {
        return Some(poll_fn(|cx| poll_first(calls, cx)).await);
    };
    if calls.is_empty() {
        sleep_until(at).await;
        return None;
    }
    timeout_at(at, poll_fn(|cx| poll_first(calls, cx))).await.ok()
}

/// Polls all calls, the oldest first so that they leave in order, and takes the oldest's answer.
fn poll_first(
    calls: &mut VecDeque<Slot<'_>>,
    cx: &mut Context<'_>,
) -> Poll<Result<SnapshotAnswer, SendError>> {
    for slot in calls.iter_mut() {
        if let Slot::Waiting(call) = slot
            && let Poll::Ready(answer) = call.as_mut().poll(cx)
        {
            *slot = Slot::Answered(answer);
        }
    }
    match calls.pop_front() {
        Some(Slot::Answered(answer)) => Poll::Ready(answer),
        Some(waiting) => {
            calls.push_front(waiting);
            Poll::Pending
        }
        // Asked only while calls are under way.
        None => Poll::Ready(Err(SendError::NoAnswer)),
    }
}
