//! The service on three Raft nodes, on paused time: clients over the network, faults, clocks that
//! run at different rates.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use voussoir_lock::net::{LockServer, NetLocks};
use voussoir_lock::raft::{LockMachine, RaftLocks};
use voussoir_lock::*;
use voussoir_net::Transport as _;
use voussoir_raft::memory::{MemoryStore, Network};
use voussoir_raft::{Config, Raft, Role};
use voussoir_sim::{Rng, Situations};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
const LOCKS: u16 = 7;
const NODES: [u64; 3] = [1, 2, 3];

fn config() -> LeaseConfig {
    let mut config = LeaseConfig::default();
    config.ttl = 2 * SECOND;
    config
}

/// tokio's time, seen by a clock that runs up to 0.4 % wrong and began anywhere.
fn wrong_clock(rng: &mut Rng) -> Arc<dyn Clock> {
    let (epoch, offset) = (Instant::now(), rng.below(1 << 40));
    let per_million = 1_000_000 - 4_000 + rng.below(8_000);
    Arc::new(move || {
        let passed = epoch.elapsed().as_nanos() * u128::from(per_million) / 1_000_000;
        offset + passed as u64
    })
}

struct Node {
    raft: Raft,
    locks: Arc<RaftLocks>,
}

struct Cluster {
    raft: Network,
    net: voussoir_net::memory::Network,
    stores: Vec<Arc<MemoryStore>>,
    nodes: Vec<Option<Node>>,
    transports: Vec<voussoir_net::memory::Memory>,
}

impl Cluster {
    async fn start(rng: &mut Rng) -> Self {
        let mut config = voussoir_net::Config::default();
        config.seed = Some(rng.next_u64());
        let net = voussoir_net::memory::Network::new(config).expect("a valid configuration");
        let transports = NODES.iter().map(|id| net.join(*id)).collect();
        let stores = NODES.iter().map(|_| Arc::new(MemoryStore::new())).collect();
        let nodes = NODES.iter().map(|_| None).collect();
        let mut cluster = Self { raft: Network::new(), net, stores, nodes, transports };
        for at in 0..NODES.len() {
            cluster.start_node(at, rng).await;
        }
        cluster
    }

    async fn start_node(&mut self, at: usize, rng: &mut Rng) {
        let mut config = Config::new(NODES[at], NODES);
        config.seed = Some(rng.next_u64());
        (config.snapshot_after_entries, config.keep_entries) = (60, 20);
        let replica = Replica::with_clock(wrong_clock(rng));
        let machine = Box::new(LockMachine::new(replica.clone()));
        let (store, transport) = (Arc::clone(&self.stores[at]), self.raft.node(NODES[at]));
        let raft = Raft::start(config, store, machine, transport).await.expect("it starts");
        let locks = RaftLocks::start(raft.clone(), replica);
        LockServer::serve(&self.transports[at], LOCKS, locks.clone()).expect("it is not served");
        self.nodes[at] = Some(Node { raft, locks });
    }

    async fn stop_node(&mut self, at: usize) {
        if let Some(node) = self.nodes[at].take() {
            let stopped = timeout(30 * SECOND, node.raft.shutdown()).await;
            stopped.expect("a node stops");
            self.transports[at].withdraw(LOCKS);
        }
    }

    fn client(&self, id: u64) -> Arc<NetLocks> {
        NetLocks::new(Arc::new(self.net.join(id)), LOCKS, NODES)
    }

    fn leader(&self) -> Option<usize> {
        let leads = |node: &Option<Node>| {
            node.as_ref().is_some_and(|node| node.raft.status().borrow().role == Role::Leader)
        };
        // Of two, the later has the greater term.
        let term =
            |at: &usize| self.nodes[*at].as_ref().map(|node| node.raft.status().borrow().term);
        (0..NODES.len()).filter(|at| leads(&self.nodes[*at])).max_by_key(term)
    }

    async fn wait_for_leader(&self) -> usize {
        for _ in 0..3_000 {
            match self.leader() {
                Some(at) => return at,
                None => sleep(10 * MS).await,
            }
        }
        let nodes = self.nodes.iter().flatten();
        let shown: Vec<_> = nodes.map(|node| (node.raft.stopped(), node.raft.clone())).collect();
        panic!("no leader within 30 s: {shown:?}");
    }
}

async fn open(service: Arc<dyn LockService<Grants = Fenced>>, rng: &mut Rng) -> Session {
    let opened = Session::open_with_clock(service, config(), 20 * SECOND, wrong_clock(rng)).await;
    opened.expect("a majority is up")
}

/// A leader that is cut off answers no renewal: its successor would not know of it.
#[tokio::test(start_paused = true)]
async fn a_leader_without_a_quorum_renews_nothing() {
    let mut rng = Rng::new(1);
    let cluster = Cluster::start(&mut rng).await;
    let old = cluster.wait_for_leader().await;
    let locks = Arc::clone(&cluster.nodes[old].as_ref().expect("it runs").locks);
    let by = |within: Duration| Instant::now() + within;
    // The reign begins.
    sleep(SECOND).await;
    let session = locks.open_session(2 * SECOND, by(SECOND)).await.expect("it leads");
    locks.renew_session(session, by(SECOND)).await.expect("it leads");
    cluster.raft.isolate(NODES[old], NODES);
    // Within an election timeout it still believes to lead.
    let renewed = locks.renew_session(session, by(150 * MS)).await;
    assert!(renewed.expect_err("no quorum").is_retryable());
    let role = cluster.nodes[old].as_ref().expect("it runs").raft.status().borrow().role;
    assert_eq!(role, Role::Leader, "the test looks too late");
    cluster.raft.heal();
}

/// Renewals are not logged, and leader changes lose no session that is renewed.
#[tokio::test(start_paused = true)]
async fn idle_sessions_cost_no_entries_and_survive_leader_changes() {
    let mut rng = Rng::new(2);
    let mut cluster = Cluster::start(&mut rng).await;
    let service = cluster.client(100);
    let mut guards = Vec::new();
    let mut sessions = Vec::new();
    for number in 0..20_u32 {
        let session = open(service.clone(), &mut rng).await;
        let name = Bytes::from(number.to_be_bytes().to_vec());
        guards.push(session.lock(name).within(5 * SECOND).await.expect("it is free"));
        sessions.push(session);
    }
    sleep(5 * SECOND).await;
    let at = cluster.wait_for_leader().await;
    let last = |cluster: &Cluster, at: usize| {
        cluster.nodes[at].as_ref().map(|node| node.raft.status().borrow().last)
    };
    let before = last(&cluster, at);
    sleep(60 * SECOND).await;
    assert_eq!(last(&cluster, at), before, "a minute of renewals");
    for _ in 0..3 {
        let leader = cluster.wait_for_leader().await;
        cluster.stop_node(leader).await;
        sleep(2 * SECOND).await;
        cluster.start_node(leader, &mut rng).await;
        sleep(2 * SECOND).await;
    }
    for guard in &guards {
        guard.permit().expect("no session was lost");
    }
    // Those that are no longer renewed end, and their locks are granted.
    let other = open(cluster.client(101), &mut rng).await;
    cluster.net.isolate(100);
    let names: Vec<Bytes> = guards.iter().map(|guard| guard.name().clone()).collect();
    let all = other.lock_many(names).within(10 * SECOND).await.expect("all are free");
    assert_eq!(all.len(), 20);
    for (session, guard) in sessions.iter().zip(&guards) {
        session.check().expect_err("nothing renewed it");
        guard.permit().expect_err("another holds it");
    }
}

/// After the loss of a leader a free lock costs its client the election and a commit: it hears of
/// the next leader as soon as there is one.
#[tokio::test(start_paused = true)]
async fn a_free_lock_is_granted_as_soon_as_a_leader_is_elected() {
    let mut rng = Rng::new(6);
    let mut cluster = Cluster::start(&mut rng).await;
    let session = open(cluster.client(100), &mut rng).await;
    let mut waited = 0;
    for round in 0..20_u32 {
        let old = cluster.wait_for_leader().await;
        // The client knows who leads.
        drop(session.lock(format!("known {round}")).within(5 * SECOND).await.expect("it is free"));
        cluster.stop_node(old).await;
        let stopped_at = Instant::now();
        let asked = session.clone();
        let lock = async move { asked.lock(format!("free {round}")).within(20 * SECOND).await };
        let lock = tokio::spawn(lock);
        // Ends: a leader is elected, or the lock is not granted in time.
        while cluster.leader().is_none() {
            sleep(MS).await;
        }
        let elected_at = Instant::now();
        drop(lock.await.expect("no panic").expect("a majority is up"));
        let after = elected_at.elapsed();
        // Before it waits it has found out, in short pauses, that the old leader is gone.
        if elected_at - stopped_at >= 100 * MS {
            waited += 1;
            assert!(after <= 10 * MS, "{after:?} after the election in round {round}");
        }
        cluster.start_node(old, &mut rng).await;
    }
    assert!(waited >= 5, "the client waited for {waited} elections");
}

/// What no replica would decode is refused before it is in the log, where it would stop them all.
#[tokio::test(start_paused = true)]
async fn commands_out_of_range_are_refused_and_the_group_lives() {
    let mut rng = Rng::new(5);
    let cluster = Cluster::start(&mut rng).await;
    let at = cluster.wait_for_leader().await;
    // The reign begins.
    sleep(SECOND).await;
    let local = Arc::clone(&cluster.nodes[at].as_ref().expect("it runs").locks);
    let services: [Arc<dyn LockService<Grants = Fenced>>; 2] = [local, cluster.client(100)];
    let refused = LockError::Rejected(Rejection::OutOfRange);
    for service in services {
        let session = open(Arc::clone(&service), &mut rng).await;
        for length in [1025, 65_536, 70_000] {
            let name = vec![b'n'; length];
            let named = session.lock(name.clone()).within(SECOND).await;
            assert_eq!(named.expect_err("too long"), refused, "a name of {length} bytes");
            let seen = service.view(&name.into(), None, Instant::now() + SECOND).await;
            assert_eq!(seen, Err(Rejection::OutOfRange.into()), "a name of {length} bytes");
        }
        let none = session.lock("n").slot(0).within(SECOND).await;
        assert_eq!(none.expect_err("no slot"), refused);
        let delayed = session.lock("n").lock_delay(Duration::MAX).within(SECOND).await;
        assert_eq!(delayed.expect_err("too long"), refused);
        let guard = session.lock("v").within(SECOND).await.expect("it is free");
        for length in [4097, 65_536, 70_000] {
            let set = guard.set_value(vec![b'v'; length], SECOND).await;
            assert_eq!(set, Err(Rejection::OutOfRange.into()), "a value of {length} bytes");
        }
        let election = Election::new(&session, "e");
        let campaign = election.campaign(vec![b'c'; 4089], SECOND).await;
        assert_eq!(campaign.expect_err("too long"), refused);
        let leadership = election.campaign(vec![b'c'; 4088], SECOND).await;
        assert_eq!(leadership.expect("it fits").resign(SECOND).await, Released::Released);
        guard.set_value(vec![b'v'; 4096], SECOND).await.expect("it fits");
        let longest = session.lock(vec![b'n'; 1024]).within(SECOND).await.expect("it fits");
        assert_eq!(longest.release(SECOND).await, Released::Released);
        assert_eq!(guard.release(SECOND).await, Released::Released);
    }
    for node in cluster.nodes.iter().flatten() {
        assert_eq!(node.raft.stopped(), None);
    }
}

/// One release wakes one waiter, also over the network.
#[tokio::test(start_paused = true)]
async fn handover_over_the_network_is_in_order() {
    let mut rng = Rng::new(3);
    let cluster = Cluster::start(&mut rng).await;
    let service = cluster.client(100);
    let session = open(service.clone(), &mut rng).await;
    let first = session.lock("a").within(5 * SECOND).await.expect("it is free");
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = Vec::new();
    for number in 0..50 {
        let (session, order) = (session.clone(), Arc::clone(&order));
        tasks.push(tokio::spawn(async move {
            let guard = session.lock("a").within(60 * SECOND).await.expect("its turn comes");
            order.lock().expect("no panic").push((number, guard.token()));
            sleep(100 * MS).await;
            assert_eq!(guard.release(SECOND).await, Released::Released);
        }));
        sleep(5 * MS).await;
    }
    assert_eq!(first.release(SECOND).await, Released::Released);
    for task in tasks {
        task.await.expect("no panic");
    }
    let order = order.lock().expect("no panic").clone();
    assert!(order.windows(2).all(|pair| pair[0] < pair[1]), "{order:?}");
}

/// A state machine of the user's own, with locks beside a counter.
struct Mixed {
    replica: Replica,
    count: u64,
}

#[async_trait]
impl voussoir_raft::StateMachine for Mixed {
    async fn apply(
        &mut self,
        commands: &[voussoir_raft::Command],
    ) -> Result<Vec<Bytes>, voussoir_raft::MachineError> {
        let mut answers = Vec::new();
        for command in commands {
            answers.push(match command.data.split_first() {
                Some((b'L', rest)) => self.replica.apply(command.index, rest)?,
                _ => {
                    self.count += 1;
                    Bytes::from(self.count.to_string())
                }
            });
        }
        Ok(answers)
    }

    async fn snapshot(
        &mut self,
    ) -> Result<Box<dyn voussoir_raft::Chunks>, voussoir_raft::MachineError> {
        Err("not part of this test".into())
    }

    async fn restore(
        &mut self,
        _: &mut dyn voussoir_raft::Chunks,
    ) -> Result<(), voussoir_raft::MachineError> {
        Err("not part of this test".into())
    }
}

#[tokio::test(start_paused = true)]
async fn locks_live_beside_other_state_in_one_group() {
    let replica = Replica::with_clock(Arc::new(TokioClock::default()));
    let machine = Box::new(Mixed { replica: replica.clone(), count: 0 });
    let (log, transport) = (Arc::new(MemoryStore::new()), Network::new().node(1));
    let raft = Raft::start(Config::new(1, [1]), log, machine, transport).await.expect("it starts");
    let wrap = |command: Bytes| [b"L", &command[..]].concat().into();
    let locks = RaftLocks::start_within(raft.clone(), replica.clone(), Arc::new(wrap));
    let session = open(locks, &mut Rng::new(4)).await;
    let guard = session.lock("a").within(SECOND).await.expect("it is free");
    assert_eq!(raft.propose("up".into()).await.expect("it leads"), "1");
    let view = replica.lock(b"a");
    assert_eq!(view.holders.len(), 1);
    // The same state on a replica that is made of its snapshot.
    let again = Replica::new();
    again.restore(&replica.snapshot()).expect("our own");
    assert_eq!(again.lock(b"a"), view);
    assert_eq!(guard.release(SECOND).await, Released::Released);
    assert_eq!(raft.propose("up".into()).await.expect("it leads"), "2");
}

/// A leader that was suspended would renew sessions by a lease that has ended meanwhile.
#[tokio::test(start_paused = true)]
async fn a_group_that_reads_by_lease_has_no_sessions() {
    for (drift, refuses) in [(None, false), (Some(200), true)] {
        let replica = Replica::with_clock(Arc::new(TokioClock::default()));
        let machine = Box::new(LockMachine::new(replica.clone()));
        let (log, transport) = (Arc::new(MemoryStore::new()), Network::new().node(1));
        let mut config = Config::new(1, [1]);
        config.max_clock_drift_ppm = drift;
        let raft = Raft::start(config, log, machine, transport).await.expect("it starts");
        let mut status = raft.status();
        status.wait_for(|status| status.role == Role::Leader).await.expect("it runs");
        let locks = RaftLocks::start(raft, replica);
        let by = || Instant::now() + 10 * SECOND;
        let refused = ServiceError::Rejected(Rejection::Unsupported);
        let is_refused = |error: &ServiceError| error.to_string() == refused.to_string();
        let opened = locks.open_session(SECOND, by()).await;
        assert_eq!(opened.as_ref().is_err_and(is_refused), refuses, "{opened:?}");
        // Whatever a session was opened by before the group was given another configuration.
        let renewed = locks.renew_session(opened.unwrap_or(1), by()).await;
        assert_eq!(renewed.as_ref().is_err_and(is_refused), refuses, "{renewed:?}");
    }
}

static SITUATIONS: [&str; 11] = [
    "granted",
    "granted after a wait",
    "timed out",
    "dropped while it waited",
    "session lost while it held",
    "client cut off",
    "leader cut off",
    "node stopped",
    "node restarted",
    "held over a change of leaders",
    "late write refused",
];

/// What all clients of a life share: the resource, and who holds what.
#[derive(Default)]
struct World {
    fences: Mutex<Vec<Fence<u64>>>,
    /// Guards of each lock that were granted and not released, and their tokens.
    held: Mutex<Vec<(usize, Guard)>>,
    is_over: AtomicBool,
}

impl World {
    /// L1, L2 and L3 at a grant: nobody else believes to hold the lock, and the token is the
    /// greatest.
    fn granted(&self, lock: usize, guard: &Guard) {
        let held = self.held.lock().expect("no panic");
        for (_, other) in held.iter().filter(|(of, _)| *of == lock) {
            assert!(other.permit().is_err(), "{other:?} believes to hold what {guard:?} was given");
        }
        drop(held);
        let mut fences = self.fences.lock().expect("no panic");
        assert!(fences[lock].latest() < guard.token().get(), "tokens grow");
        *fences[lock].enter(guard.token()).expect("the newest") += 1;
        drop(fences);
        self.held.lock().expect("no panic").push((lock, guard.clone()));
    }

    fn forget(&self, guard: &Guard) {
        self.held.lock().expect("no panic").retain(|(_, held)| held.token() != guard.token());
    }
}

async fn live(
    service: Arc<NetLocks>,
    seed: u64,
    world: Arc<World>,
    situations: &'static Situations,
    leaders: tokio::sync::watch::Receiver<u64>,
) {
    let mut rng = Rng::new(seed);
    // Ends: the life is over.
    'sessions: while !world.is_over.load(Ordering::Relaxed) {
        let opened =
            Session::open_with_clock(service.clone(), config(), SECOND, wrong_clock(&mut rng));
        let Ok(session) = opened.await else { continue };
        while !world.is_over.load(Ordering::Relaxed) {
            sleep(rng.between(1, 200) as u32 * MS).await;
            let lock = rng.below(2) as usize;
            let (begun, within) = (Instant::now(), rng.between(50, 3000) as u32 * MS);
            let name = ["a", "b"][lock];
            let asked = session.lock(name).within(within);
            let patience = if rng.below(4) == 0 { within / 3 } else { 2 * within };
            let guard = match timeout(patience, asked).await {
                Ok(Ok(guard)) => guard,
                Ok(Err(LockError::SessionLost(_))) => continue 'sessions,
                Ok(Err(LockError::TimedOut)) => {
                    situations.reached("timed out");
                    continue;
                }
                Ok(Err(error)) if error.is_retryable() => continue,
                Ok(Err(error)) => panic!("{error}"),
                Err(_) => {
                    situations.reached("dropped while it waited");
                    continue;
                }
            };
            world.granted(lock, &guard);
            situations.reached("granted");
            situations.add("granted after a wait", u64::from(begun.elapsed() > 100 * MS));
            let leader = *leaders.borrow();
            let work = guard.run(sleep(rng.scaled(1, 4000) as u32 * MS)).await;
            world.forget(&guard);
            if work.is_ok() && *leaders.borrow() != leader {
                situations.reached("held over a change of leaders");
            }
            if work.is_err() {
                situations.reached("session lost while it held");
                // What a paused process does late: the resource refuses it if others came.
                sleep(rng.between(1, 6000) as u32 * MS).await;
                let mut fences = world.fences.lock().expect("no panic");
                if fences[lock].enter(guard.token()).is_err() {
                    situations.reached("late write refused");
                }
                drop(fences);
                continue 'sessions;
            }
            if rng.below(3) == 0 {
                drop(guard);
            } else {
                let _ = guard.release(SECOND).await;
            }
        }
    }
}

async fn life(seed: u64, situations: &'static Situations) {
    let mut rng = Rng::new(seed);
    let mut cluster = Cluster::start(&mut rng).await;
    let world = Arc::new(World::default());
    world.fences.lock().expect("no panic").extend([Fence::new(0), Fence::new(0)]);
    let (shown, leaders) = tokio::sync::watch::channel(0);
    let clients: Vec<_> = (100..104_u64)
        .map(|id| {
            let (service, world) = (cluster.client(id), Arc::clone(&world));
            let seed = seed * 1000 + id;
            tokio::spawn(live(service, seed, world, situations, leaders.clone()))
        })
        .collect();
    for _ in 0..12 {
        sleep(rng.between(100, 1500) as u32 * MS).await;
        if let Some(at) = cluster.leader() {
            shown.send_replace(NODES[at]);
        }
        match rng.below(4) {
            0 => {
                let client = rng.between(100, 103);
                for node in NODES {
                    cluster.net.cut(client, node);
                    cluster.net.cut(node, client);
                }
                situations.reached("client cut off");
                sleep(rng.between(500, 6000) as u32 * MS).await;
                cluster.net.heal();
            }
            1 => {
                let at = cluster.wait_for_leader().await;
                cluster.raft.isolate(NODES[at], NODES);
                situations.reached("leader cut off");
                sleep(rng.between(200, 4000) as u32 * MS).await;
                cluster.raft.heal();
            }
            _ => {
                let leader = cluster.wait_for_leader().await;
                let at = if rng.below(2) == 0 { leader } else { rng.below(3) as usize };
                cluster.stop_node(at).await;
                situations.reached("node stopped");
                sleep(rng.between(1, 3000) as u32 * MS).await;
                cluster.start_node(at, &mut rng).await;
                situations.reached("node restarted");
            }
        }
        // A majority that has no fault for a moment.
        let at = cluster.wait_for_leader().await;
        shown.send_replace(NODES[at]);
    }
    world.is_over.store(true, Ordering::Relaxed);
    for client in clients {
        let ended = timeout(60 * SECOND, client).await;
        ended.expect("each step has its end").expect("no panic");
    }
    // L5: what nobody holds is granted.
    let session = open(cluster.client(200), &mut rng).await;
    let all = session.lock_many(["a", "b"]).within(10 * SECOND).await;
    all.expect("sessions of clients that are gone have ended");
    for at in 0..NODES.len() {
        cluster.stop_node(at).await;
    }
}

fn play(seed: u64, situations: &'static Situations) {
    // What services draw for themselves.
    fastrand::seed(seed);
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(true).build().expect("a runtime");
    runtime.block_on(life(seed, situations));
}

/// L1 to L5 over the running service. `VOUSSOIR_SEEDS` runs more lives, `VOUSSOIR_SEED` one.
#[test]
fn clients_over_a_cluster_with_faults() {
    let situations: &'static Situations = Box::leak(Box::new(Situations::new(&SITUATIONS)));
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    let only: Option<u64> = number("VOUSSOIR_SEED");
    let seeds = only.map_or(0..number("VOUSSOIR_SEEDS").unwrap_or(200), |seed| seed..seed + 1);
    for seed in seeds {
        let run = std::panic::AssertUnwindSafe(|| play(seed, situations));
        let result = std::panic::catch_unwind(run);
        if let Err(panic) = result {
            eprintln!(
                "VOUSSOIR_SEED={seed} cargo test -p voussoir-lock --all-features --test cluster"
            );
            std::panic::resume_unwind(panic);
        }
    }
    if only.is_none() {
        situations.assert_all_reached();
    }
}
