//! A client: tasks that lock, write and release, and record what they see.

use std::fs::OpenOptions;
use std::io::Read;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::LocalSet;
use voussoir_lock::net::NetLocks;
use voussoir_lock::*;
use voussoir_net::Tcp;
use voussoir_sim::Rng;

use super::processes::{self, CLUSTER, Environment, Processes};
use super::{LOCK_SERVICE, LOCKS, NODES, Recorder, TTL, name_of};

/// Tasks of a client, each with a session of its own.
const TASKS: u64 = 8;
const SECOND: Duration = Duration::from_secs(1);

async fn locks(id: u64, addresses: &[SocketAddr]) -> Arc<NetLocks> {
    let address = "127.0.0.1:0".parse().expect("an address");
    let peers = Arc::new(processes::peers(addresses));
    let tcp = Tcp::bind(id, address, peers, voussoir_net::Config::new(CLUSTER)).await;
    NetLocks::new(Arc::new(tcp.expect("a free port")), LOCK_SERVICE, NODES)
}

async fn open(locks: &Arc<NetLocks>) -> Result<Session, OpenError> {
    let mut config = LeaseConfig::default();
    config.ttl = TTL;
    Session::open(Arc::clone(locks), config, 10 * SECOND).await
}

/// Works until standard input closes.
pub(crate) async fn run() {
    let environment = Environment::read();
    let id = environment.id;
    let path = processes::history(&environment.folder, id);
    let file = OpenOptions::new().create(true).append(true).open(path).expect("a file");
    let (recorder, locks) = (Rc::new(Recorder { file }), locks(id, &environment.addresses).await);
    let (end, ended) = watch::channel(false);
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        end.send_replace(true);
        // Kept: tasks look at it.
        std::thread::park();
        drop(end);
    });
    let resource = environment.resource.expect("clients have a resource");
    let tasks = LocalSet::new();
    for task in 0..TASKS {
        let (recorder, locks) = (Rc::clone(&recorder), Arc::clone(&locks));
        let ended = ended.clone();
        let stream = TcpStream::connect(resource).await.expect("the resource is there");
        stream.set_nodelay(true).expect("a socket");
        let rng = Rng::new(id * TASKS + task);
        let mut task = Task { client: id, locks, recorder, stream, rng, operation: task };
        tasks.spawn_local(async move {
            // Ends: the client is told to.
            while !*ended.borrow() {
                task.live(&ended).await;
            }
        });
    }
    tasks.await;
}

struct Task {
    /// Number of the process.
    client: u64,
    locks: Arc<NetLocks>,
    recorder: Rc<Recorder>,
    stream: TcpStream,
    rng: Rng,
    /// Number of the latest operation, unique in its process.
    operation: u64,
}

impl Task {
    /// Operations of one session.
    async fn live(&mut self, ended: &watch::Receiver<bool>) {
        // Retried: a majority comes back.
        let Ok(session) = open(&self.locks).await else { return };
        // Ends: the session is lost, or the client is told to end.
        while !*ended.borrow() {
            if session.check().is_err() {
                return self.recorder.record(format_args!("lost"));
            }
            self.operate(&session).await;
        }
        // What it held is free at once for the others.
        let _ = session.close(SECOND).await;
    }

    /// Acquires a lock, writes, and releases it.
    async fn operate(&mut self, session: &Session) {
        self.operation += TASKS;
        let (operation, lock) = (self.operation, self.rng.below(LOCKS));
        let recorder = Rc::clone(&self.recorder);
        recorder.record(format_args!("acquire {operation} {lock}"));
        let acquire = session.lock(name_of(lock));
        let kind = self.rng.below(4);
        let granted = match kind {
            0 => acquire.try_within(3 * SECOND).await,
            1 => acquire.within(Duration::from_millis(self.rng.below(40))).await.map(Some),
            _ => acquire.within(5 * SECOND).await.map(Some),
        };
        match granted {
            Ok(Some(guard)) => {
                recorder.record(format_args!("granted {operation} {}", guard.token().get()));
                self.hold(operation, lock, guard).await;
            }
            Err(LockError::Unavailable(error)) if error.outcome() == Outcome::Unknown => {
                // A wait may be shorter than a round trip.
                let word = if kind == 1 { "short" } else { "unknown" };
                recorder.record(format_args!("{word} {operation}"));
            }
            Ok(None) | Err(_) => recorder.record(format_args!("not {operation}")),
        }
    }

    async fn hold(&mut self, operation: u64, lock: u64, guard: Guard) {
        let recorder = Rc::clone(&self.recorder);
        let permit = |recorder: &Recorder| {
            // The time before the check: then at the latest it was believed to be held.
            let now = BootClock.now();
            if guard.permit().is_ok() {
                recorder.record(format_args!("permit {operation} {now}"));
            }
        };
        permit(&recorder);
        self.ask("enter", lock, guard.token()).await;
        if self.rng.below(4) == 0 {
            tokio::time::sleep(Duration::from_millis(self.rng.below(20))).await;
        }
        // Deliberately without another look at the lease: the resource refuses what is late.
        if !self.ask("write", lock, guard.token()).await {
            // Somebody else has the lock: this holder's own deadline came before that.
            recorder.record(format_args!("refused {operation} {}", guard.permit().is_ok()));
        }
        permit(&recorder);
        recorder.record(format_args!("release {operation}"));
        match guard.release(3 * SECOND).await {
            Released::Unknown(_) => recorder.record(format_args!("unknown {operation}")),
            released => recorder.record(format_args!("released {operation} {released:?}")),
        }
    }

    /// Whether the resource has let the token in.
    async fn ask(&mut self, verb: &str, lock: u64, token: FencingToken) -> bool {
        let request = format!("{verb} {lock} {} {}\n", token.get(), self.client);
        self.stream.write_all(request.as_bytes()).await.expect("the resource is there");
        let mut answer = [0];
        self.stream.read_exact(&mut answer).await.expect("the resource is there");
        answer == *b"1"
    }
}

/// Acquires every lock once, after all clients have ended: what nobody holds is granted. Returns
/// the smallest token.
pub(crate) fn every_lock_is_granted(processes: &Processes) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let locks = locks(99, &processes.addresses).await;
        let session = open(&locks).await.expect("the nodes are up");
        let mut first = u64::MAX;
        for lock in 0..LOCKS {
            // The longest that a killed client's session lives on, elections included.
            let guard = session.lock(name_of(lock)).within(4 * TTL).await;
            let guard = guard.unwrap_or_else(|error| panic!("lock {lock} is not free: {error}"));
            first = first.min(guard.token().get());
            assert_eq!(guard.release(SECOND).await, Released::Released);
        }
        first
    })
}
