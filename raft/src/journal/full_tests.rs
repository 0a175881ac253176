//! Writes that the journal has no room for wait, in order, and go on by themselves.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use parking_lot::Mutex;
use voussoir_journal::{Commit, Config, Error, Journal, Log, MemoryFiles, Work};

use super::pipeline::RETRY;
use super::{Identity, JournalStore};
use crate::Membership;
use crate::core::{Core, Restored};
use crate::store::{Completion, LogStore, LogWrite, SnapshotName, StoreError};
use crate::types::{Entry, EntryKind, HardState, SnapshotMeta};

const IDENTITY: Identity = Identity { cluster: 1, node: 3, group: 4 };
const SEGMENT: u64 = 256 << 10;
const ENTRY: usize = 40 << 10;

/// What was told, in order: the number of the write and whether it is durable.
type Told = Arc<Mutex<Vec<(u64, Result<(), StoreError>)>>>;

struct World {
    journal: Journal,
    store: JournalStore,
    other: Log,
    told: Told,
}

impl World {
    fn new() -> Self {
        let mut options = Config::manual();
        (options.segment_bytes, options.max_bytes) = (SEGMENT, 16 * SEGMENT);
        let journal = Journal::open_with(Arc::new(MemoryFiles::new()), options).unwrap();
        let store = JournalStore::create(&journal, IDENTITY).unwrap();
        let other = journal.log("other", 1).unwrap();
        Self { journal, store, other, told: Told::default() }
    }

    /// Another user of the journal takes all room but about what is left of one segment.
    fn fill(&self) {
        while self.journal.room_bytes() > 0 {
            self.append_other().unwrap();
        }
    }

    /// And that, too.
    fn fill_up(&self) {
        while self.append_other().is_ok() {}
    }

    fn append_other(&self) -> Result<(), Error> {
        let record = Bytes::from(vec![7; 8 << 10]);
        self.journal.commit_blocking(Commit::new().append(&self.other, [record])).map(drop)
    }

    fn release_other(&self) {
        let all = Commit::new().release(&self.other, self.other.end());
        self.journal.commit_blocking(all).unwrap();
    }

    fn write(&self, number: u64, write: LogWrite) {
        let told = Arc::clone(&self.told);
        self.store.write(write, Completion::new(move |r| told.lock().push((number, r))));
    }

    fn append(&self, index: u64) {
        let data = Bytes::from(vec![index as u8; ENTRY]);
        let entries = vec![Entry { term: 1, index, kind: EntryKind::Command, data }];
        self.write(index, LogWrite { entries, ..LogWrite::default() });
    }

    /// All that the journal can do, and what is tried again.
    async fn work(&self) {
        for _ in 0..8 {
            while self.journal.work(0) != Work::Idle {}
            tokio::time::sleep(RETRY).await;
        }
    }

    /// The numbers of the writes that are durable.
    fn durable(&self) -> Vec<u64> {
        let told = self.told.lock();
        assert!(told.iter().all(|(_, result)| result.is_ok()), "{told:?}");
        told.iter().map(|(number, _)| *number).collect()
    }

    /// What a store that is opened now holds, and a node that starts from it.
    fn restart(&self) -> (Restored, Core) {
        let store = JournalStore::open(&self.journal, IDENTITY).unwrap();
        let restored = store.restore_now().unwrap();
        (restored.clone(), Core::new(crate::Config::new(3, [3]), restored, 0).unwrap())
    }

    async fn assert_entries(&self, first: u64, last: u64) {
        let entries = self.store.read(first..last + 1, 1 << 30).await.unwrap();
        let indexes: Vec<u64> = entries.iter().map(|entry| entry.index).collect();
        assert_eq!(indexes, (first..=last).collect::<Vec<_>>());
        let is_whole = |entry: &Entry| {
            entry.data.len() == ENTRY && entry.data.iter().all(|byte| *byte == entry.index as u8)
        };
        assert!(entries.iter().all(is_whole));
    }

    /// Stores a snapshot without chunks.
    async fn stage(&self, name: &SnapshotName) {
        let staged = self.beside(async {
            let writer = self.store.stage(name).await.unwrap();
            writer.finish().await
        });
        staged.await.unwrap();
    }

    /// Does the same work while `other` runs.
    async fn beside<T>(&self, other: impl Future<Output = T>) -> T {
        let work = async {
            loop {
                self.journal.work(0);
                tokio::task::yield_now().await;
            }
        };
        tokio::select! { biased; done = other => done, () = work => unreachable!("endless") }
    }
}

#[tokio::test(start_paused = true)]
async fn writes_wait_for_room_in_order_and_go_on_by_themselves() {
    for is_full_already in [false, true] {
        let world = World::new();
        world.append(1);
        world.work().await;
        world.fill();
        if is_full_already {
            world.fill_up();
        }
        // Several at once are on their way when the journal finds that it is full.
        (2..=15).for_each(|index| world.append(index));
        let hard_state = Some(HardState { term: 2, vote: Some(3) });
        world.write(16, LogWrite { hard_state, ..LogWrite::default() });
        world.work().await;
        let before = world.durable();
        assert!(before.len() < 8, "the journal was full: {before:?}");
        // What comes later waits behind.
        world.write(17, LogWrite { truncate_from: Some(15), ..LogWrite::default() });
        world.append(15);
        world.work().await;
        assert_eq!(world.durable(), before);
        world.release_other();
        world.work().await;
        assert_eq!(world.durable(), [(1..=17).collect(), vec![15]].concat());
        world.assert_entries(1, 15).await;
        let (restored, _) = world.restart();
        assert_eq!((restored.last(), restored.hard_state().term), (Some(15), 2));
    }
}

/// The journal is not at its limit, and refuses the writes all the same.
#[tokio::test(start_paused = true)]
async fn while_a_write_waits_there_is_no_room_for_entries() {
    let world = World::new();
    world.append(1);
    world.work().await;
    assert!(world.store.room().unwrap().bytes > 0);
    let log = world.journal.log("raft.log", IDENTITY.group).unwrap();
    log.set_quota(Some(3 * ENTRY as u64));
    (2..=9).for_each(|index| world.append(index));
    world.work().await;
    assert!(world.durable().len() < 9);
    assert_eq!(world.store.room().unwrap().bytes, 0);
    log.set_quota(None);
    world.work().await;
    assert_eq!(world.durable(), (1..=9).collect::<Vec<_>>());
    assert!(world.store.room().unwrap().bytes > 0);
}

/// Fewer than three quarters of the journal are in use, and what counts is strewn over segments
/// that hold little else.
#[tokio::test(start_paused = true)]
async fn strewn_segments_are_rewritten_for_a_write_that_waits() {
    let world = World::new();
    world.append(1);
    world.work().await;
    let meta = SnapshotMeta { index: 1, term: 1, ..SnapshotMeta::default() };
    let name = SnapshotName { meta, identity: 7 };
    let staged = world.beside(async {
        let mut writer = world.store.stage(&name).await.unwrap();
        for _ in 0..20 {
            writer.append(vec![7; 64 << 10].into()).await.unwrap();
        }
        writer.finish().await
    });
    staged.await.unwrap();
    world.write(2, LogWrite { snapshot: Some(name), release: Some(2), ..LogWrite::default() });
    world.work().await;
    let cold = world.journal.log("cold", 1).unwrap();
    for _ in 0..4 {
        world.journal.commit_blocking(Commit::new().append(&cold, ["little"])).unwrap();
        let room = world.journal.room_bytes();
        while world.journal.room_bytes() == room {
            world.append_other().unwrap();
        }
    }
    world.release_other();
    world.work().await;
    assert_eq!(world.journal.stats().segments_rewritten, 0, "nobody needs it");
    let data = Bytes::from(vec![7; ENTRY]);
    let entry = |index| Entry { term: 1, index, kind: EntryKind::Command, data: data.clone() };
    world.write(3, LogWrite { entries: vec![entry(2), entry(3)], ..LogWrite::default() });
    assert_eq!(world.store.room().unwrap().bytes, 0, "it waits: its next snapshot takes more");
    world.work().await;
    assert_eq!(world.durable(), [1, 2, 3]);
    assert!(world.journal.stats().segments_rewritten >= 2);
}

#[tokio::test(start_paused = true)]
async fn a_release_goes_before_the_entries_beside_it() {
    let world = World::new();
    (1..=30).for_each(|index| world.append(index));
    world.work().await;
    world.fill();
    world.fill_up();
    let data = Bytes::from(vec![31; ENTRY]);
    let entries = vec![Entry { term: 1, index: 31, kind: EntryKind::Command, data }];
    world.write(31, LogWrite { release: Some(31), entries, ..LogWrite::default() });
    world.work().await;
    assert_eq!(world.durable(), (1..=31).collect::<Vec<_>>(), "it made its own room");
    world.assert_entries(31, 31).await;
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_makes_room_for_the_entries_that_wait() {
    let world = World::new();
    (1..=30).for_each(|index| world.append(index));
    let hard_state = Some(HardState { term: 1, vote: None });
    world.write(31, LogWrite { hard_state, ..LogWrite::default() });
    world.work().await;
    let meta = SnapshotMeta { index: 30, term: 5, members: Membership::new([3]) };
    let name = SnapshotName { meta, identity: 9 };
    world.stage(&name).await;
    world.fill();
    world.fill_up();
    world.append(31);
    let hard_state = Some(HardState { term: 5, vote: Some(3) });
    world.write(32, LogWrite { hard_state, ..LogWrite::default() });
    world.work().await;
    assert_eq!(world.durable().len(), 31);
    // Nobody else makes room.
    world.write(33, LogWrite { snapshot: Some(name), ..LogWrite::default() });
    world.work().await;
    assert_eq!(world.durable()[31..], [33, 31, 32]);
    world.assert_entries(31, 31).await;
    world.write(34, LogWrite { release: Some(31), ..LogWrite::default() });
    world.append(32);
    world.work().await;
    assert_eq!(world.durable()[34..], [34, 32]);
    let (restored, core) = world.restart();
    assert_eq!(restored.snapshot().map(|meta| meta.index), Some(30));
    assert_eq!((restored.first(), restored.last()), (Some(31), Some(32)));
    assert_eq!((core.hard_state().term, core.status().last), (5, 32));
}

/// The power may fail when the snapshot is current and the entries that waited are not there.
#[tokio::test(start_paused = true)]
async fn a_snapshot_that_went_ahead_is_a_state_to_start_from() {
    let world = World::new();
    world.append(1);
    let hard_state = Some(HardState { term: 1, vote: None });
    world.write(2, LogWrite { hard_state, ..LogWrite::default() });
    world.work().await;
    let meta = SnapshotMeta { index: 3, term: 5, members: Membership::new([3]) };
    let name = SnapshotName { meta, identity: 9 };
    world.stage(&name).await;
    world.fill();
    world.fill_up();
    (2..=4).for_each(|index| world.append(index));
    let hard_state = Some(HardState { term: 5, vote: Some(3) });
    world.write(5, LogWrite { hard_state, ..LogWrite::default() });
    world.write(6, LogWrite { snapshot: Some(name), ..LogWrite::default() });
    world.work().await;
    let told: Vec<_> = world.told.lock().iter().map(|(at, told)| (*at, told.is_ok())).collect();
    let all = [(1, true), (2, true), (2, false), (3, false), (6, true)];
    assert_eq!(told, all, "two are covered, and the log is too short to make room for the other");
    let (restored, core) = world.restart();
    assert_eq!(restored.snapshot().map(|meta| meta.index), Some(3));
    assert_eq!((core.hard_state().term, core.status().last), (5, 3));
}

/// The store of before is dropped with a vote and entries on their way, some of which it has not
/// even handed to the journal.
#[tokio::test]
async fn a_store_is_opened_behind_the_writes_of_an_earlier_one() {
    let World { journal, store, .. } = World::new();
    for index in 1..=9 {
        let data = Bytes::from(vec![index as u8; ENTRY]);
        let entries = vec![Entry { term: 5, index, kind: EntryKind::Command, data }];
        store.write(LogWrite { entries, ..LogWrite::default() }, Completion::new(|_| ()));
        let hard_state = Some(HardState { term: 5 + index, vote: Some(3) });
        store.write(LogWrite { hard_state, ..LogWrite::default() }, Completion::new(|_| ()));
    }
    drop(store);
    let store = JournalStore::open(&journal, IDENTITY).unwrap();
    let restored = store.restore_now().unwrap();
    assert_eq!((restored.last(), restored.hard_state().term), (Some(9), 14));
    let end = journal.log("raft.log", IDENTITY.group).unwrap().end();
    while journal.work(0) != Work::Idle {}
    assert_eq!(journal.log("raft.log", IDENTITY.group).unwrap().end(), end, "nothing comes later");
}

#[tokio::test]
async fn nothing_of_a_deleted_group_comes_back() {
    let World { journal, store, .. } = World::new();
    for index in 1..=9 {
        let data = Bytes::from(vec![index as u8; ENTRY]);
        let entries = vec![Entry { term: 5, index, kind: EntryKind::Command, data }];
        store.write(LogWrite { entries, ..LogWrite::default() }, Completion::new(|_| ()));
        let hard_state = Some(HardState { term: 5 + index, vote: Some(3) });
        store.write(LogWrite { hard_state, ..LogWrite::default() }, Completion::new(|_| ()));
    }
    drop(store);
    let mut deleted = pin!(JournalStore::delete(&journal, IDENTITY.group));
    while poll_fn(|cx| Poll::Ready(deleted.as_mut().poll(cx))).await.is_pending() {
        journal.work(0);
        tokio::task::yield_now().await;
    }
    while journal.work(0) != Work::Idle {}
    assert_eq!(JournalStore::groups(&journal), Vec::<u64>::new());
    JournalStore::create(&journal, IDENTITY).expect("nothing is there");
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_room_ends_when_another_store_is_opened() {
    let mut world = World::new();
    world.append(1);
    world.work().await;
    world.fill();
    world.fill_up();
    world.append(2);
    world.work().await;
    let store = JournalStore::open(&world.journal, IDENTITY).unwrap();
    assert_eq!(store.restore_now().unwrap().last(), Some(1));
    assert!(matches!(world.told.lock()[..], [_, (2, Err(StoreError::Abandoned))]));
    world.release_other();
    world.work().await;
    let earlier = std::mem::replace(&mut world.store, store);
    world.told.lock().clear();
    world.append(2);
    world.work().await;
    drop(earlier);
    assert_eq!(world.durable(), [2]);
    world.assert_entries(1, 2).await;
}

/// Whatever has become of the log meanwhile: no entry stands at another position than its index.
#[tokio::test(start_paused = true)]
async fn an_entry_stands_where_it_belongs_or_is_refused() {
    let world = World::new();
    (1..=3).for_each(|index| world.append(index));
    world.work().await;
    let log = world.journal.log("raft.log", IDENTITY.group).unwrap();
    world.journal.commit_blocking(Commit::new().truncate(&log, 3)).unwrap();
    world.append(4);
    world.work().await;
    assert_eq!(log.end(), 3);
    let told = world.told.lock();
    assert!(matches!(told.last(), Some((4, Err(StoreError::Rejected(_))))), "{told:?}");
}
