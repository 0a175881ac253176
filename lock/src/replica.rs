//! The table of one node, its timers while it leads, and the calls that wait for it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::clock::{BootClock, Clock};
use crate::core::{
    Answer, Command, Event, Leases, LockView, Malformed, Rejection, Renewal, Restore, Table,
};
use crate::service::{Acquired, ServiceError};

/// The lock service's state on one node, as a part of a replicated state machine. Cheap to clone;
/// all clones are one.
///
/// A state machine of your own, with locks beside other state, calls [`apply`](Self::apply) for the
/// commands of the lock service, and [`snapshot`](Self::snapshot) and [`restore`](Self::restore)
/// with its own. What is replicated depends on nothing but the commands and their indexes; the
/// clock is for the timers of a leader, which are local.
#[derive(Clone)]
pub struct Replica {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    clock: Arc<dyn Clock>,
    /// Rings when a timer may be due earlier than before.
    timers: Notify,
}

#[derive(Default)]
struct State {
    table: Table,
    /// Index of the latest command that was applied since the start.
    applied: u64,
    /// The timers, while this node leads.
    leases: Option<Leases>,
    waits: BTreeMap<Wait, Bell>,
    /// Reused by each command.
    events: Vec<Event>,
}

/// What a call waits for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Wait {
    /// A session's acquisition, by its number.
    Grant(u64, u64),
    /// A change of a lock.
    Change(Bytes),
}

/// Wakes those that wait for the same.
struct Bell {
    notify: Arc<Notify>,
    /// How many calls wait by it. Invariant: at least 1.
    calls: usize,
}

/// A wait that is registered. Dropped, it is forgotten.
struct Waiting<'a> {
    replica: &'a Replica,
    wait: Wait,
    notify: Arc<Notify>,
}

impl Replica {
    /// Nothing was applied yet. Timers run by the [`BootClock`].
    pub fn new() -> Self {
        Self::with_clock(Arc::new(BootClock))
    }

    /// The same with a clock, in ns, that does not step and counts on while the machine is
    /// suspended.
    pub fn with_clock(clock: Arc<dyn Clock>) -> Self {
        let (state, timers) = (Mutex::default(), Notify::new());
        Self { inner: Arc::new(Inner { state, clock, timers }) }
    }

    /// The same, where the next command has a place after `index`.
    pub(crate) fn after(self, index: u64) -> Self {
        self.state().applied = index;
        self
    }

    /// Applies a command of the lock service, and returns its answer for whoever has proposed it.
    /// `index` is its place in the log, from 1 on: greater than that of every command before.
    ///
    /// # Errors
    /// [`Malformed`]: nothing was changed. A node that goes on is no replica any more: stop it.
    pub fn apply(&self, index: u64, command: &[u8]) -> Result<Bytes, Malformed> {
        let command = Command::decode(command)?;
        let mut state = self.state();
        Ok(self.apply_locked(&mut state, index, &command).encode())
    }

    /// The state in chunks of 1 byte to 512 KiB. Takes time and memory as the table does.
    pub fn snapshot(&self) -> Vec<Bytes> {
        let table = self.state().table.clone();
        table.snapshot()
    }

    /// Replaces the state by the chunks of a snapshot.
    ///
    /// # Errors
    /// [`Malformed`]: nothing was changed.
    pub fn restore(&self, chunks: &[Bytes]) -> Result<(), Malformed> {
        let mut restore = Restore::new();
        for chunk in chunks {
            restore.add(chunk)?;
        }
        self.install(restore.finish()?);
        Ok(())
    }

    /// Replaces the state.
    pub(crate) fn install(&self, table: Table) {
        let mut state = self.state();
        (state.table, state.leases) = (table, None);
        // What has changed is not known: everybody looks again.
        state.waits.values().for_each(|bell| bell.notify.notify_waiters());
    }

    /// A lock as this node knows it: it may be behind. [`LockService::view`] is not.
    ///
    /// [`LockService::view`]: crate::LockService::view
    pub fn lock(&self, name: &[u8]) -> LockView {
        self.state().table.lock(name)
    }

    /// How many sessions are open, as this node knows it.
    pub fn session_count(&self) -> usize {
        self.state().table.session_count()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic in a critical section is a defect of this crate. What it leaves behind is caught
        // where the state is compared with other replicas.
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply_locked(&self, state: &mut State, index: u64, command: &Command) -> Answer {
        let State { table, applied, leases, waits, events } = state;
        events.clear();
        let answer = table.apply(index, command, events);
        *applied = index;
        if let Some(leases) = leases {
            leases.applied(self.inner.clock.now(), command, answer, events);
            let has_begun = matches!(answer, Answer::Opened { .. })
                || events.iter().any(|event| matches!(event, Event::DelayBegan { .. }));
            if has_begun {
                self.inner.timers.notify_one();
            }
        }
        for event in events.drain(..) {
            match event {
                Event::Granted { session, request, .. } => {
                    ring(waits, &Wait::Grant(session, request));
                }
                Event::SessionEnded { session } => waits
                    .range(Wait::Grant(session, 0)..=Wait::Grant(session, u64::MAX))
                    .for_each(|(_, bell)| bell.notify.notify_waiters()),
                Event::Changed { name } => ring(waits, &Wait::Change(name)),
                Event::DelayBegan { .. } => {}
            }
        }
        if let Command::Release { session, request } = command {
            ring(waits, &Wait::Grant(*session, *request));
        }
        answer
    }

    /// Applies a command at the next index, where this is the only replica.
    pub(crate) fn apply_next(&self, command: &Command) -> Answer {
        let mut state = self.state();
        let index = state.applied + 1;
        self.apply_locked(&mut state, index, command)
    }

    /// Begins to lead in a reign, unless another has begun since.
    pub(crate) fn begin_reign(&self, reign: u64) {
        let mut state = self.state();
        if state.table.reign() == reign {
            let leases = Leases::new(self.inner.clock.now(), reign, &state.table);
            state.leases = Some(leases);
        }
        self.inner.timers.notify_one();
    }

    /// Ends to lead.
    #[cfg(feature = "raft")]
    pub(crate) fn end_reign(&self) {
        self.state().leases = None;
    }

    /// Renews a session. The caller has confirmed by a quorum, after the renewal came, that this
    /// table is as new as the log; so a later reign, if there is one, is known here.
    pub(crate) fn renew(&self, session: u64) -> Result<Renewal, ServiceError> {
        let mut state = self.state();
        let State { table, leases, .. } = &mut *state;
        let Some(leases) = leases.as_mut().filter(|leases| leases.reign() == table.reign()) else {
            return Err(ServiceError::NotLeader { leader: None });
        };
        Ok(leases.renew(self.inner.clock.now(), session))
    }

    /// The next command of a timer that is due.
    pub(crate) fn poll_timer(&self) -> Option<Command> {
        let now = self.inner.clock.now();
        self.state().leases.as_mut()?.poll(now)
    }

    #[cfg(feature = "raft")]
    /// A timer's command was not applied, or may not have been.
    pub(crate) fn retry_timer(&self, command: &Command, pause_ns: u64) {
        let now = self.inner.clock.now();
        if let Some(leases) = &mut self.state().leases {
            leases.retry(now, command, pause_ns);
        }
    }

    /// Returns when a timer is due, or may be due earlier than it was.
    pub(crate) async fn timer(&self) {
        let changed = self.inner.timers.notified();
        let next = self.state().leases.as_ref().and_then(Leases::next_deadline);
        let most = std::time::Duration::from_secs(1);
        let due = async {
            match next {
                Some(at) => crate::clock::sleep_until(&*self.inner.clock, at, most).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = changed => {}
            () = due => {}
        }
    }

    /// Where an acquisition stands at this node.
    pub(crate) fn acquisition(
        &self,
        session: u64,
        request: u64,
    ) -> Result<Option<Answer>, Rejection> {
        self.state().table.acquisition(session, request)
    }

    /// Waits until an acquisition that is queued is granted or has ended, at most to the deadline.
    pub(crate) async fn wait_for_grant(
        &self,
        session: u64,
        request: u64,
        deadline: Instant,
    ) -> Result<Acquired, ServiceError> {
        let waiting = self.wait(Wait::Grant(session, request));
        // Ends: the deadline passes.
        loop {
            let notified = waiting.notify.notified();
            match self.acquisition(session, request)? {
                Some(Answer::Granted { token }) => return Ok(Acquired::Granted { token }),
                Some(_) => {}
                None => return Err(Rejection::StaleRequest.into()),
            }
            if timeout_at(deadline, notified).await.is_err() {
                return Ok(Acquired::Queued);
            }
        }
    }

    /// The lock, once its version is not `known`, at the latest at the deadline.
    pub(crate) async fn wait_for_change(
        &self,
        name: &Bytes,
        known: Option<u64>,
        deadline: Instant,
    ) -> LockView {
        let waiting = self.wait(Wait::Change(name.clone()));
        // Ends: the deadline passes.
        loop {
            let notified = waiting.notify.notified();
            let view = self.lock(name);
            if known != Some(view.version) || timeout_at(deadline, notified).await.is_err() {
                return view;
            }
        }
    }

    fn wait(&self, wait: Wait) -> Waiting<'_> {
        let mut state = self.state();
        let fresh = || Bell { notify: Arc::new(Notify::new()), calls: 0 };
        let bell = state.waits.entry(wait.clone()).or_insert_with(fresh);
        bell.calls += 1;
        Waiting { replica: self, wait, notify: Arc::clone(&bell.notify) }
    }
}

fn ring(waits: &BTreeMap<Wait, Bell>, wait: &Wait) {
    if let Some(bell) = waits.get(wait) {
        bell.notify.notify_waiters();
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let wait = self.wait.clone();
        if let Entry::Occupied(mut bell) = self.replica.state().waits.entry(wait) {
            bell.get_mut().calls -= 1;
            if bell.get().calls == 0 {
                bell.remove();
            }
        }
    }
}

impl Default for Replica {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Replica {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.state();
        let sessions = state.table.session_count();
        let is_leading = state.leases.is_some();
        f.debug_struct("Replica")
            .field("applied", &state.applied)
            .field("sessions", &sessions)
            .field("is_leading", &is_leading)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_reign_renews_nothing() {
        let replica = Replica::with_clock(Arc::new(|| 7));
        let Answer::Reign { reign } = replica.apply_next(&Command::BeginReign) else {
            panic!("a reign");
        };
        replica.begin_reign(reign);
        let opened = replica.apply_next(&Command::OpenSession { ttl_ms: 1000 });
        assert_eq!(opened, Answer::Opened { session: 2 });
        assert_eq!(replica.renew(2), Ok(Renewal::Renewed));
        // Another node has begun to lead, and this one does not know it otherwise.
        replica.apply_next(&Command::BeginReign);
        assert_eq!(replica.renew(2), Err(ServiceError::NotLeader { leader: None }));
        // Nor does it begin what is over.
        replica.begin_reign(reign);
        assert!(replica.renew(2).is_err());
    }
}
