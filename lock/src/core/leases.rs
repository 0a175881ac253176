//! A leader's timers: sessions and lock-delays.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::command::{Answer, Command, Event};
use super::table::Table;

const NS_PER_MS: u64 = 1_000_000;

/// When sessions and lock-delays end, as one leader knows it. It is not replicated: a new leader
/// begins with what the table's checkpoints say, which gives a session back at most half of its
/// time to live.
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
    /// End of each lock-delay, by its lock: the time, and the index at which it began.
    delays: BTreeMap<Bytes, (u64, u64)>,
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
        let (sessions, due, delays) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
        let mut leases = Self { reign, checkpoints: 0, sessions, due, delays };
        for (id, session) in &table.sessions {
            leases.insert(now, *id, session.ttl_ms, session.remaining_ms);
        }
        for (name, lock) in &table.locks {
            if let Some(delay) = lock.delay {
                leases.delays.insert(name.clone(), (after(now, delay.ms), delay.since));
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
                if self.delays.get(name).is_some_and(|(_, known)| known == since) =>
            {
                self.delays.remove(name);
            }
            _ => {}
        }
        for event in events {
            match event {
                Event::SessionEnded { session } => self.remove(*session),
                Event::DelayBegan { name, since, delay_ms } => {
                    self.delays.insert(name.clone(), (after(now, *delay_ms), *since));
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
        let delay = self.delays.values().map(|(at, _)| *at).min();
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
        let due = self.delays.iter().find(|(_, (at, _))| *at <= now);
        let (name, since) = due.map(|(name, (_, since))| (name.clone(), *since))?;
        self.delays.remove(&name);
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
            Command::EndDelay { name, since, .. } => {
                self.delays.entry(name.clone()).or_insert((again, *since));
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
