//! The HTTP interface.
//!
//! | request | what it does |
//! |---|---|
//! | `PUT /kv/{key}` | writes; a compare-and-set by `If-Match: "VERSION"` or `If-None-Match: *` |
//! | `GET /kv/{key}` | reads, linearizable; `?consistency=stale` reads this node's state as it is |
//! | `DELETE /kv/{key}` | deletes; takes `If-Match` too |
//! | `GET /kv?prefix=P` | keys in order; `&after=KEY&limit=N` go on from there |
//! | `GET /health` | 200 where this node can serve, else 503 |
//! | `GET /metrics` | Prometheus text |
//! | `GET /status` | this node's view of the cluster, as JSON |
//!
//! A version is the `ETag` of a value. 404 (no such key) and 412 (another version) are answers. A
//! request that failed gets `{"error", "outcome"}`, where `outcome` is `not_applied` (safe to send
//! again) or `unknown` (it may have happened, or happen later). A node that is not the leader
//! answers a write with 307 and the leader's address (`curl -L`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::header::{ETAG, IF_MATCH, IF_NONE_MATCH, LOCATION, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use bytes::Bytes;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use voussoir_journal::Journal;
use voussoir_raft::{Outcome, ProposeError, Raft};

use crate::kv::{Answer, Command, Condition, KEY_BYTES_MAX, Kv, VALUE_BYTES_MAX};

/// Keys that one listing returns at most.
const LIST_MAX: usize = 1000;
/// How long a linearizable read may wait for the leader and for this node to catch up.
const READ_WITHIN: Duration = Duration::from_secs(5);

/// What every request needs.
#[derive(Clone)]
pub struct App {
    pub raft: Raft,
    pub journal: Journal,
    pub kv: Arc<RwLock<Kv>>,
    /// Where the nodes serve HTTP.
    pub addresses: Arc<HashMap<u64, String>>,
}

pub fn router(app: App) -> Router {
    Router::new()
        .route("/kv", get(list))
        .route("/kv/{*key}", get(read).put(write).delete(delete))
        .route("/health", get(health))
        .route("/metrics", get(crate::metrics::text))
        .route("/status", get(status))
        .layer(DefaultBodyLimit::max(VALUE_BYTES_MAX))
        .with_state(app)
}

/// The key in the path, if it is one.
type Key = Result<Path<String>, PathRejection>;

async fn write(
    State(app): State<App>,
    key: Key,
    uri: Uri,
    headers: HeaderMap,
    value: Result<Bytes, BytesRejection>,
) -> Result<Response, Failure> {
    let condition = condition(&headers)?;
    let command = Command::Put { key: checked(key)?, value: value?, condition };
    app.change(&uri, &command).await
}

async fn delete(
    State(app): State<App>,
    key: Key,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let condition = condition(&headers)?;
    app.change(&uri, &Command::Delete { key: checked(key)?, condition }).await
}

#[derive(Deserialize)]
struct ReadQuery {
    #[serde(default)]
    consistency: Consistency,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Consistency {
    #[default]
    Linearizable,
    Stale,
}

async fn read(
    State(app): State<App>,
    key: Key,
    query: Result<Query<ReadQuery>, QueryRejection>,
) -> Result<Response, Failure> {
    let (key, Query(query)) = (checked(key)?, query?);
    app.catch_up(&query.consistency).await?;
    let found = app.kv.read().get(&key).cloned();
    Ok(match found {
        Some(held) => ([(ETAG, etag(held.version))], held.value).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    })
}

#[derive(Deserialize)]
struct ListQuery {
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    after: String,
    limit: Option<usize>,
    #[serde(default)]
    consistency: Consistency,
}

#[derive(Serialize)]
struct Listed {
    key: String,
    version: u64,
    bytes: usize,
}

async fn list(
    State(app): State<App>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<Vec<Listed>>, Failure> {
    let Query(query) = query?;
    app.catch_up(&query.consistency).await?;
    let limit = query.limit.unwrap_or(100).min(LIST_MAX);
    let found = app.kv.read().list(query.prefix.as_bytes(), query.after.as_bytes(), limit);
    let listed = found.into_iter().map(|(key, held)| Listed {
        key: String::from_utf8_lossy(&key).into_owned(),
        version: held.version,
        bytes: held.value.len(),
    });
    Ok(Json(listed.collect()))
}

async fn health(State(app): State<App>) -> StatusCode {
    let status = app.raft.status().borrow().clone();
    if status.leader.is_some() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// What `GET /status` answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeStatus {
    pub id: u64,
    pub role: String,
    pub term: u64,
    pub leader: Option<u64>,
    pub commit: u64,
    pub applied: u64,
    pub keys: usize,
}

async fn status(State(app): State<App>) -> Json<NodeStatus> {
    let status = app.raft.status().borrow().clone();
    Json(NodeStatus {
        id: status.id,
        role: status.role.to_string(),
        term: status.term,
        leader: status.leader,
        commit: status.commit,
        applied: status.applied,
        keys: app.kv.read().count(),
    })
}

impl App {
    /// Sends a command through the replicated log and answers what it did.
    async fn change(&self, uri: &Uri, command: &Command) -> Result<Response, Failure> {
        let proposed = self.raft.propose(command.encode()).await;
        let answer = proposed.map_err(|error| self.failure(uri, &error))?;
        match Answer::decode(&answer) {
            Ok(Answer::Done { version }) => {
                Ok((StatusCode::NO_CONTENT, [(ETAG, etag(version))]).into_response())
            }
            Ok(Answer::Absent) => Ok(StatusCode::NOT_FOUND.into_response()),
            Ok(Answer::Conflict { version }) => {
                Ok((StatusCode::PRECONDITION_FAILED, [(ETAG, etag(version))]).into_response())
            }
            Err(error) => {
                let status = StatusCode::INTERNAL_SERVER_ERROR;
                Err(Failure { status, error: error.to_string(), outcome: "unknown", leader: None })
            }
        }
    }

    /// Before a linearizable read: waits until this node has applied all that was acknowledged
    /// anywhere. Followers ask the leader how far that is.
    async fn catch_up(&self, consistency: &Consistency) -> Result<(), Failure> {
        if let Consistency::Linearizable = consistency {
            self.raft.read(Instant::now() + READ_WITHIN).await.map_err(|error| Failure {
                status: StatusCode::SERVICE_UNAVAILABLE,
                error: error.to_string(),
                outcome: "not_applied",
                leader: None,
            })?;
        }
        Ok(())
    }

    fn failure(&self, uri: &Uri, error: &ProposeError) -> Failure {
        let elsewhere = error.leader().and_then(|id| self.addresses.get(&id));
        let (status, outcome) = match (error.outcome(), error) {
            (Outcome::Unknown, _) => (StatusCode::GATEWAY_TIMEOUT, "unknown"),
            (_, ProposeError::TooLarge { .. }) => (StatusCode::PAYLOAD_TOO_LARGE, "not_applied"),
            _ if elsewhere.is_some() => (StatusCode::TEMPORARY_REDIRECT, "not_applied"),
            _ => (StatusCode::SERVICE_UNAVAILABLE, "not_applied"),
        };
        let leader = elsewhere.map(|address| format!("http://{address}{uri}"));
        Failure { status, error: error.to_string(), outcome, leader }
    }
}

/// An answer that is not a success.
struct Failure {
    status: StatusCode,
    error: String,
    outcome: &'static str,
    /// The same request at the leader.
    leader: Option<String>,
}

impl Failure {
    fn bad_request(error: impl Into<String>) -> Self {
        Self::refused(StatusCode::BAD_REQUEST, error.into())
    }

    fn refused(status: StatusCode, error: String) -> Self {
        Self { status, error, outcome: "not_applied", leader: None }
    }
}

impl From<PathRejection> for Failure {
    fn from(error: PathRejection) -> Self {
        Self::refused(error.status(), error.body_text())
    }
}

impl From<QueryRejection> for Failure {
    fn from(error: QueryRejection) -> Self {
        Self::refused(error.status(), error.body_text())
    }
}

impl From<BytesRejection> for Failure {
    fn from(error: BytesRejection) -> Self {
        Self::refused(error.status(), error.body_text())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = Json(serde_json::json!({ "error": self.error, "outcome": self.outcome }));
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        if let Some(Ok(leader)) = self.leader.map(|leader| leader.parse()) {
            headers.insert(LOCATION, leader);
        }
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

fn checked(key: Key) -> Result<Bytes, Failure> {
    let Path(key) = key?;
    if key.len() > KEY_BYTES_MAX {
        return Err(Failure::bad_request(format!("a key has at most {KEY_BYTES_MAX} bytes")));
    }
    Ok(key.into())
}

fn etag(version: u64) -> String {
    format!("\"{version}\"")
}

/// `If-Match: "VERSION"`, `If-None-Match: *`, or neither.
fn condition(headers: &HeaderMap) -> Result<Condition, Failure> {
    match (headers.get(IF_MATCH), headers.get(IF_NONE_MATCH)) {
        (None, None) => Ok(Condition::Always),
        (None, Some(star)) if star == "*" => Ok(Condition::Absent),
        (Some(tag), None) => {
            let version = tag.to_str().ok().and_then(|tag| tag.trim_matches('"').parse().ok());
            let wrong = || Failure::bad_request("If-Match takes one version: an ETag of this key");
            version.map(Condition::Version).ok_or_else(wrong)
        }
        _ => Err(Failure::bad_request("either If-Match: \"VERSION\" or If-None-Match: *")),
    }
}
