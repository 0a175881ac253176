//! The crash-point kit over a saga in order, and over six that are not.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use voussoir_txn::testing::{Case, Explored, Found, Schedule, crash_points};
use voussoir_txn::{Outcome, Retry, Saga, Step, StepCx, StepError};

/// What is wrong with a saga or its peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    /// A peer that does not look at the key has its effect at every attempt.
    NoKey,
    /// An undo that takes back what never was.
    UndoIsNotCommutative,
    /// An effect in a step that is said to have none: nobody undoes it.
    EffectBeforeIntent,
    /// A step behind the pivot that undoes one before it by hand.
    UndoAfterPivot,
    /// An undo that does not keep the action from landing after it.
    MissingTombstone,
    /// A step that is tried for ever, and waits for no operator.
    UnboundedRetry,
}

/// One peer: what it holds, by the keys that it knows.
#[derive(Default)]
struct Peer {
    holds: i64,
    ran: HashSet<String>,
    undone: HashSet<String>,
}

impl Peer {
    fn act(&mut self, key: &str, flaw: Flaw) -> Result<(), StepError> {
        if self.undone.contains(key) && flaw != Flaw::MissingTombstone {
            return Err(StepError::domain("it was undone"));
        }
        if self.ran.insert(key.to_owned()) || flaw == Flaw::NoKey {
            self.holds += 1;
        }
        Ok(())
    }

    fn undo(&mut self, key: &str, flaw: Flaw) {
        // The key of the undo names the action: the last part is the direction.
        let action = key.replace("/undo", "/act");
        let ran = self.ran.contains(&action);
        if self.undone.insert(action) && (ran || flaw == Flaw::UndoIsNotCommutative) {
            self.holds -= 1;
        }
    }
}

#[derive(Default)]
struct World {
    stock: Peer,
    seat: Peer,
    charge: Peer,
    mail: Peer,
    mails_tried: u32,
}

fn retry(flaw: Flaw) -> Retry {
    let attempts = if flaw == Flaw::UnboundedRetry { u32::MAX } else { 2 };
    Retry::exponential(Duration::from_millis(10), attempts)
}

fn case(flaw: Flaw) -> Case<u64> {
    let world: Arc<Mutex<World>> = Arc::default();
    let (at_stock, at_seat, at_charge, at_mail) =
        (world.clone(), world.clone(), world.clone(), world.clone());
    let undo_seat = world.clone();
    let mut trip = Saga::<u64>::define("trip", 1);
    let quote = trip.read(
        Step::new("quote", (), move |cx: StepCx, cents: u64, ()| {
            let world = at_stock.clone();
            async move {
                if flaw == Flaw::EffectBeforeIntent {
                    world.lock().stock.act(&cx.key, flaw)?;
                }
                Ok(cents)
            }
        })
        .retry(retry(flaw)),
    );
    let seat = Step::new("seat", quote, move |cx: StepCx, _, _: u64| {
        let world = at_seat.clone();
        async move { world.lock().seat.act(&cx.key, flaw).map(|()| 17_u64) }
    });
    let seat = seat.retry(retry(flaw)).undo(move |cx: StepCx, _, _: Option<u64>| {
        let world = undo_seat.clone();
        async move {
            world.lock().seat.undo(&cx.key, flaw);
            Ok(())
        }
    });
    let seat = trip.step(seat.undo_retry(retry(flaw)));
    let charge = Step::new("charge", seat, move |cx: StepCx, _, _: u64| {
        let world = at_charge.clone();
        async move { world.lock().charge.act(&cx.key, flaw) }
    });
    let (mut trip, charge) = trip.pivot(charge.retry(retry(flaw)));
    let mail = Step::new("mail", charge, move |cx: StepCx, _, ()| {
        let world = at_mail.clone();
        async move {
            let mut world = world.lock();
            world.mails_tried += 1;
            if flaw == Flaw::UndoAfterPivot && world.mails_tried > 1 {
                world.seat.undo(&cx.key.replace("mail", "seat"), flaw);
            }
            world.mail.act(&cx.key, flaw)
        }
    });
    trip.then(mail.retry(retry(flaw)));
    let saga = trip.build().expect("a definition in order");
    Case::new(saga, 4_200, move |outcome| {
        let world = world.lock();
        let holds = [&world.stock, &world.seat, &world.charge, &world.mail].map(|peer| peer.holds);
        let expected = match outcome {
            Outcome::Completed => [0, 1, 1, 1],
            _ => [0, 0, 0, 0],
        };
        let same = holds == expected;
        same.then_some(()).ok_or_else(|| format!("{outcome:?}: holds {holds:?}, not {expected:?}"))
    })
}

fn explore(flaw: Flaw) -> Result<Explored, Box<Found>> {
    crash_points(|| case(flaw))
}

#[test]
fn a_saga_in_order_survives_every_fault_and_every_pair() {
    let explored = explore(Flaw::None).unwrap_or_else(|found| panic!("{found}"));
    println!("{explored:?}");
    assert_eq!(explored.calls, 4);
    assert!(explored.runs > 500, "{explored:?}");
    assert!(explored.completed > 100 && explored.undone > 100, "{explored:?}");
}

/// The kit finds each, by a schedule of so few faults, and shows how to run it again.
fn finds(flaw: Flaw, faults: usize, why: &str) {
    let found = explore(flaw).expect_err("it is broken");
    println!("{flaw:?}: {found}\n");
    assert_eq!(found.schedule.faults.len(), faults, "the shortest: {found}");
    assert!(found.why.contains(why), "{found}");
    let text = found.to_string();
    assert!(text.contains(&format!("VOUSSOIR_CRASH_POINTS='{}'", found.schedule)), "{text}");
    assert_eq!(found.schedule.to_string().parse(), Ok(found.schedule.clone()));
}

#[test]
fn an_effect_without_a_key_is_found() {
    finds(Flaw::NoKey, 1, "holds");
}

#[test]
fn an_undo_that_is_not_commutative_is_found() {
    finds(Flaw::UndoIsNotCommutative, 2, "holds [0, -1");
}

#[test]
fn an_effect_before_its_intent_is_found() {
    let found = explore(Flaw::EffectBeforeIntent).expect_err("it is broken");
    println!("{found}");
    // Already the run without a fault leaves it.
    assert!(found.why.contains("holds [1, "), "{found}");
}

#[test]
fn an_undo_behind_the_pivot_is_found() {
    finds(Flaw::UndoAfterPivot, 1, "Completed: holds [0, 0, 1, 1]");
}

#[test]
fn a_missing_tombstone_is_found() {
    finds(Flaw::MissingTombstone, 2, "holds [0, 1, 0, 0]");
}

#[test]
fn an_unbounded_retry_is_found() {
    finds(Flaw::UnboundedRetry, 1, "it does not end within 300 calls");
}

#[test]
fn a_schedule_is_read_back_and_nothing_else_is_one() {
    let text = "3:late,7:second-runner";
    let schedule: Schedule = text.parse().expect("a schedule");
    assert_eq!(schedule.to_string(), text);
    for text in ["3", "x:late", "3:later", "3:late,7"] {
        assert!(text.parse::<Schedule>().is_err(), "{text}");
    }
}
