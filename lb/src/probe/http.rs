//! A probe that asks over HTTP/1.1.

use std::ops::RangeInclusive;

use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Probe, ProbeError, address};
use crate::endpoint::Endpoint;
use crate::error::ConfigError;

/// The longest head of an answer, in bytes.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// Passes if `GET` is answered with an expected status. The body is not read. Redirects are not
/// followed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HttpProbe {
    /// Path and query. Begins with `/`.
    pub path: String,
    /// The `Host` header. `None` (the default) is the endpoint's name.
    pub host: Option<String>,
    /// Port to probe. `None` (the default) is the endpoint's own.
    pub port: Option<u16>,
    /// Statuses that pass, within 200 to 599; default 200 to 299.
    pub statuses: RangeInclusive<u16>,
}

impl HttpProbe {
    /// A probe of `path`.
    pub fn new(path: impl Into<String>) -> Self {
        Self { path: path.into(), host: None, port: None, statuses: 200..=299 }
    }

    /// Checks every field. A probe that is not valid fails.
    ///
    /// # Errors
    /// The first field that is out of its range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let is_text = |text: &str| text.bytes().all(|byte| (0x21..=0x7e).contains(&byte));
        if !self.path.starts_with('/') || !is_text(&self.path) {
            return Err(ConfigError::new("path", "must begin with `/` and be visible ASCII"));
        }
        if self.host.as_deref().is_some_and(|host| host.is_empty() || !is_text(host)) {
            return Err(ConfigError::new("host", "must be visible ASCII and not empty"));
        }
        let (first, last) = (*self.statuses.start(), *self.statuses.end());
        if first < 200 || last > 599 || first > last {
            return Err(ConfigError::new("statuses", "must be a range within 200 to 599"));
        }
        Ok(())
    }
}

#[async_trait]
impl Probe for HttpProbe {
    async fn probe(&self, endpoint: &Endpoint) -> Result<(), ProbeError> {
        self.validate().map_err(|error| ProbeError::unhealthy(error.to_string()))?;
        let mut stream = TcpStream::connect(address(endpoint.name(), self.port)).await?;
        let host = self.host.as_deref().unwrap_or(endpoint.name());
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: voussoir-lb\r\nAccept: */*\r\n\
             Connection: close\r\n\r\n",
            self.path
        );
        stream.write_all(request.as_bytes()).await?;
        let mut bytes = Vec::with_capacity(512);
        // Ends: at the end of the stream, at a final status, and past `MAX_HEAD_BYTES`.
        loop {
            while let Some((status, length)) = parse_head(&bytes)? {
                if (100..200).contains(&status) && status != 101 {
                    bytes.drain(..length);
                    continue;
                }
                let passes = self.statuses.contains(&status);
                let reason = || ProbeError::unhealthy(format!("answered with status {status}"));
                return if passes { Ok(()) } else { Err(reason()) };
            }
            if bytes.len() >= MAX_HEAD_BYTES {
                return Err(ProbeError::unhealthy("the head of the answer exceeds 16 KiB"));
            }
            if stream.read_buf(&mut bytes).await? == 0 {
                return Err(ProbeError::unhealthy("closed before the head of the answer ended"));
            }
        }
    }
}

/// The status and the length of the head at the start of `bytes`. `None` while it is incomplete.
fn parse_head(bytes: &[u8]) -> Result<Option<(u16, usize)>, ProbeError> {
    const LINE: &[u8] = b"HTTP/1.";
    let known = bytes.len().min(LINE.len());
    if bytes[..known] != LINE[..known] {
        return Err(ProbeError::unhealthy("the answer is not HTTP/1"));
    }
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    // Version, space, three digits, and a space or the end of the line.
    let status = match &bytes[LINE.len()..end + 2] {
        [b'0'..=b'9', b' ', a, b, c, b' ' | b'\r', ..]
            if [a, b, c].into_iter().all(u8::is_ascii_digit) =>
        {
            [a, b, c].into_iter().fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'))
        }
        _ => return Err(ProbeError::unhealthy("the status line is malformed")),
    };
    if status < 100 {
        return Err(ProbeError::unhealthy("the status line is malformed"));
    }
    Ok(Some((status, end + 4)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_complete_incomplete_or_malformed() {
        let parse = |text: &str| parse_head(text.as_bytes()).map_err(|error| error.to_string());
        let whole = "HTTP/1.1 204 No Content\r\n\r\n";
        assert_eq!(parse(whole), Ok(Some((204, whole.len()))));
        assert_eq!(parse("HTTP/1.0 200\r\n\r\nbody"), Ok(Some((200, 16))));
        for length in 0..whole.len() {
            assert_eq!(parse(&whole[..length]), Ok(None), "{length}");
        }
        for bad in [
            "SSH-2.0-OpenSSH\r\n",
            "HTTP/2 200\r\n\r\n",
            "HTTP/1.1 20\r\n\r\n",
            "HTTP/1.1 2000 OK\r\n\r\n",
            "HTTP/1.1  200 OK\r\n\r\n",
            "HTTP/1.1 099 X\r\n\r\n",
            "HTTP/1.\r\n\r\n",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn fields_that_could_change_the_request_are_rejected() {
        let valid = HttpProbe::new("/health?full=1");
        assert!(valid.validate().is_ok());
        assert!(HttpProbe::new("health").validate().is_err());
        assert!(HttpProbe::new("/a b").validate().is_err());
        assert!(HttpProbe::new("/a\r\nX: y").validate().is_err());
        let host = |host: &str| HttpProbe { host: Some(host.to_owned()), ..valid.clone() };
        assert!(host("example.com").validate().is_ok());
        assert!(host("").validate().is_err() && host("a\r\nb").validate().is_err());
        let statuses = |statuses| HttpProbe { statuses, ..valid.clone() };
        assert!(statuses(200..=599).validate().is_ok());
        assert!(statuses(100..=299).validate().is_err());
        #[expect(clippy::reversed_empty_ranges, reason = "the case under test")]
        let reversed = statuses(300..=200);
        assert!(reversed.validate().is_err());
    }
}
