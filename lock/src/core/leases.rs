//! A leader's timers: sessions and lock-delays.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::command::{Answer, Command, Event};
use super::table::Table;

const NS_PER_MS: u64 = 1_000_000;

/// When sessions and lock-delays end, as one leader knows it. It is not replicated: a new leader
/// begins with what the table's checkpoints say, which gives a session back at most half of its
/// time to live, and a lock-delay at most half of what it had left when this leader began.
///
/// The leader proposes [`Command::BeginReign`], and makes this when the command was applied. It
/// tells what was applied since, by [`applied`](Self::applied). Times are in ns of one clock
/// that counts on while the machine is suspended.
///
/// A renewal is answered only when a majority has confirmed, **after** the renewal came, that
/// this node still leads: otherwise a deposed leader promises time that its successor does not
/// know of. [`renew`](Self::renew) is called after that.
#[derive(Debug)]
pub struct Leases {
    reign: u64,
    /// Number of the latest checkpoint of this reign.
    checkpoints: u64,
    sessions: BTreeMap<u64, Lease>,
    /// When something is to be done for a session.
    due: BTreeSet<(u64, u64)>,
    /// By their locks. Changed by [`schedule_delay`](Self::schedule_delay) only.
    delays: BTreeMap<Bytes, Delay>,
    /// When something is to be done for a lock-delay.
    delays_due: BTreeSet<(u64, Bytes)>,
}

#[derive(Clone, Copy, Debug)]
struct Delay {
    /// The index at which it began.
    since: u64,
    /// When its checkpoint is due, or its end once that was proposed.
    due: u64,
    ends_at: u64,
}

impl Delay {
    fn new(now: u64, since: u64, remaining_ms: u64) -> Self {
        let ends_at = after(now, remaining_ms);
        Self { since, due: now + (ends_at - now) / 2, ends_at }
    }
}

#[derive(Debug)]
struct Lease {
    ttl_ms: u64,
    /// When it ends; 0 once its end was proposed, so that it is not renewed any more.
    deadline: u64,
    /// Its entry in `due`; `None` once its end was proposed, or while nothing is due.
    due: Option<u64>,
    /// Whether the table has a checkpoint, or may get one that was proposed.
    is_checkpointed: bool,
    /// Number of the latest checkpoint that was proposed for it in this reign.
    checkpoint: u64,
}

/// The outcome of a renewal.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Renewal {
    /// The session lives for its whole time from now on.
    Renewed,
    /// The same, once this command was applied: only then may the client be told.
    AfterCommand(Command),
    /// The session has ended, or its end was proposed.
    Ended,
}

impl Leases {
    /// The timers of a reign that began in `table`. All sessions and delays have from `now` on
    /// what they had left at their checkpoints.
    pub fn new(now: u64, reign: u64, table: &Table) -> Self {
        let (sessions, due) = (BTreeMap::new(), BTreeSet::new());
        let (delays, delays_due) = (BTreeMap::new(), BTreeSet::new());
        let mut leases = Self { reign, checkpoints: 0, sessions, due, delays, delays_due };
        for (id, session) in &table.sessions {
            leases.insert(now, *id, session.ttl_ms, session.remaining_ms);
        }
        for (name, lock) in &table.locks {
            if let Some(delay) = lock.delay {
                leases.schedule_delay(name, Some(Delay::new(now, delay.since, delay.ms)));
            }
        }
        leases
    }

    /// The reign.
    pub fn reign(&self) -> u64 {
        self.reign
    }

    /// A command was applied to the table of this node.
    pub fn applied(&mut self, now: u64, command: &Command, answer: Answer, events: &[Event]) {
        match (command, answer) {
            (Command::OpenSession { ttl_ms }, Answer::Opened { session }) => {
                self.insert(now, session, *ttl_ms, *ttl_ms);
            }
            // A full checkpoint counts only if no other was proposed after it.
            (Command::Checkpoint { session, number, remaining_ms, .. }, Answer::Done) => {
                if let Some(lease) = self.sessions.get_mut(session)
                    && *number == lease.checkpoint
                {
                    lease.is_checkpointed = *remaining_ms != lease.ttl_ms;
                }
            }
            (Command::EndDelay { name, since, .. }, _)
                if self.delays.get(name).is_some_and(|delay| delay.since == *since) =>
            {
                self.schedule_delay(name, None);
            }
            _ => {}
        }
        for event in events {
            match event {
                Event::SessionEnded { session } => self.remove(*session),
                Event::DelayBegan { name, since, delay_ms } => {
                    self.schedule_delay(name, Some(Delay::new(now, *since, *delay_ms)));
                }
                _ => {}
            }
        }
    }

    /// Renews a session. The caller has confirmed, after the renewal came, that this node leads in
    /// this reign.
    pub fn renew(&mut self, now: u64, session: u64) -> Renewal {
        let Some(lease) = self.sessions.get_mut(&session) else { return Renewal::Ended };
        if now >= lease.deadline {
            return Renewal::Ended;
        }
        let (ttl_ms, is_checkpointed) = (lease.ttl_ms, lease.is_checkpointed);
        lease.deadline = after(now, ttl_ms);
        self.schedule(session, Some(after(now, ttl_ms / 2)));
        if is_checkpointed {
            return Renewal::AfterCommand(self.checkpoint(session, ttl_ms));
        }
        Renewal::Renewed
    }

    /// When [`poll`](Self::poll) has the next command.
    pub fn next_deadline(&self) -> Option<u64> {
        let session = self.due.first().map(|(at, _)| *at);
        let delay = self.delays_due.first().map(|(at, _)| *at);
        [session, delay].into_iter().flatten().min()
    }

    /// The next command that is due. Propose it, in this reign only; if it fails, the table's own
    /// word ([`applied`](Self::applied)) does not come, and [`retry`](Self::retry) asks again.
    pub fn poll(&mut self, now: u64) -> Option<Command> {
        let reign = self.reign;
        if let Some(&(at, session)) = self.due.first()
            && at <= now
        {
            let lease = self.sessions.get_mut(&session)?;
            if now >= lease.deadline {
                lease.deadline = 0;
                self.schedule(session, None);
                return Some(Command::Expire { reign, session });
            }
            // Rounded up: a part of a ms that is promised is not taken back.
            let deadline = lease.deadline;
            let remaining_ms = (deadline - now).div_ceil(NS_PER_MS);
            self.schedule(session, Some(deadline));
            return Some(self.checkpoint(session, remaining_ms));
        }
        let name = self.delays_due.first().filter(|(at, _)| *at <= now)?.1.clone();
        let Delay { since, ends_at, .. } = *self.delays.get(&name)?;
        if now < ends_at {
            self.schedule_delay(&name, Some(Delay { since, due: ends_at, ends_at }));
            let remaining_ms = (ends_at - now).div_ceil(NS_PER_MS);
            return Some(Command::CheckpointDelay { reign, name, since, remaining_ms });
        }
        self.schedule_delay(&name, None);
        Some(Command::EndDelay { reign, name, since })
    }

    /// A command of [`poll`](Self::poll) was not applied, or may not have been: it is due again
    /// after `pause_ns`.
    pub fn retry(&mut self, now: u64, command: &Command, pause_ns: u64) {
        let again = now.saturating_add(pause_ns);
        match command {
            Command::Expire { session, .. } if self.sessions.contains_key(session) => {
                self.schedule(*session, Some(again));
            }
            Command::EndDelay { name, since, .. } if !self.delays.contains_key(name) => {
                let delay = Delay { since: *since, due: again, ends_at: again };
                self.schedule_delay(name, Some(delay));
            }
            // A checkpoint that is lost gives time back, and nothing else.
            _ => {}
        }
    }

    /// A checkpoint that is about to be proposed.
    fn checkpoint(&mut self, session: u64, remaining_ms: u64) -> Command {
        self.checkpoints += 1;
        let (reign, number) = (self.reign, self.checkpoints);
        if let Some(lease) = self.sessions.get_mut(&session) {
            (lease.is_checkpointed, lease.checkpoint) = (true, number);
        }
        Command::Checkpoint { reign, session, number, remaining_ms }
    }

    fn insert(&mut self, now: u64, session: u64, ttl_ms: u64, remaining_ms: u64) {
        let lease = Lease {
            ttl_ms,
            deadline: after(now, remaining_ms),
            due: None,
            is_checkpointed: remaining_ms != ttl_ms,
            checkpoint: 0,
        };
        self.sessions.insert(session, lease);
        self.schedule(session, Some(after(now, remaining_ms.min(ttl_ms / 2))));
    }

    fn remove(&mut self, session: u64) {
        self.schedule(session, None);
        self.sessions.remove(&session);
    }

    /// Replaces what is known of the delay of a lock.
    fn schedule_delay(&mut self, name: &Bytes, delay: Option<Delay>) {
        if let Some(old) = self.delays.remove(name) {
            self.delays_due.remove(&(old.due, name.clone()));
        }
        if let Some(delay) = delay {
            self.delays_due.insert((delay.due, name.clone()));
            self.delays.insert(name.clone(), delay);
        }
    }

    fn schedule(&mut self, session: u64, due: Option<u64>) {
        let Some(lease) = self.sessions.get_mut(&session) else { return };
        if let Some(old) = std::mem::replace(&mut lease.due, due) {
            self.due.remove(&(old, session));
        }
        if let Some(at) = due {
            self.due.insert((at, session));
        }
    }
}

fn after(now: u64, ms: u64) -> u64 {
    now.saturating_add(ms.saturating_mul(NS_PER_MS))
}
