//! The crash-point kit over the template's own saga: every fault at every call, alone and in pairs.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use voussoir_txn::testing::{Case, Explored, crash_points};
use voussoir_txn::{Outcome, Retry, StepError};

use super::{Answer, define};
use crate::order::Order;
use crate::peers::Peers;
use crate::services::{Failure, Tables};

struct LocalPeers(Arc<Tables>);

fn error(failure: Failure) -> StepError {
    match failure {
        Failure::Refused(why) => StepError::domain(why),
        Failure::Away => StepError::unknown("away"),
    }
}

#[async_trait]
impl Peers for LocalPeers {
    async fn act(&self, step: &'static str, saga: &str, order: &Order) -> Answer<String> {
        self.0.act(step, saga, order).map_err(error)
    }

    async fn undo(&self, step: &'static str, saga: &str) -> Answer<()> {
        self.0.undo(step, saga).map_err(error)
    }
}

fn order() -> Order {
    let text = |text: &str| text.to_owned();
    let (customer, article, card) = (text("ann"), text("lamp"), text("c-1"));
    Order { customer, article, quantity: 2, card, cents: 4_200, address: text("Lane 1") }
}

/// All or nothing: each step is done once, or none is.
fn case(order: Order) -> Case<Order> {
    let tables = Arc::new(Tables::default());
    let peers: Arc<dyn Peers> = Arc::new(LocalPeers(Arc::clone(&tables)));
    let retry = Retry::exponential(Duration::from_millis(10), 2);
    let saga = define(&peers, &retry).expect("a definition in order");
    let expected = (order.cents, order.quantity);
    Case::new(saga, order, move |outcome| {
        let totals = tables.totals();
        let steps: Vec<&String> = totals.done.values().flatten().collect();
        let held = (totals.charged_cents, totals.reserved, totals.shipped, steps.len());
        let wanted = match outcome {
            Outcome::Completed => (expected.0, expected.1, expected.1, 5),
            _ => (0, 0, 0, 0),
        };
        let differs = || format!("{outcome:?}: holds {held:?} {steps:?}, not {wanted:?}");
        (held == wanted).then_some(()).ok_or_else(differs)
    })
}

fn explore(order: &Order) -> Explored {
    let explored = crash_points(|| case(order.clone()));
    let explored = explored.unwrap_or_else(|found| panic!("{found}"));
    println!("{explored:?}");
    explored
}

#[test]
fn an_order_survives_every_fault_and_every_pair() {
    let explored = explore(&order());
    assert_eq!(explored.calls, 5);
    assert!(explored.runs > 800, "{explored:?}");
    assert!(explored.completed > 100 && explored.undone > 100, "{explored:?}");
}

/// The calls of the undos, too.
#[test]
fn an_order_that_is_refused_at_the_end_survives_every_fault_and_every_pair() {
    let explored = explore(&Order { address: "nowhere".to_owned(), ..order() });
    assert_eq!(explored.calls, 4 + 3, "four actions, three undos");
    assert!(explored.runs > 1_000, "{explored:?}");
    assert_eq!(explored.completed, 0, "{explored:?}");
}
