//! Catching up with another region: what differs is found by Merkle trees and repaired in both.

use std::sync::Arc;

use bytes::Bytes;

use super::handle::{MAX_STATE_BYTES, Region, bytes_of};
use super::outbox::Fate;
use super::wire::{Answer, Question};
use crate::link::Link;
use crate::merkle::codec::{encode_answer, encode_question};
use crate::pace::Pace;
use crate::table::Value;
use crate::wire::compare_limits;

/// Keys that are fetched and repaired at once.
const FETCHED_KEYS: usize = 64;

/// What a comparison has done so far.
#[derive(Default)]
struct Progress {
    bytes: u64,
    repaired: u64,
    /// Keys that could not be made equal, and will not be soon.
    refused: u64,
    /// Keys that a later comparison must look at again.
    left: u64,
}

impl Progress {
    /// Counts what became of a key in one of the regions.
    fn is_held(&mut self, fate: Fate) -> bool {
        match fate {
            Fate::Held => {}
            Fate::Refused => self.refused += 1,
            Fate::Later => self.left += 1,
        }
        fate == Fate::Held
    }
}

/// Compares the node with one of another region, as its outbox has begun to.
pub(super) async fn run(region: Region, other: u64) {
    let mut progress = Progress::default();
    let pace = Pace::new(region.shared.config.bytes_per_second);
    let is_complete = region.compare(other, &pace, &mut progress).await.is_some();
    let Some(peer) = region.peer(other) else { return };
    {
        let mut contact = peer.contact.lock();
        contact.stats.bytes += progress.bytes;
        contact.stats.repaired_keys += progress.repaired;
        contact.stats.refused_keys += progress.refused;
        contact.stats.comparisons += u64::from(is_complete);
    }
    let now = region.shared.feed.now();
    // Not all nodes at once.
    let every = region.shared.config.compare_every.mul_f64(0.5 + fastrand::f64());
    peer.outbox.lock().compared(now, is_complete, now.saturating_add(every.as_nanos() as u64));
    peer.woken.notify_one();
}

impl Region {
    /// None: it was not made to the end.
    async fn compare(&self, other: u64, pace: &Pace, done: &mut Progress) -> Option<()> {
        // Ends: each turn but the last has made a key equal in both regions.
        loop {
            done.left = 0;
            let (local, wide) = (self.local()?, self.wide()?);
            // Both before any state is read, as each operation does.
            let (epoch, to) = self.greet(&wide, other).await?;
            let scope = self.shared.node.own_scope().await?;
            let mut exchange = self.shared.node.table_exchange()?;
            let limits = compare_limits();
            // Ends: an exchange ends whatever the peer answers.
            while let Some(question) = exchange.question() {
                let asked = encode_question(&question, &limits).len();
                let question = Question::Compare { question };
                let Answer::Compared(answer) = self.ask_node(&wide, other, to, question).await?
                else {
                    return None;
                };
                done.bytes += (asked + encode_answer(&answer, &limits).len()) as u64;
                if let Err(error) = self.shared.node.table_go_on(&mut exchange, answer) {
                    let region = other;
                    tracing::warn!(target: "voussoir::quorum", region, %error, "not compared");
                    return None;
                }
                pace.keep(done.bytes).await;
            }
            let before = done.repaired;
            // No key is empty, whatever a peer's tree says.
            let store_keys = exchange.differing().filter(|key| key.len() > 1);
            let mut keys: Vec<Bytes> = store_keys.map(|key| key.slice(1..)).collect();
            keys.reverse();
            // Ends: each turn takes at least one of them.
            while !keys.is_empty() {
                let at = keys.len().saturating_sub(FETCHED_KEYS);
                let asked: Vec<Bytes> = keys.split_off(at).into_iter().rev().collect();
                let question = Question::Fetch { keys: asked.clone() };
                let Answer::Fetched { states } = self.ask_node(&wide, other, to, question).await?
                else {
                    return None;
                };
                if states.is_empty() || states.len() > asked.len() {
                    return None;
                }
                keys.extend(asked[states.len()..].iter().rev().cloned());
                let theirs = asked.into_iter().zip(states).collect();
                self.repair(&local, &wide, (other, epoch, &scope), theirs, done).await?;
                pace.keep(done.bytes).await;
            }
            if !exchange.is_cut() || done.repaired == before {
                return (!exchange.is_cut() && done.left == 0).then_some(());
            }
        }
    }

    /// Makes keys equal in both regions.
    async fn repair(
        &self,
        local: &Arc<dyn Link>,
        wide: &Arc<dyn Link>,
        (other, epoch, scope): (u64, u64, &crate::caller::Scope),
        theirs: Vec<(Bytes, Value)>,
        done: &mut Progress,
    ) -> Option<()> {
        let (mut lacking, mut bytes) = (Vec::new(), 0);
        for (key, theirs) in theirs {
            done.bytes += bytes_of(&theirs) as u64;
            let own = self.shared.node.own_state(scope, key.clone()).await?;
            let mut merged = own.clone();
            merged.merge(theirs.clone());
            let mut is_held = true;
            if !own.includes(&merged) {
                let fate = self.merge(local, key.clone(), merged.clone(), scope.epoch).await;
                is_held = done.is_held(fate);
                if theirs.includes(&merged) {
                    done.repaired += u64::from(is_held);
                }
            }
            if !theirs.includes(&merged) {
                let len = bytes_of(&merged) + key.len();
                if bytes + len > MAX_STATE_BYTES && !lacking.is_empty() {
                    self.give(wide, (other, epoch), std::mem::take(&mut lacking), done).await?;
                    bytes = 0;
                }
                (bytes, done.bytes) = (bytes + len, done.bytes + len as u64);
                lacking.push(((key, merged), is_held));
            }
        }
        if lacking.is_empty() {
            return Some(());
        }
        self.give(wide, (other, epoch), lacking, done).await
    }

    /// Sends states to the other region, each with whether the own one holds it.
    async fn give(
        &self,
        wide: &Arc<dyn Link>,
        (other, epoch): (u64, u64),
        entries: Vec<((Bytes, Value), bool)>,
        done: &mut Progress,
    ) -> Option<()> {
        let (entries, held): (Vec<_>, Vec<bool>) = entries.into_iter().unzip();
        let count = entries.len();
        let fates = self.send(wide, other, epoch, entries).await?;
        if fates.len() != count {
            return None;
        }
        for (fate, is_held) in fates.into_iter().zip(held) {
            done.repaired += u64::from(done.is_held(fate) && is_held);
        }
        Some(())
    }
}
