//! The store on the journal against a model.

use std::fmt::Write;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use proptest::prelude::*;
use voussoir_journal::{Commit, Config, Journal, MemoryFiles, Work};

use super::state::State;
use super::{Current, Identity, JournalStore, OpenError};
use crate::core::Core;
use crate::store::{Completion, LogStore, LogWrite, MAX_CHUNK_BYTES, SnapshotName};
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
