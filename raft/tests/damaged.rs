//! The store on the journal when the disk has lost entries of its log: what it gives back, what it
//! keeps until they are there again, and what it cannot repair.

use std::future::ready;
use std::io::{Error, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use bytes::Bytes;
use voussoir_journal::files::crash::Op;
use voussoir_journal::testing::HookedFiles;
use voussoir_journal::{
    Commit, Config as JournalConfig, Files, Health, Journal, MemoryFiles, inspect,
};
use voussoir_raft::codec::encode_entry;
use voussoir_raft::core::Core;
use voussoir_raft::journal::{Identity, JournalStore};
use voussoir_raft::testing::conformance;
use voussoir_raft::{
    Completion, Config, Entry, EntryKind, HardState, LogStore, LogWrite, Restored, SnapshotMeta,
    SnapshotName, Status, StoreError,
};

const IDENTITY: Identity = Identity { cluster: 1, node: 1, group: 5 };

fn options() -> JournalConfig {
    let mut options = JournalConfig::default();
    options.segment_bytes = 64 << 10;
    options.max_bytes = 64 << 20;
    options
}

/// Flips a bit wherever `bytes` stand. Returns in how many places.
fn flip(files: &MemoryFiles, bytes: &[u8]) -> usize {
    let mut flipped = 0;
    for name in files.list().unwrap() {
        let file = files.open(&name).unwrap();
        let mut content = vec![0; file.len().unwrap() as usize];
        assert_eq!(file.read_at(&mut content, 0).unwrap(), content.len());
        for (at, _) in content.windows(bytes.len()).enumerate().filter(|(_, found)| *found == bytes)
        {
            file.write_at(&[IoSlice::new(&[bytes[0] ^ 1])], at as u64).unwrap();
            flipped += 1;
        }
    }
    flipped
}

/// Entries of 3,000 bytes: some twenty fill a segment.
fn entry(index: u64, term: u64) -> Entry {
    let data = Bytes::from(format!("{index:03000}"));
    Entry { term, index, kind: EntryKind::Command, data }
}

fn flip_entry(files: &MemoryFiles, entry: &Entry) {
    assert!(flip(files, &encode_entry(entry)) > 0, "entry {} is not there", entry.index);
}

struct Disk {
    files: MemoryFiles,
    journal: Option<Journal>,
}

impl Disk {
    fn new() -> Self {
        Self { files: MemoryFiles::new(), journal: None }
    }

    fn open(&mut self, new: bool) -> JournalStore {
        self.close();
        let journal = Journal::open_with(Arc::new(self.files.clone()), options()).unwrap();
        let begin = if new { JournalStore::create } else { JournalStore::open };
        let store = begin(&journal, IDENTITY).unwrap();
        self.journal = Some(journal);
        store
    }

    fn close(&mut self) {
        if let Some(journal) = self.journal.take() {
            journal.close().unwrap();
        }
    }

    fn journal(&self) -> &Journal {
        self.journal.as_ref().unwrap()
    }
}

async fn write(store: &JournalStore, write: LogWrite) {
    let (done, written) = tokio::sync::oneshot::channel();
    store.write(write, Completion::new(move |result| drop(done.send(result))));
    written.await.unwrap().unwrap();
}

async fn append(store: &JournalStore, entries: impl IntoIterator<Item = Entry>) {
    for entry in entries {
        write(store, LogWrite { entries: vec![entry], ..LogWrite::default() }).await;
    }
}

fn status(restored: Restored) -> Status {
    Core::new(Config::new(1, [1, 2, 3]), restored, 0).unwrap().status()
}

/// A store with entries 1 to 100 of term 1, closed.
async fn written() -> Disk {
    let mut disk = Disk::new();
    let store = disk.open(true);
    let hard_state = Some(HardState { term: 1, vote: Some(2) });
    write(&store, LogWrite { hard_state, voters: Some(vec![1, 2, 3]), ..LogWrite::default() })
        .await;
    append(&store, (1..=100).map(|index| entry(index, 1))).await;
    disk.close();
    disk
}

#[tokio::test]
async fn the_store_on_the_journal_keeps_its_promises_about_lost_entries() {
    let disk = std::cell::RefCell::new(Disk::new());
    conformance::damaged_log_store(
        |new| {
            let mut disk = disk.borrow_mut();
            disk.close();
            if new {
                disk.files = MemoryFiles::new();
            }
            ready(Arc::new(disk.open(new)) as Arc<dyn LogStore>)
        },
        |index| {
            let mut disk = disk.borrow_mut();
            let journal = disk.journal.take().unwrap();
            let mut records = Vec::new();
            for info in journal.logs() {
                if info.name.namespace.starts_with("raft.log") {
                    let log = journal.log(&info.name.namespace, info.name.id).unwrap();
                    records.extend(log.read(index));
                }
            }
            journal.close().unwrap();
            assert_eq!(records.len(), 1);
            assert!(flip(&disk.files, &records[0]) > 0);
            ready(())
        },
    )
    .await;
}

/// In a full segment, of which an opening reads no frame, and in the one that is written.
#[tokio::test]
async fn a_flipped_bit_is_found_wherever_it_is() {
    for lost in [1, 30, 99, 100] {
        let mut disk = written().await;
        flip_entry(&disk.files, &entry(lost, 1));
        let store = disk.open(false);
        let restored = store.restore().await.unwrap();
        assert_eq!(restored.lost_until(), Some(100));
        assert_eq!(restored.last(), Some(lost - 1));
        assert_eq!(restored.voters(), Some(&[1, 2, 3][..]));
    }
}

/// Until all of it is there the damaged log stays, with everything that can be read of it.
#[tokio::test]
async fn nothing_is_thrown_away_before_the_repair_has_ended() {
    let mut disk = written().await;
    flip_entry(&disk.files, &entry(30, 1));
    let store = disk.open(false);
    store.restore().await.unwrap();
    append(&store, (30..=40).map(|index| entry(index, 1))).await;
    for life in 0..3 {
        let store = disk.open(false);
        let restored = store.restore().await.unwrap();
        assert_eq!((restored.last(), restored.lost_until()), (Some(40 + life), Some(100)));
        let damaged = disk.journal().log("raft.log", 5).unwrap();
        assert_eq!(damaged.bounds(), 1..101);
        assert!(damaged.read(30).is_err() && damaged.read(31).is_ok() && damaged.read(100).is_ok());
        append(&store, [entry(41 + life, 1)]).await;
    }
    let store = disk.open(false);
    store.restore().await.unwrap();
    append(&store, (44..=100).map(|index| entry(index, 1))).await;
    write(&store, LogWrite { repaired: true, ..LogWrite::default() }).await;
    let store = disk.open(false);
    let restored = store.restore().await.unwrap();
    assert_eq!((restored.last(), restored.lost_until()), (Some(100), None));
    assert!(!disk.journal().log("raft.log", 5).unwrap().exists());
    disk.close();
    let report = inspect(&disk.files, &mut |_| {}).unwrap();
    let named = |problem: &voussoir_journal::Problem| {
        !matches!(problem, voussoir_journal::Problem::Records { log: None, .. })
    };
    let problems: Vec<_> = report.problems.iter().filter(|problem| named(problem)).collect();
    assert!(problems.is_empty(), "{problems:?}");
    assert!(report.logs.iter().all(|log| log.health == Health::Intact), "{:?}", report.logs);
}

/// A log that was repaired may be damaged again, and is repaired again.
#[tokio::test]
async fn a_log_is_repaired_as_often_as_it_is_damaged() {
    let mut disk = written().await;
    for (lost, number) in [(30, 1), (70, 2), (1, 3)] {
        flip_entry(&disk.files, &entry(lost, 1));
        let store = disk.open(false);
        let restored = store.restore().await.unwrap();
        assert_eq!((restored.last(), restored.lost_until()), (Some(lost - 1), Some(100)));
        append(&store, (lost..=100).map(|index| entry(index, 1))).await;
        write(&store, LogWrite { repaired: true, ..LogWrite::default() }).await;
        let log = disk.journal().log("raft.log.5", number).unwrap();
        assert_eq!(log.bounds(), 1..101);
        let logs =
            disk.journal().logs_of("raft.log.5").len() + disk.journal().logs_of("raft.log").len();
        assert_eq!(logs, 1, "the one before is gone");
        drop(store);
        disk.close();
    }
}

/// The group is stopped and started again in one process, as after an entry could not be read.
#[tokio::test]
async fn a_store_is_restored_again_without_being_opened() {
    let mut disk = written().await;
    let store = disk.open(false);
    assert_eq!(store.restore().await.unwrap().lost_until(), None);
    flip_entry(&disk.files, &entry(50, 1));
    assert!(store.read(50..51, 1).await.is_err());
    for _ in 0..2 {
        let restored = store.restore().await.unwrap();
        assert_eq!((restored.last(), restored.lost_until()), (Some(49), Some(100)));
    }
    append(&store, (50..=101).map(|index| entry(index, 1))).await;
    write(&store, LogWrite { repaired: true, ..LogWrite::default() }).await;
    let restored = store.restore().await.unwrap();
    assert_eq!((restored.last(), restored.lost_until()), (Some(101), None));
}

/// The term of what is lost is remembered: whatever the node hears of meanwhile, an entry of a
/// later one than that ends the repair.
#[tokio::test]
async fn the_term_of_what_was_lost_outlives_later_terms() {
    let mut disk = written().await;
    flip_entry(&disk.files, &entry(99, 1));
    let store = disk.open(false);
    store.restore().await.unwrap();
    let hard_state = Some(HardState { term: 7, vote: None });
    write(&store, LogWrite { hard_state, ..LogWrite::default() }).await;
    append(&store, [entry(99, 2)]).await;
    let restored = disk.open(false).restore().await.unwrap();
    assert_eq!((restored.last(), restored.lost_until()), (Some(99), Some(100)));
    let status = status(restored);
    assert_eq!((status.term, status.recovering), (7, Some(100)), "no leader has confirmed it yet");
}

/// What no peer can give back halts the node, as ever.
#[tokio::test]
async fn a_lost_vote_and_a_repair_that_is_damaged_are_refused() {
    let mut disk = written().await;
    flip_entry(&disk.files, &entry(30, 1));
    let store = disk.open(false);
    store.restore().await.unwrap();
    append(&store, (30..=40).map(|index| entry(index, 2))).await;
    disk.close();
    flip_entry(&disk.files, &entry(35, 2));
    assert!(disk.open(false).restore().await.unwrap().is_damaged(), "twice is too often");

    let mut disk = written().await;
    let store = disk.open(false);
    let state = disk.journal().log("raft.state", 5).unwrap();
    let record = state.read(state.end() - 1).unwrap();
    drop((store, state));
    disk.close();
    assert!(flip(&disk.files, &record) > 0);
    assert!(disk.open(false).restore().await.unwrap().is_damaged(), "the vote is lost");
}

/// The journal of a disk. The counter says how many more reads pass before they are answered by
/// `read`; all pass while it is negative.
fn with_reads(
    disk: &Disk,
    read: impl Fn(&AtomicI64) -> std::io::Result<()> + Send + Sync + 'static,
) -> (Journal, Arc<AtomicI64>) {
    let left = Arc::new(AtomicI64::new(-1));
    let counter = Arc::clone(&left);
    let files = HookedFiles::new(Arc::new(disk.files.clone()), move |call| {
        if call.op != Op::Read {
            return Ok(());
        }
        let one_less = |left| (left > 0).then_some(left - 1);
        match counter.fetch_update(SeqCst, SeqCst, one_less) {
            Err(0) => read(&counter),
            _ => Ok(()),
        }
    });
    (Journal::open_with(Arc::new(files), options()).unwrap(), left)
}

/// A batch is lost of which later entries had taken the place of some. The journal gives those, and
/// takes nothing behind them before what the batch held is released.
#[tokio::test]
async fn what_took_the_place_of_lost_entries_is_followed_by_others() {
    for covered in [2, 3, 4, 5] {
        let mut disk = Disk::new();
        let store = disk.open(true);
        let hard_state = Some(HardState { term: 2, vote: None });
        write(&store, LogWrite { hard_state, voters: Some(vec![1, 2, 3]), ..LogWrite::default() })
            .await;
        let (batch, next) = ((1..=4).map(|index| entry(index, 1)), 3..=6);
        write(&store, LogWrite { entries: batch.collect(), ..LogWrite::default() }).await;
        let entries = next.map(|index| entry(index, 2)).collect();
        write(&store, LogWrite { truncate_from: Some(3), entries, ..LogWrite::default() }).await;
        let term = if covered < 3 { 1 } else { 2 };
        let meta = SnapshotMeta { index: covered, term, members: vec![1, 2, 3].into() };
        let name = SnapshotName { meta, identity: 7 };
        let mut writer = store.stage(&name).await.unwrap();
        writer.append("state".into()).await.unwrap();
        writer.finish().await.unwrap();
        write(&store, LogWrite { snapshot: Some(name), ..LogWrite::default() }).await;
        drop(store);
        disk.close();
        flip_entry(&disk.files, &entry(1, 1));
        let store = disk.open(false);
        let log = disk.journal().log("raft.log", 5).unwrap();
        let Health::Lost { until, .. } = log.health() else { panic!("{:?}", log.health()) };
        let restored = store.restore().await.unwrap();
        let (last, lost) = (restored.last().unwrap(), restored.lost_until());
        assert_eq!(lost, (covered + 1 < until).then_some(6), "covered up to {covered}");
        assert_eq!(last, if lost.is_some() { covered } else { 6 });
        append(&store, [entry(last + 1, 2)]).await;
        drop(store);
        let last = disk.open(false).restore().await.unwrap().last();
        assert_eq!(last, Some(last.unwrap()), "it starts again");
    }
}

/// A device that fails to read says nothing about what it holds: it fails at each read of a start,
/// and is back for the next one.
#[tokio::test]
async fn a_read_that_fails_ends_the_start_and_changes_nothing() {
    for lost in [None, Some(60)] {
        let expected = (lost.map(|lost| lost - 1).or(Some(100)), lost.map(|_| 100));
        let found = |restored: Restored| (restored.last(), restored.lost_until());
        let mut failed = 0;
        // Ends: a start does so many reads.
        for at in 0.. {
            let disk = written().await;
            if let Some(lost) = lost {
                flip_entry(&disk.files, &entry(lost, 1));
            }
            let (journal, left) = with_reads(&disk, |_| Err(Error::other("the path is down")));
            let store = JournalStore::open(&journal, IDENTITY).unwrap();
            let was = journal.log("raft.state", 5).unwrap().end();
            left.store(at, SeqCst);
            match store.restore().await {
                Ok(restored) => assert_eq!(found(restored), expected, "read {at}"),
                Err(StoreError::Failed(_)) => {
                    failed += 1;
                    assert_eq!(journal.log("raft.state", 5).unwrap().end(), was, "read {at}");
                    assert!(!journal.log("raft.log.5", 1).unwrap().exists(), "read {at}");
                }
                Err(error) => panic!("read {at}: {error}"),
            }
            if left.swap(-1, SeqCst) > 0 {
                break;
            }
            assert_eq!(found(store.restore().await.unwrap()), expected, "read {at}");
            drop(store);
            journal.close().unwrap();
        }
        assert!(failed > 2, "{failed} reads failed");
    }
}

/// What one store has brought back, another one that was opened before does not begin anew.
#[tokio::test]
async fn a_store_is_opened_again_where_another_one_has_written_since() {
    let disk = written().await;
    flip_entry(&disk.files, &entry(60, 1));
    let (journal, _) = with_reads(&disk, |_| Ok(()));
    let open = || JournalStore::open(&journal, IDENTITY).unwrap();
    let (first, second) = (open(), open());
    first.restore().await.unwrap();
    append(&first, (60..=101).map(|index| entry(index, 1))).await;
    let refused = second.restore().await.map(drop).unwrap_err();
    assert!(matches!(refused, StoreError::Rejected(_)), "{refused}");
    let restored = open().restore().await.unwrap();
    assert_eq!((restored.last(), restored.lost_until()), (Some(101), Some(100)));
    drop((first, second));
    journal.close().unwrap();
}

/// A start that is dropped goes on in its thread: each of its reads is held up while another start
/// is made, in the same store or in another one.
#[tokio::test]
async fn a_start_that_was_dropped_does_not_write_beside_the_next_one() {
    for (at, is_other) in (0..).flat_map(|at| [(at, false), (at, true)]) {
        let mut disk = written().await;
        flip_entry(&disk.files, &entry(60, 1));
        let (hold, released) = channel::<Sender<()>>();
        let held = Arc::new(AtomicI64::new(0));
        let is_held = Arc::clone(&held);
        let (journal, left) = with_reads(&disk, move |left| {
            if left.swap(-1, SeqCst) < 0 {
                return Ok(());
            }
            let (release, wait) = channel();
            hold.send(release).unwrap();
            is_held.store(1, SeqCst);
            // Told, or the test is over.
            let _ = wait.recv();
            Ok(())
        });
        let open = || JournalStore::open(&journal, IDENTITY).unwrap();
        let first = open();
        let second = if is_other { open() } else { first.clone() };
        left.store(at, SeqCst);
        let start = tokio::spawn(async move { first.restore().await.map(drop) });
        while held.load(SeqCst) == 0 && !start.is_finished() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if held.load(SeqCst) == 0 {
            start.await.unwrap().unwrap();
            assert!(at > 5, "a start reads {at} times");
            break;
        }
        start.abort();
        let start = tokio::spawn(async move {
            let restored = second.restore().await;
            (second, restored)
        });
        // It waits; or it does not, and has time to write.
        for _ in 0..20 {
            if !start.is_finished() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        drop(released.recv().unwrap());
        let (mut store, mut restored) = start.await.unwrap();
        if let Err(StoreError::Rejected(_)) = restored {
            assert!(is_other, "the same store knows");
            store = open();
            restored = store.restore().await;
        }
        let restored = restored.unwrap();
        assert_eq!((restored.last(), restored.lost_until()), (Some(59), Some(100)), "read {at}");
        let hard_state = Some(HardState { term: 2, vote: Some(3) });
        write(&store, LogWrite { hard_state, ..LogWrite::default() }).await;
        append(&store, (60..=101).map(|index| entry(index, 1))).await;
        write(&store, LogWrite { repaired: true, ..LogWrite::default() }).await;
        drop(store);
        journal.close().unwrap();
        drop(journal);
        let restored = disk.open(false).restore().await.unwrap();
        assert_eq!((restored.last(), restored.lost_until()), (Some(101), None), "read {at}");
        assert_eq!(restored.hard_state(), HardState { term: 2, vote: Some(3) }, "read {at}");
    }
}

/// The journal belongs to other groups, too.
#[tokio::test]
async fn a_repair_without_room_leaves_the_others_theirs() {
    let disk = written().await;
    flip_entry(&disk.files, &entry(100, 1));
    let mut options = options();
    options.max_bytes = 20 * options.segment_bytes;
    let journal = Journal::open_with(Arc::new(disk.files.clone()), options).unwrap();
    let other = journal.log("other", 1).unwrap();
    let record = vec![7; 3_000];
    let write = || journal.commit_blocking(Commit::new().append(&other, [&record]));
    (0..100).for_each(|_| drop(write().unwrap()));
    let store = JournalStore::open(&journal, IDENTITY).unwrap();
    for _ in 0..3 {
        let refused = store.restore().await;
        let Err(StoreError::Rejected(why)) = refused else { panic!("{refused:?}") };
        assert!(why.to_string().contains("raise max_bytes"), "{why}");
        assert!(!journal.log("raft.log.5", 1).unwrap().exists());
    }
    (0..20).for_each(|_| drop(write().unwrap()));
    journal.commit_blocking(Commit::new().delete(&other)).unwrap();
    let restored = store.restore().await.unwrap();
    assert_eq!((restored.last(), restored.lost_until()), (Some(99), Some(100)));
}
