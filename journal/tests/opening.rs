//! What an opening reads of a full journal: its newest segment, and of each older one what says
//! where its records are.

use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use voussoir_journal::files::crash::Op;
use voussoir_journal::testing::HookedFiles;
use voussoir_journal::{Batch, Commit, Config, DiskFiles, Durability, File, Files, Journal};
use voussoir_journal::{Health, MemoryFiles};

/// Zeros take no room on the disk: they are left out of what is written.
#[derive(Debug)]
struct Sparse(Arc<dyn Files>);

#[derive(Debug)]
struct SparseFile(Arc<dyn File>);

impl Files for Sparse {
    fn lock(&self) -> io::Result<Box<dyn Send + Sync>> {
        self.0.lock()
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.0.list()
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(SparseFile(self.0.open(name)?)))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(SparseFile(self.0.create(name)?)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.0.sync_dir()
    }
}

impl File for SparseFile {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }

    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        const PIECE: usize = 4096;
        let mut at = offset;
        for piece in bufs.iter().flat_map(|buf| buf.chunks(PIECE)) {
            let end = at + piece.len() as u64;
            if piece.iter().any(|byte| *byte != 0) {
                let mut done = 0;
                while done < piece.len() {
                    let rest = IoSlice::new(&piece[done..]);
                    done += self.0.write_at(&[rest], at + done as u64)?;
                }
            } else if self.0.len()? < end {
                self.0.write_at(&[IoSlice::new(&[0])], end - 1)?;
            }
            at = end;
        }
        Ok((at - offset) as usize)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn config(segment_bytes: u64, max_bytes: u64) -> Config {
    let mut config = Config::manual();
    (config.segment_bytes, config.max_bytes) = (segment_bytes, max_bytes);
    config
}

/// Fills a journal with batches of 64 KiB, over all logs in turn, until it takes no more.
fn fill(files: Arc<dyn Files>, config: Config, logs: u64) -> u64 {
    let journal = Journal::open_with(files, config).unwrap();
    let logs: Vec<_> = (0..logs).map(|id| journal.log("entries", id).unwrap()).collect();
    let batch = Batch::from(bytes::Bytes::from(vec![0; 64 << 10]));
    let mut batches = 0;
    for log in logs.iter().cycle() {
        let commit = Commit::new().durability(Durability::Written).append_batch(log, batch.clone());
        if journal.commit_blocking(commit).is_err() {
            break;
        }
        batches += 1;
        journal.work(0);
    }
    let segments = journal.stats().segments;
    println!("{batches} batches in {segments} segments, {} logs", journal.stats().logs);
    journal.close().unwrap();
    batches
}

/// Opens the journal; answers how many bytes were read, and how long it took.
fn open(files: Arc<dyn Files>, config: Config, logs: u64, batches: u64) -> (u64, Duration) {
    let read = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&read);
    let files = HookedFiles::new(files, move |call| {
        if call.op == Op::Read {
            counted.fetch_add(call.length as u64, Ordering::Relaxed);
        }
        Ok(())
    });
    let begun = Instant::now();
    let journal = Journal::open_with(Arc::new(files), config).unwrap();
    let took = begun.elapsed();
    let found: u64 = journal.logs().iter().map(|log| log.end).sum();
    assert_eq!((journal.logs().len() as u64, found), (logs, batches));
    assert!(journal.logs().iter().all(|log| log.health == Health::Intact));
    let read = read.load(Ordering::Relaxed);
    println!("opened in {took:?}, {} KiB read", read >> 10);
    (read, took)
}

#[test]
fn opening_reads_the_newest_segment_and_of_the_others_only_what_they_hold() {
    const SEGMENT: u64 = 4 << 20;
    let (files, logs) = (Arc::new(MemoryFiles::new()), 50);
    let mut before = 0;
    for segments in [16, 48] {
        let files = Arc::clone(&files);
        let batches = {
            let found = fill(files.clone(), config(SEGMENT, segments * SEGMENT), logs);
            before += found;
            before
        };
        let (read, _) = open(files, config(SEGMENT, segments * SEGMENT), logs, batches);
        // Of each segment: header, first frame (a table of 50 logs), trailer, index.
        let each = 3 * 4096 + logs * (64 + 48 + 64);
        let most = 3 * SEGMENT + (segments + 3) * each;
        assert!(read < most, "{segments} segments: {read} bytes read, more than {most}");
    }
}

/// 16 GiB at the default size of segments, and at one that gives about as many as there may be:
/// `VOUSSOIR_LONG=1 cargo test --release -p voussoir-journal --all-features --test opening \
/// -- --nocapture`. The directory takes 1 GiB in the folder for temporary files.
#[test]
fn a_full_journal_of_16_gib_opens_in_a_second() {
    if std::env::var_os("VOUSSOIR_LONG").is_none() {
        println!("left out: VOUSSOIR_LONG is not set");
        return;
    }
    for (segment_bytes, logs) in [(64 << 20, 1_000), (64 << 20, 10), (5 << 20, 1_000)] {
        let name = format!("voussoir-opening-{}", std::process::id());
        let dir = Directory(std::env::temp_dir().join(name));
        let files: Arc<dyn Files> = Arc::new(Sparse(Arc::new(DiskFiles::new(&dir.0).unwrap())));
        let batches = fill(Arc::clone(&files), config(segment_bytes, 16 << 30), logs);
        assert!(batches > 15 << 14, "{batches} batches of 64 KiB");
        let took = [(); 3]
            .map(|()| open(Arc::clone(&files), config(segment_bytes, 16 << 30), logs, batches).1);
        assert!(took.iter().min() < Some(&Duration::from_secs(1)), "{took:?}");
    }
}
