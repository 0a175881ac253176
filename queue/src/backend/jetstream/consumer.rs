//! A member of a group: fetches from durable consumers, and acknowledges what was processed.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::consumer::pull::Batch;
use async_nats::jetstream::{AckKind, Message};
use async_trait::async_trait;
use futures_util::future::join_all;
use futures_util::{Stream, StreamExt};
use tokio::time::{Instant, timeout, timeout_at};

use super::{JetStream, NAME, wire};
use crate::backend::{
    BackendError, Consumer, Delivery, Need, Output, Position, Received, Refused, Subscription,
};

/// How long the server keeps a request for a message. When the connection was lost, the request is
/// made again after this time and 5 s more.
const REQUEST: Duration = Duration::from_secs(5);
/// Silence after which a request for what is there is taken to be held back: the group has as many
/// records as it may (`max_unacknowledged`). The request stays.
const HELD_BACK: Duration = Duration::from_millis(100);
/// Acknowledgements that are on their way at the same time.
const MAX_ACKS: usize = 256;

/// A topic that a member reads.
pub(super) struct Source {
    topic: Arc<str>,
    consumer: PullConsumer,
    /// A request for what is there, and when it was made. It is here beyond a poll when it is held
    /// back: messages that come meanwhile are returned by the next poll.
    fetch: Option<(Batch, Instant)>,
    /// A request for one message, which the server keeps until there is one, and when it was made.
    wait: Option<(Batch, Instant)>,
}

/// A message that was received and not committed.
struct Held {
    source: usize,
    message: Message,
    /// The server had not delivered it before: its time for the message began then or later.
    received: Instant,
}

pub(super) struct JetStreamConsumer {
    backend: JetStream,
    subscription: Subscription,
    sources: Vec<Source>,
    /// Messages that no poll has returned yet. Kept here, so that a dropped poll loses none.
    ready: VecDeque<Held>,
    /// Messages that polls have returned. At most `max_unacknowledged`: the server gives no more.
    polled: Vec<Held>,
    /// The source that the next poll begins with.
    turn: usize,
    /// When the present poll began, or the last one.
    began: Instant,
    /// When the last poll before it that was not dropped ended. Messages of older requests may have
    /// come since.
    ended: Instant,
}

impl Source {
    pub(super) fn new(topic: Arc<str>, consumer: PullConsumer) -> Self {
        Self { topic, consumer, fetch: None, wait: None }
    }
}

impl JetStreamConsumer {
    pub(super) fn new(
        backend: JetStream,
        subscription: Subscription,
        sources: Vec<Source>,
    ) -> Self {
        let (ready, polled) = (VecDeque::new(), Vec::new());
        let now = Instant::now();
        Self { backend, subscription, sources, ready, polled, turn: 0, began: now, ended: now }
    }

    /// Takes what is there now from the sources in turn, up to the size of a poll.
    async fn fetch(&mut self) -> Result<(), BackendError> {
        let count = self.sources.len();
        for number in 0..count {
            let at = (self.turn + number) % count;
            let room = self.subscription.max_poll_records.saturating_sub(self.ready.len());
            if room == 0 {
                self.turn = at;
                break;
            }
            let source = &mut self.sources[at];
            // One that the server has forgotten, by a restart, is never answered.
            source.fetch.take_if(|(_, since)| since.elapsed() > 2 * REQUEST);
            let silence = if source.fetch.is_some() { Duration::ZERO } else { HELD_BACK };
            if source.fetch.is_none() {
                let request = source.consumer.fetch().max_messages(room).messages();
                source.fetch = Some((request.await.map_err(unavailable)?, Instant::now()));
            }
            // Ends: with the answer, or with silence.
            while let Some((fetch, since)) = &mut self.sources[at].fetch {
                let since = *since;
                match timeout(silence, fetch.next()).await {
                    Ok(Some(Ok(message))) => self.hold(at, message, since),
                    Ok(None) => self.sources[at].fetch = None,
                    Ok(Some(Err(error))) => {
                        self.sources[at].fetch = None;
                        return Err(unavailable(error));
                    }
                    Err(_elapsed) => break,
                }
            }
        }
        Ok(())
    }

    /// `since`: when the request was made that the message answers.
    fn hold(&mut self, source: usize, message: Message, since: Instant) {
        let received = if since < self.began { self.ended.max(since) } else { Instant::now() };
        self.ready.push_back(Held { source, message, received });
    }

    /// Waits until one of the sources has a message, and takes it.
    async fn wait(&mut self, deadline: Instant) -> Result<(), BackendError> {
        for source in &mut self.sources {
            if source.wait.is_none() && source.fetch.is_none() {
                let left = deadline.saturating_duration_since(Instant::now());
                // The server takes no shorter one.
                let expires = left.clamp(Duration::from_millis(10), REQUEST);
                let request = source.consumer.batch().max_messages(1).expires(expires).messages();
                source.wait = Some((request.await.map_err(unavailable)?, Instant::now()));
            }
        }
        let sources = &mut self.sources;
        let next = timeout_at(deadline, std::future::poll_fn(|context| poll_any(sources, context)));
        match next.await {
            // The time is over, or a request is, which the caller makes again.
            Err(_) | Ok((_, None)) => Ok(()),
            Ok((at, Some(Ok((message, since))))) => {
                self.hold(at, message, since);
                Ok(())
            }
            Ok((_, Some(Err(error)))) => Err(unavailable(error)),
        }
    }

    /// Tells the server, and waits until it has heard, that these are done.
    async fn acknowledge(&self, held: &[Held]) -> Result<(), BackendError> {
        let client = &self.backend.shared.client;
        for chunk in held.chunks(MAX_ACKS) {
            let acks = chunk.iter().map(|held| {
                let reply = held.message.reply.clone().unwrap_or_else(|| "".into());
                let request = async_nats::Request::new()
                    .payload(AckKind::Ack.into())
                    .timeout(Some(self.backend.shared.config.request_timeout));
                client.send_request(reply, request)
            });
            if let Some(error) = join_all(acks).await.into_iter().find_map(Result::err) {
                let why = format!("an acknowledgement had no answer: {error}");
                return Err(BackendError::Unknown { why });
            }
        }
        Ok(())
    }

    /// Gives back all that is not committed: the server delivers it again at once. Requests stay:
    /// nats-server 2.9 may count a delivery anew when it finds that a request has gone meanwhile.
    async fn give_back(&mut self) -> Result<(), BackendError> {
        // Ends: each round takes one. Dropped here, the rest is given back by the next call.
        while let Some(held) = self.polled.last().or(self.ready.back()) {
            held.message.ack_with(AckKind::Nak(None)).await.map_err(unavailable)?;
            if self.polled.pop().is_none() {
                self.ready.pop_back();
            }
        }
        self.backend.shared.client.flush().await.map_err(unavailable)
    }

    fn received(&self, held: &Held) -> Received {
        let message = &held.message;
        let info = message.info().ok();
        let offset = info.as_ref().map_or(0, |info| info.stream_sequence);
        let stored = info.as_ref().map_or(0, |info| milliseconds(&info.published));
        let partition = message.subject.rsplit('.').next().and_then(|part| part.parse().ok());
        Received {
            topic: Arc::clone(&self.sources[held.source].topic),
            position: Position { partition: partition.unwrap_or(0), offset },
            record: wire::to_record(message.headers.as_ref(), &message.payload, offset, stored),
            deliveries: info.and_then(|info| u64::try_from(info.delivered).ok()),
        }
    }
}

/// A message, and since when the server may have waited for its acknowledgement.
type Fetched = Result<(Message, Instant), async_nats::Error>;

/// The first message, end or error of a request for one message, and the place of its source.
fn poll_any(sources: &mut [Source], context: &mut Context<'_>) -> Poll<(usize, Option<Fetched>)> {
    for (at, source) in sources.iter_mut().enumerate() {
        if let Some((fetch, since)) = &mut source.fetch
            && let Poll::Ready(next) = Pin::new(fetch).poll_next(context)
        {
            let since = *since;
            if !matches!(next, Some(Ok(_))) {
                source.fetch = None;
            }
            return Poll::Ready((at, next.map(|next| next.map(|message| (message, since)))));
        }
        if let Some((wait, since)) = &mut source.wait
            && let Poll::Ready(next) = Pin::new(wait).poll_next(context)
        {
            let since = *since;
            // One message is all that was asked for.
            source.wait = None;
            return Poll::Ready((at, next.map(|next| next.map(|message| (message, since)))));
        }
    }
    Poll::Pending
}

fn milliseconds(time: &async_nats::datetime::DateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(0)
}

fn unavailable(error: impl fmt::Display) -> BackendError {
    BackendError::Unavailable { why: error.to_string() }
}

#[async_trait]
impl Consumer for JetStreamConsumer {
    async fn poll(&mut self, max_wait: Duration) -> Result<Vec<Received>, BackendError> {
        let far = Duration::from_secs(86_400);
        self.began = Instant::now();
        let deadline = self.began + max_wait.min(far);
        // Ends: at the deadline, or with a message.
        loop {
            let fetched = self.fetch().await;
            if self.ready.is_empty() {
                fetched?;
                if deadline <= Instant::now() {
                    self.ended = Instant::now();
                    return match self.backend.shared.client.connection_state() {
                        State::Connected => Ok(Vec::new()),
                        state => Err(unavailable(format!("the connection is {state:?}"))),
                    };
                }
                self.wait(deadline).await?;
            }
            if !self.ready.is_empty() {
                break;
            }
        }
        self.ended = Instant::now();
        let count = self.ready.len().min(self.subscription.max_poll_records);
        let taken: Vec<Held> = self.ready.drain(..count).collect();
        let received = taken.iter().map(|held| self.received(held)).collect();
        if self.subscription.delivery == Delivery::AtMostOnce {
            // On an error they are not returned: some may be acknowledged.
            self.acknowledge(&taken).await?;
        } else {
            self.polled.extend(taken);
        }
        Ok(received)
    }

    async fn commit(&mut self) -> Result<(), BackendError> {
        let limit = self.subscription.processing_timeout;
        if self.polled.iter().any(|held| held.received.elapsed() >= limit) {
            self.give_back().await?;
            let why = format!("they were received more than {limit:?} ago (processing_timeout)");
            return Err(BackendError::Lost { why });
        }
        let result = self.acknowledge(&self.polled).await;
        // After an error what was not acknowledged comes again after `processing_timeout`.
        self.polled.clear();
        result
    }

    async fn commit_with(&mut self, _outputs: Vec<Output>) -> Result<(), BackendError> {
        let why = "no transaction holds both messages and acknowledgements";
        let refused = Refused::new(NAME, Need::ExactlyOnce, why);
        self.give_back().await?;
        Err(refused.into())
    }

    async fn rewind(&mut self) -> Result<(), BackendError> {
        self.give_back().await
    }

    async fn close(mut self: Box<Self>) -> Result<(), BackendError> {
        for source in &mut self.sources {
            source.fetch = None;
            source.wait = None;
        }
        // The server hears of the end of the requests before it has something to deliver to them.
        self.backend.shared.client.flush().await.map_err(unavailable)?;
        self.give_back().await
    }
}

impl fmt::Debug for JetStreamConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JetStreamConsumer")
            .field("subscription", &self.subscription)
            .field("ready", &self.ready.len())
            .field("polled", &self.polled.len())
            .finish_non_exhaustive()
    }
}
