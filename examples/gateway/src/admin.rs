//! The administrative address.
//!
//! | request | answer |
//! |---|---|
//! | `GET /health` | 200 while the process runs |
//! | `GET /ready` | 200 while every pool has a backend that may be used; else 503, which names the pools; 503 while the gateway drains |
//! | `GET /status` | pools, backends and counters as JSON |
//! | `GET /metrics` | Prometheus text |
//!
//! | metric | what it is |
//! |---|---|
//! | `gateway_connections`, `gateway_connections_total` | open client connections; all that were accepted |
//! | `gateway_requests_total` | requests whose head was read |
//! | `gateway_rejected_total`, `gateway_failed_total`, `gateway_cancelled_total` | answered by the gateway itself with 4xx; with 5xx, or broken off; given up by the client |
//! | `gateway_limited_total{route}` | rejected by the limit of the route |
//! | `gateway_reloads_total{result}` | configurations that were applied or rejected |
//! | `gateway_retries_total{pool}`, `gateway_retries_rejected_total{pool}` | requests that were sent again; that the budget did not let be sent again |
//! | `gateway_breaker_open{pool}` | 1 while the breaker rejects requests |
//! | `gateway_lookups_failed_total{pool}`, `gateway_lookup_age_seconds{pool}` | lookups of `dns` without an answer that could be used; time since the last one with it |
//! | `gateway_no_backend_total{pool}` | requests for which no backend could be used |
//! | `gateway_backend_up{pool,backend}` | 1 while checks and outlier detection find nothing wrong |
//! | `gateway_backend_picks_total`, `_failures_total`, `_cancelled_total` `{pool,backend}` | attempts, by how they ended |
//! | `gateway_backend_in_flight{pool,backend}` | attempts under way |
//! | `gateway_backend_latency_seconds{pool,backend}` | moving average, with the strategy `peak-ewma` |

use std::fmt::Write as _;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use parking_lot::RwLock;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use voussoir_breaker::State as BreakerState;

use crate::gateway::{Overview, PoolStats};
use crate::listen::{self, Limits};

type Shared = Arc<RwLock<Overview>>;

/// Serves the administrative address until the future is dropped.
///
/// # Cancel safety
/// Dropping the future closes the listener.
pub async fn serve(listener: TcpListener, view: Shared) {
    let app = Router::new()
        .route("/health", get(|| async { "ok\n" }))
        .route("/ready", get(ready))
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .with_state(view);
    listen::serve(listener, app, Limits::default(), std::future::pending()).await;
}

async fn ready(State(view): State<Shared>) -> impl IntoResponse {
    let view = view.read();
    if view.is_draining {
        return (StatusCode::SERVICE_UNAVAILABLE, "the gateway drains\n".to_owned());
    }
    let is_down = |pool: &PoolStats| {
        !pool.balancer.endpoints.iter().any(|found| found.healthy && !found.draining)
    };
    let down: Vec<String> =
        view.pools().into_iter().filter(is_down).map(|pool| pool.name).collect();
    if down.is_empty() {
        (StatusCode::OK, "ready\n".to_owned())
    } else {
        let text = format!("no healthy backend in: {}\n", down.join(", "));
        (StatusCode::SERVICE_UNAVAILABLE, text)
    }
}

async fn status(State(view): State<Shared>) -> Json<Value> {
    let view = view.read();
    let http = view.http();
    let pools: Vec<Value> = view.pools().iter().map(pool_status).collect();
    Json(json!({
        "draining": view.is_draining,
        "connections": http.open,
        "requests": http.requests,
        "rejected": http.rejected,
        "failed": http.failed,
        "cancelled": http.cancelled,
        "reloads": { "applied": view.reloads, "rejected": view.rejected_reloads },
        "pools": pools,
    }))
}

fn pool_status(pool: &PoolStats) -> Value {
    let backends: Vec<Value> = pool
        .balancer
        .endpoints
        .iter()
        .map(|found| {
            json!({
                "address": found.name,
                "weight": found.weight,
                "healthy": found.healthy,
                "ejected_for_ms": found.ejected_for.map(|wait| wait.as_millis() as u64),
                "draining": found.draining,
                "in_flight": found.in_flight,
                "picks": found.picks,
                "failures": found.failures,
                "latency_ms": found.latency.as_secs_f64() * 1e3,
            })
        })
        .collect();
    json!({
        "name": pool.name,
        "breaker": pool.breaker.map(|state| format!("{state:?}")),
        "retries": pool.upstream.retries,
        "lookup": pool.discovery.as_ref().map(|lookups| json!({
            "age_ms": lookups.age.map(|age| age.as_millis() as u64),
            "last_error": lookups.last_error,
        })),
        "backends": backends,
    })
}

async fn metrics(State(view): State<Shared>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text(&view.read()))
}

/// The text of `GET /metrics`.
pub fn text(view: &Overview) -> String {
    let mut out = Text::default();
    let http = view.http();
    out.one("gateway_connections", "gauge", http.open as f64);
    out.one("gateway_connections_total", "counter", http.accepted as f64);
    out.one("gateway_requests_total", "counter", http.requests as f64);
    out.one("gateway_rejected_total", "counter", http.rejected as f64);
    out.one("gateway_failed_total", "counter", http.failed as f64);
    out.one("gateway_cancelled_total", "counter", http.cancelled as f64);
    out.begin("gateway_limited_total", "counter");
    for (route, count) in view.limits() {
        out.row("gateway_limited_total", &[("route", &route)], count as f64);
    }
    out.begin("gateway_reloads_total", "counter");
    out.row("gateway_reloads_total", &[("result", "applied")], view.reloads as f64);
    out.row("gateway_reloads_total", &[("result", "rejected")], view.rejected_reloads as f64);
    let pools = view.pools();
    let by_pool: [Figure<PoolStats>; 6] = [
        ("gateway_retries_total", "counter", |pool| Some(pool.upstream.retries as f64)),
        ("gateway_retries_rejected_total", "counter", |pool| {
            Some(pool.upstream.retries_rejected as f64)
        }),
        ("gateway_no_backend_total", "counter", |pool| Some(pool.balancer.rejected as f64)),
        ("gateway_breaker_open", "gauge", |pool| {
            let is_open = |state| matches!(state, BreakerState::Open | BreakerState::ForcedOpen);
            pool.breaker.map(|state| f64::from(u8::from(is_open(state))))
        }),
        ("gateway_lookups_failed_total", "counter", |pool| {
            pool.discovery.as_ref().map(|lookups| (lookups.failed + lookups.empty) as f64)
        }),
        ("gateway_lookup_age_seconds", "gauge", |pool| {
            pool.discovery.as_ref()?.age.map(|age| age.as_secs_f64())
        }),
    ];
    for (name, kind, value) in by_pool {
        out.begin(name, kind);
        for pool in &pools {
            if let Some(value) = value(pool) {
                out.row(name, &[("pool", &pool.name)], value);
            }
        }
    }
    backends(&mut out, &pools);
    out.0
}

/// A metric: its name, its kind, and its value for each `T` that has one.
type Figure<T> = (&'static str, &'static str, fn(&T) -> Option<f64>);

fn backends(out: &mut Text, pools: &[PoolStats]) {
    let figures: [Figure<voussoir_lb::EndpointStats>; 6] = [
        ("gateway_backend_up", "gauge", |found| Some(f64::from(u8::from(found.healthy)))),
        ("gateway_backend_picks_total", "counter", |found| Some(found.picks as f64)),
        ("gateway_backend_failures_total", "counter", |found| Some(found.failures as f64)),
        ("gateway_backend_cancelled_total", "counter", |found| Some(found.cancelled as f64)),
        ("gateway_backend_in_flight", "gauge", |found| Some(f64::from(found.in_flight))),
        ("gateway_backend_latency_seconds", "gauge", |found| {
            (!found.latency.is_zero()).then_some(found.latency.as_secs_f64())
        }),
    ];
    for (name, kind, value) in figures {
        out.begin(name, kind);
        for pool in pools {
            for found in &pool.balancer.endpoints {
                if let Some(value) = value(found) {
                    out.row(name, &[("pool", &pool.name), ("backend", &found.name)], value);
                }
            }
        }
    }
}

/// Prometheus text in the making.
#[derive(Default)]
struct Text(String);

impl Text {
    fn begin(&mut self, name: &str, kind: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "# TYPE {name} {kind}");
    }

    fn row(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let escaped =
            |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let labels: Vec<String> =
            labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escaped(value))).collect();
        let _ = match &*labels {
            [] => writeln!(self.0, "{name} {value}"),
            labels => writeln!(self.0, "{name}{{{}}} {value}", labels.join(",")),
        };
    }

    fn one(&mut self, name: &str, kind: &str, value: f64) {
        self.begin(name, kind);
        self.row(name, &[], value);
    }
}
