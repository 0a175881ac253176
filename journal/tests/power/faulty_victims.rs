//! A batch that is to be moved cannot be had: what that costs, and for how long.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use voussoir_journal::files::crash::{CrashFiles, Op};
use voussoir_journal::testing::HookedFiles;
use voussoir_journal::{Commit, Files, Journal, MemoryFiles};

use crate::rewriting::{append_cold, cold, commit, fill_segment, open, record, short_of_segments};

const FIRST: &str = "segment-00000000";

/// A journal in which a round has just begun. One of its victims is the first segment, which also
/// has records of a log that keeps them, and some of the cold log.
fn beside_pins(files: Arc<dyn Files>) -> Journal {
    let journal = open(Arc::clone(&files));
    commit(&journal, Commit::new().append(&journal.log("pins", 1).unwrap(), ["here"]));
    append_cold(&journal);
    append_cold(&journal);
    journal.close().unwrap();
    short_of_segments(files)
}

/// A batch has rotted, and its log lets go of it while the round is under way.
#[test]
fn what_nobody_needs_any_more_bars_no_segment() {
    let changes: [fn(&Journal) -> Commit; 4] = [
        |journal| Commit::new().delete(&cold(journal)),
        |journal| Commit::new().release(&cold(journal), cold(journal).end()),
        |journal| Commit::new().release(&cold(journal), 2),
        |journal| Commit::new().truncate(&cold(journal), 1),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let disk = CrashFiles::new(1);
        let journal = beside_pins(disk.mount());
        let image = disk.snapshot();
        let (_, content) = image.iter().find(|(name, _)| name == FIRST).unwrap();
        let rotten = record(1);
        let at = content.windows(rotten.len()).position(|bytes| bytes == rotten).unwrap();
        disk.overwrite(FIRST, at as u64, &[0xee]);
        commit(&journal, change(&journal));
        for _ in 0..30 {
            journal.work(0);
            fill_segment(&journal, true);
        }
        assert_eq!(journal.stats().segments_unmovable, 0, "change {number}");
        let pins = journal.log("pins", 1).unwrap();
        assert_eq!(pins.read(0).unwrap(), "here", "change {number}");
        let log = cold(&journal);
        for position in log.bounds() {
            assert_eq!(log.read(position).unwrap(), record(position), "change {number}");
        }
    }
}

/// Reads of a victim fail some times, or for good. What can be read again is moved later.
#[test]
fn a_read_that_fails_for_a_while_bars_no_segment_for_good() {
    for (failures, unmovable) in [(1, 0), (2, 0), (u64::MAX, 1)] {
        let left = Arc::new(AtomicU64::new(0));
        let failing = Arc::clone(&left);
        let files = HookedFiles::new(Arc::new(MemoryFiles::new()), move |call| {
            let hits = call.op == Op::Read && call.name == FIRST && call.touches(&(4096..8192));
            let take = |left: u64| left.checked_sub(1);
            let fails =
                hits && failing.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok();
            if fails { Err(io::Error::other("no answer")) } else { Ok(()) }
        });
        let journal = beside_pins(Arc::new(files));
        left.store(failures, Ordering::Relaxed);
        for _ in 0..80 {
            append_cold(&journal);
            fill_segment(&journal, true);
        }
        assert_eq!(journal.stats().segments_unmovable, unmovable, "{failures} failures");
        let tried = failures - left.swap(0, Ordering::Relaxed);
        assert!(tried >= failures.min(3) && tried < 12, "{tried} of {failures} failures");
        let log = cold(&journal);
        for position in 0..log.end() {
            assert_eq!(log.read(position).unwrap(), record(position), "{failures} failures");
        }
    }
}
