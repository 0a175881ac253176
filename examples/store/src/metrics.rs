//! `GET /metrics`: Prometheus text, through the `metrics` facade.
//!
//! | metric | what it is |
//! |---|---|
//! | `store_is_leader`, `store_term` | 1 where this node leads; the current term |
//! | `store_elections_total` | terms that began while this node ran |
//! | `store_commit_index`, `_applied_index`, `_durable_index`, `_last_index` | progress in the log |
//! | `store_peer_up{peer}` | 1 while this node is connected to the peer; followers connect to each other for elections only |
//! | `store_follower_matched_index{peer}`, `store_follower_lag_entries{peer}` | what the follower has on its disk, and how many entries it is behind the leader's log |
//! | `store_follower_state{peer,state}` | 1 for the state that the follower is in: `probing`, `replicating`, `snapshot`, `lost` |
//! | `store_follower_inflight_messages{peer}`, `store_follower_inflight_bytes{peer}` | entries sent to the follower and not acknowledged |
//! | `store_follower_silent_seconds{peer}`, `store_follower_round_trip_seconds{peer}` | since the follower was last heard; the round trip of heartbeats |
//! | `store_disk_write_seconds` | from handing a write to the journal to durable |
//! | `store_disk_waiting_seconds` | age of the oldest write that is not durable yet |
//! | `store_request_seconds{method}`, `store_requests_total{status}` | HTTP |
//! | `store_keys`, `store_data_bytes` | what is stored |
//! | `store_stored_bytes`, `store_max_data_bytes` | the same with what a snapshot adds to each pair, and how much of it may be stored: more is rejected with 507 |
//! | `store_memory_bytes` | resident memory of the process |
//! | `store_proposals_total`, `store_reads_total`, … | what raft counts |
//! | `store_journal_…` | what the journal counts |
//!
//! Only the leader knows the followers: on the other nodes, and for the leader itself, the gauges
//! `store_follower_…` are `NaN`, which Prometheus leaves out of `max` and `min`.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use metrics::{Counter, Histogram, counter, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use voussoir_raft::FollowerStatus;

use crate::http::App;

/// Upper bounds of the buckets of every latency, in seconds.
const BUCKETS: [f64; 14] =
    [0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0];

/// Handles of the metrics that are recorded per request. The others are set at each scrape.
pub struct Metrics {
    prometheus: PrometheusHandle,
    pub elections: Counter,
    reads: Histogram,
    writes: Histogram,
    deletes: Histogram,
    others: Histogram,
    /// Answers by the first digit of their status.
    answers: [Counter; 5],
}

impl Metrics {
    /// Installs the recorder of this process. Whatever the process records through the `metrics`
    /// facade appears in [`text`].
    ///
    /// # Errors
    /// The process has a recorder already.
    pub fn install() -> Result<Self, Box<dyn std::error::Error>> {
        let suffix = Matcher::Suffix("_seconds".to_owned());
        let builder: Result<PrometheusBuilder, BuildError> =
            PrometheusBuilder::new().set_buckets_for_metric(suffix, &BUCKETS);
        let recorder = builder?.build_recorder();
        let prometheus = recorder.handle();
        metrics::set_global_recorder(recorder)?;
        let seconds =
            |method: &'static str| histogram!("store_request_seconds", "method" => method);
        let answers = ["1xx", "2xx", "3xx", "4xx", "5xx"];
        Ok(Self {
            prometheus,
            elections: counter!("store_elections_total"),
            reads: seconds("GET"),
            writes: seconds("PUT"),
            deletes: seconds("DELETE"),
            others: seconds("other"),
            answers: answers.map(|status| counter!("store_requests_total", "status" => status)),
        })
    }

    /// Moves recorded latencies into the buckets. Without it memory grows while nobody scrapes.
    pub fn run_upkeep(&self) {
        self.prometheus.run_upkeep();
    }

    /// Records a request that was answered.
    pub fn request(&self, method: &Method, status: StatusCode, took: Duration) {
        let seconds = match *method {
            Method::GET => &self.reads,
            Method::PUT => &self.writes,
            Method::DELETE => &self.deletes,
            _ => &self.others,
        };
        seconds.record(took.as_secs_f64());
        let class = usize::from(status.as_u16() / 100).saturating_sub(1);
        if let Some(answers) = self.answers.get(class) {
            answers.increment(1);
        }
    }
}

/// Handles `GET /metrics`.
pub async fn text(State(app): State<Arc<App>>) -> Response {
    record_state(&app);
    let content_type = [(CONTENT_TYPE, "text/plain; version=0.0.4")];
    (content_type, app.metrics.prometheus.render()).into_response()
}

/// States of a follower in `store_follower_state`.
const FOLLOWER_STATES: [&str; 4] = ["probing", "replicating", "snapshot", "lost"];

/// Records one follower; NaN where this node does not know it.
fn record_follower(id: u64, last_index: u64, follower: Option<&FollowerStatus>) {
    let peer = id.to_string();
    let set = |name: &'static str, value: fn(&FollowerStatus, u64) -> f64| {
        let value = follower.map_or(f64::NAN, |follower| value(follower, last_index));
        gauge!(name, "peer" => peer.clone()).set(value);
    };
    set("store_follower_matched_index", |f, _| f.matched as f64);
    set("store_follower_lag_entries", |f, last| last.saturating_sub(f.matched) as f64);
    set("store_follower_inflight_messages", |f, _| f.inflight as f64);
    set("store_follower_inflight_bytes", |f, _| f.inflight_bytes as f64);
    set("store_follower_silent_seconds", |f, _| f.silent_ns as f64 / 1e9);
    set("store_follower_round_trip_seconds", |f, _| f.round_trip_ns as f64 / 1e9);
    let current = follower.map(|follower| follower.state.to_string());
    for state in FOLLOWER_STATES {
        let is_current = current.as_deref().map(|current| current == state);
        let value = is_current.map_or(f64::NAN, |is_current| f64::from(u8::from(is_current)));
        gauge!("store_follower_state", "peer" => peer.clone(), "state" => state).set(value);
    }
}

/// Records what raft, the journal and the data say at the time of the request.
fn record_state(app: &App) {
    let status = app.raft.status().borrow().clone();
    let set = |name: &'static str, value: f64| gauge!(name).set(value);
    set("store_is_leader", f64::from(u8::from(status.leader == Some(status.id))));
    set("store_term", status.term as f64);
    set("store_last_index", status.last as f64);
    set("store_durable_index", status.durable as f64);
    set("store_commit_index", status.commit as f64);
    set("store_applied_index", status.applied as f64);
    set("store_snapshot_index", status.snapshot as f64);
    let followers = app.raft.followers();
    for id in app.addresses.ids().into_iter().filter(|id| *id != status.id) {
        record_follower(id, status.last, followers.iter().find(|follower| follower.id == id));
    }
    set("store_disk_waiting_seconds", app.disk.waiting().as_secs_f64());
    let (keys, bytes, stored) = {
        let kv = app.kv.read();
        (kv.count(), kv.bytes(), kv.stored_bytes())
    };
    set("store_keys", keys as f64);
    set("store_data_bytes", bytes as f64);
    set("store_stored_bytes", stored as f64);
    set("store_max_data_bytes", app.room.max() as f64);
    set("store_memory_bytes", memory_bytes() as f64);

    let count = |name: &'static str, value: u64| counter!(name).absolute(value);
    let raft = app.raft.stats();
    count("store_proposals_total", raft.proposals);
    count("store_reads_total", raft.reads);
    count("store_messages_sent_total", raft.messages_sent);
    count("store_messages_dropped_total", raft.messages_dropped);
    count("store_sends_failed_total", raft.sends_failed);
    count("store_snapshots_taken_total", raft.snapshots_taken);
    count("store_snapshots_sent_total", raft.snapshots_sent);
    count("store_snapshots_received_total", raft.snapshots_received);

    let journal = app.journal.stats();
    count("store_journal_commits_total", journal.commits);
    count("store_journal_syncs_total", journal.syncs);
    count("store_journal_bytes_total", journal.bytes_written);
    set("store_journal_sync_seconds_sum", journal.sync_time.as_secs_f64());
    set("store_journal_files", journal.files as f64);
    set("store_journal_pending_bytes", journal.pending_bytes as f64);
}

/// Resident memory in bytes, from `/proc/self/status`; 0 on systems without it.
fn memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = resident.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
