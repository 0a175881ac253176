//! The seam to what takes part in a transaction.

use std::time::Duration;

use async_trait::async_trait;

use super::core::{Decision, Heuristic};
use super::gid::Gid;

/// A vote for the transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Vote {
    /// The branch is durable, and will be committed or aborted as the coordinator says, also after
    /// a crash of the participant.
    Prepared,
    /// The branch has changed nothing and needs no decision.
    ReadOnly,
}

/// No vote for the transaction, which is aborted.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrepareError {
    /// The branch is rolled back and has no effect, now or later.
    #[error("refused: {0}")]
    Refused(String),
    /// No answer came: the branch may be prepared, or become so later.
    #[error("no vote: {0}")]
    Unknown(String),
}

/// A decision that a participant has applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Applied {
    /// Now, or before.
    Done,
    /// The participant had decided otherwise, alone. It is reported, and final.
    Heuristic(Heuristic),
}

/// A participant could not be asked, or did not answer. Asked again after a pause.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct ParticipantError(pub String);

/// A branch that a participant holds prepared.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InDoubt {
    /// Its id.
    pub gid: Gid,
    /// How long it has been prepared.
    pub age: Duration,
}

impl InDoubt {
    /// A prepared branch.
    pub fn new(gid: Gid, age: Duration) -> Self {
        Self { gid, age }
    }
}

/// What takes part in transactions: a database, a queue. Called from tasks of the coordinator,
/// without any lock held; a call that panics counts as one without an answer.
#[async_trait]
pub trait Participant: Send + Sync + 'static {
    /// Makes the branch durable and promises to follow the decision. Before it a participant may
    /// abort a branch alone; after it, never.
    ///
    /// # Errors
    /// [`PrepareError`].
    ///
    /// # Cancel safety
    /// The future is dropped when the vote takes too long. The branch counts as unknown then; it
    /// must not be prepared through a connection whose answer nobody reads, and stay so unseen by
    /// [`in_doubt`](Self::in_doubt).
    async fn prepare(&self, gid: &Gid) -> Result<Vote, PrepareError>;

    /// Applies the decision. Repeated until it succeeds, also by later coordinators, so a branch
    /// that is finished already answers [`Applied::Done`].
    ///
    /// # Errors
    /// [`ParticipantError`]: asked again.
    ///
    /// # Cancel safety
    /// The future is dropped when the answer takes too long; the call is repeated.
    async fn finish(&self, gid: &Gid, decision: Decision) -> Result<Applied, ParticipantError>;

    /// The prepared branches of a coordinator, the oldest first, at most `max`.
    ///
    /// # Errors
    /// [`ParticipantError`]: nothing is concluded from a list that is not whole.
    ///
    /// # Cancel safety
    /// Reads only.
    async fn in_doubt(
        &self,
        coordinator: &str,
        max: usize,
    ) -> Result<Vec<InDoubt>, ParticipantError>;

    /// The transaction is over everywhere, and what the participant keeps to recognise a repeated
    /// decision may go.
    ///
    /// # Cancel safety
    /// May be dropped; what is left costs room only.
    async fn forget(&self, gids: &[Gid]) {
        let _ = gids;
    }
}
