//! Wires one node together: a journal on disk, TCP to the peers, raft over both, HTTP in front.

use std::error::Error;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use voussoir_journal::{Config, Journal};
use voussoir_net::{Tcp, Transport as _};
use voussoir_raft::journal::{Identity, JournalStore, OpenError};
use voussoir_raft::net::NetTransport;
use voussoir_raft::{HaltReason, Membership, Raft, StartError, StopReason};

use crate::args::{Limits, Serve};
use crate::disk::WatchedStore;
use crate::http::{self, App};
use crate::kv::Kv;
use crate::listen;
use crate::machine::Machine;
use crate::members::{AddressBook, Connecting};
use crate::metrics::Metrics;
use crate::observe::{self, Peers};
use crate::room::Room;
use crate::tls;
use crate::traffic::{Freshness, Traffic};

/// Keeps the nodes of one store from talking to those of another. **Choose your own.**
pub(crate) const CLUSTER: u128 = 0x766f_7573_736f_6972_2073_746f_7265_0001;
/// The number under which raft's messages travel, the same on every node.
pub(crate) const RAFT_SERVICE: u16 = 1;
/// The raft group. A process can run many, over one journal and one transport.
const GROUP: u64 = 0;
/// How long the node waits at shutdown for its peers to take queued messages.
pub(crate) const GOODBYE: Duration = Duration::from_secs(1);
/// How long a leader that shuts down answers requests in flight before it hands over.
const MOMENT: Duration = Duration::from_millis(200);

/// Why a node did not start, or stopped without being told to.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    /// The folder holds no data of this node. A restart fails in the same way: an operator has to
    /// decide.
    #[error("{folder}: {error}")]
    NoData { folder: String, error: OpenError },
    /// The data is damaged. A restart fails in the same way: the node has to be rebuilt.
    #[error(
        "{folder}: {reason}; keep this folder, do not start this node again: it may hold the only \
         copy of acknowledged writes"
    )]
    Damaged { folder: String, reason: StopReason },
    /// The options contradict each other or the data, for example by naming other peers than those
    /// the node began with. A restart with the same options fails in the same way.
    #[error("{folder}: {error}; compare --id and --peer with those of the first start")]
    Options { folder: String, error: StartError },
    /// The data is of a cluster with other voters, and the options name no peer: the node would
    /// neither lead nor find anybody.
    #[error("{folder}: the cluster has the other voters {voters:?}; name them with --peer")]
    Alone { folder: String, voters: Vec<u64> },
    /// The node has stopped. Restart it once the cause, if one is named, is gone.
    #[error("the node has stopped: {reason}{}", cause(.disk))]
    Halted { reason: StopReason, disk: Option<String> },
    /// The node cannot listen on an address.
    #[error("cannot listen on {address} ({option})")]
    Listen { option: &'static str, address: std::net::SocketAddr, source: std::io::Error },
    /// The journal did not open.
    #[error("{folder}: {error}")]
    Journal { folder: String, error: voussoir_journal::OpenError },
}

fn cause(disk: &Option<String>) -> String {
    disk.as_ref().map_or_else(String::new, |disk| format!(" ({disk})"))
}

impl Stopped {
    /// Why raft did not start.
    pub(crate) fn at_start(data: &Path, error: StartError) -> Box<dyn Error> {
        match error {
            StartError::Config(_) | StartError::Restored(_) | StartError::WrongNode { .. } => {
                Self::Options { folder: data.display().to_string(), error }.into()
            }
            error => error.into(),
        }
    }

    /// The exit status: 3 when an operator has to decide before a restart, 2 for wrong options, 1
    /// when a supervisor may restart the node.
    pub fn status(&self) -> u8 {
        match self {
            Self::NoData { .. } | Self::Damaged { .. } => 3,
            Self::Options { .. } | Self::Alone { .. } => 2,
            Self::Journal { error: voussoir_journal::OpenError::Config(_), .. } => 2,
            _ => 1,
        }
    }
}

/// Creates the data of a node that has never run: once for each node, when the cluster is set up.
/// [`serve`] never does, because it cannot tell a new node from one whose disk was lost.
///
/// # Errors
/// The disk failed, or the folder holds data of this node already.
pub fn create(id: u64, data: &Path) -> Result<(), Box<dyn Error>> {
    std::fs::create_dir_all(data).map_err(|error| format!("{}: {error}", data.display()))?;
    let journal = open_journal(data, small_segments())?;
    JournalStore::create(&journal, identity(id)).map_err(|error| match error {
        OpenError::Exists { .. } => {
            format!("{}: a node was created here before; run it with serve", data.display())
        }
        error => format!("{}: {error}", data.display()),
    })?;
    journal.close()?;
    Ok(())
}

/// Whether `data` holds the data of node `id`. False after a crash in the middle of [`create`].
///
/// # Errors
/// The data is damaged, of another node, or in use.
pub fn is_created(id: u64, data: &Path) -> Result<bool, Box<dyn Error>> {
    if !data.join("journal").is_dir() {
        return Ok(false);
    }
    let journal = open_journal(data, small_segments())?;
    match JournalStore::open(&journal, identity(id)) {
        Ok(_) => Ok(true),
        Err(OpenError::Absent { .. }) => Ok(false),
        Err(error) => Err(format!("{}: {error}", data.display()).into()),
    }
}

fn identity(node: u64) -> Identity {
    Identity { cluster: CLUSTER, node, group: GROUP }
}

fn open_journal(data: &Path, config: Config) -> Result<Journal, Stopped> {
    let folder = data.join("journal");
    Journal::open(&folder, config)
        .map_err(|error| Stopped::Journal { folder: folder.display().to_string(), error })
}

/// Runs a node until SIGTERM, Ctrl-C, or until it stops by itself.
///
/// Raft's loop, the sockets and the handlers run on one thread. On machines with a few cores that
/// halves the latency of a write, because no other thread has to be woken.
///
/// # Errors
/// [`Stopped`], or what the runtime, the network or raft reported at the start.
pub fn serve(node: Serve) -> Result<(), Box<dyn Error>> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(node))
}

async fn run(node: Serve) -> Result<(), Box<dyn Error>> {
    let mut signals = Signals::listen()?;
    let metrics = Metrics::install()?;
    let http = TcpListener::bind(node.http).await;
    let http = http.map_err(|source| cannot_listen("--http", node.http, source))?;
    // Port 0 has become a free one.
    let http_address = http.local_addr()?;

    let (journal, log) = open_store(&node)?;
    let disk = WatchedStore::new(Arc::new(log), node.data.join("journal").display().to_string());
    let disk_watch = disk.watch();

    let book = Arc::new(AddressBook::default());
    for peer in &node.peers {
        book.insert(peer.id, Some(peer.address), peer.http.clone());
    }
    book.insert(node.id, None, http_address.to_string());
    let (tcp, peers) = connect(&node, &book).await?;
    let listen_address = tcp.address();
    let transport = NetTransport::new(Arc::new(tcp.clone()), RAFT_SERVICE)?;
    let transport = Connecting { transport, book: book.clone() };

    let kv = Arc::new(RwLock::new(Kv::default()));
    let machine = Box::new(Machine::new(kv.clone()));
    let raft = Raft::start(node.raft(), Arc::new(disk), machine, Arc::new(transport)).await;
    let raft = raft.map_err(|error| Stopped::at_start(&node.data, error))?;
    let members = raft.members().borrow().clone();
    not_alone(&node, &members)?;
    // Raft takes messages: peers may connect.
    tcp.open();

    let app = Arc::new(App {
        raft: raft.clone(),
        journal: journal.clone(),
        tcp: tcp.clone(),
        kv,
        addresses: book,
        peers: peers.clone(),
        disk: disk_watch.clone(),
        metrics,
        timeout: node.timing.request_timeout,
        disk_stall: node.timing.disk_stall,
        commit_at_start: raft.status().borrow().commit,
        room: Room::new(node.limits.max_data()),
        traffic: Traffic::default(),
        freshness: Freshness::default(),
    });
    let mut observers = JoinSet::new();
    observers.spawn(observe::peers(tcp.events(), peers, raft.clone()));
    observers.spawn(observe::leadership(raft.clone(), app.metrics.elections.clone()));
    observers.spawn(observe::disk(app.clone()));
    observers.spawn(observe::freshness(app.clone()));

    let (hang_up, hung_up) = oneshot::channel::<()>();
    let (router, connections) = (http::router(app.clone()), listen::Limits::default());
    let server = listen::serve(http, router, connections, async { drop(hung_up.await) });
    let server = tokio::spawn(server);
    let (http, peers) = (http_address, listen_address);
    tracing::info!(node = node.id, %http, %peers, "the node serves");

    let ended = tokio::select! {
        () = signals.recv() => Ok(()),
        () = parent_exited(node.exit_with_parent) => Ok(()),
        reason = stopped(&raft) => Err(reason),
    };
    observers.shutdown().await;
    let drain = if ended.is_ok() { node.drain } else { Duration::ZERO };
    let mut ending = Ending { until: Instant::now() + drain, signals };
    if ended.is_ok() {
        tracing::info!(node = node.id, "ending: taking no new requests");
        ending.drain_and_hand_over(&app.traffic, hand_over(&raft)).await;
    }
    // This node still answers its clients with 503 until it has ended.
    raft.shutdown().await;
    tcp.shutdown(Instant::now() + GOODBYE).await;
    let refuse = async {
        app.traffic.wait_until_quiet().await;
        // The connections that remain are idle: close them.
        drop(hang_up);
        server.await
    };
    ending.wait(refuse).await;
    let closed = journal.close();
    match ended {
        Ok(()) => {
            closed?;
            tracing::info!(node = node.id, "ended");
            Ok(())
        }
        Err(reason) if must_be_rebuilt(&reason) => {
            let folder = node.data.display().to_string();
            Err(Stopped::Damaged { folder, reason }.into())
        }
        Err(reason) => Err(Stopped::Halted { reason, disk: disk_watch.failed() }.into()),
    }
}

fn not_alone(node: &Serve, members: &Membership) -> Result<(), Stopped> {
    let voters: Vec<u64> = members.voters().iter().copied().filter(|id| *id != node.id).collect();
    if voters.is_empty() || !node.peers.is_empty() {
        return Ok(());
    }
    Err(Stopped::Alone { folder: node.data.display().to_string(), voters })
}

/// Lets another node lead at once, if this one does: else nobody would until an election timeout
/// has passed.
async fn hand_over(raft: &Raft) {
    let leads = {
        let status = raft.status();
        let status = status.borrow();
        status.leader == Some(status.id)
    };
    if !leads {
        return;
    }
    match raft.transfer_leadership(None, Instant::now() + GOODBYE).await {
        Ok(leader) => tracing::info!(leader, "another node leads now"),
        Err(error) => tracing::warn!(%error, "leadership was not handed over"),
    }
}

/// How long a node that ends waits for what is under way.
pub(crate) struct Ending {
    /// The deadline: now, once a second signal has come.
    pub(crate) until: Instant,
    pub(crate) signals: Signals,
}

impl Ending {
    /// Takes no new requests, hands over, and waits for those in flight.
    ///
    /// Most requests in flight are answered within moments, and by the leader that they asked. Some
    /// take long, though: while they are waited for, this node takes no writes, and no other node
    /// could if this one still led.
    pub(crate) async fn drain_and_hand_over(
        &mut self,
        traffic: &Traffic,
        hand_over: impl Future<Output = ()>,
    ) {
        let until = self.until;
        let work = async {
            let _ = timeout_at(until.min(Instant::now() + MOMENT), traffic.drain()).await;
            hand_over.await;
            by(until, traffic.drain()).await;
        };
        self.unless_cut(work).await;
    }

    /// Waits for `work` until the deadline.
    pub(crate) async fn wait<T>(&mut self, work: impl Future<Output = T>) {
        self.unless_cut(by(self.until, work)).await;
    }

    /// Waits for `work`, or until a second SIGTERM or Ctrl-C, after which nothing is waited for.
    async fn unless_cut(&mut self, work: impl Future<Output = ()>) {
        tokio::select! {
            () = work => {}
            () = self.signals.second() => {
                tracing::warn!("second signal: not waiting any longer");
                self.until = Instant::now();
            }
        }
    }
}

/// Waits for `work` until the deadline.
async fn by<T>(until: Instant, work: impl Future<Output = T>) {
    if timeout_at(until, work).await.is_err() {
        tracing::warn!("the drain time is over: requests in flight are cut off");
    }
}

/// Whether a restart with the same folder would end in the same way.
pub(crate) fn must_be_rebuilt(reason: &StopReason) -> bool {
    let lost = [HaltReason::Damaged, HaltReason::LogLost, HaltReason::Inconsistent];
    reason.halted().is_some_and(|reason| lost.contains(&reason))
}

/// Opens the data of this node. Never creates data.
pub(crate) fn open_store(node: &Serve) -> Result<(Journal, JournalStore), Stopped> {
    let no_data = |error| Stopped::NoData { folder: node.data.display().to_string(), error };
    if !node.data.join("journal").is_dir() {
        return Err(no_data(OpenError::Absent { wanted: identity(node.id) }));
    }
    let journal = open_journal(&node.data, journal_options(&node.limits))?;
    let log = JournalStore::open(&journal, identity(node.id)).map_err(no_data)?;
    Ok((journal, log))
}

/// The journal allocates whole segments: small ones keep a new node small.
fn small_segments() -> Config {
    let mut config = Config::default();
    config.segment_bytes = 16 << 20;
    config
}

fn journal_options(limits: &Limits) -> Config {
    let mut options = Config::default();
    options.segment_bytes = limits.segment_bytes();
    options.max_bytes = limits.max_bytes;
    options
}

/// The transport to the peers. It takes no connection before [`Tcp::open`].
pub(crate) async fn connect(
    node: &Serve,
    book: &AddressBook,
) -> Result<(Tcp, Arc<Peers>), Box<dyn Error>> {
    let config = voussoir_net::Config::new(CLUSTER);
    let addresses = Arc::new(book.peers.clone());
    let bound = match tls::load(&node.tls)? {
        None => Tcp::prepare(node.id, node.listen, addresses, config).await,
        Some(tls) => {
            tokio::spawn(tls::reload_at_hangup(tls.clone(), node.tls.clone()));
            Tcp::prepare_tls(node.id, node.listen, addresses, config, tls).await
        }
    };
    let tcp = match bound {
        Err(voussoir_net::BindError::Listen { address, source }) => {
            return Err(cannot_listen("--listen", address, source).into());
        }
        bound => bound?,
    };
    let peers = Peers::new(node.peers.iter().map(|peer| (peer.id, peer.address)));
    Ok((tcp, Arc::new(peers)))
}

pub(crate) fn cannot_listen(
    option: &'static str,
    address: std::net::SocketAddr,
    source: std::io::Error,
) -> Stopped {
    Stopped::Listen { option, address, source }
}

/// Returns when raft has stopped for good, for example after its disk failed.
pub(crate) async fn stopped(raft: &Raft) -> StopReason {
    let mut status = raft.status();
    loop {
        if let Some(reason) = raft.stopped() {
            return reason;
        }
        if status.changed().await.is_err() {
            return raft.stopped().unwrap_or(StopReason::ShutDown);
        }
    }
}

/// SIGTERM and Ctrl-C. None is lost between two calls of [`recv`](Self::recv).
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// How many were received.
    received: u32,
}

impl Signals {
    pub(crate) fn listen() -> std::io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        Ok(Self { terminate, interrupt: signal(SignalKind::interrupt())?, received: 0 })
    }

    pub(crate) async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
        self.received += 1;
    }

    /// Waits for the second one. The end may have begun without a first, when the parent exited.
    async fn second(&mut self) {
        while self.received < 2 {
            self.recv().await;
        }
    }
}

/// Returns when standard input closes, if that is wanted.
pub(crate) async fn parent_exited(wanted: bool) {
    if !wanted {
        return std::future::pending().await;
    }
    let (gone, wait) = oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = gone.send(());
    });
    let _ = wait.await;
}
