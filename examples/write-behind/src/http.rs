//! The HTTP interface.
//!
//! | request | what it does |
//! |---|---|
//! | `POST /views/{page}` | counts a report: `{"edge": 0, "sequence": 1, "views": 5}`; answers with the counter |
//! | `GET /views/{page}` | the views of a page, over all edges |
//! | `GET /health` | 200 while the process works |
//! | `GET /stats` | the numbers of [`Numbers`], as JSON |
//!
//! A report that was not counted is answered by `{"error", "outcome"}`: `not_applied` or `unknown`.
//! With 503, and after a lost answer, send the same report again: it is counted once.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use voussoir_cache::Outcome;

use crate::counters::{Count, Key, Table};
use crate::service::{Report, ReportError, Service};

/// Edges are numbered from 0 to one below this.
pub(crate) const EDGES: u8 = 16;
/// Views in one report.
const MAX_VIEWS: u64 = 1_000_000;
const MAX_BODY_BYTES: usize = 1_024;
/// How long a report waits for a counter, the journal or room in the backlog.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// What the handlers share.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) service: Service,
    pub(crate) table: Table,
}

/// The body of `POST /views/{page}`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Posted {
    /// Who reports, from 0 to 15. Reports of one page and edge are sent one after the other.
    pub(crate) edge: u8,
    /// From 1, without gaps.
    pub(crate) sequence: u64,
    /// From 1 to 1,000,000.
    pub(crate) views: u64,
}

/// The answer to `GET /stats`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Numbers {
    /// Reads of counters that found them in memory, and those that did not.
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    /// Counters whose newest value the table does not have yet.
    pub(crate) backlog: u64,
    /// Rows that the table has taken, and attempts that failed.
    pub(crate) flushed: u64,
    pub(crate) flush_failures: u64,
    /// Rows that the table will never take.
    pub(crate) rejected: u64,
    /// Latencies of the last 256 statements that wrote rows.
    pub(crate) flush_p50_ms: f64,
    pub(crate) flush_p99_ms: f64,
}

pub(crate) fn router(app: App) -> Router {
    Router::new()
        .route("/views/{page}", get(read).post(count))
        .route("/health", get(|| async { StatusCode::OK }))
        .route("/stats", get(stats))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(Arc::new(app))
}

type Page = Result<Path<String>, PathRejection>;

async fn count(
    State(app): State<Arc<App>>,
    page: Page,
    body: Result<Json<Posted>, JsonRejection>,
) -> Result<Json<Count>, Failure> {
    let page = valid_page(page)?;
    let Json(Posted { edge, sequence, views }) = body?;
    let rule = |rule: String| Failure::not_applied(StatusCode::UNPROCESSABLE_ENTITY, rule);
    if edge >= EDGES {
        return Err(rule(format!("edge {edge}: must be from 0 to {}", EDGES - 1)));
    }
    if !(1..=MAX_VIEWS).contains(&views) {
        return Err(rule(format!("views {views}: must be from 1 to {MAX_VIEWS}")));
    }
    let report = app.service.report(Key { page, edge }, Report { sequence, views });
    match timeout(REQUEST_TIMEOUT, report).await {
        Ok(counted) => Ok(Json(counted?)),
        Err(_) => {
            let seconds = REQUEST_TIMEOUT.as_secs();
            let error = format!("not acknowledged within {seconds} s; it may still be counted");
            Err(Failure { status: StatusCode::SERVICE_UNAVAILABLE, error, outcome: "unknown" })
        }
    }
}

async fn read(State(app): State<Arc<App>>, page: Page) -> Result<Json<serde_json::Value>, Failure> {
    let page = valid_page(page)?;
    let views = app.service.views(page, EDGES).await.map_err(|error| {
        Failure::not_applied(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    })?;
    Ok(Json(serde_json::json!({ "page": page, "views": views })))
}

async fn stats(State(app): State<Arc<App>>) -> Json<Numbers> {
    let (stats, latencies) = (app.service.stats(), app.table.latencies());
    let millis = |q| latencies.quantile(q).as_secs_f64() * 1e3;
    Json(Numbers {
        hits: stats.hits,
        misses: stats.misses,
        backlog: stats.backlog,
        flushed: stats.flushed,
        flush_failures: stats.flush_failures,
        rejected: stats.rejected_writes,
        flush_p50_ms: millis(0.5),
        flush_p99_ms: millis(0.99),
    })
}

fn valid_page(page: Page) -> Result<u64, Failure> {
    let Path(page) = page?;
    let number = page.parse().ok().filter(|page: &i64| *page >= 0).map(i64::cast_unsigned);
    number.ok_or_else(|| {
        let rule = format!("page {page}: must be a number from 0 to {}", i64::MAX);
        Failure::not_applied(StatusCode::BAD_REQUEST, rule)
    })
}

/// An error answer.
#[derive(Debug)]
struct Failure {
    status: StatusCode,
    error: String,
    outcome: &'static str,
}

impl Failure {
    fn not_applied(status: StatusCode, error: String) -> Self {
        Self { status, error, outcome: "not_applied" }
    }
}

impl From<PathRejection> for Failure {
    fn from(error: PathRejection) -> Self {
        Self::not_applied(error.status(), error.body_text())
    }
}

impl From<JsonRejection> for Failure {
    fn from(error: JsonRejection) -> Self {
        let status = error.status();
        let text = if status == StatusCode::PAYLOAD_TOO_LARGE {
            format!("the body has more than {MAX_BODY_BYTES} bytes")
        } else {
            error.body_text()
        };
        Self::not_applied(status, text)
    }
}

impl From<ReportError> for Failure {
    fn from(error: ReportError) -> Self {
        let status = match error {
            ReportError::OutOfSequence { .. } => StatusCode::CONFLICT,
            ReportError::TooLarge => StatusCode::UNPROCESSABLE_ENTITY,
            ReportError::Panicked => StatusCode::INTERNAL_SERVER_ERROR,
            ReportError::Busy | ReportError::Load(_) | ReportError::Write(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        };
        let outcome = match error.outcome() {
            Outcome::NotApplied => "not_applied",
            _ => "unknown",
        };
        Self { status, error: error.to_string(), outcome }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = serde_json::json!({ "error": self.error, "outcome": self.outcome });
        let mut response = (self.status, Json(body)).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
