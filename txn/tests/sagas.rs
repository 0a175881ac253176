//! Sagas through the shell: what their code is given, and how they end.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use support::{Cut, Peers, Time, trip};
use voussoir_txn::store::{MemoryStore, Opened, Record, RecordKind, SagaStore};
use voussoir_txn::{
    Config, DefinitionError, Outcome, Resolution, ResolveError, Retry, Saga, SagaState, Sagas,
    StartError, Step, StepError, StoreError, WaitError, async_trait,
};

async fn sagas(saga: &Saga<u64>, store: MemoryStore) -> Sagas {
    Sagas::builder().register(saga).open(store).await.expect("an empty store opens")
}

#[tokio::test(start_paused = true)]
async fn outputs_flow_to_the_steps_that_need_them() {
    let peers = Peers::new();
    let (saga, refs) = trip(&peers);
    let sagas = sagas(&saga, MemoryStore::new()).await;
    let end = sagas.start(&saga, "t-1", &7).await.unwrap().end().await.unwrap();
    assert!(end.is_completed());
    assert_eq!(end.output(&refs.seat), Some(70));
    assert_eq!(end.output(&refs.charge), Some("charged 70 and 71".to_owned()));
    assert_eq!(
        peers.calls(),
        ["t-1/seat/act", "t-1/car/act", "t-1/charge/act", "t-1/mail/act"],
        "one call each, under the key of saga, step and direction"
    );
}

#[tokio::test(start_paused = true)]
async fn a_refused_pivot_undoes_the_steps_in_reverse() {
    let peers = Peers::new();
    peers.fail("t-1/charge/act", StepError::domain("declined"));
    let (saga, _) = trip(&peers);
    let sagas = sagas(&saga, MemoryStore::new()).await;
    let end = sagas.start(&saga, "t-1", &7).await.unwrap().end().await.unwrap();
    let because = "the step `charge`: declined".to_owned();
    assert_eq!(*end.outcome(), Outcome::Undone { because });
    assert_eq!(peers.calls()[3..], ["t-1/car/undo", "t-1/seat/undo"]);
}

#[tokio::test(start_paused = true)]
async fn a_step_that_fails_without_effect_is_not_undone() {
    let peers = Peers::new();
    peers.fail("t-1/car/act", StepError::domain("sold out"));
    let (saga, _) = trip(&peers);
    let sagas = sagas(&saga, MemoryStore::new()).await;
    let end = sagas.start(&saga, "t-1", &7).await.unwrap().end().await.unwrap();
    assert!(!end.is_completed());
    assert_eq!(peers.calls(), ["t-1/seat/act", "t-1/car/act", "t-1/seat/undo"]);
}

/// dtm #559, temporal-compensating-transactions #4: an attempt whose answer is lost may have run.
/// It is tried again with its key, and undone without an output when that ends badly.
#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_is_tried_again_and_undone_without_an_output() {
    let peers = Peers::new();
    for _ in 0..3 {
        peers.fail("t-1/car/act", StepError::unknown("no answer"));
    }
    let (saga, _) = trip(&peers);
    let sagas = sagas(&saga, MemoryStore::new()).await;
    let end = sagas.start(&saga, "t-1", &7).await.unwrap().end().await.unwrap();
    assert!(!end.is_completed());
    let calls = peers.calls();
    assert_eq!(calls.iter().filter(|key| *key == "t-1/car/act").count(), 3, "{calls:?}");
    assert_eq!(peers.undone("t-1/car/undo"), "None");
    assert_eq!(peers.undone("t-1/seat/undo"), "Some(70)");
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_hangs_is_ended_by_its_time_limit() {
    let peers = Peers::new();
    peers.hang("t-1/car/act", 1);
    let (saga, _) = trip(&peers);
    let sagas = sagas(&saga, MemoryStore::new()).await;
    let begun = tokio::time::Instant::now();
    let end = sagas.start(&saga, "t-1", &7).await.unwrap().end().await.unwrap();
    assert!(end.is_completed());
    assert!(begun.elapsed() >= Duration::from_secs(5), "{:?}", begun.elapsed());
}

/// The timer was set for the end of the saga first, and an attempt ends long before.
#[tokio::test(start_paused = true)]
async fn an_attempt_that_hangs_does_not_wait_for_the_limit_of_its_saga() {
    let peers = Peers::new();
    peers.hang("t-1/car/act", 1);
    let (saga, _) = trip(&peers);
    let sagas = sagas(&saga, MemoryStore::new()).await;
    let begun = tokio::time::Instant::now();
    let handle = sagas.start_within(&saga, "t-1", &7, Duration::from_secs(3_600)).await.unwrap();
    assert!(handle.end().await.unwrap().is_completed());
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(5) && took < Duration::from_secs(60), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_panicking_step_is_an_unknown_outcome() {
    let panics = Arc::new(AtomicUsize::new(0));
    let mut saga = Saga::<u64>::define("panics", 1);
    let act = {
        let panics = Arc::clone(&panics);
        move |_, _, ()| {
            let first = panics.fetch_add(1, Ordering::SeqCst) == 0;
            async move {
                assert!(!first, "the peer's library panics");
                Ok::<_, StepError>(1)
            }
        }
    };
    saga.step(Step::new("only", (), act).undo(|_, _, _| async { Ok(()) }));
    let saga = saga.build().unwrap();
    let sagas = sagas(&saga, MemoryStore::new()).await;
    assert!(sagas.start(&saga, "p", &1).await.unwrap().end().await.unwrap().is_completed());
    assert_eq!(panics.load(Ordering::SeqCst), 2);
}

/// steno #26: an undo that fails makes no panic and no endless loop. It waits for an operator, and
/// other sagas go on.
#[tokio::test(start_paused = true)]
async fn an_undo_that_fails_for_good_is_stuck_until_it_is_resolved() {
    let peers = Peers::new();
    peers.fail("t-1/charge/act", StepError::domain("declined"));
    for _ in 0..3 {
        peers.fail("t-1/car/undo", StepError::transient("closed on sundays"));
    }
    let (saga, _) = trip(&peers);
    let sagas = sagas(&saga, MemoryStore::new()).await;
    let handle = sagas.start(&saga, "t-1", &7).await.unwrap();
    let error = handle.end().await.unwrap_err();
    let WaitError::Stuck { step, why } = &error else { panic!("{error}") };
    assert_eq!((step.as_str(), why.as_str()), ("car", "closed on sundays"));
    let SagaState::Stuck(steps) = handle.state() else { panic!("it is listed as stuck") };
    assert_eq!(steps.len(), 1);
    let other = sagas.start(&saga, "t-2", &7).await.unwrap().end().await.unwrap();
    assert!(other.is_completed());
    let wrong = sagas.resolve("t-1", "car", Resolution::NotRun).await;
    assert!(matches!(wrong, Err(ResolveError::NotStuck)), "that is for a pivot: {wrong:?}");
    let wrong = sagas.resolve("t-1", "seat", Resolution::Skip).await;
    assert!(matches!(wrong, Err(ResolveError::NotStuck)), "{wrong:?}");
    sagas.resolve("t-1", "car", Resolution::Retry).await.unwrap();
    let end = handle.end().await.unwrap();
    assert!(matches!(end.outcome(), Outcome::Undone { .. }));
    assert_eq!(peers.calls().last().unwrap(), "t-1/seat/undo");
}

/// A step behind the pivot cannot fail the saga.
#[tokio::test(start_paused = true)]
async fn a_step_behind_the_pivot_is_stuck_and_can_be_replaced() {
    let peers = Peers::new();
    peers.fail("t-1/mail/act", StepError::domain("no such address"));
    let (saga, _) = trip(&peers);
    let sagas = sagas(&saga, MemoryStore::new()).await;
    let handle = sagas.start(&saga, "t-1", &7).await.unwrap();
    assert!(matches!(handle.end().await, Err(WaitError::Stuck { .. })));
    let late = sagas.abort("t-1", "too late").await;
    assert!(matches!(late, Err(ResolveError::PastPivot)), "{late:?}");
    sagas.resolve("t-1", "mail", Resolution::Replace("null".into())).await.unwrap();
    assert!(handle.end().await.unwrap().is_completed());
}

#[tokio::test(start_paused = true)]
async fn a_stuck_saga_can_be_given_up() {
    let peers = Peers::new();
    peers.fail("t-1/mail/act", StepError::domain("no such address"));
    let (saga, _) = trip(&peers);
    let store = MemoryStore::new();
    let running = sagas(&saga, store.clone()).await;
    let handle = running.start(&saga, "t-1", &7).await.unwrap();
    assert!(handle.end().await.is_err());
    running.give_up("t-1").await.unwrap();
    assert_eq!(*handle.end().await.unwrap().outcome(), Outcome::GivenUp);
    let next = sagas(&saga, store).await;
    let state = next.get("t-1").unwrap().state();
    assert_eq!(state, SagaState::Ended(Outcome::GivenUp), "it never revives");
}

/// sdk-java #305: an aborted saga compensates.
#[tokio::test(start_paused = true)]
async fn an_aborted_saga_undoes_what_it_did() {
    let peers = Peers::new();
    peers.hang("t-1/car/act", 1);
    let (saga, _) = trip(&peers);
    let sagas = sagas(&saga, MemoryStore::new()).await;
    let handle = sagas.start(&saga, "t-1", &7).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    sagas.abort("t-1", "the customer has left").await.unwrap();
    let end = handle.end().await.unwrap();
    let because = "aborted: the customer has left".to_owned();
    assert_eq!(*end.outcome(), Outcome::Undone { because });
    assert_eq!(peers.undone("t-1/car/undo"), "None", "the hanging call may land yet");
    assert_eq!(peers.undone("t-1/seat/undo"), "Some(70)");
}

async fn ask(sagas: &Sagas, what: &str) -> Result<(), ResolveError> {
    match what {
        "abort" => sagas.abort("t-1", "the customer has left").await,
        "resolve" => sagas.resolve("t-1", "mail", Resolution::Replace("null".into())).await,
        _ => sagas.give_up("t-1").await,
    }
}

/// What an operator was told holds in the next process, whatever this one has recorded since.
#[tokio::test(start_paused = true)]
async fn what_is_answered_about_a_saga_is_durable() {
    for what in ["abort", "resolve", "give up"] {
        let peers = Peers::new();
        if what == "abort" {
            peers.hang("t-1/car/act", usize::MAX);
        } else {
            peers.fail("t-1/mail/act", StepError::domain("no such address"));
        }
        let (saga, _) = trip(&peers);
        let store = Cut::new(MemoryStore::new());
        let first = Sagas::builder().register(&saga).open(store.clone()).await.unwrap();
        first.start(&saga, "t-1", &7).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        store.set_full(true);
        let mut asked = std::pin::pin!(ask(&first, what));
        let early = tokio::time::timeout(Duration::from_secs(60), &mut asked).await;
        assert!(early.is_err(), "{what} is answered before it is recorded: {early:?}");
        store.set_full(false);
        asked.await.unwrap();
        store.cut();
        let next = sagas(&saga, (*store.store).clone()).await;
        let end = next.get("t-1").unwrap().end().await.unwrap();
        let holds = match what {
            "abort" => matches!(end.outcome(), Outcome::Undone { .. }),
            "resolve" => end.is_completed(),
            _ => *end.outcome() == Outcome::GivenUp,
        };
        assert!(holds, "{what}: {end:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_abort_that_the_store_loses_is_told_as_such() {
    let peers = Peers::new();
    peers.hang("t-1/car/act", usize::MAX);
    let (saga, _) = trip(&peers);
    let store = Cut::new(MemoryStore::new());
    let sagas = Sagas::builder().register(&saga).open(store.clone()).await.unwrap();
    sagas.start(&saga, "t-1", &7).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    store.cut();
    let lost = ask(&sagas, "abort").await;
    assert!(matches!(lost, Err(ResolveError::Store(_))), "{lost:?}");
}

/// servicecomb-pack #219: a time limit holds, also across a restart.
#[tokio::test(start_paused = true)]
async fn a_saga_whose_time_is_over_is_undone_also_after_a_restart() {
    let peers = Peers::new();
    peers.hang("t-1/car/act", usize::MAX);
    let (saga, _) = trip(&peers);
    let time = Time::new();
    let open = |store: Cut<MemoryStore>| {
        let clock = Arc::clone(&time);
        Sagas::builder().register(&saga).clock(Arc::new(move || clock.now())).open(store)
    };
    let store = Cut::new(MemoryStore::new());
    let first = open(store.clone()).await.unwrap();
    first.start_within(&saga, "t-1", &7, Duration::from_secs(60)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    store.cut();
    time.pass(Duration::from_secs(100));
    let next = open(Cut::new((*store.store).clone())).await.unwrap();
    let end = next.get("t-1").unwrap().end().await.unwrap();
    let because = "the saga's time is over".to_owned();
    assert_eq!(*end.outcome(), Outcome::Undone { because });
    assert_eq!(peers.undone("t-1/seat/undo"), "Some(70)");
    assert_eq!(peers.epochs().last(), Some(&2), "peers can tell the processes apart");
}

/// The next process goes on where this one stopped, under the same keys.
#[tokio::test(start_paused = true)]
async fn a_restart_goes_on_with_the_same_keys() {
    let peers = Peers::new();
    peers.hang("t-1/car/act", 1);
    let (saga, refs) = trip(&peers);
    let store = Cut::new(MemoryStore::new());
    let first = Sagas::builder().register(&saga).open(store.clone()).await.unwrap();
    let handle = first.start(&saga, "t-1", &7).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    store.cut();
    let next = sagas(&saga, (*store.store).clone()).await;
    let end = next.get("t-1").unwrap().end().await.unwrap();
    assert!(end.is_completed());
    assert_eq!(end.output(&refs.seat), Some(70), "what the first process recorded");
    let calls = peers.calls();
    assert_eq!(calls[..3], ["t-1/seat/act", "t-1/car/act", "t-1/car/act"]);
    // The first one's call is over time, and its record goes nowhere.
    assert!(matches!(handle.end().await, Err(WaitError::Store(_))));
    assert_eq!(peers.calls().len(), 5, "a process without a store calls nobody");
}

/// dbos-transact-java #491: a saga that was started is not run again by starting it again.
#[tokio::test(start_paused = true)]
async fn starting_it_again_runs_nothing_twice() {
    let peers = Peers::new();
    let (saga, _) = trip(&peers);
    let store = MemoryStore::new();
    let running = sagas(&saga, store.clone()).await;
    let both = tokio::join!(running.start(&saga, "t-1", &7), running.start(&saga, "t-1", &7));
    let (first, second) = (both.0.unwrap(), both.1.unwrap());
    assert!(first.end().await.unwrap().is_completed() && second.end().await.is_ok());
    assert!(matches!(running.start(&saga, "t-1", &8).await, Err(StartError::Mismatch)));
    let next = sagas(&saga, store).await;
    assert!(next.start(&saga, "t-1", &7).await.unwrap().end().await.unwrap().is_completed());
    assert_eq!(peers.calls().len(), 4);
}

/// omicron #7623, DBOS, airbyte #13973: a changed definition parks the sagas of the old one, and
/// says so.
#[tokio::test(start_paused = true)]
async fn a_saga_of_a_changed_or_unknown_definition_is_parked() {
    let peers = Peers::new();
    peers.hang("t-1/seat/act", usize::MAX);
    let (saga, _) = trip(&peers);
    let store = Cut::new(MemoryStore::new());
    let first = Sagas::builder().register(&saga).open(store.clone()).await.unwrap();
    first.start(&saga, "t-1", &7).await.unwrap();
    store.cut();
    let mut changed = Saga::<u64>::define("trip", 1);
    changed.read(Step::new("seat", (), |_, _, ()| async { Ok::<u64, StepError>(0) }));
    let changed = changed.build().unwrap();
    let next = sagas(&changed, (*store.store).clone()).await;
    let handle = next.get("t-1").unwrap();
    assert!(matches!(handle.end().await, Err(WaitError::Parked(why)) if why.contains("changed")));
    let again = next.start(&changed, "t-1", &7).await.unwrap();
    assert!(matches!(again.state(), SagaState::Parked(_)), "it is not run by another shape");
    drop(next);
    let (newer, _) = support::trip_of_version(&peers, 2);
    let next = sagas(&newer, (*store.store).clone()).await;
    let state = next.get("t-1").unwrap().state();
    assert!(matches!(state, SagaState::Parked(why) if why.contains("not registered")));
    // With the old one registered beside the new one it ends.
    peers.hang("t-1/seat/act", 0);
    let both = Sagas::builder().register(&newer).register(&saga);
    let next = both.open((*store.store).clone()).await.unwrap();
    assert!(next.get("t-1").unwrap().end().await.unwrap().is_completed());
}

/// omicron #2318: a process that is replaced records what it began, and begins nothing more.
#[tokio::test(start_paused = true)]
async fn a_drained_process_finishes_its_calls_and_begins_none() {
    let peers = Peers::new();
    let (saga, _) = trip(&peers);
    let store = MemoryStore::new();
    let first = sagas(&saga, store.clone()).await;
    let handle = first.start(&saga, "t-1", &7).await.unwrap();
    first.drain().await;
    assert_eq!(peers.calls(), ["t-1/seat/act"]);
    assert!(matches!(handle.end().await, Err(WaitError::Drained)));
    assert!(matches!(first.start(&saga, "t-2", &7).await, Err(StartError::Draining)));
    let next = sagas(&saga, store).await;
    assert!(next.get("t-1").unwrap().end().await.unwrap().is_completed());
    assert_eq!(peers.calls().iter().filter(|key| *key == "t-1/seat/act").count(), 1);
}

/// A peer that never answers holds up no shutdown for longer than an attempt may take.
#[tokio::test(start_paused = true)]
async fn a_drain_ends_a_call_that_hangs_at_its_time_limit() {
    let peers = Peers::new();
    peers.hang("t-1/car/act", 1);
    let (saga, _) = trip(&peers);
    let store = MemoryStore::new();
    let first = sagas(&saga, store.clone()).await;
    first.start(&saga, "t-1", &7).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let drained = tokio::time::timeout(Duration::from_secs(60), first.drain()).await;
    assert!(drained.is_ok(), "it waits for the peer");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(peers.calls(), ["t-1/seat/act", "t-1/car/act"], "it is not tried again here");
    let next = sagas(&saga, store).await;
    assert!(next.get("t-1").unwrap().end().await.unwrap().is_completed());
    assert_eq!(peers.calls()[2], "t-1/car/act", "it is tried again there, with its key");
}

/// A step that fails at once and is tried again at once leaves others their turn.
#[tokio::test(start_paused = true)]
async fn attempts_without_a_delay_let_others_run() {
    let calls = Arc::new(AtomicUsize::new(0));
    let mut saga = Saga::<u64>::define("busy", 1);
    let counted = Arc::clone(&calls);
    let act = move |_, _, ()| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { Err::<u64, _>(StepError::transient("the breaker is open")) }
    };
    let step = Step::new("only", (), act).retry(Retry::exponential(Duration::ZERO, 10_000));
    saga.step(step.undo(|_, _, _| async { Ok(()) }));
    let saga = saga.build().unwrap();
    let sagas = sagas(&saga, MemoryStore::new()).await;
    let handle = sagas.start(&saga, "b", &1).await.unwrap();
    sagas.abort("b", "enough").await.unwrap();
    assert!(matches!(handle.end().await.unwrap().outcome(), Outcome::Undone { .. }));
    assert!(calls.load(Ordering::SeqCst) < 100, "{calls:?}");
}

/// A step without its record would be forgotten by the next process.
#[tokio::test(start_paused = true)]
async fn nothing_is_called_before_its_record() {
    let peers = Peers::new();
    let (saga, _) = trip(&peers);
    let store = Cut::new(MemoryStore::new());
    store.cut();
    let running = Sagas::builder().register(&saga).open(store).await.unwrap();
    let error = running.start(&saga, "t-1", &7).await.unwrap_err();
    assert!(error.may_have_begun(), "{error}");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(peers.calls(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn open_sagas_are_bounded_and_ended_ones_forgotten() {
    let peers = Peers::new();
    peers.hang("a/seat/act", usize::MAX);
    let (saga, _) = trip(&peers);
    let mut config = Config::default();
    (config.max_open, config.max_ended) = (2, 3);
    let store = MemoryStore::new();
    let running = Sagas::builder().register(&saga).config(config).open(store.clone());
    let running = running.await.unwrap();
    running.start(&saga, "a", &7).await.unwrap();
    for at in 0..5 {
        let handle = running.start(&saga, &format!("b{at}"), &7).await.unwrap();
        if at == 0 {
            assert!(matches!(running.start(&saga, "c", &7).await, Err(StartError::Busy)));
        }
        handle.end().await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut known: Vec<String> = running.list().into_iter().map(|info| info.id).collect();
    known.sort();
    assert_eq!(known, ["a", "b2", "b3", "b4"]);
    let next = sagas(&saga, store).await;
    assert_eq!(next.list().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn bad_ids_inputs_and_definitions_are_errors() {
    let peers = Peers::new();
    let (saga, _) = trip(&peers);
    let running = sagas(&saga, MemoryStore::new()).await;
    for id in ["", "a/b", "a\0", &"x".repeat(201)] {
        assert!(matches!(running.start(&saga, id, &7).await, Err(StartError::Id)), "{id:?}");
    }
    let (foreign, refs) = support::trip_of_version(&peers, 3);
    let error = running.start(&foreign, "t", &7).await.unwrap_err();
    assert!(matches!(error, StartError::Unregistered));
    let step = |name: &str| Step::new(name, (), |_, _: u64, ()| async { Ok::<u64, StepError>(0) });
    let build = |names: &[&str]| {
        let mut saga = Saga::<u64>::define("saga", 1);
        for name in names {
            saga.read(step(name));
        }
        saga.build().err()
    };
    assert!(matches!(build(&[]), Some(DefinitionError::Steps { count: 0, .. })));
    assert!(matches!(build(&["a", "a"]), Some(DefinitionError::Duplicate { .. })));
    assert!(matches!(build(&["a/b"]), Some(DefinitionError::Name { .. })));
    let mut other = Saga::<u64>::define("other", 1);
    other.read(Step::new("b", refs.seat, |_, _, _: u64| async { Ok::<u64, StepError>(0) }));
    assert!(matches!(other.build(), Err(DefinitionError::Foreign { .. })));
    let mut never = Saga::<u64>::define("never", 1);
    never.read(step("a").timeout(Duration::ZERO));
    assert!(matches!(never.build(), Err(DefinitionError::Timeout { .. })));
    let mut never = Saga::<u64>::define("never", 1);
    let mut retry = Retry::never();
    retry.max_attempts = 0;
    never.read(step("a").retry(retry));
    assert!(matches!(never.build(), Err(DefinitionError::Retry(_))));
}

/// Takes short appends, and asks for a saga that it was given by nobody who is known.
#[derive(Clone, Default)]
struct Short {
    store: Arc<MemoryStore>,
    asks_for: Arc<std::sync::Mutex<Option<Arc<str>>>>,
}

impl Short {
    const BYTES: usize = 4_000;
}

#[async_trait]
impl SagaStore for Short {
    async fn open(&self) -> Result<Opened, StoreError> {
        self.store.open().await
    }

    async fn append(&self, records: Vec<Record>) -> Result<(), StoreError> {
        let bytes = |record: &Record| record.saga.len() + record.events.len() + 8;
        if records.iter().map(bytes).sum::<usize>() > Short::BYTES {
            return Err(StoreError::new("an append that is too long"));
        }
        self.asks_for.lock().unwrap().take_if(|id| {
            let is_it =
                |record: &Record| record.kind == RecordKind::Forgotten && record.saga == *id;
            records.iter().any(is_it)
        });
        self.store.append(records).await
    }

    fn max_append_bytes(&self) -> usize {
        Short::BYTES
    }

    fn to_rewrite(&self) -> Option<Arc<str>> {
        self.asks_for.lock().unwrap().clone()
    }
}

#[tokio::test(start_paused = true)]
async fn a_saga_takes_no_more_than_its_store_writes_at_once() {
    let output = "x".repeat(1_200);
    let mut saga = Saga::<String>::define("long", 1);
    for step in ["a", "b"] {
        let output = output.clone();
        let act = move |_, _, ()| {
            let output = output.clone();
            async { Ok::<String, StepError>(output) }
        };
        saga.read(Step::new(step, (), act).retry(Retry::never()));
    }
    let (mut saga, pivot) =
        saga.pivot(Step::new("pivot", (), |_, _, ()| async { Ok::<u64, StepError>(1) }));
    let act = move |_, _, _: u64| {
        let output = output.clone();
        async { Ok::<String, StepError>(output) }
    };
    saga.then(Step::new("last", pivot, act).retry(Retry::never()));
    let saga = saga.build().unwrap();
    let sagas = Sagas::builder().register(&saga).open(Short::default()).await.unwrap();
    let error = sagas.start(&saga, "s0", &"i".repeat(3_000)).await.unwrap_err();
    assert!(matches!(error, StartError::Input(_)), "{error}");
    // All but the last output have room beside this input.
    let handle = sagas.start(&saga, "s1", &"i".repeat(200)).await.unwrap();
    let Err(WaitError::Stuck { step, why }) = handle.end().await else { panic!("it has room") };
    assert_eq!((&*step, why.contains("an output of 1202 bytes")), ("last", true), "{why}");
    let long = Resolution::Replace(format!("\"{}\"", "y".repeat(1_000)).into());
    let refused = sagas.resolve("s1", "last", long).await;
    assert!(matches!(refused, Err(ResolveError::TooLong { bytes: 1_002 })), "{refused:?}");
    let short = Resolution::Replace("\"y\"".into());
    sagas.resolve("s1", "last", short).await.unwrap();
    assert!(handle.end().await.unwrap().is_completed());
    // Nor does an operator's reason make it longer than its store takes.
    let handle = sagas.start(&saga, "s2", &"i".repeat(2_000)).await.unwrap();
    let _ = sagas.abort("s2", "w".repeat(1 << 20)).await;
    assert!(!matches!(handle.end().await, Err(WaitError::Store(_))), "it was halted");
}

#[tokio::test(start_paused = true)]
async fn a_record_of_a_saga_that_nobody_knows_is_forgotten() {
    let store = Short::default();
    let peers = Peers::new();
    let (saga, _) = trip(&peers);
    let sagas = Sagas::builder().register(&saga).open(store.clone()).await.unwrap();
    *store.asks_for.lock().unwrap() = Some("ghost".into());
    assert!(sagas.start(&saga, "t-1", &7).await.unwrap().end().await.unwrap().is_completed());
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(store.to_rewrite(), None, "it keeps what lies behind it from being given back");
}
