//! Which segments are rewritten: those of which the least has to be moved.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::HEAD_BYTES;
use crate::core::view::Extent;
use crate::engine::Engine;
use crate::engine::log::LogInner;
use crate::engine::reader::{Sought, find_index, read_directory};
use crate::engine::segment::Segment;
use crate::error::ReadError;
use crate::format::frame::{HEADER_BYTES, SECTION_BYTES};
use crate::format::index::{BatchRef, DIRECTORY_ENTRY, DirectoryEntry, ENTRY};
use crate::format::{FRAMES_AT, TRAILER_BYTES, padded};

/// A segment is a victim when at most so much of it has to be moved, in percent.
const LIVE_PERCENT_MAX: u64 = 50;
/// The most victims of one round: what a crash loses of the work is bounded.
const VICTIMS_MAX: usize = 64;
/// Bytes of a moved batch beside its payload, and at most so many to pad that.
const BATCH_BYTES: u64 = (HEAD_BYTES + ENTRY) as u64;
const PADDING_MAX: u64 = 7;

/// What a segment holds, by log and first position.
type Directory = HashMap<(u64, u64), DirectoryEntry>;

/// What one round is to do.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) victims: Vec<Arc<Segment>>,
    /// By log and position.
    pub(super) items: Vec<Item>,
}

/// What one log has in one victim.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) log: Arc<LogInner>,
    /// Number of the log's incarnation.
    pub(super) number: u64,
    pub(super) segment: Arc<Segment>,
    pub(super) positions: Range<u64>,
    /// LSN of its last batch there.
    last: u64,
}

/// A segment that may be a victim.
#[derive(Debug)]
struct Candidate {
    segment: Arc<Segment>,
    items: Vec<Item>,
    /// A log that is damaged has something here, which stays for whoever repairs it.
    is_barred: bool,
}

impl Item {
    /// Whether the log still has any of these positions in the victim.
    pub(super) fn counts(&self, positions: Range<u64>) -> bool {
        let view = self.log.view.read();
        let has = |extent: &Extent| {
            Arc::ptr_eq(&extent.segment, &self.segment)
                && extent.first < positions.end
                && positions.start < extent.end
        };
        view.bounds.number == self.number && view.extents().any(has)
    }

    /// Its batches, by position.
    pub(super) fn batches(&self, engine: &Engine) -> Result<Vec<BatchRef>, ReadError> {
        let Range { start, end } = self.positions;
        let sought = Sought { number: self.number, position: start, last: Some(self.last) };
        // Not for the cache: nobody looks for these again once they have been moved.
        let all = engine.find_batches(&self.segment, sought)?;
        let from = all.partition_point(|batch| batch.first <= start).saturating_sub(1);
        let counts = |batch: &&BatchRef| batch.first < end;
        Ok(all[from..].iter().take_while(counts).copied().collect())
    }

    /// Bytes that its copy takes at most. `None` when its batches cannot be found.
    fn cost(&self, engine: &Engine, directory: &Directory) -> Option<u64> {
        let entry = directory.get(&(self.number, self.positions.start));
        let whole = entry.filter(|entry| entry.end == self.positions.end);
        let batches = match whole {
            Some(entry) => {
                let each = BATCH_BYTES + PADDING_MAX;
                u64::from(entry.bytes) + u64::from(entry.count) * each
            }
            None => {
                let batches = self.batches(engine).ok()?;
                batches.iter().map(|batch| padded(u64::from(batch.length)) + BATCH_BYTES).sum()
            }
        };
        Some(batches + DIRECTORY_ENTRY as u64)
    }
}

impl Engine {
    /// Chooses victims whose batches fit into one segment, the cheapest first. `None` when that
    /// would not free a segment. `number` is that of the plan.
    pub(super) fn plan_round(&self, number: u64) -> Option<Plan> {
        let heads = (HEADER_BYTES + 2 * SECTION_BYTES) as u64;
        let room = self.config.segment_bytes - FRAMES_AT - TRAILER_BYTES - heads;
        let most = room / 100 * LIVE_PERCENT_MAX;
        let mut priced: Vec<(u64, Candidate)> = self
            .candidates(number)
            .into_iter()
            .filter_map(|candidate| Some((self.price(&candidate, most)?, candidate)))
            .collect();
        priced.sort_by_key(|(cost, candidate)| (*cost, candidate.segment.sequence));
        let (mut plan, mut cost) = (Plan { victims: Vec::new(), items: Vec::new() }, 0);
        for (more, candidate) in priced.into_iter().take(VICTIMS_MAX) {
            cost += more;
            if cost > room {
                break;
            }
            plan.victims.push(candidate.segment);
            plan.items.extend(candidate.items);
        }
        plan.items.sort_by_key(|item| (item.number, item.positions.start));
        // One segment is written, so that two are needed to gain one.
        (plan.victims.len() > 1).then_some(plan)
    }

    /// Full segments, with what of them counts at this moment.
    fn candidates(&self, plan: u64) -> Vec<Candidate> {
        let mut candidates: Vec<Candidate> = self
            .space
            .movable(plan)
            .into_iter()
            .map(|segment| Candidate { segment, items: Vec::new(), is_barred: false })
            .collect();
        let places: HashMap<u64, usize> = candidates
            .iter()
            .enumerate()
            .map(|(place, candidate)| (candidate.segment.sequence, place))
            .collect();
        // Also logs whose deletion has been taken and not yet been written.
        for log in self.logs_and_handles() {
            let view = log.view.read();
            for extent in view.extents() {
                let Some(place) = places.get(&extent.segment.sequence) else { continue };
                let candidate = &mut candidates[*place];
                candidate.is_barred |= view.bounds.damage.is_some();
                candidate.items.push(Item {
                    log: Arc::clone(&log),
                    number: view.bounds.number,
                    segment: Arc::clone(&extent.segment),
                    positions: extent.first..extent.end,
                    last: extent.last,
                });
            }
        }
        candidates.retain(|candidate| !candidate.is_barred);
        candidates
    }

    /// Bytes that the copies of what counts in a segment take at most. `None` for more than `most`,
    /// which is found out without a look at the rest, and for a segment whose index cannot be used:
    /// an opening gives each segment its index that has lost no more than that.
    fn price(&self, candidate: &Candidate, most: u64) -> Option<u64> {
        let segment = &candidate.segment;
        // Past the cache: a plan reads more directories than it holds, and each of them once.
        let index = find_index(segment).ok()??;
        let directory = read_directory(segment, &index).ok()??;
        let directory: Directory =
            directory.into_iter().map(|entry| ((entry.log, entry.first), entry)).collect();
        let mut cost = 0;
        for item in &candidate.items {
            cost += item.cost(self, &directory)?;
            if cost > most {
                return None;
            }
        }
        Some(cost)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::{Config, MemoryFiles};

    /// A log may have records in each segment: commits must not wait while they are looked through.
    #[test]
    fn commits_are_taken_while_a_plan_looks_at_a_log() {
        let engine = crate::recovery::open(Arc::new(MemoryFiles::new()), Config::manual()).unwrap();
        let log = {
            let bounds = crate::core::bounds::LogBounds { number: 1, ..Default::default() };
            engine.state.lock().insert("planned", 1, bounds, 0)
        };
        let engine = &engine;
        std::thread::scope(|scope| {
            let (begun, begins) = mpsc::channel();
            let held = log.view.write();
            let planner = scope.spawn(move || {
                begun.send(()).unwrap();
                engine.candidates(1)
            });
            begins.recv().unwrap();
            // The planner waits for the log sooner or later.
            for _ in 0..50 {
                let state = engine.state.try_lock_for(Duration::from_secs(5));
                assert!(state.is_some(), "the state is locked while the plan looks at a log");
                drop(state);
                std::thread::sleep(Duration::from_millis(1));
            }
            drop(held);
            assert!(planner.join().unwrap().is_empty());
        });
    }
}
