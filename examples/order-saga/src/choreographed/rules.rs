//! What each service reacts to.
//!
//! | service | on | it | and says |
//! |---|---|---|---|
//! | order | `order.requested` | takes the order | `order.placed`, or `order.undone` |
//! | stock | `order.placed` | reserves | `stock.done`, or `stock.undone` |
//! | payment | `stock.done` | charges | `payment.done`, or `payment.undone` |
//! | shipping | `payment.done` | ships: the pivot | `shipping.done`, or `shipping.undone` |
//! | order | `shipping.done` | confirms | `order.confirmed` |
//! | payment | `shipping.undone` | refunds | `payment.undone` |
//! | stock | `payment.undone` | puts back | `stock.undone` |
//! | order | `stock.undone` | cancels | `order.undone` |
//!
//! `X.undone` says that nothing of X stands: it was refused, or is taken back. Where a step may
//! have run and its answer never came, or its order is late, the service says `X.doubtful` to
//! itself, and takes back what it may have done.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use voussoir_txn::choreography::{
    EventCx, NewEvent, Participant, ParticipantError, ReactError, Rule,
};
use voussoir_txn::{Retry, StepError};

use crate::order::Order;
use crate::peers::Peers;

pub(super) const REQUESTED: &str = "order.requested";
/// The last event of an order that is completed.
pub(super) const COMPLETED: &str = "order.confirmed";
/// The last event of an order that is undone.
pub(super) const UNDONE: &str = "order.undone";
/// What the names of rules that undo begin with; the step follows.
const UNDO: &str = "undo-";
const UNDO_DOUBTFUL: &str = "undo-doubtful-";

/// What every event says: the order, so that nobody has to remember it, and why it is undone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Said {
    pub(super) order: Order,
    pub(super) because: Option<String>,
}

impl Said {
    pub(super) fn body(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts and numbers are JSON")
    }

    pub(super) fn read(body: &[u8]) -> Option<Self> {
        serde_json::from_slice(body).ok()
    }

    fn because(self, why: impl ToString) -> Self {
        Self { because: Some(self.because.unwrap_or_else(|| why.to_string())), ..self }
    }
}

/// The event that says that nothing of a step stands.
pub(super) fn undone(step: &str) -> String {
    format!("{step}.undone")
}

/// The step of a rule, and whether the rule undoes it.
pub(super) fn step_of(rule: &str) -> (&str, bool) {
    match rule.strip_prefix(UNDO_DOUBTFUL).or_else(|| rule.strip_prefix(UNDO)) {
        Some(step) => (step, true),
        None => (rule, false),
    }
}

/// The four services.
///
/// # Errors
/// `retry` breaks a rule.
pub(super) fn participants(
    peers: &Arc<dyn Peers>,
    retry: &Retry,
) -> Result<[Participant; 4], ParticipantError> {
    let act = |on, step, says, how| act(peers, retry, on, step, says, how);
    let undo = |on: &str, step| {
        let doubtful = format!("{step}.doubtful");
        [
            undo(peers, retry, on, format!("{UNDO}{step}"), step),
            undo(peers, retry, &doubtful, format!("{UNDO_DOUBTFUL}{step}"), step),
        ]
    };
    let [cancel, cancel_doubtful] = undo("stock.undone", "order");
    let [put_back, put_back_doubtful] = undo("payment.undone", "stock");
    let [refund, refund_doubtful] = undo("shipping.undone", "payment");
    Ok([
        Participant::new(
            "order",
            [
                act(REQUESTED, "order", "order.placed", Kind::Compensatable),
                act("shipping.done", "confirm", COMPLETED, Kind::Retriable),
                cancel,
                cancel_doubtful,
            ],
        )?,
        Participant::new(
            "stock",
            [
                act("order.placed", "stock", "stock.done", Kind::Compensatable),
                put_back,
                put_back_doubtful,
            ],
        )?,
        Participant::new(
            "payment",
            [
                act("stock.done", "payment", "payment.done", Kind::Compensatable),
                refund,
                refund_doubtful,
            ],
        )?,
        Participant::new(
            "shipping",
            [act("payment.done", "shipping", "shipping.done", Kind::Pivot)],
        )?,
    ])
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// When its attempts are used up it is undone.
    Compensatable,
    /// What may have been shipped is not taken back: an operator looks.
    Pivot,
    /// Nothing refuses it: an operator looks.
    Retriable,
}

fn act(
    peers: &Arc<dyn Peers>,
    retry: &Retry,
    on: &str,
    step: &'static str,
    says: &'static str,
    kind: Kind,
) -> Rule {
    let (peers, attempts) = (Arc::clone(peers), retry.max_attempts);
    let rule = Rule::on(on, step, move |cx: EventCx| {
        let peers = Arc::clone(&peers);
        async move {
            let said = Said::read(cx.body()).ok_or_else(|| ReactError::new("it is no order"))?;
            let event = match peers.act(step, &cx.event().saga, &said.order).await {
                Ok(_) => NewEvent::new(says, said.body()),
                Err(StepError::Domain(why)) if kind != Kind::Retriable => {
                    NewEvent::new(&undone(step), said.because(why).body())
                }
                Err(error) if kind == Kind::Compensatable && cx.attempt >= attempts => {
                    NewEvent::new(&format!("{step}.doubtful"), said.because(error).body())
                }
                Err(error) => return Err(ReactError::new(error)),
            };
            Ok(vec![event])
        }
    });
    let rule = rule.retry(retry.clone());
    if kind == Kind::Compensatable { rule.late(&format!("{step}.doubtful")) } else { rule }
}

fn undo(peers: &Arc<dyn Peers>, retry: &Retry, on: &str, name: String, step: &'static str) -> Rule {
    let peers = Arc::clone(peers);
    let rule = Rule::on(on, &name, move |cx: EventCx| {
        let peers = Arc::clone(&peers);
        async move {
            let said = Said::read(cx.body()).ok_or_else(|| ReactError::new("it is no order"))?;
            peers.undo(step, &cx.event().saga).await.map_err(ReactError::new)?;
            Ok(vec![NewEvent::new(&undone(step), said.because("its time was over").body())])
        }
    });
    rule.retry(retry.clone())
}
