//! From the state to the groups of a table.

use std::collections::HashMap;
use std::sync::Arc;

use super::local;
use super::state::{Entry, State};
use super::stats::Availability;
use super::table::{CompiledGroup, Table, WHOLE};
use crate::config::{Config, OnPanic};
use crate::core::{FULL, LevelHealth, MAX_IN_FLIGHT, PrioritySplit, split_priorities, split_zone};
use crate::endpoint::Endpoint;
use crate::random::Random;
use crate::strategy::{Group, Member, Select, Slot, Strategy};

/// Endpoints of one priority: all, or those inside or outside of the caller's zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Part {
    All,
    Local,
    Remote,
}

/// The name of a group, by which its compiled form is found again.
pub(super) type GroupKey = (u8, Part);

/// A group and its compiled form.
type Compiled = (GroupKey, Arc<dyn Select>);

/// What a table is compiled from.
pub(super) struct Plan {
    groups: Vec<PlannedGroup>,
    next_change: u64,
    sessions: HashMap<u64, Arc<Endpoint>>,
    max_in_flight: u32,
    /// Whether endpoints that had left the set serve no more.
    pub(super) has_dropped: bool,
    pub(super) availability: Availability,
}

struct PlannedGroup {
    key: GroupKey,
    /// Share of the traffic, 0 to 1.
    share: f64,
    /// Invariant: not empty.
    members: Vec<Member>,
    slots: Vec<Slot>,
    previous: Option<Arc<dyn Select>>,
}

/// One priority.
struct Level<'a> {
    priority: u8,
    entries: Vec<&'a Entry>,
    split: PrioritySplit,
}

pub(super) fn plan(state: &mut State, config: &Config, now: u64) -> Plan {
    let has_dropped = state.drop_left(config, now);
    let next_change = state.next_change(config, now);
    let state = &*state;
    let mut levels = levels(state);
    let settings = &config.priorities;
    let health: Vec<LevelHealth> = levels.iter().map(|level| health(&level.entries)).collect();
    let splits = split_priorities(&health, settings.overprovisioning, settings.panic_threshold);
    for (level, split) in levels.iter_mut().zip(splits) {
        level.split = split;
    }
    if health.iter().all(|health| health.healthy == 0) {
        // Nothing is healthy: the first priority that a panic can use takes everything.
        let usable = |level: &Level<'_>| !level.candidates(settings.on_panic).is_empty();
        let first = levels.iter().position(usable);
        for (at, level) in levels.iter_mut().enumerate() {
            level.split.share = f64::from(u8::from(first == Some(at)));
        }
    }
    let mut groups = Vec::new();
    for level in &levels {
        split_level(level, state, config, now, &mut groups);
    }
    let total = state.entries.len();
    let healthy = state.entries.iter().filter(|entry| entry.is_usable()).count();
    let serves = |entry: &&Entry| entry.is_healthy();
    let session = |entry: &Entry| (entry.endpoint.name_hash(), Arc::clone(&entry.endpoint));
    Plan {
        groups,
        next_change,
        sessions: state.entries.iter().filter(serves).map(session).collect(),
        has_dropped,
        max_in_flight: config.max_in_flight.unwrap_or(MAX_IN_FLIGHT),
        availability: Availability { healthy, total, refused_ejections: state.refused_ejections },
    }
}

fn levels(state: &State) -> Vec<Level<'_>> {
    let mut priorities: Vec<u8> = state.serving().map(|entry| entry.config.priority).collect();
    priorities.sort_unstable();
    priorities.dedup();
    let level = |priority| Level {
        priority,
        entries: state.serving().filter(|entry| entry.config.priority == priority).collect(),
        split: PrioritySplit { share: 0.0, panics: false },
    };
    priorities.into_iter().map(level).collect()
}

fn health(entries: &[&Entry]) -> LevelHealth {
    let sum = |counts: fn(&Entry) -> bool| {
        let counted = entries.iter().filter(|entry| counts(entry));
        counted.map(|entry| u64::from(entry.config.weight)).sum()
    };
    LevelHealth {
        healthy: sum(Entry::is_usable),
        known: sum(Entry::is_usable_in_panic),
        total: sum(|entry| !entry.is_draining()),
    }
}

impl<'a> Level<'a> {
    /// The endpoints that may get traffic.
    fn candidates(&self, on_panic: OnPanic) -> Vec<&'a Entry> {
        let all = self.entries.iter().copied();
        match (self.split.panics, on_panic) {
            (false, _) => all.filter(|entry| entry.is_usable()).collect(),
            (true, OnPanic::UseAll) => all.filter(|entry| entry.is_usable_in_panic()).collect(),
            (true, OnPanic::Reject) => Vec::new(),
        }
    }
}

/// The groups of one priority: one, or one for the local zone and one for the others.
fn split_level(
    level: &Level<'_>,
    state: &State,
    config: &Config,
    now: u64,
    groups: &mut Vec<PlannedGroup>,
) {
    let candidates = level.candidates(config.priorities.on_panic);
    let mut push = |part: Part, share: f64, is_in: &dyn Fn(&Entry) -> bool| {
        let chosen: Vec<&Entry> = candidates.iter().copied().filter(|entry| is_in(entry)).collect();
        // A group without a share still takes requests when all others are full.
        if chosen.is_empty() {
            return;
        }
        let positions: HashMap<u64, usize> =
            chosen.iter().enumerate().map(|(at, entry)| (entry.endpoint.id(), at)).collect();
        let slot = |entry: &&Entry| Slot {
            weight: entry.config.weight,
            member: positions.get(&entry.endpoint.id()).copied(),
        };
        let key = (level.priority, part);
        groups.push(PlannedGroup {
            key,
            share: share * level.split.share,
            slots: level.entries.iter().filter(|entry| is_in(entry)).map(slot).collect(),
            members: members(&chosen, config, now),
            previous: state.selects.get(&key).cloned(),
        });
    };
    let Some(zone) = config.zone.as_ref().filter(|_| !level.split.panics) else {
        push(Part::All, 1.0, &|_| true);
        return;
    };
    let is_local = |entry: &Entry| entry.config.zone.as_deref() == Some(&zone.local);
    let local: Vec<&Entry> =
        level.entries.iter().copied().filter(|entry| is_local(entry)).collect();
    let share = split_zone(
        health(&local),
        health(&level.entries).healthy,
        config.priorities.overprovisioning,
        zone.callers_share,
    );
    push(Part::Local, share, &is_local);
    push(Part::Remote, 1.0 - share, &|entry| !is_local(entry));
}

/// Weights after slow start, in steps of 1 / [`FULL`].
fn members(chosen: &[&Entry], config: &Config, now: u64) -> Vec<Member> {
    let member = |entry: &&Entry| Member {
        endpoint: Arc::clone(&entry.endpoint),
        weight: entry.config.weight * entry.ramp(config, now).map_or(FULL, |(step, _)| step),
    };
    chosen.iter().map(member).collect()
}

impl Plan {
    /// Compiles the groups. Also returns the compiled forms by group.
    pub(super) fn compile(
        self,
        strategy: &dyn Strategy,
        random: &Random,
    ) -> (Table, Vec<Compiled>) {
        let mut compiled = Vec::with_capacity(self.groups.len());
        let mut sum = 0.0;
        let compile = |group: PlannedGroup| {
            let given = Group { members: &group.members, slots: &group.slots };
            let select = strategy.compile(given, group.previous.as_deref(), random);
            compiled.push((group.key, Arc::clone(&select)));
            sum += group.share;
            // The sum of all shares may miss 1 by rounding.
            let end = if sum > 1.0 - 1e-9 { WHOLE } else { (sum * WHOLE as f64) as u64 };
            let (members, max_in_flight) = (group.members.into(), self.max_in_flight);
            CompiledGroup { end, members, max_in_flight, select }
        };
        let groups: Box<[CompiledGroup]> = self.groups.into_iter().map(compile).collect();
        let members = groups.iter().map(|group| group.members.len()).sum::<usize>();
        let table = Table {
            is_kept: members.max(self.sessions.len()) <= local::MAX_KEPT,
            groups,
            next_change: self.next_change,
            keyed: strategy.is_keyed(),
            sessions: self.sessions,
            serial: local::new_serial(),
        };
        (table, compiled)
    }
}
