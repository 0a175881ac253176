//! Sending a snapshot: chunks over calls, several under way at once.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use super::shared::{Counters, count};
use crate::store::{LogStore, ReadFailed, SnapshotName, SnapshotReader, StoreError};
use crate::transport::{SendError, SnapshotAnswer, SnapshotPart, Transport};

/// How often the receiver may ask for a chunk again without having got further in between.
const RESTARTS_MAX: u32 = 8;

/// What to send to whom.
#[derive(Clone, Debug)]
pub(crate) struct Transfer {
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
    Refused,
    #[error("the peer asked for the same chunk again and again")]
    NoProgress,
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
        counters: &Counters,
    ) -> Result<(), TransferError> {
        let reader = log.open_snapshot().await?.ok_or(TransferError::NoSnapshot)?;
        let name = reader.name().clone();
        if name.meta.index < self.at_least {
            return Err(TransferError::NoSnapshot);
        }
        let mut restarts = 0;
        let mut from = match self.open(transport, &*reader, &name).await? {
            Some(number) => number,
            None => return Ok(()),
        };
        loop {
            let reached = self.chunks(&*reader, transport, counters, name.identity, from).await?;
            if reached == reader.chunks() {
                let close = SnapshotPart::Close { identity: name.identity };
                match self.call(transport, close).await? {
                    SnapshotAnswer::Done => return Ok(()),
                    SnapshotAnswer::Refused => return Err(TransferError::Refused),
                    SnapshotAnswer::Next { number } => from = number,
                }
            } else {
                restarts = if reached > from { 0 } else { restarts + 1 };
                from = reached;
            }
            if restarts > RESTARTS_MAX {
                return Err(TransferError::NoProgress);
            }
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
            SnapshotAnswer::Next { .. } | SnapshotAnswer::Refused => Err(TransferError::Refused),
        }
    }

    async fn call(
        &self,
        transport: &dyn Transport,
        part: SnapshotPart,
    ) -> Result<SnapshotAnswer, SendError> {
        transport.snapshot(self.to, self.group, part, self.timeout).await
    }

    /// Sends chunks from `from` on until all are there or the peer asks for another one. Returns
    /// the chunk to go on with.
    async fn chunks(
        &self,
        reader: &dyn SnapshotReader,
        transport: &dyn Transport,
        counters: &Counters,
        identity: u64,
        from: u64,
    ) -> Result<u64, TransferError> {
        let mut calls: VecDeque<Slot<'_>> = VecDeque::new();
        let (mut next, mut answered) = (from, from);
        while answered < reader.chunks() {
            while calls.len() < self.window && next < reader.chunks() {
                let data = reader.chunk(next).await?;
                let part = SnapshotPart::Chunk { identity, number: next, data };
                let call = transport.snapshot(self.to, self.group, part, self.timeout);
                calls.push_back(Slot::Waiting(call));
                count(&counters.chunks_sent, 1);
                next += 1;
            }
            match poll_fn(|cx| poll_first(&mut calls, cx)).await? {
                SnapshotAnswer::Next { number } if number == answered + 1 => answered = number,
                SnapshotAnswer::Next { number } if number <= reader.chunks() => return Ok(number),
                SnapshotAnswer::Done => return Ok(reader.chunks()),
                SnapshotAnswer::Next { .. } | SnapshotAnswer::Refused => {
                    return Err(TransferError::Refused);
                }
            }
        }
        Ok(answered)
    }
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
