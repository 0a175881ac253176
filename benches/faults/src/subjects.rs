//! Adapters: each log opened, read and appended to as its documentation says, in its strictest
//! documented mode.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use okaywal::{Configuration, EntryId, LogManager, SegmentReader, WriteAheadLog};
use raft::eraftpb;
use raft_engine::{Engine, LogBatch, MessageExt, ReadableSize};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use voussoir_journal::{Commit, Config, Journal, Log};

use crate::record;

/// A log of records that claims to be durable.
pub(crate) trait Subject {
    /// All records that it has, in its order.
    fn records(&mut self) -> Result<Vec<Vec<u8>>, String>;

    /// Appends a record; `Ok` claims that it survives a loss of power.
    fn append(&mut self, record: &[u8]) -> Result<(), String>;
}

/// The names of the subjects, ours first.
pub(crate) const NAMES: [&str; 4] = ["voussoir-journal", "okaywal", "raft-engine", "redb"];

/// Opens the subject of this name in a folder of its own, which is made durable before: only the
/// names that a subject chooses itself are its own to sync.
pub(crate) fn open(name: &str, disk: &Path) -> Result<Box<dyn Subject>, String> {
    let folder = &disk.join("own");
    fs::create_dir_all(folder).and_then(|()| File::open(disk)?.sync_all()).map_err(text)?;
    Ok(match name {
        "voussoir-journal" => Box::new(Ours::open(folder).map_err(text)?),
        "okaywal" => Box::new(OkayWal::open(folder).map_err(text)?),
        "raft-engine" => Box::new(RaftEngine::open(folder).map_err(text)?),
        "redb" => Box::new(Redb::open(folder).map_err(text)?),
        _ => return Err(format!("no subject named {name}")),
    })
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Records smaller than the segments, so that a life meets several.
const SEGMENT_BYTES: u64 = 128 << 10;

struct Ours {
    journal: Journal,
    log: Log,
}

impl Ours {
    fn open(folder: &Path) -> Result<Self, Box<dyn std::error::Error>> {
        let mut config = Config::default();
        config.segment_bytes = SEGMENT_BYTES;
        let journal = Journal::open(folder, config)?;
        let log = journal.log("faults", 1)?;
        Ok(Self { journal, log })
    }
}

impl Subject for Ours {
    fn records(&mut self) -> Result<Vec<Vec<u8>>, String> {
        let bounds = self.log.bounds();
        bounds.map(|at| self.log.read(at).map(Into::into).map_err(text)).collect()
    }

    fn append(&mut self, record: &[u8]) -> Result<(), String> {
        let commit = Commit::new().append(&self.log, [record]);
        self.journal.commit_blocking(commit).map(drop).map_err(text)
    }
}

/// okaywal hands entries on before it uses a segment again: "all necessary changes must be fully
/// synchronized to the underlying storage medium before this function call returns". Here they go
/// to a file that is written anew, synced and renamed, and its folder synced.
#[derive(Debug)]
struct Keeper {
    folder: PathBuf,
    /// All records up to the last checkpoint, and those that were recovered.
    kept: Arc<Mutex<Vec<Vec<u8>>>>,
    recovered: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Keeper {
    fn load(folder: &Path) -> io::Result<Vec<Vec<u8>>> {
        let mut bytes = Vec::new();
        match File::open(folder.join("kept")) {
            Ok(mut file) => file.read_to_end(&mut bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut records = Vec::new();
        let mut rest = &bytes[..];
        while let Some((length, tail)) = rest.split_at_checked(4) {
            let length = u32::from_le_bytes(length.try_into().expect("four bytes")) as usize;
            let (record, tail) = tail.split_at_checked(length).ok_or(io::ErrorKind::InvalidData)?;
            records.push(record.to_vec());
            rest = tail;
        }
        Ok(records)
    }

    fn store(&self, records: &[Vec<u8>]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for record in records {
            bytes.extend((record.len() as u32).to_le_bytes());
            bytes.extend(record);
        }
        let new = self.folder.join("kept.new");
        let mut file = File::create(&new)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(new, self.folder.join("kept"))?;
        File::open(&self.folder)?.sync_all()
    }
}

fn records_of(entry: &mut okaywal::Entry<'_>) -> io::Result<Vec<Vec<u8>>> {
    // `None`: the entry was never completed.
    Ok(entry.read_all_chunks()?.unwrap_or_default())
}

impl LogManager for Keeper {
    fn recover(&mut self, entry: &mut okaywal::Entry<'_>) -> io::Result<()> {
        let records = records_of(entry)?;
        self.recovered.lock().expect("no panic").extend(records);
        Ok(())
    }

    fn checkpoint_to(
        &mut self,
        _: EntryId,
        entries: &mut SegmentReader,
        _: &WriteAheadLog,
    ) -> io::Result<()> {
        let mut kept = self.kept.lock().expect("no panic");
        let mut all = kept.clone();
        while let Some(mut entry) = entries.read_entry()? {
            for record in records_of(&mut entry)? {
                if newest(&all) < record::number(&record) {
                    all.push(record);
                }
            }
        }
        self.store(&all)?;
        *kept = all;
        Ok(())
    }
}

fn newest(records: &[Vec<u8>]) -> Option<u64> {
    records.last().and_then(|record| record::number(record))
}

struct OkayWal {
    wal: WriteAheadLog,
    found: Vec<Vec<u8>>,
}

impl OkayWal {
    fn open(folder: &Path) -> io::Result<Self> {
        let wal = folder.join("wal");
        fs::create_dir_all(&wal)?;
        File::open(folder)?.sync_all()?;
        let kept = Keeper::load(folder)?;
        let mut found = kept.clone();
        let recovered = Arc::new(Mutex::new(Vec::new()));
        let (folder_of, shared) = (folder.to_owned(), Arc::clone(&recovered));
        let manager =
            Keeper { folder: folder_of, kept: Arc::new(Mutex::new(kept)), recovered: shared };
        let wal = Configuration::default_for(&wal)
            .preallocate_bytes(SEGMENT_BYTES as u32)
            .checkpoint_after_bytes(SEGMENT_BYTES * 3 / 4)
            .open(manager)?;
        for record in std::mem::take(&mut *recovered.lock().expect("no panic")) {
            // A segment whose checkpoint was interrupted is recovered again.
            if record::number(&record).is_none() || newest(&found) < record::number(&record) {
                found.push(record);
            }
        }
        Ok(Self { wal, found })
    }
}

impl Subject for OkayWal {
    fn records(&mut self) -> Result<Vec<Vec<u8>>, String> {
        Ok(std::mem::take(&mut self.found))
    }

    fn append(&mut self, record: &[u8]) -> Result<(), String> {
        let mut entry = self.wal.begin_entry().map_err(text)?;
        entry.write_chunk(record).map_err(text)?;
        entry.commit().map(drop).map_err(text)
    }
}

struct RaftEntry;

impl MessageExt for RaftEntry {
    type Entry = eraftpb::Entry;

    fn index(entry: &eraftpb::Entry) -> u64 {
        entry.index
    }
}

const REGION: u64 = 1;

struct RaftEngine {
    engine: Engine,
    appended: u64,
}

impl RaftEngine {
    fn open(folder: &Path) -> Result<Self, raft_engine::Error> {
        let config = raft_engine::Config {
            dir: folder.display().to_string(),
            target_file_size: ReadableSize(SEGMENT_BYTES),
            purge_threshold: ReadableSize(2 * SEGMENT_BYTES),
            ..raft_engine::Config::default()
        };
        Ok(Self { engine: Engine::open(config)?, appended: 0 })
    }
}

impl Subject for RaftEngine {
    fn records(&mut self) -> Result<Vec<Vec<u8>>, String> {
        let (first, last) = (self.engine.first_index(REGION), self.engine.last_index(REGION));
        let (Some(first), Some(last)) = (first, last) else { return Ok(Vec::new()) };
        let mut entries = Vec::new();
        self.engine
            .fetch_entries_to::<RaftEntry>(REGION, first, last + 1, None, &mut entries)
            .map_err(text)?;
        Ok(entries.into_iter().map(|entry| entry.data.to_vec()).collect())
    }

    fn append(&mut self, record: &[u8]) -> Result<(), String> {
        let index = self.engine.last_index(REGION).map_or(1, |last| last + 1);
        let data = record.to_vec().into();
        let entry = eraftpb::Entry { index, term: 1, data, ..Default::default() };
        let mut batch = LogBatch::default();
        batch.add_entries::<RaftEntry>(REGION, &[entry]).map_err(text)?;
        self.engine.write(&mut batch, true).map_err(text)?;
        self.appended += 1;
        if self.appended.is_multiple_of(50) {
            // Its users call this now and then: old files are rewritten or removed.
            self.engine.purge_expired_files().map_err(text)?;
        }
        Ok(())
    }
}

const TABLE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("records");

struct Redb {
    database: Database,
    next: u64,
}

impl Redb {
    fn open(folder: &Path) -> Result<Self, redb::Error> {
        let database = Database::create(folder.join("redb"))?;
        let write = database.begin_write()?;
        let next = {
            let table = write.open_table(TABLE)?;
            let last = table.last()?.map(|(key, _)| key.value() + 1);
            last.unwrap_or(0)
        };
        write.commit()?;
        Ok(Self { database, next })
    }

    fn all(&self) -> Result<Vec<Vec<u8>>, redb::Error> {
        let table = self.database.begin_read()?.open_table(TABLE)?;
        let mut records = Vec::new();
        for row in table.iter()? {
            records.push(row?.1.value().to_vec());
        }
        Ok(records)
    }

    fn insert(&mut self, record: &[u8]) -> Result<(), redb::Error> {
        // `Durability::Immediate`, its default.
        let write = self.database.begin_write()?;
        write.open_table(TABLE)?.insert(self.next, record)?;
        write.commit()?;
        self.next += 1;
        Ok(())
    }
}

impl Subject for Redb {
    fn records(&mut self) -> Result<Vec<Vec<u8>>, String> {
        self.all().map_err(text)
    }

    fn append(&mut self, record: &[u8]) -> Result<(), String> {
        self.insert(record).map_err(text)
    }
}
