//! A probe that asks by the gRPC health checking protocol.

use async_trait::async_trait;
use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use http::header::{CONTENT_TYPE, TE};
use http::{HeaderMap, Request, StatusCode};
use tokio::net::TcpStream;

use super::{Probe, ProbeError, address};
use crate::endpoint::Endpoint;

/// The longest answer, in bytes.
const MAX_ANSWER_BYTES: usize = 4096;
/// `HealthCheckResponse.ServingStatus.SERVING`.
const SERVING: u64 = 1;

/// Passes if `grpc.health.v1.Health/Check` answers `SERVING`. Over HTTP/2 without TLS.
///
/// Source: the GRPC Health Checking Protocol.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct GrpcProbe {
    /// The service to ask for, at most 1,024 bytes. Empty (the default) is the whole server.
    pub service: String,
    /// Port to probe. `None` (the default) is the endpoint's own.
    pub port: Option<u16>,
}

impl GrpcProbe {
    /// A probe of one service.
    pub fn new(service: impl Into<String>) -> Self {
        Self { service: service.into(), port: None }
    }
}

fn http2_error(error: h2::Error) -> ProbeError {
    ProbeError::unhealthy(format!("HTTP/2: {error}"))
}

#[async_trait]
impl Probe for GrpcProbe {
    async fn probe(&self, endpoint: &Endpoint) -> Result<(), ProbeError> {
        if self.service.len() > 1_024 {
            return Err(ProbeError::unhealthy("`service` must be at most 1024 bytes"));
        }
        let address = address(endpoint.name(), self.port);
        let request = Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
            .header(CONTENT_TYPE, "application/grpc")
            .header(TE, "trailers")
            .body(())
            .map_err(|error| ProbeError::unhealthy(format!("request: {error}")))?;
        let stream = TcpStream::connect(&address).await?;
        let (sender, connection) = h2::client::handshake(stream).await.map_err(http2_error)?;
        tokio::select! {
            // The call first: an endpoint may close the connection right after its answer.
            biased;
            answer = self.call(sender, request) => answer,
            ended = connection => {
                ended.map_err(http2_error)?;
                Err(ProbeError::unhealthy("closed before the answer"))
            }
        }
    }
}

impl GrpcProbe {
    async fn call(
        &self,
        sender: SendRequest<Bytes>,
        request: Request<()>,
    ) -> Result<(), ProbeError> {
        let mut sender = sender.ready().await.map_err(http2_error)?;
        let (response, mut body) = sender.send_request(request, false).map_err(http2_error)?;
        body.send_data(encode_request(&self.service), true).map_err(http2_error)?;
        let response = response.await.map_err(http2_error)?;
        if response.status() != StatusCode::OK {
            return Err(ProbeError::unhealthy(format!("answered with {}", response.status())));
        }
        // A Trailers-Only response has its grpc-status in the headers.
        check_status(response.headers(), false)?;
        let mut body = response.into_body();
        let mut message = BytesMut::new();
        // Ends: with the body, and past `MAX_ANSWER_BYTES`.
        while let Some(data) = body.data().await {
            let data = data.map_err(http2_error)?;
            body.flow_control().release_capacity(data.len()).map_err(http2_error)?;
            if message.len() + data.len() > MAX_ANSWER_BYTES {
                return Err(ProbeError::unhealthy("the answer exceeds 4 KiB"));
            }
            message.extend_from_slice(&data);
        }
        let trailers = body.trailers().await.map_err(http2_error)?;
        check_status(&trailers.unwrap_or_default(), true)?;
        match decode_answer(&message) {
            Some(SERVING) => Ok(()),
            Some(status) => Err(ProbeError::unhealthy(format!("serving status {status}"))),
            None => Err(ProbeError::unhealthy("the answer is no HealthCheckResponse")),
        }
    }
}

fn check_status(headers: &HeaderMap, is_required: bool) -> Result<(), ProbeError> {
    match headers.get("grpc-status") {
        None if is_required => Err(ProbeError::unhealthy("the answer has no grpc-status")),
        None => Ok(()),
        Some(status) if status == "0" => Ok(()),
        Some(status) => {
            Err(ProbeError::unhealthy(format!("grpc-status {}", status.to_str().unwrap_or("?"))))
        }
    }
}

/// A length-prefixed `HealthCheckRequest`.
fn encode_request(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0A);
        put_varint(&mut message, service.len());
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put_slice(&message);
    frame.freeze()
}

fn put_varint(to: &mut BytesMut, mut value: usize) {
    // Ends: the value loses 7 bits in each round.
    while value >= 0x80 {
        to.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    to.put_u8(value as u8);
}

/// The `status` of a length-prefixed `HealthCheckResponse`; `None` if it is malformed.
fn decode_answer(frame: &[u8]) -> Option<u64> {
    let (prefix, mut message) = frame.split_at_checked(5)?;
    let length = u32::from_be_bytes(prefix[1..].try_into().ok()?) as usize;
    if prefix[0] != 0 || length != message.len() {
        return None;
    }
    let mut status = 0;
    // Ends: each round takes a field off the message.
    while !message.is_empty() {
        let key = take_varint(&mut message)?;
        match key & 7 {
            0 => {
                let value = take_varint(&mut message)?;
                if key >> 3 == 1 {
                    status = value;
                }
            }
            1 => message = message.get(8..)?,
            2 => {
                let length = usize::try_from(take_varint(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            5 => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn take_varint(from: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = from.split_first()?;
        *from = rest;
        value |= u64::from(byte & 0x7F) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_framed() {
        assert_eq!(&encode_request("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&encode_request("ab")[..], [0, 0, 0, 0, 4, 0x0A, 2, b'a', b'b']);
        let long = encode_request(&"x".repeat(300));
        assert_eq!(long[..8], [0, 0, 0, 1, 47, 0x0A, 0xAC, 2]);
    }

    #[test]
    fn answers_are_decoded_or_rejected() {
        let answer = |message: &[u8]| {
            let mut frame = vec![0, 0, 0, 0, message.len() as u8];
            frame.extend(message);
            decode_answer(&frame)
        };
        assert_eq!(answer(&[8, 1]), Some(SERVING));
        assert_eq!(answer(&[8, 2]), Some(2));
        // The default of the field is UNKNOWN; unknown fields are skipped.
        assert_eq!(answer(&[]), Some(0));
        assert_eq!(answer(&[0x12, 1, 9, 8, 1, 0x1D, 0, 0, 0, 0]), Some(SERVING));
        for bad in [&[8][..], &[8, 0xFF], &[0x12, 200], &[0x0B], &[0x0D, 1]] {
            assert_eq!(answer(bad), None, "{bad:?}");
        }
        assert_eq!(answer(&[8, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255]), None);
        assert_eq!(decode_answer(&[1, 0, 0, 0, 2, 8, 1]), None, "compressed");
        assert_eq!(decode_answer(&[0, 0, 0, 0, 3, 8, 1]), None, "shorter than its prefix says");
        assert_eq!(decode_answer(&[0, 0, 0]), None);
    }
}
