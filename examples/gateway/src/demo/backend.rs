//! A backend: a process of its own that answers every request with the path that was asked for.
//!
//! | request | answer |
//! |---|---|
//! | `GET /health` | 200 |
//! | `PUT /control/delay/MS` | from now on every answer takes that long |
//! | `GET /slow/…` | the path, after a second |
//! | anything else | the path, after the delay |

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::Uri;
use axum::routing::{get, put};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use super::Error;

/// What a backend prints before its address.
const LISTENING: &str = "listening ";
/// How long a backend may take to start.
const START: Duration = Duration::from_secs(10);
/// What a backend takes for each answer at least, so that a kill finds requests under way.
const WORK: Duration = Duration::from_millis(2);

/// The process: serves until its standard input ends, which happens when its parent has gone.
///
/// # Errors
/// The address is in use.
///
/// # Cancel safety
/// Dropping the future closes the listener.
pub async fn run(listen: SocketAddr) -> Result<(), Error> {
    let listener = TcpListener::bind(listen).await?;
    println!("{LISTENING}{}", listener.local_addr()?);
    let delay_ms = Arc::new(AtomicU64::new(0));
    let app = Router::new()
        .route("/health", get(|| async { "ok" }))
        .route("/control/delay/{ms}", put(set_delay))
        .route("/slow/{*rest}", get(slow))
        .fallback(answer)
        .with_state(delay_ms);
    let (mut input, mut byte) = (tokio::io::stdin(), [0]);
    tokio::select! {
        served = axum::serve(listener, app) => Ok(served?),
        _ = input.read(&mut byte) => Ok(()),
    }
}

async fn set_delay(State(delay): State<Arc<AtomicU64>>, Path(ms): Path<u64>) {
    delay.store(ms, Relaxed);
}

async fn slow(uri: Uri) -> String {
    sleep(Duration::from_secs(1)).await;
    uri.path().to_owned()
}

async fn answer(State(delay): State<Arc<AtomicU64>>, uri: Uri) -> String {
    sleep(WORK + Duration::from_millis(delay.load(Relaxed))).await;
    uri.path().to_owned()
}

/// A backend that this process has started. It ends with this process.
#[derive(Debug)]
pub(super) struct Backend {
    pub(super) address: SocketAddr,
    child: Child,
}

impl Backend {
    /// Starts a backend at an address that the system chooses.
    pub(super) async fn start() -> Result<Self, Error> {
        Self::start_at(([127, 0, 0, 1], 0).into()).await
    }

    async fn start_at(listen: SocketAddr) -> Result<Self, Error> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["backend", "--listen", &listen.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let out = child.stdout.take().ok_or("a backend has no standard output")?;
        let mut lines = BufReader::new(out).lines();
        let line = timeout(START, lines.next_line()).await??.unwrap_or_default();
        let address = line.strip_prefix(LISTENING).ok_or("a backend did not start")?;
        Ok(Self { address: address.parse()?, child })
    }

    /// Ends the process by SIGKILL, with the requests that it serves.
    pub(super) async fn kill(&mut self) -> Result<(), Error> {
        Ok(self.child.kill().await?)
    }

    /// Starts a killed backend again, at the same address.
    pub(super) async fn restart(&mut self) -> Result<(), Error> {
        *self = Self::start_at(self.address).await?;
        Ok(())
    }

    /// Makes every answer take this much longer.
    pub(super) async fn set_delay(&self, delay: Duration) -> Result<(), Error> {
        use tokio::io::AsyncWriteExt as _;
        let mut tcp = TcpStream::connect(self.address).await?;
        let path = format!("/control/delay/{}", delay.as_millis());
        let request = format!(
            "PUT {path} HTTP/1.1\r\nhost: backend\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
        tcp.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await?;
        if answer.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(answer.into()) }
    }
}
