//! One participant in one partition, as a state machine: which events wait, which calls are due,
//! and what has to be recorded. No clock, no bus, no user code.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::bus::{BusError, Commit, event_bytes, letter_bytes, state_bytes};
use super::config::ChoreographyConfig;
use super::event::{DONE, DeadLetter, DeadReason, Event, NewEvent};
use super::participant::{Participant, Rule};
use crate::config::nanos;
use crate::core::retry_delay;
use crate::digest::digest;

const FORMAT: u8 = 1;
/// Of a wait; those of format 1 are read too.
const WAIT_FORMAT: u8 = 2;
/// Events of one join. More of one kind than of another wait here for the next join.
const MAX_EVENTS_OF_A_WAIT: usize = 64;
/// Bytes of one join, beyond which it takes no more events.
const MAX_BYTES_OF_A_WAIT: usize = 256 << 10;
/// The most bytes that one input records, a tick of no room included. An event: for each of 8 rules
/// a wait or reaction of `MAX_BYTES_OF_A_WAIT` and one event more. A reaction that ended: bodies of
/// [`MAX_PUBLISHED_BYTES`] and 1,000 heads of events or letters.
pub(super) const STEP_BYTES: usize = 3 << 20;
/// Bytes of bodies that one reaction publishes.
pub(super) const MAX_PUBLISHED_BYTES: usize = 1 << 20;

/// The index of a rule, and a key.
type WaitId = (usize, String);

pub(super) enum Input {
    Event(Event),
    Handled {
        number: u64,
        result: Result<Vec<NewEvent>, String>,
    },
    /// Time has passed, or there is room to record what waits for it. As much is recorded as has
    /// `room` bytes, and one thing more; nothing without room.
    Tick {
        room: usize,
    },
}

/// A reaction to run.
#[derive(Clone, Debug)]
pub(super) struct Call {
    /// For [`Input::Handled`].
    pub(super) number: u64,
    pub(super) rule: usize,
    pub(super) key: String,
    pub(super) events: Vec<Event>,
    pub(super) attempt: u32,
}

#[derive(Clone, Debug)]
struct Wait {
    /// Number of the seen event that began it: older waits have smaller ones.
    began: u64,
    /// In the order in which they came. Invariant: 1 to `MAX_EVENTS_OF_A_WAIT`, each of a kind of
    /// the rule, and of one kind none.
    events: Vec<Arrived>,
}

#[derive(Clone, Debug)]
struct Arrived {
    at: u64,
    event: Event,
}

#[derive(Clone, Debug)]
struct Due {
    rule: usize,
    failures: u32,
    retry_at: u64,
    /// In the order of the rule's kinds.
    events: Vec<Event>,
}

/// A join that waits, or a reaction that is to be tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Waiting {
    /// The whole.
    pub saga: String,
    /// The key.
    pub key: String,
    /// The rule.
    pub rule: String,
    /// Kinds that have come.
    pub has: Vec<String>,
    /// Kinds that it waits for. None for a reaction that runs, or is to be tried again.
    pub missing: Vec<String>,
    /// Attempts that failed.
    pub failures: u32,
    /// When the wait began, in ns since the UNIX epoch; for a reaction 0.
    pub since: u64,
    /// When the wait ends, or the next attempt begins, in ns since the UNIX epoch.
    pub until: u64,
}

pub(super) struct Core {
    partition: u32,
    participant: Participant,
    config: ChoreographyConfig,
    rng: fastrand::Rng,
    /// Invariant: the same as `seen_order`, the other way round; at most `max_seen`.
    seen: HashMap<String, u64>,
    seen_order: BTreeMap<u64, String>,
    waits: HashMap<WaitId, Wait>,
    /// Invariant: one for each of `waits`.
    expiries: BTreeSet<(u64, WaitId)>,
    /// Waits whose first kind has not come, by age. The events in them are at most `max_parked`,
    /// after a tick that had room for letters of the others.
    parked: BTreeSet<(u64, WaitId)>,
    parked_events: usize,
    /// By age.
    dues: BTreeMap<u64, Due>,
    /// The dues of each key, the oldest first: that one runs, or waits for its next attempt.
    lanes: HashMap<String, VecDeque<u64>>,
    /// Invariant: for each lane whose first due does not run, its `retry_at`, and its number.
    retries: BTreeSet<(u64, u64)>,
    next_number: u64,
    outputs: VecDeque<Call>,
    /// The last change of each key.
    changes: HashMap<Bytes, Option<Bytes>>,
    /// Without `changes`.
    commit: Commit,
    /// Invariant: the bytes of `changes` and `commit`.
    commit_bytes: usize,
    /// Commits of `open` that are full.
    sealed: Vec<Commit>,
}

impl Core {
    /// A participant with the state that its commits have left. What no longer fits its rules
    /// becomes dead letters.
    pub(super) fn open(
        partition: u32,
        participant: Participant,
        config: ChoreographyConfig,
        limit_bytes: usize,
        state: Vec<(Bytes, Bytes)>,
    ) -> Result<Self, BusError> {
        let seed = config.seed.unwrap_or_else(|| fastrand::u64(..));
        let mut core = Self {
            partition,
            participant,
            rng: fastrand::Rng::with_seed(seed ^ u64::from(partition)),
            config,
            seen: HashMap::new(),
            seen_order: BTreeMap::new(),
            waits: HashMap::new(),
            expiries: BTreeSet::new(),
            parked: BTreeSet::new(),
            parked_events: 0,
            dues: BTreeMap::new(),
            lanes: HashMap::new(),
            retries: BTreeSet::new(),
            next_number: 1,
            outputs: VecDeque::new(),
            changes: HashMap::new(),
            commit: Commit::default(),
            commit_bytes: 0,
            sealed: Vec::new(),
        };
        for (key, value) in state {
            let read = core.load(&key, value);
            read.ok_or(BusError::Garbled { partition })?;
            if core.commit_bytes >= limit_bytes {
                let full = core.take_commit();
                core.sealed.push(full);
            }
        }
        // The next ticks go on with each.
        for lane in core.lanes.values() {
            let first = lane.front().and_then(|number| Some((core.dues.get(number)?, *number)));
            core.retries.extend(first.map(|(due, number)| (due.retry_at, number)));
        }
        Ok(core)
    }

    pub(super) fn step(&mut self, now: u64, input: Input) {
        match input {
            Input::Event(event) => self.arrive(now, event),
            Input::Handled { number, result } => self.handled(now, number, result),
            Input::Tick { room } => self.tick(now, room),
        }
    }

    pub(super) fn poll_output(&mut self) -> Option<Call> {
        self.outputs.pop_front()
    }

    /// When a tick has something to do: 0 for at once.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        if self.parked_events > self.config.max_parked {
            return Some(0);
        }
        let expiry = self.expiries.first().map(|(at, _)| *at);
        let retry = self.retries.first().map(|(at, _)| *at);
        expiry.into_iter().chain(retry).min()
    }

    /// Whether more events may be given to it.
    pub(super) fn has_room(&self) -> bool {
        self.dues.len() < self.config.max_due
    }

    /// Bytes of what has to be recorded.
    pub(super) fn commit_bytes(&self) -> usize {
        self.commit_bytes
    }

    /// What `open` has to record first, each by itself.
    pub(super) fn take_sealed(&mut self) -> Vec<Commit> {
        std::mem::take(&mut self.sealed)
    }

    /// What has to be recorded since the last call.
    pub(super) fn take_commit(&mut self) -> Commit {
        self.commit_bytes = 0;
        let changes = std::mem::take(&mut self.changes);
        let state = changes.into_iter().map(|(key, value)| (self.partition, key, value));
        Commit { state: state.collect(), ..std::mem::take(&mut self.commit) }
    }

    pub(super) fn waiting(&self) -> Vec<Waiting> {
        let rule = |index: usize| &self.participant.rules[index];
        let kinds = |events: &[Event]| events.iter().map(|event| event.kind.clone()).collect();
        let waits = self.waits.iter().map(|((index, key), wait)| Waiting {
            saga: wait.events[0].event.saga.clone(),
            key: key.clone(),
            rule: rule(*index).name.clone(),
            has: wait.events.iter().map(|one| one.event.kind.clone()).collect(),
            missing: rule(*index).kinds.iter().filter(|kind| !wait.has(kind)).cloned().collect(),
            failures: 0,
            since: wait.since(rule(*index)),
            until: wait.expires(rule(*index)),
        });
        let dues = self.dues.values().map(|due| Waiting {
            saga: due.events[0].saga.clone(),
            key: due.events[0].key.clone(),
            rule: rule(due.rule).name.clone(),
            has: kinds(&due.events),
            missing: Vec::new(),
            failures: due.failures,
            since: 0,
            until: due.retry_at,
        });
        waits.chain(dues).collect()
    }

    fn arrive(&mut self, now: u64, event: Event) {
        if self.seen.contains_key(&event.id) {
            return;
        }
        let rules = Arc::clone(&self.participant.rules);
        let matching =
            rules.iter().enumerate().filter(|(_, rule)| rule.kinds.contains(&event.kind));
        let matching: Vec<usize> = matching.map(|(index, _)| index).collect();
        if matching.is_empty() {
            return;
        }
        let number = self.next_number();
        self.see(number, &event.id);
        for index in matching {
            if rules[index].kinds.len() == 1 {
                self.push_due(now, index, vec![event.clone()]);
            } else {
                self.join(now, number, index, event.clone());
            }
        }
    }

    fn see(&mut self, number: u64, id: &str) {
        self.seen.insert(id.to_owned(), number);
        self.seen_order.insert(number, id.to_owned());
        self.put_state(state_key(b's', id.as_bytes()), Some(number.to_le_bytes().to_vec().into()));
        // Two: the limit may have been higher.
        for _ in 0..2 {
            if self.seen.len() > self.config.max_seen
                && let Some((_, oldest)) = self.seen_order.pop_first()
            {
                self.seen.remove(&oldest);
                self.put_state(state_key(b's', oldest.as_bytes()), None);
            }
        }
    }

    fn join(&mut self, now: u64, number: u64, rule: usize, event: Event) {
        let rules = Arc::clone(&self.participant.rules);
        let kinds = &rules[rule].kinds;
        let id = (rule, event.key.clone());
        let is_first = event.kind == kinds[0];
        let old = self.remove_wait(&id);
        let anchored = old.as_ref().is_some_and(|wait| wait.has(&kinds[0]));
        let open = self.waits.len() - self.parked.len();
        let is_full = is_first && !anchored && open >= self.config.max_waits;
        let is_crowded = old.as_ref().is_some_and(|wait| {
            let bytes: usize = wait.events.iter().map(|one| one.event.len_bytes()).sum();
            wait.events.len() >= MAX_EVENTS_OF_A_WAIT || bytes > MAX_BYTES_OF_A_WAIT
        });
        if is_full || is_crowded {
            if let Some(old) = old {
                self.insert_wait(id, old);
            }
            return self.give_up(event, DeadReason::Full);
        }
        let mut wait = old.unwrap_or(Wait { began: number, events: Vec::new() });
        wait.events.push(Arrived { at: now, event });
        let joined = kinds.iter().all(|kind| wait.has(kind)).then(|| wait.take_oldest(kinds));
        self.put_wait(id, wait);
        if let Some(events) = joined {
            self.push_due(now, rule, events);
        }
    }

    /// Records a wait, which ends without events.
    fn put_wait(&mut self, id: WaitId, wait: Wait) {
        let key = wait_key(&self.participant.rules[id.0].name, &id.1);
        if wait.events.is_empty() {
            return self.put_state(key, None);
        }
        self.put_state(key, Some(wait.encode()));
        self.insert_wait(id, wait);
    }

    /// Ends a wait that is not joined: its events become dead letters.
    fn end_wait(&mut self, id: &WaitId) {
        let Some(wait) = self.remove_wait(id) else { return };
        let name = self.participant.rules[id.0].name.clone();
        self.put_state(wait_key(&name, &id.1), None);
        for Arrived { event, .. } in wait.events {
            self.give_up(event, DeadReason::Unmatched);
        }
    }

    fn insert_wait(&mut self, id: WaitId, wait: Wait) {
        let rule = &self.participant.rules[id.0];
        self.expiries.insert((wait.expires(rule), id.clone()));
        if !wait.has(&rule.kinds[0]) {
            self.parked.insert((wait.began, id.clone()));
            self.parked_events += wait.events.len();
        }
        self.waits.insert(id, wait);
    }

    fn remove_wait(&mut self, id: &WaitId) -> Option<Wait> {
        let wait = self.waits.remove(id)?;
        self.expiries.remove(&(wait.expires(&self.participant.rules[id.0]), id.clone()));
        if self.parked.remove(&(wait.began, id.clone())) {
            self.parked_events -= wait.events.len();
        }
        Some(wait)
    }

    fn tick(&mut self, now: u64, room: usize) {
        let limit = self.commit_bytes.saturating_add(room);
        // Ends: each round removes a wait.
        while self.parked_events > self.config.max_parked
            && self.commit_bytes < limit
            && let Some((_, id)) = self.parked.first().cloned()
        {
            self.end_wait(&id);
        }
        // Ends: each round takes at least one event from a wait.
        while let Some((at, id)) = self.expiries.first().cloned()
            && at <= now
            && self.commit_bytes < limit
        {
            self.expire(&id);
        }
        // Ends: each round has the first due of a lane run or end.
        while let Some((at, number)) = self.retries.first().copied()
            && at <= now
            && self.commit_bytes < limit
        {
            self.retries.remove(&(at, number));
            let key = self.dues.get(&number).map(|due| due.events[0].key.clone());
            if let Some(key) = key {
                self.advance(now, &key);
            }
        }
    }

    /// Ends the join whose time is over, or gives up the event that was parked for too long. What
    /// has come since waits for the next join, for its own time.
    fn expire(&mut self, id: &WaitId) {
        let rules = Arc::clone(&self.participant.rules);
        let rule = &rules[id.0];
        let Some(mut wait) = self.remove_wait(id) else { return };
        if !wait.has(&rule.kinds[0]) {
            let Arrived { event, .. } = wait.events.remove(0);
            self.put_wait(id.clone(), wait);
            return self.give_up(event, DeadReason::Unmatched);
        }
        let over = wait.take_oldest(&rule.kinds);
        self.put_wait(id.clone(), wait);
        if let Some(kind) = &rule.on_timeout {
            let event = NewEvent::new(kind, over[0].body.clone());
            self.publish(&rule.name, "timeout", &over[..1], vec![event]);
        }
    }

    fn next_number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number - 1
    }

    fn push_due(&mut self, now: u64, rule: usize, events: Vec<Event>) {
        let number = self.next_number();
        let key = events[0].key.clone();
        let due = Due { rule, failures: 0, retry_at: 0, events };
        self.put_due(number, &due);
        self.dues.insert(number, due);
        let lane = self.lanes.entry(key.clone()).or_default();
        lane.push_back(number);
        if lane.len() == 1 {
            self.advance(now, &key);
        }
    }

    /// Begins the first due of a key, which does not run. One that is late ends, and the next is
    /// left to a tick: each may record an event.
    fn advance(&mut self, now: u64, key: &str) {
        let rules = Arc::clone(&self.participant.rules);
        let Some(number) = self.lanes.get(key).and_then(|lane| lane.front().copied()) else {
            return;
        };
        let Some(due) = self.dues.get(&number) else { return };
        let rule = &rules[due.rule];
        if due.retry_at > now {
            self.retries.insert((due.retry_at, number));
            return;
        }
        let deadline = due.events.iter().filter_map(|event| event.deadline).min();
        if let (Some(kind), Some(_)) = (&rule.late, deadline.filter(|at| *at <= now)) {
            let events = due.events.clone();
            let event = NewEvent::new(kind, events[0].body.clone());
            self.publish(&rule.name, "late", &events, vec![event]);
            self.remove_due(number);
            return self.tick_lane(key);
        }
        let ids: Vec<&str> = due.events.iter().map(|event| &*event.id).collect();
        let key = digest(&[&[&self.participant.name, &*rule.name][..], &ids].concat());
        let events = due.events.clone();
        let attempt = due.failures + 1;
        self.outputs.push_back(Call { number, rule: due.rule, key, events, attempt });
    }

    /// Leaves the first due of a key to a tick.
    fn tick_lane(&mut self, key: &str) {
        let first = self.lanes.get(key).and_then(VecDeque::front);
        if let Some((number, due)) = first.and_then(|at| Some((*at, self.dues.get(at)?))) {
            self.retries.insert((due.retry_at, number));
        }
    }

    fn handled(&mut self, now: u64, number: u64, result: Result<Vec<NewEvent>, String>) {
        let rules = Arc::clone(&self.participant.rules);
        let Some(due) = self.dues.get_mut(&number) else { return };
        let (rule, key) = (&rules[due.rule], due.events[0].key.clone());
        let max = self.config.max_published;
        let result = result.and_then(|events| match events.len() {
            count if count > max => Err(format!("it published {count} events, at most {max}")),
            _ => Ok(events),
        });
        match result {
            Ok(events) => {
                let causes = due.events.clone();
                self.publish(&rule.name, "", &causes, events);
                self.remove_due(number);
            }
            Err(why) => {
                due.failures += 1;
                let attempts = due.failures;
                if attempts >= rule.retry.max_attempts {
                    let name = rule.name.clone();
                    let why = DeadReason::Failed { rule: name, attempts, why: short(&why) };
                    for event in due.events.clone() {
                        self.give_up(event, why.clone());
                    }
                    self.remove_due(number);
                } else {
                    let delay = retry_delay(&rule.retry, attempts, &mut self.rng);
                    due.retry_at = now.saturating_add(delay);
                    let due = due.clone();
                    self.put_due(number, &due);
                }
            }
        }
        self.advance(now, &key);
    }

    fn remove_due(&mut self, number: u64) {
        let Some(due) = self.dues.remove(&number) else { return };
        self.retries.remove(&(due.retry_at, number));
        self.put_state(state_key(b'd', &number.to_be_bytes()), None);
        let key = &due.events[0].key;
        if let Some(lane) = self.lanes.get_mut(key) {
            lane.retain(|other| *other != number);
            if lane.is_empty() {
                self.lanes.remove(key);
            }
        }
    }

    /// Publishes what follows from `causes`.
    fn publish(&mut self, rule: &str, how: &str, causes: &[Event], events: Vec<NewEvent>) {
        let name = Arc::clone(&self.participant.name);
        let ids: Vec<&str> = causes.iter().map(|event| &*event.id).collect();
        let base = digest(&[&[&*name, rule, how][..], &ids].concat());
        let first = &causes[0];
        let hops = causes.iter().map(|event| event.hops).max().unwrap_or(0).saturating_add(1);
        let deadline = causes.iter().filter_map(|event| event.deadline).min();
        let empty = events.is_empty().then(|| NewEvent::new(DONE, Bytes::new()));
        for (at, event) in events.into_iter().chain(empty).enumerate() {
            let event = Event {
                id: format!("{base}{at:x}"),
                kind: event.kind,
                key: event.key.unwrap_or_else(|| first.key.clone()),
                saga: first.saga.clone(),
                cause: first.id.clone(),
                source: format!("{name}/{rule}"),
                hops,
                deadline,
                body: event.body,
            };
            let max = self.config.max_hops;
            let is_long = event.body.len() > self.config.max_body_bytes;
            let misfit = event.misfit().or(is_long.then_some("body"));
            if let Some(field) = misfit {
                // So that the letter is no longer than an event may be.
                let event = Event { kind: short(&event.kind), body: Bytes::new(), ..event };
                let event = Event { key: first.key.clone(), ..event };
                self.give_up(event, DeadReason::Misfit { field: field.to_owned() });
            } else if hops > max && event.kind != DONE {
                self.give_up(event, DeadReason::TooManyHops { hops, max });
            } else {
                self.commit_bytes += event_bytes(&event);
                self.commit.publish.push(event);
            }
        }
    }

    fn give_up(&mut self, event: Event, why: DeadReason) {
        let letter = DeadLetter::new(event, &self.participant.name, why);
        self.commit_bytes += letter_bytes(&letter);
        self.commit.dead.push(letter);
    }

    fn put_due(&mut self, number: u64, due: &Due) {
        let mut out = BytesMut::new();
        out.put_u8(FORMAT);
        out.put_u32_le(due.failures);
        out.put_u64_le(due.retry_at);
        let name = &self.participant.rules[due.rule].name;
        out.put_u8(u8::try_from(name.len()).unwrap_or(u8::MAX));
        out.put_slice(name.as_bytes());
        due.events.iter().for_each(|event| event.put(&mut out));
        self.put_state(state_key(b'd', &number.to_be_bytes()), Some(out.freeze()));
    }

    fn put_state(&mut self, key: Bytes, value: Option<Bytes>) {
        self.commit_bytes += state_bytes(&key, value.as_ref());
        if let Some(old) = self.changes.insert(key.clone(), value) {
            self.commit_bytes -= state_bytes(&key, old.as_ref());
        }
    }

    /// Takes a part of the state in.
    fn load(&mut self, key: &Bytes, mut value: Bytes) -> Option<()> {
        let (kind, rest) = key.split_first()?;
        match kind {
            b's' => {
                let number = value.try_get_u64_le().ok().filter(|_| value.is_empty())?;
                let id = std::str::from_utf8(rest).ok()?.to_owned();
                self.next_number = self.next_number.max(number.checked_add(1)?);
                self.seen_order.insert(number, id.clone());
                self.seen.insert(id, number);
            }
            b'd' => {
                let number = u64::from_be_bytes(rest.try_into().ok()?);
                self.next_number = self.next_number.max(number.checked_add(1)?);
                self.load_due(number, value)?;
            }
            b'w' => {
                let split = rest.iter().position(|byte| *byte == 0)?;
                let name = std::str::from_utf8(&rest[..split]).ok()?;
                let lane = std::str::from_utf8(&rest[split + 1..]).ok()?.to_owned();
                let wait = Wait::decode(value)?;
                self.next_number = self.next_number.max(wait.began.checked_add(1)?);
                let rules = Arc::clone(&self.participant.rules);
                let rule = rules.iter().position(|rule| rule.name == name);
                let fits = |one: &Arrived| {
                    rule.is_some_and(|at| rules[at].kinds.contains(&one.event.kind))
                };
                match rule.filter(|_| wait.events.iter().all(fits)) {
                    Some(rule) => self.insert_wait((rule, lane), wait),
                    None => {
                        self.put_state(key.clone(), None);
                        for Arrived { event, .. } in wait.events {
                            self.give_up(event, DeadReason::Unmatched);
                        }
                    }
                }
            }
            _ => return None,
        }
        Some(())
    }

    fn load_due(&mut self, number: u64, mut value: Bytes) -> Option<()> {
        if value.try_get_u8().ok()? != FORMAT {
            return None;
        }
        let failures = value.try_get_u32_le().ok()?;
        let retry_at = value.try_get_u64_le().ok()?;
        let length = usize::from(value.try_get_u8().ok()?);
        let name = String::from_utf8(value.get(..length)?.to_vec()).ok()?;
        value.advance(length);
        let events = take_events(value)?;
        let rule = self.participant.rules.iter().position(|rule| rule.name == name);
        let Some(rule) = rule else {
            self.put_state(state_key(b'd', &number.to_be_bytes()), None);
            let why = "the participant has no such rule any more".to_owned();
            let why = DeadReason::Failed { rule: name, attempts: failures, why };
            for event in events {
                self.give_up(event, why.clone());
            }
            return Some(());
        };
        let lane = self.lanes.entry(events[0].key.clone()).or_default();
        let at = lane.partition_point(|other| *other < number);
        lane.insert(at, number);
        self.dues.insert(number, Due { rule, failures, retry_at, events });
        Some(())
    }
}

impl Wait {
    fn has(&self, kind: &str) -> bool {
        self.events.iter().any(|one| one.event.kind == kind)
    }

    /// When the time of the next join began: with its first kind, or while that has not come with
    /// the oldest event.
    fn since(&self, rule: &Rule) -> u64 {
        let first = self.events.iter().find(|one| one.event.kind == rule.kinds[0]);
        first.or(self.events.first()).map_or(0, |one| one.at)
    }

    fn expires(&self, rule: &Rule) -> u64 {
        self.since(rule).saturating_add(nanos(rule.within))
    }

    /// Takes the oldest event of each kind that has come, in the order of `kinds`.
    fn take_oldest(&mut self, kinds: &[String]) -> Vec<Event> {
        let mut take = |kind: &String| {
            let at = self.events.iter().position(|one| one.event.kind == *kind)?;
            Some(self.events.remove(at).event)
        };
        kinds.iter().filter_map(&mut take).collect()
    }

    fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(WAIT_FORMAT);
        out.put_u64_le(self.began);
        for Arrived { at, event } in &self.events {
            out.put_u64_le(*at);
            event.put(&mut out);
        }
        out.freeze()
    }

    fn decode(mut value: Bytes) -> Option<Self> {
        let format = value.try_get_u8().ok()?;
        let began = value.try_get_u64_le().ok()?;
        let mut events = Vec::new();
        if format == FORMAT {
            // One time for all, and when it is over.
            let since = value.try_get_u64_le().ok()?;
            value.try_get_u64_le().ok()?;
            let all = take_events(value)?.into_iter();
            events.extend(all.map(|event| Arrived { at: since, event }));
            return Some(Self { began, events });
        }
        if format != WAIT_FORMAT {
            return None;
        }
        // Ends: each round takes bytes off, or leaves.
        while !value.is_empty() {
            let at = value.try_get_u64_le().ok()?;
            events.push(Arrived { at, event: Event::take(&mut value)? });
        }
        (!events.is_empty()).then_some(Self { began, events })
    }
}

/// One event and more, up to the end.
fn take_events(mut bytes: Bytes) -> Option<Vec<Event>> {
    let mut events = vec![Event::take(&mut bytes)?];
    // Ends: each round takes bytes off, or leaves.
    while !bytes.is_empty() {
        events.push(Event::take(&mut bytes)?);
    }
    Some(events)
}

fn state_key(kind: u8, rest: &[u8]) -> Bytes {
    [&[kind], rest].concat().into()
}

fn wait_key(rule: &str, key: &str) -> Bytes {
    state_key(b'w', &[rule.as_bytes(), &[0], key.as_bytes()].concat())
}

/// The first 200 bytes of a text, at most.
fn short(text: &str) -> String {
    let mut end = text.len().min(200);
    // Ends: 0 is a boundary.
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Those of format 1 have one time for all events.
    #[test]
    fn waits_of_both_formats_are_read_and_garbled_ones_are_none() {
        let event = Event::first("1", "a", "k", "body");
        let wait = Wait { began: 7, events: vec![Arrived { at: 9, event: event.clone() }] };
        let mut old = BytesMut::new();
        old.put_u8(1);
        for number in [7, 9, 10] {
            old.put_u64_le(number);
        }
        event.put(&mut old);
        for bytes in [wait.encode(), old.freeze()] {
            let read = Wait::decode(bytes.clone()).expect("a wait");
            assert_eq!(read.encode(), wait.encode());
            for end in 0..bytes.len() {
                assert!(Wait::decode(bytes.slice(..end)).is_none(), "{end}");
            }
        }
        let later = [&[3][..], &wait.encode()[1..]].concat();
        assert!(Wait::decode(later.into()).is_none());
    }
}
