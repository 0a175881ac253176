//! The stream under a connection: TCP, with TLS or without.
#![cfg_attr(
    not(feature = "tls"),
    allow(
        clippy::unnecessary_wraps,
        clippy::unused_async,
        clippy::unused_self,
        reason = "with TLS they look, wait and fail"
    )
)]

use std::io::{self, IoSlice};
use std::net::SocketAddr;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::Instant;

#[cfg(feature = "tls")]
use super::session::{self, SessionReader, SessionWriter, Shown};
use crate::TlsError;

/// A connection did not become ready.
#[derive(Debug)]
pub(crate) enum OpenError {
    /// The connection broke, or could not be set up.
    Io(io::Error),
    /// The deadline passed.
    #[cfg_attr(not(feature = "tls"), expect(dead_code, reason = "plain TCP has no handshake"))]
    TimedOut,
    /// One of the two sides rejected the other.
    Rejected(TlsError),
}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        match tls_error(&error) {
            Some(error) => Self::Rejected(error),
            None => Self::Io(error),
        }
    }
}

/// How the connections of a node are secured.
#[derive(Clone, Debug, Default)]
pub(crate) struct Security {
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<crate::Tls>,
}

/// Which side of a connection this is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose<'a> {
    /// The accepting side. What it tells, in plain bytes, a peer that does not speak TLS.
    #[cfg_attr(not(feature = "tls"), expect(dead_code, reason = "only TLS tells the two apart"))]
    Accept(&'a [u8]),
    /// The dialling side.
    Dial {
        /// The peer that is meant.
        #[cfg_attr(not(feature = "tls"), expect(dead_code, reason = "only TLS proves an id"))]
        peer: u64,
    },
}

/// A connection that is ready for the handshake of this protocol.
pub(crate) struct Opened {
    pub(crate) reader: Reader,
    pub(crate) writer: Writer,
    pub(crate) proof: Proof,
}

impl Security {
    /// Makes a fresh connection ready, until the deadline. Without Nagle's delay: gathering is done
    /// above, and better.
    ///
    /// With TLS this is the whole TLS handshake: the peer has proven its id. If it is rejected, it
    /// has been told why.
    pub(crate) async fn open(
        &self,
        stream: TcpStream,
        remote: SocketAddr,
        purpose: Purpose<'_>,
        deadline: Instant,
    ) -> Result<Opened, OpenError> {
        stream.set_nodelay(true)?;
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            let (reader, writer, shown) =
                session::open(stream, remote, tls, purpose, deadline).await?;
            return Ok(Opened {
                reader: Reader::Tls(Box::new(reader)),
                writer: Writer::Tls(writer),
                proof: Proof { shown: Some(shown) },
            });
        }
        let _ = (remote, purpose, deadline);
        let (read, write) = stream.into_split();
        let (reader, writer) = (Reader::Plain(read), Writer::Plain(write));
        Ok(Opened { reader, writer, proof: Proof::default() })
    }
}

/// What a peer has proven of itself; nothing without TLS.
#[derive(Debug, Default)]
pub(crate) struct Proof {
    #[cfg(feature = "tls")]
    shown: Option<Shown>,
}

impl Proof {
    /// Whether the peer may say that it is this one.
    pub(crate) fn permits(&self, claimed: u64) -> Result<(), TlsError> {
        #[cfg(feature = "tls")]
        if let Some(shown) = &self.shown
            && shown.id != claimed
        {
            return Err(TlsError::WrongId { claimed, proven: shown.id });
        }
        let _ = claimed;
        Ok(())
    }

    /// Returns when the proof has become invalid, with the reason. Cancel safe.
    pub(crate) async fn revoked(&mut self) -> TlsError {
        #[cfg(feature = "tls")]
        if let Some(shown) = &mut self.shown {
            return shown.revoked().await;
        }
        std::future::pending().await
    }
}

/// The reason of an error, if TLS is to blame.
pub(crate) fn tls_error(error: &io::Error) -> Option<TlsError> {
    error.get_ref()?.downcast_ref().copied()
}

pub(crate) enum Reader {
    Plain(OwnedReadHalf),
    #[cfg(feature = "tls")]
    Tls(Box<SessionReader>),
}

impl Reader {
    /// Appends what there is, at least a byte; 0 at the end. Cancel safe.
    pub(crate) async fn read(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.read_buf(buffer).await,
            #[cfg(feature = "tls")]
            Self::Tls(session) => session.read(buffer).await,
        }
    }

    pub(crate) async fn read_exact(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Plain(tcp) => tcp.read_exact(buffer).await.map(|_| ()),
            #[cfg(feature = "tls")]
            Self::Tls(session) => session.read_exact(buffer).await,
        }
    }
}

pub(crate) enum Writer {
    Plain(OwnedWriteHalf),
    #[cfg(feature = "tls")]
    Tls(SessionWriter),
}

impl Writer {
    /// `WouldBlock` when the socket takes nothing now. After an error nothing of it has left.
    pub(crate) fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.try_write_vectored(slices),
            #[cfg(feature = "tls")]
            Self::Tls(session) => session.try_write(slices),
        }
    }

    /// Writes what `try_write` took and the socket did not; `WouldBlock` when some of it is left.
    pub(crate) fn try_flush(&self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            #[cfg(feature = "tls")]
            Self::Tls(session) => session.try_flush(),
        }
    }

    /// Whether there is something for `try_flush`.
    pub(crate) fn has_unflushed(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            #[cfg(feature = "tls")]
            Self::Tls(session) => session.has_sealed(),
        }
    }

    /// Cancel safe.
    pub(crate) async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Plain(tcp) => tcp.writable().await,
            #[cfg(feature = "tls")]
            Self::Tls(session) => session.writable().await,
        }
    }

    pub(crate) async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(tcp) => tcp.write_all(bytes).await,
            #[cfg(feature = "tls")]
            Self::Tls(session) => session.write_all(bytes).await,
        }
    }
}
