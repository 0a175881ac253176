//! What a work queue keeps on disk of its records. Replay and live writes apply the same events.

use std::collections::BTreeMap;

/// A record of a work queue. In the order of delivery at equal rank: new records before redriven
/// dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Slot {
    /// The record at this offset of the source.
    Log(u64),
    /// The dead letter with this id, which has been redriven.
    Dead(u64),
}

/// A change of the ledger. Events of one write are applied together or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A process has opened the work queue. Leases of earlier incarnations have ended.
    Opened { incarnation: u64 },
    /// The record is about to be handed out for the `count`th time.
    Delivered { slot: Slot, count: u32 },
    /// The record was not handed out after all: its receiver was dropped.
    Returned { slot: Slot, count: u32 },
    /// The record is done.
    Acked { slot: Slot },
    /// The record is not delivered before `until`, in ns since the UNIX epoch.
    Delayed { slot: Slot, until: u64 },
    /// The record is a dead letter. A redriven one keeps its id.
    Died { slot: Slot, dead: u64 },
    /// The dead letter is to be delivered again, with a count of 0.
    Redriven { dead: u64 },
    /// The dead letter is discarded.
    Purged { dead: u64 },
    /// The source has no records at these offsets.
    Skipped { from: u64, to: u64 },
}

/// What has happened to an unsettled record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Deliveries so far.
    pub(crate) count: u32,
    /// Time before which it is not delivered, in ns since the UNIX epoch.
    pub(crate) until: u64,
}

/// A dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dead {
    /// Offset of the record in the source.
    pub(crate) offset: u64,
    /// Deliveries before its death, or since its redrive.
    pub(crate) mark: Mark,
    /// Whether it is being delivered again.
    pub(crate) is_redriven: bool,
}

/// The durable state. Each record is in one state: settled (below the floor or in a range), marked
/// (delivered or delayed before), a dead letter, or new, which takes no room here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ledger {
    /// How often the work queue has been opened and written to.
    pub(crate) incarnation: u64,
    /// Lowest offset that is not settled. Derived from the settled ranges alone.
    pub(crate) floor: u64,
    /// Settled offsets above the floor, start to end. Invariant: the ranges neither overlap nor
    /// touch, so there are at most as many as unsettled records between them.
    pub(crate) settled: BTreeMap<u64, u64>,
    /// Invariant: no offset here is settled.
    pub(crate) marks: BTreeMap<u64, Mark>,
    /// Dead letters by id. Invariant: all ids are below `next_dead`.
    pub(crate) dead: BTreeMap<u64, Dead>,
    /// Id of the next dead letter.
    pub(crate) next_dead: u64,
}

impl Ledger {
    /// Whether the record at `offset` is done or a dead letter.
    pub(crate) fn is_settled(&self, offset: u64) -> bool {
        self.next_unsettled(offset) != offset
    }

    /// The first offset at or above `from` that is not settled.
    pub(crate) fn next_unsettled(&self, from: u64) -> u64 {
        if from < self.floor {
            return self.floor;
        }
        match self.settled.range(..=from).next_back() {
            Some((_, end)) if *end > from => *end,
            _ => from,
        }
    }

    /// The parts of `from..to` that are not settled.
    pub(crate) fn unsettled(&self, from: u64, to: u64) -> Vec<(u64, u64)> {
        let mut parts = Vec::new();
        let mut start = self.next_unsettled(from);
        // Ends: `start` rises by at least one with each round.
        while start < to {
            let end = self.settled.range(start..).next().map_or(to, |(end, _)| to.min(*end));
            parts.push((start, end));
            start = self.next_unsettled(end);
        }
        parts
    }

    /// What has happened to the record at `offset`.
    pub(crate) fn mark(&self, offset: u64) -> Mark {
        self.marks.get(&offset).copied().unwrap_or_default()
    }

    /// The marks, or the settled ranges if those are more, behind the first `max_records` unsettled
    /// records. None unless a configuration with a higher `max_records` left them.
    pub(crate) fn beyond(&self, max_records: usize) -> usize {
        let (mut left, mut from) = (max_records as u64, self.floor);
        for (start, end) in &self.settled {
            if start - from >= left {
                break;
            }
            left -= start - from;
            from = *end;
        }
        let from = from.saturating_add(left);
        self.marks.range(from..).count().max(self.settled.range(from..).count())
    }

    /// Ids below this one are no longer dead letters.
    pub(crate) fn dead_floor(&self) -> u64 {
        self.dead.keys().next().copied().unwrap_or(self.next_dead)
    }

    /// The lowest id of a dead letter that is not being redriven.
    pub(crate) fn first_listed(&self) -> u64 {
        let listed = self.dead.iter().find(|(_, dead)| !dead.is_redriven);
        listed.map_or(self.next_dead, |(id, _)| *id)
    }

    fn settle(&mut self, from: u64, to: u64) {
        let (mut start, mut end) = (from, to);
        if let Some((&before, &reach)) = self.settled.range(..=from).next_back()
            && reach >= from
        {
            (start, end) = (before, end.max(reach));
        }
        // Ends: each round removes a range.
        while let Some((&next, &reach)) = self.settled.range(start..=end).next() {
            self.settled.remove(&next);
            end = end.max(reach);
        }
        if start <= self.floor {
            self.floor = self.floor.max(end);
        } else {
            self.settled.insert(start, end);
        }
    }

    /// The mark of a record that can be delivered.
    fn live(&mut self, slot: Slot) -> Result<&mut Mark, &'static str> {
        match slot {
            Slot::Log(offset) if self.is_settled(offset) => Err("the record is settled"),
            Slot::Log(offset) => Ok(self.marks.entry(offset).or_default()),
            Slot::Dead(id) => match self.dead.get_mut(&id) {
                Some(dead) if dead.is_redriven => Ok(&mut dead.mark),
                _ => Err("the dead letter is not redriven"),
            },
        }
    }

    fn listed(&mut self, id: u64) -> Result<&mut Dead, &'static str> {
        let dead = self.dead.get_mut(&id).filter(|dead| !dead.is_redriven);
        dead.ok_or("there is no such dead letter")
    }

    /// Applies an event.
    ///
    /// # Errors
    /// The event cannot follow those before it: the ledger is damaged.
    pub(crate) fn apply(&mut self, event: &Event) -> Result<(), &'static str> {
        match *event {
            Event::Opened { incarnation } => {
                if incarnation <= self.incarnation {
                    return Err("the incarnation does not rise");
                }
                self.incarnation = incarnation;
            }
            Event::Delivered { slot, count } => {
                let mark = self.live(slot)?;
                if mark.count.checked_add(1) != Some(count) {
                    return Err("the delivery count has a gap");
                }
                *mark = Mark { count, until: 0 };
            }
            Event::Returned { slot, count } => {
                let mark = self.live(slot)?;
                if count.checked_add(1) != Some(mark.count) {
                    return Err("the returned delivery is not the last one");
                }
                mark.count = count;
            }
            Event::Delayed { slot, until } => self.live(slot)?.until = until,
            Event::Acked { slot } => self.acked(slot)?,
            Event::Died { slot, dead } => self.died(slot, dead)?,
            Event::Redriven { dead } => {
                let dead = self.listed(dead)?;
                (dead.is_redriven, dead.mark) = (true, Mark::default());
            }
            Event::Purged { dead } => {
                self.listed(dead)?;
                self.dead.remove(&dead);
            }
            Event::Skipped { from, to } => {
                if from >= to {
                    return Err("the skipped range is empty");
                }
                let marked: Vec<u64> = self.marks.range(from..to).map(|(at, _)| *at).collect();
                for offset in marked {
                    self.marks.remove(&offset);
                }
                self.settle(from, to);
            }
        }
        Ok(())
    }

    fn acked(&mut self, slot: Slot) -> Result<(), &'static str> {
        self.live(slot)?;
        match slot {
            Slot::Log(offset) => {
                self.marks.remove(&offset);
                self.settle(offset, offset + 1);
            }
            Slot::Dead(id) => drop(self.dead.remove(&id)),
        }
        Ok(())
    }

    fn died(&mut self, slot: Slot, id: u64) -> Result<(), &'static str> {
        let mark = *self.live(slot)?;
        match slot {
            Slot::Log(offset) => {
                if id != self.next_dead {
                    return Err("the id of the dead letter is not the next one");
                }
                self.next_dead += 1;
                self.dead.insert(id, Dead { offset, mark, is_redriven: false });
                self.marks.remove(&offset);
                self.settle(offset, offset + 1);
            }
            Slot::Dead(redriven) => {
                if id != redriven {
                    return Err("the dead letter changes its id");
                }
                if let Some(dead) = self.dead.get_mut(&id) {
                    dead.is_redriven = false;
                }
            }
        }
        Ok(())
    }
}
