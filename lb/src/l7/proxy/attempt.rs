//! Sends a request to one endpoint after the other until one answers.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, Uri, Version};
use tokio::time::{Instant, timeout_at};

use super::Inner;
use super::answer::Failure;
use crate::context::Context;
use crate::endpoint::{Outcome, Pick};
use crate::l7::body::{BodyError, RequestBody, SharedBody};
use crate::l7::config::UpstreamConfig;
use crate::l7::upstream::{Active, ConnectError, Lease, SendError, Upstream};

/// A request that is to be sent, perhaps several times.
pub(super) struct Attempts<'a> {
    pub(super) inner: &'a Inner,
    pub(super) upstream: &'a Upstream,
    pub(super) context: Context<'a>,
    pub(super) head: Head,
    pub(super) body: Option<&'a Arc<SharedBody>>,
    /// Whether the client waits for 100 before it sends the body.
    pub(super) expects_continue: bool,
    pub(super) active: Active,
    pub(super) count: u32,
}

/// An answer, and what it was got with.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) response: Response<Incoming>,
    pub(super) lease: Lease,
    pub(super) pick: Pick,
}

/// A pick whose endpoint is waited for: the client has gone when this is dropped.
struct Awaited<'a> {
    pick: &'a mut Pick,
    body: Option<&'a Arc<SharedBody>>,
    inner: &'a Inner,
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        // Else the endpoint may have waited for the client.
        if self.body.is_some_and(|body| !body.has_ended()) {
            self.pick.ignore_duration();
        }
        self.pick.record_cancelled(Some(self.inner.clock.now()));
    }
}

/// The head of the request, for as many attempts as there are.
pub(super) struct Head {
    method: Method,
    uri: Uri,
    version: Version,
    /// What the client sent, for the first attempt: hyper keeps its table for the next message.
    first: Option<HeaderMap>,
    /// The same lines, for the attempts after it.
    lines: Vec<(HeaderName, HeaderValue)>,
}

impl Head {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { method, uri, version, headers, .. } = parts;
        let mut lines = Vec::with_capacity(headers.len());
        lines.extend(headers.iter().map(|(name, value)| (name.clone(), value.clone())));
        Self { method, uri, version, first: Some(headers), lines }
    }

    fn headers(&mut self) -> HeaderMap {
        self.first.take().unwrap_or_else(|| {
            let mut headers = HeaderMap::with_capacity(self.lines.len());
            for (name, value) in &self.lines {
                headers.append(name, value.clone());
            }
            headers
        })
    }
}

/// Why an attempt has no answer.
#[derive(Clone, Copy, Debug)]
enum Failed {
    /// Nothing was written: any request may be sent again.
    Unsent(Failure),
    /// The same, for want of what this machine has too little of.
    Exhausted,
    /// A backend may have acted on the request.
    Unknown(Failure),
    /// The same, and the budget has no retry left.
    Rejected(Failure),
    /// The client is at fault: no attempt can help.
    Client(Failure),
}

impl Attempts<'_> {
    /// Ends with an answer, after `max_attempts` endpoints, or by `total_timeout`.
    pub(super) async fn run(&mut self) -> Result<Answered, Failure> {
        let config = self.upstream.config();
        let mut deadline = Instant::now() + config.total_timeout;
        // Allocates nothing when the first endpoint answers.
        let mut tried: Vec<u64> = Vec::new();
        // An answer with a status that another endpoint may better. It is better than none.
        let mut fallback: Option<Answered> = None;
        let mut last = Failure::NoEndpoint;
        // Ends: `count` grows with each round up to `max_attempts`.
        while self.count < config.retry.max_attempts {
            let context = self.context.with_excluded(&tried);
            let now = self.inner.clock.now();
            let Some(mut pick) = self.upstream.balancer().pick(&context, now) else { break };
            self.count += 1;
            let id = pick.endpoint().id();
            let body = self.body;
            let awaited = Awaited { pick: &mut pick, body, inner: self.inner };
            let tried_one = self.try_endpoint(awaited.pick, &mut deadline).await;
            std::mem::forget(awaited);
            let failed = match tried_one {
                Ok((response, lease)) => {
                    let is_failed = config.retry.statuses.contains(&response.status());
                    let mut answered = Answered { response, lease, pick };
                    if !is_failed || self.count == config.retry.max_attempts || !self.may_retry() {
                        self.discard(fallback);
                        return Ok(answered);
                    }
                    answered.pick.ignore_duration();
                    self.discard(fallback.replace(answered));
                    tried.push(id);
                    continue;
                }
                Err(failed) => failed,
            };
            tried.push(id);
            let is_unsent = match failed {
                // Cancelled: the endpoint is not at fault, and was not what was waited for.
                Failed::Client(failure) => {
                    pick.cancel(now);
                    return Err(failure);
                }
                Failed::Exhausted => {
                    pick.cancel(now);
                    last = Failure::Exhausted;
                    true
                }
                Failed::Unsent(failure) | Failed::Unknown(failure) | Failed::Rejected(failure) => {
                    pick.finish(self.inner.clock.now(), Outcome::Failure);
                    last = failure;
                    if let Failed::Rejected(_) = failed {
                        break;
                    }
                    matches!(failed, Failed::Unsent(_))
                }
            };
            let is_last = self.count == config.retry.max_attempts || Instant::now() >= deadline;
            if is_last || !(is_unsent || self.may_retry()) {
                break;
            }
        }
        fallback.ok_or(last)
    }

    /// Ends the attempt that an answer came from, when another answer is used.
    fn discard(&self, answered: Option<Answered>) {
        if let Some(answered) = answered {
            answered.pick.finish(self.inner.clock.now(), Outcome::Failure);
        }
    }

    fn may_retry(&mut self) -> bool {
        self.may_repeat() && self.active.try_retry()
    }

    /// Whether the request may take effect twice, and all of it is still there.
    fn may_repeat(&self) -> bool {
        self.upstream.config().retry.methods.contains(&self.head.method)
            && self.body.is_none_or(|body| body.is_untouched())
    }

    /// Sends the request to one endpoint; once more on a fresh connection if one that was open
    /// before ends as it is used. If the backend may have seen the request, that is a retry.
    async fn try_endpoint(
        &mut self,
        pick: &Pick,
        deadline: &mut Instant,
    ) -> Result<(Response<Incoming>, Lease), Failed> {
        let config = self.upstream.config();
        let pool = self.upstream.pool(pick.endpoint());
        let mut fresh = false;
        // Ends: the second round uses a fresh connection, and returns.
        loop {
            let mut lease = Arc::clone(&pool).lease(fresh).await.map_err(|error| match error {
                ConnectError::Timeout => Failed::Unsent(Failure::ConnectTimeout),
                ConnectError::Failed => Failed::Unsent(Failure::Connect),
                ConnectError::Local => Failed::Exhausted,
            })?;
            let is_reused = lease.is_reused;
            let request = self.request();
            let sending = lease.send(request);
            let sent = self.await_head(sending, config, deadline).await?;
            let error = match sent {
                Ok(response) => return Ok((response, lease)),
                Err(error) => error,
            };
            let is_unsent = error.unsent.is_some() || error.is_refused();
            let is_whole = self.body.is_none_or(|body| body.is_untouched());
            let is_unsent = is_unsent && is_whole;
            let has_disconnected = error.has_disconnected();
            if has_disconnected {
                lease.discard();
            }
            if is_reused && !fresh {
                fresh = true;
                if is_unsent {
                    continue;
                }
                if has_disconnected && self.may_repeat() {
                    if self.active.try_retry() {
                        continue;
                    }
                    return Err(Failed::Rejected(Failure::Backend));
                }
            }
            return Err(self.failed(is_unsent));
        }
    }

    fn failed(&self, is_unsent: bool) -> Failed {
        match self.body.and_then(|body| body.error()) {
            Some(BodyError::ClientTimeout) => Failed::Client(Failure::RequestTimeout),
            Some(_) => Failed::Client(Failure::RequestBody),
            None if is_unsent => Failed::Unsent(Failure::Backend),
            None => Failed::Unknown(Failure::Backend),
        }
    }

    /// Waits for the head. While the body of the request advances, the time begins anew.
    async fn await_head(
        &self,
        sending: impl Future<Output = Result<Response<Incoming>, SendError>>,
        config: &UpstreamConfig,
        deadline: &mut Instant,
    ) -> Result<Result<Response<Incoming>, SendError>, Failed> {
        tokio::pin!(sending);
        let progress = || self.body.map_or(0, |body| body.progress());
        let mut before = progress();
        let mut until = (Instant::now() + config.try_timeout).min(*deadline);
        // Ends: a round without progress ends it, and bodies without end are the client's choice.
        loop {
            if let Ok(sent) = timeout_at(until, &mut sending).await {
                return Ok(sent);
            }
            let now = progress();
            if now == before {
                return Err(Failed::Unknown(Failure::Timeout));
            }
            before = now;
            until = Instant::now() + config.try_timeout;
            *deadline = (*deadline).max(until);
        }
    }

    fn request(&mut self) -> Request<RequestBody> {
        let body = match self.body {
            None => RequestBody::empty(),
            Some(shared) => shared.attempt(self.expects_continue),
        };
        let mut request = Request::new(body);
        *request.method_mut() = self.head.method.clone();
        *request.uri_mut() = self.head.uri.clone();
        *request.version_mut() = self.head.version;
        *request.headers_mut() = self.head.headers();
        if let (true, Some(shared)) = (self.expects_continue, self.body) {
            let shared = Arc::clone(shared);
            hyper::ext::on_informational(&mut request, move |response| {
                if response.status() == hyper::StatusCode::CONTINUE {
                    shared.release();
                }
            });
        }
        request
    }
}
