//! The server of the demo: healthy, then slow, overloaded, hanging, and healthy again.

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{HeaderValue, RETRY_AFTER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};
use voussoir_breaker::Deadline;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Well,
    Slow,
    Overloaded,
    Hanging,
}

impl fmt::Display for Mood {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Well => "is well",
            Self::Slow => "is slow",
            Self::Overloaded => "is overloaded",
            Self::Hanging => "hangs",
        })
    }
}

pub(crate) struct Server {
    start: Instant,
    run: Duration,
    requests: AtomicU64,
}

impl Server {
    /// A server whose moods are spread over the length of the run.
    pub(crate) fn new(run: Duration) -> Arc<Self> {
        Arc::new(Self { start: Instant::now(), run, requests: AtomicU64::new(0) })
    }

    pub(crate) fn mood(&self) -> Mood {
        match self.start.elapsed().as_secs_f64() / self.run.as_secs_f64() {
            0.25..0.40 => Mood::Slow,
            0.40..0.55 => Mood::Overloaded,
            0.55..0.70 => Mood::Hanging,
            _ => Mood::Well,
        }
    }

    /// Number of requests that have arrived.
    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    /// Binds a loopback port and serves it until the runtime ends.
    pub(crate) async fn serve(self: &Arc<Self>) -> std::io::Result<SocketAddr> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let this = Arc::clone(self);
        tokio::spawn(async move {
            loop {
                // A connection that could not be accepted is an error for its client only.
                let Ok((stream, _)) = listener.accept().await else { continue };
                let this = Arc::clone(&this);
                tokio::spawn(async move {
                    let service = service_fn(|request| this.answer(request));
                    // Clients that time out break their connections; that is expected.
                    let _ =
                        http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Ok(address)
    }

    async fn answer<B>(&self, request: Request<B>) -> Result<Response<Full<Bytes>>, Infallible> {
        let number = self.requests.fetch_add(1, Relaxed);
        let deadline = request.headers().get("grpc-timeout");
        let deadline = deadline
            .and_then(|value| value.to_str().ok())
            .and_then(Deadline::from_grpc_timeout)
            .unwrap_or_else(|| Deadline::after(Duration::from_secs(10)));
        // One request in fifty is slow, as if its disk were: hedging helps there.
        let usual = if number.is_multiple_of(50) { 150 } else { 10 + number % 10 };
        let time = match self.mood() {
            Mood::Well => usual,
            Mood::Slow => usual + 300,
            Mood::Overloaded => 2,
            Mood::Hanging => 60_000,
        };
        // The client does not wait past its deadline, so the server does not work past it.
        if timeout(deadline.remaining(), sleep(Duration::from_millis(time))).await.is_err() {
            return Ok(reply(StatusCode::GATEWAY_TIMEOUT, "out of time"));
        }
        if self.mood() == Mood::Overloaded {
            let mut busy = reply(StatusCode::SERVICE_UNAVAILABLE, "busy");
            busy.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
            return Ok(busy);
        }
        Ok(reply(StatusCode::OK, "today's news"))
    }
}

fn reply(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response
}
