//! A consumer: reads partitions, as a member of a group or those that it is told to.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::config::{ConsumerConfig, Guarantee, Start};
use crate::core::entry::{Key, Value};
use crate::core::group::{GroupRejected, Input, MemberId, Place, Standing};
use crate::core::table::View;
use crate::error::{CommitError, ConsumeError, TopicError};
use crate::format::Record;
use crate::groups::Group;
use crate::lag::Lag;
use crate::partition::Seek;
use crate::queue::{Queue, SMALL_BYTES, TopicPartition, gone};
use crate::transaction::{GroupOffsets, OFFSET_BYTES, plan_offsets};

pub(crate) mod cursor;
mod news;
mod standing;
#[cfg(feature = "stream")]
mod stream;

use cursor::Cursor;
use news::News;
#[cfg(feature = "stream")]
pub use stream::RecordStream;

/// Reads records, and remembers how far it has read.
///
/// One task owns it: reading and committing need `&mut`. It has no task of its own; a member that
/// is not polled for `session_timeout` is removed from its group.
pub struct Consumer {
    pub(crate) queue: Queue,
    config: ConsumerConfig,
    membership: Option<Membership>,
    cursors: BTreeMap<Place, Cursor>,
    topics_version: u64,
    /// Where the next poll begins, so that no partition waits behind another.
    turn: usize,
    /// Given to the caller with the next answer.
    news: News,
    /// Why a partition that the consumer was given cannot be read. Returned by a poll that has no
    /// records of others.
    failure: Option<ConsumeError>,
    /// A commit that the consumer began by itself.
    committing: Option<CommitFuture>,
}

struct Membership {
    group: Arc<Group>,
    changes: watch::Receiver<u64>,
    member: Option<MemberId>,
    /// Of what `cursors` are. 0 while nothing was given.
    generation: u32,
    /// It was a member with a generation, has lost its place, and has no other generation yet.
    is_former: bool,
    failures_seen: u64,
    /// The caller has been told that it is about to lose partitions.
    is_told: bool,
    /// Another static member of its name has taken its place.
    is_replaced: bool,
}

/// A record, and where it is from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsumerRecord {
    /// The partition.
    pub partition: TopicPartition,
    /// The record, with its offset.
    pub record: Record,
}

/// What a poll returns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Polled {
    /// Records, those of each partition in order. None when none came in time, and when `revoking`
    /// has partitions.
    pub records: Vec<ConsumerRecord>,
    /// Partitions that the consumer reads from now on, none of which is in `revoking`. One that is
    /// in `lost` too was lost before.
    pub assigned: Vec<TopicPartition>,
    /// Partitions that the next poll gives up: commit what was done with them before. Only for
    /// [`Guarantee::Manual`] and [`Guarantee::ExactlyOnce`]; otherwise the consumer commits.
    pub revoking: Vec<TopicPartition>,
    /// Partitions that are lost already: another member may work on them, commits are rejected. Or
    /// their topic was deleted.
    pub lost: Vec<TopicPartition>,
}

/// The answer to a commit. The commit goes on when it is dropped.
#[must_use = "the answer says whether the offsets are stored"]
#[derive(Debug)]
pub struct CommitFuture {
    answer: oneshot::Receiver<Result<(), CommitError>>,
}

impl Future for CommitFuture {
    type Output = Result<(), CommitError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = Pin::new(&mut self.answer).poll(context);
        answer.map(|answer| answer.unwrap_or_else(|_| Err(gone().into())))
    }
}

impl Queue {
    /// A consumer. As a member of a group it joins with its first poll.
    ///
    /// # Errors
    /// The configuration breaks a rule, or there are as many groups as may be.
    pub fn consumer(&self, config: ConsumerConfig) -> Result<Consumer, ConsumeError> {
        config.validate()?;
        let membership = match (&config.group, config.topics.is_empty()) {
            (Some(name), false) => {
                let group = self.shared.groups.group(self, name, &config)?;
                let changes = group.changes();
                let (generation, failures_seen) = (0, 0);
                Some(Membership {
                    group,
                    changes,
                    member: None,
                    generation,
                    is_former: false,
                    failures_seen,
                    is_told: false,
                    is_replaced: false,
                })
            }
            _ => None,
        };
        Ok(Consumer {
            queue: self.clone(),
            config,
            membership,
            cursors: BTreeMap::new(),
            topics_version: 0,
            turn: 0,
            news: News::default(),
            failure: None,
            committing: None,
        })
    }
}

impl Consumer {
    /// Reads these partitions, and no others. Only for a consumer that subscribes to no topics.
    ///
    /// # Errors
    /// It subscribes to topics, or there is no such partition. What it reads is unchanged.
    pub fn assign(&mut self, partitions: &[TopicPartition]) -> Result<(), ConsumeError> {
        if self.membership.is_some() {
            return Err(ConsumeError::Subscribed);
        }
        let places = partitions.iter().map(|at| (Arc::clone(&at.topic), at.partition));
        let places: BTreeSet<Place> = places.collect();
        let mut cursors = BTreeMap::new();
        for place in places {
            let cursor = match self.cursors.remove(&place) {
                Some(cursor) => cursor,
                None => self.cursor(&place)?,
            };
            cursors.insert(place, cursor);
        }
        self.cursors = cursors;
        Ok(())
    }

    /// The next records, waiting at most `max_wait` for one. At most
    /// [`ConsumerConfig::max_poll_records`].
    ///
    /// It also does what the group needs: it joins, and takes and gives up partitions.
    ///
    /// # Errors
    /// See [`ConsumeError`]. The consumer can be polled again. The error of one partition is
    /// returned when no other one has records, and nothing else is to be told.
    ///
    /// # Cancel safety
    /// The next poll returns what this one has not; with [`Guarantee::AtMostOnce`] records whose
    /// offsets were being stored are not returned again.
    pub async fn poll(&mut self, max_wait: Duration) -> Result<Polled, ConsumeError> {
        let deadline = Instant::now().checked_add(max_wait);
        if self.config.guarantee == Guarantee::AtLeastOnce {
            // What the last poll returned has been processed.
            self.commit_behind();
        }
        // Ends: at the deadline, or when there is something to return.
        loop {
            if let Some(membership) = &mut self.membership {
                membership.changes.mark_unchanged();
            }
            let is_ready = self.follow_group().await?;
            if !self.news.revoking.is_empty() {
                return Ok(self.polled(Vec::new()));
            }
            self.follow_topics();
            let mut is_ready = is_ready && self.store_beginnings().await?;
            let taken = if is_ready { self.take_records() } else { Ok(Vec::new()) };
            let records = self.or_failure(taken)?;
            if !records.is_empty() {
                if self.config.guarantee != Guarantee::AtMostOnce {
                    return Ok(self.polled(records));
                }
                match self.commit_positions().await {
                    Ok(()) => return Ok(self.polled(records)),
                    // Nobody was given them: whoever has their partitions in the generation that
                    // has begun reads them again.
                    Err(CommitError::StaleGeneration { .. }) => {
                        self.take_back(records);
                        is_ready = false;
                    }
                    Err(error) => {
                        self.take_back(records);
                        return Err(error.into());
                    }
                }
            }
            let is_over = deadline.is_some_and(|deadline| deadline <= Instant::now());
            if is_over || self.news.is_some() {
                return Ok(self.polled(Vec::new()));
            }
            self.wait(deadline, is_ready).await?;
        }
    }

    /// Stores how far the consumer has read: all records that polls have returned count as done.
    /// The commit begins with the call; the future may be dropped. Of a member that has lost its
    /// place it is rejected, also when nothing is left to store.
    pub fn commit(&mut self) -> CommitFuture {
        let result = match self.config.guarantee {
            Guarantee::ExactlyOnce => Err(CommitError::Guarantee {
                guarantee: "ExactlyOnce",
                how: "with a transaction (Transaction::offsets)",
            }),
            _ => self.group_offsets(),
        };
        self.commit_offsets(result)
    }

    /// Stores the offset of the next record to read of each partition.
    ///
    /// # Errors
    /// As [`commit`](Self::commit), for a partition that the consumer does not read, and for an
    /// offset beyond the end of one ([`CommitError::BeyondEnd`]): nothing is stored then.
    pub fn commit_to(&mut self, offsets: &[(TopicPartition, u64)]) -> CommitFuture {
        let offsets = self.group_offsets().and_then(|all| {
            let number = |(at, offset): &(TopicPartition, u64)| {
                let place = (Arc::clone(&at.topic), at.partition);
                let (topic, partition) = (at.topic.to_string(), at.partition);
                let Some(cursor) = self.cursors.get(&place) else {
                    return Err(CommitError::NotAssigned { topic, partition });
                };
                let (offset, end) = (*offset, cursor.partition.offsets().end);
                if offset > end {
                    return Err(CommitError::BeyondEnd { topic, partition, offset, end });
                }
                Ok((cursor.number, offset))
            };
            let offsets = offsets.iter().map(number).collect::<Result<Vec<_>, _>>()?;
            Ok(GroupOffsets { offsets, ..all })
        });
        self.commit_offsets(offsets)
    }

    /// Goes back to the offsets that the group has stored, or where nothing is stored to where
    /// reading began: for a transaction that was not committed. Paused partitions stay paused.
    ///
    /// # Errors
    /// As [`seek`](Self::seek).
    pub fn rewind(&mut self) -> Result<(), ConsumeError> {
        let places: Vec<Place> = self.cursors.keys().cloned().collect();
        for place in places {
            let old = self.cursors.get(&place);
            let cursor = self.cursor_after(&place, old)?;
            self.cursors.insert(place, cursor);
        }
        Ok(())
    }

    /// Reads a partition from another place on.
    ///
    /// # Errors
    /// The consumer does not read the partition, or it cannot be searched.
    pub fn seek(&mut self, partition: &TopicPartition, to: Seek) -> Result<(), ConsumeError> {
        let cursor = self.cursor_of(partition)?;
        let offset = cursor.partition.seek(to)?;
        cursor.move_to(offset);
        Ok(())
    }

    /// Returns no more records of a partition until [`resume`](Self::resume).
    ///
    /// # Errors
    /// The consumer does not read the partition.
    pub fn pause(&mut self, partition: &TopicPartition) -> Result<(), ConsumeError> {
        self.cursor_of(partition)?.is_paused = true;
        Ok(())
    }

    /// Returns records of a partition again.
    ///
    /// # Errors
    /// The consumer does not read the partition.
    pub fn resume(&mut self, partition: &TopicPartition) -> Result<(), ConsumeError> {
        self.cursor_of(partition)?.is_paused = false;
        Ok(())
    }

    /// The offset of the next record of a partition, if the consumer reads it.
    pub fn position(&self, partition: &TopicPartition) -> Option<u64> {
        let place = (Arc::clone(&partition.topic), partition.partition);
        self.cursors.get(&place).map(|cursor| cursor.position)
    }

    /// The partitions that it reads.
    pub fn assignment(&self) -> Vec<TopicPartition> {
        self.cursors.keys().map(name_of).collect()
    }

    /// How far it is behind in each partition that it reads.
    pub fn lag(&self) -> Vec<Lag> {
        let lag = |(place, cursor): (&Place, &Cursor)| Lag {
            partition: name_of(place),
            position: cursor.position,
            end: cursor.partition.offsets().end,
        };
        self.cursors.iter().map(lag).collect()
    }

    /// The generation of the group in which it was given its partitions, 0 for none.
    pub fn generation(&self) -> u32 {
        self.membership.as_ref().map_or(0, |membership| membership.generation)
    }

    /// Members of the group, 0 without one.
    pub fn group_members(&self) -> usize {
        self.membership.as_ref().map_or(0, |membership| membership.group.members())
    }

    /// Commits what polls have returned, unless it is [`Guarantee::Manual`] or
    /// [`Guarantee::ExactlyOnce`], and leaves the group. A static member
    /// ([`ConsumerConfig::instance`]) does not leave: its partitions wait for one of its name until
    /// `session_timeout` is over.
    ///
    /// # Errors
    /// The commit failed; the consumer has left.
    ///
    /// # Cancel safety
    /// It has left; whether the offsets are stored is unknown.
    pub async fn close(mut self) -> Result<(), CommitError> {
        match self.config.guarantee {
            Guarantee::AtLeastOnce if self.config.group.is_some() => self.commit_positions().await,
            _ => Ok(()),
        }
    }

    fn polled(&mut self, records: Vec<ConsumerRecord>) -> Polled {
        let News { assigned, revoking, lost } = std::mem::take(&mut self.news);
        Polled { records, assigned, revoking, lost }
    }

    fn cursor_of(&mut self, partition: &TopicPartition) -> Result<&mut Cursor, ConsumeError> {
        let place = (Arc::clone(&partition.topic), partition.partition);
        let cursor = self.cursors.get_mut(&place);
        cursor.ok_or_else(|| ConsumeError::NotAssigned { partition: partition.to_string() })
    }

    /// A cursor at the offset that the group has stored, or where the configuration says.
    fn cursor(&self, place: &Place) -> Result<Cursor, ConsumeError> {
        self.cursor_after(place, None)
    }

    /// As [`cursor`](Self::cursor), in place of `old`, whose beginning counts where nothing is
    /// stored: the end of the partition has moved on since.
    fn cursor_after(
        &self,
        (topic, partition): &Place,
        old: Option<&Cursor>,
    ) -> Result<Cursor, ConsumeError> {
        let slot = self.queue.topic(topic)?.slot(*partition)?;
        let stored = self.config.group.as_ref().and_then(|group| {
            let key = Key::Offset(group.clone(), slot.number);
            self.queue.shared.writer.read(|table| u64::read(table.get(&key)?))
        });
        let bounds = slot.partition.offsets();
        let old = old.filter(|old| old.number == slot.number);
        let position = match (stored.or(old.map(|old| old.began)), self.config.start) {
            (Some(offset), _) => offset,
            (None, Start::Earliest) => bounds.start,
            (None, Start::Latest) => bounds.end,
            (None, Start::Stored) => {
                let partition = TopicPartition::new(topic, *partition).to_string();
                return Err(ConsumeError::NothingStored { partition });
            }
        };
        let mut cursor = Cursor::new(slot.number, slot.partition.clone(), position);
        cursor.has_begun = stored.is_some();
        cursor.is_paused = old.is_some_and(|old| old.is_paused);
        Ok(cursor)
    }

    /// Takes records from the partitions in turn.
    fn take_records(&mut self) -> Result<Vec<ConsumerRecord>, ConsumeError> {
        let (mut records, mut failure) = (Vec::new(), None);
        let count = self.cursors.len();
        let places: Vec<Place> = self.cursors.keys().cloned().collect();
        for at in 0..count {
            let place = &places[(self.turn + at) % count];
            let Some(cursor) = self.cursors.get_mut(place) else { continue };
            if cursor.is_paused {
                continue;
            }
            let room = self.config.max_poll_records - records.len();
            // Where retention was faster, a group goes on with the first record that is left.
            let start = match self.config.start {
                Start::Latest if cursor.has_begun => Start::Earliest,
                start => start,
            };
            match cursor.take(room, self.config.fetch_bytes, start, place) {
                Ok(taken) => {
                    let partition = name_of(place);
                    let record = |record| ConsumerRecord { partition: partition.clone(), record };
                    records.extend(taken.into_iter().map(record));
                }
                // What the others have is returned first; the error is found again.
                Err(error) => {
                    failure.get_or_insert((error, (self.turn + at + 1) % count));
                }
            }
            if records.len() >= self.config.max_poll_records {
                self.turn = (self.turn + at + 1) % count;
                break;
            }
        }
        match failure {
            Some((error, next)) if records.is_empty() => {
                self.turn = next;
                Err(error)
            }
            _ => Ok(records),
        }
    }

    /// Undoes [`take_records`](Self::take_records).
    fn take_back(&mut self, records: Vec<ConsumerRecord>) {
        for ConsumerRecord { partition, record } in records.into_iter().rev() {
            if let Ok(cursor) = self.cursor_of(&partition) {
                cursor.put_back(record);
            }
        }
    }

    /// Waits until the group has changed, time has passed, or, if `for_records`, a partition may
    /// have records.
    async fn wait(
        &mut self,
        deadline: Option<Instant>,
        for_records: bool,
    ) -> Result<(), ConsumeError> {
        let group = self
            .membership
            .as_mut()
            .map(|Membership { group, changes, .. }| (group.next_deadline(), group, changes));
        let (group_deadline, heartbeat, mut changes) = match group {
            // The time-outs of the group are those of its first member.
            Some((deadline, group, changes)) => {
                (deadline, Some(Instant::now() + group.heartbeat), Some(changes))
            }
            None => (None, None, None),
        };
        let until = deadline.into_iter().chain(group_deadline).chain(heartbeat).min();
        let cursors = &mut self.cursors;
        let woken = async {
            let mut changed = std::pin::pin!(async {
                match &mut changes {
                    Some(changes) => drop(changes.changed().await),
                    None => std::future::pending().await,
                }
            });
            std::future::poll_fn(|context| {
                if changed.as_mut().poll(context).is_ready() {
                    return Poll::Ready(Ok(()));
                }
                let cursors =
                    cursors.values_mut().filter(|cursor| for_records && !cursor.is_paused);
                for cursor in cursors {
                    if let Poll::Ready(result) = cursor.poll_wait(context) {
                        return Poll::Ready(result);
                    }
                }
                Poll::Pending
            })
            .await
        };
        match until {
            None => Ok(woken.await?),
            Some(until) => match tokio::time::timeout_at(until, woken).await {
                Ok(result) => Ok(result?),
                Err(_elapsed) => {
                    if let Some(Membership { group, member, .. }) = &self.membership {
                        // Who waits is not silent.
                        let beat = member.map(|member| Input::Heartbeat { member });
                        let _ = group.step(beat.unwrap_or(Input::Tick));
                    }
                    Ok(())
                }
            },
        }
    }
}

/// The part that follows the group.
impl Consumer {
    /// Does what the group needs. Returns whether records may be returned.
    async fn follow_group(&mut self) -> Result<bool, ConsumeError> {
        // Ends: each round joins, or returns. After a join the standing is `Waiting` or `Stable`,
        // unless another rebalance has begun, which takes another member or the disk.
        loop {
            let Some(membership) = &mut self.membership else { return Ok(true) };
            if let Some(error) = membership.group.failure_since(&mut membership.failures_seen) {
                return Err(error.into());
            }
            let standing = match membership.member {
                Some(member) => {
                    let beat = membership.group.step(Input::Heartbeat { member });
                    beat.and_then(|_| membership.group.standing(member))
                }
                None => Err(GroupRejected::UnknownMember),
            };
            match standing {
                Err(GroupRejected::TooManyMembers | GroupRejected::UnknownMember) => {
                    self.lose_all();
                    self.check_replaced()?;
                    self.join(0, BTreeSet::new())?;
                }
                // A transaction of records that are returned now would name a generation that is
                // over by then.
                Ok(Standing::Waiting) => {
                    return Ok(self.config.guarantee != Guarantee::ExactlyOnce);
                }
                Ok(Standing::Stable { generation, places }) => {
                    self.adopt(generation, &places);
                    return Ok(true);
                }
                Ok(Standing::MustJoin { is_cooperative, generation, places }) => {
                    // What it gives up it may still commit, in the generation that has begun.
                    membership.enter(generation);
                    let keep = if is_cooperative { places } else { BTreeSet::new() };
                    self.give_up_untold(&keep);
                    let gives_up = self.cursors.keys().any(|place| !keep.contains(place));
                    if gives_up && !self.may_give_up(&keep).await {
                        return Ok(false);
                    }
                    self.cursors.retain(|place, _| keep.contains(place));
                    if is_cooperative {
                        self.adopt(generation, &keep);
                    }
                    self.join(generation, keep)?;
                }
            }
        }
    }

    fn join(&mut self, generation: u32, owned: BTreeSet<Place>) -> Result<(), ConsumeError> {
        let Some(membership) = &mut self.membership else { return Ok(()) };
        membership.is_told = false;
        match membership.group.join(membership.member, generation, &self.config, owned) {
            Ok(member) => membership.member = Some(member),
            // It was removed, or replaced, while it awaited its commit.
            Err(GroupRejected::UnknownMember) => self.lose_all(),
            Err(GroupRejected::TooManyMembers) => {
                membership.member = None;
                let limit = self.queue.shared.config.max_members;
                return Err(ConsumeError::TooManyMembers { limit });
            }
        }
        Ok(())
    }

    /// Commits before partitions are given up, or lets the caller do so first.
    async fn may_give_up(&mut self, keep: &BTreeSet<Place>) -> bool {
        match self.config.guarantee {
            // When the commit fails, the records are read again: that is at least once.
            Guarantee::AtLeastOnce => drop(self.commit_positions().await),
            Guarantee::AtMostOnce => {}
            Guarantee::Manual | Guarantee::ExactlyOnce => {
                let Some(membership) = &mut self.membership else { return true };
                if !std::mem::replace(&mut membership.is_told, true) {
                    let going = self.cursors.keys().filter(|place| !keep.contains(*place));
                    self.news.revoking = going.map(name_of).collect();
                    return false;
                }
            }
        }
        true
    }

    /// Reads what it was given from where the group stands.
    fn adopt(&mut self, generation: u32, places: &BTreeSet<Place>) {
        // A partition of a topic that was deleted.
        self.lose_all_but(places);
        if let Some(membership) = &mut self.membership {
            membership.enter(generation);
        }
        for place in places {
            if !self.cursors.contains_key(place) {
                // Never from a position of earlier: another member may have gone on since.
                let cursor = match self.cursor(place) {
                    Ok(cursor) => cursor,
                    // It is being deleted: the group hears of it next.
                    Err(ConsumeError::Topic(TopicError::Unknown { .. })) => continue,
                    // The others are read all the same.
                    Err(error) => {
                        self.failure.get_or_insert(error);
                        continue;
                    }
                };
                self.cursors.insert(place.clone(), cursor);
                self.news.assigned.push(name_of(place));
            }
        }
    }

    fn lose_all(&mut self) {
        self.lose_all_but(&BTreeSet::new());
        if let Some(membership) = &mut self.membership {
            let was_member = membership.member.take().is_some();
            membership.is_former |= membership.generation > 0;
            membership.generation = 0;
            if let Some(instance) = &self.config.instance {
                membership.is_replaced |= was_member && membership.group.has_instance(instance);
            }
        }
    }
}

/// The part that commits.
impl Consumer {
    /// How far polls have read, as the group's offsets.
    pub(crate) fn group_offsets(&self) -> Result<GroupOffsets, CommitError> {
        let group = self.config.group.as_deref().ok_or(CommitError::NoGroup)?;
        let offsets = self.cursors.values().map(|cursor| (cursor.number, cursor.position));
        Ok(GroupOffsets {
            group: group.into(),
            generation: self.membership.as_ref().map(|membership| membership.generation),
            offsets: offsets.collect(),
        })
    }

    fn commit_offsets(&self, offsets: Result<GroupOffsets, CommitError>) -> CommitFuture {
        let (sender, answer) = oneshot::channel();
        let writer = &self.queue.shared.writer;
        let limit = writer.max_item_bytes();
        let sized = offsets.and_then(|offsets| {
            let bytes = SMALL_BYTES + OFFSET_BYTES * offsets.offsets.len();
            if bytes > limit {
                return Err(CommitError::TooLarge { bytes, limit });
            }
            Ok((offsets, bytes))
        });
        match sized {
            // Nothing was ever given, or there is nobody to be given anything instead.
            Ok((offsets, _)) if offsets.offsets.is_empty() && self.has_no_generation() => {
                drop(sender.send(Ok(())));
            }
            Ok((offsets, bytes)) => {
                let shared = Arc::clone(&self.queue.shared);
                let plan = move |view: View<'_>| {
                    plan_offsets(view, &shared.groups, &offsets).map(|changes| (changes, ()))
                };
                writer.change(bytes, plan, |result| drop(sender.send(result)));
            }
            Err(error) => drop(sender.send(Err(error))),
        }
        CommitFuture { answer }
    }

    /// Commits the positions, after a commit of its own that is on its way.
    async fn commit_positions(&mut self) -> Result<(), CommitError> {
        let commit = self.commit_offsets(self.group_offsets());
        // Commits of one group are written in the order of the calls.
        self.committing = None;
        commit.await?;
        self.cursors.values_mut().for_each(Cursor::note_commit);
        Ok(())
    }

    /// Begins a commit unless one is on its way or nothing has moved.
    fn commit_behind(&mut self) {
        if self.config.group.is_none() {
            return;
        }
        if let Some(committing) = &mut self.committing {
            let waker = std::task::Waker::noop();
            let answer = Pin::new(committing).poll(&mut Context::from_waker(waker));
            match answer {
                Poll::Pending => return,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    // Later commits have what it had.
                    tracing::debug!(target: "voussoir::queue", %error, "a commit failed");
                    self.cursors.values_mut().for_each(Cursor::forget_commit);
                }
            }
        }
        self.committing = None;
        if self.cursors.values().any(Cursor::has_moved) {
            self.committing = Some(self.commit_offsets(self.group_offsets()));
            self.cursors.values_mut().for_each(Cursor::note_commit);
        }
    }
}

fn name_of((topic, partition): &Place) -> TopicPartition {
    TopicPartition { topic: Arc::clone(topic), partition: *partition }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        // A static member may come back: its partitions wait for it until its session ends.
        let is_static = self.config.instance.is_some();
        if let Some(Membership { group, member: Some(member), .. }) = &self.membership
            && !is_static
        {
            let _ = group.step(Input::Leave { member: *member });
        }
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let assignment = self.assignment();
        f.debug_struct("Consumer").field("assignment", &assignment).finish_non_exhaustive()
    }
}
