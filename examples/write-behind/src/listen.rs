//! Serves HTTP with a bound on the connections, and on the time that a client may take.
//!
//! Without them, clients that ask for nothing and clients whose bodies drip hold a connection for
//! ever, and with it a descriptor, until the process has none left for its own files.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::{BoxError, Router, middleware};
use hyper::body::{Body as _, Frame, SizeHint};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Sleep, sleep, timeout};

/// Pause after the system has refused a connection: it has no descriptors, for example.
const PAUSE: Duration = Duration::from_secs(1);

/// What clients may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Connections at once, each a descriptor. Others wait in the system's queue.
    pub(crate) connections: usize,
    /// So many of them are spare: with so few left, a connection is for one request that comes
    /// soon, so that a probe gets through while idle ones hold all the others.
    pub(crate) spare: usize,
    /// Time for the head of a request, from the answer to the one before. Load balancers close idle
    /// connections after 60 s: this is longer, so that none sends into one that is being closed.
    pub(crate) head: Duration,
    /// The same for a spare connection.
    pub(crate) spare_head: Duration,
    /// Time for the body of a request.
    pub(crate) body: Duration,
    /// The age at which a connection is closed when it has been answered, ...
    pub(crate) age: Duration,
    /// ... and how long that may take: a client that does not read its answers has no longer.
    pub(crate) last_answer: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 512,
            spare: 64,
            head: Duration::from_secs(75),
            spare_head: Duration::from_secs(5),
            body: Duration::from_secs(30),
            age: Duration::from_secs(600),
            last_answer: Duration::from_secs(120),
        }
    }
}

/// Serves `app` until `ended`. Then it takes no more connections, and returns when those that it
/// has are answered: the caller bounds that wait.
pub(crate) async fn serve(
    listener: TcpListener,
    app: Router,
    limits: Limits,
    ended: impl Future<Output = ()>,
) {
    let app = app.layer(middleware::map_request(move |request: Request| async move {
        request.map(|body| Timed::limit(body, limits.body))
    }));
    let places = Arc::new(Semaphore::new(limits.connections));
    let (ending, told) = watch::channel(false);
    let mut ended = pin!(ended);
    // Ends with `ended`; the semaphore is never closed.
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, accept(&listener).await)
        };
        let (place, stream) = tokio::select! {
            next = next => next,
            () = &mut ended => break,
        };
        let is_spare = places.available_permits() < limits.spare;
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(if is_spare { limits.spare_head } else { limits.head })
            .keep_alive(!is_spare)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app.clone()));
        let mut told = told.clone();
        tokio::spawn(async move {
            let mut connection = pin!(connection);
            tokio::select! {
                // An error is the client's: it has gone, or asked for nothing in time.
                _ = connection.as_mut() => return,
                _ = told.wait_for(|is_ending| *is_ending) => {}
                () = sleep(limits.age) => {}
            }
            connection.as_mut().graceful_shutdown();
            let _ = timeout(limits.last_answer, connection).await;
            drop(place);
        });
    }
    drop(listener);
    ending.send_replace(true);
    drop(places.acquire_many(limits.connections as u32).await);
}

async fn accept(listener: &TcpListener) -> TcpStream {
    // Ends with the next connection.
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                sleep(PAUSE).await;
            }
        }
    }
}

/// A body that fails unless it arrives in time.
struct Timed {
    body: Body,
    until: Pin<Box<Sleep>>,
}

impl Timed {
    fn limit(body: Body, time: Duration) -> Body {
        if body.is_end_stream() {
            return body;
        }
        Body::new(Self { body, until: Box::pin(sleep(time)) })
    }
}

impl hyper::body::Body for Timed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            return Poll::Ready(frame.map(|frame| frame.map_err(BoxError::from)));
        }
        let late = || Some(Err("the body did not arrive in time".into()));
        self.until.as_mut().poll(cx).map(|()| late())
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
