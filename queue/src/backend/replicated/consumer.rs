//! A member of a group: asks the leader of the table what it may read, and reads from this node.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout_at};

use super::wire::{Beat, Join, Member, Place as Placed, Request, Response};
use super::{ATTEMPT, Cluster, NAME, READ_LEASE, beat_after, failure, unexpected};
use crate::backend::{
    BackendError, Consumer, Delivery, Need, Output, Position, Received, Refused, Subscription,
};
use crate::config::Start;
use crate::consumer::cursor::Cursor;
use crate::core::group::Place;
use crate::error::{FetchError, Outcome};

/// From one request of a member to the next, while a rebalance is under way.
const JOINING: Duration = Duration::from_millis(50);
/// How long a member waits for the ends of partitions that its group is to begin at: it may read
/// what it has for [`READ_LEASE`], and asks again meanwhile.
const BEGIN: Duration = Duration::from_millis(500);
/// Partitions whose beginnings one request stores: less than the table takes at once.
const BEGUN_AT_ONCE: usize = 500;
/// Bytes of batches that are read from a partition at once.
const FETCH_BYTES: usize = 1 << 20;

/// The answer to a request of a member.
type Heard = Result<Response, BackendError>;

pub(super) struct ReplicatedConsumer {
    cluster: Arc<Cluster>,
    subscription: Subscription,
    instance: String,
    member: Option<Member>,
    /// In which it was given what it reads. 0 while nothing was given.
    generation: u32,
    /// It was given what it reads as a member that it is no longer. It may still commit, until the
    /// group has another generation.
    is_over: bool,
    held: BTreeMap<Place, Held>,
    /// What it tells its coordinator, to take part in a rebalance.
    join: Option<Join>,
    /// The generation in which it was told last that it has to join.
    told: u32,
    /// A request that is on its way, and when it was begun. Kept beyond a poll that is dropped.
    asking: Option<(Instant, JoinHandle<Heard>)>,
    next_beat: Instant,
    /// Until then its coordinator gives nobody else what it reads.
    reads_until: Option<Instant>,
    /// Partitions of records that were taken since the last commit, to be returned or returned.
    polled: BTreeSet<Place>,
    /// Partitions that the next poll gives up: what they gave may be committed before.
    going: BTreeSet<Place>,
    /// Records that were returned since the last commit may be another member's by now.
    has_lost: bool,
    /// Where the next poll begins, so that no partition waits behind another.
    turn: usize,
}

/// A partition that it reads.
struct Held {
    cursor: Cursor,
    /// Where the group goes on when this member dies.
    committed: u64,
}

impl ReplicatedConsumer {
    pub(super) fn new(cluster: Arc<Cluster>, subscription: Subscription, number: u64) -> Self {
        // Nobody else has it, in this life of the node or in another one.
        let began = crate::work::time_of_day();
        let instance = format!("{}-{began}-{number}", cluster.config.group.id);
        Self {
            cluster,
            subscription,
            instance,
            member: None,
            generation: 0,
            is_over: false,
            held: BTreeMap::new(),
            join: None,
            told: 0,
            asking: None,
            next_beat: Instant::now(),
            reads_until: None,
            polled: BTreeSet::new(),
            going: BTreeSet::new(),
            has_lost: false,
            turn: 0,
        }
    }

    fn session(&self) -> Duration {
        self.subscription.processing_timeout
    }

    /// Begins a request unless one is on its way.
    fn ask(&mut self) {
        if self.asking.is_some() {
            return;
        }
        let now = Instant::now();
        let request = Request::Beat(Beat {
            group: self.subscription.group.clone(),
            instance: self.instance.clone(),
            member: self.member,
            topics: self.subscription.topics.clone(),
            session_ms: self.session().as_millis() as u64,
            join: self.join.clone().filter(|_| self.member.is_some()),
        });
        // Where nothing is stored, a group that begins at the end begins where that is now.
        let mut ends = BTreeSet::new();
        if self.subscription.start == Start::Latest {
            let topics = &self.subscription.topics;
            ends.extend(topics.iter().flat_map(|topic| self.cluster.numbers(topic)));
            ends.retain(|number| self.held.values().all(|held| held.cursor.number != *number));
        }
        let cluster = Arc::clone(&self.cluster);
        let group = self.subscription.group.clone();
        let patience = BEGIN.min(self.session() / 4);
        let asked =
            tokio::spawn(async move { beat(&cluster, &request, group, &ends, patience).await });
        self.asking = Some((now, asked));
    }

    /// Takes the answer to a request that was begun at `asked_at`. Returns whether the caller may
    /// commit before something is given up.
    fn hear(&mut self, asked_at: Instant, heard: Heard) -> Result<bool, BackendError> {
        let now = Instant::now();
        let may_read = asked_at + READ_LEASE.min(self.session());
        self.next_beat = now + JOINING;
        match heard? {
            Response::Place(Placed { member, must_join, generation, partitions }) => {
                let is_new = self.member.replace(member) != Some(member);
                self.is_over |= is_new && self.generation > 0;
                if must_join {
                    return Ok(self.let_go(generation, &partitions));
                }
                self.reads_until = Some(may_read);
                self.join = None;
                if self.adopt(generation, &partitions) {
                    self.next_beat = now + beat_after(self.session());
                }
            }
            Response::Waiting { member } => {
                let is_new = self.member != member;
                self.is_over |= is_new && self.generation > 0;
                self.member = member;
                self.join = None;
                self.reads_until = Some(may_read).filter(|_| member.is_some() && !self.is_over);
            }
            Response::NoMember => {
                (self.member, self.reads_until, self.join) = (None, None, None);
                self.is_over = self.generation > 0;
                self.next_beat = now;
            }
            Response::Mismatch { found } => {
                return Err(BackendError::Mismatch {
                    what: format!("the group {:?}", self.subscription.group),
                    field: "processing_timeout",
                    found: format!("{:?}", Duration::from_millis(found)),
                    wanted: format!("{:?}", self.session()),
                });
            }
            _ => return Err(unexpected()),
        }
        Ok(false)
    }

    /// Takes part in a rebalance with the partitions that it keeps. Returns whether it gives some
    /// up that it has returned records of: then it waits for the next poll.
    fn let_go(&mut self, generation: u32, partitions: &[(u32, Option<u64>)]) -> bool {
        self.told = generation;
        if !self.is_over {
            // What it gives up it may still commit, in the generation that has begun.
            self.generation = generation;
        }
        let keeps = |held: &Held| partitions.iter().any(|(at, _)| *at == held.cursor.number);
        let going = self.held.iter().filter(|(_, held)| self.is_over || !keeps(held));
        let going: BTreeSet<Place> = going.map(|(place, _)| place.clone()).collect();
        if !self.is_over && going.iter().any(|place| self.polled.contains(place)) {
            self.going = going;
            return true;
        }
        if !self.is_over {
            self.give_up(&going);
        }
        self.join();
        false
    }

    /// Joins, with the next request, with what it goes on reading.
    fn join(&mut self) {
        let own = self.held.values().filter(|_| !self.is_over);
        let owned = own.map(|held| held.cursor.number).collect();
        self.join = Some(Join { generation: self.told, owned });
        self.next_beat = Instant::now();
    }

    fn give_up(&mut self, going: &BTreeSet<Place>) {
        self.has_lost |= going.iter().any(|place| self.polled.contains(place));
        self.held.retain(|place, _| !going.contains(place));
    }

    /// Reads what it was given, from where the group stands. Returns whether the group has begun in
    /// all of it.
    fn adopt(&mut self, generation: u32, partitions: &[(u32, Option<u64>)]) -> bool {
        let is_over = std::mem::take(&mut self.is_over);
        let given: BTreeSet<u32> = partitions.iter().map(|(number, _)| *number).collect();
        // Never from a position of an earlier membership: another member may have gone on since.
        let is_gone = |held: &Held| is_over || !given.contains(&held.cursor.number);
        let gone = self.held.iter().filter(|(_, held)| is_gone(held));
        let gone = gone.map(|(place, _)| place.clone()).collect();
        self.give_up(&gone);
        self.going.clear();
        self.generation = generation;
        let kept: BTreeSet<u32> = self.held.values().map(|held| held.cursor.number).collect();
        let mut has_begun = true;
        for (number, stored) in partitions.iter().filter(|(number, _)| !kept.contains(number)) {
            // What this node does not know yet is given again with the next answer.
            let Some((place, part)) = self.cluster.part(*number) else { continue };
            let reader = part.reader().clone();
            let at = match (stored, self.subscription.start) {
                (Some(stored), _) => *stored,
                // Its end could not be asked for, or is of a topic that has just been created.
                (None, Start::Latest) => {
                    has_begun = false;
                    continue;
                }
                (None, _) => reader.offsets().start,
            };
            let cursor = Cursor::new(*number, reader, at);
            self.held.insert(place, Held { cursor, committed: at });
        }
        has_begun
    }

    /// Forgets partitions of topics that were deleted: nobody else is given those.
    fn forget_deleted(&mut self) {
        let Self { cluster, held, polled, .. } = self;
        held.retain(|place, held| {
            let is_closed = held.cursor.partition.is_stopped();
            let is_there = !is_closed || cluster.part(held.cursor.number).is_some();
            if !is_there {
                polled.remove(place);
            }
            is_there
        });
    }

    /// Waits for the answer of a request, or until a partition has records, at most until `until`.
    /// What the answer is, as [`hear`](Self::hear) has it.
    ///
    /// # Errors
    /// A partition can be read no more: this node has stopped.
    async fn wait(
        &mut self,
        until: Instant,
        for_records: bool,
    ) -> Result<Result<bool, BackendError>, BackendError> {
        let Self { asking, held, cluster, .. } = self;
        let woken = poll_fn(|context| {
            if let Some((_, asked)) = asking
                && let Poll::Ready(heard) = Pin::new(asked).poll(context)
            {
                return Poll::Ready(Ok(Some(heard)));
            }
            for held in held.values_mut().filter(|_| for_records) {
                match held.cursor.poll_wait(context) {
                    Poll::Pending => {}
                    // Its topic was deleted.
                    Poll::Ready(Err(_)) if cluster.part(held.cursor.number).is_none() => {
                        return Poll::Ready(Ok(None));
                    }
                    Poll::Ready(woken) => return Poll::Ready(woken.map(|()| None)),
                }
            }
            Poll::Pending
        });
        let Ok(woken) = timeout_at(until, woken).await else { return Ok(Ok(false)) };
        let unreadable = |error: FetchError| BackendError::Unavailable { why: error.to_string() };
        let Some(heard) = woken.map_err(unreadable)? else { return Ok(Ok(false)) };
        let Some((asked_at, _)) = self.asking.take() else { return Ok(Ok(false)) };
        let gone = || BackendError::Unavailable { why: "this node is stopping".to_owned() };
        Ok(self.hear(asked_at, heard.unwrap_or_else(|_| Err(gone()))))
    }

    fn may_read(&self) -> bool {
        self.reads_until.is_some_and(|until| Instant::now() < until)
    }

    /// Takes records from the partitions in turn.
    fn take_records(&mut self) -> Result<Vec<Received>, BackendError> {
        let (mut records, mut failure) = (Vec::new(), None);
        let places: Vec<Place> = self.held.keys().cloned().collect();
        let count = places.len();
        let most = self.subscription.max_poll_records;
        for at in 0..count {
            let place = &places[(self.turn + at) % count];
            let Some(Held { cursor, .. }) = self.held.get_mut(place) else { continue };
            // A node that has just started shows less than the group has read.
            if cursor.partition.offsets().end < cursor.position {
                continue;
            }
            let room = most - records.len();
            // Where retention was faster, the group goes on with the first record that is left.
            match cursor.take(room, FETCH_BYTES, Start::Earliest, place) {
                Ok(taken) => {
                    if !taken.is_empty() {
                        self.polled.insert(place.clone());
                    }
                    records.extend(taken.into_iter().map(|record| {
                        let position = Position { partition: place.1, offset: record.offset };
                        let topic = Arc::clone(&place.0);
                        Received { topic, position, record, deliveries: None }
                    }));
                }
                // What the others have is returned first; the error is found again.
                Err(error) => drop(failure.get_or_insert(BackendError::from(error))),
            }
            if records.len() >= most {
                self.turn = (self.turn + at + 1) % count;
                break;
            }
        }
        match failure {
            Some(error) if records.is_empty() => Err(error),
            _ => Ok(records),
        }
    }

    /// Undoes [`take_records`](Self::take_records).
    fn take_back(&mut self, records: Vec<Received>) {
        for Received { topic, position, .. } in records {
            if let Some(Held { cursor, .. }) = self.held.get_mut(&(topic, position.partition)) {
                cursor.move_to(cursor.position.min(position.offset));
            }
        }
    }

    /// Stores how far polls have read.
    async fn store(&mut self) -> Result<(), BackendError> {
        let timeout = self.cluster.config.producer.delivery_timeout.unwrap_or(Duration::MAX);
        let deadline = Instant::now() + timeout.min(self.session());
        // Ends: at the deadline, or with an answer.
        loop {
            if self.has_lost {
                let why = "partitions that they came from were given to another member";
                return Err(BackendError::Lost { why: why.to_owned() });
            }
            let moved = self.held.values().filter(|held| held.committed < held.cursor.position);
            let offsets: Vec<_> =
                moved.map(|held| (held.cursor.number, held.cursor.position)).collect();
            if offsets.is_empty() {
                return Ok(());
            }
            let (group, generation) = (self.subscription.group.clone(), self.generation);
            let request = Request::Commit { group, generation, offsets };
            let table = self.cluster.table.clone();
            let (response, is_unknown) = self.cluster.ask(&table, &request, deadline).await;
            let outcome = if is_unknown { Outcome::Unknown } else { Outcome::NotApplied };
            match failure(response, outcome)? {
                Response::Done => {
                    for held in self.held.values_mut() {
                        held.committed = held.committed.max(held.cursor.position);
                    }
                    return Ok(());
                }
                Response::Stale { .. } if is_unknown => {
                    let why = "the group has gone on, before it or behind it".to_owned();
                    return Err(BackendError::Unknown { why });
                }
                Response::Stale { current } => {
                    if !self.still_holds(generation, deadline).await? {
                        let why = format!("the group is in generation {current} by now");
                        return Err(BackendError::Lost { why });
                    }
                }
                _ => return Err(unexpected()),
            }
        }
    }

    /// Whether what it reads is still its own, in another generation than `generation`. Nobody else
    /// was given a partition of that in between: each rebalance waits for what a member goes on
    /// reading. One that is no member any more has lost it.
    async fn still_holds(
        &mut self,
        generation: u32,
        deadline: Instant,
    ) -> Result<bool, BackendError> {
        // Ends: at the deadline, or with another generation.
        while self.generation == generation && !self.has_lost {
            if self.is_over || Instant::now() >= deadline {
                return Ok(false);
            }
            if self.next_beat <= Instant::now() {
                self.ask();
            }
            let until = if self.asking.is_some() { deadline } else { self.next_beat.min(deadline) };
            if let Err(error) = self.wait(until, false).await?
                && !error.is_retryable()
            {
                return Err(error);
            }
        }
        Ok(!self.has_lost)
    }

    fn forget(&mut self) {
        self.polled.clear();
        self.has_lost = false;
    }

    fn go_back(&mut self) {
        self.forget();
        for Held { cursor, committed } in self.held.values_mut() {
            cursor.move_to(*committed);
        }
    }

    /// Ends a commit: goes back when nothing was committed.
    fn settle(&mut self, result: Result<(), BackendError>) -> Result<(), BackendError> {
        match &result {
            Err(error) if error.outcome() == Outcome::NotApplied => self.go_back(),
            _ => self.forget(),
        }
        result
    }

    /// Leaves the group, when it is known whether it is a member.
    fn leave(&mut self) -> impl Future<Output = Result<(), BackendError>> + Send + use<> {
        let (cluster, asking) = (Arc::clone(&self.cluster), self.asking.take());
        let (mut member, group) = (self.member.take(), self.subscription.group.clone());
        async move {
            if let Some((_, asked)) = asking {
                match asked.await {
                    Ok(Ok(Response::Place(place))) => member = Some(place.member),
                    Ok(Ok(Response::Waiting { member: Some(found) })) => member = Some(found),
                    _ => {}
                }
            }
            let Some(member) = member else { return Ok(()) };
            let request = Request::Leave { group, member };
            cluster.ask_table(&request, Instant::now() + ATTEMPT).await.map(|_| ())
        }
    }
}

/// Asks the coordinator. In the partitions of `ends` for which the group has stored nothing it
/// begins where they end, and stores that: whoever is given one next passes over nothing. Those
/// whose ends are not known within `patience` are left for the next time.
async fn beat(
    cluster: &Cluster,
    request: &Request,
    group: String,
    ends: &BTreeSet<u32>,
    patience: Duration,
) -> Heard {
    let mut response = cluster.ask_table(request, Instant::now() + ATTEMPT).await?;
    let Response::Place(place) = &mut response else { return Ok(response) };
    if place.must_join {
        return Ok(response);
    }
    let new = place.partitions.iter().filter(|(_, stored)| stored.is_none());
    let new = new.map(|(number, _)| *number).filter(|number| ends.contains(number));
    let found = find_ends(cluster, new, patience).await;
    let begun: Vec<(u32, u64)> = found.iter().map(|(number, end)| (*number, *end)).collect();
    for begun in begun.chunks(BEGUN_AT_ONCE) {
        let (group, offsets) = (group.clone(), begun.to_vec());
        let commit = Request::Commit { group, generation: place.generation, offsets };
        if cluster.ask_table(&commit, Instant::now() + ATTEMPT).await? != Response::Done {
            let why = "the group has gone on to another generation".to_owned();
            return Err(BackendError::Unavailable { why });
        }
    }
    for (number, stored) in &mut place.partitions {
        *stored = stored.or_else(|| found.get(number).copied());
    }
    Ok(response)
}

/// Asks all of these partitions at once where they end. Returns those that have answered in time.
async fn find_ends(
    cluster: &Cluster,
    numbers: impl Iterator<Item = u32>,
    patience: Duration,
) -> BTreeMap<u32, u64> {
    let until = Instant::now() + patience;
    let mut asked = JoinSet::new();
    for number in numbers {
        let Some((_, part)) = cluster.part(number) else { continue };
        asked.spawn(async move {
            let synced = part.sync(until).await;
            synced.is_ok().then(|| (number, part.reader().offsets().end))
        });
    }
    asked.join_all().await.into_iter().flatten().collect()
}

#[async_trait]
impl Consumer for ReplicatedConsumer {
    async fn poll(&mut self, max_wait: Duration) -> Result<Vec<Received>, BackendError> {
        let now = Instant::now();
        let deadline = now.checked_add(max_wait).unwrap_or(now + Duration::from_secs(1 << 32));
        if !self.going.is_empty() {
            let going = std::mem::take(&mut self.going);
            self.give_up(&going);
            self.join();
        }
        // Why it may not read.
        let mut trouble = None;
        let mut is_over = false;
        // Ends: a round behind the deadline, or when there is something for the caller to do.
        loop {
            let now = Instant::now();
            if self.next_beat <= now {
                self.ask();
            }
            self.forget_deleted();
            let mut may_read = self.may_read();
            let records = if may_read { self.take_records()? } else { Vec::new() };
            if !records.is_empty() {
                if self.subscription.delivery != Delivery::AtMostOnce {
                    return Ok(records);
                }
                let stored = self.store().await;
                self.forget();
                match stored {
                    Ok(()) => return Ok(records),
                    // Nobody was given them: whoever has their partitions by now reads them again.
                    Err(BackendError::Lost { .. }) => {
                        self.take_back(records);
                        may_read = false;
                    }
                    Err(error) => {
                        self.take_back(records);
                        return Err(error);
                    }
                }
            }
            if is_over {
                return match trouble {
                    Some(error) if !may_read => Err(error),
                    _ => Ok(Vec::new()),
                };
            }
            is_over = now >= deadline;
            if is_over {
                // A caller that never waits hears what there is all the same, and lets others run.
                tokio::task::yield_now().await;
            }
            let mut until = deadline;
            if self.asking.is_none() {
                until = until.min(self.next_beat);
            }
            if may_read {
                until = self.reads_until.map_or(until, |ends| until.min(ends));
            }
            match self.wait(until, may_read).await? {
                Ok(false) => {}
                Ok(true) => return Ok(Vec::new()),
                Err(error) if error.is_retryable() => trouble = Some(error),
                Err(error) => return Err(error),
            }
        }
    }

    async fn commit(&mut self) -> Result<(), BackendError> {
        if self.polled.is_empty() {
            return Ok(());
        }
        let result = self.store().await;
        self.settle(result)
    }

    async fn commit_with(&mut self, _outputs: Vec<Output>) -> Result<(), BackendError> {
        let why = "records and offsets are in different groups of raft, which no commit spans";
        self.settle(Err(Refused::new(NAME, Need::ExactlyOnce, why).into()))
    }

    async fn rewind(&mut self) -> Result<(), BackendError> {
        self.go_back();
        Ok(())
    }

    async fn close(mut self: Box<Self>) -> Result<(), BackendError> {
        self.leave().await
    }
}

impl Drop for ReplicatedConsumer {
    fn drop(&mut self) {
        let is_member = self.member.is_some() || self.asking.is_some();
        if let (true, Ok(runtime)) = (is_member, Handle::try_current()) {
            runtime.spawn(self.leave());
        }
    }
}

impl fmt::Debug for ReplicatedConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplicatedConsumer")
            .field("subscription", &self.subscription)
            .finish_non_exhaustive()
    }
}
