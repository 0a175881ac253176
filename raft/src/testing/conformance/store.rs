//! What every log store keeps.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::Config;
use crate::core::{Core, Restored};
use crate::store::{
    Completion, LogStore, LogWrite, MAX_CHUNK_BYTES, ReadFailed, SnapshotName, StoreError,
};
use crate::types::{Entry, EntryKind, HardState, SnapshotMeta, Status};

type Store = Arc<dyn LogStore>;

/// How long a write may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Holds a log store against [`LogStore`]'s promises.
///
/// `open` opens the store of one group. It is called many times: for a new, empty store when its
/// argument is `true`, otherwise for the one before it, after all handles to that were dropped.
/// Needs a tokio runtime with timers.
///
/// # Panics
/// Where a promise is broken, saying which.
///
/// # Cancel safety
/// A test that is dropped has tested nothing.
pub async fn log_store<O, F>(mut open: O)
where
    O: FnMut(bool) -> F,
    F: Future<Output = Store>,
{
    empty(&mut open).await;
    entries_and_votes(&mut open).await;
    truncation(&mut open).await;
    release(&mut open).await;
    release_past_the_end(&mut open).await;
    reading(&mut open).await;
    completions_in_order(&mut open).await;
    large_writes(&mut open).await;
    failures_stay(&mut open).await;
    commit_index(&mut open).await;
    voters_and_condemnation(&mut open).await;
    restored_under_way(&mut open).await;
    snapshots(&mut open).await;
    staged_snapshots(&mut open).await;
    snapshots_stay_readable(&mut open).await;
}

/// Holds a store that can tell which entries are lost ([`Restored::set_lost`]) against what that
/// entails.
///
/// `open` is as in [`log_store`]. `damage` makes an entry unreadable in the store that was opened
/// last, while nobody has it open.
///
/// # Panics
/// Where a promise is broken, saying which.
///
/// # Cancel safety
/// A test that is dropped has tested nothing.
pub async fn damaged_log_store<O, F, D, G>(mut open: O, mut damage: D)
where
    O: FnMut(bool) -> F,
    F: Future<Output = Store>,
    D: FnMut(u64) -> G,
    G: Future<Output = ()>,
{
    let store = begun(&mut open).await;
    each(&store, 1..10, 1).await;
    each(&store, 10..13, 4).await;
    drop(store);
    damage(5).await;
    for _ in 0..2 {
        let store = open(false).await;
        let (_, status) = restored(&store).await;
        assert_eq!((status.last, status.recovering), (4, Some(12)), "5 is lost, of 12");
        assert_eq!(read_all(&store, 1..5).await, entries(1..5, 1), "what lies before is there");
        let behind = store.read(5..13, 1 << 20).await;
        assert!(matches!(behind, Err(ReadFailed::Absent)), "the log ends there: {behind:?}");
    }
    let store = open(false).await;
    restored(&store).await;
    each(&store, 5..9, 1).await;
    written(&store, LogWrite { commit: Some(6), ..LogWrite::default() }).await;
    written(&store, LogWrite { truncate_from: Some(8), ..append(8..9, 5) }).await;
    let is_expected = [entries(1..8, 1), entries(8..9, 5)].concat();
    assert_eq!(read_all(&store, 1..9).await, is_expected, "it goes on behind them");
    drop(store);
    let store = open(false).await;
    let (_, status) = restored(&store).await;
    assert_eq!((status.last, status.recovering), (8, Some(12)), "9 to 12 are still missing");
    assert_eq!(read_all(&store, 1..9).await, is_expected, "what was brought back stays");
    let ends = LogWrite { repaired: true, ..vote(10, Some(2)) };
    each(&store, 9..14, 6).await;
    written(&store, ends).await;
    drop(store);
    let store = open(false).await;
    let (hard_state, status) = restored(&store).await;
    assert_eq!((status.last, status.recovering), (13, None), "nothing is missing any more");
    assert_eq!(hard_state, HardState { term: 10, vote: Some(2) }, "the vote came with it");
    each(&store, 14..16, 6).await;
    drop(store);

    // The same store once more, and a snapshot in the place of what is lost.
    damage(10).await;
    let store = open(false).await;
    let (_, status) = restored(&store).await;
    assert_eq!((status.last, status.recovering), (9, Some(15)), "it may be damaged again");
    let name = stage(&store, 50, 7, &[b"state at 50"]).await;
    let install = LogWrite {
        snapshot: Some(name),
        truncate_from: Some(1),
        release: Some(51),
        repaired: true,
        ..LogWrite::default()
    };
    written(&store, install).await;
    each(&store, 51..53, 7).await;
    drop(store);
    let store = open(false).await;
    let status = restored(&store).await.1;
    assert_eq!((status.first, status.last, status.recovering), (51, 52, None));
    assert_eq!(read_all(&store, 51..53).await, entries(51..53, 7));
    drop(store);
    covered_damage(&mut open, &mut damage).await;
}

/// Appends entries one by one: what is written together may be lost together.
async fn each(store: &Store, range: Range<u64>, term: u64) {
    for index in range {
        written(store, append(index..index + 1, term)).await;
    }
}

/// What is lost and covered by the snapshot is not needed.
async fn covered_damage<O, F, D, G>(open: &mut O, damage: &mut D)
where
    O: FnMut(bool) -> F,
    F: Future<Output = Store>,
    D: FnMut(u64) -> G,
    G: Future<Output = ()>,
{
    let store = begun(open).await;
    each(&store, 1..10, 1).await;
    adopt(&store, 6, 1, b"state at 6").await;
    drop(store);
    damage(4).await;
    let store = open(false).await;
    let status = restored(&store).await.1;
    assert_eq!((status.last, status.snapshot, status.recovering), (9, 6, None), "4 is not needed");
    let needed = read_all(&store, 7..10).await;
    assert_eq!(needed, entries(7..10, 1), "and those behind the snapshot are there");
    each(&store, 10..12, 2).await;
    drop(store);
    let store = open(false).await;
    let status = restored(&store).await.1;
    assert_eq!((status.last, status.recovering), (11, None), "it is an ordinary log");
}

fn entry(index: u64, term: u64) -> Entry {
    let data = Bytes::from(format!("entry {index} of term {term}"));
    Entry { term, index, kind: EntryKind::Command, data }
}

fn entries(range: Range<u64>, term: u64) -> Vec<Entry> {
    range.map(|index| entry(index, term)).collect()
}

fn append(range: Range<u64>, term: u64) -> LogWrite {
    LogWrite { entries: entries(range, term), ..LogWrite::default() }
}

fn vote(term: u64, vote: Option<u64>) -> LogWrite {
    LogWrite { hard_state: Some(HardState { term, vote }), ..LogWrite::default() }
}

async fn write(store: &Store, write: LogWrite) -> Result<(), StoreError> {
    let (done, result) = oneshot::channel();
    let tell = move |result| drop(done.send(result));
    store.write(write, Completion::new(tell));
    let result = timeout(PATIENCE, result).await;
    let result = result.expect("a completion must be completed or dropped, never kept for ever");
    result.expect("a completion is told once, or dropped")
}

async fn written(store: &Store, it: LogWrite) {
    write(store, it).await.expect("this write is legal");
}

/// What a core makes of a restored store.
async fn restored(store: &Store) -> (HardState, Status) {
    let restored: Restored = store.restore().await.expect("it can be restored");
    let mut config = Config::new(1, vec![1, 2, 3]);
    config.seed = Some(1);
    let core = Core::new(config, restored, 0).expect("what is restored fits together");
    (core.hard_state(), core.status())
}

async fn read_all(store: &Store, range: Range<u64>) -> Vec<Entry> {
    let mut all = Vec::new();
    let mut next = range.start;
    while next < range.end {
        let some = store.read(next..range.end, 1 << 20).await.expect("these entries are there");
        assert!(!some.is_empty(), "an empty answer is not allowed");
        next += some.len() as u64;
        all.extend(some);
    }
    all
}

/// A new store, in a term that none of the entries here is ahead of.
async fn begun<O: FnMut(bool) -> F, F: Future<Output = Store>>(open: &mut O) -> Store {
    let store = open(true).await;
    written(&store, vote(9, None)).await;
    store
}

async fn empty<O: FnMut(bool) -> F, F: Future<Output = Store>>(open: &mut O) {
    let store = open(true).await;
    let (hard_state, status) = restored(&store).await;
    assert_eq!(hard_state, HardState::default(), "a new store knows no vote");
    assert_eq!((status.first, status.last, status.snapshot), (1, 0, 0), "a new log is empty");
    assert!(store.open_snapshot().await.expect("it opens").is_none(), "there is no snapshot");
    assert!(matches!(store.read(1..2, 1).await, Err(ReadFailed::Absent)), "nothing is there");
    written(&store, LogWrite::default()).await;
}

async fn entries_and_votes<O: FnMut(bool) -> F, F: Future<Output = Store>>(open: &mut O) {
    let store = open(true).await;
    let first =
        LogWrite { hard_state: Some(HardState { term: 2, vote: Some(3) }), ..append(1..4, 2) };
    written(&store, first).await;
    written(&store, append(4..6, 2)).await;
    written(&store, vote(3, None)).await;
    written(&store, append(6..7, 3)).await;
    drop(store);
    let store = open(false).await;
    let (hard_state, status) = restored(&store).await;
    assert_eq!(hard_state, HardState { term: 3, vote: None }, "the last vote counts");
    assert_eq!((status.first, status.last), (1, 6), "every entry is there");
    let all = read_all(&store, 1..7).await;
    assert_eq!(all, [entries(1..6, 2), entries(6..7, 3)].concat(), "entries come back as written");
    written(&store, vote(4, Some(2))).await;
    drop(store);
    let (hard_state, status) = restored(&open(false).await).await;
    assert_eq!(hard_state, HardState { term: 4, vote: Some(2) });
    assert_eq!(status.last, 6, "a vote leaves the log alone");
}

async fn truncation<O: FnMut(bool) -> F, F: Future<Output = Store>>(open: &mut O) {
    let store = begun(open).await;
    written(&store, append(1..10, 1)).await;
    written(&store, LogWrite { truncate_from: Some(5), ..append(5..7, 2) }).await;
    let expected = [entries(1..5, 1), entries(5..7, 2)].concat();
    assert_eq!(read_all(&store, 1..7).await, expected, "truncated, then appended");
    assert!(matches!(store.read(7..8, 1).await, Err(ReadFailed::Absent)), "7 was truncated");
    drop(store);
    let store = open(false).await;
    assert_eq!(restored(&store).await.1.last, 6, "truncated entries stay away");
    assert_eq!(read_all(&store, 1..7).await, expected);
    written(&store, LogWrite { truncate_from: Some(1), ..LogWrite::default() }).await;
    drop(store);
    assert_eq!(restored(&open(false).await).await.1.last, 0, "all of it may be truncated");
}

async fn release<O: FnMut(bool) -> F, F: Future<Output = Store>>(open: &mut O) {
    let store = begun(open).await;
    written(&store, append(1..10, 1)).await;
    adopt(&store, 4, 1, b"state at 4").await;
    written(&store, LogWrite { release: Some(5), ..LogWrite::default() }).await;
    assert!(matches!(store.read(4..6, 99).await, Err(ReadFailed::Released)), "4 was released");
    assert_eq!(read_all(&store, 5..10).await, entries(5..10, 1), "5 and on were not");
    drop(store);
    let store = open(false).await;
    let status = restored(&store).await.1;
    assert_eq!((status.first, status.last, status.snapshot), (5, 9, 4));
    written(&store, LogWrite { release: Some(3), ..append(10..11, 1) }).await;
    assert_eq!(read_all(&store, 5..11).await.len(), 6, "an older release does nothing");
}

async fn release_past_the_end<O: FnMut(bool) -> F, F: Future<Output = Store>>(open: &mut O) {
    let store = begun(open).await;
    written(&store, append(1..4, 1)).await;
    let name = stage(&store, 50, 3, &[b"state at 50"]).await;
    let install = LogWrite {
        snapshot: Some(name),
        truncate_from: Some(1),
        release: Some(51),
        ..LogWrite::default()
    };
    written(&store, install).await;
    written(&store, append(51..53, 3)).await;
    drop(store);
    let store = open(false).await;
    let status = restored(&store).await.1;
    assert_eq!((status.first, status.last, status.snapshot), (51, 52, 50), "it goes on at 51");
    assert_eq!(read_all(&store, 51..53).await, entries(51..53, 3));
}

async fn reading<O: FnMut(bool) -> F, F: Future<Output = Store>>(open: &mut O) {
    let store = open(true).await;
    written(&store, append(1..101, 1)).await;
    let one = store.read(40..80, 1).await.expect("one entry may exceed the limit");
    assert_eq!(one, entries(40..41, 1), "at least one, and no more than asked for");
    let some = store.read(40..80, 500).await.expect("they are there");
    assert!(!some.is_empty() && some.len() < 40, "{} entries in 500 bytes", some.len());
    assert_eq!(some, entries(40..40 + some.len() as u64, 1), "a prefix of the range");
    let end = store.read(99..200, 1 << 20).await.expect("99 and 100 are there");
    assert_eq!(end, entries(99..101, 1), "the range may reach past the end");
    let part = store.read(10..20, 1 << 20).await.expect("they are there");
    assert_eq!(part, entries(10..20, 1), "and nothing past the range");
}

async fn completions_in_order<O: FnMut(bool) -> F, F: Future<Output = Store>>(open: &mut O) {
    let store = open(true).await;
    let (tell, mut told) = mpsc::unbounded_channel();
    let count = 40u64;
    for n in 0..count {
        let mut it = append(n + 1..n + 2, 1);
        if n % 7 == 0 {
            // Something long before something short: it must not be overtaken.
            it.entries[0].data = Bytes::from(vec![7; 200 << 10]);
        }
        if n % 5 == 0 {
            it.hard_state = Some(HardState { term: 1 + n, vote: None });
        }
        let report = || {
            let tell = tell.clone();
            Completion::new(move |result| {
                let _ = tell.send((n, result.is_ok()));
            })
        };
        store.write(it, report());
        if n % 11 == 0 {
            store.write(vote(2 + n, Some(n)), report());
        }
    }
    drop(tell);
    let mut last = 0;
    let mut seen = 0;
    while let Some((n, ok)) = timeout(PATIENCE, told.recv()).await.expect("completions come") {
        assert!(ok, "write {n} is legal");
        assert!(n >= last, "write {n} was reported after {last}");
        last = n;
        seen += 1;
    }
    assert_eq!(seen, count + count.div_ceil(11), "every write is reported, once");
    drop(store);
    let (hard_state, status) = restored(&open(false).await).await;
    assert_eq!(status.last, count);
    assert_eq!(hard_state, HardState { term: 36, vote: None }, "the last of them counts");
}

async fn large_writes<O: FnMut(bool) -> F, F: Future<Output = Store>>(open: &mut O) {
    let store = begun(open).await;
    let long = store.max_entry_bytes().min(1 << 20);
    let mut it = append(1..9, 1);
    for entry in &mut it.entries {
        entry.data = Bytes::from(vec![entry.index as u8; long]);
    }
    let expected = it.entries.clone();
    written(&store, it).await;
    drop(store);
    let store = open(false).await;
    assert_eq!(restored(&store).await.1.last, 8, "a write of many megabytes is taken");
    assert!(read_all(&store, 1..9).await == expected, "and comes back as it was");
}

async fn failures_stay<O: FnMut(bool) -> F, F: Future<Output = Store>>(open: &mut O) {
    let store = begun(open).await;
    written(&store, append(1..4, 1)).await;
    let unknown = SnapshotName { meta: SnapshotMeta::default(), identity: 77 };
    let adopts = LogWrite { snapshot: Some(unknown), ..append(4..5, 1) };
    let error = write(&store, adopts).await.expect_err("it was never staged");
    assert!(matches!(error, StoreError::NotStaged), "{error}");
    write(&store, append(4..5, 1)).await.expect_err("nothing may follow a failed write");
    write(&store, vote(10, Some(1))).await.expect_err("no vote either");
    drop(store);
    let store = open(false).await;
    let (hard_state, status) = restored(&store).await;
    assert_eq!(status.last, 3, "what failed, and what followed it, is not there");
    assert_eq!(hard_state, HardState { term: 9, vote: None }, "nor is the vote");
    written(&store, append(4..5, 1)).await;
}

async fn commit_index<O: FnMut(bool) -> F, F: Future<Output = Store>>(open: &mut O) {
    let store = begun(open).await;
    written(&store, append(1..10, 1)).await;
    assert_eq!(restored_again(open, store).await.commit, 0, "nothing is known to be committed");
    let store = open(false).await;
    restored(&store).await;
    let alone = LogWrite { commit: Some(4), ..LogWrite::default() };
    written(&store, alone).await;
    written(&store, LogWrite { commit: Some(6), ..append(10..11, 1) }).await;
    let commit = restored_again(open, store).await.commit;
    assert!([0, 4, 6].contains(&commit), "{commit} was never said to be committed");
}

async fn voters_and_condemnation<O: FnMut(bool) -> F, F>(open: &mut O)
where
    F: Future<Output = Store>,
{
    let store = open(true).await;
    let fresh = store.restore().await.expect("it can be restored");
    assert_eq!(fresh.voters(), None, "a new store knows no voters");
    written(&store, LogWrite { voters: Some(vec![1, 2, 3]), ..vote(2, Some(3)) }).await;
    written(&store, append(1..4, 2)).await;
    written(&store, vote(3, None)).await;
    drop(store);
    let store = open(false).await;
    let restored = store.restore().await.expect("it can be restored");
    assert_eq!(restored.voters(), Some(&[1, 2, 3][..]), "the voters of the first vote stay");
    assert!(!restored.is_damaged());
    written(&store, LogWrite { condemned: true, ..LogWrite::default() }).await;
    for _ in 0..2 {
        let restored = open(false).await.restore().await.expect("it can be restored");
        assert!(restored.is_damaged(), "a condemned log is damaged at every later start");
    }
}

/// A store that is restored without having been opened anew counts what was under way.
async fn restored_under_way<O: FnMut(bool) -> F, F: Future<Output = Store>>(open: &mut O) {
    let store = begun(open).await;
    for index in 1..41 {
        let term = 9 + index;
        let it = LogWrite {
            hard_state: Some(HardState { term, vote: Some(1) }),
            ..append(index..index + 1, 1)
        };
        store.write(it, Completion::new(|_| ()));
        if index % 8 == 0 {
            let (hard_state, status) = restored(&store).await;
            let found = (hard_state.term, status.last, status.durable);
            assert_eq!(found, (term, index, index), "writes under way were left out");
        }
    }
    drop(store);
    let (hard_state, status) = restored(&open(false).await).await;
    assert_eq!((hard_state.term, status.last), (49, 40), "they are durable");
}

/// What the store gives back after it was closed and opened again.
async fn restored_again<O: FnMut(bool) -> F, F>(open: &mut O, store: Store) -> Status
where
    F: Future<Output = Store>,
{
    drop(store);
    restored(&open(false).await).await.1
}

/// Stages and finishes a snapshot.
async fn stage(store: &Store, index: u64, term: u64, chunks: &[&[u8]]) -> SnapshotName {
    let meta = SnapshotMeta { index, term, members: vec![1, 2, 3].into() };
    let name = SnapshotName { meta, identity: index * 1000 + term };
    let mut writer = store.stage(&name).await.expect("it can be staged");
    for chunk in chunks {
        writer.append(Bytes::copy_from_slice(chunk)).await.expect("a legal chunk");
    }
    writer.finish().await.expect("it can be finished");
    name
}

async fn adopt(store: &Store, index: u64, term: u64, state: &[u8]) -> SnapshotName {
    let name = stage(store, index, term, &[state]).await;
    written(store, LogWrite { snapshot: Some(name.clone()), ..LogWrite::default() }).await;
    name
}

async fn current(store: &Store) -> Option<(SnapshotName, Vec<Bytes>)> {
    let reader = store.open_snapshot().await.expect("it opens")?;
    let mut chunks = Vec::new();
    for number in 0..reader.chunks() {
        chunks.push(reader.chunk(number).await.expect("every chunk is there"));
    }
    let past = reader.chunk(reader.chunks()).await;
    assert!(matches!(past, Err(ReadFailed::Absent)), "there is nothing past the last chunk");
    let bytes = chunks.iter().map(|chunk| chunk.len() as u64).sum::<u64>();
    assert_eq!(reader.bytes(), bytes, "the length of all chunks together");
    Some((reader.name().clone(), chunks))
}

async fn snapshots<O: FnMut(bool) -> F, F: Future<Output = Store>>(open: &mut O) {
    let store = begun(open).await;
    written(&store, append(1..10, 1)).await;
    let whole = vec![9; MAX_CHUNK_BYTES];
    let name = stage(&store, 5, 1, &[b"a", &whole, b"c"]).await;
    assert!(current(&store).await.is_none(), "a staged snapshot is not current");
    written(&store, LogWrite { snapshot: Some(name.clone()), ..LogWrite::default() }).await;
    let expected =
        Some((name.clone(), vec![Bytes::from("a"), Bytes::from(whole), Bytes::from("c")]));
    assert!(current(&store).await == expected, "it is current, with the same chunks");
    drop(store);
    let store = open(false).await;
    assert!(current(&store).await == expected, "also after a restart");
    assert_eq!(restored(&store).await.1.snapshot, 5);
    let older = adopt(&store, 3, 1, b"older").await;
    assert_ne!(older, name);
    assert!(current(&store).await == expected, "an older one does not take its place");
    let newer = adopt(&store, 7, 1, b"newer").await;
    drop(store);
    let store = open(false).await;
    assert_eq!(current(&store).await, Some((newer, vec![Bytes::from("newer")])));
}

async fn staged_snapshots<O: FnMut(bool) -> F, F: Future<Output = Store>>(open: &mut O) {
    let store = begun(open).await;
    written(&store, append(1..10, 1)).await;
    let unknown = SnapshotName { meta: SnapshotMeta::default(), identity: 77 };
    let adopts = LogWrite { snapshot: Some(unknown), ..LogWrite::default() };
    let error = write(&store, adopts).await.expect_err("it was never staged");
    assert!(matches!(error, StoreError::NotStaged), "{error}");
    drop(store);

    let store = begun(open).await;
    written(&store, append(1..10, 1)).await;
    let one = stage(&store, 4, 1, &[b"one"]).await;
    let two = stage(&store, 6, 1, &[b"two"]).await;
    written(&store, LogWrite { snapshot: Some(two.clone()), ..LogWrite::default() }).await;
    store.unstage(one.identity);
    let meta = SnapshotMeta { index: 8, term: 1, members: vec![1].into() };
    let mut writer = store.stage(&SnapshotName { meta, identity: 8 }).await.expect("staged");
    for illegal in [Bytes::new(), Bytes::from(vec![0; MAX_CHUNK_BYTES + 1])] {
        let error = writer.append(illegal).await.expect_err("no legal chunk");
        assert!(matches!(error, StoreError::ChunkSize { .. }), "{error}");
    }
    drop(writer);
    let left = stage(&store, 9, 1, &[b"never adopted"]).await;
    let gone = LogWrite { snapshot: Some(one), ..LogWrite::default() };
    let error = write(&store, gone).await.expect_err("it was unstaged");
    assert!(matches!(error, StoreError::NotStaged), "{error}");
    drop(store);
    let store = open(false).await;
    restored(&store).await;
    assert_eq!(current(&store).await, Some((two.clone(), vec![Bytes::from("two")])));
    let gone = LogWrite { snapshot: Some(left), ..LogWrite::default() };
    let error = write(&store, gone).await.expect_err("what was never adopted is gone");
    assert!(matches!(error, StoreError::NotStaged), "{error}");
    drop(store);
    let store = open(false).await;
    restored(&store).await;
    assert_eq!(current(&store).await, Some((two, vec![Bytes::from("two")])));
    adopt(&store, 9, 1, b"again").await;
}

async fn snapshots_stay_readable<O: FnMut(bool) -> F, F: Future<Output = Store>>(open: &mut O) {
    let store = open(true).await;
    written(&store, append(1..10, 1)).await;
    adopt(&store, 4, 1, b"old").await;
    let reader = store.open_snapshot().await.expect("it opens").expect("it is there");
    adopt(&store, 8, 1, b"new").await;
    let chunk = reader.chunk(0).await.expect("a reader keeps its snapshot");
    assert_eq!((chunk, reader.name().meta.index), (Bytes::from("old"), 4));
    drop(reader);
    let (name, chunks) = current(&store).await.expect("it is there");
    assert_eq!((name.meta.index, chunks), (8, vec![Bytes::from("new")]));
}
