//! The processes of the demonstration, and requests to them.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use axum::http::Request;
use bytes::Bytes;
use clap::ValueEnum;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::Error;
use crate::args::Form;

/// How long a process may take to say where it listens.
const START_WAIT: Duration = Duration::from_secs(30);
/// How long a process may take to end by itself.
const END_WAIT: Duration = Duration::from_secs(30);
/// How long an answer may take; `POST /orders` waits 10 s.
const ANSWER_WAIT: Duration = Duration::from_secs(15);
/// Few, so that a compensation is soon stuck.
const ATTEMPTS: &str = "4";

/// A running process.
pub(super) struct Process {
    child: Child,
    pub(super) address: SocketAddr,
    /// What it says of itself.
    said: String,
}

/// Starts the stand-ins of the services.
pub(super) async fn services() -> Result<Process, Error> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["services", "--listen", "127.0.0.1:0", "--exit-with-parent"]);
    Process::start(command).await
}

/// Starts the process that takes orders in a form, on a journal.
pub(super) async fn orders(
    form: Form,
    folder: &Path,
    services: SocketAddr,
) -> Result<Process, Error> {
    let form = form.to_possible_value().ok_or("the form has no name")?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["serve", "--form", form.get_name(), "--listen", "127.0.0.1:0"])
        .args(["--exit-with-parent", "--attempts", ATTEMPTS])
        .args(["--services", &services.to_string(), "--data"])
        .arg(folder);
    Process::start(command).await
}

impl Process {
    async fn start(mut command: Command) -> Result<Self, Error> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // It says that an order waits for an operator.
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .process_group(0)
            .spawn()?;
        let stdout = child.stdout.take().ok_or("the process has no standard output")?;
        let mut lines = BufReader::new(stdout).lines();
        let line = timeout(START_WAIT, lines.next_line()).await??;
        let parts = line.as_deref().and_then(|line| {
            let (address, said) = line.strip_prefix("listening on http://")?.split_once(", ")?;
            Some((address.parse().ok()?, said.to_owned()))
        });
        let (address, said) = parts.ok_or_else(|| format!("a process did not start: {line:?}"))?;
        Ok(Self { child, address, said })
    }

    /// Orders that it found under way at its start.
    pub(super) fn open_orders(&self) -> Result<u64, Error> {
        Ok(self.said.split(' ').next().unwrap_or_default().parse()?)
    }

    /// By SIGKILL.
    pub(super) async fn kill(&mut self) -> Result<(), Error> {
        Ok(self.child.kill().await?)
    }

    /// Closes its standard input, and waits for its end.
    pub(super) async fn end(mut self) -> Result<(), Error> {
        drop(self.child.stdin.take());
        let status = timeout(END_WAIT, self.child.wait()).await??;
        if status.success() { Ok(()) } else { Err(format!("a process ended: {status}").into()) }
    }
}

/// One request, and its answer in JSON; null where it is none.
pub(super) async fn ask(
    address: SocketAddr,
    method: &str,
    path: &str,
    key: &str,
    body: &Value,
) -> Result<(u16, Value), Error> {
    let mut request = Request::builder()
        .method(method)
        .uri(format!("http://{address}{path}"))
        .header("content-type", "application/json");
    if !key.is_empty() {
        request = request.header("idempotency-key", key);
    }
    let body = if body.is_null() { Vec::new() } else { serde_json::to_vec(body)? };
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let answer = async {
        let answer = client.request(request.body(Full::from(body))?).await?;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await?.to_bytes();
        Ok::<_, Error>((status, serde_json::from_slice(&body).unwrap_or_default()))
    };
    timeout(ANSWER_WAIT, answer).await?
}
