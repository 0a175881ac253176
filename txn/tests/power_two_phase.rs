//! A coordinator whose decisions are in a journal, under power losses on the journal's
//! crash-simulating files. The participants are elsewhere and lose nothing that they have prepared.
//!
//! `VOUSSOIR_POWER_LOSSES` sets how many there are (default 400); `VOUSSOIR_SEED` replays one life.

mod support;

#[path = "support/branches.rs"]
mod branches;
#[path = "support/losses.rs"]
mod losses;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use branches::Held;
use losses::{LOSSES_A_LIFE, journal, pumped};
use parking_lot::Mutex;
use support::Cut;
use voussoir_journal::Journal;
use voussoir_journal::files::crash::{CrashFiles, Effect, Fault, Loss, Op, When};
use voussoir_sim::Situations;
use voussoir_txn::async_trait;
use voussoir_txn::store::JournalStore;
use voussoir_txn::two_phase::*;

const NAMES: [&str; 3] = ["a", "b", "c"];

static SITUATIONS: [&str; 10] = [
    "committed and told so",
    "aborted and told so",
    "committed, and its client was not told",
    "aborted, and its client was not told",
    "power lost with a branch prepared",
    "power lost with some branches committed, others prepared",
    "the decision was in doubt, and it was recorded",
    "the decision was in doubt, and it was lost",
    "a recovery committed a branch",
    "a recovery aborted a branch",
];

/// What the client of a transaction was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Committed,
    Aborted,
    /// The log failed at the decision.
    InDoubt,
    /// Nothing: the power was lost first.
    Nothing,
}

struct World {
    held: Mutex<BTreeMap<Gid, Held>>,
    told: Mutex<BTreeMap<TxnId, Told>>,
    random: Mutex<fastrand::Rng>,
    /// Calls of a hundred that fail, or whose answers are lost.
    trouble: u32,
    is_over: AtomicBool,
}

impl World {
    /// How a call goes: the delays before its effect and behind it, and whether it is refused,
    /// or its answer lost.
    fn draw(&self) -> (Duration, Duration, bool, bool) {
        let trouble = if self.is_over.load(Ordering::Relaxed) { 0 } else { self.trouble };
        let mut random = self.random.lock();
        let mut delay = || Duration::from_micros(random.u64(..2_000));
        let delays = (delay(), delay());
        let (is_refused, is_lost) = (random.u32(..200) < trouble, random.u32(..100) < trouble);
        (delays.0, delays.1, is_refused, is_lost)
    }

    fn of(&self, txn: TxnId) -> Vec<Held> {
        let held = self.held.lock();
        held.iter().filter(|(gid, _)| gid.txn() == txn).map(|(_, held)| *held).collect()
    }
}

/// A participant as one process of the coordinator reaches it.
struct At {
    world: Arc<World>,
    name: &'static str,
    is_dead: Arc<AtomicBool>,
}

impl At {
    /// Passes the time before an effect. A process that has lost its power makes no more of them.
    async fn pass(&self, delay: Duration) {
        tokio::time::sleep(delay).await;
        if self.is_dead.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
    }

    fn is_own(&self, gid: &Gid) -> bool {
        NAMES[gid.branch() as usize % NAMES.len()] == self.name
    }
}

#[async_trait]
impl Participant for At {
    async fn prepare(&self, gid: &Gid) -> Result<Vote, PrepareError> {
        let (before, behind, is_refused, is_lost) = self.world.draw();
        self.pass(before).await;
        if is_refused {
            return Err(PrepareError::Refused("no money".into()));
        }
        if is_lost {
            // The statement runs at the server, whoever is gone, and nobody hears of it.
            let (world, gid) = (Arc::clone(&self.world), gid.clone());
            tokio::spawn(async move {
                tokio::time::sleep(behind * 20).await;
                world.held.lock().insert(gid, Held::Prepared);
            });
            return std::future::pending().await;
        }
        self.world.held.lock().insert(gid.clone(), Held::Prepared);
        self.pass(behind).await;
        Ok(Vote::Prepared)
    }

    async fn finish(&self, gid: &Gid, decision: Decision) -> Result<Applied, ParticipantError> {
        let (before, behind, _, is_lost) = self.world.draw();
        self.pass(before).await;
        let applied = branches::finish(&mut self.world.held.lock(), gid, decision);
        self.pass(behind).await;
        if is_lost {
            return Err(ParticipantError("the connection has ended".into()));
        }
        Ok(applied)
    }

    async fn in_doubt(&self, _: &str, max: usize) -> Result<Vec<InDoubt>, ParticipantError> {
        let (before, behind, ..) = self.world.draw();
        self.pass(before).await;
        let list = {
            let held = self.world.held.lock();
            let prepared =
                held.iter().filter(|(gid, held)| self.is_own(gid) && **held == Held::Prepared);
            prepared.map(|(gid, _)| InDoubt::new(gid.clone(), Duration::ZERO)).take(max).collect()
        };
        self.pass(behind).await;
        Ok(list)
    }
}

async fn open(
    journal: &Journal,
    now: &mut u64,
    world: &Arc<World>,
    is_dead: &Arc<AtomicBool>,
) -> (Coordinator, Cut<JournalStore>) {
    let store = Cut::new(JournalStore::new(journal, "decisions").expect("two logs"));
    let mut config = CoordinatorConfig::default();
    (config.prepare_timeout, config.finish_timeout) =
        (Duration::from_millis(20), Duration::from_millis(20));
    (config.pause, config.max_pause) = (Duration::from_millis(1), Duration::from_millis(4));
    config.recover_every = Duration::from_millis(10);
    let mut builder = Coordinator::builder("transfers").config(config);
    for name in NAMES {
        let (world, is_dead) = (Arc::clone(world), Arc::clone(is_dead));
        builder = builder.participant(name, Arc::new(At { world, name, is_dead }));
    }
    let opening = builder.open(StoreLog::new(store.clone()));
    (pumped(journal, now, opening).await.expect("the coordinator opens"), store)
}

/// A client's transaction over two or three branches.
async fn transaction(coordinator: Coordinator, world: Arc<World>, is_dead: Arc<AtomicBool>) {
    let (count, ack) = {
        let mut random = world.random.lock();
        let ack = if random.bool() { Ack::Decided } else { Ack::Applied };
        (random.usize(2..=NAMES.len()), ack)
    };
    let Ok(mut txn) = coordinator.begin() else { return };
    let id = txn.id();
    for name in &NAMES[..count] {
        txn.enlist(name).expect("it is known");
    }
    world.told.lock().insert(id, Told::Nothing);
    let told = match txn.commit(ack).await {
        Ok(()) => Told::Committed,
        Err(error) if error.outcome() == TxnOutcome::NotApplied => Told::Aborted,
        Err(_) => Told::InDoubt,
    };
    if !is_dead.load(Ordering::SeqCst) {
        world.told.lock().insert(id, told);
    }
}

async fn life(seed: u64, situations: &Situations) {
    let mut random = fastrand::Rng::with_seed(seed);
    let disk = CrashFiles::new(seed);
    let world = Arc::new(World {
        held: Mutex::default(),
        told: Mutex::default(),
        trouble: random.u32(..30),
        random: Mutex::new(random.fork()),
        is_over: AtomicBool::new(false),
    });
    let mut now = 0;
    for _ in 0..LOSSES_A_LIFE {
        let journal = journal(disk.mount());
        let is_dead = Arc::new(AtomicBool::new(false));
        let (coordinator, store) = open(&journal, &mut now, &world, &is_dead).await;
        if random.bool() {
            // In the middle of the journal's work.
            let at = When::Nth(random.u64(..40));
            disk.inject(Fault::new(Op::Any, at, Effect::PowerOff));
        }
        let (clients, lasts) = (random.u8(..6), Duration::from_micros(random.u64(..12_000)));
        for _ in 0..clients {
            let client = transaction(coordinator.clone(), Arc::clone(&world), Arc::clone(&is_dead));
            tokio::spawn(client);
        }
        pumped(&journal, &mut now, tokio::time::sleep(lasts)).await;
        is_dead.store(true, Ordering::SeqCst);
        store.cut();
        disk.power_loss(Loss::Any);
        disk.heal();
        note_loss(&world, situations);
    }
    world.is_over.store(true, Ordering::Relaxed);
    // Until the last late statement has run.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let before = world.held.lock().clone();
    let journal = journal(disk.mount());
    let is_dead = Arc::new(AtomicBool::new(false));
    let (coordinator, _) = open(&journal, &mut now, &world, &is_dead).await;
    let ended = async {
        let is_prepared = || world.held.lock().values().any(|held| *held == Held::Prepared);
        // Ends: the bound fails the life.
        while is_prepared() || coordinator.active() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let ended = tokio::time::timeout(Duration::from_secs(10), ended);
    pumped(&journal, &mut now, ended).await.expect("nothing stays prepared");
    assert!(coordinator.heuristics().is_empty(), "{:?}", coordinator.heuristics());
    for (gid, held) in world.held.lock().iter() {
        let was_prepared = before.get(gid) == Some(&Held::Prepared);
        let by_recovery = |of| u64::from(was_prepared && *held == of);
        situations.add("a recovery committed a branch", by_recovery(Held::Committed));
        situations.add("a recovery aborted a branch", by_recovery(Held::Aborted));
    }
    check(&world, situations);
}

fn note_loss(world: &World, situations: &Situations) {
    for txn in world.told.lock().keys() {
        let held = world.of(*txn);
        let is_there = |of| held.contains(&of);
        let is_torn = is_there(Held::Prepared) && is_there(Held::Committed);
        let some = "power lost with some branches committed, others prepared";
        situations.add(some, u64::from(is_torn));
        let prepared = u64::from(is_there(Held::Prepared));
        situations.add("power lost with a branch prepared", prepared);
    }
}

fn check(world: &World, situations: &Situations) {
    for (txn, told) in world.told.lock().iter() {
        let held = world.of(*txn);
        let commits = held.contains(&Held::Committed);
        let is_torn = commits && held.iter().any(|held| *held != Held::Committed);
        assert!(!is_torn, "{txn:?}, {told:?}, is torn: {held:?}");
        let reached = match (told, commits) {
            (Told::Committed, true) => "committed and told so",
            (Told::Aborted, false) => "aborted and told so",
            (Told::InDoubt, true) => "the decision was in doubt, and it was recorded",
            (Told::InDoubt, false) => "the decision was in doubt, and it was lost",
            (Told::Nothing, true) => "committed, and its client was not told",
            (Told::Nothing, false) => "aborted, and its client was not told",
            (told, _) => panic!("{txn:?} was told {told:?}, and is {held:?}"),
        };
        situations.reached(reached);
    }
}

#[test]
fn no_power_loss_of_the_coordinator_tears_a_transaction() {
    let situations = Situations::new(&SITUATIONS);
    if losses::play("power_two_", |seed| life(seed, &situations)) {
        situations.assert_all_reached();
    }
}
