//! Sagas in a journal, under power losses on the journal's crash-simulating files.
//!
//! `VOUSSOIR_POWER_LOSSES` sets how many there are (default 400); `VOUSSOIR_SEED` replays one life.

mod support;

#[path = "support/losses.rs"]
mod losses;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use losses::{LOSSES_A_LIFE, journal, pumped};
use parking_lot::Mutex;
use support::Cut;
use voussoir_journal::files::crash::{CrashFiles, Effect, Fault, Loss, Op, When};
use voussoir_journal::{Config, Journal, MemoryFiles};
use voussoir_sim::Situations;
use voussoir_txn::store::{JournalStore, SagaStore};
use voussoir_txn::{
    Outcome, Resolution, Retry, Saga, SagaState, Sagas, Step, StepCx, StepError, WaitError,
};

static SITUATIONS: [&str; 7] = [
    "power lost with a saga open",
    "power lost during a call",
    "a saga goes on after a loss",
    "a saga completes",
    "a saga is undone",
    "an action ran in an earlier process",
    "a beginning of unknown outcome was found",
];

#[derive(Clone, Copy, Debug, Default)]
struct Peer {
    ran: bool,
    undone: bool,
    tombstone: bool,
    ran_in: u64,
}

/// The peers, which are elsewhere and lose nothing. They know keys.
struct World {
    peers: Mutex<HashMap<String, Peer>>,
    random: Mutex<fastrand::Rng>,
    trouble: Mutex<u32>,
    under_way: Mutex<u32>,
}

struct UnderWay<'a>(&'a World);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        *self.0.under_way.lock() -= 1;
    }
}

impl World {
    /// How this call goes: the delay, and which of four failures if it fails.
    fn draw(&self) -> (Duration, Option<u8>) {
        let mut random = self.random.lock();
        let delay = Duration::from_micros(random.u64(..3_000));
        let fails = random.u32(..100) < *self.trouble.lock();
        (delay, fails.then(|| random.u8(..4)))
    }

    fn key(cx: &StepCx) -> String {
        cx.key.rsplit_once('/').expect("a key has its direction last").0.to_owned()
    }

    async fn act(&self, cx: StepCx, may_refuse: bool) -> Result<u64, StepError> {
        let (delay, fails) = self.draw();
        *self.under_way.lock() += 1;
        let _under_way = UnderWay(self);
        tokio::time::sleep(delay).await;
        if fails == Some(0) {
            return Err(StepError::transient("busy"));
        }
        let mut peers = self.peers.lock();
        let peer = peers.entry(Self::key(&cx)).or_default();
        if peer.tombstone {
            return Err(StepError::domain("cancelled"));
        }
        if fails == Some(1) && may_refuse && !peer.ran {
            peer.tombstone = true;
            return Err(StepError::domain("sold out"));
        }
        if !peer.ran {
            (peer.ran, peer.ran_in) = (true, cx.epoch);
        }
        if fails == Some(2) { Err(StepError::unknown("no answer")) } else { Ok(cx.epoch) }
    }

    async fn undo(&self, cx: StepCx) -> Result<(), StepError> {
        let (delay, fails) = self.draw();
        tokio::time::sleep(delay).await;
        if fails == Some(0) {
            return Err(StepError::transient("busy"));
        }
        let mut peers = self.peers.lock();
        let peer = peers.entry(Self::key(&cx)).or_default();
        (peer.undone, peer.tombstone) = (true, true);
        if fails == Some(1) { Err(StepError::unknown("no answer")) } else { Ok(()) }
    }
}

/// a, then b and c at once, then the pivot, then a mail.
fn order(world: &Arc<World>) -> Saga<u64> {
    let mut retry = Retry::exponential(Duration::from_millis(1), 4);
    retry.max_delay = Duration::from_millis(4);
    let act = |may_refuse: bool| {
        let world = Arc::clone(world);
        move |cx: StepCx| {
            let world = Arc::clone(&world);
            async move { world.act(cx, may_refuse).await }
        }
    };
    let undo = || {
        let world = Arc::clone(world);
        move |cx: StepCx, _: u64, _: Option<u64>| {
            let world = Arc::clone(&world);
            async move { world.undo(cx).await }
        }
    };
    let mut order = Saga::<u64>::define("order", 1);
    let (a, b, c, pivot, mail) = (act(true), act(true), act(true), act(true), act(false));
    let step = Step::new("a", (), move |cx, _, ()| a(cx)).retry(retry.clone());
    let a = order.step(step.undo(undo()).undo_retry(retry.clone()));
    let step = Step::new("b", a, move |cx, _, _: u64| b(cx)).retry(retry.clone());
    let b = order.step(step.undo(undo()).undo_retry(retry.clone()));
    let step = Step::new("c", a, move |cx, _, _: u64| c(cx)).retry(retry.clone());
    let c = order.step(step.undo(undo()).undo_retry(retry.clone()));
    let step = Step::new("pivot", (b, c), move |cx, _, _: (u64, u64)| pivot(cx));
    let (mut order, pivot) = order.pivot(step.retry(retry.clone()));
    order.then(Step::new("mail", pivot, move |cx, _, _: u64| mail(cx)).retry(retry));
    order.build().expect("a definition in order")
}

async fn life(seed: u64, situations: &Situations) {
    let mut random = fastrand::Rng::with_seed(seed);
    let disk = CrashFiles::new(seed);
    let trouble = random.u32(..60);
    let world = Arc::new(World {
        peers: Mutex::default(),
        random: Mutex::new(random.fork()),
        trouble: Mutex::new(trouble),
        under_way: Mutex::new(0),
    });
    let order = order(&world);
    // The sagas whose beginning was acknowledged, and those that were asked for.
    let (mut begun, mut asked) = (Vec::<String>::new(), Vec::<String>::new());
    let mut now = 0;
    for generation in 0..=LOSSES_A_LIFE {
        let is_last = generation == LOSSES_A_LIFE;
        if is_last {
            *world.trouble.lock() = 0;
        }
        let journal = journal(disk.mount());
        let store = Cut::new(JournalStore::new(&journal, "sagas").expect("two logs"));
        let opening = Sagas::builder().register(&order).open(store.clone());
        let sagas = pumped(&journal, &mut now, opening).await.expect("sagas open");
        for id in &begun {
            assert!(sagas.get(id).is_some(), "{id} was acknowledged and is lost");
        }
        let found = asked.iter().filter(|id| !begun.contains(*id) && sagas.get(id).is_some());
        situations.add("a beginning of unknown outcome was found", found.count() as u64);
        let open = sagas.list().into_iter().filter(|saga| saga.state == SagaState::Open);
        situations.add("a saga goes on after a loss", open.count() as u64);
        if is_last {
            pumped(&journal, &mut now, end_all(&sagas, &world, situations)).await;
            check(&sagas, &world, situations);
            return;
        }
        let starts: Vec<String> =
            (0..random.u8(..5)).map(|at| format!("{generation}-{at}")).collect();
        asked.extend(starts.iter().cloned());
        let lasts = Duration::from_micros(random.u64(..15_000));
        if random.bool() {
            // In the middle of the journal's work.
            let at = When::Nth(random.u64(..60));
            disk.inject(Fault::new(Op::Any, at, Effect::PowerOff));
        }
        let started = Mutex::new(Vec::new());
        let work = async {
            for id in &starts {
                if sagas.start(&order, id, &generation).await.is_ok() {
                    started.lock().push(id.clone());
                }
            }
            std::future::pending::<()>().await;
        };
        let _ = pumped(&journal, &mut now, tokio::time::timeout(lasts, work)).await;
        begun.extend(started.into_inner());
        let is_open = |state: &SagaState| matches!(state, SagaState::Open);
        let open = sagas.list().into_iter().any(|saga| is_open(&saga.state));
        situations.add("power lost with a saga open", u64::from(open));
        situations.add("power lost during a call", u64::from(*world.under_way.lock() > 0));
        store.cut();
        disk.power_loss(Loss::Any);
        disk.heal();
    }
}

/// Waits for the end of all sagas. An operator has each stuck step tried again.
async fn end_all(sagas: &Sagas, _: &World, _: &Situations) {
    for saga in sagas.list() {
        let handle = sagas.get(&saga.id).expect("it is listed");
        // Ends: nothing is in trouble any more.
        while let Err(error) = handle.end().await {
            let WaitError::Stuck { step, .. } = error else { panic!("{}: {error}", saga.id) };
            let resolved = sagas.resolve(&saga.id, &step, Resolution::Retry).await;
            resolved.expect("a stuck step is tried again");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

fn check(sagas: &Sagas, world: &World, situations: &Situations) {
    let peers = world.peers.lock();
    for saga in sagas.list() {
        let peer =
            |step: &str| peers.get(&format!("{}/{step}", saga.id)).copied().unwrap_or_default();
        let SagaState::Ended(outcome) = &saga.state else { panic!("{saga:?} has not ended") };
        match outcome {
            Outcome::Completed => {
                situations.reached("a saga completes");
                for step in ["a", "b", "c", "pivot", "mail"] {
                    let peer = peer(step);
                    assert!(peer.ran && !peer.undone, "{saga:?} {step} {peer:?}");
                    let moved = peer.ran_in < sagas.epoch();
                    situations.add("an action ran in an earlier process", u64::from(moved));
                }
            }
            Outcome::Undone { .. } => {
                situations.reached("a saga is undone");
                for step in ["a", "b", "c"] {
                    let peer = peer(step);
                    assert!(!peer.ran || peer.undone, "{saga:?} {step} {peer:?}");
                }
                assert!(!peer("pivot").ran && !peer("mail").ran, "{saga:?}");
            }
            other => panic!("{saga:?} ended as {other:?}"),
        }
    }
}

#[test]
fn no_power_loss_loses_a_saga_or_runs_half_of_it() {
    let situations = Situations::new(&SITUATIONS);
    if losses::play("power no_", |seed| life(seed, &situations)) {
        situations.assert_all_reached();
    }
}

/// One stuck saga must not pin the records of all that came after it.
#[tokio::test(start_paused = true)]
async fn an_old_open_saga_pins_no_space() {
    let mut config = Config::default();
    config.segment_bytes = 16 << 20;
    config.max_bytes = 64 << 20;
    let journal = Journal::open_with(Arc::new(MemoryFiles::new()), config).expect("a journal");
    let mut config = voussoir_txn::Config::default();
    config.max_ended = 10;
    let mut saga = Saga::<u64>::define("one", 1);
    let act = |_, input: u64, ()| async move {
        if input == 0 { Err(StepError::domain("never")) } else { Ok::<u64, StepError>(input) }
    };
    let (saga, _) = {
        saga.read(Step::new("first", (), |_, _, ()| async { Ok::<u64, StepError>(1) }));
        let (mut saga, pivot) =
            saga.pivot(Step::new("pivot", (), |_, _, ()| async { Ok::<u64, StepError>(1) }));
        saga.then(Step::new("last", (), act));
        (saga.build().expect("a definition"), pivot)
    };
    // As a whole it is more than one batch of the journal.
    let mut long = Saga::<u64>::define("long", 1);
    for step in ["a", "b", "c", "d", "e", "f"] {
        let act = |_, _, ()| async { Ok::<String, StepError>("x".repeat(250 << 10)) };
        long.read(Step::new(step, (), act));
    }
    let (mut long, _) =
        long.pivot(Step::new("pivot", (), |_, _, ()| async { Ok::<u64, StepError>(1) }));
    long.then(Step::new("last", (), act));
    let long = long.build().expect("a definition");
    let builder = || Sagas::builder().register(&saga).register(&long).config(config.clone());
    let store = JournalStore::new(&journal, "sagas").expect("two logs");
    let sagas = builder().open(store).await.expect("sagas open");
    let stuck = sagas.start(&long, "stuck", &0).await.expect("it starts");
    assert!(matches!(stuck.end().await, Err(WaitError::Stuck { .. })));
    let log = journal.log("sagas", 0).expect("the log");
    for at in 0..8_000 {
        let handle = sagas.start(&saga, &format!("s{at}"), &1).await.expect("it starts");
        assert!(handle.end().await.expect("it ends").is_completed());
    }
    let kept = log.end() - log.first();
    assert!(log.end() > 30_000 && kept < 15_000, "{kept} of {} records are kept", log.end());
    assert!(matches!(stuck.end().await, Err(WaitError::Stuck { .. })), "it was halted");
    assert!(JournalStore::new(&journal, "sagas").is_err(), "its sagas go on without a handle");
    sagas.drain().await;
    drop(sagas);
    let store = JournalStore::new(&journal, "sagas").expect("two logs");
    let opened = store.open().await.expect("it opens");
    assert_eq!(opened.epoch, 2);
    drop(store);
    let store = JournalStore::new(&journal, "sagas").expect("two logs");
    let next = builder().open(store).await.expect("it opens");
    let stuck = next.get("stuck").expect("the stuck one is still known");
    assert!(matches!(stuck.end().await, Err(WaitError::Stuck { .. })));
    assert!(next.list().len() <= 12, "{}", next.list().len());
    let replaced = Resolution::Replace("1".into());
    next.resolve("stuck", "last", replaced).await.expect("it takes what an operator says");
    assert!(stuck.end().await.expect("it ends").is_completed());
}
