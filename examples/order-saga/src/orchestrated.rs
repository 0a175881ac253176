//! The orchestrated form: a saga that knows every step, in a journal.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::timeout;
use voussoir_journal::Journal;
use voussoir_txn::store::JournalStore;
use voussoir_txn::{Direction, Outcome, Resolution, Retry, Saga, SagaState, Sagas, StartError};

use crate::Error;
use crate::order::Order;
use crate::orders::{At, How, OrderError, Orders, ResolveError, State};
use crate::peers::Peers;
use crate::saga::define;

pub(crate) struct Orchestrated {
    sagas: Sagas,
    saga: Saga<Order>,
    /// After it an order that is not shipped is undone.
    limit: Duration,
}

impl Orchestrated {
    /// Goes on with the sagas of the journal.
    ///
    /// # Errors
    /// The journal cannot be used.
    pub(crate) async fn open(
        journal: &Journal,
        peers: &Arc<dyn Peers>,
        retry: &Retry,
        limit: Duration,
    ) -> Result<Self, Error> {
        let saga = define(peers, retry)?;
        let store = JournalStore::new(journal, "sagas")?;
        let sagas = Sagas::builder().register(&saga).open(store).await?;
        Ok(Self { sagas, saga, limit })
    }
}

#[async_trait]
impl Orders for Orchestrated {
    async fn order(&self, id: &str, order: &Order, wait: Duration) -> Result<State, OrderError> {
        let started = self.sagas.start_within(&self.saga, id, order, self.limit).await;
        let handle = started.map_err(|error| match error {
            StartError::Mismatch => OrderError::Mismatch,
            StartError::Id | StartError::Input(_) => OrderError::Invalid(error.to_string()),
            _ => OrderError::Away(error.to_string()),
        })?;
        // Whatever it says: what is answered is the state.
        let _ = timeout(wait, handle.end()).await;
        Ok(state(&handle.state()))
    }

    fn state(&self, id: &str) -> Option<State> {
        Some(state(&self.sagas.get(id)?.state()))
    }

    fn stuck(&self) -> Vec<(String, State)> {
        let all = self.sagas.list().into_iter();
        let all = all.filter(|saga| matches!(saga.state, SagaState::Stuck(_)));
        all.map(|saga| (saga.id.clone(), state(&saga.state))).collect()
    }

    fn open(&self) -> usize {
        let all = self.sagas.list().into_iter();
        all.filter(|saga| !matches!(saga.state, SagaState::Ended(_))).count()
    }

    async fn resolve(&self, id: &str, step: &str, how: How) -> Result<(), ResolveError> {
        let how = match how {
            How::Retry => Resolution::Retry,
            How::Skip => Resolution::Skip,
            How::NotRun => Resolution::NotRun,
        };
        self.sagas.resolve(id, step, how).await.map_err(|error| match error {
            voussoir_txn::ResolveError::NotFound => ResolveError::NotFound,
            error => ResolveError::Rejected(error.to_string()),
        })
    }

    async fn drain(&self) {
        self.sagas.drain().await;
    }
}

fn state(state: &SagaState) -> State {
    match state {
        SagaState::Open => State::Open,
        SagaState::Stuck(steps) => {
            let at = steps.iter().map(|at| At {
                step: at.step.clone(),
                is_undo: at.direction == Direction::Undo,
                why: at.why.clone(),
            });
            State::Stuck(at.collect())
        }
        SagaState::Ended(Outcome::Completed) => State::Completed,
        SagaState::Ended(Outcome::Undone { because }) => State::Undone { because: because.clone() },
        SagaState::Ended(_) => State::GivenUp,
        SagaState::Parked(why) => State::Parked(why.clone()),
        _ => State::Halted,
    }
}
