//! Snapshots: cutting the log behind them, sending and installing them.
//!
//! Source: Raft §7.

use super::io::{Output, TransferEnd};
use super::peer::{Flow, Peer};
use super::{Core, RoleState};
use crate::types::{MAX_TERM_STEP, SnapshotMeta};

/// How often the wait after a transfer that brought a follower no further doubles, at most.
const MAX_TRANSFER_DOUBLINGS: u32 = 6;

/// How many times as much may be applied since the last snapshot before the next one is asked for
/// while a follower is sent one, or catches up behind it. A new one would make the follower start
/// over after a broken transfer, and release the entries that it needs next.
const SENDING_DELAYS: u64 = 8;

impl Core {
    /// By what factor the thresholds for the next snapshot are raised now.
    pub(super) fn snapshot_delay(&self) -> u64 {
        let RoleState::Leader(leader) = &self.role else { return 1 };
        let (now, within) = (self.now, self.timing.max_election);
        let is_delayed = leader.peers.iter().any(|peer| peer.awaits_snapshot(now, within));
        if is_delayed { SENDING_DELAYS } else { 1 }
    }

    /// The first entry that a follower needs that is sent a snapshot, or has just received one.
    fn needed_by_followers(&self) -> u64 {
        let RoleState::Leader(leader) = &self.role else { return u64::MAX };
        let (now, within) = (self.now, self.timing.max_election);
        let needed = leader.peers.iter().filter_map(|peer| peer.needs_from(now, within));
        needed.min().unwrap_or(u64::MAX)
    }

    pub(super) fn on_snapshot_taken(&mut self, meta: SnapshotMeta) {
        (self.taking_snapshot, self.failed_at) = (false, None);
        let current = self.snapshot.as_ref().map_or(0, |meta| meta.index);
        if meta.index <= current || meta.index > self.applied || self.installing.is_some() {
            return;
        }
        let by_weight = self.kept_bytes() / self.entry_weight.max(1);
        let upto = (meta.index + 1).saturating_sub(self.config.keep_entries.min(by_weight));
        self.snapshot = Some(Box::new(meta));
        self.covered_weight = self.snapshot_mark.1;
        // A transfer may take for ever, and so may a follower that catches up, and the log must
        // not grow for as long: it keeps entries until the next snapshot but one at the latest.
        let needed = self.kept_for_followers(self.needed_by_followers()).max(current + 1);
        if let RoleState::Leader(leader) = &mut self.role {
            leader.peers.iter_mut().for_each(Peer::snapshot_taken);
        }
        self.release(upto.min(needed));
    }

    pub(super) fn on_compact(&mut self, upto: u64) {
        let covered = self.snapshot.as_ref().map_or(0, |meta| meta.index);
        self.release(upto.min(covered + 1));
    }

    fn release(&mut self, upto: u64) {
        // What is not durable is still needed in memory for the write that makes it so.
        let upto = upto.min(self.storage.durable() + 1);
        if upto > self.log.first() {
            self.log.release(upto);
            self.storage.release(upto);
        }
    }

    /// Starts a transfer to the follower at place `at`, which needs entries that are gone.
    pub(super) fn send_snapshot_to(&mut self, at: usize) {
        let Some(meta) = self.snapshot.clone() else { return };
        let RoleState::Leader(leader) = &mut self.role else { return };
        let id = leader.next_id();
        let peer = &mut leader.peers[at];
        peer.begin_transfer(id, meta.index);
        let (to, term) = (peer.id, self.term);
        // The entry that it last acknowledged may have been released here. So only the follower
        // itself can notice that it has lost it, and must before a snapshot covers the loss.
        self.remind(to);
        self.out.push_back(Output::SendSnapshot { id, to, term, meta });
    }

    pub(super) fn on_snapshot_sent(&mut self, id: u64, ended: TransferEnd) {
        let complete = ended == TransferEnd::Complete;
        let (last, now) = (self.log.last(), self.now);
        let RoleState::Leader(leader) = &mut self.role else { return };
        let session = leader.next_id();
        for peer in &mut leader.peers {
            match peer.flow {
                Flow::Snapshot { id: transfer, index } if transfer == id => {
                    let next = if complete { index + 1 } else { peer.next };
                    peer.probe(next, session);
                    if complete {
                        peer.catch_up(last, now);
                    }
                    // Whatever broke the transfer is likely to be still there, and a follower
                    // that says it has the snapshot but asks again is no better. A link that
                    // breaks now and then is: each transfer brings some parts, and there are
                    // only so many.
                    if ended == TransferEnd::Advanced {
                        peer.transfers = 0;
                    }
                    let doublings = peer.transfers.min(MAX_TRANSFER_DOUBLINGS);
                    peer.transfers = peer.transfers.saturating_add(1);
                    peer.snapshot_at = self.now.saturating_add(self.timing.resend << doublings);
                    if !complete {
                        peer.wait_until(peer.snapshot_at);
                    }
                }
                _ => {}
            }
        }
    }

    pub(super) fn on_snapshot_received(&mut self, from: u64, term: u64, meta: SnapshotMeta) {
        let ahead = term > self.term.saturating_add(MAX_TERM_STEP);
        if ahead || self.gate.snapshot(from, term, &meta).is_err() {
            self.rejected_inputs += 1;
            self.out.push_back(Output::DiscardSnapshot { meta });
            return;
        }
        if term > self.term {
            self.become_follower(term, None);
        }
        let leads = matches!(self.role, RoleState::Leader(_));
        if self.installing.as_ref().is_some_and(|(_, installing)| **installing == meta) {
            // A repeated transfer of what is on its way to the disk: not to be discarded.
            return;
        }
        if term < self.term || leads || meta.index <= self.commit || !self.hear_leader(from) {
            self.out.push_back(Output::DiscardSnapshot { meta });
            return;
        }
        if self.log.term_at(meta.index) == Some(meta.term) {
            // The log holds the snapshot's last entry, so it holds all that the snapshot covers.
            self.verified = self.verified.max(meta.index);
            self.commit_to(meta.index);
            self.out.push_back(Output::DiscardSnapshot { meta });
            return;
        }
        self.proposals.tell(&mut self.out);
        self.proposals.hidden(meta.index, &mut self.out);
        let first = self.log.first();
        self.log.reset(meta.index, meta.term);
        self.reset_members(meta.index, meta.members.clone());
        if let Some(meta) = self.storage.reset(meta.clone(), first, self.commit) {
            self.out.push_back(Output::DiscardSnapshot { meta });
        }
        self.commit = meta.index;
        self.verified = meta.index;
        self.installing = Some((self.storage.next_id(), Box::new(meta)));
    }

    /// The received snapshot is durable and current.
    pub(super) fn install_snapshot(&mut self, meta: SnapshotMeta) {
        self.applying = meta.index;
        self.taking_snapshot = false;
        self.snapshot_mark = (meta.index, self.log.weight_upto(meta.index));
        self.covered_weight = self.snapshot_mark.1;
        self.ack.due();
        self.out.push_back(Output::Restore { meta: meta.clone() });
        self.snapshot = Some(Box::new(meta));
    }
}
