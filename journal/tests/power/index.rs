//! The index of a full segment is not synced: a power loss may take it, and no log is worse off.

use voussoir_journal::files::crash::{CrashFiles, Loss};
use voussoir_journal::{Commit, Config, Health, Journal, Log};

use crate::losses::in_order;

fn open(disk: &CrashFiles) -> Journal {
    Journal::open_with(disk.mount(), config()).unwrap()
}

fn config() -> Config {
    in_order().config
}

/// Appends to `log` until the next segment has been begun, and prepares another one.
fn fill_segment(journal: &Journal, log: &Log) {
    let rotations = journal.stats().rotations;
    while journal.stats().rotations == rotations {
        journal.commit_blocking(Commit::new().append(log, [[7; 900]])).unwrap();
    }
    journal.work(0);
}

/// A journal of three segments: `cold` has a record in the first one and a section in the middle
/// one, which is then recycled.
fn middle_segment_recycled(disk: &CrashFiles) -> Journal {
    let journal = open(disk);
    let (cold, hot) = (journal.log("cold", 1).unwrap(), journal.log("hot", 1).unwrap());
    let commit = |commit: Commit| journal.commit_blocking(commit).map(drop).unwrap();
    commit(Commit::new().append(&cold, ["kept", "kept too"]));
    fill_segment(&journal, &hot);
    commit(Commit::new().release(&cold, 1));
    fill_segment(&journal, &hot);
    commit(Commit::new().release(&hot, hot.end()));
    fill_segment(&journal, &hot);
    fill_segment(&journal, &hot);
    assert!(journal.stats().segments_recycled >= 1, "{:?}", journal.stats());
    journal
}

#[test]
fn a_lost_index_behind_a_recycled_segment_is_no_damage() {
    for closed in [true, false] {
        let disk = CrashFiles::new(1);
        let journal = middle_segment_recycled(&disk);
        if closed {
            journal.close().unwrap();
        }
        for round in 0..3 {
            // The indexes have never been synced.
            disk.power_loss(Loss::Everything);
            let journal = open(&disk);
            for info in journal.logs() {
                assert_eq!(info.health, Health::Intact, "{info:?}, opening {round}");
            }
            let cold = journal.log("cold", 1).unwrap();
            assert_eq!(cold.read_range(cold.bounds(), 100).unwrap(), ["kept too"]);
            disk.kill();
        }
    }
}

/// The index is lost first, and the segment behind it is recycled in a later life.
#[test]
fn a_segment_may_be_recycled_after_the_index_before_it_was_lost() {
    let disk = CrashFiles::new(1);
    let journal = open(&disk);
    let (cold, hot) = (journal.log("cold", 1).unwrap(), journal.log("hot", 1).unwrap());
    journal.commit_blocking(Commit::new().append(&cold, ["kept", "kept too"])).unwrap();
    fill_segment(&journal, &hot);
    journal.commit_blocking(Commit::new().release(&cold, 1)).unwrap();
    fill_segment(&journal, &hot);
    disk.power_loss(Loss::Everything);
    let journal = open(&disk);
    let (cold, hot) = (journal.log("cold", 1).unwrap(), journal.log("hot", 1).unwrap());
    assert_eq!((cold.health(), hot.health()), (Health::Intact, Health::Intact));
    let release = Commit::new().release(&hot, hot.end());
    journal.commit_blocking(release).unwrap();
    fill_segment(&journal, &hot);
    fill_segment(&journal, &hot);
    assert!(journal.stats().segments_recycled >= 1, "{:?}", journal.stats());
    disk.power_loss(Loss::Everything);
    let journal = open(&disk);
    for info in journal.logs() {
        assert_eq!(info.health, Health::Intact, "{info:?}");
    }
}
