//! Which requests are forwarded at all.
//!
//! hyper has parsed the head by now: an obs-fold, a control character in a value, a
//! `Content-Length` that is no number or differs from another, a transfer coding whose last element
//! is not `chunked`, and `Transfer-Encoding` in HTTP/1.0 never come here. `Content-Length` beside
//! `Transfer-Encoding`, which hyper would remove, was rejected by `framing` before hyper parsed the
//! head. This module rejects what hyper lets through and a backend might read differently.

use hyper::header::{self, HeaderMap};
use hyper::http::request::Parts;
use hyper::http::uri::Authority;
use hyper::{Method, StatusCode, Version};

/// Why a request is not forwarded. Nothing was sent to a backend; the client must send another
/// request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// `Transfer-Encoding` beside `Content-Length` (RFC 9112 §6.1).
    #[error("Transfer-Encoding and Content-Length exclude each other")]
    Framing,
    /// A transfer coding other than exactly one `chunked`.
    #[error("the only transfer coding that is accepted is one `chunked`")]
    TransferCoding,
    /// `Content-Length` is no number, or there are several.
    #[error("Content-Length must be one decimal number")]
    ContentLength,
    /// No host, several, one that is malformed, or one that contradicts the request target.
    #[error("there must be one valid Host, the same as in the request target")]
    Host,
    /// A path with a `.` or `..` segment, encoded or not, or with an encoded NUL.
    #[error("the path must have no `.` or `..` segment and no NUL")]
    Path,
    /// A request target of another form than the method has (RFC 9112 §3.2).
    #[error("the request target does not fit the method")]
    Target,
    /// `CONNECT`, which only a forward proxy accepts.
    #[error("CONNECT is not supported")]
    Connect,
    /// `Connection` lists a header that every hop needs.
    #[error("Connection must not list Host, Content-Length, Authorization or Cookie")]
    Connection,
    /// The headers exceed the limit.
    #[error("the headers exceed the limit")]
    TooLarge,
}

impl RequestError {
    /// The status of the answer.
    pub fn status(self) -> StatusCode {
        match self {
            Self::TransferCoding | Self::Connect => StatusCode::NOT_IMPLEMENTED,
            Self::TooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// Checks the head of a request, and returns its host, with the port if there is one. `None`: a
/// request of HTTP/1.0 that names none.
///
/// # Errors
/// The first rule that the request breaks.
pub fn check_request(
    parts: &Parts,
    max_header_bytes: usize,
) -> Result<Option<Authority>, RequestError> {
    check_size(parts, max_header_bytes)?;
    if parts.method == Method::CONNECT {
        return Err(RequestError::Connect);
    }
    check_framing(&parts.headers)?;
    let path = parts.uri.path();
    let is_asterisk = path == "*" && parts.method == Method::OPTIONS;
    if !path.starts_with('/') && !is_asterisk {
        return Err(RequestError::Target);
    }
    check_path(path)?;
    check_host(parts)
}

fn check_size(parts: &Parts, max: usize) -> Result<(), RequestError> {
    let target = parts.uri.path_and_query().map_or(0, |target| target.as_str().len());
    let headers: usize =
        parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if target.saturating_add(headers) > max { Err(RequestError::TooLarge) } else { Ok(()) }
}

fn check_framing(headers: &HeaderMap) -> Result<(), RequestError> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let (coding, length) = (codings.next(), lengths.next());
    if coding.is_some() && length.is_some() {
        return Err(RequestError::Framing);
    }
    let is_chunked = coding.is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    if !is_chunked || codings.next().is_some() {
        return Err(RequestError::TransferCoding);
    }
    let is_number = length.is_none_or(|length| {
        let digits = length.as_bytes();
        (1..=19).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit)
    });
    if !is_number || lengths.next().is_some() {
        return Err(RequestError::ContentLength);
    }
    Ok(())
}

/// A backend resolves `/static/../admin`, a route does not. Backslashes and encoded slashes count
/// as separators, as they do for some backends.
fn check_path(path: &str) -> Result<(), RequestError> {
    if !path.contains(['.', '%']) {
        return Ok(());
    }
    let decoded = decode(path.as_bytes());
    if decoded.contains(&0) {
        return Err(RequestError::Path);
    }
    let mut segments = decoded.split(|byte| matches!(byte, b'/' | b'\\'));
    // A parameter (`..;x`) is no part of the name for some backends.
    let is_dots = |segment: &[u8]| {
        let name = segment.split(|byte| *byte == b';').next().unwrap_or_default();
        name == b"." || name == b".."
    };
    if segments.any(is_dots) { Err(RequestError::Path) } else { Ok(()) }
}

fn decode(text: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    // Ends: each round takes at least one byte of `rest`.
    while let [first, after @ ..] = rest {
        let digit = |byte: &u8| (*byte as char).to_digit(16).map(|digit| digit as u8);
        match (first, after) {
            (b'%', [high, low, ..]) if digit(high).is_some() && digit(low).is_some() => {
                decoded.push((digit(high).unwrap_or(0) << 4) | digit(low).unwrap_or(0));
                rest = &after[2..];
            }
            _ => {
                decoded.push(*first);
                rest = after;
            }
        }
    }
    decoded
}

fn check_host(parts: &Parts) -> Result<Option<Authority>, RequestError> {
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(RequestError::Host);
    }
    let host = match host.map(|host| host.to_str()) {
        Some(Ok(host)) => Some(host),
        Some(Err(_)) => return Err(RequestError::Host),
        None => None,
    };
    let target = parts.uri.authority().map(Authority::as_str);
    match (target, host) {
        (Some(target), Some(host)) if !target.eq_ignore_ascii_case(host) => Err(RequestError::Host),
        (Some(host), _) | (None, Some(host)) => {
            if host.contains(['@', '"', '\\']) {
                return Err(RequestError::Host);
            }
            host.parse().map(Some).map_err(|_| RequestError::Host)
        }
        // HTTP/1.0 has no Host.
        (None, None) if parts.version == Version::HTTP_10 => Ok(None),
        (None, None) => Err(RequestError::Host),
    }
}
