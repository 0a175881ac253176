//! What a connection begins with: a PROXY header, a ClientHello.

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::l4::client_hello::{ClientHello, ClientHelloError};
use crate::l4::config::{ClientHelloConfig, ProxyInConfig};
use crate::l4::proxy_header::{Decoded, MAX_V1_BYTES, ProxyHeader, ProxyHeaderError};

/// Why a connection ended before a route was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum PreludeError {
    #[error(transparent)]
    Header(#[from] ProxyHeaderError),
    #[error(transparent)]
    Hello(#[from] ClientHelloError),
    #[error("the {what} did not arrive within {limit:?}")]
    Timeout { what: &'static str, limit: Duration },
    #[error("the client ended the connection before its {what} was complete")]
    Ended { what: &'static str },
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads a PROXY header. What follows it stays in `buffer`.
pub(super) async fn header(
    stream: &TcpStream,
    buffer: &mut Vec<u8>,
    config: &ProxyInConfig,
) -> Result<ProxyHeader, PreludeError> {
    let max = config.max_bytes.max(MAX_V1_BYTES);
    let read = read_until(stream, buffer, "PROXY header", max, |bytes| {
        Ok(ProxyHeader::decode(bytes, config.max_bytes)?)
    });
    let limit = config.timeout;
    let late = |_| PreludeError::Timeout { what: "PROXY header", limit };
    let (header, len) = timeout(limit, read).await.map_err(late)??;
    buffer.drain(..len);
    Ok(header)
}

/// Reads a ClientHello, which stays in `buffer`.
pub(super) async fn hello(
    stream: &TcpStream,
    buffer: &mut Vec<u8>,
    config: &ClientHelloConfig,
) -> Result<ClientHello, PreludeError> {
    let read = read_until(stream, buffer, "ClientHello", config.max_bytes, |bytes| {
        Ok(ClientHello::decode(bytes, config.max_bytes)?)
    });
    let limit = config.timeout;
    let late = |_| PreludeError::Timeout { what: "ClientHello", limit };
    Ok(timeout(limit, read).await.map_err(late)??.0)
}

/// Reads until `decode` is satisfied. `buffer` holds at most `max` bytes after each read, and
/// `decode` must fail when that many are not enough.
async fn read_until<T>(
    stream: &TcpStream,
    buffer: &mut Vec<u8>,
    what: &'static str,
    max: usize,
    decode: impl Fn(&[u8]) -> Result<Decoded<T>, PreludeError>,
) -> Result<(T, usize), PreludeError> {
    // Ends: each round adds a byte, and `max` bytes are decoded or refused.
    loop {
        if let Decoded::Complete(value, len) = decode(buffer)? {
            return Ok((value, len));
        }
        stream.readable().await?;
        let mut chunk = [0; 2_048];
        let room = max.saturating_sub(buffer.len()).clamp(1, chunk.len());
        match stream.try_read(&mut chunk[..room]) {
            Ok(0) => return Err(PreludeError::Ended { what }),
            Ok(read) => buffer.extend_from_slice(&chunk[..read]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
}
