//! The saga: what is called in which order, and how each step is undone.
//!
//! | step | service | undo | what it is |
//! |---|---|---|---|
//! | `order` | order | cancels it | compensatable |
//! | `stock` | stock | puts it back | compensatable |
//! | `payment` | payment | refunds | compensatable |
//! | `shipping` | shipping | | the pivot: what was shipped does not come back |
//! | `confirm` | order | | retriable |

use std::sync::Arc;

use voussoir_txn::{Compensatable, DefinitionError, Inputs, Retry, Saga, Step, StepCx, StepError};

use crate::order::Order;
use crate::peers::Peers;

#[cfg(test)]
mod tests;

/// The steps, in their order.
pub(crate) const STEPS: [&str; 5] = ["order", "stock", "payment", "shipping", "confirm"];

/// The service that does a step.
pub(crate) fn service(step: &str) -> Option<&'static str> {
    match step {
        "order" | "confirm" => Some("order"),
        "stock" => Some("stock"),
        "payment" => Some("payment"),
        "shipping" => Some("shipping"),
        _ => None,
    }
}

/// The definition. Raise its version whenever steps change: sagas that are under way then end on
/// the definition that they began with, as long as it is registered.
///
/// # Errors
/// `retry` breaks a rule.
pub(crate) fn define(
    peers: &Arc<dyn Peers>,
    retry: &Retry,
) -> Result<Saga<Order>, DefinitionError> {
    let mut saga = Saga::<Order>::define("order", 1);
    let order = saga.step(compensated(peers, retry, "order", ()));
    let stock = saga.step(compensated(peers, retry, "stock", order));
    let payment = saga.step(compensated(peers, retry, "payment", stock));
    let (mut saga, shipping) = saga.pivot(step(peers, retry, "shipping", payment));
    saga.then(step(peers, retry, "confirm", shipping));
    saga.build()
}

fn step<I: Inputs>(
    peers: &Arc<dyn Peers>,
    retry: &Retry,
    name: &'static str,
    needs: I,
) -> Step<Order, String> {
    let peers = Arc::clone(peers);
    let act = move |cx: StepCx, order: Order, _: I::Values| {
        let peers = Arc::clone(&peers);
        async move { peers.act(name, &cx.saga, &order).await }
    };
    Step::new(name, needs, act).retry(retry.clone())
}

fn compensated<I: Inputs>(
    peers: &Arc<dyn Peers>,
    retry: &Retry,
    name: &'static str,
    needs: I,
) -> Compensatable<Order, String> {
    let to_undo = Arc::clone(peers);
    // Whether the action has run or not: the service finds it by its key, or keeps it from running.
    let undo = move |cx: StepCx, _: Order, _: Option<String>| {
        let peers = Arc::clone(&to_undo);
        async move { peers.undo(name, &cx.saga).await }
    };
    step(peers, retry, name, needs).undo(undo).undo_retry(retry.clone())
}

/// What a peer answers.
pub(crate) type Answer<T> = Result<T, StepError>;
