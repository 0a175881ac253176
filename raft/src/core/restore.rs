//! What a node starts from.

use super::log::Log;
use super::storage::Storage;
use crate::error::ConfigError;
use crate::types::{Entry, HardState, SnapshotMeta};

/// The most weight of restored entries that stays in memory, in bytes.
const WINDOW_BYTES: u64 = 16 << 20;

/// What a store gives back at the start: the hard state, the current snapshot and the log,
/// entry by entry. The core keeps the terms of all and the bytes of the latest.
///
/// # Example
/// ```
/// use voussoir_raft::core::Restored;
/// use voussoir_raft::{Entry, EntryKind, HardState};
///
/// let mut restored = Restored::new(HardState { term: 3, vote: Some(1) }, None, 1);
/// restored.push(Entry { term: 2, index: 1, kind: EntryKind::Noop, data: Default::default() })?;
/// # Ok::<(), voussoir_raft::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Restored {
    pub(super) hard_state: HardState,
    pub(super) snapshot: Option<SnapshotMeta>,
    /// `None`: damaged.
    pub(super) log: Option<Log>,
    /// The first index that the store holds.
    pub(super) first: u64,
}

impl Restored {
    /// A node that has never run.
    pub fn empty() -> Self {
        Self::new(HardState::default(), None, 1)
    }

    /// A node whose log starts at index `first`; its entries follow through
    /// [`push`](Self::push).
    pub fn new(hard_state: HardState, snapshot: Option<SnapshotMeta>, first: u64) -> Self {
        Self { hard_state, snapshot, log: Some(Log::new(first.saturating_sub(1), 0)), first }
    }

    /// A node whose log, vote or snapshot may be damaged. Its core starts halted: it neither
    /// votes nor leads until it has been rebuilt from its peers.
    pub fn damaged() -> Self {
        Self { log: None, ..Self::empty() }
    }

    /// Whether the core that starts from it will halt.
    pub fn is_damaged(&self) -> bool {
        self.log.is_none()
    }

    /// The next entry of the log.
    ///
    /// # Errors
    /// [`ConfigError::Restored`] when the index is not the next one or the term falls. Such a
    /// log is damaged: start from [`Restored::damaged`].
    pub fn push(&mut self, entry: Entry) -> Result<(), ConfigError> {
        let Some(log) = &mut self.log else { return Ok(()) };
        if entry.index != log.last() + 1 {
            return Err(ConfigError::Restored("the log has a hole"));
        }
        if entry.term == 0 || entry.term < log.last_term() {
            return Err(ConfigError::Restored("a term falls along the log"));
        }
        let index = entry.index;
        log.push(entry);
        log.evict(index, WINDOW_BYTES);
        Ok(())
    }
}

/// Where the core starts: log and snapshot joined, and a store that knows what to write first.
pub(super) struct Start {
    pub(super) hard_state: HardState,
    pub(super) snapshot: Option<SnapshotMeta>,
    pub(super) log: Log,
    pub(super) storage: Storage,
}

impl Restored {
    /// Joins log and snapshot by the rule of InstallSnapshot: entries after the snapshot stay
    /// only if the log holds the snapshot's last entry. Source: Raft §7.
    pub(super) fn start(self) -> Result<Start, ConfigError> {
        let Self { hard_state, snapshot, log, first } = self;
        let Some(mut log) = log else {
            return Ok(Start {
                hard_state,
                snapshot,
                log: Log::new(0, 0),
                storage: Storage::new(0),
            });
        };
        if hard_state.term < log.last_term() {
            return Err(ConfigError::Restored("the term is behind the log"));
        }
        let (covered, term) = snapshot.as_ref().map_or((0, 0), |meta| (meta.index, meta.term));
        if log.base() > covered {
            return Err(ConfigError::Restored("entries between the snapshot and the log are gone"));
        }
        let agrees = if log.base() == covered {
            // Nothing in the log says what came before it: the snapshot does.
            log.set_base_term(term);
            true
        } else {
            log.last() >= covered && log.term_at(covered) == Some(term)
        };
        if !agrees {
            let mut storage = Storage::new(covered);
            storage.truncated_on_disk(first);
            storage.release(covered + 1);
            return Ok(Start { hard_state, snapshot, log: Log::new(covered, term), storage });
        }
        if log.base() < covered && log.base() > 0 {
            // Nobody knows the term before the first entry. The snapshot covers that entry, so
            // the log may as well start after it.
            log.release(log.first() + 1);
        }
        let storage = Storage::new(log.last());
        Ok(Start { hard_state, snapshot, log, storage })
    }
}
