//! Bounds how long a response of HTTP/2 waits for a client that grants no window.
//!
//! hyper takes a frame of the body and waits until the client's window has room for it. A client
//! that keeps its connection alive and grants none would hold its connection, and with a response
//! of a backend also the request, its endpoint and the connection to it. Each stream therefore runs
//! in a task that resets it when hyper has not asked for more of the body for `body_timeout`.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::Poll;
use std::time::Duration;

use hyper::rt::Executor;

use crate::l7::body::has_stalled;

tokio::task_local! {
    static WATCH: Arc<StreamWatch>;
}

/// How far the response of a stream is. Read and written by the task of the stream only.
#[derive(Debug, Default)]
pub(super) struct StreamWatch {
    /// Frames of the body that hyper took.
    frames: AtomicU64,
    /// Whether hyper has yet to ask for the next frame.
    waits_for_client: AtomicBool,
}

impl StreamWatch {
    /// The watch of the stream whose task this is; `None` on a connection of HTTP/1.
    pub(super) fn current() -> Option<Arc<Self>> {
        WATCH.try_with(Arc::clone).ok()
    }

    /// hyper has taken the head or a frame, and asks for the next when there is room.
    pub(super) fn handed_out(&self) {
        self.frames.fetch_add(1, Relaxed);
        self.waits_for_client.store(true, Relaxed);
    }

    /// hyper has asked for a frame, and the backend has none.
    pub(super) fn waits_for_backend(&self) {
        self.waits_for_client.store(false, Relaxed);
    }
}

/// Runs the streams of one connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct StreamExecutor {
    /// Time without room in the client's window after which a stream is reset.
    pub(super) timeout: Duration,
}

impl<F> Executor<F> for StreamExecutor
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, stream: F) {
        tokio::spawn(bounded(stream, self.timeout));
    }
}

/// Drops `stream`, which resets it, when its client grants no window for `timeout`.
async fn bounded<F: Future>(stream: F, timeout: Duration) {
    let watch = Arc::new(StreamWatch::default());
    let mut stream = pin!(WATCH.scope(Arc::clone(&watch), stream));
    let mut stall = None;
    let mut seen = 0;
    poll_fn(|cx| {
        if stream.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let frames = watch.frames.load(Relaxed);
        if !watch.waits_for_client.load(Relaxed) || frames != seen {
            stall = None;
        }
        seen = frames;
        if watch.waits_for_client.load(Relaxed) && has_stalled(&mut stall, timeout, cx) {
            return Poll::Ready(());
        }
        Poll::Pending
    })
    .await;
}
