//! Each sentence of a seam's contract, broken once: the suite has to reject it, and to pass the
//! same implementation unbroken.

mod cluster;

use std::any::Any;
use std::future::ready;
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use voussoir_raft::Restored;
use voussoir_raft::memory::{MemoryStore, Network, NetworkNode};
use voussoir_raft::testing::conformance;
use voussoir_raft::{
    AttachError, Chunks, Command, Completion, Entry, HardState, Inbox, LogStore, LogWrite,
    MachineError, Message, ReadFailed, SendError, SnapshotAnswer, SnapshotName, SnapshotPart,
    SnapshotReader, SnapshotWriter, StateMachine, StoreError, Transport,
};

/// A sentence of [`LogStore`]'s contract that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Store {
    Sound,
    /// "Writes become durable in the order of the calls": completions come in another order.
    CompletesOutOfOrder,
    /// "contains every one reported as durable": entries of the last write are gone.
    ForgetsLastEntry,
    ForgetsVote,
    /// "`done` is completed": it is kept for ever.
    NeverCompletes,
    /// "After a failure every later write fails too."
    WritesAfterFailure,
    /// "The parts apply in the order of the fields."
    AppendsBeforeTruncating,
    IgnoresTruncate,
    IgnoresRelease,
    /// "May lie past the end: the log is then empty and goes on here."
    ReleasesToTheEndOnly,
    /// "a prefix of `range`"
    ReadsAnotherRange,
    ReadsPastTheRange,
    /// "about `max_bytes`"
    IgnoresMaxBytes,
    /// "never an empty answer"
    AnswersEmpty,
    /// "It has been released" and "It was never written" are told apart.
    SaysAbsentForReleased,
    /// "The longest entry that the store takes"
    PromisesLongerEntries,
    /// "It counts for nothing until a `LogWrite::snapshot` adopts it."
    AdoptsOnFinish,
    /// "Drops a staged snapshot"
    IgnoresUnstage,
    /// "Staged snapshots that never became current are gone."
    KeepsStaged,
    /// "When it is not newer than the current one, nothing happens."
    AdoptsOlder,
    /// A name that was never staged is an error.
    AdoptsUnknown,
    /// "It stays readable until the reader is dropped"
    ReaderFollowsCurrent,
    /// "Adds a chunk, 1 to `MAX_CHUNK_BYTES` bytes."
    TakesAnyChunk,
    /// "exactly as they were added"
    JoinsChunks,
    /// "The length of all chunks together"
    MiscountsBytes,
    /// "gives the latest one, or an earlier one, back"
    InventsCommit,
    /// "belong into `Restored::set_voters` at every start"
    ForgetsVoters,
    /// "From then on `LogStore::restore` answers `Restored::damaged`"
    ForgetsCondemnation,
    /// "All writes that were taken before count, and are durable when this returns"
    RestoresBeforeWrites,
}

const STORES: [Store; 28] = [
    Store::CompletesOutOfOrder,
    Store::ForgetsLastEntry,
    Store::ForgetsVote,
    Store::NeverCompletes,
    Store::WritesAfterFailure,
    Store::AppendsBeforeTruncating,
    Store::IgnoresTruncate,
    Store::IgnoresRelease,
    Store::ReleasesToTheEndOnly,
    Store::ReadsAnotherRange,
    Store::ReadsPastTheRange,
    Store::IgnoresMaxBytes,
    Store::AnswersEmpty,
    Store::SaysAbsentForReleased,
    Store::PromisesLongerEntries,
    Store::AdoptsOnFinish,
    Store::IgnoresUnstage,
    Store::KeepsStaged,
    Store::AdoptsOlder,
    Store::AdoptsUnknown,
    Store::ReaderFollowsCurrent,
    Store::TakesAnyChunk,
    Store::JoinsChunks,
    Store::MiscountsBytes,
    Store::InventsCommit,
    Store::ForgetsVoters,
    Store::ForgetsCondemnation,
    Store::RestoresBeforeWrites,
];

#[derive(Clone)]
struct BrokenStore {
    how: Store,
    disk: Arc<Mutex<Disk>>,
}

/// A store of its own, so that each of its sentences can be broken.
#[derive(Clone, Default)]
struct Disk {
    hard_state: HardState,
    voters: Option<Vec<u64>>,
    condemned: bool,
    commit: u64,
    base: u64,
    entries: Vec<Entry>,
    current: Option<Stored>,
    staged: Vec<Stored>,
    failed: bool,
    held: Option<(Arc<Mutex<Option<Completion>>>, bool)>,
    /// Writes that have not been reported.
    under_way: usize,
}

#[derive(Clone)]
struct Stored {
    name: SnapshotName,
    chunks: Vec<Bytes>,
}

impl Disk {
    fn end(&self) -> u64 {
        self.base + 1 + self.entries.len() as u64
    }

    fn write(&mut self, write: LogWrite, how: Store) -> Result<(), StoreError> {
        if let Some(name) = &write.snapshot {
            let staged = self.staged.iter().position(|it| it.name.identity == name.identity);
            let Some(staged) = staged.map(|at| self.staged.remove(at)) else {
                return if how == Store::AdoptsUnknown {
                    Ok(())
                } else {
                    Err(StoreError::NotStaged)
                };
            };
            let current = self.current.as_ref().map_or(0, |it| it.name.meta.index);
            if name.meta.index > current || how == Store::AdoptsOlder {
                self.current = Some(staged);
            }
        }
        let entries = write.entries;
        if how == Store::AppendsBeforeTruncating {
            self.entries.extend(entries.iter().cloned());
        }
        if let Some(from) = write.truncate_from.filter(|_| how != Store::IgnoresTruncate) {
            self.entries.retain(|entry| entry.index < from);
        }
        if let Some(upto) = write.release.filter(|_| how != Store::IgnoresRelease) {
            let upto = if how == Store::ReleasesToTheEndOnly { upto.min(self.end()) } else { upto };
            self.entries.retain(|entry| entry.index >= upto);
            self.base = self.base.max(upto - 1);
        }
        if how != Store::AppendsBeforeTruncating {
            self.entries.retain(|entry| entries.first().is_none_or(|it| entry.index < it.index));
            self.entries.extend(entries);
        }
        self.hard_state = write.hard_state.unwrap_or(self.hard_state);
        self.voters = write.voters.or(self.voters.take());
        self.condemned |= write.condemned && how != Store::ForgetsCondemnation;
        self.commit = write.commit.unwrap_or(self.commit);
        Ok(())
    }

    fn read(&self, range: Range<u64>, max: u64, how: Store) -> Result<Vec<Entry>, ReadFailed> {
        if range.start <= self.base {
            return Err(match how {
                Store::SaysAbsentForReleased => ReadFailed::Absent,
                _ => ReadFailed::Released,
            });
        }
        let range = match how {
            Store::ReadsAnotherRange => range.start + 1..range.end + 1,
            Store::ReadsPastTheRange => range.start..range.end + 1,
            _ => range,
        };
        let mut weight = 0;
        let mut read = Vec::new();
        for entry in self.entries.iter().filter(|entry| range.contains(&entry.index)) {
            weight += entry.weight();
            if weight > max && !read.is_empty() && how != Store::IgnoresMaxBytes {
                break;
            }
            read.push(entry.clone());
        }
        if read.is_empty() && how != Store::AnswersEmpty {
            return Err(ReadFailed::Absent);
        }
        Ok(read)
    }
}

#[async_trait]
impl LogStore for BrokenStore {
    fn max_entry_bytes(&self) -> usize {
        10_000
    }

    async fn restore(&self) -> Result<Restored, StoreError> {
        let mut disk = self.disk.lock();
        disk.failed = false;
        if self.how != Store::KeepsStaged {
            disk.staged.clear();
        }
        if self.how == Store::ForgetsLastEntry {
            disk.entries.pop();
        }
        if self.how == Store::ForgetsVote {
            disk.hard_state.vote = None;
        }
        let meta = disk.current.as_ref().map(|it| it.name.meta.clone());
        if disk.condemned {
            return Ok(Restored::damaged());
        }
        let mut restored = Restored::new(disk.hard_state, meta, disk.base + 1);
        if let Some(voters) = disk.voters.clone().filter(|_| self.how != Store::ForgetsVoters) {
            restored.set_voters(voters);
        }
        let invents = self.how == Store::InventsCommit;
        restored.set_commit(if invents { u64::MAX } else { disk.commit });
        let under_way = usize::from(disk.under_way > 0);
        for entry in &disk.entries[..disk.entries.len().saturating_sub(under_way)] {
            if restored.push(entry.clone()).is_err() {
                return Ok(Restored::damaged());
            }
        }
        Ok(restored)
    }

    fn write(&self, write: LogWrite, done: Completion) {
        let long = write.entries.iter().any(|entry| entry.data.len() >= 10_000);
        let mut disk = self.disk.lock();
        let has_failed = disk.failed && self.how != Store::WritesAfterFailure;
        let is_refused = long && self.how == Store::PromisesLongerEntries;
        let result = if has_failed || is_refused {
            Err(StoreError::Abandoned)
        } else {
            disk.write(write, self.how)
        };
        disk.failed |= result.is_err();
        match self.how {
            Store::NeverCompletes => {
                let slot = Arc::new(Mutex::new(Some(done)));
                // Neither completed nor dropped.
                std::mem::forget(slot);
            }
            Store::CompletesOutOfOrder => {
                let before = disk.held.take();
                disk.held = Some((Arc::new(Mutex::new(Some(done))), result.is_ok()));
                drop(disk);
                let disk = Arc::clone(&self.disk);
                // The later one first.
                tokio::spawn(async move {
                    tokio::task::yield_now().await;
                    let held = disk.lock().held.take();
                    for (done, ok) in held.into_iter().chain(before) {
                        if let Some(done) = done.lock().take() {
                            done.complete(if ok { Ok(()) } else { Err(StoreError::NotStaged) });
                        }
                    }
                });
            }
            Store::RestoresBeforeWrites => {
                disk.under_way += 1;
                drop(disk);
                let disk = Arc::clone(&self.disk);
                tokio::spawn(async move {
                    tokio::task::yield_now().await;
                    disk.lock().under_way -= 1;
                    done.complete(result);
                });
            }
            _ => {
                drop(disk);
                done.complete(result);
            }
        }
    }

    async fn read(&self, range: Range<u64>, max_bytes: u64) -> Result<Vec<Entry>, ReadFailed> {
        self.disk.lock().read(range, max_bytes, self.how)
    }

    async fn stage(&self, name: &SnapshotName) -> Result<Box<dyn SnapshotWriter>, StoreError> {
        let stored = Stored { name: name.clone(), chunks: Vec::new() };
        Ok(Box::new(Writer { store: self.clone(), stored }))
    }

    fn unstage(&self, identity: u64) {
        if self.how != Store::IgnoresUnstage {
            self.disk.lock().staged.retain(|it| it.name.identity != identity);
        }
    }

    async fn open_snapshot(&self) -> Result<Option<Box<dyn SnapshotReader>>, StoreError> {
        let Some(stored) = self.disk.lock().current.clone() else { return Ok(None) };
        Ok(Some(Box::new(Reader { store: self.clone(), stored })))
    }
}

struct Writer {
    store: BrokenStore,
    stored: Stored,
}

#[async_trait]
impl SnapshotWriter for Writer {
    async fn append(&mut self, chunk: Bytes) -> Result<(), StoreError> {
        let legal = (1..=voussoir_raft::MAX_CHUNK_BYTES).contains(&chunk.len());
        if !legal && self.store.how != Store::TakesAnyChunk {
            return Err(StoreError::ChunkSize { bytes: chunk.len() });
        }
        self.stored.chunks.push(chunk);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<(), StoreError> {
        let Self { store, mut stored } = *self;
        if store.how == Store::JoinsChunks {
            stored.chunks = vec![stored.chunks.concat().into()];
        }
        let mut disk = store.disk.lock();
        if store.how == Store::AdoptsOnFinish {
            disk.current = Some(stored.clone());
        }
        disk.staged.push(stored);
        Ok(())
    }
}

struct Reader {
    store: BrokenStore,
    stored: Stored,
}

#[async_trait]
impl SnapshotReader for Reader {
    fn name(&self) -> &SnapshotName {
        &self.stored.name
    }

    fn chunks(&self) -> u64 {
        self.stored.chunks.len() as u64
    }

    fn bytes(&self) -> u64 {
        let bytes = self.stored.chunks.iter().map(|chunk| chunk.len() as u64).sum();
        if self.store.how == Store::MiscountsBytes { bytes + 1 } else { bytes }
    }

    async fn chunk(&self, number: u64) -> Result<Bytes, ReadFailed> {
        let follows = self.store.how == Store::ReaderFollowsCurrent;
        let current = self.store.disk.lock().current.clone().filter(|_| follows);
        let chunks = current.as_ref().map_or(&self.stored.chunks, |current| &current.chunks);
        chunks.get(number as usize).cloned().ok_or(ReadFailed::Absent)
    }
}

/// What a suite says about an implementation; `None` when it passes.
async fn verdict(suite: impl Future<Output = ()> + 'static) -> Option<String> {
    let suite = AssertUnwindSafe(suite);
    let judged = tokio::task::LocalSet::new();
    let verdict = judged.run_until(async move { tokio::task::spawn_local(suite.0).await }).await;
    verdict.err().map(|error| text(error.into_panic().as_ref()))
}

fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or_default().lines().next().unwrap_or_default().to_owned()
}

async fn store(how: Store) {
    let mut disk = Arc::new(Mutex::new(Disk::default()));
    conformance::log_store(move |new| {
        if new {
            disk = Arc::default();
        }
        let store = BrokenStore { how, disk: Arc::clone(&disk) };
        ready(Arc::new(store) as Arc<dyn LogStore>)
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn every_broken_log_store_is_rejected() {
    assert_eq!(verdict(store(Store::Sound)).await, None, "the sound one is not");
    let mut passed = Vec::new();
    for how in STORES {
        match verdict(store(how)).await {
            Some(why) => println!("{how:?}: {why}"),
            None => passed.push(how),
        }
    }
    assert!(passed.is_empty(), "not rejected: {passed:?}");
}

/// A sentence of [`StateMachine`]'s contract that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Machine {
    Sound,
    /// "gives one answer for each"
    AnswersLess,
    /// "must depend on nothing but the state and the command"
    CountsBatches,
    /// "a consistent cut of the state as it is now"
    CutsLater,
    CutsNothing,
    /// "Replaces the whole state"
    AddsToState,
    /// "1 to `MAX_CHUNK_BYTES` bytes"
    EmptyChunks,
}

#[derive(Clone)]
struct BrokenMachine {
    how: Machine,
    text: Arc<Mutex<String>>,
}

#[async_trait]
impl StateMachine for BrokenMachine {
    async fn apply(&mut self, commands: &[Command]) -> Result<Vec<Bytes>, MachineError> {
        let mut answers = Vec::new();
        if self.how == Machine::CountsBatches {
            self.text.lock().push('|');
        }
        for command in commands {
            let mut text = self.text.lock();
            text.push_str(std::str::from_utf8(&command.data)?);
            answers.push(Bytes::from(text.clone()));
        }
        if self.how == Machine::AnswersLess {
            answers.pop();
        }
        Ok(answers)
    }

    async fn snapshot(&mut self) -> Result<Box<dyn Chunks>, MachineError> {
        let later = self.how == Machine::CutsLater;
        let text = if later { Arc::clone(&self.text) } else { Arc::new(Mutex::new(self.now())) };
        if self.how == Machine::CutsNothing {
            text.lock().truncate(0);
        }
        Ok(Box::new(Cut { text: Some(text), empty_first: self.how == Machine::EmptyChunks }))
    }

    async fn restore(&mut self, chunks: &mut dyn Chunks) -> Result<(), MachineError> {
        let mut whole = Vec::new();
        while let Some(chunk) = chunks.next().await? {
            whole.extend_from_slice(&chunk);
        }
        let restored = String::from_utf8(whole)?;
        let mut text = self.text.lock();
        if self.how != Machine::AddsToState {
            text.clear();
        }
        text.push_str(&restored);
        Ok(())
    }
}

impl BrokenMachine {
    fn now(&self) -> String {
        self.text.lock().clone()
    }
}

struct Cut {
    text: Option<Arc<Mutex<String>>>,
    empty_first: bool,
}

#[async_trait]
impl Chunks for Cut {
    async fn next(&mut self) -> Result<Option<Bytes>, MachineError> {
        if std::mem::take(&mut self.empty_first) {
            return Ok(Some(Bytes::new()));
        }
        let text = self.text.take().map(|text| text.lock().clone());
        Ok(text.filter(|text| !text.is_empty()).map(Bytes::from))
    }
}

async fn machine(how: Machine) {
    let commands = ["a", "b", "c", "d"].map(Bytes::from);
    let create = || Box::new(BrokenMachine { how, text: Arc::default() }) as Box<dyn StateMachine>;
    conformance::state_machine(create, &commands).await;
}

#[tokio::test(start_paused = true)]
async fn every_broken_state_machine_is_rejected() {
    assert_eq!(verdict(machine(Machine::Sound)).await, None, "the sound one is not");
    let all = [
        Machine::AnswersLess,
        Machine::CountsBatches,
        Machine::CutsLater,
        Machine::CutsNothing,
        Machine::AddsToState,
        Machine::EmptyChunks,
    ];
    let mut passed = Vec::new();
    for how in all {
        match verdict(machine(how)).await {
            Some(why) => println!("{how:?}: {why}"),
            None => passed.push(how),
        }
    }
    assert!(passed.is_empty(), "not rejected: {passed:?}");
}

/// A sentence of [`Transport`]'s contract that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wire {
    Sound,
    /// "not altered"
    Alters,
    /// "the sender must be who it is said to be"
    NamesAnother,
    /// "hands what arrives for `group` to `inbox`"
    MixesGroups,
    /// "another node of the same group runs on this transport"
    AttachesTwice,
    /// "What arrives for the group afterwards is dropped."
    StaysAttached,
    /// "waits for the answer"
    AnswersItself,
    /// "at most `timeout`"
    WaitsForEver,
    LosesEverything,
}

struct BrokenWire {
    how: Wire,
    node: Arc<NetworkNode>,
    /// Where a node that names another sends from.
    other: Arc<NetworkNode>,
}

#[async_trait]
impl Transport for BrokenWire {
    fn local(&self) -> u64 {
        self.node.local()
    }

    fn attach(&self, group: u64, inbox: Arc<dyn Inbox>) -> Result<(), AttachError> {
        let attached = self.node.attach(group, inbox);
        if self.how == Wire::AttachesTwice { Ok(()) } else { attached }
    }

    fn detach(&self, group: u64) {
        if self.how != Wire::StaysAttached {
            self.node.detach(group);
        }
    }

    fn send(&self, to: u64, group: u64, mut message: Message) -> Result<(), SendError> {
        if let (Wire::Alters, Message::Append { entries, .. }) = (self.how, &mut message) {
            entries.pop();
        }
        match self.how {
            Wire::LosesEverything => Ok(()),
            Wire::NamesAnother => self.other.send(to, group, message),
            Wire::MixesGroups => {
                let _ = self.node.send(to, 8, message.clone());
                self.node.send(to, group, message)
            }
            _ => self.node.send(to, group, message),
        }
    }

    fn send_all(&self, to: u64, messages: Vec<(u64, Message)>) -> Result<(), SendError> {
        let send = |(group, message)| self.send(to, group, message);
        messages.into_iter().map(send).fold(Ok(()), Result::and)
    }

    async fn snapshot(
        &self,
        to: u64,
        group: u64,
        part: SnapshotPart,
        timeout: Duration,
    ) -> Result<SnapshotAnswer, SendError> {
        match self.how {
            Wire::AnswersItself => Ok(SnapshotAnswer::Done),
            Wire::WaitsForEver => {
                self.node.snapshot(to, group, part, Duration::from_secs(1_000_000)).await
            }
            _ => self.node.snapshot(to, group, part, timeout).await,
        }
    }
}

async fn wire(how: Wire) {
    let network = Network::new();
    let end = |id| {
        let (node, other) = (network.node(id), network.node(9));
        Arc::new(BrokenWire { how, node, other }) as Arc<dyn Transport>
    };
    conformance::transport(end(1), end(2)).await;
}

#[tokio::test(start_paused = true)]
async fn every_broken_transport_is_rejected() {
    assert_eq!(verdict(wire(Wire::Sound)).await, None, "the sound one is not");
    let all = [
        Wire::Alters,
        Wire::NamesAnother,
        Wire::MixesGroups,
        Wire::AttachesTwice,
        Wire::StaysAttached,
        Wire::AnswersItself,
        Wire::WaitsForEver,
        Wire::LosesEverything,
    ];
    let mut passed = Vec::new();
    for how in all {
        match verdict(wire(how)).await {
            Some(why) => println!("{how:?}: {why}"),
            None => passed.push(how),
        }
    }
    assert!(passed.is_empty(), "not rejected: {passed:?}");
}

/// The stores that come with the crate fail for good, as the contract says.
#[tokio::test]
async fn nothing_is_written_after_a_failed_write() {
    let store = MemoryStore::new();
    let unknown = SnapshotName { meta: voussoir_raft::SnapshotMeta::default(), identity: 1 };
    for write in [
        LogWrite { snapshot: Some(unknown), ..LogWrite::default() },
        LogWrite { hard_state: Some(HardState { term: 9, vote: None }), ..LogWrite::default() },
    ] {
        let (done, result) = tokio::sync::oneshot::channel();
        store.write(write, Completion::new(move |result| drop(done.send(result))));
        assert!(result.await.unwrap().is_err());
    }
}
