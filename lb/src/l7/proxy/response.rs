//! The body of a response, on its way from the backend to the client.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::HeaderMap;
use tokio::time::{Instant, Sleep, sleep};

use super::Inner;
use super::answer::{Ended, LogEntry, is_grpc_failure};
use super::connection::ActiveRequest;
use super::streams::StreamWatch;
use crate::endpoint::{Outcome, Pick};
use crate::l7::body::{BodyError, SharedBody, has_stalled};
use crate::l7::gate::GatePermit;
use crate::l7::upstream::{Active, Lease};

/// A response that goes on for longer than this is one by its head: a stream without an end would
/// never tell a breaker or the outlier detection that the backend works.
const JUDGED_BY_HEAD_AFTER: Duration = Duration::from_secs(1);

/// The body of a response of an [`HttpProxy`](super::HttpProxy).
#[derive(Debug)]
pub struct ProxyBody {
    kind: Kind,
    /// Counts the request until its response was sent.
    pub(super) request: Option<ActiveRequest>,
    /// Of the HTTP/2 stream that sends the response.
    watch: Option<Arc<StreamWatch>>,
}

#[derive(Debug)]
enum Kind {
    Empty,
    Full(Bytes),
    Backend(Box<Streaming>),
}

/// A request under way: all that it holds, and what is recorded when it ends.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) inner: Arc<Inner>,
    pub(super) log: Option<Box<LogEntry>>,
    pub(super) began: Instant,
    pub(super) status: u16,
    pub(super) attempts: u32,
    pub(super) lease: Option<Lease>,
    pub(super) pick: Option<Pick>,
    pub(super) permit: Option<GatePermit>,
    /// Time of the head, by the balancer's clock.
    pub(super) head_at: u64,
    pub(super) outcome: Outcome,
    /// Whether trailers decide the outcome.
    pub(super) is_grpc: bool,
    pub(super) request_body: Option<Arc<SharedBody>>,
    /// Keeps the request among those under way.
    pub(super) _active: Active,
    pub(super) bytes: u64,
}

impl Exchange {
    /// The response has ended well: the connection may carry another request if the body of this
    /// one has ended too.
    fn complete(mut self, trailers: Option<&HeaderMap>) {
        if self.is_grpc && is_grpc_failure(trailers.and_then(|found| found.get("grpc-status"))) {
            self.outcome = Outcome::Failure;
        }
        self.finish("ok");
        if let Some(lease) = self.lease.take()
            && self.request_body.as_ref().is_none_or(|body| body.has_ended())
        {
            lease.release();
        }
    }

    /// The body goes on: what the head says is recorded, and a break later on is none of it.
    fn judge_by_head(&mut self) {
        if let Some(pick) = &mut self.pick {
            pick.record(self.head_at, self.outcome);
        }
        if let Some(permit) = self.permit.take() {
            permit.finish(self.outcome);
        }
    }

    fn fail(mut self, result: &'static str) {
        self.outcome = Outcome::Failure;
        self.inner.counters.failed.fetch_add(1, Relaxed);
        self.finish(result);
    }

    /// The backend broke the protocol: the request gets an answer of the proxy's own.
    pub(super) fn reject(self) {
        self.fail("unexpected upgrade");
    }

    /// The tunnel that the connection had become has ended; its outcome was recorded at 101.
    pub(super) fn end_tunnel(mut self) {
        if let Some(pick) = self.pick.take() {
            self.log_end(pick.endpoint().name(), "tunnel ended");
        }
    }

    fn finish(&mut self, result: &'static str) {
        let Some(pick) = self.pick.take() else { return };
        self.log_end(pick.endpoint().name(), result);
        pick.finish(self.head_at, self.outcome);
        if let Some(permit) = self.permit.take() {
            permit.finish(self.outcome);
        }
    }

    fn log_end(&self, endpoint: &str, result: &'static str) {
        let Some(log) = &self.log else { return };
        log.emit(Ended {
            endpoint,
            status: self.status,
            attempts: self.attempts,
            bytes: self.bytes,
            result,
            duration: self.began.elapsed(),
        });
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        // Ended by neither side: the client has gone, which counts as cancelled at the head.
        if let Some(pick) = &mut self.pick {
            pick.record_cancelled(Some(self.head_at));
        }
        if let Some(pick) = &self.pick {
            self.inner.counters.cancelled.fetch_add(1, Relaxed);
            self.log_end(pick.endpoint().name(), "cancelled");
        }
    }
}

#[derive(Debug)]
struct Streaming {
    body: Incoming,
    exchange: Option<Box<Exchange>>,
    timeout: Duration,
    stall: Option<Pin<Box<Sleep>>>,
    judgement: Judgement,
}

/// When the outcome of a response is recorded that has not ended.
#[derive(Debug)]
enum Judgement {
    /// The body was not waited for yet: most come with their head.
    Unset,
    At(Pin<Box<Sleep>>),
    Made,
}

impl Judgement {
    /// Whether it is made now. Arms the timer.
    fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        if let Self::Unset = self {
            *self = Self::At(Box::pin(sleep(JUDGED_BY_HEAD_AFTER)));
        }
        let Self::At(timer) = self else { return false };
        let is_due = timer.as_mut().poll(cx).is_ready();
        if is_due {
            *self = Self::Made;
        }
        is_due
    }
}

impl ProxyBody {
    pub(super) fn empty() -> Self {
        Self { kind: Kind::Empty, request: None, watch: None }
    }

    pub(super) fn full(bytes: Bytes) -> Self {
        Self { kind: Kind::Full(bytes), request: None, watch: watch() }
    }

    pub(super) fn backend(body: Incoming, exchange: Box<Exchange>, timeout: Duration) -> Self {
        if body.is_end_stream() {
            exchange.complete(None);
            return Self::empty();
        }
        let exchange = Some(exchange);
        let judgement = Judgement::Unset;
        let streaming = Streaming { body, exchange, timeout, stall: None, judgement };
        Self { kind: Kind::Backend(Box::new(streaming)), request: None, watch: watch() }
    }
}

/// The watch of the HTTP/2 stream that is to send a body. From here on the stream waits for its
/// client until the body has nothing to send.
fn watch() -> Option<Arc<StreamWatch>> {
    let watch = StreamWatch::current()?;
    watch.handed_out();
    Some(watch)
}

impl Streaming {
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Poll::Ready(polled) = Pin::new(&mut self.body).poll_frame(cx) else {
            if self.judgement.poll(cx)
                && let Some(exchange) = &mut self.exchange
            {
                exchange.judge_by_head();
            }
            if !has_stalled(&mut self.stall, self.timeout, cx) {
                return Poll::Pending;
            }
            if let Some(exchange) = self.exchange.take() {
                exchange.fail("backend body timeout");
            }
            return Poll::Ready(Some(Err(BodyError::BackendTimeout)));
        };
        self.stall = None;
        Poll::Ready(match polled {
            None => {
                if let Some(exchange) = self.exchange.take() {
                    exchange.complete(None);
                }
                None
            }
            Some(Err(_)) => {
                if let Some(exchange) = self.exchange.take() {
                    exchange.fail("backend body ended early");
                }
                Some(Err(BodyError::Backend))
            }
            Some(Ok(mut frame)) => {
                if let (Some(data), Some(exchange)) = (frame.data_ref(), &mut self.exchange) {
                    exchange.bytes += data.len() as u64;
                }
                if let Some(trailers) = frame.trailers_mut() {
                    if let Some(exchange) = self.exchange.take() {
                        exchange.complete(Some(trailers));
                    }
                } else if self.body.is_end_stream()
                    && let Some(exchange) = self.exchange.take()
                {
                    exchange.complete(None);
                }
                Some(Ok(frame))
            }
        })
    }
}

impl Body for ProxyBody {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        match &mut this.kind {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Kind::Full(bytes) => {
                if let Some(watch) = &this.watch {
                    watch.handed_out();
                }
                Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes)))))
            }
            Kind::Backend(streaming) => {
                let polled = streaming.poll_frame(cx);
                if let Some(watch) = &this.watch {
                    if polled.is_ready() {
                        watch.handed_out();
                    } else {
                        watch.waits_for_backend();
                    }
                }
                polled.map(|frame| frame.map(|frame| frame.map_err(Into::into)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Empty => true,
            Kind::Full(bytes) => bytes.is_empty(),
            Kind::Backend(streaming) => streaming.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Backend(streaming) => streaming.body.size_hint(),
        }
    }
}
