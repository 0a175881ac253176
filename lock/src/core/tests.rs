//! The table against a model that is written the naive way, command by command.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use voussoir_sim::{Rng, Situations};

use super::*;

static SITUATIONS: [&str; 18] = [
    "granted at once",
    "granted by a release",
    "granted by the end of a session",
    "granted by the end of a delay",
    "several granted at once",
    "queued",
    "busy",
    "waiter cancelled",
    "release before acquire",
    "late acquire refused",
    "retry of a grant",
    "retry of a place in the queue",
    "command of a dead session",
    "command of an old reign",
    "delay began",
    "value outlives its holder",
    "slots full",
    "value arrived late",
];

#[derive(Clone, Debug)]
struct Acquisition {
    id: (u64, u64),
    name: Bytes,
    mode: Mode,
    delay_ms: u64,
    token: Option<u64>,
}

/// All acquisitions in the order in which they came, and what is known of the rest.
#[derive(Default)]
struct Model {
    reign: u64,
    token: u64,
    sessions: BTreeSet<u64>,
    acquisitions: Vec<Acquisition>,
    ended: BTreeSet<(u64, u64)>,
    delays: BTreeMap<Bytes, u64>,
    values: BTreeMap<Bytes, Bytes>,
    /// The latest number of a value by the token of who has set it.
    written: BTreeMap<u64, u64>,
    granted: Vec<(u64, u64, u64)>,
}

impl Model {
    fn held<'a>(&'a self, name: &'a [u8]) -> impl Iterator<Item = &'a Acquisition> {
        self.acquisitions.iter().filter(move |a| a.name == name && a.token.is_some())
    }

    fn waiting(&self, name: &[u8]) -> usize {
        self.acquisitions.iter().filter(|a| a.name == name && a.token.is_none()).count()
    }

    fn is_compatible(&self, name: &[u8], mode: Mode) -> bool {
        let held: Vec<Mode> = self.held(name).map(|a| a.mode).collect();
        !self.delays.contains_key(name)
            && match mode {
                Mode::Exclusive => held.is_empty(),
                Mode::Shared => held.iter().all(|mode| *mode == Mode::Shared),
                Mode::Slot { of } => {
                    held.iter().all(|other| *other == mode) && (held.len() as u64) < u64::from(of)
                }
            }
    }

    /// Grants in order, until the first of those that wait for the lock has to wait on.
    fn settle(&mut self, name: &Bytes) {
        while let Some(at) =
            self.acquisitions.iter().position(|a| a.name == *name && a.token.is_none())
        {
            let Acquisition { id, mode, .. } = self.acquisitions[at].clone();
            if !self.is_compatible(name, mode) {
                return;
            }
            self.token += 1;
            self.acquisitions[at].token = Some(self.token);
            self.granted.push((id.0, id.1, self.token));
        }
    }

    fn end_session(&mut self, session: u64, expired: Option<u64>) -> Answer {
        if !self.sessions.remove(&session) {
            return Answer::Rejected(Rejection::NoSession);
        }
        let (gone, rest): (Vec<_>, Vec<_>) =
            self.acquisitions.drain(..).partition(|a| a.id.0 == session);
        self.acquisitions = rest;
        for acquisition in &gone {
            if let Some(index) = expired
                && acquisition.token.is_some()
                && acquisition.delay_ms > 0
            {
                self.delays.insert(acquisition.name.clone(), index);
            }
        }
        let names: BTreeSet<Bytes> = gone.into_iter().map(|a| a.name).collect();
        for name in &names {
            self.settle(name);
        }
        Answer::Done
    }

    fn acquire(&mut self, new: Acquisition, wait: bool) -> Answer {
        if !self.sessions.contains(&new.id.0) {
            return Answer::Rejected(Rejection::NoSession);
        }
        if let Some(known) = self.acquisitions.iter().find(|a| a.id == new.id) {
            return match known.token {
                _ if known.name != new.name => Answer::Rejected(Rejection::StaleRequest),
                Some(token) => Answer::Granted { token },
                None => Answer::Queued,
            };
        }
        if self.ended.contains(&new.id) {
            return Answer::Rejected(Rejection::StaleRequest);
        }
        let is_free = self.waiting(&new.name) == 0 && self.is_compatible(&new.name, new.mode);
        if !is_free && !wait {
            self.ended.insert(new.id);
            return Answer::Busy;
        }
        let name = new.name.clone();
        self.acquisitions.push(new);
        self.settle(&name);
        if is_free {
            self.granted.clear();
            return Answer::Granted { token: self.token };
        }
        Answer::Queued
    }

    fn apply(&mut self, index: u64, command: &Command) -> Answer {
        self.granted.clear();
        let is_stale = match command {
            Command::Expire { reign, .. }
            | Command::CheckpointDelay { reign, .. }
            | Command::EndDelay { reign, .. } => *reign != self.reign,
            _ => false,
        };
        if is_stale {
            return Answer::Rejected(Rejection::StaleReign);
        }
        match command.clone() {
            Command::BeginReign => {
                self.reign = index;
                Answer::Reign { reign: index }
            }
            Command::OpenSession { .. } => {
                self.sessions.insert(index);
                Answer::Opened { session: index }
            }
            Command::CloseSession { session } => self.end_session(session, None),
            Command::Expire { session, .. } => self.end_session(session, Some(index)),
            Command::Acquire { session, request, name, mode, wait, lock_delay_ms, .. } => {
                let (id, delay_ms) = ((session, request), lock_delay_ms);
                self.acquire(Acquisition { id, name, mode, delay_ms, token: None }, wait)
            }
            Command::Release { session, request } => {
                if !self.sessions.contains(&session) {
                    return Answer::Rejected(Rejection::NoSession);
                }
                self.ended.insert((session, request));
                let at = self.acquisitions.iter().position(|a| a.id == (session, request));
                if let Some(at) = at {
                    let name = self.acquisitions.remove(at).name;
                    self.settle(&name);
                }
                Answer::Done
            }
            Command::SetValue { session, token, number, name, value } => {
                if !self.held(&name).any(|a| a.id.0 == session && a.token == Some(token)) {
                    return Answer::Rejected(Rejection::NotHeld);
                }
                let latest = self.written.entry(token).or_insert(0);
                if number > *latest {
                    *latest = number;
                    self.values.insert(name, value);
                }
                Answer::Done
            }
            // What is left of a delay is the leader's business.
            Command::CheckpointDelay { .. } => Answer::Done,
            Command::EndDelay { name, since, .. } => {
                if self.delays.get(&name) == Some(&since) {
                    self.delays.remove(&name);
                    self.settle(&name);
                }
                Answer::Done
            }
            other => panic!("{other:?} is not drawn"),
        }
    }
}

const NAMES: [&[u8]; 4] = [b"", b"a", b"b", b"c"];

/// A command that fits the table as it is, or nearly.
fn draw(rng: &mut Rng, model: &Model, opened: &[u64], requests: &mut u64) -> Command {
    let session = rng.pick(opened).copied().unwrap_or(7);
    let name = Bytes::from_static(NAMES[rng.below(4) as usize]);
    let known = model.acquisitions.get(rng.below(8) as usize).cloned();
    let is_old = rng.below(8) == 0;
    let reign = if is_old { model.reign.saturating_sub(1) } else { model.reign };
    match rng.below(100) {
        0..10 => Command::OpenSession { ttl_ms: rng.between(MIN_TTL_MS, MAX_TTL_MS) },
        10..14 => Command::CloseSession { session },
        14..19 => Command::Expire { reign, session },
        19..22 => Command::BeginReign,
        22..62 => {
            *requests += 1;
            let ended = model.ended.iter().next_back().copied();
            let ((session, request), name) = match (rng.below(10), &known, ended) {
                (0, Some(known), _) => (known.id, known.name.clone()),
                (1, Some(known), _) => (known.id, name),
                (2, _, Some(ended)) => (ended, name),
                _ => ((session, *requests), name),
            };
            let of = rng.between(1, 3) as u32;
            let mode = match rng.below(4) {
                0 | 1 => Mode::Exclusive,
                2 => Mode::Shared,
                _ => Mode::Slot { of },
            };
            let wait = rng.below(4) > 0;
            let lock_delay_ms = rng.below(3) * 1000;
            Command::Acquire { session, request, floor: 0, name, mode, wait, lock_delay_ms }
        }
        62..88 => match known {
            Some(known) if rng.below(10) > 0 => {
                Command::Release { session: known.id.0, request: known.id.1 }
            }
            _ => {
                *requests += 1;
                Command::Release { session, request: *requests }
            }
        },
        88..94 => {
            let known = known.filter(|_| rng.below(4) > 0);
            let value = Bytes::from(vec![7; rng.below(3) as usize]);
            *requests += 1;
            let number = if rng.below(3) == 0 { 1 } else { *requests };
            let (session, token, name) = match known {
                Some(Acquisition { id, token, name, .. }) => (id.0, token.unwrap_or(0), name),
                None => (session, model.token, name),
            };
            Command::SetValue { session, token, number, name, value }
        }
        _ => {
            let delays: Vec<_> = model.delays.iter().collect();
            match rng.pick(&delays) {
                Some((name, since)) => {
                    let since = **since - u64::from(rng.below(6) == 0);
                    let (name, remaining_ms) = ((*name).clone(), rng.below(2000));
                    match rng.below(4) {
                        0 => Command::CheckpointDelay { reign, name, since, remaining_ms },
                        _ => Command::EndDelay { reign, name, since },
                    }
                }
                None => Command::EndDelay { reign, name, since: 1 },
            }
        }
    }
}

fn note(situations: &Situations, model: &Model, command: &Command, answer: Answer, was_held: bool) {
    let granted = model.granted.len();
    let by = match command {
        Command::Release { .. } if granted > 0 => Some("granted by a release"),
        Command::Expire { .. } | Command::CloseSession { .. } if granted > 0 => {
            Some("granted by the end of a session")
        }
        Command::EndDelay { .. } if granted > 0 => Some("granted by the end of a delay"),
        Command::Release { .. } if !was_held && answer == Answer::Done => Some("waiter cancelled"),
        _ => None,
    };
    let is_acquire = matches!(command, Command::Acquire { .. });
    let what = match answer {
        Answer::Granted { .. } => Some("granted at once"),
        Answer::Queued => Some("queued"),
        Answer::Busy => Some("busy"),
        Answer::Rejected(Rejection::NoSession) => Some("command of a dead session"),
        Answer::Rejected(Rejection::StaleReign) => Some("command of an old reign"),
        Answer::Rejected(Rejection::StaleRequest) if is_acquire => Some("late acquire refused"),
        _ => None,
    };
    by.into_iter().chain(what).for_each(|name| situations.reached(name));
    situations.add("several granted at once", u64::from(granted > 1));
}

fn compare(table: &Table, model: &Model, situations: &Situations) {
    assert_eq!(table.sessions.keys().copied().collect::<BTreeSet<_>>(), model.sessions);
    for name in NAMES {
        let view = table.lock(name);
        let held: BTreeSet<_> = model.held(name).map(|a| (a.id, a.token)).collect();
        let shown = view.holders.iter().map(|h| ((h.session, h.request), Some(h.token)));
        assert_eq!(shown.collect::<BTreeSet<_>>(), held, "holders of {name:?}");
        assert_eq!(view.waiters, model.waiting(name), "those who wait for {name:?}");
        assert_eq!(view.is_delayed, model.delays.contains_key(name));
        let value = model.values.get(name).cloned().unwrap_or_default();
        assert_eq!(view.value, value);
        if held.is_empty() && !value.is_empty() {
            situations.reached("value outlives its holder");
        }
        if let Some(Hold { mode: Mode::Slot { of }, .. }) = view.holders.first()
            && view.holders.len() == *of as usize
            && view.waiters > 0
        {
            situations.reached("slots full");
        }
    }
}

fn restored(table: &Table) -> Table {
    let mut restore = Restore::new();
    for chunk in table.snapshot() {
        restore.add(&chunk).expect("our own snapshot");
    }
    restore.finish().expect("the whole snapshot")
}

/// L1, L2, L4 and L5 on every command. `VOUSSOIR_SEEDS` runs more lives.
#[test]
fn the_table_does_what_the_model_does() {
    let situations = Situations::new(&SITUATIONS);
    let seeds = std::env::var("VOUSSOIR_SEEDS").map_or(500, |text| text.parse().expect("a number"));
    for seed in 0..seeds {
        let mut rng = Rng::new(seed);
        let (mut table, mut model) = (Table::new(), Model::default());
        let (mut opened, mut requests, mut last_token) = (Vec::new(), 0, 0);
        for index in (1..300_u64).map(|step| step * 2) {
            let command = draw(&mut rng, &model, &opened, &mut requests);
            assert_eq!(Command::decode(&command.encode()), Ok(command.clone()));
            let id = match &command {
                Command::Release { session, request }
                | Command::Acquire { session, request, .. } => (*session, *request),
                _ => (0, 0),
            };
            let known = model.acquisitions.iter().find(|a| a.id == id).cloned();
            let was_held = known.as_ref().is_none_or(|a| a.token.is_some());
            let wanted = model.apply(index, &command);
            let mut events = Vec::new();
            let before = NAMES.map(|name| table.lock(name));
            let answer = table.apply(index, &command, &mut events);
            check_versions(&before, &table, index, &events);
            if let Command::SetValue { number: 1, .. } = command
                && answer == Answer::Done
                && !events.iter().any(|event| matches!(event, Event::Changed { .. }))
            {
                situations.reached("value arrived late");
            }
            assert_eq!(answer, wanted, "seed {seed}, index {index}: {command:?}");
            assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
            let granted: Vec<_> = events.iter().filter_map(granted_by).collect();
            assert_eq!(granted, model.granted, "seed {seed}, index {index}: {command:?}");
            match (&command, answer, &known) {
                (Command::Acquire { .. }, Answer::Granted { .. }, Some(_)) => {
                    situations.reached("retry of a grant");
                }
                (Command::Acquire { .. }, Answer::Queued, Some(_)) => {
                    situations.reached("retry of a place in the queue");
                }
                (Command::Acquire { .. }, Answer::Granted { token }, None) => {
                    assert!(token > last_token, "tokens grow");
                }
                (Command::Release { .. }, Answer::Done, None) => {
                    situations.reached("release before acquire");
                }
                _ => {}
            }
            assert!(granted.iter().all(|(_, _, token)| *token > last_token), "tokens grow");
            last_token = model.token;
            if events.iter().any(|event| matches!(event, Event::DelayBegan { .. })) {
                situations.reached("delay began");
            }
            note(&situations, &model, &command, answer, was_held);
            compare(&table, &model, &situations);
            if let Answer::Opened { session } = answer {
                opened.push(session);
            }
            if rng.below(20) == 0 {
                let again = restored(&table);
                assert_eq!(again, table, "seed {seed}, index {index}");
                table = again;
            }
        }
    }
    situations.assert_all_reached();
}

/// The version of a lock grows when its holders or its value change, which is told once.
fn check_versions(before: &[LockView; 4], table: &Table, index: u64, events: &[Event]) {
    for (name, before) in NAMES.iter().zip(before) {
        let after = table.lock(name);
        let is_same = (&before.holders, &before.value) == (&after.holders, &after.value);
        let is_unused = after == LockView::default();
        let version = if is_same { before.version } else { index };
        assert_eq!(after.version, if is_unused { 0 } else { version }, "{name:?}");
        let is_this = |event: &&Event| matches!(event, Event::Changed { name: n } if n == name);
        assert_eq!(events.iter().filter(is_this).count(), usize::from(!is_same), "{name:?}");
    }
}

fn granted_by(event: &Event) -> Option<(u64, u64, u64)> {
    match event {
        Event::Granted { session, request, token } => Some((*session, *request, *token)),
        _ => None,
    }
}

fn acquire(session: u64, request: u64, name: &'static str) -> Command {
    let (name, mode) = (Bytes::from_static(name.as_bytes()), Mode::Exclusive);
    Command::Acquire { session, request, floor: 0, name, mode, wait: true, lock_delay_ms: 0 }
}

/// Regression corpus 47: a lock is not granted to a session that has ended.
#[test]
fn a_dead_session_gets_no_lock_and_leaves_no_place() {
    let (mut table, mut events) = (Table::new(), Vec::new());
    for index in [1, 2, 3] {
        table.apply(index, &Command::OpenSession { ttl_ms: 1000 }, &mut events);
    }
    for (index, session) in [(4, 1), (5, 2), (6, 3)] {
        table.apply(index, &acquire(session, 1, "a"), &mut events);
    }
    table.apply(7, &Command::CloseSession { session: 2 }, &mut events);
    events.clear();
    table.apply(8, &Command::Release { session: 1, request: 1 }, &mut events);
    let granted: Vec<_> = events.iter().filter_map(granted_by).collect();
    assert_eq!(granted, [(3, 1, 2)], "the dead waiter is passed over");
    let late = table.apply(9, &acquire(2, 2, "a"), &mut events);
    assert_eq!(late, Answer::Rejected(Rejection::NoSession));
}

#[test]
fn a_thousand_waiters_are_woken_one_by_one() {
    let (mut table, mut events) = (Table::new(), Vec::new());
    table.apply(1, &Command::OpenSession { ttl_ms: 1000 }, &mut events);
    for request in 1..=1001 {
        table.apply(1 + request, &acquire(1, request, "a"), &mut events);
    }
    for request in 1..=1000 {
        events.clear();
        table.apply(2000 + request, &Command::Release { session: 1, request }, &mut events);
        let granted: Vec<_> = events.iter().filter_map(granted_by).collect();
        assert_eq!(granted, [(1, request + 1, request + 1)], "in their order");
    }
}

/// Obligation L1: the counter is the table's, not the lock's.
#[test]
fn tokens_grow_across_delete_and_snapshot() {
    let (mut table, mut events) = (Table::new(), Vec::new());
    table.apply(1, &Command::OpenSession { ttl_ms: 1000 }, &mut events);
    for round in 1..=5 {
        let answer = table.apply(round * 10, &acquire(1, round, "a"), &mut events);
        assert_eq!(answer, Answer::Granted { token: round });
        let release = Command::Release { session: 1, request: round };
        table.apply(round * 10 + 1, &release, &mut events);
        assert!(table.locks.is_empty(), "the lock is deleted");
        table = restored(&table);
    }
}

/// Regression corpus 52: a leader that stalled expires nobody in its successor's reign.
#[test]
fn an_old_reign_ends_no_session() {
    let (mut table, mut events) = (Table::new(), Vec::new());
    table.apply(1, &Command::BeginReign, &mut events);
    table.apply(2, &Command::OpenSession { ttl_ms: 1000 }, &mut events);
    table.apply(3, &Command::BeginReign, &mut events);
    let late = table.apply(4, &Command::Expire { reign: 1, session: 2 }, &mut events);
    assert_eq!(late, Answer::Rejected(Rejection::StaleReign));
    assert!(table.has_session(2));
}

#[test]
fn what_can_grow_is_bounded() {
    let (mut table, mut events) = (Table::new(), Vec::new());
    table.apply(1, &Command::OpenSession { ttl_ms: 1000 }, &mut events);
    let most = MAX_REQUESTS as u64;
    for request in 1..=most {
        let answer = table.apply(1 + request, &acquire(1, request, "a"), &mut events);
        assert!(!matches!(answer, Answer::Rejected(_)), "{answer:?}");
    }
    let index = most + 2;
    let rejected = Answer::Rejected(Rejection::TooManyRequests);
    assert_eq!(table.apply(index, &acquire(1, most + 1, "b"), &mut events), rejected);
    table.apply(index + 1, &Command::OpenSession { ttl_ms: 1000 }, &mut events);
    let session = index + 1;
    table.apply(index + 2, &acquire(session, 1, "a"), &mut events);
    let rejected = Answer::Rejected(Rejection::QueueFull);
    assert_eq!(table.apply(index + 3, &acquire(session, 2, "a"), &mut events), rejected);
    // Ended requests count until the floor passes them.
    for request in 1..=most {
        let release = Command::Release { session: 1, request };
        table.apply(index + 3 + request, &release, &mut events);
    }
    let index = 3 * most;
    let rejected = Answer::Rejected(Rejection::TooManyRequests);
    assert_eq!(table.apply(index, &acquire(1, most + 1, "b"), &mut events), rejected);
    let mut with_floor = acquire(1, most + 1, "b");
    if let Command::Acquire { floor, .. } = &mut with_floor {
        *floor = most + 1;
    }
    let granted = table.apply(index + 1, &with_floor, &mut events);
    assert!(matches!(granted, Answer::Granted { .. }), "{granted:?}");
    let late = table.apply(index + 2, &acquire(1, most, "b"), &mut events);
    assert_eq!(late, Answer::Rejected(Rejection::StaleRequest), "below the floor");
    let snapshot = table.snapshot();
    assert!(snapshot.iter().all(|chunk| chunk.len() <= 512 << 10));
}

#[test]
fn garbled_bytes_are_errors() {
    let mut rng = Rng::new(1);
    let (mut table, mut events) = (Table::new(), Vec::new());
    table.apply(1, &Command::OpenSession { ttl_ms: 1000 }, &mut events);
    for (request, name) in (1..).zip(["a", "b", "a", "c", "a"]) {
        table.apply(1 + request, &acquire(1, request, name), &mut events);
    }
    let whole = table.snapshot().concat();
    let command = acquire(1, 2, "name").encode();
    for cut in 0..whole.len() {
        let mut restore = Restore::new();
        let taken = restore.add(&whole[..cut]).and_then(|()| restore.finish());
        assert!(taken.is_err(), "cut at {cut}");
    }
    for cut in 0..command.len() {
        assert!(Command::decode(&command[..cut]).is_err(), "cut at {cut}");
    }
    let mut refused = 0;
    for _ in 0..20_000 {
        let mut bytes = if rng.below(2) == 0 { whole.clone() } else { command.to_vec() };
        let at = rng.below(bytes.len() as u64) as usize;
        bytes[at] = rng.next_u64() as u8;
        let mut restore = Restore::new();
        refused += u64::from(restore.add(&bytes).is_err());
        if let Ok(mut table) = restore.finish() {
            // What was accepted can be worked with: tokens do not wrap around.
            let session = Command::OpenSession { ttl_ms: 1000 };
            if let Answer::Opened { session } = table.apply(1 << 40, &session, &mut events) {
                table.apply((1 << 40) + 1, &acquire(session, 1, "z"), &mut events);
            }
        }
        let _ = (Command::decode(&bytes), Answer::decode(&bytes));
    }
    assert!(refused > 5_000, "{refused}");
    let mut twice = Restore::new();
    twice.add(&whole).expect("our own snapshot");
    assert!(twice.add(&whole).is_err(), "nothing follows the end");
}
