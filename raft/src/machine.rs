//! The seam to the application: the state that the log's commands change.

use async_trait::async_trait;
use bytes::Bytes;

/// An error of a state machine. Whatever it says, the node stops: a machine that has not applied
/// a committed command is no replica any more.
pub type MachineError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// One committed command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Its place in the log, the same on every node. Indexes grow but have gaps: entries of
    /// Raft's own are not shown.
    pub index: u64,
    /// What was proposed.
    pub data: Bytes,
}

/// The application's state, replicated by applying the same commands in the same order on every
/// node.
///
/// It lives in memory as far as Raft is concerned: at each start it is rebuilt from the current
/// snapshot and the log behind it. It is driven by a task of its own, beside Raft's: applying may
/// take its time without delaying heartbeats or votes. A machine that never takes its time says so
/// by [`is_quick`](Self::is_quick).
#[async_trait]
pub trait StateMachine: Send + 'static {
    /// Applies commands in order and gives one answer for each, which goes to whoever proposed
    /// the command, if it was proposed here.
    ///
    /// What a command does must depend on nothing but the state and the command: no clock, no
    /// randomness, no local configuration.
    ///
    /// # Errors
    /// Only for what this node cannot do, for example when a disk fails: the node stops. A
    /// command that cannot be carried out is not an error but an answer.
    ///
    /// # Cancel safety
    /// Only dropped when the node stops; the machine is dropped with it.
    async fn apply(&mut self, commands: &[Command]) -> Result<Vec<Bytes>, MachineError>;

    /// Whether this machine never keeps its caller for long: a batch of commands takes well under a
    /// millisecond of computing, and nothing in it blocks. Raft's own task calls it then, and no
    /// other has to be woken for each batch, which is a good part of what a commit in memory
    /// costs. It may still await: Raft goes on meanwhile. But computing that takes long delays
    /// heartbeats and votes, also in [`snapshot`](Self::snapshot) and [`restore`](Self::restore).
    ///
    /// Asked once, at the start. `false` by default: the machine has a task of its own.
    fn is_quick(&self) -> bool {
        false
    }

    /// Takes a consistent cut of the state as it is now. It should be quick, for nothing is
    /// applied meanwhile: clone an `Arc`, begin a read transaction. The chunks are asked for
    /// later, while applying goes on.
    ///
    /// # Errors
    /// The snapshot is tried again later; nothing else happens.
    ///
    /// # Cancel safety
    /// Only dropped when the node stops.
    async fn snapshot(&mut self) -> Result<Box<dyn Chunks>, MachineError>;

    /// Replaces the whole state by a snapshot: the chunks that some node's
    /// [`snapshot`](Self::snapshot) gave, in the same order and with the same boundaries.
    ///
    /// # Errors
    /// The node stops.
    ///
    /// # Cancel safety
    /// Only dropped when the node stops.
    async fn restore(&mut self, chunks: &mut dyn Chunks) -> Result<(), MachineError>;
}

/// The bytes of a snapshot, piece by piece.
#[async_trait]
pub trait Chunks: Send {
    /// The next chunk, 1 to [`MAX_CHUNK_BYTES`](crate::MAX_CHUNK_BYTES) bytes, or `None` after
    /// the last.
    ///
    /// # Errors
    /// Ends the snapshot: it is taken, or restored, no further.
    ///
    /// # Cancel safety
    /// Not required of implementations: after a dropped future the snapshot is given up.
    async fn next(&mut self) -> Result<Option<Bytes>, MachineError>;
}

/// A snapshot that is one run of bytes, for states that are small enough to be encoded at once.
///
/// # Example
/// ```
/// # use voussoir_raft::{Chunks, WholeSnapshot};
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let mut chunks = WholeSnapshot::new("state");
/// assert_eq!(WholeSnapshot::collect(&mut chunks).await?, "state");
/// # Ok::<(), voussoir_raft::MachineError>(())
/// # })?;
/// # Ok::<(), voussoir_raft::MachineError>(())
/// ```
#[derive(Clone, Debug)]
pub struct WholeSnapshot {
    rest: Bytes,
}

impl WholeSnapshot {
    /// Cuts `state` into chunks, without copying.
    pub fn new(state: impl Into<Bytes>) -> Self {
        Self { rest: state.into() }
    }

    /// Joins all chunks again.
    ///
    /// # Errors
    /// The first error of `chunks`.
    ///
    /// # Cancel safety
    /// Dropping the future loses the chunks that it has taken.
    pub async fn collect(chunks: &mut dyn Chunks) -> Result<Bytes, MachineError> {
        let Some(first) = chunks.next().await? else { return Ok(Bytes::new()) };
        let Some(second) = chunks.next().await? else { return Ok(first) };
        let mut whole = Vec::from(first);
        whole.extend_from_slice(&second);
        while let Some(chunk) = chunks.next().await? {
            whole.extend_from_slice(&chunk);
        }
        Ok(whole.into())
    }
}

#[async_trait]
impl Chunks for WholeSnapshot {
    async fn next(&mut self) -> Result<Option<Bytes>, MachineError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let len = self.rest.len().min(crate::MAX_CHUNK_BYTES);
        Ok(Some(self.rest.split_to(len)))
    }
}
