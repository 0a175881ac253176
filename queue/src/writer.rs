//! The one writer of a queue's table, and of commits that reach into several partitions.
//!
//! One commit is on its way at a time, and takes all items that wait. An item decides when it is
//! its turn, against the table as all items before it leave it: what it checked cannot change
//! before it is written.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use voussoir_journal::{Batch as Records, Commit, Log};

use crate::core::entry::Change;
use crate::core::table::{StagedChanges, Table, View};
use crate::error::{OpenError, ProduceError, StoreError};
use crate::format::Batch;
use crate::partition::{Appended, Partition, Turn};
use crate::store::journal::{from_read, submit};
use crate::store::{Done, JournalPartition, JournalStore};
use crate::watch::{GroupWatch, GroupWatches};

/// Items that one commit takes.
const GROUP_ITEMS: usize = 256;
/// Operations of the journal that the items of one commit take. A commit has at most 2,048, a few
/// of which append to the table's log.
const GROUP_OPERATIONS: usize = 1_900;
/// Items of the largest size whose bytes may wait.
const WAITING_ITEMS: usize = 4;
/// Records of the table's log go into batches of about this size.
const RECORDS_BYTES: usize = 256 << 10;

/// A partition of a topic.
#[derive(Debug)]
pub(crate) struct Slot {
    /// Of all partitions that there ever were in the queue.
    pub(crate) number: u32,
    pub(crate) partition: Partition,
    pub(crate) store: Arc<JournalPartition>,
}

/// What an item writes.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) changes: Vec<Change>,
    /// Partitions must be among [`Item::slots`].
    pub(crate) appends: Vec<(u32, Batch)>,
    /// Logs that end with the commit.
    pub(crate) deletes: Vec<Log>,
}

/// What became of an item.
#[derive(Clone, Debug)]
pub(crate) enum Fate {
    /// It is durable; where each of the batches is.
    Written(Vec<Appended>),
    /// [`Item::plan`] wrote nothing.
    Rejected,
    /// A partition does not take its batch. Nothing happened.
    NotTaken(ProduceError),
    /// The journal rejected or failed the commit.
    Failed(StoreError),
}

/// Something to be written in one commit.
pub(crate) trait Item: Send {
    /// Partitions that are kept still while the item is planned and written.
    fn slots(&self) -> Vec<Arc<Slot>>;

    /// Bytes of the changes and batches that it writes at most, with
    /// [`BATCH_OVERHEAD_BYTES`](crate::store::BATCH_OVERHEAD_BYTES) for each batch. At most
    /// [`Writer::max_item_bytes`].
    fn bytes(&self) -> usize;

    /// Operations of the journal that it needs at most, besides those on the table's log.
    fn operations(&self) -> usize;

    /// What to write, given the table; `None` for nothing. Runs under a lock of ours.
    fn plan(&mut self, view: View<'_>) -> Option<Plan>;

    /// The end. Runs without a lock, also when the item was never planned.
    fn end(self: Box<Self>, fate: Fate);
}

#[derive(Clone)]
pub(crate) struct Writer {
    shared: Arc<Shared>,
}

struct Shared {
    store: JournalStore,
    log: Log,
    inner: Mutex<Inner>,
    /// Told of the changes of each commit when they can be seen.
    watches: GroupWatches,
}

struct Inner {
    table: Table,
    queue: VecDeque<Box<dyn Item>>,
    /// Sum of [`Item::bytes`] over `queue`.
    queue_bytes: usize,
    max_queue: usize,
    /// A commit is on its way, or takes its turns at partitions.
    is_writing: bool,
    is_driven: bool,
    stopped: Option<StoreError>,
}

type Turns = BTreeMap<u32, (Arc<Slot>, Result<Turn, StoreError>)>;

/// Items of one commit that have been planned.
#[derive(Default)]
struct Group {
    planned: Vec<(Box<dyn Item>, Vec<Appended>)>,
    ended: Vec<(Box<dyn Item>, Fate)>,
    staged: StagedChanges,
    release: Option<u64>,
    deletes: Vec<Log>,
}

impl Writer {
    /// Reads the table from log 0 of the namespace.
    pub(crate) fn open(store: JournalStore, max_queue: usize) -> Result<Self, OpenError> {
        let log = store.log(0)?;
        let bounds = log.bounds();
        let mut table = Table::new(bounds.start);
        let mut position = bounds.start;
        // Ends: each round reads at least one record, or fails.
        while position < bounds.end {
            let read = log.read_range(position..bounds.end, 1 << 20).map_err(from_read)?;
            if read.is_empty() {
                let why = "the log ends before its bounds".to_owned();
                return Err(OpenError::Damaged { position, why });
            }
            for record in read {
                let damaged = |why: &str| OpenError::Damaged { position, why: why.to_owned() };
                table.apply(Change::decode(record).map_err(damaged)?);
                position += 1;
            }
        }
        let inner = Inner {
            table,
            queue: VecDeque::new(),
            queue_bytes: 0,
            max_queue,
            is_writing: false,
            is_driven: false,
            stopped: None,
        };
        let (inner, watches) = (Mutex::new(inner), GroupWatches::default());
        Ok(Self { shared: Arc::new(Shared { store, log, inner, watches }) })
    }

    pub(crate) fn store(&self) -> &JournalStore {
        &self.shared.store
    }

    /// The most bytes that one item may have: half of a commit. The other half is for what is
    /// cleaned on the way, and for what the journal adds.
    pub(crate) fn max_item_bytes(&self) -> usize {
        self.shared.store.journal().1 / 2
    }

    /// Reads the table.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&Table) -> T) -> T {
        read(&self.shared.inner.lock().table)
    }

    /// Changes when the stored offsets of a group may have, or a topic has been deleted.
    pub(crate) fn watch_group(&self, group: &str) -> GroupWatch<'_> {
        self.shared.watches.watch(group)
    }

    /// Queues an item, which ends in any case.
    pub(crate) fn submit(&self, item: impl Item + 'static) {
        let max_bytes = WAITING_ITEMS * self.max_item_bytes();
        let rejected: Option<(Box<dyn Item>, StoreError)> = {
            let mut inner = self.shared.inner.lock();
            let limit = inner.max_queue;
            match &inner.stopped {
                Some(error) => Some((Box::new(item), error.as_stopped())),
                None if inner.queue.len() >= limit => {
                    let why = format!("{limit} commits wait already (max_waiting_commits)");
                    Some((Box::new(item), StoreError::Busy { why }))
                }
                None if inner.queue_bytes + item.bytes() > max_bytes => {
                    let bytes = inner.queue_bytes;
                    let why = format!("commits of {bytes} bytes wait already (limit {max_bytes})");
                    Some((Box::new(item), StoreError::Busy { why }))
                }
                None => {
                    inner.queue_bytes += item.bytes();
                    inner.queue.push_back(Box::new(item));
                    None
                }
            }
        };
        match rejected {
            Some((item, error)) => item.end(Fate::Failed(error)),
            None => drive(&self.shared),
        }
    }
}

/// An error that an item may end with.
pub(crate) trait ItemError: From<StoreError> + Send + 'static {
    /// A partition does not take the item's batch.
    fn not_taken(error: ProduceError) -> Self {
        match error {
            ProduceError::Store(error) => error.into(),
            other => StoreError::Rejected { why: other.to_string() }.into(),
        }
    }
}

/// An item of two closures: `plan` decides, `end` gets what it decided.
struct Action<P, T, E, F> {
    slots: Vec<Arc<Slot>>,
    bytes: usize,
    operations: usize,
    plan: Option<P>,
    decided: Option<Result<T, E>>,
    end: F,
}

impl<P, T, E, F> Item for Action<P, T, E, F>
where
    P: FnOnce(View<'_>) -> Result<(Plan, T), E> + Send,
    T: Send,
    E: ItemError,
    F: FnOnce(Result<(T, Vec<Appended>), E>) + Send,
{
    fn slots(&self) -> Vec<Arc<Slot>> {
        self.slots.clone()
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn operations(&self) -> usize {
        self.operations
    }

    fn plan(&mut self, view: View<'_>) -> Option<Plan> {
        let (plan, decided) = match self.plan.take()?(view) {
            Ok((plan, value)) => (Some(plan), Ok(value)),
            Err(error) => (None, Err(error)),
        };
        self.decided = Some(decided);
        plan
    }

    fn end(self: Box<Self>, fate: Fate) {
        let result = match (fate, self.decided) {
            (Fate::Written(appended), Some(Ok(value))) => Ok((value, appended)),
            (Fate::NotTaken(error), _) => Err(E::not_taken(error)),
            (Fate::Failed(error), _) => Err(error.into()),
            (_, Some(Err(error))) => Err(error),
            (Fate::Written(_) | Fate::Rejected, _) => {
                let why = "the commit was not planned".to_owned();
                Err(StoreError::Rejected { why }.into())
            }
        };
        (self.end)(result);
    }
}

impl Writer {
    /// Queues an item that writes bytes and takes operations of the journal (`size`), and appends
    /// to `slots`. `plan` decides when it is its
    /// turn, and `end` is called without a lock in any case.
    pub(crate) fn run<T, E>(
        &self,
        slots: Vec<Arc<Slot>>,
        size: (usize, usize),
        plan: impl FnOnce(View<'_>) -> Result<(Plan, T), E> + Send + 'static,
        end: impl FnOnce(Result<(T, Vec<Appended>), E>) + Send + 'static,
    ) where
        T: Send + 'static,
        E: ItemError,
    {
        let (bytes, operations) = size;
        self.submit(Action { slots, bytes, operations, plan: Some(plan), decided: None, end });
    }

    /// As [`run`](Self::run), for what only changes the table.
    pub(crate) fn change<T, E>(
        &self,
        bytes: usize,
        plan: impl FnOnce(View<'_>) -> Result<(Vec<Change>, T), E> + Send + 'static,
        end: impl FnOnce(Result<T, E>) + Send + 'static,
    ) where
        T: Send + 'static,
        E: ItemError,
    {
        let plan = |view: View<'_>| {
            plan(view).map(|(changes, value)| (Plan { changes, ..Plan::default() }, value))
        };
        self.run(Vec::new(), (bytes, 0), plan, |result| end(result.map(|(value, _)| value)));
    }
}

/// Leaves `drive`, also when something panics.
struct Driving<'a>(&'a Shared);

impl Drop for Driving<'_> {
    fn drop(&mut self) {
        self.0.inner.lock().is_driven = false;
    }
}

/// Begins commits until one is on its way or nothing waits.
fn drive(shared: &Arc<Shared>) {
    // Ends: each round takes at least one item off the queue.
    loop {
        let items = {
            let mut inner = shared.inner.lock();
            if inner.is_writing || inner.is_driven || inner.queue.is_empty() {
                return;
            }
            inner.is_writing = true;
            inner.is_driven = true;
            let items = take_items(&mut inner.queue, shared.store.journal().1 / 2);
            inner.queue_bytes -= items.iter().map(|item| item.bytes()).sum::<usize>();
            items
        };
        let driving = Driving(shared);
        let slots = items.iter().flat_map(|item| item.slots());
        let slots: BTreeMap<u32, Arc<Slot>> = slots.map(|slot| (slot.number, slot)).collect();
        take_turns(shared, Gathering { items, slots, turns: Turns::new() });
        drop(driving);
    }
}

/// Items for one commit: at least one, and more while they have fewer than `max_bytes`.
fn take_items(queue: &mut VecDeque<Box<dyn Item>>, max_bytes: usize) -> Vec<Box<dyn Item>> {
    let (mut items, mut bytes, mut operations) = (Vec::new(), 0, 0);
    // Ends: each round takes an item off, or leaves.
    while let Some(item) = queue.front() {
        bytes += item.bytes();
        operations += item.operations();
        let has_room = bytes <= max_bytes && operations <= GROUP_OPERATIONS;
        if !items.is_empty() && (!has_room || items.len() >= GROUP_ITEMS) {
            break;
        }
        items.extend(queue.pop_front());
    }
    items
}

/// A commit that takes the turns of its partitions.
struct Gathering {
    items: Vec<Box<dyn Item>>,
    slots: BTreeMap<u32, Arc<Slot>>,
    turns: Turns,
}

/// What the taker of a turn and its callback leave for each other: whoever comes second goes on.
enum HandOver {
    Nothing,
    Turn(Result<Turn, StoreError>),
    Gathering(Gathering, Arc<Slot>),
}

/// Takes the turns of the slots one by one, in the order of their numbers; then writes. A turn that
/// is free comes within the call: that is a round of the loop, however many partitions there are.
fn take_turns(shared: &Arc<Shared>, mut gathering: Gathering) {
    // Ends: each round takes a slot off.
    while let Some((number, slot)) = gathering.slots.pop_first() {
        let place = Arc::new(Mutex::new(HandOver::Nothing));
        let (theirs, writer) = (Arc::clone(&place), Arc::clone(shared));
        slot.partition.take_turn(move |turn| {
            let mut place = theirs.lock();
            match std::mem::replace(&mut *place, HandOver::Nothing) {
                HandOver::Gathering(mut gathering, slot) => {
                    drop(place);
                    gathering.turns.insert(number, (slot, turn));
                    take_turns(&writer, gathering);
                }
                _ => *place = HandOver::Turn(turn),
            }
        });
        let mut place = place.lock();
        match std::mem::replace(&mut *place, HandOver::Nothing) {
            HandOver::Turn(turn) => drop(gathering.turns.insert(number, (slot, turn))),
            _ => {
                *place = HandOver::Gathering(gathering, slot);
                return;
            }
        }
    }
    write(shared, gathering.items, gathering.turns);
}

fn write(shared: &Arc<Shared>, items: Vec<Box<dyn Item>>, mut turns: Turns) {
    let (group, commit) = {
        let clean = (shared.store.journal().1 / 4, shared.log.extents().len());
        let inner = shared.inner.lock();
        let group = plan(&inner.table, items, &mut turns, clean);
        let commit = shared.commit(&group, &turns);
        (group, commit)
    };
    let writer = Arc::clone(shared);
    if group.planned.is_empty() {
        return land(&writer, group, turns, Ok(()));
    }
    let done = Done::new(move |result| land(&writer, group, turns, result));
    submit(shared.store.journal().0, commit, done);
}

/// Lets each item decide, in order, against what those before it leave. `clean` has the bytes that
/// cleaning may take, and the segments that the table's log spans.
fn plan(
    table: &Table,
    items: Vec<Box<dyn Item>>,
    turns: &mut Turns,
    clean: (usize, usize),
) -> Group {
    let mut group = Group::default();
    for mut item in items {
        let Some(plan) = item.plan(View { table, staged: &group.staged }) else {
            group.ended.push((item, Fate::Rejected));
            continue;
        };
        let turn = |turns: &Turns, number: u32, batch: &Batch| match turns.get(&number) {
            Some((_, Ok(turn))) => turn.check(batch),
            Some((_, Err(error))) => Some(error.clone().into()),
            None => Some(StoreError::Stopped { why: "the partition is gone".into() }.into()),
        };
        let refusal = plan.appends.iter().find_map(|(number, batch)| turn(turns, *number, batch));
        if let Some(error) = refusal {
            group.ended.push((item, Fate::NotTaken(error)));
            continue;
        }
        let mut appended = Vec::with_capacity(plan.appends.len());
        for (number, batch) in plan.appends {
            if let Some((_, Ok(turn))) = turns.get_mut(&number) {
                appended.push(turn.stage(batch));
            }
        }
        plan.changes.into_iter().for_each(|change| group.staged.push(change));
        group.deletes.extend(plan.deletes);
        group.planned.push((item, appended));
    }
    if !group.planned.is_empty() {
        let (bytes, extents) = clean;
        let staged = &mut group.staged;
        group.release = table.clean(staged, bytes, extents);
    }
    group
}

impl Shared {
    fn commit(&self, group: &Group, turns: &Turns) -> Commit {
        let mut commit = Commit::new();
        if !group.deletes.is_empty() {
            commit = commit.frees_space();
        }
        let mut records = Records::builder(0);
        for change in &group.staged.changes {
            if records.len_bytes() >= RECORDS_BYTES {
                let full = std::mem::replace(&mut records, Records::builder(0));
                commit = commit.append_batch(&self.log, full.finish());
            }
            records.push(&change.encode());
        }
        if records.len_bytes() > 0 {
            commit = commit.append_batch(&self.log, records.finish());
        }
        if let Some(first) = group.release {
            commit = commit.release(&self.log, first);
        }
        for (slot, turn) in turns.values() {
            if let Some(write) = turn.as_ref().ok().and_then(Turn::write) {
                commit = slot.store.add_to(commit, write);
            }
        }
        group.deletes.iter().fold(commit, Commit::delete)
    }
}

/// Takes what the journal says: first everybody can see it, then it is answered.
fn land(shared: &Arc<Shared>, group: Group, turns: Turns, result: Result<(), StoreError>) {
    let Group { planned, ended, staged, release, deletes } = group;
    let mut waiting = VecDeque::new();
    let mut changed = BTreeSet::new();
    {
        let mut inner = shared.inner.lock();
        match &result {
            Ok(()) if !planned.is_empty() => {
                // Under the lock: whoever begins to wait behind this sees the table as it is then.
                changed = shared.watches.watched_by(&staged.changes);
                staged.changes.into_iter().for_each(|change| inner.table.apply(change));
                if let Some(first) = release {
                    inner.table.release(first);
                }
            }
            Err(error @ (StoreError::Failed { .. } | StoreError::Stopped { .. })) => {
                tracing::error!(target: "voussoir::queue", %error, "the queue has stopped");
                inner.stopped.get_or_insert_with(|| error.clone());
                waiting = std::mem::take(&mut inner.queue);
                inner.queue_bytes = 0;
            }
            _ => {}
        }
    }
    shared.watches.wake(&changed);
    let is_deleted = |slot: &Slot| deletes.iter().any(|log| slot.store.is_in(log));
    for (slot, turn) in turns.into_values() {
        if result.is_ok() && is_deleted(&slot) {
            // Nothing must be appended to a log that is gone: it would come back.
            slot.partition.note_deletion();
        }
        if let Ok(turn) = turn {
            turn.land(result.clone());
        }
    }
    for (item, appended) in planned {
        item.end(match &result {
            Ok(()) => Fate::Written(appended),
            Err(error) => Fate::Failed(error.clone()),
        });
    }
    for (item, fate) in ended {
        item.end(fate);
    }
    for item in waiting {
        let why = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
        item.end(Fate::Failed(StoreError::Stopped { why }));
    }
    shared.inner.lock().is_writing = false;
    drive(shared);
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("log", &self.shared.log).finish_non_exhaustive()
    }
}
