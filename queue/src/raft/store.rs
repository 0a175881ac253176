//! The stores of a replicated partition: one that proposes writes, and one that only reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use tokio::runtime::Handle;
use voussoir_raft::{ProposeError, Raft};

use super::command::{Answer, FIXED_BYTES, PutBatches, Verdict};
use super::machine::Contents;
use crate::error::StoreError;
use crate::store::{Done, PartitionLog, PartitionStore, Write};

/// Proposes each write to the group, as the leader of a term.
#[derive(Debug)]
pub(super) struct LeaderStore {
    pub(super) contents: Arc<Contents>,
    pub(super) raft: Raft,
    pub(super) runtime: Handle,
    /// Where the log ends as far as the partition over this store knows: the position that its next
    /// write is for.
    pub(super) end: Arc<AtomicU64>,
    pub(super) max_bytes: u64,
    pub(super) max_entry_bytes: usize,
}

impl PartitionStore for LeaderStore {
    fn log(&self) -> Arc<dyn PartitionLog> {
        Arc::clone(&self.contents) as Arc<dyn PartitionLog>
    }

    fn snapshot(&self) -> Result<Option<Bytes>, StoreError> {
        Ok(self.contents.snapshot())
    }

    fn max_write_bytes(&self) -> usize {
        self.max_entry_bytes.saturating_sub(FIXED_BYTES)
    }

    fn submit(&self, write: Write, done: Done) {
        if write.replace.is_some() || write.retire.is_some() {
            let why = "replicated partitions are not compacted".to_owned();
            return done.complete(Err(StoreError::Rejected { why }));
        }
        let command = PutBatches::new(self.end.load(Relaxed), self.max_bytes, write);
        let (raft, end, max_bytes) = (self.raft.clone(), Arc::clone(&self.end), self.max_bytes);
        // When the runtime ends the task is dropped, and `done` says that the outcome is unknown.
        self.runtime.spawn(async move {
            let result = match raft.propose(command.encode()).await {
                Ok(answer) => verdict_of(answer, max_bytes).map(|at| end.store(at, Relaxed)),
                Err(error) => Err(from_propose(&error)),
            };
            done.complete(result);
        });
    }
}

/// Where the log ends after a write that was done.
fn verdict_of(answer: Bytes, max_bytes: u64) -> Result<u64, StoreError> {
    let answer = Answer::decode(answer).ok_or_else(|| {
        let why = "the state machine gave an answer that this build does not know".to_owned();
        StoreError::Failed { why }
    })?;
    match answer.verdict {
        Verdict::Done => Ok(answer.end),
        Verdict::Superseded => {
            let why = format!("another leader has written: the log ends at {}", answer.end);
            Err(StoreError::Stopped { why })
        }
        Verdict::Full => {
            let why = format!("the partition would hold more than {max_bytes} bytes (max_bytes)");
            Err(StoreError::Full { why })
        }
        Verdict::Unknown => {
            let why = "the group takes the command for none of a partition".to_owned();
            Err(StoreError::Rejected { why })
        }
    }
}

fn from_propose(error: &ProposeError) -> StoreError {
    let why = error.to_string();
    match error {
        ProposeError::Unknown(_) => StoreError::Failed { why },
        ProposeError::Busy => StoreError::Busy { why },
        ProposeError::TooLarge { .. } => StoreError::Rejected { why },
        // What the partition knows may be behind what the next leader writes.
        _ => StoreError::Stopped { why },
    }
}

/// What readers of a node read from. It takes no writes.
#[derive(Debug)]
pub(super) struct ReaderStore {
    pub(super) contents: Arc<Contents>,
    /// As for the leader, so that a configuration that cannot lead is found at the start.
    pub(super) max_entry_bytes: usize,
}

impl PartitionStore for ReaderStore {
    fn log(&self) -> Arc<dyn PartitionLog> {
        Arc::clone(&self.contents) as Arc<dyn PartitionLog>
    }

    fn snapshot(&self) -> Result<Option<Bytes>, StoreError> {
        Ok(self.contents.snapshot())
    }

    fn max_write_bytes(&self) -> usize {
        self.max_entry_bytes.saturating_sub(FIXED_BYTES)
    }

    fn submit(&self, _write: Write, done: Done) {
        // Not `Stopped`: that would end the readers.
        let why = "this is a replica's view for readers; append to the leader".to_owned();
        done.complete(Err(StoreError::Rejected { why }));
    }
}
