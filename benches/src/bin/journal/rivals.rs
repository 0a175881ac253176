//! What the journal is measured against: okaywal, raft-engine and walrus-rust.

use std::io;
use std::path::Path;

use okaywal::{Configuration, Entry, EntryId, LogManager, SegmentReader, WriteAheadLog};
use raft::eraftpb;
use raft_engine::{Command, Config, Engine, LogBatch, MessageExt};
use walrus_rust::{FsyncSchedule, ReadConsistency, Walrus};

/// Forgets what was logged when okaywal asks for a checkpoint.
#[derive(Debug)]
struct Forget;

impl LogManager for Forget {
    fn recover(&mut self, _: &mut Entry<'_>) -> io::Result<()> {
        Ok(())
    }

    fn checkpoint_to(
        &mut self,
        _: EntryId,
        _: &mut SegmentReader,
        _: &WriteAheadLog,
    ) -> io::Result<()> {
        Ok(())
    }
}

pub(crate) fn okaywal(folder: &Path) -> io::Result<WriteAheadLog> {
    let config = Configuration::default_for(folder.join("okaywal"))
        .preallocate_bytes(64 << 20)
        .checkpoint_after_bytes(48 << 20);
    config.open(Forget)
}

/// One entry of okaywal's is one batch; each record is one chunk of it.
pub(crate) fn okaywal_append(wal: &WriteAheadLog, records: &[Vec<u8>]) -> io::Result<()> {
    let mut entry = wal.begin_entry()?;
    for record in records {
        entry.write_chunk(record)?;
    }
    entry.commit().map(drop)
}

struct RaftEntry;

impl MessageExt for RaftEntry {
    type Entry = eraftpb::Entry;

    fn index(entry: &eraftpb::Entry) -> u64 {
        entry.index
    }
}

/// One log of raft-engine's.
pub(crate) struct RaftEngineLog {
    region: u64,
    next: u64,
}

pub(crate) fn raft_engine(folder: &Path) -> Engine {
    let config = Config {
        dir: folder.join("raft-engine").display().to_string(),
        enable_log_recycle: true,
        ..Config::default()
    };
    Engine::open(config).expect("an empty raft-engine opens")
}

impl RaftEngineLog {
    /// Entries that a log keeps.
    const KEEP: u64 = 1 << 14;

    pub(crate) fn new(region: u64) -> Self {
        Self { region, next: 1 }
    }

    /// Appends records as entries, synced, and lets go of old ones now and then.
    pub(crate) fn append(&mut self, engine: &Engine, records: &[Vec<u8>]) {
        let entries: Vec<eraftpb::Entry> = (self.next..)
            .zip(records)
            .map(|(index, record)| eraftpb::Entry {
                index,
                term: 1,
                data: record.clone().into(),
                ..Default::default()
            })
            .collect();
        let mut batch = LogBatch::default();
        batch.add_entries::<RaftEntry>(self.region, &entries).expect("entries in order");
        let before = self.next / Self::KEEP;
        self.next += records.len() as u64;
        let purges = self.next / Self::KEEP > before && self.next > Self::KEEP;
        if purges {
            let index = self.next - Self::KEEP;
            batch.add_command(self.region, Command::Compact { index });
        }
        engine.write(&mut batch, true).expect("a synced write");
        if purges {
            engine.purge_expired_files().expect("a purge");
        }
    }
}

/// walrus-rust takes its folder from the environment or the current directory; the second is set
/// here. Its files are opened with `O_SYNC`, so that a batch is durable when it has been written.
/// It keeps what nobody has read.
pub(crate) fn walrus(folder: &Path) -> io::Result<Walrus> {
    std::env::set_current_dir(folder)?;
    let consistency = ReadConsistency::AtLeastOnce { persist_every: u32::MAX };
    Walrus::with_consistency_and_schedule(consistency, FsyncSchedule::SyncEach)
}

/// One batch of walrus's, all or nothing.
pub(crate) fn walrus_append(walrus: &Walrus, records: &[Vec<u8>]) -> io::Result<()> {
    let batch: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
    walrus.batch_append_for_topic("bench", &batch)
}
