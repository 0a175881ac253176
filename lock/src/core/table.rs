//! Sessions and locks, and how commands change them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::command::{Answer, Command, Event, Mode, Rejection};
use super::{
    MAX_LOCK_DELAY_MS, MAX_LOCKS, MAX_NAME_BYTES, MAX_REQUESTS, MAX_SESSIONS, MAX_TTL_MS,
    MAX_VALUE_BYTES, MAX_WAITERS, MIN_TTL_MS,
};

/// What all replicas agree on. The same commands at the same indexes make the same table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// The latest fencing token. It never falls, and outlives locks and sessions.
    pub(super) token: u64,
    /// The index at which the current leader began to lead; 0 before the first.
    pub(super) reign: u64,
    pub(super) sessions: BTreeMap<u64, Session>,
    pub(super) locks: BTreeMap<Bytes, Lock>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Session {
    pub(super) ttl_ms: u64,
    /// What was left at the latest checkpoint, in ms; `ttl_ms` without one.
    pub(super) remaining_ms: u64,
    /// Reign and number of the latest checkpoint.
    pub(super) checkpoint: (u64, u64),
    /// Requests below this are known, or have ended.
    pub(super) floor: u64,
    /// Requests that have ended. Invariant: none is below `floor`.
    pub(super) ended: BTreeSet<u64>,
    /// The lock that each request holds or waits for. Derived from the locks.
    pub(super) requests: BTreeMap<u64, Bytes>,
}

/// Invariant: at the end of each command, nobody waits at the front who could hold the lock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lock {
    /// Invariant: more than one only if all are `Shared`, or all are `Slot` of one size and no
    /// more than that.
    pub(super) holders: Vec<Holder>,
    pub(super) queue: VecDeque<Waiter>,
    /// While it lasts nobody is granted the lock.
    pub(super) delay: Option<Delay>,
    pub(super) value: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Waiter {
    pub(super) session: u64,
    pub(super) request: u64,
    pub(super) mode: Mode,
    pub(super) lock_delay_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) by: Waiter,
    pub(super) token: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Delay {
    /// The index at which it began, or was prolonged.
    pub(super) since: u64,
    pub(super) ms: u64,
}

/// One who holds a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hold {
    /// The session.
    pub session: u64,
    /// The number of its acquisition.
    pub request: u64,
    /// The fencing token.
    pub token: u64,
    /// How it holds the lock.
    pub mode: Mode,
}

/// A lock as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LockView {
    /// Who holds it. Empty: vacant.
    pub holders: Vec<Hold>,
    /// How many wait for it.
    pub waiters: usize,
    /// Whether a lock-delay keeps it from being granted.
    pub is_delayed: bool,
    /// Its value; empty if it has none.
    pub value: Bytes,
}

impl Lock {
    /// Whether one more may hold it in `mode`, the queue aside.
    pub(super) fn admits(&self, mode: Mode) -> bool {
        if self.delay.is_some() {
            return false;
        }
        let alike = self.holders.iter().all(|holder| holder.by.mode == mode);
        match mode {
            _ if self.holders.is_empty() => true,
            Mode::Exclusive => false,
            Mode::Shared => alike,
            Mode::Slot { of } => alike && self.holders.len() < of as usize,
        }
    }

    pub(super) fn is_unused(&self) -> bool {
        self.holders.is_empty()
            && self.queue.is_empty()
            && self.delay.is_none()
            && self.value.is_empty()
    }
}

impl Table {
    /// No session, no lock.
    pub fn new() -> Self {
        Self::default()
    }

    /// The reign of the current leader: the index of its [`Command::BeginReign`]; 0 before the
    /// first.
    pub fn reign(&self) -> u64 {
        self.reign
    }

    /// Whether the session is open.
    pub fn has_session(&self, session: u64) -> bool {
        self.sessions.contains_key(&session)
    }

    /// How many sessions are open.
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// A lock as it is now. One that nobody has ever used is vacant too.
    pub fn lock(&self, name: &[u8]) -> LockView {
        let Some(lock) = self.locks.get(name) else { return LockView::default() };
        let hold = |holder: &Holder| Hold {
            session: holder.by.session,
            request: holder.by.request,
            token: holder.token,
            mode: holder.by.mode,
        };
        LockView {
            holders: lock.holders.iter().map(hold).collect(),
            waiters: lock.queue.len(),
            is_delayed: lock.delay.is_some(),
            value: lock.value.clone(),
        }
    }

    /// Carries a command out. `index` is its place in the log, from 1 on: greater than that of
    /// every command before. What it did to others is added to `events`.
    pub fn apply(&mut self, index: u64, command: &Command, events: &mut Vec<Event>) -> Answer {
        let done = match command {
            Command::BeginReign => {
                self.reign = index;
                Ok(Answer::Reign { reign: index })
            }
            Command::OpenSession { ttl_ms } => self.open(index, *ttl_ms),
            Command::CloseSession { session } => self.end(*session, None, events),
            Command::Expire { reign, session } => {
                self.check_reign(*reign).and_then(|()| self.end(*session, Some(index), events))
            }
            Command::Checkpoint { reign, session, number, remaining_ms } => {
                let checkpoint = (*reign, *number);
                self.check_reign(*reign)
                    .and_then(|()| self.checkpoint(*session, checkpoint, *remaining_ms))
            }
            Command::Acquire { session, request, floor, name, mode, wait, lock_delay_ms } => {
                let (session, request, mode) = (*session, *request, *mode);
                let lock_delay_ms = *lock_delay_ms;
                let waiter = Waiter { session, request, mode, lock_delay_ms };
                self.acquire(waiter, *floor, name, *wait, events)
            }
            Command::Release { session, request } => self.release(*session, *request, events),
            Command::SetValue { session, token, name, value } => {
                self.set_value((*session, *token), name, value, events)
            }
            Command::EndDelay { reign, name, since } => {
                self.check_reign(*reign).map(|()| self.end_delay(name, *since, events))
            }
        };
        done.unwrap_or_else(Answer::Rejected)
    }

    fn check_reign(&self, reign: u64) -> Result<(), Rejection> {
        if reign == self.reign { Ok(()) } else { Err(Rejection::StaleReign) }
    }

    fn session(&mut self, session: u64) -> Result<&mut Session, Rejection> {
        self.sessions.get_mut(&session).ok_or(Rejection::NoSession)
    }

    fn open(&mut self, index: u64, ttl_ms: u64) -> Result<Answer, Rejection> {
        if !(MIN_TTL_MS..=MAX_TTL_MS).contains(&ttl_ms) {
            return Err(Rejection::OutOfRange);
        }
        if self.sessions.len() >= MAX_SESSIONS {
            return Err(Rejection::TooManySessions);
        }
        let session = Session {
            ttl_ms,
            remaining_ms: ttl_ms,
            checkpoint: (0, 0),
            floor: 0,
            ended: BTreeSet::new(),
            requests: BTreeMap::new(),
        };
        self.sessions.insert(index, session);
        Ok(Answer::Opened { session: index })
    }

    /// Ends a session; it expired at index `expired`, or was closed.
    fn end(
        &mut self,
        session: u64,
        expired: Option<u64>,
        events: &mut Vec<Event>,
    ) -> Result<Answer, Rejection> {
        let ended = self.sessions.remove(&session).ok_or(Rejection::NoSession)?;
        events.push(Event::SessionEnded { session });
        for (request, name) in &ended.requests {
            self.take_out(name, session, *request, expired, events);
        }
        // After all of them are out: a session is never granted a lock while it ends.
        let names: BTreeSet<&Bytes> = ended.requests.values().collect();
        for name in names {
            self.settle(name, events);
        }
        Ok(Answer::Done)
    }

    fn checkpoint(
        &mut self,
        session: u64,
        checkpoint: (u64, u64),
        remaining_ms: u64,
    ) -> Result<Answer, Rejection> {
        let session = self.session(session)?;
        if checkpoint > session.checkpoint {
            session.checkpoint = checkpoint;
            session.remaining_ms = remaining_ms.clamp(1, session.ttl_ms);
        }
        Ok(Answer::Done)
    }

    fn acquire(
        &mut self,
        waiter: Waiter,
        floor: u64,
        name: &Bytes,
        wait: bool,
        events: &mut Vec<Event>,
    ) -> Result<Answer, Rejection> {
        let Waiter { session: id, request, mode, lock_delay_ms } = waiter;
        let is_slot_of_none = matches!(mode, Mode::Slot { of: 0 });
        let is_long = name.len() > MAX_NAME_BYTES || lock_delay_ms > MAX_LOCK_DELAY_MS;
        let session = self.session(id)?;
        if is_slot_of_none || is_long || floor > request {
            return Err(Rejection::OutOfRange);
        }
        if let Some(known) = session.requests.get(&request) {
            if known != name {
                return Err(Rejection::StaleRequest);
            }
            let holders = self.locks.get(name).map_or(&[][..], |lock| &lock.holders);
            let is_ours = |h: &&Holder| h.by.session == id && h.by.request == request;
            let held = holders.iter().find(is_ours);
            return Ok(held.map_or(Answer::Queued, |h| Answer::Granted { token: h.token }));
        }
        session.raise_floor(floor);
        if request < session.floor || session.ended.contains(&request) {
            return Err(Rejection::StaleRequest);
        }
        if session.requests.len() + session.ended.len() >= MAX_REQUESTS {
            return Err(Rejection::TooManyRequests);
        }
        let lock = self.locks.get(name);
        if lock.is_none() && self.locks.len() >= MAX_LOCKS {
            return Err(Rejection::TooManyLocks);
        }
        let is_free = lock.is_none_or(|lock| lock.queue.is_empty() && lock.admits(mode));
        if !is_free && !wait {
            self.session(id)?.ended.insert(request);
            return Ok(Answer::Busy);
        }
        if lock.is_some_and(|lock| lock.queue.len() >= MAX_WAITERS) {
            return Err(Rejection::QueueFull);
        }
        self.session(id)?.requests.insert(request, name.clone());
        let lock = self.locks.entry(name.clone()).or_default();
        if is_free {
            self.token += 1;
            lock.holders.push(Holder { by: waiter, token: self.token });
            events.push(Event::Changed { name: name.clone() });
            return Ok(Answer::Granted { token: self.token });
        }
        lock.queue.push_back(waiter);
        Ok(Answer::Queued)
    }

    fn release(
        &mut self,
        id: u64,
        request: u64,
        events: &mut Vec<Event>,
    ) -> Result<Answer, Rejection> {
        let session = self.session(id)?;
        if let Some(name) = session.requests.remove(&request) {
            session.end(request);
            self.take_out(&name, id, request, None, events);
            self.settle(&name, events);
            return Ok(Answer::Done);
        }
        if request >= session.floor && !session.ended.contains(&request) {
            // The acquisition was overtaken, or never sent: it is refused when it comes.
            if session.requests.len() + session.ended.len() >= MAX_REQUESTS {
                return Err(Rejection::TooManyRequests);
            }
            session.end(request);
        }
        Ok(Answer::Done)
    }

    fn set_value(
        &mut self,
        (session, token): (u64, u64),
        name: &Bytes,
        value: &Bytes,
        events: &mut Vec<Event>,
    ) -> Result<Answer, Rejection> {
        if value.len() > MAX_VALUE_BYTES {
            return Err(Rejection::OutOfRange);
        }
        let lock = self.locks.get_mut(name).ok_or(Rejection::NotHeld)?;
        let is_ours = |holder: &Holder| holder.by.session == session && holder.token == token;
        if !lock.holders.iter().any(is_ours) {
            return Err(Rejection::NotHeld);
        }
        if lock.value != *value {
            lock.value = value.clone();
            events.push(Event::Changed { name: name.clone() });
        }
        Ok(Answer::Done)
    }

    fn end_delay(&mut self, name: &Bytes, since: u64, events: &mut Vec<Event>) -> Answer {
        if let Some(lock) = self.locks.get_mut(name)
            && lock.delay.is_some_and(|delay| delay.since == since)
        {
            lock.delay = None;
            self.settle(name, events);
        }
        Answer::Done
    }

    /// Takes a request out of its lock's holders and queue. `expired` is the index at which its
    /// session expired.
    fn take_out(
        &mut self,
        name: &Bytes,
        session: u64,
        request: u64,
        expired: Option<u64>,
        events: &mut Vec<Event>,
    ) {
        let Some(lock) = self.locks.get_mut(name) else { return };
        let is_ours = |by: &Waiter| by.session == session && by.request == request;
        if let Some(at) = lock.holders.iter().position(|holder| is_ours(&holder.by)) {
            let delay_ms = lock.holders.remove(at).by.lock_delay_ms;
            events.push(Event::Changed { name: name.clone() });
            if let Some(since) = expired
                && delay_ms > 0
            {
                let delay_ms = lock.delay.map_or(delay_ms, |delay| delay.ms.max(delay_ms));
                lock.delay = Some(Delay { since, ms: delay_ms });
                events.push(Event::DelayBegan { name: name.clone(), since, delay_ms });
            }
        } else {
            lock.queue.retain(|waiter| !is_ours(waiter));
        }
    }

    /// Grants the lock to those at the front of its queue who may hold it; forgets a lock that
    /// nobody uses.
    fn settle(&mut self, name: &Bytes, events: &mut Vec<Event>) {
        let before = self.token;
        let Some(lock) = self.locks.get_mut(name) else { return };
        // Ends: each turn takes one from the queue.
        while let Some(first) = lock.queue.front().copied().filter(|w| lock.admits(w.mode)) {
            lock.queue.pop_front();
            self.token += 1;
            let token = self.token;
            lock.holders.push(Holder { by: first, token });
            let Waiter { session, request, .. } = first;
            events.push(Event::Granted { session, request, token });
        }
        if lock.is_unused() {
            self.locks.remove(name);
        }
        let changed = Event::Changed { name: name.clone() };
        if self.token != before && !events.contains(&changed) {
            events.push(changed);
        }
    }
}

impl Session {
    fn raise_floor(&mut self, floor: u64) {
        if floor > self.floor {
            self.floor = floor;
            self.ended = self.ended.split_off(&floor);
        }
    }

    fn end(&mut self, request: u64) {
        if request >= self.floor {
            self.ended.insert(request);
        }
    }
}
