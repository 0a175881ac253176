//! The body of a request, on its way from the client to whichever attempt reads it.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use parking_lot::Mutex;
use tokio::time::{Sleep, sleep};

/// Why a body ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BodyError {
    #[error("the client's body ended early")]
    Client,
    #[error("the client sent nothing of the body in time")]
    ClientTimeout,
    #[error("the backend's body ended early")]
    Backend,
    #[error("the backend sent nothing of the body in time")]
    BackendTimeout,
    #[error("another attempt reads the body")]
    Superseded,
}

/// Time for which a backend that was sent `Expect: 100-continue` may stay silent before it gets
/// the body anyway (RFC 9110 §10.1.1). The value of Go's transport.
const CONTINUE_TIMEOUT: Duration = Duration::from_secs(1);

/// Polls a timer that runs while nothing happens. Returns true when `timeout` has passed.
pub(super) fn has_stalled(
    timer: &mut Option<Pin<Box<Sleep>>>,
    timeout: Duration,
    cx: &mut Context<'_>,
) -> bool {
    let timer = timer.get_or_insert_with(|| Box::pin(sleep(timeout)));
    timer.as_mut().poll(cx).is_ready()
}

/// The body of one request. Attempts read it through a [`RequestBody`] each; only the latest may.
pub(super) struct SharedBody {
    state: Mutex<State>,
    timeout: Duration,
}

struct State {
    body: Incoming,
    /// The attempt that may read.
    attempt: u32,
    /// Frames that were handed out. A body of which nothing was is complete for the next attempt.
    frames: u64,
    has_ended: bool,
    error: Option<BodyError>,
    /// Whether the backend has yet to ask for the body with 100.
    is_held_back: bool,
    waker: Option<Waker>,
}

impl fmt::Debug for SharedBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedBody").finish_non_exhaustive()
    }
}

impl SharedBody {
    pub(super) fn new(body: Incoming, timeout: Duration) -> Arc<Self> {
        let state = State {
            body,
            attempt: 0,
            frames: 0,
            has_ended: false,
            error: None,
            is_held_back: false,
            waker: None,
        };
        Arc::new(Self { state: Mutex::new(state), timeout })
    }

    /// The body for a new attempt. Handles of earlier attempts fail from here on.
    pub(super) fn attempt(self: &Arc<Self>, hold_back: bool) -> RequestBody {
        let mut state = self.state.lock();
        state.attempt += 1;
        state.is_held_back = hold_back;
        let attempt = state.attempt;
        let waker = state.waker.take();
        drop(state);
        // Wakes the handle of the earlier attempt, which fails.
        waker.into_iter().for_each(Waker::wake);
        RequestBody { shared: Some(Arc::clone(self)), attempt, stall: None, continued: None }
    }

    /// Lets the backend have the body that was held back.
    pub(super) fn release(&self) {
        let mut state = self.state.lock();
        state.is_held_back = false;
        let waker = state.waker.take();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Whether nothing was read from the client, so that another attempt can send all of it.
    pub(super) fn is_untouched(&self) -> bool {
        let state = self.state.lock();
        state.frames == 0 && state.error.is_none()
    }

    /// Grows while the body advances, and once more at its end.
    pub(super) fn progress(&self) -> u64 {
        let state = self.state.lock();
        state.frames + u64::from(state.has_ended)
    }

    pub(super) fn has_ended(&self) -> bool {
        self.state.lock().has_ended
    }

    pub(super) fn error(&self) -> Option<BodyError> {
        self.state.lock().error
    }
}

/// What one attempt sends as its body.
#[derive(Debug)]
pub(super) struct RequestBody {
    /// `None`: there is no body.
    shared: Option<Arc<SharedBody>>,
    attempt: u32,
    stall: Option<Pin<Box<Sleep>>>,
    continued: Option<Pin<Box<Sleep>>>,
}

impl RequestBody {
    pub(super) fn empty() -> Self {
        Self { shared: None, attempt: 0, stall: None, continued: None }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let Some(shared) = &this.shared else { return Poll::Ready(None) };
        let mut state = shared.state.lock();
        if state.attempt != this.attempt {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        if state.is_held_back {
            if !has_stalled(&mut this.continued, CONTINUE_TIMEOUT, cx) {
                state.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            state.is_held_back = false;
        }
        if state.has_ended {
            return Poll::Ready(None);
        }
        // Ends: each round takes a frame of the client's, and only empty ones are dropped.
        loop {
            let polled = Pin::new(&mut state.body).poll_frame(cx);
            if polled.is_pending() {
                if has_stalled(&mut this.stall, shared.timeout, cx) {
                    state.error = Some(BodyError::ClientTimeout);
                    return Poll::Ready(Some(Err(BodyError::ClientTimeout)));
                }
                state.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            this.stall = None;
            match ready!(polled) {
                None => {
                    state.has_ended = true;
                    return Poll::Ready(None);
                }
                Some(Err(_)) => {
                    state.error = Some(BodyError::Client);
                    return Poll::Ready(Some(Err(BodyError::Client)));
                }
                // An empty chunk would end the body of HTTP/1 early.
                Some(Ok(frame)) if frame.data_ref().is_some_and(Bytes::is_empty) => {}
                Some(Ok(frame)) => {
                    state.frames += 1;
                    state.has_ended = state.body.is_end_stream();
                    return Poll::Ready(Some(Ok(frame)));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.shared.as_ref().is_none_or(|shared| shared.has_ended())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.shared {
            None => SizeHint::with_exact(0),
            Some(shared) => shared.state.lock().body.size_hint(),
        }
    }
}
