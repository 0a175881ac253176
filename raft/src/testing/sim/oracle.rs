//! Watches all nodes at once and notes the first thing that must not happen.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

use voussoir_journal::testing::Ruin;

use super::disk::OpenError;
use super::host::QUIESCE_SITUATIONS;
use super::members::{CHANGE_SITUATIONS, Seen};
use crate::core::{Core, Persist};
use crate::membership::Membership;
use crate::message::Message;
use crate::types::{Entry, EntryKind, HaltReason, HardState, Role, Status};

/// What the seeds have to reach, or they prove nothing about it. [`run`](super::run) reports how
/// often each of them occurred, as a figure of that name.
pub static SITUATIONS: [&str; 12] = [
    "leader reads back entries for a follower behind its window",
    "probe below the leader's window",
    "entries for a follower released before they were read",
    "entries read back for an earlier leadership",
    "entries for the machine read back",
    "snapshot sent to a follower behind the log",
    "snapshot of a peer installed",
    "snapshot installed while a confirmed read waits for the machine",
    "vote asked for while an own write is under way",
    "proposals superseded",
    "proposals hidden by a snapshot",
    "leader steps down within its term",
];

/// What the seeds with lease reads have to reach.
pub static LEASE_SITUATIONS: [&str; 3] = [
    "read answered under a lease",
    "read that found the lease over",
    "read asked of a leader while a later one leads",
];

/// What the seeds with damaged logs have to reach.
pub static REPAIR_SITUATIONS: [&str; 8] = [
    "damaged node repaired",
    "damaged leader repaired",
    "second node repaired after the first",
    "leader elected while a node is being repaired",
    "node damaged that a commit had needed",
    "repair ended by a crash and begun again",
    "node repaired by a snapshot",
    "damage where the snapshot covers it",
];

/// What has been acknowledged as durable at one node.
#[derive(Clone, Debug, Default)]
struct Durable {
    hard: HardState,
    covered: u64,
    terms: BTreeMap<u64, u64>,
}

impl Durable {
    fn apply(&mut self, write: &Submitted) {
        if let Some(covered) = write.covered {
            self.covered = self.covered.max(covered);
        }
        if let Some(from) = write.truncate_from {
            self.terms.split_off(&from);
        }
        self.terms.extend(write.terms.iter().copied());
        if let Some(hard) = write.hard {
            self.hard = hard;
        }
    }

    fn holds(&self, index: u64, term: u64) -> bool {
        index <= self.covered || self.terms.get(&index) == Some(&term)
    }
}

/// A write that has been handed to a store.
#[derive(Clone, Debug)]
struct Submitted {
    id: u64,
    covered: Option<u64>,
    truncate_from: Option<u64>,
    terms: Vec<(u64, u64)>,
    hard: Option<HardState>,
}

/// What is known of one node.
#[derive(Clone, Debug, Default)]
struct Known {
    durable: Durable,
    submitted: Vec<Submitted>,
    term: u64,
    commit: u64,
    applied: u64,
    was_leader: bool,
    rests: bool,
    seen: Seen,
    /// Its disk was ruined, and that was noticed.
    out: bool,
    /// While it is being repaired: what it had made durable, and others count on.
    owed: Option<Durable>,
}

impl Known {
    /// Whether others may count on it for an entry.
    fn vouches(&self, index: u64, term: u64) -> bool {
        let owes = |owed: &Durable| owed.holds(index, term);
        self.durable.holds(index, term) || self.owed.as_ref().is_some_and(owes)
    }
}

/// The all-seeing judge of one run.
#[derive(Debug, Default)]
pub(super) struct Oracle {
    nodes: BTreeMap<u64, Known>,
    /// `None`: the membership changes, and leaders are judged by theirs.
    majority: Option<usize>,
    leaders: BTreeMap<u64, u64>,
    /// Each entry ever written: its content and the term before it.
    entries: HashMap<(u64, u64), (u64, u64)>,
    /// Term and content of each index that some node has applied.
    applied: BTreeMap<u64, (u64, u64)>,
    /// When an index first was the last one applied, and the highest term of a node that had
    /// applied by then: it was committed in that term or before. Both ascending.
    committed_by: Vec<(u64, u64)>,
    /// Digests of the machine and of the membership of whichever node first stood at each index.
    states: BTreeMap<u64, (u64, Option<u64>)>,
    violation: Option<String>,
    /// How often each of [`SITUATIONS`] was reached.
    situations: Vec<u64>,
    /// The last index of a write that a client was told about.
    told: u64,
    /// How many elections were won.
    pub(super) elections: u64,
    /// How many snapshots were installed from peers.
    pub(super) installs: u64,
    /// How many entries were cut from logs.
    pub(super) truncations: u64,
    /// How many nodes said of themselves that their disk is damaged.
    pub(super) damage_reported: u64,
    /// How often damage was where it did no harm.
    pub(super) damage_harmless: u64,
    /// How many nodes were not started on an empty disk.
    pub(super) losses_refused: u64,
    /// How often each node was repaired.
    repairs: BTreeMap<u64, u64>,
}

fn all_situations() -> impl Iterator<Item = &'static str> {
    let by_default = SITUATIONS.into_iter().chain(CHANGE_SITUATIONS);
    by_default.chain(LEASE_SITUATIONS).chain(QUIESCE_SITUATIONS).chain(REPAIR_SITUATIONS)
}

fn digest(entry: &Entry) -> u64 {
    let mut hasher = DefaultHasher::new();
    (entry.kind == EntryKind::Noop, &entry.data[..]).hash(&mut hasher);
    hasher.finish()
}

impl Oracle {
    /// A judge of these nodes: all of them vote, unless the membership `changes`.
    pub(super) fn new(ids: &[u64], changes: bool) -> Self {
        Self {
            nodes: ids.iter().map(|id| (*id, Known::default())).collect(),
            majority: (!changes).then_some(ids.len() / 2 + 1),
            situations: vec![0; all_situations().count()],
            ..Self::default()
        }
    }

    /// The first thing that happened and must not.
    pub(super) fn violation(&self) -> Option<&str> {
        self.violation.as_deref()
    }

    /// The last index that some node has applied.
    pub(super) fn committed(&self) -> u64 {
        self.applied.last_key_value().map_or(0, |(index, _)| *index)
    }

    /// Counts one of [`SITUATIONS`].
    pub(super) fn reached(&mut self, situation: &'static str) {
        let at = all_situations().position(|known| known == situation);
        self.situations[at.expect("every situation is listed")] += 1;
    }

    /// How often each of [`SITUATIONS`] was reached.
    pub(super) fn situations(&self) -> impl Iterator<Item = (&'static str, u64)> {
        all_situations().zip(self.situations.iter().copied())
    }

    /// Notes that something happened that must not.
    pub(super) fn object(&mut self, text: impl FnOnce() -> String) {
        self.violation.get_or_insert_with(text);
    }

    /// A node could not start from its disk. Only what was done to the disk excuses it.
    pub(super) fn refused(&mut self, id: u64, error: OpenError, ruin: Option<Ruin>) {
        match (error, ruin) {
            (OpenError::Failed, _) => {}
            (OpenError::Damaged, Some(Ruin::Rotten)) => self.damage_reported += self.count_out(id),
            (OpenError::Absent, Some(Ruin::Lost)) => self.losses_refused += self.count_out(id),
            _ => self.object(|| format!("node {id} does not start, its disk is {ruin:?}: {error}")),
        }
    }

    /// 1 when it is news that a node is out.
    fn count_out(&mut self, id: u64) -> u64 {
        let known = self.nodes.get_mut(&id);
        known.map_or(0, |known| u64::from(!std::mem::replace(&mut known.out, true)))
    }

    /// A node has found that its store is damaged.
    pub(super) fn damaged(&mut self, id: u64, ruin: Option<Ruin>) {
        if ruin == Some(Ruin::Rotten) {
            self.damage_reported += self.count_out(id);
        } else {
            self.object(|| format!("node {id} is damaged, and nobody did it: {ruin:?}"));
        }
    }

    /// A node has started, and it vouches for everything.
    pub(super) fn unharmed(&mut self, ruin: Option<Ruin>) {
        match ruin {
            None => {}
            Some(Ruin::Rotten) => self.damage_harmless += 1,
            Some(Ruin::Lost) => self.object(|| "a node came back with an empty disk".to_owned()),
        }
    }

    /// A node has started from what its store held.
    pub(super) fn restarted(&mut self, id: u64, core: &Core) {
        let status = core.status();
        let Some(known) = self.nodes.get_mut(&id) else { return };
        let (was, is) = (known.durable.hard, core.hard_state());
        known.submitted.clear();
        known.commit = status.commit;
        known.applied = 0;
        known.was_leader = false;
        known.seen = Seen::at_start(core);
        let forgot = is.term < was.term
            || (is.term == was.term && was.vote.is_some_and(|v| is.vote != Some(v)));
        let before = std::mem::take(&mut known.durable);
        known.durable.hard = is;
        known.durable.covered = status.snapshot;
        known.durable.terms = (status.first..=status.last)
            .filter_map(|index| Some((index, core.term_at(index)?)))
            .collect();
        let was_owed = known.owed.take();
        let is_begun_again = was_owed.is_some();
        let mut owed = was_owed.unwrap_or_default();
        owed.covered = owed.covered.max(before.covered);
        owed.terms.extend(before.terms);
        known.owed = Some(owed);
        if forgot {
            self.object(|| format!("node {id} came back with {is:?}, durable was {was:?}"));
        }
        if status.recovering.is_none() {
            self.is_whole(id);
        } else if is_begun_again {
            self.reached("repair ended by a crash and begun again");
        } else {
            self.watch_needed(id);
        }
    }

    /// A node claims to hold all that it has ever made durable.
    fn is_whole(&mut self, id: u64) {
        let Some(known) = self.nodes.get_mut(&id) else { return };
        let Some(owed) = known.owed.take() else { return };
        let holds = &known.durable;
        let is_lost = |(index, (term, _)): &(&u64, &(u64, u64))| {
            owed.holds(**index, *term) && !holds.holds(**index, *term)
        };
        if let Some((index, _)) = self.applied.iter().find(is_lost) {
            let index = *index;
            self.object(|| format!("node {id} came back without the committed entry {index}"));
        }
    }

    /// A node has lost entries. One of them may be committed only because the node had it.
    fn watch_needed(&mut self, id: u64) {
        let needed = |(index, (term, _)): (&u64, &(u64, u64))| {
            let owes = self.nodes.get(&id).is_some_and(|known| {
                known.vouches(*index, *term) && !known.durable.holds(*index, *term)
            });
            let holds = |known: &&Known| known.durable.holds(*index, *term);
            let holders = self.nodes.values().filter(holds).count();
            owes && self.majority.is_some_and(|majority| holders < majority)
        };
        // The latest ones are on the fewest disks.
        if self.applied.iter().rev().take(64).any(needed) {
            self.reached("node damaged that a commit had needed");
        }
    }

    /// How often a node was repaired.
    pub(super) fn repairs(&self, id: u64) -> u64 {
        self.repairs.get(&id).copied().unwrap_or(0)
    }

    /// Whether a node may be repaired: its disk has rotten, or it was being repaired before.
    pub(super) fn recovers(&mut self, id: u64, ruin: Option<Ruin>) {
        let is_known = self.nodes.get(&id).is_some_and(|known| known.owed.is_some());
        if ruin != Some(Ruin::Rotten) && !is_known {
            self.object(|| format!("node {id} has lost entries, and nobody did it: {ruin:?}"));
        }
    }

    /// A node hands a write to its store.
    pub(super) fn submitted(&mut self, id: u64, persist: &Persist, core: &Core) {
        // The node itself reports entries that the core does not lend.
        let Ok(entries) = core.entries(persist.range.clone()) else { return };
        let mut terms = Vec::new();
        for entry in entries {
            terms.push((entry.index, entry.term));
            let prev = core.term_at(entry.index - 1).unwrap_or(0);
            let content = (digest(entry), prev);
            let known = *self.entries.entry((entry.index, entry.term)).or_insert(content);
            if known != content {
                let (index, term) = (entry.index, entry.term);
                self.object(|| format!("log matching: two entries {index} of term {term}"));
            }
        }
        self.truncations += u64::from(persist.truncate_from.is_some());
        self.installs += u64::from(persist.snapshot.is_some());
        let is_recovering = self.nodes.get(&id).is_some_and(|known| known.owed.is_some());
        if is_recovering && persist.snapshot.is_some() {
            self.reached("node repaired by a snapshot");
        }
        let Some(known) = self.nodes.get_mut(&id) else { return };
        known.submitted.push(Submitted {
            id: persist.id,
            covered: persist.snapshot.as_ref().map(|meta| meta.index),
            truncate_from: persist.truncate_from,
            terms,
            hard: persist.hard_state,
        });
    }

    /// A node's store has reported the writes up to `write` as durable.
    pub(super) fn durable(&mut self, id: u64, write: u64) {
        let Some(known) = self.nodes.get_mut(&id) else { return };
        let done = known.submitted.partition_point(|submitted| submitted.id <= write);
        for submitted in known.submitted.drain(..done) {
            known.durable.apply(&submitted);
        }
    }

    /// A node sends a message: what it speaks for has to be durable.
    pub(super) fn sent(&mut self, id: u64, to: u64, message: &Message) {
        let Some(known) = self.nodes.get(&id) else { return };
        let hard = known.durable.hard;
        // Questions promise nothing, nor does word of a later term or the refusal of a read: they
        // may leave before the term is durable, as everything but votes and acknowledgements may
        // in etcd's raft. Whoever hears the term adopts it; nobody counts on who said it.
        let promises_nothing = match message {
            Message::PreVote(_) | Message::PreVoteReply(_) | Message::Vote(_) => true,
            Message::ReadRequest(_) | Message::Stale { .. } | Message::Removed { .. } => true,
            Message::ReadReply(reply) => reply.index.is_none(),
            _ => false,
        };
        let says_term = !promises_nothing;
        if says_term && message.term() > hard.term {
            self.object(|| format!("node {id} speaks of a term that is not durable: {message:?}"));
            return;
        }
        let broken = match message {
            Message::VoteReply(reply) => reply.granted && hard.vote != Some(to),
            // A later life may ask in the same term again: the claim has to outlive this one.
            Message::Vote(claim) => {
                let holds = known.durable.terms.get(&claim.last_index) == Some(&claim.last_term);
                !holds && claim.last_index > known.durable.covered
            }
            Message::AppendAck(ack) => {
                let known = &known.durable;
                (known.covered + 1..=ack.matched)
                    .rev()
                    .take(3)
                    .any(|index| !known.terms.contains_key(&index))
            }
            _ => false,
        };
        if broken {
            self.object(|| format!("node {id} says what is not durable: {message:?}, {hard:?}"));
        }
    }

    /// A node's own snapshot is durable.
    pub(super) fn snapshot_durable(&mut self, id: u64, index: u64) {
        if let Some(known) = self.nodes.get_mut(&id) {
            known.durable.covered = known.durable.covered.max(index);
        }
    }

    /// A node's machine applies an entry.
    pub(super) fn apply(&mut self, id: u64, entry: &Entry) {
        let (index, term) = (entry.index, entry.term);
        let is = (term, digest(entry));
        let known = self.nodes.get(&id).map_or(0, |known| known.applied);
        if known + 1 != index {
            self.object(|| format!("node {id} applies {index} after {known}"));
        }
        if let Some(known) = self.nodes.get_mut(&id) {
            known.applied = index;
        }
        match self.applied.insert(index, is) {
            Some(was) if was != is => self.object(|| {
                format!(
                    "state machine safety: node {id} applies {index} of term {term}, \
                     {was:?} was applied"
                )
            }),
            Some(_) => {}
            None => {
                let by = self.nodes.get(&id).map_or(0, |known| known.term);
                let latest = self.committed_by.last().map_or(0, |(_, term)| *term);
                self.committed_by.push((index, by.max(latest)));
                let holders = self.holders(index, term).len();
                if let Some(majority) = self.majority.filter(|majority| holders < *majority) {
                    self.object(|| {
                        format!(
                            "node {id} applies {index}, durable on {holders} of {majority} nodes"
                        )
                    });
                }
            }
        }
    }

    /// Where an entry is durable.
    pub(super) fn holders(&self, index: u64, term: u64) -> Vec<u64> {
        let holds = |(_, known): &(&u64, &Known)| known.vouches(index, term);
        self.nodes.iter().filter(holds).map(|(id, _)| *id).collect()
    }

    /// The membership of a node when it was last looked at.
    pub(super) fn seen(&self, id: u64) -> Option<&Seen> {
        self.nodes.get(&id).map(|known| &known.seen)
    }

    pub(super) fn note_seen(&mut self, id: u64, seen: Seen) {
        if let Some(known) = self.nodes.get_mut(&id) {
            known.seen = seen;
        }
    }

    /// Whether some node has led a later term than `term`.
    pub(super) fn is_deposed(&self, term: u64) -> bool {
        self.leaders.last_key_value().is_some_and(|(latest, _)| *latest > term)
    }

    /// A client is told that its write at `index` is done.
    pub(super) fn told(&mut self, index: u64) {
        self.told = self.told.max(index);
    }

    /// What a read that begins now has to see.
    pub(super) fn read_begins(&self) -> u64 {
        self.told
    }

    /// The index of a read that has to see `least` is known.
    pub(super) fn read_index(&mut self, id: u64, least: u64, index: u64) {
        if index < least {
            self.object(|| format!("read index {index} at node {id}, {least} was told before"));
        }
    }

    /// A read that had to see `least` is answered from the state at `index`.
    pub(super) fn read_ends(&mut self, id: u64, least: u64, index: u64) {
        if index < least {
            self.object(|| format!("stale read: node {id} answers at {index}, {least} was told"));
        }
    }

    /// A node's machine is replaced by a snapshot.
    pub(super) fn restored(&mut self, id: u64, index: u64) {
        if let Some(known) = self.nodes.get_mut(&id) {
            known.applied = index;
        }
    }

    /// A node's state machine stands at `index`, however it came there: every other one that stands
    /// there, also that of a node that is no member, holds the same state.
    pub(super) fn stands(&mut self, id: u64, index: u64, state: &[u8], members: &Membership) {
        let hash = |bytes: &[u8]| {
            let mut hasher = DefaultHasher::new();
            bytes.hash(&mut hasher);
            hasher.finish()
        };
        // A node that joins knows no members before the first entry that names some.
        let members = (!members.is_empty()).then(|| hash(&crate::codec::encode_members(members)));
        let first = self.states.entry(index).or_insert((hash(state), members));
        first.1 = first.1.or(members);
        if *first != (hash(state), members.or(first.1)) {
            self.object(|| format!("node {id} has another state at {index} than the first there"));
        }
    }

    /// What a leader takes for replicated is durable at the follower, and the same entry there,
    /// unless the follower knows of a later term already.
    fn believes(&mut self, core: &Core, leader: &Status) {
        for (peer, matched) in core.believed() {
            let Some(term) = core.term_at(matched).filter(|_| matched > leader.first) else {
                continue;
            };
            let lacks = |known: &Known| known.term <= leader.term && !known.vouches(matched, term);
            if self.nodes.get(&peer).is_some_and(lacks) {
                let id = leader.id;
                self.object(|| format!("leader {id} counts entry {matched} at node {peer}"));
            }
        }
    }

    /// A node has handled something.
    pub(super) fn observe(&mut self, core: &Core) {
        let status = core.status();
        let Status { id, term, commit, role, .. } = status;
        if status.halted == Some(HaltReason::Damaged) {
            // It knows nothing any more, and may not act on that.
            return;
        }
        let Some(known) = self.nodes.get_mut(&id) else { return };
        let (was_term, was_commit, was_leader) = (known.term, known.commit, known.was_leader);
        (known.term, known.commit) = (term, commit);
        known.was_leader = role == Role::Leader && status.halted.is_none();
        known.rests = status.is_quiesced;
        let is_repaired = known.owed.is_some() && status.recovering.is_none();
        if is_repaired {
            self.is_whole(id);
            self.reached("damaged node repaired");
            *self.repairs.entry(id).or_default() += 1;
            if self.repairs.len() == 2 && self.repairs[&id] == 1 {
                self.reached("second node repaired after the first");
            }
        }
        if status.is_quiesced && self.nodes.values().all(|known| known.rests) {
            self.reached("all nodes rest at once");
        }
        if was_leader && was_term == term && role != Role::Leader {
            self.reached("leader steps down within its term");
            if status.removed.is_some() {
                self.reached("leader removed");
            }
        }
        if commit < was_commit {
            self.object(|| {
                format!("node {id} moves its commit index from {was_commit} to {commit}")
            });
        }
        let stays = role == Role::Leader && was_leader && was_term == term;
        if stays && commit > was_commit && core.term_at(commit).is_some_and(|of| of < term) {
            // Raft §5.4.2: it may yet be overwritten.
            self.object(|| format!("leader {id} of term {term} counts {commit}, an older entry"));
        }
        if stays {
            self.believes(core, &status);
            if commit > was_commit {
                self.commits(core, commit);
            }
        }
        self.observe_members(core, &status, role == Role::Leader && !stays);
        if role != Role::Leader || stays {
            return;
        }
        self.elections += 1;
        if self.nodes.values().any(|known| known.owed.is_some()) {
            self.reached("leader elected while a node is being repaired");
        }
        let other = *self.leaders.entry(term).or_insert(id);
        if other != id {
            self.object(|| format!("election safety: {other} and {id} lead term {term}"));
        }
        let before = self.committed_by.partition_point(|(_, by)| *by < term);
        if let Some((index, _)) = before.checked_sub(1).map(|at| self.committed_by[at])
            && index >= status.first
            && core.term_at(index) != self.applied.get(&index).map(|(term, _)| *term)
        {
            self.object(|| format!("leader completeness: {id} leads term {term} without {index}"));
        }
    }
}
