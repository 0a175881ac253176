//! What the leader of the table does: it gives out topics, ids of producers and generations of
//! groups, and stores offsets.
//!
//! The table is a partition of changes, as the embedded queue has it in its journal. Its leader
//! holds what the changes say, decides each request against that, and answers when the change is
//! committed. What waits shares a batch. Every write names the position at which it expects the log
//! to end, so a leader that was replaced stores nothing that it decided against an older table.
//!
//! Members of groups are in the leader's memory only. The next leader takes them in as new ones,
//! and gives partitions of a group that there was before out only when all that were told before
//! that they may read has run out ([`READ_LEASE`]).

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::wire::{Beat, Join, Member, Place, Request, Response};
use super::{ATTEMPT, READ_LEASE, beat_after};
use crate::config::{QueueConfig, TopicConfig};
use crate::core::entry::{Change, Key, TopicEntry, Value};
use crate::core::group::{
    Assignor, Coordinator, GroupRejected, Input, MemberId, Output, Standing, Times,
};
use crate::core::table::{StagedChanges, Table, View};
use crate::error::{Outcome, ProduceError, StoreError};
use crate::format::{BatchBuilder, MAX_UNPACKED_BYTES, Record};
use crate::groups::now_ms;
use crate::partition::Partition;
use crate::queue::{counters, is_topic_name};
use crate::raft::{LeadError, ReplicatedPartition};
use crate::store::Durability;

/// The longest that a rebalance waits for its members, as for the embedded queue.
const MAX_REBALANCE: Duration = Duration::from_secs(60);

/// Takes requests about the table, while this node leads it.
pub(super) struct Desk {
    table: ReplicatedPartition,
    limits: QueueConfig,
    /// What the log of the table may take.
    max_bytes: u64,
    waiting: Mutex<Vec<Item>>,
    reign: tokio::sync::Mutex<Option<Reign>>,
    /// Coordinators that there were: the next one's number.
    coordinators: AtomicU64,
}

struct Item {
    request: Request,
    answer: oneshot::Sender<Response>,
}

/// What this node knows while it leads the table.
struct Reign {
    term: u64,
    /// What it writes to. Nobody else has written to the log since it was opened, or the next write
    /// is rejected.
    partition: Partition,
    /// What the records of `partition` before `end` say.
    table: Table,
    end: u64,
    began: Instant,
    topics: BTreeMap<Arc<str>, u32>,
    /// Rises with each change of `topics`.
    topics_version: u64,
    groups: HashMap<String, Group>,
}

struct Group {
    number: u64,
    session: Duration,
    /// Of the topics that the coordinator knows.
    topics_version: u64,
    coordinator: Coordinator,
}

/// What is answered when the changes of a round are committed.
enum After {
    Answer(Response),
    /// Where the member stands then.
    Standing(String, Member),
}

/// Generations to be made durable: group, ticket, and the generation, if any are left.
type Tickets = Vec<(String, u64, Option<u32>)>;

impl Desk {
    pub(super) fn new(
        table: ReplicatedPartition,
        limits: QueueConfig,
        max_bytes: u64,
    ) -> Arc<Self> {
        Arc::new(Self {
            table,
            limits,
            max_bytes,
            waiting: Mutex::default(),
            reign: tokio::sync::Mutex::default(),
            coordinators: AtomicU64::new(0),
        })
    }

    /// Answers a request, by the deadline. What has been taken in goes on behind that, and when the
    /// future is dropped.
    pub(super) async fn answer(self: &Arc<Self>, request: Request, deadline: Instant) -> Response {
        let leader = self.table.leader();
        if leader != Some(self.table.node()) {
            return Response::NotLeader { leader };
        }
        if let Request::Beat(_) = &request {
            // The caller may read for a time from now on. So whoever leads next must not have begun
            // before now: a majority says so, or the request ends here.
            if let Err(error) = self.table.sync(deadline).await {
                return Response::NotNow { why: error.to_string() };
            }
        }
        let (answer, answered) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock();
            let limit = self.limits.max_waiting_commits;
            if waiting.len() >= limit {
                let why = format!("{limit} requests wait already (max_waiting_commits)");
                return Response::NotNow { why };
            }
            waiting.push(Item { request, answer });
        }
        // A task of its own: a write that nobody waits for must still be noted.
        tokio::spawn(Arc::clone(self).work());
        match timeout_at(deadline, answered).await {
            Ok(Ok(response)) => response,
            Ok(Err(_)) | Err(_) => Response::Unknown { why: "there is no answer yet".to_owned() },
        }
    }

    /// Answers all that wait.
    async fn work(self: Arc<Self>) {
        let mut place = self.reign.lock().await;
        let items = std::mem::take(&mut *self.waiting.lock());
        if items.is_empty() {
            return;
        }
        match self.current(place.take()).await {
            Ok(reign) => *place = self.serve(reign, items).await,
            Err(response) => {
                for item in items {
                    drop(item.answer.send(response.clone()));
                }
            }
        }
    }

    /// What this node knows as the leader: `last`, unless another has led since, or a write has
    /// been lost sight of.
    async fn current(&self, last: Option<Reign>) -> Result<Reign, Response> {
        let led = self.table.reign(Instant::now() + ATTEMPT).await;
        let (term, partition) = led.map_err(|error| match error {
            LeadError::NotLeader { leader } => Response::NotLeader { leader },
            error => Response::NotNow { why: error.to_string() },
        })?;
        match last {
            Some(last) if last.is_current(term, &partition) => Ok(last),
            _ => Reign::begin(term, partition).map_err(|why| Response::Rejected { why }),
        }
    }

    /// Answers the items. Returns what this node knows then, unless it has lost sight of a write.
    async fn serve(&self, mut reign: Reign, items: Vec<Item>) -> Option<Reign> {
        let mut items = VecDeque::from(items);
        let limit = reign.max_bytes();
        let mut tickets = Tickets::new();
        // Ends: each round takes an item, or makes a generation durable. A coordinator asks for
        // the next one only after an input of a member.
        while !items.is_empty() || !tickets.is_empty() {
            let mut staged = StagedChanges::default();
            reign.stage(&mut tickets, &mut staged);
            let (mut bytes, mut counted) = (0, 0);
            let mut ended = Vec::new();
            while bytes <= limit
                && let Some(Item { request, answer }) = items.pop_front()
            {
                let after = self.decide(&mut reign, &mut staged, &mut tickets, request);
                ended.push((answer, after));
                bytes += staged.changes[counted..].iter().map(Change::len_bytes).sum::<usize>();
                counted = staged.changes.len();
            }
            let written = reign.write(staged).await;
            let is_over = written.as_ref().is_err_and(|error| {
                error.outcome() == Outcome::Unknown || reign.partition.is_stopped()
            });
            let mut next = Tickets::new();
            for (group, ticket, generation) in std::mem::take(&mut tickets) {
                let generation = generation.filter(|_| written.is_ok());
                let _ = reign.step(&group, Input::Persisted { ticket, generation }, &mut next);
            }
            tickets = next;
            for (answer, after) in ended {
                let response = match (&written, after) {
                    (Ok(()), After::Answer(response)) => response,
                    (Ok(()), After::Standing(group, member)) => reign.standing(&group, member),
                    (Err(error), _) => failed(error),
                };
                drop(answer.send(response));
            }
            if is_over {
                let why = || "the leader begins anew".to_owned();
                for item in items {
                    drop(item.answer.send(Response::NotNow { why: why() }));
                }
                return None;
            }
        }
        Some(reign)
    }

    /// Decides a request against the table as all before it leave it.
    fn decide(
        &self,
        reign: &mut Reign,
        staged: &mut StagedChanges,
        tickets: &mut Tickets,
        request: Request,
    ) -> After {
        After::Answer(match request {
            Request::CreateTopic { name, partitions } => {
                self.create_topic(reign, staged, &name, partitions)
            }
            Request::DeleteTopic { name, first_number } => {
                if reign.topic(staged, &name, first_number).is_some() {
                    staged.push(Change::remove(Key::Topic(name)));
                }
                Response::Done
            }
            Request::SetRetention { name, first_number, max_bytes, max_age_ms } => {
                match reign.topic(staged, &name, first_number) {
                    Some(entry) => {
                        let entry = TopicEntry { max_bytes, max_age_ms, ..entry };
                        staged.push(Change::put(Key::Topic(name), &entry));
                        Response::Done
                    }
                    None => Response::NoTopic,
                }
            }
            Request::NewProducer => {
                let mut counters = counters(View { table: &reign.table, staged });
                let id = counters.next_producer;
                counters.next_producer += 1;
                staged.push(Change::put(Key::Counters, &counters));
                Response::Producer { id }
            }
            Request::Beat(beat) => match self.beat(reign, tickets, staged, beat) {
                Ok((group, member)) => return After::Standing(group, member),
                Err(response) => response,
            },
            Request::Leave { group, member } => {
                if reign.coordinates(&group, member) {
                    let before = tickets.len();
                    let _ = reign.step(&group, Input::Leave { member: member.id }, tickets);
                    reign.stage(&mut tickets[before..], staged);
                }
                Response::Done
            }
            Request::Commit { group, generation, offsets } => {
                reign.commit(staged, &group, generation, &offsets, self.is_full(reign))
            }
            Request::DeleteGroup { group } => {
                if reign.may_have_members() {
                    return After::Answer(young());
                }
                if reign.has_members(&group, tickets, staged) {
                    let why = format!("the group {group:?} has members: they have to leave first");
                    return After::Answer(Response::Rejected { why });
                }
                reign.delete_group(staged, &group)
            }
            Request::ExpireGroups { unused_ms } => reign.expire_groups(tickets, staged, unused_ms),
            Request::Append { .. } => {
                Response::Rejected { why: "batches do not go to the table".to_owned() }
            }
        })
    }

    fn create_topic(
        &self,
        reign: &Reign,
        staged: &mut StagedChanges,
        name: &str,
        partitions: u32,
    ) -> Response {
        let rejected = |why: String| Response::Rejected { why };
        if !is_topic_name(name) {
            return rejected(format!(
                "{name:?} is no name: 1 to 249 of a-z, A-Z, 0-9, '.', '_' and '-'"
            ));
        }
        if let Err(error) = TopicConfig::partitions(partitions).validate() {
            return rejected(error.to_string());
        }
        let view = View { table: &reign.table, staged };
        let key = Key::Topic(name.to_owned());
        if let Some(found) = view.get(&key).and_then(|value| TopicEntry::read(value)) {
            return match found.partitions {
                found if found == partitions => Response::Done,
                found => Response::Mismatch { found: found.into() },
            };
        }
        if self.is_full(reign) {
            return full();
        }
        let (topics, all) = view.topics();
        let QueueConfig { max_topics, max_partitions, .. } = self.limits;
        if topics >= max_topics || all + partitions as usize > max_partitions {
            return rejected("there are as many as max_topics or max_partitions".to_owned());
        }
        let mut counters = counters(view);
        let first_number = counters.next_number;
        let Some(next_number) = first_number.checked_add(partitions) else {
            return rejected("all numbers of partitions are used up".to_owned());
        };
        counters.next_number = next_number;
        let entry = TopicEntry {
            first_number,
            partitions,
            max_bytes: u64::MAX,
            max_age_ms: u64::MAX,
            min_lag_ms: u64::MAX,
            min_tombstone_age_ms: 0,
        };
        staged.push(Change::put(Key::Counters, &counters));
        staged.push(Change::put(key, &entry));
        Response::Done
    }

    /// Takes what a member says to its coordinator.
    fn beat(
        &self,
        reign: &mut Reign,
        tickets: &mut Tickets,
        staged: &mut StagedChanges,
        beat: Beat,
    ) -> Result<(String, Member), Response> {
        let Beat { group, instance, member, topics, session_ms, join } = beat;
        let session = Duration::from_millis(session_ms);
        let is_known = reign.groups.contains_key(&group);
        if let Some(known) = reign.groups.get(&group)
            && known.session != session
        {
            return Err(Response::Mismatch { found: known.session.as_millis() as u64 });
        }
        if member.is_some_and(|member| !reign.coordinates(&group, member)) {
            return Err(Response::NoMember);
        }
        let has_been = reign.table.get(&Key::Group(group.clone())).is_some();
        if !has_been && self.is_full(reign) {
            return Err(full());
        }
        if !is_known && has_been && reign.began.elapsed() < READ_LEASE {
            // Members of before may read, by the word of the leader of before.
            return Err(Response::Waiting { member: None });
        }
        if !is_known {
            self.coordinate(reign, &group, session)?;
        }
        let topics: BTreeSet<Arc<str>> = topics.iter().map(|topic| topic.as_str().into()).collect();
        let join = join.filter(|_| member.is_some());
        // The name is of one consumer. One that is a member has asked before, and this request was
        // sent again, or was late: to take its own place would give what it reads to others.
        let coordinator = reign.groups.get(&group).map(|group| &group.coordinator);
        let known = coordinator.and_then(|coordinator| coordinator.instance(&instance));
        let member = member.map(|member| member.id).or(known);
        let input = match (member, join) {
            (None, _) => Input::Join {
                member: None,
                generation: 0,
                instance: Some(instance.as_str().into()),
                topics,
                owned: BTreeSet::new(),
            },
            (Some(id), None) => Input::Heartbeat { member: id },
            (Some(id), Some(Join { generation, owned })) => {
                let owned = owned.into_iter().filter_map(|number| reign.place_of(number));
                let owned = owned.collect();
                Input::Join { member: Some(id), generation, instance: None, topics, owned }
            }
        };
        let before = tickets.len();
        let stepped = reign.step(&group, input, tickets);
        reign.stage(&mut tickets[before..], staged);
        let joined = stepped.map_err(|rejected| match rejected {
            GroupRejected::UnknownMember => Response::NoMember,
            GroupRejected::TooManyMembers => {
                let why =
                    format!("the group has {} members (max_members)", self.limits.max_members);
                Response::NotNow { why }
            }
        })?;
        let coordinator = reign.groups.get(&group).map_or(0, |group| group.number);
        let id = joined.or(member).ok_or(Response::NoMember)?;
        Ok((group, Member { term: reign.term, coordinator, id }))
    }

    /// Whether the table takes no new entries any more. Those that there are can be changed, and
    /// deleted: the log has room for that, however it was written.
    fn is_full(&self, reign: &Reign) -> bool {
        reign.table.log_bytes() > self.max_bytes
    }

    /// Begins a coordinator for a group that has none.
    fn coordinate(
        &self,
        reign: &mut Reign,
        group: &str,
        session: Duration,
    ) -> Result<(), Response> {
        let limit = self.limits.max_groups;
        if reign.groups.len() >= limit {
            reign.groups.retain(|_, group| !group.coordinator.is_empty());
        }
        if reign.groups.len() >= limit {
            let why = format!("{limit} groups have members (max_groups)");
            return Err(Response::NotNow { why });
        }
        let ns = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 4);
        // A poll need not say that it has come.
        let silence = session + beat_after(session);
        let times = Times { session: ns(silence), rebalance: ns(session.min(MAX_REBALANCE)) };
        let (assignor, most) = (Assignor::CooperativeSticky, self.limits.max_members);
        let coordinator = Coordinator::new(assignor, times, most, reign.topics.clone());
        let number = self.coordinators.fetch_add(1, Relaxed);
        let topics_version = reign.topics_version;
        let begun = Group { number, session, topics_version, coordinator };
        reign.groups.insert(group.to_owned(), begun);
        Ok(())
    }
}

impl Reign {
    /// Reads the table from the log.
    fn begin(term: u64, partition: Partition) -> Result<Self, String> {
        let offsets = partition.offsets();
        let (mut table, mut end) = (Table::new(offsets.start), offsets.start);
        // Ends: each fetch before the end has at least one batch, or fails.
        while end < offsets.end {
            let fetched = partition.fetch(end, 1 << 20).map_err(|error| error.to_string())?;
            for record in fetched.records(MAX_UNPACKED_BYTES) {
                let record = record.map_err(|error| error.to_string())?;
                table.apply(Change::decode(record.value.unwrap_or_default())?);
            }
            end = fetched.next_offset;
        }
        let topics = topics_of(&table);
        let (began, groups, topics_version) = (Instant::now(), HashMap::new(), 0);
        Ok(Self { term, partition, table, end, began, topics, topics_version, groups })
    }

    fn is_current(&self, term: u64, partition: &Partition) -> bool {
        self.term == term && !self.partition.is_stopped() && partition.offsets().end == self.end
    }

    /// Bytes of changes after which a batch is full, and the most that one request changes: both
    /// together are half of what fits, the rest is for cleaning and for what records take.
    fn max_bytes(&self) -> usize {
        self.partition.max_batch_bytes() / 4
    }

    /// Commits changes, with what keeps the log short, and applies them.
    async fn write(&mut self, mut staged: StagedChanges) -> Result<(), ProduceError> {
        if staged.changes.is_empty() {
            return Ok(());
        }
        let release = self.table.clean(&mut staged, self.max_bytes() / 2, 1);
        let mut batch = BatchBuilder::new().max_bytes(self.partition.max_batch_bytes());
        for change in &staged.changes {
            batch.push(&Record::new(change.encode()))?;
        }
        let appended = self.partition.append(batch.finish()?, Durability::Synced).await?;
        if appended.base_offset != self.end {
            self.partition.close();
            let why = "somebody else has written to the table".to_owned();
            return Err(StoreError::Failed { why }.into());
        }
        self.end = appended.last_offset + 1;
        let has_topic = staged.changes.iter().any(|change| matches!(change.key, Key::Topic(_)));
        staged.changes.into_iter().for_each(|change| self.table.apply(change));
        if has_topic {
            self.topics = topics_of(&self.table);
            self.topics_version += 1;
        }
        if let Some(first) = release {
            self.table.release(first);
            if let Err(error) = self.partition.release_before(first).await {
                tracing::warn!(target: "voussoir::queue", %error, "the table is not released");
            }
        }
        Ok(())
    }

    fn coordinates(&self, group: &str, member: Member) -> bool {
        let known = self.groups.get(group);
        member.term == self.term && known.is_some_and(|known| known.number == member.coordinator)
    }

    /// Passes an input to the group's coordinator. Adds the generations that it asks for.
    fn step(
        &mut self,
        name: &str,
        input: Input,
        tickets: &mut Tickets,
    ) -> Result<Option<MemberId>, GroupRejected> {
        let now = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX / 4);
        let Some(group) = self.groups.get_mut(name) else { return Ok(None) };
        let coordinator = &mut group.coordinator;
        if std::mem::replace(&mut group.topics_version, self.topics_version) != self.topics_version
        {
            let _ = coordinator.step(now, Input::Topics { topics: self.topics.clone() });
        }
        let result = coordinator.step(now, input);
        // Ends: an input has a few outputs.
        while let Some(output) = coordinator.poll_output() {
            match output {
                Output::Persist { ticket } => tickets.push((name.to_owned(), ticket, None)),
                Output::Removed { member } => {
                    tracing::info!(target: "voussoir::queue", group = %name, member, "removed");
                }
                // Members ask.
                Output::Changed => {}
            }
        }
        result
    }

    /// Stages the generations of these tickets.
    fn stage(&self, tickets: &mut [(String, u64, Option<u32>)], staged: &mut StagedChanges) {
        for (group, _, generation) in tickets {
            *generation = self.next_generation(group, staged);
        }
    }

    fn generation(&self, group: &str, staged: &StagedChanges) -> u32 {
        View { table: &self.table, staged }.group(group).generation
    }

    fn next_generation(&self, group: &str, staged: &mut StagedChanges) -> Option<u32> {
        let view = View { table: &self.table, staged };
        let (change, generation) = view.next_generation(group, now_ms())?;
        staged.push(change);
        Some(generation)
    }

    /// Whether groups may have members that this leader does not know of: those that are polled
    /// come before that is over.
    fn may_have_members(&self) -> bool {
        self.began.elapsed() < READ_LEASE
    }

    /// Whether a group has members now.
    fn has_members(
        &mut self,
        group: &str,
        tickets: &mut Tickets,
        staged: &mut StagedChanges,
    ) -> bool {
        let before = tickets.len();
        let _ = self.step(group, Input::Tick, tickets);
        self.stage(&mut tickets[before..], staged);
        self.groups.get(group).is_some_and(|group| !group.coordinator.is_empty())
    }

    /// Stages the deletion of a group without members, or a part of it.
    fn delete_group(&mut self, staged: &mut StagedChanges, name: &str) -> Response {
        // A generation that it asks for is the group's last word.
        self.groups.remove(name);
        let view = View { table: &self.table, staged };
        let (changes, is_whole) = view.delete_group(name, self.max_bytes() / 2);
        for change in changes {
            staged.push(change);
        }
        if is_whole { Response::Done } else { Response::More }
    }

    /// Stages the deletion of the groups that nobody uses, and notes which ones have members.
    fn expire_groups(
        &mut self,
        tickets: &mut Tickets,
        staged: &mut StagedChanges,
        unused_ms: u64,
    ) -> Response {
        if self.may_have_members() {
            return young();
        }
        let (now, limit) = (now_ms(), self.max_bytes() / 2);
        let (mut bytes, mut counted) = (0, staged.changes.len());
        for name in self.table.groups() {
            let has_members = self.has_members(&name, tickets, staged);
            let view = View { table: &self.table, staged };
            let is_unused = view.is_unused(&name, now, unused_ms);
            if has_members || is_unused.is_none() {
                view.use_group(&name, now).into_iter().for_each(|change| staged.push(change));
            } else if is_unused == Some(true) {
                if self.delete_group(staged, &name) == Response::More {
                    return Response::More;
                }
                tracing::info!(target: "voussoir::queue", group = %name, "expired");
            }
            bytes += staged.changes[counted..].iter().map(Change::len_bytes).sum::<usize>();
            counted = staged.changes.len();
            if bytes > limit {
                return Response::More;
            }
        }
        Response::Done
    }

    /// The topic of this name whose first partition has this number.
    fn topic(&self, staged: &StagedChanges, name: &str, first_number: u32) -> Option<TopicEntry> {
        let view = View { table: &self.table, staged };
        let entry = TopicEntry::read(view.get(&Key::Topic(name.to_owned()))?)?;
        (entry.first_number == first_number).then_some(entry)
    }

    /// Stages offsets of a generation, unless it is over. None goes back: a request may come late.
    /// Those of a topic that was deleted are passed over.
    fn commit(
        &self,
        staged: &mut StagedChanges,
        group: &str,
        generation: u32,
        offsets: &[(u32, u64)],
        is_full: bool,
    ) -> Response {
        let current = self.generation(group, staged);
        if generation != current {
            return Response::Stale { current };
        }
        let next_number = counters(View { table: &self.table, staged }).next_number;
        if let Some((number, _)) = offsets.iter().find(|(number, _)| *number >= next_number) {
            return Response::Rejected { why: format!("there is no partition {number}") };
        }
        let limit = self.max_bytes();
        let change = |(number, offset): &(u32, u64)| {
            Change::put(Key::Offset(group.to_owned(), *number), offset)
        };
        if offsets.iter().map(|at| change(at).len_bytes()).sum::<usize>() > limit {
            return Response::Rejected { why: format!("the offsets take more than {limit} bytes") };
        }
        let offsets = offsets.iter().filter(|(number, _)| self.table.has_partition(*number));
        let is_new = |at: &&(u32, u64)| self.table.get(&change(at).key).is_none();
        if is_full && offsets.clone().any(|at| is_new(&at)) {
            return full();
        }
        let view = View { table: &self.table, staged };
        if let Some(used) = view.use_group(group, now_ms()) {
            staged.push(used);
        }
        for at in offsets {
            let change = change(at);
            let view = View { table: &self.table, staged };
            let stored = view.get(&change.key).and_then(|value| u64::read(value));
            if stored < Some(at.1) {
                staged.push(change);
            }
        }
        Response::Done
    }

    fn standing(&self, name: &str, member: Member) -> Response {
        let Some(group) = self.groups.get(name) else { return Response::NoMember };
        let (must_join, generation, places) = match group.coordinator.standing(member.id) {
            Err(_) => return Response::NoMember,
            Ok(Standing::Waiting) => return Response::Waiting { member: Some(member) },
            Ok(Standing::Stable { generation, places }) => (false, generation, places),
            Ok(Standing::MustJoin { generation, places, .. }) => (true, generation, places),
        };
        let partition = |(topic, partition): &(Arc<str>, u32)| {
            let topic = self.table.get(&Key::Topic(topic.to_string()))?;
            let number = TopicEntry::read(topic)?.first_number + partition;
            let stored = self.table.get(&Key::Offset(name.to_owned(), number));
            Some((number, stored.and_then(|value| u64::read(value))))
        };
        let partitions = places.iter().filter_map(partition).collect();
        Response::Place(Place { member, must_join, generation, partitions })
    }

    /// The topic and partition of a number.
    fn place_of(&self, number: u32) -> Option<(Arc<str>, u32)> {
        self.table.topics().find_map(|(key, topic)| {
            let partition = number.checked_sub(topic.first_number)?;
            let Key::Topic(name) = key else { return None };
            (partition < topic.partitions).then(|| (name.as_str().into(), partition))
        })
    }
}

fn topics_of(table: &Table) -> BTreeMap<Arc<str>, u32> {
    let named = |(key, topic): (&Key, TopicEntry)| match key {
        Key::Topic(name) => Some((name.as_str().into(), topic.partitions)),
        _ => None,
    };
    table.topics().filter_map(named).collect()
}

/// This node has led for so short a time that it does not know the members of groups.
fn young() -> Response {
    Response::NotNow { why: "the leader does not know all members yet".to_owned() }
}

/// The table takes no new entries.
fn full() -> Response {
    let why = "the table of topics, groups and offsets is full: delete groups and topics that \
               nobody uses (expire_groups, delete_group, delete_topic), or raise max_bytes";
    Response::Unable { why: why.to_owned() }
}

/// What a write of the table that failed says to those who asked for it.
fn failed(error: &ProduceError) -> Response {
    if let ProduceError::Store(StoreError::Full { .. }) = error {
        return full();
    }
    let why = error.to_string();
    match error.outcome() {
        Outcome::Unknown => Response::Unknown { why },
        Outcome::NotApplied => Response::NotNow { why },
    }
}

#[cfg(test)]
mod tests;
