//! The state machine of a replicated partition: the batches that all nodes hold.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use voussoir_raft::{Chunks, Command, MAX_CHUNK_BYTES, MachineError, StateMachine};

use super::command::{Answer, PutBatches, Verdict, put_piece, take_piece};
use super::{Leading, close};
use crate::error::StoreError;
use crate::format::Batch;
use crate::partition::Partition;
use crate::store::{Extent, PartitionLog};

/// The version of snapshots.
const VERSION: u8 = 1;

/// What the committed commands have left: the same on every node that has applied as many.
#[derive(Default)]
pub(super) struct Contents {
    inner: Mutex<Inner>,
    /// Held while commands are applied, and while a partition is opened: it reads the snapshot and
    /// the bounds one after the other, and what changes between takes one for damage.
    changing: Mutex<()>,
}

#[derive(Clone, Debug, Default)]
struct Inner {
    /// Position of the first of `batches`.
    first: u64,
    batches: VecDeque<Bytes>,
    /// Sum of the sizes of `batches`.
    bytes: u64,
    /// The partition's own snapshot: what it knew when it was written.
    snapshot: Option<Bytes>,
}

impl Contents {
    pub(super) fn snapshot(&self) -> Option<Bytes> {
        self.inner.lock().snapshot.clone()
    }

    /// Runs `read` while nothing is applied.
    pub(super) fn while_unchanged<T>(&self, read: impl FnOnce() -> T) -> T {
        let _changing = self.changing.lock();
        read()
    }

    fn apply(&self, command: PutBatches) -> Answer {
        let mut inner = self.inner.lock();
        let verdict = inner.apply(command);
        Answer { verdict, end: inner.end() }
    }
}

impl Inner {
    fn end(&self) -> u64 {
        self.first + self.batches.len() as u64
    }

    fn apply(&mut self, command: PutBatches) -> Verdict {
        if command.position != self.end() {
            return Verdict::Superseded;
        }
        // Readers of all nodes stop at what is no batch, so it must not get into the log.
        let is_batch = |bytes: &Bytes| Batch::from_store(bytes.clone()).is_ok();
        if !command.batches.iter().all(is_batch) {
            return Verdict::Unknown;
        }
        let added: u64 = command.batches.iter().map(|batch| batch.len() as u64).sum();
        if added > 0 && self.bytes + added > command.max_bytes {
            return Verdict::Full;
        }
        self.bytes += added;
        // Copied: a slice keeps the whole command in memory, and perhaps the message that it came
        // in, which `max_bytes` does not count.
        let copied = |bytes: &Bytes| Bytes::copy_from_slice(bytes);
        self.batches.extend(command.batches.iter().map(copied));
        if let Some(upto) = command.release {
            // Ends: each round lets go of a batch.
            while self.first < upto {
                let Some(batch) = self.batches.pop_front() else { break };
                self.bytes -= batch.len() as u64;
                self.first += 1;
            }
        }
        if let Some(snapshot) = &command.snapshot {
            self.snapshot = Some(copied(snapshot));
        }
        Verdict::Done
    }

    /// The pieces of a snapshot: a head with the partition's own snapshot, then the batches.
    fn pieces(self) -> impl Iterator<Item = Bytes> {
        let mut head = BytesMut::new();
        head.put_u8(VERSION);
        head.put_u64_le(self.first);
        head.put_u64_le(self.batches.len() as u64);
        head.put_u8(u8::from(self.snapshot.is_some()));
        put_piece(&mut head, self.snapshot.as_deref().unwrap_or_default());
        let batch = |batch: Bytes| {
            let mut piece = BytesMut::with_capacity(batch.len() + 4);
            put_piece(&mut piece, &batch);
            piece.freeze()
        };
        std::iter::once(head.freeze()).chain(self.batches.into_iter().map(batch))
    }

    async fn read(chunks: &mut dyn Chunks) -> Result<Self, MachineError> {
        let mut source = Source { chunks, rest: BytesMut::new() };
        source.fill(22).await?;
        let mut head = source.rest.split_to(22).freeze();
        if head.get_u8() != VERSION {
            return Err("the snapshot has a version that this build does not know".into());
        }
        let (first, count) = (head.get_u64_le(), head.get_u64_le());
        let (has_snapshot, length) = (head.get_u8() == 1, head.get_u32_le());
        source.fill(length as usize).await?;
        let snapshot = source.rest.split_to(length as usize).freeze();
        let mut inner =
            Self { first, snapshot: has_snapshot.then_some(snapshot), ..Self::default() };
        first.checked_add(count).ok_or("the snapshot has more batches than positions")?;
        for _ in 0..count {
            source.fill(4).await?;
            let length = (&source.rest[..4]).get_u32_le() as usize;
            source.fill(4 + length).await?;
            let mut piece = source.rest.split_to(4 + length).freeze();
            let batch = take_piece(&mut piece).ok_or("the snapshot is cut")?;
            inner.bytes += batch.len() as u64;
            inner.batches.push_back(batch);
        }
        if !source.rest.is_empty() || source.chunks.next().await?.is_some() {
            return Err("the snapshot goes on behind its last batch".into());
        }
        Ok(inner)
    }
}

/// The bytes of a snapshot as a run: its pieces may lie across chunks.
struct Source<'a> {
    chunks: &'a mut dyn Chunks,
    rest: BytesMut,
}

impl Source<'_> {
    /// Gathers chunks until there are `bytes` of them, as they come: nothing is reserved for a
    /// length that only the snapshot vouches for.
    async fn fill(&mut self, bytes: usize) -> Result<(), MachineError> {
        // Ends: each round takes a chunk.
        while self.rest.len() < bytes {
            let chunk = self.chunks.next().await?.ok_or("the snapshot is cut")?;
            self.rest.extend_from_slice(&chunk);
        }
        Ok(())
    }
}

/// The chunks of a snapshot. Batches are shared with the log until they are asked for.
struct Pieces<I> {
    pieces: I,
    /// Of the piece that is being cut into chunks.
    rest: Bytes,
}

#[async_trait]
impl<I: Iterator<Item = Bytes> + Send> Chunks for Pieces<I> {
    async fn next(&mut self) -> Result<Option<Bytes>, MachineError> {
        if self.rest.is_empty() {
            let Some(piece) = self.pieces.next() else { return Ok(None) };
            self.rest = piece;
        }
        if self.rest.len() >= MAX_CHUNK_BYTES {
            return Ok(Some(self.rest.split_to(MAX_CHUNK_BYTES)));
        }
        // Small batches share a chunk.
        let mut chunk = BytesMut::from(&std::mem::take(&mut self.rest)[..]);
        // Ends: each round takes a piece, or leaves.
        for piece in self.pieces.by_ref() {
            if chunk.len() + piece.len() > MAX_CHUNK_BYTES {
                self.rest = piece;
                break;
            }
            chunk.extend_from_slice(&piece);
        }
        Ok(Some(chunk.freeze()))
    }
}

/// Applies committed commands, and tells the partition that readers use. Dropped when the node has
/// stopped, for whatever reason: nothing more is committed here, and who waits for it is told.
pub(super) struct Machine {
    pub(super) contents: Arc<Contents>,
    pub(super) reader: Partition,
    /// What this node has opened as the leader.
    pub(super) leading: Weak<Leading>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.reader.close();
        // Whoever holds the lock is asking the node, and closes the partition when it has stopped.
        if let Some(leading) = self.leading.upgrade()
            && let Ok(mut leading) = leading.try_lock()
        {
            close(&mut leading);
        }
    }
}

impl Machine {
    fn catch_up(&self) -> Result<(), MachineError> {
        Ok(self.reader.catch_up()?)
    }
}

#[async_trait]
impl StateMachine for Machine {
    async fn apply(&mut self, commands: &[Command]) -> Result<Vec<Bytes>, MachineError> {
        let answer = |command: &Command| {
            // A node that passed over it would differ from those that know it.
            if PutBatches::is_later(&command.data) {
                return Err("a command has a version that this build does not know".into());
            }
            let answer = match PutBatches::decode(command.data.clone()) {
                Some(command) => self.contents.apply(command),
                None => Answer { verdict: Verdict::Unknown, end: self.contents.bounds().end },
            };
            Ok(answer.encode())
        };
        self.contents.while_unchanged(|| {
            let answers = commands.iter().map(answer).collect();
            self.catch_up()?;
            answers
        })
    }

    async fn snapshot(&mut self) -> Result<Box<dyn Chunks>, MachineError> {
        let pieces = self.contents.inner.lock().clone().pieces();
        Ok(Box::new(Pieces { pieces, rest: Bytes::new() }))
    }

    async fn restore(&mut self, chunks: &mut dyn Chunks) -> Result<(), MachineError> {
        let restored = Inner::read(chunks).await?;
        self.contents.while_unchanged(|| {
            *self.contents.inner.lock() = restored;
            self.catch_up()
        })
    }
}

impl PartitionLog for Contents {
    fn bounds(&self) -> Range<u64> {
        let inner = self.inner.lock();
        inner.first..inner.end()
    }

    fn read(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<Bytes>, StoreError> {
        let inner = self.inner.lock();
        let first = inner.first;
        let skipped = range.start.checked_sub(first).ok_or(StoreError::Released { first })?;
        let wanted = range.end.saturating_sub(range.start) as usize;
        let mut bytes = 0;
        let has_room = |batch: &&Bytes| {
            let is_first = bytes == 0;
            bytes += batch.len();
            is_first || bytes <= max_bytes
        };
        let batches = inner.batches.iter().skip(skipped as usize).take(wanted);
        Ok(batches.take_while(has_room).cloned().collect())
    }

    fn extents(&self) -> Vec<Extent> {
        // One extent for each batch: each may be released by itself.
        let inner = self.inner.lock();
        let batches = (inner.first..).zip(&inner.batches);
        let extent = |(first, batch): (u64, &Bytes)| {
            let bytes = batch.len() as u64;
            Extent { first, end: first + 1, bytes }
        };
        batches.map(extent).collect()
    }

    fn stored_bytes(&self) -> u64 {
        self.inner.lock().bytes
    }
}

impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Contents").field("bounds", &self.bounds()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::store::ReaderStore;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::config::Config;
    use crate::core::State;
    use crate::format::{BatchBuilder, Record};

    fn batch(bytes: usize) -> Bytes {
        let mut builder = BatchBuilder::new();
        builder.push(&Record::new(vec![7; bytes])).unwrap();
        builder.finish().unwrap().bytes().clone()
    }

    fn contents(sizes: &[usize]) -> Inner {
        let mut inner = Inner { first: 0, ..Inner::default() };
        for bytes in sizes {
            let (position, batches) = (inner.end(), vec![batch(*bytes)]);
            let snapshot = Some(Bytes::from(vec![1; *bytes]));
            let command =
                PutBatches { position, max_bytes: 1 << 30, release: None, snapshot, batches };
            assert_eq!(inner.apply(command), Verdict::Done);
        }
        inner
    }

    async fn chunks_of(inner: Inner) -> VecDeque<Bytes> {
        let mut pieces = Pieces { pieces: inner.pieces(), rest: Bytes::new() };
        let mut chunks = VecDeque::new();
        // Ends: the pieces do.
        while let Some(chunk) = pieces.next().await.unwrap() {
            assert!((1..=MAX_CHUNK_BYTES).contains(&chunk.len()), "{}", chunk.len());
            chunks.push_back(chunk);
        }
        chunks
    }

    struct Given(VecDeque<Bytes>);

    #[async_trait]
    impl Chunks for Given {
        async fn next(&mut self) -> Result<Option<Bytes>, MachineError> {
            Ok(self.0.pop_front())
        }
    }

    #[tokio::test]
    async fn a_snapshot_comes_back_over_any_chunks_and_no_other_length_does() {
        let most = MAX_CHUNK_BYTES.min(900_000);
        for sizes in [&[][..], &[1, 2, 3], &[most, 1, most, most / 2, most / 2], &[10; 300]] {
            let inner = contents(sizes);
            let chunks = chunks_of(inner.clone()).await;
            let back = Inner::read(&mut Given(chunks.clone())).await.unwrap();
            let of = |inner: &Inner| (inner.first, inner.bytes, inner.snapshot.clone());
            assert_eq!(of(&back), of(&inner));
            assert_eq!(back.batches, inner.batches);
            let mut cut = chunks.clone();
            if let Some(last) = cut.back_mut() {
                last.truncate(last.len() - 1);
            }
            assert!(Inner::read(&mut Given(cut)).await.is_err());
            let mut longer = chunks;
            longer.push_back(Bytes::from_static(b"!"));
            assert!(Inner::read(&mut Given(longer)).await.is_err());
        }
    }

    #[test]
    fn what_is_no_batch_is_not_taken_and_a_batch_keeps_no_command_in_memory() {
        let mut inner = contents(&[1]);
        let bytes = Bytes::from(vec![0; 100]);
        let command = |batches| PutBatches {
            position: 1,
            max_bytes: 1 << 20,
            release: None,
            snapshot: None,
            batches,
        };
        assert_eq!(inner.apply(command(vec![batch(1), bytes])), Verdict::Unknown);
        assert_eq!(inner.end(), 1);
        let encoded = command(vec![batch(5)]).encode();
        let decoded = PutBatches::decode(encoded.clone()).unwrap();
        assert_eq!(inner.apply(decoded), Verdict::Done);
        assert!(encoded.is_unique(), "nothing of it is held");
    }

    #[test]
    fn a_partition_opens_while_commands_are_applied() {
        /// How often it must have been opened while more was applied than at the time before.
        const OPENED: u32 = 100;
        let config = Config { max_producers: 10, max_index_entries: 10, ..Config::default() };
        let contents = Arc::<Contents>::default();
        let store = || ReaderStore { contents: Arc::clone(&contents), max_entry_bytes: 1 << 20 };
        let reader = Partition::open(store(), config.clone()).unwrap();
        let leading = Weak::new();
        let mut machine = Machine { contents: Arc::clone(&contents), reader, leading };
        let limits = config.limits();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let applied = scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                let mut state = State::new();
                while !done.load(Ordering::Relaxed) {
                    let (position, snapshot) = (state.next_position, state.encode());
                    let placed = Batch::from_store(batch(1)).unwrap();
                    let placed = placed.placed(state.next_offset, 0);
                    state.apply(placed.header(), limits).unwrap();
                    let command = PutBatches {
                        position,
                        max_bytes: 1 << 20,
                        release: Some(position),
                        snapshot: Some(snapshot),
                        batches: vec![placed.bytes().clone()],
                    };
                    let command = Command { index: position + 1, data: command.encode() };
                    runtime.block_on(machine.apply(&[command])).unwrap();
                }
            });
            let (mut end, mut meanwhile) = (0, 0);
            while meanwhile < OPENED && !applied.is_finished() {
                let open = || Partition::open(store(), config.clone());
                let opened = contents.while_unchanged(open).map(|opened| opened.next_position());
                // The other thread must end, whatever the answer is.
                done.store(opened.is_err(), Ordering::Relaxed);
                let opened = opened.unwrap();
                meanwhile += u32::from(end > 0 && opened > end);
                end = opened;
            }
            done.store(true, Ordering::Relaxed);
            applied.join().unwrap();
        });
    }
}
