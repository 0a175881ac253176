//! A consumer as a stream of records.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use tokio::sync::oneshot;

use super::{Consumer, ConsumerRecord, Polled};
use crate::config::Guarantee;
use crate::error::{CommitError, ConfigError, ConsumeError};

/// A [`Consumer`] as a stream that never ends: see [`Consumer::into_stream`].
///
/// It reads nothing while it is not polled: a slow reader has the records of one fetch
/// ([`fetch_bytes`](crate::ConsumerConfig::fetch_bytes)) of each partition in memory. Offsets go no
/// further than the records that were taken. With
/// [`Guarantee::AtLeastOnce`] a record counts as processed when the next one is asked for; dropped,
/// the stream leaves the group, and the record that was taken last is read again.
///
/// An error does not end it: the next poll tries again, as after [`Consumer::poll`].
pub struct RecordStream {
    state: State,
}

enum State {
    Idle(Box<Consumer>),
    Polling(Polling),
    /// Only while a state is replaced.
    Moving,
}

/// A poll that is under way, which owns the consumer until it ends or is told to.
struct Polling {
    future: Pin<Box<dyn Future<Output = (Box<Consumer>, Answer)> + Send>>,
    /// Dropped, it stops the poll.
    stop: oneshot::Sender<()>,
}

/// `None` of a poll that was stopped.
type Answer = Option<Result<Polled, ConsumeError>>;

impl Consumer {
    /// The consumer as a stream of single records.
    ///
    /// # Errors
    /// It is a member of a group with [`Guarantee::Manual`] or [`Guarantee::ExactlyOnce`]: those
    /// have to commit before partitions are given up, and a stream cannot tell them when.
    pub fn into_stream(mut self) -> Result<RecordStream, ConfigError> {
        let is_manual = matches!(self.config.guarantee, Guarantee::Manual | Guarantee::ExactlyOnce);
        if is_manual && self.membership.is_some() {
            let rule = "must be `AtLeastOnce` or `AtMostOnce` for a stream of a group's member";
            return Err(ConfigError { field: "guarantee", rule });
        }
        // A poll moves behind all that it returns.
        self.config.max_poll_records = 1;
        Ok(RecordStream { state: State::Idle(Box::new(self)) })
    }
}

impl RecordStream {
    /// The next record; as the stream's `next` without a crate for it.
    ///
    /// # Errors
    /// See [`ConsumeError`]. The stream goes on.
    ///
    /// # Cancel safety
    /// Safe: the next call returns what this one has not. With [`Guarantee::AtMostOnce`] a record
    /// whose offset was being stored is not lost either: the poll goes on.
    pub async fn next(&mut self) -> Result<ConsumerRecord, ConsumeError> {
        std::future::poll_fn(|context| self.poll_record(context)).await
    }

    /// Commits the records that were taken, all of which count as processed, and leaves the group.
    ///
    /// # Errors
    /// The commit failed; the consumer has left.
    ///
    /// # Cancel safety
    /// It has left; whether the offsets are stored is unknown.
    pub async fn close(mut self) -> Result<(), CommitError> {
        let consumer = match std::mem::replace(&mut self.state, State::Moving) {
            State::Idle(consumer) => consumer,
            State::Polling(Polling { future, stop }) => {
                drop(stop);
                future.await.0
            }
            State::Moving => return Ok(()),
        };
        consumer.close().await
    }

    fn poll_record(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<ConsumerRecord, ConsumeError>> {
        // Ends: with a record, an error, or a poll that waits.
        loop {
            let mut polling = match std::mem::replace(&mut self.state, State::Moving) {
                State::Idle(consumer) => begin(consumer),
                State::Polling(polling) => polling,
                // An earlier poll has panicked.
                State::Moving => return Poll::Pending,
            };
            let Poll::Ready((consumer, answer)) = polling.future.as_mut().poll(context) else {
                self.state = State::Polling(polling);
                return Poll::Pending;
            };
            self.state = State::Idle(consumer);
            match answer {
                Some(Ok(polled)) => {
                    if let Some(record) = polled.records.into_iter().next() {
                        return Poll::Ready(Ok(record));
                    }
                }
                Some(Err(error)) => return Poll::Ready(Err(error)),
                None => {}
            }
        }
    }
}

fn begin(mut consumer: Box<Consumer>) -> Polling {
    let (stop, mut stopped) = oneshot::channel::<()>();
    let future = Box::pin(async move {
        let answer = {
            let mut poll = std::pin::pin!(consumer.poll(Duration::MAX));
            std::future::poll_fn(|context| match Pin::new(&mut stopped).poll(context) {
                Poll::Ready(_) => Poll::Ready(None),
                Poll::Pending => poll.as_mut().poll(context).map(Some),
            })
            .await
        };
        (consumer, answer)
    });
    Polling { future, stop }
}

impl Stream for RecordStream {
    type Item = Result<ConsumerRecord, ConsumeError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_record(context).map(Some)
    }
}

impl fmt::Debug for RecordStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Idle(_) => "idle",
            State::Polling(_) => "polling",
            State::Moving => "ended",
        };
        f.debug_struct("RecordStream").field("state", &state).finish_non_exhaustive()
    }
}
