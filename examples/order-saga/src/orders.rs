//! Orders, in whichever form: what the HTTP interface asks for.

use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;

use crate::order::Order;

/// Where an order is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Open,
    /// It waits for an operator.
    Stuck(Vec<At>),
    Completed,
    Undone {
        because: String,
    },
    GivenUp,
    /// Its definition is not known here.
    Parked(String),
    /// The process stops, or its journal failed: the next one goes on.
    Halted,
}

/// A step that needs an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct At {
    pub(crate) step: String,
    pub(crate) is_undo: bool,
    pub(crate) why: String,
}

/// What an operator says of a stuck step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum How {
    /// Try it again, with all its attempts.
    Retry,
    /// Of an undo: take it for undone.
    Skip,
    /// Of the pivot: it has not run and will not.
    NotRun,
}

/// An order was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OrderError {
    #[error("another order has this key")]
    Mismatch,
    #[error("{0}")]
    Invalid(String),
    /// It may have been taken all the same: ask again with the same key.
    #[error("{0}")]
    Away(String),
}

/// A step was not resolved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ResolveError {
    #[error("no order or step of this name")]
    NotFound,
    #[error("{0}")]
    Rejected(String),
}

/// All orders of a process.
#[async_trait]
pub(crate) trait Orders: Send + Sync + 'static {
    /// Begins an order, or finds the one with this id, and waits until it ends or is stuck, at most
    /// for `wait`.
    ///
    /// # Errors
    /// [`OrderError`].
    ///
    /// # Cancel safety
    /// Dropped, the order may have begun. It goes on when nobody waits.
    async fn order(&self, id: &str, order: &Order, wait: Duration) -> Result<State, OrderError>;

    /// Where an order is; `None` if it is not known.
    fn state(&self, id: &str) -> Option<State>;

    /// The orders that wait for an operator.
    fn stuck(&self) -> Vec<(String, State)>;

    /// Orders that have not ended.
    fn open(&self) -> usize;

    /// Ends the wait for an operator.
    ///
    /// # Errors
    /// [`ResolveError`].
    ///
    /// # Cancel safety
    /// Dropped, it may be resolved.
    async fn resolve(&self, id: &str, step: &str, how: How) -> Result<(), ResolveError>;

    /// Begins nothing more, and waits for the calls that are under way.
    ///
    /// # Cancel safety
    /// Dropped, calls may be under way.
    async fn drain(&self);
}
