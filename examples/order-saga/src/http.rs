//! The HTTP interface.
//!
//! | request | what it does |
//! |---|---|
//! | `POST /orders`, `Idempotency-Key: ID` | orders, and waits up to 10 s for the end |
//! | `GET /orders/{id}` | where an order is |
//! | `GET /stuck` | orders that wait for an operator, and at which steps |
//! | `POST /orders/{id}/resolve` | `{"step": "stock", "how": "retry"}`; also `skip` and `not-run` |
//! | `GET /health` | 200 while the process works |
//!
//! An order's state is `{"id", "state"}`: `completed` (200), `undone` with `because` (409), and
//! with 202 `open`, `stuck` with `steps`, or `parked`. After a lost answer, and with 503, ask again
//! with the same key: nothing is done twice.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::order::{Order, check_id};
use crate::orders::{How, OrderError, Orders, ResolveError, State as OrderState};

const KEY: &str = "idempotency-key";
const MAX_BODY_BYTES: usize = 4_096;
/// How long `POST /orders` waits for the end.
const WAIT: Duration = Duration::from_secs(10);

type App = Arc<dyn Orders>;

pub(crate) fn router(app: App) -> Router {
    Router::new()
        .route("/orders", post(order))
        .route("/orders/{id}", get(show))
        .route("/orders/{id}/resolve", post(resolve))
        .route("/stuck", get(stuck))
        .route("/health", get(|| async { StatusCode::OK }))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(app)
}

async fn order(
    State(app): State<App>,
    headers: HeaderMap,
    body: Result<Json<Order>, JsonRejection>,
) -> Result<Response, Failure> {
    let id = headers.get(KEY).and_then(|key| key.to_str().ok()).unwrap_or_default();
    let rejected = |status: StatusCode| move |error: String| Failure { status, error };
    check_id(id).map_err(rejected(StatusCode::BAD_REQUEST))?;
    let Json(order) =
        body.map_err(|error| Failure { status: error.status(), error: error.body_text() })?;
    order.check().map_err(rejected(StatusCode::UNPROCESSABLE_ENTITY))?;
    let ended = app.order(id, &order, WAIT).await?;
    Ok(state(id, &ended))
}

async fn show(State(app): State<App>, Path(id): Path<String>) -> Result<Response, Failure> {
    let found = app.state(&id).ok_or_else(not_found)?;
    Ok(state(&id, &found))
}

async fn stuck(State(app): State<App>) -> Json<Value> {
    let mut all = app.stuck();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    Json(all.iter().map(|(id, state)| body(id, state)).collect())
}

/// What an operator says of a stuck step.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Resolve {
    step: String,
    how: How,
}

async fn resolve(
    State(app): State<App>,
    Path(id): Path<String>,
    body: Result<Json<Resolve>, JsonRejection>,
) -> Result<StatusCode, Failure> {
    let Json(Resolve { step, how }) =
        body.map_err(|error| Failure { status: error.status(), error: error.body_text() })?;
    match app.resolve(&id, &step, how).await {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(ResolveError::NotFound) => Err(not_found()),
        Err(error) => Err(Failure { status: StatusCode::CONFLICT, error: error.to_string() }),
    }
}

fn state(id: &str, state: &OrderState) -> Response {
    let status = match state {
        OrderState::Completed => StatusCode::OK,
        OrderState::Undone { .. } | OrderState::GivenUp => StatusCode::CONFLICT,
        OrderState::Halted => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::ACCEPTED,
    };
    (status, Json(body(id, state))).into_response()
}

fn body(id: &str, state: &OrderState) -> Value {
    match state {
        OrderState::Open => json!({ "id": id, "state": "open" }),
        OrderState::Stuck(steps) => {
            let steps: Vec<Value> = steps
                .iter()
                .map(|at| {
                    let call = if at.is_undo { "undo" } else { "act" };
                    json!({ "step": at.step, "call": call, "why": at.why })
                })
                .collect();
            json!({ "id": id, "state": "stuck", "steps": steps })
        }
        OrderState::Completed => json!({ "id": id, "state": "completed" }),
        OrderState::Undone { because } => {
            json!({ "id": id, "state": "undone", "because": because })
        }
        OrderState::GivenUp => json!({ "id": id, "state": "given up" }),
        OrderState::Parked(why) => json!({ "id": id, "state": "parked", "why": why }),
        OrderState::Halted => json!({ "id": id, "state": "waits for the next process" }),
    }
}

/// An error answer.
#[derive(Debug)]
struct Failure {
    status: StatusCode,
    error: String,
}

fn not_found() -> Failure {
    let error = "no order or step of this name".to_owned();
    Failure { status: StatusCode::NOT_FOUND, error }
}

impl From<OrderError> for Failure {
    fn from(error: OrderError) -> Self {
        let status = match error {
            OrderError::Mismatch => StatusCode::UNPROCESSABLE_ENTITY,
            OrderError::Invalid(_) => StatusCode::BAD_REQUEST,
            OrderError::Away(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self { status, error: error.to_string() }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(json!({ "error": self.error }))).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
