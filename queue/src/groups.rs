//! The groups that have members: each coordinator, driven by its members.
//!
//! No task runs for a group. Whoever polls a consumer passes the time to the coordinator, and wakes
//! up for its deadlines.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::config::ConsumerConfig;
use crate::core::group::{
    Coordinator, GroupRejected, Input, MemberId, Output, Place, Standing, Times,
};
use crate::core::table::{Table, View};
use crate::error::{CommitError, ConsumeError, StoreError};
use crate::queue::{Queue, SMALL_BYTES, gone};

/// The most bytes of changes by which one commit deletes a group, or what groups have stored about
/// a topic.
pub(crate) const DELETED_BYTES: usize = 64 << 10;

/// The time of day, in ms since the UNIX epoch.
pub(crate) fn now_ms() -> u64 {
    crate::work::time_of_day() / 1_000_000
}

/// How far the deletion of a group has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Deleted {
    /// It stays: it is used, or was lately.
    Kept,
    /// Some of its offsets.
    Partly,
    Wholly,
}

impl Queue {
    /// Deletes a group, durably: all that it has stored, in every topic. One of the same name
    /// begins anew, and what a member of the old one commits late is rejected. Nothing happens
    /// where there is no such group.
    ///
    /// # Errors
    /// [`CommitError::GroupActive`] while it has members; [`CommitError::Store`]. Of a group with
    /// thousands of offsets some may be deleted then.
    ///
    /// # Cancel safety
    /// The group may be deleted all the same, or a part of its offsets: delete it again.
    pub async fn delete_group(&self, name: &str) -> Result<(), CommitError> {
        // Ends: each round deletes something.
        while self.delete_part(name, None).await? == Deleted::Partly {}
        Ok(())
    }

    /// Deletes, as [`delete_group`](Self::delete_group), the groups without members that nobody has
    /// used for `unused_for`: no member has come or gone, and no offset was stored. What is used is
    /// known to an hour. Call it from time to time, at least once in that time (Kafka's brokers do
    /// it by themselves, after 7 days): it notes which groups have members. Returns the names of
    /// those that are gone.
    ///
    /// # Errors
    /// [`CommitError::Store`]; some may be deleted then.
    ///
    /// # Cancel safety
    /// What was done stays done; the next call does the rest.
    pub async fn expire_groups(&self, unused_for: Duration) -> Result<Vec<String>, CommitError> {
        let unused_ms = u64::try_from(unused_for.as_millis()).unwrap_or(u64::MAX);
        let mut gone = Vec::new();
        for name in self.shared.writer.read(Table::groups) {
            // Ends: each round deletes something, or leaves.
            let deleted = loop {
                match self.delete_part(&name, Some(unused_ms)).await? {
                    Deleted::Partly => {}
                    deleted => break deleted,
                }
            };
            if deleted == Deleted::Wholly {
                gone.push(name);
            }
        }
        Ok(gone)
    }

    /// Deletes a part of a group: of any, or of one that is unused for so many ms.
    async fn delete_part(
        &self,
        name: &str,
        unused_ms: Option<u64>,
    ) -> Result<Deleted, CommitError> {
        self.shared.groups.expire_members(name);
        let (answer, answered) = oneshot::channel();
        let (shared, group) = (Arc::clone(&self.shared), name.to_owned());
        let bytes = self.shared.writer.max_item_bytes().min(DELETED_BYTES + SMALL_BYTES);
        let plan = move |view: View<'_>| {
            let now = now_ms();
            let is_unused = unused_ms.map(|unused| view.is_unused(&group, now, unused));
            let has_members = shared.groups.has_members(&group);
            match (has_members, is_unused) {
                (true, None) => Err(CommitError::GroupActive { group }),
                (true, Some(_)) | (false, Some(None)) => {
                    Ok((view.use_group(&group, now).into_iter().collect(), Deleted::Kept))
                }
                (false, Some(Some(false))) => Ok((Vec::new(), Deleted::Kept)),
                (false, None | Some(Some(true))) => {
                    let (changes, is_whole) = view.delete_group(&group, bytes - SMALL_BYTES);
                    let deleted = if is_whole { Deleted::Wholly } else { Deleted::Partly };
                    Ok((changes, deleted))
                }
            }
        };
        self.shared.writer.change(bytes, plan, |result| drop(answer.send(result)));
        answered.await.map_err(|_| gone())?
    }
}

/// Groups by name, as long as a consumer holds them.
pub(crate) struct Groups {
    by_name: Mutex<HashMap<Arc<str>, Weak<Group>>>,
    max: usize,
}

pub(crate) struct Group {
    pub(crate) name: Arc<str>,
    queue: Queue,
    inner: Mutex<Inner>,
    /// Counts what members may wait for.
    changed: watch::Sender<u64>,
    began: Instant,
    /// How often a member that waits in a poll says that it is there.
    pub(crate) heartbeat: Duration,
}

struct Inner {
    coordinator: Coordinator,
    topics_version: u64,
    /// Why the latest generation is not durable, and how often that happened.
    failure: Option<StoreError>,
    failures: u64,
}

impl Groups {
    pub(crate) fn new(max: usize) -> Self {
        Self { by_name: Mutex::default(), max }
    }

    pub(crate) fn has_members(&self, name: &str) -> bool {
        let group = self.by_name.lock().get(name).and_then(Weak::upgrade);
        group.is_some_and(|group| !group.inner.lock().coordinator.is_empty())
    }

    /// The partitions that the members of a group have been given.
    pub(crate) fn given(&self, name: &str) -> BTreeSet<Place> {
        let group = self.by_name.lock().get(name).and_then(Weak::upgrade);
        group.map(|group| group.inner.lock().coordinator.given()).unwrap_or_default()
    }

    /// Removes the members of a group that have been silent for too long.
    fn expire_members(&self, name: &str) {
        let group = self.by_name.lock().get(name).and_then(Weak::upgrade);
        if let Some(group) = group {
            let _ = group.step(Input::Tick);
        }
    }

    /// Lets members look again.
    pub(crate) fn wake(&self) {
        let groups: Vec<_> = self.by_name.lock().values().filter_map(Weak::upgrade).collect();
        for group in groups {
            group.changed.send_modify(|count| *count += 1);
        }
    }

    /// The group of this name, which is made if nobody holds it.
    pub(crate) fn group(
        &self,
        queue: &Queue,
        name: &str,
        config: &ConsumerConfig,
    ) -> Result<Arc<Group>, ConsumeError> {
        let mut by_name = self.by_name.lock();
        if let Some(group) = by_name.get(name).and_then(Weak::upgrade) {
            return Ok(group);
        }
        if by_name.len() >= self.max {
            by_name.retain(|_, group| group.strong_count() > 0);
        }
        if by_name.len() >= self.max {
            return Err(ConsumeError::TooManyGroups { limit: self.max });
        }
        let ns = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 4);
        let times =
            Times { session: ns(config.session_timeout), rebalance: ns(config.rebalance_timeout) };
        let mut topics_version = 0;
        let topics = queue.shared.partitions_since(&mut topics_version).unwrap_or_default();
        let max_members = queue.shared.config.max_members;
        let coordinator = Coordinator::new(config.assignor, times, max_members, topics);
        let inner = Inner { coordinator, topics_version, failure: None, failures: 0 };
        let name: Arc<str> = name.into();
        let group = Arc::new(Group {
            name: Arc::clone(&name),
            queue: queue.clone(),
            inner: Mutex::new(inner),
            changed: watch::Sender::new(0),
            began: Instant::now(),
            heartbeat: config.session_timeout / 3,
        });
        by_name.insert(name, Arc::downgrade(&group));
        Ok(group)
    }
}

impl Group {
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX / 4)
    }

    /// Passes an input to the coordinator, and does what it asks for.
    pub(crate) fn step(self: &Arc<Self>, input: Input) -> Result<Option<MemberId>, GroupRejected> {
        let (result, outputs) = {
            let mut inner = self.inner.lock();
            let now = self.now();
            let Inner { coordinator, topics_version, .. } = &mut *inner;
            if let Some(topics) = self.queue.shared.partitions_since(topics_version) {
                let _ = coordinator.step(now, Input::Topics { topics });
            }
            let result = coordinator.step(now, input);
            (result, std::iter::from_fn(|| coordinator.poll_output()).collect::<Vec<_>>())
        };
        for output in outputs {
            match output {
                Output::Persist { ticket } => self.persist(ticket),
                Output::Removed { member } => {
                    let group = &self.name;
                    tracing::info!(target: "voussoir::queue", %group, member, "removed from group");
                    self.changed.send_modify(|count| *count += 1);
                }
                Output::Changed => self.changed.send_modify(|count| *count += 1),
            }
        }
        result
    }

    /// Makes the next generation durable. Commits of the one before are rejected from then on.
    fn persist(self: &Arc<Self>, ticket: u64) {
        let name = Arc::clone(&self.name);
        let plan = move |view: View<'_>| match view.next_generation(&name, now_ms()) {
            Some((change, generation)) => Ok((vec![change], generation)),
            None => Err(StoreError::Rejected { why: "no generations are left".to_owned() }),
        };
        let group = Arc::clone(self);
        let end = move |result: Result<u32, StoreError>| {
            let generation = result.as_ref().ok().copied();
            if let Err(error) = result {
                let mut inner = group.inner.lock();
                inner.failures += 1;
                inner.failure = Some(error);
            }
            let _ = group.step(Input::Persisted { ticket, generation });
        };
        self.queue.shared.writer.change(SMALL_BYTES, plan, end);
    }

    pub(crate) fn join(
        self: &Arc<Self>,
        member: Option<MemberId>,
        generation: u32,
        config: &ConsumerConfig,
        owned: BTreeSet<Place>,
    ) -> Result<MemberId, GroupRejected> {
        let topics = config.topics.iter().map(|topic| topic.as_str().into()).collect();
        let instance = config.instance.as_deref().map(Into::into);
        let joined = self.step(Input::Join { member, generation, instance, topics, owned })?;
        joined.ok_or(GroupRejected::UnknownMember)
    }

    pub(crate) fn standing(&self, member: MemberId) -> Result<Standing, GroupRejected> {
        self.inner.lock().coordinator.standing(member)
    }

    /// The failure after the first `seen` ones, which it counts.
    pub(crate) fn failure_since(&self, seen: &mut u64) -> Option<StoreError> {
        let inner = self.inner.lock();
        (std::mem::replace(seen, inner.failures) < inner.failures)
            .then(|| inner.failure.clone())
            .flatten()
    }

    /// When the coordinator has something to do.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let deadline = self.inner.lock().coordinator.next_deadline()?;
        self.began.checked_add(Duration::from_nanos(deadline))
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Whether there is a static member of this name.
    pub(crate) fn has_instance(&self, instance: &str) -> bool {
        self.inner.lock().coordinator.instance(instance).is_some()
    }

    pub(crate) fn members(&self) -> usize {
        self.inner.lock().coordinator.members()
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").field("name", &self.name).finish_non_exhaustive()
    }
}
