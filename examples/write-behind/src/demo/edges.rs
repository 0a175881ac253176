//! The load: edges that report views over HTTP, send a report again until it is acknowledged, and
//! keep a ledger of what was.

use std::collections::{HashMap, VecDeque};
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
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::Error;
use crate::counters::{Count, Key};
use crate::http::{Numbers, Posted};

/// Pages that are viewed.
const PAGES: u64 = 1_600;
const EDGES: u8 = 8;
/// Reports of one edge that are under way at once. A page of an edge belongs to one lane, which
/// sends its reports one after the other.
const LANES: u64 = 8;
/// The pause of a lane after each attempt.
const PAUSE: Duration = Duration::from_millis(8);
/// The mean pause before a report is sent again.
const RETRY_PAUSE: Duration = Duration::from_millis(400);
/// Reports of one lane that wait to be sent again. At the limit no page is viewed.
const MAX_WAITING: usize = 64;
/// The longest that one attempt may take.
const ATTEMPT_WAIT: Duration = Duration::from_secs(5);
/// A report that is not acknowledged within this time ends the demonstration with an error.
const PATIENCE: Duration = Duration::from_secs(40);

/// What was acknowledged: the last answer for each counter.
pub(super) type Ledger = HashMap<Key, Count>;

/// What all edges count.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    pub(super) reports: u64,
    pub(super) views: u64,
    /// Attempts that were not acknowledged.
    pub(super) repeats: u64,
    /// Time from the first attempt to the acknowledgement, since they were last taken.
    pub(super) latencies: Vec<Duration>,
}

impl Traffic {
    /// Reports that were acknowledged, and the views in them.
    pub(super) fn acknowledged(&self) -> (u64, u64) {
        (self.reports, self.views)
    }
}

/// Running edges.
#[derive(Debug)]
pub(super) struct Edges {
    lanes: JoinSet<Result<Ledger, Error>>,
    stop: watch::Sender<bool>,
    pub(super) traffic: Arc<Mutex<Traffic>>,
}

impl Edges {
    /// Starts all lanes. `address` is where the service listens now.
    pub(super) fn start(address: &watch::Receiver<SocketAddr>) -> Self {
        let (stop, traffic) = (watch::Sender::new(false), Arc::default());
        let mut lanes = JoinSet::new();
        for (edge, lane) in (0..EDGES).flat_map(|edge| (0..LANES).map(move |lane| (edge, lane))) {
            let lane = Lane {
                edge,
                remainder: lane,
                random: fastrand::Rng::with_seed(u64::from(edge) * LANES + lane),
                http: http_client(),
                address: address.clone(),
                traffic: Arc::clone(&traffic),
                ledger: Ledger::new(),
                waiting: VecDeque::new(),
            };
            lanes.spawn(lane.run(stop.subscribe()));
        }
        Self { lanes, stop, traffic }
    }

    /// An error as soon as a lane has failed. Never `Ok`: lanes run until they are stopped.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn failure(&mut self) -> Error {
        match self.lanes.join_next().await {
            Some(Ok(Err(error))) => error,
            ended => format!("a lane ended before it was stopped: {ended:?}").into(),
        }
    }

    /// Waits until every report that was sent is acknowledged, and returns the ledger.
    pub(super) async fn finish(mut self) -> Result<Ledger, Error> {
        self.stop.send_replace(true);
        let mut ledger = Ledger::new();
        while let Some(lane) = self.lanes.join_next().await {
            ledger.extend(lane??);
        }
        Ok(ledger)
    }
}

type Http = Client<HttpConnector, Full<Bytes>>;

fn http_client() -> Http {
    Client::builder(TokioExecutor::new()).build_http()
}

#[derive(Debug)]
struct Lane {
    edge: u8,
    /// Its pages are those whose number leaves this remainder by [`LANES`].
    remainder: u64,
    random: fastrand::Rng,
    http: Http,
    address: watch::Receiver<SocketAddr>,
    traffic: Arc<Mutex<Traffic>>,
    ledger: Ledger,
    /// Reports that are not acknowledged yet, the oldest first; each of another page.
    waiting: VecDeque<Waiting>,
}

/// A report that is not acknowledged yet.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    key: Key,
    views: u64,
    /// The first attempt, and the time of the next one.
    began: Instant,
    again: Instant,
}

impl Lane {
    async fn run(mut self, mut stop: watch::Receiver<bool>) -> Result<Ledger, Error> {
        // Ends: when it is stopped, or with an error.
        while !*stop.borrow_and_update() {
            let next = self.due().or_else(|| self.new_report());
            if let Some(report) = next {
                self.send(report).await?;
            }
            tokio::time::sleep(PAUSE).await;
        }
        // Ends: each report is acknowledged, or its patience is over.
        while let Some(report) = self.waiting.pop_front() {
            tokio::time::sleep_until(report.again.into()).await;
            self.send(report).await?;
        }
        Ok(self.ledger)
    }

    /// The oldest report that is to be sent again now.
    fn due(&mut self) -> Option<Waiting> {
        let oldest = self.waiting.front()?;
        if oldest.again > Instant::now() { None } else { self.waiting.pop_front() }
    }

    /// Views of a page that has no report waiting: some pages are viewed much more often than
    /// others. `None` where too many wait, or that page's does.
    fn new_report(&mut self) -> Option<Waiting> {
        let skewed = self.random.f64().powi(4);
        let page = (skewed * (PAGES / LANES) as f64) as u64 * LANES + self.remainder;
        let (key, views) = (Key { page, edge: self.edge }, self.random.u64(1..=5));
        let waits = self.waiting.len() == MAX_WAITING
            || self.waiting.iter().any(|report| report.key == key);
        let now = Instant::now();
        (!waits).then_some(Waiting { key, views, began: now, again: now })
    }

    /// Sends one report. Enters it into the ledger when it is acknowledged, else among those that
    /// wait.
    async fn send(&mut self, report: Waiting) -> Result<(), Error> {
        let Waiting { key, views, began, .. } = report;
        let last = self.ledger.get(&key).copied().unwrap_or_default();
        let wanted = Count { views: last.views + views, sequence: last.sequence + 1 };
        let posted = Posted { edge: key.edge, sequence: wanted.sequence, views };
        let acknowledged = match timeout(ATTEMPT_WAIT, self.attempt(key.page, posted)).await {
            Ok(Ok((StatusCode::OK, body))) => serde_json::from_slice::<Count>(&body)?,
            Ok(Ok((status, body))) if status != StatusCode::SERVICE_UNAVAILABLE => {
                let body = String::from_utf8_lossy(&body);
                return Err(format!("{key:?} {posted:?}: {status} {body}").into());
            }
            // Rejected for now, not acknowledged in time, or the service was killed.
            _ if began.elapsed() < PATIENCE => {
                self.traffic.lock().repeats += 1;
                let again = Instant::now() + RETRY_PAUSE.mul_f64(0.5 + self.random.f64());
                self.waiting.push_back(Waiting { again, ..report });
                return Ok(());
            }
            _ => {
                let seconds = PATIENCE.as_secs();
                return Err(format!("{key:?} {posted:?}: not acknowledged in {seconds} s").into());
            }
        };
        // A service that had lost or doubled a report would answer something else.
        if acknowledged != wanted {
            return Err(format!("{key:?}: {acknowledged:?} instead of {wanted:?}").into());
        }
        self.ledger.insert(key, acknowledged);
        let mut traffic = self.traffic.lock();
        traffic.reports += 1;
        traffic.views += views;
        traffic.latencies.push(began.elapsed());
        Ok(())
    }

    async fn attempt(&self, page: u64, posted: Posted) -> Result<(StatusCode, Bytes), Error> {
        let address = *self.address.borrow();
        let request = Request::post(format!("http://{address}/views/{page}"))
            .header("content-type", "application/json")
            .body(Full::from(serde_json::to_vec(&posted)?))?;
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

/// The counters that differ, each with what was acknowledged and what the table has.
pub(super) fn differences(
    ledger: &Ledger,
    table: &HashMap<Key, Count>,
) -> Vec<(Key, Count, Count)> {
    let all = ledger.keys().chain(table.keys().filter(|key| !ledger.contains_key(key)));
    let count = |counts: &HashMap<Key, Count>, key| counts.get(key).copied().unwrap_or_default();
    let both = all.map(|key| (*key, count(ledger, key), count(table, key)));
    let mut different: Vec<_> = both.filter(|(_, ours, theirs)| ours != theirs).collect();
    different.sort_unstable_by_key(|(key, ..)| *key);
    different
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_doubled_and_unknown_counts_are_differences() {
        let count = |views| Count { views, sequence: 1 };
        let key = |page| Key { page, edge: 0 };
        let ledger: Ledger = (1..=4).map(|page| (key(page), count(10))).collect();
        assert_eq!(differences(&ledger, &ledger), []);
        let mut table = ledger.clone();
        table.remove(&key(1));
        table.insert(key(2), count(9));
        table.insert(key(3), count(11));
        table.insert(key(5), count(1));
        let found = differences(&ledger, &table);
        assert_eq!(
            found,
            [
                (key(1), count(10), Count::default()),
                (key(2), count(10), count(9)),
                (key(3), count(10), count(11)),
                (key(5), Count::default(), count(1)),
            ]
        );
    }
}
