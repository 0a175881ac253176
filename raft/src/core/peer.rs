//! What a leader knows of one follower.

use std::collections::VecDeque;

use crate::types::{FollowerState, FollowerStatus};

/// How entries flow to a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// One message at a time, until the place where the logs agree is found.
    Probe {
        /// A message is under way.
        waiting: bool,
    },
    /// The logs agree: messages follow each other without waiting.
    Replicate,
    /// The follower needs entries that are gone; it gets a snapshot.
    Snapshot {
        /// The transfer.
        id: u64,
        /// What the snapshot covers at least.
        index: u64,
    },
}

/// A leader's view of one follower.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) id: u64,
    /// It has a vote; else it only learns.
    pub(super) is_voter: bool,
    pub(super) flow: Flow,
    /// When entries were last sent to it while they flow.
    pub(super) sent_at: u64,
    /// Durable at the follower and equal to the leader's log. Invariant: never falls while this
    /// node leads, unless the follower says that its disk lost entries; at most the leader's last
    /// index.
    pub(super) matched: u64,
    /// The term of that entry, also after our log has released it.
    pub(super) matched_term: u64,
    /// `matched` when the session began: every message of the session was sent after the follower
    /// had acknowledged it. Invariant: at most `matched`.
    session_matched: u64,
    /// It has lost entries that it had acknowledged, and counts for nothing.
    pub(super) lost: bool,
    /// Transfers of a snapshot that have ended since `matched` last grew.
    pub(super) transfers: u32,
    /// When the next transfer may start.
    pub(super) snapshot_at: u64,
    /// It catches up behind a snapshot: the end of the log when the current round of that began,
    /// and when that was.
    catching_up: Option<(u64, u64)>,
    /// It has received a snapshot, and none has been taken since it caught up behind that.
    is_behind_snapshot: bool,
    /// The round trip of heartbeats, in nanoseconds; 0 before the first answer.
    pub(super) round_trip: u64,
    /// What it last said to have received, durable or not.
    pub(super) received: u64,
    /// The next entry to send. Invariant: `matched < next`.
    pub(super) next: u64,
    /// Names this stretch of replication; answers to an earlier one are ignored.
    pub(super) session: u64,
    /// Answers to probes of this session that agreed below `next` and took no entries, since the
    /// latest news of its disk. 0 unless probing.
    pub(super) untaken: u32,
    /// When it last gave a sign of life.
    pub(super) heard: u64,
    /// The round of heartbeats in which it became a follower. It may have been one before, and
    /// answers to that round and earlier ones say nothing of the way to it now.
    first_round: u64,
    /// The latest round of heartbeats that it answered, 0 for none behind `first_round`.
    pub(super) round: u64,
    /// When to ask what has arrived.
    pub(super) resend_at: u64,
    /// The read from the store that its next message waits for, with the first index that is read.
    /// `next` may have moved on since: late acknowledgements do that.
    pub(super) fetch: Option<(u64, u64)>,
    /// Last index and weight of each message under way. Invariant: ascending indexes, each above
    /// `matched` and below `next`; empty unless entries flow (`Flow::Replicate`).
    inflight: VecDeque<(u64, u64)>,
    /// Invariant: the sum of the weights in `inflight`.
    inflight_bytes: u64,
}

impl Peer {
    pub(super) fn new(id: u64, next: u64, session: u64, first_round: u64, now: u64) -> Self {
        Self {
            id,
            is_voter: true,
            flow: Flow::Probe { waiting: false },
            sent_at: 0,
            matched: 0,
            matched_term: 0,
            session_matched: 0,
            lost: false,
            transfers: 0,
            snapshot_at: now,
            catching_up: None,
            is_behind_snapshot: false,
            round_trip: 0,
            received: 0,
            next,
            session,
            untaken: 0,
            heard: now,
            first_round,
            round: 0,
            resend_at: now,
            fetch: None,
            inflight: VecDeque::new(),
            inflight_bytes: 0,
        }
    }

    /// Starts over from `next`, one message at a time, as a new session.
    pub(super) fn probe(&mut self, next: u64, session: u64) {
        self.flow = Flow::Probe { waiting: false };
        self.next = next.max(self.matched + 1);
        (self.session, self.untaken) = (session, 0);
        self.session_matched = self.matched;
        self.fetch = None;
        self.inflight.clear();
        self.inflight_bytes = 0;
    }

    /// Its disk has lost entries: what it had acknowledged counts for nothing any more.
    pub(super) fn forget(&mut self) {
        (self.matched, self.matched_term, self.lost) = (0, 0, false);
    }

    /// A transfer begins, of a snapshot that covers `index`.
    pub(super) fn begin_transfer(&mut self, id: u64, index: u64) {
        self.flow = Flow::Snapshot { id, index };
        (self.catching_up, self.is_behind_snapshot) = (None, false);
    }

    /// The follower has the snapshot, and needs the entries behind it, up to `last` for now.
    pub(super) fn catch_up(&mut self, last: u64, now: u64) {
        (self.catching_up, self.is_behind_snapshot) = (Some((last, now)), true);
    }

    /// A snapshot has been taken.
    pub(super) fn snapshot_taken(&mut self) {
        self.is_behind_snapshot &= self.catching_up.is_some();
    }

    /// Whether a snapshot is on its way to it, also between two transfers, or has arrived and the
    /// follower, which was heard less than `within` before `now`, is still catching up behind it.
    /// No longer after a transfer that brought it no further than the one before.
    pub(super) fn awaits_snapshot(&self, now: u64, within: u64) -> bool {
        let is_sent = matches!(self.flow, Flow::Snapshot { .. });
        let catches_up = self.catching_up.is_some() && self.has_answered_since(now, within);
        self.transfers == 1 || (is_sent && self.transfers == 0) || catches_up
    }

    /// The first entry that the next snapshot has to leave it: behind the snapshot that it is sent,
    /// or behind what it has, if it has just received one and was heard less than `within` before
    /// `now`. `None`: it has to do with what is left anyway.
    pub(super) fn needs_from(&self, now: u64, within: u64) -> Option<u64> {
        match self.flow {
            Flow::Snapshot { index, .. } => Some(index + 1),
            _ if self.is_behind_snapshot && self.has_answered_since(now, within) => {
                Some(self.matched + 1)
            }
            _ => None,
        }
    }

    /// Asks nothing before `at`.
    pub(super) fn wait_until(&mut self, at: u64) {
        self.flow = Flow::Probe { waiting: true };
        self.resend_at = at;
    }

    /// Whether a refusal of `prev_index` in the current session shows that an acknowledged entry
    /// is gone.
    pub(super) fn refusal_shows_loss(&self, prev_index: u64) -> bool {
        prev_index <= self.session_matched
    }

    /// Takes an answer to a round of heartbeats, and the time that it took. Longer ones count at
    /// once, shorter ones by an eighth, so that waits for answers follow the slowest of late.
    pub(super) fn note_round(&mut self, round: u64, took: u64) {
        if round > self.round.max(self.first_round) {
            self.round = round;
            let shorter = self.round_trip.saturating_sub(took);
            self.round_trip = took.max(self.round_trip - shorter / 8);
        }
    }

    /// For operators.
    pub(super) fn status(&self, now: u64) -> FollowerStatus {
        FollowerStatus {
            id: self.id,
            is_voter: self.is_voter,
            state: match self.flow {
                _ if self.lost => FollowerState::Lost,
                Flow::Probe { .. } => FollowerState::Probing,
                Flow::Replicate => FollowerState::Replicating,
                Flow::Snapshot { .. } => FollowerState::Snapshot,
            },
            matched: self.matched,
            received: self.received,
            next: self.next,
            inflight: self.inflight.len(),
            inflight_bytes: self.inflight_bytes,
            silent_ns: now.saturating_sub(self.heard),
            round_trip_ns: self.round_trip,
            sending: None,
        }
    }

    /// Whether the follower has answered this leader, counts, and did so less than `within` before
    /// `now`. `heard` alone does not say so: it begins with the leadership.
    pub(super) fn has_answered_since(&self, now: u64, within: u64) -> bool {
        let has_answered = self.round > 0 || self.matched > 0;
        has_answered && !self.lost && now.saturating_sub(self.heard) < within
    }

    /// When to ask again, while an answer is awaited. While entries flow that is as long as the
    /// follower has acknowledged less than it was sent or said to have received: a message need
    /// not be under way for that, because the answer to a probe may say that entries beyond
    /// `matched` have arrived.
    pub(super) fn deadline(&self) -> Option<u64> {
        match self.flow {
            Flow::Probe { waiting: true } => Some(self.resend_at),
            Flow::Replicate if self.matched + 1 < self.next => Some(self.resend_at),
            _ => None,
        }
    }

    pub(super) fn is_full(&self, max_messages: usize, max_bytes: u64) -> bool {
        self.inflight.len() >= max_messages || self.inflight_bytes >= max_bytes
    }

    /// A message with the entries `self.next..end` is under way.
    pub(super) fn note_sent(&mut self, end: u64, weight: u64, now: u64, resend_at: u64) {
        if let Flow::Probe { .. } = self.flow {
            self.flow = Flow::Probe { waiting: true };
            self.resend_at = resend_at;
            return;
        }
        if self.inflight.is_empty() {
            self.resend_at = resend_at;
        }
        (self.next, self.sent_at) = (end, now);
        self.inflight.push_back((end - 1, weight));
        self.inflight_bytes += weight;
    }

    /// Ends the catching up, or begins the next round of it, where the current one has ended. A
    /// round that took less than `short` was the last: what is missing now takes no longer.
    /// Source: thesis §4.2.1.
    pub(super) fn advance_catching_up(&mut self, last: u64, now: u64, short: u64) {
        let Some((_, began)) = self.catching_up.filter(|(end, _)| self.matched >= *end) else {
            return;
        };
        let is_last = self.matched >= last || now.saturating_sub(began) < short;
        self.catching_up = (!is_last).then_some((last, now));
    }

    /// The follower's log is durable up to `matched`. Returns whether that is news.
    pub(super) fn acknowledged(&mut self, matched: u64) -> bool {
        while let Some((last, weight)) = self.inflight.front().copied() {
            if last > matched {
                break;
            }
            self.inflight.pop_front();
            self.inflight_bytes -= weight;
        }
        let news = matched > self.matched;
        if news {
            // It got further, so whatever it needs next need not wait.
            (self.transfers, self.snapshot_at) = (0, 0);
        }
        self.matched = self.matched.max(matched);
        news
    }
}
