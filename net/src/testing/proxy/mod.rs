//! A TCP proxy on loopback between real processes, with faults that change while it runs.

mod faults;
mod relay;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep};

pub use self::faults::{Fault, Rule};

/// The most connections of one [`Proxy`] at a time; further ones are reset when they come in.
pub const MAX_CONNECTIONS: usize = 1024;

/// The most bytes that a [`Proxy`] holds per connection and direction. A delayed, throttled or cut
/// direction stops reading at this limit, so a delay of `d` lets at most
/// `MAX_HELD_BYTES / d` bytes per second through each connection.
pub const MAX_HELD_BYTES: usize = 1 << 20;

/// After a failed `accept` (no free descriptor, usually).
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// How far a throttle may catch up after its timer fired late.
const THROTTLE_CREDIT: Duration = Duration::from_millis(5);

/// Direction of the bytes that pass a [`Proxy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the processes that connect to the proxy, to the target.
    ToTarget,
    /// From the target, to the processes that connected to the proxy.
    FromTarget,
}

impl Direction {
    /// Both directions.
    pub const BOTH: [Self; 2] = [Self::ToTarget, Self::FromTarget];

    /// The other direction.
    pub fn reverse(self) -> Self {
        match self {
            Self::ToTarget => Self::FromTarget,
            Self::FromTarget => Self::ToTarget,
        }
    }
}

/// Faults that one direction of a [`Proxy`] applies to the bytes that pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Link {
    /// Time from reading a byte to writing it. Also delays the end of a connection.
    pub delay: Duration,
    /// Most bytes per second, summed over all connections of the proxy. `None`: no limit.
    pub bytes_per_second: Option<NonZeroU64>,
    /// Whether nothing passes.
    pub is_cut: bool,
    /// One byte in so many, on average, passes with one of its bits flipped. `None`: no byte.
    /// Holds for bytes that the proxy reads after it was set. Which bytes depends on the number of
    /// the connection and on the bytes before in its direction alone.
    pub flips_one_in: Option<NonZeroU64>,
}

/// Why a [`Proxy`] did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyError {
    /// An address is not within 127.0.0.0/8. Nothing was opened.
    #[error("{address} is not a loopback address (127.0.0.0/8)")]
    NotLoopback {
        /// The address.
        address: SocketAddr,
    },
    /// The address could not be listened on. Nothing stays open; retry when it is free.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// The error of the operating system.
        #[source]
        source: io::Error,
    },
}

/// Counts of a [`Proxy`] since its start, except `connections` and `held_bytes`, which are current.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProxyStats {
    /// Connections that came in, rejected ones included.
    pub accepted: u64,
    /// Connections that stand now, with those that wait for a cut to heal before the proxy
    /// connects to the target.
    pub connections: usize,
    /// Connections that were reset: by [`Proxy::disconnect`], because one side reset, because the
    /// target could not be connected to, or because there were [`MAX_CONNECTIONS`] already.
    pub reset: u64,
    /// Bytes written to the target.
    pub bytes_to_target: u64,
    /// Bytes written to the processes that connected.
    pub bytes_from_target: u64,
    /// Bytes that were read and not written yet, in both directions.
    pub held_bytes: usize,
    /// Bytes of which a bit was flipped, by [`Proxy::set_flips`] and by rules.
    pub flipped_bytes: u64,
    /// Rules whose fault has happened.
    pub rules_met: u64,
}

/// Settings that each connection follows.
#[derive(Clone, Debug)]
struct Settings {
    target: SocketAddr,
    links: [Link; 2],
    /// Counts calls of [`Proxy::disconnect`]. A connection of an earlier count is reset.
    disconnects: u64,
}

impl Settings {
    fn link(&self, direction: Direction) -> Link {
        self.links[direction as usize]
    }
}

#[derive(Default)]
struct Shared {
    accepted: AtomicU64,
    connections: AtomicUsize,
    reset: AtomicU64,
    bytes: [AtomicU64; 2],
    held: AtomicUsize,
    flipped: AtomicU64,
    rules_met: AtomicU64,
    /// Per direction, the rule whose fault has not happened yet.
    rules: [Mutex<Option<Rule>>; 2],
    /// Per direction, the time at which its throttle is free again.
    free_at: [Mutex<Option<Instant>>; 2],
}

impl Shared {
    /// Reserves the throttled link for `bytes`; returns the time at which the last one has passed.
    fn reserve(&self, direction: Direction, bytes: usize, rate: NonZeroU64) -> Instant {
        let now = Instant::now();
        let mut free_at = self.free_at[direction as usize].lock();
        let earliest = now.checked_sub(THROTTLE_CREDIT).unwrap_or(now);
        let start = free_at.map_or(now, |at| at.max(earliest));
        let nanos = (bytes as u128 * 1_000_000_000).div_ceil(u128::from(rate.get()));
        let passed = start + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        *free_at = Some(passed);
        passed
    }
}

/// A TCP proxy on loopback, for tests of real processes under network faults.
///
/// Processes connect to [`Proxy::address`]; the proxy connects to the target for each of them and
/// passes bytes in both directions. Each direction can be delayed, throttled and cut, and all of it
/// can be changed while connections stand. A changed delay or throttle also holds for bytes that
/// the proxy has read already.
///
/// The faults:
///
/// * **TCP loses no byte within a connection**, so neither does the proxy: a cut direction stops
///   passing bytes and stops reading, and after [`Proxy::heal`] the bytes continue in order. What
///   a real network loses in a partition are connections, when one side runs out of patience.
/// * **A cut hides the end of a connection too**: if one side closes or dies during a cut, the
///   other side is not told before the cut heals.
/// * **New connections during a cut** are accepted (the kernel does that) and nothing answers on
///   them; the proxy connects to the target when both directions are open. A connection that its
///   process has given up by then never reaches the target.
/// * **A target that rejects** shows as a connection that is reset right after it was accepted.
/// * A connection is established without delay; its first bytes are delayed.
/// * **Flipped bits** are a fault of a middlebox or of memory that TCP's own sum does not see:
///   [`Proxy::set_flips`] flips some at random places, a [`Rule`] one at an exact place.
/// * **A [`Rule`]** flips a bit, resets or stalls one connection after an exact number of bytes of
///   one direction: in the middle of a handshake, of a frame, of an answer.
///
/// Everything is bounded: [`MAX_CONNECTIONS`], and [`MAX_HELD_BYTES`] per connection and direction
/// on top of the kernel's socket buffers. Only addresses in 127.0.0.0/8 are taken.
///
/// Dropping the proxy closes its listener and all its connections, when its tasks are next
/// scheduled; [`Proxy::close`] waits for that. It needs real time: on paused tokio time sockets
/// and timers disagree.
///
/// # Example
/// ```
/// use std::time::Duration;
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// use tokio::net::{TcpListener, TcpStream};
/// use voussoir_net::testing::{Direction, Proxy};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let server = TcpListener::bind("127.0.0.1:0").await?;
/// let proxy = Proxy::start(server.local_addr()?).await?;
/// let mut client = TcpStream::connect(proxy.address()).await?;
/// let (mut accepted, _) = server.accept().await?;
///
/// proxy.set_delay(Direction::ToTarget, Duration::from_millis(20));
/// client.write_all(b"late").await?;
/// let mut buffer = [0; 4];
/// accepted.read_exact(&mut buffer).await?;
///
/// proxy.cut_one_way(Direction::FromTarget);
/// accepted.write_all(b"held").await?;
/// let held = tokio::time::timeout(Duration::from_millis(20), client.read_exact(&mut buffer));
/// assert!(held.await.is_err());
/// proxy.heal();
/// client.read_exact(&mut buffer).await?;
/// assert_eq!(&buffer, b"held");
/// # Ok(())
/// # }
/// ```
pub struct Proxy {
    address: SocketAddr,
    /// The tasks end when the sender is dropped.
    settings: watch::Sender<Settings>,
    shared: Arc<Shared>,
    listener: JoinHandle<()>,
}

impl Proxy {
    /// Starts a proxy to `target` on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// [`ProxyError`]; nothing has been started then.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O and time enabled.
    ///
    /// # Cancel safety
    /// Cancel safe: nothing stays when the future is dropped.
    pub async fn start(target: SocketAddr) -> Result<Self, ProxyError> {
        Self::start_on(SocketAddr::from(([127, 0, 0, 1], 0)), target).await
    }

    /// Starts a proxy to `target` on the given address; port 0 takes a free one.
    ///
    /// # Errors
    /// [`ProxyError`]; nothing has been started then.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O and time enabled.
    ///
    /// # Cancel safety
    /// Cancel safe: nothing stays when the future is dropped.
    pub async fn start_on(address: SocketAddr, target: SocketAddr) -> Result<Self, ProxyError> {
        check_loopback(address)?;
        check_loopback(target)?;
        let failed = |source| ProxyError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let links = [Link::default(); 2];
        let (settings, receiver) = watch::channel(Settings { target, links, disconnects: 0 });
        let shared = Arc::new(Shared::default());
        let listener = tokio::spawn(listen(listener, receiver, Arc::clone(&shared)));
        Ok(Self { address, settings, shared, listener })
    }

    /// The address to connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets where new connections go, for a target that restarted on another port. Connections
    /// that stand are left alone.
    ///
    /// # Errors
    /// [`ProxyError::NotLoopback`]; the target stays as it was.
    pub fn set_target(&self, target: SocketAddr) -> Result<(), ProxyError> {
        check_loopback(target)?;
        self.settings.send_modify(|settings| settings.target = target);
        Ok(())
    }

    /// The current settings of a direction.
    pub fn link(&self, direction: Direction) -> Link {
        self.settings.borrow().link(direction)
    }

    /// Sets the delay of a direction.
    pub fn set_delay(&self, direction: Direction, delay: Duration) {
        self.change(direction, |link| link.delay = delay);
    }

    /// Limits the bytes per second of a direction, summed over all connections; `None` removes
    /// the limit.
    pub fn set_bytes_per_second(&self, direction: Direction, rate: Option<NonZeroU64>) {
        *self.shared.free_at[direction as usize].lock() = None;
        self.change(direction, |link| link.bytes_per_second = rate);
    }

    /// Flips a bit of one byte in `one_in`, on average, of a direction; `None` flips none.
    pub fn set_flips(&self, direction: Direction, one_in: Option<NonZeroU64>) {
        self.change(direction, |link| link.flips_one_in = one_in);
    }

    /// Sets the rule of a direction, in place of one whose fault has not happened yet; `None`
    /// removes it. A rule is met once.
    pub fn set_rule(&self, direction: Direction, rule: Option<Rule>) {
        *self.shared.rules[direction as usize].lock() = rule;
    }

    /// What is left of the rule of a direction; `None` if there is none or its fault has happened.
    pub fn rule(&self, direction: Direction) -> Option<Rule> {
        *self.shared.rules[direction as usize].lock()
    }

    /// Lets nothing pass in either direction.
    pub fn cut(&self) {
        self.settings.send_modify(|settings| settings.links.iter_mut().for_each(cut));
    }

    /// Lets nothing pass in one direction; the other stays as it is.
    pub fn cut_one_way(&self, direction: Direction) {
        self.change(direction, cut);
    }

    /// Lets bytes pass again in both directions. Delays and throttles stay.
    pub fn heal(&self) {
        let heal = |link: &mut Link| link.is_cut = false;
        self.settings.send_modify(|settings| settings.links.iter_mut().for_each(heal));
    }

    /// Resets every connection that stands; bytes that the proxy holds are lost. New connections
    /// are taken as before.
    pub fn disconnect(&self) {
        self.settings.send_modify(|settings| settings.disconnects += 1);
    }

    /// Counts since the start.
    pub fn stats(&self) -> ProxyStats {
        let shared = &self.shared;
        ProxyStats {
            accepted: shared.accepted.load(Ordering::Relaxed),
            connections: shared.connections.load(Ordering::Relaxed),
            reset: shared.reset.load(Ordering::Relaxed),
            bytes_to_target: shared.bytes[0].load(Ordering::Relaxed),
            bytes_from_target: shared.bytes[1].load(Ordering::Relaxed),
            held_bytes: shared.held.load(Ordering::Relaxed),
            flipped_bytes: shared.flipped.load(Ordering::Relaxed),
            rules_met: shared.rules_met.load(Ordering::Relaxed),
        }
    }

    /// Closes the listener and every connection, and returns when none is left.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the end to the tasks, as dropping the proxy does.
    pub async fn close(self) {
        let Self { settings, listener, .. } = self;
        drop(settings);
        // The task does not panic; if it did, nothing would be left of it either.
        let _ = listener.await;
    }

    fn change(&self, direction: Direction, change: impl FnOnce(&mut Link)) {
        self.settings.send_modify(|settings| change(&mut settings.links[direction as usize]));
    }
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy")
            .field("address", &self.address)
            .field("settings", &*self.settings.borrow())
            .finish_non_exhaustive()
    }
}

fn cut(link: &mut Link) {
    link.is_cut = true;
}

fn check_loopback(address: SocketAddr) -> Result<(), ProxyError> {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_loopback() => Ok(()),
        _ => Err(ProxyError::NotLoopback { address }),
    }
}

/// Accepts connections until the proxy is dropped, then ends all of them.
async fn listen(
    listener: TcpListener,
    mut settings: watch::Receiver<Settings>,
    shared: Arc<Shared>,
) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            changed = settings.changed() => match changed {
                Ok(()) => continue,
                Err(_) => break,
            },
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((client, _)) => {
                let number = shared.accepted.fetch_add(1, Ordering::Relaxed);
                if connections.len() < MAX_CONNECTIONS {
                    let settings = settings.clone();
                    connections.spawn(connection(client, number, settings, Arc::clone(&shared)));
                } else {
                    reset(&client, &shared);
                }
            }
            Err(error) => {
                tracing::warn!(target: "voussoir::net", %error, "proxy: accept");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.shutdown().await;
}

/// The whole life of a connection.
async fn connection(
    mut client: TcpStream,
    number: u64,
    settings: watch::Receiver<Settings>,
    shared: Arc<Shared>,
) {
    let _counted = Counted::new(&shared);
    if relay::run(&mut client, number, settings, &shared).await {
        reset(&client, &shared);
    }
}

/// Makes the close of a socket a reset. The socket closes when its owner drops it.
fn reset(stream: &TcpStream, shared: &Shared) {
    shared.reset.fetch_add(1, Ordering::Relaxed);
    // Fails only if the socket is closed already.
    let _ = stream.set_zero_linger();
}

/// Counts a connection for as long as it lives.
struct Counted<'a>(&'a Shared);

impl<'a> Counted<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.connections.fetch_add(1, Ordering::Relaxed);
        Self(shared)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}
