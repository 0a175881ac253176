//! Positions at both ends of their range: each is taken and works, or is rejected by a typed error.

use std::sync::Arc;

use voussoir_journal::{Commit, Config, Error, Journal, Log, MemoryFiles, ReadError};

const BOUNDARIES: [u64; 13] = [
    0,
    1,
    2,
    3,
    4,
    u32::MAX as u64,
    Log::MAX_POSITION - 1,
    Log::MAX_POSITION,
    Log::MAX_POSITION + 1,
    1 << 63,
    u64::MAX - 2,
    u64::MAX - 1,
    u64::MAX,
];

fn open(files: &MemoryFiles) -> Journal {
    let mut config = Config::manual();
    config.segment_bytes = 64 << 10;
    config.max_bytes = 64 * config.segment_bytes;
    Journal::open_with(Arc::new(files.clone()), config).unwrap()
}

/// A log of three records.
fn three(files: &MemoryFiles) -> (Journal, Log) {
    let journal = open(files);
    let log = journal.log("bounds", 1).unwrap();
    journal.commit_blocking(Commit::new().append(&log, ["0", "1", "2"])).unwrap();
    (journal, log)
}

/// A log that was moved to `first` takes, shows and drops records like any other.
fn works_from(first: u64, files: &MemoryFiles) {
    let record = |position: u64| [position.to_string().as_bytes(), &[b'.'; 900]].concat();
    let mut end = first;
    for _ in 0..3 {
        let journal = open(files);
        let log = journal.log("bounds", 1).unwrap();
        assert_eq!(log.end(), end, "from {first}");
        // More than a segment, so that they are found by its index as well.
        for _ in 0..80 {
            journal.commit_blocking(Commit::new().append(&log, [record(end)])).unwrap();
            end += 1;
            journal.work(0);
        }
        for position in log.first().max(first)..end {
            assert_eq!(log.read(position).unwrap(), record(position), "from {first}");
        }
        let all = log.read_range(end - 9..u64::MAX, usize::MAX).unwrap();
        assert!(all.iter().eq((end - 9..end).map(record).collect::<Vec<_>>().iter()));
        let cut = Commit::new().truncate(&log, end - 1).release(&log, end - 20);
        journal.commit_blocking(cut).unwrap();
        end -= 1;
        assert_eq!(log.bounds(), end - 19..end, "from {first}");
        journal.close().unwrap();
    }
    let journal = open(files);
    let log = journal.log("bounds", 1).unwrap();
    // All that is there can be released, also above the highest position of a release.
    journal.commit_blocking(Commit::new().release(&log, end)).unwrap();
    assert_eq!(log.bounds(), end..end);
}

#[test]
fn a_release_to_any_position_leaves_a_log_that_takes_records() {
    for upto in BOUNDARIES {
        let files = MemoryFiles::new();
        let (journal, log) = three(&files);
        let released = journal.commit_blocking(Commit::new().release(&log, upto));
        if upto <= Log::MAX_POSITION {
            released.unwrap();
            assert_eq!(log.bounds(), upto..upto.max(3));
        } else {
            let error = released.unwrap_err();
            let found =
                matches!(error, Error::PositionTooLarge { position, .. } if position == upto);
            assert!(found && !error.is_retryable(), "{error}");
            assert_eq!(log.bounds(), 0..3, "nothing happened");
        }
        let end = log.end();
        journal.close().unwrap();
        drop((journal, log));
        works_from(end, &files);
    }
}

/// The same for a log that does not exist yet, and within one commit.
#[test]
fn a_release_that_creates_a_log_has_the_same_bound() {
    for upto in BOUNDARIES {
        let files = MemoryFiles::new();
        let journal = open(&files);
        let log = journal.log("bounds", 1).unwrap();
        let commit = Commit::new().release(&log, upto).append(&log, ["x"]).release(&log, upto);
        let committed = journal.commit_blocking(commit);
        if upto <= Log::MAX_POSITION {
            committed.unwrap();
            assert_eq!(log.bounds(), upto..upto + 1);
            assert_eq!(log.read(upto).unwrap(), "x");
        } else {
            assert!(matches!(committed, Err(Error::PositionTooLarge { .. })), "{committed:?}");
            assert!(!log.exists());
        }
    }
}

#[test]
fn every_position_can_be_asked_for() {
    let files = MemoryFiles::new();
    let (journal, log) = three(&files);
    journal.commit_blocking(Commit::new().release(&log, 1)).unwrap();
    for position in BOUNDARIES {
        let known = (1..3).contains(&position);
        let read = log.read(position);
        let range = log.read_range(position..u64::MAX, usize::MAX);
        match position {
            0 => {
                assert_eq!(read, Err(ReadError::Released { first: 1 }));
                assert_eq!(range, Err(ReadError::Released { first: 1 }));
            }
            _ if known => {
                assert_eq!(read.unwrap(), position.to_string());
                assert_eq!(range.unwrap().len() as u64, 3 - position);
            }
            u64::MAX => {
                assert_eq!(read, Err(ReadError::Absent { end: 3 }));
                assert_eq!(range.unwrap().len(), 0, "an empty range");
            }
            _ => {
                assert_eq!(read, Err(ReadError::Absent { end: 3 }));
                assert_eq!(range, Err(ReadError::Absent { end: 3 }));
            }
        }
        assert_eq!(log.try_read(position).is_ok(), known);
        let truncated = journal.commit_blocking(Commit::new().truncate(&log, position));
        let within = (1..=3).contains(&position);
        assert_eq!(truncated.is_ok(), within, "{position}: {truncated:?}");
        if position < 3 && within {
            let again = (position..3).map(|position| position.to_string());
            journal.commit_blocking(Commit::new().append(&log, again)).unwrap();
        }
    }
    drop(journal);
}
