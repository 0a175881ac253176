//! The load: clients that transfer over HTTP, ask again with the same key until they are told what
//! became of a transfer, and keep a ledger.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::{Request, StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use parking_lot::Mutex;
use tokio::sync::{RwLock, RwLockWriteGuard, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::Error;
use crate::bank::{Account, Bank, Transfer};
use crate::http::KEY;
use crate::transfers::Numbers;

/// Accounts of each bank, and what each holds at first.
pub(super) const ACCOUNTS: i64 = 40;
pub(super) const OPENED_CENTS: i64 = 100_000;
const CLIENTS: u64 = 12;
/// The pause of a client after each attempt.
const PAUSE: Duration = Duration::from_millis(10);
/// The mean pause before a client asks again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// The longest that one attempt may take.
const ATTEMPT_WAIT: Duration = Duration::from_secs(8);
/// A transfer whose end is not known within this time ends the demonstration with an error.
const PATIENCE: Duration = Duration::from_secs(60);

/// What clients were told.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) done: HashMap<String, Transfer>,
    pub(super) refused: HashSet<String>,
    /// Attempts after which a client asked again.
    pub(super) repeats: u64,
    /// Transfers that a later attempt found done.
    pub(super) found: u64,
    /// Times from the first attempt to the acknowledgement, since they were last taken.
    pub(super) latencies: Vec<Duration>,
}

/// Running clients.
#[derive(Debug)]
pub(super) struct Clients {
    tasks: JoinSet<Result<(), Error>>,
    stop: watch::Sender<bool>,
    /// Each attempt reads it.
    gate: Arc<RwLock<()>>,
    pub(super) ledger: Arc<Mutex<Ledger>>,
}

impl Clients {
    /// Starts all clients. `addresses` are where the service, or each node of it, listens now.
    pub(super) fn start(addresses: &watch::Receiver<Vec<SocketAddr>>, seed: u64) -> Self {
        let (stop, gate, ledger) = (watch::Sender::new(false), Arc::default(), Arc::default());
        let mut tasks = JoinSet::new();
        for number in 0..CLIENTS {
            let client = TransferClient {
                number,
                random: fastrand::Rng::with_seed(seed ^ (number << 32)),
                http: http_client(),
                addresses: addresses.clone(),
                at: 0,
                gate: Arc::clone(&gate),
                ledger: Arc::clone(&ledger),
            };
            tasks.spawn(client.run(stop.subscribe()));
        }
        Self { tasks, stop, gate, ledger }
    }

    /// Waits for the attempts that are under way; no other begins while the guard lives.
    pub(super) async fn pause(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write().await
    }

    /// Returns an error if a client has failed.
    pub(super) fn check(&mut self) -> Result<(), Error> {
        match self.tasks.try_join_next() {
            None => Ok(()),
            Some(Ok(Err(error))) => Err(error),
            Some(ended) => Err(format!("a client ended before it was stopped: {ended:?}").into()),
        }
    }

    /// Waits until the end of every transfer is known.
    pub(super) async fn finish(mut self) -> Result<Ledger, Error> {
        self.stop.send_replace(true);
        while let Some(client) = self.tasks.join_next().await {
            client??;
        }
        Ok(std::mem::take(&mut self.ledger.lock()))
    }
}

type Http = Client<HttpConnector, Full<Bytes>>;

fn http_client() -> Http {
    Client::builder(TokioExecutor::new()).build_http()
}

struct TransferClient {
    number: u64,
    random: fastrand::Rng,
    http: Http,
    addresses: watch::Receiver<Vec<SocketAddr>>,
    /// Which of the addresses is asked: the next one after an attempt that was not answered.
    at: usize,
    gate: Arc<RwLock<()>>,
    ledger: Arc<Mutex<Ledger>>,
}

impl TransferClient {
    async fn run(mut self, stop: watch::Receiver<bool>) -> Result<(), Error> {
        let mut count = 0_u64;
        // Ends: when it is stopped, or with an error.
        while !*stop.borrow() {
            let id = format!("client-{}.{count}", self.number);
            count += 1;
            let transfer = self.draw();
            self.bring_about(id, transfer).await?;
            sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Most transfers go from one bank to the other; some ask for more than there is.
    fn draw(&mut self) -> Transfer {
        let (from, is_far) = (self.random.usize(..2), self.random.u32(..100) < 85);
        let to = if is_far { 1 - from } else { from };
        let (source, step) = (self.random.i64(0..ACCOUNTS), self.random.i64(1..ACCOUNTS));
        let from = Account { bank: Bank::ALL[from], number: source };
        let to = Account { bank: Bank::ALL[to], number: (source + step) % ACCOUNTS };
        let is_refused = self.random.u32(..100) < 5;
        let cents = if is_refused { 1_000_000_000 } else { self.random.i64(1..=500) };
        Transfer { from, to, cents }
    }

    /// Asks until it is told what became of the transfer, and enters it into the ledger.
    async fn bring_about(&mut self, id: String, transfer: Transfer) -> Result<(), Error> {
        let began = Instant::now();
        // Ends: with an answer, or after `PATIENCE`.
        loop {
            let attempt = {
                let _open = self.gate.read().await;
                timeout(ATTEMPT_WAIT, self.attempt(&id, &transfer)).await
            };
            match attempt {
                Ok(Ok((StatusCode::OK, body))) => {
                    let body: serde_json::Value = serde_json::from_slice(&body)?;
                    let mut ledger = self.ledger.lock();
                    ledger.found += u64::from(body["repeated"] == true);
                    ledger.latencies.push(began.elapsed());
                    ledger.done.insert(id, transfer);
                    return Ok(());
                }
                Ok(Ok((StatusCode::CONFLICT, _))) => {
                    self.ledger.lock().refused.insert(id);
                    return Ok(());
                }
                Ok(Ok((status, body))) if status != StatusCode::SERVICE_UNAVAILABLE => {
                    let body = String::from_utf8_lossy(&body);
                    return Err(format!("{id} {transfer:?}: {status} {body}").into());
                }
                _ if began.elapsed() > PATIENCE => {
                    let seconds = PATIENCE.as_secs();
                    let why = format!("{id} {transfer:?}: no answer within {seconds} s: ");
                    return Err(format!("{why}{attempt:?}").into());
                }
                // Rejected for now, without an answer in time, or the service was killed.
                _ => self.ledger.lock().repeats += 1,
            }
            self.at += 1;
            sleep(RETRY_PAUSE.mul_f64(0.5 + self.random.f64())).await;
        }
    }

    async fn attempt(&self, id: &str, transfer: &Transfer) -> Result<(StatusCode, Bytes), Error> {
        let address = {
            let addresses = self.addresses.borrow();
            addresses[self.at % addresses.len()]
        };
        let request = Request::post(format!("http://{address}/transfers"))
            .header("content-type", "application/json")
            .header(KEY, id)
            .body(Full::from(serde_json::to_vec(transfer)?))?;
        let answer = self.http.request(request).await?;
        Ok((answer.status(), answer.into_body().collect().await?.to_bytes()))
    }
}

/// What the service says about itself.
pub(super) async fn numbers(address: SocketAddr) -> Result<Numbers, Error> {
    let request = Request::get(format!("http://{address}/stats")).body(Full::default())?;
    let answer = http_client().request(request).await?;
    Ok(serde_json::from_slice(&answer.into_body().collect().await?.to_bytes())?)
}
