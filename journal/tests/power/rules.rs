//! Scenarios made for single rules, which random runs hit too rarely.

use voussoir_journal::files::crash::{CrashFiles, Loss};
use voussoir_journal::{Commit, Durability, Journal, Work};

use crate::losses::in_order;
use crate::run::world;
use crate::workload::KEYS;

/// A frame that a recovery cut off, at the very place where the next frame of the new epoch is
/// expected, and with its LSN: a mark takes as much room as the empty commit that was lost.
#[test]
fn what_was_cut_off_stays_away() {
    let config = in_order().config;
    let key = KEYS[0];
    let disk = CrashFiles::new(1);
    let open = |disk: &CrashFiles| Journal::open_with(disk.mount(), config.clone()).unwrap();
    let journal = open(&disk);
    let log = journal.log(key.0, key.1).unwrap();
    journal.commit_blocking(Commit::new().append(&log, ["kept"])).unwrap();
    let written = || Commit::new().durability(Durability::Written);
    journal.commit_blocking(written()).unwrap();
    journal.commit_blocking(written().append(&log, ["lost, or not"])).unwrap();
    for seed in 0..400 {
        let disk = disk.fork(seed);
        let [first, second] = [0, 1].map(|_| {
            disk.power_loss(Loss::Any);
            let journal = open(&disk);
            let seen = world(&journal);
            // Dropped alive, it would close and write.
            disk.kill();
            seen
        });
        assert_eq!(first, second, "seed {seed}: a second crash changed what was recovered");
    }
}

/// A release that is merely written frees segments; one of them is made ready for a new life, and
/// then the power goes, and the release with it.
#[test]
fn what_a_lost_release_had_freed_is_still_there() {
    let config = in_order().config;
    let key = KEYS[0];
    let disk = CrashFiles::new(1);
    let open = || Journal::open_with(disk.mount(), config.clone()).unwrap();
    let journal = open();
    let log = journal.log(key.0, key.1).unwrap();
    while journal.stats().rotations < 2 {
        journal.commit_blocking(Commit::new().append(&log, [[7; 900]])).unwrap();
    }
    let before = world(&journal);
    let release = Commit::new().release(&log, log.end()).durability(Durability::Written);
    journal.commit_blocking(release).unwrap();
    assert_eq!(journal.work(0), Work::Prepared);
    disk.power_loss(Loss::Everything);
    let after = world(&open());
    assert!(before == after, "{before:.60?}, and after the crash {after:.200?}");
}

/// Several manifests are written in turn into two places; the power goes. One of them is whole.
/// They list so many segments that a sector does not hold one, or few losses would tear two.
#[test]
fn one_manifest_is_always_whole() {
    let mut config = in_order().config;
    config.max_bytes = 64 * config.segment_bytes;
    let disk = CrashFiles::new(1);
    let journal = Journal::open_with(disk.mount(), config.clone()).unwrap();
    let log = journal.log(KEYS[0].0, KEYS[0].1).unwrap();
    while journal.stats().rotations < 40 {
        journal.commit_blocking(Commit::new().append(&log, [[7; 9_000]])).unwrap();
        journal.work(0);
    }
    for seed in 0..200 {
        let disk = disk.fork(seed);
        disk.power_loss(Loss::Any);
        if let Err(error) = Journal::open_with(disk.mount(), config.clone()) {
            panic!("seed {seed}: {error}");
        }
    }
}
