//! Passes the bytes of one connection, in both directions, under the settings of its proxy.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::faults::{Fault, Flips};
use super::{Direction, Link, MAX_HELD_BYTES, Settings, Shared};

/// How long connecting to the target may take. Longer than any test waits for a connection, and
/// reached only when the target's backlog is full.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// The most bytes of one read and of one write.
const CHUNK_BYTES: usize = 64 * 1024;
/// A throttled direction writes at most what it may pass in `1 / SLICES` seconds at a time.
const SLICES: u64 = 50;

/// Connects to the target when nothing is cut, then passes bytes until both directions have ended.
/// Returns whether the end is a reset. The target's socket is closed on return.
pub(super) async fn run(
    client: &mut TcpStream,
    number: u64,
    mut settings: watch::Receiver<Settings>,
    shared: &Shared,
) -> bool {
    let (began, is_cut) = {
        let now = settings.borrow();
        (now.disconnects, !is_open(&now))
    };
    let mut disconnects = settings.clone();
    let disconnected = disconnects.wait_for(|now| now.disconnects != began);
    tokio::pin!(disconnected);
    let target = tokio::select! {
        biased;
        result = &mut disconnected => return result.is_ok(),
        open = settings.wait_for(is_open) => match open {
            Ok(now) => now.target,
            Err(_) => return false,
        },
    };
    let mut forth = Pump::new(Direction::ToTarget, number, settings.clone(), shared);
    // Through a real cut, a client that gave up during it would not have connected at all.
    if is_cut && forth.read_available(client) {
        return false;
    }
    // A disconnect does not end the dial: the target may have accepted already, and must see the
    // reset.
    let Ok(mut server) = dial(client, target).await else { return true };
    let back = Pump::new(Direction::FromTarget, number, settings, shared);
    let (client_read, client_write) = client.split();
    let (server_read, server_write) = server.split();
    let both = async {
        tokio::try_join!(forth.run(client_read, server_write), back.run(server_read, client_write))
    };
    let is_reset = tokio::select! {
        biased;
        result = &mut disconnected => result.is_ok(),
        ended = both => ended.is_err(),
    };
    if is_reset {
        // Fails only if the socket is closed already.
        let _ = server.set_zero_linger();
    }
    is_reset
}

fn is_open(settings: &Settings) -> bool {
    settings.links.iter().all(|link| !link.is_cut)
}

async fn dial(client: &TcpStream, target: SocketAddr) -> io::Result<TcpStream> {
    let server = timeout(DIAL_TIMEOUT, TcpStream::connect(target)).await??;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    Ok(server)
}

/// One side has reset the connection, or a rule does; the other side may be reset too.
#[derive(Debug)]
struct Broken;

/// Why a piece was not written.
#[derive(Debug)]
enum WriteError {
    /// The receiver is gone.
    Sink,
    /// A rule resets the connection.
    Reset,
}

/// A piece read from a socket.
#[derive(Debug)]
enum Piece {
    Bytes(Bytes),
    /// The sender closed its side.
    End,
    /// The sender reset the connection.
    Broken,
}

/// One direction of a connection.
struct Pump<'a> {
    direction: Direction,
    settings: watch::Receiver<Settings>,
    shared: &'a Shared,
    /// Pieces read and not yet written, with their time of reading, oldest first.
    queue: VecDeque<(Instant, Piece)>,
    /// Sum of the bytes in `queue`.
    held: usize,
    /// Whether the last piece, `End` or `Broken`, was read.
    is_ended: bool,
    /// Under a throttle: the time at which so many bytes may be written.
    reserved: Option<(Instant, usize)>,
    flips: Flips,
    /// A rule lets nothing more pass.
    is_stalled: bool,
}

impl Drop for Pump<'_> {
    fn drop(&mut self) {
        self.shared.held.fetch_sub(self.held, Ordering::Relaxed);
    }
}

impl<'a> Pump<'a> {
    fn new(
        direction: Direction,
        number: u64,
        settings: watch::Receiver<Settings>,
        shared: &'a Shared,
    ) -> Self {
        Self {
            direction,
            settings,
            shared,
            queue: VecDeque::new(),
            held: 0,
            is_ended: false,
            reserved: None,
            flips: Flips::new(number, direction),
            is_stalled: false,
        }
    }

    /// How many more bytes may be read from the sender; 0 after the end of the stream.
    fn room(&self) -> usize {
        if self.is_ended { 0 } else { MAX_HELD_BYTES - self.held }
    }

    /// Reads what has arrived, up to the limit of held bytes. Returns whether the stream ended.
    fn read_available(&mut self, source: &TcpStream) -> bool {
        // Ends at the limit, at the end of the stream, or when nothing more has arrived.
        while self.room() > 0 {
            if !self.try_read(source) {
                break;
            }
        }
        self.is_ended
    }

    /// Reads once. Returns false if nothing has arrived.
    fn try_read(&mut self, source: &TcpStream) -> bool {
        let mut buffer = vec![0; CHUNK_BYTES.min(self.room())];
        let piece = match source.try_read(&mut buffer) {
            Ok(0) => Piece::End,
            Ok(bytes) => {
                self.held += bytes;
                self.shared.held.fetch_add(bytes, Ordering::Relaxed);
                let one_in = self.settings.borrow().link(self.direction).flips_one_in;
                let flipped = self.flips.apply(one_in, &mut buffer[..bytes]);
                self.shared.flipped.fetch_add(flipped, Ordering::Relaxed);
                // Copied, so that a short read does not hold a whole chunk.
                Piece::Bytes(Bytes::copy_from_slice(&buffer[..bytes]))
            }
            Err(error) if is_transient(&error) => return false,
            Err(_) => Piece::Broken,
        };
        self.is_ended = !matches!(piece, Piece::Bytes(_));
        self.queue.push_back((Instant::now(), piece));
        true
    }

    /// Passes bytes until the end of the stream has been passed on.
    async fn run(mut self, source: ReadHalf<'_>, mut sink: WriteHalf<'_>) -> Result<(), Broken> {
        loop {
            let link = self.settings.borrow_and_update().link(self.direction);
            let is_held = link.is_cut || self.is_stalled;
            let may_read = !is_held && self.room() > 0;
            let next = if is_held { None } else { self.next_write(link) };
            tokio::select! {
                biased;
                changed = self.settings.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    // The reservation was made under the previous settings.
                    self.reserved = None;
                }
                writable = may_write(&sink, next) => {
                    let bytes = next.map_or(0, |(_, bytes)| bytes);
                    let written = writable.map_err(|_| WriteError::Sink);
                    let written = written.and_then(|()| self.write(&sink, bytes));
                    match written {
                        Ok(()) => {}
                        Err(WriteError::Reset) => return Err(Broken),
                        Err(WriteError::Sink) => return self.tell_of_broken_sink().await,
                    }
                    match self.queue.front() {
                        Some((_, Piece::End)) if bytes == 0 => {
                            if sink.shutdown().await.is_err() {
                                return self.tell_of_broken_sink().await;
                            }
                            return Ok(());
                        }
                        Some((_, Piece::Broken)) if bytes == 0 => return Err(Broken),
                        _ => {}
                    }
                }
                // An error shows again when reading.
                _ = source.readable(), if may_read => {
                    self.try_read(source.as_ref());
                }
            }
        }
    }

    /// When something is to be done next with the first piece, and how many bytes may be written
    /// then. `None` if the queue is empty or the time is beyond the range of the clock.
    fn next_write(&mut self, link: Link) -> Option<(Instant, usize)> {
        let (arrived, piece) = self.queue.front()?;
        let due = arrived.checked_add(link.delay)?;
        match (piece, link.bytes_per_second) {
            (Piece::End | Piece::Broken, _) => Some((due, 0)),
            (Piece::Bytes(bytes), None) => Some((due, bytes.len())),
            (Piece::Bytes(_), Some(_)) if due > Instant::now() => Some((due, 0)),
            (Piece::Bytes(bytes), Some(rate)) => {
                let slice = usize::try_from(rate.get() / SLICES).unwrap_or(usize::MAX).max(1);
                let count = bytes.len().min(slice);
                let reserve = || (self.shared.reserve(self.direction, count, rate), count);
                Some(*self.reserved.get_or_insert_with(reserve))
            }
        }
    }

    /// Writes at most so many bytes of the first piece, and none beyond the place of a rule.
    fn write(&mut self, sink: &WriteHalf<'_>, bytes: usize) -> Result<(), WriteError> {
        let Some((_, Piece::Bytes(first))) = self.queue.front_mut() else { return Ok(()) };
        if bytes == 0 {
            return Ok(());
        }
        let bytes = match self.shared.until_rule(self.direction, bytes) {
            Ok(bytes) => bytes,
            Err(Fault::FlipBit) => {
                let mut flipped = BytesMut::from(&first[..]);
                flipped[0] ^= 1;
                *first = flipped.freeze();
                self.shared.flipped.fetch_add(1, Ordering::Relaxed);
                bytes
            }
            Err(Fault::Reset) => return Err(WriteError::Reset),
            Err(Fault::Stall) => {
                self.is_stalled = true;
                return Ok(());
            }
        };
        let written = match sink.try_write(&first[..bytes]) {
            Ok(written) => written,
            Err(error) if is_transient(&error) => return Ok(()),
            Err(_) => return Err(WriteError::Sink),
        };
        first.advance(written);
        if first.is_empty() {
            self.queue.pop_front();
        }
        self.held -= written;
        self.shared.held.fetch_sub(written, Ordering::Relaxed);
        self.shared.passed(self.direction, written);
        let left = |(at, count): (Instant, usize)| (count > written).then(|| (at, count - written));
        self.reserved = self.reserved.and_then(left);
        Ok(())
    }

    /// Waits until the sender may know that the receiver is gone: its reset would travel in the
    /// other direction.
    async fn tell_of_broken_sink(mut self) -> Result<(), Broken> {
        let reverse = self.direction.reverse();
        let is_open = |now: &Settings| !now.link(reverse).is_cut;
        if let Ok(delay) = self.settings.wait_for(is_open).await.map(|now| now.link(reverse).delay)
        {
            sleep(delay).await;
        }
        Err(Broken)
    }
}

/// Waits for the time of the next write, and for room in the socket if there are bytes to write.
async fn may_write(sink: &WriteHalf<'_>, next: Option<(Instant, usize)>) -> io::Result<()> {
    let Some((at, bytes)) = next else { return std::future::pending().await };
    if at > Instant::now() {
        sleep_until(at).await;
    }
    if bytes == 0 { Ok(()) } else { sink.writable().await }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
