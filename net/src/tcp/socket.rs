//! The stream under a connection: the one place that TLS will change.

use std::io::{self, IoSlice};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// Splits a fresh connection. Without Nagle's delay: gathering is done above, and better.
pub(crate) fn split(stream: TcpStream) -> io::Result<(Reader, Writer)> {
    stream.set_nodelay(true)?;
    let (read, write) = stream.into_split();
    Ok((Reader(read), Writer(write)))
}

#[derive(Debug)]
pub(crate) struct Reader(OwnedReadHalf);

impl Reader {
    /// Appends what there is, at least a byte; 0 at the end. Cancel safe.
    pub(crate) async fn read(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        self.0.read_buf(buffer).await
    }

    pub(crate) async fn read_exact(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_exact(buffer).await.map(|_| ())
    }
}

#[derive(Debug)]
pub(crate) struct Writer(OwnedWriteHalf);

impl Writer {
    /// `WouldBlock` when the socket takes nothing now.
    pub(crate) fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    /// Cancel safe.
    pub(crate) async fn writable(&self) -> io::Result<()> {
        self.0.writable().await
    }

    pub(crate) async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes).await
    }
}
