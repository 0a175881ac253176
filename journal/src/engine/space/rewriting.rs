//! The segments that rewriting takes and gives back.

use std::sync::Arc;
use std::time::Duration;

use super::{Inner, Keeper, Need, PrepareError, Space};
use crate::config::Config;
use crate::core::reserve::RESERVE_SEGMENTS;
use crate::engine::segment::Segment;
use crate::error::Fault;

/// Rewriting begins when so much of the pool is in use, in percent.
const MARK_PERCENT: usize = 75;

/// With so many pinned segments rewriting begins.
pub(super) fn rewrite_mark(config: &Config) -> usize {
    if config.rewrite_bytes_per_second == 0 {
        return usize::MAX;
    }
    ((config.max_segments() + RESERVE_SEGMENTS) * MARK_PERCENT).div_ceil(100)
}

impl Inner {
    /// Whether this journal rewrites segments at all.
    pub(super) fn rewrites(&self) -> bool {
        self.rewrite_mark != usize::MAX
    }
}

impl Space {
    /// Full segments that hold something which counts, with an index, and a durable table after
    /// them, for the plan with this number.
    pub(crate) fn movable(&self, plan: u64) -> Vec<Arc<Segment>> {
        let inner = self.inner.lock();
        let movable = |segment: &&Arc<Segment>| {
            let sequence = segment.sequence;
            segment.pinned()
                && segment.is_movable(plan)
                && (sequence < inner.base || segment.is_rewritten())
                && !inner.seals.iter().any(|seal| seal.segment.sequence == sequence)
        };
        inner.sealed.values().filter(movable).cloned().collect()
    }

    /// Something was released: while there is no room, that may have made victims.
    pub(crate) fn note_released(&self) {
        let mut inner = self.inner.lock();
        if inner.stuck && inner.rewrites() && !inner.victims_due {
            inner.victims_due = true;
            drop(inner);
            self.changed.notify_all();
        }
    }

    /// Somebody needs more room than there is. Where no spare can be prepared victims are looked
    /// for anyway, and who asked again and again would keep a full disk from being tried again.
    pub(crate) fn ask_for_victims(&self) {
        let mut inner = self.inner.lock();
        if inner.rewrites() && !inner.rewriting && !inner.stuck {
            (inner.victims_due, inner.victims_asked) = (true, true);
            drop(inner);
            self.changed.notify_all();
        }
    }

    /// Whether victims have to be looked for; they are from now on.
    pub(crate) fn take_victims_due(&self) -> bool {
        let mut inner = self.inner.lock();
        inner.victims_asked = false;
        std::mem::take(&mut inner.victims_due)
    }

    /// Whether appends wait for what a round frees.
    pub(crate) fn needs_room(&self) -> bool {
        let inner = self.inner.lock();
        inner.blocked || inner.stuck
    }

    /// A round begins.
    pub(crate) fn round_begins(&self) {
        self.inner.lock().rewriting = true;
    }

    /// No spare can be prepared: answers whether a round is under way that may change that.
    pub(crate) fn block(&self) -> bool {
        let mut inner = self.inner.lock();
        inner.blocked = inner.rewriting;
        inner.blocked
    }

    /// A round has ended, and these slots are free.
    pub(crate) fn round_ends(&self, free: &[u32]) {
        {
            let mut inner = self.inner.lock();
            inner.free.extend_from_slice(free);
            (inner.rewriting, inner.blocked, inner.stuck) = (false, false, false);
            inner.victims_due = true;
        }
        self.changed.notify_all();
    }

    /// Waits between two pieces. False when there is something more urgent to do.
    pub(crate) fn rest(&self, time: Duration) -> bool {
        let mut inner = self.inner.lock();
        let rests = |inner: &mut Inner| {
            Self::need_of(inner) == Need::Rewrite && !inner.blocked && !inner.stuck
        };
        self.changed.wait_while_for(&mut inner, rests, time);
        Self::need_of(&inner) == Need::Rewrite
    }
}

impl Keeper {
    /// A segment to move batches to, unless there is none. It is not in the manifest until
    /// [`replace`](Self::replace).
    ///
    /// It takes a file that is free, or a spare beyond the reserve. When no segment can be prepared
    /// it takes one of the reserve, even the last: a round ends without any further commit, and
    /// gives back more than it took, or the file itself when a victim turns out to be damaged.
    pub(crate) fn take_target(
        &mut self,
        space: &Space,
        durable: u64,
        is_urgent: bool,
    ) -> Result<Option<Arc<Segment>>, Fault> {
        let dead = space.take_dead(durable);
        if !dead.is_empty() {
            self.strike(&dead);
            self.write_manifest()?;
        }
        let (slot, spare) = {
            let mut inner = space.inner.lock();
            inner.free.extend(dead.iter().map(|segment| segment.slot));
            let left = if is_urgent { 0 } else { RESERVE_SEGMENTS };
            inner.target_refused = false;
            match inner.free.pop() {
                Some(slot) => (Some(slot), None),
                None if inner.spares.len() > left => {
                    let of_reserve = inner.spares.len() <= RESERVE_SEGMENTS;
                    inner.lent += usize::from(of_reserve);
                    (None, inner.spares.pop_back())
                }
                None => {
                    inner.target_missing = true;
                    (None, None)
                }
            }
        };
        if let Some(spare) = &spare {
            self.strike(std::slice::from_ref(spare));
            self.write_manifest()?;
        }
        let Some(slot) = slot.or(spare.map(|spare| spare.slot)) else { return Ok(None) };
        match self.prepare_slot(space, slot, None, true) {
            Ok(target) => Ok(Some(target)),
            Err(PrepareError::Full(_)) => {
                let mut inner = space.inner.lock();
                inner.free.push(slot);
                inner.target_missing = true;
                inner.target_refused = true;
                Ok(None)
            }
            Err(PrepareError::Fault(fault)) => Err(fault),
        }
    }

    /// Puts a segment of moved frames into the place of those whose batches it has, all of which
    /// must be durable in it. Nothing may read those any more. Answers which files are free.
    pub(crate) fn replace(
        &mut self,
        space: &Space,
        victims: &[Arc<Segment>],
        target: &Arc<Segment>,
    ) -> Result<Vec<u32>, Fault> {
        self.live.push(Arc::clone(target));
        let victims: Vec<Arc<Segment>> = {
            let inner = space.inner.lock();
            // One that became free meanwhile may have been used again.
            let is_full = |victim: &&Arc<Segment>| inner.sealed.contains_key(&victim.sequence);
            victims.iter().filter(is_full).filter(|victim| !victim.pinned()).cloned().collect()
        };
        self.strike(&victims);
        self.write_manifest()?;
        let mut inner = space.inner.lock();
        for victim in &victims {
            inner.sealed.remove(&victim.sequence);
        }
        Ok(victims.iter().map(|victim| victim.slot).collect())
    }
}

impl Space {
    /// A segment of moved frames is about to hold batches that readers look for.
    pub(crate) fn add_full(&self, target: &Arc<Segment>) {
        self.inner.lock().sealed.insert(target.sequence, Arc::clone(target));
    }
}
