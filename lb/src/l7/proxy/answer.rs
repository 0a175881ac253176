//! Answers that the proxy gives by itself.

use std::time::Duration;

use bytes::Bytes;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Response, StatusCode};

use super::response::ProxyBody;
use crate::l7::gate::GateRejected;
use crate::l7::validate::RequestError;

/// Why a request has no response of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    #[error("{0}")]
    Request(RequestError),
    #[error("no route for this request")]
    NoRoute,
    #[error("{}", .0.reason)]
    Gate(GateRejected),
    #[error("no backend may be used now")]
    NoEndpoint,
    #[error("no descriptor, port or memory for a connection to a backend")]
    Exhausted,
    #[error("no connection to a backend")]
    Connect,
    #[error("no connection to a backend in time")]
    ConnectTimeout,
    #[error("the backend ended the connection before it answered")]
    Backend,
    #[error("the backend did not answer in time")]
    Timeout,
    #[error("the body of the request did not arrive in time")]
    RequestTimeout,
    #[error("the body of the request ended early")]
    RequestBody,
}

impl Failure {
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Request(error) => error.status(),
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::Gate(rejected) => rejected.status(),
            Self::NoEndpoint | Self::Exhausted => StatusCode::SERVICE_UNAVAILABLE,
            Self::Connect | Self::Backend => StatusCode::BAD_GATEWAY,
            Self::ConnectTimeout | Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::RequestBody => StatusCode::BAD_REQUEST,
        }
    }

    /// The status of gRPC (its specification, "HTTP to gRPC status code mapping").
    fn grpc_status(self) -> HeaderValue {
        HeaderValue::from_static(match self.status() {
            StatusCode::BAD_REQUEST => "13",
            StatusCode::UNAUTHORIZED => "16",
            StatusCode::FORBIDDEN => "7",
            StatusCode::NOT_FOUND | StatusCode::NOT_IMPLEMENTED => "12",
            StatusCode::GATEWAY_TIMEOUT | StatusCode::REQUEST_TIMEOUT => "4",
            _ => "14",
        })
    }

    /// The answer. A client of gRPC reads a status in headers rather than a body.
    pub(super) fn response(self, is_grpc: bool) -> Response<ProxyBody> {
        if is_grpc {
            let mut response = Response::new(ProxyBody::empty());
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert("grpc-status", self.grpc_status());
            if let Ok(message) = HeaderValue::from_str(&self.to_string()) {
                headers.insert("grpc-message", message);
            }
            return response;
        }
        let text = Bytes::from(format!("{}: {self}\n", self.status()));
        let mut response = Response::new(ProxyBody::full(text));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        if let Self::Gate(rejected) = self
            && let Some(seconds) = rejected.retry_after_secs()
        {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Self::Request(_) | Self::RequestTimeout | Self::RequestBody = self {
            // What follows on this connection may be part of the request that was rejected.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// Whether a message is one of gRPC.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    value.is_some_and(|value| value.starts_with(b"application/grpc"))
}

/// Whether a status of gRPC says that the backend failed, rather than that the call was wrong.
pub(super) fn is_grpc_failure(status: Option<&HeaderValue>) -> bool {
    // Missing, UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, DATA_LOSS.
    matches!(status.map(HeaderValue::as_bytes), None | Some(b"2" | b"4" | b"13" | b"14" | b"15"))
}

/// One request, as the access log has it.
#[derive(Debug, Default)]
pub(super) struct LogEntry {
    pub(super) client: String,
    pub(super) method: String,
    pub(super) host: String,
    pub(super) path: String,
    pub(super) route: String,
    pub(super) upstream: String,
}

/// How a request ended, for the access log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended<'a> {
    pub(super) endpoint: &'a str,
    pub(super) status: u16,
    pub(super) attempts: u32,
    pub(super) bytes: u64,
    pub(super) result: &'static str,
    pub(super) duration: Duration,
}

impl LogEntry {
    pub(super) fn emit(&self, ended: Ended<'_>) {
        tracing::info!(
            target: "voussoir::lb::access",
            client = %self.client,
            method = %self.method,
            host = %self.host,
            path = %self.path,
            route = %self.route,
            upstream = %self.upstream,
            endpoint = %ended.endpoint,
            status = ended.status,
            attempts = ended.attempts,
            bytes = ended.bytes,
            result = ended.result,
            duration_us = ended.duration.as_micros() as u64,
        );
    }

    pub(super) fn is_wanted() -> bool {
        tracing::enabled!(target: "voussoir::lb::access", tracing::Level::INFO)
    }
}
