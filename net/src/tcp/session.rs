//! A TLS session over a TCP stream, with the operations of `socket`.
//!
//! The session is shared by the reader and the writer of a connection. Its lock is held for one
//! step: one record or so to decrypt, one write to encrypt.

use std::io::{self, BufRead, ErrorKind, IoSlice, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use parking_lot::Mutex;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConnection, Connection, ServerConnection};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use super::socket::{OpenError, Purpose};
use crate::tls::{Loaded, PROTOCOL, Role, error_of};
use crate::wire::hello::MAGIC;
use crate::{Tls, TlsError};

/// Bytes read from the socket at a time.
const READ_BYTES: usize = 32 * 1024;
/// Bytes that a session encrypts before the socket must have taken them.
const MAX_SEALED_BYTES: usize = 128 * 1024;
/// How long a side that rejects waits for the other one to read why, at most.
const MAX_LINGER: Duration = Duration::from_millis(500);
/// Bytes that are discarded meanwhile, at most.
const MAX_LINGER_BYTES: usize = 64 * 1024;

/// The bytes that came in and that the session has not taken.
struct Inflow {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Inflow {
    fn new() -> Self {
        Self { bytes: vec![0; READ_BYTES].into(), start: 0, end: 0 }
    }

    fn waiting(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Reads from the socket when nothing waits; 0 at its end. Cancel safe.
    async fn fill(&mut self, tcp: &TcpStream) -> io::Result<usize> {
        // Ends: each turn waits until the socket has something.
        loop {
            tcp.readable().await?;
            match tcp.try_read(&mut self.bytes) {
                Ok(bytes) => {
                    (self.start, self.end) = (0, bytes);
                    return Ok(bytes);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives the session some of the bytes, and lets it look at them.
    fn feed(&mut self, session: &mut Connection) -> io::Result<()> {
        let taken =
            session.read_tls(&mut self.waiting()).map_err(|_| failed(TlsError::Protocol))?;
        self.start += taken;
        session.process_new_packets().map(|_| ()).map_err(|error| failed(error_of(&error)))
    }
}

fn failed(error: TlsError) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error)
}

/// Writes to a socket as far as it takes anything.
struct TryWrite<'a>(&'a TcpStream);

impl Write for TryWrite<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes what the session has encrypted; `WouldBlock` when the socket does not take all of it.
fn write_sealed(session: &mut Connection, tcp: &TcpStream) -> io::Result<()> {
    while session.wants_write() {
        if session.write_tls(&mut TryWrite(tcp))? == 0 {
            return Err(ErrorKind::WriteZero.into());
        }
    }
    Ok(())
}

/// A connection in its TLS handshake. Nobody else has it, so the user's function that the check of
/// a certificate calls runs under no lock.
struct Opening {
    tcp: TcpStream,
    session: Connection,
    inflow: Inflow,
}

impl Opening {
    async fn run(&mut self) -> io::Result<()> {
        let mut is_first = true;
        // Ends: each turn reads something from the socket, and a handshake is finite.
        loop {
            self.write_all().await?;
            if !self.session.is_handshaking() {
                return Ok(());
            }
            if self.inflow.waiting().is_empty() {
                if self.inflow.fill(&self.tcp).await? == 0 {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
                let waiting = self.inflow.waiting();
                let length = waiting.len().min(MAGIC.len());
                if is_first && waiting[..length] == MAGIC[..length] {
                    return Err(failed(TlsError::Plaintext));
                }
                is_first = false;
            }
            self.inflow.feed(&mut self.session)?;
        }
    }

    async fn write_all(&mut self) -> io::Result<()> {
        // Ends: each turn waits until the socket takes something.
        loop {
            match write_sealed(&mut self.session, &self.tcp) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.tcp.writable().await?,
                other => return other,
            }
        }
    }

    /// Tells the other side why, and waits until it has read that: what is closed with bytes unread
    /// is reset, and a reset may overtake the reason.
    async fn reject(&mut self, last_words: &[u8]) {
        let told = async {
            self.write_all().await?;
            self.tcp.write_all(last_words).await?;
            self.tcp.shutdown().await?;
            let mut discarded = 0;
            while discarded < MAX_LINGER_BYTES {
                match self.inflow.fill(&self.tcp).await? {
                    0 => break,
                    bytes => discarded += bytes,
                }
            }
            io::Result::Ok(())
        };
        let _ = timeout(MAX_LINGER, told).await;
    }
}

/// What a peer has shown, and what makes it invalid.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) id: u64,
    chain: Vec<CertificateDer<'static>>,
    role: Role,
    loaded: watch::Receiver<Arc<Loaded>>,
}

impl Shown {
    /// Returns when a reload has made the certificate invalid, with the reason. Cancel safe.
    pub(super) async fn revoked(&mut self) -> TlsError {
        // Ends when the certificate is rejected; an error says that nothing will be reloaded.
        while self.loaded.changed().await.is_ok() {
            let loaded = Arc::clone(&self.loaded.borrow_and_update());
            if let Err(error) = loaded.verifier.verify(&self.chain, self.role, UnixTime::now()) {
                return error;
            }
        }
        std::future::pending().await
    }
}

/// Does the TLS handshake of a connection, until the deadline.
pub(super) async fn open(
    tcp: TcpStream,
    remote: SocketAddr,
    tls: &Tls,
    purpose: Purpose<'_>,
    deadline: Instant,
) -> Result<(SessionReader, SessionWriter, Shown), OpenError> {
    // Subscribed before the certificates are taken: no reload is missed.
    let mut loaded = tls.subscribe();
    let now = Arc::clone(&loaded.borrow_and_update());
    let session = match purpose {
        Purpose::Accept(_) => ServerConnection::new(Arc::clone(&now.server)).map(Connection::from),
        Purpose::Dial { .. } => {
            // An address is not sent to the server, and the id is compared instead of a name.
            let name = ServerName::IpAddress(remote.ip().into());
            ClientConnection::new(Arc::clone(&now.client), name).map(Connection::from)
        }
    };
    let mut session = session.map_err(|error| OpenError::Rejected(error_of(&error)))?;
    session.set_buffer_limit(Some(MAX_SEALED_BYTES));
    let mut opening = Opening { tcp, session, inflow: Inflow::new() };
    let done = match timeout_at(deadline, opening.run()).await {
        Ok(Ok(())) => identify(&opening.session, &now, purpose).map_err(OpenError::Rejected),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(OpenError::TimedOut),
    };
    match done {
        Ok(id) => {
            let chain = opening.session.peer_certificates().unwrap_or_default();
            let chain = chain.iter().cloned().map(CertificateDer::into_owned).collect();
            let shown = Shown { id, chain, role: purpose.role(), loaded };
            let (reader, writer) = split(opening);
            Ok((reader, writer, shown))
        }
        Err(error) => {
            match (&error, purpose) {
                (OpenError::Rejected(TlsError::Plaintext), Purpose::Accept(reply)) => {
                    opening.reject(reply).await;
                }
                (OpenError::Rejected(_), _) => opening.reject(&[]).await,
                _ => {}
            }
            Err(error)
        }
    }
}

/// Who the peer is, once its handshake is complete.
fn identify(session: &Connection, loaded: &Loaded, purpose: Purpose<'_>) -> Result<u64, TlsError> {
    if session.alpn_protocol() != Some(PROTOCOL) {
        return Err(TlsError::Protocol);
    }
    let own = session.peer_certificates().and_then(<[_]>::first);
    let proven = loaded.verifier.id_of(own.ok_or(TlsError::NoCertificate)?)?;
    match purpose {
        Purpose::Dial { peer: claimed } if claimed != proven => {
            Err(TlsError::WrongId { claimed, proven })
        }
        _ => Ok(proven),
    }
}

impl Purpose<'_> {
    /// The side of the peer.
    fn role(self) -> Role {
        match self {
            Self::Accept(_) => Role::Client,
            Self::Dial { .. } => Role::Server,
        }
    }
}

struct Shared {
    tcp: TcpStream,
    session: Mutex<Connection>,
    /// The session has encrypted what the socket did not take. Written under the session's lock.
    has_sealed: AtomicBool,
}

impl Shared {
    /// Writes what the session has encrypted, and notes whether some of it is left.
    fn write_sealed(&self, session: &mut Connection) -> io::Result<()> {
        let result = write_sealed(session, &self.tcp);
        self.has_sealed.store(session.wants_write(), Ordering::Release);
        result
    }
}

fn split(opening: Opening) -> (SessionReader, SessionWriter) {
    let Opening { tcp, session, inflow } = opening;
    let has_sealed = AtomicBool::new(session.wants_write());
    let shared = Arc::new(Shared { tcp, session: Mutex::new(session), has_sealed });
    (SessionReader { shared: Arc::clone(&shared), inflow }, SessionWriter { shared })
}

/// The end that decrypts.
pub(super) struct SessionReader {
    shared: Arc<Shared>,
    inflow: Inflow,
}

/// Result of looking for decrypted bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Bytes were taken or decrypted; there may be more.
    More,
    /// The socket must be read for more.
    Empty,
    /// The peer has said that nothing follows.
    Ended,
}

impl SessionReader {
    /// Appends what there is, at least a byte, at most what the buffer has room for; 0 at the end.
    /// Cancel safe: what was taken from the socket stays in `self`.
    pub(super) async fn read(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        let room = buffer.capacity() - buffer.len();
        self.read_up_to(buffer, if room == 0 { READ_BYTES } else { room }).await
    }

    async fn read_up_to(&mut self, buffer: &mut BytesMut, max_bytes: usize) -> io::Result<usize> {
        let before = buffer.len();
        // Ends: each turn takes bytes that wait, or waits until the socket has some or has ended.
        loop {
            let step = loop {
                let left = max_bytes - (buffer.len() - before);
                match self.step(buffer, left) {
                    Ok(Step::More) if buffer.len() - before < max_bytes => {}
                    Ok(step) => break step,
                    // What was decrypted before the damage is delivered first; a session that has
                    // failed fails again.
                    Err(_) if buffer.len() > before => break Step::More,
                    Err(error) => return Err(error),
                }
            };
            if buffer.len() > before || step == Step::Ended {
                return Ok(buffer.len() - before);
            }
            if self.inflow.fill(&self.shared.tcp).await? == 0 {
                return self.end();
            }
        }
    }

    /// Takes what the session has decrypted; if there is nothing, lets it decrypt more.
    fn step(&mut self, buffer: &mut BytesMut, max_bytes: usize) -> io::Result<Step> {
        let mut session = self.shared.session.lock();
        match session.reader().fill_buf() {
            Ok([]) => return Ok(Step::Ended),
            Ok(decrypted) => {
                let bytes = decrypted.len().min(max_bytes);
                buffer.extend_from_slice(&decrypted[..bytes]);
                session.reader().consume(bytes);
                return Ok(Step::More);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if self.inflow.waiting().is_empty() {
            return Ok(Step::Empty);
        }
        let fed = self.inflow.feed(&mut session);
        if session.wants_write() {
            // An alert, or new keys. What the socket does not take now goes with the next write.
            let _ = self.shared.write_sealed(&mut session);
        }
        fed.map(|()| Step::More)
    }

    /// The socket has ended: whether the peer has said so before.
    fn end(&mut self) -> io::Result<usize> {
        let mut session = self.shared.session.lock();
        session.read_tls(&mut io::empty())?;
        match session.reader().fill_buf() {
            Ok(_) => Ok(0),
            Err(_) => Err(failed(TlsError::Truncated)),
        }
    }

    pub(super) async fn read_exact(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        let mut buffer = BytesMut::with_capacity(bytes.len());
        while buffer.len() < bytes.len() {
            let left = bytes.len() - buffer.len();
            if self.read_up_to(&mut buffer, left).await? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        bytes.copy_from_slice(&buffer);
        Ok(())
    }
}

/// The end that encrypts. Dropping it says that nothing follows.
pub(super) struct SessionWriter {
    shared: Arc<Shared>,
}

impl SessionWriter {
    /// Encrypts as much as there is room for, and writes it. `WouldBlock` when the socket has not
    /// taken what was encrypted before.
    ///
    /// After an error nothing of `slices` has left this process, nor will it: whatever has been
    /// encrypted counts as written, also when the socket fails.
    pub(super) fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut session = self.shared.session.lock();
        self.shared.write_sealed(&mut session)?;
        let bytes = session.writer().write_vectored(slices)?;
        // The next write meets the error.
        let _ = self.shared.write_sealed(&mut session);
        Ok(bytes)
    }

    /// Writes what was encrypted and not taken by the socket; `WouldBlock` when some of it is left.
    pub(super) fn try_flush(&self) -> io::Result<()> {
        if !self.has_sealed() {
            return Ok(());
        }
        self.shared.write_sealed(&mut self.shared.session.lock())
    }

    pub(super) fn has_sealed(&self) -> bool {
        self.shared.has_sealed.load(Ordering::Acquire)
    }

    pub(super) async fn writable(&self) -> io::Result<()> {
        self.shared.tcp.writable().await
    }

    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        // Ends: each turn waits until the socket takes something.
        loop {
            let written = match bytes {
                [] => self.try_flush(),
                _ => self.try_write(&[IoSlice::new(bytes)]).map(|done| bytes = &bytes[done..]),
            };
            match written {
                Ok(()) if bytes.is_empty() && !self.has_sealed() => return Ok(()),
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.writable().await?,
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for SessionWriter {
    fn drop(&mut self) {
        let mut session = self.shared.session.lock();
        session.send_close_notify();
        // Without room the peer sees a connection that was cut.
        let _ = self.shared.write_sealed(&mut session);
    }
}
