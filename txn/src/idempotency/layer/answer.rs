//! Answers as they are stored, and those of the layer itself.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, Response, StatusCode};

const FORMAT: u8 = 1;

/// An answer that is stored: version (1 byte, 1), 1 if the body is stored and else 0 (1 byte), the
/// status (2 bytes), the number of headers (2 bytes), for each the length of its name (2 bytes),
/// the length of its value (4 bytes), name and value, and the body. Numbers are little-endian.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) status: StatusCode,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    /// `None`: it was longer than what is stored.
    pub(super) body: Option<Bytes>,
}

impl Stored {
    /// Those of `headers` that are named are kept.
    pub(super) fn new(
        status: StatusCode,
        headers: &HeaderMap,
        names: &[HeaderName],
        body: Option<Bytes>,
    ) -> Self {
        let kept = headers.iter().filter(|(name, _)| names.contains(name));
        let headers = kept.map(|(name, value)| (name.clone(), value.clone())).collect();
        Self { status, headers, body }
    }

    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(FORMAT);
        out.put_u8(u8::from(self.body.is_some()));
        out.put_u16_le(self.status.as_u16());
        // A server takes far fewer headers, and far shorter ones.
        let count = self.headers.len().min(usize::from(u16::MAX));
        out.put_u16_le(count as u16);
        for (name, value) in &self.headers[..count] {
            out.put_u16_le(u16::try_from(name.as_str().len()).unwrap_or(u16::MAX));
            out.put_u32_le(u32::try_from(value.len()).unwrap_or(u32::MAX));
            out.put_slice(name.as_str().as_bytes());
            out.put_slice(value.as_bytes());
        }
        out.put_slice(self.body.as_deref().unwrap_or_default());
        out.freeze()
    }

    pub(super) fn decode(mut bytes: Bytes) -> Option<Self> {
        if bytes.try_get_u8().ok()? != FORMAT {
            return None;
        }
        let has_body = match bytes.try_get_u8().ok()? {
            0 => false,
            1 => true,
            _ => return None,
        };
        let status = StatusCode::from_u16(bytes.try_get_u16_le().ok()?).ok()?;
        let count = bytes.try_get_u16_le().ok()?;
        let mut headers = Vec::new();
        for _ in 0..count {
            let name = usize::from(bytes.try_get_u16_le().ok()?);
            let value = usize::try_from(bytes.try_get_u32_le().ok()?).ok()?;
            if name > bytes.len() || value > bytes.len() - name {
                return None;
            }
            let name = HeaderName::from_bytes(&bytes.split_to(name)).ok()?;
            headers.push((name, HeaderValue::from_maybe_shared(bytes.split_to(value)).ok()?));
        }
        if !has_body && !bytes.is_empty() {
            return None;
        }
        Some(Self { status, headers, body: has_body.then_some(bytes) })
    }

    /// The answer again.
    pub(super) fn replay(self) -> Response<Bytes> {
        let Some(body) = self.body else { return Problem::NotStored.answer() };
        let mut answer = Response::new(body);
        *answer.status_mut() = self.status;
        answer.headers_mut().extend(self.headers);
        let name = HeaderName::from_static("idempotency-replayed");
        answer.headers_mut().insert(name, HeaderValue::from_static("true"));
        answer
    }
}

/// Why the layer answers by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Problem {
    Missing,
    Malformed,
    Scope,
    InProgress { retry_after_s: u64 },
    Mismatch,
    Abandoned,
    NotStored,
    TooLong,
    Broken,
    Store,
}

impl Problem {
    /// As RFC 9457 has it.
    pub(super) fn answer(self) -> Response<Bytes> {
        let (status, title) = match self {
            Self::Missing => (StatusCode::BAD_REQUEST, "Idempotency-Key is missing"),
            Self::Malformed => (
                StatusCode::BAD_REQUEST,
                "Idempotency-Key is not one string of 1 to 255 visible characters",
            ),
            Self::Scope => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "The service has no name of 1 to 255 bytes for who asks; nothing was done",
            ),
            Self::InProgress { .. } => {
                (StatusCode::CONFLICT, "A request with this Idempotency-Key is outstanding")
            }
            Self::Mismatch => {
                (StatusCode::UNPROCESSABLE_ENTITY, "Idempotency-Key was used for another request")
            }
            Self::Abandoned => (
                StatusCode::CONFLICT,
                "A request with this Idempotency-Key was interrupted, and its outcome is unknown",
            ),
            Self::NotStored => (
                StatusCode::CONFLICT,
                "The request with this Idempotency-Key was done; its answer was not stored",
            ),
            Self::TooLong => (StatusCode::PAYLOAD_TOO_LARGE, "The request is too long"),
            Self::Broken => (StatusCode::BAD_REQUEST, "The request could not be read"),
            Self::Store => {
                (StatusCode::SERVICE_UNAVAILABLE, "Idempotency keys cannot be looked up now")
            }
        };
        let body = format!(r#"{{"title":"{title}","status":{}}}"#, status.as_u16());
        let mut answer = Response::new(Bytes::from(body));
        *answer.status_mut() = status;
        let headers = answer.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        let retry_after_s = match self {
            Self::InProgress { retry_after_s } => Some(retry_after_s),
            Self::Store => Some(1),
            _ => None,
        };
        if let Some(seconds) = retry_after_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_back_and_a_garbled_one_is_none() {
        let mut headers = HeaderMap::new();
        headers.append("set-cookie", HeaderValue::from_static("a"));
        headers.append("etag", HeaderValue::from_static("b"));
        let names = [HeaderName::from_static("etag")];
        let body = Some(Bytes::from("c"));
        let stored = Stored::new(StatusCode::CREATED, &headers, &names, body);
        let golden = [&[1, 1, 201, 0, 1, 0, 4, 0, 1, 0, 0, 0][..], b"etagbc"].concat();
        assert_eq!(stored.encode(), golden);
        assert_eq!(Stored::decode(golden.clone().into()), Some(stored.clone()));
        for end in 0..golden.len() - 1 {
            assert_eq!(Stored::decode(Bytes::copy_from_slice(&golden[..end])), None, "{end}");
        }
        let none = Stored { body: None, ..stored };
        assert_eq!(Stored::decode(none.encode()), Some(none.clone()));
        let long = [&none.encode()[..], b"x"].concat();
        assert_eq!(Stored::decode(long.into()), None);
    }
}
