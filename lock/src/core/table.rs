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
    /// Index of the latest command that changed the holders or the value.
    pub(super) version: u64,
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
    /// Number of the latest value that this holder has set; 0 before the first.
    pub(super) written: u64,
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
    /// Grows with each change of its holders or its value, by steps of any size; 0 for a lock that
    /// nobody uses. Two views of one version are alike in both.
    pub version: u64,
}

impl Lock {
    /// Whether one more may hold it in `mode`, the queue aside.
    pub(super) fn admits(&self, mode: Mode) -> bool {
        self.delay.is_none() && self.has_room(mode)
    }

    /// Whether one more may hold it in `mode` beside its holders.
    pub(super) fn has_room(&self, mode: Mode) -> bool {
        let alike = self.holders.iter().all(|holder| holder.by.mode == mode);
        match mode {
            _ if self.holders.is_empty() => true,
            Mode::Exclusive => false,
            Mode::Shared => alike,
            Mode::Slot { of } => alike && self.holders.len() < of as usize,
        }
    }

    /// The holders or the value were changed by the command at `index`. Told once a command.
    fn changed(&mut self, index: u64, name: &Bytes, events: &mut Vec<Event>) {
        if self.version != index {
            self.version = index;
            events.push(Event::Changed { name: name.clone() });
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

    /// Where an acquisition stands: [`Answer::Granted`] or [`Answer::Queued`]; `None` if it has
    /// ended or has not come.
    ///
    /// # Errors
    /// [`Rejection::NoSession`].
    pub fn acquisition(&self, session: u64, request: u64) -> Result<Option<Answer>, Rejection> {
        let known = self.sessions.get(&session).ok_or(Rejection::NoSession)?;
        let Some(name) = known.requests.get(&request) else { return Ok(None) };
        let holders = self.locks.get(name).map_or(&[][..], |lock| &lock.holders);
        let is_ours = |h: &&Holder| h.by.session == session && h.by.request == request;
        let held = holders.iter().find(is_ours).map(|h| Answer::Granted { token: h.token });
        Ok(Some(held.unwrap_or(Answer::Queued)))
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
            version: lock.version,
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
            Command::CloseSession { session } => self.end(index, *session, false, events),
            Command::Expire { reign, session } => {
                self.check_reign(*reign).and_then(|()| self.end(index, *session, true, events))
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
                self.acquire(index, waiter, (name, *floor, *wait), events)
            }
            Command::Release { session, request } => {
                self.release(index, *session, *request, events)
            }
            Command::SetValue { session, token, number, name, value } => {
                self.set_value(index, (*session, *token, *number), (name, value), events)
            }
            Command::CheckpointDelay { reign, name, since, remaining_ms } => self
                .check_reign(*reign)
                .map(|()| self.checkpoint_delay(name, *since, *remaining_ms)),
            Command::EndDelay { reign, name, since } => {
                self.check_reign(*reign).map(|()| self.end_delay(index, (name, *since), events))
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

    /// Ends a session, which expired or was closed.
    fn end(
        &mut self,
        index: u64,
        session: u64,
        has_expired: bool,
        events: &mut Vec<Event>,
    ) -> Result<Answer, Rejection> {
        let ended = self.sessions.remove(&session).ok_or(Rejection::NoSession)?;
        events.push(Event::SessionEnded { session });
        for (request, name) in &ended.requests {
            self.take_out(index, name, (session, *request, has_expired), events);
        }
        // After all of them are out: a session is never granted a lock while it ends.
        let names: BTreeSet<&Bytes> = ended.requests.values().collect();
        for name in names {
            self.settle(index, name, events);
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
        index: u64,
        waiter: Waiter,
        (name, floor, wait): (&Bytes, u64, bool),
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
            return Ok(self.acquisition(id, request)?.unwrap_or(Answer::Queued));
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
            lock.holders.push(Holder { by: waiter, token: self.token, written: 0 });
            lock.changed(index, name, events);
            return Ok(Answer::Granted { token: self.token });
        }
        lock.queue.push_back(waiter);
        Ok(Answer::Queued)
    }

    fn release(
        &mut self,
        index: u64,
        id: u64,
        request: u64,
        events: &mut Vec<Event>,
    ) -> Result<Answer, Rejection> {
        let session = self.session(id)?;
        if let Some(name) = session.requests.remove(&request) {
            session.end(request);
            self.take_out(index, &name, (id, request, false), events);
            self.settle(index, &name, events);
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
        index: u64,
        (session, token, number): (u64, u64, u64),
        (name, value): (&Bytes, &Bytes),
        events: &mut Vec<Event>,
    ) -> Result<Answer, Rejection> {
        if value.len() > MAX_VALUE_BYTES {
            return Err(Rejection::OutOfRange);
        }
        let lock = self.locks.get_mut(name).ok_or(Rejection::NotHeld)?;
        let is_ours = |h: &Holder| h.by.session == session && h.token == token;
        let holder = lock.holders.iter().position(is_ours).ok_or(Rejection::NotHeld)?;
        // A value that arrives twice, or after the next one, has been set before.
        if number > lock.holders[holder].written {
            lock.holders[holder].written = number;
            if lock.value != *value {
                lock.value = value.clone();
                lock.changed(index, name, events);
            }
        }
        Ok(Answer::Done)
    }

    fn checkpoint_delay(&mut self, name: &Bytes, since: u64, remaining_ms: u64) -> Answer {
        if let Some(delay) = self.locks.get_mut(name).and_then(|lock| lock.delay.as_mut())
            && delay.since == since
        {
            delay.ms = delay.ms.min(remaining_ms.max(1));
        }
        Answer::Done
    }

    fn end_delay(
        &mut self,
        index: u64,
        (name, since): (&Bytes, u64),
        events: &mut Vec<Event>,
    ) -> Answer {
        if let Some(lock) = self.locks.get_mut(name)
            && lock.delay.is_some_and(|delay| delay.since == since)
        {
            lock.delay = None;
            self.settle(index, name, events);
        }
        Answer::Done
    }

    /// Takes a request out of its lock's holders and queue. The session of the request may have
    /// expired.
    fn take_out(
        &mut self,
        index: u64,
        name: &Bytes,
        (session, request, has_expired): (u64, u64, bool),
        events: &mut Vec<Event>,
    ) {
        let Some(lock) = self.locks.get_mut(name) else { return };
        let is_ours = |by: &Waiter| by.session == session && by.request == request;
        if let Some(at) = lock.holders.iter().position(|holder| is_ours(&holder.by)) {
            let delay_ms = lock.holders.remove(at).by.lock_delay_ms;
            lock.changed(index, name, events);
            if has_expired && delay_ms > 0 {
                let delay_ms = lock.delay.map_or(delay_ms, |delay| delay.ms.max(delay_ms));
                lock.delay = Some(Delay { since: index, ms: delay_ms });
                events.push(Event::DelayBegan { name: name.clone(), since: index, delay_ms });
            }
        } else {
            lock.queue.retain(|waiter| !is_ours(waiter));
        }
    }

    /// Grants the lock to those at the front of its queue who may hold it; forgets a lock that
    /// nobody uses.
    fn settle(&mut self, index: u64, name: &Bytes, events: &mut Vec<Event>) {
        let Some(lock) = self.locks.get_mut(name) else { return };
        // Ends: each turn takes one from the queue.
        while let Some(first) = lock.queue.front().copied().filter(|w| lock.admits(w.mode)) {
            lock.queue.pop_front();
            self.token += 1;
            let token = self.token;
            lock.holders.push(Holder { by: first, token, written: 0 });
            lock.changed(index, name, events);
            let Waiter { session, request, .. } = first;
            events.push(Event::Granted { session, request, token });
        }
        if lock.is_unused() {
            self.locks.remove(name);
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
