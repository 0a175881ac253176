//! What a node starts from.

use super::gate::Gate;
use super::history::Members;
use super::log::Log;
use super::storage::Storage;
use crate::codec;
use crate::error::RestoredError;
use crate::membership::Membership;
use crate::types::{Entry, EntryKind, HardState, MAX_INDEX, MAX_TERM, SnapshotMeta};

/// The most weight of restored entries that stays in memory, in bytes.
const WINDOW_BYTES: u64 = 16 << 20;

/// What a node has acknowledged, as far as it knows, and may not hold any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Debt {
    /// The last entry that the log has held.
    pub(super) until: u64,
    /// No entry up to there is of a later term.
    pub(super) term: u64,
}

/// What a store gives back at the start: the hard state, the current snapshot and the log,
/// entry by entry. The core keeps the terms of all and the bytes of the latest.
///
/// # Example
/// ```
/// use voussoir_raft::Restored;
/// use voussoir_raft::{Entry, EntryKind, HardState};
///
/// let mut restored = Restored::new(HardState { term: 3, vote: Some(1) }, None, 1);
/// restored.push(Entry { term: 2, index: 1, kind: EntryKind::Noop, data: Default::default() })?;
/// # Ok::<(), voussoir_raft::CoreError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Restored {
    pub(super) hard_state: HardState,
    pub(super) snapshot: Option<SnapshotMeta>,
    /// `None`: damaged.
    pub(super) log: Option<Log>,
    /// The first index that the store holds.
    pub(super) first: u64,
    /// The last index that was known to be committed.
    pub(super) commit: u64,
    /// The voters under which the log was begun, in any order; `None`: not recorded.
    pub(super) voters: Option<Vec<u64>>,
    /// What the log has held and may not hold any more.
    pub(super) debt: Option<Debt>,
    /// The memberships that the log holds, with their indexes, ascending.
    members: Vec<(u64, Membership)>,
}

impl Restored {
    /// A node that has never run.
    pub fn empty() -> Self {
        Self::new(HardState::default(), None, 1)
    }

    /// A node whose log starts at index `first`; its entries follow through
    /// [`push`](Self::push).
    pub fn new(hard_state: HardState, snapshot: Option<SnapshotMeta>, first: u64) -> Self {
        // Beyond the range nothing can follow; `start` refuses it.
        let base = first.saturating_sub(1).min(MAX_INDEX + 1);
        let log = Some(Log::new(base, 0));
        Self {
            hard_state,
            snapshot,
            log,
            first,
            commit: 0,
            voters: None,
            debt: None,
            members: Vec::new(),
        }
    }

    /// A node whose log, vote or snapshot may be damaged. Its core starts halted: it neither
    /// votes nor leads until it has been rebuilt from its peers.
    pub fn damaged() -> Self {
        Self { log: None, ..Self::empty() }
    }

    /// Entries up to `index` were known to be committed: the core that starts from it applies them
    /// before it has heard of anybody. 0, the default, is always right; so is any index that was
    /// handed over in [`LogWrite::commit`](crate::LogWrite). What lies past the end of the log is
    /// left out.
    pub fn set_commit(&mut self, index: u64) {
        self.commit = index;
    }

    /// The voters that a [`LogWrite::voters`](crate::LogWrite) brought; none for a node that joined
    /// a group. Unless the membership may change, a core whose configuration names others does not
    /// start: two majorities of different groups need not overlap, so that one start with a wrong
    /// list of peers could commit what the others never hear of. Where it may change, the core
    /// takes these and what the log says, whatever the configuration names. Without them the core
    /// takes the configuration's and has them written.
    pub fn set_voters(&mut self, voters: Vec<u64>) {
        self.voters = Some(voters);
    }

    /// The voters under which the log was begun, where they are recorded.
    pub fn voters(&self) -> Option<&[u64]> {
        self.voters.as_deref()
    }

    /// Entries are lost: the log held some up to `until`, none of them of a later term than `term`,
    /// and those behind the ones that are [pushed](Self::push) cannot be read, or not all of them.
    /// The core then has them sent again by its peers, and neither votes nor leads until
    /// [`LogWrite::repaired`](crate::LogWrite) says that they are there. The store goes on behind
    /// what was pushed, and says the same at each start up to then: what that entails stands at
    /// [`LogStore::restore`](crate::LogStore::restore).
    pub fn set_lost(&mut self, until: u64, term: u64) {
        self.debt = Some(Debt { until, term });
    }

    /// The index up to which the log reached before entries of it were lost, until they are there
    /// again.
    pub fn lost_until(&self) -> Option<u64> {
        self.debt.map(|debt| debt.until)
    }

    /// Whether the core that starts from it will halt.
    pub fn is_damaged(&self) -> bool {
        self.log.is_none()
    }

    /// The term and vote.
    pub fn hard_state(&self) -> HardState {
        self.hard_state
    }

    /// The current snapshot.
    pub fn snapshot(&self) -> Option<&SnapshotMeta> {
        self.snapshot.as_ref()
    }

    /// The first index that the log holds or, while it is empty, will hold. `None` when damaged.
    pub fn first(&self) -> Option<u64> {
        self.log.as_ref().map(Log::first)
    }

    /// The last index of the log; the one before [`first`](Self::first) while it is empty.
    /// `None` when damaged.
    pub fn last(&self) -> Option<u64> {
        self.log.as_ref().map(Log::last)
    }

    /// The term of the entry at `index`, if the log holds it.
    pub fn term_at(&self, index: u64) -> Option<u64> {
        self.log.as_ref().filter(|log| index >= log.first())?.term_at(index)
    }

    /// The next entry of the log.
    ///
    /// # Errors
    /// [`RestoredError`] when the index is not the next one or the term falls. Such a
    /// log is damaged: start from [`Restored::damaged`].
    pub fn push(&mut self, entry: Entry) -> Result<(), RestoredError> {
        let Some(log) = &mut self.log else { return Ok(()) };
        if entry.index > MAX_INDEX || entry.term > MAX_TERM {
            return Err(RestoredError { problem: "an entry's index or term is out of range" });
        }
        if entry.index != log.last() + 1 {
            return Err(RestoredError { problem: "the log has a hole" });
        }
        if entry.term == 0 || entry.term < log.last_term() {
            return Err(RestoredError { problem: "a term falls along the log" });
        }
        let index = entry.index;
        if entry.kind == EntryKind::Config {
            let members = codec::decode_members(entry.data.clone());
            let problem = "an entry of the log is no membership";
            self.members.push((index, members.map_err(|_| RestoredError { problem })?));
        }
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
    /// Committed, and in the log or the snapshot.
    pub(super) commit: u64,
    pub(super) debt: Option<Debt>,
    pub(super) members: Members,
}

impl Restored {
    /// Checks the parts against each other and against the configuration.
    fn check(&self, gate: &Gate) -> Result<(), RestoredError> {
        let Self { hard_state, snapshot, log, .. } = self;
        let Some(log) = log else { return Ok(()) };
        let covered = snapshot.as_ref();
        let began_with = self.voters.as_ref();
        let problem = if began_with.is_some_and(|voters| !gate.may_start(voters)) {
            "the log was begun with other voters than the configuration names"
        } else if !gate.is_dynamic() && !self.members.is_empty() {
            "the log changes the membership, and the configuration does not set `dynamic`"
        } else if hard_state.term > MAX_TERM {
            "the term is out of range"
        } else if hard_state
            .vote
            .is_some_and(|vote| hard_state.term == 0 || !gate.may_be_voter(vote))
        {
            "the vote went to no voter, or was given in no term"
        } else if hard_state.term < log.last_term() {
            "the term is behind the log"
        } else if covered.is_some_and(|meta| !(1..=MAX_TERM).contains(&meta.term)) {
            "the snapshot's term is out of range"
        } else if covered.is_some_and(|meta| meta.index == 0) || log.last() > MAX_INDEX {
            "an index is out of range"
        } else if covered.is_some_and(|meta| meta.index > MAX_INDEX) {
            "the snapshot's index is out of range"
        } else if covered.is_some_and(|meta| !gate.may_have(&meta.members)) {
            "the snapshot names other voters than the configuration, or none"
        } else {
            return Ok(());
        };
        Err(RestoredError { problem })
    }

    /// The memberships of a log that goes on after `covered` and ends at `last`.
    fn members(&self, gate: &Gate, covered: u64, last: u64) -> Members {
        let base = match &self.snapshot {
            Some(meta) => meta.members.clone(),
            None => {
                let begun = self.voters.as_deref().unwrap_or(gate.voters());
                Membership::new(begun.iter().copied())
            }
        };
        let mut members = Members::new(covered, base);
        let held = self.members.iter().filter(|(index, _)| *index > covered && *index <= last);
        held.for_each(|(index, logged)| members.push(*index, logged.clone()));
        members
    }

    /// Joins log and snapshot by the rule of InstallSnapshot: entries after the snapshot stay
    /// only if the log holds the snapshot's last entry. Source: Raft §7.
    pub(super) fn start(self, gate: &Gate) -> Result<Start, RestoredError> {
        self.check(gate)?;
        let owed = self.voters.is_none().then(|| gate.voters().to_vec());
        let (covered, term) = self.snapshot.as_ref().map_or((0, 0), |meta| (meta.index, meta.term));
        let last = self.log.as_ref().map_or(0, Log::last);
        let members = self.members(gate, covered, last);
        let Self { mut hard_state, snapshot, log, first, commit, debt, .. } = self;
        // A machine may be ahead of the disk: its snapshot became durable, and the term that the
        // node had heard of did not. Whatever else may have been lost there, it gives no vote in
        // that term: its vote is its own, and it does not campaign in it.
        let is_outrun = term > hard_state.term;
        if is_outrun {
            hard_state = HardState { term, vote: gate.own_vote() };
        }
        let Some(mut log) = log else {
            return Ok(Start {
                hard_state,
                snapshot,
                log: Log::new(0, 0),
                storage: Storage::new(0, None),
                commit: 0,
                debt: None,
                members,
            });
        };
        let begin = |last| {
            let mut storage = Storage::new(last, owed);
            if is_outrun {
                storage.set_hard(hard_state);
            }
            storage
        };
        if log.base() > covered {
            return Err(RestoredError {
                problem: "entries between the snapshot and the log are gone",
            });
        }
        let agrees = if log.base() == covered {
            // Nothing in the log says what came before it: the snapshot does.
            log.set_base_term(term);
            true
        } else {
            log.last() >= covered && log.term_at(covered) == Some(term)
        };
        if !agrees {
            let mut storage = begin(covered);
            storage.truncated_on_disk(first);
            storage.release(covered + 1);
            let log = Log::new(covered, term);
            let base = snapshot.as_ref().map(|meta| meta.members.clone()).unwrap_or_default();
            let members = Members::new(covered, base);
            let commit = covered;
            return Ok(Start { hard_state, snapshot, log, storage, commit, debt, members });
        }
        if log.base() < covered && log.base() > 0 {
            // Nobody knows the term before the first entry. The snapshot covers that entry, so
            // the log may as well start after it.
            log.release(log.first() + 1);
        }
        let mut storage = begin(log.last());
        // All behind what was left came from leaders of the term that the node had been in when it
        // lost the rest, or of later ones. The store had not heard that it is all there again.
        let debt = match debt {
            Some(debt) if log.last() >= debt.until => {
                storage.repaired();
                None
            }
            debt => debt,
        };
        let commit = commit.min(log.last()).max(covered);
        Ok(Start { hard_state, snapshot, log, storage, commit, debt, members })
    }
}
