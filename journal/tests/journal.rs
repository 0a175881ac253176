//! Behaviour of one journal over memory files.
use std::sync::Arc;

use voussoir_journal::{Commit, Config, Durability, Error, Journal, MemoryFiles, ReadError, Work};

fn small() -> Config {
    let mut config = Config::manual();
    config.segment_bytes = 64 << 10;
    config.max_bytes = 64 << 20;
    config.identity = Some(7);
    config
}

#[test]
fn records_survive_reopening_over_many_segments() {
    let files = Arc::new(MemoryFiles::new());
    let journal = Journal::open_with(files.clone(), small()).unwrap();
    let logs: Vec<_> = (0..5).map(|id| journal.log("test", id).unwrap()).collect();
    for round in 0..400u64 {
        let mut commit = Commit::new();
        for (id, log) in logs.iter().enumerate() {
            let record = vec![(round % 251) as u8; 100 + 10 * id];
            commit = commit.append(log, [&record, &record]);
        }
        let receipt = journal.commit_blocking(commit).unwrap();
        assert_eq!(receipt.positions()[4], 2 * round..2 * round + 2);
        while journal.work(0) != Work::Idle {}
    }
    assert!(journal.stats().rotations > 5, "{:?}", journal.stats());
    journal.close().unwrap();
    assert_eq!(logs[0].read(0), Err(ReadError::Closed));

    for _ in 0..2 {
        let journal = Journal::open_with(files.clone(), small()).unwrap();
        for id in 0..5 {
            let log = journal.log("test", id).unwrap();
            assert_eq!(log.bounds(), 0..800, "{id}");
            for position in 0..800 {
                let record = log.read(position).unwrap();
                assert_eq!(record, vec![(position / 2 % 251) as u8; 100 + 10 * id as usize]);
            }
            assert_eq!(
                log.read_range(10..800, 1000).unwrap().len(),
                1000 / (100 + 10 * id as usize)
            );
        }
        journal.close().unwrap();
    }
}

#[test]
fn released_segments_are_used_again() {
    let files = Arc::new(MemoryFiles::new());
    let mut config = small();
    config.max_bytes = 256 << 10;
    let journal = Journal::open_with(files.clone(), config.clone()).unwrap();
    let log = journal.log("test", 1).unwrap();
    let record = vec![1; 1000];
    for round in 0..1000u64 {
        let commit = Commit::new().append(&log, [&record]).release(&log, round.saturating_sub(50));
        journal.commit_blocking(commit).unwrap();
        while journal.work(0) != Work::Idle {}
    }
    // Four by `max_bytes`, and the reserve.
    assert!(journal.stats().files <= 4 + 3);
    let mut full = None;
    for _ in 0..500 {
        match journal.commit_blocking(Commit::new().append(&log, [&record])) {
            Ok(_) => {}
            Err(error) => {
                full = Some(error);
                break;
            }
        }
        while journal.work(0) != Work::Idle {}
    }
    assert!(
        matches!(&full, Some(Error::Full { pinned_by, .. }) if pinned_by.len() == 1),
        "{full:?}"
    );
    journal.commit_blocking(Commit::new().release(&log, log.end())).unwrap();
    while journal.work(0) != Work::Idle {}
    for _ in 0..50 {
        journal.commit_blocking(Commit::new().append(&log, [&record])).unwrap();
        while journal.work(0) != Work::Idle {}
    }
    drop(journal);
    let end = log.end();
    let journal = Journal::open_with(files, config).unwrap();
    let log = journal.log("test", 1).unwrap();
    assert_eq!(log.bounds(), end - 50..end);
    assert_eq!(log.read(end - 1).unwrap(), record);
}

#[test]
fn threads_share_groups() {
    let files = Arc::new(MemoryFiles::new());
    let mut config = Config::default();
    config.segment_bytes = 1 << 20;
    let journal = Journal::open_with(files, config).unwrap();
    std::thread::scope(|scope| {
        for id in 0..8 {
            let journal = journal.clone();
            scope.spawn(move || {
                let log = journal.log("t", id).unwrap();
                for at in 0..500u64 {
                    let durability =
                        if at % 3 == 0 { Durability::Buffered } else { Durability::Synced };
                    let commit =
                        Commit::new().append(&log, [at.to_le_bytes()]).durability(durability);
                    let receipt = journal.commit_blocking(commit).unwrap();
                    assert_eq!(receipt.positions()[0], at..at + 1);
                }
                for at in 0..499u64 {
                    assert_eq!(log.read(at).unwrap(), at.to_le_bytes()[..]);
                }
            });
        }
    });
    journal.close().unwrap();
}

#[tokio::test]
async fn futures_and_followers() {
    let journal = Journal::open_with(Arc::new(MemoryFiles::new()), {
        let mut config = Config::default();
        config.segment_bytes = 1 << 20;
        config.max_pending_bytes = 1000;
        config
    })
    .unwrap();
    let log = journal.log("t", 1).unwrap();
    let mut follow = log.follow(0);
    let commits: Vec<_> = (0..200u64)
        .map(|at| journal.commit(Commit::new().append(&log, [at.to_le_bytes()])))
        .collect();
    for at in 0..200u64 {
        let (position, record) = follow.next().await.unwrap();
        assert_eq!((position, &record[..]), (at, &at.to_le_bytes()[..]));
    }
    for (at, commit) in commits.into_iter().enumerate() {
        assert_eq!(commit.await.unwrap().positions()[0], at as u64..at as u64 + 1);
    }
    journal.close().unwrap();
    assert_eq!(follow.next().await, Err(ReadError::Closed));
}

/// The closure of a callback often owns something that owns the journal.
#[test]
fn the_last_handle_may_go_in_a_callback() {
    let files = Arc::new(MemoryFiles::new());
    let mut config = Config::default();
    config.segment_bytes = 1 << 20;
    let journal = Journal::open_with(files.clone(), config.clone()).unwrap();
    let log = journal.log("t", 1).unwrap();
    let (told, outcome) = std::sync::mpsc::channel();
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let owned = journal.clone();
    let submitted = journal.submit(Commit::new().append(&log, ["x"]), move |committed| {
        gone.recv().unwrap();
        drop(owned);
        told.send(committed).unwrap();
    });
    submitted.unwrap();
    drop(journal);
    go.send(()).unwrap();
    outcome.recv().unwrap().unwrap();
    // The directory is free as soon as the leader has finished the close.
    let journal = loop {
        match Journal::open_with(files.clone(), config.clone()) {
            Ok(journal) => break journal,
            Err(error) => assert_eq!(error, voussoir_journal::OpenError::InUse),
        }
        std::thread::yield_now();
    };
    assert_eq!(journal.log("t", 1).unwrap().bounds(), 0..1);
}

#[test]
fn a_namespace_is_leased_to_one_user_at_a_time() {
    let journal = Journal::open_with(Arc::new(MemoryFiles::new()), Config::manual()).unwrap();
    let lease = journal.lease("a").unwrap();
    let other = journal.lease("b").unwrap();
    let error = journal.lease("a").unwrap_err();
    assert_eq!(error, Error::Leased { namespace: "a".to_owned() });
    assert!(error.is_retryable());
    drop(lease);
    assert_eq!(journal.lease("a").unwrap().namespace(), "a");
    drop(other);
    // Of another journal, also when it is open at the same time.
    let second = Journal::open_with(Arc::new(MemoryFiles::new()), Config::manual()).unwrap();
    let (_one, _two) = (journal.lease("c").unwrap(), second.lease("c").unwrap());
}

/// The kilobytes of memory that this process has resident.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
#[cfg(target_os = "linux")]
fn a_small_record_that_is_kept_keeps_little_memory() {
    let mut config = Config::manual();
    config.segment_bytes = 16 << 20;
    config.max_bytes = 64 << 20;
    let journal = Journal::open_with(Arc::new(MemoryFiles::new()), config).unwrap();
    let log = journal.log("t", 1).unwrap();
    journal.commit_blocking(Commit::new().append(&log, [vec![1; (1 << 20) - 4]])).unwrap();
    journal.commit_blocking(Commit::new().append(&log, [[2; 94]])).unwrap();
    let before = resident_kib();
    let mut kept = Vec::new();
    for _ in 0..300 {
        drop(log.read(0).unwrap());
        kept.push(log.read(1).unwrap());
    }
    let grown = resident_kib().saturating_sub(before);
    assert!(grown < 150_000, "300 records of 94 bytes keep {grown} KiB");
    assert!(kept.iter().all(|record| record[..] == [2; 94]));
}
