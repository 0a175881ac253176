//! Stand-ins for the services order, stock, payment and shipping, in memory. Put your own in their
//! place; what the saga needs of them is what [`Tables`] does with a key:
//!
//! - An action has its effect once, however often it is asked for, and answers as it did first.
//!   That it refused is kept as well.
//! - An undo takes back what the action did, once. Where the action has not come yet, it never has
//!   an effect: the undo leaves a tombstone.
//!
//! A customer `blocked`, an article `sold-out`, a card `declined` and an address `nowhere` are
//! refused by the service that they concern.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, put};
use axum::{Json, Router};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::order::Order;
use crate::saga::{STEPS, service};

/// The time that a service takes.
const WORK: Duration = Duration::from_millis(2);

/// What a service keeps under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    Done(Order),
    Refused(String),
    /// Undone, or not to be done any more.
    Undone,
}

/// Why a call was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// For good.
    Refused(String),
    /// Broken until it is mended.
    Away,
}

/// What the services hold, all together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Totals {
    /// Steps that are done and not undone, by order.
    pub(crate) done: BTreeMap<String, Vec<String>>,
    pub(crate) charged_cents: u64,
    pub(crate) reserved: u64,
    pub(crate) shipped: u64,
    /// What the services were asked, in order, without repetitions that changed nothing:
    /// `ORDER: STEP` and `ORDER: undo STEP`.
    pub(crate) history: Vec<String>,
}

/// The tables of all services.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    /// By step and saga.
    entries: BTreeMap<(&'static str, String), Entry>,
    history: Vec<String>,
    /// Steps whose undo fails.
    broken: BTreeSet<String>,
}

impl Tables {
    /// Does a step.
    ///
    /// # Errors
    /// It is refused, for good.
    pub(crate) fn act(
        &self,
        step: &'static str,
        saga: &str,
        order: &Order,
    ) -> Result<String, Failure> {
        let mut held = self.held.lock();
        let done = || format!("{step} of {saga}");
        let key = (step, saga.to_owned());
        match held.entries.get(&key) {
            Some(Entry::Done(_)) => return Ok(done()),
            Some(Entry::Refused(why)) => return Err(Failure::Refused(why.clone())),
            Some(Entry::Undone) => return Err(Failure::Refused("it was undone".to_owned())),
            None => {}
        }
        if let Some(why) = refusal(step, order) {
            held.history.push(format!("{saga}: {step} refused"));
            held.entries.insert(key, Entry::Refused(why.to_owned()));
            return Err(Failure::Refused(why.to_owned()));
        }
        held.history.push(format!("{saga}: {step}"));
        held.entries.insert(key, Entry::Done(order.clone()));
        Ok(done())
    }

    /// Undoes a step, or keeps it from being done.
    ///
    /// # Errors
    /// The undo is broken.
    pub(crate) fn undo(&self, step: &'static str, saga: &str) -> Result<(), Failure> {
        let mut held = self.held.lock();
        if held.broken.contains(step) {
            return Err(Failure::Away);
        }
        let before = held.entries.insert((step, saga.to_owned()), Entry::Undone);
        if before != Some(Entry::Undone) {
            held.history.push(format!("{saga}: undo {step}"));
        }
        Ok(())
    }

    /// Breaks the undo of a step, or mends it.
    pub(crate) fn set_broken(&self, step: &str, is_broken: bool) {
        let mut held = self.held.lock();
        if is_broken {
            held.broken.insert(step.to_owned());
        } else {
            held.broken.remove(step);
        }
    }

    pub(crate) fn totals(&self) -> Totals {
        let held = self.held.lock();
        let mut totals = Totals { history: held.history.clone(), ..Totals::default() };
        for ((step, saga), entry) in &held.entries {
            let Entry::Done(order) = entry else { continue };
            totals.done.entry(saga.clone()).or_default().push((*step).to_owned());
            match *step {
                "payment" => totals.charged_cents += order.cents,
                "stock" => totals.reserved += order.quantity,
                "shipping" => totals.shipped += order.quantity,
                _ => {}
            }
        }
        totals
    }
}

fn refusal(step: &str, order: &Order) -> Option<&'static str> {
    match step {
        "order" if order.customer == "blocked" => Some("the customer is blocked"),
        "stock" if order.article == "sold-out" => Some("the article is sold out"),
        "payment" if order.card == "declined" => Some("the card is declined"),
        "shipping" if order.address == "nowhere" => Some("nobody ships to this address"),
        _ => None,
    }
}

/// The step of a path, if the service does it.
fn step(named: &str, step: &str) -> Option<&'static str> {
    let step = STEPS.into_iter().find(|one| *one == step)?;
    (service(step) == Some(named)).then_some(step)
}

type Answer = (StatusCode, String);

fn answer(result: Result<String, Failure>) -> Answer {
    match result {
        Ok(said) => (StatusCode::OK, said),
        Err(Failure::Refused(why)) => (StatusCode::CONFLICT, why),
        Err(Failure::Away) => (StatusCode::SERVICE_UNAVAILABLE, "it is broken".to_owned()),
    }
}

fn no_step() -> Answer {
    (StatusCode::NOT_FOUND, "no service does this step".to_owned())
}

pub(crate) fn router(tables: Arc<Tables>) -> Router {
    Router::new()
        .route("/{service}/{step}/{saga}", put(act).delete(undo))
        .route("/broken/{step}", put(breaks).delete(mends))
        .route("/totals", get(totals))
        .with_state(tables)
}

async fn act(
    State(tables): State<Arc<Tables>>,
    Path((named, name, saga)): Path<(String, String, String)>,
    Json(order): Json<Order>,
) -> Answer {
    let Some(step) = step(&named, &name) else { return no_step() };
    tokio::time::sleep(WORK).await;
    answer(tables.act(step, &saga, &order))
}

async fn undo(
    State(tables): State<Arc<Tables>>,
    Path((named, name, saga)): Path<(String, String, String)>,
) -> Answer {
    let Some(step) = step(&named, &name) else { return no_step() };
    tokio::time::sleep(WORK).await;
    answer(tables.undo(step, &saga).map(|()| "undone".to_owned()))
}

async fn breaks(State(tables): State<Arc<Tables>>, Path(step): Path<String>) {
    tables.set_broken(&step, true);
}

async fn mends(State(tables): State<Arc<Tables>>, Path(step): Path<String>) {
    tables.set_broken(&step, false);
}

async fn totals(State(tables): State<Arc<Tables>>) -> Json<Totals> {
    Json(tables.totals())
}
