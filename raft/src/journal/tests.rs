//! The store on the journal against a model.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use proptest::prelude::*;
use voussoir_journal::{Commit, Config, Journal, MemoryFiles, Work};

use super::state::State;
use super::{Current, Identity, JournalStore, OpenError};
use crate::core::Core;
use crate::store::{
    Completion, LogStore, LogWrite, MAX_CHUNK_BYTES, ReadFailed, SnapshotName, StoreError,
};
use crate::types::{Entry, EntryKind, HaltReason, HardState, SnapshotMeta};

const IDENTITY: Identity = Identity { cluster: 0x0102, node: 3, group: 4 };

fn state() -> State {
    let snapshot = Current { index: 5, term: 6, identity: 7, number: 8, chunks: 9 };
    State {
        identity: IDENTITY,
        hard_state: HardState { term: 10, vote: Some(11) },
        snapshot: Some(snapshot),
        commit: 12,
        voters: Some(vec![3, 13]),
        condemned: false,
        log: 0,
        repairing: None,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[test]
fn bytes_of_version_1_stay_as_they_are() {
    let words = |numbers: &[u64]| -> String {
        numbers.iter().map(|number| hex(&number.to_le_bytes())).collect()
    };
    let golden = format!(
        "010b700002000000{}{}",
        "02010000000000000000000000000000",
        words(&[3, 4, 10, 11, 5, 6, 7, 8, 9, 12, 0, 3, 13])
    );
    assert_eq!(hex(&state().encode()), golden);
    assert_eq!(State::decode(state().encode()), Ok(state()));
    let condemned = State { condemned: true, ..state() };
    assert_eq!(State::decode(condemned.encode()), Ok(condemned.clone()));
    let young = State::new(IDENTITY);
    assert_eq!(State::decode(young.encode()), Ok(young));
    // A record from before the bit that says that the log was begun: its voters say so.
    let mut bytes = state().encode().to_vec();
    bytes[1] &= !8;
    assert_eq!(State::decode(bytes.into()), Ok(state()));
    let joined = State { voters: Some(Vec::new()), ..state() };
    assert_eq!(State::decode(joined.encode()), Ok(joined));
}

/// A version that knows one log only must not take it for the whole of the data.
#[test]
fn another_log_is_another_version() {
    for (log, repairing) in [(0, Some(9)), (1, None), (7, Some(0))] {
        let state = State { log, repairing, ..state() };
        let bytes = state.encode();
        assert_eq!(bytes[0], 2);
        for cut in 0..bytes.len() {
            assert_eq!(State::decode(bytes.slice(..cut)), Err(None), "cut at {cut}");
        }
        assert_eq!(State::decode(bytes), Ok(state));
    }
    // What the first version has reserved is not looked at.
    let mut bytes = state().encode().to_vec();
    bytes[104..112].fill(7);
    bytes[1] |= 16;
    assert_eq!(State::decode(bytes.into()), Ok(state()));
}

#[test]
fn newer_and_cut_records_are_told_apart() {
    let mut bytes = state().encode().to_vec();
    for cut in 0..bytes.len() {
        assert_eq!(State::decode(Bytes::copy_from_slice(&bytes[..cut])), Err(None), "cut at {cut}");
    }
    bytes[0] = 3;
    assert_eq!(State::decode(bytes.into()), Err(Some(3)));
}

proptest! {
    #[test]
    fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = State::decode(bytes.into());
    }
}

fn journal() -> Journal {
    let mut options = Config::default();
    options.segment_bytes = 8 << 20;
    Journal::open_with(Arc::new(MemoryFiles::new()), options).unwrap()
}

async fn halted(store: &JournalStore) -> Option<HaltReason> {
    let restored = store.restore().await.unwrap();
    Core::new(crate::Config::new(3, [3]), restored, 0).unwrap().status().halted
}

#[tokio::test]
async fn data_of_a_newer_version_is_refused() {
    let journal = journal();
    drop(JournalStore::create(&journal, IDENTITY).unwrap());
    let log = journal.log("raft.state", IDENTITY.group).unwrap();
    let mut record = state().encode().to_vec();
    record[0] = 9;
    journal.commit_blocking(Commit::new().append(&log, [record])).unwrap();
    let refused = JournalStore::open(&journal, IDENTITY);
    assert!(matches!(refused, Err(OpenError::NewerFormat { found: 9, .. })), "{refused:?}");
}

#[tokio::test]
async fn open_refuses_an_empty_disk_and_create_refuses_data() {
    let journal = journal();
    let opened = JournalStore::open(&journal, IDENTITY);
    let Err(error @ OpenError::Absent { wanted: IDENTITY }) = opened else { panic!("{opened:?}") };
    let said = error.to_string();
    assert!(said.contains("node 3") && said.contains("if it has run, its disk was lost"), "{said}");
    drop(JournalStore::create(&journal, IDENTITY).unwrap());
    let store = JournalStore::open(&journal, IDENTITY).unwrap();
    assert_eq!(halted(&store).await, None);
    let created = JournalStore::create(&journal, IDENTITY);
    assert!(matches!(created, Err(OpenError::Exists { wanted: IDENTITY })), "{created:?}");
    let other = Identity { node: 4, ..IDENTITY };
    let created = JournalStore::create(&journal, other);
    assert!(matches!(created, Err(OpenError::Exists { .. })), "{created:?}");
    let opened = JournalStore::open(&journal, other);
    assert!(matches!(opened, Err(OpenError::WrongNode { .. })), "{opened:?}");
}

#[tokio::test]
async fn a_vote_cast_before_the_disk_was_lost_is_not_cast_again() {
    let before = journal();
    let store = JournalStore::create(&before, IDENTITY).unwrap();
    let (done, result) = tokio::sync::oneshot::channel();
    let hard_state = Some(HardState { term: 5, vote: Some(1) });
    let write = LogWrite { hard_state, ..LogWrite::default() };
    store.write(write, Completion::new(move |result| drop(done.send(result))));
    result.await.unwrap().unwrap();
    drop((store, before));
    // The same call on a new disk: the vote is gone, so the node must not start.
    let opened = JournalStore::open(&journal(), IDENTITY);
    assert!(matches!(opened, Err(OpenError::Absent { .. })), "{opened:?}");
}

#[tokio::test]
async fn what_cannot_be_understood_halts_the_node() {
    let journal = journal();
    let store = JournalStore::create(&journal, IDENTITY).unwrap();
    assert_eq!(halted(&store).await, None);
    let log = journal.log("raft.log", IDENTITY.group).unwrap();
    journal.commit_blocking(Commit::new().append(&log, ["no entry"])).unwrap();
    let store = JournalStore::open(&journal, IDENTITY).unwrap();
    assert_eq!(halted(&store).await, Some(HaltReason::Damaged));

    let other = Identity { group: 9, ..IDENTITY };
    drop(JournalStore::create(&journal, other).unwrap());
    let log = journal.log("raft.state", 9).unwrap();
    journal.commit_blocking(Commit::new().delete(&log)).unwrap();
    let log = journal.log("raft.log", 9).unwrap();
    journal.commit_blocking(Commit::new().append(&log, ["entry"])).unwrap();
    let store = JournalStore::open(&journal, other).unwrap();
    assert_eq!(halted(&store).await, Some(HaltReason::Damaged), "entries without a vote");
}

#[tokio::test]
async fn a_hole_is_refused_and_ends_the_store() {
    let journal = journal();
    let store = JournalStore::create(&journal, IDENTITY).unwrap();
    let write = |index: u64| {
        let entry = Entry { term: 1, index, kind: EntryKind::Noop, data: Bytes::new() };
        let (done, result) = tokio::sync::oneshot::channel();
        let write = LogWrite { entries: vec![entry], ..LogWrite::default() };
        store.write(write, Completion::new(move |result| drop(done.send(result))));
        result
    };
    assert!(write(1).await.unwrap().is_ok());
    assert!(write(3).await.unwrap().is_err(), "2 is missing");
    assert!(write(2).await.unwrap().is_err(), "nothing may follow a failed write");
}

#[tokio::test]
async fn a_deleted_group_leaves_nothing_and_no_other_group_loses_anything() {
    let journal = journal();
    let other = Identity { group: 55, ..IDENTITY };
    for identity in [IDENTITY, other] {
        drop(JournalStore::create(&journal, identity).unwrap());
        // The log of a repair, and a snapshot that was not ended.
        for namespace in ["raft.log", "raft.snapshot"] {
            let log = journal.log(&format!("{namespace}.{}", identity.group), 3).unwrap();
            journal.commit_blocking(Commit::new().append(&log, ["a record"])).unwrap();
        }
    }
    assert_eq!(JournalStore::groups(&journal), [IDENTITY.group, 55]);
    let of_other = journal.logs().len() / 2;
    JournalStore::delete(&journal, IDENTITY.group).await.unwrap();
    assert_eq!(JournalStore::groups(&journal), [55]);
    assert_eq!(journal.logs().len(), of_other, "{:?}", journal.logs());
    let opened = JournalStore::open(&journal, IDENTITY);
    assert!(matches!(opened, Err(OpenError::Absent { .. })), "{opened:?}");
    JournalStore::open(&journal, other).unwrap();
    JournalStore::delete(&journal, IDENTITY.group).await.unwrap();
}

async fn durable(store: &JournalStore, write: LogWrite) {
    let (tell, told) = tokio::sync::oneshot::channel();
    store.write(write, Completion::new(move |result| drop(tell.send(result))));
    told.await.unwrap().unwrap();
}

fn command(index: u64, bytes: usize) -> Entry {
    Entry { term: 1, index, kind: EntryKind::Command, data: Bytes::from(vec![index as u8; bytes]) }
}

#[tokio::test]
async fn segments_of_any_size_take_the_longest_entries_and_chunks() {
    for segment in [64 << 10, 68 << 10, 256 << 10, 2 << 20, (4 << 20) - 4096, 4 << 20, 8 << 20] {
        let mut options = Config::default();
        (options.segment_bytes, options.max_bytes) = (segment, (16 * segment).max(16 << 20));
        let journal = Journal::open_with(Arc::new(MemoryFiles::new()), options).unwrap();
        let identity = Identity { group: u64::MAX, ..IDENTITY };
        let store = JournalStore::create(&journal, identity).unwrap();
        let longest = store.max_entry_bytes();
        assert_eq!(longest == (1 << 20) - 1024, segment >= 4 << 20, "{segment}: {longest}");
        // The largest commit: it cuts, appends, and has a state record with all voters.
        let voters = Some((1..=15).collect());
        let hard_state = Some(HardState { term: 1, vote: Some(3) });
        let entries = vec![command(1, longest), command(2, longest)];
        durable(&store, LogWrite { entries, ..LogWrite::default() }).await;
        let mut entries = vec![command(2, longest)];
        entries.extend((3..70).map(|index| command(index, 1000)));
        let cut = LogWrite { truncate_from: Some(2), entries, ..LogWrite::default() };
        durable(&store, LogWrite { hard_state, voters, ..cut }).await;
        let members = (1..=15).collect::<Vec<_>>().into();
        let name = SnapshotName { identity: 9, meta: SnapshotMeta { index: 1, term: 1, members } };
        let piece = journal.max_batch_bytes() as usize;
        let lengths = [1, MAX_CHUNK_BYTES, MAX_CHUNK_BYTES.min(piece), piece / 2, 1];
        let chunks: Vec<Bytes> =
            (0..).zip(lengths).map(|(byte, length)| Bytes::from(vec![byte; length])).collect();
        let mut writer = store.stage(&name).await.unwrap();
        for chunk in &chunks {
            writer.append(chunk.clone()).await.unwrap();
        }
        writer.finish().await.unwrap();
        durable(&store, LogWrite { snapshot: Some(name.clone()), ..LogWrite::default() }).await;
        drop(store);
        let store = JournalStore::open(&journal, identity).unwrap();
        let restored = store.restore().await.unwrap();
        let config = crate::Config::new(3, (1..=15).collect::<Vec<_>>());
        let status = Core::new(config, restored, 0).unwrap().status();
        assert_eq!((status.halted, status.last), (None, 69), "{segment}");
        let mut next = 1;
        while next < 70 {
            for entry in store.read(next..70, 1 << 20).await.unwrap() {
                let length = if next < 3 { longest } else { 1000 };
                assert!(entry == command(next, length), "{segment}: entry {next}");
                next += 1;
            }
        }
        let reader = store.open_snapshot().await.unwrap().unwrap();
        assert_eq!(reader.chunks(), chunks.len() as u64, "{segment}");
        for (number, chunk) in chunks.iter().enumerate() {
            let read = reader.chunk(number as u64).await.unwrap();
            assert!(read == *chunk, "{segment}: chunk {number} has {} bytes", read.len());
        }
    }
}

#[tokio::test]
async fn a_restore_removes_what_was_staged_before() {
    let journal = journal();
    let store = JournalStore::create(&journal, IDENTITY).unwrap();
    let meta = SnapshotMeta { index: 1, term: 1, ..SnapshotMeta::default() };
    let name = |identity| SnapshotName { meta: meta.clone(), identity };
    let stage = async |identity| {
        let mut writer = store.stage(&name(identity)).await.unwrap();
        writer.append(Bytes::from_static(b"a chunk")).await.unwrap();
        writer
    };
    let logs = || {
        journal.commit_blocking(Commit::new()).unwrap();
        journal.logs_of(&format!("raft.snapshot.{}", IDENTITY.group)).len()
    };
    stage(1).await.finish().await.unwrap();
    let late = stage(2).await;
    assert_eq!(logs(), 2);
    store.restore().await.unwrap();
    assert_eq!(logs(), 1, "what was staged is gone");
    // Whoever stages it has not heard yet that the group started again.
    late.finish().await.unwrap_err();
    assert_eq!(logs(), 0, "and what was being staged");
    stage(3).await.finish().await.unwrap();
    durable(&store, LogWrite { snapshot: Some(name(3)), ..LogWrite::default() }).await;
}

/// A journal that another user has filled: nothing of a group fits, and nobody else may wait.
fn busy() -> (Journal, Commit) {
    let mut options = Config::manual();
    (options.segment_bytes, options.max_pending_bytes) = (1 << 20, 64 << 10);
    options.max_waiting = 1;
    let journal = Journal::open_with(Arc::new(MemoryFiles::new()), options).unwrap();
    let other = journal.log("other", 1).unwrap();
    let commit = Commit::new().append(&other, [Bytes::from(vec![0; 60 << 10])]);
    (journal, commit)
}

#[tokio::test]
async fn entries_keep_their_order_while_the_journal_is_busy() {
    let (journal, other) = busy();
    let groups: Vec<JournalStore> = (0..9)
        .map(|group| JournalStore::create(&journal, Identity { group, ..IDENTITY }).unwrap())
        .collect();
    journal.submit(other, |_| ()).unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let write = |group: u64, index: u64, bytes: usize| {
        let (kind, data) = (EntryKind::Command, Bytes::from(vec![index as u8; bytes]));
        let entries = vec![Entry { term: 1, index, kind, data }];
        let told = Arc::clone(&told);
        let done = Completion::new(move |result| told.lock().push((group, index, result.is_ok())));
        groups[group as usize].write(LogWrite { entries, ..LogWrite::default() }, done);
    };
    // The first of each waits for room, and more of them than may wait for it otherwise.
    (0..9).for_each(|group| write(group, 1, 8_000));
    // What the other user wrote has left, and what comes now would fit before it.
    journal.work(0);
    (0..9).for_each(|group| write(group, 2, 100));
    while told.lock().len() < 18 {
        journal.work(0);
    }
    assert!(told.lock().iter().all(|(_, _, is_ok)| *is_ok), "{told:?}");
    for (group, store) in groups.iter().enumerate() {
        let order: Vec<u64> =
            told.lock().iter().filter(|(of, ..)| *of == group as u64).map(|told| told.1).collect();
        assert_eq!(order, [1, 2], "group {group}");
        let entries = store.read(1..3, 1 << 20).await.unwrap();
        let lengths: Vec<usize> = entries.iter().map(|entry| entry.data.len()).collect();
        assert_eq!(lengths, [8_000, 100], "group {group}");
    }
}

#[tokio::test]
async fn a_snapshot_goes_also_when_the_journal_was_busy() {
    let (journal, other) = busy();
    let store = JournalStore::create(&journal, IDENTITY).unwrap();
    let name = SnapshotName { meta: SnapshotMeta::default(), identity: 1 };
    let log = journal.log(&format!("raft.snapshot.{}", IDENTITY.group), 1).unwrap();
    let work = async {
        while !log.exists() {
            journal.work(0);
            tokio::task::yield_now().await;
        }
    };
    let (writer, ()) = tokio::join!(store.stage(&name), work);
    journal.submit(other, |_| ()).unwrap();
    let log_of_other = journal.log("other", 1).unwrap();
    let more = Commit::new().append(&log_of_other, [Bytes::from(vec![0; 4_000])]);
    journal.submit_in_turn(more, |_| ()).unwrap();
    drop(writer);
    while log_of_other.end() < 2 || log.exists() {
        assert_ne!(journal.work(0), Work::Idle, "it stays for ever");
    }
}

/// What writes were told, by number.
type Told = Arc<Mutex<Vec<(u64, Result<(), String>)>>>;

fn tell(told: &Told, number: u64) -> Completion {
    let told = Arc::clone(told);
    Completion::new(move |result| {
        told.lock().push((number, result.map_err(|error: StoreError| error.to_string())));
    })
}

/// A group with two entries, and a snapshot of the first `covers` that is staged, whose next two
/// writes have no room: another user has all of it.
async fn short_of_room(covers: u64) -> (Journal, JournalStore, SnapshotName, Told) {
    let mut options = Config::default();
    (options.segment_bytes, options.max_bytes) = (1 << 20, 16 << 20);
    let journal = Journal::open_with(Arc::new(MemoryFiles::new()), options).unwrap();
    let store = JournalStore::create(&journal, IDENTITY).unwrap();
    let entries = vec![command(1, 1000), command(2, 1000)];
    durable(&store, LogWrite { entries, ..LogWrite::default() }).await;
    let meta = SnapshotMeta { index: covers, term: 1, ..SnapshotMeta::default() };
    let name = SnapshotName { meta, identity: 7 };
    let mut writer = store.stage(&name).await.unwrap();
    writer.append(Bytes::from_static(b"a chunk")).await.unwrap();
    writer.finish().await.unwrap();
    let other = journal.log("other", 1).unwrap();
    for bytes in [100 << 10, 4096, 64] {
        let record = vec![7; bytes];
        while journal.commit_blocking(Commit::new().append(&other, [&record])).is_ok() {}
    }
    let told = Told::default();
    for (number, index) in [(1, 3), (2, 5)] {
        let entries = vec![command(index, 90_000), command(index + 1, 90_000)];
        let hard_state = Some(HardState { term: number, vote: None });
        let write = LogWrite { entries, hard_state, ..LogWrite::default() };
        store.write(write, tell(&told, number));
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(*told.lock(), [], "there is no room");
    (journal, store, name, told)
}

async fn give_back(journal: &Journal) {
    let other = journal.log("other", 1).unwrap();
    journal.commit(Commit::new().release(&other, other.end())).await.unwrap();
}

async fn told(told: &Told, count: usize) -> Vec<(u64, Result<(), String>)> {
    let wait = async {
        while told.lock().len() < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.expect("it waits for room");
    told.lock().clone()
}

fn overtaken() -> Result<(), String> {
    Err(StoreError::Overtaken.to_string())
}

/// A follower's entries wait for room, and the next leader cuts them, or a vote does.
#[tokio::test]
async fn what_cuts_entries_that_wait_for_room_does_not_wait_behind_them() {
    let (journal, store, _, all) = short_of_room(1).await;
    let hard_state = Some(HardState { term: 3, vote: Some(1) });
    let write = LogWrite { truncate_from: Some(3), hard_state, ..LogWrite::default() };
    store.write(write, tell(&all, 3));
    assert_eq!(told(&all, 3).await, [(1, overtaken()), (2, overtaken()), (3, Ok(()))]);
    give_back(&journal).await;
    let entries = vec![command(3, 1000)];
    durable(&store, LogWrite { entries, ..LogWrite::default() }).await;
    let restored = JournalStore::open(&journal, IDENTITY).unwrap().restore().await.unwrap();
    assert_eq!((restored.hard_state().term, restored.hard_state().vote), (3, Some(1)));
    assert_eq!(store.read(1..4, 1 << 20).await.unwrap().len(), 3);
}

/// Each of several terms that begin while entries wait may cut some.
#[tokio::test]
async fn a_later_cut_overtakes_an_earlier_one() {
    let (journal, store, _, all) = short_of_room(1).await;
    let hard_state = Some(HardState { term: 3, vote: Some(1) });
    let write = LogWrite { truncate_from: Some(4), hard_state, ..LogWrite::default() };
    store.write(write, tell(&all, 3));
    let write = LogWrite { truncate_from: Some(3), ..LogWrite::default() };
    store.write(write, tell(&all, 4));
    let overtakes = [(1, overtaken()), (2, overtaken()), (3, overtaken()), (4, Ok(()))];
    assert_eq!(told(&all, 4).await, overtakes);
    give_back(&journal).await;
    let entries = vec![command(3, 1000)];
    durable(&store, LogWrite { entries, ..LogWrite::default() }).await;
    let restored = JournalStore::open(&journal, IDENTITY).unwrap().restore().await.unwrap();
    let said = (restored.hard_state().term, restored.hard_state().vote);
    assert_eq!(said, (3, Some(1)), "what the overtaken write said beside its cut");
}

/// One that it cuts in the middle, and what follows that, stay: there would be a gap.
#[tokio::test]
async fn what_is_cut_in_its_middle_waits_for_room_in_its_place() {
    let (journal, store, _, all) = short_of_room(1).await;
    let write = LogWrite { truncate_from: Some(4), ..LogWrite::default() };
    store.write(write, tell(&all, 3));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(*all.lock(), []);
    give_back(&journal).await;
    assert_eq!(told(&all, 3).await, [(1, Ok(())), (2, Ok(())), (3, Ok(()))]);
    assert_eq!(store.read(1..4, 1 << 20).await.unwrap().len(), 3);
}

/// A leader sends it because the follower has no room for the entries.
#[tokio::test]
async fn a_snapshot_of_a_peer_does_not_wait_behind_the_entries_whose_place_it_takes() {
    let (journal, store, name, all) = short_of_room(9).await;
    let snapshot = Some(name);
    let (truncate_from, release) = (Some(1), Some(10));
    let write = LogWrite { snapshot, truncate_from, release, ..LogWrite::default() };
    store.write(write, tell(&all, 3));
    assert_eq!(told(&all, 3).await, [(1, overtaken()), (2, overtaken()), (3, Ok(()))]);
    give_back(&journal).await;
    let entries = vec![command(10, 1000)];
    durable(&store, LogWrite { entries, ..LogWrite::default() }).await;
    let restored = JournalStore::open(&journal, IDENTITY).unwrap().restore().await.unwrap();
    assert_eq!(
        restored.hard_state().term,
        2,
        "what the overtaken writes said beside their entries"
    );
    assert_eq!(store.read(10..11, 1 << 20).await.unwrap().len(), 1);
}

/// They were applied from memory, since others have them.
#[tokio::test]
async fn a_snapshot_covers_entries_that_wait_for_room() {
    let (journal, store, name, all) = short_of_room(4).await;
    let write = LogWrite { snapshot: Some(name), ..LogWrite::default() };
    store.write(write, tell(&all, 3));
    assert_eq!(told(&all, 2).await, [(1, overtaken()), (3, Ok(()))]);
    give_back(&journal).await;
    assert_eq!(told(&all, 3).await[2], (2, Ok(())));
    let restored = JournalStore::open(&journal, IDENTITY).unwrap().restore().await.unwrap();
    assert_eq!(restored.hard_state().term, 2);
    assert_eq!(store.read(5..7, 1 << 20).await.unwrap().len(), 2);
    let old = store.read(4..5, 1 << 20).await;
    assert!(matches!(old, Err(ReadFailed::Released)), "{old:?}");
}

/// No snapshot is due, and nobody else makes room: the log is not committed.
#[tokio::test]
async fn entries_that_have_waited_for_long_take_the_spare_segments() {
    let mut options = Config::default();
    (options.segment_bytes, options.max_bytes) = (1 << 20, 32 << 20);
    let journal = Journal::open_with(Arc::new(MemoryFiles::new()), options).unwrap();
    let store = JournalStore::create(&journal, IDENTITY).unwrap();
    let all = Told::default();
    let mut index = 0;
    // Until the first one waits.
    while all.lock().len() as u64 == index {
        index += 1;
        let entries = vec![command(index, 200_000)];
        store.write(LogWrite { entries, ..LogWrite::default() }, tell(&all, index));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let last = told(&all, index as usize).await.pop();
    assert_eq!(last, Some((index, Ok(()))));
}

/// A state record replaces the one before, so an older one must not come behind it.
#[tokio::test]
async fn what_is_overtaken_brings_no_older_vote_back() {
    let (journal, store, _, all) = short_of_room(1).await;
    let voted = HardState { term: 3, vote: Some(1) };
    store.write(LogWrite { hard_state: Some(voted), ..LogWrite::default() }, tell(&all, 3));
    let entries = vec![command(3, 0)];
    let write = LogWrite { truncate_from: Some(3), entries, ..LogWrite::default() };
    store.write(write, tell(&all, 4));
    give_back(&journal).await;
    assert_eq!(told(&all, 4).await.last(), Some(&(4, Ok(()))));
    drop(store);
    let restored = JournalStore::open(&journal, IDENTITY).unwrap().restore().await.unwrap();
    assert_eq!(restored.hard_state(), voted);
}

/// Who hears that a write is durable takes all before it for durable too.
#[tokio::test]
async fn a_vote_that_is_overtaken_is_durable_before_a_later_write() {
    let (journal, store, _, all) = short_of_room(1).await;
    store.write(LogWrite { release: Some(2), ..LogWrite::default() }, tell(&all, 3));
    let entries = vec![command(3, 90_000), command(4, 90_000)];
    let write = LogWrite { truncate_from: Some(3), entries, ..LogWrite::default() };
    store.write(write, tell(&all, 4));
    assert_eq!(told(&all, 1).await, [(3, Ok(()))]);
    let state = journal.log("raft.state", IDENTITY.group).unwrap();
    let state = super::state::read(&state, IDENTITY).unwrap().unwrap();
    assert_eq!(state.hard_state.term, 2);
    give_back(&journal).await;
}
