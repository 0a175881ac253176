//! Coordinators whose decisions are in a group of three Raft nodes: what one leaves behind that is
//! killed between the phases, beside the classic form; and what one is told that was cut off.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::Runtime;
use voussoir_raft::memory::{MemoryStore as RaftStore, Network};
use voussoir_raft::{Config, Raft, Role, Session, SessionAnswer, Sessions, StateMachine};
use voussoir_txn::store::MemoryStore;
use voussoir_txn::two_phase::raft::{DecisionMachine, Decisions, RaftLog};
use voussoir_txn::two_phase::*;
use voussoir_txn::{Bytes, StoreError, async_trait};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
const NODES: [u64; 3] = [1, 2, 3];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Working,
    Prepared,
    Committed,
    Aborted,
}

/// A database with accounts. A branch keeps its account locked until it is told.
#[derive(Default)]
struct Bank {
    branches: Mutex<BTreeMap<Gid, (u32, Held)>>,
    is_away: AtomicBool,
}

impl Bank {
    /// Locks an account for a branch; false if another has it.
    fn work(&self, gid: &Gid, account: u32) -> bool {
        let mut branches = self.branches.lock();
        let is_locked = |(one, held): &(u32, Held)| {
            *one == account && matches!(held, Held::Working | Held::Prepared)
        };
        let is_free = !branches.values().any(is_locked);
        if is_free {
            branches.insert(gid.clone(), (account, Held::Working));
        }
        is_free
    }

    fn locked(&self) -> usize {
        let is_locked = |held: &Held| matches!(held, Held::Working | Held::Prepared);
        self.branches.lock().values().filter(|(_, held)| is_locked(held)).count()
    }

    /// How each branch ended, without their numbers.
    fn ends(&self) -> BTreeMap<TxnId, Held> {
        self.branches.lock().iter().map(|(gid, (_, held))| (gid.txn(), *held)).collect()
    }
}

struct At(Arc<Bank>);

#[async_trait]
impl Participant for At {
    async fn prepare(&self, gid: &Gid) -> Result<Vote, PrepareError> {
        match self.0.branches.lock().get_mut(gid) {
            Some((_, held @ (Held::Working | Held::Prepared))) => {
                *held = Held::Prepared;
                Ok(Vote::Prepared)
            }
            _ => Err(PrepareError::Refused("no such branch".into())),
        }
    }

    async fn finish(&self, gid: &Gid, decision: Decision) -> Result<Applied, ParticipantError> {
        if self.0.is_away.load(SeqCst) {
            return Err(ParticipantError("it is away".into()));
        }
        let mut branches = self.0.branches.lock();
        let held = branches.get_mut(gid).map(|(_, held)| held);
        Ok(match (held, decision) {
            (Some(held @ Held::Prepared), Decision::Commit) => {
                *held = Held::Committed;
                Applied::Done
            }
            (Some(held @ (Held::Prepared | Held::Working)), Decision::Abort) => {
                *held = Held::Aborted;
                Applied::Done
            }
            (Some(Held::Committed), Decision::Commit)
            | (Some(Held::Aborted) | None, Decision::Abort) => Applied::Done,
            (Some(Held::Committed), Decision::Abort) => Applied::Heuristic(Heuristic::Committed),
            (_, Decision::Commit) => Applied::Heuristic(Heuristic::RolledBack),
        })
    }

    async fn in_doubt(&self, _: &str, max: usize) -> Result<Vec<InDoubt>, ParticipantError> {
        let branches = self.0.branches.lock();
        let prepared = branches.iter().filter(|(_, (_, held))| *held == Held::Prepared);
        Ok(prepared.map(|(gid, _)| InDoubt::new(gid.clone(), SECOND)).take(max).collect())
    }
}

#[derive(Clone, Default)]
struct Banks {
    left: Arc<Bank>,
    right: Arc<Bank>,
}

impl Banks {
    async fn open(&self, log: impl DecisionLog) -> Result<Coordinator, OpenCoordinatorError> {
        let mut config = CoordinatorConfig::default();
        (config.pause, config.max_pause, config.recover_every) = (20 * MS, 200 * MS, 200 * MS);
        Coordinator::builder("transfers")
            .config(config)
            .participant("left", Arc::new(At(Arc::clone(&self.left))))
            .participant("right", Arc::new(At(Arc::clone(&self.right))))
            .open(log)
            .await
    }

    fn locked(&self) -> usize {
        self.left.locked() + self.right.locked()
    }

    /// Works on an account in both; `None` if it is locked.
    fn begin(&self, coordinator: &Coordinator, account: u32) -> Option<Txn> {
        let mut txn = coordinator.begin().expect("it begins");
        let (left, right) = (txn.enlist("left").unwrap(), txn.enlist("right").unwrap());
        let is_free = self.left.work(&left, account) && self.right.work(&right, account);
        is_free.then_some(txn)
    }

    fn assert_alike(&self) {
        assert_eq!(self.left.ends(), self.right.ends(), "branches end alike");
    }
}

/// Stops transactions at their decision: every second one is recorded before.
#[derive(Default)]
struct Halt {
    is_on: AtomicBool,
    stopped: AtomicUsize,
    recorded: Mutex<BTreeSet<TxnId>>,
}

struct Halting<L>(L, Arc<Halt>);

#[async_trait]
impl<L: DecisionLog> DecisionLog for Halting<L> {
    async fn open(&self, coordinator: &str) -> Result<OpenedLog, StoreError> {
        self.0.open(coordinator).await
    }

    async fn commit(&self, commit: &Committed) -> Result<Decision, StoreError> {
        if !self.1.is_on.load(SeqCst) {
            return self.0.commit(commit).await;
        }
        if commit.txn.number.is_multiple_of(2) {
            assert_eq!(self.0.commit(commit).await.unwrap(), Decision::Commit);
            self.1.recorded.lock().insert(commit.txn);
        }
        self.1.stopped.fetch_add(1, SeqCst);
        // Its process is killed here.
        std::future::pending().await
    }

    async fn forget(&self, txn: TxnId) -> Result<(), StoreError> {
        self.0.forget(txn).await
    }

    async fn report(&self, outcome: &HeuristicOutcome) -> Result<(), StoreError> {
        self.0.report(outcome).await
    }

    async fn resolve(&self, gid: &Gid) -> Result<(), StoreError> {
        self.0.resolve(gid).await
    }

    fn is_superseded(&self) -> bool {
        self.0.is_superseded()
    }

    fn can_decide(&self) -> bool {
        self.0.can_decide()
    }
}

/// The coordinator of a process, while its node leads.
type Slot = Arc<Mutex<Option<Coordinator>>>;

/// Keeps a coordinator open whenever this node leads.
async fn serve(raft: Raft, decisions: Decisions, banks: Banks, halt: Arc<Halt>, slot: Slot) {
    let mut status = raft.status();
    // Ends: the node stops.
    while status.wait_for(|status| status.role == Role::Leader).await.is_ok() {
        let log = RaftLog::new(raft.clone(), decisions.clone());
        let opened = banks.open(Halting(log, Arc::clone(&halt))).await;
        let Ok(coordinator) = opened else { continue };
        *slot.lock() = Some(coordinator.clone());
        tokio::select! {
            _ = status.wait_for(|status| status.role != Role::Leader) => {}
            _ = coordinator.closed() => {}
        }
        *slot.lock() = None;
    }
}

/// Waits for a process in real time.
fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + 30 * SECOND;
    // Ends: it is seen, or half a minute has passed.
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < until, "not within 30 s: {what}");
        std::thread::sleep(5 * MS);
    }
}

/// A process: all of it ends at once when its runtime is shut down.
fn process() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

const TRANSFERS: u32 = 10;

/// Brings transfers between the phases, each with a branch prepared in both banks.
fn stop_between_phases(process: &Runtime, coordinator: &Coordinator, banks: &Banks, halt: &Halt) {
    halt.is_on.store(true, SeqCst);
    for account in 0..TRANSFERS {
        let txn = banks.begin(coordinator, account).expect("the account is free");
        process.spawn(txn.commit(Ack::Decided));
    }
    wait("all are at their decision", || {
        (halt.stopped.load(SeqCst) == TRANSFERS as usize).then_some(())
    });
    assert_eq!(banks.locked(), 2 * TRANSFERS as usize);
    halt.is_on.store(false, SeqCst);
}

/// What the record says was done, at both banks, and the accounts are free.
fn assert_ended(banks: &Banks, halt: &Halt) {
    banks.assert_alike();
    for (txn, held) in banks.left.ends() {
        let is_recorded = halt.recorded.lock().contains(&txn);
        let end = if is_recorded { Held::Committed } else { Held::Aborted };
        assert_eq!(held, end, "{txn:?}");
    }
}

/// Of the same transfers, killed between the phases: with its decisions on one disk the coordinator
/// has to come back before an account is free; with replicated decisions it has not.
#[test]
fn a_replicated_coordinator_lets_go_what_a_classic_one_keeps_locked() {
    // The classic form.
    let (banks, halt, disk) = (Banks::default(), Arc::<Halt>::default(), MemoryStore::new());
    let first = process();
    let log = Halting(StoreLog::new(disk.clone()), Arc::clone(&halt));
    let coordinator = first.block_on(banks.open(log)).expect("it opens");
    stop_between_phases(&first, &coordinator, &banks, &halt);
    drop(coordinator);
    first.shutdown_background();
    // Another coordinator works with the same banks, whose lists show it all branches.
    let beside = process();
    let opening = Coordinator::builder("others")
        .participant("left", Arc::new(At(Arc::clone(&banks.left))))
        .participant("right", Arc::new(At(Arc::clone(&banks.right))))
        .open(StoreLog::new(MemoryStore::new()));
    let other = beside.block_on(opening).expect("it opens");
    let (killed, all) = (Instant::now(), 2 * TRANSFERS as usize);
    // Ends: after 3 s, in which a group has long elected another leader.
    while killed.elapsed() < 3 * SECOND {
        beside.block_on(other.recover());
        assert_eq!(banks.locked(), all, "nobody may let them go");
        std::thread::sleep(50 * MS);
    }
    drop(other);
    beside.shutdown_background();
    println!("classic: dead for {:?}, {all} branches locked all the time", killed.elapsed());
    let second = process();
    let coordinator = second.block_on(banks.open(StoreLog::new(disk))).expect("it opens");
    wait("all are let go", || (banks.locked() == 0).then_some(()));
    assert_ended(&banks, &halt);
    drop(coordinator);
    second.shutdown_background();

    // The same over a group of three, whose leader is killed for good.
    let (banks, halt, network) = (Banks::default(), Arc::<Halt>::default(), Network::new());
    let mut nodes: BTreeMap<u64, (Runtime, Slot)> = BTreeMap::new();
    for id in NODES {
        let (process, slot, decisions) = (process(), Arc::default(), Decisions::new());
        let machine = Box::new(DecisionMachine::new(decisions.clone()));
        let (config, log) = (Config::new(id, NODES), Arc::new(RaftStore::new()));
        let starting = Raft::start(config, log, machine, network.node(id));
        let raft = process.block_on(starting).expect("it starts");
        let (banks, halt) = (banks.clone(), Arc::clone(&halt));
        process.spawn(serve(raft, decisions, banks, halt, Arc::clone(&slot)));
        nodes.insert(id, (process, slot));
    }
    let leads = |nodes: &BTreeMap<u64, (Runtime, Slot)>| {
        nodes.iter().find_map(|(id, (_, slot))| Some((*id, slot.lock().clone()?)))
    };
    let (id, coordinator) = wait("a coordinator", || leads(&nodes));
    let (process, _) = nodes.remove(&id).expect("it runs");
    stop_between_phases(&process, &coordinator, &banks, &halt);
    drop(coordinator);
    process.shutdown_background();
    let killed = Instant::now();
    wait("all are let go, though it stays dead", || (banks.locked() == 0).then_some(()));
    println!("replicated: {all} branches let go {:?} after the kill", killed.elapsed());
    assert_ended(&banks, &halt);
    assert!(!halt.recorded.lock().is_empty(), "commits and aborts are both tried");
    // And the accounts are used again.
    let (id, coordinator) = wait("the next coordinator", || leads(&nodes));
    for account in 0..TRANSFERS {
        let txn = banks.begin(&coordinator, account).expect("the account is free");
        let done = nodes[&id].0.block_on(txn.commit(Ack::Applied));
        done.expect("it commits");
    }
    drop(coordinator);
    for (process, _) in nodes.into_values() {
        process.shutdown_background();
    }
}

/// Three nodes on one runtime, in paused time.
struct Cluster {
    network: Network,
    stores: Vec<Arc<RaftStore>>,
    nodes: Vec<Raft>,
    decisions: Vec<Decisions>,
}

impl Cluster {
    async fn start() -> Self {
        let stores = NODES.iter().map(|_| Arc::new(RaftStore::new())).collect();
        let network = Network::new();
        let mut cluster = Self { network, stores, nodes: Vec::new(), decisions: Vec::new() };
        cluster.start_nodes().await;
        cluster
    }

    async fn start_nodes(&mut self) {
        (self.nodes, self.decisions) = (Vec::new(), Vec::new());
        for (id, store) in NODES.iter().zip(&self.stores) {
            let mut config = Config::new(*id, NODES);
            (config.seed, config.proposal_timeout) = (Some(*id), SECOND);
            (config.snapshot_after_entries, config.keep_entries) = (20, 5);
            let decisions = Decisions::new();
            let machine = Box::new(DecisionMachine::new(decisions.clone()));
            let (store, transport) = (Arc::clone(store), self.network.node(*id));
            let raft = Raft::start(config, store, machine, transport).await.expect("it starts");
            self.nodes.push(raft);
            self.decisions.push(decisions);
        }
    }

    /// Who leads, but for one.
    async fn leader(&self, but: Option<usize>) -> usize {
        for _ in 0..3_000 {
            let leads = |at: &usize| self.nodes[*at].status().borrow().role == Role::Leader;
            if let Some(at) = (0..NODES.len()).filter(|at| Some(*at) != but).find(leads) {
                return at;
            }
            tokio::time::sleep(10 * MS).await;
        }
        panic!("no leader within 30 s");
    }

    fn log(&self, at: usize) -> RaftLog {
        RaftLog::new(self.nodes[at].clone(), self.decisions[at].clone())
    }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..10_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(10 * MS).await;
    }
    panic!("not within 100 s: {what}");
}

/// Commits that are under way while the leader is cut off, and another takes over: the one before
/// hears what the register says, and not what it believes.
async fn cut_off(hears_nothing: bool) -> (usize, usize) {
    let (banks, cluster) = (Banks::default(), Cluster::start().await);
    let old = cluster.leader(None).await;
    let before = banks.open(cluster.log(old)).await.expect("it leads");
    let warm = banks.begin(&before, 1_000).expect("it is free");
    warm.commit(Ack::Applied).await.expect("it commits");
    if hears_nothing {
        // What it sends arrives, and is committed by the next leader.
        for id in NODES.iter().filter(|id| **id != NODES[old]) {
            cluster.network.cut(*id, NODES[old]);
        }
    } else {
        cluster.network.isolate(NODES[old], NODES);
    }
    let commits: Vec<_> = (0..TRANSFERS)
        .map(|account| banks.begin(&before, account).expect("it is free"))
        .map(|txn| (txn.id(), tokio::spawn(txn.commit(Ack::Decided))))
        .collect();
    let new = cluster.leader(Some(old)).await;
    let after = banks.open(cluster.log(new)).await.expect("it leads");
    until("all are let go, though it is cut off", || banks.locked() == 0).await;
    // Longer than a proposal waits for its answer.
    tokio::time::sleep(2 * SECOND).await;
    cluster.network.heal();
    let (mut committed, mut aborted) = (0, 0);
    for (txn, commit) in commits {
        let end = banks.left.ends()[&txn];
        match commit.await.expect("no panic") {
            Ok(()) => {
                assert_eq!(end, Held::Committed, "{txn:?} was told committed");
                committed += 1;
            }
            Err(error) => {
                assert_eq!(error.outcome(), TxnOutcome::NotApplied, "{error}");
                assert_eq!(end, Held::Aborted, "{txn:?} was told aborted");
                aborted += 1;
            }
        }
    }
    banks.assert_alike();
    // It hears that it was replaced, and begins nothing more.
    until("it hears so", || matches!(before.begin(), Err(BeginError::Superseded))).await;
    let txn = banks.begin(&after, 0).expect("it is free");
    txn.commit(Ack::Applied).await.expect("the next coordinator commits");
    assert!(after.heuristics().is_empty(), "{:?}", after.heuristics());
    until("all records are forgotten", || cluster.decisions[new].committed() == 0).await;
    (committed, aborted)
}

#[tokio::test(start_paused = true)]
async fn a_coordinator_that_is_cut_off_is_told_that_its_commits_are_aborted() {
    assert_eq!(cut_off(false).await, (0, TRANSFERS as usize));
}

#[tokio::test(start_paused = true)]
async fn a_coordinator_that_hears_no_answer_is_told_that_its_commits_stand() {
    assert_eq!(cut_off(true).await, (TRANSFERS as usize, 0));
}

/// What was decided and not told is in the log and the snapshots of the group.
#[tokio::test(start_paused = true)]
async fn decisions_survive_the_restart_of_all_nodes() {
    let (banks, mut cluster) = (Banks::default(), Cluster::start().await);
    let at = cluster.leader(None).await;
    let coordinator = banks.open(cluster.log(at)).await.expect("it leads");
    banks.right.is_away.store(true, SeqCst);
    for account in 0..40 {
        let txn = banks.begin(&coordinator, account).expect("it is free");
        txn.commit(Ack::Decided).await.expect("it commits");
    }
    until("one bank was told", || banks.left.locked() == 0).await;
    assert_eq!(banks.right.locked(), 40);
    drop(coordinator);
    for node in &cluster.nodes {
        node.shutdown().await;
    }
    banks.right.is_away.store(false, SeqCst);
    cluster.start_nodes().await;
    let at = cluster.leader(None).await;
    let coordinator = banks.open(cluster.log(at)).await.expect("it leads");
    until("the other is told", || banks.right.locked() == 0).await;
    banks.assert_alike();
    assert!(banks.right.ends().values().all(|held| *held == Held::Committed));
    until("all end", || coordinator.active() == 0).await;
    assert_eq!(cluster.decisions[at].epoch(), 2);
    // A coordinator where nobody leads is refused, and changes nothing.
    let other = (at + 1) % NODES.len();
    let opened = banks.open(cluster.log(other).patience(SECOND)).await;
    assert!(matches!(opened, Err(OpenCoordinatorError::Store(_))), "{opened:?}");
    coordinator.begin().expect("it goes on");
}

/// The decisions as a part of another state.
struct Beside {
    decisions: Decisions,
    others: u64,
}

#[async_trait]
impl StateMachine for Beside {
    async fn apply(
        &mut self,
        commands: &[voussoir_raft::Command],
    ) -> Result<Vec<Bytes>, voussoir_raft::MachineError> {
        let apply = |command: &voussoir_raft::Command| match &command.data[..] {
            [b'd', decision @ ..] => Ok(self.decisions.apply(decision)?),
            _ => {
                self.others += 1;
                Ok(Bytes::from(self.others.to_string()))
            }
        };
        commands.iter().map(apply).collect()
    }

    async fn snapshot(
        &mut self,
    ) -> Result<Box<dyn voussoir_raft::Chunks>, voussoir_raft::MachineError> {
        Ok(Box::new(voussoir_raft::WholeSnapshot::new(self.decisions.snapshot())))
    }

    async fn restore(
        &mut self,
        chunks: &mut dyn voussoir_raft::Chunks,
    ) -> Result<(), voussoir_raft::MachineError> {
        Ok(self.decisions.restore(&voussoir_raft::WholeSnapshot::collect(chunks).await?)?)
    }
}

#[tokio::test(start_paused = true)]
async fn decisions_live_beside_other_state_in_one_group() {
    let (banks, decisions) = (Banks::default(), Decisions::new());
    let machine = Box::new(Beside { decisions: decisions.clone(), others: 0 });
    let (store, network) = (Arc::new(RaftStore::new()), Network::new());
    let raft = Raft::start(Config::new(1, [1]), store, machine, network.node(1)).await.unwrap();
    raft.status().wait_for(|status| status.role == Role::Leader).await.unwrap();
    assert_eq!(raft.propose("another".into()).await.unwrap(), "1");
    let wrap = |command: Bytes| Bytes::from([b"d", &command[..]].concat());
    let log = RaftLog::within(raft.clone(), decisions.clone(), Arc::new(wrap), Arc::new(Some));
    let coordinator = banks.open(log).await.expect("it leads");
    let txn = banks.begin(&coordinator, 1).expect("it is free");
    txn.commit(Ack::Applied).await.expect("it commits");
    assert_eq!(raft.propose("another".into()).await.unwrap(), "2");
    assert_eq!(decisions.epoch(), 1);
    let copy = Decisions::new();
    copy.restore(&decisions.snapshot()).expect("it is whole");
    assert_eq!(copy.epoch(), 1);
    assert!(copy.restore(b"x").is_err());
    assert!(decisions.apply(b"x").is_ok(), "bytes of others are answered");
    assert!(decisions.apply(b"vtd\x02").is_err(), "those of a later version are not");
}

async fn alone(machine: Box<dyn StateMachine>) -> Raft {
    let (store, network) = (Arc::new(RaftStore::new()), Network::new());
    let raft = Raft::start(Config::new(1, [1]), store, machine, network.node(1)).await.unwrap();
    raft.status().wait_for(|status| status.role == Role::Leader).await.unwrap();
    raft
}

/// Sessions answer for the machine that they are around; what others propose stops no replica.
#[tokio::test(start_paused = true)]
async fn decisions_stand_in_sessions_and_foreign_commands_stop_nobody() {
    let (banks, decisions) = (Banks::default(), Decisions::new());
    let raft = alone(Box::new(Sessions::new(DecisionMachine::new(decisions.clone())))).await;
    // Without `wrap` and `unwrap` it ends at the first answer, and begins no epoch.
    let start = tokio::time::Instant::now();
    let opened = banks.open(RaftLog::new(raft.clone(), decisions.clone())).await;
    assert!(matches!(opened, Err(OpenCoordinatorError::Store(_))), "{opened:?}");
    assert!(start.elapsed() < SECOND, "it is not asked again");
    assert_eq!(decisions.epoch(), 0);
    let wrap = |command: Bytes| Session::plain(&command);
    let unwrap = |answer| match SessionAnswer::decode(answer) {
        Ok(SessionAnswer::Applied(answer)) => Some(answer),
        _ => None,
    };
    let log = RaftLog::within(raft.clone(), decisions.clone(), Arc::new(wrap), Arc::new(unwrap));
    let coordinator = banks.open(log).await.expect("it leads");
    for garbage in [&b""[..], b"x", b"vtd", b"vtd\x01\xff"] {
        raft.propose(Session::plain(garbage)).await.expect("the replica goes on");
        raft.propose(garbage.to_vec().into()).await.expect("the replica goes on");
    }
    let txn = banks.begin(&coordinator, 1).expect("it is free");
    txn.commit(Ack::Applied).await.expect("it commits");
    assert!(raft.stopped().is_none());
}

/// Two names in one group would each abort what the other has not recorded yet.
#[tokio::test(start_paused = true)]
async fn a_group_has_one_coordinator_and_its_epochs_a_floor() {
    let (banks, decisions) = (Banks::default(), Decisions::new());
    let raft = alone(Box::new(DecisionMachine::new(decisions.clone()))).await;
    let log = || RaftLog::new(raft.clone(), decisions.clone());
    let coordinator = banks.open(log().after(41)).await.expect("it leads");
    assert_eq!(coordinator.epoch(), 42);
    let error = Coordinator::builder("others").open(log()).await.unwrap_err();
    let expected = "this log has the decisions of the coordinator `transfers`";
    assert_eq!(error.to_string(), expected);
    assert!(matches!(error, OpenCoordinatorError::OtherCoordinator { .. }), "{error:?}");
    // The first was not disturbed.
    let txn = banks.begin(&coordinator, 1).expect("it is free");
    txn.commit(Ack::Applied).await.expect("it commits");
}

/// The log of a coordinator whose record is never forgotten for its first attempts, and that can
/// fail or panic.
#[derive(Default)]
struct Faults {
    failing: AtomicUsize,
    panics: AtomicBool,
}

struct Failing<L>(L, Arc<Faults>);

#[async_trait]
impl<L: DecisionLog> DecisionLog for Failing<L> {
    async fn open(&self, coordinator: &str) -> Result<OpenedLog, StoreError> {
        self.0.open(coordinator).await
    }

    async fn commit(&self, commit: &Committed) -> Result<Decision, StoreError> {
        assert!(!self.1.panics.load(SeqCst), "the log's own panic");
        self.0.commit(commit).await
    }

    async fn forget(&self, txn: TxnId) -> Result<(), StoreError> {
        let left = self.1.failing.load(SeqCst);
        if left > 0 {
            self.1.failing.store(left - 1, SeqCst);
            return Err(StoreError::new("nobody leads"));
        }
        self.0.forget(txn).await
    }

    async fn report(&self, outcome: &HeuristicOutcome) -> Result<(), StoreError> {
        self.0.report(outcome).await
    }

    async fn resolve(&self, gid: &Gid) -> Result<(), StoreError> {
        self.0.resolve(gid).await
    }

    fn is_superseded(&self) -> bool {
        self.0.is_superseded()
    }

    fn can_decide(&self) -> bool {
        self.0.can_decide()
    }
}

/// A coordinator that can decide nothing more says so, so that another is opened on a node that
/// goes on leading; one whose log only stutters goes on.
#[tokio::test(start_paused = true)]
async fn a_coordinator_says_when_it_is_closed_and_not_before() {
    let (banks, decisions) = (Banks::default(), Decisions::new());
    let raft = alone(Box::new(DecisionMachine::new(decisions.clone()))).await;
    let faults = Arc::<Faults>::default();
    let log = || Failing(RaftLog::new(raft.clone(), decisions.clone()), Arc::clone(&faults));
    let first = banks.open(log()).await.expect("it leads");
    faults.failing.store(5, SeqCst);
    let txn = banks.begin(&first, 1).expect("it is free");
    txn.commit(Ack::Applied).await.expect("it commits");
    until("the record is forgotten", || first.active() == 0).await;
    assert_eq!(decisions.committed(), 0);
    let closed = tokio::time::timeout(SECOND, first.closed()).await;
    assert!(closed.is_err(), "it goes on: {closed:?}");
    // A panic of the log leaves the decision open, as a failure does.
    faults.panics.store(true, SeqCst);
    let txn = banks.begin(&first, 2).expect("it is free");
    let error = txn.commit(Ack::Applied).await.unwrap_err();
    assert_eq!(error.outcome(), TxnOutcome::Unknown, "{error}");
    let closed = tokio::time::timeout(60 * SECOND, first.closed()).await;
    assert!(matches!(closed, Ok(BeginError::Store(_))), "{closed:?}");
    assert!(matches!(first.begin(), Err(BeginError::Store(_))));
    faults.panics.store(false, SeqCst);
    let second = banks.open(log()).await.expect("it leads");
    until("all are let go", || banks.locked() == 0).await;
    let txn = banks.begin(&second, 2).expect("it is free");
    txn.commit(Ack::Applied).await.expect("it commits");
    // Replaced, it closes without anybody asking it.
    let _third = banks.open(RaftLog::new(raft.clone(), decisions.clone())).await.expect("it leads");
    assert!(matches!(first.closed().await, BeginError::Store(_)), "the first reason stays");
    let closed = tokio::time::timeout(60 * SECOND, second.closed()).await;
    assert!(matches!(closed, Ok(BeginError::Superseded)), "{closed:?}");
}

/// A bank that forgets what it has committed, as a participant does once its coordinator says so,
/// and that is away for a coordinator of one epoch.
struct Forgetful {
    bank: Arc<Bank>,
    away_for: Mutex<Option<u64>>,
}

struct Through(Arc<Forgetful>, u64);

#[async_trait]
impl Participant for Through {
    async fn prepare(&self, gid: &Gid) -> Result<Vote, PrepareError> {
        At(Arc::clone(&self.0.bank)).prepare(gid).await
    }

    async fn finish(&self, gid: &Gid, decision: Decision) -> Result<Applied, ParticipantError> {
        if *self.0.away_for.lock() == Some(self.1) {
            return Err(ParticipantError("it is away".into()));
        }
        At(Arc::clone(&self.0.bank)).finish(gid, decision).await
    }

    async fn in_doubt(&self, name: &str, max: usize) -> Result<Vec<InDoubt>, ParticipantError> {
        At(Arc::clone(&self.0.bank)).in_doubt(name, max).await
    }

    async fn forget(&self, gids: &[Gid]) {
        self.0.bank.branches.lock().retain(|gid, _| !gids.contains(gid));
    }
}

/// The successor ends a commit and forgets it. The coordinator that it replaced, which waits for
/// all branches, is told so, raises no alarm, and its task ends.
#[tokio::test(start_paused = true)]
async fn a_replaced_coordinator_answers_a_commit_that_its_successor_ended() {
    let (cluster, bank) = (Cluster::start().await, Arc::<Bank>::default());
    let forgetful = Arc::new(Forgetful { bank, away_for: Mutex::new(Some(1)) });
    let open = async |at: usize, number| {
        let mut config = CoordinatorConfig::default();
        (config.pause, config.max_pause, config.recover_every) = (20 * MS, 200 * MS, 200 * MS);
        let coordinator = Coordinator::builder("transfers")
            .config(config)
            .participant("left", Arc::new(Through(Arc::clone(&forgetful), number)))
            .open(cluster.log(at).patience(SECOND));
        coordinator.await.expect("it leads")
    };
    let at = cluster.leader(None).await;
    let first = open(at, 1).await;
    let mut txn = first.begin().expect("it begins");
    let gid = txn.enlist("left").unwrap();
    assert!(forgetful.bank.work(&gid, 1));
    let coordinator = first.clone();
    let commit = tokio::spawn(async move {
        let answer = txn.commit(Ack::Applied).await;
        // Here, before any other task runs that an open one might wait for.
        (answer, coordinator.active())
    });
    until("it is recorded", || cluster.decisions[at].committed() == 1).await;
    // On the same node, which goes on leading: the log answers that it was replaced.
    let second = open(at, 2).await;
    until("the successor has ended it", || second.active() == 0).await;
    until("and forgotten", || forgetful.bank.branches.lock().is_empty()).await;
    assert!(!commit.is_finished(), "its own branch is away");
    *forgetful.away_for.lock() = None;
    let answer = tokio::time::timeout(60 * SECOND, commit).await.expect("it is answered");
    let (answer, active) = answer.expect("no panic");
    answer.expect("its decision stands");
    assert_eq!(active, 0, "the record is the successor's: there is nothing more to ask the log");
    let closed = tokio::time::timeout(60 * SECOND, first.closed()).await;
    assert!(matches!(closed, Ok(BeginError::Superseded)), "{closed:?}");
    assert!(first.heuristics().is_empty() && second.heuristics().is_empty());
}

/// A node that does not lead says so before any work is done.
#[tokio::test(start_paused = true)]
async fn a_node_that_does_not_lead_begins_nothing() {
    let (banks, cluster) = (Banks::default(), Cluster::start().await);
    let old = cluster.leader(None).await;
    let coordinator = banks.open(cluster.log(old)).await.expect("it leads");
    let txn = banks.begin(&coordinator, 1).expect("it is free");
    cluster.network.isolate(NODES[old], NODES);
    let is_leader = || cluster.nodes[old].status().borrow().role == Role::Leader;
    until("it steps down", || !is_leader()).await;
    assert!(matches!(coordinator.begin(), Err(BeginError::NotHere)));
    let error = txn.commit(Ack::Decided).await.unwrap_err();
    assert!(matches!(error, CommitError::NotHere(_)), "{error:?}");
    assert_eq!((error.outcome(), error.is_retryable()), (TxnOutcome::NotApplied, true));
}

/// `wrap` and `unwrap` are foreign code: a transaction ends, whatever they do.
#[tokio::test(start_paused = true)]
async fn panics_of_wrap_and_unwrap_leave_no_transaction_open() {
    let (banks, decisions) = (Banks::default(), Decisions::new());
    let raft = alone(Box::new(DecisionMachine::new(decisions.clone()))).await;
    let (wraps, unwraps) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
    let (in_wrap, in_unwrap) = (Arc::clone(&wraps), Arc::clone(&unwraps));
    let wrap = move |command| {
        assert!(!in_wrap.load(SeqCst), "the panic of `wrap`");
        command
    };
    let unwrap = move |answer| {
        assert!(!in_unwrap.load(SeqCst), "the panic of `unwrap`");
        Some(answer)
    };
    let log = RaftLog::within(raft, decisions, Arc::new(wrap), Arc::new(unwrap));
    // The least patience counts as 100 ms.
    let coordinator = banks.open(log.patience(Duration::ZERO)).await.expect("it leads");
    wraps.store(true, SeqCst);
    let txn = banks.begin(&coordinator, 1).expect("it is free");
    let error = txn.commit(Ack::Applied).await.unwrap_err();
    assert_eq!(error.outcome(), TxnOutcome::NotApplied, "{error}");
    wraps.store(false, SeqCst);
    until("it ends", || coordinator.active() == 0).await;
    // It was recorded, which the register of this node says.
    unwraps.store(true, SeqCst);
    let txn = banks.begin(&coordinator, 1).expect("it is free");
    txn.commit(Ack::Decided).await.expect("it commits");
    unwraps.store(false, SeqCst);
    until("it ends", || coordinator.active() == 0).await;
    banks.assert_alike();
}
