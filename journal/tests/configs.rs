//! Whatever validates works, at its extremes too; what must not work does not validate.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use voussoir_journal::files::crash::CrashFiles;
use voussoir_journal::{Commit, Config, Durability, Error, Journal, OpenError, ReadError, Work};

const KIB: u64 = 1 << 10;
const GIB: u64 = 1 << 30;

/// A value of the range, or one of its ends.
fn in_range(low: u64, high: u64) -> BoxedStrategy<u64> {
    prop_oneof![
        Just(low),
        Just(high),
        low..=high,
        (0..64_u32).prop_map(move |shift| { (1_u64 << shift).clamp(low, high) })
    ]
    .boxed()
}

fn segment_bytes() -> BoxedStrategy<u64> {
    // Large ones are slow to zero: fewer of them.
    prop_oneof![
        3 => Just(64 * KIB),
        3 => (16..64_u64).prop_map(|blocks| blocks * 4 * KIB),
        6 => (16..2_048_u64).prop_map(|blocks| blocks * 4 * KIB),
        1 => Just(64 << 20),
        1 => Just(GIB),
    ]
    .boxed()
}

/// Every field over its whole valid range.
fn valid() -> impl Strategy<Value = Config> {
    let sizes =
        segment_bytes().prop_flat_map(|segment| (Just(segment), in_range(4 * segment, u64::MAX)));
    let counts = (in_range(1, u32::MAX.into()), in_range(1, usize::MAX as u64));
    let bytes = (
        in_range(1, usize::MAX as u64),
        in_range(1, usize::MAX as u64),
        in_range(0, usize::MAX as u64),
        in_range(1, u64::MAX),
    );
    let idle = prop_oneof![
        Just(Duration::ZERO),
        Just(Duration::MAX),
        (0..u64::MAX).prop_map(Duration::from_nanos),
    ];
    (sizes, counts, bytes, idle, any::<(bool, Option<u128>)>()).prop_map(
        |((segment, max), (logs, waiting), bytes, idle, (manual, identity))| {
            let mut config = if manual { Config::manual() } else { Config::default() };
            (config.segment_bytes, config.max_bytes) = (segment, max);
            (config.max_logs, config.max_waiting) = (logs as u32, waiting as usize);
            config.max_pending_bytes = bytes.0 as usize;
            config.bulk_share_bytes = bytes.1 as usize;
            config.index_cache_bytes = bytes.2 as usize;
            config.prepare_bytes_per_second = bytes.3;
            (config.idle_mark, config.identity) = (idle, identity);
            config
        },
    )
}

/// Commits, waiting for room as a caller would.
fn commit(journal: &Journal, commit: &Commit) -> Result<(), Error> {
    let began = Instant::now();
    loop {
        match journal.commit_blocking(commit.clone()) {
            Err(Error::Busy { .. }) if began.elapsed() < Duration::from_secs(20) => {
                journal.work(0);
                std::thread::yield_now();
            }
            done => return done.map(drop),
        }
    }
}

/// A little of everything; answers the records that are left.
fn work_a_little(journal: &Journal, config: &Config) -> Result<(u64, u64), TestCaseError> {
    let log = journal.log("configs", 1).unwrap();
    let first = log.end();
    let kinds = [Durability::Buffered, Durability::Written, Durability::Synced];
    for (number, durability) in kinds.into_iter().enumerate() {
        let append = Commit::new().append(&log, [[number as u8; 100], [9; 100]]);
        commit(journal, &append.durability(durability)).unwrap();
    }
    // The largest batch that it claims to take.
    let large = vec![7; journal.max_batch_bytes() as usize - 4];
    commit(journal, &Commit::new().append(&log, [&large])).unwrap();
    prop_assert_eq!(log.end(), first + 7);
    prop_assert!(log.read(first + 6).unwrap() == large);
    let more = log.read_range(first..first + 6, usize::MAX).unwrap();
    prop_assert_eq!(more.len(), 6);
    commit(journal, &Commit::new().truncate(&log, first + 5)).unwrap();
    commit(journal, &Commit::new().release(&log, first + 2)).unwrap();
    prop_assert_eq!(log.read(first), Err(ReadError::Released { first: first + 2 }));
    match journal.log("configs", 2) {
        Ok(other) => {
            commit(journal, &Commit::new().append(&other, ["x"])).unwrap();
            commit(journal, &Commit::new().delete(&other)).unwrap();
        }
        Err(error) => {
            prop_assert_eq!(error, Error::TooManyLogs { limit: 1 });
            prop_assert_eq!(config.max_logs, 1);
        }
    }
    for now in [0, 1, u64::MAX / 2, u64::MAX, u64::MAX] {
        let worked = journal.work(now);
        prop_assert!(matches!(worked, Work::Idle | Work::Prepared | Work::Marked));
    }
    if config.segment_bytes <= 256 * KIB {
        // Over the end of the segment, until something says that it is full.
        let rotations = journal.stats().rotations;
        while journal.stats().rotations < rotations + 3 {
            let append = Commit::new().append(&log, [vec![3; 9_000]]);
            commit(journal, &append.release(&log, log.end().saturating_sub(2))).unwrap();
        }
    }
    Ok((log.first(), log.end()))
}

fn cases() -> ProptestConfig {
    ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn whatever_validates_works(config in valid(), later in valid()) {
        let disk = CrashFiles::new(1);
        let journal = Journal::open_with(disk.mount(), config.clone()).unwrap();
        let left = work_a_little(&journal, &config)?;
        journal.close().unwrap();
        for config in [config, later] {
            let journal = Journal::open_with(disk.mount(), config.clone()).unwrap();
            let log = journal.log("configs", 1).unwrap();
            prop_assert!(log.end() >= left.1);
            prop_assert_eq!(log.read_range(log.bounds(), usize::MAX).unwrap().len() as u64,
                log.end() - log.first());
            work_a_little(&journal, &config)?;
            journal.close().unwrap();
        }
    }

    /// Any values at all: an error that names the option, or a journal.
    #[test]
    fn what_must_not_work_does_not_validate(
        segment in in_range(0, u64::MAX),
        max in in_range(0, u64::MAX),
        (logs, waiting, pending) in (in_range(0, 3), in_range(0, 3), in_range(0, 3)),
        (bulk, rate) in (in_range(0, 3), in_range(0, 3)),
    ) {
        let mut config = Config::manual();
        // Large ones are tried above.
        let segment = if segment <= GIB { segment.min(1 << 20) } else { segment };
        (config.segment_bytes, config.max_bytes) = (segment, max);
        (config.max_logs, config.max_waiting) = (logs as u32, waiting as usize);
        (config.max_pending_bytes, config.bulk_share_bytes) = (pending as usize, bulk as usize);
        config.prepare_bytes_per_second = rate;
        let valid = (64 * KIB..=GIB).contains(&segment)
            && segment % 4_096 == 0
            && max / segment >= 4
            && [logs, waiting, pending, bulk, rate].iter().all(|value| *value > 0);
        match Journal::open_with(CrashFiles::new(1).mount(), config) {
            Ok(journal) => {
                prop_assert!(valid);
                journal.close().unwrap();
            }
            Err(OpenError::Config(_)) => prop_assert!(!valid),
            Err(error) => prop_assert!(false, "{error}"),
        }
    }
}
